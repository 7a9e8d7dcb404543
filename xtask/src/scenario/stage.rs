//! A scenario's stage: namespaces, nginx, backends and clients as its file wants them, and the doing of its steps.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{Clients, NginxStep, Placement, Request, Scenario, Side, Step, program::Program};
use crate::lab::{
    Run,
    backend::{Answer, Backend, Behaviour, Spec},
    client::{Address, Client, Keeps, Load},
    confine::{self, Confinement, DenyingGroup},
    memory::MemoryLimit,
    netns::{BEHIND_ROUTER, BEHIND_ROUTER6, FAR, FAR6, NEAR, NEAR6, Netns, SERVICE, SERVICE6},
    nginx::{Nginx, Start},
    selinux::{self, Selinux},
    slowness,
    stranger::{ROUTER, Strangers},
};

/// The name of the healthy backend and upstream.
pub const HEALTHY: &str = "healthy";
/// The healthy upstream without kept connections.
pub const HEALTHY_NEW: &str = "healthy-new";
/// How long the healthy backend takes, more on a slow machine: so many clients times ten requests a second.
const HEALTHY_DELAY_MS: u64 = 100;

/// A stage; everything on it goes when it is dropped, nginx before the namespaces.
#[derive(Debug)]
pub struct Stage {
    /// Enforcing from when a step says so.
    pub selinux: Option<Selinux>,
    clients: HashMap<String, Client>,
    held: Vec<Held>,
    limits: Vec<MemoryLimit>,
    backends: BTreeMap<String, Backend>,
    programs: BTreeMap<String, Program>,
    program_specs: BTreeMap<String, super::Program>,
    specs: BTreeMap<String, (Side, Spec)>,
    strangers: Option<Strangers>,
    stranger_hosts: BTreeMap<String, Ipv4Addr>,
    /// The nginx on it.
    pub nginx: Nginx,
    /// The control groups it is in, which go after it.
    groups: Vec<DenyingGroup>,
    /// Its configuration.
    pub config: String,
    names: Names,
    /// Where clients reach it.
    pub address: Address,
    /// The namespace it is in.
    pub near: Netns,
    far: Option<Netns>,
    #[expect(dead_code, reason = "it routes while it is there")]
    router: Option<Netns>,
    /// Where its files are.
    pub folder: PathBuf,
}

/// A connection that is only held.
#[derive(Debug)]
#[expect(dead_code, reason = "held for its being open, never read")]
enum Held {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What `{name}` stands for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Names(BTreeMap<String, String>);

impl Names {
    /// Puts the names into a text. Only `{word}` is a name: nginx's own braces are never like that.
    pub fn fill(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let word: &str = after.split('}').next().unwrap_or_default();
            let is_name = after.len() > word.len()
                && !word.is_empty()
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
                && word.starts_with(|c: char| c.is_ascii_alphabetic());
            if is_name {
                let value = self
                    .0
                    .get(word)
                    .with_context(|| format!("the scenario names nothing `{word}`"))?;
                filled.push_str(value);
                rest = &after[word.len() + 1..];
            } else {
                filled.push('{');
                rest = after;
            }
        }
        filled.push_str(rest);
        Ok(filled)
    }

    /// Gives a name a value.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Gives a name an address: `host` with a port nobody has, or a path nobody has.
    fn place(&mut self, name: &str, host: &str, port: u16, folder: &Path) {
        // A scenario that wants a certain port says so.
        if let Ok(whole) = host.parse::<std::net::SocketAddr>() {
            return self.place(name, &whole.ip().to_string(), whole.port(), folder);
        }
        let port = port.to_string();
        let mut unix = |path: String| {
            let address = format!("unix:{path}");
            self.set(&format!("{name}.path"), path);
            address
        };
        let address = match host {
            "unix" => unix(folder.join(format!("{name}.sock")).display().to_string()),
            path if path.starts_with("unix:") => unix(path["unix:".len()..].to_owned()),
            v6 if v6.contains(':') => format!("[{v6}]:{port}"),
            v4 => format!("{v4}:{port}"),
        };
        self.set(name, address);
        self.set(&format!("{name}.port"), port);
        self.set(&format!("{name}.host"), host);
    }
}

