//! Faults made for real: private network namespaces, a real nginx, backends that fail on command, healthy traffic.
//!
//! Nothing here touches the host's own network, and nothing outlives the process: a [`Run`] names all it makes, so that
//! it can be removed at the end, on Ctrl-C, and, after a crash, by the next run.

pub mod backend;
pub mod client;
pub mod confine;
pub mod memory;
pub mod netns;
pub mod nginx;
mod run;
pub mod selinux;
pub mod stranger;

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::demonstration::show;

pub use run::{Run, sweep};

/// Becomes a backend, a stranger or the demonstration when the arguments say so: every program that uses the laboratory calls this first
/// in its `main`, since the laboratory starts its helpers from the running executable.
pub fn run_if_backend() {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next();
    let result = match role.as_deref() {
        Some(backend::ROLE) => backend::serve::main(arguments.next().as_deref().unwrap_or_default()),
        Some(backend::CHILD_ROLE) => {
            backend::serve::main_of_child(arguments.next().as_deref().unwrap_or_default())
        }
        Some(stranger::ROLE) => stranger::serve::main(arguments.next().as_deref().unwrap_or_default()),
        Some(show::ROLE) => show::main(arguments),
        _ => return,
    };
    if let Err(error) = result {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// The variable that says how many times slower than usual this machine is (an emulated one): deadlines are that much
/// longer.
pub const SLOWNESS: &str = "LAB_SLOWNESS";

/// How many times slower than usual this machine is, as [`SLOWNESS`] says; 1 without it.
#[must_use]
pub fn slowness() -> u32 {
    let said = std::env::var(SLOWNESS).ok();
    said.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Waits until `look` yields something; after `patience` the error names what was waited for and what was seen last.
pub fn wait_for<T>(
    what: impl fmt::Display,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let slowness = slowness();
    let patience = patience * slowness;
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                bail!("waited {patience:?} for {what}; seen: {seen}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5) * slowness),
        }
    }
}
