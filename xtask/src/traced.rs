//! A tracer at work: started, waited for, stopped; its trace read as any other program would read it.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::lab::{Run, wait_for};

/// The recording's name in a tracer's folder.
pub const RECORDING: &str = "recording.jsonl.zst";
/// How long a tracer may take to be ready, in a debug build on a loaded machine.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to finish its files.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// A running `tracer attach`; killed when dropped.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    folder: PathBuf,
    started: Instant,
    read: Mutex<ReadSoFar>,
}

/// What of a growing trace was read: every record but the attempts that succeeded, of which there are many.
#[derive(Debug, Default)]
struct ReadSoFar {
    bytes: u64,
    records: Vec<Value>,
}

impl Tracer {
    /// Starts one that writes `trace.jsonl`, `recording` and its own output into `folder`; waits until it is ready.
    pub fn attach(run: &Run, program: &Path, pid: &str, arguments: &[String], folder: &Path) -> Result<Self> {
        let tracer = Self::start(run, program, pid, arguments, folder)?;
        tracer.wait_until_ready()
    }

    /// Starts one that keeps no recording, for traffic at full speed; waits until it is ready.
    pub fn attach_unrecorded(
        run: &Run,
        program: &Path,
        pid: &str,
        arguments: &[String],
        folder: &Path,
    ) -> Result<Self> {
        Self::begin(run, program, pid, arguments, folder)?.wait_until_ready()
    }

    /// Starts one without waiting.
    pub fn start(run: &Run, program: &Path, pid: &str, arguments: &[String], folder: &Path) -> Result<Self> {
        let recording = folder.join(RECORDING).display().to_string();
        let arguments = [&["--record".to_owned(), recording], arguments].concat();
        Self::begin(run, program, pid, &arguments, folder)
    }

