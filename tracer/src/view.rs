//! What a person sees while the tracer runs: one block per failure, storms folded, a closing summary.
//!
//! The same values that go to the files, drawn for a terminal of 80 columns or more. Everything that came from
//! elsewhere (paths, process names, log lines) is made printable first, so that no name can steer the terminal.

pub mod block;
pub mod closing;
mod folds;
pub mod text;

use std::io::{self, Write};

use jiff::tz::TimeZone;

use self::{block::block, folds::Folds, text::Style};
use crate::{
    clock::Clock,
    event::{Ktime, LossClass},
    model::{Attempt, Finding, NoteEvent, Summary},
    session::SessionFacts,
    sink::{schema, trace_file::Written},
};

/// How things are drawn.
#[derive(Clone, Debug)]
pub struct Look {
    /// Columns of the terminal.
    pub width: usize,
    /// Colours are wanted.
    pub colour: bool,
    /// The zone in which times are shown.
    pub zone: TimeZone,
}

impl Look {
    /// A look for stdout as it is now: `NO_COLOR` is respected, and a file or a pipe gets no colour.
    #[must_use]
    pub fn of_stdout() -> Self {
        let is_terminal = io::IsTerminal::is_terminal(&io::stdout());
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            width: width_of_stdout(),
            colour: is_terminal && !wants_none,
            zone: TimeZone::system(),
        }
    }

    /// The width that text is set to: lines of more than 120 columns are hard to read.
    #[must_use]
    pub fn measure(&self) -> usize {
        self.width.clamp(40, 120)
    }

    /// The colours, or none.
    #[must_use]
    pub fn style(&self) -> Style {
        Style::new(self.colour)
    }

    /// A wall-clock time of day, to the millisecond.
    #[must_use]
    pub fn time(&self, at: Ktime, clock: Clock) -> String {
        clock
            .timestamp(at)
            .to_zoned(self.zone.clone())
            .strftime("%H:%M:%S%.3f")
            .to_string()
    }
}

fn width_of_stdout() -> usize {
    terminal_size::terminal_size_of(io::stdout()).map_or(100, |(width, _)| usize::from(width.0))
}

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A block per failure, and the summary.
    Failures,
    /// The summary alone.
    SummaryOnly,
}

/// Whether lines already drawn can be drawn again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A terminal: the counts at the bottom are kept up to date in place.
    Terminal,
    /// A file or a pipe: what is written stays.
    Plain,
}

/// The view of a running trace.
pub struct View<W> {
    out: W,
    look: Look,
    detail: Detail,
    medium: Medium,
    folds: Folds,
    lost_unsaid: u64,
    event_window: (Ktime, u32),
    events_unsaid: u64,
    last_drawn: Drawn,
    attempts: u64,
    failures: u64,
    began_at: Option<Ktime>,
    tail_lines: usize,
    drawn_at: Option<Ktime>,
}

/// What was drawn last, since events in a row need no blank line between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drawn {
    Block,
    Event,
}

/// The bottom lines of a terminal are drawn at most this often.
const REDRAW_NS: u64 = 200_000_000;

/// On a narrower terminal they would wrap, and could not be drawn over.
const MIN_LIVE_WIDTH: usize = 60;

impl<W: Write> View<W> {
    /// A view that draws to `out`.
    #[must_use]
    pub fn new(out: W, look: Look, detail: Detail, medium: Medium) -> Self {
        Self {
            out,
            look,
            detail,
            medium,
            folds: Folds::default(),
            lost_unsaid: 0,
            event_window: (Ktime(0), 0),
            events_unsaid: 0,
            last_drawn: Drawn::Block,
            attempts: 0,
            failures: 0,
            began_at: None,
            tail_lines: 0,
            drawn_at: None,
        }
    }

    /// Says what is watched and what cannot be seen.
    pub fn opening(&mut self, facts: &SessionFacts, now: Ktime) -> io::Result<()> {
        self.began_at = Some(now);
        if self.detail == Detail::SummaryOnly {
            return Ok(());
        }
        let opening = closing::opening(facts, &self.look);
        self.print(&opening)
    }

    /// Takes a finished attempt; a failure is drawn unless it equals one that is being counted already.
    pub fn attempt(&mut self, attempt: &Attempt, clock: Clock) -> io::Result<()> {
        self.attempts += 1;
        let is_failure = attempt.outcome.is_failure();
        self.failures += u64::from(is_failure);
        if !is_failure && !attempt.is_answered_with_error() {
            return Ok(());
        }
        if self.detail == Detail::SummaryOnly || self.folds.takes(attempt) {
            return Ok(());
        }
        if self.medium == Medium::Terminal {
            self.look.width = width_of_stdout();
        }
        self.last_drawn = Drawn::Block;
        let block = if is_failure {
            block(attempt, clock, &self.look)
        } else {
            block::answered(attempt, clock, &self.look)
        };
        self.print(&format!("\n{block}"))
    }

