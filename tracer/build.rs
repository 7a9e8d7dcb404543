//! Builds the BPF object of `tracer-ebpf` into `OUT_DIR/tracer`, where `kernel.rs` embeds it.
//!
//! A machine without a BPF toolchain must still build and test the pure part, so a missing toolchain is a warning and
//! an empty object, never an error; a toolchain that is there but cannot compile the object is an error.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The name under which `cargo xtask setup` links its toolchain.
const LINKED: &str = "bpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TRACER_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");

    let object = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("tracer");
    let skipped = env::var("AYA_BUILD_SKIP").is_ok_and(|value| value == "1" || value == "true");
    if skipped {
        return write_empty(&object);
    }
    let toolchain = match find_toolchain() {
        Ok(toolchain) => toolchain,
        Err(missing) => {
            println!(
                "cargo:warning=built without BPF programs: {missing}; `cargo xtask setup` installs it, until then \
                 `tracer attach` cannot watch anything"
            );
            return write_empty(&object);
        }
    };
    // aya-build passes on as a warning every line that the inner cargo prints, and the outer cargo repeats warnings on
    // every build. Quiet, the inner one prints only what matters; it is told by its environment, which a process can
    // set for a child alone.
    if env::var_os("CARGO_TERM_QUIET").is_none() {
        let myself = env::current_exe().context("finding this build script")?;
        let status = Command::new(myself)
            .env("CARGO_TERM_QUIET", "true")
            .status()
            .context("running this build script quietly")?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let package = Package {
        name: "tracer-ebpf",
        root_dir: "../tracer-ebpf",
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))
        .with_context(|| format!("building the BPF object with toolchain `{toolchain}`"))
}

/// An empty object: the program then says that it carries no BPF programs.
fn write_empty(object: &Path) -> Result<()> {
    fs::write(object, b"").with_context(|| format!("writing {}", object.display()))
}

/// The toolchain to build with, or what is missing.
fn find_toolchain() -> Result<String, String> {
    if !has_linker() {
        return Err("no bpf-linker on PATH".to_owned());
    }
    if let Ok(named) = env::var("TRACER_BPF_TOOLCHAIN") {
        return Ok(named);
    }
    if let Some(sysroot) = sysroot(LINKED) {
        println!("cargo:rerun-if-changed={}", sysroot.join("bin/rustc").display());
        return Ok(LINKED.to_owned());
    }
    if let Some(sysroot) = sysroot("nightly") {
        let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        println!("cargo:rerun-if-changed={}", core.display());
        if core.exists() {
            return Ok("nightly".to_owned());
        }
    }
    // A path that does not exist makes cargo run this script each time, so that a toolchain which is installed later
    // is found by the next build.
    println!("cargo:rerun-if-changed=there-is-no-bpf-toolchain");
    Err(format!(
        "no toolchain for BPF (neither one linked as `{LINKED}` nor a nightly with rust-src)"
    ))
}

/// Whether `bpf-linker` can be found on PATH.
fn has_linker() -> bool {
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join("bpf-linker").is_file()));
    if !found {
        println!("cargo:rerun-if-changed=there-is-no-bpf-linker");
    }
    found
}

/// The folder of an installed or linked toolchain. Asking by name must not install it.
fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env_remove("RUSTC")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let printed = String::from_utf8(output.stdout).ok()?;
    // Debian's rustc prints /usr, whatever folder it was linked from.
    let path = PathBuf::from(printed.trim());
    path.is_dir().then_some(path)
}
