//! Attempts that ended, or never began, for reasons on nginx's side of the peer.

use std::collections::BTreeMap;

use super::facts::{connect_fact, request_fact, rst_fact};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{PastFailure, SECOND, Surroundings, is_orderly},
        text::{between, ended},
    },
    event::{Balancing, EndKind, Ktime, Peer},
    model::{Evidence, Outcome},
};

pub const NO_LIVE_UPSTREAMS: Cause = Cause {
    id: "no-live-upstreams",
    title: "nginx had no peer it was willing to try: earlier failures had disabled them, or all were tried already",
    explains: &[],
    outcomes: &[Outcome::NoLiveUpstreams],
    nginx_logs: "no live upstreams while connecting to upstream",
    recognised: "nginx said so; what disabled its peers are earlier failures, with their causes: as many as max_fails \
        within fail_timeout in this worker, or in any where the upstream has a zone, or those of this very request",
    needs: &[],
    look_alikes: &[],
    remedy: "cure the earlier failures; max_fails and fail_timeout decide how many of them disable a peer, and for how long",
    check: no_live_upstreams,
};

pub const CLIENT_CLOSED: Cause = Cause {
    id: "client-closed",
    title: "the client left first, and nginx gave up the attempt (status 499): not a failure of the peer",
    explains: &[],
    outcomes: &[Outcome::Cancelled],
    nginx_logs: "nothing at error level (at info: client prematurely closed connection)",
    recognised: "the client's connection had been closed or reset before nginx closed the upstream's, and nginx closed \
        both one after the other",
    needs: &[],
    look_alikes: &["backend-slow", "syn-unanswered"],
    remedy: "nothing is wrong with the peer; if many clients leave, see how long it took to answer them",
    check: client_closed,
};

pub const WORKER_DIED: Cause = Cause {
    id: "worker-died",
    title: "an nginx worker crashed or was killed with this request in hand",
    explains: &["client-closed"],
    outcomes: &[Outcome::Cancelled],
    nginx_logs: "worker process 811 exited on signal 9 (from the master; nothing about the request)",
    recognised: "the worker's process ended by a signal or with a non-zero code, and the kernel closed its sockets",
    needs: &[],
    look_alikes: &["client-closed"],
    remedy: "find out why the worker died: a module, memory (OOM killer), or somebody's kill",
    check: worker_died,
};

pub const WORKER_SHUTDOWN: Cause = Cause {
    id: "worker-shutdown",
    title: "an nginx worker was shut down with this request in hand",
    explains: &["client-closed"],
    outcomes: &[Outcome::Cancelled],
    nginx_logs: "nothing (status 000 in the access log)",
    recognised: "the worker ended with code 0, and its end closed the connection. Or, `likely`: it ended right after it had \
        closed it, the client had not left, and worker_shutdown_timeout is set",
    needs: &[],
    look_alikes: &["client-closed", "worker-died"],
    remedy: "after a reload worker_shutdown_timeout cuts what is still under way: raise it, or let such requests end sooner; \
        to stop nginx use QUIT (`nginx -s quit`), which waits for them, and not TERM (`nginx -s stop`)",
    check: worker_shutdown,
};

/// A worker that has closed its last connection ends within this time.
const ENDS_WITHIN: u64 = 250_000_000;

/// By how much a line of the file can be ahead of the ring, which is looked at every 25 ms.
const FILE_IS_AHEAD: u64 = 100_000_000;

