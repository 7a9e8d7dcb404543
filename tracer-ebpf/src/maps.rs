//! Every map: who inserts, who deletes, and what happens when the delete is missed.
//!
//! No LRU map holds state: it would forget silently. A full table is counted (`counter::TABLE_FULL`).

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use tracer_ebpf::{
    BackendLink, Conn, Endpoint, EndpointUse, ListenerSlot, Notes, Offsets, PortSlot, Settings, SignalSent,
    SnapshotSocket, Worker, counter, switch, understudy,
};

/// Records for user space, which polls: nothing here ever wakes it.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(16 << 20, 0);

/// nginx's upstream sockets. Inserted at the worker's own →SYN_SENT (unix: first send) and by user space for those
/// that were there before; deleted at tcp_destroy_sock (unix: when nginx's end is known). A missed delete is
/// overwritten when the address is used again, and swept by user space, which looks which sockets still exist.
#[map]
pub static CONNECTIONS: HashMap<u64, Conn> = HashMap::with_max_entries(16384, 0);

/// The other end of a connection when it is on this host: backend's socket → nginx's. Inserted at the backend's
/// SYN_RECV→ESTABLISHED (unix: at nginx's first send); deleted at its destroy, or with the connection (unix).
#[map]
pub static BACKENDS: HashMap<u64, BackendLink> = HashMap::with_max_entries(16384, 0);

/// Initial sequence numbers of both sides → nginx's socket, between nginx's and the backend's →ESTABLISHED.
/// Deleted on the match or with the connection.
#[map]
pub static SEQUENCES: HashMap<u64, u64> = HashMap::with_max_entries(16384, 0);

/// nginx's processes. Inserted by user space at start and by fork and exec; deleted by user space after the exit.
#[map]
pub static WORKERS: HashMap<u32, Worker> = HashMap::with_max_entries(4096, 0);

/// Task names that make a process an nginx when it executes. Inserted by user space.
#[map]
pub static NAMES: HashMap<[u8; 16], u8> = HashMap::with_max_entries(64, 0);

/// Processes whose end matters: those that listened, and backends that read from a connection of nginx's.
/// Deleted by user space after the exit.
#[map]
pub static OWNERS: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

/// Listening TCP sockets of the whole host by port. Inserted at →LISTEN and by user space's snapshot; deleted at
/// LISTEN→CLOSE. A reader checks the socket's state, so a missed delete only wastes its slot.
#[map]
pub static LISTENERS: HashMap<PortSlot, ListenerSlot> = HashMap::with_max_entries(16384, 0);

/// Addresses nginx connected to, or whose connections must not be cut into exchanges. Inserted at →SYN_SENT and by user
/// space; swept by age by user space, those that must not be cut never.
#[map]
pub static ENDPOINTS: HashMap<Endpoint, EndpointUse> = HashMap::with_max_entries(65536, 0);

/// The last deadly signal sent to a process that matters. Deleted at its exit; swept with `OWNERS`.
#[map]
pub static SIGNALS: HashMap<u32, SignalSent> = HashMap::with_max_entries(4096, 0);

/// `counter::*`.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::N, 0);

/// `switch::*`, by user space when everything is attached.
#[map]
pub static SWITCHES: Array<u32> = Array::with_max_entries(switch::N, 0);

/// What the programs of `understudy::*` are called for. Written by the program, taken out by its understudy; where that
/// is skipped, the note is overwritten when there is no free place.
#[map]
pub static NOTES: Array<Notes> = Array::with_max_entries(Notes::SETS, 0);

/// `understudy::*`: how often each of those programs' understudy worked in its place.
#[map]
pub static STOOD_IN: PerCpuArray<u64> = PerCpuArray::with_max_entries(understudy::N, 0);

/// Where the iterator assembles a line: it is larger than the stack allows.
#[map]
pub static SCRATCH: PerCpuArray<SnapshotSocket> = PerCpuArray::with_max_entries(1, 0);

/// Empty: see `hooks::nginx_log`.
#[map]
pub static NOWHERE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Overridden before load with the running kernel's layout.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = {
    // SAFETY: plain integers, for which all zeroes is a value.
    unsafe { core::mem::zeroed() }
};

/// Overridden before load.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = {
    // SAFETY: plain integers, for which all zeroes is a value.
    unsafe { core::mem::zeroed() }
};

/// A whole connection of zeroes: too large for the stack, so entries are made from it and filled in place.
pub static NO_CONN: Conn = {
    // SAFETY: plain integers and byte arrays, for which all zeroes is a value.
    unsafe { core::mem::zeroed() }
};

/// What is in [`SWITCHES`]; 0 until user space, or a program for it, has set it.
#[inline(always)]
pub fn switched(index: u32) -> u32 {
    match SWITCHES.get_ptr(index) {
        // SAFETY: a value of an array.
        Some(value) => unsafe { *value },
        None => 0,
    }
}

/// An offset of the running kernel, as a constant the verifier knows.
macro_rules! offset {
    ($name:ident) => {
        // SAFETY: a plain read of an initialised static; volatile, since user space overrides it before load.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::OFFSETS.$name) }
    };
}
pub(crate) use offset;

/// A setting, as a constant the verifier knows.
macro_rules! setting {
    ($name:ident) => {
        // SAFETY: a plain read of an initialised static; volatile, since user space overrides it before load.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::SETTINGS.$name) }
    };
}
pub(crate) use setting;
