//! Logs and traces of any size are annotated in the same memory: made from recordings of real faults, repeated with their
//! times shifted until log and trace have the size that is wanted. 64 MB each; 1 GB with `TRACER_SUITE=full`.
//!
//! Every repetition is explained as the first, and the progress that is shown goes to a terminal only.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp, civil};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tracer::lines::write::LineWriter;
use xtask::traced::{RECORDING, of_type, replay};

use crate::ground::{is_full, kept, plain, root, tracer};

/// Of plain HTTP, with what nginx logs of it.
const RECORDINGS: [&str; 6] = [
    "no-listener",
    "listener-died",
    "backend-died",
    "closed-without-response",
    "keepalive-race-retried",
    "backend-slow",
];

/// What annotating may take at its highest, in bytes: the program, both files' buffers, and the failures of some minutes.
const BOUND: u64 = 64 << 20;

/// The first repetition begins then, and after each some time passes in which nothing is traced.
const BEGIN: &str = "2026-03-01T00:00:00Z";
const PAUSE_S: i64 = 2;

/// As the lab's nginx writes its access log.
const FORMAT: &str =
    "$msec $pid $connection $status $request_method $uri $upstream_addr $upstream_status $request_time";

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![plain("large_logs/are_annotated_in_bounded_memory", || {
        let megabytes: u64 = if is_full() { 1024 } else { 64 };
        large(megabytes << 20)
    })]
}

/// What is repeated: records and lines of some seconds, and what they are said to be.
struct Block {
    session: Value,
    records: Vec<Value>,
    /// When each line was written, in seconds from the beginning, and its text behind the stamp.
    errors: Vec<(i64, String)>,
    /// When each request ended, in milliseconds from the beginning, and its line behind that.
    requests: Vec<(i64, String)>,
    span_s: i64,
    /// The error log's distance from UTC.
    offset_s: i64,
}

impl Block {
    fn read(folder: &Path) -> Result<Self> {
        let mut block = Self {
            session: Value::Null,
            records: Vec::new(),
            errors: Vec::new(),
            requests: Vec::new(),
            span_s: 0,
            offset_s: 0,
        };
        for name in RECORDINGS {
            block
                .add(name, folder)
                .with_context(|| format!("the recording {name}"))?;
        }
        Ok(block)
    }

    /// Adds a recording behind those that are there.
    fn add(&mut self, name: &str, folder: &Path) -> Result<()> {
        let recorded = root().join("tests/recordings").join(name);
        let records = replay(
            &tracer(),
            &recorded.join(RECORDING),
            &folder.join(format!("{name}.jsonl")),
        )?;
        let session = of_type(&records, "session").next().context("no session")?;
        let started = second(session["started"].as_str().context("no beginning")?)?;
        let shift = BEGIN.parse::<Timestamp>()?.as_second() + self.span_s - started;
        let first = u64::try_from(self.records.len())?;
        let attempts: Vec<Value> = of_type(&records, "attempt")
            .map(|attempt| shifted(attempt, shift, first))
            .collect();
        self.requests
            .extend(requests(&attempts, BEGIN.parse::<Timestamp>()?.as_millisecond())?);
        let offset = attempts.iter().find_map(|attempt| {
            let line = attempt["log"]["line"].as_str()?;
            Some(local(line)?.as_second() - second(attempt["log"]["time"].as_str()?).ok()?)
        });
        self.offset_s = offset.unwrap_or(0);
        for line in fs::read_to_string(recorded.join("error.log"))?.lines() {
            let Some(written) = local(line) else {
                continue;
            };
            let at = written.as_second() - offset.unwrap_or(0) + shift;
            self.errors.push((
                at - BEGIN.parse::<Timestamp>()?.as_second(),
                line[19..].to_owned(),
            ));
        }
        let ended = records
            .iter()
            .filter_map(|record| second(record["time"].as_str()?).ok())
            .max();
        self.span_s += ended.unwrap_or(started) - started + PAUSE_S;
        // All of one session: the recordings' own clocks are told by their sessions alone.
        self.session = session.clone();
        self.session["started"] = json!(BEGIN);
        self.session["config"]["access_logs"] = json!([{"path": "/var/log/nginx/access.log", "name": "lab", "format": FORMAT,
            "escape": "default"}]);
        self.records.extend(attempts);
        Ok(())
    }
}

