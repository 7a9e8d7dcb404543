//! The vocabulary of what the tracer says: attempts, causes, evidence, findings, summaries.
//!
//! Plain values with public fields; the serialised form lives in `sink/schema.rs` alone. Times are kernel times
//! ([`Ktime`]); outputs turn them into wall-clock time with the offset they were given.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::event::{Errno, ExchangeId, Ktime, LogLine, LossClass, Peer, Pid};

/// What happened to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// nginx got an answer.
    Ok,
    /// The connection was refused (errno 111).
    Refused,
    /// No way to the peer (113, 101, 112).
    Unreachable,
    /// Something denied it (13, 1).
    Denied,
    /// nginx's timer or the kernel gave up (110).
    TimedOut,
    /// The connection was reset (104, 32, 103).
    Reset,
    /// The peer closed in an orderly way, too early.
    Closed,
    /// Ports, descriptors, memory or a unix listen queue ran out.
    Exhausted,
    /// A unix path is missing or of the wrong kind (2, 20, 40, 91).
    Missing,
    /// The answer, the address or the handshake was not acceptable.
    Invalid,
    /// A name could not be resolved.
    Unresolved,
    /// nginx had no peer it was willing to try.
    NoLiveUpstreams,
    /// The client or the worker left; not a failure of the peer.
    Cancelled,
}

impl Outcome {
    /// Every outcome, in the order of docs and summaries.
    pub const ALL: [Self; 13] = [
        Self::Ok,
        Self::Refused,
        Self::Unreachable,
        Self::Denied,
        Self::TimedOut,
        Self::Reset,
        Self::Closed,
        Self::Exhausted,
        Self::Missing,
        Self::Invalid,
        Self::Unresolved,
        Self::NoLiveUpstreams,
        Self::Cancelled,
    ];

    /// The stable name in files and on the terminal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::TimedOut => "timed-out",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Exhausted => "exhausted",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Unresolved => "unresolved",
            Self::NoLiveUpstreams => "no-live-upstreams",
            Self::Cancelled => "cancelled",
        }
    }

    /// A failure is every outcome but ok and cancelled.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Ok | Self::Cancelled)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Looking up the peer's name.
    Resolving,
    /// Connecting.
    Connecting,
    /// TLS handshake.
    Handshaking,
    /// Sending the request.
    Sending,
    /// Request sent, no byte of the answer yet.
    Waiting,
    /// Part of the answer is there.
    Reading,
    /// Between two requests on a kept connection.
    Idle,
}

impl Phase {
    /// The stable name in files and on the terminal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Connecting => "connecting",
            Self::Handshaking => "handshaking",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Reading => "reading",
            Self::Idle => "idle",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How sure a cause is. Ordered: `Possible < Likely < Confirmed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidence {
    /// Nothing contradicts it.
    Possible,
    /// The pattern fits and the siblings were ruled out.
    Likely,
    /// The kernel told us.
    Confirmed,
}

impl Confidence {
    /// The stable name in files and on the terminal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Confirmed => "confirmed",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Who closed the connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClosedBy {
    /// nginx.
    Nginx,
    /// The peer.
    Peer,
    /// The kernel (reset, error, death of the worker).
    Kernel,
}

impl ClosedBy {
    /// The stable name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Peer => "peer",
            Self::Kernel => "kernel",
        }
    }
}

/// One fact that speaks for a cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// When it happened; `None` for facts without a moment (a limit, a permission).
    pub at: Option<Ktime>,
    /// What kind of witness: `process`, `listener`, `tcp`, `icmp`, `drop`, `queue`, `route`, `file`, `name`, `nginx`,
    /// `limit`.
    pub source: &'static str,
    /// One readable sentence fragment.
    pub text: String,
    /// The numbers in it, by name, for programs (`pid`, `comm`, `signal`, `backlog`, `queue`, `limit`, `reason` …).
    pub fields: BTreeMap<&'static str, FieldValue>,
}

/// A value in [`Evidence::fields`].
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue {
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
    /// A claim.
    Flag(bool),
}

/// A named cause with its evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The stable id (`listener-died`).
    pub id: &'static str,
    /// How sure.
    pub confidence: Confidence,
    /// One sentence about this attempt.
    pub summary: String,
    /// What the reader can do now.
    pub remedy: String,
    /// The facts, in time order.
    pub evidence: Vec<Evidence>,
}

/// The request an attempt carried; `None` where it could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET` …
    pub method: Option<String>,
    /// The path without its query string.
    pub path: Option<String>,
    /// The `Host`.
    pub host: Option<String>,
    /// The response's status.
    pub status: Option<u16>,
    /// The client's address.
    pub client: Option<String>,
}

