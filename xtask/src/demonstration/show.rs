//! The demonstration as a person sees it: every kind of failure once when it first happens, one of them in full, and
//! what became of every upstream.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{FAILING, HEALTHY, race, scenario};
use crate::{
    lab::{Run, client::Client, wait_for},
    scenario::{run::find_nginx, stage::Stage},
};

/// The argument that makes a test's own executable the demonstration; the tracer, the folder and the seconds follow.
pub const ROLE: &str = "--lab-demonstration";

/// How long the tracer may take to be ready, and to finish.
const PATIENCE: Duration = Duration::from_secs(30);
/// Healthy requests under way at every moment.
const LOAD: usize = 50;
/// Users ask this often.
const EVERY: Duration = Duration::from_millis(700);
/// Columns of what is printed.
const COLUMNS: usize = 100;
/// Columns before the text of a failure.
const MARGIN: usize = 10;
/// The upstream of which one failure is shown in full.
const IN_FULL: &str = "api";
/// A block longer than this is cut: the whole is in the folder.
const BLOCK_LINES: usize = 14;

/// What to show.
#[derive(Clone, Debug)]
pub struct Show {
    /// The tracer.
    pub program: PathBuf,
    /// Where trace, report and the tracer's own words go.
    pub folder: PathBuf,
    /// How long traffic flows.
    pub traffic: Duration,
}

/// Runs the demonstration from the arguments behind [`ROLE`].
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = |what: &str| arguments.next().with_context(|| format!("{ROLE} needs {what}"));
    Show {
        program: next("the tracer")?.into(),
        folder: next("a folder")?.into(),
        traffic: Duration::from_secs(next("seconds")?.parse().context("seconds")?),
    }
    .run()
}

impl Show {
    /// Runs it; nothing but the folder is left.
    pub fn run(&self) -> Result<()> {
        let run = Run::begin()?;
        fs::create_dir_all(&self.folder).with_context(|| format!("making {}", self.folder.display()))?;
        let scenario = scenario()?;
        let mut stage = Stage::set(&run, &scenario, &find_nginx()?)?;
        let load = stage.load(LOAD, false)?;
        println!(
            "\n{} upstreams, of which {} are about to fail; {} s of traffic:\n$ sudo tracer attach --pid {}\n",
            HEALTHY.len() + FAILING.len() + 1,
            FAILING.len() + 1,
            self.traffic.as_secs(),
            stage.nginx.pid()
        );
        let mut tracer = self.attach(&run, stage.nginx.pid())?;
        let mut seen = Seen::follow(&self.trace())?;
        for step in &scenario.lab.steps {
            stage
                .take(&run, step)
                .with_context(|| format!("while doing {step:?}"))?;
        }
        self.traffic(&stage, &mut seen)?;
        for number in 0..2 {
            race(&run, &mut stage, &format!("racer-{number}"))?;
        }
        load.stop();
        stop(&mut tracer)?;
        drop(stage);
        seen.look()?;
        self.report()?;
        self.close(&seen)?;
        fs::remove_file(self.folder.join("ready")).context("removing the ready file")
    }

    fn trace(&self) -> PathBuf {
        self.folder.join("trace.jsonl")
    }

    /// Starts the tracer and waits until it watches.
    fn attach(&self, run: &Run, pid: u32) -> Result<Child> {
        let folder = &self.folder;
        let ready = folder.join("ready");
        if ready.exists() {
            fs::remove_file(&ready).context("removing the ready file of an earlier run")?;
        }
        let output = |name: &str| File::create(folder.join(name)).with_context(|| format!("making {name}"));
        let mut tracer = run.spawn(
            Command::new(&self.program)
                .arg0("tracer")
                .args(["attach", "--pid", &pid.to_string(), "--output"])
                .arg(self.trace())
                .arg("--ready-file")
                .arg(&ready)
                .stdin(Stdio::null())
                .stdout(output("terminal.txt")?)
                .stderr(output("tracer.stderr")?),
        )?;
        wait_for("the tracer to be ready", PATIENCE, || {
            if let Ok(Some(status)) = tracer.try_wait() {
                let said = fs::read_to_string(folder.join("tracer.stderr")).unwrap_or_default();
                return Err(format!("it ended with {status}: {said}"));
            }
            if ready.exists() {
                Ok(())
            } else {
                Err("no ready file".to_owned())
            }
        })?;
        Ok(tracer)
    }

