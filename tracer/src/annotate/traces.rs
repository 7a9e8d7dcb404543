//! Traces read beside a log: each only as far as the line being read needs it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::{Path, PathBuf},
    rc::Rc,
};

use jiff::{
    Timestamp, civil,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

use super::{
    WhyNot,
    chains::{Asked, Chain, Chains, Fitting, Kind as ChainKind, LONG_MS},
    format::Access,
    window::{Found, Kind, NEAR_S, Window},
};
use crate::{
    engine::message::Said,
    event::LogLine,
    lines::read::Unreadable,
    sink::{
        read::TraceReader,
        schema::{AccessLog, Attempt, Line, Session},
    },
};

/// An attempt is written when its cause stands: later than its line, by at most as many seconds.
const AHEAD_S: i64 = 10;

/// Lines of several workers are out of order by less than this.
const BEHIND_S: i64 = 30;

/// A line that lies farther behind than this is not late: another log begins, or a clock was set.
const RETURN_S: i64 = 600;

/// Workers remembered of a trace; of more, pids tell nothing.
const WORKERS: usize = 65_536;

/// Failures remembered for the attempts that retry them.
const REMEMBERED: usize = 10_000;

/// So many failures of a trace are read at first to learn the log's time zone from the lines they hold.
const LEARN_FROM: usize = 1_000;

/// A log whose time goes back so often is none of one nginx.
const MAX_RETURNS: u32 = 16;

/// What was found for a line.
#[derive(Debug)]
pub enum Taken {
    /// An attempt, and which trace has it.
    One(usize, Found),
    /// Several fit, and they have these causes.
    Ambiguous(Vec<String>),
    /// One may fit, but what else may have is not known.
    Doubtful(WhyNot),
    /// None fits.
    None,
}

/// What was found for a line of an access log.
#[derive(Debug)]
pub enum TakenChain {
    /// The attempts of its tries, one of so many chains alike.
    One(Chain, usize),
    /// Several fit, and these are their causes.
    Ambiguous(Vec<String>),
    /// Several fit and are alike, and the format does not tell which peers were tried.
    Alike,
    /// One may fit, but what else may have is not known.
    Doubtful(WhyNot),
    /// None fits.
    None,
}

/// What a request had met before an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Which try the attempt is, from 2.
    pub n: u32,
    /// The peer tried before.
    pub peer: Option<String>,
    /// Why that failed.
    pub cause: Option<String>,
}

/// All traces, and the time zone of the log.
pub struct Traces {
    streams: Vec<Stream>,
    zone: LogZone,
    /// The time of the line read last.
    at: Option<i64>,
    returns: u32,
    has_returned: bool,
    access_logs: Vec<AccessLog>,
}

impl Traces {
    /// Opens the traces; the files of one trace that was rotated belong together. `zone` is the log's, where the user
    /// says it; otherwise it is learned from the lines in the traces. `has_requests`: lines of access logs will be asked for.
    pub fn open(files: &[PathBuf], zone: Option<TimeZone>, has_requests: bool) -> Result<Self, Unreadable> {
        let mut parts: BTreeMap<(String, String), Vec<(u32, PathBuf)>> = BTreeMap::new();
        let mut streams = Vec::new();
        let mut access_logs: Vec<AccessLog> = Vec::new();
        for (number, file) in files.iter().enumerate() {
            if files[..number].contains(file) {
                return Err(Unreadable {
                    file: file.display().to_string(),
                    problem: "is given twice: each trace once".to_owned(),
                });
            }
            let mut reader = TraceReader::open(file)?;
            let Some(Line::Session(session)) = reader.next_record()? else {
                continue;
            };
            for log in &session.config.access_logs {
                if !access_logs.contains(log) {
                    access_logs.push(log.clone());
                }
            }
            if file == Path::new("-") {
                let mut stream = Stream::new(vec![file.clone()], has_requests);
                stream.next = 1;
                stream.begin(&session);
                stream.reader = Some(reader);
                streams.push(stream);
                continue;
            }
            let key = (session.started.clone(), session.host.clone());
            parts.entry(key).or_default().push((session.part, file.clone()));
        }
        for (_, mut files) in parts {
            files.sort();
            let files = files.into_iter().map(|(_, file)| file).collect();
            streams.push(Stream::new(files, has_requests));
        }
        let mut traces = Self {
            streams,
            zone: LogZone {
                given: zone,
                system: TimeZone::system(),
                learned: Vec::new(),
                is_mixed: false,
            },
            at: None,
            returns: 0,
            has_returned: false,
            access_logs,
        };
        traces.learn_zone()?;
        Ok(traces)
    }

