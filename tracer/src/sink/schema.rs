//! The stable serialised form of a trace, `tracer/1`: what other programs may rely on.
//!
//! The types here are the format and nothing else; the tracer's own values ([`crate::model`]) are turned into them
//! on the way out. Fields may be added, never renamed or removed; a reader ignores those that it does not know.
//! Absent is null, never 0.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    clock::Clock,
    event::{Errno, ExchangeId, Ktime, LogLine, LossClass},
    model,
};

/// The name and version of the format.
pub const SCHEMA: &str = "tracer/1";

/// A name out of a fixed list.
type Name = Cow<'static, str>;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// First line of every file: what was traced, on which host, and what can be seen there.
    Session(Session),
    /// One try by nginx to get an answer from one peer.
    Attempt(Box<Attempt>),
    /// Something that matters to several attempts.
    Event(Event),
    /// A pattern over many attempts.
    Finding(Finding),
    /// Records that were lost.
    Lost(Lost),
    /// Last line of a trace.
    Summary(Summary),
}

/// First line of every file: what was traced, on which host, and what can be seen there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Session {
    /// The format's name and version: `tracer/1`.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: String,
    /// The program that wrote the trace, with its version.
    pub tool: String,
    /// The host's name.
    pub host: String,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's boot id, which changes with each boot.
    pub boot_id: Option<String>,
    /// When the trace began.
    #[schemars(extend("format" = "date-time"))]
    pub started: String,
    /// Number of this file within its trace, from 1; more than 1 only after a rotation.
    pub part: u32,
    /// The instances of nginx known when the file was begun.
    pub nginx: Vec<Nginx>,
    /// What can be seen on this host, and how.
    pub hooks: Vec<Hook>,
    /// What was understood of nginx's configuration.
    pub config: ConfigSummary,
    /// The options the tracer ran with, by name.
    pub options: BTreeMap<String, Value>,
}

/// A running nginx.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Nginx {
    /// The master's pid, or that of the only process.
    pub pid: u32,
    /// Its executable.
    pub exe: String,
    /// Its version as it names it itself.
    pub version: Option<String>,
    /// Its main configuration file.
    pub conf: Option<String>,
    /// Its workers' pids.
    pub workers: Vec<u32>,
    /// Its network namespace, by inode number.
    pub netns: u32,
}

/// Whether one thing can be seen on this host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Hook {
    /// What it sees.
    pub sees: String,
    /// How; null: not at all.
    pub how: Option<String>,
    /// Why not, when `how` is null.
    pub why_not: Option<String>,
    /// What is lost without it.
    pub without: String,
}

/// What was understood of nginx's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ConfigSummary {
    /// Number of upstreams.
    pub upstreams: u32,
    /// Number of peers that have an upstream's name.
    pub peers: u32,
    /// Access logs of `http`, each path and format once.
    pub access_logs: Vec<AccessLog>,
    /// What was not understood or could not be read, one sentence each.
    pub problems: Vec<String>,
}

/// An access log, and how its lines are laid out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AccessLog {
    /// The file, as nginx names it, or `syslog:…`.
    pub path: String,
    /// The name of its format; `combined` is nginx's own.
    pub name: String,
    /// The text of its `log_format`, its strings joined; null for `combined`.
    pub format: Option<String>,
    /// How values of variables are escaped.
    #[schemars(extend("enum" = ["default", "json", "none"]))]
    pub escape: Name,
}

