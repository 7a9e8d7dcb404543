//! The kernel half as user space sees it: loading, attaching, reading records, taking snapshots. The only module
//! that names aya.

pub mod layout;
pub mod plan;
pub mod ring;
pub mod snapshot;
pub mod symbols;
pub mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::IntoRawFd as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, FEntry, FExit, Iter, KProbe, Program, ProgramError, UProbe, uprobe::UProbeScope,
    },
};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
    unistd::close,
};
use tracer_ebpf::{
    COMM_LEN, DROP_PLACES, DROP_REASONS, Endpoint, EndpointUse, NEIGHBOUR_PLACE, Settings, SignalSent,
    WANTED_BY_PLACE, WANTED_OF_UDP, Worker, conn, counter, switch, understudy,
};
use zerocopy::IntoBytes as _;

use self::{
    layout::Layout,
    plan::{Attach, Hook, PLAN, REQUESTS, UNIX_CLOSES, WANTED_DROPS},
};
use crate::{
    event::{self, LossClass},
    model::HookStatus,
};

/// The BPF object, empty when the tracer was built without a BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer"));

/// What the name of a program's understudy ends with; a number may follow.
const NESTED: &str = "_nested";

/// What the programs are loaded with.
#[derive(Clone, Debug, Default)]
pub struct KernelOptions {
    /// Ids of hooks to leave out.
    pub without: BTreeSet<String>,
    /// Task names that make a process an nginx when it executes.
    pub names: Vec<String>,
    /// Only what nginx's own processes execute can become one of them.
    pub by_parentage: bool,
    /// Executables whose log function is heard, as paths that lead to the right inode (`/proc/PID/exe`).
    pub executables: Vec<(PathBuf, Voice)>,
    /// The beginnings of requests and answers are read.
    pub takes_requests: bool,
    /// The programs speak of themselves.
    pub verbose: bool,
}

/// Which form an executable's log function has: forks have changed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Voice {
    /// nginx's, and that of most others.
    #[default]
    Nginx,
    /// freenginx's since 1.27.2.
    Freenginx,
    /// Angie's since 1.12.
    Angie,
}

impl Voice {
    const ALL: [Self; 3] = [Self::Nginx, Self::Freenginx, Self::Angie];

    fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx_logs",
            Self::Freenginx => "freenginx_logs",
            Self::Angie => "angie_logs",
        }
    }
}

/// The loaded and attached programs; dropping it detaches and unloads everything.
pub struct Kernel {
    ebpf: Ebpf,
    /// What the running kernel looks like.
    pub layout: Layout,
    /// Kernel functions by their first address, an empty name behind each: only where drops have no reasons.
    pub symbols: BTreeMap<u64, String>,
    status: Vec<HookStatus>,
    uprobe_loaded: bool,
    heard: BTreeSet<PathBuf>,
    preemption: Preemption,
    reads_registers: bool,
    /// How often understudies worked while their program was not attached yet.
    stood_in_alone: [u64; understudy::N as usize],
    missed: BTreeMap<String, u64>,
    counted: [u64; counter::N as usize],
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// What cuts a connection into exchanges where sends and reads do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncut {
    /// No connections: it is a peer over UDP, and other uses of the address go before.
    Datagrams,
    /// Nothing: one exchange for the whole connection.
    Whole,
    /// An answer that was passed on to the client.
    ByAnswer,
    /// The header of a request in HTTP/2, where what is sent is read; otherwise nothing.
    ByHeaders,
}

/// The number of `sendto`, which nginx's send() is.
const SENDTO: u32 = nix::libc::SYS_sendto as u32;
/// The number of `close`.
const CLOSE: u32 = nix::libc::SYS_close as u32;
/// The number of `writev`, by which nginx sends a request.
const WRITEV: u32 = nix::libc::SYS_writev as u32;
/// The number of `recvfrom`, which nginx's recv() is, by which it reads the beginning of an answer.
const RECVFROM: u32 = nix::libc::SYS_recvfrom as u32;

