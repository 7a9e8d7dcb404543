//! Which capabilities the tracer needs, and for what; everything else is given up.
//!
//! Linux holds capabilities per thread: [`keep_only_needed`] acts on the calling thread and on those it starts later,
//! so it belongs before any other thread.

use anyhow::{Context as _, Result, bail};
pub use caps::Capability;
use caps::{CapSet, CapsHashSet};

/// One capability and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub capability: Capability,
    /// What it is for.
    pub why: &'static str,
    /// What is lost without it; `None`: nothing works.
    pub without: Option<&'static str>,
}

/// Everything that is needed while following nginx. Each was tried by leaving it out (Linux 6.18). Asking the kernel for
/// sockets and routes needs none.
pub const NEEDS: [Need; 6] = [
    Need {
        capability: Capability::CAP_BPF,
        why: "to load its programs into the kernel",
        without: None,
    },
    Need {
        capability: Capability::CAP_PERFMON,
        why: "to attach its programs to the kernel's tracepoints",
        without: None,
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        why: "to look at nginx's executable, files and namespaces",
        without: None,
    },
    Need {
        capability: Capability::CAP_SYS_ADMIN,
        why: "to hear nginx's error lines at their source, and to look into other network namespaces",
        without: Some(
            "nginx's error lines come from its log file only, and other network namespaces stay closed",
        ),
    },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        why: "to ask connection tracking where a connection really went",
        without: Some(
            "a container of this host behind a translated address that does not answer is taken for another host",
        ),
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        why: "to read configuration and log files of other users",
        without: Some("configuration and log files that root does not own may stay unread"),
    },
];

/// Whether the calling thread may do what the tracer does: what is lost without a capability it lacks, a line each.
///
/// # Errors
/// Nothing works without a missing one: a line that names it and the way out.
pub fn check() -> Result<Vec<String>> {
    check_set(&caps::read(None, CapSet::Effective).context("reading its own capabilities")?)
}

fn check_set(held: &CapsHashSet) -> Result<Vec<String>> {
    let mut lost = Vec::new();
    for need in NEEDS.iter().filter(|need| !is_covered(need.capability, held)) {
        match need.without {
            Some(without) => lost.push(format!("no {}: {without}", need.capability)),
            None => bail!(
                "missing {} {}: run as root, for instance with sudo",
                need.capability,
                need.why
            ),
        }
    }
    Ok(lost)
}

/// The kernel takes the older, larger capability for the two that were split off it in Linux 5.8.
fn is_covered(capability: Capability, held: &CapsHashSet) -> bool {
    let was_split_off = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    held.contains(&capability) || (was_split_off && held.contains(&Capability::CAP_SYS_ADMIN))
}

/// Gives up every capability but those of [`NEEDS`] and those in `also` (`CAP_DAC_OVERRIDE` where files are still to be
/// made in directories of other users), now and for whatever this thread might execute.
///
/// # Errors
/// The system refuses; nothing or a part has been given up then.
pub fn keep_only_needed(also: &[Capability]) -> Result<()> {
    keep_only(
        NEEDS
            .iter()
            .map(|need| need.capability)
            .chain(also.iter().copied())
            .collect(),
    )
}

