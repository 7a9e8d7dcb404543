//! What connection tracking made of a connection, in the network namespace of the calling thread.
//!
//! Asking never loads a kernel module: where connection tracking is not there nothing is translated by it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno as KernelErrno;

use crate::{event::Answer, host::netlink};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET` (include/uapi/linux/netfilter/nfnetlink_conntrack.h, 5.10 to 7.2).
const GET: u16 = 1 << 8 | 1;
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const TCP: u8 = 6;
/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// The destination that a TCP connection really has.
pub fn look_up(source: SocketAddr, destination: SocketAddr) -> io::Result<Answer> {
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists() {
        return Ok(Answer::Translation { destination: None });
    }
    // A module that could be loaded would be, by the question.
    let is_module = Path::new("/sys/module/nf_conntrack/initstate").exists();
    if is_module && !Path::new("/sys/module/nf_conntrack_netlink").exists() {
        return Err(io::Error::other("nf_conntrack_netlink is not loaded"));
    }
    let mut real = None;
    let asked = netlink::ask(
        NETLINK_NETFILTER,
        GET,
        0,
        &question(source, destination),
        |message| real = read(message),
    );
    match asked {
        Ok(()) => Ok(Answer::Translation { destination: real }),
        Err(error) if error.raw_os_error() == Some(KernelErrno::ENOENT as i32) => {
            Ok(Answer::Translation { destination: None })
        }
        Err(error) => Err(error),
    }
}

fn question(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if destination.is_ipv4() { 2 } else { 10 };
    let addresses = [
        (source.ip(), IP_V4_SRC, IP_V6_SRC),
        (destination.ip(), IP_V4_DST, IP_V6_DST),
    ]
    .into_iter()
    .flat_map(|(ip, v4, v6)| match ip {
        IpAddr::V4(ip) => attribute(v4, &ip.octets()),
        IpAddr::V6(ip) => attribute(v6, &ip.octets()),
    })
    .collect::<Vec<u8>>();
    let ports = [
        attribute(PROTO_NUM, &[TCP]),
        attribute(PROTO_SRC_PORT, &source.port().to_be_bytes()),
        attribute(PROTO_DST_PORT, &destination.port().to_be_bytes()),
    ]
    .concat();
    let tuple = [
        attribute(TUPLE_IP | NESTED, &addresses),
        attribute(TUPLE_PROTO | NESTED, &ports),
    ]
    .concat();
    let mut body = vec![family, 0, 0, 0];
    body.extend(attribute(TUPLE_ORIG | NESTED, &tuple));
    body
}

/// An attribute, filled up to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(0);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Who sends the replies.
fn read(message: &[u8]) -> Option<SocketAddr> {
    let inner = |bytes, wanted: u16| {
        netlink::attributes(bytes).find_map(|(kind, value)| (kind & !NESTED == wanted).then_some(value))
    };
    let reply = inner(message.get(NFGENMSG..)?, TUPLE_REPLY)?;
    let addresses = inner(reply, TUPLE_IP)?;
    let ip = match (inner(addresses, IP_V4_SRC), inner(addresses, IP_V6_SRC)) {
        (Some(v4), _) => IpAddr::from(<[u8; 4]>::try_from(v4).ok()?),
        (None, Some(v6)) => IpAddr::from(<[u8; 16]>::try_from(v6).ok()?),
        (None, None) => return None,
    };
    let port = inner(inner(reply, TUPLE_PROTO)?, PROTO_SRC_PORT)?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_tells_the_real_destination() {
        let ip = attribute(
            TUPLE_IP | NESTED,
            &[
                attribute(IP_V4_SRC, &[10, 77, 0, 2]),
                attribute(IP_V4_DST, &[10, 77, 0, 1]),
            ]
            .concat(),
        );
        let ports = attribute(
            TUPLE_PROTO | NESTED,
            &[
                attribute(PROTO_NUM, &[TCP]),
                attribute(PROTO_SRC_PORT, &3000_u16.to_be_bytes()),
            ]
            .concat(),
        );
        let mut message = vec![2, 0, 0, 0];
        message.extend(attribute(TUPLE_REPLY | NESTED, &[ip, ports].concat()));
        assert_eq!(read(&message), Some(SocketAddr::from(([10, 77, 0, 2], 3000))));
        assert_eq!(read(&message[..message.len() - 8]), None);
        assert_eq!(read(&[]), None);
    }
}