    fn begin(run: &Run, program: &Path, pid: &str, arguments: &[String], folder: &Path) -> Result<Self> {
        let output = |name: &str| {
            File::create(folder.join(name)).with_context(|| format!("making {}", folder.join(name).display()))
        };
        let mut command = Command::new(program);
        command
            // The recording's header holds the command: as a user would have typed it.
            .arg0("tracer")
            .args(["attach", "--pid", pid, "--output"])
            .arg(folder.join("trace.jsonl"))
            .arg("--ready-file")
            .arg(folder.join("ready"))
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output("tracer.stdout")?)
            .stderr(output("tracer.stderr")?);
        let started = Instant::now();
        Ok(Self {
            child: run.spawn(&mut command)?,
            folder: folder.to_owned(),
            started,
            read: Mutex::default(),
        })
    }

    /// Waits until it says that every hook is attached.
    pub fn wait_until_ready(mut self) -> Result<Self> {
        let ready = self.folder.join("ready");
        let mut ended = None;
        wait_for("the tracer to be ready", READY_PATIENCE, || {
            if ready.exists() {
                return Ok(());
            }
            ended = self.child.try_wait().ok().flatten();
            if ended.is_some() {
                return Ok(());
            }
            Err("no ready file".to_owned())
        })?;
        ensure!(
            ready.exists(),
            "the tracer ended with {}: {}",
            ended.map(|status| status.to_string()).unwrap_or_default(),
            self.said()
        );
        Ok(self)
    }

    /// Time since it was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard error output.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("tracer.stderr")).unwrap_or_default()
    }

    /// The records in its trace so far; a torn last line is left out.
    pub fn records(&self) -> Result<Vec<Value>> {
        records(&self.folder.join("trace.jsonl"))
    }

    /// How many attempts in its trace so far did not succeed, of one nginx's when its master is given.
    pub fn n_not_ok(&self, master: Option<u32>) -> Result<usize> {
        let read = self.read_on()?;
        let is_wanted = of_instance(&read.records, master);
        Ok(not_ok(&read.records).filter(|attempt| is_wanted(attempt)).count())
    }

    /// Takes in the lines that were written since the last look.
    fn read_on(&self) -> Result<MutexGuard<'_, ReadSoFar>> {
        let path = self.folder.join("trace.jsonl");
        let mut so_far = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let read = &mut *so_far;
        let mut file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
        file.seek(SeekFrom::Start(read.bytes))?;
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let n = file
                .read_until(b'\n', &mut line)
                .with_context(|| format!("reading {}", path.display()))?;
            if !line.ends_with(b"\n") {
                return Ok(so_far);
            }
            let in_line = || format!("in {}: {}", path.display(), String::from_utf8_lossy(&line));
            let record: Value = serde_json::from_slice(&line).with_context(in_line)?;
            read.bytes += u64::try_from(n)?;
            if record["type"] != "attempt" || record["outcome"] != "ok" {
                read.records.push(record);
            }
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(nix::unistd::Pid::from_raw(self.pid().cast_signed()), signal)
            .with_context(|| format!("sending {signal} to the tracer"))
    }

    /// Waits until it ends.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for("the tracer to end", STOP_PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Ends it as a user would, and yields the whole trace.
    pub fn stop(self) -> Result<Vec<Value>> {
        let folder = self.folder.clone();
        self.signal(Signal::SIGTERM)?;
        let said = folder.join("tracer.stderr");
        let status = self.wait()?;
        ensure!(
            status.success(),
            "the tracer ended with {status}: {}",
            fs::read_to_string(said).unwrap_or_default()
        );
        records(&folder.join("trace.jsonl"))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Diagnoses a recording again and yields the trace.
pub fn replay(program: &Path, recording: &Path, trace: &Path) -> Result<Vec<Value>> {
    let mut command = Command::new(program);
    command.arg("replay").arg(recording).arg("--quiet");
    said(command.arg("--output").arg(trace))?;
    records(trace)
}

/// What a tracer prints that is to end well.
fn said(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("reading what the tracer said")
}

/// What `tracer annotate` says of a log: one object for each line about an upstream's failure, and the summary behind them.
pub fn annotate(program: &Path, log: &Path, trace: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = Command::new(program);
    command
        .arg("annotate")
        .arg(log)
        .arg("--trace")
        .arg(trace)
        .arg("--json")
        .args(arguments);
    let said = said(&mut command)?;
    said.lines()
        .map(|line| serde_json::from_str(line).context("reading what `tracer annotate` said"))
        .collect()
}

/// In what two traces of the same inputs differ: every record but the session's, which names the command.
pub fn first_difference(live: &[Value], replayed: &[Value]) -> Option<String> {
    let told = |records: &[Value]| -> Vec<Value> {
        let is_told = |record: &&Value| record["type"] != "session";
        records.iter().filter(is_told).cloned().collect()
    };
    let (live, replayed) = (told(live), told(replayed));
    for (at, record) in live.iter().enumerate() {
        match replayed.get(at) {
            Some(again) if again == record => {}
            Some(again) => return Some(format!("record {at} was {record}, and is {again} in the replay")),
            None => return Some(format!("the replay ends before record {at}: {record}")),
        }
    }
    (replayed.len() > live.len()).then(|| format!("the replay has {} more", replayed.len() - live.len()))
}

/// The whole lines of a JSON Lines file.
pub fn records(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _torn)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("in {}: {line}", path.display())))
        .collect()
}

/// The records of one type.
pub fn of_type<'a>(records: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    records.iter().filter(move |record| record["type"] == kind)
}

/// Whether a record of this trace concerns an nginx, known by its master (or its only process): every record but the
/// attempts of others, and the events of their workers. Without a master every record does.
pub fn of_instance(records: &[Value], master: Option<u32>) -> impl Fn(&Value) -> bool {
    let workers: Option<HashSet<u64>> = master.map(|master| {
        let first = of_type(records, "session").take(1);
        let at_first = first
            .flat_map(|session| session["nginx"].as_array().into_iter().flatten())
            .filter(|nginx| nginx["pid"] == master)
            .flat_map(|nginx| nginx["workers"].as_array().into_iter().flatten());
        let later = of_type(records, "event")
            .filter(|event| event["kind"] == "worker-start" && event["master"] == master)
            .map(|event| &event["pid"]);
        let workers = at_first.chain(later).filter_map(Value::as_u64);
        workers.chain([u64::from(master)]).collect()
    });
    move |record| {
        let is_anothers = |workers: &HashSet<u64>| {
            let worker = record["worker"].as_u64();
            match record["type"].as_str() {
                Some("attempt") => worker.is_none_or(|pid| !workers.contains(&pid)),
                Some("event") => worker.is_some_and(|pid| !workers.contains(&pid)),
                _ => false,
            }
        };
        !workers.as_ref().is_some_and(is_anothers)
    }
}

/// The attempts that did not succeed.
pub fn not_ok(records: &[Value]) -> impl Iterator<Item = &Value> {
    of_type(records, "attempt").filter(|attempt| attempt["outcome"] != "ok")
}
