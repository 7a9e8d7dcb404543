//! The command line: clap types without logic. Their doc comments are the help texts and the page of the manual.

pub mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use self::values::{Capture, Moment, Name, OutputFile, RotateAt, Switch, Target, Where};
use crate::event::Peer;

/// Says why nginx answers 502: watches nginx's upstream connections from the kernel.
#[derive(Debug, Parser)]
#[command(name = "tracer", version, max_term_width = 100)]
#[command(after_help = "Start with: sudo tracer attach --pid nginx")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more about the tracer's own work, on stderr; twice: also what its BPF programs say.
    #[arg(short, long, action = clap::ArgAction::Count, global = true, display_order = 900)]
    pub verbose: u8,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch a running nginx and say why its attempts at upstreams fail.
    ///
    /// nginx is neither restarted nor reconfigured nor asked to log more. Ctrl-C ends the trace in an orderly way.
    Attach(AttachArgs),
    /// Read traces and say what happened.
    Report(ReportArgs),
    /// Print nginx's error log, or its access log, with the cause under each line about an upstream's failure.
    ///
    /// The log and the traces are read side by side in bounded memory, so both may be of any size. What stayed
    /// unexplained is counted at the end, each with its reason.
    Annotate(AnnotateArgs),
    /// Diagnose a recording again, with the rules of this version.
    Replay(ReplayArgs),
    /// Say what can be seen on this host, what cannot, and what is lost without it.
    Check(CheckArgs),
    /// Say what a cause means, how it is recognised, what looks alike, and what to do.
    Explain(ExplainArgs),
}

/// Arguments of `tracer attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The nginx to watch: a name (every instance of it, also those started later) or the pid of one instance.
    #[arg(long, value_name = "NAME|PID", default_value = "nginx")]
    pub pid: Target,
    /// Where the trace goes.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Also write the raw inputs, for `tracer replay`; compressed when FILE ends in .zst.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Stop after this time (60s, 10m, 2h).
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub duration: Option<std::time::Duration>,
    /// Stop after this many failed attempts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Where the names of upstreams come from: nginx's own configuration, nowhere, or another file.
    #[arg(long, value_name = "auto|off|PATH", default_value = "auto")]
    pub config: Where,
    /// Which error log is read where nginx's lines cannot be heard at their source.
    #[arg(long, value_name = "auto|off|PATH", default_value = "auto")]
    pub error_log: Where,
    /// Whether, after a failure, a configured host name may be resolved to see what it means now.
    #[arg(long, value_name = "auto|off", default_value = "auto")]
    pub resolve: Switch,
    /// What is read of the bytes between nginx and its upstreams: of each request its method, path without query string
    /// and Host, of each answer its status; or nothing.
    #[arg(long, value_name = "request-line|off", default_value = "request-line")]
    pub capture: Capture,
    /// Leave out a hook of `tracer check`'s list; may be repeated.
    #[arg(long, value_name = "HOOK")]
    pub without: Vec<String>,
    /// Create this file once everything is attached.
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}

/// Arguments shared by `attach` and `replay`: what is written, and where.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Write the trace to FILE (.jsonl, .jsonl.zst) or, as JSON Lines, to stdout (-); may be repeated.
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<OutputFile>,
    /// Which attempts are written: all, or failures with the attempts around them.
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = KeepArg::All)]
    pub keep: KeepArg,
    /// With --keep failures: attempts at the same peer to keep before and after a failure.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub context: u32,
    /// Only attempts at this upstream; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub upstream: Vec<String>,
    /// Only attempts at this peer, as ADDRESS:PORT or unix:PATH; may be repeated.
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<Peer>,
    /// JSON Lines on stdout in place of readable text; the same as -o -.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Nothing but the closing summary.
    #[arg(short, long)]
    pub quiet: bool,
    /// Begin a new file at this size (100MB, 1GiB) or age (10m, 1h); finished files are numbered.
    #[arg(long, value_name = "SIZE|TIME")]
    pub rotate: Option<RotateAt>,
    /// With --rotate: keep this many finished files and delete older ones of this run.
    #[arg(long, value_name = "N", requires = "rotate")]
    pub rotate_keep: Option<u32>,
    /// End with exit status 1 when an attempt failed.
    #[arg(long)]
    pub fail_on_failure: bool,
}

/// Which attempts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KeepArg {
    /// Every attempt.
    All,
    /// Every failed attempt in full, and the attempts around it; the others are counted.
    Failures,
}

/// Arguments of `tracer report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Traces to read, together; - is stdin.
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// One JSON object in place of readable text.
    #[arg(long)]
    pub json: bool,
    /// Only attempts that began at or after WHEN: RFC 3339, `2026-11-22 12:04`, `12:04:31` or `10m` (ago).
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Moment>,
    /// Only attempts that began before WHEN.
    #[arg(long, value_name = "WHEN")]
    pub until: Option<Moment>,
    /// Only attempts at this upstream; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub upstream: Vec<String>,
    /// Only failures of this cause, by its id; may be repeated. `tracer explain` lists them.
    #[arg(long, value_name = "CAUSE")]
    pub cause: Vec<Name>,
    /// End with exit status 1 when an attempt failed.
    #[arg(long)]
    pub fail_on_failure: bool,
}

/// Arguments of `tracer annotate`.
#[derive(Debug, Args)]
pub struct AnnotateArgs {
    /// Error logs or access logs to read, in their order; - is stdin; compressed ones (.gz, .zst) too.
    #[arg(required = true, value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    /// The trace that ran meanwhile; may be repeated, also for the files of one that was rotated.
    #[arg(long, value_name = "TRACE", required = true)]
    pub trace: Vec<PathBuf>,
    /// Leave out the lines that are about no upstream's failure.
    #[arg(long)]
    pub only_upstream: bool,
    /// Also print the evidence of each cause.
    #[arg(long)]
    pub evidence: bool,
    /// One JSON object for each line about an upstream's failure, and one at the end.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Nothing but the closing summary.
    #[arg(short, long)]
    pub quiet: bool,
    /// The layout of access logs, as nginx's log_format has it, or combined; without it, those of the configuration, which
    /// the trace has, and combined.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// The error log's time zone (Europe/Berlin, UTC); without it, that of the lines in the trace, or else the system's.
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
}

/// Arguments of `tracer replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording that `tracer attach --record` wrote; - is stdin.
    #[arg(value_name = "RECORDING")]
    pub recording: PathBuf,
    /// Where the trace goes.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `tracer check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Also say what is understood of this nginx: a name or a pid.
    #[arg(long, value_name = "NAME|PID")]
    pub pid: Option<Target>,
    /// One JSON object in place of readable text.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tracer explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The cause's id; without it, all causes are listed.
    #[arg(value_name = "CAUSE")]
    pub cause: Option<Name>,
}

#[cfg(test)]
mod tests;
