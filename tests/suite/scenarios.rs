//! Every scenario file, live: the real fault on a real nginx, named right, and nothing else named wrong.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use xtask::scenario::{Scenario, report::Report};

use crate::ground::{Ground, conclude, kept, root, setup, skipped};

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
                Ok((run, nginx)) => {
                    let setup = setup(nginx, &name, &[]);
                    let keep = setup.keep.clone();
                    let outcome = xtask::scenario::run::run(run, &scenario, &setup);
                    // For the scoreboard, which `cargo xtask test` holds these against.
                    Report::of(&scenario.name, &outcome)
                        .write(&kept("scenario"))
                        .map_err(|error| Failed::from(format!("{error:#}")))?;
                    conclude(
                        outcome.map_err(|error| Failed::from(format!("{error:#}")))?,
                        &keep,
                    )
                }
                Err(reason) => skipped(&reason),
            })
        })
        .collect()
}
