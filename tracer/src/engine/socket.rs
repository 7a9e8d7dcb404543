//! What one exchange came to: outcome, phase and errno, read from the kernel's record and, where it was heard, from
//! nginx's own line. A success must never be read as a failure here.

use crate::{
    engine::{
        message::{Meaning, Said},
        surroundings::{REFUSAL_MEMORY, SLACK},
    },
    event::{Backend, EndKind, Errno, Exchange, ExchangeId, Ktime, Limits, Line, Peer, TcpState},
    model::{ClosedBy, Outcome, Phase},
};

/// nginx's timers run on a clock it refreshes once per loop, so they may fire a little early or late.
const EARLY: u64 = 60_000_000;
const LATE: u64 = 500_000_000;

/// What nginx was heard to say about the end of an exchange.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// This line belongs to it.
    Line(&'a Said),
    /// Its log function is listened to, and it said nothing; proven: other lines at error level were heard.
    Silence {
        /// Whether the log level lets error lines through.
        is_proven: bool,
    },
    /// Nobody listens to nginx here.
    Deaf,
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What happened.
    pub outcome: Outcome,
    /// Where.
    pub phase: Phase,
    /// The errno, where there is one.
    pub errno: Option<Errno>,
    /// Who closed first.
    pub closed_by: Option<ClosedBy>,
    /// Only a client that left, or a line not yet read, could still change this.
    pub is_final: bool,
}

/// Reads an exchange; `None`: it is no attempt at all (an idle connection, or one under way at detach).
///
/// `client_left`: nginx closed the client's connection right after it, because the client had gone.
pub fn read(
    exchange: &Exchange,
    heard: Heard<'_>,
    client_left: bool,
    limits: &Limits,
    via: Option<&str>,
) -> Option<Ending> {
    // A send that failed began a request, though no byte of it left.
    let is_silent = exchange.sent == 0 && exchange.received == 0 && exchange.send_error.is_none();
    let is_idle = exchange.connect_at.is_none() && is_silent && exchange.unread == 0;
    if exchange.end == EndKind::Detached || (is_idle && !matches!(heard, Heard::Line(_))) {
        return None;
    }
    let (outcome, errno, is_final) = if is_quiet_session(exchange, heard, via) {
        (Outcome::Ok, None, true)
    } else {
        outcome(exchange, heard, client_left, limits)
    };
    Some(Ending {
        outcome,
        phase: phase(exchange, heard, outcome),
        errno,
        closed_by: closed_by(exchange),
        is_final,
    })
}

/// Reads an exchange where neither sends nor reads can be seen: once the connection was up an answer may have come, and
/// only a line says that it did not. Whether the client left is not known either: an answer to it looks the same.
pub fn read_without_bytes(
    exchange: &Exchange,
    heard: Heard<'_>,
    limits: &Limits,
    via: Option<&str>,
) -> Option<Ending> {
    let ending = read(exchange, heard, false, limits, via)?;
    let is_told = matches!(heard, Heard::Line(_)) || exchange.end == EndKind::WorkerGone;
    if is_told || !is_established(exchange) {
        return Some(ending);
    }
    Some(Ending {
        outcome: Outcome::Ok,
        phase: phase(exchange, heard, Outcome::Ok),
        errno: None,
        is_final: !matches!(heard, Heard::Deaf),
        ..ending
    })
}

/// An exchange that sends and reads do not cut, as its last request saw it: while nginx says that no header of an
/// answer had come, what was read before was a handshake, session tickets, settings or an earlier answer.
pub fn of_last_request(exchange: &mut Exchange, said: Option<&Said>) {
    let is_unanswered = said
        .and_then(|said| said.action.as_deref())
        .is_some_and(|action| {
            matches!(
                action,
                "reading response header from upstream" | "sending request to upstream"
            )
        });
    if !exchange.uncut || !is_unanswered {
        return;
    }
    if let Some(backend) = &mut exchange.backend {
        backend.sent = backend.sent.saturating_sub(exchange.received);
    }
    exchange.first_received_at = None;
    exchange.last_received_at = None;
    exchange.received = 0;
}

/// nginx says what it read this soon after it came, on a machine that is short of processors.
const SAYS_WITHIN: u64 = 50_000_000;

