//! Recordings: the inputs of a trace in a file, for `tracer replay`.
//!
//! A header line, then one [`Stamped`] input a line, as JSON; compressed when the name ends in `.zst`. Reading needs
//! the memory of one line. A torn end is skipped and said.

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    event::{Ktime, Stamped},
    lines::{
        read::{LineReader, Unreadable},
        write::LineWriter,
    },
    session::Origin,
};

/// The name and version of the format.
pub const FORMAT: &str = "tracer-recording/1";

/// An input waits in memory for at most this long.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// The first line of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// The host and the program that recorded.
    #[serde(flatten)]
    pub origin: Origin,
    /// The command that recorded.
    pub command: String,
    /// The wall clock when it began.
    pub clock: ClockReading,
}

/// Wall-clock time at a kernel time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// Kernel time.
    pub at: Ktime,
    /// Nanoseconds since the epoch at that time.
    pub unix_ns: i64,
}

impl Header {
    /// The header of a recording that begins now on this host.
    #[must_use]
    pub fn new(command: String, clock: ClockReading) -> Self {
        Self {
            format: FORMAT.to_owned(),
            origin: Origin::here(),
            command,
            clock,
        }
    }
}

/// Writes a recording.
pub struct RecordingWriter {
    lines: LineWriter,
    waiting_since: Option<Ktime>,
}

impl RecordingWriter {
    /// Creates the file and writes the header at once.
    pub fn create(path: &Path, header: &Header) -> anyhow::Result<Self> {
        let mut lines = LineWriter::create(path)?;
        lines.push(&serde_json::to_vec(header)?)?;
        lines.flush()?;
        Ok(Self {
            lines,
            waiting_since: None,
        })
    }

    /// Adds an input; it reaches the file within a second of input time.
    pub fn push(&mut self, stamped: &Stamped) -> io::Result<()> {
        self.lines.push(&serde_json::to_vec(stamped)?)?;
        let since = *self.waiting_since.get_or_insert(stamped.at);
        if u128::from(stamped.at.since(since)) >= MAX_DELAY.as_nanos() {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes everything.
    pub fn flush(&mut self) -> io::Result<()> {
        self.waiting_since = None;
        self.lines.flush()
    }
}

/// Reads a recording.
pub struct RecordingReader {
    lines: LineReader,
    header: Header,
    torn: Option<String>,
}

impl RecordingReader {
    /// Opens a recording and reads its header; `-` is stdin.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        Self::new(LineReader::open(path)?)
    }

    /// Reads the header of a recording.
    pub fn new(mut lines: LineReader) -> Result<Self, Unreadable> {
        let header = match lines.next_line()? {
            Some(line) => parse_header(line.text),
            None => Err("is empty: a recording begins with its header line".to_owned()),
        }
        .map_err(|problem| lines.unreadable(problem))?;
        Ok(Self {
            lines,
            header,
            torn: None,
        })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next input; `None` at the end.
    pub fn next_input(&mut self) -> Result<Option<Stamped>, Unreadable> {
        let Some(line) = self.lines.next_line()? else {
            if self.lines.is_cut() && self.torn.is_none() {
                self.torn = Some(torn(&self.lines));
            }
            return Ok(None);
        };
        match serde_json::from_slice(line.text) {
            Ok(stamped) => Ok(Some(stamped)),
            Err(_) if !line.is_whole => {
                self.torn = Some(torn(&self.lines));
                Ok(None)
            }
            Err(error) => {
                let number = self.lines.line_number();
                Err(self
                    .lines
                    .unreadable(format!("line {number} is no input of a recording: {error}")))
            }
        }
    }

    /// After the end: one sentence when the end was torn.
    #[must_use]
    pub fn torn(&self) -> Option<&str> {
        self.torn.as_deref()
    }
}

fn torn(lines: &LineReader) -> String {
    format!(
        "{} ends in the middle of line {}, which was skipped",
        lines.file(),
        lines.line_number()
    )
}

fn parse_header(text: &[u8]) -> Result<Header, String> {
    // What tells our kinds of file apart.
    #[derive(Deserialize)]
    struct Kind {
        format: Option<String>,
        schema: Option<String>,
    }
    let foreign =
        || "is no recording: its first line is not a header that `tracer attach --record` writes".to_owned();
    let kind: Kind = serde_json::from_slice(text).map_err(|_| foreign())?;
    if let Some(schema) = kind.schema {
        return Err(format!(
            "is a trace ({schema}), not a recording: read it with `tracer report`"
        ));
    }
    match kind.format.as_deref() {
        Some(FORMAT) => {}
        Some(other) if other.starts_with("tracer-recording/") => {
            return Err(format!(
                "was recorded by a newer tracer ({other}; this one reads {FORMAT})"
            ));
        }
        Some(_) | None => return Err(foreign()),
    }
    serde_json::from_slice(text).map_err(|error| format!("has a damaged header: {error}"))
}

#[cfg(test)]
mod tests;
