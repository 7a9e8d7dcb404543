//! Which peers nginx's balancer leaves out, since when and by which failures, worked out from the attempts.
//!
//! nginx counts the failures of a peer; at `max_fails` it leaves the peer out for `fail_timeout`, then tries it with one
//! request, and forgets the failures only when such a try, or one after as long a quiet time, succeeds. It never tells
//! (at level `warn`: `upstream server temporarily disabled`).
//! <https://github.com/nginx/nginx/blob/release-1.26.3/src/http/ngx_http_upstream_round_robin.c>

use std::collections::BTreeMap;

use crate::{
    engine::{
        Counting,
        diagnose::fact,
        findings::about,
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
const NOT_ITS_FAULT: [&str; 13] = [
    "keepalive-race",
    "connection-expired",
    "ports-exhausted",
    "slow-handshake",
    "packet-dropped-locally",
    "firewall-reset-midstream",
    "destination-translated",
    "destination-invalid",
    "route-missing",
    "route-forbids",
    "selinux-denied",
    "address-outdated",
    "fd-limit",
];

/// Who keeps count: a worker by itself, or all that share a `zone`, by their master and when it read its files.
pub type Owner = (Pid, Ktime);

/// What came of an attempt.
#[derive(Debug, Default)]
pub struct Balanced {
    /// What nginx does with the peer from now on, if that changes.
    pub note: Option<NoteEvent>,
    /// The peer had been left out: nginx tries such a one once in a while, by a rhythm of its own.
    pub is_probe: bool,
}

/// What the balancers think of their peers.
#[derive(Debug)]
pub struct Balancers {
    states: Keyed<Key, State>,
    /// How many states each upstream has.
    upstreams: BTreeMap<String, usize>,
    /// When something was lost last: successes may be missing since.
    lost_at: Ktime,
    /// By master, as another instance's upstream of the same name is another one.
    peers: BTreeMap<(Pid, String, Peer), Whole>,
    /// When the earliest attempt began and the latest ended.
    from: Option<Ktime>,
    until: Ktime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    master: Pid,
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
    is_shared: bool,
    counted: u64,
    late: u64,
    /// The longest time over which the failures were spread that disabled it, how many, and `fail_timeout`.
    spread: Option<(u64, u32, u64)>,
}

impl Default for Balancers {
    fn default() -> Self {
        Self {
            states: Keyed::new(STATES, MEMORY),
            upstreams: BTreeMap::new(),
            lost_at: Ktime(0),
            peers: BTreeMap::new(),
            from: None,
            until: Ktime(0),
        }
    }
}

impl Balancers {
    /// Whether a peer of this upstream has failed: otherwise an attempt that succeeded changes nothing.
    pub fn knows(&self, upstream: &str) -> bool {
        self.upstreams.contains_key(upstream)
    }

    /// Takes in when an attempt was made.
    pub fn pass(&mut self, attempt: &Attempt) {
        self.from = Some(
            self.from
                .map_or(attempt.began_at, |from| from.min(attempt.began_at)),
        );
        self.until = self.until.max(attempt.ended_at);
    }

    /// Something was lost: a success that made nginx forget failures may have been.
    pub fn lost(&mut self, at: Ktime) {
        self.lost_at = at;
    }

    /// Of how many peers the failures were forgotten for want of room since this was last asked.
    pub fn take_evicted(&mut self) -> u64 {
        self.states.take_evicted()
    }

    /// Takes in a finished attempt of that owner, a worker (or all) of `master`.
    pub fn add(
        &mut self,
        now: Ktime,
        attempt: &Attempt,
        (master, owner): (Pid, Owner),
        balancing: Balancing,
        counting: Counting,
    ) -> Balanced {
        let (Some(upstream), Some(peer)) = (&attempt.upstream, &attempt.peer) else {
            return Balanced::default();
        };
        // Nothing disables it; or answers count too, whose statuses are not known.
        if balancing.max_fails == 0 || balancing.counts_statuses {
            return Balanced::default();
        }
        let key = Key {
            master,
            owner,
            upstream: upstream.clone(),
            peer: peer.clone(),
        };
        let is_probe = self.states.last(&key).is_some_and(|state| state.out.is_some());
        let note = match counting {
            _ if attempt.outcome == Outcome::Ok => self.succeed(&key, attempt, balancing),
            _ if !attempt.outcome.is_failure() => None,
            Counting::Counted => self.fail(now, &key, attempt, balancing),
            Counting::Late => {
                if let Some(whole) = self.whole(&key) {
                    whole.late += 1;
                }
                None
            }
            Counting::Own | Counting::Unknown => None,
        };
        Balanced { note, is_probe }
    }

    fn whole(&mut self, key: &Key) -> Option<&mut Whole> {
        let place = (key.master, key.upstream.clone(), key.peer.clone());
        if self.peers.len() >= PEERS && !self.peers.contains_key(&place) {
            return None;
        }
        Some(self.peers.entry(place).or_default())
    }

    fn fail(&mut self, now: Ktime, key: &Key, attempt: &Attempt, balancing: Balancing) -> Option<NoteEvent> {
        if self.states.last(key).is_none() {
            self.states.push(now, key.clone(), State::new(attempt.began_at));
            *self.upstreams.entry(key.upstream.clone()).or_default() += 1;
        }
        let lost_at = self.lost_at;
        let state = self.states.last_mut(key)?;
        if state.out.is_none() && state.last < lost_at {
            state.fails = 0;
        }
        let failed = state.fail(attempt, balancing);
        let note =
            (failed == Failed::Disabled).then(|| notes::peer_disabled(attempt, balancing, &state.causes));
        let first = state.first;
        if let Some(whole) = self.whole(key) {
            whole.counted += 1;
            match failed {
                Failed::Counted => {}
                Failed::Disabled => whole.disabled(key.owner, first, attempt, balancing),
                Failed::Again { cause, left_out } => whole.add(cause, left_out),
            }
        }
        note
    }

    fn succeed(&mut self, key: &Key, attempt: &Attempt, balancing: Balancing) -> Option<NoteEvent> {
        let state = self.states.last_mut(key)?;
        let ended = state.succeed(attempt, balancing);
        if state.fails > 0 {
            return None;
        }
        self.states.forget(key);
        if let Some(states) = self.upstreams.get_mut(&key.upstream) {
            *states = states.saturating_sub(1);
            if *states == 0 {
                self.upstreams.remove(&key.upstream);
            }
        }
        let (out, left_out) = ended?;
        if let Some(whole) = self.whole(key) {
            whole.add(out.cause, left_out);
        }
        Some(notes::peer_enabled(attempt, balancing, out.since, out.cause))
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.states.len() + self.upstreams.len() + self.peers.len()
    }

    /// Drops what is too old.
    pub fn expire(&mut self, now: Ktime) {
        self.states.expire(now);
    }

    /// The patterns that stand, each with the master of its instance; `shown` is how an upstream of a master is called.
    pub fn findings(&self, shown: impl Fn(Pid, &str) -> String) -> Vec<(Pid, Finding)> {
        let watched = self.from.map_or(0, |from| self.until.since(from));
        self.peers
            .iter()
            .flat_map(|((master, upstream, peer), whole)| {
                let upstream = shown(*master, upstream);
                let findings = [
                    whole.left_out(&upstream, peer, watched),
                    whole.spread(&upstream, peer),
                    whole.never_counted(&upstream, peer),
                ];
                findings.into_iter().flatten().map(|finding| (*master, finding))
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
        let timeout = balancing.fail_timeout_ms.saturating_mul(1_000_000);
        let Some(out) = self.out else {
            // nginx may not forget yet; that it does, is what claims less.
            if attempt.ended_at.since(self.last) > timeout {
                self.fails = 0;
            }
            return None;
        };
        // One that was under way when another failed says nothing of the time after that.
        if attempt.began_at <= self.last {
            return None;
        }
        self.fails = 0;
        self.out = None;
        let quiet = attempt.began_at.since(self.last);
        Some((out, quiet.min(timeout.saturating_add(COARSE))))
    }
}

impl Whole {
    fn disabled(&mut self, owner: Owner, first: Ktime, attempt: &Attempt, balancing: Balancing) {
        let timeout = balancing.fail_timeout_ms.saturating_mul(1_000_000);
        self.times += 1;
        self.is_shared = balancing.is_shared;
        if !self.owners.contains(&owner) && self.owners.len() < OWNERS {
            self.owners.push(owner);
        }
        let over = attempt.ended_at.since(first);
        if balancing.max_fails > 1 && over > timeout.saturating_add(COARSE) {
            let spread = (over, balancing.max_fails, timeout);
            self.spread = Some(self.spread.map_or(spread, |known| known.max(spread)));
        }
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
            about: about(upstream, peer),
            at: None,
            summary: format!(
                "{} left {peer} out of {upstream} {share} % of the time ({} in {}), {fault}",
                match (self.is_shared, owners) {
                    (true, _) => "nginx".to_owned(),
                    (false, 1) => "one worker".to_owned(),
                    (false, n) => format!("{n} workers, on average,"),
                },
                span(self.left_out),
                counted(self.times, "outage"),
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
            about: about(upstream, peer),
            at: None,
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
        if self.counted > 0 || self.late < 10 {
            return None;
        }
        Some(Finding {
            id: "failures-never-counted",
            about: about(upstream, peer),
            at: None,
            summary: format!(
                "{} of {upstream} at {peer} came after nginx had begun to pass on the answer: the balancer counts none of \
                 these, so it goes on choosing {peer}",
                counted(self.late, "failure")
            ),
            remedy: format!(
                "max_fails and proxy_next_upstream do nothing for them; look at {peer}, or have something else watch it"
            ),
            attempts: self.late,
            evidence: vec![
                fact(None, "nginx", format!("{} failures, 0 counted", self.late))
                    .text("upstream", upstream)
                    .text("peer", peer.to_string())
                    .count("failures", self.late),
            ],
        })
    }
}

#[cfg(test)]
mod tests;