fn no_live_upstreams(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let attempt = subject.attempt;
    let said = fact(attempt.ended_at, "nginx", "nginx found no peer to try");
    let Some(upstream) = attempt.upstream.as_deref() else {
        let summary = "Every peer of the upstream was disabled by earlier failures or already tried.";
        return Stand::likely(summary, vec![said])
            .without("which upstream it was is not known")
            .into();
    };
    // A line that only the file has may be read before the kernel's records of the same moment.
    let ended_at = if around.sees("nginx-log") {
        attempt.ended_at
    } else {
        Ktime(attempt.ended_at.0.saturating_add(FILE_IS_AHEAD))
    };
    let failures: Vec<&PastFailure> = around
        .failures_of(upstream)
        .filter(|failure| failure.at <= ended_at)
        .collect();
    let tried = tried_before(subject, &failures);
    let is_known = !subject.upstream_peers.is_empty();
    let mut last_by_peer: BTreeMap<&Peer, (&PastFailure, u64)> = BTreeMap::new();
    for (peer, balancing) in subject.upstream_peers {
        let of_peer: Vec<&PastFailure> = failures
            .iter()
            .copied()
            .filter(|failure| failure.peer == *peer)
            .collect();
        let was_tried = of_peer.iter().rev().find(|failure| tried.contains(&failure.attempt));
        let counted: Vec<&PastFailure> = of_peer
            .iter()
            .copied()
            .filter(|failure| is_counted_for(failure, subject, *balancing))
            .collect();
        let last = was_tried
            .copied()
            .or_else(|| disabling(&counted, (*balancing)?, attempt.ended_at));
        last_by_peer.extend(last.map(|last| (peer, (last, of_peer.len() as u64))));
    }
    for failure in failures.iter().filter(|_| !is_known) {
        let entry = last_by_peer.entry(&failure.peer).or_insert((failure, 0));
        *entry = (failure, entry.1 + 1);
    }
    let unexplained: Vec<String> = subject
        .upstream_peers
        .keys()
        .filter(|peer| !last_by_peer.contains_key(peer))
        .map(ToString::to_string)
        .collect();
    let is_whole = !last_by_peer.is_empty() && unexplained.is_empty() && is_known;
    // The attempts just before this one may still be waiting for their own causes.
    if !is_whole && subject.may_wait {
        return Check::NotYet;
    }
    if last_by_peer.is_empty() {
        let summary = format!("No peer of {upstream} could be tried, and no failure was seen that had disabled one.");
        return Stand::likely(summary, vec![said])
            .without("what disabled the peers happened before the trace, or they are `down` or at max_conns")
            .into();
    }
    let mut evidence = vec![said];
    let mut parts = Vec::new();
    for (peer, (failure, n)) in &last_by_peer {
        let ago = between(failure.at, attempt.ended_at);
        parts.push(format!(
            "{peer} ({}, {n} in the last minute, the last {ago} before)",
            failure.cause
        ));
        let text = format!("{peer} failed: {} (attempt {})", failure.cause, failure.attempt);
        evidence.push(
            fact(failure.at, "nginx", text)
                .text("peer", peer.to_string())
                .text("cause", failure.cause)
                .count("attempt", failure.attempt)
                .count("failures", *n),
        );
    }
    let parts = parts.join(", ");
    if is_whole {
        let summary = format!("Earlier failures had used up every peer of {upstream}: {parts}.");
        return Stand::confirmed(summary, evidence).into();
    }
    let summary = format!("Earlier failures had used up peers of {upstream}: {parts}.");
    let unseen = if unexplained.is_empty() {
        "which peers the upstream has is not known".to_owned()
    } else {
        format!(
            "no failure was seen that had disabled {}: it happened before the trace, or the peer is `down` or at max_conns",
            unexplained.join(", ")
        )
    };
    Stand::likely(summary, evidence).without(unseen).into()
}

/// The attempts that the same request made before.
fn tried_before(subject: &Subject<'_>, failures: &[&PastFailure]) -> Vec<u64> {
    let retry_of = |number: u64| {
        let failure = failures.iter().find(|failure| failure.attempt == number)?;
        failure.retry_of.filter(|of| *of < number)
    };
    // nginx tries no peer twice: with more tries than peers, some were an earlier request's of the same client.
    let is_one_request = |n: u32| n as usize <= subject.upstream_peers.len();
    let last = subject.attempt.retry.filter(|(_, n)| is_one_request(*n));
    std::iter::successors(last.map(|(of, _)| of), |number| retry_of(*number)).collect()
}

/// Whether nginx's balancer counts a failure where the attempt was to be made.
fn is_counted_for(failure: &PastFailure, subject: &Subject<'_>, balancing: Option<Balancing>) -> bool {
    let is_shared = balancing.is_some_and(|balancing| balancing.is_shared);
    let is_here = if is_shared {
        subject.siblings.is_some() && failure.siblings == subject.siblings
    } else {
        failure.worker == subject.attempt.worker
    };
    is_here && failure.is_counted
}

/// The failure that disabled a peer, of those that are counted, oldest first.
///
/// A peer without `max_conns` that is left out has failed often enough, whatever of that was seen; nginx counts in whole
/// seconds. <https://github.com/nginx/nginx/blob/release-1.26.3/src/http/ngx_http_upstream_round_robin.c>
fn disabling<'a>(counted: &[&'a PastFailure], balancing: Balancing, at: Ktime) -> Option<&'a PastFailure> {
    let timeout = balancing.fail_timeout_ms.saturating_mul(1_000_000);
    let (least, within) = match balancing.max_conns {
        0 => (1, timeout.saturating_add(SECOND)),
        _ => (balancing.max_fails, timeout),
    };
    let first = counted.iter().rev().nth(least.checked_sub(1)? as usize)?;
    let is_disabled = balancing.max_fails > 0 && at.since(first.at) <= within;
    counted.last().filter(|_| is_disabled).copied()
}

