//! `cargo xtask demo`: a throw-away nginx whose upstreams fail for ten different reasons, and the tracer beside it.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::demonstration::show::Show;

use crate::{
    play::{build_tracer, root},
    setup,
};

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Use a debug build of the tracer, which is there sooner.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the demonstration needs root (it makes network namespaces and loads BPF): run `sudo -E cargo xtask demo`"
    );
    setup::run(&setup::Args::default())?;
    Show {
        program: build_tracer(!args.debug)?,
        folder: root().join("out/demo"),
        traffic: Duration::from_secs(12),
    }
    .run()
}
