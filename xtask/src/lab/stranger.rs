//! Hosts that are really remote: addresses behind a TUN device, answered by a process that speaks just enough IP and
//! TCP. No kernel socket, listener or process of this host stands behind them, so that nothing but what comes over the
//! wire can be seen of them.

pub(super) mod serve;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::netns::Netns;

/// The first argument that makes this executable a stranger.
pub(super) const ROLE: &str = "lab-stranger";
/// The TUN device's name.
pub(super) const DEVICE: &str = "strange0";
/// nginx's address towards strangers.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The address from which routers among the strangers speak.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);

/// What a remote host does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Manner {
    /// Says nothing to anything.
    Ignore,
    /// Resets every connection attempt.
    Refuse,
    /// Answers a SYN with this ICMP error, from [`ROUTER`] or from itself.
    Icmp {
        /// The ICMP type.
        kind: u8,
        /// The ICMP code.
        code: u8,
        /// Whether a router says it, rather than the host.
        router: bool,
    },
    /// Connects and answers every request; connections are kept.
    Answer,
    /// Connects, takes the request, resets.
    Reset,
    /// Connects, takes the request, closes.
    Close,
    /// Connects, takes the request, says nothing.
    Silent,
    /// Connects, then answers nothing at all, not even with an ACK.
    Deaf,
    /// Answers with half of a body, then resets.
    HalfReset,
    /// Answers with half of a body, then closes.
    HalfClose,
    /// Answers as [`Manner::Answer`], but so many milliseconds after the SYN.
    Late(u64),
    /// The same, and SYNs get lost on the way to it: of each connection in turn as many as stands here.
    Loses(Vec<u32>),
}

/// Remote hosts by address; running until dropped.
#[derive(Debug)]
pub struct Strangers {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What strangers are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// The host at this address behaves like this from now on.
    Become(Ipv4Addr, Manner),
    /// The host forgets its connections: it answers whatever comes on them with a reset.
    Forget(Ipv4Addr),
    /// The host closes its idle connections.
    CloseIdle(Ipv4Addr),
}

impl Strangers {
    /// Puts strangers behind a namespace.
    pub fn start(namespace: &Netns, hosts: &BTreeMap<Ipv4Addr, Manner>) -> Result<Self> {
        namespace.sh(&format!(
            "ip tuntap add {DEVICE} mode tun; ip addr add {HERE}/24 dev {DEVICE}; ip link set {DEVICE} up"
        ))?;
        let myself = std::env::current_exe().context("finding this executable")?;
        let mut child = namespace.spawn(
            Command::new(myself)
                .arg(ROLE)
                .arg(serde_json::to_string(hosts)?)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )?;
        let input = child.stdin.take().context("a stranger without standard input")?;
        let output = child
            .stdout
            .take()
            .context("a stranger without standard output")?;
        let mut strangers = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        strangers.heard()?;
        Ok(strangers)
    }

    /// Changes what a host does.
    pub fn change(&mut self, host: Ipv4Addr, manner: Manner) -> Result<()> {
        self.tell(&Order::Become(host, manner))
    }

    /// Has a host forget its connections.
    pub fn forget(&mut self, host: Ipv4Addr) -> Result<()> {
        self.tell(&Order::Forget(host))
    }

    /// Has a host close its idle connections.
    pub fn close_idle(&mut self, host: Ipv4Addr) -> Result<()> {
        self.tell(&Order::CloseIdle(host))
    }

    fn tell(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        self.input
            .write_all(line.as_bytes())
            .context("telling the strangers")?;
        self.heard()
    }

    fn heard(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("listening to the strangers")?;
        if line != "ok\n" {
            bail!("the strangers said `{}`", line.trim());
        }
        Ok(())
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
