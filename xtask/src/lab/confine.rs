//! What denies nginx connects: a program of its control group, a seccomp filter, a Landlock domain.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};

use super::{Run, memory, run::making};
use crate::maps::bpf;

/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH` (include/uapi/linux/bpf.h).
const LOAD: libc::c_long = 5;
const ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`.
const CONNECTS: [u32; 2] = [10, 11];
/// The name of the programs.
pub const PROGRAM: &str = "deny_port";

/// `LANDLOCK_ACCESS_NET_CONNECT_TCP` and `LANDLOCK_RULE_NET_PORT`, version 4 (include/uapi/linux/landlock.h).
const CONNECT_TCP: u64 = 2;
const NET_PORT: libc::c_long = 2;

/// A control group whose programs deny connects to one port; removed when dropped, with whoever is in it.
#[derive(Debug)]
pub struct DenyingGroup {
    name: String,
}

impl DenyingGroup {
    /// Puts these processes into a group that may not connect to `port`.
    pub fn new(run: &Run, pids: &[u32], port: u16) -> Result<Self> {
        let root = unified().context("no control groups of version 2 are mounted")?;
        let group = Self {
            name: run.unique_name(),
        };
        let folder = root.join(&group.name);
        let _making = making();
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        for kind in CONNECTS {
            attach_denial(&folder, kind, port)
                .with_context(|| format!("attaching a program to {}", folder.display()))?;
        }
        for pid in pids {
            fs::write(folder.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("putting process {pid} into {}", folder.display()))?;
        }
        Ok(group)
    }
}

impl Drop for DenyingGroup {
    fn drop(&mut self) {
        if let Err(error) = memory::remove(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// The first members of `union bpf_attr` for loading a program.
#[derive(Default)]
#[repr(C)]
struct LoadAttribute {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// Loads a program that answers no for one port, and attaches it: it lives as long as the group.
fn attach_denial(folder: &Path, kind: u32, port: u16) -> Result<()> {
    let instruction = |code: u8, registers: u8, offset: i16, value: u32| {
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = value.to_ne_bytes();
        u64::from_ne_bytes([code, registers, low, high, a, b, c, d])
    };
    let code = [
        // r2 = context->user_port, which is in network order
        instruction(0x61, 0x12, 24, 0),
        // r0 = 1; if r2 is another port, return it
        instruction(0xb7, 0, 0, 1),
        instruction(0x55, 2, 1, u32::from(port.to_be())),
        instruction(0xb7, 0, 0, 0),
        instruction(0x95, 0, 0, 0),
    ];
    // Before 5.11 a program's memory counts against this; later nothing is lost where it may not be raised.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let license = c"GPL";
    let mut attribute = LoadAttribute {
        kind: SOCK_ADDR,
        instructions: u32::try_from(code.len())?,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type: kind,
        ..LoadAttribute::default()
    };
    attribute.name[..PROGRAM.len()].copy_from_slice(PROGRAM.as_bytes());
    let made = bpf(LOAD, (&raw const attribute).cast(), size_of_val(&attribute)).context("loading it")?;
    // SAFETY: the kernel made this descriptor just now for us alone.
    let program = unsafe { OwnedFd::from_raw_fd(made) };
    let group = fs::File::open(folder)?;
    let attribute = [
        u32::try_from(group.as_raw_fd())?,
        u32::try_from(program.as_raw_fd())?,
        kind,
        0,
    ];
    bpf(ATTACH, attribute.as_ptr().cast(), size_of_val(&attribute))?;
    Ok(())
}

/// Whether there is a group for such programs.
#[must_use]
pub fn has_cgroups() -> bool {
    unified().is_some()
}

/// What nginx is confined by from its start on.
#[derive(Clone, Debug)]
pub enum Confinement {
    /// A seccomp filter gives EPERM for each connect() with an address of IPv6's length.
    Seccomp,
    /// A Landlock domain lets it connect to these TCP ports only.
    Landlock(Vec<u16>),
}

impl Confinement {
    /// Has the command confine itself before it becomes another program. What is returned has to live until it was started.
    pub fn apply(&self, command: &mut Command) -> Result<Option<OwnedFd>> {
        match self {
            Self::Seccomp => {
                // SAFETY: between fork and exec it makes system calls only.
                unsafe { command.pre_exec(filter_connects) };
                Ok(None)
            }
            Self::Landlock(ports) => {
                let ruleset = ruleset(ports)?;
                let number = ruleset.as_raw_fd();
                // SAFETY: as above.
                unsafe { command.pre_exec(move || restrict(number)) };
                Ok(Some(ruleset))
            }
        }
    }
}

fn result(returned: libc::c_long) -> io::Result<libc::c_long> {
    Ok(Errno::result(returned)?)
}

fn gain_no_privileges() -> io::Result<()> {
    // SAFETY: it changes a flag of this process.
    result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into()).map(drop)
}

/// A filter sees numbers: the system call's and its arguments', never the address itself.
fn filter_connects() -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Where `struct seccomp_data` has the call's number and the lower half of its third argument, the address's length.
    const NUMBER: u32 = 0;
    const THIRD: u32 = if cfg!(target_endian = "little") { 32 } else { 36 };
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        step(LOAD_WORD, NUMBER, 0),
        step(JUMP_IF, libc::SYS_connect as u32, 3),
        step(LOAD_WORD, THIRD, 0),
        step(JUMP_IF, size_of::<libc::sockaddr_in6>() as u32, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    gain_no_privileges()?;
    // SAFETY: the kernel copies the filter, which lives until it returns.
    result(
        unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        }
        .into(),
    )
    .map(drop)
}

/// A set of rules that handles connects over TCP and allows those to `ports`.
fn ruleset(ports: &[u16]) -> Result<OwnedFd> {
    // struct landlock_ruleset_attr: files, network.
    let handled: [u64; 2] = [0, CONNECT_TCP];
    // SAFETY: the kernel reads as many bytes as it is told.
    let made = result(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            handled.as_ptr(),
            size_of_val(&handled),
            0,
        )
    })
    .context("making a Landlock ruleset")?;
    // SAFETY: the kernel made this descriptor just now for us alone.
    let ruleset = unsafe { OwnedFd::from_raw_fd(i32::try_from(made)?) };
    for port in ports {
        // struct landlock_net_port_attr: what is allowed, and where.
        let rule: [u64; 2] = [CONNECT_TCP, u64::from(*port)];
        // SAFETY: the kernel reads this structure.
        result(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                NET_PORT,
                rule.as_ptr(),
                0,
            )
        })
        .context("adding a Landlock rule")?;
    }
    Ok(ruleset)
}

fn restrict(ruleset: i32) -> io::Result<()> {
    gain_no_privileges()?;
    // SAFETY: it changes this process alone.
    result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) }).map(drop)
}

/// Whether Landlock knows connects (version 4, Linux 6.7).
#[must_use]
pub fn has_landlock() -> bool {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: libc::c_long = 1;
    // SAFETY: it reads nothing and says a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            VERSION,
        )
    };
    version >= 4
}

/// Where control groups of version 2 are mounted, alone or beside those of version 1.
pub(super) fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|mount| {
        let mut fields = mount.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })
}
