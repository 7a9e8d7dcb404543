//! What happened around the attempts: listeners, deaths, resets, drops, ICMP, queues, addresses, answers.
//!
//! Every history is bounded by count and by age on the input clock; what is pushed out early is counted as lost.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use crate::{
    engine::table::Keyed,
    event::{
        Answer, ConnId, Denial, Errno, Exchange, Exit, ForInstance, Ktime, Listener, LossClass, NameMeaning,
        Netns, Peer, Pid, Question, ResetBy, Sock, Task, Told, Tuple,
    },
    model::HookStatus,
};

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// A listener that closed longer ago than this explains nothing any more (ten minutes).
pub const LISTENER_MEMORY: u64 = 600 * SECOND;
/// And this long ago it is not even told any more.
const CLOSED_MEMORY: u64 = 2 * LISTENER_MEMORY;
/// A master that was told to reload longer ago than this does not explain the end of a worker.
const RENEWAL_MEMORY: u64 = 60 * SECOND;
/// How long it is remembered that a process was stopped: longer than nginx's timers usually are.
const HALT_MEMORY: u64 = 300 * SECOND;
/// How long packets' fates are kept: a connect may hang for two minutes before it fails.
const PACKET_MEMORY: u64 = 150 * SECOND;
/// How long a refusal is kept: what was refused ends at once.
pub const REFUSAL_MEMORY: u64 = 5 * SECOND;
/// How long an answer of the host stands for the same question about a later attempt.
pub const ANSWER_STANDS: u64 = SECOND / 4;
/// How long an answer is kept: an attempt that is diagnosed again finds what it found before.
const ANSWER_MEMORY: u64 = 5 * SECOND;
/// nginx's default `resolver_timeout`: what its resolver says longer before the end has nothing to do with that.
const RESOLVER_TIMEOUT: u64 = 30 * SECOND;
const RESOLVER_MEMORY: u64 = RESOLVER_TIMEOUT + 5 * SECOND;
/// How long what a name means stands, and how seldom it is asked for.
pub const MEANING_STANDS: u64 = 5 * SECOND;
/// How long it is remembered what a name meant (ten minutes): answers that change are told apart from new ones.
const MEANING_MEMORY: u64 = 600 * SECOND;
/// Of how many namespaces the addresses are kept.
const NAMESPACES: usize = 4096;
/// How far the time of a line in the log file, which is when it is read, may be from what it tells of.
const LOGGED_WITHIN: u64 = 2 * SECOND;
/// How close in time two records of one packet may lie across sockets and CPUs.
pub const SLACK: u64 = 1_000_000;
/// How long before a call that sends on a standing connection is told, when it returns, its packets may have been on their
/// way. (3.4 ms were seen on 6.1 in software emulation, from the drop to the end of the call.)
pub const CALL: u64 = SECOND / 4;

/// A listening socket's life as far as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerLife {
    /// The socket, with whoever opened or held it.
    pub listener: Listener,
    /// When it opened; `None`: it was there before it was looked for.
    pub opened_at: Option<Ktime>,
    /// When it closed, and in whose hands.
    pub closed: Option<(Ktime, Task)>,
}

impl ListenerLife {
    /// Whether it listened at that moment.
    pub fn is_open_at(&self, at: Ktime) -> bool {
        self.opened_at.is_none_or(|opened| opened <= at)
            && self.closed.as_ref().is_none_or(|(closed, _)| at < *closed)
    }
}

/// A process that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Death {
    /// When.
    pub at: Ktime,
    /// Who, and how (`exiting`).
    pub task: Task,
    /// Its parent at that time.
    pub parent: Pid,
    /// Who sent the signal.
    pub signalled_by: Option<Task>,
    /// The signal it had handled before it ended by itself.
    pub told: Option<Told>,
}

impl Death {
    /// It was stopped, or ended by itself with nothing wrong (decisions.md 2).
    pub fn is_orderly(&self) -> bool {
        let is_orderly = |exit| is_orderly(exit) || self.was_told_to_stop(exit);
        !self.task.oom && self.task.exiting.is_none_or(is_orderly)
    }

    /// Whatever code it ends with, a process that was asked to stop has stopped.
    fn was_told_to_stop(&self, exit: Exit) -> bool {
        matches!((exit, &self.told), (Exit::Code(_), Some(told)) if is_stop(told.signal))
    }
}

/// The last of these signals that the process had been sent at that time, and when.
fn last_told(signals: &Keyed<Pid, (Ktime, u8, Task)>, pid: Pid, at: Ktime) -> Option<(Ktime, Told)> {
    let (sent, signal, by) = signals.get(&pid).rev().find(|(sent, ..)| *sent <= at)?;
    let told = Told {
        signal: *signal,
        by: by.clone(),
        ago_ms: u32::try_from(at.since(*sent) / 1_000_000).unwrap_or(u32::MAX),
    };
    Some((*sent, told))
}

/// INT, QUIT, TERM: a stop is asked for. A HUP may as well be a reload.
pub fn is_stop(signal: u8) -> bool {
    matches!(signal, 2 | 3 | 15)
}

/// Whether a process that ended by itself may have done so because of a signal: a graceful stop takes its time, and
/// one that was ignored long ago is not meant.
pub fn is_recent(told: &Told) -> bool {
    let limit_ms = if is_stop(told.signal) { 30_000 } else { 5_000 };
    told.ago_ms <= limit_ms
}

/// Lets a stopped process go on.
const SIGCONT: u8 = 18;
/// Stops a process, whatever it does about signals.
const SIGSTOP: u8 = 19;
/// Stops a process that does nothing about it, as nginx.
const SIGTSTP: u8 = 20;

/// A process was stopped by a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Halt<'a> {
    /// When.
    pub at: Ktime,
    /// Which signal.
    pub signal: u8,
    /// Who sent it.
    pub by: &'a Task,
    /// When it was let go on.
    pub went_on_at: Option<Ktime>,
}

/// A reset this host sent.
#[derive(Clone, Debug, PartialEq)]
pub struct ResetSent {
    /// When.
    pub at: Ktime,
    /// In which namespace.
    pub netns: Netns,
    /// The packet it answered.
    pub tuple: Tuple,
    /// The kernel's reason.
    pub reason: Option<String>,
    /// The socket behind it.
    pub by: ResetBy,
    /// TCP flags of the packet it answered; 0: not known.
    pub flags: u8,
    /// The connection whose SYN it answered, when that is known.
    pub conn: Option<ConnId>,
}

/// A SYN+ACK for which this host had no socket any more: a peer's answer to a connect that was given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LateAnswer {
    /// When.
    pub at: Ktime,
    /// In which namespace.
    pub netns: Netns,
    /// The packet.
    pub tuple: Tuple,
}

