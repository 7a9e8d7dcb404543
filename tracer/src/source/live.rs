//! The live source: the kernel's records, nginx's instances and log files, and answers of the host, as one list of
//! stamped inputs.
//!
//! It is asked for what is new ([`Live::poll`]) and never waits; which time passes is the caller's affair.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use crate::{
    event::{
        Answer, Config, ConfiguredPeer, EndKind, Event, Exchange, Input, Ktime, Line, LossClass, Netns, Peer,
        Pid, Question, Stamped, decode::Decoder,
    },
    host,
    kernel::{Kernel, KernelOptions, Uncut, ring::Ring},
    model::HookStatus,
    nginx::{
        config,
        error_log::{self, Zone},
        find::{self, Found, NAMES, Role, Target},
        tail::Tail,
        texts,
    },
};

/// Most records taken at one go, so that other inputs get their turn.
const BATCH: usize = 20_000;
/// How long after a change of nginx's processes they are looked at: titles and workers appear by then.
const LOOK_AFTER: u64 = 10_000_000;
/// How long after a process's end what it left is swept: its sockets close within a millisecond or two.
const SWEEP_AFTER: u64 = 500_000_000;
/// How long a line about a unix upstream's timeout waits for the exchange it ended.
const UNIX_LINE_WAIT: u64 = 100_000_000;
const TICK: u64 = 100_000_000;
const SECOND: u64 = 1_000_000_000;
/// Error-log files followed at once.
const MAX_LOGS: usize = 64;
const SWEEP_EVERY: u64 = 10 * SECOND;
const CLOCK_EVERY: u64 = 60 * SECOND;
/// A master that forks again within this time starts the workers of one generation.
const GENERATION: u64 = 2 * SECOND;
/// A worker that has ended by itself is replaced at once.
const REPLACED_WITHIN: u64 = SECOND / 10;

/// Where names come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Found by itself.
    Auto,
    /// Left out.
    Off,
    /// This file.
    Path(PathBuf),
}

/// What to watch, and how.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Which nginx.
    pub target: Target,
    /// Its configuration.
    pub config: Source,
    /// Its error log.
    pub error_log: Source,
    /// Hooks to leave out.
    pub without: BTreeSet<String>,
    /// The system's resolver may be asked for configured names.
    pub resolve: bool,
    /// The programs speak of themselves.
    pub verbose: bool,
}

struct Known {
    found: Found,
    config: Config,
    forked_at: Ktime,
    worker_ended_at: Ktime,
}

