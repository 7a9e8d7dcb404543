//! nginx is followed through everything its life holds: reload, upgrade, restart, crashes, several at once, other names.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use xtask::{
    lab::{
        Run,
        client::{Client, Keeps, Load},
        netns::Netns,
        nginx::{Nginx, Start, children, wait_for_end},
        wait_for,
    },
    scenario::stage::Stage,
    traced::{Tracer, not_ok},
};

use crate::ground::{Ground, live, scenario, tracer};

/// How long nginx or the tracer may take to come round.
const PATIENCE: Duration = Duration::from_secs(30);
/// Healthy requests under way while nginx changes.
const LOAD: usize = 50;
/// What nginx says of a refusal.
const REFUSED: &str = "connect() failed (111: Connection refused) while connecting to upstream";

/// The tests.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    vec![
        live(
            ground,
            "follow/a_reload_keeps_the_old_names_of_old_workers",
            reload,
        ),
        live(
            ground,
            "follow/reloads_in_quick_succession",
            reloads_in_succession,
        ),
        live(
            ground,
            "follow/a_reload_that_fails_changes_no_names",
            failed_reload,
        ),
        live(ground, "follow/a_restart_of_nginx_renamed_as_openresty", restart),
        live(
            ground,
            "follow/an_nginx_renamed_as_freenginx_that_starts_later",
            started_later,
        ),
        live(
            ground,
            "follow/an_upgrade_by_the_old_masters_pid",
            |run, nginx| upgrade(run, nginx, "upgrade-by-pid", false),
        ),
        live(
            ground,
            "follow/an_upgrade_of_nginx_renamed_as_tengine_by_name",
            |run, nginx| upgrade(run, &renamed(run, nginx, "tengine")?, "upgrade-by-name", true),
        ),
        live(ground, "follow/an_upgrade_taken_back", upgrade_taken_back),
        live(ground, "follow/a_crash_of_a_worker", worker_crash),
        live(ground, "follow/a_crash_of_the_master", master_crash),
        live(ground, "follow/master_process_off", no_master),
        live(
            ground,
            "follow/two_instances_of_nginx_renamed_as_angie",
            two_instances,
        ),
        live(
            ground,
            "follow/two_containers_of_one_image_and_nginx_renamed_as_nginx_debug",
            two_containers,
        ),
        live(ground, "follow/a_worker_pid_stands_for_its_instance", by_worker),
        live(
            ground,
            "follow/two_hundred_instances_that_live_300_ms_renamed_as_angie",
            short_lived,
        ),
        live(
            ground,
            "follow/without_configuration_there_are_addresses",
            no_configuration,
        ),
    ]
}

/// A stage whose one upstream refuses.
fn refusing(run: &Run, nginx: &Path, name: &str, upstream: &str, more: &str) -> Result<Stage> {
    let text = format!(
        r#"
about = "an upstream that refuses"
[lab]
{more}
nginx.http = "upstream {upstream} {{ server {{app}}; }}"
nginx.server = "location /app {{ proxy_pass http://{upstream}; }}"
names.app = "127.0.0.1"
steps = []
"#
    );
    Stage::set(run, &scenario(name, &text)?, nginx)
}

/// nginx's executable under another name, as a fork of it would be found.
fn renamed(run: &Run, nginx: &Path, name: &str) -> Result<PathBuf> {
    let copy = run.folder("renamed")?.join(name);
    fs::copy(nginx, &copy).with_context(|| format!("copying nginx to {}", copy.display()))?;
    Ok(copy)
}

/// Attaches in a folder of its own, by pid or name.
fn attach(run: &Run, stage: &Stage, target: &str, arguments: &[&str]) -> Result<Tracer> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Tracer::attach(run, &tracer(), target, &arguments, &stage.folder)
}

/// A request on a connection of its own; yields the status.
fn ask(stage: &Stage, path: &str) -> Result<u16> {
    let mut client = Client::connect(&stage.near, &stage.address)?;
    client.send("GET", path, 0, false)?;
    Ok(client.receive()?.status)
}