    /// Takes an event; those that a reader of failures wants to see get a line.
    pub fn event(&mut self, event: &NoteEvent, clock: Clock) -> io::Result<()> {
        if self.detail == Detail::SummaryOnly || !WORTH_A_LINE.contains(&event.kind) {
            return Ok(());
        }
        let (began, said) = self.event_window;
        if event.at.since(began) >= EVENT_WINDOW_NS {
            self.event_window = (event.at, 0);
        } else if said >= EVENTS_PER_WINDOW {
            self.events_unsaid += 1;
            return Ok(());
        }
        self.event_window.1 += 1;
        let style = self.look.style();
        let time = self.look.time(event.at, clock);
        let lines = text::wrap(&text::printable(&event.text), self.look.measure() - 14);
        let mut drawn = match self.last_drawn {
            Drawn::Block => String::from("\n"),
            Drawn::Event => String::new(),
        };
        self.last_drawn = Drawn::Event;
        for (number, line) in lines.iter().enumerate() {
            let margin = if number == 0 { time.as_str() } else { "" };
            drawn.push_str(&style.dim(&format!("{margin:<14}{line}")));
            drawn.push('\n');
        }
        self.print(&drawn)
    }

    /// Takes a loss; losses are said together, with the next update.
    pub fn lost(&mut self, _class: LossClass, count: u64) {
        self.lost_unsaid += count;
    }

    /// Brings counts up to date; to be called whenever nothing else is to be done, and at least every second.
    pub fn settle(&mut self, now: Ktime, clock: Clock) -> io::Result<()> {
        if self.detail == Detail::SummaryOnly {
            return Ok(());
        }
        if self.lost_unsaid > 0 && self.is_redraw_time(now) {
            let lost = text::count(self.lost_unsaid, "record", "records");
            self.lost_unsaid = 0;
            let warning = self.look.style().warning(&format!(
                "lost {lost}: more happened than could be taken in, so attempts may be missing"
            ));
            self.print(&format!("\n{warning}\n"))?;
        }
        if self.events_unsaid > 0 && now.since(self.event_window.0) >= EVENT_WINDOW_NS {
            let more = text::count(self.events_unsaid, "more event", "more events");
            self.events_unsaid = 0;
            let line = self.look.style().dim(&format!("{:14}{more} like these", ""));
            self.print(&format!("{line}\n"))?;
        }
        let finished = self.folds.finished(now, self.medium);
        if !finished.is_empty() {
            self.last_drawn = Drawn::Block;
            let mut drawn = String::new();
            for fold in &finished {
                drawn.push_str(&fold.line(clock, &self.look));
                drawn.push('\n');
            }
            self.print(&drawn)?;
        }
        if self.medium == Medium::Terminal && self.is_redraw_time(now) {
            self.drawn_at = Some(now);
            self.redraw_tail(now, clock)?;
        }
        self.out.flush()
    }

    /// Draws the closing summary.
    pub fn close(
        &mut self,
        summary: &Summary,
        findings: &[Finding],
        written: &[Written],
        clock: Clock,
    ) -> io::Result<()> {
        let rest = self.folds.all_open();
        let mut drawn = String::new();
        for fold in &rest {
            drawn.push_str(&fold.line(clock, &self.look));
            drawn.push('\n');
        }
        if self.detail == Detail::Failures {
            drawn.push('\n');
        }
        let watched_us = self.began_at.map(|began| summary.at.micros_since(began));
        drawn.push_str(&closing::closing(
            summary, watched_us, findings, written, &self.look,
        ));
        self.print(&drawn)?;
        self.out.flush()
    }

    fn is_redraw_time(&self, now: Ktime) -> bool {
        self.drawn_at.is_none_or(|drawn| now.since(drawn) >= REDRAW_NS)
    }

    /// Writes text that stays, above the lines that are kept up to date.
    fn print(&mut self, drawn: &str) -> io::Result<()> {
        self.erase_tail()?;
        self.out.write_all(drawn.as_bytes())
    }

    fn erase_tail(&mut self) -> io::Result<()> {
        if self.tail_lines > 0 {
            write!(self.out, "\r\x1b[{}A\x1b[J", self.tail_lines)?;
            self.tail_lines = 0;
        }
        Ok(())
    }

    fn redraw_tail(&mut self, now: Ktime, clock: Clock) -> io::Result<()> {
        self.erase_tail()?;
        self.look.width = width_of_stdout();
        if self.look.width < MIN_LIVE_WIDTH {
            return Ok(());
        }
        let mut lines = self.folds.live_lines(clock, &self.look);
        let watched = self
            .began_at
            .map_or(0, |began| now.micros_since(began) / 1_000_000 * 1_000_000);
        lines.push(self.look.style().dim(&format!(
            "{}   {}   {} failed",
            text::span(watched),
            text::count(self.attempts, "attempt", "attempts"),
            text::thousands(self.failures),
        )));
        // One blank line keeps the counts apart from the blocks above.
        self.out.write_all(b"\n")?;
        for line in &lines {
            writeln!(self.out, "{line}")?;
        }
        self.tail_lines = lines.len() + 1;
        Ok(())
    }
}

/// The kinds of event that get a line of their own on the terminal.
const WORTH_A_LINE: [&str; 10] = [
    "finding",
    "process-exit",
    "oom-kill",
    "listener-open",
    "listener-closed",
    "reload",
    "config",
    "peer-disabled",
    "peer-enabled",
    "lines-unjoined",
];

/// At most this many events get a line …
const EVENTS_PER_WINDOW: u32 = 8;

/// … in this time: a backend that crashes in a loop must not push the failures off the screen.
const EVENT_WINDOW_NS: u64 = 10_000_000_000;

/// What was lost, by class, in words; empty when nothing was.
#[must_use]
pub fn loss_classes(lost: impl Iterator<Item = (LossClass, u64)>) -> String {
    lost.filter(|(_, count)| *count > 0)
        .map(|(class, count)| format!("{} {}", text::thousands(count), schema::loss_class(class)))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests;
