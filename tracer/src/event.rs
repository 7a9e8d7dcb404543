//! What the outside world tells the engine: one closed enum, [`Input`], and what the engine says back, [`Output`].
//!
//! These values are also the recording format (`--record`): a recording is the list of stamped inputs, so every
//! type here is serialisable and nothing here may depend on a clock, a file or the kernel.

pub mod decode;
pub mod head;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::model::{Attempt, Finding, HookStatus, NoteEvent, Summary};

/// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ktime(pub u64);

impl Ktime {
    /// Nanoseconds from `earlier` to `self`; 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Microseconds from `earlier` to `self`, rounded to nearest; 0 when `earlier` is later.
    #[must_use]
    pub fn micros_since(self, earlier: Self) -> u64 {
        self.since(earlier).saturating_add(500) / 1000
    }
}

/// A process id as the host's own pid namespace shows it (the kernel's tgid).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A positive Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Errno(pub i32);

/// The inode number of a network namespace (`/proc/PID/ns/net`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Netns(pub u32);

/// A socket's address in the kernel; meaningful only until the socket is destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sock(pub u64);

/// One connection: the socket's address plus when we first saw it, since addresses are reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnId {
    /// The kernel's socket.
    pub sock: Sock,
    /// When this tracer first saw it.
    pub since: Ktime,
}

/// One exchange (a request and its response) on one connection, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExchangeId {
    /// The connection.
    pub conn: ConnId,
    /// The request's number on the connection as far as this tracer saw it, from 1.
    pub number: u32,
}

/// An address nginx connects to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Peer {
    /// TCP over IPv4 or IPv6; IPv4-mapped addresses are stored as IPv4.
    Tcp(SocketAddr),
    /// A unix stream socket by the path nginx used, in nginx's own mount namespace.
    Unix(String),
}

impl fmt::Display for Peer {
    /// As nginx prints a peer: `127.0.0.1:3000`, `[::1]:3000`, `unix:/run/app.sock`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.to_owned()));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| format!("`{text}` is neither ADDRESS:PORT nor unix:PATH"))
    }
}

/// A TCP state, by the kernel's names (`include/net/tcp_states.h`, unchanged 5.10 to 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the variants are the kernel's own names")]
pub enum TcpState {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    NewSynRecv,
    /// A number this program does not know.
    Unknown,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It returned this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

/// A task as it was when an event happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Task {
    /// Its process id on the host.
    pub pid: Pid,
    /// The kernel's name for it, at most 15 bytes.
    pub comm: String,
    /// Set when the task was already exiting at that moment: the event is a consequence of its end.
    pub exiting: Option<Exit>,
    /// The OOM killer had chosen it.
    pub oom: bool,
}

/// An ICMP error that reached a connecting socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    /// When it was seen on the socket.
    pub at: Ktime,
    /// ICMP or `ICMPv6` type.
    pub kind: u8,
    /// ICMP or `ICMPv6` code.
    pub code: u8,
    /// Who sent it (an own address: this host itself).
    pub sender: Option<IpAddr>,
    /// The errno the kernel made of it.
    pub errno: Errno,
}

/// How the record of an exchange came to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndKind {
    /// nginx closed its socket: the first of own →FIN_WAIT1, own →LAST_ACK, own destroy without an earlier mark.
    Closed,
    /// A further request was sent on the kept connection: the response before it was complete.
    NextExchange,
    /// nginx looked at the idle connection (a peek) and kept or closed it: the exchange before was over.
    Idle,
    /// The worker died or exited, and the kernel closed the socket for it.
    WorkerGone,
    /// Only for unix sockets, whose close nothing shows: no activity after the response for a while.
    Presumed,
    /// The tracer detached; the exchange was still under way.
    Detached,
}

/// What the other end did, when it is a process of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The backend's accepted socket.
    pub sock: Sock,
    /// Its network namespace.
    pub netns: Netns,
    /// The process that first read from (or closed) the connection; `None`: nobody has touched it yet.
    pub task: Option<Task>,
    /// Whether a process had called `accept()` by the end of the exchange (the socket has a file).
    pub accepted: bool,
    /// When a process took the connection with `accept()`; `None` where only later reads show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<Ktime>,
    /// The first read in this exchange; on a new connection an upper bound for `accept()`.
    pub first_read_at: Option<Ktime>,
    /// The last read with data in this exchange.
    pub last_read_at: Option<Ktime>,
    /// Request bytes the backend took in this exchange.
    pub read: u64,
    /// Response bytes the backend sent in this exchange, those that never arrived included.
    pub sent: u64,
    /// Request bytes that lay unread in its receive queue at the end of the exchange or at its close (a FIN not counted).
    pub unread: u64,
    /// When it closed (→FIN_WAIT1, →LAST_ACK, or →CLOSE by reset).
    pub closed_at: Option<Ktime>,
    /// Who closed it; `exiting` set: the process was ending.
    pub closed_by: Option<Task>,
    /// Its close was a reset (from ESTABLISHED or CLOSE_WAIT straight to CLOSE), not a FIN.
    pub aborted: bool,
    /// Why its TCP sent a reset, by the kernel's name (`TCP_ABORT_ON_CLOSE` …).
    pub reset_reason: Option<String>,
    /// `sk_err` of its socket when it was destroyed (104 after SO_LINGER 0); `None`: not destroyed or 0.
    pub error_at_destroy: Option<Errno>,
}

