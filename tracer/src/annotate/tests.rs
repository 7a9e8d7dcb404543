//! Lines and traces beside each other: which attempt a line is said to be, and what is said where none is sure.

use std::{fmt::Write as _, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

mod requests;

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
        let mut traces = Traces::open(traces, self.zone.clone(), false).unwrap();
        let context = as_it_stands();
        log.lines()
            .filter_map(|line| match kind(line.as_bytes(), &context, &[]) {
                Kind::Upstream(upstream) => Some(*upstream),
                Kind::Foreign | Kind::Other | Kind::Request(..) => None,
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
            lost.clone(),
            summary("2026-11-22T13:00:00Z")
        ]),
        ["- (lost)"]
    );
    // What is there may be another's where something is missing.
    assert_eq!(
        of(&[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "no-listener", None),
            lost,
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
    let mut traces = Traces::open(&[trace], bench.zone.clone(), false).unwrap();
    let mut most = 0;
    for (text, number) in log.iter().zip(1..) {
        let Kind::Upstream(upstream) = kind(text.as_bytes(), &as_it_stands(), &[]) else {
            panic!("{text} is about an upstream");
        };
        let answer = explain(&mut traces, &upstream.0, &upstream.1).unwrap();
        assert_eq!(answer.attempt.map(|attempt| attempt.number), Some(number));
        most = most.max(traces.held());
    }
    assert!(most < 1_200, "{most} were held at once");
    assert_eq!(traces.unclaimed(), Some(0));
}

#[test]
fn the_trace_that_holds_the_line_has_the_attempt_however_well_another_fits() {
    let bench = Bench::new();
    let stamp = "2026/11/22 12:04:31";
    let text = kept(stamp, 1);
    let one = bench.trace(
        "one.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "no-listener", None),
        ],
    );
    let mut retry = refused(
        2,
        "2026-11-22T12:04:31.1Z",
        "firewall-reset",
        Some(("2026-11-22T12:04:31Z", &text)),
    );
    retry["retry"] = json!({"of": 1, "n": 2});
    let two = bench.trace("two.jsonl", &[session("2026-11-22T12:00:01Z"), retry]);
    // Nor is the first try one of the other trace.
    assert_eq!(bench.annotate(&[one, two], &line(stamp, 1)), ["2 firewall-reset"]);
}

#[test]
fn the_same_line_of_two_containers_is_nobodys() {
    let bench = Bench::new();
    let stamp = "2026/11/22 12:04:31";
    let text = kept(stamp, 1);
    let log = Some(("2026-11-22T12:04:31Z", text.as_str()));
    let mut other = refused(2, "2026-11-22T12:04:31.2Z", "firewall-reset", log);
    other["worker"] = json!(5811);
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:31.1Z", "no-listener", log),
            other,
        ],
    );
    assert_eq!(
        bench.annotate(&[trace], &line(stamp, 1)),
        ["- (ambiguous) [\"firewall-reset\", \"no-listener\"]"]
    );
}

#[test]
fn another_phase_worker_or_upstream_is_another_attempt() {
    let bench = Bench::new();
    let of = |attempt: Value, line: &str| {
        let trace = bench.trace("trace.jsonl", &[session("2026-11-22T12:00:00Z"), attempt]);
        bench.annotate(&[trace], line)
    };
    let at = "2026-11-22T12:04:31.1Z";
    let timed_out = |says: Option<&str>| {
        let mut attempt = refused(1, at, "syn-unanswered", None);
        attempt["outcome"] = json!("timed-out");
        attempt["errno"] = json!("ETIMEDOUT");
        attempt["nginx_says"] = json!(says);
        attempt
    };
    let stamp = "2026/11/22 12:04:31";
    let connecting = line(stamp, 1).replace(
        "connect() failed (111: Connection refused)",
        "upstream timed out (110: Connection timed out)",
    );
    let reading = connecting.replace(
        "while connecting to upstream",
        "while reading response header from upstream",
    );
    let says = "upstream timed out (110: Connection timed out) while connecting to upstream";
    for says in [Some(says), None] {
        assert_eq!(of(timed_out(says), &connecting), ["1 syn-unanswered"]);
        assert_eq!(of(timed_out(says), &reading), ["- (no-attempt)"]);
    }
    // The pid of the line is a worker's of the trace, only not of this attempt's.
    let mut of_other = refused(1, at, "no-listener", None);
    of_other["worker"] = json!(812);
    let mut its = refused(2, "2026-11-22T12:00:31Z", "no-listener", None);
    its["worker"] = json!(811);
    let trace = bench.trace("trace.jsonl", &[session("2026-11-22T12:00:00Z"), its, of_other]);
    assert_eq!(bench.annotate(&[trace], &line(stamp, 1)), ["- (no-attempt)"]);
    let mut none_alive = refused(1, at, "no-live-upstreams", None);
    none_alive["outcome"] = json!("no-live-upstreams");
    none_alive["peer"] = json!(null);
    none_alive["upstream"] = json!("app");
    none_alive["nginx_says"] = json!(null);
    let no_live = |upstream: &str| {
        line(stamp, 1)
            .replace("connect() failed (111: Connection refused)", "no live upstreams")
            .replace("http://127.0.0.1:3000/", &format!("http://{upstream}/"))
    };
    assert_eq!(of(none_alive.clone(), &no_live("app")), ["1 no-live-upstreams"]);
    assert_eq!(of(none_alive, &no_live("api")), ["- (no-attempt)"]);
}

