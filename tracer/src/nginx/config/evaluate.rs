//! From a tree of directives to the peers it names, by nginx's own rules of inheritance and naming.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use crate::{
    event::{AccessLog, Balancing, ConfiguredName, ConfiguredPeer, Escape, Limits, Peer},
    nginx::{
        config::{
            address::{self, Address, Host, Uri, strip_prefix_ignoring_case},
            load::{Directive, Place},
            names::Names,
            variables::{UNKNOWN, Variables},
        },
        find::{Layout, join},
    },
};

/// nginx's default of every `*_connect_timeout`, `*_send_timeout` and `*_read_timeout`.
const DEFAULT_TIMEOUT_MS: u64 = 60_000;
/// nginx's default `proxy_timeout` of stream.
const DEFAULT_STREAM_TIMEOUT_MS: u64 = 600_000;
/// nginx's default `keepalive_timeout` of an upstream block.
const DEFAULT_KEEPALIVE_TIMEOUT_MS: u64 = 60_000;
/// More access logs are not told of.
const MAX_ACCESS_LOGS: usize = 100;
/// More lines help nobody.
const MAX_PROBLEMS: usize = 100;

/// What the tree says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluated {
    /// Explicit and implicit upstreams.
    pub upstreams: u32,
    /// Every peer, in the order of the configuration.
    pub peers: Vec<ConfiguredPeer>,
    /// Those of UDP proxies.
    pub datagrams: Vec<ConfiguredPeer>,
    /// Error logs, absolute where they are files.
    pub error_logs: Vec<String>,
    /// Access logs of `http`, each path and format once.
    pub access_logs: Vec<AccessLog>,
    /// Resolvers.
    pub resolvers: Vec<SocketAddr>,
    /// Names that nginx resolves when it reads this, and not again.
    pub names: Vec<ConfiguredName>,
    /// nginx may also connect to addresses that neither `peers` nor `names` account for.
    pub is_open: bool,
    /// What was not understood.
    pub problems: Vec<String>,
}

/// Evaluates a whole configuration; `release`: nginx's release, which decides defaults.
#[must_use]
pub fn evaluate(
    tree: &[Directive],
    layout: &Layout,
    release: Option<(u32, u32, u32)>,
    names: &mut Names,
) -> Evaluated {
    let mut evaluated = Evaluated::default();
    collect_logs(tree, layout, true, &mut evaluated);
    for http in tree.iter().filter(|block| block.name() == "http") {
        collect_access_logs(
            http.directives(),
            http.directives(),
            layout,
            &mut evaluated.access_logs,
        );
    }
    collect_resolvers(tree, names, &mut evaluated);
    evaluated.is_open = connects_elsewhere(tree);
    for block in tree {
        let kind = match block.name() {
            "http" => Kind::Http,
            "stream" => Kind::Stream,
            "mail" if !block.directives().is_empty() => {
                evaluated
                    .problems
                    .push(format!("{}: mail proxying is not followed", block.place));
                continue;
            }
            _ => continue,
        };
        let mut section = Section::new(kind, block.directives());
        section.walk(block.directives(), &Settings::default());
        section.finish(release, names, &mut evaluated);
    }
    if evaluated.problems.len() > MAX_PROBLEMS {
        let more = evaluated.problems.len() - MAX_PROBLEMS;
        evaluated.problems.truncate(MAX_PROBLEMS);
        evaluated.problems.push(format!("and {more} more such lines"));
    }
    evaluated
}

fn collect_logs(tree: &[Directive], layout: &Layout, is_main: bool, evaluated: &mut Evaluated) {
    let mut add = |target: String| {
        if !evaluated.error_logs.contains(&target) {
            evaluated.error_logs.push(target);
        }
    };
    let named = || tree.iter().filter(|directive| directive.name() == "error_log");
    // Only where the main level names none, the one that was built in or given with -e is used.
    if is_main && named().next().is_none() {
        add(layout.error_log.clone());
    }
    for directive in named() {
        if let Some(target) = directive.words.get(1) {
            let is_special =
                target == "stderr" || target.starts_with("syslog:") || target.starts_with("memory:");
            add(if is_special {
                target.clone()
            } else {
                join(&layout.prefix, target)
            });
        }
    }
    for directive in named() {
        if let Some(level @ ("crit" | "alert" | "emerg")) = directive.words.get(2).map(String::as_str) {
            let place = &directive.place;
            evaluated.problems.push(format!(
                "{place}: at level {level} nginx logs hardly any upstream failure"
            ));
        }
    }
    for directive in tree {
        collect_logs(directive.directives(), layout, false, evaluated);
    }
}

/// Access logs of a level and those below it; `http` is where their formats are. The log that was built in, which is there
/// where none is named, is `combined`, as every reader knows.
fn collect_access_logs(tree: &[Directive], http: &[Directive], layout: &Layout, logs: &mut Vec<AccessLog>) {
    for directive in tree {
        collect_access_logs(directive.directives(), http, layout, logs);
        let path = match directive.words.get(1) {
            Some(path) if directive.name() == "access_log" && path != "off" => path,
            _ => continue,
        };
        let name = directive.words.get(2).map_or("combined", String::as_str);
        let mut log = AccessLog {
            path: if path.starts_with("syslog:") {
                path.clone()
            } else {
                join(&layout.prefix, path)
            },
            name: name.to_owned(),
            ..AccessLog::default()
        };
        if name != "combined" {
            let is_it = |format: &&Directive| {
                format.name() == "log_format" && format.words.get(1).is_some_and(|known| known == name)
            };
            let Some(format) = http.iter().find(is_it) else {
                continue;
            };
            let strings = &format.words[2..];
            let escape = strings.first().and_then(|first| first.strip_prefix("escape="));
            let strings = match escape {
                Some(name) => {
                    log.escape = Escape::named(name).unwrap_or_default();
                    &strings[1..]
                }
                None => strings,
            };
            log.format = strings.concat();
        }
        if logs.len() < MAX_ACCESS_LOGS && !logs.contains(&log) {
            logs.push(log);
        }
    }
}

fn collect_resolvers(tree: &[Directive], names: &mut Names, evaluated: &mut Evaluated) {
    for directive in tree {
        if directive.name() == "resolver" {
            for argument in directive
                .arguments()
                .iter()
                .filter(|argument| !argument.contains('='))
            {
                let Ok(Address { host, port, .. }) = address::parse(argument, Uri::None) else {
                    continue;
                };
                for ip in ips(&host, names) {
                    let resolver = SocketAddr::new(ip, port.unwrap_or(53));
                    if !evaluated.resolvers.contains(&resolver) {
                        evaluated.resolvers.push(resolver);
                    }
                }
            }
        }
        collect_resolvers(directive.directives(), names, evaluated);
    }
}

