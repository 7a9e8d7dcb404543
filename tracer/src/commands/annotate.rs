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
    annotate::{
        Kind, Request, Totals, as_it_stands, explain, explain_request, format::Format, json, kind, text,
        traces::Traces,
    },
    cli::AnnotateArgs,
    event::{AccessLog, Escape},
    lines::read::{LineReader, Unreadable},
    sink::schema,
    view::Look,
};

/// So many lines without one of nginx's are no log of it.
const FOREIGN: u64 = 10_000;

/// So many lines at the beginning of a log tell of which kind it is.
const BEGINNING: usize = 100;

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
    let mut has_requests = false;
    for log in &args.logs {
        has_requests |= may_have_requests(log)?;
    }
    let given = args.log_format.as_deref().map(given).transpose()?;
    let zone = args.zone.as_deref().map(zone).transpose()?;
    let mut annotation = Annotation {
        args,
        look: Look::of_stdout(),
        traces: Traces::open(&args.trace, zone, has_requests)?,
        given,
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

fn given(format: &str) -> Result<Format, Stop> {
    let format = Format::given(format);
    match format.check() {
        Ok(()) => Ok(format),
        Err(problem) => Err(Stop::usage(format!("--log-format {problem}"))),
    }
}

/// Whether a log is none of errors as it begins. Stdin and pipes are not looked into: what they gave is gone.
fn may_have_requests(log: &Path) -> Result<bool, Unreadable> {
    if log == Path::new("-") {
        return Ok(true);
    }
    let file = opened(log)?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Ok(true);
    }
    let mut lines = LineReader::new(&log.display().to_string(), Box::new(file))?;
    let context = as_it_stands();
    for _ in 0..BEGINNING {
        match lines.next_line()? {
            Some(line) if matches!(kind(line.text, &context, &[]), Kind::Foreign) => {}
            Some(_) => return Ok(false),
            None => break,
        }
    }
    Ok(true)
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
    given: Option<Format>,
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

    /// A line that nothing is said about.
    fn other(&self, line: &[u8], out: &mut impl Write) -> io::Result<()> {
        if self.args.quiet || self.args.json || self.args.only_upstream {
            return Ok(());
        }
        annotated(out, line, "")
    }

    /// The formats that a log's lines may have: the one given, or those of the configuration, this file's own first, and
    /// nginx's own.
    fn formats(&self, path: &Path) -> Vec<Format> {
        if let Some(given) = &self.given {
            return vec![given.clone()];
        }
        let mut logs: Vec<AccessLog> = self.traces.access_logs().iter().map(access_log).collect();
        logs.sort_by_key(|log| Path::new(&log.path).file_name() != path.file_name());
        logs.push(AccessLog {
            name: "combined".to_owned(),
            ..AccessLog::default()
        });
        let mut formats: Vec<Format> = Vec::new();
        for format in logs
            .iter()
            .map(Format::new)
            .filter(|format| format.check().is_ok())
        {
            if !formats.contains(&format) {
                formats.push(format);
            }
        }
        formats
    }

    fn log(&mut self, log: usize, out: &mut impl Write) -> Result<(), Broken> {
        let path = &self.args.logs[log];
        let progress = progress(path, self.args.quiet || !io::stdout().is_terminal());
        let mut lines = open(path, &progress)?;
        let context = as_it_stands();
        let formats = self.formats(path);
        let before = self.totals.nginx_lines;
        self.traces.begin_log();
        let mut number = 0;
        while let Some(line) = lines.next_line()? {
            number += 1;
            self.totals.lines += 1;
            let kind = kind(line.text, &context, &formats);
            self.totals.nginx_lines += u64::from(!matches!(kind, Kind::Foreign));
            if number >= FOREIGN && self.totals.nginx_lines == before {
                return Err(not_nginx(&lines, &formats).into());
            }
            match kind {
                Kind::Foreign | Kind::Other => self.other(line.text, out)?,
                Kind::Upstream(upstream) => {
                    let (parsed, said) = *upstream;
                    let answer = explain(&mut self.traces, &parsed, &said)?;
                    self.totals.add(log, number, &answer);
                    if self.args.json {
                        writeln!(out, "{}", json::line(&self.names[log], number, &answer))?;
                    } else if !self.args.quiet {
                        let text = text::annotation(&answer, self.args.evidence, &mut self.told, &self.look);
                        annotated(out, line.text, &text)?;
                    }
                }
                Kind::Request(format, access) => {
                    self.totals.requests += 1;
                    let request = explain_request(&mut self.traces, &access)?;
                    if !matches!(request, Request::Sound) {
                        self.totals.meet(&formats[format]);
                    }
                    let answer = match request {
                        Request::Failed(answer) => answer,
                        Request::Elsewhere | Request::Sound => {
                            self.totals.elsewhere += u64::from(matches!(request, Request::Elsewhere));
                            self.other(line.text, out)?;
                            continue;
                        }
                    };
                    self.totals.add_request(log, number, &answer);
                    if self.args.json {
                        writeln!(
                            out,
                            "{}",
                            json::request(&self.names[log], number, &access, &answer)
                        )?;
                    } else if !self.args.quiet {
                        let (evidence, told) = (self.args.evidence, &mut self.told);
                        let text = text::request(&access, &answer, evidence, told, &self.look);
                        annotated(out, line.text, &text)?;
                    }
                }
            }
        }
        progress.finish_and_clear();
        if number > 0 && self.totals.nginx_lines == before {
            return Err(not_nginx(&lines, &formats).into());
        }
        if lines.is_cut() {
            log::warn!("{} ends in the middle: it is not whole", lines.file());
        }
        Ok(())
    }
}

fn access_log(log: &schema::AccessLog) -> AccessLog {
    AccessLog {
        path: log.path.clone(),
        name: log.name.clone(),
        format: log.format.clone().unwrap_or_default(),
        escape: Escape::named(&log.escape).unwrap_or_default(),
    }
}

/// A line with what is said under it.
fn annotated(out: &mut impl Write, line: &[u8], text: &str) -> io::Result<()> {
    out.write_all(line)?;
    out.write_all(b"\n")?;
    out.write_all(text.as_bytes())
}

fn not_nginx(lines: &LineReader, formats: &[Format]) -> Unreadable {
    let names: Vec<String> = formats.iter().map(ToString::to_string).collect();
    lines.unreadable(format!(
        "is no log of nginx: none of its lines is as an error log has them (2026/01/31 12:00:00 [error] …), nor an access log \
         in the format {}; --log-format gives another",
        names.join(" or ")
    ))
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::fd::AsRawFd as _,
    };

    use super::*;

    #[test]
    fn nothing_is_taken_from_a_pipe_to_see_what_it_is() {
        const LINES: &str =
            "127.0.0.1 - - [29/Nov/2026:16:00:00 +0000] \"GET / HTTP/1.1\" 502 157 \"-\" \"-\"\n";
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(LINES.as_bytes()).unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert!(may_have_requests(Path::new(&path)).unwrap());
        let mut left = String::new();
        reader.read_to_string(&mut left).unwrap();
        assert_eq!(left, LINES);
    }
}