/// An exchange that nginx's timer ended, as nginx saw it when it said so. Between that and its close it may lose its
/// processor, and over TLS it says goodbye first: what the peer does about that ended nothing.
pub fn until_given_up(exchange: &mut Exchange, said: Option<&Said>) {
    /// The largest TLS close_notify seen.
    const CLOSE_NOTIFY: u64 = 64;
    let timer = said.filter(|said| said.meaning == Meaning::TimedOut);
    let Some(said_at) = timer.and_then(|said| said.line).map(|line| line.at) else {
        return;
    };
    if exchange.end != EndKind::Closed || said_at >= exchange.ended_at || said_at <= exchange.began_at {
        return;
    }
    exchange.ended_at = said_at;
    let is_answer = |at: Option<Ktime>| at.is_some_and(|at| at > said_at);
    let mut is_answered = false;
    if is_answer(exchange.fin_at) {
        exchange.fin_at = None;
        is_answered = true;
    }
    if let Some(backend) = &mut exchange.backend
        && is_answer(backend.closed_at)
    {
        backend.closed_at = None;
        backend.closed_by = None;
        backend.aborted = false;
        backend.reset_reason = None;
        is_answered = true;
    }
    // A backend that has had the whole request has read nginx's goodbye last; its own comes before its close.
    let has_read_goodbye =
        |backend: &Backend| backend.read >= exchange.sent && is_answer(backend.last_read_at);
    is_answered |= exchange.backend.as_ref().is_some_and(has_read_goodbye);
    if is_answered && exchange.uncut && exchange.unread <= CLOSE_NOTIFY {
        if let Some(backend) = &mut exchange.backend {
            backend.sent = backend.sent.saturating_sub(exchange.unread);
        }
        exchange.unread = 0;
    }
}

/// When nginx was done with the exchange: a kept connection may be closed long after its last response.
pub fn ended_at(exchange: &Exchange, outcome: Outcome) -> Ktime {
    const HANDLER: u64 = 5_000_000;
    let last = exchange.last_received_at.max(exchange.eof_read_at);
    match last {
        Some(last) if outcome == Outcome::Ok && exchange.ended_at.since(last) > HANDLER => last,
        _ => exchange.ended_at,
    }
}

/// nginx took a kept connection for its next request and found it dead before it sent a byte: the exchange that was
/// answered, and the one that never got to send.
pub fn split_at_reuse(exchange: Exchange) -> (Exchange, Exchange) {
    let answered_at = exchange.last_received_at.unwrap_or(exchange.began_at);
    let answered = Exchange {
        ended_at: answered_at,
        end: EndKind::NextExchange,
        closed_in: None,
        error: None,
        error_at: None,
        fin_at: None,
        late: false,
        answered: false,
        reset_at: None,
        reset_in: None,
        line: None,
        ..exchange.clone()
    };
    let backend = exchange.backend.clone().map(|backend| Backend {
        read: 0,
        sent: 0,
        ..backend
    });
    let unsent = Exchange {
        id: ExchangeId {
            number: exchange.id.number.saturating_add(1),
            ..exchange.id
        },
        // nginx says so in the handler in which it took the connection.
        began_at: exchange.ended_at,
        previous_at: Some(answered_at),
        connect_at: None,
        established_at: None,
        first_sent_at: None,
        last_sent_at: None,
        sent: 0,
        acked: 0,
        first_received_at: None,
        last_received_at: None,
        received: 0,
        fin_before_request: exchange.fin_at.is_some(),
        acked_at_reset: 0,
        head: None,
        backend,
        ..exchange
    };
    (answered, unsent)
}

/// An answered exchange over a unix socket after which nginx waited as long as its read timeout: a line may say that
/// the answer was not whole.
pub fn may_have_stalled(exchange: &Exchange, limits: &Limits) -> bool {
    let waited = exchange
        .last_received_at
        .map(|last| exchange.ended_at.since(last));
    let limit = limits
        .read_timeout_ms
        .map(|limit| limit.saturating_mul(1_000_000));
    matches!(exchange.peer, Peer::Unix(_))
        && exchange.end == EndKind::Closed
        && exchange.line.is_none()
        && matches!((waited, limit), (Some(waited), Some(limit)) if waited.saturating_add(EARLY) >= limit)
}

