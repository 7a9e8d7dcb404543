//! The attempts of one trace that may be those of the request being read of in an access log: which of them, in which
//! order, were the request's own.
//!
//! An attempt that failed, or that the trace links to one, is held until its line is read or its time is long past. Of the
//! others only when and where is held: a line that tells of no failure may as well be theirs.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    rc::Rc,
};

use super::{
    format::{Access, Try},
    window::NEAR_S,
};
use crate::sink::schema::Attempt;

/// More attempts than this are not held at a time.
const CAPACITY: usize = 50_000;

/// More successes than this are not held at a time.
const SOUND_CAPACITY: usize = 200_000;

/// Of more chains than this that fit a line none is taken.
const MAX_ALIKE: usize = 1_000;

/// So many attempts are looked at for one line.
const MAX_LOOKS: usize = 20_000;

/// Between nginx's clock and the kernel's, in milliseconds: nginx reads the clock once in a turn of its loop.
const NEAR_MS: i64 = NEAR_S * 1000;

/// A request that does not say when it began may have begun so long before its end.
pub const LONG_MS: i64 = 300_000;

/// What tells chains apart that fit a line alike: cause and upstream of each attempt.
pub type Kind = Vec<(String, Option<String>)>;

/// The attempts of a line's tries, in their order; `None`: an answer that is not held.
pub type Chain = Vec<Option<Rc<Attempt>>>;

/// What fits a line.
#[derive(Debug)]
pub enum Fitting {
    /// These chains, each as the numbers of its attempts.
    Chains(Vec<Vec<Option<u64>>>),
    /// A failure fits, and so does an attempt that was none.
    Sound,
    /// More than are looked at.
    TooMany,
}

/// Attempts near the line being read.
#[derive(Debug, Default)]
pub struct Chains {
    held: BTreeMap<u64, Held>,
    next: u64,
    by_peer: HashMap<Option<String>, VecDeque<u64>>,
    by_path: HashMap<u64, VecDeque<u64>>,
    by_connection: HashMap<u64, VecDeque<u64>>,
    /// By the number in the trace of the attempt that was retried.
    followers: HashMap<u64, u64>,
    sound: HashMap<Option<String>, VecDeque<Sound>>,
    n_sound: usize,
    /// Successes that ended before this were let go, in milliseconds since the epoch.
    sound_since_ms: i64,
    hasher: RandomState,
    /// Attempts beyond the capacity went away until then.
    crowded_until_ms: Option<i64>,
    from_ms: Option<i64>,
    unclaimed: u64,
}

#[derive(Debug)]
struct Held {
    attempt: Rc<Attempt>,
    began_ms: i64,
    ended_ms: i64,
    /// The client's connection in nginx's line.
    connection: Option<u64>,
    path: Option<u64>,
    /// It is one of so many that a line fitted alike; 0: of several that are not.
    alike: usize,
}

/// A success: when it was, and whose.
#[derive(Clone, Copy, Debug)]
struct Sound {
    began_ms: i64,
    ended_ms: i64,
    worker: u32,
    path: Option<u64>,
}

/// A line, and what is known of its worker.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The line.
    pub access: &'a Access,
    /// The worker, where its pid is one of the trace's.
    pub worker: Option<u32>,
    /// The trace has all successes of the request's time.
    pub has_sound: bool,
}

