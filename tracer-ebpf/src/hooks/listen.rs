//! Listening TCP sockets of the whole host, and their accept queues when a connection meets silence.

use core::hint::black_box;

use aya_ebpf::{
    macros::{fexit, kprobe},
    programs::{FExitContext, ProbeContext},
};
use tracer_ebpf::{
    COMM_LEN, Conn, Happening, LISTENERS_PER_PORT, Listener, ListenerSlot, PortSlot, TaskInfo, counter, kind,
};

use super::understudy::with_understudy;
use crate::{
    exchange::backend_accepted,
    filter::{backend, connection, remember_owner, worker},
    maps::{LISTENERS, setting},
    output::{count, header, now, write},
    sock::{LISTEN, SYN_SENT, Sock, SockAt, Tcp as _, current_pid, current_task, mapped, segment_seq, slot},
};

#[inline(always)]
fn record(what: u16, sock: impl Sock, port: u16, task: TaskInfo, conn: (u64, u64), at: u64) {
    write(&Listener {
        header: header(what, at),
        sock: sock.address(),
        conn_sock: conn.0,
        conn_since: conn.1,
        addr: sock.local_addr(),
        netns: sock.netns(),
        queue: sock.queue(),
        limit: sock.queue_limit(),
        port,
        family: sock.family() as u8,
        v6only: u8::from(sock.is_v6only()),
        task,
    });
}

/// CLOSE→LISTEN, in the task that calls listen().
#[inline(always)]
pub fn opened(sock: impl Sock) {
    let task = current_task();
    let port = sock.bound_port();
    remember_owner(task.pid);
    let value = ListenerSlot {
        sock: sock.address(),
        addr: sock.local_addr(),
        netns: sock.netns(),
        pid: task.pid,
        comm: task.comm,
    };
    let mut kept = false;
    for slot in 0..LISTENERS_PER_PORT {
        // 1 is BPF_NOEXIST: two CPUs can't take the same slot.
        if LISTENERS
            .insert(
                PortSlot {
                    port: u32::from(port),
                    slot,
                },
                &value,
                1,
            )
            .is_ok()
        {
            kept = true;
            break;
        }
    }
    if !kept {
        count(counter::TABLE_FULL);
    }
    record(kind::LISTENER_OPENED, sock, port, task, (0, 0), now());
}

/// LISTEN→CLOSE, in the task that closes it, also when that task is ending.
#[inline(always)]
pub fn closed(sock: impl Sock) {
    let port = sock.local_port();
    for slot in 0..LISTENERS_PER_PORT {
        let key = PortSlot {
            port: u32::from(port),
            slot,
        };
        if let Some(value) = LISTENERS.get_ptr(key) {
            // SAFETY: a value of a preallocated map.
            if unsafe { (*value).sock } == sock.address() {
                let _ = LISTENERS.remove(key);
                break;
            }
        }
    }
    record(kind::LISTENER_CLOSED, sock, port, current_task(), (0, 0), now());
}

/// 0 for 0, else 1, without a branch that the compiler could bring back.
#[inline(always)]
pub fn is_set(bits: u64) -> u64 {
    black_box(bits | bits.wrapping_neg()) >> 63
}

#[inline(always)]
fn differ(a: [u8; 16], b: [u8; 16]) -> u64 {
    let [a, b]: [[u64; 2]; 2] = zerocopy::transmute!([a, b]);
    is_set((a[0] ^ b[0]) | (a[1] ^ b[1]))
}