/// Whether nginx can have taken the kept connection for its next request and found it dead with this errno.
pub fn may_end_at_reuse(exchange: &Exchange, errno: Option<Errno>) -> bool {
    errno.is_some()
        && kernel_errno(exchange) == errno
        && exchange.end == EndKind::Closed
        && is_established(exchange)
}

/// Whether a line that no exchange claimed can be what nginx said before it closed this one without a trace.
pub fn may_end_silently(exchange: &Exchange, line: &Line, meaning: Meaning, limits: &Limits) -> bool {
    let last = exchange
        .last_received_at
        .max(exchange.last_sent_at)
        .unwrap_or(exchange.began_at);
    let is_quiet = exchange.eof_read_at.is_none() && exchange.recv_error.is_none() && exchange.line.is_none();
    if meaning != Meaning::TimedOut
        || line.worker != exchange.worker
        || exchange.end != EndKind::Closed
        || !is_quiet
        || line.at < last
        || line.at > exchange.ended_at
    {
        return false;
    }
    may_have_run_out(silence_limit_ms(exchange, limits), line.at.since(last))
        .unwrap_or(exchange.received == 0)
}

/// The timer that runs while nothing moves on a connection that is up.
fn silence_limit_ms(exchange: &Exchange, limits: &Limits) -> Option<u64> {
    if exchange.send_blocked_at > exchange.last_sent_at {
        limits.send_timeout_ms
    } else {
        limits.read_timeout_ms
    }
}

/// Whether a timer of so many milliseconds runs out after `waited` nanoseconds; `None`: its length is not known.
fn may_have_run_out(limit_ms: Option<u64>, waited: u64) -> Option<bool> {
    let limit = limit_ms?.saturating_mul(1_000_000);
    Some(waited.saturating_add(EARLY) >= limit && waited <= limit.saturating_add(LATE))
}

/// Whether a line that no exchange claimed can be what nginx said before it closed this one, whose close was seen late.
pub fn may_end_late(exchange: &Exchange, line: &Line, meaning: Meaning, limits: &Limits) -> bool {
    let during = exchange.began_at..=exchange.ended_at;
    if !exchange.late || line.worker != exchange.worker || !during.contains(&line.at) {
        return false;
    }
    let said_just_after =
        |at: Option<Ktime>| at.is_some_and(|at| at <= line.at && line.at.since(at) <= SAYS_WITHIN);
    let is_reset = said_just_after(exchange.reset_at);
    let is_its_errno = |of_reset: i32| {
        line.errno.is_some()
            && (kernel_errno(exchange) == line.errno || (is_reset && line.errno == Some(Errno(of_reset))))
    };
    let action = line.action.as_deref().unwrap_or_default();
    // Before the header is whole nothing has been read, or little; after it an answer may have been whole.
    let has_no_answer = exchange.received == 0;
    match meaning {
        // What refused it is remembered no longer.
        Meaning::Connect => {
            !is_established(exchange)
                && is_its_errno(111)
                && exchange.ended_at.since(line.at) < REFUSAL_MEMORY - SLACK
        }
        Meaning::Io => is_established(exchange) && is_its_errno(104),
        Meaning::ClosedEarly | Meaning::HandshakeClosed => {
            let is_end = said_just_after(exchange.eof_read_at) || said_just_after(exchange.fin_at);
            let has_just_read_it = |at: Ktime| at <= line.at && line.at.since(at) <= SAYS_WITHIN / 10;
            (has_no_answer && is_end) || exchange.eof_read_at.is_some_and(has_just_read_it)
        }
        Meaning::Unacceptable => said_just_after(exchange.last_received_at),
        Meaning::TimedOut if action.starts_with("connecting") => {
            let waited = line.at.since(exchange.began_at);
            !is_established(exchange) && may_have_run_out(limits.connect_timeout_ms, waited).unwrap_or(true)
        }
        Meaning::TimedOut => {
            let last = exchange.last_received_at.max(exchange.last_sent_at);
            let limit = silence_limit_ms(exchange, limits);
            let fits = |last: Ktime| may_have_run_out(limit, line.at.since(last)).unwrap_or(true);
            has_no_answer && last.is_some_and(|last| last <= line.at && fits(last))
        }
        _ => false,
    }
}

