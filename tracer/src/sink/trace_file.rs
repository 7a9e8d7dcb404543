//! One output in trace format: a file (`.jsonl`, `.jsonl.zst`), rotated if asked, or stdout.
//!
//! Failures reach the file at once, everything else within a second. Every file begins with a session line and ends
//! with a summary or with the mark that the next file goes on; a file that can no longer be written stays readable as
//! far as it got, and what did not go in is counted.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    clock::Clock,
    event::Ktime,
    lines::{
        plain,
        write::{LineWriter, numbered},
    },
    sink::schema,
};

/// The longest time that a record waits in memory.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Where a trace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// JSON Lines on stdout.
    Stdout,
    /// A file; compressed when its name ends in `.zst`.
    File(PathBuf),
}

/// When a new file is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// Once the file has this many bytes.
    Size(u64),
    /// Once the file is this old.
    Every(Duration),
}

/// Rotation of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// When; `None`: never.
    pub when: Option<Rotate>,
    /// How many finished files to keep beside the current one; `None`: all.
    pub keep: Option<u32>,
}

/// How urgently a record must reach the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// With the next flush, within a second.
    Soon,
    /// As soon as what happened together is written.
    Now,
}

/// An output in trace format.
pub struct TraceFile {
    target: Target,
    rotation: Rotation,
    state: State,
    session: schema::Session,
    part: u32,
    began_at: Ktime,
    waiting_since: Option<Ktime>,
    urgent: bool,
    attempts: u64,
    finished: VecDeque<PathBuf>,
    next_number: u32,
    rotation_failed: bool,
}

enum State {
    Open(LineWriter),
    /// It can no longer be written.
    Broken {
        /// Why, for the user.
        why: String,
        /// The reader of a pipe has gone, which is no fault.
        pipe: bool,
        /// Records that did not go in.
        missed: u64,
    },
}

/// What became of an output, for the closing lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file as the user named it; `None`: stdout.
    pub path: Option<PathBuf>,
    /// Attempts written, over all parts.
    pub attempts: u64,
    /// Bytes in the current file.
    pub bytes: u64,
    /// Files in all; more than one after a rotation.
    pub parts: u32,
    /// Why it could not be written to the end, and how many records are missing.
    pub broken: Option<(String, u64)>,
}

impl TraceFile {
    /// Creates the output; nothing is written before [`Self::begin`].
    pub fn create(target: Target, rotation: Rotation) -> anyhow::Result<Self> {
        let writer = match &target {
            Target::Stdout => LineWriter::stdout(),
            Target::File(path) => LineWriter::create(path)?,
        };
        Ok(Self {
            target,
            rotation,
            state: State::Open(writer),
            session: schema::Session::default(),
            part: 1,
            began_at: Ktime(0),
            waiting_since: None,
            urgent: false,
            attempts: 0,
            finished: VecDeque::new(),
            next_number: 1,
            rotation_failed: false,
        })
    }

    /// Writes the session line, at once.
    pub fn begin(&mut self, session: &schema::Session, now: Ktime) {
        self.session = session.clone();
        self.began_at = now;
        self.write_session(now);
        self.flush();
    }

    /// What the files begun from here on say first.
    pub fn update_session(&mut self, session: &schema::Session) {
        self.session = schema::Session {
            started: self.session.started.clone(),
            ..session.clone()
        };
    }

    fn write_session(&mut self, now: Ktime) {
        let session = schema::Line::Session(schema::Session {
            part: self.part,
            ..self.session.clone()
        });
        if let Ok(line) = serde_json::to_vec(&session) {
            self.write(&line, Urgency::Now, now);
        }
    }

    /// Adds one record, already serialised.
    pub fn write(&mut self, line: &[u8], urgency: Urgency, now: Ktime) {
        let State::Open(writer) = &mut self.state else {
            self.miss(1);
            return;
        };
        self.urgent |= urgency == Urgency::Now;
        self.waiting_since.get_or_insert(now);
        if let Err(error) = writer.push(line) {
            // The line that did not fit, and those that waited before it.
            let lost = writer.lost() + 1;
            self.fail(&error, lost);
        }
    }

    /// Counts an attempt among those written.
    pub fn count_attempt(&mut self) {
        if matches!(self.state, State::Open(_)) {
            self.attempts += 1;
        }
    }

