//! The verbs of the command line, and how the program ends.

pub mod annotate;
pub mod attach;
pub mod check;
pub mod explain;
pub mod replay;
pub mod report;

use std::{collections::BTreeMap, io, io::Write, process::ExitCode};

use clap::{CommandFactory, Parser, error::ErrorKind};
use serde_json::{Value, json};

use crate::{
    cli::{AttachArgs, Cli, Command, KeepArg, OutputArgs},
    engine::{
        EngineOptions,
        diagnose::{Cause, causes},
    },
    lines::read::Unreadable,
    outputs::{Closed, OutputOptions, Pace, keep::Keep},
    sink::trace_file::{Rotation, Target},
    view::Detail,
};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It ran.
    Ran,
    /// It ran, attempts failed, and the user asked to be told so by the exit status.
    FailuresFound,
}

/// Why a command could not run (to its end).
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Wrong usage, or a file that cannot be read or written.
    #[error("{0:#}")]
    Usage(anyhow::Error),
    /// An output broke on the way, and that was said when it happened.
    #[error("an output is incomplete")]
    AlreadySaid,
    /// Nothing could be watched: a capability, a kernel feature or a process is missing.
    #[error("{0:#}")]
    NotAttached(anyhow::Error),
}

impl Stop {
    /// Wrong usage, in one sentence.
    #[must_use]
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::Usage(anyhow::Error::msg(sentence.into()))
    }
}

impl From<Unreadable> for Stop {
    fn from(error: Unreadable) -> Self {
        Self::Usage(error.into())
    }
}

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    start_log(cli.verbose);
    match run(cli.command, cli.verbose) {
        Ok(Status::Ran) => ExitCode::SUCCESS,
        Ok(Status::FailuresFound) => ExitCode::from(1),
        Err(stop) => {
            if !matches!(stop, Stop::AlreadySaid) {
                say(&stop.to_string());
            }
            match stop {
                Stop::Usage(_) | Stop::AlreadySaid => ExitCode::from(2),
                Stop::NotAttached(_) => ExitCode::from(3),
            }
        }
    }
}

/// Says something about the tracer's own work; whether anybody still reads it changes nothing.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "tracer: {text}");
}

fn run(command: Command, verbose: u8) -> Result<Status, Stop> {
    match command {
        Command::Attach(args) => attach::run(&args, verbose),
        Command::Report(args) => report::run(&args),
        Command::Annotate(args) => annotate::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}

/// Prints the help that was asked for, or says in one line what is wrong with the command line.
fn misused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Whether the help was read to its end changes nothing.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
    } else {
        say(&one_line(&error.render().to_string()));
    }
    ExitCode::from(2)
}

/// clap's message in one line: what is wrong, the tip if there is one, and where help is.
fn one_line(message: &str) -> String {
    let mut paragraphs = message.split("\n\n");
    let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let wrong = joined(paragraphs.next().unwrap_or_default());
    let wrong = wrong.strip_prefix("error: ").unwrap_or(&wrong).to_owned();
    let tip = paragraphs.find_map(|paragraph| {
        joined(paragraph)
            .strip_prefix("tip: ")
            .map(|tip| format!(" ({tip})"))
    });
    format!(
        "{wrong}{}: see `{} --help`",
        tip.unwrap_or_default(),
        verb_of(std::env::args())
    )
}

/// The program and the verb that the user wrote, when it is one.
fn verb_of(mut arguments: impl Iterator<Item = String>) -> String {
    let command = Cli::command();
    arguments
        .nth(1)
        .filter(|verb| command.find_subcommand(verb).is_some())
        .map_or_else(|| "tracer".to_owned(), |verb| format!("tracer {verb}"))
}

/// Diagnostics of the tracer itself go to stderr, one line each; `RUST_LOG` refines what `-v` sets.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "tracer=info,warn",
        2 => "tracer=debug,info",
        _ => "trace",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(|out, record| writeln!(out, "tracer: {}", record.args()))
        .init();
}