    fn learn_zone(&mut self) -> Result<(), Unreadable> {
        for stream in &mut self.streams {
            while stream.window.len() < LEARN_FROM && stream.read_one(&mut self.zone)? {}
        }
        Ok(())
    }

    /// Goes to a line of this local time; the seconds since the epoch it was written at, `None`: it does not exist.
    pub fn go_to(&mut self, local: civil::DateTime) -> Result<Option<i64>, Unreadable> {
        let Some(mut at) = self.zone.second_of(local, self.at) else {
            return Ok(None);
        };
        if self.at.is_some_and(|before| at < before - RETURN_S) {
            self.go_back()?;
        }
        for index in 0..self.streams.len() {
            loop {
                // What is read may teach that summer time has begun.
                at = self.zone.second_of(local, self.at).unwrap_or(at);
                let stream = &mut self.streams[index];
                if stream.newest.is_some_and(|newest| newest > at + AHEAD_S)
                    || !stream.read_one(&mut self.zone)?
                {
                    break;
                }
            }
        }
        if let Some(zones) = self.zone.mixed() {
            return Err(Unreadable {
                file: "the trace".to_owned(),
                problem: format!(
                    "holds lines of logs in several time zones ({zones}): say with --zone which is this log's"
                ),
            });
        }
        self.at = Some(self.at.map_or(at, |before| before.max(at)));
        let latest = self.at.unwrap_or(at);
        for stream in &mut self.streams {
            stream.window.begin(at);
            stream.forget_behind(latest);
        }
        Ok(Some(at))
    }

    /// The access logs that nginx's configuration named when the traces were begun.
    #[must_use]
    pub fn access_logs(&self) -> &[AccessLog] {
        &self.access_logs
    }

    /// Goes to where a request ended.
    pub fn go_to_request(&mut self, access: &Access) -> Result<(), Unreadable> {
        let at = access.ended_ms.div_euclid(1000);
        if self.at.is_some_and(|before| at < before - RETURN_S) {
            self.go_back()?;
        }
        for stream in &mut self.streams {
            while stream.newest.is_none_or(|newest| newest <= at + AHEAD_S)
                && stream.read_one(&mut self.zone)?
            {}
        }
        let latest = self.at.map_or(at, |before| before.max(at));
        self.at = Some(latest);
        for stream in &mut self.streams {
            if let Some(chains) = &mut stream.chains {
                chains.begin(access.began_ms().unwrap_or(access.ended_ms));
            }
            stream.forget_behind(latest);
        }
        Ok(())
    }

