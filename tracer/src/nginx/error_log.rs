//! One line of nginx's error log, taken apart. What a trace must not hold goes here already: query strings and the
//! referrer.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use jiff::{
    civil,
    tz::{Offset, TimeZone},
};

use crate::{
    event::{Errno, LogLine, Peer, Pid},
    host::root::Root,
};

/// Zones differ by whole quarters of an hour.
const QUARTER: i64 = 900;
/// A line is read at most this long after it was written, in seconds; nginx's own clock may be behind by as much.
const FRESH: i64 = 20;
/// The zones farthest apart are 26 hours from each other.
const MAX_SHIFT: i64 = 26 * 3600;

/// What a line alone does not say.
#[derive(Clone, Debug)]
pub struct Context {
    /// The zone of its times.
    pub zone: Zone,
    /// From the pids in the log to the host's.
    pub pids: BTreeMap<u32, Pid>,
    /// The unix paths that are configured, without `unix:`: in some lines nothing separates the path from the URI.
    pub unix_paths: Vec<String>,
}

/// The time zone nginx writes its log in.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// The zone of a process: its `TZ` where that can be read, otherwise its root's `/etc/localtime`, otherwise UTC.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        let root = Root::of(pid).ok();
        let file = |path: &str| {
            let data = root.as_ref()?.read(Path::new(path), 1 << 20).ok()?;
            TimeZone::tzif(path, &data).ok()
        };
        // nginx writes its title over its environment, so this is seen only where it has none.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let value = environment
            .split(|&byte| byte == 0)
            .find_map(|entry| entry.strip_prefix(b"TZ="));
        let named = value.and_then(|value| {
            let value = std::str::from_utf8(value).ok()?;
            let name = value.strip_prefix(':').unwrap_or(value);
            match name {
                "" => Some(TimeZone::UTC),
                _ if name.starts_with('/') => file(name),
                _ => file(&format!("/usr/share/zoneinfo/{name}")).or_else(|| TimeZone::posix(name).ok()),
            }
        });
        Self(named.or_else(|| file("/etc/localtime")).unwrap_or(TimeZone::UTC))
    }

    fn to_epoch(&self, local: civil::DateTime) -> Option<i64> {
        Some(
            self.0
                .to_ambiguous_timestamp(local)
                .compatible()
                .ok()?
                .as_second(),
        )
    }
}

/// Takes a line apart that was written a moment before `now` (seconds since the epoch).
///
/// nginx writes its title over its environment, so a `TZ` it was started with cannot be seen; the first line that is
/// whole quarters of an hour away from the clock shows it, and the zone is put right.
#[must_use]
pub fn parse_fresh(line: &str, context: &mut Context, now: i64) -> Option<LogLine> {
    let mut parsed = parse(line, context)?;
    let apart = now - parsed.time;
    let shift = (apart + QUARTER / 2).div_euclid(QUARTER) * QUARTER;
    if shift != 0 && (apart - shift).abs() <= FRESH && shift.abs() <= MAX_SHIFT {
        let head = Head::parse(line)?;
        let offset = Zone::utc().to_epoch(head.time)? - (parsed.time + shift);
        let offset = Offset::from_seconds(i32::try_from(offset).ok()?).ok()?;
        context.zone = Zone(TimeZone::fixed(offset));
        parsed.time += shift;
    }
    Some(parsed)
}

/// Takes a line apart that may be old; `None` unless it was surely written within the last seconds before `now`.
#[must_use]
pub fn parse_recent(line: &str, context: &Context, now: i64) -> Option<LogLine> {
    parse(line, context).filter(|parsed| (now - parsed.time).abs() <= FRESH)
}

