//! Facts that several causes share: who answered a SYN, what is on a unix path, how a process ended, how far a request
//! was read.

use std::net::SocketAddr;

use crate::{
    engine::{
        diagnose::{Subject, fact},
        message::{Meaning, Said},
        surroundings::{
            DatagramDropped, Death, DropKind, Dropped, IcmpSent, ListenerLife, Locality, ResetSent, SECOND,
            Surroundings, covers, is_orderly, translation_of,
        },
        text::{between, counted, ended, process, signal_name, span},
    },
    event::{
        Answer, Backend, Errno, Exchange, Exit, Ktime, Listener, Netns, Peer, Question, ResetBy, Task, Told,
        UnixPath,
    },
    model::{Evidence, Phase},
};

/// What the host says about the path: nothing yet, nothing at all, or this.
pub enum Walk<'a> {
    Ask(Question),
    Unknown,
    Known(&'a UnixPath),
}

/// The path of a connect that failed at once with one of `errnos`, and what the host says about it.
pub fn failed_at_once<'a>(
    subject: &Subject<'a>,
    around: &'a Surroundings,
    errnos: &[i32],
) -> Option<(&'a str, Walk<'a>)> {
    let path = subject.path()?;
    let said = subject
        .lone()
        .filter(|said| said.meaning == Meaning::ConnectAtOnce)?;
    if !errnos.contains(&said.errno?.0) {
        return None;
    }
    let question = Question::UnixPath {
        pid: subject.attempt.worker,
        path: path.to_owned(),
        // Whoever may not pass learns nothing from who listens behind the barrier.
        sockets: errnos != [13],
    };
    let walk = match around.answer(&question, subject.attempt.ended_at) {
        Some(Answer::UnixPath(walk)) => Walk::Known(walk),
        None if subject.may_wait => Walk::Ask(question),
        _ => Walk::Unknown,
    };
    Some((path, walk))
}

/// This host's TCP found no socket for a packet of an exchange.
pub struct Refusal {
    pub at: Ktime,
    pub netns: Netns,
    /// Where it looked for one: not nginx's peer, where addresses are translated.
    pub destination: SocketAddr,
    pub proof: Evidence,
}

/// This host's own word that it refused a packet of an exchange; `is_refused`: of the packets it freed, which one counts.
pub fn refusal(
    exchange: &Exchange,
    around: &Surroundings,
    is_refused: impl Fn(&Dropped) -> bool,
) -> Option<Refusal> {
    let mut resets = around.resets_answering(exchange);
    if let Some(reset) = resets.find(|reset| reset.by == ResetBy::NoSocket) {
        return Some(Refusal {
            at: reset.at,
            netns: reset.netns,
            destination: reset.tuple.destination,
            proof: reset_fact(reset),
        });
    }
    // Before 6.10 the kernel names no reset without a socket; the packet it freed says the same.
    let drops = around.drops_of(exchange);
    let dropped = drops
        .into_iter()
        .find(|dropped| dropped.kind() == DropKind::NoSocket && is_refused(dropped))?;
    Some(Refusal {
        at: dropped.at,
        netns: dropped.netns,
        destination: dropped.tuple.destination,
        proof: drop_fact(dropped),
    })
}

/// What came back for a SYN that was refused.
pub enum SynAnswer<'a> {
    /// This host's TCP found no socket for it.
    NoSocket(Refusal),
    /// A netfilter rule of this host took the SYN, and a reset came that no TCP of this host sent.
    Firewall { rule: &'a Dropped },
    /// A reset came from outside, as far as can be seen.
    Elsewhere { at: Ktime },
    /// A reset came for which no explanation was seen.
    Unexplained,
}