/// One try by nginx to get an answer from one peer; on a reused keepalive connection an attempt is one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Attempt {
    /// When it began.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// The worker's pid as the host sees it.
    pub worker: u32,
    /// The attempt's number in the trace, from 1.
    pub number: u64,
    /// The `upstream` block's name, or the host of the `…_pass` directive; null when unknown or ambiguous.
    pub upstream: Option<String>,
    /// Every upstream that the address belongs to.
    pub upstreams: Vec<String>,
    /// The `server` line's text.
    pub server: Option<String>,
    /// The address tried: `127.0.0.1:3000`, `[::1]:3000`, `unix:/run/app.sock`; null when none was.
    pub peer: Option<String>,
    /// The local address and port.
    pub local: Option<String>,
    /// The protocol: `http`, `https`, `fastcgi`, `uwsgi`, `scgi`, `grpc`, `memcached`, `stream`.
    pub via: Option<String>,
    /// What happened.
    #[schemars(extend("enum" = model::Outcome::ALL.map(model::Outcome::name)))]
    pub outcome: Name,
    /// Where it ended.
    #[schemars(extend("enum" = PHASES.map(model::Phase::name)))]
    pub phase: Name,
    /// The error's name (`ECONNREFUSED`), where there is one.
    pub errno: Option<Name>,
    /// The message that nginx logs for this.
    pub nginx_says: Option<String>,
    /// The line of nginx's error log that was matched.
    pub log: Option<Log>,
    /// The connection had been used before.
    pub reused: bool,
    /// The request's number on its connection, from 1.
    pub exchange: u32,
    /// How long the connection was idle before it.
    pub idle_us: Option<u64>,
    /// `connect()` → established.
    pub connect_us: Option<u64>,
    /// `connect()` → the backend's `accept()`, same host only; an upper bound where only its first read is seen.
    pub accept_us: Option<u64>,
    /// Request sent → first byte of the response.
    pub first_byte_us: Option<u64>,
    /// Begin → end.
    pub total_us: u64,
    /// Bytes nginx sent.
    pub bytes_sent: Option<u64>,
    /// Bytes the peer's kernel acknowledged.
    pub bytes_acked: Option<u64>,
    /// Bytes nginx received.
    pub bytes_received: Option<u64>,
    /// Bytes that arrived and nginx never read.
    pub bytes_unread: Option<u64>,
    /// SYN retransmissions.
    pub syn_retransmits: Option<u32>,
    /// Data retransmissions.
    pub retransmits: Option<u32>,
    /// Smoothed round trip time.
    pub rtt_us: Option<u32>,
    /// Who closed the connection first.
    #[schemars(extend("enum" = ["nginx", "peer", "kernel", null]))]
    pub closed_by: Option<Name>,
    /// The request it carried.
    pub request: Option<Request>,
    /// What nginx gave its client right after it: null where it tried another server, or where that was not seen.
    pub client: Option<Client>,
    /// The attempt that this one retried.
    pub retry: Option<Retry>,
    /// An opaque id shared by the attempts on one connection.
    pub connection: Option<String>,
    /// Why it failed; null when the outcome is ok.
    pub cause: Option<Cause>,
    /// Other causes that stand.
    pub also: Vec<Cause>,
    /// The connection was there before the tracer.
    pub preexisting: bool,
    /// What could not be seen and would have mattered, one sentence each.
    pub unseen: Vec<String>,
}

/// A line of nginx's error log; query strings are cut and the referrer is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    /// When nginx wrote it, to the second.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// Its text.
    pub line: String,
}

/// The request an attempt carried: the client's where nginx logged a line about it, else as nginx sent it to the upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Request {
    /// Its method.
    pub method: Option<String>,
    /// Its path, without the query string.
    pub path: Option<String>,
    /// Its `Host`.
    pub host: Option<String>,
    /// The status of the upstream's answer, where it was read.
    pub status: Option<u16>,
    /// The client's address.
    pub client: Option<String>,
}

/// What nginx gave its client right after an attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Client {
    /// The client's end of its connection to nginx; null over a unix socket.
    pub address: Option<String>,
    /// The status of the answer that nginx then began to send, where it was read: null over TLS and HTTP/2.
    pub status: Option<u16>,
    /// nginx closed the client's connection without the rest of an answer.
    pub cut: bool,
}

/// Which attempt was retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Retry {
    /// The number of the attempt retried.
    pub of: u64,
    /// Which try this is: 2 for the first retry.
    pub n: u32,
}

/// A named cause with its evidence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cause {
    /// Its stable id.
    pub id: Name,
    /// How sure it is.
    #[schemars(extend("enum" = ["confirmed", "likely", "possible"]))]
    pub confidence: Name,
    /// One sentence about this attempt.
    pub summary: String,
    /// What can be done now.
    pub remedy: String,
    /// The facts, in time order.
    pub evidence: Vec<Evidence>,
}

/// One fact that speaks for a cause; beside these fields it has the numbers of its text by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Evidence {
    /// When it happened; null for facts without a moment.
    #[schemars(extend("format" = "date-time"))]
    pub time: Option<String>,
    /// What kind of witness: `process`, `listener`, `tcp`, `icmp`, `drop`, `queue`, `route`, `file`, `name`, `nginx`,
    /// `limit`.
    pub source: Name,
    /// One readable sentence fragment.
    pub text: String,
    /// The numbers in it, by name (`pid`, `comm`, `signal`, `backlog`, `queue`, `limit`, `reason` …).
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

