//! What is sent and read, on both ends: exchanges begin and progress here, and unix connections altogether.

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, fexit},
    programs::{BtfTracePointContext, FEntryContext, FExitContext},
};
use tracer_ebpf::{Conn, Worker, conn, end, understudy};

use super::understudy::{is_first_needed, is_last_needed, is_next_needed, of_first, play, with_understudy};
use crate::{
    exchange::{
        answered, backend_read, backend_read_ahead, begin_next, close_mark, create, finish, finish_unix,
        is_cut_by_sends, is_waiting, link_backend, marks, own_begin, own_other, own_send_to_client, remove,
        unix_closes_seen,
    },
    filter::{backend, connection, connection_of, worker},
    maps::setting,
    output::now,
    sock::{
        AF_UNIX, ESTABLISHED, LISTEN, Members as _, Sock, SockArg, SockAt, Tcp as _, current_pid,
        is_in_sendto, is_main_thread, is_preface, sends_headers, slot, sock_of, take_more, take_received,
        take_sent,
    },
};

/// `MSG_PEEK`: how nginx looks at an idle connection.
const PEEK: i32 = 2;
const EAGAIN: i32 = 11;
/// The largest TLS close_notify seen is 31 bytes; nothing else that small is sent between a line and its close.
const CLOSE_NOTIFY_MAX: i32 = 64;
/// The largest close_notify of a cipher of today (AEAD); the smallest request over TLS is larger (49).
const CLOSE_NOTIFY: i32 = 31;

with_understudy!(
    btf_tracepoint(function = "sock_send_length"),
    BtfTracePointContext,
    SENT,
    /// `trace_sock_send_length(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
    bytes_sent,
    [bytes_sent_nested, bytes_sent_nested2, bytes_sent_nested3],
    of_first,
    on_bytes_sent
);

#[inline(always)]
fn on_bytes_sent(ctx: &BtfTracePointContext) {
    on_send(SockArg::of(ctx, 0), ctx.arg::<i32>(1));
}

/// `int tcp_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)`, 5.10 to 7.2.
#[fexit]
pub fn tcp_sent(ctx: FExitContext) -> i32 {
    on_send(SockArg::of(&ctx, 0), slot(&ctx, setting!(slot_tcp_sendmsg)));
    0
}

/// `int tcp_sendpage(struct sock *sk, struct page *page, int offset, size_t size, int flags)`, to 6.4: sendfile().
#[fexit]
pub fn tcp_page_sent(ctx: FExitContext) -> i32 {
    on_send(SockArg::of(&ctx, 0), slot(&ctx, setting!(slot_tcp_sendpage)));
    0
}

/// `int unix_stream_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)`, 5.10 to 7.2.
#[fexit]
pub fn unix_sent(ctx: FExitContext) -> i32 {
    on_send(
        sock_of(ctx.arg::<u64>(0)),
        slot(&ctx, setting!(slot_unix_sendmsg)),
    );
    0
}

#[inline(always)]
fn on_send(sock: impl Sock, ret: i32) {
    if let Some(owner) = worker(current_pid()) {
        owner.unix_read = 0;
        match connection(sock.address()) {
            Some(entry) if is_recycled(owner, entry, ret) => {
                if entry.began_at != 0 {
                    let at = now();
                    finish_unix(entry, end::PRESUMED, at, at);
                }
                remove(entry);
                other_send(owner, sock, ret);
            }
            Some(entry) => sent(owner, entry, sock, ret),
            None => other_send(owner, sock, ret),
        }
    }
}

/// nginx sends its request right after a connect() to a unix listener: when it does so on a socket that is known, the
/// one before it was closed unseen, and the kernel gave its memory to the new one.
#[inline(always)]
fn is_recycled(owner: &Worker, entry: &Conn, ret: i32) -> bool {
    entry.family == AF_UNIX && owner.unix_at != 0 && ret > 0
}

