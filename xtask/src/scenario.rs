//! A scenario: a file that says how a fault comes about and what must be named; read here, run by [`run`], judged by
//! [`judge`].

pub mod error_log;
pub mod judge;
mod program;
pub mod report;
pub mod run;
pub mod stage;
pub mod together;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::lab::{
    backend::{Behaviour, Order, Said},
    stranger::Manner,
};

/// One scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its extension.
    #[serde(skip)]
    pub name: String,
    /// One sentence: what happens.
    pub about: String,
    /// What the machine must have.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// Where its peers are: as its laboratory says, and further ones in which it must be named the same.
    #[serde(default = "on_loopback")]
    pub placements: Vec<Placement>,
    /// The placement of these.
    #[serde(skip)]
    pub placement: Placement,
    /// How to make it happen.
    pub lab: Lab,
    /// What must be named.
    #[serde(default)]
    pub expect: Vec<Expect>,
    /// What must have succeeded.
    #[serde(default)]
    pub succeeds: Vec<Succeeds>,
    /// The patterns that must be found in it, by their ids.
    #[serde(default)]
    pub findings: Vec<String>,
    /// Patterns that may also be found, as it happens: in its recording there must be no others.
    #[serde(default)]
    pub may_find: Vec<String>,
}

/// Where the peers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// On nginx's loopback.
    #[default]
    Loopback,
    /// The same, IPv6.
    LoopbackIpv6,
    /// Behind a unix socket.
    Unix,
    /// In another network namespace of this host, at the other end of a cable.
    Namespace,
    /// The same, IPv6.
    NamespaceIpv6,
    /// There, behind an address that nginx's namespace translates, as containers' are.
    Dnat,
    /// The same, IPv6.
    DnatIpv6,
    /// In another namespace behind one that routes.
    Router,
    /// The same, IPv6.
    RouterIpv6,
    /// On nginx's loopback, and nginx in user, mount and process namespaces of its own.
    Container,
    /// On another host.
    Remote,
}

impl Placement {
    /// As scenario files and the scoreboard spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::LoopbackIpv6 => "loopback-ipv6",
            Self::Unix => "unix",
            Self::Namespace => "namespace",
            Self::NamespaceIpv6 => "namespace-ipv6",
            Self::Dnat => "dnat",
            Self::DnatIpv6 => "dnat-ipv6",
            Self::Router => "router",
            Self::RouterIpv6 => "router-ipv6",
            Self::Container => "container",
            Self::Remote => "remote",
        }
    }

    /// Whether a laboratory's peers are there.
    fn is_of(self, lab: &Lab) -> bool {
        let is_at = |what: &str| {
            lab.names.values().any(|place| place.contains(what))
                || lab.backends.values().any(|backend| backend.listen.contains(what))
                || lab.programs.values().any(|program| program.listen.contains(what))
        };
        let is_ipv6 = is_at("::") || is_at("6}");
        let is_far = lab.far || lab.backends.values().any(|backend| backend.at == Side::Far);
        match self {
            Self::Remote => !lab.strangers.is_empty(),
            Self::Namespace | Self::Dnat | Self::Router => is_far && !is_ipv6,
            Self::NamespaceIpv6 | Self::DnatIpv6 | Self::RouterIpv6 => is_far && is_ipv6,
            Self::Unix => is_at("unix"),
            Self::LoopbackIpv6 => is_ipv6 && !is_far,
            Self::Loopback | Self::Container => lab.strangers.is_empty() && !is_far,
        }
    }

    /// Whether peers are there by their IPv6 addresses.
    fn is_ipv6(self) -> bool {
        self.name().ends_with("ipv6")
    }

    /// Whether nginx's namespace translates the peers' addresses.
    pub(crate) fn is_translated(self) -> bool {
        matches!(self, Self::Dnat | Self::DnatIpv6)
    }

    /// Whether there is a namespace in between that routes.
    pub(crate) fn is_routed(self) -> bool {
        matches!(self, Self::Router | Self::RouterIpv6)
    }

    /// The host that a peer on loopback has here instead: as [`Lab`]'s names spell it.
    fn host(self) -> Option<&'static str> {
        match self {
            Self::LoopbackIpv6 => Some("::1"),
            Self::Namespace | Self::Dnat | Self::Router => Some("{far}"),
            Self::NamespaceIpv6 | Self::DnatIpv6 | Self::RouterIpv6 => Some("{far6}"),
            Self::Loopback | Self::Unix | Self::Container | Self::Remote => None,
        }
    }
}

