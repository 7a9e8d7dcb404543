//! What the terminal shows, as snapshots.

use std::{collections::BTreeMap, path::PathBuf};

use super::*;
use crate::{
    event::{Input, Peer},
    model::{Outcome, Phase, SummaryKey},
    samples,
    session::Origin,
};

fn look(width: usize) -> Look {
    Look {
        width,
        colour: false,
        zone: TimeZone::UTC,
    }
}

fn view(width: usize) -> View<Vec<u8>> {
    View::new(Vec::new(), look(width), Detail::Failures, Medium::Plain)
}

fn drawn(view: View<Vec<u8>>) -> String {
    String::from_utf8(view.out).unwrap()
}

/// Every kind of block.
fn blocks(width: usize) -> String {
    let mut missing = samples::listener_died();
    missing.peer = Some(Peer::Unix(
        "/var/lib/applications/a-rather-long-name/run/gunicorn.sock".to_owned(),
    ));
    missing.outcome = Outcome::Missing;
    missing.cause.as_mut().unwrap().id = "unix-missing";
    let mut unpeered = samples::listener_died();
    unpeered.peer = None;
    unpeered.outcome = Outcome::NoLiveUpstreams;
    unpeered.nginx_says = Some("no live upstreams while connecting to upstream".to_owned());
    let mut slow = samples::listener_died();
    slow.outcome = Outcome::TimedOut;
    slow.phase = Phase::Waiting;
    slow.total_us = 60_000_000;
    slow.nginx_says = None;
    [
        samples::listener_died(),
        samples::keepalive_race(),
        missing,
        unpeered,
        slow,
    ]
    .iter()
    .map(|attempt| block(attempt, samples::clock(), &look(width)))
    .collect::<Vec<_>>()
    .join("\n")
}

#[test]
fn blocks_read_well_at_80_columns() {
    let blocks = blocks(80);
    assert!(blocks.lines().all(|line| text::width(line) <= 80), "{blocks}");
    insta::assert_snapshot!(blocks);
}

#[test]
fn blocks_read_well_at_120_columns() {
    let blocks = blocks(120);
    assert!(blocks.lines().all(|line| text::width(line) <= 120), "{blocks}");
    insta::assert_snapshot!(blocks);
}

#[test]
fn errors_that_backends_answer_themselves_are_shown_and_folded_by_status() {
    let answered = |number: u64, status: u16| Attempt {
        number,
        outcome: Outcome::Ok,
        cause: None,
        log: None,
        nginx_says: None,
        request: Some(crate::model::Request {
            status: Some(status),
            ..samples::listener_died().request.unwrap_or_default()
        }),
        ..samples::healthy()
    };
    let mut view = View::new(Vec::new(), look(80), Detail::Failures, Medium::Plain);
    for (number, status) in [(1, 502), (2, 502), (3, 200), (4, 503), (5, 404), (6, 502)] {
        view.attempt(&answered(number, status), samples::clock()).unwrap();
    }
    view.settle(samples::at(60_000_000), samples::clock()).unwrap();
    insta::assert_snapshot!(drawn(view));
}

#[test]
fn colour_changes_nothing_but_colour() {
    let plain = block(&samples::keepalive_race(), samples::clock(), &look(100));
    let mut coloured = look(100);
    coloured.colour = true;
    let coloured = block(&samples::keepalive_race(), samples::clock(), &coloured);
    assert_ne!(plain, coloured);
    assert!(!plain.contains('\x1b'));
    let mut stripped = String::new();
    for (number, piece) in coloured.split('\x1b').enumerate() {
        let text = if number == 0 {
            piece
        } else {
            piece.split_once('m').unwrap().1
        };
        stripped.push_str(text);
    }
    assert_eq!(stripped, plain);
}

#[test]
fn foreign_text_cannot_steer_the_terminal() {
    let mut attempt = samples::keepalive_race();
    attempt.upstream = Some("a\x1b[2Jb".to_owned());
    attempt.peer = Some(Peer::Unix("/tmp/\x07\n\x1b]0;x".to_owned()));
    attempt.request.as_mut().unwrap().path = Some("/\x1b[31m".to_owned());
    let cause = attempt.cause.as_mut().unwrap();
    cause.summary = "s\x1b[A".to_owned();
    cause.remedy = "r\r".to_owned();
    cause.evidence[0].text = "e\u{9b}31m".to_owned();
    attempt.unseen = vec!["u\x1b".to_owned()];
    let block = block(&attempt, samples::clock(), &look(100));
    assert!(
        block.chars().all(|letter| letter == '\n' || !letter.is_control()),
        "{block:?}"
    );
}