/// A handshake that was complete only after a SYN had been repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowHandshake {
    /// When it was complete.
    pub at: Ktime,
    /// How long it took.
    pub took: u64,
    /// How often its SYN was repeated.
    pub syn_retransmits: u32,
}

/// SYN and ACK, of a packet's TCP flags.
const SYN_ACK: u8 = 0x12;

/// A packet freed on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropped {
    /// When.
    pub at: Ktime,
    /// In which namespace.
    pub netns: Netns,
    /// The packet.
    pub tuple: Tuple,
    /// Its TCP flags.
    pub flags: u8,
    /// The kernel's reason.
    pub reason: Option<String>,
    /// The function that dropped it.
    pub location: Option<String>,
    /// Whose it was, when that is known.
    pub conn: Option<ConnId>,
}

/// A datagram to a peer of a UDP proxy's, freed on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct DatagramDropped {
    /// When.
    pub at: Ktime,
    /// In which namespace.
    pub netns: Netns,
    /// The datagram.
    pub tuple: Tuple,
    /// The kernel's reason.
    pub reason: String,
}

/// Why a packet was dropped, as far as diagnoses care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropKind {
    /// A netfilter rule.
    Netfilter,
    /// The next hop's address was not to be had.
    Neighbour,
    /// No socket for it.
    NoSocket,
    /// A full accept queue met a connection's last handshake packet.
    AcceptQueue,
    /// Another policy or shortage of this host (`rp_filter`, cgroup, traffic control, memory …).
    Local,
    /// Ordinary housekeeping.
    Noise,
}

impl Dropped {
    /// Sorts the drop by its reason, or by its place on kernels without reasons.
    pub fn kind(&self) -> DropKind {
        let place = self.location.as_deref().unwrap_or("");
        let is_netfilter_place = ["nf_hook_slow", "nft_do_chain", "ipt_do_table", "ip6t_do_table"]
            .iter()
            .any(|function| place.starts_with(function));
        let is_tcp_place = place.starts_with("tcp_v4_rcv") || place.starts_with("tcp_v6_rcv");
        match self.reason.as_deref() {
            Some("NETFILTER_DROP") => DropKind::Netfilter,
            Some("NO_SOCKET") => DropKind::NoSocket,
            Some("TCP_LISTEN_OVERFLOW") => DropKind::AcceptQueue,
            Some(reason) if reason.starts_with("NEIGH_") => DropKind::Neighbour,
            // IPv6 gives no reason for a silent neighbour; only the place tells.
            Some("NOT_SPECIFIED") | None if place.starts_with("neigh_invalidate") => DropKind::Neighbour,
            Some("NOT_SPECIFIED") | None if is_netfilter_place => DropKind::Netfilter,
            None if is_tcp_place && self.is_syn() => DropKind::NoSocket,
            // Before 5.17: the source is not to come that way (rp_filter), or the packet is malformed.
            None if place.starts_with("ip_rcv_finish_core") => DropKind::Local,
            Some(reason) if is_policy(reason) => DropKind::Local,
            Some(_) | None => DropKind::Noise,
        }
    }

    /// A first packet of a handshake, either way.
    pub fn is_syn(&self) -> bool {
        self.flags & 0x02 != 0
    }
}

/// Drop reasons that are a decision or a shortage of this host and cannot be a connection's ordinary life.
fn is_policy(reason: &str) -> bool {
    const REASONS: [&str; 21] = [
        "IP_RPFILTER",
        "BPF_CGROUP_EGRESS",
        "SOCKET_FILTER",
        "TC_EGRESS",
        "TC_INGRESS",
        "TC_COOKIE_ERROR",
        "TC_CHAIN_NOTFOUND",
        "TC_RECLASSIFY_LOOP",
        "XDP",
        "QDISC_DROP",
        "CPU_BACKLOG",
        "FULL_RING",
        "NOMEM",
        "PROTO_MEM",
        "XFRM_POLICY",
        "IP_OUTNOROUTES",
        "IP_INNOROUTES",
        "IPV6DISABLED",
        "UNICAST_IN_L2_MULTICAST",
        "IP_INVALID_SOURCE",
        "IP_LOCALNET",
    ];
    REASONS.contains(&reason)
}

/// An ICMP error this host generated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IcmpSent {
    /// When.
    pub at: Ktime,
    /// In which namespace.
    pub netns: Netns,
    /// The packet it is about.
    pub tuple: Tuple,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The connection whose SYN it is about, when that is known.
    pub conn: Option<ConnId>,
}

/// Whether a peer lives on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// Its address is one of ours, in some namespace we know.
    ThisHost,
    /// Its address is in no namespace we know.
    Elsewhere,
    /// Nobody told us nginx's own addresses.
    Unknown,
}

/// A failure that is over, for those that follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct PastFailure {
    /// The attempt's number.
    pub attempt: u64,
    /// When it ended.
    pub at: Ktime,
    /// In which worker.
    pub worker: Pid,
    /// Those that share a `zone` with it, by master and when that read its files.
    pub siblings: Option<(Pid, Ktime)>,
    /// At which peer.
    pub peer: Peer,
    /// With which headline.
    pub cause: &'static str,
    /// The attempt that this one retried.
    pub retry_of: Option<u64>,
    /// nginx's balancer counts it against the peer.
    pub is_counted: bool,
}

/// What SELinux denied to a worker, and what the worker did next.
#[derive(Debug)]
struct Denied {
    denial: Denial,
    /// When it next logged a line, or was seen to fail in `connect()`.
    told_at: Option<Ktime>,
}

/// A line of nginx about its own resolver, for which no request is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSays {
    /// When.
    pub at: Ktime,
    /// The line's text.
    pub text: String,
    /// Its errno.
    pub errno: Option<Errno>,
}

/// How a denial belongs to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialOf {
    /// The attempt is what the worker did next.
    This,
    /// The worker did nothing since that would have been seen, and not long ago.
    Nothing,
}

