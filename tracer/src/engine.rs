//! The pure core: inputs with their times go in, attempts with their causes come out.
//!
//! Invariants: [`Engine::apply`] cannot fail and never looks at a clock, a file, a socket or the environment; every
//! table is bounded and counts what it pushes out; the same inputs give the same outputs. An attempt is written once,
//! as soon as a confirmed cause stands that nothing pending could explain, at latest 300 ms of input time after its
//! end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use self::{
    balancer::{Balanced, Balancers},
    correlate::{Configurations, LogJoin, Names, Resolved},
    diagnose::{Diagnosis, Subject, causes},
    findings::Watch,
    message::{Meaning, Said},
    socket::{Ending, Heard},
    stats::Stats,
    surroundings::{
        ANSWER_STANDS, DatagramDropped, Death, Dropped, IcmpSent, MEANING_STANDS, PastFailure, ResetSent,
        ResolverSays, SECOND, Surroundings,
    },
    table::Keyed,
};
use crate::{
    event::{
        Backend, Balancing, ConnId, EndKind, Errno, Event, Exchange, ExchangeId, Follows, Input, Ktime,
        Limits, Line, LineId, LogLine, LossClass, Output, Peer, Pid, Question, RetryOf, head::Head,
    },
    model::{Attempt, Client, Finding, NoteEvent, Outcome, Phase, Request},
};

mod balancer;
mod correlate;
pub mod diagnose;
mod findings;
pub mod message;
mod notes;
mod socket;
mod stats;
mod surroundings;
mod table;
mod text;

/// How long after its end an attempt waits for evidence.
const PATIENCE: u64 = 300_000_000;
/// An attempt whose record came late still waits this long, so that a question can be answered.
const LEAST_PATIENCE: u64 = 100_000_000;
/// The clock must have ticked this often before an attempt is written unsettled.
const LEAST_TICKS: u8 = 2;
/// nginx answers its client in the handler in which an attempt failed: by this many ticks its record has been read.
const CLIENT_TICKS: u8 = 2;
/// nginx tries the next peer within the same handler; a client's next request needs at least a round trip.
const HANDLER: u64 = 20_000_000;
/// How long a text of the log file waits until the kernel's records of its time have been read.
const TEXT_SETTLES: u64 = 50_000_000;
/// What makes a master read its files anew.
const SIGHUP: u8 = 1;
/// Of how many configurations it is kept that lines of level `error` are heard.
const ERRORS_HEARD: usize = 4096;
/// How long a line waits for the exchange that it belongs to, and the reverse.
const JOIN_MEMORY: u64 = 150 * SECOND;

/// What an engine is told once.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Only attempts of these upstreams are written and counted; empty: all.
    pub upstreams: Vec<String>,
    /// Only attempts at these peers are written and counted; empty: all.
    pub peers: Vec<Peer>,
    /// How many entries each table holds at most.
    pub capacity: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            peers: Vec::new(),
            capacity: 65_536,
        }
    }
}

/// The state of a trace.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    now: Ktime,
    /// When the first input came: what is older was there before.
    started: Option<Ktime>,
    /// Wall-clock nanoseconds at boot.
    wall_offset: Option<i128>,
    configurations: Configurations,
    around: Surroundings,
    log_join: LogJoin,
    /// Lines heard, until the exchange they end arrives.
    lines: Keyed<LineId, Line>,
    /// Texts of lines whose attempt is not there yet.
    texts: Keyed<LineId, LogLine>,
    /// Clients that left before their exchange's record arrived.
    early_leavers: Keyed<ExchangeId, (Ktime, bool)>,
    /// The failures of each worker whose client may still get something.
    unanswered: BTreeMap<Pid, Vec<u64>>,
    /// What clients got after attempts that are not here yet.
    early_answers: Keyed<Origin, Client>,
    /// Clients that left while something was under way over a unix socket, whose close the kernel does not show.
    unix_leavers: Keyed<Pid, (Ktime, bool)>,
    /// What was seen of a backend's socket before nginx closed its own.
    early_edges: Keyed<ConnId, Backend>,
    pending: BTreeMap<u64, Pending>,
    by_deadline: BTreeSet<(Ktime, u64)>,
    /// Those of them that the clock has ticked for often enough: at their deadlines they are written.
    ripe: BTreeSet<(Ktime, u64)>,
    by_exchange: BTreeMap<ExchangeId, u64>,
    by_line: BTreeMap<LineId, u64>,
    /// Each worker's last pending `connect()` that failed at once: line and socket follow before its next.
    at_once: BTreeMap<Pid, u64>,
    /// Exchanges whose line is known by its number and has not arrived, and until when they wait.
    awaiting_line: BTreeMap<LineId, (Ktime, Box<Exchange>)>,
    /// Lines that no exchange has claimed: those of unix sockets, whose close the kernel does not show.
    unclaimed: BTreeSet<LineId>,
    /// Failed attempts by what a retry names: number and which try it was.
    tries: Keyed<Origin, (u64, u32)>,
    /// The last lined attempt of each client connection, by worker and `*N`.
    clients: Keyed<(Pid, u64), ClientTry>,
    /// Questions asked lately.
    asked: Keyed<Question, Ktime>,
    /// Those that are not the host's alone to answer, and asked more rarely.
    slow_questions: Allowance,
    asked_slowly: Keyed<Question, Ktime>,
    /// Ports and paths that nginx tried, beside the configured ones.
    tried: BTreeSet<Place>,
    stats: Stats,
    watch: Watch,
    findings_said: findings::Said,
    balancers: Balancers,
    next_number: u64,
    /// An error-log file is read.
    has_tail: bool,
    /// The configurations, by master and beginning, of whose workers a line of level `error` was heard: their log level
    /// lets them through, and another's may not.
    hears_errors: BTreeSet<(Pid, Ktime)>,
    /// Its log function is listened to: see [`Engine::listen`].
    hears_nginx: bool,
    lines_joined: u64,
    lines_heard: u64,
    resolver_connections: u64,
}

/// What a retry refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Origin {
    Exchange(ExchangeId),
    Line(LineId),
}

/// The last attempt nginx made for one client connection.
#[derive(Clone, Debug)]
struct ClientTry {
    number: u64,
    n: u32,
    at: Ktime,
    /// nginx had no peer left: what comes next is another request's.
    is_last: bool,
    upstream: Option<String>,
    upstreams: Vec<String>,
}

/// A security module is asked before TCP is: of what it denies there, the kernel tells no failed connect().
fn is_before_tcp(said: &Said) -> bool {
    said.errno == Some(Errno(13)) && matches!(said.peer, Some(Peer::Tcp(_)))
}

/// Whether a client that left at `at` may be why nginx closed this exchange over a unix socket: nginx closes it in the
/// same handler, and the record is written when the backend has read the end, mostly soon after.
fn may_end_unix(exchange: &Exchange, at: Ktime) -> bool {
    const SOON: u64 = 50_000_000;
    matches!(exchange.peer, Peer::Unix(_))
        && exchange.line.is_none()
        && exchange.end == EndKind::Closed
        && exchange.eof_read_at.is_none()
        && exchange.recv_error.is_none()
        && exchange.last_sent_at.is_some_and(|sent| sent < at)
        && exchange.received == 0
        && at.since(exchange.ended_at) < 1_000_000
        && exchange.ended_at.since(at) < SOON
}

/// A port or path, without the address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Port(u16),
    Path(String),
}

/// An attempt that still waits for evidence.
#[derive(Debug)]
struct Pending {
    attempt: Attempt,
    exchange: Option<Box<Exchange>>,
    line: Option<Line>,
    said: Option<Said>,
    client_left: Option<(Ktime, bool)>,
    client: Option<Client>,
    /// nginx tried another server, or gave its client all that it will get.
    is_followed: bool,
    limits: Limits,
    /// The names that its peer may come from.
    resolved: Resolved,
    /// The peers of its upstream, for an attempt without a peer.
    upstream_peers: BTreeMap<Peer, Option<Balancing>>,
    /// Those that share a `zone` with its worker.
    siblings: Option<(Pid, Ktime)>,
    /// See [`Subject::master`].
    master: Option<Pid>,
    deadline: Ktime,
    /// How often the clock ticked since: a tracer that was starved reads its sources late, and all at once.
    ticks: u8,
    asked: Vec<Question>,
    /// Only a client that left, or a line not yet read, could still change the outcome.
    is_final: bool,
    /// Its worker is not introduced yet, so what its peer is called is not known.
    is_nameless: bool,
    /// `connect()` failed at once; nginx's line about it and its socket join it where there are such.
    is_at_once: bool,
    /// The verdict, when it is settled and only the log line is waited for.
    settled: Option<Diagnosis>,
}

/// Where a try over UDP ended.
fn datagram_phase(said: &Said) -> Phase {
    let action = said.action.as_deref().unwrap_or_default();
    if action.contains("sending to upstream") {
        Phase::Sending
    } else if action.contains("connecting") {
        Phase::Connecting
    } else {
        Phase::Waiting
    }
}

/// The request as nginx sent it to the upstream.
fn sent_request(head: &Head) -> Request {
    Request {
        method: head.method.clone(),
        path: head.path.clone(),
        host: head.host.clone(),
        status: head.status,
        client: head.client.clone(),
    }
}

impl Engine {
    /// An engine that has seen nothing.
    #[must_use]
    pub fn new(options: EngineOptions) -> Self {
        let capacity = options.capacity.max(8);
        Self {
            now: Ktime(0),
            started: None,
            wall_offset: None,
            configurations: Configurations::default(),
            around: Surroundings::new(capacity),
            log_join: LogJoin::new(capacity),
            lines: Keyed::new(capacity, JOIN_MEMORY),
            texts: Keyed::new(capacity, JOIN_MEMORY),
            early_leavers: Keyed::new(capacity.min(1024), SECOND),
            early_answers: Keyed::new(capacity.min(1024), SECOND),
            unanswered: BTreeMap::new(),
            unix_leavers: Keyed::new(capacity.min(1024), 10 * SECOND),
            early_edges: Keyed::new(capacity, 10 * SECOND),
            pending: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            ripe: BTreeSet::new(),
            by_exchange: BTreeMap::new(),
            by_line: BTreeMap::new(),
            at_once: BTreeMap::new(),
            awaiting_line: BTreeMap::new(),
            unclaimed: BTreeSet::new(),
            tries: Keyed::new(capacity, JOIN_MEMORY),
            clients: Keyed::new(capacity.min(16_384), 60 * SECOND),
            asked: Keyed::new(capacity.min(4096), ANSWER_STANDS),
            slow_questions: Allowance::default(),
            asked_slowly: Keyed::new(capacity.min(1024), MEANING_STANDS),
            tried: BTreeSet::new(),
            stats: Stats::default(),
            watch: Watch::new(capacity.min(16_384)),
            findings_said: findings::Said::default(),
            balancers: Balancers::default(),
            next_number: 1,
            has_tail: false,
            hears_errors: BTreeSet::new(),
            hears_nginx: false,
            lines_joined: 0,
            lines_heard: 0,
            resolver_connections: 0,
            options,
        }
    }

