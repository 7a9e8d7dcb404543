//! A real server on a scenario's stage: Node.js, gunicorn, PHP-FPM, uWSGI, HAProxy, as people run them.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::stage::Names;
use crate::lab::{netns::Netns, nginx::children, wait_for};

/// How long a server may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server; killed when dropped, and with its namespace whatever it left running.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
}

impl Program {
    /// Starts one and waits until it listens.
    pub(super) fn start(
        namespace: &Netns,
        name: &str,
        program: &super::Program,
        names: &Names,
        folder: &Path,
    ) -> Result<Self> {
        for (file, text) in &program.files {
            let path = folder.join(file);
            fs::write(&path, names.fill(text)?).with_context(|| format!("writing {}", path.display()))?;
        }
        let output = fs::File::create(folder.join(format!("{name}.log"))).context("making a server's log")?;
        let child = namespace.spawn(
            Command::new("sh")
                .arg("-c")
                .arg(format!("exec {}", names.fill(&program.command)?))
                .current_dir(folder)
                .stdin(Stdio::null())
                .stdout(output.try_clone().context("sharing a server's log")?)
                .stderr(output),
        )?;
        let mut started = Self { child };
        let address = names.fill(&format!("{{{name}}}"))?;
        let port = names.fill(&format!("{{{name}.port}}"));
        wait_for(format!("{name} to listen on {address}"), PATIENCE, || {
            if let Ok(Some(status)) = started.child.try_wait() {
                let said = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
                return Err(format!("it ended with {status}: {said}"));
            }
            let listening = match (address.strip_prefix("unix:"), &port) {
                (Some(path), _) => namespace.sh(&format!("ss -Hlx src {path}")),
                (None, Ok(port)) => namespace.sh(&format!("ss -Hltn 'sport = :{port}'")),
                (None, Err(error)) => return Err(error.to_string()),
            };
            let there = children(started.child.id()).len();
            match listening {
                Ok(sockets) if !sockets.trim().is_empty() && there >= program.children => Ok(()),
                Ok(_) => Err(format!("not yet, and {there} child processes")),
                Err(error) => Err(format!("{error:#}")),
            }
        })?;
        Ok(started)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it, or to its newest child; one that ends the program is waited for.
    pub(super) fn signal(&mut self, signal: Signal, to_child: bool) -> Result<()> {
        let pid = if to_child {
            *children(self.pid())
                .iter()
                .max()
                .context("the program has no child process")?
        } else {
            self.pid()
        };
        kill(Pid::from_raw(pid.cast_signed()), signal)
            .with_context(|| format!("sending {signal} to process {pid}"))?;
        let is_a_wish = matches!(
            signal,
            Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGUSR1 | Signal::SIGUSR2
        );
        if to_child || is_a_wish {
            return Ok(());
        }
        self.wait_for_end()
    }

    /// Waits until it has ended.
    pub(super) fn wait_for_end(&mut self) -> Result<()> {
        let pid = self.pid();
        let child = &mut self.child;
        wait_for(format!("process {pid} to end"), PATIENCE, || {
            match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err("it runs".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        for child in children(self.pid()) {
            let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
        }
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
