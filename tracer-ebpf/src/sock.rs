//! Typed reads of kernel structures through the offsets of the running kernel. All unsafe reads of kernel memory
//! are here: a load through a pointer whose type the verifier knows, else `bpf_probe_read_kernel`; neither can fault.

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext,
    cty::c_void,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_probe_read_kernel_str_bytes, bpf_probe_read_user, generated,
    },
    programs::{BtfTracePointContext, FExitContext},
};
use tracer_ebpf::{ABSENT, COMM_LEN, PATH_LEN, REQUEST_LEN, RESPONSE_LEN, TaskInfo, switch, task};
use zerocopy::FromBytes;

use crate::maps::{offset, setting, switched};

pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const SYN_RECV: u8 = 3;
pub const FIN_WAIT1: u8 = 4;
pub const TIME_WAIT: u8 = 6;
pub const CLOSE: u8 = 7;
pub const CLOSE_WAIT: u8 = 8;
pub const LAST_ACK: u8 = 9;
pub const LISTEN: u8 = 10;
pub const NEW_SYN_RECV: u8 = 12;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u8 = 17;
const SOCK_STREAM: u16 = 1;
/// `PF_EXITING` of `task_struct.flags` (include/linux/sched.h, 5.10 to 7.2).
const PF_EXITING: u32 = 4;

/// Reads a `T` at `base + offset`; zero when the address is bad or the member does not exist on this kernel.
///
/// The helper itself clears what it could not read. Asking for its result would be a branch per read, and the verifier
/// before 6.8 follows every combination of them ("BPF program is too large", 6.1).
#[inline(always)]
pub fn read<T: Copy + FromBytes>(base: u64, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    if offset == ABSENT {
        return T::new_zeroed();
    }
    // SAFETY: the helper checks the address and writes the whole value whether it can read it or not; every pattern
    // of bytes is a `T`.
    unsafe {
        generated::bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const c_void,
        );
        value.assume_init()
    }
}

/// Reads a `T` at `base + offset` where `base` is a pointer that the verifier knows the type of: one load instead of a
/// helper's call. A pointer that is not valid any more faults into a zero, like a read by the helper.
///
/// The verifier checks that the member is there and of that size, so an offset that is not of `base`'s own type is
/// refused at load.
#[inline(always)]
fn load<T: Copy + FromBytes>(base: u64, offset: u32) -> T {
    // SAFETY: the verifier lets a program pass only if `base` is such a pointer; every pattern of bytes is a `T`.
    unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const T) }
}

/// Something whose members can be read.
pub trait Members: Copy {
    /// Where it is.
    fn address(self) -> u64;
    /// A member that lies in its own type.
    fn get<T: Copy + FromBytes>(self, offset: u32) -> T;
}

/// A kernel `struct sock` known by its address alone: from a table, or from another structure.
#[derive(Clone, Copy)]
pub struct SockAt(pub u64);

impl Members for SockAt {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn get<T: Copy + FromBytes>(self, offset: u32) -> T {
        read(self.0, offset)
    }
}

impl Tcp for SockAt {}

impl Sock for SockAt {
    type Tcp = Self;

    #[inline(always)]
    fn tcp(self) -> Option<Self> {
        Some(self)
    }

    #[inline(always)]
    fn netns(self) -> u32 {
        inum(read(self.0, offset!(skc_net)))
    }
}

/// A `struct sock *` that a program was called with: the verifier knows its type, and its members are loaded.
#[derive(Clone, Copy)]
pub struct SockArg(u64);

impl SockArg {
    /// The program's `n`th argument, which the kernel declares as a `struct sock *` that is never null.
    #[inline(always)]
    pub fn of(ctx: &impl Arguments, n: usize) -> Self {
        Self(ctx.pointer(n))
    }
}

impl Members for SockArg {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn get<T: Copy + FromBytes>(self, offset: u32) -> T {
        load(self.0, offset)
    }
}

impl Sock for SockArg {
    type Tcp = TcpArg;

