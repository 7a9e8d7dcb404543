//! Beginnings of requests as nginx 1.22 writes them, cut at every byte; and of what is no request.

use proptest::prelude::*;

use super::*;

const HTTP: &[u8] = b"POST /shop/cart?token=SECRET HTTP/1.0\r\nHost: shop.example\r\nConnection: close\r\n\
    Cookie: session=SECRET\r\n\r\nbody=SECRET";

fn head(method: &str, path: &str, host: &str) -> Head {
    Head {
        method: Some(method.into()),
        path: Some(path.into()),
        host: Some(host.into()),
        ..Head::default()
    }
}

fn pair(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(name.len()).unwrap()];
    match u8::try_from(value.len()) {
        Ok(short @ 0..=127) => bytes.push(short),
        _ => bytes.extend((u32::try_from(value.len()).unwrap() | 1 << 31).to_be_bytes()),
    }
    bytes.extend(name.bytes().chain(value.bytes()));
    bytes
}

const PARAMETERS: [(&str, &str); 7] = [
    ("QUERY_STRING", "token=SECRET"),
    ("REQUEST_METHOD", "GET"),
    ("SCRIPT_NAME", "/index.php"),
    ("REQUEST_URI", "/shop/cart?token=SECRET"),
    ("REMOTE_ADDR", "192.0.2.7"),
    ("HTTP_COOKIE", "session=SECRET"),
    ("HTTP_HOST", "shop.example"),
];

