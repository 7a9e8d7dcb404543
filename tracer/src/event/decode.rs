//! Records of the kernel half → [`Event`]: total, no unsafe. What it does not know becomes [`Event::Unknown`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use tracer_ebpf as wire;
use tracer_ebpf::{COMM_LEN, conn, denier, end, kind, previous, task};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::{
    Backend, ConnId, ConnectDenied, Denial, Denier, EndKind, Errno, Event, Exchange, ExchangeId, Exit,
    Follows, Icmp, Ktime, Line, LineId, Listener, Netns, Peer, Pid, Program, ResetBy, RetryOf, RouteError,
    Sock, Task, TcpState, Told, Tuple,
    head::{self, Head},
};

/// Turns records into events; holds the running kernel's names for its numbers.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// `enum skb_drop_reason` by number.
    pub drop_reasons: BTreeMap<u32, String>,
    /// `enum sk_rst_reason` by number.
    pub reset_reasons: BTreeMap<u32, String>,
    /// Kernel functions by their first address, where the kernel shows them; an empty name ends the one before.
    pub symbols: BTreeMap<u64, String>,
}

impl Decoder {
    /// When a record was written; the beginning of time for one too short to say.
    #[must_use]
    pub fn time_of(bytes: &[u8]) -> Ktime {
        wire::Header::read_from_prefix(bytes).map_or(Ktime(0), |(header, _)| Ktime(header.at))
    }

    /// Decodes one record.
    #[must_use]
    pub fn decode(&self, bytes: &[u8]) -> Event {
        self.try_decode(bytes).unwrap_or_else(|| {
            let kind = wire::Header::read_from_prefix(bytes).map_or(0, |(header, _)| header.kind);
            Event::Unknown {
                kind,
                length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            }
        })
    }

