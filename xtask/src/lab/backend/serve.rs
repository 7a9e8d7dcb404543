//! The backend's side: one thread accepts, one per connection serves, the main thread takes orders.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigHandler, Signal, raise, signal},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, bind, listen,
            setsockopt, socket, sockopt,
        },
    },
};

use super::{Answer, Behaviour, CHILD_ROLE, EarlyAnswer, Order, Said, Spec, Then};

/// The most a request's header may take.
const HEADER_LIMIT: usize = 64 * 1024;
/// Taken at a time by [`Behaviour::EatMemory`].
const MOUTHFUL: usize = 1 << 20;

/// Serves until the orders end.
pub(crate) fn main(spec: &str) -> Result<()> {
    let spec: Spec = serde_json::from_str(spec).context("reading the backend's specification")?;
    take_shape(&spec)?;
    let shared = Arc::new(Shared::new(&spec));
    let mut door = Some(Door::open(&spec, &shared)?);
    say(&Said::Ready)?;
    for line in io::stdin().lines() {
        let line = line.context("reading orders")?;
        let order: Order =
            serde_json::from_str(&line).with_context(|| format!("reading the order `{line}`"))?;
        let connections = match order {
            Order::Become(behaviour) => {
                *lock(&shared.does) = behaviour;
                0
            }
            Order::CloseListener => {
                door = None;
                0
            }
            Order::Drain => {
                drop(door.take());
                shared.wait_until_idle();
                say(&Said::Done(0))?;
                std::process::exit(0);
            }
            Order::Reopen => {
                door = None;
                door.replace(Door::open(&spec, &shared)?);
                0
            }
            Order::CloseIdle => shared.wish(IdleEnd::Close),
            Order::ResetIdle => shared.wish(IdleEnd::Reset),
            Order::StrayByte => shared.wish(IdleEnd::StrayByte),
            Order::Exit(code) => std::process::exit(i32::from(code)),
            Order::GoOn => shared.go_on(),
        };
        say(&Said::Done(connections))?;
    }
    drop(door);
    Ok(())
}

/// Accepts on the listening socket that is its standard input, until its parent ends.
pub(crate) fn main_of_child(spec: &str) -> Result<()> {
    let spec: Spec = serde_json::from_str(spec).context("reading the backend's specification")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the parent")?;
    take_shape(&spec)?;
    let listener = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("taking the listening socket")?;
    let shared = Arc::new(Shared::new(&spec));
    let (wakes, _closer) = nix::unistd::pipe().context("making a pipe")?;
    accept_all(listener, spec.listen.starts_with("unix:"), &wakes, &shared)
}

/// Becomes a process as a backend's is: its name, and signals with their usual effect.
fn take_shape(spec: &Spec) -> Result<()> {
    std::fs::write("/proc/self/comm", &spec.name).context("setting the process's name")?;
    // Rust's own handler lets a SIGSEGV that somebody sent pass once; a backend that is to crash must crash.
    // SAFETY: the default action runs none of our code.
    unsafe { signal(Signal::SIGSEGV, SigHandler::SigDfl) }.context("giving SIGSEGV its usual effect")?;
    Ok(())
}

/// What the threads of a backend share.
#[derive(Debug)]
struct Shared {
    does: Mutex<Behaviour>,
    idle: Mutex<IdleWish>,
    idle_changed: Condvar,
    busy: AtomicUsize,
    told: Mutex<Told>,
    told_changed: Condvar,
    reports: bool,
}

/// Connections that wait to be told to go on.
#[derive(Debug, Default)]
struct Told {
    /// Waiting, told to go, and not done yet.
    waiting: usize,
    going: usize,
}

/// A wish for all connections that are idle now.
#[derive(Debug, Default)]
struct IdleWish {
    /// Counts wishes, so that a connection takes each one once.
    number: u64,
    wish: Option<IdleEnd>,
    /// Wakers of the connections that are idle.
    idle: Vec<File>,
    /// Connections that still have to take the wish, and those that did.
    pending: usize,
    taken: usize,
}

#[derive(Clone, Copy, Debug)]
enum IdleEnd {
    Close,
    Reset,
    StrayByte,
}

