//! Reports of small traces, as a person reads them.

use jiff::tz::TimeZone;

use super::*;
use crate::{clock::Clock, model, samples, view::Look};

fn look() -> Look {
    Look {
        width: 80,
        colour: false,
        zone: TimeZone::UTC,
    }
}

fn session() -> Session {
    let mut facts = crate::session::SessionFacts::new(
        crate::session::Origin {
            tool: "tracer 0.1.0".to_owned(),
            host: "web-1".to_owned(),
            kernel: "6.18.0".to_owned(),
            boot_id: None,
        },
        BTreeMap::new(),
    );
    facts.observe(&crate::event::Input::Instance(samples::instance()));
    facts.observe(&crate::event::Input::Hooks(samples::hooks()));
    facts.session(samples::at(-60_000_000), samples::clock())
}

fn attempt(attempt: &model::Attempt) -> Line {
    Line::Attempt(Box::new(Attempt::new(attempt, samples::clock())))
}

/// The attempt so many seconds later.
fn later(mut attempt: model::Attempt, seconds: u64) -> model::Attempt {
    attempt.began_at.0 += seconds * 1_000_000_000;
    attempt.ended_at.0 += seconds * 1_000_000_000;
    attempt
}

fn closing(report: &Report, complete: bool) -> Line {
    let counts = report
        .traces
        .values()
        .flat_map(|trace| &trace.tally.upstreams)
        .flat_map(|(upstream, tally)| {
            let ok = schema::Count {
                upstream: upstream.clone(),
                peer: Some("127.0.0.1:3000".to_owned()),
                outcome: "ok".into(),
                cause: None,
                attempts: tally.attempts - tally.failures,
            };
            let failed = tally.causes.iter().flat_map(|(cause, by_cause)| {
                by_cause.peers.iter().map(|(peer, attempts)| schema::Count {
                    upstream: upstream.clone(),
                    peer: Some(peer.clone()),
                    outcome: "refused".into(),
                    cause: Some(cause.clone().into()),
                    attempts: *attempts,
                })
            });
            std::iter::once(ok).chain(failed).collect::<Vec<_>>()
        })
        .collect();
    Line::Summary(Summary {
        time: samples::clock().rfc3339(samples::at(600_000_000)),
        attempts: 0,
        failures: 0,
        in_flight: 2,
        counts,
        complete,
        ..Summary::default()
    })
}

fn story() -> Report {
    let mut report = Report::new(Filter::default());
    report.add(Line::Session(session()));
    report.add(Line::Event(Event::new(&samples::oom_kill(), samples::clock())));
    for second in 0..30 {
        report.add(attempt(&later(samples::healthy(), second)));
    }
    for second in [0, 1, 2, 300, 301] {
        report.add(attempt(&later(samples::listener_died(), second)));
    }
    report.add(attempt(&samples::keepalive_race()));
    report.add(Line::Finding(Finding::new(&samples::finding(), samples::clock())));
    let end = closing(&report, true);
    report.add(end);
    report
}

#[test]
fn a_trace_becomes_a_page() {
    let page = text::text(&story(), &look());
    assert!(
        page.lines().all(|line| crate::view::text::width(line) <= 80),
        "{page}"
    );
    insta::assert_snapshot!(page);
}

#[test]
fn a_trace_becomes_an_object_for_programs() {
    insta::assert_snapshot!(format!("{:#}", json::json(&story())));
}

#[test]
fn failures_in_bursts_are_told_so() {
    let report = story();
    let (_, died) = report
        .stories
        .iter()
        .find(|(key, _)| key.cause == "listener-died")
        .unwrap();
    assert_eq!((died.attempts, died.bursts), (5, 2));
}

#[test]
fn filters_take_out_what_was_not_asked_for() {
    let count = |filter: Filter| {
        let mut report = Report::new(filter);
        report.add(Line::Session(session()));
        for second in [0, 10, 20] {
            report.add(attempt(&later(samples::listener_died(), second)));
        }
        report.add(attempt(&samples::keepalive_race()));
        report.tally().attempts
    };
    let at = |text: &str| Some(text.parse().unwrap());
    assert_eq!(count(Filter::default()), 4);
    let named = |upstream: &str| Filter {
        upstreams: vec![upstream.to_owned()],
        ..Filter::default()
    };
    assert_eq!(count(named("search")), 1);
    assert_eq!(count(named("api")), 4);
    assert_eq!(count(named("nobody")), 0);
    let caused = Filter {
        causes: vec!["keepalive-race".to_owned()],
        ..Filter::default()
    };
    assert_eq!(count(caused), 1);
    let between = Filter {
        since: at("2026-11-22T12:04:36Z"),
        until: at("2026-11-22T12:04:45Z"),
        ..Filter::default()
    };
    assert_eq!(count(between), 2);
}

