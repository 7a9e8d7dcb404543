//! Every scenario file, live: the real fault on a real nginx, named right, and nothing else named wrong.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use xtask::scenario::Scenario;

use crate::ground::{Ground, play, root, skipped};

/// The scenario files.
pub fn scenarios() -> Vec<Scenario> {
    Scenario::read_all(&root().join("tests/scenarios")).expect("the scenarios are well-formed")
}

/// One test a scenario and placement.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    scenarios()
        .into_iter()
        .flat_map(Scenario::in_all_placements)
        .map(|scenario| {
            let ground = Arc::clone(ground);
            let name = format!("scenario/{}", scenario.name);
            Trial::ignorable_test(name.clone(), move || match ground.live() {
                Ok((run, nginx)) => play(run, nginx, &scenario, &name, &[])
                    .map_err(|error| Failed::from(format!("{error:#}")))?,
                Err(reason) => skipped(&reason),
            })
        })
        .collect()
}
