//! Reading lines back, from a file or stdin, plain, zstd or gzip, in bounded memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use flate2::read::MultiGzDecoder;

use super::{ZSTD_MAGIC, plain};

/// No record is nearly as long; what has such a line is no file of ours.
const MAX_LINE: usize = 64 << 20;

/// What a gzip member begins with (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why a file cannot be read: one line for the user.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct Unreadable {
    /// The file.
    pub file: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

/// A file read line by line.
pub struct LineReader {
    file: String,
    input: Box<dyn BufRead>,
    line: Vec<u8>,
    number: u64,
    cut: bool,
}

/// One line of a file.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Its text, without the newline.
    pub text: &'a [u8],
    /// Its newline was there; without it the line may be torn.
    pub is_whole: bool,
}

impl LineReader {
    /// Opens `path`; `-` is stdin. Compression is seen from the content, whatever the name says.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        if path == Path::new("-") {
            return Self::new("stdin", Box::new(io::stdin()));
        }
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Unreadable {
            file: name.clone(),
            problem: format!("cannot be opened: {}", plain(&error)),
        })?;
        Self::new(&name, Box::new(file))
    }

    /// Reads from anything; `name` stands for it in messages.
    pub fn new(name: &str, input: Box<dyn Read>) -> Result<Self, Unreadable> {
        let mut reader = Self {
            file: name.to_owned(),
            input: Box::new(io::empty()),
            line: Vec::new(),
            number: 0,
            cut: false,
        };
        // The magic may come in pieces through a pipe.
        let mut head = Vec::with_capacity(ZSTD_MAGIC.len());
        let mut input = input;
        input
            .by_ref()
            .take(ZSTD_MAGIC.len() as u64)
            .read_to_end(&mut head)
            .map_err(|error| reader.failed(&error))?;
        let (is_zstd, is_gzip) = (head == ZSTD_MAGIC, head.starts_with(&GZIP_MAGIC));
        let whole = io::Cursor::new(head).chain(input);
        reader.input = if is_zstd {
            let frames = zstd::stream::read::Decoder::new(whole).map_err(|error| reader.failed(&error))?;
            Box::new(BufReader::with_capacity(1 << 16, frames))
        } else if is_gzip {
            // Logs that were rotated; files may stand one behind the other.
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(whole)))
        } else {
            Box::new(BufReader::with_capacity(1 << 16, whole))
        };
        Ok(reader)
    }

    /// The next line; `None` at the end. Whether the end is torn is known afterwards ([`Self::is_cut`]).
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, Unreadable> {
        self.line.clear();
        if self.cut {
            return Ok(None);
        }
        let result = self
            .input
            .by_ref()
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut self.line);
        match result {
            Ok(_) => {}
            // What the open frame gave before the cut is still good.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.cut = true,
            Err(error) => return Err(self.failed(&error)),
        }
        self.number += 1;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            return Ok(Some(Line {
                text: &self.line,
                is_whole: true,
            }));
        }
        if self.line.len() >= MAX_LINE {
            return Err(
                self.unreadable("has a line without end: this is neither a trace nor a recording nor a log")
            );
        }
        if self.line.is_empty() {
            return Ok(None);
        }
        Ok(Some(Line {
            text: &self.line,
            is_whole: false,
        }))
    }

    /// The end of the file was in the middle of a compressed frame.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The number of the line read last, from 1.
    #[must_use]
    pub fn line_number(&self) -> u64 {
        self.number
    }

    /// The file's name, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// An error about this file.
    #[must_use]
    pub fn unreadable(&self, problem: impl Into<String>) -> Unreadable {
        Unreadable {
            file: self.file.clone(),
            problem: problem.into(),
        }
    }

    fn failed(&self, error: &io::Error) -> Unreadable {
        let after = match self.number {
            0 => String::new(),
            number => format!(" after line {number}"),
        };
        self.unreadable(format!("cannot be read{after}: {}", plain(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::write::LineWriter;

    /// All lines, which of them are whole, and whether a frame was cut.
    fn read(bytes: Vec<u8>) -> Result<(Vec<String>, bool), Unreadable> {
        let mut reader = LineReader::new("sample", Box::new(io::Cursor::new(bytes)))?;
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line()? {
            let text = String::from_utf8_lossy(line.text).into_owned();
            lines.push(if line.is_whole { text } else { format!("{text}…") });
        }
        Ok((lines, reader.is_cut()))
    }

    /// A compressed file of three frames with two lines each, and where each frame ends.
    fn frames() -> (Vec<u8>, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.zst");
        let mut file = LineWriter::create(&path).unwrap();
        let mut ends = Vec::new();
        for frame in 0..3 {
            for line in 0..2 {
                file.push(format!("frame {frame} line {line}").as_bytes())
                    .unwrap();
            }
            file.flush().unwrap();
            ends.push(usize::try_from(file.written()).unwrap());
        }
        (std::fs::read(path).unwrap(), ends)
    }

    #[test]
    fn a_plain_file_cut_anywhere_loses_at_most_its_last_line() {
        let text = b"one\ntwo\nthree\n";
        for cut in 0..=text.len() {
            let (lines, _) = read(text[..cut].to_vec()).unwrap();
            let whole = text[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(lines[..whole], ["one", "two", "three"][..whole], "cut at {cut}");
            assert!(lines.len() <= whole + 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_compressed_file_cut_anywhere_loses_at_most_its_open_frame() {
        let (bytes, ends) = frames();
        let all: Vec<_> = (0..3)
            .flat_map(|frame| (0..2).map(move |line| format!("frame {frame} line {line}")))
            .collect();
        for cut in 4..=bytes.len() {
            let (lines, is_cut) =
                read(bytes[..cut].to_vec()).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            let whole = 2 * ends.iter().filter(|end| **end <= cut).count();
            assert!(lines.len() >= whole, "cut at {cut}: {lines:?}");
            assert_eq!(lines[..whole], all[..whole], "cut at {cut}");
            assert_eq!(is_cut, !ends.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn gzip_is_read_member_after_member_and_a_cut_is_known() {
        use std::io::Write as _;
        let member = |text: &str| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            packed.write_all(text.as_bytes()).unwrap();
            packed.finish().unwrap()
        };
        let bytes = [member("one\ntwo\n"), member("three\n")].concat();
        let (lines, is_cut) = read(bytes.clone()).unwrap();
        assert_eq!(
            (lines, is_cut),
            (vec!["one".into(), "two".into(), "three".into()], false)
        );
        let (lines, is_cut) = read(bytes[..bytes.len() - 12].to_vec()).unwrap();
        assert_eq!(
            (&lines[..2], is_cut),
            (&["one".to_owned(), "two".to_owned()][..], true)
        );
    }

    #[test]
    fn damage_inside_a_compressed_file_is_said() {
        let (mut bytes, ends) = frames();
        let middle = ends[0] + (ends[1] - ends[0]) / 2;
        bytes[middle] ^= 0xff;
        let error = read(bytes).unwrap_err().to_string();
        assert!(
            error.starts_with("sample: cannot be read after line 2: "),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_one_line() {
        let Err(error) = LineReader::open(Path::new("/nonexistent/trace.jsonl")) else {
            panic!("it does not exist");
        };
        assert_eq!(
            error.to_string(),
            "/nonexistent/trace.jsonl: cannot be opened: no such file or directory"
        );
    }
}