    fn try_decode(&self, bytes: &[u8]) -> Option<Event> {
        let (header, _) = wire::Header::read_from_prefix(bytes).ok()?;
        let at = Ktime(header.at);
        Some(match header.kind {
            kind::EXCHANGE | kind::UNIX_EXCHANGE => {
                let least = if header.kind == kind::EXCHANGE {
                    wire::Conn::SHORT
                } else {
                    wire::Conn::LONG
                };
                let len = bytes.len().min(size_of::<wire::Conn>());
                let mut whole = wire::Conn::new_zeroed();
                whole.as_mut_bytes()[..len].copy_from_slice(bytes.get(..len.max(least))?);
                Event::Exchange(Box::new(exchange(&whole)))
            }
            kind::LINE => Event::Line(line(&record(bytes)?)),
            kind::LISTENER_OPENED => Event::ListenerOpened {
                at,
                listener: listener(&record(bytes)?),
            },
            kind::LISTENER_CLOSED => Event::ListenerClosed {
                at,
                listener: listener(&record(bytes)?),
            },
            kind::LISTENER_QUEUE => {
                let found: wire::Listener = record(bytes)?;
                Event::ListenerQueue {
                    at,
                    conn: ConnId {
                        sock: Sock(found.conn_sock),
                        since: Ktime(found.conn_since),
                    },
                    listener: listener(&found),
                }
            }
            kind::RESET_SENT => {
                let packet: wire::Packet = record(bytes)?;
                Event::ResetSent {
                    at,
                    netns: Netns(packet.netns),
                    tuple: tuple(&packet),
                    reason: name(&self.reset_reasons, packet.reason),
                    by: match packet.by {
                        0 => ResetBy::NoSocket,
                        1 => ResetBy::Listener,
                        2 => ResetBy::TimeWait,
                        _ => ResetBy::Socket,
                    },
                    flags: packet.tcp_flags,
                    conn: conn_of(&packet),
                }
            }
            kind::DROPPED => {
                let packet: wire::Packet = record(bytes)?;
                Event::Dropped {
                    at,
                    netns: Netns(packet.netns),
                    tuple: tuple(&packet),
                    flags: packet.tcp_flags,
                    reason: name(&self.drop_reasons, packet.reason),
                    location: self
                        .symbols
                        .range(..=packet.location)
                        .next_back()
                        .map(|(_, name)| name.clone())
                        .filter(|name| !name.is_empty()),
                    conn: conn_of(&packet),
                }
            }
            kind::DATAGRAM_DROPPED => {
                let packet: wire::Packet = record(bytes)?;
                Event::DatagramDropped {
                    at,
                    netns: Netns(packet.netns),
                    tuple: tuple(&packet),
                    reason: name(&self.drop_reasons, packet.reason)?,
                }
            }
            kind::ICMP_SENT => {
                let packet: wire::Packet = record(bytes)?;
                Event::IcmpSent {
                    at,
                    netns: Netns(packet.netns),
                    tuple: tuple(&packet),
                    kind: packet.icmp_kind,
                    code: packet.icmp_code,
                    conn: conn_of(&packet),
                }
            }
            kind::BACKEND_EDGE => {
                let edge: wire::BackendEdge = record(bytes)?;
                Event::BackendEdge {
                    at,
                    exchange: ExchangeId {
                        conn: ConnId {
                            sock: Sock(edge.conn_sock),
                            since: Ktime(edge.conn_since),
                        },
                        number: 0,
                    },
                    backend: Box::new(Backend {
                        sock: Sock(edge.sock),
                        netns: Netns(edge.netns),
                        accepted: edge.flags & conn::ACCEPTED != 0,
                        aborted: edge.flags & conn::ABORTED != 0,
                        unread: u64::from(edge.unread),
                        closed_at: time(edge.closed_at),
                        // Only the close itself is sure to run in the closer's task.
                        closed_by: (edge.closed_at == header.at).then(|| process(&edge.task)),
                        reset_reason: name(&self.reset_reasons, edge.reset_reason),
                        error_at_destroy: errno(edge.error),
                        ..Backend::default()
                    }),
                }
            }
            kind::CLIENT_LEFT => {
                let left: wire::ClientLeft = record(bytes)?;
                Event::ClientLeft {
                    at,
                    worker: Pid(header.pid),
                    exchange: (left.conn_sock != 0).then_some(ExchangeId {
                        conn: ConnId {
                            sock: Sock(left.conn_sock),
                            since: Ktime(left.conn_since),
                        },
                        number: left.number,
                    }),
                    reset: left.reset != 0,
                }
            }
            kind::CLIENT_ANSWERED => {
                let answered: wire::ClientAnswered = record(bytes)?;
                let of = (answered.previous_sock, answered.previous_since);
                let begins = answered.head.get(..usize::from(answered.head_len))?;
                Event::ClientAnswered {
                    at,
                    worker: Pid(header.pid),
                    of: retry_of(answered.previous_kind, of, answered.previous_number, header.pid)?,
                    client: (answered.dport != 0).then(|| socket_addr(answered.daddr, answered.dport)),
                    status: head::status_line(begins),
                    cut: answered.cut != 0,
                }
            }
            kind::CONNECT_FAILED => {
                let failed: wire::ConnectFailed = record(bytes)?;
                Event::ConnectFailed {
                    at,
                    worker: Pid(header.pid),
                    peer: if failed.family == 1 {
                        Peer::Unix(text(&failed.path))
                    } else {
                        Peer::Tcp(socket_addr(failed.addr, failed.port))
                    },
                    errno: Errno(failed.errno),
                }
            }
            kind::SELINUX_DENIED => {
                let found: wire::SelinuxDenied = record(bytes)?;
                let class = text(&found.class);
                Event::SelinuxDenied(Denial {
                    at,
                    worker: Pid(header.pid),
                    source: text(&found.source),
                    target: text(&found.target),
                    denied: permissions(&class, found.denied),
                    class,
                })
            }
            kind::PROCESS_EXITED => {
                let found: wire::Process = record(bytes)?;
                let ended_by = u32::try_from(found.task.exit_code & 0x7f).unwrap_or(0);
                let sender = process(&found.sender);
                Event::ProcessExited {
                    at,
                    task: process(&found.task),
                    parent: Pid(found.parent),
                    is_nginx: found.is_nginx != 0,
                    told: match u8::try_from(found.signal) {
                        Ok(signal @ 1..) if ended_by == 0 => Some(Told {
                            signal,
                            by: sender.clone(),
                            ago_ms: found.signal_age_ms,
                        }),
                        _ => None,
                    },
                    // The last signal seen must be the one that ended it.
                    signalled_by: (found.signal != 0 && ended_by == found.signal).then_some(sender),
                }
            }
            kind::SIGNALLED => {
                let found: wire::Process = record(bytes)?;
                Event::Signalled {
                    at,
                    pid: Pid(found.task.pid),
                    signal: u8::try_from(found.signal).ok()?,
                    by: process(&found.sender),
                }
            }
            kind::FORKED => {
                let found: wire::Process = record(bytes)?;
                Event::Forked {
                    at,
                    parent: Pid(found.parent),
                    child: Pid(found.task.pid),
                }
            }
            kind::EXECUTED => {
                let found: wire::Process = record(bytes)?;
                Event::Executed {
                    at,
                    pid: Pid(found.task.pid),
                    comm: text(&found.task.comm),
                    is_nginx: found.is_nginx != 0,
                }
            }
            _ => return None,
        })
    }
}

