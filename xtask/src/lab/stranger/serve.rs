//! The strangers' side: IP packets from the TUN device in, answers out. No retransmission, no windows, no
//! reassembly: the device neither loses nor reorders, and requests are small.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{DEVICE, Manner, Order, ROUTER};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const ICMP: u8 = 1;
const TCP: u8 = 6;
/// The first sequence number of every connection: nothing here depends on its being hard to guess.
const FIRST_SEQUENCE: u32 = 1_000_000;
const WINDOW: u16 = 64_000;
/// How long what was sent may stay unacknowledged: much longer than the kernel delays an ACK.
const ACK_DEADLINE: Duration = Duration::from_secs(10);

/// Serves until the orders end.
pub(crate) fn main(hosts: &str) -> Result<()> {
    let manners: BTreeMap<Ipv4Addr, Manner> =
        serde_json::from_str(hosts).context("reading the strangers' manners")?;
    let device = open_tun()?;
    let mut input = device.try_clone().context("reading the TUN device")?;
    let world = Arc::new(Mutex::new(World {
        manners,
        connections: HashMap::new(),
        lost: HashMap::new(),
        device,
    }));
    let packet_taken = Arc::new(Condvar::new());
    let (shared, taken) = (Arc::clone(&world), Arc::clone(&packet_taken));
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(n) = input.read(&mut buffer) {
            let Some(packet) = Packet::parse(&buffer[..n]) else {
                continue;
            };
            let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if world.is_syn_of_late_host(&packet) {
                answer_late(&shared, &world, &packet);
                continue;
            }
            or_end(world.take(&packet, &buffer[..n]));
            taken.notify_all();
        }
    });
    println!("ok");
    for line in io::stdin().lines() {
        let order: Order =
            serde_json::from_str(&line.context("reading orders")?).context("reading an order")?;
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        match order {
            Order::Become(host, manner) => {
                world.manners.insert(host, manner);
            }
            // A late ACK would be reset too, and its connection with it before anybody uses it.
            Order::Forget(host) => all_acknowledged(&packet_taken, world, host)?
                .connections
                .retain(|connection, _| connection.host != host),
            Order::CloseIdle(host) => world.close_idle(host)?,
        }
        println!("ok");
    }
    Ok(())
}

/// A world that cannot send ends.
fn or_end(taken: Result<()>) {
    if let Err(error) = taken {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

/// Answers a SYN when its host's time has come.
fn answer_late(shared: &Arc<Mutex<World>>, world: &World, packet: &Packet<'_>) {
    let (at, theirs) = (packet.connection, packet.next());
    let Some(Manner::Late(ms)) = world.manners.get(&at.host) else {
        return;
    };
    let (shared, after) = (Arc::clone(shared), Duration::from_millis(*ms));
    std::thread::spawn(move || {
        std::thread::sleep(after);
        let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
        or_end(world.connect(at, theirs));
    });
}

/// Waits until all that a host sent has been acknowledged.
fn all_acknowledged<'a>(
    packet_taken: &Condvar,
    world: MutexGuard<'a, World>,
    host: Ipv4Addr,
) -> Result<MutexGuard<'a, World>> {
    let (world, waited) = packet_taken
        .wait_timeout_while(world, ACK_DEADLINE, |world| {
            world
                .connections
                .iter()
                .any(|(connection, state)| connection.host == host && state.acknowledged != state.ours)
        })
        .unwrap_or_else(PoisonError::into_inner);
    ensure!(
        !waited.timed_out(),
        "what {host} sent was not acknowledged within {} s",
        ACK_DEADLINE.as_secs()
    );
    Ok(world)
}

/// The TUN device that the starter made, ready to be read and written packet by packet.
fn open_tun() -> Result<File> {
    nix::ioctl_write_ptr_bad!(
        tun_set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun: is the tun module there?")?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?,
        },
    };
    // SAFETY: the descriptor is open, and `request` is a whole ifreq with a name that ends in zero; the kernel only
    // reads and writes within it.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }
        .with_context(|| format!("attaching to the TUN device {DEVICE}"))?;
    Ok(device)
}

/// A connection, seen from the stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Connection {
    host: Ipv4Addr,
    port: u16,
    client: Ipv4Addr,
    client_port: u16,
}

