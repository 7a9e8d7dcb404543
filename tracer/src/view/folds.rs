//! Storms: failures that equal one already shown are counted, not drawn again.

use std::collections::HashMap;

use super::{
    Look, Medium,
    block::{cause_name, target},
    text::{cut, thousands, width},
};
use crate::{
    clock::Clock,
    event::{Ktime, Peer},
    model::{Attempt, Outcome},
};

/// After this long without an equal failure the next one is drawn in full again.
const FORGET_NS: u64 = 60_000_000_000;

/// On a terminal a count leaves the bottom, and stays as a line, when nothing was added for this long.
const QUIET_NS: u64 = 10_000_000_000;

/// Where lines cannot be drawn again a count is said after this long, then after twice as long, and so on …
const FIRST_REPEAT_NS: u64 = 10_000_000_000;

/// … up to this.
const MAX_REPEAT_NS: u64 = 320_000_000_000;

/// Different failures that are counted at the same time; the one that was quiet longest makes room.
const MAX_FOLDS: usize = 512;

/// Counts shown at the bottom of a terminal at the same time.
const MAX_LIVE: usize = 8;

/// What makes two failures equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    upstream: Option<String>,
    upstreams: Vec<String>,
    peer: Option<Peer>,
    outcome: Outcome,
    cause: Option<&'static str>,
    /// What a backend answered itself.
    status: Option<u16>,
}

/// A failure shown once, and how many equal ones followed.
#[derive(Clone, Debug)]
pub struct Fold {
    sample: Attempt,
    last_at: Ktime,
    total: u64,
    unsaid: u64,
    said_at: Ktime,
    repeat_ns: u64,
}

impl Fold {
    /// The line that says how many followed.
    pub fn line(&self, clock: Clock, look: &Look) -> String {
        let style = look.style();
        let time = look.time(self.last_at, clock);
        let text = format!(
            "{}   {} more, {} since {}",
            target(&self.sample),
            thousands(self.unsaid),
            thousands(self.total),
            look.time(self.sample.ended_at, clock),
        );
        let room = look.measure() - width(&time) - 2;
        let time = style.dim(&time);
        // What does not fit is left out; the block above has it all.
        let (mut full, mut full_width) = cause_name(&self.sample, style);
        let mut id = self
            .sample
            .cause
            .as_ref()
            .map_or_else(String::new, |cause| cause.id.to_owned());
        if let Some(status) = self.sample.answered() {
            full = format!("answered {status} itself");
            full_width = width(&full);
            id = status.to_string();
        }
        for (cause, cause_width) in [(full, full_width), (style.cause(&id), width(&id))] {
            if width(&text) + 3 + cause_width <= room {
                let gap = room - width(&text) - cause_width;
                return format!("{time}  {text}{:gap$}{cause}", "");
            }
        }
        format!("{time}  {}", cut(&text, room))
    }
}

/// All failures that are being counted.
#[derive(Debug, Default)]
pub struct Folds {
    open: HashMap<Key, Fold>,
}

impl Folds {
    /// Counts `attempt` when an equal one was shown lately; otherwise it is to be shown, and its like will be counted.
    pub fn takes(&mut self, attempt: &Attempt) -> bool {
        let key = Key {
            upstream: attempt.upstream.clone(),
            upstreams: attempt.upstreams.clone(),
            peer: attempt.peer.clone(),
            outcome: attempt.outcome,
            cause: attempt.cause.as_ref().map(|cause| cause.id),
            status: attempt.answered(),
        };
        if let Some(fold) = self.open.get_mut(&key)
            && attempt.ended_at.since(fold.last_at) < FORGET_NS
        {
            fold.last_at = fold.last_at.max(attempt.ended_at);
            fold.total += 1;
            fold.unsaid += 1;
            return true;
        }
        if self.open.len() >= MAX_FOLDS {
            self.make_room();
        }
        self.open.insert(
            key,
            Fold {
                sample: attempt.clone(),
                last_at: attempt.ended_at,
                total: 1,
                unsaid: 0,
                said_at: attempt.ended_at,
                repeat_ns: FIRST_REPEAT_NS,
            },
        );
        false
    }

    /// Counts that are to be written now and stay.
    pub fn finished(&mut self, now: Ktime, medium: Medium) -> Vec<Fold> {
        let mut finished = Vec::new();
        for fold in self.open.values_mut().filter(|fold| fold.unsaid > 0) {
            let is_due = match medium {
                Medium::Terminal => now.since(fold.last_at) >= QUIET_NS,
                Medium::Plain => now.since(fold.said_at) >= fold.repeat_ns,
            };
            if is_due {
                finished.push(fold.clone());
                fold.unsaid = 0;
                fold.said_at = now;
                fold.repeat_ns = (fold.repeat_ns * 2).min(MAX_REPEAT_NS);
            }
        }
        self.open
            .retain(|_, fold| fold.unsaid > 0 || now.since(fold.last_at) < FORGET_NS);
        in_order(finished)
    }

    /// Every count that has not been written yet.
    pub fn all_open(&mut self) -> Vec<Fold> {
        let open = self.open.drain().map(|(_, fold)| fold);
        in_order(open.filter(|fold| fold.unsaid > 0).collect())
    }

    /// The counts that are growing, for the bottom of a terminal.
    pub fn live_lines(&self, clock: Clock, look: &Look) -> Vec<String> {
        let growing = in_order(
            self.open
                .values()
                .filter(|fold| fold.unsaid > 0)
                .cloned()
                .collect(),
        );
        let mut lines: Vec<_> = growing
            .iter()
            .rev()
            .take(MAX_LIVE)
            .rev()
            .map(|fold| fold.line(clock, look))
            .collect();
        if growing.len() > MAX_LIVE {
            lines.push(format!("and {} others", growing.len() - MAX_LIVE));
        }
        lines
    }

    fn make_room(&mut self) {
        // Never one with an unsaid count, unless there is no other.
        let oldest = self
            .open
            .iter()
            .min_by_key(|(_, fold)| (fold.unsaid > 0, fold.last_at))
            .map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.open.remove(&oldest);
        }
    }
}

fn in_order(mut folds: Vec<Fold>) -> Vec<Fold> {
    folds.sort_by_key(|fold| (fold.last_at, fold.sample.number));
    folds
}