/// Takes a line apart; `None`: it is not the beginning of an nginx log line.
#[must_use]
pub fn parse(line: &str, context: &Context) -> Option<LogLine> {
    let line = line.trim_end_matches(['\n', '\r']);
    let head = Head::parse(line)?;
    let (message, fields) = Fields::split(head.rest);
    let (what, action) = match message.rsplit_once(" while ") {
        Some((what, action)) => (what, Some(action)),
        None => (message, None),
    };
    let (what, errno) = split_errno(what);
    let upstream = fields.upstream.map(cut_query);
    let peer = upstream.and_then(|upstream| peer(upstream, what, &context.unix_paths));
    let pid = context.pids.get(&head.pid).copied().unwrap_or(Pid(head.pid));
    Some(LogLine {
        text: stored_text(line, head.rest, message, &fields),
        time: context.zone.to_epoch(head.time)?,
        pid,
        connection: head.connection,
        level: head.level.to_owned(),
        message: without_queries(what),
        errno,
        action: action.map(without_queries),
        upstream: upstream.map(str::to_owned),
        peer,
        client: fields.client.map(str::to_owned),
        host: fields.host.map(str::to_owned),
        request: fields.request.map(split_request),
        is_udp: fields.is_udp,
    })
}

/// The fixed part: `2026/01/31 12:00:00 [error] 811#811: *45 `.
struct Head<'a> {
    time: civil::DateTime,
    level: &'a str,
    pid: u32,
    connection: Option<u64>,
    rest: &'a str,
}

impl<'a> Head<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (stamp, rest) = line.split_at_checked(19)?;
        let time = civil::DateTime::strptime("%Y/%m/%d %H:%M:%S", stamp).ok()?;
        let (level, rest) = rest.strip_prefix(" [")?.split_once("] ")?;
        let (process, rest) = rest.split_once(": ")?;
        let (pid, thread) = process.split_once('#')?;
        thread.parse::<u64>().ok()?;
        let numbered = rest.strip_prefix('*').and_then(|rest| {
            let (number, rest) = rest.split_once(' ')?;
            Some((number.parse().ok()?, rest))
        });
        Some(Self {
            time,
            level,
            pid: pid.parse().ok()?,
            connection: numbered.map(|(number, _)| number),
            rest: numbered.map_or(rest, |(_, rest)| rest),
        })
    }
}

/// What stands behind the message, in the order in which nginx writes it.
#[derive(Clone, Copy, Debug, Default)]
struct Fields<'a> {
    client: Option<&'a str>,
    server: Option<&'a str>,
    request: Option<&'a str>,
    subrequest: Option<&'a str>,
    upstream: Option<&'a str>,
    host: Option<&'a str>,
    /// The client is a `udp client`.
    is_udp: bool,
    /// As Angie writes since 1.12: the client and the server are quoted, and the request is a `request_line`.
    is_angies: bool,
    /// `bytes from/to client:…` and what else stands at the end of a stream line.
    tail: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// The message and the fields behind it.
    fn split(text: &'a str) -> (&'a str, Self) {
        let mut fields = Self::default();
        let by_udp = || {
            let (message, rest) = text.split_once(", udp client: ")?;
            Some((message, rest, true))
        };
        let by_client = text
            .split_once(", client: ")
            .map(|(message, rest)| (message, rest, false));
        let Some((message, mut rest, is_udp)) = by_client.or_else(by_udp) else {
            // The resolver and the master have no client; an upstream may still be named.
            let Some((message, rest)) = text.split_once(", upstream: \"") else {
                return (text, fields);
            };
            fields.upstream = Some(quoted(rest).0);
            return (message, fields);
        };
        fields.is_udp = is_udp;
        fields.is_angies = rest.starts_with('"');
        let unquoted = if fields.is_angies { in_quotes } else { plain };
        (fields.client, rest) = unquoted(rest);
        if let Some(behind) = rest.strip_prefix(", server: ") {
            (fields.server, rest) = unquoted(behind);
        }
        if let Some(behind) = rest
            .strip_prefix(", request_line: \"")
            .filter(|_| fields.is_angies)
        {
            let value;
            (value, rest) = request(behind);
            fields.request = Some(value);
        }
        for (name, field) in [
            (", request: \"", &mut fields.request),
            (", subrequest: \"", &mut fields.subrequest),
            (", upstream: \"", &mut fields.upstream),
            (", host: \"", &mut fields.host),
        ] {
            if let Some(behind) = rest.strip_prefix(name) {
                let value;
                (value, rest) = if name == ", request: \"" {
                    request(behind)
                } else {
                    quoted(behind)
                };
                *field = Some(value);
            }
        }
        if rest.starts_with(", bytes from/to ") {
            fields.tail = Some(rest);
        }
        (message, fields)
    }
}