/// Between a scenario's name and a placement that is not its first.
const AT: char = '@';

/// Something not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// A control group that limits memory.
    MemoryLimit,
    /// `/dev/net/tun`.
    Tun,
    /// IPv6.
    Ipv6,
    /// nginx's stream module.
    Stream,
    /// Node.js.
    Node,
    /// gunicorn.
    Gunicorn,
    /// uvicorn.
    Uvicorn,
    /// PHP-FPM.
    PhpFpm,
    /// uWSGI with its plugin for Python.
    Uwsgi,
    /// HAProxy.
    Haproxy,
    /// OpenSSL's command, which makes certificates.
    Openssl,
    /// SELinux, with a policy that may be changed; nginx then runs in its domain.
    Selinux,
    /// Control groups of version 2, to which programs can be attached.
    Cgroup,
    /// Landlock that knows connects.
    Landlock,
    /// IPsec policies.
    Ipsec,
    /// `ss --kill`, which needs `CONFIG_INET_DIAG_DESTROY`.
    SocketKill,
}

/// How to make it happen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lab {
    /// nginx and its configuration.
    pub nginx: Nginx,
    /// Addresses with nobody there: the host, or `unix`; a port (or path) is found for each.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Backends.
    #[serde(default)]
    pub backends: BTreeMap<String, Backend>,
    /// Real servers.
    #[serde(default)]
    pub programs: BTreeMap<String, Program>,
    /// Remote hosts.
    #[serde(default)]
    pub strangers: BTreeMap<String, Manner>,
    /// Whether there is a second namespace at the other end of a cable.
    #[serde(default)]
    pub far: bool,
    /// Further arguments of `tracer attach`.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// How clients reach nginx.
    #[serde(default)]
    pub clients: Clients,
    /// How many healthy requests are under way at every moment.
    #[serde(default = "fifty")]
    pub load: usize,
    /// Healthy clients keep their connections, and nginx keeps those to the healthy backend: nothing new is opened.
    #[serde(default)]
    pub load_keeps: bool,
    /// The fault hits healthy requests too.
    #[serde(default)]
    pub load_suffers: bool,
    /// Done before the tracer attaches.
    #[serde(default)]
    pub before: Vec<Step>,
    /// Done while it watches.
    pub steps: Vec<Step>,
}

/// nginx and its configuration; `{name}` stands for an address, `{name.port}` and `{name.pid}` for its parts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nginx {
    /// Put at the top.
    #[serde(default)]
    pub main: String,
    /// Put into `events`.
    #[serde(default)]
    pub events: String,
    /// Put into `http`: the upstreams.
    #[serde(default)]
    pub http: String,
    /// Put into `server`: the locations.
    #[serde(default)]
    pub server: String,
    /// Put into `stream`.
    #[serde(default)]
    pub stream: String,
    /// The error log's level.
    #[serde(default = "error_level")]
    pub level: String,
    /// Where the healthy backend listens: an address, or `unix`.
    #[serde(default = "loopback")]
    pub healthy: String,
    /// The names whose ports it may connect to, in a Landlock domain; empty: in none.
    #[serde(default)]
    pub landlock: Vec<String>,
    /// A seccomp filter denies it every connect() to an IPv6 address.
    #[serde(default)]
    pub seccomp: bool,
    /// Files of /etc that only this nginx sees, by name; they lie in the folder `etc` of the scenario's own folder.
    #[serde(default)]
    pub etc: BTreeMap<String, String>,
    /// Files that it alone sees in places of others, by those: each is mounted by itself.
    #[serde(default)]
    pub mounts: BTreeMap<String, String>,
    /// Put behind the TCP address it listens on: `reuseport`.
    #[serde(default)]
    pub listen: String,
    /// How many workers.
    #[serde(default = "two")]
    pub workers: usize,
    /// Whether there is a master process.
    #[serde(default = "yes")]
    pub master: bool,
    /// Whether it is a daemon.
    #[serde(default)]
    pub daemon: bool,
}

