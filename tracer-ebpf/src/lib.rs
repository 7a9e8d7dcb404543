//! The wire format: what the BPF programs write and the tracer reads, compiled into both.
//!
//! Integers and byte arrays only; padding is a named field, so that a hole is a compile error. Addresses are 16
//! bytes, IPv4 in its mapped form; ports are in host order; times are nanoseconds of `CLOCK_BOOTTIME`, 0 = not seen.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest SELinux context that is kept, with its terminating zero.
pub const CONTEXT_LEN: usize = 128;
/// Longest name of an SELinux class that is kept, with its terminating zero.
pub const CLASS_LEN: usize = 36;
/// Longest unix path a `sockaddr_un` holds, with its terminating zero.
pub const PATH_LEN: usize = 108;
/// How much of a request's beginning is taken: what FastCGI's parameters need to reach the Host behind the others.
pub const REQUEST_LEN: usize = 640;
/// How much of an answer's beginning is taken: a status, which may be behind another header.
pub const RESPONSE_LEN: usize = 256;
/// Length of a task's name in the kernel.
pub const COMM_LEN: usize = 16;
/// An offset that the running kernel's BTF does not have.
pub const ABSENT: u32 = u32::MAX;
/// Most drop reasons a kernel may know (6.18 knows 129).
pub const DROP_REASONS: usize = 256;
/// Functions whose drops matter on kernels without drop reasons; those of the first [`SYN_PLACES`] only for a SYN,
/// which there means that nobody listens.
pub const DROP_PLACES: [&str; 5] = [
    "tcp_v4_rcv",
    "tcp_v6_rcv",
    "nf_hook_slow",
    "neigh_invalidate",
    "ip_rcv_finish_core",
];
/// The one of [`DROP_PLACES`] that matters on every kernel: IPv6 gives no reason for a silent neighbour.
pub const NEIGHBOUR_PLACE: &str = DROP_PLACES[3];
/// See [`DROP_PLACES`].
pub const SYN_PLACES: usize = 2;
/// In [`Settings::drop_wanted`]: of interest only in one of [`DROP_PLACES`].
pub const WANTED_BY_PLACE: u8 = 2;
/// In [`Settings::drop_wanted`]: of interest only where the packet is UDP's.
pub const WANTED_OF_UDP: u8 = 3;
/// Listeners kept per port: several namespaces, addresses and `SO_REUSEPORT` sockets share one.
pub const LISTENERS_PER_PORT: u32 = 64;

/// Kinds of records, [`Header::kind`].
pub mod kind {
    /// [`crate::Conn`] over TCP, cut.
    pub const EXCHANGE: u16 = 1;
    /// [`crate::Conn`] over a unix socket, cut.
    pub const UNIX_EXCHANGE: u16 = 2;
    /// [`crate::Line`].
    pub const LINE: u16 = 3;
    /// [`crate::Listener`]: begins to listen.
    pub const LISTENER_OPENED: u16 = 4;
    /// [`crate::Listener`]: stops listening.
    pub const LISTENER_CLOSED: u16 = 5;
    /// [`crate::Listener`]: its queue when a connection met silence.
    pub const LISTENER_QUEUE: u16 = 6;
    /// [`crate::Packet`]: this host's TCP answered it with a reset.
    pub const RESET_SENT: u16 = 7;
    /// [`crate::Packet`]: freed on this host.
    pub const DROPPED: u16 = 8;
    /// [`crate::Packet`]: this host generated an ICMP error for it.
    pub const ICMP_SENT: u16 = 9;
    /// [`crate::BackendEdge`].
    pub const BACKEND_EDGE: u16 = 10;
    /// [`crate::ClientLeft`].
    pub const CLIENT_LEFT: u16 = 11;
    /// [`crate::Process`]: ended.
    pub const PROCESS_EXITED: u16 = 12;
    /// [`crate::Process`]: an nginx process forked; `pid` is the child, `parent` the parent.
    pub const FORKED: u16 = 13;
    /// [`crate::Process`]: executed another program; `flags` bit 0: it is (still) an nginx.
    pub const EXECUTED: u16 = 14;
    /// [`crate::SnapshotSocket`], written by the iterator, never to the ring.
    pub const SNAPSHOT: u16 = 15;
    /// [`crate::ConnectFailed`].
    pub const CONNECT_FAILED: u16 = 16;
    /// [`crate::Process`]: nginx, or a process that listened or served, was sent `signal`.
    pub const SIGNALLED: u16 = 17;
    /// [`crate::SelinuxDenied`].
    pub const SELINUX_DENIED: u16 = 18;
    /// [`crate::ClientAnswered`].
    pub const CLIENT_ANSWERED: u16 = 19;
    /// [`crate::Packet`]: of UDP, to a peer of a UDP proxy's, freed on this host.
    pub const DATAGRAM_DROPPED: u16 = 20;
}

