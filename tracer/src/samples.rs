//! Attempts for tests: what the engine would say, as plain values.

use std::collections::BTreeMap;

use crate::{
    clock::Clock,
    event::{ConnId, Errno, ExchangeId, Instance, Ktime, LogLine, Netns, Peer, Pid, Sock},
    model::{
        Attempt, Confidence, Evidence, FieldValue, Finding, HookStatus, NoteEvent, Outcome, Phase, Verdict,
    },
};

/// The host booted 1,000 s before 2026-11-22T12:04:31Z.
pub fn clock() -> Clock {
    Clock::new(Ktime(1_000_000_000_000), 1_795_349_071_000_000_000)
}

/// Kernel time so many microseconds after 12:04:31.
pub fn at(us: i64) -> Ktime {
    Ktime(u64::try_from(1_000_000_000_000 + us * 1_000).unwrap())
}

pub fn peer(port: u16) -> Peer {
    Peer::Tcp(([127, 0, 0, 1], port).into())
}

pub fn healthy() -> Attempt {
    Attempt {
        number: 1,
        began_at: at(0),
        ended_at: at(1_200),
        worker: Pid(811),
        upstream: Some("api".to_owned()),
        upstreams: vec!["api".to_owned()],
        server: Some("127.0.0.1:3000".to_owned()),
        peer: Some(peer(3000)),
        local: Some(([127, 0, 0, 1], 41_000).into()),
        via: Some("http".to_owned()),
        outcome: Outcome::Ok,
        phase: Phase::Reading,
        errno: None,
        nginx_says: None,
        log: None,
        reused: false,
        exchange: 1,
        idle_us: None,
        connect_us: Some(80),
        accept_us: Some(110),
        first_byte_us: Some(900),
        total_us: 1_200,
        bytes_sent: Some(120),
        bytes_acked: Some(120),
        bytes_received: Some(2_048),
        bytes_unread: Some(0),
        syn_retransmits: Some(0),
        retransmits: Some(0),
        rtt_us: Some(40),
        closed_by: None,
        request: None,
        client: None,
        retry: None,
        connection: Some(ExchangeId {
            conn: ConnId {
                sock: Sock(0xffff_8880_1234_5600),
                since: at(0),
            },
            number: 1,
        }),
        cause: None,
        also: Vec::new(),
        preexisting: false,
        unseen: Vec::new(),
    }
}

pub fn fact(at: Option<Ktime>, source: &'static str, text: &str) -> Evidence {
    Evidence {
        at,
        source,
        text: text.to_owned(),
        fields: BTreeMap::new(),
    }
}

/// The failure that the README shows.
pub fn listener_died() -> Attempt {
    let end = 207_000;
    let mut process = fact(
        Some(at(end - 312_400)),
        "process",
        "node[4242] ended by SIGKILL, chosen by the OOM killer",
    );
    process.fields = BTreeMap::from([
        ("comm", FieldValue::Text("node".to_owned())),
        ("oom", FieldValue::Flag(true)),
        ("pid", FieldValue::Number(4242)),
        ("signal", FieldValue::Number(9)),
    ]);
    Attempt {
        number: 2,
        began_at: at(end - 200),
        ended_at: at(end),
        outcome: Outcome::Refused,
        phase: Phase::Connecting,
        errno: Some(Errno(111)),
        nginx_says: Some(
            "connect() failed (111: Connection refused) while connecting to upstream".to_owned(),
        ),
        connect_us: None,
        accept_us: None,
        first_byte_us: None,
        total_us: 200,
        bytes_sent: Some(0),
        bytes_received: Some(0),
        cause: Some(Verdict {
            id: "listener-died",
            confidence: Confidence::Confirmed,
            summary: "Nothing listens there any more: node (pid 4242) was killed by the OOM killer 312 ms before, and \
                      its listener closed with it."
                .to_owned(),
            remedy: "find what took the memory (limit 512 MiB); until node is back nginx goes on to 127.0.0.1:3001"
                .to_owned(),
            evidence: vec![
                process,
                fact(
                    Some(at(end - 311_900)),
                    "listener",
                    "0.0.0.0:3000 closed (node[4242], backlog 511)",
                ),
                fact(
                    Some(at(end - 100)),
                    "tcp",
                    "this host answered the SYN with RST: no socket there",
                ),
            ],
        }),
        ..healthy()
    }
}

