//! The other end closed or reset a connection that was up: siblings told apart by how much of the request was read
//! (decisions.md 3), and the rows for far hosts, where no more can be seen.

use super::{
    facts::{Read, answered, backend_name, closing_facts, how_much_read, is_upgraded, locality},
    refused::remote,
};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{DropKind, Locality, Surroundings},
        text::{between, span},
    },
    event::{Backend, Errno, Exchange, Peer},
    model::{Confidence, Outcome, Phase},
};

const NGINX_LOGS: &str =
    "recv() failed (104: Connection reset by peer) while reading response header from upstream";
const NGINX_LOGS_CLOSED: &str =
    "upstream prematurely closed connection while reading response header from upstream";

pub const CLOSED_UNREAD: Cause = Cause {
    id: "closed-unread",
    title: "the backend closed without having read the whole request, so its kernel sent a reset",
    explains: &[],
    outcomes: &[Outcome::Reset, Outcome::Closed],
    nginx_logs: NGINX_LOGS,
    recognised: "the backend's socket was closed after part of the request had been read, with bytes unread in it",
    needs: &[],
    look_alikes: &[
        "closed-abortively",
        "closed-on-accept",
        "backend-died",
        "response-unread",
    ],
    remedy: "let the backend read the whole request before it closes (a body it refuses too), or raise the limit it \
        enforces",
    check: closed_unread,
};

pub const CLOSED_ABORTIVELY: Cause = Cause {
    id: "closed-abortively",
    title: "the backend aborted the connection on purpose (SO_LINGER 0)",
    explains: &["tls-failed"],
    outcomes: &[Outcome::Reset],
    nginx_logs: NGINX_LOGS,
    recognised: "the backend's socket went from ESTABLISHED straight to CLOSE with nothing unread, its process alive and \
        its listener open",
    needs: &[],
    look_alikes: &["closed-unread", "backend-died", "backend-restarting"],
    remedy: "find where the backend sets SO_LINGER to 0 or calls a hard close (`abort`, `destroy`, `resetAndDestroy`)",
    check: closed_abortively,
};

pub const CLOSED_ON_ACCEPT: Cause = Cause {
    id: "closed-on-accept",
    title: "the backend closed the connection without reading any of the request",
    explains: &["closed-remotely", "tls-failed"],
    outcomes: &[Outcome::Reset, Outcome::Closed],
    nginx_logs: NGINX_LOGS_CLOSED,
    recognised: "a new connection was closed before a byte of the request was read",
    needs: &[],
    look_alikes: &["closed-unread", "closed-without-response", "keepalive-race"],
    remedy: "look for what refuses connections at the backend: a connection limit, an access list, a port that expects \
        TLS or the PROXY protocol",
    check: closed_on_accept,
};

pub const CLOSED_WITHOUT_RESPONSE: Cause = Cause {
    id: "closed-without-response",
    title: "the backend read the request and closed without a byte of an answer",
    explains: &[],
    outcomes: &[Outcome::Closed],
    nginx_logs: NGINX_LOGS_CLOSED,
    recognised: "the whole request was read, then the connection ended in an orderly way while the process lived on",
    needs: &[],
    look_alikes: &["backend-died", "closed-on-accept", "keepalive-race"],
    remedy: "look at the backend's own log for this request: an unhandled error, or its own time limit",
    check: closed_without_response,
};

pub const CLOSED_MID_RESPONSE: Cause = Cause {
    id: "closed-mid-response",
    title: "part of the answer came, then the backend closed",
    explains: &[
        "closed-remotely",
        "reset-remotely",
        "closed-unread",
        "closed-abortively",
    ],
    outcomes: &[Outcome::Closed, Outcome::Reset],
    nginx_logs: "upstream prematurely closed connection while reading upstream (or while reading response header)",
    recognised: "bytes of the answer had been read when the end or a reset came, and nginx found the answer incomplete",
    needs: &[],
    look_alikes: &["backend-died", "response-stalled"],
    remedy: "look at the backend's own log for this request: it stopped in the middle of its answer",
    check: closed_mid_response,
};

