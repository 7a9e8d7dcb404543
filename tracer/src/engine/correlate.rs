//! Which name an address has, and which line of the log file belongs to which line heard and which attempt.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use crate::{
    engine::message,
    event::{
        Balancing, Config, ConfiguredName, ConfiguredPeer, Ktime, Limits, Line, LineId, LogLine, Peer, Pid,
    },
};

/// What an attempt's address is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The one upstream it can be; `None` when none or several.
    pub upstream: Option<String>,
    /// Every upstream it belongs to.
    pub upstreams: Vec<String>,
    /// The `server` line, when all agree.
    pub server: Option<String>,
    /// The protocol, when all agree.
    pub via: Option<String>,
    /// Timeouts, each where all agree.
    pub limits: Limits,
}

impl Names {
    /// What all candidates agree on.
    fn agreed(candidates: &[&ConfiguredPeer]) -> Self {
        let upstreams: BTreeSet<&str> = candidates.iter().map(|peer| peer.upstream.as_str()).collect();
        Self {
            upstream: agreed(candidates.iter().map(|peer| Some(peer.upstream.clone()))),
            upstreams: upstreams.into_iter().map(str::to_owned).collect(),
            server: agreed(candidates.iter().map(|peer| Some(peer.server.clone()))),
            via: agreed(candidates.iter().map(|peer| peer.via.clone())),
            limits: Limits {
                connect_timeout_ms: agreed(candidates.iter().map(|peer| peer.limits.connect_timeout_ms)),
                send_timeout_ms: agreed(candidates.iter().map(|peer| peer.limits.send_timeout_ms)),
                read_timeout_ms: agreed(candidates.iter().map(|peer| peer.limits.read_timeout_ms)),
                keepalive: agreed(candidates.iter().map(|peer| peer.limits.keepalive)),
                keepalive_timeout_ms: agreed(candidates.iter().map(|peer| peer.limits.keepalive_timeout_ms)),
                asks_to_keep: agreed(candidates.iter().map(|peer| peer.limits.asks_to_keep)),
                source: agreed(candidates.iter().map(|peer| peer.limits.source)),
            },
        }
    }
}

/// Which configured names an address may come from, that nginx resolved when it read its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The process through whose files such a name is to be looked up.
    pub asks: Pid,
    /// When nginx read its configuration, as far as is known: its workers were forked right after.
    pub loaded_at: Option<Ktime>,
    /// The names; none where the address is also written out, or may come from elsewhere.
    pub names: Vec<ConfiguredName>,
    /// The address was never seen to be what one of them means: nothing else in the configuration leads to it.
    pub is_inferred: bool,
    /// nginx's own nameservers, for a name that it looks up for a request.
    pub resolvers: Vec<SocketAddr>,
    /// Nameservers may be asked.
    pub may_ask: bool,
    /// A worker that is told to end cuts what is still under way after a time.
    pub cuts_at_shutdown: bool,
}

/// Configuration generations and who runs with which.
#[derive(Debug, Default)]
pub struct Configurations {
    /// Per master, oldest first.
    generations: BTreeMap<Pid, Vec<Generation>>,
    /// A worker's master and start.
    workers: BTreeMap<Pid, (Pid, Ktime)>,
    /// Since when a master's executable is heard, where that is not always; `None`: never.
    heard: BTreeMap<Pid, Option<Ktime>>,
    /// When each master was last told to read its files anew.
    told: BTreeMap<Pid, Ktime>,
    /// Which of them have ended, and when: what comes of them later still has its names, and their numbers may come back.
    ended: BTreeMap<Pid, Ktime>,
    /// Masters that have ended, to be forgotten when nothing of theirs can come any more.
    leaving: BTreeSet<Pid>,
}

#[derive(Debug)]
struct Generation {
    since: Ktime,
    config: Config,
    peers: BTreeMap<Peer, Named>,
    /// Those that are spoken to over UDP.
    datagrams: BTreeMap<Peer, Named>,
}

/// A peer as the configuration names it.
#[derive(Debug, Default)]
struct Named {
    configured: Vec<ConfiguredPeer>,
    /// What it is called where the protocol is not told: so for every attempt, hence worked out once.
    names: Names,
}

