//! The layout of an access log, as `log_format` says it: compiled once, and a line taken apart by it.
//!
//! A line is of a format where all of the format's text is in it and each variable's value may be that variable's. Values
//! are taken as short as they can be: nginx escapes quotes, and lists are known by their separators.

use std::{borrow::Cow, fmt};

use jiff::{Timestamp, fmt::strtime};

use crate::event::{AccessLog, Escape};

/// nginx's predefined format.
pub const COMBINED: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_referer\" \
     \"$http_user_agent\"";

/// So many beginnings of values are tried before a line counts as of another format.
const MAX_STEPS: u32 = 5_000;

/// More tries than this are no request's.
const MAX_TRIES: usize = 100;

/// A variable whose value tells something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Msec,
    TimeIso8601,
    TimeLocal,
    RequestTime,
    UpstreamAddr,
    UpstreamStatus,
    UpstreamResponseTime,
    UpstreamConnectTime,
    Pid,
    Connection,
    Request,
    RequestMethod,
    RequestUri,
    Uri,
    Status,
    RemoteAddr,
}

const FIELDS: [(&str, Field); 17] = [
    ("msec", Field::Msec),
    ("time_iso8601", Field::TimeIso8601),
    ("time_local", Field::TimeLocal),
    ("request_time", Field::RequestTime),
    ("upstream_addr", Field::UpstreamAddr),
    ("upstream_status", Field::UpstreamStatus),
    ("upstream_response_time", Field::UpstreamResponseTime),
    ("upstream_connect_time", Field::UpstreamConnectTime),
    ("pid", Field::Pid),
    ("connection", Field::Connection),
    ("request", Field::Request),
    ("request_method", Field::RequestMethod),
    ("request_uri", Field::RequestUri),
    ("uri", Field::Uri),
    ("document_uri", Field::Uri),
    ("status", Field::Status),
    ("remote_addr", Field::RemoteAddr),
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `None`: a variable that tells nothing here.
    Value(Option<Field>),
}

/// A compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Its name in the configuration, for messages.
    pub name: String,
    escape: Escape,
    parts: Vec<Part>,
}

/// Why a format cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    /// It tells no time.
    #[error("has no time of the request's end: $msec, $time_iso8601 or $time_local")]
    NoTime,
    /// It tells no result.
    #[error("has neither $status nor $upstream_status")]
    NoStatus,
}

/// A request as its line tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// When it ended, in milliseconds since the epoch.
    pub ended_ms: i64,
    /// How exact that is, in milliseconds: 1, or 1000.
    pub within_ms: i64,
    /// How long it took, in milliseconds.
    pub took_ms: Option<i64>,
    /// Its tries, in their order, over all internal redirects; `None`: the format does not tell.
    pub tries: Option<Vec<Try>>,
    /// The worker's pid, as nginx sees it.
    pub pid: Option<u32>,
    /// The client's connection, by nginx's number.
    pub connection: Option<u64>,
    /// Its method.
    pub method: Option<String>,
    /// Its path, without the query string.
    pub path: Option<String>,
    /// The path may be another than the client asked for: nginx rewrote or normalised it.
    pub is_rewritten: bool,
    /// What the client was told.
    pub status: Option<u16>,
    /// The client's address.
    pub client: Option<String>,
}

/// One try at an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Try {
    /// The peer's address, or where none could be tried the upstream's name.
    pub addr: String,
    /// The status: the peer's own, or what nginx made of its failure; `None`: none (`-`), or the format does not tell.
    pub status: Option<u16>,
    /// The format tells statuses.
    pub has_status: bool,
    /// How long it took, in milliseconds.
    pub took_ms: Option<i64>,
    /// How long the connect took, in milliseconds.
    pub connect_ms: Option<i64>,
    /// Another one of the same upstream block followed it.
    pub is_retried: bool,
}

impl Try {
    /// Whether nginx took it for a failure, as far as its line tells.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.is_retried || (self.has_status && self.status.is_none_or(|status| status >= 500))
    }
}

impl Access {
    /// What the client was told is an upstream's failure, maybe.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.status
            .is_some_and(|status| status == 499 || (500..600).contains(&status))
    }

    /// The line itself tells of a failed try.
    #[must_use]
    pub fn has_failed_try(&self) -> bool {
        self.tries.iter().flatten().any(Try::has_failed)
    }

    /// When it began at the earliest.
    #[must_use]
    pub fn began_ms(&self) -> Option<i64> {
        Some(self.ended_ms - self.took_ms?)
    }
}

