//! The states of TCP sockets: attempts begin, connections are established, both ends close.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_ebpf::{Conn, Happening, conn};

use super::{
    listen,
    understudy::{of_first, with_understudy},
};
use crate::{
    exchange::{
        answered, backend_closed, client_closed, close_mark, create, edge, link_backend, own_begin, remove,
    },
    filter::{backend, connection, remember_endpoint, worker},
    maps::{BACKENDS, SEQUENCES, offset},
    output::{monotonic, now},
    sock::{
        AF_INET, CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, LAST_ACK, LISTEN, Members as _, SYN_RECV,
        SYN_SENT, Sock as _, SockArg, Tcp as _, current_pid, current_task, is_main_thread, mapped, read,
    },
};

/// The states that end a connection from this side, as bits.
const ENDS: u32 = 1 << FIN_WAIT1 | 1 << LAST_ACK | 1 << CLOSE;
/// The states that this side has not ended yet, as bits.
const OPEN: u32 = 1 << SYN_SENT | 1 << SYN_RECV | 1 << ESTABLISHED | 1 << CLOSE_WAIT;

with_understudy!(
    btf_tracepoint(function = "inet_sock_set_state"),
    BtfTracePointContext,
    STATE,
    /// `trace_inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`, 5.10 to 7.2.
    socket_state,
    [socket_state_nested, socket_state_nested2, socket_state_nested3],
    change,
    on_socket_state
);

#[inline(always)]
fn change(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(0),
        what: ctx.arg::<u32>(1) << 8 | ctx.arg::<u32>(2),
    }
}

#[inline(always)]
fn on_socket_state(ctx: &BtfTracePointContext) {
    let sock = SockArg::of(ctx, 0);
    let old = ctx.arg::<i32>(1) as u8;
    let new = ctx.arg::<i32>(2) as u8;
    if !sock.is_tcp() {
        return;
    }
    // Asked by bits, which leaves `new` unknown to the verifier: it would walk the loop in `ending` once per value.
    if ENDS >> (new & 15) & 1 != 0 {
        ending(sock, old, new);
        return;
    }
    match new {
        SYN_SENT => connecting(sock),
        LISTEN => listen::opened(sock),
        ESTABLISHED if old == SYN_SENT => established(sock),
        ESTABLISHED if old == SYN_RECV => accepted(sock),
        CLOSE_WAIT => fin_received(sock),
        _ => {}
    }
}

/// →SYN_SENT runs in the owner's connect(), always (kernel.md row 2).
#[inline(always)]
fn connecting(sock: SockArg) {
    let pid = current_pid();
    let Some(owner) = worker(pid) else { return };
    let at = now();
    if is_told_twice(sock, pid, at) {
        return;
    }
    let Some(entry) = create(sock, sock.family(), pid, at) else {
        return;
    };
    owner.connecting = sock.address();
    owner.unix_read = 0;
    if owner.last_sock != 0 {
        // As auth_request does: the answer to one lets the other begin.
        answered(owner.last_sock);
        owner.last_sock = 0;
    }
    own_begin(owner, entry, at);
}

/// An understudy whose program's note was lost to another task's (see `understudy`) comes right after its program. A socket
/// that the worker closed and another one at its place show the end of the first in its entry, or have none.
#[inline(always)]
fn is_told_twice(sock: SockArg, pid: u32, at: u64) -> bool {
    const AT_ONCE: u64 = 1_000_000;
    matches!(connection(sock.address()), Some(entry) if entry.worker == pid
        && entry.number == 1
        && entry.established_at == 0
        && entry.closed_in == 0
        && entry.reset_at == 0
        && entry.error_at == 0
        && at.wrapping_sub(entry.connect_at) < AT_ONCE)
}

#[inline(always)]
fn established(sock: SockArg) {
    let (Some(entry), Some(tcp)) = (connection(sock.address()), sock.tcp()) else {
        return;
    };
    entry.established_at = now();
    entry.saddr = sock.local_addr();
    entry.sport = sock.bound_port();
    let first = tcp.snd_nxt();
    entry.start_seq = first;
    entry.copied = tcp.rcv_nxt();
    let key = u64::from(first) << 32 | u64::from(entry.copied);
    // 0 means "none" in the entry; a connection with both sequence numbers 0 goes without its other end.
    if key != 0 {
        entry.isn_key = key;
        crate::output::counted(SEQUENCES.insert(key, sock.address(), 0));
    }
}

/// A server's socket of this host: the other end of nginx's, if the pair of initial sequence numbers is known.
#[inline(always)]
fn accepted(sock: SockArg) {
    let Some(tcp) = sock.tcp() else { return };
    let key = u64::from(tcp.rcv_nxt()) << 32 | u64::from(tcp.snd_nxt());
    let Some(nginx) = SEQUENCES.get_ptr(key) else {
        return;
    };
    // SAFETY: a value of a preallocated map.
    let nginx = unsafe { *nginx };
    let _ = SEQUENCES.remove(key);
    if let Some(entry) = connection(nginx)
        && entry.isn_key == key
    {
        entry.isn_key = 0;
        link_backend(entry, sock);
    }
}

