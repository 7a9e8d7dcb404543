//! Runs a scenario: the stage, healthy traffic, a tracer that attaches while it flows, the fault, the judgement.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Scenario, Step, error_log, judge, stage, stage::Stage};
use crate::{
    lab::{
        Run,
        client::{Load, LoadReport},
        slowness, wait_for,
    },
    traced::{self, RECORDING, Tracer},
};

/// How long a client of healthy traffic rests after each answer for each scenario that is played beside it.
const REST: Duration = Duration::from_millis(5);
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
    if let Some(lacks) = lacks(scenario) {
        return Ok(Outcome::Skipped(lacks));
    }
    let mut stage = Stage::set(run, scenario, &setup.nginx)?;
    let played = play(run, scenario, setup, &mut stage);
    concluded(stage, setup, played)
}

/// What this machine lacks for a scenario.
pub(super) fn lacks(scenario: &Scenario) -> Option<String> {
    let mut needs = scenario.needs.iter();
    needs.find_map(|need| stage::missing(*need).err().map(str::to_owned))
}

/// Keeps what a scenario left behind and says how it went.
pub(super) fn concluded(mut stage: Stage, setup: &Setup, played: Result<Vec<String>>) -> Result<Outcome> {
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
    let (load, clients) = begin(run, scenario, stage, 1)?;
    let tracer = setup
        .tracer
        .as_ref()
        .map(|program| {
            let pid = stage.nginx.pid().to_string();
            let arguments = [&setup.arguments[..], &lab.arguments].concat();
            Tracer::attach(run, program, &pid, &arguments, &stage.folder)
        })
        .transpose()?;
    let healthy = take_steps(run, scenario, stage, load, |wanted| match &tracer {
        Some(tracer) => await_failures(tracer, wanted, None),
        None => Ok(()),
    })?;
    let Some(tracer) = tracer else {
        let mut problems = healthy.problems;
        let log = stage.nginx.error_log();
        problems.extend(judge::judge_log(
            scenario,
            &|text| stage.names().fill(text),
            &log,
        )?);
        return Ok(problems);
    };
    let records = tracer.stop()?;
    let mut problems = judge::frame(&records);
    if let Some(program) = &setup.tracer {
        problems.extend(replay_differs(program, &stage.folder, &records)?);
    }
    problems.extend(judged(scenario, stage, &records, healthy, clients)?);
    Ok(problems)
}

/// Does what comes before the fault, and begins with healthy traffic: how many clients make it.
pub(super) fn begin(
    run: &Run,
    scenario: &Scenario,
    stage: &mut Stage,
    together: usize,
) -> Result<(Load, usize)> {
    let lab = &scenario.lab;
    for step in &lab.before {
        stage
            .take(run, step)
            .with_context(|| format!("before the fault: {step:?}"))?;
    }
    // A slow machine is as busy with fewer, but some keep their connections and some do not.
    let slowness = usize::try_from(slowness())?;
    let clients = lab.load.div_ceil(slowness * together).max(lab.load.min(2));
    let load = stage.load(clients, lab.load_keeps)?;
    if together > 1 {
        // What one alone may take up, all together would take from the stages that are being set and the tracer.
        load.rest(REST * u32::try_from(slowness * together)?);
    }
    let wanted = u64::try_from(clients)?;
    wait_for("healthy traffic", VERDICT_PATIENCE, || match load.answered() {
        n if n >= wanted => Ok(()),
        n => Err(format!("{n} requests answered")),
    })?;
    Ok((load, clients))
}

/// What became of healthy traffic while the tracer watched.
pub(super) struct Healthy {
    answered: u64,
    problems: Vec<String>,
}

/// Takes a scenario's steps, waits for its failures and ends healthy traffic.
pub(super) fn take_steps(
    run: &Run,
    scenario: &Scenario,
    stage: &mut Stage,
    load: Load,
    await_failures: impl Fn(usize) -> Result<()>,
) -> Result<Healthy> {
    let lab = &scenario.lab;
    let answered_before = load.answered();
    for step in &lab.steps {
        match step {
            Step::AwaitFailures(n) => await_failures(*n)?,
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
    await_failures(expected)?;
    let LoadReport { answered, failed } = load.stop();
    Ok(Healthy {
        answered: answered.saturating_sub(answered_before),
        problems: failed
            .into_iter()
            .filter(|_| !lab.load_suffers)
            .map(|problem| format!("healthy traffic: {problem}"))
            .collect(),
    })
}

/// What is wrong with the attempts of a scenario's nginx.
pub(super) fn judged(
    scenario: &Scenario,
    stage: &Stage,
    records: &[Value],
    healthy: Healthy,
    clients: usize,
) -> Result<Vec<String>> {
    let mut problems = healthy.problems;
    let seen = judge::Seen {
        records,
        error_log: &stage.nginx.error_log(),
        healthy: healthy.answered,
        clients,
        inner_pids: &stage.nginx.inner_pids(),
    };
    problems.extend(judge::judge(scenario, &|text| stage.names().fill(text), &seen)?);
    Ok(problems)
}

pub(super) fn replay_differs(program: &Path, folder: &Path, records: &[Value]) -> Result<Option<String>> {
    let replayed = traced::replay(program, &folder.join(RECORDING), &folder.join("replayed.jsonl"))?;
    Ok(traced::first_difference(records, &replayed)
        .map(|difference| format!("live and replay differ: {difference}")))
}

/// Waits until so many attempts that did not succeed are in the trace, of one nginx's when its master is given.
pub(super) fn await_failures(tracer: &Tracer, wanted: usize, master: Option<u32>) -> Result<()> {
    wait_for(
        format!("{wanted} failed attempts in the trace"),
        VERDICT_PATIENCE,
        || match tracer.n_not_ok(master) {
            Ok(n) if n >= wanted => Ok(()),
            Ok(n) => Err(format!(
                "{n} failed attempts; the tracer said `{}`",
                tracer.said().trim()
            )),
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