/// Who refused a connect with a reset; `None`: no reset answered it.
pub fn syn_answer<'a>(exchange: &'a Exchange, around: &'a Surroundings) -> Option<SynAnswer<'a>> {
    // A segment that ended a connect was a reset, seen or not.
    let is_answered = exchange.answered && exchange.established_at.is_none() && exchange.icmp.is_none();
    let reset_at = exchange
        .reset_at
        .or_else(|| is_answered.then(|| exchange.error_at.unwrap_or(exchange.ended_at)));
    // Where resets cannot be seen to arrive, this host's own refusal still proves one.
    if reset_at.is_none() && (around.sees("resets-received") || exchange.error != Some(Errno(111))) {
        return None;
    }
    if let Some(refusal) = refusal(exchange, around, Dropped::is_syn) {
        return Some(SynAnswer::NoSocket(refusal));
    }
    let reset_at = reset_at?;
    if let Some(rule) = around
        .drops_of(exchange)
        .into_iter()
        .find(|dropped| dropped.is_syn() && dropped.kind() == DropKind::Netfilter)
    {
        return Some(SynAnswer::Firewall { rule });
    }
    match locality(exchange, around) {
        Locality::Elsewhere | Locality::Unknown => Some(SynAnswer::Elsewhere { at: reset_at }),
        Locality::ThisHost => Some(SynAnswer::Unexplained),
    }
}

/// Where the exchange's peer lives.
pub fn locality(exchange: &Exchange, around: &Surroundings) -> Locality {
    if exchange.backend.is_some() {
        return Locality::ThisHost;
    }
    match exchange.peer {
        Peer::Unix(_) => Locality::ThisHost,
        Peer::Tcp(address) => around.locality(exchange.netns, address.ip()),
    }
}

/// Where a connect really went, when its destination was translated on the way. A connect to an address of nobody on this
/// host may still end on it: a container's, a service's.
pub enum Translated {
    /// The host is to be asked.
    Ask(Question),
    /// To another address: whether that is on this host.
    To(SocketAddr, Locality),
    /// Not at all, as far as this host knows.
    No,
    /// Connection tracking says no, but keeps nothing of what was refused, and this host refused or dropped a packet from
    /// the same port: it may have been this one.
    Unclear,
}

/// Whether an address in nginx's way was translated, and to what.
pub fn translated(subject: &Subject<'_>, exchange: &Exchange, around: &Surroundings) -> Translated {
    let Some((question, destination)) = translation_of(exchange) else {
        return Translated::No;
    };
    match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => Translated::Ask(question),
        Some(Answer::Translation {
            destination: Some(real),
        }) if *real != destination => Translated::To(*real, around.locality(exchange.netns, real.ip())),
        _ if around.may_have_met_others(exchange) => Translated::Unclear,
        _ => Translated::No,
    }
}

/// The translation as evidence.
pub fn translation_fact(exchange: &Exchange, real: SocketAddr, at: Ktime) -> Evidence {
    let text = format!("{} is translated to {real} on this host", exchange.peer);
    fact(at, "netfilter", text).text("destination", real.to_string())
}

/// The namespace in which the peer's host part lives, when it is ours.
pub fn peer_netns(exchange: &Exchange, around: &Surroundings) -> Option<Netns> {
    if let Some(backend) = &exchange.backend {
        return Some(backend.netns);
    }
    match exchange.peer {
        Peer::Unix(_) => None,
        Peer::Tcp(address) => around.netns_of(exchange.netns, address.ip()),
    }
}

/// How long the kernel may already call a socket a listener before it puts it where SYNs find it, and call it one after it
/// took it from there.
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_connection_sock.c> (`inet_csk_listen_start`),
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp.c> (`tcp_set_state`)
const UNFINDABLE: u64 = 10_000_000;
/// The same at its end, where nothing lies between.
const UNFINDABLE_AT_END: u64 = 1_000_000;

/// The last listener for an address that closed before a moment at which none was found, unless another one listened then.
pub fn closed_before(
    around: &Surroundings,
    netns: Netns,
    address: SocketAddr,
    at: Ktime,
) -> Option<&ListenerLife> {
    let covering = || {
        around
            .listeners_on(netns, address.port())
            .filter(|life| covers(&life.listener, address))
    };
    let end_seen = Ktime(at.0.saturating_add(UNFINDABLE_AT_END));
    let is_findable = |life: &ListenerLife| {
        let is_found = life.opened_at.is_none_or(|opened| at.since(opened) >= UNFINDABLE);
        is_found && life.is_open_at(at) && life.is_open_at(end_seen)
    };
    if covering().any(is_findable) {
        return None;
    }
    covering()
        .filter(|life| closed_at(life).is_some_and(|closed| closed <= end_seen))
        .max_by_key(|life| closed_at(life))
}

