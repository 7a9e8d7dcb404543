//! The life of a connection and of the exchanges on it, and the worker's own events that link them.
//!
//! An *own* event of a worker is one that its own system call caused. The rules (seen to hold under load): the line
//! nginx logs belongs to the close mark that is the worker's very next own event; what the worker does next after
//! such a close (a SYN, a send on a kept connection) is the retry.

use tracer_ebpf::{
    BackendEdge, BackendLink, ClientAnswered, ClientLeft, Conn, Endpoint, STATUS_LEN, TaskInfo, Worker, conn,
    end, kind, previous, switch,
};

use crate::{
    filter::{EEXIST, backend, connection, connection_of, remember_endpoint, worker},
    maps::{BACKENDS, CONNECTIONS, ENDPOINTS, NO_CONN, SEQUENCES, setting, switched},
    output::{count, counted, header, now, write, write_exchange},
    sock::{AF_UNIX, CLOSE_WAIT, Sock, SockAt, Tcp as _, current_pid, current_task, take_sent},
};

/// Makes the entry of a connection; `None` when the table is full.
#[inline(always)]
pub fn create(sock: impl Sock, family: u16, pid: u32, at: u64) -> Option<&'static mut Conn> {
    // 1 is BPF_NOEXIST.
    if let Err(error) = CONNECTIONS.insert(sock.address(), &NO_CONN, 1)
        && (error != -EEXIST || !replace(sock.address(), at))
    {
        count(tracer_ebpf::counter::TABLE_FULL);
        return None;
    }
    let entry = connection(sock.address())?;
    entry.sock = sock.address();
    entry.since = at;
    entry.number = 1;
    entry.worker = pid;
    entry.netns = sock.netns();
    entry.family = family;
    entry.began_at = at;
    entry.connect_at = at;
    if family != AF_UNIX {
        entry.daddr = sock.peer_addr();
        entry.dport = sock.peer_port();
        entry.flags = remember_endpoint(entry.daddr, entry.dport, at);
    }
    Some(entry)
}

/// Ends the entry that another connection left at this address, and clears it. The socket there is not that one's any
/// more, so nothing is read of it.
#[inline(never)]
fn replace(sock: u64, at: u64) -> bool {
    count(tracer_ebpf::counter::STALE);
    if let Some(stale) = connection(sock)
        && stale.began_at != 0
    {
        put(stale, end::PRESUMED, at, at);
    }
    CONNECTIONS.insert(sock, &NO_CONN, 0).is_ok()
}

/// How the configuration says that connections to this peer are cut: bits of [`conn`].
#[inline(always)]
pub fn marks(entry: &Conn) -> u32 {
    let key = Endpoint {
        addr: entry.daddr,
        port: u32::from(entry.dport),
    };
    match ENDPOINTS.get_ptr(key) {
        // SAFETY: a value of a preallocated map.
        Some(known) => unsafe { (*known).marks },
        None => 0,
    }
}

/// Whether what nginx sends on a connection tells one request from the next.
#[inline(always)]
pub fn is_cut_by_sends(entry: &Conn) -> bool {
    entry.flags & (conn::UNCUT | conn::BY_HEADERS) != conn::UNCUT
}

/// The worker did what follows from an answer as the very next own event after reading from this upstream.
#[inline(always)]
pub fn answered(sock: u64) {
    if let Some(entry) = connection(sock)
        && entry.last_received_at > entry.last_sent_at
    {
        entry.flags |= conn::ANSWERED;
    }
}

/// Begins the next exchange on a kept connection.
#[inline(always)]
pub fn begin_next(entry: &mut Conn, at: u64) {
    entry.number += 1;
    entry.flags &= !(conn::ANSWERED | conn::READ_AHEAD);
    entry.began_at = at;
    entry.previous_at = entry.last_received_at;
    entry.connect_at = 0;
    entry.established_at = 0;
    entry.first_sent_at = 0;
    entry.last_sent_at = 0;
    entry.sent_before += entry.sent;
    entry.sent = 0;
    entry.first_received_at = 0;
    entry.last_received_at = 0;
    entry.received = 0;
    entry.eof_at = 0;
    entry.send_blocked_at = 0;
    entry.last_retransmit_at = 0;
    entry.syn_retransmits = 0;
    entry.retransmits = 0;
    entry.line = 0;
    entry.retry_kind = previous::NONE;
    entry.retry_sock = 0;
    entry.retry_since = 0;
    entry.retry_number = 0;
    // On another CPU the backend may have read this request before nginx's send was seen to return.
    entry.backend_first_read_at = if entry.backend_last_read_at > entry.previous_at {
        entry.backend_last_read_at
    } else {
        0
    };
}

