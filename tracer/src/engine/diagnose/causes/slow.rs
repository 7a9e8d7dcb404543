//! The connection was up and the answer did not come in time: never accepted, slow, stalled, or lost on the way.

use super::facts::{
    Translated, answered, backend_name, deadline, locality, queue_fact, request_fact, timer, translated,
};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{Locality, Surroundings, translation_of},
        text::{between, counted, process, span},
    },
    event::{Answer, Errno, Exchange, Peer, Question},
    model::{Evidence, Outcome, Phase},
};

pub const NEVER_ACCEPTED: Cause = Cause {
    id: "never-accepted",
    title: "the kernel took the connection, but the application never called accept()",
    explains: &["backend-slow"],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading response header from upstream",
    recognised: "the backend's socket is established on this host and no process had accepted or read it when nginx's \
        timer ended the wait; on a unix socket, where an accept() without a read cannot be seen: no process had read the \
        request, and connections wait in the listen queue (`likely`)",
    needs: &[],
    look_alikes: &["backend-slow", "accept-queue-full", "handshake-half-open"],
    remedy: "the backend's workers are all busy or stuck: add workers, or look at what its accept loop waits for",
    check: never_accepted,
};

pub const BACKEND_SLOW: Cause = Cause {
    id: "backend-slow",
    title: "the backend took the request and produced no byte of an answer in time",
    explains: &[],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading response header from upstream",
    recognised: "the request was acknowledged and read by the backend's process, and not a byte came back before \
        nginx's timer; for a far peer acknowledged is all that can be seen",
    needs: &[],
    look_alikes: &["never-accepted", "path-lost", "response-stalled"],
    remedy: "look at what the backend does with this request (its own log, its database); only if it may take that \
        long, raise the read timeout",
    check: backend_slow,
};

pub const PATH_LOST: Cause = Cause {
    id: "path-lost",
    title: "the request was never acknowledged: the path to the peer is lost, or something on it forgot the connection",
    explains: &[],
    outcomes: &[Outcome::TimedOut, Outcome::Unreachable],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading response header from upstream; recv() or \
        writev() failed (110: …) when the kernel gave up first",
    recognised: "the connection was up, the request's bytes were sent again and again, and no acknowledgement came",
    needs: &["retransmits"],
    look_alikes: &["backend-slow", "packet-dropped-locally", "handshake-half-open"],
    remedy: "on a reused connection: keep its idle time below the firewall's or NAT's (keepalive_timeout in the upstream \
        block, proxy_socket_keepalive on); on a new one: look for packet loss or an MTU problem on the way",
    check: path_lost,
};

pub const RESPONSE_STALLED: Cause = Cause {
    id: "response-stalled",
    title: "part of the answer came, then silence until nginx's timer",
    explains: &[],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading upstream",
    recognised: "bytes of the answer had been read, and none followed before nginx's timer",
    needs: &[],
    look_alikes: &["backend-slow", "closed-mid-response"],
    remedy: "look at what the backend waits for in the middle of its answer; only if such pauses are normal, raise the \
        read timeout",
    check: response_stalled,
};

/// The exchange of an attempt that timed out on a connection that was up, past any handshake of TLS.
fn waited<'a>(subject: &Subject<'a>) -> Option<&'a Exchange> {
    let exchange = subject.connected()?;
    (subject.attempt.phase != Phase::Handshaking && exchange.error != Some(Errno(110))).then_some(exchange)
}

fn never_accepted(subject: &Subject<'_>, around: &Surroundings) -> Check {
    // Not accepted is a fact in any phase, a TLS handshake included.
    let Some(exchange) = subject.connected() else {
        return Check::No;
    };
    let Some(backend) = &exchange.backend else {
        return Check::No;
    };
    if backend.accepted || backend.task.is_some() || backend.first_read_at.is_some() || exchange.received > 0
    {
        return Check::No;
    }
    let address = match &exchange.peer {
        Peer::Tcp(address) => address,
        Peer::Unix(path) => return never_read(subject, exchange, path, around),
    };
    let (timer, mut evidence) = timer(subject);
    evidence.extend(
        exchange
            .established_at
            .map(|at| fact(at, "tcp", "connection established by the kernel")),
    );
    evidence.extend(request_fact(exchange));
    let waited = between(
        exchange.established_at.unwrap_or(exchange.began_at),
        exchange.ended_at,
    );
    if let Some((at, listener)) = around.queue_of(exchange) {
        evidence.push(queue_fact(at, listener));
        let who = process(&listener.task);
        let summary = format!(
            "{who} had not called accept() for it after {waited}: {} waiting in the accept queue of {} (limit {}); {timer}.",
            counted(u64::from(listener.queue), "connection"),
            listener.address,
            listener.limit
        );
        let remedy = format!(
            "{who} does not accept: its workers are all busy or stuck; add workers or see what they wait for"
        );
        return Stand::confirmed(summary, evidence).with_remedy(remedy).into();
    }
    let owner = around
        .listeners_on(backend.netns, address.port())
        .rfind(|life| life.is_open_at(exchange.ended_at));
    let who = owner.map_or("the application".to_owned(), |life| process(&life.listener.task));
    let summary = format!(
        "The kernel established the connection, but {who} had not called accept() after {waited}; {timer}."
    );
    Stand::confirmed(summary, evidence).into()
}