fn client_closed(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject
        .exchange
        .filter(|exchange| exchange.end != EndKind::WorkerGone)
    else {
        return Check::No;
    };
    let mut evidence: Vec<Evidence> = Vec::new();
    if subject.connecting().is_some() {
        evidence.push(connect_fact(exchange));
        evidence.extend(rst_fact(exchange));
    } else {
        evidence.extend(request_fact(exchange));
    }
    let waited = between(exchange.began_at, exchange.ended_at);
    let hears_nginx = around.sees("nginx-log") || around.sees("error-log-file");
    let has_timer = subject.limits.read_timeout_ms.is_some();
    match subject.client_left {
        // The two closes are only near in time, and a client that got its 504 leaves as well.
        Some(_) if matches!(exchange.peer, Peer::Unix(_)) && !hears_nginx && !has_timer => Check::No,
        Some((at, is_reset)) => {
            let how = if is_reset { "reset its connection" } else { "closed its connection" };
            evidence.push(fact(at, "tcp", format!("the client had {how}; nginx closed both")).flag("reset", is_reset));
            let summary = format!("The client {how}, so nginx gave up this attempt after {waited}.");
            let stand = Stand::confirmed(summary, evidence);
            match exchange.peer {
                Peer::Tcp(_) => stand.into(),
                Peer::Unix(_) => stand
                    .without("unix-connects: nginx's close of a unix socket is not seen; the client left about then")
                    .into(),
            }
        }
        // nginx's silence says something only where it can be heard.
        // A worker that is shut down gives up without a word, too.
        None if !hears_nginx || !around.sees("processes") => subject.wait_or(Check::No),
        // How it ended was not seen.
        None if exchange.end == EndKind::Presumed => Check::No,
        None => subject.wait_or(
            Stand::likely(
                format!("nginx gave up this attempt after {waited} without a word, as it does when the client leaves."),
                evidence,
            )
            .into(),
        ),
    }
}

fn worker_shutdown(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.exchange.filter(|_| subject.client_left.is_none()) else {
        return Check::No;
    };
    let by_its_end = exchange.end == EndKind::WorkerGone;
    if !by_its_end && !subject.resolved.cuts_at_shutdown {
        return Check::No;
    }
    let (from, to) = match by_its_end {
        true => (exchange.began_at, Ktime(u64::MAX)),
        false => (exchange.ended_at, Ktime(exchange.ended_at.0.saturating_add(ENDS_WITHIN))),
    };
    let Some(death) = around.death_between(exchange.worker, from, to) else {
        return subject.wait_or(Check::No);
    };
    let Some(exit) = death
        .task
        .exiting
        .filter(|exit| is_orderly(*exit) && !death.task.oom)
    else {
        return Check::No;
    };
    let end = super::facts::End {
        exit,
        oom: false,
        death: Some(death),
        task: &death.task,
    };
    let when = match by_its_end {
        true => "with this request in hand".to_owned(),
        false => format!(
            "and closed this connection {} before its end",
            between(exchange.ended_at, death.at)
        ),
    };
    let summary = format!("nginx's worker {} was shut down {when}.", exchange.worker);
    let mut evidence: Vec<Evidence> = request_fact(exchange).into_iter().collect();
    evidence.push(end.fact(death.at));
    if by_its_end {
        return Stand::confirmed(summary, evidence).into();
    }
    // Over HTTP/2 a client can cancel a request without closing anything, and an old worker ends at that.
    Stand::likely(summary, evidence).into()
}

fn worker_died(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject
        .exchange
        .filter(|exchange| exchange.end == EndKind::WorkerGone)
    else {
        return Check::No;
    };
    // An earlier process may have had its number.
    let Some(death) = around.death_between(exchange.worker, exchange.began_at, Ktime(u64::MAX)) else {
        return subject.wait_or(Check::No);
    };
    let Some(exit) = death
        .task
        .exiting
        .filter(|exit| !is_orderly(*exit) || death.task.oom)
    else {
        return Check::No;
    };
    let how = ended(exit, death.task.oom, Some(death));
    let end = super::facts::End {
        exit,
        oom: death.task.oom,
        death: Some(death),
        task: &death.task,
    };
    let summary = format!(
        "nginx's worker {} {how} with this request in hand.",
        exchange.worker
    );
    Stand::confirmed(summary, vec![end.fact(death.at)]).into()
}
