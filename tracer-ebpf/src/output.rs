//! Records go to the ring whole; a full ring is counted. Nothing here wakes user space, which polls.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
};
use tracer_ebpf::{Conn, Header, REQUEST_LEN, RESPONSE_LEN, counter};

use crate::{
    maps::{COUNTERS, RECORDS},
    sock::{AF_UNIX, current_pid},
};

/// Now, in nanoseconds of `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Now, in nanoseconds of `CLOCK_MONOTONIC`, which TCP's own times are in.
#[inline(always)]
pub fn monotonic() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// A record's beginning.
#[inline(always)]
pub fn header(kind: u16, at: u64) -> Header {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    Header {
        at,
        kind,
        cpu: cpu as u16,
        pid: current_pid(),
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(index: u32) {
    add_one(COUNTERS.get_ptr_mut(index));
}

/// Adds one to a per-CPU value. The target has no atomic addition: one that is interrupted in the midst may lose a count.
#[inline(always)]
pub fn add_one(value: Option<*mut u64>) {
    if let Some(value) = value {
        // SAFETY: an aligned value of a map.
        unsafe { *value += 1 };
    }
}

/// Counts a table that was full.
#[inline(always)]
pub fn counted(inserted: Result<(), i32>) {
    if inserted.is_err() {
        count(counter::TABLE_FULL);
    }
}

/// Writes a whole record.
#[inline(always)]
pub fn write<T: ?Sized + 'static>(record: &T) {
    if RECORDS.output::<T>(record, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
        count(counter::RING_FULL);
    }
}

/// Writes a connection's current exchange straight from the table, and clears there what was taken of its payload.
#[inline(always)]
pub fn write_exchange(conn: &mut Conn) {
    let taken = usize::from(conn.request_len);
    if taken == 0 && conn.family != AF_UNIX {
        // SAFETY: the first bytes of a `Conn`, which has no padding.
        write(unsafe { &*core::ptr::from_ref(conn).cast::<[u8; Conn::SHORT]>() });
        return;
    }
    let len = Conn::LONG + if taken > REQUEST_LEN { REQUEST_LEN } else { taken };
    // SAFETY: the first bytes of a `Conn`, which has no padding and is longer than `len`.
    write(unsafe { core::slice::from_raw_parts(core::ptr::from_ref(conn).cast::<u8>(), len) });
    if taken != 0 {
        conn.request_len = 0;
        conn.response_len = 0;
        conn.request = [0; REQUEST_LEN];
        conn.response = [0; RESPONSE_LEN];
    }
}

/// Speaks, when asked to by `-vv`.
macro_rules! say {
    ($ctx:expr, $($arg:tt)*) => {
        if $crate::maps::setting!(verbose) != 0 {
            aya_log_ebpf::debug!($ctx, $($arg)*);
        }
    };
}
pub(crate) use say;