/// Whether something beside upstreams makes nginx connect, or decides where to: mail, OCSP, ACME, code.
fn connects_elsewhere(tree: &[Directive]) -> bool {
    tree.iter().any(|directive| {
        let name = directive.name();
        let is_on = directive
            .arguments()
            .iter()
            .any(|argument| argument == "on" || argument == "leaf");
        let is_code = name.contains("_by_lua") || name.starts_with("js_") || name.starts_with("perl");
        let is_own = match name {
            "mail" | "acme_issuer" | "health_check" | "check" => true,
            "ssl_stapling" | "ssl_ocsp" => is_on,
            _ => is_code,
        };
        is_own || connects_elsewhere(directive.directives())
    })
}

fn ips(host: &Host, names: &mut Names) -> Vec<IpAddr> {
    match host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => names.look_up(name),
        Host::Unix(_) => vec![],
    }
}

/// The two parts of a configuration that have upstreams; each has its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http,
    Stream,
}

/// The header that asks a backend for another protocol on the same connection; it is inherited as timeouts are, and
/// kept among them.
const UPGRADE: &str = "Upgrade";

/// The header that tells a backend whether its connection is to be kept.
const CONNECTION: &str = "Connection";

/// What is in force, by directive name: times in milliseconds, and the few others as their constants say; `None`: the
/// value was not understood.
type Settings = BTreeMap<String, Option<u64>>;

/// One line that names a peer.
#[derive(Clone, Debug)]
struct Server {
    text: String,
    address: Address,
    default_port: Option<u16>,
    place: Place,
    /// nginx resolves it again and again.
    is_resolved_again: bool,
    /// As its own line says.
    balancing: Balancing,
}

/// What nginx takes where a `server` line says nothing.
const DEFAULT_BALANCING: Balancing = Balancing {
    max_fails: 1,
    fail_timeout_ms: 10_000,
    max_conns: 0,
    is_shared: false,
    counts_statuses: false,
};

/// What nginx itself has in an upstream block; modules bring along balancers and health checks of their own.
const OWN_DIRECTIVES: [&str; 17] = [
    "server",
    "zone",
    "state",
    "hash",
    "ip_hash",
    "least_conn",
    "least_time",
    "random",
    "keepalive",
    "keepalive_requests",
    "keepalive_time",
    "keepalive_timeout",
    "ntlm",
    "queue",
    "sticky",
    "resolver",
    "resolver_timeout",
];

/// What the parameters of a `server` line say.
fn balancing(parameters: &[String]) -> Balancing {
    let value = |name: &str| {
        let value = |word: &String| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        parameters.iter().rev().find_map(value)
    };
    let count = |name: &str| value(name).and_then(|count| count.parse().ok());
    Balancing {
        max_fails: count("max_fails").unwrap_or(DEFAULT_BALANCING.max_fails),
        fail_timeout_ms: value("fail_timeout")
            .and_then(|time| parse_time(&time))
            .unwrap_or(DEFAULT_BALANCING.fail_timeout_ms),
        max_conns: count("max_conns").unwrap_or(DEFAULT_BALANCING.max_conns),
        ..DEFAULT_BALANCING
    }
}

/// An upstream block, or what a `…_pass` with a host stands for.
#[derive(Clone, Debug)]
struct Upstream {
    name: String,
    is_block: bool,
    servers: Vec<Server>,
    /// Servers that are `down`: nginx never connects to them, but counts them.
    n_down: usize,
    /// It has a `zone`.
    is_shared: bool,
    /// Something of its block is not nginx's own: when peers are left out is not known.
    is_foreign: bool,
    keepalive: Option<u32>,
    keepalive_timeout: Option<u64>,
    uses: Vec<Use>,
}

/// One place that sends requests to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Use {
    via: String,
    /// Over UDP.
    is_udp: bool,
    upgrades: bool,
    keeping: Keeping,
    counts_statuses: bool,
    /// The IPv4 address of `*_bind`, as a number.
    source: Option<u64>,
    connect: Option<u64>,
    send: Option<u64>,
    read: Option<u64>,
}

/// What decides whether nginx asks a backend to keep the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    /// It always does, or never.
    Always(bool),
    /// `proxy_http_version`, as 10 or 11 or more, and what `proxy_set_header Connection` asks for; the outer `None`:
    /// as nginx has it by default.
    Proxy {
        version: Option<Option<u64>>,
        connection: Option<Option<u64>>,
    },
}

impl Keeping {
    /// Whether it does; `None`: that is not certain.
    fn is_asked(self, release: Option<(u32, u32, u32)>) -> Option<bool> {
        let (version, connection) = match self {
            Self::Always(always) => return Some(always),
            Self::Proxy { version, connection } => (version, connection),
        };
        // Since 1.29.7 nginx speaks 1.1 and leaves the header out by itself.
        let is_new = release.map(|release| release >= (1, 29, 7));
        let connection = match connection {
            Some(asks) => asks?,
            None if is_new? => EMPTY,
            None => CLOSE,
        };
        if connection == CLOSE {
            return Some(false);
        }
        let version = match version {
            Some(version) => version?,
            None if is_new? => 11,
            None => 10,
        };
        // Without a header HTTP/1.0 ends with the connection.
        Some(version >= 11 || connection == KEEP_ALIVE)
    }
}

/// What a `Connection` header says.
const CLOSE: u64 = 0;
/// See [`CLOSE`]: nginx sends none.
const EMPTY: u64 = 1;
/// See [`CLOSE`].
const KEEP_ALIVE: u64 = 2;

/// What a `Connection` header says; `None`: it is decided per request.
fn said_of_connection(value: &str) -> Option<u64> {
    match value.to_ascii_lowercase().as_str() {
        value if value.contains('$') => None,
        value => {
            let has = |token: &str| value.split([',', ' ']).any(|word| word == token);
            Some(match (has("close"), has("keep-alive")) {
                (true, _) => CLOSE,
                (false, true) => KEEP_ALIVE,
                // Such as `upgrade`: it says nothing of closing.
                (false, false) => EMPTY,
            })
        }
    }
}

/// `on`, `off`, or an HTTP version as ten times its number.
fn setting(value: &str) -> Option<u64> {
    match value {
        "on" => Some(1),
        "off" => Some(0),
        "1.0" => Some(10),
        "1.1" => Some(11),
        "2" | "2.0" => Some(20),
        _ => None,
    }
}

/// `http {}` or `stream {}`.
struct Section<'a> {
    kind: Kind,
    upstreams: Vec<Upstream>,
    /// Uses whose target is decided per request: any block may be meant.
    open_uses: Vec<Use>,
    variables: Variables<'a>,
    /// Some address is decided per request.
    is_open: bool,
    problems: Vec<String>,
}

impl<'a> Section<'a> {
    fn new(kind: Kind, tree: &'a [Directive]) -> Self {
        let mut section = Self {
            kind,
            upstreams: vec![],
            open_uses: vec![],
            variables: Variables::collect(tree),
            is_open: false,
            problems: vec![],
        };
        for block in tree.iter().filter(|directive| directive.name() == "upstream") {
            section.add_block(block);
        }
        section
    }