/// What nginx gave its client right after an attempt; `None` where it tried another server, or where it was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The client's end of its connection to nginx; `None` over a unix socket.
    pub address: Option<std::net::SocketAddr>,
    /// The status of the answer that nginx began to send; `None` where none began then, or it could not be read.
    pub status: Option<u16>,
    /// nginx closed the connection without the rest of an answer.
    pub cut: bool,
}

impl Client {
    /// What it got, in a word: `502`, `cut`, or `unread` for an answer whose status could not be read.
    #[must_use]
    pub fn got(&self) -> String {
        match (self.cut, self.status) {
            (true, _) => "cut".to_owned(),
            (false, Some(status)) => status.to_string(),
            (false, None) => "unread".to_owned(),
        }
    }
}

/// One try by nginx to get an answer from one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its number in this trace, from 1.
    pub number: u64,
    /// When it began.
    pub began_at: Ktime,
    /// When it ended.
    pub ended_at: Ktime,
    /// The worker.
    pub worker: Pid,
    /// The upstream's name; `None` when unknown or ambiguous.
    pub upstream: Option<String>,
    /// Every upstream the address belongs to.
    pub upstreams: Vec<String>,
    /// The `server` line's text; `None` when unknown.
    pub server: Option<String>,
    /// The address; `None` for attempts without one (no live upstreams, unresolved).
    pub peer: Option<Peer>,
    /// The local address and port.
    pub local: Option<std::net::SocketAddr>,
    /// The protocol towards the upstream.
    pub via: Option<String>,
    /// What happened.
    pub outcome: Outcome,
    /// Where it ended.
    pub phase: Phase,
    /// The errno, where there is one.
    pub errno: Option<Errno>,
    /// The message nginx logs for this; `None` when it logs nothing.
    pub nginx_says: Option<String>,
    /// The matched line of the error log.
    pub log: Option<LogLine>,
    /// The connection had been used before.
    pub reused: bool,
    /// The request's number on the connection.
    pub exchange: u32,
    /// Idle time before it, in microseconds.
    pub idle_us: Option<u64>,
    /// connect() → established.
    pub connect_us: Option<u64>,
    /// connect() → the backend's first read (an upper bound for its accept).
    pub accept_us: Option<u64>,
    /// Request sent → first byte of the response.
    pub first_byte_us: Option<u64>,
    /// Begin → end.
    pub total_us: u64,
    /// Bytes nginx sent.
    pub bytes_sent: Option<u64>,
    /// Bytes acknowledged.
    pub bytes_acked: Option<u64>,
    /// Bytes nginx received.
    pub bytes_received: Option<u64>,
    /// Bytes that arrived and were never read.
    pub bytes_unread: Option<u64>,
    /// SYN retransmissions.
    pub syn_retransmits: Option<u32>,
    /// Data retransmissions.
    pub retransmits: Option<u32>,
    /// Smoothed round trip time.
    pub rtt_us: Option<u32>,
    /// Who closed first.
    pub closed_by: Option<ClosedBy>,
    /// The request.
    pub request: Option<Request>,
    /// What the client got.
    pub client: Option<Client>,
    /// The attempt this one retried: its number, and which try this is (2 for the first retry).
    pub retry: Option<(u64, u32)>,
    /// The connection and exchange; `None` for attempts without a socket.
    pub connection: Option<ExchangeId>,
    /// The headline; `None` when the outcome is ok.
    pub cause: Option<Verdict>,
    /// Other causes that stand.
    pub also: Vec<Verdict>,
    /// The connection was there before the tracer.
    pub preexisting: bool,
    /// What could not be seen and would have mattered.
    pub unseen: Vec<String>,
}