/// Writes the record of the exchange under way, which ended at `ended`, and leaves the connection idle.
#[inline(always)]
pub fn finish(entry: &mut Conn, sock: impl Sock, how: u8, ended: u64, at: u64) {
    if entry.family == AF_UNIX {
        finish_unix(entry, how, ended, at);
    } else {
        finish_tcp(entry, sock, how, ended, at);
    }
}

/// [`finish`] of a unix connection.
#[inline(always)]
pub fn finish_unix(entry: &mut Conn, how: u8, ended: u64, at: u64) {
    let peer = entry.backend_sock;
    if peer != 0 && entry.flags & conn::ACCEPTED == 0 && is_backend_of(peer, entry) && SockAt(peer).has_file()
    {
        entry.flags |= conn::ACCEPTED;
    }
    put(entry, how, ended, at);
}

#[inline(always)]
fn finish_tcp(entry: &mut Conn, sock: impl Sock, how: u8, ended: u64, at: u64) {
    if entry.sport == 0 {
        entry.sport = sock.local_port();
        entry.saddr = sock.local_addr();
    }
    if let Some(tcp) = sock.tcp() {
        entry.una = tcp.snd_una();
        if entry.sent == 0 && entry.number == 1 && entry.established_at != 0 {
            // Where sends cannot be seen, what lies in the stream was sent; the FIN is not in it yet.
            entry.sent = u64::from(tcp.write_seq().wrapping_sub(entry.start_seq));
        }
        entry.rtt_us = tcp.srtt_us();
        entry.window = tcp.send_window();
        entry.flags |= conn::WINDOW_KNOWN;
        if entry.connect_at != 0 && entry.established_at == 0 && tcp.segments_in() != 0 {
            entry.flags |= conn::HEARD;
        }
        if entry.closed_in == 0 {
            entry.unread = tcp.unread(entry.fin_at != 0);
        }
    }
    let soft = sock.soft_error();
    if soft != 0 {
        entry.soft = soft;
    }
    // An exchange that another one followed had its answer: nobody will ask where the backend stood.
    let peer = entry.backend_sock;
    if peer != 0 && how != end::NEXT && entry.backend_closed_at == 0 && is_backend_of(peer, entry) {
        let other = SockAt(peer);
        entry.backend_copied = other.copied_seq();
        entry.backend_unread = other.unread(other.state() == CLOSE_WAIT);
        if entry.fin_at == 0
            && let Some(tcp) = sock.tcp()
        {
            entry.backend_underway = other.write_seq().wrapping_sub(tcp.rcv_nxt());
        }
        if other.has_file() {
            entry.flags |= conn::ACCEPTED;
        }
    }
    put(entry, how, ended, at);
}

#[inline(always)]
fn put(entry: &mut Conn, how: u8, ended: u64, at: u64) {
    entry.end = how;
    entry.ended_at = ended;
    let what = if entry.family == AF_UNIX {
        kind::UNIX_EXCHANGE
    } else {
        kind::EXCHANGE
    };
    entry.header = header(what, at);
    write_exchange(entry);
    entry.began_at = 0;
}

#[inline(always)]
fn is_backend_of(peer: u64, entry: &Conn) -> bool {
    matches!(backend(peer), Some(link) if link.conn_sock == entry.sock && link.conn_since == entry.since)
}

/// Whether nginx's close of a unix socket is seen.
#[inline(always)]
pub fn unix_closes_seen() -> bool {
    switched(switch::UNIX_CLOSES) != 0
}