/// Whether a listener opened after a moment at which none was found.
pub fn opened_after(life: &ListenerLife, at: Ktime) -> bool {
    life.opened_at
        .is_some_and(|opened| opened.0.saturating_add(UNFINDABLE) > at.0)
}

/// When a listener closed.
pub fn closed_at(life: &ListenerLife) -> Option<Ktime> {
    life.closed.as_ref().map(|(at, _)| *at)
}

/// How the process behind a task ended, when it did: from the task itself, or from its recorded end near a moment.
pub fn end_of<'a>(task: &'a Task, near: Ktime, around: &'a Surroundings) -> Option<End<'a>> {
    let from = Ktime(near.0.saturating_sub(1_000_000_000));
    let to = Ktime(near.0.saturating_add(300_000_000));
    let death = around.death_between(task.pid, from, to);
    // The process's own end first: a thread that was on its own way out when its process was killed has its own code.
    let exit = death.and_then(|death| death.task.exiting).or(task.exiting)?;
    Some(End {
        exit,
        oom: task.oom || death.is_some_and(|death| death.task.oom),
        death,
        task,
    })
}

/// The end of a process that closed something.
pub struct End<'a> {
    /// Code or signal.
    pub exit: Exit,
    /// The OOM killer chose it.
    pub oom: bool,
    /// The record of it, where there is one.
    pub death: Option<&'a Death>,
    /// Who.
    pub task: &'a Task,
}

impl End<'_> {
    /// `node (pid 4242) was killed by the OOM killer`.
    pub fn sentence(&self) -> String {
        format!("{} {}", process(self.task), self.how())
    }

    /// `was killed by the OOM killer`.
    pub fn how(&self) -> String {
        ended(self.exit, self.oom, self.death)
    }

    /// It was stopped, or ended by itself with nothing wrong (decisions.md 2).
    pub fn is_orderly(&self) -> bool {
        let by_itself = is_orderly(self.exit) && !self.oom;
        by_itself || self.death.is_some_and(Death::is_orderly)
    }

    /// The end as evidence; `otherwise`: its time when no record of its own exists.
    pub fn fact(&self, otherwise: Ktime) -> Evidence {
        let at = self.death.map_or(otherwise, |death| death.at);
        let who = format!("{}[{}]", self.task.comm, self.task.pid);
        let base = match self.exit {
            Exit::Signal(signal) if self.oom => fact(
                at,
                "process",
                format!("{who} ended by {}, chosen by the OOM killer", signal_name(signal)),
            )
            .number("signal", signal),
            Exit::Signal(signal) => {
                let sender = self.death.and_then(|death| death.signalled_by.as_ref());
                let from = sender.map(|sender| format!(", sent by {}[{}]", sender.comm, sender.pid));
                let text = format!(
                    "{who} ended by {}{}",
                    signal_name(signal),
                    from.unwrap_or_default()
                );
                let base = fact(at, "process", text).number("signal", signal);
                match sender {
                    Some(sender) => base
                        .number("signalled_by", sender.pid.0)
                        .text("signalled_by_comm", &*sender.comm),
                    None => base,
                }
            }
            Exit::Code(code) => {
                let told = self.death.and_then(|death| death.told.as_ref());
                let after = told.map_or(String::new(), |told| {
                    format!(
                        ", {} ms after {} from {}[{}]",
                        told.ago_ms,
                        signal_name(told.signal),
                        told.by.comm,
                        told.by.pid
                    )
                });
                let text = format!("{who} exited with code {code}{after}");
                let base = fact(at, "process", text).number("exit_code", code);
                match told {
                    Some(told) => told_numbers(base, told),
                    None => base,
                }
            }
        };
        base.number("pid", self.task.pid.0)
            .text("comm", &*self.task.comm)
            .flag("oom", self.oom)
    }
}

