//! Lines and traces beside each other: which attempt a line is said to be, and what is said where none is sure.

use std::{fmt::Write as _, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A folder with traces.
struct Bench {
    folder: TempDir,
    zone: Option<jiff::tz::TimeZone>,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            zone: Some(jiff::tz::TimeZone::UTC),
        }
    }

    fn trace(&self, name: &str, records: &[Value]) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut text = String::new();
        for record in records {
            writeln!(text, "{record}").unwrap();
        }
        std::fs::write(&path, text).unwrap();
        path
    }

    /// What is said of each line of the log, one short text each.
    fn annotate(&self, traces: &[PathBuf], log: &str) -> Vec<String> {
        let mut traces = Traces::open(traces, self.zone.clone()).unwrap();
        let context = as_it_stands();
        log.lines()
            .filter_map(|line| match kind(line.as_bytes(), &context) {
                Kind::Upstream(upstream) => Some(*upstream),
                Kind::Foreign | Kind::Other => None,
            })
            .map(|(parsed, said)| shown(&explain(&mut traces, &parsed, &said).unwrap()))
            .collect()
    }
}

fn shown(answer: &Answer) -> String {
    let cause = answer.attempt.as_ref().and_then(|attempt| {
        let cause = attempt.cause.as_ref()?;
        Some(format!("{} {}", attempt.number, cause.id))
    });
    let mut text = cause.unwrap_or_else(|| "-".to_owned());
    if answer.alike > 1 {
        text += &format!(" of {}", answer.alike);
    }
    if let Some(before) = &answer.before {
        text += &format!(" after {}", before.cause.as_deref().unwrap_or("unknown"));
    }
    if let Some(why_not) = &answer.why_not {
        text += &format!(" ({})", why_not.id());
        if let WhyNot::Ambiguous(causes) = why_not {
            text += &format!(" {causes:?}");
        }
    }
    text
}

/// The session line of a trace that began then.
fn session(started: &str) -> Value {
    json!({"type": "session", "schema": "tracer/1", "host": "web-1", "started": started, "part": 1, "options": {}})
}

fn summary(time: &str) -> Value {
    json!({"type": "summary", "time": time, "complete": true})
}

/// A refused attempt that ended then, with what the trace holds of nginx's line.
fn refused(number: u64, time: &str, cause: &str, log: Option<(&str, &str)>) -> Value {
    json!({
        "type": "attempt", "time": time, "worker": 4811, "number": number, "peer": "127.0.0.1:3000",
        "outcome": "refused", "phase": "connecting", "errno": "ECONNREFUSED", "total_us": 300,
        "nginx_says": "connect() failed (111: Connection refused) while connecting to upstream",
        "log": log.map(|(time, line)| json!({"time": time, "line": line})),
        "cause": {"id": cause, "confidence": "confirmed", "summary": "It is so.", "remedy": "Mend it."},
    })
}

/// nginx's line about a refusal, as it stands in its file.
fn line(stamp: &str, connection: u32) -> String {
    format!(
        "{stamp} [error] 811#811: *{connection} connect() failed (111: Connection refused) while connecting to upstream, \
         client: 10.0.0.9, server: , request: \"GET /a?token=1 HTTP/1.1\", upstream: \
         \"http://127.0.0.1:3000/a?token=1\", host: \"example.test\""
    )
}

/// The same line as a trace holds it.
fn kept(stamp: &str, connection: u32) -> String {
    line(stamp, connection).replace("?token=1", "")
}

#[test]
fn a_line_that_the_trace_holds_has_its_attempt() {
    let bench = Bench::new();
    let stamp = "2026/11/22 12:04:31";
    let (one, two) = (kept(stamp, 1), kept(stamp, 2));
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(
                1,
                "2026-11-22T12:04:31.1Z",
                "listener-died",
                Some(("2026-11-22T12:04:31Z", &two)),
            ),
            refused(
                2,
                "2026-11-22T12:04:31.2Z",
                "no-listener",
                Some(("2026-11-22T12:04:31Z", &one)),
            ),
            summary("2026-11-22T13:00:00Z"),
        ],
    );
    let log = [
        line(stamp, 1),
        line(stamp, 2),
        line(stamp, 3),
        "a foreign line".to_owned(),
    ]
    .join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        ["2 no-listener", "1 listener-died", "- (no-attempt)"]
    );
}

#[test]
fn one_line_is_one_attempt() {
    let bench = Bench::new();
    let stamp = "2026/11/22 12:04:31";
    let text = kept(stamp, 1);
    let log = Some(("2026-11-22T12:04:31Z", text.as_str()));
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "no-listener", log),
            refused(2, "2026-11-22T12:04:31.2Z", "no-listener", log),
        ],
    );
    let log = vec![line(stamp, 1); 3].join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        ["1 no-listener", "2 no-listener", "- (no-attempt)"]
    );
}