/// A signal that a process handled before it ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its number.
    pub signal: u8,
    /// Who sent it.
    pub by: Task,
    /// How long before the end, in milliseconds.
    pub ago_ms: u32,
}

/// What the next own event of the worker was linked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOf {
    /// The exchange whose lined close was the worker's very last own event before this one began.
    Exchange(ExchangeId),
    /// A line that is itself an attempt (`connect() to … failed`), by its [`LineId`].
    Line(LineId),
}

/// A line of nginx's error log as heard at its source; unique in a trace. Two workers do write in the same nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LineId {
    /// When it was heard.
    pub at: Ktime,
    /// Who wrote it.
    pub worker: Pid,
}

/// One exchange as the kernel half saw it: written once, when it ended. Times are `None` where nothing was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Which one.
    pub id: ExchangeId,
    /// The nginx worker.
    pub worker: Pid,
    /// The socket's network namespace.
    pub netns: Netns,
    /// Where it went: the socket's own destination (after any rewriting by a connect program).
    pub peer: Peer,
    /// The local address; `None` for unix sockets and when no port was ever chosen.
    pub local: Option<SocketAddr>,
    /// The connection was there before the tracer.
    pub preexisting: bool,
    /// The connection carries what the boundary rule cannot cut (TLS, stream, upgraded …): one record for all of it.
    pub uncut: bool,
    /// When it began: connect, or the first send of a request on a kept connection.
    pub began_at: Ktime,
    /// End of the exchange before it on this connection (last byte received), for the idle time.
    pub previous_at: Option<Ktime>,
    /// →SYN_SENT (TCP) or the accepted connect (unix); only in the first exchange of a connection.
    pub connect_at: Option<Ktime>,
    /// →ESTABLISHED; unix: the same as `connect_at`.
    pub established_at: Option<Ktime>,
    /// First and last successful send of this exchange, and their bytes.
    pub first_sent_at: Option<Ktime>,
    /// See `first_sent_at`.
    pub last_sent_at: Option<Ktime>,
    /// Bytes nginx handed to the kernel in this exchange.
    pub sent: u64,
    /// Bytes of this exchange the peer's kernel acknowledged (SYN and FIN not counted).
    pub acked: u64,
    /// First and last read with data.
    pub first_received_at: Option<Ktime>,
    /// See `first_received_at`.
    pub last_received_at: Option<Ktime>,
    /// Bytes nginx read in this exchange.
    pub received: u64,
    /// Bytes that had arrived and nginx never read (a FIN not counted).
    pub unread: u64,
    /// With `unread` when nginx closed: they had arrived by then, for no packet came or left since. `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived_at: Option<Ktime>,
    /// nginx read the end of the stream (`recv` returned 0).
    pub eof_read_at: Option<Ktime>,
    /// A send failed with this.
    pub send_error: Option<Errno>,
    /// A send met a full socket buffer (−EAGAIN), last at.
    pub send_blocked_at: Option<Ktime>,
    /// A read failed with this (not EAGAIN).
    pub recv_error: Option<Errno>,
    /// The peer's FIN arrived (ESTABLISHED → CLOSE_WAIT).
    pub fin_at: Option<Ktime>,
    /// The peer's FIN arrived before any byte of this request could have been acknowledged (`snd_una` at that time).
    pub fin_before_request: bool,
    /// nginx had closed its socket before, at a moment nobody saw: another task held the file and let go at `ended_at`.
    #[serde(default)]
    pub late: bool,
    /// A segment of the peer's arrived although the connection was never established (`segs_in`, read at its end).
    #[serde(default)]
    pub answered: bool,
    /// A RST arrived.
    pub reset_at: Option<Ktime>,
    /// The socket's state when the RST arrived.
    pub reset_in: Option<TcpState>,
    /// Bytes of this request that had been acknowledged when the RST arrived.
    pub acked_at_reset: u64,
    /// The error the socket reported (`sk_err`), whether or not nginx fetched it.
    pub error: Option<Errno>,
    /// When it was set.
    pub error_at: Option<Ktime>,
    /// `sk_err_soft` at the end.
    pub soft_error: Option<Errno>,
    /// nginx never fetched the socket's error (`sk_err` still set at destroy).
    pub error_unfetched: bool,
    /// An ICMP error seen on the socket.
    pub icmp: Option<Icmp>,
    /// SYN retransmissions.
    pub syn_retransmits: u32,
    /// Data retransmissions.
    pub retransmits: u32,
    /// The last retransmission.
    pub last_retransmit_at: Option<Ktime>,
    /// What the beginnings of the request and of its answer say, where they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Box<head::Head>>,
    /// Smoothed round trip time in microseconds; `None` when never measured.
    pub rtt_us: Option<u32>,
    /// Peer's advertised window at the end, in bytes; `Some(0)`: it does not read.
    pub send_window: Option<u32>,
    /// End of the record.
    pub ended_at: Ktime,
    /// How it ended.
    pub end: EndKind,
    /// The TCP state nginx closed it in (before the transition); `None` unless `end` is `Closed` or `WorkerGone`.
    pub closed_in: Option<TcpState>,
    /// The other end, when it is a process of this host.
    pub backend: Option<Backend>,
    /// The error-log line joined to this end by the very-next-own-event rule.
    pub line: Option<LineId>,
    /// The attempt this one retried.
    pub retry_of: Option<RetryOf>,
}

