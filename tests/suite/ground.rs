//! What all tests stand on: the laboratory's run, the programs, how a test is skipped.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Completion, Failed, Trial};
use xtask::{
    lab::Run,
    scenario::{
        Scenario,
        run::{Outcome, Setup, find_nginx},
        stage::Stage,
    },
    traced::RECORDING,
};

/// Reasons for which CI may skip a test: what its machines lack, and nothing else.
const EXPECTED_SKIPS: &[&str] = &[
    "this kernel cannot destroy sockets on request",
    "this kernel runs without SELinux",
    "nginx of Debian's",
];

/// What tests stand on.
pub struct Ground {
    /// The laboratory, or why there is none.
    run: Result<Run, String>,
    /// The nginx executable.
    nginx: Result<PathBuf, String>,
}

impl Ground {
    /// Prepares it; `live` is false where nothing is going to run.
    pub fn prepare(live: bool) -> Result<Arc<Self>> {
        let run = if !live {
            Err("only listed".to_owned())
        } else if nix::unistd::Uid::effective().is_root() {
            Ok(Run::begin()?)
        } else {
            Err("needs root: network namespaces and BPF".to_owned())
        };
        Ok(Arc::new(Self {
            run,
            nginx: find_nginx().map_err(|error| format!("{error:#}")),
        }))
    }

    /// The laboratory and the nginx executable, or the reason to skip.
    pub fn live(&self) -> Result<(&Run, &Path), String> {
        let run = self.run.as_ref().map_err(Clone::clone)?;
        let nginx = self.nginx.as_ref().map_err(Clone::clone)?;
        Ok((run, nginx))
    }
}

/// The tracer under test.
pub fn tracer() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tracer"))
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

/// Where a test leaves what is worth reading after a failure.
pub fn kept(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A test that needs nothing.
pub fn plain(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test().map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// A test that needs the laboratory.
pub fn live(
    ground: &Arc<Ground>,
    name: &str,
    test: impl FnOnce(&Run, &Path) -> Result<()> + Send + 'static,
) -> Trial {
    let ground = Arc::clone(ground);
    Trial::ignorable_test(name, move || match ground.live() {
        Ok((run, nginx)) => match test(run, nginx) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
        Err(reason) => skipped(&reason),
    })
}

/// Whether the runs that add nothing but length are wanted.
pub fn is_full() -> bool {
    std::env::var("TRACER_SUITE").is_ok_and(|wanted| wanted == "full")
}

/// A skip, which CI takes for a failure unless it expects it.
pub fn skipped(reason: &str) -> Result<Completion, Failed> {
    let is_expected = EXPECTED_SKIPS.iter().any(|expected| reason.starts_with(expected));
    if std::env::var("CI").is_ok_and(|ci| ci == "true") && !is_expected {
        return Err(Failed::from(format!("skipped where it must not be: {reason}")));
    }
    Ok(Completion::ignored_with(reason))
}

/// What a scenario runs with: the tracer under test, and `name` for what it leaves.
pub fn setup(nginx: &Path, name: &str, arguments: &[&str]) -> Setup {
    Setup {
        tracer: Some(tracer()),
        nginx: nginx.to_owned(),
        keep: kept(name),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
    }
}

/// Runs a scenario as the scenario's own test would, with further arguments for `tracer attach`.
pub fn play(
    run: &Run,
    nginx: &Path,
    scenario: &Scenario,
    name: &str,
    arguments: &[&str],
) -> Result<Result<Completion, Failed>> {
    let setup = setup(nginx, name, arguments);
    let keep = setup.keep.clone();
    Ok(conclude(xtask::scenario::run::run(run, scenario, &setup)?, &keep))
}

/// What a scenario's outcome is as a test's.
pub fn conclude(outcome: Outcome, keep: &Path) -> Result<Completion, Failed> {
    match outcome {
        Outcome::AsExpected => Ok(Completion::Completed),
        Outcome::Skipped(reason) => skipped(&reason),
        Outcome::Wrong(problems) => Err(Failed::from(format!(
            "{}\nsee {}",
            problems.join("\n"),
            keep.display()
        ))),
    }
}

/// A scenario that a test writes itself.
pub fn scenario(name: &str, text: &str) -> Result<Scenario> {
    Scenario::parse(name, text).with_context(|| format!("the scenario of {name}"))
}

/// Puts tests into an order of their own, so that none depends on another's having run.
pub fn shuffle(trials: &mut [Trial]) {
    let seed = std::env::var("TRACER_SUITE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(1, |since| since.as_secs())
        });
    println!("order: TRACER_SUITE_SEED={seed}");
    let mut dice = Dice::new(seed);
    for last in (1..trials.len()).rev() {
        let other = dice.below(last + 1);
        trials.swap(last, other);
    }
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % n
    }
}

/// Keeps what a stage left when a test is unhappy with it.
pub fn no_problems(name: &str, stage: &Stage, problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let keep = kept(name);
    std::fs::create_dir_all(&keep)?;
    for file in [
        "trace.jsonl",
        "error.log",
        "access.log",
        "nginx.conf",
        "tracer.stderr",
    ] {
        std::fs::copy(stage.folder.join(file), keep.join(file))?;
    }
    let recording = stage.folder.join(RECORDING);
    if recording.exists() {
        std::fs::copy(recording, keep.join(RECORDING))?;
    }
    let shown: Vec<&str> = problems.iter().take(20).map(String::as_str).collect();
    anyhow::bail!(
        "{} problems, see {}:\n{}",
        problems.len(),
        keep.display(),
        shown.join("\n")
    )
}