/// Ports below the kernel's own range, each once.
#[derive(Debug)]
struct Ports {
    next: u64,
}

impl Ports {
    fn seeded(seed: &str) -> Self {
        // FNV-1a: the same scenario gets other ports than its neighbour, the same ones each time.
        let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { next: hash }
    }

    fn next(&mut self) -> u16 {
        self.next = self.next.wrapping_add(7);
        10_000 + u16::try_from(self.next % 20_000).unwrap_or(0)
    }
}

impl Stage {
    /// Sets the stage: everything runs and is healthy.
    pub fn set(run: &Run, scenario: &Scenario, program: &Path) -> Result<Self> {
        let lab = &scenario.lab;
        let needs_selinux = scenario.needs.contains(&super::Need::Selinux);
        let selinux = needs_selinux.then(Selinux::load).transpose()?;
        let folder = run.folder(&scenario.name)?;
        let near = Netns::new(run)?;
        let needs_far = lab.far || lab.backends.values().any(|backend| backend.at == Side::Far);
        let far = needs_far.then(|| Netns::new(run)).transpose()?;
        let mut router = None;
        match &far {
            Some(far) if scenario.placement.is_routed() => {
                let between = Netns::new(run)?;
                near.connect_over(&between, far)?;
                router = Some(between);
            }
            Some(far) => near.connect(far)?,
            None => {}
        }
        let is_translated = scenario.placement.is_translated();
        if is_translated {
            near.translate()?;
        }

        let mut ports = Ports::seeded(&scenario.name);
        let mut names = Names::default();
        names.set("dir", folder.display().to_string());
        names.set("near", NEAR);
        names.set("far", if router.is_some() { BEHIND_ROUTER } else { FAR });
        names.set("near6", NEAR6.to_string());
        names.set(
            "far6",
            if router.is_some() { BEHIND_ROUTER6 } else { FAR6 }.to_string(),
        );
        names.set("router", ROUTER.to_string());
        let nginx_port = ports.next();
        names.set("nginx.port", nginx_port.to_string());
        for (name, host) in &lab.names {
            let host = names.fill(host)?;
            names.place(name, &host, ports.next(), &folder);
        }
        let mut stranger_hosts = BTreeMap::new();
        for (number, name) in (2..).zip(lab.strangers.keys()) {
            let host = Ipv4Addr::new(10, 78, 0, number);
            stranger_hosts.insert(name.clone(), host);
            names.place(name, &host.to_string(), ports.next(), &folder);
        }
        for (name, backend) in &lab.backends {
            let host = names.fill(&backend.listen)?;
            names.place(name, &host, ports.next(), &folder);
        }
        // A backend that shares another's port comes after all have one.
        for (name, backend) in &lab.backends {
            if let Some(other) = &backend.port_of {
                let port = names.fill(&format!("{{{other}.port}}"))?.parse()?;
                let host = names.fill(&backend.listen)?;
                if host == "unix" {
                    let path = names.fill(&format!("{{{other}.path}}"))?;
                    names.set(name, format!("unix:{path}"));
                    names.set(&format!("{name}.path"), path);
                } else {
                    names.place(name, &host, port, &folder);
                }
            }
        }
        for (name, program) in &lab.programs {
            let host = names.fill(&program.listen)?;
            names.place(name, &host, ports.next(), &folder);
        }
        names.place(HEALTHY, &lab.nginx.healthy, ports.next(), &folder);

        let address = match lab.clients {
            Clients::Tcp => Address::Tcp(([127, 0, 0, 1], nginx_port).into()),
            Clients::Unix => Address::Unix(folder.join("nginx.sock")),
        };
        let mut specs = BTreeMap::new();
        // Where backends really listen, while nginx is told another address.
        let real = names.clone();
        if is_translated {
            for name in lab.names.keys().chain(lab.backends.keys()) {
                let host = names.fill(&format!("{{{name}.host}}"))?;
                let service = match host.parse() {
                    Ok(IpAddr::V4(_)) if host == FAR => SERVICE.to_owned(),
                    Ok(IpAddr::V6(host)) if host == FAR6 => SERVICE6.to_string(),
                    _ => continue,
                };
                let port = names.fill(&format!("{{{name}.port}}"))?.parse()?;
                names.place(name, &service, port, &folder);
            }
        }
        for (name, backend) in &lab.backends {
            let spec = Spec {
                name: name.clone(),
                listen: real.fill(&format!("{{{name}}}"))?,
                backlog: (!backend.only_bound && !backend.datagram).then_some(backend.backlog),
                v6only: backend.v6only,
                datagram: backend.datagram,
                preforks: backend.preforks,
                does: backend.does.clone(),
                reports: true,
            };
            specs.insert(name.clone(), (backend.at, spec));
        }
        let healthy = Spec {
            name: HEALTHY.to_owned(),
            listen: names.fill(&format!("{{{HEALTHY}}}"))?,
            backlog: Some(511),
            v6only: false,
            datagram: false,
            preforks: false,
            does: Behaviour::Answer(Answer {
                delay_ms: HEALTHY_DELAY_MS * u64::from(slowness()),
                ..Answer::default()
            }),
            reports: false,
        };
        specs.insert(HEALTHY.to_owned(), (Side::Near, healthy));

        let strangers = (!stranger_hosts.is_empty())
            .then(|| {
                let manners = stranger_hosts
                    .iter()
                    .map(|(name, host)| (*host, lab.strangers[name].clone()))
                    .collect();
                Strangers::start(&near, &manners)
            })
            .transpose()?;
        let mut backends = BTreeMap::new();
        for (name, (side, spec)) in &specs {
            if lab.backends.get(name).is_none_or(|backend| backend.start) {
                let namespace = pick(&near, far.as_ref(), *side)?;
                backends.insert(name.clone(), Backend::start(namespace, spec)?);
            }
        }
        let mut programs = BTreeMap::new();
        for (name, program) in &lab.programs {
            programs.insert(
                name.clone(),
                Program::start(&near, name, program, &names, &folder)?,
            );
        }
        for (name, program) in &programs {
            names.set(&format!("{name}.pid"), program.pid().to_string());
        }
        for (name, backend) in &backends {
            names.set(&format!("{name}.pid"), backend.pid().to_string());
        }
        let config = names.fill(&config(lab, &folder))?;
        let etc = (!lab.nginx.etc.is_empty())
            .then(|| write_etc(lab, &names, &folder))
            .transpose()?;
        let confinement = confinement(&lab.nginx, &names)?;
        let mounts = mounts(&lab.nginx, &names)?;
        let nginx = Nginx::start(
            &near,
            &Start {
                program,
                config: &config,
                folder: &folder,
                etc: etc.as_deref(),
                mounts: &mounts,
                workers: if lab.nginx.master { lab.nginx.workers } else { 0 },
                daemon: lab.nginx.daemon,
                contained: scenario.placement == Placement::Container,
                context: selinux.as_ref().map(|_| selinux::NGINX),
                confinement: confinement.as_ref(),
            },
        )?;
        names.set("nginx.pid", nginx.pid().to_string());
        Ok(Self {
            selinux,
            clients: HashMap::new(),
            held: Vec::new(),
            limits: Vec::new(),
            backends,
            programs,
            program_specs: lab.programs.clone(),
            specs,
            strangers,
            stranger_hosts,
            nginx,
            groups: Vec::new(),
            config,
            names,
            address,
            near,
            far,
            router,
            folder,
        })
    }