    #[inline(always)]
    fn tcp(self) -> Option<TcpArg> {
        // SAFETY: the helper looks whether the socket is a TCP socket; null if not.
        let tcp = unsafe { generated::bpf_skc_to_tcp_sock(self.0 as *mut c_void) } as u64;
        (tcp != 0).then_some(TcpArg(tcp))
    }

    #[inline(always)]
    fn netns(self) -> u32 {
        let net: u64 = load(self.0, offset!(skc_net));
        if net == 0 { 0 } else { load(net, offset!(net_inum)) }
    }
}

/// The `struct tcp_sock` of a [`SockArg`].
#[derive(Clone, Copy)]
pub struct TcpArg(u64);

impl Members for TcpArg {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn get<T: Copy + FromBytes>(self, offset: u32) -> T {
        load(self.0, offset)
    }
}

impl Tcp for TcpArg {}

/// A program's arguments.
pub trait Arguments {
    /// The `n`th, a pointer.
    fn pointer(&self, n: usize) -> u64;
}

impl Arguments for BtfTracePointContext {
    #[inline(always)]
    fn pointer(&self, n: usize) -> u64 {
        self.arg(n)
    }
}

impl Arguments for FExitContext {
    #[inline(always)]
    fn pointer(&self, n: usize) -> u64 {
        self.arg(n)
    }
}

/// A kernel `struct sock`.
pub trait Sock: Members {
    /// See [`Self::tcp`].
    type Tcp: Tcp;

    /// The socket as a TCP socket, if it is one.
    fn tcp(self) -> Option<Self::Tcp>;

    /// The inode number of its namespace.
    fn netns(self) -> u32;

    #[inline(always)]
    fn family(self) -> u16 {
        self.get(offset!(skc_family))
    }

    #[inline(always)]
    fn state(self) -> u8 {
        self.get(offset!(skc_state))
    }

    #[inline(always)]
    fn is_tcp(self) -> bool {
        let family = self.family();
        (family == AF_INET || family == AF_INET6) && self.get::<u16>(offset!(sk_protocol)) == IPPROTO_TCP
    }

    #[inline(always)]
    fn is_stream(self) -> bool {
        self.get::<u16>(offset!(sk_type)) == SOCK_STREAM
    }

    /// The local port, which stays when `skc_num` is already cleared.
    #[inline(always)]
    fn local_port(self) -> u16 {
        u16::from_be(read(self.address(), offset!(inet_sport)))
    }

    #[inline(always)]
    fn bound_port(self) -> u16 {
        self.get(offset!(skc_num))
    }

    #[inline(always)]
    fn peer_port(self) -> u16 {
        u16::from_be(self.get(offset!(skc_dport)))
    }

    #[inline(always)]
    fn local_addr(self) -> [u8; 16] {
        if self.family() == AF_INET {
            mapped(self.get::<u32>(offset!(skc_rcv_saddr)).to_ne_bytes())
        } else {
            read(self.address(), offset!(skc_v6_rcv_saddr))
        }
    }

    #[inline(always)]
    fn peer_addr(self) -> [u8; 16] {
        if self.family() == AF_INET {
            mapped(self.get::<u32>(offset!(skc_daddr)).to_ne_bytes())
        } else {
            read(self.address(), offset!(skc_v6_daddr))
        }
    }

    #[inline(always)]
    fn is_v6only(self) -> bool {
        // A bit field, which the verifier lets nobody load.
        let byte: u8 = read(self.address(), offset!(skc_ipv6only_byte));
        self.family() == AF_INET6 && byte & (1 << (crate::maps::setting!(ipv6only_bit) & 7)) != 0
    }

    #[inline(always)]
    fn error(self) -> i32 {
        self.get(offset!(sk_err))
    }

    #[inline(always)]
    fn soft_error(self) -> i32 {
        self.get(offset!(sk_err_soft))
    }

    #[inline(always)]
    fn has_file(self) -> bool {
        self.get::<u64>(offset!(sk_socket)) != 0
    }

    #[inline(always)]
    fn is_shut(self) -> bool {
        self.get::<u8>(offset!(sk_shutdown)) & 3 == 3
    }

