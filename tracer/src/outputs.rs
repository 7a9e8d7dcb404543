//! Everything behind the engine: what it says goes to the files and to the terminal.
//!
//! One value, fed with every input ([`Outputs::observe`]) and every output ([`Outputs::take`]); `attach` and `replay`
//! differ in the inputs alone. It looks at no clock: time is that of the inputs.

pub mod keep;

use std::{collections::BTreeMap, io, io::Write};

use serde_json::Value;

use self::keep::{Keep, Kept, Recorder};
use crate::{
    clock::Clock,
    event::{Input, Ktime, Output},
    model::{Attempt, Finding, NoteEvent, Summary},
    session::{Origin, SessionFacts},
    sink::{
        attempt_line, schema,
        trace_file::{Rotation, Target, TraceFile, Urgency, Written},
    },
    view::{Detail, Look, Medium, View},
};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct OutputOptions {
    /// Where the trace goes, besides the terminal.
    pub targets: Vec<Target>,
    /// Which attempts go there.
    pub keep: Keep,
    /// Rotation of the files.
    pub rotation: Rotation,
    /// What is drawn on stdout; `None`: nothing, since stdout carries the trace.
    pub view: Option<Detail>,
    /// Whether inputs come as they happen; a replay runs through them faster than the eye.
    pub pace: Pace,
}

/// How fast inputs come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As they happen.
    Live,
    /// As fast as they can be read.
    Replay,
}

/// Events held back until the session line is written.
const MAX_HELD: usize = 10_000;

/// Everything behind the engine.
pub struct Outputs {
    clock: Clock,
    now: Ktime,
    /// The time of the first input: when the trace began.
    first_at: Option<Ktime>,
    facts: SessionFacts,
    has_begun: bool,
    held: Vec<NoteEvent>,
    files: Vec<TraceFile>,
    view: Option<View<Box<dyn Write>>>,
    stdout_gone: bool,
    recorder: Recorder,
    /// The line being written, kept for its memory.
    line: Vec<u8>,
    failures: u64,
    findings: Vec<Finding>,
    summary: Option<Box<Summary>>,
    is_cut: bool,
}

/// How it went, once everything is closed.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Failed attempts.
    pub failures: u64,
    /// What became of each output.
    pub written: Vec<Written>,
}

impl Closed {
    /// An output could not be written to the end.
    #[must_use]
    pub fn is_any_broken(&self) -> bool {
        self.written.iter().any(|file| file.broken.is_some())
    }
}

impl Outputs {
    /// Creates the files and the view; fails when a file cannot be created.
    pub fn open(
        options: OutputOptions,
        origin: Origin,
        described: BTreeMap<String, Value>,
    ) -> anyhow::Result<Self> {
        let view = options.view.map(|detail| {
            let stdout = io::stdout();
            let medium = if options.pace == Pace::Live && io::IsTerminal::is_terminal(&stdout) {
                Medium::Terminal
            } else {
                Medium::Plain
            };
            let out: Box<dyn Write> = Box::new(io::BufWriter::new(stdout));
            View::new(out, Look::of_stdout(), detail, medium)
        });
        Self::open_with(options, view, origin, described)
    }

