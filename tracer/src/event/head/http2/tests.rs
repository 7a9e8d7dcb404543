//! Beginnings of requests as nginx 1.26 writes them to gRPC's backends, and of answers as backends do; cut at every byte.

use proptest::prelude::*;

use super::{super::read_http2, *};
use crate::event::head::hpack::tests::coded;

/// nginx's SETTINGS and WINDOW_UPDATE.
const START: &[u8] = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\
    \x00\x04\x7f\xff\xff\xff\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\x00\x00";

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(content);
    bytes
}

/// A string as nginx writes it: in the code where that is shorter.
fn string(text: &str) -> Vec<u8> {
    let (coded, plain) = (coded(text.as_bytes()), text.as_bytes());
    let is_shorter = coded.len() < plain.len();
    let bytes = if is_shorter { &coded } else { plain };
    let mark = if is_shorter { 0x80 } else { 0 };
    let mut string = match u8::try_from(bytes.len()) {
        Ok(short @ 0..=126) => vec![mark | short],
        _ => {
            let more = bytes.len() - 127;
            assert!(more < 1 << 14);
            let low = u8::try_from(more & 0x7f).unwrap();
            vec![mark | 127, low | 0x80, u8::try_from(more >> 7).unwrap()]
        }
    };
    string.extend(bytes);
    string
}

fn block(path: &str) -> Vec<u8> {
    [
        b"\x83\x86\x44".to_vec(),
        string(path),
        b"\x41".to_vec(),
        string("shop.example"),
        b"\x00".to_vec(),
        string("content-type"),
        string("application/grpc"),
        b"\x00".to_vec(),
        string("authorization"),
        string("Bearer SECRET"),
        b"\x00".to_vec(),
        string("x-coded"),
        string("SECRETsecretSECRET"),
    ]
    .concat()
}

/// The first request of a connection.
fn first(path: &str) -> Vec<u8> {
    let body = frame(0, 1, 1, b"SECRET");
    [PREFACE, START, &frame(HEADERS, 4, 1, &block(path)), &body].concat()
}

const PATH: &str = "/shop.Cart/Add?token=SECRET";

fn expected(status: Option<u16>) -> Option<Head> {
    Some(Head {
        method: Some("POST".into()),
        path: Some("/shop.Cart/Add".into()),
        host: Some("shop.example".into()),
        status,
        ..Head::default()
    })
}

#[test]
fn a_request_on_a_new_connection_and_on_a_kept_one() {
    assert_eq!(read_http2(&first(PATH), b""), expected(None));
    let kept = frame(HEADERS, 4, 3, &block(PATH));
    assert_eq!(read_http2(&kept, b""), expected(None));
    // nginx with a Host of the configuration's.
    let named = [b"\x82\x86\x84\x00".to_vec(), string("host"), string("a:80")].concat();
    assert_eq!(
        read_http2(&frame(HEADERS, 5, 1, &named), b""),
        Some(Head {
            method: Some("GET".into()),
            path: Some("/".into()),
            host: Some("a:80".into()),
            ..Head::default()
        })
    );
}

