//! Which peers nginx's balancer leaves out, since when and by which failures, worked out from the attempts.
//!
//! nginx counts the failures of a peer; at `max_fails` it leaves the peer out for `fail_timeout`, then tries it with one
//! request, and forgets the failures only when such a try, or one after as long a quiet time, succeeds. It never tells
//! (at level `warn`: `upstream server temporarily disabled`).
//! <https://github.com/nginx/nginx/blob/release-1.26.3/src/http/ngx_http_upstream_round_robin.c>

use std::collections::BTreeMap;

use crate::{
    engine::{
        diagnose::fact,
        notes,
        table::Keyed,
        text::{counted, span},
    },
    event::{Balancing, Ktime, Peer, Pid},
    model::{Attempt, Finding, NoteEvent, Outcome},
};

/// Peers with failures, each as each worker sees it.
const STATES: usize = 4096;
/// How long a peer's failures are remembered: days.
const MEMORY: u64 = 7 * 86_400 * SECOND;
/// Peers of which the whole time is kept.
const PEERS: usize = 1024;
/// Failures named when a peer is disabled.
const NAMED: usize = 5;
/// Who keep count of one peer, as far as they are told apart.
const OWNERS: usize = 1024;
const SECOND: u64 = 1_000_000_000;
/// nginx's clock has whole seconds: so much longer than `fail_timeout` it may take its failures for recent.
const COARSE: u64 = SECOND;

/// Causes that lie with nginx, this host or the way, and not with the peer.
const NOT_ITS_FAULT: [&str; 9] = [
    "keepalive-race",
    "connection-expired",
    "ports-exhausted",
    "packet-dropped-locally",
    "route-missing",
    "route-forbids",
    "selinux-denied",
    "address-outdated",
    "fd-limit",
];

/// Who keeps count: a worker by itself, or all that share a `zone`, by their master and when it read its files.
pub type Owner = (Pid, Ktime);

/// What the balancers think of their peers.
#[derive(Debug)]
pub struct Balancers {
    states: Keyed<Key, State>,
    peers: BTreeMap<(String, Peer), Whole>,
    /// When the earliest attempt began and the latest ended.
    from: Option<Ktime>,
    until: Ktime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    owner: Owner,
    upstream: String,
    peer: Peer,
}

#[derive(Debug)]
struct State {
    fails: u32,
    /// Since when these count.
    first: Ktime,
    /// When it failed last.
    last: Ktime,
    /// The latest failures that count: attempt and cause.
    causes: Vec<(u64, &'static str)>,
    out: Option<Out>,
}

/// A peer that is left out.
#[derive(Clone, Copy, Debug)]
struct Out {
    since: Ktime,
    /// That of the failure that did it.
    cause: &'static str,
}

/// What a failure that counts does to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Nothing yet.
    Counted,
    /// It is left out from now on.
    Disabled,
    /// It was tried again after having been left out for so many nanoseconds, and is left out again.
    Again { cause: &'static str, left_out: u64 },
}

/// A peer over all who keep count.
#[derive(Debug, Default)]
struct Whole {
    owners: Vec<Owner>,
    times: u64,
    by_cause: BTreeMap<&'static str, u64>,
    left_out: u64,
    counted: u64,
    uncounted: u64,
    /// The longest time over which the failures were spread that disabled it, how many, and `fail_timeout`.
    spread: Option<(u64, u32, u64)>,
}

impl Default for Balancers {
    fn default() -> Self {
        Self {
            states: Keyed::new(STATES, MEMORY),
            peers: BTreeMap::new(),
            from: None,
            until: Ktime(0),
        }
    }
}

impl Balancers {
    /// Whether no peer has failed: an attempt that succeeded changes nothing then.
    pub fn is_idle(&self) -> bool {
        self.states.len() == 0
    }

    /// Takes in when a success was seen, which is all that matters of it while [`Self::is_idle`].
    pub fn pass(&mut self, attempt: &Attempt) {
        self.from = Some(
            self.from
                .map_or(attempt.began_at, |from| from.min(attempt.began_at)),
        );
        self.until = self.until.max(attempt.ended_at);
    }

