//! What traces say, gathered record by record: counts, what happened when, findings, and how complete it all is.
//!
//! Memory is bounded: a trace of any size becomes tables with a limited number of rows.

pub mod json;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    sink::schema::{self, Attempt, Event, Finding, Line, Session, Summary},
    tally::Tally,
};

/// Which records count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Attempts that began at or after this.
    pub since: Option<Timestamp>,
    /// Attempts that began before this.
    pub until: Option<Timestamp>,
    /// Attempts at these upstreams; empty: all.
    pub upstreams: Vec<String>,
    /// Attempts with these causes as headline; empty: all.
    pub causes: Vec<String>,
}

impl Filter {
    /// Nothing is left out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    fn takes(&self, attempt: &Attempt) -> bool {
        let mut names = attempt.upstream.iter().chain(&attempt.upstreams);
        let cause = attempt.cause.as_ref().map(|cause| cause.id.as_ref());
        self.takes_time(&attempt.time)
            && (self.upstreams.is_empty() || names.any(|name| self.upstreams.contains(name)))
            && (self.causes.is_empty() || self.causes.iter().any(|wanted| Some(wanted.as_str()) == cause))
    }

    fn takes_time(&self, time: &str) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = time.parse::<Timestamp>() else {
            return false;
        };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

/// Failures of one cause at one peer, over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    /// The first and the last of them, as they stand in the trace.
    pub first: String,
    /// See `first`.
    pub last: String,
    /// How many.
    pub attempts: u64,
    /// Runs of them with less than a minute between two.
    pub bursts: u64,
    /// The last of them: its cause, with summary and remedy.
    pub outcome: String,
    /// See `outcome`.
    pub confidence: String,
    /// See `outcome`.
    pub summary: String,
    /// See `outcome`.
    pub remedy: String,
    /// Evidence of the first of them.
    pub evidence: Vec<schema::Evidence>,
    /// What could not be seen, of any of them.
    pub unseen: BTreeSet<String>,
    last_at: Option<Timestamp>,
}

/// Whose story.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoryKey {
    /// The upstream, where known.
    pub upstream: Option<String>,
    /// The peer, where there is one.
    pub peer: Option<String>,
    /// The cause's id, or the outcome where there is no cause.
    pub cause: String,
}

/// More stories than this are counted, not told.
const MAX_STORIES: usize = 5_000;

/// More events than this are counted, not told.
const MAX_EVENTS: usize = 200;

/// More findings than this are not told; a trace has a handful.
const MAX_FINDINGS: usize = 50;

/// Two failures with more seconds than this between them belong to different bursts.
const BURST_GAP_S: i64 = 60;

/// Events that a reader of failures wants to see.
const WORTH_TELLING: [&str; 10] = [
    "process-exit",
    "oom-kill",
    "listener-open",
    "listener-closed",
    "worker-exit",
    "reload",
    "config",
    "peer-disabled",
    "peer-enabled",
    "lines-unjoined",
];

/// One trace: all the files of one run of the tracer.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Its session line.
    pub session: Session,
    /// Its closing summary; `None`: not there (yet).
    pub summary: Option<Summary>,
    tally: Tally,
    parts: BTreeSet<u32>,
    lost: BTreeMap<String, u64>,
    /// Those that it told while it went on: all that there is of a trace without an end.
    findings: Vec<Finding>,
}

/// Everything gathered.
#[derive(Clone, Debug, Default)]
pub struct Report {
    filter: Filter,
    /// The traces, by when they began.
    pub traces: BTreeMap<(String, String), Trace>,
    current: Option<(String, String)>,
    /// What failed where, over time.
    pub stories: BTreeMap<StoryKey, Story>,
    /// Failures that belong to no story for want of room.
    pub untold: u64,
    /// Events worth telling, in the order of the trace.
    pub events: Vec<Event>,
    /// Events beyond those.
    pub more_events: u64,
    /// Findings of the ends of traces.
    findings: Vec<Finding>,
    /// Files whose end was torn, one sentence each.
    pub torn: Vec<String>,
}

