//! A unix socket's path as an nginx worker meets it: every component, whether the worker may pass it, and which
//! sockets are bound there.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno as KernelErrno,
    fcntl::{OFlag, open, openat, readlinkat},
    sys::stat::Mode,
};

use crate::{
    event::{Errno, PathComponent, Pid, UnixPath, UnixSocket},
    host::{OWNER_SEARCH, netns, process, root::Root, sock_diag},
};

/// The kernel follows no more symlinks than this in one path.
const MAX_SYMLINKS: u32 = 40;
/// A path of 107 bytes has no more components, but symlinks may lengthen it.
const MAX_COMPONENTS: usize = 256;
/// Other namespaces are searched for this long.
const NAMESPACE_SEARCH: Duration = Duration::from_millis(500);

/// The answer to [`crate::event::Question::UnixPath`].
pub fn look_at(pid: Pid, path: &str, wants_sockets: bool) -> io::Result<UnixPath> {
    let credentials = Credentials::of(pid)?;
    let walk = Walk::along(pid, path, &credentials)?;
    let file = walk
        .components
        .last()
        .filter(|_| walk.stopped.is_none())
        .map(|last| last.inode);
    let sockets = if wants_sockets {
        let removed = walk.end.as_ref().and_then(|end| removed_place(pid, end));
        bound_sockets(pid, path, file, removed.as_deref())
    } else {
        vec![]
    };
    Ok(UnixPath {
        sockets,
        components: walk.components,
        stopped: walk.stopped,
        credentials: (
            credentials.uid,
            credentials.gid,
            credentials.groups,
            credentials.may_override,
        ),
    })
}

/// What a worker may do to files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// `CAP_DAC_OVERRIDE`.
    may_override: bool,
    /// `CAP_DAC_READ_SEARCH`.
    may_search: bool,
    /// The ids that exist in its user namespace; its capabilities reach no further.
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
}

