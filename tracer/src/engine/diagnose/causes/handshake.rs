//! A handshake that came to nothing although both ends took part in it: the peer's answer was too late, or the last packet
//! met a full accept queue.

use std::net::SocketAddr;

use super::facts::{
    ACCEPT_FASTER, Queue, Translated, accept_faster, asked_queue, connect_fact, drop_fact, locality, queue_fact, request_fact, reset_fact, rst_fact, timer,
    translated, translation_fact,
};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{DropKind, Dropped, LateAnswer, Locality, SlowHandshake, Surroundings, covers},
        text::{between, counted, process, span},
    },
    event::{Answer, Errno, Exchange, Listener, Question, ResetBy},
    model::{Evidence, Outcome},
};

pub const SLOW_HANDSHAKE: Cause = Cause {
    id: "slow-handshake",
    title: "the peer does take connections, but the handshake took longer than nginx's connect timeout",
    explains: &["syn-unanswered"],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while connecting to upstream",
    recognised: "the peer's SYN+ACK came when nginx had just given up, and this host had no socket for it any more; or \
        (`likely`) this connect's SYNs, two repeated ones at most, had no answer while another connect to the same far peer was \
        complete after its SYN had been repeated: SYNs get lost, and the timer left no time to repeat them often enough",
    needs: &[],
    look_alikes: &["syn-unanswered", "packet-dropped-locally", "accept-queue-full"],
    remedy: "Linux repeats a lost SYN after 1 s: let proxy_connect_timeout be longer than two or three such repeats, and look \
        for what loses or delays the packets (a full accept queue on the peer's host loses SYNs, too)",
    check: slow_handshake,
};

pub const HANDSHAKE_HALF_OPEN: Cause = Cause {
    id: "handshake-half-open",
    title: "the backend's accept queue was full when the handshake's last packet came: the connection stands on nginx's side \
        only",
    explains: &["path-lost", "packet-dropped-locally"],
    outcomes: &[Outcome::TimedOut, Outcome::Reset],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading response header from upstream; recv() failed \
        (104: Connection reset by peer) where the backend's kernel forgets the connection first",
    recognised: "the SYN was answered and nginx's connection is up, yet this host made no socket for it at the other end and \
        acknowledged nothing: its kernel dropped the handshake's last packet on a full accept queue (it says so from Linux \
        6.14 on), or the listener held more connections than its limit when nginx gave up",
    needs: &[],
    look_alikes: &[
        "never-accepted",
        "path-lost",
        "accept-queue-full",
        "accept-queue-reset",
        "backend-slow",
    ],
    remedy: ACCEPT_FASTER,
    check: handshake_half_open,
};

pub const ACCEPT_QUEUE_RESET: Cause = Cause {
    id: "accept-queue-reset",
    title: "the backend's accept queue was full, and its kernel resets what does not fit (tcp_abort_on_overflow)",
    explains: &["handshake-half-open"],
    outcomes: &[Outcome::Reset],
    nginx_logs: "connect() failed (104: Connection reset by peer) while connecting to upstream; or recv() failed (104: …) while \
        reading response header from upstream",
    recognised: "the SYN was answered, and then the listening socket itself, not one of a connection, reset nginx's next \
        packet; net.ipv4.tcp_abort_on_overflow is 1 in its network namespace",
    needs: &[],
    look_alikes: &[
        "handshake-half-open",
        "listener-restarting",
        "closed-on-accept",
        "firewall-reset-midstream",
    ],
    remedy: "accept faster or raise the listener's backlog and net.core.somaxconn; net.ipv4.tcp_abort_on_overflow=0 (the \
        default) lets repeated packets wait for room",
    check: accept_queue_reset,
};

/// After more repeats in vain than these it is more than a loss here and there.
const REPEATS_LOST: u32 = 2;
/// nginx finds a handshake complete and lets its timer go first only if both come in one round of its loop.
const ONE_ROUND: u64 = 50_000_000;

