//! The scoreboard as a page.

use std::{collections::BTreeMap, fmt::Write as _};

use super::cell::{Cell, Verdict};
use crate::vm;

/// The kernels, in the order of the columns.
pub fn columns() -> Vec<&'static str> {
    std::iter::once(super::HOST).chain(vm::names()).collect()
}

/// The page.
pub fn page(cells: &[Cell]) -> String {
    let columns = columns();
    let mut out = String::from(
        "<!-- Made by `cargo xtask zoo`; run it again rather than change it. -->\n# What is named right, kernel by kernel\n\n\
         Each row is a fault that was made for real (tests/scenarios), each column a kernel: `host` is the machine that \
         ran the tests; the others are Debian's own kernels in QEMU. **right**: every failed attempt \
         has the cause's name, and how surely. **unknown**: seen, but without a name, or with that of a consequence. \
         **unseen**: missing from the trace. **wrong**: another name. *not run*: the fault cannot be made there. Empty: \
         not measured yet. What was named, and what the kernel lacked: zoo.json.\n\n",
    );
    let mut rows: BTreeMap<(&str, &str), BTreeMap<&str, &Cell>> = BTreeMap::new();
    for cell in cells {
        rows.entry((&cell.cause, &cell.scenario))
            .or_default()
            .insert(&cell.column, cell);
    }
    let measured: Vec<&str> = columns
        .into_iter()
        .filter(|column| cells.iter().any(|cell| cell.column == *column))
        .collect();
    let _ = writeln!(out, "| cause | scenario | placement | {} |", measured.join(" | "));
    let _ = writeln!(out, "|---|---|---|{}", "---|".repeat(measured.len()));
    for ((cause, scenario), row) in &rows {
        let placement = row.values().next().map_or("", |cell| cell.placement.as_str());
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
            "- {column}: {} right, {} unknown, {} unseen, {} wrong, {} not run",
            of(Verdict::Right),
            of(Verdict::Unknown),
            of(Verdict::Unseen),
            of(Verdict::Wrong),
            of(Verdict::NotRun)
        );
    }
    out
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
