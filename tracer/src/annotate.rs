//! nginx's own logs with the cause under each upstream line: the log and the traces are read side by side, in the memory of a
//! window.
//!
//! A line of the error log and an attempt belong together when the trace holds that very line; where it holds no lines, when worker,
//! peer, message and second agree and nothing else fits as well.
//! A line of an access log is a request with its tries: its chain of attempts is the only one whose peers, order, statuses and
//! time agree, and to whose request nothing speaks against.

pub mod chains;
pub mod format;
pub mod json;
pub mod text;
pub mod traces;
pub mod window;

use std::{collections::BTreeMap, rc::Rc};

use jiff::civil;

use self::{
    chains::{Chain, answered},
    format::{Access, Format},
    traces::{Before, Taken, TakenChain, Traces},
};
use crate::{
    engine::message::{Meaning, Said},
    event::LogLine,
    lines::read::Unreadable,
    nginx::error_log::{self, Context, Zone},
    sink::schema::Attempt,
    tally::Tally,
};

/// Numbers of lines named for each reason why lines stayed unexplained.
const MAX_NAMED: usize = 5;

/// What is known of a line about an upstream.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The attempt it ended.
    pub attempt: Option<Rc<Attempt>>,
    /// As many attempts fit, all with the same cause: which of them it is, is open, and so are its numbers.
    pub alike: usize,
    /// What the request had met before this attempt.
    pub before: Option<Before>,
    /// Why it is not explained; `None`: it is.
    pub why_not: Option<WhyNot>,
}

/// Why a line is not explained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WhyNot {
    /// It was written before the first trace began, at this time.
    BeforeTraces(String),
    /// It was written after the last trace ended, at this time.
    AfterTraces(String),
    /// It was written while no trace ran.
    BetweenTraces,
    /// Nobody knows when it was written: its time stands twice or not at all.
    NoTime,
    /// The trace was asked for some upstreams or peers only.
    Filtered,
    /// The trace lost records at that time.
    Lost,
    /// More failures at that time than are held for comparison.
    TooMany,
    /// It lies long before lines that stand above it, and the failures of that time were let go.
    OutOfOrder,
    /// Several attempts fit, with these causes.
    Ambiguous(Vec<String>),
    /// Several requests fit, all with the same causes, and the line does not tell which peers were tried.
    Alike,
    /// No failed attempt fits, and the line does not tell whether an upstream was asked at all.
    Untold,
    /// No failed attempt fits, and the status may be the backend's own.
    AnsweredUnread,
    /// The attempt is in the trace, and its cause is unknown.
    UnknownCause,
    /// The attempt is in the trace with this outcome, which is no failure.
    NoFailure(String),
    /// The traces hold no such attempt.
    NoAttempt,
}

impl WhyNot {
    /// A stable name for programs.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self {
            Self::BeforeTraces(_) => "before-traces",
            Self::AfterTraces(_) => "after-traces",
            Self::BetweenTraces => "between-traces",
            Self::NoTime => "no-time",
            Self::Filtered => "filtered",
            Self::Lost => "lost",
            Self::TooMany => "too-many",
            Self::OutOfOrder => "out-of-order",
            Self::Ambiguous(_) => "ambiguous",
            Self::Alike => "alike",
            Self::Untold => "untold",
            Self::AnsweredUnread => "answered-unread",
            Self::UnknownCause => "unknown-cause",
            Self::NoFailure(_) => "no-failure",
            Self::NoAttempt => "no-attempt",
        }
    }

    /// One sentence for people, without a full stop.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::BeforeTraces(began) => format!("written before the trace began ({began})"),
            Self::AfterTraces(ended) => format!("written after the trace ended ({ended})"),
            Self::BetweenTraces => "written while no trace ran".to_owned(),
            Self::NoTime => "its time does not exist in the log's time zone".to_owned(),
            Self::Filtered => {
                "no such attempt in the trace, which was restricted to some upstreams or peers".to_owned()
            }
            Self::Lost => {
                "the trace does not hold this line, and lost records at that time: the attempt may be among them".to_owned()
            }
            Self::TooMany => "more failures at that time than are held for comparison".to_owned(),
            Self::OutOfOrder => "its time lies long before that of lines above it".to_owned(),
            Self::Ambiguous(causes) => format!(
                "several attempts fit, with different causes: {}",
                causes.join(", ")
            ),
            Self::Alike => {
                "several requests fit, and the log's format has no $upstream_addr to tell them apart".to_owned()
            }
            Self::Untold => "no attempt in the trace fits: nginx or the backend may have answered so, which a format without \
                $upstream_addr does not tell"
                .to_owned(),
            Self::AnsweredUnread => "no failed attempt in the trace: the backend may have answered so itself, where its \
                statuses are not read (TLS, HTTP/2, --capture off)"
                .to_owned(),
            Self::UnknownCause => "the attempt was seen, and its cause is unknown".to_owned(),
            Self::NoFailure(outcome) => format!("the attempt was seen, and it is no failure ({outcome})"),
            Self::NoAttempt => "no such attempt in the trace: was it another instance of nginx?".to_owned(),
        }
    }
}

