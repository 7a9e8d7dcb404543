//! Lines of access logs and traces beside each other.

use super::*;

/// What the tests' nginx notes of each request.
const FORMAT: &str =
    "$msec $request_time $pid $connection $status \"$request\" $upstream_addr $upstream_status";
/// The same without what tells requests apart that are alike.
const PLAIN: &str = "$msec $request_time $status \"$request\" $upstream_addr $upstream_status";

/// 2026-11-22T12:04:31Z.
const SECOND: i64 = 1_795_349_071;

/// What is said of each line, one short text each; where nothing is said, `.`.
fn said(format: &str, records: &[Value], log: &str) -> Vec<String> {
    let bench = Bench::new();
    let mut all = vec![session("2026-11-22T12:00:00Z")];
    all.extend(records.iter().cloned());
    all.push(summary("2026-11-22T13:00:00Z"));
    let trace = bench.trace("trace.jsonl", &all);
    let mut traces = Traces::open(&[trace], None, true).unwrap();
    let formats = [Format::given(format)];
    log.lines()
        .map(|line| match kind(line.as_bytes(), &as_it_stands(), &formats) {
            Kind::Request(_, access) => of(&explain_request(&mut traces, &access).unwrap()),
            other => panic!("{line}: {other:?}"),
        })
        .collect()
}

fn of(request: &Request) -> String {
    let answer = match request {
        Request::Sound => return ".".to_owned(),
        Request::Elsewhere => return "elsewhere".to_owned(),
        Request::Failed(answer) => answer,
    };
    let each = |attempt: &Option<Rc<Attempt>>| match attempt {
        Some(attempt) => {
            let cause = attempt
                .cause
                .as_ref()
                .map_or("answered", |cause| cause.id.as_ref());
            format!("{} {cause}", attempt.number)
        }
        None => "answered".to_owned(),
    };
    let mut text = answer.chain.iter().map(each).collect::<Vec<_>>().join(", ");
    if answer.alike > 1 {
        text += &format!(" of {}", answer.alike);
    }
    if let Some(why_not) = &answer.why_not {
        text += &format!("({})", why_not.id());
        if let WhyNot::Ambiguous(causes) = why_not {
            text += &format!(" {causes:?}");
        }
    }
    text
}

/// An attempt at `peer` that began so many milliseconds after the second and took as many.
fn attempt(number: u64, peer: &str, (after, took): (i64, i64), outcome: &str, cause: Option<&str>) -> Value {
    let time = jiff::Timestamp::from_millisecond(SECOND * 1000 + after).unwrap();
    json!({
        "type": "attempt", "time": time.to_string(), "worker": 811, "number": number, "peer": peer, "upstream": "app",
        "upstreams": ["app"], "outcome": outcome, "phase": "connecting", "total_us": took * 1000,
        "request": {"method": "GET", "path": "/a"},
        "cause": cause.map(|id| json!({"id": id, "confidence": "confirmed", "summary": "So."})),
    })
}

/// With nginx's own line about it.
fn logged(mut attempt: Value, connection: u32, path: &str) -> Value {
    attempt["request"]["path"] = json!(path);
    attempt["log"] = json!({"time": "2026-11-22T12:04:31Z", "line": format!(
        "2026/11/22 12:04:31 [error] 811#811: *{connection} connect() failed (111: Connection refused) while connecting to \
         upstream, client: 10.0.0.9, server: , request: \"GET {path} HTTP/1.1\", upstream: \"http://1.1.1.1:1{path}\"")});
    attempt
}

/// A line that ended so many milliseconds after the second, in the first format.
fn line(after: i64, connection: u32, rest: &str) -> String {
    let at = SECOND * 1000 + after;
    let (seconds, millis) = (at / 1000, at % 1000);
    let (status, upstream) = rest.split_once(' ').unwrap();
    format!("{seconds}.{millis:03} 0.100 811 {connection} {status} \"GET /a?b=c HTTP/1.1\" {upstream}")
}

fn plain(after: i64, rest: &str) -> String {
    line(after, 1, rest).replace(" 811 1 ", " ")
}

