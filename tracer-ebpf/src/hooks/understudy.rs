//! Programs that may interrupt themselves.
//!
//! The kernel skips a program that already runs on its CPU (tracepoints: from 6.1). It was a softirq's turn in the midst of
//! the program, or where programs can be preempted (those at functions: kernels built for preemption; at tracepoints: 7.2)
//! another task's: what happens then would go unseen. So programs
//! have an understudy at the same point, called for every event right after them. The program notes the event first of all;
//! its understudy takes the note out again, and where there is none it does the work itself. So it does not matter where in
//! the program the interruption came. What all missed is counted as lost.
//!
//! Softirqs do not nest, so against them one understudy is enough. A preempted task may stay in the program for long, and
//! meanwhile another one be preempted in the understudy: so there are three, each of which notes what it does.
//!
//! A note is told by its task and by what happens; it is in one place for all CPUs, since a preempted task may go on on
//! another one. Where the last understudy was skipped its note stays behind, and counts no more a moment later: the next
//! socket or packet may have the same address, and must not be taken for noted when its program is skipped.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_current_task, bpf_jiffies64},
    macros::btf_tracepoint,
    programs::{BtfTracePointContext, FEntryContext, FExitContext},
};
use tracer_ebpf::{Happening, Note, Notes, switch, understudy};

use crate::{
    maps::{NOTES, STOOD_IN, SWITCHES, offset, switched},
    output::add_one,
    sock::{find_registers, read},
};

/// The event is told by the object that is its first argument.
#[inline(always)]
pub fn of_first(ctx: &impl FirstArg) -> Happening {
    Happening {
        object: ctx.first(),
        what: 0,
    }
}

/// Contexts of programs whose first argument is an object.
pub trait FirstArg: EbpfContext {
    /// Its address.
    fn first(&self) -> u64;
}

impl FirstArg for BtfTracePointContext {
    #[inline(always)]
    fn first(&self) -> u64 {
        self.arg(0)
    }
}

impl FirstArg for FEntryContext {
    #[inline(always)]
    fn first(&self) -> u64 {
        self.arg(0)
    }
}

impl FirstArg for FExitContext {
    #[inline(always)]
    fn first(&self) -> u64 {
        self.arg(0)
    }
}

/// Whether a task can preempt another one in a tracepoint's program.
#[inline(always)]
fn is_preemptible() -> bool {
    switched(switch::PREEMPTIBLE) != 0
}

/// The note of program `n` on this event, and the set it belongs to.
#[inline(always)]
fn note(n: u32, happening: Happening) -> Option<(Note, &'static mut Notes)> {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let what = u64::from(n) << 32 | u64::from(happening.what);
    // The fractional part of the golden ratio spreads what differs in a few bits. The verifier lets nobody calculate with
    // the object, a pointer.
    let hash = (task ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let set = NOTES.get_ptr_mut((hash >> 32) as u32 & (Notes::SETS - 1))?;
    let note = Note {
        task,
        object: happening.object,
        what,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_jiffies64() },
    };
    // SAFETY: a value of an array. Others write to it at the same time, at worst over a note; then an event counts twice.
    Some((note, unsafe { &mut *set }))
}

/// Whether a note is there, and of now.
#[inline(always)]
fn counts(old: &Note, now: &Note) -> bool {
    old.task != 0 && now.at.saturating_sub(old.at) <= Note::LASTS
}

/// Puts a note into a free place of its set, or else over the oldest one: that of a program in whose midst this happens is
/// the newest.
#[inline(always)]
fn put(note: Note, set: &mut Notes) {
    let mut at = set.next as usize % Notes::N;
    for (place, old) in set.notes.iter().enumerate() {
        if !counts(old, &note) {
            at = place;
            break;
        }
    }
    set.next = at as u64 + 1;
    let place = &mut set.notes[at % Notes::N];
    place.object = note.object;
    place.what = note.what;
    place.at = note.at;
    // It is complete before it counts, and counts before anything can be interrupted.
    compiler_fence(Ordering::SeqCst);
    place.task = note.task;
    compiler_fence(Ordering::SeqCst);
}

