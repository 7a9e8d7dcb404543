//! What a host name means to a process: asked as the C library would ask for it, through the hosts file and the resolver
//! configuration below the process's root and from inside its network namespace, without running anything of it.
//!
//! Nothing is sent to any address but the nameservers of that configuration, and all questions for one name together
//! end within [`PATIENCE`]. What the C library might learn from a service that cannot be asked from here (LDAP, mDNS for
//! names in `.local`) is not guessed at: there is no answer then. Not read: the process's `LOCALDOMAIN` and `RES_OPTIONS`,
//! the options of resolv.conf other than `ndots`, and nameservers on a link (`fe80::1%eth0`).

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    event::{NameMeaning, NameReply, NameSource, Pid},
    host::{netns, root::Root},
};

mod dns;

/// How long one name may take, whatever the nameservers do.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one nameserver may take before the next one is asked.
const PER_SERVER: Duration = Duration::from_millis(700);
/// How long nginx's nameservers together may take when they are asked again: no longer than an attempt waits for it.
const AGAIN: Duration = Duration::from_millis(200);
/// How often one nameserver is asked for one name.
const MAX_TRIES: usize = 3;
const MAX_HOSTS_FILE: u64 = 4 << 20;
const MAX_SMALL_FILE: u64 = 64 << 10;
/// The C library's `MAXNS`.
const MAX_SERVERS: usize = 3;
/// More search domains than this are not tried within [`PATIENCE`] anyway.
const MAX_SEARCH: usize = 8;
/// The C library's `RES_MAXNDOTS`.
const MAX_NDOTS: usize = 15;
const DNS_PORT: u16 = 53;

/// What `name` means to process `pid` at this moment.
///
/// # Errors
/// It cannot be known: files that cannot be read, nameservers that do not answer or fail.
pub fn look_up(pid: Pid, name: &str) -> io::Result<NameMeaning> {
    look_through(pid, name, |conf| netns::run_in(pid, || ask(conf, name)).map(Some))?
        .ok_or_else(|| io::Error::other("nobody was asked"))
}

/// The same as far as files tell; `None`: nameservers have to be asked.
///
/// # Errors
/// As [`look_up`].
pub fn look_up_in_files(pid: Pid, name: &str) -> io::Result<Option<NameMeaning>> {
    look_through(pid, name, |_| Ok(None))
}

/// Goes through the services that look names up, in their order; ends with nothing where `ask` gives nothing.
fn look_through(
    pid: Pid,
    name: &str,
    ask: impl Fn(&ResolvConf) -> io::Result<Option<NameMeaning>>,
) -> io::Result<Option<NameMeaning>> {
    let root = Root::of(pid)?;
    let bare = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let switch = match root.read(Path::new("/etc/nsswitch.conf"), MAX_SMALL_FILE) {
        Ok(text) => parse_switch(&String::from_utf8_lossy(&text)),
        Err(_) => default_switch(),
    };
    for step in &switch {
        match step.service.as_str() {
            "files" => {
                let text = root.read(Path::new("/etc/hosts"), MAX_HOSTS_FILE);
                let text = text.unwrap_or_default();
                let mut hosts = parse_hosts(&String::from_utf8_lossy(&text));
                if let Some(addresses) = hosts.remove(&bare) {
                    return Ok(Some(NameMeaning {
                        addresses,
                        from: NameSource::HostsFile,
                        varies: false,
                        ttl_s: None,
                        whole: None,
                    }));
                }
            }
            // systemd's resolver serves both; the nameservers of resolv.conf are its own, as a rule.
            "dns" | "resolve" => {
                let text = root.read(Path::new("/etc/resolv.conf"), MAX_SMALL_FILE);
                let conf = ResolvConf::parse(&String::from_utf8_lossy(&text.unwrap_or_default()));
                let Some(meaning) = ask(&conf)? else {
                    return Ok(None);
                };
                if !meaning.addresses.is_empty() || step.ends_when_not_found {
                    return Ok(Some(meaning));
                }
            }
            service if never_knows(service, &bare) => continue,
            service => {
                return Err(io::Error::other(format!(
                    "its nsswitch.conf looks names up in `{service}`, which cannot be asked from here"
                )));
            }
        }
        if step.ends_when_not_found {
            break;
        }
    }
    Ok(Some(NameMeaning {
        addresses: Vec::new(),
        from: NameSource::HostsFile,
        varies: false,
        ttl_s: None,
        whole: None,
    }))
}

/// What each of these nameservers, asked from inside the network namespace of process `pid`, says of a whole name.
///
/// # Errors
/// The namespace cannot be entered.
pub fn ask_each(pid: Pid, servers: &[SocketAddr], name: &str) -> io::Result<Vec<NameReply>> {
    netns::run_in(pid, || {
        let servers = &servers[..servers.len().min(MAX_SERVERS)];
        let share = AGAIN / u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
        let reply = |server: &SocketAddr| dns::ask_each(*server, name, Instant::now() + share);
        Ok(servers.iter().flat_map(reply).collect())
    })
}

