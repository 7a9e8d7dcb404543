//! The figures: what is kept of every run, what follows from it, and how it is shown.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::Path,
    process::Command,
    thread::available_parallelism,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// The name and version of bench.json's form.
pub(super) const SCHEMA: &str = "tracer-bench/1";
/// Throughput with the tracer, divided by throughput without, is to be at least this.
const RATIO_GOAL: f64 = 0.95;
/// Seconds within which it is to be ready.
const READY_GOAL: f64 = 2.0;
/// The interval of a ratio is to hold its true median with this probability, if there are pairs enough.
const COVERAGE: f64 = 0.95;

/// Everything measured.
#[derive(Debug, Serialize)]
pub(super) struct Bench {
    pub(super) schema: String,
    pub(super) command: String,
    pub(super) machine: Machine,
    pub(super) clients: u32,
    pub(super) seconds: u32,
    pub(super) workloads: Vec<Workload>,
    pub(super) ready: Ready,
}

/// What it was measured on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cores: usize,
    processor: Option<String>,
    kernel: String,
    nginx: String,
    tracer: String,
    load_generator: String,
    date: String,
    /// Tasks that wanted to run in the minute before.
    load_before: Option<f64>,
}

/// One kind of traffic.
#[derive(Debug, Serialize)]
pub(super) struct Workload {
    name: String,
    ratio: Ratio,
    cost: Cost,
    programs: Vec<Program>,
    /// Why instructions were not counted, if they were not.
    why_no_instructions: Option<String>,
    pairs: Vec<Pair>,
}

/// Two runs one after the other.
#[derive(Debug, Serialize)]
pub(super) struct Pair {
    /// Requests per second without the tracer.
    pub(super) without: f64,
    /// The run with it.
    pub(super) with: Attached,
    /// Throughput with, divided by throughput without.
    pub(super) ratio: f64,
}

/// A run with the tracer attached.
#[derive(Debug, Serialize)]
pub(super) struct Attached {
    pub(super) requests_per_second: f64,
    pub(super) ready_seconds: f64,
    pub(super) attempts: u64,
    pub(super) failures: u64,
    pub(super) lost: BTreeMap<String, u64>,
    pub(super) is_complete: bool,
    /// The tracer's user and system time from ready to its end.
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) peak_bytes: u64,
    /// BPF programs and maps.
    pub(super) kernel_bytes: u64,
    pub(super) trace_bytes: u64,
}

/// The median of the pairs' ratios, and between which of them it lies.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    pub(super) goal: f64,
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// The probability with which the interval holds the true median, whatever the distribution.
    pub(super) coverage: f64,
    pub(super) judgement: Judgement,
    /// Whether the interval is wider than the median's distance to the goal.
    pub(super) is_wide: bool,
}

/// What an interval says of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Judgement {
    /// All of it is at the goal or beyond.
    Met,
    /// All of it falls short.
    Missed,
    /// The goal lies within.
    Open,
    /// There are too few pairs for an interval that deserves the name.
    TooFew,
}

/// What all runs of one kind of traffic cost together.
#[derive(Debug, Serialize)]
struct Cost {
    attempts: u64,
    failures: u64,
    lost: BTreeMap<String, u64>,
    is_complete: bool,
    cpu_ms_per_10000_attempts: f64,
    trace_bytes_per_attempt: f64,
    /// The most of all runs.
    resident_bytes: u64,
    /// The most of all runs.
    peak_bytes: u64,
    /// The most of all runs.
    kernel_bytes: u64,
}

/// One BPF program under traffic, by the kernel's statistics.
#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: String,
    /// BPF instructions it consists of.
    length: Option<u64>,
    pub(super) runs: u64,
    runs_per_attempt: f64,
    ns_per_run: f64,
    pub(super) ns_per_attempt: f64,
    /// Machine instructions, where the machine counts them.
    pub(super) instructions_per_run: Option<f64>,
}

/// How long starts took on a busy host.
#[derive(Debug, Serialize)]
pub(super) struct Ready {
    goal: f64,
    processes: usize,
    sockets: usize,
    seconds: Vec<f64>,
    median: f64,
    most: f64,
}

impl Machine {
    /// Looks at this machine.
    pub(super) fn look(nginx: &Path, tracer: &Path, load_generator: &str) -> Result<Self> {
        let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let load_before = fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse().ok());
        Ok(Self {
            cores: available_parallelism().context("counting cores")?.get(),
            processor,
            kernel: said(Command::new("uname").arg("-r"))?,
            nginx: said(Command::new(nginx).arg("-v"))?
                .trim_start_matches("nginx version: ")
                .to_owned(),
            tracer: said(Command::new(tracer).arg("--version"))?,
            load_generator: load_generator.to_owned(),
            date: said(Command::new("date").args(["-u", "+%F"]))?,
            load_before,
        })
    }
}

