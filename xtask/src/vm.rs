//! `cargo xtask vm`: a stock Debian kernel in QEMU, by software emulation, with this machine's own files as its root.
//!
//! The guest sees the host's root read-only over 9p, under an overlay in memory: what it writes is gone with it, but for
//! the folder of its results. So everything that is installed and built here is there too, and one boot runs as many
//! scenarios as wanted. Nothing of the guest reaches a network: it has no device for one.

mod kernels;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    find_program, lab,
    scenario::{Need, Scenario},
};

use self::kernels::{KERNELS, Kernel, Known};
use crate::{
    play::{Part, build_tracer, root, target_folder},
    setup,
};

/// Modules by which the guest gets its root.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// The guest says something at least this often, or hangs: a scenario waits that long at most, slowness included.
const SILENCE: Duration = Duration::from_secs(900);
/// How many times slower than this machine the emulated one is, for deadlines.
const SLOWNESS: u32 = 8;
/// How many of them are played at the same time.
const JOBS: usize = 2;
/// What the guest prints when it begins with what it was booted for; before it the firmware talks.
const BEGIN: &str = "vm: begin";
/// How many last lines of the console an error shows.
const TAIL: usize = 25;

/// Options of `cargo xtask vm`.
#[derive(Clone, clap::Args)]
pub struct Args {
    /// Which kernel: 5.10, 6.1, 6.12, 6.18 or 7.2.
    kernel: String,
    /// Scenarios' names, or beginnings of them; all when none is given.
    names: Vec<String>,
    /// Run this instead of scenarios, with `sh -c` in the workspace.
    #[arg(long, conflicts_with_all = ["names", "shell"])]
    command: Option<String>,
    /// A shell for a person.
    #[arg(long, conflicts_with = "names")]
    shell: bool,
    /// Scenarios played at the same time; the guest has one processor, but much of a scenario is waiting.
    #[arg(long, default_value_t = JOBS)]
    jobs: usize,
    /// Scenarios with one tracer; without it, as many as are good for the kernel.
    #[arg(long)]
    together: Option<usize>,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Further words for the kernel's command line. Where all scenarios that are named need SELinux, it is booted with it.
    #[arg(long, default_value = "")]
    append: String,
    /// Look for a newer package of this kernel.
    #[arg(long)]
    refresh: bool,
    /// Only one of several parts of the scenarios: 2/3 is the second of three.
    #[arg(long, conflicts_with_all = ["command", "shell"])]
    part: Option<Part>,
}

impl Args {
    /// What they are when nothing is given but the kernel.
    fn of(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            names: Vec::new(),
            command: None,
            shell: false,
            jobs: JOBS,
            together: None,
            memory: 3072,
            append: String::new(),
            refresh: false,
            part: None,
        }
    }
}

/// The kernels that can be booted, by name.
pub fn names() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|kernel| kernel.name)
}

/// What the kernel has to be booted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// As distributions boot it.
    Usual,
    /// With SELinux, which takes AppArmor's place.
    Selinux,
}

impl Boot {
    /// Every way of booting it.
    pub const ALL: [Self; 2] = [Self::Usual, Self::Selinux];

    /// What this scenario needs.
    pub fn of(scenario: &Scenario) -> Self {
        if scenario.needs.contains(&Need::Selinux) {
            Self::Selinux
        } else {
            Self::Usual
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Usual => "",
            Self::Selinux => "security=selinux",
        }
    }
}

/// Gets everything that a kernel's guest needs.
pub fn get_ready(kernel: &str) -> Result<()> {
    let known = Known::by_name(kernel).with_context(|| format!("no kernel is called {kernel}"))?;
    setup::for_vm()?;
    kernels::fetch(known, false).map(drop)
}

/// What a guest left behind.
pub struct Left {
    /// Its kernel, as `uname -r` says.
    pub release: String,
    /// The folder of its results.
    pub results: PathBuf,
    /// Whether it came to its end.
    pub ended: Result<()>,
}

