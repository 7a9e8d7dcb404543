//! `cargo xtask setup`: looks at what building and testing need, says what is there, installs what is not.
//!
//! Every step asks first whether its result is already there, so a second run changes nothing.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use xtask::{data_folder, find_program, lab::nginx::packaged};

use crate::apt::Apt;

/// The toolchain's name: `tracer/build.rs` looks for it.
const TOOLCHAIN: &str = "bpf";
/// The nightly that rustup installs: its LLVM is one that Debian packages and bpf-linker links with.
const NIGHTLY: &str = "nightly-2026-05-20";
/// The bpf-linker that is known to work.
const BPF_LINKER: &str = "0.13.0";

/// Options of `cargo xtask setup`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Where the BPF toolchain comes from when it is missing.
    #[arg(long, value_enum, default_value_t)]
    bpf: BpfSource,
    /// Only say what is missing.
    #[arg(long)]
    check: bool,
}

/// Where a BPF toolchain can come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum BpfSource {
    /// rustup if it can fetch, else the distribution.
    #[default]
    Auto,
    /// A pinned nightly with rust-src.
    Rustup,
    /// Debian's rustc-web with its prebuilt core for BPF.
    Debian,
}

/// A thing that Debian packages.
struct Wanted {
    what: &'static str,
    is_there: fn() -> bool,
    packages: &'static [&'static str],
}

/// What the laboratory runs; each row is found by what it brings, so that other ways of installing it count too.
const WANTED: &[Wanted] = &[
    Wanted {
        what: "a C compiler and linker",
        is_there: || on_path("cc"),
        packages: &["build-essential"],
    },
    Wanted {
        what: "nginx",
        is_there: || on_path("nginx"),
        packages: &["nginx-light"],
    },
    Wanted {
        what: "nginx's stream module",
        is_there: || Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists(),
        packages: &["libnginx-mod-stream"],
    },
    Wanted {
        what: "ip",
        is_there: || on_path("ip"),
        packages: &["iproute2"],
    },
    Wanted {
        what: "nft",
        is_there: || on_path("nft"),
        packages: &["nftables"],
    },
    Wanted {
        what: "iptables",
        is_there: || on_path("iptables"),
        packages: &["iptables"],
    },
    Wanted {
        what: "ps and sysctl",
        is_there: || on_path("ps") && on_path("sysctl"),
        packages: &["procps"],
    },
    Wanted {
        what: "Node.js",
        is_there: || on_path("node"),
        packages: &["nodejs"],
    },
    Wanted {
        what: "gunicorn",
        is_there: || on_path("gunicorn"),
        packages: &["gunicorn"],
    },
    Wanted {
        what: "uvicorn",
        is_there: || on_path("uvicorn"),
        packages: &["uvicorn"],
    },
    Wanted {
        what: "openssl",
        is_there: || on_path("openssl"),
        packages: &["openssl"],
    },
    Wanted {
        what: "PHP-FPM",
        is_there: || find_program("php-fpm").is_some(),
        packages: &["php-fpm"],
    },
    Wanted {
        what: "uWSGI with its plugin for Python",
        is_there: || {
            find_program("uwsgi").is_some() && Path::new("/usr/lib/uwsgi/plugins/python3_plugin.so").exists()
        },
        packages: &["uwsgi-core", "uwsgi-plugin-python3"],
    },
    Wanted {
        what: "wrk",
        is_there: || find_program("wrk").is_some(),
        packages: &["wrk"],
    },
    Wanted {
        what: "HAProxy",
        is_there: || find_program("haproxy").is_some(),
        packages: &["haproxy"],
    },
];

/// What booting another kernel takes, besides.
const WANTED_BY_VM: &[Wanted] = &[
    Wanted {
        what: "QEMU",
        is_there: || on_path("qemu-system-x86_64"),
        packages: &["qemu-system-x86"],
    },
    Wanted {
        what: "a static busybox",
        is_there: || is_installed("busybox-static"),
        packages: &["busybox-static"],
    },
    Wanted {
        what: "cpio",
        is_there: || on_path("cpio"),
        packages: &["cpio"],
    },
    Wanted {
        what: "modprobe and depmod",
        is_there: || on_path("modprobe") && on_path("depmod"),
        packages: &["kmod"],
    },
    Wanted {
        what: "xz and zstd",
        is_there: || on_path("xz") && on_path("zstd"),
        packages: &["xz-utils", "zstd"],
    },
    // Files only: on this machine nothing loads it unless its kernel is booted with `security=selinux`.
    Wanted {
        what: "an SELinux policy for guests",
        is_there: || Path::new("/etc/selinux/default/policy").is_dir() && on_path("setenforce"),
        packages: &["selinux-policy-default", "selinux-utils"],
    },
];

