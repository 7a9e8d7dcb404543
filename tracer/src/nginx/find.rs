//! Finds running instances of nginx: the processes of each, its executable, and how it was started.
//!
//! A process is an nginx when the text of its executable says so; its name alone proves nothing. Nothing is run and
//! nothing is asked: everything comes from `/proc` and from the executable's bytes.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    event::{Instance, Ktime, Netns, Pid},
    host::process::{self, Stat},
    nginx::find::{
        build::Build,
        command::{Command, Title},
    },
};

pub mod build;
pub mod command;

/// Executables that are nginx under another name; all of them log and work alike.
pub const NAMES: [&str; 6] = [
    "nginx",
    "nginx-debug",
    "openresty",
    "angie",
    "tengine",
    "freenginx",
];

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The instance this process belongs to.
    Pid(Pid),
    /// Every instance of that name; `nginx` stands for all of [`NAMES`].
    Name(String),
}

impl Target {
    /// Reads the argument of `--pid`: a number is a process, anything else a name.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(number) => Self::Pid(Pid(number)),
            Err(_) => Self::Name(text.to_owned()),
        }
    }

    /// Whether a process of this name may belong to the target; both names that a process has are looked at.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        match self {
            Self::Pid(_) => false,
            Self::Name(wanted) if wanted == "nginx" => NAMES.contains(&name),
            // The kernel keeps only the first 15 bytes of a process's name.
            Self::Name(wanted) => name == wanted || (name.len() == 15 && wanted.starts_with(name)),
        }
    }
}

/// Why there is nothing to attach to.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No process has that id.
    #[error("no process has pid {0}: see `pgrep -a nginx` for those that run")]
    NoSuchProcess(Pid),
    /// It is another program.
    #[error("pid {pid} is {command}, not an nginx: give the pid of an nginx master or worker, or `nginx`")]
    NotNginx {
        /// The process.
        pid: Pid,
        /// What it is.
        command: String,
    },
    /// It is an nginx that only tests, signals or prints something, and ends.
    #[error(
        "pid {0} is an nginx that only tests its configuration or sends a signal: give the pid of its master"
    )]
    OneShot(Pid),
    /// The system would not let us look.
    #[error("cannot read {what} of pid {pid}: {error}; run as root or with CAP_SYS_PTRACE")]
    Unreadable {
        /// The process; 0: none in particular.
        pid: Pid,
        /// Which part.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// What a process of an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Starts and watches the workers.
    Master,
    /// The only process (`master_process off`), or one that has just begun.
    Single,
    /// Serves requests.
    Worker,
    /// Serves its last requests with the configuration before a reload.
    OldWorker,
    /// Cache manager, cache loader and the like, which never talk to an upstream.
    Helper,
}

/// One process of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id on the host.
    pub pid: Pid,
    /// Its id in its own pid namespace, as nginx's log shows it.
    pub inner_pid: u32,
    /// What it does.
    pub role: Role,
    /// When it started, to the clock tick (10 ms).
    pub started: Ktime,
}

/// A running instance with all that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the engine is told.
    pub instance: Instance,
    /// All its processes, the master (or the only process) first.
    pub processes: Vec<Process>,
    /// Device and inode of the executable.
    pub executable: (u64, u64),
    /// How it was started; empty where that is not known any more.
    pub command: Command,
    /// What the executable's text says.
    pub build: Build,
    /// The master is gone and its workers live on; how it was started is unknown then.
    pub is_orphaned: bool,
}

impl Found {
    /// From the process ids in nginx's log to those of the host.
    #[must_use]
    pub fn log_pids(&self) -> BTreeMap<u32, Pid> {
        let pairs = self
            .processes
            .iter()
            .map(|process| (process.inner_pid, process.pid));
        pairs.collect()
    }

    /// When the first of the present workers started; the master's start when there is none.
    ///
    /// Their configuration was read just before: a worker that was started again later has the same.
    #[must_use]
    pub fn generation_started(&self) -> Ktime {
        let workers = self
            .processes
            .iter()
            .filter(|process| process.role == Role::Worker);
        let oldest = workers.map(|process| process.started).min();
        oldest
            .or_else(|| self.processes.first().map(|process| process.started))
            .unwrap_or_default()
    }
}

