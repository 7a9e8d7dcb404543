//! Every recording once more with less to see: without nginx's own voice, without its log file as well, and without one
//! hook after another. The id stays the same, or the confidence is lower; a cause is never replaced by a wrong one.
//!
//! A recording that lacks what a hook would have seen is what a tracer without that hook would have recorded, as far as
//! the records are independent of each other; [`without`] says where they are not. A few scenarios run live, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::Arc,
};

use anyhow::{Result, ensure};
use libtest_mimic::{Failed, Trial};
use tracer::{
    engine::{Engine, EngineOptions, diagnose},
    event::{EndKind, Event, Exchange, ExchangeId, Input, Output, Peer, RetryOf, Stamped},
    kernel::plan,
    model::{Attempt, Confidence, Outcome, Phase, Verdict},
};
use xtask::{
    lab::Run,
    scenario::{Scenario, judge, run::Outcome as Ran},
    traced,
};

use crate::{
    ground::{Ground, is_full, live, plain, play, setup, skipped},
    replay::inputs,
    scenarios::scenarios,
};

/// nginx's own voice.
const VOICE: &str = "nginx-log";
/// Its log file, which is no hook of the plan.
const FILE: &str = "error-log-file";

/// Scenarios that also run live without nginx's own voice, where the log file must say as much: those whose end only
/// nginx's line tells, and one of each family.
const LIVE: &[&str] = &[
    "backend-died",
    "backend-slow-unix",
    "closed-mid-response",
    "keepalive-race",
    "keepalive-race-reset",
    "keepalive-race-unix",
    "no-listener",
    "response-stalled",
    "route-forbids",
    "unix-missing",
];

/// Scenarios that also run live with nothing heard from nginx, and with no bytes seen, beside the healthy ones.
const LIVE_WITH_LESS: &[&str] = &[
    "backend-slow-unix",
    "client-closed",
    "closed-mid-response",
    "keepalive-race",
    "listener-died",
    "syn-unanswered",
];

/// One test a recording, and some scenarios (with `TRACER_SUITE=full` all) live.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    let all = plain("deaf/every_hook_is_thought_of", every_hook_is_thought_of);
    let recorded = crate::replay::recorded()
        .into_iter()
        .map(|name| plain(&format!("deaf/{name}"), move || test(&name)));
    let skipped_events = crate::replay::recorded()
        .into_iter()
        .map(|name| plain(&format!("deaf/unnoticed-{name}"), move || test_unnoticed(&name)));
    let is_wanted = |scenario: &Scenario| is_full() || LIVE.contains(&scenario.name.as_str());
    let heard = scenarios().into_iter().filter(is_wanted).map(|mut scenario| {
        // Where a failure leaves nothing but its line, what comes after it is not seen to follow.
        scenario.expect.iter_mut().for_each(|expect| expect.client = None);
        let ground = Arc::clone(ground);
        let name = format!("deaf/live-{}", scenario.name);
        Trial::ignorable_test(name.clone(), move || match ground.live() {
            Ok((run, nginx)) => play(run, nginx, &scenario, &name, &["--without", VOICE])
                .map_err(|error| Failed::from(format!("{error:#}")))?,
            Err(reason) => skipped(&reason),
        })
    });
    let is_wanted = |scenario: &Scenario| {
        let is_healthy = scenario.expect.is_empty();
        is_full() || is_healthy || LIVE_WITH_LESS.contains(&scenario.name.as_str())
    };
    let ways = [
        ("in-silence", vec!["--without", VOICE, "--error-log", "off"]),
        ("without-bytes", vec!["--without", "bytes"]),
    ];
    let with_less = ways.into_iter().flat_map(|(way, arguments)| {
        scenarios().into_iter().filter(is_wanted).map(move |scenario| {
            let name = format!("deaf/live-{way}-{}", scenario.name);
            let arguments = arguments.clone();
            live(ground, &name.clone(), move |run, nginx| {
                is_never_wrong(run, nginx, &scenario, &name, &arguments)
            })
        })
    });
    recorded
        .chain(skipped_events)
        .chain(heard)
        .chain(with_less)
        .chain([all])
        .collect()
}