/// Installs what booting another kernel takes.
pub fn for_vm() -> Result<()> {
    let missing: Vec<&str> = WANTED_BY_VM
        .iter()
        .filter(|wanted| !(wanted.is_there)())
        .flat_map(|wanted| wanted.packages)
        .copied()
        .collect();
    apt_install(&missing)
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let mut missing = Vec::new();
    for wanted in WANTED {
        if (wanted.is_there)() {
            println!("there    {}", wanted.what);
        } else {
            println!("missing  {}", wanted.what);
            missing.extend_from_slice(wanted.packages);
        }
    }
    if args.check {
        for packaged in packaged::ALL {
            match packaged.find() {
                Ok(_) => println!("there    nginx of Debian's {}", packaged.suite),
                Err(why) => println!("missing  {why}"),
            }
        }
        match working_toolchain() {
            Ok(name) => println!("there    BPF toolchain `{name}`"),
            Err(why) => println!("missing  BPF toolchain: {why}"),
        }
        return Ok(());
    }
    apt_install(&missing)?;
    other_nginxes();
    bpf_toolchain(args.bpf)?;
    println!("ready");
    Ok(())
}

/// Fetches the nginx of other suites; nothing but their own tests needs them.
fn other_nginxes() {
    for packaged in packaged::ALL {
        let there = match packaged.find() {
            Ok(_) => Ok(()),
            Err(why) => {
                println!("missing  {why}");
                fetch_nginx(packaged)
            }
        };
        match there {
            Ok(()) => println!("there    nginx of Debian's {}", packaged.suite),
            Err(error) => println!("         its tests will be skipped: {error:#}"),
        }
    }
}

/// Fetches a suite's nginx with the libraries it was built with.
fn fetch_nginx(packaged: &packaged::Packaged) -> Result<()> {
    let folder = packaged.folder()?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    // A version that is a little older shows as much.
    let root = Apt::of(packaged.suite, false, &folder)?.unpack(packaged::PACKAGES)?;
    packaged.accept(&root)
}

/// Makes sure that there is a toolchain for BPF.
fn bpf_toolchain(source: BpfSource) -> Result<()> {
    if source == BpfSource::Auto {
        match working_toolchain() {
            Ok(name) => {
                println!("there    BPF toolchain `{name}`");
                return Ok(());
            }
            Err(why) => println!("missing  BPF toolchain: {why}"),
        }
    }
    ensure!(
        on_path("rustup"),
        "rustup is not on PATH: install it from https://rustup.rs, then run this again"
    );
    let folder = match source {
        BpfSource::Rustup => from_rustup()?,
        BpfSource::Debian => from_debian()?,
        BpfSource::Auto => from_rustup().or_else(|error| {
            println!("         rustup could not: {error:#}");
            from_debian()
        })?,
    };
    let llvm = llvm_of(&folder.join("bin/rustc"))?;
    say_and_run(
        Command::new("rustup")
            .args(["toolchain", "link", TOOLCHAIN])
            .arg(&folder),
    )?;
    bpf_linker(llvm)?;
    let name = working_toolchain().map_err(anyhow::Error::msg)?;
    println!("there    BPF toolchain `{name}` (LLVM {llvm})");
    Ok(())
}

/// The name of a toolchain that `tracer/build.rs` would take and that can build for BPF, or what is missing.
fn working_toolchain() -> Result<String, String> {
    let mut why = format!("none is linked as `{TOOLCHAIN}`, and there is no nightly with rust-src");
    for name in [TOOLCHAIN, "nightly"] {
        let Some(sysroot) = sysroot(name) else { continue };
        let prebuilt = sysroot.join("lib/rustlib/bpfel-unknown-none").is_dir();
        let sources = sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .exists();
        if !prebuilt && !sources {
            continue;
        }
        let Some(linker) = find_program("bpf-linker") else {
            why = "bpf-linker is not on PATH".to_owned();
            continue;
        };
        let llvm = llvm_of_toolchain(name).map_err(|error| format!("{error:#}"))?;
        match linker_llvm(&linker) {
            Some(linked) if linked < llvm => {
                why = format!("bpf-linker is built with LLVM {linked}, toolchain `{name}` has LLVM {llvm}");
            }
            Some(_) | None => return Ok(name.to_owned()),
        }
    }
    Err(why)
}

/// A pinned nightly with the sources of core; yields its folder.
fn from_rustup() -> Result<PathBuf> {
    say_and_run(Command::new("rustup").args([
        "toolchain",
        "install",
        NIGHTLY,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--no-self-update",
    ]))?;
    sysroot(NIGHTLY).with_context(|| format!("rustup installed {NIGHTLY}, yet it does not run"))
}

/// Debian's toolchain with its prebuilt core for BPF, in a folder that rustup can link; yields the folder.
fn from_debian() -> Result<PathBuf> {
    apt_install(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])?;
    let folder = data_folder()?.join("bpf-toolchain");
    fs::create_dir_all(folder.join("bin")).with_context(|| format!("making {}", folder.display()))?;
    link(Path::new("/usr/bin/cargo"), &folder.join("bin/cargo"))?;
    link(Path::new("/usr/lib"), &folder.join("lib"))?;
    // aya-ebpf needs an unstable feature. In the environment the permission would also make aya-build ask for
    // build-std, for which Debian's toolchain has no sources; in a wrapper it reaches rustc alone.
    let rustc = folder.join("bin/rustc");
    let wrapper = "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec /usr/bin/rustc \"$@\"\n";
    fs::write(&rustc, wrapper).with_context(|| format!("writing {}", rustc.display()))?;
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", rustc.display()))?;
    println!("made     {}", folder.display());
    Ok(folder)
}

