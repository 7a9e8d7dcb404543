//! `cargo xtask scenario`: runs scenarios by name and shows where to look.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    lab::Run,
    scenario::{
        Scenario,
        run::{Outcome, Setup, find_nginx},
    },
};

/// Options of `cargo xtask scenario`.
#[derive(clap::Args)]
pub struct Args {
    /// The scenarios' names, or beginnings of them; all when none is given.
    names: Vec<String>,
    /// Judge nginx's own log alone: does the fault really happen?
    #[arg(long)]
    without_tracer: bool,
    /// Further arguments for `tracer attach`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let tracer = if args.without_tracer {
        None
    } else {
        Some(build_tracer(false)?)
    };
    let run = Run::begin()?;
    let is_wanted = |scenario: &Scenario| {
        args.names.is_empty() || args.names.iter().any(|name| scenario.name.starts_with(name))
    };
    let mut wrong = 0;
    let mut n_run = 0;
    for scenario in Scenario::read_all(&root().join("tests/scenarios"))? {
        if !is_wanted(&scenario) {
            continue;
        }
        n_run += 1;
        let keep = target_folder().join("scenarios").join(&scenario.name);
        let setup = Setup {
            tracer: tracer.clone(),
            nginx: find_nginx()?,
            keep: keep.clone(),
            arguments: args.arguments.clone(),
        };
        match xtask::scenario::run::run(&run, &scenario, &setup) {
            Ok(Outcome::AsExpected) => println!("ok       {}", scenario.name),
            Ok(Outcome::Skipped(why)) => println!("skipped  {}: {why}", scenario.name),
            Ok(Outcome::Wrong(problems)) => {
                wrong += 1;
                println!("wrong    {} ({})", scenario.name, keep.display());
                for problem in problems {
                    println!("         {problem}");
                }
            }
            Err(error) => {
                wrong += 1;
                println!("error    {}: {error:#}", scenario.name);
            }
        }
    }
    ensure!(n_run > 0, "no scenario is called so: see tests/scenarios");
    if wrong > 0 {
        bail!("{wrong} of {n_run} scenarios are wrong");
    }
    Ok(())
}

/// Builds the tracer and yields its path.
pub fn build_tracer(is_release: bool) -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(root())
        .args(["build", "--package", "tracer", "--bin", "tracer"]);
    if is_release {
        cargo.arg("--release");
    }
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "building the tracer: cargo ended with {status}");
    Ok(target_folder()
        .join(if is_release { "release" } else { "debug" })
        .join("tracer"))
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

/// Where cargo puts what it builds.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
