//! Faults under load: each is switched on and off, cycle after cycle, while healthy traffic runs at the highest rate the
//! machine gives and others on the host connect, listen, are refused, dropped and killed. Every line of nginx's log is
//! one attempt, every failure has its fault's name, and nothing healthy has any.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use xtask::{
    lab::{Run, client::Address, netns::Netns, wait_for},
    scenario::{Step, error_log, judge, stage::Stage},
    traced::{Tracer, not_ok, of_type},
};

use crate::ground::{Ground, live, no_problems, scenario, tracer};

/// How often each fault is switched on and off.
const CYCLES: usize = 4;
/// When wrk ends by itself, whatever became of the test.
const LONGEST: Duration = Duration::from_secs(300);
/// How long anything may take to show.
const PATIENCE: Duration = Duration::from_secs(30);
/// What takes longer is said, beside whatever fails then.
const SLOW: Duration = Duration::from_secs(4);
/// Connections that are busy at every moment, for each of the two kinds of healthy traffic.
const CLIENTS: u32 = 16;

/// A fault: what is switched on and off, as steps of a scenario, and what every failure of its upstream must be called.
struct Fault {
    upstream: &'static str,
    causes: &'static [&'static str],
    /// Failed attempts in each cycle; `None`: as many as the traffic meets.
    failures: Option<usize>,
    steps: &'static str,
}

const FAULTS: &[Fault] = &[
    Fault {
        upstream: "died",
        causes: &["listener-died"],
        failures: Some(3),
        steps: r#"
            { signal = { backend = "died", signal = "KILL" } },
            { request = { path = "/died", times = 3, status = 502 } },
            { start = "died" },
            { request = { path = "/died", status = 200 } },
        "#,
    },
    Fault {
        upstream: "restarting",
        causes: &["listener-restarting"],
        failures: Some(3),
        steps: r#"
            { tell = { backend = "restarting", order = "close-listener" } },
            { request = { path = "/restarting", times = 3, status = 502 } },
            { tell = { backend = "restarting", order = "reopen" } },
            { request = { path = "/restarting", status = 200 } },
        "#,
    },
    Fault {
        upstream: "gone",
        causes: &["no-listener"],
        failures: Some(3),
        steps: r#"{ request = { path = "/gone", times = 3, status = 502 } },"#,
    },
    Fault {
        upstream: "reset",
        causes: &["firewall-reset"],
        failures: Some(3),
        steps: r#"
            { run = { script = "nft 'add chain inet noise out { type filter hook output priority 1; }; add rule inet noise out tcp dport {reset.port} reject with tcp reset'" } },
            { request = { path = "/reset", times = 3, status = 502 } },
            { run = { script = "nft delete chain inet noise out" } },
            { request = { path = "/reset", status = 200 } },
        "#,
    },
    Fault {
        upstream: "dropped",
        causes: &["packet-dropped-locally"],
        failures: Some(2),
        steps: r#"
            { run = { script = "nft 'add chain inet noise out { type filter hook output priority 1; }; add rule inet noise out tcp dport {dropped.port} drop'" } },
            { request = { path = "/dropped", together = 2, status = 504 } },
            { run = { script = "nft delete chain inet noise out" } },
            { request = { path = "/dropped", status = 200 } },
        "#,
    },
    Fault {
        upstream: "full",
        causes: &["accept-queue-full"],
        failures: Some(2),
        steps: r#"
            { signal = { backend = "full", signal = "KILL" } },
            { start = "stuck" },
            { fill = { name = "stuck", connections = 2 } },
            { request = { path = "/full", together = 2, status = 504 } },
            { signal = { backend = "stuck", signal = "KILL" } },
            { start = "full" },
            { request = { path = "/full", status = 200 } },
        "#,
    },
    Fault {
        upstream: "slow",
        causes: &["backend-slow"],
        failures: Some(2),
        steps: r#"
            { tell = { backend = "slow", order = { become = "silent" } } },
            { request = { path = "/slow", together = 2, status = 504 } },
            { tell = { backend = "slow", order = { become = { answer = {} } } } },
            { request = { path = "/slow", status = 200 } },
        "#,
    },
    Fault {
        upstream: "killed",
        causes: &["backend-died"],
        failures: Some(1),
        steps: r#"
            { tell = { backend = "killed", order = { become = "silent" } } },
            { send = { path = "/killed", client = "killed" } },
            { hear = { backend = "killed", says = "request" } },
            { signal = { backend = "killed", signal = "KILL" } },
            { receive = { client = "killed", status = 502 } },
            { hang-up = "killed" },
            { start = "killed" },
            { request = { path = "/killed", status = 200 } },
        "#,
    },
    Fault {
        upstream: "half",
        causes: &["closed-mid-response"],
        failures: Some(2),
        steps: r#"
            { tell = { backend = "half", order = { become = { half-header = "close" } } } },
            { request = { path = "/half", times = 2, status = 502 } },
            { tell = { backend = "half", order = { become = { answer = {} } } } },
            { request = { path = "/half", status = 200 } },
        "#,
    },
    Fault {
        upstream: "race",
        causes: &["keepalive-race"],
        failures: Some(1),
        steps: r#"
            { request = { path = "/race", client = "race", status = 200 } },
            { nginx = "stop-workers" },
            { send = { path = "/race", method = "POST", client = "race" } },
            { tell = { backend = "race", order = "close-idle" } },
            { nginx = "continue-workers" },
            { receive = { client = "race", status = 502 } },
            { hang-up = "race" },
            { request = { path = "/race", status = 200 } },
        "#,
    },
    Fault {
        upstream: "file",
        causes: &["unix-missing"],
        failures: Some(2),
        steps: r#"
            { run = { script = "rm {file.path}" } },
            { request = { path = "/file", times = 2, status = 502 } },
            { signal = { backend = "file", signal = "KILL" } },
            { start = "file" },
            { request = { path = "/file", status = 200 } },
        "#,
    },
    Fault {
        upstream: "route",
        causes: &["route-missing"],
        failures: Some(2),
        steps: r#"
            { run = { script = "ip route del 10.77.0.0/24" } },
            { request = { path = "/route", times = 2, status = 502 } },
            { run = { script = "ip route add 10.77.0.0/24 dev up0 src {near}" } },
            { request = { path = "/route", status = 200 } },
        "#,
    },
];

