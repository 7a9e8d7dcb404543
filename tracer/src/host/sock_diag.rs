//! Sockets as the kernel's `sock_diag` lists them, for the network namespace of the calling thread.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::host::netlink::{self, attributes};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_RQLEN: u16 = 4;

/// States by their number, named as the kernel names them.
const STATES: [&str; 13] = [
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// A unix socket that is no accepted or connected end: it listens, or is merely bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// It listens.
    pub is_listening: bool,
    /// `stream`, `dgram`, `seqpacket`.
    pub kind: &'static str,
    /// The path it was bound to, as its owner wrote it.
    pub path: Option<String>,
    /// Device and inode of its file.
    pub file: Option<(u64, u64)>,
    /// Connections waiting and their limit; listeners only.
    pub queue: Option<(u32, u32)>,
    /// The socket's inode.
    pub inode: u64,
}

/// How many TCP sockets go to `destination`, by state.
pub fn count_to(destination: SocketAddr) -> io::Result<Vec<(String, u32)>> {
    let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
    // A program with IPv6 sockets takes the same ports when it connects to a mapped IPv4 address.
    let families: &[u8] = match destination {
        SocketAddr::V4(_) => &[AF_INET, AF_INET6],
        SocketAddr::V6(_) => &[AF_INET6],
    };
    for &family in families {
        ask_inet(family, !(1 << LISTEN), (0, destination.port()), |socket| {
            let host = socket.destination.ip().to_canonical();
            if SocketAddr::new(host, socket.destination.port()) == destination {
                *counts.entry(socket.state).or_default() += 1;
            }
        })?;
    }
    let name = |state: u8| {
        STATES
            .get(usize::from(state))
            .map_or_else(|| state.to_string(), |name| (*name).to_owned())
    };
    Ok(counts
        .into_iter()
        .map(|(state, count)| (name(state), count))
        .collect())
}

/// Connections that wait for accept() and their limit, for each socket that listens where `address` leads.
pub fn accept_queues(address: SocketAddr) -> io::Result<Vec<(u32, u32)>> {
    let mut exact = Vec::new();
    let mut others = Vec::new();
    // An IPv6 socket that listens everywhere takes IPv4 connections as well.
    let families: &[u8] = match address {
        SocketAddr::V4(_) => &[AF_INET, AF_INET6],
        SocketAddr::V6(_) => &[AF_INET6],
    };
    for &family in families {
        ask_inet(family, 1 << LISTEN, (address.port(), 0), |socket| {
            let host = socket.source.ip().to_canonical();
            if host == address.ip() {
                exact.push(socket.queue);
            } else if host.is_unspecified() {
                others.push(socket.queue);
            }
        })?;
    }
    // The kernel prefers the one whose address is the narrower.
    Ok(if exact.is_empty() { others } else { exact })
}

/// What matters of `struct inet_diag_msg`.
struct InetSocket {
    state: u8,
    source: SocketAddr,
    destination: SocketAddr,
    /// `idiag_rqueue` and `idiag_wqueue`: of a listener, connections that wait and their limit.
    queue: (u32, u32),
}

impl InetSocket {
    fn read(bytes: &[u8]) -> Option<Self> {
        let port = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let address = |at: usize| {
            let octets: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
            Some(match bytes.first()? {
                &AF_INET => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
                _ => IpAddr::V6(Ipv6Addr::from(octets)),
            })
        };
        Some(Self {
            state: *bytes.get(1)?,
            source: SocketAddr::new(address(8)?, port(4)?),
            destination: SocketAddr::new(address(24)?, port(6)?),
            queue: (number(bytes, 56)?, number(bytes, 60)?),
        })
    }
}

/// Asks for TCP sockets in any of `states`; the kernel passes over those with another source or destination port, if it is
/// not 0, which matters with ten thousands of them.
fn ask_inet(
    family: u8,
    states: u32,
    (source_port, destination_port): (u16, u16),
    mut take: impl FnMut(InetSocket),
) -> io::Result<()> {
    let mut request = vec![family, IPPROTO_TCP, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(source_port.to_be_bytes());
    request.extend(destination_port.to_be_bytes());
    // No addresses, no interface; the cookie that stands for none.
    request.extend([0; 36]);
    request.extend([0xff; 8]);
    ask(&request, |bytes| {
        if let Some(socket) = InetSocket::read(bytes) {
            take(socket);
        }
    })
}

/// Every unix socket that listens or is bound without being connected.
pub fn unix_sockets() -> io::Result<Vec<UnixSocket>> {
    let show = 1_u32 << UNIX_DIAG_NAME | 1 << UNIX_DIAG_VFS | 1 << UNIX_DIAG_RQLEN;
    let mut request = vec![AF_UNIX, 0, 0, 0];
    request.extend((!(1_u32 << ESTABLISHED)).to_ne_bytes());
    request.extend([0; 4]);
    request.extend(show.to_ne_bytes());
    request.extend([0xff; 8]);
    let mut sockets = Vec::new();
    ask(&request, |bytes| sockets.extend(unix_socket(bytes)))?;
    Ok(sockets)
}

/// `struct unix_diag_msg` and its attributes.
fn unix_socket(bytes: &[u8]) -> Option<UnixSocket> {
    const SIZE: usize = 16;
    let is_listening = *bytes.get(2)? == LISTEN;
    let mut socket = UnixSocket {
        is_listening,
        kind: match bytes.get(1)? {
            1 => "stream",
            2 => "dgram",
            5 => "seqpacket",
            _ => "other",
        },
        path: None,
        file: None,
        queue: None,
        inode: number(bytes, 4)?.into(),
    };
    for (kind, value) in attributes(bytes.get(SIZE..)?) {
        match kind {
            // A zero in front marks a name that is no path.
            UNIX_DIAG_NAME if value.first().is_some_and(|first| *first != 0) => {
                let path = value.split(|byte| *byte == 0).next().unwrap_or_default();
                socket.path = Some(String::from_utf8_lossy(path).into_owned());
            }
            UNIX_DIAG_VFS => {
                // The device in the kernel's own form: 12 bits major, 20 bits minor.
                let (inode, device) = (number(value, 0)?, number(value, 4)?);
                let device = nix::sys::stat::makedev((device >> 20).into(), (device & 0xf_ffff).into());
                socket.file = Some((device, inode.into()));
            }
            UNIX_DIAG_RQLEN if is_listening => socket.queue = Some((number(value, 0)?, number(value, 4)?)),
            _ => {}
        }
    }
    Some(socket)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn ask(request: &[u8], take: impl FnMut(&[u8])) -> io::Result<()> {
    netlink::ask(
        NETLINK_SOCK_DIAG,
        SOCK_DIAG_BY_FAMILY,
        netlink::DUMP,
        request,
        take,
    )
}
