//! Traces read beside a log: each only as far as the line being read needs it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::{Path, PathBuf},
};

use jiff::{
    Timestamp, civil,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

use super::{
    WhyNot,
    window::{Taken, Window},
};
use crate::{
    engine::message::Said,
    event::LogLine,
    lines::read::Unreadable,
    sink::{
        read::TraceReader,
        schema::{Attempt, Line, Session},
    },
};

/// An attempt is written when its cause stands: later than its line, by at most as many seconds.
const AHEAD_S: i64 = 10;

/// Lines of several workers, and lines of one second, are out of order by less than this.
const BEHIND_S: i64 = 10;

/// Failures remembered for the attempts that retry them.
const REMEMBERED: usize = 10_000;

/// So many failures of a trace are read to learn the log's time zone from the lines they hold.
const LEARN_FROM: usize = 1_000;

/// A log whose time goes back so often is none of one nginx.
const MAX_RETURNS: u32 = 16;

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
}

impl Traces {
    /// Opens the traces; the files of one trace that was rotated belong together. `zone` is the log's, where the user
    /// says it; otherwise it is learned from the lines in the traces.
    pub fn open(files: &[PathBuf], zone: Option<TimeZone>) -> Result<Self, Unreadable> {
        let mut parts: BTreeMap<(String, String), Vec<(u32, PathBuf)>> = BTreeMap::new();
        let mut streams = Vec::new();
        for file in files {
            let mut reader = TraceReader::open(file)?;
            let Some(Line::Session(session)) = reader.next_record()? else {
                continue;
            };
            if file == Path::new("-") {
                let mut stream = Stream::new(vec![file.clone()]);
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
            streams.push(Stream::new(files.into_iter().map(|(_, file)| file).collect()));
        }
        let mut traces = Self {
            streams,
            zone: LogZone {
                given: zone,
                system: TimeZone::system(),
                learned: None,
            },
            at: None,
            returns: 0,
        };
        traces.learn_zone()?;
        Ok(traces)
    }

    fn learn_zone(&mut self) -> Result<(), Unreadable> {
        for stream in &mut self.streams {
            while self.zone.learned.is_none()
                && stream.window.len() < LEARN_FROM
                && stream.read_one(&mut self.zone)?
            {}
        }
        Ok(())
    }

    /// Goes to a line of this local time; the seconds since the epoch it was written at, `None`: it does not exist.
    pub fn go_to(&mut self, local: civil::DateTime) -> Result<Option<i64>, Unreadable> {
        let Some(mut at) = self.zone.second_of(local, self.at) else {
            return Ok(None);
        };
        if self.at.is_some_and(|before| at < before - BEHIND_S) {
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
        for stream in &mut self.streams {
            stream.window.forget_before(at - BEHIND_S);
        }
        self.at = Some(self.at.map_or(at, |before| before.max(at)));
        Ok(Some(at))
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
        Ok(())
    }

    /// A new log begins; its lines may be older than those of the one before.
    pub fn begin_log(&mut self) {
        self.returns = 0;
    }

    /// The attempt of a line written in this second since the epoch.
    pub fn take(&mut self, at: i64, log: &LogLine, said: &Said) -> Taken {
        let mut ambiguous = Taken::None;
        for stream in &mut self.streams {
            match stream.window.take(at, log, said) {
                Taken::None => {}
                Taken::Ambiguous(causes) => ambiguous = Taken::Ambiguous(causes),
                one @ Taken::One { .. } => return one,
            }
        }
        ambiguous
    }

    /// What the request had met before this attempt, where the trace tells.
    #[must_use]
    pub fn before(&self, attempt: &Attempt) -> Option<Before> {
        let retry = attempt.retry?;
        self.streams.iter().find_map(|stream| {
            let (peer, cause) = stream.remembered.get(&retry.of)?;
            Some(Before {
                n: retry.n,
                peer: peer.clone(),
                cause: cause.clone(),
            })
        })
    }

    /// Why no attempt is there for a line written in this second.
    #[must_use]
    pub fn why_none(&self, at: i64) -> WhyNot {
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
        if running.iter().any(|stream| stream.window.was_crowded(at)) {
            WhyNot::TooMany
        } else if running.iter().any(|stream| stream.lost_at(at)) {
            WhyNot::Lost
        } else if running.iter().all(|stream| stream.is_filtered) {
            WhyNot::Filtered
        } else {
            WhyNot::NoAttempt
        }
    }

    /// Failures that nginx says something about, that lie within the time of the log, and whose line was not in it.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.streams.iter().map(|stream| stream.window.unclaimed()).sum()
    }

    /// How many failures are held at this moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.streams.iter().map(|stream| stream.window.len()).sum()
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
    began: Option<i64>,
    /// The latest moment that was read of.
    newest: Option<i64>,
    is_over: bool,
    is_filtered: bool,
    /// When records were lost.
    lost: VecDeque<i64>,
    /// Peer and cause of the latest failures, by the attempt's number.
    remembered: HashMap<u64, (Option<String>, Option<String>)>,
    order: VecDeque<u64>,
    torn: Vec<String>,
}

impl Stream {
    fn new(files: Vec<PathBuf>) -> Self {
        Self {
            files,
            next: 0,
            reader: None,
            window: Window::default(),
            began: None,
            newest: None,
            is_over: false,
            is_filtered: false,
            lost: VecDeque::new(),
            remembered: HashMap::new(),
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
        *self = Self::new(std::mem::take(&mut self.files));
        Ok(())
    }

    fn begin(&mut self, session: &Session) {
        if self.began.is_none() {
            self.began = second_of(&session.started);
        }
        self.is_filtered = ["upstream", "peer"]
            .iter()
            .any(|name| session.options.contains_key(*name));
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
        let ended = end_of(&attempt);
        self.see(ended);
        let written = attempt.log.as_ref().and_then(|log| {
            let written = second_of(&log.time)?;
            zone.learn(&log.line, written);
            Some(written)
        });
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
        attempt.also = Vec::new();
        self.window.push(attempt, at);
    }

    fn ran_at(&self, at: i64) -> bool {
        self.began.is_some_and(|began| began <= at)
            && (!self.is_over || self.newest.is_some_and(|newest| at <= newest))
    }

    fn lost_at(&self, at: i64) -> bool {
        self.lost.iter().any(|lost| (lost - at).abs() <= AHEAD_S)
    }
}

fn second_of(time: &str) -> Option<i64> {
    Some(time.parse::<Timestamp>().ok()?.as_second())
}

fn end_of(attempt: &Attempt) -> Option<i64> {
    let began = attempt.time.parse::<Timestamp>().ok()?.as_microsecond();
    Some((began + i64::try_from(attempt.total_us).ok()?).div_euclid(1_000_000))
}

/// The time zone that the log is written in.
#[derive(Debug)]
struct LogZone {
    given: Option<TimeZone>,
    system: TimeZone,
    /// Its distance from UTC at the latest line that a trace holds, and when that was.
    learned: Option<(Offset, i64)>,
}

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
        if let Some(offset) = offset {
            self.learned = Some((offset, written));
        }
    }

    fn zone(&self) -> TimeZone {
        if let Some(given) = &self.given {
            return given.clone();
        }
        let Some((offset, at)) = self.learned else {
            return self.system.clone();
        };
        // The reader's own zone knows when summer time ends; a distance alone does not.
        match Timestamp::from_second(at) {
            Ok(at) if self.system.to_offset(at) == offset => self.system.clone(),
            Ok(_) | Err(_) => TimeZone::fixed(offset),
        }
    }

    /// The second since the epoch; of two, the one that comes after the line before.
    fn second_of(&self, local: civil::DateTime, before: Option<i64>) -> Option<i64> {
        let ambiguous = self.zone().to_ambiguous_timestamp(local);
        let second = |offset: Offset| Some(offset.to_timestamp(local).ok()?.as_second());
        match ambiguous.offset() {
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
        Timestamp::from_second(second).map_or_else(
            |_| second.to_string(),
            |at| at.to_zoned(self.zone()).strftime("%Y/%m/%d %H:%M:%S").to_string(),
        )
    }
}
