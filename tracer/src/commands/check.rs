//! `tracer check`: what works on this host, by really attaching; what is lost without the rest; what of nginx's
//! configuration was understood.

use std::{fmt::Write as _, path::PathBuf};

use serde_json::json;

use super::{Status, Stop, attach::target, print};
use crate::{
    cli::CheckArgs,
    kernel::{self, Kernel, KernelOptions, plan::PLAN},
    measured::{self, Measured},
    model::HookStatus,
    nginx::{
        config,
        find::{self, Found},
    },
    privilege,
    session::Origin,
    source::live,
};

/// Runs the command.
///
/// # Errors
/// See [`Stop`].
pub fn run(args: &CheckArgs) -> Result<Status, Stop> {
    let origin = Origin::here();
    let found = match &args.pid {
        Some(pid) => find::find(&target(pid)).map_err(|error| Stop::NotAttached(error.into()))?,
        None => Vec::new(),
    };
    let status = hooks(&found);
    let instances: Vec<_> = found
        .iter()
        .map(|found| {
            (
                found,
                config::read(
                    found,
                    config::Options {
                        resolve: true,
                        ..config::Options::default()
                    },
                ),
            )
        })
        .collect();
    let text = if args.json {
        let (hooks, problem) = match &status {
            Ok(hooks) => (hooks.as_slice(), None),
            Err(error) => (&[][..], Some(format!("{error:#}"))),
        };
        let value = json!({
            "tool": origin.tool,
            "host": origin.host,
            "kernel": origin.kernel,
            "problem": problem,
            "hooks": hooks,
            "measured": problem.is_none().then(|| measured(&origin, hooks)).flatten(),
            "nginx": instances.iter().map(|(found, config)| json!({
                "instance": found.instance, "config": config,
            })).collect::<Vec<_>>(),
        });
        format!("{value:#}\n")
    } else {
        text(&origin, &status, &instances)
    };
    print(&text)?;
    match status {
        Ok(_) => Ok(Status::Ran),
        Err(error) => Err(Stop::NotAttached(error)),
    }
}

/// Attaches everything and lets go again at once.
fn hooks(found: &[Found]) -> anyhow::Result<Vec<HookStatus>> {
    for lost in privilege::check()? {
        log::warn!("{lost}");
    }
    let kernel = Kernel::load(&KernelOptions {
        executables: found
            .iter()
            .map(|found| {
                let path = PathBuf::from(format!("/proc/{}/exe", found.instance.pid));
                let voice = live::voice(&path);
                (path, voice)
            })
            .collect(),
        takes_requests: true,
        ..KernelOptions::default()
    })?;
    Ok(kernel.status().to_vec())
}

/// What was measured on a kernel like this one.
fn measured(origin: &Origin, hooks: &[HookStatus]) -> Option<Measured> {
    let missing = hooks.iter().filter(|hook| hook.how.is_none());
    measured::row(&origin.kernel, &missing.map(|hook| hook.sees.clone()).collect())
}

fn text(
    origin: &Origin,
    status: &anyhow::Result<Vec<HookStatus>>,
    instances: &[(&Found, crate::event::Config)],
) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} on {}, Linux {}",
        origin.tool, origin.host, origin.kernel
    );
    match status {
        Err(error) => {
            let _ = writeln!(text, "\nnothing can be watched: {error:#}");
        }
        Ok(hooks) => {
            let missing = hooks.iter().filter(|hook| hook.how.is_none()).count();
            let _ = writeln!(
                text,
                "\n{} of {} hooks attach",
                hooks.len() - missing,
                hooks.len()
            );
            for hook in hooks {
                let shows = PLAN
                    .iter()
                    .find(|plan| plan.sees == hook.sees)
                    .map_or("", |plan| plan.shows);
                let mark = if hook.how.is_some() { "yes" } else { "NO " };
                let _ = writeln!(text, "  {mark}  {:<16} {shows}", hook.sees);
                match (&hook.how, &hook.why_not) {
                    (Some(how), _) => {
                        let _ = writeln!(text, "       {:<16} by {how}", "");
                    }
                    (None, why) => {
                        let why = why.as_deref().unwrap_or("unknown");
                        let _ = writeln!(text, "       {:<16} {why}", "");
                        let _ = writeln!(text, "       {:<16} so {}", "", hook.without);
                    }
                }
            }
            text.push('\n');
            text.push_str(&match measured(origin, hooks) {
                Some(measured) => measured.to_string(),
                None => "not measured: no kernel of the scoreboard (docs/zoo.md) shows the same\n".to_owned(),
            });
        }
    }
    if !kernel::has_programs() {
        let _ = writeln!(
            text,
            "\nthis build carries no BPF programs; `cargo xtask setup` installs what they need"
        );
    }
    for (found, config) in instances {
        let instance = &found.instance;
        let version = instance.version.as_deref().unwrap_or("unknown version");
        let _ = writeln!(
            text,
            "\n{version}, pid {}, {} worker{}, {}",
            instance.pid,
            instance.workers.len(),
            if instance.workers.len() == 1 { "" } else { "s" },
            instance.exe,
        );
        let _ = writeln!(
            text,
            "  configuration {}: {} upstreams",
            config.path, config.upstreams
        );
        for peer in &config.peers {
            let via = peer.via.as_deref().unwrap_or("?");
            let _ = writeln!(
                text,
                "    {:<20} {:<28} {} ({via})",
                peer.upstream,
                peer.peer.to_string(),
                peer.server
            );
        }
        for log in &config.error_logs {
            let _ = writeln!(text, "  error log {log}");
        }
        for problem in &config.problems {
            let _ = writeln!(text, "  not understood: {problem}");
        }
    }
    text
}
