//! What a host name in the configuration means, as far as it can be known without disturbing anybody: nginx's own
//! hosts file, and the system's resolver where the user allows it and it is the same one that nginx asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, ToSocketAddrs},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::host::{resolver::parse_hosts, root::Root};

/// All questions to the system's resolver together may take this long; the tracer must be ready within two seconds.
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_HOSTS_FILE: u64 = 4 << 20;

/// Looks names up and remembers which it could not.
#[derive(Debug, Default)]
pub struct Names {
    hosts: BTreeMap<String, Vec<IpAddr>>,
    may_ask: bool,
    deadline: Option<Instant>,
    asked: BTreeMap<String, Vec<IpAddr>>,
    unresolved: BTreeSet<String>,
}

impl Names {
    /// With the hosts file below `root`; `may_ask`: also the system's resolver.
    #[must_use]
    pub fn new(root: &Root, may_ask: bool) -> Self {
        let text = root
            .read(Path::new("/etc/hosts"), MAX_HOSTS_FILE)
            .unwrap_or_default();
        Self {
            hosts: parse_hosts(&String::from_utf8_lossy(&text)),
            may_ask,
            ..Self::default()
        }
    }

    /// With this text for a hosts file, and nothing else.
    #[cfg(test)]
    pub fn fixed(hosts: &str) -> Self {
        Self {
            hosts: parse_hosts(hosts),
            ..Self::default()
        }
    }

    /// The addresses of a name in lower case; none when they cannot be known.
    pub fn look_up(&mut self, name: &str) -> Vec<IpAddr> {
        let bare = name.strip_suffix('.').unwrap_or(name);
        if let Some(addresses) = self.hosts.get(bare) {
            return addresses.clone();
        }
        if let Some(addresses) = self.asked.get(name) {
            return addresses.clone();
        }
        let addresses = if self.may_ask { self.ask(name) } else { vec![] };
        if addresses.is_empty() {
            self.unresolved.insert(name.to_owned());
        }
        self.asked.insert(name.to_owned(), addresses.clone());
        addresses
    }

    /// Asks in a thread of its own, since the C library's resolver cannot be told to stop.
    fn ask(&mut self, name: &str) -> Vec<IpAddr> {
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return vec![];
        }
        let (sender, receiver) = mpsc::channel();
        let question = name.to_owned();
        let asking = thread::Builder::new().name("resolve".into()).spawn(move || {
            let answer = (question.as_str(), 0).to_socket_addrs();
            let addresses = answer
                .into_iter()
                .flatten()
                .map(|address| address.ip().to_canonical());
            // Nobody listens any more when the answer came too late.
            let _ = sender.send(addresses.collect::<Vec<_>>());
        });
        match asking {
            Ok(_) => receiver.recv_timeout(left).unwrap_or_default(),
            Err(_) => vec![],
        }
    }

    /// One line about the names that stayed unknown.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.unresolved.is_empty() {
            return None;
        }
        let names: Vec<&str> = self.unresolved.iter().map(String::as_str).take(10).collect();
        let more = match self.unresolved.len() - names.len() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        let why = match self.may_ask {
            true => "neither nginx's hosts file nor this host's resolver knows them",
            false => "nginx's hosts file does not know them, and the resolver is not asked",
        };
        Some(format!("addresses unknown for {}{more}: {why}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn names_that_nobody_knows_are_told_once() {
        let mut names = Names {
            hosts: parse_hosts("10.0.0.1 api\n"),
            ..Names::default()
        };
        assert_eq!(names.look_up("api."), [ip("10.0.0.1")]);
        assert_eq!(names.problem(), None);
        assert!(names.look_up("db").is_empty());
        assert!(names.look_up("db").is_empty());
        let told =
            "addresses unknown for db: nginx's hosts file does not know them, and the resolver is not asked";
        assert_eq!(names.problem().as_deref(), Some(told));
    }
}
