//! The pages of docs/hunts: what nginx logged and what the tracer said in them comes from the recordings, never by hand.
//!
//! A fenced block below `<!-- nginx: SCENARIO -->`, `<!-- tracer: SCENARIO -->` or `<!-- findings: SCENARIO -->` is made from
//! that scenario's recording; `cargo xtask docs` writes it, and a test of the suite holds the committed pages to it.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::traced::RECORDING;

/// What stands for the laboratory's folder, whose own name would be another each time.
const FOLDER: &str = "/run/hunt";

/// Makes pages from recordings.
#[derive(Clone, Debug)]
pub struct Hunts {
    /// The repository.
    pub root: PathBuf,
    /// The tracer that replays.
    pub tracer: PathBuf,
    /// Where what is replayed may lie meanwhile.
    pub scratch: PathBuf,
}

/// A page as it is and as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// What it says with all its blocks made anew.
    pub fresh: String,
    /// The scenarios of its blocks.
    pub scenarios: Vec<String>,
}

impl Hunts {
    /// Every page.
    pub fn pages(&self) -> Result<Vec<Page>> {
        let folder = self.root.join("docs/hunts");
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
        paths.sort_unstable();
        paths.into_iter().map(|path| self.page(path)).collect()
    }

    fn page(&self, path: PathBuf) -> Result<Page> {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut fresh = String::new();
        let mut scenarios = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            fresh.push_str(line);
            fresh.push('\n');
            let Some((what, scenario)) = marker(line) else {
                continue;
            };
            let made = match what {
                Block::Nginx => self.nginx(scenario),
                Block::Tracer => self.tracer(scenario),
                Block::Findings => self.findings(scenario),
            };
            let made = made.with_context(|| format!("making a block of {}", path.display()))?;
            let is_fence = |line: Option<&str>| line.is_some_and(|line| line.starts_with("```"));
            ensure!(
                is_fence(lines.next()) && lines.any(|line| is_fence(Some(line))),
                "{}: `{line}` wants a fenced block below it",
                path.display()
            );
            let _ = writeln!(fresh, "```\n{made}\n```");
            scenarios.push(scenario.to_owned());
        }
        Ok(Page {
            path,
            text,
            fresh,
            scenarios,
        })
    }

    /// The lines that nginx logged about its upstreams, equal ones once.
    fn nginx(&self, scenario: &str) -> Result<String> {
        let log = self.read(scenario, "error.log")?;
        let log = log.replace(&self.folder_of(scenario)?, FOLDER);
        let mut told = HashSet::new();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("upstream: \""))
            .filter(|line| told.insert(says(line)))
            .collect();
        Ok(lines.join("\n"))
    }

    /// What the tracer says on a terminal, without what comes before and after every hunt.
    fn tracer(&self, scenario: &str) -> Result<String> {
        let said = self.said(scenario)?;
        let blocks: Vec<&str> = said
            .split("\n\n")
            .skip(1)
            .take_while(|block| !is_closing(block))
            .collect();
        ensure!(
            !blocks.is_empty(),
            "the tracer says nothing of {scenario}: {said}"
        );
        Ok(blocks.join("\n\n").trim_end().to_owned())
    }

    /// The patterns that the tracer finds in the whole.
    fn findings(&self, scenario: &str) -> Result<String> {
        let said = self.said(scenario)?;
        let blocks: Vec<&str> = said
            .split("\n\n")
            .skip_while(|block| !is_closing(block))
            .filter(|block| is_finding(block))
            .collect();
        ensure!(!blocks.is_empty(), "nothing is found in {scenario}: {said}");
        Ok(blocks.join("\n\n").trim_end().to_owned())
    }

    /// What a replay prints.
    fn said(&self, scenario: &str) -> Result<String> {
        let packed = self.folder(scenario).join(RECORDING);
        let packed = fs::read(&packed).with_context(|| format!("reading {}", packed.display()))?;
        let recording = zstd::decode_all(&*packed).context("unpacking a recording")?;
        let recording = String::from_utf8(recording).context("reading a recording")?;
        fs::create_dir_all(&self.scratch).with_context(|| format!("making {}", self.scratch.display()))?;
        let path = self.scratch.join(format!("{scenario}.jsonl"));
        fs::write(&path, recording.replace(&self.folder_of(scenario)?, FOLDER))
            .with_context(|| format!("writing {}", path.display()))?;
        let output = Command::new(&self.tracer)
            .arg("replay")
            .arg(&path)
            .env("TZ", "UTC")
            .output()
            .with_context(|| format!("starting {}", self.tracer.display()))?;
        ensure!(
            output.status.success(),
            "replaying {scenario} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).context("reading what the tracer said")
    }

    fn folder(&self, scenario: &str) -> PathBuf {
        self.root.join("tests/recordings").join(scenario)
    }

    fn read(&self, scenario: &str, file: &str) -> Result<String> {
        let path = self.folder(scenario).join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// The laboratory's folder when the scenario was recorded.
    fn folder_of(&self, scenario: &str) -> Result<String> {
        let names: Value = serde_json::from_str(&self.read(scenario, "names.json")?)?;
        let folder = names["dir"].as_str().context("names.json without a folder")?;
        ensure!(Path::new(folder).is_absolute(), "`{folder}` is no folder");
        Ok(folder.to_owned())
    }
}

/// What a block holds.
enum Block {
    Nginx,
    Tracer,
    Findings,
}

fn marker(line: &str) -> Option<(Block, &str)> {
    let inner = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    match inner.split_once(": ")? {
        ("nginx", scenario) => Some((Block::Nginx, scenario)),
        ("tracer", scenario) => Some((Block::Tracer, scenario)),
        ("findings", scenario) => Some((Block::Findings, scenario)),
        _ => None,
    }
}

/// A line of nginx's log without what differs from request to request.
fn says(line: &str) -> &str {
    let message = line.split_once(": *").map_or(line, |(_, message)| message);
    let message = message.split_once(' ').map_or(message, |(_, message)| message);
    message.split(", client: ").next().unwrap_or(message)
}

/// `277 attempts in 1.64 s, 1 failed`: the summary begins.
fn is_closing(block: &str) -> bool {
    let mut words = block.trim_start().split(' ');
    let is_number = words
        .next()
        .is_some_and(|word| word.chars().all(|c| c.is_ascii_digit() || c == ','));
    is_number && words.next().is_some_and(|word| word.starts_with("attempt"))
}

/// A finding: its id alone in a line, what it claims in those below.
fn is_finding(block: &str) -> bool {
    let mut lines = block.lines();
    let id = lines.next().and_then(|line| line.strip_prefix("  "));
    let is_id =
        id.is_some_and(|id| id.contains('-') && id.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
    is_id && lines.next().is_some_and(|line| line.starts_with("    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lines_of_nginx_are_known_by_what_they_say() {
        let line = "2026/11/22 04:09:49 [error] 330#330: *51 connect() failed (111: Connection refused) while connecting \
                    to upstream, client: 127.0.0.1, server: , upstream: \"http://127.0.0.1:1/\"";
        assert_eq!(
            says(line),
            "connect() failed (111: Connection refused) while connecting to upstream"
        );
    }

    #[test]
    fn the_summary_is_where_the_blocks_end() {
        assert!(is_closing("1,606 attempts in 3.38 s, 4 failed"));
        assert!(!is_closing(
            "13:53:12.887  gunicorn (pid 16081) was ended by SIGKILL"
        ));
    }

    #[test]
    fn a_finding_is_told_from_the_table() {
        assert!(is_finding(
            "  one-peer-fails\n    every failure of app is at 127.0.0.1:1 (12)"
        ));
        assert!(!is_finding(
            "  app   12 attempts, 1 failed\n           1  no-listener"
        ));
        assert!(!is_finding("  lost      nothing"));
    }

    #[test]
    fn only_these_remarks_ask_for_a_block() {
        assert!(marker("<!-- tracer: hunt-node-crash -->").is_some());
        assert!(marker("<!-- a remark: of another kind -->").is_none());
    }
}
