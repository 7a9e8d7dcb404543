//! A backend that fails on command: a process of its own, so that it can be killed, that is told what to do by its
//! standard input and says what happened on its standard output. It ends when its input does, so it never outlives
//! whoever started it.

pub(super) mod serve;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::netns::Netns;

/// The first argument that makes this executable a backend.
pub(super) const ROLE: &str = "lab-backend";
/// The first argument of its child, whose standard input is the listening socket.
pub(super) const CHILD_ROLE: &str = "lab-backend-child";
/// How long a backend may take to say something it was asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a backend does with its connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Behaviour {
    /// Answers every request.
    Answer(Answer),
    /// Accepts, reads, says nothing.
    Silent,
    /// Accepts and never reads.
    NotReading,
    /// Never calls `accept()`.
    NeverAccept,
    /// Closes at once, reading nothing.
    CloseOnAccept,
    /// Closes as soon as a request has arrived, reading nothing.
    CloseOnArrival,
    /// Reads so many bytes of a request, then closes.
    CloseUnread(u64),
    /// Reads a request, waits so many milliseconds, closes.
    CloseAfterRequest(u64),
    /// Reads a request, then resets the connection (`SO_LINGER` 0).
    Abort,
    /// Answers with half a header, then …
    HalfHeader(Then),
    /// Answers with a header and half of the body it announces, then …
    HalfBody(Then),
    /// Reads a request's header, waits to be told to go on, answers with the body unread.
    EarlyAnswer(EarlyAnswer),
    /// Reads a request, then ends with this exit code.
    Exit(u8),
    /// Reads a request, then ends by this signal's number.
    Crash(u8),
    /// Reads a request, then takes memory until it is stopped.
    EatMemory,
    /// Says these bytes as soon as it has accepted, then reads on and says nothing more.
    Greet(String),
    /// Answers a request with these bytes and closes.
    Say(String),
}

/// How [`Behaviour::Answer`] answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// Milliseconds before the answer.
    pub delay_ms: u64,
    /// Waits to be told to go on before it answers.
    pub waits: bool,
    /// The response's status.
    pub status: u16,
    /// The length of its body.
    pub body_bytes: usize,
    /// Whether the connection is kept for further requests.
    pub keep: bool,
    /// Closes a kept connection that was idle for so many milliseconds.
    pub idle_ms: Option<u64>,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            delay_ms: 0,
            waits: false,
            status: 200,
            body_bytes: 3,
            keep: true,
            idle_ms: None,
        }
    }
}

/// How [`Behaviour::EarlyAnswer`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyAnswer {
    /// The response's status.
    pub status: u16,
    /// Whether it waits for the other end to close before it closes.
    pub lingers: bool,
}

/// What follows half an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// An orderly close.
    Close,
    /// A reset.
    Abort,
    /// Nothing more.
    Stall,
}

/// A backend as a process is told about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The process's name, at most 15 bytes.
    pub name: String,
    /// `ADDRESS:PORT`, `[ADDRESS]:PORT` or `unix:PATH`.
    pub listen: String,
    /// The listen queue's length; `None`: bound, but not listening.
    pub backlog: Option<u32>,
    /// Only IPv6 on an IPv6 wildcard address.
    pub v6only: bool,
    /// A unix datagram socket, which nobody can connect a stream to.
    pub datagram: bool,
    /// Accepts in a child process, which is replaced when it ends, as preforking servers do; orders to change
    /// behaviour do not reach the child.
    pub preforks: bool,
    /// What it does.
    pub does: Behaviour,
    /// Says `request` for each request read.
    pub reports: bool,
}

/// What a backend is told while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Do this from now on, on connections accepted or requests read from now on.
    Become(Behaviour),
    /// Close the listener and live on.
    CloseListener,
    /// Close the listener and stop with exit code 0 once open requests are answered.
    Drain,
    /// Listen again.
    Reopen,
    /// Close all kept connections that are idle.
    CloseIdle,
    /// Reset all kept connections that are idle.
    ResetIdle,
    /// Send one unexpected byte on all idle kept connections.
    StrayByte,
    /// End with this exit code at once.
    Exit(u8),
    /// What waits to be told to go on goes on.
    GoOn,
}

/// What a backend says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// It listens (or is bound).
    Ready,
    /// An order was carried out; on so many connections.
    Done(usize),
    /// It accepted a connection (only with `reports`).
    Accepted,
    /// It has read a request (only with `reports`).
    Request,
}

/// A running backend; killed when dropped.
#[derive(Debug)]
pub struct Backend {
    child: Child,
    input: Option<ChildStdin>,
    says: Receiver<Said>,
}

impl Backend {
    /// Starts a backend in a namespace and waits until it listens.
    pub fn start(namespace: &Netns, spec: &Spec) -> Result<Self> {
        let myself = std::env::current_exe().context("finding this executable")?;
        let mut child = namespace.spawn(
            Command::new(myself)
                .arg(ROLE)
                .arg(serde_json::to_string(spec)?)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("a backend without standard output")?;
        let (teller, says) = channel();
        std::thread::Builder::new()
            .name(format!("{} says", spec.name))
            .spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    match serde_json::from_str(&line) {
                        Ok(said) => {
                            if teller.send(said).is_err() {
                                return;
                            }
                        }
                        Err(error) => eprintln!("a backend said `{line}`: {error}"),
                    }
                }
            })
            .context("starting a backend's listener thread")?;
        let backend = Self { child, input, says };
        backend
            .wait(&Said::Ready)
            .with_context(|| format!("backend {} on {}", spec.name, spec.listen))?;
        Ok(backend)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it what to do and waits until it is done; yields on how many connections.
    pub fn tell(&mut self, order: &Order) -> Result<usize> {
        let input = self.input.as_mut().context("the backend's input is closed")?;
        let line = serde_json::to_string(order)? + "\n";
        input
            .write_all(line.as_bytes())
            .with_context(|| format!("telling a backend {order:?}"))?;
        if matches!(order, Order::Exit(_)) {
            self.wait_for_end()?;
            return Ok(0);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Said::Done(connections) = self.next(deadline, "done")? {
                return Ok(connections);
            }
        }
    }

    /// Waits until it says this.
    pub fn wait(&self, wanted: &Said) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline, &format!("{wanted:?}"))? != *wanted {}
        Ok(())
    }

    fn next(&self, deadline: Instant, wanted: &str) -> Result<Said> {
        match self
            .says
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(said) => Ok(said),
            Err(RecvTimeoutError::Timeout) => bail!("waited {PATIENCE:?} for a backend to say {wanted}"),
            Err(RecvTimeoutError::Disconnected) => bail!("a backend ended before it said {wanted}"),
        }
    }

    /// Sends it a signal; one that ends it is waited for.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) -> Result<()> {
        use nix::sys::signal::Signal;

        nix::sys::signal::kill(super::run::as_pid(self.pid()), signal)
            .with_context(|| format!("sending {signal} to backend {}", self.pid()))?;
        if !matches!(signal, Signal::SIGSTOP | Signal::SIGCONT) {
            self.wait_for_end()?;
        }
        Ok(())
    }

    /// Waits until it has ended.
    pub fn wait_for_end(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        super::wait_for(
            format!("backend {} to end", child.id()),
            PATIENCE,
            || match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("it runs".to_owned()),
                Err(error) => Err(error.to_string()),
            },
        )
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
