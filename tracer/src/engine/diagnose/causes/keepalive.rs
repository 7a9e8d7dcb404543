//! A kept connection that the backend closed just as nginx used it again.

use super::facts::{End, Read, backend_close_fact, backend_name, fin_fact, how_much_read, request_fact, rst_fact};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::Surroundings,
        text::{between, span},
    },
    event::{Exchange, Ktime, Peer},
    model::{Evidence, Outcome},
};

pub const KEEPALIVE_RACE: Cause = Cause {
    id: "keepalive-race",
    title: "the backend closed an idle kept connection just as nginx sent the next request on it",
    explains: &[
        "closed-unread",
        "closed-on-accept",
        "closed-abortively",
        "closed-without-response",
        "closed-remotely",
        "reset-remotely",
    ],
    outcomes: &[Outcome::Closed, Outcome::Reset],
    nginx_logs: "upstream prematurely closed connection while reading response header from upstream; or recv() failed \
        (104: Connection reset by peer)",
    recognised: "the connection had carried a request before, and the peer's FIN or RST came before any byte of this \
        request could have been acknowledged",
    needs: &[],
    look_alikes: &[
        "closed-without-response",
        "closed-unread",
        "backend-died",
        "reset-remotely",
    ],
    remedy: "make the backend keep idle connections longer than nginx does: raise its keep-alive timeout, or set \
        keepalive_timeout in the upstream block below it",
    check: keepalive_race,
};

/// An application that closes an idle connection has decided so before it looked for more: within its own event loop.
const SAME_LOOP: u64 = 50_000_000;

fn keepalive_race(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject
        .connected()
        .filter(|exchange| subject.attempt.reused && exchange.received == 0)
    else {
        return Check::No;
    };
    if !matches!(exchange.peer, Peer::Tcp(_)) {
        return unix_race(subject, exchange);
    }
    if exchange.unread > 0 || how_much_read(exchange) == Read::All {
        return Check::No;
    }
    let sent_at = exchange.first_sent_at;
    let is_fin_first = exchange.fin_at.is_some() && exchange.fin_before_request;
    let is_before = |at: Option<Ktime>| at.is_some_and(|at| sent_at.is_none_or(|sent| at <= sent));
    // A socket that was reset takes nothing more: a reset "before" a request that was sent came while it was being sent.
    let is_reset_first = exchange.sent == 0 && is_before(exchange.reset_at);
    // A far host's reset that comes soon after the request proves nothing: the usual round trip may have been measured
    // while a machine was busy, and an answer to the request itself would come as soon.
    if is_fin_first || is_reset_first {
        let (summary, mut evidence) = story(subject, exchange);
        let end = end_after(exchange, around);
        evidence.extend(end.as_ref().map(|end| end.fact(exchange.ended_at)));
        let remedy = match end {
            Some(end) => remedy_for_the_end(&end),
            None => remedy(subject),
        };
        return Stand::confirmed(summary, evidence).with_remedy(remedy).into();
    }
    // Its decision and our request crossed inside one host: the request lay unread when it closed.
    if let Some(backend) = &exchange.backend {
        if backend.closed_at.is_none() && exchange.reset_at.is_some() {
            return subject.wait_or(Check::No);
        }
        let is_crossed = matches!((backend.closed_at, sent_at), (Some(closed), Some(sent)) if closed.since(sent) < SAME_LOOP);
        if backend.read == 0 && is_crossed {
            let (summary, evidence) = story(subject, exchange);
            return Stand::likely(summary, evidence)
                .with_remedy(remedy(subject))
                .into();
        }
    }
    Check::No
}

/// A large application takes its time between the close of its connections and its end.
const COMING_DOWN: u64 = 5_000_000_000;

/// The end of the process that closed the connection, where it is known already.
fn end_after<'a>(exchange: &'a Exchange, around: &'a Surroundings) -> Option<End<'a>> {
    let backend = exchange.backend.as_ref()?;
    let (task, closed_at) = (backend.closed_by.as_ref()?, backend.closed_at?);
    let latest = Ktime(closed_at.0.saturating_add(COMING_DOWN));
    let death = around.death_between(task.pid, closed_at, latest)?;
    Some(End {
        exit: death.task.exiting?,
        oom: death.task.oom,
        death: Some(death),
        task,
    })
}

/// The remedy where the process that closed the connection ended after it.
fn remedy_for_the_end(end: &End<'_>) -> String {
    format!(
        "{} since: a process that ends closes its kept connections, however long its keep-alive timeout; where workers \
         are replaced after a number of requests (max_requests), raise the number, or let nginx try again \
         (proxy_next_upstream, non_idempotent for POST)",
        end.sentence()
    )
}

fn unix_race(subject: &Subject<'_>, exchange: &Exchange) -> Check {
    // A unix socket closed before the send fails the send itself.
    let is_broken = exchange.send_error.is_some_and(|error| error.0 == 32) && exchange.sent == 0;
    if !is_broken {
        return Check::No;
    }
    let (summary, evidence) = story(subject, exchange);
    Stand::confirmed(summary, evidence)
        .with_remedy(remedy(subject))
        .into()
}

fn story(subject: &Subject<'_>, exchange: &Exchange) -> (String, Vec<Evidence>) {
    let who = backend_name(exchange.backend.as_ref());
    let idle = subject
        .attempt
        .idle_us
        .map(|idle| span(idle.saturating_mul(1000)));
    let after = idle
        .as_ref()
        .map_or(String::new(), |idle| format!(" after {idle} of idleness"));
    let mut evidence = Vec::new();
    evidence.extend(exchange.previous_at.map(|at| {
        let base = fact(
            at,
            "tcp",
            format!(
                "end of request {} on this connection",
                exchange.id.number.saturating_sub(1)
            ),
        );
        match subject.attempt.idle_us {
            Some(idle) => base.count("idle_us", idle),
            None => base,
        }
    }));
    evidence.extend(fin_fact(exchange));
    evidence.extend(request_fact(exchange));
    evidence.extend(rst_fact(exchange));
    evidence.extend(exchange.backend.as_ref().and_then(backend_close_fact));
    let closed = exchange
        .fin_at
        .or(exchange.backend.as_ref().and_then(|backend| backend.closed_at))
        .or(exchange.reset_at);
    let order = match (closed, exchange.first_sent_at) {
        (Some(closed), Some(sent)) if closed <= sent => {
            format!("{} before nginx sent this request on it", between(closed, sent))
        }
        (Some(closed), Some(sent)) => {
            format!(
                "{} after nginx sent this request, without having read a byte of it",
                between(sent, closed)
            )
        }
        (Some(closed), None) => format!(
            "{} before nginx used it again",
            between(closed, exchange.began_at)
        ),
        (None, _) => "as nginx sent this request on it".to_owned(),
    };
    (
        format!("{who} closed the kept connection{after}, {order}."),
        evidence,
    )
}

fn remedy(subject: &Subject<'_>) -> String {
    let idle = match subject.attempt.idle_us {
        Some(idle) => format!(" (it closed after about {})", span(idle.saturating_mul(1000))),
        None => String::new(),
    };
    let nginx = match subject.limits.keepalive_timeout_ms {
        Some(limit) => format!(
            "; nginx's keepalive_timeout here is {}",
            span(limit.saturating_mul(1_000_000))
        ),
        None => String::new(),
    };
    format!(
        "raise the backend's keep-alive timeout{idle} above nginx's, or set keepalive_timeout in the upstream block below \
         it{nginx}"
    )
}