/// Everything around the attempts that a check may look at.
#[derive(Debug)]
pub struct Surroundings {
    now: Ktime,
    hooks: BTreeMap<String, HookStatus>,
    listeners: Listeners,
    deaths: Keyed<Pid, Death>,
    /// Signals that end a process, and who sent them.
    signals: Keyed<Pid, (Ktime, u8, Task)>,
    /// Signals that stop a process of nginx's or let it go on.
    halts: Keyed<Pid, (Ktime, u8, Task)>,
    /// Signals at which masters replace or end their workers.
    renewals: Keyed<Pid, (Ktime, u8, Task)>,
    resets: Keyed<SocketAddr, ResetSent>,
    /// Packets for which there was no socket, like `resets`.
    refusals: Keyed<SocketAddr, Dropped>,
    /// Under the address that they came to.
    late_answers: Keyed<SocketAddr, LateAnswer>,
    slow_handshakes: Keyed<(Netns, SocketAddr), SlowHandshake>,
    /// Under both of the packet's addresses: one of them is nginx's own.
    drops: Keyed<SocketAddr, Dropped>,
    drops_by_conn: Keyed<ConnId, Dropped>,
    icmp: Keyed<SocketAddr, IcmpSent>,
    /// By where they went.
    datagrams: Keyed<SocketAddr, DatagramDropped>,
    /// Where each master works.
    homes: BTreeMap<Pid, Netns>,
    queues: Keyed<ConnId, (Ktime, Listener)>,
    denials: Keyed<Pid, Denied>,
    /// What nginx said about its resolver, by worker.
    resolver_says: Keyed<Pid, ResolverSays>,
    /// Each with when it was last told or nginx was last seen there.
    addresses: BTreeMap<Netns, (Ktime, Vec<IpAddr>)>,
    answers: Keyed<Question, (Ktime, Answer)>,
    /// The same for names, kept for longer.
    meanings: Keyed<Question, (Ktime, Answer)>,
    servers: Keyed<String, Task>,
    serving: Keyed<Pid, Peer>,
    /// Workers that connected over TCP, and whether over IPv6: what judges system calls by their numbers let them.
    connecting: Keyed<Pid, bool>,
    failures: Keyed<String, PastFailure>,
    losses: Keyed<(), (Ktime, LossClass)>,
}

impl Surroundings {
    /// Empty histories of at most `capacity` entries each.
    pub fn new(capacity: usize) -> Self {
        Self {
            now: Ktime(0),
            hooks: BTreeMap::new(),
            listeners: Listeners::new(capacity),
            deaths: Keyed::new(capacity, LISTENER_MEMORY),
            signals: Keyed::new(capacity, 30 * SECOND),
            halts: Keyed::new(capacity.min(1024), HALT_MEMORY),
            renewals: Keyed::new(capacity.min(1024), RENEWAL_MEMORY),
            resets: Keyed::new(capacity, REFUSAL_MEMORY),
            refusals: Keyed::new(capacity, REFUSAL_MEMORY),
            late_answers: Keyed::new(capacity, REFUSAL_MEMORY),
            slow_handshakes: Keyed::new(capacity.min(4096), PACKET_MEMORY),
            drops: Keyed::new(capacity, PACKET_MEMORY),
            drops_by_conn: Keyed::new(capacity, PACKET_MEMORY),
            icmp: Keyed::new(capacity, PACKET_MEMORY),
            datagrams: Keyed::new(capacity, REFUSAL_MEMORY),
            homes: BTreeMap::new(),
            queues: Keyed::new(capacity, PACKET_MEMORY),
            denials: Keyed::new(capacity, REFUSAL_MEMORY),
            resolver_says: Keyed::new(capacity.min(1024), RESOLVER_MEMORY),
            addresses: BTreeMap::new(),
            answers: Keyed::new(capacity.min(1024), ANSWER_MEMORY),
            meanings: Keyed::new(capacity.min(1024), MEANING_MEMORY),
            servers: Keyed::new(capacity.min(4096), LISTENER_MEMORY),
            serving: Keyed::new(capacity.min(16_384), u64::MAX),
            connecting: Keyed::new(capacity.min(16_384), u64::MAX),
            failures: Keyed::new(capacity.min(4096), 60 * SECOND),
            // A loss is remembered as long as an attempt that began before it can still end.
            losses: Keyed::new(1024, LISTENER_MEMORY),
        }
    }

    // What the engine puts in.

    /// Moves the clock and lets old entries go.
    pub fn tick(&mut self, now: Ktime) {
        self.now = now;
        self.listeners.expire(now);
        self.deaths.expire(now);
        self.signals.expire(now);
        self.halts.expire(now);
        self.renewals.expire(now);
        self.resets.expire(now);
        self.refusals.expire(now);
        self.late_answers.expire(now);
        self.slow_handshakes.expire(now);
        self.drops.expire(now);
        self.drops_by_conn.expire(now);
        self.icmp.expire(now);
        self.datagrams.expire(now);
        self.queues.expire(now);
        self.denials.expire(now);
        self.resolver_says.expire(now);
        self.answers.expire(now);
        self.meanings.expire(now);
        self.servers.expire(now);
        self.failures.expire(now);
        self.losses.expire(now);
    }

    /// What can be seen on this host.
    pub fn set_hooks(&mut self, hooks: Vec<HookStatus>) {
        self.hooks = hooks
            .into_iter()
            .take(256)
            .map(|hook| (hook.sees.clone(), hook))
            .collect();
    }

    /// The addresses of a namespace.
    pub fn set_addresses(&mut self, netns: Netns, addresses: Vec<IpAddr>) {
        if self.addresses.len() >= NAMESPACES && !self.addresses.contains_key(&netns) {
            let oldest = self.addresses.iter().min_by_key(|(_, (told, _))| *told);
            if let Some(oldest) = oldest.map(|(netns, _)| *netns) {
                self.addresses.remove(&oldest);
            }
        }
        self.addresses.insert(netns, (self.now, addresses));
    }

    /// An nginx works in this namespace: it is not one that makes room for others.
    pub fn is_home(&mut self, netns: Netns) {
        if self.addresses.len() >= NAMESPACES / 2
            && let Some((told, _)) = self.addresses.get_mut(&netns)
        {
            *told = self.now;
        }
    }

    /// A listener opened.
    pub fn listener_opened(&mut self, at: Ktime, listener: Listener) {
        self.serves(listener.task.pid, &listener.address);
        self.listeners.opened(at, listener);
    }

    /// A listener was found open.
    pub fn listener_found(&mut self, listener: Listener) {
        self.serves(listener.task.pid, &listener.address);
        self.listeners.found(listener);
    }

    /// A listener closed.
    pub fn listener_closed(&mut self, at: Ktime, listener: Listener) {
        self.listeners.closed(self.now, at, listener);
    }

    /// A process ended.
    pub fn died(&mut self, death: Death) {
        // Two threads that end at the same time may both be the last; who sent the signal only the first one says.
        let is_told =
            |before: &Death| death.at.since(before.at) < SECOND && before.task.exiting == death.task.exiting;
        if self.deaths.last(&death.task.pid).is_some_and(is_told) {
            return;
        }
        self.deaths.push(self.now, death.task.pid, death);
    }