    /// The attempts of a request. [`Self::go_to_request`] has been there.
    pub fn take_request(&mut self, access: &Access) -> TakenChain {
        let mut fitting: Vec<(usize, Vec<Option<u64>>)> = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            let Some(chains) = &stream.chains else {
                continue;
            };
            let ran = access.began_ms().zip(stream.began);
            let asked = Asked {
                access,
                worker: access.pid.filter(|pid| stream.workers.contains(pid)),
                has_sound: !stream.is_filtered
                    && stream.has_sound
                    && ran.is_some_and(|(began, since)| since * 1000 <= began),
            };
            match chains.fitting(&asked) {
                Fitting::Chains(found) => fitting.extend(found.into_iter().map(|chain| (index, chain))),
                Fitting::Sound => return TakenChain::None,
                Fitting::TooMany => return TakenChain::Doubtful(WhyNot::TooMany),
            }
        }
        let chains = |index: usize| self.streams.get(index).and_then(|stream| stream.chains.as_ref());
        let is_sure = |(index, chain): &(usize, Vec<Option<u64>>)| {
            chains(*index).is_some_and(|chains| chains.is_of_connection(access, chain))
        };
        // What is missing might fit as well as what is there.
        if !(fitting.len() == 1 && fitting.iter().all(is_sure))
            && let Some(why_not) = self.doubt_request(access)
        {
            return TakenChain::Doubtful(why_not);
        }
        let kinds: BTreeSet<ChainKind> = fitting
            .iter()
            .filter_map(|(index, chain)| Some(chains(*index)?.kind(chain)))
            .collect();
        // A line that does not tell where it went needs a request that is alone.
        let is_open = fitting.len() > 1 && (kinds.len() > 1 || access.tries.is_none());
        if fitting.len() > 1 {
            let alike = if is_open { 0 } else { fitting.len() };
            for (index, chain) in &fitting {
                if let Some(chains) = self
                    .streams
                    .get_mut(*index)
                    .and_then(|stream| stream.chains.as_mut())
                {
                    chains.mark(chain, alike);
                }
            }
        }
        if is_open && kinds.len() == 1 {
            return TakenChain::Alike;
        }
        if is_open {
            let shown = |kind: ChainKind| {
                let causes: Vec<String> = kind.into_iter().map(|(cause, _)| cause).collect();
                causes.join(" then ")
            };
            return TakenChain::Ambiguous(kinds.into_iter().map(shown).collect());
        }
        let Some((index, chain)) = fitting.first() else {
            return TakenChain::None;
        };
        match self
            .streams
            .get_mut(*index)
            .and_then(|stream| stream.chains.as_mut())
        {
            Some(chains) => {
                let (chain, alike) = chains.take(chain);
                TakenChain::One(chain, alike)
            }
            None => TakenChain::None,
        }
    }

    /// Why what the traces hold of the time of a request may not be all.
    fn doubt_request(&self, access: &Access) -> Option<WhyNot> {
        let ended = access.ended_ms.div_euclid(1000);
        let began = access.began_ms().map_or(ended, |began| began.div_euclid(1000));
        let mut running = self.streams.iter().filter(|stream| stream.ran_at(ended));
        running.find_map(|stream| {
            if stream
                .chains
                .as_ref()
                .is_some_and(|chains| chains.was_crowded(access))
            {
                Some(WhyNot::TooMany)
            } else if stream.lost_between(began, ended) {
                Some(WhyNot::Lost)
            } else {
                None
            }
        })
    }

    /// The log goes back in time: several logs one behind the other, or a clock that was set.
    fn go_back(&mut self) -> Result<(), Unreadable> {
        self.returns += 1;
        if self.returns > MAX_RETURNS {
            return Err(Unreadable {
                file: "the log".to_owned(),
                problem: "goes back in time again and again: annotate the logs of different hosts one by one"
                    .to_owned(),
            });
        }
        for stream in &mut self.streams {
            stream.restart()?;
        }
        self.at = None;
        self.has_returned = true;
        Ok(())
    }

    /// A new log begins; its lines may be older than those of the one before.
    pub fn begin_log(&mut self) {
        self.returns = 0;
    }

    /// The attempt of a line written in this second since the epoch.
    pub fn take(&mut self, at: i64, log: &LogLine, said: &Said) -> Taken {
        let same: Vec<(usize, u64)> = self.each(|stream| stream.window.same_line(log));
        if !same.is_empty() {
            return self.choose(&same);
        }
        // What is missing might fit as well as what is there.
        if let Some(why_not) = self.doubt(at) {
            return Taken::Doubtful(why_not);
        }
        let mut fitting = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            // A container's pids are not the host's: they tell attempts apart only where they are among them.
            let worker = stream.workers.contains(&log.pid.0).then_some(log.pid.0);
            let Some(numbers) = stream.window.fitting(at, log, said, worker) else {
                return Taken::Doubtful(WhyNot::TooMany);
            };
            fitting.extend(numbers.into_iter().map(|number| (index, number)));
        }
        self.choose(&fitting)
    }

    fn each(&self, of: impl Fn(&Stream) -> Vec<u64>) -> Vec<(usize, u64)> {
        let streams = self.streams.iter().enumerate();
        streams
            .flat_map(|(index, stream)| of(stream).into_iter().map(move |number| (index, number)))
            .collect()
    }

    /// One of those that fit alike, or none where they do not say the same.
    fn choose(&mut self, fitting: &[(usize, u64)]) -> Taken {
        let kinds: BTreeSet<Kind> = fitting
            .iter()
            .filter_map(|(index, number)| self.streams[*index].window.kind(*number))
            .collect();
        let alike = if kinds.len() == 1 { fitting.len() } else { 0 };
        if fitting.len() > 1 {
            // Which of them this line's is stays open for the others too.
            for (index, number) in fitting {
                self.streams[*index].window.mark(*number, alike);
            }
        }
        let found = fitting.first().filter(|_| alike > 0).and_then(|(index, number)| {
            let found = self.streams[*index].window.take(*number)?;
            Some(Taken::One(*index, found))
        });
        match found {
            Some(found) => found,
            None if fitting.is_empty() => Taken::None,
            None => Taken::Ambiguous(kinds.into_iter().map(|(cause, _)| cause).collect()),
        }
    }

    /// Why what a trace holds of that second may not be all.
    fn doubt(&self, at: i64) -> Option<WhyNot> {
        let mut running = self.streams.iter().filter(|stream| stream.ran_at(at));
        running.find_map(|stream| {
            if stream.window.was_crowded(at) {
                Some(WhyNot::TooMany)
            } else if stream.lost_between(at, at) {
                Some(WhyNot::Lost)
            } else {
                None
            }
        })
    }

    /// What the request had met before this attempt of that trace, where it tells.
    #[must_use]
    pub fn before(&self, index: usize, attempt: &Attempt) -> Option<Before> {
        let retry = attempt.retry?;
        let (peer, cause) = self.streams.get(index)?.remembered.get(&retry.of)?;
        Some(Before {
            n: retry.n,
            peer: peer.clone(),
            cause: cause.clone(),
        })
    }

    /// Why no attempt is there for a request that ended in this second.
    #[must_use]
    pub fn why_no_chain(&self, at: i64) -> WhyNot {
        self.why_nothing(at, LONG_MS / 1000)
    }

    /// Why no attempt is there for a line of an error log written in this second.
    #[must_use]
    pub fn why_none(&self, at: i64) -> WhyNot {
        self.why_nothing(at, BEHIND_S)
    }

    /// Why nothing is there, where what lies further `behind` is let go.
    fn why_nothing(&self, at: i64, behind: i64) -> WhyNot {
        let running: Vec<&Stream> = self.streams.iter().filter(|stream| stream.ran_at(at)).collect();
        if running.is_empty() {
            let began = self.streams.iter().filter_map(|stream| stream.began).min();
            if let Some(began) = began.filter(|began| at < *began) {
                return WhyNot::BeforeTraces(self.zone.shown(began));
            }
            let is_over = self
                .streams
                .iter()
                .all(|stream| stream.began.is_none_or(|began| began <= at));
            let ended = self.streams.iter().filter_map(|stream| stream.newest).max();
            return match ended.filter(|_| is_over) {
                Some(ended) => WhyNot::AfterTraces(self.zone.shown(ended)),
                None => WhyNot::BetweenTraces,
            };
        }
        if self.at.is_some_and(|latest| at < latest - behind + NEAR_S) {
            WhyNot::OutOfOrder
        } else if running.iter().all(|stream| stream.is_filtered) {
            WhyNot::Filtered
        } else {
            WhyNot::NoAttempt
        }
    }

    /// Failures that nginx says something about, that lie within the time of the log, and whose line was not in it; `None`
    /// where a log was gone back in. The last line has been read.
    pub fn unclaimed(&mut self) -> Option<u64> {
        let at = self.at.unwrap_or(i64::MIN);
        for stream in &mut self.streams {
            stream.window.end(at);
        }
        for chains in self
            .streams
            .iter_mut()
            .filter_map(|stream| stream.chains.as_mut())
        {
            chains.end(at.saturating_mul(1000).saturating_add(999));
        }
        let of_stream =
            |stream: &Stream| stream.window.unclaimed() + stream.chains.as_ref().map_or(0, Chains::unclaimed);
        let all = self.streams.iter().map(of_stream).sum();
        (!self.has_returned).then_some(all)
    }

    /// How many failures are held at this moment.
    #[must_use]
    pub fn held(&self) -> usize {
        let of_stream = |stream: &Stream| stream.window.len() + stream.chains.as_ref().map_or(0, Chains::len);
        self.streams.iter().map(of_stream).sum()
    }

    /// What is torn or incomplete, one sentence each.
    #[must_use]
    pub fn torn(&self) -> Vec<String> {
        self.streams
            .iter()
            .flat_map(|stream| stream.torn.iter().cloned())
            .collect()
    }
}