/// Waits for so many failed attempts and yields them.
fn failures(tracer: &Tracer, wanted: usize) -> Result<Vec<Value>> {
    wait_for(format!("{wanted} failed attempts"), PATIENCE, || {
        let records = tracer.records().map_err(|error| format!("{error:#}"))?;
        let failed: Vec<Value> = not_ok(&records).cloned().collect();
        if failed.len() >= wanted {
            Ok(failed)
        } else {
            Err(format!(
                "{} of them; the tracer said `{}`",
                failed.len(),
                tracer.said().trim()
            ))
        }
    })
}

/// Upstream, cause and worker of an attempt.
fn told(attempt: &Value) -> (Option<&str>, Option<&str>, u64) {
    (
        attempt["upstream"].as_str(),
        attempt["cause"]["id"].as_str(),
        attempt["worker"].as_u64().unwrap_or(0),
    )
}

/// All failures are refusals at this upstream.
fn are_refused_at(failed: &[Value], upstream: Option<&str>) -> Result<()> {
    for attempt in failed {
        let (seen, cause, _) = told(attempt);
        ensure!(
            seen == upstream && cause == Some("no-listener"),
            "expected no-listener at {upstream:?}: {attempt}"
        );
    }
    Ok(())
}

fn reload(run: &Run, nginx: &Path) -> Result<()> {
    let text = r#"
about = "a backend that is slow across a reload"
[lab]
nginx.http = "upstream before { server {app}; }"
nginx.server = "location /app { proxy_pass http://before; proxy_read_timeout 3s; }"
backends.app = { does = "silent" }
steps = [
    { send = { path = "/app", client = "one" } },
    { hear = { backend = "app", says = "request" } },
]
"#;
    let scenario = scenario("reload", text)?;
    let mut stage = Stage::set(run, &scenario, nginx)?;
    let tracer = attach(run, &stage, &stage.nginx.pid().to_string(), &[])?;
    let old = stage.nginx.workers();
    for step in &scenario.lab.steps {
        stage.take(run, step)?;
    }
    let renamed = stage.config.replace("before", "after");
    stage.nginx.reload(&renamed)?;
    // Until then an old worker may still accept.
    wait_for("the old workers to shut down", PATIENCE, || {
        let is_leaving = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |title| {
                String::from_utf8_lossy(&title).contains("shutting down")
            })
        };
        old.iter()
            .all(is_leaving)
            .then_some(())
            .ok_or_else(|| "old workers that serve".to_owned())
    })?;
    ensure!(
        ask(&stage, "/app")? == 504,
        "the new worker's request did not time out"
    );
    let failed = failures(&tracer, 2)?;
    for attempt in &failed {
        let (upstream, cause, worker) = told(attempt);
        let is_old = old.iter().any(|pid| u64::from(*pid) == worker);
        let wanted = if is_old { "before" } else { "after" };
        ensure!(
            upstream == Some(wanted) && cause == Some("backend-slow"),
            "expected backend-slow at {wanted}: {attempt}"
        );
    }
    let workers = failed.iter().map(|attempt| told(attempt).2);
    let n_old = workers
        .filter(|worker| old.iter().any(|pid| u64::from(*pid) == *worker))
        .count();
    ensure!(n_old == 1, "{n_old} of two attempts were an old worker's");
    tracer.stop()?;
    Ok(())
}

/// Asks until a worker serves that names its upstream so; whatever it named before must be of `others`.
fn ask_until_named(stage: &Stage, tracer: &Tracer, wanted: &str, others: &[&str]) -> Result<()> {
    wait_for(format!("a failure at {wanted}"), PATIENCE, || {
        let before = tracer
            .records()
            .map(|records| not_ok(&records).count())
            .map_err(|error| format!("{error:#}"))?;
        ask(stage, "/app").map_err(|error| format!("{error:#}"))?;
        let failed = failures(tracer, before + 1).map_err(|error| format!("{error:#}"))?;
        match failed.last().and_then(|attempt| told(attempt).0) {
            Some(name) if name == wanted => Ok(()),
            Some(name) if others.contains(&name) => Err(name.to_owned()),
            other => panic!("named {other:?} where {wanted} was to come"),
        }
    })
}