fn named(configured: &[ConfiguredPeer]) -> BTreeMap<Peer, Named> {
    let mut peers: BTreeMap<Peer, Named> = BTreeMap::new();
    for peer in configured {
        let named = peers.entry(peer.peer.clone()).or_default();
        named.configured.push(peer.clone());
    }
    for named in peers.values_mut() {
        named.names = Names::agreed(&named.configured.iter().collect::<Vec<_>>());
    }
    peers
}

/// How many generations of one master are kept: workers of older ones are long gone.
const GENERATIONS: usize = 8;
/// More names than this that an address may come from say nothing about it.
const MAX_NAMES: usize = 4;
/// How many masters and workers are kept.
const PROCESSES: usize = 4096;

impl Configurations {
    /// Takes in a generation; says which upstreams it changed against the one before, `None` for a first one.
    pub fn add(&mut self, master: Pid, since: Ktime, config: Config) -> Option<BTreeSet<String>> {
        let peers = named(&config.peers);
        let datagrams = named(&config.datagrams);
        if !self.generations.contains_key(&master)
            && self.generations.len() >= PROCESSES
            && let Some(gone) = longest_gone(&self.ended, &self.generations)
        {
            self.generations.remove(&gone);
            self.told.remove(&gone);
            self.heard.remove(&gone);
            self.forget_end(gone);
        }
        let generations = self.generations.entry(master).or_default();
        if since == Ktime(0) {
            // A master just met: what is known of that number is another's, whose number it was before.
            generations.clear();
            self.told.remove(&master);
            self.ended.remove(&master);
            let ended = &self.ended;
            self.workers
                .retain(|pid, (of, _)| *of != master || !ended.contains_key(pid));
        }
        let changed = generations
            .last()
            .filter(|before| !before.config.path.is_empty())
            .map(|before| changed_upstreams(&before.config, &config));
        generations.push(Generation {
            since,
            config,
            peers,
            datagrams,
        });
        generations.sort_by_key(|generation| generation.since);
        if generations.len() > GENERATIONS {
            generations.remove(0);
        }
        changed
    }

    /// Takes in a worker; `true` when it was not known, or only that it is there.
    pub fn add_worker(&mut self, worker: Pid, master: Pid, started: Ktime) -> bool {
        if self.workers.len() >= PROCESSES
            && !self.workers.contains_key(&worker)
            && let Some(gone) = longest_gone(&self.ended, &self.workers)
        {
            self.workers.remove(&gone);
            self.forget_end(gone);
        }
        let was_another = self.ended.remove(&worker).is_some();
        let known = self.workers.insert(worker, (master, started));
        // An instance may be told with a worker whose start is told a moment later.
        let start_is_news = |(_, known): (Pid, Ktime)| known == Ktime(0) && started > known;
        known.is_none_or(start_is_news) || was_another
    }

    /// Takes in a worker whose start is not known: it was there before.
    pub fn add_worker_if_new(&mut self, worker: Pid, master: Pid) {
        if !self.is_running(worker) {
            self.add_worker(worker, master, Ktime(0));
        }
    }

    /// Takes in that a process has ended.
    pub fn ended(&mut self, pid: Pid, at: Ktime) {
        if !self.is_process(pid) {
            return;
        }
        self.ended.insert(pid, at);
        // A master that another one started, in a binary upgrade, is a worker of that one as well.
        if self.is_master(pid) {
            self.leaving.insert(pid);
        }
        // The workers of a master that was killed go on without it.
        if let Some((master, _)) = self.workers.get(&pid)
            && self.ended.contains_key(master)
        {
            self.leaving.insert(*master);
        }
    }

