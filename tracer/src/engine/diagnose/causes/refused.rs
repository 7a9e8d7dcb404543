//! A TCP connect that a reset refused: nothing listens there (never, no longer, elsewhere), or a far host said so.

use super::facts::{
    End, Refusal, SynAnswer, Translated, closed_at, closed_before, connect_fact, datagram_fact, datagrams, end_of, listener_closed_fact,
    listener_open_fact, locality, opened_after, peer_netns, refusal, rst_fact, syn_answer, translated,
    translation_fact,
};
use std::net::SocketAddr;

use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{DatagramDropped, LISTENER_MEMORY, ListenerLife, Locality, Surroundings, covers},
        text::{between, process},
    },
    event::{Errno, Exchange, Ktime, Listener, Netns, Peer},
    model::{Confidence, Evidence, Outcome},
};

pub const NO_LISTENER: Cause = Cause {
    id: "no-listener",
    title: "nothing listens on that address and port, and over TCP nothing did while the tracer watched",
    explains: &[],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream",
    recognised: "this host's own TCP answered the SYN with a reset for want of a socket, and no listener for that \
        address closed in the ten minutes before; over UDP, it dropped the datagram for want of a socket",
    needs: &[],
    look_alikes: &[
        "listener-died",
        "listener-restarting",
        "listener-elsewhere",
        "firewall-reset",
        "refused-remotely",
    ],
    remedy: "start the backend, or correct the address or port in nginx's upstream",
    check: no_listener,
};

pub const LISTENER_RESTARTING: Cause = Cause {
    id: "listener-restarting",
    title: "the listener was closed in an orderly way shortly before: a stop, a restart or a deploy",
    explains: &["no-listener"],
    outcomes: &[Outcome::Refused, Outcome::Reset],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream; or connect() failed (104: \
        Connection reset by peer)",
    recognised: "this host's TCP answered the SYN for want of a socket, and a listener for that address had closed \
        less than ten minutes before: its process lives on, exited with code 0, or was stopped by TERM, INT, QUIT or \
        HUP. Or the listener answered the SYN, closed so before the handshake was complete, and the connection was reset",
    needs: &[],
    look_alikes: &["no-listener", "listener-died"],
    remedy: "restart without closing the socket (socket activation, SO_REUSEPORT with overlap), or take the server out \
        of the upstream while it restarts",
    check: listener_restarting,
};

pub const LISTENER_DIED: Cause = Cause {
    id: "listener-died",
    title: "the process that listened there was killed or crashed, and its listener went with it",
    explains: &["no-listener"],
    outcomes: &[Outcome::Refused, Outcome::Reset],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream; or connect() failed (104: \
        Connection reset by peer)",
    recognised: "this host's TCP answered the SYN for want of a socket, and the listener for that address had closed \
        because its process ended by a signal other than TERM, INT, QUIT and HUP, by the OOM killer or with a non-zero \
        code. Or the listener answered the SYN, closed so before the handshake was complete, and the connection was reset",
    needs: &[],
    look_alikes: &["no-listener", "listener-restarting", "backend-died"],
    remedy: "find out why the backend died (its own log, the kernel log, the supervisor's), and let a supervisor start \
        it again",
    check: listener_died,
};

pub const LISTENER_ELSEWHERE: Cause = Cause {
    id: "listener-elsewhere",
    title: "the port is open, but on another address or address family",
    explains: &["no-listener"],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream",
    recognised: "this host's TCP answered the SYN for want of a socket, while a listener with the same port in the same \
        network namespace takes connections to another address only",
    needs: &["snapshot"],
    look_alikes: &["no-listener"],
    remedy: "let the backend listen on the address nginx uses, or write the address it listens on into the upstream \
        (`localhost` means both 127.0.0.1 and ::1)",
    check: listener_elsewhere,
};