/// The one line a program says, on whichever output.
fn said(command: &mut Command) -> Result<String> {
    let shown = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("starting {shown}"))?;
    ensure!(output.status.success(), "{shown} ended with {}", output.status);
    let said = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

impl Workload {
    pub(super) fn new(
        name: String,
        pairs: Vec<Pair>,
        programs: Vec<Program>,
        why_no_instructions: Option<String>,
    ) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|pair| pair.ratio).collect();
        Self {
            name,
            ratio: Ratio::of(&ratios),
            cost: Cost::of(&pairs),
            programs,
            why_no_instructions,
            pairs,
        }
    }
}

impl Pair {
    pub(super) fn new(without: f64, with: Attached) -> Self {
        Self {
            without,
            ratio: with.requests_per_second / without,
            with,
        }
    }
}

impl Ratio {
    /// The narrowest interval between two of the ratios, equally far from both ends, that holds the true median with
    /// the probability wanted; where there are too few ratios for that, the widest.
    ///
    /// The k-th smallest is above the median when fewer than k of n fall below it, which is a matter of n coins.
    fn of(ratios: &[f64]) -> Self {
        let mut sorted = ratios.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let mut rank = 0;
        while rank + 1 < n.div_ceil(2) && coverage(n, rank + 1) >= COVERAGE {
            rank += 1;
        }
        let (median, low, high) = (median(&sorted), sorted[rank], sorted[n - 1 - rank]);
        let coverage = coverage(n, rank);
        let judgement = if coverage < COVERAGE {
            Judgement::TooFew
        } else if low >= RATIO_GOAL {
            Judgement::Met
        } else if high < RATIO_GOAL {
            Judgement::Missed
        } else {
            Judgement::Open
        };
        Self {
            goal: RATIO_GOAL,
            median,
            low,
            high,
            coverage,
            judgement,
            is_wide: high - low > (median - RATIO_GOAL).abs(),
        }
    }

    /// What the interval says of the goal, for a person.
    fn judged(&self) -> String {
        let goal = self.goal;
        let verdict = match self.judgement {
            Judgement::Met => format!("goal {goal} met"),
            Judgement::Missed => format!("goal {goal} missed"),
            Judgement::Open => format!("goal {goal} open: it lies within the interval"),
            Judgement::TooFew => format!("goal {goal} open: too few pairs"),
        };
        if self.is_wide {
            format!("{verdict}; the interval is wider than the median's distance to the goal")
        } else {
            verdict
        }
    }
}

/// The probability that the median of n values' distribution lies between the value at this place (from 0) and its
/// counterpart at the other end.
fn coverage(n: usize, rank: usize) -> f64 {
    let mut ways = 1.0;
    let mut outside = 0.0;
    for below in 0..=rank {
        outside += ways;
        ways *= (n - below) as f64 / (below + 1) as f64;
    }
    1.0 - 2.0 * outside / 2f64.powi(i32::try_from(n).unwrap_or(i32::MAX))
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

impl Cost {
    fn of(pairs: &[Pair]) -> Self {
        let runs = || pairs.iter().map(|pair| &pair.with);
        let most = |of: fn(&Attached) -> u64| runs().map(of).max().unwrap_or_default();
        let attempts: u64 = runs().map(|run| run.attempts).sum();
        let mut lost: BTreeMap<String, u64> = BTreeMap::new();
        for (class, count) in runs().flat_map(|run| &run.lost) {
            *lost.entry(class.clone()).or_default() += count;
        }
        Self {
            attempts,
            failures: runs().map(|run| run.failures).sum(),
            lost,
            is_complete: runs().all(|run| run.is_complete),
            cpu_ms_per_10000_attempts: runs().map(|run| run.cpu_seconds).sum::<f64>() * 1e7 / attempts as f64,
            trace_bytes_per_attempt: runs().map(|run| run.trace_bytes).sum::<u64>() as f64 / attempts as f64,
            resident_bytes: most(|run| run.resident_bytes),
            peak_bytes: most(|run| run.peak_bytes),
            kernel_bytes: most(|run| run.kernel_bytes),
        }
    }

    fn losses(&self) -> String {
        let classes: Vec<String> = self
            .lost
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(class, count)| format!("{count} {class}"))
            .collect();
        match (classes.is_empty(), self.is_complete) {
            (true, true) => "0".to_owned(),
            (true, false) => "0, yet a trace is incomplete".to_owned(),
            (false, _) => classes.join(", "),
        }
    }
}

impl Program {
    pub(super) fn new(name: String, length: Option<u64>, runs: u64, nanoseconds: u64, attempts: u64) -> Self {
        Self {
            name,
            length,
            runs,
            runs_per_attempt: runs as f64 / attempts as f64,
            ns_per_run: nanoseconds as f64 / runs as f64,
            ns_per_attempt: nanoseconds as f64 / attempts as f64,
            instructions_per_run: None,
        }
    }
}

