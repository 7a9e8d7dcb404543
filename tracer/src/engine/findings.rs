//! Patterns over many attempts, said at the end of a trace. Few, and only what the numbers prove.

mod ends;
mod recurrence;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use self::{ends::Ends, recurrence::Recurrences};
use crate::{
    engine::{
        diagnose::fact,
        stats::by_name,
        table::Keyed,
        text::{counted, span},
    },
    event::{Ktime, Limits, Peer, Pid},
    model::{Attempt, Confidence, Evidence, FieldValue, Finding, Outcome, Verdict},
};

/// How many (upstream, peer) pairs are watched.
const PEERS: usize = 4096;

/// What is put behind an upstream's name where another instance of nginx has one of the same name.
fn of_instance(master: Pid) -> String {
    format!(" (nginx {master})")
}

/// How an upstream of a master is called: by its name, where that is one instance's alone.
pub fn shown(master: Pid, upstream: &str, is_ambiguous: bool) -> String {
    let instance = if is_ambiguous {
        of_instance(master)
    } else {
        String::new()
    };
    format!("{upstream}{instance}")
}

/// What a finding about one peer is about.
pub fn about(upstream: &str, peer: &Peer) -> String {
    format!("{upstream} at {peer}")
}

/// Which findings were said while the trace goes on, each once.
#[derive(Debug, Default)]
pub struct Said {
    looked_at: Ktime,
    /// Those of the last look.
    seen: BTreeSet<Key>,
    said: BTreeSet<Key>,
}

/// A finding, told from others while the trace goes on: by its instance's master, since what it is about may be called
/// otherwise once another instance has an upstream of the same name.
type Key = (&'static str, Pid, String);

impl Said {
    /// How often it is looked whether a finding stands.
    const EVERY: u64 = 60_000_000_000;
    /// A finding that rests on fewer attempts is said at the end only.
    const LEAST: u64 = 5;
    /// More than this are said at the end only.
    const MOST: usize = 256;

    /// It is time to look.
    pub fn is_due(&self, now: Ktime) -> bool {
        now.since(self.looked_at) >= Self::EVERY
    }

    /// The findings that are to be said now: those that stood a minute ago already, and were not said yet.
    pub fn news(&mut self, now: Ktime, findings: Vec<(Pid, Finding)>) -> Vec<Finding> {
        self.looked_at = now;
        let mut seen = BTreeSet::new();
        let mut news = Vec::new();
        for (master, finding) in findings {
            let key = (
                finding.id,
                master,
                finding.about.replace(&of_instance(master), ""),
            );
            if finding.attempts < Self::LEAST || self.said.contains(&key) || self.said.len() >= Self::MOST {
                continue;
            }
            if self.seen.contains(&key) {
                self.said.insert(key);
                news.push(Finding {
                    at: Some(now),
                    ..finding
                });
            } else {
                seen.insert(key);
            }
        }
        self.seen = seen;
        news
    }
}

/// What findings are made of.
#[derive(Debug)]
pub struct Watch {
    /// Per master, as another instance's upstream of the same name is another one.
    upstreams: BTreeMap<Pid, BTreeMap<String, BTreeMap<Peer, Tally>>>,
    n_peers: usize,
    /// How many masters have an upstream of a name.
    masters: BTreeMap<String, usize>,
    /// Recent failures by attempt number: the attempt they retried.
    chain: Keyed<u64, Option<u64>>,
    /// Successes that were written before the failure they retried, which waited for its cause: the upstream by that failure's
    /// number.
    early: Keyed<u64, Option<String>>,
    hidden: BTreeMap<String, u64>,
    n_hidden: u64,
    recurrences: Recurrences,
    ends: Ends,
}

/// An upstream of an instance of nginx.
struct Of<'a> {
    master: Pid,
    name: &'a str,
    /// How it is called.
    shown: String,
    peers: &'a BTreeMap<Peer, Tally>,
}

