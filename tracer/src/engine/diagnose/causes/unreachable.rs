//! No way to the peer: no route, a route that forbids, a next hop that does not answer, a router or firewall that
//! says so.

use super::facts::{connect_fact, drop_fact, icmp_fact, icmp_sent_fact};
use std::net::IpAddr;

use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        message::Meaning,
        surroundings::{DropKind, Surroundings},
        text::between,
    },
    event::{Answer, Errno, Exchange, Icmp, Peer, Question},
    model::{Evidence, Outcome},
};

pub const NEIGHBOUR_SILENT: Cause = Cause {
    id: "neighbour-silent",
    title: "nobody answers for the peer's address on the local network (ARP or neighbour discovery)",
    explains: &["syn-unanswered", "packet-dropped-locally", "icmp-unreachable"],
    outcomes: &[Outcome::Unreachable, Outcome::TimedOut],
    nginx_logs: "connect() failed (113: No route to host) while connecting to upstream",
    recognised: "this host gave up on the next hop's address and dropped the waiting SYN, or its own stack sent itself \
        host-unreachable without a firewall having touched the packet",
    needs: &[],
    look_alikes: &["icmp-unreachable", "route-forbids", "syn-unanswered"],
    remedy: "the host (or the gateway towards it) is down, or the address is wrong: check it with `ip neigh` and on \
        the peer's console",
    check: neighbour_silent,
};

pub const ROUTE_MISSING: Cause = Cause {
    id: "route-missing",
    title: "this host has no route to the peer",
    explains: &[],
    outcomes: &[Outcome::Unreachable],
    nginx_logs: "connect() to 192.0.2.7:80 failed (101: Network is unreachable) while connecting to upstream",
    recognised: "connect(2) itself failed with 101: the routing lookup in nginx's namespace found nothing",
    needs: &[],
    look_alikes: &["route-forbids", "icmp-unreachable"],
    remedy: "give nginx's network namespace a route to the peer (`ip route get ADDRESS` there); for a name with IPv6 \
        addresses on a host without IPv6, resolve it to IPv4 only",
    check: route_missing,
};

pub const ROUTE_FORBIDS: Cause = Cause {
    id: "route-forbids",
    title: "a route or routing rule of this host forbids the destination (unreachable, prohibit or blackhole)",
    explains: &[],
    outcomes: &[Outcome::Unreachable, Outcome::Denied, Outcome::Invalid],
    nginx_logs: "connect() to 192.0.2.7:80 failed (113: No route to host) while connecting to upstream; 13 for \
        prohibit, 22 for blackhole",
    recognised: "connect(2) itself failed with 113, 13 or 22, and the routing lookup says which kind of route did it",
    needs: &[],
    look_alikes: &[
        "neighbour-silent",
        "route-missing",
        "selinux-denied",
        "icmp-prohibited",
        "unix-permission",
    ],
    remedy: "remove the route or rule: `ip route get ADDRESS` and `ip rule` in nginx's network namespace show it",
    check: route_forbids,
};

pub const DESTINATION_INVALID: Cause = Cause {
    id: "destination-invalid",
    title: "the kernel does not take this destination from nginx: a link-local address without an interface, or a loopback source \
        for a peer elsewhere",
    explains: &[],
    outcomes: &[Outcome::Invalid],
    nginx_logs: "connect() to [fe80::1]:80 failed (22: Invalid argument) while connecting to upstream",
    recognised: "connect(2) itself failed with 22, which for a link-local IPv6 address means that it says no interface; or \
        `proxy_bind` has nginx connect from a loopback address to one that is none, and no blackhole route forbids it",
    needs: &[],
    look_alikes: &["route-forbids", "source-address-missing"],
    remedy: "give the upstream another address of the peer: nginx cannot say the interface of a link-local one; for proxy_bind, \
        name an address that the peer can answer, or leave it out",
    check: destination_invalid,
};