/// The live source.
pub struct Live {
    kernel: Kernel,
    ring: Ring,
    decoder: Decoder,
    options: LiveOptions,
    instances: BTreeMap<Pid, Known>,
    members: BTreeSet<Pid>,
    /// When each process was forked, exactly; `/proc` knows it to a hundredth of a second.
    forked: BTreeMap<Pid, Ktime>,
    heard: BTreeSet<(u64, u64)>,
    log: error_log::Context,
    tails: BTreeMap<(u32, String), Tail>,
    named_netns: BTreeSet<Netns>,
    inputs: Vec<Stamped>,
    last: Ktime,
    look_at: Option<Ktime>,
    ended: VecDeque<(Ktime, Pid)>,
    unix_lines: VecDeque<Line>,
    next_tick: u64,
    next_second: u64,
    next_sweep: u64,
    next_clock: u64,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

/// The kernel's clock, as the programs read it.
#[must_use]
pub fn boottime() -> Ktime {
    host::boottime()
}

impl Live {
    /// Finds nginx, loads and attaches the programs, and takes stock of what is there.
    ///
    /// # Errors
    /// No such process, not an nginx, or the kernel refuses: one line that says what to do.
    pub fn start(options: LiveOptions) -> Result<Self> {
        let found = find::find(&options.target)?;
        let mut names: Vec<String> = match &options.target {
            Target::Name(name) if name != "nginx" => vec![name.clone()],
            _ => NAMES.iter().map(|name| (*name).to_owned()).collect(),
        };
        names.extend(found.iter().filter_map(|found| {
            found
                .instance
                .exe
                .trim_end_matches(" (deleted)")
                .rsplit('/')
                .next()
                .map(str::to_owned)
        }));
        if let Target::Pid(_) = options.target {
            // Membership is by parentage; only what the followed nginx itself executes may become one of its own.
            names.truncate(0);
        }
        let mut kernel = Kernel::load(&KernelOptions {
            without: options.without.clone(),
            names,
            executables: executables(&found),
            verbose: options.verbose,
        })?;
        let ring = kernel.take_ring()?;
        let decoder = Decoder {
            drop_reasons: kernel.layout.drop_reasons.clone(),
            reset_reasons: kernel.layout.reset_reasons.clone(),
            symbols: kernel.symbols.clone(),
        };
        let mut live = Self {
            kernel,
            ring,
            decoder,
            options,
            instances: BTreeMap::new(),
            members: BTreeSet::new(),
            forked: BTreeMap::new(),
            heard: found.iter().map(|found| found.executable).collect(),
            log: error_log::Context {
                zone: Zone::utc(),
                pids: BTreeMap::new(),
                unix_paths: Vec::new(),
            },
            tails: BTreeMap::new(),
            named_netns: BTreeSet::new(),
            inputs: Vec::new(),
            last: Ktime(0),
            look_at: None,
            ended: VecDeque::new(),
            unix_lines: VecDeque::new(),
            next_tick: 0,
            next_second: 0,
            next_sweep: 0,
            next_clock: 0,
        };
        live.begin()?;
        Ok(live)
    }

    fn begin(&mut self) -> Result<()> {
        let now = boottime();
        self.clock(now);
        // Processes that started between the first look and the attaching are found by the second.
        let found = find::find(&self.options.target)?;
        self.kernel.follow(
            found
                .iter()
                .flat_map(|found| found.processes.iter().map(|process| process.pid.0)),
        )?;
        let mut status = self.kernel.status().to_vec();
        status.push(self.log_status());
        self.push(now, Input::Hooks(status));
        for found in found {
            self.adopt_instance(now, found);
        }
        if self
            .kernel
            .status()
            .iter()
            .any(|hook| hook.sees == "snapshot" && hook.how.is_some())
        {
            for event in self.kernel.adopt().context("taking stock of open sockets")? {
                self.name_netns(now, &event);
                self.push(now, Input::Kernel(event));
            }
        }
        self.next_second = now.0 + SECOND;
        self.next_sweep = now.0 + SWEEP_EVERY;
        Ok(())
    }

    /// Whether an nginx is followed at this moment.
    #[must_use]
    pub fn is_following(&self) -> bool {
        !self.instances.is_empty()
    }

    /// Takes the log of the BPF programs themselves.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Everything that is new.
    ///
    /// # Errors
    /// A table of the kernel half cannot be read any more.
    pub fn poll(&mut self) -> Result<Vec<Stamped>> {
        self.take_records();
        let now = boottime();
        self.look(now);
        self.take_lines(now);
        self.settle_unix_lines(now)?;
        self.sweep_ended(now)?;
        if now.0 >= self.next_second {
            self.next_second = now.0 + SECOND;
            for (class, count) in self.kernel.losses()? {
                self.push(now, Input::Lost { class, count });
            }
        }
        if now.0 >= self.next_sweep {
            self.next_sweep = now.0 + SWEEP_EVERY;
            for exchange in self.kernel.sweep(now)? {
                self.push(now, Input::Kernel(Event::Exchange(Box::new(exchange))));
            }
        }
        if now.0 >= self.next_clock {
            self.clock(now);
        }
        if now.0 >= self.next_tick {
            self.next_tick = now.0 + TICK;
            self.push(now, Input::Tick);
        }
        Ok(std::mem::take(&mut self.inputs))
    }

    /// The host answered a question.
    pub fn answered(&mut self, question: Question, answer: Answer) {
        self.push(boottime(), Input::Answer { question, answer });
    }

