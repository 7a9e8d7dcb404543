//! The failures of one trace that were written about when the line being read was.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use crate::{
    engine::message::{Meaning, Said},
    event::LogLine,
    sink::schema::{Attempt, errno_name},
};

/// More failures than this are not held at a time.
const CAPACITY: usize = 50_000;

/// Seconds between nginx's clock at the line and the attempt's end: nginx reads the clock once in a turn of its loop.
const NEAR_S: i64 = 2;

/// A text pre-formatted by nginx may be cut in either; its beginning identifies it.
const HEAD: usize = 24;

/// Failures near the line being read, in the order of the trace.
#[derive(Debug, Default)]
pub struct Window {
    failures: VecDeque<Option<Failure>>,
    /// The number of the first of them.
    first: u64,
    by_text: HashMap<u64, VecDeque<u64>>,
    by_peer: HashMap<Option<String>, VecDeque<u64>>,
    hasher: RandomState,
    /// Failures beyond the capacity went away until then, in seconds since the epoch.
    crowded_until: Option<i64>,
    unclaimed: u64,
}

#[derive(Debug)]
struct Failure {
    attempt: Box<Attempt>,
    at: i64,
    /// It was one of so many that a line fitted alike.
    alike: usize,
}

/// What was found for a line.
#[derive(Debug)]
pub enum Taken {
    /// The attempt; where `alike` is more than 1, one of so many with the same cause.
    One {
        /// See there.
        attempt: Box<Attempt>,
        /// See there.
        alike: usize,
    },
    /// Several fit, and they have these causes.
    Ambiguous(Vec<String>),
    /// None fits.
    None,
}

impl Window {
    /// Takes in an attempt whose line was written, or that ended, in this second since the epoch.
    pub fn push(&mut self, attempt: Box<Attempt>, at: i64) {
        let number = self.first + self.failures.len() as u64;
        if let Some(log) = &attempt.log {
            let key = self.hasher.hash_one(log.line.as_str());
            self.by_text.entry(key).or_default().push_back(number);
        } else {
            self.by_peer
                .entry(attempt.peer.clone())
                .or_default()
                .push_back(number);
        }
        self.failures.push_back(Some(Failure {
            attempt,
            at,
            alike: 1,
        }));
        if self.failures.len() > CAPACITY {
            let at = self
                .failures
                .front()
                .and_then(|failure| Some(failure.as_ref()?.at));
            self.crowded_until = self.crowded_until.max(at);
            self.pop();
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

    /// Failures that nginx says something about and that went away without their line.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
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
            self.pop();
        }
    }

    fn pop(&mut self) {
        let Some(failure) = self.failures.pop_front() else {
            return;
        };
        let number = self.first;
        self.first += 1;
        let Some(Failure { attempt, .. }) = failure else {
            return;
        };
        self.unclaimed += u64::from(attempt.nginx_says.is_some());
        self.forget(&attempt, number);
    }

    /// Takes the number out of its index.
    fn forget(&mut self, attempt: &Attempt, number: u64) {
        fn without<K: Eq + std::hash::Hash>(index: &mut HashMap<K, VecDeque<u64>>, key: &K, number: u64) {
            let Some(numbers) = index.get_mut(key) else {
                return;
            };
            numbers.retain(|known| *known != number);
            if numbers.is_empty() {
                index.remove(key);
            }
        }
        match &attempt.log {
            Some(log) => without(
                &mut self.by_text,
                &self.hasher.hash_one(log.line.as_str()),
                number,
            ),
            None => without(&mut self.by_peer, &attempt.peer, number),
        }
    }