fn slow_handshake(subject: &Subject<'_>, around: &Surroundings) -> Check {
    if let Some(exchange) = subject.connected() {
        return complete_at_the_end(subject, exchange);
    }
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let is_answered = exchange.reset_at.is_some() || exchange.icmp.is_some() || exchange.soft_error.is_some();
    if is_answered || exchange.error == Some(Errno(110)) {
        return Check::No;
    }
    let (gave_up, mut evidence) = timer(subject);
    evidence.push(connect_fact(exchange));
    if let Some(answer) = around.late_answer(exchange) {
        evidence.push(late_answer_fact(exchange, answer));
        let summary = format!(
            "{} did answer the SYN, {} after it was first sent; {gave_up} {} before.",
            exchange.peer,
            between(exchange.began_at, answer.at),
            between(exchange.ended_at, answer.at),
        );
        return Stand::confirmed(summary, evidence).into();
    }
    if exchange.syn_retransmits > REPEATS_LOST {
        return Check::No;
    }
    if subject.may_wait {
        return Check::NotYet;
    }
    // What became of a SYN to this host would have been seen.
    let is_far = locality(exchange, around) != Locality::ThisHost
        && match translated(subject, exchange, around) {
            Translated::Ask(question) => return Check::Ask(question),
            Translated::To(_, Locality::ThisHost) | Translated::Unclear => false,
            Translated::To(..) | Translated::No => true,
        };
    if !is_far {
        return Check::No;
    }
    let Some(other) = around.slow_handshake_meanwhile(exchange) else {
        return Check::No;
    };
    evidence.push(slow_handshake_fact(exchange, other));
    let summary = format!(
        "{} to {} got no answer in time, while another connect there was complete {} after its SYN had been repeated {}: \
         SYNs get lost on the way, and {gave_up}.",
        counted(u64::from(exchange.syn_retransmits) + 1, "SYN"),
        exchange.peer,
        span(other.took),
        times(other.syn_retransmits),
    );
    Stand::likely(summary, evidence).into()
}

/// The handshake was complete as nginx's timer ran out: it looks at its timers with events of the next round pending.
fn complete_at_the_end(subject: &Subject<'_>, exchange: &Exchange) -> Check {
    let (Some(began), Some(complete)) = (exchange.connect_at, exchange.established_at) else {
        return Check::No;
    };
    let is_unused = exchange.sent == 0 && exchange.received == 0 && exchange.reset_at.is_none();
    let is_at_the_end = exchange.ended_at.since(complete) <= ONE_ROUND && complete <= exchange.ended_at;
    let was_connecting = subject
        .said
        .and_then(|said| said.action.as_deref())
        .is_some_and(|action| action.starts_with("connecting"));
    // A worker that was kept from its events is another story.
    if !is_unused || !is_at_the_end || !was_connecting || complete.since(began) <= ONE_ROUND {
        return Check::No;
    }
    let evidence = vec![
        connect_fact(exchange),
        fact(complete, "tcp", "connection established by the kernel"),
    ];
    let summary = format!(
        "The handshake with {} was complete {} after it began, just as nginx's connect timeout ran out.",
        exchange.peer,
        between(began, complete),
    );
    Stand::confirmed(summary, evidence).into()
}

fn late_answer_fact(exchange: &Exchange, answer: &LateAnswer) -> Evidence {
    let late = answer.at.since(exchange.ended_at);
    let text = format!(
        "the SYN+ACK of {} arrived, {} after nginx had closed the socket",
        answer.tuple.source,
        span(late)
    );
    fact(answer.at, "tcp", text)
        .text("from", answer.tuple.source.to_string())
        .count("late_us", late / 1000)
        .count("took_us", answer.at.micros_since(exchange.began_at))
}

fn slow_handshake_fact(exchange: &Exchange, other: &SlowHandshake) -> Evidence {
    let text = format!(
        "another connection to {} established, {} after its first SYN, which was repeated {}",
        exchange.peer,
        span(other.took),
        times(other.syn_retransmits)
    );
    fact(other.at, "tcp", text)
        .count("took_us", other.took / 1000)
        .number("repeated", other.syn_retransmits)
}

fn times(n: u32) -> String {
    if n == 1 {
        "once".to_owned()
    } else {
        format!("{n} times")
    }
}

