//! Runs a scenario: the stage, healthy traffic, a tracer that attaches while it flows, the fault, the judgement.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Scenario, Step, error_log, judge, stage, stage::Stage};
use crate::{
    lab::{Run, client::LoadReport, slowness, wait_for},
    traced::{self, RECORDING, Tracer, not_ok},
};

/// How long a failed attempt may take from the fault to the trace; neighbours need three seconds to be given up.
const VERDICT_PATIENCE: Duration = Duration::from_secs(30);

/// What a scenario is run with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The tracer; without one only nginx's own log is judged: does the fault really happen?
    pub tracer: Option<PathBuf>,
    /// The nginx executable.
    pub nginx: PathBuf,
    /// Where the trace, the recording, nginx's logs and its configuration are kept.
    pub keep: PathBuf,
    /// Further arguments of `tracer attach`.
    pub arguments: Vec<String>,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the scenario says.
    AsExpected,
    /// It cannot happen here, and why.
    Skipped(String),
    /// Not as the scenario says: what is wrong, and where the files are.
    Wrong(Vec<String>),
}

/// Runs a scenario in a laboratory.
pub fn run(run: &Run, scenario: &Scenario, setup: &Setup) -> Result<Outcome> {
    for need in &scenario.needs {
        if let Err(lacks) = stage::missing(*need) {
            return Ok(Outcome::Skipped(lacks.to_owned()));
        }
    }
    let mut stage = Stage::set(run, scenario, &setup.nginx)?;
    let played = play(run, scenario, setup, &mut stage);
    // Enforcing, it may also keep the laboratory from its own files.
    stage.selinux = None;
    let names = serde_json::to_string_pretty(stage.names())?;
    fs::write(stage.folder.join("names.json"), names).context("writing names.json")?;
    let kept = keep(&stage.folder, &setup.keep);
    let problems = played.with_context(|| format!("see {}", setup.keep.display()))?;
    kept?;
    Ok(if problems.is_empty() {
        Outcome::AsExpected
    } else {
        Outcome::Wrong(problems)
    })
}

fn play(run: &Run, scenario: &Scenario, setup: &Setup, stage: &mut Stage) -> Result<Vec<String>> {
    let lab = &scenario.lab;
    for step in &lab.before {
        stage
            .take(run, step)
            .with_context(|| format!("before the fault: {step:?}"))?;
    }
    // A slow machine is as busy with fewer.
    let clients = lab.load.div_ceil(usize::try_from(slowness())?);
    let load = stage.load(clients, lab.load_keeps)?;
    let wanted = u64::try_from(clients)?;
    wait_for("healthy traffic", VERDICT_PATIENCE, || match load.answered() {
        n if n >= wanted => Ok(()),
        n => Err(format!("{n} requests answered")),
    })?;
    let tracer = setup
        .tracer
        .as_ref()
        .map(|program| {
            let pid = stage.nginx.pid().to_string();
            let arguments = [&setup.arguments[..], &lab.arguments].concat();
            Tracer::attach(run, program, &pid, &arguments, &stage.folder)
        })
        .transpose()?;
    let answered_before = load.answered();
    for step in &lab.steps {
        match (step, &tracer) {
            (Step::AwaitFailures(n), Some(tracer)) => await_failures(tracer, *n)?,
            _ => stage
                .take(run, step)
                .with_context(|| format!("while doing {step:?}"))?,
        }
    }
    let expected: usize = scenario
        .expect
        .iter()
        .map(|expect| expect.attempts.unwrap_or(usize::from(!expect.optional)))
        .sum();
    if let Some(tracer) = &tracer {
        await_failures(tracer, expected)?;
    }
    let LoadReport { answered, failed } = load.stop();
    let mut problems: Vec<String> = failed
        .into_iter()
        .filter(|_| !lab.load_suffers)
        .map(|problem| format!("healthy traffic: {problem}"))
        .collect();
    let log = stage.nginx.error_log();
    match tracer {
        Some(tracer) => {
            let records = tracer.stop()?;
            if let Some(program) = &setup.tracer {
                let recording = stage.folder.join(RECORDING);
                let replayed = traced::replay(program, &recording, &stage.folder.join("replayed.jsonl"))?;
                problems.extend(
                    traced::first_difference(&records, &replayed)
                        .map(|difference| format!("live and replay differ: {difference}")),
                );
            }
            let seen = judge::Seen {
                records: &records,
                error_log: &log,
                healthy: answered.saturating_sub(answered_before),
                clients,
                inner_pids: &stage.nginx.inner_pids(),
            };
            problems.extend(judge::judge(scenario, &|text| stage.names().fill(text), &seen)?);
        }
        None => problems.extend(judge::judge_log(
            scenario,
            &|text| stage.names().fill(text),
            &log,
        )?),
    }
    Ok(problems)
}

/// Waits until so many attempts that did not succeed are in the trace.
fn await_failures(tracer: &Tracer, wanted: usize) -> Result<()> {
    wait_for(
        format!("{wanted} failed attempts in the trace"),
        VERDICT_PATIENCE,
        || match tracer.records() {
            Ok(records) => match not_ok(&records).count() {
                n if n >= wanted => Ok(()),
                n => Err(format!(
                    "{n} failed attempts; the tracer said `{}`",
                    tracer.said().trim()
                )),
            },
            Err(error) => Err(format!("{error:#}")),
        },
    )
}

/// Copies what is worth reading afterwards.
fn keep(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for name in [
        "nginx.conf",
        "error.log",
        "access.log",
        "nginx.stderr",
        "trace.jsonl",
        RECORDING,
        "names.json",
        "tracer.stdout",
        "tracer.stderr",
    ] {
        let path = from.join(name);
        if path.exists() {
            fs::copy(&path, to.join(name)).with_context(|| format!("keeping {}", path.display()))?;
        }
    }
    Ok(())
}

/// The nginx that the laboratory runs.
pub fn find_nginx() -> Result<PathBuf> {
    crate::find_program("nginx").context("no nginx here: run `cargo xtask setup`")
}

/// Refuses scenarios of which two have one name, or which expect nothing and say so nowhere.
pub fn check_all(scenarios: &[Scenario]) -> Result<()> {
    for scenario in scenarios {
        stage::check(scenario)?;
        for expect in &scenario.expect {
            let is_known = error_log::is_phase(&expect.phase);
            ensure!(is_known, "{}: no phase is called {}", scenario.name, expect.phase);
        }
        if scenario.lab.steps.is_empty() {
            bail!("{}: nothing happens in it", scenario.name);
        }
    }
    Ok(())
}