#[inline(always)]
fn fin_received(sock: SockArg) {
    if let Some(entry) = connection(sock.address()) {
        entry.fin_at = now();
        entry.una_at_fin = sock.tcp().map_or(0, |tcp| tcp.snd_una());
        entry.flags |= conn::FIN_SEEN;
    }
}

#[inline(always)]
fn ending(sock: SockArg, old: u8, new: u8) {
    if old == LISTEN {
        listen::closed(sock);
        return;
    }
    // A close is marked where it began, and what comes behind it says nothing more.
    if OPEN >> (old & 15) & 1 == 0 {
        return;
    }
    if let Some(entry) = connection(sock.address()) {
        if entry.flags & conn::MARKED != 0 {
            return;
        }
        let pid = current_pid();
        let at = now();
        let own_close = |entry: &Conn| entry.reset_at == 0 && sock.error() == 0 && pid == entry.worker;
        let met_silence = if listen::is_set(u64::from(new ^ CLOSE)) == 0 {
            listen::is_set(u64::from(old ^ SYN_SENT)) == 0 && own_close(entry)
        } else {
            entry.received == 0 && entry.began_at != 0
        };
        if met_silence {
            listen::sample(entry, at);
        }
        if new == CLOSE {
            read_errors(entry, sock, at);
            if own_close(entry) {
                // nginx's own close straight to CLOSE: in SYN_SENT, or with data unread. Its destroy follows.
                left_unread(entry, sock, old, at);
            }
            return;
        }
        left_unread(entry, sock, old, at);
        let own = if pid == entry.worker { worker(pid) } else { None };
        close_mark(entry, sock, own, at);
    } else if let Some(link) = backend(sock.address()) {
        let aborted = new == CLOSE;
        // A reset from the other end sets sk_err before the state changes; that is no close of the backend's.
        if old != SYN_SENT && !(aborted && sock.error() != 0) {
            backend_closed(link, sock, aborted, old == CLOSE_WAIT, now());
        }
    } else if is_main_thread() {
        if let Some(owner) = worker(current_pid()) {
            if new != CLOSE {
                client_closed(owner, sock, old == CLOSE_WAIT, false, now());
            } else if old == ESTABLISHED && sock.error() == 0 {
                // nginx closes a client that has more to say: no reset of the client's, which would set the error.
                client_closed(owner, sock, false, false, now());
                owner.client_ended = sock.address();
            }
        }
    }
}

/// nginx closes its socket: what lies in it unread, and since when at the latest. The kernel says the state before it
/// sends anything about it (`__tcp_close`, 5.10 to 7.2).
#[inline(always)]
fn left_unread(entry: &mut Conn, sock: SockArg, state: u8, at: u64) {
    entry.closed_in = state;
    entry.unread = unread(sock, entry, state);
    if entry.unread == 0 {
        return;
    }
    let last = sock.tcp().map_or(0, |tcp| tcp.last_packet_us()) * 1000;
    let now = monotonic();
    if last != 0 && last <= now {
        entry.arrived_at = at - (now - last);
    }
}

/// Bytes that arrived for nginx and were never read.
#[inline(always)]
fn unread(sock: SockArg, entry: &Conn, state: u8) -> u32 {
    // In CLOSE_WAIT the FIN has come, seen or not.
    sock.tcp()
        .map_or(0, |tcp| tcp.unread(entry.fin_at != 0 || state == CLOSE_WAIT))
}

with_understudy!(
    btf_tracepoint(function = "tcp_destroy_sock"),
    BtfTracePointContext,
    DESTROYED,
    /// `trace_tcp_destroy_sock(struct sock *sk)`, 5.10 to 7.2: the end of the socket's address as an identity.
    socket_destroyed,
    [socket_destroyed_nested, socket_destroyed_nested2, socket_destroyed_nested3],
    of_first,
    on_socket_destroyed
);