    /// People use the site: every path in turn.
    fn traffic(&self, stage: &Stage, seen: &mut Seen) -> Result<()> {
        let end = Instant::now() + self.traffic;
        let (near, address) = (&stage.near, &stage.address);
        std::thread::scope(|scope| -> Result<()> {
            let users: Vec<_> = HEALTHY
                .iter()
                .chain(FAILING)
                .map(|path| {
                    scope.spawn(move || -> Result<()> {
                        while Instant::now() < end {
                            let mut client = Client::connect(near, address)?;
                            client.send("POST", path, 100, false)?;
                            client.receive()?;
                            std::thread::sleep(EVERY);
                        }
                        Ok(())
                    })
                })
                .collect();
            while Instant::now() < end {
                seen.look()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            for user in users {
                match user.join() {
                    Ok(result) => result?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(())
        })
    }

    fn report(&self) -> Result<()> {
        let report = Command::new(&self.program)
            .arg("report")
            .arg(self.trace())
            .output()
            .context("starting tracer report")?;
        ensure!(
            report.status.success(),
            "tracer report ended with {}: {}",
            report.status,
            String::from_utf8_lossy(&report.stderr)
        );
        fs::write(self.folder.join("report.txt"), &report.stdout).context("writing report.txt")
    }

    /// One failure in full, what became of every upstream, and where the rest is.
    fn close(&self, seen: &Seen) -> Result<()> {
        let printed = fs::read_to_string(self.folder.join("terminal.txt")).context("reading terminal.txt")?;
        if let Some(block) = block_of(&printed, IN_FULL) {
            println!("\none of them in full, as the tracer prints it:\n\n{block}");
        }
        println!("\nby upstream:");
        print!("{}", seen.table());
        println!(
            "\n{}: trace.jsonl, report.txt, and terminal.txt with every block",
            self.folder.display()
        );
        Ok(())
    }
}

/// A failure's block in what the tracer printed: the first paragraph that is about this upstream and tells what nginx
/// logged.
fn block_of(printed: &str, upstream: &str) -> Option<String> {
    let is_its = |line: &str| line.split_whitespace().nth(1) == Some(upstream);
    let block = printed.split("\n\n").find(|paragraph| {
        paragraph.lines().next().is_some_and(is_its) && paragraph.contains("  nginx logs ")
    })?;
    let lines: Vec<&str> = block.lines().take(BLOCK_LINES).collect();
    Some(lines.join("\n"))
}

/// What the trace has told so far.
struct Seen {
    trace: File,
    partial: String,
    kinds: BTreeSet<(String, String)>,
    upstreams: BTreeMap<String, Upstream>,
}

#[derive(Default)]
struct Upstream {
    attempts: u64,
    failed: u64,
    causes: BTreeMap<String, u64>,
}

impl Seen {
    fn follow(trace: &Path) -> Result<Self> {
        Ok(Self {
            trace: File::open(trace).with_context(|| format!("opening {}", trace.display()))?,
            partial: String::new(),
            kinds: BTreeSet::new(),
            upstreams: BTreeMap::new(),
        })
    }

    /// Takes in what is new; the first failure of each upstream and cause is printed.
    fn look(&mut self) -> Result<()> {
        self.trace
            .read_to_string(&mut self.partial)
            .context("reading the trace")?;
        let text = std::mem::take(&mut self.partial);
        let (whole, rest) = text.rsplit_once('\n').unwrap_or(("", &text));
        rest.clone_into(&mut self.partial);
        for line in whole.lines() {
            let record: Value =
                serde_json::from_str(line).with_context(|| format!("in the trace: {line}"))?;
            if record["type"] == "attempt" {
                self.take(&record);
            }
        }
        Ok(())
    }

    fn take(&mut self, attempt: &Value) {
        let name = match (attempt["upstream"].as_str(), attempt["upstreams"].as_array()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(several)) if !several.is_empty() => {
                let names: Vec<&str> = several.iter().filter_map(Value::as_str).collect();
                names.join(" or ")
            }
            (None, _) => "without a name".to_owned(),
        };
        let upstream = self.upstreams.entry(name.clone()).or_default();
        upstream.attempts += 1;
        let outcome = attempt["outcome"].as_str().unwrap_or_default();
        if matches!(outcome, "ok" | "cancelled") {
            return;
        }
        upstream.failed += 1;
        let cause = attempt["cause"]["id"].as_str().unwrap_or("unknown").to_owned();
        *upstream.causes.entry(cause.clone()).or_default() += 1;
        if self.kinds.insert((name, cause)) {
            println!("{}", told(attempt, outcome));
        }
    }

    fn table(&self) -> String {
        let mut rows: Vec<_> = self.upstreams.iter().collect();
        rows.sort_by_key(|(name, upstream)| (upstream.failed == 0, *name));
        let mut table = String::new();
        for (name, upstream) in rows {
            let causes: Vec<String> = upstream
                .causes
                .iter()
                .map(|(cause, n)| format!("{cause} ({n})"))
                .collect();
            let failed = match upstream.failed {
                0 => "none failed".to_owned(),
                n => format!("{n} failed"),
            };
            let row = format!(
                "  {name:<22} {:>6} attempts  {failed:<12}  {}",
                upstream.attempts,
                causes.join(", ")
            );
            table += row.trim_end();
            table.push('\n');
        }
        table
    }
}

/// A failure in short: when, where, what and why.
fn told(attempt: &Value, outcome: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // A UTC time in RFC 3339: its time of day to the second.
    let time: String = text(&attempt["time"]).chars().skip(11).take(8).collect();
    let path = text(&attempt["peer"]);
    // The paths of the throw-away folder are long, and their last part says it.
    let peer = match path.strip_prefix("unix:").and_then(|path| path.rsplit_once('/')) {
        Some((_, name)) => format!("unix:…/{name}"),
        None => path.clone(),
    };
    let head = format!("{time}  {} → {peer}  {outcome}", text(&attempt["upstream"]));
    let cause = &attempt["cause"];
    let cause_name = format!("{} · {}", text(&cause["id"]), text(&cause["confidence"]));
    let gap = COLUMNS
        .saturating_sub(head.chars().count() + cause_name.chars().count())
        .max(2);
    let folder = path.strip_prefix("unix:").and_then(|path| path.rsplit_once('/'));
    let summary = match folder {
        Some((folder, _)) => text(&cause["summary"]).replace(folder, "…"),
        None => text(&cause["summary"]),
    };
    format!("{head}{:gap$}{cause_name}{}", "", wrapped(&summary))
}

/// A text in lines behind the margin, each on a new line.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut column = COLUMNS;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column + 1 + width > COLUMNS {
            lines += &format!("\n{:MARGIN$}{word}", "");
            column = MARGIN + width;
        } else {
            lines += &format!(" {word}");
            column += 1 + width;
        }
    }
    lines
}