pub const ICMP_UNREACHABLE: Cause = Cause {
    id: "icmp-unreachable",
    title: "a router said that the network or host of the peer cannot be reached",
    explains: &["packet-dropped-locally"],
    outcomes: &[Outcome::Unreachable],
    nginx_logs: "connect() failed (113: No route to host) while connecting to upstream; 101 for a network",
    recognised: "an ICMP network- or host-unreachable reached the connecting socket; its sender is named on IPv4",
    needs: &[],
    look_alikes: &["neighbour-silent", "icmp-prohibited", "route-missing"],
    remedy: "look at the router that sent it: it has no route to the peer, or the peer is down behind it",
    check: icmp_unreachable,
};

pub const ICMP_PROHIBITED: Cause = Cause {
    id: "icmp-prohibited",
    title: "a firewall said that the connection is administratively prohibited",
    explains: &["packet-dropped-locally"],
    outcomes: &[Outcome::Unreachable, Outcome::Denied],
    nginx_logs: "connect() failed (113: No route to host) while connecting to upstream; on IPv6 (13: Permission denied)",
    recognised: "an ICMP `prohibited` reached the connecting socket (3/9, 3/10, 3/13; ICMPv6 1/1, 1/5, 1/6); its sender \
        is named on IPv4",
    needs: &[],
    look_alikes: &["neighbour-silent", "icmp-unreachable", "route-forbids"],
    remedy: "find the rule on the host that sent it (REJECT, firewalld's default is host-prohibited) and allow nginx's \
        address and the port",
    check: icmp_prohibited,
};

pub const TTL_EXCEEDED: Cause = Cause {
    id: "ttl-exceeded",
    title: "the packet went round until its hop limit was used up: a routing loop, or a limit that is too small",
    explains: &["packet-dropped-locally"],
    outcomes: &[Outcome::Unreachable],
    nginx_logs: "connect() failed (113: No route to host) while connecting to upstream",
    recognised: "an ICMP time-exceeded (11/0; ICMPv6 3/0) reached the connecting socket; its sender is named on IPv4",
    needs: &[],
    look_alikes: &["icmp-unreachable", "neighbour-silent", "icmp-prohibited"],
    remedy: "`traceroute` to the peer shows between which routers it goes round; if it does not, see \
        net.ipv4.ip_default_ttl in nginx's network namespace",
    check: ttl_exceeded,
};

/// How long a firewall rule of this host may take to answer a SYN, on a machine that is short of processors.
const RULE_ANSWERS_WITHIN: u64 = 10_000_000;

fn neighbour_silent(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let drops = around.drops_of(exchange);
    let given_up: Vec<Evidence> = drops
        .iter()
        .filter(|dropped| dropped.kind() == DropKind::Neighbour)
        .map(|dropped| drop_fact(dropped))
        .collect();
    let is_ruled = drops.iter().any(|dropped| dropped.kind() == DropKind::Netfilter);
    let is_proven = !given_up.is_empty();
    // A rule of this host answers the first SYN, and does so at once.
    let answered_at = exchange.icmp.as_ref().map_or(exchange.ended_at, |icmp| icmp.at);
    let is_repeated = exchange.last_retransmit_at.is_some_and(|at| at < answered_at)
        || (exchange.last_retransmit_at.is_none() && exchange.syn_retransmits > 0);
    let is_late = is_repeated || answered_at.since(exchange.began_at) > RULE_ANSWERS_WITHIN;
    let is_own = is_own_unreachable(exchange, around) && !is_ruled && is_late;
    if !is_proven && !is_own {
        return on_link_silence(subject, exchange, is_ruled, around);
    }
    let mut evidence = vec![connect_fact(exchange)];
    evidence.extend(given_up.into_iter().last());
    evidence.extend(icmp_fact(exchange));
    let summary = format!(
        "No host answers for {} on the local network: this host asked for its (or its gateway's) hardware address for {} \
         in vain.",
        exchange.peer,
        between(exchange.began_at, exchange.error_at.unwrap_or(exchange.ended_at)),
    );
    if is_proven || is_repeated {
        return Stand::confirmed(summary, evidence).into();
    }
    Stand::likely(summary, evidence)
        .without("drops: the SYN given up with the neighbour was not seen")
        .into()
}