fn nth(number: u64, after_us: i64, port: u16) -> Attempt {
    let mut attempt = samples::listener_died();
    attempt.number = number;
    attempt.began_at = samples::at(after_us - 200);
    attempt.ended_at = samples::at(after_us);
    attempt.peer = Some(samples::peer(port));
    attempt.cause.as_mut().unwrap().evidence.clear();
    attempt
}

#[test]
fn a_storm_is_one_block_and_a_count() {
    let mut view = view(100);
    let clock = samples::clock();
    for number in 0..1_500 {
        let us = i64::try_from(number).unwrap() * 10_000;
        let port = if number % 500 == 0 { 3001 } else { 3000 };
        view.attempt(&nth(number, us, port), clock).unwrap();
        view.settle(samples::at(us), clock).unwrap();
    }
    view.settle(samples::at(90_000_000), clock).unwrap();
    view.attempt(&nth(9_999, 91_000_000, 3000), clock).unwrap();
    insta::assert_snapshot!(drawn(view));
}

#[test]
fn on_a_terminal_the_counts_are_kept_up_to_date_in_place() {
    let mut view = View::new(Vec::new(), look(100), Detail::Failures, Medium::Terminal);
    let clock = samples::clock();
    let facts = SessionFacts::new(Origin::default(), BTreeMap::new());
    view.opening(&facts, samples::at(0)).unwrap();
    for (number, us) in [(1, 0), (2, 300_000), (3, 600_000)] {
        view.attempt(&nth(number, us, 3000), clock).unwrap();
        view.settle(samples::at(us), clock).unwrap();
    }
    view.attempt(&nth(4, 900_000, 3001), clock).unwrap();
    view.settle(samples::at(900_000), clock).unwrap();
    view.close(&Summary::default(), &[], &[], clock).unwrap();
    let drawn = drawn(view);
    let screen = screen(&drawn);
    assert_eq!(screen.matches("what to do").count(), 2, "{screen}");
    assert_eq!(screen.matches("2 more, 3 since").count(), 1, "{screen}");
    assert_eq!(screen.matches("1 more, ").count(), 0, "{screen}");
    assert_eq!(
        screen.matches("attempts   ").count(),
        0,
        "the running line is gone at the end: {screen}"
    );
    assert!(drawn.contains("\x1b[J"), "{drawn:?}");
}

/// What a terminal shows after `text`: enough of one for cursor up and erase below.
fn screen(text: &str) -> String {
    let mut lines = vec![String::new()];
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '\n' => lines.push(String::new()),
            '\r' => {}
            '\x1b' => {
                let end = rest.find(|letter: char| letter.is_ascii_alphabetic()).unwrap();
                let (argument, command) = (&rest[1..end], &rest[end..=end]);
                rest = &rest[end + 1..];
                match command {
                    // The cursor stands at the start of the last line, so up and erase is: forget lines.
                    "A" => {
                        let keep = lines.len() - 1 - argument.parse::<usize>().unwrap();
                        lines.truncate(keep);
                        lines.push(String::new());
                    }
                    "J" => assert_eq!(lines.last().map(String::as_str), Some("")),
                    other => panic!("unexpected {other}"),
                }
            }
            letter => lines.last_mut().unwrap().push(letter),
        }
    }
    lines.join("\n")
}

#[test]
fn quiet_shows_the_summary_alone() {
    let mut view = View::new(Vec::new(), look(100), Detail::SummaryOnly, Medium::Plain);
    let clock = samples::clock();
    view.attempt(&samples::listener_died(), clock).unwrap();
    view.event(&samples::oom_kill(), clock).unwrap();
    view.lost(LossClass::Ring, 3);
    view.settle(samples::at(10_000_000), clock).unwrap();
    assert_eq!(drawn(view), "");
}

#[test]
fn events_and_losses_get_a_line() {
    let mut view = view(80);
    let clock = samples::clock();
    view.event(&samples::oom_kill(), clock).unwrap();
    view.event(
        &NoteEvent {
            kind: "worker-start",
            ..samples::oom_kill()
        },
        clock,
    )
    .unwrap();
    view.lost(LossClass::Ring, 1_000);
    view.lost(LossClass::Table, 234);
    view.settle(samples::at(0), clock).unwrap();
    insta::assert_snapshot!(drawn(view));
}