/// What one line of a log is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// No line of nginx, or the rest of one.
    Foreign,
    /// A line of nginx that is no failure of an attempt.
    Other,
    /// A failure of an attempt at an upstream.
    Upstream(Box<(LogLine, Said)>),
    /// A request, of an access log in the format of this number.
    Request(usize, Box<Access>),
}

/// Takes a line of a log apart; an error log's time is still local, as if it were UTC.
#[must_use]
pub fn kind(line: &[u8], context: &Context, formats: &[Format]) -> Kind {
    let text = String::from_utf8_lossy(line);
    let Some(parsed) = error_log::parse(&text, context) else {
        let mut requests = formats
            .iter()
            .enumerate()
            .filter_map(|(number, format)| Some(Kind::Request(number, Box::new(format.parse(&text)?))));
        return requests.next().unwrap_or(Kind::Foreign);
    };
    let said = Said::logged(&parsed);
    match said.meaning {
        Meaning::Nothing => Kind::Other,
        _ => Kind::Upstream(Box::new((parsed, said))),
    }
}

/// The context in which [`kind`] reads: pids and times stay as they stand in the log.
#[must_use]
pub fn as_it_stands() -> Context {
    Context {
        zone: Zone::utc(),
        pids: BTreeMap::new(),
        unix_paths: Vec::new(),
    }
}

/// Why lines stayed unexplained, and which.
#[derive(Clone, Debug, Default)]
pub struct Unexplained {
    /// How many.
    pub lines: u64,
    /// The first of them: the log's number and the line's, both from 1.
    pub first: Vec<(usize, u64)>,
}

/// The counts over all logs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Lines read.
    pub lines: u64,
    /// Of them, lines of nginx.
    pub nginx_lines: u64,
    /// Of them, requests of access logs.
    pub requests: u64,
    /// Of them, with status 5xx or 499 and without a failure of an upstream.
    pub elsewhere: u64,
    /// Of nginx's lines, those of failures of attempts at upstreams.
    pub upstream_lines: u64,
    /// Of them, explained.
    pub explained: u64,
    /// What would make lines of access logs surer to match, one sentence for each format that was met.
    pub missing: Vec<String>,
    /// The explained ones by upstream, cause and peer.
    pub tally: Tally,
    /// The others by reason.
    pub unexplained: BTreeMap<WhyNot, Unexplained>,
}

impl Totals {
    /// Counts a line about an upstream.
    pub fn add(&mut self, log: usize, line: u64, answer: &Answer) {
        self.upstream_lines += 1;
        if let Some(why_not) = &answer.why_not {
            self.leave_open(log, line, why_not);
            return;
        }
        self.explained += 1;
        if let Some(attempt) = &answer.attempt {
            self.tell(attempt);
        }
    }

    /// Counts a request of an access log.
    pub fn add_request(&mut self, log: usize, line: u64, answer: &RequestAnswer) {
        self.upstream_lines += 1;
        match &answer.why_not {
            Some(why_not) => self.leave_open(log, line, why_not),
            None => {
                self.explained += 1;
                for attempt in answer.chain.iter().flatten() {
                    self.tell(attempt);
                }
            }
        }
    }

    /// Remembers what a format that was met lacks.
    pub fn meet(&mut self, format: &Format) {
        let missing = format.missing();
        if missing.is_empty() {
            return;
        }
        let text = format!(
            "{} has no {}: lines that tell {} are surer to match",
            format.name,
            missing.join(", "),
            if missing.len() == 1 { "it" } else { "them" },
        );
        if !self.missing.contains(&text) {
            self.missing.push(text);
        }
    }

    fn leave_open(&mut self, log: usize, line: u64, why_not: &WhyNot) {
        let unexplained = self.unexplained.entry(why_not.clone()).or_default();
        unexplained.lines += 1;
        if unexplained.first.len() < MAX_NAMED {
            unexplained.first.push((log, line));
        }
    }

    fn tell(&mut self, attempt: &Attempt) {
        self.tally.add(
            attempt.upstream.as_deref(),
            attempt.peer.as_deref(),
            &attempt.outcome,
            attempt.cause.as_ref().map(|cause| cause.id.as_ref()),
            1,
        );
    }
}

