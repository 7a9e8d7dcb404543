//! A connect refused by a firewall: with a reset by a rule of this host, or with ICMP port-unreachable by anybody.

use super::facts::{SynAnswer, connect_fact, datagram_fact, datagrams, drop_fact, icmp_fact, icmp_sent_fact, request_fact, rst_fact, syn_answer};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject},
        surroundings::{CALL, DatagramDropped, DropKind, Dropped, SLACK, Surroundings},
    },
    event::{Exchange, Icmp, Peer},
    model::Outcome,
};

pub const FIREWALL_RESET: Cause = Cause {
    id: "firewall-reset",
    title: "a firewall rule of this host answered nginx's SYN with a reset",
    explains: &["refused-remotely"],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream",
    recognised: "netfilter dropped the SYN on this host, and a reset came that no TCP of this host sent",
    needs: &["resets-sent", "drops"],
    look_alikes: &[
        "no-listener",
        "refused-remotely",
        "firewall-port-unreachable",
        "firewall-reset-midstream",
    ],
    remedy: "find the rule (nft list ruleset, iptables-save: REJECT with tcp-reset) and allow nginx to reach the peer",
    check: firewall_reset,
};

pub const FIREWALL_RESET_MIDSTREAM: Cause = Cause {
    id: "firewall-reset-midstream",
    title: "a firewall rule of this host cut a connection that was up, with a reset",
    explains: &["reset-remotely", "closed-mid-response"],
    outcomes: &[Outcome::Reset],
    nginx_logs: "recv() failed (104: Connection reset by peer) while reading response header from upstream; or writev() failed \
        (104: …) while sending request to upstream",
    recognised: "netfilter dropped what nginx sent on the connection, on this host, and at the same moment a reset came that no \
        TCP of this host sent",
    needs: &["resets-sent", "drops"],
    look_alikes: &[
        "reset-remotely",
        "closed-abortively",
        "closed-unread",
        "keepalive-race",
        "firewall-reset",
    ],
    remedy: "find the rule (nft list ruleset, iptables-save: REJECT with tcp-reset); where it rejects what connection tracking \
        does not know (`ct state invalid`, everything but `established`), see what made the connection unknown: rules loaded \
        anew, conntrack entries flushed or expired (nf_conntrack_tcp_timeout_established)",
    check: firewall_reset_midstream,
};

pub const FIREWALL_PORT_UNREACHABLE: Cause = Cause {
    id: "firewall-port-unreachable",
    title: "a firewall answered nginx with ICMP port-unreachable",
    explains: &["packet-dropped-locally"],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream",
    recognised: "no segment arrived; the socket's error is an ICMP port-unreachable (a TCP host answers with a reset, so \
        this is a rule's doing): with its sender on IPv4, by this host's own drop of the SYN otherwise. Over UDP: this host's netfilter dropped the datagram",
    needs: &[],
    look_alikes: &["no-listener", "firewall-reset", "refused-remotely"],
    remedy: "find the rule on the host that sent it (nft list ruleset, iptables-save: REJECT), or for a Kubernetes \
        service give it endpoints",
    check: firewall_port_unreachable,
};

fn firewall_reset(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let Some(SynAnswer::Firewall { rule }) = syn_answer(exchange, around) else {
        return Check::No;
    };
    let place = place_of(rule, exchange);
    let summary = format!(
        "A netfilter rule of this host ({place}) refused the SYN to {} with a reset; no TCP of this host answered.",
        exchange.peer
    );
    let mut evidence = vec![connect_fact(exchange), drop_fact(rule)];
    evidence.extend(rst_fact(exchange));
    Stand::confirmed(summary, evidence).into()
}