/// Bits of [`Conn::flags`].
pub mod conn {
    /// The connection was there before the tracer.
    pub const PREEXISTING: u32 = 1;
    /// The boundary rule does not hold on it: one record for all.
    pub const UNCUT: u32 = 2;
    /// nginx's close has been seen.
    pub const MARKED: u32 = 4;
    /// The FIN arrived while `snd_una` was at or before the request's first byte.
    pub const FIN_SEEN: u32 = 8;
    /// `sk_err` was still set at destroy.
    pub const ERROR_UNFETCHED: u32 = 16;
    /// A process had accepted the backend's socket.
    pub const ACCEPTED: u32 = 32;
    /// The backend's close was a reset.
    pub const ABORTED: u32 = 64;
    /// `error` and `soft` were read at the end of the connection.
    pub const WINDOW_KNOWN: u32 = 128;
    /// unix: `recv` returned 0 or an error and nothing of the worker's own followed yet.
    pub const UNIX_ENDED: u32 = 256;
    /// The socket's ICMP error has been read.
    pub const ICMP_SEEN: u32 = 512;
    /// A process touched the backend's socket.
    pub const BACKEND_TASK: u32 = 1024;
    /// A backend's socket that was there before: it has been seen to be still the one that was found.
    pub const CONFIRMED: u32 = 2048;
    /// With [`UNCUT`]: one request after another all the same (HTTP/1 over TLS), so an answer that was passed on to
    /// the client proves the end of an exchange.
    pub const BY_ANSWER: u32 = 4096;
    /// With [`BY_ANSWER`]: what was read last was passed on.
    pub const ANSWERED: u32 = 8192;
    /// A segment of the peer's arrived: `segs_in` was above 0 at the end.
    pub const HEARD: u32 = 16384;
    /// Over a unix socket: the backend had read the first bytes before nginx's send was seen to return, and whether its
    /// own read is seen as well is not known yet.
    pub const READ_AHEAD: u32 = 32768;
    /// With [`UNCUT`]: HTTP/2, one request after another (gRPC), so a send that begins with a request's header begins an
    /// exchange.
    pub const BY_HEADERS: u32 = 65536;
    /// Of an address alone: a UDP proxy of nginx's has it as a peer.
    pub const DATAGRAMS: u32 = 131_072;
}

/// [`Conn::end`].
pub mod end {
    /// nginx closed it.
    pub const CLOSED: u8 = 1;
    /// A further request began.
    pub const NEXT: u8 = 2;
    /// nginx peeked at the idle connection.
    pub const IDLE: u8 = 3;
    /// The worker was ending.
    pub const WORKER_GONE: u8 = 4;
    /// unix, found by user space.
    pub const PRESUMED: u8 = 5;
    /// Still under way at detach, found by user space.
    pub const DETACHED: u8 = 6;
    /// nginx closed it while another task held the socket's file, and that task let go.
    pub const LET_GO: u8 = 7;
}

/// [`Conn::retry_kind`] and [`Worker::previous_kind`].
pub mod previous {
    /// Nothing.
    pub const NONE: u32 = 0;
    /// An exchange that ended with a line.
    pub const LINED: u32 = 1;
    /// A line without a close behind it (yet).
    pub const LINE: u32 = 2;
    /// An exchange that ended without a line.
    pub const SILENT: u32 = 3;
}

/// Bits of [`TaskInfo::flags`].
pub mod task {
    /// It was exiting.
    pub const EXITING: u32 = 1;
    /// The OOM killer had chosen it.
    pub const OOM: u32 = 2;
    /// Its whole thread group is gone.
    pub const GROUP_DEAD: u32 = 4;
}

/// The beginning of every record.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// When.
    pub at: u64,
    /// A constant of [`kind`].
    pub kind: u16,
    /// The processor.
    pub cpu: u16,
    /// The current process.
    pub pid: u32,
}

/// A task at one moment.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TaskInfo {
    /// Its process id.
    pub pid: u32,
    /// Bits of [`task`].
    pub flags: u32,
    /// The kernel's exit code: signal in the low 7 bits, code in bits 8 to 15.
    pub exit_code: i32,
    /// Padding.
    pub pad: u32,
    /// Its name.
    pub comm: [u8; COMM_LEN],
}