/// A new connection that stands on nginx's side and of which the peer, on this host, has no socket: its kernel took the SYN,
/// and nothing after it.
enum HalfOpen<'a> {
    /// The host is to be asked where the peer really is.
    Ask(Question),
    /// With the peer's real address.
    At(SocketAddr, &'a Exchange),
    /// It is none.
    No,
}

impl<'a> HalfOpen<'a> {
    fn find(subject: &Subject<'a>, around: &Surroundings) -> Self {
        let (Some(exchange), Some(peer)) = (subject.connected(), subject.address()) else {
            return Self::No;
        };
        let is_new = exchange.id.number == 1 && exchange.connect_at.and(exchange.established_at).is_some();
        let is_unheard = exchange.acked == 0 && exchange.received == 0 && exchange.fin_at.is_none();
        if !is_new || !is_unheard || exchange.backend.is_some() {
            return Self::No;
        }
        if locality(exchange, around) == Locality::ThisHost {
            return Self::At(peer, exchange);
        }
        match translated(subject, exchange, around) {
            Translated::Ask(question) => Self::Ask(question),
            Translated::To(real, Locality::ThisHost) => Self::At(real, exchange),
            Translated::To(..) | Translated::No | Translated::Unclear => Self::No,
        }
    }
}

/// The packets of nginx's that this host dropped: how often on a full accept queue, and the last such drop, unless the last
/// of all was another one.
fn overflows<'a>(exchange: &Exchange, around: &'a Surroundings) -> Option<(u64, &'a Dropped)> {
    let drops = around.drops_of(exchange);
    let ours = || {
        drops
            .iter()
            .filter(|dropped| Some(dropped.tuple.source) == exchange.local && !dropped.is_syn())
    };
    let is_overflow = |dropped: &&&'a Dropped| dropped.kind() == DropKind::AcceptQueue;
    let last = ours().next_back().filter(is_overflow)?;
    Some((ours().filter(is_overflow).count() as u64, last))
}

fn handshake_half_open(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (real, exchange) = match HalfOpen::find(subject, around) {
        HalfOpen::Ask(question) => return Check::Ask(question),
        HalfOpen::At(real, exchange) => (real, exchange),
        HalfOpen::No => return Check::No,
    };
    let overflows = overflows(exchange, around);
    let is_rejected = around.drops_of(exchange).iter().any(|dropped| {
        Some(dropped.tuple.source) == exchange.local
            && matches!(dropped.kind(), DropKind::Netfilter | DropKind::Local)
    });
    // What a rule of this host takes never meets the queue; and where nothing was sent nothing can be acknowledged.
    if overflows.is_none() && (is_rejected || exchange.sent == 0) {
        return Check::No;
    }
    let is_reset = subject.attempt.outcome == Outcome::Reset;
    let (gave_up, mut evidence) = match (is_reset, exchange.reset_at, overflows) {
        (false, None, _) => timer(subject),
        // The listener's kernel forgot the connection it had never made, and reset what still came.
        (true, Some(reset_at), Some((_, last))) if reset_at.since(last.at) > ONE_ROUND => {
            let text = "the peer's kernel forgot the half-made connection and reset it".to_owned();
            (text, rst_fact(exchange).into_iter().collect())
        }
        _ => return Check::No,
    };
    evidence.push(connect_fact(exchange));
    evidence.extend(
        exchange
            .established_at
            .map(|at| fact(at, "tcp", "connection established by nginx's kernel")),
    );
    evidence.extend(request_fact(exchange));
    if let Some((n, last)) = overflows {
        evidence.push(drop_fact(last).count("drops", n));
    }
    let full = match full_queue(subject, around, exchange, real) {
        Queue::Ask(question) if overflows.is_none() => return Check::Ask(question),
        Queue::Full(at, listener) => Some((at, listener)),
        Queue::Ask(_) | Queue::Unknown => None,
    };
    let what = "the handshake's last packet and the request were dropped";
    if let Some((at, listener)) = full {
        evidence.push(queue_fact(at, &listener));
        let mut summary = format!(
            "The accept queue of {} is full ({} waiting, limit {}; {}): the connection stands on nginx's side only, and {what}; \
             {gave_up}.",
            listener.address,
            listener.queue,
            listener.limit,
            process(&listener.task)
        );
        if Some(real) != subject.address() {
            evidence.push(translation_fact(exchange, real, exchange.began_at));
            summary = format!("{summary} {} is translated to {real}.", exchange.peer);
        }
        let stand = Stand::confirmed(summary, evidence).with_remedy(accept_faster(&listener));
        return if around.sees("drops") {
            stand.into()
        } else {
            stand
                .without("drops: something else of this host may have dropped what nginx sent")
                .into()
        };
    }
    if overflows.is_none() {
        return Check::No;
    }
    let summary = format!(
        "The accept queue at {} was full when the handshake came to its end: the connection stands on nginx's side only, and \
         {what}; {gave_up}.",
        exchange.peer
    );
    Stand::confirmed(summary, evidence).into()
}