/// The signal that a process had been sent, and by whom, as fields.
pub fn told_numbers(fact: Evidence, told: &Told) -> Evidence {
    fact.number("told", told.signal)
        .number("told_by", told.by.pid.0)
        .text("told_by_comm", &*told.by.comm)
}

/// `0.0.0.0:3000 closed (node[4242], backlog 511)`.
pub fn listener_closed_fact(life: &ListenerLife) -> Option<Evidence> {
    let (at, task) = life.closed.as_ref()?;
    let text = format!(
        "{} closed ({}[{}], backlog {})",
        life.listener.address, task.comm, task.pid, life.listener.limit
    );
    Some(listener_fields(fact(*at, "listener", text), &life.listener))
}

/// `0.0.0.0:3000 opened (node[4243], backlog 511)`.
pub fn listener_open_fact(life: &ListenerLife) -> Evidence {
    let listener = &life.listener;
    let verb = if life.opened_at.is_some() {
        "opened"
    } else {
        "listens"
    };
    let text = format!(
        "{} {verb} ({}[{}], backlog {})",
        listener.address, listener.task.comm, listener.task.pid, listener.limit
    );
    listener_fields(fact(life.opened_at, "listener", text), listener)
}

fn listener_fields(base: Evidence, listener: &Listener) -> Evidence {
    base.text("address", listener.address.to_string())
        .number("pid", listener.task.pid.0)
        .text("comm", &*listener.task.comm)
        .number("backlog", listener.limit)
}

/// `accept queue of 0.0.0.0:3000: 129 of 128 (node[4242])`.
pub fn queue_fact(at: impl Into<Option<Ktime>>, listener: &Listener) -> Evidence {
    let text = format!(
        "accept queue of {}: {} waiting, limit {} ({}[{}])",
        listener.address, listener.queue, listener.limit, listener.task.comm, listener.task.pid
    );
    listener_fields(fact(at, "queue", text), listener)
        .number("queue", listener.queue)
        .number("limit", listener.limit)
}

/// `this host answered the SYN with RST: no socket there`.
pub fn reset_fact(reset: &ResetSent) -> Evidence {
    let why = match reset.by {
        ResetBy::NoSocket => "no socket there",
        ResetBy::Listener => "the listening socket made no connection of it",
        ResetBy::TimeWait => "the connection was already closed there",
        ResetBy::Socket => "its socket was closed",
    };
    let base = fact(
        reset.at,
        "tcp",
        format!("this host answered {} with RST: {why}", reset.tuple.destination),
    )
    .text("destination", reset.tuple.destination.to_string())
    .number("netns", reset.netns.0);
    match &reset.reason {
        Some(reason) => base.text("reason", &**reason),
        None => base,
    }
}

/// `this host dropped the SYN to 10.0.0.2:80: NETFILTER_DROP (nft_do_chain)`.
pub fn drop_fact(dropped: &Dropped) -> Evidence {
    let what = match dropped.flags & 0x12 {
        0x02 => "SYN",
        0x12 => "SYN+ACK",
        _ if dropped.flags & 0x04 != 0 => "RST",
        _ => "packet",
    };
    let mut text = format!("this host dropped the {what} to {}", dropped.tuple.destination);
    if let Some(reason) = &dropped.reason {
        text += &format!(": {reason}");
    }
    if let Some(location) = &dropped.location {
        text += &format!(" in {location}");
    }
    let mut base = fact(dropped.at, "drop", text)
        .text("source", dropped.tuple.source.to_string())
        .text("destination", dropped.tuple.destination.to_string())
        .number("flags", dropped.flags)
        .number("netns", dropped.netns.0);
    if let Some(reason) = &dropped.reason {
        base = base.text("reason", &**reason);
    }
    if let Some(location) = &dropped.location {
        base = base.text("location", &**location);
    }
    base
}

/// `this host dropped the datagram to 10.0.0.2:53: NO_SOCKET`.
pub fn datagram_fact(dropped: &DatagramDropped) -> Evidence {
    let destination = dropped.tuple.destination;
    fact(
        dropped.at,
        "drop",
        format!(
            "this host dropped the datagram to {destination}: {}",
            dropped.reason
        ),
    )
    .text("source", dropped.tuple.source.to_string())
    .text("destination", destination.to_string())
    .number("netns", dropped.netns.0)
    .text("reason", &*dropped.reason)
}