/// `--without` named a hook that is not in the plan.
#[derive(Debug, thiserror::Error)]
#[error("--without {given}: no such hook; there are {known}")]
pub struct UnknownHook {
    given: String,
    known: String,
}

/// `true` when this build carries BPF programs.
#[must_use]
pub fn has_programs() -> bool {
    !OBJECT.is_empty()
}

/// The loaded programs that may act as a security module, whoever loaded them; `None`: they cannot be listed.
#[must_use]
pub fn lsm_programs() -> Option<Vec<event::Program>> {
    /// `BPF_PROG_TYPE_LSM` (include/uapi/linux/bpf.h).
    const LSM: u32 = 29;
    let is_gone = |error: &ProgramError| {
        let ProgramError::SyscallError(error) = error else {
            return false;
        };
        error.io_error.kind() == std::io::ErrorKind::NotFound
    };
    let mut found = Vec::new();
    for program in aya::programs::loaded_programs() {
        match program {
            Ok(program) if program.program_type() as u32 == LSM => found.push(event::Program {
                id: program.id(),
                name: String::from_utf8_lossy(program.name()).into_owned(),
            }),
            Ok(_) => {}
            // It went while the list was read.
            Err(error) if is_gone(&error) => {}
            Err(_) => return None,
        }
    }
    Some(found)
}

impl Kernel {
    /// Loads and attaches all that this kernel allows.
    ///
    /// # Errors
    /// A build without programs, no BTF, missing privilege, or a required hook that cannot be attached: one line.
    pub fn load(options: &KernelOptions) -> Result<Self> {
        if !has_programs() {
            bail!(
                "this tracer was built without BPF programs; `cargo xtask setup` installs what the build needs"
            );
        }
        let unknown: Vec<&str> = options
            .without
            .iter()
            .map(String::as_str)
            .filter(|id| !PLAN.iter().any(|hook| hook.sees == *id))
            .collect();
        if !unknown.is_empty() {
            let known: Vec<&str> = PLAN.iter().map(|hook| hook.sees).collect();
            return Err(UnknownHook {
                given: unknown.join(", "),
                known: known.join(", "),
            }
            .into());
        }
        let layout = Layout::read()?;
        let places = if layout.drop_reasons.is_empty() {
            symbols::read(&DROP_PLACES)?
        } else {
            // Reasons say more than places, but for a silent IPv6 neighbour the kernel gives none.
            symbols::read(&[NEIGHBOUR_PLACE]).unwrap_or_default()
        };
        let settings = settings(&layout, options, &places);
        let btf = Btf::from_sys_fs().context("reading the kernel's BTF")?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", layout.offsets.as_bytes(), true)
            .override_global("SETTINGS", settings.as_bytes(), true)
            .load(OBJECT)
            .context("loading the BPF object (needs CAP_BPF and CAP_PERFMON, or root)")?;
        let mut names: HashMap<_, [u8; COMM_LEN], u8> = take(&mut ebpf, "NAMES")?;
        for name in &options.names {
            names
                .insert(comm(name), 1, 0)
                .context("filling the table of names")?;
        }
        let mut kernel = Self {
            ebpf,
            layout,
            symbols: places
                .iter()
                .flat_map(|(name, (begin, end))| [(*begin, (*name).to_owned()), (*end, String::new())])
                .collect(),
            status: Vec::new(),
            uprobe_loaded: false,
            heard: BTreeSet::new(),
            preemption: Preemption::default(),
            reads_registers: false,
            stood_in_alone: [0; understudy::N as usize],
            missed: BTreeMap::new(),
            counted: [0; counter::N as usize],
        };
        kernel.let_a_program_tell(&btf)?;
        for hook in PLAN {
            let status = if options.without.contains(hook.sees) {
                Err("left out with --without".to_owned())
            } else if hook.sees == REQUESTS {
                kernel.requests(options)
            } else if hook.sees == "drops"
                && kernel.layout.drop_reasons.is_empty()
                && kernel.symbols.is_empty()
            {
                Err("this kernel gives no reasons for drops and hides their places (sysctl kernel.kptr_restrict)".to_owned())
            } else {
                kernel.attach_hook(hook, &btf, &options.executables)
            };
            if hook.required
                && let Err(why) = &status
            {
                bail!("cannot see {}: {why}", hook.shows);
            }
            kernel.status.push(match status {
                Ok(how) => HookStatus {
                    sees: hook.sees.to_owned(),
                    how: Some(how),
                    why_not: None,
                    without: hook.without.to_owned(),
                },
                Err(why) => HookStatus {
                    sees: hook.sees.to_owned(),
                    how: None,
                    why_not: Some(why),
                    without: hook.without.to_owned(),
                },
            });
        }
        if kernel
            .status
            .iter()
            .any(|hook| hook.sees == UNIX_CLOSES && hook.how.is_some())
        {
            kernel
                .switches()?
                .set(switch::UNIX_CLOSES, 1, 0)
                .context("telling the programs that they see unix sockets close")?;
        }
        // A program may have been skipped before its understudy was there. Nothing was followed yet, and what is open or
        // listens is asked only from now on: nothing is lost.
        kernel.newly_missed()?;
        Ok(kernel)
    }