#[test]
fn the_status_of_the_answer_behind_what_the_backend_says_of_the_connection() {
    let said = |first_field: &[u8]| {
        let answer = [
            frame(SETTINGS, 0, 0, &[0; 6]),
            frame(SETTINGS, 1, 0, b""),
            frame(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
            frame(PING, 0, 0, &[7; 8]),
            frame(
                HEADERS,
                4,
                1,
                &[first_field, b"\x5f\x10application/grpc"].concat(),
            ),
        ]
        .concat();
        read_http2(&first(PATH), &answer).unwrap().status
    };
    assert_eq!(said(b"\x88"), Some(200));
    assert_eq!(
        said(b"\x20\x8d"),
        Some(404),
        "behind a change of the table's size"
    );
    assert_eq!(said(b"\x08\x03503"), Some(503));
    assert_eq!(said(b"\x48\x82\x64\x02"), Some(302));
    assert_eq!(said(b"\x00\x07:status\x03429"), Some(429));
    assert_eq!(said(b"\xbe"), None, "of the dynamic table");
    assert_eq!(said(b"\x7e\x03503"), None, "by a name of the dynamic table's");
    assert_eq!(said(b"\x5f\x01x\x88"), None, "not the first");
    assert_eq!(said(b"\x08\x045030"), None);
}

#[test]
fn an_interim_answer_is_none_and_nor_is_another_streams() {
    let answer = |stream, field: &[u8]| frame(HEADERS, 4, stream, field);
    let request = first(PATH);
    let said = |answer: &[u8]| read_http2(&request, answer).unwrap().status;
    assert_eq!(
        said(&[answer(1, b"\x08\x03103"), answer(1, b"\x88")].concat()),
        Some(200)
    );
    assert_eq!(said(&answer(1, b"\x08\x03103")), None);
    assert_eq!(said(&answer(3, b"\x88")), None);
    assert_eq!(said(&frame(0, 0, 1, b"HTTP/1.1 200")), None);
    assert_eq!(said(&frame(3, 0, 1, b"\0\0\0\x02")), None, "the stream was reset");
    // Padding and a priority around it.
    let around = [b"\x02\0\0\0\0\x10".as_slice(), b"\x8e", b"\0\0"].concat();
    assert_eq!(said(&frame(HEADERS, 0x2c, 1, &around)), Some(500));
}

#[test]
fn no_query_metadata_or_message_comes_out_wherever_the_bytes_end() {
    let whole = first(PATH);
    for end in 0..=whole.len() {
        let found = read_http2(&whole[..end], b"");
        let text = format!("{found:?}").to_lowercase();
        assert!(
            !text.contains("secret") && !text.contains("token"),
            "{end}: {text}"
        );
        if let Some(Head { path: Some(path), .. }) = found {
            assert_eq!(path, "/shop.Cart/Add", "{end}");
        }
    }
}

#[test]
fn a_path_that_goes_on_behind_what_was_taken_is_not_said() {
    let taken = |path: &str| {
        let mut bytes = first(path);
        bytes.truncate(tracer_ebpf::REQUEST_LEN);
        read_http2(&bytes, b"").unwrap()
    };
    let long = taken(&format!("/{}", "a".repeat(2000)));
    assert_eq!(
        (long.method.as_deref(), long.path, long.host),
        (Some("POST"), None, None)
    );
    let query = taken(&format!("/shop?{}", "q".repeat(2000)));
    assert_eq!(query.path.as_deref(), Some("/shop"));
}

#[test]
fn what_is_no_request_says_nothing() {
    for bytes in [
        b"".to_vec(),
        PREFACE.to_vec(),
        [PREFACE, START].concat(),
        frame(SETTINGS, 1, 0, b""),
        frame(0, 1, 1, b"message"),
        frame(HEADERS, 4, 2, &block(PATH)),
        // Twice a path; an answer's; without a method; with bytes that are no block behind it.
        frame(HEADERS, 4, 1, b"\x83\x84\x84"),
        frame(HEADERS, 4, 1, b"\x88"),
        frame(HEADERS, 4, 1, b"\x84"),
        frame(HEADERS, 4, 1, b"\x83\x84\x80"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ] {
        assert_eq!(
            read_http2(&bytes, b"\0\0\x01\x01\x04\0\0\0\x01\x88"),
            None,
            "{bytes:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read(request: Vec<u8>, response: Vec<u8>) {
        let _ = read_http2(&request, &response);
        let _ = read_http2(&[PREFACE, START, &request].concat(), &response);
        let _ = read_http2(&first(PATH), &frame(HEADERS, 4, 1, &response));
    }

    #[test]
    fn any_change_of_a_request_is_read(at in 0..220usize, byte: u8) {
        let mut request = first(PATH);
        if let Some(place) = request.get_mut(at) {
            *place = byte;
        }
        if let Some(head) = read_http2(&request, &request) {
            prop_assert!(head.path.is_none_or(|path| !path.contains('?')));
        }
    }
}