/// Runs scenarios for the scoreboard; that some went wrong the results say.
pub fn scenarios(kernel: &str, boot: Boot, names: Vec<String>, part: Option<Part>) -> Result<Left> {
    let args = Args {
        names,
        part,
        append: boot.words().to_owned(),
        ..Args::of(kernel)
    };
    let guest = Guest::prepare(&args)?;
    // Guests run beside each other.
    let ended = guest.watch(&args, &format!("{kernel:<5}")).map(|_status| ());
    Ok(Left {
        release: guest.kernel.version,
        results: guest.results,
        ended,
    })
}

/// Has these scenarios recorded; the folder of the recordings.
pub fn recordings(kernel: &str, names: Vec<String>) -> Result<PathBuf> {
    let mut words = vec!["/vm/bin/xtask record --tracer /vm/bin/tracer --into /vm/recordings".to_owned()];
    words.extend(names.iter().map(|name| quoted(name)));
    let args = booted_for(Args {
        names,
        ..Args::of(kernel)
    })?;
    let args = Args {
        command: Some(words.join(" ")),
        ..args
    };
    let guest = Guest::prepare(&args)?;
    let status = guest.watch(&args, "")?;
    ensure!(status == "0", "in the guest recording ended with status {status}");
    Ok(guest.results.join("recordings"))
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let args = &booted_for(args.clone())?;
    let guest = Guest::prepare(args)?;
    if args.shell {
        let status = guest.qemu(args).status().context("starting QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        return Ok(());
    }
    let status = guest.watch(args, "")?;
    println!("results  {}", guest.results.display());
    ensure!(
        status == "0",
        "in the guest the command ended with status {status}"
    );
    Ok(())
}

/// Boots the kernel as the scenarios need it that are named; those that need it otherwise are skipped there, and say so.
fn booted_for(mut args: Args) -> Result<Args> {
    let all = Scenario::read_all(&root().join("tests/scenarios"))?;
    let mut named = all
        .iter()
        .filter(|scenario| args.names.iter().any(|name| scenario.name.starts_with(name)))
        .map(Boot::of)
        .peekable();
    if named.peek().is_some() && named.all(|boot| boot == Boot::Selinux) {
        args.append = format!("{} {}", Boot::Selinux.words(), args.append);
    }
    Ok(args)
}

/// A guest that can be booted.
struct Guest {
    kernel: Kernel,
    initramfs: PathBuf,
    results: PathBuf,
}

impl Guest {
    fn prepare(args: &Args) -> Result<Self> {
        let known = Known::by_name(&args.kernel).with_context(|| {
            format!(
                "no kernel is called {}: there are {}",
                args.kernel,
                names().collect::<Vec<_>>().join(", ")
            )
        })?;
        setup::for_vm()?;
        let kernel = kernels::fetch(known, args.refresh)?;
        // A column is booted both ways, and what the first one left is not to go with the second.
        let is_selinux = args.append.contains(Boot::Selinux.words());
        let part = args.part.filter(|part| part.number > 1);
        let part = part.map_or_else(String::new, |part| format!("-part{}", part.number));
        let folder = format!("{}{}{part}", known.name, if is_selinux { "-selinux" } else { "" });
        let results = target_folder().join("vm").join(folder);
        if results.exists() {
            fs::remove_dir_all(&results).with_context(|| format!("emptying {}", results.display()))?;
        }
        // Copies, since a build meanwhile would change the guest's programs while they run.
        let programs = results.join("bin");
        fs::create_dir_all(&programs).with_context(|| format!("making {}", programs.display()))?;
        for (program, name) in [(guests_tracer()?, "tracer"), (build_xtask()?, "xtask")] {
            fs::copy(&program, programs.join(name))
                .with_context(|| format!("copying {}", program.display()))?;
        }
        fs::write(results.join("run.sh"), guest_script(&command(args)))
            .context("writing the guest's script")?;
        let initramfs = initramfs(&kernel, &results)?;
        Ok(Self {
            kernel,
            initramfs,
            results,
        })
    }

    fn qemu(&self, args: &Args) -> Command {
        println!("booting {} ({})", self.kernel.version, self.kernel.package);
        qemu(args, &self.kernel, &self.initramfs, &self.results)
    }

    /// Boots it and waits for its end; the exit status of what it was booted for.
    /// `label` begins each line that it prints.
    fn watch(&self, args: &Args, label: &str) -> Result<String> {
        watch(&mut self.qemu(args), &self.results, label)?;
        match fs::read_to_string(self.results.join("status")) {
            Ok(status) => Ok(status.trim().to_owned()),
            Err(_) => bail!(
                "the guest ended before its work was done: see {}",
                console(&self.results).display()
            ),
        }
    }
}

/// How many scenarios share a tracer.
fn together(args: &Args) -> usize {
    let of_kernel = || Known::by_name(&args.kernel).map_or(1, |known| known.together);
    args.together.unwrap_or_else(of_kernel)
}

/// What the guest is booted for.
fn command(args: &Args) -> String {
    match (&args.command, args.shell) {
        (Some(command), _) => command.clone(),
        (None, true) => "exec busybox setsid busybox cttyhack sh".to_owned(),
        (None, false) => {
            let mut words = vec![
                "/vm/bin/xtask scenario --tracer /vm/bin/tracer --keep /vm/scenarios --first-placement"
                    .to_owned(),
                format!("--jobs {} --together {}", args.jobs, together(args)),
            ];
            words.extend(args.part.map(|part| format!("--part {part}")));
            words.extend(args.names.iter().map(|name| quoted(name)));
            words.join(" ")
        }
    }
}

/// Builds the tracer for all guests of a run: the scoreboard, which is in it, changes meanwhile.
fn guests_tracer() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(built) = &*built {
        return Ok(built.clone());
    }
    Ok(built.insert(build_tracer(true)?).clone())
}