/// The queue as the kernel half read it; behind a translated address it does not find the listener, and the host is asked.
fn full_queue(subject: &Subject<'_>, around: &Surroundings, exchange: &Exchange, real: SocketAddr) -> Queue {
    if Some(real) == subject.address() {
        return match around.queue_of(exchange) {
            Some((at, listener)) if listener.queue > listener.limit => {
                Queue::Full(Some(at), listener.clone())
            }
            _ => Queue::Unknown,
        };
    }
    asked_queue(subject, around, exchange, real)
}

fn accept_queue_reset(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let HalfOpen::At(_, exchange) = HalfOpen::find(subject, around) else {
        return Check::No;
    };
    let Some(reset) = around
        .resets_answering(exchange)
        .find(|reset| reset.by == ResetBy::Listener)
    else {
        return Check::No;
    };
    // A listener also resets what comes for a connection that it never had, or that it forgot.
    let address = reset.tuple.destination;
    let listener = around
        .listeners_on(reset.netns, address.port())
        .filter(|life| life.is_open_at(exchange.began_at) && life.is_open_at(reset.at))
        .rfind(|life| covers(&life.listener, address));
    let Some(life) = listener else {
        return Check::No;
    };
    let at = subject.attempt.ended_at;
    let pid = life.listener.task.pid;
    let setting = Question::AbortsOnOverflow { pid };
    let is_set = match around.answer(&setting, at) {
        None if subject.may_wait => return Check::Ask(setting),
        Some(Answer::AbortsOnOverflow { is_set }) => *is_set,
        _ => false,
    };
    if !is_set {
        return Check::No;
    }
    let queue = Question::AcceptQueue { pid, address };
    let queue = match around.answer(&queue, at) {
        None if subject.may_wait => return Check::Ask(queue),
        Some(&Answer::AcceptQueue { waiting, limit, .. }) => Some((waiting, limit)),
        _ => None,
    };
    let mut evidence = vec![connect_fact(exchange), reset_fact(reset)];
    evidence.extend(rst_fact(exchange));
    let text = "net.ipv4.tcp_abort_on_overflow is 1 in the listener's network namespace";
    evidence.push(fact(None, "limit", text).number("tcp_abort_on_overflow", 1));
    let who = process(&life.listener.task);
    let found = queue.map_or(String::new(), |(waiting, limit)| {
        let listener = Listener {
            queue: waiting,
            limit,
            ..life.listener.clone()
        };
        evidence.push(queue_fact(None, &listener));
        format!(", {waiting} waiting a moment later, limit {limit}")
    });
    let summary = format!(
        "The accept queue of {} was full when the handshake came to its end ({who}{found}), and its kernel reset the \
         connection (tcp_abort_on_overflow).",
        life.listener.address
    );
    let remedy = format!(
        "let {} accept faster or raise its backlog ({}) together with net.core.somaxconn; with \
         net.ipv4.tcp_abort_on_overflow=0 the kernel would let nginx's repeated packets wait for room",
        life.listener.task.comm, life.listener.limit
    );
    Stand::confirmed(summary, evidence).with_remedy(remedy).into()
}