    /// Takes in one input and says what follows from it.
    pub fn apply(&mut self, at: Ktime, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        // Sources run side by side, so stamps may jump back a little; the engine's own time does not.
        let now = self.now.max(at);
        self.started.get_or_insert(now);
        if now.since(self.now) > PATIENCE {
            // A starved tracer, whose ticks come late.
            self.join_waiting_texts(now, &mut outputs);
        }
        self.write_overdue(now, &mut outputs);
        self.now = now;
        self.around.tick(now);
        match input {
            Input::Kernel(event) => self.event(event, &mut outputs),
            Input::Hooks(hooks) => {
                self.around.set_hooks(hooks);
                self.listen();
                self.has_tail |= self.around.surely_sees("error-log-file");
            }
            Input::Addresses { netns, addresses } => self.around.set_addresses(netns, addresses),
            Input::Instance(instance) => {
                self.around.works_in(instance.pid, instance.netns);
                self.configurations.set_heard(instance.pid, instance.heard_since);
                for worker in instance.workers {
                    self.configurations.add_worker_if_new(worker, instance.pid);
                }
            }
            Input::Config {
                master,
                since,
                config,
            } => {
                if since == Ktime(0) {
                    self.hears_errors.retain(|(of, _)| *of != master);
                }
                if let Some(changed) = self.configurations.add(master, since, config) {
                    outputs.extend(notes::reloaded(self.now, master, &changed).map(Output::Event));
                }
            }
            Input::Worker {
                worker,
                master,
                started,
            } => self.worker(worker, master, started, &mut outputs),
            Input::LogLine(log) => self.log_line(log, &mut outputs),
            Input::Answer { question, answer } => {
                self.around.answered(question.clone(), answer);
                let waiting: Vec<u64> = self
                    .pending
                    .iter()
                    .filter(|(_, pending)| pending.asked.contains(&question))
                    .map(|(number, _)| *number)
                    .collect();
                for number in waiting {
                    self.evaluate(number, &mut outputs);
                }
            }
            Input::Lost { class, count } => {
                self.around.lost(self.now, class);
                self.lose(class, count, &mut outputs);
            }
            Input::Clock { unix_ns } => self.wall_offset = Some(i128::from(unix_ns) - i128::from(at.0)),
            Input::Tick => {
                self.expire();
                self.say_findings(&mut outputs);
                let now = self.now;
                self.stop_awaiting_lines(|until| until <= now, &mut outputs);
                self.tell_unheard(&mut outputs);
                self.join_waiting_texts(Ktime(now.0.saturating_sub(TEXT_SETTLES)), &mut outputs);
                let open: Vec<u64> = self.pending.keys().copied().collect();
                for number in open {
                    if let Some(pending) = self.pending.get_mut(&number) {
                        pending.ticks = pending.ticks.saturating_add(1);
                        if pending.ticks == LEAST_TICKS {
                            self.ripe.insert((pending.deadline, number));
                        }
                    }
                    self.join_unix_line(number);
                    self.evaluate(number, &mut outputs);
                }
                self.write_overdue(now, &mut outputs);
                let pending = &self.pending;
                self.unanswered.retain(|_, numbers| {
                    numbers.retain(|number| pending.contains_key(number));
                    !numbers.is_empty()
                });
            }
            Input::Detach { in_flight } => self.detach(in_flight, &mut outputs),
        }
        let evicted = self.take_evicted();
        self.lose(LossClass::Queue, evicted, &mut outputs);
        outputs
    }

    /// How many entries each table holds.
    #[must_use]
    pub fn tables(&self) -> Vec<(&'static str, usize)> {
        let mut tables = vec![
            ("log join", self.log_join.len()),
            ("lines", self.lines.len()),
            ("texts", self.texts.len()),
            ("early leavers", self.early_leavers.len()),
            ("early answers", self.early_answers.len()),
            ("unanswered", self.unanswered.values().map(Vec::len).sum()),
            ("unix leavers", self.unix_leavers.len()),
            ("early edges", self.early_edges.len()),
            ("pending", self.pending.len()),
            ("by deadline", self.by_deadline.len()),
            ("ripe", self.ripe.len()),
            ("by exchange", self.by_exchange.len()),
            ("by line", self.by_line.len()),
            ("at once", self.at_once.len()),
            ("awaiting line", self.awaiting_line.len()),
            ("unclaimed", self.unclaimed.len()),
            ("tries", self.tries.len()),
            ("clients", self.clients.len()),
            ("asked", self.asked.len()),
            ("asked slowly", self.asked_slowly.len()),
            ("tried", self.tried.len()),
            ("stats", self.stats.len()),
            ("watch", self.watch.len()),
            ("balancers", self.balancers.len()),
            ("hears errors", self.hears_errors.len()),
        ];
        tables.extend(self.configurations.tables());
        tables.extend(self.around.tables());
        tables
    }

