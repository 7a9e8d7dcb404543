//! What was there before: every socket that some process of this host holds open, in every namespace at once.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_seq_write};
use tracer_ebpf::{SnapshotSocket, kind};

use crate::{
    filter::worker,
    maps::{SCRATCH, offset},
    output::{header, now},
    sock::{AF_INET, AF_INET6, AF_UNIX, LISTEN, Sock, read},
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

/// Writes one [`SnapshotSocket`] per open file that is a TCP socket, or a unix one that listens or is nginx's.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn sockets_snapshot(ctx: *mut c_void) -> i32 {
    let ctx = ctx.cast::<TaskFile>();
    // SAFETY: the kernel passes a context of this layout; both pointers are null at the end of the iteration.
    let (task_struct, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task_struct == 0 || file == 0 {
        return 0;
    }
    let inode: u64 = read(file, offset!(file_inode));
    if read::<u16>(inode, offset!(inode_mode)) & S_IFMT != S_IFSOCK {
        return 0;
    }
    let socket: u64 = read(file, offset!(file_private));
    if socket == 0 {
        return 0;
    }
    let sock = Sock(read(socket, offset!(socket_sk)));
    if sock.0 == 0 {
        return 0;
    }
    let family = sock.family();
    let state = sock.state();
    let pid: u32 = read(task_struct, offset!(task_tgid));
    let is_nginx = worker(pid).is_some();
    let wanted = match family {
        AF_INET | AF_INET6 => sock.is_tcp(),
        AF_UNIX => sock.is_stream() && (state == LISTEN || is_nginx),
        _ => false,
    };
    if !wanted {
        return 0;
    }
    let Some(line) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a per-CPU value of a map; the iterator runs in process context, one at a time on this CPU.
    let line = unsafe { &mut *line };
    *line = SnapshotSocket {
        header: header(kind::SNAPSHOT, now()),
        sock: sock.0,
        peer_sock: 0,
        saddr: [0; 16],
        daddr: [0; 16],
        sport: 0,
        dport: 0,
        family,
        state,
        v6only: 0,
        netns: sock.netns(),
        queue: sock.queue(),
        limit: sock.queue_limit(),
        is_nginx: u32::from(is_nginx),
        comm: read(task_struct, offset!(task_comm)),
        path: line.path,
        peer_path: line.peer_path,
    };
    line.header.pid = pid;
    line.path[0] = 0;
    line.peer_path[0] = 0;
    if family == AF_UNIX {
        sock.unix_path(&mut line.path);
        if state == LISTEN {
            line.queue = sock.receive_queue();
        } else {
            line.peer_sock = sock.unix_peer();
            if line.peer_sock != 0 {
                Sock(line.peer_sock).unix_path(&mut line.peer_path);
            }
        }
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
    0
}