    /// A queue of the tracer's own was full.
    pub fn lost(&mut self, count: u64) {
        self.push(
            boottime(),
            Input::Lost {
                class: LossClass::Queue,
                count,
            },
        );
    }

    /// The end: the rest of the records, what is in flight, and the last input.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn detach(&mut self) -> Result<Vec<Stamped>> {
        // What nginx did before this moment is in the ring by now; what it does later is not waited for.
        let now = boottime();
        let (answered, in_flight) = self.kernel.finish(now)?;
        self.next_second = 0;
        let mut inputs = self.poll()?;
        for exchange in answered {
            self.push(now, Input::Kernel(Event::Exchange(Box::new(exchange))));
        }
        self.push(boottime(), Input::Detach { in_flight });
        inputs.append(&mut self.inputs);
        Ok(inputs)
    }

    fn push(&mut self, at: Ktime, input: Input) {
        // Records of several processors come in the order of their reservation; a stamp never goes back.
        self.last = self.last.max(at);
        self.inputs.push(Stamped { at: self.last, input });
    }

    fn clock(&mut self, now: Ktime) {
        self.next_clock = now.0 + CLOCK_EVERY;
        let (at, unix_ns) = host::clock();
        self.push(at, Input::Clock { unix_ns });
    }

    fn take_records(&mut self) {
        let mut records = Vec::new();
        let decoder = &self.decoder;
        self.ring.drain(BATCH, |bytes| {
            records.push((Decoder::time_of(bytes), decoder.decode(bytes)))
        });
        for (at, event) in records {
            self.note(at, event);
        }
    }

    /// Keeps the books on nginx's processes, and passes the event on.
    fn note(&mut self, at: Ktime, mut event: Event) {
        match &mut event {
            Event::Forked { parent, child, .. } => {
                self.members.insert(*child);
                self.forked.insert(*child, at);
                self.look_soon(at);
                let (parent, child) = (*parent, *child);
                if self.instances.contains_key(&parent) {
                    texts::touch(child);
                    self.begin_generation(at, parent);
                    self.log
                        .pids
                        .insert(host::process::inner_pid(child).unwrap_or(child.0), child);
                    self.push(
                        at,
                        Input::Worker {
                            worker: child,
                            master: parent,
                            started: at,
                        },
                    );
                }
            }
            Event::Executed { pid, is_nginx, .. } => {
                if *is_nginx {
                    self.members.insert(*pid);
                }
                // What the new nginx has done since is behind this record: its names come before.
                self.look_at = Some(at);
                self.look(boottime());
                self.look_soon(at);
            }
            Event::ProcessExited { task, is_nginx, .. } => {
                if *is_nginx {
                    self.look_soon(at);
                    for known in self.instances.values_mut() {
                        if known
                            .found
                            .processes
                            .iter()
                            .any(|process| process.pid == task.pid)
                        {
                            known.worker_ended_at = at;
                        }
                    }
                }
                self.ended.push_back((at, task.pid));
            }
            Event::ListenerOpened { .. } => {
                let event = event.clone();
                self.name_netns(at, &event);
            }
            Event::Line(line) if is_timeout(line) => self.unix_lines.push_back(line.clone()),
            Event::Exchange(exchange) => self.claim_unix_line(exchange),
            _ => {}
        }
        self.push(at, Input::Kernel(event));
    }

    /// The kernel cannot join a timeout's line to a unix connection, whose close nothing shows: where the backend has
    /// read the end within the wait, the exchange is here; the line is the one just before its end.
    fn claim_unix_line(&mut self, exchange: &mut Exchange) {
        if let Some(id) = exchange.line {
            self.unix_lines.retain(|line| line.id != id);
        }
        if !matches!(exchange.peer, Peer::Unix(_))
            || exchange.end != EndKind::Closed
            || exchange.line.is_some()
        {
            return;
        }
        let last = exchange
            .last_received_at
            .or(exchange.last_sent_at)
            .unwrap_or(exchange.began_at);
        let fits: Vec<usize> = self
            .unix_lines
            .iter()
            .enumerate()
            .filter(|(_, line)| {
                line.worker == exchange.worker && line.at > last && line.at <= exchange.ended_at
            })
            .map(|(index, _)| index)
            .collect();
        // Two timeouts in one wait: which of them it was cannot be told.
        if let [index] = fits[..]
            && let Some(line) = self.unix_lines.remove(index)
        {
            exchange.line = Some(line.id);
            exchange.ended_at = line.at;
        }
    }