pub const DESTINATION_TRANSLATED: Cause = Cause {
    id: "destination-translated",
    title: "address translation on this host sent the connect past what listens where nginx asked, to an address where nothing \
        does",
    explains: &["no-listener"],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream",
    recognised: "this host's TCP answered the SYN for want of a socket at another address than nginx's peer, nothing had listened \
        there in the ten minutes before, and something listens at the address that nginx asked for. Where nothing does (a \
        service's address), it is `no-listener`, with the translation as evidence; a listener that ended at the translated \
        address keeps its own names",
    needs: &["snapshot"],
    look_alikes: &["no-listener", "listener-elsewhere", "listener-died", "listener-restarting"],
    remedy: "correct the rule that translates the address (nft list ruleset, iptables-save -t nat: DNAT, REDIRECT), or start what \
        should listen where it leads: a container's port, a mesh's proxy",
    check: destination_translated,
};

pub const REFUSED_REMOTELY: Cause = Cause {
    id: "refused-remotely",
    title: "the peer's host answered with a reset; what happened on it cannot be seen from here",
    explains: &[],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() failed (111: Connection refused) while connecting to upstream",
    recognised: "a reset answered the SYN, no TCP of this host sent it, and the address belongs to no namespace of this host",
    needs: &["resets-sent", "drops"],
    look_alikes: &["no-listener", "firewall-reset", "firewall-port-unreachable"],
    remedy: "look on the peer's host: is the service running and listening on that address, or does a firewall or \
        load balancer there refuse it",
    check: refused_remotely,
};

/// What our own refusal of the SYN tells.
struct NoSocket {
    at: Ktime,
    netns: Netns,
    /// The address where a socket was looked for.
    address: SocketAddr,
    proof: Vec<Evidence>,
    /// This host said itself that there was no socket.
    is_told: bool,
}

impl NoSocket {
    fn told(refusal: Refusal, subject: &Subject<'_>, exchange: &Exchange) -> Self {
        let Refusal {
            at,
            netns,
            destination: address,
            proof,
        } = refusal;
        let mut proof = vec![proof];
        if Some(address) != subject.address() {
            proof.push(translation_fact(exchange, address, at));
        }
        Self {
            at,
            netns,
            address,
            proof,
            is_told: true,
        }
    }
}

fn no_socket(subject: &Subject<'_>, around: &Surroundings) -> Option<NoSocket> {
    let exchange = subject.connecting()?;
    match syn_answer(exchange, around)? {
        SynAnswer::NoSocket(refusal) => Some(NoSocket::told(refusal, subject, exchange)),
        SynAnswer::Unexplained if !around.sees("resets-sent") && around.sees("drops") => {
            // The kernel does not say who reset the SYN; no firewall took it, so the listener table has to.
            Some(NoSocket {
                at: exchange.reset_at?,
                netns: peer_netns(exchange, around)?,
                address: subject.address()?,
                proof: rst_fact(exchange).into_iter().collect(),
                is_told: false,
            })
        }
        SynAnswer::Unexplained | SynAnswer::Firewall { .. } | SynAnswer::Elsewhere { .. } => None,
    }
}

fn sure_of_no_socket(stand: Stand, is_told: bool, around: &Surroundings) -> Stand {
    if is_told {
        stand
    } else {
        stand.without(around.without("resets-sent"))
    }
}

fn no_listener(subject: &Subject<'_>, around: &Surroundings) -> Check {
    if let Some(dropped) = datagrams(subject, around).next() {
        return no_listener_over_udp(dropped);
    }
    let Some(NoSocket {
        at,
        netns,
        address,
        proof: mut evidence,
        is_told,
    }) = no_socket(subject, around)
    else {
        return Check::No;
    };
    let mut summary = format!("Nothing listens on {address}: this host itself refused the connection.");
    if let Some(life) = closed_before(around, netns, address, at) {
        if let Some(closed) = closed_at(life) {
            summary = format!(
                "Nothing listens on {address} any more; its listener closed {} before.",
                between(closed, at)
            );
        }
        evidence.extend(listener_closed_fact(life));
    }
    // In nginx's own namespace: a container's 127.0.0.1 is its own. It may be chance that somebody has the same port
    // elsewhere, so this is told and not named.
    let is_own = subject.connecting().is_some_and(|exchange| exchange.netns == netns)
        && subject.address() == Some(address)
        && around.is_own_address(netns, address.ip());
    let beside = if is_own {
        around.listeners_beside(netns, address.port(), at)
    } else {
        Vec::new()
    };
    evidence.extend(beside.iter().take(4).map(|life| beside_fact(life)));
    let stand = sure_of_no_socket(Stand::confirmed(summary, evidence), is_told, around);
    match &beside[..] {
        [only] => stand
            .with_remedy(format!(
                "start the backend, or correct the address or port in nginx's upstream; if {} is the one that is meant, use an \
                 address that leads to its network namespace: {} is nginx's own",
                process(&only.listener.task),
                address.ip()
            ))
            .into(),
        _ => stand.into(),
    }
}

