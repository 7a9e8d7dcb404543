//! Is this task, or this socket, ours?

use tracer_ebpf::{BackendLink, Conn, Endpoint, Worker, conn, counter};

use crate::{
    maps::{BACKENDS, CONNECTIONS, ENDPOINTS, OWNERS, WORKERS},
    output::{count, counted},
    sock::{AF_UNIX, Sock},
};

/// The nginx process with this id.
///
/// The reference lives as long as the program runs: entries are preallocated, so a concurrent delete leaves memory
/// that is ours to write, if to no purpose.
#[inline(always)]
pub fn worker(pid: u32) -> Option<&'static mut Worker> {
    // SAFETY: a value of a preallocated map stays mapped; races write integers only.
    WORKERS.get_ptr_mut(pid).map(|value| unsafe { &mut *value })
}

/// nginx's connection on this socket.
#[inline(always)]
pub fn connection(sock: u64) -> Option<&'static mut Conn> {
    // SAFETY: as for `worker`.
    let entry = CONNECTIONS
        .get_ptr_mut(sock)
        .map(|value| unsafe { &mut *value })?;
    if entry.flags & (conn::PREEXISTING | conn::CONFIRMED) == conn::PREEXISTING && !is_confirmed(entry) {
        return None;
    }
    Some(entry)
}

/// Whether the socket that user space found open is still that socket at its first event. Between being found and being
/// put into the table it can be destroyed, and its address be another's.
#[inline(never)]
fn is_confirmed(entry: &mut Conn) -> bool {
    let sock = Sock(entry.sock);
    let is_same = if entry.family == AF_UNIX {
        sock.family() == AF_UNIX && sock.unix_peer() == entry.backend_sock
    } else {
        // A closed socket's ports may be 0 already: that is no contradiction.
        let (local, peer) = (sock.local_port(), sock.peer_port());
        (local == entry.sport || local == 0) && (peer == entry.dport || peer == 0)
    };
    if is_same {
        entry.flags |= conn::CONFIRMED;
    } else {
        let _ = CONNECTIONS.remove(entry.sock);
    }
    is_same
}

/// nginx's connection on this socket, if it is still the generation `since`.
#[inline(always)]
pub fn connection_of(sock: u64, since: u64) -> Option<&'static mut Conn> {
    connection(sock).filter(|conn| conn.since == since)
}

/// The link from a backend's socket to nginx's.
#[inline(always)]
pub fn backend(sock: u64) -> Option<&'static mut BackendLink> {
    // SAFETY: as for `worker`.
    BACKENDS.get_ptr_mut(sock).map(|value| unsafe { &mut *value })
}

/// Remembers that the end of this process matters.
#[inline(always)]
pub fn remember_owner(pid: u32) {
    if OWNERS.get_ptr(pid).is_none() {
        counted(OWNERS.insert(pid, 1, 0));
    }
}

/// Remembers an address that nginx connects to.
#[inline(always)]
pub fn remember_endpoint(addr: [u8; 16], port: u16, at: u64) {
    let key = Endpoint {
        addr,
        port: u32::from(port),
    };
    match ENDPOINTS.get_ptr_mut(key) {
        // SAFETY: a value of a preallocated map.
        Some(last) => unsafe { *last = at },
        None => {
            if ENDPOINTS.insert(key, at, 0).is_err() {
                count(counter::TABLE_FULL);
            }
        }
    }
}

/// Whether one of a packet's ends is an address that nginx connected to.
#[inline(always)]
pub fn is_endpoint(addr: [u8; 16], port: u16) -> bool {
    ENDPOINTS
        .get_ptr(Endpoint {
            addr,
            port: u32::from(port),
        })
        .is_some()
}
