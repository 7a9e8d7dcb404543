//! nginx's own worker did not come round to a connection in time: its timer ended what would have gone well.

use super::facts::{backend_name, deadline, is_told_connecting, request_fact, timer};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{Halt, Surroundings},
        text::{between, counted, process, signal_name},
    },
    event::{Errno, Exchange, Ktime, Peer},
    model::{Evidence, Outcome, Phase},
};

pub const WORKER_STARVED: Cause = Cause {
    id: "worker-starved",
    title: "the peer had answered in time, and nginx's worker did not come round to it before its own timer",
    explains: &[
        "backend-slow",
        "backend-stopped",
        "never-accepted",
        "response-stalled",
    ],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading response header from upstream, while reading \
        upstream or while connecting to upstream",
    recognised: "when nginx closed, bytes of the answer lay unread in its socket, and they had been there before its timer \
        ran out, since no packet came or left later; or the connection was established before the timer ran out, and nginx \
        sent nothing. A worker that runs reads and connects first, then looks at its timers; that it comes to them late is \
        seen as well, and the signal that stopped it. (`likely` where it was not late)",
    needs: &[],
    look_alikes: &[
        "backend-slow",
        "backend-stopped",
        "never-accepted",
        "response-stalled",
        "syn-unanswered",
    ],
    remedy: "find what kept the worker from running: a signal or a debugger that stopped it, a control group that is frozen \
        or throttled (nr_throttled in its cpu.stat), too few processors, a module or script that blocks, a slow disk (aio \
        threads)",
    check: worker_starved,
};

/// nginx's clock is as old as its loop's last round; what came this shortly before the deadline may have come after it.
const NEAR: u64 = 60_000_000;
/// A worker that runs comes to its timers sooner after they ran out than this.
const LATE: u64 = 100_000_000;

fn worker_starved(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let exchange = subject
        .connected()
        .filter(|exchange| matches!(exchange.peer, Peer::Tcp(_)) && !exchange.late);
    let Some(exchange) = exchange.filter(|exchange| exchange.error != Some(Errno(110))) else {
        return Check::No;
    };
    let Some(deadline) = deadline(subject, exchange) else {
        return Check::No;
    };
    let is_in_time = |at: &Ktime| at.0.saturating_add(NEAR) <= deadline.0 && deadline <= exchange.ended_at;
    let Some((came_at, what, came)) = what_came(subject, exchange).filter(|(at, ..)| is_in_time(at)) else {
        return Check::No;
    };
    let halt = around
        .halt(exchange.worker, deadline)
        .filter(|halt| halt.went_on_at.is_none_or(|went_on| went_on >= deadline));
    let late = exchange.ended_at.since(deadline);
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    evidence.push(came);
    let text = format!(
        "worker {} came to its timer {} after that had run out",
        exchange.worker,
        between(deadline, exchange.ended_at)
    );
    evidence.push(
        fact(exchange.ended_at, "nginx", text)
            .number("pid", exchange.worker.0)
            .count("late_us", late / 1000),
    );
    evidence.extend(halt.as_ref().into_iter().flat_map(halt_facts));
    let stopped = match &halt {
        Some(halt) => format!("{} had stopped it ({})", process(halt.by), signal_name(halt.signal)),
        None => format!(
            "it came round only {} after the timer had run out",
            between(deadline, exchange.ended_at)
        ),
    };
    let summary = format!(
        "{what} {} before nginx's timer ran out, and worker {} did not come round to it: {stopped}; {timer}.",
        between(came_at, deadline),
        exchange.worker
    );
    let stand = if halt.is_some() || late >= LATE {
        Stand::confirmed(summary, evidence)
    } else {
        Stand::likely(summary, evidence).without("nothing shows that the worker did not run")
    };
    match halt {
        Some(halt) => stand.with_remedy(format!(
            "nothing is wrong with the peer: find why {} sent {} to nginx's worker",
            process(halt.by),
            signal_name(halt.signal)
        )),
        None => stand,
    }
    .into()
}

/// What the worker did not see: since when at the latest, as the beginning of a sentence, and as evidence.
fn what_came(subject: &Subject<'_>, exchange: &Exchange) -> Option<(Ktime, String, Evidence)> {
    if is_told_connecting(subject) {
        let at = exchange.established_at.filter(|_| exchange.sent == 0)?;
        let text = format!("The connection to {} was established", exchange.peer);
        return Some((at, text, fact(at, "tcp", "connection established by the kernel")));
    }
    // What nginx sends may keep it from reading, and a connection that is not cut may be read by somebody else's leave.
    if exchange.uncut || !matches!(subject.attempt.phase, Phase::Waiting | Phase::Reading) {
        return None;
    }
    let at = exchange.arrived_at.filter(|_| exchange.unread > 0)?;
    let text = format!("{} of the answer unread in nginx's socket", counted(exchange.unread, "byte"));
    let evidence = fact(at, "tcp", text).count("unread", exchange.unread);
    let from = backend_name(exchange.backend.as_ref());
    let what = if exchange.received == 0 { "answer" } else { "answer's next part" };
    let text = format!("The {what} of {from} ({}) had arrived", counted(exchange.unread, "byte"));
    Some((at, text, evidence))
}

fn halt_facts(halt: &Halt<'_>) -> Vec<Evidence> {
    let text = format!(
        "{} sent {} to nginx's worker",
        process(halt.by),
        signal_name(halt.signal)
    );
    let stopped = fact(halt.at, "process", text)
        .number("signal", halt.signal)
        .number("signalled_by", halt.by.pid.0)
        .text("signalled_by_comm", &*halt.by.comm);
    let went_on = halt
        .went_on_at
        .map(|at| fact(at, "process", "the worker was told to go on (SIGCONT)"));
    std::iter::once(stopped).chain(went_on).collect()
}
