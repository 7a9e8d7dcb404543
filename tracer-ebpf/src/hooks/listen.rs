//! Listening TCP sockets of the whole host, and their accept queues when a connection meets silence.

use tracer_ebpf::{Conn, LISTENERS_PER_PORT, Listener, ListenerSlot, PortSlot, TaskInfo, counter, kind};

use crate::{
    filter::remember_owner,
    maps::LISTENERS,
    output::{count, header, now, write},
    sock::{LISTEN, Sock, current_task},
};

#[inline(always)]
fn record(what: u16, sock: Sock, port: u16, task: TaskInfo, conn: (u64, u64), at: u64) {
    write(&Listener {
        header: header(what, at),
        sock: sock.0,
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
pub fn opened(sock: Sock) {
    let task = current_task();
    let port = sock.bound_port();
    remember_owner(task.pid);
    let value = ListenerSlot {
        sock: sock.0,
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
pub fn closed(sock: Sock) {
    let port = sock.local_port();
    for slot in 0..LISTENERS_PER_PORT {
        let key = PortSlot {
            port: u32::from(port),
            slot,
        };
        if let Some(value) = LISTENERS.get_ptr(key) {
            // SAFETY: a value of a preallocated map.
            if unsafe { (*value).sock } == sock.0 {
                let _ = LISTENERS.remove(key);
                break;
            }
        }
    }
    record(kind::LISTENER_CLOSED, sock, port, current_task(), (0, 0), now());
}

/// Reads the queues of every listener that could be the one `conn` waits for.
#[inline(always)]
pub fn sample(conn: &Conn, at: u64) {
    for slot in 0..LISTENERS_PER_PORT {
        let Some(value) = LISTENERS.get_ptr(PortSlot {
            port: u32::from(conn.dport),
            slot,
        }) else {
            continue;
        };
        // SAFETY: a value of a preallocated map.
        let value = unsafe { *value };
        let sock = Sock(value.sock);
        if sock.state() != LISTEN || sock.bound_port() != conn.dport {
            continue;
        }
        let any_v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        if value.addr != conn.daddr && value.addr != [0; 16] && value.addr != any_v4 {
            continue;
        }
        let task = TaskInfo {
            pid: value.pid,
            flags: 0,
            exit_code: 0,
            pad: 0,
            comm: value.comm,
        };
        record(
            kind::LISTENER_QUEUE,
            sock,
            conn.dport,
            task,
            (conn.sock, conn.since),
            at,
        );
    }
}