/// On a unix socket nothing shows an accept() without a read; that others wait in the queue says the same.
fn never_read(subject: &Subject<'_>, exchange: &Exchange, path: &str, around: &Surroundings) -> Check {
    let question = Question::UnixPath {
        pid: subject.attempt.worker,
        path: path.to_owned(),
        sockets: true,
    };
    let walk = match around.answer(&question, subject.attempt.ended_at) {
        Some(Answer::UnixPath(walk)) => walk,
        None if subject.may_wait => return Check::Ask(question),
        _ => return Check::No,
    };
    // Another container's path may read the same.
    let file = walk.components.last().map(|component| component.inode);
    let is_there = |bound: Option<_>| bound.is_none() || file.is_none() || bound == file;
    let here = walk.sockets.iter().filter(|socket| is_there(socket.file));
    let full = here.into_iter().find_map(|socket| {
        let (queue, limit) = socket.queue.filter(|(queue, _)| socket.listening && *queue > 0)?;
        Some((socket.owners.first(), queue, limit))
    });
    let Some((owner, queue, limit)) = full else {
        return Check::No;
    };
    let who = owner.map_or("the backend".to_owned(), |(pid, comm)| format!("{comm} (pid {pid})"));
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    let text = format!("listen queue of {path} a moment later: {queue} waiting, limit {limit} ({who})");
    evidence.push(
        fact(None, "queue", text)
            .text("address", path)
            .number("queue", queue)
            .number("limit", limit),
    );
    let summary = format!(
        "No process of {who} had read the request after {}: {} waiting in the listen queue of {path} (limit {limit}); \
         {timer}.",
        between(exchange.began_at, exchange.ended_at),
        counted(u64::from(queue), "connection"),
    );
    Stand::likely(summary, evidence)
        .with_remedy(format!(
            "{who} does not accept: its workers are all busy or stuck; add workers (pm.max_children, --workers) or see \
             what they wait for"
        ))
        .into()
}

/// A backend with a free worker reads what comes sooner than this.
const NOT_AT_ONCE: u64 = 100_000_000;

/// Over a unix socket what had come is not seen, and the end was so long after nginx's timer had run out that its worker may
/// not have been running when it did.
fn may_have_slept(subject: &Subject<'_>, exchange: &Exchange) -> bool {
    const LATE: u64 = 500_000_000;
    let late = deadline(subject, exchange).map(|due| exchange.ended_at.since(due));
    matches!(exchange.peer, Peer::Unix(_)) && late.is_some_and(|late| late > LATE)
}

fn backend_slow(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = waited(subject).filter(|exchange| exchange.received == 0 && exchange.unread == 0)
    else {
        return Check::No;
    };
    if may_have_slept(subject, exchange) {
        return Check::No;
    }
    // A far host that did not even acknowledge, or a window that is shut, is another story.
    if exchange.sent == 0 || exchange.send_window == Some(0) {
        return Check::No;
    }
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    let since = exchange.last_sent_at.unwrap_or(exchange.began_at);
    let silence = between(since, exchange.ended_at);
    match &exchange.backend {
        Some(backend) if backend.sent > 0 => Check::No,
        Some(backend) if backend.read > 0 => {
            evidence.extend(backend_read_fact(exchange));
            let who = backend_name(Some(backend));
            let waited = backend
                .first_read_at
                .map_or(0, |first| first.since(exchange.last_sent_at.unwrap_or(first)));
            // Most of the time was spent in the queue before it: the request is not what is slow.
            if waited > NOT_AT_ONCE && waited > exchange.ended_at.since(since) / 2 {
                let summary = format!(
                    "{who} read the request only {} after it was sent, and sent nothing in the time that was left; {timer}.",
                    span(waited)
                );
                let remedy = "the request waited for a free worker for most of the time: add workers, or see what keeps \
                    them busy; only then raise the read timeout";
                return Stand::confirmed(summary, evidence).with_remedy(remedy).into();
            }
            let summary = format!("{who} read the request and sent nothing for {silence}; {timer}.");
            Stand::confirmed(summary, evidence).into()
        }
        Some(backend) if backend.accepted || backend.task.is_some() => {
            let who = backend_name(Some(backend));
            let summary = format!(
                "{who} accepted the connection, has not read the request and sent nothing for {silence}; {timer}."
            );
            Stand::likely(summary, evidence).into()
        }
        Some(_) if !matches!(exchange.peer, Peer::Unix(_)) => Check::No,
        _ => {
            let is_unix = matches!(exchange.peer, Peer::Unix(_));
            if !is_unix && exchange.acked < exchange.sent {
                return Check::No;
            }
            let took = if is_unix {
                "was handed over"
            } else {
                "was acknowledged by the peer's kernel"
            };
            let summary = format!("The request {took}, and nothing came back for {silence}; {timer}.");
            Stand::likely(summary, evidence)
                .without("the backend's process was not seen: whether it read the request is not known")
                .into()
        }
    }
}