    /// What can be seen.
    #[must_use]
    pub fn status(&self) -> &[HookStatus] {
        &self.status
    }

    /// How the beginnings of requests and answers are read, or why they are not; `bytes` is attached by now.
    fn requests(&self, options: &KernelOptions) -> Result<String, String> {
        let bytes = self.status.iter().find(|hook| hook.sees == "bytes");
        let bytes = bytes.and_then(|hook| hook.how.as_deref()).unwrap_or_default();
        if !options.takes_requests {
            Err("left out with --capture off".to_owned())
        } else if !self.reads_registers {
            Err("the arguments of a system call were not found on this kernel".to_owned())
        } else if !bytes.contains("send") {
            Err("what nginx sends is not seen".to_owned())
        } else {
            Ok("the arguments of writev and recvfrom".to_owned())
        }
    }

    /// Whether the arguments of a system call were found: until then nothing is made of them.
    #[must_use]
    pub fn reads_registers(&self) -> bool {
        self.reads_registers
    }

    /// Lets a program tell how this kernel does things, on a socket that is closed for it.
    ///
    /// Whether a task can preempt another one in a tracepoint's program. In a function's nothing keeps it from that but a
    /// kernel that does not preempt at all, as one without `preempt_schedule` (one that could but is told not to, as
    /// `preempt=voluntary`, cannot be told from here).
    ///
    /// And where the registers of a system call are: this close, and of this descriptor, must be what they say.
    fn let_a_program_tell(&mut self, btf: &Btf) -> Result<()> {
        const PROGRAM: &str = "kernel_told";
        /// At least so high a number the descriptor has: a word that is not everywhere in memory.
        const DISTINCT: i32 = 700;
        self.attach_program(PROGRAM, Attach::Tracepoint("tcp_destroy_sock"), btf, &[])
            .map_err(|error| anyhow!("cannot see connections: {}", one_line(PROGRAM, &error)))?;
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("opening a socket")?;
        // Where no more than so many files may be open, its own number has to do.
        let closed = match fcntl(&socket, FcntlArg::F_DUPFD_CLOEXEC(DISTINCT)) {
            Ok(number) => {
                drop(socket);
                number
            }
            Err(_) => socket.into_raw_fd(),
        };
        self.switches()?
            .set(switch::CLOSED, u32::try_from(closed).unwrap_or(0), 0)
            .context("telling a program what is closed")?;
        close(closed).context("closing a socket")?;
        self.unload(PROGRAM);
        let functions = self.layout.is_preemptible;
        let mut switches = self.switches()?;
        let tracepoints = switches.get(&switch::PREEMPTIBLE, 0)? != 0;
        let registers = switches.get(&switch::REGISTERS, 0)?;
        switches
            .set(switch::FUNCTIONS_PREEMPTIBLE, u32::from(functions), 0)
            .context("telling the programs that they can be preempted")?;
        self.reads_registers = registers != 0;
        self.preemption = Preemption {
            tracepoints,
            functions,
        };
        log::info!(
            "programs can be preempted: {:?}; registers at {registers:#x}",
            self.preemption
        );
        Ok(())
    }