    /// A process was sent a signal.
    pub fn signalled(&mut self, at: Ktime, pid: Pid, signal: u8, by: Task) {
        if by.pid == pid {
            return;
        }
        match signal {
            // INT, ABRT, TERM; to many programs a QUIT means something else, and a HUP a reload.
            2 | 6 | 15 => self.signals.push(self.now, pid, (at, signal, by)),
            1 | 3 | 12 => {
                // Only the last one matters, and some programs get them many times a second.
                self.renewals.forget(&pid);
                self.renewals.push(self.now, pid, (at, signal, by));
            }
            SIGCONT | SIGSTOP | SIGTSTP => self.halts.push(self.now, pid, (at, signal, by)),
            _ => {}
        }
    }

    /// The signal that had stopped a process at that moment.
    pub fn halt(&self, pid: Pid, at: Ktime) -> Option<Halt<'_>> {
        let signals = || self.halts.get(&pid);
        let (stopped, signal, by) = signals().rev().find(|(sent, ..)| *sent <= at)?;
        let went_on = signals().find(|(sent, signal, _)| *signal == SIGCONT && *sent > *stopped);
        (*signal != SIGCONT).then_some(Halt {
            at: *stopped,
            signal: *signal,
            by,
            went_on_at: went_on.map(|(at, ..)| *at),
        })
    }

    /// This host sent a reset.
    pub fn reset_sent(&mut self, reset: ResetSent) {
        if reset.by == ResetBy::NoSocket && reset.flags & SYN_ACK == SYN_ACK {
            return self.answered_late(reset.at, reset.netns, reset.tuple);
        }
        self.resets.push(self.now, reset.tuple.source, reset);
    }

    fn answered_late(&mut self, at: Ktime, netns: Netns, tuple: Tuple) {
        let answer = LateAnswer { at, netns, tuple };
        self.late_answers.push(self.now, tuple.destination, answer);
    }

    /// A connection ended whose handshake is known.
    pub fn shook_hands(&mut self, exchange: &Exchange) {
        let (Peer::Tcp(peer), Some(began), Some(at)) =
            (&exchange.peer, exchange.connect_at, exchange.established_at)
        else {
            return;
        };
        if exchange.syn_retransmits == 0 {
            return;
        }
        let slow = SlowHandshake {
            at,
            took: at.since(began),
            syn_retransmits: exchange.syn_retransmits,
        };
        self.slow_handshakes.push(self.now, (exchange.netns, *peer), slow);
    }

    /// A packet was dropped.
    pub fn dropped(&mut self, dropped: Dropped) {
        match dropped.kind() {
            DropKind::Noise => {}
            // Before 6.10 the kernel names no reset without a socket; the packet it freed says the same.
            DropKind::NoSocket if dropped.flags & SYN_ACK == SYN_ACK => {
                self.answered_late(dropped.at, dropped.netns, dropped.tuple);
            }
            DropKind::NoSocket => self.refusals.push(self.now, dropped.tuple.source, dropped),
            DropKind::Netfilter | DropKind::Neighbour | DropKind::AcceptQueue | DropKind::Local => {
                if let Some(conn) = dropped.conn {
                    self.drops_by_conn.push(self.now, conn, dropped.clone());
                }
                self.drops.push(self.now, dropped.tuple.source, dropped.clone());
                self.drops.push(self.now, dropped.tuple.destination, dropped);
            }
        }
    }

    /// A datagram of a UDP proxy's was dropped.
    pub fn datagram_dropped(&mut self, dropped: DatagramDropped) {
        self.datagrams.push(self.now, dropped.tuple.destination, dropped);
    }

    /// A master and its workers work in this namespace.
    pub fn works_in(&mut self, master: Pid, netns: Netns) {
        if self.homes.len() >= NAMESPACES && !self.homes.contains_key(&master) {
            self.homes.pop_first();
        }
        self.homes.insert(master, netns);
    }

    /// This host sent an ICMP error.
    pub fn icmp_sent(&mut self, icmp: IcmpSent) {
        self.icmp.push(self.now, icmp.tuple.source, icmp);
    }

    /// A listener's queue was read for a connection.
    pub fn queue_read(&mut self, at: Ktime, conn: ConnId, listener: Listener) {
        self.queues.push(self.now, conn, (at, listener));
    }

    /// SELinux denied something to a worker.
    pub fn denied(&mut self, denial: Denial) {
        let told_at = None;
        self.denials
            .push(self.now, denial.worker, Denied { denial, told_at });
    }

    /// nginx said something about its resolver.
    pub fn resolver_said(&mut self, worker: Pid, says: ResolverSays) {
        self.resolver_says.push(self.now, worker, says);
    }

    /// What a worker said about its resolver in the time that a name may take before `at`, oldest first.
    pub fn resolver_says(&self, worker: Pid, at: Ktime) -> impl Iterator<Item = &ResolverSays> {
        let is_near = move |says: &&ResolverSays| says.at <= at && at.since(says.at) <= RESOLVER_TIMEOUT;
        self.resolver_says.get(&worker).filter(is_near)
    }

    /// A worker logged a line, or was seen to fail in `connect()`: what was denied to it before comes to this.
    pub fn worker_told(&mut self, worker: Pid, at: Ktime) {
        for denied in self.denials.get_mut(&worker) {
            if denied.denial.at <= at {
                denied.told_at.get_or_insert(at);
            }
        }
        self.denials.spend(&worker, |denied| denied.told_at.is_some());
    }

    /// The host answered.
    pub fn answered(&mut self, question: Question, answer: Answer) {
        let answers = if question.is_slow() {
            &mut self.meanings
        } else {
            &mut self.answers
        };
        answers.push(self.now, question, (self.now, answer));
    }

    /// This process answered on that unix path.
    pub fn served(&mut self, path: &str, task: &Task) {
        if self
            .servers
            .last(&path.to_owned())
            .is_none_or(|known| known.pid != task.pid)
        {
            self.servers.push(self.now, path.to_owned(), task.clone());
        }
    }

    /// An attempt failed; remembered under each of its upstreams.
    pub fn failed(&mut self, upstreams: &[String], failure: &PastFailure) {
        for upstream in upstreams.iter().take(16) {
            self.failures.push(self.now, upstream.clone(), failure.clone());
        }
    }

    /// Something was lost.
    pub fn lost(&mut self, at: Ktime, class: LossClass) {
        self.losses.push(self.now, (), (at, class));
    }

    /// What the tables had to push out since last asked.
    pub fn take_evicted(&mut self) -> u64 {
        self.listeners.take_evicted()
            + self.deaths.take_evicted()
            + self.signals.take_evicted()
            + self.renewals.take_evicted()
            + self.resets.take_evicted()
            + self.refusals.take_evicted()
            + self.late_answers.take_evicted()
            + self.drops.take_evicted()
            + self.drops_by_conn.take_evicted()
            + self.datagrams.take_evicted()
            + self.icmp.take_evicted()
            + self.queues.take_evicted()
            + self.denials.take_evicted()
            + self.servers.take_evicted()
    }

    /// How many entries each table holds.
    pub fn tables(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("hooks", self.hooks.len()),
            ("listeners", self.listeners.len),
            ("deaths", self.deaths.len()),
            ("signals", self.signals.len()),
            ("renewals", self.renewals.len()),
            ("resets", self.resets.len()),
            ("refusals", self.refusals.len()),
            ("late answers", self.late_answers.len()),
            ("slow handshakes", self.slow_handshakes.len()),
            ("drops", self.drops.len()),
            ("drops by conn", self.drops_by_conn.len()),
            ("datagrams", self.datagrams.len()),
            ("homes", self.homes.len()),
            ("icmp", self.icmp.len()),
            ("queues", self.queues.len()),
            ("denials", self.denials.len()),
            ("resolver says", self.resolver_says.len()),
            ("addresses", self.addresses.len()),
            ("answers", self.answers.len()),
            ("meanings", self.meanings.len()),
            ("servers", self.servers.len()),
            ("serving", self.serving.len()),
            ("connecting", self.connecting.len()),
            ("failures", self.failures.len()),
            ("losses", self.losses.len()),
        ]
    }

    /// This process listens or answers at that address.
    pub fn serves(&mut self, pid: Pid, address: &Peer) {
        if !self.served_at(pid).any(|known| known == address) {
            self.serving.push(self.now, pid, address.clone());
        }
    }

    /// This process is no more: its number may come back as another's.
    pub fn serves_no_more(&mut self, pid: Pid) {
        self.serving.forget(&pid);
        self.connecting.forget(&pid);
    }

    /// This worker's `connect()` to a TCP address got as far as a SYN.
    pub fn connected(&mut self, worker: Pid, is_v6: bool) {
        if !self.can_connect(worker, is_v6) {
            self.connecting.push(self.now, worker, is_v6);
        }
    }

    /// Whether this worker is known to have connected to addresses of this family.
    pub fn can_connect(&self, worker: Pid, is_v6: bool) -> bool {
        self.connecting.get(&worker).any(|known| *known == is_v6)
    }

    /// Where this process is known to listen or to have answered.
    pub fn served_at(&self, pid: Pid) -> impl Iterator<Item = &Peer> {
        self.serving.get(&pid)
    }

    // What checks ask.

    /// Whether this can be seen here; what nobody reported on is taken as seen.
    pub fn sees(&self, hook: &str) -> bool {
        self.hooks.get(hook).is_none_or(|hook| hook.how.is_some())
    }

    /// Whether this is known to work.
    pub fn surely_sees(&self, hook: &str) -> bool {
        self.hooks.get(hook).is_some_and(|hook| hook.how.is_some())
    }

    /// The line a reader gets about a hook that is missing.
    pub fn without(&self, hook: &str) -> String {
        match self.hooks.get(hook) {
            Some(status) if !status.without.is_empty() => format!("{hook}: {}", status.without),
            _ => format!("{hook}: not seen on this kernel"),
        }
    }

    /// What was lost between two moments.
    pub fn losses(&self, from: Ktime, to: Ktime) -> Vec<LossClass> {
        let mut classes: Vec<LossClass> = self
            .losses
            .get(&())
            .filter(|(at, _)| *at >= from && *at <= to)
            .map(|(_, class)| *class)
            .collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// Whether an address belongs to this host, seen from namespace `netns`.
    pub fn locality(&self, netns: Netns, address: IpAddr) -> Locality {
        if address.is_loopback() || self.addresses.values().any(|(_, known)| known.contains(&address)) {
            Locality::ThisHost
        } else if self.addresses.contains_key(&netns) {
            Locality::Elsewhere
        } else {
            Locality::Unknown
        }
    }

    /// Whether an address belongs to this very namespace.
    pub fn is_own_address(&self, netns: Netns, address: IpAddr) -> bool {
        address.is_loopback()
            || self
                .addresses
                .get(&netns)
                .is_some_and(|(_, known)| known.contains(&address))
    }

    /// What was dropped of the datagrams that were sent from where this master works to a peer, latest first.
    pub fn datagrams_of(&self, master: Pid, peer: SocketAddr) -> impl Iterator<Item = &DatagramDropped> {
        let home = self.homes.get(&master).copied();
        let is_from_home = move |dropped: &&DatagramDropped| {
            home.is_some_and(|home| {
                // Each namespace has its own loopback.
                if peer.ip().is_loopback() {
                    dropped.netns == home
                } else {
                    self.is_own_address(home, dropped.tuple.source.ip())
                }
            })
        };
        self.datagrams.get(&peer).rev().filter(is_from_home)
    }

    /// The namespace in which a peer of this host lives: nginx's own when the address is there, else the first that
    /// has it.
    pub fn netns_of(&self, netns: Netns, address: IpAddr) -> Option<Netns> {
        if self.is_own_address(netns, address) {
            return Some(netns);
        }
        self.addresses
            .iter()
            .find(|(_, (_, known))| known.contains(&address))
            .map(|(netns, _)| *netns)
    }

    /// The one listener that took connections to an address of this host all that time: in this namespace when the address
    /// is its own, else in whatever one has it; none when several have both, since which of them is meant cannot be told.
    pub fn only_listener_at(
        &self,
        own: Netns,
        address: SocketAddr,
        (from, to): (Ktime, Ktime),
    ) -> Option<&ListenerLife> {
        let takes = |life: &&ListenerLife| {
            life.is_open_at(from) && life.is_open_at(to) && covers(&life.listener, address)
        };
        if self.is_own_address(own, address.ip()) {
            return self.listeners_on(own, address.port()).rfind(takes);
        }
        let mut found = self
            .addresses
            .iter()
            .filter(|(_, (_, known))| known.contains(&address.ip()))
            .filter_map(|(netns, _)| self.listeners_on(*netns, address.port()).rfind(takes));
        let only = found.next()?;
        found.next().is_none().then_some(only)
    }

    /// The listeners on a port of a namespace, whatever their address, oldest first.
    pub fn listeners_on(&self, netns: Netns, port: u16) -> impl DoubleEndedIterator<Item = &ListenerLife> {
        self.listeners.on(&Place::Port(netns, port)).iter()
    }

    /// What listened on a port in other namespaces than this one.
    pub fn listeners_beside(&self, own: Netns, port: u16, at: Ktime) -> Vec<&ListenerLife> {
        let places = self.listeners.by_place.iter().filter(
            |(place, _)| matches!(place, Place::Port(netns, listens) if *netns != own && *listens == port),
        );
        let mut open: Vec<&ListenerLife> = places
            .flat_map(|(_, lives)| lives)
            .filter(|life| life.is_open_at(at))
            .collect();
        open.sort_by_key(|life| (life.listener.netns, life.listener.sock.0));
        open
    }

    /// What listened in a namespace at this address, on whatever port, lowest port first.
    pub fn listeners_at_address(&self, netns: Netns, address: IpAddr, at: Ktime) -> Vec<&ListenerLife> {
        let port = |life: &ListenerLife| match life.listener.address {
            Peer::Tcp(listens) => listens.port(),
            Peer::Unix(_) => 0,
        };
        let is_there = |life: &&ListenerLife| {
            life.listener.netns == netns
                && life.is_open_at(at)
                && covers(&life.listener, SocketAddr::new(address, port(life)))
        };
        let all = self.listeners.by_place.values().flatten();
        let mut there: Vec<&ListenerLife> = all.filter(is_there).collect();
        there.sort_by_key(|life| (port(life), life.listener.sock.0));
        there
    }

    /// The unix listeners known for a path.
    pub fn listeners_at(&self, path: &str) -> impl DoubleEndedIterator<Item = &ListenerLife> {
        self.listeners.on(&Place::Path(path.to_owned())).iter()
    }

    /// The last end of a process with this pid.
    pub fn death(&self, pid: Pid) -> Option<&Death> {
        self.deaths.last(&pid)
    }

    /// The end of this process between two moments.
    pub fn death_between(&self, pid: Pid, from: Ktime, to: Ktime) -> Option<&Death> {
        self.deaths
            .get(&pid)
            .rev()
            .find(|death| death.at >= from && death.at <= to)
    }

    /// The last signal that told this process to end, and when it was sent, if that was shortly before.
    pub fn told_before(&self, pid: Pid, at: Ktime) -> Option<(Ktime, Told)> {
        last_told(&self.signals, pid, at).filter(|(_, told)| is_recent(told))
    }

    /// The last signal at which this process, the master of others, may have replaced or ended them: HUP, QUIT or USR2
    /// within a minute, TERM or INT within half of one.
    pub fn told_to_renew(&self, pid: Pid, at: Ktime) -> Option<(Ktime, Told)> {
        let renewed = last_told(&self.renewals, pid, at);
        let stopped = self.told_before(pid, at).filter(|(_, told)| is_stop(told.signal));
        renewed.into_iter().chain(stopped).max_by_key(|(sent, _)| *sent)
    }

    /// Whether a packet that has the exchange's own address was the exchange's. Linux gives one port to connections to
    /// several addresses at a time, and every namespace has ports and a loopback of its own: so to be sure, the other end
    /// must be nginx's peer, or the host must have said that this one is translated. A SYN that the kernel half knew by its
    /// sequence number needs neither: of one that was refused connection tracking keeps nothing.
    fn is_packet_of(&self, exchange: &Exchange, conn: Option<ConnId>, netns: Netns, tuple: &Tuple) -> bool {
        match conn {
            Some(conn) => conn == exchange.id.conn,
            None => is_here(exchange, netns) && (is_to_peer(exchange, tuple) || self.is_translated(exchange)),
        }
    }

    fn is_translated(&self, exchange: &Exchange) -> bool {
        let Some((question, destination)) = translation_of(exchange) else {
            return false;
        };
        matches!(
            self.answer(&question, exchange.ended_at),
            Some(Answer::Translation { destination: Some(real) }) if *real != destination
        )
    }

    /// What the host has to be asked to tell whose packets those were that have the exchange's own address and another
    /// other end: whether the connection was translated.
    pub fn whose_packets(&self, exchange: &Exchange) -> Option<Question> {
        let is_asked = self.may_have_met_others(exchange);
        let (question, _) = translation_of(exchange).filter(|_| is_asked)?;
        self.answer(&question, exchange.ended_at)
            .is_none()
            .then_some(question)
    }

    /// Whether packets were seen with the exchange's own address and another other end: its own after a translation, or
    /// those of another connection from the same port.
    pub fn may_have_met_others(&self, exchange: &Exchange) -> bool {
        let Some(local) = exchange.local else {
            return false;
        };
        let (from, to) = window(exchange);
        let is_unclear = |at: Ktime, conn: Option<ConnId>, netns: Netns, tuple: &Tuple| {
            let is_unknown = conn.is_none() && is_here(exchange, netns) && !is_to_peer(exchange, tuple);
            is_unknown && (from..=to).contains(&at)
        };
        let mut drops = self.drops.get(&local).chain(self.refusals.get(&local));
        self.resets
            .get(&local)
            .any(|reset| is_unclear(reset.at, reset.conn, reset.netns, &reset.tuple))
            || drops.any(|dropped| is_unclear(dropped.at, dropped.conn, dropped.netns, &dropped.tuple))
            || self
                .icmp
                .get(&local)
                .any(|icmp| is_unclear(icmp.at, icmp.conn, icmp.netns, &icmp.tuple))
    }

    /// Resets that this host sent in answer to the exchange's packets.
    pub fn resets_answering(&self, exchange: &Exchange) -> impl Iterator<Item = &ResetSent> {
        let (from, to) = window(exchange);
        exchange
            .local
            .into_iter()
            .flat_map(|local| self.resets.get(&local))
            .filter(move |reset| reset.at >= from && reset.at <= to)
            .filter(move |reset| self.is_packet_of(exchange, reset.conn, reset.netns, &reset.tuple))
    }

    /// An exchange was told: the refusals that answered it have done their work.
    pub fn told(&mut self, exchange: &Exchange) {
        let Some(local) = exchange.local else { return };
        let (from, to) = window(exchange);
        self.resets.spend(&local, |reset| (from..=to).contains(&reset.at));
        self.refusals
            .spend(&local, |refusal| (from..=to).contains(&refusal.at));
        self.late_answers
            .spend(&local, |answer| (from..=to).contains(&answer.at));
    }

    /// The peer's answer to a connect that nginx had given up.
    pub fn late_answer(&self, exchange: &Exchange) -> Option<&LateAnswer> {
        let (local, Peer::Tcp(peer)) = (exchange.local?, &exchange.peer) else {
            return None;
        };
        let (_, to) = window(exchange);
        // The socket is not found any more a moment before its end is told.
        let from = Ktime(exchange.ended_at.0.saturating_sub(SLACK));
        self.late_answers.get(&local).find(|answer| {
            let is_in_time = (from..=to).contains(&answer.at);
            is_in_time && answer.tuple.source == *peer && is_here(exchange, answer.netns)
        })
    }

    /// Another connect to the exchange's peer that was complete during its time, after its SYN had been repeated.
    pub fn slow_handshake_meanwhile(&self, exchange: &Exchange) -> Option<&SlowHandshake> {
        let Peer::Tcp(peer) = exchange.peer else {
            return None;
        };
        let (from, to) = window(exchange);
        self.slow_handshakes
            .get(&(exchange.netns, peer))
            .rfind(|slow| (from..=to).contains(&slow.at))
    }

    /// Drops of the exchange's packets, either way, housekeeping left out.
    pub fn drops_of(&self, exchange: &Exchange) -> Vec<&Dropped> {
        let (from, to) = window(exchange);
        let local = exchange.local;
        let with_its_address = local
            .into_iter()
            .flat_map(|local| self.drops.get(&local).chain(self.refusals.get(&local)))
            .filter(|dropped| self.is_packet_of(exchange, dropped.conn, dropped.netns, &dropped.tuple));
        let mut drops: Vec<&Dropped> = self
            .drops_by_conn
            .get(&exchange.id.conn)
            .chain(with_its_address)
            .filter(|dropped| dropped.at >= from && dropped.at <= to)
            .collect();
        drops.sort_by_key(|dropped| dropped.at);
        drops.dedup();
        drops
    }

    /// ICMP errors this host sent about the exchange's packets.
    pub fn icmp_about(&self, exchange: &Exchange) -> impl Iterator<Item = &IcmpSent> {
        let (from, to) = window(exchange);
        exchange
            .local
            .into_iter()
            .flat_map(|local| self.icmp.get(&local))
            .filter(move |icmp| icmp.at >= from && icmp.at <= to)
            .filter(move |icmp| self.is_packet_of(exchange, icmp.conn, icmp.netns, &icmp.tuple))
    }

    /// The accept queue as it was read for this exchange's connection, fullest first.
    pub fn queue_of(&self, exchange: &Exchange) -> Option<(Ktime, &Listener)> {
        let (from, to) = window(exchange);
        self.queues
            .get(&exchange.id.conn)
            .filter(|(at, _)| *at >= from && *at <= to)
            .max_by_key(|(_, listener)| i64::from(listener.queue) - i64::from(listener.limit))
            .map(|(at, listener)| (*at, listener))
    }

    /// What SELinux denied to a worker that may have ended an attempt at `at`.
    pub fn denials(&self, worker: Pid, at: Ktime) -> impl Iterator<Item = (&Denial, DenialOf)> {
        self.denials.get(&worker).rev().filter_map(move |denied| {
            let of = match denied.told_at {
                Some(told) => (told == at).then_some(DenialOf::This),
                None => {
                    let apart = at.since(denied.denial.at).max(denied.denial.at.since(at));
                    (apart <= LOGGED_WITHIN).then_some(DenialOf::Nothing)
                }
            };
            of.map(|of| (&denied.denial, of))
        })
    }

    /// The host's answer for something that happened at `at`: the first one that is not too old for it.
    pub fn answer(&self, question: &Question, at: Ktime) -> Option<&Answer> {
        let (answers, stands) = if question.is_slow() {
            (&self.meanings, MEANING_STANDS)
        } else {
            (&self.answers, ANSWER_STANDS)
        };
        answers
            .get(question)
            .find(|(answered, _)| at.since(*answered) <= stands)
            .map(|(_, answer)| answer)
    }

    /// Everything that was learnt of what a name means, oldest first.
    pub fn meanings(&self, question: &Question) -> impl DoubleEndedIterator<Item = (Ktime, &NameMeaning)> {
        self.meanings
            .get(question)
            .filter_map(|(at, answer)| match answer {
                Answer::Name(meaning) => Some((*at, meaning)),
                _ => None,
            })
    }

    /// Who last answered on a unix path.
    pub fn server_of(&self, path: &str) -> Option<&Task> {
        self.servers.last(&path.to_owned())
    }

    /// Earlier failures of an upstream, oldest first.
    pub fn failures_of(&self, upstream: &str) -> impl DoubleEndedIterator<Item = &PastFailure> {
        self.failures.get(&upstream.to_owned())
    }
}