/// What this host did, just before nginx said so, with datagrams to the peer of a try over UDP, latest first.
pub fn datagrams<'a>(
    subject: &Subject<'_>,
    around: &'a Surroundings,
) -> impl Iterator<Item = &'a DatagramDropped> + use<'a> {
    /// nginx reads an error as soon as its loop comes round.
    const JUST: u64 = SECOND;
    let said = subject.lone().filter(|said| said.meaning == Meaning::Datagram);
    let at = subject.attempt.ended_at;
    let master = subject.master.filter(|_| said.is_some());
    let is_unheard = subject.line.is_none();
    let of = master.zip(subject.address());
    of.into_iter()
        .flat_map(|(master, peer)| around.datagrams_of(master, peer))
        .filter(move |dropped| {
            // When the file was read may be before the ring was looked at.
            let is_before = dropped.at <= at || (is_unheard && dropped.at.since(at) <= JUST);
            is_before && at.since(dropped.at) <= JUST
        })
}

/// `this host sent ICMP type 3 code 3 about it`.
pub fn icmp_sent_fact(icmp: &IcmpSent) -> Evidence {
    fact(
        icmp.at,
        "icmp",
        format!(
            "this host answered with ICMP type {} code {}",
            icmp.kind, icmp.code
        ),
    )
    .number("type", icmp.kind)
    .number("code", icmp.code)
    .number("netns", icmp.netns.0)
}

/// The received ICMP error, with its sender.
pub fn icmp_fact(exchange: &Exchange) -> Option<Evidence> {
    let icmp = exchange.icmp.as_ref()?;
    let sender = icmp
        .sender
        .map_or("an unknown sender".to_owned(), |sender| sender.to_string());
    let base = fact(
        icmp.at,
        "icmp",
        format!(
            "{sender} answered with ICMP type {} code {}",
            icmp.kind, icmp.code
        ),
    )
    .number("type", icmp.kind)
    .number("code", icmp.code);
    Some(match icmp.sender {
        Some(sender) => base.text("sender", sender.to_string()),
        None => base,
    })
}

/// When the connect began.
pub fn connect_fact(exchange: &Exchange) -> Evidence {
    let retransmits = exchange.syn_retransmits;
    let text = match retransmits {
        0 => format!("SYN sent to {}", exchange.peer),
        1 => format!("SYN sent to {}, and once more", exchange.peer),
        n => format!("SYN sent to {}, and {n} times more", exchange.peer),
    };
    fact(exchange.began_at, "tcp", text).number("syn_retransmits", retransmits)
}

/// How the request went: sent, acknowledged, read.
pub fn request_fact(exchange: &Exchange) -> Option<Evidence> {
    let at = exchange.first_sent_at?;
    let mut text = format!("{} bytes of the request sent", exchange.sent);
    if matches!(exchange.peer, Peer::Tcp(_)) {
        text += &format!(", {} acknowledged", exchange.acked);
    }
    if let Some(backend) = &exchange.backend {
        text += &format!(", {} read by the backend", backend.read);
    }
    Some(
        fact(at, "tcp", text)
            .count("sent", exchange.sent)
            .count("acked", exchange.acked),
    )
}

/// The peer's FIN.
pub fn fin_fact(exchange: &Exchange) -> Option<Evidence> {
    match (exchange.fin_at, exchange.eof_read_at) {
        (Some(at), _) => Some(fact(at, "tcp", "the peer's FIN arrived")),
        (None, Some(at)) => Some(fact(at, "tcp", "nginx read the end of the stream")),
        (None, None) => None,
    }
}

/// The RST that arrived.
pub fn rst_fact(exchange: &Exchange) -> Option<Evidence> {
    let at = exchange.reset_at?;
    Some(fact(at, "tcp", "RST arrived").count("acked", exchange.acked_at_reset))
}

