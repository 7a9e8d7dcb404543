//! No cause stands: all evidence is printed, and what would have been needed is said.

use super::facts::{
    backend_close_fact, closed_at, connect_fact, datagram_fact, datagrams, drop_fact, fin_fact, icmp_fact, icmp_sent_fact,
    listener_closed_fact, queue_fact, request_fact, reset_fact, rst_fact,
};
use crate::{
    engine::{
        diagnose::{Cause, Check, Subject, fact},
        surroundings::Surroundings,
        text::strerror,
    },
    event::{Exchange, Peer},
    model::{Confidence, Evidence, Outcome, Verdict},
};

pub const UNKNOWN: Cause = Cause {
    id: "unknown",
    title: "no cause could be proven: everything that was seen is listed",
    explains: &[],
    outcomes: &Outcome::ALL,
    nginx_logs: "anything",
    recognised: "no other cause stands at `likely` or better",
    needs: &[],
    look_alikes: &[],
    remedy: "see what `unseen` names; `tracer check` says what this kernel and host can show",
    // It stands when nothing else does, which no single check can know.
    check: |_, _| Check::No,
};

/// The verdict when no cause stands.
pub fn nothing_stands(subject: &Subject<'_>, around: &Surroundings) -> Verdict {
    let mut evidence: Vec<Evidence> = Vec::new();
    if let Some(said) = subject.said.filter(|said| !said.is_by_kernel()) {
        evidence.push(fact(subject.attempt.ended_at, "nginx", said.text.clone()));
    }
    if let Some(exchange) = subject.exchange {
        evidence.extend(everything(exchange, around));
    }
    evidence.extend(datagrams(subject, around).map(datagram_fact));
    evidence.sort_by_key(|fact| fact.at.map_or(u64::MAX, |at| at.0));
    let what = subject.attempt.outcome.name();
    let summary = match subject.attempt.errno {
        Some(errno) => format!(
            "It ended as {what} ({}: {}); nothing that was seen proves why.",
            errno.0,
            strerror(errno)
        ),
        None => format!("It ended as {what}; nothing that was seen proves why."),
    };
    Verdict {
        id: UNKNOWN.id,
        confidence: Confidence::Possible,
        summary,
        remedy: UNKNOWN.remedy.to_owned(),
        evidence,
    }
}

fn everything(exchange: &Exchange, around: &Surroundings) -> Vec<Evidence> {
    let mut evidence = Vec::new();
    if exchange.connect_at.is_some() {
        evidence.push(connect_fact(exchange));
    }
    evidence.extend(
        exchange
            .established_at
            .map(|at| fact(at, "tcp", "connection established")),
    );
    evidence.extend(request_fact(exchange));
    evidence.extend(exchange.last_received_at.map(|at| {
        fact(
            at,
            "tcp",
            format!("{} bytes of an answer read", exchange.received),
        )
    }));
    evidence.extend(fin_fact(exchange));
    evidence.extend(rst_fact(exchange));
    evidence.extend(icmp_fact(exchange));
    evidence.extend(exchange.error.map(|error| {
        fact(
            exchange.error_at,
            "tcp",
            format!("the socket reported {}: {}", error.0, strerror(error)),
        )
        .number("errno", error.0)
    }));
    if exchange.unread > 0 {
        evidence.push(fact(
            exchange.ended_at,
            "tcp",
            format!("{} bytes arrived and were never read", exchange.unread),
        ));
    }
    if let Some(backend) = &exchange.backend {
        let under_way = backend
            .sent
            .saturating_sub(exchange.received)
            .saturating_sub(exchange.unread);
        if under_way > 0 {
            evidence.push(
                fact(
                    exchange.ended_at,
                    "tcp",
                    format!("{under_way} bytes that the backend had written did not arrive"),
                )
                .count("under_way", under_way),
            );
        }
    }
    evidence.extend(exchange.backend.as_ref().and_then(backend_close_fact));
    evidence.extend(around.resets_answering(exchange).take(4).map(reset_fact));
    evidence.extend(around.drops_of(exchange).into_iter().take(4).map(drop_fact));
    evidence.extend(around.icmp_about(exchange).take(4).map(icmp_sent_fact));
    evidence.extend(
        around
            .queue_of(exchange)
            .map(|(at, listener)| queue_fact(at, listener)),
    );
    if let Peer::Tcp(address) = exchange.peer {
        let closed = around
            .listeners_on(exchange.netns, address.port())
            .filter(|life| closed_at(life).is_some());
        evidence.extend(closed.rev().take(2).filter_map(listener_closed_fact));
    }
    evidence
}