/// A process whose executable is an nginx.
#[derive(Clone, Debug)]
struct Candidate {
    pid: Pid,
    exe: String,
    /// Device and inode of the executable.
    executable: (u64, u64),
    build: Rc<Build>,
    stat: Stat,
    title: Title,
}

/// One process of an instance that is being put together.
type Member<'a> = (&'a Candidate, Role);

/// Finds the instances that `target` means: for a name all that run now, maybe none; for a process exactly one.
pub fn find(target: &Target) -> Result<Vec<Found>, FindError> {
    match target {
        Target::Pid(pid) => find_by_pid(*pid).map(|found| vec![found]),
        Target::Name(_) => {
            let candidates = candidates(|comm, exe| target.names(comm) || target.names(base_name(exe)))?;
            Ok(instances(&candidates))
        }
    }
}

/// Where packages and builds from source put nginx, beside the folders of `PATH`.
const PLACES: [&str; 12] = [
    "/usr/sbin",
    "/usr/bin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/local/nginx/sbin",
    "/usr/local/openresty/nginx/sbin",
    "/usr/local/openresty-debug/nginx/sbin",
    "/usr/local/angie/sbin",
    "/usr/local/tengine/sbin",
    "/usr/local/freenginx/sbin",
    "/opt/nginx/sbin",
    "/opt/openresty/nginx/sbin",
];

