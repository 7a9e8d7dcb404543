//! Stock Debian kernels: from which suite, fetched once, checked at every use.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use xtask::data_folder;

use crate::{
    apt::{Apt, sha256},
    setup::{output_of, say_and_run},
};

/// A kernel by its short name, and where Debian has it.
pub struct Known {
    /// As it is asked for.
    pub name: &'static str,
    /// Debian's suite.
    suite: &'static str,
    /// Whether security updates of that suite are a suite of their own.
    has_security: bool,
    /// How many scenarios share a tracer there: loading its programs takes longer than a scenario, but where the kernel
    /// preempts everything a busier machine skips more of them.
    pub together: usize,
}

/// Every kernel that `cargo xtask vm` boots: one line each.
pub const KERNELS: &[Known] = &[
    Known {
        name: "5.10",
        suite: "bullseye",
        has_security: true,
        together: 16,
    },
    Known {
        name: "6.1",
        suite: "bookworm",
        has_security: true,
        together: 16,
    },
    Known {
        name: "6.12",
        suite: "trixie",
        has_security: true,
        together: 16,
    },
    Known {
        name: "6.18",
        suite: "trixie-backports",
        has_security: false,
        together: 16,
    },
    Known {
        name: "7.2",
        suite: "sid",
        has_security: false,
        together: 8,
    },
];

impl Known {
    /// The kernel that is called so.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }
}

/// A kernel on this machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`.
    pub version: String,
    /// The package and its version.
    pub package: String,
    /// The image to boot.
    pub image: PathBuf,
    /// The folder that becomes `/lib/modules`.
    pub modules: PathBuf,
    /// The image's SHA-256 when it was unpacked.
    sha256: String,
}

/// The kernel, fetched when it is not there yet or `refresh` asks for the newest.
pub fn fetch(known: &Known, refresh: bool) -> Result<Kernel> {
    let folder = data_folder()?.join("kernels").join(known.name);
    let record = folder.join("kernel.json");
    if !refresh && let Ok(text) = fs::read(&record) {
        let kernel: Kernel = serde_json::from_slice(&text).with_context(|| {
            format!(
                "reading {}: remove it to fetch the kernel again",
                record.display()
            )
        })?;
        ensure!(
            sha256(&kernel.image)? == kernel.sha256,
            "{} is not what was unpacked: fetch it again with --refresh",
            kernel.image.display()
        );
        return Ok(kernel);
    }
    println!("fetching kernel {} from Debian's {}", known.name, known.suite);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    let apt = Apt::of(known.suite, known.has_security, &folder)?;
    let package = newest(&apt, known)?;
    // Newer kernels are several packages; those that the image needs by its own version belong to it.
    let mut packages = vec![package.clone()];
    packages.extend(parts(&apt, &package)?);
    let root = apt.unpack(&packages)?;
    let (image, version) = image_in(&root)?;
    // Since trixie /lib is /usr/lib in packages too.
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|folder| root.join(folder))
        .find(|folder| folder.join(&version).is_dir())
        .with_context(|| format!("{package} brought no modules of {version}"))?;
    let base = base_of(&modules)?;
    say_and_run(Command::new("depmod").arg("--basedir").arg(base).arg(&version))?;
    let kernel = Kernel {
        sha256: sha256(&image)?,
        version,
        package,
        image,
        modules,
    };
    fs::write(&record, serde_json::to_vec_pretty(&kernel)?)
        .with_context(|| format!("writing {}", record.display()))?;
    Ok(kernel)
}

/// The image of an unpacked kernel, and its version: in `/boot`, or since 7.2 beside its modules.
fn image_in(root: &Path) -> Result<(PathBuf, String)> {
    let boot = root.join("boot");
    let (image, version) = if boot.is_dir() {
        let image = only(&boot, "vmlinuz-")?;
        let name = image.file_name().and_then(|name| name.to_str());
        let version = name
            .and_then(|name| name.strip_prefix("vmlinuz-"))
            .map(str::to_owned);
        (image, version)
    } else {
        let folder = only(&root.join("usr/lib/modules"), "")?;
        let version = folder
            .file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned);
        (folder.join("vmlinuz"), version)
    };
    Ok((image, version.context("a kernel image without a version")?))
}

