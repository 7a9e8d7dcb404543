//! `cargo xtask bench`: what the tracer costs an nginx that carries traffic, and how soon it is ready.
//!
//! Throughput is measured in alternated pairs, without and with the tracer. Beside it stand counters that other load on
//! the machine does not touch; those of the kernel are taken in a pass of their own, since keeping them costs time.

mod counters;
mod crowd;
mod figures;
mod load;
mod site;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use xtask::{
    lab::{Run, netns::Netns},
    scenario::run::find_nginx,
};

use self::{
    counters::{KernelStatistics, Tracer, instructions_per_run},
    crowd::Crowd,
    figures::{Attached, Bench, Machine, Pair, Program, Ready, Workload},
    load::Loader,
    site::{Site, Traffic},
};
use crate::{
    play::{build_tracer, root},
    setup,
};

pub use crowd::run_if_crowd;

/// Processes of the host on which readiness is measured.
const PROCESSES: usize = 500;
/// Its sockets.
const SOCKETS: usize = 20_000;
/// How often readiness is measured.
const STARTS: usize = 5;
/// The programs whose instructions are counted, one second each.
const PROFILED: usize = 8;
/// Traffic before anything is measured, so that caches are warm and connections are there.
const WARM_UP: Duration = Duration::from_secs(1);

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Alternated pairs of runs, without and with the tracer.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(2..=50))]
    pairs: u32,
    /// Length of one run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Clients at the same time.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1000))]
    clients: u32,
    /// The tracer to measure; without it, a release build of this tree is made.
    #[arg(long)]
    tracer: Option<PathBuf>,
    /// Where bench.json and bench.md go; without it, docs.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the bench needs root (it makes network namespaces and loads BPF): run `sudo -E cargo xtask bench`"
    );
    let nginx = find_nginx()?;
    let tracer = match &args.tracer {
        Some(tracer) => {
            ensure!(
                tracer.is_file(),
                "{} is no file: give --tracer a program",
                tracer.display()
            );
            tracer.clone()
        }
        None => build_tracer(true)?,
    };
    let run = Run::begin()?;
    let namespace = Netns::new(&run)?;
    let site = Site::start(&run, &namespace, &nginx)?;
    let rig = Rig {
        run: &run,
        namespace: &namespace,
        site: &site,
        tracer: &tracer,
        loader: Loader::find(args.clients),
        length: Duration::from_secs(args.seconds.into()),
        folder: run.folder("bench")?,
    };

    let machine = Machine::look(&nginx, &tracer, &rig.loader.to_string())?;
    let bench = Bench {
        schema: figures::SCHEMA.to_owned(),
        command: format!(
            "cargo xtask bench --pairs {} --seconds {} --clients {}",
            args.pairs, args.seconds, args.clients
        ),
        machine,
        clients: args.clients,
        seconds: args.seconds,
        workloads: vec![
            rig.measure(Traffic::Fresh, args.pairs)?,
            rig.measure(Traffic::Kept, args.pairs)?,
        ],
        ready: rig.readiness()?,
    };

    let text = bench.markdown();
    println!("\n{text}");
    let folder = args.folder.clone().unwrap_or_else(|| root().join("docs"));
    let json = serde_json::to_string_pretty(&bench)? + "\n";
    for (name, content) in [("bench.json", &json), ("bench.md", &text)] {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// What every measurement needs.
struct Rig<'a> {
    run: &'a Run,
    namespace: &'a Netns,
    site: &'a Site,
    tracer: &'a Path,
    loader: Loader,
    length: Duration,
    folder: PathBuf,
}

