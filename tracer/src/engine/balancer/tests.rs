//! What nginx would do with its peers after so many failures, second by second.

use super::*;
use crate::{
    model::{Confidence, Verdict},
    samples,
};

const WORKER: Owner = (Pid(811), Ktime(0));
const OTHER: Owner = (Pid(812), Ktime(0));

fn balancing(max_fails: u32) -> Balancing {
    Balancing {
        max_fails,
        fail_timeout_ms: 10_000,
        max_conns: 0,
        is_shared: false,
        counts_statuses: false,
    }
}

/// Balancers and what they said.
struct Lab {
    balancers: Balancers,
    balancing: Balancing,
    said: Vec<String>,
    number: u64,
}

impl Lab {
    fn new(balancing: Balancing) -> Self {
        Self {
            balancers: Balancers::default(),
            balancing,
            said: Vec::new(),
            number: 0,
        }
    }

    fn add(&mut self, owner: Owner, attempt: Attempt, counting: Counting) -> bool {
        self.balancers.pass(&attempt);
        let Balanced { note, is_probe } = self.balancers.add(
            attempt.ended_at,
            &attempt,
            (Pid(800), owner),
            self.balancing,
            counting,
        );
        self.said
            .extend(note.map(|note| format!("{} {}", note.kind, note.text)));
        is_probe
    }

    fn attempt(&mut self, second: f64) -> Attempt {
        self.number += 1;
        let at = samples::at((second * 1e6) as i64);
        Attempt {
            number: self.number,
            began_at: at,
            ended_at: Ktime(at.0 + 1_000_000),
            ..samples::healthy()
        }
    }

    fn fail(&mut self, owner: Owner, second: f64, cause: &'static str) -> bool {
        let attempt = Attempt {
            outcome: Outcome::Refused,
            worker: owner.0,
            cause: Some(Verdict {
                id: cause,
                confidence: Confidence::Confirmed,
                summary: String::new(),
                remedy: String::new(),
                evidence: Vec::new(),
            }),
            ..self.attempt(second)
        };
        self.add(owner, attempt, Counting::Counted)
    }

    fn succeed(&mut self, owner: Owner, second: f64) -> bool {
        let attempt = Attempt {
            worker: owner.0,
            ..self.attempt(second)
        };
        self.add(owner, attempt, Counting::Counted)
    }

    /// What was said since the last call.
    fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    fn findings_of(&self) -> Vec<(Pid, Finding)> {
        self.balancers.findings(|_, upstream| upstream.to_owned())
    }

    fn findings(&self) -> Vec<&'static str> {
        self.findings_of().iter().map(|(_, finding)| finding.id).collect()
    }
}

#[test]
fn one_failure_disables_a_peer_until_it_answers() {
    let mut lab = Lab::new(balancing(1));
    lab.succeed(WORKER, 0.0);
    lab.fail(WORKER, 1.0, "listener-died");
    assert_eq!(
        lab.said(),
        [
            "peer-disabled worker 811 leaves 127.0.0.1:3000 out of api for 10.0 s: max_fails=1 reached by listener-died \
             (attempt 2)"
        ]
    );
    // A try after fail_timeout that fails is no news, one that succeeds is.
    assert!(lab.fail(WORKER, 12.0, "no-listener"), "it is a probe");
    assert_eq!(lab.said(), [""; 0]);
    assert!(lab.balancers.knows("api"));
    lab.succeed(WORKER, 23.0);
    assert!(
        !lab.balancers.knows("api"),
        "nothing is remembered of a peer that answers"
    );
    assert_eq!(
        lab.said(),
        [
            "peer-enabled 127.0.0.1:3000 of api answers worker 811 again, which had first left it out 22.0 s before (listener-died)"
        ]
    );
    lab.fail(WORKER, 24.0, "no-listener");
    assert_eq!(lab.said().len(), 1, "it is disabled anew");
}

#[test]
fn each_worker_counts_for_itself() {
    let mut lab = Lab::new(balancing(2));
    lab.fail(WORKER, 1.0, "no-listener");
    lab.fail(OTHER, 2.0, "no-listener");
    assert_eq!(lab.said(), [""; 0]);
    lab.fail(OTHER, 3.0, "firewall-reset");
    assert_eq!(
        lab.said(),
        [
            "peer-disabled worker 812 leaves 127.0.0.1:3000 out of api for 10.0 s: max_fails=2 reached by no-listener \
             (attempt 2), firewall-reset (attempt 3)"
        ]
    );
}

#[test]
fn what_is_under_way_when_it_fails_does_not_bring_it_back() {
    let mut lab = Lab::new(balancing(1));
    let earlier = lab.attempt(0.5);
    lab.fail(WORKER, 1.0, "no-listener");
    lab.said();
    lab.add(WORKER, earlier, Counting::Counted);
    assert_eq!(lab.said(), [""; 0]);
}