    /// Writes what is due at `now`, and begins a new file if it is time. To be called whenever the tracer has nothing
    /// else to do, and at least every second.
    pub fn settle(&mut self, now: Ktime, clock: Clock) {
        let is_old = self
            .waiting_since
            .is_some_and(|since| now.since(since) >= nanoseconds(MAX_DELAY));
        if self.urgent || is_old {
            self.flush();
        }
        if self.is_time_to_rotate(now) {
            self.rotate(now, clock);
        }
    }

    /// When [`Self::settle`] has something to do at the latest; `None`: nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Ktime> {
        self.waiting_since
            .map(|since| Ktime(since.0.saturating_add(nanoseconds(MAX_DELAY))))
    }

    /// Writes everything.
    pub fn flush(&mut self) {
        self.urgent = false;
        self.waiting_since = None;
        let State::Open(writer) = &mut self.state else {
            return;
        };
        if let Err(error) = writer.flush() {
            let lost = writer.lost();
            self.fail(&error, lost);
        }
    }

    /// The reader of this output has gone away.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        matches!(self.state, State::Broken { pipe: true, .. })
    }

    /// The output takes no more records.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken { .. })
    }

    /// Writes the rest and says what became of the output.
    pub fn finish(mut self) -> Written {
        self.flush();
        let path = match self.target {
            Target::Stdout => None,
            Target::File(path) => Some(path),
        };
        let (bytes, broken) = match self.state {
            State::Open(writer) => (writer.written(), None),
            State::Broken { pipe: true, .. } => (0, None),
            State::Broken { why, missed, .. } => {
                let bytes = path
                    .as_deref()
                    .and_then(|path| fs::metadata(path).ok())
                    .map_or(0, |metadata| metadata.len());
                (bytes, Some((why, missed)))
            }
        };
        Written {
            path,
            attempts: self.attempts,
            bytes,
            parts: self.part,
            broken,
        }
    }

    fn fail(&mut self, error: &io::Error, missed: u64) {
        let pipe = error.kind() == io::ErrorKind::BrokenPipe;
        let why = match error.kind() {
            io::ErrorKind::StorageFull => "the disk is full".to_owned(),
            io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
            io::ErrorKind::FileTooLarge => "the file may not grow any more".to_owned(),
            _ => plain(error),
        };
        if !pipe {
            log::error!(
                "{}: {why}: what it holds stays readable, nothing more is written to it",
                name(&self.target)
            );
        }
        self.state = State::Broken { why, pipe, missed };
    }

    fn miss(&mut self, records: u64) {
        if let State::Broken { missed, .. } = &mut self.state {
            *missed += records;
        }
    }

    fn is_time_to_rotate(&self, now: Ktime) -> bool {
        let State::Open(writer) = &self.state else {
            return false;
        };
        if self.rotation_failed || self.target == Target::Stdout {
            return false;
        }
        match self.rotation.when {
            None => false,
            Some(Rotate::Size(size)) => writer.written() >= size,
            Some(Rotate::Every(period)) => now.since(self.began_at) >= nanoseconds(period),
        }
    }

    /// Ends the current file, gives it its number, and begins the next one under the name the user gave.
    fn rotate(&mut self, now: Ktime, clock: Clock) {
        let Target::File(path) = self.target.clone() else {
            return;
        };
        let parked = self.free_name(&path);
        // The name is given first: until the new file is there, the open one can still go on under any name.
        if let Err(error) = fs::rename(&path, &parked) {
            log::warn!(
                "{}: cannot be rotated: {}: the trace goes on in the same file",
                path.display(),
                plain(&error)
            );
            self.rotation_failed = true;
            return;
        }
        let mark = schema::Line::Event(schema::Event::continued(now, clock));
        if let Ok(line) = serde_json::to_vec(&mark) {
            self.write(&line, Urgency::Now, now);
        }
        self.flush();
        if self.is_broken() {
            return;
        }
        match LineWriter::create(&path) {
            Ok(writer) => self.state = State::Open(writer),
            Err(error) => {
                self.fail(&io::Error::other(format!("{error:#}")), 0);
                return;
            }
        }
        self.part += 1;
        self.began_at = now;
        self.write_session(now);
        self.flush();
        self.finished.push_back(parked);
        self.delete_oldest();
    }

    /// A numbered name that no file has: parts of an earlier trace are never overwritten.
    fn free_name(&mut self, path: &Path) -> PathBuf {
        loop {
            let candidate = numbered(path, self.next_number);
            self.next_number += 1;
            if fs::symlink_metadata(&candidate).is_err() {
                return candidate;
            }
        }
    }

    /// Deletes what exceeds the number of files to keep, of this run's own files only.
    fn delete_oldest(&mut self) {
        let Some(keep) = self.rotation.keep else {
            return;
        };
        while self.finished.len() > keep as usize {
            let Some(oldest) = self.finished.pop_front() else {
                return;
            };
            if let Err(error) = fs::remove_file(&oldest)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{}: cannot be deleted: {}", oldest.display(), plain(&error));
            }
        }
    }
}

