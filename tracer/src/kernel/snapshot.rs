//! Sockets that were there before the tracer: listeners of the whole host, and nginx's open connections.
//!
//! The hooks are attached first and the iterators run afterwards; entries are merged by socket, and what a hook has
//! seen already wins.

use std::{
    collections::{HashMap as StdHashMap, HashSet},
    io::Read as _,
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, programs::Iter};
use tracer_ebpf::{BackendLink, COMM_LEN, LISTENERS_PER_PORT, ListenerSlot, PortSlot, SnapshotSocket, conn};
use zerocopy::FromBytes as _;

use super::{Kernel, take};
use crate::event::{
    Event, Ktime, Listener, Netns, Peer, Pid, Sock, Task,
    decode::{bound, text},
};

const LISTEN: u8 = 10;
const AF_UNIX: u16 = 1;
/// `BPF_NOEXIST`: never overwrite what a hook has put there.
const NOEXIST: u64 = 1;

/// Sockets that some process holds, one row per holder.
#[derive(Debug, Default)]
pub struct Snapshot {
    rows: Vec<SnapshotSocket>,
}

impl Snapshot {
    /// Runs an iterator.
    fn take(ebpf: &mut Ebpf, name: &str) -> Result<Self> {
        let program: &mut Iter = ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name} in the object"))?
            .try_into()?;
        let link = program
            .attach()
            .context("starting the iterator over open files")?;
        let mut file = program.take_link(link)?.into_file()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .context("reading the snapshot of open sockets")?;
        let rows = bytes
            .chunks_exact(size_of::<SnapshotSocket>())
            .filter_map(|row| SnapshotSocket::read_from_bytes(row).ok())
            .collect();
        Ok(Self { rows })
    }

    /// Listeners, each once, with the first of its holders.
    #[must_use]
    pub fn listeners(&self) -> Vec<Event> {
        let mut seen = HashSet::new();
        self.rows
            .iter()
            .filter(|row| row.state == LISTEN && seen.insert(row.sock))
            .map(|row| Event::ListenerFound {
                at: Ktime(row.header.at),
                listener: listener(row),
            })
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
        task: Task {
            pid: Pid(row.header.pid),
            comm: text(&row.comm),
            exiting: None,
            oom: false,
        },
    }
}

impl Kernel {
    /// Takes a snapshot, fills the kernel's tables with what was there before, and says which listeners there are.
    ///
    /// # Errors
    /// An iterator cannot run, or a table is full.
    pub fn adopt(&mut self) -> Result<Vec<Event>> {
        let snapshot = Snapshot::take(&mut self.ebpf, "sockets_snapshot")?;
        // The second iterator knows by the listeners which of nginx's connections are its clients'.
        self.adopt_listeners(&snapshot)?;
        self.adopt_connections(&snapshot)?;
        Ok(snapshot.listeners())
    }

    /// The TCP sockets that exist now and have an owner, and nginx's unix connections.
    ///
    /// # Errors
    /// An iterator cannot run.
    pub(super) fn alive(&mut self) -> Result<HashSet<u64>> {
        let snapshot = Snapshot::take(&mut self.ebpf, "sockets_snapshot")?;
        Ok(snapshot.rows.iter().map(|row| row.sock).collect())
    }

    fn adopt_listeners(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut slots = take::<[u8; size_of::<PortSlot>()], [u8; size_of::<ListenerSlot>()]>(
            &mut self.ebpf,
            "LISTENERS",
        )?;
        // One pass over what the hooks have put there already, instead of a look-up per slot.
        let mut known: HashSet<u64> = HashSet::new();
        let mut free: StdHashMap<u32, u32> = StdHashMap::new();
        for (_, value) in slots.iter().flatten() {
            let value: ListenerSlot = zerocopy::transmute!(value);
            known.insert(value.sock);
        }
        for row in snapshot
            .rows
            .iter()
            .filter(|row| row.state == LISTEN && row.family != AF_UNIX)
        {
            if !known.insert(row.sock) {
                continue;
            }
            let port = u32::from(row.sport);
            let mut comm = [0; COMM_LEN];
            comm.copy_from_slice(&row.comm);
            let value = ListenerSlot {
                sock: row.sock,
                addr: row.saddr,
                netns: row.netns,
                pid: row.header.pid,
                comm,
            };
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
        let pids: HashSet<u32> = snapshot
            .rows
            .iter()
            .filter(|row| row.state == LISTEN)
            .map(|row| row.header.pid)
            .collect();
        for pid in pids {
            owners
                .insert(pid, 1, 0)
                .context("the table of listening processes is full")?;
        }
        Ok(())
    }

    fn adopt_connections(&mut self, snapshot: &Snapshot) -> Result<()> {
        let adopted = Snapshot::take(&mut self.ebpf, "connections_adopted")?;
        // Both ends of a TCP connection of this host, by (local, remote); namespaces may differ.
        let ends: StdHashMap<_, u64> = snapshot
            .rows
            .iter()
            .filter(|row| row.family != AF_UNIX && row.state != LISTEN)
            .map(|row| ((row.saddr, row.sport, row.daddr, row.dport), row.sock))
            .collect();
        let mut links = Vec::new();
        for row in adopted.rows.iter().filter(|row| row.family != AF_UNIX) {
            if let Some(sock) = ends.get(&(row.daddr, row.dport, row.saddr, row.sport)) {
                links.push((*sock, row.sock));
            }
        }
        let since = self.generations(links.iter().map(|(_, conn_sock)| *conn_sock))?;
        let mut backends = take::<u64, [u8; size_of::<BackendLink>()]>(&mut self.ebpf, "BACKENDS")?;
        for (sock, conn_sock) in links {
            let Some(conn_since) = since.get(&conn_sock) else {
                continue;
            };
            let link = BackendLink {
                conn_sock,
                conn_since: *conn_since,
                closed_at: 0,
                unread: 0,
                flags: conn::PREEXISTING,
            };
            let value: [u8; size_of::<BackendLink>()] = zerocopy::transmute!(link);
            // Refused when a hook was faster.
            let _ = backends.insert(sock, value, NOEXIST);
        }
        Ok(())
    }
}
