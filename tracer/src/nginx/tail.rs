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
    /// How far before its end a file that is there already is read.
    back: u64,
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
        Self::open_back(pid, targets, 0)
    }

    /// As [`Self::open`], beginning so many bytes before the end of a file: at a line that is whole.
    #[must_use]
    pub fn open_back(pid: Pid, targets: &[String], back: u64) -> Self {
        let mut tail = Self {
            back,
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
                open.go_to_end(self.back);
                log.current = Some(open);
            }
            // /dev/stderr and what links to it, as in containers: it leads to whatever the reader has there.
            Err(_) if self.is_link(target) => {
                self.unseen.push(format!(
                    "error_log {target}: a link to no file, maybe to nginx's standard error"
                ));
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.unseen.push(format!("error_log {target}: {error}"));
                return;
            }
        }
        self.logs.push(log);
        self.watch_directories();
    }

    fn is_link(&self, path: &str) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let opened = self
            .root
            .as_ref()
            .and_then(|root| root.open(Path::new(path), flags).ok());
        opened.is_some_and(|opened| File::from(opened).metadata().is_ok_and(|meta| meta.is_symlink()))
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
    fn go_to_end(&mut self, back: u64) {
        let length = self.file.metadata().map_or(0, |meta| meta.len());
        self.offset = length.saturating_sub(back);
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

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::PathBuf, time::Duration};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    struct Logs {
        directory: tempfile::TempDir,
    }

    impl Logs {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().expect("a temporary directory"),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let mut file = File::options()
                .append(true)
                .create(true)
                .open(self.path(name))
                .expect("a log");
            file.write_all(text.as_bytes()).expect("space");
        }

        fn follow(&self, names: &[&str]) -> Tail {
            let target = |name: &&str| match name.contains(':') || *name == "stderr" || name.starts_with('/')
            {
                true => (*name).to_owned(),
                false => self.path(name).to_string_lossy().into_owned(),
            };
            Tail::open(
                Pid(std::process::id()),
                &names.iter().map(target).collect::<Vec<_>>(),
            )
        }
    }

    #[test]
    fn only_new_and_whole_lines_are_read() {
        let logs = Logs::new();
        logs.write("a", "old\n");
        let mut tail = logs.follow(&["a"]);
        assert_eq!(tail.poll_lines(), [""; 0]);
        logs.write("a", "one\ntwo\nthr");
        assert_eq!(tail.poll_lines(), ["one", "two"]);
        logs.write("a", "ee\n\n");
        assert_eq!(tail.poll_lines(), ["three", ""]);
        assert_eq!(tail.poll_lines(), [""; 0]);
    }

    #[test]
    fn the_rest_of_a_line_from_before_is_left_out() {
        let logs = Logs::new();
        logs.write("a", "old, half");
        let mut tail = logs.follow(&["a"]);
        logs.write("a", " and half\nnew\n");
        assert_eq!(tail.poll_lines(), ["new"]);
    }

    #[test]
    fn a_renamed_log_is_read_until_nginx_leaves_it() {
        let logs = Logs::new();
        logs.write("a", "old\n");
        let mut tail = logs.follow(&["a"]);
        fs::rename(logs.path("a"), logs.path("a.1")).expect("a log");
        logs.write("a.1", "still here\n");
        assert_eq!(tail.poll_lines(), ["still here"]);
        logs.write("a", "new\n");
        logs.write("a.1", "last\n");
        assert_eq!(tail.poll_lines(), ["last", "new"]);
        logs.write("a.1", "late\n");
        logs.write("a", "newer\n");
        assert_eq!(tail.poll_lines(), ["late", "newer"]);
        for turn in 0..10 {
            fs::rename(logs.path("a"), logs.path(&format!("a.{turn}"))).expect("a log");
            logs.write("a", &format!("{turn}\n"));
            assert_eq!(tail.poll_lines(), [turn.to_string()]);
        }
        assert!(tail.logs[0].older.len() <= MAX_OLDER);
    }

    #[test]
    fn a_log_that_is_copied_and_cut_begins_anew() {
        let logs = Logs::new();
        logs.write("a", "a long old line\n");
        let mut tail = logs.follow(&["a"]);
        logs.write("a", "one\nhalf");
        assert_eq!(tail.poll_lines(), ["one"]);
        File::options()
            .write(true)
            .open(logs.path("a"))
            .and_then(|file| file.set_len(0))
            .expect("cut");
        logs.write("a", "two\n");
        assert_eq!(tail.poll_lines(), ["two"]);
        assert_eq!(tail.take_lost(), 1, "the half line is gone");
        assert_eq!(tail.take_lost(), 0);
    }

    #[test]
    fn a_log_that_appears_later_is_read_from_its_beginning() {
        let logs = Logs::new();
        let mut tail = logs.follow(&["a", "later/b"]);
        assert_eq!(tail.unseen(), [""; 0]);
        assert_eq!(tail.poll_lines(), [""; 0]);
        logs.write("a", "one\n");
        fs::create_dir(logs.path("later")).expect("a directory");
        logs.write("later/b", "two\n");
        assert_eq!(tail.poll_lines(), ["one", "two"]);
        fs::remove_file(logs.path("a")).expect("a log");
        assert_eq!(tail.poll_lines(), [""; 0]);
        logs.write("a", "three\n");
        assert_eq!(tail.poll_lines(), ["three"]);
    }

    #[test]
    fn targets_that_are_no_files_are_told() {
        let logs = Logs::new();
        nix::unistd::mkfifo(&logs.path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let tail = logs.follow(&[
            "stderr",
            "syslog:server=unix:/dev/log",
            "memory:32m",
            "pipe",
            "/dev/null",
        ]);
        let directory = logs.directory.path().display();
        assert_eq!(
            tail.unseen(),
            [
                "error_log stderr: no file to read".to_owned(),
                "error_log syslog:server=unix:/dev/log: no file to read".to_owned(),
                "error_log memory:32m: no file to read".to_owned(),
                format!("error_log {directory}/pipe: not a regular file"),
                "error_log /dev/null: not a regular file".to_owned(),
            ]
        );
        // Through such a link a container's log leads to whatever the reader has there: it must not be followed.
        for target in ["/proc/self/fd/2", "/proc/self/no/such"] {
            let link = logs.path("link");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link).expect("a link");
            let tail = logs.follow(&["link"]);
            let told =
                format!("error_log {directory}/link: a link to no file, maybe to nginx's standard error");
            assert_eq!(tail.unseen(), [told], "{target}");
        }
    }

    #[test]
    fn one_file_under_two_names_is_read_once() {
        let logs = Logs::new();
        logs.write("a", "");
        std::os::unix::fs::symlink("a", logs.path("b")).expect("a link");
        let mut tail = logs.follow(&["a", "b"]);
        logs.write("a", "one\n");
        assert_eq!(tail.poll_lines(), ["one"]);
    }

    #[test]
    fn too_much_at_once_comes_in_turns_and_too_long_a_line_is_counted() {
        let logs = Logs::new();
        logs.write("a", "");
        let mut tail = logs.follow(&["a"]);
        logs.write("a", &format!("{}\nshort\n", "x".repeat(MAX_LINE + 10)));
        assert_eq!(tail.poll_lines(), ["short"]);
        assert_eq!(tail.take_lost(), 1);
        let line = "y".repeat(1023) + "\n";
        logs.write("a", &line.repeat(5000));
        let mut count = 0;
        let mut turns = 0;
        while count < 5000 && turns < 10 {
            count += tail.poll_lines().len();
            turns += 1;
            assert_eq!(tail.has_more(), count < 5000, "{count}");
        }
        assert_eq!((count, turns), (5000, 2));
    }

    #[test]
    fn it_wakes_its_reader() {
        let logs = Logs::new();
        logs.write("a", "");
        let mut tail = logs.follow(&["a", "b"]);
        let wake = tail.wake_fd().expect("Linux has inotify");
        let is_woken = |patience: Duration| {
            let mut waited = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
            poll(&mut waited, PollTimeout::try_from(patience).expect("short")).expect("it can be waited for")
                == 1
        };
        let _ = tail.poll_lines();
        assert!(!is_woken(Duration::ZERO));
        for name in ["a", "b", "a"] {
            logs.write(name, "x\n");
            assert!(is_woken(Duration::from_secs(10)), "{name}");
            assert_eq!(tail.poll_lines(), ["x"]);
        }
    }
}