/// nginx closed the connection some time after the last thing that happened on it.
pub fn has_waited(exchange: &Exchange) -> bool {
    // The last that TLS sends is its close_notify.
    let sent = exchange.last_sent_at.filter(|_| !exchange.uncut);
    let last = exchange.last_received_at.max(sent).max(exchange.eof_read_at);
    last.is_some_and(|last| exchange.ended_at.since(last) > EARLY)
}

/// The outcome an errno stands for.
pub fn outcome_of(errno: Errno) -> Outcome {
    match errno.0 {
        111 => Outcome::Refused,
        100 | 101 | 112 | 113 => Outcome::Unreachable,
        1 | 13 => Outcome::Denied,
        110 => Outcome::TimedOut,
        32 | 103 | 104 => Outcome::Reset,
        11 | 12 | 23 | 24 | 99 | 105 => Outcome::Exhausted,
        2 | 20 | 40 | 91 => Outcome::Missing,
        _ => Outcome::Invalid,
    }
}

/// The outcome of a line that is an attempt by itself.
pub fn outcome_of_lone(said: &Said) -> Outcome {
    match said.meaning {
        Meaning::NoLiveUpstreams => Outcome::NoLiveUpstreams,
        Meaning::Unresolved => Outcome::Unresolved,
        Meaning::WorkerConnections => Outcome::Exhausted,
        // A source address that is missing or taken is a setting, not a shortage.
        Meaning::Bind => Outcome::Invalid,
        _ => said.errno.map_or(Outcome::Invalid, outcome_of),
    }
}

/// A stream proxy's peer may end a session without having said a word, and nginx thinks nothing of it. TLS and HTTP/2
/// have sent something by then, so a session on which nothing was sent is a stream's.
fn is_quiet_session(exchange: &Exchange, heard: Heard<'_>, via: Option<&str>) -> bool {
    let is_stream = exchange.uncut && (exchange.sent == 0 || via == Some("stream"));
    is_stream
        && exchange.eof_read_at.is_some()
        && exchange.recv_error.is_none()
        && exchange.received == 0
        && !matches!(heard, Heard::Line(_))
}

fn outcome(
    exchange: &Exchange,
    heard: Heard<'_>,
    client_left: bool,
    limits: &Limits,
) -> (Outcome, Option<Errno>, bool) {
    if let Heard::Line(said) = heard {
        let (outcome, errno) = outcome_by_line(exchange, said);
        return (outcome, errno, true);
    }
    match exchange.end {
        EndKind::NextExchange | EndKind::Idle | EndKind::Detached => return (Outcome::Ok, None, true),
        EndKind::WorkerGone if exchange.received > 0 => return (Outcome::Ok, None, true),
        EndKind::WorkerGone => return (Outcome::Cancelled, None, true),
        EndKind::Presumed if exchange.received > 0 => return (Outcome::Ok, None, true),
        EndKind::Presumed | EndKind::Closed => {}
    }
    if exchange.received > 0 {
        return after_an_answer(exchange, heard, client_left);
    }
    let is_tcp = matches!(exchange.peer, Peer::Tcp(_));
    // Over a unix socket the two closes are only near in time, and a client that got its 504 leaves as well.
    let is_timer_due = !is_tcp && matches!(heard, Heard::Deaf) && is_timer(exchange, limits) == Some(true);
    // Whose client has gone is closed without a look; what it fetched, nginx has dealt with as a failure.
    let was_told = is_tcp && matches!(heard, Heard::Deaf) && has_fetched_failure(exchange);
    if client_left && !is_timer_due && !was_told {
        // A line of nginx may still say otherwise.
        return (Outcome::Cancelled, None, is_tcp);
    }
    if let Some((outcome, errno)) = failed_in_the_kernel(exchange, heard) {
        return (outcome, errno, false);
    }
    // From here on nginx closed a connection on which nothing bad had happened: its timer, or its client.
    if exchange.uncut && is_established(exchange) && exchange.sent == 0 {
        return (Outcome::Cancelled, None, false);
    }
    let is_timer = match heard {
        Heard::Line(_) | Heard::Silence { is_proven: true } => false,
        // When nginx closed it nobody saw.
        _ if exchange.late => false,
        // Over a unix socket the end is seen when the backend looks, which may be long after nginx's timer.
        _ if has_outwaited_unix(exchange, limits) => true,
        Heard::Silence { is_proven: false } => is_timer(exchange, limits).unwrap_or(false),
        Heard::Deaf => is_timer(exchange, limits).unwrap_or(true),
    };
    if is_timer {
        (Outcome::TimedOut, Some(Errno(110)), false)
    } else {
        (Outcome::Cancelled, None, false)
    }
}

