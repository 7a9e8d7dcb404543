//! Patterns over many attempts, said at the end of a trace. Few, and only what the numbers prove.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{
    engine::{
        diagnose::fact,
        stats::by_name,
        table::Keyed,
        text::{counted, span},
    },
    event::{Ktime, Peer},
    model::{Attempt, Finding, Outcome},
};

/// How many (upstream, peer) pairs are watched.
const PEERS: usize = 4096;

/// What findings are made of.
#[derive(Debug)]
pub struct Watch {
    upstreams: BTreeMap<String, BTreeMap<Peer, Tally>>,
    n_peers: usize,
    /// Recent failures by attempt number: the attempt they retried.
    chain: Keyed<u64, Option<u64>>,
    hidden: BTreeMap<String, u64>,
    n_hidden: u64,
}

#[derive(Debug, Default)]
struct Tally {
    attempts: u64,
    failures: u64,
    races: u64,
    idle_min: u64,
    idle_max: u64,
    idle_sum: u128,
}

impl Watch {
    /// Nothing seen yet; at most `capacity` failures remembered for their retries.
    pub fn new(capacity: usize) -> Self {
        Self {
            upstreams: BTreeMap::new(),
            n_peers: 0,
            chain: Keyed::new(capacity, 300_000_000_000),
            hidden: BTreeMap::new(),
            n_hidden: 0,
        }
    }

    /// Takes in a finished attempt.
    pub fn add(&mut self, now: Ktime, attempt: &Attempt) {
        let of = attempt.retry.map(|(of, _)| of);
        if attempt.outcome.is_failure() {
            self.chain.push(now, attempt.number, of);
        } else if attempt.outcome == Outcome::Ok {
            self.count_hidden(of, attempt.upstream.as_deref());
        }
        let (Some(upstream), Some(peer)) = (&attempt.upstream, &attempt.peer) else {
            return;
        };
        let Some(peers) = by_name(&mut self.upstreams, upstream, PEERS) else {
            return;
        };
        let tally = match peers.entry(peer.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) if self.n_peers < PEERS => {
                self.n_peers += 1;
                place.insert(Tally::default())
            }
            Entry::Vacant(_) => return,
        };
        tally.attempts += 1;
        tally.failures += u64::from(attempt.outcome.is_failure());
        let is_race = attempt
            .cause
            .as_ref()
            .is_some_and(|cause| cause.id == "keepalive-race");
        if let (true, Some(idle)) = (is_race, attempt.idle_us) {
            tally.idle_min = if tally.races == 0 {
                idle
            } else {
                tally.idle_min.min(idle)
            };
            tally.idle_max = tally.idle_max.max(idle);
            tally.idle_sum += u128::from(idle);
            tally.races += 1;
        }
    }

    /// A success ended a chain of retries: the failures before it never reached the client.
    fn count_hidden(&mut self, of: Option<u64>, upstream: Option<&str>) {
        let mut next = of;
        // A request cannot be retried more often than this.
        for _ in 0..1024 {
            let Some(number) = next else {
                break;
            };
            let Some(entry) = self.chain.last_mut(&number) else {
                break;
            };
            // Its own successor, once counted: a failure is hidden once.
            next = entry.take().filter(|before| *before < number);
            self.n_hidden += 1;
            if let Some(upstream) = upstream
                && (self.hidden.len() < PEERS || self.hidden.contains_key(upstream))
            {
                *self.hidden.entry(upstream.to_owned()).or_insert(0) += 1;
            }
        }
    }

    /// The patterns that stand.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.idle_timeouts();
        findings.extend(self.one_peer_or_family());
        findings.extend(self.hidden_failures());
        findings
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.upstreams.len() + self.n_peers + self.chain.len() + self.hidden.len()
    }

    /// All races of a peer at one idle time: that time is the backend's keep-alive timeout.
    fn idle_timeouts(&self) -> Vec<Finding> {
        let is_one_time = |tally: &Tally| {
            let mean = u64::try_from(tally.idle_sum / u128::from(tally.races.max(1))).unwrap_or(u64::MAX);
            tally.races >= 5 && (tally.idle_max - tally.idle_min).saturating_mul(10) < mean
        };
        let of = |(upstream, peer, tally): (&str, &Peer, &Tally)| {
            let mean = u64::try_from(tally.idle_sum / u128::from(tally.races.max(1))).unwrap_or(u64::MAX);
            let (least, mean, most) = (
                span(tally.idle_min * 1000),
                span(mean.saturating_mul(1000)),
                span(tally.idle_max.saturating_mul(1000)),
            );
            Finding {
                id: "keepalive-races-at-one-idle-time",
                summary: format!(
                    "all {} of {upstream} at {peer} happened after about {mean} of idleness ({least} to {most}): that is \
                     the backend's keep-alive timeout",
                    counted(tally.races, "keepalive race")
                ),
                remedy: format!(
                    "set keepalive_timeout in upstream {upstream} below {mean}, or raise the backend's keep-alive timeout \
                     above nginx's"
                ),
                attempts: tally.races,
                evidence: vec![
                    fact(None, "tcp", format!("idle time {least} to {most}, mean {mean}"))
                        .text("upstream", upstream)
                        .text("peer", peer.to_string())
                        .count("idle_min_us", tally.idle_min)
                        .count("idle_max_us", tally.idle_max),
                ],
            }
        };
        self.peers()
            .filter(|(.., tally)| is_one_time(tally))
            .map(of)
            .collect()
    }

    fn peers(&self) -> impl Iterator<Item = (&str, &Peer, &Tally)> {
        self.upstreams
            .iter()
            .flat_map(|(upstream, peers)| peers.iter().map(|(peer, tally)| (upstream.as_str(), peer, tally)))
    }

    /// All failures of an upstream on one peer, or on one address family, while the others had none.
    fn one_peer_or_family(&self) -> Vec<Finding> {
        self.upstreams
            .iter()
            .filter_map(|(upstream, peers)| one_sided(upstream, &peers.iter().collect::<Vec<_>>()))
            .collect()
    }

    fn hidden_failures(&self) -> Vec<Finding> {
        if self.n_hidden == 0 {
            return Vec::new();
        }
        let by_upstream: Vec<String> = self
            .hidden
            .iter()
            .map(|(upstream, n)| format!("{upstream}: {n}"))
            .collect();
        let evidence = self
            .hidden
            .iter()
            .map(|(upstream, n)| {
                fact(None, "nginx", format!("{upstream}: {n} hidden"))
                    .text("upstream", upstream.clone())
                    .count("failures", *n)
            })
            .collect();
        vec![Finding {
            id: "failures-hidden-by-retries",
            summary: format!(
                "{} never reached a client, because a retry succeeded ({})",
                counted(self.n_hidden, "failure"),
                if by_upstream.is_empty() {
                    "upstream unknown".to_owned()
                } else {
                    by_upstream.join(", ")
                }
            ),
            remedy: "clients see only the added latency; cure the causes before the other peers fail too"
                .to_owned(),
            attempts: self.n_hidden,
            evidence,
        }]
    }
}

