//! Files as another process sees them: opened below its root directory, so that no symlink and no `..` of its file
//! system can lead into ours.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

use crate::event::Pid;

/// A directory listing longer than this is cut: nothing nginx includes lives in such a directory.
const MAX_ENTRIES: usize = 10_000;

/// Tries of one open: the kernel answers EAGAIN when a rename elsewhere made it unsure about a `..`.
const MAX_TRIES: u32 = 8;

/// The root directory of a process.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// The root of process `pid`.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Self::below(Path::new(&format!("/proc/{pid}/root")))
    }

    /// This program's own root.
    pub fn own() -> io::Result<Self> {
        Self::below(Path::new("/"))
    }

    /// This directory as if it were a root.
    pub fn below(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty())?;
        Ok(Self { directory })
    }

    /// Opens a regular file for reading; anything else (a pipe, a terminal, a directory) is refused.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        // Without O_NONBLOCK opening a pipe would wait for its writer.
        let file = File::from(self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
        let kind = file.metadata()?.file_type();
        if kind.is_file() {
            Ok(file)
        } else if kind.is_dir() {
            Err(Errno::EISDIR.into())
        } else {
            Err(io::Error::other("not a regular file"))
        }
    }

    /// The content of a regular file of at most `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(path)?.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::other(format!("larger than {limit} bytes")));
        }
        Ok(content)
    }

    /// What `path` is, symlinks followed.
    pub fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        File::from(self.open(path, OFlag::O_PATH)?).metadata()
    }

    /// The names in a directory, unsorted.
    pub fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let directory = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?
            .take(MAX_ENTRIES)
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect()
    }

    /// Opens `path`, absolute or counted from the root.
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let mut tries = 0;
        loop {
            tries += 1;
            match openat2(&self.directory, path, how) {
                Ok(opened) => return Ok(opened),
                Err(Errno::EAGAIN) if tries < MAX_TRIES => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The directory itself, for walks component by component.
    #[must_use]
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }
}
