//! What nginx's own lines mean: which of them is an attempt, which ends one, and which is neither.
//!
//! A message is judged by its text, and the same judgement serves a format string heard at its source
//! (`connect() to %V failed`) and a finished line of a log file (`connect() to 10.0.0.1:80 failed`).

use crate::{
    engine::text::strerror,
    event::{Errno, Line, LineId, LogLine, Peer},
};

/// What a line says about upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The line is the whole attempt: `connect(2)` itself failed.
    ConnectAtOnce,
    /// The line is the whole attempt: `bind(2)` failed; its argument is the local address.
    Bind,
    /// The line is the whole attempt: `socket(2)` failed.
    Socket,
    /// The line is the whole attempt: nginx ran out of `worker_connections`.
    WorkerConnections,
    /// The line is the whole attempt: no peer was worth a try.
    NoLiveUpstreams,
    /// The line is the whole attempt: nginx's resolver found no address for a name of this request.
    Unresolved,
    /// The line is the whole attempt: one of a UDP proxy's, whose sockets are not followed. Only the log file tells.
    Datagram,
    /// A connect that had begun failed.
    Connect,
    /// nginx's timer ran out.
    TimedOut,
    /// The peer closed before the answer was whole.
    ClosedEarly,
    /// A read or write failed with an errno.
    Io,
    /// The peer closed during the TLS handshake.
    HandshakeClosed,
    /// The answer or the TLS handshake was not acceptable.
    Unacceptable,
    /// Something else at error level about an upstream.
    Other,
    /// Nothing about an attempt.
    Nothing,
}

impl Said {
    /// Its timer ran out while nginx was still connecting, as it says.
    pub fn is_connecting_timeout(&self) -> bool {
        let action = self.action.as_deref().unwrap_or_default();
        self.meaning == Meaning::TimedOut && action.starts_with("connecting")
    }
}

impl Meaning {
    /// The line is an attempt by itself: no socket of ours ends with it.
    pub fn stands_alone(self) -> bool {
        matches!(
            self,
            Self::ConnectAtOnce
                | Self::Bind
                | Self::Socket
                | Self::WorkerConnections
                | Self::NoLiveUpstreams
                | Self::Unresolved
                | Self::Datagram
        )
    }
}

/// A line of nginx about an upstream, from its source or from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// What it means.
    pub meaning: Meaning,
    /// Its number, when it was heard at its source.
    pub line: Option<LineId>,
    /// Its errno.
    pub errno: Option<Errno>,
    /// How nginx's resolver ended, in its numbering ([`resolver_says`]), for [`Meaning::Unresolved`].
    pub resolver: Option<u32>,
    /// The phase text.
    pub action: Option<String>,
    /// The peer it names in its own message.
    pub peer: Option<Peer>,
    /// The address it names, whatever it is.
    pub argument: Option<String>,
    /// The message as nginx prints it: text, errno, phase.
    pub text: String,
}

impl Said {
    /// From a line heard at its source.
    pub fn heard(line: &Line) -> Self {
        let message = heard_text(line);
        let argument = line.argument.clone().filter(|_| line.message.contains("%V"));
        let meaning = meaning(
            &message,
            line.level,
            line.action.as_deref(),
            line.connection.is_some(),
        );
        let resolver = line.number.and_then(|number| u32::try_from(number).ok());
        Self {
            meaning,
            line: Some(line.id),
            errno: line.errno,
            resolver,
            action: line.action.clone(),
            peer: argument.as_deref().and_then(|text| text.parse().ok()),
            argument,
            text: match resolver {
                Some(code) => whole_of_resolver(&message, code),
                None => whole(&message, line.errno, line.action.as_deref()),
            },
        }
    }

    /// What nginx will have logged about a `connect()` that the kernel saw fail; its text is not known.
    pub fn by_connect(peer: Peer, errno: Errno) -> Self {
        Self {
            meaning: Meaning::ConnectAtOnce,
            line: None,
            errno: Some(errno),
            resolver: None,
            action: None,
            argument: Some(peer.to_string()),
            peer: Some(peer),
            text: String::new(),
        }
    }