impl Report {
    /// A report of nothing yet.
    #[must_use]
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            ..Self::default()
        }
    }

    /// What was asked for.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Changes what counts from here on; for times of day, whose date the first session tells.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// Takes one record.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Session(session) => self.session(session),
            Line::Attempt(attempt) => self.attempt(&attempt),
            Line::Event(event) => self.event(event),
            Line::Finding(finding) => {
                let into = match self.trace() {
                    Some(trace) if finding.time.is_some() => &mut trace.findings,
                    _ => &mut self.findings,
                };
                if into.len() < MAX_FINDINGS {
                    into.push(finding);
                }
            }
            Line::Lost(lost) => {
                if let Some(trace) = self.trace() {
                    *trace.lost.entry(lost.class.into_owned()).or_default() += lost.count;
                }
            }
            Line::Summary(summary) => {
                if let Some(trace) = self.trace() {
                    trace.summary = Some(summary);
                }
            }
        }
    }

    /// The findings; of a trace without an end those that it told while it went on, with the numbers of then.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let cut = self.traces.values().filter(|trace| trace.summary.is_none());
        self.findings.iter().chain(cut.flat_map(|trace| &trace.findings))
    }

    /// A file ended with a torn line.
    pub fn add_torn(&mut self, sentence: &str) {
        self.torn.push(sentence.to_owned());
    }

    fn trace(&mut self) -> Option<&mut Trace> {
        self.traces.get_mut(self.current.as_ref()?)
    }

    fn session(&mut self, session: Session) {
        let key = (session.started.clone(), session.host.clone());
        let trace = self.traces.entry(key.clone()).or_default();
        trace.parts.insert(session.part);
        trace.session = session;
        self.current = Some(key);
    }

    fn attempt(&mut self, attempt: &Attempt) {
        if !self.filter.takes(attempt) {
            return;
        }
        let cause = attempt.cause.as_ref().map(|cause| cause.id.as_ref());
        if let Some(trace) = self.trace() {
            trace.tally.add(
                attempt.upstream.as_deref(),
                attempt.peer.as_deref(),
                &attempt.outcome,
                cause,
                1,
            );
        }
        if attempt.is_failure() {
            self.tell(attempt);
        }
    }

    fn tell(&mut self, attempt: &Attempt) {
        let cause = attempt.cause.as_ref();
        let key = StoryKey {
            upstream: attempt.upstream.clone(),
            peer: attempt.peer.clone(),
            cause: cause
                .map_or(attempt.outcome.as_ref(), |cause| cause.id.as_ref())
                .to_owned(),
        };
        let is_full = self.stories.len() >= MAX_STORIES;
        if is_full && !self.stories.contains_key(&key) {
            self.untold += 1;
            return;
        }
        let at = attempt.time.parse::<Timestamp>().ok();
        let story = self.stories.entry(key).or_insert_with(|| Story {
            first: attempt.time.clone(),
            last: attempt.time.clone(),
            attempts: 0,
            bursts: 1,
            outcome: String::new(),
            confidence: String::new(),
            summary: String::new(),
            remedy: String::new(),
            evidence: cause.map(|cause| cause.evidence.clone()).unwrap_or_default(),
            unseen: BTreeSet::new(),
            last_at: at,
        });
        if let (Some(before), Some(now)) = (story.last_at, at)
            && now.as_second() - before.as_second() > BURST_GAP_S
        {
            story.bursts += 1;
        }
        // Attempts are written as they end, so a long one may have begun before its predecessor.
        if attempt.time < story.first {
            story.first.clone_from(&attempt.time);
        }
        if attempt.time > story.last {
            story.last.clone_from(&attempt.time);
        }
        story.last_at = story.last_at.max(at);
        story.attempts += 1;
        story.outcome = attempt.outcome.clone().into_owned();
        if let Some(cause) = cause {
            story.confidence = cause.confidence.clone().into_owned();
            story.summary.clone_from(&cause.summary);
            story.remedy.clone_from(&cause.remedy);
        }
        for unseen in &attempt.unseen {
            if story.unseen.len() < 5 {
                story.unseen.insert(unseen.clone());
            }
        }
    }

    fn event(&mut self, event: Event) {
        if !WORTH_TELLING.contains(&event.kind.as_ref()) || !self.filter.takes_time(&event.time) {
            return;
        }
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.more_events += 1;
        }
    }

    /// The counts over all traces: those of the closing summaries where nothing was filtered, since a trace may hold
    /// failures alone; otherwise those of the attempts read.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for trace in self.traces.values() {
            match &trace.summary {
                Some(summary) if self.filter.is_everything() => tally.absorb(&tally_of(summary)),
                Some(_) | None => tally.absorb(&trace.tally),
            }
        }
        tally
    }

    /// Attempts still under way at the end.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.summaries().map(|summary| summary.in_flight).sum()
    }

    /// Attempts that a backend itself answered with an error; `None`: not known for some trace.
    #[must_use]
    pub fn answered_with_error(&self) -> Option<u64> {
        self.traces
            .values()
            .map(|trace| trace.summary.as_ref()?.answered_with_error)
            .sum()
    }

    /// What clients got after failures, and how often: see [`crate::model::Summary::clients_got`].
    #[must_use]
    pub fn clients_got(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for summary in self.summaries() {
            for (got, n) in &summary.clients_got {
                *all.entry(got.clone()).or_insert(0) += n;
            }
        }
        all
    }

    /// Answers whose status was not read.
    #[must_use]
    pub fn statuses_unread(&self) -> u64 {
        self.summaries().map(|summary| summary.statuses_unread).sum()
    }

    /// What was lost, by class: of the summary, or else of the lines.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut lost = BTreeMap::new();
        for trace in self.traces.values() {
            match &trace.summary {
                Some(summary) => {
                    for (class, count) in &summary.lost {
                        *lost.entry(class.clone().into_owned()).or_default() += count;
                    }
                }
                None => {
                    for (class, count) in &trace.lost {
                        *lost.entry(class.clone()).or_default() += count;
                    }
                }
            }
        }
        lost.retain(|_, count| *count > 0);
        lost
    }

    /// Why the report may be incomplete, one sentence each; empty: it is complete.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = self.torn.clone();
        for trace in self.traces.values() {
            let began = &trace.session.started;
            match &trace.summary {
                None => gaps.push(format!(
                    "the trace begun at {began} has no summary: the tracer still runs, was killed, or its last file is not here"
                )),
                Some(summary) if !summary.complete => {
                    gaps.push(format!("the trace begun at {began} says itself that it is not complete"));
                }
                Some(_) => {}
            }
            let last = trace.parts.last().copied().unwrap_or(1);
            let missing = (1..last).filter(|part| !trace.parts.contains(part)).count();
            if missing > 0 {
                gaps.push(format!(
                    "{missing} earlier files of the trace begun at {began} are not here"
                ));
            }
            if keeps_failures_only(&trace.session)
                && (trace.summary.is_none() || !self.filter.is_everything())
            {
                gaps.push(format!(
                    "the trace begun at {began} holds failures and their surroundings alone: other successes are not counted here"
                ));
            }
        }
        for (class, count) in self.lost() {
            gaps.push(format!("{count} records were lost ({class})"));
        }
        gaps
    }

    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.traces.values().filter_map(|trace| trace.summary.as_ref())
    }
}

fn keeps_failures_only(session: &Session) -> bool {
    session.options.get("keep").is_some_and(|keep| keep == "failures")
}

fn tally_of(summary: &Summary) -> Tally {
    let mut tally = Tally::default();
    for count in &summary.counts {
        tally.add(
            count.upstream.as_deref(),
            count.peer.as_deref(),
            &count.outcome,
            count.cause.as_deref(),
            count.attempts,
        );
    }
    tally
}

#[cfg(test)]
mod tests;