fn keep_only(wanted: CapsHashSet) -> Result<()> {
    let held = caps::read(None, CapSet::Permitted).context("reading its own capabilities")?;
    let kept: CapsHashSet = wanted.intersection(&held).copied().collect();
    nix::sys::prctl::set_no_new_privs().context("giving up new privileges")?;
    // The limit for executed programs may be lowered only with this one, so it goes first and may fail without.
    if held.contains(&Capability::CAP_SETPCAP) {
        let bounding = caps::read(None, CapSet::Bounding).context("reading its own capabilities")?;
        for capability in bounding.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).context("giving up capabilities")?;
        }
    }
    caps::clear(None, CapSet::Ambient).context("giving up capabilities")?;
    caps::clear(None, CapSet::Inheritable).context("giving up capabilities")?;
    caps::set(None, CapSet::Effective, &kept).context("giving up capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("giving up capabilities")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        net::TcpListener,
        os::unix::fs::{PermissionsExt, chown},
        path::Path,
        process::{Child, Command},
        thread,
    };

    use super::*;
    use crate::{
        event::Pid,
        host::{netns, process, root::Root, sock_diag},
        trials::start_ready,
    };

    fn set(capabilities: &[Capability]) -> CapsHashSet {
        capabilities.iter().copied().collect()
    }

    #[test]
    fn a_missing_capability_is_named_with_its_use() {
        use Capability::{
            CAP_BPF, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE,
        };
        let all = NEEDS.map(|need| need.capability);
        let outcome = |held: &[Capability]| match check_set(&set(held)) {
            Ok(lost) => lost.join("; "),
            Err(error) => error.to_string(),
        };
        assert_eq!(outcome(&all), "");
        assert_eq!(
            outcome(&[CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, CAP_DAC_READ_SEARCH]),
            ""
        );
        assert_eq!(
            outcome(&[CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_NET_ADMIN]),
            "no CAP_SYS_ADMIN: nginx's error lines come from its log file only, and other network namespaces stay closed; \
             no CAP_DAC_READ_SEARCH: configuration and log files that root does not own may stay unread"
        );
        assert_eq!(
            outcome(&[]),
            "missing CAP_BPF to load its programs into the kernel: run as root, for instance with sudo"
        );
        assert_eq!(
            outcome(&[CAP_BPF, CAP_SYS_PTRACE]),
            "missing CAP_PERFMON to attach its programs to the kernel's tracepoints: run as root, for instance with sudo"
        );
        assert_eq!(
            outcome(&[CAP_SYS_ADMIN]),
            "missing CAP_SYS_PTRACE to look at nginx's executable, files and namespaces: run as root, for instance with \
             sudo"
        );
    }

    /// A process of another user in another network namespace, with a file only that user may read.
    struct Stranger {
        child: Child,
        directory: tempfile::TempDir,
    }

    impl Stranger {
        fn start() -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let file = directory.path().join("file");
            fs::write(&file, "x").expect("a file");
            fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("an own file");
            chown(&file, Some(4242), Some(4242)).expect("root may");
            let child = start_ready(
                Command::new("unshare")
                    .args([
                        "--net",
                        "setpriv",
                        "--reuid",
                        "4242",
                        "--regid",
                        "4242",
                        "--clear-groups",
                    ])
                    .args(["sh", "-c", "echo ready && exec cat"]),
            );
            Self { child, directory }
        }

        /// What a thread that keeps only these capabilities can still do.
        fn reach(&self, kept: CapsHashSet) -> Vec<&'static str> {
            let pid = Pid(self.child.id());
            let file = self.directory.path().join("file");
            let look = move || {
                keep_only(kept).expect("capabilities can be given up");
                let mut reached = Vec::new();
                let mut note = |what, was_reached: bool| reached.extend(was_reached.then_some(what));
                note("its executable", process::exe(pid).is_ok());
                note("its sockets", netns::run_in(pid, sock_diag::unix_sockets).is_ok());
                note(
                    "its file",
                    Root::of(pid).and_then(|root| root.read(&file, 10)).is_ok(),
                );
                note(
                    "its routes",
                    netns::run_in(pid, || crate::host::route::look_up([127, 0, 0, 1].into())).is_ok(),
                );
                note("a low port", TcpListener::bind("127.0.0.1:1").is_ok());
                note("changing files", chown(&file, Some(0), None).is_ok());
                reached
            };
            thread::spawn(look).join().expect("it looked")
        }
    }

    impl Drop for Stranger {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn what_is_kept_is_what_is_needed() {
        if !nix::unistd::Uid::effective().is_root() || !Path::new("/usr/bin/setpriv").exists() {
            println!("skipped: not root, or no setpriv");
            return;
        }
        let stranger = Stranger::start();
        let needed = NEEDS.map(|need| need.capability);
        let without = |left_out| {
            set(&needed
                .into_iter()
                .filter(|kept| *kept != left_out)
                .collect::<Vec<_>>())
        };
        let all = ["its executable", "its sockets", "its file", "its routes"];
        assert_eq!(stranger.reach(set(&needed)), all);
        assert_eq!(stranger.reach(without(Capability::CAP_SYS_PTRACE)), [""; 0]);
        assert_eq!(
            stranger.reach(without(Capability::CAP_SYS_ADMIN)),
            ["its executable", "its file"]
        );
        assert_eq!(
            stranger.reach(without(Capability::CAP_DAC_READ_SEARCH)),
            ["its executable", "its sockets", "its routes"]
        );
        // This thread has lost nothing.
        assert!(caps::has_cap(None, CapSet::Effective, Capability::CAP_CHOWN).expect("readable"));
    }
}