    fn settle_unix_lines(&mut self, now: Ktime) -> Result<()> {
        while let Some(line) = self.unix_lines.front() {
            if now.since(line.at) < UNIX_LINE_WAIT {
                break;
            }
            let (worker, id) = (line.worker, line.id);
            let unanswered = line.action.as_deref().is_some_and(|action| {
                action.starts_with("reading response header") || action.starts_with("sending request")
            });
            self.unix_lines.pop_front();
            if let Some(exchange) = self.kernel.unix_timed_out(worker, id, unanswered)? {
                self.push(now, Input::Kernel(Event::Exchange(Box::new(exchange))));
            }
        }
        Ok(())
    }

    fn sweep_ended(&mut self, now: Ktime) -> Result<()> {
        while let Some((at, pid)) = self.ended.front().copied() {
            if now.since(at) < SWEEP_AFTER {
                break;
            }
            self.ended.pop_front();
            for exchange in self.kernel.sweep_worker(pid, at)? {
                self.push(now, Input::Kernel(Event::Exchange(Box::new(exchange))));
            }
            self.kernel.forget(pid.0)?;
            self.members.remove(&pid);
            self.forked.remove(&pid);
            self.log.pids.retain(|_, known| *known != pid);
        }
        Ok(())
    }

    fn look_soon(&mut self, at: Ktime) {
        if self.look_at.is_none() {
            self.look_at = Some(Ktime(at.0 + LOOK_AFTER));
        }
    }

    /// Looks at nginx's processes again, when something has changed.
    fn look(&mut self, now: Ktime) {
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.look_at = None;
        let mut found = match &self.options.target {
            Target::Name(_) => find::find(&self.options.target).unwrap_or_default(),
            Target::Pid(pid) => {
                // The instance of that process, and what it became by an upgrade.
                let mut found: Vec<Found> = Vec::new();
                let pids: BTreeSet<Pid> = self
                    .members
                    .iter()
                    .copied()
                    .chain(self.instances.keys().copied())
                    .chain([*pid])
                    .collect();
                for pid in pids {
                    let is_known = found
                        .iter()
                        .any(|found| found.processes.iter().any(|process| process.pid == pid));
                    if !is_known && let Ok(more) = find::find(&Target::Pid(pid)) {
                        found.extend(more);
                    }
                }
                found
            }
        };
        found.sort_by_key(|found| found.instance.pid);
        found.dedup_by_key(|found| found.instance.pid);
        let pids = found
            .iter()
            .flat_map(|found| found.processes.iter().map(|process| process.pid.0));
        if let Err(error) = self.kernel.follow(pids) {
            log::warn!("{error:#}");
        }
        // Workers that outlive their master keep the names they had: nothing tells them anew.
        let orphans: BTreeSet<Pid> = found
            .iter()
            .filter(|found| found.is_orphaned)
            .flat_map(|found| found.processes.iter().map(|process| process.pid))
            .collect();
        let holds_orphan = |known: &Known| {
            known
                .found
                .processes
                .iter()
                .any(|process| orphans.contains(&process.pid))
        };
        let are_known = self.instances.values().any(holds_orphan);
        found.retain(|found| !(found.is_orphaned && are_known));
        let alive: BTreeSet<Pid> = found.iter().map(|found| found.instance.pid).collect();
        self.instances
            .retain(|pid, known| alive.contains(pid) || holds_orphan(known));
        for found in found {
            let is_new = match self.instances.get(&found.instance.pid) {
                Some(known) => known.found.instance != found.instance,
                None => true,
            };
            if is_new {
                self.adopt_instance(now, found);
            }
        }
    }

