//! Failed route lookups of nginx's workers: the difference between no route, and a route that forbids.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_ebpf::Happening;

use super::understudy::with_understudy;
use crate::{
    filter::worker,
    maps::offset,
    output::now,
    sock::{current_pid, mapped, read},
};

with_understudy!(
    btf_tracepoint(function = "fib_table_lookup"),
    BtfTracePointContext,
    ROUTE,
    /// `trace_fib_table_lookup(u32 tb_id, const struct flowi4 *flp, const struct fib_nh_common *nhc, int err)`, 5.10 to
    /// 7.2: −11 no match in that table, −113 unreachable, −13 prohibit, −22 blackhole.
    route_looked_up,
    [route_looked_up_nested, route_looked_up_nested2, route_looked_up_nested3],
    of_flow,
    on_route_looked_up
);

/// A rule's table after the other is asked for the same flow.
#[inline(always)]
fn of_flow(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(1),
        what: ctx.arg(0),
    }
}

#[inline(always)]
fn on_route_looked_up(ctx: &BtfTracePointContext) {
    let error = ctx.arg::<i32>(3);
    if error >= 0 {
        return;
    }
    if let Some(owner) = worker(current_pid()) {
        owner.route_at = now();
        owner.route_errno = -error;
        owner.route_daddr = mapped(read(ctx.arg::<u64>(1), offset!(flowi4_daddr)));
    }
}

with_understudy!(
    btf_tracepoint(function = "fib6_table_lookup"),
    BtfTracePointContext,
    ROUTE6,
    /// `trace_fib6_table_lookup(const struct net *net, const struct fib6_result *res, struct fib6_table *table, const
    /// struct flowi6 *flp)`, 5.10 to 7.2. `fib6_type`: 6 blackhole, 7 unreachable, 8 prohibit (include/uapi/linux/rtnetlink.h).
    route6_looked_up,
    [route6_looked_up_nested, route6_looked_up_nested2, route6_looked_up_nested3],
    of_flow6,
    on_route6_looked_up
);

#[inline(always)]
fn of_flow6(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(3),
        what: 0,
    }
}

#[inline(always)]
fn on_route6_looked_up(ctx: &BtfTracePointContext) {
    let Some(owner) = worker(current_pid()) else {
        return;
    };
    let error = match read::<u8>(ctx.arg::<u64>(1), offset!(fib6_type)) {
        6 => 22,
        7 => 113,
        8 => 13,
        _ => return,
    };
    owner.route_at = now();
    owner.route_errno = error;
    owner.route_daddr = read(ctx.arg::<u64>(3), offset!(flowi6_daddr));
}
