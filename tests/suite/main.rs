//! Everything that needs more than one module to be seen: real faults on a real nginx, named regressions, replay of
//! recordings, mistakes of the user, the architecture's invariants.
//!
//! Tests that need root, or something this machine lacks, are skipped with the reason; in CI (`CI=true`) a skip nobody
//! expects is a failure. The order is shuffled with a seed that is printed; `TRACER_SUITE_SEED` sets it, and
//! `TRACER_SUITE=full` runs every scenario once more with nothing heard from nginx, and makes the large logs a gigabyte each.

mod deaf;
mod demo;
mod follow;
mod ground;
mod hunts;
mod input;
mod large_logs;
mod moved;
mod packaged;
mod referee;
mod regressions;
mod replay;
mod scenarios;
mod secrets;
mod thirty_causes;
mod tidy;
mod twenty_hours;
mod under_load;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use crate::ground::Ground;

/// How many tests run at once unless `--test-threads` says otherwise: they mostly wait.
const THREADS: usize = 4;

fn main() -> ExitCode {
    xtask::lab::run_if_backend();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let ground = match Ground::prepare(!arguments.list) {
        Ok(ground) => ground,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    trials.extend(tidy::trials());
    trials.extend(replay::trials());
    trials.extend(twenty_hours::trials());
    trials.extend(hunts::trials());
    trials.extend(large_logs::trials());
    trials.extend(deaf::trials(&ground));
    trials.extend(input::trials(&ground));
    trials.extend(scenarios::trials(&ground));
    trials.extend(packaged::trials(&ground));
    trials.extend(regressions::trials(&ground));
    trials.extend(secrets::trials(&ground));
    trials.extend(follow::trials(&ground));
    trials.extend(demo::trials(&ground));
    trials.extend(referee::trials(&ground));
    trials.extend(thirty_causes::trials(&ground));
    ground::shuffle(&mut trials);
    let conclusion = libtest_mimic::run(&arguments, trials);
    // It takes all that the machine gives: beside it others may lose records.
    let loaded = libtest_mimic::run(&arguments, under_load::trials(&ground));
    // `exit()` would leave the laboratory standing.
    drop(ground);
    if conclusion.has_failed() {
        conclusion.exit_code()
    } else {
        loaded.exit_code()
    }
}