/// nginx's close of an upstream socket. `own`: in the worker's own context.
#[inline(always)]
pub fn close_mark(entry: &mut Conn, sock: impl Sock, own: Option<&mut Worker>, at: u64) {
    entry.flags |= conn::MARKED;
    let mut in_progress = entry.began_at != 0;
    let Some(worker) = own else {
        if in_progress {
            // A worker that lives has closed its socket before, while some other task held the file (a look into
            // /proc/PID/fd is enough).
            let lives = matches!(worker(entry.worker), Some(owner) if owner.exiting == 0);
            let how = if lives { end::LET_GO } else { end::WORKER_GONE };
            finish(entry, sock, how, at, at);
        }
        return;
    };
    end_unix(worker, 0, at);
    worker.last_sock = 0;
    worker.unix_read = 0;
    if worker.pending_line != 0 && (worker.pending_sock == 0 || worker.pending_sock == entry.sock) {
        let is_kept = entry.began_at == 0 || entry.received > 0;
        if worker.pending_connecting != 0 && is_kept && is_cut_by_sends(entry) {
            // nginx took a kept connection for a new request and found it broken before it sent anything.
            if in_progress {
                let ended = entry.last_received_at;
                finish(entry, sock, end::NEXT, ended, at);
            }
            begin_next(entry, worker.pending_line);
            in_progress = true;
            if entry.family != AF_UNIX
                && let Some(tcp) = sock.tcp()
            {
                entry.start_seq = tcp.write_seq();
            }
        }
        entry.line = worker.pending_line;
    }
    forget(worker);
    if in_progress {
        worker.previous_kind = if entry.line != 0 {
            previous::LINED
        } else {
            previous::SILENT
        };
        worker.previous_sock = entry.sock;
        worker.previous_since = entry.since;
        worker.previous_number = entry.number;
        worker.previous_unanswered = u32::from(entry.received == 0);
        finish(
            entry,
            sock,
            if worker.exiting != 0 {
                end::WORKER_GONE
            } else {
                end::CLOSED
            },
            at,
            at,
        );
    }
}

/// An own event that begins an exchange: what ended just before is what it retries.
#[inline(always)]
pub fn own_begin(worker: &mut Worker, entry: &mut Conn, at: u64) {
    end_unix(worker, 0, at);
    let follows_failure = worker.previous_kind == previous::LINED
        || worker.previous_kind == previous::LINE
        || (worker.previous_kind == previous::SILENT && setting!(lines_heard) == 0);
    if follows_failure {
        entry.retry_kind = worker.previous_kind;
        entry.retry_sock = worker.previous_sock;
        entry.retry_since = worker.previous_since;
        entry.retry_number = worker.previous_number;
    }
    forget(worker);
}

/// Any other own event of the worker: whatever waited for the very next one has waited in vain.
#[inline(always)]
pub fn own_other(worker: &mut Worker) {
    if is_waiting(worker) {
        end_unix(worker, 0, now());
        forget(worker);
    }
}

/// Whether something waits for the worker's very next own event. Mostly nothing does, and the clock is not read.
#[inline(always)]
pub fn is_waiting(worker: &Worker) -> bool {
    worker.pending_line | worker.unix_ended | worker.answering | u64::from(worker.previous_kind) != 0
}

#[inline(always)]
fn forget(worker: &mut Worker) {
    worker.pending_line = 0;
    worker.pending_sock = 0;
    worker.previous_kind = previous::NONE;
    worker.answering = 0;
}

/// What a line says, as far as the kernel half needs to know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// nginx was connecting to an upstream.
    Connecting,
    /// It does not take what the upstream sent.
    Refuses,
    /// Anything else.
    Other,
}

/// nginx logs a line.
#[inline(always)]
pub fn own_line(worker: &mut Worker, id: u64, says: Says) {
    if says == Says::Refuses && worker.unix_read != 0 && !unix_closes_seen() {
        // It reads, refuses and says so in one handler.
        if let Some(entry) = connection(worker.unix_read) {
            entry.flags |= conn::UNIX_ENDED;
            worker.unix_ended = entry.sock;
        }
    }
    worker.unix_read = 0;
    worker.answering = 0;
    if worker.unix_ended != 0 {
        end_unix(worker, id, id);
        worker.pending_line = 0;
        return;
    }
    worker.pending_line = id;
    worker.pending_connecting = u32::from(says == Says::Connecting);
    worker.pending_sock = 0;
    worker.previous_kind = previous::LINE;
    worker.previous_sock = 0;
    worker.previous_since = id;
    worker.previous_number = 0;
}