/// Executables on this host that `target` may mean, whether they run or not: each by its device and inode.
///
/// An nginx that starts later is heard from its first line on when its executable is known before.
#[must_use]
pub fn installed(target: &Target, path: Option<&OsStr>) -> BTreeMap<(u64, u64), PathBuf> {
    let names: Vec<&str> = match target {
        Target::Pid(_) => return BTreeMap::new(),
        Target::Name(name) if name == "nginx" => NAMES.to_vec(),
        // A fork's executable may well be called nginx, and only the link to it by the fork's own name.
        Target::Name(name) => vec![name],
    };
    let mut found = BTreeMap::new();
    for folder in path
        .into_iter()
        .flat_map(std::env::split_paths)
        .chain(PLACES.map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
    {
        for file in names.iter().map(|name| folder.join(name)) {
            if let Ok(identity) = process::file_identity(&file)
                && file.is_file()
                && !found.contains_key(&identity)
                && matches!(build::read_file(&file), Ok(Some(_)))
            {
                found.insert(identity, file);
            }
        }
    }
    found
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn find_by_pid(pid: Pid) -> Result<Found, FindError> {
    // A thread has a directory in /proc too; its process is meant.
    let pid = match process::status_line(pid, "Tgid").and_then(|text| text.parse().ok()) {
        Some(process) => Pid(process),
        None => pid,
    };
    let Some(stat) = process::stat(pid) else {
        return Err(FindError::NoSuchProcess(pid));
    };
    let comm = process::comm(pid).unwrap_or_default();
    let not_nginx = |command: String| FindError::NotNginx { pid, command };
    if matches!(stat.state, 'Z' | 'X') {
        return Err(not_nginx(format!("{comm}, which has ended")));
    }
    let exe = match process::exe(pid) {
        Ok(exe) => exe,
        // Kernel threads have no executable.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_nginx(comm)),
        Err(error) => return Err(unreadable(pid, "the executable", error)),
    };
    if build::read(pid)
        .map_err(|error| unreadable(pid, "the executable", error))?
        .is_none()
    {
        return Err(not_nginx(format!("{comm} ({exe})")));
    }
    if process::command_line(pid).is_some_and(|arguments| arguments.is_empty()) {
        return Err(not_nginx(format!("{comm}, which is only just being started")));
    }
    let candidates = candidates(|other, path| other == comm || path == exe)?;
    let found = instances(&candidates)
        .into_iter()
        .find(|found| found.processes.iter().any(|process| process.pid == pid));
    let is_one_shot = || {
        candidates
            .iter()
            .any(|known| known.pid == pid && known.title.is_one_shot())
    };
    match found {
        Some(found) => Ok(found),
        None if is_one_shot() => Err(FindError::OneShot(pid)),
        None => Err(FindError::NoSuchProcess(pid)),
    }
}

fn unreadable(pid: Pid, what: &'static str, error: io::Error) -> FindError {
    FindError::Unreadable { pid, what, error }
}

/// Every process whose names pass `may_match` and whose executable is an nginx.
///
/// Of the other processes only the two names are read: a host may run thousands.
fn candidates(may_match: impl Fn(&str, &str) -> bool) -> Result<Vec<Candidate>, FindError> {
    let pids = process::pids().map_err(|error| unreadable(Pid(0), "/proc", error))?;
    let mut builds: BTreeMap<(u64, u64), Option<Rc<Build>>> = BTreeMap::new();
    let mut candidates = Vec::new();
    for pid in pids {
        let Some(comm) = process::comm(pid) else { continue };
        let exe = match process::exe(pid) {
            Ok(exe) => exe,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && may_match(&comm, "") => {
                return Err(unreadable(pid, "the executable", error));
            }
            // Kernel threads, zombies, processes that ended meanwhile.
            Err(_) => continue,
        };
        if !may_match(&comm, &exe) {
            continue;
        }
        let (Ok(executable), Some(stat)) = (process::exe_inode(pid), process::stat(pid)) else {
            continue;
        };
        let build = match builds.get(&executable) {
            Some(known) => known.clone(),
            None => {
                // One that ended meanwhile says nothing of others with the same executable.
                let Ok(read) = build::read(pid) else { continue };
                builds.entry(executable).or_insert(read.map(Rc::new)).clone()
            }
        };
        let Some(build) = build else { continue };
        // Without arguments it is in the midst of an exec: what it will be cannot be said yet.
        let Some(arguments) = process::command_line(pid).filter(|arguments| !arguments.is_empty()) else {
            continue;
        };
        let title = Title::parse(&arguments);
        if !matches!(stat.state, 'Z' | 'X') {
            candidates.push(Candidate {
                pid,
                exe,
                executable,
                build,
                stat,
                title,
            });
        }
    }
    Ok(candidates)
}

/// What all forks of one master share: the executable, where their arguments lie, the network namespace.
type Origin = ((u64, u64), u64, Option<Netns>);

/// Sorts processes into instances.
fn instances(candidates: &[Candidate]) -> Vec<Found> {
    let known: BTreeMap<Pid, &Candidate> = candidates.iter().map(|known| (known.pid, known)).collect();
    let mut families: BTreeMap<Pid, Vec<Member<'_>>> = BTreeMap::new();
    // Heads first: a worker may have a lower pid than its master after the numbers wrapped.
    for candidate in candidates
        .iter()
        .filter(|candidate| !is_fresh_fork(candidate, &known))
    {
        let role = match &candidate.title {
            Title::Master(_) => Role::Master,
            Title::Plain(command) if !command.is_one_shot => Role::Single,
            Title::Plain(_) | Title::Worker | Title::OldWorker | Title::Helper => continue,
        };
        families.insert(candidate.pid, vec![(candidate, role)]);
    }
    // Workers whose master died.
    let mut orphans: BTreeMap<Origin, Vec<Member<'_>>> = BTreeMap::new();
    for candidate in candidates {
        let role = match &candidate.title {
            _ if families.contains_key(&candidate.pid) => continue,
            Title::Plain(command) if command.is_one_shot => continue,
            Title::OldWorker => Role::OldWorker,
            Title::Helper => Role::Helper,
            // Forked a moment ago and not yet named: nearly always a worker.
            Title::Worker | Title::Master(_) | Title::Plain(_) => Role::Worker,
        };
        let family = match families.get_mut(&candidate.stat.parent) {
            Some(family) => family,
            None => {
                let netns = process::netns_of(candidate.pid);
                orphans
                    .entry((candidate.executable, candidate.stat.arguments_at, netns))
                    .or_default()
            }
        };
        family.push((candidate, role));
    }
    let led = families.into_values().map(|family| describe(&family, false));
    let serves = |family: &Vec<Member<'_>>| family.iter().any(|(_, role)| *role != Role::Helper);
    let orphaned = orphans
        .into_values()
        .filter(serves)
        .map(|family| describe(&family, true));
    led.chain(orphaned).collect()
}

/// A child that still carries its parent's arguments in the same place was forked and has not been named yet; after
/// an exec (a binary upgrade) they lie elsewhere.
fn is_fresh_fork(candidate: &Candidate, known: &BTreeMap<Pid, &Candidate>) -> bool {
    known.get(&candidate.stat.parent).is_some_and(|parent| {
        candidate.stat.arguments_at != 0
            && parent.stat.arguments_at == candidate.stat.arguments_at
            && matches!(parent.title, Title::Master(_) | Title::Plain(_))
    })
}

fn describe(family: &[Member<'_>], is_orphaned: bool) -> Found {
    let (head, _) = family[0];
    let build = (*head.build).clone();
    let command = match &head.title {
        Title::Master(command) | Title::Plain(command) if !is_orphaned => command.clone(),
        _ => Command::default(),
    };
    let processes: Vec<Process> = family
        .iter()
        .map(|(candidate, role)| Process {
            pid: candidate.pid,
            inner_pid: process::inner_pid(candidate.pid).unwrap_or(candidate.pid.0),
            role: *role,
            started: candidate.stat.started,
        })
        .collect();
    let is_worker = |process: &&Process| matches!(process.role, Role::Worker | Role::OldWorker);
    let mut workers: Vec<Pid> = processes
        .iter()
        .filter(is_worker)
        .map(|process| process.pid)
        .collect();
    workers.sort();
    let conf = (!is_orphaned).then(|| Layout::of(head.pid, &command, &build).conf);
    Found {
        instance: Instance {
            pid: head.pid,
            exe: head.exe.clone(),
            version: build.version.clone(),
            conf,
            workers,
            netns: process::netns_of(head.pid).unwrap_or_default(),
            heard_since: None,
        },
        processes,
        executable: head.executable,
        command,
        build,
        is_orphaned,
    }
}

/// Where an instance's files lie, by the rules nginx itself follows at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What relative paths in the configuration are counted from.
    pub prefix: String,
    /// The main configuration file.
    pub conf: String,
    /// The error log nginx uses when the configuration names none.
    pub error_log: String,
}

impl Layout {
    /// The layout of the instance whose master is `pid`.
    #[must_use]
    pub fn of(pid: Pid, command: &Command, build: &Build) -> Self {
        Self::new(&working_directory(pid), command, build)
    }

    fn new(working_directory: &str, command: &Command, build: &Build) -> Self {
        let prefix = command.prefix.as_deref().or(build.prefix.as_deref());
        let prefix = join(working_directory, prefix.unwrap_or("/usr/local/nginx"));
        let conf = command.conf.as_deref().or(build.conf.as_deref());
        let conf = conf.unwrap_or(match build.prefix {
            Some(_) => "conf/nginx.conf",
            None => "/etc/nginx/nginx.conf",
        });
        let error_log = command.error_log.as_deref().or(build.error_log.as_deref());
        Self {
            conf: join(&prefix, conf),
            error_log: match error_log.unwrap_or("logs/error.log") {
                "stderr" => "stderr".to_owned(),
                path => join(&prefix, path),
            },
            prefix,
        }
    }
}

/// `path` when it is absolute, otherwise below `directory`.
#[must_use]
pub fn join(directory: &str, path: &str) -> String {
    Path::new(directory).join(path).to_string_lossy().into_owned()
}

/// The working directory of a process, by the names its own root gives.
fn working_directory(pid: Pid) -> String {
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}"));
    let directory = link("cwd").unwrap_or_else(|_| "/".into());
    let root = link("root").unwrap_or_else(|_| "/".into());
    match directory.strip_prefix(&root) {
        Ok(below) => Path::new("/").join(below),
        Err(_) => directory,
    }
    .to_string_lossy()
    .into_owned()
}