impl Chains {
    /// Takes in an attempt of the trace, with when it began and ended in milliseconds since the epoch.
    pub fn push(&mut self, attempt: &Rc<Attempt>, began_ms: i64, ended_ms: i64) {
        let path = attempt.request.as_ref().and_then(|request| request.path.as_ref());
        let path = path.map(|path| self.hasher.hash_one(path.as_str()));
        if !is_held(attempt) {
            self.sound
                .entry(attempt.peer.clone())
                .or_default()
                .push_back(Sound {
                    began_ms,
                    ended_ms,
                    worker: attempt.worker,
                    path,
                });
            self.n_sound += 1;
            if self.n_sound > SOUND_CAPACITY {
                self.forget_sound();
            }
            return;
        }
        let number = self.next;
        self.next += 1;
        let connection = attempt.log.as_ref().and_then(|log| connection(&log.line));
        self.by_peer
            .entry(attempt.peer.clone())
            .or_default()
            .push_back(number);
        if let Some(path) = path {
            self.by_path.entry(path).or_default().push_back(number);
        }
        if let Some(connection) = connection {
            self.by_connection
                .entry(connection)
                .or_default()
                .push_back(number);
        }
        if let Some(retry) = attempt.retry {
            self.followers.insert(retry.of, number);
        }
        self.held.insert(
            number,
            Held {
                attempt: Rc::clone(attempt),
                began_ms,
                ended_ms,
                connection,
                path,
                alike: 1,
            },
        );
        if self.held.len() > CAPACITY
            && let Some(oldest) = self.held.keys().next().copied()
            && let Some(held) = self.remove(oldest)
        {
            self.crowded_until_ms = self.crowded_until_ms.max(Some(held.ended_ms));
            self.count(&held);
        }
    }

    /// Half of the successes go, the older ones.
    fn forget_sound(&mut self) {
        let mut ends: Vec<i64> = self
            .sound
            .values()
            .flatten()
            .map(|sound| sound.ended_ms)
            .collect();
        let middle = ends.len() / 2;
        let (_, median, _) = ends.select_nth_unstable(middle);
        let since = *median;
        self.sound_since_ms = self.sound_since_ms.max(since);
        self.forget_sound_before(since);
    }

    fn forget_sound_before(&mut self, since_ms: i64) {
        self.sound.retain(|_, all| {
            while all.front().is_some_and(|sound| sound.ended_ms <= since_ms) {
                all.pop_front();
            }
            !all.is_empty()
        });
        self.n_sound = self.sound.values().map(VecDeque::len).sum();
    }

    /// How many it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// It holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// From this moment on the log was read.
    pub fn begin(&mut self, at_ms: i64) {
        self.from_ms = Some(self.from_ms.map_or(at_ms, |from| from.min(at_ms)));
    }

    /// Lets those go that ended before.
    pub fn forget_before(&mut self, at_ms: i64) {
        while let Some((number, held)) = self.held.first_key_value()
            && held.ended_ms < at_ms
        {
            let number = *number;
            if let Some(held) = self.remove(number) {
                self.count(&held);
            }
        }
        if self.sound_since_ms + LONG_MS / 10 < at_ms {
            self.sound_since_ms = at_ms;
            self.forget_sound_before(at_ms);
        }
    }

    /// The log ended at this moment: what is left has no line in it.
    pub fn end(&mut self, at_ms: i64) {
        let held = std::mem::take(&mut self.held);
        for held in held.values().filter(|held| held.ended_ms <= at_ms) {
            self.count(held);
        }
        *self = Self {
            unclaimed: self.unclaimed,
            from_ms: self.from_ms,
            ..Self::default()
        };
    }

