//! A SYN that got no answer: dropped on this host, dropped on a full accept queue, or gone into the dark.

use super::facts::{
    ACCEPT_FASTER, Queue, Translated, accept_faster, asked_queue, connect_fact, drop_fact, locality, queue_fact, request_fact, timer, translated, translation_fact,
};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{DropKind, Dropped, Locality, Surroundings},
        text::{counted, process},
    },
    event::{Errno, Exchange, Listener},
    model::{Confidence, Evidence, Outcome},
};

pub const SYN_UNANSWERED: Cause = Cause {
    id: "syn-unanswered",
    title: "SYNs left this host and nobody answered",
    explains: &[],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while connecting to upstream; connect() failed (110: …) \
        when the kernel gave up first",
    recognised: "no SYN+ACK, no reset, no ICMP and no drop on this host until nginx's timer or the kernel gave up",
    needs: &["drops"],
    look_alikes: &[
        "slow-handshake",
        "packet-dropped-locally",
        "accept-queue-full",
        "neighbour-silent",
    ],
    remedy: "is the peer's host up, is the address right, does a firewall or security group on the way drop silently? \
        A packet capture on the peer's host says whether the SYN arrives",
    check: syn_unanswered,
};

pub const PACKET_DROPPED_LOCALLY: Cause = Cause {
    id: "packet-dropped-locally",
    title: "this host itself dropped the connection's packets",
    explains: &[
        "syn-unanswered",
        "slow-handshake",
        "path-lost",
        "backend-slow",
        "response-stalled",
    ],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while connecting to upstream; while reading response header \
        from upstream, when a connection that was up is cut",
    recognised: "the kernel freed the SYN, the SYN+ACK, the request's segments or the answer's on this host, with its reason \
        (netfilter rule, reverse path filter, cgroup or traffic-control program, shortage)",
    needs: &[],
    look_alikes: &["syn-unanswered", "accept-queue-full", "firewall-reset"],
    remedy: "find what dropped it: for NETFILTER_DROP the rule (nft list ruleset, iptables-save), for IP_RPFILTER \
        (before Linux 5.17 ip_rcv_finish_core, usually for that) the rp_filter setting of the interface, for BPF or TC the program",
    check: packet_dropped_locally,
};

pub const ACCEPT_QUEUE_FULL: Cause = Cause {
    id: "accept-queue-full",
    title: "the backend's accept queue is full, and the kernel dropped the handshake",
    explains: &[
        "syn-unanswered",
        "slow-handshake",
        "packet-dropped-locally",
    ],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while connecting to upstream",
    recognised: "at the moment of silence the listener held more connections than its limit (read in the kernel; behind a \
        translated address when nginx had given up, by asking the host)",
    needs: &[],
    look_alikes: &[
        "syn-unanswered",
        "packet-dropped-locally",
        "never-accepted",
        "handshake-half-open",
    ],
    remedy: ACCEPT_FASTER,
    check: accept_queue_full,
};

/// nginx's timer or the kernel: who gave up, as a sentence, and its evidence.
fn who_gave_up(subject: &Subject<'_>, exchange: &Exchange) -> (String, Vec<Evidence>) {
    if exchange.error == Some(Errno(110)) {
        let text = format!(
            "the kernel gave up after {}",
            counted(u64::from(exchange.syn_retransmits), "repeated SYN")
        );
        let evidence =
            fact(exchange.error_at, "tcp", "the kernel gave up (tcp_syn_retries)").number("errno", 110);
        return (text, vec![evidence]);
    }
    timer(subject)
}

fn syn_unanswered(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let is_answered = exchange.answered
        || exchange.reset_at.is_some()
        || exchange.icmp.is_some()
        || exchange.soft_error.is_some();
    // That it left this host is known only where this host's own drops are seen.
    if is_answered || !around.sees("drops") || local_drop(exchange, around).is_some() {
        return Check::No;
    }
    // Our own stack answers or drops; that neither was seen means that something was not.
    if locality(exchange, around) == Locality::ThisHost {
        return Check::No;
    }
    let (gave_up, mut evidence) = who_gave_up(subject, exchange);
    evidence.push(connect_fact(exchange));
    match translated(subject, exchange, around) {
        Translated::Ask(question) => return Check::Ask(question),
        // It never left.
        Translated::To(_, Locality::ThisHost) | Translated::Unclear => return Check::No,
        Translated::To(real, Locality::Elsewhere | Locality::Unknown) => {
            evidence.push(translation_fact(exchange, real, exchange.began_at));
        }
        Translated::No => {}
    }
    let summary = format!(
        "{} to {} left this host and nothing came back; {gave_up}.",
        counted(u64::from(exchange.syn_retransmits) + 1, "SYN"),
        exchange.peer
    );
    Stand::confirmed(summary, evidence).into()
}

fn local_drop<'a>(exchange: &Exchange, around: &'a Surroundings) -> Option<&'a Dropped> {
    around
        .drops_of(exchange)
        .into_iter()
        .find(|dropped| matches!(dropped.kind(), DropKind::Netfilter | DropKind::Local))
}