impl Credentials {
    fn of(pid: Pid) -> io::Result<Self> {
        let line =
            |name| process::status_line(pid, name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let numbers = |text: String| -> Vec<u32> {
            text.split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        // Real, effective, saved, and the one that file access goes by.
        let file_id = |text| {
            numbers(text)
                .get(3)
                .copied()
                .ok_or_else(|| io::Error::other("no ids in its status"))
        };
        let capabilities = u64::from_str_radix(&line("CapEff")?, 16).map_err(io::Error::other)?;
        Ok(Self {
            uid: file_id(line("Uid")?)?,
            gid: file_id(line("Gid")?)?,
            groups: numbers(line("Groups")?),
            may_override: capabilities & 1 << 1 != 0,
            may_search: capabilities & 1 << 2 != 0,
            uids: id_ranges(&format!("/proc/{pid}/uid_map")),
            gids: id_ranges(&format!("/proc/{pid}/gid_map")),
        })
    }

    /// Whether access with these bits (4 read, 2 write, 1 search) is granted.
    fn may(&self, wanted: u32, meta: &Metadata, acl: Option<&[u8]>) -> bool {
        let is_mine = |group: u32| group == self.gid || self.groups.contains(&group);
        let mode = meta.mode();
        let granted = if meta.uid() == self.uid {
            mode >> 6 & wanted == wanted
        } else {
            match acl.and_then(|acl| self.acl_grants(wanted, meta, acl)) {
                Some(granted) => granted,
                None if is_mine(meta.gid()) => mode >> 3 & wanted == wanted,
                None => mode & wanted == wanted,
            }
        };
        let within = |ranges: &[(u32, u32)], id: u32| {
            ranges
                .iter()
                .any(|(first, count)| id.wrapping_sub(*first) < *count)
        };
        let reaches = within(&self.uids, meta.uid()) && within(&self.gids, meta.gid());
        let overrides = self.may_override || (self.may_search && meta.is_dir() && wanted & 2 == 0);
        granted || (overrides && reaches)
    }

    /// What an access control list says for everybody but the owner; `None`: not readable.
    fn acl_grants(&self, wanted: u32, meta: &Metadata, acl: &[u8]) -> Option<bool> {
        const USER: u16 = 0x02;
        const GROUP_OWNER: u16 = 0x04;
        const GROUP: u16 = 0x08;
        const MASK: u16 = 0x10;
        const OTHER: u16 = 0x20;
        if acl.first_chunk() != Some(&2_u32.to_le_bytes()) {
            return None;
        }
        let entries: Vec<(u16, u32, u32)> = acl[4..]
            .chunks_exact(8)
            .map(|entry| {
                let short = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
                let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
                (short(0), u32::from(short(2)), id)
            })
            .collect();
        let permits = |bits: u32| bits & wanted == wanted;
        let of = |tag| entries.iter().filter(move |entry| entry.0 == tag);
        let mask = of(MASK).map(|entry| entry.1).next().unwrap_or(7);
        if let Some((_, bits, _)) = of(USER).find(|entry| entry.2 == self.uid) {
            return Some(permits(bits & mask));
        }
        let is_mine = |group: u32| group == self.gid || self.groups.contains(&group);
        let owning = of(GROUP_OWNER).filter(|_| is_mine(meta.gid()));
        let mut groups = owning
            .chain(of(GROUP).filter(|entry| is_mine(entry.2)))
            .peekable();
        if groups.peek().is_some() {
            return Some(groups.any(|(_, bits, _)| permits(bits & mask)));
        }
        of(OTHER).map(|(_, bits, _)| permits(*bits)).next()
    }
}

/// Ranges of ids as the host counts them: first and length.
fn id_ranges(path: &str) -> Vec<(u32, u32)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let range = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().skip(1).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    text.lines().filter_map(range).collect()
}

/// A walk along a path, as the kernel does it for the worker.
struct Walk {
    components: Vec<PathComponent>,
    stopped: Option<(String, Errno)>,
    /// What is at its end.
    end: Option<OwnedFd>,
}

impl Walk {
    fn along(pid: Pid, path: &str, credentials: &Credentials) -> io::Result<Self> {
        let root = Root::of(pid)?;
        let root_inode = inode(root.directory())?;
        let mut walk = Self {
            components: vec![],
            stopped: None,
            end: None,
        };
        let (mut here, mut here_path) = if path.starts_with('/') {
            (root.directory().try_clone()?, String::from("/"))
        } else {
            let link = format!("/proc/{pid}/cwd");
            let directory = open(Path::new(&link), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            (directory, fs::read_link(&link)?.to_string_lossy().into_owned())
        };
        walk.add(&here, &here_path, credentials, true)?;
        let mut left: VecDeque<String> = path.split('/').map(str::to_owned).collect();
        let mut symlinks = 0;
        while let Some(name) = left.pop_front() {
            let is_last = left.iter().all(|name| name.is_empty() || name == ".");
            let below = match name.as_str() {
                "" | "." => continue,
                ".." if inode(&here)? == root_inode => continue,
                ".." => parent(&here_path),
                _ => format!("{}/{name}", here_path.trim_end_matches('/')),
            };
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let next = match openat(&here, name.as_str(), flags, Mode::empty()) {
                Ok(next) => next,
                Err(errno) => {
                    walk.stopped = Some((below, Errno(errno as i32)));
                    break;
                }
            };
            let meta = metadata(&next)?;
            if meta.is_symlink() {
                walk.add(&next, &below, credentials, false)?;
                symlinks += 1;
                if symlinks > MAX_SYMLINKS || walk.components.len() > MAX_COMPONENTS {
                    walk.stopped = Some((below, Errno(KernelErrno::ELOOP as i32)));
                    break;
                }
                let target = readlinkat(&next, "")?.to_string_lossy().into_owned();
                if target.starts_with('/') {
                    here = root.directory().try_clone()?;
                    here_path = String::from("/");
                }
                for name in target.split('/').rev() {
                    left.push_front(name.to_owned());
                }
                continue;
            }
            if name != ".." {
                walk.add(&next, &below, credentials, !is_last)?;
            }
            if !meta.is_dir() && !is_last {
                walk.stopped = Some((below, Errno(KernelErrno::ENOTDIR as i32)));
                break;
            }
            here = next;
            here_path = below;
        }
        walk.end = Some(here).filter(|_| walk.stopped.is_none());
        Ok(walk)
    }

    fn add(
        &mut self,
        file: &OwnedFd,
        path: &str,
        credentials: &Credentials,
        is_passed: bool,
    ) -> io::Result<()> {
        let meta = metadata(file)?;
        let kind = meta.file_type();
        let allowed = if kind.is_symlink() {
            // The kernel asks nobody's leave to follow one.
            true
        } else {
            let acl = xattr::get_deref(
                format!("/proc/self/fd/{}", file.as_raw_fd()),
                "system.posix_acl_access",
            );
            // connect() needs to search every directory on its way and to write what it finds.
            credentials.may(
                if is_passed { 1 } else { 2 },
                &meta,
                acl.ok().flatten().as_deref(),
            )
        };
        self.components.push(PathComponent {
            path: path.to_owned(),
            kind: match () {
                () if kind.is_dir() => "directory",
                () if kind.is_socket() => "socket",
                () if kind.is_file() => "file",
                () if kind.is_symlink() => "symlink",
                () => "other",
            }
            .to_owned(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            inode: (meta.dev(), meta.ino()),
            allowed,
        });
        Ok(())
    }
}

fn metadata(file: &OwnedFd) -> io::Result<Metadata> {
    File::from(file.try_clone()?).metadata()
}

fn inode(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let meta = metadata(file)?;
    Ok((meta.dev(), meta.ino()))
}

fn parent(path: &str) -> String {
    match path.trim_end_matches('/').rfind('/') {
        Some(0) | None => "/".to_owned(),
        Some(at) => path[..at].to_owned(),
    }
}

/// What `/proc/PID/mountinfo` says of the mount that a file was opened on: where the mount's root lies in its file system,
/// and where it is mounted.
fn mount_of(pid: Pid, file: &OwnedFd) -> Option<(String, String)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    mounts.lines().find_map(|mount| {
        let mut fields = mount.split(' ');
        let is_it = fields.next()? == id;
        let (root, place) = (fields.nth(2)?, fields.next()?);
        is_it.then(|| (unescaped(root), unescaped(place)))
    })
}

/// The kernel writes blanks and backslashes in octal, as `\040`.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// Where in its file system a file was that is mounted alone, if it has been removed there since: the mount goes on showing
/// it, whatever comes in its place.
fn removed_place(pid: Pid, file: &OwnedFd) -> Option<String> {
    let (root, _) = mount_of(pid, file)?;
    root.strip_suffix("//deleted").map(str::to_owned)
}

/// Where in its file system the file with this inode is, which process `pid` calls `path`.
fn place_of(pid: Pid, path: &str, inode_is: (u64, u64)) -> Option<String> {
    let file = Root::of(pid).ok()?.open(Path::new(path), OFlag::O_PATH).ok()?;
    if !path.starts_with('/') || inode(&file).ok()? != inode_is {
        return None;
    }
    let (root, place) = mount_of(pid, &file)?;
    let whole = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let rest = whole.to_str()?.strip_prefix(place.trim_end_matches('/'))?;
    Some(format!("{}{rest}", root.trim_end_matches('/')))
}

/// The sockets bound to that file, or to that path by name, in any network namespace: the kernel finds a unix socket
/// by its file, wherever it was made. The worker's own namespace is looked at first, and alone when the file's socket
/// is there. `removed`: where in its file system that file was; what may be in its place now is looked for, too.
fn bound_sockets(pid: Pid, path: &str, file: Option<(u64, u64)>, removed: Option<&str>) -> Vec<UnixSocket> {
    let deadline = Instant::now() + NAMESPACE_SEARCH;
    let own = process::netns_of(pid);
    let mut namespaces: Vec<Pid> = vec![pid];
    namespaces.extend(
        netns::all()
            .into_iter()
            .filter(|(netns, _)| Some(*netns) != own)
            .map(|(_, pid)| pid),
    );
    let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
    let may_replace = |socket: &sock_diag::UnixSocket| {
        let is_on_same = socket.file.map(|(device, _)| device) == file.map(|(device, _)| device);
        let (Some(removed), Some(path)) = (removed, &socket.path) else {
            return false;
        };
        is_on_same && socket.file != file && name(path) == name(removed)
    };
    let mut found: BTreeMap<u64, sock_diag::UnixSocket> = BTreeMap::new();
    for (index, member) in namespaces.into_iter().enumerate() {
        let is_found = file.is_some() && found.values().any(|socket| socket.file == file);
        if index > 0 && (is_found || Instant::now() > deadline) {
            break;
        }
        // Namespaces that cannot be read are left out; the worker's own comes first.
        let sockets = netns::run_in(member, sock_diag::unix_sockets).unwrap_or_default();
        let is_bound_here = |socket: &sock_diag::UnixSocket| {
            socket.path.as_deref() == Some(path)
                || (file.is_some() && socket.file == file)
                || may_replace(socket)
        };
        found.extend(
            sockets
                .into_iter()
                .filter(is_bound_here)
                .map(|socket| (socket.inode, socket)),
        );
    }
    let owners = process::owners(found.keys().copied(), OWNER_SEARCH);
    let socket = |(inode, socket): (u64, sock_diag::UnixSocket)| {
        let owners = owners.get(&inode).cloned().unwrap_or_default();
        let in_place_at = socket.path.clone().filter(|path| {
            let is_there = |pid: Pid| {
                let place = socket.file.and_then(|file| place_of(pid, path, file));
                place.as_deref() == removed
            };
            may_replace(&socket) && owners.iter().any(|(owner, _)| is_there(*owner))
        });
        // Of those that only might have been in its place nothing is told.
        let is_meant = in_place_at.is_some() || socket.path.as_deref() == Some(path) || socket.file == file;
        is_meant.then(|| UnixSocket {
            listening: socket.is_listening,
            kind: socket.kind.to_owned(),
            file: socket.file,
            in_place_at,
            queue: socket.queue,
            owners,
        })
    };
    found.into_iter().filter_map(socket).collect()
}
