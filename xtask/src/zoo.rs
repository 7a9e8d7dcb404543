//! `cargo xtask zoo`: every fault on every kernel, and what the tracer names there: docs/zoo.json, and docs/zoo.md made
//! from it. Cells that were not run again stay as they are.

mod cell;
mod page;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use xtask::{
    in_parallel,
    scenario::{Scenario, report::Report},
    traced,
};

use self::cell::{Cell, Explained, Verdict, Where};
use crate::{
    play::{self, Part, root, target_folder},
    vm::{self, Boot},
};

/// This machine's own kernel, as a column's name.
const HOST: &str = "host";

/// In how many guests a kernel's whole column is run: so that none is left to run alone at the end.
const PARTS: usize = 2;

/// Options of `cargo xtask zoo`.
#[derive(clap::Args)]
pub struct Args {
    /// Scenarios' names, or beginnings of them; all when none is given.
    names: Vec<String>,
    /// On which kernel: host, 5.10, 6.1, 6.12, 6.18 or 7.2; may be repeated; all when not given.
    #[arg(long = "kernel")]
    kernels: Vec<String>,
    /// Scenarios at the same time on this machine; a guest has one processor and runs one after the other.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Guests at the same time; each takes one processor.
    #[arg(long, default_value_t = 2)]
    guests: usize,
    /// Write nothing. Either way it fails when a cell is wrong or worse than the committed one, or was not run.
    #[arg(long)]
    check: bool,
}

impl Args {
    /// To hold these scenarios on that kernel against the committed scoreboard.
    pub fn check(kernel: &str, names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            kernels: vec![kernel.to_owned()],
            jobs: 1,
            guests: 1,
            check: true,
        }
    }
}

/// The scoreboard.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Board {
    cells: Vec<Cell>,
}

impl Board {
    fn path() -> PathBuf {
        root().join("docs/zoo.json")
    }