/// What is known of a request of an access log.
#[derive(Clone, Debug)]
pub struct RequestAnswer {
    /// The attempts of its tries, in their order; `None`: an answer that is no failure. Empty: they are not known.
    pub chain: Chain,
    /// As many chains fit, all with the same causes.
    pub alike: usize,
    /// Why it is not explained; `None`: it is.
    pub why_not: Option<WhyNot>,
}

/// What a request of an access log is.
#[derive(Clone, Debug)]
pub enum Request {
    /// Nothing failed, as far as line and trace tell.
    Sound,
    /// Its status is 5xx or 499, and no upstream's failure made it so.
    Elsewhere,
    /// An attempt of it failed.
    Failed(RequestAnswer),
}

/// Says what is known of a request. Lines come in the order of the log.
pub fn explain_request(traces: &mut Traces, access: &Access) -> Result<Request, Unreadable> {
    traces.go_to_request(access)?;
    let open = |why_not| {
        Request::Failed(RequestAnswer {
            chain: Vec::new(),
            alike: 1,
            why_not: Some(why_not),
        })
    };
    // What the line alone tells: a request of which nothing is known but its status may have failed anywhere.
    let is_told = access.has_failed_try() || (access.tries.is_none() && access.is_error());
    Ok(match traces.take_request(access) {
        TakenChain::One(chain, alike) => {
            let why_not = chain.iter().flatten().find_map(|attempt| why_open(attempt));
            Request::Failed(RequestAnswer {
                chain,
                alike,
                why_not,
            })
        }
        _ if !is_told && access.is_error() => Request::Elsewhere,
        _ if !is_told => Request::Sound,
        TakenChain::Ambiguous(causes) => open(WhyNot::Ambiguous(causes)),
        TakenChain::Alike => open(WhyNot::Alike),
        TakenChain::Doubtful(why_not) => open(why_not),
        TakenChain::None => {
            let why_not = traces.why_no_chain(access.ended_ms.div_euclid(1000));
            let mut failed = access
                .tries
                .iter()
                .flatten()
                .filter(|one| one.has_failed())
                .peekable();
            let may_be_own = failed.peek().is_some()
                && failed.all(|one| !one.is_retried && one.status.is_some_and(|status| status >= 500));
            open(match why_not {
                WhyNot::NoAttempt if access.tries.is_none() => WhyNot::Untold,
                WhyNot::NoAttempt if may_be_own => WhyNot::AnsweredUnread,
                other => other,
            })
        }
    })
}

/// Why an attempt of a chain leaves its request open.
fn why_open(attempt: &Attempt) -> Option<WhyNot> {
    // The backend's own answer is what it is.
    why_unnamed(attempt).filter(|_| attempt.cause.is_some() || attempt.outcome != "ok")
}

/// Why an attempt explains nothing.
fn why_unnamed(attempt: &Attempt) -> Option<WhyNot> {
    match &attempt.cause {
        Some(cause) if cause.id == "unknown" => Some(WhyNot::UnknownCause),
        Some(_) => None,
        None => Some(WhyNot::NoFailure(attempt.outcome.clone().into_owned())),
    }
}

/// The status that a backend itself answered with, where that is what failed.
#[must_use]
pub fn answered_itself(attempt: &Attempt) -> Option<u16> {
    answered(attempt).filter(|_| attempt.outcome == "ok")
}

/// Says what is known of a line about an upstream. Lines come in the order of the log.
pub fn explain(traces: &mut Traces, log: &LogLine, said: &Said) -> Result<Answer, Unreadable> {
    let Some(local) = civil_of(log.time) else {
        return Ok(unexplained(WhyNot::NoTime));
    };
    let Some(at) = traces.go_to(local)? else {
        return Ok(unexplained(WhyNot::NoTime));
    };
    Ok(match traces.take(at, log, said) {
        Taken::One(trace, found) => {
            let (attempt, alike) = (found.attempt, found.alike);
            let why_not = why_unnamed(&attempt);
            Answer {
                before: (alike == 1).then(|| traces.before(trace, &attempt)).flatten(),
                attempt: Some(attempt),
                alike,
                why_not,
            }
        }
        Taken::Ambiguous(causes) => unexplained(WhyNot::Ambiguous(causes)),
        Taken::Doubtful(why_not) => unexplained(why_not),
        Taken::None => unexplained(traces.why_none(at)),
    })
}

fn unexplained(why_not: WhyNot) -> Answer {
    Answer {
        attempt: None,
        alike: 1,
        before: None,
        why_not: Some(why_not),
    }
}

/// The local time of a line that was read as if it were UTC.
fn civil_of(second: i64) -> Option<civil::DateTime> {
    let at = jiff::Timestamp::from_second(second).ok()?;
    Some(jiff::tz::Offset::UTC.to_datetime(at))
}

#[cfg(test)]
mod tests;
