//! Sockets that were there before the tracer: listeners of the whole host, and nginx's open connections.
//!
//! The hooks are attached first and the iterator runs afterwards; entries are merged by socket, and what a hook has
//! seen already wins.

use std::{
    collections::{HashMap as StdHashMap, HashSet},
    io::Read as _,
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, programs::Iter};
use tracer_ebpf::{
    BackendLink, COMM_LEN, Conn, LISTENERS_PER_PORT, ListenerSlot, PortSlot, SnapshotSocket, conn,
};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::{Kernel, take};
use crate::event::{
    Event, Ktime, Listener, Netns, Peer, Pid, Sock, Task,
    decode::{bound, text},
};

const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;
const AF_UNIX: u16 = 1;
/// `BPF_NOEXIST`: never overwrite what a hook has put there.
const NOEXIST: u64 = 1;

/// Every socket some process holds, one row per holder.
#[derive(Debug, Default)]
pub struct Snapshot {
    rows: Vec<SnapshotSocket>,
}

impl Snapshot {
    /// Runs the iterator.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let program: &mut Iter =
            ebpf.program_mut("sockets_snapshot").context("no program sockets_snapshot in the object")?.try_into()?;
        let link = program.attach().context("starting the iterator over open files")?;
        let mut file = program.take_link(link)?.into_file()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context("reading the snapshot of open sockets")?;
        let rows = bytes
            .chunks_exact(size_of::<SnapshotSocket>())
            .filter_map(|row| SnapshotSocket::read_from_bytes(row).ok())
            .collect();
        Ok(Self { rows })
    }

    /// The sockets nginx's processes hold.
    #[must_use]
    pub fn held_by_nginx(&self) -> HashSet<u64> {
        self.rows.iter().filter(|row| row.is_nginx != 0).map(|row| row.sock).collect()
    }

    /// Listeners, each once, with the first of its holders.
    #[must_use]
    pub fn listeners(&self) -> Vec<Event> {
        let mut seen = HashSet::new();
        self.rows
            .iter()
            .filter(|row| row.state == LISTEN && seen.insert(row.sock))
            .map(|row| Event::ListenerFound { at: Ktime(row.header.at), listener: listener(row) })
            .collect()
    }

    /// nginx's connections to upstreams: TCP whose local port nobody listens on in that namespace, and unix sockets
    /// without a name whose peer has one.
    fn upstream_connections(&self) -> Vec<&SnapshotSocket> {
        let listening: HashSet<(u32, u16)> = self
            .rows
            .iter()
            .filter(|row| row.state == LISTEN && row.family != AF_UNIX)
            .map(|row| (row.netns, row.sport))
            .collect();
        let mut seen = HashSet::new();
        self.rows
            .iter()
            .filter(|row| row.is_nginx != 0)
            .filter(|row| match row.family {
                AF_UNIX => row.state == ESTABLISHED && row.path[0] == 0 && row.peer_path[0] != 0,
                _ => {
                    matches!(row.state, ESTABLISHED | CLOSE_WAIT)
                        && !listening.contains(&(row.netns, row.sport))
                }
            })
            .filter(|row| seen.insert(row.sock))
            .collect()
    }
}

fn listener(row: &SnapshotSocket) -> Listener {
    Listener {
        sock: Sock(row.sock),
        netns: Netns(row.netns),
        address: if row.family == AF_UNIX {
            Peer::Unix(text(&row.path))
        } else {
            Peer::Tcp(bound(row.saddr, row.sport, row.family))
        },
        v6only: row.v6only != 0,
        queue: row.queue,
        limit: row.limit,
        task: Task { pid: Pid(row.header.pid), comm: text(&row.comm), exiting: None, oom: false },
    }
}

impl Kernel {
    /// Takes a snapshot, fills the kernel's tables with what was there before, and says which listeners there are.
    ///
    /// # Errors
    /// The iterator cannot run, or a table is full.
    pub fn adopt(&mut self) -> Result<Vec<Event>> {
        let snapshot = self.snapshot()?;
        self.adopt_listeners(&snapshot)?;
        self.adopt_connections(&snapshot)?;
        Ok(snapshot.listeners())
    }

