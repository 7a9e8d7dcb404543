//! Attempts counted by upstream, cause and peer: the table under every summary and report.

use std::collections::BTreeMap;

use crate::model::Outcome;

/// Rows beyond this many fold into [`OTHER`].
const MAX_ROWS: usize = 20_000;

/// Stands for the peers and upstreams beyond the limit.
pub const OTHER: &str = "(others)";

/// Counts of attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All attempts.
    pub attempts: u64,
    /// Failures among them.
    pub failures: u64,
    /// Cancelled among them: the client or the worker left.
    pub cancelled: u64,
    /// By upstream; `None`: its name is not known.
    pub upstreams: BTreeMap<Option<String>, UpstreamTally>,
    /// By peer.
    pub peers: BTreeMap<String, PeerTally>,
    rows: usize,
}

/// Counts of one peer, over all upstreams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTally {
    /// All attempts.
    pub attempts: u64,
    /// Failures among them.
    pub failures: u64,
}

/// Counts of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTally {
    /// All attempts.
    pub attempts: u64,
    /// Failures among them.
    pub failures: u64,
    /// Cancelled among them.
    pub cancelled: u64,
    /// Failures by cause.
    pub causes: BTreeMap<String, CauseTally>,
}

/// Counts of one cause of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CauseTally {
    /// Failures.
    pub attempts: u64,
    /// By peer; an empty name: there was none.
    pub peers: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts `attempts` equal attempts. A failure without a cause counts under its outcome.
    pub fn add(
        &mut self,
        upstream: Option<&str>,
        peer: Option<&str>,
        outcome: &str,
        cause: Option<&str>,
        attempts: u64,
    ) {
        self.attempts += attempts;
        let is_full = self.rows >= MAX_ROWS;
        let mut upstream = upstream.map(ToOwned::to_owned);
        if is_full && !self.upstreams.contains_key(&upstream) {
            upstream = Some(OTHER.to_owned());
        }
        let by_upstream = self.upstreams.entry(upstream).or_insert_with(|| {
            self.rows += 1;
            UpstreamTally::default()
        });
        by_upstream.attempts += attempts;
        let is_failure = outcome != Outcome::Ok.name() && outcome != Outcome::Cancelled.name();
        if let Some(peer) = peer {
            let peer = if is_full && !self.peers.contains_key(peer) {
                OTHER
            } else {
                peer
            };
            let by_peer = self.peers.entry(peer.to_owned()).or_insert_with(|| {
                self.rows += 1;
                PeerTally::default()
            });
            by_peer.attempts += attempts;
            by_peer.failures += if is_failure { attempts } else { 0 };
        }
        if !is_failure {
            if outcome == Outcome::Cancelled.name() {
                self.cancelled += attempts;
                by_upstream.cancelled += attempts;
            }
            return;
        }
        self.failures += attempts;
        by_upstream.failures += attempts;
        let cause = cause.unwrap_or(outcome);
        // The names of causes are ours, so their number is bounded.
        let by_cause = by_upstream.causes.entry(cause.to_owned()).or_default();
        by_cause.attempts += attempts;
        let mut peer = peer.unwrap_or_default();
        if is_full && !by_cause.peers.contains_key(peer) {
            peer = OTHER;
        }
        *by_cause.peers.entry(peer.to_owned()).or_insert_with(|| {
            self.rows += 1;
            0
        }) += attempts;
    }
}

impl Tally {
    /// The peers with failures, the worst first.
    #[must_use]
    pub fn worst_peers(&self) -> Vec<(&str, PeerTally)> {
        most_frequent_first(self.peers.iter(), |peer| peer.failures)
            .into_iter()
            .filter(|(_, peer)| peer.failures > 0)
            .map(|(name, peer)| (name, *peer))
            .collect()
    }

    /// Adds everything that `other` counted.
    pub fn absorb(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.failures += other.failures;
        self.cancelled += other.cancelled;
        for (name, theirs) in &other.peers {
            let ours = self.peers.entry(name.clone()).or_default();
            ours.attempts += theirs.attempts;
            ours.failures += theirs.failures;
        }
        for (name, theirs) in &other.upstreams {
            let ours = self.upstreams.entry(name.clone()).or_default();
            ours.attempts += theirs.attempts;
            ours.failures += theirs.failures;
            ours.cancelled += theirs.cancelled;
            for (cause, theirs) in &theirs.causes {
                let ours = ours.causes.entry(cause.clone()).or_default();
                ours.attempts += theirs.attempts;
                for (peer, attempts) in &theirs.peers {
                    *ours.peers.entry(peer.clone()).or_default() += attempts;
                }
            }
        }
    }
}

impl UpstreamTally {
    /// The causes, the most frequent first.
    #[must_use]
    pub fn by_frequency(&self) -> Vec<(&str, &CauseTally)> {
        most_frequent_first(self.causes.iter(), |cause| cause.attempts)
    }
}

impl CauseTally {
    /// The peers, the worst first.
    #[must_use]
    pub fn by_frequency(&self) -> Vec<(&str, u64)> {
        most_frequent_first(self.peers.iter(), |attempts| *attempts)
            .into_iter()
            .map(|(peer, attempts)| (peer, *attempts))
            .collect()
    }
}

/// Sorts named things by number, the largest first; equal ones by name.
pub fn most_frequent_first<'a, T>(
    things: impl Iterator<Item = (&'a String, &'a T)>,
    number: impl Fn(&T) -> u64,
) -> Vec<(&'a str, &'a T)> {
    let mut sorted: Vec<_> = things.map(|(name, thing)| (name.as_str(), thing)).collect();
    sorted.sort_by(|(a, left), (b, right)| number(right).cmp(&number(left)).then_with(|| a.cmp(b)));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_by_what_happened_to_them() {
        let mut tally = Tally::default();
        tally.add(Some("api"), Some("a:1"), "ok", None, 7);
        tally.add(Some("api"), Some("a:1"), "refused", Some("no-listener"), 2);
        tally.add(Some("api"), Some("b:1"), "refused", Some("no-listener"), 3);
        tally.add(Some("api"), Some("a:1"), "cancelled", Some("client-closed"), 1);
        tally.add(None, None, "no-live-upstreams", None, 1);
        assert_eq!((tally.attempts, tally.failures, tally.cancelled), (14, 6, 1));
        let peer = tally.peers["a:1"];
        assert_eq!((peer.attempts, peer.failures), (10, 2));
        let api = &tally.upstreams[&Some("api".to_owned())];
        assert_eq!((api.attempts, api.failures, api.cancelled), (13, 5, 1));
        assert_eq!(api.causes["no-listener"].by_frequency(), [("b:1", 3), ("a:1", 2)]);
        assert_eq!(tally.upstreams[&None].by_frequency()[0].0, "no-live-upstreams");
    }

    #[test]
    fn rows_are_bounded_and_nothing_is_lost() {
        let mut tally = Tally::default();
        let many = 3 * MAX_ROWS as u64;
        for port in 0..many {
            tally.add(Some("api"), Some(&port.to_string()), "reset", Some("unknown"), 1);
            tally.add(Some(&format!("upstream {port}")), None, "ok", None, 1);
        }
        assert_eq!((tally.attempts, tally.failures), (2 * many, many));
        let peers: usize = tally
            .upstreams
            .values()
            .flat_map(|upstream| upstream.causes.values())
            .map(|cause| cause.peers.len())
            .sum();
        assert!(peers + tally.peers.len() + tally.upstreams.len() <= MAX_ROWS + 5);
        let counted: u64 = tally.upstreams.values().map(|upstream| upstream.attempts).sum();
        assert_eq!(counted, 2 * many);
    }
}
