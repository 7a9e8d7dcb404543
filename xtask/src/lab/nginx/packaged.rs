//! The nginx of other Debian suites: unpacked with its libraries into a root of its own, and run with that root's files in
//! place of this machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::data_folder;

/// An nginx that `cargo xtask setup` fetches.
#[derive(Debug)]
pub struct Packaged {
    /// Debian's suite.
    pub suite: &'static str,
}

/// Every one of them.
pub const ALL: &[Packaged] = &[Packaged { suite: "trixie" }, Packaged { suite: "sid" }];

/// What it takes: nginx, its stream module, and every library that one of them is linked with.
pub const PACKAGES: &[&str] = &[
    "nginx",
    "libnginx-mod-stream",
    "libc6",
    "libcrypt1",
    "libpcre2-8-0",
    "libssl3t64",
    "libzstd1",
    "zlib1g",
];

/// The executable in its root, and on the machine.
const PROGRAM: &str = "usr/sbin/nginx";
/// The folders that it needs from its root; the libraries last, since nothing of this machine runs without its own.
const FOLDERS: &[&str] = &["usr/lib/nginx", LIBRARIES];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// What its version was when it was unpacked: written last.
const VERSION: &str = "version";

impl Packaged {
    /// That of a suite.
    #[must_use]
    pub fn by_suite(suite: &str) -> Option<&'static Self> {
        ALL.iter().find(|packaged| packaged.suite == suite)
    }

    /// Where it lies.
    pub fn folder(&self) -> Result<PathBuf> {
        Ok(data_folder()?.join("nginx").join(self.suite))
    }

    /// The executable, or why there is none.
    pub fn find(&self) -> Result<PathBuf, String> {
        let folder = self.folder().map_err(|error| format!("{error:#}"))?;
        if folder.join(VERSION).exists() {
            Ok(folder.join("root").join(PROGRAM))
        } else {
            Err(format!(
                "nginx of Debian's {} is not here: `cargo xtask setup` fetches it",
                self.suite
            ))
        }
    }

    /// Asks what was unpacked for its version, which shows that it runs with the libraries it came with.
    pub fn accept(&self, root: &Path) -> Result<()> {
        let output = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(root.join(LIBRARIES))
            .arg(root.join(PROGRAM))
            .arg("-v")
            .output()
            .context("starting the unpacked nginx")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the unpacked nginx does not run: {said}");
        let version = self.folder()?.join(VERSION);
        fs::write(&version, said.as_bytes()).with_context(|| format!("writing {}", version.display()))
    }
}

/// What is to be mounted where so that an unpacked nginx runs; nothing for one that is installed here.
#[must_use]
pub fn mounts(program: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Some(root) = root_of(program) else {
        return Vec::new();
    };
    std::iter::once(&PROGRAM)
        .chain(FOLDERS)
        .map(|place| (root.join(place), Path::new("/").join(place)))
        .collect()
}

/// Where an unpacked executable has its libraries: it lies as in a root, and not in this machine's.
fn root_of(program: &Path) -> Option<&Path> {
    let root = program.ancestors().nth(Path::new(PROGRAM).iter().count())?;
    let is_of_root = program.ends_with(PROGRAM) && root.parent().is_some();
    (is_of_root && root.join(LIBRARIES).is_dir()).then_some(root)
}