/// The program itself notes the event, and then works.
#[inline(always)]
pub fn play(n: u32, happening: Happening) {
    // Without an understudy nobody would take the note out.
    let has_understudy = n < understudy::FIRST_OF_TASKS
        || switched(if understudy::OF_FUNCTIONS.contains(&n) {
            switch::FUNCTIONS_PREEMPTIBLE
        } else {
            switch::PREEMPTIBLE
        }) != 0;
    if has_understudy && let Some((note, set)) = note(n, happening) {
        put(note, set);
    }
}

/// Whether the only understudy of a program, or the last one, must work: all before it were skipped.
#[inline(always)]
pub fn is_last_needed(n: u32, happening: Happening) -> bool {
    is_needed(n, happening, || true)
}

/// Whether the first understudy must work, which is the last where no task can be preempted.
#[inline(always)]
pub fn is_first_needed(n: u32, happening: Happening) -> bool {
    is_needed(n, happening, || !is_preemptible())
}

/// Whether an understudy between two others must work.
#[inline(always)]
pub fn is_next_needed(n: u32, happening: Happening) -> bool {
    is_needed(n, happening, || false)
}

#[inline(always)]
fn is_needed(n: u32, happening: Happening, is_last: impl Fn() -> bool) -> bool {
    let Some((note, set)) = note(n, happening) else {
        return false;
    };
    for place in &mut set.notes {
        let is_same = place.task == note.task && place.object == note.object && place.what == note.what;
        if is_same && counts(place, &note) {
            if is_last() {
                place.task = 0;
            }
            return false;
        }
    }
    if !is_last() {
        put(note, set);
    }
    add_one(STOOD_IN.get_ptr_mut(n));
    true
}

/// A program and its understudies, one or three, each wholly inlined, since every call takes of the stack's 512 bytes: all get their arguments from `$happening`, and call `$work`.
macro_rules! with_understudy {
    ($way:meta, $context:ty, $index:ident, $(#[$doc:meta])* $program:ident, [$($understudy:ident),+], $happening:expr, $work:expr) => {
        $(#[$doc])*
        #[$way]
        #[inline(always)]
        pub fn $program(ctx: $context) -> i32 {
            $crate::hooks::understudy::play(tracer_ebpf::understudy::$index, $happening(&ctx));
            $work(&ctx);
            0
        }

        $crate::hooks::understudy::with_understudy!(
            @understudies $way, $context, $index, [$($understudy),+], $happening, $work
        );
    };
    (@understudies $way:meta, $context:ty, $index:ident, [$only:ident], $happening:expr, $work:expr) => {
        $crate::hooks::understudy::with_understudy!(@one $way, $context, $index, $only, is_last_needed, $happening, $work);
    };
    (@understudies $way:meta, $context:ty, $index:ident, [$first:ident, $second:ident, $third:ident], $happening:expr, $work:expr) => {
        $crate::hooks::understudy::with_understudy!(@one $way, $context, $index, $first, is_first_needed, $happening, $work);
        $crate::hooks::understudy::with_understudy!(@one $way, $context, $index, $second, is_next_needed, $happening, $work);
        $crate::hooks::understudy::with_understudy!(@one $way, $context, $index, $third, is_last_needed, $happening, $work);
    };
    (@one $way:meta, $context:ty, $index:ident, $understudy:ident, $is_needed:ident, $happening:expr, $work:expr) => {
        #[$way]
        #[inline(always)]
        pub fn $understudy(ctx: $context) -> i32 {
            if $crate::hooks::understudy::$is_needed(tracer_ebpf::understudy::$index, $happening(&ctx)) {
                $work(&ctx);
            }
            0
        }
    };
}
pub(super) use with_understudy;

/// `trace_tcp_destroy_sock(struct sock *sk)`: run once at the beginning, on a socket that user space closes. Where a program
/// keeps its task from moving to another CPU, it does so because the task can be preempted; and where the registers of a
/// system call are is seen in one that is known.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn kernel_told(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    if read::<u16>(task, offset!(task_migration_disabled)) != 0 {
        set(switch::PREEMPTIBLE, 1);
    }
    let found = find_registers(switched(switch::CLOSED));
    if found != 0 {
        set(switch::REGISTERS, found);
    }
    0
}

#[inline(always)]
fn set(index: u32, to: u32) {
    if let Some(value) = SWITCHES.get_ptr_mut(index) {
        // SAFETY: a value of an array.
        unsafe { *value = to };
    }
}
