//! Each pattern where it is, and where something like it is not.

use super::*;
use crate::samples;

/// What a configuration says of keeping connections.
fn keeping(keepalive: u32, asks_to_keep: Option<bool>) -> Limits {
    Limits {
        keepalive: Some(keepalive),
        asks_to_keep,
        ..Limits::default()
    }
}

fn watched(attempts: impl IntoIterator<Item = Attempt>) -> Watch {
    let mut watch = Watch::new(1024);
    for (attempt, number) in attempts.into_iter().zip(1..) {
        let master = attempt.worker;
        watch.add(attempt.ended_at, &Attempt { number, ..attempt }, master, false);
    }
    watch
}

fn ids(watch: &Watch, limits: &Limits) -> Vec<&'static str> {
    watch
        .findings(|_, _| limits.clone())
        .iter()
        .map(|finding| finding.id)
        .collect()
}

#[test]
fn a_keepalive_that_is_never_used_is_found_where_nginx_is_why() {
    let anew = || watched((0..30).map(|_| samples::healthy()));
    let close = keeping(65, Some(false));
    assert_eq!(ids(&anew(), &close), ["keepalive-never-used"]);
    let summary = &anew().findings(|_, _| close.clone())[0].summary;
    assert_eq!(
        summary,
        "upstream api has keepalive 65, yet 30 successful attempts were all on new connections: nginx asks the backend to \
         close each one"
    );
    for other in [
        keeping(0, Some(false)),
        keeping(65, Some(true)),
        keeping(65, None),
        Limits::default(),
    ] {
        assert_eq!(ids(&anew(), &other), [""; 0], "{other:?}");
    }
    let reused = || Attempt {
        reused: true,
        exchange: 2,
        ..samples::healthy()
    };
    let one_reused = watched((0..30).map(|_| samples::healthy()).chain([reused()]));
    assert_eq!(ids(&one_reused, &close), [""; 0]);
    // Another nginx's upstream of the same name.
    let others = Attempt {
        worker: Pid(99),
        ..reused()
    };
    let two = watched((0..30).map(|_| samples::healthy()).chain([others]));
    assert_eq!(ids(&two, &close), ["keepalive-never-used"]);
    assert_eq!(
        ids(&watched((0..9).map(|_| samples::healthy())), &close),
        [""; 0],
        "too few"
    );
}

#[test]
fn errors_that_backends_answer_themselves_are_found() {
    let answered = |status| Attempt {
        request: Some(crate::model::Request {
            status,
            ..crate::model::Request::default()
        }),
        ..samples::healthy()
    };
    let watch = watched([Some(200), Some(503), Some(502), Some(503), None, Some(404)].map(answered));
    let found = watch.findings(|_, _| Limits::default());
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id, found[0].attempts), ("answered-with-error", 3));
    assert!(
        found[0]
            .summary
            .contains("3 requests with an error (502: 1, 503: 2)"),
        "{}",
        found[0].summary
    );
    assert!(
        found[0].evidence[0].text.starts_with("3 of 5 "),
        "{:?}",
        found[0].evidence
    );
    for sound in [Some(499), Some(101), None] {
        assert_eq!(ids(&watched([answered(sound)]), &Limits::default()), [""; 0]);
    }
    let failed = Attempt {
        outcome: Outcome::Closed,
        ..answered(Some(502))
    };
    assert_eq!(
        ids(&watched([failed]), &Limits::default()),
        [""; 0],
        "its answer broke off"
    );
}

#[test]
fn connects_that_lost_syns_are_found() {
    let slowed = |n: usize, retransmits: u32| {
        let slow = (0..n).map(move |n| Attempt {
            syn_retransmits: Some(retransmits),
            connect_us: Some(1_000_000 + n as u64 * 1_000),
            ..samples::healthy()
        });
        watched(slow.chain((0..30).map(|_| samples::healthy())))
    };
    let none = Limits::default();
    assert_eq!(ids(&slowed(5, 1), &none), ["connects-slowed-by-lost-syns"]);
    assert_eq!(ids(&slowed(4, 1), &none), [""; 0]);
    assert_eq!(ids(&slowed(5, 0), &none), [""; 0]);
}

#[test]
fn a_failure_that_is_written_after_its_retry_is_hidden_too() {
    let failure = |number, of: Option<u64>| Attempt {
        number,
        outcome: Outcome::TimedOut,
        retry: of.map(|of| (of, 2)),
        ..samples::healthy()
    };
    let success = Attempt {
        number: 3,
        retry: Some((2, 3)),
        ..samples::healthy()
    };
    let n_hidden = |attempts: [Attempt; 3]| {
        let mut watch = Watch::new(1024);
        for attempt in attempts {
            watch.add(attempt.ended_at, &attempt, attempt.worker, false);
        }
        watch.n_hidden
    };
    assert_eq!(
        n_hidden([failure(1, None), failure(2, Some(1)), success.clone()]),
        2
    );
    assert_eq!(
        n_hidden([success.clone(), failure(1, None), failure(2, Some(1))]),
        2
    );
    assert_eq!(
        n_hidden([failure(2, Some(1)), success.clone(), failure(1, None)]),
        2
    );
    assert_eq!(n_hidden([failure(1, None), success.clone(), failure(4, None)]), 0);
}
