//! The live source: the kernel's records, nginx's instances and log files, and answers of the host, as one list of
//! stamped inputs.
//!
//! It is asked for what is new ([`Live::poll`]) and never waits; which time passes is the caller's affair.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    event::{
        Answer, Config, ConfiguredPeer, EndKind, Event, Exchange, Input, Instance, Ktime, Line, LossClass,
        Netns, Peer, Pid, Question, Stamped, decode::Decoder,
    },
    host,
    kernel::{Kernel, KernelOptions, Uncut, Voice, ring::Ring},
    model::HookStatus,
    nginx::{
        config,
        error_log::{self, Zone},
        find::{self, Found, NAMES, Role, Target},
        reload::Reloads,
        tail::Tail,
        texts,
    },
};

/// Records taken at one go: so few that they stay in the processor's cache until they are written.
const BATCH: usize = 256;
/// Most records taken in a row, so that other inputs get their turn.
const IN_A_ROW: usize = 20_000;
/// How long after a change of nginx's processes they are looked at: titles and workers appear by then.
const LOOK_AFTER: u64 = 10_000_000;
/// How long after a process's end what it left is swept: its sockets close within a millisecond or two.
const SWEEP_AFTER: u64 = 500_000_000;
/// How long a line about a unix upstream's timeout waits for the exchange it ended.
const UNIX_LINE_WAIT: u64 = 100_000_000;
const TICK: u64 = 100_000_000;
const SECOND: u64 = 1_000_000_000;
/// How much of its error log an nginx that started since may have written before it was found.
const WRITTEN_MEANWHILE: u64 = 64 << 10;
/// Error-log files followed at once.
const MAX_LOGS: usize = 64;
const SWEEP_EVERY: u64 = 10 * SECOND;
const CLOCK_EVERY: u64 = 60 * SECOND;
/// So far the wall clock goes from kernel time before it counts as set anew.
const CLOCK_STEP: u64 = SECOND / 4;
/// How long the addresses of a namespace stand when something new listens there.
const ADDRESSES_STAND: u64 = 5 * SECOND;
/// Of how many namespaces it is remembered when their addresses were told.
const MAX_NAMESPACES: usize = 4096;
/// What makes nginx's master read its files anew.
const SIGHUP: u8 = 1;
/// `NGX_LOG_EMERG`.
const EMERG: u8 = 1;
/// A master's child that executes something does so this soon.
const EXECUTED_WITHIN: u64 = 5_000_000;

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
    /// The beginnings of requests and answers may be read.
    pub capture: bool,
    /// The programs speak of themselves.
    pub verbose: bool,
}

struct Known {
    found: Found,
    config: Config,
    reloads: Reloads<Config>,
    /// When the first worker with this configuration was forked; 0: before the instance was met.
    generation: Ktime,
    /// The master of another executable that this one started (a binary upgrade under way).
    upgraded_by: Option<Pid>,
}

/// The live source.
pub struct Live {
    kernel: Kernel,
    ring: Ring,
    decoder: Decoder,
    options: LiveOptions,
    instances: BTreeMap<Pid, Known>,
    members: BTreeSet<Pid>,
    /// When each process was forked, exactly, and by whom; `/proc` knows the time to a hundredth of a second.
    forked: BTreeMap<Pid, (Ktime, Pid)>,
    /// Since when the log function of each executable is heard; `None`: it cannot be.
    heard: BTreeMap<(u64, u64), Option<Ktime>>,
    /// Records that wait for the next look: whether a child executes something is not yet known.
    held: VecDeque<(Ktime, Event)>,
    has_begun: bool,
    is_ending: bool,
    log: error_log::Context,
    tails: BTreeMap<(u32, String), Tail>,
    /// Those of which the next lines may be older than the trace.
    reaching_back: BTreeSet<(u32, String)>,
    named_netns: BTreeMap<Netns, Ktime>,
    inputs: Vec<Stamped>,
    last: Ktime,
    /// Records taken since the other inputs had their turn.
    in_a_row: usize,
    /// When the log files were read last.
    lines_read_at: Ktime,
    look_at: Option<Ktime>,
    /// The last poll stopped at its limit and left records in the ring.
    has_more: bool,
    ended: VecDeque<(Ktime, Pid)>,
    unix_lines: VecDeque<Line>,
    next_tick: u64,
    next_second: u64,
    next_sweep: u64,
    next_clock: u64,
    /// What was last told of the wall clock: see [`host::wall_clock_offset`].
    wall_offset: i64,
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
        let mut kernel = Kernel::load(&KernelOptions {
            without: options.without.clone(),
            names,
            by_parentage: matches!(options.target, Target::Pid(_)),
            executables: executables(&found)
                .into_values()
                .map(|path| {
                    let voice = voice(&path);
                    (path, voice)
                })
                .collect(),
            takes_requests: options.capture,
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
            heard: BTreeMap::new(),
            held: VecDeque::new(),
            has_begun: false,
            is_ending: false,
            log: error_log::Context {
                zone: Zone::utc(),
                pids: BTreeMap::new(),
                unix_paths: Vec::new(),
            },
            tails: BTreeMap::new(),
            reaching_back: BTreeSet::new(),
            named_netns: BTreeMap::new(),
            inputs: Vec::new(),
            last: Ktime(0),
            in_a_row: 0,
            lines_read_at: Ktime(0),
            look_at: None,
            has_more: false,
            ended: VecDeque::new(),
            unix_lines: VecDeque::new(),
            next_tick: 0,
            next_second: 0,
            next_sweep: 0,
            next_clock: 0,
            wall_offset: 0,
        };
        for (executable, path) in executables(&found) {
            let since = live.kernel.hears(&path).then_some(Ktime(0));
            live.heard.insert(executable, since);
        }
        live.hear_installed();
        live.begin()?;
        Ok(live)
    }

