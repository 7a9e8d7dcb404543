//! Processes as `/proc` shows them: small reads which answer `None` when the process is gone.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open, readlinkat},
    sys::{
        stat::Mode,
        statfs::{OVERLAYFS_SUPER_MAGIC, statfs},
    },
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

use crate::event::{Ktime, Netns, Pid, ProcessInfo};

/// How many bytes of a command line are read: nginx's titles are its arguments, and `-g` may be long.
const MAX_COMMAND_LINE: usize = 65_536;

/// How many bytes of a command line an answer carries.
const MAX_COMMAND: usize = 200;

/// The parts of `/proc/PID/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The one-letter state.
    pub state: char,
    /// Its parent.
    pub parent: Pid,
    /// When it started; the kernel tells it in clock ticks (10 ms).
    pub started: Ktime,
    /// Where its arguments lie in its memory: the same in a forked child, another after an exec. 0: not readable.
    pub arguments_at: u64,
}

/// Every process id there is now.
pub fn pids() -> io::Result<Vec<Pid>> {
    let numbers = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid));
    Ok(numbers.collect())
}

/// The kernel's name for it, at most 15 bytes.
#[must_use]
pub fn comm(pid: Pid) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

/// Its executable's path, without the kernel's mark for a file that was replaced.
pub fn exe(pid: Pid) -> io::Result<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    let path = path.to_string_lossy();
    Ok(path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned())
}

/// Device and inode of its executable, also when the file was replaced since.
pub fn exe_inode(pid: Pid) -> io::Result<(u64, u64)> {
    file_identity(Path::new(&format!("/proc/{pid}/exe")))
}

/// What tells a file from every other: device and inode.
///
/// Containers of one image share its files through overlays, each a device of its own; a probe on the file under one of
/// them is a probe under all. There the time of the last change stands in for the device.
pub fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(path)?;
    let is_overlay = statfs(path).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC);
    let device = if is_overlay {
        let changed = meta.mtime().wrapping_mul(1_000_000_000) + meta.mtime_nsec();
        // No device number has its highest bit set.
        changed.cast_unsigned() | 1 << 63
    } else {
        meta.dev()
    };
    Ok((device, meta.ino()))
}

/// Its arguments as they lie in memory, separated by NUL bytes.
#[must_use]
pub fn command_line(pid: Pid) -> Option<Vec<u8>> {
    let mut text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    text.truncate(MAX_COMMAND_LINE);
    Some(text)
}

/// Its state, parent and start.
#[must_use]
pub fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold spaces and brackets, so the fields are counted from its last bracket: `state` is the third.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(22)?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten()?.unsigned_abs().max(1);
    let started = ticks.saturating_mul(1_000_000_000 / per_second);
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: Pid(u32::try_from(number(4)?).ok()?),
        started: Ktime(started),
        arguments_at: number(48).unwrap_or(0),
    })
}

/// The network namespace it is in.
#[must_use]
pub fn netns_of(pid: Pid) -> Option<Netns> {
    namespace_of(pid, "net").map(Netns)
}

/// The inode of one of its namespaces (`net`, `mnt`, `user` …).
#[must_use]
pub fn namespace_of(pid: Pid, kind: &str) -> Option<u32> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    let text = link.to_str()?;
    text[text.find('[')? + 1..text.rfind(']')?].parse().ok()
}

/// One line of `/proc/PID/status` by its name.
#[must_use]
pub fn status_line(pid: Pid, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(':')
            .map(str::trim)
            .map(str::to_owned)
    };
    text.lines().find_map(value)
}

/// Its number in its own pid namespace, which is what nginx writes into its log.
#[must_use]
pub fn inner_pid(pid: Pid) -> Option<u32> {
    status_line(pid, "NSpid")?
        .split_ascii_whitespace()
        .next_back()?
        .parse()
        .ok()
}

/// The answer to [`crate::event::Question::Process`]; `None`: gone.
#[must_use]
pub fn info(pid: Pid) -> Option<ProcessInfo> {
    let stat = stat(pid)?;
    Some(ProcessInfo {
        comm: comm(pid)?,
        command: readable_command(&command_line(pid)?),
        state: stat.state,
        parent: stat.parent,
    })
}

fn readable_command(arguments: &[u8]) -> String {
    let words: Vec<_> = arguments
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    let mut command = words.join(" ");
    command.truncate(command.floor_char_boundary(MAX_COMMAND));
    command
}

/// Which processes hold the sockets with these inodes. Every inode asked for is in the result.
///
/// Looks at each process's descriptors, newest process first (workers and restarted backends are young), and gives
/// up at the limit: what it has by then is true, but may miss holders. The limit is processor time, so that a busy
/// host does not hide them.
#[must_use]
pub fn owners(inodes: impl IntoIterator<Item = u64>, limit: Duration) -> BTreeMap<u64, Vec<(Pid, String)>> {
    let mut owners: BTreeMap<u64, Vec<(Pid, String)>> =
        inodes.into_iter().map(|inode| (inode, vec![])).collect();
    if owners.is_empty() {
        return owners;
    }
    if let Some(known) = still_held(&owners) {
        return known;
    }
    let mut found: BTreeMap<u64, Vec<(Pid, u32)>> = BTreeMap::new();
    let began = processor_time();
    for pid in pids().unwrap_or_default().into_iter().rev() {
        if processor_time() - began > limit {
            break;
        }
        for (inode, descriptor) in sockets_of(pid) {
            let Some(holders) = owners.get_mut(&inode) else {
                continue;
            };
            if !holders.iter().any(|(holder, _)| *holder == pid) {
                holders.push((pid, comm(pid).unwrap_or_default()));
                found.entry(inode).or_default().push((pid, descriptor));
            }
        }
    }
    remember(found);
    for holders in owners.values_mut() {
        holders.sort();
    }
    owners
}

