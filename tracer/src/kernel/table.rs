//! The kernel's table of connections, read from user space: what is in flight, and what must be swept because
//! nothing showed its end.

use std::collections::HashMap;

use anyhow::Result;
use tracer_ebpf::{Conn, Endpoint, EndpointUse, conn, end};
use zerocopy::FromBytes as _;

use super::{Kernel, take};
use crate::event::{Exchange, Ktime, LineId, Pid, decode::exchange};

/// A unix exchange whose answer came this long ago is over: nothing shows nginx's close when the backend never reads.
const UNIX_IDLE: u64 = 10_000_000_000;
/// At the end of a trace an answer followed by this much silence counts as complete.
const SETTLED: u64 = 100_000_000;
/// A connection without any event for this long is looked up among the sockets that still exist.
const SUSPICIOUS: u64 = 60_000_000_000;
/// A unix connection without any event for this long is forgotten; should it still be used, its next send finds it anew.
const UNIX_AGE: u64 = 600_000_000_000;
/// An address nginx has not connected to for this long is no longer watched for packets.
const ENDPOINT_AGE: u64 = 600_000_000_000;

const AF_UNIX: u16 = 1;

fn last_activity(entry: &Conn) -> u64 {
    [
        entry.began_at,
        entry.last_sent_at,
        entry.last_received_at,
        entry.since,
        entry.established_at,
    ]
    .into_iter()
    .max()
    .unwrap_or(0)
}

fn is_in_flight(entry: &Conn) -> bool {
    entry.began_at != 0
        && entry.flags & conn::MARKED == 0
        && (entry.flags & conn::PREEXISTING == 0 || entry.sent + entry.received > 0)
}

impl Kernel {
    fn connections(&mut self) -> Result<Vec<Conn>> {
        let table = take::<u64, [u8; size_of::<Conn>()]>(&mut self.ebpf, "CONNECTIONS")?;
        // An entry that goes while we look is none of ours any more.
        Ok(table
            .iter()
            .flatten()
            .filter_map(|(_, value)| Conn::read_from_bytes(&value).ok())
            .collect())
    }

    /// The generation of each of these sockets' entries.
    pub(super) fn generations(&mut self, socks: impl IntoIterator<Item = u64>) -> Result<HashMap<u64, u64>> {
        let table = take::<u64, [u8; size_of::<Conn>()]>(&mut self.ebpf, "CONNECTIONS")?;
        Ok(socks
            .into_iter()
            .filter_map(|sock| {
                let value = table.get(&sock, 0).ok()?;
                Some((sock, Conn::read_from_bytes(&value).ok()?.since))
            })
            .collect())
    }

    fn remove_connection(&mut self, entry: &Conn) -> Result<()> {
        let _ = take::<u64, [u8; size_of::<Conn>()]>(&mut self.ebpf, "CONNECTIONS")?.remove(&entry.sock);
        if entry.isn_key != 0 {
            let _ = take::<u64, u64>(&mut self.ebpf, "SEQUENCES")?.remove(&entry.isn_key);
        }
        if entry.family == AF_UNIX && entry.backend_sock != 0 {
            let _ = take::<u64, [u8; size_of::<tracer_ebpf::BackendLink>()]>(&mut self.ebpf, "BACKENDS")?
                .remove(&entry.backend_sock);
        }
        Ok(())
    }