/// One trace: the files of one run of the tracer.
struct Stream {
    files: Vec<PathBuf>,
    next: usize,
    reader: Option<TraceReader>,
    window: Window,
    /// Where lines of access logs are asked for.
    chains: Option<Chains>,
    began: Option<i64>,
    /// The latest moment that was read of.
    newest: Option<i64>,
    is_over: bool,
    is_filtered: bool,
    /// It was written with all successes.
    has_sound: bool,
    /// When records were lost.
    lost: VecDeque<i64>,
    /// Peer and cause of the latest failures, by the attempt's number.
    remembered: HashMap<u64, (Option<String>, Option<String>)>,
    workers: BTreeSet<u32>,
    order: VecDeque<u64>,
    torn: Vec<String>,
}

impl Stream {
    fn new(files: Vec<PathBuf>, has_requests: bool) -> Self {
        Self {
            files,
            next: 0,
            reader: None,
            window: Window::default(),
            chains: has_requests.then(Chains::default),
            began: None,
            newest: None,
            is_over: false,
            is_filtered: false,
            has_sound: true,
            lost: VecDeque::new(),
            remembered: HashMap::new(),
            workers: BTreeSet::new(),
            order: VecDeque::new(),
            torn: Vec::new(),
        }
    }

    fn restart(&mut self) -> Result<(), Unreadable> {
        if self.files.iter().any(|file| file == Path::new("-")) {
            return Err(Unreadable {
                file: "stdin".to_owned(),
                problem:
                    "the log goes back in time, and stdin cannot be read twice: give the trace as a file"
                        .to_owned(),
            });
        }
        *self = Self::new(std::mem::take(&mut self.files), self.chains.is_some());
        Ok(())
    }

