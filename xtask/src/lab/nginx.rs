//! A real nginx in a namespace and a folder of its own.

pub mod packaged;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::{confine::Confinement, netns::Netns, run::as_pid, wait_for};

/// How long nginx may take to start, to follow a signal, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running nginx; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    /// The master, or the only process.
    pid: u32,
    /// The same, while it is a child of ours: a daemon is nobody's.
    child: Option<Child>,
    folder: PathBuf,
}

/// How to start an nginx.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// The executable.
    pub program: &'a Path,
    /// The whole configuration.
    pub config: &'a str,
    /// Where configuration, logs and sockets go.
    pub folder: &'a Path,
    /// A folder whose files it sees in /etc instead of those of the same names.
    pub etc: Option<&'a Path>,
    /// Files that it sees in places of others, by those.
    pub mounts: &'a [(PathBuf, PathBuf)],
    /// Whether to wait for worker processes.
    pub workers: usize,
    /// Whether it becomes a daemon, as services do: only then does nginx start another executable beside itself.
    pub daemon: bool,
    /// Whether it is in user, mount and process namespaces of its own.
    pub contained: bool,
    /// The SELinux context it runs in; `None`: that of the laboratory.
    pub context: Option<&'a str>,
    /// What it is confined by.
    pub confinement: Option<&'a Confinement>,
}

impl Nginx {
    /// Starts nginx and waits until its workers are there.
    pub fn start(namespace: &Netns, start: &Start<'_>) -> Result<Self> {
        let folder = start.folder;
        let config = folder.join("nginx.conf");
        fs::write(&config, start.config).with_context(|| format!("writing {}", config.display()))?;
        for temporary in ["body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            fs::create_dir_all(folder.join("tmp").join(temporary)).context("making nginx's folders")?;
        }
        let errors = fs::File::create(folder.join("nginx.stderr")).context("making nginx.stderr")?;
        let mut command = command(start)?;
        let _rules = start
            .confinement
            .map(|confinement| confinement.apply(&mut command))
            .transpose()?;
        let child = namespace.spawn(
            command
                .arg("-p")
                .arg(folder)
                .arg("-e")
                .arg(folder.join("error.log"))
                .arg("-c")
                .arg(&config)
                .args(["-g", if start.daemon { "daemon on;" } else { "daemon off;" }])
                .stdin(if start.contained {
                    Stdio::piped()
                } else {
                    Stdio::null()
                })
                .stdout(Stdio::null())
                .stderr(errors),
        )?;
        let child = if start.contained { contain(child)? } else { child };
        let mut nginx = Self {
            pid: child.id(),
            child: Some(child),
            folder: folder.to_owned(),
        };
        if start.daemon {
            nginx.wait_for_daemon()?;
        }
        let wanted = start.workers;
        wait_for(format!("nginx with {wanted} workers"), PATIENCE, || {
            if let Some(Ok(Some(status))) = nginx.child.as_mut().map(Child::try_wait) {
                let said = fs::read_to_string(nginx.folder.join("nginx.stderr")).unwrap_or_default();
                return Err(format!("nginx ended with {status}: {said}{}", nginx.error_log()));
            }
            if start.contained
                && let Some([master]) = nginx.child.as_ref().map(|child| children(child.id())).as_deref()
            {
                nginx.pid = *master;
            }
            let there = nginx.workers().len();
            if there == wanted && nginx.folder.join("nginx.pid").exists() {
                Ok(())
            } else {
                Err(format!("{there} workers"))
            }
        })?;
        Ok(nginx)
    }

    /// Waits until the process that was started has left the daemon alone, and follows that.
    fn wait_for_daemon(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let status = wait_for("nginx to become a daemon", PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it is in the foreground".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        ensure!(
            status.success(),
            "nginx ended with {status}: {}",
            self.error_log()
        );
        self.pid = wait_for("nginx.pid", PATIENCE, || {
            self.written_pid().ok_or_else(|| "no pid in it".to_owned())
        })?;
        Ok(())
    }