#[inline(always)]
fn on_socket_destroyed(ctx: &BtfTracePointContext) {
    let sock = SockArg::of(ctx, 0);
    if let Some(entry) = connection(sock.address()) {
        if entry.flags & conn::MARKED == 0 {
            let at = now();
            // A destroy without a mark before it runs in the owner's close() (17,450 of 17,450 under load), or in that of
            // another task that held the file.
            if sock.error() != 0 {
                entry.flags |= conn::ERROR_UNFETCHED;
            }
            read_errors(entry, sock, at);
            let pid = current_pid();
            let own = if pid == entry.worker { worker(pid) } else { None };
            close_mark(entry, sock, own, at);
        }
        remove(entry);
    } else if let Some(link) = backend(sock.address()) {
        if link.flags & conn::ABORTED != 0 {
            let error = sock.error();
            if error != 0 {
                edge(link, sock, 0, error, current_task(), now());
            }
        }
        let _ = BACKENDS.remove(sock.address());
    } else if is_main_thread() && sock.is_shut() {
        // A client that had reset its connection leaves no other trace of nginx's close.
        if let Some(owner) = worker(current_pid())
            && owner.previous_kind == tracer_ebpf::previous::SILENT
            && sock.state() == CLOSE
        {
            client_closed(owner, sock, true, true, now());
        }
    }
}

with_understudy!(
    btf_tracepoint(function = "tcp_receive_reset"),
    BtfTracePointContext,
    RESET_RECEIVED,
    /// `trace_tcp_receive_reset(struct sock *sk)`, 5.10 to 7.2: the state is the one before.
    reset_received,
    [reset_received_nested, reset_received_nested2, reset_received_nested3],
    of_first,
    on_reset_received
);

#[inline(always)]
fn on_reset_received(ctx: &BtfTracePointContext) {
    let sock = SockArg::of(ctx, 0);
    if let Some(entry) = connection(sock.address()) {
        if entry.reset_at == 0 && entry.flags & conn::MARKED == 0 {
            entry.reset_at = now();
            entry.reset_in = sock.state();
            entry.una_at_reset = sock.tcp().map_or(0, |tcp| tcp.snd_una());
            entry.unread = unread(sock, entry, entry.reset_in);
        }
    }
}

with_understudy!(
    btf_tracepoint(function = "inet_sk_error_report"),
    BtfTracePointContext,
    ERROR,
    /// `trace_inet_sk_error_report(const struct sock *sk)`, 5.14 to 7.2.
    error_reported,
    [error_reported_nested, error_reported_nested2, error_reported_nested3],
    of_first,
    on_error_reported
);

#[inline(always)]
fn on_error_reported(ctx: &BtfTracePointContext) {
    let sock = SockArg::of(ctx, 0);
    if let Some(entry) = connection(sock.address()) {
        read_errors(entry, sock, now());
    }
}

with_understudy!(
    btf_tracepoint(function = "tcp_retransmit_skb"),
    BtfTracePointContext,
    RETRANSMITTED,
    /// `trace_tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb)`, 5.10 to 7.2.
    retransmitted,
    [retransmitted_nested, retransmitted_nested2, retransmitted_nested3],
    of_first,
    on_retransmitted
);

#[inline(always)]
fn on_retransmitted(ctx: &BtfTracePointContext) {
    let sock = SockArg::of(ctx, 0);
    if let Some(entry) = connection(sock.address()) {
        if entry.flags & conn::MARKED != 0 {
            return;
        }
        let at = now();
        entry.last_retransmit_at = at;
        remember_endpoint(entry.daddr, entry.dport, at);
        if sock.state() == SYN_SENT {
            entry.syn_retransmits += 1;
            listen::sample(entry, at);
        } else {
            entry.retransmits += 1;
        }
    }
}

/// The first error of the socket's that is seen, and the ICMP error behind it.
#[inline(always)]
fn read_errors(entry: &mut Conn, sock: SockArg, at: u64) {
    let error = sock.error();
    if error != 0 && entry.error == 0 {
        entry.error = error;
        entry.error_at = at;
    }
    read_icmp(entry, sock, at);
}

/// An IPv4 ICMP error lies as a clone in the socket's error queue: its outer header has the sender, its control
/// block the type and code (`struct sock_extended_err`: origin at 4, type at 5, code at 6; origin 2 is ICMP).
#[inline(always)]
fn read_icmp(entry: &mut Conn, sock: SockArg, at: u64) {
    if entry.flags & conn::ICMP_SEEN != 0 {
        return;
    }
    let queue = sock.address() + u64::from(offset!(sk_error_queue));
    if read::<u32>(queue, offset!(queue_len)) == 0 {
        return;
    }
    let skb: u64 = read(queue, offset!(queue_next));
    let error = skb + u64::from(offset!(skb_cb)) + u64::from(offset!(exterr_ee));
    let origin: u8 = read(error, 4);
    if origin != 2 || sock.family() != AF_INET {
        return;
    }
    entry.flags |= conn::ICMP_SEEN;
    entry.icmp_at = at;
    entry.icmp_kind = read(error, 5);
    entry.icmp_code = read(error, 6);
    if entry.soft == 0 {
        entry.soft = read::<u32>(error, 0) as i32;
    }
    let head: u64 = read(skb, offset!(skb_head));
    let outer = head + u64::from(read::<u16>(skb, offset!(skb_network_header)));
    entry.icmp_sender = mapped(read(outer, 12));
}