fn firewall_reset_midstream(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connected() else {
        return Check::No;
    };
    let Some(reset_at) = exchange.reset_at else {
        return Check::No;
    };
    let is_closed = exchange
        .backend
        .as_ref()
        .is_some_and(|backend| backend.closed_at.is_some());
    if is_closed || around.resets_answering(exchange).next().is_some() {
        return Check::No;
    }
    // The rule sends the reset, then drops the packet. When the reset arrives is a matter of the processor where the
    // backend's socket is known to stand: nobody else can have sent it.
    let longest = if exchange.backend.is_some() { CALL } else { SLACK };
    let rule = around.drops_of(exchange).into_iter().find(|dropped| {
        let is_nginxs = Some(dropped.tuple.source) == exchange.local;
        let apart = dropped.at.since(reset_at).max(reset_at.since(dropped.at));
        is_nginxs && apart <= longest && dropped.kind() == DropKind::Netfilter
    });
    let Some(rule) = rule else {
        return Check::No;
    };
    let summary = format!(
        "A netfilter rule of this host ({}) rejected what nginx sent to {} with a reset; no TCP of this host sent it.",
        place_of(rule, exchange),
        exchange.peer
    );
    let mut evidence = vec![request_fact(exchange), Some(drop_fact(rule))];
    evidence.push(rst_fact(exchange));
    Stand::confirmed(summary, evidence.into_iter().flatten().collect()).into()
}

fn place_of(rule: &Dropped, exchange: &Exchange) -> &'static str {
    if rule.netns == exchange.netns {
        "in nginx's network namespace"
    } else {
        "in another network namespace"
    }
}

fn firewall_port_unreachable(subject: &Subject<'_>, around: &Surroundings) -> Check {
    if let Some(rule) = datagrams(subject, around).next() {
        return rejected_over_udp(rule);
    }
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let is_reset = exchange.reset_at.is_some() || (exchange.answered && exchange.icmp.is_none());
    if is_reset || subject.errno() != Some(111) {
        return Check::No;
    }
    // On IPv4 the error lies in the socket's queue to the end. On IPv6 that no reset came is all there is.
    if exchange.icmp.is_none() && !(is_v6(exchange) && around.sees("resets-received")) {
        return Check::No;
    }
    let drops = around.drops_of(exchange);
    let rule = drops
        .into_iter()
        .find(|dropped| dropped.is_syn() && dropped.kind() == DropKind::Netfilter);
    let mut evidence = vec![connect_fact(exchange)];
    evidence.extend(rule.map(drop_fact));
    evidence.extend(around.icmp_about(exchange).map(icmp_sent_fact));
    evidence.extend(icmp_fact(exchange));
    let peer = &exchange.peer;
    match (&exchange.icmp, rule) {
        (Some(icmp), _) if is_port_unreachable(exchange, icmp) => {
            let summary = match icmp.sender {
                Some(sender) if around.is_own_address(exchange.netns, sender) || rule.is_some() => {
                    format!(
                        "A firewall rule of this host answered the SYN to {peer} with ICMP port-unreachable (from {sender})."
                    )
                }
                Some(sender) => format!("{sender} answered the SYN to {peer} with ICMP port-unreachable."),
                None => format!("Somebody answered the SYN to {peer} with ICMP port-unreachable."),
            };
            Stand::confirmed(summary, evidence).into()
        }
        (None, Some(_)) => Stand::confirmed(
            format!("A firewall rule of this host rejected the SYN to {peer}: port unreachable."),
            evidence,
        )
        .into(),
        (None, None) => Stand::likely(
            format!(
                "The SYN to {peer} was refused without a reset: an ICMP port-unreachable from somewhere."
            ),
            evidence,
        )
        .without("icmp: who sent it cannot be seen here")
        .into(),
        (Some(_), _) => Check::No,
    }
}

/// A port-unreachable reached nginx's socket, and a rule of this host dropped the datagram.
fn rejected_over_udp(rule: &DatagramDropped) -> Check {
    if rule.reason != "NETFILTER_DROP" {
        return Check::No;
    }
    let summary = format!(
        "A firewall rule of this host answered the datagram to {} with ICMP port-unreachable.",
        rule.tuple.destination
    );
    Stand::confirmed(summary, vec![datagram_fact(rule)]).into()
}

fn is_port_unreachable(exchange: &Exchange, icmp: &Icmp) -> bool {
    (icmp.kind, icmp.code) == if is_v6(exchange) { (1, 4) } else { (3, 3) }
}

fn is_v6(exchange: &Exchange) -> bool {
    matches!(&exchange.peer, Peer::Tcp(address) if address.is_ipv6())
}