    /// Takes in a finished attempt of that owner: what nginx does with the peer from now on, if that changes.
    pub fn add(
        &mut self,
        now: Ktime,
        attempt: &Attempt,
        owner: Owner,
        balancing: Balancing,
        is_counted: bool,
    ) -> Option<NoteEvent> {
        self.pass(attempt);
        let (upstream, peer) = (attempt.upstream.as_ref()?, attempt.peer.as_ref()?);
        if balancing.max_fails == 0 {
            return None;
        }
        let is_failure = attempt.outcome.is_failure();
        let place = (upstream.clone(), peer.clone());
        if is_failure && (self.peers.len() < PEERS || self.peers.contains_key(&place)) {
            let whole = self.peers.entry(place.clone()).or_default();
            *(if is_counted {
                &mut whole.counted
            } else {
                &mut whole.uncounted
            }) += 1;
        }
        let key = Key {
            owner,
            upstream: upstream.clone(),
            peer: peer.clone(),
        };
        if is_failure && is_counted {
            if self.states.last(&key).is_none() {
                self.states.push(now, key.clone(), State::new(attempt.began_at));
            }
            let state = self.states.last_mut(&key)?;
            let whole = self.peers.get_mut(&place)?;
            return match state.fail(attempt, balancing) {
                Failed::Counted => None,
                Failed::Disabled => Some(whole.disabled(owner, state, attempt, balancing)),
                Failed::Again { cause, left_out } => {
                    whole.add(cause, left_out);
                    None
                }
            };
        }
        if attempt.outcome != Outcome::Ok {
            return None;
        }
        let (out, left_out) = self.states.last_mut(&key)?.succeed(attempt, balancing)?;
        self.peers.get_mut(&place)?.add(out.cause, left_out);
        Some(notes::peer_enabled(attempt, out.since, out.cause))
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.states.len() + self.peers.len()
    }

    /// Drops what is too old.
    pub fn expire(&mut self, now: Ktime) {
        self.states.expire(now);
    }

    /// The patterns that stand.
    pub fn findings(&self) -> Vec<Finding> {
        let watched = self.from.map_or(0, |from| self.until.since(from));
        self.peers
            .iter()
            .flat_map(|((upstream, peer), whole)| {
                let findings = [
                    whole.left_out(upstream, peer, watched),
                    whole.spread(upstream, peer),
                    whole.never_counted(upstream, peer),
                ];
                findings.into_iter().flatten()
            })
            .collect()
    }
}

impl State {
    fn new(at: Ktime) -> Self {
        Self {
            fails: 0,
            first: at,
            last: at,
            causes: Vec::new(),
            out: None,
        }
    }

    fn fail(&mut self, attempt: &Attempt, balancing: Balancing) -> Failed {
        let timeout = balancing.fail_timeout_ms.saturating_mul(1_000_000);
        if self.fails == 0 {
            self.first = attempt.ended_at;
            self.causes.clear();
        }
        self.fails = self.fails.saturating_add(1);
        if self.causes.len() >= NAMED {
            self.causes.remove(0);
        }
        let cause = attempt.cause.as_ref().map_or("unknown", |cause| cause.id);
        self.causes.push((attempt.number, cause));
        let left_out = attempt
            .began_at
            .since(self.last)
            .min(timeout.saturating_add(COARSE));
        self.last = self.last.max(attempt.ended_at);
        match self.out {
            Some(out) => Failed::Again {
                cause: out.cause,
                left_out,
            },
            None if self.fails < balancing.max_fails => Failed::Counted,
            None => {
                self.out = Some(Out {
                    since: attempt.ended_at,
                    cause,
                });
                Failed::Disabled
            }
        }
    }

    /// A success: `Some` when the peer had been left out until then, and how long since it was last tried.
    fn succeed(&mut self, attempt: &Attempt, balancing: Balancing) -> Option<(Out, u64)> {
        // One that was under way when another failed says nothing of the time after that.
        if self.fails == 0 || attempt.began_at <= self.last {
            return None;
        }
        let timeout = balancing.fail_timeout_ms.saturating_mul(1_000_000);
        let quiet = attempt.began_at.since(self.last);
        // A little later nginx may not forget yet; that it does, is what claims less.
        if self.out.is_none() && quiet <= timeout {
            return None;
        }
        self.fails = 0;
        Some((self.out.take()?, quiet.min(timeout.saturating_add(COARSE))))
    }
}

impl Whole {
    fn disabled(
        &mut self,
        owner: Owner,
        state: &State,
        attempt: &Attempt,
        balancing: Balancing,
    ) -> NoteEvent {
        let timeout = balancing.fail_timeout_ms.saturating_mul(1_000_000);
        self.times += 1;
        if !self.owners.contains(&owner) && self.owners.len() < OWNERS {
            self.owners.push(owner);
        }
        let over = attempt.ended_at.since(state.first);
        if balancing.max_fails > 1 && over > timeout.saturating_add(COARSE) {
            let spread = (over, balancing.max_fails, timeout);
            self.spread = Some(self.spread.map_or(spread, |known| known.max(spread)));
        }
        notes::peer_disabled(attempt, balancing, &state.causes)
    }