/// Whether this host itself said, to a SYN that it was to send, that the peer's host cannot be reached.
fn is_own_unreachable(exchange: &Exchange, around: &Surroundings) -> bool {
    exchange.icmp.as_ref().is_some_and(|icmp| {
        kind_of(exchange, icmp) == Some(Kind::Host)
            && icmp
                .sender
                .is_some_and(|sender| around.is_own_address(exchange.netns, sender))
    })
}

/// Where the packet that gave the errno cannot be seen (IPv6 without fentry): towards an address on the link there is
/// no router that could have sent it, so this host gave up on the neighbour itself.
fn on_link_silence(
    subject: &Subject<'_>,
    exchange: &Exchange,
    is_ruled: bool,
    around: &Surroundings,
) -> Check {
    let is_unseen = exchange.icmp.is_none() && unreachable_kind(exchange) == Some((Kind::Host, false));
    let (true, false, Some(address)) = (
        is_unseen && exchange.syn_retransmits > 0,
        is_ruled,
        subject.address(),
    ) else {
        return Check::No;
    };
    let question = Question::Route {
        pid: subject.attempt.worker,
        destination: address.ip(),
    };
    match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => Check::Ask(question),
        Some(Answer::Route {
            via: Some(device), ..
        }) if !device.contains("via") => {
            let link = fact(
                None,
                "route",
                format!(
                    "{} is on the link of {device}: no router is between",
                    address.ip()
                ),
            );
            let summary = format!(
                "No host answers for {} on the local network ({device}).",
                exchange.peer
            );
            Stand::likely(summary, vec![connect_fact(exchange), link])
                .without("drops: the SYN given up with the neighbour was not seen")
                .into()
        }
        _ => Check::No,
    }
}

/// The errno with which connect(2) itself failed, for a TCP peer.
pub fn at_once(subject: &Subject<'_>) -> Option<(Errno, std::net::SocketAddr)> {
    let said = subject
        .lone()
        .filter(|said| said.meaning == Meaning::ConnectAtOnce)?;
    Some((said.errno?, subject.address()?))
}

/// The routing lookup that failed just before nginx's line, when it was for this address.
pub fn lookup_fact(subject: &Subject<'_>, address: std::net::SocketAddr) -> Option<(Errno, Evidence)> {
    let route = subject
        .line?
        .route
        .as_ref()
        .filter(|route| route.destination == address.ip())?;
    let said = match route.errno.0 {
        11 => "no table has a route",
        113 => "an `unreachable` route",
        13 => "a `prohibit` route",
        22 => "a `blackhole` route",
        _ => "failed",
    };
    let evidence = fact(
        route.at,
        "route",
        format!("route lookup for {}: {said}", route.destination),
    )
    .number("errno", route.errno.0)
    .text("destination", route.destination.to_string());
    Some((route.errno, evidence))
}

fn route_missing(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some((Errno(101), address)) = at_once(subject) else {
        return Check::No;
    };
    let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
    let summary = format!(
        "There is no {family} route to {} in nginx's network namespace.",
        address.ip()
    );
    let at = subject.attempt.ended_at;
    let connect = fact(
        at,
        "route",
        format!("connect() to {address} failed at once: no route"),
    )
    .number("errno", 101);
    let told = |stand: Stand| {
        if address.is_ipv6() {
            stand.with_remedy(
                "give nginx's network namespace an IPv6 route, or keep nginx to IPv4: `ipv6=off` in its resolver \
                 directive, or an IPv4 address in the upstream",
            )
        } else {
            stand
        }
    };
    if let Some((Errno(11), lookup)) = lookup_fact(subject, address) {
        return told(Stand::confirmed(summary, vec![lookup, connect])).into();
    }
    let question = Question::Route {
        pid: subject.attempt.worker,
        destination: address.ip(),
    };
    match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => Check::Ask(question),
        Some(Answer::Route {
            errno: Some(Errno(101)),
            ..
        }) => {
            let answer = fact(
                None,
                "route",
                format!("the kernel still finds no route to {}", address.ip()),
            );
            told(Stand::confirmed(summary, vec![connect, answer])).into()
        }
        _ => {
            let stand = Stand::likely(summary, vec![connect]);
            told(stand.without("routes: the failed lookup itself was not seen")).into()
        }
    }
}