    fn switches(&mut self) -> Result<Array<&mut MapData, u32>> {
        let map = self
            .ebpf
            .map_mut("SWITCHES")
            .context("no map SWITCHES in the object")?;
        Ok(Array::try_from(map)?)
    }

    fn attach_hook(
        &mut self,
        hook: &Hook,
        btf: &Btf,
        executables: &[(PathBuf, Voice)],
    ) -> Result<String, String> {
        let mut whys: Vec<String> = Vec::new();
        for way in hook.ways {
            match self.attach_way(way, btf, executables) {
                Ok(()) => {
                    let points: Vec<String> = way.iter().map(|(_, attach)| attach.describe()).collect();
                    if !whys.is_empty() {
                        log::info!("{}: not as on newer kernels: {}", hook.sees, whys.join("; "));
                    }
                    return Ok(points.join(", "));
                }
                Err(why) if whys.contains(&why) => {}
                Err(why) => whys.push(why),
            }
        }
        Err(whys.join("; "))
    }

    fn attach_way(
        &mut self,
        way: &'static [(&'static str, Attach)],
        btf: &Btf,
        executables: &[(PathBuf, Voice)],
    ) -> Result<(), String> {
        for (_, attach) in way {
            if let Attach::Tracepoint(name) = attach
                && !self.layout.tracepoints.contains_key(*name)
            {
                return Err(format!("this kernel has no tracepoint {name}"));
            }
            if let Attach::Fentry(name) | Attach::Fexit(name) = attach
                && !self.layout.functions.contains_key(*name)
            {
                return Err(format!("this kernel's BTF has no function {name}"));
            }
        }
        let mut attached: Vec<String> = Vec::new();
        for (program, attach) in with_understudies(way, self.preemption) {
            if let Err(error) = self.attach_program(&program, attach, btf, executables) {
                for program in attached {
                    self.unload(&program);
                }
                return Err(format!("{}: {}", attach.describe(), one_line(&program, &error)));
            }
            attached.push(program);
        }
        for (program, attach) in way {
            if let Attach::Fentry(_) | Attach::Fexit(_) = attach
                && let Some(index) = understudy::NAMES.iter().position(|known| known == program)
            {
                // Asked of a map that is there.
                self.stood_in_alone[index] = self.stood_in(index).unwrap_or(0);
            }
        }
        Ok(())
    }

    fn attach_program(
        &mut self,
        name: &str,
        attach: Attach,
        btf: &Btf,
        executables: &[(PathBuf, Voice)],
    ) -> Result<()> {
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name} in the object"))?;
        match attach {
            Attach::Tracepoint(point) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load(point, btf)?;
                program.attach()?;
            }
            Attach::Fentry(function) => {
                let program: &mut FEntry = program.try_into()?;
                program.load(function, btf)?;
                program.attach()?;
            }
            Attach::Fexit(function) => {
                let program: &mut FExit = program.try_into()?;
                program.load(function, btf)?;
                program.attach()?;
            }
            Attach::Kprobe(function) => {
                let program: &mut KProbe = program.try_into()?;
                program.load()?;
                program.attach(function, 0)?;
            }
            Attach::Iterator(point) => {
                let program: &mut Iter = program.try_into()?;
                program.load(point, btf)?;
                let link = program.attach()?;
                program.detach(link)?;
            }
            Attach::Uprobe(function) => {
                for voice in Voice::ALL {
                    self.voice(voice)?.load()?;
                }
                self.uprobe_loaded = true;
                let mut last = None;
                let mut any = executables.is_empty();
                for (executable, voice) in executables {
                    match hear_program(self.voice(*voice)?, function, executable) {
                        Ok(()) => {
                            self.heard.insert(executable.clone());
                            any = true;
                        }
                        Err(error) => last = Some(error),
                    }
                }
                if !any {
                    return Err(last.unwrap_or_else(|| anyhow!("no executable")));
                }
            }
        }
        Ok(())
    }

    fn unload(&mut self, name: &str) {
        if let Some(program) = self.ebpf.program_mut(name) {
            let _ = match program {
                Program::BtfTracePoint(program) => program.unload(),
                Program::FEntry(program) => program.unload(),
                Program::FExit(program) => program.unload(),
                Program::KProbe(program) => program.unload(),
                Program::Iter(program) => program.unload(),
                Program::UProbe(program) => program.unload(),
                _ => Ok(()),
            };
        }
    }

    /// Whether the log function of this executable is heard, by the path it was given with.
    #[must_use]
    pub fn hears(&self, executable: &std::path::Path) -> bool {
        self.heard.contains(executable)
    }

    /// Hears the log function of one more executable.
    ///
    /// # Errors
    /// The uprobe is not loaded, or the executable does not export the function.
    pub fn hear(&mut self, executable: &std::path::Path, voice: Voice) -> Result<()> {
        if !self.uprobe_loaded {
            bail!("nginx-log is not attached");
        }
        hear_program(self.voice(voice)?, "ngx_log_error_core", executable)
    }

    fn voice(&mut self, voice: Voice) -> Result<&mut UProbe> {
        let name = voice.program();
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name} in the object"))?;
        Ok(program.try_into()?)
    }

    /// The ring of records.
    ///
    /// # Errors
    /// Taken already.
    pub fn take_ring(&mut self) -> Result<ring::Ring> {
        let map = self
            .ebpf
            .take_map("RECORDS")
            .context("the ring was taken already")?;
        Ok(ring::Ring::new(RingBuf::try_from(map)?))
    }

    /// Starts to pass on what the programs say of themselves (`-vv`); needs a tokio runtime.
    ///
    /// # Errors
    /// The log map cannot be read.
    pub fn take_log(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).context("reading what the BPF programs say")
    }

    /// Makes these processes nginx's, so that what they do is seen.
    ///
    /// # Errors
    /// The table is full.
    pub fn follow(&mut self, pids: impl IntoIterator<Item = u32>) -> Result<()> {
        let mut workers: HashMap<_, u32, [u8; size_of::<Worker>()]> = take(&mut self.ebpf, "WORKERS")?;
        for pid in pids {
            // 1 is BPF_NOEXIST: what the kernel knows already is better.
            match workers.insert(pid, [0; size_of::<Worker>()], 1) {
                Ok(()) => {}
                Err(_) if workers.get(&pid, 0).is_ok() => {}
                Err(error) => return Err(error).context("the table of nginx's processes is full"),
            }
        }
        Ok(())
    }

    /// Forgets a process that has ended.
    ///
    /// # Errors
    /// The object has no such tables.
    pub fn forget(&mut self, pid: u32) -> Result<()> {
        // An entry that is not there is what we want.
        let _ = take::<u32, [u8; size_of::<Worker>()]>(&mut self.ebpf, "WORKERS")?.remove(&pid);
        let _ = take::<u32, u32>(&mut self.ebpf, "OWNERS")?.remove(&pid);
        let _ = take::<u32, [u8; size_of::<SignalSent>()]>(&mut self.ebpf, "SIGNALS")?.remove(&pid);
        Ok(())
    }

    /// Marks addresses whose connections sends and reads do not cut into exchanges.
    ///
    /// # Errors
    /// The table is full.
    pub fn leave_uncut(&mut self, endpoints: &[(std::net::SocketAddr, Uncut)]) -> Result<()> {
        let mut table: HashMap<_, [u8; size_of::<Endpoint>()], [u8; size_of::<EndpointUse>()]> =
            take(&mut self.ebpf, "ENDPOINTS")?;
        for (endpoint, how) in endpoints {
            // When nginx last connected there matters only to those that can be forgotten.
            let uncut = EndpointUse {
                last: 0,
                marks: match how {
                    Uncut::Datagrams => conn::DATAGRAMS,
                    Uncut::Whole => conn::UNCUT,
                    Uncut::ByAnswer => conn::UNCUT | conn::BY_ANSWER,
                    Uncut::ByHeaders => conn::UNCUT | conn::BY_HEADERS,
                },
                pad: 0,
            };
            let uncut: [u8; size_of::<EndpointUse>()] = zerocopy::transmute!(uncut);
            let key = Endpoint {
                addr: mapped(endpoint.ip()),
                port: u32::from(endpoint.port()),
            };
            let key: [u8; size_of::<Endpoint>()] = zerocopy::transmute!(key);
            table
                .insert(key, uncut, 0)
                .context("the table of nginx's peers is full")?;
        }
        Ok(())
    }

    /// What was lost since the last call, by class.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn losses(&mut self) -> Result<Vec<(LossClass, u64)>> {
        let mut lost = Vec::new();
        let counters: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("COUNTERS").context("no counters in the object")?)?;
        for (index, class) in [
            (counter::RING_FULL, LossClass::Ring),
            (counter::TABLE_FULL, LossClass::Table),
        ] {
            let total: u64 = counters.get(&index, 0)?.iter().sum();
            let seen = &mut self.counted[index as usize];
            if total > *seen {
                lost.push((class, total - *seen));
                *seen = total;
            }
        }
        let missed = self.newly_missed()?;
        if missed > 0 {
            lost.push((LossClass::Probe, missed));
        }
        Ok(lost)
    }

    /// How often programs were skipped since the last call, and nobody worked in their place.
    fn newly_missed(&mut self) -> Result<u64> {
        let mut missed = 0;
        for (name, program) in self.ebpf.programs() {
            if is_missed_in_vain(name, self.preemption) {
                continue;
            }
            let Ok(fd) = program.fd() else { continue };
            let mut total = recursion_misses(fd);
            // Asked after the kernel's count, so that every miss in that has its understudy's work in this.
            if let Some(index) = understudy::NAMES.iter().position(|known| *known == name) {
                let stood_in = self.stood_in(index)?.saturating_sub(self.stood_in_alone[index]);
                total = total.saturating_sub(stood_in);
            }
            let seen = self.missed.entry(name.to_owned()).or_insert(0);
            if total > *seen {
                log::info!(
                    "the kernel skipped program {name} {} times: it ran already",
                    total - *seen
                );
                missed += total - *seen;
                *seen = total;
            }
        }
        Ok(missed)
    }

    /// How often the understudies of a program worked in its place.
    fn stood_in(&self, index: usize) -> Result<u64> {
        let map = self
            .ebpf
            .map("STOOD_IN")
            .context("no map STOOD_IN in the object")?;
        let of_cpus = PerCpuArray::<_, u64>::try_from(map)?.get(&u32::try_from(index)?, 0)?;
        Ok(of_cpus.iter().sum())
    }

    /// Ids of the loaded programs by name, for the kernel's own statistics.
    #[must_use]
    pub fn program_ids(&self) -> Vec<(String, u32)> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| Some((name.to_owned(), program.info().ok()?.id())))
            .collect()
    }
}

