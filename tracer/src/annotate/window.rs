//! The failures of one trace that were written about when the line being read was.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    rc::Rc,
};

use crate::{
    engine::message::{Meaning, Said},
    event::LogLine,
    sink::schema::{Attempt, errno_name},
};

/// More failures than this are not held at a time.
const CAPACITY: usize = 50_000;

/// Of more failures than this that fit a line none is taken.
const MAX_ALIKE: usize = 1_000;

/// Seconds between nginx's clock at the line and the attempt's end: nginx reads the clock once in a turn of its loop.
pub const NEAR_S: i64 = 2;

/// A text pre-formatted by nginx may be cut in either; its beginning identifies it.
const HEAD: usize = 24;

/// Failures near the line being read, in the order of the trace.
#[derive(Debug, Default)]
pub struct Window {
    failures: VecDeque<Option<Failure>>,
    /// The number of the first of them.
    first: u64,
    /// Numbers by the line that the trace holds, and of those without one by their peer; in ascending order.
    by_text: HashMap<u64, VecDeque<u64>>,
    by_peer: HashMap<Option<String>, VecDeque<u64>>,
    hasher: RandomState,
    /// Failures beyond the capacity went away until then, in seconds since the epoch.
    crowded_until: Option<i64>,
    /// From when on the log was read.
    from: Option<i64>,
    unclaimed: u64,
}

#[derive(Debug)]
struct Failure {
    attempt: Rc<Attempt>,
    at: i64,
    /// It was one of so many that a line fitted alike; 0: of several with different causes.
    alike: usize,
}

/// What tells attempts apart that fit a line alike.
pub type Kind = (String, Option<String>);

/// An attempt that was found for a line.
#[derive(Debug)]
pub struct Found {
    /// The attempt.
    pub attempt: Rc<Attempt>,
    /// One of so many alike.
    pub alike: usize,
}

impl Window {
    /// Takes in an attempt whose line was written, or that ended, in this second since the epoch.
    pub fn push(&mut self, attempt: Rc<Attempt>, at: i64) {
        let number = self.first + self.failures.len() as u64;
        match &attempt.log {
            Some(log) => {
                let key = self.hasher.hash_one(log.line.as_str());
                self.by_text.entry(key).or_default().push_back(number);
            }
            None => {
                let of_peer = self.by_peer.entry(attempt.peer.clone()).or_default();
                of_peer.push_back(number);
            }
        }
        self.failures.push_back(Some(Failure {
            attempt,
            at,
            alike: 1,
        }));
        if self.failures.len() > CAPACITY
            && let Some(failure) = self.pop()
        {
            self.crowded_until = self.crowded_until.max(Some(failure.at));
        }
    }

