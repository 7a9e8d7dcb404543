//! The project's own automation: one verb per file.

mod apt;
mod bench;
mod demo;
mod docs;
mod play;
mod record;
mod setup;
mod test;
mod vm;
mod zoo;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's own automation.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need and this machine lacks.
    Setup(setup::Args),
    /// Check everything: format, lints, unit tests, scenarios, replay, invariants.
    Test(test::Args),
    /// Write the pages of the manual that are made from the code.
    Docs,
    /// Show the tracer at work: an nginx whose upstreams fail for ten different reasons.
    Demo(demo::Args),
    /// Run scenarios by name and keep what they leave behind.
    Scenario(play::Args),
    /// Make tests/recordings anew from the scenarios.
    Record(record::Args),
    /// Boot another kernel in QEMU and run scenarios, a command or a shell there.
    Vm(vm::Args),
    /// Run scenarios on this and other kernels, and write docs/zoo.json and docs/zoo.md.
    Zoo(zoo::Args),
    /// Measure what the tracer costs, and write docs/bench.md.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    xtask::lab::run_if_backend();
    bench::run_if_crowd();
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Scenario(args) => play::run(&args),
        Verb::Record(args) => record::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Docs => docs::run(),
        Verb::Vm(args) => vm::run(&args),
        Verb::Zoo(args) => zoo::run(&args),
        Verb::Bench(args) => bench::run(&args),
    }
}