/// Services of nsswitch.conf that have nothing to say about this name.
fn never_knows(service: &str, name: &str) -> bool {
    let is_local = name.ends_with(".local");
    match service {
        "mdns4_minimal" | "mdns6_minimal" | "mdns_minimal" | "mdns" | "mdns4" | "mdns6" => !is_local,
        // The host's own name, its gateway's, and localhost.
        "myhostname" => {
            let own = super::hostname().to_ascii_lowercase();
            !(name.starts_with('_') || name == own || name == "localhost" || name.ends_with(".localhost"))
        }
        _ => false,
    }
}

/// One service of the `hosts` line of nsswitch.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    service: String,
    /// `[NOTFOUND=return]`: what it does not know, nobody is asked for.
    ends_when_not_found: bool,
}

fn default_switch() -> Vec<Step> {
    let step = |service: &str| Step {
        service: service.to_owned(),
        ends_when_not_found: false,
    };
    vec![step("files"), step("dns")]
}

fn parse_switch(text: &str) -> Vec<Step> {
    let line = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .find_map(|line| line.strip_prefix("hosts:"));
    let Some(line) = line else {
        return default_switch();
    };
    let mut steps: Vec<Step> = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (actions, after) = inner.split_once(']').unwrap_or((inner, ""));
            let actions = actions.to_ascii_lowercase();
            if let Some(step) = steps.last_mut() {
                step.ends_when_not_found = actions.split_whitespace().any(|action| {
                    let (status, then) = action.split_once('=').unwrap_or((action, ""));
                    let is_meant = match status.strip_prefix('!') {
                        Some(other) => other != "notfound",
                        None => status == "notfound",
                    };
                    is_meant && then == "return"
                });
            }
            rest = after.trim_start();
        } else {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == '[')
                .unwrap_or(rest.len());
            steps.push(Step {
                service: rest[..end].to_owned(),
                ends_when_not_found: false,
            });
            rest = rest[end..].trim_start();
        }
    }
    steps
}

/// Every name of a hosts file, in lower case, with its addresses in order.
#[must_use]
pub fn parse_hosts(text: &str) -> BTreeMap<String, Vec<IpAddr>> {
    let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        for name in words {
            let addresses = hosts.entry(name.to_ascii_lowercase()).or_default();
            if !addresses.contains(&address.to_canonical()) {
                addresses.push(address.to_canonical());
            }
        }
    }
    hosts
}

/// What resolv.conf says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ResolvConf {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl ResolvConf {
    fn parse(text: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
        };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf
                    .servers
                    .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                // The last of them counts.
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => {
                    let mut ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    conf.ndots = ndots.next_back().unwrap_or(conf.ndots).min(MAX_NDOTS);
                }
                _ => {}
            }
        }
        conf.servers.truncate(MAX_SERVERS);
        conf.search.truncate(MAX_SEARCH);
        if conf.servers.is_empty() {
            conf.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        conf
    }

    /// The whole names that a name as written stands for, in the order in which they are asked for.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let searched = self.search.iter().filter_map(|domain| {
            let domain = domain.trim_matches('.');
            (!domain.is_empty()).then(|| format!("{name}.{domain}"))
        });
        let as_written = std::iter::once(name.to_owned());
        if name.matches('.').count() >= self.ndots {
            as_written.chain(searched).collect()
        } else {
            searched.chain(as_written).collect()
        }
    }
}

/// Asks the nameservers; called inside the process's network namespace.
fn ask(conf: &ResolvConf, name: &str) -> io::Result<NameMeaning> {
    let deadline = Instant::now() + PATIENCE;
    let servers: Vec<SocketAddr> = conf
        .servers
        .iter()
        .map(|server| SocketAddr::new(*server, DNS_PORT))
        .collect();
    ask_servers(&servers, &conf.candidates(name), deadline)
}

fn ask_servers(servers: &[SocketAddr], candidates: &[String], deadline: Instant) -> io::Result<NameMeaning> {
    let mut meaning = None;
    for candidate in candidates {
        let (server, answer) = ask_for(servers, candidate, deadline)?;
        let found = !answer.addresses.is_empty();
        meaning = Some(NameMeaning {
            addresses: answer.addresses.into_iter().collect(),
            from: NameSource::Nameserver(server.ip()),
            varies: answer.varies,
            ttl_s: answer.ttl_s,
            whole: Some(candidate.clone()),
        });
        if found {
            break;
        }
    }
    meaning.ok_or_else(|| io::Error::other("no name to ask for"))
}

/// The first definite answer for a whole name; every nameserver gets further chances.
fn ask_for(servers: &[SocketAddr], name: &str, deadline: Instant) -> io::Result<(SocketAddr, dns::Found)> {
    let mut failed = io::Error::other("no nameserver to ask");
    for server in servers.iter().cycle().take(MAX_TRIES * servers.len()) {
        let until = deadline.min(Instant::now() + PER_SERVER);
        match dns::ask(*server, name, until) {
            Ok(found) => return Ok((*server, found)),
            Err(error) => {
                failed = io::Error::new(error.kind(), format!("nameserver {}: {error}", server.ip()))
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests;
