//! A connect to an address that a configured name meant when nginx read its configuration, and does not mean any more.

use std::{collections::BTreeSet, net::IpAddr};

use super::facts::{Refusal, SynAnswer, connect_fact, icmp_fact, listener_open_fact, peer_netns, rst_fact, syn_answer};
use crate::{
    engine::{
        correlate::Resolved,
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{DropKind, SECOND, Surroundings, covers},
        text::{between, process},
    },
    event::{Answer, ConfiguredName, Exchange, Ktime, NameMeaning, NameSource, Peer, Question},
    model::{Confidence, Evidence, Outcome},
};

pub const ADDRESS_OUTDATED: Cause = Cause {
    id: "address-outdated",
    title: "nginx uses an address that a name in its configuration meant when it was loaded; today the name means another",
    explains: &[
        "no-listener",
        "listener-restarting",
        "listener-died",
        "listener-elsewhere",
        "refused-remotely",
        "neighbour-silent",
        "icmp-unreachable",
        "syn-unanswered",
    ],
    outcomes: &[Outcome::Refused, Outcome::Unreachable, Outcome::TimedOut],
    nginx_logs: "connect() failed (111: Connection refused), connect() failed (113: No route to host) or upstream timed \
        out (110: Connection timed out) while connecting to upstream: whatever nobody, or somebody else, at the old \
        address makes of it",
    recognised: "the connection never came up, nginx has the address from a host name that it resolved when it read its \
        configuration, nothing of this host listens there, and the name, asked after the failure through nginx's own hosts \
        file and nameservers, means other addresses now (not with `--resolve off`). A nameserver that gives different \
        answers at the same moment is not believed; one that gives several addresses, or others than minutes before, only \
        when a later answer says the same: until then the cause is `possible`. Where the tracer came after the change, the \
        address must have no other way into the configuration: none is decided per request, and its port is that of a name",
    needs: &["drops"],
    look_alikes: &["no-listener", "refused-remotely", "neighbour-silent", "syn-unanswered", "listener-elsewhere"],
    remedy: "reload nginx (nginx -s reload): it resolves its names anew. So that it follows the name by itself, name a \
        `resolver` and write `server NAME resolve;` in an upstream with a `zone` (nginx 1.27.3 or later), or put the name \
        into a variable in proxy_pass (any version)",
    check: address_outdated,
};

/// What the names that the address may come from mean now; `Err`: what the check says instead.
fn meanings<'a>(
    subject: &'a Subject<'_>,
    around: &'a Surroundings,
    address: IpAddr,
) -> Result<Vec<Meant<'a>>, Check> {
    let Resolved { asks, names, .. } = subject.resolved;
    let mut meant = Vec::new();
    for configured in names {
        let question = Question::Name {
            pid: *asks,
            name: configured.name.clone(),
        };
        match around.answer(&question, subject.attempt.ended_at) {
            None if subject.may_wait => return Err(Check::Ask(question)),
            Some(Answer::Name(meaning))
                if !meaning.varies && !meaning.addresses.is_empty() && !meaning.addresses.contains(&address) =>
            {
                meant.push(Meant {
                    configured,
                    meaning,
                    confidence: confidence(&question, meaning, around),
                    at: around
                        .meanings(&question)
                        .find(|(_, learnt)| *learnt == meaning)
                        .map(|(at, _)| at),
                });
            }
            // Not known, unknown to all, or still the same address.
            _ => return Err(Check::No),
        }
    }
    if meant.is_empty() { Err(Check::No) } else { Ok(meant) }
}

/// A name, and what it means now.
struct Meant<'a> {
    configured: &'a ConfiguredName,
    meaning: &'a NameMeaning,
    confidence: Confidence,
    at: Option<Ktime>,
}

/// How surely a name's answer is all that it means: a nameserver may hand out some of its addresses now and others when
/// its answer has expired.
fn confidence(question: &Question, meaning: &NameMeaning, around: &Surroundings) -> Confidence {
    if meaning.from == NameSource::HostsFile {
        return Confidence::Likely;
    }
    let of = |meaning: &NameMeaning| meaning.addresses.iter().copied().collect::<BTreeSet<IpAddr>>();
    let now = of(meaning);
    let n_v4 = now.iter().filter(|address| address.is_ipv4()).count();
    let is_single = n_v4 <= 1 && now.len() - n_v4 <= 1;
    let learnt: Vec<(Ktime, &NameMeaning)> = around.meanings(question).collect();
    let alike = learnt.iter().rev().take_while(|(_, learnt)| of(learnt) == now);
    let alike: Vec<&(Ktime, &NameMeaning)> = alike.collect();
    let has_never_changed = alike.len() == learnt.len();
    // An answer that was fetched anew, not kept by somebody on the way.
    let is_confirmed = alike.first().zip(alike.last()).is_some_and(|((last, _), (first, then))| {
        let stands = u64::from(then.ttl_s.unwrap_or_default()).saturating_mul(SECOND);
        last.since(*first) >= stands.max(SECOND)
    });
    if is_confirmed || (is_single && has_never_changed) {
        Confidence::Likely
    } else {
        Confidence::Possible
    }
}