    fn open_with(
        options: OutputOptions,
        view: Option<View<Box<dyn Write>>>,
        origin: Origin,
        described: BTreeMap<String, Value>,
    ) -> anyhow::Result<Self> {
        let files = options
            .targets
            .into_iter()
            .map(|target| TraceFile::create(target, options.rotation))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            clock: Clock::default(),
            now: Ktime(0),
            first_at: None,
            facts: SessionFacts::new(origin, described),
            has_begun: false,
            held: Vec::new(),
            files,
            view,
            stdout_gone: false,
            recorder: Recorder::new(options.keep),
            line: Vec::new(),
            failures: 0,
            findings: Vec::new(),
            summary: None,
            is_cut: false,
        })
    }

    /// Takes note of an input; to be called before the engine's outputs for it are taken.
    pub fn observe(&mut self, at: Ktime, input: &Input) {
        self.now = self.now.max(at);
        self.first_at.get_or_insert(at);
        if let Input::Clock { unix_ns } = input {
            self.clock = Clock::new(at, *unix_ns);
        }
        if self.facts.observe(input) && self.has_begun {
            let session = self.facts.session(self.now, self.clock);
            for file in &mut self.files {
                file.update_session(&session);
            }
        }
    }

    /// What the session line says so far.
    #[must_use]
    pub fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// The offset between kernel time and wall-clock time, as last heard.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Writes the session line and the opening words, once. Called when everything is attached; the first attempt
    /// does it as well.
    pub fn begin(&mut self) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        let began = self.first_at.unwrap_or(self.now);
        let session = self.facts.session(began, self.clock);
        for file in &mut self.files {
            file.begin(&session, self.now);
        }
        if let Some(view) = &mut self.view {
            let result = view.opening(&self.facts, began);
            self.note_stdout(result);
        }
        for event in std::mem::take(&mut self.held) {
            self.event(&event);
        }
    }

    /// Takes what the engine said. Questions are not for outputs.
    pub fn take(&mut self, output: Output) {
        match output {
            Output::Attempt(attempt) => self.attempt(attempt),
            Output::Event(event) => {
                if !self.has_begun && self.held.len() < MAX_HELD {
                    self.held.push(event);
                    return;
                }
                self.begin();
                self.event(&event);
            }
            Output::Finding(finding) => {
                self.begin();
                self.write(
                    &schema::Line::Finding(schema::Finding::new(&finding, self.clock)),
                    Urgency::Soon,
                );
                match finding.at {
                    Some(at) => self.tell_finding(at, &finding),
                    None => self.findings.push(finding),
                }
            }
            Output::Ask(_) => {}
            Output::Lost { at, class, count } => {
                self.begin();
                let lost = schema::Lost::new(at, class, count, self.clock);
                self.write(&schema::Line::Lost(lost), Urgency::Soon);
                if let Some(view) = &mut self.view {
                    view.lost(class, count);
                }
            }
            Output::Summary(summary) => self.summary = Some(summary),
        }
    }

    /// Writes what is due; to be called whenever nothing else is to be done, and at least every second.
    pub fn settle(&mut self) {
        for file in &mut self.files {
            file.settle(self.now, self.clock);
        }
        let (now, clock) = (self.now, self.clock);
        if let Some(view) = &mut self.view {
            let result = view.settle(now, clock);
            self.note_stdout(result);
        }
    }

    /// Failed attempts so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Nobody takes what is said any more: stdout was closed by its reader, or every file is broken and there is no
    /// view. The trace should end in an orderly way.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        self.stdout_gone
            || self.files.iter().any(TraceFile::is_abandoned)
            || (self.view.is_none() && !self.files.is_empty() && self.files.iter().all(TraceFile::is_broken))
    }

    /// The inputs ended before their end: whatever the engine says, the trace is not complete.
    pub fn mark_cut(&mut self) {
        self.is_cut = true;
    }

    /// Ends the files with the summary and draws it; the engine's [`Output::Summary`] should have been taken.
    pub fn close(mut self) -> Closed {
        self.begin();
        let engine_summary = self.summary.take();
        let had_summary = engine_summary.is_some();
        let mut summary = *engine_summary.unwrap_or_default();
        summary.complete &= !self.is_cut;
        if had_summary {
            self.write(
                &schema::Line::Summary(schema::Summary::new(&summary, self.clock)),
                Urgency::Now,
            );
        }
        let written: Vec<_> = self.files.into_iter().map(TraceFile::finish).collect();
        if let Some(view) = &mut self.view
            && !self.stdout_gone
            && had_summary
        {
            // Whether the last words were read changes nothing any more.
            let _ = view.close(&summary, &self.findings, &written, self.clock);
        }
        Closed {
            failures: self.failures,
            written,
        }
    }

    fn attempt(&mut self, attempt: Box<Attempt>) {
        self.begin();
        if attempt.outcome.is_failure() {
            self.failures += 1;
        }
        if let Some(view) = &mut self.view {
            let result = view.attempt(&attempt, self.clock);
            self.note_stdout(result);
        }
        if self.files.is_empty() {
            return;
        }
        match self.recorder.take(attempt) {
            Kept::Nothing => {}
            Kept::This(attempt) => self.write_attempt(&attempt),
            Kept::These(attempts) => {
                for attempt in &attempts {
                    self.write_attempt(attempt);
                }
            }
        }
    }

    fn write_attempt(&mut self, attempt: &Attempt) {
        let urgency = if attempt.outcome.is_failure() {
            Urgency::Now
        } else {
            Urgency::Soon
        };
        self.line.clear();
        if let Err(error) = attempt_line::append(&mut self.line, attempt, self.clock) {
            missing(&error);
            return;
        }
        for file in &mut self.files {
            file.write(&self.line, urgency, self.now);
            file.count_attempt();
        }
    }

    fn event(&mut self, event: &NoteEvent) {
        self.write(
            &schema::Line::Event(schema::Event::new(event, self.clock)),
            Urgency::Soon,
        );
        if let Some(view) = &mut self.view {
            let result = view.event(event, self.clock);
            self.note_stdout(result);
        }
    }

    /// Says a finding while the trace goes on.
    fn tell_finding(&mut self, at: Ktime, finding: &Finding) {
        if let Some(view) = &mut self.view {
            let result = view.event(
                &NoteEvent {
                    at,
                    kind: "finding",
                    text: format!(
                        "{}: {}; what to do: {}",
                        finding.id, finding.summary, finding.remedy
                    ),
                    fields: BTreeMap::new(),
                },
                self.clock,
            );
            self.note_stdout(result);
        }
    }

    fn write(&mut self, line: &schema::Line, urgency: Urgency) {
        if self.files.is_empty() {
            return;
        }
        let line = match serde_json::to_vec(line) {
            Ok(line) => line,
            Err(error) => {
                missing(&error);
                return;
            }
        };
        for file in &mut self.files {
            file.write(&line, urgency, self.now);
        }
    }

    fn note_stdout(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            if error.kind() != io::ErrorKind::BrokenPipe && !self.stdout_gone {
                log::error!("stdout cannot be written: {error}");
            }
            self.stdout_gone = true;
        }
    }
}

fn missing(error: &serde_json::Error) {
    log::error!("a record could not be serialised and is missing: {error}");
}

#[cfg(test)]
mod tests;