/// bpf-linker built with at least the LLVM of the toolchain.
fn bpf_linker(llvm: u32) -> Result<()> {
    if let Some(linker) = find_program("bpf-linker")
        && linker_llvm(&linker).is_none_or(|linked| linked >= llvm)
    {
        println!("there    {}", linker.display());
        return Ok(());
    }
    let llvm_bin = format!("/usr/lib/llvm-{llvm}/bin");
    if !Path::new(&llvm_bin).join("llvm-config").exists() {
        apt_install(&[
            &format!("llvm-{llvm}-dev"),
            &format!("libpolly-{llvm}-dev"),
            "zlib1g-dev",
            "libzstd-dev",
        ])?;
    }
    // bpf-linker's build looks for llvm-config on PATH.
    let path = env::join_paths(
        [PathBuf::from(llvm_bin)]
            .into_iter()
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    )?;
    say_and_run(
        Command::new("cargo")
            .args([
                "install",
                "bpf-linker",
                "--version",
                BPF_LINKER,
                "--locked",
                "--force",
            ])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
            .env("PATH", path),
    )
}

/// The LLVM major version that a bpf-linker is linked with; `None` when it is static or cannot be told.
fn linker_llvm(linker: &Path) -> Option<u32> {
    let listed = output_of(Command::new("ldd").arg(linker)).ok()?;
    let (_, version) = listed.split_once("libLLVM")?;
    version
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The LLVM major version of a rustc.
fn llvm_of(rustc: &Path) -> Result<u32> {
    llvm_in(&output_of(Command::new(rustc).arg("-vV"))?)
}

/// The LLVM major version of a toolchain.
fn llvm_of_toolchain(name: &str) -> Result<u32> {
    llvm_in(&output_of(rustup_run(name).args(["rustc", "-vV"]))?)
}

fn llvm_in(version: &str) -> Result<u32> {
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|llvm| llvm.split('.').next()?.parse().ok())
        .context("rustc -vV does not name its LLVM version")
}

/// The folder of an installed toolchain.
fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let printed = output_of(rustup_run(toolchain).args(["rustc", "--print", "sysroot"])).ok()?;
    Some(PathBuf::from(printed.trim()))
}

/// `rustup run NAME`; asking for a toolchain must not install it.
fn rustup_run(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", toolchain])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stderr(Stdio::null());
    command
}

/// Installs Debian packages, or says what to run.
fn apt_install(packages: &[&str]) -> Result<()> {
    let absent: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", absent.join(" "));
    if !on_path("apt-get") {
        bail!(
            "this is no Debian: install what corresponds to `{}` and run this again",
            absent.join(" ")
        );
    }
    if !is_root() {
        bail!("not root: run `sudo {by_hand}`, then this again");
    }
    let _no_services = NoServices::new()?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(&absent)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // The lists may be old or, in a fresh image, not there at all.
    if say_and_run(&mut apt()).is_err() {
        say_and_run(Command::new("apt-get").args(["update", "--quiet"]))?;
        say_and_run(&mut apt()).with_context(|| format!("installing by hand: `{by_hand}`"))?;
    }
    Ok(())
}

/// Keeps apt from starting the services it installs: the laboratory starts its own, and port 80 stays free.
struct NoServices {
    policy: Option<PathBuf>,
}

impl NoServices {
    fn new() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self { policy: None });
        }
        fs::write(&policy, "#!/bin/sh\nexit 101\n").context("writing /usr/sbin/policy-rc.d")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))
            .context("making /usr/sbin/policy-rc.d executable")?;
        Ok(Self { policy: Some(policy) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy {
            // Left behind it would keep services from starting: say so.
            if let Err(error) = fs::remove_file(policy) {
                eprintln!("remove {} by hand: {error}", policy.display());
            }
        }
    }
}

fn is_installed(package: &str) -> bool {
    output_of(
        Command::new("dpkg-query")
            .args(["--show", "--showformat=${Status}", package])
            .stderr(Stdio::null()),
    )
    .is_ok_and(|status| status.ends_with("ok installed"))
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn on_path(program: &str) -> bool {
    find_program(program).is_some()
}

/// Makes `at` a link to `target`, whatever it was before.
fn link(target: &Path, at: &Path) -> Result<()> {
    ensure!(target.exists(), "{} is not there", target.display());
    if fs::read_link(at).is_ok_and(|present| present == target) {
        return Ok(());
    }
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at).with_context(|| format!("replacing {}", at.display()))?;
    }
    symlink(target, at).with_context(|| format!("linking {}", at.display()))
}

/// Runs a command in sight of the user.
pub fn say_and_run(command: &mut Command) -> Result<()> {
    println!("run      {}", shown(command));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting `{}`", shown(command)))?;
    ensure!(status.success(), "`{}` ended with {status}", shown(command));
    Ok(())
}

/// What a command prints.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{}`", shown(command)))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{}` ended with {} {}",
        shown(command),
        output.status,
        complaint.trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("reading what `{}` prints", shown(command)))
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