/// The folder in which depmod and modprobe find `lib/modules`.
fn base_of(modules: &Path) -> Result<&Path> {
    modules
        .parent()
        .and_then(Path::parent)
        .context("modules without a root")
}

impl Kernel {
    fn has_module(&self, module: &str) -> Result<bool> {
        let path = self.modules.join(&self.version).join("modules.dep");
        let listed = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let file = format!("/{module}.ko");
        Ok(listed
            .lines()
            .filter_map(|line| line.split(':').next())
            .any(|path| path.contains(&file)))
    }

    /// Files of modules and of what they need, in the order in which they are to be loaded.
    pub fn files_of(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let base = base_of(&self.modules)?;
        // Debian's 7.2 ships no list of what is built in: what is not among its modules must be.
        let knows_builtin = self.modules.join(&self.version).join("modules.builtin").exists();
        let mut files = Vec::new();
        for module in modules {
            if !knows_builtin && !self.has_module(module)? {
                println!("{}: no module {module}, so it should be built in", self.version);
                continue;
            }
            let listed = output_of(Command::new("modprobe").arg("--dirname").arg(base).args([
                "--set-version",
                &self.version,
                "--show-depends",
                module,
            ]))
            .with_context(|| format!("{} has no module {module}", self.version))?;
            // "builtin NAME" needs no loading.
            for path in listed.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let path = PathBuf::from(path.trim());
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

/// Puts a module, decompressed, into a folder; its name there.
pub fn unpack_module(path: &Path, folder: &Path) -> Result<String> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .context("a module without a name")?;
    let (plain, program) = match (name.strip_suffix(".xz"), name.strip_suffix(".zst")) {
        (Some(plain), _) => (plain, Some("xz")),
        (_, Some(plain)) => (plain, Some("zstd")),
        (None, None) => (name, None),
    };
    let bytes = match program {
        Some(program) => {
            let unpacked = Command::new(program)
                .args(["--decompress", "--stdout"])
                .arg(path)
                .output()
                .with_context(|| format!("starting {program}"))?;
            ensure!(unpacked.status.success(), "{program} could not unpack {name}");
            unpacked.stdout
        }
        None => fs::read(path).with_context(|| format!("reading {}", path.display()))?,
    };
    fs::write(folder.join(plain), bytes).with_context(|| format!("unpacking {name}"))?;
    Ok(plain.to_owned())
}

/// The package of this kernel's generic flavour with the highest version.
fn newest(apt: &Apt, known: &Known) -> Result<String> {
    let pattern = format!(
        "^linux-image-{}[.-][.0-9+~deb-]*-amd64$",
        known.name.replace('.', "\\.")
    );
    let found = output_of(&mut apt.command("apt-cache", &["search", "--names-only", &pattern]))?;
    let mut packages: Vec<&str> = found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|package| !package.contains("cloud") && !package.contains("-rt-"))
        .collect();
    packages.sort_by_key(|package| numbers(package));
    let newest = packages
        .last()
        .with_context(|| format!("Debian's {} has no kernel {}", known.suite, known.name))?;
    Ok((*newest).to_owned())
}

/// Further packages of the same kernel.
fn parts(apt: &Apt, package: &str) -> Result<Vec<String>> {
    let depends = output_of(&mut apt.command(
        "apt-cache",
        &[
            "depends",
            "--important",
            "--no-recommends",
            "--no-suggests",
            package,
        ],
    ))?;
    Ok(depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
        .map(str::to_owned)
        .collect())
}

/// The numbers in a package's name, by which versions are ordered.
fn numbers(package: &str) -> Vec<u64> {
    package
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The only file in a folder whose name begins so.
fn only(folder: &Path, begins: &str) -> Result<PathBuf> {
    let found: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("looking into {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(begins))
        })
        .collect();
    match &found[..] {
        [one] => Ok(one.clone()),
        _ => bail!(
            "{} files begin with {begins} in {}",
            found.len(),
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let mut packages = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-10-amd64",
        ];
        packages.sort_by_key(|package| numbers(package));
        assert_eq!(packages[2], "linux-image-6.1.0-56-amd64");
    }
}