#[inline(always)]
fn sent(owner: &mut Worker, entry: &mut Conn, sock: impl Sock, ret: i32) {
    let at = now();
    let before = stay_on(owner, entry);
    if ret == 0 || ret == -EAGAIN {
        if ret != 0 {
            entry.send_blocked_at = at;
        }
        own_other(owner);
        return;
    }
    if ret > 0 && owner.pending_line != 0 && ret <= CLOSE_NOTIFY_MAX && entry.flags & conn::UNCUT != 0 {
        // Between a line and its close TLS sends one close_notify on the same socket.
        owner.pending_sock = entry.sock;
        return;
    }
    let bytes = if ret > 0 { ret as u32 } else { 0 };
    // A send that fails on a kept connection is the beginning of a request too.
    let first_of_next = entry.began_at == 0 || (entry.received > 0 && begins_next(entry, before, ret));
    if first_of_next {
        if before != 0 && before != entry.sock {
            answered(before);
        }
        if entry.began_at != 0 {
            let ended = entry.last_received_at;
            finish(entry, sock, end::NEXT, ended, at);
        }
        begin_next(entry, at);
        if let Some(tcp) = sock.tcp() {
            entry.start_seq = tcp.write_seq().wrapping_sub(bytes);
        }
        own_begin(owner, entry, at);
    } else {
        if entry.flags & conn::PREEXISTING != 0 && entry.sent + entry.received == 0 {
            // Found idle when the tracer came: the exchange begins here.
            entry.began_at = at;
            if let Some(tcp) = sock.tcp() {
                entry.start_seq = tcp.write_seq().wrapping_sub(bytes);
            }
        }
        own_other(owner);
    }
    if entry.first_sent_at == 0 {
        take_request(entry);
    }
    if ret < 0 {
        if entry.send_error == 0 {
            entry.send_error = -ret;
        }
        if entry.family == AF_UNIX {
            entry.flags |= conn::UNIX_ENDED;
            owner.unix_ended = entry.sock;
        }
        return;
    }
    if entry.first_sent_at == 0 {
        entry.first_sent_at = at;
    }
    entry.last_sent_at = at;
    entry.sent += ret as u64;
}

/// Takes the beginning of the request that nginx is sending, where a connection carries one after another.
#[inline(always)]
fn take_request(entry: &mut Conn) {
    if is_cut_by_sends(entry) {
        entry.request_len = take_sent(&mut entry.request);
        if entry.flags & conn::UNCUT == 0 && is_preface(&entry.request) {
            // No configuration knows it: over a unix socket, or to a variable's.
            entry.flags |= conn::UNCUT | conn::BY_HEADERS;
        }
    }
}

/// Notes that the worker's last own event was on this connection; on which the one before was.
#[inline(always)]
fn stay_on(owner: &mut Worker, entry: &Conn) -> u64 {
    let before = owner.last_sock;
    owner.last_sock = if entry.flags & conn::BY_ANSWER != 0 {
        entry.sock
    } else {
        0
    };
    before
}

/// Whether a send after something was received begins the next request. `before`: where the worker's own event before
/// it was; on the same connection it is one of a handshake.
#[inline(always)]
fn begins_next(entry: &mut Conn, before: u64, ret: i32) -> bool {
    if entry.flags & (conn::PREEXISTING | conn::UNCUT) == conn::PREEXISTING && entry.family != AF_UNIX {
        // It was found before the configuration was read.
        entry.flags |= marks(entry);
    }
    if entry.flags & conn::UNCUT == 0 {
        // nginx sends a request by writev(), and by send() what a client says after an upgrade (WebSocket).
        if is_in_sendto() {
            entry.flags |= conn::UNCUT;
        }
        return entry.flags & conn::UNCUT == 0;
    }
    if entry.flags & conn::BY_HEADERS != 0 {
        return sends_headers();
    }
    let is_answered = entry.flags & conn::ANSWERED != 0;
    entry.flags &= !conn::ANSWERED;
    is_answered && before != entry.sock && !(ret > 0 && ret <= CLOSE_NOTIFY)
}