impl Format {
    /// Compiles what `log_format` says; `combined` is nginx's own.
    #[must_use]
    pub fn new(log: &AccessLog) -> Self {
        let text = match (log.name.as_str(), log.format.as_str()) {
            ("combined", "") | (_, "combined") => COMBINED,
            (_, text) => text,
        };
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let part = match variable(rest) {
                Some((name, after)) => {
                    rest = after;
                    let field = FIELDS.iter().find(|(known, _)| *known == name);
                    Part::Value(field.map(|(_, field)| *field))
                }
                None => {
                    let end = rest
                        .char_indices()
                        .find(|(at, char)| *char == '$' && variable(&rest[*at..]).is_some())
                        .map_or(rest.len(), |(at, _)| at);
                    let (text, after) = rest.split_at(end);
                    rest = after;
                    Part::Text(text.to_owned())
                }
            };
            // Where one ends and the next begins, nobody knows.
            if let (Some(Part::Value(last)), Part::Value(_)) = (parts.last_mut(), &part) {
                *last = None;
                continue;
            }
            parts.push(part);
        }
        Self {
            name: log.name.clone(),
            escape: log.escape,
            parts,
        }
    }

    /// Compiles a format given by hand, which may begin with `escape=json`.
    #[must_use]
    pub fn given(text: &str) -> Self {
        let (escape, format) = text
            .strip_prefix("escape=")
            .and_then(|rest| rest.split_once(' '))
            .and_then(|(name, format)| Some((Escape::named(name)?, format)))
            .unwrap_or((Escape::Default, text));
        Self::new(&AccessLog {
            name: if format == "combined" {
                format
            } else {
                "--log-format"
            }
            .to_owned(),
            format: format.to_owned(),
            escape,
            ..AccessLog::default()
        })
    }

    /// Whether lines of it can be matched at all.
    pub fn check(&self) -> Result<(), Unusable> {
        let times = [Field::Msec, Field::TimeIso8601, Field::TimeLocal];
        if !times.iter().any(|time| self.has(*time)) {
            return Err(Unusable::NoTime);
        }
        if !self.has(Field::Status) && !self.has(Field::UpstreamStatus) {
            return Err(Unusable::NoStatus);
        }
        Ok(())
    }

    fn has(&self, field: Field) -> bool {
        self.parts.contains(&Part::Value(Some(field)))
    }

    /// Variables that would make lines surer to match, and are not in it.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let mut need = |fields: &[Field], name| {
            if !fields.iter().any(|field| self.has(*field)) {
                missing.push(name);
            }
        };
        need(&[Field::UpstreamAddr], "$upstream_addr");
        need(&[Field::UpstreamStatus], "$upstream_status");
        need(&[Field::Msec], "$msec");
        need(&[Field::RequestTime], "$request_time");
        need(&[Field::Connection], "$connection");
        need(&[Field::Pid], "$pid");
        need(&[Field::Request, Field::RequestUri], "$request");
        missing
    }

    /// How many variables of it tell something.
    #[must_use]
    pub fn n_known(&self) -> usize {
        let known = |part: &&Part| matches!(part, Part::Value(Some(_)));
        self.parts.iter().filter(known).count()
    }

    /// Takes a line apart; `None`: it is of another format.
    #[must_use]
    pub fn parse(&self, line: &str) -> Option<Access> {
        let mut values = Vec::with_capacity(self.parts.len());
        let mut steps = MAX_STEPS;
        self.take(&self.parts, line, &mut values, &mut steps)
    }

    fn take<'a>(
        &self,
        parts: &[Part],
        line: &'a str,
        values: &mut Vec<(Field, &'a str)>,
        steps: &mut u32,
    ) -> Option<Access> {
        *steps = steps.checked_sub(1)?;
        let Some((part, parts)) = parts.split_first() else {
            return line.is_empty().then(|| self.access(values)).flatten();
        };
        let field = match part {
            Part::Text(text) => return self.take(parts, line.strip_prefix(text.as_str())?, values, steps),
            Part::Value(field) => *field,
        };
        let mut from = 0;
        loop {
            let end = match parts.first() {
                Some(Part::Text(text)) => from + line.get(from..)?.find(text.as_str())?,
                _ => line.len(),
            };
            let value = &line[..end];
            if !self.may_hold(value) {
                return None;
            }
            if field.is_none_or(|field| may_be(field, value)) {
                let n = values.len();
                values.extend(field.map(|field| (field, value)));
                if let Some(access) = self.take(parts, &line[end..], values, steps) {
                    return Some(access);
                }
                values.truncate(n);
            }
            *steps = steps.checked_sub(1)?;
            from = end + line[end..].chars().next()?.len_utf8();
        }
    }

    /// Whether nginx would have written this so; a longer value holds it too.
    fn may_hold(&self, value: &str) -> bool {
        match self.escape {
            Escape::Default => !value.contains('"'),
            Escape::Json => !value
                .char_indices()
                .any(|(at, char)| char == '"' && !value[..at].ends_with('\\')),
            Escape::None => true,
        }
    }

    fn access(&self, values: &[(Field, &str)]) -> Option<Access> {
        let of = |wanted: Field| {
            values
                .iter()
                .find(|(field, value)| *field == wanted && *value != "-")
                .map(|(_, value)| *value)
        };
        let mut access = Access::default();
        (access.ended_ms, access.within_ms) =
            match (of(Field::Msec), of(Field::TimeIso8601), of(Field::TimeLocal)) {
                (Some(msec), ..) => (millis(msec)?, 1),
                (None, Some(iso), _) => (iso8601(iso)?, 1000),
                (None, None, Some(local)) => (time_local(local)?, 1000),
                (None, None, None) => return None,
            };
        access.took_ms = of(Field::RequestTime).and_then(millis);
        access.pid = of(Field::Pid).and_then(|pid| pid.parse().ok());
        access.connection = of(Field::Connection).and_then(|number| number.parse().ok());
        access.status = of(Field::Status).and_then(|status| status.parse().ok());
        access.client = of(Field::RemoteAddr).map(str::to_owned);
        let unescaped = |value| self.unescaped(value);
        if let Some(request) = of(Field::Request).map(unescaped) {
            let mut words = request.split(' ');
            access.method = words.next().map(str::to_owned);
            access.path = words.next().map(path);
        }
        if let Some(method) = of(Field::RequestMethod) {
            access.method = Some(method.to_owned());
        }
        if let Some(uri) = of(Field::RequestUri).map(unescaped) {
            access.path = Some(path(&uri));
        } else if let Some(uri) = of(Field::Uri).map(unescaped).filter(|_| access.path.is_none()) {
            access.path = Some(uri.into_owned());
            access.is_rewritten = true;
        }
        access.tries = tries(values)?;
        Some(access)
    }

    fn unescaped<'a>(&self, value: &'a str) -> Cow<'a, str> {
        if !value.contains('\\') {
            return Cow::Borrowed(value);
        }
        match self.escape {
            Escape::None => Cow::Borrowed(value),
            Escape::Json => {
                serde_json::from_str(&format!("\"{value}\"")).map_or(Cow::Borrowed(value), Cow::Owned)
            }
            Escape::Default => {
                let mut bytes = Vec::with_capacity(value.len());
                let mut rest = value.as_bytes();
                while let Some((byte, after)) = rest.split_first() {
                    let hex = after
                        .strip_prefix(b"x")
                        .and_then(|hex| std::str::from_utf8(hex.get(..2)?).ok())
                        .and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    match hex.filter(|_| *byte == b'\\') {
                        Some(char) => {
                            bytes.push(char);
                            rest = &after[3..];
                        }
                        None => {
                            bytes.push(*byte);
                            rest = after;
                        }
                    }
                }
                Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `$name` or `${name}` at the beginning, and what follows it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix('$')?;
    let is_of_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
    if let Some(braced) = rest.strip_prefix('{') {
        let (name, after) = braced.split_once('}')?;
        return (!name.is_empty() && name.chars().all(is_of_name)).then_some((name, after));
    }
    let end = rest.find(|char| !is_of_name(char)).unwrap_or(rest.len());
    (end > 0).then(|| rest.split_at(end))
}

/// The path of a URI: a proxy's client also sends whole ones.
fn path(uri: &str) -> String {
    uri.split('?').next().unwrap_or_default().to_owned()
}

fn may_be(field: Field, value: &str) -> bool {
    let is_number = |value: &str| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let is_seconds = |value: &str| {
        value
            .split_once('.')
            .is_some_and(|(whole, part)| is_number(whole) && part.len() == 3 && is_number(part))
    };
    let each = |may_be: &dyn Fn(&str) -> bool| {
        value.is_empty()
            || value == "-"
            || elements(value).all(|(element, _)| element == "-" || may_be(element))
    };
    match field {
        Field::Msec | Field::RequestTime => is_seconds(value),
        Field::TimeIso8601 => iso8601(value).is_some(),
        Field::TimeLocal => time_local(value).is_some(),
        Field::UpstreamAddr => {
            each(&|element| !element.is_empty() && !element.contains([' ', '"']) && !element.ends_with(','))
        }
        Field::UpstreamStatus => each(&|element| element.len() == 3 && is_number(element)),
        Field::UpstreamResponseTime | Field::UpstreamConnectTime => each(&is_seconds),
        Field::Pid | Field::Connection => is_number(value),
        Field::Status => value.len() == 3 && is_number(value),
        Field::RequestMethod => {
            value == "-"
                || (!value.is_empty()
                    && value
                        .bytes()
                        .all(|byte| byte.is_ascii_uppercase() || b"_-".contains(&byte)))
        }
        Field::RemoteAddr => !value.is_empty() && !value.contains(' '),
        Field::Request | Field::RequestUri | Field::Uri => true,
    }
}

/// The elements of a list: `a, b : c`, each with whether the next one is of the same upstream.
fn elements(list: &str) -> impl Iterator<Item = (&str, bool)> {
    list.split(" : ").flat_map(|group| {
        let n = group.split(", ").count();
        group
            .split(", ")
            .enumerate()
            .map(move |(index, element)| (element, index + 1 < n))
    })
}

/// The tries that the lists tell; the outer `None`: they do not agree.
#[expect(clippy::option_option, reason = "not agreeing and not telling are two things")]
fn tries(values: &[(Field, &str)]) -> Option<Option<Vec<Try>>> {
    let of = |wanted: Field| {
        values
            .iter()
            .find(|(field, _)| *field == wanted)
            .map(|(_, value)| *value)
    };
    let Some(addrs) = of(Field::UpstreamAddr) else {
        return Some(None);
    };
    if addrs.is_empty() || addrs == "-" {
        return Some(Some(Vec::new()));
    }
    let mut tries: Vec<Try> = elements(addrs)
        .map(|(addr, is_retried)| Try {
            addr: addr.to_owned(),
            is_retried,
            ..Try::default()
        })
        .collect();
    if tries.len() > MAX_TRIES {
        return None;
    }
    for field in [
        Field::UpstreamStatus,
        Field::UpstreamResponseTime,
        Field::UpstreamConnectTime,
    ] {
        let Some(list) = of(field) else {
            continue;
        };
        let all: Vec<&str> = elements(list).map(|(element, _)| element).collect();
        if all.len() != tries.len() {
            return None;
        }
        for (one, element) in tries.iter_mut().zip(all) {
            match field {
                Field::UpstreamStatus => {
                    one.has_status = true;
                    one.status = element.parse().ok();
                }
                Field::UpstreamResponseTime => one.took_ms = millis(element),
                _ => one.connect_ms = millis(element),
            }
        }
    }
    Some(Some(tries))
}

/// `1764424098.123` in milliseconds.
fn millis(seconds: &str) -> Option<i64> {
    let (whole, part) = seconds.split_once('.')?;
    let whole: i64 = whole.parse().ok()?;
    let part: i64 = part.parse().ok()?;
    whole.checked_mul(1000)?.checked_add(part)
}

/// `2026-11-22T13:04:31+01:00`.
fn iso8601(text: &str) -> Option<i64> {
    if text.len() != 25 {
        return None;
    }
    Some(text.parse::<Timestamp>().ok()?.as_millisecond())
}

/// `22/Nov/2026:13:04:31 +0100`.
fn time_local(text: &str) -> Option<i64> {
    if text.len() != 26 {
        return None;
    }
    let parsed = strtime::parse("%d/%b/%Y:%H:%M:%S %z", text).ok()?;
    Some(parsed.to_timestamp().ok()?.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_referer\" \
        \"$http_user_agent\" $request_time $upstream_addr $upstream_status $upstream_response_time $upstream_connect_time";

    fn tries_of(access: &Access) -> String {
        let shown = |one: &Try| {
            let status = one.status.map_or("-".to_owned(), |status| status.to_string());
            let took = one.took_ms.map_or("-".to_owned(), |took| took.to_string());
            let connect = one.connect_ms.map_or("-".to_owned(), |took| took.to_string());
            let sign = if one.is_retried { " >" } else { "" };
            format!("{} {status} {took} {connect}{sign}", one.addr)
        };
        match &access.tries {
            Some(tries) => tries.iter().map(shown).collect::<Vec<_>>().join(" | "),
            None => "not told".to_owned(),
        }
    }

    #[test]
    fn nginx_s_own_format_is_read() {
        let format = Format::given("combined");
        let line = "192.0.2.7 - - [22/Nov/2026:13:04:31 +0100] \"GET /v1/items?a=1 HTTP/1.1\" 502 157 \"-\" \"curl/8\"";
        let access = format.parse(line).unwrap();
        assert_eq!(access.ended_ms, 1_795_349_071_000);
        assert_eq!(access.within_ms, 1000);
        assert_eq!(
            (access.method.as_deref(), access.path.as_deref()),
            (Some("GET"), Some("/v1/items"))
        );
        assert_eq!(
            (access.status, access.client.as_deref()),
            (Some(502), Some("192.0.2.7"))
        );
        assert_eq!(tries_of(&access), "not told");
        for foreign in [
            "",
            "2026/11/22 13:04:31 [error] 811#811: *45 connect() failed",
            &format!("{line} 0.001"),
            &line.replace("502", "5020"),
            &line.replace("22/Nov", "22/Nox"),
        ] {
            assert_eq!(format.parse(foreign), None, "{foreign}");
        }
        assert_eq!(
            format.missing(),
            [
                "$upstream_addr",
                "$upstream_status",
                "$msec",
                "$request_time",
                "$connection",
                "$pid"
            ]
        );
    }

    #[test]
    fn retries_and_redirects_are_lists() {
        let format = Format::given(MAIN);
        let line = |upstream: &str| {
            format!(
                "::1 - joe [22/Nov/2026:13:04:31 +0000] \"POST /a HTTP/1.1\" 502 157 \"-\" \"a b\" 1.500 {upstream}"
            )
        };
        for (upstream, wanted) in [
            ("10.0.0.1:80 200 0.001 0.000", "10.0.0.1:80 200 1 0"),
            (
                "10.0.0.1:80, [::1]:80, unix:/a.sock 502, 504, 200 0.001, 1.000, 0.499 -, 0.000, 0.000",
                "10.0.0.1:80 502 1 - > | [::1]:80 504 1000 0 > | unix:/a.sock 200 499 0",
            ),
            (
                "10.0.0.1:80 : 10.0.0.2:80, 10.0.0.3:80 502 : 502, - 0.001 : 0.002, 0.003 - : -, -",
                "10.0.0.1:80 502 1 - | 10.0.0.2:80 502 2 - > | 10.0.0.3:80 - 3 -",
            ),
            ("app 502 0.000 -", "app 502 0 -"),
            ("- - - -", ""),
        ] {
            let access = format
                .parse(&line(upstream))
                .unwrap_or_else(|| panic!("{upstream}"));
            assert_eq!(tries_of(&access), wanted);
            assert_eq!(access.began_ms(), Some(access.ended_ms - 1500));
        }
        // Lists that are not of one request.
        assert_eq!(format.parse(&line("10.0.0.1:80, 10.0.0.2:80 502 0.001 -")), None);
    }

    #[test]
    fn json_is_read_by_its_text() {
        let format = Format::given(
            "escape=json {\"t\":\"$time_iso8601\",\"ua\":\"$http_user_agent\",\"r\":\"$request_uri\",\"m\":\"$request_method\",\
             \"s\":$status,\"a\":\"$upstream_addr\",\"u\":\"$upstream_status\",\"c\":${connection}}",
        );
        let line = "{\"t\":\"2026-11-22T13:04:31+01:00\",\"ua\":\"say \\\"hi\\\"\",\"r\":\"/a\\\\b?x\",\"m\":\"GET\",\
             \"s\":502,\"a\":\"10.0.0.1:80\",\"u\":\"502\",\"c\":7}";
        let access = format.parse(line).unwrap();
        assert_eq!(access.ended_ms, 1_795_349_071_000);
        assert_eq!(access.path.as_deref(), Some("/a\\b"));
        assert_eq!(access.connection, Some(7));
        assert_eq!(tries_of(&access), "10.0.0.1:80 502 - -");
    }

    #[test]
    fn what_is_escaped_is_the_byte_again() {
        let format = Format::given("$msec $status \"$request\"");
        let access = format
            .parse("1795349071.250 400 \"GET /\\x22\\xC3\\xA9 HTTP/1.1\"")
            .unwrap();
        assert_eq!(access.path.as_deref(), Some("/\"é"));
        assert_eq!((access.ended_ms, access.within_ms), (1_795_349_071_250, 1));
    }

    #[test]
    fn a_format_without_time_or_result_is_of_no_use() {
        assert_eq!(Format::given("$status $request").check(), Err(Unusable::NoTime));
        assert_eq!(Format::given("$msec $request").check(), Err(Unusable::NoStatus));
        assert_eq!(Format::given("combined").check(), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(format in ".{0,80}", line in ".{0,200}") {
            let _ = Format::given(&format).parse(&line);
            let _ = Format::given("$uri $upstream_addr $upstream_status $msec").parse(&line);
        }
    }
}
