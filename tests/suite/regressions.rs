//! Mistakes that a tracer of this kind makes once, each with a test of its own name.
//!
//! Some have a scenario file instead, which says more: a failure finished inside connect() is `no-listener`, an ICMP
//! error in SYN_SENT `firewall-port-unreachable`, nginx's own timer in SYN_SENT `syn-unanswered`, a worker killed in
//! mid-request `worker-died`; and every scenario attaches while traffic runs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use xtask::{
    lab::{
        Run,
        client::{Keeps, Load},
        wait_for,
    },
    scenario::{judge, stage::Stage},
    traced::{Tracer, not_ok, of_type},
};

use crate::ground::{Ground, live, no_problems, scenario, tracer};

/// How long traffic may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// The kernel half's table of connections (`tracer-ebpf/src/maps.rs`).
const CONNECTIONS: u64 = 16_384;

/// The named regressions.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    vec![
        live(
            ground,
            "regression/ten_thousand_healthy_requests_have_no_failure",
            |run, nginx| healthy_requests(run, nginx, "ten-thousand", 10_000),
        ),
        live(
            ground,
            "regression/sockets_and_descriptors_are_used_again",
            sockets_are_used_again,
        ),
        live(
            ground,
            "regression/detach_while_traffic_runs",
            detach_while_traffic_runs,
        ),
        live(
            ground,
            "regression/state_tables_at_ten_times_their_size",
            state_tables_at_ten_times_their_size,
        ),
        live(
            ground,
            "regression/two_tracers_side_by_side",
            two_tracers_side_by_side,
        ),
        live(
            ground,
            "regression/kill_9_leaves_nothing_behind",
            kill_9_leaves_nothing_behind,
        ),
    ]
}

/// A stage with healthy upstreams, and one whose port nobody listens on.
const STAGE: &str = r#"
about = "healthy upstreams, and one that refuses"
[lab]
nginx.http = "keepalive_requests 1000000; upstream app { server {app}; }"
nginx.server = "location /app { proxy_pass http://app; error_page 502 =200 /refused; } location = /refused { return 200 xxx; }"
names.app = "127.0.0.1"
steps = []
"#;

fn stage(run: &Run, nginx: &Path, name: &str) -> Result<Stage> {
    Stage::set(run, &scenario(name, STAGE)?, nginx)
}

fn attach(run: &Run, stage: &Stage) -> Result<Tracer> {
    Tracer::attach(run, &tracer(), &stage.nginx.pid().to_string(), &[], &stage.folder)
}

/// Waits until a load has been answered so many times.
fn await_answers(load: &Load, wanted: u64) -> Result<()> {
    wait_for(format!("{wanted} answers"), PATIENCE, || match load.answered() {
        n if n >= wanted => Ok(()),
        n => Err(format!("{n} answers")),
    })
}

/// New connections and kept ones; the tracer sees every one of them and none fails.
fn healthy_requests(run: &Run, nginx: &Path, name: &str, wanted: u64) -> Result<()> {
    let stage = stage(run, nginx, name)?;
    let load = stage.load(100, false)?;
    await_answers(&load, 100)?;
    let tracer = attach(run, &stage)?;
    let before = load.answered();
    await_answers(&load, before + wanted)?;
    let report = load.stop();
    let records = tracer.stop()?;
    let seen = judge::Seen {
        records: &records,
        error_log: &stage.nginx.error_log(),
        healthy: report.answered - before,
        clients: 100,
        inner_pids: &BTreeMap::new(),
    };
    let mut problems = report.failed;
    problems.extend(judge::judge(
        &scenario(name, STAGE)?,
        &|text| stage.names().fill(text),
        &seen,
    )?);
    no_problems(name, &stage, &problems)
}

/// nginx takes the next free descriptor and the kernel the next free socket: both come back at once.
fn sockets_are_used_again(run: &Run, nginx: &Path) -> Result<()> {
    mixed_requests(run, nginx, "used-again", 3_000)
}

/// Refused connections beside healthy ones; every refusal is one attempt with the right cause.
fn mixed_requests(run: &Run, nginx: &Path, name: &str, wanted: u64) -> Result<()> {
    let stage = stage(run, nginx, name)?;
    let healthy = stage.load(50, false)?;
    await_answers(&healthy, 50)?;
    let tracer = attach(run, &stage)?;
    let refused = Load::start(&stage.near, &stage.address, &["/app"], 4, Keeps::Half)?;
    await_answers(&refused, wanted)?;
    let refused = refused.stop();
    Refusals::of(&stage)?.wait_for(refused.answered)?;
    let healthy = healthy.stop();
    let records = tracer.stop()?;
    let mut problems = [refused.failed, healthy.failed].concat();
    problems.extend(judge::frame(&records));
    problems.extend(judge::lines(&judge::Seen {
        records: &records,
        error_log: &stage.nginx.error_log(),
        healthy: 0,
        clients: 0,
        inner_pids: &BTreeMap::new(),
    }));
    let named = not_ok(&records)
        .filter(|attempt| attempt["cause"]["id"] == "no-listener" && attempt["upstream"] == "app")
        .count();
    let failed = not_ok(&records).count();
    if u64::try_from(named)? != refused.answered || failed != named {
        problems.push(format!(
            "{} requests were refused; {failed} attempts failed, {named} of them named no-listener at app",
            refused.answered
        ));
    }
    no_problems(name, &stage, &problems)
}