    /// Not nginx said it.
    pub fn is_by_kernel(&self) -> bool {
        self.text.is_empty()
    }

    /// From a line of a log file.
    pub fn logged(log: &LogLine) -> Self {
        let level = match log.level.as_str() {
            "emerg" => 1,
            "alert" => 2,
            "crit" => 3,
            "error" => 4,
            _ => 5,
        };
        let argument = between(&log.message, "connect() to ", " failed")
            .or_else(|| between(&log.message, "bind(", ") failed"))
            .or_else(|| of_module(&log.message).strip_suffix(UNRESOLVED))
            .or_else(|| of_module(&log.message).strip_prefix(NO_RESOLVER))
            .map(str::to_owned);
        let meaning = meaning(
            &log.message,
            level,
            log.action.as_deref(),
            log.connection.is_some(),
        );
        let is_datagram = log.is_udp && meaning != Meaning::Nothing && !meaning.stands_alone();
        let meaning = if is_datagram { Meaning::Datagram } else { meaning };
        let errno = log.errno.filter(|_| !is_of_resolver(&log.message));
        let resolver = log.errno.filter(|_| errno.is_none());
        let resolver = resolver.and_then(|code| u32::try_from(code.0).ok());
        Self {
            meaning,
            line: None,
            errno,
            resolver,
            action: log.action.clone(),
            peer: match meaning {
                Meaning::Datagram => log.peer.clone(),
                _ => argument.as_deref().and_then(|text| text.parse().ok()),
            },
            argument,
            text: match resolver {
                Some(code) => whole_of_resolver(&log.message, code),
                None => whole(&log.message, errno, log.action.as_deref()),
            },
        }
    }
}

/// Whether what nginx said could not be read where it was heard: its text was on a page that the worker had never
/// touched. The log file has it.
pub fn is_unread(line: &Line) -> bool {
    line.message.is_empty() && line.level <= 4
}

/// Whether nginx's resolver itself says it: what its own sockets and nameservers do, while requests wait for names.
///
/// Errors of its sockets come with a phase; answers that it cannot use go to the log of the whole process.
pub fn is_by_resolver(message: &str, action: Option<&str>, has_connection: bool) -> bool {
    match action {
        Some(action) => action == "resolving" || action.starts_with("resolving, resolver: "),
        None => {
            !has_connection
                && (message.contains("DNS")
                    || message.contains("resolver")
                    || message.starts_with("wrong ident"))
        }
    }
}

/// Whether a line of the log file is this line heard at its source.
pub fn is_same(line: &Line, log: &LogLine) -> bool {
    let agree = |one: Option<u64>, other: Option<u64>| one.is_none() || other.is_none() || one == other;
    // What the resolver's lines have in parentheses is no errno.
    let errno = log.errno.filter(|_| !is_of_resolver(&log.message));
    if line.worker != log.pid || line.errno != errno || !agree(line.connection, log.connection) {
        return false;
    }
    let heard = heard_text(line);
    // A pre-formatted text may be cut at a different place by either side; its beginning identifies it.
    let head = |text: &str| text.chars().take(24).collect::<String>();
    let is_numbered = line.message.starts_with("%ui ") && log.message.ends_with(&heard);
    heard.is_empty() || head(&heard) == head(&log.message) || log.message.starts_with(&heard) || is_numbered
}

/// The message with its first argument filled in, up to the first one that is not known.
fn heard_text(line: &Line) -> String {
    let argument = line.argument.as_deref().unwrap_or("");
    if line.message.starts_with("%*s") {
        return argument.to_owned();
    }
    // `%ui worker_connections are not enough`: the number alone is not known.
    if let Some(known) = line.message.strip_prefix("%ui ") {
        return known.to_owned();
    }
    let filled = line.message.replacen("%V", argument, 1);
    match filled.split_once('%') {
        Some((known, _)) => known.trim_end_matches([' ', '"', ':', '(']).to_owned(),
        None => filled,
    }
}