/// Whether a packet seen in a namespace can be the exchange's: what goes over loopback stays in its namespace.
fn is_here(exchange: &Exchange, netns: Netns) -> bool {
    let is_loopback = exchange.local.is_some_and(|local| local.ip().is_loopback());
    !is_loopback || netns == exchange.netns
}

/// Whether a packet went between the exchange's two ends as nginx knows them.
fn is_to_peer(exchange: &Exchange, tuple: &Tuple) -> bool {
    let Peer::Tcp(peer) = exchange.peer else {
        return false;
    };
    tuple.destination == peer || tuple.source == peer
}

/// The question what nginx's peer is translated to, and the peer.
pub fn translation_of(exchange: &Exchange) -> Option<(Question, SocketAddr)> {
    let (Some(source), Peer::Tcp(destination)) = (exchange.local, &exchange.peer) else {
        return None;
    };
    let question = Question::Translation {
        pid: exchange.worker,
        destination: *destination,
        source: ForInstance(source),
    };
    Some((question, *destination))
}

/// The time in which records can belong to an exchange.
pub fn window(exchange: &Exchange) -> (Ktime, Ktime) {
    let from = match exchange.connect_at {
        Some(_) => exchange.began_at.0.saturating_sub(SLACK),
        None => {
            let called = exchange.began_at.0.saturating_sub(CALL);
            exchange
                .previous_at
                .map_or(called, |previous| called.max(previous.0.saturating_add(1)))
        }
    };
    (Ktime(from), Ktime(exchange.ended_at.0.saturating_add(SECOND / 3)))
}

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Port(Netns, u16),
    Path(String),
}