/// What the backend's own socket did.
pub fn backend_close_fact(backend: &Backend) -> Option<Evidence> {
    let at = backend.closed_at?;
    let who = backend.closed_by.as_ref().or(backend.task.as_ref());
    let how = if backend.aborted { "reset" } else { "closed" };
    let text = match who {
        Some(task) => format!(
            "{}[{}] {how} the connection: {} bytes of the request read, {} unread",
            task.comm, task.pid, backend.read, backend.unread
        ),
        None => format!(
            "the backend {how} the connection: {} bytes read, {} unread",
            backend.read, backend.unread
        ),
    };
    let mut base = fact(at, "tcp", text)
        .count("read", backend.read)
        .count("unread", backend.unread)
        .flag("reset", backend.aborted);
    if let Some(task) = who {
        base = base.number("pid", task.pid.0).text("comm", &*task.comm);
    }
    if let Some(reason) = &backend.reset_reason {
        base = base.text("reason", &**reason);
    }
    Some(base)
}

/// How a connection that was up came to its end: the request, the FIN, the RST and the backend's own close.
pub fn closing_facts(exchange: &Exchange) -> Vec<Evidence> {
    let mut evidence = Vec::new();
    evidence.extend(request_fact(exchange));
    evidence.extend(fin_fact(exchange));
    evidence.extend(rst_fact(exchange));
    evidence.extend(exchange.backend.as_ref().and_then(backend_close_fact));
    evidence
}

/// Who answers at the other end, for a sentence: `node (pid 7)` or `the backend`.
pub fn backend_name(backend: Option<&Backend>) -> String {
    backend
        .and_then(|backend| backend.closed_by.as_ref().or(backend.task.as_ref()))
        .map_or("the backend".to_owned(), process)
}

/// How much of the request the other end's application had read when it closed (decisions.md 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Nothing.
    Nothing,
    /// Some of it.
    Part,
    /// All.
    All,
    /// It cannot be told.
    Unknown,
}

/// How much of the request was read, by the best witness there is.
pub fn how_much_read(exchange: &Exchange) -> Read {
    if exchange.sent == 0 {
        return Read::Nothing;
    }
    let is_unix = matches!(exchange.peer, Peer::Unix(_));
    let is_orderly = is_unix && exchange.eof_read_at.is_some() && exchange.recv_error.is_none();
    if let Some(backend) = &exchange.backend {
        return match backend.read {
            // It read what nobody saw it read, or only shut its side of the connection down.
            0 if is_orderly => Read::Unknown,
            0 => Read::Nothing,
            read if backend.unread > 0 || read < exchange.sent => Read::Part,
            _ => Read::All,
        };
    }
    if exchange.fin_before_request {
        return Read::Nothing;
    }
    // Linux answers a close with a reset when anything lies unread: an orderly end means that all was read.
    if is_orderly { Read::All } else { Read::Unknown }
}

/// nginx says that it was still connecting when its timer ran out, whatever its kernel had come to by then.
pub fn is_told_connecting(subject: &Subject<'_>) -> bool {
    subject.said.is_some_and(Said::is_connecting_timeout)
}

/// When nginx's timer that ended the attempt was due; `None`: its length is not known, or from when it ran.
pub fn deadline(subject: &Subject<'_>, exchange: &Exchange) -> Option<Ktime> {
    let limits = subject.limits;
    let (from, limit) = match subject.attempt.phase {
        Phase::Connecting => (exchange.connect_at?, limits.connect_timeout_ms?),
        // While it reads a header nginx does not set the timer anew.
        // https://github.com/nginx/nginx/blob/release-1.26.0/src/http/ngx_http_upstream.c (ngx_http_upstream_process_header)
        Phase::Waiting | Phase::Reading if exchange.received == 0 || is_told_header(subject) => {
            (exchange.last_sent_at?, limits.read_timeout_ms?)
        }
        Phase::Reading => (
            exchange.last_received_at.max(exchange.last_sent_at)?,
            limits.read_timeout_ms?,
        ),
        Phase::Resolving | Phase::Handshaking | Phase::Sending | Phase::Waiting | Phase::Idle => return None,
    };
    Some(Ktime(from.0.saturating_add(limit.saturating_mul(1_000_000))))
}