    /// Forgets instances that ended `patience` ago; yields their masters.
    pub fn expire(&mut self, now: Ktime, patience: u64) -> Vec<Pid> {
        let is_over = |master: &Pid| self.ended.get(master).is_none_or(|at| now.since(*at) > patience);
        let due: Vec<Pid> = self
            .leaving
            .iter()
            .filter(|master| is_over(master))
            .copied()
            .collect();
        let mut gone = Vec::new();
        for master in due {
            self.leaving.remove(&master);
            let of_it = |(pid, (of, _)): &(&Pid, &(Pid, Ktime))| *of == master && self.is_running(**pid);
            // One that was met again, or has a worker that lives on, whose end will come.
            if !self.ended.contains_key(&master) || self.workers.iter().any(|worker| of_it(&worker)) {
                continue;
            }
            self.generations.remove(&master);
            let workers = self.workers.iter().filter(|(_, (of, _))| *of == master);
            let pids: Vec<Pid> = workers.map(|(pid, _)| *pid).chain([master]).collect();
            for pid in pids {
                self.workers.remove(&pid);
                self.forget_end(pid);
            }
            self.told.remove(&master);
            self.heard.remove(&master);
            gone.push(master);
        }
        gone
    }

    /// Forgets the end of a process of which nothing else is known any more.
    fn forget_end(&mut self, pid: Pid) {
        if !self.is_process(pid) {
            self.ended.remove(&pid);
        }
    }

    /// Whether this process is nginx's, and has not ended: its number may be another's by now.
    pub fn is_running(&self, pid: Pid) -> bool {
        self.is_process(pid) && !self.ended.contains_key(&pid)
    }

    /// Takes in from when on the log function of an instance is heard.
    pub fn set_heard(&mut self, master: Pid, since: Option<Ktime>) {
        if since == Some(Ktime(0)) {
            self.heard.remove(&master);
            return;
        }
        if self.heard.len() >= PROCESSES
            && !self.heard.contains_key(&master)
            && let Some(gone) = longest_gone(&self.ended, &self.heard)
        {
            self.heard.remove(&gone);
        }
        self.heard.insert(master, since);
    }

    /// Since when the log function of this worker's executable is heard; `None`: never.
    pub fn heard_since(&self, worker: Pid) -> Option<Ktime> {
        let master = self.workers.get(&worker).map_or(worker, |(master, _)| *master);
        self.heard.get(&master).copied().unwrap_or(Some(Ktime(0)))
    }

    /// Which configuration a worker runs with: whose, and since when.
    pub fn generation_of(&self, worker: Pid) -> (Pid, Ktime) {
        let master = self.workers.get(&worker).map_or(worker, |(master, _)| *master);
        (
            master,
            self.generation(worker)
                .map_or(Ktime(0), |generation| generation.since),
        )
    }

    /// Whether this process is a master with a configuration.
    pub fn is_master(&self, pid: Pid) -> bool {
        self.generations.contains_key(&pid)
    }

    /// Whether this process is nginx's: a worker or a master.
    pub fn is_process(&self, pid: Pid) -> bool {
        self.workers.contains_key(&pid) || self.is_master(pid)
    }

    /// What `peer` is called in this worker's configuration. `scheme`: the protocol, where the log line tells it.
    pub fn names(&self, worker: Pid, peer: &Peer, scheme: Option<&str>) -> Names {
        let Some(named) = self
            .generation(worker)
            .and_then(|generation| generation.peers.get(peer))
        else {
            return Names::default();
        };
        if scheme.is_none() {
            return named.names.clone();
        }
        let of_scheme: Vec<&ConfiguredPeer> = named
            .configured
            .iter()
            .filter(|candidate| candidate.via.as_deref() == scheme)
            .collect();
        if of_scheme.is_empty() {
            named.names.clone()
        } else {
            Names::agreed(&of_scheme)
        }
    }

    /// [`Self::names`] where it is spoken to over UDP.
    pub fn names_over_udp(&self, worker: Pid, peer: &Peer) -> Names {
        let generation = self.generation(worker);
        let named = generation.and_then(|generation| generation.datagrams.get(peer));
        let mut names = named.map_or_else(Names::default, |named| named.names.clone());
        // Nothing else of nginx's logs so.
        names.via = Some("stream".to_owned());
        names
    }

    /// Takes in that a master was told to read its files anew.
    pub fn told_to_reload(&mut self, master: Pid, at: Ktime) {
        if self.generations.contains_key(&master) {
            self.told.insert(master, at);
        }
    }