fn backend_read_fact(exchange: &Exchange) -> Option<Evidence> {
    let backend = exchange.backend.as_ref()?;
    let task = backend.task.as_ref()?;
    let at = backend.first_read_at.or(backend.last_read_at)?;
    let text = format!(
        "{}[{}] read {} bytes of the request",
        task.comm, task.pid, backend.read
    );
    Some(
        fact(at, "process", text)
            .number("pid", task.pid.0)
            .text("comm", &*task.comm)
            .count("read", backend.read),
    )
}

fn path_lost(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject
        .connected()
        .filter(|exchange| matches!(exchange.peer, Peer::Tcp(_)))
    else {
        return Check::No;
    };
    let is_stuck = exchange.sent > 0 && exchange.acked < exchange.sent && exchange.retransmits > 0;
    let is_reset = exchange.reset_at.is_some() || exchange.fin_at.is_some();
    if !is_stuck || is_reset || exchange.send_window == Some(0) || exchange.received > 0 {
        return Check::No;
    }
    let is_half_open = exchange.backend.is_none()
        && match locality(exchange, around) {
            Locality::ThisHost => true,
            Locality::Elsewhere | Locality::Unknown => match translated(subject, exchange, around) {
                Translated::Ask(question) => return Check::Ask(question),
                Translated::To(_, Locality::ThisHost) => true,
                Translated::To(..) | Translated::No | Translated::Unclear => false,
            },
        };
    let is_read = exchange.backend.as_ref().is_some_and(|backend| backend.read > 0);
    // The other end had the bytes, or its kernel never finished the handshake: no path was lost.
    if is_read || is_half_open {
        return Check::No;
    }
    let (gave_up, mut evidence) = if exchange.error.is_some() {
        let evidence = fact(exchange.error_at, "tcp", "the kernel gave up on the connection");
        ("the kernel gave up".to_owned(), vec![evidence])
    } else {
        timer(subject)
    };
    evidence.extend(request_fact(exchange));
    let text = format!("{} segments sent again", exchange.retransmits);
    evidence.push(fact(exchange.last_retransmit_at, "tcp", text).number("retransmits", exchange.retransmits));
    let idle = match subject.attempt.idle_us {
        Some(idle) if subject.attempt.reused => {
            format!(
                " on a connection that had been idle for {}",
                span(idle.saturating_mul(1000))
            )
        }
        _ => String::new(),
    };
    let summary = format!(
        "{} of {} bytes of the request were acknowledged{idle}, after {} retransmissions; {gave_up}.",
        exchange.acked, exchange.sent, exchange.retransmits
    );
    let stand = Stand::confirmed(summary, evidence);
    // Where a translation leads back to this host, its listener's full queue would look the same.
    let is_hidden = exchange.backend.is_none()
        && translation_of(exchange).is_some_and(|(question, _)| {
            let answer = around.answer(&question, subject.attempt.ended_at);
            matches!(answer, Some(Answer::Unavailable { .. }))
        });
    if !is_hidden {
        return stand.into();
    }
    stand
        .without("connection tracking: whether the peer's address is translated was not to be learned")
        .into()
}

fn response_stalled(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = waited(subject).filter(|exchange| exchange.received > 0) else {
        return Check::No;
    };
    // Where sends and reads do not cut, only nginx knows whether an answer had begun.
    if exchange.uncut && subject.said.is_none() {
        return Check::No;
    }
    // What lies unread had come, before or after the timer ran out.
    if exchange.unread > 0 || may_have_slept(subject, exchange) {
        return Check::No;
    }
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    let Some(last) = exchange.last_received_at else {
        return Check::No;
    };
    let text = format!("last of {}", answered(exchange));
    evidence.push(fact(last, "tcp", text).count("received", exchange.received));
    let summary = format!(
        "{} came, then nothing for {}; {timer}.",
        answered(exchange),
        between(last, exchange.ended_at)
    );
    Stand::confirmed(summary, evidence).into()
}