/// One connection of nginx to an upstream: the value kept per socket, and the record written per exchange.
///
/// Fields of one exchange are reset when the next begins; what ends a connection (FIN, RST, errors) never is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Conn {
    /// Filled when written.
    pub header: Header,
    /// The socket.
    pub sock: u64,
    /// First seen: the generation of `sock`.
    pub since: u64,
    /// Number of the exchange, from 1.
    pub number: u32,
    /// The worker.
    pub worker: u32,
    /// Inode of its network namespace.
    pub netns: u32,
    /// Bits of [`conn`].
    pub flags: u32,
    /// Local address.
    pub saddr: [u8; 16],
    /// Peer's address.
    pub daddr: [u8; 16],
    /// Local port.
    pub sport: u16,
    /// Peer's port.
    pub dport: u16,
    /// 2 IPv4, 10 IPv6, 1 unix.
    pub family: u16,
    /// The state nginx closed it in.
    pub closed_in: u8,
    /// A constant of [`end`].
    pub end: u8,
    /// Begin of the exchange; 0: none under way.
    pub began_at: u64,
    /// Last byte received in the exchange before.
    pub previous_at: u64,
    /// →SYN_SENT, or the accepted unix connect.
    pub connect_at: u64,
    /// →ESTABLISHED.
    pub established_at: u64,
    /// First successful send.
    pub first_sent_at: u64,
    /// Last successful send.
    pub last_sent_at: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes sent in all exchanges before.
    pub sent_before: u64,
    /// First read with data.
    pub first_received_at: u64,
    /// Last read with data.
    pub last_received_at: u64,
    /// Bytes read.
    pub received: u64,
    /// nginx read the end of the stream.
    pub eof_at: u64,
    /// Last send that met a full buffer.
    pub send_blocked_at: u64,
    /// The peer's FIN arrived.
    pub fin_at: u64,
    /// A RST arrived.
    pub reset_at: u64,
    /// `sk_err` was set.
    pub error_at: u64,
    /// The ICMP error was seen.
    pub icmp_at: u64,
    /// Last retransmission.
    pub last_retransmit_at: u64,
    /// End of the exchange.
    pub ended_at: u64,
    /// The line joined to the end, 0: none.
    pub line: u64,
    /// What this exchange retried.
    pub retry_sock: u64,
    /// With `retry_sock`; for a line its id.
    pub retry_since: u64,
    /// With `retry_sock`.
    pub retry_number: u32,
    /// A constant of [`previous`].
    pub retry_kind: u32,
    /// Sequence number of the request's first byte.
    pub start_seq: u32,
    /// `snd_una` when the FIN arrived.
    pub una_at_fin: u32,
    /// `snd_una` when the RST arrived.
    pub una_at_reset: u32,
    /// `snd_una` at the end.
    pub una: u32,
    /// `sk_err`.
    pub error: i32,
    /// `sk_err_soft`.
    pub soft: i32,
    /// errno of a failed send, positive.
    pub send_error: i32,
    /// errno of a failed read, positive.
    pub recv_error: i32,
    /// SYN retransmissions.
    pub syn_retransmits: u32,
    /// Data retransmissions.
    pub retransmits: u32,
    /// `srtt_us >> 3`.
    pub rtt_us: u32,
    /// `snd_wnd`.
    pub window: u32,
    /// Bytes arrived and not read, FIN not counted.
    pub unread: u32,
    /// State when the RST arrived.
    pub reset_in: u8,
    /// Type of the ICMP error.
    pub icmp_kind: u8,
    /// Code of the ICMP error.
    pub icmp_code: u8,
    /// Padding.
    pub pad: u8,
    /// Sender of the ICMP error.
    pub icmp_sender: [u8; 16],
    /// With `unread` at nginx's own close: when the last packet on the connection came or left before.
    pub arrived_at: u64,
    /// Key in the table of initial sequence numbers, 0: none.
    pub isn_key: u64,
    /// The backend's socket, 0: not on this host.
    pub backend_sock: u64,
    /// A process took the backend's socket with accept().
    pub backend_accepted_at: u64,
    /// The backend's first read.
    pub backend_first_read_at: u64,
    /// Its last read.
    pub backend_last_read_at: u64,
    /// Bytes it read over the whole connection (unix).
    pub backend_read: u64,
    /// Its close.
    pub backend_closed_at: u64,
    /// Its namespace.
    pub backend_netns: u32,
    /// `copied_seq` of its socket at its last read or close.
    pub backend_copied: u32,
    /// Bytes unread at its close or at the end.
    pub backend_unread: u32,
    /// Bytes it had written that had not arrived at nginx's socket at the end.
    pub backend_underway: u32,
    /// Who first read.
    pub backend_task: TaskInfo,
    /// Who closed.
    pub backend_closer: TaskInfo,
    /// unix only: the path as the listener was bound.
    pub path: [u8; PATH_LEN],
    /// `copied_seq` at nginx's last read, where nothing but it shows reads.
    pub copied: u32,
    /// Bytes of `request` that are filled.
    pub request_len: u16,
    /// Bytes of `response` that are filled.
    pub response_len: u16,
    /// Padding.
    pub pad2: u32,
    /// The beginning of the answer.
    pub response: [u8; RESPONSE_LEN],
    /// The beginning of the request. It and `response` are cleared when the exchange has been written.
    pub request: [u8; REQUEST_LEN],
}

impl Conn {
    /// Bytes written of a TCP exchange whose request was not taken: all before the path.
    pub const SHORT: usize = core::mem::offset_of!(Conn, path);
    /// Bytes written of any other, and behind them what is filled of the request.
    pub const LONG: usize = core::mem::offset_of!(Conn, request);
}

