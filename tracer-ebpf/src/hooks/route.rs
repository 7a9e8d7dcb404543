//! Failed route lookups of nginx's workers: the difference between no route, and a route that forbids.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    filter::worker,
    maps::offset,
    output::now,
    sock::{current_pid, mapped, read},
};

/// `trace_fib_table_lookup(u32 tb_id, const struct flowi4 *flp, const struct fib_nh_common *nhc, int err)`, 5.10 to
/// 7.2: −11 no match in that table, −113 unreachable, −13 prohibit, −22 blackhole.
#[btf_tracepoint(function = "fib_table_lookup")]
pub fn route_looked_up(ctx: BtfTracePointContext) -> i32 {
    let error = ctx.arg::<i32>(3);
    if error >= 0 {
        return 0;
    }
    if let Some(owner) = worker(current_pid()) {
        owner.route_at = now();
        owner.route_errno = -error;
        owner.route_daddr = mapped(read(ctx.arg::<u64>(1), offset!(flowi4_daddr)));
    }
    0
}

/// `trace_fib6_table_lookup(const struct net *net, const struct fib6_result *res, struct fib6_table *table, const
/// struct flowi6 *flp)`, 5.10 to 7.2. `fib6_type`: 6 blackhole, 7 unreachable, 8 prohibit (include/uapi/linux/rtnetlink.h).
#[btf_tracepoint(function = "fib6_table_lookup")]
pub fn route6_looked_up(ctx: BtfTracePointContext) -> i32 {
    let Some(owner) = worker(current_pid()) else {
        return 0;
    };
    let error = match read::<u8>(ctx.arg::<u64>(1), offset!(fib6_type)) {
        6 => 22,
        7 => 113,
        8 => 13,
        _ => return 0,
    };
    owner.route_at = now();
    owner.route_errno = error;
    owner.route_daddr = read(ctx.arg::<u64>(3), offset!(flowi6_daddr));
    0
}