impl Ready {
    pub(super) fn new(processes: usize, sockets: usize, seconds: Vec<f64>) -> Self {
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            goal: READY_GOAL,
            processes,
            sockets,
            median: median(&sorted),
            most: sorted[sorted.len() - 1],
            seconds,
        }
    }
}

impl Bench {
    /// The page for people.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            text,
            "<!-- Made by `{}`; run it again rather than change it. -->",
            self.command
        )?;
        writeln!(text, "# What the tracer costs\n")?;
        writeln!(
            text,
            "An nginx with two workers in front of another, each worker on a processor and a listener of its own, {} \
             clients on loopback, everything in one network namespace of one machine: the clients and both nginx \
             compete with the tracer for its cores. The tracer \
             writes every attempt to `.jsonl.zst`. Runs of {} s, alternated without and with it.\n",
            self.clients, self.seconds
        )?;
        let mut table = Table::new(&["machine", ""]);
        table.row(["cores".to_owned(), machine.cores.to_string()]);
        if let Some(processor) = &machine.processor {
            table.row(["processor".to_owned(), processor.clone()]);
        }
        table.row(["kernel".to_owned(), machine.kernel.clone()]);
        table.row(["nginx".to_owned(), machine.nginx.clone()]);
        table.row(["tracer".to_owned(), machine.tracer.clone()]);
        table.row(["load generator".to_owned(), machine.load_generator.clone()]);
        table.row(["date".to_owned(), machine.date.clone()]);
        if let Some(load) = machine.load_before {
            table.row(["load average before the start".to_owned(), format!("{load:.2}")]);
        }
        writeln!(text, "{table}")?;
        self.write_throughput(text)?;
        self.write_cost(text)?;
        for workload in &self.workloads {
            workload.write_programs(text)?;
        }
        self.ready.write(text)
    }

    fn write_throughput(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "## Throughput\n")?;
        let mut table = Table::new(&[
            "upstream traffic",
            "pairs",
            "without, req/s",
            "with, req/s",
            "ratio",
            "interval",
        ]);
        for workload in &self.workloads {
            let ratio = &workload.ratio;
            let middle = |of: fn(&Pair) -> f64| {
                let mut all: Vec<f64> = workload.pairs.iter().map(of).collect();
                all.sort_by(f64::total_cmp);
                format!("{:.0}", median(&all))
            };
            table.row([
                workload.name.clone(),
                workload.pairs.len().to_string(),
                middle(|pair| pair.without),
                middle(|pair| pair.with.requests_per_second),
                format!("{:.3}", ratio.median),
                format!(
                    "{:.3} to {:.3} ({:.0} %)",
                    ratio.low,
                    ratio.high,
                    ratio.coverage * 100.0
                ),
            ]);
        }
        writeln!(text, "{table}")?;
        writeln!(
            text,
            "Medians over the pairs; the interval lies between two of the pairs' own ratios and holds the true median \
             with the probability in brackets, whatever the noise looks like.\n"
        )?;
        for workload in &self.workloads {
            writeln!(text, "- {}: {}.", workload.name, workload.ratio.judged())?;
        }
        writeln!(text)
    }

    fn write_cost(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "## Cost by the kernel's counters\n")?;
        let names = self.workloads.iter().map(|workload| workload.name.as_str());
        let heads: Vec<&str> = std::iter::once("all runs together").chain(names).collect();
        let mut table = Table::new(&heads);
        let mut row = |what: &str, figure: &dyn Fn(&Workload) -> String| {
            table.row(std::iter::once(what.to_owned()).chain(self.workloads.iter().map(figure)));
        };
        row("attempts", &|workload| workload.cost.attempts.to_string());
        row("of them reported as failed", &|workload| {
            workload.cost.failures.to_string()
        });
        row("records lost", &|workload| workload.cost.losses());
        row("BPF programs run per attempt", &|workload| {
            let runs: f64 = workload
                .programs
                .iter()
                .map(|program| program.runs_per_attempt)
                .sum();
            format!("{runs:.2}")
        });
        row("BPF time per attempt", &|workload| {
            let time: f64 = workload
                .programs
                .iter()
                .map(|program| program.ns_per_attempt)
                .sum();
            format!("{time:.0} ns")
        });
        row("tracer's CPU per 10,000 attempts", &|workload| {
            format!("{:.0} ms", workload.cost.cpu_ms_per_10000_attempts)
        });
        row("trace per attempt", &|workload| {
            format!("{:.1} bytes", workload.cost.trace_bytes_per_attempt)
        });
        row("tracer's memory at the end of a run", &|workload| {
            mebibytes(workload.cost.resident_bytes)
        });
        row("tracer's memory at most", &|workload| {
            mebibytes(workload.cost.peak_bytes)
        });
        row("BPF programs and maps in the kernel", &|workload| {
            mebibytes(workload.cost.kernel_bytes)
        });
        writeln!(text, "{table}")?;
        writeln!(
            text,
            "BPF time is the kernel's own (`BPF_ENABLE_STATS`), taken in a run of its own, since keeping it costs \
             time; it is spent by nginx, the backend and the kernel, not by the tracer. The programs also run for the \
             clients' connections and for whatever else the host does meanwhile; those runs are in these figures.\n"
        )
    }
}