pub const RESPONSE_UNREAD: Cause = Cause {
    id: "response-unread",
    title: "the backend did answer, and nginx never read the answer",
    explains: &[
        "closed-unread",
        "closed-abortively",
        "closed-on-accept",
        "closed-without-response",
        "reset-remotely",
    ],
    outcomes: &[Outcome::Reset, Outcome::Closed],
    nginx_logs: "writev() failed (104: Connection reset by peer) while sending request to upstream",
    recognised: "bytes of an answer lay unread in nginx's socket when it gave up on sending the request",
    needs: &[],
    look_alikes: &["closed-unread", "closed-on-accept"],
    remedy: "the backend answered early (413, 401 …) and closed without reading the body: let it read the body, or set \
        proxy_request_buffering on so that nginx sends what it has at once",
    check: response_unread,
};

pub const RESET_REMOTELY: Cause = Cause {
    id: "reset-remotely",
    title: "the peer's host reset the connection; what happened on it cannot be seen from here",
    explains: &[],
    outcomes: &[Outcome::Reset],
    nginx_logs: NGINX_LOGS,
    recognised: "a reset arrived, no TCP of this host sent it, and the address belongs to no namespace of this host",
    needs: &["drops"],
    look_alikes: &["keepalive-race", "closed-unread"],
    remedy: "look on the peer's host (its log, its restarts) and at what lies between: a firewall or load balancer that \
        forgets idle connections resets them too",
    check: reset_remotely,
};

pub const CLOSED_REMOTELY: Cause = Cause {
    id: "closed-remotely",
    title: "the peer's host closed the connection; what happened on it cannot be seen from here",
    explains: &[],
    outcomes: &[Outcome::Closed],
    nginx_logs: NGINX_LOGS_CLOSED,
    recognised: "the peer's FIN arrived after the request had been acknowledged, and the address belongs to no namespace \
        of this host",
    needs: &[],
    look_alikes: &["keepalive-race", "closed-without-response", "closed-on-accept"],
    remedy: "look at the peer's own log for this request: an error, a restart, or its own time limit",
    check: closed_remotely,
};

/// The exchange of an attempt that was ended from the other side.
fn ended_there<'a>(subject: &Subject<'a>) -> Option<&'a Exchange> {
    subject.connected().filter(|exchange| {
        exchange.reset_at.is_some()
            || exchange.fin_at.is_some()
            || exchange.eof_read_at.is_some()
            || exchange.recv_error.is_some()
            || exchange.send_error.is_some()
    })
}

/// The backend's socket is known, yet its close is not: its record is on its way.
fn is_close_awaited(exchange: &Exchange) -> bool {
    matches!(exchange.peer, Peer::Tcp(_))
        && exchange
            .backend
            .as_ref()
            .is_some_and(|backend| backend.closed_at.is_none())
}

fn is_linger(backend: &Backend) -> bool {
    let reason = backend.reset_reason.as_deref();
    backend.aborted
        && backend.unread == 0
        && (backend.error_at_destroy == Some(Errno(104))
            || matches!(reason, Some("TCP_STATE" | "TCP_ABORT_ON_LINGER")))
}

/// The same, past the handshake of TLS: before, no request had been sent that could have been read.
fn ended_with_request<'a>(subject: &Subject<'a>) -> Option<&'a Exchange> {
    ended_there(subject).filter(|_| subject.attempt.phase != Phase::Handshaking)
}

fn closed_unread(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = ended_with_request(subject).filter(|exchange| exchange.received == 0) else {
        return Check::No;
    };
    if let (Peer::Unix(_), None | Some(Errno(104))) = (&exchange.peer, exchange.recv_error) {
        return unix_closed_unread(exchange);
    }
    let Some(backend) = &exchange.backend else {
        return Check::No;
    };
    if is_close_awaited(exchange) {
        return subject.wait_or(Check::No);
    }
    // On a new connection, nothing read at all is closed-on-accept.
    let is_partly = match how_much_read(exchange) {
        Read::Part => true,
        Read::Nothing => subject.attempt.reused,
        Read::All | Read::Unknown => false,
    };
    if !is_partly || backend.unread == 0 {
        return Check::No;
    }
    if backend.read == 0 {
        let after = exchange
            .last_sent_at
            .zip(backend.closed_at)
            .map_or(String::new(), |(sent, closed)| format!(" {} after it was sent", between(sent, closed)));
        let summary = format!(
            "{} closed the kept connection with the whole request unread{after}, so its kernel sent a reset.",
            backend_name(Some(backend))
        );
        let remedy = "see why the backend closes a kept connection so late: a limit on connections, or a keep-alive timeout \
            that runs out while its process is busy";
        return Stand::confirmed(summary, closing_facts(exchange)).with_remedy(remedy).into();
    }
    let summary = format!(
        "{} closed after {} bytes of the request with {} more unread, so its kernel sent a reset.",
        backend_name(Some(backend)),
        backend.read,
        backend.unread
    );
    Stand::confirmed(summary, closing_facts(exchange)).into()
}