/// Where a task can preempt another one in a program: each of those needs an understudy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Preemption {
    /// In a tracepoint's.
    tracepoints: bool,
    /// In a function's.
    functions: bool,
}

/// The programs of a way with their understudies, in the order of attaching, so that a program is called before its
/// understudies: at a tracepoint the first that was attached is, at a function the last (6.1 to 7.2).
fn with_understudies(
    way: &'static [(&'static str, Attach)],
    preemption: Preemption,
) -> impl Iterator<Item = (String, Attach)> {
    way.iter().flat_map(move |(program, attach)| {
        let is_function = matches!(attach, Attach::Fentry(_) | Attach::Fexit(_));
        let is_preemptible = if is_function {
            preemption.functions
        } else {
            preemption.tracepoints
        };
        let is_needed = understudy::NAMES
            .iter()
            .position(|known| known == program)
            .is_some_and(|index| is_preemptible || index < understudy::FIRST_OF_TASKS as usize);
        let suffixes = match (is_needed, is_function) {
            (false, _) => &[""][..],
            (true, true) => &[NESTED, ""],
            (true, false) if is_preemptible => &["", NESTED, "_nested2", "_nested3"],
            (true, false) => &["", NESTED],
        };
        suffixes
            .iter()
            .map(move |suffix| (format!("{program}{suffix}"), *attach))
    })
}