/// The upstream whose backend is killed and started again under traffic of its own, at full speed as well.
const BUSY: Fault = Fault {
    upstream: "busy",
    causes: &["listener-died", "backend-died"],
    failures: None,
    steps: r#"
        { signal = { backend = "busy", signal = "KILL" } },
        { start = "busy" },
        { request = { path = "/busy", status = 200 } },
    "#,
};

/// Upstreams that nothing happens to.
const HEALTHY: [&str; 2] = ["quick", "quick-new"];

/// The test.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    vec![live(ground, "under_load/every_fault_keeps_its_name", every_fault)]
}

/// nginx with an upstream for each fault, and itself as the backend of the healthy traffic: nothing answers faster.
fn stage_file() -> String {
    let mut upstreams = String::new();
    let mut locations = String::new();
    for fault in FAULTS.iter().chain([&BUSY]) {
        let name = fault.upstream;
        let keeps = if name == "race" { "keepalive 8;" } else { "" };
        upstreams += &format!("upstream {name} {{ server {{{name}}}; {keeps} }}\n");
        locations += &format!("location /{name} {{ proxy_pass http://{name}; access_log off; }}\n");
    }
    let quick: Vec<String> = (1..=4).map(|number| format!("quick{number}")).collect();
    let listen: String = quick
        .iter()
        .map(|name| format!("listen 127.0.0.1:{{{name}.port}} backlog=4096;"))
        .collect();
    let servers: String = quick.iter().map(|name| format!("server {{{name}}};")).collect();
    let names: String = quick
        .iter()
        .chain([&"gone".to_owned()])
        .map(|name| format!("names.{name} = \"127.0.0.1\"\n"))
        .collect();
    let backends: String = FAULTS
        .iter()
        .chain([&BUSY])
        .filter(|fault| fault.upstream != "gone")
        .map(|fault| {
            let how = match fault.upstream {
                "file" => "listen = \"unix\"",
                "route" => "listen = \"{far}\", at = \"far\"",
                _ => "",
            };
            format!("backends.{} = {{ {how} }}\n", fault.upstream)
        })
        .collect();
    format!(
        r#"
about = "every fault switched on and off under load"
[lab]
far = true
{names}
{backends}
backends.stuck = {{ port_of = "full", backlog = 1, does = "never-accept", start = false }}
before = [
    {{ run = {{ script = "sysctl -qw net.ipv4.tcp_tw_reuse=1; nft 'add table inet noise; add chain inet noise other {{ type filter hook output priority 0; }}; add rule inet noise other tcp dport 7 drop; add rule inet noise other tcp dport 9 reject with tcp reset; add rule inet noise other tcp dport 11 reject'" }} }},
]
steps = []
[lab.nginx]
http = """
keepalive_requests 100000000;
proxy_connect_timeout 2s; proxy_read_timeout 1s; proxy_http_version 1.1; proxy_set_header Connection '';
upstream quick {{ {servers} keepalive 64; keepalive_requests 100000000; }}
upstream quick-new {{ {servers} }}
server {{ {listen} access_log off; return 200 quick; }}
{upstreams}"""
server = """
location = /quick {{ proxy_pass http://quick; access_log off; }}
location = /quick-new {{ proxy_pass http://quick-new; proxy_http_version 1.0; access_log off; }}
{locations}"""
"#
    )
}