    fn get(&self, number: u64) -> Option<&Failure> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.failures.get(index)?.as_ref()
    }

    fn take_out(&mut self, number: u64) -> Option<Failure> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let failure = self.failures.get_mut(index)?.take()?;
        self.forget(&failure.attempt, number);
        Some(failure)
    }

    /// The attempt of a line that was written in this second since the epoch; it is taken out.
    pub fn take(&mut self, at: i64, log: &LogLine, said: &Said) -> Taken {
        if let Some(number) = self.same_line(log) {
            return self.one(number);
        }
        let mut fitting = self.fitting(at, log, said);
        // The pids of a container are not the host's: they tell attempts apart only where they are among them.
        let of_worker: Vec<u64> = fitting
            .iter()
            .copied()
            .filter(|number| {
                self.get(*number)
                    .is_some_and(|failure| failure.attempt.worker == log.pid.0)
            })
            .collect();
        if !of_worker.is_empty() {
            fitting = of_worker;
        }
        let causes: BTreeSet<String> = fitting
            .iter()
            .filter_map(|number| self.get(*number))
            .map(|failure| {
                failure
                    .attempt
                    .cause
                    .as_ref()
                    .map_or("none", |cause| cause.id.as_ref())
                    .to_owned()
            })
            .collect();
        match fitting.first() {
            None => Taken::None,
            Some(number) if causes.len() == 1 => {
                // Which of them this line's is stays open for the others too.
                for alike in &fitting {
                    self.mark(*alike, fitting.len());
                }
                self.one(*number)
            }
            Some(_) => Taken::Ambiguous(causes.into_iter().collect()),
        }
    }

    fn mark(&mut self, number: u64, alike: usize) {
        let index = number
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(Some(failure)) = index.and_then(|index| self.failures.get_mut(index)) {
            failure.alike = failure.alike.max(alike);
        }
    }

    fn one(&mut self, number: u64) -> Taken {
        self.take_out(number)
            .map_or(Taken::None, |Failure { attempt, alike, .. }| Taken::One {
                attempt,
                alike,
            })
    }

    /// The first attempt that holds this very line.
    fn same_line(&self, log: &LogLine) -> Option<u64> {
        let numbers = self.by_text.get(&self.hasher.hash_one(log.text.as_str()))?;
        let is_it = |number: &&u64| {
            let failure = self.get(**number);
            failure.is_some_and(|failure| {
                failure
                    .attempt
                    .log
                    .as_ref()
                    .is_some_and(|known| known.line == log.text)
            })
        };
        numbers.iter().find(is_it).copied()
    }

    /// Attempts without a line that may be this line's.
    fn fitting(&self, at: i64, log: &LogLine, said: &Said) -> Vec<u64> {
        let peer = said.peer.as_ref().or(log.peer.as_ref()).map(ToString::to_string);
        let is_unnamed = log.upstream.is_some() && peer.is_none() && said.meaning != Meaning::NoLiveUpstreams;
        let all = self.by_peer.iter().filter(|(known, _)| {
            // Some lines do not show where a unix path ends.
            if is_unnamed {
                known.as_ref().is_some_and(|known| {
                    log.upstream
                        .as_ref()
                        .is_some_and(|named| named.contains(known.as_str()))
                })
            } else {
                **known == peer
            }
        });
        let mut fitting: Vec<u64> = all
            .flat_map(|(_, numbers)| numbers)
            .copied()
            .filter(|number| {
                self.get(*number).is_some_and(|failure| {
                    (failure.at - at).abs() <= NEAR_S && is_about(&failure.attempt, said)
                })
            })
            .collect();
        fitting.sort_unstable();
        fitting
    }
}

/// Whether nginx may have said this about the attempt.
fn is_about(attempt: &Attempt, said: &Said) -> bool {
    let head = |text: &str| text.chars().take(HEAD).collect::<String>();
    let errno = said.errno.map(errno_name);
    if let Some(says) = &attempt.nginx_says {
        let is_same_errno = attempt.errno.is_none() || errno.is_none() || attempt.errno == errno;
        return is_same_errno && head(says) == head(&said.text);
    }
    match said.meaning {
        Meaning::ConnectAtOnce | Meaning::Connect | Meaning::Bind | Meaning::Socket | Meaning::Io => {
            errno.is_some() && attempt.errno == errno
        }
        Meaning::TimedOut => attempt.outcome == "timed-out",
        Meaning::ClosedEarly | Meaning::HandshakeClosed => attempt.outcome == "closed",
        Meaning::WorkerConnections => attempt.outcome == "exhausted",
        Meaning::NoLiveUpstreams => attempt.outcome == "no-live-upstreams",
        Meaning::Unacceptable => attempt.outcome == "invalid",
        Meaning::Other | Meaning::Nothing => false,
    }
}
