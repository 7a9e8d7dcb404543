//! A busy host: many processes, some of which hold many sockets. They end when the bench does.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xtask::lab::netns::Netns;

/// The first argument that makes this executable a holder of sockets.
const ROLE: &str = "bench-crowd";
/// The processes among which the sockets are spread.
const HOLDERS: usize = 20;
/// Of a holder's sockets, one of so many listens; the others are both ends of connections.
const PER_LISTENER: usize = 20;
/// After so many seconds an idle process ends by itself, whatever became of the bench.
const IDLE_SECONDS: &str = "600";

/// Processes and sockets, until dropped.
pub(super) struct Crowd {
    children: Vec<Child>,
    /// The sockets they hold.
    pub(super) sockets: usize,
}

impl Crowd {
    /// Starts them in the namespace and waits until every socket is there.
    pub(super) fn gather(namespace: &Netns, processes: usize, sockets: usize) -> Result<Self> {
        let myself = std::env::current_exe().context("finding this executable")?;
        let mut crowd = Self {
            children: Vec::new(),
            sockets: 0,
        };
        for _ in 0..HOLDERS {
            crowd.children.push(
                namespace.spawn(
                    Command::new(&myself)
                        .arg(ROLE)
                        .arg((sockets / HOLDERS).to_string())
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped()),
                )?,
            );
        }
        for _ in HOLDERS..processes {
            crowd.children.push(
                namespace.spawn(
                    Command::new("sleep")
                        .arg(IDLE_SECONDS)
                        .stdin(Stdio::null())
                        .stdout(Stdio::null()),
                )?,
            );
        }
        for holder in &mut crowd.children[..HOLDERS] {
            let output = holder.stdout.take().context("a holder without standard output")?;
            let mut line = String::new();
            BufReader::new(output)
                .read_line(&mut line)
                .context("listening to a holder of sockets")?;
            let held: usize = line
                .trim()
                .parse()
                .context("a holder of sockets ended before it held them")?;
            crowd.sockets += held;
        }
        ensure!(
            crowd.sockets >= sockets,
            "only {} of {sockets} sockets",
            crowd.sockets
        );
        Ok(crowd)
    }

    /// How many processes it is.
    pub(super) fn processes(&self) -> usize {
        self.children.len()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Ended already is as good.
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Becomes a holder of sockets when the arguments say so.
pub fn run_if_crowd() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ROLE) {
        return;
    }
    if let Err(error) = hold(&arguments.next().unwrap_or_default()) {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Opens so many sockets, says so, and holds them until its input ends.
fn hold(sockets: &str) -> Result<()> {
    let wanted: usize = sockets.parse().context("reading how many sockets to hold")?;
    let limit = wanted as u64 + 64;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    if soft < limit {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard.max(limit))
            .context("raising the limit of open files")?;
    }
    let listeners = (0..wanted.div_ceil(PER_LISTENER))
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<io::Result<Vec<_>>>()
        .context("opening a listener")?;
    let mut ends = Vec::new();
    for listener in listeners.iter().cycle() {
        if listeners.len() + ends.len() >= wanted {
            break;
        }
        let address = listener.local_addr().context("reading a listener's address")?;
        ends.push(TcpStream::connect(address).context("connecting")?);
        ends.push(listener.accept().context("accepting")?.0);
    }
    println!("{}", listeners.len() + ends.len());
    // What holds it is the wait, not what is read.
    io::stdin()
        .read_to_end(&mut Vec::new())
        .context("waiting for the end")?;
    Ok(())
}