/// On a unix socket the errno itself says it: a close with something unread gives the other end 104.
fn unix_closed_unread(exchange: &Exchange) -> Check {
    if exchange.recv_error != Some(Errno(104)) || how_much_read(exchange) == Read::Nothing {
        return Check::No;
    }
    let who = backend_name(exchange.backend.as_ref());
    let read = match &exchange.backend {
        Some(backend) if backend.read > 0 => format!(" after {} bytes", backend.read),
        _ => String::new(),
    };
    let summary = format!("{who} closed{read} without having read the whole request.");
    Stand::confirmed(summary, closing_facts(exchange)).into()
}

fn closed_abortively(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = ended_there(subject).filter(|exchange| exchange.received == 0) else {
        return Check::No;
    };
    let Some(backend) = &exchange.backend else {
        return Check::No;
    };
    if is_close_awaited(exchange) {
        return subject.wait_or(Check::No);
    }
    // What its socket had in store is told when it is destroyed, a moment later.
    if backend.aborted && backend.unread == 0 && backend.error_at_destroy.is_none() && !is_linger(backend) {
        return subject.wait_or(Check::No);
    }
    // A child of a closed listener was never accepted; somebody else's `ss -K` leaves 103, not 104.
    if !is_linger(backend) || backend.read == 0 || !(backend.accepted || backend.task.is_some()) {
        return Check::No;
    }
    let summary = format!(
        "{} reset the connection on purpose after reading {} bytes of the request (SO_LINGER 0): nothing was unread.",
        backend_name(Some(backend)),
        backend.read
    );
    Stand::confirmed(summary, closing_facts(exchange)).into()
}

fn closed_on_accept(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) =
        ended_there(subject).filter(|exchange| exchange.received == 0 && exchange.unread == 0)
    else {
        return Check::No;
    };
    if subject.attempt.reused || how_much_read(exchange) != Read::Nothing {
        return Check::No;
    }
    if is_close_awaited(exchange) {
        return subject.wait_or(Check::No);
    }
    let is_far = locality(exchange, around) != Locality::ThisHost;
    // From far away only a FIN that came before the request is proof; a reset may have many reasons.
    if exchange.backend.is_none() && exchange.fin_at.is_none() && !(is_far && exchange.sent == 0) {
        return Check::No;
    }
    let (Some(began), closed) = (
        exchange.established_at.or(Some(exchange.began_at)),
        exchange
            .backend
            .as_ref()
            .and_then(|backend| backend.closed_at)
            .or(exchange.fin_at)
            .or(exchange.reset_at),
    ) else {
        return Check::No;
    };
    let after = closed.map_or(String::new(), |closed| {
        format!(" {} after it was established", between(began, closed))
    });
    let how = if exchange.backend.as_ref().is_some_and(|backend| backend.aborted) {
        "reset"
    } else {
        "closed"
    };
    let summary = format!(
        "{} {how} the connection{after}, without reading any of the request.",
        backend_name(exchange.backend.as_ref())
    );
    Stand::confirmed(summary, closing_facts(exchange)).into()
}

fn closed_without_response(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) =
        ended_with_request(subject).filter(|exchange| exchange.received == 0 && exchange.unread == 0)
    else {
        return Check::No;
    };
    // Where sends and reads do not cut, only nginx knows whether this was a request or still a handshake.
    if exchange.uncut && subject.said.is_none() {
        return Check::No;
    }
    if exchange.fin_before_request {
        return Check::No;
    }
    let read = how_much_read(exchange);
    let is_near = locality(exchange, around) == Locality::ThisHost;
    let elapsed = exchange
        .last_sent_at
        .zip(exchange.fin_at.or(exchange.eof_read_at));
    let after = elapsed.map_or(String::new(), |(sent, end)| {
        format!(" {} later", span(end.since(sent)))
    });
    let who = backend_name(exchange.backend.as_ref());
    if read == Read::All {
        let summary = format!(
            "{who} read the whole request ({} bytes) and closed{after} without a byte of an answer.",
            exchange.sent
        );
        return Stand::confirmed(summary, closing_facts(exchange)).into();
    }
    // A FIN of this host's TCP, not a reset: nothing lay unread when it closed.
    if read == Read::Unknown && is_near && exchange.acked >= exchange.sent && exchange.reset_at.is_none() {
        let summary = format!(
            "The backend took the whole request ({} bytes) and closed{after} without a byte of an answer.",
            exchange.sent
        );
        return Stand::likely(summary, closing_facts(exchange))
            .without("the backend's own socket was not seen: which process it was is not known")
            .into();
    }
    Check::No
}

