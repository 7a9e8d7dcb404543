//! Twenty hours of tracing, compressed: the clock is an argument. Every recording again and again, through one engine
//! that goes on living. What is named in the last hour is what was named in the first, however often process ids,
//! ports, namespaces and socket addresses come back; no table grows, and nothing is lost.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tracer::{
    engine::{Engine, EngineOptions},
    event::{Event, Exit, Input, Ktime, Listener, LossClass, Output, Pid, Sock, Stamped, Task},
    model::Attempt,
};
use xtask::scenario::Scenario;

use crate::{
    ground::{Dice, plain, root},
    moved::Move,
    replay::{inputs, recorded},
};

/// How long it is.
const HOURS: u64 = 20;
const HOUR: u64 = 3_600 * SECOND;
const SECOND: u64 = 1_000_000_000;
/// A listener that closed longer ago explains nothing (decided in the engine: ten minutes).
const FORGOTTEN: u64 = 601 * SECOND;
/// How often the clock ticks while nothing happens.
const TICK: u64 = SECOND;
/// How long after a recording's end its last verdicts may come.
const SETTLES: u64 = 2 * SECOND;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        plain("twenty_hours/the_same_host", || twenty_hours(Host::TheSame)),
        plain("twenty_hours/another_host_each_time", || {
            twenty_hours(Host::AnotherEachTime)
        }),
    ]
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// Process ids, namespaces, ports and socket addresses, all of them: as if a day's worth of restarts gave each number out
    /// anew.
    TheSame,
    /// Only addresses and ports.
    AnotherEachTime,
}

/// A recording, and what is said of it when nothing else ever happened.
struct Recorded {
    name: String,
    inputs: Vec<Stamped>,
    alone: Vec<String>,
}

impl Recorded {
    fn read(name: String) -> Result<Self> {
        let inputs = inputs(&name)?;
        let mut day = Day::new();
        day.play(&inputs, &Move::default());
        let alone = std::mem::take(&mut day.said);
        let scenario = Scenario::read(&root().join("tests/scenarios").join(format!("{name}.toml")))?;
        for attempt in day.attempts.iter().filter(|attempt| attempt.cause.is_some()) {
            let is_expected = scenario.expect.iter().any(|expect| {
                attempt.cause.as_ref().is_some_and(|cause| {
                    cause.id == expect.cause && cause.confidence.name() == expect.confidence
                })
            });
            ensure!(is_expected, "{name}: {}", told(attempt));
        }
        Ok(Self { name, inputs, alone })
    }
}

/// An engine that lives on.
struct Day {
    engine: Engine,
    now: Ktime,
    /// When the present recording begins.
    since: Ktime,
    said: Vec<String>,
    attempts: Vec<Attempt>,
    lost: BTreeMap<LossClass, u64>,
    /// What listens and has not closed.
    open: BTreeMap<Sock, Listener>,
    /// Who runs and has not ended: nginx's processes, and those that listened or answered.
    running: BTreeMap<Pid, Task>,
}