/// `port 3000 is listened on in another network namespace (0.0.0.0:3000, node[4242])`.
fn beside_fact(life: &ListenerLife) -> Evidence {
    let Listener {
        address, task, netns, ..
    } = &life.listener;
    let text = format!(
        "another network namespace ({}) has a listener on that port: {address} ({}[{}])",
        netns.0, task.comm, task.pid
    );
    fact(life.opened_at, "listener", text)
        .text("address", address.to_string())
        .number("pid", task.pid.0)
        .text("comm", &*task.comm)
        .number("netns", netns.0)
}

/// A port-unreachable reached nginx's socket, and this host had no socket for the datagram. Whether there was one before is
/// not followed.
fn no_listener_over_udp(dropped: &DatagramDropped) -> Check {
    if dropped.reason != "NO_SOCKET" {
        return Check::No;
    }
    let summary = format!(
        "Nothing has a UDP socket on {}: this host itself answered the datagram with ICMP port-unreachable.",
        dropped.tuple.destination
    );
    Stand::confirmed(summary, vec![datagram_fact(dropped)]).into()
}

/// A listener that closed before the SYN came, or between the SYN and the end of the handshake.
struct Missed<'a> {
    life: &'a ListenerLife,
    /// Where a socket was looked for.
    address: SocketAddr,
    /// When the connect was refused, or the connection reset.
    at: Ktime,
    evidence: Vec<Evidence>,
    /// How its owner ended.
    end: Option<End<'a>>,
    /// This host said itself that there was no socket.
    is_told: bool,
    /// The SYN had been answered, and the listener went before it had the connection.
    is_midway: bool,
}

impl<'a> Missed<'a> {
    fn find(subject: &Subject<'_>, around: &'a Surroundings) -> Option<Self> {
        let (no_socket, is_midway) = match no_socket(subject, around) {
            Some(no_socket) => (no_socket, false),
            None => (no_socket_any_more(subject, around)?, true),
        };
        let NoSocket {
            at,
            netns,
            address,
            proof: mut evidence,
            is_told,
        } = no_socket;
        let life = closed_before(around, netns, address, at)?;
        let (closed, task) = life.closed.as_ref()?;
        // Somebody answered the SYN.
        let is_too_early = is_midway && subject.connected().is_some_and(|exchange| *closed < exchange.began_at);
        if at.since(*closed) > LISTENER_MEMORY || is_too_early {
            return None;
        }
        evidence.extend(listener_closed_fact(life));
        // When the last of several holders closes in an orderly way because the one who opened it was killed before,
        // the death is the reason.
        let opener = &life.listener.task;
        let end = end_of(task, *closed, around);
        let end = match end_of(opener, *closed, around) {
            Some(of_opener) if opener.pid != task.pid && !of_opener.is_orderly() => Some(of_opener),
            _ => end,
        };
        Some(Self {
            life,
            address,
            at,
            evidence,
            end,
            is_told,
            is_midway,
        })
    }

    /// As sure as it is known who refused the connect, or reset the connection.
    fn stand(self, summary: String, around: &Surroundings) -> Stand {
        let stand = Stand::confirmed(summary, self.evidence);
        match (self.is_midway, self.is_told) {
            (true, false) => stand.without("who sent the reset"),
            _ => sure_of_no_socket(stand, self.is_told, around),
        }
    }
}

