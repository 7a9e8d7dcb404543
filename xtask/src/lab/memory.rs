//! A memory limit for one process, so that the OOM killer takes that process and no other.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Run, confine, run::making, wait_for};

/// Where memory control groups can be made: version 1's own tree, or version 2's with the memory controller on.
fn root() -> Option<(PathBuf, &'static str)> {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.limit_in_bytes").exists() {
        return Some((v1.to_owned(), "memory.limit_in_bytes"));
    }
    let v2 = Path::new("/sys/fs/cgroup");
    let has_memory = fs::read_to_string(v2.join("cgroup.subtree_control"))
        .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"));
    has_memory.then(|| (v2.to_owned(), "memory.max"))
}

/// Whether memory can be limited here.
#[must_use]
pub fn is_available() -> bool {
    root().is_some()
}

/// A control group with a memory limit; removed when dropped.
#[derive(Debug)]
pub struct MemoryLimit {
    name: String,
}

impl MemoryLimit {
    /// Limits one process to `bytes`.
    pub fn new(run: &Run, pid: u32, bytes: u64) -> Result<Self> {
        let Some((root, limit)) = root() else {
            bail!("no memory control groups here: mount cgroup v1 memory or enable the controller in v2");
        };
        let group = Self {
            name: run.unique_name(),
        };
        let folder = root.join(&group.name);
        let _making = making();
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(folder.join(limit), bytes.to_string())
            .with_context(|| format!("limiting {}", folder.display()))?;
        fs::write(folder.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("putting process {pid} into {}", folder.display()))?;
        Ok(group)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// Where the laboratory makes control groups.
fn trees() -> impl Iterator<Item = PathBuf> {
    let memory = root().map(|(root, _)| root);
    let unified = confine::unified().filter(|unified| Some(unified) != memory.as_ref());
    memory.clone().into_iter().chain(unified)
}

/// The control groups whose name starts so.
pub(super) fn groups(prefix: &str) -> Vec<String> {
    trees()
        .filter_map(|tree| fs::read_dir(tree).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Removes a group; the processes in it must be ending.
pub(super) fn remove(name: &str) -> Result<()> {
    for folder in trees()
        .map(|tree| tree.join(name))
        .filter(|folder| folder.exists())
    {
        remove_folder(name, &folder)?;
    }
    Ok(())
}

fn remove_folder(name: &str, folder: &Path) -> Result<()> {
    wait_for(format!("{name} to be empty"), Duration::from_secs(5), || {
        for pid in fs::read_to_string(folder.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            if let Ok(pid) = pid.parse() {
                let _ = nix::sys::signal::kill(super::run::as_pid(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        match fs::remove_dir(folder) {
            Ok(()) => Ok(()),
            Err(_) if !folder.exists() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
}
