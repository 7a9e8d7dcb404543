//! Scenarios beside each other, with one tracer that watches the nginx of each: on an emulated machine loading the
//! programs takes longer than all the rest.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use super::{
    Need, Scenario, judge,
    run::{
        Healthy, Outcome, Setup, await_failures, begin, concluded, judged, lacks, replay_differs, take_steps,
    },
    stage::Stage,
};
use crate::{
    in_parallel,
    lab::{Run, client::Load},
    traced::{Tracer, of_instance},
};

/// Whether two scenarios can have one tracer.
#[must_use]
pub fn fit(one: &Scenario, other: &Scenario) -> bool {
    // Enforcing, SELinux also concerns the neighbours.
    let alone = [one, other]
        .iter()
        .any(|scenario| scenario.needs.contains(&Need::Selinux));
    !alone && one.lab.arguments == other.lab.arguments
}

/// A scenario whose nginx waits for the tracer.
struct Staged<'a> {
    scenario: &'a Scenario,
    setup: &'a Setup,
    stage: Stage,
    clients: usize,
    played: Played,
}

/// How far it is.
enum Played {
    Begun(Load),
    Done(Healthy),
    Failed(anyhow::Error),
}

/// Runs scenarios of which each fits the first; `jobs` of them are played at the same time. One outcome for each, in their
/// order.
pub fn run(run: &Run, program: &Path, scenarios: &[(&Scenario, Setup)], jobs: usize) -> Vec<Result<Outcome>> {
    let together = scenarios.len();
    let mut laps = Laps::begin();
    let staged = in_parallel(scenarios.iter().collect(), jobs, |(scenario, setup)| {
        if let Some(lacks) = lacks(scenario) {
            return Ok(Err(Outcome::Skipped(lacks)));
        }
        let mut stage = Stage::set(run, scenario, &setup.nginx)?;
        let (clients, played) = match begin(run, scenario, &mut stage, together) {
            Ok((load, clients)) => (clients, Played::Begun(load)),
            Err(error) => (0, Played::Failed(error)),
        };
        Ok(Ok(Staged {
            scenario,
            setup,
            stage,
            clients,
            played,
        }))
    });
    laps.end("staged");
    let arguments = scenarios
        .first()
        .map(|(scenario, setup)| [&setup.arguments[..], &scenario.lab.arguments].concat())
        .unwrap_or_default();
    // A new folder, where no tracer before it has left a file that says it is ready.
    let is_any_staged = staged.iter().any(|staged| matches!(staged, Ok(Ok(_))));
    let watching = run.folder("together").and_then(|folder| {
        ensure!(is_any_staged, "no nginx to watch");
        let tracer = Tracer::attach(run, program, "nginx", &arguments, &folder)?;
        Ok((tracer, folder))
    });
    let tracer = watching.as_ref().map(|(tracer, _)| tracer);
    laps.end("attached");
    let staged = in_parallel(staged, jobs, |staged: Result<Result<Staged<'_>, Outcome>>| {
        Ok(staged?.map(|staged| staged.play(run, tracer)))
    });
    laps.end("played");
    let traced = watching.and_then(|(tracer, folder)| {
        let records = tracer.stop()?;
        let mut problems = judge::frame(&records);
        problems.extend(replay_differs(program, &folder, &records)?);
        Ok(Traced {
            records,
            problems,
            folder,
        })
    });
    laps.end("stopped and replayed");
    let outcomes = staged
        .into_iter()
        .map(|staged: Result<Result<Staged<'_>, Outcome>>| match staged? {
            Ok(staged) => staged.concluded(traced.as_ref()),
            Err(outcome) => Ok(outcome),
        })
        .collect();
    laps.end("judged");
    println!("{together} together: {}", laps.said.join(", "));
    outcomes
}

/// What the tracer left.
struct Traced {
    records: Vec<Value>,
    /// What is wrong with the trace as such.
    problems: Vec<String>,
    folder: PathBuf,
}

/// Where the time goes.
struct Laps {
    begun: Instant,
    said: Vec<String>,
}

impl Laps {
    fn begin() -> Self {
        Self {
            begun: Instant::now(),
            said: Vec::new(),
        }
    }

    fn end(&mut self, what: &str) {
        self.said
            .push(format!("{what} {:.1} s", self.begun.elapsed().as_secs_f64()));
        self.begun = Instant::now();
    }
}

impl Staged<'_> {
    fn master(&self) -> u32 {
        self.stage.nginx.pid()
    }

    fn play(mut self, run: &Run, tracer: Result<&Tracer, &anyhow::Error>) -> Self {
        let master = Some(self.master());
        let Played::Begun(load) = self.played else {
            return self;
        };
        let played = tracer.map_err(|error| anyhow!("{error:#}")).and_then(|tracer| {
            take_steps(run, self.scenario, &mut self.stage, load, |wanted| {
                await_failures(tracer, wanted, master)
            })
        });
        self.played = match played {
            Ok(healthy) => Played::Done(healthy),
            Err(error) => Played::Failed(error),
        };
        self
    }

    fn concluded(self, traced: Result<&Traced, &anyhow::Error>) -> Result<Outcome> {
        let master = self.master();
        let played = traced.map_err(|error| anyhow!("{error:#}")).and_then(|traced| {
            let is_its = of_instance(&traced.records, Some(master));
            let its = traced.records.iter().filter(|record| is_its(record));
            let records: Vec<Value> = its.cloned().collect();
            hand_over(&traced.folder, &self.stage.folder, &records)?;
            let healthy = match self.played {
                Played::Done(healthy) => healthy,
                Played::Failed(error) => return Err(error),
                Played::Begun(_) => return Err(anyhow!("it was not played")),
            };
            let mut problems = traced.problems.clone();
            problems.extend(judged(
                self.scenario,
                &self.stage,
                &records,
                healthy,
                self.clients,
            )?);
            Ok(problems)
        });
        concluded(self.stage, self.setup, played)
    }
}

/// Gives a scenario its part of the trace, and what else the tracer left, whole.
fn hand_over(from: &Path, to: &Path, records: &[Value]) -> Result<()> {
    let mut trace = String::new();
    for record in records {
        trace.push_str(&record.to_string());
        trace.push('\n');
    }
    fs::write(to.join("trace.jsonl"), trace).context("writing a scenario's part of the trace")?;
    for name in [crate::traced::RECORDING, "tracer.stdout", "tracer.stderr"] {
        fs::copy(from.join(name), to.join(name)).with_context(|| format!("keeping {name}"))?;
    }
    Ok(())
}