#[test]
fn the_tries_of_a_request_are_its_attempts_in_their_order() {
    let refused = attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener"));
    let mut answered = attempt(2, "1.1.1.2:1", (11, 80), "ok", None);
    answered["retry"] = json!({"of": 1, "n": 2});
    answered["request"]["status"] = json!(200);
    let log = line(100, 7, "200 1.1.1.1:1, 1.1.1.2:1 502, 200");
    // The answer may be written before the failure whose cause takes its time.
    for records in [
        [refused.clone(), answered.clone()],
        [answered.clone(), refused.clone()],
    ] {
        assert_eq!(said(FORMAT, &records, &log), ["1 no-listener, 2 answered"]);
        // Once is enough.
        let twice = format!("{log}\n{log}");
        assert_eq!(said(FORMAT, &records, &twice)[1], "(no-attempt)");
    }
    let other = |log: &str| said(FORMAT, &[refused.clone(), answered.clone()], log)[0].clone();
    // Another order, a try more or fewer, another status.
    assert_eq!(
        other(&line(100, 7, "200 1.1.1.2:1, 1.1.1.1:1 502, 200")),
        "(no-attempt)"
    );
    assert_eq!(other(&line(100, 7, "502 1.1.1.1:1 502")), "(answered-unread)");
    assert_eq!(
        other(&line(100, 7, "200 1.1.1.1:1, 1.1.1.2:1, 1.1.1.3:1 502, 502, 200")),
        "(no-attempt)"
    );
    assert_eq!(
        other(&line(100, 7, "200 1.1.1.1:1, 1.1.1.2:1 504, 200")),
        "(no-attempt)"
    );
    // Another worker's, and another time.
    assert_eq!(
        other(&log.replace(" 811 ", " 812 ")),
        "1 no-listener, 2 answered",
        "812 is no worker of the trace"
    );
    assert_eq!(
        other(&line(5_000, 7, "200 1.1.1.1:1, 1.1.1.2:1 502, 200")),
        "(no-attempt)"
    );
}

#[test]
fn an_internal_redirect_goes_on_with_other_tries() {
    let records = [
        attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener")),
        attempt(2, "2.2.2.2:2", (12, 50), "timed-out", Some("backend-slow")),
    ];
    let log = line(100, 7, "504 1.1.1.1:1 : 2.2.2.2:2 502 : 504");
    assert_eq!(said(FORMAT, &records, &log), ["1 no-listener, 2 backend-slow"]);
    let log = line(100, 7, "200 1.1.1.1:1 : 3.3.3.3:3 502 : 200");
    assert_eq!(said(FORMAT, &records, &log), ["1 no-listener, answered"]);
}

#[test]
fn where_two_fit_equally_none_is_named() {
    let one = attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener"));
    let two = attempt(2, "1.1.1.1:1", (300, 1), "refused", Some("firewall-reset"));
    let log = [plain(100, "502 1.1.1.1:1 502"), plain(310, "502 1.1.1.1:1 502")].join("\n");
    let ambiguous = "(ambiguous) [\"firewall-reset\", \"no-listener\"]";
    assert_eq!(said(PLAIN, &[one.clone(), two], &log), [ambiguous, ambiguous]);
    // With the same cause it does not matter.
    let two = attempt(2, "1.1.1.1:1", (300, 1), "refused", Some("no-listener"));
    assert_eq!(
        said(PLAIN, &[one.clone(), two.clone()], &log),
        ["1 no-listener of 2", "2 no-listener of 2"]
    );
    // Of another upstream it does.
    let mut two = two;
    two["upstream"] = json!("other");
    assert_eq!(
        said(PLAIN, &[one, two], &log),
        ["(ambiguous) [\"no-listener\", \"no-listener\"]"; 2]
    );
}

#[test]
fn nginx_s_own_line_tells_the_connection_and_the_path() {
    let one = logged(
        attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener")),
        7,
        "/a",
    );
    let two = logged(
        attempt(2, "1.1.1.1:1", (12, 1), "refused", Some("firewall-reset")),
        8,
        "/a",
    );
    let three = logged(
        attempt(3, "1.1.1.1:1", (14, 1), "refused", Some("route-missing")),
        9,
        "/b",
    );
    let log = [
        line(100, 8, "502 1.1.1.1:1 502"),
        line(100, 7, "502 1.1.1.1:1 502"),
        line(100, 9, "502 1.1.1.1:1 502"),
    ]
    .join("\n");
    assert_eq!(
        said(FORMAT, &[one, two, three.clone()], &log),
        ["2 firewall-reset", "1 no-listener", "(answered-unread)"]
    );
    assert_eq!(
        said(PLAIN, &[three], &plain(100, "502 1.1.1.1:1 502")),
        ["(answered-unread)"]
    );
    // A subrequest's attempt is none of the request's own tries.
    let mut sub = logged(
        attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener")),
        7,
        "/a",
    );
    let line_of = sub["log"]["line"]
        .as_str()
        .unwrap()
        .replace(", upstream:", ", subrequest: \"/auth\", upstream:");
    sub["log"]["line"] = json!(line_of);
    assert_eq!(
        said(FORMAT, &[sub], &line(100, 7, "502 1.1.1.1:1 502")),
        ["(answered-unread)"]
    );
}