    /// An instance was found, or its workers changed.
    fn adopt_instance(&mut self, now: Ktime, found: Found) {
        let master = found.instance.pid;
        if self.heard.insert(found.executable)
            && let Err(error) = self.kernel.hear(&exe_link(master))
        {
            log::warn!("pid {master}: its error lines are read from its log file only: {error:#}");
        }
        let netns = found.instance.netns;
        self.push(now, Input::Instance(found.instance.clone()));
        for process in &found.processes {
            self.members.insert(process.pid);
            self.log.pids.insert(process.inner_pid, process.pid);
            if matches!(process.role, Role::Worker | Role::OldWorker | Role::Single) {
                texts::touch(process.pid);
                self.push(
                    now,
                    Input::Worker {
                        worker: process.pid,
                        master,
                        started: self.forked.get(&process.pid).copied().unwrap_or(process.started),
                    },
                );
            }
        }
        if self.named_netns.insert(netns) {
            self.tell_addresses(now, netns, master);
        }
        let known = self.instances.get(&master);
        let forked_at = known.map_or(Ktime(0), |known| known.forked_at);
        let worker_ended_at = known.map_or(Ktime(0), |known| known.worker_ended_at);
        let config = match self.instances.remove(&master) {
            Some(known) => known.config,
            None => {
                let config = self.read_config(&found, None);
                self.tell_config(now, master, Ktime(0), &config);
                self.follow_logs(master, &config);
                config
            }
        };
        self.instances.insert(
            master,
            Known {
                found,
                config,
                forked_at,
                worker_ended_at,
            },
        );
    }

    /// The first worker a master forks after a while has the configuration the master has just read.
    fn begin_generation(&mut self, at: Ktime, master: Pid) {
        let Some(known) = self.instances.get_mut(&master) else {
            return;
        };
        let is_same = at.since(known.forked_at) < GENERATION && known.forked_at.0 != 0;
        // In place of a worker that has just ended the master forks another from its own old memory, whatever the file
        // says by now; after a reload the new workers come first.
        let is_replacement =
            known.worker_ended_at.0 != 0 && at.since(known.worker_ended_at) < REPLACED_WITHIN;
        known.forked_at = at;
        if is_same || is_replacement {
            return;
        }
        let found = known.found.clone();
        let config = self.read_config(&found, Some(at));
        if let Some(known) = self.instances.get_mut(&master)
            && known.config != config
        {
            known.config = config.clone();
            self.tell_config(at, master, at, &config);
            self.follow_logs(master, &config);
        }
    }

    fn read_config(&self, found: &Found, started: Option<Ktime>) -> Config {
        let file = match &self.options.config {
            Source::Auto => None,
            Source::Path(path) => Some(path.as_path()),
            Source::Off => return Config::default(),
        };
        config::read(
            found,
            config::Options {
                file,
                resolve: self.options.resolve,
                started,
            },
        )
    }

    fn tell_config(&mut self, at: Ktime, master: Pid, since: Ktime, config: &Config) {
        let tells_syscalls = self.kernel.layout.tells_syscalls;
        let how = |peer: &ConfiguredPeer| match peer.via.as_deref()? {
            "https" if !peer.upgrades => Some(Uncut::ByAnswer),
            "https" | "grpc" | "stream" | "suwsgi" => Some(Uncut::Whole),
            // A WebSocket's messages are told from requests by the system call that sends them.
            "http" if peer.upgrades && !tells_syscalls => Some(Uncut::Whole),
            _ => None,
        };
        let mut uncut: Vec<_> = config
            .peers
            .iter()
            .filter_map(|peer| match peer.peer {
                Peer::Tcp(address) => Some((address, how(peer)?)),
                Peer::Unix(_) => None,
            })
            .collect();
        // Where uses of one address differ, the last one counts.
        uncut.sort_by_key(|(_, how)| *how == Uncut::Whole);
        if let Err(error) = self.kernel.leave_uncut(&uncut) {
            log::warn!("{error:#}");
        }
        for peer in &config.peers {
            if let Peer::Unix(path) = &peer.peer
                && !self.log.unix_paths.contains(path)
            {
                self.log.unix_paths.push(path.clone());
            }
        }
        self.push(
            at,
            Input::Config {
                master,
                since,
                config: config.clone(),
            },
        );
    }