/// A master reloads as often as it is told to, however short the time since it last forked.
fn reloads_in_succession(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "reloads-in-succession", "first", "")?;
    let tracer = attach(run, &stage, &stage.nginx.pid().to_string(), &[])?;
    let names = ["first", "second", "third", "fourth"];
    for (n, name) in names.iter().enumerate().skip(1) {
        stage.nginx.reload(&stage.config.replace("first", name))?;
        // Workers of every generation before may still accept.
        ask_until_named(&stage, &tracer, name, &names[..n])?;
    }
    tracer.stop()?;
    Ok(())
}

/// What a master could not load its workers do not have, not even those that replace a worker which crashed.
fn failed_reload(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "failed-reload", "first", "")?;
    let tracer = attach(run, &stage, &stage.nginx.pid().to_string(), &[])?;
    let file = stage.folder.join("nginx.conf");
    let broken = format!(
        "{}\nno_such_directive on;\n",
        stage.config.replace("first", "broken")
    );
    fs::write(&file, broken)?;
    stage.nginx.signal(Signal::SIGHUP)?;
    wait_for("the reload to fail", PATIENCE, || {
        if stage.nginx.error_log().contains("no_such_directive") {
            Ok(())
        } else {
            Err(stage.nginx.error_log())
        }
    })?;
    crash_workers(&stage)?;
    for _ in 0..6 {
        ask(&stage, "/app")?;
    }
    are_refused_at(&failures(&tracer, 6)?, Some("first"))?;
    // Mended, but nobody told the master yet.
    fs::write(&file, stage.config.replace("first", "mended"))?;
    crash_workers(&stage)?;
    for _ in 0..6 {
        ask(&stage, "/app")?;
    }
    are_refused_at(&failures(&tracer, 12)?, Some("first"))?;
    stage.nginx.reload(&stage.config.replace("first", "mended"))?;
    ask_until_named(&stage, &tracer, "mended", &["first"])?;
    tracer.stop()?;
    Ok(())
}