/// How clients reach nginx.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clients {
    /// Over TCP.
    #[default]
    Tcp,
    /// Over a unix socket, which takes no ports.
    Unix,
}

/// A backend of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The address it listens on, or `unix`; a port (or path) is found for it.
    #[serde(default = "loopback")]
    pub listen: String,
    /// Listens on this name's port (or path) instead of one of its own.
    #[serde(default)]
    pub port_of: Option<String>,
    /// In which namespace it is.
    #[serde(default)]
    pub at: Side,
    /// The listen queue's length.
    #[serde(default = "usual_backlog")]
    pub backlog: u32,
    /// Bound, but not listening.
    #[serde(default)]
    pub only_bound: bool,
    /// A unix datagram socket.
    #[serde(default)]
    pub datagram: bool,
    /// Accepts in a child process, which is replaced when it ends.
    #[serde(default)]
    pub preforks: bool,
    /// `IPV6_V6ONLY`.
    #[serde(default)]
    pub v6only: bool,
    /// What it does.
    #[serde(default = "answers")]
    pub does: Behaviour,
    /// Whether it runs from the start.
    #[serde(default = "yes")]
    pub start: bool,
}

/// A real server, as people run it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The address it listens on, or `unix`; a port (or path) is found for it.
    #[serde(default = "loopback")]
    pub listen: String,
    /// The command, for a shell.
    pub command: String,
    /// Files it needs, by name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// How many child processes it has when it is ready.
    #[serde(default)]
    pub children: usize,
}

/// One of the two namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// nginx's.
    #[default]
    Near,
    /// The other end of the cable.
    Far,
}

/// Something done, or waited for.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Requests, answered before the next step.
    Request(Request),
    /// A request whose answer is not waited for.
    Send(Request),
    /// The answer to a request that was sent.
    Receive(Receive),
    /// More of the body of a request that was sent in part.
    SendBody(SendBody),
    /// A client closes its connection.
    HangUp(String),
    /// A bare TCP connection to a name: says this, then waits for the other end to close.
    Talk(Talk),
    /// An order to a backend.
    Tell(Tell),
    /// Waits until a backend says this.
    Hear(Hear),
    /// A signal to a backend.
    Signal(SignalStep),
    /// Waits until the process of a backend or of a real server has ended by itself.
    AwaitEnd(String),
    /// Starts a backend, again or for the first time, or a real server again.
    Start(String),
    /// SIGKILL to the worker that serves a client's connection.
    KillWorkerOf(String),
    /// Limits a backend's memory.
    MemoryLimit(MemoryLimit),
    /// Puts nginx into a control group whose programs deny connects to the port of this name.
    CgroupDeny(String),
    /// Changes what a remote host does.
    Stranger(StrangerStep),
    /// A shell script in a namespace.
    Run(RunStep),
    /// Holds so many connections open to an address.
    Fill(Fill),
    /// Something done to nginx itself.
    Nginx(NginxStep),
    /// Lets time pass, where the fault is made of time.
    PauseMs(u64),
    /// Waits until so many failed attempts are in the trace.
    AwaitFailures(usize),
}