/// A unix connection's end is known by the worker's read of it; the line, if any, follows at once.
#[inline(always)]
fn end_unix(worker: &mut Worker, line: u64, at: u64) {
    let sock = worker.unix_ended;
    if sock == 0 {
        return;
    }
    worker.unix_ended = 0;
    let Some(entry) = connection(sock) else { return };
    if entry.flags & conn::UNIX_ENDED == 0 {
        return;
    }
    entry.line = line;
    let in_progress = entry.began_at != 0;
    if line != 0 {
        worker.previous_kind = previous::LINED;
        worker.previous_sock = entry.sock;
        worker.previous_since = entry.since;
        worker.previous_number = entry.number;
    }
    if in_progress {
        finish_unix(entry, end::CLOSED, at, at);
    }
    remove(entry);
}

/// The worker closes a client's connection. A client that left while its request was under way is noticed by epoll;
/// one that ended its idle connection is noticed by reading the end.
#[inline(always)]
pub fn client_closed(worker: &mut Worker, sock: impl Sock, client_had_left: bool, reset: bool, at: u64) {
    end_unix(worker, 0, at);
    worker.unix_read = 0;
    let was_idle = worker.client_ended == sock.address();
    if client_had_left && !was_idle && (worker.previous_kind == previous::SILENT || worker.unix_listener != 0)
    {
        let silent = worker.previous_kind == previous::SILENT;
        write(&ClientLeft {
            header: header(kind::CLIENT_LEFT, at),
            conn_sock: if silent { worker.previous_sock } else { 0 },
            conn_since: if silent { worker.previous_since } else { 0 },
            number: worker.previous_number,
            reset: u32::from(reset),
        });
    } else if !client_had_left && (worker.answering == sock.address() || is_unanswered(worker)) {
        client_answered(worker, sock, true, at);
    }
    forget(worker);
}

/// Whether the worker's very last own event was the end of an attempt that leaves it to nginx what its client gets.
#[inline(always)]
fn is_unanswered(worker: &Worker) -> bool {
    worker.previous_kind == previous::LINED
        || worker.previous_kind == previous::LINE
        || (worker.previous_kind == previous::SILENT
            && worker.previous_unanswered != 0
            && setting!(lines_heard) == 0)
}

/// The worker sent something to a client, or to anything else that is no upstream.
#[inline(always)]
pub fn own_send_to_client(worker: &mut Worker, sock: impl Sock, at: u64) {
    if worker.answering == sock.address() {
        return;
    }
    if !is_unanswered(worker) {
        own_other(worker);
        return;
    }
    let sent = client_answered(worker, sock, false, at);
    worker.answering_sock = worker.previous_sock;
    worker.answering_since = worker.previous_since;
    worker.answering_number = worker.previous_number;
    worker.answering_kind = worker.previous_kind;
    let is_whole = worker.previous_kind != previous::LINE && worker.previous_unanswered != 0;
    forget(worker);
    // Of an answer that had begun the next own event says whether nginx breaks it off. What is encrypted may be anything.
    if sent != 0 && !is_whole {
        worker.answering = sock.address();
    }
}

/// Writes what the client is given; how many bytes of it could be read.
#[inline(always)]
fn client_answered(worker: &Worker, sock: impl Sock, cut: bool, at: u64) -> u16 {
    let mut record = ClientAnswered {
        header: header(kind::CLIENT_ANSWERED, at),
        previous_sock: worker.previous_sock,
        previous_since: worker.previous_since,
        previous_number: worker.previous_number,
        previous_kind: worker.previous_kind,
        daddr: [0; 16],
        head: [0; STATUS_LEN],
        head_len: 0,
        dport: 0,
        cut: u32::from(cut),
    };
    if worker.answering == sock.address() {
        record.previous_sock = worker.answering_sock;
        record.previous_since = worker.answering_since;
        record.previous_number = worker.answering_number;
        record.previous_kind = worker.answering_kind;
    }
    if sock.family() != AF_UNIX {
        record.daddr = sock.peer_addr();
        record.dport = sock.peer_port();
    }
    if !cut {
        record.head_len = take_sent(&mut record.head);
    }
    write(&record);
    record.head_len
}

/// Deletes a connection and all that points to it.
#[inline(always)]
pub fn remove(entry: &Conn) {
    if entry.isn_key != 0 {
        let _ = SEQUENCES.remove(entry.isn_key);
    }
    if entry.family == AF_UNIX && entry.backend_sock != 0 {
        let _ = BACKENDS.remove(entry.backend_sock);
    }
    let _ = CONNECTIONS.remove(entry.sock);
}