/// A connection that stood on nginx's side was reset before the other side had a socket for it: the listener answered the
/// SYN, and was gone when the handshake's last packet came, or while it made the socket.
fn no_socket_any_more(subject: &Subject<'_>, around: &Surroundings) -> Option<NoSocket> {
    let exchange = subject.connected()?;
    exchange.established_at?;
    let is_new = exchange.id.number == 1 && exchange.connect_at.is_some();
    let is_unheard = exchange.acked == 0 && exchange.received == 0 && exchange.fin_at.is_none();
    if !is_new || !is_unheard || exchange.backend.is_some() {
        return None;
    }
    let told = refusal(exchange, around, |dropped| {
        Some(dropped.tuple.destination) != exchange.local
    });
    let mut no_socket = match told {
        Some(refusal) => NoSocket::told(refusal, subject, exchange),
        None => NoSocket {
            at: exchange.reset_at.or(exchange
                .error
                .filter(|error| *error == Errno(104))
                .and(exchange.error_at))?,
            netns: peer_netns(exchange, around)?,
            address: subject.address()?,
            proof: Vec::new(),
            is_told: false,
        },
    };
    no_socket.proof.push(connect_fact(exchange));
    no_socket.proof.extend(rst_fact(exchange));
    Some(no_socket)
}

fn listener_died(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(mut missed) = Missed::find(subject, around) else {
        return Check::No;
    };
    let Some(end) = missed.end.take().filter(|end| !end.is_orderly()) else {
        return Check::No;
    };
    let closed = closed_at(missed.life).unwrap_or(missed.at);
    let summary = if missed.is_midway {
        format!(
            "{}, and its listener closed with it before the handshake was complete.",
            end.sentence()
        )
    } else {
        format!(
            "Nothing listens there any more: {} {} before, and its listener closed with it.",
            end.sentence(),
            between(end.death.map_or(closed, |death| death.at), missed.at)
        )
    };
    missed.evidence.push(end.fact(closed));
    let mut stand = missed.stand(summary, around);
    if end.oom {
        stand = stand.with_remedy(format!(
            "find what took the memory: raise the limit of {} or make it use less; let a supervisor start it again",
            end.task.comm
        ));
    } else if let Some(sender) = end.death.and_then(|death| death.signalled_by.as_ref()) {
        stand = stand.with_remedy(format!(
            "find out why {} killed {}, and let a supervisor start it again",
            process(sender),
            end.task.comm
        ));
    }
    stand.into()
}

fn listener_restarting(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(mut missed) = Missed::find(subject, around) else {
        return Check::No;
    };
    if missed.end.as_ref().is_some_and(|end| !end.is_orderly()) {
        return Check::No;
    }
    let (life, at) = (missed.life, missed.at);
    let Some((closed, task)) = life.closed.as_ref() else {
        return Check::No;
    };
    let who = match missed.end.take() {
        Some(end) => {
            missed.evidence.push(end.fact(*closed));
            end.sentence()
        }
        None => format!("{} closed it and lives on", process(task)),
    };
    let back = around
        .listeners_on(life.listener.netns, missed.address.port())
        .filter(|other| covers(&other.listener, missed.address))
        .find(|other| opened_after(other, at) && closed_at(other).is_none_or(|closed| closed > at));
    let again = match back.and_then(|back| back.opened_at) {
        Some(opened) => format!("; it listened again {} after", between(at, opened)),
        None => String::new(),
    };
    missed.evidence.extend(back.map(listener_open_fact));
    let when = if missed.is_midway {
        "before the handshake was complete".to_owned()
    } else {
        format!("{} before", between(*closed, at))
    };
    let summary = format!(
        "{} was closed in an orderly way {when} ({who}){again}.",
        life.listener.address
    );
    missed.stand(summary, around).into()
}

