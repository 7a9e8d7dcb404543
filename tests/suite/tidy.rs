//! The architecture's invariants, and what keeps the tree tidy.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use xtask::scenario::Scenario;

use crate::ground::{plain, root};

/// All tidy tests.
pub fn trials() -> Vec<Trial> {
    vec![
        plain("tidy/only_kernel_names_aya", only_kernel_names_aya),
        plain(
            "tidy/the_engine_has_no_clock_and_no_io",
            the_engine_has_no_clock_and_no_io,
        ),
        plain(
            "tidy/the_engine_knows_no_source_and_no_output",
            the_engine_knows_no_source_and_no_output,
        ),
        plain("tidy/unsafe_code_is_forbidden", unsafe_code_is_forbidden),
        plain("tidy/no_file_is_called_mod", no_file_is_called_mod),
        plain(
            "tidy/every_file_says_what_it_knows",
            every_file_says_what_it_knows,
        ),
        plain("tidy/every_cause_has_a_scenario", every_cause_has_a_scenario),
        plain(
            "tidy/every_scenario_expects_known_causes",
            every_scenario_expects_known_causes,
        ),
        plain("tidy/nothing_names_this_machine", nothing_names_this_machine),
        plain("tidy/members_share_the_workspace", members_share_the_workspace),
        plain("tidy/ci_runs_what_the_readme_says", ci_runs_what_the_readme_says),
    ]
}

/// The Rust files below a folder of the workspace, with their texts.
fn rust_files(folder: &str) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                let name = path.strip_prefix(root())?.display().to_string();
                files.push((name, text));
            }
        }
    }
    ensure!(!files.is_empty(), "no Rust files in {folder}");
    files.sort();
    Ok(files)
}

/// The lines of a file that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Fails with every place where one of the words stands.
fn forbid(files: &[(String, String)], words: &[&str], why: &str) -> Result<()> {
    let places: Vec<String> = files
        .iter()
        .flat_map(|(name, text)| code(text).map(move |(number, line)| (name, number, line)))
        .filter(|(_, _, line)| words.iter().any(|word| line.contains(word)))
        .map(|(name, number, line)| format!("{name}:{number}: {}", line.trim()))
        .collect();
    ensure!(places.is_empty(), "{why}:\n{}", places.join("\n"));
    Ok(())
}

fn only_kernel_names_aya() -> Result<()> {
    let mut files = rust_files("tracer/src")?;
    files.retain(|(name, _)| name != "tracer/src/kernel.rs" && !name.starts_with("tracer/src/kernel/"));
    forbid(
        &files,
        &["aya::", "aya_obj::", "aya_log::", "use aya"],
        "only `kernel` names aya",
    )
}

/// The engine's files, its tests not counted.
fn engine() -> Result<Vec<(String, String)>> {
    let mut files = rust_files("tracer/src/engine")?;
    let path = root().join("tracer/src/engine.rs");
    files.push(("tracer/src/engine.rs".to_owned(), fs::read_to_string(path)?));
    files.retain(|(name, _)| !name.contains("/tests"));
    for (_, text) in &mut files {
        if let Some(tests) = text.find("#[cfg(test)]") {
            text.truncate(tests);
        }
    }
    Ok(files)
}

fn the_engine_has_no_clock_and_no_io() -> Result<()> {
    let words = [
        "std::time",
        "SystemTime",
        "Instant",
        "std::fs",
        "std::io",
        "std::env",
        "std::process",
        "std::thread",
        "TcpStream",
        "UdpSocket",
        "UnixStream",
        "nix::",
        "procfs::",
        "tokio::",
        "println!",
    ];
    forbid(
        &engine()?,
        &words,
        "the engine is given time and never looks anything up",
    )
}