    fn begin(&mut self, session: &Session) {
        if self.began.is_none() {
            self.began = second_of(&session.started);
        }
        self.is_filtered = ["upstream", "peer"]
            .iter()
            .any(|name| session.options.contains_key(*name));
        self.has_sound = session.options.get("keep").is_none_or(|keep| keep == "all");
    }

    /// Reads one record; `false`: there is none.
    fn read_one(&mut self, zone: &mut LogZone) -> Result<bool, Unreadable> {
        let Some(record) = self.next_record()? else {
            return Ok(false);
        };
        match record {
            Line::Session(session) => self.begin(&session),
            Line::Attempt(attempt) => self.attempt(attempt, zone),
            Line::Event(event) => self.see(second_of(&event.time)),
            Line::Lost(lost) => {
                let at = second_of(&lost.time);
                self.see(at);
                self.lost.extend(at);
                if self.lost.len() > REMEMBERED {
                    self.lost.pop_front();
                }
            }
            Line::Summary(summary) => self.see(second_of(&summary.time)),
            Line::Finding(_) => {}
        }
        Ok(true)
    }

    fn next_record(&mut self) -> Result<Option<Line>, Unreadable> {
        loop {
            if let Some(reader) = &mut self.reader {
                if let Some(record) = reader.next_record()? {
                    return Ok(Some(record));
                }
                self.torn.extend(reader.torn().map(str::to_owned));
                self.reader = None;
            }
            let Some(file) = self.files.get(self.next) else {
                self.is_over = true;
                return Ok(None);
            };
            self.next += 1;
            self.reader = Some(TraceReader::open(file)?);
        }
    }