/// The next sequence number of either side, and which of ours the other side has acknowledged.
#[derive(Clone, Copy, Debug)]
struct State {
    ours: u32,
    acknowledged: u32,
    theirs: u32,
    is_open: bool,
}

/// What is needed of a TCP packet.
#[derive(Debug)]
struct Packet<'a> {
    connection: Connection,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    data: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A TCP packet over IPv4; `None`: something else.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let length = usize::from(bytes.first()? & 15) * 4;
        if bytes[0] >> 4 != 4 || *bytes.get(9)? != TCP {
            return None;
        }
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let total = usize::from(word(2)?);
        let offset = length + usize::from(*bytes.get(length + 12)? >> 4) * 4;
        Some(Self {
            connection: Connection {
                host: Ipv4Addr::from(long(16)?),
                port: word(length + 2)?,
                client: Ipv4Addr::from(long(12)?),
                client_port: word(length)?,
            },
            sequence: long(length + 4)?,
            acknowledged: long(length + 8)?,
            flags: *bytes.get(length + 13)?,
            data: bytes.get(offset..total)?,
        })
    }

    /// The sequence number that follows this packet.
    fn next(&self) -> u32 {
        let length = u32::try_from(self.data.len()).unwrap_or(0);
        let flags = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.sequence.wrapping_add(length).wrapping_add(flags)
    }
}

#[derive(Debug)]
struct World {
    manners: BTreeMap<Ipv4Addr, Manner>,
    connections: HashMap<Connection, State>,
    /// How many SYNs of a connection have been lost, and how many are to be.
    lost: HashMap<Connection, (u32, u32)>,
    device: File,
}

impl World {
    fn is_syn_of_late_host(&self, packet: &Packet<'_>) -> bool {
        packet.flags & SYN != 0 && matches!(self.manners.get(&packet.connection.host), Some(Manner::Late(_)))
    }

    /// Answers a SYN.
    fn connect(&mut self, at: Connection, theirs: u32) -> Result<()> {
        let state = State {
            ours: FIRST_SEQUENCE.wrapping_add(1),
            acknowledged: FIRST_SEQUENCE,
            theirs,
            is_open: true,
        };
        self.connections.insert(at, state);
        self.send(at, FIRST_SEQUENCE, state.theirs, SYN | ACK, b"")
    }

    /// Whether this SYN never arrives, where each connection in turn loses so many.
    fn is_lost(&mut self, at: Connection, in_turn: &[u32]) -> bool {
        let turn = self.lost.len();
        let (lost, to_lose) = self
            .lost
            .entry(at)
            .or_insert_with(|| (0, in_turn.get(turn % in_turn.len().max(1)).copied().unwrap_or(0)));
        *lost += 1;
        *lost <= *to_lose
    }

    fn take(&mut self, packet: &Packet<'_>, raw: &[u8]) -> Result<()> {
        let at = packet.connection;
        let Some(manner) = self.manners.get(&at.host).cloned() else {
            return Ok(());
        };
        if packet.flags & RST != 0 {
            self.connections.remove(&at);
            return Ok(());
        }
        if packet.flags & SYN != 0 {
            return match manner {
                Manner::Ignore => Ok(()),
                Manner::Refuse => self.send(at, 0, packet.next(), RST | ACK, b""),
                Manner::Icmp { kind, code, router } => self.send_icmp(at, kind, code, router, raw),
                Manner::Loses(in_turn) if self.is_lost(at, &in_turn) => Ok(()),
                Manner::Answer
                | Manner::Late(_)
                | Manner::Loses(_)
                | Manner::Reset
                | Manner::Close
                | Manner::Silent
                | Manner::Deaf
                | Manner::HalfReset
                | Manner::HalfClose => self.connect(at, packet.next()),
            };
        }
        let Some(state) = self.connections.get_mut(&at) else {
            // A connection this host does not know (any more).
            return match manner {
                Manner::Ignore | Manner::Deaf => Ok(()),
                _ => self.send(at, packet.acknowledged, packet.next(), RST | ACK, b""),
            };
        };
        state.acknowledged = packet.acknowledged;
        if manner == Manner::Deaf {
            return Ok(());
        }
        let is_new = packet.sequence == state.theirs && packet.next() != state.theirs;
        if !is_new {
            return Ok(());
        }
        state.theirs = packet.next();
        let now = *state;
        if packet.flags & FIN != 0 {
            if now.is_open {
                self.send_in(at, FIN | ACK, b"")?;
            } else {
                self.send_in(at, ACK, b"")?;
            }
            self.connections.remove(&at);
            return Ok(());
        }
        self.send_in(at, ACK, b"")?;
        if !packet.data.ends_with(b"\r\n\r\n") {
            return Ok(());
        }
        match manner {
            Manner::Answer | Manner::Late(_) | Manner::Loses(_) => self.send_in(
                at,
                PSH | ACK,
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nxxx",
            ),
            Manner::Reset => self.send_in(at, RST | ACK, b""),
            Manner::Close => self.close(at),
            Manner::HalfReset => {
                self.send_half(at)?;
                self.send_in(at, RST | ACK, b"")
            }
            Manner::HalfClose => {
                self.send_half(at)?;
                self.close(at)
            }
            Manner::Silent | Manner::Deaf | Manner::Ignore | Manner::Refuse | Manner::Icmp { .. } => Ok(()),
        }
    }

