//! `cargo xtask scenario`: runs scenarios by name and shows where to look.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    in_parallel,
    lab::{Run, nginx::packaged::Packaged},
    scenario::{
        Scenario,
        report::Report,
        run::{Outcome, Setup, find_nginx},
        together,
    },
};

/// Options of `cargo xtask scenario`.
#[derive(clap::Args)]
pub struct Args {
    /// The scenarios' names, or beginnings of them; all when none is given.
    names: Vec<String>,
    /// Judge nginx's own log alone: does the fault really happen?
    #[arg(long)]
    without_tracer: bool,
    /// The tracer to use; without it, one is built.
    #[arg(long, conflicts_with = "without_tracer")]
    tracer: Option<PathBuf>,
    /// The nginx to use: an executable, or one of Debian's suites that `cargo xtask setup` has fetched it from
    /// (`trixie`, `sid`); without it, the one on PATH.
    #[arg(long)]
    nginx: Option<PathBuf>,
    /// Where traces, recordings and logs are kept; without it, target/scenarios.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// How many at the same time.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// So many with one tracer, each beside the others, in place of a tracer for each.
    #[arg(long, default_value_t = 1, conflicts_with = "without_tracer")]
    together: usize,
    /// Only where their laboratory says first, not also in their other placements.
    #[arg(long)]
    first_placement: bool,
    /// Only one of several parts of them: 2/3 is the second of three.
    #[arg(long)]
    part: Option<Part>,
    /// Further arguments for `tracer attach`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Args {
    /// For the scoreboard: these scenarios with a tracer that is built for users.
    pub fn for_board(names: Vec<String>, keep: PathBuf, jobs: usize) -> Result<Self> {
        Ok(Self {
            names,
            without_tracer: false,
            tracer: Some(build_tracer(true)?),
            nginx: None,
            keep: Some(keep),
            jobs,
            together: 1,
            first_placement: false,
            part: None,
            arguments: Vec::new(),
        })
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let tracer = match &args.tracer {
        _ if args.without_tracer => None,
        Some(tracer) => Some(tracer.clone()),
        None => Some(build_tracer(false)?),
    };
    let keep = args
        .keep
        .clone()
        .unwrap_or_else(|| target_folder().join("scenarios"));
    let run = Run::begin()?;
    let scenarios = chosen(&args.names, args.first_placement)?;
    let scenarios = Part::of_all(args.part, scenarios);
    ensure!(
        !scenarios.is_empty(),
        "no scenario is called so: see tests/scenarios"
    );
    let nginx = match &args.nginx {
        Some(nginx) => other_nginx(nginx)?,
        None => find_nginx()?,
    };
    let setup = |scenario: &Scenario| Setup {
        tracer: tracer.clone(),
        nginx: nginx.clone(),
        keep: keep.join(&scenario.name),
        arguments: args.arguments.clone(),
    };
    let wrong = AtomicUsize::new(0);
    let tell = |scenario: &Scenario, setup: &Setup, outcome: Result<Outcome>| {
        if let Err(error) = Report::of(&scenario.name, &outcome).write(&keep) {
            eprintln!("{error:#}");
        }
        let (report, is_wrong) = report(scenario, setup, outcome);
        print!("{report}");
        // A reader behind a pipe follows as it goes.
        let _ = std::io::Write::flush(&mut std::io::stdout());
        wrong.fetch_add(usize::from(is_wrong), Ordering::Relaxed);
    };
    match &tracer {
        Some(tracer) if args.together > 1 => {
            for group in groups(&scenarios, args.together) {
                let group: Vec<_> = group
                    .into_iter()
                    .map(|scenario| (scenario, setup(scenario)))
                    .collect();
                let outcomes = together::run(&run, tracer, &group, args.jobs);
                for ((scenario, setup), outcome) in group.iter().zip(outcomes) {
                    tell(scenario, setup, outcome);
                }
            }
        }
        _ => {
            in_parallel(scenarios.iter().collect(), args.jobs, |scenario| {
                let setup = setup(scenario);
                tell(
                    scenario,
                    &setup,
                    xtask::scenario::run::run(&run, scenario, &setup),
                );
            });
        }
    }
    let wrong = wrong.into_inner();
    if wrong > 0 {
        bail!("{wrong} of {} scenarios are wrong", scenarios.len());
    }
    Ok(())
}

/// One of several parts of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: usize,
    of: usize,
}

