//! Counts and latencies of a whole trace, for its last record. Bounded: names beyond a limit fold into `other`.

use std::collections::BTreeMap;

use crate::{
    event::{Ktime, LossClass},
    model::{Attempt, Histogram, Summary, SummaryKey},
};

/// How many distinct (upstream, peer, outcome, cause) are counted apart.
const KEYS: usize = 10_000;
/// How many upstreams have histograms of their own.
const UPSTREAMS: usize = 1_000;

/// The counts so far.
#[derive(Debug, Default)]
pub struct Stats {
    attempts: u64,
    failures: u64,
    answered_with_error: Option<u64>,
    counts: BTreeMap<SummaryKey, u64>,
    latency: BTreeMap<(String, &'static str), Histogram>,
    lost: BTreeMap<LossClass, u64>,
}

impl Stats {
    /// Counts a finished attempt.
    pub fn add(&mut self, attempt: &Attempt) {
        self.attempts += 1;
        self.failures += u64::from(attempt.outcome.is_failure());
        if let Some(status) = attempt.request.as_ref().and_then(|request| request.status)
            && !attempt.outcome.is_failure()
        {
            *self.answered_with_error.get_or_insert(0) += u64::from(status >= 500);
        }
        let mut key = SummaryKey {
            upstream: attempt.upstream.clone(),
            peer: attempt.peer.as_ref().map(ToString::to_string),
            outcome: attempt.outcome.name(),
            cause: attempt.cause.as_ref().map(|cause| cause.id),
        };
        if self.counts.len() >= KEYS && !self.counts.contains_key(&key) {
            key.upstream = Some("other".to_owned());
            key.peer = Some("other".to_owned());
        }
        *self.counts.entry(key).or_insert(0) += 1;
        let Some(upstream) = &attempt.upstream else {
            return;
        };
        let durations = [
            ("connect_us", attempt.connect_us),
            ("first_byte_us", attempt.first_byte_us),
            ("total_us", Some(attempt.total_us)),
        ];
        for (name, duration) in durations {
            let Some(duration) = duration else {
                continue;
            };
            let mut key = (upstream.clone(), name);
            if self.latency.len() >= UPSTREAMS * 3 && !self.latency.contains_key(&key) {
                key.0 = "other".to_owned();
            }
            *self
                .latency
                .entry(key)
                .or_default()
                .0
                .entry(bucket(duration))
                .or_insert(0) += 1;
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
            answered_with_error: self.answered_with_error,
            counts: self.counts.clone(),
            latency: self.latency.clone(),
            lost: self.lost.clone(),
            complete: self.lost.is_empty(),
        }
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.counts.len() + self.latency.len()
    }
}

/// The power-of-two bucket of a duration.
fn bucket(micros: u64) -> u8 {
    u8::try_from(micros.max(1).ilog2()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_one_power_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 0, 1, 1, 2, 9, 10]);
    }
}