    /// The names that `peer` may come from in this worker's configuration.
    pub fn resolved(&self, worker: Pid, peer: &Peer) -> Resolved {
        let (Some(generation), Peer::Tcp(address)) = (self.generation(worker), peer) else {
            return Resolved::default();
        };
        let config = &generation.config;
        let of_port = || config.names.iter().filter(|name| name.port == address.port());
        let (names, is_inferred): (Vec<&ConfiguredName>, bool) = match generation.peers.get(peer) {
            Some(named) => {
                let name_of = |peer: &ConfiguredPeer| {
                    of_port().find(|name| (&name.upstream, &name.server) == (&peer.upstream, &peer.server))
                };
                let names: Option<Vec<_>> = named.configured.iter().map(name_of).collect();
                (names.unwrap_or_default(), false)
            }
            None if config.is_whole => (of_port().collect(), true),
            None => (vec![], false),
        };
        if names.is_empty() || names.len() > MAX_NAMES {
            return Resolved::default();
        }
        Resolved {
            asks: self.workers.get(&worker).map_or(worker, |(master, _)| *master),
            loaded_at: self.loaded_at(worker, generation),
            names: names.into_iter().cloned().collect(),
            is_inferred,
            ..Resolved::default()
        }
    }

    /// Whether this worker, when it is told to end, waits for its requests for a limited time only.
    pub fn cuts_at_shutdown(&self, worker: Pid) -> bool {
        self.generation(worker)
            .is_some_and(|generation| generation.config.cuts_at_shutdown)
    }

    /// Whom this worker asks for names of requests.
    pub fn resolvers(&self, worker: Pid) -> Resolved {
        let Some(generation) = self.generation(worker) else {
            return Resolved::default();
        };
        Resolved {
            asks: self.master_of(worker),
            resolvers: generation.config.resolvers.clone(),
            may_ask: generation.config.may_ask_names,
            ..Resolved::default()
        }
    }

    /// When the configuration of a worker was read: the first worker that has it was forked right after, one that
    /// replaced a crashed worker later.
    fn loaded_at(&self, worker: Pid, generation: &Generation) -> Option<Ktime> {
        let (master, started) = self.workers.get(&worker)?;
        let told = self.told.get(master).copied().unwrap_or_default();
        let from = if told <= *started {
            generation.since.max(told)
        } else {
            generation.since
        };
        let starts = self.workers.values().filter(|(of, _)| of == master);
        starts
            .map(|(_, at)| *at)
            .filter(|at| *at >= from && *at > Ktime(0))
            .min()
    }

    /// The addresses of one upstream in this worker's configuration, and when nginx leaves them out.
    pub fn peers_of(&self, worker: Pid, upstream: &str) -> BTreeMap<Peer, Option<Balancing>> {
        self.generation(worker)
            .into_iter()
            .flat_map(|generation| &generation.config.peers)
            .filter(|peer| peer.upstream == upstream)
            .map(|peer| (peer.peer.clone(), peer.balancing))
            .collect()
    }

    /// When nginx leaves out this peer of an upstream, as this worker's configuration has it; `None`: that is not known, or
    /// its lines do not agree.
    pub fn balancing(&self, worker: Pid, upstream: &str, peer: &Peer) -> Option<Balancing> {
        let configured = &self.generation(worker)?.peers.get(peer)?.configured;
        let of_upstream = configured
            .iter()
            .filter(|configured| configured.upstream == upstream);
        agreed(of_upstream.map(|configured| configured.balancing))
    }

    /// The workers with which a worker shares what a `zone` holds, by their master and when it read its files.
    pub fn siblings(&self, worker: Pid) -> Option<(Pid, Ktime)> {
        Some((self.master_of(worker), self.generation(worker)?.since))
    }

    /// The master of a worker; a process that serves without one is its own.
    pub fn master_of(&self, worker: Pid) -> Pid {
        self.workers.get(&worker).map_or(worker, |(master, _)| *master)
    }

    /// Whether the address is a resolver of this worker's configuration.
    pub fn is_resolver(&self, worker: Pid, address: SocketAddr) -> bool {
        self.generation(worker)
            .is_some_and(|generation| generation.config.resolvers.contains(&address))
    }