/// A scenario live, with less to see: healthy traffic is healthy, and no cause is named but the right one.
fn is_never_wrong(
    run: &Run,
    nginx: &Path,
    scenario: &Scenario,
    name: &str,
    arguments: &[&str],
) -> Result<()> {
    let mut causes: Vec<String> = scenario
        .expect
        .iter()
        .map(|expect| expect.cause.clone())
        .collect();
    let explained = causes.iter().filter_map(|id| diagnose::causes::find(id));
    let shallower: Vec<String> = explained
        .flat_map(|cause| cause.explains)
        .map(|id| (*id).to_owned())
        .collect();
    causes.extend(shallower);
    causes.push("unknown".to_owned());
    let mut scenario = scenario.clone();
    for expect in &mut scenario.expect {
        // What cannot be seen is not waited for.
        expect.attempts = None;
        expect.optional = true;
    }
    let setup = setup(nginx, name, arguments);
    // Of the problems it finds, most are that something was not seen.
    if let Ran::Skipped(_) = xtask::scenario::run::run(run, &scenario, &setup)? {
        return Ok(());
    }
    let records = traced::records(&setup.keep.join("trace.jsonl"))?;
    let mut problems = judge::frame(&records);
    for attempt in traced::not_ok(&records) {
        let is_right = causes
            .iter()
            .any(|cause| attempt["cause"]["id"] == cause.as_str());
        if !is_right {
            problems.push(format!("none of {causes:?}: {attempt}"));
        }
    }
    if scenario.expect.is_empty() && traced::not_ok(&records).count() > 0 {
        problems.push("a failure where nothing failed".to_owned());
    }
    ensure!(
        problems.is_empty(),
        "see {}\n{}",
        setup.keep.display(),
        problems.join("\n")
    );
    Ok(())
}