fn record<T: zerocopy::FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(record, _)| record)
}

/// What the backend had written and nginx's socket had not received.
fn arriving(c: &wire::Conn) -> u64 {
    // A difference of sequence numbers: what looks like half of all numbers is nothing.
    u64::try_from(c.backend_underway.cast_signed()).unwrap_or(0)
}

/// A connection of the kernel's table, or the part of it that was written, as an exchange.
#[must_use]
pub fn exchange(c: &wire::Conn) -> Exchange {
    let is_unix = c.family == 1;
    let id = ExchangeId {
        conn: ConnId {
            sock: Sock(c.sock),
            since: Ktime(c.since),
        },
        number: c.number,
    };
    let within_request = |seq: u32| {
        u64::try_from(seq.wrapping_sub(c.start_seq).cast_signed())
            .unwrap_or(0)
            .min(c.sent)
    };
    let backend = (c.backend_sock != 0).then(|| Backend {
        sock: Sock(c.backend_sock),
        netns: Netns(c.backend_netns),
        task: (c.flags & conn::BACKEND_TASK != 0).then(|| process(&c.backend_task)),
        accepted: c.flags & conn::ACCEPTED != 0,
        accepted_at: time(c.backend_accepted_at),
        first_read_at: time(c.backend_first_read_at),
        last_read_at: time(c.backend_last_read_at).filter(|last| last.0 >= c.began_at),
        read: if is_unix {
            c.backend_read.saturating_sub(c.sent_before).min(c.sent)
        } else if c.backend_copied != 0 {
            within_request(c.backend_copied)
        } else {
            0
        },
        sent: c.received + u64::from(c.unread) + arriving(c),
        unread: u64::from(c.backend_unread),
        closed_at: time(c.backend_closed_at),
        closed_by: (c.backend_closed_at != 0).then(|| process(&c.backend_closer)),
        aborted: c.flags & conn::ABORTED != 0,
        reset_reason: None,
        error_at_destroy: None,
    });
    Exchange {
        id,
        worker: Pid(c.worker),
        netns: Netns(c.netns),
        peer: if is_unix {
            Peer::Unix(text(&c.path))
        } else {
            Peer::Tcp(socket_addr(c.daddr, c.dport))
        },
        local: (!is_unix && c.sport != 0).then(|| socket_addr(c.saddr, c.sport)),
        preexisting: c.flags & conn::PREEXISTING != 0,
        uncut: c.flags & conn::UNCUT != 0,
        began_at: Ktime(c.began_at),
        previous_at: time(c.previous_at),
        connect_at: time(c.connect_at),
        established_at: time(c.established_at),
        first_sent_at: time(c.first_sent_at),
        last_sent_at: time(c.last_sent_at),
        sent: c.sent,
        acked: if is_unix { c.sent } else { within_request(c.una) },
        first_received_at: time(c.first_received_at),
        last_received_at: time(c.last_received_at),
        received: c.received,
        unread: u64::from(c.unread),
        arrived_at: time(c.arrived_at),
        eof_read_at: time(c.eof_at),
        send_error: errno(c.send_error),
        send_blocked_at: time(c.send_blocked_at),
        recv_error: errno(c.recv_error),
        fin_at: time(c.fin_at),
        fin_before_request: c.flags & conn::FIN_SEEN != 0
            && c.una_at_fin.wrapping_sub(c.start_seq).cast_signed() <= 0,
        late: c.end == end::LET_GO,
        answered: c.flags & conn::HEARD != 0,
        reset_at: time(c.reset_at),
        reset_in: (c.reset_at != 0).then(|| state(c.reset_in)),
        acked_at_reset: if c.reset_at != 0 {
            within_request(c.una_at_reset)
        } else {
            0
        },
        error: errno(c.error),
        error_at: time(c.error_at),
        soft_error: errno(c.soft),
        error_unfetched: c.flags & conn::ERROR_UNFETCHED != 0,
        icmp: (c.flags & conn::ICMP_SEEN != 0).then(|| Icmp {
            at: Ktime(c.icmp_at),
            kind: c.icmp_kind,
            code: c.icmp_code,
            sender: Some(ip(c.icmp_sender)),
            errno: errno(c.soft).or(errno(c.error)).unwrap_or(Errno(0)),
        }),
        syn_retransmits: c.syn_retransmits,
        retransmits: c.retransmits,
        last_retransmit_at: time(c.last_retransmit_at),
        head: head(c),
        rtt_us: (c.rtt_us != 0).then_some(c.rtt_us),
        send_window: (c.flags & conn::WINDOW_KNOWN != 0 && c.established_at != 0).then_some(c.window),
        ended_at: Ktime(c.ended_at),
        end: match c.end {
            end::NEXT => EndKind::NextExchange,
            end::IDLE => EndKind::Idle,
            end::WORKER_GONE => EndKind::WorkerGone,
            end::PRESUMED => EndKind::Presumed,
            end::DETACHED => EndKind::Detached,
            _ => EndKind::Closed,
        },
        closed_in: (c.closed_in != 0).then(|| state(c.closed_in)),
        backend,
        line: (c.line != 0).then(|| line_id(c.line, c.worker)),
        retry_of: retry_of(
            c.retry_kind,
            (c.retry_sock, c.retry_since),
            c.retry_number,
            c.worker,
        ),
    }
}