    #[inline(always)]
    fn queue(self) -> u32 {
        self.get(offset!(sk_ack_backlog))
    }

    #[inline(always)]
    fn queue_limit(self) -> u32 {
        self.get(offset!(sk_max_ack_backlog))
    }
}

/// A kernel `struct tcp_sock`.
pub trait Tcp: Members {
    #[inline(always)]
    fn snd_una(self) -> u32 {
        self.get(offset!(snd_una))
    }

    #[inline(always)]
    fn snd_nxt(self) -> u32 {
        self.get(offset!(snd_nxt))
    }

    #[inline(always)]
    fn write_seq(self) -> u32 {
        self.get(offset!(write_seq))
    }

    #[inline(always)]
    fn rcv_nxt(self) -> u32 {
        self.get(offset!(rcv_nxt))
    }

    #[inline(always)]
    fn copied_seq(self) -> u32 {
        self.get(offset!(copied_seq))
    }

    #[inline(always)]
    fn srtt_us(self) -> u32 {
        self.get::<u32>(offset!(srtt_us)) >> 3
    }

    #[inline(always)]
    fn send_window(self) -> u32 {
        self.get(offset!(snd_wnd))
    }

    /// Segments received, with resets.
    #[inline(always)]
    fn segments_in(self) -> u32 {
        self.get(offset!(segs_in))
    }

    /// When a packet last came or left, in microseconds of `CLOCK_MONOTONIC` (`tcp_mstamp_refresh`, 5.10 to 7.2).
    #[inline(always)]
    fn last_packet_us(self) -> u64 {
        self.get(offset!(tcp_mstamp))
    }

    /// Bytes received and never read; the FIN, which the kernel counts as one, is taken off when it has come.
    #[inline(always)]
    fn unread(self, fin: bool) -> u32 {
        let unread = self.rcv_nxt().wrapping_sub(self.copied_seq());
        if fin && unread > 0 { unread - 1 } else { unread }
    }
}

impl SockAt {
    /// unix: connections waiting in a listener's receive queue.
    #[inline(always)]
    pub fn receive_queue(self) -> u32 {
        read(self.0 + u64::from(offset!(sk_receive_queue)), offset!(queue_len))
    }

    /// unix: the socket at the other end, 0 when none.
    #[inline(always)]
    pub fn unix_peer(self) -> u64 {
        read(self.0, offset!(unix_peer))
    }

    /// unix: whether this socket is bound to a name.
    #[inline(always)]
    pub fn unix_is_bound(self) -> bool {
        read::<u64>(self.0, offset!(unix_addr)) != 0
    }

    /// unix: copies the bound path; false when it has none (unbound or abstract).
    #[inline(always)]
    pub fn unix_path(self, path: &mut [u8; PATH_LEN]) -> bool {
        let addr: u64 = read(self.0, offset!(unix_addr));
        if addr == 0 {
            return false;
        }
        // struct sockaddr_un: the path follows the 2 bytes of the family.
        let text = addr + u64::from(offset!(unix_address_name)) + 2;
        // SAFETY: the helper checks the address and stops at the end of `path`.
        matches!(unsafe { bpf_probe_read_kernel_str_bytes(text as *const u8, path) }, Ok(bytes) if !bytes.is_empty())
    }
}

/// An IPv4 address in its mapped form.
#[inline(always)]
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// The inode number of a `struct net`.
#[inline(always)]
pub fn inum(net: u64) -> u32 {
    if net == 0 { 0 } else { read(net, offset!(net_inum)) }
}

/// The addresses, ports and TCP flags in an skb; `None` for anything but TCP.
pub struct Segment {
    pub saddr: [u8; 16],
    pub daddr: [u8; 16],
    pub sport: u16,
    pub dport: u16,
    pub flags: u8,
}