    /// Looks which sockets there are now.
    ///
    /// # Errors
    /// The iterator cannot run.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        Snapshot::take(&mut self.ebpf)
    }

    fn adopt_listeners(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut slots = take::<[u8; size_of::<PortSlot>()], [u8; size_of::<ListenerSlot>()]>(&mut self.ebpf, "LISTENERS")?;
        // One pass over what the hooks have put there already, instead of a look-up per slot.
        let mut known: HashSet<u64> = HashSet::new();
        let mut free: StdHashMap<u32, u32> = StdHashMap::new();
        for (_, value) in slots.iter().flatten() {
            let value: ListenerSlot = zerocopy::transmute!(value);
            known.insert(value.sock);
        }
        for row in snapshot.rows.iter().filter(|row| row.state == LISTEN && row.family != AF_UNIX) {
            if !known.insert(row.sock) {
                continue;
            }
            let port = u32::from(row.sport);
            let mut comm = [0; COMM_LEN];
            comm.copy_from_slice(&row.comm);
            let value = ListenerSlot { sock: row.sock, addr: row.saddr, netns: row.netns, pid: row.header.pid, comm };
            let first = free.entry(port).or_insert(0);
            while *first < LISTENERS_PER_PORT {
                let key: [u8; size_of::<PortSlot>()] = zerocopy::transmute!(PortSlot { port, slot: *first });
                let value: [u8; size_of::<ListenerSlot>()] = zerocopy::transmute!(value);
                *first += 1;
                if slots.insert(key, value, NOEXIST).is_ok() {
                    break;
                }
            }
        }
        let mut owners = take::<u32, u32>(&mut self.ebpf, "OWNERS")?;
        let pids: HashSet<u32> =
            snapshot.rows.iter().filter(|row| row.state == LISTEN).map(|row| row.header.pid).collect();
        for pid in pids {
            owners.insert(pid, 1, 0).context("the table of listening processes is full")?;
        }
        Ok(())
    }

    fn adopt_connections(&mut self, snapshot: &Snapshot) -> Result<()> {
        let upstream = snapshot.upstream_connections();
        if upstream.is_empty() {
            return Ok(());
        }
        // Both ends of a TCP connection of this host, by (local, remote); namespaces may differ.
        let ends: StdHashMap<_, u64> = snapshot
            .rows
            .iter()
            .filter(|row| row.family != AF_UNIX && row.state != LISTEN)
            .map(|row| ((row.saddr, row.sport, row.daddr, row.dport), row.sock))
            .collect();
        let mut links = Vec::new();
        let mut connections = take::<u64, [u8; size_of::<Conn>()]>(&mut self.ebpf, "CONNECTIONS")?;
        for row in upstream {
            let mut entry = Conn::new_zeroed();
            entry.sock = row.sock;
            entry.since = row.header.at;
            entry.began_at = row.header.at;
            entry.number = 1;
            entry.worker = row.header.pid;
            entry.netns = row.netns;
            entry.family = row.family;
            entry.flags = conn::PREEXISTING;
            if row.family == AF_UNIX {
                entry.path = row.peer_path;
                entry.backend_sock = row.peer_sock;
            } else {
                entry.saddr = row.saddr;
                entry.daddr = row.daddr;
                entry.sport = row.sport;
                entry.dport = row.dport;
                entry.backend_sock =
                    ends.get(&(row.daddr, row.dport, row.saddr, row.sport)).copied().unwrap_or(0);
            }
            if entry.backend_sock != 0 {
                links.push((
                    entry.backend_sock,
                    BackendLink { conn_sock: row.sock, conn_since: entry.since, closed_at: 0, unread: 0, flags: 0 },
                ));
            }
            let mut value = [0; size_of::<Conn>()];
            value.copy_from_slice(entry.as_bytes());
            // Refused when a hook was faster, or when the table is full; the latter shows in the next insert of the
            // programs too, which count it.
            let _ = connections.insert(row.sock, value, NOEXIST);
        }
        let mut backends = take::<u64, [u8; size_of::<BackendLink>()]>(&mut self.ebpf, "BACKENDS")?;
        for (sock, link) in links {
            let value: [u8; size_of::<BackendLink>()] = zerocopy::transmute!(link);
            let _ = backends.insert(sock, value, NOEXIST);
        }
        Ok(())
    }
}
