//! connect() calls of nginx's workers that fail at once: of these no socket tells anything afterwards.

use aya_ebpf::{helpers::bpf_probe_read_kernel_str_bytes, macros::fexit, programs::FExitContext};
use tracer_ebpf::{ConnectFailed, PATH_LEN, kind};

use super::understudy::{of_first, with_understudy};
use crate::{
    filter::worker,
    maps::setting,
    output::{header, now, write},
    sock::{AF_INET, AF_INET6, AF_UNIX, current_pid, is_main_thread, mapped, read, slot},
};

/// EISCONN, EALREADY, EINPROGRESS: no failure of the connect itself.
const UNDER_WAY: [i32; 3] = [-106, -114, -115];

with_understudy!(
    fexit,
    FExitContext,
    CONNECT_RETURNED,
    /// `int inet_stream_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags)`, 5.10 to 7.2 (there
    /// `struct sockaddr_unsized`).
    tcp_connect_returned,
    [tcp_connect_returned_nested],
    of_first,
    on_tcp_connect_returned
);

#[inline(always)]
fn on_tcp_connect_returned(ctx: &FExitContext) {
    returned(ctx.arg::<u64>(1), slot(ctx, setting!(slot_inet_connect)));
}

with_understudy!(
    fexit,
    FExitContext,
    UNIX_CONNECT_FAILED,
    /// `int unix_stream_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags)`, as above.
    unix_connect_failed,
    [unix_connect_failed_nested],
    of_first,
    on_unix_connect_failed
);

#[inline(always)]
fn on_unix_connect_failed(ctx: &FExitContext) {
    returned(ctx.arg::<u64>(1), slot(ctx, setting!(slot_unix_connect)));
}

/// `address`: the kernel's copy of the `struct sockaddr` that was asked for.
#[inline(always)]
fn returned(address: u64, ret: i32) {
    if ret >= 0 || UNDER_WAY.contains(&ret) || worker(current_pid()).is_none() || !is_main_thread() {
        return;
    }
    let family: u16 = read(address, 0);
    let mut record = ConnectFailed {
        header: header(kind::CONNECT_FAILED, now()),
        errno: -ret,
        family,
        port: 0,
        addr: [0; 16],
        path: [0; PATH_LEN],
        pad: 0,
    };
    match family {
        AF_INET => {
            record.port = u16::from_be(read(address, 2));
            record.addr = mapped(read(address, 4));
        }
        AF_INET6 => {
            record.port = u16::from_be(read(address, 2));
            record.addr = read(address, 8);
        }
        AF_UNIX => {
            // SAFETY: the helper checks the address and stops at the end of the path.
            let _ = unsafe { bpf_probe_read_kernel_str_bytes((address + 2) as *const u8, &mut record.path) };
        }
        _ => return,
    }
    write(&record);
}
