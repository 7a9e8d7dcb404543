//! Follows the error-log files of an instance through every way they are rotated: renamed and made anew (with nginx
//! still writing to the old one until it reopens), copied and cut, deleted, or not there yet.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use crate::{event::Pid, host::root::Root};

/// Renamed files of one name that are still read; nginx leaves them when it reopens its logs.
const MAX_OLDER: usize = 4;
/// Bytes that one poll takes in; the rest comes with the next.
const MAX_BYTES: usize = 4 << 20;
const CHUNK: usize = 64 << 10;
/// nginx's own lines end at 2048 bytes; what a backend writes to stderr may be longer.
const MAX_LINE: usize = 64 << 10;

/// The error logs of one instance.
#[derive(Debug)]
pub struct Tail {
    root: Option<Root>,
    inotify: Option<Inotify>,
    logs: Vec<Log>,
    unseen: Vec<String>,
    has_more: bool,
    lost: u64,
}

#[derive(Debug)]
struct Log {
    path: String,
    current: Option<Open>,
    older: Vec<Open>,
    is_directory_watched: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: (u64, u64),
    offset: u64,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
    /// The line that is being read is thrown away.
    is_skipping: bool,
}

impl Tail {
    /// Follows the targets of `error_log`, files below the root of `pid`, from their ends; a file that is not there
    /// yet is read from its beginning once it appears.
    #[must_use]
    pub fn open(pid: Pid, targets: &[String]) -> Self {
        let mut tail = Self {
            root: None,
            inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok(),
            logs: vec![],
            unseen: vec![],
            has_more: false,
            lost: 0,
        };
        match Root::of(pid) {
            Ok(root) => tail.root = Some(root),
            Err(error) => {
                tail.unseen
                    .push(format!("error logs of pid {pid}: its root: {error}"));
                return tail;
            }
        }
        for target in targets {
            tail.add(target);
        }
        tail
    }