fn one_sided(upstream: &str, peers: &[(&Peer, &Tally)]) -> Option<Finding> {
    // Fewer attempts or failures than these may be chance.
    const ENOUGH: u64 = 10;
    let failed: Vec<_> = peers.iter().filter(|(_, tally)| tally.failures > 0).collect();
    let sound: Vec<_> = peers.iter().filter(|(_, tally)| tally.failures == 0).collect();
    let n_failures: u64 = failed.iter().map(|(_, tally)| tally.failures).sum();
    let n_sound: u64 = sound.iter().map(|(_, tally)| tally.attempts).sum();
    if n_failures < ENOUGH || n_sound < ENOUGH {
        return None;
    }
    let is_v6 = |peer: &Peer| matches!(peer, Peer::Tcp(address) if address.is_ipv6());
    let is_family = failed.iter().all(|(peer, _)| is_v6(peer)) && sound.iter().all(|(peer, _)| !is_v6(peer));
    let evidence = peers
        .iter()
        .map(|(peer, tally)| {
            fact(
                None,
                "nginx",
                format!("{peer}: {} failed of {}", tally.failures, tally.attempts),
            )
            .text("peer", peer.to_string())
            .count("failures", tally.failures)
            .count("attempts", tally.attempts)
        })
        .collect();
    if is_family {
        return Some(Finding {
            id: "one-family-fails",
            summary: format!(
                "every failure of {upstream} is on its IPv6 addresses ({n_failures}); {n_sound} attempts over IPv4 had none"
            ),
            remedy: "let the backend listen on IPv6 too, or name only the IPv4 address in the upstream"
                .to_owned(),
            attempts: n_failures,
            evidence,
        });
    }
    let [(peer, _)] = failed.as_slice() else {
        return None;
    };
    Some(Finding {
        id: "one-peer-fails",
        summary: format!(
            "every failure of {upstream} is at {peer} ({n_failures}); {n_sound} attempts at its other peers had none"
        ),
        remedy: format!("look at {peer}, or take it out of {upstream} until it is cured"),
        attempts: n_failures,
        evidence,
    })
}