fn route_forbids(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some((errno @ Errno(113 | 13 | 22), address)) = at_once(subject) else {
        return Check::No;
    };
    let kind = match errno.0 {
        113 => "unreachable",
        13 => "prohibit",
        _ => "blackhole",
    };
    let ip = address.ip();
    let article = if kind.starts_with('u') { "An" } else { "A" };
    let summary = format!("{article} `{kind}` route or rule in nginx's network namespace forbids {ip}.");
    let at = subject.attempt.ended_at;
    let connect =
        fact(at, "route", format!("connect() to {address} failed at once")).number("errno", errno.0);
    if let Some((looked_up, lookup)) = lookup_fact(subject, address)
        && looked_up == errno
    {
        return Stand::confirmed(summary, vec![lookup, connect]).into();
    }
    let question = Question::Route {
        pid: subject.attempt.worker,
        destination: ip,
    };
    match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => Check::Ask(question),
        Some(Answer::Route {
            kind: said,
            errno: failed,
            ..
        }) if said.as_deref() == Some(kind) || (*failed == Some(errno) && errno.0 != 22) => {
            let answer = fact(None, "route", format!("`ip route get {ip}` says {kind}")).text("kind", kind);
            Stand::confirmed(summary, vec![connect, answer]).into()
        }
        // A security module gives 13 and a bad source address 22 as well: without the lookup nothing is known.
        _ => Check::No,
    }
}

fn destination_invalid(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some((Errno(22), address)) = at_once(subject) else {
        return Check::No;
    };
    let ip = address.ip();
    let at = subject.attempt.ended_at;
    let connect = fact(at, "tcp", format!("connect() to {address} failed at once")).number("errno", 22);
    // It is looked for an interface before any route.
    // https://github.com/torvalds/linux/blob/v6.12/net/ipv6/tcp_ipv6.c (tcp_v6_connect)
    if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        let summary = format!(
            "{ip} is a link-local address, which means nothing without an interface, and nginx's configuration cannot name one."
        );
        return Stand::confirmed(summary, vec![connect.text("destination", ip.to_string())]).into();
    }
    // https://github.com/torvalds/linux/blob/v6.12/net/ipv4/route.c (__mkroute_output)
    let Some(source) = subject
        .limits
        .source
        .filter(|source| source.is_loopback() && !ip.is_loopback())
    else {
        return Check::No;
    };
    if matches!(lookup_fact(subject, address), Some((Errno(22), _))) {
        return Check::No;
    }
    let question = Question::Route {
        pid: subject.attempt.worker,
        destination: ip,
    };
    let evidence = vec![
        connect.text("destination", ip.to_string()),
        fact(None, "config", format!("nginx is to connect from {source}")).text("address", source.to_string()),
    ];
    let summary = format!(
        "nginx is to connect from {source} (proxy_bind), and nothing leaves this host from a loopback address: {ip} is elsewhere."
    );
    let remedy = format!("name an address in proxy_bind to which {ip} can answer, or leave it out");
    let stand = Stand::confirmed(summary, evidence).with_remedy(remedy);
    match around.answer(&question, at) {
        None if subject.may_wait => Check::Ask(question),
        Some(Answer::Route { kind, .. }) if kind.as_deref() == Some("blackhole") => Check::No,
        Some(Answer::Route { .. }) => stand.into(),
        _ => stand
            .without("routes: a blackhole route gives the same errno")
            .into(),
    }
}

/// What an ICMP unreachable says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Network,
    Host,
    Prohibited,
    Exceeded,
}