/// Writes a whole answer to stdout; a reader that went away is no error.
pub fn print(text: &str) -> Result<(), Stop> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Stop::usage(format!("cannot write to stdout: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What the user asked for, checked for what clap cannot see.
pub fn output_options(args: &OutputArgs, pace: Pace) -> Result<OutputOptions, Stop> {
    let mut targets: Vec<Target> = args.output.iter().map(|output| output.0.clone()).collect();
    if args.json && !targets.contains(&Target::Stdout) {
        targets.push(Target::Stdout);
    }
    for (number, target) in targets.iter().enumerate() {
        if targets[..number].contains(target) {
            return Err(Stop::usage(
                "the same output is given twice: each -o needs its own file",
            ));
        }
    }
    if args.rotate.is_some() && targets.iter().all(|target| *target == Target::Stdout) {
        return Err(Stop::usage(
            "--rotate needs a file to rotate: give one with -o FILE",
        ));
    }
    let view = if targets.contains(&Target::Stdout) {
        None
    } else if args.quiet {
        Some(Detail::SummaryOnly)
    } else {
        Some(Detail::Failures)
    };
    Ok(OutputOptions {
        targets,
        keep: match args.keep {
            KeepArg::All => Keep::All,
            KeepArg::Failures => Keep::Failures {
                context: args.context,
            },
        },
        rotation: Rotation {
            when: args.rotate.map(|rotate| rotate.0),
            keep: args.rotate_keep,
        },
        view,
        pace,
    })
}

/// What the user wants the engine to leave out.
#[must_use]
pub fn engine_options(args: &OutputArgs) -> EngineOptions {
    EngineOptions {
        upstreams: args.upstream.clone(),
        peers: args.peer.clone(),
        ..EngineOptions::default()
    }
}

/// The cause of that name; the error suggests the nearest one.
pub fn find_cause(id: &str) -> Result<&'static Cause, Stop> {
    causes::find(id).ok_or_else(|| {
        let nearest = causes::ALL
            .iter()
            .max_by(|left, right| {
                let likeness = |cause: &Cause| strsim::sorensen_dice(cause.id, id);
                likeness(left).total_cmp(&likeness(right))
            })
            .map_or("unknown", |cause| cause.id);
        Stop::usage(format!(
            "no cause is called `{id}`, the nearest is `{nearest}`: `tracer explain` lists them all"
        ))
    })
}

/// The options of a trace's session line that decide what the trace holds.
#[must_use]
pub fn described(args: &OutputArgs) -> BTreeMap<String, Value> {
    let keep = match args.keep {
        KeepArg::All => "all",
        KeepArg::Failures => "failures",
    };
    let mut options = BTreeMap::from([("keep".to_owned(), json!(keep))]);
    if args.keep == KeepArg::Failures {
        options.insert("context".to_owned(), json!(args.context));
    }
    if !args.upstream.is_empty() {
        options.insert("upstream".to_owned(), json!(args.upstream));
    }
    if !args.peer.is_empty() {
        let peers: Vec<_> = args.peer.iter().map(ToString::to_string).collect();
        options.insert("peer".to_owned(), json!(peers));
    }
    options
}

/// The options of `tracer attach` for its session line.
#[must_use]
pub fn attach_described(args: &AttachArgs) -> BTreeMap<String, Value> {
    let mut options = described(&args.output);
    options.insert("pid".to_owned(), json!(args.pid.to_string()));
    options.insert("config".to_owned(), json!(args.config.to_string()));
    options.insert("error_log".to_owned(), json!(args.error_log.to_string()));
    options.insert("resolve".to_owned(), json!(args.resolve.to_string()));
    options.insert("capture".to_owned(), json!(args.capture.to_string()));
    if !args.without.is_empty() {
        options.insert("without".to_owned(), json!(args.without));
    }
    options
}

/// How a trace that ran to its end ends the program.
pub fn status_of(closed: &Closed, fail_on_failure: bool) -> Result<Status, Stop> {
    if closed.is_any_broken() {
        return Err(Stop::AlreadySaid);
    }
    if fail_on_failure && closed.failures > 0 {
        return Ok(Status::FailuresFound);
    }
    Ok(Status::Ran)
}

#[cfg(test)]
mod tests;
