//! `--upstream` and `--peer`: which attempts count at all, and the summary of those alone.

use std::collections::BTreeMap;

use crate::{
    event::Peer,
    model::{Attempt, Histogram, Summary, SummaryKey},
};

/// The attempts that the user wants to see; empty lists take everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Upstreams by name.
    pub upstreams: Vec<String>,
    /// Peers by address.
    pub peers: Vec<Peer>,
}

impl Selection {
    /// Nothing is left out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.upstreams.is_empty() && self.peers.is_empty()
    }

    /// Whether the attempt is wanted; one at an address of several upstreams belongs to each of them.
    #[must_use]
    pub fn takes(&self, attempt: &Attempt) -> bool {
        let mut names = attempt.upstream.iter().chain(&attempt.upstreams);
        let is_upstream = self.upstreams.is_empty() || names.any(|name| self.upstreams.contains(name));
        let is_peer = self.peers.is_empty()
            || attempt
                .peer
                .as_ref()
                .is_some_and(|peer| self.peers.contains(peer));
        is_upstream && is_peer
    }
}

/// Rows beyond this many are counted without their peer.
const MAX_ROWS: usize = 20_000;

/// Counts the selected attempts, since the engine's own summary counts all.
#[derive(Clone, Debug, Default)]
pub struct Recount {
    attempts: u64,
    failures: u64,
    counts: BTreeMap<SummaryKey, u64>,
    latency: BTreeMap<(String, &'static str), Histogram>,
}

impl Recount {
    /// Counts an attempt.
    pub fn add(&mut self, attempt: &Attempt) {
        self.attempts += 1;
        self.failures += u64::from(attempt.outcome.is_failure());
        let mut key = SummaryKey {
            upstream: attempt.upstream.clone(),
            peer: attempt.peer.as_ref().map(ToString::to_string),
            outcome: attempt.outcome.name(),
            cause: attempt.cause.as_ref().map(|cause| cause.id),
        };
        if self.counts.len() >= MAX_ROWS && !self.counts.contains_key(&key) {
            key.peer = None;
        }
        *self.counts.entry(key).or_insert(0) += 1;
        let Some(upstream) = &attempt.upstream else {
            return;
        };
        let latencies = [
            ("connect_us", attempt.connect_us),
            ("first_byte_us", attempt.first_byte_us),
            ("total_us", Some(attempt.total_us)),
        ];
        for (name, us) in latencies {
            if let Some(us) = us {
                let histogram = self.latency.entry((upstream.clone(), name)).or_default();
                *histogram.0.entry(bucket(us)).or_insert(0) += 1;
            }
        }
    }

    /// The engine's summary with the counts of the selected attempts in place of all.
    #[must_use]
    pub fn applied_to(&self, summary: Summary) -> Summary {
        Summary {
            attempts: self.attempts,
            failures: self.failures,
            counts: self.counts.clone(),
            latency: self.latency.clone(),
            ..summary
        }
    }
}

/// The power of two at or below `us`.
fn bucket(us: u64) -> u8 {
    u8::try_from(us.max(1).ilog2()).unwrap_or(63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn an_address_of_several_upstreams_belongs_to_each() {
        let selection = |upstream: &str| Selection {
            upstreams: vec![upstream.to_owned()],
            peers: Vec::new(),
        };
        let attempt = Attempt {
            upstream: None,
            upstreams: vec!["api".to_owned(), "app".to_owned()],
            ..samples::healthy()
        };
        assert!(selection("app").takes(&attempt));
        assert!(!selection("other").takes(&attempt));
        assert!(Selection::default().takes(&attempt));
    }

    #[test]
    fn a_peer_is_selected_by_its_address() {
        let selection = Selection {
            upstreams: Vec::new(),
            peers: vec![samples::peer(3001)],
        };
        let at = |port| Attempt {
            peer: Some(samples::peer(port)),
            ..samples::healthy()
        };
        assert!(selection.takes(&at(3001)));
        assert!(!selection.takes(&at(3000)));
        assert!(!selection.takes(&Attempt {
            peer: None,
            ..samples::healthy()
        }));
    }

    #[test]
    fn the_summary_counts_what_was_selected() {
        let mut recount = Recount::default();
        recount.add(&samples::healthy());
        recount.add(&samples::listener_died());
        let summary = recount.applied_to(Summary {
            attempts: 1_000,
            failures: 500,
            in_flight: 3,
            ..Summary::default()
        });
        assert_eq!((summary.attempts, summary.failures, summary.in_flight), (2, 1, 3));
        assert_eq!(summary.counts.values().sum::<u64>(), 2);
    }

    #[test]
    fn buckets_are_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 0, 1, 1, 2, 9, 10]);
        assert_eq!(bucket(u64::MAX), 63);
    }
}