/// Whether it does not matter that this program was skipped: an understudy, which is for that of its program only; and
/// programs that look for what a process does itself, where only a softirq can interrupt them.
fn is_missed_in_vain(name: &str, preemption: Preemption) -> bool {
    let is_understudy = name
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .strip_suffix(NESTED)
        .is_some_and(|name| understudy::NAMES.contains(&name));
    let looks_at_tasks = ["unix_connected", "route_looked_up", "route6_looked_up"].contains(&name);
    // What these say makes a cause sure, and from their silence nothing is concluded.
    let is_a_second_sign = ["security_asked", "cgroup_asked"].contains(&name);
    is_understudy || is_a_second_sign || (looks_at_tasks && !preemption.tracepoints)
}

/// How often a program was skipped because it already ran on that CPU, from its descriptor's `fdinfo`.
fn recursion_misses(fd: &aya::programs::ProgramFd) -> u64 {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let Ok(text) = std::fs::read_to_string(path) else {
        return 0;
    };
    text.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

fn hear_program(program: &mut UProbe, function: &str, executable: &std::path::Path) -> Result<()> {
    program
        .attach(function, executable, UProbeScope::AllProcesses)
        .map(|_| ())
        .with_context(|| format!("{} does not export {function}", executable.display()))
}

fn take<'a, K: aya::Pod, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<HashMap<&'a mut MapData, K, V>> {
    let map = ebpf
        .map_mut(name)
        .with_context(|| format!("no map {name} in the object"))?;
    Ok(HashMap::try_from(map)?)
}

fn settings(layout: &Layout, options: &KernelOptions, places: &BTreeMap<&str, (u64, u64)>) -> Settings {
    let arity = |name: &str| layout.tracepoints.get(name).copied().unwrap_or(0);
    let reset_has_reason = arity("tcp_send_reset") >= 3;
    // The reset that follows says the same of a segment nobody listens for.
    let said_twice =
        |name: &str| name == "NO_SOCKET" && reset_has_reason && !options.without.contains("resets-sent");
    let mut drop_wanted = [0; DROP_REASONS];
    for (number, name) in &layout.drop_reasons {
        if WANTED_DROPS.contains(&name.as_str())
            && let Some(wanted) = drop_wanted.get_mut(*number as usize)
        {
            *wanted = if said_twice(name) { WANTED_OF_UDP } else { 1 };
        }
        if name == "NOT_SPECIFIED"
            && places.contains_key(NEIGHBOUR_PLACE)
            && let Some(wanted) = drop_wanted.get_mut(*number as usize)
        {
            *wanted = WANTED_BY_PLACE;
        }
    }
    let mut drop_places = [0; 2 * DROP_PLACES.len()];
    for (range, name) in drop_places.chunks_exact_mut(2).zip(DROP_PLACES) {
        if let Some((begin, end)) = places.get(name) {
            range.copy_from_slice(&[*begin, *end]);
        }
    }
    // What an fexit program's function returned lies behind its last argument. No program whose function is missing
    // is loaded.
    let slot = |name: &str| layout.functions.get(name).map_or(0, |arity| *arity as u32);
    let takes_requests = options.takes_requests && !options.without.contains(REQUESTS);
    Settings {
        drop_places,
        slot_tcp_sendmsg: slot("tcp_sendmsg"),
        slot_tcp_sendpage: slot("tcp_sendpage"),
        slot_tcp_recvmsg: slot("tcp_recvmsg"),
        // An argument `nonblock` stands before the flags where there are six.
        flags_tcp_recvmsg: if slot("tcp_recvmsg") >= 6 { 4 } else { 3 },
        slot_unix_sendmsg: slot("unix_stream_sendmsg"),
        slot_unix_recvmsg: slot("unix_stream_recvmsg"),
        slot_inet_connect: slot("inet_stream_connect"),
        slot_unix_connect: slot("unix_stream_connect"),
        slot_accept: slot("inet_csk_accept"),
        slot_security_connect: slot("security_socket_connect"),
        slot_cgroup_connect: slot("__cgroup_bpf_run_filter_sock_addr"),
        programs_connect4: layout.connect_programs.0,
        programs_connect6: layout.connect_programs.1,
        size_program_item: layout.size_program_item,
        has_task_pt_regs: u32::from(layout.has_task_pt_regs),
        size_pt_regs: layout.size_pt_regs,
        number_close: CLOSE,
        number_sendto: SENDTO,
        number_writev: if takes_requests { WRITEV } else { 0 },
        number_recvfrom: if takes_requests { RECVFROM } else { 0 },
        reset_has_reason: u32::from(reset_has_reason),
        drop_has_reason: u32::from(arity("kfree_skb") >= 3),
        ipv6only_bit: layout.ipv6only_bit,
        lines_heard: u32::from(!options.without.contains("nginx-log")),
        verbose: u32::from(options.verbose),
        by_parentage: u32::from(options.by_parentage),
        drop_wanted,
    }
}

fn comm(name: &str) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    let bytes = name.as_bytes();
    let len = bytes.len().min(COMM_LEN - 1);
    comm[..len].copy_from_slice(&bytes[..len]);
    comm
}