/// The first packet with data for nginx that was dropped after all that did arrive: what is sent again and arrives
/// heals a drop.
fn answer_drop<'a>(exchange: &Exchange, around: &'a Surroundings) -> Option<&'a Dropped> {
    /// PSH and FIN: the end of what was written.
    const DATA: u8 = 0x09;
    let after = exchange.last_received_at.or(exchange.first_sent_at)?;
    around.drops_of(exchange).into_iter().find(|dropped| {
        matches!(dropped.kind(), DropKind::Netfilter | DropKind::Local)
            && Some(dropped.tuple.destination) == exchange.local
            && dropped.flags & DATA != 0
            && dropped.at >= after
    })
}

fn packet_dropped_locally(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.exchange else {
        return Check::No;
    };
    if exchange.reset_at.is_some() {
        return Check::No;
    }
    let is_connected = subject.connected().is_some();
    let is_stuck = exchange.acked < exchange.sent && exchange.received == 0;
    let first = if !is_connected || is_stuck {
        local_drop(exchange, around)
    } else {
        answer_drop(exchange, around)
    };
    let Some(first) = first else {
        return Check::No;
    };
    let n_drops = around.drops_of(exchange).len();
    let is_answer = Some(first.tuple.destination) == exchange.local;
    let what = match (is_connected, is_answer) {
        (true, _) if !is_stuck && exchange.received > 0 => "the rest of the backend's answer",
        (true, _) if !is_stuck => "the backend's answer",
        (true, _) => "the connection's packets",
        (false, true) => "the peer's answer to the SYN",
        (false, false) => "the SYN",
    };
    let reason = first
        .reason
        .as_deref()
        .or(first.location.as_deref())
        .unwrap_or("no reason given");
    let place = if first.netns == exchange.netns {
        ""
    } else {
        ", in another network namespace"
    };
    let (gave_up, mut evidence) = who_gave_up(subject, exchange);
    if is_connected {
        evidence.extend(request_fact(exchange));
    } else {
        evidence.push(connect_fact(exchange));
    }
    evidence.push(drop_fact(first).count("drops", n_drops as u64));
    let summary = format!(
        "This host dropped {what} for {} ({reason}{place}); {gave_up}.",
        exchange.peer
    );
    Stand::confirmed(summary, evidence).into()
}

fn accept_queue_full(subject: &Subject<'_>, around: &Surroundings) -> Check {
    // A SYN that was answered did not meet a full queue; see `handshake-half-open`.
    let Some(exchange) = subject.connecting().filter(|exchange| !exchange.answered) else {
        return Check::No;
    };
    let full = around
        .queue_of(exchange)
        .filter(|(_, listener)| listener.queue > listener.limit);
    let (gave_up, mut evidence) = who_gave_up(subject, exchange);
    evidence.push(connect_fact(exchange));
    evidence.extend(around.drops_of(exchange).into_iter().map(drop_fact));
    if let Some((at, listener)) = full {
        evidence.push(queue_fact(at, listener));
        return full_queue(listener, &gave_up, evidence).into();
    }
    translated_queue_full(subject, exchange, around, (&gave_up, evidence))
}

/// Behind a translated address the kernel half does not find the listener: whether its queue is full now is asked of the
/// host.
fn translated_queue_full(
    subject: &Subject<'_>,
    exchange: &Exchange,
    around: &Surroundings,
    (gave_up, mut evidence): (&str, Vec<Evidence>),
) -> Check {
    let is_answered = exchange.answered
        || exchange.reset_at.is_some()
        || exchange.icmp.is_some()
        || exchange.soft_error.is_some();
    let is_dropped = around
        .drops_of(exchange)
        .into_iter()
        .any(|dropped| dropped.kind() != DropKind::Noise);
    if subject.connecting().is_none() || is_answered || is_dropped {
        return Check::No;
    }
    let real = match translated(subject, exchange, around) {
        Translated::Ask(question) => return Check::Ask(question),
        Translated::To(real, Locality::ThisHost) => real,
        Translated::To(..) | Translated::No | Translated::Unclear => return Check::No,
    };
    // Its stack answers or drops, and of drops only the one on a full queue says nothing: so the queue was full each time.
    let listener = match asked_queue(subject, around, exchange, real) {
        Queue::Ask(question) => return Check::Ask(question),
        Queue::Full(_, listener) => listener,
        Queue::Unknown => return Check::No,
    };
    evidence.push(translation_fact(exchange, real, exchange.began_at));
    evidence.push(queue_fact(None, &listener));
    let stand = full_queue(&listener, gave_up, evidence);
    if around.sees("drops") {
        stand.into()
    } else {
        Stand {
            confidence: Confidence::Likely,
            ..stand.without("drops: another one of this host may have dropped the SYN")
        }
        .into()
    }
}

fn full_queue(listener: &Listener, gave_up: &str, evidence: Vec<Evidence>) -> Stand {
    let summary = format!(
        "The accept queue of {} is full ({} waiting, limit {}; {}), so the kernel dropped the SYN; {gave_up}.",
        listener.address,
        listener.queue,
        listener.limit,
        process(&listener.task)
    );
    Stand::confirmed(summary, evidence).with_remedy(accept_faster(listener))
}
