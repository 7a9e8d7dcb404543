//! What the scoreboard measured, kernel by kernel: made by `cargo xtask zoo`, shown by `tracer check`.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

/// The rows of docs/zoo.json, one a kernel.
const ROWS: &str = include_str!("measured.json");

/// How often the faults that were made for real on one kernel were named right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The kernel's series (`6.1`), or `host` for the machine of the tests.
    pub column: String,
    /// Its releases, as `uname -r` says.
    pub kernels: BTreeSet<String>,
    /// Hooks it lacks.
    pub without: BTreeSet<String>,
    /// Family by family of causes.
    pub families: Vec<Family>,
    /// What was not named right, and as what.
    pub not_right: Vec<String>,
}

/// One family of causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Its name.
    pub family: String,
    /// How many of its faults were named right.
    pub right: usize,
    /// How many were made.
    pub run: usize,
    /// How many got a wrong name.
    pub wrong: usize,
}

/// What a row says about this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// Why it is this row.
    pub by: By,
    /// Hooks that are here and were not there, or the other way round.
    pub differs: BTreeSet<String>,
    /// The row.
    pub row: Row,
}

/// What a host and a row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The kernel's series.
    Series,
    /// The hooks.
    Hooks,
}

/// The row that was measured on a kernel of this series, else on one that lacks the same hooks; `None`: neither.
///
/// `release` is what `uname -r` says, `without` the ids of hooks that do not attach here.
#[must_use]
pub fn row(release: &str, without: &BTreeSet<String>) -> Option<Measured> {
    let rows: Vec<Row> = serde_json::from_str(ROWS).unwrap_or_default();
    best(&rows, release, without)
}

fn best(rows: &[Row], release: &str, without: &BTreeSet<String>) -> Option<Measured> {
    let series = series(release);
    let of_series = rows.iter().find(|row| row.column == series);
    // The newest of them: kernels grow more alike.
    let of_hooks = rows.iter().rev().find(|row| row.without == *without);
    let (by, row) = match (of_series, of_hooks) {
        (Some(row), _) if row.without == *without => (By::Series, row),
        (_, Some(row)) => (By::Hooks, row),
        (row, None) => (By::Series, row?),
    };
    Some(Measured {
        by,
        differs: row.without.symmetric_difference(without).cloned().collect(),
        row: row.clone(),
    })
}

/// `6.1` of `6.1.0-56-amd64`.
fn series(release: &str) -> &str {
    let end = release
        .match_indices('.')
        .nth(1)
        .map_or(release.len(), |(at, _)| at);
    &release[..end]
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = &self.row;
        let kernels = row
            .kernels
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let place = match (self.by, row.column.as_str()) {
            (By::Series, _) => format!("on this kernel's series ({kernels})"),
            (By::Hooks, "host") => "on the machine of the tests, whose kernel shows the same".to_owned(),
            (By::Hooks, _) => format!("on a kernel that shows the same ({kernels})"),
        };
        let sum = |of: fn(&Family) -> usize| row.families.iter().map(of).sum::<usize>();
        let wrong = match sum(|family| family.wrong) {
            0 => "none wrong".to_owned(),
            n => format!("{n} wrong"),
        };
        writeln!(
            f,
            "measured {place}: {} of {} faults named right, {wrong}",
            sum(|family| family.right),
            sum(|family| family.run)
        )?;
        for family in row.families.iter().filter(|family| family.run > 0) {
            writeln!(f, "  {:<16} {} of {}", family.family, family.right, family.run)?;
        }
        for line in &row.not_right {
            writeln!(f, "  not right        {line}")?;
        }
        if !self.differs.is_empty() {
            let hooks = self
                .differs
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            writeln!(f, "  measured with other hooks than here: {hooks}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn rows() -> Vec<Row> {
        let row = |column: &str, without: &[&str]| Row {
            column: column.to_owned(),
            kernels: set(&[column]),
            without: set(without),
            families: Vec::new(),
            not_right: Vec::new(),
        };
        vec![
            row("host", &["accept"]),
            row("5.10", &["errors"]),
            row("6.1", &[]),
            row("7.2", &[]),
        ]
    }

    #[test]
    fn a_host_gets_the_row_of_its_kernel_or_of_one_that_shows_the_same() {
        let best = |release: &str, without: &[&str]| {
            best(&rows(), release, &set(without))
                .map(|found| (found.by, found.row.column, found.differs.len()))
        };
        assert_eq!(
            best("6.1.0-56-amd64", &[]),
            Some((By::Series, "6.1".to_owned(), 0))
        );
        assert_eq!(
            best("6.8.0-31-generic", &[]),
            Some((By::Hooks, "7.2".to_owned(), 0))
        );
        // A hardened 6.1 is like the host.
        assert_eq!(
            best("6.1.0-hardened", &["accept"]),
            Some((By::Hooks, "host".to_owned(), 0))
        );
        assert_eq!(
            best("5.10.0-46-amd64", &["drops"]),
            Some((By::Series, "5.10".to_owned(), 2))
        );
        assert_eq!(best("5.15.0", &["drops"]), None);
    }

    #[test]
    fn the_rows_can_be_read() {
        let rows: Vec<Row> = serde_json::from_str(ROWS).unwrap();
        assert!(rows.iter().any(|row| row.column == "host"));
        assert!(
            rows.iter()
                .all(|row| row.families.iter().any(|family| family.run > 0))
        );
    }
}
