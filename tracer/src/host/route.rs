//! What the kernel's routing says about a destination, for the network namespace of the calling thread.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{errno::Errno as KernelErrno, net::if_::if_indextoname};

use crate::{
    event::{Answer, Errno},
    host::netlink,
};

const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
/// The fixed part of a route message.
const RTMSG: usize = 12;
/// Types by their number.
const KINDS: [&str; 11] = [
    "",
    "unicast",
    "local",
    "broadcast",
    "anycast",
    "multicast",
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
    "nat",
];
const RTN_LOCAL: u8 = 2;

/// Looks a destination up as a connect without a chosen source address would.
pub fn look_up(destination: IpAddr) -> io::Result<Answer> {
    let mut body = vec![0_u8; RTMSG];
    let octets = match destination {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    body[0] = match destination {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    };
    body[1] = u8::try_from(octets.len() * 8).unwrap_or(0);
    body.extend(u16::try_from(octets.len() + 4).unwrap_or(0).to_ne_bytes());
    body.extend(RTA_DST.to_ne_bytes());
    body.extend(octets);
    let mut answer = None;
    let asked = netlink::ask(NETLINK_ROUTE, RTM_GETROUTE, 0, &body, |message| {
        answer = read(message)
    });
    match asked {
        Ok(()) => answer.ok_or_else(|| io::Error::other("the kernel sent no route")),
        Err(error) => match error.raw_os_error() {
            Some(errno) => Ok(refused(errno)),
            None => Err(error),
        },
    }
}

/// A lookup that ends at a route which forbids, or at none.
fn refused(errno: i32) -> Answer {
    let kind = match KernelErrno::from_raw(errno) {
        KernelErrno::EHOSTUNREACH => Some("unreachable"),
        KernelErrno::EACCES => Some("prohibit"),
        KernelErrno::EINVAL => Some("blackhole"),
        _ => None,
    };
    Answer::Route {
        is_local: false,
        kind: kind.map(str::to_owned),
        errno: Some(Errno(errno)),
        via: None,
    }
}

fn read(message: &[u8]) -> Option<Answer> {
    let kind = *message.get(7)?;
    let (mut device, mut gateway) = (None, None);
    for (name, value) in netlink::attributes(message.get(RTMSG..)?) {
        match name {
            RTA_OIF => {
                device = value
                    .first_chunk()
                    .and_then(|bytes| device_name(u32::from_ne_bytes(*bytes)))
            }
            RTA_GATEWAY => gateway = address(value),
            // A gateway of the other family: the family stands in front.
            RTA_VIA => gateway = value.get(2..).and_then(address),
            _ => {}
        }
    }
    let via = match (device, gateway) {
        (Some(device), Some(gateway)) => Some(format!("{device} via {gateway}")),
        (Some(device), None) => Some(device),
        (None, gateway) => gateway.map(|gateway| format!("via {gateway}")),
    };
    Some(Answer::Route {
        is_local: kind == RTN_LOCAL,
        kind: KINDS.get(usize::from(kind)).map(|name| (*name).to_owned()),
        errno: None,
        via,
    })
}

fn device_name(index: u32) -> Option<String> {
    Some(if_indextoname(index).ok()?.to_string_lossy().into_owned())
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(octets)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}
