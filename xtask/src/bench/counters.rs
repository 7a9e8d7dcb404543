//! A tracer under observation: what the kernel counts of its BPF programs, its time and its memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::fd::{FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use serde_json::Value;
use xtask::lab::{Run, wait_for};

/// How long a tracer may take to be ready, and to finish its file.
const PATIENCE: Duration = Duration::from_secs(60);
/// The unit of times in /proc: `USER_HZ` is 100 on every machine Rust runs on, whatever the kernel's own tick.
const TICKS_PER_SECOND: u64 = 100;

/// The kernel counts every BPF program's runs and time as long as this lives.
///
/// The kernel itself stops when the descriptor is closed, so nothing is left switched on whatever ends this process;
/// `kernel.bpf_stats_enabled` is a file that a crash would leave changed.
pub(super) struct KernelStatistics {
    _keeps: OwnedFd,
}

impl KernelStatistics {
    pub(super) fn keep() -> Result<Self> {
        /// `BPF_ENABLE_STATS` of enum `bpf_cmd`, since Linux 5.8.
        /// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h>
        const ENABLE_STATS: libc::c_long = 32;
        /// `BPF_STATS_RUN_TIME` of enum `bpf_stats_type`, the command's only argument.
        const RUN_TIME: u32 = 0;
        let argument = RUN_TIME;
        // SAFETY: the kernel reads as many bytes as the last argument says, and keeps no pointer.
        let made = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                ENABLE_STATS,
                &raw const argument,
                size_of_val(&argument),
            )
        };
        let descriptor = nix::errno::Errno::result(made).context("asking the kernel to time BPF programs")?;
        let descriptor = i32::try_from(descriptor).context("a descriptor out of range")?;
        // SAFETY: the kernel made this descriptor just now for us alone.
        let keeps = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { _keeps: keeps })
    }
}

/// A BPF program as the kernel sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) name: String,
    /// BPF instructions it consists of.
    pub(super) length: Option<u64>,
    pub(super) runs: u64,
    pub(super) nanoseconds: u64,
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) peak: u64,
}

/// A `tracer attach` that writes everything, compressed, as a user would have it.
pub(super) struct Tracer {
    child: Child,
    folder: PathBuf,
    /// What it writes.
    pub(super) trace: PathBuf,
    /// From its start until every hook was attached.
    pub(super) ready_after: Duration,
}

impl Tracer {
    /// Starts one and waits until it is ready.
    pub(super) fn attach(run: &Run, program: &Path, nginx: u32, folder: &Path) -> Result<Self> {
        let ready = folder.join("ready");
        if ready.exists() {
            fs::remove_file(&ready).context("removing the ready file of an earlier run")?;
        }
        let trace = folder.join("trace.jsonl.zst");
        let output = |name: &str| File::create(folder.join(name)).with_context(|| format!("making {name}"));
        let (stdout, stderr) = (output("tracer.stdout")?, output("tracer.stderr")?);
        let began = Instant::now();
        let child = run.spawn(
            Command::new(program)
                .args(["attach", "--pid", &nginx.to_string(), "--quiet", "--output"])
                .arg(&trace)
                .arg("--ready-file")
                .arg(&ready)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(stderr),
        )?;
        let mut tracer = Self {
            child,
            folder: folder.to_owned(),
            trace,
            ready_after: Duration::ZERO,
        };
        while !ready.exists() {
            let ended = tracer.child.try_wait().context("looking at the tracer")?;
            ensure!(ended.is_none(), "the tracer ended: {}", tracer.said());
            ensure!(
                began.elapsed() < PATIENCE,
                "the tracer is not ready after {PATIENCE:?}: {}",
                tracer.said()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        tracer.ready_after = began.elapsed();
        Ok(tracer)
    }

    /// Ends it as Ctrl-C would; yields all the processor time it ever took, the writing of the file's end included.
    pub(super) fn finish(mut self) -> Result<Duration> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).context("ending the tracer")?;
        // Its times can be read until it is reaped.
        wait_for("the tracer to end", PATIENCE, || {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            match waitid(Id::Pid(pid), flags) {
                Ok(WaitStatus::StillAlive) => Err("it runs".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })?;
        let cpu = self.cpu()?;
        let status = self.child.wait().context("waiting for the tracer")?;
        ensure!(
            status.success(),
            "the tracer ended with {status}: {}",
            self.said()
        );
        Ok(cpu)
    }

    /// Its user and system time so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        processor_time(&stat).with_context(|| format!("no times in {path}"))
    }

    /// Its memory now and at most.
    pub(super) fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let bytes = |field| {
            number(&status, field)
                .map(|kib| kib * 1024)
                .with_context(|| format!("no {field} in {path}"))
        };
        Ok(Memory {
            resident: bytes("VmRSS")?,
            peak: bytes("VmHWM")?,
        })
    }