    fn written_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.folder.join("nginx.pid")).ok()?;
        text.trim().parse().ok()
    }

    /// Has a daemon start its executable anew beside itself with another configuration; from then on this is the new
    /// master, and the old one's process id is returned.
    pub fn upgrade(&mut self, config: &str, workers: usize) -> Result<u32> {
        let old = self.pid;
        fs::write(self.folder.join("nginx.conf"), config).context("writing nginx.conf")?;
        self.signal(Signal::SIGUSR2)?;
        self.pid = wait_for("a new master with its workers", PATIENCE, || {
            match self.written_pid().filter(|pid| *pid != old) {
                Some(pid) if children(pid).len() == workers => Ok(pid),
                other => Err(format!("{other:?} in nginx.pid; {}", self.error_log())),
            }
        })?;
        Ok(old)
    }

    /// The master's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process ids of the master's children.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        children(self.pid())
    }

    /// The workers' process ids in their own namespace, where it is not ours.
    #[must_use]
    pub fn inner_pids(&self) -> BTreeMap<u32, u32> {
        let inner = |pid: u32| -> Option<u32> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            pids.split_whitespace().nth(1)?.parse().ok()
        };
        self.workers()
            .into_iter()
            .filter_map(|pid| Some((pid, inner(pid)?)))
            .collect()
    }

    /// Sends a signal to the master.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(as_pid(self.pid()), signal).with_context(|| format!("sending {signal} to nginx"))
    }

    /// Sends a signal to every worker.
    pub fn signal_workers(&self, signal: Signal) -> Result<()> {
        for worker in self.workers() {
            match kill(as_pid(worker), signal) {
                // One that had ended already was still to be seen until its master took note.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("sending {signal} to worker {worker}"));
                }
            }
        }
        if signal == Signal::SIGSTOP {
            // One that runs on another processor goes on for a moment, and may take a request in it.
            for worker in self.workers() {
                wait_for(format!("worker {worker} to stop"), PATIENCE, || {
                    match state(worker) {
                        None | Some('T' | 'Z') => Ok(()),
                        Some(state) => Err(format!("it is in state {state}")),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Stops each worker while it waits for events: one that is stopped at its work looks for them when it goes on, before it
    /// looks at its timers.
    pub fn stop_waiting_workers(&self) -> Result<()> {
        for worker in self.workers() {
            wait_for(format!("worker {worker} to wait for events"), PATIENCE, || {
                kill(as_pid(worker), Signal::SIGSTOP).map_err(|errno| errno.to_string())?;
                wait_for(format!("worker {worker} to stop"), PATIENCE, || {
                    match state(worker) {
                        Some('T') => Ok(()),
                        state => Err(format!("it is in state {state:?}")),
                    }
                })
                .map_err(|error| format!("{error:#}"))?;
                let call = fs::read_to_string(format!("/proc/{worker}/syscall"))
                    .map_err(|error| error.to_string())?;
                let number = call.split(' ').next().and_then(|number| number.parse().ok());
                if number.is_some_and(|number| WAITS.contains(&number)) {
                    return Ok(());
                }
                kill(as_pid(worker), Signal::SIGCONT).map_err(|errno| errno.to_string())?;
                Err(format!("it is in system call {number:?}"))
            })?;
        }
        Ok(())
    }

    /// Replaces the configuration and has nginx take it; returns once new workers are there.
    pub fn reload(&self, config: &str) -> Result<()> {
        let before = self.workers();
        fs::write(self.folder.join("nginx.conf"), config).context("writing nginx.conf")?;
        self.signal(Signal::SIGHUP)?;
        wait_for("new workers after a reload", PATIENCE, || {
            let fresh = self
                .workers()
                .into_iter()
                .filter(|worker| !before.contains(worker))
                .count();
            // As many as there were, old ones that linger not counted.
            if fresh > 0 && fresh >= before.len().min(2) {
                Ok(())
            } else {
                Err(format!("{fresh} new workers; {}", self.error_log()))
            }
        })
    }

    /// Ends nginx in an orderly way.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let Some(child) = &mut self.child else {
            return wait_for_end(self.pid);
        };
        let status = wait_for("nginx to end", PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        ensure!(status.success(), "nginx ended with {status}");
        Ok(())
    }

    /// The error log's text.
    #[must_use]
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }
}

/// The executable, in a mount namespace of its own where it has files of its own; the process is the same one.
fn command(start: &Start<'_>) -> Result<Command> {
    if let Some(context) = start.context {
        let mut runcon = Command::new("runcon");
        runcon.arg(context).arg(start.program);
        return Ok(runcon);
    }
    let mut mounts = start.etc.map(own_etc).transpose()?.unwrap_or_default();
    let others = start
        .mounts
        .iter()
        .map(|(place, from)| (from.clone(), place.clone()));
    mounts.extend(others);
    let unpacked = packaged::mounts(start.program);
    // It then lies where it would be installed.
    let program = unpacked
        .first()
        .map_or(start.program, |(_, place)| place)
        .to_owned();
    mounts.extend(unpacked);
    if mounts.is_empty() && !start.contained {
        return Ok(Command::new(program));
    }
    let mut unshare = Command::new("unshare");
    let go = if start.contained {
        unshare.args(["--user", "--mount", "--pid", "--fork", "--kill-child"]);
        // It may start once its namespace knows who is who.
        "read -r go; "
    } else {
        unshare.args(["--mount", "--propagation", "private"]);
        ""
    };
    let script = "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\"; shift 2; done; shift; exec \"$@\"";
    unshare.args(["sh", "-ec", &format!("{go}{script}"), "nginx"]);
    for (from, to) in mounts {
        unshare.arg(from).arg(to);
    }
    unshare.arg("--").arg(program);
    Ok(unshare)
}

/// Files that it sees in /etc instead of those of the same names.
fn own_etc(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    fs::read_dir(folder)
        .with_context(|| format!("looking into {}", folder.display()))?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.path(), Path::new("/etc").join(entry.file_name())))
        })
        .collect()
}