/// A recording with every hook missing, and every two.
fn test(name: &str) -> Result<()> {
    let whole = inputs(name)?;
    let before = attempts(&whole);
    let mut problems = Vec::new();
    for (index, one) in MISSING.iter().enumerate() {
        let without_one = without(whole.clone(), one);
        for other in &MISSING[index..] {
            // Twice the same is that one alone.
            let both = without(without_one.clone(), other);
            let allows = match [*one, *other] {
                [VOICE, VOICE] => Difference::is_the_hosts_answer,
                [VOICE, FILE] => Difference::is_honest_in_silence,
                [one, other] if [one, other].contains(&FILE) => Difference::is_honest_without_the_file,
                _ => Difference::is_honest,
            };
            problems.extend(
                compare(&before, &attempts(&both))
                    .into_iter()
                    .filter(|difference| !allows(difference))
                    .map(|difference| format!("without {one}, {other}: {difference}")),
            );
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// A recording in which a hook saw nothing although it is there, and every two: a kernel may skip programs without a
/// word, or count what it skipped only after the cause was named.
fn test_unnoticed(name: &str) -> Result<()> {
    let whole = inputs(name)?;
    let before = attempts(&whole);
    let mut problems = Vec::new();
    for (index, one) in SKIPPED.iter().enumerate() {
        let less = less(whole.clone(), one);
        for other in &SKIPPED[index..] {
            let both = self::less(less.clone(), other);
            problems.extend(
                compare(&before, &attempts(&both))
                    .into_iter()
                    .filter(|difference| {
                        let is_origin_unseen = [*one, *other].contains(&"resets-sent");
                        !(difference.is_honest() || is_origin_unseen && difference.is_an_unseen_origin())
                    })
                    .map(|difference| format!("unseen {one}, {other}: {difference}")),
            );
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Hooks whose programs run in whatever context an event falls into.
const SKIPPED: &[&str] = &[
    "accept",
    "accept-queue",
    "resets-received",
    "resets-sent",
    "errors",
    "retransmits",
    "drops",
    "icmp-sent",
    ESTABLISHED,
    FIN,
];

/// A state change of nginx's socket, which the same program sees as its beginning and end.
const ESTABLISHED: &str = "connections: established";
const FIN: &str = "connections: FIN";

/// What may be missing.
const MISSING: &[&str] = &[
    VOICE,
    FILE,
    "processes",
    "signals",
    "requests",
    "unix-connects",
    "accept",
    "accept-queue",
    "resets-received",
    "resets-sent",
    "errors",
    "retransmits",
    "drops",
    "icmp-sent",
    "routes",
    "connect-denials",
    "selinux",
    "snapshot",
];

/// Hooks whose absence no recording can show: nothing or other exchanges would have been recorded, or the kernel that
/// recorded lacked them itself.
const NOT_TO_BE_SHOWN: &[&str] = &["connections", "bytes", "unix-closes", "connect-errno"];

fn every_hook_is_thought_of() -> Result<()> {
    let planned: BTreeSet<&str> = plan::PLAN.iter().map(|hook| hook.sees).chain([FILE]).collect();
    let thought_of: BTreeSet<&str> = MISSING.iter().chain(NOT_TO_BE_SHOWN).copied().collect();
    ensure!(
        planned == thought_of,
        "{planned:?} are planned, {thought_of:?} thought of"
    );
    Ok(())
}

/// What the engine makes of inputs.
fn attempts(inputs: &[Stamped]) -> Vec<Attempt> {
    let mut engine = Engine::new(EngineOptions::default());
    inputs
        .iter()
        .flat_map(|stamped| engine.apply(stamped.at, stamped.input.clone()))
        .filter_map(|output| match output {
            Output::Attempt(attempt) => Some(*attempt),
            _ => None,
        })
        .collect()
}

/// The inputs a tracer without this hook would have taken in.
fn without(mut inputs: Vec<Stamped>, hook: &str) -> Vec<Stamped> {
    for stamped in &mut inputs {
        if let Input::Hooks(hooks) = &mut stamped.input {
            for status in hooks.iter_mut().filter(|status| status.sees == hook) {
                status.how = None;
                status.why_not = Some(format!("left out with --without {hook}"));
            }
        }
    }
    less(inputs, hook)
}

/// The inputs of which this hook saw none.
fn less(inputs: Vec<Stamped>, hook: &str) -> Vec<Stamped> {
    let mut kept: Vec<Stamped> = Vec::with_capacity(inputs.len());
    for mut stamped in inputs {
        let stays = match &mut stamped.input {
            Input::LogLine(_) => hook != FILE,
            Input::Kernel(Event::Exchange(exchange)) if hook == "requests" => {
                exchange.head = None;
                true
            }
            Input::Kernel(Event::Exchange(exchange)) => {
                let is_reuse = hook == VOICE
                    && exchange.line.is_some()
                    && exchange.connect_at.is_none()
                    && exchange.sent == 0
                    && exchange.began_at.0 == exchange.line.map_or(0, |line| line.at.0);
                if is_reuse && rejoin(&mut kept, exchange) {
                    false
                } else {
                    less_of(exchange, hook);
                    true
                }
            }
            Input::Kernel(event) => is_seen(event, hook),
            _ => true,
        };
        if stays {
            kept.push(stamped);
        }
    }
    kept
}

/// Without the line nobody knows that nginx tried a broken kept connection again: its end belongs to the exchange before.
fn rejoin(kept: &mut [Stamped], unsent: &Exchange) -> bool {
    let before = kept
        .iter_mut()
        .rev()
        .find_map(|stamped| match &mut stamped.input {
            Input::Kernel(Event::Exchange(exchange))
                if exchange.id.conn == unsent.id.conn && exchange.id.number + 1 == unsent.id.number =>
            {
                Some(exchange)
            }
            _ => None,
        });
    let Some(before) = before else { return false };
    **before = Exchange {
        end: EndKind::Closed,
        ended_at: unsent.ended_at,
        closed_in: unsent.closed_in,
        unread: unsent.unread,
        recv_error: unsent.recv_error,
        fin_at: unsent.fin_at,
        reset_at: unsent.reset_at,
        reset_in: unsent.reset_in,
        error: unsent.error,
        error_at: unsent.error_at,
        error_unfetched: unsent.error_unfetched,
        ..(**before).clone()
    };
    true
}

/// What an exchange's record lacks without a hook.
fn less_of(exchange: &mut Exchange, hook: &str) {
    match hook {
        VOICE => {
            exchange.line = None;
            exchange.retry_of = exchange.retry_of.filter(|of| matches!(of, RetryOf::Exchange(_)));
        }
        "resets-received" => {
            exchange.reset_at = None;
            exchange.reset_in = None;
            exchange.acked_at_reset = 0;
        }
        "retransmits" => {
            exchange.syn_retransmits = 0;
            exchange.retransmits = 0;
            exchange.last_retransmit_at = None;
        }
        "accept" => {
            if let Some(backend) = &mut exchange.backend {
                backend.accepted_at = None;
            }
        }
        "unix-connects" if matches!(exchange.peer, Peer::Unix(_)) => {
            exchange.preexisting |= exchange.connect_at.is_some();
            exchange.began_at = exchange
                .connect_at
                .and(exchange.first_sent_at)
                .unwrap_or(exchange.began_at);
            exchange.connect_at = None;
            exchange.established_at = None;
        }
        ESTABLISHED => {
            // The socket still counts the segments that came.
            exchange.answered |= exchange.established_at.take().is_some();
        }
        FIN => {
            exchange.fin_at = None;
            exchange.fin_before_request = false;
        }
        // An error is read at the socket's end as well (state.rs), only later.
        "errors" => exchange.error_at = exchange.error_at.map(|_| exchange.ended_at),
        _ => {}
    }
}

/// Whether another event reaches the tracer without a hook.
fn is_seen(event: &mut Event, hook: &str) -> bool {
    match (hook, event) {
        (VOICE, Event::Line(_))
        | ("processes", Event::ProcessExited { .. } | Event::Forked { .. } | Event::Executed { .. })
        | ("unix-connects", Event::ClientLeft { exchange: None, .. })
        | ("bytes", Event::ClientAnswered { .. })
        | ("accept-queue", Event::ListenerQueue { .. })
        | ("resets-sent", Event::ResetSent { .. })
        | ("drops", Event::Dropped { .. } | Event::DatagramDropped { .. })
        | ("icmp-sent", Event::IcmpSent { .. })
        | ("selinux", Event::SelinuxDenied(_))
        | ("snapshot", Event::ListenerFound { .. }) => false,
        ("resets-sent", Event::BackendEdge { backend, .. }) => backend.reset_reason.take().is_none(),
        ("signals", Event::Signalled { .. }) => false,
        ("requests", Event::ClientAnswered { status, .. }) => {
            *status = None;
            true
        }
        ("signals", Event::ProcessExited { signalled_by, .. }) => {
            *signalled_by = None;
            true
        }
        ("routes", Event::Line(line)) => {
            line.route = None;
            true
        }
        ("connect-denials", Event::Line(line)) => {
            line.denied = None;
            true
        }
        _ => true,
    }
}

/// In what an attempt differs when less is seen.
struct Difference {
    kind: Kind,
    before: Option<Attempt>,
    after: Option<Attempt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The same name, less sure.
    LessSure,
    /// No cause could be proven.
    Unknown,
    /// A consequence of the real cause is named, which is true as well.
    Shallower,
    /// The same name, surer than with more evidence.
    Surer,
    /// Another name.
    Other,
    /// Nothing is said of it.
    Missing,
    /// A failure counts as a success.
    TakenForOk,
    /// A failure that did not happen.
    Invented,
}

impl Difference {
    /// Less is said, and nothing false.
    fn is_honest(&self) -> bool {
        match self.kind {
            Kind::LessSure | Kind::Unknown | Kind::Shallower => true,
            Kind::Missing | Kind::TakenForOk | Kind::Surer | Kind::Other | Kind::Invented => false,
        }
    }

    /// Where nginx is not heard at all, some failures cannot be known: those that left no socket behind, answers that
    /// broke off, a kept connection that was found dead before a byte was sent on it.
    fn is_honest_in_silence(&self) -> bool {
        let is_known_to_nginx_alone = self.before.as_ref().is_some_and(|before| {
            before.connection.is_none()
                || before.bytes_received.is_some_and(|bytes| bytes > 0)
                || (before.reused && before.bytes_sent == Some(0))
        });
        let is_unseen = matches!(self.kind, Kind::Missing | Kind::TakenForOk);
        self.is_honest() || (is_unseen && is_known_to_nginx_alone)
    }

    /// That a line is about UDP only the log file tells, and the line is all that is known of such a try.
    fn is_honest_without_the_file(&self) -> bool {
        let is_over_udp = self.before.as_ref().is_some_and(|before| {
            before.connection.is_none()
                && before.via.as_deref() == Some("stream")
                && before.phase == Phase::Waiting
        });
        self.is_honest() || (self.kind == Kind::Missing && is_over_udp)
    }

    /// A reset that this host sent from a namespace nobody told us of looks as if it came from elsewhere: where it came
    /// from nothing else shows.
    fn is_an_unseen_origin(&self) -> bool {
        let is = |attempt: &Option<Attempt>, id: &str| {
            attempt
                .as_ref()
                .and_then(|attempt| attempt.cause.as_ref())
                .is_some_and(|cause| cause.id == id)
        };
        is(&self.before, "no-listener") && is(&self.after, "refused-remotely")
    }

    /// nginx's voice brings the failed route lookup along, and who denied a connect; without it the host would be asked, and no recording has an
    /// answer that nobody asked for. It also ties what SELinux denied to one system call, where the file has seconds.
    /// Otherwise the log file must say as much.
    fn is_the_hosts_answer(&self) -> bool {
        let is_lost = |cause: &Verdict| {
            cause.id.starts_with("route-")
                || ["cgroup-denied", "security-module-denied"].contains(&cause.id)
                || (self.kind == Kind::LessSure && cause.id == "selinux-denied")
        };
        let was = self.before.as_ref().and_then(|before| before.cause.as_ref());
        self.is_honest() && was.is_some_and(is_lost)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |attempt: &Option<Attempt>| match attempt {
            Some(attempt) => match &attempt.cause {
                Some(cause) => format!(
                    "{} {} ({}) {:?}",
                    attempt.outcome,
                    cause.id,
                    cause.confidence,
                    attempt.peer.as_ref().map(ToString::to_string)
                ),
                None => attempt.outcome.to_string(),
            },
            None => "nothing".to_owned(),
        };
        write!(
            f,
            "{:?}: {} became {}",
            self.kind,
            short(&self.before),
            short(&self.after)
        )?;
        if let Some(after) = &self.after {
            write!(f, " [{}]", after.unseen.join("; "))?;
        }
        Ok(())
    }
}

/// Pairs attempts of two traces by their exchange, those without one by what they are.
fn compare(before: &[Attempt], after: &[Attempt]) -> Vec<Difference> {
    let mut by_exchange: BTreeMap<ExchangeId, &Attempt> = BTreeMap::new();
    let mut lone: Vec<&Attempt> = Vec::new();
    for attempt in after {
        match attempt.connection {
            Some(id) => {
                by_exchange.insert(id, attempt);
            }
            None => lone.push(attempt),
        }
    }
    let mut pairs: Vec<(Option<&Attempt>, Option<&Attempt>)> = Vec::new();
    for attempt in before {
        let found = attempt
            .connection
            .and_then(|id| by_exchange.remove(&id))
            .or_else(|| {
                // Without its line in the file, some of these do not know their peer.
                let same = |other: &&Attempt| {
                    let is_peer = other.peer == attempt.peer || other.peer.is_none();
                    attempt.outcome != Outcome::Ok && other.worker == attempt.worker && is_peer
                };
                lone.iter().position(same).map(|at| lone.remove(at))
            });
        pairs.push((Some(attempt), found));
    }
    pairs.extend(
        by_exchange
            .into_values()
            .chain(lone)
            .map(|attempt| (None, Some(attempt))),
    );
    pairs
        .into_iter()
        .filter_map(|(before, after)| {
            kind(before, after).map(|kind| Difference {
                kind,
                before: before.cloned(),
                after: after.cloned(),
            })
        })
        .collect()
}

fn kind(before: Option<&Attempt>, after: Option<&Attempt>) -> Option<Kind> {
    let is_ok = |attempt: &Attempt| attempt.outcome == Outcome::Ok;
    let (before, after) = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => return (!is_ok(after)).then_some(Kind::Invented),
        (Some(_), None) => return Some(Kind::Missing),
        (Some(before), Some(after)) => (before, after),
    };
    let (was, is) = match (&before.cause, &after.cause) {
        (None, None) => return None,
        (None, Some(_)) => return Some(Kind::Invented),
        (Some(_), None) => return Some(Kind::TakenForOk),
        (Some(was), Some(is)) => (was, is),
    };
    if was.id == is.id {
        return match is.confidence.cmp(&was.confidence) {
            std::cmp::Ordering::Less => Some(Kind::LessSure),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Kind::Surer),
        };
    }
    let explains = diagnose::causes::find(was.id).is_some_and(|was| diagnose::explains(was, is.id));
    let is_also = before.also.iter().any(|also| also.id == is.id);
    Some(match is.confidence {
        Confidence::Possible => Kind::Unknown,
        _ if explains && is_also => Kind::Shallower,
        _ => Kind::Other,
    })
}