/// An error-log line heard at its source, in the worker, at the nanosecond nginx wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number in this trace.
    pub id: LineId,
    /// The worker (or master) that logs.
    pub worker: Pid,
    /// When.
    pub at: Ktime,
    /// nginx's level: 1 emerg, 2 alert, 3 crit, 4 error, 5 warn.
    pub level: u8,
    /// The line's errno; `None`: it has none.
    pub errno: Option<Errno>,
    /// The `*N` of the line; `None`: it has none or it cannot be trusted.
    pub connection: Option<u64>,
    /// The format string, which is the identity of the message (`connect() to %V failed`); empty when unreadable.
    pub message: String,
    /// The phase text (`connecting to upstream`); `None` when unset or unreadable.
    pub action: Option<String>,
    /// The text behind the first `%V`; the whole text where the message came pre-formatted (`%*s`).
    pub argument: Option<String>,
    /// The number behind the first `%V`, where one follows that is of use (`%V could not be resolved (%i: %s)`).
    #[serde(default)]
    pub number: Option<u64>,
    /// The last failed route lookup of this worker just before: errno as the tracepoint gave it, and the destination.
    pub route: Option<RouteError>,
    /// Who in the kernel had just denied the worker a `connect()`, where that can be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<ConnectDenied>,
    /// The programs of the worker's control groups that are asked about its connects, the first four of them; looked for
    /// where the errno is that of a denial (1, 13). `None`: not looked for, or not to be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Vec<Program>>,
    /// What the worker's very last own event was: a failure that this line's attempt is the retry of, or something else.
    /// `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<Follows>,
}

/// What a line comes right after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Follows {
    /// The end of another attempt of the same request, or its line.
    Failure(RetryOf),
    /// Anything else.
    Other,
}

/// A failed route lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteError {
    /// When.
    pub at: Ktime,
    /// 11: no route in any table asked; 113: `unreachable`; 13: `prohibit`; 22: `blackhole`.
    pub errno: Errno,
    /// Where the packet should have gone.
    pub destination: IpAddr,
}

/// A `connect()` that was denied inside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectDenied {
    /// When.
    pub at: Ktime,
    /// The errno it got.
    pub errno: Errno,
    /// By whom.
    pub by: Denier,
}

/// Who denies a `connect()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denier {
    /// A security module.
    SecurityModule,
    /// A program of a control group.
    Cgroup,
}

/// A BPF program, as `bpftool prog` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its id.
    pub id: u32,
    /// Its name, of at most 15 bytes; it may have none.
    pub name: String,
}

/// What SELinux denied to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// When.
    pub at: Ktime,
    /// The worker.
    pub worker: Pid,
    /// The worker's context.
    pub source: String,
    /// The context of what it wanted to use.
    pub target: String,
    /// The class of what it wanted to use (`tcp_socket`, `sock_file`).
    pub class: String,
    /// The permissions that were denied; those without a known name as one hexadecimal number.
    pub denied: Vec<String>,
}

