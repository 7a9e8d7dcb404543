//! The referee: 5,000 requests over thirty causes at one nginx of four workers, with retries, kept connections and a
//! `stream` proxy, 32 at a time. Three times: with the kernel's half alone, with nginx's own voice, with everything.
//!
//! No name is wrong in any of them. With everything each line of nginx's log is one attempt, each chain of attempts is what
//! `$upstream_addr` and `$upstream_status` say in the access log, and the totals agree. `tracer annotate` then finds the chain
//! of each line of that log, and of logs that tell less none but true ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use xtask::{
    demonstration::race,
    lab::{
        Run,
        client::{Address, Client},
        netns::Netns,
        wait_for,
    },
    scenario::{error_log, judge, stage::Stage},
    traced::{Tracer, annotate, of_type},
};

use crate::ground::{Dice, Ground, live, no_problems, scenario, tracer};

const STAGE: &str = include_str!("thirty_causes.toml");
/// Requests in each run.
const REQUESTS: usize = 5_000;
/// Of them at the same time.
const TOGETHER: usize = 32;
/// Races made for sure behind them.
const RACES: usize = 10;
/// How long the last verdicts may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each path's first part, which is the upstream's name: how often it is asked for among others, and the causes that are
/// true of it. A name of them all must be given where everything can be seen.
const PATHS: &[(&str, usize, &[&str])] = &[
    ("healthy-kept", 12, &[]),
    ("healthy-retried", 12, &["no-listener"]),
    ("answered-with-error", 6, &[]),
    ("no-listener", 6, &["no-listener"]),
    ("listener-elsewhere", 6, &["listener-elsewhere"]),
    ("listener-died", 6, &["listener-died"]),
    ("listener-restarting", 6, &["listener-restarting"]),
    ("firewall-reset", 6, &["firewall-reset"]),
    ("firewall-port-unreachable", 6, &["firewall-port-unreachable"]),
    ("route-missing", 6, &["route-missing"]),
    ("route-forbids", 6, &["route-forbids"]),
    ("neighbour-silent", 1, &["neighbour-silent"]),
    ("packet-dropped-locally", 3, &["packet-dropped-locally"]),
    ("accept-queue-full", 2, &["accept-queue-full"]),
    ("never-accepted", 3, &["never-accepted"]),
    ("backend-slow", 3, &["backend-slow"]),
    ("response-stalled", 3, &["response-stalled"]),
    ("closed-unread", 6, &["closed-unread"]),
    ("closed-abortively", 6, &["closed-abortively"]),
    ("closed-on-accept", 6, &["closed-on-accept"]),
    ("closed-without-response", 6, &["closed-without-response"]),
    ("closed-mid-response", 6, &["closed-mid-response"]),
    ("backend-died", 4, &["backend-died"]),
    ("unix-missing", 6, &["unix-missing"]),
    ("unix-permission", 6, &["unix-permission"]),
    ("unix-stale-socket", 6, &["unix-stale-socket"]),
    ("unix-not-listening", 6, &["unix-not-listening"]),
    ("unix-wrong-type", 6, &["unix-wrong-type"]),
    ("unix-backlog-full", 6, &["unix-backlog-full"]),
    ("header-too-big", 6, &["header-too-big"]),
    ("header-invalid", 6, &["header-invalid"]),
    ("source-address-missing", 6, &["source-address-missing"]),
    ("no-live-upstreams", 6, &["no-live-upstreams", "no-listener"]),
    ("client-closed", 3, &["client-closed"]),
    ("resolver-undefined", 6, &["resolver-undefined"]),
];

/// Names of what is no path: the races, and the `stream` proxy's sessions.
const OTHERS: &[(&str, &[&str])] = &[
    ("login", &["keepalive-race"]),
    ("stream-no-listener", &["no-listener"]),
    ("stream-sound", &[]),
];

