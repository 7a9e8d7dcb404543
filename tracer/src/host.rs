//! The host outside of BPF: processes, sockets, files, routes, as they are at the moment of asking.
//!
//! Everything here is a snapshot, read without changing anything; a process that is gone or a system that refuses
//! yields [`Answer::Unavailable`], never a guess.

use std::{collections::BTreeSet, fs, io, net::IpAddr, time::Duration};

use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
};

use crate::event::{Answer, Ktime, Pid, Question};

pub mod confinement;
pub mod conntrack;
pub mod netns;
pub mod process;
pub mod resolver;
pub mod root;
pub mod route;
pub mod sock_diag;
pub mod unix;

mod netlink;

pub use process::{inner_pid, netns_of};

/// How much processor time one search for the holders of sockets may take.
const OWNER_SEARCH: Duration = Duration::from_millis(300);

/// Answers a question that may take its time, if what lies on this host is enough to answer it.
#[must_use]
pub fn answer_from_files(question: &Question) -> Option<Answer> {
    match question {
        Question::Name { pid, name } => resolver::look_up_in_files(*pid, name).ok()?.map(Answer::Name),
        _ => None,
    }
}

/// Answers a question of the engine.
#[must_use]
pub fn answer(question: &Question) -> Answer {
    let (answer, pid) = match question {
        Question::UnixPath { pid, path, sockets } => {
            (unix::look_at(*pid, path, *sockets).map(Answer::UnixPath), *pid)
        }
        Question::Ports { pid, destination } => (ports(*pid, *destination), *pid),
        Question::Descriptors { pid } => (descriptors(*pid), *pid),
        Question::Ipv6 { pid } => (ipv6(*pid), *pid),
        Question::Route { pid, destination } => (
            netns::run_in(*pid, {
                let destination = *destination;
                move || route::look_up(destination)
            }),
            *pid,
        ),
        Question::Translation {
            pid,
            destination,
            source,
        } => (
            netns::run_in(*pid, {
                let (source, destination) = (source.0, *destination);
                move || conntrack::look_up(source, destination)
            }),
            *pid,
        ),
        Question::AcceptQueue { pid, address } => (accept_queue(*pid, *address), *pid),
        Question::Confinement { pid } => (confinement::of(*pid).map(Answer::Confinement), *pid),
        Question::AbortsOnOverflow { pid } => (aborts_on_overflow(*pid), *pid),
        Question::Name { pid, name } => (resolver::look_up(*pid, name).map(Answer::Name), *pid),
        Question::Nameservers { pid, servers, name } => (
            resolver::ask_each(*pid, servers, name).map(|replies| Answer::Nameservers { replies }),
            *pid,
        ),
        Question::Process { pid } => {
            return Answer::Process {
                found: process::info(*pid),
            };
        }
    };
    answer.unwrap_or_else(|error| Answer::Unavailable {
        why: match process::stat(pid) {
            None => format!("process {pid} is gone"),
            Some(_) => format!("process {pid}: {error}"),
        },
    })
}

fn ports(pid: Pid, destination: std::net::SocketAddr) -> io::Result<Answer> {
    netns::run_in(pid, move || {
        // Read in that namespace: /proc/sys/net shows the one of the reading thread.
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse::<u16>);
        let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else {
            return Err(io::Error::other(format!("ip_local_port_range reads {text:?}")));
        };
        Ok(Answer::Ports {
            range: (first, last),
            by_state: sock_diag::count_to(destination)?,
        })
    })
}

fn ipv6(pid: Pid) -> io::Result<Answer> {
    const MAX_INTERFACES: usize = 64;
    netns::run_in(pid, || {
        let mut interfaces = Vec::new();
        // Read in that namespace, like every /proc/sys/net. Neither `all` nor `default` is an interface.
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name == "all" || name == "default" {
                continue;
            }
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            match fs::read_to_string(path) {
                Ok(value) => interfaces.push((name, value.trim() == "1")),
                // The interface went while it was looked at.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // What speaks against it must not be cut off.
        interfaces.sort_by_key(|(name, is_off)| (name != "lo", *is_off, name.clone()));
        interfaces.truncate(MAX_INTERFACES);
        Ok(Answer::Ipv6 { interfaces })
    })
}

fn accept_queue(pid: Pid, address: std::net::SocketAddr) -> io::Result<Answer> {
    let queues = netns::run_in(pid, move || sock_diag::accept_queues(address))?;
    let is_full = |(waiting, limit): &(u32, u32)| waiting > limit;
    let fullest = queues
        .iter()
        .max_by_key(|(waiting, limit)| i64::from(*waiting) - i64::from(*limit));
    let &(waiting, limit) = fullest.ok_or_else(|| io::Error::other("nothing listens there"))?;
    Ok(Answer::AcceptQueue {
        waiting,
        limit,
        are_all_full: queues.iter().all(is_full),
    })
}

fn aborts_on_overflow(pid: Pid) -> io::Result<Answer> {
    netns::run_in(pid, || {
        // Read in that namespace, like every /proc/sys/net.
        let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_abort_on_overflow")?;
        Ok(Answer::AbortsOnOverflow {
            is_set: text.trim() != "0",
        })
    })
}

fn descriptors(pid: Pid) -> io::Result<Answer> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let text = fs::read_to_string("/proc/sys/fs/file-nr")?;
    let numbers: Vec<u64> = text
        .split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let &[open, _, max] = &numbers[..] else {
        return Err(io::Error::other(format!("file-nr reads {text:?}")));
    };
    Ok(Answer::Descriptors {
        open: process::open_descriptors(pid).ok_or_else(gone)?,
        limit: process::descriptor_limit(pid).ok_or_else(gone)?,
        system: (open, max),
    })
}

/// The addresses of the network namespace a process is in; none when they cannot be read.
#[must_use]
pub fn addresses(pid: Pid) -> Vec<IpAddr> {
    let of_interface = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
            (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
            (None, None) => None,
        }
    };
    let interfaces = netns::run_in(pid, || Ok(nix::ifaddrs::getifaddrs()?.collect::<Vec<_>>()));
    let interfaces = interfaces.unwrap_or_default().into_iter();
    let addresses: BTreeSet<IpAddr> = interfaces.filter_map(of_interface).collect();
    addresses.into_iter().collect()
}

/// The kernel's release, `6.18.44`.
#[must_use]
pub fn kernel_release() -> String {
    uname().map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    )
}

/// The host's name.
#[must_use]
pub fn hostname() -> String {
    uname().map_or_else(
        |_| String::new(),
        |names| names.nodename().to_string_lossy().into_owned(),
    )
}

/// The id of this boot; empty when the system does not say.
#[must_use]
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The kernel's clock since boot.
#[must_use]
pub fn boottime() -> Ktime {
    Ktime(nanoseconds(ClockId::CLOCK_BOOTTIME).unsigned_abs())
}

/// Both clocks at one moment: time since boot, and nanoseconds since the epoch.
#[must_use]
pub fn clock() -> (Ktime, i64) {
    // Read around each other, so that being interrupted between them shifts the result by half as much.
    let before = boottime();
    let unix_ns = nanoseconds(ClockId::CLOCK_REALTIME);
    (Ktime(before.0 + boottime().since(before) / 2), unix_ns)
}

/// What to add to a [`Ktime`] for nanoseconds since the epoch; changes whenever the clock is set.
#[must_use]
pub fn wall_clock_offset() -> i64 {
    let (at, unix_ns) = clock();
    unix_ns - at.0.cast_signed()
}

fn nanoseconds(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests;
