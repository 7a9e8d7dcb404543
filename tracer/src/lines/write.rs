//! Writing lines to a file or to stdout, whole lines at a time.
//!
//! Lines collect in memory until [`LineWriter::flush`]. A compressed file gets one zstd frame per flush, so that a cut
//! at any byte costs at most the open frame. When a write fails half way (full disk), the torn end is cut off again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::anyhow;

use super::plain;

/// Lines held back at most, in bytes, before they are written without being asked.
/// So much stays in a processor's own cache until it is compressed, and larger frames come out hardly smaller.
const MAX_PENDING: usize = 1 << 18;

/// The fastest level: lines of a trace are so much alike that the higher ones take longer and save nothing.
const LEVEL: i32 = 1;

/// A file that is written line by line.
pub struct LineWriter {
    output: Output,
    frames: Option<zstd::bulk::Compressor<'static>>,
    pending: Vec<u8>,
    written: u64,
    lost: u64,
}

enum Output {
    /// A regular file, which can be cut back.
    File(File),
    /// A pipe, a terminal or a device.
    Stream(Box<dyn Write>),
}

impl LineWriter {
    /// Creates the file at `path`, compressed when its name ends in `.zst`; what it held before is gone.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let failed = |error: io::Error| anyhow!("cannot write {}: {}", path.display(), plain(&error));
        // Truncated only once it is known to be a regular file: a FIFO or /dev/null has nothing to cut.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let frames = if path.extension().is_some_and(|extension| extension == "zst") {
            Some(compressor().map_err(failed)?)
        } else {
            None
        };
        let output = if file.metadata().map_err(failed)?.is_file() {
            file.set_len(0).map_err(failed)?;
            Output::File(file)
        } else {
            Output::Stream(Box::new(file))
        };
        Ok(Self::new(output, frames))
    }

    /// Writes lines to stdout.
    #[must_use]
    pub fn stdout() -> Self {
        Self::new(Output::Stream(Box::new(io::stdout())), None)
    }

    fn new(output: Output, frames: Option<zstd::bulk::Compressor<'static>>) -> Self {
        Self {
            output,
            frames,
            pending: Vec::new(),
            written: 0,
            lost: 0,
        }
    }

    /// Adds one line, given without its newline; it reaches the file with the next flush at the latest.
    pub fn push(&mut self, line: &[u8]) -> io::Result<()> {
        if self.pending.len() + line.len() >= MAX_PENDING {
            self.flush()?;
        }
        self.pending.extend_from_slice(line);
        self.pending.push(b'\n');
        Ok(())
    }

    /// Whether lines wait for a flush.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Bytes in the file.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Lines that were pushed and that a failed flush did not get into the file.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes what waits. After an error the file ends with the last whole line that went in, and what waited is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let result = match &mut self.frames {
            None => self.output.append(&self.pending, self.written, Unit::Line),
            Some(frames) => frames
                .compress(&self.pending)
                .map_err(Failed::whole)
                .and_then(|frame| self.output.append(&frame, self.written, Unit::Frame)),
        };
        if let Err(failed) = &result {
            let lines = self.pending[failed.kept..].iter().filter(|byte| **byte == b'\n');
            self.lost += lines.count() as u64;
        }
        self.pending.clear();
        // A burst is no reason to keep its memory.
        self.pending.shrink_to(MAX_PENDING);
        self.written += result.map_err(|failed| failed.error)?;
        Ok(())
    }
}

/// A write that failed.
struct Failed {
    error: io::Error,
    /// How many of the bytes, all of whole lines, are in the file nevertheless.
    kept: usize,
}

impl Failed {
    fn whole(error: io::Error) -> Self {
        Self { error, kept: 0 }
    }
}

/// What must not be cut in two.
#[derive(Clone, Copy)]
enum Unit {
    Line,
    Frame,
}

impl Output {
    /// Appends `bytes` behind the `length` bytes that are there, and yields how many were added.
    fn append(&mut self, bytes: &[u8], length: u64, unit: Unit) -> Result<u64, Failed> {
        let file = match self {
            Self::Stream(stream) => {
                stream
                    .write_all(bytes)
                    .and_then(|()| stream.flush())
                    .map_err(Failed::whole)?;
                return Ok(bytes.len() as u64);
            }
            Self::File(file) => file,
        };
        let mut done = 0;
        while done < bytes.len() {
            match file.write(&bytes[done..]) {
                Ok(0) => {
                    return Err(cut_back(
                        file,
                        bytes,
                        done,
                        length,
                        unit,
                        io::ErrorKind::WriteZero.into(),
                    ));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cut_back(file, bytes, done, length, unit, error)),
            }
        }
        Ok(done as u64)
    }
}

/// Removes the torn end that a failed write left behind; yields the error that the caller reports.
fn cut_back(file: &mut File, bytes: &[u8], done: usize, length: u64, unit: Unit, error: io::Error) -> Failed {
    let whole = match unit {
        Unit::Frame => 0,
        Unit::Line => bytes[..done]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1),
    };
    let end = length + whole as u64;
    // When even this fails the readers' own tolerance of a torn end is what remains.
    let _ = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
    Failed { error, kept: whole }
}

fn compressor() -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

/// `trace.jsonl.zst` and 3 → `trace.3.jsonl.zst`: the name of a finished part beside the file being written.
#[must_use]
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // The stem may itself have dots, so the known extensions are looked for from the end.
    let split = [".jsonl.zst", ".jsonl"]
        .iter()
        .find(|extension| name.ends_with(**extension))
        .map_or(name.len(), |extension| name.len() - extension.len());
    path.with_file_name(format!("{}.{number}{}", &name[..split], &name[split..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_numbered_before_its_extension() {
        let numbered = |path: &str| numbered(Path::new(path), 3).display().to_string();
        assert_eq!(numbered("/var/a.b/trace.jsonl.zst"), "/var/a.b/trace.3.jsonl.zst");
        assert_eq!(numbered("my.trace.jsonl"), "my.trace.3.jsonl");
        assert_eq!(numbered("odd"), "odd.3");
    }

    #[test]
    fn an_older_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "something much longer than what comes\n").unwrap();
        let mut file = LineWriter::create(&path).unwrap();
        file.push(b"{}").unwrap();
        file.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}\n");
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_a_torn_line() {
        // /dev/full takes no byte; it is no regular file, so this shows the error alone.
        let mut file = LineWriter::create(Path::new("/dev/full")).unwrap();
        file.push(b"{}").unwrap();
        let error = file.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!file.is_pending());
    }

    #[test]
    fn a_failed_write_leaves_whole_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut file = LineWriter::create(&path).unwrap();
        file.push(b"one").unwrap();
        file.flush().unwrap();
        let Output::File(inner) = &mut file.output else {
            panic!("a regular file");
        };
        // As if the disk had taken 9 of these bytes: one line whole, the next one torn.
        inner.write_all(b"two\nthree").unwrap();
        let failed = cut_back(
            inner,
            b"two\nthree and more\n",
            9,
            4,
            Unit::Line,
            io::ErrorKind::StorageFull.into(),
        );
        assert_eq!(
            (failed.error.kind(), failed.kept),
            (io::ErrorKind::StorageFull, 4)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