    /// The names as they stand now.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Healthy traffic, half of it over kept connections to the backend.
    pub fn load(&self, clients: usize, keeps: bool) -> Result<Load> {
        let (paths, keeps) = if keeps {
            (&["/healthy"][..], Keeps::All)
        } else {
            (&["/healthy", "/healthy-new"][..], Keeps::Half)
        };
        Load::start(&self.near, &self.address, paths, clients, keeps)
    }

    /// Does one step; waiting for failures is the caller's.
    pub fn take(&mut self, run: &Run, step: &Step) -> Result<()> {
        match step {
            Step::Request(request) => self.request(request),
            Step::Send(request) => {
                let name = request.client.clone().context("a `send` needs a client")?;
                let mut client = self.client(&name)?;
                client.send_head(&request.method, &request.path, request.body, true)?;
                client.send_body(request.body_at_first.unwrap_or(request.body));
                self.clients.insert(name, client);
                Ok(())
            }
            Step::SendBody(step) => {
                self.clients
                    .get_mut(&step.client)
                    .with_context(|| format!("no client {} has sent anything", step.client))?
                    .send_body(step.bytes);
                Ok(())
            }
            Step::Talk(talk) => {
                let address = self.names.fill(&format!("{{{}}}", talk.name))?;
                self.near.enter(|| talk_to(&address, &talk.says))?
            }
            Step::KillWorkerOf(client) => {
                let client = self
                    .clients
                    .get_mut(client)
                    .with_context(|| format!("no client {client}"))?;
                client.send("GET", "/worker", 0, true)?;
                let worker = client.receive()?.body;
                let pid = worker
                    .parse()
                    .with_context(|| format!("`{worker}` is no worker"))?;
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)
                    .with_context(|| format!("killing worker {pid}"))
            }
            Step::Receive(receive) => {
                let client = self
                    .clients
                    .get_mut(&receive.client)
                    .with_context(|| format!("no client {} has sent anything", receive.client))?;
                let response = client.receive()?;
                ensure!(
                    response.status == receive.status,
                    "client {} got {}, not {}",
                    receive.client,
                    response.status,
                    receive.status
                );
                Ok(())
            }
            Step::HangUp(client) => {
                self.clients
                    .remove(client)
                    .with_context(|| format!("no client {client} to hang up"))?;
                Ok(())
            }
            Step::Tell(tell) => {
                let taken = self.backend(&tell.backend)?.tell(&tell.order)?;
                if let Some(wanted) = tell.connections {
                    ensure!(
                        taken == wanted,
                        "{:?} took effect on {taken} connections, not {wanted}",
                        tell.order
                    );
                }
                Ok(())
            }
            Step::Hear(hear) => self.backend(&hear.backend)?.wait(&hear.says),
            Step::Signal(step) => {
                let signal: Signal = format!("SIG{}", step.signal)
                    .parse()
                    .with_context(|| format!("no signal {}", step.signal))?;
                if let Some(program) = self.programs.get_mut(&step.backend) {
                    return program.signal(signal, step.to_child);
                }
                self.backend(&step.backend)?.signal(signal)
            }
            Step::AwaitEnd(name) => match self.programs.get_mut(name) {
                Some(program) => program.wait_for_end(),
                None => self.backend(name)?.wait_for_end().map(drop),
            },
            Step::Start(name) => {
                if let Some(program) = self.program_specs.get(name) {
                    let program = Program::start(&self.near, name, program, &self.names, &self.folder)?;
                    self.names.set(&format!("{name}.pid"), program.pid().to_string());
                    self.programs.insert(name.clone(), program);
                    return Ok(());
                }
                let (side, spec) = self
                    .specs
                    .get(name)
                    .with_context(|| format!("no backend {name}"))?;
                let namespace = pick(&self.near, self.far.as_ref(), *side)?;
                let backend = Backend::start(namespace, spec)?;
                self.names.set(&format!("{name}.pid"), backend.pid().to_string());
                self.backends.insert(name.clone(), backend);
                Ok(())
            }
            Step::MemoryLimit(limit) => {
                let pid = self.backend(&limit.backend)?.pid();
                self.limits.push(MemoryLimit::new(run, pid, limit.mib << 20)?);
                Ok(())
            }
            Step::CgroupDeny(name) => {
                let port = self.names.fill(&format!("{{{name}.port}}"))?.parse()?;
                let mut pids = self.nginx.workers();
                pids.push(self.nginx.pid());
                self.groups.push(DenyingGroup::new(run, &pids, port)?);
                Ok(())
            }
            Step::Stranger(step) => {
                let host = *self
                    .stranger_hosts
                    .get(&step.host)
                    .with_context(|| format!("no stranger {}", step.host))?;
                let strangers = self.strangers.as_mut().context("no strangers")?;
                if let Some(manner) = &step.does {
                    strangers.change(host, manner.clone())?;
                }
                if step.forgets {
                    strangers.forget(host)?;
                }
                if step.closes_idle {
                    strangers.close_idle(host)?;
                }
                Ok(())
            }
            Step::Run(step) => {
                // In the stage's folder, where a scenario's own files are.
                let script = format!(
                    "cd '{}'\n{}",
                    self.folder.display(),
                    self.names.fill(&step.script)?
                );
                pick(&self.near, self.far.as_ref(), step.at)?.sh(&script)?;
                Ok(())
            }
            Step::Fill(fill) => {
                let address = self.names.fill(&format!("{{{}}}", fill.name))?;
                for _ in 0..fill.connections {
                    let held = self.near.enter(|| hold(&address))??;
                    self.held.push(held);
                }
                Ok(())
            }
            Step::Nginx(step) => match step {
                NginxStep::StopWorkers => self.nginx.signal_workers(Signal::SIGSTOP),
                NginxStep::StopWaitingWorkers => self.nginx.stop_waiting_workers(),
                NginxStep::ContinueWorkers => self.nginx.signal_workers(Signal::SIGCONT),
                NginxStep::KillWorkers => self.nginx.signal_workers(Signal::SIGKILL),
                NginxStep::Reload => self.nginx.reload(&self.config),
            },
            Step::PauseMs(ms) => {
                std::thread::sleep(std::time::Duration::from_millis(*ms));
                Ok(())
            }
            Step::AwaitFailures(_) => Ok(()),
        }
    }

    fn request(&mut self, request: &Request) -> Result<()> {
        let check = |response: &crate::lab::client::Response| -> Result<()> {
            if let Some(status) = request.status {
                ensure!(
                    response.status == status,
                    "{} {} was answered with {}, not {status}",
                    request.method,
                    request.path,
                    response.status
                );
            }
            ensure!(
                response.is_whole != request.cut,
                "{} {} was answered with {} and a body that was {}",
                request.method,
                request.path,
                response.status,
                if request.cut { "whole" } else { "cut short" }
            );
            Ok(())
        };
        if let Some(name) = &request.client {
            let mut client = self.client(name)?;
            for _ in 0..request.times {
                client.send(&request.method, &request.path, request.body, true)?;
                check(&client.receive()?)?;
            }
            self.clients.insert(name.clone(), client);
            return Ok(());
        }
        for _ in 0..request.times {
            let mut under_way = (0..request.together)
                .map(|_| {
                    let mut client = Client::connect(&self.near, &self.address)?;
                    client.send(&request.method, &request.path, request.body, false)?;
                    Ok(client)
                })
                .collect::<Result<Vec<_>>>()?;
            for client in &mut under_way {
                check(&client.receive()?)?;
            }
        }
        Ok(())
    }

    fn client(&mut self, name: &str) -> Result<Client> {
        match self.clients.remove(name) {
            Some(client) => Ok(client),
            None => Client::connect(&self.near, &self.address),
        }
    }

    fn backend(&mut self, name: &str) -> Result<&mut Backend> {
        self.backends
            .get_mut(name)
            .with_context(|| format!("no backend {name} runs"))
    }
}