#[test]
fn without_lines_in_the_trace_only_what_is_sure_is_said() {
    let bench = Bench::new();
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "no-listener", None),
            refused(2, "2026-11-22T12:10:00.0Z", "no-listener", None),
            refused(3, "2026-11-22T12:10:00.5Z", "no-listener", None),
            refused(4, "2026-11-22T12:20:00.0Z", "no-listener", None),
            refused(5, "2026-11-22T12:20:01.0Z", "firewall-reset", None),
            summary("2026-11-22T13:00:00Z"),
        ],
    );
    let log = [
        line("2026/11/22 12:04:31", 1),
        line("2026/11/22 12:10:00", 2),
        line("2026/11/22 12:10:00", 3),
        line("2026/11/22 12:15:00", 4),
        line("2026/11/22 12:20:01", 5),
    ]
    .join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        [
            "1 no-listener",
            "2 no-listener of 2",
            "3 no-listener of 2",
            "- (no-attempt)",
            "- (ambiguous) [\"firewall-reset\", \"no-listener\"]",
        ]
    );
}

#[test]
fn another_errno_or_peer_is_another_attempt() {
    let bench = Bench::new();
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "no-listener", None),
            summary("2026-11-22T13:00:00Z"),
        ],
    );
    let stamp = "2026/11/22 12:04:31";
    let log = [
        line(stamp, 1).replace("111: Connection refused", "113: No route to host"),
        line(stamp, 1).replace("127.0.0.1:3000", "127.0.0.1:3001"),
    ]
    .join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        ["- (no-attempt)", "- (no-attempt)"]
    );
}

#[test]
fn lines_outside_the_traces_are_said_to_be() {
    let bench = Bench::new();
    let morning = bench.trace(
        "morning.jsonl",
        &[session("2026-11-22T06:00:00Z"), summary("2026-11-22T07:00:00Z")],
    );
    let noon = bench.trace(
        "noon.jsonl",
        &[session("2026-11-22T12:00:00Z"), summary("2026-11-22T13:00:00Z")],
    );
    let log = [
        line("2026/11/22 05:00:00", 1),
        line("2026/11/22 06:30:00", 1),
        line("2026/11/22 09:00:00", 1),
        line("2026/11/22 12:30:00", 1),
        line("2026/11/22 14:00:00", 1),
    ]
    .join("\n");
    assert_eq!(
        bench.annotate(&[noon, morning], &log),
        [
            "- (before-traces)",
            "- (no-attempt)",
            "- (between-traces)",
            "- (no-attempt)",
            "- (after-traces)",
        ]
    );
}

#[test]
fn what_the_trace_could_not_see_is_the_reason() {
    let bench = Bench::new();
    let mut filtered = session("2026-11-22T12:00:00Z");
    filtered["options"] = json!({"upstream": ["api"]});
    let lost = json!({"type": "lost", "time": "2026-11-22T12:04:33Z", "class": "ring", "count": 7});
    let of = |records: &[Value]| {
        let trace = bench.trace("trace.jsonl", records);
        bench.annotate(&[trace], &line("2026/11/22 12:04:31", 1))
    };
    assert_eq!(of(&[filtered, summary("2026-11-22T13:00:00Z")]), ["- (filtered)"]);
    assert_eq!(
        of(&[
            session("2026-11-22T12:00:00Z"),
            lost,
            summary("2026-11-22T13:00:00Z")
        ]),
        ["- (lost)"]
    );
    let unknown = refused(1, "2026-11-22T12:04:31.1Z", "unknown", None);
    assert_eq!(
        of(&[session("2026-11-22T12:00:00Z"), unknown]),
        ["1 unknown (unknown-cause)"]
    );
}

#[test]
fn a_retry_says_what_was_before() {
    let bench = Bench::new();
    let stamp = "2026/11/22 12:04:31";
    let (one, two) = (kept(stamp, 1), kept(stamp, 1).replace(":3000/", ":3001/"));
    let at = "2026-11-22T12:04:31Z";
    let mut second = refused(2, "2026-11-22T12:04:31.2Z", "no-listener", Some((at, &two)));
    second["peer"] = json!("127.0.0.1:3001");
    second["retry"] = json!({"of": 1, "n": 2});
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "listener-died", Some((at, &one))),
            second,
        ],
    );
    let log = [line(stamp, 1), line(stamp, 1).replace(":3000/", ":3001/")].join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        ["1 listener-died", "2 no-listener after listener-died"]
    );
}