fn outcome_by_line(exchange: &Exchange, said: &Said) -> (Outcome, Option<Errno>) {
    match said.meaning {
        Meaning::TimedOut => (Outcome::TimedOut, Some(Errno(110))),
        Meaning::ClosedEarly => (Outcome::Closed, None),
        Meaning::HandshakeClosed => match said.errno {
            Some(errno) => (outcome_of(errno), Some(errno)),
            None => (Outcome::Closed, None),
        },
        Meaning::Unacceptable => (Outcome::Invalid, said.errno),
        Meaning::ConnectAtOnce | Meaning::Bind | Meaning::Socket | Meaning::WorkerConnections => {
            (outcome_of_lone(said), said.errno)
        }
        Meaning::NoLiveUpstreams
        | Meaning::Unresolved
        | Meaning::Datagram
        | Meaning::Nothing
        | Meaning::Connect
        | Meaning::Io
        | Meaning::Other => match said.errno.or(kernel_errno(exchange)) {
            Some(errno) => (outcome_of(errno), Some(errno)),
            None => (Outcome::Invalid, None),
        },
    }
}

/// nginx read something and said nothing: an answer, unless the kernel shows that the end broke it.
fn after_an_answer(
    exchange: &Exchange,
    heard: Heard<'_>,
    client_left: bool,
) -> (Outcome, Option<Errno>, bool) {
    // The last read and the close share one handler when the response was complete.
    const HANDLER: u64 = 1_000_000;
    let last = exchange.last_received_at.max(exchange.eof_read_at);
    let was_complete = last.is_some_and(|last| exchange.ended_at.since(last) < HANDLER);
    if client_left && !was_complete {
        return (Outcome::Cancelled, None, true);
    }
    match (heard, exchange.recv_error.or(exchange.send_error)) {
        // Only an error that nginx fetched can have hurt: resets of orphans are healthy ends.
        (Heard::Deaf, Some(errno)) => (outcome_of(errno), Some(errno), false),
        // Whether an answer was whole, only nginx knows: a line of the log file may still say that it was not.
        _ => (Outcome::Ok, None, !matches!(heard, Heard::Deaf)),
    }
}

/// A failure that the kernel alone shows, before any byte of an answer.
fn failed_in_the_kernel(exchange: &Exchange, heard: Heard<'_>) -> Option<(Outcome, Option<Errno>)> {
    let errno = |errno: Errno| Some((outcome_of(errno), Some(errno)));
    if !is_established(exchange) {
        // nginx asks for the error before it says or does anything about it: unfetched, it never noticed.
        let is_unnoticed = exchange.error_unfetched && !matches!(heard, Heard::Deaf);
        let refused_by_rst = exchange.reset_at.map(|_| Errno(111));
        return match exchange.error.or(refused_by_rst) {
            Some(_) if is_unnoticed => None,
            Some(error) => errno(error),
            None if exchange.soft_error.is_some() => exchange.soft_error.and_then(errno),
            None if exchange.icmp.is_some() => exchange.icmp.as_ref().and_then(|icmp| errno(icmp.errno)),
            None if has_no_port(exchange) => errno(Errno(99)),
            None => None,
        };
    }
    if let Some(error) = exchange.recv_error.or(exchange.send_error) {
        return errno(error);
    }
    if exchange.eof_read_at.is_some() {
        return Some((Outcome::Closed, None));
    }
    match exchange.error {
        Some(error) if !exchange.error_unfetched => errno(error),
        _ => None,
    }
}

/// nginx itself saw that the connection had failed: it asked for the socket's error, or read or sent in vain.
fn has_fetched_failure(exchange: &Exchange) -> bool {
    let has_error = exchange.error.is_some() && !exchange.error_unfetched;
    let in_vain = exchange.recv_error.or(exchange.send_error).is_some();
    has_error || in_vain || exchange.eof_read_at.is_some()
}