    /// How many entries all tables hold together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables().iter().map(|(_, n)| n).sum()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn event(&mut self, event: Event, outputs: &mut Vec<Output>) {
        match event {
            Event::Exchange(exchange) => {
                if let (Peer::Tcp(address), Some(_)) = (&exchange.peer, exchange.connect_at) {
                    self.around.connected(exchange.worker, address.is_ipv6());
                }
                self.exchange(exchange, outputs);
            }
            Event::Line(line) => {
                self.around.worker_told(line.worker, line.at);
                self.line(line, outputs);
            }
            Event::SelinuxDenied(denial) => self.around.denied(denial),
            Event::ListenerOpened { at, listener } => {
                if self.is_relevant(&listener.address) {
                    outputs.push(Output::Event(notes::listener(at, "listener-open", &listener)));
                }
                self.around.listener_opened(at, listener);
            }
            Event::ListenerClosed { at, listener } => {
                if self.is_relevant(&listener.address) {
                    outputs.push(Output::Event(notes::listener(at, "listener-closed", &listener)));
                }
                self.around.listener_closed(at, listener);
            }
            Event::ListenerFound { listener, .. } => self.around.listener_found(listener),
            Event::ListenerQueue { at, conn, listener } => self.around.queue_read(at, conn, listener),
            Event::ResetSent {
                at,
                netns,
                tuple,
                reason,
                by,
                flags,
                conn,
            } => {
                self.around.reset_sent(ResetSent {
                    at,
                    netns,
                    tuple,
                    reason,
                    by,
                    flags,
                    conn,
                });
            }
            Event::DatagramDropped {
                at,
                netns,
                tuple,
                reason,
            } => self.around.datagram_dropped(DatagramDropped {
                at,
                netns,
                tuple,
                reason,
            }),
            Event::Dropped {
                at,
                netns,
                tuple,
                flags,
                reason,
                location,
                conn,
            } => {
                self.around.dropped(Dropped {
                    at,
                    netns,
                    tuple,
                    flags,
                    reason,
                    location,
                    conn,
                });
            }
            Event::IcmpSent {
                at,
                netns,
                tuple,
                kind,
                code,
                conn,
            } => {
                self.around.icmp_sent(IcmpSent {
                    at,
                    netns,
                    tuple,
                    kind,
                    code,
                    conn,
                });
            }
            Event::BackendEdge {
                exchange, backend, ..
            } => {
                let Some(number) = self.last_pending_on(exchange.conn) else {
                    let backend = match self.early_edges.last(&exchange.conn) {
                        Some(before) => merged(before.clone(), *backend),
                        None => *backend,
                    };
                    self.early_edges.push(self.now, exchange.conn, backend);
                    return;
                };
                if let Some(known) = self
                    .pending
                    .get_mut(&number)
                    .and_then(|pending| pending.exchange.as_mut())
                {
                    known.backend = Some(match known.backend.take() {
                        Some(before) => merged(before, *backend),
                        None => *backend,
                    });
                    if let Some(pending) = self.pending.get_mut(&number) {
                        pending.settled = None;
                    }
                }
                self.evaluate(number, outputs);
            }
            Event::ClientLeft {
                at,
                worker,
                exchange: None,
                reset,
            } => match self.unix_pending_at(worker, at) {
                Some(number) => self.client_left(number, at, reset, outputs),
                None => self.unix_leavers.push(self.now, worker, (at, reset)),
            },
            Event::ClientLeft {
                at,
                exchange: Some(exchange),
                reset,
                ..
            } => match self.by_exchange.get(&exchange).copied() {
                Some(number) => self.client_left(number, at, reset, outputs),
                None => self.early_leavers.push(self.now, exchange, (at, reset)),
            },
            Event::ClientAnswered {
                at: _,
                worker: _,
                of,
                client,
                status,
                cut,
            } => self.client_answered(of, client, status, cut, outputs),
            Event::ProcessExited {
                at,
                task,
                parent,
                signalled_by,
                told,
                is_nginx: _,
            } => {
                // A fault is a signal that a process sends itself.
                let signalled_by = signalled_by.filter(|sender| sender.pid != task.pid);
                let told = told.filter(|told| told.by.pid != task.pid && surroundings::is_recent(told));
                let death = Death {
                    at,
                    task,
                    parent,
                    signalled_by,
                    told,
                };
                outputs.extend(self.note_death(&death).map(Output::Event));
                self.configurations.ended(death.task.pid, at);
                self.around.serves_no_more(death.task.pid);
                self.around.died(death);
            }
            Event::Signalled { at, pid, signal, by } => {
                if signal == SIGHUP {
                    self.configurations.told_to_reload(pid, at);
                }
                self.around.signalled(at, pid, signal, by);
            }
            Event::ConnectFailed {
                at,
                worker,
                peer,
                errno,
            } => {
                self.around.worker_told(worker, at);
                self.connect_failed(at, worker, peer, errno, outputs);
            }
            // Membership was decided in the kernel; whether a child is a worker, which configuration it has, and what
            // an unknown record meant, the source knows.
            Event::Forked { .. } | Event::Executed { .. } | Event::Unknown { .. } => {}
        }
    }

    /// The attempt still pending that ended last on this connection.
    fn last_pending_on(&self, conn: ConnId) -> Option<u64> {
        let on = |number| ExchangeId { conn, number };
        let (_, number) = self.by_exchange.range(on(0)..=on(u32::MAX)).next_back()?;
        Some(*number)
    }

    /// The only attempt over a unix socket of this worker that may have ended because a client left at `at`.
    fn unix_pending_at(&self, worker: Pid, at: Ktime) -> Option<u64> {
        let mut fits = self.pending.iter().filter(|(_, pending)| {
            pending.exchange.as_deref().is_some_and(|exchange| {
                exchange.worker == worker && pending.client_left.is_none() && may_end_unix(exchange, at)
            })
        });
        let (number, _) = fits.next()?;
        fits.next().is_none().then_some(*number)
    }

    fn worker(&mut self, worker: Pid, master: Pid, started: Ktime, outputs: &mut Vec<Output>) {
        let is_new = self.configurations.add_worker(worker, master, started);
        // A process that is its own master is no worker of anybody.
        if is_new && worker != master && self.started.is_some_and(|start| started > start) {
            outputs.push(Output::Event(notes::worker_started(started, worker, master)));
        }
        self.introduce(worker, outputs);
    }

    /// What a worker did before it was known whose it is waits for its names.
    fn introduce(&mut self, worker: Pid, outputs: &mut Vec<Output>) {
        let waiting: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.is_nameless && pending.attempt.worker == worker)
            .map(|(number, _)| *number)
            .collect();
        for number in waiting {
            self.name(number);
            self.read_again(number);
            self.evaluate(number, outputs);
        }
    }

    /// Gives a pending attempt the names of its worker's configuration.
    fn name(&mut self, number: u64) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let is_datagram = pending.is_datagram();
        let attempt = &mut pending.attempt;
        pending.is_nameless = !self.configurations.is_process(attempt.worker);
        if is_datagram {
            pending.master = Some(self.configurations.master_of(attempt.worker));
        }
        if let Some(peer) = &attempt.peer {
            let scheme = attempt.log.as_ref().and_then(correlate::scheme);
            let names = if is_datagram {
                self.configurations.names_over_udp(attempt.worker, peer)
            } else {
                self.configurations.names(attempt.worker, peer, scheme)
            };
            attempt.upstream = names.upstream;
            attempt.upstreams = names.upstreams;
            attempt.server = names.server;
            attempt.via = names.via;
            pending.limits = names.limits;
        }
        self.find_upstream_peers(number);
        self.find_resolved(number);
    }

    /// A connect that failed may have gone to an address that a name does not mean any more.
    fn find_resolved(&mut self, number: u64) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let (worker, outcome) = (pending.attempt.worker, pending.attempt.outcome);
        if outcome == Outcome::Unresolved {
            pending.resolved = self.configurations.resolvers(worker);
        } else if outcome == Outcome::Cancelled {
            pending.resolved.cuts_at_shutdown = self.configurations.cuts_at_shutdown(worker);
        } else if outcome.is_failure()
            && !pending.is_datagram()
            && let Some(peer) = &pending.attempt.peer
        {
            pending.resolved = self.configurations.resolved(worker, peer);
        }
    }

    /// Whether a listener's place is one that nginx is configured for or has tried.
    fn is_relevant(&self, address: &Peer) -> bool {
        self.configurations.mentions(address) || self.tried.contains(&place(address))
    }

    fn note_death(&self, death: &Death) -> Option<NoteEvent> {
        if self.configurations.is_running(death.task.pid) {
            return Some(notes::ended(death, "worker-exit"));
        }
        let served = self
            .around
            .served_at(death.task.pid)
            .any(|address| self.is_relevant(address));
        match (death.task.oom, served) {
            (true, _) => Some(notes::ended(death, "oom-kill")),
            (false, true) => Some(notes::ended(death, "process-exit")),
            (false, false) => None,
        }
    }

    // Exchanges.

    fn exchange(&mut self, exchange: Box<Exchange>, outputs: &mut Vec<Output>) {
        if let Peer::Tcp(address) = exchange.peer
            && self.configurations.is_resolver(exchange.worker, address)
        {
            self.resolver_connections += 1;
            return;
        }
        self.around.is_home(exchange.netns);
        // The record of an exchange and that of the line that ended it may come in either order.
        if let Some(line) = exchange.line.filter(|id| self.lines.last(id).is_none())
            && self.awaiting_line.len() < self.options.capacity
            && !self.awaiting_line.contains_key(&line)
        {
            let until = Ktime(self.now.0.saturating_add(LEAST_PATIENCE));
            self.awaiting_line.insert(line, (until, exchange));
            return;
        }
        self.read_exchange(exchange, outputs);
    }

    /// Goes on with exchanges whose line did not come in time, and at the end of the trace with all.
    fn stop_awaiting_lines(&mut self, is_due: impl Fn(Ktime) -> bool, outputs: &mut Vec<Output>) {
        let due: Vec<LineId> = self
            .awaiting_line
            .iter()
            .filter(|(_, (until, _))| is_due(*until))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some((_, exchange)) = self.awaiting_line.remove(&id) {
                self.read_exchange(exchange, outputs);
            }
        }
    }

    fn read_exchange(&mut self, mut exchange: Box<Exchange>, outputs: &mut Vec<Output>) {
        self.remember_place(&exchange.peer);
        self.around.shook_hands(&exchange);
        if let Some(task) = exchange
            .backend
            .as_ref()
            .and_then(|backend| backend.task.as_ref())
        {
            self.around.serves(task.pid, &exchange.peer);
            if let Peer::Unix(path) = &exchange.peer {
                self.around.served(path, task);
            }
        }
        if let Some(number) = self.failed_at_once(&exchange) {
            return self.merge_into_attempt(number, exchange, outputs);
        }
        if exchange.late && exchange.line.is_none() {
            self.join_late_line(&mut exchange);
        }
        let (line, said) = self.line_of(&exchange);
        if let (Some(line), Some(said)) = (&line, &said)
            && said.meaning.stands_alone()
        {
            // connect() began and failed in one call: the line made the attempt, the socket adds what it knows.
            // Already written: the line said it all.
            if let Some(number) = self.by_line.get(&line.id).copied() {
                self.merge_into_attempt(number, exchange, outputs);
            }
            return;
        }
        if said.as_ref().is_some_and(|said| said.meaning == Meaning::Connect) && exchange.received > 0 {
            // nginx took the kept connection for its next request and found it dead before it sent a byte.
            let (answered, unsent) = socket::split_at_reuse(*exchange);
            self.read_exchange(Box::new(answered), outputs);
            exchange = Box::new(unsent);
        }
        self.judge_exchange(exchange, line, said, None, outputs);
    }

    /// Reads an exchange together with what nginx said at its end.
    fn judge_exchange(
        &mut self,
        mut exchange: Box<Exchange>,
        line: Option<Line>,
        said: Option<Said>,
        log: Option<LogLine>,
        outputs: &mut Vec<Output>,
    ) {
        self.goes_on(exchange.worker, exchange.began_at, outputs);
        if let Some(early) = self.early_edges.last(&exchange.id.conn) {
            let early = early.clone();
            exchange.backend = Some(match exchange.backend.take() {
                Some(before) => merged(before, early),
                None => early,
            });
        }
        let client_left = self
            .early_leavers
            .last(&exchange.id)
            .or_else(|| {
                self.unix_leavers
                    .last(&exchange.worker)
                    .filter(|(at, _)| may_end_unix(&exchange, *at))
            })
            .copied();
        let names = self.configurations.names(exchange.worker, &exchange.peer, None);
        let heard = self.heard(said.as_ref(), &exchange);
        let received = exchange.received;
        socket::until_given_up(&mut exchange, said.as_ref());
        socket::of_last_request(&mut exchange, said.as_ref());
        let via = names.via.as_deref();
        let Some(ending) = self.read_ending(&exchange, heard, client_left.is_some(), &names.limits, via)
        else {
            return;
        };
        // Kept connections are told apart by their requests; what the line rule joined belongs to this one.
        if exchange.end != EndKind::Closed {
            exchange.line = exchange.line.filter(|_| said.is_some());
        }
        let limits = names.limits.clone();
        let mut attempt = self.attempt_of(&exchange, &ending, names, said.as_ref());
        attempt.bytes_received = Some(received);
        let may_have_stalled = socket::may_have_stalled(&exchange, &limits);
        let is_final = ending.is_final && !may_have_stalled;
        let is_done = attempt.outcome == Outcome::Ok && (is_final || !(self.has_tail || may_have_stalled));
        let is_nameless = !self.configurations.is_process(exchange.worker);
        if is_done && !is_nameless {
            return self.write(attempt, outputs);
        }
        let number = attempt.number;
        self.tries.push(
            self.now,
            Origin::Exchange(exchange.id),
            (number, attempt.retry.map_or(1, |(_, n)| n)),
        );
        let client = self.early_answers.last(&Origin::Exchange(exchange.id)).copied();
        let deadline = self.deadline(exchange.ended_at);
        let log = log.or_else(|| exchange.line.and_then(|id| self.texts.last(&id).cloned()));
        let pending = Pending {
            attempt,
            exchange: Some(exchange),
            line,
            said,
            client_left,
            client,
            is_followed: false,
            limits,
            resolved: Resolved::default(),
            upstream_peers: BTreeMap::new(),
            siblings: None,
            master: None,
            deadline,
            ticks: 0,
            asked: Vec::new(),
            is_final,
            is_nameless,
            is_at_once: false,
            settled: None,
        };
        self.add_pending(number, pending, log, outputs);
    }

    /// Gives an exchange over a unix socket, whose close the kernel does not show, the oldest line of its worker that
    /// fits and that no other exchange claimed.
    fn join_unix_line(&mut self, number: u64) {
        let Some(pending) = self.pending.get(&number) else {
            return;
        };
        let (None, Some(exchange)) = (&pending.said, pending.exchange.as_deref()) else {
            return;
        };
        if !matches!(exchange.peer, Peer::Unix(_)) {
            return;
        }
        let candidates = self
            .unclaimed
            .iter()
            .filter_map(|id| self.lines.last(id))
            .filter(|line| {
                let text = self.texts.last(&line.id);
                text.is_none_or(|text| correlate::names_peer(text, &exchange.peer))
                    && socket::may_end_silently(exchange, line, Said::heard(line).meaning, &pending.limits)
            });
        let Some(line) = candidates.min_by_key(|line| line.at).cloned() else {
            return;
        };
        self.unclaimed.remove(&line.id);
        self.lines_joined += 1;
        self.by_line.insert(line.id, number);
        let log = self.texts.last(&line.id).cloned();
        if let Some(pending) = self.pending.get_mut(&number) {
            // nginx closed right after this line; the record came when the backend noticed.
            if let Some(exchange) = &mut pending.exchange {
                exchange.ended_at = exchange.ended_at.min(line.at);
                exchange.line = Some(line.id);
            }
            pending.said = Some(Said::heard(&line));
            pending.line = Some(line);
        }
        if let Some(log) = log {
            self.set_log(number, log);
        }
        self.read_again(number);
    }

    /// Gives an exchange whose close was seen late the oldest line of its worker that fits and that no other exchange
    /// claimed: the kernel half joins a line to the close that is the worker's very next own event.
    fn join_late_line(&self, exchange: &mut Exchange) {
        let limits = self
            .configurations
            .names(exchange.worker, &exchange.peer, None)
            .limits;
        let fits = |line: &&Line| {
            let text = self.texts.last(&line.id);
            text.is_none_or(|text| correlate::names_peer(text, &exchange.peer))
                && socket::may_end_late(exchange, line, Said::heard(line).meaning, &limits)
        };
        let unclaimed = self.unclaimed.iter().filter_map(|id| self.lines.last(id));
        if let Some(line) = unclaimed.filter(fits).min_by_key(|line| line.at) {
            exchange.line = Some(line.id);
            // What came after a timer's line is left out where its exchange is read.
            if Said::heard(line).meaning != Meaning::TimedOut {
                exchange.ended_at = line.at;
            }
        }
    }

    /// The line that the kernel half joined to an exchange, when it is one that can belong to it.
    fn line_of(&mut self, exchange: &Exchange) -> (Option<Line>, Option<Said>) {
        let Some(line) = exchange.line.and_then(|id| self.lines.last(&id)) else {
            return (None, None);
        };
        let lone = self
            .by_line
            .get(&line.id)
            .and_then(|number| self.pending.get(number));
        if lone.is_some_and(Pending::is_datagram) {
            return (None, None);
        }
        let text = self.texts.last(&line.id).filter(|_| message::is_unread(line));
        if message::is_unread(line) && text.is_none() {
            // Its text in the log file is still to come.
            return (Some(line.clone()), None);
        }
        let said = match text {
            Some(text) => Said {
                line: Some(line.id),
                ..Said::logged(text)
            },
            None => Said::heard(line),
        };
        let is_same_peer = said.peer.as_ref().is_none_or(|peer| *peer == exchange.peer);
        let fits = match said.meaning {
            Meaning::Nothing => false,
            Meaning::ConnectAtOnce => is_same_peer && !socket::is_established(exchange),
            // No socket of an upstream follows these.
            Meaning::Bind
            | Meaning::Socket
            | Meaning::WorkerConnections
            | Meaning::NoLiveUpstreams
            | Meaning::Unresolved
            | Meaning::Datagram => false,
            _ => line.worker == exchange.worker,
        };
        if fits {
            self.lines_joined += u64::from(!said.meaning.stands_alone());
            self.unclaimed.remove(&line.id);
            (Some(line.clone()), Some(said))
        } else {
            (None, None)
        }
    }

    /// The attempt of a `connect()` that failed at once and left this socket behind.
    fn failed_at_once(&self, exchange: &Exchange) -> Option<u64> {
        let is_its = |pending: &&Pending| {
            pending.exchange.is_none()
                && pending.attempt.peer.as_ref() == Some(&exchange.peer)
                && (exchange.began_at..=exchange.ended_at).contains(&pending.attempt.ended_at)
        };
        if socket::is_established(exchange) {
            return None;
        }
        let number = *self.at_once.get(&exchange.worker)?;
        self.pending.get(&number).filter(is_its).map(|_| number)
    }

    /// The kernel saw the socket of a connect that failed at once: it joins the attempt that is there already.
    fn merge_into_attempt(&mut self, number: u64, exchange: Box<Exchange>, outputs: &mut Vec<Output>) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let attempt = &mut pending.attempt;
        attempt.began_at = exchange.began_at.min(attempt.ended_at);
        attempt.total_us = attempt.ended_at.micros_since(attempt.began_at);
        attempt.local = exchange.local.filter(|local| local.port() != 0);
        attempt.connection = Some(exchange.id);
        attempt.closed_by = Some(crate::model::ClosedBy::Kernel);
        if attempt.retry.is_none() {
            attempt.retry = find_retry(&self.tries, exchange.retry_of);
        }
        let n = attempt.retry.map_or(1, |(_, n)| n);
        self.tries
            .push(self.now, Origin::Exchange(exchange.id), (number, n));
        self.by_exchange.insert(exchange.id, number);
        pending.exchange = Some(exchange);
        self.evaluate(number, outputs);
    }

    /// What nginx was heard to say about an exchange's end.
    fn heard<'a>(&self, said: Option<&'a Said>, exchange: &Exchange) -> Heard<'a> {
        match said {
            Some(said) => Heard::Line(said),
            // Its line was there and is lost to us: judge by the kernel alone.
            None if exchange
                .line
                .is_some_and(|id| self.lines.last(&id).is_none_or(message::is_unread)) =>
            {
                Heard::Deaf
            }
            None if self.hears(exchange.worker, exchange.ended_at) => Heard::Silence {
                is_proven: self.hears_errors(exchange.worker),
            },
            None => Heard::Deaf,
        }
    }

    /// What the exchange came to, by what can be seen here.
    fn read_ending(
        &self,
        exchange: &Exchange,
        heard: Heard<'_>,
        client_left: bool,
        limits: &Limits,
        via: Option<&str>,
    ) -> Option<Ending> {
        if self.around.sees("bytes") {
            socket::read(exchange, heard, client_left, limits, via)
        } else {
            socket::read_without_bytes(exchange, heard, limits, via)
        }
    }

    /// Whether this worker's log level is known to let lines of level `error` through.
    fn hears_errors(&self, worker: Pid) -> bool {
        let generation = self.configurations.generation_of(worker);
        self.hears_errors.contains(&generation)
    }

    fn hears_nginx(&self) -> bool {
        self.hears_nginx
    }

    /// Finds out whether nginx's log function is listened to: asked about every attempt, so worked out once.
    fn listen(&mut self) {
        let is_heard = self.around.surely_sees("nginx-log") || !self.hears_errors.is_empty();
        self.hears_nginx = self.around.sees("nginx-log") && is_heard;
    }

    /// Whether a line of this worker would have been heard at that time.
    fn hears(&self, worker: Pid, at: Ktime) -> bool {
        let since = self.configurations.heard_since(worker);
        self.hears_nginx() && since.is_some_and(|since| at >= since)
    }

    /// Whether an attempt's line would have been heard.
    fn hears_of(&self, attempt: &Attempt) -> bool {
        self.hears(attempt.worker, attempt.ended_at)
    }

    fn attempt_of(
        &mut self,
        exchange: &Exchange,
        ending: &Ending,
        names: Names,
        said: Option<&Said>,
    ) -> Attempt {
        let ended_at = socket::ended_at(exchange, ending.outcome);
        let is_unix = matches!(exchange.peer, Peer::Unix(_));
        let reused = exchange.id.number > 1 || (exchange.preexisting && exchange.connect_at.is_none());
        let since = |at: Option<Ktime>, earlier: Option<Ktime>| Some(at?.micros_since(earlier?));
        let sent_at = exchange
            .last_sent_at
            .filter(|sent| exchange.first_received_at.is_none_or(|first| *sent <= first));
        let backend_accepted = exchange
            .backend
            .as_ref()
            .and_then(|backend| backend.accepted_at.or(backend.first_read_at));
        Attempt {
            number: self.new_number(),
            began_at: exchange.began_at,
            ended_at,
            worker: exchange.worker,
            upstream: names.upstream,
            upstreams: names.upstreams,
            server: names.server,
            peer: Some(exchange.peer.clone()),
            local: exchange.local,
            via: names.via,
            outcome: ending.outcome,
            phase: ending.phase,
            errno: ending.errno,
            nginx_says: said.map(|said| said.text.clone()),
            log: None,
            reused,
            exchange: exchange.id.number,
            idle_us: since(Some(exchange.began_at), exchange.previous_at).filter(|_| reused),
            connect_us: since(exchange.established_at, exchange.connect_at).filter(|_| !is_unix),
            accept_us: since(backend_accepted, exchange.connect_at),
            // What came in a handshake is no byte of an answer.
            first_byte_us: since(
                exchange
                    .first_received_at
                    .filter(|_| ending.phase != Phase::Handshaking),
                sent_at.or(exchange.first_sent_at),
            ),
            total_us: ended_at.micros_since(exchange.began_at),
            bytes_sent: Some(exchange.sent),
            bytes_acked: Some(exchange.acked).filter(|_| !is_unix),
            bytes_received: Some(exchange.received),
            bytes_unread: Some(exchange.unread),
            syn_retransmits: Some(exchange.syn_retransmits).filter(|_| !is_unix),
            retransmits: Some(exchange.retransmits).filter(|_| !is_unix),
            rtt_us: exchange.rtt_us,
            closed_by: ending.closed_by,
            request: exchange.head.as_deref().map(sent_request),
            client: None,
            retry: find_retry(&self.tries, exchange.retry_of),
            connection: Some(exchange.id),
            cause: None,
            also: Vec::new(),
            preexisting: exchange.preexisting,
            unseen: Vec::new(),
        }
    }

    fn client_left(&mut self, number: u64, at: Ktime, reset: bool, outputs: &mut Vec<Output>) {
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.client_left = Some((at, reset));
        }
        self.read_again(number);
        self.evaluate(number, outputs);
    }

    /// What the client got after an attempt: an answer, and perhaps not all of it.
    fn client_answered(
        &mut self,
        of: RetryOf,
        address: Option<SocketAddr>,
        status: Option<u16>,
        cut: bool,
        outputs: &mut Vec<Output>,
    ) {
        let (origin, number) = match of {
            RetryOf::Exchange(id) => (Origin::Exchange(id), self.by_exchange.get(&id)),
            RetryOf::Line(id) => (Origin::Line(id), self.by_line.get(&id)),
        };
        let pending = number.and_then(|number| self.pending.get_mut(number));
        let before = match &pending {
            Some(pending) => pending.client,
            None => self.early_answers.last(&origin).copied(),
        };
        let client = Client {
            address,
            status: status.or(before.and_then(|before| before.status)),
            cut,
        };
        match (pending, number.copied()) {
            (Some(pending), Some(number)) => {
                pending.client = Some(client);
                pending.is_followed = cut || pending.attempt.bytes_received.is_none_or(|bytes| bytes == 0);
                self.evaluate(number, outputs);
            }
            _ => self.early_answers.push(self.now, origin, client),
        }
    }

    /// A worker began something at `at`: what its earlier failures gave their clients is here, or was nothing.
    fn goes_on(&mut self, worker: Pid, at: Ktime, outputs: &mut Vec<Output>) {
        for number in self.unanswered.remove(&worker).unwrap_or_default() {
            match self.pending.get_mut(&number) {
                Some(pending) if pending.attempt.ended_at <= at => {
                    pending.is_followed = true;
                    self.evaluate(number, outputs);
                }
                Some(_) => self.unanswered.entry(worker).or_default().push(number),
                None => {}
            }
        }
    }

    /// Something was learnt about a pending attempt that may change its outcome.
    fn read_again(&mut self, number: u64) {
        let Some(mut pending) = self.pending.remove(&number) else {
            return;
        };
        let is_alone = pending.stands_alone();
        if let Some(exchange) = pending.exchange.as_deref_mut().filter(|_| !is_alone) {
            socket::of_last_request(exchange, pending.said.as_ref());
            let heard = self.heard(pending.said.as_ref(), exchange);
            let via = pending.attempt.via.as_deref();
            let has_left = pending.client_left.is_some();
            if let Some(ending) = self.read_ending(exchange, heard, has_left, &pending.limits, via) {
                pending.attempt.ended_at = socket::ended_at(exchange, ending.outcome);
                pending.attempt.total_us = pending.attempt.ended_at.micros_since(pending.attempt.began_at);
                pending.attempt.outcome = ending.outcome;
                pending.attempt.phase = ending.phase;
                pending.attempt.errno = ending.errno;
                pending.attempt.closed_by = ending.closed_by;
                pending.is_final = ending.is_final;
            }
        }
        pending.attempt.nginx_says = pending.nginx_says();
        pending.settled = None;
        self.pending.insert(number, pending);
    }

    // Lines.

    fn line(&mut self, line: Line, outputs: &mut Vec<Output>) {
        let said = Said::heard(&line);
        if message::is_by_resolver(&line.message, line.action.as_deref(), line.connection.is_some()) {
            self.resolver_says(line.worker, line.at, &said);
        }
        let id = line.id;
        if line.level == 4 && !self.hears_errors(line.worker) {
            if self.hears_errors.len() >= ERRORS_HEARD {
                self.hears_errors.pop_first();
            }
            self.hears_errors
                .insert(self.configurations.generation_of(line.worker));
            self.listen();
        }
        self.lines.push(self.now, id, line.clone());
        if said.meaning != Meaning::Nothing {
            self.upstream_line(line, said, outputs);
        } else if message::is_unread(&line)
            && let Some(log) = self.log_join.heard(self.now, &line)
        {
            self.unread_line(line, log, outputs);
        }
        if let Some((_, exchange)) = self.awaiting_line.remove(&id) {
            self.read_exchange(exchange, outputs);
        }
    }

    fn upstream_line(&mut self, line: Line, said: Said, outputs: &mut Vec<Output>) {
        let log = self.log_join.heard(self.now, &line);
        // That it is about UDP only the file tells.
        let said = match &log {
            Some(log) if log.is_udp => Said {
                line: Some(line.id),
                ..Said::logged(log)
            },
            _ => said,
        };
        if said.meaning.stands_alone() {
            if let Some(number) = self.awaiting_its_line(&line, &said) {
                self.join_line_at_once(number, line, said, log, outputs);
            } else if !self.is_resolver_line(&line, &said) {
                self.lone_attempt(
                    line.at,
                    line.worker,
                    line.connection,
                    said,
                    Some(line),
                    log,
                    outputs,
                );
            }
            return;
        }
        self.lines_heard += 1;
        self.unclaimed.insert(line.id);
        if self.unclaimed.len() > self.options.capacity {
            self.unclaimed.pop_first();
        }
        if let Some(log) = log {
            self.texts.push(self.now, line.id, log);
        }
    }

    /// The log file has the text of a line that could not be read where it was heard.
    fn unread_line(&mut self, line: Line, log: LogLine, outputs: &mut Vec<Output>) {
        let said = Said {
            line: Some(line.id),
            ..Said::logged(&log)
        };
        if !said.meaning.stands_alone() {
            self.texts.push(self.now, line.id, log);
        } else if !self.is_resolver_line(&line, &said) {
            let (at, worker, connection) = (line.at, line.worker, line.connection);
            self.lone_attempt(at, worker, connection, said, Some(line), Some(log), outputs);
        }
    }

    /// The log file tells that a line that was heard is about UDP.
    fn datagram_line(&mut self, id: LineId, log: LogLine, outputs: &mut Vec<Output>) {
        let said = Said {
            line: Some(id),
            ..Said::logged(&log)
        };
        let line = self.lines.last(&id).cloned();
        let at = line.as_ref().map_or(self.now, |line| line.at);
        let (worker, connection) = (log.pid, log.connection);
        self.lone_attempt(at, worker, connection, said, line, Some(log), outputs);
    }

    fn is_resolver_line(&self, line: &Line, said: &Said) -> bool {
        matches!(said.peer, Some(Peer::Tcp(address)) if self.configurations.is_resolver(line.worker, address))
    }

    /// A line that is the whole attempt: no socket of it was ever seen.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one line, which comes from two sources"
    )]
    fn lone_attempt(
        &mut self,
        at: Ktime,
        worker: Pid,
        connection: Option<u64>,
        said: Said,
        line: Option<Line>,
        log: Option<LogLine>,
        outputs: &mut Vec<Output>,
    ) {
        let peer = said
            .peer
            .clone()
            .filter(|_| matches!(said.meaning, Meaning::ConnectAtOnce | Meaning::Datagram));
        let is_datagram = said.meaning == Meaning::Datagram;
        let names = peer.as_ref().map_or_else(Names::default, |peer| {
            if is_datagram {
                self.configurations.names_over_udp(worker, peer)
            } else {
                self.configurations.names(worker, peer, None)
            }
        });
        self.goes_on(worker, at, outputs);
        let before = self.tried_before(line.as_ref(), worker, connection, at);
        if let Some(peer) = &peer {
            self.remember_place(peer);
        }
        let mut attempt = Attempt {
            number: self.new_number(),
            began_at: at,
            ended_at: at,
            worker,
            upstream: names.upstream,
            upstreams: names.upstreams,
            server: names.server,
            peer,
            local: None,
            via: names.via,
            outcome: socket::outcome_of_lone(&said),
            phase: match said.meaning {
                Meaning::Unresolved => Phase::Resolving,
                Meaning::Datagram => datagram_phase(&said),
                _ => Phase::Connecting,
            },
            errno: said.errno,
            nginx_says: Some(said.text.clone()).filter(|text| !text.is_empty()),
            log: None,
            reused: false,
            exchange: 1,
            idle_us: None,
            connect_us: None,
            accept_us: None,
            first_byte_us: None,
            total_us: 0,
            bytes_sent: None,
            bytes_acked: None,
            bytes_received: None,
            bytes_unread: None,
            syn_retransmits: None,
            retransmits: None,
            rtt_us: None,
            closed_by: None,
            request: None,
            client: None,
            retry: before
                .as_ref()
                .map(|before| (before.number, before.n.saturating_add(1))),
            connection: None,
            cause: None,
            also: Vec::new(),
            preexisting: false,
            unseen: Vec::new(),
        };
        match (said.meaning, before, &said.argument) {
            (Meaning::NoLiveUpstreams, Some(before), _) => {
                attempt.upstream = before.upstream;
                attempt.upstreams = before.upstreams;
            }
            // To nginx such a name is an upstream of its own.
            (Meaning::Unresolved, _, Some(name)) => {
                attempt.upstream = Some(name.clone());
                attempt.upstreams = vec![name.clone()];
                attempt.server = Some(name.clone());
            }
            _ => {}
        }
        let number = attempt.number;
        let is_at_once = said.is_by_kernel();
        if let Some(line) = &line {
            self.tries.push(
                self.now,
                Origin::Line(line.id),
                (number, attempt.retry.map_or(1, |(_, n)| n)),
            );
        }
        let client = line
            .as_ref()
            .and_then(|line| self.early_answers.last(&Origin::Line(line.id)))
            .copied();
        let pending = Pending {
            attempt,
            exchange: None,
            line,
            said: Some(said),
            client_left: None,
            client,
            is_followed: false,
            limits: names.limits,
            resolved: Resolved::default(),
            upstream_peers: BTreeMap::new(),
            siblings: None,
            master: Some(self.configurations.master_of(worker)),
            deadline: self.deadline(at),
            ticks: 0,
            asked: Vec::new(),
            is_final: true,
            is_nameless: !self.configurations.is_process(worker),
            is_at_once,
            settled: None,
        };
        self.add_pending(number, pending, log, outputs);
    }

    /// The attempt that a line's own attempt is a retry of. Where the line does not tell what it came right after, it is
    /// that of the same client's connection a moment ago, which may have been of another request.
    fn tried_before(
        &self,
        line: Option<&Line>,
        worker: Pid,
        connection: Option<u64>,
        at: Ktime,
    ) -> Option<ClientTry> {
        let of_client = connection.and_then(|connection| self.clients.last(&(worker, connection)));
        let before = match line.and_then(|line| line.follows) {
            Some(Follows::Other) => None,
            Some(Follows::Failure(of)) => {
                let (number, _) = find_retry(&self.tries, Some(of))?;
                of_client.filter(|before| before.number == number)
            }
            None => of_client,
        };
        // What its worker does over UDP (HTTP/3) is no event of its own: without a bound it could be an earlier request's.
        before
            .filter(|before| !before.is_last && at.since(before.at) <= HANDLER)
            .cloned()
    }

    fn resolver_says(&mut self, worker: Pid, at: Ktime, said: &Said) {
        let says = ResolverSays {
            at,
            text: said.text.clone(),
            errno: said.errno,
        };
        self.around.resolver_said(worker, says);
    }

    fn log_line(&mut self, log: LogLine, outputs: &mut Vec<Output>) {
        self.has_tail = true;
        let said = Said::logged(&log);
        let is_by_resolver =
            message::is_by_resolver(&log.message, log.action.as_deref(), log.connection.is_some());
        if is_by_resolver && !self.hears_nginx() && !self.is_from_before(&log) {
            self.resolver_says(log.pid, self.now, &said);
        }
        if said.meaning == Meaning::Nothing || self.is_from_before(&log) {
            return;
        }
        let hears = self.hears_nginx();
        if hears && let Some(line) = self.log_join.read(self.now, &log) {
            let unread = self.lines.last(&line).filter(|line| message::is_unread(line));
            match (self.by_line.get(&line).copied(), unread) {
                (Some(number), unread) => {
                    let is_news = unread.is_some();
                    self.set_log(number, log);
                    if is_news {
                        self.read_again(number);
                    }
                    self.evaluate(number, outputs);
                }
                (None, Some(unread)) => {
                    let unread = unread.clone();
                    self.unread_line(unread, log, outputs);
                }
                (None, None) if said.meaning == Meaning::Datagram => {
                    self.unclaimed.remove(&line);
                    self.datagram_line(line, log, outputs);
                }
                (None, None) => self.texts.push(self.now, line, log),
            }
            return;
        }
        if hears && self.configurations.heard_since(log.pid) == Some(Ktime(0)) {
            return;
        }
        // The kernel tells of every connect() that failed at once, and its record is the attempt.
        let is_told = said.meaning == Meaning::ConnectAtOnce && self.around.surely_sees("connect-errno");
        match self.fitting(&log, &said) {
            Some(number) => {
                if hears {
                    self.log_join.take_text(|text| *text == log);
                }
                self.set_log(number, log);
                self.read_again(number);
                self.evaluate(number, outputs);
            }
            None if hears => {}
            None if said.meaning.stands_alone() && !is_told => {
                let (worker, connection) = (log.pid, log.connection);
                self.lone_attempt(self.now, worker, connection, said, None, Some(log), outputs);
            }
            // Its record may be on its way, or an answer was not whole: see `join_waiting_texts`.
            None => {
                self.log_join.read(self.now, &log);
            }
        }
    }

    /// Lines of the log file that are attempts by themselves and of which nothing else tells: written by workers that were
    /// not heard yet, or about a connect() that was denied before TCP was asked.
    fn tell_unheard(&mut self, outputs: &mut Vec<Output>) {
        let hears = self.hears_nginx();
        let sees_connects = self.around.surely_sees("connect-errno");
        if !hears && !sees_connects {
            return;
        }
        let offset = self.wall_offset.unwrap_or_default();
        loop {
            let configurations = &self.configurations;
            let pending = &self.pending;
            // nginx's time has whole seconds and may be a loop old, so one that is later proves that it was heard.
            let is_unheard = |log: &LogLine| {
                let may_be = match configurations.heard_since(log.pid) {
                    _ if !hears => true,
                    Some(Ktime(0)) => false,
                    Some(since) => i128::from(log.time) * 1_000_000_000 <= offset + i128::from(since.0),
                    None => true,
                };
                let said = Said::logged(log);
                let is_told = sees_connects
                    && said.meaning == Meaning::ConnectAtOnce
                    && (!is_before_tcp(&said) || pending.values().any(|pending| pending.fits(log, &said)));
                may_be && said.meaning.stands_alone() && !is_told
            };
            let Some(log) = self.log_join.take_unheard(self.now, LEAST_PATIENCE, is_unheard) else {
                return;
            };
            let (said, worker, connection) = (Said::logged(&log), log.pid, log.connection);
            self.lone_attempt(self.now, worker, connection, said, None, Some(log), outputs);
        }
    }

    // Connects that failed at once.

    /// The kernel saw `connect()` itself fail. nginx's line says the same where it is heard, and then joins.
    fn connect_failed(
        &mut self,
        at: Ktime,
        worker: Pid,
        peer: Peer,
        errno: Errno,
        outputs: &mut Vec<Output>,
    ) {
        if let Peer::Tcp(address) = peer
            && self.configurations.is_resolver(worker, address)
        {
            return;
        }
        let said = Said::by_connect(peer, errno);
        self.lone_attempt(at, worker, None, said, None, None, outputs);
    }

    /// The attempt that the kernel told of a moment before this line, which is about it.
    fn awaiting_its_line(&self, line: &Line, said: &Said) -> Option<u64> {
        let is_its = |pending: &&Pending| {
            pending.line.is_none()
                && pending.attempt.errno == line.errno
                && said.peer.is_some()
                && pending.attempt.peer == said.peer
                && pending.attempt.ended_at <= line.at
        };
        let number = *self.at_once.get(&line.worker)?;
        self.pending.get(&number).filter(is_its).map(|_| number)
    }

    fn join_line_at_once(
        &mut self,
        number: u64,
        line: Line,
        said: Said,
        log: Option<LogLine>,
        outputs: &mut Vec<Output>,
    ) {
        let before = self.tried_before(Some(&line), line.worker, line.connection, line.at);
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let attempt = &mut pending.attempt;
        if attempt.retry.is_none() {
            attempt.retry = before
                .filter(|before| before.number != number)
                .map(|before| (before.number, before.n.saturating_add(1)));
        }
        attempt.nginx_says = Some(said.text.clone());
        let n = attempt.retry.map_or(1, |(_, n)| n);
        if let Some(connection) = line.connection {
            let client = ClientTry {
                number,
                n,
                at: line.at,
                is_last: ends_request(attempt.outcome),
                upstream: attempt.upstream.clone(),
                upstreams: attempt.upstreams.clone(),
            };
            self.clients.push(self.now, (line.worker, connection), client);
        }
        self.tries.push(self.now, Origin::Line(line.id), (number, n));
        self.by_line.insert(line.id, number);
        pending.said = Some(said);
        pending.line = Some(line);
        pending.settled = None;
        if let Some(log) = log {
            self.set_log(number, log);
        }
        self.evaluate(number, outputs);
    }

    /// The failure that a line of the log file is about, where only the file tells what nginx said: the oldest that
    /// fits.
    fn fitting(&self, log: &LogLine, said: &Said) -> Option<u64> {
        self.pending
            .iter()
            .find(|(_, pending)| {
                pending.attempt.outcome != Outcome::Ok
                    && !self.hears_of(&pending.attempt)
                    && pending.fits(log, said)
            })
            .map(|(number, _)| *number)
    }

    /// Gives answered exchanges the texts of the log file that say what was wrong with the answers, when all records of
    /// that time have come. Which text is whose is known only where each exchange that fits can have one.
    fn join_waiting_texts(&mut self, read_before: Ktime, outputs: &mut Vec<Output>) {
        for (first, n_alike) in self.log_join.alike(read_before) {
            let said = Said::logged(&first);
            let fitting: Vec<u64> = self
                .pending
                .iter()
                .filter(|(_, pending)| pending.fits(&first, &said) && !self.hears_of(&pending.attempt))
                .map(|(number, _)| *number)
                .collect();
            if fitting.len() > n_alike {
                continue;
            }
            for number in fitting {
                let text = self
                    .log_join
                    .take_text(|waiting| correlate::is_alike(waiting, &first));
                if let Some(log) = text {
                    self.end_with_text(number, log, outputs);
                }
            }
        }
    }

    /// nginx's line of the log file belongs to an attempt that counted as answered until now.
    fn end_with_text(&mut self, number: u64, log: LogLine, outputs: &mut Vec<Output>) {
        let said = Said::logged(&log);
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let is_reuse = said.meaning == Meaning::Connect && pending.attempt.outcome == Outcome::Ok;
        let Some(exchange) = pending.exchange.take_if(|_| is_reuse) else {
            self.set_log(number, log);
            self.read_again(number);
            return self.evaluate(number, outputs);
        };
        // nginx took the kept connection for its next request and found it dead before it sent a byte.
        let (answered, unsent) = socket::split_at_reuse(*exchange);
        pending.exchange = Some(Box::new(answered));
        self.read_again(number);
        self.evaluate(number, outputs);
        self.judge_exchange(Box::new(unsent), None, Some(said), Some(log), outputs);
    }

    /// A line written before the trace began explains nothing in it.
    fn is_from_before(&self, log: &LogLine) -> bool {
        let (Some(offset), Some(started)) = (self.wall_offset, self.started) else {
            return false;
        };
        // nginx's time has whole seconds and may be a loop old.
        let started_s = (offset + i128::from(started.0)).div_euclid(1_000_000_000);
        i128::from(log.time) + 2 < started_s
    }

    /// Gives a pending attempt its line of the log file, with what only that tells.
    fn set_log(&mut self, number: u64, log: LogLine) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let logged = Said::logged(&log);
        match &mut pending.said {
            // The file has the arguments that a format string heard at its source leaves open.
            Some(said) => said.text = logged.text,
            None => pending.said = Some(logged),
        }
        let attempt = &mut pending.attempt;
        let meaning = pending.said.as_ref().map(|said| said.meaning);
        if attempt.peer.is_none() && !matches!(meaning, Some(Meaning::NoLiveUpstreams | Meaning::Unresolved))
        {
            attempt.peer.clone_from(&log.peer);
        }
        if let (None, Some(upstream)) = (&attempt.peer, correlate::named_upstream(&log)) {
            attempt.upstream = Some(upstream.to_owned());
            attempt.upstreams = vec![upstream.to_owned()];
            attempt.via = correlate::scheme(&log).map(str::to_owned);
        }
        // The line has the client's request, the kernel what nginx made of it for the upstream.
        let sent = attempt.request.take().unwrap_or_default();
        let (method, path) = log.request.clone().unzip();
        attempt.nginx_says = pending.said.as_ref().map(|said| said.text.clone());
        attempt.request = Some(Request {
            method: method.or(sent.method),
            path: path.or(sent.path),
            host: log.host.clone().or(sent.host.filter(|_| log.request.is_none())),
            status: sent.status,
            client: log.client.clone().or(sent.client),
        });
        attempt.log = Some(log);
        pending.settled = None;
        self.name(number);
    }

    /// An attempt without a peer is about all peers of its upstream.
    fn find_upstream_peers(&mut self, number: u64) {
        if let Some(pending) = self.pending.get_mut(&number)
            && pending.attempt.outcome == Outcome::NoLiveUpstreams
            && let Some(upstream) = &pending.attempt.upstream
        {
            pending.upstream_peers = self.configurations.peers_of(pending.attempt.worker, upstream);
            pending.siblings = self.configurations.siblings(pending.attempt.worker);
        }
    }

    // Pending attempts.

    fn add_pending(
        &mut self,
        number: u64,
        pending: Pending,
        log: Option<LogLine>,
        outputs: &mut Vec<Output>,
    ) {
        if let Some(exchange) = &pending.exchange {
            self.by_exchange.insert(exchange.id, number);
        }
        if pending.is_at_once {
            self.at_once.insert(pending.attempt.worker, number);
        }
        if let Some(line) = &pending.line {
            self.by_line.insert(line.id, number);
            if let Some(connection) = line.connection {
                let attempt = &pending.attempt;
                let client = ClientTry {
                    number,
                    n: attempt.retry.map_or(1, |(_, n)| n),
                    at: line.at,
                    is_last: ends_request(attempt.outcome),
                    upstream: attempt.upstream.clone(),
                    upstreams: attempt.upstreams.clone(),
                };
                self.clients.push(self.now, (line.worker, connection), client);
            }
        }
        self.by_deadline.insert((pending.deadline, number));
        if pending.attempt.outcome.is_failure() {
            let worker = pending.attempt.worker;
            self.unanswered.entry(worker).or_default().push(number);
        }
        self.pending.insert(number, pending);
        self.find_upstream_peers(number);
        self.find_resolved(number);
        let log = log.or_else(|| self.text_waiting_for(number));
        if let Some(log) = log {
            self.set_log(number, log);
            self.read_again(number);
        }
        self.evaluate(number, outputs);
        // Too many at once: the oldest is written with what is known, which loses nothing but patience.
        while self.pending.len() > self.options.capacity.max(8) {
            let Some(oldest) = self.pending.keys().next().copied() else {
                break;
            };
            self.finish(oldest, outputs);
        }
    }

    /// Without nginx's own voice, a text of the log file that was read before the kernel's record arrived.
    fn text_waiting_for(&mut self, number: u64) -> Option<LogLine> {
        let pending = self.pending.get(&number)?;
        if self.hears_of(&pending.attempt) {
            return None;
        }
        // Which answered exchange a text is about is seen when all of them are here.
        if pending.attempt.outcome == Outcome::Ok {
            return None;
        }
        self.log_join
            .take_text(|log| pending.fits(log, &Said::logged(log)))
    }

    /// Asks the causes about an attempt, and writes it when nothing more is to be waited for.
    fn evaluate(&mut self, number: u64, outputs: &mut Vec<Output>) {
        let Some(pending) = self.pending.get(&number) else {
            return;
        };
        if pending.attempt.outcome == Outcome::Ok {
            if pending.is_final && !pending.is_nameless {
                self.finish(number, outputs);
            }
            return;
        }
        if pending.settled.is_none() {
            let mut diagnosis = diagnose::diagnose(&pending.subject(true), &self.around);
            let questions = std::mem::take(&mut diagnosis.questions);
            self.ask(number, questions, outputs);
            if diagnosis.is_settled
                && let Some(pending) = self.pending.get_mut(&number)
            {
                pending.settled = Some(diagnosis);
            }
        }
        let Some(pending) = self.pending.get(&number) else {
            return;
        };
        // A lone line whose errno also leaves a socket behind waits for that socket.
        let awaits_socket =
            pending.stands_alone() && pending.exchange.is_none() && pending.attempt.errno == Some(Errno(99));
        let awaits_line = pending.is_at_once
            && pending.line.is_none()
            && self.hears_of(&pending.attempt)
            && self.now.since(pending.attempt.ended_at) < LEAST_PATIENCE;
        let awaits = awaits_socket
            || awaits_line
            || pending.is_nameless
            || self.awaits_log(pending)
            || self.awaits_client(pending);
        if pending.settled.is_some() && pending.is_final && !awaits {
            self.finish(number, outputs);
        }
    }

    fn awaits_log(&self, pending: &Pending) -> bool {
        let is_logged = pending.line.is_some() || !self.hears_of(&pending.attempt);
        self.has_tail && is_logged && pending.attempt.log.is_none()
    }

    /// nginx answers its client in the same handler, a moment after the attempt.
    fn awaits_client(&self, pending: &Pending) -> bool {
        !pending.is_followed
            && pending.ticks < CLIENT_TICKS
            && pending.attempt.outcome.is_failure()
            && self.around.sees("bytes")
    }

    fn ask(&mut self, number: u64, questions: Vec<Question>, outputs: &mut Vec<Output>) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        for question in questions {
            if pending.asked.contains(&question) {
                continue;
            }
            if question.is_slow() && !self.slow_questions.may_ask(self.now) {
                continue;
            }
            pending.asked.push(question.clone());
            let (asked, stands) = if question.is_slow() {
                (&mut self.asked_slowly, MEANING_STANDS)
            } else {
                (&mut self.asked, ANSWER_STANDS)
            };
            // Another attempt asked the same a moment ago: one answer serves both, while it stands for this one too.
            let lately = asked.last(&question).copied();
            if lately.is_none_or(|lately| self.now.since(lately) > stands) {
                asked.push(self.now, question.clone(), self.now);
                outputs.push(Output::Ask(question));
            }
        }
    }

    /// Writes what has waited long enough by `now`, each as its surroundings were known then.
    fn write_overdue(&mut self, now: Ktime, outputs: &mut Vec<Output>) {
        let ripe = self.ripe.iter().take_while(|(deadline, _)| *deadline <= now);
        // A tracer whose clock stands still does not hold them back for ever.
        let late = self
            .by_deadline
            .iter()
            .take_while(|(deadline, _)| now.since(*deadline) > SECOND);
        let overdue: BTreeSet<u64> = ripe.chain(late).map(|(_, number)| *number).collect();
        for number in overdue {
            self.finish(number, outputs);
        }
    }

    /// Writes a pending attempt with what is known now.
    fn finish(&mut self, number: u64, outputs: &mut Vec<Output>) {
        let Some(mut pending) = self.pending.remove(&number) else {
            return;
        };
        self.by_deadline.remove(&(pending.deadline, number));
        self.ripe.remove(&(pending.deadline, number));
        if let Some(exchange) = &pending.exchange {
            self.by_exchange.remove(&exchange.id);
        }
        if let Some(line) = &pending.line {
            self.by_line.remove(&line.id);
        }
        if self.at_once.get(&pending.attempt.worker) == Some(&number) {
            self.at_once.remove(&pending.attempt.worker);
        }
        if pending.attempt.outcome != Outcome::Ok {
            let diagnosis = pending
                .settled
                .take()
                .unwrap_or_else(|| diagnose::diagnose(&pending.subject(false), &self.around));
            let unknown = diagnosis
                .headline
                .is_none()
                .then(|| causes::nothing_stands(&pending.subject(false), &self.around));
            let unseen = self.unseen(&pending, &diagnosis);
            let attempt = &mut pending.attempt;
            attempt.unseen.extend(diagnosis.unseen);
            attempt.unseen.extend(unseen);
            attempt.unseen.dedup();
            attempt.cause = diagnosis.headline.or(unknown);
            attempt.also = diagnosis.also;
            // A blackhole route is a way barred, whatever number it gives (decisions.md 4).
            if attempt
                .cause
                .as_ref()
                .is_some_and(|cause| cause.id == "route-forbids")
                && attempt.errno == Some(Errno(22))
            {
                attempt.outcome = Outcome::Unreachable;
            }
            if let Some(exchange) = &pending.exchange {
                self.around.told(exchange);
            }
            pending.attempt.client = pending.client.map(|client| pending.seen_by(client));
        }
        self.write(pending.attempt, outputs);
    }

    /// What of this attempt could not be seen, beside what its cause says.
    fn unseen(&self, pending: &Pending, diagnosis: &Diagnosis) -> Vec<String> {
        let mut unseen = Vec::new();
        if pending.nginx_says().is_none() && !self.hears_of(&pending.attempt) {
            unseen.push(match self.hears_nginx() {
                true => "nginx-log: the log function of this nginx's executable was not heard at that time"
                    .to_owned(),
                false => self.around.without("nginx-log"),
            });
        }
        if pending.nginx_says().is_some() && self.has_tail && pending.attempt.log.is_none() {
            unseen.push("error-log-file: this line was not found in the files that are read".to_owned());
        }
        if diagnosis.headline.is_none() {
            let is_connect_timeout =
                pending.attempt.outcome == Outcome::TimedOut && pending.attempt.phase == Phase::Connecting;
            let missing = [
                "resets-sent",
                "drops",
                "snapshot",
                "processes",
                "bytes",
                "accept-queue",
                "errors",
                "selinux",
            ];
            let is_denied = pending.attempt.outcome == Outcome::Denied;
            unseen.extend(
                missing
                    .iter()
                    .filter(|hook| !self.around.sees(hook))
                    .filter(|hook| **hook != "accept-queue" || is_connect_timeout)
                    .filter(|hook| **hook != "selinux" || is_denied)
                    .map(|hook| self.around.without(hook)),
            );
        }
        unseen
    }

    fn write(&mut self, attempt: Attempt, outputs: &mut Vec<Output>) {
        if attempt.outcome.is_failure()
            && let (Some(peer), Some(cause)) = (&attempt.peer, &attempt.cause)
        {
            let failure = PastFailure {
                attempt: attempt.number,
                at: attempt.ended_at,
                worker: attempt.worker,
                siblings: self.configurations.siblings(attempt.worker),
                peer: peer.clone(),
                cause: cause.id,
                retry_of: attempt.retry.map(|(number, _)| number),
                is_counted: counting(&attempt) == Counting::Counted,
            };
            self.around.failed(&attempt.upstreams, &failure);
        }
        if !self.is_wanted(&attempt) {
            return;
        }
        self.stats.add(&attempt);
        let balanced = self.balance(&attempt);
        let master = self.configurations.master_of(attempt.worker);
        self.watch.add(self.now, &attempt, master, balanced.is_probe);
        outputs.push(Output::Attempt(Box::new(attempt)));
        outputs.extend(balanced.note.map(Output::Event));
    }

    /// What nginx's balancer makes of an attempt.
    fn balance(&mut self, attempt: &Attempt) -> Balanced {
        self.balancers.pass(attempt);
        let (Some(upstream), Some(peer)) = (&attempt.upstream, &attempt.peer) else {
            return Balanced::default();
        };
        if attempt.outcome == Outcome::Ok && !self.balancers.knows(upstream) {
            return Balanced::default();
        }
        let Some(balancing) = self.configurations.balancing(attempt.worker, upstream, peer) else {
            return Balanced::default();
        };
        let master = self.configurations.master_of(attempt.worker);
        let owner = match balancing.is_shared {
            true => self.configurations.siblings(attempt.worker),
            false => Some((attempt.worker, Ktime(0))),
        };
        owner.map_or_else(Balanced::default, |owner| {
            self.balancers
                .add(self.now, attempt, (master, owner), balancing, counting(attempt))
        })
    }

    fn is_wanted(&self, attempt: &Attempt) -> bool {
        let EngineOptions { upstreams, peers, .. } = &self.options;
        let by_upstream = upstreams.is_empty()
            || attempt
                .upstreams
                .iter()
                .any(|upstream| upstreams.contains(upstream));
        let by_peer = peers.is_empty() || attempt.peer.as_ref().is_some_and(|peer| peers.contains(peer));
        by_upstream && by_peer
    }

    fn detach(&mut self, in_flight: u64, outputs: &mut Vec<Output>) {
        self.stop_awaiting_lines(|_| true, outputs);
        self.join_waiting_texts(self.now, outputs);
        let open: Vec<u64> = self.pending.keys().copied().collect();
        for number in open {
            self.join_unix_line(number);
            self.finish(number, outputs);
        }
        let evicted = self.take_evicted();
        self.lose(LossClass::Queue, evicted, outputs);
        let n_unjoined = if self.hears_nginx() {
            self.lines_heard.saturating_sub(self.lines_joined)
        } else {
            self.log_join.texts_given_up()
        };
        if n_unjoined > 0 {
            outputs.push(Output::Event(notes::lines_unjoined(self.now, n_unjoined)));
        }
        if self.resolver_connections > 0 {
            outputs.push(Output::Event(notes::resolver_connections(
                self.now,
                self.resolver_connections,
            )));
        }
        outputs.extend(
            self.findings()
                .into_iter()
                .map(|(_, finding)| Output::Finding(finding)),
        );
        outputs.push(Output::Summary(Box::new(self.stats.summary(self.now, in_flight))));
    }

    /// The patterns that stand now, each with the master of its instance.
    fn findings(&self) -> Vec<(Pid, Finding)> {
        let configurations = &self.configurations;
        let mut findings = self
            .watch
            .findings(|worker, peer| configurations.names(worker, peer, None).limits);
        let shown = |master, upstream: &str| self.watch.shown(master, upstream);
        findings.extend(self.balancers.findings(shown));
        findings
    }

    /// Says the findings that have become certain.
    fn say_findings(&mut self, outputs: &mut Vec<Output>) {
        if self.findings_said.is_due(self.now) {
            let findings = self.findings();
            let news = self.findings_said.news(self.now, findings);
            outputs.extend(news.into_iter().map(Output::Finding));
        }
    }

    // Small parts.

    fn deadline(&self, ended_at: Ktime) -> Ktime {
        let latest = self.now.0.saturating_add(PATIENCE);
        let from_its_end = ended_at.0.saturating_add(PATIENCE);
        Ktime(from_its_end.clamp(self.now.0.saturating_add(LEAST_PATIENCE), latest))
    }

    fn new_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn remember_place(&mut self, peer: &Peer) {
        if self.tried.len() < 4096 {
            self.tried.insert(place(peer));
        }
    }

    fn lose(&mut self, class: LossClass, count: u64, outputs: &mut Vec<Output>) {
        if count > 0 {
            self.balancers.lost(self.now);
            self.stats.lose(class, count);
            outputs.push(Output::Lost {
                at: self.now,
                class,
                count,
            });
        }
    }

    fn take_evicted(&mut self) -> u64 {
        let mut lost = self.around.take_evicted() + self.balancers.take_evicted();
        // A line that its attempt has, or that is an attempt itself, has done its work; so has an attempt that nothing
        // retried at once.
        self.tries.take_evicted();
        if self.lines.take_evicted() > 0 {
            let before = self.unclaimed.len();
            self.unclaimed.retain(|id| self.lines.last(id).is_some());
            lost += u64::try_from(before - self.unclaimed.len()).unwrap_or(u64::MAX);
        }
        lost
    }

    fn expire(&mut self) {
        for master in self.configurations.expire(self.now, JOIN_MEMORY) {
            self.hears_errors.retain(|(of, _)| *of != master);
        }
        self.log_join.expire(self.now);
        self.lines.expire(self.now);
        self.unclaimed.retain(|id| self.lines.last(id).is_some());
        self.texts.expire(self.now);
        self.early_leavers.expire(self.now);
        self.early_answers.expire(self.now);
        self.unix_leavers.expire(self.now);
        self.early_edges.expire(self.now);
        self.tries.expire(self.now);
        self.clients.expire(self.now);
        self.asked.expire(self.now);
        self.asked_slowly.expire(self.now);
        self.balancers.expire(self.now);
    }
}