fn the_engine_knows_no_source_and_no_output() -> Result<()> {
    let modules = [
        "source", "kernel", "host", "nginx", "commands", "pipeline", "sink", "view", "report", "outputs",
        "cli",
    ];
    let words: Vec<String> = modules.iter().map(|module| format!("crate::{module}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    forbid(&engine()?, &words, "the engine knows neither sources nor outputs")
}

fn unsafe_code_is_forbidden() -> Result<()> {
    for file in [
        "tracer/src/lib.rs",
        "tracer/src/main.rs",
        "tracer-ebpf/src/lib.rs",
    ] {
        let text = fs::read_to_string(root().join(file)).with_context(|| format!("reading {file}"))?;
        ensure!(
            text.contains("#![forbid(unsafe_code)]"),
            "{file} must say #![forbid(unsafe_code)]"
        );
    }
    Ok(())
}

fn no_file_is_called_mod() -> Result<()> {
    for folder in ["tracer", "tracer-ebpf", "xtask", "tests"] {
        for (name, _) in rust_files(folder)? {
            ensure!(!name.ends_with("/mod.rs"), "{name}: call it after its module");
        }
    }
    Ok(())
}

fn every_file_says_what_it_knows() -> Result<()> {
    for folder in ["tracer/src", "tracer-ebpf/src", "xtask/src", "tests/suite"] {
        for (name, text) in rust_files(folder)? {
            ensure!(
                text.starts_with("//!"),
                "{name}: begin with what the file knows (//!)"
            );
        }
    }
    Ok(())
}

/// The causes the engine can name.
fn causes() -> BTreeSet<&'static str> {
    tracer::engine::diagnose::causes::ALL
        .iter()
        .map(|cause| cause.id)
        .collect()
}

fn scenarios() -> Result<Vec<Scenario>> {
    Scenario::read_all(&root().join("tests/scenarios"))
}

fn every_cause_has_a_scenario() -> Result<()> {
    let shown: BTreeSet<String> = scenarios()?
        .into_iter()
        .flat_map(|scenario| scenario.expect)
        .map(|expect| expect.cause)
        .collect();
    let lacking: Vec<&str> = causes()
        .into_iter()
        .filter(|cause| !shown.contains(*cause))
        .collect();
    ensure!(
        lacking.is_empty(),
        "causes without a scenario in tests/scenarios: {}",
        lacking.join(", ")
    );
    Ok(())
}

fn every_scenario_expects_known_causes() -> Result<()> {
    let known = causes();
    let scenarios = scenarios()?;
    xtask::scenario::run::check_all(&scenarios)?;
    for scenario in &scenarios {
        for expect in &scenario.expect {
            for cause in [&expect.cause].into_iter().chain(&expect.also).chain(&expect.not) {
                ensure!(
                    known.contains(cause.as_str()) || *cause == "unknown",
                    "{}: no cause is called {cause}",
                    scenario.name
                );
            }
        }
    }
    Ok(())
}

/// The files of the tree that people wrote.
fn tree() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let is_made = matches!(name, "target" | "out" | ".git" | "recordings");
            if is_made {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn nothing_names_this_machine() -> Result<()> {
    // Put together here, so that this file does not hold them.
    let words = [
        ["/tmp", "/wt/"].concat(),
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["arti", "factory"].concat(),
        ["index.crates", ".io:"].concat(),
    ];
    for path in tree()? {
        // What is no text names nothing.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (number, line) in (1..).zip(text.lines()) {
            for word in &words {
                ensure!(
                    !line.contains(word.as_str()),
                    "{}:{number}: `{word}` names one machine",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

fn members_share_the_workspace() -> Result<()> {
    for member in ["tracer", "tracer-ebpf", "xtask"] {
        let manifest = Path::new(member).join("Cargo.toml");
        let text = fs::read_to_string(root().join(&manifest))?;
        for shared in ["version", "edition", "rust-version", "license", "publish"] {
            ensure!(
                text.contains(&format!("{shared}.workspace = true")),
                "{}: take {shared} from the workspace",
                manifest.display()
            );
        }
        ensure!(
            text.contains("[lints]\nworkspace = true"),
            "{}: take the lints from the workspace",
            manifest.display()
        );
    }
    Ok(())
}

fn ci_runs_what_the_readme_says() -> Result<()> {
    let run = fs::read_to_string(root().join(".ci/run")).context("reading .ci/run")?;
    let readme = fs::read_to_string(root().join("README.md")).context("reading README.md")?;
    ensure!(
        run.contains("exec cargo xtask test"),
        ".ci/run must run `cargo xtask test`"
    );
    ensure!(
        readme.contains("cargo xtask test"),
        "README.md must name `cargo xtask test`"
    );
    Ok(())
}