#[test]
fn a_filtered_report_counts_what_was_read_and_not_the_summary() {
    let mut report = Report::new(Filter {
        upstreams: vec!["search".to_owned()],
        ..Filter::default()
    });
    report.add(Line::Session(session()));
    report.add(attempt(&samples::keepalive_race()));
    report.add(Line::Summary(Summary {
        counts: vec![schema::Count {
            upstream: Some("api".to_owned()),
            outcome: "ok".into(),
            attempts: 1_000,
            ..schema::Count::default()
        }],
        complete: true,
        ..Summary::default()
    }));
    assert_eq!(report.tally().attempts, 1);
}

#[test]
fn what_is_missing_is_said() {
    let mut report = Report::new(Filter::default());
    report.add(Line::Session(Session {
        part: 3,
        options: BTreeMap::from([("keep".to_owned(), "failures".into())]),
        ..session()
    }));
    report.add(Line::Lost(schema::Lost::new(
        samples::at(0),
        crate::event::LossClass::Ring,
        7,
        Clock::default(),
    )));
    report.add_torn("a.jsonl ends in the middle of line 3, which was skipped");
    let gaps = report.gaps();
    let expected = [
        "in the middle of line 3",
        "has no summary",
        "2 earlier files",
        "failures and their surroundings alone",
        "7 records were lost (ring)",
    ];
    assert_eq!(gaps.len(), expected.len(), "{gaps:#?}");
    for (gap, expected) in gaps.iter().zip(expected) {
        assert!(gap.contains(expected), "{gap}");
    }
    assert_eq!(json::json(&report)["complete"], false);
}

#[test]
fn parts_of_one_trace_are_one_trace() {
    let mut report = Report::new(Filter::default());
    for part in [2, 1] {
        report.add(Line::Session(Session { part, ..session() }));
        report.add(attempt(&samples::listener_died()));
    }
    assert_eq!(report.traces.len(), 1);
    let end = closing(&report, true);
    report.add(end);
    assert_eq!(report.gaps(), Vec::<String>::new());
    assert_eq!(report.tally().attempts, 2);
}

#[test]
fn memory_is_bounded_and_what_is_not_told_is_counted() {
    let mut report = Report::new(Filter::default());
    report.add(Line::Session(session()));
    let mut sample = samples::listener_died();
    let many = MAX_STORIES as u64 + 1_000;
    for number in 0..many {
        sample.peer = Some(crate::event::Peer::Unix(format!("/run/{number}")));
        report.add(attempt(&sample));
        report.add(Line::Event(Event::new(&samples::oom_kill(), samples::clock())));
        report.add(Line::Finding(Finding::new(&samples::finding(), samples::clock())));
    }
    assert_eq!(report.stories.len(), MAX_STORIES);
    assert_eq!(report.untold, 1_000);
    assert_eq!(report.events.len(), MAX_EVENTS);
    assert!(report.findings().count() <= MAX_FINDINGS);
    assert_eq!(report.tally().failures, many);
    let page = text::text(&report, &look());
    assert!(page.lines().count() < 600, "{}", page.lines().count());
}

#[test]
fn findings_of_a_trace_without_an_end_are_those_it_told() {
    let live = model::Finding {
        at: Some(samples::at(5)),
        ..samples::finding()
    };
    let mut report = Report::default();
    report.add(Line::Session(session()));
    report.add(Line::Finding(Finding::new(&live, samples::clock())));
    assert_eq!(report.findings().count(), 1);
    // It came to its end: the same finding with its last numbers, or none where it did not stand any more.
    report.add(Line::Summary(Summary::default()));
    assert_eq!(report.findings().count(), 0);
    report.add(Line::Finding(Finding::new(&samples::finding(), samples::clock())));
    assert_eq!(report.findings().count(), 1);
}