impl Attempt {
    /// The status that the answer of its backend had, where it was read. What a `stream` carries is nobody's request.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        let is_stream = self.via.as_deref() == Some("stream");
        self.request.as_ref().filter(|_| !is_stream)?.status
    }

    /// The status that its backend itself answered with, where that is how it ended.
    #[must_use]
    pub fn answered(&self) -> Option<u16> {
        self.status().filter(|_| self.outcome == Outcome::Ok)
    }

    /// The backend itself answered with an error (5xx): not a failed attempt, and nothing that nginx logs.
    #[must_use]
    pub fn is_answered_with_error(&self) -> bool {
        self.answered().is_some_and(|status| (500..600).contains(&status))
    }
}

/// Something that matters to several attempts: a line of type `event`.
#[derive(Clone, Debug, PartialEq)]
pub struct NoteEvent {
    /// When.
    pub at: Ktime,
    /// `process-exit`, `listener-open`, `listener-closed`, `worker-start`, `worker-exit`, `reload`, `config`,
    /// `peer-disabled`, `peer-enabled`, `oom-kill`.
    pub kind: &'static str,
    /// One readable sentence.
    pub text: String,
    /// The details by name (`pid`, `comm`, `address`, `backlog`, `exit_code`, `signal`, `oom`).
    pub fields: BTreeMap<&'static str, FieldValue>,
}

/// A pattern over many attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The stable id.
    pub id: &'static str,
    /// What it is about, which with the id tells it from others: an upstream, or an upstream and its peer; empty: all.
    pub about: String,
    /// When it became certain, for one that is said while the trace goes on; `None`: at its end, with the last numbers.
    pub at: Option<Ktime>,
    /// The claim with its numbers.
    pub summary: String,
    /// What to do.
    pub remedy: String,
    /// How many attempts it rests on.
    pub attempts: u64,
    /// The facts.
    pub evidence: Vec<Evidence>,
}

/// Counts of one (upstream, peer, outcome, cause).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SummaryKey {
    /// The upstream's name, where known.
    pub upstream: Option<String>,
    /// The peer as text, where there is one.
    pub peer: Option<String>,
    /// [`Outcome::name`].
    pub outcome: &'static str,
    /// The headline cause's id.
    pub cause: Option<&'static str>,
}

/// A latency histogram: counts per power-of-two bucket of microseconds (bucket n holds `2^n ..= 2^(n+1)-1`; 0 and 1 in bucket 0).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(pub BTreeMap<u8, u64>);

/// The last record of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// When the trace ended.
    pub at: Ktime,
    /// Attempts finished.
    pub attempts: u64,
    /// Of them failures.
    pub failures: u64,
    /// Exchanges still under way at the end; no attempts.
    pub in_flight: u64,
    /// Attempts whose backend itself answered 5xx; `None`: no status was read.
    pub answered_with_error: Option<u64>,
    /// Answers whose status was not read.
    pub statuses_unread: u64,
    /// What clients got right after failures, and how often: `502`, `cut`, `unread`.
    pub clients_got: BTreeMap<String, u64>,
    /// Counts.
    pub counts: BTreeMap<SummaryKey, u64>,
    /// `connect_us`, `first_byte_us`, `total_us` by upstream name.
    pub latency: BTreeMap<(String, &'static str), Histogram>,
    /// What was lost.
    pub lost: BTreeMap<LossClass, u64>,
    /// Orderly end and nothing lost.
    pub complete: bool,
}

/// Whether one thing of the hook plan can be seen on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// What it sees, a stable id (`resets-sent`).
    pub sees: String,
    /// How (`tp_btf tcp_send_reset`); `None`: not at all.
    pub how: Option<String>,
    /// Why not, when `how` is `None`.
    pub why_not: Option<String>,
    /// What is lost without it; empty when nothing is.
    pub without: String,
}