/// Parses the IP and TCP headers of an skb.
#[inline(always)]
pub fn segment(skb: u64) -> Option<Segment> {
    let head: u64 = read(skb, offset!(skb_head));
    let network_header: u16 = read(skb, offset!(skb_network_header));
    let ip = head + u64::from(network_header);
    let first: u8 = read(ip, 0);
    let (saddr, daddr, tcp) = match first >> 4 {
        4 => {
            if read::<u8>(ip, 9) != 6 {
                return None;
            }
            (
                mapped(read(ip, 12)),
                mapped(read(ip, 16)),
                ip + u64::from(first & 15) * 4,
            )
        }
        6 => {
            if read::<u8>(ip, 6) != 6 {
                return None;
            }
            (read(ip, 8), read(ip, 24), ip + 40)
        }
        _ => return None,
    };
    Some(Segment {
        saddr,
        daddr,
        sport: u16::from_be(read(tcp, 0)),
        dport: u16::from_be(read(tcp, 2)),
        flags: read(tcp, 13),
    })
}

/// Parses the IP and UDP headers of an skb; `None` for anything but UDP, without the headers that may stand between them on
/// IPv6.
#[inline(always)]
pub fn datagram(skb: u64) -> Option<Segment> {
    let head: u64 = read(skb, offset!(skb_head));
    let ip = head + u64::from(read::<u16>(skb, offset!(skb_network_header)));
    let first: u8 = read(ip, 0);
    let (protocol, saddr, daddr, udp) = match first >> 4 {
        4 => (
            read::<u8>(ip, 9),
            mapped(read(ip, 12)),
            mapped(read(ip, 16)),
            ip + u64::from(first & 15) * 4,
        ),
        6 => (read::<u8>(ip, 6), read(ip, 8), read(ip, 24), ip + 40),
        _ => return None,
    };
    if protocol != IPPROTO_UDP {
        return None;
    }
    Some(Segment {
        saddr,
        daddr,
        sport: u16::from_be(read(udp, 0)),
        dport: u16::from_be(read(udp, 2)),
        flags: 0,
    })
}

/// The namespace of the device an skb is on; 0 when it is on none.
#[inline(always)]
pub fn skb_netns(skb: u64) -> u32 {
    let dev: u64 = read(skb, offset!(skb_dev));
    if dev == 0 {
        0
    } else {
        inum(read(dev, offset!(dev_net)))
    }
}

/// The sequence number of a TCP segment over IPv4 or IPv6.
#[inline(always)]
pub fn segment_seq(skb: u64) -> u32 {
    let head: u64 = read(skb, offset!(skb_head));
    let ip = head + u64::from(read::<u16>(skb, offset!(skb_network_header)));
    let first: u8 = read(ip, 0);
    let tcp = if first >> 4 == 4 {
        ip + u64::from(first & 15) * 4
    } else {
        ip + 40
    };
    u32::from_be(read(tcp, 4))
}

/// The `n`th 8 bytes of an fentry or fexit program's context: an argument, or behind the last of them the return
/// value. Through a helper, since the verifier wants the place of a direct read to be in the instruction.
#[inline(always)]
pub fn slot<T: Copy + FromBytes>(ctx: &impl EbpfContext, n: u32) -> T {
    read(ctx.as_ptr() as u64, n * 8)
}

/// The `struct sock` of a `struct socket`.
#[inline(always)]
pub fn sock_of(socket: u64) -> SockAt {
    SockAt(read(socket, offset!(socket_sk)))
}

/// The current process (thread group).
#[inline(always)]
pub fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current `struct task_struct`.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Whether the current task is its process's first thread: nginx connects, sends and logs there only.
#[inline(always)]
pub fn is_main_thread() -> bool {
    let both = bpf_get_current_pid_tgid();
    both as u32 == (both >> 32) as u32
}

/// The sizes that a task's stack has on kernels of today (`THREAD_SIZE`: 16 KiB on x86-64 and most of arm64).
const STACK_SIZES: [u32; 4] = [0x4000, 0x8000, 0x2000, 0x1_0000];

/// The current task's registers as its system call found them; 0 where they were not found.
#[inline(always)]
fn registers() -> u64 {
    let at = switched(switch::REGISTERS);
    if at == 0 {
        0
    } else if at == switch::BY_HELPER {
        registers_by_helper()
    } else {
        stack() + u64::from(at)
    }
}