    fn read() -> Result<Self> {
        let path = Self::path();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Puts new cells in the place of old ones, and drops those whose scenario, or its placement, is gone.
    fn take(&mut self, new: Vec<Cell>, scenarios: &[Scenario]) {
        let is_known = |old: &Cell| {
            scenarios.iter().any(|scenario| {
                (scenario.file(), scenario.placement.name()) == (old.scenario.as_str(), &old.placement)
            })
        };
        self.cells
            .retain(|old| is_known(old) && !new.iter().any(|new| new.is_in_place_of(old)));
        self.cells.extend(new);
        self.cells.sort_by(|a, b| {
            (&a.scenario, &a.placement, a.order()).cmp(&(&b.scenario, &b.placement, b.order()))
        });
    }

    fn write(&self) -> Result<()> {
        let path = Self::path();
        let mut text = String::from("{\"cells\":[\n");
        for (at, cell) in self.cells.iter().enumerate() {
            text.push_str(if at == 0 { "" } else { ",\n" });
            text.push_str(&serde_json::to_string(cell)?);
        }
        text.push_str("\n]}\n");
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        self.write_pages()
    }

    /// Writes what is made from it.
    fn write_pages(&self) -> Result<()> {
        for (path, fresh) in self.pages()? {
            fs::write(&path, fresh).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// The files that are made from it, or hold a part that is.
    fn pages(&self) -> Result<Vec<(PathBuf, String)>> {
        let families = page::Families::of(&causes_page()?);
        let rows = page::rows(&self.cells, &families);
        let readme = root().join("README.md");
        let text = fs::read_to_string(&readme).with_context(|| format!("reading {}", readme.display()))?;
        Ok(vec![
            (root().join("docs/zoo.md"), page::page(&self.cells)),
            (readme, page::with_table(&text, &page::by_family(&rows))?),
            (
                root().join("tracer/src/measured.json"),
                serde_json::to_string_pretty(&rows)? + "\n",
            ),
        ])
    }

    /// What is wrong with new cells: wrong, or worse than they were.
    fn problems(&self, new: &[Cell]) -> Vec<String> {
        new.iter()
            .filter_map(
                |cell| match self.cells.iter().find(|old| cell.is_in_place_of(old)) {
                    Some(old) if cell.is_worse_than(old) => Some(format!(
                        "{cell}: {}, where it was {}",
                        cell.in_short(),
                        old.in_short()
                    )),
                    None if cell.verdict == Verdict::Wrong => Some(cell.to_string()),
                    _ => None,
                },
            )
            .collect()
    }
}

/// Writes the pages that are made from the committed scoreboard anew.
pub fn write_pages() -> Result<()> {
    Board::read()?.write_pages()
}

fn causes_page() -> Result<String> {
    let page = root().join("docs/causes.md");
    fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))
}

/// Holds what the scenarios of this machine left in a folder against the committed scoreboard.
pub fn check_host(keep: &Path) -> Result<()> {
    let wanted = play::chosen(&[], false)?;
    let ran = Ran {
        kernel: HOST.to_owned(),
        commit: commit(),
        keep: keep.to_owned(),
        ended: Ok(()),
    };
    let new = cells(HOST, &ran, &wanted.iter().collect::<Vec<_>>())?;
    let mut problems = Board::read()?.problems(&new);
    problems.extend(missing(HOST, &wanted, &new));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    println!("{HOST}: {} cells as the scoreboard says, or better", new.len());
    Ok(())
}

/// A line for every scenario without a cell.
fn missing(column: &str, wanted: &[Scenario], new: &[Cell]) -> Vec<String> {
    wanted
        .iter()
        .filter(|scenario| !new.iter().any(|cell| cell.is_of(scenario)))
        .map(|scenario| format!("{column}: {} was not run", scenario.name))
        .collect()
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let kernels: Vec<&str> = if args.kernels.is_empty() {
        std::iter::once(HOST).chain(vm::names()).collect()
    } else {
        args.kernels.iter().map(String::as_str).collect()
    };
    // This machine's own scenarios keep all its processors busy.
    let (here, guests): (Vec<&str>, Vec<&str>) = kernels.into_iter().partition(|column| *column == HOST);
    let writing = Mutex::new(());
    let run = |(column, part)| run_column(args, column, part, &writing);
    let mut ran = in_parallel(here.into_iter().map(|column| (column, None)).collect(), 1, run);
    let is_whole = args.names.is_empty() && args.guests > 1;
    let parts: Vec<Option<Part>> = if is_whole {
        Part::all(PARTS).map(Some).collect()
    } else {
        vec![None]
    };
    let guests = parts
        .iter()
        .flat_map(|part| guests.iter().map(move |column| (*column, *part)))
        .collect();
    ran.extend(in_parallel(guests, args.guests, run));
    let problems: Vec<String> = ran.into_iter().collect::<Result<Vec<_>>>()?.concat();
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Runs scenarios, or a part of them, on one kernel and puts their cells into the scoreboard; what is wrong with them.
fn run_column(args: &Args, column: &str, part: Option<Part>, writing: &Mutex<()>) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let wanted = part_of(part, play::chosen(&args.names, column != HOST)?);
    ensure!(
        !wanted.is_empty(),
        "no scenario is called so: see tests/scenarios"
    );
    let mut new = Vec::new();
    for (boot, of_boot) in boots(column, &wanted) {
        let ran = match boot {
            None => on_host(args),
            Some(boot) => on_guest(args, column, part, boot, &of_boot),
        };
        let ran = ran.and_then(|ran| {
            new.extend(cells(column, &ran, &of_boot)?);
            // What it did not get to is not passed over.
            ran.ended
        });
        problems.extend(ran.err().map(|error| format!("{column}: {error:#}")));
    }
    if new.is_empty() {
        return Ok(problems);
    }
    problems.extend(missing(column, &wanted, &new));
    // Read late: another run may have added its column meanwhile.
    let _writing = writing.lock();
    let mut board = Board::read()?;
    for cell in &new {
        println!("{cell}");
    }
    problems.extend(board.problems(&new));
    let n_wrong = new.iter().filter(|cell| cell.verdict == Verdict::Wrong).count();
    println!("{column}: {} cells, {n_wrong} wrong", new.len());
    if !args.check {
        board.take(new, &play::chosen(&[], false)?);
        board.write()?;
    }
    Ok(problems)
}

/// A part of the scenarios; those that need a guest of their own are all in the first.
fn part_of(part: Option<Part>, scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let is_usual = |scenario: &Scenario| Boot::of(scenario) == Boot::Usual;
    let others: Vec<Scenario> = scenarios
        .iter()
        .filter(|scenario| !is_usual(scenario))
        .cloned()
        .collect();
    let mut of_part = Part::of_all(part, scenarios);
    of_part.retain(is_usual);
    if part.is_none_or(|part| part.number == 1) {
        of_part.extend(others);
    }
    of_part
}

/// How a column's kernel is booted, `None` for this machine's own, and the scenarios for each way.
fn boots<'a>(column: &str, wanted: &'a [Scenario]) -> Vec<(Option<Boot>, Vec<&'a Scenario>)> {
    if column == HOST {
        return vec![(None, wanted.iter().collect())];
    }
    Boot::ALL
        .into_iter()
        .map(|boot| {
            let of_boot = wanted.iter().filter(|scenario| Boot::of(scenario) == boot);
            (Some(boot), of_boot.collect::<Vec<_>>())
        })
        .filter(|(_, of_boot)| !of_boot.is_empty())
        .collect()
}

