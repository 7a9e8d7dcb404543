//! The laboratory and what runs scenarios in it: used by the automation (`cargo xtask`) and by the test suite.
//!
//! [`lab`] makes things happen for real (namespaces, nginx, failing backends); [`scenario`] reads what should happen
//! from a file, makes it happen under a tracer, and judges the trace. Neither knows the tracer's code: traces are read
//! as any other program would read them.

pub mod demonstration;
pub mod hunts;
pub mod lab;
pub mod maps;
pub mod scenario;
pub mod traced;

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// A program on PATH or in the administrator's folders; `php-fpm` also finds `php-fpm8.2`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = env::home_dir().map(|home| home.join(".cargo/bin"));
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .chain(cargo_bin)
        .find_map(|folder| {
            let exact = folder.join(name);
            if exact.is_file() {
                return Some(exact);
            }
            fs::read_dir(&folder).ok()?.flatten().find_map(|entry| {
                let file = entry.file_name().into_string().ok()?;
                let version = file.strip_prefix(name)?;
                let is_version =
                    !version.is_empty() && version.chars().all(|c| c.is_ascii_digit() || c == '.');
                is_version.then(|| entry.path())
            })
        })
}

/// Where this project keeps what it fetches or makes for this user.
pub fn data_folder() -> Result<PathBuf> {
    let base = match env::var_os("XDG_DATA_HOME") {
        Some(base) => PathBuf::from(base),
        None => env::home_dir()
            .context("no home folder: set HOME or XDG_DATA_HOME")?
            .join(".local/share"),
    };
    Ok(base.join("tracer"))
}

/// Works on every item, `jobs` at the same time; the results in the items' order.
pub fn in_parallel<T: Send, R: Send>(items: Vec<T>, jobs: usize, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let mut done: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let left = std::sync::Mutex::new(items.into_iter().zip(&mut done));
    let next = || left.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((item, done)) = next() {
                    *done = Some(work(item));
                }
            });
        }
    });
    drop(left);
    done.into_iter().flatten().collect()
}
