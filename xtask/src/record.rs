//! `cargo xtask record`: runs the scenarios with little healthy traffic and keeps their recordings, each with the
//! names its scenario was played with and nginx's error log, for the replay tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use xtask::{
    lab::Run,
    scenario::{
        Scenario,
        run::{Outcome, Setup, find_nginx},
    },
    traced::RECORDING,
};

use crate::{
    play::{build_tracer, root, target_folder},
    vm,
};

/// Healthy requests under way while recording: enough to be in the way, few enough to keep the files small.
const LOAD: usize = 3;

/// Options of `cargo xtask record`.
#[derive(clap::Args)]
pub struct Args {
    /// The scenarios' names, or beginnings of them; all when none is given.
    names: Vec<String>,
    /// Record on this kernel in QEMU: what needs SELinux can be recorded nowhere else.
    #[arg(long, conflicts_with_all = ["tracer", "into"])]
    kernel: Option<String>,
    /// The tracer to use; without it, one is built.
    #[arg(long)]
    tracer: Option<PathBuf>,
    /// Where recordings go; without it, tests/recordings.
    #[arg(long)]
    into: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let recordings = args
        .into
        .clone()
        .unwrap_or_else(|| root().join("tests/recordings"));
    if let Some(kernel) = &args.kernel {
        return on_guest(kernel, &args.names, &recordings);
    }
    let tracer = match &args.tracer {
        Some(tracer) => tracer.clone(),
        None => build_tracer(false)?,
    };
    let run = Run::begin()?;
    fs::create_dir_all(&recordings).with_context(|| format!("making {}", recordings.display()))?;
    let mut wrong = Vec::new();
    for mut scenario in Scenario::read_all(&root().join("tests/scenarios"))? {
        if !args.names.is_empty() && !args.names.iter().any(|name| scenario.name.starts_with(name)) {
            continue;
        }
        scenario.lab.load = scenario.lab.load.min(LOAD);
        let keep = target_folder().join("recorded").join(&scenario.name);
        let setup = Setup {
            tracer: Some(tracer.clone()),
            nginx: find_nginx()?,
            keep: keep.clone(),
            arguments: Vec::new(),
        };
        match xtask::scenario::run::run(&run, &scenario, &setup) {
            Ok(Outcome::AsExpected) => {
                keep_recording(&keep, &recordings, &scenario.name)?;
                println!("recorded {}", scenario.name);
            }
            Ok(Outcome::Skipped(why)) => println!("skipped  {}: {why}", scenario.name),
            // A recording that is wrong today would only nail the mistake down.
            Ok(Outcome::Wrong(problems)) => {
                println!("wrong    {}: {}", scenario.name, problems.join("\n         "));
                wrong.push(scenario.name);
            }
            Err(error) => {
                println!("error    {}: {error:#}", scenario.name);
                wrong.push(scenario.name);
            }
        }
    }
    if !wrong.is_empty() {
        bail!("not recorded: {}", wrong.join(", "));
    }
    Ok(())
}

/// Has a guest record, and takes what it left.
fn on_guest(kernel: &str, names: &[String], recordings: &Path) -> Result<()> {
    let left = vm::recordings(kernel, names.to_vec())?;
    for entry in fs::read_dir(&left).with_context(|| format!("looking into {}", left.display()))? {
        let entry = entry?;
        keep_recording(&entry.path(), recordings, &entry.file_name().to_string_lossy())?;
    }
    Ok(())
}

/// A recording is three files in a folder.
fn keep_recording(from: &Path, recordings: &Path, name: &str) -> Result<()> {
    let to = recordings.join(name);
    fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
    for file in [RECORDING, "names.json", "error.log"] {
        fs::copy(from.join(file), to.join(file)).with_context(|| format!("keeping {file} of {name}"))?;
    }
    Ok(())
}