/// A send to a client as the very next own event after a read from an upstream: what was read was an answer.
#[inline(always)]
fn pass_on(owner: &mut Worker, sock: impl Sock) {
    // A client's connection over a unix socket has the name on this side.
    if !sock.is_stream()
        || !is_main_thread()
        || (sock.family() == AF_UNIX && !SockAt(sock.address()).unix_is_bound())
    {
        return;
    }
    answered(owner.last_sock);
    owner.last_sock = 0;
}

/// A send on a socket that is no known upstream's: a client's, or the first on a unix upstream.
#[inline(always)]
fn other_send(owner: &mut Worker, sock: impl Sock, ret: i32) {
    if owner.last_sock != 0 {
        pass_on(owner, sock);
    }
    let is_unix = sock.family() == AF_UNIX;
    if !is_unix && !is_waiting(owner) {
        return;
    }
    if !sock.is_stream() || !is_main_thread() {
        return;
    }
    let at = now();
    if is_unix && ret > 0 {
        let unix = SockAt(sock.address());
        let peer = unix.unix_peer();
        // nginx's end of a unix upstream has no name, its peer has the listener's. The master's channel has neither;
        // a client's connection has the name on this side.
        if peer != 0 && !unix.unix_is_bound() && SockAt(peer).unix_is_bound() {
            let began = if owner.unix_at != 0 { owner.unix_at } else { at };
            let pid = current_pid();
            let Some(entry) = create(sock, AF_UNIX, pid, began) else {
                return;
            };
            if !SockAt(peer).unix_path(&mut entry.path) {
                remove(entry);
                own_other(owner);
                return;
            }
            entry.connect_at = owner.unix_at;
            entry.established_at = owner.unix_at;
            if owner.unix_at == 0 {
                entry.flags |= conn::PREEXISTING;
            }
            owner.unix_at = 0;
            entry.first_sent_at = at;
            entry.last_sent_at = at;
            entry.sent = ret as u64;
            take_request(entry);
            // Until now no read of the backend's could be known for one.
            // A close empties the queue as well, after it has left this state.
            if SockAt(peer).receive_queue() == 0 && SockAt(peer).state() == ESTABLISHED {
                backend_read_ahead(entry, ret as u32, at);
            }
            link_backend(entry, SockAt(peer));
            own_begin(owner, entry, at);
            return;
        }
    }
    if ret > 0 {
        own_send_to_client(owner, sock, at);
    } else {
        own_other(owner);
    }
}

with_understudy!(
    btf_tracepoint(function = "sock_recv_length"),
    BtfTracePointContext,
    RECEIVED,
    /// `trace_sock_recv_length(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
    bytes_received,
    [bytes_received_nested, bytes_received_nested2, bytes_received_nested3],
    of_first,
    on_bytes_received
);

#[inline(always)]
fn on_bytes_received(ctx: &BtfTracePointContext) {
    on_receive(SockArg::of(ctx, 0), ctx.arg::<i32>(1), ctx.arg::<i32>(2));
}

/// `int tcp_recvmsg(struct sock *sk, struct msghdr *msg, size_t len, int nonblock, int flags, int *addr_len)`;
/// without nonblock from 5.19, without addr_len from 6.18.
#[fexit]
pub fn tcp_received(ctx: FExitContext) -> i32 {
    on_receive(
        SockArg::of(&ctx, 0),
        slot(&ctx, setting!(slot_tcp_recvmsg)),
        slot(&ctx, setting!(flags_tcp_recvmsg)),
    );
    0
}

/// `int unix_stream_recvmsg(struct socket *sock, struct msghdr *msg, size_t size, int flags)`, 5.10 to 7.2.
#[fexit]
pub fn unix_received(ctx: FExitContext) -> i32 {
    on_receive(
        sock_of(ctx.arg::<u64>(0)),
        slot(&ctx, setting!(slot_unix_recvmsg)),
        ctx.arg::<i32>(3),
    );
    0
}