/// A line of nginx's error log at its source.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Line {
    /// `header.at` is the line's id too.
    pub header: Header,
    /// `*N`, 0: none.
    pub connection: u64,
    /// When the failed route lookup was.
    pub route_at: u64,
    /// The argument behind a first `%V`, as it is: a number where the format says so. 0 where it is on the stack.
    pub number: u64,
    /// nginx's level.
    pub level: u32,
    /// errno.
    pub errno: i32,
    /// The failed route lookup's error, positive.
    pub route_errno: i32,
    /// What the worker's last own event before it was, a constant of [`previous`]; `u32::MAX`: not to be told.
    pub previous_kind: u32,
    /// See [`Worker::previous_sock`].
    pub previous_sock: u64,
    /// See [`Worker::previous_since`].
    pub previous_since: u64,
    /// See [`Worker::previous_number`].
    pub previous_number: u32,
    /// How many programs of the worker's control groups are asked about its connects, for a line whose errno is that of a
    /// denial; `u32::MAX`: not looked for, or not to be found.
    pub programs: u32,
    /// See [`Worker::denied_at`].
    pub denied_at: u64,
    /// See [`Worker::denied_errno`].
    pub denied_errno: i32,
    /// See [`Worker::denied_by`].
    pub denied_by: u32,
    /// The ids of the first of those programs.
    pub program_ids: [u32; LINE_PROGRAMS],
    /// Their names.
    pub program_names: [[u8; COMM_LEN]; LINE_PROGRAMS],
    /// Where to.
    pub route_daddr: [u8; 16],
    /// The format string, cut.
    pub format: [u8; 64],
    /// The phase, cut.
    pub action: [u8; 48],
    /// The text behind the first `%V` or `%*s`, cut.
    pub argument: [u8; 128],
}

/// How many programs a [`Line`] names.
pub const LINE_PROGRAMS: usize = 4;

/// Who denies a `connect()`.
pub mod denier {
    /// A security module.
    pub const SECURITY_MODULE: u32 = 1;
    /// A program of a control group.
    pub const CGROUP: u32 = 2;
}

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Listener {
    /// When.
    pub header: Header,
    /// The socket.
    pub sock: u64,
    /// The connection that asked, for [`kind::LISTENER_QUEUE`].
    pub conn_sock: u64,
    /// With `conn_sock`.
    pub conn_since: u64,
    /// Where it listens.
    pub addr: [u8; 16],
    /// Its namespace.
    pub netns: u32,
    /// Waiting connections.
    pub queue: u32,
    /// Limit.
    pub limit: u32,
    /// Port.
    pub port: u16,
    /// 2 or 10.
    pub family: u8,
    /// 1: `IPV6_V6ONLY`.
    pub v6only: u8,
    /// Who.
    pub task: TaskInfo,
}

/// A packet and what this host did with it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Packet {
    /// When.
    pub header: Header,
    /// Return address of the drop.
    pub location: u64,
    /// nginx's socket when the packet still belonged to it.
    pub conn_sock: u64,
    /// With `conn_sock`.
    pub conn_since: u64,
    /// Source.
    pub saddr: [u8; 16],
    /// Destination.
    pub daddr: [u8; 16],
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Namespace, 0: unknown.
    pub netns: u32,
    /// Drop or reset reason, plus 1; 0: the kernel has none.
    pub reason: u32,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_kind: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// For resets: 0 no socket, 1 listener, 2 time-wait, 3 other.
    pub by: u8,
}

/// The backend's socket changed abnormally.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct BackendEdge {
    /// When.
    pub header: Header,
    /// nginx's socket.
    pub conn_sock: u64,
    /// With `conn_sock`.
    pub conn_since: u64,
    /// The backend's socket.
    pub sock: u64,
    /// When it closed.
    pub closed_at: u64,
    /// Its namespace.
    pub netns: u32,
    /// Reset reason, plus 1; 0: none.
    pub reset_reason: u32,
    /// `sk_err` at destroy.
    pub error: i32,
    /// Bytes unread at its close.
    pub unread: u32,
    /// Bits [`conn::ACCEPTED`], [`conn::ABORTED`].
    pub flags: u32,
    /// Padding.
    pub pad: u32,
    /// Who did it.
    pub task: TaskInfo,
}

/// nginx closed a client's connection that had ended before, right after closing the exchange.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ClientLeft {
    /// When.
    pub header: Header,
    /// nginx's upstream socket.
    pub conn_sock: u64,
    /// With `conn_sock`.
    pub conn_since: u64,
    /// The exchange.
    pub number: u32,
    /// 1: the client reset its connection.
    pub reset: u32,
}

/// Bytes of what a client is sent that a record takes along: the status line as far as its status (`HTTP/1.1 502 `).
pub const STATUS_LEN: usize = 16;

