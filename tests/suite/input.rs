//! Mistakes of the user, and machines that lack something: one line that says what, where and what to do, and the
//! right exit status. Mistakes with files are in `tracer/tests/cmd.rs`; these need a machine.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use xtask::{lab::Run, scenario::stage::Stage};

use crate::ground::{Ground, live, plain, scenario, tracer};

/// nobody's number.
const NOBODY: &str = "65534";

/// The tests.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    vec![
        plain("input/an_unknown_cause", || {
            is_one_line(
                &ran(Command::new(tracer()).args(["explain", "listener-dyed"]))?,
                2,
                &["listener-dyed", "listener-died"],
            )
        }),
        plain("input/a_recording_that_is_not_there", || {
            is_one_line(
                &ran(Command::new(tracer()).args(["replay", "/nonexistent.jsonl"]))?,
                2,
                &["/nonexistent.jsonl"],
            )
        }),
        live(ground, "input/an_unknown_pid", |_, _| {
            is_one_line(&attach(&["--pid", "4194303"])?, 3, &["4194303"])
        }),
        live(ground, "input/a_pid_that_is_no_nginx", |_, _| {
            let own = std::process::id().to_string();
            is_one_line(&attach(&["--pid", &own])?, 3, &[&own, "not an nginx"])
        }),
        live(ground, "input/an_unknown_hook", |_, _| {
            is_one_line(
                &attach(&["--pid", "nginx", "--without", "no-such-hook"])?,
                2,
                &["no-such-hook"],
            )
        }),
        live(ground, "input/no_root", no_root),
        live(ground, "input/no_btf", no_btf),
        live(
            ground,
            "input/an_output_in_a_folder_that_is_not_there",
            unwritable,
        ),
        live(ground, "input/a_full_disk_keeps_what_was_written", full_disk),
        live(ground, "input/a_configuration_that_includes_itself", recursive),
    ]
}

fn ran(command: &mut Command) -> Result<Output> {
    command
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))
}

fn attach(arguments: &[&str]) -> Result<Output> {
    // Bounded, should it attach against all expectation.
    ran(Command::new(tracer())
        .arg("attach")
        .args(arguments)
        .args(["--duration", "5s"]))
}

/// One line on stderr with these words, this status, and no panic.
fn is_one_line(output: &Output, status: i32, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(status),
        "ended with {} instead of {status}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    ensure!(said.trim_end().lines().count() == 1, "more than one line: {said}");
    for word in words {
        ensure!(said.contains(word), "`{word}` is missing in: {said}");
    }
    Ok(())
}

/// An nginx to attach to.
fn stage(run: &Run, nginx: &Path, name: &str) -> Result<Stage> {
    let text = r#"
about = "an upstream that refuses"
[lab]
nginx.http = "upstream app { server {app}; }"
nginx.server = "location /app { proxy_pass http://app; }"
names.app = "127.0.0.1"
steps = []
"#;
    Stage::set(run, &scenario(name, text)?, nginx)
}

fn no_root(run: &Run, nginx: &Path) -> Result<()> {
    let stage = stage(run, nginx, "no-root")?;
    // The build's folder may be closed to others.
    let program = stage.folder.join("tracer");
    fs::copy(tracer(), &program)?;
    let output = ran(Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(&program)
        .args(["attach", "--duration", "5s", "--pid"])
        .arg(stage.nginx.pid().to_string()))?;
    is_one_line(&output, 3, &["CAP_BPF"])
}

fn no_btf(run: &Run, nginx: &Path) -> Result<()> {
    let stage = stage(run, nginx, "no-btf")?;
    // Seen from a mount namespace in which the kernel's types are not there.
    let script = format!(
        "mount --bind /dev/null /sys/kernel/btf/vmlinux && exec {} attach --duration 5s --pid {}",
        tracer().display(),
        stage.nginx.pid()
    );
    let output = ran(Command::new("unshare").args(["--mount", "sh", "-c", &script]))?;
    is_one_line(&output, 3, &["BTF"])
}

fn unwritable(run: &Run, nginx: &Path) -> Result<()> {
    let stage = stage(run, nginx, "unwritable")?;
    let pid = stage.nginx.pid().to_string();
    let output = attach(&["--pid", &pid, "--output", "/nonexistent/trace.jsonl"])?;
    is_one_line(&output, 2, &["/nonexistent/trace.jsonl"])
}

fn full_disk(run: &Run, nginx: &Path) -> Result<()> {
    let stage = stage(run, nginx, "full-disk")?;
    let small = stage.folder.join("small");
    fs::create_dir(&small)?;
    let load = stage.load(50, false)?;
    // In a mount namespace of its own the small disk goes with the process; its content is copied out before.
    let script = format!(
        "mount -t tmpfs -o size=64k none {small} && cd {small} && {tracer} attach --duration 30s --pid {pid} --quiet \
         --output trace.jsonl; status=$?; cp trace.jsonl ../cut.jsonl; exit $status",
        small = small.display(),
        tracer = tracer().display(),
        pid = stage.nginx.pid()
    );
    let output = ran(Command::new("unshare").args(["--mount", "sh", "-c", &script]))?;
    load.stop();
    is_one_line(&output, 2, &["trace.jsonl", "the disk is full"])?;
    let records = xtask::traced::records(&stage.folder.join("cut.jsonl"))?;
    ensure!(
        records.len() > 10,
        "{} records were kept of a full disk",
        records.len()
    );
    let report = ran(Command::new(tracer())
        .arg("report")
        .arg(stage.folder.join("cut.jsonl")))?;
    ensure!(
        report.status.success(),
        "the cut trace is not readable: {}",
        String::from_utf8_lossy(&report.stderr)
    );
    Ok(())
}

fn recursive(run: &Run, nginx: &Path) -> Result<()> {
    let stage = stage(run, nginx, "recursive")?;
    let config = stage.folder.join("recursive.conf");
    fs::write(&config, format!("include {};\n", config.display()))?;
    let output = attach(&[
        "--pid",
        &stage.nginx.pid().to_string(),
        "--config",
        &config.display().to_string(),
        "--output",
        &stage.folder.join("trace.jsonl").display().to_string(),
    ])?;
    // A configuration that cannot be read is no reason not to watch: addresses are shown instead, and it is said.
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ended with {}: {said}", output.status);
    let records = xtask::traced::records(&stage.folder.join("trace.jsonl"))?;
    let problems = records[0]["config"]["problems"].to_string();
    ensure!(
        problems.contains("recursive.conf"),
        "the session does not say what is wrong: {problems}"
    );
    Ok(())
}