    /// The addresses of a namespace in which something listens, told once.
    fn name_netns(&mut self, at: Ktime, event: &Event) {
        let (Event::ListenerFound { listener, .. } | Event::ListenerOpened { listener, .. }) = event else {
            return;
        };
        if self.named_netns.contains(&listener.netns) || listener.netns.0 == 0 {
            return;
        }
        // A process may have left the namespace its socket is in; then another one will name it.
        if host::process::netns_of(listener.task.pid) == Some(listener.netns) {
            self.named_netns.insert(listener.netns);
            self.tell_addresses(at, listener.netns, listener.task.pid);
        }
    }

    fn tell_addresses(&mut self, at: Ktime, netns: Netns, pid: Pid) {
        let addresses = host::addresses(pid);
        self.push(at, Input::Addresses { netns, addresses });
    }

    fn log_status(&self) -> HookStatus {
        let off = self.options.error_log == Source::Off;
        HookStatus {
            sees: "error-log-file".to_owned(),
            how: (!off).then(|| "following the files of error_log".to_owned()),
            why_not: off.then(|| "left out with --error-log off".to_owned()),
            without: "attempts carry nginx's message, but not its line with client, request and host"
                .to_owned(),
        }
    }

    /// Follows every error log that this configuration names, each file once however many instances share it.
    fn follow_logs(&mut self, master: Pid, config: &Config) {
        let targets = match &self.options.error_log {
            Source::Off => return,
            Source::Auto => config.error_logs.clone(),
            Source::Path(path) => vec![path.to_string_lossy().into_owned()],
        };
        let reader = match self.options.error_log {
            // The path is meant as this program sees it.
            Source::Path(_) => Pid(std::process::id()),
            _ => master,
        };
        let mounts = host::process::namespace_of(reader, "mnt").unwrap_or(0);
        self.log.zone = Zone::of(master);
        for target in targets {
            if self.tails.len() >= MAX_LOGS {
                log::warn!("more than {MAX_LOGS} error logs: {target} is not read");
                return;
            }
            let tail = self
                .tails
                .entry((mounts, target.clone()))
                .or_insert_with(|| Tail::open(reader, std::slice::from_ref(&target)));
            for unseen in tail.unseen() {
                log::info!("{unseen}");
            }
        }
    }

    fn take_lines(&mut self, now: Ktime) {
        let mut lines = Vec::new();
        let mut lost = 0;
        for tail in self.tails.values_mut() {
            lines.append(&mut tail.poll_lines());
            lost += tail.take_lost();
        }
        let unix_seconds = host::clock().1 / 1_000_000_000;
        for line in lines {
            if let Some(parsed) = error_log::parse_fresh(&line, &mut self.log, unix_seconds) {
                self.push(now, Input::LogLine(parsed));
            }
        }
        if lost > 0 {
            self.push(
                now,
                Input::Lost {
                    class: LossClass::Queue,
                    count: lost,
                },
            );
        }
    }
}

/// A line that says nginx's timer for an upstream expired.
fn is_timeout(line: &Line) -> bool {
    line.level <= 4
        && line.errno.is_some_and(|errno| errno.0 == 110)
        && line.message.starts_with("upstream timed out")
}

fn exe_link(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

/// One path per executable, through a process that runs it: right for containers and for replaced files.
fn executables(found: &[Found]) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    found
        .iter()
        .filter(|found| seen.insert(found.executable))
        .map(|found| exe_link(found.instance.pid))
        .collect()
}
