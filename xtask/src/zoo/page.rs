//! The scoreboard as a page.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::cell::{Cell, Verdict};
use crate::vm;

/// The kernels, in the order of the columns.
pub fn columns() -> Vec<&'static str> {
    std::iter::once(super::HOST).chain(vm::names()).collect()
}

/// The page.
pub fn page(cells: &[Cell]) -> String {
    let mut out = String::from(
        "<!-- Made by `cargo xtask zoo`; run it again rather than change it. -->\n# What is named right, kernel by kernel\n\n\
         Each row is a fault that was made for real (tests/scenarios), each column a kernel: `host` is the machine that \
         ran the tests; the others are Debian's own kernels in QEMU. **right**: every failed attempt \
         has the cause's name, and how surely. **unknown**: seen, but without a name, or with that of a consequence. \
         **unseen**: missing from the trace. **wrong**: another name. *not run*: the fault cannot be made there. Empty: \
         not measured yet. What was named, and what the kernel lacked: zoo.json.\n\n",
    );
    let mut rows: BTreeMap<(&str, &str, &str), BTreeMap<&str, &Cell>> = BTreeMap::new();
    for cell in cells {
        rows.entry((&cell.cause, &cell.scenario, &cell.placement))
            .or_default()
            .insert(&cell.column, cell);
    }
    let measured = measured(cells);
    let _ = writeln!(out, "| cause | scenario | placement | {} |", measured.join(" | "));
    let _ = writeln!(out, "|---|---|---|{}", "---|".repeat(measured.len()));
    for ((cause, scenario, placement), row) in &rows {
        let said: Vec<String> = measured
            .iter()
            .map(|column| said(row.get(column).copied()))
            .collect();
        let _ = writeln!(
            out,
            "| {cause} | {scenario} | {placement} | {} |",
            said.join(" | ")
        );
    }
    out.push('\n');
    for column in &measured {
        let of = |verdict: Verdict| {
            cells
                .iter()
                .filter(|cell| cell.column == *column && cell.verdict == verdict)
                .count()
        };
        let _ = writeln!(
            out,
            "- {column}: {} right, {} unknown, {} unseen, {} wrong, {} not run; {}",
            of(Verdict::Right),
            of(Verdict::Unknown),
            of(Verdict::Unseen),
            of(Verdict::Wrong),
            of(Verdict::NotRun),
            made(cells, column)
        );
    }
    out
}

/// The columns that have cells.
fn measured(cells: &[Cell]) -> Vec<&'static str> {
    columns()
        .into_iter()
        .filter(|column| cells.iter().any(|cell| cell.column == *column))
        .collect()
}

/// Which kernels a column's cells come from, and which commits.
fn made(cells: &[Cell], column: &str) -> String {
    let of = |what: fn(&Cell) -> &str| {
        let all: BTreeSet<&str> = cells
            .iter()
            .filter(|cell| cell.column == column)
            .map(what)
            .filter(|text| !text.is_empty() && *text != column)
            .collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let (kernels, commits) = (of(|cell| &cell.kernel), of(|cell| &cell.commit));
    let from = match commits.as_str() {
        "" => "before cells said from which commit".to_owned(),
        commits => format!("from {commits}"),
    };
    if kernels.is_empty() {
        from
    } else {
        format!("{kernels}; {from}")
    }
}

/// Which family each cause belongs to, in the order of the page of causes.
#[derive(Debug, Default)]
pub struct Families(Vec<(String, Vec<String>)>);

impl Families {
    /// Reads the page of causes.
    pub fn of(page: &str) -> Self {
        let mut families: Vec<(String, Vec<String>)> = Vec::new();
        for line in page.lines() {
            if let Some(name) = line.strip_prefix("## ") {
                families.push((name.to_owned(), Vec::new()));
            } else if let (Some(cause), Some((_, causes))) = (line.strip_prefix("### "), families.last_mut())
            {
                causes.push(cause.to_owned());
            }
        }
        families.push(("nothing fails".to_owned(), vec![super::cell::HEALTHY.to_owned()]));
        families.retain(|(_, causes)| !causes.is_empty());
        Self(families)
    }
}

/// A kernel's row as `tracer check` shows it; its other half is `Row` in tracer/src/measured.rs.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    column: &'a str,
    kernels: BTreeSet<&'a str>,
    /// Hooks that kernel lacks.
    without: BTreeSet<&'a str>,
    families: Vec<Family<'a>>,
    /// What is not named right, and as what.
    not_right: Vec<String>,
}

