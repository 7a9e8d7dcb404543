//! Is this task, or this socket, ours?

use tracer_ebpf::{BackendLink, Conn, Endpoint, EndpointUse, Worker, conn, counter};

use crate::{
    maps::{BACKENDS, CONNECTIONS, ENDPOINTS, OWNERS, WORKERS},
    output::{count, counted},
    sock::{Sock as _, SockAt},
};

/// Of an insertion: the key is there already.
pub const EEXIST: i32 = 17;

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
    CONNECTIONS.get_ptr_mut(sock).map(|value| unsafe { &mut *value })
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
    let link = BACKENDS.get_ptr_mut(sock).map(|value| unsafe { &mut *value })?;
    if link.flags & (conn::PREEXISTING | conn::CONFIRMED) == conn::PREEXISTING
        && !is_still(SockAt(sock), link)
    {
        return None;
    }
    Some(link)
}

/// Whether a backend's socket that user space found by its ports is still that one at its first event: between being
/// found and being put into the table it can be destroyed, and its address be another's.
#[inline(never)]
fn is_still(sock: SockAt, link: &mut BackendLink) -> bool {
    let is_same = matches!(connection_of(link.conn_sock, link.conn_since),
        Some(entry) if sock.local_port() == entry.dport && sock.peer_port() == entry.sport);
    if is_same {
        link.flags |= conn::CONFIRMED;
    } else {
        let _ = BACKENDS.remove(sock.0);
    }
    is_same
}

/// Remembers that the end of this process matters.
#[inline(always)]
pub fn remember_owner(pid: u32) {
    if OWNERS.get_ptr(pid).is_none() {
        counted(OWNERS.insert(pid, 1, 0));
    }
}

/// Remembers an address that nginx connects to; how its connections are cut into exchanges: bits of [`conn`].
#[inline(always)]
pub fn remember_endpoint(addr: [u8; 16], port: u16, at: u64) -> u32 {
    let key = Endpoint {
        addr,
        port: u32::from(port),
    };
    match ENDPOINTS.get_ptr_mut(key) {
        // SAFETY: a value of a preallocated map.
        Some(known) => unsafe {
            (*known).last = at;
            (*known).marks
        },
        None => {
            let new = EndpointUse {
                last: at,
                marks: 0,
                pad: 0,
            };
            // 1 is BPF_NOEXIST: what user space or another CPU put there in between is as good.
            if matches!(ENDPOINTS.insert(key, new, 1), Err(error) if error != -EEXIST) {
                count(counter::TABLE_FULL);
            }
            0
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
