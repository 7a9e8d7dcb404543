//! The backend's process ended, or stopped serving, with this connection in its hands.

use super::facts::{End, closing_facts, end_of, listener_closed_fact};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject},
        surroundings::{ListenerLife, SECOND, Surroundings, is_orderly},
        text::{between, process},
    },
    event::{Exchange, Ktime, Peer, Task},
    model::Outcome,
};

/// What follows from the end of a backend.
const EXPLAINED: &[&str] = &[
    "closed-unread",
    "closed-abortively",
    "closed-on-accept",
    "closed-without-response",
    "closed-mid-response",
    "response-unread",
    "keepalive-race",
];

pub const BACKEND_DIED: Cause = Cause {
    id: "backend-died",
    title: "the backend's process was killed or crashed with this request in hand",
    explains: EXPLAINED,
    outcomes: &[Outcome::Closed, Outcome::Reset],
    nginx_logs: "upstream prematurely closed connection while reading response header from upstream; or recv() failed \
        (104: Connection reset by peer)",
    recognised: "the process that held the other end ended by a signal other than TERM, INT, QUIT and HUP, by the OOM \
        killer or with a non-zero code, and its end closed the connection",
    needs: &[],
    look_alikes: &[
        "backend-restarting",
        "closed-without-response",
        "closed-unread",
        "keepalive-race",
    ],
    remedy: "find out why it died (its own log, the kernel log, the supervisor's); a request that kills it will do so \
        again",
    check: backend_died,
};

pub const BACKEND_RESTARTING: Cause = Cause {
    id: "backend-restarting",
    title: "the backend was stopped or restarted and closed this connection with it",
    explains: EXPLAINED,
    outcomes: &[Outcome::Closed, Outcome::Reset],
    nginx_logs: "upstream prematurely closed connection while reading response header from upstream; or recv() failed \
        (104: Connection reset by peer)",
    recognised: "the process that held the other end ended in an orderly way (TERM, INT, QUIT, HUP or code 0) with the \
        connection open, or closed its listener together with the connection",
    needs: &[],
    look_alikes: &["backend-died", "closed-without-response", "closed-on-accept"],
    remedy: "let the backend finish its requests before it stops (graceful shutdown), or take it out of the upstream first",
    check: backend_restarting,
};

/// Who closed the other end, and when, as far as it is known.
fn closer(exchange: &Exchange) -> Option<(&Task, Ktime)> {
    let backend = exchange.backend.as_ref()?;
    let at = backend
        .closed_at
        .or(exchange.fin_at)
        .or(exchange.reset_at)
        .or(exchange.eof_read_at)
        .or(exchange.error_at);
    let task = backend.closed_by.as_ref().or(backend.task.as_ref())?;
    Some((task, at.unwrap_or(exchange.ended_at)))
}

/// How the process that held the other end came to its end, when that end closed the connection.
fn end<'a>(exchange: &'a Exchange, around: &'a Surroundings) -> Option<(End<'a>, Ktime)> {
    let (task, at) = closer(exchange)?;
    let end = end_of(task, at, around)?;
    // A process closes its sockets while it exits: what it closed before it did on purpose.
    let is_by_exit = match (task.exiting, end.death) {
        (Some(_), _) => true,
        (None, Some(death)) => death.at.0 <= at.0.saturating_add(1_000_000),
        (None, None) => false,
    };
    is_by_exit.then_some((end, at))
}

/// How far the request had come, as the end of a sentence.
fn in_hand(exchange: &Exchange) -> String {
    let read = exchange.backend.as_ref().map_or(0, |backend| backend.read);
    if exchange.received > 0 {
        format!("after {} bytes of the answer", exchange.received)
    } else if read > 0 {
        format!(
            "{} after it read this request",
            match exchange
                .backend
                .as_ref()
                .and_then(|backend| backend.first_read_at)
            {
                Some(first) => between(first, exchange.ended_at),
                None => "shortly".to_owned(),
            }
        )
    } else {
        "before it read any of this request".to_owned()
    }
}

fn backend_died(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connected() else {
        return Check::No;
    };
    let Some((end, at)) = end(exchange, around) else {
        return wait_for_the_close(subject, exchange);
    };
    if is_orderly(end.exit) && !end.oom {
        return Check::No;
    }
    let mut evidence = closing_facts(exchange);
    evidence.push(end.fact(at));
    let summary = format!("{} {}.", end.sentence(), in_hand(exchange));
    let mut stand = Stand::confirmed(summary, evidence);
    if end.oom {
        stand = stand.with_remedy(format!(
            "find what took the memory: raise the limit of {} or make it use less",
            end.task.comm
        ));
    } else if let Some(sender) = end.death.and_then(|death| death.signalled_by.as_ref()) {
        stand = stand.with_remedy(format!(
            "find out why {} killed it (a supervisor's or worker manager's own timeout is the usual reason)",
            process(sender)
        ));
    }
    stand.into()
}

fn backend_restarting(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connected() else {
        return Check::No;
    };
    let mut evidence = closing_facts(exchange);
    if let Some((end, at)) = end(exchange, around) {
        if !is_orderly(end.exit) || end.oom {
            return Check::No;
        }
        evidence.push(end.fact(at));
        return Stand::confirmed(format!("{} {}.", end.sentence(), in_hand(exchange)), evidence).into();
    }
    let Some((task, at)) = closer(exchange) else {
        return wait_for_the_close(subject, exchange);
    };
    let Some(life) = closed_listener(exchange, task, at, around) else {
        return wait_for_the_close(subject, exchange);
    };
    evidence.extend(listener_closed_fact(life));
    let summary = format!(
        "{} closed its listener {} and this connection with it, {}.",
        process(task),
        life.listener.address,
        in_hand(exchange)
    );
    Stand::confirmed(summary, evidence).into()
}

/// The listener of the same port that the same process closed about then.
fn closed_listener<'a>(
    exchange: &Exchange,
    task: &Task,
    at: Ktime,
    around: &'a Surroundings,
) -> Option<&'a ListenerLife> {
    let Peer::Tcp(address) = exchange.peer else {
        return None;
    };
    let netns = exchange.backend.as_ref()?.netns;
    around.listeners_on(netns, address.port()).rfind(|life| {
        life.closed.as_ref().is_some_and(|(closed, by)| {
            by.pid == task.pid && at.since(*closed) <= 2 * SECOND && closed.since(at) <= SECOND / 4
        })
    })
}

/// The far end's part may be told after nginx's: its close, and the end of its process, are on their way.
fn wait_for_the_close(subject: &Subject<'_>, exchange: &Exchange) -> Check {
    let is_awaited = exchange
        .backend
        .as_ref()
        .is_some_and(|backend| backend.closed_at.is_none() || matches!(exchange.peer, Peer::Unix(_)));
    if is_awaited {
        subject.wait_or(Check::No)
    } else {
        Check::No
    }
}
