//! `cargo xtask zoo`: every fault on every kernel, and what the tracer names there: docs/zoo.json, and docs/zoo.md made
//! from it. Cells that were not run again stay as they are.

mod cell;
mod page;

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use xtask::{
    scenario::{Scenario, report::Report},
    traced,
};

use self::cell::{Cell, Explained, Verdict, Where};
use crate::{
    play::{self, root, target_folder},
    vm::{self, Boot},
};

/// This machine's own kernel, as a column's name.
const HOST: &str = "host";

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
    /// Write nothing. Either way it fails when a cell is wrong or worse than the committed one, or was not run.
    #[arg(long)]
    check: bool,
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

    /// Puts new cells in the place of old ones, and drops those whose scenario is gone.
    fn take(&mut self, new: Vec<Cell>, scenarios: &BTreeSet<&str>) {
        self.cells.retain(|old| {
            scenarios.contains(old.scenario.as_str()) && !new.iter().any(|new| new.is_in_place_of(old))
        });
        self.cells.extend(new);
        self.cells
            .sort_by(|a, b| (&a.scenario, a.order()).cmp(&(&b.scenario, b.order())));
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
        let page = root().join("docs/zoo.md");
        fs::write(&page, page::page(&self.cells)).with_context(|| format!("writing {}", page.display()))
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let all = Scenario::read_all(&root().join("tests/scenarios"))?;
    let is_wanted = |scenario: &&Scenario| {
        args.names.is_empty() || args.names.iter().any(|name| scenario.name.starts_with(name))
    };
    let wanted: Vec<&Scenario> = all.iter().filter(is_wanted).collect();
    ensure!(
        !wanted.is_empty(),
        "no scenario is called so: see tests/scenarios"
    );
    let kernels: Vec<&str> = if args.kernels.is_empty() {
        std::iter::once(HOST).chain(vm::names()).collect()
    } else {
        args.kernels.iter().map(String::as_str).collect()
    };
    let known: BTreeSet<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
    let mut problems = Vec::new();
    for column in kernels {
        let mut new = Vec::new();
        for (boot, of_boot) in boots(column, &wanted) {
            let ran = match boot {
                None => on_host(args),
                Some(boot) => on_guest(args, column, boot, &of_boot),
            };
            let ran = ran.and_then(|ran| {
                new.extend(cells(column, &ran, &of_boot)?);
                // What it did not get to is not passed over.
                ran.ended
            });
            problems.extend(ran.err().map(|error| format!("{column}: {error:#}")));
        }
        if new.is_empty() {
            continue;
        }
        for scenario in &wanted {
            if !new.iter().any(|cell| cell.scenario == scenario.name) {
                problems.push(format!("{column}: {} was not run", scenario.name));
            }
        }
        // Read late: another run may have added its column meanwhile.
        let mut board = Board::read()?;
        for cell in &new {
            println!("{cell}");
            match board.cells.iter().find(|old| cell.is_in_place_of(old)) {
                Some(old) if cell.is_worse_than(old) => {
                    problems.push(format!("{cell} (was {})", old.verdict))
                }
                None if cell.verdict == Verdict::Wrong => problems.push(cell.to_string()),
                _ => {}
            }
        }
        let n_wrong = new.iter().filter(|cell| cell.verdict == Verdict::Wrong).count();
        println!("{column}: {} cells, {n_wrong} wrong", new.len());
        if !args.check {
            board.take(new, &known);
            board.write()?;
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// How a column's kernel is booted, `None` for this machine's own, and the scenarios for each way.
fn boots<'a>(column: &str, wanted: &[&'a Scenario]) -> Vec<(Option<Boot>, Vec<&'a Scenario>)> {
    if column == HOST {
        return vec![(None, wanted.to_vec())];
    }
    Boot::ALL
        .into_iter()
        .map(|boot| {
            let of_boot = wanted.iter().filter(|scenario| Boot::of(scenario) == boot);
            (Some(boot), of_boot.copied().collect::<Vec<_>>())
        })
        .filter(|(_, of_boot)| !of_boot.is_empty())
        .collect()
}

/// A column's run.
struct Ran {
    /// Its kernel, as cells name it.
    kernel: String,
    /// Where the reports and traces are.
    keep: PathBuf,
    /// Whether the guest came to its end.
    ended: Result<()>,
}

fn on_host(args: &Args) -> Result<Ran> {
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
        keep,
        ended: Ok(()),
    })
}

fn on_guest(args: &Args, column: &str, boot: Boot, of_boot: &[&Scenario]) -> Result<Ran> {
    let names = match boot {
        Boot::Usual => args.names.clone(),
        Boot::Selinux => of_boot.iter().map(|scenario| scenario.name.clone()).collect(),
    };
    let guest = vm::scenarios(column, boot, names)?;
    if !guest.results.join("scenarios").exists() {
        guest.ended?;
        bail!("no scenario was run");
    }
    Ok(Ran {
        kernel: guest.release,
        keep: guest.results.join("scenarios"),
        ended: guest.ended,
    })
}

/// A cell for every scenario that a report speaks of.
fn cells(column: &str, ran: &Ran, scenarios: &[&Scenario]) -> Result<Vec<Cell>> {
    let reports = Report::read_all(&ran.keep)?;
    let page = root().join("docs/causes.md");
    let page = fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
    let explained = Explained::of(&page);
    let at = Where {
        column,
        kernel: &ran.kernel,
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