impl Pending {
    fn subject(&self, may_wait: bool) -> Subject<'_> {
        Subject {
            attempt: &self.attempt,
            exchange: self.exchange.as_deref(),
            line: self.line.as_ref(),
            said: self.said.as_ref(),
            client_left: self.client_left,
            limits: &self.limits,
            resolved: &self.resolved,
            upstream_peers: &self.upstream_peers,
            siblings: self.siblings,
            master: self.master,
            may_wait,
        }
    }

    /// What of a client's fate is sure to be this request's.
    fn seen_by(&self, client: Client) -> Client {
        let attempt = &self.attempt;
        // A mirror's connection may be the last thing that a request waits for before its client's is closed.
        let is_main = attempt.via.as_deref() == Some("stream")
            || attempt
                .log
                .as_ref()
                .is_some_and(|log| !log.text.contains(", subrequest: \""));
        // An answer that begins after the attempt failed is nginx's own, unless it is what had come of the upstream's.
        let sent = attempt.request.as_ref().and_then(|request| request.status);
        let is_rest = client.status.is_none() || (client.status == sent && attempt.phase == Phase::Reading);
        Client {
            cut: client.cut && is_main && is_rest,
            ..client
        }
    }

    /// What nginx logged about it, from whichever source.
    fn nginx_says(&self) -> Option<String> {
        let said = self.said.as_ref().filter(|said| !said.is_by_kernel())?;
        Some(said.text.clone())
    }

    /// It was spoken over UDP.
    fn is_datagram(&self) -> bool {
        self.said
            .as_ref()
            .is_some_and(|said| said.meaning == Meaning::Datagram)
    }

    fn stands_alone(&self) -> bool {
        self.said.as_ref().is_some_and(|said| said.meaning.stands_alone())
    }

    /// Whether a log line can be this attempt's, where nothing but the file tells what nginx said.
    fn fits(&self, log: &LogLine, said: &Said) -> bool {
        let attempt = &self.attempt;
        let is_peer = attempt
            .peer
            .as_ref()
            .is_some_and(|peer| correlate::names_peer(log, peer));
        if attempt.log.is_some() || attempt.worker != log.pid || !is_peer {
            return false;
        }
        if self.is_at_once {
            return said.meaning == Meaning::ConnectAtOnce && attempt.errno == said.errno;
        }
        let Some(exchange) = self.exchange.as_deref() else {
            return false;
        };
        let is_answered = attempt.outcome == Outcome::Ok;
        match said.meaning {
            Meaning::Connect if is_answered => socket::may_end_at_reuse(exchange, said.errno),
            Meaning::Connect => attempt.phase == Phase::Connecting && attempt.errno == said.errno,
            // The one errno at once that leaves a socket behind.
            Meaning::ConnectAtOnce => attempt.phase == Phase::Connecting && attempt.errno == said.errno,
            Meaning::TimedOut if is_answered => socket::has_waited(exchange),
            Meaning::TimedOut => matches!(attempt.outcome, Outcome::TimedOut | Outcome::Cancelled),
            Meaning::ClosedEarly | Meaning::HandshakeClosed if is_answered => {
                exchange.eof_read_at.or(exchange.fin_at).is_some()
            }
            Meaning::ClosedEarly | Meaning::HandshakeClosed => {
                matches!(attempt.outcome, Outcome::Closed | Outcome::Reset)
            }
            Meaning::Io => attempt.errno == said.errno,
            Meaning::Unacceptable | Meaning::Other => true,
            Meaning::Bind
            | Meaning::Socket
            | Meaning::WorkerConnections
            | Meaning::NoLiveUpstreams
            | Meaning::Unresolved
            | Meaning::Datagram
            | Meaning::Nothing => false,
        }
    }
}

