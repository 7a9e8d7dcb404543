//! `cargo xtask test`: everything that must hold, in one command and one closing line.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    play::{root, target_folder},
    setup, vm, zoo,
};

/// The kernel of the guest that every run has: functions can be watched there, which this machine's kernel may refuse, and
/// resets and IPv6 drops have no reasons yet.
const PINNED: &str = "6.1";
/// What it runs: the families of causes, one scenario each, where kernels differ in what they show.
const IN_GUEST: &[&str] = &[
    "accept-queue-full-far",
    "backend-died-far",
    "backend-died-unix",
    "closed-abortively",
    "closed-on-accept-at-once",
    "firewall-reset-input",
    "healthy-fastcgi",
    "icmp-unreachable-host",
    "keepalive-race-reset",
    "listener-died-exit",
    "neighbour-silent-ipv6",
    "no-listener-ipv6",
    "packet-dropped-locally-answer",
    "ports-exhausted",
    "response-unread",
    "route-forbids-prohibit",
    "selinux-denied",
    "unix-backlog-full",
    "unix-stale-socket",
];

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Also every scenario live with nothing heard from nginx; without it a few of them, and all from recordings.
    #[arg(long)]
    full: bool,
    /// Leave out what `cargo xtask setup` would do.
    #[arg(long)]
    no_setup: bool,
    /// Leave out the guest with another kernel.
    #[arg(long)]
    no_guest: bool,
    /// Only tests whose name holds this.
    filter: Option<String>,
}

/// What came of all tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// The skipped ones with their reasons, and the failed ones.
    names: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if !args.no_setup {
        // Without root some of it cannot be installed; what then cannot run is skipped, and says so.
        if let Err(error) = setup::run(&setup::Args::default()) {
            println!("setup: {error:#}");
        }
    }
    let mut count = Count::default();
    if args.filter.is_none() {
        let checks: [(&str, &[&str]); 2] = [
            ("cargo fmt", &["fmt", "--all", "--", "--check"]),
            (
                "cargo clippy",
                &[
                    "clippy",
                    "--quiet",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ],
            ),
        ];
        for (name, arguments) in checks {
            println!("\n$ cargo {}", arguments.join(" "));
            let status = cargo(arguments).status().context("starting cargo")?;
            count.check(name, status.success());
        }
    }
    // Each run is held against the scoreboard by itself.
    let played = target_folder().join("tmp/scenario");
    if played.exists() {
        fs::remove_dir_all(&played).with_context(|| format!("emptying {}", played.display()))?;
    }
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    if args.full {
        tests.env("TRACER_SUITE", "full");
    }
    if let Some(filter) = &args.filter {
        tests.args(["--", filter]);
    }
    println!("\n$ cargo test --workspace");
    let (succeeded, seen) = run_tests(&mut tests)?;
    // A test binary that does not build, or that crashes, counts nothing.
    if !succeeded && seen.failed == 0 {
        count.check("cargo test", false);
    }
    count.add(seen);
    if args.filter.is_none() {
        check_scoreboard(args, &played, &mut count);
    }
    println!();
    for name in &count.names {
        println!("{name}");
    }
    println!("\n{}", count.closing_line());
    if count.failed > 0 {
        bail!("{} failed", count.failed);
    }
    Ok(())
}

/// No cell of this machine's column may be worse than the committed one, nor any of those that a guest runs.
fn check_scoreboard(args: &Args, played: &Path, count: &mut Count) {
    let why_not = if !nix::unistd::Uid::effective().is_root() {
        Some("needs root".to_owned())
    } else if args.no_guest {
        Some("left out with --no-guest".to_owned())
    } else {
        // An archive that does not answer is not the tree's fault; a guest that boots and goes wrong is.
        vm::get_ready(PINNED)
            .err()
            .map(|error| format!("the guest cannot be had: {error:#}"))
    };
    println!("\n$ cargo xtask zoo --check --kernel host");
    if played.exists() {
        count.checked("zoo host", zoo::check_host(played));
    }
    println!(
        "\n$ cargo xtask zoo --check --kernel {PINNED} {}",
        IN_GUEST.join(" ")
    );
    match why_not {
        Some(why) => {
            count.skipped += 1;
            count.names.push(format!("skipped  zoo {PINNED}: {why}"));
        }
        None => count.checked(
            &format!("zoo {PINNED}"),
            zoo::run(&zoo::Args::check(PINNED, IN_GUEST)),
        ),
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(arguments).stdin(Stdio::null());
    command
}

/// Runs tests in sight of the user and counts them.
fn run_tests(command: &mut Command) -> Result<(bool, Count)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let output = child.stdout.take().context("cargo without standard output")?;
    let mut count = Count::default();
    let mut terminal = std::io::stdout();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what the tests print")?;
        count.hear(&line);
        writeln!(terminal, "{line}").context("showing what the tests print")?;
    }
    let status = child.wait().context("waiting for cargo")?;
    Ok((status.success(), count))
}

impl Count {
    fn check(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.names.push(format!("failed   {name}"));
        }
    }

    fn checked(&mut self, name: &str, outcome: Result<()>) {
        if let Err(error) = &outcome {
            println!("{error:#}");
        }
        self.check(name, outcome.is_ok());
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.names.extend(other.names);
    }

    /// Takes in a line as the test harnesses print them.
    fn hear(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |what: &str| -> u64 {
                result
                    .split([';', '.'])
                    .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                    .unwrap_or(0)
            };
            self.passed += number("passed");
            self.failed += number("failed");
            self.skipped += number("ignored");
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some((name, outcome)) = test.split_once(" ... ")
        {
            let name = name.trim();
            if outcome.starts_with("FAILED") {
                self.names.push(format!("failed   {name}"));
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                let reason = reason.trim_start_matches([',', ':', ' ']);
                self.names.push(format!("skipped  {name}: {reason}"));
            }
        }
    }

    fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_harnesses_add_up() {
        let mut count = Count::default();
        for line in [
            "test engine::tests::one ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test scenario/socket-destroyed ... ignored, this kernel cannot",
            "test input/no_root             ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2s",
        ] {
            count.hear(line);
        }
        assert_eq!(
            count,
            Count {
                passed: 15,
                failed: 1,
                skipped: 2,
                names: vec![
                    "skipped  scenario/socket-destroyed: this kernel cannot".to_owned(),
                    "failed   input/no_root".to_owned(),
                ],
            }
        );
        assert_eq!(count.closing_line(), "15 passed, 1 failed, 2 skipped");
    }
}