/// A value without quotes ends at the next comma.
fn plain(text: &str) -> (Option<&str>, &str) {
    let end = text.find(", ").unwrap_or(text.len());
    (Some(&text[..end]), &text[end..])
}

/// A value in quotes in which none can be.
fn in_quotes(text: &str) -> (Option<&str>, &str) {
    let value = text.strip_prefix('"').and_then(|text| text.split_once('"'));
    value.map_or((None, text), |(value, rest)| (Some(value), rest))
}

/// What may follow a quoted value.
const FOLLOWERS: [&str; 7] = [
    ", request: \"",
    ", subrequest: \"",
    ", upstream: \"",
    ", host: \"",
    ", referrer: \"",
    ", bytes from/to ",
    ", PROXY header: ",
];

/// A quoted value: nginx escapes nothing, so it ends at the first quote behind which the next field or the line's end
/// stands. A line that was cut off has no end quote.
fn quoted(text: &str) -> (&str, &str) {
    ends(text)
        .next()
        .map_or((text, ""), |at| (&text[..at], &text[at + 1..]))
}

/// A request ends with its protocol; a client may write anything in front of it.
fn request(text: &str) -> (&str, &str) {
    let has_protocol = |at: &usize| {
        let mut words = text[..*at].rsplit(' ');
        words.next().is_some_and(|word| word.starts_with("HTTP/")) && words.next().is_some()
    };
    match ends(text).find(has_protocol) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => quoted(text),
    }
}

fn ends(text: &str) -> impl Iterator<Item = usize> {
    text.match_indices('"').map(|(at, _)| at).filter(move |at| {
        let behind = &text[at + 1..];
        behind.is_empty() || FOLLOWERS.iter().any(|follower| behind.starts_with(follower))
    })
}

/// Splits ` (111: Connection refused)` off a message.
fn split_errno(message: &str) -> (&str, Option<Errno>) {
    let split = || {
        let at = message.rfind(" (")?;
        // `certificate verify error: (18:self-signed certificate)` has a number of OpenSSL's.
        if message[..at].ends_with(':') {
            return None;
        }
        let (number, _) = message[at + 2..].split_once(':')?;
        Some((&message[..at], Errno(number.parse().ok()?)))
    };
    match split() {
        Some((message, errno)) => (message, Some(errno)),
        None => (message, None),
    }
}

/// `METHOD URI PROTOCOL`: the method and the path.
fn split_request(request: &str) -> (String, String) {
    let (method, rest) = request.split_once(' ').unwrap_or((request, ""));
    let uri = match rest.rsplit_once(' ') {
        Some((uri, protocol)) if protocol.starts_with("HTTP/") => uri,
        _ => rest,
    };
    (method.to_owned(), cut_query(uri).to_owned())
}

fn cut_query(text: &str) -> &str {
    text.split('?').next().unwrap_or(text)
}