/// Builds this program as fast as it gets: in the guest everything is slow.
fn build_xtask() -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["build", "--package", "xtask", "--bin", "xtask", "--release"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "building xtask: cargo ended with {status}");
    Ok(target_folder().join("release/xtask"))
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn console(results: &Path) -> PathBuf {
    results.join("console.log")
}

/// What the guest runs once its root is there.
fn guest_script(command: &str) -> String {
    format!(
        "mount -t tmpfs tmp /tmp; mount -t tmpfs run /run\n\
         mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm\n\
         mount -t tracefs tracefs /sys/kernel/tracing; mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         echo +memory > /sys/fs/cgroup/cgroup.subtree_control\n\
         mount -t securityfs securityfs /sys/kernel/security 2>/dev/null\n\
         modprobe tun || busybox modprobe tun\n\
         ip link set lo up\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb\n\
         export {variable}={SLOWNESS} {selinux}=1\n\
         mkdir -p {root}\n\
         mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose workspace {root}\n\
         cd {root}\n\
         echo '{BEGIN}'\n\
         sh -c {command}\n\
         echo $? > /vm/status\n\
         sync\n\
         busybox poweroff -f\n",
        variable = lab::SLOWNESS,
        selinux = lab::selinux::VARIABLE,
        root = quoted(&root().to_string_lossy()),
        command = quoted(command),
    )
}

/// The first process of the guest: finds the root that QEMU shares, and goes there.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /lower /upper /new
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /modules/list); do
    $b insmod /modules/$module || echo "vm: module $module could not be loaded"
done
share="-t 9p -o trans=virtio,version=9p2000.L,msize=512000"
$b mount $share,ro,cache=loose host /lower || echo "vm: no root over 9p"
$b mount -t tmpfs -o mode=755 upper /upper; $b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /new || echo "vm: no overlay"
$b mkdir -p /new/vm /new/lib/modules
$b mount $share results /new/vm || echo "vm: no folder for results"
$b mount $share,ro,cache=loose modules /new/lib/modules || echo "vm: no modules"
for folder in proc sys dev; do $b mount --move /$folder /new/$folder; done
exec $b switch_root /new /bin/sh /vm/run.sh
"#;