    /// Hears executables before they run, so that the first failures of an nginx that starts later have their lines.
    fn hear_installed(&mut self) {
        let path = std::env::var_os("PATH");
        for (executable, path) in find::installed(&self.options.target, path.as_deref()) {
            if self.heard.contains_key(&executable) {
                continue;
            }
            match self.kernel.hear(&path, voice(&path)) {
                Ok(()) => {
                    self.heard.insert(executable, Some(Ktime(0)));
                }
                Err(error) => log::debug!("{}: not heard: {error:#}", path.display()),
            }
        }
    }

    /// Hears the executable of a process that runs; since when it is heard.
    fn hear(&mut self, pid: Pid, executable: (u64, u64)) -> Option<Ktime> {
        if let Some(since) = self.heard.get(&executable) {
            return *since;
        }
        let since = match self.kernel.hear(&exe_link(pid), voice(&exe_link(pid))) {
            Ok(()) => Some(boottime()),
            Err(error) => {
                log::warn!("pid {pid}: its error lines are read from its log file only: {error:#}");
                None
            }
        };
        self.heard.insert(executable, since);
        since
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
        self.has_begun = true;
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

    /// What is new, or the first of it: see [`Self::is_behind`].
    ///
    /// # Errors
    /// A table of the kernel half cannot be read any more.
    pub fn poll(&mut self) -> Result<Vec<Stamped>> {
        self.inputs.reserve(BATCH);
        if self.in_a_row == 0 || self.last > self.lines_read_at {
            // nginx is heard before it writes: a line read before the records finds its own among them, however late
            // both are. The other way round a starved tracer would read a second of failures without their lines; so
            // would one that never gets to the end of the ring, once its records are newer than the lines.
            self.take_lines();
        }
        let n_taken = self.take_records();
        self.in_a_row += n_taken;
        self.has_more = n_taken >= BATCH;
        if !self.has_more || self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            self.take_the_rest()?;
        }
        Ok(std::mem::take(&mut self.inputs))
    }