/// Ends the tracer as Ctrl-C would.
fn stop(tracer: &mut Child) -> Result<()> {
    kill(
        nix::unistd::Pid::from_raw(tracer.id().cast_signed()),
        Signal::SIGINT,
    )
    .context("ending the tracer")?;
    let status = wait_for("the tracer to end", PATIENCE, || match tracer.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("it runs".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    ensure!(status.success(), "the tracer ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_in_short_has_its_cause_at_the_right_and_its_sentence_below() {
        let attempt = json!({
            "time": "2026-11-28T01:02:03.456789Z",
            "upstream": "chat",
            "peer": "unix:/tmp/lab/1-demo/chat.sock",
            "cause": {
                "id": "unix-backlog-full",
                "confidence": "confirmed",
                "summary": "The queue of /tmp/lab/1-demo/chat.sock is full.",
            },
        });
        let expected = format!(
            "{:<71}unix-backlog-full · confirmed\n          The queue of …/chat.sock is full.",
            "01:02:03  chat → unix:…/chat.sock  exhausted"
        );
        assert_eq!(told(&attempt, "exhausted"), expected);
    }

    #[test]
    fn a_block_is_a_paragraph_about_the_upstream_with_nginx_s_line() {
        let printed = "watching nginx\n\n01:02:03.1    api ended\n\n01:02:03.1  chat → x\n  nginx logs   nothing\n\n\
                       01:02:03.2  api → x\n  nginx logs   nothing\n\nend";
        assert_eq!(
            block_of(printed, "api").as_deref(),
            Some("01:02:03.2  api → x\n  nginx logs   nothing")
        );
    }
}
