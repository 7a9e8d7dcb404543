//! The beginning of a request and of its answer, as bytes: what they say of method, path, Host, client and status.
//!
//! Total, and strict: bytes that are not surely the beginning of a request say nothing (a request's body, TLS, what a
//! `stream` carries). A query string ends the path, and nothing else of headers or bodies leaves this module.

mod hpack;
mod http2;

use serde::{Deserialize, Serialize};
use tracer_ebpf::REQUEST_LEN;

/// What the beginning of a request says; `None` where it lies behind what was taken, or is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its method.
    pub method: Option<String>,
    /// Its path, without the query string.
    pub path: Option<String>,
    /// Its `Host`.
    pub host: Option<String>,
    /// The client's address, where the protocol tells it (`REMOTE_ADDR`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The status of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// How the bytes between nginx and the upstream are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    FastCgi,
    Uwsgi,
    Scgi,
}

/// Reads the beginning of a request and, if some of it came, of its answer; `None`: these bytes begin no request.
#[must_use]
pub fn read(request: &[u8], response: &[u8]) -> Option<Head> {
    let (protocol, head) = http(request)
        .map(|head| (Protocol::Http, head))
        .or_else(|| fastcgi(request).map(|head| (Protocol::FastCgi, head)))
        .or_else(|| scgi(request).map(|head| (Protocol::Scgi, head)))
        .or_else(|| uwsgi(request).map(|head| (Protocol::Uwsgi, head)))?;
    Some(Head {
        status: status(protocol, response),
        ..head
    })
}

/// [`read`] where they are HTTP/2's frames: on a connection that began so, or to a peer that gRPC is spoken with.
#[must_use]
pub fn read_http2(request: &[u8], response: &[u8]) -> Option<Head> {
    let (head, stream) = http2::request(request)?;
    Some(Head {
        status: http2::status(response, stream),
        ..head
    })
}

/// `GET /path?query HTTP/1.1`, and the Host behind it (RFC 9112).
fn http(bytes: &[u8]) -> Option<Head> {
    let (method, rest) = split_at(bytes, b' ')?;
    if !is_method(method) || !matches!(rest.first(), Some(b'/' | b'*')) {
        return None;
    }
    // What is not there lies behind what was taken, and nowhere else.
    let is_cut = bytes.len() >= REQUEST_LEN;
    let (target, behind) = match split_at(rest, b' ') {
        Some((target, behind)) => (target, Some(behind)),
        None if is_cut => (rest, None),
        None => return None,
    };
    let is_version =
        |behind: &[u8]| behind.starts_with(b"HTTP/1.") || (is_cut && b"HTTP/1.".starts_with(behind));
    if behind.is_some_and(|behind| !is_version(behind)) {
        return None;
    }
    let path = without_query(target);
    let is_whole = behind.is_some() || path.len() < target.len();
    Some(Head {
        method: Some(text(method)),
        path: is_whole.then(|| text(path)),
        host: behind.and_then(|behind| header(behind, b"host")),
        ..Head::default()
    })
}

fn is_method(text: &[u8]) -> bool {
    let is_of_one = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    (1..=20).contains(&text.len()) && text.iter().all(is_of_one)
}

/// The value of a header, in bytes that begin in the line before the headers, if the whole of it is there.
fn header(bytes: &[u8], name: &[u8]) -> Option<String> {
    let (_, mut rest) = split_at(bytes, b'\n')?;
    while let Some((line, behind)) = split_at(rest, b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return None;
        }
        if let Some((found, value)) = split_at(line, b':')
            && found.eq_ignore_ascii_case(name)
        {
            return Some(text(value.trim_ascii()));
        }
        rest = behind;
    }
    None
}

/// A FastCGI record of this type: what is there of its content, and what is behind it (FastCGI 1.0, 3.3).
fn fastcgi_record(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    match bytes {
        [1, found, _, _, high, low, padding, _, rest @ ..] if *found == kind => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let behind = rest.get(length + usize::from(*padding)..).unwrap_or_default();
            Some((&rest[..length.min(rest.len())], behind))
        }
        _ => None,
    }
}

const FASTCGI_BEGIN: u8 = 1;
const FASTCGI_PARAMS: u8 = 4;
const FASTCGI_STDOUT: u8 = 6;
const FASTCGI_STDERR: u8 = 7;

/// A record that begins a request, then one with its parameters.
fn fastcgi(bytes: &[u8]) -> Option<Head> {
    let (begin, behind) = fastcgi_record(bytes, FASTCGI_BEGIN)?;
    let (mut rest, _) = fastcgi_record(behind, FASTCGI_PARAMS).filter(|_| begin.len() == 8)?;
    let mut found = Parameters::default();
    while let Some((name, value)) = fastcgi_pair(rest) {
        found.take(name, &value);
        if value.is_cut {
            break;
        }
        rest = value.behind;
    }
    Some(found.head(bytes.len() < REQUEST_LEN))
}

fn fastcgi_pair(bytes: &[u8]) -> Option<(&[u8], Value<'_>)> {
    let (name, rest) = fastcgi_length(bytes)?;
    let (value, rest) = fastcgi_length(rest)?;
    let (name, rest) = rest.split_at_checked(name)?;
    Some((name, Value::of(rest, value)))
}

/// A length, of one byte or, above 127, of four, and what is behind it.
fn fastcgi_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [short @ 0..=127, rest @ ..] => Some((usize::from(*short), rest)),
        [a, b, c, d, rest @ ..] => {
            let long = u32::from_be_bytes([*a & 127, *b, *c, *d]);
            Some((usize::try_from(long).ok()?, rest))
        }
        _ => None,
    }
}

