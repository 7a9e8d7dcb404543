//! Packages of Debian's other suites: fetched with an apt of their own, and unpacked into a folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::setup::{output_of, say_and_run};

/// apt with sources, lists and a cache of its own: it reads another suite, and changes nothing of this machine's.
pub struct Apt {
    folder: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    /// Reads what a suite has; everything of it lies in `folder`.
    pub fn of(suite: &str, has_security: bool, folder: &Path) -> Result<Self> {
        let apt = folder.join("apt");
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(name)).with_context(|| format!("making {}", apt.display()))?;
        }
        let archives = Archives::of_this_machine()?;
        let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let mut sources = format!("deb {signed} {} {suite} main\n", archives.main);
        if has_security {
            let security = archives.security;
            sources += &format!("deb {signed} {security} {suite}-security main\n");
        }
        fs::write(apt.join("sources.list"), sources)?;
        let configuration = apt.join("apt.conf");
        let at = apt.display();
        fs::write(
            &configuration,
            format!(
                "Dir::Etc::SourceList \"{at}/sources.list\";\n\
                 Dir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::State::Lists \"{at}/lists\";\n\
                 Dir::State::Status \"/dev/null\";\n\
                 Dir::Cache \"{at}/cache\";\n\
                 Acquire::Check-Valid-Until \"false\";\n\
                 APT::Sandbox::User \"root\";\n"
            ),
        )?;
        let apt = Self {
            folder: folder.to_owned(),
            configuration,
        };
        apt.run("apt-get", &["update", "--quiet"])?;
        Ok(apt)
    }

    /// One of apt's programs.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("APT_CONFIG", &self.configuration)
            .current_dir(&self.folder);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        say_and_run(&mut self.command(program, arguments))
    }

    /// Fetches packages and unpacks them; the folder that is their root.
    pub fn unpack(&self, packages: &[impl AsRef<str>]) -> Result<PathBuf> {
        let mut arguments = vec!["download", "--quiet"];
        arguments.extend(packages.iter().map(AsRef::as_ref));
        self.run("apt-get", &arguments)?;
        let root = self.folder.join("root");
        fs::create_dir_all(&root)?;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                say_and_run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&root))?;
                fs::remove_file(&path)?;
            }
        }
        Ok(root)
    }
}

/// Where this machine gets Debian's packages from.
struct Archives {
    main: String,
    security: String,
}

impl Archives {
    fn of_this_machine() -> Result<Self> {
        let listed = output_of(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ]))
        .context("asking apt for this machine's sources")?;
        let of = |label: &str| {
            listed
                .lines()
                .find_map(|line| line.strip_prefix(label))
                .map(|uri| uri.trim().to_owned())
        };
        match (of("Debian Debian "), of("Debian Debian-Security ")) {
            (Some(main), Some(security)) => Ok(Self { main, security }),
            _ => bail!(
                "these come from Debian's archives, and apt on this machine knows none: run this on Debian, \
                 after `apt-get update`"
            ),
        }
    }
}

/// A file's SHA-256.
pub fn sha256(path: &Path) -> Result<String> {
    let printed = output_of(Command::new("sha256sum").arg(path))?;
    printed
        .split_whitespace()
        .next()
        .map(str::to_owned)
        .context("sha256sum printed nothing")
}