    /// Memory that its BPF programs and maps take in the kernel.
    pub(super) fn kernel_bytes(&self) -> Result<u64> {
        let mut seen = BTreeSet::new();
        Ok(self
            .descriptors()?
            .iter()
            .filter_map(|info| {
                let identity = ["prog_id", "map_id"].map(|field| number(info, field));
                Some((identity, number(info, "memlock")?))
            })
            .filter(|(identity, _)| seen.insert(*identity))
            .map(|(_, bytes)| bytes)
            .sum())
    }

    /// Its BPF programs by their ids.
    pub(super) fn programs(&self) -> Result<BTreeMap<u32, Loaded>> {
        let known = bpftool(&["prog", "show"]).unwrap_or_default();
        let mut programs = BTreeMap::new();
        for info in self.descriptors()? {
            let (Some(id), Some(runs), Some(nanoseconds)) = (
                number(&info, "prog_id"),
                number(&info, "run_cnt"),
                number(&info, "run_time_ns"),
            ) else {
                continue;
            };
            let shown = known
                .as_array()
                .and_then(|all| all.iter().find(|program| program["id"] == id));
            let name = shown
                .and_then(|program| program["name"].as_str())
                .map_or_else(|| format!("program {id}"), str::to_owned);
            // An instruction is eight bytes.
            let length = shown
                .and_then(|program| program["bytes_xlated"].as_u64())
                .map(|bytes| bytes / 8);
            programs.insert(
                u32::try_from(id).context("a program id out of range")?,
                Loaded {
                    name,
                    length,
                    runs,
                    nanoseconds,
                },
            );
        }
        ensure!(!programs.is_empty(), "the tracer holds no BPF program");
        Ok(programs)
    }

    /// What the kernel says of each of its descriptors.
    fn descriptors(&self) -> Result<Vec<String>> {
        let folder = format!("/proc/{}/fdinfo", self.child.id());
        Ok(fs::read_dir(&folder)
            .with_context(|| format!("reading {folder}"))?
            .flatten()
            // A descriptor closed in between is none.
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .collect())
    }

    /// What it wrote to its standard error output.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("tracer.stderr")).unwrap_or_default()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Machine instructions per run of a program, counted for a second; `None`: it did not run in it.
pub(super) fn instructions_per_run(id: u32) -> Result<Option<f64>> {
    let id = id.to_string();
    let counted = bpftool(&["prog", "profile", "id", &id, "duration", "1", "instructions"])?;
    let counted = counted.get(0).context("bpftool counts nothing")?;
    let (Some(runs), Some(instructions)) = (counted["run_cnt"].as_u64(), counted["value"].as_u64()) else {
        anyhow::bail!("bpftool says {counted}");
    };
    Ok((runs > 0).then(|| instructions as f64 / runs as f64))
}

/// Runs bpftool and yields what it says.
fn bpftool(arguments: &[&str]) -> Result<Value> {
    let program = xtask::find_program("bpftool").context("no bpftool here")?;
    let output = Command::new(program)
        .arg("--json")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("starting bpftool")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let value: Option<Value> = serde_json::from_str(&said).ok();
    let error = value.as_ref().and_then(|value| value["error"].as_str());
    ensure!(
        output.status.success() && error.is_none(),
        "bpftool: {}",
        error.map_or_else(
            || String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
            str::to_owned
        )
    );
    value.with_context(|| format!("bpftool says {said}"))
}

/// The number after `field:` in a file of /proc.
fn number(text: &str, field: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// User and system time in the text of /proc/PID/stat.
fn processor_time(stat: &str) -> Option<Duration> {
    // The name in parentheses may itself hold spaces and parentheses; the state follows as field 3.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{number, processor_time};

    #[test]
    fn times_are_fields_14_and_15() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 9 9 20 0 1 0 100 1 1";
        assert_eq!(processor_time(stat), Some(Duration::from_millis(1750)));
        assert_eq!(processor_time("7 (a) S 1"), None);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = "pos:\t0\nprog_id:\t42\nrun_cnt:\t7\nVmRSS:\t  12 kB\n";
        assert_eq!(number(info, "run_cnt"), Some(7));
        assert_eq!(number(info, "VmRSS"), Some(12));
        assert_eq!(number(info, "run"), None);
    }
}