fn fastcgi_request() -> Vec<u8> {
    let parameters: Vec<u8> = PARAMETERS
        .iter()
        .flat_map(|(name, value)| pair(name, value))
        .collect();
    let mut bytes = vec![1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let length = u16::try_from(parameters.len()).unwrap().to_be_bytes();
    bytes.extend([1, 4, 0, 1, length[0], length[1], 0, 0]);
    bytes.extend(parameters);
    bytes
}

fn uwsgi_request() -> Vec<u8> {
    let part = |text: &str| {
        let mut bytes = u16::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(text.bytes());
        bytes
    };
    let parameters: Vec<u8> = PARAMETERS
        .iter()
        .flat_map(|(name, value)| [part(name), part(value)].concat())
        .collect();
    let length = u16::try_from(parameters.len()).unwrap().to_le_bytes();
    [vec![0, length[0], length[1], 0], parameters].concat()
}

fn scgi_request() -> Vec<u8> {
    let mut parameters = b"CONTENT_LENGTH\x000\0SCGI\x001\0".to_vec();
    for (name, value) in PARAMETERS {
        parameters.extend(format!("{name}\0{value}\0").bytes());
    }
    [
        format!("{}:", parameters.len()).into_bytes(),
        parameters,
        b",".to_vec(),
    ]
    .concat()
}

#[test]
fn a_request_line_and_its_host() {
    let found = read(HTTP, b"HTTP/1.1 502 Bad Gateway\r\nServer: x\r\n");
    let mut expected = head("POST", "/shop/cart", "shop.example");
    expected.status = Some(502);
    assert_eq!(found, Some(expected));
    assert_eq!(
        read(b"GET / HTTP/1.1\r\nhost:a:80\r\n\r\n", b""),
        Some(head("GET", "/", "a:80"))
    );
    let hostless = Head {
        host: None,
        ..head("OPTIONS", "*", "")
    };
    assert_eq!(
        read(b"OPTIONS * HTTP/1.1\r\n\r\nHost: in.the.body\r\n", b""),
        Some(hostless)
    );
}

#[test]
fn the_parameters_of_fastcgi_uwsgi_and_scgi() {
    let expected = Head {
        client: Some("192.0.2.7".into()),
        ..head("GET", "/shop/cart", "shop.example")
    };
    for (request, response) in [
        (
            fastcgi_request(),
            b"\x01\x06\x00\x01\x00\x21\x07\x00Status: 503 Service Unavailable\r\n".as_slice(),
        ),
        (uwsgi_request(), b"HTTP/1.1 503 x\r\n"),
        (scgi_request(), b"status: 503\r\n"),
    ] {
        let status = Some(503);
        assert_eq!(
            read(&request, response),
            Some(Head {
                status,
                ..expected.clone()
            })
        );
    }
}

#[test]
fn no_query_cookie_or_body_comes_out_wherever_the_bytes_end() {
    for request in [HTTP.to_vec(), fastcgi_request(), uwsgi_request(), scgi_request()] {
        for end in 0..=request.len() {
            let found = format!(
                "{:?}",
                read(&request[..end], b"HTTP/1.1 200 OK\r\nSet-Cookie: SECRET")
            );
            assert!(
                !found.contains("SECRET") && !found.contains("token"),
                "{end}: {found}"
            );
        }
    }
}

#[test]
fn a_path_that_goes_on_behind_what_was_taken_is_not_said() {
    let long = [b"GET /".as_slice(), &[b'a'; REQUEST_LEN - 5]].concat();
    let found = read(&long, b"HTTP/1.0 200 OK\r\n").unwrap();
    assert_eq!(
        (found.method.as_deref(), found.path, found.status),
        (Some("GET"), None, Some(200))
    );
    assert_eq!(read(b"GET /a HTTP/1.1\r\nHost: half", b"").unwrap().host, None);
    // nginx's usual parameters: what it made of the request, then what was asked for.
    let cut = |uri: &str| {
        let query = "q".repeat(REQUEST_LEN - 130);
        let made = [
            pair("QUERY_STRING", &query),
            pair("REQUEST_METHOD", "GET"),
            pair("SCRIPT_NAME", "/index.php"),
            pair("REQUEST_URI", &format!("{uri}?{query}")),
        ]
        .concat();
        let length = u16::try_from(made.len()).unwrap().to_be_bytes();
        let begin = [
            1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 4, 0, 1, length[0], length[1], 0, 0,
        ];
        let mut bytes = [begin.to_vec(), made].concat();
        bytes.truncate(REQUEST_LEN);
        read(&bytes, b"").unwrap().path
    };
    assert_eq!(cut("/shop").as_deref(), Some("/shop"));
    assert_eq!(cut(&"/shop".repeat(60)), None);
}

#[test]
fn what_is_no_request_says_nothing() {
    for bytes in [
        b"".as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"get /lower HTTP/1.1\r\n",
        b"GET /a is a body HTTP/1.1",
        b"A /token",
        b"GET /a HTT",
        b"GET nowhere HTTP/1.1\r\n",
        b"EHLO mail.example\r\n",
        b"get key\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x01\x05\x00\x01\x00\x08\x00\x00SECRET",
        b"12:34:56,not scgi",
        b"\x00\x10\x00\x00\x04\x00name\x05\x00value",
    ] {
        assert_eq!(read(bytes, b"HTTP/1.1 502 Bad Gateway"), None, "{bytes:?}");
    }
}

#[test]
fn a_status_is_said_only_when_it_is_sure() {
    let http = |response: &[u8]| read(HTTP, response).unwrap().status;
    assert_eq!(http(b"HTTP/1.1 100 Continue\r\n\r\n"), None);
    assert_eq!(http(b"HTTP/1.1 101 Switching Protocols\r\n"), Some(101));
    assert_eq!(http(b"HTTP/1.1 5021 odd\r\n"), None);
    assert_eq!(http(b"HTTP/1.1 50"), None);
    assert_eq!(http(b"<html>old</html>"), None);
    let request = fastcgi_request();
    let fastcgi = |kind: u8, text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        let bytes = [&[1, kind, 0, 1, 0, length, 0, 0], text.as_bytes()].concat();
        read(&request, &bytes).unwrap().status
    };
    assert_eq!(
        fastcgi(6, "X-Powered-By: PHP\r\nContent-type: text/html\r\n\r\nhi"),
        Some(200)
    );
    assert_eq!(
        fastcgi(6, "Content-Type: text/plain\r\nStatus: 500\r\n"),
        Some(500)
    );
    assert_eq!(fastcgi(6, "Location: /other\r\n\r\n"), Some(302));
    assert_eq!(fastcgi(6, "X-Powered-By: PHP\r\n"), None, "a status may follow");
    assert_eq!(fastcgi(6, "\r\nhi"), None, "no header at all");
    assert_eq!(fastcgi(7, "Status: 500\r\n"), None, "what it says to stderr");
    let remark_first =
        b"\x01\x07\x00\x01\x00\x03\x05\x00ohh.....\x01\x06\x00\x01\x00\x0d\x03\x00Status: 404\r\n...";
    assert_eq!(read(&request, remark_first).unwrap().status, Some(404));
}

proptest! {
    #[test]
    fn any_bytes_are_read(request: Vec<u8>, response: Vec<u8>) {
        let _ = read(&request, &response);
    }

    #[test]
    fn any_change_of_a_request_is_read(at in 0..200usize, byte: u8) {
        for mut request in [HTTP.to_vec(), fastcgi_request(), uwsgi_request(), scgi_request()] {
            if let Some(place) = request.get_mut(at) {
                *place = byte;
            }
            let _ = read(&request, &request);
        }
    }
}
