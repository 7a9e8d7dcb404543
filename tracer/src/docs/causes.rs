//! The page of causes.

use std::fmt::Write;

use super::GENERATED;
use crate::{
    commands::explain::families,
    engine::diagnose::{Cause, causes},
};

/// The page.
#[must_use]
pub fn page() -> String {
    let mut out = format!("{GENERATED}# Causes\n\n");
    out.push_str(
        "Why an attempt fails. The headline of a failure is the deepest cause that stands at `likely` or better; what \
         it explains stays beside it as `also`. `confirmed`: the kernel told us. `likely`: the pattern fits and the \
         look-alikes were ruled out. `possible`: nothing contradicts it. When none stands the cause is `unknown`, with \
         all evidence printed. `tracer explain CAUSE` prints the same on the terminal.\n",
    );
    for (family, causes) in families() {
        let _ = write!(
            out,
            "\n## {}\n\n| cause | what happened |\n|---|---|\n",
            family.replace('-', " ")
        );
        for cause in &causes {
            let _ = writeln!(out, "| [{0}](#{0}) | {1} |", cause.id, cell(cause.title));
        }
        for cause in &causes {
            section(&mut out, cause);
        }
    }
    out
}

fn section(out: &mut String, cause: &Cause) {
    let _ = write!(out, "\n### {}\n\n{}.\n\n", cause.id, capital(cause.title));
    let _ = writeln!(out, "- **nginx logs**: {}", cause.nginx_logs);
    let _ = writeln!(out, "- **Recognised by**: {}", cause.recognised);
    if !cause.needs.is_empty() {
        let _ = writeln!(out, "- **Needs hooks**: {}", cause.needs.join(", "));
    }
    if !cause.explains.is_empty() {
        let _ = writeln!(out, "- **Explains**: {}", links(cause.explains));
    }
    if !cause.look_alikes.is_empty() {
        let _ = writeln!(out, "- **Looks alike**: {}", links(cause.look_alikes));
    }
    let _ = writeln!(out, "- **What to do**: {}", cause.remedy);
}

fn links(ids: &[&str]) -> String {
    ids.iter()
        .map(|id| match causes::find(id) {
            Some(_) => format!("[{id}](#{id})"),
            None => (*id).to_owned(),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// A sentence as it begins a paragraph.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