/// Requests of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The path.
    pub path: String,
    /// The method.
    #[serde(default = "get")]
    pub method: String,
    /// The length of the body.
    #[serde(default)]
    pub body: usize,
    /// How much of it is sent at first.
    #[serde(default)]
    pub body_at_first: Option<usize>,
    /// How many, one after the other.
    #[serde(default = "one")]
    pub times: usize,
    /// How many at the same time.
    #[serde(default = "one")]
    pub together: usize,
    /// The status that must come back.
    #[serde(default)]
    pub status: Option<u16>,
    /// The body must be cut short.
    #[serde(default)]
    pub cut: bool,
    /// The client whose connection is used, and kept for later steps.
    #[serde(default)]
    pub client: Option<String>,
}

/// The answer to a request sent earlier.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// Whose.
    pub client: String,
    /// The status that must come back.
    pub status: u16,
}

/// More of a body.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendBody {
    /// Whose.
    pub client: String,
    /// How much.
    pub bytes: usize,
}

/// A bare connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Talk {
    /// To which name.
    pub name: String,
    /// What it says.
    #[serde(default)]
    pub says: String,
}

/// An order to a backend.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tell {
    /// Whom.
    pub backend: String,
    /// What.
    pub order: Order,
    /// On how many connections it must have taken effect.
    #[serde(default)]
    pub connections: Option<usize>,
}

/// Something a backend says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hear {
    /// Who.
    pub backend: String,
    /// What.
    pub says: Said,
}

/// A signal to a backend.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalStep {
    /// To whom.
    pub backend: String,
    /// `KILL`, `TERM` …
    pub signal: String,
    /// Not to the program itself, but to its newest child process.
    #[serde(default)]
    pub to_child: bool,
}

/// A limit on a backend's memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryLimit {
    /// Whose.
    pub backend: String,
    /// How much.
    pub mib: u64,
}

/// A change of a remote host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrangerStep {
    /// Which.
    pub host: String,
    /// What it does from now on.
    #[serde(default)]
    pub does: Option<Manner>,
    /// It forgets its connections.
    #[serde(default)]
    pub forgets: bool,
    /// It closes its idle connections.
    #[serde(default)]
    pub closes_idle: bool,
}

/// A shell script.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStep {
    /// Where.
    #[serde(default)]
    pub at: Side,
    /// What.
    pub script: String,
}

/// Connections held open.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// To which name.
    pub name: String,
    /// How many.
    pub connections: usize,
}

/// Something done to nginx itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NginxStep {
    /// SIGSTOP to the workers.
    StopWorkers,
    /// SIGSTOP to each of the workers while it waits for events.
    StopWaitingWorkers,
    /// SIGCONT to the workers.
    ContinueWorkers,
    /// SIGKILL to the workers.
    KillWorkers,
    /// Reload with the same configuration.
    Reload,
}

/// What must be named, for every failed attempt it fits.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// How many attempts; `None`: one or more.
    #[serde(default)]
    pub attempts: Option<usize>,
    /// It may also not happen: the fault has several faces.
    #[serde(default)]
    pub optional: bool,
    /// The headline cause; `None`: none may be named (only for outcome ok).
    pub cause: String,
    /// Its confidence.
    pub confidence: String,
    /// The outcome.
    pub outcome: String,
    /// Where it ended.
    pub phase: String,
    /// The errno's name.
    #[serde(default)]
    pub errno: Option<String>,
    /// The upstream's name.
    #[serde(default)]
    pub upstream: Option<String>,
    /// The peer.
    #[serde(default)]
    pub peer: Option<String>,
    /// The message in nginx's error log; `None`: nginx logs nothing.
    #[serde(default)]
    pub nginx_says: Option<String>,
    /// Whether the connection had been used before.
    #[serde(default)]
    pub reused: Option<bool>,
    /// What the client got right after it: `502`, `cut`, or `nothing` that is sure to be its.
    #[serde(default)]
    pub client: Option<String>,
    /// Further facts that some piece of evidence must hold, by field name.
    #[serde(default)]
    pub evidence: BTreeMap<String, toml::Value>,
    /// Causes that must be among the others that stand.
    #[serde(default)]
    pub also: Vec<String>,
    /// Names that must appear neither as the headline nor among the others.
    #[serde(default)]
    pub not: Vec<String>,
}