/// A listening TCP socket appears or goes, on the whole host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The listening socket.
    pub sock: Sock,
    /// Its network namespace.
    pub netns: Netns,
    /// Where it listens: an address (`0.0.0.0` and `[::]` for any), or a unix path.
    pub address: Peer,
    /// The IPv6 socket takes no IPv4 connections (`IPV6_V6ONLY`).
    pub v6only: bool,
    /// Connections waiting for `accept()`.
    pub queue: u32,
    /// The accept queue's limit; it is full when `queue > limit`.
    pub limit: u32,
    /// The process that opened, closed or (in a snapshot) holds it.
    pub task: Task,
}

/// A packet named by its own source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// The packet's source.
    pub source: SocketAddr,
    /// The packet's destination.
    pub destination: SocketAddr,
}

impl Tuple {
    /// The packet going the other way.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// What happened in the kernel or in nginx, decoded from one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
#[expect(
    missing_docs,
    reason = "the fields are explained by their types and their variant"
)]
pub enum Event {
    /// An exchange ended.
    Exchange(Box<Exchange>),
    /// nginx logs a line.
    Line(Line),
    /// A TCP socket begins to listen.
    ListenerOpened { at: Ktime, listener: Listener },
    /// A TCP socket stops listening.
    ListenerClosed { at: Ktime, listener: Listener },
    /// A listener that was there at attach (TCP and unix), or was found by a later snapshot.
    ListenerFound { at: Ktime, listener: Listener },
    /// A listener's accept queue, read in the kernel when connection `conn` met silence.
    ListenerQueue {
        at: Ktime,
        conn: ConnId,
        listener: Listener,
    },
    /// This host's TCP answered the packet `tuple` with a reset; `reason` is the kernel's name where it gives one.
    ResetSent {
        at: Ktime,
        netns: Netns,
        tuple: Tuple,
        reason: Option<String>,
        by: ResetBy,
        /// TCP flags byte of the packet that was answered; 0 in recordings that do not say.
        #[serde(default)]
        flags: u8,
        /// The connection, when the packet is known to be its SYN.
        #[serde(default)]
        conn: Option<ConnId>,
    },
    /// A datagram to a peer of a UDP proxy's was freed on this host.
    DatagramDropped {
        at: Ktime,
        netns: Netns,
        tuple: Tuple,
        /// The drop reason's name (`NO_SOCKET`).
        reason: String,
    },
    /// A packet of a peer we know was freed on this host.
    Dropped {
        at: Ktime,
        netns: Netns,
        tuple: Tuple,
        /// TCP flags byte of the packet (0x02 SYN, 0x12 SYN+ACK, 0x04 RST, 0x10 ACK).
        flags: u8,
        /// The drop reason's name (`NETFILTER_DROP`); `None` on kernels without reasons.
        reason: Option<String>,
        /// The function that dropped it, where the kernel's symbols are readable.
        location: Option<String>,
        /// The connection, when the packet still belonged to its socket (output path) or is known to be its SYN.
        conn: Option<ConnId>,
    },
    /// This host generated an `ICMPv4` error for the packet `tuple`.
    IcmpSent {
        at: Ktime,
        netns: Netns,
        tuple: Tuple,
        kind: u8,
        code: u8,
        /// The connection, when the packet is known to be its SYN.
        #[serde(default)]
        conn: Option<ConnId>,
    },
    /// The backend's socket changed after its exchange may already have been written; number 0: the connection's last.
    BackendEdge {
        at: Ktime,
        exchange: ExchangeId,
        backend: Box<Backend>,
    },
    /// A worker's `connect()` failed at once; where nginx's lines are heard, one of them says the same.
    ConnectFailed {
        at: Ktime,
        worker: Pid,
        peer: Peer,
        errno: Errno,
    },
    /// SELinux denied something to a worker, inside one of its system calls.
    SelinuxDenied(Denial),
    /// nginx closed the client's connection right after it closed the exchange: the client had left before.
    ClientLeft {
        at: Ktime,
        worker: Pid,
        /// The exchange; `None`: some exchange over a unix socket, whose close cannot be seen.
        exchange: Option<ExchangeId>,
        /// The client reset its connection rather than closing it.
        reset: bool,
    },
    /// What nginx did to its client as its very next own event after an attempt that failed.
    ClientAnswered {
        at: Ktime,
        worker: Pid,
        /// The attempt.
        of: RetryOf,
        /// The client's address; `None` over a unix socket.
        client: Option<SocketAddr>,
        /// The status of the answer that began here, where it was read.
        status: Option<u16>,
        /// It closed the client's connection.
        cut: bool,
    },
    /// A process that mattered ended: an nginx process, or one that listened or served.
    ProcessExited {
        at: Ktime,
        task: Task,
        parent: Pid,
        is_nginx: bool,
        signalled_by: Option<Task>,
        /// It ended by itself after somebody had sent it a signal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        told: Option<Told>,
    },
    /// A process was sent a signal that means something to it: SIGHUP to nginx, at which a master reads its files anew;
    /// INT, ABRT or TERM to one that listened or served, at which it ends, however long that takes; HUP, QUIT or USR2,
    /// at which many a master replaces or ends its workers; STOP, TSTP or CONT to nginx, which then does nothing or goes on.
    Signalled {
        at: Ktime,
        pid: Pid,
        signal: u8,
        by: Task,
    },
    /// An nginx process forked.
    Forked { at: Ktime, parent: Pid, child: Pid },
    /// A process became an nginx (`exec`), or an nginx became something else.
    Executed {
        at: Ktime,
        pid: Pid,
        comm: String,
        is_nginx: bool,
    },
    /// A record of a kind this program does not know, or too short.
    Unknown { kind: u16, length: u32 },
}

