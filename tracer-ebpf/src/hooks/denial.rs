//! Who in the kernel denies a worker its connect(): a security module, or a program of its control groups.
//!
//! A worker's connect() asks the first, then the second, then routing; the note that it was denied lasts until its line.

use aya_ebpf::{macros::fexit, programs::FExitContext};
use tracer_ebpf::denier;

use crate::{
    filter::worker,
    maps::setting,
    output::now,
    sock::{current_pid, is_main_thread, slot},
};

/// `int security_socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`, 5.10 to 7.2.
#[fexit]
pub fn security_asked(ctx: FExitContext) -> i32 {
    note(
        slot(&ctx, setting!(slot_security_connect)),
        denier::SECURITY_MODULE,
    );
    0
}

/// `int __cgroup_bpf_run_filter_sock_addr(struct sock *sk, struct sockaddr *uaddr, …)`, 5.10 to 7.2: four arguments in
/// 5.10, five in 6.1, six in 6.12. It is called for binds as well, and only where there is such a program. What it returns
/// is −1 (EPERM), or what the program set (`bpf_set_retval`, 5.18).
#[fexit]
pub fn cgroup_asked(ctx: FExitContext) -> i32 {
    note(slot(&ctx, setting!(slot_cgroup_connect)), denier::CGROUP);
    0
}

#[inline(always)]
fn note(returned: i32, by: u32) {
    let Some(owner) = worker(current_pid()) else {
        return;
    };
    if !is_main_thread() {
        return;
    }
    if returned < 0 {
        owner.denied_at = now();
        owner.denied_errno = -returned;
        owner.denied_by = by;
    } else {
        owner.denied_at = 0;
    }
}
