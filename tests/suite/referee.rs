//! The mix: 2,000 requests over all upstreams of the demonstration, sixteen at a time, with retries and kept
//! connections. Every line of nginx's log is one attempt and the other way round, and no name is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use libtest_mimic::Trial;
use xtask::{
    demonstration::{self, FAILING, HEALTHY, race},
    lab::{Run, client::Client, wait_for},
    scenario::{error_log, judge, stage::Stage},
    traced::{Tracer, annotate, not_ok},
};

use crate::ground::{Dice, Ground, live, no_problems, tracer};

/// Requests in the mix.
const REQUESTS: usize = 2_000;
/// Of them at the same time.
const TOGETHER: usize = 16;
/// Races made for sure meanwhile.
const RACES: usize = 10;
/// How long the last verdicts may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The referee.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    vec![live(ground, "referee/two_thousand_mixed_requests", mix)]
}

fn mix(run: &Run, nginx: &Path) -> Result<()> {
    let scenario = demonstration::scenario()?;
    let mut stage = Stage::set(run, &scenario, nginx)?;
    let load = stage.load(scenario.lab.load, false)?;
    let pid = stage.nginx.pid().to_string();
    let tracer = Tracer::attach(run, &tracer(), &pid, &[], &stage.folder)?;
    for step in &scenario.lab.steps {
        stage.take(run, step)?;
    }
    let problems = requests(&stage)?;
    for number in 0..RACES {
        race(run, &mut stage, &format!("racer-{number}"))?;
    }
    let log = stage.nginx.error_log();
    let wanted = error_log::attempts(&log).len();
    wait_for(format!("{wanted} failed attempts"), PATIENCE, || {
        let seen = tracer.n_not_ok(None).unwrap_or(0);
        if seen >= wanted {
            Ok(())
        } else {
            Err(format!("{seen}"))
        }
    })?;
    let load = load.stop();
    let records = tracer.stop()?;
    let mut problems = [problems, load.failed].concat();
    let seen = judge::Seen {
        records: &records,
        error_log: &log,
        healthy: 0,
        clients: 0,
        inner_pids: &BTreeMap::new(),
    };
    problems.extend(judge::judge(&scenario, &|text| stage.names().fill(text), &seen)?);
    let annotation = annotate(
        &self::tracer(),
        &stage.folder.join("error.log"),
        &stage.folder.join("trace.jsonl"),
        &[],
    )?;
    problems.extend(judge::judge_annotation(&records, &log, &annotation));
    let upstreams: BTreeSet<&str> = not_ok(&records)
        .filter_map(|attempt| attempt["upstream"].as_str())
        .collect();
    let retried = not_ok(&records)
        .filter(|attempt| attempt["retry"].is_object())
        .count();
    let retries = xtask::traced::of_type(&records, "attempt")
        .filter(|attempt| attempt["retry"].is_object() && attempt["upstream"] == "api")
        .count();
    if retries == 0 {
        problems.push(format!(
            "no retry of a dead peer of api was linked ({retried} failures were retries)"
        ));
    }
    println!("{wanted} lines, failures at {upstreams:?}, {retries} retries");
    no_problems("referee", &stage, &problems)
}

/// Sends the mix; yields what went wrong on the clients' side.
fn requests(stage: &Stage) -> Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(Vec::new());
    let (near, address) = (&stage.near, &stage.address);
    let paths: Vec<&str> = HEALTHY.iter().chain(FAILING).copied().collect();
    std::thread::scope(|scope| {
        for seed in 0..TOGETHER {
            let (next, problems, paths) = (&next, &problems, &paths);
            scope.spawn(move || {
                let mut dice = Dice::new(u64::try_from(seed).unwrap_or(0) + 1);
                let mut kept: Option<Client> = None;
                while next.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    let path = paths[dice.below(paths.len())];
                    let keep = seed % 2 == 0;
                    let method = if dice.below(4) == 0 { "POST" } else { "GET" };
                    let result = kept
                        .take()
                        .map_or_else(|| Client::connect(near, address), Ok)
                        .and_then(|mut client| {
                            client.send(method, path, if method == "POST" { 300 } else { 0 }, keep)?;
                            let response = client.receive()?;
                            Ok((client, response))
                        });
                    match result {
                        Ok((client, response)) => {
                            let is_healthy = HEALTHY.contains(&path);
                            if is_healthy && response.status != 200 {
                                let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
                                problems.push(format!("{path} was answered with {}", response.status));
                            }
                            // nginx ends the connection after some errors.
                            kept = (keep && response.status == 200).then_some(client);
                        }
                        Err(error) => problems
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(format!("{path}: {error:#}")),
                    }
                }
            });
        }
    });
    Ok(problems.into_inner().unwrap_or_else(PoisonError::into_inner))
}