fn whole(message: &str, errno: Option<Errno>, action: Option<&str>) -> String {
    let mut text = message.to_owned();
    if let Some(errno) = errno {
        text += &format!(" ({}: {})", errno.0, strerror(errno));
    }
    if let Some(action) = action {
        text += &format!(" while {action}");
    }
    text
}

/// Behind the name, in nginx's line about a name of a request.
const UNRESOLVED: &str = " could not be resolved";
/// Before the name.
const NO_RESOLVER: &str = "no resolver defined to resolve ";

fn is_of_resolver(message: &str) -> bool {
    message.ends_with(UNRESOLVED)
}

/// What nginx says behind a number of its resolver (`ngx_resolver_strerror`, nginx 1.22 to 1.31).
#[must_use]
pub fn resolver_says(code: u32) -> &'static str {
    match code {
        1 => "Format error",
        2 => "Server failure",
        3 => "Host not found",
        4 => "Unimplemented",
        5 => "Operation refused",
        110 => "Operation timed out",
        _ => "Unknown error",
    }
}

fn whole_of_resolver(message: &str, code: u32) -> String {
    format!("{message} ({code}: {})", resolver_says(code))
}

/// Before the lines of `ngx_http_proxy_connect_module` (CONNECT through nginx), which Tengine 3.2 brings along.
const PROXY_CONNECT: &str = "proxy_connect: ";

/// The message without its module's mark.
fn of_module(message: &str) -> &str {
    message.strip_prefix(PROXY_CONNECT).unwrap_or(message)
}

fn meaning(message: &str, level: u8, action: Option<&str>, has_connection: bool) -> Meaning {
    let message = of_module(message);
    // For a client's request, and not for a `server NAME resolve` that nobody waits for.
    // nginx looks up more than upstreams: a client's name (mail), an OCSP responder.
    let is_for_upstream = action.is_none_or(is_upstream_action);
    if level == 4
        && has_connection
        && is_for_upstream
        && (is_of_resolver(message) || message.starts_with(NO_RESOLVER))
    {
        return Meaning::Unresolved;
    }
    // The resolver and the log itself connect too, but no client connection waits for them.
    let is_upstream = match action {
        Some(action) => is_upstream_action(action),
        None => has_connection,
    };
    // A text that could not be read may be anything.
    if level > 4 || !is_upstream || message.is_empty() || is_ignored(message) {
        return Meaning::Nothing;
    }
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| message.starts_with(prefix));
    if message.starts_with("connect() to ") {
        Meaning::ConnectAtOnce
    } else if message.starts_with("bind(") {
        Meaning::Bind
    } else if message.starts_with("socket() failed") {
        Meaning::Socket
    } else if message.starts_with("no live upstreams") {
        Meaning::NoLiveUpstreams
    } else if message.contains("worker_connections are not enough") {
        Meaning::WorkerConnections
    } else if starts(&["connect() failed", "upstream connect failed"]) {
        Meaning::Connect
    } else if starts(&[
        "upstream timed out",
        "upstream connect timed out (",
        "upstream read timed out (",
        "upstream write timed out (",
    ]) {
        Meaning::TimedOut
    } else if message.starts_with("upstream prematurely closed") {
        Meaning::ClosedEarly
    } else if message.starts_with("peer closed connection in SSL handshake") {
        Meaning::HandshakeClosed
    } else if starts(&[
        "recv() ",
        "readv() ",
        "send() ",
        "writev() ",
        "sendfile() ",
        "SSL_read() ",
        "SSL_write() ",
    ]) {
        Meaning::Io
    } else if starts(&[
        "SSL_do_handshake()",
        "upstream SSL certificate",
        "upstream sent ",
        "upstream prematurely sent ",
        "upstream rejected ",
    ]) {
        Meaning::Unacceptable
    } else if action.is_some() {
        Meaning::Other
    } else {
        Meaning::Nothing
    }
}

fn is_upstream_action(action: &str) -> bool {
    action.contains("upstream")
        || matches!(
            action,
            "sending to client"
                | "proxying connection"
                | "proxying and sending to client"
                | "proxying upgraded connection"
        )
}

