//! Somebody on this host took nginx's connection away.

use super::facts::request_fact;
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::Surroundings,
    },
    event::{Errno, Peer},
    model::Outcome,
};

/// `ECONNABORTED`.
const ABORTED: i32 = 103;

pub const SOCKET_DESTROYED: Cause = Cause {
    id: "socket-destroyed",
    title: "somebody on this host destroyed nginx's socket",
    explains: &["reset-remotely"],
    outcomes: &[Outcome::Reset],
    nginx_logs: "recv() failed (103: Software caused connection abort) while reading response header from upstream",
    recognised: "the socket's error is 103, which the kernel sets in tcp_abort() alone: at the wish of a process with the \
        right to (`ss --kill`, an agent that cleans up connections), or of a BPF program",
    needs: &[],
    look_alikes: &["reset-remotely", "closed-abortively"],
    remedy: "find who kills sockets on this host: an operator's `ss --kill`, a container network's agent, a connection \
        killer in a cron job",
    check: socket_destroyed,
};

/// `tcp_abort()` is the only place where a connected TCP socket gets this error, but for one that was restored from a
/// checkpoint. <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp.c>, 5.10 to 6.18 alike
fn socket_destroyed(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(exchange) = subject.connected().filter(|exchange| matches!(exchange.peer, Peer::Tcp(_))) else {
        return Check::No;
    };
    let is_aborted = |errno: Option<Errno>| errno == Some(Errno(ABORTED));
    let is_it = [exchange.error, exchange.recv_error, exchange.send_error]
        .into_iter()
        .any(is_aborted);
    if !is_it && subject.errno() != Some(ABORTED) {
        return Check::No;
    }
    let mut evidence: Vec<_> = request_fact(exchange).into_iter().collect();
    let at = exchange.error_at.unwrap_or(exchange.ended_at);
    evidence.push(fact(at, "tcp", "the kernel aborted the connection at a process's wish").number("errno", ABORTED));
    let summary = "A process of this host had the kernel destroy nginx's connection (error 103), as `ss --kill` does; the \
        backend has nothing to do with it.";
    Stand::confirmed(summary, evidence).into()
}