/// Paths whose failures leave no socket event that shows them where nginx's own lines are not heard: messages alone, what
/// connect(), bind() and socket() refuse at once, and answers whose end only nginx can judge.
const WITHOUT_EVENT: &[&str] = &[
    "no-live-upstreams",
    "resolver-undefined",
    "header-too-big",
    "header-invalid",
    "response-stalled",
    "closed-mid-response",
    "source-address-missing",
    "route-missing",
    "route-forbids",
    "unix-missing",
    "unix-permission",
    "unix-stale-socket",
    "unix-not-listening",
    "unix-wrong-type",
    "unix-backlog-full",
];

/// What is known to a run beside the kernel's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    /// Nothing.
    Kernel,
    /// nginx's log function.
    Voice,
    /// That and the file.
    Everything,
}

/// The referee's three runs.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    [
        ("kernel_alone", Hearing::Kernel),
        ("with_nginx_heard", Hearing::Voice),
        ("with_everything", Hearing::Everything),
    ]
    .map(|(name, hearing)| {
        live(ground, &format!("thirty_causes/{name}"), move |run, nginx| {
            mix(run, nginx, name, hearing)
        })
    })
    .into()
}

fn mix(run: &Run, nginx: &Path, name: &str, hearing: Hearing) -> Result<()> {
    let name = format!("thirty-causes-{}", name.replace('_', "-"));
    let text = STAGE.replace("@BIG@", &"a".repeat(1200));
    let scenario = scenario(&name, &text)?;
    let mut stage = Stage::set(run, &scenario, nginx)?;
    for step in &scenario.lab.before {
        stage.take(run, step)?;
    }
    let pid = stage.nginx.pid().to_string();
    let arguments: &[&str] = match hearing {
        Hearing::Kernel => &["--error-log", "off", "--without", "nginx-log"],
        Hearing::Voice => &["--error-log", "off"],
        Hearing::Everything => &[],
    };
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let tracer = Tracer::attach(run, &tracer(), &pid, &arguments, &stage.folder)?;
    for step in &scenario.lab.steps {
        stage.take(run, step)?;
    }
    let mut problems = requests(&stage)?;
    for number in 0..RACES {
        race(run, &mut stage, &format!("racer-{number}"))?;
    }
    let log = stage.nginx.error_log();
    let n_lines = error_log::attempts(&log).len();
    if hearing != Hearing::Kernel {
        wait_for(format!("{n_lines} failed attempts"), PATIENCE, || {
            match tracer.n_not_ok(None).unwrap_or(0) {
                seen if seen >= n_lines => Ok(()),
                seen => Err(format!("{seen}")),
            }
        })?;
    }
    // All exchanges end with it, those on kept connections too.
    stage.nginx.stop()?;
    let records = tracer.stop()?;
    let access = fs::read_to_string(stage.folder.join("access.log"))?;
    let requests = requested(&access)?;
    problems.extend(judge::frame(&records));
    problems.extend(names(&records, hearing));
    problems.extend(totals(&records, &requests, hearing));
    problems.extend(clients(&records, &requests));
    if hearing == Hearing::Everything {
        let seen = judge::Seen {
            records: &records,
            error_log: &log,
            healthy: 0,
            clients: 0,
            inner_pids: &BTreeMap::new(),
        };
        problems.extend(judge::lines(&seen));
        problems.extend(chains(&records, &requests));
        problems.extend(annotated(&stage.folder, &requests)?);
    }
    println!("{name}: {} requests, {n_lines} lines", requests.len());
    no_problems(&name, &stage, &problems)
}

/// A line of the access log.
struct Requested {
    method: String,
    path: String,
    /// `$status`.
    status: String,
    /// `$msec`.
    ended: String,
    /// `$request_time`.
    took: String,
    /// `$upstream_addr` and `$upstream_status`, try by try.
    tries: Vec<(String, String)>,
}

impl Requested {
    /// The first part of its path.
    fn cause(&self) -> &str {
        self.path
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default()
    }
}