/// Which socket made this host's TCP send a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetBy {
    /// None: nothing listens there (or the socket is gone).
    NoSocket,
    /// A listening socket: accept queue overflow with `tcp_abort_on_overflow`.
    Listener,
    /// A socket in TIME_WAIT.
    TimeWait,
    /// Another socket.
    Socket,
}

/// One peer as a configuration generation names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfiguredPeer {
    /// The address.
    pub peer: Peer,
    /// The upstream's name: the block's, or the host of the `…_pass` directive.
    pub upstream: String,
    /// The `server` line's text (or the `…_pass` argument), as written.
    pub server: String,
    /// `http`, `https`, `fastcgi`, `uwsgi`, `scgi`, `grpc`, `memcached`, `stream` …; `None` when several disagree.
    pub via: Option<String>,
    /// Requests may turn their connection into something else (`proxy_set_header Upgrade`: WebSocket).
    #[serde(default)]
    pub upgrades: bool,
    /// Timeouts and balancing that apply, where they are certain.
    pub limits: Limits,
    /// When nginx stops trying it; `None` in recordings that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancing: Option<Balancing>,
}

/// What makes nginx's balancer leave a peer out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancing {
    /// `max_fails`: so many failures disable it; 0: none ever does, as where it is its upstream's only peer.
    pub max_fails: u32,
    /// `fail_timeout`.
    pub fail_timeout_ms: u64,
    /// `max_conns`; 0: no limit.
    pub max_conns: u32,
    /// The upstream has a `zone`: its workers count together.
    pub is_shared: bool,
    /// Some statuses of answers count as failures too (`proxy_next_upstream http_503`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counts_statuses: bool,
}

/// A host name that nginx resolves when it reads its configuration, and keeps the addresses of until it does so again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfiguredName {
    /// The name, in lower case.
    pub name: String,
    /// The port.
    pub port: u16,
    /// The upstream's name.
    pub upstream: String,
    /// The `server` line's text (or the `…_pass` argument), as written.
    pub server: String,
}

/// Directives that matter to a diagnosis, in milliseconds; `None`: several locations disagree or unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `*_connect_timeout`.
    pub connect_timeout_ms: Option<u64>,
    /// `*_send_timeout`.
    pub send_timeout_ms: Option<u64>,
    /// `*_read_timeout`.
    pub read_timeout_ms: Option<u64>,
    /// `keepalive` of the upstream block.
    pub keepalive: Option<u32>,
    /// `keepalive_timeout` of the upstream block.
    pub keepalive_timeout_ms: Option<u64>,
    /// nginx asks the backend to keep the connection; otherwise `keepalive` does nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks_to_keep: Option<bool>,
    /// The IPv4 address of `*_bind`, where it is written out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<std::net::Ipv4Addr>,
}

/// An access log of `http`, and how its lines are laid out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLog {
    /// The file, as nginx names it, or `syslog:…`.
    pub path: String,
    /// The format's name: `combined` is nginx's own.
    pub name: String,
    /// The text of its `log_format`, its strings joined; empty for `combined`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// How the values of variables are escaped.
    #[serde(default)]
    pub escape: Escape,
}

/// How nginx escapes the values of variables in an access log (`escape=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Escape {
    /// `"`, `\` and what is not printable as `\xXX`.
    #[default]
    Default,
    /// As in a string of JSON.
    Json,
    /// Not at all.
    None,
}

impl Escape {
    /// What `escape=` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Json => "json",
            Self::None => "none",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Default, Self::Json, Self::None]
            .into_iter()
            .find(|escape| escape.name() == name)
    }
}