/// What the calling thread has used of the processor.
#[must_use]
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok();
    time.map_or(Duration::ZERO, |time| {
        Duration::new(
            time.tv_sec().unsigned_abs(),
            u32::try_from(time.tv_nsec()).unwrap_or(0),
        )
    })
}

/// The sockets a process holds: their inodes and descriptors.
fn sockets_of(pid: Pid) -> Vec<(u64, u32)> {
    let path = format!("/proc/{pid}/fd");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let (Ok(directory), Ok(entries)) = (open(Path::new(&path), flags, Mode::empty()), fs::read_dir(&path))
    else {
        return vec![];
    };
    let socket = |entry: fs::DirEntry| {
        // Counted from the directory: walking the whole path for each of ten thousands takes twice as long.
        let target = readlinkat(&directory, Path::new(&entry.file_name())).ok()?;
        Some((
            socket_inode(target.to_str()?)?,
            entry.file_name().to_str()?.parse().ok()?,
        ))
    };
    entries.flatten().filter_map(socket).collect()
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Who held which socket under which descriptor when all processes were last searched. A storm asks for the same few
/// sockets again and again, and a look at one descriptor tells whether its holder still has it.
static HOLDERS: Mutex<BTreeMap<u64, Holders>> = Mutex::new(BTreeMap::new());

/// Sockets remembered at most, and for how long: a new holder is found by the next search.
const MAX_HELD: usize = 256;
const HELD_FOR: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Holders {
    searched: Instant,
    by: Vec<(Pid, u32)>,
}

fn remember(found: BTreeMap<u64, Vec<(Pid, u32)>>) {
    let mut held = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|_, holders| holders.searched.elapsed() < HELD_FOR);
    let room = MAX_HELD.saturating_sub(held.len());
    let searched = Instant::now();
    let found = found.into_iter().take(room);
    held.extend(found.map(|(inode, by)| (inode, Holders { searched, by })));
}

/// The holders of all these sockets, where a search found them a moment ago and every one of them still holds them.
fn still_held(wanted: &BTreeMap<u64, Vec<(Pid, String)>>) -> Option<BTreeMap<u64, Vec<(Pid, String)>>> {
    let held = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let holders_of = |inode: u64| -> Option<Vec<(Pid, String)>> {
        let holders = held
            .get(&inode)
            .filter(|holders| holders.searched.elapsed() < HELD_FOR)?;
        let mut found = Vec::new();
        for (pid, descriptor) in &holders.by {
            let link = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
            if socket_inode(link.to_str()?) != Some(inode) {
                return None;
            }
            found.push((*pid, comm(*pid).unwrap_or_default()));
        }
        found.sort();
        Some(found)
    };
    wanted
        .keys()
        .map(|inode| Some((*inode, holders_of(*inode)?)))
        .collect()
}

/// How many descriptors it has open.
#[must_use]
pub fn open_descriptors(pid: Pid) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// Its soft limit of open descriptors.
#[must_use]
pub fn descriptor_limit(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let mut text = String::from("811 (a) b) S 1 811 811 0 -1 4194624");
        for field in 10..=52 {
            text.push_str(&format!(" {}", if field == 22 { 1234 } else { field }));
        }
        let stat = parse_stat(&text).expect("a whole line");
        assert_eq!(
            stat,
            Stat {
                state: 'S',
                parent: Pid(1),
                started: Ktime(12_340_000_000),
                arguments_at: 48,
            }
        );
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let own = Pid(std::process::id());
        assert!(pids().expect("/proc").contains(&own));
        let stat = stat(own).expect("this process lives");
        assert!(stat.started > Ktime(0) && stat.arguments_at != 0);
        assert_eq!(inner_pid(own), Some(own.0));
        assert!(open_descriptors(own).expect("own descriptors") >= 3);
        assert!(descriptor_limit(own).expect("a limit") > 0);
        assert!(netns_of(own).is_some());
        assert_eq!(netns_of(Pid(u32::MAX)), None);
    }

    #[test]
    fn the_holder_of_a_socket_is_found() {
        use std::os::fd::AsRawFd;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("own descriptor");
        let inode = link
            .to_string_lossy()
            .trim_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .expect("an inode");
        let holders = owners([inode, 1], Duration::from_secs(5));
        assert_eq!(holders[&1], vec![]);
        // Other tests fork; a child has the descriptor too until it executes something.
        assert!(
            holders[&inode]
                .iter()
                .any(|(pid, _)| *pid == Pid(std::process::id())),
            "{holders:?}"
        );
    }
}