/// A failure with everything a block can have.
pub fn keepalive_race() -> Attempt {
    let end = 5_250_000;
    Attempt {
        number: 3,
        began_at: at(end - 1_300),
        ended_at: at(end),
        upstream: None,
        upstreams: vec!["api".to_owned(), "search".to_owned()],
        peer: Some("[2001:db8::17]:8080".parse().unwrap()),
        outcome: Outcome::Closed,
        phase: Phase::Waiting,
        nginx_says: Some(
            "upstream prematurely closed connection while reading response header from upstream".to_owned(),
        ),
        reused: true,
        exchange: 7,
        idle_us: Some(5_000_300),
        total_us: 1_300,
        request: Some(crate::model::Request {
            method: Some("GET".to_owned()),
            path: Some("/v1/items".to_owned()),
            host: Some("shop.example".to_owned()),
            status: None,
            client: Some("192.0.2.7".to_owned()),
        }),
        client: Some(crate::model::Client {
            address: Some("192.0.2.7:40112".parse().unwrap()),
            status: Some(502),
            cut: false,
        }),
        retry: Some((2, 2)),
        cause: Some(Verdict {
            id: "keepalive-race",
            confidence: Confidence::Likely,
            summary: "The backend closed the idle connection just as nginx sent the next request on it."
                .to_owned(),
            remedy:
                "set keepalive_timeout in the upstream block below the backend's idle timeout of about 5 s"
                    .to_owned(),
            evidence: vec![
                fact(
                    Some(at(end - 5_001_600)),
                    "tcp",
                    "the response before was read to its end",
                ),
                fact(
                    Some(at(end - 1_350)),
                    "tcp",
                    "the peer's FIN arrived, 50 µs before the request was sent",
                ),
                fact(None, "limit", "nginx keeps idle connections for 60 s (a default)"),
                fact(
                    Some(at(end + 40)),
                    "tcp",
                    "the peer answered the request with RST",
                ),
            ],
        }),
        also: vec![Verdict {
            id: "closed-without-response",
            confidence: Confidence::Likely,
            summary: "It closed without a byte.".to_owned(),
            remedy: String::new(),
            evidence: Vec::new(),
        }],
        unseen: vec!["the backend is on another host: why it closed cannot be seen from here".to_owned()],
        ..healthy()
    }
}

/// The line that nginx logged for [`listener_died`].
pub fn log_line() -> LogLine {
    LogLine {
        text: "2026/11/22 12:04:31 [error] 811#811: *7 connect() failed (111: Connection refused)".to_owned(),
        time: 1_795_349_071,
        pid: Pid(811),
        connection: Some(7),
        level: "error".to_owned(),
        message: "connect() failed".to_owned(),
        errno: Some(Errno(111)),
        action: None,
        upstream: None,
        peer: None,
        client: None,
        host: None,
        request: None,
        is_udp: false,
    }
}

pub fn oom_kill() -> NoteEvent {
    NoteEvent {
        at: at(-105_400),
        kind: "oom-kill",
        text: "the OOM killer chose node[4242]".to_owned(),
        fields: BTreeMap::from([("pid", FieldValue::Number(4242))]),
    }
}

pub fn finding() -> Finding {
    Finding {
        id: "idle-timeout",
        about: "api".to_owned(),
        at: None,
        summary:
            "All 12 races happened after about 5 s of idleness: the backend closes idle connections then."
                .to_owned(),
        remedy: "set keepalive_timeout 4s in upstream api".to_owned(),
        attempts: 12,
        evidence: vec![fact(None, "tcp", "idle times from 4.99 s to 5.01 s")],
    }
}

pub fn instance() -> Instance {
    Instance {
        pid: Pid(810),
        exe: "/usr/sbin/nginx".to_owned(),
        version: Some("nginx/1.22.1".to_owned()),
        conf: Some("/etc/nginx/nginx.conf".to_owned()),
        workers: vec![Pid(811), Pid(812)],
        netns: Netns(4_026_531_840),
        heard_since: Some(Ktime(0)),
    }
}

pub fn hooks() -> Vec<HookStatus> {
    vec![
        HookStatus {
            sees: "tcp-states".to_owned(),
            how: Some("tp_btf inet_sock_set_state".to_owned()),
            why_not: None,
            without: String::new(),
        },
        HookStatus {
            sees: "icmp-v6".to_owned(),
            how: None,
            why_not: Some("kernel without fentry and kprobes".to_owned()),
            without: "who sent an ICMPv6 error is not known".to_owned(),
        },
    ]
}
