//! SELinux with the distribution's own policy, on a kernel that is the laboratory's alone: a guest's.
//!
//! The policy is loaded as it is installed. It is permissive until a scenario's own step makes it enforce, so that nginx
//! can be started in its domain although the files of the guest have no labels; what is opened before stays open.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::netns::finish;

/// The variable that says that this kernel's policy may be changed, since nobody else lives on it.
pub const VARIABLE: &str = "LAB_OWNS_SELINUX";
/// The context that a service manager starts nginx in.
pub const NGINX: &str = "system_u:system_r:httpd_t:s0";
/// Where the kernel shows SELinux; the folder is there when it was booted with it.
const SELINUXFS: &str = "/sys/fs/selinux";
/// Where Debian's package puts its policy, as `policy.NUMBER`.
const POLICIES: &str = "/etc/selinux/default/policy";
/// What a reverse proxy's administrator switches on: nginx may connect to ports that are meant for HTTP.
const RELAY: &str = "httpd_can_network_relay";

/// SELinux as a scenario has it; permissive again when dropped.
#[derive(Debug)]
pub struct Selinux(());

impl Selinux {
    /// Loads the policy, if it is not loaded yet.
    pub fn load() -> Result<Self> {
        if !Path::new(SELINUXFS).join("enforce").exists() {
            finish(Command::new("mount").args(["-t", "selinuxfs", "selinuxfs", SELINUXFS]))?;
        }
        if !is_loaded() {
            write("enforce", b"0")?;
            let policy = find_policy().context("no SELinux policy is installed")?;
            let bytes = fs::read(&policy).with_context(|| format!("reading {}", policy.display()))?;
            write("load", &bytes)?;
            // Before nginx runs: a change of the policy has every open file checked again.
            write(&format!("booleans/{RELAY}"), b"1")?;
            write("commit_pending_bools", b"1")?;
        }
        ensure!(
            is_loaded(),
            "the kernel took the SELinux policy, which has no boolean {RELAY}"
        );
        Ok(Self(()))
    }
}

impl Drop for Selinux {
    fn drop(&mut self) {
        if let Err(error) = write("enforce", b"0") {
            eprintln!("SELinux goes on enforcing: {error:#}");
        }
    }
}

/// What is missing here for a scenario that needs SELinux.
pub fn available() -> Result<(), &'static str> {
    if !Path::new(SELINUXFS).exists() {
        return Err("this kernel runs without SELinux");
    }
    if std::env::var_os(VARIABLE).is_none() {
        return Err(
            "SELinux is this host's own here: its policy is changed in a guest only (`cargo xtask vm`)",
        );
    }
    match find_policy() {
        Some(_) => Ok(()),
        None => Err("no SELinux policy is installed"),
    }
}

/// A policy has booleans; without one there are none.
fn is_loaded() -> bool {
    Path::new(SELINUXFS).join("booleans").join(RELAY).exists()
}

/// The installed policy; of several the newest that the packages brought.
fn find_policy() -> Option<PathBuf> {
    let mut policies: Vec<PathBuf> = fs::read_dir(POLICIES)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("policy."))
        })
        .collect();
    policies.sort_unstable();
    policies.pop()
}

/// selinuxfs takes a value in one write.
fn write(name: &str, value: &[u8]) -> Result<()> {
    let path = Path::new(SELINUXFS).join(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let written = file
        .write(value)
        .with_context(|| format!("writing {}", path.display()))?;
    ensure!(
        written == value.len(),
        "{} took {written} of {} bytes",
        path.display(),
        value.len()
    );
    Ok(())
}