    /// Where the exchanges under way stand in this last moment: those whose answer had come and that were silent
    /// since (kept connections tell the end of a response by the next request only), and how many are in flight.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn finish(&mut self, now: Ktime) -> Result<(Vec<Exchange>, u64)> {
        let mut answered = Vec::new();
        let mut in_flight = 0;
        for mut entry in self.connections()?.into_iter().filter(is_in_flight) {
            if entry.received > 0 && now.0.saturating_sub(last_activity(&entry)) > SETTLED {
                entry.end = end::PRESUMED;
                entry.ended_at = entry.last_received_at;
                answered.push(exchange(&entry));
            } else {
                in_flight += 1;
            }
        }
        Ok((answered, in_flight))
    }

    /// What a worker that has ended left behind: its unix exchanges, whose close nothing shows, are returned; every
    /// entry of its goes.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn sweep_worker(&mut self, worker: Pid, ended: Ktime) -> Result<Vec<Exchange>> {
        let mut left = Vec::new();
        for mut entry in self.connections()? {
            if entry.worker != worker.0 || entry.since > ended.0 {
                continue;
            }
            if is_in_flight(&entry) {
                entry.end = end::WORKER_GONE;
                entry.ended_at = ended.0;
                left.push(exchange(&entry));
            }
            self.remove_connection(&entry)?;
        }
        Ok(left)
    }

    /// The unix exchange that nginx's timer ended at `line`: the one of that worker that was silent for longest.
    /// `unanswered`: the line says that no answer had begun; a kept connection at rest is silent for longer than any.
    /// `None` when there is none, or when two were silent for nearly as long.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn unix_timed_out(&mut self, line: LineId, unanswered: bool) -> Result<Option<Exchange>> {
        /// nginx's timers have a resolution of a millisecond, and it logs after it has looked at its clock.
        const APART: u64 = 2_000_000;
        let mut waiting: Vec<Conn> = self
            .connections()?
            .into_iter()
            .filter(|entry| {
                entry.family == AF_UNIX
                    && entry.worker == line.worker.0
                    && is_in_flight(entry)
                    && entry.sent > 0
                    && (!unanswered || entry.received == 0)
                    && last_activity(entry) < line.at.0
            })
            .collect();
        waiting.sort_by_key(last_activity);
        let (Some(first), second) = (waiting.first(), waiting.get(1)) else {
            return Ok(None);
        };
        // Timers of one worker and one timeout expire in the order they were set, so among exchanges at one path that
        // got nothing yet the order is exact; a read in between may leave an old timer, and another path may have
        // another timeout.
        let is_ordered =
            |second: &Conn| first.path == second.path && first.received == 0 && second.received == 0;
        if second
            .is_some_and(|second| last_activity(second) - last_activity(first) < APART && !is_ordered(second))
        {
            return Ok(None);
        }
        let entry = *first;
        self.end_with(entry, line).map(Some)
    }

    /// The exchange that nginx's line ended; its connection is gone.
    fn end_with(&mut self, mut entry: Conn, line: LineId) -> Result<Exchange> {
        entry.end = end::CLOSED;
        entry.ended_at = line.at.0;
        entry.line = line.at.0;
        self.remove_connection(&entry)?;
        Ok(exchange(&entry))
    }

    /// Ends what nothing else will end. Returns the exchanges that were still open; to be called every few seconds.
    ///
    /// # Errors
    /// A table cannot be read, or the iterator cannot run.
    pub fn sweep(&mut self, now: Ktime) -> Result<Vec<Exchange>> {
        let mut ended = Vec::new();
        let entries = self.connections()?;
        let mut suspicious = Vec::new();
        for mut entry in entries {
            let silent = now.0.saturating_sub(last_activity(&entry));
            if entry.family == AF_UNIX && is_in_flight(&entry) && entry.received > 0 && silent > UNIX_IDLE {
                entry.end = end::PRESUMED;
                entry.ended_at = entry.last_received_at;
                ended.push(exchange(&entry));
                self.remove_connection(&entry)?;
            } else if silent > SUSPICIOUS {
                suspicious.push(entry);
            }
        }
        // Which unix sockets still exist is not asked: theirs go by silence alone.
        suspicious.retain(|entry: &Conn| {
            entry.family != AF_UNIX || now.0.saturating_sub(last_activity(entry)) > UNIX_AGE
        });
        if !suspicious.is_empty() {
            let alive = self.alive()?;
            for mut entry in suspicious
                .into_iter()
                .filter(|entry| !alive.contains(&entry.sock))
            {
                if is_in_flight(&entry) {
                    entry.end = end::PRESUMED;
                    entry.ended_at = last_activity(&entry);
                    ended.push(exchange(&entry));
                }
                self.remove_connection(&entry)?;
            }
        }
        self.sweep_endpoints(now)?;
        Ok(ended)
    }

    fn sweep_endpoints(&mut self, now: Ktime) -> Result<()> {
        let mut table =
            take::<[u8; size_of::<Endpoint>()], [u8; size_of::<EndpointUse>()]>(&mut self.ebpf, "ENDPOINTS")?;
        let old: Vec<_> = table
            .iter()
            .flatten()
            .filter(|(_, known)| {
                let known: EndpointUse = zerocopy::transmute!(*known);
                known.marks == 0 && now.0.saturating_sub(known.last) > ENDPOINT_AGE
            })
            .map(|(key, _)| key)
            .collect();
        for key in old {
            let _ = table.remove(&key);
        }
        Ok(())
    }
}
