//! Programs that may interrupt themselves.
//!
//! The kernel skips a program that already runs on its CPU (from 6.1 for tracepoints): a socket that changes in a
//! softirq while the program looks at another one would go unseen. So each program that runs in softirqs and in system
//! calls has an understudy on the same tracepoint, which does the work when the program itself was skipped. The program
//! notes what it works on; its understudy, called for every event right after it, finds another event there then, and
//! mostly nothing. Softirqs do not nest, so nobody needs an understudy of the understudy.

use aya_ebpf::programs::BtfTracePointContext;
use tracer_ebpf::Running;

use crate::maps::RUNNING;

/// One event, told from any other that can interrupt it: an object, and what happens to it.
#[derive(Clone, Copy)]
pub struct Happening {
    pub object: u64,
    pub what: u32,
}

/// The event is told by the object that is its first argument.
#[inline(always)]
pub fn of_first(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(0),
        what: 0,
    }
}

/// What is kept for program `n` on this CPU.
#[inline(always)]
fn running(n: u32) -> Option<&'static mut Running> {
    // SAFETY: a value of a per-CPU array; what interrupts puts it back as it was.
    RUNNING.get_ptr_mut(n).map(|value| unsafe { &mut *value })
}

/// The program itself: works, and says on what meanwhile.
#[inline(always)]
pub fn play(n: u32, happening: Happening, work: impl FnOnce()) -> i32 {
    if let Some(running) = running(n) {
        running.depth += 1;
        running.object = happening.object;
        running.what = happening.what;
        work();
        running.depth -= 1;
    }
    0
}

/// The understudy: works where the program was skipped.
#[inline(always)]
pub fn stand_in(n: u32, happening: Happening, work: impl FnOnce()) -> i32 {
    if let Some(running) = running(n)
        && running.depth != 0
        // Where the kernel skips nothing, the program has handled this very event just now.
        && (running.object != happening.object || running.what != happening.what)
    {
        running.stood_in += 1;
        work();
    }
    0
}

/// A program and its understudy: both get their arguments from `$happening`, and call `$work`.
macro_rules! with_understudy {
    ($point:literal, $index:ident, $(#[$doc:meta])* $program:ident, $understudy:ident, $happening:expr, $work:expr) => {
        $(#[$doc])*
        #[aya_ebpf::macros::btf_tracepoint(function = $point)]
        pub fn $program(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            $crate::hooks::understudy::play(tracer_ebpf::understudy::$index, $happening(&ctx), || $work(&ctx))
        }

        #[aya_ebpf::macros::btf_tracepoint(function = $point)]
        pub fn $understudy(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            $crate::hooks::understudy::stand_in(tracer_ebpf::understudy::$index, $happening(&ctx), || $work(&ctx))
        }
    };
}
pub(super) use with_understudy;