    /// Whether any generation of any instance names a peer with this port or path.
    pub fn mentions(&self, place: &Peer) -> bool {
        let mut generations = self.generations.values().flatten();
        match place {
            Peer::Unix(_) => generations.any(|generation| generation.peers.contains_key(place)),
            Peer::Tcp(address) => generations.any(|generation| {
                generation
                    .peers
                    .keys()
                    .any(|peer| matches!(peer, Peer::Tcp(peer) if peer.port() == address.port()))
            }),
        }
    }

    /// How many entries each table holds.
    pub fn tables(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("workers", self.workers.len()),
            ("heard since", self.heard.len()),
            ("told to reload", self.told.len()),
            ("ended", self.ended.len()),
            ("leaving", self.leaving.len()),
            ("generations", self.generations.values().map(Vec::len).sum()),
        ]
    }

    /// The generation a worker runs with: the newest one not younger than the worker itself.
    fn generation(&self, worker: Pid) -> Option<&Generation> {
        let newest_before = |master: &Pid, started: Ktime| {
            let generations = self.generations.get(master)?;
            generations
                .iter()
                .rev()
                .find(|generation| generation.since <= started)
                .or_else(|| generations.first())
        };
        if let Some((master, started)) = self.workers.get(&worker) {
            return newest_before(master, *started);
        }
        // A process that is its own master, or one not introduced yet: whose it is, nobody can say.
        self.generations.get(&worker)?.last()
    }
}

/// Which of a table's processes makes room: the one that ended first, and only where all run the lowest number.
fn longest_gone<T>(ended: &BTreeMap<Pid, Ktime>, table: &BTreeMap<Pid, T>) -> Option<Pid> {
    let gone = ended.iter().filter(|(pid, _)| table.contains_key(pid));
    let first = gone.min_by_key(|(_, at)| **at).map(|(pid, _)| *pid);
    first.or_else(|| table.keys().next().copied())
}

fn changed_upstreams(before: &Config, after: &Config) -> BTreeSet<String> {
    let lines = |config: &Config| -> BTreeSet<(String, Peer, String)> {
        let line = |peer: &ConfiguredPeer| (peer.upstream.clone(), peer.peer.clone(), peer.server.clone());
        config.peers.iter().map(line).collect()
    };
    lines(before)
        .symmetric_difference(&lines(after))
        .map(|(upstream, ..)| upstream.clone())
        .collect()
}

/// The value all agree on.
fn agreed<T: PartialEq>(mut values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = values.next()??;
    values
        .all(|value| value.as_ref() == Some(&first))
        .then_some(first)
}

/// Lines heard at their source that wait for their text in the file, and the reverse.
///
/// The two come by different ways, so either may be first; within one worker both keep their order.
#[derive(Debug)]
pub struct LogJoin {
    lines: VecDeque<(Ktime, Line)>,
    texts: VecDeque<(Ktime, LogLine)>,
    capacity: usize,
    given_up: u64,
}

/// How long one half waits for the other: a file may be read late, and nothing is lost by waiting.
const JOIN_WAIT: u64 = 2_000_000_000;