/// Something that matters to several attempts; beside these fields it has its details by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Event {
    /// When it happened.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// `process-exit`, `listener-open`, `listener-closed`, `worker-start`, `worker-exit`, `reload`, `config`,
    /// `peer-disabled`, `peer-enabled`, `oom-kill`; `continued`: the trace goes on in the next file.
    pub kind: Name,
    /// One readable sentence.
    pub text: String,
    /// The details, by name (`pid`, `comm`, `exit_code`, `signal`, `oom`, `address`, `backlog` …).
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

/// A pattern over many attempts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Finding {
    /// Its stable id.
    pub id: Name,
    /// What it is about, which with the id tells it from others: an upstream, or an upstream and its peer.
    pub about: String,
    /// When it became certain, for one that is said while the trace goes on, with the numbers of that moment; null at the
    /// end of the trace, where every finding that stands then comes with its last numbers.
    pub time: Option<String>,
    /// The claim, with its numbers.
    pub summary: String,
    /// What can be done now.
    pub remedy: String,
    /// How many attempts it rests on.
    pub attempts: u64,
    /// The facts.
    pub evidence: Vec<Evidence>,
}

/// Records that were lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Lost {
    /// When it was noticed.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// Where: the ring buffer, a table in the kernel, a program that did not run, a queue of the tracer.
    #[schemars(extend("enum" = LOSS_CLASSES.map(loss_class)))]
    pub class: Name,
    /// How many.
    pub count: u64,
}

/// Last line of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Summary {
    /// When the trace ended.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// Attempts that ended while the trace ran.
    pub attempts: u64,
    /// Of them, failures: every outcome but `ok` and `cancelled`.
    pub failures: u64,
    /// Attempts still under way at the end; they are in no other count.
    pub in_flight: u64,
    /// Attempts that the backend itself answered with 5xx; null: no status was read.
    pub answered_with_error: Option<u64>,
    /// Answers whose status was not read: encrypted or in HTTP/2, to requests that were sent before the trace began, or not
    /// in the first bytes of the answer.
    pub statuses_unread: u64,
    /// What clients got right after failures, and how often: a status, `cut` (their connection was closed without the rest of
    /// an answer), or `unread`. Failures hidden by a retry are in none.
    pub clients_got: BTreeMap<String, u64>,
    /// Attempts by upstream, peer, outcome and cause.
    pub counts: Vec<Count>,
    /// Latency histograms by upstream.
    pub latency: Vec<Latency>,
    /// What was lost, by class.
    pub lost: BTreeMap<Name, u64>,
    /// The trace ended in an orderly way and nothing was lost.
    pub complete: bool,
}

/// How many attempts had this upstream, peer, outcome and cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Count {
    /// The upstream's name.
    pub upstream: Option<String>,
    /// The peer.
    pub peer: Option<String>,
    /// The outcome.
    pub outcome: Name,
    /// The cause's id.
    pub cause: Option<Name>,
    /// How many.
    pub attempts: u64,
}

/// One latency histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Latency {
    /// The upstream's name.
    pub upstream: String,
    /// Which latency: `connect_us`, `first_byte_us`, `total_us`.
    pub of: Name,
    /// The buckets that are not empty, in order.
    pub buckets: Vec<Bucket>,
}

/// One bucket of a latency histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Bucket {
    /// Its lower bound, inclusive.
    pub from_us: u64,
    /// Its upper bound, exclusive.
    pub below_us: u64,
    /// How many attempts fell into it.
    pub attempts: u64,
}

/// The phases, in the order of an attempt.
const PHASES: [model::Phase; 7] = [
    model::Phase::Resolving,
    model::Phase::Connecting,
    model::Phase::Handshaking,
    model::Phase::Sending,
    model::Phase::Waiting,
    model::Phase::Reading,
    model::Phase::Idle,
];

/// The classes of loss, in the order of summaries.
const LOSS_CLASSES: [LossClass; 4] = [
    LossClass::Ring,
    LossClass::Table,
    LossClass::Probe,
    LossClass::Queue,
];

/// The stable name of a class of loss.
#[must_use]
pub fn loss_class(class: LossClass) -> &'static str {
    match class {
        LossClass::Ring => "ring",
        LossClass::Table => "table",
        LossClass::Probe => "probe",
        LossClass::Queue => "queue",
    }
}