#[inline(always)]
fn registers_by_helper() -> u64 {
    if setting!(has_task_pt_regs) == 0 {
        return 0;
    }
    // SAFETY: the one helper has no preconditions, the other takes what the first gives.
    unsafe { generated::bpf_task_pt_regs(generated::bpf_get_current_task_btf()) as u64 }
}

/// The bottom of the current task's stack.
#[inline(always)]
fn stack() -> u64 {
    // SAFETY: the helper has no preconditions.
    read(unsafe { bpf_get_current_task() }, offset!(task_stack))
}

/// Where a system call's registers are, seen in one that is known: the close of the descriptor `closed`. 0: this is
/// another, or they are nowhere.
#[inline(always)]
pub fn find_registers(closed: u32) -> u32 {
    let is_it = |registers: u64| {
        call_number(registers) == setting!(number_close) && argument(registers, 0) == u64::from(closed)
    };
    if setting!(has_task_pt_regs) != 0 {
        // The kernel itself says where: that this is a close proves that its number is found there.
        return if call_number(registers_by_helper()) == setting!(number_close) {
            switch::BY_HELPER
        } else {
            0
        };
    }
    // As `task_pt_regs()` finds them (arch/x86/include/asm/processor.h, arch/arm64/include/asm/processor.h, 5.10).
    let stack = stack();
    let mut found = 0;
    for size in STACK_SIZES {
        let at = size - setting!(size_pt_regs);
        if found == 0 && is_it(stack + u64::from(at)) {
            found = at;
        }
    }
    found
}

/// The number of the system call behind [`registers`].
#[inline(always)]
fn call_number(registers: u64) -> u32 {
    let at = if offset!(regs_orig_ax) == ABSENT {
        offset!(regs_syscallno)
    } else {
        offset!(regs_orig_ax)
    };
    read(registers, at)
}

/// Its first (0) or second (1) argument.
#[inline(always)]
fn argument(registers: u64, n: usize) -> u64 {
    if offset!(regs_si) == ABSENT {
        if n == 0 {
            // The register itself has what the call returns by the time that a close comes to an end.
            return read(registers, offset!(regs_orig_x0));
        }
        return read::<[u64; 2]>(registers, offset!(regs_regs))[1];
    }
    if n == 0 {
        read(registers, offset!(regs_di))
    } else {
        read(registers, offset!(regs_si))
    }
}

/// [`registers`] where the current task is in the system call of this number; 0 where it is in another, where it cannot be
/// asked, and for number 0, which none of those that are asked for has.
#[inline(always)]
fn registers_in(number: u32) -> u64 {
    if number == 0 {
        return 0;
    }
    let registers = registers();
    if registers != 0 && call_number(registers) == number {
        registers
    } else {
        0
    }
}

/// Whether the current task is in `sendto`, which send() is; false where it cannot be asked.
#[inline(always)]
pub fn is_in_sendto() -> bool {
    registers_in(setting!(number_sendto)) != 0
}

/// Takes the beginning of what the current task is sending by `writev`, as nginx sends a request and an answer. How many
/// bytes: none where it sends otherwise.
#[inline(always)]
pub fn take_sent<const N: usize>(into: &mut [u8; N]) -> u16 {
    let registers = registers_in(setting!(number_writev));
    if registers == 0 {
        return 0;
    }
    // SAFETY: the helper checks the address. A `struct iovec`, as the system call's interface has it.
    match unsafe { bpf_probe_read_user(argument(registers, 1) as *const [u64; 2]) } {
        Ok([base, len]) => take(into, base, len),
        Err(_) => 0,
    }
}

/// Whether what the current task is sending by `writev` begins with the header of a request in HTTP/2 (RFC 9113, 6.2),
/// as all that nginx sends of one on a kept connection does. False where it cannot be asked.
#[inline(always)]
pub fn sends_headers() -> bool {
    let mut frame = [0u8; 16];
    if take_sent(&mut frame) < 9 {
        return false;
    }
    // Of a HEADERS frame nginx sets no flag but END_STREAM and END_HEADERS, and it is shorter than 2^16.
    frame[0] == 0 && frame[3] == 1 && frame[4] & !5 == 0 && frame[5] & 0x80 == 0 && frame[8] & 1 == 1
}

