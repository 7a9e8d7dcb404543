//! What was there before: every socket that some process of this host holds open, in every namespace at once.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_seq_write};
use tracer_ebpf::{LISTENERS_PER_PORT, PortSlot, SnapshotSocket, conn, kind};

use crate::{
    exchange::{create, link_backend, remove},
    filter::{connection, worker},
    maps::{LISTENERS, SCRATCH, offset},
    output::{header, now},
    sock::{AF_INET, AF_INET6, AF_UNIX, CLOSE_WAIT, ESTABLISHED, LISTEN, Sock as _, SockAt, read},
};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// The context of `iter/task_file` (`struct bpf_iter__task_file`, kernel/bpf/task_iter.c, 5.8 to 7.2).
#[repr(C)]
struct TaskFile {
    meta: *const Meta,
    task: u64,
    fd: u32,
    pad: u32,
    file: u64,
}

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// The socket behind an open file, if it is one.
#[inline(always)]
fn socket_of(file: u64) -> Option<SockAt> {
    let inode: u64 = read(file, offset!(file_inode));
    if read::<u16>(inode, offset!(inode_mode)) & S_IFMT != S_IFSOCK {
        return None;
    }
    // An O_PATH descriptor has a socket's inode and no socket.
    let socket: u64 = read(file, offset!(file_private));
    if socket == 0 {
        return None;
    }
    let sock = SockAt(read(socket, offset!(socket_sk)));
    (sock.0 != 0).then_some(sock)
}

/// Writes one [`SnapshotSocket`] per open file that is a TCP socket or a listening unix one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn sockets_snapshot(ctx: *mut c_void) -> i32 {
    let ctx = ctx.cast::<TaskFile>();
    // SAFETY: the kernel passes a context of this layout; both pointers are null at the end of the iteration.
    let (task_struct, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task_struct == 0 || file == 0 {
        return 0;
    }
    let Some(sock) = socket_of(file) else { return 0 };
    let wanted = match sock.family() {
        AF_INET | AF_INET6 => sock.is_tcp(),
        AF_UNIX => sock.is_stream() && sock.state() == LISTEN,
        _ => false,
    };
    if wanted {
        let pid: u32 = read(task_struct, offset!(task_tgid));
        write_row(ctx, task_struct, pid, sock);
    }
    0
}

/// Puts nginx's open upstream connections into the table, and writes a [`SnapshotSocket`] for each. While the iterator
/// is at a file, the file is held, so its socket cannot be another's: user space could not know that.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn connections_adopted(ctx: *mut c_void) -> i32 {
    let ctx = ctx.cast::<TaskFile>();
    // SAFETY: as above.
    let (task_struct, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task_struct == 0 || file == 0 {
        return 0;
    }
    let pid: u32 = read(task_struct, offset!(task_tgid));
    if worker(pid).is_none() {
        return 0;
    }
    let Some(sock) = socket_of(file) else { return 0 };
    if !matches!(sock.state(), ESTABLISHED | CLOSE_WAIT) || connection(sock.0).is_some() {
        return 0;
    }
    let family = sock.family();
    let peer = if family == AF_UNIX { sock.unix_peer() } else { 0 };
    let is_upstream = match family {
        AF_INET | AF_INET6 => sock.is_tcp() && !is_listening(sock),
        AF_UNIX => sock.is_stream() && peer != 0 && !sock.unix_is_bound() && SockAt(peer).unix_is_bound(),
        _ => false,
    };
    if !is_upstream {
        return 0;
    }
    let at = now();
    let Some(entry) = create(sock, family, pid, at) else {
        return 0;
    };
    entry.flags |= conn::PREEXISTING;
    entry.connect_at = 0;
    if family == AF_UNIX {
        if !SockAt(peer).unix_path(&mut entry.path) {
            remove(entry);
            return 0;
        }
        link_backend(entry, SockAt(peer));
    } else {
        entry.saddr = sock.local_addr();
        entry.sport = sock.local_port();
    }
    write_row(ctx, task_struct, pid, sock);
    0
}

/// Whether a connection's own port is one that is listened on in its namespace: then it is a client's.
#[inline(always)]
fn is_listening(sock: SockAt) -> bool {
    let (port, netns) = (u32::from(sock.local_port()), sock.netns());
    for slot in 0..LISTENERS_PER_PORT {
        if let Some(value) = LISTENERS.get_ptr(PortSlot { port, slot }) {
            // SAFETY: a value of a preallocated map.
            if unsafe { (*value).netns } == netns {
                return true;
            }
        }
    }
    false
}

#[inline(always)]
fn write_row(ctx: *mut TaskFile, task_struct: u64, pid: u32, sock: SockAt) {
    let Some(line) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU value of a map; the iterator runs in process context, one at a time on this CPU.
    let line = unsafe { &mut *line };
    let family = sock.family();
    let state = sock.state();
    line.header = header(kind::SNAPSHOT, now());
    line.header.pid = pid;
    line.sock = sock.0;
    line.saddr = [0; 16];
    line.daddr = [0; 16];
    line.sport = 0;
    line.dport = 0;
    line.family = family;
    line.state = state;
    line.v6only = 0;
    line.netns = sock.netns();
    line.queue = sock.queue();
    line.limit = sock.queue_limit();
    line.is_nginx = u32::from(worker(pid).is_some());
    line.comm = read(task_struct, offset!(task_comm));
    line.path[0] = 0;
    if family == AF_UNIX {
        sock.unix_path(&mut line.path);
        line.queue = sock.receive_queue();
    } else {
        line.saddr = sock.local_addr();
        line.daddr = sock.peer_addr();
        line.sport = if state == LISTEN {
            sock.bound_port()
        } else {
            sock.local_port()
        };
        line.dport = sock.peer_port();
        line.v6only = u8::from(sock.is_v6only());
    }
    // SAFETY: `meta` and `seq` are valid while the iterator runs; `line` is initialised.
    unsafe {
        bpf_seq_write(
            (*(*ctx).meta).seq.cast(),
            core::ptr::from_ref(line).cast::<c_void>().cast_mut(),
            size_of::<SnapshotSocket>() as u32,
        );
    }
}