/// An error number by its name in `errno.h`.
#[must_use]
pub fn errno_name(errno: Errno) -> Name {
    match nix::errno::Errno::from_raw(errno.0) {
        nix::errno::Errno::UnknownErrno => Cow::Owned(format!("errno {}", errno.0)),
        known => Cow::Owned(format!("{known:?}")),
    }
}

impl Attempt {
    /// The serialised form of an attempt; trace files take it from [`super::attempt_line`], which writes the same.
    #[must_use]
    pub fn new(attempt: &model::Attempt, clock: Clock) -> Self {
        Self {
            time: clock.rfc3339(attempt.began_at),
            worker: attempt.worker.0,
            number: attempt.number,
            upstream: attempt.upstream.clone(),
            upstreams: attempt.upstreams.clone(),
            server: attempt.server.clone(),
            peer: attempt.peer.as_ref().map(ToString::to_string),
            local: attempt.local.map(|local| local.to_string()),
            via: attempt.via.clone(),
            outcome: attempt.outcome.name().into(),
            phase: attempt.phase.name().into(),
            errno: attempt.errno.map(errno_name),
            nginx_says: attempt.nginx_says.clone(),
            log: attempt.log.as_ref().map(Log::new),
            reused: attempt.reused,
            exchange: attempt.exchange,
            idle_us: attempt.idle_us,
            connect_us: attempt.connect_us,
            accept_us: attempt.accept_us,
            first_byte_us: attempt.first_byte_us,
            total_us: attempt.total_us,
            bytes_sent: attempt.bytes_sent,
            bytes_acked: attempt.bytes_acked,
            bytes_received: attempt.bytes_received,
            bytes_unread: attempt.bytes_unread,
            syn_retransmits: attempt.syn_retransmits,
            retransmits: attempt.retransmits,
            rtt_us: attempt.rtt_us,
            closed_by: attempt.closed_by.map(|by| by.name().into()),
            request: attempt.request.as_ref().map(Request::new),
            client: attempt.client.map(Client::new),
            retry: attempt.retry.map(|(of, n)| Retry { of, n }),
            connection: attempt.connection.map(connection_id),
            cause: attempt.cause.as_ref().map(|verdict| Cause::new(verdict, clock)),
            also: attempt
                .also
                .iter()
                .map(|verdict| Cause::new(verdict, clock))
                .collect(),
            preexisting: attempt.preexisting,
            unseen: attempt.unseen.clone(),
        }
    }

    /// A failure is every outcome but ok and cancelled.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.outcome != model::Outcome::Ok.name() && self.outcome != model::Outcome::Cancelled.name()
    }
}

