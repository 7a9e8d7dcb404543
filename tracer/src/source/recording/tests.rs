//! Recordings there and back, and cut.

use std::net::{IpAddr, SocketAddr};

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    event::{
        Answer, Config, ConnId, ConnectDenied, Denier, EndKind, Errno, Event, Exchange, ExchangeId, Exit,
        Follows, Input, Instance, Limits, Line, LineId, Listener, LogLine, LossClass, Netns, Peer, Pid,
        Program, Question, ResetBy, RetryOf, Sock, Task, TcpState, Told, Tuple, head::Head,
    },
    model::HookStatus,
};

fn peer() -> impl Strategy<Value = Peer> + Clone {
    prop_oneof![
        any::<SocketAddr>().prop_map(flat).prop_map(Peer::Tcp),
        "\\PC{0,40}".prop_map(Peer::Unix),
    ]
}

/// Serialised addresses have no flow label.
fn flat(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

fn errno() -> impl Strategy<Value = Errno> {
    (1i32..200).prop_map(Errno)
}

fn time() -> impl Strategy<Value = Ktime> {
    any::<u64>().prop_map(Ktime)
}

fn exchange_id() -> impl Strategy<Value = ExchangeId> {
    (any::<u64>(), time(), any::<u32>()).prop_map(|(sock, since, number)| ExchangeId {
        conn: ConnId {
            sock: Sock(sock),
            since,
        },
        number,
    })
}

fn task() -> impl Strategy<Value = Task> + Clone {
    let exit = prop_oneof![
        any::<u8>().prop_map(Exit::Code),
        any::<u8>().prop_map(Exit::Signal)
    ];
    (any::<u32>(), "\\PC{0,15}", option::of(exit), any::<bool>()).prop_map(|(pid, comm, exiting, oom)| Task {
        pid: Pid(pid),
        comm,
        exiting,
        oom,
    })
}

fn told() -> impl Strategy<Value = Told> {
    (any::<u8>(), task(), any::<u32>()).prop_map(|(signal, by, ago_ms)| Told { signal, by, ago_ms })
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let ends = prop_oneof![
        Just((EndKind::Closed, Some(TcpState::CloseWait))),
        Just((EndKind::NextExchange, None)),
        Just((EndKind::WorkerGone, Some(TcpState::FinWait1))),
        Just((EndKind::Detached, None)),
    ];
    let retry = prop_oneof![
        exchange_id().prop_map(RetryOf::Exchange),
        line_id().prop_map(RetryOf::Line),
    ];
    (
        (
            exchange_id(),
            peer(),
            option::of(any::<SocketAddr>().prop_map(flat)),
            any::<[bool; 4]>(),
        ),
        (vec(option::of(time()), 12), any::<[u64; 5]>(), any::<[u32; 3]>()),
        (
            option::of(errno()),
            option::of(errno()),
            ends,
            option::of(retry),
            option::of(line_id()),
        ),
    )
        .prop_map(
            |(
                (id, peer, local, flags),
                (times, bytes, counts),
                (error, soft, (end, closed_in), retry_of, line),
            )| {
                Exchange {
                    id,
                    worker: Pid(counts[0]),
                    netns: Netns(counts[1]),
                    peer,
                    local,
                    preexisting: flags[0],
                    uncut: flags[1],
                    began_at: id.conn.since,
                    previous_at: times[0],
                    connect_at: times[1],
                    established_at: times[2],
                    first_sent_at: times[3],
                    last_sent_at: times[4],
                    sent: bytes[0],
                    acked: bytes[1],
                    first_received_at: times[5],
                    last_received_at: times[6],
                    received: bytes[2],
                    unread: bytes[3],
                    arrived_at: times[11],
                    eof_read_at: times[7],
                    send_error: error,
                    send_blocked_at: times[8],
                    recv_error: soft,
                    fin_at: times[9],
                    fin_before_request: flags[2],
                    late: times[10].is_some(),
                    answered: times[10].is_some(),
                    reset_at: times[10],
                    reset_in: closed_in,
                    acked_at_reset: bytes[4],
                    error,
                    error_at: times[11],
                    soft_error: soft,
                    error_unfetched: flags[3],
                    icmp: None,
                    syn_retransmits: counts[2],
                    retransmits: counts[0],
                    last_retransmit_at: times[0],
                    head: flags[1].then(|| {
                        Box::new(Head {
                            method: Some("GET".into()),
                            status: Some(502),
                            ..Head::default()
                        })
                    }),
                    rtt_us: Some(counts[1]),
                    send_window: None,
                    ended_at: Ktime(bytes[0]),
                    end,
                    closed_in,
                    backend: None,
                    line,
                    retry_of,
                }
            },
        )
}

fn line_id() -> impl Strategy<Value = LineId> {
    (time(), any::<u32>()).prop_map(|(at, worker)| LineId {
        at,
        worker: Pid(worker),
    })
}

fn event() -> impl Strategy<Value = Event> {
    let tuple = (any::<SocketAddr>(), any::<SocketAddr>()).prop_map(|(source, destination)| Tuple {
        source: flat(source),
        destination: flat(destination),
    });
    let listener =
        (peer(), task(), any::<[u32; 3]>(), any::<bool>()).prop_map(|(address, task, numbers, v6only)| {
            Listener {
                sock: Sock(u64::from(numbers[0])),
                netns: Netns(numbers[0]),
                address,
                v6only,
                queue: numbers[1],
                limit: numbers[2],
                task,
            }
        });
    let line = (
        line_id(),
        "\\PC{0,60}",
        option::of("\\PC{0,30}"),
        option::of(errno()),
        time(),
    )
        .prop_map(|(id, message, action, errno, at)| Line {
            id,
            worker: Pid(7),
            at,
            level: 4,
            errno,
            connection: Some(id.at.0),
            message,
            action: action.clone(),
            argument: action,
            number: None,
            route: None,
            denied: errno.map(|errno| ConnectDenied {
                at,
                errno,
                by: Denier::Cgroup,
            }),
            programs: Some(vec![Program {
                id: 7,
                name: "deny".to_owned(),
            }]),
            follows: Some(Follows::Failure(RetryOf::Line(id))),
        });
    prop_oneof![
        exchange().prop_map(|exchange| Event::Exchange(Box::new(exchange))),
        line.prop_map(Event::Line),
        (time(), listener.clone()).prop_map(|(at, listener)| Event::ListenerOpened { at, listener }),
        (time(), listener).prop_map(|(at, listener)| Event::ListenerClosed { at, listener }),
        (time(), tuple.clone(), any::<u8>(), option::of("[A-Z_]{1,30}")).prop_map(
            |(at, tuple, flags, reason)| {
                Event::ResetSent {
                    at,
                    netns: Netns(1),
                    tuple,
                    reason,
                    by: ResetBy::NoSocket,
                    flags,
                    conn: None,
                }
            }
        ),
        (time(), tuple.clone(), any::<u8>(), option::of("[A-Z_]{1,30}")).prop_map(
            |(at, tuple, flags, reason)| {
                Event::Dropped {
                    at,
                    netns: Netns(1),
                    tuple,
                    flags,
                    reason,
                    location: None,
                    conn: None,
                }
            }
        ),
        (time(), tuple, "[A-Z_]{1,30}").prop_map(|(at, tuple, reason)| Event::DatagramDropped {
            at,
            netns: Netns(1),
            tuple,
            reason,
        }),
        (time(), task(), option::of(task()), option::of(told())).prop_map(
            |(at, task, signalled_by, told)| Event::ProcessExited {
                at,
                task,
                parent: Pid(1),
                signalled_by,
                told,
                is_nginx: false,
            }
        ),
        (any::<u16>(), any::<u32>()).prop_map(|(kind, length)| Event::Unknown { kind, length }),
    ]
}

fn input() -> impl Strategy<Value = Input> {
    let config = (vec("\\PC{0,40}", 0..3), any::<Option<u64>>()).prop_map(|(texts, timeout)| Config {
        path: "/etc/nginx/nginx.conf".to_owned(),
        upstreams: 1,
        peers: texts
            .iter()
            .map(|text| crate::event::ConfiguredPeer {
                peer: Peer::Unix(text.clone()),
                upstream: text.clone(),
                server: text.clone(),
                via: None,
                upgrades: false,
                limits: Limits {
                    connect_timeout_ms: timeout,
                    ..Limits::default()
                },
                balancing: None,
            })
            .collect(),
        datagrams: Vec::new(),
        error_logs: texts.clone(),
        access_logs: texts
            .iter()
            .map(|text| crate::event::AccessLog {
                path: text.clone(),
                name: text.clone(),
                format: text.clone(),
                escape: crate::event::Escape::Json,
            })
            .collect(),
        resolvers: Vec::new(),
        names: texts
            .iter()
            .map(|text| crate::event::ConfiguredName {
                name: text.clone(),
                port: 80,
                upstream: text.clone(),
                server: text.clone(),
            })
            .collect(),
        is_whole: timeout.is_some(),
        may_ask_names: timeout.is_none(),
        cuts_at_shutdown: timeout.is_some(),
        problems: texts,
    });
    prop_oneof![
        4 => event().prop_map(Input::Kernel),
        1 => vec(("\\PC{0,20}", option::of("\\PC{0,20}")), 0..3).prop_map(|hooks| {
            Input::Hooks(
                hooks
                    .into_iter()
                    .map(|(sees, how)| HookStatus {
                        without: sees.clone(),
                        why_not: how.clone(),
                        sees,
                        how,
                    })
                    .collect(),
            )
        }),
        1 => (any::<u32>(), vec(any::<IpAddr>(), 0..4)).prop_map(|(netns, addresses)| Input::Addresses {
            netns: Netns(netns),
            addresses,
        }),
        1 => (vec(any::<u32>(), 0..4), option::of(time())).prop_map(|(pids, heard_since)| Input::Instance(Instance {
            pid: Pid(1),
            exe: "/usr/sbin/nginx".to_owned(),
            version: None,
            conf: None,
            workers: pids.into_iter().map(Pid).collect(),
            netns: Netns(2),
            heard_since,
        })),
        1 => (any::<u32>(), time(), config).prop_map(|(master, since, config)| Input::Config {
            master: Pid(master),
            since,
            config,
        }),
        1 => (any::<u32>(), any::<u32>(), time()).prop_map(|(worker, master, started)| Input::Worker {
            worker: Pid(worker),
            master: Pid(master),
            started,
        }),
        1 => ("\\PC{0,80}", option::of(peer()), any::<i64>()).prop_map(|(text, peer, time)| Input::LogLine(LogLine {
            message: text.clone(),
            request: Some(("GET".to_owned(), text.clone())),
            text,
            time,
            pid: Pid(3),
            connection: None,
            level: "error".to_owned(),
            errno: None,
            action: None,
            upstream: None,
            peer,
            client: None,
            host: None,
            is_udp: time % 2 == 0,
        })),
        1 => (peer(), any::<SocketAddr>()).prop_map(|(path, destination)| Input::Answer {
            question: match path {
                Peer::Tcp(_) => Question::Ports { pid: Pid(1), destination: flat(destination) },
                Peer::Unix(path) => Question::UnixPath { pid: Pid(1), path, sockets: true },
            },
            answer: Answer::Ports { range: (1, 2), by_state: vec![("TIME_WAIT".to_owned(), 3)] },
        }),
        1 => any::<u64>().prop_map(|count| Input::Lost { class: LossClass::Ring, count }),
        1 => any::<i64>().prop_map(|unix_ns| Input::Clock { unix_ns }),
        1 => Just(Input::Tick),
        1 => any::<u64>().prop_map(|in_flight| Input::Detach { in_flight }),
    ]
}

fn stamped() -> impl Strategy<Value = Stamped> {
    (time(), input()).prop_map(|(at, input)| Stamped { at, input })
}

fn header() -> Header {
    Header {
        format: FORMAT.to_owned(),
        origin: Origin {
            tool: "tracer 0.1.0".to_owned(),
            host: "web-1".to_owned(),
            kernel: "6.18.0".to_owned(),
            boot_id: None,
        },
        command: "tracer attach --pid nginx --record a.rec".to_owned(),
        clock: ClockReading {
            at: Ktime(5),
            unix_ns: 17,
        },
    }
}

fn write(path: &Path, inputs: &[Stamped]) {
    let mut writer = RecordingWriter::create(path, &header()).unwrap();
    for input in inputs {
        writer.push(input).unwrap();
    }
    writer.flush().unwrap();
}

/// The inputs of a recording, and what was said about its end.
fn read(path: &Path) -> Result<(Vec<Stamped>, Option<String>), Unreadable> {
    let mut reader = RecordingReader::open(path)?;
    assert_eq!(reader.header(), &header());
    let mut inputs = Vec::new();
    while let Some(input) = reader.next_input()? {
        inputs.push(input);
    }
    Ok((inputs, reader.torn().map(ToOwned::to_owned)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_recording_gives_back_what_went_in(inputs in vec(stamped(), 0..12), name in "a\\.rec(\\.zst)?") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        write(&path, &inputs);
        let (back, torn) = read(&path).unwrap();
        prop_assert_eq!(back, inputs);
        prop_assert_eq!(torn, None);
    }
}

fn ticks(count: u64) -> Vec<Stamped> {
    (0..count)
        .map(|at| Stamped {
            at: Ktime(at),
            input: Input::Lost {
                class: LossClass::Table,
                count: at,
            },
        })
        .collect()
}

#[test]
fn a_torn_end_is_skipped_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.rec");
    write(&path, &ticks(3));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let (inputs, torn) = read(&path).unwrap();
    assert_eq!(inputs, ticks(2));
    let torn = torn.unwrap();
    assert!(
        torn.ends_with("a.rec ends in the middle of line 4, which was skipped"),
        "{torn}"
    );
}

#[test]
fn a_compressed_recording_keeps_every_second_that_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.rec.zst");
    let inputs: Vec<_> = (0..10)
        .map(|second| Stamped {
            at: Ktime(second * 1_000_000_000),
            input: Input::Tick,
        })
        .collect();
    write(&path, &inputs);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let (back, torn) = read(&path).unwrap();
    assert!(back.len() >= 8, "{}", back.len());
    assert_eq!(back[..], inputs[..back.len()]);
    assert!(torn.is_some());
}

#[test]
fn other_files_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.rec");
    let cases = [
        ("", "is empty: a recording begins with its header line"),
        (
            "{\"type\":\"session\",\"schema\":\"tracer/1\"}\n",
            "is a trace (tracer/1), not a recording: read it with `tracer report`",
        ),
        (
            "{\"format\":\"tracer-recording/9\"}\n",
            "was recorded by a newer tracer (tracer-recording/9; this one reads tracer-recording/1)",
        ),
        (
            "hello\n",
            "is no recording: its first line is not a header that `tracer attach --record` writes",
        ),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, text).unwrap();
        let error = RecordingReader::open(&path).err().map(|error| error.problem);
        assert_eq!(error.as_deref(), Some(expected));
    }
}

#[test]
fn a_damaged_line_is_said_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.rec");
    write(&path, &ticks(2));
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"at\":1,\"input\":\"no-such-input\"}\n");
    std::fs::write(&path, text).unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(
        error.contains("a.rec: line 4 is no input of a recording: "),
        "{error}"
    );
}