impl Part {
    /// All parts, when there are so many.
    pub fn all(of: usize) -> impl Iterator<Item = Self> {
        (1..=of).map(move |number| Self { number, of })
    }

    /// This part of a list, or all of it: each takes turns, since neighbours take much the same time.
    pub fn of_all<T>(part: Option<Self>, items: Vec<T>) -> Vec<T> {
        let Some(part) = part else { return items };
        let is_its = |at: usize| at % part.of == part.number - 1;
        let numbered = items.into_iter().enumerate();
        numbered
            .filter(|(at, _)| is_its(*at))
            .map(|(_, item)| item)
            .collect()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(format!("`{text}` is no part: the second of three is 2/3")),
        }
    }
}

/// Parts the scenarios into groups of at most so many that can have one tracer.
fn groups(scenarios: &[Scenario], together: usize) -> Vec<Vec<&Scenario>> {
    let mut groups: Vec<Vec<&Scenario>> = Vec::new();
    for scenario in scenarios {
        let fits = |group: &&mut Vec<&Scenario>| {
            group.len() < together && group.iter().all(|other| together::fit(scenario, other))
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(scenario),
            None => groups.push(vec![scenario]),
        }
    }
    groups
}

/// An nginx that is asked for: a suite's, or an executable.
fn other_nginx(asked: &Path) -> Result<PathBuf> {
    match asked.to_str().and_then(Packaged::by_suite) {
        Some(packaged) => packaged.find().map_err(anyhow::Error::msg),
        None => asked
            .canonicalize()
            .with_context(|| format!("looking for nginx at {}", asked.display())),
    }
}

/// The scenarios that are called so, all when no name is given, each in all its placements or in its first one and those
/// that are named.
pub fn chosen(names: &[String], first_placement: bool) -> Result<Vec<Scenario>> {
    let is_wanted = |scenario: &Scenario| {
        let is_first = Some(&scenario.placement) == scenario.placements.first();
        (names.is_empty() && (is_first || !first_placement))
            || names.iter().any(|name| {
                scenario.name.starts_with(name) && (is_first || !first_placement || name.contains('@'))
            })
    };
    Ok(Scenario::read_all(&root().join("tests/scenarios"))?
        .into_iter()
        .flat_map(Scenario::in_all_placements)
        .filter(is_wanted)
        .collect())
}

/// Says how a scenario went, and whether it went wrong.
fn report(scenario: &Scenario, setup: &Setup, outcome: Result<Outcome>) -> (String, bool) {
    let name = &scenario.name;
    match outcome {
        Ok(Outcome::AsExpected) => (format!("ok       {name}\n"), false),
        Ok(Outcome::Skipped(why)) => (format!("skipped  {name}: {why}\n"), false),
        Ok(Outcome::Wrong(problems)) => {
            let mut text = format!("wrong    {name} ({})\n", setup.keep.display());
            for problem in problems {
                let _ = writeln!(text, "         {problem}");
            }
            (text, true)
        }
        Err(error) => (format!("error    {name}: {error:#}\n"), true),
    }
}

/// Builds the tracer and yields its path.
pub fn build_tracer(is_release: bool) -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(root())
        .args(["build", "--package", "tracer", "--bin", "tracer"]);
    if is_release {
        cargo.arg("--release");
    }
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "building the tracer: cargo ended with {status}");
    Ok(target_folder()
        .join(if is_release { "release" } else { "debug" })
        .join("tracer"))
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

/// Where cargo puts what it builds.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_list_are_the_list() {
        let all: Vec<u32> = (0..7).collect();
        assert_eq!(Part::of_all(None, all.clone()), all);
        let mut parts: Vec<u32> = Part::all(3)
            .flat_map(|part| Part::of_all(Some(part), all.clone()))
            .collect();
        assert_eq!(parts, [0, 3, 6, 1, 4, 2, 5]);
        parts.sort_unstable();
        assert_eq!(parts, all);
        assert_eq!("2/3".parse(), Ok(Part { number: 2, of: 3 }));
        for wrong in ["0/3", "4/3", "2", "a/b", "/"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }
}