/// An address in 16 bytes, IPv4 mapped.
#[must_use]
pub fn mapped(addr: std::net::IpAddr) -> [u8; 16] {
    match addr {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

/// The last lines of a verifier log, or an error chain: what is wrong, in one line.
fn one_line(program: &str, error: &anyhow::Error) -> String {
    if let Some(ProgramError::LoadError {
        io_error,
        verifier_log,
    }) = error.downcast_ref::<ProgramError>()
    {
        let log = verifier_log.to_string();
        let tail: Vec<&str> = log
            .lines()
            .rev()
            .filter(|line| !line.is_empty())
            .take(4)
            .collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let tail = if tail.is_empty() {
            String::new()
        } else {
            format!(": {}", tail.join(" | "))
        };
        return format!("the kernel refused to load program {program} ({io_error}){tail}");
    }
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    chain.join(": ").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understudies_of_functions_are_those_at_functions() {
        for (program, attach) in PLAN.iter().flat_map(|hook| hook.ways.iter().copied().flatten()) {
            let Some(index) = understudy::NAMES.iter().position(|known| known == program) else {
                continue;
            };
            let is_function = matches!(attach, Attach::Fentry(_) | Attach::Fexit(_));
            let index = u32::try_from(index).unwrap();
            assert_eq!(
                understudy::OF_FUNCTIONS.contains(&index),
                is_function,
                "{program}"
            );
        }
    }

    #[test]
    fn programs_have_understudies_where_they_can_be_interrupted() {
        let names = |program: &str, preemption| -> Vec<String> {
            let way = PLAN
                .iter()
                .flat_map(|hook| hook.ways)
                .find(|way| way.iter().any(|(known, _)| *known == program))
                .unwrap();
            let of_way = with_understudies(way, preemption).map(|(name, _)| name);
            of_way.filter(|name| name.starts_with(program)).collect()
        };
        let never = Preemption::default();
        let in_functions = Preemption {
            functions: true,
            ..never
        };
        let anywhere = Preemption {
            tracepoints: true,
            ..in_functions
        };
        assert_eq!(names("connection_accepted", never), ["connection_accepted"]);
        for preemption in [in_functions, anywhere] {
            let both = ["connection_accepted_nested", "connection_accepted"];
            assert_eq!(names("connection_accepted", preemption), both);
        }
        for preemption in [never, in_functions] {
            assert_eq!(
                names("socket_destroyed", preemption),
                ["socket_destroyed", "socket_destroyed_nested"]
            );
            assert_eq!(names("bytes_sent", preemption), ["bytes_sent"]);
        }
        assert_eq!(names("bytes_sent", anywhere).len(), 4);
    }
}
