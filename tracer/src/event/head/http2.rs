//! The beginnings of a request and its answer in HTTP/2's frames (RFC 9113), as nginx writes and reads them towards an
//! upstream: one request at a time on a connection, its fields written without a dynamic table.

use super::{
    Head,
    hpack::{Fields, Name, Value},
    is_method, number, text, without_query,
};

/// What a client begins a connection with (3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const PADDED: u8 = 0x8;
const HAS_PRIORITY: u8 = 0x20;

/// A frame: what is there of its content, and what is behind it.
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    content: &'a [u8],
    is_cut: bool,
    behind: &'a [u8],
}

/// The frame at the beginning of these bytes.
fn frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let [high, middle, low, kind, flags, a, b, c, d, rest @ ..] = bytes else {
        return None;
    };
    let length = u32::from_be_bytes([0, *high, *middle, *low]);
    let length = usize::try_from(length).ok()?;
    let (content, behind) = rest.split_at(length.min(rest.len()));
    Some(Frame {
        kind: *kind,
        flags: *flags,
        stream: u32::from_be_bytes([*a, *b, *c, *d]) & 0x7fff_ffff,
        content,
        is_cut: content.len() < length,
        behind,
    })
}

/// The frame of a request's or answer's header: the first, behind those that are about the connection.
fn headers(bytes: &[u8]) -> Option<Frame<'_>> {
    let mut rest = bytes;
    loop {
        let next = frame(rest)?;
        match next.kind {
            HEADERS => return Some(next),
            PRIORITY | SETTINGS | PING | GOAWAY | WINDOW_UPDATE => rest = next.behind,
            _ => return None,
        }
    }
}

/// A frame's block of fields, without what may be around it (6.2).
fn block<'a>(frame: &Frame<'a>) -> Option<&'a [u8]> {
    let mut block = frame.content;
    let mut padding = 0;
    if frame.flags & PADDED != 0 {
        let (length, rest) = block.split_first()?;
        padding = usize::from(*length);
        block = rest;
    }
    if frame.flags & HAS_PRIORITY != 0 {
        block = block.get(5..)?;
    }
    if frame.is_cut {
        // How much of what is there is padding depends on what is not.
        return (padding == 0).then_some(block);
    }
    block.get(..block.len().checked_sub(padding)?)
}

/// A request at the beginning of a connection, or of what is sent on one that was kept, and its stream.
pub fn request(bytes: &[u8]) -> Option<(Head, u32)> {
    let frames = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let frame = headers(frames)?;
    // A client's streams have odd numbers (5.1.1).
    if frame.stream % 2 == 0 {
        return None;
    }
    let (mut method, mut path, mut authority, mut host) = (None, None, None, None);
    let mut fields = Fields::of(block(&frame)?);
    for field in &mut fields {
        let place = match field.name {
            Some(Name::Method) => &mut method,
            Some(Name::Path) => &mut path,
            Some(Name::Authority) => &mut authority,
            Some(Name::Host) => &mut host,
            Some(Name::Status) => return None,
            None => continue,
        };
        if place.is_some() {
            return None;
        }
        *place = Some(field.value);
    }
    let method = whole(method.flatten())?;
    let path = path.flatten();
    let is_path = |path: &Value| matches!(path.text.first(), Some(b'/' | b'*')) || path.is_cut;
    if fields.is_broken || !is_method(&method) || !path.as_ref().is_none_or(is_path) {
        return None;
    }
    let head = Head {
        method: Some(text(&method)),
        path: path.and_then(|path| {
            let known = without_query(&path.text);
            let is_whole = !path.is_cut || known.len() < path.text.len();
            is_whole.then(|| text(known))
        }),
        host: whole(authority.or(host).flatten()).map(|host| text(&host)),
        ..Head::default()
    };
    Some((head, frame.stream))
}

fn whole(value: Option<Value>) -> Option<Vec<u8>> {
    value.filter(|value| !value.is_cut).map(|value| value.text)
}

/// The status of the answer on this stream: the first field of its header (8.3.2). `None` where it is not surely said.
pub fn status(bytes: &[u8], stream: u32) -> Option<u16> {
    let mut rest = bytes;
    loop {
        let frame = headers(rest).filter(|frame| frame.stream == stream)?;
        let first = Fields::of(block(&frame)?).next()?;
        let value = whole(first.value.filter(|_| first.name == Some(Name::Status)))?;
        let status = number(&value).filter(|_| value.len() == 3)?;
        if status >= 200 {
            return Some(status);
        }
        rest = frame.behind;
    }
}

#[cfg(test)]
mod tests;