/// A netstring of names and values, each ended by a zero; the first is `CONTENT_LENGTH` (SCGI, "Request Format").
fn scgi(bytes: &[u8]) -> Option<Head> {
    let (length, mut rest) = split_at(bytes, b':')?;
    let is_number = (1..=6).contains(&length.len()) && length.iter().all(u8::is_ascii_digit);
    if !is_number || !rest.starts_with(b"CONTENT_LENGTH\0") {
        return None;
    }
    let mut found = Parameters::default();
    while let Some((name, behind)) = split_at(rest, 0) {
        let end = behind.iter().position(|byte| *byte == 0);
        let value = Value::of(behind, end.unwrap_or(usize::MAX));
        found.take(name, &value);
        if value.is_cut {
            break;
        }
        rest = value.behind.get(1..).unwrap_or_default();
    }
    Some(found.head(bytes.len() < REQUEST_LEN))
}

/// Four bytes (modifier, size, modifier), then names and values, each behind its length (the uwsgi protocol).
fn uwsgi(bytes: &[u8]) -> Option<Head> {
    let length = |bytes: &[u8]| Some(usize::from(u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?])));
    let is_letter = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    let mut rest = bytes.get(4..)?;
    let mut found = Parameters::default();
    while let Some(n) = length(rest)
        && let Some((name, behind)) = rest[2..].split_at_checked(n)
    {
        if !(1..=64).contains(&name.len()) || !name.iter().all(is_letter) {
            return None;
        }
        let Some(n) = length(behind) else { break };
        let value = Value::of(&behind[2..], n);
        found.take(name, &value);
        if value.is_cut {
            break;
        }
        rest = value.behind;
    }
    // Nothing but its parameters' names tells it from other bytes.
    let is_it = found.method.is_some();
    is_it.then(|| found.head(bytes.len() < REQUEST_LEN))
}

/// A value, as far as it is there.
struct Value<'a> {
    text: &'a [u8],
    is_cut: bool,
    behind: &'a [u8],
}

impl<'a> Value<'a> {
    fn of(bytes: &'a [u8], length: usize) -> Self {
        let (text, behind) = bytes.split_at(length.min(bytes.len()));
        Self {
            text,
            is_cut: length > bytes.len(),
            behind,
        }
    }
}

/// What a request is known by among CGI's parameters.
#[derive(Default)]
struct Parameters {
    method: Option<String>,
    uri: Option<String>,
    path: Option<String>,
    host: Option<String>,
    client: Option<String>,
}

impl Parameters {
    fn take(&mut self, name: &[u8], value: &Value<'_>) {
        let place = match name {
            b"REQUEST_METHOD" => &mut self.method,
            b"REQUEST_URI" => &mut self.uri,
            b"DOCUMENT_URI" | b"PATH_INFO" | b"SCRIPT_NAME" => &mut self.path,
            b"HTTP_HOST" => &mut self.host,
            b"REMOTE_ADDR" => &mut self.client,
            _ => return,
        };
        let known = without_query(value.text);
        // Of a value that goes on, only a path that has come to its query is whole.
        let is_whole = !value.is_cut || (name == b"REQUEST_URI" && known.len() < value.text.len());
        if place.is_none() && is_whole && !known.is_empty() {
            *place = Some(text(known));
        }
    }

    /// `is_whole`: all parameters were there. Otherwise the path that nginx made of the request (`/index.php`) may stand
    /// before the one that was asked for.
    fn head(self, is_whole: bool) -> Head {
        Head {
            method: self.method,
            path: self.uri.or(self.path.filter(|_| is_whole)),
            host: self.host,
            client: self.client,
            status: None,
        }
    }
}

/// The status of an answer; `None` for an interim one, and where it is not surely said.
fn status(protocol: Protocol, bytes: &[u8]) -> Option<u16> {
    match protocol {
        Protocol::Http => status_line(bytes),
        Protocol::Uwsgi | Protocol::Scgi => status_line(bytes).or_else(|| cgi_status(bytes)),
        Protocol::FastCgi => {
            let mut bytes = bytes;
            // What it says to stderr comes first.
            while let Some((_, behind)) = fastcgi_record(bytes, FASTCGI_STDERR) {
                bytes = behind;
            }
            cgi_status(fastcgi_record(bytes, FASTCGI_STDOUT)?.0)
        }
    }
}

/// `HTTP/1.1 502 Bad Gateway`.
pub fn status_line(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/")?;
    let (_, rest) = split_at(rest, b' ')?;
    number(rest).filter(|status| *status >= 200 || *status == 101)
}

/// CGI's `Status: 502`; without one it is 200, which is known when the end of the headers is.
fn cgi_status(bytes: &[u8]) -> Option<u16> {
    let mut rest = bytes;
    // nginx takes an answer with this header for a redirect.
    let mut implied = 200;
    loop {
        const NAME: usize = b"status:".len();
        if let Some((name, value)) = rest.split_at_checked(NAME)
            && name.eq_ignore_ascii_case(b"status:")
        {
            return number(value.trim_ascii_start());
        }
        let (line, behind) = split_at(rest, b'\n')?;
        if line.is_empty() || line == b"\r" {
            return (rest.len() < bytes.len()).then_some(implied);
        }
        let (name, _) = split_at(line, b':')?;
        if name.eq_ignore_ascii_case(b"location") {
            implied = 302;
        }
        rest = behind;
    }
}

/// The three digits that a status begins with.
fn number(bytes: &[u8]) -> Option<u16> {
    match bytes {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..]
            if !rest.first().is_some_and(u8::is_ascii_digit) =>
        {
            Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => None,
    }
}

fn without_query(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|byte| matches!(byte, b'?' | b'#'));
    &target[..end.unwrap_or(target.len())]
}

/// What is before and behind the first of these.
fn split_at(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let found = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..found], &bytes[found + 1..]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