fn name(target: &Target) -> String {
    match target {
        Target::Stdout => "stdout".to_owned(),
        Target::File(path) => path.display().to_string(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn session() -> schema::Session {
        schema::Session {
            schema: schema::SCHEMA.to_owned(),
            ..schema::Session::default()
        }
    }

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(ToOwned::to_owned)
            .collect()
    }

    fn open(path: &Path, rotation: Rotation) -> TraceFile {
        let mut file = TraceFile::create(Target::File(path.to_owned()), rotation).unwrap();
        file.begin(&session(), Ktime(0));
        file
    }

    #[test]
    fn a_failure_is_written_at_once_and_the_rest_within_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut file = open(&path, Rotation::default());
        assert_eq!(lines(&path).len(), 1, "the session line is there at once");
        file.write(b"{\"ok\":1}", Urgency::Soon, Ktime(0));
        file.settle(Ktime(SECOND - 1), Clock::default());
        assert_eq!(lines(&path).len(), 1);
        assert_eq!(file.due(), Some(Ktime(SECOND)));
        file.settle(Ktime(SECOND), Clock::default());
        assert_eq!(lines(&path).len(), 2);
        assert_eq!(file.due(), None);
        file.write(b"{\"failed\":1}", Urgency::Now, Ktime(SECOND));
        file.settle(Ktime(SECOND), Clock::default());
        assert_eq!(lines(&path).len(), 3);
    }

    #[test]
    fn rotated_files_each_begin_with_a_session_and_say_that_they_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(folder.path().join("a.1.jsonl"), "somebody else's").unwrap();
        let mut file = open(
            &path,
            Rotation {
                when: Some(Rotate::Every(Duration::from_secs(60))),
                keep: Some(2),
            },
        );
        for minute in 0..5 {
            let now = Ktime(minute * 60 * SECOND);
            file.settle(now, Clock::default());
            file.write(format!("{{\"minute\":{minute}}}").as_bytes(), Urgency::Now, now);
        }
        let written = file.finish();
        assert_eq!(written.parts, 5);
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        // 1 was there before and stays; 2 and 3 were this run's oldest.
        assert_eq!(names, ["a.1.jsonl", "a.4.jsonl", "a.5.jsonl", "a.jsonl"]);
        let part = lines(&folder.path().join("a.4.jsonl"));
        assert_eq!(part.len(), 3);
        assert!(part[0].contains("\"part\":3"), "{}", part[0]);
        assert_eq!(part[1], "{\"minute\":2}");
        assert!(part[2].contains("\"kind\":\"continued\""), "{}", part[2]);
        assert_eq!(lines(&path).len(), 2);
    }

    #[test]
    fn a_file_is_rotated_once_it_is_large_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut file = open(
            &path,
            Rotation {
                when: Some(Rotate::Size(10_000)),
                keep: None,
            },
        );
        for _ in 0..100 {
            file.write(&[b'x'; 999], Urgency::Now, Ktime(0));
            file.settle(Ktime(0), Clock::default());
        }
        let written = file.finish();
        assert!((10..=12).contains(&written.parts), "{}", written.parts);
        for entry in fs::read_dir(folder.path()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() < 12_000);
        }
    }

    #[test]
    fn a_full_disk_ends_the_file_and_counts_what_is_missing() {
        let mut file = open(Path::new("/dev/full"), Rotation::default());
        assert!(file.is_broken());
        assert!(!file.is_abandoned());
        file.write(b"{}", Urgency::Now, Ktime(0));
        file.settle(Ktime(0), Clock::default());
        let written = file.finish();
        // The session's line as well.
        assert_eq!(written.broken, Some(("the disk is full".to_owned(), 2)));
    }
}