/// All listeners of the host, open and lately closed.
#[derive(Debug)]
struct Listeners {
    by_place: HashMap<Place, Vec<ListenerLife>>,
    /// The closed ones in the order of their ends, with when that was told.
    closed: VecDeque<(Ktime, Place, Sock)>,
    len: usize,
    capacity: usize,
    evicted: u64,
}

impl Listeners {
    fn new(capacity: usize) -> Self {
        Self {
            by_place: HashMap::new(),
            closed: VecDeque::new(),
            len: 0,
            capacity: capacity.max(8),
            evicted: 0,
        }
    }

    fn on(&self, place: &Place) -> &[ListenerLife] {
        self.by_place.get(place).map_or(&[], Vec::as_slice)
    }

    fn opened(&mut self, at: Ktime, listener: Listener) {
        self.insert(
            at,
            ListenerLife {
                listener,
                opened_at: Some(at),
                closed: None,
            },
        );
    }

    fn found(&mut self, listener: Listener) {
        let place = place_of(&listener);
        let known = self
            .by_place
            .get_mut(&place)
            .into_iter()
            .flatten()
            .find(|life| is_same(life, &listener));
        match known {
            // A snapshot knows the queue better, and who holds it now.
            Some(life) => life.listener = listener,
            None => self.insert(
                Ktime(0),
                ListenerLife {
                    listener,
                    opened_at: None,
                    closed: None,
                },
            ),
        }
    }