fn listener_elsewhere(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(NoSocket {
        at,
        netns,
        address,
        proof: mut evidence,
        is_told,
    }) = no_socket(subject, around)
    else {
        return Check::No;
    };
    let closed = closed_before(around, netns, address, at).and_then(closed_at);
    if closed.is_some_and(|closed| at.since(closed) <= LISTENER_MEMORY) {
        return Check::No;
    }
    let others: Vec<&ListenerLife> = around
        .listeners_on(netns, address.port())
        .filter(|life| life.is_open_at(at) && !covers(&life.listener, address))
        .collect();
    let Some(other) = others.last() else {
        return Check::No;
    };
    evidence.extend(others.iter().map(|life| listener_open_fact(life)));
    let is_other_family = match &other.listener.address {
        Peer::Tcp(listens) => listens.is_ipv4() != address.is_ipv4(),
        Peer::Unix(_) => false,
    };
    let family = if is_other_family {
        ", another address family"
    } else {
        ""
    };
    let summary = format!(
        "{} listens on {}{family}, not on {address}.",
        process(&other.listener.task),
        other.listener.address
    );
    let remedy = format!(
        "let {} listen on {address} as well, or name {} in the upstream",
        other.listener.task.comm, other.listener.address
    );
    sure_of_no_socket(
        Stand::confirmed(summary, evidence).with_remedy(remedy),
        is_told,
        around,
    )
    .into()
}

fn destination_translated(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (Some(exchange), Some(asked)) = (subject.connecting(), subject.address()) else {
        return Check::No;
    };
    let Some(NoSocket {
        at,
        netns,
        address,
        proof: mut evidence,
        is_told,
    }) = no_socket(subject, around).filter(|no_socket| no_socket.address != asked)
    else {
        return Check::No;
    };
    let closed = closed_before(around, netns, address, at).and_then(closed_at);
    let is_new = closed.is_none_or(|closed| at.since(closed) > LISTENER_MEMORY);
    let is_elsewhere = around
        .listeners_on(netns, address.port())
        .any(|life| life.is_open_at(at));
    let Some(life) = around
        .only_listener_at(exchange.netns, asked, (exchange.began_at, at))
        .filter(|_| is_new && !is_elsewhere)
    else {
        return Check::No;
    };
    evidence.push(connect_fact(exchange));
    evidence.push(listener_open_fact(life));
    let who = process(&life.listener.task);
    let summary = format!(
        "{who} listens on {}, but this host translates {asked} to {address}, where nothing listens.",
        life.listener.address
    );
    let remedy = format!(
        "correct the rule that translates {asked} to {address} (nft list ruleset, iptables-save -t nat: DNAT, REDIRECT), or start \
         what should listen on {address}"
    );
    sure_of_no_socket(
        Stand::confirmed(summary, evidence).with_remedy(remedy),
        is_told,
        around,
    )
    .into()
}

fn refused_remotely(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connecting() else {
        return Check::No;
    };
    let Some(SynAnswer::Elsewhere { at }) = syn_answer(exchange, around) else {
        return Check::No;
    };
    // The peer may be in a namespace of this host that nobody told us of, or a rule of this host may have answered: only
    // the reset's origin and the SYN's fate rule that out.
    if !around.sees("resets-sent") || !around.sees("drops") {
        return Check::No;
    }
    let mut evidence = vec![
        connect_fact(exchange),
        fact(at, "tcp", "RST arrived for the SYN; this host sent none"),
    ];
    let host = match translated(subject, exchange, around) {
        Translated::Ask(question) => return Check::Ask(question),
        // Somebody of this host refused it, and it was not seen who.
        Translated::To(_, Locality::ThisHost) | Translated::Unclear => return Check::No,
        Translated::To(real, Locality::Elsewhere | Locality::Unknown) => {
            evidence.push(translation_fact(exchange, real, at));
            format!("{real}, to which {} is translated,", exchange.peer)
        }
        Translated::No => exchange.peer.to_string(),
    };
    let summary = format!(
        "The host at {host} answered the SYN with a reset after {}; no TCP of this host sent it.",
        between(exchange.began_at, at)
    );
    remote(Confidence::Confirmed, summary, evidence, exchange, around).into()
}

/// A claim about a far host, lowered when it is not known that the host is far.
pub fn remote(
    confidence: Confidence,
    summary: String,
    evidence: Vec<Evidence>,
    exchange: &Exchange,
    around: &Surroundings,
) -> Stand {
    let stand = Stand::new(confidence, summary, evidence);
    match locality(exchange, around) {
        Locality::Elsewhere => stand,
        Locality::Unknown | Locality::ThisHost => {
            stand.without("this host's own addresses are not known, so the peer may be on it")
        }
    }
}