/// The requests that went to upstreams, by the access log.
fn requested(log: &str) -> Result<Vec<Requested>> {
    let mut requests = Vec::new();
    for line in log.lines() {
        let fields = line.splitn(7, ' ').collect::<Vec<_>>();
        let [ended, _, _, status, method, path, rest] = fields.as_slice() else {
            bail!("a line of the access log: {line}");
        };
        let Some((upstream, took)) = rest.rsplit_once(' ') else {
            bail!("a line of the access log: {line}");
        };
        // `ADDRESS, ADDRESS STATUS, STATUS`: as many of each.
        let words: Vec<&str> = upstream.split(", ").flat_map(|word| word.split(' ')).collect();
        ensure!(words.len().is_multiple_of(2), "a line of the access log: {line}");
        let (peers, statuses) = words.split_at(words.len() / 2);
        requests.push(Requested {
            method: (*method).to_owned(),
            path: (*path).to_owned(),
            status: (*status).to_owned(),
            ended: (*ended).to_owned(),
            took: took.to_owned(),
            tries: peers
                .iter()
                .zip(statuses)
                .map(|(peer, status)| ((*peer).to_owned(), (*status).to_owned()))
                .collect(),
        });
    }
    Ok(requests)
}

/// The causes that are true of an upstream.
fn true_of(upstream: &str) -> Option<&'static [&'static str]> {
    let paths = PATHS.iter().map(|(name, _, causes)| (name, causes));
    let mut all = paths.chain(OTHERS.iter().map(|(name, causes)| (name, causes)));
    all.find(|(name, _)| **name == upstream)
        .map(|(_, causes)| *causes)
}

/// Failed attempts with a name that is not true of their upstream, or without one where all is heard.
fn names(records: &[Value], hearing: Hearing) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for attempt in of_type(records, "attempt").filter(|attempt| attempt["outcome"] != "ok") {
        // A name that could not be looked up is no upstream of the configuration's.
        let upstream = match attempt["upstream"].as_str() {
            Some("undefined.lab") => "resolver-undefined",
            // The same address, without a line that names the upstream.
            Some(upstream) => upstream,
            None => attempt["upstreams"][0].as_str().unwrap_or("?"),
        };
        let cause = attempt["cause"]["id"].as_str().unwrap_or("?");
        let confidence = attempt["cause"]["confidence"].as_str().unwrap_or("?");
        *seen.entry((upstream, cause, confidence)).or_default() += 1;
        // Which upstream these lines are about, only their text in the file says.
        let is_nameless = upstream == "?" && hearing == Hearing::Voice && WITHOUT_EVENT.contains(&cause);
        let is_true = is_nameless || true_of(upstream).is_some_and(|causes| causes.contains(&cause));
        let is_honest = cause == "unknown"
            && attempt["unseen"]
                .as_array()
                .is_some_and(|unseen| !unseen.is_empty());
        // What is said where only the text of a line names its upstream is about no other one.
        let is_anothers = cause == "no-live-upstreams" && upstream != "no-live-upstreams" && upstream != "?";
        if (!is_true && !is_honest) || is_anothers {
            problems.push(format!("{upstream} is called {cause}: {attempt}"));
        }
    }
    for ((upstream, cause, confidence), n) in seen {
        println!("{hearing:?}: {upstream}: {cause} · {confidence}: {n}");
    }
    problems
}

/// As many failed attempts at each upstream as nginx counts, but for what leaves no event.
fn totals(records: &[Value], requests: &[Requested], hearing: Hearing) -> Vec<String> {
    let mut problems = Vec::new();
    for (cause, ..) in PATHS {
        if hearing == Hearing::Kernel && WITHOUT_EVENT.contains(cause) {
            continue;
        }
        if hearing == Hearing::Voice && ["no-live-upstreams", "source-address-missing"].contains(cause) {
            continue;
        }
        // Three upstreams have the same dead peer, and no line of nginx's says whose it was.
        if ["no-listener", "healthy-retried"].contains(cause) {
            continue;
        }
        let wanted = requests
            .iter()
            .filter(|request| request.cause() == *cause)
            .flat_map(|request| &request.tries)
            .filter(|(_, status)| status != "200" && *cause != "answered-with-error")
            .count();
        let is_it = |attempt: &&Value| match attempt["upstream"].as_str() {
            Some("undefined.lab") => *cause == "resolver-undefined",
            upstream => upstream == Some(cause),
        };
        let seen = of_type(records, "attempt").filter(|attempt| attempt["outcome"] != "ok");
        let seen = seen.filter(is_it).count();
        if seen != wanted {
            problems.push(format!(
                "{cause}: {wanted} failed tries in the access log, {seen} in the trace"
            ));
        }
    }
    problems
}