fn second(time: &str) -> Result<i64> {
    Ok(time.parse::<Timestamp>()?.as_second())
}

/// The stamp of an error log's line, as if it were UTC.
fn local(line: &str) -> Option<Timestamp> {
    let stamp = civil::DateTime::strptime("%Y/%m/%d %H:%M:%S", line.get(..19)?).ok()?;
    jiff::tz::Offset::UTC.to_timestamp(stamp).ok()
}

fn stamp(local_s: i64) -> Result<String> {
    Ok(Timestamp::from_second(local_s)?
        .strftime("%Y/%m/%d %H:%M:%S")
        .to_string())
}

/// A record so many seconds later, its number so much higher.
fn shifted(record: &Value, by_s: i64, by_number: u64) -> Value {
    fn times(value: &mut Value, by: SignedDuration) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if name == "time" => {
                            if let Ok(time) = text.parse::<Timestamp>() {
                                *text = format!("{:.9}", time + by);
                            }
                        }
                        Value::String(text) if name == "line" => {
                            if let Some(written) = local(text) {
                                let later = (written + by).strftime("%Y/%m/%d %H:%M:%S");
                                text.replace_range(..19, &later.to_string());
                            }
                        }
                        other => times(other, by),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| times(value, by)),
            _ => {}
        }
    }
    let mut record = record.clone();
    times(&mut record, SignedDuration::from_secs(by_s));
    for pointer in ["/number", "/retry/of"] {
        if let Some(number) = record.pointer_mut(pointer)
            && let Some(known) = number.as_u64()
        {
            *number = json!(known + by_number);
        }
    }
    record
}

/// The lines of an access log that tell of these attempts, with when their requests ended in milliseconds from `begin_ms`.
fn requests(attempts: &[Value], begin_ms: i64) -> Result<Vec<(i64, String)>> {
    let mut next: BTreeMap<u64, &Value> = BTreeMap::new();
    for attempt in attempts {
        if let Some(of) = attempt["retry"]["of"].as_u64() {
            next.insert(of, attempt);
        }
    }
    let mut lines = Vec::new();
    for attempt in attempts.iter().filter(|attempt| attempt["retry"].is_null()) {
        let Some(path) = attempt["request"]["path"].as_str() else {
            continue;
        };
        let mut chain = vec![attempt];
        while let Some(later) = chain.last().and_then(|last| next.get(&last["number"].as_u64()?)) {
            chain.push(later);
        }
        let of =
            |each: fn(&Value) -> String| chain.iter().map(|one| each(one)).collect::<Vec<_>>().join(", ");
        let peers = of(|one| {
            one["peer"]
                .as_str()
                .or(one["upstream"].as_str())
                .unwrap_or("-")
                .to_owned()
        });
        let statuses = of(|one| match one["outcome"].as_str() {
            Some("ok") => one["request"]["status"].as_u64().unwrap_or(200).to_string(),
            Some("timed-out") => "504".to_owned(),
            _ => "502".to_owned(),
        });
        let began = attempt["time"]
            .as_str()
            .context("no time")?
            .parse::<Timestamp>()?
            .as_millisecond();
        let last = chain.last().copied().unwrap_or(attempt);
        let took = i64::try_from(last["total_us"].as_u64().unwrap_or(0) / 1000)?;
        let ended = last["time"]
            .as_str()
            .context("no time")?
            .parse::<Timestamp>()?
            .as_millisecond()
            + took;
        let log = chain.iter().find_map(|one| one["log"]["line"].as_str());
        let connection = log
            .and_then(|line| line.split_once(": *"))
            .and_then(|(_, rest)| rest.split(' ').next())
            .unwrap_or("1");
        let status = statuses.rsplit(", ").next().unwrap_or("200");
        let (took, worker, method) = (ended - began, &attempt["worker"], &attempt["request"]["method"]);
        let method = method.as_str().unwrap_or("GET");
        let rest = format!(
            " {worker} {connection} {status} {method} {path} {peers} {statuses} {}.{:03}",
            took / 1000,
            took % 1000
        );
        lines.push((ended - begin_ms, rest));
    }
    lines.sort();
    Ok(lines)
}