/// The peer in an upstream field: `http://127.0.0.1:3000/uri`, `fastcgi://unix:/run/php.sock:`, stream's
/// `127.0.0.1:3000`.
fn peer(upstream: &str, message: &str, unix_paths: &[String]) -> Option<Peer> {
    let (scheme, rest) = match upstream.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', ':', '.']) => (Some(scheme), rest),
        _ => (None, upstream),
    };
    let Some(path) = rest.strip_prefix("unix:") else {
        let authority = rest.split('/').next().unwrap_or(rest);
        let address: SocketAddr = authority.parse().ok()?;
        return Some(Peer::Tcp(SocketAddr::new(
            address.ip().to_canonical(),
            address.port(),
        )));
    };
    if scheme.is_none() {
        return Some(Peer::Unix(path.to_owned()));
    }
    let fits = |known: &&String| {
        let behind = path.strip_prefix(known.as_str());
        behind.is_some_and(|behind| behind.is_empty() || behind.starts_with([':', '/']))
    };
    if let Some(known) = unix_paths.iter().filter(fits).max_by_key(|known| known.len()) {
        return Some(Peer::Unix(known.clone()));
    }
    // nginx has let go of the peer by then and no longer knows that it is a unix socket: no colon ends the path.
    if message.starts_with("upstream timed out") {
        return None;
    }
    let (path, _) = path.split_once(':')?;
    Some(Peer::Unix(path.to_owned()))
}

/// The line as it may be kept: the message and every field without queries, and no referrer.
fn stored_text(line: &str, rest: &str, message: &str, fields: &Fields<'_>) -> String {
    let mut text = line[..line.len() - rest.len()].to_owned();
    text.push_str(&without_queries(message));
    let mut add = |name: &str, value: Option<&str>, quote: &str| {
        if let Some(value) = value {
            text.push_str(&format!(", {name}: {quote}{value}{quote}"));
        }
    };
    let request = fields.request.map(|request| {
        let (method, path) = split_request(request);
        match request.rsplit_once(' ') {
            Some((_, protocol)) if protocol.starts_with("HTTP/") => format!("{method} {path} {protocol}"),
            _ if path.is_empty() => method,
            _ => format!("{method} {path}"),
        }
    });
    let (quote, request_name) = if fields.is_angies {
        ("\"", "request_line")
    } else {
        ("", "request")
    };
    let client = if fields.is_udp { "udp client" } else { "client" };
    add(client, fields.client, quote);
    add("server", fields.server, quote);
    add(request_name, request.as_deref(), "\"");
    add("subrequest", fields.subrequest.map(cut_query), "\"");
    add("upstream", fields.upstream.map(cut_query), "\"");
    add("host", fields.host.map(cut_query), "\"");
    text.push_str(fields.tail.unwrap_or_default());
    text
}

