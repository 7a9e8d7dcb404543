//! Network namespaces with addresses of their own and no way out.

use std::{
    fs::File,
    net::Ipv6Addr,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    process::{Child, Command, Output},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use super::{
    Run,
    run::{NETNS, making, processes_in, spawn},
};

/// nginx's end of the cable.
pub const NEAR: &str = "10.77.0.1";
/// The other end of the cable.
pub const FAR: &str = "10.77.0.2";
/// nginx's end of the cable, IPv6.
pub const NEAR6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The other end of the cable, IPv6.
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// An address that nobody has: see [`Netns::translate`].
pub const SERVICE: &str = "10.96.0.1";
/// The same, IPv6.
pub const SERVICE6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1);
/// The other end of the cable behind a router.
pub const BEHIND_ROUTER: &str = "10.78.1.2";
/// The same, IPv6.
pub const BEHIND_ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 1, 0, 0, 0, 2);

/// The first `ip netns add` of a host mounts a folder; two at once would mount it twice.
static ADDING: Mutex<()> = Mutex::new(());

/// A network namespace with its loopback up; gone, with all processes in it, when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes one.
    pub fn new(run: &Run) -> Result<Self> {
        let name = run.unique_name();
        {
            let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
            let was_mounted = is_mounted(NETNS);
            finish(Command::new("ip").args(["netns", "add", &name]))?;
            if !was_mounted {
                run.note_netns_mount()?;
            }
        }
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        let namespace = Self { name, file };
        namespace.sh("ip link set lo up")?;
        Ok(namespace)
    }

    /// Runs `work` in a thread that is in the namespace; what it starts or opens stays there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering network namespace {}", self.name))?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a process in the namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().display().to_string();
        self.enter(|| spawn(command))?
            .with_context(|| format!("starting {program}"))
    }

    /// Runs a shell script in the namespace to its end; an error holds what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.enter(|| finish(Command::new("sh").args(["-ec", script])))?
    }

    /// The namespace's inode, its identity everywhere in the kernel.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().context("reading a namespace's inode")?.ino())
    }

    /// Connects two namespaces over a third one that routes between them; the far end is [`BEHIND_ROUTER`] and
    /// [`BEHIND_ROUTER6`].
    pub fn connect_over(&self, router: &Self, far: &Self) -> Result<()> {
        self.connect(router)?;
        let ours = std::process::id();
        router.sh(&format!(
            "ip link add down0 type veth peer name up0 netns /proc/{ours}/fd/{}
            ip addr add 10.78.1.1/24 dev down0; ip addr add fd78:0:0:1::1/64 dev down0 nodad; ip link set down0 up
            echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            far.file.as_raw_fd()
        ))?;
        far.sh(&format!(
            "ip addr add {BEHIND_ROUTER}/24 dev up0; ip addr add {BEHIND_ROUTER6}/64 dev up0 nodad; ip link set up0 up
            ip route add default via 10.78.1.1; ip route add default via fd78:0:0:1::1"
        ))?;
        self.sh(&format!(
            "ip route add {BEHIND_ROUTER} via {FAR}; ip route add {BEHIND_ROUTER6} via {FAR6}"
        ))?;
        Ok(())
    }

    /// Has [`SERVICE`] and [`SERVICE6`] mean the other end of the cable, as container engines do it.
    pub fn translate(&self) -> Result<()> {
        self.sh(&format!(
            "ip route add {SERVICE} via {FAR}; ip route add {SERVICE6} via {FAR6}
            nft -f - <<'end'
            table ip service {{
                chain output {{
                    type nat hook output priority -100;
                    ip daddr {SERVICE} dnat to {FAR}
                }}
            }}
            table ip6 service {{
                chain output {{
                    type nat hook output priority -100;
                    ip6 daddr {SERVICE6} dnat to {FAR6}
                }}
            }}
end"
        ))?;
        Ok(())
    }

    /// Connects two namespaces by a cable, with addresses [`NEAR`] and [`FAR`] and their IPv6 companions.
    pub fn connect(&self, far: &Self) -> Result<()> {
        let ours = std::process::id();
        self.sh(&format!(
            "ip link add up0 type veth peer name up0 netns /proc/{ours}/fd/{}",
            far.file.as_raw_fd()
        ))?;
        for (namespace, v4, v6) in [(self, NEAR, NEAR6), (far, FAR, FAR6)] {
            namespace.sh(&format!(
                "ip addr add {v4}/24 dev up0; ip addr add {v6}/64 dev up0 nodad; ip link set up0 up"
            ))?;
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Processes go first: a namespace lives as long as somebody is in it.
        if let Ok(inode) = self.inode() {
            for pid in processes_in(inode) {
                let _ = nix::sys::signal::kill(super::run::as_pid(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        if let Err(error) = finish(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Whether something is mounted at this place.
fn is_mounted(place: &str) -> bool {
    std::fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(place)))
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let _making = making();
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().with_context(|| format!("starting {shown}"))?;
    let printed = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(
        status.success(),
        "{shown} ended with {status}: {}{printed}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(printed)
}