    fn see(&mut self, at: Option<i64>) {
        self.newest = self.newest.max(at);
    }

    fn attempt(&mut self, mut attempt: Box<Attempt>, zone: &mut LogZone) {
        let times = times_of(&attempt);
        let ended = times.map(|(_, ended)| ended.div_euclid(1000));
        self.see(ended);
        if self.workers.len() < WORKERS {
            self.workers.insert(attempt.worker);
        }
        let written = attempt.log.as_ref().and_then(|log| {
            let written = second_of(&log.time)?;
            zone.learn(&log.line, written);
            Some(written)
        });
        attempt.also = Vec::new();
        let attempt = Rc::new(*attempt);
        if let (Some(chains), Some((began, ended))) = (&mut self.chains, times) {
            chains.push(&attempt, began, ended);
        }
        // Whether nginx had something to say about it is all that counts here.
        if attempt.cause.is_none() && attempt.nginx_says.is_none() && written.is_none() {
            return;
        }
        let Some(at) = written.or(ended) else {
            return;
        };
        self.order.push_back(attempt.number);
        let cause = attempt.cause.as_ref().map(|cause| cause.id.clone().into_owned());
        self.remembered
            .insert(attempt.number, (attempt.peer.clone(), cause));
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        self.window.push(attempt, at);
    }

    fn ran_at(&self, at: i64) -> bool {
        self.began.is_some_and(|began| began <= at)
            && (!self.is_over || self.newest.is_some_and(|newest| at <= newest))
    }

    /// Whether records were lost about then.
    fn lost_between(&self, began: i64, ended: i64) -> bool {
        self.lost
            .iter()
            .any(|lost| (began - AHEAD_S..=ended + AHEAD_S).contains(lost))
    }

    /// Lets go what lies too far behind the latest line for another one to be of it.
    fn forget_behind(&mut self, latest: i64) {
        self.window.forget_before(latest - BEHIND_S);
        if let Some(chains) = &mut self.chains {
            chains.forget_before(latest * 1000 - LONG_MS);
        }
    }
}

fn second_of(time: &str) -> Option<i64> {
    Some(time.parse::<Timestamp>().ok()?.as_second())
}

/// When an attempt began and ended, in milliseconds since the epoch.
fn times_of(attempt: &Attempt) -> Option<(i64, i64)> {
    let began = attempt.time.parse::<Timestamp>().ok()?.as_microsecond();
    let ended = began.checked_add(i64::try_from(attempt.total_us).ok()?)?;
    Some((began.div_euclid(1000), ended.div_euclid(1000)))
}

/// The time zone that the log is written in.
#[derive(Debug)]
struct LogZone {
    given: Option<TimeZone>,
    system: TimeZone,
    /// Its distances from UTC, each with when a line showed it first, in the order of time.
    learned: Vec<(i64, Offset)>,
    /// Lines of several zones are in turns, which summer time alone does not do.
    is_mixed: bool,
}

/// Summer time begins and ends once a year.
const SEASON_S: i64 = 30 * 86_400;

