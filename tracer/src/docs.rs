//! The pages of the manual that are made from the code itself.
//!
//! A test checks that the committed pages are what this makes.

pub mod causes;
pub mod command_line;
pub mod trace_format;

use crate::sink::schema::json_schema;

/// A file of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it lies, from the root of the repository.
    pub path: &'static str,
    /// What it holds.
    pub text: String,
}

/// Every generated page.
#[must_use]
pub fn pages() -> Vec<Page> {
    let schema = format!("{:#}\n", json_schema().as_value());
    vec![
        Page {
            path: "docs/causes.md",
            text: causes::page(),
        },
        Page {
            path: "docs/command-line.md",
            text: command_line::page(),
        },
        Page {
            path: "docs/trace-format.md",
            text: trace_format::page(),
        },
        Page {
            path: "docs/trace.schema.json",
            text: schema,
        },
    ]
}

/// The first line of every generated page of text.
const GENERATED: &str = "<!-- Made from the code by `cargo xtask docs`; change it there. -->\n\n";

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_committed_pages_are_fresh() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for page in pages() {
            let committed = fs::read_to_string(root.join(page.path)).unwrap_or_default();
            assert!(
                committed == page.text,
                "{} is not what the code says: run `cargo xtask docs` and commit it",
                page.path
            );
        }
    }

    #[test]
    fn links_between_sections_lead_somewhere() {
        for page in pages().iter().filter(|page| page.path.ends_with(".md")) {
            let anchors: Vec<_> = page
                .text
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(|line| {
                    line.trim_start_matches('#')
                        .trim()
                        .to_lowercase()
                        .replace('`', "")
                        .replace(' ', "-")
                })
                .collect();
            for link in page.text.split("](#").skip(1) {
                let anchor = link.split(')').next().unwrap();
                assert!(
                    anchors.iter().any(|known| known == anchor),
                    "{}: #{anchor}",
                    page.path
                );
            }
        }
    }
}