#[inline(always)]
fn on_receive(sock: impl Sock, ret: i32, flags: i32) {
    if let Some(owner) = worker(current_pid()) {
        owner.unix_read = 0;
        if let Some(entry) = connection(sock.address()) {
            if entry.family == AF_UNIX {
                owner.unix_read = entry.sock;
            }
            received(owner, entry, sock, ret, flags);
            return;
        }
        // nginx may be a backend of itself: then the socket is the other end of one.
        if backend(sock.address()).is_none() {
            owner.last_sock = 0;
            if ret == 0 {
                owner.client_ended = sock.address();
            } else if owner.client_ended == sock.address() {
                owner.client_ended = 0;
            }
            if is_waiting(owner) && sock.is_stream() && is_main_thread() {
                own_other(owner);
            }
            return;
        }
    }
    if let Some(link) = backend(sock.address()) {
        let at = now();
        if ret > 0 && flags & PEEK == 0 {
            backend_read(link, sock, ret as u32, at);
        } else if ret == 0 && sock.family() == AF_UNIX {
            // nginx's close of a unix connection shows only here, when the backend reads the end.
            if let Some(entry) = connection_of(link.conn_sock, link.conn_since) {
                if entry.flags & conn::UNIX_ENDED == 0 {
                    if entry.began_at != 0 {
                        finish_unix(entry, end::CLOSED, at, at);
                    }
                    remove(entry);
                }
            }
        }
    }
}

/// `trace_tcp_rcv_space_adjust(struct sock *sk)`, 5.10 to 7.2: fires in the reader's task for every read that took
/// data. The last way: sends, ends of streams and unix sockets are not seen, so there is one exchange per connection.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn tcp_data_read(ctx: BtfTracePointContext) -> i32 {
    let sock = SockArg::of(&ctx, 0);
    if let Some(entry) = connection(sock.address()) {
        let copied = sock.tcp().map_or(0, |tcp| tcp.copied_seq());
        let bytes = copied.wrapping_sub(entry.copied);
        entry.flags |= conn::UNCUT;
        // What was there before was read to an unknown place.
        if entry.copied != 0
            && bytes != 0
            && let Some(owner) = worker(current_pid())
        {
            received(owner, entry, sock, bytes as i32, 0);
        }
        entry.copied = copied;
    } else if let Some(link) = backend(sock.address()) {
        backend_read(link, sock, 0, now());
    }
    0
}

#[inline(always)]
fn received(owner: &mut Worker, entry: &mut Conn, sock: impl Sock, ret: i32, flags: i32) {
    let at = now();
    stay_on(owner, entry);
    own_other(owner);
    if flags & PEEK != 0 {
        if entry.began_at != 0 && entry.received > 0 {
            let ended = entry.last_received_at;
            finish(entry, sock, end::IDLE, ended, at);
        }
        if entry.family == AF_UNIX && ret != -EAGAIN {
            remove(entry);
        }
        return;
    }
    if ret > 0 {
        if entry.first_received_at == 0 {
            entry.first_received_at = at;
            if entry.request_len != 0 {
                entry.response_len = take_received(&mut entry.response, ret as u32);
            }
        } else if entry.flags & conn::BY_HEADERS != 0 && u64::from(entry.response_len) == entry.received {
            // Frames of the connection come before the answer's.
            entry.response_len += take_more(&mut entry.response, entry.response_len, ret as u32);
        }
        entry.last_received_at = at;
        entry.received += ret as u64;
        return;
    }
    if ret == -EAGAIN {
        // nginx stops when a read was short, so an empty read before any byte of an answer is OpenSSL's: on such a
        // connection sends and reads do not alternate by request.
        if entry.received == 0 && entry.sent > 0 {
            entry.flags |= conn::UNCUT;
        }
        return;
    }
    if ret == 0 {
        entry.eof_at = at;
    } else {
        entry.recv_error = -ret;
    }
    if entry.family == AF_UNIX && !unix_closes_seen() {
        entry.flags |= conn::UNIX_ENDED;
        owner.unix_ended = entry.sock;
    }
}