#[derive(Debug)]
struct Tally {
    /// A worker that tried it: its configuration says what applies to the peer.
    worker: Pid,
    attempts: u64,
    /// Successes on connections of their own, and on ones that had been used before.
    new: u64,
    reused: u64,
    /// Connections that stand although SYNs were lost, and how long the quickest and the slowest took.
    slowed: u64,
    slowed_min: u64,
    slowed_max: u64,
    failures: u64,
    /// Failures since nothing listened there, and where it listened instead.
    n_elsewhere: u64,
    elsewhere: Option<Peer>,
    /// Answers whose status was read, and how many had which status of 500 and more.
    statuses: u64,
    errors: BTreeMap<u16, u64>,
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
            masters: BTreeMap::new(),
            chain: Keyed::new(capacity, 300_000_000_000),
            early: Keyed::new(capacity.min(4096), 5_000_000_000),
            hidden: BTreeMap::new(),
            n_hidden: 0,
            recurrences: Recurrences::default(),
            ends: Ends::default(),
        }
    }

    /// Takes in a finished attempt of a worker of `master`; `is_probe`: of a peer that nginx leaves out and tries once in a
    /// while.
    pub fn add(&mut self, now: Ktime, attempt: &Attempt, master: Pid, is_probe: bool) {
        let of = attempt.retry.map(|(of, _)| of);
        if attempt.outcome.is_failure() {
            self.chain.push(now, attempt.number, of);
            if let Some(upstream) = self.early.last(&attempt.number).cloned() {
                self.early.forget(&attempt.number);
                self.count_hidden(now, attempt.number, upstream.as_deref());
            }
        } else if let (Outcome::Ok, Some(of)) = (attempt.outcome, of) {
            self.count_hidden(now, of, attempt.upstream.as_deref());
        }
        // The balancer's own rhythm is no news.
        if !is_probe {
            self.recurrences.add(attempt, master);
        }
        self.ends.add(attempt, master);
        let (Some(name), Some(peer)) = (&attempt.upstream, &attempt.peer) else {
            return;
        };
        let is_full = self.n_peers >= PEERS;
        let names = match self.upstreams.entry(master) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return,
            Entry::Vacant(place) => place.insert(BTreeMap::new()),
        };
        let is_new = !names.contains_key(name);
        let Some(peers) = by_name(names, name, if is_full { 0 } else { PEERS }) else {
            return;
        };
        if is_new {
            *self.masters.entry(name.clone()).or_insert(0) += 1;
        }
        let tally = match peers.entry(peer.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) if !is_full => {
                self.n_peers += 1;
                place.insert(Tally::new(attempt.worker))
            }
            Entry::Vacant(_) => return,
        };
        tally.worker = attempt.worker;
        tally.attempts += 1;
        tally.failures += u64::from(attempt.outcome.is_failure());
        tally.add_elsewhere(attempt);
        if attempt.outcome == Outcome::Ok {
            *(if attempt.reused {
                &mut tally.reused
            } else {
                &mut tally.new
            }) += 1;
            tally.add_connect(attempt);
            tally.add_status(attempt);
        }
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
    fn count_hidden(&mut self, now: Ktime, of: u64, upstream: Option<&str>) {
        let mut next = Some(of);
        // A request cannot be retried more often than this.
        for _ in 0..1024 {
            let Some(number) = next else {
                break;
            };
            let Some(entry) = self.chain.last_mut(&number) else {
                self.early.push(now, number, upstream.map(str::to_owned));
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

    /// The patterns that stand; `limits` says what a worker's configuration holds for a peer.
    /// Each with the master of its instance; [`Pid`] 0: of all.
    pub fn findings(&self, limits: impl Fn(Pid, &Peer) -> Limits) -> Vec<(Pid, Finding)> {
        let mut findings = self.idle_timeouts();
        findings.extend(self.one_peer_or_family());
        findings.extend(self.one_of_several());
        findings.extend(
            self.hidden_failures()
                .into_iter()
                .map(|finding| (Pid(0), finding)),
        );
        findings.extend(
            self.recurrences
                .findings(|master, upstream| self.shown(master, upstream)),
        );
        findings.extend(
            self.ends
                .findings(|master, upstream| self.shown(master, upstream)),
        );
        findings.extend(self.never_kept(limits));
        findings.extend(self.slowed_connects());
        findings.extend(self.answered_with_errors());
        findings
    }

    /// How an upstream of a master is called.
    pub fn shown(&self, master: Pid, upstream: &str) -> String {
        let is_shared = self.masters.get(upstream).is_some_and(|masters| *masters > 1);
        shown(master, upstream, is_shared)
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.masters.values().sum::<usize>()
            + self.n_peers
            + self.chain.len()
            + self.early.len()
            + self.hidden.len()
            + self.recurrences.len()
            + self.ends.len()
    }

    /// All races of a peer at one idle time: that time is the backend's keep-alive timeout.
    fn idle_timeouts(&self) -> Vec<(Pid, Finding)> {
        let is_one_time = |tally: &Tally| {
            let mean = u64::try_from(tally.idle_sum / u128::from(tally.races.max(1))).unwrap_or(u64::MAX);
            tally.races >= 5 && (tally.idle_max - tally.idle_min).saturating_mul(10) < mean
        };
        self.of_peers(|of, peer, tally| {
            if !is_one_time(tally) {
                return None;
            }
            let upstream = &of.shown;
            let mean = u64::try_from(tally.idle_sum / u128::from(tally.races.max(1))).unwrap_or(u64::MAX);
            let (least, mean, most) = (
                span(tally.idle_min * 1000),
                span(mean.saturating_mul(1000)),
                span(tally.idle_max.saturating_mul(1000)),
            );
            Some(Finding {
                id: "keepalive-races-at-one-idle-time",
                about: about(upstream, peer),
                at: None,
                summary: format!(
                    "all {} of {upstream} at {peer} happened after about {mean} of idleness ({least} to {most}): that is \
                     the backend's keep-alive timeout",
                    counted(tally.races, "keepalive race")
                ),
                remedy: format!(
                    "set keepalive_timeout in upstream {} below {mean}, or raise the backend's keep-alive timeout \
                     above nginx's",
                    of.name
                ),
                attempts: tally.races,
                evidence: vec![
                    fact(None, "tcp", format!("idle time {least} to {most}, mean {mean}"))
                        .text("upstream", of.name)
                        .text("peer", peer.to_string())
                        .count("idle_min_us", tally.idle_min)
                        .count("idle_max_us", tally.idle_max),
                ],
            })
        })
    }

    /// What `of` finds of each peer.
    fn of_peers(&self, of: impl Fn(&Of<'_>, &Peer, &Tally) -> Option<Finding>) -> Vec<(Pid, Finding)> {
        self.upstreams()
            .flat_map(|upstream| {
                let found = upstream
                    .peers
                    .iter()
                    .filter_map(|(peer, tally)| of(&upstream, peer, tally));
                let found: Vec<_> = found.map(|finding| (upstream.master, finding)).collect();
                found
            })
            .collect()
    }

    fn upstreams(&self) -> impl Iterator<Item = Of<'_>> {
        self.upstreams.iter().flat_map(move |(master, names)| {
            names.iter().map(move |(name, peers)| Of {
                master: *master,
                name,
                shown: self.shown(*master, name),
                peers,
            })
        })
    }

    /// Peers of which nginx has several where there is one backend, as for `localhost`: where one of them is, nothing ever
    /// listened, and the listener found there instead is another one of them, which answers.
    fn one_of_several(&self) -> Vec<(Pid, Finding)> {
        self.of_peers(|of, peer, tally| {
            let listens = tally.elsewhere.as_ref()?;
            let answers = of.peers.get(listens).filter(|other| other.new + other.reused > 0)?;
            let is_always = tally.new + tally.reused == 0 && tally.n_elsewhere == tally.failures;
            if !is_always || listens == peer {
                return None;
            }
            let shown = &of.shown;
            Some(Finding {
                id: "one-backend-several-peers",
                about: about(shown, peer),
                at: None,
                summary: format!(
                    "nginx takes {shown} for several peers where there is one backend: nothing listens on {peer} ({}), it \
                     listens on {listens} ({} succeeded); what disables that one for a moment leaves no peer",
                    counted(tally.failures, "failure"),
                    counted(answers.new + answers.reused, "attempt"),
                ),
                remedy: format!(
                    "name {listens} alone in nginx's configuration (a name like localhost is all of its addresses), or let \
                     the backend listen on {peer} too"
                ),
                attempts: tally.failures,
                evidence: vec![
                    fact(None, "listener", format!("{listens} listens, {peer} does not"))
                        .text("upstream", of.name)
                        .text("peer", peer.to_string())
                        .text("address", listens.to_string())
                        .count("failures", tally.failures),
                ],
            })
        })
    }

    /// All failures of an upstream on one peer, or on one address family, while the others had none.
    fn one_peer_or_family(&self) -> Vec<(Pid, Finding)> {
        self.upstreams()
            .filter_map(|of| {
                let peers: Vec<_> = of.peers.iter().collect();
                Some((of.master, one_sided(&of.shown, &peers)?))
            })
            .collect()
    }

    /// `keepalive` in an upstream whose connections nothing ever keeps, since nginx asks for each to be closed.
    fn never_kept(&self, limits: impl Fn(Pid, &Peer) -> Limits) -> Vec<(Pid, Finding)> {
        let found = |of: Of<'_>| {
            let (upstream, peers) = (&of.shown, of.peers);
            let new: u64 = peers.values().map(|tally| tally.new).sum();
            if new < 20 || peers.values().any(|tally| tally.reused > 0) {
                return None;
            }
            let mut keepalive = None;
            for (peer, tally) in peers {
                let limits = limits(tally.worker, peer);
                if limits.asks_to_keep != Some(false) {
                    return None;
                }
                keepalive = Some(limits.keepalive.filter(|size| *size > 0)?);
            }
            let keepalive = keepalive?;
            let finding = Finding {
                id: "keepalive-never-used",
                about: upstream.clone(),
                at: None,
                summary: format!(
                    "upstream {upstream} has keepalive {keepalive}, yet {} were all on new connections: nginx asks the \
                     backend to close each one",
                    counted(new, "successful attempt")
                ),
                remedy: format!(
                    "where requests are passed to {}, set proxy_http_version 1.1 and proxy_set_header Connection \
                     \"\" (in the same place as its other proxy_set_header lines), or fastcgi_keep_conn on; uwsgi and \
                     scgi keep no connections",
                    of.name
                ),
                attempts: new,
                evidence: vec![
                    fact(
                        None,
                        "nginx",
                        format!("0 of {new} reused a connection; keepalive {keepalive}"),
                    )
                    .text("upstream", of.name)
                    .count("new_connections", new)
                    .count("keepalive", u64::from(keepalive)),
                ],
            };
            Some((of.master, finding))
        };
        self.upstreams().filter_map(found).collect()
    }

    /// Connections that took a second and more, since SYNs or their answers were lost.
    fn slowed_connects(&self) -> Vec<(Pid, Finding)> {
        self.of_peers(|of, peer, tally| {
            if tally.slowed < 5 {
                return None;
            }
            let upstream = &of.shown;
            let (least, most) = (
                span(tally.slowed_min * 1000),
                span(tally.slowed_max.saturating_mul(1000)),
            );
            Some(Finding {
                id: "connects-slowed-by-lost-syns",
                about: about(upstream, peer),
                at: None,
                summary: format!(
                    "{} to {peer} of {upstream} took {least} to {most}, since a SYN or its answer was lost and sent \
                     again ({} connections in all)",
                    counted(tally.slowed, "connection"),
                    tally.new
                ),
                remedy: format!(
                    "{}look for packet loss on the way to {peer}, and for a full accept queue there (ss -ltn, nstat \
                     TcpExtListenOverflows)",
                    match tally.failures {
                        0 => "nothing failed yet, but proxy_connect_timeout counts this time: ",
                        _ => "",
                    }
                ),
                attempts: tally.slowed,
                evidence: vec![
                    fact(
                        None,
                        "tcp",
                        format!("{} of {} connections", tally.slowed, tally.new),
                    )
                    .text("upstream", of.name)
                    .text("peer", peer.to_string())
                    .count("connect_min_us", tally.slowed_min)
                    .count("connect_max_us", tally.slowed_max),
                ],
            })
        })
    }

    /// Errors that are the backend's own answers, about which nginx logs nothing.
    fn answered_with_errors(&self) -> Vec<(Pid, Finding)> {
        self.of_peers(|of, peer, tally| {
            if tally.errors.is_empty() {
                return None;
            }
            let upstream = &of.shown;
            let errors: u64 = tally.errors.values().sum();
            let by_status: Vec<String> = tally
                .errors
                .iter()
                .map(|(status, n)| format!("{status}: {n}"))
                .collect();
            let by_status = by_status.join(", ");
            let evidence = fact(
                None,
                "http",
                format!("{errors} of {} answers whose status was read", tally.statuses),
            )
            .text("upstream", of.name)
            .text("peer", peer.to_string())
            .text("statuses", by_status.clone())
            .count("answers", tally.statuses);
            Some(Finding {
                id: "answered-with-error",
                about: about(upstream, peer),
                at: None,
                summary: format!(
                    "{peer} of {upstream} itself answered {} with an error ({}), about which nginx logs nothing",
                    counted(errors, "request"),
                    by_status
                ),
                remedy: "look into the backend's own log: the connection was sound. Behind a backend that is itself a \
                         proxy, its 502 and 504 are about the next one"
                    .to_owned(),
                attempts: errors,
                evidence: vec![evidence],
            })
        })
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
                    .text("upstream", upstream)
                    .count("failures", *n)
            })
            .collect();
        vec![Finding {
            id: "failures-hidden-by-retries",
            about: String::new(),
            at: None,
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

impl Tally {
    fn new(worker: Pid) -> Self {
        Self {
            worker,
            attempts: 0,
            new: 0,
            reused: 0,
            slowed: 0,
            slowed_min: 0,
            slowed_max: 0,
            failures: 0,
            n_elsewhere: 0,
            elsewhere: None,
            statuses: 0,
            errors: BTreeMap::new(),
            races: 0,
            idle_min: 0,
            idle_max: 0,
            idle_sum: 0,
        }
    }

    fn add_elsewhere(&mut self, attempt: &Attempt) {
        let is_elsewhere =
            |cause: &&Verdict| cause.id == "listener-elsewhere" && cause.confidence == Confidence::Confirmed;
        let Some(cause) = attempt.cause.as_ref().filter(is_elsewhere) else {
            return;
        };
        self.n_elsewhere += 1;
        let address = |fact: &Evidence| match fact.fields.get("address") {
            Some(FieldValue::Text(address)) => address.parse().ok(),
            _ => None,
        };
        self.elsewhere = cause.evidence.iter().find_map(address);
    }

    fn add_status(&mut self, attempt: &Attempt) {
        let Some(status) = attempt.status() else {
            return;
        };
        self.statuses += 1;
        if attempt.is_answered_with_error() {
            *self.errors.entry(status).or_insert(0) += 1;
        }
    }

    fn add_connect(&mut self, attempt: &Attempt) {
        let (Some(1..), Some(connect)) = (attempt.syn_retransmits, attempt.connect_us) else {
            return;
        };
        if attempt.reused {
            return;
        }
        self.slowed_min = if self.slowed == 0 {
            connect
        } else {
            self.slowed_min.min(connect)
        };
        self.slowed_max = self.slowed_max.max(connect);
        self.slowed += 1;
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
            about: upstream.to_owned(),
            at: None,
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
        about: upstream.to_owned(),
        at: None,
        summary: format!(
            "every failure of {upstream} is at {peer} ({n_failures}); {n_sound} attempts at its other peers had none"
        ),
        remedy: format!("look at {peer}, or take it out of {upstream} until it is cured"),
        attempts: n_failures,
        evidence,
    })
}

#[cfg(test)]
mod tests;