/// How a family of causes fares on one kernel.
#[derive(Debug, Serialize)]
struct Family<'a> {
    family: &'a str,
    right: usize,
    run: usize,
    wrong: usize,
}

/// The kernels' rows, the families in the same order in each.
pub fn rows<'a>(cells: &'a [Cell], families: &'a Families) -> Vec<Row<'a>> {
    measured(cells)
        .into_iter()
        .map(|column| {
            let run: Vec<&Cell> = cells
                .iter()
                .filter(|cell| cell.column == column && cell.verdict != Verdict::NotRun)
                .collect();
            Row {
                column,
                kernels: run.iter().map(|cell| cell.kernel.as_str()).collect(),
                without: run
                    .iter()
                    .flat_map(|cell| cell.hooks.iter().map(String::as_str))
                    .collect(),
                families: families
                    .0
                    .iter()
                    .map(|(family, causes)| {
                        let of_family = run.iter().filter(|cell| causes.contains(&cell.cause));
                        let n = |verdict| of_family.clone().filter(|cell| cell.verdict == verdict).count();
                        Family {
                            family,
                            right: n(Verdict::Right),
                            run: of_family.clone().count(),
                            wrong: n(Verdict::Wrong),
                        }
                    })
                    .collect(),
                not_right: run
                    .iter()
                    .filter(|cell| cell.verdict != Verdict::Right)
                    .map(|cell| format!("{}, {}: {}", cell.scenario, cell.placement, said(Some(cell))))
                    .collect(),
            }
        })
        .collect()
}

/// What is named right, family by family and kernel by kernel.
pub fn by_family(rows: &[Row<'_>]) -> String {
    let columns: Vec<&str> = rows.iter().map(|row| row.column).collect();
    let mut out = format!("| of faults made for real | {} |\n", columns.join(" | "));
    let _ = writeln!(out, "| --- |{}", " --- |".repeat(columns.len()));
    let n_families = rows.first().map_or(0, |row| row.families.len());
    for at in 0..n_families {
        let of_family: Vec<&Family<'_>> = rows.iter().map(|row| &row.families[at]).collect();
        if of_family.iter().all(|family| family.run == 0) {
            continue;
        }
        let counts: Vec<String> = of_family
            .iter()
            .map(|family| match (family.run, family.wrong) {
                (0, _) => String::new(),
                (n, 0) => format!("{} of {n}", family.right),
                (n, wrong) => format!("{} of {n}, **{wrong} wrong**", family.right),
            })
            .collect();
        let _ = writeln!(out, "| {} | {} |", of_family[0].family, counts.join(" | "));
    }
    out
}

const TABLE_BEGIN: &str = "<!-- made by `cargo xtask zoo` -->\n";
const TABLE_END: &str = "<!-- end -->\n";

/// A text with the table between its marks made anew.
pub fn with_table(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text
        .split_once(TABLE_BEGIN)
        .context("README.md has lost the mark before the table of kernels")?;
    let (_, after) = rest
        .split_once(TABLE_END)
        .context("README.md has lost the mark behind the table of kernels")?;
    Ok(format!("{before}{TABLE_BEGIN}{table}{TABLE_END}{after}"))
}

fn said(cell: Option<&Cell>) -> String {
    let Some(cell) = cell else {
        return String::new();
    };
    match (cell.verdict, &cell.confidence) {
        (Verdict::Right, Some(confidence)) => format!("right, {confidence}"),
        (Verdict::Right, None) => "right".to_owned(),
        (Verdict::Unknown, _) => format!("unknown ({})", cell.named.join(", ")),
        (Verdict::NotRun, _) => "*not run*".to_owned(),
        (Verdict::Unseen, _) => "**unseen**".to_owned(),
        (Verdict::Wrong, _) => format!("**wrong** ({})", cell.named.join(", ")),
    }
}
