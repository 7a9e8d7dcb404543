//! The project's own automation: one verb per file.

mod play;
mod setup;

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
    /// Run scenarios by name and keep what they leave behind.
    Scenario(play::Args),
}

fn main() -> Result<()> {
    xtask::lab::run_if_backend();
    match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Scenario(args) => play::run(&args),
    }
}