#[test]
fn the_zone_of_the_log_is_learned_from_the_trace() {
    let mut bench = Bench::new();
    bench.zone = None;
    let stamp = "2026/11/22 17:34:31";
    let text = kept(stamp, 1);
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:02:00.0Z", "no-listener", None),
            refused(
                2,
                "2026-11-22T12:04:31.1Z",
                "no-listener",
                Some(("2026-11-22T12:04:31Z", &text)),
            ),
            summary("2026-11-22T13:00:00Z"),
        ],
    );
    let log = [
        line("2026/11/22 17:32:00", 7),
        line(stamp, 1),
        line("2026/11/22 12:02:00", 7),
    ]
    .join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        ["1 no-listener", "2 no-listener", "- (before-traces)"]
    );
}

/// In Central Europe 02:30 comes twice on the last Sunday of October, and not at all on that of March.
#[test]
fn the_hour_that_comes_twice_is_told_apart_by_what_stands_before() {
    let mut bench = Bench::new();
    bench.zone = Some(jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap());
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-10-24T22:00:00Z"),
            refused(1, "2026-10-25T00:30:00Z", "no-listener", None),
            refused(2, "2026-10-25T00:50:00Z", "no-listener", None),
            refused(3, "2026-10-25T01:30:00Z", "listener-died", None),
            refused(4, "2026-10-25T02:10:00Z", "no-listener", None),
            summary("2026-10-25T04:00:00Z"),
        ],
    );
    let log =
        ["02:30:00", "02:50:00", "02:30:00", "03:10:00"].map(|time| line(&format!("2026/10/25 {time}"), 1));
    assert_eq!(
        bench.annotate(std::slice::from_ref(&trace), &log.join("\n")),
        [
            "1 no-listener",
            "2 no-listener",
            "3 listener-died",
            "4 no-listener"
        ]
    );
    assert_eq!(
        bench.annotate(&[trace], &line("2026/03/29 02:30:00", 1)),
        ["- (no-time)"]
    );
}

#[test]
fn logs_may_come_in_any_order() {
    let bench = Bench::new();
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:00Z", "no-listener", None),
            refused(2, "2026-11-22T12:34:00Z", "listener-died", None),
            summary("2026-11-22T13:00:00Z"),
        ],
    );
    let log = [line("2026/11/22 12:34:00", 1), line("2026/11/22 12:04:00", 1)].join("\n");
    assert_eq!(
        bench.annotate(&[trace], &log),
        ["2 listener-died", "1 no-listener"]
    );
}

#[test]
fn a_rotated_trace_is_one_in_whatever_order_its_files_are_named() {
    let bench = Bench::new();
    let mut second = session("2026-11-22T12:00:00Z");
    second["part"] = json!(2);
    let one = bench.trace(
        "one.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:00Z", "no-listener", None),
        ],
    );
    let two = bench.trace(
        "two.jsonl",
        &[
            second,
            refused(2, "2026-11-22T12:34:00Z", "listener-died", None),
            summary("2026-11-22T13:00:00Z"),
        ],
    );
    let log = [line("2026/11/22 12:04:00", 1), line("2026/11/22 12:34:00", 1)].join("\n");
    assert_eq!(
        bench.annotate(&[two, one], &log),
        ["1 no-listener", "2 listener-died"]
    );
}

#[test]
fn a_long_trace_is_held_in_part() {
    let bench = Bench::new();
    let mut records = vec![session("2026-11-22T00:00:00Z")];
    let mut log = Vec::new();
    for number in 0..20_000u64 {
        let (hour, minute, second) = (number / 3600, number / 60 % 60, number % 60);
        let time = format!("2026-11-22T{hour:02}:{minute:02}:{second:02}.5Z");
        records.push(refused(number + 1, &time, "no-listener", None));
        log.push(line(&format!("2026/11/22 {hour:02}:{minute:02}:{second:02}"), 1));
    }
    let trace = bench.trace("trace.jsonl", &records);
    let mut traces = Traces::open(&[trace], bench.zone.clone()).unwrap();
    let mut most = 0;
    for (text, number) in log.iter().zip(1..) {
        let Kind::Upstream(upstream) = kind(text.as_bytes(), &as_it_stands()) else {
            panic!("{text} is about an upstream");
        };
        let answer = explain(&mut traces, &upstream.0, &upstream.1).unwrap();
        assert_eq!(answer.attempt.map(|attempt| attempt.number), Some(number));
        most = most.max(traces.held());
    }
    assert!(most < 1_100, "{most} were held at once");
    assert_eq!(traces.unclaimed(), 0);
}