/// A column's run.
struct Ran {
    /// Its kernel, as cells name it.
    kernel: String,
    /// The commit that was checked out when it began.
    commit: String,
    /// Where the reports and traces are.
    keep: PathBuf,
    /// Whether the guest came to its end.
    ended: Result<()>,
}

fn on_host(args: &Args) -> Result<Ran> {
    let commit = commit();
    let keep = target_folder().join("zoo").join(HOST);
    if keep.exists() {
        fs::remove_dir_all(&keep).with_context(|| format!("emptying {}", keep.display()))?;
    }
    let went = play::run(&play::Args::for_board(
        args.names.clone(),
        keep.clone(),
        args.jobs,
    )?);
    // That some went wrong the cells say better; without a report nothing ran.
    if !keep.exists() {
        went?;
    }
    Ok(Ran {
        kernel: HOST.to_owned(),
        commit,
        keep,
        ended: Ok(()),
    })
}

fn on_guest(args: &Args, column: &str, part: Option<Part>, boot: Boot, of_boot: &[&Scenario]) -> Result<Ran> {
    let commit = commit();
    let named = || of_boot.iter().map(|scenario| scenario.name.clone()).collect();
    let guest = match boot {
        Boot::Usual => vm::scenarios(column, boot, args.names.clone(), part)?,
        Boot::Selinux => vm::scenarios(column, boot, named(), None)?,
    };
    if !guest.results.join("scenarios").exists() {
        guest.ended?;
        bail!("no scenario was run");
    }
    Ok(Ran {
        kernel: guest.release,
        commit,
        keep: guest.results.join("scenarios"),
        ended: guest.ended,
    })
}

/// A cell for every scenario that a report speaks of.
fn cells(column: &str, ran: &Ran, scenarios: &[&Scenario]) -> Result<Vec<Cell>> {
    let reports = Report::read_all(&ran.keep)?;
    let explained = Explained::of(&causes_page()?);
    let at = Where {
        column,
        kernel: &ran.kernel,
        commit: &ran.commit,
    };
    let mut cells = Vec::new();
    for scenario in scenarios {
        let Some(report) = reports.iter().find(|report| report.scenario == scenario.name) else {
            continue;
        };
        let trace = ran.keep.join(&scenario.name).join("trace.jsonl");
        let records = if trace.exists() {
            traced::records(&trace)?
        } else {
            Vec::new()
        };
        cells.push(cell::judge(at, scenario, report, &records, &explained));
    }
    Ok(cells)
}

/// The commit that is checked out; empty where there is none.
fn commit() -> String {
    let output = Command::new("git")
        .current_dir(root())
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_made_from_the_scoreboard() {
        for (path, fresh) in Board::read().unwrap().pages().unwrap() {
            let there = fs::read_to_string(&path).unwrap();
            assert!(there == fresh, "{} is not docs/zoo.json's", path.display());
        }
    }
}
