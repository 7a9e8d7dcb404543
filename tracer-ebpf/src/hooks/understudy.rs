//! Programs that may interrupt themselves.
//!
//! The kernel skips a program that already runs on its CPU (from 6.1 for tracepoints): a socket that changes in a
//! softirq while the program looks at another one would go unseen. So each program that runs in softirqs and in system
//! calls has an understudy on the same tracepoint, called for every event right after it. The program notes the event
//! first of all; its understudy takes the note out again, and where there is none it does the work itself. So it does
//! not matter where in the program the softirq came. Softirqs do not nest, so nobody needs an understudy of the
//! understudy: where that is skipped the program was not, and the note that stays behind is overwritten in time.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::programs::BtfTracePointContext;
use tracer_ebpf::{Happening, Noted};

use crate::maps::NOTED;

const NOTHING: Happening = Happening { object: 0, what: 0 };

/// The event is told by the object that is its first argument.
#[inline(always)]
pub fn of_first(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(0),
        what: 1,
    }
}

/// What is noted for program `n` on this CPU.
#[inline(always)]
fn noted(n: u32) -> Option<&'static mut Noted> {
    // SAFETY: a value of a per-CPU array; an interrupt in the midst of an access writes to other events of it.
    NOTED.get_ptr_mut(n).map(|value| unsafe { &mut *value })
}

/// The program itself: notes the event and works.
#[inline(always)]
pub fn play(n: u32, happening: Happening, work: impl FnOnce()) -> i32 {
    if let Some(noted) = noted(n) {
        let at = noted.next;
        noted.next = at + 1;
        // Where the kernel skips nothing, an interrupt must not use the same place.
        compiler_fence(Ordering::SeqCst);
        if let Some(event) = noted.events.get_mut(at as usize % Noted::N) {
            *event = happening;
        }
        work();
    }
    0
}

/// The understudy: works where the program was skipped.
#[inline(always)]
pub fn stand_in(n: u32, happening: Happening, work: impl FnOnce()) -> i32 {
    let Some(noted) = noted(n) else { return 0 };
    for back in 1..=Noted::N as u64 {
        // The newest first: mostly it is that.
        if let Some(event) = noted
            .events
            .get_mut(noted.next.wrapping_sub(back) as usize % Noted::N)
            && *event == happening
        {
            *event = NOTHING;
            return 0;
        }
    }
    noted.stood_in += 1;
    work();
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