/// Lines about an upstream that end no attempt, and lines about clients. What scripts write (OpenResty's `[lua]`, njs' `js:`)
/// has the phase of the request that they run in, and so have the notes of Tengine's multiplexed upstreams.
fn is_ignored(message: &str) -> bool {
    const BEGINNINGS: [&str; 14] = [
        "FastCGI sent in stderr",
        "upstream server temporarily disabled",
        "upstream sent no valid HTTP/1.0 header",
        "client ",
        "epoll_wait() reported",
        "an upstream response is buffered",
        "a client request body",
        "open() ",
        "[lua] ",
        "lua ",
        "failed to run balancer_by_lua",
        "js: ",
        "multi: connect reuse unfinished",
        "http finalize upstream fake_r",
    ];
    // Heard at its source, as `js: %*s`, of what follows nothing is known.
    message == "js"
        || BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
        || message.ends_with("ignored")
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?
        .split_once(after)
        .map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Ktime, Pid};

    fn line(message: &str, argument: Option<&str>, errno: Option<i32>, action: &str) -> Line {
        Line {
            id: LineId {
                at: Ktime(1),
                worker: Pid(7),
            },
            worker: Pid(7),
            at: Ktime(0),
            level: 4,
            errno: errno.map(Errno),
            connection: Some(9),
            message: message.to_owned(),
            action: Some(action.to_owned()),
            argument: argument.map(str::to_owned),
            number: None,
            route: None,
            denied: None,
            programs: None,
            follows: None,
        }
    }

    #[test]
    fn a_heard_line_reads_as_nginx_prints_it() {
        let heard = Said::heard(&line(
            "connect() to %V failed",
            Some("unix:/run/a.sock"),
            Some(2),
            "connecting to upstream",
        ));
        assert_eq!(
            heard.text,
            "connect() to unix:/run/a.sock failed (2: No such file or directory) while connecting to upstream"
        );
        assert_eq!(
            (heard.meaning, heard.peer),
            (Meaning::ConnectAtOnce, Some(Peer::Unix("/run/a.sock".into())))
        );
    }

    #[test]
    fn a_number_in_front_is_not_known_at_its_source() {
        let heard = line(
            "%ui worker_connections are not enough",
            None,
            None,
            "connecting to upstream",
        );
        assert_eq!(Said::heard(&heard).meaning, Meaning::WorkerConnections);
        let logged = LogLine {
            message: "32 worker_connections are not enough".to_owned(),
            pid: heard.worker,
            connection: heard.connection,
            ..crate::samples::log_line()
        };
        let without_errno = LogLine {
            errno: None,
            ..logged
        };
        assert!(is_same(&heard, &without_errno));
        let other = LogLine {
            message: "32 worker_connections exceed open file resource limit: 16".to_owned(),
            ..without_errno
        };
        assert!(!is_same(&heard, &other));
    }

    /// Lines as the forks' sources have them, and what they mean.
    #[test]
    fn the_forks_lines_mean_what_nginx_s_mean() {
        use crate::nginx::error_log::{Context, Zone, parse};
        use Meaning::{
            Connect, ConnectAtOnce, NoLiveUpstreams, Nothing, Other, TimedOut, Unacceptable, Unresolved,
        };
        let behind = ", client: 10.0.0.9, server: shop, request: \"GET /a HTTP/1.1\", upstream: \"http://10.0.0.1:80/a\", host: \"shop\"";
        // Since 1.12 Angie quotes client and server, and its request is a request_line (ngx_http_request.c).
        let angies = ", client: \"10.0.0.9\", server: \"shop\", request_line: \"GET /a HTTP/1.1\", upstream: \"http://10.0.0.1:80/a\", host: \"shop\"";
        let connecting = " while connecting to upstream";
        let reading = " while reading response header from upstream";
        for (source, text, meaning) in [
            // freenginx 1.27.2, src/http/ngx_http_upstream.c and src/event/ngx_event_connect.c: nginx's own texts.
            (
                "freenginx",
                format!("*7 connect() failed (111: Connection refused){connecting}{behind}"),
                Connect,
            ),
            (
                "freenginx",
                format!("*7 no live upstreams{connecting}{behind}"),
                NoLiveUpstreams,
            ),
            (
                "freenginx",
                format!("*7 upstream timed out (110: Connection timed out){reading}{behind}"),
                TimedOut,
            ),
            // Angie 1.13.0, the same files; HTTP/3 to upstreams has no socket that connects.
            (
                "angie",
                format!("*7 connect() to 10.0.0.1:80 failed (113: No route to host){connecting}{angies}"),
                ConnectAtOnce,
            ),
            (
                "angie",
                format!("*7 upstream timed out (110: Connection timed out){connecting}{angies}"),
                TimedOut,
            ),
            (
                "angie",
                format!("*7 http3 connection timed out (110: Connection timed out){connecting}{angies}"),
                Other,
            ),
            (
                "angie",
                format!("*7 upstream sent invalid status \"9x\"{reading}{angies}"),
                Unacceptable,
            ),
            // Angie 1.13.0, src/core/ngx_resolver.c: its resolver reads resolv.conf.
            (
                "angie",
                "cannot parse IP address (x) from \"/etc/resolv.conf\"".to_owned(),
                Nothing,
            ),
            // Tengine 3.2.0, src/http/ngx_http_upstream.c.
            (
                "tengine",
                format!("*7 connect() failed (111: Connection refused){connecting}{behind}"),
                Connect,
            ),
            (
                "tengine",
                format!("*7 upstream prematurely sent response{reading}{behind}"),
                Unacceptable,
            ),
            (
                "tengine",
                format!("*7 multi: connect reuse unfinished 000055D5{connecting}{behind}"),
                Nothing,
            ),
            (
                "tengine",
                format!("*7 http finalize upstream fake_r 000055D5{reading}{behind}"),
                Nothing,
            ),
            // Tengine 3.2.0, modules/ngx_http_upstream_check_module: its own connections, by no request.
            (
                "tengine",
                "check time out with peer: 10.0.0.1:80 ".to_owned(),
                Nothing,
            ),
            ("tengine", "disable check peer: 10.0.0.1:80 ".to_owned(), Nothing),
            ("tengine", "enable check peer: 10.0.0.1:80 ".to_owned(), Nothing),
            (
                "tengine",
                "check peer closed connection with an incomplete response, peer: 10.0.0.1:80 ".to_owned(),
                Nothing,
            ),
            (
                "tengine",
                "check protocol http error with peer: 10.0.0.1:80 ".to_owned(),
                Nothing,
            ),
            (
                "tengine",
                "http parse status line error with peer: 10.0.0.1:80 ".to_owned(),
                Nothing,
            ),
            (
                "tengine",
                "upstream sent invalid FastCGI record type: 9".to_owned(),
                Nothing,
            ),
            (
                "tengine",
                "connect() to 10.0.0.1:80 failed (113: No route to host)".to_owned(),
                Nothing,
            ),
            (
                "tengine",
                "recv() failed (104: Connection reset by peer)".to_owned(),
                Nothing,
            ),
            // Tengine 3.2.0, modules/ngx_http_upstream_dynamic_module: the name of a request.
            (
                "tengine",
                format!("*7 app.lab could not be resolved (3: Host not found){connecting}{behind}"),
                Unresolved,
            ),
            // Tengine 3.2.0, modules/ngx_http_proxy_connect_module.
            (
                "tengine",
                format!(
                    "*7 proxy_connect: upstream connect failed (111: Connection refused){connecting}{behind}"
                ),
                Connect,
            ),
            (
                "tengine",
                format!(
                    "*7 proxy_connect: upstream connect timed out (peer:10.0.0.1:80){connecting}{behind}"
                ),
                TimedOut,
            ),
            (
                "tengine",
                format!(
                    "*7 proxy_connect: app.lab could not be resolved (3: Host not found){connecting}{behind}"
                ),
                Unresolved,
            ),
            (
                "tengine",
                format!("*7 proxy_connect: client read timed out while proxying connection{behind}"),
                Nothing,
            ),
            // lua-nginx-module 0.10.32, src/ngx_http_lua_log.c ("%s%*s" with "[lua] "): whatever runs in the request's phase.
            (
                "openresty",
                format!("*7 [lua] balancer.lua:20: no server for shop{connecting}{behind}"),
                Nothing,
            ),
            (
                "openresty",
                format!("*7 [lua] header_filter_by_lua:2: upstream timed out{reading}{behind}"),
                Nothing,
            ),
            (
                "openresty",
                format!("*7 [lua] log_by_lua(nginx.conf:9):3: slow while sending to client{behind}"),
                Nothing,
            ),
            (
                "openresty",
                format!("*7 [lua] access.lua:7: connect() failed, client: x{behind}"),
                Nothing,
            ),
            // The same, src/ngx_http_lua_balancer.c: no peer was tried. The second goes on in the next lines of the log.
            (
                "openresty",
                format!("*7 lua balancer: no peer set{connecting}{behind}"),
                Nothing,
            ),
            (
                "openresty",
                "*7 failed to run balancer_by_lua*: balancer_by_lua:2: no".to_owned(),
                Nothing,
            ),
            // And after the peer was set, nginx's own.
            (
                "openresty",
                format!("*7 connect() failed (111: Connection refused){connecting}{behind}"),
                Connect,
            ),
            // The same, src/ngx_http_lua_socket_tcp.c.
            (
                "openresty",
                format!("*7 lua tcp socket connect timed out, when connecting to 10.0.0.1:80{behind}"),
                Nothing,
            ),
            (
                "openresty",
                format!("*7 lua tcp socket read timed out{behind}"),
                Nothing,
            ),
            (
                "openresty",
                format!("*7 attempt to send data on a closed socket: u:0000, c:0000, ft:0 eof:0{behind}"),
                Nothing,
            ),
        ] {
            let line = format!("2026/01/31 12:00:00 [error] 811#811: {text}");
            let context = Context {
                zone: Zone::utc(),
                pids: std::collections::BTreeMap::new(),
                unix_paths: vec![],
            };
            let log = parse(&line, &context).unwrap_or_else(|| panic!("{source}: {line}"));
            let said = Said::logged(&log);
            assert_eq!(said.meaning, meaning, "{source}: {line}");
            if meaning != Nothing {
                assert_eq!(log.client.as_deref(), Some("10.0.0.9"), "{line}");
                assert_eq!(log.request, Some(("GET".to_owned(), "/a".to_owned())), "{line}");
                assert_eq!(
                    log.peer,
                    Some(Peer::Tcp("10.0.0.1:80".parse().unwrap())),
                    "{line}"
                );
            }
            if meaning == Unresolved {
                assert_eq!(said.argument.as_deref(), Some("app.lab"), "{line}");
                assert_eq!(said.resolver, Some(3), "{line}");
            }
        }
    }

    #[test]
    fn what_ends_no_attempt_means_nothing() {
        let meaning = |message, action| Said::heard(&line(message, None, None, action)).meaning;
        let reading = "reading response header from upstream";
        assert_eq!(
            meaning("FastCGI sent in stderr: \"%*s\"", reading),
            Meaning::Nothing
        );
        assert_eq!(
            meaning("upstream sent no valid HTTP/1.0 header", reading),
            Meaning::Nothing
        );
        assert_eq!(meaning("client timed out", "sending to client"), Meaning::Nothing);
        // As OpenResty and njs pass on what scripts write.
        assert_eq!(meaning("%s%*s", reading), Meaning::Nothing);
        assert_eq!(meaning("js: %*s", reading), Meaning::Nothing);
        assert_eq!(
            meaning("failed to run balancer_by_lua*: %*s", "connecting to upstream"),
            Meaning::Nothing
        );
        assert_eq!(meaning("connect() to %V failed", "resolving"), Meaning::Nothing);
        assert_eq!(
            meaning("upstream prematurely closed connection", reading),
            Meaning::ClosedEarly
        );
    }
}