fn pick<'a>(near: &'a Netns, far: Option<&'a Netns>, side: Side) -> Result<&'a Netns> {
    match side {
        Side::Near => Ok(near),
        Side::Far => far.context("the scenario has no far side: say `far = true`"),
    }
}

fn hold(address: &str) -> Result<Held> {
    match address.strip_prefix("unix:") {
        Some(path) => UnixStream::connect(path)
            .map(Held::Unix)
            .with_context(|| format!("connecting to {path}")),
        None => TcpStream::connect(address)
            .map(Held::Tcp)
            .with_context(|| format!("connecting to {address}")),
    }
}

/// Says something over a bare TCP connection and reads until the other end closes.
fn talk_to(address: &str, says: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};

    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
    stream.write_all(says.as_bytes()).context("talking")?;
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("waiting for the other end to close"),
    }
}

/// nginx's whole configuration; names are still to be filled in. A client may be idle for as long as an emulated machine
/// takes to load a tracer's programs.
fn config(lab: &super::Lab, folder: &Path) -> String {
    let nginx = &lab.nginx;
    let dir = folder.display();
    let mut text = String::new();
    let _ = write!(
        text,
        "user nobody {group};\n\
         worker_processes {workers};\n\
         master_process {master};\n\
         pid {dir}/nginx.pid;\n\
         error_log {dir}/error.log {level};\n\
         {main}\n\
         events {{ {events} }}\n\
         http {{\n\
         log_format lab '$msec $pid $connection $status $request_method $uri $upstream_addr $upstream_status $request_time';\n\
         access_log {dir}/access.log lab;\n\
         client_body_temp_path {dir}/tmp/body;\n\
         proxy_temp_path {dir}/tmp/proxy;\n\
         fastcgi_temp_path {dir}/tmp/fastcgi;\n\
         uwsgi_temp_path {dir}/tmp/uwsgi;\n\
         scgi_temp_path {dir}/tmp/scgi;\n\
         upstream {HEALTHY} {{ server {{{HEALTHY}}}; keepalive 64; }}\n\
         upstream {HEALTHY_NEW} {{ server {{{HEALTHY}}}; }}\n\
         {http}\n\
         keepalive_timeout 10m;\n\
         server {{\n\
         listen 127.0.0.1:{{nginx.port}} backlog=4096 {listen};\n\
         listen unix:{dir}/nginx.sock backlog=4096;\n\
         location = /healthy {{ proxy_pass http://{HEALTHY}; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n\
         location = /healthy-new {{ proxy_pass http://{HEALTHY_NEW}; }}\n\
         location = /worker {{ return 200 $pid; }}\n\
         {server}\n\
         }}\n\
         }}\n",
        group = nobodys_group(),
        workers = nginx.workers,
        master = if nginx.master { "on" } else { "off" },
        level = nginx.level,
        listen = nginx.listen,
        main = nginx.main,
        events = if nginx.events.contains("worker_connections") {
            nginx.events.clone()
        } else {
            format!("worker_connections 2048; {}", nginx.events)
        },
        http = nginx.http,
        server = nginx.server,
    );
    if !nginx.stream.is_empty() {
        let _ = writeln!(text, "stream {{\n{}\n}}", nginx.stream);
        text.insert_str(0, "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n");
    }
    text
}