    /// How many it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.failures.len()
    }

    /// It holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    /// From this second on the log was read.
    pub fn begin(&mut self, at: i64) {
        self.from = Some(self.from.map_or(at, |from| from.min(at)));
    }

    /// Failures that nginx says something about and whose line was not in the log, of the time that was read.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    /// The log ended in this second: what is left has no line in it.
    pub fn end(&mut self, at: i64) {
        while self
            .failures
            .front()
            .is_some_and(|failure| failure.as_ref().is_none_or(|failure| failure.at <= at))
        {
            let failure = self.pop();
            self.count(failure);
        }
    }

    /// Failures of this second were let go for want of room.
    #[must_use]
    pub fn was_crowded(&self, at: i64) -> bool {
        self.crowded_until.is_some_and(|until| at <= until + NEAR_S)
    }

    /// Lets those go whose second lies before this one.
    pub fn forget_before(&mut self, second: i64) {
        while self
            .failures
            .front()
            .is_some_and(|failure| failure.as_ref().is_none_or(|failure| failure.at < second))
        {
            let failure = self.pop();
            self.count(failure);
        }
    }

    fn count(&mut self, failure: Option<Failure>) {
        let is_missing = failure.is_some_and(|failure| {
            failure.alike > 0
                && failure.attempt.nginx_says.is_some()
                && self.from.is_some_and(|from| failure.at >= from)
        });
        self.unclaimed += u64::from(is_missing);
    }

    fn pop(&mut self) -> Option<Failure> {
        let failure = self.failures.pop_front()?;
        let number = self.first;
        self.first += 1;
        if let Some(failure) = &failure {
            self.forget(&failure.attempt, number);
        }
        failure
    }

    /// Takes the number out of its index.
    fn forget(&mut self, attempt: &Attempt, number: u64) {
        fn without<K: Eq + Hash>(index: &mut HashMap<K, VecDeque<u64>>, key: &K, number: u64) {
            let Some(numbers) = index.get_mut(key) else {
                return;
            };
            if numbers.front() == Some(&number) {
                numbers.pop_front();
            } else if let Ok(at) = numbers.binary_search(&number) {
                numbers.remove(at);
            }
            if numbers.is_empty() {
                index.remove(key);
            }
        }
        match &attempt.log {
            Some(log) => {
                let key = self.hasher.hash_one(log.line.as_str());
                without(&mut self.by_text, &key, number);
            }
            None => without(&mut self.by_peer, &attempt.peer, number),
        }
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    fn get(&self, number: u64) -> Option<&Failure> {
        self.failures.get(self.index(number)?)?.as_ref()
    }

    /// What tells this failure apart from others that fit alike.
    #[must_use]
    pub fn kind(&self, number: u64) -> Option<Kind> {
        let attempt = &self.get(number)?.attempt;
        let cause = attempt.cause.as_ref().map_or("none", |cause| cause.id.as_ref());
        Some((cause.to_owned(), attempt.upstream.clone()))
    }

    /// Remembers of a failure that it was one of so many alike; 0: of several that are not.
    pub fn mark(&mut self, number: u64, alike: usize) {
        let index = self.index(number);
        if let Some(Some(failure)) = index.and_then(|index| self.failures.get_mut(index)) {
            failure.alike = match alike {
                0 => 0,
                _ => failure.alike.max(alike),
            };
        }
    }

    /// Takes a failure out.
    pub fn take(&mut self, number: u64) -> Option<Found> {
        let index = self.index(number)?;
        let failure = self.failures.get_mut(index)?.take()?;
        self.forget(&failure.attempt, number);
        Some(Found {
            attempt: failure.attempt,
            alike: failure.alike.max(1),
        })
    }

    /// The attempts that hold this very line. Those of one worker are one after the other; of several workers, as in
    /// containers whose pids are alike, any of them may be meant.
    #[must_use]
    pub fn same_line(&self, log: &LogLine) -> Vec<u64> {
        let numbers = self.by_text.get(&self.hasher.hash_one(log.text.as_str()));
        let same: Vec<(u64, u32)> = numbers
            .into_iter()
            .flatten()
            .filter_map(|number| {
                let attempt = &self.get(*number)?.attempt;
                let is_it = attempt.log.as_ref().is_some_and(|known| known.line == log.text);
                is_it.then_some((*number, attempt.worker))
            })
            .take(MAX_ALIKE)
            .collect();
        match same.first() {
            Some((number, worker)) if same.iter().all(|(_, other)| other == worker) => vec![*number],
            _ => same.into_iter().map(|(number, _)| number).collect(),
        }
    }

    /// Attempts without a line that may be this line's; `None`: too many. `worker`: only of this one.
    #[must_use]
    pub fn fitting(&self, at: i64, log: &LogLine, said: &Said, worker: Option<u32>) -> Option<Vec<u64>> {
        let peer = said.peer.as_ref().or(log.peer.as_ref()).map(ToString::to_string);
        let mut queues: Vec<&VecDeque<u64>> = Vec::new();
        if peer.is_some() {
            queues.extend(self.by_peer.get(&peer));
        } else if let Some(named) = log
            .upstream
            .as_ref()
            .filter(|_| said.meaning != Meaning::NoLiveUpstreams)
        {
            // Some lines do not show where a unix path ends.
            let is_named =
                |known: &&Option<String>| known.as_ref().is_some_and(|known| named.contains(known.as_str()));
            queues.extend(
                self.by_peer
                    .keys()
                    .filter(is_named)
                    .filter_map(|known| self.by_peer.get(known)),
            );
        }
        // Some attempts without a socket have no peer in the trace, although the line names one.
        if said.meaning.stands_alone() {
            queues.extend(
                self.by_peer
                    .get(&None)
                    .filter(|_| peer.is_some() || queues.is_empty()),
            );
        }
        let mut fitting = Vec::new();
        for numbers in queues {
            // Written as they end, they are in the order of time but for a moment.
            let is_old = |number: &u64| {
                self.get(*number)
                    .is_none_or(|failure| failure.at < at - 2 * NEAR_S)
            };
            for number in numbers.iter().skip(numbers.partition_point(is_old)) {
                let Some(failure) = self.get(*number) else {
                    continue;
                };
                if failure.at > at + 2 * NEAR_S {
                    break;
                }
                let is_near = (failure.at - at).abs() <= NEAR_S;
                let is_its = worker.is_none_or(|worker| failure.attempt.worker == worker);
                if is_near && is_its && is_about(&failure.attempt, log, said) {
                    fitting.push(*number);
                }
                if fitting.len() > MAX_ALIKE {
                    return None;
                }
            }
        }
        fitting.sort_unstable();
        Some(fitting)
    }
}