/// What nginx did to its client as the very next own event after an attempt that failed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ClientAnswered {
    /// When.
    pub header: Header,
    /// The attempt: see [`Worker::previous_sock`].
    pub previous_sock: u64,
    /// See [`Worker::previous_since`].
    pub previous_since: u64,
    /// See [`Worker::previous_number`].
    pub previous_number: u32,
    /// A constant of [`previous`].
    pub previous_kind: u32,
    /// The client's address; zero over a unix socket.
    pub daddr: [u8; 16],
    /// The beginning of what was sent; empty when it could not be read.
    pub head: [u8; STATUS_LEN],
    /// Bytes in `head`.
    pub head_len: u16,
    /// The client's port.
    pub dport: u16,
    /// 1: nginx closed the client's connection.
    pub cut: u32,
}

/// A process event.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Process {
    /// When.
    pub header: Header,
    /// Whose.
    pub task: TaskInfo,
    /// Its parent.
    pub parent: u32,
    /// For [`kind::EXECUTED`]: 1 it is an nginx.
    pub is_nginx: u32,
    /// The last signal that was sent to it, 0: none seen.
    pub signal: u32,
    /// How long before that was, in milliseconds.
    pub signal_age_ms: u32,
    /// Who sent that signal.
    pub sender: TaskInfo,
}

/// A worker's connect() that failed at once.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectFailed {
    /// When, and which worker.
    pub header: Header,
    /// What connect() returned, positive.
    pub errno: i32,
    /// 2 IPv4, 10 IPv6, 1 unix.
    pub family: u16,
    /// Port.
    pub port: u16,
    /// Address.
    pub addr: [u8; 16],
    /// unix: the path as nginx gave it.
    pub path: [u8; PATH_LEN],
    /// Padding.
    pub pad: u32,
}

/// SELinux denied something to a worker.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SelinuxDenied {
    /// When, and which worker.
    pub header: Header,
    /// The permissions that were denied, a bit each as the policy numbers them.
    pub denied: u32,
    /// The class of what it was denied on.
    pub class: [u8; CLASS_LEN],
    /// The worker's context.
    pub source: [u8; CONTEXT_LEN],
    /// The context of what it was denied on.
    pub target: [u8; CONTEXT_LEN],
}

/// One socket as the iterator over all open files saw it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SnapshotSocket {
    /// When, and the process that holds it.
    pub header: Header,
    /// The socket.
    pub sock: u64,
    /// Local address.
    pub saddr: [u8; 16],
    /// Peer's address.
    pub daddr: [u8; 16],
    /// Local port.
    pub sport: u16,
    /// Peer's port.
    pub dport: u16,
    /// Family.
    pub family: u16,
    /// State.
    pub state: u8,
    /// 1: `IPV6_V6ONLY`.
    pub v6only: u8,
    /// Namespace.
    pub netns: u32,
    /// Accept queue.
    pub queue: u32,
    /// Limit of it.
    pub limit: u32,
    /// 1: the holder is an nginx process.
    pub is_nginx: u32,
    /// Holder's name.
    pub comm: [u8; COMM_LEN],
    /// unix: its own path.
    pub path: [u8; PATH_LEN],
    /// Padding.
    pub pad: u32,
}

/// An nginx process, kept by its process id.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Worker {
    /// The line that waits for its close mark, 0: none.
    pub pending_line: u64,
    /// A socket the worker sent on after the line (TLS close_notify); only its close may follow.
    pub pending_sock: u64,
    /// The worker's last own event, when it was a close mark or a line: what a retry follows.
    pub previous_sock: u64,
    /// With `previous_sock`; for a line its id.
    pub previous_since: u64,
    /// With `previous_sock`.
    pub previous_number: u32,
    /// A constant of [`previous`].
    pub previous_kind: u32,
    /// unix: a connect was accepted by this listener …
    pub unix_listener: u64,
    /// … at this time, and nothing was sent yet.
    pub unix_at: u64,
    /// unix: the socket whose `recv` ended it as the very last own event.
    pub unix_ended: u64,
    /// unix: the upstream socket that the worker read as its very last own event.
    pub unix_read: u64,
    /// The client socket whose end the worker read last: its close is ordinary.
    pub client_ended: u64,
    /// The socket the worker connected last.
    pub connecting: u64,
    /// The upstream socket ([`conn::BY_ANSWER`]) that the worker's last own event was on.
    pub last_sock: u64,
    /// When somebody in the kernel denied it a `connect()` that no line has told of yet, 0: nobody did.
    pub denied_at: u64,
    /// The errno, positive.
    pub denied_errno: i32,
    /// Who: a constant of [`denier`].
    pub denied_by: u32,
    /// The last failed route lookup.
    pub route_at: u64,
    /// Its error, positive.
    pub route_errno: i32,
    /// 1: the process is ending.
    pub exiting: u32,
    /// 1: the line that waits says that nginx was connecting.
    pub pending_connecting: u32,
    /// 1: with `previous_kind`: not a byte had come from the upstream.
    pub previous_unanswered: u32,
    /// The client's socket on which the worker went on after an attempt failed, as its very last own event.
    pub answering: u64,
    /// The attempt that failed: see `previous_sock`.
    pub answering_sock: u64,
    /// With `answering_sock`.
    pub answering_since: u64,
    /// With `answering_sock`.
    pub answering_number: u32,
    /// A constant of [`previous`].
    pub answering_kind: u32,
    /// Where to.
    pub route_daddr: [u8; 16],
}