    fn add_block(&mut self, block: &Directive) {
        let Some(name) = block.words.get(1) else { return };
        if self.find_block(name).is_some() {
            self.problems
                .push(format!("{}: duplicate upstream \"{name}\"", block.place));
            return;
        }
        let mut upstream = Upstream {
            name: name.clone(),
            is_block: true,
            servers: vec![],
            n_down: 0,
            is_shared: false,
            is_foreign: false,
            keepalive: None,
            keepalive_timeout: None,
            uses: vec![],
        };
        for directive in block.directives() {
            match (directive.name(), directive.words.get(1)) {
                ("server", Some(text)) => {
                    let parameters = &directive.words[2..];
                    // nginx never connects to it.
                    if parameters.iter().any(|parameter| parameter == "down") {
                        upstream.n_down += 1;
                        continue;
                    }
                    let is_resolved_again = parameters
                        .iter()
                        .any(|parameter| parameter == "resolve" || parameter.starts_with("service="));
                    match address::parse(text, Uri::None) {
                        Ok(address) => upstream.servers.push(Server {
                            text: directive.arguments().join(" "),
                            address,
                            default_port: (self.kind == Kind::Http).then_some(80),
                            place: directive.place.clone(),
                            is_resolved_again,
                            balancing: balancing(parameters),
                        }),
                        Err(error) => self
                            .problems
                            .push(format!("{}: {error} in \"{text}\"", directive.place)),
                    }
                    if is_resolved_again {
                        // How many peers it stands for changes.
                        upstream.is_foreign = true;
                        self.is_open = true;
                        self.problems.push(format!(
                            "{}: nginx resolves {text} again and again, so its addresses may be others by now",
                            directive.place
                        ));
                    }
                }
                ("zone", Some(_)) => upstream.is_shared = true,
                ("keepalive", Some(count)) => upstream.keepalive = count.parse().ok(),
                ("keepalive_timeout", Some(time)) => upstream.keepalive_timeout = parse_time(time),
                (name, _) if name.starts_with("balancer_by_lua") => self.problems.push(format!(
                    "{}: Lua code chooses the peers of upstream {}; those it brings along have no name",
                    directive.place, upstream.name
                )),
                (name, _) => upstream.is_foreign |= !OWN_DIRECTIVES.contains(&name),
            }
            upstream.is_foreign |= directive.name().starts_with("balancer_by_lua");
        }
        self.upstreams.push(upstream);
    }

    /// The index of a block; nginx compares names without regard to case.
    fn find_block(&self, name: &str) -> Option<usize> {
        let is_it = |upstream: &Upstream| upstream.is_block && upstream.name.eq_ignore_ascii_case(name);
        self.upstreams.iter().position(is_it)
    }

    /// Follows one level with what it inherits, and everything in it.
    fn walk(&mut self, level: &'a [Directive], inherited: &Settings) {
        let mut settings = inherited.clone();
        // Headers are inherited all together or not at all.
        if level
            .iter()
            .any(|directive| directive.name() == "proxy_set_header")
        {
            settings.remove(CONNECTION);
        }
        for directive in level {
            let name = directive.name();
            let is_time = ["_connect_timeout", "_send_timeout", "_read_timeout"]
                .iter()
                .any(|end| name.ends_with(end));
            if let Some(value) = directive
                .words
                .get(1)
                .filter(|_| is_time || name == "proxy_timeout")
            {
                settings.insert(name.to_owned(), parse_time(value));
            }
            match (name, directive.arguments()) {
                ("proxy_set_header", [header, _]) if header.eq_ignore_ascii_case("upgrade") => {
                    // Cut off by any header set further in, but that is to nobody's harm.
                    settings.insert(UPGRADE.to_owned(), None);
                }
                ("proxy_set_header", [header, value]) if header.eq_ignore_ascii_case("connection") => {
                    settings.insert(CONNECTION.to_owned(), said_of_connection(value));
                }
                (name, [address, ..]) if name.ends_with("_bind") => {
                    settings.insert(name.to_owned(), written_out(address));
                }
                (name, conditions) if name.ends_with("_next_upstream") => {
                    let is_status =
                        |condition: &String| condition.starts_with("http_5") || condition == "http_429";
                    let counts = conditions.iter().any(is_status);
                    settings.insert(name.to_owned(), Some(u64::from(counts)));
                }
                ("proxy_http_version" | "fastcgi_keep_conn", [value]) => {
                    settings.insert(name.to_owned(), setting(value));
                }
                _ => {}
            }
        }
        let is_udp = self.kind == Kind::Stream && listens_for_udp_only(level);
        for directive in level {
            match (directive.name(), directive.arguments()) {
                ("upstream", _) => {}
                (name, [target]) if name.ends_with("_pass") && directive.block.is_none() => {
                    self.pass(directive, target, &settings, is_udp);
                }
                (name, _) => {
                    let outer = (name == "server").then(|| self.variables.enter(directive));
                    self.walk(directive.directives(), &settings);
                    if let Some(outer) = outer {
                        self.variables.leave(outer);
                    }
                }
            }
        }
    }

    fn pass(&mut self, directive: &Directive, target: &str, settings: &Settings, is_udp: bool) {
        let place = &directive.place;
        let candidates = match target.contains('$') {
            true => self.variables.expand(target),
            false => BTreeSet::from([target.to_owned()]),
        };
        let is_literal = !target.contains('$');
        let mut is_open = false;
        for candidate in &candidates {
            let Some((via, scheme_port, rest)) = self.split_scheme(directive.name(), candidate) else {
                // A variable may be empty, or hold the scheme that is not known.
                match (is_literal, candidate.contains(UNKNOWN)) {
                    (true, _) => self
                        .problems
                        .push(format!("{place}: invalid URL prefix in \"{target}\"")),
                    (false, is_unknown) => is_open |= is_unknown,
                }
                continue;
            };
            let uri = if directive.name() == "proxy_pass" {
                Uri::Allowed
            } else {
                Uri::None
            };
            let usage = Use {
                is_udp,
                ..self.usage(directive.name(), &via, settings)
            };
            if is_undecided(rest) {
                is_open = true;
                if !self.open_uses.contains(&usage) {
                    self.open_uses.push(usage);
                }
                continue;
            }
            match address::parse(rest, uri) {
                Ok(address) => self.target(directive, target, address, scheme_port, usage, is_literal),
                Err(error) if is_literal => self.problems.push(format!("{place}: {error} in \"{target}\"")),
                // nginx answers 500 to a request for which a variable yields no host.
                Err(_) => {}
            }
        }
        if is_open {
            self.is_open = true;
            self.problems.push(format!(
                "{place}: {} {target} is decided per request: peers that only it leads to have no name",
                directive.name()
            ));
        }
    }