/// `trace_sk_data_ready(const struct sock *sk)`, 6.4 to 7.2: a connect() to a unix listener that was accepted by the
/// kernel fires it for the listener, in the connecting task.
#[btf_tracepoint(function = "sk_data_ready")]
pub fn unix_connected(ctx: BtfTracePointContext) -> i32 {
    // Only these are noted: it fires for everything that arrives anywhere.
    if let Some(sock) = unix_listener(&ctx) {
        play(understudy::UNIX_CONNECTED, of_first(&ctx));
        on_unix_connected(sock);
    }
    0
}

/// See [`unix_connected`].
#[btf_tracepoint(function = "sk_data_ready")]
pub fn unix_connected_nested(ctx: BtfTracePointContext) -> i32 {
    if let Some(sock) = unix_listener(&ctx)
        && is_first_needed(understudy::UNIX_CONNECTED, of_first(&ctx))
    {
        on_unix_connected(sock);
    }
    0
}

/// See [`unix_connected`].
#[btf_tracepoint(function = "sk_data_ready")]
pub fn unix_connected_nested2(ctx: BtfTracePointContext) -> i32 {
    if let Some(sock) = unix_listener(&ctx)
        && is_next_needed(understudy::UNIX_CONNECTED, of_first(&ctx))
    {
        on_unix_connected(sock);
    }
    0
}

/// See [`unix_connected`].
#[btf_tracepoint(function = "sk_data_ready")]
pub fn unix_connected_nested3(ctx: BtfTracePointContext) -> i32 {
    if let Some(sock) = unix_listener(&ctx)
        && is_last_needed(understudy::UNIX_CONNECTED, of_first(&ctx))
    {
        on_unix_connected(sock);
    }
    0
}

#[inline(always)]
fn unix_listener(ctx: &BtfTracePointContext) -> Option<SockArg> {
    let sock = SockArg::of(ctx, 0);
    (sock.family() == AF_UNIX && sock.state() == LISTEN).then_some(sock)
}

#[inline(always)]
fn on_unix_connected(listener: SockArg) {
    if let Some(owner) = worker(current_pid()) {
        owner.unix_at = now();
        owner.unix_listener = listener.address();
        owner.unix_read = 0;
    }
}

/// `int unix_stream_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags)`, 5.10 to 7.2
/// (there `struct sockaddr_unsized`).
#[fexit]
pub fn unix_connect_returned(ctx: FExitContext) -> i32 {
    if slot::<i32>(&ctx, setting!(slot_unix_connect)) != 0 {
        return 0;
    }
    if let Some(owner) = worker(current_pid()) {
        owner.unix_read = 0;
        owner.unix_at = now();
        owner.unix_listener = sock_of(ctx.arg::<u64>(0)).unix_peer();
    }
    0
}

with_understudy!(
    fentry,
    FEntryContext,
    UNIX_RELEASED,
    /// `int unix_release(struct socket *sock)`, 5.10 to 7.2: the last close of a unix socket, which no tracepoint shows.
    unix_released,
    [unix_released_nested],
    of_first,
    on_unix_released
);

#[inline(always)]
fn on_unix_released(ctx: &FEntryContext) {
    let Some(owner) = worker(current_pid()) else {
        return;
    };
    let sock = sock_of(ctx.arg::<u64>(0));
    let Some(entry) = connection(sock.0) else {
        return;
    };
    if entry.family != AF_UNIX || entry.worker != current_pid() {
        return;
    }
    close_mark(entry, sock, Some(owner), now());
    remove(entry);
}