    fn send_half(&mut self, at: Connection) -> Result<()> {
        self.send_in(
            at,
            PSH | ACK,
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxxx",
        )
    }

    fn close(&mut self, at: Connection) -> Result<()> {
        self.send_in(at, FIN | ACK, b"")?;
        if let Some(state) = self.connections.get_mut(&at) {
            state.is_open = false;
        }
        Ok(())
    }

    fn close_idle(&mut self, host: Ipv4Addr) -> Result<()> {
        let idle: Vec<Connection> = self
            .connections
            .iter()
            .filter(|(connection, state)| connection.host == host && state.is_open)
            .map(|(connection, _)| *connection)
            .collect();
        for connection in idle {
            self.close(connection)?;
        }
        Ok(())
    }

    /// Sends on a connection this host knows, and counts what was sent.
    fn send_in(&mut self, at: Connection, flags: u8, data: &[u8]) -> Result<()> {
        let Some(state) = self.connections.get_mut(&at) else {
            return Ok(());
        };
        let now = *state;
        let length = u32::try_from(data.len())? + u32::from(flags & FIN != 0);
        state.ours = state.ours.wrapping_add(length);
        if flags & RST != 0 {
            self.connections.remove(&at);
        }
        self.send(at, now.ours, now.theirs, flags, data)
    }

    fn send(
        &mut self,
        at: Connection,
        sequence: u32,
        acknowledged: u32,
        flags: u8,
        data: &[u8],
    ) -> Result<()> {
        let mut tcp = Vec::with_capacity(20 + data.len());
        tcp.extend(at.port.to_be_bytes());
        tcp.extend(at.client_port.to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acknowledged.to_be_bytes());
        tcp.extend([5 << 4, flags]);
        tcp.extend(WINDOW.to_be_bytes());
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(data);
        let mut pseudo = Vec::with_capacity(12 + tcp.len());
        pseudo.extend(at.host.octets());
        pseudo.extend(at.client.octets());
        pseudo.extend([0, TCP]);
        pseudo.extend(u16::try_from(tcp.len())?.to_be_bytes());
        pseudo.extend(&tcp);
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        self.send_ip(at.host, at.client, TCP, &tcp)
    }

    fn send_icmp(&mut self, at: Connection, kind: u8, code: u8, router: bool, about: &[u8]) -> Result<()> {
        let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
        icmp.extend(&about[..about.len().min(40)]);
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let from = if router { ROUTER } else { at.host };
        self.send_ip(from, at.client, ICMP, &icmp)
    }

    fn send_ip(&mut self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Result<()> {
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(20 + payload.len())?.to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        self.device
            .write_all(&packet)
            .context("writing to the TUN device")
    }
}

/// The internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_to_zero() {
        let mut bytes = vec![
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 78, 0, 2, 10, 78, 0, 1,
        ];
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&bytes), 0);
    }

    #[test]
    fn what_is_no_tcp_over_ipv4_is_passed_over() {
        assert!(Packet::parse(&[]).is_none());
        assert!(Packet::parse(&[0x60; 60]).is_none());
        assert!(Packet::parse(&[0x45; 12]).is_none());
    }
}