fn closed_mid_response(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = ended_with_request(subject).filter(|exchange| exchange.received > 0) else {
        return Check::No;
    };
    // Where sends and reads do not cut, only nginx knows whether an answer had begun.
    if exchange.uncut && subject.said.is_none() {
        return Check::No;
    }
    let mut evidence = closing_facts(exchange);
    evidence.extend(exchange.last_received_at.map(|at| {
        fact(
            at,
            "tcp",
            format!("last of {}", answered(exchange)),
        )
        .count("received", exchange.received)
    }));
    let how = if subject.attempt.outcome == Outcome::Reset {
        "reset the connection"
    } else {
        "closed"
    };
    let summary = format!(
        "{} {how} after {}{}.",
        backend_name(exchange.backend.as_ref()),
        answered(exchange),
        if is_upgraded(exchange) { "" } else { ", before it was complete" }
    );
    Stand::confirmed(summary, evidence).into()
}

fn response_unread(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = ended_there(subject).filter(|exchange| exchange.received == 0) else {
        return Check::No;
    };
    let answered = exchange
        .backend
        .as_ref()
        .map_or(0, |backend| backend.sent)
        .max(exchange.unread);
    if answered == 0 {
        return Check::No;
    }
    let mut evidence = closing_facts(exchange);
    let text = format!("{answered} bytes of an answer, never read by nginx");
    evidence.push(fact(exchange.ended_at, "tcp", text).count("unread", answered));
    let summary = format!(
        "{} answered with {answered} bytes and closed while nginx was still sending the request; nginx met the reset first \
         and never read the answer.",
        backend_name(exchange.backend.as_ref())
    );
    Stand::confirmed(summary, evidence).into()
}

fn reset_remotely(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connected().filter(|exchange| exchange.reset_at.is_some()) else {
        return Check::No;
    };
    let is_cut_here = around
        .drops_of(exchange)
        .iter()
        .any(|dropped| dropped.kind() == DropKind::Netfilter)
        || around.resets_answering(exchange).next().is_some();
    // A rule of this host resets connections, too, and only its drops tell.
    if locality(exchange, around) == Locality::ThisHost || is_cut_here || !around.sees("drops") {
        return Check::No;
    }
    let summary = format!(
        "The host at {} (or something before it) reset the connection{}.",
        exchange.peer,
        progress(subject, exchange)
    );
    remote(Confidence::Confirmed, summary, closing_facts(exchange), exchange, around).into()
}

fn closed_remotely(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) =
        ended_there(subject).filter(|exchange| exchange.reset_at.is_none() || exchange.fin_at.is_some())
    else {
        return Check::No;
    };
    if locality(exchange, around) == Locality::ThisHost {
        return Check::No;
    }
    let summary = format!(
        "The host at {} closed the connection{}.",
        exchange.peer,
        progress(subject, exchange)
    );
    remote(Confidence::Confirmed, summary, closing_facts(exchange), exchange, around).into()
}

fn progress(subject: &Subject<'_>, exchange: &Exchange) -> String {
    let idle = match subject.attempt.idle_us {
        Some(idle) if subject.attempt.reused => {
            format!(", idle for {} before", span(idle.saturating_mul(1000)))
        }
        _ => String::new(),
    };
    let end = exchange.fin_at.or(exchange.reset_at);
    let after = exchange
        .last_sent_at
        .zip(end)
        .map_or(String::new(), |(sent, end)| {
            format!(
                " {} after the request was sent ({} of {} bytes acknowledged)",
                between(sent, end),
                exchange.acked,
                exchange.sent
            )
        });
    format!("{after}{idle}")
}