fn head(c: &wire::Conn) -> Option<Box<Head>> {
    let request = c.request.get(..usize::from(c.request_len))?;
    let response = c.response.get(..usize::from(c.response_len))?;
    let head = if c.flags & conn::BY_HEADERS == 0 {
        head::read(request, response)
    } else {
        head::read_http2(request, response)
    };
    head.map(Box::new)
}

/// What `previous::*` says was tried before; `of` is a socket and since when, or a line's id in the second place.
fn retry_of(kind: u32, of: (u64, u64), number: u32, worker: u32) -> Option<RetryOf> {
    match kind {
        previous::LINED | previous::SILENT => Some(RetryOf::Exchange(ExchangeId {
            conn: ConnId {
                sock: Sock(of.0),
                since: Ktime(of.1),
            },
            number,
        })),
        previous::LINE => Some(RetryOf::Line(line_id(of.1, worker))),
        _ => None,
    }
}

fn line_id(at: u64, worker: u32) -> LineId {
    LineId {
        at: Ktime(at),
        worker: Pid(worker),
    }
}

fn line(l: &wire::Line) -> Line {
    let filled = |bytes: &[u8]| Some(text(bytes)).filter(|text| !text.is_empty());
    Line {
        id: line_id(l.header.at, l.header.pid),
        worker: Pid(l.header.pid),
        at: Ktime(l.header.at),
        level: u8::try_from(l.level).unwrap_or(u8::MAX),
        errno: errno(l.errno),
        connection: (l.connection != 0).then_some(l.connection),
        message: text(&l.format),
        action: filled(&l.action),
        argument: filled(&l.argument),
        number: l
            .format
            .starts_with(b"%V could not be resolved (%i")
            .then_some(l.number)
            .filter(|number| *number != 0),
        follows: match l.previous_kind {
            u32::MAX => None,
            // nginx says nothing of what ended well.
            previous::SILENT => Some(Follows::Other),
            kind => {
                let of = (l.previous_sock, l.previous_since);
                let before = retry_of(kind, of, l.previous_number, l.header.pid);
                Some(before.map_or(Follows::Other, Follows::Failure))
            }
        },
        denied: (l.denied_at != 0).then_some(ConnectDenied {
            at: Ktime(l.denied_at),
            errno: Errno(l.denied_errno),
            by: match l.denied_by {
                denier::CGROUP => Denier::Cgroup,
                _ => Denier::SecurityModule,
            },
        }),
        programs: usize::try_from(l.programs)
            .ok()
            .filter(|count| *count <= l.program_ids.len())
            .map(|count| {
                let named = l.program_ids.iter().zip(&l.program_names).take(count);
                let program = |(id, name): (&u32, &[u8; COMM_LEN])| Program {
                    id: *id,
                    name: text(name),
                };
                // What stands in for a program that could not be taken out has no number.
                named.map(program).filter(|program| program.id != 0).collect()
            }),
        route: (l.route_at != 0).then(|| RouteError {
            at: Ktime(l.route_at),
            errno: Errno(l.route_errno),
            destination: ip(l.route_daddr),
        }),
    }
}