    fn closed(&mut self, now: Ktime, at: Ktime, listener: Listener) {
        let place = place_of(&listener);
        self.closed.push_back((now, place.clone(), listener.sock));
        let task = listener.task.clone();
        let known = self
            .by_place
            .get_mut(&place)
            .into_iter()
            .flatten()
            .find(|life| is_same(life, &listener));
        match known {
            Some(life) => life.closed = Some((at, task)),
            None => self.insert(
                at,
                ListenerLife {
                    listener,
                    opened_at: None,
                    closed: Some((at, task)),
                },
            ),
        }
    }

    /// Forgets what closed so long ago that it explains nothing any more. Most places never see a second listener, so
    /// that nothing else would remove it.
    fn expire(&mut self, now: Ktime) {
        let is_due = |(told, ..): &(Ktime, Place, Sock)| now.since(*told) > CLOSED_MEMORY;
        while let Some((told, place, sock)) = self.closed.pop_front_if(|front| is_due(front)) {
            let Some(lives) = self.by_place.get_mut(&place) else {
                continue;
            };
            let before = lives.len();
            // The address of a socket comes back: a younger listener with it stays.
            lives.retain(|life| {
                life.listener.sock != sock || life.closed.as_ref().is_none_or(|(closed, _)| *closed > told)
            });
            self.len -= before - lives.len();
            if lives.is_empty() {
                self.by_place.remove(&place);
            }
        }
    }