    fn target(
        &mut self,
        directive: &Directive,
        written: &str,
        address: Address,
        scheme_port: Option<u16>,
        usage: Use,
        is_literal: bool,
    ) {
        let place = &directive.place;
        if let (Host::Name(name), block) = (&address.host, self.find_block(&address.text)) {
            match (block, address.port) {
                (Some(index), None) => return self.upstreams[index].add_use(usage),
                (Some(_), Some(port)) if is_literal => {
                    self.problems
                        .push(format!("{place}: upstream \"{name}\" may not have port {port}"));
                    return;
                }
                // Not the block: nginx asks its resolver for the name.
                _ if !is_literal => {
                    self.is_open = true;
                    self.problems.push(format!(
                        "{place}: {} {written} may lead to {}, which nginx's resolver looks up per request: its \
                         addresses have no name",
                        directive.name(),
                        address.text
                    ));
                    return;
                }
                _ => {}
            }
        }
        let port = address.port.or(scheme_port);
        if port.is_none() && !matches!(address.host, Host::Unix(_)) {
            self.problems.push(format!("{place}: no port in \"{written}\""));
            return;
        }
        let is_same = |upstream: &&mut Upstream| {
            !upstream.is_block
                && upstream.servers.iter().any(|server| {
                    server.address.host == address.host && server.address.port.or(server.default_port) == port
                })
        };
        if let Some(known) = self.upstreams.iter_mut().find(is_same) {
            return known.add_use(usage);
        }
        let server = Server {
            text: written.to_owned(),
            default_port: scheme_port,
            place: place.clone(),
            address,
            is_resolved_again: false,
            balancing: DEFAULT_BALANCING,
        };
        self.upstreams.push(Upstream {
            name: server.address.text.clone(),
            is_block: false,
            servers: vec![server],
            n_down: 0,
            is_shared: false,
            is_foreign: false,
            keepalive: None,
            keepalive_timeout: None,
            uses: vec![usage],
        });
    }

    /// The protocol towards the upstream, its default port, and the address behind the scheme.
    fn split_scheme<'t>(&self, name: &str, target: &'t str) -> Option<(String, Option<u16>, &'t str)> {
        let behind = |scheme: &str| strip_prefix_ignoring_case(target, scheme);
        let protocol = name.strip_suffix("_pass").unwrap_or(name);
        Some(match (self.kind, protocol) {
            (Kind::Stream, _) => ("stream".to_owned(), None, target),
            (Kind::Http, "proxy") => match (behind("http://"), behind("https://")) {
                (Some(rest), _) => ("http".to_owned(), Some(80), rest),
                (_, Some(rest)) => ("https".to_owned(), Some(443), rest),
                (None, None) => return None,
            },
            (Kind::Http, "grpc") => {
                let rest = behind("grpc://").or_else(|| behind("grpcs://")).unwrap_or(target);
                ("grpc".to_owned(), None, rest)
            }
            // What runs over TLS cannot be cut into exchanges, so it has a name of its own.
            (Kind::Http, "uwsgi") => match (behind("suwsgi://"), behind("uwsgi://")) {
                (Some(rest), _) => ("suwsgi".to_owned(), None, rest),
                (None, rest) => ("uwsgi".to_owned(), None, rest.unwrap_or(target)),
            },
            (Kind::Http, _) => (protocol.to_owned(), None, target),
        })
    }

    fn usage(&self, name: &str, via: &str, settings: &Settings) -> Use {
        let protocol = name.strip_suffix("_pass").unwrap_or(name);
        let value = |directive: String, default| settings.get(&directive).copied().unwrap_or(Some(default));
        let of_protocol = |end: &str| value(format!("{protocol}_{end}"), DEFAULT_TIMEOUT_MS);
        let idle = value("proxy_timeout".to_owned(), DEFAULT_STREAM_TIMEOUT_MS);
        let (send, read) = match self.kind {
            Kind::Http => (of_protocol("send_timeout"), of_protocol("read_timeout")),
            Kind::Stream => (idle, idle),
        };
        Use {
            via: via.to_owned(),
            is_udp: false,
            upgrades: protocol == "proxy" && settings.contains_key(UPGRADE),
            counts_statuses: settings.get(&format!("{protocol}_next_upstream")) == Some(&Some(1)),
            keeping: match protocol {
                _ if self.kind == Kind::Stream => Keeping::Always(false),
                "proxy" => Keeping::Proxy {
                    version: settings.get("proxy_http_version").copied(),
                    connection: settings.get(CONNECTION).copied(),
                },
                "fastcgi" => Keeping::Always(settings.get("fastcgi_keep_conn") == Some(&Some(1))),
                "grpc" | "memcached" => Keeping::Always(true),
                _ => Keeping::Always(false),
            },
            source: settings.get(&format!("{protocol}_bind")).copied().flatten(),
            connect: of_protocol("connect_timeout"),
            send,
            read,
        }
    }

    fn finish(mut self, release: Option<(u32, u32, u32)>, names: &mut Names, evaluated: &mut Evaluated) {
        for upstream in &self.upstreams {
            let open = self.open_uses.iter().filter(|_| upstream.is_block);
            let all = upstream.uses.iter().chain(open);
            let (over_udp, uses): (Vec<&Use>, Vec<&Use>) = all.partition(|usage| usage.is_udp);
            let (via, limits) = agreed(&uses, upstream, self.kind, release);
            let of_udp = (!over_udp.is_empty()).then(|| agreed(&over_udp, upstream, self.kind, release));
            let mut of_upstream = Vec::new();
            for server in &upstream.servers {
                let port = server.address.port.or(server.default_port);
                let peers: Vec<Peer> = match (&server.address.host, port) {
                    (Host::Unix(path), _) => vec![Peer::Unix(path.clone())],
                    (host, Some(port)) => {
                        let address = |ip| Peer::Tcp(SocketAddr::new(ip, port));
                        ips(host, names).into_iter().map(address).collect()
                    }
                    (_, None) => {
                        self.problems.push(format!(
                            "{}: no port in \"{}\"",
                            server.place, server.address.text
                        ));
                        vec![]
                    }
                };
                if let (Host::Name(name), Some(port), false) = (
                    &server.address.host,
                    port,
                    server.is_resolved_again || uses.is_empty(),
                ) {
                    let configured = ConfiguredName {
                        name: name.clone(),
                        port,
                        upstream: upstream.name.clone(),
                        server: server.text.clone(),
                    };
                    if !evaluated.names.contains(&configured) {
                        evaluated.names.push(configured);
                    }
                }
                for peer in peers {
                    if let Some((via, limits)) = &of_udp {
                        let configured = ConfiguredPeer {
                            peer: peer.clone(),
                            upstream: upstream.name.clone(),
                            server: server.text.clone(),
                            via: via.clone(),
                            upgrades: false,
                            limits: limits.clone(),
                            balancing: None,
                        };
                        if !evaluated.datagrams.contains(&configured) {
                            evaluated.datagrams.push(configured);
                        }
                        if uses.is_empty() {
                            continue;
                        }
                    }
                    let configured = ConfiguredPeer {
                        peer,
                        upstream: upstream.name.clone(),
                        server: server.text.clone(),
                        via: via.clone(),
                        upgrades: uses.iter().any(|usage| usage.upgrades),
                        limits: limits.clone(),
                        balancing: (!upstream.is_foreign).then_some(Balancing {
                            is_shared: upstream.is_shared,
                            counts_statuses: uses.iter().any(|usage| usage.counts_statuses),
                            ..server.balancing
                        }),
                    };
                    of_upstream.push(configured);
                }
            }
            // nginx counts no failures of an only peer.
            if let ([only], 0) = (&mut of_upstream[..], upstream.n_down)
                && let Some(balancing) = &mut only.balancing
            {
                balancing.max_fails = 0;
            }
            // Of an address that is there twice nginx makes two peers, and nothing tells them apart.
            let is_double = |peer: &Peer| of_upstream.iter().filter(|other| other.peer == *peer).count() > 1;
            let doubles: Vec<Peer> = of_upstream
                .iter()
                .map(|configured| configured.peer.clone())
                .filter(is_double)
                .collect();
            for configured in &mut of_upstream {
                if doubles.contains(&configured.peer) {
                    configured.balancing = None;
                }
            }
            for configured in of_upstream {
                if !evaluated.peers.contains(&configured) {
                    evaluated.peers.push(configured);
                }
            }
        }
        evaluated.is_open |= self.is_open;
        evaluated.upstreams += u32::try_from(self.upstreams.len()).unwrap_or(u32::MAX);
        for problem in self.problems {
            if !evaluated.problems.contains(&problem) {
                evaluated.problems.push(problem);
            }
        }
    }
}