/// Ends the workers with a signal of a fault, and waits for those that replace them.
fn crash_workers(stage: &Stage) -> Result<()> {
    let before = stage.nginx.workers();
    stage.nginx.signal_workers(Signal::SIGSEGV)?;
    wait_for("new workers", PATIENCE, || {
        let now = stage.nginx.workers();
        if now.len() == 2 && now.iter().all(|pid| !before.contains(pid)) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
}

fn restart(run: &Run, nginx: &Path) -> Result<()> {
    let program = renamed(run, nginx, "openresty")?;
    let mut stage = refusing(run, &program, "restart", "app", "")?;
    let tracer = attach(run, &stage, "openresty", &[])?;
    ask(&stage, "/app")?;
    let first = failures(&tracer, 1)?;
    stage.nginx.stop()?;
    start_again(&mut stage, &program)?;
    ask(&stage, "/app")?;
    let failed = failures(&tracer, 2)?;
    are_refused_at(&failed, Some("app"))?;
    ensure!(
        told(&failed[1]).2 != told(&first[0]).2,
        "the same worker before and after a restart"
    );
    tracer.stop()?;
    Ok(())
}

fn start_again(stage: &mut Stage, program: &Path) -> Result<()> {
    stage.nginx = Nginx::start(
        &stage.near,
        &Start {
            program,
            config: &stage.config,
            folder: &stage.folder,
            etc: None,
            mounts: &[],
            workers: 2,
            daemon: false,
            contained: false,
            context: None,
            confinement: None,
        },
    )?;
    Ok(())
}

fn started_later(run: &Run, nginx: &Path) -> Result<()> {
    let program = renamed(run, nginx, "freenginx")?;
    let mut stage = refusing(run, &program, "started-later", "app", "")?;
    stage.nginx.stop()?;
    let tracer = attach(run, &stage, "freenginx", &[])?;
    ensure!(
        tracer.said().contains("waiting"),
        "it does not say that it waits: {}",
        tracer.said()
    );
    start_again(&mut stage, &program)?;
    // The first request at once: membership is decided in the kernel, not after a look around.
    ask(&stage, "/app")?;
    let failed = failures(&tracer, 1)?;
    are_refused_at(&failed, Some("app"))?;
    // Whether its log function was heard in time or only its log file was read.
    ensure!(
        failed[0]["nginx_says"] == REFUSED,
        "its first failure lacks nginx's line: {}",
        failed[0]
    );
    tracer.stop()?;
    Ok(())
}

/// Where a failure comes from is told by its worker.
fn are_named_by_worker(failed: &[Value], old: &[u32]) -> Result<()> {
    for attempt in failed {
        let (_, _, worker) = told(attempt);
        let is_old = old.iter().any(|pid| u64::from(*pid) == worker);
        are_refused_at(
            std::slice::from_ref(attempt),
            Some(if is_old { "before" } else { "after" }),
        )?;
        ensure!(
            attempt["nginx_says"] == REFUSED,
            "it lacks nginx's line: {attempt}"
        );
    }
    Ok(())
}

/// A stage whose nginx is a daemon with healthy traffic, and a tracer at it that has seen a failure of the old workers.
fn before_an_upgrade(run: &Run, nginx: &Path, name: &str, by_name: bool) -> Result<(Stage, Load, Tracer)> {
    let stage = refusing(run, nginx, name, "before", "nginx.daemon = true")?;
    let load = Load::start(
        &stage.near,
        &stage.address,
        &["/healthy", "/healthy-new"],
        LOAD,
        Keeps::None,
    )?;
    let target = if by_name {
        base_name(nginx)?
    } else {
        stage.nginx.pid().to_string()
    };
    let tracer = attach(run, &stage, &target, &[])?;
    ask(&stage, "/app")?;
    are_named_by_worker(&failures(&tracer, 1)?, &stage.nginx.workers())?;
    Ok((stage, load, tracer))
}

fn upgrade(run: &Run, nginx: &Path, name: &str, by_name: bool) -> Result<()> {
    let (mut stage, load, tracer) = before_an_upgrade(run, nginx, name, by_name)?;
    let old = stage.nginx.workers();
    let config = stage.config.replace("before", "after");
    let old_master = stage.nginx.upgrade(&config, old.len())?;
    // Both serve.
    for _ in 0..20 {
        ask(&stage, "/app")?;
    }
    are_named_by_worker(&failures(&tracer, 21)?, &old)?;
    send(old_master, Signal::SIGWINCH)?;
    wait_for("the old workers to end", PATIENCE, || {
        // The new master is the old one's child.
        match children(old_master) {
            left if left.iter().all(|pid| *pid == stage.nginx.pid()) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })?;
    ask(&stage, "/app")?;
    send(old_master, Signal::SIGQUIT)?;
    wait_for_end(old_master)?;
    ask(&stage, "/app")?;
    let failed = failures(&tracer, 23)?;
    are_named_by_worker(&failed, &old)?;
    for attempt in &failed[21..] {
        ensure!(
            told(attempt).0 == Some("after"),
            "an old worker served after its end: {attempt}"
        );
    }
    // The new master is followed on as the old one was.
    stage.nginx.reload(&config.replace("after", "later"))?;
    wait_for("a failure of the reloaded workers", PATIENCE, || {
        ask(&stage, "/app").map_err(|error| format!("{error:#}"))?;
        let failed = failures(&tracer, 24).map_err(|error| format!("{error:#}"))?;
        match failed.last().map(|attempt| told(attempt).0) {
            Some(Some("later")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let report = load.stop();
    ensure!(report.failed.is_empty(), "healthy traffic: {:?}", report.failed);
    let records = tracer.stop()?;
    has_lost_nothing(&records)
}

/// After an upgrade is taken back, the old master starts workers again from its own memory, whatever the file says.
fn upgrade_taken_back(run: &Run, nginx: &Path) -> Result<()> {
    let (mut stage, load, tracer) = before_an_upgrade(run, nginx, "upgrade-taken-back", false)?;
    let config = stage.config.replace("before", "after");
    let n_workers = stage.nginx.workers().len();
    let old_master = stage.nginx.upgrade(&config, n_workers)?;
    send(old_master, Signal::SIGWINCH)?;
    wait_for("the old workers to end", PATIENCE, || {
        match children(old_master).len() {
            // The new master.
            1 => Ok(()),
            left => Err(format!("{left} children")),
        }
    })?;
    send(old_master, Signal::SIGHUP)?;
    wait_for("the old master's workers", PATIENCE, || {
        match children(old_master).len() {
            there if there > n_workers => Ok(()),
            there => Err(format!("{there} children")),
        }
    })?;
    send(stage.nginx.pid(), Signal::SIGQUIT)?;
    wait_for_end(stage.nginx.pid())?;
    for _ in 0..4 {
        ask(&stage, "/app")?;
    }
    are_refused_at(&failures(&tracer, 5)?, Some("before"))?;
    let report = load.stop();
    ensure!(report.failed.is_empty(), "healthy traffic: {:?}", report.failed);
    tracer.stop()?;
    Ok(())
}

/// The summary counts no loss.
fn has_lost_nothing(records: &[Value]) -> Result<()> {
    let summary = records.last().context("an empty trace")?;
    ensure!(
        summary["type"] == "summary" && summary["complete"] == true,
        "the trace is not complete: {summary}"
    );
    Ok(())
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal)
        .with_context(|| format!("sending {signal} to {pid}"))
}

fn base_name(program: &Path) -> Result<String> {
    let name = program.file_name().context("a program without a name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn worker_crash(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "worker-crash", "app", "")?;
    let tracer = attach(run, &stage, &stage.nginx.pid().to_string(), &[])?;
    crash_workers(&stage)?;
    ask(&stage, "/app")?;
    are_refused_at(&failures(&tracer, 1)?, Some("app"))?;
    tracer.stop()?;
    Ok(())
}

fn master_crash(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "master-crash", "app", "")?;
    let tracer = attach(run, &stage, &stage.nginx.pid().to_string(), &[])?;
    let workers = stage.nginx.workers();
    stage.nginx.signal(Signal::SIGKILL)?;
    wait_for("the master to end", PATIENCE, || {
        if stage.nginx.workers().is_empty() {
            Ok(())
        } else {
            Err("its workers are still its own".to_owned())
        }
    })?;
    // The workers live on, and nobody signals them.
    ask(&stage, "/app")?;
    let failed = failures(&tracer, 1)?;
    are_refused_at(&failed, Some("app"))?;
    ensure!(
        workers.iter().any(|pid| u64::from(*pid) == told(&failed[0]).2),
        "not one of the workers there were: {}",
        failed[0]
    );
    tracer.stop()?;
    Ok(())
}

fn no_master(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "no-master", "app", "nginx.master = false")?;
    let pid = stage.nginx.pid();
    wait_for("nginx to listen", PATIENCE, || {
        ask(&stage, "/worker")
            .map(drop)
            .map_err(|error| format!("{error:#}"))
    })?;
    let tracer = attach(run, &stage, &pid.to_string(), &[])?;
    ask(&stage, "/app")?;
    let failed = failures(&tracer, 1)?;
    are_refused_at(&failed, Some("app"))?;
    ensure!(
        told(&failed[0]).2 == u64::from(pid),
        "the worker is {pid} itself: {}",
        failed[0]
    );
    tracer.stop()?;
    Ok(())
}

fn two_instances(run: &Run, nginx: &Path) -> Result<()> {
    let program = renamed(run, nginx, "angie")?;
    let one = refusing(run, &program, "angie-one", "one", "")?;
    let two = refusing(run, &program, "angie-two", "two", "")?;
    let tracer = attach(run, &one, "angie", &[])?;
    ask(&one, "/app")?;
    are_refused_at(&failures(&tracer, 1)?, Some("one"))?;
    ask(&two, "/app")?;
    are_refused_at(&failures(&tracer, 2)?[1..], Some("two"))?;
    tracer.stop()?;
    Ok(())
}

/// A program that runs `nginx` from an overlay of its own over a folder that others share, as containers do.
fn contained(run: &Run, image: &Path, nginx: &str) -> Result<PathBuf> {
    let folder = run.folder("container")?;
    let script = folder.join("run");
    let (dir, image) = (folder.display(), image.display());
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -ec '\
         mkdir {dir}/upper {dir}/work {dir}/merged\n\
         mount -t overlay overlay -o lowerdir={image},upperdir={dir}/upper,workdir={dir}/work {dir}/merged\n\
         exec {dir}/merged/{nginx} \"$@\"' sh \"$@\"\n"
    );
    fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", script.display()))?;
    Ok(script)
}

fn two_containers(run: &Run, nginx: &Path) -> Result<()> {
    let program = renamed(run, nginx, "nginx-debug")?;
    let image = program.parent().context("a program without a folder")?;
    let set = |name: &str| -> Result<Stage> {
        let text = format!(
            r#"
about = "an upstream that is not there"
[lab]
nginx.http = "upstream {name} {{ server {{app}}; }}"
nginx.server = "location /app {{ proxy_pass http://{name}; }}"
names.app = "unix"
steps = []
"#
        );
        let program = contained(run, image, "nginx-debug")?;
        Stage::set(run, &scenario(&format!("container-{name}"), &text)?, &program)
    };
    let (one, two) = (set("one")?, set("two")?);
    let tracer = attach(run, &one, "nginx-debug", &[])?;
    ask(&one, "/app")?;
    ask(&two, "/app")?;
    failures(&tracer, 2)?;
    let records = tracer.stop()?;
    let mut failed: Vec<_> = not_ok(&records).map(|attempt| (told(attempt), attempt)).collect();
    failed.sort_by_key(|((upstream, ..), _)| *upstream);
    // The file under both is one, and so is the probe on it: nothing is heard twice.
    let seen: Vec<_> = failed
        .iter()
        .map(|((upstream, cause, _), _)| (*upstream, *cause))
        .collect();
    let cause = Some("unix-missing");
    ensure!(
        seen == [(Some("one"), cause), (Some("two"), cause)],
        "expected one failure of each: {failed:?}"
    );
    for (_, attempt) in failed {
        ensure!(
            attempt["nginx_says"].is_string(),
            "it lacks nginx's line: {attempt}"
        );
    }
    has_lost_nothing(&records)
}

fn by_worker(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "by-worker", "app", "")?;
    let worker = stage.nginx.workers()[0].to_string();
    let tracer = attach(run, &stage, &worker, &[])?;
    // Enough requests for either worker to get one.
    for _ in 0..20 {
        ask(&stage, "/app")?;
    }
    are_refused_at(&failures(&tracer, 20)?, Some("app"))?;
    tracer.stop()?;
    Ok(())
}

fn no_configuration(run: &Run, nginx: &Path) -> Result<()> {
    let stage = refusing(run, nginx, "no-configuration", "app", "")?;
    fs::remove_file(stage.folder.join("nginx.conf"))?;
    let tracer = attach(run, &stage, &stage.nginx.pid().to_string(), &[])?;
    ask(&stage, "/app")?;
    let failed = failures(&tracer, 1)?;
    are_refused_at(&failed, None)?;
    let peer = stage.names().fill("{app}")?;
    ensure!(
        failed[0]["peer"] == peer.as_str(),
        "the address is not {peer}: {}",
        failed[0]
    );
    let records = tracer.stop()?;
    let problems = &records[0]["config"]["problems"];
    ensure!(
        problems.as_array().is_some_and(|problems| !problems.is_empty()),
        "the session says nothing about the missing configuration: {}",
        records[0]["config"]
    );
    Ok(())
}

/// How many instances come and go.
const INSTANCES: usize = 200;
/// Of them at the same time.
const INSTANCES_TOGETHER: usize = 4;
/// How long each lives, as in nginx's own regression suite.
const LIFE: Duration = Duration::from_millis(300);

/// Instances that are there and gone again, each with one failing request: none is missed.
fn short_lived(run: &Run, nginx: &Path) -> Result<()> {
    let program = renamed(run, nginx, "angie")?;
    let stage = refusing(run, &program, "short-lived", "app", "")?;
    let tracer = attach(run, &stage, "angie", &["--keep", "failures"])?;
    let folder = run.folder("brief")?;
    let app = stage.names().fill("{app}")?;
    let near = &stage.near;
    let numbers: Vec<usize> = (0..INSTANCES).collect();
    let workers = xtask::in_parallel(numbers, INSTANCES_TOGETHER, |number| {
        let folder = folder.join(number.to_string());
        fs::create_dir_all(&folder)?;
        brief(near, &program, &folder, number, &app)
    });
    let workers: Vec<u32> = workers.into_iter().collect::<Result<_>>()?;
    let is_its = |attempt: &&Value| {
        let worker = attempt["worker"].as_u64();
        workers.iter().any(|pid| Some(u64::from(*pid)) == worker)
    };
    let failed = wait_for("all their failures", PATIENCE, || {
        let records = tracer.records().map_err(|error| format!("{error:#}"))?;
        let its: Vec<Value> = not_ok(&records).filter(is_its).cloned().collect();
        if its.len() >= INSTANCES {
            Ok(its)
        } else {
            Err(format!("{} of {INSTANCES}", its.len()))
        }
    })?;
    ensure!(
        failed.len() == INSTANCES,
        "{} failures of {INSTANCES}",
        failed.len()
    );
    let (mut wrong, mut nameless) = (Vec::new(), 0);
    for (number, worker) in workers.iter().enumerate() {
        let its: Vec<&Value> = failed
            .iter()
            .filter(|attempt| attempt["worker"] == *worker)
            .collect();
        let upstream = format!("brief_{number}");
        let is_right = |attempt: &Value| {
            let (seen, cause, _) = told(attempt);
            cause == Some("no-listener")
                && seen.is_none_or(|seen| seen == upstream)
                && attempt["nginx_says"] == REFUSED
        };
        match its[..] {
            [attempt] if is_right(attempt) => nameless += usize::from(attempt["upstream"].is_null()),
            _ => wrong.push(format!("{upstream}, worker {worker}: {its:?}")),
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} not named right:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // On a busy machine one may be gone before its configuration could be read.
    ensure!(
        nameless <= INSTANCES / 20,
        "{nameless} of {INSTANCES} upstreams have no name"
    );
    has_lost_nothing(&tracer.stop()?)
}

/// Starts an nginx, has it fail once, lets it live out its time and ends it; yields its worker.
fn brief(near: &Netns, program: &Path, folder: &Path, number: usize, app: &str) -> Result<u32> {
    let dir = folder.display();
    let config = format!(
        "worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
        events {{ worker_connections 64; }}
        http {{
            access_log off;
            client_body_temp_path {dir}/tmp/body; proxy_temp_path {dir}/tmp/proxy; fastcgi_temp_path {dir}/tmp/fastcgi;
            uwsgi_temp_path {dir}/tmp/uwsgi; scgi_temp_path {dir}/tmp/scgi;
            upstream brief_{number} {{ server {app}; }}
            server {{ listen unix:{dir}/nginx.sock; location / {{ proxy_pass http://brief_{number}; }} }}
        }}"
    );
    let begun = std::time::Instant::now();
    let mut nginx = Nginx::start(
        near,
        &Start {
            program,
            config: &config,
            folder,
            etc: None,
            mounts: &[],
            workers: 1,
            daemon: false,
            contained: false,
            context: None,
            confinement: None,
        },
    )?;
    let worker = *nginx.workers().first().context("it has no worker")?;
    let address = xtask::lab::client::Address::Unix(folder.join("nginx.sock"));
    let mut client = Client::connect(near, &address)?;
    client.send("GET", "/", 0, false)?;
    let status = client.receive()?.status;
    ensure!(status == 502, "it answered {status}");
    // What is tested is how long it lives.
    std::thread::sleep(LIFE.saturating_sub(begun.elapsed()));
    nginx.stop()?;
    Ok(worker)
}