/// What the client got after its request's last attempt is seen after each, and is what nginx says.
fn clients(records: &[Value], requests: &[Requested]) -> Vec<String> {
    let mut problems = Vec::new();
    let statuses: BTreeMap<&str, &Requested> = requests
        .iter()
        .map(|request| (request.path.as_str(), request))
        .collect();
    let retried: BTreeSet<u64> = of_type(records, "attempt")
        .filter_map(|attempt| attempt["retry"]["of"].as_u64())
        .collect();
    for attempt in of_type(records, "attempt").filter(|attempt| attempt["outcome"] != "ok") {
        let Some(request) = attempt["request"]["path"]
            .as_str()
            .and_then(|path| statuses.get(path))
        else {
            continue;
        };
        let client = &attempt["client"];
        let is_retried = attempt["number"]
            .as_u64()
            .is_some_and(|number| retried.contains(&number));
        let status = client["status"].as_u64();
        let is_cut = client["cut"] == true;
        let is_right = match attempt["outcome"] == "cancelled" || is_retried {
            true => client.is_null(),
            false => status.is_some_and(|status| request.status == status.to_string()) && !is_cut,
        };
        if !is_right {
            problems.push(format!(
                "{}: {} in the access log: {attempt}",
                request.path, request.status
            ));
        }
    }
    problems
}

/// Each request's attempts, in their order, are the access log's.
fn chains(records: &[Value], requests: &[Requested]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut attempts: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for attempt in of_type(records, "attempt") {
        if let Some(path) = attempt["request"]["path"].as_str() {
            attempts.entry(path).or_default().push(attempt);
        }
    }
    let paths: BTreeSet<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    problems.extend(
        attempts
            .keys()
            .filter(|path| !paths.contains(*path))
            .map(|path| format!("nobody asked for {path}")),
    );
    for request in requests {
        // The races have one path; where bind() or the name fails, nginx notes no address.
        if request.path == "/login"
            || ["resolver-undefined", "source-address-missing"].contains(&request.cause())
        {
            continue;
        }
        let mut found = attempts.remove(request.path.as_str()).unwrap_or_default();
        found.sort_by_key(|attempt| attempt["time"].as_str());
        let peers: Vec<&str> = found
            .iter()
            .map(|attempt| {
                attempt["peer"]
                    .as_str()
                    .or(attempt["upstream"].as_str())
                    .unwrap_or("?")
            })
            .collect();
        let wanted: Vec<&str> = request.tries.iter().map(|(peer, _)| peer.as_str()).collect();
        if peers != wanted {
            problems.push(format!(
                "{}: tried {wanted:?}, and the trace has {peers:?}",
                request.path
            ));
            continue;
        }
        for (attempt, (_, status)) in found.iter().zip(&request.tries) {
            let is_ok = attempt["outcome"] == "ok";
            if is_ok && attempt["request"]["status"].as_u64() != status.parse().ok() {
                problems.push(format!(
                    "{}: {status} in the access log: {}",
                    request.path,
                    judge::short(attempt)
                ));
            }
        }
        for (earlier, later) in found.iter().zip(found.iter().skip(1)) {
            if later["retry"]["of"] != earlier["number"] {
                problems.push(format!("{}: not linked: {}", request.path, judge::short(later)));
            }
        }
    }
    problems
}

