//! Reading traces back: every older `tracer/1` file, in the memory of one line.
//!
//! Unknown fields and unknown types of record are skipped; a torn end is skipped and said; anything else that is no
//! trace is an error of one line.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};

use super::schema::{Event, Line, SCHEMA};
use crate::lines::read::{LineReader, Unreadable};

/// Reads a trace record by record.
pub struct TraceReader {
    lines: LineReader,
    torn: Option<String>,
    has_begun: bool,
}

/// What tells our lines apart.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: Option<String>,
    schema: Option<String>,
    format: Option<String>,
}

impl TraceReader {
    /// Opens a trace; `-` is stdin.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        Ok(Self::new(LineReader::open(path)?))
    }

    /// Reads a trace from lines.
    #[must_use]
    pub fn new(lines: LineReader) -> Self {
        Self {
            lines,
            torn: None,
            has_begun: false,
        }
    }

    /// The file's name, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        self.lines.file()
    }

    /// The next record; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<Line>, Unreadable> {
        loop {
            let Some(line) = self.lines.next_line()? else {
                return self.end();
            };
            let is_whole = line.is_whole;
            let parsed = if self.has_begun {
                parse(line.text)
            } else {
                parse_first(line.text)
            };
            match parsed {
                Ok(Some(record)) => {
                    self.has_begun = true;
                    return Ok(Some(record));
                }
                Ok(None) => {}
                Err(_) if !is_whole && self.has_begun => {
                    self.torn = Some(self.torn_sentence());
                    return Ok(None);
                }
                Err(problem) => {
                    let problem = if self.has_begun {
                        format!("line {} is damaged: {problem}", self.lines.line_number())
                    } else {
                        problem
                    };
                    return Err(self.lines.unreadable(problem));
                }
            }
        }
    }

    fn end(&mut self) -> Result<Option<Line>, Unreadable> {
        if !self.has_begun {
            let problem = if self.lines.is_cut() {
                "is cut off before its first line: it holds nothing to read"
            } else {
                "is empty: a trace begins with its session line"
            };
            return Err(self.lines.unreadable(problem));
        }
        if self.lines.is_cut() && self.torn.is_none() {
            self.torn = Some(self.torn_sentence());
        }
        Ok(None)
    }

    fn torn_sentence(&self) -> String {
        format!(
            "{} ends in the middle of line {}, which was skipped",
            self.lines.file(),
            self.lines.line_number()
        )
    }

    /// After the end: one sentence when the end was torn.
    #[must_use]
    pub fn torn(&self) -> Option<&str> {
        self.torn.as_deref()
    }
}

/// The first line must be a session of this format.
fn parse_first(text: &[u8]) -> Result<Option<Line>, String> {
    let foreign = "is no trace: its first line is not the session line that tracer writes";
    let kind: Kind = serde_json::from_slice(text).map_err(|_| foreign.to_owned())?;
    if let Some(format) = kind
        .format
        .filter(|format| format.starts_with("tracer-recording/"))
    {
        return Err(format!(
            "is a recording ({format}), not a trace: read it with `tracer replay`"
        ));
    }
    match (kind.kind.as_deref(), kind.schema.as_deref()) {
        (Some("session"), Some(SCHEMA)) => parse(text),
        (Some("session"), Some(other)) if other.starts_with("tracer/") => Err(format!(
            "was written by a newer tracer (schema {other}; this one reads {SCHEMA})"
        )),
        _ => Err(foreign.to_owned()),
    }
}

/// One record; `None`: of a type that this program does not know.
fn parse(text: &[u8]) -> Result<Option<Line>, String> {
    fn record<T: DeserializeOwned>(text: &[u8], line: fn(T) -> Line) -> Result<Option<Line>, String> {
        serde_json::from_slice(text)
            .map(|record| Some(line(record)))
            .map_err(|error| error.to_string())
    }
    // Nearly every line is an attempt, and `type` comes first in all that we write.
    if text.starts_with(b"{\"type\":\"attempt\",") {
        return record(text, Line::Attempt);
    }
    let kind: Kind = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match kind.kind.as_deref() {
        // Traces of several files may stand one behind the other.
        Some("session") if kind.schema.as_deref() != Some(SCHEMA) => Err(format!(
            "a session of another schema begins here; this tracer reads {SCHEMA}"
        )),
        Some("session") => record(text, Line::Session),
        Some("attempt") => record(text, Line::Attempt),
        Some("event") => record(text, |mut event: Event| {
            // Read on its own, an event takes its type for one of its details.
            event.fields.remove("type");
            Line::Event(event)
        }),
        Some("finding") => record(text, Line::Finding),
        Some("lost") => record(text, Line::Lost),
        Some("summary") => record(text, Line::Summary),
        Some(_) => Ok(None),
        None => Err("it has no type".to_owned()),
    }
}

#[cfg(test)]
mod tests;