/// Writes nginx's own files of /etc; where names are looked up does not depend on this machine.
fn write_etc(lab: &super::Lab, names: &Names, folder: &Path) -> Result<PathBuf> {
    let etc = folder.join("etc");
    std::fs::create_dir_all(&etc).context("making nginx's own etc")?;
    std::fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").context("writing nsswitch.conf")?;
    for (name, text) in &lab.nginx.etc {
        std::fs::write(etc.join(name), names.fill(text)?).with_context(|| format!("writing etc/{name}"))?;
    }
    Ok(etc)
}

/// Nobody's group is called differently on different systems.
fn nobodys_group() -> String {
    use nix::unistd::{Group, User};

    User::from_name("nobody")
        .ok()
        .flatten()
        .and_then(|nobody| Group::from_gid(nobody.gid).ok().flatten())
        .map_or_else(|| "nogroup".to_owned(), |group| group.name)
}

/// The files that nginx alone sees, by the places, which are made.
fn mounts(nginx: &super::Nginx, names: &Names) -> Result<Vec<(PathBuf, PathBuf)>> {
    let filled = nginx.mounts.iter().map(|(place, from)| {
        let place = PathBuf::from(names.fill(place)?);
        if !place.exists() {
            std::fs::write(&place, "").with_context(|| format!("making {}", place.display()))?;
        }
        Ok((place, PathBuf::from(names.fill(from)?)))
    });
    filled.collect()
}