impl Workload {
    fn write_programs(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "### BPF programs: {}\n", self.name)?;
        let mut table = Table::new(&[
            "program",
            "BPF instructions in it",
            "runs per attempt",
            "ns per run",
            "ns per attempt",
            "machine instructions per run",
        ]);
        for program in &self.programs {
            table.row([
                program.name.clone(),
                program.length.map_or_else(unknown, |length| length.to_string()),
                format!("{:.3}", program.runs_per_attempt),
                format!("{:.0}", program.ns_per_run),
                format!("{:.0}", program.ns_per_attempt),
                program
                    .instructions_per_run
                    .map_or_else(unknown, |count| format!("{count:.0}")),
            ]);
        }
        writeln!(text, "{table}")?;
        if let Some(why) = &self.why_no_instructions {
            writeln!(text, "Machine instructions were not counted: {why}.\n")?;
        }
        Ok(())
    }
}

impl Ready {
    fn write(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "## Ready\n")?;
        let all: Vec<String> = self
            .seconds
            .iter()
            .map(|seconds| format!("{seconds:.2}"))
            .collect();
        let verdict = if self.most <= self.goal { "met" } else { "missed" };
        writeln!(
            text,
            "From the start until every hook is attached, beside {} further processes that hold {} sockets: median \
             {:.2} s, at most {:.2} s ({}); goal {} s {verdict}.",
            self.processes,
            self.sockets,
            self.median,
            self.most,
            all.join(", "),
            self.goal
        )
    }
}

fn unknown() -> String {
    "?".to_owned()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A Markdown table that also reads well in a terminal.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(heads: &[&str]) -> Self {
        Self {
            rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()],
        }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.max().unwrap_or_default().max(3)
            })
            .collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Figures stand below one another.
                if column == 0 {
                    write!(f, "| {cell:width$} ")?;
                } else {
                    write!(f, "| {cell:>width$} ")?;
                }
            }
            writeln!(f, "|")?;
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let end = if column == 0 { "-" } else { ":" };
                    write!(f, "|-{}{end}", "-".repeat(*width))?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Ratio, Table, coverage};

    #[test]
    fn coverage_is_that_of_coins() {
        assert_eq!(coverage(7, 0), 1.0 - 2.0 / 128.0);
        assert_eq!(coverage(9, 1), 1.0 - 2.0 * 10.0 / 512.0);
        assert_eq!(coverage(2, 0), 0.5);
    }

    #[test]
    fn with_more_pairs_the_extremes_are_left_out() {
        let ratios = [0.2, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 5.0];
        let ratio = Ratio::of(&ratios);
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.97, 1.0, 1.03));
        assert_eq!((ratio.judgement, ratio.is_wide), (Judgement::Met, true));
    }

    #[test]
    fn a_goal_within_the_interval_is_open() {
        let ratio = Ratio::of(&[0.99, 0.93, 0.96, 0.95, 0.97, 0.98]);
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.93, 0.965, 0.99));
        assert_eq!((ratio.judgement, ratio.is_wide), (Judgement::Open, true));
        assert_eq!(
            ratio.judged(),
            "goal 0.95 open: it lies within the interval; the interval is wider than the median's distance to the goal"
        );
    }

    #[test]
    fn a_narrow_interval_decides() {
        let ratio = Ratio::of(&[0.90, 0.905, 0.91, 0.90, 0.90, 0.90]);
        assert_eq!((ratio.judgement, ratio.is_wide), (Judgement::Missed, false));
        let ratio = Ratio::of(&[0.99, 0.995, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(ratio.judged(), "goal 0.95 met");
    }

    #[test]
    fn few_pairs_decide_nothing() {
        let ratio = Ratio::of(&[1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(ratio.judged(), "goal 0.95 open: too few pairs");
    }

    #[test]
    fn a_table_is_aligned() {
        let mut table = Table::new(&["what", "n"]);
        table.row(["a".to_owned(), "12345".to_owned()]);
        assert_eq!(
            table.to_string(),
            "| what |     n |\n|------|------:|\n| a    | 12345 |\n"
        );
    }
}