/// The steps of a fault.
fn steps(fault: &Fault) -> Result<Vec<Step>> {
    let text = format!(
        "about = \"\"\n[lab]\nnginx = {{}}\nsteps = [\n{}\n]",
        fault.steps.trim()
    );
    Ok(scenario(fault.upstream, &text)?.lab.steps)
}

fn every_fault(run: &Run, nginx: &Path) -> Result<()> {
    let wrk = xtask::find_program("wrk").context("no wrk here: run `cargo xtask setup`")?;
    let scenario = scenario("under-load", &stage_file())?;
    let mut stage = Stage::set(run, &scenario, nginx)?;
    for step in &scenario.lab.before {
        stage
            .take(run, step)
            .with_context(|| format!("before: {step:?}"))?;
    }
    let elsewhere = Netns::new(run)?;
    let noise = Noise::begin(&stage, &elsewhere)?;
    let kept_traffic = Traffic::start(&wrk, &stage, "/quick", CLIENTS)?;
    let new_traffic = Traffic::start(&wrk, &stage, "/quick-new", CLIENTS)?;
    let arguments = ["--keep", "failures"].map(str::to_owned);
    let pid = stage.nginx.pid().to_string();
    let begun = Instant::now();
    let tracer = Tracer::attach_unrecorded(run, &tracer(), &pid, &arguments, &stage.folder)?;
    println!("{:.1} s until it was attached", begun.elapsed().as_secs_f64());
    cycles(run, &mut stage, &wrk)?;
    let disturbed = noise.end()?;
    let rates = [kept_traffic.stop()?, new_traffic.stop()?];
    let log = stage.nginx.error_log();
    let wanted = error_log::attempts(&log).len();
    wait_for(format!("{wanted} failed attempts"), PATIENCE, || {
        match tracer.records().map_or(0, |records| not_ok(&records).count()) {
            seen if seen >= wanted => Ok(()),
            seen => Err(format!("{seen}; the tracer said `{}`", tracer.said().trim())),
        }
    })?;
    let records = tracer.stop()?;
    let mut problems = Vec::new();
    let lost: Vec<String> = of_type(&records, "lost").map(ToString::to_string).collect();
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for attempt in of_type(&records, "attempt") {
        let cause = attempt["cause"]["id"].as_str();
        if attempt["outcome"] == "ok" {
            if cause.is_some() {
                problems.push(format!("an answered attempt has a cause: {attempt}"));
            }
            continue;
        }
        let upstream = attempt["upstream"].as_str().unwrap_or_default();
        let cause = cause.unwrap_or_default();
        let fault = FAULTS
            .iter()
            .chain([&BUSY])
            .find(|fault| fault.upstream == upstream);
        // wrk hangs up on what is under way when it ends.
        let may_be_left = HEALTHY.contains(&upstream) || upstream == BUSY.upstream;
        let is_left = may_be_left && attempt["outcome"] == "cancelled" && cause == "client-closed";
        let is_right = is_left || fault.is_some_and(|fault| fault.causes.contains(&cause));
        // What was lost may be why nothing is named; it is never why something else is.
        let is_excused = fault.is_some() && cause == "unknown" && !lost.is_empty();
        if !is_right && !is_excused {
            problems.push(format!("{upstream} is called {cause}: {attempt}"));
        }
        *counts.entry((upstream.to_owned(), cause.to_owned())).or_default() += 1;
    }
    for fault in FAULTS {
        let seen: usize = counts
            .iter()
            .filter(|((upstream, _), _)| upstream == fault.upstream)
            .map(|(_, n)| n)
            .sum();
        let wanted = fault.failures.map(|failures| failures * CYCLES);
        if wanted.is_some_and(|wanted| wanted != seen) {
            problems.push(format!("{seen} failures of {}, not {wanted:?}", fault.upstream));
        }
    }
    problems.extend(judge::lines(&judge::Seen {
        records: &records,
        error_log: &log,
        healthy: 0,
        clients: 0,
        inner_pids: &BTreeMap::new(),
    }));
    let unknown: usize = counts
        .iter()
        .filter(|((_, cause), _)| cause == "unknown")
        .map(|(_, n)| n)
        .sum();
    let failures: usize = counts.values().sum();
    println!(
        "{CYCLES} cycles of {} faults beside {rates:?}, noise {disturbed}: {} named right, {unknown} unknown, lost {lost:?}\n{counts:?}",
        FAULTS.len() + 1,
        failures - unknown,
    );
    no_problems("under-load", &stage, &problems)
}