#[test]
fn a_session_of_stream_is_no_request() {
    let mut session = logged(
        attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener")),
        7,
        "/a",
    );
    session["request"] = Value::Null;
    let text = session["log"]["line"].as_str().unwrap();
    let text = text.replace(", request: \"GET /a HTTP/1.1\"", "");
    session["log"]["line"] = json!(text);
    let log = line(100, 7, "502 1.1.1.1:1 502");
    assert_eq!(said(FORMAT, &[session], &log), ["(answered-unread)"]);
}

#[test]
fn a_path_that_nginx_rewrote_is_no_objection_without_its_own_line() {
    let mut rewritten = attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener"));
    rewritten["request"]["path"] = json!("/inner");
    let log = plain(100, "502 1.1.1.1:1 502");
    assert_eq!(said(PLAIN, &[rewritten.clone()], &log), ["1 no-listener"]);
    // Whose path is the line's fits better.
    let same = attempt(2, "1.1.1.1:1", (20, 1), "refused", Some("firewall-reset"));
    assert_eq!(said(PLAIN, &[rewritten, same], &log), ["2 firewall-reset"]);
}

#[test]
fn a_body_cut_short_shows_only_where_no_success_fits_as_well() {
    let mut cut = attempt(1, "1.1.1.1:1", (10, 50), "closed", Some("backend-died"));
    cut["phase"] = json!("reading");
    let sound = attempt(2, "1.1.1.1:1", (20, 60), "ok", None);
    let log = line(100, 7, "200 1.1.1.1:1 200");
    assert_eq!(said(FORMAT, &[cut.clone()], &log), ["1 backend-died"]);
    assert_eq!(said(FORMAT, &[cut.clone(), sound.clone()], &log), ["."]);
    let elsewhere = attempt(2, "1.1.1.9:1", (20, 60), "ok", None);
    assert_eq!(said(FORMAT, &[cut.clone(), elsewhere], &log), ["1 backend-died"]);
    let cut = logged(cut, 7, "/a");
    assert_eq!(
        said(FORMAT, &[cut.clone(), sound.clone()], &log),
        ["1 backend-died"]
    );
    assert_eq!(
        said(PLAIN, &[cut, sound], &plain(100, "200 1.1.1.1:1 200")),
        ["."]
    );
}

#[test]
fn without_successes_in_the_trace_a_sound_line_stays_sound() {
    let mut cut = attempt(1, "1.1.1.1:1", (10, 50), "closed", Some("backend-died"));
    cut["phase"] = json!("reading");
    let mut begin = session("2026-11-22T12:00:00Z");
    begin["options"] = json!({"keep": "failures"});
    let bench = Bench::new();
    let trace = bench.trace("trace.jsonl", &[begin, cut, summary("2026-11-22T13:00:00Z")]);
    let mut traces = Traces::open(&[trace], None, true).unwrap();
    let access = Format::given(FORMAT)
        .parse(&line(100, 7, "200 1.1.1.1:1 200"))
        .unwrap();
    assert_eq!(of(&explain_request(&mut traces, &access).unwrap()), ".");
    assert_eq!(traces.unclaimed(), Some(1));
}

#[test]
fn a_format_without_addresses_needs_a_request_that_is_alone() {
    let one = attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener"));
    let two = attempt(2, "1.1.1.1:1", (900, 1), "refused", Some("no-listener"));
    let log = |status: u16| {
        format!("10.0.0.9 - - [22/Nov/2026:13:04:31 +0100] \"GET /a?x HTTP/1.1\" {status} 157 \"-\" \"curl\"")
    };
    let alone = std::slice::from_ref(&one);
    assert_eq!(said("combined", alone, &log(502)), ["1 no-listener"]);
    assert_eq!(said("combined", alone, &log(504)), ["(untold)"]);
    assert_eq!(said("combined", alone, &log(499)), ["(untold)"]);
    assert_eq!(said("combined", alone, &log(200)), ["."]);
    assert_eq!(said("combined", &[one.clone(), two], &log(502)), ["(alike)"]);
    let left = attempt(3, "1.1.1.1:1", (20, 1), "cancelled", Some("client-closed"));
    assert_eq!(said("combined", &[one, left], &log(499)), ["3 client-closed"]);
}