/// Links the backend's socket to nginx's.
#[inline(always)]
pub fn link_backend(entry: &mut Conn, sock: impl Sock) {
    entry.backend_sock = sock.address();
    entry.backend_netns = sock.netns();
    counted(BACKENDS.insert(
        sock.address(),
        BackendLink {
            conn_sock: entry.sock,
            conn_since: entry.since,
            closed_at: 0,
            unread: 0,
            flags: 0,
        },
        0,
    ));
}

/// The other end of a connection that was there before is known to its link alone, until it does something.
#[inline(always)]
fn know_backend(entry: &mut Conn, sock: impl Sock) {
    if entry.backend_sock == 0 {
        entry.backend_sock = sock.address();
        entry.backend_netns = sock.netns();
    }
}

/// Data of this connection was read by a process of this host.
#[inline(always)]
pub fn backend_read(link: &BackendLink, sock: impl Sock, bytes: u32, at: u64) {
    let Some(entry) = connection_of(link.conn_sock, link.conn_since) else {
        return;
    };
    know_backend(entry, sock);
    entry.flags |= conn::ACCEPTED;
    if entry.flags & conn::BACKEND_TASK == 0 {
        entry.flags |= conn::BACKEND_TASK;
        entry.backend_task = current_task();
        crate::filter::remember_owner(entry.backend_task.pid);
    }
    if entry.backend_first_read_at == 0 {
        entry.backend_first_read_at = at;
    }
    entry.backend_last_read_at = at;
    if entry.family == AF_UNIX {
        // While nothing else was sent there is nothing else to be read: it is the read that was found out before.
        let is_known = entry.flags & conn::READ_AHEAD != 0 && entry.sent == entry.backend_read;
        if !is_known {
            entry.backend_read += u64::from(bytes);
        }
        entry.flags &= !conn::READ_AHEAD;
    } else if let Some(tcp) = sock.tcp() {
        entry.backend_copied = tcp.copied_seq();
    }
}

/// The first bytes of a unix connection were read before anything linked its two ends; by whom is not known.
#[inline(always)]
pub fn backend_read_ahead(entry: &mut Conn, bytes: u32, at: u64) {
    entry.flags |= conn::ACCEPTED | conn::READ_AHEAD;
    entry.backend_first_read_at = at;
    entry.backend_last_read_at = at;
    entry.backend_read = u64::from(bytes);
}

/// A process took the backend's socket with accept().
#[inline(always)]
pub fn backend_accepted(link: &BackendLink, at: u64) {
    if let Some(entry) = connection_of(link.conn_sock, link.conn_since) {
        entry.flags |= conn::ACCEPTED;
        entry.backend_accepted_at = at;
        crate::filter::remember_owner(current_pid());
    }
}

/// The backend closed its socket, by FIN or (`aborted`) by reset.
#[inline(always)]
pub fn backend_closed(link: &mut BackendLink, sock: impl Sock, aborted: bool, fin_received: bool, at: u64) {
    let task = current_task();
    let (unread, copied) = sock
        .tcp()
        .map_or((0, 0), |tcp| (tcp.unread(fin_received), tcp.copied_seq()));
    let accepted = if sock.has_file() { conn::ACCEPTED } else { 0 };
    if let Some(entry) = connection_of(link.conn_sock, link.conn_since) {
        know_backend(entry, sock);
        entry.backend_closed_at = at;
        entry.backend_closer = task;
        entry.backend_unread = unread;
        entry.backend_copied = copied;
        entry.flags |= accepted | if aborted { conn::ABORTED } else { 0 };
    }
    link.closed_at = at;
    link.unread = unread;
    link.flags |= accepted;
    if aborted {
        link.flags |= conn::ABORTED;
        edge(link, sock, 0, 0, task, at);
    }
}

/// Writes what happened to a backend's socket, since the exchange may have been written already.
#[inline(always)]
pub fn edge(link: &BackendLink, sock: impl Sock, reset_reason: u32, error: i32, task: TaskInfo, at: u64) {
    write(&BackendEdge {
        header: header(kind::BACKEND_EDGE, at),
        conn_sock: link.conn_sock,
        conn_since: link.conn_since,
        sock: sock.address(),
        closed_at: link.closed_at,
        netns: sock.netns(),
        reset_reason,
        error,
        unread: link.unread,
        flags: link.flags,
        pad: 0,
        task,
    });
}
