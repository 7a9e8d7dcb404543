//! The pages of docs/hunts: their blocks are what the recordings give, and none is forgotten in the index.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use xtask::{hunts::Hunts, scenario::Scenario};

use crate::ground::{kept, plain, root, tracer};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        plain(
            "hunts/the_committed_pages_are_fresh",
            the_committed_pages_are_fresh,
        ),
        plain("hunts/every_page_is_in_the_index", every_page_is_in_the_index),
        plain("hunts/every_hunt_is_on_a_page", every_hunt_is_on_a_page),
    ]
}

/// Tests run side by side, and each replays into a folder of its own.
fn hunts(test: &str) -> Hunts {
    Hunts {
        root: root(),
        tracer: tracer(),
        scratch: kept(&format!("hunts-{test}")),
    }
}

fn the_committed_pages_are_fresh() -> Result<()> {
    for page in hunts("fresh").pages()? {
        ensure!(
            page.fresh == page.text,
            "{} is not what the recordings say: run `cargo xtask docs` and commit it",
            page.path.display()
        );
    }
    Ok(())
}

fn every_page_is_in_the_index() -> Result<()> {
    let index = fs::read_to_string(root().join("docs/hunts/README.md")).context("reading the index")?;
    for page in hunts("index").pages()? {
        let name = page
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        ensure!(
            name == "README.md" || index.contains(&format!("({name})")),
            "docs/hunts/README.md does not lead to {name}"
        );
    }
    Ok(())
}

fn every_hunt_is_on_a_page() -> Result<()> {
    let shown: Vec<String> = hunts("shown")
        .pages()?
        .into_iter()
        .flat_map(|page| page.scenarios)
        .collect();
    for scenario in Scenario::read_all(&root().join("tests/scenarios"))? {
        ensure!(
            !scenario.name.starts_with("hunt-") || shown.contains(&scenario.name),
            "no page in docs/hunts shows {}",
            scenario.name
        );
    }
    Ok(())
}