impl LogJoin {
    /// An empty join of at most `capacity` waiting halves each.
    pub fn new(capacity: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            texts: VecDeque::new(),
            capacity: capacity.max(1),
            given_up: 0,
        }
    }

    /// A line was heard: its text, when the file was faster.
    pub fn heard(&mut self, now: Ktime, line: &Line) -> Option<LogLine> {
        let found = self
            .texts
            .iter()
            .position(|(_, text)| message::is_same(line, text));
        if let Some(index) = found {
            return self.texts.remove(index).map(|(_, text)| text);
        }
        bounded_push(&mut self.lines, self.capacity, now, line.clone());
        None
    }

    /// A line of the file was read: which line heard it is.
    pub fn read(&mut self, now: Ktime, text: &LogLine) -> Option<LineId> {
        let found = self
            .lines
            .iter()
            .position(|(_, line)| message::is_same(line, text));
        if let Some(index) = found {
            return self.lines.remove(index).map(|(_, line)| line.id);
        }
        self.given_up += u64::from(self.texts.len() >= self.capacity);
        bounded_push(&mut self.texts, self.capacity, now, text.clone());
        None
    }

    /// Takes the oldest waiting text that `fits`.
    pub fn take_text(&mut self, fits: impl Fn(&LogLine) -> bool) -> Option<LogLine> {
        let index = self.texts.iter().position(|(_, text)| fits(text))?;
        self.texts.remove(index).map(|(_, text)| text)
    }

    /// Takes the oldest text that has waited so long for its line and `fits`.
    pub fn take_unheard(
        &mut self,
        now: Ktime,
        wait: u64,
        fits: impl Fn(&LogLine) -> bool,
    ) -> Option<LogLine> {
        let is_unheard = |(read_at, text): &(Ktime, LogLine)| now.since(*read_at) >= wait && fits(text);
        let index = self.texts.iter().position(is_unheard)?;
        self.texts.remove(index).map(|(_, text)| text)
    }

    /// Forgets halves that waited too long: the other one never came (another level, another file).
    pub fn expire(&mut self, now: Ktime) {
        while self
            .lines
            .front()
            .is_some_and(|(at, _)| now.since(*at) > JOIN_WAIT)
        {
            self.lines.pop_front();
        }
        while self
            .texts
            .front()
            .is_some_and(|(at, _)| now.since(*at) > JOIN_WAIT)
        {
            self.texts.pop_front();
            self.given_up += 1;
        }
    }

    /// How many texts nothing was found for; those that still wait are counted as well.
    pub fn texts_given_up(&self) -> u64 {
        self.given_up + self.texts.len() as u64
    }

    /// The oldest of the texts read before a moment that say the same of the same peer, and how many say so.
    pub fn alike(&self, read_before: Ktime) -> Vec<(LogLine, usize)> {
        let mut alike: Vec<(&LogLine, usize)> = Vec::new();
        for (_, text) in self.texts.iter().filter(|(at, _)| *at <= read_before) {
            match alike.iter_mut().find(|(first, _)| is_alike(first, text)) {
                Some((_, n)) => *n += 1,
                None => alike.push((text, 1)),
            }
        }
        alike.into_iter().map(|(text, n)| (text.clone(), n)).collect()
    }

    /// How many halves wait.
    pub fn len(&self) -> usize {
        self.lines.len() + self.texts.len()
    }
}

/// Whether two texts say the same of the same peer.
pub fn is_alike(one: &LogLine, other: &LogLine) -> bool {
    let said = |text: &LogLine| (text.pid, text.errno);
    said(one) == said(other)
        && (&one.message, &one.action, &one.peer) == (&other.message, &other.action, &other.peer)
        && (one.peer.is_some() || one.upstream == other.upstream)
}

fn bounded_push<T>(queue: &mut VecDeque<(Ktime, T)>, capacity: usize, now: Ktime, value: T) {
    if queue.len() >= capacity {
        queue.pop_front();
    }
    queue.push_back((now, value));
}

/// The protocol of a log line's `upstream: "http://…"`.
pub fn scheme(log: &LogLine) -> Option<&str> {
    log.upstream
        .as_deref()?
        .split_once("://")
        .map(|(scheme, _)| scheme)
}

/// The name in `upstream: "http://NAME/…"`, which is an upstream's only where no peer was chosen.
pub fn named_upstream(log: &LogLine) -> Option<&str> {
    let (_, rest) = log.upstream.as_deref()?.split_once("://")?;
    rest.split('/').next().filter(|name| !name.is_empty())
}

/// Whether a log line's `upstream: "…"` is about this peer. Behind a unix path nginx does not always write the colon
/// that ends it, so the path is looked for rather than cut out.
pub fn names_peer(log: &LogLine, peer: &Peer) -> bool {
    log.peer.as_ref() == Some(peer)
        || (matches!(peer, Peer::Unix(_))
            && log
                .upstream
                .as_deref()
                .is_some_and(|upstream| upstream.contains(&peer.to_string())))
}
