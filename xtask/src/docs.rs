//! `cargo xtask docs`: writes the pages of the manual that are made from the code, and the blocks of those that are made
//! from recordings.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use xtask::hunts::Hunts;

use crate::play::{build_tracer, root, target_folder};

/// Runs the verb.
pub fn run() -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["run", "--quiet", "--package", "tracer", "--example", "docs", "--"])
        .arg(root())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "writing the pages ended with {status}");
    let hunts = Hunts {
        root: root(),
        tracer: build_tracer(false)?,
        scratch: target_folder().join("hunts"),
    };
    for page in hunts.pages()? {
        let name = page.path.strip_prefix(root())?.display();
        if page.fresh == page.text {
            println!("fresh    {name}");
            continue;
        }
        fs::write(&page.path, &page.fresh).with_context(|| format!("writing {name}"))?;
        println!("written  {name}");
    }
    crate::zoo::write_pages()
}
