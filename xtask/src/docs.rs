//! `cargo xtask docs`: writes the pages of the manual that are made from the code.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::play::root;

/// Runs the verb.
pub fn run() -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["run", "--quiet", "--package", "tracer", "--example", "docs", "--"])
        .arg(root())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "writing the pages ended with {status}");
    Ok(())
}
