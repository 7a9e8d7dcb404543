//! Failures that come back again and again after the same time, while others succeed in between.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use crate::{
    engine::{
        diagnose::fact,
        text::{counted, span},
    },
    event::{Ktime, Pid},
    model::{Attempt, Finding, Outcome},
};

/// How many (upstream, cause) pairs are watched.
const KEYS: usize = 1024;
/// Bursts remembered of each.
const BURSTS: usize = 64;
/// Failures with more nanoseconds than this between them belong to different bursts.
const GAP_NS: u64 = 3_000_000_000;
/// A shorter period is the load's own rhythm.
const LEAST_PERIOD_NS: u64 = 10_000_000_000;
/// Fewer bursts may be chance.
const ENOUGH: usize = 7;

/// When failures of one cause at one upstream began and began again.
#[derive(Debug, Default)]
pub struct Recurrences {
    /// By master, as another instance's upstream of the same name is another one.
    upstreams: BTreeMap<(Pid, String), u64>,
    bursts: BTreeMap<(Pid, String, &'static str), Bursts>,
}

#[derive(Debug, Default)]
struct Bursts {
    /// When each began, and how many attempts at the upstream had succeeded by then.
    begins: VecDeque<(u64, u64)>,
    last: u64,
    failures: u64,
}

impl Recurrences {
    /// Takes in a finished attempt of a worker of `master`.
    pub fn add(&mut self, attempt: &Attempt, master: Pid) {
        let Some(upstream) = &attempt.upstream else {
            return;
        };
        let is_full = self.upstreams.len() >= KEYS;
        let successes = match self.upstreams.entry((master, upstream.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return,
            Entry::Vacant(place) => place.insert(0),
        };
        if attempt.outcome == Outcome::Ok {
            *successes += 1;
            return;
        }
        let (true, Some(cause)) = (attempt.outcome.is_failure(), &attempt.cause) else {
            return;
        };
        let key = (master, upstream.clone(), cause.id);
        if self.bursts.len() >= KEYS && !self.bursts.contains_key(&key) {
            return;
        }
        self.bursts
            .entry(key)
            .or_default()
            .add(attempt.began_at, *successes);
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.upstreams.len() + self.bursts.len()
    }

    /// The patterns that stand; `shown` is how an upstream of a master is called.
    pub fn findings(&self, shown: impl Fn(Pid, &str) -> String) -> Vec<(Pid, Finding)> {
        let of = |((master, name, cause), bursts): (&(Pid, String, &'static str), &Bursts)| {
            let period = bursts.period()?;
            let upstream = shown(*master, name);
            let (n, every) = (bursts.begins.len() as u64, span(period));
            let finding = Finding {
                id: "failures-recur",
                about: format!("{upstream}: {cause}"),
                at: None,
                summary: format!(
                    "{cause} at {upstream} comes back every {every}: the last {} began that far apart, and requests in \
                     between succeeded ({} in all)",
                    counted(n, "burst"),
                    counted(bursts.failures, "failure")
                ),
                remedy: format!(
                    "look for what runs every {every}: a cron job or timer, a deploy or health check, log rotation, a \
                     backup, a cache that expires"
                ),
                attempts: bursts.failures,
                evidence: vec![
                    fact(None, "nginx", format!("{n} bursts, {every} apart"))
                        .text("upstream", name.clone())
                        .text("cause", *cause)
                        .count("bursts", n)
                        .count("period_us", period / 1000),
                ],
            };
            Some((*master, finding))
        };
        self.bursts.iter().filter_map(of).collect()
    }
}

impl Bursts {
    fn add(&mut self, at: Ktime, successes: u64) {
        self.failures += 1;
        let is_new = self.begins.is_empty() || at.0 > self.last.saturating_add(GAP_NS);
        self.last = self.last.max(at.0);
        if is_new {
            if self.begins.len() >= BURSTS {
                self.begins.pop_front();
            }
            self.begins.push_back((at.0, successes));
        }
    }

    /// The nanoseconds between them, where nine of ten are a tenth from it at most, and others succeeded in between.
    fn period(&self) -> Option<u64> {
        if self.begins.len() < ENOUGH {
            return None;
        }
        let steps = self.begins.iter().zip(self.begins.iter().skip(1));
        let gaps: Vec<(u64, u64)> = steps
            .map(|((from, before), (to, by_then))| (to - from, by_then - before))
            .collect();
        let mut times: Vec<u64> = gaps.iter().map(|(time, _)| *time).collect();
        times.sort_unstable();
        let period = *times.get(times.len() / 2)?;
        // A single request in between may be the same caller that comes round.
        let is_regular =
            |(time, successes): &&(u64, u64)| time.abs_diff(period) <= period / 10 && *successes >= 3;
        let regular = gaps.iter().filter(is_regular).count();
        (period >= LEAST_PERIOD_NS && regular * 10 >= gaps.len() * 9).then_some(period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts that begin at these seconds, with so many successes before each.
    fn bursts(seconds: &[u64], successes: u64) -> Bursts {
        let mut bursts = Bursts::default();
        for (second, n) in seconds.iter().zip(1..) {
            for failure in 0..3 {
                bursts.add(
                    Ktime(second * 1_000_000_000 + failure * 400_000_000),
                    n * successes,
                );
            }
        }
        bursts
    }

    #[test]
    fn what_comes_every_minute_is_seen() {
        let period = |seconds: &[u64], successes| bursts(seconds, successes).period();
        let minutes = [10, 70, 131, 190, 250, 309, 370, 430];
        assert_eq!(period(&minutes, 50), Some(60_000_000_000));
        // Every request fails: that is the rhythm of the requests.
        assert_eq!(period(&minutes, 0), None);
        assert_eq!(period(&minutes[..6], 50), None, "six may be chance");
        assert_eq!(period(&[10, 70, 95, 190, 250, 280, 370, 430], 50), None);
        assert_eq!(period(&[0, 5, 10, 15, 20, 25, 30, 35], 50), None, "too quick");
        assert_eq!(bursts(&minutes, 50).failures, 24);
    }

    #[test]
    fn one_irregular_of_many_does_not_hide_it() {
        let mut seconds: Vec<u64> = (0..20).map(|n| n * 30).collect();
        seconds.insert(7, 6 * 30 + 12);
        assert_eq!(bursts(&seconds, 9).period(), Some(30_000_000_000));
    }
}