/// The system calls in which a worker waits for events.
#[cfg(target_arch = "x86_64")]
const WAITS: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
/// The system calls in which a worker waits for events.
#[cfg(not(target_arch = "x86_64"))]
const WAITS: &[libc::c_long] = &[libc::SYS_epoll_pwait];

impl Drop for Nginx {
    fn drop(&mut self) {
        // Workers first: a worker whose master was killed lives on.
        let _ = kill(as_pid(self.pid()), Signal::SIGSTOP);
        for worker in self.workers() {
            let _ = kill(as_pid(worker), Signal::SIGKILL);
        }
        match &mut self.child {
            Some(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                let _ = kill(as_pid(self.pid), Signal::SIGKILL);
            }
        }
    }
}

/// Gives a process that is in a user namespace of its own the identities of this one, and lets it go on.
fn contain(mut child: Child) -> Result<Child> {
    let pid = child.id();
    let namespace =
        |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).map_err(|error| error.to_string());
    let ours = namespace("self").map_err(anyhow::Error::msg)?;
    wait_for("a user namespace", PATIENCE, || {
        match namespace(&pid.to_string()) {
            Ok(its) if its != ours => Ok(()),
            Ok(_) => Err("it is in ours".to_owned()),
            Err(error) => Err(error),
        }
    })?;
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 0 65536").with_context(|| format!("writing {map}"))?;
    }
    let mut input = child.stdin.take().context("a child without standard input")?;
    input.write_all(b"go\n").context("letting nginx start")?;
    Ok(child)
}

/// Waits until a process is gone that is nobody's child here.
pub fn wait_for_end(pid: u32) -> Result<()> {
    wait_for(format!("process {pid} to end"), PATIENCE, || {
        if is_alive(pid) {
            Err("it runs".to_owned())
        } else {
            Ok(())
        }
    })
}

/// Whether a process runs; a zombie does not.
fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !matches!(rest.split_whitespace().next(), Some("Z" | "X") | None))
    })
}

/// The living children of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let parent_of = |child: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_alive = fields.next()? != "Z";
        fields.next()?.parse().ok().filter(|_| is_alive)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|child| parent_of(*child) == Some(pid))
        .collect()
}

/// What a process is doing, as proc(5) spells it; `None`: it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_comm, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}