#[test]
fn a_crash_loop_does_not_fill_the_screen_with_events() {
    let mut view = view(80);
    let clock = samples::clock();
    for second in 0..100 {
        let event = NoteEvent {
            at: samples::at(second * 100_000),
            ..samples::oom_kill()
        };
        view.event(&event, clock).unwrap();
        view.settle(event.at, clock).unwrap();
    }
    view.settle(samples::at(20_000_000), clock).unwrap();
    let drawn = drawn(view);
    assert_eq!(drawn.matches("the OOM killer").count(), 8, "{drawn}");
    assert!(drawn.contains("92 more events like these"), "{drawn}");
}

#[test]
fn the_opening_says_what_is_watched_and_what_is_not() {
    let mut facts = SessionFacts::new(Origin::default(), BTreeMap::new());
    assert_eq!(
        closing::opening(&facts, &look(80)),
        "waiting for nginx to start\n"
    );
    facts.observe(&Input::Instance(samples::instance()));
    facts.observe(&Input::Hooks(samples::hooks()));
    insta::assert_snapshot!(closing::opening(&facts, &look(80)));
}

fn summary() -> Summary {
    let key = |upstream: &str, port: u16, outcome, cause| SummaryKey {
        upstream: (!upstream.is_empty()).then(|| upstream.to_owned()),
        peer: (port > 0).then(|| samples::peer(port).to_string()),
        outcome,
        cause,
    };
    Summary {
        at: samples::at(252_000_000),
        attempts: 12_034,
        failures: 312,
        in_flight: 2,
        answered_with_error: None,
        statuses_unread: 7,
        clients_got: [("502".to_owned(), 40), ("cut".to_owned(), 2)].into(),
        counts: BTreeMap::from([
            (key("api", 3000, "ok", None), 9_950),
            (key("api", 3000, "refused", Some("listener-died")), 200),
            (key("api", 3001, "timed-out", Some("backend-slow")), 40),
            (key("api", 3002, "timed-out", Some("backend-slow")), 30),
            (key("api", 3003, "timed-out", Some("backend-slow")), 20),
            (key("api", 3004, "timed-out", Some("backend-slow")), 10),
            (key("api", 3000, "cancelled", Some("client-closed")), 17),
            (key("static", 3010, "ok", None), 1_755),
            (key("", 3020, "closed", Some("keepalive-race")), 11),
            (key("", 0, "no-live-upstreams", Some("no-live-upstreams")), 1),
        ]),
        latency: BTreeMap::new(),
        lost: BTreeMap::new(),
        complete: true,
    }
}

#[test]
fn the_summary_groups_by_upstream_and_cause() {
    let written = [
        Written {
            path: Some(PathBuf::from("trace.jsonl.zst")),
            attempts: 12_034,
            bytes: 1_240_000,
            parts: 1,
            broken: None,
        },
        Written {
            path: Some(PathBuf::from("/mnt/small/trace.jsonl")),
            attempts: 800,
            bytes: 4_000,
            parts: 3,
            broken: Some(("the disk is full".to_owned(), 11_234)),
        },
        Written {
            path: None,
            attempts: 3,
            bytes: 4,
            parts: 1,
            broken: None,
        },
    ];
    let drawn = |width| {
        closing::closing(
            &summary(),
            Some(252_000_000),
            &[samples::finding()],
            &written,
            &look(width),
        )
    };
    // A path is never broken, however long.
    let is_path = |line: &str| line.starts_with("  written");
    let text = drawn(80);
    let mut others = text.lines().filter(|line| !is_path(line));
    assert!(others.all(|line| text::width(line) <= 80), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn losses_and_a_bad_end_are_said() {
    let mut summary = Summary {
        answered_with_error: Some(4),
        statuses_unread: 2,
        ..Summary::default()
    };
    let drawn = |summary: &Summary| closing::closing(summary, None, &[], &[], &look(80));
    assert!(drawn(&summary).contains("complete  no"), "{}", drawn(&summary));
    summary.lost = BTreeMap::from([
        (LossClass::Ring, 1_200),
        (LossClass::Probe, 0),
        (LossClass::Queue, 1),
    ]);
    let text = drawn(&summary);
    assert!(text.contains("lost      1,200 ring, 1 queue: "), "{text}");
    assert!(text.contains("4 answered with an error"), "{text}");
}
