//! nginx of other Debian suites: scenarios of every family with it, named as with this machine's.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use xtask::{lab::nginx::packaged, scenario::Scenario};

use crate::ground::{Ground, play, skipped};

/// The scenarios: what may differ between versions is how nginx fails, retries, keeps connections and says so.
const SCENARIOS: &[&str] = &[
    "backend-died",
    "backend-slow",
    "client-closed",
    "closed-mid-response",
    "healthy-stream",
    "keepalive-race",
    "nginx-balancer-backup",
    "nginx-balancer-zone",
    "nginx-reload-in-traffic",
    "nginx-thread-pool",
    "no-listener",
    "no-listener-stream",
    "unix-missing",
    "worker-died",
];

/// One test a suite and scenario.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    let scenarios: Vec<Scenario> = crate::scenarios::scenarios()
        .into_iter()
        .filter(|scenario| SCENARIOS.contains(&&*scenario.name))
        .collect();
    assert_eq!(scenarios.len(), SCENARIOS.len(), "each is a scenario");
    packaged::ALL
        .iter()
        .flat_map(|packaged| scenarios.iter().map(move |scenario| (packaged, scenario.clone())))
        .map(|(packaged, mut scenario)| {
            let ground = Arc::clone(ground);
            let name = format!("nginx_of_{}/{}", packaged.suite, scenario.name);
            // Its folders and ports are its own.
            scenario.name = format!("{}-{}", scenario.name, packaged.suite);
            Trial::ignorable_test(name.clone(), move || {
                let (run, _) = match ground.live() {
                    Ok(live) => live,
                    Err(reason) => return skipped(&reason),
                };
                match packaged.find() {
                    Ok(nginx) => play(run, &nginx, &scenario, &name, &[])
                        .map_err(|error| Failed::from(format!("{error:#}")))?,
                    Err(reason) => skipped(&reason),
                }
            })
        })
        .collect()
}