/// Packs the guest's first file system: busybox, the modules for 9p, and [`INIT`].
fn initramfs(kernel: &Kernel, results: &Path) -> Result<PathBuf> {
    let folder = results.join("initramfs");
    let modules = folder.join("modules");
    fs::create_dir_all(&modules)?;
    fs::create_dir_all(folder.join("bin"))?;
    let busybox = find_program("busybox").context("no busybox: run `apt-get install busybox-static`")?;
    fs::copy(busybox, folder.join("bin/busybox")).context("copying busybox")?;
    let mut list = Vec::new();
    for path in kernel.files_of(MODULES)? {
        let name = kernels::unpack_module(&path, &modules)?;
        if !list.contains(&name) {
            list.push(name);
        }
    }
    fs::write(modules.join("list"), list.join("\n"))?;
    let init = folder.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let image = results.join("initramfs.cpio");
    let packed = Command::new("sh")
        .args([
            "-ec",
            "find . | cpio --quiet --create --format=newc > ../initramfs.cpio",
        ])
        .current_dir(&folder)
        .status()
        .context("starting cpio")?;
    ensure!(
        packed.success(),
        "packing the initramfs: cpio ended with {packed}"
    );
    fs::remove_dir_all(&folder)?;
    Ok(image)
}

/// QEMU, not started yet. `cpu max` and no KVM: the same everywhere. One processor: with two, QEMU 7.2 now and then runs
/// a tracepoint's jump while the kernel rewrites it, and the guest panics (`inet_sk_state_store`, 6.1.192).
fn qemu(args: &Args, kernel: &Kernel, initramfs: &Path, results: &Path) -> Command {
    let share = |path: &Path, tag: &str, options: &str| {
        format!(
            "local,path={},mount_tag={tag},security_model=none,multidevs=remap{options}",
            path.display()
        )
    };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .args(["-m", &args.memory.to_string()])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args([
            "-append",
            &format!(
                "console=ttyS0 edd=off no_timer_check panic=-1 quiet {}",
                args.append
            ),
        ])
        .args(["-virtfs", &share(Path::new("/"), "host", ",readonly=on")])
        // By itself, since it may lie where the guest has a file system of its own.
        .args(["-virtfs", &share(&root(), "workspace", ",readonly=on")])
        .args(["-virtfs", &share(&kernel.modules, "modules", ",readonly=on")])
        .args(["-virtfs", &share(results, "results", "")]);
    qemu
}

/// Runs QEMU to its end, shows what the guest prints, and sees a panic and a hang.
fn watch(qemu: &mut Command, results: &Path, label: &str) -> Result<()> {
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("starting QEMU")?;
    let output = child.stdout.take().context("QEMU without standard output")?;
    let (said, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(output.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if said.send(text).is_err() {
                return;
            }
        }
    });
    let path = console(results);
    let mut log = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let mut last: Vec<String> = Vec::new();
    let mut has_begun = false;
    let trouble = loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                writeln!(log, "{line}").context("writing the console's log")?;
                if has_begun {
                    println!("{label}{line}");
                } else if line.ends_with(BEGIN) {
                    has_begun = true;
                }
                let is_panic = line.contains("Kernel panic");
                last.push(line);
                if last.len() > TAIL {
                    last.remove(0);
                }
                if is_panic {
                    break Some("the guest's kernel panicked".to_owned());
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                break Some(format!("the guest has said nothing for {} s", SILENCE.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    let trouble = trouble.or_else(|| (!has_begun).then(|| "the guest never got to its work".to_owned()));
    if trouble.is_some() {
        // Ended already is as good.
        let _ = child.kill();
    }
    let status = child.wait().context("waiting for QEMU")?;
    drop(lines);
    // It ends with the pipe.
    let _ = reader.join();
    if let Some(trouble) = trouble {
        bail!("{trouble}; the end of {}:\n{}", path.display(), last.join("\n"));
    }
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}