#[test]
fn what_no_upstream_did_is_told_apart() {
    let mut own = attempt(1, "1.1.1.1:1", (10, 1), "ok", None);
    own["request"]["status"] = json!(503);
    let mut none_alive = attempt(2, "x", (20, 0), "no-live-upstreams", Some("no-live-upstreams"));
    none_alive["peer"] = Value::Null;
    let mut unbound = logged(
        attempt(
            3,
            "1.1.1.1:1",
            (30, 0),
            "unreachable",
            Some("source-address-missing"),
        ),
        9,
        "/a",
    );
    unbound["nginx_says"] = json!("bind(10.99.0.1) failed (99: Cannot assign requested address)");
    let log = [
        line(100, 7, "503 1.1.1.1:1 503"),
        line(100, 8, "502 app 502"),
        line(100, 9, "500 - -"),
        line(100, 9, "503 - -"),
        line(100, 9, "200 - -"),
        line(100, 9, "404 - -"),
    ]
    .join("\n");
    assert_eq!(
        said(FORMAT, &[own, none_alive, unbound], &log),
        [
            "1 answered",
            "2 no-live-upstreams",
            "3 source-address-missing",
            "elsewhere",
            ".",
            "."
        ]
    );
}

#[test]
fn lost_records_make_a_match_doubtful_unless_the_connection_is_known() {
    let lost = json!({"type": "lost", "time": "2026-11-22T12:04:31.050Z", "class": "ring", "count": 3});
    let one = attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener"));
    let log = line(100, 7, "502 1.1.1.1:1 502");
    assert_eq!(said(FORMAT, &[one.clone(), lost.clone()], &log), ["(lost)"]);
    assert_eq!(
        said(FORMAT, &[logged(one, 7, "/a"), lost], &log),
        ["1 no-listener"]
    );
}

#[test]
fn an_unknown_cause_is_told_and_stays_open() {
    let one = attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("unknown"));
    assert_eq!(
        said(FORMAT, &[one], &line(100, 7, "502 1.1.1.1:1 502")),
        ["1 unknown(unknown-cause)"]
    );
}

#[test]
fn what_no_line_tells_of_is_counted_at_the_end() {
    let records = [
        session("2026-11-22T12:00:00Z"),
        attempt(1, "1.1.1.1:1", (10, 1), "refused", Some("no-listener")),
        attempt(2, "1.1.1.1:1", (20, 1), "refused", Some("no-listener")),
        attempt(3, "1.1.1.2:1", (30, 1), "refused", Some("no-listener")),
        attempt(4, "1.1.1.2:1", (9_000, 1), "refused", Some("no-listener")),
        summary("2026-11-22T13:00:00Z"),
    ];
    let bench = Bench::new();
    let mut traces = Traces::open(&[bench.trace("trace.jsonl", &records)], None, true).unwrap();
    let format = Format::given(FORMAT);
    for (after, rest) in [
        (5, "200 1.1.1.7:1 200"),
        (100, "502 1.1.1.1:1 502"),
        (110, "502 1.1.1.1:1 502"),
    ] {
        let access = format.parse(&line(after, 7, rest)).unwrap();
        explain_request(&mut traces, &access).unwrap();
    }
    assert_eq!(traces.unclaimed(), Some(1));
}

#[test]
fn memory_is_bounded_whatever_no_line_tells_of() {
    let bench = Bench::new();
    let path = bench.folder.path().join("trace.jsonl");
    let mut text = format!("{}\n", session("2026-11-22T12:00:00Z"));
    for number in 0..120_000 {
        let outcome = if number % 2 == 0 { "ok" } else { "refused" };
        let cause = (outcome != "ok").then_some("no-listener");
        writeln!(text, "{}", attempt(number, "1.1.1.1:1", (0, 1), outcome, cause)).unwrap();
    }
    std::fs::write(&path, text).unwrap();
    let mut traces = Traces::open(&[path], None, true).unwrap();
    let access = Format::given(FORMAT)
        .parse(&line(100, 7, "502 1.1.1.1:1 502"))
        .unwrap();
    assert_eq!(of(&explain_request(&mut traces, &access).unwrap()), "(too-many)");
    assert_eq!(traces.held(), 100_000, "50,000 in each of two windows");
}