/// nginx closed a silent connection: `Some(true)` when a configured timer fits, `Some(false)` when none can have
/// run out yet, `None` when the configuration does not say.
fn is_timer(exchange: &Exchange, limits: &Limits) -> Option<bool> {
    let (begun, limit) = if is_established(exchange) {
        let begun = exchange.last_sent_at.or(exchange.established_at)?;
        (begun, silence_limit_ms(exchange, limits)?)
    } else {
        (exchange.connect_at?, limits.connect_timeout_ms?)
    };
    let waited = exchange.ended_at.since(begun);
    let limit = limit.saturating_mul(1_000_000);
    let is_due = waited.saturating_add(EARLY) >= limit && waited <= limit.saturating_add(LATE);
    Some(is_due)
}

/// A unix exchange whose end was seen after nginx's read timeout had run out.
fn has_outwaited_unix(exchange: &Exchange, limits: &Limits) -> bool {
    let waited = exchange.last_sent_at.map(|sent| exchange.ended_at.since(sent));
    let limit = limits
        .read_timeout_ms
        .map(|limit| limit.saturating_mul(1_000_000));
    matches!(exchange.peer, Peer::Unix(_))
        && exchange.send_blocked_at <= exchange.last_sent_at
        && matches!((waited, limit), (Some(waited), Some(limit)) if waited > limit)
}

fn kernel_errno(exchange: &Exchange) -> Option<Errno> {
    exchange
        .recv_error
        .or(exchange.send_error)
        .or(exchange.error)
        .or(exchange.soft_error)
}

/// Whether the connection was ever up.
pub fn is_established(exchange: &Exchange) -> bool {
    exchange.established_at.is_some() || exchange.id.number > 1 || exchange.connect_at.is_none()
}

/// connect() gave up before the kernel had found a source port.
pub fn has_no_port(exchange: &Exchange) -> bool {
    !is_established(exchange)
        && matches!(exchange.peer, Peer::Tcp(_))
        && exchange.local.is_none_or(|local| local.port() == 0)
        && exchange.error.is_none()
        // How it ended was not seen.
        && exchange.end != EndKind::Presumed
}

fn phase(exchange: &Exchange, heard: Heard<'_>, outcome: Outcome) -> Phase {
    if let Heard::Line(said) = heard {
        let is_unsent = exchange.connect_at.is_none() && exchange.sent == 0 && exchange.previous_at.is_some();
        if said.meaning == Meaning::Connect && is_unsent {
            return Phase::Idle;
        }
        let is_connecting = said.meaning == Meaning::Connect || said.is_connecting_timeout();
        if is_connecting || said.meaning.stands_alone() {
            return Phase::Connecting;
        }
        if said
            .action
            .as_deref()
            .is_some_and(|action| action.starts_with("SSL handshaking"))
        {
            return Phase::Handshaking;
        }
    }
    let is_blocked = exchange.send_blocked_at > exchange.last_sent_at;
    if !is_established(exchange) {
        Phase::Connecting
    } else if exchange.received > 0 {
        Phase::Reading
    } else if exchange.sent == 0 || exchange.send_error.is_some() || is_blocked {
        Phase::Sending
    } else if outcome == Outcome::Ok {
        Phase::Reading
    } else {
        Phase::Waiting
    }
}

fn closed_by(exchange: &Exchange) -> Option<ClosedBy> {
    let before_the_end = |at: Option<Ktime>| at.is_some_and(|at| at <= exchange.ended_at);
    if has_no_port(exchange) {
        return Some(ClosedBy::Kernel);
    }
    match exchange.end {
        EndKind::NextExchange | EndKind::Idle | EndKind::Presumed | EndKind::Detached => None,
        EndKind::WorkerGone => Some(ClosedBy::Kernel),
        EndKind::Closed => {
            let is_reset = exchange.reset_in != Some(TcpState::FinWait1) && before_the_end(exchange.reset_at);
            let is_error = exchange.error.is_some() && exchange.reset_at.is_none();
            // The socket's FIN came first, even when a reset followed on what nginx still sent.
            if before_the_end(exchange.fin_at)
                || (exchange.fin_at.is_none() && exchange.eof_read_at.is_some())
            {
                Some(ClosedBy::Peer)
            } else if is_reset || is_error {
                Some(ClosedBy::Kernel)
            } else {
                Some(ClosedBy::Nginx)
            }
        }
    }
}
