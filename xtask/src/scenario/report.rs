//! How scenarios went, for programs: a line of JSON for each, in the folder where their files are kept.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::run::Outcome;

/// The file's name.
const FILE: &str = "report.jsonl";

/// How one scenario went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub scenario: String,
    /// How it went.
    pub went: Went,
    /// What is wrong, or why it was skipped.
    pub why: Vec<String>,
}

/// How a scenario went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Went {
    /// As it says.
    AsExpected,
    /// It cannot happen there.
    Skipped,
    /// Not as it says.
    Wrong,
    /// It was not played to its end.
    Error,
}

impl Report {
    /// The report of one run.
    #[must_use]
    pub fn of(scenario: &str, outcome: &Result<Outcome>) -> Self {
        let (went, why) = match outcome {
            Ok(Outcome::AsExpected) => (Went::AsExpected, Vec::new()),
            Ok(Outcome::Skipped(why)) => (Went::Skipped, vec![why.clone()]),
            Ok(Outcome::Wrong(problems)) => (Went::Wrong, problems.clone()),
            Err(error) => (Went::Error, vec![format!("{error:#}")]),
        };
        Self {
            scenario: scenario.to_owned(),
            went,
            why,
        }
    }

    /// Adds it to the folder's reports.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let line = serde_json::to_string(self)? + "\n";
        file.write_all(line.as_bytes())
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The reports in a folder, the last one of each scenario.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut reports: Vec<Self> = Vec::new();
        for line in text.lines() {
            let report: Self =
                serde_json::from_str(line).with_context(|| format!("in {}: {line}", path.display()))?;
            reports.retain(|before| before.scenario != report.scenario);
            reports.push(report);
        }
        Ok(reports)
    }
}