    fn insert(&mut self, at: Ktime, life: ListenerLife) {
        let lives = self.by_place.entry(place_of(&life.listener)).or_default();
        let before = lives.len();
        // A supervisor that restarts something broken opens and closes the same port for ever.
        lives.retain(|life| {
            life.closed
                .as_ref()
                .is_none_or(|(closed, _)| at.since(*closed) <= CLOSED_MEMORY)
        });
        if lives.len() >= 64
            && let Some(oldest_closed) = lives.iter().position(|life| life.closed.is_some())
        {
            lives.remove(oldest_closed);
        }
        self.len -= before - lives.len();
        lives.push(life);
        self.len += 1;
        if self.len > self.capacity {
            self.evict();
        }
    }

    /// Makes room in one go, closed ones and the oldest first, so that a full table costs little per entry.
    fn evict(&mut self) {
        let age = |life: &ListenerLife| match (&life.closed, life.opened_at) {
            (Some((closed, _)), _) => (0, closed.0, life.listener.sock),
            (None, opened) => (1, opened.map_or(0, |at| at.0), life.listener.sock),
        };
        let mut ages: Vec<(u8, u64, Sock)> = self.by_place.values().flatten().map(age).collect();
        let surplus = self
            .len
            .saturating_sub(self.capacity - self.capacity / 8)
            .min(ages.len());
        if surplus == 0 {
            return;
        }
        ages.sort_unstable();
        let youngest_to_go = ages[surplus - 1];
        let mut left = surplus;
        self.by_place.retain(|_, lives| {
            lives.retain(|life| {
                let goes = left > 0 && age(life) <= youngest_to_go;
                left -= usize::from(goes);
                !goes
            });
            !lives.is_empty()
        });
        self.len -= surplus - left;
        self.evicted += (surplus - left) as u64;
    }

    fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }
}

fn is_same(life: &ListenerLife, listener: &Listener) -> bool {
    life.closed.is_none() && life.listener.sock == listener.sock && life.listener.address == listener.address
}

fn place_of(listener: &Listener) -> Place {
    match &listener.address {
        Peer::Tcp(address) => Place::Port(listener.netns, address.port()),
        Peer::Unix(path) => Place::Path(path.clone()),
    }
}

/// Whether a listener takes connections to that address.
pub fn covers(listener: &Listener, address: SocketAddr) -> bool {
    let Peer::Tcp(listens) = listener.address else {
        return false;
    };
    if listens.port() != address.port() {
        return false;
    }
    match (listens.ip(), address.ip()) {
        (IpAddr::V4(any), IpAddr::V4(_)) if any.is_unspecified() => true,
        (IpAddr::V6(any), IpAddr::V6(_)) if any.is_unspecified() => true,
        (IpAddr::V6(any), IpAddr::V4(_)) if any.is_unspecified() => !listener.v6only,
        (one, other) => one == other,
    }
}

/// Whether an end was an orderly one: a stop or restart rather than a death.
pub fn is_orderly(exit: Exit) -> bool {
    match exit {
        // Beside 0, what a shell and the JVM make of the same signals: 128 and its number.
        Exit::Code(code) => matches!(code, 0 | 129 | 130 | 131 | 143),
        // HUP, INT, QUIT, TERM: how services are stopped.
        Exit::Signal(signal) => matches!(signal, 1 | 2 | 3 | 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(sock: u64, port: u16) -> Listener {
        Listener {
            sock: Sock(sock),
            netns: Netns(1),
            address: Peer::Tcp(SocketAddr::from(([0, 0, 0, 0], port))),
            v6only: false,
            queue: 0,
            limit: 128,
            task: Task {
                pid: Pid(9),
                comm: "node".into(),
                exiting: None,
                oom: false,
            },
        }
    }

    #[test]
    fn ten_times_too_many_listeners_stay_bounded_and_are_counted() {
        let mut around = Surroundings::new(64);
        for port in 0..640_u16 {
            around.listener_opened(Ktime(u64::from(port)), listener(u64::from(port), port));
        }
        let n_listeners = around.listeners.len;
        assert!(n_listeners <= 64, "{n_listeners} listeners");
        assert_eq!(around.take_evicted() + n_listeners as u64, 640);
        assert!(
            around.listeners_on(Netns(1), 639).next().is_some(),
            "the newest is there"
        );
    }

    #[test]
    fn the_namespace_of_nginx_outlasts_those_of_others_that_come_and_go() {
        let mut around = Surroundings::new(64);
        let address: IpAddr = "10.0.0.1".parse().expect("an address");
        around.set_addresses(Netns(1), vec![address]);
        for netns in 2..10_000_u32 {
            around.tick(Ktime(u64::from(netns)));
            around.set_addresses(Netns(netns), Vec::new());
            around.is_home(Netns(1));
        }
        assert_eq!(around.addresses.len(), NAMESPACES);
        assert!(around.is_own_address(Netns(1), address));
        assert!(around.addresses.contains_key(&Netns(9_999)));
    }

    #[test]
    fn an_ipv6_wildcard_takes_ipv4_unless_it_is_v6only() {
        let mut any = listener(1, 80);
        any.address = "[::]:80".parse().expect("an address");
        let v4 = "10.0.0.1:80".parse().expect("an address");
        assert!(covers(&any, v4));
        any.v6only = true;
        assert!(!covers(&any, v4));
        assert!(!covers(&listener(1, 80), "[::1]:80".parse().expect("an address")));
    }
}