    /// Failures of requests that lie within the time of the log, and that no line was found to be of.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    fn count(&mut self, held: &Held) {
        let is_missing = held.attempt.is_failure()
            && !is_of_stream(&held.attempt)
            && held.alike > 0
            && self.from_ms.is_some_and(|from| held.ended_ms >= from);
        self.unclaimed += u64::from(is_missing);
    }

    fn remove(&mut self, number: u64) -> Option<Held> {
        let held = self.held.remove(&number)?;
        let without = |numbers: Option<&mut VecDeque<u64>>| -> bool {
            let Some(numbers) = numbers else {
                return false;
            };
            if let Ok(at) = numbers.binary_search(&number) {
                numbers.remove(at);
            }
            numbers.is_empty()
        };
        if without(self.by_peer.get_mut(&held.attempt.peer)) {
            self.by_peer.remove(&held.attempt.peer);
        }
        if let Some(path) = held.path
            && without(self.by_path.get_mut(&path))
        {
            self.by_path.remove(&path);
        }
        if let Some(connection) = held.connection
            && without(self.by_connection.get_mut(&connection))
        {
            self.by_connection.remove(&connection);
        }
        if let Some(retry) = held.attempt.retry {
            self.followers.remove(&retry.of);
        }
        Some(held)
    }

    /// Attempts of this moment were let go for want of room.
    #[must_use]
    pub fn was_crowded(&self, access: &Access) -> bool {
        let began = access.began_ms().unwrap_or(access.ended_ms) - NEAR_MS;
        self.crowded_until_ms.is_some_and(|until| began <= until)
    }

    /// The chains that fit a line.
    #[must_use]
    pub fn fitting(&self, asked: &Asked<'_>) -> Fitting {
        let access = asked.access;
        let mut search = Search {
            chains: self,
            asked,
            path: access
                .path
                .as_ref()
                .map(|path| self.hasher.hash_one(path.as_str())),
            found: Vec::new(),
            looks: MAX_LOOKS,
        };
        let is_full = match &access.tries {
            // A line that names no peer: where nginx came to none, or the format does not tell.
            Some(tries) if tries.is_empty() => search.without_peer(),
            None => search.untold(),
            Some(tries) => search.along(tries),
        };
        if is_full.is_none() || search.found.len() > MAX_ALIKE {
            return Fitting::TooMany;
        }
        let found = std::mem::take(&mut search.found);
        // Where the line tells of no failure at all, an attempt that was none may be its own.
        let is_told = access.has_failed_try() || access.is_error();
        if !is_told && !found.is_empty() && !self.is_sure(asked, search.path, &found) {
            return Fitting::Sound;
        }
        Fitting::Chains(found)
    }

    /// Whether no success fits as well as a failure that the line does not tell of.
    fn is_sure(&self, asked: &Asked<'_>, path: Option<u64>, found: &[Vec<Option<u64>>]) -> bool {
        let access = asked.access;
        if found.iter().all(|chain| self.is_of_connection(access, chain)) {
            return true;
        }
        let (Some(began), true) = (access.began_ms(), asked.has_sound) else {
            return false;
        };
        if began - NEAR_MS <= self.sound_since_ms {
            return false;
        }
        let (_, ended) = span(access);
        let may_be = |sound: &Sound| {
            sound.ended_ms <= ended
                && sound.began_ms >= began - NEAR_MS
                && asked.worker.is_none_or(|worker| worker == sound.worker)
                && (sound.path.is_none() || path.is_none() || access.is_rewritten || sound.path == path)
        };
        let peers = access.tries.iter().flatten().map(|one| Some(one.addr.clone()));
        let mut sound = peers.filter_map(|peer| self.sound.get(&peer)).flatten();
        !sound.any(may_be)
    }

    /// What tells a chain apart from others that fit alike.
    #[must_use]
    pub fn kind(&self, chain: &[Option<u64>]) -> Kind {
        chain
            .iter()
            .map(|number| match number.and_then(|number| self.held.get(&number)) {
                Some(held) => {
                    let cause = held
                        .attempt
                        .cause
                        .as_ref()
                        .map(|cause| cause.id.clone().into_owned());
                    let cause = cause.unwrap_or_else(|| held.attempt.outcome.clone().into_owned());
                    (cause, held.attempt.upstream.clone())
                }
                None => ("ok".to_owned(), None),
            })
            .collect()
    }

    /// Whether nginx's own lines about all of them name the client's connection that the line names.
    #[must_use]
    pub fn is_of_connection(&self, access: &Access, chain: &[Option<u64>]) -> bool {
        chain.iter().flatten().all(|number| {
            self.held
                .get(number)
                .is_some_and(|held| held.connection.is_some() && held.connection == access.connection)
        })
    }

    /// Takes a chain out, with of how many alike it is one.
    pub fn take(&mut self, chain: &[Option<u64>]) -> (Chain, usize) {
        let mut alike = 1;
        let mut take = |number: u64| {
            let held = self.remove(number)?;
            alike = alike.max(held.alike);
            Some(held.attempt)
        };
        let chain = chain.iter().map(|number| take((*number)?)).collect();
        (chain, alike)
    }

    /// A line fits these as well as others, so many alike; 0: some are not. Whose they are is open, for other lines too.
    pub fn mark(&mut self, chain: &[Option<u64>], alike: usize) {
        for number in chain.iter().flatten() {
            if let Some(held) = self.held.get_mut(number) {
                held.alike = match alike {
                    0 => 0,
                    _ => held.alike.max(alike),
                };
            }
        }
    }
}