/// What one generation of an instance's configuration says about upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The main file, as nginx names it.
    pub path: String,
    /// Number of upstreams (explicit and implicit).
    pub upstreams: u32,
    /// Every peer that could be resolved.
    pub peers: Vec<ConfiguredPeer>,
    /// The peers of UDP proxies (`stream`, `listen … udp`), likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datagrams: Vec<ConfiguredPeer>,
    /// Error-log files in use, as nginx names them.
    pub error_logs: Vec<String>,
    /// Access logs of `http`, each path and format once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_logs: Vec<AccessLog>,
    /// `daemon`-wide resolver addresses, never upstreams.
    pub resolvers: Vec<SocketAddr>,
    /// Names that nginx resolved when it read these files; none where they may not be asked for, or where the files have
    /// changed since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<ConfiguredName>,
    /// Everything was read and understood: an address that is none of the peers comes from one of `names`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_whole: bool,
    /// Nameservers may be asked what names mean, after a failure.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_ask_names: bool,
    /// `worker_shutdown_timeout` is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cuts_at_shutdown: bool,
    /// What was not understood or could not be read, one line each.
    pub problems: Vec<String>,
}

/// A running nginx: one master and its workers (or one process with `master_process off`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The master, or the only process.
    pub pid: Pid,
    /// Its executable as `/proc/PID/exe` shows it.
    pub exe: String,
    /// The version inside the executable (`nginx/1.22.1`).
    pub version: Option<String>,
    /// The main configuration file.
    pub conf: Option<String>,
    /// Worker pids.
    pub workers: Vec<Pid>,
    /// Its network namespace.
    pub netns: Netns,
    /// From when on its log function is heard; `None`: it never is. What others' can tell is another matter.
    #[serde(default = "always")]
    pub heard_since: Option<Ktime>,
}

/// Recordings that do not say were made when there was no telling apart.
fn always() -> Option<Ktime> {
    Some(Ktime(0))
}

/// A line of an error-log file, parsed; query strings are cut and the referrer is dropped already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The text as stored in a trace.
    pub text: String,
    /// Seconds since the epoch, from the line's local time.
    pub time: i64,
    /// The pid in the line, translated to the host's numbering where it is namespaced.
    pub pid: Pid,
    /// `*N`.
    pub connection: Option<u64>,
    /// `error`, `crit`, `alert` …
    pub level: String,
    /// The message up to the errno, phase or first field.
    pub message: String,
    /// The number in `(N: …)` behind the message.
    pub errno: Option<Errno>,
    /// The phase behind `while`.
    pub action: Option<String>,
    /// `upstream: "…"` without its query string.
    pub upstream: Option<String>,
    /// The peer inside `upstream`, when it is an address.
    pub peer: Option<Peer>,
    /// `client: …`.
    pub client: Option<String>,
    /// `host: "…"`.
    pub host: Option<String>,
    /// `request: "METHOD URI PROTOCOL"`, split: method and path without its query string.
    pub request: Option<(String, String)>,
    /// The client spoke UDP, so the upstream was spoken to over UDP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_udp: bool,
}

/// Something the engine wants to know about the host, asked after a failure.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
#[expect(
    missing_docs,
    reason = "the fields are explained by their types and their variant"
)]
pub enum Question {
    /// The components of a unix path as worker `pid` sees them, its credentials, and, with `sockets`, who is bound
    /// there, which is dear to find out.
    UnixPath {
        pid: Pid,
        path: String,
        #[serde(default = "yes")]
        sockets: bool,
    },
    /// Sockets of the worker's namespace to this destination by state, and the local port range.
    Ports { pid: Pid, destination: SocketAddr },
    /// Open descriptors and limits of the worker.
    Descriptors { pid: Pid },
    /// Whether IPv6 is switched off for the interfaces of the worker's namespace.
    Ipv6 { pid: Pid },
    /// Whether this address belongs to an interface of the worker's namespace, and the route to it.
    Route { pid: Pid, destination: IpAddr },
    /// The state, parent and command of a process.
    Process { pid: Pid },
    /// What connection tracking in the worker's namespace makes of a destination, for instance of the connection from this
    /// source.
    Translation {
        pid: Pid,
        destination: SocketAddr,
        source: ForInstance<SocketAddr>,
    },
    /// How many connections wait for accept() where this address leads in the namespace of `pid`, who listens there.
    AcceptQueue { pid: Pid, address: SocketAddr },
    /// What may deny the worker a system call or a connection, beside files' permissions and routes.
    Confinement { pid: Pid },
    /// Whether a full accept queue makes the kernel reset connections in the namespace of `pid`.
    AbortsOnOverflow { pid: Pid },
    /// What a configured host name means now, through the hosts file and the nameservers of the instance `pid`.
    Name { pid: Pid, name: String },
    /// What each of nginx's own nameservers, asked from the namespace of `pid`, says of a whole name.
    Nameservers {
        pid: Pid,
        servers: Vec<SocketAddr>,
        name: String,
    },
}