/// What nginx's balancer makes of a failure of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// It counts it.
    Counted,
    /// It does not: the answer was being passed on already.
    Late,
    /// It does not: nginx had no socket to try with.
    Own,
    /// It depends on how far nginx was, and nginx was not heard.
    Unknown,
}

/// Whether nginx's balancer counts it as a failure of the peer.
fn counting(attempt: &Attempt) -> Counting {
    let is_stream = attempt.via.as_deref() == Some("stream");
    let Some(says) = attempt.nginx_says.as_deref() else {
        return match attempt.phase {
            Phase::Connecting | Phase::Handshaking | Phase::Resolving => Counting::Counted,
            _ if is_stream => Counting::Late,
            Phase::Sending | Phase::Waiting => Counting::Counted,
            Phase::Reading | Phase::Idle => Counting::Unknown,
        };
    };
    let is_late = says.ends_with(" while reading upstream")
        || says.ends_with(" while sending to client")
        || says.contains(" while proxying ");
    let is_own = ["bind(", "socket() ", "epoll_ctl(", "ioctl(", "setsockopt("]
        .iter()
        .any(|call| says.starts_with(call))
        || says.contains("worker_connections are not enough");
    if is_late {
        Counting::Late
    } else if is_own {
        Counting::Own
    } else {
        Counting::Counted
    }
}