impl Upstream {
    fn add_use(&mut self, usage: Use) {
        if !self.uses.contains(&usage) {
            self.uses.push(usage);
        }
    }
}

/// What all uses of an upstream agree on.
fn agreed(
    uses: &[&Use],
    upstream: &Upstream,
    kind: Kind,
    release: Option<(u32, u32, u32)>,
) -> (Option<String>, Limits) {
    let same = |value: fn(&Use) -> Option<u64>| {
        let first = uses.first().and_then(|usage| value(usage));
        first.filter(|_| uses.iter().all(|usage| value(usage) == first))
    };
    let via = uses.first().map(|usage| usage.via.clone());
    let via = via.filter(|via| uses.iter().all(|usage| usage.via == *via));
    let keepalive = match (upstream.keepalive, kind) {
        (Some(count), _) => Some(count),
        (None, Kind::Stream) => Some(0),
        // Since 1.29.7 connections are kept without being told to.
        (None, Kind::Http) => match release {
            Some(release) if release < (1, 29, 7) => Some(0),
            Some(_) if upstream.is_block => Some(32),
            _ => None,
        },
    };
    let limits = Limits {
        connect_timeout_ms: same(|usage| usage.connect),
        send_timeout_ms: same(|usage| usage.send),
        read_timeout_ms: same(|usage| usage.read),
        keepalive,
        keepalive_timeout_ms: match keepalive {
            Some(0) => None,
            _ if upstream.is_block => upstream.keepalive_timeout.or(Some(DEFAULT_KEEPALIVE_TIMEOUT_MS)),
            _ => None,
        },
        asks_to_keep: {
            let mut asked = uses.iter().map(|usage| usage.keeping.is_asked(release));
            let first = asked.next().flatten();
            first.filter(|_| asked.all(|other| other == first))
        },
        source: same(|usage| usage.source)
            .and_then(|bits| u32::try_from(bits).ok())
            .map(Ipv4Addr::from_bits),
    };
    (via, limits)
}

/// An IPv4 address as a number, where it is one; `off` and a variable are none.
fn written_out(address: &str) -> Option<u64> {
    let host = address.split(':').next()?;
    host.parse::<Ipv4Addr>().ok().map(|v4| u64::from(v4.to_bits()))
}

/// Whether the address part of a target holds something unknown.
fn is_undecided(rest: &str) -> bool {
    let address = match strip_prefix_ignoring_case(rest, "unix:") {
        Some(_) => rest,
        None => &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())],
    };
    address.contains(UNKNOWN)
}

fn listens_for_udp_only(server: &[Directive]) -> bool {
    let mut listens = server
        .iter()
        .filter(|directive| directive.name() == "listen")
        .peekable();
    listens.peek().is_some() && listens.all(|listen| listen.arguments().iter().any(|word| word == "udp"))
}