fn kind_of(exchange: &Exchange, icmp: &Icmp) -> Option<Kind> {
    let is_v6 = matches!(&exchange.peer, Peer::Tcp(address) if address.is_ipv6());
    match (is_v6, icmp.kind, icmp.code) {
        (false, 3, 0 | 6 | 11) | (true, 1, 0) => Some(Kind::Network),
        (false, 3, 1 | 7 | 8 | 12) | (true, 1, 2 | 3) => Some(Kind::Host),
        (false, 3, 9 | 10 | 13) | (true, 1, 1 | 5 | 6) => Some(Kind::Prohibited),
        (false, 11, 0) | (true, 3, 0) => Some(Kind::Exceeded),
        _ => None,
    }
}

/// The ICMP error of a connecting socket: what it says, or what its errno must mean where the packet is not seen.
fn unreachable_kind(exchange: &Exchange) -> Option<(Kind, bool)> {
    if let Some(icmp) = &exchange.icmp {
        return kind_of(exchange, icmp).map(|kind| (kind, true));
    }
    let is_v6 = matches!(&exchange.peer, Peer::Tcp(address) if address.is_ipv6());
    let errno = exchange.error.or(exchange.soft_error)?;
    match errno.0 {
        101 => Some((Kind::Network, false)),
        13 if is_v6 => Some((Kind::Prohibited, false)),
        113 if is_v6 => Some((Kind::Host, false)),
        _ => None,
    }
}

fn icmp_unreachable(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let (what, is_seen) = match unreachable_kind(exchange) {
        Some((Kind::Network, is_seen)) => ("network", is_seen),
        // A neighbour that does not answer gives the same errno, and only the SYN given up with it tells.
        Some((Kind::Host, false)) if !around.sees("drops") => return Check::No,
        Some((Kind::Host, is_seen)) => ("host", is_seen),
        Some((Kind::Prohibited | Kind::Exceeded, _)) | None => return Check::No,
    };
    // No router said it. That neither the rule nor the neighbour's silence was seen means that something was not.
    if is_own_unreachable(exchange, around) && around.drops_of(exchange).is_empty() {
        return Check::No;
    }
    says(exchange, around, &format!("{what} unreachable"), is_seen)
}

fn icmp_prohibited(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    match unreachable_kind(exchange) {
        Some((Kind::Prohibited, is_seen)) => says(exchange, around, "administratively prohibited", is_seen),
        Some((Kind::Network | Kind::Host | Kind::Exceeded, _)) | None => Check::No,
    }
}

fn ttl_exceeded(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    match unreachable_kind(exchange) {
        Some((Kind::Exceeded, is_seen)) => says(exchange, around, "time to live exceeded", is_seen),
        Some((Kind::Network | Kind::Host | Kind::Prohibited, _)) | None => Check::No,
    }
}

fn says(exchange: &Exchange, around: &Surroundings, what: &str, is_seen: bool) -> Check {
    let drops = around.drops_of(exchange);
    let rule = drops
        .into_iter()
        .find(|dropped| dropped.kind() == DropKind::Netfilter);
    let mut evidence = vec![connect_fact(exchange)];
    evidence.extend(rule.map(drop_fact));
    evidence.extend(around.icmp_about(exchange).map(icmp_sent_fact));
    evidence.extend(icmp_fact(exchange));
    let peer = &exchange.peer;
    let sender = exchange.icmp.as_ref().and_then(|icmp| icmp.sender);
    let who = match (sender, rule) {
        (Some(sender), Some(_)) => format!("A firewall rule of this host (as {sender})"),
        (Some(sender), None) => sender.to_string(),
        (None, Some(_)) => "A firewall rule of this host".to_owned(),
        (None, None) => "A router or firewall on the way".to_owned(),
    };
    let summary = format!("{who} answered the SYN to {peer}: {what}.");
    let stand = Stand::confirmed(summary, evidence);
    if is_seen || rule.is_some() {
        stand.into()
    } else {
        stand
            .without("icmp: the packet and its sender cannot be seen here (IPv6 without fentry)")
            .into()
    }
}