/// What is wrong with what `tracer annotate` says of the access log: every line with a failed try must have its chain, with
/// causes that are true of its path, and no other line may have one. Where a log tells less, lines may stay open.
fn annotated(folder: &Path, requests: &[Requested]) -> Result<Vec<String>> {
    let trace = folder.join("trace.jsonl");
    let mut problems = Vec::new();
    let said = annotate(&tracer(), &folder.join("access.log"), &trace, &[])?;
    problems.extend(true_chains("the whole log", requests, &said));
    let mut of_line: BTreeMap<usize, &Value> = BTreeMap::new();
    for request in of_type(&said, "request") {
        of_line.insert(line_of(request), request);
    }
    for (index, request) in requests.iter().enumerate() {
        let number = index + 1;
        let has_failed = request.tries.iter().any(|(_, status)| status != "200");
        let is_explained = of_line.get(&number).is_some_and(|said| {
            let is_unknown = said["why_not"]["id"] == "unknown-cause";
            let attempts = said["tries"].as_array().map_or(0, Vec::len);
            (said["explained"] == true || is_unknown) && said["alike"] == 1 && attempts == request.tries.len()
        });
        if has_failed != is_explained {
            problems.push(format!(
                "line {number}: {} {:?} has {}",
                request.path,
                request.tries,
                of_line
                    .get(&number)
                    .map_or("nothing".to_owned(), ToString::to_string)
            ));
        }
    }
    let summary = said.last().context("no summary")?;
    if summary["failures_without_line"] != 0 {
        problems.push(format!("failures were left without their line: {summary}"));
    }
    println!("{} of {} lines explained", summary["explained"], requests.len());
    // As nginx would have written it in its own format, and by time, addresses and statuses alone.
    let combined = requests.iter().map(|request| {
        let (seconds, _) = request.ended.split_once('.').unwrap_or_default();
        let at = jiff::Timestamp::from_second(seconds.parse()?)?.strftime("%d/%b/%Y:%H:%M:%S %z");
        let (method, path, status) = (&request.method, &request.path, &request.status);
        Ok(format!(
            "127.0.0.1 - - [{at}] \"{method} {path} HTTP/1.1\" {status} 0 \"-\" \"-\"\n"
        ))
    });
    let combined: String = combined.collect::<Result<_>>()?;
    let bare = requests.iter().map(|request| {
        let list =
            |of: fn(&(String, String)) -> &str| request.tries.iter().map(of).collect::<Vec<_>>().join(", ");
        let (ended, took, status) = (&request.ended, &request.took, &request.status);
        format!(
            "{ended} {took} {status} {} {}\n",
            list(|one| &one.0),
            list(|one| &one.1)
        )
    });
    let format = "$msec $request_time $status $upstream_addr $upstream_status";
    for (name, text, format) in [
        ("combined", combined, "combined"),
        ("bare", bare.collect(), format),
    ] {
        let log = folder.join(format!("access-{name}.log"));
        fs::write(&log, text)?;
        let said = annotate(&tracer(), &log, &trace, &["--log-format", format])?;
        problems.extend(true_chains(name, requests, &said));
        let summary = said.last().context("no summary")?;
        let (explained, of) = (summary["explained"].as_u64(), summary["upstream_lines"].as_u64());
        println!("{name}: {explained:?} of {of:?} lines explained");
        if explained.unwrap_or(0) == 0 {
            problems.push(format!("{name}: no line is explained: {summary}"));
        }
    }
    Ok(problems)
}

fn line_of(request: &Value) -> usize {
    request["number"]
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .unwrap_or(0)
}

