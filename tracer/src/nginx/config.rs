//! What a configuration says about upstreams, read from its files as nginx would find them, without ever running it.
//!
//! Reading cannot fail: what is broken, unreadable or not understood is a line in [`Config::problems`], and a text that
//! nginx itself would refuse yields no names at all, since the running nginx cannot have loaded it.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use crate::{
    event::{Config, Ktime, Pid},
    host::{self, process, root::Root},
    nginx::{
        config::{evaluate::evaluate, load::load, names::Names},
        find::{Found, Layout},
    },
};

mod address;
mod evaluate;
mod lexer;
mod load;
mod names;
mod variables;

/// How much later than a worker's start (known to 10 ms) a file may have changed and still be what the worker has.
const CLOCK_SLACK: Duration = Duration::from_millis(20);

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Read this file, found as this program sees files, instead of the one nginx was started with.
    pub file: Option<&'a Path>,
    /// The system's resolver may be asked for names that nginx's hosts file does not know.
    pub resolve: bool,
    /// When the first worker with this configuration started; `None`: as the processes in [`Found`] tell.
    pub started: Option<Ktime>,
}

/// Reads the configuration of an instance.
#[must_use]
pub fn read(found: &Found, options: Options<'_>) -> Config {
    let pid = found.instance.pid;
    let mut layout = Layout::of(pid, &found.command, &found.build);
    let mut config = Config::default();
    let root = match options.file {
        Some(file) => {
            layout.conf = std::path::absolute(file)
                .unwrap_or(file.into())
                .to_string_lossy()
                .into_owned();
            Root::own()
        }
        None if found.is_orphaned => {
            config.problems.push(format!(
                "the master of worker {pid} is gone, and with it the name of its configuration: give it with --config"
            ));
            return config;
        }
        None => Root::of(pid),
    };
    config.path.clone_from(&layout.conf);
    let root = match root {
        Ok(root) => root,
        Err(error) => {
            config.problems.push(format!(
                "cannot read {}: the root of pid {pid}: {error}",
                layout.conf
            ));
            return config;
        }
    };
    let own = Pid(std::process::id());
    let shares = |kind| process::namespace_of(own, kind) == process::namespace_of(pid, kind);
    // Elsewhere the same name may mean another host.
    let may_ask = options.resolve && shares("net") && shares("mnt");
    // Names are looked up where nginx looks them up, whatever file is read.
    let mut names = match Root::of(pid) {
        Ok(root) => Names::new(&root, may_ask),
        Err(_) => Names::default(),
    };
    config.may_ask_names = options.resolve;
    let started = options.started.unwrap_or_else(|| found.generation_started());
    read_files(&root, &layout, found, started, &mut names, &mut config);
    // Names may not be asked for at all, or it is not known that these are the files that nginx reads.
    if !options.resolve || options.file.is_some() {
        config.names = Vec::new();
        config.is_whole = false;
    }
    config
}

fn read_files(
    root: &Root,
    layout: &Layout,
    found: &Found,
    started: Ktime,
    names: &mut Names,
    config: &mut Config,
) {
    let loaded = load(root, &layout.conf, found.command.directives.as_deref());
    let is_all_read = loaded.problems.is_empty();
    config.problems.extend(loaded.problems);
    let evaluated = evaluate(&loaded.directives, layout, found.build.nginx_release(), names);
    config.error_logs = evaluated.error_logs;
    config.access_logs = evaluated.access_logs;
    let mut directives = loaded.directives.iter();
    config.cuts_at_shutdown = directives.any(|directive| directive.name() == "worker_shutdown_timeout");
    config.resolvers = evaluated.resolvers;
    if loaded.is_broken {
        config.problems.push(format!(
            "the running nginx cannot have loaded {} as it is now: peers are shown by address",
            layout.conf
        ));
        return;
    }
    config.upstreams = evaluated.upstreams;
    config.peers = evaluated.peers;
    config.datagrams = evaluated.datagrams;
    config.names = evaluated.names;
    config.is_whole = is_all_read && !evaluated.is_open;
    config.problems.extend(evaluated.problems);
    config.problems.extend(names.problem());
    if let Some((modified, file)) = loaded.modified
        && was_changed_since(modified, started)
    {
        config.names = Vec::new();
        config.is_whole = false;
        config.problems.push(format!(
            "{file} was changed after the workers started: names are those of the new text, reload nginx to be sure"
        ));
    }
}

fn was_changed_since(modified: SystemTime, started: Ktime) -> bool {
    let Ok(modified) = modified.duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    let started = i128::from(host::wall_clock_offset()) + i128::from(started.0);
    modified.as_nanos().cast_signed() > started + CLOCK_SLACK.as_nanos().cast_signed()
}