impl LogZone {
    /// Learns from a line of a trace: its text has the local time, and when it was written is known.
    fn learn(&mut self, line: &str, written: i64) {
        if self.given.is_some() {
            return;
        }
        let local = line
            .split_at_checked(19)
            .and_then(|(stamp, _)| civil::DateTime::strptime("%Y/%m/%d %H:%M:%S", stamp).ok());
        let Some(local) = local.and_then(|local| Offset::UTC.to_timestamp(local).ok()) else {
            return;
        };
        let offset = i32::try_from(local.as_second() - written)
            .ok()
            .and_then(|seconds| Offset::from_seconds(seconds).ok());
        let Some(offset) = offset else {
            return;
        };
        // What was learned of that time already, where a trace is read again or a second one is.
        let place = self.learned.partition_point(|(since, _)| *since <= written);
        if place
            .checked_sub(1)
            .and_then(|before| self.learned.get(before))
            .is_some_and(|(_, known)| *known == offset)
        {
            return;
        }
        if let Some((since, known)) = self.learned.get_mut(place)
            && *known == offset
        {
            *since = written;
            return;
        }
        self.learned.insert(place, (written, offset));
        let turns = self
            .learned
            .windows(3)
            .filter(|three| three[2].0 - three[0].0 < SEASON_S);
        self.is_mixed = turns.count() > 0;
    }

    /// The zones of which there are lines in turns.
    fn mixed(&self) -> Option<String> {
        self.is_mixed.then_some(())?;
        let all: BTreeSet<i32> = self.learned.iter().map(|(_, offset)| offset.seconds()).collect();
        let shown = all
            .into_iter()
            .filter_map(|seconds| Offset::from_seconds(seconds).ok());
        Some(
            shown
                .map(|offset| format!("UTC{offset}"))
                .collect::<Vec<_>>()
                .join(", "),
        )
    }

    /// The zone with its rules, where they are known: the one given, or the reader's own where all that was learned is
    /// its.
    fn ruled(&self) -> Option<&TimeZone> {
        if let Some(given) = &self.given {
            return Some(given);
        }
        let is_its = |(since, offset): &(i64, Offset)| {
            Timestamp::from_second(*since).is_ok_and(|at| self.system.to_offset(at) == *offset)
        };
        self.learned.iter().all(is_its).then_some(&self.system)
    }

    /// The second since the epoch; of two, the one that comes after the line before.
    fn second_of(&self, local: civil::DateTime, before: Option<i64>) -> Option<i64> {
        let second = |offset: Offset| Some(offset.to_timestamp(local).ok()?.as_second());
        let Some(zone) = self.ruled() else {
            // A distance holds from its first line to the first of the next; where two fit, an hour comes twice.
            let fits = |index: usize| {
                let (since, offset) = self.learned[index];
                let at = second(offset)?;
                let is_begun = index == 0 || at >= since;
                let is_over = self.learned.get(index + 1).is_some_and(|(next, _)| at >= *next);
                (is_begun && !is_over).then_some(at)
            };
            let mut fitting = (0..self.learned.len()).filter_map(fits);
            let earliest = fitting.clone().next();
            let is_next = |at: &i64| before.is_none_or(|before| *at >= before - BEHIND_S);
            let latest = self.learned.last().and_then(|(_, offset)| second(*offset));
            return fitting.find(is_next).or(earliest).or(latest);
        };
        match zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => second(offset),
            AmbiguousOffset::Gap { .. } => None,
            AmbiguousOffset::Fold {
                before: early,
                after: late,
            } => {
                let early = second(early)?;
                if before.is_some_and(|before| early < before - BEHIND_S) {
                    second(late)
                } else {
                    Some(early)
                }
            }
        }
    }

    fn shown(&self, second: i64) -> String {
        let Ok(at) = Timestamp::from_second(second) else {
            return second.to_string();
        };
        let offset = self
            .learned
            .iter()
            .rev()
            .find(|(since, _)| *since <= second)
            .or(self.learned.first());
        let zone = match (self.ruled(), offset) {
            (None, Some((_, offset))) => TimeZone::fixed(*offset),
            (zone, _) => zone.cloned().unwrap_or(TimeZone::UTC),
        };
        at.to_zoned(zone).strftime("%Y/%m/%d %H:%M:%S").to_string()
    }
}