#[test]
fn failures_are_forgotten_only_after_a_quiet_time_and_a_success() {
    let mut lab = Lab::new(balancing(2));
    lab.fail(WORKER, 0.0, "no-listener");
    // Within fail_timeout a success changes nothing …
    lab.succeed(WORKER, 5.0);
    lab.fail(WORKER, 9.0, "no-listener");
    assert_eq!(lab.said().len(), 1);
    // … and after it, it does.
    let mut lab = Lab::new(balancing(2));
    lab.fail(WORKER, 0.0, "no-listener");
    lab.succeed(WORKER, 12.0);
    lab.fail(WORKER, 13.0, "no-listener");
    assert_eq!(lab.said(), [""; 0]);
}

#[test]
fn a_slow_success_that_ends_after_the_quiet_time_makes_nginx_forget() {
    let mut lab = Lab::new(balancing(2));
    lab.fail(WORKER, 0.0, "no-listener");
    let slow = Attempt {
        ended_at: samples::at(11_500_000),
        ..lab.attempt(6.0)
    };
    lab.add(WORKER, slow, Counting::Counted);
    lab.fail(WORKER, 12.0, "no-listener");
    assert_eq!(lab.said(), [""; 0]);
}

#[test]
fn after_a_loss_failures_before_it_count_no_more() {
    let mut lab = Lab::new(balancing(2));
    lab.fail(WORKER, 0.0, "no-listener");
    lab.balancers.lost(samples::at(3_000_000));
    lab.fail(WORKER, 5.0, "no-listener");
    assert_eq!(lab.said(), [""; 0]);
    lab.fail(WORKER, 6.0, "no-listener");
    assert_eq!(lab.said().len(), 1);
}

#[test]
fn nothing_is_said_where_statuses_count_too_or_nothing_is_known() {
    let mut lab = Lab::new(Balancing {
        counts_statuses: true,
        ..balancing(1)
    });
    lab.fail(WORKER, 0.0, "no-listener");
    assert_eq!(lab.said(), [""; 0]);
    let mut lab = Lab::new(balancing(1));
    let attempt = Attempt {
        outcome: Outcome::Reset,
        ..lab.attempt(1.0)
    };
    lab.add(WORKER, attempt, Counting::Unknown);
    assert_eq!(lab.said(), [""; 0]);
}

#[test]
fn an_only_peer_is_never_left_out() {
    let mut lab = Lab::new(balancing(0));
    for second in 0..20 {
        lab.fail(WORKER, f64::from(second), "no-listener");
    }
    assert_eq!(lab.said(), [""; 0]);
    assert_eq!(lab.findings(), [""; 0]);
}

#[test]
fn failures_far_apart_that_disable_are_a_finding() {
    let mut lab = Lab::new(balancing(3));
    for second in [0.0, 9.0, 18.0] {
        lab.fail(WORKER, second, "backend-slow");
        lab.succeed(WORKER, second + 4.0);
    }
    assert_eq!(lab.findings(), ["disabled-by-failures-far-apart"]);
    let mut lab = Lab::new(balancing(3));
    for second in [0.0, 3.0, 6.0] {
        lab.fail(WORKER, second, "backend-slow");
    }
    assert_eq!(lab.findings(), [""; 0]);
}

#[test]
fn a_peer_that_is_out_much_of_the_time_is_a_finding() {
    let mut lab = Lab::new(balancing(1));
    for turn in 0..10 {
        let begin = f64::from(turn) * 30.0;
        lab.succeed(WORKER, begin);
        lab.fail(WORKER, begin + 10.0, "keepalive-race");
        lab.succeed(WORKER, begin + 21.0);
    }
    assert_eq!(lab.findings(), ["peer-left-out"]);
    let finding = &lab.findings_of()[0].1;
    assert_eq!(
        finding.summary,
        "one worker left 127.0.0.1:3000 out of api 37 % of the time (110.0 s in 10 outages), 100 % of it for what is not its \
         fault, most of all for keepalive-race"
    );
    // Once in an hour is not much.
    let mut lab = Lab::new(balancing(1));
    lab.succeed(WORKER, 0.0);
    lab.fail(WORKER, 10.0, "keepalive-race");
    lab.succeed(WORKER, 21.0);
    lab.succeed(WORKER, 3600.0);
    assert_eq!(lab.findings(), [""; 0]);
}

#[test]
fn failures_that_never_count_are_a_finding() {
    let mut lab = Lab::new(balancing(1));
    for second in 0..12 {
        let attempt = Attempt {
            outcome: Outcome::Closed,
            ..lab.attempt(f64::from(second))
        };
        lab.add(WORKER, attempt, Counting::Late);
    }
    assert_eq!(lab.said(), [""; 0]);
    assert_eq!(lab.findings(), ["failures-never-counted"]);
}