fn address_outdated(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (Some(exchange), Some(address)) = (subject.connecting(), subject.address()) else {
        return Check::No;
    };
    let resolved = subject.resolved;
    if resolved.names.is_empty() {
        return Check::No;
    }
    // nginx connects for other things than requests, and says what for.
    let action = subject.said.and_then(|said| said.action.as_deref());
    match action {
        Some(action) if resolved.is_inferred && !action.contains("upstream") => return Check::No,
        None if resolved.is_inferred && around.surely_sees("nginx-log") => return subject.wait_or(Check::No),
        _ => {}
    }
    let ended_at = subject.attempt.ended_at;
    // Whoever listens there is who nginx looks for, as far as anybody can tell.
    let is_served = peer_netns(exchange, around).is_some_and(|netns| {
        around
            .listeners_on(netns, address.port())
            .any(|life| life.is_open_at(ended_at) && covers(&life.listener, address))
    });
    if is_served {
        return Check::No;
    }
    let meant = match meanings(subject, around, address.ip()) {
        Ok(meant) => meant,
        Err(check) => return check,
    };
    let old = at_the_old(exchange, around);
    let confidence = meant.iter().map(|meant| meant.confidence).min();
    let confidence = match (confidence, &old) {
        // A rule or a drop of this host kept the SYN from whoever is there.
        (Some(confidence), Some(_)) => confidence,
        _ => Confidence::Possible,
    };
    let (kind, old, proof) =
        old.unwrap_or_else(|| ("unknown", "this host kept the SYN from the old address".to_owned(), vec![]));
    let loaded = match resolved.loaded_at {
        Some(at) => format!(" {} before", between(at, ended_at)),
        None => String::new(),
    };
    let summary = match &meant[..] {
        [one] => {
            let modal = if resolved.is_inferred { "must have meant" } else { "meant" };
            format!(
                "`{}` {modal} {} when nginx loaded its configuration{loaded}; {} means {} now, and {old}.",
                one.configured.server,
                address.ip(),
                one.configured.name,
                listed(&one.meaning.addresses),
            )
        }
        several => {
            let servers: Vec<String> = several
                .iter()
                .map(|meant| format!("`{}`", meant.configured.server))
                .collect();
            format!(
                "One of {} meant {} when nginx loaded its configuration{loaded}; none of them does now, and {old}.",
                servers.join(", "),
                address.ip()
            )
        }
    };
    let mut evidence = vec![connect_fact(exchange).text("old_address", kind)];
    evidence.extend(meant.iter().map(|meant| loaded_fact(meant, subject, address.ip())));
    evidence.extend(meant.iter().map(now_fact));
    evidence.extend(proof);
    Stand::new(confidence, summary, evidence).into()
}

fn listed(addresses: &[IpAddr]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = addresses.iter().take(SHOWN).map(ToString::to_string).collect();
    match addresses.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn loaded_fact(meant: &Meant<'_>, subject: &Subject<'_>, address: IpAddr) -> Evidence {
    let ConfiguredName {
        name,
        upstream,
        server,
        ..
    } = meant.configured;
    let text = if subject.resolved.is_inferred {
        format!("nginx loaded its configuration; nothing in it but `{server}` can have led to {address}")
    } else {
        format!("nginx loaded its configuration; `{server}` meant {address}")
    };
    fact(subject.resolved.loaded_at, "nginx", text)
        .text("name", name.as_str())
        .text("server", server.as_str())
        .text("upstream", upstream.as_str())
        .text("address", address.to_string())
        .flag("inferred", subject.resolved.is_inferred)
}

fn now_fact(meant: &Meant<'_>) -> Evidence {
    let source = meant.meaning.from.to_string();
    let addresses: Vec<String> = meant.meaning.addresses.iter().map(ToString::to_string).collect();
    let text = format!(
        "{} means {} ({source})",
        meant.configured.name,
        listed(&meant.meaning.addresses)
    );
    fact(meant.at, "name", text)
        .text("name", meant.configured.name.as_str())
        .text("addresses", addresses.join(", "))
        .text("from", source)
}

/// What is at the old address: a word for it, a sentence, and its proof. `None`: this host kept the SYN from it.
fn at_the_old(exchange: &Exchange, around: &Surroundings) -> Option<(&'static str, String, Vec<Evidence>)> {
    let drops = around.drops_of(exchange);
    if drops
        .iter()
        .any(|dropped| matches!(dropped.kind(), DropKind::Netfilter | DropKind::Local))
    {
        return None;
    }
    match syn_answer(exchange, around) {
        Some(SynAnswer::NoSocket(Refusal { netns, proof, .. })) => {
            let ip = match exchange.peer {
                Peer::Tcp(address) => address.ip(),
                Peer::Unix(_) => return None,
            };
            let others = around.listeners_at_address(netns, ip, exchange.ended_at);
            // In nginx's own namespace that is this host, and everything that runs on it.
            return Some(match others.first().filter(|_| netns != exchange.netns) {
                Some(other) => (
                    "another service",
                    format!(
                        "another service is at the old address: {} listens there on {}",
                        process(&other.listener.task),
                        other.listener.address
                    ),
                    vec![proof, listener_open_fact(other)],
                ),
                None => ("nobody", "nobody listens at the old address".to_owned(), vec![proof]),
            });
        }
        Some(SynAnswer::Elsewhere { .. }) => {
            let sentence = "the host at the old address refuses the connection".to_owned();
            return Some(("a host that refuses", sentence, rst_fact(exchange).into_iter().collect()));
        }
        Some(SynAnswer::Firewall { .. } | SynAnswer::Unexplained) => return None,
        None => {}
    }
    let icmp: Vec<Evidence> = icmp_fact(exchange).into_iter().collect();
    let sender = exchange.icmp.as_ref().and_then(|icmp| icmp.sender);
    Some(match sender.filter(|sender| !around.is_own_address(exchange.netns, *sender)) {
        Some(sender) => (
            "unreachable",
            format!("{sender} says that the old address cannot be reached"),
            icmp,
        ),
        None => ("nobody", "nobody answers at the old address".to_owned(), icmp),
    })
}
