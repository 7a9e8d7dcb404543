//! Every recording, diagnosed again without root: the same verdicts as when it happened.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tracer::{event::Stamped, source::recording::RecordingReader};
use xtask::{
    scenario::{Scenario, judge, stage::Names},
    traced::{RECORDING, annotate, replay},
};

use crate::ground::{kept, plain, root, tracer};

/// One test a recording.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![plain(
        "replay/every_scenario_is_recorded",
        every_scenario_is_recorded,
    )];
    trials.extend(recorded().into_iter().map(|name| {
        plain(&format!("replay/{name}"), {
            let name = name.clone();
            move || is_diagnosed_again(&name)
        })
    }));
    trials
}

/// The recordings' names.
pub fn recorded() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root().join("tests/recordings"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// A recording's inputs.
pub fn inputs(name: &str) -> Result<Vec<Stamped>> {
    let path = root().join("tests/recordings").join(name).join(RECORDING);
    let mut reader = RecordingReader::open(&path)?;
    let mut inputs = Vec::new();
    while let Some(stamped) = reader.next_input()? {
        inputs.push(stamped);
    }
    Ok(inputs)
}

fn is_diagnosed_again(name: &str) -> Result<()> {
    let folder = root().join("tests/recordings").join(name);
    let scenario = Scenario::read(&root().join("tests/scenarios").join(format!("{name}.toml")))?;
    let names: Names = serde_json::from_str(&fs::read_to_string(folder.join("names.json"))?)?;
    let error_log = fs::read_to_string(folder.join("error.log")).context("reading its error.log")?;
    let made = kept(&format!("replay-{name}"));
    fs::create_dir_all(&made)?;
    let trace = made.join("trace.jsonl");
    let records = replay(&tracer(), &folder.join(RECORDING), &trace)?;
    let mut problems = judge::judge_replay(&scenario, &|text| names.fill(text), &records, &error_log)?;
    if !error_log.is_empty() {
        let annotation = annotate(&tracer(), &folder.join("error.log"), &trace, &[])?;
        problems.extend(judge::judge_annotation(&records, &error_log, &annotation));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn every_scenario_is_recorded() -> Result<()> {
    let recorded = recorded();
    let lacking: Vec<String> = Scenario::read_all(&root().join("tests/scenarios"))?
        .into_iter()
        .map(|scenario| scenario.name)
        .filter(|name| !recorded.contains(name))
        .collect();
    ensure!(
        lacking.is_empty(),
        "run `cargo xtask record` for {}",
        lacking.join(", ")
    );
    Ok(())
}