/// Whether nginx may have said this about the attempt.
fn is_about(attempt: &Attempt, log: &LogLine, said: &Said) -> bool {
    let errno = said.errno.map(errno_name);
    let is_same_errno = attempt.errno.is_none() || errno.is_none() || attempt.errno == errno;
    if said.meaning == Meaning::NoLiveUpstreams {
        return attempt.outcome == "no-live-upstreams" && is_of_upstream(attempt, log);
    }
    if let Some(says) = &attempt.nginx_says {
        let action = |text: &str| text.rsplit_once(" while ").map(|(_, action)| action.to_owned());
        return is_same_errno
            && says.chars().take(HEAD).eq(said.text.chars().take(HEAD))
            && action(says) == action(&said.text);
    }
    if !is_phase(&attempt.phase, said.action.as_deref().unwrap_or_default()) {
        return false;
    }
    match said.meaning {
        Meaning::ConnectAtOnce
        | Meaning::Connect
        | Meaning::Bind
        | Meaning::Socket
        | Meaning::Io
        | Meaning::Datagram => errno.is_some() && attempt.errno == errno,
        Meaning::TimedOut => attempt.outcome == "timed-out",
        Meaning::ClosedEarly | Meaning::HandshakeClosed => attempt.outcome == "closed",
        Meaning::WorkerConnections => attempt.outcome == "exhausted",
        Meaning::NoLiveUpstreams => attempt.outcome == "no-live-upstreams",
        Meaning::Unresolved => attempt.outcome == "unresolved",
        Meaning::Unacceptable => attempt.outcome == "invalid",
        Meaning::Other | Meaning::Nothing => false,
    }
}

/// Whether a line is about the upstream of an attempt without a peer: `upstream: "http://app/path"`.
fn is_of_upstream(attempt: &Attempt, log: &LogLine) -> bool {
    let Some(named) = &log.upstream else {
        return true;
    };
    let named = named.split_once("://").map_or(named.as_str(), |(_, named)| named);
    let named = named.split('/').next().unwrap_or(named);
    let mut names = attempt.upstreams.iter().chain(&attempt.upstream);
    names.any(|name| name == named) || (attempt.upstream.is_none() && attempt.upstreams.is_empty())
}

/// Whether an attempt that ended in this phase may be one of which nginx says that it happened while it did this.
fn is_phase(phase: &str, action: &str) -> bool {
    match phase {
        "connecting" => action.starts_with("connecting"),
        "handshaking" => action.starts_with("SSL handshaking"),
        "sending" => action.starts_with("sending request"),
        "waiting" => action.starts_with("reading response header") || action.starts_with("proxying"),
        "reading" => ["reading", "sending to client", "proxying"]
            .iter()
            .any(|begin| action.starts_with(begin)),
        _ => true,
    }
}