/// Whether the backend had agreed to an upgrade (WebSocket): what came after that is no answer.
pub fn is_upgraded(exchange: &Exchange) -> bool {
    exchange.head.as_ref().and_then(|head| head.status) == Some(101)
}

/// What had come from the backend: `228 bytes of the answer`.
pub fn answered(exchange: &Exchange) -> String {
    let what = match is_upgraded(exchange) {
        true => "on the upgraded connection",
        false => "of the answer",
    };
    format!("{} {what}", counted(exchange.received, "byte"))
}

/// The remedy for a full accept queue.
pub const ACCEPT_FASTER: &str = "accept faster (more workers, nothing blocking in the accept loop), or raise the listener's \
    backlog and net.core.somaxconn";

/// The same, of this listener.
pub fn accept_faster(listener: &Listener) -> String {
    format!(
        "let {} accept faster (more workers, nothing blocking in its accept loop), or raise its backlog above {} \
         together with net.core.somaxconn",
        listener.task.comm, listener.limit
    )
}

/// What is known of the accept queue that a connection waited for.
pub enum Queue {
    /// The host is to be asked.
    Ask(Question),
    /// It was full, then or a moment later.
    Full(Option<Ktime>, Listener),
    /// It had room, or nobody says.
    Unknown,
}

/// The queue of the only listener of this host behind a translated address, where the kernel half does not find it: asked of
/// the host.
pub fn asked_queue(
    subject: &Subject<'_>,
    around: &Surroundings,
    exchange: &Exchange,
    real: SocketAddr,
) -> Queue {
    let at = subject.attempt.ended_at;
    let Some(life) = around.only_listener_at(exchange.netns, real, (exchange.began_at, at)) else {
        return Queue::Unknown;
    };
    let question = Question::AcceptQueue {
        pid: life.listener.task.pid,
        address: real,
    };
    match around.answer(&question, at) {
        None if subject.may_wait => Queue::Ask(question),
        Some(&Answer::AcceptQueue {
            waiting,
            limit,
            are_all_full: true,
        }) => Queue::Full(
            None,
            Listener {
                queue: waiting,
                limit,
                ..life.listener.clone()
            },
        ),
        _ => Queue::Unknown,
    }
}

/// nginx says that the header of the answer was not whole yet.
fn is_told_header(subject: &Subject<'_>) -> bool {
    let action = subject.said.and_then(|said| said.action.as_deref());
    action.is_none_or(|action| action == "reading response header from upstream")
}

/// nginx's timer that ended the attempt: its name and value as a clause, and as evidence.
pub fn timer(subject: &Subject<'_>) -> (String, Vec<Evidence>) {
    let attempt = subject.attempt;
    let is_send = attempt.phase == Phase::Sending;
    let (name, limit) = match attempt.phase {
        Phase::Resolving | Phase::Connecting | Phase::Handshaking => {
            ("connect_timeout", subject.limits.connect_timeout_ms)
        }
        Phase::Sending => ("send_timeout", subject.limits.send_timeout_ms),
        Phase::Waiting | Phase::Reading | Phase::Idle => ("read_timeout", subject.limits.read_timeout_ms),
    };
    let directive = match (attempt.via.as_deref(), is_send) {
        (Some("stream"), _) if name != "connect_timeout" => "proxy_timeout".to_owned(),
        (Some("fastcgi" | "uwsgi" | "scgi" | "grpc" | "memcached"), _) => {
            format!("{}_{name}", attempt.via.as_deref().unwrap_or_default())
        }
        _ => format!("proxy_{name}"),
    };
    match limit {
        Some(limit) => {
            let length = span(limit.saturating_mul(1_000_000));
            let default = if limit == 60_000 && directive != "proxy_timeout" {
                ", which is its default"
            } else {
                ""
            };
            let text = format!("{directive} is {length}{default}");
            let evidence = fact(None, "limit", text)
                .text("directive", &*directive)
                .count("value_ms", limit);
            (
                format!("nginx's {directive} of {length}{default} expired"),
                vec![evidence],
            )
        }
        None => {
            let waited = between(attempt.began_at, attempt.ended_at);
            (
                format!("nginx's timer ({directive}) ended it after {waited}"),
                Vec::new(),
            )
        }
    }
}