impl Day {
    fn new() -> Self {
        Self {
            engine: Engine::new(EngineOptions::default()),
            now: Ktime(0),
            since: Ktime(0),
            said: Vec::new(),
            attempts: Vec::new(),
            lost: BTreeMap::new(),
            open: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    fn apply(&mut self, at: Ktime, input: Input) {
        self.now = self.now.max(at);
        for output in self.engine.apply(at, input) {
            match output {
                Output::Attempt(attempt) => {
                    self.said.push(told(&attempt));
                    self.attempts.push(*attempt);
                }
                // A recording's own tracer began later than this engine, and would not have said it.
                Output::Event(event) if event.kind == "worker-start" && event.at <= self.since => {}
                // What else is noted depends on all configurations there ever were.
                Output::Event(event) if event.kind.starts_with("worker-") || event.kind == "oom-kill" => {
                    self.said
                        .push(format!("{} {:?}", event.kind, event.fields.get("comm")));
                }
                Output::Event(_) => {}
                Output::Lost { class, count, .. } => *self.lost.entry(class).or_default() += count,
                Output::Ask(_) | Output::Finding(_) | Output::Summary(_) => {}
            }
        }
    }

    /// Plays a recording, and lets its last verdicts come.
    fn play(&mut self, inputs: &[Stamped], to: &Move) {
        if let Some(first) = inputs.first() {
            self.since = to.stamped(first).at;
        }
        for stamped in inputs {
            if matches!(stamped.input, Input::Detach { .. }) {
                continue;
            }
            let Stamped { at, input } = to.stamped(stamped);
            self.notice(&input);
            self.apply(at, input);
        }
        let until = Ktime(self.now.0 + SETTLES);
        while self.now < until {
            self.apply(Ktime(self.now.0 + SECOND / 10), Input::Tick);
        }
    }

    /// Remembers what has to be stopped at the end.
    fn notice(&mut self, input: &Input) {
        let mut runs = |pid: Pid, comm: &str| {
            let task = Task {
                pid,
                comm: comm.to_owned(),
                exiting: None,
                oom: false,
            };
            self.running.insert(pid, task);
        };
        match input {
            Input::Instance(instance) => {
                instance.workers.iter().for_each(|worker| runs(*worker, "nginx"));
                runs(instance.pid, "nginx");
            }
            Input::Worker { worker, master, .. } => {
                runs(*worker, "nginx");
                runs(*master, "nginx");
            }
            Input::Kernel(Event::ListenerOpened { listener, .. } | Event::ListenerFound { listener, .. }) => {
                runs(listener.task.pid, &listener.task.comm);
                self.open.insert(listener.sock, listener.clone());
            }
            Input::Kernel(Event::ListenerClosed { listener, .. }) => {
                self.open.remove(&listener.sock);
            }
            Input::Kernel(Event::Exchange(exchange)) => {
                let serves = exchange.backend.as_ref();
                if let Some(task) = serves.and_then(|backend| backend.task.as_ref()) {
                    runs(task.pid, &task.comm);
                }
            }
            Input::Kernel(Event::ProcessExited { task, .. }) => {
                self.running.remove(&task.pid);
            }
            _ => {}
        }
    }

    /// All that still listens and runs is stopped.
    fn stop_all(&mut self) {
        let at = self.now;
        for (_, listener) in std::mem::take(&mut self.open) {
            self.apply(at, Input::Kernel(Event::ListenerClosed { at, listener }));
        }
        for (_, task) in std::mem::take(&mut self.running) {
            let exit = Event::ProcessExited {
                at,
                is_nginx: task.comm == "nginx",
                task: Task {
                    exiting: Some(Exit::Code(0)),
                    ..task
                },
                parent: Pid(1),
                signalled_by: None,
                told: None,
            };
            self.apply(at, Input::Kernel(exit));
        }
        self.said.clear();
        self.attempts.clear();
    }

    fn wait_until(&mut self, until: Ktime) {
        while self.now < until {
            self.apply(Ktime(until.0.min(self.now.0 + TICK)), Input::Tick);
        }
    }
}

/// What is compared of an attempt.
fn told(attempt: &Attempt) -> String {
    let cause = attempt.cause.as_ref();
    let also: Vec<&str> = attempt.also.iter().map(|cause| cause.id).collect();
    format!(
        "{:?} at {:?} {:?}: {} ({}) also {also:?}, {:?} {:?} {:?}, {:?}, reused {}, retry {}, unseen {:?}",
        attempt.upstream,
        attempt.peer,
        attempt.outcome,
        cause.map_or("none", |cause| cause.id),
        cause.map_or("none", |cause| cause.confidence.name()),
        attempt.phase,
        attempt.errno,
        attempt.nginx_says,
        attempt.log.as_ref().map(|log| &log.message),
        attempt.reused,
        attempt.retry.is_some(),
        attempt.unseen,
    )
}

fn twenty_hours(host: Host) -> Result<()> {
    let recordings: Vec<Recorded> = recorded()
        .into_iter()
        .map(Recorded::read)
        .collect::<Result<_>>()?;
    let mut day = Day::new();
    let mut dice = Dice::new(20);
    let mut problems = Vec::new();
    let mut sizes = Vec::new();
    let mut plays = 0;
    // A host that has been up for a while.
    let start = Ktime(1_000 * SECOND);
    day.now = start;
    for pass in 0.. {
        if day.now.since(start) > HOURS * HOUR {
            break;
        }
        for recording in &recordings {
            let first = recording.inputs.first().context("an empty recording")?.at;
            let time = i64::try_from(day.now.0)? - i64::try_from(first.0)?;
            let mut to = Move {
                time,
                ..Move::default()
            };
            if host == Host::AnotherEachTime {
                plays += 1;
                to.pids = plays * 40;
                to.namespaces = plays * 16;
                to.sockets = u64::from(plays) << 40;
            }
            day.said.clear();
            day.attempts.clear();
            day.play(&recording.inputs, &to);
            if day.said != recording.alone {
                problems.push(format!(
                    "pass {pass}, {}:\n  alone {}\n  then  {}",
                    recording.name,
                    recording
                        .alone
                        .iter()
                        .filter(|one| !day.said.contains(one))
                        .cloned()
                        .collect::<Vec<_>>()
                        .join("\n        "),
                    day.said
                        .iter()
                        .filter(|one| !recording.alone.contains(one))
                        .cloned()
                        .collect::<Vec<_>>()
                        .join("\n        "),
                ));
            }
            day.stop_all();
        }
        // Where ports come back in the same namespace, a listener that closed lately would explain the next failure.
        let is_quiet = host == Host::TheSame || dice.below(4) == 0;
        if is_quiet {
            let pause = FORGOTTEN + u64::try_from(dice.below(600))? * SECOND;
            day.wait_until(Ktime(day.now.0 + pause));
        }
        sizes.push(day.engine.len());
    }
    let (early, late) = sizes.split_at(sizes.len() / 2);
    let largest = |sizes: &[usize]| sizes.iter().copied().max().unwrap_or_default();
    let (early, late) = (largest(early), largest(late));
    println!(
        "{} passes over {} recordings: at most {early} entries before noon, {late} after",
        sizes.len(),
        recordings.len()
    );
    ensure!(
        problems.is_empty(),
        "{} of {}:\n{}",
        problems.len(),
        sizes.len() * recordings.len(),
        problems.iter().take(60).cloned().collect::<Vec<_>>().join("\n")
    );
    ensure!(day.lost.is_empty(), "lost {:?}", day.lost);
    // A tenth more is chance: how much is there depends on how long nothing happened before.
    ensure!(
        late <= early + early / 10,
        "the tables grow: {sizes:?}, at last {:?}",
        day.engine.tables()
    );
    Ok(())
}
