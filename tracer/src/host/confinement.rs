//! What may deny a process a system call or a connection: seccomp, security modules, programs that act as one, IPsec.

use std::{fs, io};

use crate::{
    event::{Confinement, Pid},
    host::process,
    kernel,
};

/// The names of the active security modules, where securityfs is mounted.
const MODULES: &str = "/sys/kernel/security/lsm";
/// The counter of packets that a policy blocked on their way out.
const BLOCKED: &str = "XfrmOutPolBlock";

/// The answer to [`crate::event::Question::Confinement`].
pub fn of(pid: Pid) -> io::Result<Confinement> {
    let status = |name| process::status_line(pid, name);
    // 0 none, 1 strict, 2 filters.
    let seccomp = status("Seccomp").ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let modules = fs::read_to_string(MODULES).ok();
    Ok(Confinement {
        seccomp: seccomp.trim() != "0",
        no_new_privs: status("NoNewPrivs").is_some_and(|value| value.trim() == "1"),
        modules: modules.map(|text| text.trim().split(',').map(str::to_owned).collect()),
        profile: profile(pid),
        lsm_programs: kernel::lsm_programs(),
        // Of that process's namespace, whoever reads it.
        ipsec_blocked: fs::read_to_string(format!("/proc/{pid}/net/xfrm_stat"))
            .ok()
            .and_then(|text| blocked(&text)),
    })
}

/// AppArmor's own file where there is one (5.8), else the one that the modules share.
fn profile(pid: Pid) -> Option<String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/attr/{name}")).ok();
    let text = read("apparmor/current").or_else(|| read("current"))?;
    let profile = text.trim_end_matches(['\0', '\n']);
    (!profile.is_empty() && profile != "unconfined").then(|| profile.to_owned())
}

fn blocked(statistics: &str) -> Option<u64> {
    statistics.lines().find_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        (name == BLOCKED).then(|| count.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_as_confined_as_its_status_says() {
        let own = of(Pid(std::process::id())).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(own.seccomp, !status.contains("Seccomp:\t0"));
        assert_eq!(own.no_new_privs, status.contains("NoNewPrivs:\t1"));
    }

    #[test]
    fn blocked_packets_are_found_among_the_others() {
        let text = "XfrmOutStateInvalid     \t0\nXfrmOutPolBlock         \t12\nXfrmOutPolDead          \t0\n";
        assert_eq!(blocked(text), Some(12));
        assert_eq!(blocked("XfrmInError 3\n"), None);
    }
}