    fn add(&mut self, cause: &'static str, left_out: u64) {
        *self.by_cause.entry(cause).or_default() += left_out;
        self.left_out = self.left_out.saturating_add(left_out);
    }

    /// It was out for a good part of the time.
    fn left_out(&self, upstream: &str, peer: &Peer, watched: u64) -> Option<Finding> {
        let owners = self.owners.len() as u64;
        let of = u128::from(watched) * u128::from(owners.max(1));
        let percent = |part: u64, of: u128| u64::try_from(u128::from(part) * 100 / of.max(1)).unwrap_or(100);
        let share = percent(self.left_out, of);
        if share < 1 || self.left_out < 10 * SECOND {
            return None;
        }
        let others: u64 = NOT_ITS_FAULT
            .iter()
            .filter_map(|cause| self.by_cause.get(cause))
            .sum();
        let others = percent(others, u128::from(self.left_out));
        let worst = self
            .by_cause
            .iter()
            .max_by_key(|(_, time)| **time)
            .map_or("unknown", |(cause, _)| *cause);
        let fault = match others {
            0 => format!("most of it for {worst}"),
            _ => format!("{others} % of it for what is not its fault, most of all for {worst}"),
        };
        Some(Finding {
            id: "peer-left-out",
            summary: format!(
                "nginx left {peer} out of {upstream} {share} % of the time ({} in {}{}), {fault}",
                span(self.left_out),
                counted(self.times, "outage"),
                match owners {
                    0 | 1 => String::new(),
                    n => format!(" of {n} workers"),
                },
            ),
            remedy: "cure the cause; until then a larger max_fails, or a shorter fail_timeout, on its server line keeps \
                     single failures from putting it out"
                .to_owned(),
            attempts: self.counted,
            evidence: self
                .by_cause
                .iter()
                .map(|(cause, time)| {
                    fact(None, "nginx", format!("{cause}: left out for {}", span(*time)))
                        .text("peer", peer.to_string())
                        .text("cause", *cause)
                        .count("left_out_us", time / 1000)
                })
                .collect(),
        })
    }

    /// It was disabled by failures that lie farther apart than `fail_timeout`.
    fn spread(&self, upstream: &str, peer: &Peer) -> Option<Finding> {
        let (over, max_fails, timeout) = self.spread?;
        let (over, timeout) = (span(over), span(timeout));
        Some(Finding {
            id: "disabled-by-failures-far-apart",
            summary: format!(
                "{peer} of {upstream} was disabled by {max_fails} failures within {over}, although fail_timeout is \
                 {timeout}: nginx forgets failures only when a request succeeds that comes {timeout} after the last one"
            ),
            remedy: format!(
                "on its server line, raise max_fails above {max_fails}, or cure the single failures; a longer \
                 fail_timeout does not help"
            ),
            attempts: u64::from(max_fails),
            evidence: vec![
                fact(
                    None,
                    "nginx",
                    format!("{max_fails} failures within {over}; fail_timeout {timeout}"),
                )
                .text("upstream", upstream)
                .text("peer", peer.to_string()),
            ],
        })
    }

    /// It fails again and again, and the balancer does not notice.
    fn never_counted(&self, upstream: &str, peer: &Peer) -> Option<Finding> {
        if self.counted > 0 || self.uncounted < 10 {
            return None;
        }
        Some(Finding {
            id: "failures-never-counted",
            summary: format!(
                "{} of {upstream} at {peer} came after nginx had begun to pass on the answer: the balancer counts none of \
                 these, so it goes on choosing {peer}",
                counted(self.uncounted, "failure")
            ),
            remedy: format!(
                "max_fails and proxy_next_upstream do nothing for them; look at {peer}, or have something else watch it"
            ),
            attempts: self.uncounted,
            evidence: vec![
                fact(None, "nginx", format!("{} failures, 0 counted", self.uncounted))
                    .text("upstream", upstream)
                    .text("peer", peer.to_string())
                    .count("failures", self.uncounted),
            ],
        })
    }
}

#[cfg(test)]
mod tests;