fn find_retry(tries: &Keyed<Origin, (u64, u32)>, of: Option<RetryOf>) -> Option<(u64, u32)> {
    let origin = match of? {
        RetryOf::Exchange(exchange) => Origin::Exchange(exchange),
        RetryOf::Line(line) => Origin::Line(line),
    };
    tries
        .last(&origin)
        .map(|(number, n)| (*number, n.saturating_add(1)))
}

/// How many questions may be asked that others than this host have to answer: names may be chosen by clients.
#[derive(Debug, Default)]
struct Allowance {
    since: Ktime,
    asked: u32,
}

impl Allowance {
    const A_SECOND: u32 = 5;

    fn may_ask(&mut self, now: Ktime) -> bool {
        if now.since(self.since) >= SECOND {
            *self = Self { since: now, asked: 0 };
        }
        self.asked += 1;
        self.asked <= Self::A_SECOND
    }
}

/// After such an attempt nginx tries no other.
fn ends_request(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::NoLiveUpstreams | Outcome::Unresolved)
}

fn place(peer: &Peer) -> Place {
    match peer {
        Peer::Tcp(address) => Place::Port(SocketAddr::port(address)),
        Peer::Unix(path) => Place::Path(path.clone()),
    }
}

/// What is known of the other end after a later record: counts only grow, and what was seen stays seen.
fn merged(before: Backend, after: Backend) -> Backend {
    let is_closed = after.closed_at.is_some();
    Backend {
        sock: after.sock,
        netns: after.netns,
        task: after.task.or(before.task),
        accepted: after.accepted || before.accepted,
        accepted_at: before.accepted_at.or(after.accepted_at),
        first_read_at: before.first_read_at.or(after.first_read_at),
        last_read_at: after.last_read_at.max(before.last_read_at),
        read: after.read.max(before.read),
        sent: after.sent.max(before.sent),
        unread: if is_closed {
            after.unread
        } else {
            after.unread.max(before.unread)
        },
        closed_at: after.closed_at.or(before.closed_at),
        closed_by: after.closed_by.or(before.closed_by),
        aborted: after.aborted || before.aborted,
        reset_reason: after.reset_reason.or(before.reset_reason),
        error_at_destroy: after.error_at_destroy.or(before.error_at_destroy),
    }
}

#[cfg(test)]
mod tests;