    /// The last poll left something: there were more records than it takes at one go.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.in_a_row > 0
    }

    /// Everything that is no record.
    fn take_the_rest(&mut self) -> Result<()> {
        let now = self.now();
        self.look(now);
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
        let is_due = now.0 >= self.next_clock || (now.0 >= self.next_tick && self.clock_was_set());
        if is_due && !self.has_more {
            self.clock(now);
        }
        if now.0 >= self.next_tick {
            self.next_tick = now.0 + TICK;
            self.push(now, Input::Tick);
        }
        Ok(())
    }

    /// The host answered a question.
    pub fn answered(&mut self, question: Question, answer: Answer) {
        // It may be said between two looks at the ring, where older records wait.
        self.push(self.last, Input::Answer { question, answer });
    }

    /// A queue of the tracer's own was full.
    pub fn lost(&mut self, count: u64) {
        self.push(
            self.last,
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
        self.is_ending = true;
        let mut inputs = Vec::new();
        loop {
            inputs.append(&mut self.poll()?);
            if !self.has_more || self.last >= now {
                break;
            }
        }
        self.next_second = 0;
        self.take_the_rest()?;
        // The lines of the last records, which nginx wrote after they were heard.
        self.take_lines();
        for exchange in answered {
            self.push(now, Input::Kernel(Event::Exchange(Box::new(exchange))));
        }
        self.push(boottime(), Input::Detach { in_flight });
        inputs.append(&mut self.inputs);
        Ok(inputs)
    }

    /// The moment for what is no record. It must not lie before records that still wait: with a second of them in the
    /// ring, what the engine keeps for a while would be gone before the record it is kept for comes.
    fn now(&self) -> Ktime {
        if self.has_more { self.last } else { boottime() }
    }

    fn push(&mut self, at: Ktime, input: Input) {
        // Records of several processors come in the order of their reservation; a stamp never goes back.
        self.last = self.last.max(at);
        self.inputs.push(Stamped { at: self.last, input });
    }

    fn clock(&mut self, now: Ktime) {
        self.next_clock = now.0 + CLOCK_EVERY;
        let (at, unix_ns) = host::clock();
        self.wall_offset = unix_ns.saturating_sub_unsigned(at.0);
        self.push(at, Input::Clock { unix_ns });
    }

    /// Whether somebody has set the wall clock since it was last told: what is read in log files has its time.
    fn clock_was_set(&self) -> bool {
        host::wall_clock_offset().abs_diff(self.wall_offset) > CLOCK_STEP
    }

    /// Takes what lies in the ring, at most a batch; how many records that was.
    fn take_records(&mut self) -> usize {
        let mut records = std::mem::take(&mut self.held);
        let mut n_taken = 0;
        while n_taken < BATCH {
            let decode = |bytes: &[u8]| (Decoder::time_of(bytes), self.decoder.decode(bytes));
            let Some(record) = self.ring.next(decode) else {
                break;
            };
            records.push_back(record);
            n_taken += 1;
        }
        let now = boottime();
        let executed: BTreeSet<Pid> = records
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Executed { pid, .. } => Some(*pid),
                _ => None,
            })
            .collect();
        while let Some((at, event)) = records.pop_front() {
            if let Event::Forked { parent, child, .. } = &event
                && self.instances.contains_key(parent)
            {
                let has_executed = executed.contains(child);
                if !has_executed && !self.is_ending && now.since(at) < EXECUTED_WITHIN {
                    records.push_front((at, event));
                    break;
                }
                if !has_executed {
                    self.begin_worker(at, *parent, *child);
                }
            }
            self.note(at, event);
        }
        self.held = records;
        n_taken
    }

    /// A master forked a worker: what it forks to execute (a binary upgrade) is none.
    fn begin_worker(&mut self, at: Ktime, master: Pid, worker: Pid) {
        texts::touch(worker);
        self.begin_generation(at, master);
        self.log
            .pids
            .insert(host::process::inner_pid(worker).unwrap_or(worker.0), worker);
        self.push(
            at,
            Input::Worker {
                worker,
                master,
                started: at,
            },
        );
    }

    /// Keeps the books on nginx's processes, and passes the event on.
    fn note(&mut self, at: Ktime, mut event: Event) {
        match &mut event {
            Event::Forked { parent, child, .. } => {
                self.members.insert(*child);
                self.forked.insert(*child, (at, *parent));
                self.look_soon(at);
            }
            Event::Executed { pid, is_nginx, .. } => {
                if *is_nginx {
                    self.members.insert(*pid);
                    // Its first failure may come before the look. A script of that name is no nginx, and not heard.
                    if let Ok(executable) = host::process::exe_inode(*pid)
                        && !self.heard.contains_key(&executable)
                        && self.kernel.hear(&exe_link(*pid), voice(&exe_link(*pid))).is_ok()
                    {
                        self.heard.insert(executable, Some(boottime()));
                    }
                    let parent = self.forked.get(pid).map(|(_, parent)| *parent);
                    if let Some(known) = parent.and_then(|parent| self.instances.get_mut(&parent)) {
                        known.upgraded_by = Some(*pid);
                    }
                }
                self.look_soon(at);
            }
            Event::ProcessExited {
                task,
                is_nginx,
                parent,
                ..
            } => {
                if *is_nginx {
                    self.look_soon(at);
                    let forked = self.forked.get(&task.pid).map_or(Ktime(0), |(at, _)| *at);
                    let mut was_new_master = false;
                    for known in self.instances.values_mut() {
                        was_new_master |= known.upgraded_by == Some(task.pid);
                        known.upgraded_by = known.upgraded_by.filter(|pid| *pid != task.pid);
                    }
                    if let Some(known) = self.instances.get_mut(parent)
                        && forked >= known.generation
                        && !was_new_master
                    {
                        known.reloads.lose_worker(at);
                    }
                }
                self.ended.push_back((at, task.pid));
            }
            Event::Signalled {
                pid, signal: SIGHUP, ..
            } => self.reload(at, *pid),
            Event::ListenerOpened { .. } => {
                let event = event.clone();
                self.name_netns(at, &event);
            }
            Event::Line(line) if is_timeout(line) => self.unix_lines.push_back(line.clone()),
            Event::Line(line) if line.level == EMERG => {
                if let Some(known) = self.instances.get_mut(&line.worker) {
                    known.reloads.complain();
                }
            }
            Event::Exchange(exchange) => self.claim_unix_line(exchange),
            _ => {}
        }
        self.push(at, Input::Kernel(event));
    }

    /// The kernel cannot join nginx's timeout to a unix connection of which nothing else was seen to end. Where the
    /// backend has read the end within the wait, the exchange is here, and the line is the one before its end.
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
        // Two lines in one wait: which of them it was cannot be told.
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
            let id = line.id;
            let unanswered = line.action.as_deref().is_some_and(|action| {
                action.starts_with("reading response header") || action.starts_with("sending request")
            });
            self.unix_lines.pop_front();
            if let Some(exchange) = self.kernel.unix_timed_out(id, unanswered)? {
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

    /// An instance was found, or its workers changed: what is configured comes before those who run with it.
    fn adopt_instance(&mut self, now: Ktime, found: Found) {
        let master = found.instance.pid;
        let netns = found.instance.netns;
        let instance = Instance {
            heard_since: self.hear(master, found.executable),
            ..found.instance.clone()
        };
        let processes = found.processes.clone();
        // How the pids in its log lines are to be read, before the first of them is.
        let inner = processes.iter().map(|process| (process.inner_pid, process.pid));
        self.log.pids.extend(inner);
        let known = match self.instances.remove(&master) {
            Some(known) => Known { found, ..known },
            None => self.meet_instance(now, found),
        };
        self.instances.insert(master, known);
        self.push(now, Input::Instance(instance));
        for process in processes {
            self.members.insert(process.pid);
            if matches!(process.role, Role::Worker | Role::OldWorker | Role::Single) {
                texts::touch(process.pid);
                self.push(
                    now,
                    Input::Worker {
                        worker: process.pid,
                        master,
                        started: self
                            .forked
                            .get(&process.pid)
                            .map_or(process.started, |(at, _)| *at),
                    },
                );
            }
        }
        if !self.named_netns.contains_key(&netns) {
            self.tell_addresses(now, netns, master);
        }
    }

    /// An instance not seen before: its configuration as the file says it now.
    fn meet_instance(&mut self, now: Ktime, found: Found) -> Known {
        let master = found.instance.pid;
        let config = self.read_config(&found, None);
        let is_old = |process: &find::Process| process.role == Role::OldWorker;
        if found.processes.iter().any(is_old) {
            // What those run with that serve their last requests is not in the file any more.
            self.tell_config(now, master, Ktime(0), &Config::default());
            self.tell_config(now, master, found.generation_started(), &config);
        } else {
            self.tell_config(now, master, Ktime(0), &config);
        }
        self.follow_logs(master, &config);
        Known {
            found,
            config,
            reloads: Reloads::default(),
            generation: Ktime(0),
            upgraded_by: None,
        }
    }

    /// A master reads its files now, so they are read now. (An nginx without one, `master_process off`, does not
    /// survive a reload: it has no connections left in 1.22.)
    fn reload(&mut self, at: Ktime, master: Pid) {
        let Some(known) = self.instances.get(&master) else {
            return;
        };
        // Beside a new executable's master the old one starts its workers again from its own memory: an upgrade is
        // taken back.
        if known.upgraded_by.is_some() {
            return;
        }
        let found = known.found.clone();
        let config = self.read_config(&found, Some(at));
        if let Some(known) = self.instances.get_mut(&master) {
            known.reloads.ask(at, config);
        }
    }

    /// A worker was forked: the first one after a reload has the new configuration.
    fn begin_generation(&mut self, at: Ktime, master: Pid) {
        let Some(known) = self.instances.get_mut(&master) else {
            return;
        };
        let Some(config) = known.reloads.fork(at) else {
            return;
        };
        known.generation = at;
        if known.config != config {
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
        let tells_syscalls = self.kernel.reads_registers();
        let how = |peer: &ConfiguredPeer| match peer.via.as_deref()? {
            "https" if !peer.upgrades => Some(Uncut::ByAnswer),
            "grpc" => Some(Uncut::ByHeaders),
            "https" | "stream" | "suwsgi" => Some(Uncut::Whole),
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
        let over_udp = config.datagrams.iter().filter_map(|peer| match peer.peer {
            Peer::Tcp(address) => Some((address, Uncut::Datagrams)),
            Peer::Unix(_) => None,
        });
        uncut.extend(over_udp);
        // Where uses of one address differ, the last one counts.
        uncut.sort_by_key(|(_, how)| match how {
            Uncut::Datagrams => 0,
            Uncut::ByAnswer | Uncut::ByHeaders => 1,
            Uncut::Whole => 2,
        });
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

    /// The addresses of a namespace in which something listens. Its number comes back as another's when it is gone, with other
    /// addresses, so they are told again when something new listens there.
    fn name_netns(&mut self, at: Ktime, event: &Event) {
        let (Event::ListenerFound { listener, .. } | Event::ListenerOpened { listener, .. }) = event else {
            return;
        };
        let is_told = self
            .named_netns
            .get(&listener.netns)
            .is_some_and(|told| at.since(*told) < ADDRESSES_STAND);
        if is_told || listener.netns.0 == 0 {
            return;
        }
        // A process may have left the namespace its socket is in; then another one will name it.
        if host::process::netns_of(listener.task.pid) == Some(listener.netns) {
            self.tell_addresses(at, listener.netns, listener.task.pid);
        }
    }

    fn tell_addresses(&mut self, at: Ktime, netns: Netns, pid: Pid) {
        let addresses = host::addresses(pid);
        if self.named_netns.len() >= MAX_NAMESPACES {
            self.named_netns
                .retain(|_, told| at.since(*told) < ADDRESSES_STAND);
        }
        self.named_netns.insert(netns, at);
        self.push(at, Input::Addresses { netns, addresses });
    }

    fn log_status(&self) -> HookStatus {
        let off = self.options.error_log == Source::Off;
        HookStatus {
            sees: "error-log-file".to_owned(),
            how: (!off).then(|| "following the files of error_log".to_owned()),
            why_not: off.then(|| "left out with --error-log off".to_owned()),
            without: "attempts carry nginx's message, but not its line with client, request and host; without nginx-log \
                as well, what only nginx knows is not seen"
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
        let back = if self.has_begun { WRITTEN_MEANWHILE } else { 0 };
        for target in targets {
            if self.tails.len() >= MAX_LOGS {
                log::warn!("more than {MAX_LOGS} error logs: {target} is not read");
                return;
            }
            let key = (mounts, target.clone());
            let tail = self.tails.entry(key.clone()).or_insert_with(|| {
                if back > 0 {
                    self.reaching_back.insert(key);
                }
                Tail::open_back(reader, std::slice::from_ref(&target), back)
            });
            for unseen in tail.unseen() {
                log::info!("{unseen}");
            }
        }
    }

    fn take_lines(&mut self) {
        self.lines_read_at = boottime();
        let now = self.last;
        let mut lines = Vec::new();
        let mut lost = 0;
        for (key, tail) in &mut self.tails {
            let is_old = self.reaching_back.remove(key);
            lines.extend(tail.poll_lines().into_iter().map(|line| (line, is_old)));
            lost += tail.take_lost();
        }
        let unix_seconds = host::clock().1 / 1_000_000_000;
        for (line, is_old) in lines {
            let parsed = if is_old {
                error_log::parse_recent(&line, &self.log, unix_seconds)
            } else {
                error_log::parse_fresh(&line, &mut self.log, unix_seconds)
            };
            if let Some(parsed) = parsed {
                if parsed.level == "emerg"
                    && let Some(known) = self.instances.get_mut(&parsed.pid)
                {
                    known.reloads.complain();
                }
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

/// Which form the log function of an executable has.
pub fn voice(executable: &Path) -> Voice {
    let build = find::build::read_file(executable).ok().flatten();
    match build.as_ref().and_then(find::build::Build::fork) {
        Some(("freenginx", version)) if version >= (1, 27, 2) => Voice::Freenginx,
        Some(("angie", version)) if version >= (1, 12, 0) => Voice::Angie,
        _ => Voice::Nginx,
    }
}

/// One path per executable, through a process that runs it: right for containers and for replaced files.
fn executables(found: &[Found]) -> BTreeMap<(u64, u64), PathBuf> {
    found
        .iter()
        .rev()
        .map(|found| (found.executable, exe_link(found.instance.pid)))
        .collect()
}