impl Shared {
    fn new(spec: &Spec) -> Self {
        Self {
            does: Mutex::new(spec.does.clone()),
            idle: Mutex::new(IdleWish::default()),
            idle_changed: Condvar::new(),
            busy: AtomicUsize::new(0),
            told: Mutex::new(Told::default()),
            told_changed: Condvar::new(),
            reports: spec.reports,
        }
    }

    fn report(&self, said: &Said) -> Result<()> {
        if self.reports { say(said) } else { Ok(()) }
    }

    /// Says that a request is here and waits to be told to go on; [`Self::went_on`] must follow.
    fn wait_to_go_on(&self) -> Result<()> {
        let mut told = lock(&self.told);
        told.waiting += 1;
        self.report(&Said::Request)?;
        while told.going == 0 {
            told = self
                .told_changed
                .wait(told)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn went_on(&self) {
        lock(&self.told).going -= 1;
        self.told_changed.notify_all();
    }

    /// Lets all that wait go on; yields how many, once they are done.
    fn go_on(&self) -> usize {
        let mut told = lock(&self.told);
        let n = std::mem::take(&mut told.waiting);
        told.going = n;
        self.told_changed.notify_all();
        while told.going > 0 {
            told = self
                .told_changed
                .wait(told)
                .unwrap_or_else(PoisonError::into_inner);
        }
        n
    }

    /// Waits until no request is in hand.
    fn wait_until_idle(&self) {
        while self.busy.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has all idle connections do something; yields how many did once all have.
    fn wish(&self, wish: IdleEnd) -> usize {
        // Whoever was just answered is about to be idle.
        self.wait_until_idle();
        let mut state = lock(&self.idle);
        state.number += 1;
        state.wish = Some(wish);
        state.pending = state.idle.len();
        state.taken = 0;
        for waker in &mut state.idle {
            // A connection that ended meanwhile takes itself off the list.
            let _ = waker.write_all(b"!");
        }
        while state.pending > 0 {
            state = self
                .idle_changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.wish = None;
        state.taken
    }
}

/// A listening socket and its accepting thread; closed when dropped.
#[derive(Debug)]
struct Door {
    /// Dropping it tells the thread to close the listener.
    closer: Option<File>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Door {
    fn open(spec: &Spec, shared: &Arc<Shared>) -> Result<Self> {
        let socket = bound(spec).with_context(|| format!("listening on {}", spec.listen))?;
        let (wakes, closer) = nix::unistd::pipe().context("making a pipe")?;
        let shared = Arc::clone(shared);
        let is_listening = spec.backlog.is_some();
        let is_unix = spec.listen.starts_with("unix:");
        let preforks = spec.preforks.then(|| serde_json::to_string(spec)).transpose()?;
        let thread = std::thread::spawn(move || {
            let result = if let Some(spec) = preforks {
                keep_a_child(&socket, &spec, &wakes)
            } else if is_listening && !matches!(*lock(&shared.does), Behaviour::NeverAccept) {
                accept_all(socket, is_unix, &wakes, &shared)
            } else {
                // The socket stays open, and nobody ever accepts.
                wait_readable(&wakes, None)
                    .map(|()| drop(socket))
                    .map_err(anyhow::Error::from)
            };
            if let Err(error) = result {
                eprintln!("{error:#}");
                std::process::exit(1);
            }
        });
        Ok(Self {
            closer: Some(File::from(closer)),
            thread: Some(thread),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closer = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps a child process that accepts on the socket; a new one takes the place of one that ended.
fn keep_a_child(socket: &OwnedFd, spec: &str, wakes: &OwnedFd) -> Result<()> {
    let closing = |child: &mut std::process::Child| -> Result<bool> {
        let mut fds = [PollFd::new(wakes.as_fd(), PollFlags::POLLIN)];
        while child.try_wait()?.is_none() {
            if poll(&mut fds, 5_u8)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    };
    loop {
        let listener = socket.try_clone().context("sharing the listening socket")?;
        let mut child = std::process::Command::new(std::env::current_exe()?)
            .arg(CHILD_ROLE)
            .arg(spec)
            .stdin(std::process::Stdio::from(listener))
            .spawn()
            .context("starting a child process")?;
        if closing(&mut child)? {
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
    }
}

/// A bound, and if wanted listening, socket.
fn bound(spec: &Spec) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = if let Some(path) = spec.listen.strip_prefix("unix:") {
        if let Some(folder) = std::path::Path::new(path).parent() {
            std::fs::create_dir_all(folder)?;
        }
        // A file that is already there, stale or not, is replaced, as most servers do.
        let _ = std::fs::remove_file(path);
        let kind = if spec.datagram {
            SockType::Datagram
        } else {
            SockType::Stream
        };
        let fd = socket(AddressFamily::Unix, kind, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, everybody)?;
        fd
    } else {
        let address: SocketAddr = spec.listen.parse()?;
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        match address {
            SocketAddr::V4(v4) => bind(fd.as_raw_fd(), &SockaddrIn::from(v4))?,
            SocketAddr::V6(v6) => {
                setsockopt(&fd, sockopt::Ipv6V6Only, &spec.v6only)?;
                bind(fd.as_raw_fd(), &SockaddrIn6::from(v6))?;
            }
        }
        fd
    };
    if let Some(backlog) = spec.backlog {
        listen(&fd, Backlog::new(i32::try_from(backlog)?)?)?;
    }
    Ok(fd)
}

fn accept_all(socket: OwnedFd, is_unix: bool, wakes: &OwnedFd, shared: &Arc<Shared>) -> Result<()> {
    let accept: Box<dyn Fn() -> io::Result<OwnedFd>> = if is_unix {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Box::new(move || {
            wait_readable(&listener, Some(wakes))?;
            listener.accept().map(|(stream, _)| stream.into())
        })
    } else {
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Box::new(move || {
            wait_readable(&listener, Some(wakes))?;
            listener.accept().map(|(stream, _)| stream.into())
        })
    };
    loop {
        match accept() {
            Ok(stream) => {
                let shared = Arc::clone(shared);
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        shared.busy.fetch_add(1, Ordering::SeqCst);
                        // A client that leaves, or a connection reset on purpose, is no fault of the backend.
                        let _ = serve(
                            Connection {
                                file: File::from(stream),
                            },
                            &shared,
                        );
                        shared.busy.fetch_sub(1, Ordering::SeqCst);
                    })
                    .context("starting a connection's thread")?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => bail!("accepting: {error}"),
        }
    }
}

/// Waits for input; [`io::ErrorKind::Interrupted`] when `wakes` became readable or closed instead.
fn wait_readable(input: &impl AsFd, wakes: Option<&OwnedFd>) -> io::Result<()> {
    let mut fds = vec![PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    fds.extend(wakes.map(|wakes| PollFd::new(wakes.as_fd(), PollFlags::POLLIN)));
    poll(&mut fds, PollTimeout::NONE)?;
    let woken = fds.get(1).is_some_and(|fd| fd.any() == Some(true));
    if woken {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(())
}

/// A connection; closed when dropped.
#[derive(Debug)]
struct Connection {
    file: File,
}

/// Serves one connection to its end.
fn serve(mut connection: Connection, shared: &Shared) -> Result<()> {
    shared.report(&Said::Accepted)?;
    let at_accept = lock(&shared.does).clone();
    match at_accept {
        Behaviour::CloseOnAccept => return Ok(()),
        Behaviour::CloseOnArrival => return Ok(wait_readable(&connection.file, None)?),
        Behaviour::NotReading => return connection.hold(),
        Behaviour::CloseUnread(bytes) => {
            let mut taken = vec![0; usize::try_from(bytes)?];
            connection.file.read_exact(&mut taken)?;
            // The rest of the request must be there: closing with an empty queue would be an orderly close.
            wait_readable(&connection.file, None)?;
            return Ok(());
        }
        Behaviour::Greet(text) => {
            connection.file.write_all(text.as_bytes())?;
            return connection.drain();
        }
        Behaviour::Answer(_)
        | Behaviour::Silent
        | Behaviour::NeverAccept
        | Behaviour::CloseAfterRequest(_)
        | Behaviour::Abort
        | Behaviour::HalfHeader(_)
        | Behaviour::HalfBody(_)
        | Behaviour::EarlyAnswer(_)
        | Behaviour::Exit(_)
        | Behaviour::Crash(_)
        | Behaviour::EatMemory
        | Behaviour::Say(_) => {}
    }
    loop {
        if connection.wait_for_request(shared)?.is_break() {
            return Ok(());
        }
        let header = connection.read_header()?;
        if header.is_empty() {
            return Ok(());
        }
        let does = lock(&shared.does).clone();
        if let Behaviour::EarlyAnswer(EarlyAnswer { status, lingers }) = does {
            shared.wait_to_go_on()?;
            // The body must have arrived, else this is an orderly close.
            let arrived = wait_readable(&connection.file, None);
            let answered = connection.answer(status, 3, false);
            if lingers {
                shared.went_on();
                connection.hold()?;
            } else {
                drop(connection);
                shared.went_on();
            }
            return answered.and(arrived.map_err(anyhow::Error::from));
        }
        connection.read_body(&header)?;
        let waits = matches!(does, Behaviour::Answer(Answer { waits: true, .. }));
        if waits {
            shared.wait_to_go_on()?;
        } else {
            shared.report(&Said::Request)?;
        }
        match does {
            Behaviour::Answer(Answer {
                delay_ms,
                waits: _,
                status,
                body_bytes,
                keep,
                idle_ms: _,
            }) => {
                std::thread::sleep(Duration::from_millis(delay_ms));
                let keep = keep && !asks_to_close(&header);
                let answered = connection.answer(status, body_bytes, keep);
                if waits {
                    shared.went_on();
                }
                answered?;
                if !keep {
                    return Ok(());
                }
            }
            Behaviour::CloseAfterRequest(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                return Ok(());
            }
            Behaviour::Abort => return connection.abort(),
            Behaviour::HalfHeader(then) => {
                connection
                    .file
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nX-Half")?;
                return connection.go_on(then);
            }
            Behaviour::HalfBody(then) => {
                let half = [b'x'; 5000];
                connection
                    .file
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")?;
                connection.file.write_all(&half)?;
                return connection.go_on(then);
            }
            Behaviour::Exit(code) => std::process::exit(i32::from(code)),
            Behaviour::Crash(signal) => raise(Signal::try_from(i32::from(signal))?)?,
            Behaviour::EatMemory => eat_memory(),
            Behaviour::Say(text) => {
                connection.file.write_all(text.as_bytes())?;
                return Ok(());
            }
            Behaviour::Silent
            | Behaviour::NotReading
            | Behaviour::NeverAccept
            | Behaviour::CloseOnAccept
            | Behaviour::CloseOnArrival
            | Behaviour::CloseUnread(_)
            | Behaviour::Greet(_)
            | Behaviour::EarlyAnswer(_) => return connection.drain(),
        }
    }
}

impl Connection {
    /// Waits for the next request, doing what is wished of idle connections meanwhile.
    fn wait_for_request(&mut self, shared: &Shared) -> Result<std::ops::ControlFlow<()>> {
        use std::ops::ControlFlow::{Break, Continue};

        let limit = match &*lock(&shared.does) {
            Behaviour::Answer(Answer {
                idle_ms: Some(ms), ..
            }) => PollTimeout::try_from(*ms)?,
            _ => PollTimeout::NONE,
        };
        let (wakes, waker) = nix::unistd::pipe()?;
        let own = waker.as_raw_fd();
        let entered = {
            let mut state = lock(&shared.idle);
            state.idle.push(File::from(waker));
            state.number
        };
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        let mut fds = [
            PollFd::new(self.file.as_fd(), PollFlags::POLLIN),
            PollFd::new(wakes.as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut fds, limit);
        let has_input = fds[0].any() == Some(true);
        shared.busy.fetch_add(1, Ordering::SeqCst);
        let mut state = lock(&shared.idle);
        state.idle.retain(|waker| waker.as_raw_fd() != own);
        let was_wished = state.number != entered && state.pending > 0;
        let wish = state.wish.filter(|_| was_wished && !has_input);
        let end = match wish {
            Some(IdleEnd::Close) => {
                nix::sys::socket::shutdown(self.file.as_raw_fd(), nix::sys::socket::Shutdown::Both)?;
                Break(())
            }
            Some(IdleEnd::Reset) => {
                self.linger_zero()?;
                Break(())
            }
            Some(IdleEnd::StrayByte) => {
                self.file.write_all(b"?")?;
                Continue(())
            }
            // Nothing came for so long.
            None if polled? == 0 => Break(()),
            None => Continue(()),
        };
        if let (Break(()), Some(_)) = (&end, &wish) {
            // Closed before the wish counts as taken: whoever wished may rely on it.
            let null = File::open("/dev/null")?;
            drop(std::mem::replace(&mut self.file, null));
        }
        if was_wished {
            state.pending -= 1;
            state.taken += usize::from(wish.is_some());
            shared.idle_changed.notify_all();
        }
        Ok(end)
    }

    /// A request's header, empty at the end of the stream; bytes of a body may follow it.
    fn read_header(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut one = [0; 4096];
        while find(&bytes, b"\r\n\r\n").is_none() {
            let n = self.file.read(&mut one)?;
            if n == 0 {
                return Ok(Vec::new());
            }
            bytes.extend_from_slice(&one[..n]);
            if bytes.len() > HEADER_LIMIT {
                bail!("a header longer than {HEADER_LIMIT} bytes");
            }
        }
        Ok(bytes)
    }

    /// Reads what is missing of the body that the header announces.
    fn read_body(&mut self, request: &[u8]) -> Result<()> {
        let end = find(request, b"\r\n\r\n").context("a header has an end")? + 4;
        let have = request.len() - end;
        let header = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let mut rest = [0; 64 * 1024];
        if header.contains("transfer-encoding: chunked") {
            let mut tail = request[end..].to_vec();
            while !tail.ends_with(b"0\r\n\r\n") {
                let n = self.file.read(&mut rest)?;
                if n == 0 {
                    bail!("the request ended early");
                }
                tail.extend_from_slice(&rest[..n]);
            }
            return Ok(());
        }
        let length: usize = header
            .split_once("content-length:")
            .and_then(|(_, value)| value.lines().next()?.trim().parse().ok())
            .unwrap_or(0);
        let mut missing = length.saturating_sub(have);
        while missing > 0 {
            let n = self.file.read(&mut rest)?;
            if n == 0 {
                bail!("the request ended early");
            }
            missing = missing.saturating_sub(n);
        }
        Ok(())
    }

    fn answer(&mut self, status: u16, body_bytes: usize, keep: bool) -> Result<()> {
        let connection = if keep { "keep-alive" } else { "close" };
        let mut response = format!(
            "HTTP/1.1 {status} Lab\r\nContent-Length: {body_bytes}\r\nConnection: {connection}\r\n\r\n"
        )
        .into_bytes();
        response.resize(response.len() + body_bytes, b'x');
        self.file.write_all(&response)?;
        Ok(())
    }

    fn go_on(mut self, then: Then) -> Result<()> {
        match then {
            Then::Close => Ok(()),
            Then::Abort => self.abort(),
            Then::Stall => self.drain(),
        }
    }

    /// Closes with a reset.
    fn abort(self) -> Result<()> {
        self.linger_zero()
    }

    fn linger_zero(&self) -> Result<()> {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&self.file, sockopt::Linger, &at_once)?;
        Ok(())
    }

    /// Reads to the end, says nothing.
    fn drain(&mut self) -> Result<()> {
        io::copy(&mut self.file, &mut io::sink())?;
        Ok(())
    }

    /// Reads nothing until the other end has gone.
    fn hold(&self) -> Result<()> {
        let mut fds = [PollFd::new(
            self.file.as_fd(),
            PollFlags::from_bits_retain(libc::POLLRDHUP),
        )];
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(())
    }
}

/// Takes memory for good until somebody stops this process.
fn eat_memory() -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; MOUTHFUL]);
    }
}

fn asks_to_close(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    text.contains("connection: close") || text.contains("http/1.0\r\n")
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn say(said: &Said) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(said)?)?;
    output.flush()?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
