//! `tracer annotate`: nginx's own lines, each with its cause underneath.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Read, Write},
    path::Path,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;

use super::{Status, Stop};
use crate::{
    annotate::{Kind, Totals, as_it_stands, explain, json, kind, text, traces::Traces},
    cli::AnnotateArgs,
    lines::read::{LineReader, Unreadable},
    view::Look,
};

/// So many lines without one of nginx's are no error log.
const FOREIGN: u64 = 10_000;

/// Runs the command.
pub fn run(args: &AnnotateArgs) -> Result<Status, Stop> {
    let stdin = args
        .logs
        .iter()
        .chain(&args.trace)
        .filter(|path| *path == Path::new("-"));
    if stdin.count() > 1 {
        return Err(Stop::usage("stdin is named twice: it can be read once"));
    }
    // Found out now rather than after the hours that others take.
    for log in args.logs.iter().filter(|log| *log != Path::new("-")) {
        opened(log)?;
    }
    let zone = args.zone.as_deref().map(zone).transpose()?;
    let mut annotation = Annotation {
        args,
        look: Look::of_stdout(),
        traces: Traces::open(&args.trace, zone)?,
        totals: Totals::default(),
        told: text::Told::default(),
        names: args.logs.iter().map(|log| log.display().to_string()).collect(),
    };
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let written = annotation.run(&mut out);
    match written {
        // A reader that went away has seen enough.
        Err(Broken::Written(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Status::Ran),
        Err(Broken::Written(error)) => Err(Stop::usage(format!("cannot write to stdout: {error}"))),
        Err(Broken::Read(error)) => Err(error.into()),
        Ok(()) => Ok(Status::Ran),
    }
}

fn zone(name: &str) -> Result<TimeZone, Stop> {
    let known = match name {
        "UTC" => Ok(TimeZone::UTC),
        _ => TimeZone::get(name).or_else(|_| TimeZone::posix(name)),
    };
    known.map_err(|_| {
        Stop::usage(format!(
            "--zone {name}: no such time zone; write it as Europe/Berlin, UTC or a TZ string"
        ))
    })
}

/// Why it broke off.
enum Broken {
    Read(Unreadable),
    Written(io::Error),
}

impl From<Unreadable> for Broken {
    fn from(error: Unreadable) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Written(error)
    }
}

struct Annotation<'a> {
    args: &'a AnnotateArgs,
    look: Look,
    traces: Traces,
    totals: Totals,
    told: text::Told,
    names: Vec<String>,
}

impl Annotation<'_> {
    fn run(&mut self, out: &mut impl Write) -> Result<(), Broken> {
        let read = (0..self.args.logs.len()).try_for_each(|number| self.log(number, out));
        // What was found until then is not lost.
        if read.is_err() && (self.totals.upstream_lines == 0 || matches!(read, Err(Broken::Written(_)))) {
            return read;
        }
        let (unclaimed, torn) = (self.traces.unclaimed(), self.traces.torn());
        if self.args.json {
            writeln!(
                out,
                "{}",
                json::closing(&self.totals, &self.names, unclaimed, &torn)
            )?;
        } else {
            if !self.args.quiet && self.totals.lines > 0 {
                writeln!(out)?;
            }
            let closing = text::closing(&self.totals, &self.names, unclaimed, &torn, &self.look);
            out.write_all(closing.as_bytes())?;
        }
        out.flush()?;
        read
    }

    fn log(&mut self, log: usize, out: &mut impl Write) -> Result<(), Broken> {
        let path = &self.args.logs[log];
        let progress = progress(path, self.args.quiet || !io::stdout().is_terminal());
        let mut lines = open(path, &progress)?;
        let context = as_it_stands();
        let before = self.totals.nginx_lines;
        self.traces.begin_log();
        let mut number = 0;
        while let Some(line) = lines.next_line()? {
            number += 1;
            self.totals.lines += 1;
            let kind = kind(line.text, &context);
            self.totals.nginx_lines += u64::from(!matches!(kind, Kind::Foreign));
            if number >= FOREIGN && self.totals.nginx_lines == before {
                return Err(not_nginx(&lines).into());
            }
            let is_shown = !self.args.quiet && !self.args.json;
            let is_upstream = matches!(kind, Kind::Upstream(_));
            if is_shown && (is_upstream || !self.args.only_upstream) {
                out.write_all(line.text)?;
                out.write_all(b"\n")?;
            }
            let Kind::Upstream(upstream) = kind else {
                continue;
            };
            let (parsed, said) = *upstream;
            let answer = explain(&mut self.traces, &parsed, &said)?;
            self.totals.add(log, number, &answer);
            if self.args.json {
                writeln!(out, "{}", json::line(&self.names[log], number, &answer))?;
            } else if is_shown {
                let text = text::annotation(&answer, self.args.evidence, &mut self.told, &self.look);
                out.write_all(text.as_bytes())?;
            }
        }
        progress.finish_and_clear();
        if number > 0 && self.totals.nginx_lines == before {
            return Err(not_nginx(&lines).into());
        }
        if lines.is_cut() {
            log::warn!("{} ends in the middle: it is not whole", lines.file());
        }
        Ok(())
    }
}

fn not_nginx(lines: &LineReader) -> Unreadable {
    lines.unreadable("is no error log of nginx: none of its lines begins as nginx writes them (2026/01/31 12:00:00 [error] …)")
}

/// A bar on stderr, where somebody looks at it and the log itself does not run there.
fn progress(path: &Path, is_calm: bool) -> ProgressBar {
    let size = std::fs::metadata(path).map(|meta| meta.len()).unwrap_or(0);
    if !is_calm || size == 0 {
        return ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bytes} of {total_bytes} ({percent} %), {eta} to go")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style)
}

fn open(path: &Path, progress: &ProgressBar) -> Result<LineReader, Unreadable> {
    if path == Path::new("-") {
        return LineReader::open(path);
    }
    let input: Box<dyn Read> = Box::new(progress.wrap_read(opened(path)?));
    LineReader::new(&path.display().to_string(), input)
}

fn opened(path: &Path) -> Result<File, Unreadable> {
    File::open(path).map_err(|error| Unreadable {
        file: path.display().to_string(),
        problem: format!("cannot be opened: {}", crate::lines::plain(&error)),
    })
}
