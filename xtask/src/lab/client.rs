//! Clients of nginx: single requests whose every byte is under control, and steady healthy traffic.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::netns::Netns;

/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where nginx listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection to nginx.
pub struct Client {
    stream: Box<dyn Stream>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body came to its announced end.
    pub is_whole: bool,
    /// The body, as far as it came.
    pub body: String,
}

impl Client {
    /// Connects from within a namespace.
    pub fn connect(namespace: &Netns, address: &Address) -> Result<Self> {
        namespace.enter(|| Self::connect_here(address))?
    }

    /// Connects from where this thread is.
    fn connect_here(address: &Address) -> Result<Self> {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream =
                    TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream =
                    UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self { stream })
    }

    /// Sends a request with its whole body.
    pub fn send(&mut self, method: &str, path: &str, body: usize, keep: bool) -> Result<()> {
        self.send_head(method, path, body, keep)?;
        self.send_body(body);
        Ok(())
    }

    /// Sends a request without the body it announces.
    pub fn send_head(&mut self, method: &str, path: &str, body: usize, keep: bool) -> Result<()> {
        let connection = if keep { "keep-alive" } else { "close" };
        let length = if body > 0 || method == "POST" {
            format!("Content-Length: {body}\r\n")
        } else {
            String::new()
        };
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: lab\r\n{length}Connection: {connection}\r\n\r\n");
        self.stream
            .write_all(head.as_bytes())
            .context("sending a request")
    }

    /// Sends these bytes.
    pub fn send_text(&mut self, text: &str) -> Result<()> {
        self.stream
            .write_all(text.as_bytes())
            .context("sending a request")
    }

    /// Sends so much of a body.
    pub fn send_body(&mut self, bytes: usize) {
        let block = [b'b'; 16 * 1024];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(block.len());
            // nginx may answer, and close, before it has taken the whole body.
            if self.stream.write_all(&block[..n]).is_err() {
                break;
            }
            left -= n;
        }
    }

    /// Reads what there is; a wait with a limit ends at a signal, too.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Waits for some of a response.
    pub fn await_bytes(&mut self) -> Result<()> {
        let n = self.read(&mut [0; 16 * 1024]).context("reading a response")?;
        ensure!(n > 0, "the connection ended before a response");
        Ok(())
    }

    /// Reads a response.
    pub fn receive(&mut self) -> Result<Response> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            let n = self.read(&mut buffer).context("reading a response")?;
            ensure!(
                n > 0,
                "the connection ended before a response: {:?}",
                String::from_utf8_lossy(&bytes)
            );
            bytes.extend_from_slice(&buffer[..n]);
        };
        let header = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = header
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("no status in {header:?}"))?;
        let lower = header.to_lowercase();
        let announced: Option<usize> = lower
            .split_once("content-length:")
            .and_then(|(_, value)| value.lines().next()?.trim().parse().ok());
        let is_chunked = lower.contains("transfer-encoding: chunked");
        let is_whole = loop {
            let have = bytes.len() - end;
            let is_whole = match announced {
                Some(length) => have >= length,
                None => is_chunked && bytes.ends_with(b"0\r\n\r\n"),
            };
            if is_whole {
                break true;
            }
            match self.read(&mut buffer) {
                // Without a length the end of the stream is the end of the body.
                Ok(0) => break announced.is_none() && !is_chunked,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!("a response that stalled after {} bytes", bytes.len())
                }
                Err(_) => break false,
            }
        };
        let body = String::from_utf8_lossy(&bytes[end..]).into_owned();
        Ok(Response {
            status,
            is_whole,
            body,
        })
    }
}

/// Healthy traffic: so many clients, each with a request under way at every moment.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    rest_ms: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

/// Which clients keep their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Every other one.
    Half,
    /// All.
    All,
    /// None.
    None,
}

/// What became of healthy traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests answered with 200 and a whole body.
    pub answered: u64,
    /// What went wrong otherwise.
    pub failed: Vec<String>,
}

impl Load {
    /// Starts `clients` clients; they take the paths in turn.
    pub fn start(
        namespace: &Netns,
        address: &Address,
        paths: &[&str],
        clients: usize,
        keeps: Keeps,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let rest_ms = Arc::new(AtomicU64::new(0));
        let clients = namespace.enter(|| {
            // Threads are born into the namespace of the thread that starts them.
            (0..clients)
                .map(|number| {
                    let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                    let rest_ms = Arc::clone(&rest_ms);
                    let address = address.clone();
                    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
                    std::thread::Builder::new()
                        .stack_size(256 * 1024)
                        .spawn(move || {
                            let keep = match keeps {
                                Keeps::Half => number.is_multiple_of(2),
                                Keeps::All => true,
                                Keeps::None => false,
                            };
                            let rest = || Duration::from_millis(rest_ms.load(Ordering::Relaxed));
                            ask_until(&stop, &answered, rest, &address, &paths, number / 2, keep)
                        })
                        .context("starting a client")
                })
                .collect::<Result<Vec<_>>>()
        })??;
        Ok(Self {
            stop,
            answered,
            rest_ms,
            clients,
        })
    }

    /// From now on each client rests so long after an answer, in whole milliseconds.
    pub fn rest(&self, rest: Duration) {
        let rest_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        self.rest_ms.store(rest_ms, Ordering::Relaxed);
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Lets every client finish its request, then tells how it went.
    pub fn stop(mut self) -> LoadReport {
        self.end();
        let failed = self
            .clients
            .drain(..)
            .flat_map(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| vec!["a client panicked".to_owned()])
            })
            .collect();
        LoadReport {
            answered: self.answered(),
            failed,
        }
    }

    /// Lets no client begin another request.
    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in &self.clients {
            client.thread().unpark();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn ask_until(
    stop: &AtomicBool,
    answered: &AtomicU64,
    rest: impl Fn() -> Duration,
    address: &Address,
    paths: &[String],
    first: usize,
    keep: bool,
) -> Vec<String> {
    let mut failed = Vec::new();
    let mut kept: Option<Client> = None;
    let mut turn = first;
    while !stop.load(Ordering::SeqCst) {
        let path = &paths[turn % paths.len()];
        turn += 1;
        let result = kept
            .take()
            .map_or_else(|| Client::connect_here(address), Ok)
            .and_then(|mut client| {
                client.send("GET", path, 0, keep)?;
                let response = client.receive()?;
                Ok((client, response))
            });
        match result {
            Ok((client, response)) if response.status == 200 && response.is_whole => {
                answered.fetch_add(1, Ordering::Relaxed);
                kept = keep.then_some(client);
            }
            Ok((_, response)) => failed.push(format!("{path}: {response:?}")),
            Err(error) => failed.push(format!("{path}: {error:#}")),
        }
        if failed.len() > 20 {
            // Something is wrong throughout; going on would only spin.
            break;
        }
        let rest = rest();
        if !rest.is_zero() {
            // Woken when it is over.
            std::thread::park_timeout(rest);
        }
    }
    failed
}
