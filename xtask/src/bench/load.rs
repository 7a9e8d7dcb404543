//! Traffic as fast as it goes: wrk where there is one, else the laboratory's own clients.

use std::{
    fmt,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    client::{Address, Keeps, Load},
    netns::Netns,
    wait_for,
};

/// How much longer than asked for a load may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What makes the requests; its connections to nginx are kept, so that what changes is the upstream's side.
pub(super) struct Loader {
    wrk: Option<PathBuf>,
    clients: u32,
}

impl Loader {
    /// The fastest there is.
    pub(super) fn find(clients: u32) -> Self {
        Self {
            wrk: xtask::find_program("wrk"),
            clients,
        }
    }

    /// Requests answered per second.
    pub(super) fn run(&self, namespace: &Netns, port: u16, length: Duration) -> Result<f64> {
        match &self.wrk {
            Some(wrk) => {
                let mut child = namespace.spawn(
                    Command::new(wrk)
                        .arg("--threads=2")
                        .arg(format!("--connections={}", self.clients))
                        .arg(format!("--duration={}s", length.as_secs()))
                        .arg(format!("--timeout={}s", PATIENCE.as_secs()))
                        .arg(format!("http://127.0.0.1:{port}/"))
                        .stdin(Stdio::null())
                        .stdout(Stdio::piped()),
                )?;
                let ended = wait_for("wrk to end", length + PATIENCE, || match child.try_wait() {
                    Ok(Some(status)) => Ok(status),
                    Ok(None) => Err("it runs".to_owned()),
                    Err(error) => Err(error.to_string()),
                });
                if ended.is_err() {
                    // Ended in between is as good.
                    let _ = child.kill();
                    let _ = child.wait();
                }
                let status = ended?;
                let mut said = String::new();
                child
                    .stdout
                    .take()
                    .context("wrk without standard output")?
                    .read_to_string(&mut said)
                    .context("reading what wrk says")?;
                ensure!(status.success(), "wrk ended with {status}: {said}");
                requests_per_second(&said)
            }
            None => {
                let address = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                let began = Instant::now();
                let load = Load::start(namespace, &address, &["/"], self.clients as usize, Keeps::All)?;
                std::thread::sleep(length);
                let answered = load.answered();
                let took = began.elapsed();
                let report = load.stop();
                ensure!(
                    report.failed.is_empty(),
                    "requests failed: {}",
                    report.failed.join("; ")
                );
                Ok(answered as f64 / took.as_secs_f64())
            }
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.wrk.is_some() { "wrk" } else { "own clients" })
    }
}

/// The figure in wrk's output, provided that nothing went wrong.
fn requests_per_second(said: &str) -> Result<f64> {
    let trouble = said
        .lines()
        .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    ensure!(
        trouble.is_none(),
        "wrk says: {}",
        trouble.unwrap_or_default().trim()
    );
    let figure: f64 = said
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))
        .with_context(|| format!("no figure in what wrk says: {said}"))?
        .trim()
        .parse()
        .context("reading wrk's figure")?;
    ensure!(figure > 0.0, "not one request was answered: {said}");
    Ok(figure)
}

#[cfg(test)]
mod tests {
    use super::requests_per_second;

    #[test]
    fn wrk_is_understood() {
        let said = "Running 3s test\n  100 requests in 3.00s, 1MB read\nRequests/sec:  12345.67\nTransfer/sec: 1MB\n";
        assert_eq!(requests_per_second(said).unwrap(), 12_345.67);
    }

    #[test]
    fn a_load_that_failed_gives_no_figure() {
        for trouble in [
            "  Non-2xx or 3xx responses: 4",
            "  Socket errors: connect 0, read 1, write 0, timeout 0",
        ] {
            let said = format!("{trouble}\nRequests/sec:  12345.67\n");
            assert!(requests_per_second(&said).is_err());
        }
        assert!(requests_per_second("Requests/sec:      0.00\n").is_err());
        assert!(requests_per_second("").is_err());
    }
}