/// Whether an attempt is held in full: it failed, or belongs to one that did, or its backend answered with an error.
fn is_held(attempt: &Attempt) -> bool {
    attempt.outcome != "ok"
        || attempt.cause.is_some()
        || attempt.nginx_says.is_some()
        || attempt.retry.is_some()
        || answered(attempt).is_some_and(|status| status >= 500)
}

/// Whether it is a session of `stream`, of which no access log of `http` tells: nginx's line about it has no request.
fn is_of_stream(attempt: &Attempt) -> bool {
    let has_request = |line: &str| line.contains(", request: \"") || line.contains(", request_line: \"");
    attempt.via.as_deref() == Some("stream")
        || attempt.log.as_ref().is_some_and(|log| !has_request(&log.line))
}

/// The status of the upstream's answer.
#[must_use]
pub fn answered(attempt: &Attempt) -> Option<u16> {
    attempt.request.as_ref()?.status
}

/// Between which moments the attempts of a request lie.
fn span(access: &Access) -> (i64, i64) {
    let began = access.began_ms().unwrap_or(access.ended_ms - LONG_MS);
    (began - NEAR_MS, access.ended_ms + access.within_ms + NEAR_MS)
}

/// The client's connection in a line of the error log: `… 811#811: *45 connect() …`.
fn connection(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(": *")?;
    rest.split(' ').next()?.parse().ok()
}

/// What attempts are looked up by.
#[derive(Clone, Copy, Debug)]
enum By {
    Path,
    Connection,
    Peer,
}

/// A search for the chains of one line; its steps yield `None` where there is more than is looked at.
struct Search<'a> {
    chains: &'a Chains,
    asked: &'a Asked<'a>,
    path: Option<u64>,
    found: Vec<Vec<Option<u64>>>,
    looks: usize,
}