/// Something that any other could stand for: it does not tell questions apart.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ForInstance<T>(pub T);

impl<T> PartialEq for ForInstance<T> {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl<T> Eq for ForInstance<T> {}

impl<T> std::hash::Hash for ForInstance<T> {
    fn hash<H: std::hash::Hasher>(&self, _state: &mut H) {}
}

impl Question {
    /// The answer may take its time: it is not the host's alone to give.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::Nameservers { .. })
    }
}

/// What a recording says that was made before the question could leave the sockets out.
fn yes() -> bool {
    true
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
#[expect(
    missing_docs,
    reason = "the fields are explained by their types and their variant"
)]
pub enum Answer {
    /// See [`Question::UnixPath`].
    UnixPath(UnixPath),
    /// See [`Question::Ports`].
    Ports {
        /// First and last local port, inclusive.
        range: (u16, u16),
        /// Sockets to the destination, by state name.
        by_state: Vec<(String, u32)>,
    },
    /// See [`Question::Descriptors`].
    Descriptors {
        /// Open now.
        open: u64,
        /// `RLIMIT_NOFILE`, soft.
        limit: u64,
        /// System-wide: open and maximum (`/proc/sys/fs/file-nr`).
        system: (u64, u64),
    },
    /// See [`Question::Route`].
    Route {
        /// The address is one of this host's (in that namespace).
        is_local: bool,
        /// `ip route get`'s verdict: `unicast`, `local`, `unreachable`, `prohibit`, `blackhole`, or none.
        kind: Option<String>,
        /// The errno of the lookup, when it failed.
        errno: Option<Errno>,
        /// The device and gateway, when there is one.
        via: Option<String>,
    },
    /// See [`Question::Ipv6`]: `disable_ipv6` of up to 64 interfaces, by name.
    Ipv6 { interfaces: Vec<(String, bool)> },
    /// See [`Question::Process`].
    Process {
        /// `None`: it is gone.
        found: Option<ProcessInfo>,
    },
    /// See [`Question::Translation`].
    Translation {
        /// Who really answers there; `None`: the connection is not tracked.
        destination: Option<SocketAddr>,
    },
    /// See [`Question::AcceptQueue`]; of several sockets the fullest.
    AcceptQueue {
        /// Connections that wait.
        waiting: u32,
        /// How many may; the queue is full when more wait.
        limit: u32,
        /// Every socket's that listens there is full.
        are_all_full: bool,
    },
    /// See [`Question::Confinement`].
    Confinement(Confinement),
    /// See [`Question::AbortsOnOverflow`]: `net.ipv4.tcp_abort_on_overflow`.
    AbortsOnOverflow { is_set: bool },
    /// See [`Question::Name`].
    Name(NameMeaning),
    /// See [`Question::Nameservers`]: two of each, one for each family.
    Nameservers { replies: Vec<NameReply> },
    /// The host would not say.
    Unavailable { why: String },
}

/// What may deny a process something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// A seccomp filter judges its system calls.
    pub seccomp: bool,
    /// It can gain no privileges (`no_new_privs`), as whoever confines itself has to say first.
    pub no_new_privs: bool,
    /// The kernel's active security modules; `None`: securityfs is not mounted.
    pub modules: Option<Vec<String>>,
    /// How the kernel's main security module calls what it is confined to: an AppArmor profile with its mode, a context of
    /// SELinux; `None`: neither has to do with it.
    pub profile: Option<String>,
    /// Loaded BPF programs of the type that asks to be a security module; `None`: they cannot be listed.
    pub lsm_programs: Option<Vec<Program>>,
    /// Packets that IPsec policies of its network namespace blocked so far (`XfrmOutPolBlock`); `None`: this kernel does not
    /// count them.
    pub ipsec_blocked: Option<u64>,
}

/// What a host name means, by the hosts file or a nameserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameMeaning {
    /// Its addresses; none: it is known to have none.
    pub addresses: Vec<IpAddr>,
    /// Who says so.
    pub from: NameSource,
    /// Asked twice at the same moment, the nameserver gave different addresses.
    pub varies: bool,
    /// How long a nameserver's answer stands, in seconds.
    pub ttl_s: Option<u32>,
    /// The whole name that the nameserver was asked for: with a search domain, if one was added.
    #[serde(default)]
    pub whole: Option<String>,
}

/// What a nameserver says of a name's addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameReply {
    /// The nameserver.
    pub server: SocketAddr,
    /// It was asked for IPv6 addresses (`AAAA`), not for IPv4 ones (`A`).
    pub is_v6: bool,
    /// What it said.
    pub said: NameSaid,
}

