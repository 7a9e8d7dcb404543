//! The demonstration: what a person sees of it, and that it leaves nothing behind, however it ends.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use xtask::{
    demonstration::{self, show::ROLE},
    lab::{Run, nginx::children, wait_for},
};

use crate::ground::{Ground, live, tracer};

/// How long a whole demonstration may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// One screenful of a person's terminal, and the scroll of a finger.
const SCREENFUL: usize = 70;

/// The tests.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    let interrupted = |name: &str, is_time: fn(&Demo) -> bool| {
        live(
            ground,
            &format!("demo/interrupted_{name}_it_leaves_nothing"),
            move |run, _| interrupt(run, is_time),
        )
    };
    vec![
        live(
            ground,
            "demo/it_names_every_failing_upstream_and_leaves_nothing",
            |run, _| whole(run),
        ),
        interrupted("at_once", |demo| demo.made("tracer-lab-").next().is_some()),
        interrupted("while_the_stage_is_set", |demo| !demo.namespaces().is_empty()),
        interrupted("during_traffic", |demo| demo.folder.join("ready").exists()),
        interrupted("at_the_end", |demo| {
            fs::read_to_string(demo.folder.join("trace.jsonl"))
                .is_ok_and(|trace| trace.contains("\"type\":\"summary\""))
        }),
    ]
}

/// A demonstration under way.
struct Demo {
    child: Child,
    folder: PathBuf,
}

impl Demo {
    fn start(run: &Run, seconds: u32) -> Result<Self> {
        let folder = run.folder("demo")?;
        let output =
            |name: &str| fs::File::create(folder.join(name)).with_context(|| format!("making {name}"));
        let myself = std::env::current_exe().context("finding this executable")?;
        let child = run.spawn(
            Command::new(myself)
                .arg(ROLE)
                .arg(tracer())
                .arg(&folder)
                .arg(seconds.to_string())
                .stdin(Stdio::null())
                .stdout(output("stdout")?)
                .stderr(output("stderr")?),
        )?;
        Ok(Self { child, folder })
    }

    fn said(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        format!("{}{}", read("stdout"), read("stderr"))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for("the demonstration to end", PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// What carries its name in the places where laboratories make things.
    fn made(&self, prefix: &str) -> impl Iterator<Item = String> {
        let name = format!("{prefix}{}-", self.child.id());
        let places = [
            std::env::temp_dir(),
            "/run/netns".into(),
            "/sys/fs/cgroup".into(),
            "/sys/fs/cgroup/memory".into(),
        ];
        places
            .into_iter()
            .flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten())
            .map(|entry| entry.path().display().to_string())
            .filter(move |path| {
                path.rsplit('/')
                    .next()
                    .is_some_and(|last| last.starts_with(&name))
            })
    }

    fn namespaces(&self) -> Vec<String> {
        self.made("tracer-lab-")
            .filter(|path| path.starts_with("/run/netns/"))
            .collect()
    }

    /// Its own processes and those whose command line names its folder.
    fn processes(&self) -> BTreeSet<Process> {
        let mark = format!("tracer-lab-{}-", self.child.id());
        let mut open = vec![self.child.id()];
        let mut found = BTreeSet::new();
        while let Some(pid) = open.pop() {
            open.extend(children(pid));
            found.extend(Process::of(pid));
        }
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_marked = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&mark))
        };
        found.extend(pids.filter(is_marked).filter_map(Process::of));
        found
    }

    /// Nothing that it made is there any more, and none of these processes.
    fn has_left_nothing(&self, before: BTreeSet<Process>) -> Result<()> {
        wait_for("all that it made to be gone", Duration::from_secs(10), || {
            let mut left: Vec<String> = self.made("tracer-lab-").collect();
            let processes = before.iter().copied().chain(self.processes());
            left.extend(
                processes
                    .filter(|process| Process::of(process.pid) == Some(*process))
                    .map(|process| format!("process {}", process.pid)),
            );
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join(", "))
            }
        })
    }
}

/// A process that runs, told from a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let runs = !matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        runs.then_some(Self { pid, started })
    }
}

fn whole(run: &Run) -> Result<()> {
    let mut demo = Demo::start(run, 12)?;
    wait_for("traffic", PATIENCE, || {
        match (demo.folder.join("ready").exists(), demo.child.try_wait()) {
            (true, _) => Ok(()),
            (false, Ok(None)) => Err("no ready file".to_owned()),
            (false, ended) => Err(format!("{ended:?}: {}", demo.said())),
        }
    })?;
    let processes = demo.processes();
    let status = demo.wait()?;
    let said = demo.said();
    ensure!(status.success(), "it ended with {status}: {said}");
    demo.has_left_nothing(processes)?;
    let lines = said.lines().count();
    ensure!(lines <= SCREENFUL, "{lines} lines:\n{said}");
    let (_, table) = said
        .split_once("by upstream:")
        .with_context(|| format!("no table: {said}"))?;
    for expect in demonstration::scenario()?.expect {
        let upstream = expect.upstream.context("an expectation without an upstream")?;
        let is_told = |line: &str| {
            line.split_whitespace().next() == Some(&*upstream)
                && line.contains(&format!("{} (", expect.cause))
        };
        ensure!(
            table.lines().any(is_told),
            "{upstream} is not told to fail by {}:\n{said}",
            expect.cause
        );
    }
    for name in ["trace.jsonl", "report.txt", "terminal.txt"] {
        let file = demo.folder.join(name);
        ensure!(
            fs::metadata(&file).is_ok_and(|file| file.len() > 0),
            "{} is empty",
            file.display()
        );
    }
    ensure!(
        names_folder(&said, &demo.folder),
        "its folder is not named:\n{said}"
    );
    Ok(())
}

fn names_folder(said: &str, folder: &Path) -> bool {
    said.contains(&folder.display().to_string())
}

fn interrupt(run: &Run, is_time: fn(&Demo) -> bool) -> Result<()> {
    let mut demo = Demo::start(run, 3)?;
    wait_for("the moment", PATIENCE, || {
        match (is_time(&demo), demo.child.try_wait()) {
            (true, _) => Ok(()),
            (false, Ok(None)) => Err("too early".to_owned()),
            (false, ended) => Err(format!("{ended:?}: {}", demo.said())),
        }
    })?;
    let processes = demo.processes();
    let pid = nix::unistd::Pid::from_raw(demo.child.id().cast_signed());
    // As Ctrl-C, but to it alone: what it started gets no signal of the terminal's.
    kill(pid, Signal::SIGINT).context("interrupting the demonstration")?;
    let status = demo.wait()?;
    // At the very end it may have been faster.
    ensure!(
        matches!(status.code(), Some(0 | 130)),
        "it ended with {status}: {}",
        demo.said()
    );
    demo.has_left_nothing(processes)
}
