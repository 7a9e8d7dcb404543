//! `cargo xtask demo`: a throw-away nginx whose upstreams fail for ten different reasons, and the tracer beside it.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use xtask::{
    demonstration::{self, FAILING, HEALTHY, race},
    lab::{Run, client::Client, wait_for},
    scenario::{run::find_nginx, stage::Stage},
};

use crate::{
    play::{build_tracer, root},
    setup,
};

/// How long traffic flows.
const SHOW: Duration = Duration::from_secs(12);
/// How long the tracer may take to be ready, and to finish.
const PATIENCE: Duration = Duration::from_secs(30);
/// Healthy requests under way at every moment.
const LOAD: usize = 50;

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Use a debug build of the tracer, which is there sooner.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the demonstration needs root (it makes network namespaces and loads BPF): run `sudo -E cargo xtask demo`"
    );
    setup::run(&setup::Args::default())?;
    let program = build_tracer(!args.debug)?;
    let run = Run::begin()?;
    let folder = root().join("out/demo");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;

    let scenario = demonstration::scenario()?;
    let mut stage = Stage::set(&run, &scenario, &find_nginx()?)?;
    let load = stage.load(LOAD, false)?;
    println!("\n$ tracer attach --pid {} -o trace.jsonl\n", stage.nginx.pid());
    let mut tracer = attach(&run, &program, stage.nginx.pid(), &folder)?;
    for step in &scenario.lab.steps {
        stage
            .take(&run, step)
            .with_context(|| format!("while doing {step:?}"))?;
    }
    traffic(&run, &mut stage)?;
    load.stop();
    stop(&mut tracer)?;
    drop(stage);

    let report = Command::new(&program)
        .arg("report")
        .arg(folder.join("trace.jsonl"))
        .output()
        .context("starting tracer report")?;
    ensure!(
        report.status.success(),
        "tracer report ended with {}: {}",
        report.status,
        String::from_utf8_lossy(&report.stderr)
    );
    fs::write(folder.join("report.txt"), &report.stdout).context("writing report.txt")?;
    println!("\ntrace and report are in {}", folder.display());
    Ok(())
}

/// Starts the tracer in sight of the user and waits until it watches.
fn attach(run: &Run, program: &Path, pid: u32, folder: &Path) -> Result<Child> {
    let ready = folder.join("ready");
    if ready.exists() {
        fs::remove_file(&ready).context("removing the ready file of an earlier run")?;
    }
    let errors = File::create(folder.join("tracer.stderr")).context("making tracer.stderr")?;
    let mut tracer = run.spawn(
        Command::new(program)
            .arg0("tracer")
            .args(["attach", "--pid", &pid.to_string(), "--output"])
            .arg(folder.join("trace.jsonl"))
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stderr(errors),
    )?;
    wait_for("the tracer to be ready", PATIENCE, || {
        if let Ok(Some(status)) = tracer.try_wait() {
            return Err(format!(
                "it ended with {status}, see {}",
                folder.join("tracer.stderr").display()
            ));
        }
        if ready.exists() {
            Ok(())
        } else {
            Err("no ready file".to_owned())
        }
    })?;
    Ok(tracer)
}

/// People use the site: every path in turn, a race now and then.
fn traffic(run: &Run, stage: &mut Stage) -> Result<()> {
    let end = Instant::now() + SHOW;
    std::thread::scope(|scope| -> Result<()> {
        let users: Vec<_> = HEALTHY
            .iter()
            .chain(FAILING)
            .map(|path| {
                let client = || Client::connect(&stage.near, &stage.address);
                let mut first = client()?;
                first.send("POST", path, 100, false)?;
                Ok((*path, first))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .map(|(path, mut first)| {
                let (near, address) = (&stage.near, &stage.address);
                scope.spawn(move || -> Result<()> {
                    first.receive()?;
                    while Instant::now() < end {
                        std::thread::sleep(Duration::from_millis(700));
                        let mut client = Client::connect(near, address)?;
                        client.send("POST", path, 100, false)?;
                        client.receive()?;
                    }
                    Ok(())
                })
            })
            .collect();
        for user in users {
            match user.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })?;
    for number in 0..2 {
        race(run, stage, &format!("racer-{number}"))?;
    }
    Ok(())
}

/// Ends the tracer as Ctrl-C would.
fn stop(tracer: &mut Child) -> Result<()> {
    kill(
        nix::unistd::Pid::from_raw(tracer.id().cast_signed()),
        Signal::SIGTERM,
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