/// Attempts that must have succeeded: no fewer, which would be lost, and no more, which would be cut out of one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succeeds {
    /// The upstream's name; for a peer without one the peer says which.
    #[serde(default)]
    pub upstream: Option<String>,
    /// The peer.
    #[serde(default)]
    pub peer: Option<String>,
    /// How many attempts.
    pub attempts: usize,
    /// Up to how many, where nginx's workers share requests and each has connections of its own.
    #[serde(default)]
    pub at_most: Option<usize>,
    /// How many of them on a connection that had been used before.
    #[serde(default)]
    pub reused: Option<usize>,
    /// How many of them after a failed attempt of the same request.
    #[serde(default)]
    pub retries: Option<usize>,
    /// Their requests, each as `METHOD PATH HOST CLIENT STATUS` with `-` for what is not known: these and no others.
    /// Where a kernel does not let them be read, none must be known.
    #[serde(default)]
    pub requests: Vec<String>,
}

impl Scenario {
    /// Reads a scenario file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("a scenario file without a name")?;
        Self::parse(name, &text).with_context(|| format!("reading {}", path.display()))
    }

    /// Reads a scenario's text.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut scenario: Self = toml::from_str(text)?;
        name.clone_into(&mut scenario.name);
        scenario.placement = *scenario.placements.first().context("`placements` is empty")?;
        let moves = |at: &&Placement| at.host().is_some() && !scenario.has_peers_on_loopback();
        if let Some(at) = scenario.placements.iter().skip(1).find(moves) {
            bail!(
                "no backend and no name is on loopback, so placement {} would move nothing",
                at.name()
            );
        }
        Ok(scenario)
    }

    /// The same in each of its placements: the first under its own name, others as `name@placement`.
    #[must_use]
    pub fn in_all_placements(self) -> Vec<Self> {
        let others: Vec<Self> = self
            .placements
            .iter()
            .skip(1)
            .map(|at| self.placed(*at))
            .collect();
        std::iter::once(self).chain(others).collect()
    }

    /// Whether it has peers that [`Self::placed`] moves.
    fn has_peers_on_loopback(&self) -> bool {
        let mut listen = self.lab.backends.values().map(|backend| &backend.listen);
        listen.any(|host| *host == loopback()) || self.lab.names.values().any(|host| *host == loopback())
    }

    /// The same with its peers elsewhere: those on loopback move.
    fn placed(&self, placement: Placement) -> Self {
        let mut placed = self.clone();
        placed.placement = placement;
        placed.name = format!("{}{AT}{}", self.name, placement.name());
        if placement.is_ipv6() && !placed.needs.contains(&Need::Ipv6) {
            placed.needs.push(Need::Ipv6);
        }
        if let Some(host) = placement.host() {
            let is_away = placement != Placement::LoopbackIpv6;
            placed.lab.far |= is_away;
            for backend in placed.lab.backends.values_mut() {
                if backend.listen == loopback() {
                    host.clone_into(&mut backend.listen);
                    if is_away {
                        backend.at = Side::Far;
                    }
                }
            }
            for name in placed.lab.names.values_mut() {
                if *name == loopback() {
                    host.clone_into(name);
                }
            }
        }
        placed
    }

    /// The name of its file.
    #[must_use]
    pub fn file(&self) -> &str {
        self.name.split(AT).next().unwrap_or_default()
    }

    /// All scenarios of a folder, by name.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort_unstable();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

fn on_loopback() -> Vec<Placement> {
    vec![Placement::default()]
}

fn fifty() -> usize {
    50
}

fn error_level() -> String {
    "error".to_owned()
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

fn two() -> usize {
    2
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn usual_backlog() -> u32 {
    511
}

fn answers() -> Behaviour {
    Behaviour::Answer(crate::lab::backend::Answer::default())
}

fn get() -> String {
    "GET".to_owned()
}
