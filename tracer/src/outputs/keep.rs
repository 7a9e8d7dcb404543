//! Which attempts go to the files: all, or the failures with what went on around them.
//!
//! A flight recorder: the last few successes of every peer are held in memory, and written only when a failure follows.
//! What a backend itself answered with an error is no failure of the attempt, yet what many a hunt is for: it is written.

use std::collections::{HashMap, VecDeque};

use crate::{event::Peer, model::Attempt};

/// Which attempts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Every attempt.
    All,
    /// Failures, and this many attempts before and after at the same peer; the others are counted.
    Failures {
        /// Attempts before and after a failure.
        context: u32,
    },
}

/// What is to be written now.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// Nothing; the attempt may still be written later.
    Nothing,
    /// This attempt.
    This(Box<Attempt>),
    /// These, in this order.
    These(Vec<Attempt>),
}

/// Peers whose past is held at the same time; the one that was quiet longest makes room.
const MAX_PEERS: usize = 4096;

/// Attempts held over all peers; a large `--context` cannot take the memory.
const MAX_HELD: usize = 100_000;

/// The flight recorder.
#[derive(Debug)]
pub struct Recorder {
    keep: Keep,
    peers: HashMap<Option<Peer>, Past>,
    held: usize,
    clock: u64,
}

#[derive(Debug, Default)]
struct Past {
    before: VecDeque<Attempt>,
    still_after: u32,
    touched: u64,
}

impl Recorder {
    /// A recorder that holds nothing yet.
    #[must_use]
    pub fn new(keep: Keep) -> Self {
        Self {
            keep,
            peers: HashMap::new(),
            held: 0,
            clock: 0,
        }
    }

    /// Takes a finished attempt and says what is to be written.
    pub fn take(&mut self, attempt: Box<Attempt>) -> Kept {
        let Keep::Failures { context } = self.keep else {
            return Kept::This(attempt);
        };
        self.clock += 1;
        if !self.peers.contains_key(&attempt.peer) && self.peers.len() >= MAX_PEERS {
            self.forget_quietest();
        }
        let past = self.peers.entry(attempt.peer.clone()).or_default();
        past.touched = self.clock;
        if attempt.outcome.is_failure() {
            past.still_after = context;
            self.held -= past.before.len();
            let mut these: Vec<_> = past.before.drain(..).collect();
            these.push(*attempt);
            return Kept::These(these);
        }
        if attempt.is_answered_with_error() {
            return Kept::This(attempt);
        }
        if past.still_after > 0 {
            past.still_after -= 1;
            return Kept::This(attempt);
        }
        if context == 0 {
            return Kept::Nothing;
        }
        if past.before.len() >= context as usize {
            past.before.pop_front();
            self.held -= 1;
        }
        past.before.push_back(*attempt);
        self.held += 1;
        if self.held > MAX_HELD {
            self.forget_quietest();
        }
        Kept::Nothing
    }

    fn forget_quietest(&mut self) {
        let quietest = self
            .peers
            .iter()
            .min_by_key(|(_, past)| past.touched)
            .map(|(peer, _)| peer.clone());
        if let Some(past) = quietest.and_then(|peer| self.peers.remove(&peer)) {
            self.held -= past.before.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Outcome, Request},
        samples,
    };

    fn attempt(number: u64, port: u16, outcome: Outcome) -> Attempt {
        Attempt {
            number,
            peer: Some(samples::peer(port)),
            outcome,
            ..samples::healthy()
        }
    }

    /// Runs attempts through a recorder and yields the numbers written.
    fn written(context: u32, attempts: impl IntoIterator<Item = Attempt>) -> Vec<u64> {
        let mut recorder = Recorder::new(Keep::Failures { context });
        let mut written = Vec::new();
        for attempt in attempts {
            match recorder.take(Box::new(attempt)) {
                Kept::Nothing => {}
                Kept::This(attempt) => written.push(attempt.number),
                Kept::These(attempts) => written.extend(attempts.iter().map(|attempt| attempt.number)),
            }
        }
        written
    }

    #[test]
    fn a_failure_brings_its_surroundings_along() {
        let attempts = (1..=20).map(|number| {
            let outcome = if number == 10 {
                Outcome::Refused
            } else {
                Outcome::Ok
            };
            attempt(number, 80, outcome)
        });
        assert_eq!(written(3, attempts), [7, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn the_surroundings_are_those_of_the_same_peer() {
        let attempts = (1..=20).map(|number| {
            let outcome = if number == 10 {
                Outcome::Refused
            } else {
                Outcome::Ok
            };
            attempt(number, if number % 2 == 0 { 80 } else { 81 }, outcome)
        });
        assert_eq!(written(2, attempts), [6, 8, 10, 12, 14]);
    }

    #[test]
    fn without_context_only_failures_are_written() {
        let attempts = [
            attempt(1, 80, Outcome::Ok),
            attempt(2, 80, Outcome::Cancelled),
            attempt(3, 80, Outcome::Reset),
            attempt(4, 80, Outcome::Ok),
        ];
        assert_eq!(written(0, attempts), [3]);
    }

    #[test]
    fn what_the_backend_answered_with_an_error_is_written_alone() {
        let answered = |number, status| Attempt {
            request: Some(Request {
                status: Some(status),
                ..Request::default()
            }),
            ..attempt(number, 80, Outcome::Ok)
        };
        let attempts = [(1, 200), (2, 503), (3, 404), (4, 502), (5, 101)];
        assert_eq!(
            written(3, attempts.map(|(number, status)| answered(number, status))),
            [2, 4]
        );
    }

    #[test]
    fn memory_is_bounded_over_many_peers() {
        let mut recorder = Recorder::new(Keep::Failures { context: 100 });
        for number in 0..10_000 {
            let port = u16::try_from(number % 50_000).unwrap();
            recorder.take(Box::new(attempt(number, port, Outcome::Ok)));
        }
        assert!(recorder.peers.len() <= MAX_PEERS);
        let mut recorder = Recorder::new(Keep::Failures { context: u32::MAX });
        for number in 0..MAX_HELD as u64 + 10 {
            recorder.take(Box::new(attempt(
                number,
                u16::try_from(number % 2).unwrap(),
                Outcome::Ok,
            )));
        }
        assert!(recorder.held <= MAX_HELD);
        let held: usize = recorder.peers.values().map(|past| past.before.len()).sum();
        assert_eq!(recorder.held, held);
    }
}