impl Rig<'_> {
    /// Measures one kind of traffic: the pairs, then the kernel's counters.
    fn measure(&self, traffic: Traffic, pairs: u32) -> Result<Workload> {
        self.load(traffic, WARM_UP)?;
        let mut done = Vec::new();
        for number in 1..=pairs {
            // Whatever drifts while a pair runs favours neither side, since they take turns in going first.
            let pair = if number.is_multiple_of(2) {
                let with = self.attached(traffic)?;
                let without = self.load(traffic, self.length)?;
                Pair::new(without, with)
            } else {
                let without = self.load(traffic, self.length)?;
                Pair::new(without, self.attached(traffic)?)
            };
            println!(
                "{traffic}, pair {number} of {pairs}: {:.0} requests/s without, {:.0} with, ratio {:.3}",
                pair.without, pair.with.requests_per_second, pair.ratio
            );
            done.push(pair);
        }
        let mut programs = self.programs(traffic)?;
        let why_no_instructions = self
            .count_instructions(traffic, &mut programs)
            .err()
            .map(|error| format!("{error:#}"));
        Ok(Workload::new(
            traffic.to_string(),
            done,
            programs,
            why_no_instructions,
        ))
    }

    /// Requests per second, just so.
    fn load(&self, traffic: Traffic, length: Duration) -> Result<f64> {
        self.loader
            .run(self.namespace, self.site.port(traffic), length)
            .with_context(|| format!("while traffic ran ({traffic})"))
    }

    /// The same with the tracer attached and writing everything.
    fn attached(&self, traffic: Traffic) -> Result<Attached> {
        let tracer = self.attach()?;
        let ready_seconds = tracer.ready_after.as_secs_f64();
        let before = tracer.cpu()?;
        let requests_per_second = self.load(traffic, self.length)?;
        let memory = tracer.memory()?;
        let kernel_bytes = tracer.kernel_bytes()?;
        let trace = tracer.trace.clone();
        let after = tracer.finish()?;
        let said = self.read(&trace)?;
        Ok(Attached {
            requests_per_second,
            ready_seconds,
            attempts: said.report.attempts,
            failures: said.report.failures,
            lost: said.report.lost,
            is_complete: said.report.complete,
            cpu_seconds: (after - before).as_secs_f64(),
            resident_bytes: memory.resident,
            peak_bytes: memory.peak,
            kernel_bytes,
            trace_bytes: said.bytes,
        })
    }

    /// Every BPF program's runs and time, by the kernel's statistics.
    fn programs(&self, traffic: Traffic) -> Result<Vec<Program>> {
        let _statistics = KernelStatistics::keep()?;
        let tracer = self.attach()?;
        let before = tracer.programs()?;
        self.load(traffic, self.length)?;
        let after = tracer.programs()?;
        let trace = tracer.trace.clone();
        tracer.finish()?;
        let attempts = self.read(&trace)?.report.attempts;
        ensure!(attempts > 0, "the tracer saw no attempt");
        let mut programs: Vec<Program> = after
            .into_iter()
            .map(|(id, now)| {
                let (runs, nanoseconds) = before
                    .get(&id)
                    .map_or((0, 0), |then| (then.runs, then.nanoseconds));
                Program::new(
                    now.name,
                    now.length,
                    now.runs - runs,
                    now.nanoseconds - nanoseconds,
                    attempts,
                )
            })
            .filter(|program| program.runs > 0)
            .collect();
        programs.sort_by(|a, b| b.ns_per_attempt.total_cmp(&a.ns_per_attempt));
        Ok(programs)
    }

    /// Machine instructions per run of the programs that take most, where this machine counts them; else why not.
    fn count_instructions(&self, traffic: Traffic, programs: &mut [Program]) -> Result<()> {
        let tracer = self.attach()?;
        let ids = tracer.programs()?;
        let wanted: Vec<(usize, u32)> = programs
            .iter()
            .enumerate()
            .filter_map(|(at, program)| {
                let (id, _) = ids.iter().find(|(_, loaded)| loaded.name == program.name)?;
                Some((at, *id))
            })
            .take(PROFILED)
            .collect();
        // Without traffic first: most machines that cannot count say so at once.
        if let Some((_, id)) = wanted.first() {
            instructions_per_run(*id)?;
        }
        let length = Duration::from_secs(wanted.len() as u64 + 1);
        std::thread::scope(|scope| -> Result<()> {
            let traffic = scope.spawn(|| self.load(traffic, length));
            for (at, id) in wanted {
                programs[at].instructions_per_run = instructions_per_run(id)?;
            }
            match traffic.join() {
                Ok(result) => result.map(|_| ()),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        tracer.finish().map(|_| ())
    }

    /// How long a start takes on a host with many processes and sockets.
    fn readiness(&self) -> Result<Ready> {
        let crowd = Crowd::gather(self.namespace, PROCESSES, SOCKETS)?;
        let mut seconds = Vec::new();
        for number in 1..=STARTS {
            let tracer = self.attach()?;
            seconds.push(tracer.ready_after.as_secs_f64());
            tracer.finish()?;
            println!(
                "start {number} of {STARTS}: ready after {:.2} s",
                seconds[number - 1]
            );
        }
        Ok(Ready::new(crowd.processes(), crowd.sockets, seconds))
    }

    fn attach(&self) -> Result<Tracer> {
        Tracer::attach(self.run, self.tracer, self.site.pid(), &self.folder)
    }

    /// What a finished trace says of itself; the file goes, so that many runs need no more room than one.
    fn read(&self, trace: &Path) -> Result<Said> {
        let bytes = fs::metadata(trace)
            .with_context(|| format!("looking at {}", trace.display()))?
            .len();
        let output = Command::new(self.tracer)
            .args(["report", "--json"])
            .arg(trace)
            .output()
            .context("starting tracer report")?;
        ensure!(
            output.status.success(),
            "tracer report ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let report: Report =
            serde_json::from_slice(&output.stdout).context("reading tracer report --json")?;
        fs::remove_file(trace).with_context(|| format!("removing {}", trace.display()))?;
        Ok(Said { report, bytes })
    }
}

/// A trace in numbers.
struct Said {
    report: Report,
    bytes: u64,
}

/// What is needed of `tracer report --json`.
#[derive(Deserialize)]
struct Report {
    attempts: u64,
    failures: u64,
    lost: BTreeMap<String, u64>,
    complete: bool,
}
