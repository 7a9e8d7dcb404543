//! The backend's process is there and does not work: it is stopped, or it does not read.

use super::facts::{backend_name, request_fact, timer};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::Surroundings,
        text::counted,
    },
    event::{Answer, Exchange, Peer, Question},
    model::{Outcome, Phase},
};

pub const BACKEND_STOPPED: Cause = Cause {
    id: "backend-stopped",
    title: "the backend's process is stopped: it has the request and cannot run",
    explains: &["backend-slow", "response-stalled", "backend-not-reading"],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while reading response header from upstream",
    recognised: "the process that read from the connection is in state T (stopped by a signal) or t (held by a debugger) \
        when nginx's timer has ended the wait",
    needs: &[],
    look_alikes: &["backend-slow", "never-accepted"],
    remedy: "let the process run again (kill -CONT), and find who stopped it: a debugger, job control, or somebody's \
        kill -STOP",
    check: backend_stopped,
};

pub const BACKEND_NOT_READING: Cause = Cause {
    id: "backend-not-reading",
    title: "the backend does not read the request: its receive queue is full, and nginx can send no more",
    explains: &["backend-slow", "path-lost"],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while sending request to upstream",
    recognised: "part of the request was sent, then the peer's window stayed shut: on this host bytes lie unread in the \
        backend's socket, which a process holds; from a far host the window of 0 is seen",
    needs: &[],
    look_alikes: &["never-accepted", "path-lost", "backend-slow"],
    remedy: "the backend takes no more of the body: look at what it waits for, or whether it reads bodies of that size at \
        all; only then raise proxy_send_timeout",
    check: backend_not_reading,
};

/// The exchange of an attempt that nginx's timer ended on a connection that was up.
fn timed_out<'a>(subject: &Subject<'a>) -> Option<&'a Exchange> {
    subject.connected().filter(|exchange| exchange.error.is_none())
}

fn backend_stopped(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let task = timed_out(subject).and_then(|exchange| Some((exchange, exchange.backend.as_ref()?.task.as_ref()?)));
    let Some((exchange, task)) = task else {
        return Check::No;
    };
    let question = Question::Process { pid: task.pid };
    let state = match around.answer(&question, subject.attempt.ended_at) {
        Some(Answer::Process { found: Some(process) }) if process.comm == task.comm => process.state,
        None if subject.may_wait => return Check::Ask(question),
        _ => return Check::No,
    };
    let how = match state {
        'T' => "stopped by a signal",
        't' => "held by a debugger",
        _ => return Check::No,
    };
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    let text = format!("{}[{}] is {how} (state {state})", task.comm, task.pid);
    evidence.push(
        fact(None, "process", text)
            .number("pid", task.pid.0)
            .text("comm", &*task.comm)
            .text("state", state.to_string()),
    );
    let who = backend_name(exchange.backend.as_ref());
    let summary = format!("{who} has the request and is {how} (state {state}), so it cannot answer; {timer}.");
    Stand::confirmed(summary, evidence)
        .with_remedy(match state {
            'T' => format!("let it run again (kill -CONT {}), and find who stopped it", task.pid),
            _ => format!("see which debugger holds it (TracerPid in /proc/{}/status)", task.pid),
        })
        .into()
}

fn backend_not_reading(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let sending = timed_out(subject).filter(|exchange| {
        matches!(exchange.peer, Peer::Tcp(_)) && subject.attempt.phase == Phase::Sending && exchange.sent > 0
    });
    let Some(exchange) = sending else {
        return Check::No;
    };
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    let window = exchange.send_window.map(|window| format!("the peer's window is {window} bytes"));
    let window = window.zip(exchange.send_window).map(|(text, size)| fact(None, "tcp", text).number("window", size));
    evidence.extend(window);
    match &exchange.backend {
        Some(backend) if backend.accepted || backend.task.is_some() => {
            if backend.unread == 0 {
                return Check::No;
            }
            let text = format!("{} in the backend's receive queue", counted(backend.unread, "byte"));
            evidence.push(fact(None, "queue", text).count("unread", backend.unread));
            let summary = format!(
                "{} does not read: it took {} of the request, {} more lie in its receive queue, and nginx could send no \
                 more; {timer}.",
                backend_name(Some(backend)),
                counted(backend.read, "byte"),
                counted(backend.unread, "byte"),
            );
            Stand::confirmed(summary, evidence).into()
        }
        Some(_) => Check::No,
        None if exchange.send_window == Some(0) => {
            let summary = format!(
                "The peer's host took {} of the request and then kept its window shut: its application does not read; \
                 {timer}.",
                counted(exchange.acked, "byte"),
            );
            Stand::confirmed(summary, evidence).into()
        }
        None => Check::No,
    }
}