/// A listener in the table by port.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ListenerSlot {
    /// The socket.
    pub sock: u64,
    /// Bound address.
    pub addr: [u8; 16],
    /// Its namespace.
    pub netns: u32,
    /// The process that opened it.
    pub pid: u32,
    /// That process's name.
    pub comm: [u8; COMM_LEN],
}

/// Key of [`ListenerSlot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PortSlot {
    /// The port.
    pub port: u32,
    /// 0 to [`LISTENERS_PER_PORT`] − 1.
    pub slot: u32,
}

/// The other end of a connection: from the backend's socket to nginx's.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct BackendLink {
    /// nginx's socket.
    pub conn_sock: u64,
    /// With `conn_sock`.
    pub conn_since: u64,
    /// When the backend's socket closed abnormally.
    pub closed_at: u64,
    /// Bytes unread at its close.
    pub unread: u32,
    /// Bits of [`conn`] for a later edge.
    pub flags: u32,
}

/// An upstream's address, for filtering packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Endpoint {
    /// Address.
    pub addr: [u8; 16],
    /// Port.
    pub port: u32,
}

/// What is known of an [`Endpoint`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct EndpointUse {
    /// When nginx connected to it last, 0: never seen.
    pub last: u64,
    /// How its connections are cut into exchanges otherwise than by sends and reads: bits of [`conn`].
    pub marks: u32,
    /// Padding.
    pub pad: u32,
}

/// Who sent a signal.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SignalSent {
    /// When.
    pub at: u64,
    /// Which.
    pub signal: u32,
    /// Padding.
    pub pad: u32,
    /// By whom.
    pub sender: TaskInfo,
}

/// Indices of what is switched on once it is known that the programs it needs are attached.
pub mod switch {
    /// nginx's close of a unix socket is seen, so reading the end of its stream ends nothing.
    pub const UNIX_CLOSES: u32 = 0;
    /// A task can preempt another one in a tracepoint's program.
    pub const PREEMPTIBLE: u32 = 1;
    /// And in a function's program.
    pub const FUNCTIONS_PREEMPTIBLE: u32 = 2;
    /// The descriptor that the tracer closes to see where a system call's registers are.
    pub const CLOSED: u32 = 3;
    /// Where they are, as it was seen: [`BY_HELPER`], or so far above the bottom of a task's stack; 0: not found.
    pub const REGISTERS: u32 = 4;
    /// In [`REGISTERS`]: `bpf_task_pt_regs` tells.
    pub const BY_HELPER: u32 = u32::MAX;
    /// How many there are.
    pub const N: u32 = 5;
}

/// One event, told from any other of its task that can interrupt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happening {
    /// The socket, packet or task.
    pub object: u64,
    /// What happens to it.
    pub what: u32,
}

/// An event that a program was called for, until its understudy takes it out.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Note {
    /// The current task; 0: there is no note.
    pub task: u64,
    /// [`Happening::object`].
    pub object: u64,
    /// The program and [`Happening::what`].
    pub what: u64,
    /// When the program was called, in jiffies.
    pub at: u64,
}

impl Note {
    /// After so many jiffies a note counts no more: no interrupt, and hardly a preemption, lasts as long (with 1000 of
    /// them a second a quarter of one, with 250 a whole one).
    pub const LASTS: u64 = 256;
}

/// Some tasks' notes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Notes {
    /// More than can nest.
    pub notes: [Note; Notes::N],
    /// Behind the newest, modulo their number.
    pub next: u64,
}

impl Notes {
    /// How many notes there is room for: a power of two.
    pub const N: usize = 8;
    /// How many of these there are: a power of two.
    pub const SETS: u32 = 1024;
}