    fn add(&mut self, target: &str) {
        if target == "stderr" || target.starts_with("syslog:") || target.starts_with("memory:") {
            self.unseen.push(format!("error_log {target}: no file to read"));
            return;
        }
        let mut log = Log {
            path: target.to_owned(),
            current: None,
            older: vec![],
            is_directory_watched: false,
        };
        match self.open_file(target) {
            Ok(mut open) => {
                let is_known = |log: &Log| {
                    log.current
                        .as_ref()
                        .is_some_and(|known| known.inode == open.inode)
                };
                if self.logs.iter().any(is_known) {
                    return;
                }
                open.go_to_end();
                log.current = Some(open);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A terminal, a pipe, or /dev/stderr, which leads to whatever the process has there.
            Err(error) => {
                self.unseen.push(format!("error_log {target}: {error}"));
                return;
            }
        }
        self.logs.push(log);
        self.watch_directories();
    }

    /// Targets whose lines cannot be read, one line each with the reason.
    #[must_use]
    pub fn unseen(&self) -> &[String] {
        &self.unseen
    }

    /// Becomes readable when there may be new lines; `None`: the system gives no such signal. Call [`Self::poll_lines`]
    /// then, and once a second in any case: a directory that is made later gives no signal either.
    #[must_use]
    pub fn wake_fd(&self) -> Option<OwnedFd> {
        self.inotify.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// The last poll stopped at its limit and left lines behind.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Lines that were too long to keep or that were cut away unread, since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Whole lines that were written since the last call, without their ends.
    pub fn poll_lines(&mut self) -> Vec<String> {
        // Which file it was does not matter: a look at each costs less than being wrong about one.
        while self
            .inotify
            .as_ref()
            .is_some_and(|inotify| inotify.read_events().is_ok_and(|seen| !seen.is_empty()))
        {}
        let mut lines = Vec::new();
        let mut budget = MAX_BYTES;
        for index in 0..self.logs.len() {
            let log = &mut self.logs[index];
            for open in log.older.iter_mut().chain(&mut log.current) {
                open.read_lines(&mut lines, &mut budget, &mut self.lost);
            }
            if self.was_replaced(index) && self.reopen(index) {
                let open = self.logs[index].current.iter_mut();
                open.for_each(|open| open.read_lines(&mut lines, &mut budget, &mut self.lost));
            }
        }
        self.has_more = budget == 0;
        self.watch_directories();
        lines
    }

    /// Whether the path now leads to another file than the one being read.
    fn was_replaced(&self, index: usize) -> bool {
        let log = &self.logs[index];
        let Some(Ok(meta)) = self.root.as_ref().map(|root| root.metadata(Path::new(&log.path))) else {
            return false;
        };
        log.current
            .as_ref()
            .is_none_or(|open| open.inode != (meta.dev(), meta.ino()))
    }

    fn reopen(&mut self, index: usize) -> bool {
        let Ok(open) = self.open_file(&self.logs[index].path) else {
            return false;
        };
        let log = &mut self.logs[index];
        if let Some(older) = log.current.replace(open) {
            log.older.push(older);
        }
        if log.older.len() > MAX_OLDER {
            log.older.remove(0);
        }
        true
    }

    fn open_file(&self, path: &str) -> io::Result<Open> {
        let root = self.root.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let file = root.open_file(Path::new(path))?;
        let meta = file.metadata()?;
        if let Some(inotify) = &self.inotify {
            let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ATTRIB;
            // Without a watch the line is still read, up to a second later.
            let _ = inotify.add_watch(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), flags);
        }
        Ok(Open {
            file,
            inode: (meta.dev(), meta.ino()),
            offset: 0,
            partial: vec![],
            is_skipping: false,
        })
    }

    /// A new file under the name is announced by its directory.
    fn watch_directories(&mut self) {
        let (Some(root), Some(inotify)) = (&self.root, &self.inotify) else {
            return;
        };
        for log in self.logs.iter_mut().filter(|log| !log.is_directory_watched) {
            let directory = Path::new(&log.path).parent().unwrap_or(Path::new("/"));
            let Ok(directory) = root.open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY) else {
                continue;
            };
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
            log.is_directory_watched = inotify.add_watch(Path::new(&path), flags).is_ok();
        }
    }
}

impl Open {
    fn go_to_end(&mut self) {
        self.offset = self.file.metadata().map_or(0, |meta| meta.len());
        let mut last = [b'\n'];
        if self.offset > 0 {
            let _ = self.file.read_exact_at(&mut last, self.offset - 1);
        }
        // The rest of a line whose beginning was not read says nothing.
        self.is_skipping = last != [b'\n'];
    }

    fn read_lines(&mut self, lines: &mut Vec<String>, budget: &mut usize, lost: &mut u64) {
        if self.file.metadata().is_ok_and(|meta| meta.len() < self.offset) {
            // Copied and cut: it begins anew.
            self.offset = 0;
            *lost += u64::from(!self.partial.is_empty());
            self.partial.clear();
            self.is_skipping = false;
        }
        let mut chunk = vec![0; CHUNK];
        while *budget > 0 {
            let wanted = chunk.len().min(*budget);
            let Ok(length @ 1..) = self.file.read_at(&mut chunk[..wanted], self.offset) else {
                return;
            };
            self.offset += length as u64;
            *budget -= length;
            for piece in chunk[..length].split_inclusive(|&byte| byte == b'\n') {
                self.take(piece, lines, lost);
            }
        }
    }

    fn take(&mut self, piece: &[u8], lines: &mut Vec<String>, lost: &mut u64) {
        let is_whole = piece.ends_with(b"\n");
        if !self.is_skipping {
            self.partial.extend_from_slice(piece);
            if self.partial.len() > MAX_LINE {
                self.partial.clear();
                self.is_skipping = true;
                *lost += 1;
            }
        }
        if !is_whole {
            return;
        }
        if !self.is_skipping {
            let line = self.partial.strip_suffix(b"\n").unwrap_or(&self.partial);
            lines.push(String::from_utf8_lossy(line).into_owned());
        }
        self.partial.clear();
        self.is_skipping = false;
    }
}