/// A time in milliseconds: `1m30s`, `500ms`, a bare number of seconds; units from large to small, each at most once.
fn parse_time(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("y", 365 * 86_400_000),
        ("M", 30 * 86_400_000),
        ("w", 7 * 86_400_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let mut rest = text;
    let mut total = 0_u64;
    let mut smallest = 0;
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "" => "s",
            unit => unit,
        };
        let index = UNITS.iter().position(|(name, _)| *name == unit)?;
        if index < smallest || (letters == 0 && !rest.trim_start_matches(' ').is_empty()) {
            return None;
        }
        smallest = index + 1;
        total = total.checked_add(number.checked_mul(UNITS[index].1)?)?;
        rest = rest[letters..].trim_start_matches(' ');
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nginx::config::load::parse;

    fn layout() -> Layout {
        Layout {
            prefix: "/usr/share/nginx".into(),
            conf: "/etc/nginx/nginx.conf".into(),
            error_log: "/var/log/nginx/error.log".into(),
        }
    }

    fn evaluate_text(text: &str) -> Evaluated {
        let loaded = parse(text);
        assert_eq!(loaded.problems, [""; 0], "{text}");
        let mut evaluated = evaluate(
            &loaded.directives,
            &layout(),
            Some((1, 22, 1)),
            &mut Names::fixed(HOSTS),
        );
        for problem in &mut evaluated.problems {
            let at = problem.find("nginx.conf:").unwrap_or(0);
            problem.replace_range(..at, "");
        }
        evaluated
    }

    const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n10.0.0.9 api.example\n";

    /// `peer = upstream | server | via | connect send read | keepalive keepalive_timeout`, a line each.
    fn shown(evaluated: &Evaluated) -> Vec<String> {
        let or_dash = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let line = |configured: &ConfiguredPeer| {
            let limits = &configured.limits;
            format!(
                "{} = {} | {} | {} | {} {} {} | {} {}",
                configured.peer,
                configured.upstream,
                configured.server,
                configured.via.as_deref().unwrap_or("-"),
                or_dash(limits.connect_timeout_ms),
                or_dash(limits.send_timeout_ms),
                or_dash(limits.read_timeout_ms),
                or_dash(limits.keepalive.map(u64::from)),
                or_dash(limits.keepalive_timeout_ms),
            )
        };
        evaluated.peers.iter().map(line).collect()
    }

    fn check(text: &str, peers: &[&str], problems: &[&str]) {
        let evaluated = evaluate_text(text);
        assert_eq!(shown(&evaluated), peers, "{text}");
        assert_eq!(evaluated.problems, problems, "{text}");
    }

    #[test]
    fn blocks_give_their_peers_and_the_limits_of_the_place_that_uses_them() {
        check(
            "http {
                proxy_read_timeout 5s;
                upstream api { server 127.0.0.1:3000 weight=5; server [::1]:3001 backup; server unix:/run/a.sock;
                    server 10.0.0.1:1 down; keepalive 8; }
                server { proxy_connect_timeout 500ms;
                    location / { proxy_pass http://API/x; proxy_send_timeout 1m30s; } } }",
            &[
                "127.0.0.1:3000 = api | 127.0.0.1:3000 weight=5 | http | 500 90000 5000 | 8 60000",
                "[::1]:3001 = api | [::1]:3001 backup | http | 500 90000 5000 | 8 60000",
                "unix:/run/a.sock = api | unix:/run/a.sock | http | 500 90000 5000 | 8 60000",
            ],
            &[],
        );
    }

    #[test]
    fn a_name_is_every_address_it_has() {
        check(
            "http { upstream a { server localhost; server api.example:81; }
                server { location / { proxy_pass https://a; } } }",
            &[
                "127.0.0.1:80 = a | localhost | https | 60000 60000 60000 | 0 -",
                "[::1]:80 = a | localhost | https | 60000 60000 60000 | 0 -",
                "10.0.0.9:81 = a | api.example:81 | https | 60000 60000 60000 | 0 -",
            ],
            &[],
        );
    }

    /// Names resolved once, and whether other addresses are possible.
    fn resolved(text: &str) -> (Vec<String>, bool) {
        let evaluated = evaluate_text(text);
        let shown = |name: &ConfiguredName| {
            format!(
                "{}:{} = {} | {}",
                name.name, name.port, name.upstream, name.server
            )
        };
        (evaluated.names.iter().map(shown).collect(), evaluated.is_open)
    }

    #[test]
    fn names_that_are_resolved_once_are_told_from_all_others() {
        let (names, is_open) = resolved(
            "http { upstream a { server Api.example:81 weight=2; server 127.0.0.1:81; server gone.example; }
                upstream unused { server other.example; }
                server { location / { proxy_pass http://a; } location /b { proxy_pass https://web.example/x; }
                    location /c { proxy_pass http://unix:/run/a.sock; } } }",
        );
        assert_eq!(
            names,
            [
                "api.example:81 = a | Api.example:81 weight=2",
                "gone.example:80 = a | gone.example",
                "web.example:443 = web.example | https://web.example/x",
            ]
        );
        assert!(!is_open);
        for open in [
            "http { upstream a { zone a 64k; server api.example resolve; } server { location / { proxy_pass http://a; } } }",
            "http { server { location / { proxy_pass http://$arg_to; } } }",
            "http { server { set $to api.example; location / { proxy_pass http://$to; } } }",
            "http { server { ssl_stapling on; location / { proxy_pass http://127.0.0.1; } } }",
            "http { server { location / { access_by_lua_file x.lua; proxy_pass http://127.0.0.1; } } }",
            "mail { server { listen 25; } }",
        ] {
            assert_eq!(resolved(open), (vec![], true), "{open}");
        }
        assert!(!resolved("http { server { ssl_stapling off; } }").1);
    }

    #[test]
    fn a_place_that_sets_the_upgrade_header_may_upgrade() {
        let upgrades = |text: &str| -> Vec<bool> {
            let evaluated = evaluate_text(text);
            evaluated.peers.iter().map(|peer| peer.upgrades).collect()
        };
        let with = |place: &str, pass: &str| {
            format!(
                "http {{ server {{ {place} location /a {{ {pass} }} location /b {{ proxy_pass http://127.0.0.1:2; }} }} }}"
            )
        };
        let header = "proxy_set_header upgrade $http_upgrade;";
        let pass = "proxy_pass https://127.0.0.1:1;";
        assert_eq!(upgrades(&with("", pass)), [false, false]);
        assert_eq!(upgrades(&with("", &format!("{header} {pass}"))), [true, false]);
        assert_eq!(upgrades(&with(header, pass)), [true, true]);
    }

    #[test]
    fn a_pass_with_a_host_is_an_upstream_of_its_own() {
        check(
            "http { server {
                location /a { proxy_pass http://127.0.0.1:3000/x; }
                location /b { proxy_pass http://127.0.0.1:3000; }
                location /c { proxy_pass https://localhost; }
                location /d { fastcgi_pass unix:/run/php.sock; fastcgi_read_timeout 7; }
                location /e { grpc_pass grpcs://[::1]:50051; }
                location /f { uwsgi_pass suwsgi://127.0.0.1:3031; }
                location /g { scgi_pass 127.0.0.1:4000; memcached_pass 127.0.0.1:11211; }
                location /h { proxy_pass http://unix:/run/b.sock:/uri; } } }",
            &[
                "127.0.0.1:3000 = 127.0.0.1 | http://127.0.0.1:3000/x | http | 60000 60000 60000 | 0 -",
                "127.0.0.1:443 = localhost | https://localhost | https | 60000 60000 60000 | 0 -",
                "[::1]:443 = localhost | https://localhost | https | 60000 60000 60000 | 0 -",
                "unix:/run/php.sock = unix:/run/php.sock | unix:/run/php.sock | fastcgi | 60000 60000 7000 | 0 -",
                "[::1]:50051 = [::1] | grpcs://[::1]:50051 | grpc | 60000 60000 60000 | 0 -",
                "127.0.0.1:3031 = 127.0.0.1 | suwsgi://127.0.0.1:3031 | suwsgi | 60000 60000 60000 | 0 -",
                "127.0.0.1:4000 = 127.0.0.1 | 127.0.0.1:4000 | scgi | 60000 60000 60000 | 0 -",
                "127.0.0.1:11211 = 127.0.0.1 | 127.0.0.1:11211 | memcached | 60000 60000 60000 | 0 -",
                "unix:/run/b.sock = unix:/run/b.sock | http://unix:/run/b.sock:/uri | http | 60000 60000 60000 | 0 -",
            ],
            &[],
        );
    }

    #[test]
    fn what_several_places_disagree_about_is_unknown() {
        check(
            "http { upstream a { server 127.0.0.1:1; }
                server { location /a { proxy_pass http://a; proxy_read_timeout 1; }
                         location /b { proxy_pass https://a; proxy_read_timeout 2;
                             if ($x) { proxy_pass http://a; } } } }",
            &["127.0.0.1:1 = a | 127.0.0.1:1 | - | 60000 60000 - | 0 -"],
            &[],
        );
        check(
            "http { upstream a { server 127.0.0.1:1; } }",
            &["127.0.0.1:1 = a | 127.0.0.1:1 | - | - - - | 0 -"],
            &[],
        );
    }

    #[test]
    fn an_address_in_several_upstreams_belongs_to_each() {
        check(
            "http { upstream a { server 127.0.0.1:1; } upstream b { server 127.0.0.1:1; } }",
            &[
                "127.0.0.1:1 = a | 127.0.0.1:1 | - | - - - | 0 -",
                "127.0.0.1:1 = b | 127.0.0.1:1 | - | - - - | 0 -",
            ],
            &[],
        );
    }

    #[test]
    fn variables_are_followed_where_the_configuration_decides() {
        let rest = "| 60000 60000 60000 | 0 -";
        check(
            "http { upstream a { server 127.0.0.1:1; } upstream b { server 127.0.0.1:2; }
                upstream c { server 127.0.0.1:3; }
                map $host $backend { default a; x.example b; }
                server { set $u http://127.0.0.1:4; set $v $backend;
                    location /m { proxy_pass http://$v$request_uri; }
                    location /s { proxy_pass $u/x; }
                    location /t { proxy_pass http://c/$1; } }
                server { set $u http://127.0.0.1:5; } }",
            &[
                &format!("127.0.0.1:1 = a | 127.0.0.1:1 | http {rest}"),
                &format!("127.0.0.1:2 = b | 127.0.0.1:2 | http {rest}"),
                &format!("127.0.0.1:3 = c | 127.0.0.1:3 | http {rest}"),
                &format!("127.0.0.1:4 = 127.0.0.1 | $u/x | http {rest}"),
            ],
            &[],
        );
    }

    #[test]
    fn what_the_request_decides_is_told_and_makes_limits_uncertain() {
        check(
            "http { upstream a { server 127.0.0.1:1; }
                server { location / { proxy_pass http://a; proxy_read_timeout 1; }
                    location /h { proxy_pass http://$host:8080; } } }",
            &["127.0.0.1:1 = a | 127.0.0.1:1 | http | 60000 60000 - | 0 -"],
            &[
                "nginx.conf:3: proxy_pass http://$host:8080 is decided per request: peers that only it leads to have no name",
            ],
        );
        for (text, problem) in [
            (
                "auth_request_set $b x; location / { proxy_pass http://$b; }",
                "http://$b",
            ),
            (
                "set $b a; rewrite_by_lua_block { ngx.var.b = 'c' } location / { proxy_pass http://$b; }",
                "http://$b",
            ),
            (
                "location ~ ^/(?<b>[a-z]+)/ { set $b a; proxy_pass http://$b; }",
                "http://$b",
            ),
            ("location / { proxy_pass $http_x; }", "$http_x"),
            (
                "set $a $b; set $b $a; location / { proxy_pass http://$a; }",
                "http://$a",
            ),
            (
                "location / { fastcgi_pass unix:/run/$host.sock; }",
                "unix:/run/$host.sock",
            ),
        ] {
            let evaluated = evaluate_text(&format!("http {{ server {{ {text} }} }}"));
            let told = format!(" {problem} is decided per request: peers that only it leads to have no name");
            assert!(
                evaluated.problems.iter().any(|line| line.ends_with(&told)),
                "{text}: {evaluated:?}"
            );
        }
    }

    #[test]
    fn a_variable_with_a_name_or_a_port_is_no_block() {
        check(
            "http { upstream a { server 127.0.0.1:1; } server {
                set $x a:80; set $y other;
                location /1 { proxy_pass http://$x; } location /2 { proxy_pass http://$y; } } }",
            &["127.0.0.1:1 = a | 127.0.0.1:1 | - | - - - | 0 -"],
            &[
                "nginx.conf:3: proxy_pass http://$x may lead to a, which nginx's resolver looks up per request: its \
                 addresses have no name",
                "nginx.conf:3: proxy_pass http://$y may lead to other, which nginx's resolver looks up per request: its \
                 addresses have no name",
            ],
        );
    }

    #[test]
    fn stream_has_names_and_timeouts_of_its_own() {
        check(
            "stream { upstream db { server 127.0.0.1:5432; server 127.0.0.1; } proxy_timeout 1h;
                server { listen 1; proxy_pass db; proxy_connect_timeout 1s; }
                server { listen 2 udp; proxy_pass 127.0.0.1:53; }
                server { listen 3; proxy_pass 127.0.0.1:6379; } }",
            &[
                "127.0.0.1:5432 = db | 127.0.0.1:5432 | stream | 1000 3600000 3600000 | 0 -",
                "127.0.0.1:6379 = 127.0.0.1 | 127.0.0.1:6379 | stream | 60000 3600000 3600000 | 0 -",
            ],
            &["nginx.conf:1: no port in \"127.0.0.1\""],
        );
    }

    #[test]
    fn what_nginx_would_refuse_is_told() {
        for (text, problem) in [
            ("upstream a { server :80; }", "nginx.conf:1: no host in \":80\""),
            (
                "upstream a { server b:x; }",
                "nginx.conf:1: invalid port in \"b:x\"",
            ),
            (
                "upstream a {} upstream A {}",
                "nginx.conf:1: duplicate upstream \"A\"",
            ),
            (
                "server { location / { proxy_pass a; } }",
                "nginx.conf:1: invalid URL prefix in \"a\"",
            ),
            (
                "server { location / { fastcgi_pass a; } }",
                "nginx.conf:1: no port in \"a\"",
            ),
            (
                "upstream a { } server { location / { proxy_pass http://a:80; } }",
                "nginx.conf:1: upstream \"a\" may not have port 80",
            ),
        ] {
            check(&format!("http {{ {text} }}"), &[], &[problem]);
        }
        assert_eq!(
            evaluate_text("mail { server { } }").problems,
            ["nginx.conf:1: mail proxying is not followed"]
        );
    }

    #[test]
    fn a_peer_that_nginx_resolves_again_is_marked() {
        check(
            "http { upstream a { zone a 64k; server api.example resolve; } upstream b { server 0.0.0.1;
                balancer_by_lua_block { x } } }",
            &[
                "10.0.0.9:80 = a | api.example resolve | - | - - - | 0 -",
                "0.0.0.1:80 = b | 0.0.0.1 | - | - - - | 0 -",
            ],
            &[
                "nginx.conf:1: nginx resolves api.example again and again, so its addresses may be others by now",
                "nginx.conf:2: Lua code chooses the peers of upstream b; those it brings along have no name",
            ],
        );
    }

    #[test]
    fn logs_and_resolvers_are_found_at_every_level() {
        let evaluated = evaluate_text(
            "http { error_log logs/http.log; error_log syslog:server=127.0.0.1; resolver 127.0.0.53 [::1]:5353 valid=1s;
                server { error_log /var/log/s.log crit; location / { error_log stderr; resolver localhost; } } }",
        );
        assert_eq!(
            evaluated.error_logs,
            [
                "/var/log/nginx/error.log",
                "/usr/share/nginx/logs/http.log",
                "syslog:server=127.0.0.1",
                "/var/log/s.log",
                "stderr",
            ]
        );
        let resolvers: Vec<String> = evaluated.resolvers.iter().map(ToString::to_string).collect();
        assert_eq!(
            resolvers,
            ["127.0.0.53:53", "[::1]:5353", "127.0.0.1:53", "[::1]:53"]
        );
        assert_eq!(
            evaluated.problems,
            ["nginx.conf:2: at level crit nginx logs hardly any upstream failure"]
        );
        assert_eq!(evaluate_text("error_log /a;").error_logs, ["/a"]);
    }

    #[test]
    fn access_logs_have_the_formats_that_the_configuration_gives_them() {
        let evaluated = evaluate_text(
            "http { log_format main '$remote_addr ' \"\\\"$request\\\" \" '$status'; access_log logs/a.log main buffer=32k;
                log_format json escape=json '{\"s\":$status,' '\"n\":\"\\n\"}'; log_format unused '$status';
                server { access_log /b.log; access_log off; location / { access_log /c.log json; access_log /c.log json; }
                access_log syslog:server=127.0.0.1 main; access_log /d.log nowhere; } }
             stream { log_format main '$protocol'; access_log /s.log main; }",
        );
        let logs: Vec<String> = evaluated
            .access_logs
            .iter()
            .map(|log| format!("{} {} {:?} {}", log.path, log.name, log.escape, log.format))
            .collect();
        assert_eq!(
            logs,
            [
                "/usr/share/nginx/logs/a.log main Default $remote_addr \"$request\" $status",
                "/b.log combined Default ",
                "/c.log json Json {\"s\":$status,\"n\":\"\n\"}",
                "syslog:server=127.0.0.1 main Default $remote_addr \"$request\" $status",
            ]
        );
    }

    #[test]
    fn connections_are_kept_by_default_since_1_29_7() {
        let loaded = parse(
            "http { upstream a { server 127.0.0.1:1; } server { location / { proxy_pass http://127.0.0.1:2; } } }",
        );
        for (release, block, implicit) in [
            (Some((1, 29, 6)), Some(0), Some(0)),
            (Some((1, 29, 7)), Some(32), None),
            (None, None, None),
        ] {
            let evaluated = evaluate(&loaded.directives, &layout(), release, &mut Names::default());
            let keepalive: Vec<_> = evaluated.peers.iter().map(|peer| peer.limits.keepalive).collect();
            assert_eq!(keepalive, [block, implicit], "{release:?}");
        }
    }

    #[test]
    fn whether_a_connection_is_asked_to_be_kept() {
        let old = Some((1, 22, 1));
        let new = Some((1, 29, 7));
        let both = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
        for (release, outer, inner, asks) in [
            (old, "", "", Some(false)),
            (new, "", "", Some(true)),
            (None, "", "", None),
            (old, "", both, Some(true)),
            (old, both, "", Some(true)),
            (None, both, "", Some(true)),
            // Headers of the outer level do not count where the inner one has some.
            (old, both, "proxy_set_header Host a;", Some(false)),
            (new, both, "proxy_set_header Host a;", Some(true)),
            (old, "proxy_http_version 1.1;", "", Some(false)),
            (old, "", "proxy_set_header Connection \"\";", Some(false)),
            (old, "", "proxy_set_header Connection keep-alive;", Some(true)),
            (new, "", "proxy_set_header Connection close;", Some(false)),
            (
                old,
                "proxy_http_version 1.1;",
                "proxy_set_header Connection upgrade;",
                Some(true),
            ),
            (new, "", "proxy_http_version 1.0;", Some(false)),
            (
                old,
                "proxy_http_version 1.1;",
                "proxy_set_header Connection $upgrade;",
                None,
            ),
        ] {
            let text = format!(
                "http {{ upstream a {{ server 127.0.0.1:1; keepalive 8; }}
                 server {{ {outer} location / {{ {inner} proxy_pass http://a; }} }} }}"
            );
            let loaded = parse(&text);
            let evaluated = evaluate(&loaded.directives, &layout(), release, &mut Names::default());
            let asked: Vec<_> = evaluated
                .peers
                .iter()
                .map(|peer| peer.limits.asks_to_keep)
                .collect();
            assert_eq!(asked, [asks], "{release:?}: {outer} | {inner}");
        }
        let of = |text: &str| {
            let loaded = parse(text);
            let evaluated = evaluate(&loaded.directives, &layout(), old, &mut Names::default());
            evaluated.peers[0].limits.asks_to_keep
        };
        assert_eq!(
            of("http { server { location / { fastcgi_pass 127.0.0.1:1; } } }"),
            Some(false)
        );
        assert_eq!(
            of("http { fastcgi_keep_conn on; server { location / { fastcgi_pass 127.0.0.1:1; } } }"),
            Some(true)
        );
        // Two places that use it and do not agree.
        assert_eq!(
            of(&format!(
                "http {{ server {{ location /a {{ proxy_pass http://127.0.0.1:1; }}
                 location /b {{ {both} proxy_pass http://127.0.0.1:1; }} }} }}"
            )),
            None
        );
    }

    #[test]
    fn times_are_read_as_nginx_reads_them() {
        for (text, expected) in [
            ("60", Some(60_000)),
            ("60s", Some(60_000)),
            ("1m30s", Some(90_000)),
            ("1m 30s", Some(90_000)),
            ("1m30", Some(90_000)),
            ("250ms", Some(250)),
            ("1h", Some(3_600_000)),
            ("1M", Some(2_592_000_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            ("30s1m", None),
            ("1s1s", None),
            ("1x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_time(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_configuration_makes_it_panic(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("{"), Just("}"), Just(";"), Just("http"), Just("stream"), Just("server"), Just("upstream"),
                    Just("location"), Just("proxy_pass"), Just("http://$a"), Just("unix:"), Just("set"), Just("$a"),
                    Just("map"), Just("${"), Just("error_log"), Just("resolver"), Just("keepalive"), Just("1s"),
                    Just("http://"), Just("é"), Just("include"), Just("/nonexistent/*"), Just("if"), Just("[::1"),
                ],
                0..60,
            ),
        ) {
            let loaded = parse(&words.join(" "));
            let _ = evaluate(&loaded.directives, &layout(), None, &mut Names::default());
        }
    }

    #[test]
    fn the_source_address_is_told_where_it_is_written_out() {
        for (outer, inner, source) in [
            ("", "proxy_bind 127.0.0.1;", Some("127.0.0.1")),
            ("proxy_bind 10.0.0.1:8000;", "", Some("10.0.0.1")),
            (
                "proxy_bind 10.0.0.1;",
                "proxy_bind 127.0.0.9 transparent;",
                Some("127.0.0.9"),
            ),
            ("proxy_bind 10.0.0.1;", "proxy_bind off;", None),
            ("", "proxy_bind $remote_addr transparent;", None),
            ("", "fastcgi_bind 10.0.0.1;", None),
        ] {
            let evaluated = evaluate_text(&format!(
                "http {{ server {{ {outer} location / {{ {inner} proxy_pass http://127.0.0.1:1; }} }} }}"
            ));
            let told = evaluated.peers[0].limits.source.map(|source| source.to_string());
            assert_eq!(told.as_deref(), source, "{outer} {inner}");
        }
    }
}