/// Every fault on and off, as often as it has to be.
fn cycles(run: &Run, stage: &mut Stage, wrk: &Path) -> Result<()> {
    for cycle in 0..CYCLES {
        for fault in FAULTS {
            take(run, stage, fault).with_context(|| format!("cycle {cycle}, {}", fault.upstream))?;
        }
        let busy = Traffic::start(wrk, stage, "/busy", CLIENTS)?;
        take(run, stage, &BUSY).with_context(|| format!("cycle {cycle}, {}", BUSY.upstream))?;
        drop(busy);
    }
    Ok(())
}

fn take(run: &Run, stage: &mut Stage, fault: &Fault) -> Result<()> {
    for step in &steps(fault)? {
        let begun = Instant::now();
        stage
            .take(run, step)
            .with_context(|| format!("while doing {step:?}"))?;
        if begun.elapsed() > SLOW {
            println!("{:.1} s for {step:?}", begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// wrk at work; ended when dropped.
struct Traffic {
    child: Child,
}

impl Traffic {
    fn start(wrk: &Path, stage: &Stage, path: &str, clients: u32) -> Result<Self> {
        let Address::Tcp(address) = &stage.address else {
            anyhow::bail!("wrk speaks TCP");
        };
        let child = stage.near.spawn(
            Command::new(wrk)
                .arg("--threads=1")
                .arg(format!("--connections={clients}"))
                .arg(format!("--duration={}s", LONGEST.as_secs()))
                .arg("--timeout=60s")
                .arg(format!("http://{address}{path}"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        )?;
        let threads = format!("/proc/{}/task", child.id());
        let traffic = Self { child };
        wait_for("wrk's thread", PATIENCE, || {
            match std::fs::read_dir(&threads).map_or(0, Iterator::count) {
                0 | 1 => Err("it has not begun".to_owned()),
                _ => Ok(()),
            }
        })?;
        Ok(traffic)
    }

    /// Ends it; every answer must have been a 200. Yields its rate.
    fn stop(mut self) -> Result<String> {
        let ended = self.child.try_wait().context("looking at wrk")?;
        ensure!(ended.is_none(), "wrk ended before the test did: {ended:?}");
        // By now it listens to the signal: one that came while it starts would be lost on it.
        kill(
            nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGINT,
        )
        .context("ending wrk")?;
        let mut said = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            output
                .read_to_string(&mut said)
                .context("reading what wrk says")?;
        }
        let trouble = said
            .lines()
            .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
        ensure!(trouble.is_none(), "healthy traffic failed: {said}");
        let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
        Ok(rate.context("wrk says no rate")?.trim().to_owned())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makers make at most one in so long: they are to be heard, not to take the processors.
const PACE: Duration = Duration::from_micros(500);
/// How long a connect waits that a rule drops.
const SHORT: Duration = Duration::from_millis(20);

/// What else goes on on the host: each maker does one thing again and again.
struct Noise {
    is_over: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    makers: Vec<JoinHandle<()>>,
}

impl Noise {
    /// Starts all makers; `elsewhere` is another namespace, with the same ports.
    fn begin(stage: &Stage, elsewhere: &Netns) -> Result<Self> {
        let port = |fault: &Fault| -> Result<u16> {
            let text = stage.names().fill(&format!("{{{}.port}}", fault.upstream))?;
            text.parse().context("a port")
        };
        let ports: Vec<u16> = FAULTS.iter().map(port).collect::<Result<_>>()?;
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut noise = Self {
            is_over: Arc::default(),
            made: Arc::default(),
            makers: Vec::new(),
        };
        let near = &stage.near;
        // Nobody listens there.
        noise.keep(near, move |turn| refused(at(1 + turn % 6)))?;
        // A listener comes, is used, and goes.
        noise.keep(near, move |_| used(at(0)))?;
        // Rules drop, reset and reject.
        noise.keep(near, move |turn| refused(at([7, 9, 11][usize::from(turn % 3)])))?;
        // The same ports, where they are others': closed, open, closed.
        noise.keep(elsewhere, move |turn| {
            let port = ports[usize::from(turn) % ports.len()];
            refused(at(port));
            used(at(port));
        })?;
        // Processes come and are killed.
        noise.keep(near, |_| ended())?;
        Ok(noise)
    }

    fn keep(&mut self, namespace: &Netns, make: impl Fn(u16) + Send + 'static) -> Result<()> {
        let (is_over, made) = (Arc::clone(&self.is_over), Arc::clone(&self.made));
        // A thread is born into the namespace of the one that starts it.
        let maker = namespace.enter(|| {
            std::thread::spawn(move || {
                let mut turn = 0_u16;
                while !is_over.load(Ordering::Relaxed) {
                    make(turn);
                    turn = turn.wrapping_add(1);
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PACE);
                }
            })
        })?;
        self.makers.push(maker);
        Ok(())
    }

    /// Ends all makers; yields how often something was made.
    fn end(mut self) -> Result<u64> {
        self.is_over.store(true, Ordering::Relaxed);
        for maker in self.makers.drain(..) {
            let ended = maker.join();
            ensure!(ended.is_ok(), "a maker of noise panicked");
        }
        Ok(self.made.load(Ordering::Relaxed))
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// A connect that is not expected to succeed.
fn refused(address: SocketAddr) {
    let _ = TcpStream::connect_timeout(&address, SHORT);
}

/// A listener that takes one connection.
fn used(address: SocketAddr) {
    if let Ok(listener) = TcpListener::bind(address)
        && let Ok(address) = listener.local_addr()
    {
        let connection = TcpStream::connect_timeout(&address, SHORT);
        let accepted = connection.is_ok().then(|| listener.accept());
        drop((accepted, connection));
    }
}

/// A process that is killed as soon as it runs.
fn ended() {
    let child = Command::new("sh")
        .args(["-c", "kill -9 $$"])
        .stdin(Stdio::null())
        .spawn();
    if let Ok(mut child) = child {
        let _ = child.wait();
    }
}