impl Search<'_> {
    /// Chains along the tries of the line; those whose path is the line's are better than others of its connection, and these
    /// than those of which neither is known.
    fn along(&mut self, tries: &[Try]) -> Option<()> {
        for by in [By::Path, By::Connection, By::Peer] {
            self.step(tries, &mut Vec::with_capacity(tries.len()), by)?;
            if !self.found.is_empty() {
                break;
            }
        }
        Some(())
    }

    fn step(&mut self, tries: &[Try], chain: &mut Vec<Option<u64>>, by: By) -> Option<()> {
        if self.found.len() > MAX_ALIKE {
            return None;
        }
        let Some(one) = tries.get(chain.len()) else {
            self.end(chain);
            return Some(());
        };
        let before = chain
            .last()
            .copied()
            .flatten()
            .and_then(|number| self.chains.held.get(&number));
        let follower = before.and_then(|before| self.chains.followers.get(&before.attempt.number).copied());
        let candidates = match follower {
            Some(follower) => vec![follower],
            None => self.candidates(Some(&one.addr), by)?,
        };
        let earliest = chain
            .iter()
            .flatten()
            .filter_map(|number| self.chains.held.get(number))
            .map(|held| held.began_ms)
            .max();
        let worker = before.map(|before| before.attempt.worker);
        for number in candidates {
            let Some(held) = self.chains.held.get(&number) else {
                continue;
            };
            // What it retried must stand before it.
            let is_linked = follower.is_some() || held.attempt.retry.is_none();
            if is_linked
                && earliest.is_none_or(|earliest| held.began_ms >= earliest)
                && worker.is_none_or(|worker| worker == held.attempt.worker)
                && !chain.contains(&Some(number))
                && self.is_of_request(held)
                && is_of_try(&held.attempt, one)
            {
                chain.push(Some(number));
                self.step(tries, chain, by)?;
                chain.pop();
            }
        }
        // An answer that is no error is not held, unless the trace links it.
        let may_be_sound = one.has_status && one.status.is_some_and(|status| status < 500);
        if may_be_sound && follower.is_none() {
            chain.push(None);
            self.step(tries, chain, by)?;
            chain.pop();
        }
        Some(())
    }

    /// Keeps a chain that is whole: nothing goes before it or comes after it.
    fn end(&mut self, chain: &[Option<u64>]) {
        let has_more = chain
            .last()
            .copied()
            .flatten()
            .and_then(|last| self.chains.held.get(&last))
            .is_some_and(|last| self.chains.followers.contains_key(&last.attempt.number));
        if !has_more && chain.iter().any(Option::is_some) {
            self.found.push(chain.to_vec());
        }
    }

    /// Attempts of a request that came to no peer: a name without address, no socket, no source address.
    fn without_peer(&mut self) -> Option<()> {
        if !self.asked.access.is_error() {
            return Some(());
        }
        for number in self.of_request()? {
            let Some(held) = self.chains.held.get(&number) else {
                continue;
            };
            let says = held.attempt.nginx_says.as_deref().unwrap_or_default();
            let is_without = matches!(held.attempt.outcome.as_ref(), "unresolved" | "exhausted")
                || ["bind(", "socket(", "no resolver", "invalid host"]
                    .iter()
                    .any(|begin| says.starts_with(begin));
            if is_without
                && held.attempt.retry.is_none()
                && !self.chains.followers.contains_key(&held.attempt.number)
                && self.is_of_request(held)
            {
                self.found.push(vec![Some(number)]);
            }
        }
        Some(())
    }

    /// Chains of a request of which the format does not tell where it went.
    fn untold(&mut self) -> Option<()> {
        let access = self.asked.access;
        if !access.is_error() || (self.path.is_none() && access.connection.is_none()) {
            return Some(());
        }
        for number in self.of_request()? {
            let Some(first) = self.chains.held.get(&number) else {
                continue;
            };
            if first.attempt.retry.is_some() {
                continue;
            }
            let mut chain = vec![Some(number)];
            let mut last = first;
            let mut is_its = self.is_of_request(first);
            while let Some(next) = self.chains.followers.get(&last.attempt.number).copied()
                && let Some(held) = self.chains.held.get(&next)
                && !chain.contains(&Some(next))
            {
                is_its &= self.is_of_request(held);
                chain.push(Some(next));
                last = held;
            }
            let told = Try {
                status: access.status,
                has_status: true,
                ..Try::default()
            };
            let has_left = access.status == Some(499);
            if is_its
                && has_left == (last.attempt.outcome == "cancelled")
                && has_status_of(&last.attempt, &told)
            {
                self.found.push(chain);
            }
        }
        Some(())
    }

    /// Held attempts of the line's path, or else of its connection.
    fn of_request(&mut self) -> Option<Vec<u64>> {
        let of_path = self.candidates(None, By::Path)?;
        match of_path.is_empty() {
            true => self.candidates(None, By::Connection),
            false => Some(of_path),
        }
    }

    /// Held attempts at a peer that may be the request's, near its time.
    fn candidates(&mut self, addr: Option<&str>, by: By) -> Option<Vec<u64>> {
        let access = self.asked.access;
        let chains = self.chains;
        let mut queues: Vec<&VecDeque<u64>> = Vec::new();
        match by {
            By::Path => queues.extend(self.path.and_then(|path| chains.by_path.get(&path))),
            By::Connection => {
                queues.extend(
                    access
                        .connection
                        .and_then(|number| chains.by_connection.get(&number)),
                );
            }
            By::Peer => {
                queues.extend(addr.and_then(|addr| chains.by_peer.get(&Some(addr.to_owned()))));
                queues.extend(chains.by_peer.get(&None));
            }
        }
        let (began, ended) = span(access);
        let mut found = Vec::new();
        for numbers in queues {
            // Written as they end, they are in the order of time but for some seconds.
            let is_old = |number: &u64| {
                chains
                    .held
                    .get(number)
                    .is_none_or(|held| held.ended_ms < began - 10 * NEAR_MS)
            };
            for number in numbers.iter().skip(numbers.partition_point(is_old)) {
                self.looks = self.looks.checked_sub(1)?;
                let Some(held) = chains.held.get(number) else {
                    continue;
                };
                if held.ended_ms > ended + 10 * NEAR_MS {
                    break;
                }
                if addr.is_none_or(|addr| is_at(&held.attempt, addr)) {
                    found.push(*number);
                }
                if found.len() > MAX_ALIKE {
                    return None;
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Some(found)
    }

    /// Whether nothing that is known of both speaks against it.
    fn is_of_request(&self, held: &Held) -> bool {
        let access = self.asked.access;
        let attempt = &held.attempt;
        let (began, ended) = span(access);
        if held.began_ms < began || held.ended_ms > ended || is_of_stream(attempt) {
            return false;
        }
        if self.asked.worker.is_some_and(|worker| worker != attempt.worker) {
            return false;
        }
        if let (Some(its), Some(known)) = (access.connection, held.connection)
            && its != known
        {
            return false;
        }
        // A subrequest is no try of the request itself.
        let log = attempt.log.as_ref();
        if log.is_some_and(|log| log.line.contains(", subrequest: \"")) {
            return false;
        }
        let Some(request) = &attempt.request else {
            return true;
        };
        let differs = |its: Option<&String>, known: Option<&String>| {
            its.zip(known).is_some_and(|(its, known)| its != known)
        };
        // What nginx sent is not what the client asked for; only nginx's own line tells that.
        if log.is_some()
            && ((!access.is_rewritten && differs(access.path.as_ref(), request.path.as_ref()))
                || differs(access.method.as_ref(), request.method.as_ref())
                || differs(access.client.as_ref(), request.client.as_ref()))
        {
            return false;
        }
        true
    }
}

/// Whether an attempt was at this peer, or where none could be tried, of the upstream that stands in its place.
fn is_at(attempt: &Attempt, addr: &str) -> bool {
    match &attempt.peer {
        Some(peer) => peer == addr,
        None => {
            let mut names = attempt.upstreams.iter().chain(&attempt.upstream);
            let is_named = || {
                attempt
                    .log
                    .as_ref()
                    .and_then(|log| log.line.split_once("upstream: \""))
                    .and_then(|(_, named)| named.split_once("://"))
                    .is_some_and(|(_, named)| {
                        named
                            .strip_prefix(addr)
                            .is_some_and(|rest| rest.starts_with(['/', '"', ':']))
                    })
            };
            names.any(|name| name == addr) || is_named()
        }
    }
}

fn is_of_try(attempt: &Attempt, one: &Try) -> bool {
    // nginx goes on to another peer only after a failure, or an answer it was told to take for one.
    if one.is_retried && attempt.outcome == "ok" && answered(attempt).is_some_and(|status| status < 400) {
        return false;
    }
    has_status_of(attempt, one)
}

/// Whether nginx may have noted this status for the attempt.
fn has_status_of(attempt: &Attempt, one: &Try) -> bool {
    if !one.has_status {
        return true;
    }
    let answered = answered(attempt);
    let outcome = attempt.outcome.as_ref();
    let Some(status) = one.status else {
        // nginx ended it without a result.
        return outcome != "ok" || answered.is_none();
    };
    if answered == Some(status) {
        return true;
    }
    let is_answering = attempt.phase == "reading" && answered.is_none();
    match outcome {
        "ok" => answered.is_none(),
        "timed-out" => is_answering || matches!(status, 502 | 504),
        "cancelled" => true,
        "exhausted" | "denied" | "unreachable" | "invalid" | "missing" => {
            is_answering || matches!(status, 500 | 502)
        }
        _ => is_answering || status == 502,
    }
}