/// A nameserver's word on a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameSaid {
    /// The addresses; none: the name exists and has none of this family.
    Addresses(Vec<IpAddr>),
    /// There is no such name (`NXDOMAIN`).
    NoSuchName,
    /// It fails or refuses, in the words of DNS (`SERVFAIL`, `REFUSED`).
    Fails(String),
    /// It did not answer, and how that was noticed.
    Nothing(String),
}

/// Who says what a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameSource {
    /// nginx's hosts file.
    HostsFile,
    /// A nameserver of nginx's resolv.conf.
    Nameserver(IpAddr),
}

impl fmt::Display for NameSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostsFile => f.write_str("nginx's hosts file"),
            Self::Nameserver(server) => write!(f, "nameserver {server}"),
        }
    }
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its name.
    pub comm: String,
    /// Its command line, joined by spaces, cut at 200 bytes.
    pub command: String,
    /// The one-letter state of `/proc/PID/stat`.
    pub state: char,
    /// Its parent.
    pub parent: Pid,
}

/// A unix path as an nginx worker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixPath {
    /// Every component from the root, in order, as far as it exists.
    pub components: Vec<PathComponent>,
    /// The component that is missing or no directory, when the walk stopped early.
    pub stopped: Option<(String, Errno)>,
    /// uid, gid, supplementary groups of the worker, and whether it may override file permissions (CAP_DAC_OVERRIDE).
    pub credentials: (u32, u32, Vec<u32>, bool),
    /// The sockets bound to that path on this host (any namespace we could read), listening or not; none where they
    /// were not asked for.
    pub sockets: Vec<UnixSocket>,
}

/// One component of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathComponent {
    /// The path up to here.
    pub path: String,
    /// `directory`, `socket`, `file`, `symlink`, `other`.
    pub kind: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Whether the worker may do here what connect needs (search a directory, write the socket).
    pub allowed: bool,
}

/// A unix socket bound to a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// It listens.
    pub listening: bool,
    /// `stream`, `dgram`, `seqpacket`.
    pub kind: String,
    /// The device and inode of the file it is bound to, where the kernel says.
    pub file: Option<(u64, u64)>,
    /// It is bound to a file that came in the place of the one that the worker sees: that one is mounted alone, and was
    /// removed where it came from. The path then, as its owner wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place_at: Option<String>,
    /// Connections waiting, and the limit; listeners only, where the kernel says.
    pub queue: Option<(u32, u32)>,
    /// Processes that hold it.
    pub owners: Vec<(Pid, String)>,
}

/// What was lost, by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossClass {
    /// The ring buffer was full.
    Ring,
    /// A table in the kernel was full.
    Table,
    /// A program did not run (recursion, missed probe).
    Probe,
    /// A queue of the tracer was full.
    Queue,
}

/// One thing the outside world tells the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "input", content = "of")]
#[expect(
    missing_docs,
    reason = "the fields are explained by their types and their variant"
)]
pub enum Input {
    /// Something happened in the kernel or in nginx.
    Kernel(Event),
    /// What can be seen on this host; first input of every trace.
    Hooks(Vec<HookStatus>),
    /// The host's own addresses, per network namespace.
    Addresses { netns: Netns, addresses: Vec<IpAddr> },
    /// An instance of nginx was found, or its workers changed.
    Instance(Instance),
    /// What is configured, for workers started at or after `since` below this master.
    Config {
        master: Pid,
        since: Ktime,
        config: Config,
    },
    /// Which master a worker belongs to, and when it started.
    Worker {
        worker: Pid,
        master: Pid,
        started: Ktime,
    },
    /// A line appeared in an error-log file.
    LogLine(LogLine),
    /// The answer to a question the engine asked.
    Answer { question: Question, answer: Answer },
    /// Something was lost.
    Lost { class: LossClass, count: u64 },
    /// Wall-clock time (nanoseconds since the epoch) at this input's time.
    Clock { unix_ns: i64 },
    /// Time passed; nothing else happened.
    Tick,
    /// The trace ends here in an orderly way; `in_flight` exchanges were still under way.
    Detach { in_flight: u64 },
}

/// An input with its time: one line of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// When the source took it in.
    pub at: Ktime,
    /// What.
    #[serde(flatten)]
    pub input: Input,
}

/// What the engine says.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "the fields are explained by their types and their variant"
)]
pub enum Output {
    /// A finished attempt.
    Attempt(Box<Attempt>),
    /// Something that matters to several attempts.
    Event(NoteEvent),
    /// A pattern over many attempts.
    Finding(Finding),
    /// A question for the host.
    Ask(Question),
    /// Something was lost.
    Lost { at: Ktime, class: LossClass, count: u64 },
    /// The closing summary, last of all.
    Summary(Box<Summary>),
}