/// Files of one repetition after the other, and how many lines and failures they hold.
struct Made {
    trace: PathBuf,
    packed: PathBuf,
    errors: PathBuf,
    requests: PathBuf,
    n_blocks: u64,
    n_error_lines: u64,
    n_request_lines: u64,
}

/// Makes them, of at least this size each.
fn make(block: &Block, folder: &Path, size: u64) -> Result<Made> {
    let mut made = Made {
        trace: folder.join("trace.jsonl"),
        packed: folder.join("trace.jsonl.zst"),
        errors: folder.join("error.log"),
        requests: folder.join("access.log"),
        n_blocks: 0,
        n_error_lines: 0,
        n_request_lines: 0,
    };
    let begin = BEGIN.parse::<Timestamp>()?;
    let mut trace = LineWriter::create(&made.trace)?;
    let mut packed = LineWriter::create(&made.packed)?;
    let mut errors = BufWriter::new(File::create(&made.errors)?);
    let mut requests = BufWriter::new(File::create(&made.requests)?);
    let mut sizes = [0; 3];
    let mut push = |record: &Value| -> Result<u64> {
        let text = record.to_string();
        trace.push(text.as_bytes())?;
        packed.push(text.as_bytes())?;
        Ok(text.len() as u64 + 1)
    };
    sizes[0] += push(&block.session)?;
    while sizes.iter().any(|made| *made < size) {
        let by_s = i64::try_from(made.n_blocks)? * block.span_s;
        let by_number = made.n_blocks * u64::try_from(block.records.len())?;
        for record in &block.records {
            sizes[0] += push(&shifted(record, by_s, by_number))?;
        }
        // Lines that are about no failure fill what the traces are larger by.
        let wanted = sizes[0];
        let mut last = begin.as_second() + by_s + block.offset_s;
        for (after, text) in &block.errors {
            last = begin.as_second() + by_s + after + block.offset_s;
            let line = format!("{}{text}", stamp(last)?);
            writeln!(errors, "{line}")?;
            sizes[1] += line.len() as u64 + 1;
            made.n_error_lines += 1;
        }
        while sizes[1] < wanted {
            let line = format!(
                "{} [error] 811#811: *{} open() \"/srv/www/favicon.ico\" failed (2: No such file or directory), client: \
                 192.0.2.7, server: shop.example, request: \"GET /favicon.ico HTTP/1.1\", host: \"shop.example\"",
                stamp(last)?,
                made.n_error_lines
            );
            writeln!(errors, "{line}")?;
            sizes[1] += line.len() as u64 + 1;
            made.n_error_lines += 1;
        }
        let mut ended = 0;
        for (after, rest) in &block.requests {
            ended = begin.as_millisecond() + by_s * 1000 + after;
            let line = format!("{}.{:03}{rest}", ended / 1000, ended % 1000);
            writeln!(requests, "{line}")?;
            sizes[2] += line.len() as u64 + 1;
            made.n_request_lines += 1;
        }
        while sizes[2] < wanted {
            let line = format!(
                "{}.{:03} 811 {} 200 GET /asset/{} - - 0.000",
                ended / 1000,
                ended % 1000,
                made.n_request_lines,
                made.n_request_lines
            );
            writeln!(requests, "{line}")?;
            sizes[2] += line.len() as u64 + 1;
            made.n_request_lines += 1;
        }
        made.n_blocks += 1;
    }
    let ended = begin + SignedDuration::from_secs(i64::try_from(made.n_blocks)? * block.span_s);
    push(&json!({"type": "summary", "time": ended.to_string(), "complete": true}))?;
    trace.flush()?;
    packed.flush()?;
    errors.flush()?;
    requests.flush()?;
    Ok(made)
}

