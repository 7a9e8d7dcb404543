//! What a trace says about itself: where it comes from, and what was known of nginx and the host when it began.

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    clock::Clock,
    event::{AccessLog, Config, Input, Instance, Ktime, Pid},
    model::HookStatus,
    sink::schema,
};

/// The host and the program that watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `tracer 0.1.0`.
    pub tool: String,
    /// The host's name.
    pub host: String,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's boot id.
    pub boot_id: Option<String>,
}

impl Origin {
    /// This program on this host.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        Self {
            tool: TOOL.to_owned(),
            host: read("/proc/sys/kernel/hostname").unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// This program and its version.
pub const TOOL: &str = concat!("tracer ", env!("CARGO_PKG_VERSION"));

/// Collects from the inputs what the session line of a trace says.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    origin: Origin,
    options: BTreeMap<String, Value>,
    hooks: Vec<HookStatus>,
    instances: BTreeMap<Pid, Instance>,
    configs: BTreeMap<Pid, Config>,
}

/// More instances than this are not listed one by one.
const MAX_INSTANCES: usize = 256;

/// More access logs are not listed.
const MAX_ACCESS_LOGS: usize = 256;

impl SessionFacts {
    /// Nothing is known yet but who watches, and with which options.
    #[must_use]
    pub fn new(origin: Origin, options: BTreeMap<String, Value>) -> Self {
        Self {
            origin,
            options,
            hooks: Vec::new(),
            instances: BTreeMap::new(),
            configs: BTreeMap::new(),
        }
    }

    /// Takes note of an input, and says whether it told something for the session line; the newest of a kind counts.
    pub fn observe(&mut self, input: &Input) -> bool {
        match input {
            Input::Hooks(hooks) => self.hooks.clone_from(hooks),
            Input::Instance(instance) => {
                if self.instances.len() < MAX_INSTANCES || self.instances.contains_key(&instance.pid) {
                    self.instances.insert(instance.pid, instance.clone());
                }
            }
            Input::Config { master, config, .. } => {
                if self.configs.len() < MAX_INSTANCES || self.configs.contains_key(master) {
                    self.configs.insert(*master, config.clone());
                }
            }
            Input::Kernel(_)
            | Input::Addresses { .. }
            | Input::Worker { .. }
            | Input::LogLine(_)
            | Input::Answer { .. }
            | Input::Lost { .. }
            | Input::Clock { .. }
            | Input::Tick
            | Input::Detach { .. } => return false,
        }
        true
    }

    /// The instances found so far.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// Everything of the hook plan that cannot be seen on this host.
    pub fn missing_hooks(&self) -> impl Iterator<Item = &HookStatus> {
        self.hooks.iter().filter(|hook| hook.how.is_none())
    }

    /// What was not understood of the configuration, over all instances.
    pub fn config_problems(&self) -> impl Iterator<Item = &str> {
        self.configs
            .values()
            .flat_map(|config| config.problems.iter().map(String::as_str))
    }

    /// The session line of a trace that begins at `now`.
    #[must_use]
    pub fn session(&self, now: Ktime, clock: Clock) -> schema::Session {
        let mut problems: Vec<String> = self.config_problems().map(ToOwned::to_owned).collect();
        problems.sort();
        problems.dedup();
        let mut access_logs = Vec::new();
        for log in self.configs.values().flat_map(|config| &config.access_logs) {
            let log = access_log(log);
            if access_logs.len() < MAX_ACCESS_LOGS && !access_logs.contains(&log) {
                access_logs.push(log);
            }
        }
        schema::Session {
            schema: schema::SCHEMA.to_owned(),
            tool: self.origin.tool.clone(),
            host: self.origin.host.clone(),
            kernel: self.origin.kernel.clone(),
            boot_id: self.origin.boot_id.clone(),
            started: clock.rfc3339(now),
            part: 1,
            nginx: self.instances.values().map(nginx).collect(),
            hooks: self.hooks.iter().map(hook).collect(),
            config: schema::ConfigSummary {
                upstreams: self.configs.values().map(|config| config.upstreams).sum(),
                peers: self
                    .configs
                    .values()
                    .map(|config| u32::try_from(config.peers.len()).unwrap_or(u32::MAX))
                    .sum(),
                access_logs,
                problems,
            },
            options: self.options.clone(),
        }
    }
}

fn nginx(instance: &Instance) -> schema::Nginx {
    schema::Nginx {
        pid: instance.pid.0,
        exe: instance.exe.clone(),
        version: instance.version.clone(),
        conf: instance.conf.clone(),
        workers: instance.workers.iter().map(|worker| worker.0).collect(),
        netns: instance.netns.0,
    }
}

fn access_log(log: &AccessLog) -> schema::AccessLog {
    schema::AccessLog {
        path: log.path.clone(),
        name: log.name.clone(),
        format: (!log.format.is_empty()).then(|| log.format.clone()),
        escape: log.escape.name().into(),
    }
}

fn hook(hook: &HookStatus) -> schema::Hook {
    schema::Hook {
        sees: hook.sees.clone(),
        how: hook.how.clone(),
        why_not: hook.why_not.clone(),
        without: hook.without.clone(),
    }
}
