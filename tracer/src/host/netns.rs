//! Other network namespaces, entered by a thread made for one question; the program's own threads never leave theirs.

use std::{collections::BTreeMap, fs::File, io, thread};

use nix::sched::{CloneFlags, setns};

use crate::{
    event::{Netns, Pid},
    host::process,
};

/// Runs `question` in the network namespace of process `pid`.
pub fn run_in<T: Send>(pid: Pid, question: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    if process::netns_of(pid) == process::netns_of(Pid(std::process::id())) {
        return question();
    }
    thread::scope(|scope| {
        let asking = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                    io::Error::other(format!(
                        "cannot enter its network namespace: {errno}; needs CAP_SYS_ADMIN"
                    ))
                })?;
                question()
            })?;
        asking
            .join()
            .map_err(|_| io::Error::other("the question broke off"))?
    })
}

/// Every network namespace that a process is in, each with one of its processes.
#[must_use]
pub fn all() -> BTreeMap<Netns, Pid> {
    let pids = process::pids().unwrap_or_default();
    pids.into_iter()
        .rev()
        .filter_map(|pid| Some((process::netns_of(pid)?, pid)))
        .collect()
}