/// The refusals in a growing trace, whatever they are called.
struct Refusals {
    trace: BufReader<File>,
    seen: u64,
    /// A line without its end, which is read on the next time.
    torn: String,
}

impl Refusals {
    fn of(stage: &Stage) -> Result<Self> {
        let trace = stage.folder.join("trace.jsonl");
        Ok(Self {
            trace: BufReader::new(File::open(trace)?),
            seen: 0,
            torn: String::new(),
        })
    }

    fn wait_for(&mut self, wanted: u64) -> Result<()> {
        const REFUSED: &str = "\"outcome\":\"refused\"";
        wait_for("the refusals in the trace", PATIENCE, || {
            let line = &mut self.torn;
            while self.trace.read_line(line).map_err(|error| error.to_string())? > 0 && line.ends_with('\n') {
                self.seen += u64::from(line.contains(REFUSED));
                line.clear();
            }
            if self.seen >= wanted {
                Ok(())
            } else {
                Err(format!("{} of {wanted}", self.seen))
            }
        })
    }
}

/// Ten times as many refused connections as the kernel half's table has room for, in rounds that the ring has room for
/// however little of the machine the tracer gets: every one is in the trace with its name, nothing was lost, and the
/// tracer has not grown with their number. At such a rate a program now and then interrupts itself on its CPU and is
/// skipped by the kernel: then its understudy has done its work.
fn state_tables_at_ten_times_their_size(run: &Run, nginx: &Path) -> Result<()> {
    const MOST_MIB: u64 = 400;
    const ROUND: u64 = 6_000;
    let name = "ten-times";
    let stage = stage(run, nginx, name)?;
    let tracer = attach(run, &stage)?;
    let mut refusals = Refusals::of(&stage)?;
    let (mut answered, mut problems) = (0, Vec::new());
    while answered < 10 * CONNECTIONS {
        let load = Load::start(&stage.near, &stage.address, &["/app"], 4, Keeps::Half)?;
        await_answers(&load, ROUND)?;
        let report = load.stop();
        answered += report.answered;
        problems.extend(report.failed);
        if let Err(error) = refusals.wait_for(answered) {
            problems.push(format!("{error:#}"));
            break;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", tracer.pid()))?;
    let most_kib: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .split_ascii_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .context("no VmHWM in the tracer's status")?;
    tracer.signal(nix::sys::signal::Signal::SIGTERM)?;
    tracer.wait()?;
    let error_log = stage.nginx.error_log();
    let mut untold: BTreeMap<&str, i64> = BTreeMap::new();
    for line in error_log.lines() {
        *untold.entry(line).or_default() += 1;
    }
    let (mut attempts, mut others, mut last) = (0, Vec::new(), Value::Null);
    for line in BufReader::new(File::open(stage.folder.join("trace.jsonl"))?).lines() {
        last = serde_json::from_str(&line?)?;
        if last["type"] == "attempt" {
            attempts += 1;
            let line = last["log"]["line"].as_str().unwrap_or_default();
            if let Some(left) = untold.get_mut(line) {
                *left -= 1;
            }
            if last["cause"]["id"] != "no-listener" || last["log"].is_null() {
                others.push(format!("not no-listener, or without its line: {last}"));
            }
        } else if last["type"] == "lost" {
            others.push(format!("something was lost: {last}"));
        }
    }
    problems.append(&mut others);
    let untold = untold.iter().filter(|(_, left)| **left != 0);
    problems.extend(untold.map(|(line, left)| format!("{left} attempts too few with the line {line}")));
    if attempts != answered || last["failures"] != answered || last["complete"] != true {
        problems.push(format!(
            "{answered} requests were refused; the trace holds {attempts} attempts and ends with {last}"
        ));
    }
    if most_kib > MOST_MIB * 1024 {
        problems.push(format!(
            "the tracer took {} MiB, more than {MOST_MIB}",
            most_kib / 1024
        ));
    }
    no_problems(name, &stage, &problems)
}

/// Requests under way when the tracer leaves are counted, and are no attempts.
fn detach_while_traffic_runs(run: &Run, nginx: &Path) -> Result<()> {
    let name = "detach";
    let stage = stage(run, nginx, name)?;
    let load = stage.load(50, false)?;
    await_answers(&load, 50)?;
    let tracer = attach(run, &stage)?;
    let before = load.answered();
    await_answers(&load, before + 500)?;
    let records = tracer.stop()?;
    let report = load.stop();
    let mut problems = report.failed;
    problems.extend(judge::frame(&records));
    problems.extend(not_ok(&records).map(|attempt| format!("nothing failed: {attempt}")));
    let in_flight = records.last().and_then(|summary| summary["in_flight"].as_u64());
    if in_flight.is_none_or(|in_flight| in_flight == 0) {
        problems.push(format!(
            "50 requests were under way, the summary says {in_flight:?}"
        ));
    }
    no_problems(name, &stage, &problems)
}

/// Two tracers of one nginx see the same.
fn two_tracers_side_by_side(run: &Run, nginx: &Path) -> Result<()> {
    let name = "two-tracers";
    let mut stage = stage(run, nginx, name)?;
    let load = stage.load(50, false)?;
    await_answers(&load, 50)?;
    let first = attach(run, &stage)?;
    let beside = stage.folder.join("beside");
    std::fs::create_dir_all(&beside)?;
    let second = Tracer::attach(run, &tracer(), &stage.nginx.pid().to_string(), &[], &beside)?;
    let steps = scenario(
        name,
        r#"
        about = "three refused requests"
        [lab]
        nginx = {}
        steps = [{ request = { path = "/app", times = 3 } }]
        "#,
    )?;
    for step in &steps.lab.steps {
        stage.take(run, step)?;
    }
    let wanted = 3;
    for tracer in [&first, &second] {
        wait_for("three refusals", PATIENCE, || {
            let seen = tracer.n_not_ok(None).unwrap_or(0);
            if seen >= wanted {
                Ok(())
            } else {
                Err(format!("{seen}"))
            }
        })?;
    }
    load.stop();
    // What tells an attempt from others, and does not depend on when a tracer came.
    let told = |records: &[Value]| -> Vec<String> {
        not_ok(records)
            .map(|attempt| {
                format!(
                    "{} {} {} {} {}",
                    attempt["worker"],
                    attempt["local"],
                    attempt["peer"],
                    attempt["cause"]["id"],
                    attempt["log"]["line"]
                )
            })
            .collect()
    };
    let (first, second) = (first.stop()?, second.stop()?);
    let mut problems = judge::frame(&first);
    problems.extend(judge::frame(&second));
    if told(&first) != told(&second) || told(&first).len() != wanted {
        problems.push(format!(
            "they saw\n{:#?}\nand\n{:#?}",
            told(&first),
            told(&second)
        ));
    }
    no_problems(name, &stage, &problems)
}

/// The kernel takes all that belongs to a killed tracer; its trace reads to the last whole line.
fn kill_9_leaves_nothing_behind(run: &Run, nginx: &Path) -> Result<()> {
    let stage = stage(run, nginx, "kill-9")?;
    let load = stage.load(50, false)?;
    await_answers(&load, 50)?;
    let tracer = attach(run, &stage)?;
    let before = load.answered();
    await_answers(&load, before + 500)?;
    let pid = tracer.pid();
    let held = held_by(pid)?;
    ensure!(
        held.programs.len() > 5 && held.maps.len() > 5,
        "the tracer holds {} programs and {} maps: this test looks at the wrong thing",
        held.programs.len(),
        held.maps.len()
    );
    // The trace is flushed at least every second; what was written then must be readable.
    wait_for("attempts in the trace", PATIENCE, || {
        let seen = tracer
            .records()
            .map_or(0, |records| of_type(&records, "attempt").count());
        if seen > 0 { Ok(()) } else { Err("none".to_owned()) }
    })?;
    tracer.signal(nix::sys::signal::Signal::SIGKILL)?;
    let folder = stage.folder.clone();
    let status = tracer.wait()?;
    ensure!(!status.success(), "it was killed and says {status}");
    wait_for("the kernel to let go of programs and maps", PATIENCE, || {
        let programs: Vec<u32> = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .map(|program| program.id())
            .filter(|id| held.programs.contains(id))
            .collect();
        let maps: Vec<u32> = aya::maps::loaded_maps()
            .filter_map(Result::ok)
            .map(|map| map.id())
            .filter(|id| held.maps.contains(id))
            .collect();
        if programs.is_empty() && maps.is_empty() {
            Ok(())
        } else {
            Err(format!("programs {programs:?}, maps {maps:?}"))
        }
    })?;
    load.stop();
    let records = xtask::traced::records(&folder.join("trace.jsonl"))?;
    ensure!(
        records.first().is_some_and(|first| first["type"] == "session"),
        "the trace has no beginning"
    );
    Ok(())
}

/// The ids of BPF programs and maps that a process holds open.
struct Held {
    programs: Vec<u32>,
    maps: Vec<u32>,
}

fn held_by(pid: u32) -> Result<Held> {
    let mut held = Held {
        programs: Vec::new(),
        maps: Vec::new(),
    };
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let number = |key: &str| -> Option<u32> {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        };
        held.programs.extend(number("prog_id:"));
        held.maps.extend(number("map_id:"));
    }
    Ok(held)
}