fn listener(l: &wire::Listener) -> Listener {
    Listener {
        sock: Sock(l.sock),
        netns: Netns(l.netns),
        address: Peer::Tcp(bound(l.addr, l.port, u16::from(l.family))),
        v6only: l.v6only != 0,
        queue: l.queue,
        limit: l.limit,
        task: process(&l.task),
    }
}

fn conn_of(packet: &wire::Packet) -> Option<ConnId> {
    (packet.conn_sock != 0).then_some(ConnId {
        sock: Sock(packet.conn_sock),
        since: Ktime(packet.conn_since),
    })
}

fn tuple(p: &wire::Packet) -> Tuple {
    Tuple {
        source: socket_addr(p.saddr, p.sport),
        destination: socket_addr(p.daddr, p.dport),
    }
}

fn process(t: &wire::TaskInfo) -> Task {
    Task {
        pid: Pid(t.pid),
        comm: text(&t.comm),
        exiting: (t.flags & task::EXITING != 0).then(|| match t.exit_code & 0x7f {
            0 => Exit::Code(t.exit_code.as_bytes()[1]),
            _ => Exit::Signal(t.exit_code.as_bytes()[0] & 0x7f),
        }),
        oom: t.flags & task::OOM != 0,
    }
}

fn name(names: &BTreeMap<u32, String>, number_plus_one: u32) -> Option<String> {
    let number = number_plus_one.checked_sub(1)?;
    Some(
        names
            .get(&number)
            .cloned()
            .unwrap_or_else(|| format!("reason {number}")),
    )
}

/// The names of SELinux permissions, by the kernel's own numbers; the policy, whose numbers /sys/fs/selinux shows, has
/// others. Files and sockets share the first ones. Behind those, what files have grew with 6.15, so that a number has
/// no certain name there; what sockets have is the same from 5.10 to 7.2.
/// <https://github.com/torvalds/linux/blob/v6.12/security/selinux/include/classmap.h>
fn permissions(class: &str, denied: u32) -> Vec<String> {
    const SHARED: [&str; 11] = [
        "ioctl",
        "read",
        "write",
        "create",
        "getattr",
        "setattr",
        "lock",
        "relabelfrom",
        "relabelto",
        "append",
        "map",
    ];
    const SOCKETS: [&str; 10] = [
        "bind",
        "connect",
        "listen",
        "accept",
        "getopt",
        "setopt",
        "shutdown",
        "recvfrom",
        "sendto",
        "name_bind",
    ];
    let (further, own): (&[&str], &[&str]) = match class {
        "tcp_socket" => (&SOCKETS, &["node_bind", "name_connect"]),
        "unix_stream_socket" => (&SOCKETS, &["connectto"]),
        "file" | "dir" | "lnk_file" | "sock_file" => (&[], &[]),
        _ => return vec![format!("{denied:#x}")],
    };
    let names = SHARED.iter().chain(further).chain(own);
    let mut nameless = denied;
    let mut permissions = Vec::new();
    for (number, name) in names.enumerate() {
        let bit = 1 << number;
        if denied & bit != 0 {
            permissions.push((*name).to_owned());
            nameless &= !bit;
        }
    }
    if nameless != 0 {
        permissions.push(format!("{nameless:#x}"));
    }
    permissions
}