/// What annotating said at the end, its highest memory in bytes, and what it said on stderr.
fn annotate(log: &Path, trace: &Path) -> Result<(Value, u64, String)> {
    let said = log.with_extension("stderr");
    let mut child = Command::new(tracer())
        .arg("annotate")
        .arg(log)
        .arg("--trace")
        .arg(trace)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&said)?)
        .spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut out = BufReader::new(child.stdout.take().context("no stdout")?);
    let (mut line, mut last, mut peak) = (String::new(), String::new(), 0);
    let mut n_lines: u64 = 0;
    // What it has at its highest is asked again and again: when it has ended, nobody knows it any more.
    while out.read_line(&mut line)? > 0 {
        if n_lines.is_multiple_of(64) {
            let status = fs::read_to_string(&status)?;
            let highest = status.lines().find_map(|line| {
                let kilobytes = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
                kilobytes.parse::<u64>().ok()
            });
            peak = peak.max(highest.unwrap_or(0) << 10);
        }
        n_lines += 1;
        last.clone_from(&line);
        line.clear();
    }
    ensure!(child.wait()?.success(), "{}", fs::read_to_string(&said)?);
    Ok((serde_json::from_str(&last)?, peak, fs::read_to_string(&said)?))
}

fn large(size: u64) -> Result<()> {
    let folder = kept("large-logs");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let (one, all) = (folder.join("one"), folder.join("all"));
    fs::create_dir_all(&one)?;
    fs::create_dir_all(&all)?;
    let block = Block::read(&folder)?;
    let single = make(&block, &one, 1)?;
    ensure!(single.n_blocks == 1, "{} blocks", single.n_blocks);
    let made = make(&block, &all, size)?;
    let runs = [
        (&single.errors, &made.errors, made.n_error_lines, &made.trace),
        (&single.errors, &made.errors, made.n_error_lines, &made.packed),
        (
            &single.requests,
            &made.requests,
            made.n_request_lines,
            &made.trace,
        ),
        (
            &single.requests,
            &made.requests,
            made.n_request_lines,
            &made.packed,
        ),
    ];
    for (small, log, n_lines, trace) in runs {
        let (wanted, ..) = annotate(small, &single.trace)?;
        ensure!(
            wanted["explained"] == wanted["upstream_lines"] && wanted["explained"].as_u64() > Some(0),
            "of one repetition not all is explained: {wanted}"
        );
        let began = Instant::now();
        let (said, peak, stderr) = annotate(log, trace)?;
        println!(
            "{} ({} MB) beside {} ({} MB): {:.1} s, at most {:.1} MB",
            log.display(),
            fs::metadata(log)?.len() >> 20,
            trace.display(),
            fs::metadata(trace)?.len() >> 20,
            began.elapsed().as_secs_f64(),
            peak as f64 / f64::from(1 << 20)
        );
        ensure!(said["lines"] == n_lines, "{n_lines} lines: {said}");
        for of in ["upstream_lines", "explained", "failures_without_line"] {
            let each = wanted[of].as_u64().unwrap_or(0);
            ensure!(
                said[of] == each * made.n_blocks,
                "{of}: {} times {each}: {said}",
                made.n_blocks
            );
        }
        ensure!(peak > 0 && peak < BOUND, "{peak} bytes, of at most {BOUND}");
        ensure!(stderr.is_empty(), "progress without a terminal: {stderr}");
    }
    progress(&made)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// On a terminal it says how far it is, in one line, and takes that away at the end.
fn progress(made: &Made) -> Result<()> {
    let seen = made.errors.with_extension("terminal");
    let command = format!(
        "{} annotate --quiet {} --trace {} > {}",
        tracer().display(),
        made.errors.display(),
        made.packed.display(),
        made.errors.with_extension("said").display()
    );
    // util-linux's: it gives the command a terminal and notes what that shows.
    let status = Command::new("script")
        .args(["--quiet", "--return", "--command", &command])
        .arg(&seen)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("script")?;
    ensure!(status.success(), "{command} ended with {status}");
    let seen = fs::read_to_string(seen)?;
    let shown: Vec<&str> = seen
        .lines()
        .filter(|line| !line.starts_with("Script "))
        .flat_map(|line| line.split('\r'))
        .filter(|part| part.contains(" %), "))
        .collect();
    ensure!(
        shown
            .iter()
            .any(|part| part.contains("iB of ") && part.contains(" to go")),
        "no progress was shown: {seen:?}"
    );
    ensure!(
        seen.lines().filter(|line| line.contains(" %), ")).count() <= 1,
        "more than one line was shown: {seen:?}"
    );
    Ok(())
}
