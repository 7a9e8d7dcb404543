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
        .map(|(_, finding)| finding.id)
        .collect()
}

#[test]
fn a_keepalive_that_is_never_used_is_found_where_nginx_is_why() {
    let anew = || watched((0..30).map(|_| samples::healthy()));
    let close = keeping(65, Some(false));
    assert_eq!(ids(&anew(), &close), ["keepalive-never-used"]);
    let summary = &anew().findings(|_, _| close.clone())[0].1.summary;
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
    let found: Vec<Finding> = found.into_iter().map(|(_, finding)| finding).collect();
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

/// A failure with this cause, for which one fact speaks.
fn failed(cause: &'static str, evidence: Evidence) -> Attempt {
    Attempt {
        outcome: Outcome::Refused,
        cause: Some(Verdict {
            id: cause,
            confidence: Confidence::Confirmed,
            summary: String::new(),
            remedy: String::new(),
            evidence: vec![evidence],
        }),
        ..samples::healthy()
    }
}

#[test]
fn two_instances_with_an_upstream_of_the_same_name_are_each_told() {
    let slowed = |worker| {
        let of_worker = move |n| Attempt {
            worker: Pid(worker),
            syn_retransmits: Some(1),
            connect_us: Some(1_000_000 + n),
            ..samples::healthy()
        };
        (0..5_u64).map(of_worker)
    };
    let limits = |_: Pid, _: &Peer| Limits::default();
    let mut said = Said::default();
    let mut news = |second: u64, watch: &Watch| -> Vec<String> {
        let news = said.news(Ktime(second * 1_000_000_000), watch.findings(limits));
        news.into_iter().map(|finding| finding.about).collect()
    };
    let peer = samples::healthy().peer.expect("a healthy attempt has a peer");
    let one = watched(slowed(11));
    assert_eq!(news(60, &one), [""; 0], "it has not stood for a minute yet");
    assert_eq!(news(120, &one), [format!("api at {peer}")]);
    let both = watched(slowed(11).chain(slowed(22)));
    assert_eq!(news(180, &both), [""; 0]);
    // That of the first was said, whatever it is called now.
    assert_eq!(news(240, &both), [format!("api (nginx 22) at {peer}")]);
    assert_eq!(news(300, &both), [""; 0]);
}

#[test]
fn one_backend_that_is_several_peers_is_found() {
    let good: Peer = "127.0.0.1:3000".parse().expect("a peer");
    let bad: Peer = "[::1]:3000".parse().expect("a peer");
    let refused = |instead: &Peer| Attempt {
        peer: Some(bad.clone()),
        ..failed(
            "listener-elsewhere",
            fact(None, "listener", "it listens there").text("address", instead.to_string()),
        )
    };
    let well = |peer: &Peer| Attempt {
        peer: Some(peer.clone()),
        ..samples::healthy()
    };
    let none = Limits::default();
    let found = watched([refused(&good), well(&good)]);
    assert_eq!(ids(&found, &none), ["one-backend-several-peers"]);
    let summary = &found.findings(|_, _| none.clone())[0].1.summary;
    assert_eq!(
        summary,
        "nginx takes api for several peers where there is one backend: nothing listens on [::1]:3000 (1 failure), it listens \
         on 127.0.0.1:3000 (1 attempt succeeded); what disables that one for a moment leaves no peer"
    );
    let other: Peer = "127.0.0.2:3000".parse().expect("a peer");
    for sound in [
        watched([refused(&good)]),
        watched([refused(&other), well(&good)]),
        watched([refused(&good), well(&good), well(&bad)]),
    ] {
        assert_eq!(ids(&sound, &none), [""; 0]);
    }
}

#[test]
fn failures_that_follow_ends_of_a_process_are_found() {
    let ended = |pid: u32, oom: bool| {
        let end = fact(None, "process", "it ended")
            .number("pid", pid)
            .number("signal", 9)
            .text("comm", "gunicorn")
            .flag("oom", oom);
        failed("backend-died", end)
    };
    let other = || failed("backend-slow", fact(None, "tcp", "nothing came"));
    let none = Limits::default();
    let three = || [ended(1, true), ended(1, true), ended(2, true), ended(3, false)];
    let found = watched(three().into_iter().chain([other()]));
    assert_eq!(ids(&found, &none), ["failures-follow-ends-of-a-process"]);
    let finding = &found.findings(|_, _| none.clone())[0].1;
    assert_eq!(
        finding.summary,
        "4 of 5 failures of api follow the end of a process of gunicorn: 3 of them ended (SIGKILL: 1, the OOM killer: 2)"
    );
    assert_eq!(finding.about, "api: gunicorn");
    assert_eq!(
        ids(&watched([ended(1, false), ended(2, false)]), &none),
        [""; 0],
        "two may be a deploy"
    );
    let mostly_others = watched(three().into_iter().chain([other(), other()]));
    assert_eq!(ids(&mostly_others, &none), [""; 0]);
}