/// Lines that were given a chain which is not their own, or a cause that is not true of their path.
fn true_chains(name: &str, requests: &[Requested], said: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut taken = BTreeSet::new();
    for told in of_type(said, "request") {
        let request = line_of(told).checked_sub(1).and_then(|index| requests.get(index));
        let Some(request) = request else {
            problems.push(format!("{name}: no such line: {told}"));
            continue;
        };
        let tries = told["tries"].as_array().into_iter().flatten();
        for attempt in tries
            .map(|one| &one["attempt"])
            .filter(|attempt| !attempt.is_null())
        {
            let cause = attempt["cause"]["id"].as_str();
            let is_true = match cause {
                None => attempt["outcome"] == "ok",
                Some("unknown") => true,
                Some(cause) if request.path == "/login" => cause == "keepalive-race",
                Some(cause) => true_of(request.cause()).is_some_and(|causes| causes.contains(&cause)),
            };
            let its = attempt["request"]["path"].as_str();
            let is_its = told["alike"] != 1 || its.is_none_or(|its| its == request.path);
            if !is_true || !is_its || !taken.insert(attempt["number"].as_u64()) {
                problems.push(format!("{name}: {}: {}", request.path, judge::short(attempt)));
            }
        }
    }
    problems
}

/// Sends the mix; yields what went wrong on the clients' side.
fn requests(stage: &Stage) -> Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(Vec::new());
    let paths: Vec<&str> = PATHS
        .iter()
        .flat_map(|(name, n, _)| std::iter::repeat_n(*name, *n))
        .collect();
    let fronts: Vec<String> = ["{front-refused}", "{front-sound}"]
        .iter()
        .map(|name| stage.names().fill(name))
        .collect::<Result<_>>()?;
    let (near, address) = (&stage.near, &stage.address);
    std::thread::scope(|scope| {
        for seed in 0..TOGETHER {
            let (next, problems, paths, fronts) = (&next, &problems, &paths, &fronts);
            scope.spawn(move || {
                let mut dice = Dice::new(u64::try_from(seed).unwrap_or(0) + 1);
                let mut kept: Option<Client> = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        break;
                    }
                    let result = if number % 50 == 0 {
                        let which = dice.below(fronts.len());
                        session(near, &fronts[which], which == 0 && dice.below(2) == 0)
                    } else {
                        let name = paths[dice.below(paths.len())];
                        request(
                            (near, address),
                            &mut kept,
                            (name, number),
                            dice.below(4) == 0,
                            seed % 2 == 0,
                        )
                    };
                    if let Err(error) = result {
                        let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
                        problems.push(format!("request {number}: {error:#}"));
                    }
                }
            });
        }
    });
    Ok(problems.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// One request, over a kept connection where there is one.
fn request(
    (near, address): (&Netns, &Address),
    kept: &mut Option<Client>,
    (name, number): (&str, usize),
    is_post: bool,
    keeps: bool,
) -> Result<()> {
    let path = format!("/{name}/{number}");
    if name == "client-closed" {
        let mut client = Client::connect(near, address)?;
        client.send("GET", &path, 0, true)?;
        // The backend has begun to answer, and will not end: it is this client's going that ends the request.
        return client.await_bytes();
    }
    let mut client = match kept.take() {
        Some(client) => client,
        None => Client::connect(near, address)?,
    };
    let (method, body) = if is_post { ("POST", 300) } else { ("GET", 0) };
    client.send(method, &path, body, keeps)?;
    let response = client.receive()?;
    let wanted = match name {
        "healthy-kept" | "healthy-retried" => 200,
        "answered-with-error" => 503,
        _ => 0,
    };
    ensure!(
        wanted == 0 || response.status == wanted,
        "{path} was answered with {}",
        response.status
    );
    // nginx ends the connection after some errors.
    *kept = (keeps && response.status == 200).then_some(client);
    Ok(())
}

/// A session of the `stream` proxy: some words, and to the end of what comes back.
fn session(near: &Netns, front: &str, says_no_more: bool) -> Result<()> {
    near.enter(|| -> Result<()> {
        let mut stream = TcpStream::connect(front).with_context(|| format!("connecting to {front}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // nginx may have ended it already.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: stream\r\nConnection: close\r\n\r\n");
        if says_no_more {
            // nginx takes this for the end of a session, so only where there is none.
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = stream.read_to_end(&mut Vec::new());
        Ok(())
    })?
}