/// What nginx is confined by.
fn confinement(nginx: &super::Nginx, names: &Names) -> Result<Option<Confinement>> {
    if nginx.seccomp {
        return Ok(Some(Confinement::Seccomp));
    }
    let port = |name: &String| -> Result<u16> { Ok(names.fill(&format!("{{{name}.port}}"))?.parse()?) };
    let ports: Vec<u16> = nginx.landlock.iter().map(port).collect::<Result<_>>()?;
    Ok((!ports.is_empty()).then_some(Confinement::Landlock(ports)))
}

/// What the machine lacks for a scenario.
pub(super) fn missing(need: super::Need) -> Result<(), &'static str> {
    use super::Need;

    let there = |is_there: bool, lacks: &'static str| if is_there { Ok(()) } else { Err(lacks) };
    match need {
        Need::MemoryLimit => there(
            crate::lab::memory::is_available(),
            "no memory control groups on this host",
        ),
        Need::Tun => there(Path::new("/dev/net/tun").exists(), "no /dev/net/tun on this host"),
        Need::Ipv6 => there(Path::new("/proc/net/if_inet6").exists(), "no IPv6 on this host"),
        Need::Stream => there(
            Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists(),
            "no stream module for nginx",
        ),
        Need::Node => there(crate::find_program("node").is_some(), "no Node.js"),
        Need::Gunicorn => there(crate::find_program("gunicorn").is_some(), "no gunicorn"),
        Need::Uvicorn => there(crate::find_program("uvicorn").is_some(), "no uvicorn"),
        Need::Openssl => there(crate::find_program("openssl").is_some(), "no openssl"),
        Need::Uwsgi => there(
            crate::find_program("uwsgi").is_some()
                && Path::new("/usr/lib/uwsgi/plugins/python3_plugin.so").exists(),
            "no uWSGI with its plugin for Python",
        ),
        Need::Haproxy => there(crate::find_program("haproxy").is_some(), "no HAProxy"),
        Need::PhpFpm => there(crate::find_program("php-fpm").is_some(), "no PHP-FPM"),
        Need::Selinux => selinux::available(),
        Need::Cgroup => there(
            confine::has_cgroups(),
            "no control groups of version 2 are mounted",
        ),
        Need::Landlock => there(
            confine::has_landlock(),
            "no Landlock that knows connects (Linux 6.7) on this kernel",
        ),
        Need::Ipsec => there(
            Path::new("/proc/net/xfrm_stat").exists(),
            "no IPsec on this kernel, or none that counts",
        ),
        Need::SocketKill => there(
            kernel_config("CONFIG_INET_DIAG_DESTROY=y"),
            "this kernel cannot destroy sockets on request (CONFIG_INET_DIAG_DESTROY)",
        ),
    }
}

/// Whether the running kernel says it was built so; no answer counts as yes.
fn kernel_config(line: &str) -> bool {
    let output = std::process::Command::new("zcat").arg("/proc/config.gz").output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|found| found == line),
        _ => true,
    }
}

/// Refuses a scenario that contradicts itself.
pub(super) fn check(scenario: &Scenario) -> Result<()> {
    if scenario.lab.load > 0 && scenario.lab.load < 50 {
        bail!(
            "{}: a load below 50 proves nothing; use 0 only where nginx itself is the fault",
            scenario.name
        );
    }
    ensure!(
        scenario.placement.is_of(&scenario.lab),
        "{}: its peers are not where `placements` says first",
        scenario.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_and_braces_of_nginx_stay() {
        let mut names = Names::default();
        names.set("app", "127.0.0.1:3000");
        let filled = names.fill("upstream a {server {app};} location ~ ^/x{2} { return 200; }");
        assert_eq!(
            filled.unwrap(),
            "upstream a {server 127.0.0.1:3000;} location ~ ^/x{2} { return 200; }"
        );
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert!(Names::default().fill("server {nobody};").is_err());
    }
}