#[test]
fn failures_whose_line_is_elsewhere_are_counted_for_the_time_of_the_log() {
    let bench = Bench::new();
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-11-22T12:00:00Z"),
            refused(1, "2026-11-22T12:04:00Z", "no-listener", None),
            refused(2, "2026-11-22T12:10:00Z", "no-listener", None),
            refused(3, "2026-11-22T12:15:00Z", "no-listener", None),
            refused(4, "2026-11-22T12:20:00Z", "no-listener", None),
            refused(5, "2026-11-22T12:30:00Z", "no-listener", None),
        ],
    );
    let mut traces = Traces::open(&[trace], bench.zone.clone(), false).unwrap();
    for stamp in ["2026/11/22 12:10:00", "2026/11/22 12:20:00"] {
        let Kind::Upstream(upstream) = kind(line(stamp, 1).as_bytes(), &as_it_stands(), &[]) else {
            panic!("it is about an upstream");
        };
        assert!(
            explain(&mut traces, &upstream.0, &upstream.1)
                .unwrap()
                .attempt
                .is_some()
        );
    }
    assert_eq!(traces.unclaimed(), Some(1), "the third alone");
}

#[test]
fn lines_of_several_zones_in_one_trace_want_to_be_told_apart() {
    let mut bench = Bench::new();
    bench.zone = None;
    let logged = |number: u64, minute: u32, hour: u32| {
        let text = kept(&format!("2026/11/22 {hour}:{minute:02}:00"), 1);
        let at = format!("2026-11-22T12:{minute:02}:00Z");
        refused(number, &at, "no-listener", Some((at.as_str(), text.as_str())))
    };
    let records = [
        session("2026-11-22T12:00:00Z"),
        logged(1, 1, 12),
        logged(2, 2, 13),
        logged(3, 3, 12),
    ];
    let trace = bench.trace("trace.jsonl", &records);
    let mut traces = Traces::open(&[trace], None, false).unwrap();
    let Kind::Upstream(upstream) = kind(line("2026/11/22 12:03:00", 1).as_bytes(), &as_it_stands(), &[])
    else {
        panic!("it is about an upstream");
    };
    let error = explain(&mut traces, &upstream.0, &upstream.1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("several time zones (UTC+00, UTC+01)"), "{error}");
}

/// The log's zone is not the reader's, and what the trace holds tells when its summer time ended.
#[test]
fn the_end_of_summer_time_is_learned_from_the_trace() {
    let mut bench = Bench::new();
    bench.zone = None;
    let logged = |number: u64, local: &str, utc: &str, connection: u32| {
        let text = kept(&format!("2026/10/25 {local}"), connection);
        let at = format!("2026-10-25T{utc}Z");
        refused(number, &at, "no-listener", Some((at.as_str(), text.as_str())))
    };
    // Nepal has no summer time and a zone like nobody's; an hour apart stands for one that has.
    let trace = bench.trace(
        "trace.jsonl",
        &[
            session("2026-10-24T18:00:00Z"),
            logged(1, "02:30:00", "20:45:00", 1),
            logged(2, "02:50:00", "21:05:00", 2),
            logged(3, "02:30:00", "21:45:00", 3),
            logged(4, "03:10:00", "22:25:00", 4),
            summary("2026-10-25T23:00:00Z"),
        ],
    );
    let log: Vec<String> = [("02:30:00", 1), ("02:50:00", 2), ("02:30:00", 3), ("03:10:00", 4)]
        .map(|(time, connection)| line(&format!("2026/10/25 {time}"), connection))
        .to_vec();
    assert_eq!(
        bench.annotate(&[trace], &log.join("\n")),
        ["1 no-listener", "2 no-listener", "3 no-listener", "4 no-listener"]
    );
}
