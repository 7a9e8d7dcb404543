//! Counts and latencies of a whole trace, for its last record. Bounded: names beyond a limit fold into `other`.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{
    event::{Ktime, LossClass, Peer},
    model::{Attempt, Histogram, Outcome, Summary, SummaryKey},
};

/// How many distinct (upstream, peer, outcome, cause) are counted apart.
const KEYS: usize = 10_000;
/// How many upstreams have histograms of their own.
const UPSTREAMS: usize = 1_000;
/// Stands for the names beyond these limits.
const OTHER: &str = "other";

/// The counts so far.
#[derive(Debug, Default)]
pub struct Stats {
    attempts: u64,
    failures: u64,
    answered_with_error: u64,
    statuses_read: u64,
    statuses_unread: u64,
    clients_got: BTreeMap<String, u64>,
    /// Attempts whose upstream has no name.
    nameless: Counts,
    named: BTreeMap<String, Counts>,
    latency: BTreeMap<String, Latency>,
    /// What folds, since there are too many names.
    other: BTreeMap<(Outcome, Option<&'static str>), u64>,
    other_latency: Latency,
    n_counts: usize,
    lost: BTreeMap<LossClass, u64>,
}

/// Attempts of one upstream by peer, outcome and cause.
type Counts = BTreeMap<(Option<Peer>, Outcome, Option<&'static str>), u64>;

/// How long the attempts of one upstream took.
#[derive(Clone, Debug, Default)]
struct Latency {
    connect: Histogram,
    first_byte: Histogram,
    total: Histogram,
}

impl Stats {
    /// Counts a finished attempt.
    pub fn add(&mut self, attempt: &Attempt) {
        self.attempts += 1;
        self.failures += u64::from(attempt.outcome.is_failure());
        if attempt.outcome == Outcome::Ok && attempt.via.as_deref() != Some("stream") {
            self.answered_with_error += u64::from(attempt.is_answered_with_error());
            match attempt.status() {
                Some(_) => self.statuses_read += 1,
                None => self.statuses_unread += 1,
            }
        }
        if let Some(client) = attempt.client.filter(|_| attempt.outcome.is_failure()) {
            *self.clients_got.entry(client.got()).or_insert(0) += 1;
        }
        *self.count_like(attempt) += 1;
        if let Some(upstream) = &attempt.upstream {
            by_name(&mut self.latency, upstream, UPSTREAMS)
                .unwrap_or(&mut self.other_latency)
                .add(attempt);
        }
    }

    /// The count of attempts like this one.
    fn count_like(&mut self, attempt: &Attempt) -> &mut u64 {
        let cause = attempt.cause.as_ref().map(|cause| cause.id);
        let counts = match &attempt.upstream {
            None => Some(&mut self.nameless),
            Some(upstream) => by_name(&mut self.named, upstream, KEYS),
        };
        let key = (attempt.peer.clone(), attempt.outcome, cause);
        match counts.map(|counts| counts.entry(key)) {
            Some(Entry::Occupied(count)) => count.into_mut(),
            Some(Entry::Vacant(place)) if self.n_counts < KEYS => {
                self.n_counts += 1;
                place.insert(0)
            }
            Some(Entry::Vacant(_)) | None => self.other.entry((attempt.outcome, cause)).or_insert(0),
        }
    }

    /// Counts a loss.
    pub fn lose(&mut self, class: LossClass, count: u64) {
        if count > 0 {
            let lost = self.lost.entry(class).or_insert(0);
            *lost = lost.saturating_add(count);
        }
    }

    /// The last record.
    pub fn summary(&self, at: Ktime, in_flight: u64) -> Summary {
        Summary {
            at,
            attempts: self.attempts,
            failures: self.failures,
            in_flight,
            answered_with_error: (self.statuses_read > 0 || self.statuses_unread == 0)
                .then_some(self.answered_with_error),
            statuses_unread: self.statuses_unread,
            clients_got: self.clients_got.clone(),
            counts: self.counts(),
            latency: self.latency(),
            lost: self.lost.clone(),
            complete: self.lost.is_empty(),
        }
    }

    fn counts(&self) -> BTreeMap<SummaryKey, u64> {
        let named = self
            .named
            .iter()
            .map(|(upstream, counts)| (Some(upstream), counts));
        let mut all = BTreeMap::new();
        for (upstream, counts) in named.chain([(None, &self.nameless)]) {
            for ((peer, outcome, cause), attempts) in counts {
                let key = SummaryKey {
                    upstream: upstream.cloned(),
                    peer: peer.as_ref().map(ToString::to_string),
                    outcome: outcome.name(),
                    cause: *cause,
                };
                all.insert(key, *attempts);
            }
        }
        for ((outcome, cause), attempts) in &self.other {
            let key = SummaryKey {
                upstream: Some(OTHER.to_owned()),
                peer: Some(OTHER.to_owned()),
                outcome: outcome.name(),
                cause: *cause,
            };
            *all.entry(key).or_insert(0) += attempts;
        }
        all
    }

    fn latency(&self) -> BTreeMap<(String, &'static str), Histogram> {
        let mut all: BTreeMap<(String, &'static str), Histogram> = BTreeMap::new();
        let named = self
            .latency
            .iter()
            .map(|(upstream, latency)| (upstream.as_str(), latency));
        for (upstream, latency) in named.chain([(OTHER, &self.other_latency)]) {
            let durations = [
                ("connect_us", &latency.connect),
                ("first_byte_us", &latency.first_byte),
                ("total_us", &latency.total),
            ];
            for (of, histogram) in durations
                .into_iter()
                .filter(|(_, histogram)| !histogram.0.is_empty())
            {
                let sum = all.entry((upstream.to_owned(), of)).or_default();
                for (bucket, attempts) in &histogram.0 {
                    *sum.0.entry(*bucket).or_insert(0) += attempts;
                }
            }
        }
        all
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.n_counts + self.other.len() + self.latency.len()
    }
}

impl Latency {
    fn add(&mut self, attempt: &Attempt) {
        let durations = [
            (&mut self.connect, attempt.connect_us),
            (&mut self.first_byte, attempt.first_byte_us),
            (&mut self.total, Some(attempt.total_us)),
        ];
        for (histogram, duration) in durations {
            if let Some(duration) = duration {
                *histogram.0.entry(bucket(duration)).or_insert(0) += 1;
            }
        }
    }
}

/// The entry of this name, made where it is one of the first `limit`; the name is copied only then.
pub fn by_name<'a, T: Default>(
    names: &'a mut BTreeMap<String, T>,
    name: &str,
    limit: usize,
) -> Option<&'a mut T> {
    if names.len() < limit && !names.contains_key(name) {
        names.insert(name.to_owned(), T::default());
    }
    names.get_mut(name)
}

/// The power-of-two bucket of a duration.
fn bucket(micros: u64) -> u8 {
    u8::try_from(micros.max(1).ilog2()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn attempt(upstream: Option<String>, port: u16) -> Attempt {
        Attempt {
            upstream,
            peer: Some(samples::peer(port)),
            connect_us: None,
            first_byte_us: Some(3),
            total_us: 5,
            ..samples::healthy()
        }
    }

    #[test]
    fn attempts_are_counted_by_upstream_and_peer() {
        let mut stats = Stats::default();
        let api = || Some("api".to_owned());
        for attempt in [
            attempt(api(), 1),
            attempt(api(), 1),
            attempt(api(), 2),
            attempt(None, 1),
        ] {
            stats.add(&attempt);
        }
        let summary = stats.summary(Ktime(0), 0);
        let key = |upstream, peer: &str| SummaryKey {
            upstream,
            peer: Some(peer.to_owned()),
            outcome: "ok",
            cause: None,
        };
        let counts = [
            (key(api(), "127.0.0.1:1"), 2),
            (key(api(), "127.0.0.1:2"), 1),
            (key(None, "127.0.0.1:1"), 1),
        ];
        assert_eq!(summary.counts, counts.into());
        let histogram = |bucket| Histogram([(bucket, 3)].into());
        let latency = [
            (("api".to_owned(), "first_byte_us"), histogram(1)),
            (("api".to_owned(), "total_us"), histogram(2)),
        ];
        assert_eq!(summary.latency, latency.into());
    }

    #[test]
    fn too_many_names_fold_and_nothing_is_lost() {
        let mut stats = Stats::default();
        let many = 3 * KEYS;
        for number in 0..many {
            stats.add(&attempt(Some(format!("upstream {number}")), 1));
        }
        stats.add(&attempt(Some("upstream 0".to_owned()), 2));
        assert!(stats.len() <= KEYS + UPSTREAMS + 1);
        let summary = stats.summary(Ktime(0), 0);
        assert_eq!(summary.counts.len(), KEYS + 1);
        assert_eq!(summary.counts.values().sum::<u64>(), many as u64 + 1);
        assert_eq!(summary.latency.len(), 2 * (UPSTREAMS + 1));
        let timed: u64 = summary
            .latency
            .values()
            .flat_map(|histogram| histogram.0.values())
            .sum();
        assert_eq!(timed, 2 * (many as u64 + 1));
    }

    #[test]
    fn a_bucket_holds_one_power_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 0, 1, 1, 2, 9, 10]);
    }
}