/// Whether these bytes begin a connection over HTTP/2 (RFC 9113, 3.4).
#[inline(always)]
pub fn is_preface(bytes: &[u8; REQUEST_LEN]) -> bool {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h]) == u64::from_ne_bytes(*b"PRI * HT")
}

/// Takes the beginning of what the current task has just read by `recvfrom`, as nginx reads the beginning of an answer:
/// `n` bytes of it are there.
#[inline(always)]
pub fn take_received(into: &mut [u8; RESPONSE_LEN], n: u32) -> u16 {
    match registers_in(setting!(number_recvfrom)) {
        0 => 0,
        registers => take(into, argument(registers, 1), u64::from(n)),
    }
}

/// As [`take_received`], behind the first `taken` bytes of `into`.
#[inline(always)]
pub fn take_more(into: &mut [u8; RESPONSE_LEN], taken: u16, n: u32) -> u16 {
    const MASK: u64 = RESPONSE_LEN as u64 - 1;
    let registers = registers_in(setting!(number_recvfrom));
    let (taken, n) = (u64::from(taken), u64::from(n));
    if registers == 0 || taken == 0 || taken > MASK {
        return 0;
    }
    let room = RESPONSE_LEN as u64 - taken;
    // The verifier of 5.10 follows bounds by masks, each for itself; the compiler must not see that they change nothing. What
    // would be written behind `response` if both were at their most is `request`'s.
    let len = black_box(if n > room { room } else { n }) & MASK;
    let taken = black_box(taken) & MASK;
    // SAFETY: the helper checks the address, and writes no more than `len` bytes, which `into` has behind `taken`.
    let failed = unsafe {
        generated::bpf_probe_read_user(
            into.as_mut_ptr().add(taken as usize).cast(),
            len as u32,
            argument(registers, 1) as *const c_void,
        )
    };
    if failed == 0 { len as u16 } else { 0 }
}

/// Copies the first of `len` bytes of the current task's memory.
#[inline(always)]
fn take<const N: usize>(into: &mut [u8; N], from: u64, len: u64) -> u16 {
    let len = if len > N as u64 { N as u64 } else { len };
    // SAFETY: the helper checks the address, and writes no more than `len` bytes, which `into` has.
    let failed = unsafe {
        generated::bpf_probe_read_user(into.as_mut_ptr().cast(), len as u32, from as *const c_void)
    };
    if failed == 0 { len as u16 } else { 0 }
}

/// The current task, with its exit code when it is ending.
#[inline(always)]
pub fn current_task() -> TaskInfo {
    let task_struct = current();
    let mut info = TaskInfo {
        pid: current_pid(),
        flags: 0,
        exit_code: 0,
        pad: 0,
        comm: bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
    };
    if read::<u32>(task_struct, offset!(task_flags)) & PF_EXITING != 0 {
        info.flags = task::EXITING | oom_flag(task_struct);
        info.exit_code = exit_code(task_struct);
    }
    info
}

/// With what the process of an exiting task ends. The task's own code is another one where a thread was on its way out as
/// its process was killed (`do_group_exit`, kernel/exit.c, 5.10 to 7.2).
#[inline(always)]
pub fn exit_code(task_struct: u64) -> i32 {
    let signal: u64 = read(task_struct, offset!(task_signal));
    let group: i32 = read(signal, offset!(signal_group_exit_code));
    if group != 0 {
        group
    } else {
        read(task_struct, offset!(task_exit_code))
    }
}

/// `task::OOM` when the OOM killer chose this task's process (`tsk_is_oom_victim`, include/linux/oom.h).
#[inline(always)]
pub fn oom_flag(task_struct: u64) -> u32 {
    let signal: u64 = read(task_struct, offset!(task_signal));
    if signal != 0 && read::<u64>(signal, offset!(signal_oom_mm)) != 0 {
        task::OOM
    } else {
        0
    }
}