/// Programs that have an understudy: their indices. From [`FIRST_OF_TASKS`] on those that only a task's own doing calls:
/// no softirq skips their events, only a task that preempts another one in them.
pub mod understudy {
    macro_rules! understudies {
        ($($(#[doc = $doc:literal])* $index:ident = $n:literal: $name:literal,)*) => {
            $($(#[doc = $doc])* pub const $index: u32 = $n;)*
            /// Their names in the object, by index.
            pub const NAMES: &[&str] = &[$($name),*];
        };
    }
    understudies! {
        /// See [`NAMES`].
        STATE = 0: "socket_state",
        /// See [`NAMES`].
        DESTROYED = 1: "socket_destroyed",
        /// See [`NAMES`].
        RESET_RECEIVED = 2: "reset_received",
        /// See [`NAMES`].
        RESET_SENT = 3: "reset_sent",
        /// See [`NAMES`].
        ERROR = 4: "error_reported",
        /// See [`NAMES`].
        RETRANSMITTED = 5: "retransmitted",
        /// See [`NAMES`].
        DROPPED = 6: "dropped",
        /// See [`NAMES`].
        ICMP_SENT = 7: "icmp_sent",
        /// See [`NAMES`].
        FORKED = 8: "process_forked",
        /// See [`NAMES`].
        EXECUTED = 9: "process_executed",
        /// See [`NAMES`].
        EXITED = 10: "process_exited",
        /// See [`NAMES`].
        SIGNALLED = 11: "signal_sent",
        /// See [`NAMES`].
        SENT = 12: "bytes_sent",
        /// See [`NAMES`].
        RECEIVED = 13: "bytes_received",
        /// See [`NAMES`].
        UNIX_CONNECTED = 14: "unix_connected",
        /// See [`NAMES`].
        UNIX_RELEASED = 15: "unix_released",
        /// See [`NAMES`].
        CONNECT_RETURNED = 16: "tcp_connect_returned",
        /// See [`NAMES`].
        UNIX_CONNECT_FAILED = 17: "unix_connect_failed",
        /// See [`NAMES`].
        ACCEPTED = 18: "connection_accepted",
        /// See [`NAMES`].
        ROUTE = 19: "route_looked_up",
        /// See [`NAMES`].
        ROUTE6 = 20: "route6_looked_up",
    }
    /// The first of those that only tasks call.
    pub const FIRST_OF_TASKS: u32 = FORKED;
    /// Those at functions.
    pub const OF_FUNCTIONS: core::ops::RangeInclusive<u32> = UNIX_RELEASED..=ACCEPTED;
    /// How many there are.
    pub const N: u32 = NAMES.len() as u32;
}

/// Indices of the counters.
pub mod counter {
    /// Records that found the ring full.
    pub const RING_FULL: u32 = 0;
    /// Entries that found a table full.
    pub const TABLE_FULL: u32 = 1;
    /// A socket was reused while its entry was still there: its destroy was missed.
    pub const STALE: u32 = 2;
    /// How many counters there are.
    pub const N: u32 = 3;
}

macro_rules! offsets {
    ($($(#[doc = $doc:literal])* $name:ident: $path:literal,)*) => {
        /// Offsets in bytes of kernel structure members, from the running kernel's BTF; [`ABSENT`] where it has none.
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct Offsets { $($(#[doc = $doc])* #[doc = concat!("`", $path, "`")] pub $name: u32,)* }

        impl Offsets {
            /// Every member: its field here and `struct.member.member` as BTF spells it.
            pub const PATHS: &'static [(&'static str, &'static str)] = &[$((stringify!($name), $path),)*];

            /// The same order as [`Self::PATHS`].
            pub fn from_list(list: &[u32]) -> Option<Self> {
                let mut values = list.iter().copied();
                Some(Self { $($name: values.next()?,)* })
            }
        }
    };
}

offsets! {
    skc_daddr: "sock_common.skc_daddr",
    skc_rcv_saddr: "sock_common.skc_rcv_saddr",
    skc_dport: "sock_common.skc_dport",
    skc_num: "sock_common.skc_num",
    skc_family: "sock_common.skc_family",
    skc_state: "sock_common.skc_state",
    skc_net: "sock_common.skc_net.net",
    skc_v6_daddr: "sock_common.skc_v6_daddr",
    skc_v6_rcv_saddr: "sock_common.skc_v6_rcv_saddr",
    skc_ipv6only_byte: "sock_common.skc_ipv6only",
    sk_err: "sock.sk_err",
    sk_err_soft: "sock.sk_err_soft",
    sk_error_queue: "sock.sk_error_queue",
    sk_receive_queue: "sock.sk_receive_queue",
    sk_ack_backlog: "sock.sk_ack_backlog",
    sk_max_ack_backlog: "sock.sk_max_ack_backlog",
    sk_socket: "sock.sk_socket",
    sk_type: "sock.sk_type",
    sk_protocol: "sock.sk_protocol",
    sk_shutdown: "sock.sk_shutdown",
    inet_sport: "inet_sock.inet_sport",
    snd_una: "tcp_sock.snd_una",
    snd_nxt: "tcp_sock.snd_nxt",
    write_seq: "tcp_sock.write_seq",
    rcv_nxt: "tcp_sock.rcv_nxt",
    copied_seq: "tcp_sock.copied_seq",
    srtt_us: "tcp_sock.srtt_us",
    snd_wnd: "tcp_sock.snd_wnd",
    segs_in: "tcp_sock.segs_in",
    tcp_mstamp: "tcp_sock.tcp_mstamp",
    queue_next: "sk_buff_head.next",
    queue_len: "sk_buff_head.qlen",
    skb_sk: "sk_buff.sk",
    skb_cb: "sk_buff.cb",
    skb_head: "sk_buff.head",
    skb_network_header: "sk_buff.network_header",
    skb_dev: "sk_buff.dev",
    exterr_ee: "sock_exterr_skb.ee",
    dev_net: "net_device.nd_net.net",
    net_inum: "net.ns.inum",
    socket_sk: "socket.sk",
    file_inode: "file.f_inode",
    file_private: "file.private_data",
    inode_mode: "inode.i_mode",
    unix_addr: "unix_sock.addr",
    unix_peer: "unix_sock.peer",
    unix_address_name: "unix_address.name",
    task_stack: "task_struct.stack",
    task_pid: "task_struct.pid",
    task_tgid: "task_struct.tgid",
    task_comm: "task_struct.comm",
    task_flags: "task_struct.flags",
    task_exit_code: "task_struct.exit_code",
    task_signal: "task_struct.signal",
    task_parent: "task_struct.real_parent",
    task_migration_disabled: "task_struct.migration_disabled",
    signal_live: "signal_struct.live",
    signal_group_exit_code: "signal_struct.group_exit_code",
    signal_oom_mm: "signal_struct.oom_mm",
    task_cgroups: "task_struct.cgroups",
    css_default: "css_set.dfl_cgrp",
    cgroup_effective: "cgroup.bpf.effective",
    programs_items: "bpf_prog_array.items",
    program_aux: "bpf_prog.aux",
    program_id: "bpf_prog_aux.id",
    program_name: "bpf_prog_aux.name",
    flowi4_daddr: "flowi4.daddr",
    flowi6_daddr: "flowi6.daddr",
    fib6_type: "fib6_result.fib6_type",
    selinux_denied: "selinux_audit_data.denied",
    selinux_result: "selinux_audit_data.result",
    regs_orig_ax: "pt_regs.orig_ax",
    regs_syscallno: "pt_regs.syscallno",
    regs_di: "pt_regs.di",
    regs_si: "pt_regs.si",
    regs_regs: "pt_regs.regs",
    regs_orig_x0: "pt_regs.orig_x0",
}

/// What user space decides before the programs are loaded.
///
/// `slot_*`: where an fexit program finds what the function returned, which is behind its last argument; functions
/// lose and gain arguments even within a stable series, and a wrong slot reads garbage silently.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Settings {
    /// Where a kernel without drop reasons drops what is of interest: begin and end of each function of
    /// [`DROP_PLACES`].
    pub drop_places: [u64; 2 * DROP_PLACES.len()],
    /// See above.
    pub slot_tcp_sendmsg: u32,
    /// See above.
    pub slot_tcp_sendpage: u32,
    /// See above.
    pub slot_tcp_recvmsg: u32,
    /// The argument of `tcp_recvmsg` that holds the flags.
    pub flags_tcp_recvmsg: u32,
    /// See above.
    pub slot_unix_sendmsg: u32,
    /// See above.
    pub slot_unix_recvmsg: u32,
    /// See above.
    pub slot_inet_connect: u32,
    /// See above.
    pub slot_unix_connect: u32,
    /// See above.
    pub slot_accept: u32,
    /// See above.
    pub slot_security_connect: u32,
    /// See above.
    pub slot_cgroup_connect: u32,
    /// Which of a control group's arrays of programs is asked about connects to IPv4 addresses; [`ABSENT`]: none.
    pub programs_connect4: u32,
    /// The same for IPv6.
    pub programs_connect6: u32,
    /// The size of an item of such an array.
    pub size_program_item: u32,
    /// 1: there is `bpf_task_pt_regs` (5.15).
    pub has_task_pt_regs: u32,
    /// The size of `pt_regs`, which lie at the top of a task's stack.
    pub size_pt_regs: u32,
    /// The number of `close`.
    pub number_close: u32,
    /// The number of `sendto`.
    pub number_sendto: u32,
    /// The number of `writev`; 0: no request's beginning is taken.
    pub number_writev: u32,
    /// The number of `recvfrom`; 0: no answer's beginning is taken.
    pub number_recvfrom: u32,
    /// 1: `tcp_send_reset` has a third argument, the reason.
    pub reset_has_reason: u32,
    /// 1: `kfree_skb` has a third argument, the reason.
    pub drop_has_reason: u32,
    /// The bit of `skc_ipv6only` inside its byte.
    pub ipv6only_bit: u32,
    /// 1: nginx's log function is heard, so a close without a line means that nothing was logged.
    pub lines_heard: u32,
    /// 1: the programs speak of themselves (`-vv`).
    pub verbose: u32,
    /// 1: only what nginx's own processes execute can become one of them, as for `--pid NUMBER`.
    pub by_parentage: u32,
    /// One byte per drop reason: 1 = of interest.
    pub drop_wanted: [u8; DROP_REASONS],
}
