//! A real nginx in a namespace and a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::{netns::Netns, run::as_pid, wait_for};

/// How long nginx may take to start, to follow a signal, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running nginx; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    folder: PathBuf,
}

/// How to start an nginx.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// The executable.
    pub program: &'a Path,
    /// The whole configuration.
    pub config: &'a str,
    /// Where configuration, logs and sockets go.
    pub folder: &'a Path,
    /// Whether to wait for worker processes.
    pub workers: usize,
}

impl Nginx {
    /// Starts nginx and waits until its workers are there.
    pub fn start(namespace: &Netns, start: &Start<'_>) -> Result<Self> {
        let folder = start.folder;
        let config = folder.join("nginx.conf");
        fs::write(&config, start.config).with_context(|| format!("writing {}", config.display()))?;
        for temporary in ["body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            fs::create_dir_all(folder.join("tmp").join(temporary)).context("making nginx's folders")?;
        }
        let errors = fs::File::create(folder.join("nginx.stderr")).context("making nginx.stderr")?;
        let child = namespace.spawn(
            Command::new(start.program)
                .arg("-p")
                .arg(folder)
                .arg("-e")
                .arg(folder.join("error.log"))
                .arg("-c")
                .arg(&config)
                .args(["-g", "daemon off;"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(errors),
        )?;
        let mut nginx = Self {
            child,
            folder: folder.to_owned(),
        };
        let wanted = start.workers;
        wait_for(format!("nginx with {wanted} workers"), PATIENCE, || {
            if let Ok(Some(status)) = nginx.child.try_wait() {
                let said = fs::read_to_string(nginx.folder.join("nginx.stderr")).unwrap_or_default();
                return Err(format!("nginx ended with {status}: {said}{}", nginx.error_log()));
            }
            let there = nginx.workers().len();
            if there == wanted && nginx.folder.join("nginx.pid").exists() {
                Ok(())
            } else {
                Err(format!("{there} workers"))
            }
        })?;
        Ok(nginx)
    }

    /// The master's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process ids of the master's children.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        children(self.pid())
    }

    /// Sends a signal to the master.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(as_pid(self.pid()), signal).with_context(|| format!("sending {signal} to nginx"))
    }

    /// Sends a signal to every worker.
    pub fn signal_workers(&self, signal: Signal) -> Result<()> {
        for worker in self.workers() {
            kill(as_pid(worker), signal).with_context(|| format!("sending {signal} to worker {worker}"))?;
        }
        Ok(())
    }

    /// Replaces the configuration and has nginx take it; returns once new workers are there.
    pub fn reload(&self, config: &str) -> Result<()> {
        let before = self.workers();
        fs::write(self.folder.join("nginx.conf"), config).context("writing nginx.conf")?;
        self.signal(Signal::SIGHUP)?;
        wait_for("new workers after a reload", PATIENCE, || {
            let fresh = self
                .workers()
                .into_iter()
                .filter(|worker| !before.contains(worker))
                .count();
            // As many as there were, old ones that linger not counted.
            if fresh > 0 && fresh >= before.len().min(2) {
                Ok(())
            } else {
                Err(format!("{fresh} new workers; {}", self.error_log()))
            }
        })
    }

    /// Ends nginx in an orderly way.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let child = &mut self.child;
        let status = wait_for("nginx to end", PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        ensure!(status.success(), "nginx ended with {status}");
        Ok(())
    }

    /// The error log's text.
    #[must_use]
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Workers first: a worker whose master was killed lives on.
        let _ = kill(as_pid(self.pid()), Signal::SIGSTOP);
        for worker in self.workers() {
            let _ = kill(as_pid(worker), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The living children of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let parent_of = |child: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_alive = fields.next()? != "Z";
        fields.next()?.parse().ok().filter(|_| is_alive)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|child| parent_of(*child) == Some(pid))
        .collect()
}