/// Reads the accept queue of the listener that `conn` waits for; of several that could be it, the fullest one's.
///
/// The loop has no branch but that of the look-up: the verifier walks the rest of a loop again for each state that it
/// can be in, and that of older kernels hardly sees which of them are alike.
#[inline(always)]
pub fn sample(conn: &Conn, at: u64) {
    let mut fullest = 0u64;
    let mut excess = i64::from(i32::MIN);
    for slot in 0..LISTENERS_PER_PORT {
        let Some(value) = LISTENERS.get_ptr(PortSlot {
            port: u32::from(conn.dport),
            slot,
        }) else {
            continue;
        };
        // SAFETY: a value of a preallocated map.
        let (listener, addr) = unsafe { ((*value).sock, (*value).addr) };
        let sock = SockAt(listener);
        let misses = (differ(addr, conn.daddr) & differ(addr, [0; 16]) & differ(addr, mapped([0; 4])))
            | is_set(u64::from(sock.state() ^ LISTEN))
            | is_set(u64::from(sock.bound_port() ^ conn.dport));
        let over = i64::from(sock.queue()) - i64::from(sock.queue_limit());
        let is_fuller = ((excess - over) as u64) >> 63;
        let mask = black_box(0u64.wrapping_sub(is_fuller & (misses ^ 1)));
        fullest ^= (fullest ^ listener) & mask;
        excess ^= (excess ^ over) & mask as i64;
    }
    if fullest != 0 {
        queue_record(SockAt(fullest), conn.dport, (conn.sock, conn.since), at);
    }
}

/// Writes a listener's queue, with the process that opened it.
#[inline(always)]
fn queue_record(sock: impl Sock, port: u16, conn: (u64, u64), at: u64) {
    let mut task = TaskInfo {
        pid: 0,
        flags: 0,
        exit_code: 0,
        pad: 0,
        comm: [0; COMM_LEN],
    };
    for slot in 0..LISTENERS_PER_PORT {
        let key = PortSlot {
            port: u32::from(port),
            slot,
        };
        if let Some(value) = LISTENERS.get_ptr(key) {
            // SAFETY: a value of a preallocated map.
            let value = unsafe { *value };
            if value.sock == sock.address() {
                task.pid = value.pid;
                task.comm = value.comm;
                break;
            }
        }
    }
    record(kind::LISTENER_QUEUE, sock, port, task, conn, at);
}

with_understudy!(
    fexit,
    FExitContext,
    ACCEPTED,
    /// `struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern)`; from 6.10 `(sk, struct
    /// proto_accept_arg *)`.
    connection_accepted,
    [connection_accepted_nested],
    of_accepted,
    on_connection_accepted
);

#[inline(always)]
fn of_accepted(ctx: &FExitContext) -> Happening {
    Happening {
        object: slot(ctx, setting!(slot_accept)),
        what: 0,
    }
}

#[inline(always)]
fn on_connection_accepted(ctx: &FExitContext) {
    let sock: u64 = slot(ctx, setting!(slot_accept));
    if let Some(link) = backend(sock) {
        backend_accepted(link, now());
    }
}

/// `int tcp_conn_request(struct request_sock_ops *rsk_ops, const struct tcp_request_sock_ops *af_ops, struct sock *sk,
/// struct sk_buff *skb)`, 5.10 to 7.2.
#[fexit]
pub fn syn_answered(ctx: FExitContext) -> i32 {
    syn(SockAt(ctx.arg::<u64>(2)), ctx.arg::<u64>(3));
    0
}

/// The same at the function's entry.
#[kprobe]
pub fn syn_arrived(ctx: ProbeContext) -> u32 {
    if let (Some(sock), Some(skb)) = (ctx.arg::<u64>(2), ctx.arg::<u64>(3)) {
        syn(SockAt(sock), skb);
    }
    0
}

/// A listener of this host gets a SYN. With a full queue it is dropped without any other sign. The first one arrives
/// inside nginx's connect(); later ones are seen as retransmissions.
#[inline(always)]
fn syn(listener: SockAt, skb: u64) {
    if listener.queue() <= listener.queue_limit() {
        return;
    }
    let Some(owner) = worker(current_pid()) else {
        return;
    };
    let Some(entry) = connection(owner.connecting) else {
        return;
    };
    let sock = SockAt(entry.sock);
    if sock.state() != SYN_SENT || sock.snd_una() != segment_seq(skb) {
        return;
    }
    queue_record(listener, listener.bound_port(), (entry.sock, entry.since), now());
}
