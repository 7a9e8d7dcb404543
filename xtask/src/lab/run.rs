//! One run of the laboratory: the name under which everything is made, and its removal.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

use super::{memory, wait_for};

/// All names start with this; the process id and its start time follow.
const PREFIX: &str = "tracer-lab-";
/// Where iproute2 keeps named namespaces.
pub(crate) const NETNS: &str = "/run/netns";
/// In a run's folder: the mount at [`NETNS`] was not there before.
const NETNS_MOUNT: &str = "netns-mount";

/// Held while something is made; whoever removes a run at a signal takes it for good, so that nothing is made meanwhile
/// and nobody unwinds into what is being removed.
static MAKING: RwLock<()> = RwLock::new(());

/// To be held while something is made that the run must remove; from a signal on, nobody gets it any more.
pub(crate) fn making() -> RwLockReadGuard<'static, ()> {
    MAKING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A run: whatever it makes carries its name and goes when it goes.
#[derive(Debug)]
pub struct Run {
    name: String,
    folder: PathBuf,
    next: AtomicU32,
}

impl Run {
    /// Begins a run: removes what dead runs left, and takes care that Ctrl-C and SIGTERM remove this one.
    ///
    /// To be called before other threads start, since they inherit the signal mask.
    pub fn begin() -> Result<Self> {
        ensure!(
            nix::unistd::Uid::effective().is_root(),
            "the laboratory needs root (it makes network namespaces): run it with sudo"
        );
        sweep()?;
        let name = name_of(std::process::id())?;
        let folder = std::env::temp_dir().join(&name);
        // Signals first: one that comes now must find everything.
        remove_on_signal(name.clone())?;
        let _making = making();
        fs::create_dir_all(folder.join("pids")).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self {
            name,
            folder,
            next: AtomicU32::new(0),
        })
    }

    /// A name nobody else has, for a namespace, a control group or a folder.
    pub(crate) fn unique_name(&self) -> String {
        format!("{}-{}", self.name, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Remembers that the first namespace of this host made a mount, which nobody else will remove.
    pub(crate) fn note_netns_mount(&self) -> Result<()> {
        fs::write(self.folder.join(NETNS_MOUNT), "").context("noting a mount")
    }

    /// A fresh folder that every user may enter: nginx's workers are nobody.
    pub fn folder(&self, label: &str) -> Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(format!("{number}-{label}"));
        let _making = making();
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    /// Starts a process outside of all namespaces and remembers it, so that it cannot outlive the run.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().display().to_string();
        let _making = making();
        let child = unblocked(command).with_context(|| format!("starting {program}"))?;
        let note = self.folder.join("pids").join(child.id().to_string());
        let started = start_time(child.id()).unwrap_or_default();
        fs::write(&note, started).with_context(|| format!("writing {}", note.display()))?;
        Ok(child)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _making = making();
        if let Err(error) = remove(&self.name) {
            eprintln!("the laboratory could not clean up: {error:#}");
        }
    }
}

/// Removes what runs left behind whose process is gone.
pub fn sweep() -> Result<()> {
    let mut dead: Vec<String> = [Path::new(NETNS), &std::env::temp_dir()]
        .into_iter()
        .flat_map(entries)
        .chain(memory::groups(PREFIX))
        .filter_map(|name| run_in(&name))
        .filter(|run| !is_alive(run))
        .collect();
    dead.sort_unstable();
    dead.dedup();
    for run in dead {
        remove(&run)?;
    }
    Ok(())
}

/// Removes all that carries a run's name.
fn remove(run: &str) -> Result<()> {
    let folder = std::env::temp_dir().join(run);
    let belongs = |name: &String| run_in(name).as_deref() == Some(run);
    for pid in entries(&folder.join("pids")) {
        let started = fs::read_to_string(folder.join("pids").join(&pid)).unwrap_or_default();
        if let Ok(pid) = pid.parse()
            && start_time(pid).is_some_and(|now| now == started)
        {
            kill_and_wait(|| {
                start_time(pid)
                    .filter(|now| *now == started)
                    .map(|_| pid)
                    .into_iter()
                    .collect()
            })?;
        }
    }
    for name in entries(Path::new(NETNS)).into_iter().filter(belongs) {
        let path = Path::new(NETNS).join(&name);
        if let Ok(namespace) = fs::metadata(&path) {
            kill_and_wait(|| processes_in(namespace.ino()))?;
        }
        let deleted = Command::new("ip").args(["netns", "del", &name]).output();
        // Whoever made it may be removing it at the same moment.
        ensure!(
            deleted.is_ok_and(|output| output.status.success()) || !path.exists(),
            "cannot delete network namespace {name}: run `ip netns del {name}`"
        );
    }
    for name in memory::groups(PREFIX).into_iter().filter(belongs) {
        memory::remove(&name)?;
    }
    if folder.join(NETNS_MOUNT).exists() && entries(Path::new(NETNS)).is_empty() {
        // Somebody may have made another namespace there just now; then it stays, as it should.
        let unmounted = Command::new("umount").arg(NETNS).output();
        if unmounted.is_ok_and(|output| output.status.success()) {
            let _ = fs::remove_dir(NETNS);
        }
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// Kills what `find` names until it names nothing.
fn kill_and_wait(find: impl Fn() -> Vec<u32>) -> Result<()> {
    wait_for("killed processes to end", Duration::from_secs(5), || {
        let left = find();
        for pid in &left {
            // Gone already is as good.
            let _ = kill(as_pid(*pid), Signal::SIGKILL);
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
}

/// The living processes in a network namespace.
pub(crate) fn processes_in(namespace: u64) -> Vec<u32> {
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|found| found.ino() == namespace)
        })
        .collect()
}

/// A process id as nix wants it.
pub(crate) fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

/// Starts a process that the run removes: one in a namespace of its own.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _making = making();
    unblocked(command)
}

/// Starts a process with no signal blocked: this process blocks those it cleans up on, and children inherit that.
fn unblocked(command: &mut Command) -> std::io::Result<Child> {
    let blocked = SigSet::thread_get_mask()?;
    SigSet::empty().thread_set_mask()?;
    let child = command.spawn();
    blocked.thread_set_mask()?;
    child
}

/// On SIGINT, SIGTERM or SIGHUP: clean up, then end as if nothing had caught it.
fn remove_on_signal(run: String) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Ok(signal) = signals.wait() {
                let _nobody_makes = MAKING.write().unwrap_or_else(PoisonError::into_inner);
                eprintln!("{signal}: cleaning up");
                if let Err(error) = remove(&run) {
                    eprintln!("the laboratory could not clean up: {error:#}");
                }
                std::process::exit(128 + signal as i32);
            }
        })
        .context("starting the signal thread")?;
    Ok(())
}

/// The run's name in the name of something it made.
fn run_in(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    let mut parts = rest.split('-');
    let (pid, started) = (parts.next()?, parts.next()?);
    Some(format!("{PREFIX}{pid}-{started}"))
}

fn is_alive(run: &str) -> bool {
    run.strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(pid, started)| Some(start_time(pid.parse().ok()?)? == started))
        .unwrap_or(false)
}

fn name_of(pid: u32) -> Result<String> {
    let started = start_time(pid).context("reading /proc/self/stat: is /proc mounted?")?;
    Ok(format!("{PREFIX}{pid}-{started}"))
}

/// When a process started, in the kernel's ticks; `None`: it is gone or only a zombie is left.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

fn entries(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