/// Text without anything that may be a query: from each `?` to the next blank or quote.
fn without_queries(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut is_query = false;
    for letter in text.chars() {
        match letter {
            '?' => is_query = true,
            ' ' | '"' => is_query = false,
            _ => {}
        }
        if !is_query {
            kept.push(letter);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context() -> Context {
        Context {
            zone: Zone::utc(),
            pids: BTreeMap::from([(7, Pid(4007))]),
            unix_paths: vec!["/run/a".into(), "/run/a.sock".into()],
        }
    }

    /// The parts of a line, `-` for what it does not have.
    fn shown(line: &str) -> String {
        let Some(line) = parse(line, &context()) else {
            return "no log line".to_owned();
        };
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        format!(
            "{} {} {} | {} | {} {} | {} {} | {} {} {}",
            line.pid,
            or_dash(line.connection.map(|number| number.to_string())),
            line.level,
            line.message,
            or_dash(line.errno.map(|errno| errno.0.to_string())),
            or_dash(line.action),
            or_dash(line.upstream),
            or_dash(line.peer.map(|peer| peer.to_string())),
            or_dash(line.client),
            or_dash(line.host),
            or_dash(line.request.map(|(method, path)| format!("{method} {path}"))),
        )
    }

    const HEAD: &str = "2026/11/22 01:02:03 [error] 7#7: ";

    fn check(rest: &str, expected: &str) {
        assert_eq!(shown(&format!("{HEAD}{rest}")), expected, "{rest}");
    }

    #[test]
    fn a_udp_client_is_one() {
        let rest = "*5 recv() failed (111: Connection refused) while proxying and reading from upstream, \
            udp client: 127.0.0.1, server: 127.0.0.1:5300, upstream: \"127.0.0.1:53\", bytes from/to client:5/0, \
            bytes from/to upstream:0/5";
        let line = parse(&format!("{HEAD}{rest}"), &context()).expect("a line");
        assert!(line.is_udp);
        assert_eq!(line.action.as_deref(), Some("proxying and reading from upstream"));
        assert_eq!(line.client.as_deref(), Some("127.0.0.1"));
        assert_eq!(
            line.peer.map(|peer| peer.to_string()).as_deref(),
            Some("127.0.0.1:53")
        );
        assert_eq!(line.text, format!("{HEAD}{rest}"));
        // What a backend sent over TCP may say so.
        let rest = "*5 upstream sent invalid header: \"x, udp client: 1\" while reading response header from upstream, \
            client: 127.0.0.1, server: , request: \"GET / HTTP/1.1\", upstream: \"http://127.0.0.1:3000/\"";
        assert!(
            !parse(&format!("{HEAD}{rest}"), &context())
                .expect("a line")
                .is_udp
        );
    }

    #[test]
    fn angies_lines_are_taken_apart() {
        let rest = "*5 connect() failed (111: Connection refused) while connecting to upstream, client: \"127.0.0.1\", \
            server: \"\", request_line: \"GET /app?key=1 HTTP/1.1\", upstream: \"http://127.0.0.1:3000/app\", host: \"lab\"";
        let line = parse(&format!("{HEAD}{rest}"), &context()).expect("a line");
        assert_eq!(line.request, Some(("GET".to_owned(), "/app".to_owned())));
        assert_eq!(line.client.as_deref(), Some("127.0.0.1"));
        assert_eq!(
            line.peer.map(|peer| peer.to_string()).as_deref(),
            Some("127.0.0.1:3000")
        );
        assert_eq!(line.text, format!("{HEAD}{}", rest.replace("?key=1", "")));
    }

    #[test]
    fn lines_are_taken_apart() {
        check(
            "*45 connect() failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1, server: , \
             request: \"GET /a?x=1 HTTP/1.1\", upstream: \"http://127.0.0.1:3000/a?x=1\", host: \"localhost:80\", \
             referrer: \"http://r/?y\"",
            "4007 45 error | connect() failed | 111 connecting to upstream | http://127.0.0.1:3000/a 127.0.0.1:3000 | \
             127.0.0.1 localhost:80 GET /a",
        );
        check(
            "*1 no live upstreams while connecting to upstream, client: ::1, server: s, request: \"POST / HTTP/2.0\", \
             upstream: \"http://be/\", host: \"h\"",
            "4007 1 error | no live upstreams | - connecting to upstream | http://be/ - | ::1 h POST /",
        );
        check(
            "*2 SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number) while SSL handshaking \
             to upstream, client: 10.0.0.1, server: _, request: \"GET / HTTP/1.0\", upstream: \"https://[::1]:8443/\"",
            "4007 2 error | SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number) | - \
             SSL handshaking to upstream | https://[::1]:8443/ [::1]:8443 | 10.0.0.1 - GET /",
        );
        check(
            "*3 SSL_read() failed (SSL: error:x) (104: Connection reset by peer) while reading upstream, client: c",
            "4007 3 error | SSL_read() failed (SSL: error:x) | 104 reading upstream | - - | c - -",
        );
        check(
            "*4 upstream prematurely closed connection while reading response header from upstream, client: unix:, \
             server: , request: \"GET /s HTTP/1.1\", subrequest: \"/auth?t\", upstream: \"uwsgi://[::ffff:10.0.0.1]:1\"",
            "4007 4 error | upstream prematurely closed connection | - reading response header from upstream | \
             uwsgi://[::ffff:10.0.0.1]:1 10.0.0.1:1 | unix: - GET /s",
        );
    }

    #[test]
    fn lines_without_a_client_or_a_phase_are_lines_too() {
        check(
            "api.example could not be resolved (3: Host not found)",
            "4007 - error | api.example could not be resolved | 3 - | - - | - - -",
        );
        check(
            "worker process 811 exited on signal 11 (core dumped)",
            "4007 - error | worker process 811 exited on signal 11 (core dumped) | - - | - - | - - -",
        );
        check(
            "*9 recv() failed (104: x), upstream: \"fastcgi://127.0.0.1:9000\"",
            "4007 9 error | recv() failed | 104 - | fastcgi://127.0.0.1:9000 127.0.0.1:9000 | - - -",
        );
        check("*x", "4007 - error | *x | - - | - - | - - -");
        check("", "4007 - error |  | - - | - - | - - -");
    }

    #[test]
    fn unix_peers_end_where_their_path_does() {
        let line = |message: &str, upstream: &str| {
            let line = format!("{HEAD}*1 {message}, client: c, server: s, upstream: \"{upstream}\"");
            parse(&line, &context())
                .expect("a line")
                .peer
                .map(|peer| peer.to_string())
        };
        for (upstream, expected) in [
            ("http://unix:/run/a.sock:/uri", Some("unix:/run/a.sock")),
            ("http://unix:/run/a.sock/uri", Some("unix:/run/a.sock")),
            ("http://unix:/run/a/uri:x", Some("unix:/run/a")),
            ("fastcgi://unix:/run/php.sock:", Some("unix:/run/php.sock")),
            ("http://unix:/run/b.sock:/uri:x", Some("unix:/run/b.sock")),
            ("unix:/run/stream.sock", Some("unix:/run/stream.sock")),
            ("http://unix:/run/none", None),
        ] {
            assert_eq!(
                line("connect() failed", upstream).as_deref(),
                expected,
                "{upstream}"
            );
        }
        let timed_out =
            "upstream timed out (110: Connection timed out) while reading response header from upstream";
        assert_eq!(
            line(timed_out, "http://unix:/run/a.sock/uri").as_deref(),
            Some("unix:/run/a.sock")
        );
        assert_eq!(line(timed_out, "http://unix:/run/b.sock/uri:x"), None);
    }

    #[test]
    fn stream_lines_have_a_bare_peer_and_counts() {
        let line = format!(
            "{HEAD}*3 connect() failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1, \
             server: 0.0.0.0:9000, upstream: \"[::1]:5432\", bytes from/to client:0/0, bytes from/to upstream:0/0"
        );
        assert_eq!(
            shown(&line),
            "4007 3 error | connect() failed | 111 connecting to upstream | [::1]:5432 [::1]:5432 | 127.0.0.1 - -"
        );
        assert_eq!(
            parse(&line, &context()).expect("a line").text,
            line,
            "nothing in it is secret"
        );
    }

    #[test]
    fn a_line_that_was_cut_off_keeps_what_is_there() {
        let whole = format!(
            "{HEAD}*45 recv() failed (104: x) while reading upstream, client: 127.0.0.1, server: s, request: \
             \"GET /a?secret HTTP/1.1\", upstream: \"http://127.0.0.1:3000/a?secret\", host: \"h\""
        );
        for end in (HEAD.len()..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            let line = parse(&whole[..end], &context()).expect("its head is whole");
            assert!(!line.text.contains("secret"), "{}", line.text);
            assert!(line.text.len() <= end + 1, "{}", line.text);
        }
        assert_eq!(
            shown(&whole[..whole.find("/a?secret\", host").expect("there") + 4]),
            "4007 45 error | recv() failed | 104 reading upstream | http://127.0.0.1:3000/a 127.0.0.1:3000 | 127.0.0.1 - \
             GET /a"
        );
    }

    #[test]
    fn a_client_cannot_write_fields_of_its_own() {
        check(
            "*1 m while reading upstream, client: c, server: s, request: \"GET /\", upstream: \"http://9.9.9.9:9/ HTTP/1.1\", \
             upstream: \"http://127.0.0.1:1/\", host: \"h\"",
            "4007 1 error | m | - reading upstream | http://127.0.0.1:1/ 127.0.0.1:1 | c h GET /\", upstream: \
             \"http://9.9.9.9:9/",
        );
    }

    #[test]
    fn other_lines_are_no_log_lines() {
        for line in [
            "",
            "PHP message: x",
            "2026/11/22 01:02:03 error",
            "2026/13/22 01:02:03 [error] 7#7: x",
            "2026/11/22 01:02:03 [error] x#7: x",
            "2026/11/22 01:02:03 [error] 7: x",
            "2026/11/22 01:02:03ä[error] 7#7: x",
        ] {
            assert_eq!(shown(line), "no log line", "{line}");
        }
    }

    #[test]
    fn local_time_is_told_in_its_zone() {
        let zone = |posix: &str| Context {
            zone: Zone(TimeZone::posix(posix).expect("a zone")),
            ..context()
        };
        let time = |line: &str, context: &Context| {
            parse(&format!("{line} [error] 1#1: x"), context).map(|line| line.time)
        };
        assert_eq!(time("1970/01/01 00:00:10", &context()), Some(10));
        let berlin = zone("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(time("1970/01/01 01:00:10", &berlin), Some(10));
        assert_eq!(time("2026/07/01 02:00:00", &berlin), Some(1_782_864_000));
        // An hour that the clock skipped, and one that it showed twice, are still times.
        assert!(time("2026/03/29 02:30:00", &berlin).is_some());
        assert!(time("2026/10/25 02:30:00", &berlin).is_some());
        let own = Zone::of(Pid(std::process::id()));
        assert!(own.to_epoch(civil::date(1970, 1, 1).at(0, 0, 0, 0)).is_some());
    }

    #[test]
    fn a_zone_that_contradicts_the_clock_is_put_right() {
        let mut context = context();
        let mut time = |line: &str, now| {
            parse_fresh(&format!("{line} [error] 1#1: x"), &mut context, now).map(|line| line.time)
        };
        // 2026/11/22 03:20:12 UTC.
        let now = 1_795_317_612;
        assert_eq!(time("2026/11/22 03:20:12", now), Some(now));
        assert_eq!(time("2026/11/22 03:20:02", now), Some(now - 10));
        // Late by something else than a zone: nothing is concluded.
        assert_eq!(time("2026/11/22 03:13:00", now), Some(now - 432));
        // Tokyo, from the first line on; then half an hour more for another reason.
        assert_eq!(time("2026/11/22 12:20:11", now), Some(now - 1));
        assert_eq!(time("2026/11/22 12:20:12", now), Some(now));
        assert_eq!(time("2026/11/22 12:50:12", now), Some(now));
        assert_eq!(time("2026/11/21 17:20:12", now), Some(now));
        assert_eq!(time("2026/11/20 17:20:12", now - 86_400), Some(now - 86_400));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(rest in "\\PC{0,200}", line in "\\PC{0,80}") {
            let _ = parse(&line, &context());
            let parsed = parse(&format!("{HEAD}{rest}"), &context()).expect("its head is whole");
            prop_assert!(parsed.text.len() <= HEAD.len() + rest.len() + 1);
        }

        #[test]
        fn no_query_and_no_referrer_is_kept(
            before in "[a-z/\",:. ?]{0,12}",
            after in "[a-z/\",:. ?]{0,12}",
            field in 0_usize..5,
        ) {
            let secret = format!("{before}?SECRET{after}");
            let value = |index: usize| if index == field { secret.replace(' ', "") } else { "/plain".to_owned() };
            let line = format!(
                "{HEAD}*1 m \"{}\" while reading upstream, client: c, server: s, request: \"GET {} HTTP/1.1\", \
                 subrequest: \"{}\", upstream: \"http://127.0.0.1:1{}\", host: \"h\", referrer: \"{}\"",
                value(0), value(1), value(2), value(3), value(4),
            );
            let parsed = parse(&line, &context()).expect("a line");
            prop_assert!(!parsed.text.contains("SECRET"), "{line}\n{}", parsed.text);
            let kept = format!("{parsed:?}");
            prop_assert!(!kept.contains("SECRET"), "{line}\n{kept}");
        }
    }
}