fn time(at: u64) -> Option<Ktime> {
    (at != 0).then_some(Ktime(at))
}

fn errno(number: i32) -> Option<Errno> {
    (number != 0).then_some(Errno(number))
}

/// Bytes up to the first zero.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// 16 bytes as an address; IPv4-mapped becomes IPv4.
#[must_use]
pub fn ip(addr: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(addr)).to_canonical()
}

fn socket_addr(addr: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(ip(addr), port)
}

/// The address of a bound socket of this family: a v6 socket bound to `::` stays `[::]`.
#[must_use]
pub fn bound(addr: [u8; 16], port: u16, family: u16) -> SocketAddr {
    if family == 2 {
        socket_addr(addr, port)
    } else {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(addr)), port)
    }
}

fn state(number: u8) -> TcpState {
    match number {
        1 => TcpState::Established,
        2 => TcpState::SynSent,
        3 => TcpState::SynRecv,
        4 => TcpState::FinWait1,
        5 => TcpState::FinWait2,
        6 => TcpState::TimeWait,
        7 => TcpState::Close,
        8 => TcpState::CloseWait,
        9 => TcpState::LastAck,
        10 => TcpState::Listen,
        11 => TcpState::Closing,
        12 => TcpState::NewSynRecv,
        _ => TcpState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_become_an_event(bytes in proptest::collection::vec(any::<u8>(), 0..900), kind in 0u16..22) {
            let mut bytes = bytes;
            if bytes.len() >= 10 {
                bytes[8..10].copy_from_slice(&kind.to_le_bytes());
            }
            let decoder = Decoder::default();
            let _ = decoder.decode(&bytes);
        }
    }

    #[test]
    fn a_short_record_is_unknown_and_says_how_long_it_was() {
        let header = wire::Header {
            at: 7,
            kind: kind::LINE,
            cpu: 0,
            pid: 1,
        };
        let event = Decoder::default().decode(header.as_bytes());
        assert_eq!(
            event,
            Event::Unknown {
                kind: kind::LINE,
                length: 16
            }
        );
    }

    #[test]
    fn permissions_have_the_kernels_names() {
        let named = |class, denied| permissions(class, denied).join(" ");
        assert_eq!(named("tcp_socket", 0x40_0000), "name_connect");
        assert_eq!(named("unix_stream_socket", 0x20_0000), "connectto");
        assert_eq!(named("sock_file", 0x4), "write");
        assert_eq!(named("lnk_file", 0x2), "read");
        assert_eq!(named("dir", 0x1000_0000), "0x10000000");
        assert_eq!(named("dir", 0x2000_0002), "read 0x20000000");
        assert_eq!(named("capability", 0x2), "0x2");
    }

    #[test]
    fn a_denial_keeps_its_contexts() {
        let mut record = wire::SelinuxDenied::new_zeroed();
        record.header = wire::Header {
            at: 7,
            kind: kind::SELINUX_DENIED,
            cpu: 0,
            pid: 811,
        };
        record.denied = 0x40_0000;
        record.class[..10].copy_from_slice(b"tcp_socket");
        record.source[..7].copy_from_slice(b"httpd_t");
        record.target[..13].copy_from_slice(b"http_port_t:s");
        assert_eq!(
            Decoder::default().decode(record.as_bytes()),
            Event::SelinuxDenied(Denial {
                at: Ktime(7),
                worker: Pid(811),
                source: "httpd_t".to_owned(),
                target: "http_port_t:s".to_owned(),
                class: "tcp_socket".to_owned(),
                denied: vec!["name_connect".to_owned()],
            })
        );
    }

    #[test]
    fn an_exit_code_is_a_signal_or_a_code() {
        let mut info = wire::TaskInfo {
            flags: task::EXITING,
            exit_code: 9,
            ..wire::TaskInfo::default()
        };
        assert_eq!(process(&info).exiting, Some(Exit::Signal(9)));
        info.exit_code = 3 << 8;
        assert_eq!(process(&info).exiting, Some(Exit::Code(3)));
        // A dumped core sets bit 7.
        info.exit_code = 0x80 | 11;
        assert_eq!(process(&info).exiting, Some(Exit::Signal(11)));
    }
}
