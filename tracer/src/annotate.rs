//! nginx's own error log with the cause under each upstream line: the log and the traces are read side by side, in the
//! memory of a window.
//!
//! A line and an attempt belong together when the trace holds that very line; where it holds no lines, when worker,
//! peer, message and second agree and nothing else fits as well.

pub mod json;
pub mod text;
pub mod traces;
pub mod window;

use std::collections::BTreeMap;

use jiff::civil;

use self::traces::{Before, Taken, Traces};
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
    pub attempt: Option<Box<Attempt>>,
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
}

/// Takes a line of a log apart; its time is still local, as if it were UTC.
#[must_use]
pub fn kind(line: &[u8], context: &Context) -> Kind {
    let text = String::from_utf8_lossy(line);
    let Some(parsed) = error_log::parse(&text, context) else {
        return Kind::Foreign;
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
    /// Of them, failures of attempts at upstreams.
    pub upstream_lines: u64,
    /// Of them, explained.
    pub explained: u64,
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
            let unexplained = self.unexplained.entry(why_not.clone()).or_default();
            unexplained.lines += 1;
            if unexplained.first.len() < MAX_NAMED {
                unexplained.first.push((log, line));
            }
            return;
        }
        self.explained += 1;
        if let Some(attempt) = &answer.attempt {
            self.tally.add(
                attempt.upstream.as_deref(),
                attempt.peer.as_deref(),
                &attempt.outcome,
                attempt.cause.as_ref().map(|cause| cause.id.as_ref()),
                1,
            );
        }
    }
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
            let why_not = match &attempt.cause {
                Some(cause) if cause.id == "unknown" => Some(WhyNot::UnknownCause),
                Some(_) => None,
                None => Some(WhyNot::NoFailure(attempt.outcome.clone().into_owned())),
            };
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