/// An id for a connection that says nothing about the kernel's addresses.
pub(super) fn connection_id(exchange: ExchangeId) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut hash = scrambled(exchange.conn.sock.0 ^ scrambled(exchange.conn.since.0));
    let mut id = String::with_capacity(12);
    for _ in 0..12 {
        id.push(char::from(DIGITS[(hash & 31) as usize]));
        hash >>= 5;
    }
    id
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of the number.
fn scrambled(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Log {
    pub(super) fn new(line: &LogLine) -> Self {
        let time = jiff::Timestamp::from_second(line.time).unwrap_or_default();
        Self {
            time: format!("{time:.9}"),
            line: line.text.clone(),
        }
    }
}

impl Request {
    pub(super) fn new(request: &model::Request) -> Self {
        Self {
            method: request.method.clone(),
            path: request.path.clone(),
            host: request.host.clone(),
            status: request.status,
            client: request.client.clone(),
        }
    }
}

impl Client {
    pub(super) fn new(client: model::Client) -> Self {
        Self {
            address: client.address.map(|address| address.to_string()),
            status: client.status,
            cut: client.cut,
        }
    }
}

impl Cause {
    pub(super) fn new(verdict: &model::Verdict, clock: Clock) -> Self {
        Self {
            id: verdict.id.into(),
            confidence: verdict.confidence.name().into(),
            summary: verdict.summary.clone(),
            remedy: verdict.remedy.clone(),
            evidence: evidence(&verdict.evidence, clock),
        }
    }
}

fn evidence(facts: &[model::Evidence], clock: Clock) -> Vec<Evidence> {
    facts
        .iter()
        .map(|fact| Evidence {
            time: fact.at.map(|at| clock.rfc3339(at)),
            source: fact.source.into(),
            text: fact.text.clone(),
            fields: fields(&fact.fields, &["time", "source", "text"]),
        })
        .collect()
}

/// Named details as JSON; one that would hide a field of the record itself gets a `_` behind its name.
fn fields(details: &BTreeMap<&'static str, model::FieldValue>, taken: &[&str]) -> BTreeMap<String, Value> {
    details
        .iter()
        .map(|(name, value)| {
            let name = if taken.contains(name) {
                format!("{name}_")
            } else {
                (*name).to_owned()
            };
            let value = match value {
                model::FieldValue::Number(number) => Value::from(*number),
                model::FieldValue::Text(text) => Value::from(text.as_str()),
                model::FieldValue::Flag(flag) => Value::from(*flag),
            };
            (name, value)
        })
        .collect()
}

impl Event {
    /// The serialised form of an event.
    #[must_use]
    pub fn new(event: &model::NoteEvent, clock: Clock) -> Self {
        Self {
            time: clock.rfc3339(event.at),
            kind: event.kind.into(),
            text: event.text.clone(),
            fields: fields(&event.fields, &["type", "time", "kind", "text"]),
        }
    }

    /// The mark at the end of a rotated file: the trace goes on in the next one.
    #[must_use]
    pub fn continued(at: Ktime, clock: Clock) -> Self {
        Self {
            time: clock.rfc3339(at),
            kind: CONTINUED.into(),
            text: "the trace goes on in the next file".to_owned(),
            fields: BTreeMap::new(),
        }
    }
}

/// The kind of the event that ends a rotated file.
pub const CONTINUED: &str = "continued";

impl Finding {
    /// The serialised form of a finding.
    #[must_use]
    pub fn new(finding: &model::Finding, clock: Clock) -> Self {
        Self {
            id: finding.id.into(),
            about: finding.about.clone(),
            time: finding.at.map(|at| clock.rfc3339(at)),
            summary: finding.summary.clone(),
            remedy: finding.remedy.clone(),
            attempts: finding.attempts,
            evidence: evidence(&finding.evidence, clock),
        }
    }
}

impl Lost {
    /// The serialised form of a loss.
    #[must_use]
    pub fn new(at: Ktime, class: LossClass, count: u64, clock: Clock) -> Self {
        Self {
            time: clock.rfc3339(at),
            class: loss_class(class).into(),
            count,
        }
    }
}

impl Summary {
    /// The serialised form of a summary.
    #[must_use]
    pub fn new(summary: &model::Summary, clock: Clock) -> Self {
        Self {
            time: clock.rfc3339(summary.at),
            attempts: summary.attempts,
            failures: summary.failures,
            in_flight: summary.in_flight,
            answered_with_error: summary.answered_with_error,
            statuses_unread: summary.statuses_unread,
            clients_got: summary.clients_got.clone(),
            counts: summary
                .counts
                .iter()
                .map(|(key, attempts)| Count {
                    upstream: key.upstream.clone(),
                    peer: key.peer.clone(),
                    outcome: key.outcome.into(),
                    cause: key.cause.map(Into::into),
                    attempts: *attempts,
                })
                .collect(),
            latency: summary
                .latency
                .iter()
                .map(|((upstream, of), histogram)| Latency {
                    upstream: upstream.clone(),
                    of: (*of).into(),
                    buckets: buckets(histogram),
                })
                .collect(),
            lost: LOSS_CLASSES
                .iter()
                .map(|class| {
                    let count = summary.lost.get(class).copied().unwrap_or(0);
                    (loss_class(*class).into(), count)
                })
                .collect(),
            complete: summary.complete,
        }
    }
}

fn buckets(histogram: &model::Histogram) -> Vec<Bucket> {
    histogram
        .0
        .iter()
        .filter(|(_, attempts)| **attempts > 0)
        .map(|(power, attempts)| Bucket {
            from_us: if *power == 0 { 0 } else { power_of_two(*power) },
            below_us: power_of_two(power.saturating_add(1)),
            attempts: *attempts,
        })
        .collect()
}

fn power_of_two(power: u8) -> u64 {
    1u64.checked_shl(u32::from(power)).unwrap_or(u64::MAX)
}

/// The JSON Schema of one line of a trace.
#[must_use]
pub fn json_schema() -> Schema {
    let mut schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Line>();
    schema.insert("title".to_owned(), Value::from("A line of a tracer/1 trace"));
    schema
}

#[cfg(test)]
mod tests;
