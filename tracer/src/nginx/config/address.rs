//! An address as nginx reads it in `server` and `…_pass`: host, IP literal or unix path, maybe a port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What stands before the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An address written out.
    Ip(IpAddr),
    /// A name: an upstream's, or one to be resolved.
    Name(String),
    /// A unix socket's path, as written.
    Unix(String),
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The host as written, which is how nginx names an upstream without a block.
    pub text: String,
    /// The port, when there is one.
    pub port: Option<u16>,
}

/// Whether a URI may follow the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uri {
    /// `proxy_pass`: behind a unix path it follows after a colon.
    Allowed,
    /// Everything else: a unix path takes all the rest.
    None,
}

/// Reads an address without its scheme.
pub fn parse(text: &str, uri: Uri) -> Result<Address, &'static str> {
    if let Some(rest) = strip_prefix_ignoring_case(text, "unix:") {
        let path = match uri {
            Uri::Allowed => rest.split(':').next().unwrap_or(rest),
            Uri::None => rest,
        };
        return match path.len() {
            0 => Err("no path in the unix domain socket"),
            // The kernel's sun_path has 108 bytes, the last of them a zero.
            108.. => Err("too long path in the unix domain socket"),
            _ => Ok(Address {
                host: Host::Unix(path.to_owned()),
                text: format!("unix:{path}"),
                port: None,
            }),
        };
    }
    let authority = &text[..text.find(['/', '?', '#']).unwrap_or(text.len())];
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']').ok_or("invalid host")?;
        match &authority[end + 1..] {
            "" => (&authority[..=end], None),
            rest => (
                &authority[..=end],
                Some(rest.strip_prefix(':').ok_or("invalid host")?),
            ),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = match port {
        None => None,
        Some(digits) => Some(parse_port(digits).ok_or("invalid port")?),
    };
    if host.is_empty() {
        return Err("no host");
    }
    let literal = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => Some(IpAddr::V6(
            inner.parse::<Ipv6Addr>().map_err(|_| "invalid IPv6 address")?,
        )),
        None => parse_ipv4(host).map(IpAddr::V4),
    };
    Ok(Address {
        host: match literal {
            Some(address) => Host::Ip(address.to_canonical()),
            None => Host::Name(host.to_ascii_lowercase()),
        },
        text: host.to_owned(),
        port,
    })
}

/// `text` behind `prefix`, whatever its case.
#[must_use]
pub fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn parse_port(digits: &str) -> Option<u16> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = digits.parse().ok().filter(|_| is_number)?;
    (port > 0).then_some(port)
}

/// Dotted decimal, zeros in front allowed; else the older forms that the C library takes for an address (`127.1`).
fn parse_ipv4(host: &str) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = host.split('.').collect();
    if parts.len() > 4 || parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    if let [a, b, c, d] = parts[..]
        && let (Some(a), Some(b), Some(c), Some(d)) = (decimal(a), decimal(b), decimal(c), decimal(d))
    {
        return Some(Ipv4Addr::new(a, b, c, d));
    }
    let (last, leading) = parts.split_last()?;
    let mut address = c_number(last)?;
    if u64::from(address) >= 1 << (8 * (4 - leading.len())) {
        return None;
    }
    for (index, part) in leading.iter().enumerate() {
        address |= u32::from(u8::try_from(c_number(part)?).ok()?) << (24 - 8 * index);
    }
    Some(Ipv4Addr::from(address))
}

fn decimal(part: &str) -> Option<u8> {
    let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
    part.parse().ok().filter(|_| is_number)
}

fn c_number(part: &str) -> Option<u32> {
    let (digits, base) = match strip_prefix_ignoring_case(part, "0x") {
        Some(digits) => (digits, 16),
        None if part.len() > 1 && part.starts_with('0') => (&part[1..], 8),
        None => (part, 10),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(digits, base).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, uri: Uri) -> String {
        match parse(text, uri) {
            Ok(Address { host, text, port }) => format!("{host:?} {text} {port:?}"),
            Err(error) => error.to_owned(),
        }
    }

    #[test]
    fn addresses_are_read_as_nginx_reads_them() {
        for (text, expected) in [
            ("127.0.0.1:3000/a:b", "Ip(127.0.0.1) 127.0.0.1 Some(3000)"),
            ("127.000.0.01", "Ip(127.0.0.1) 127.000.0.01 None"),
            ("127.1", "Ip(127.0.0.1) 127.1 None"),
            ("0x7f000001", "Ip(127.0.0.1) 0x7f000001 None"),
            ("256.0.0.1", "Name(\"256.0.0.1\") 256.0.0.1 None"),
            ("1.2.3.4.5", "Name(\"1.2.3.4.5\") 1.2.3.4.5 None"),
            ("[::1]:80", "Ip(::1) [::1] Some(80)"),
            ("[::ffff:10.0.0.1]", "Ip(10.0.0.1) [::ffff:10.0.0.1] None"),
            ("[::1", "invalid host"),
            ("[::1]x", "invalid host"),
            ("[fe80::1%eth0]", "invalid IPv6 address"),
            ("Api.Example?x", "Name(\"api.example\") Api.Example None"),
            ("api:", "invalid port"),
            ("api:0", "invalid port"),
            ("api:+80", "invalid port"),
            ("api:65536", "invalid port"),
            (":80", "no host"),
            ("", "no host"),
            (
                "unix:/run/a.sock:/uri",
                "Unix(\"/run/a.sock\") unix:/run/a.sock None",
            ),
            ("UNIX:/run/a.sock", "Unix(\"/run/a.sock\") unix:/run/a.sock None"),
            ("unix:", "no path in the unix domain socket"),
        ] {
            assert_eq!(shown(text, Uri::Allowed), expected, "{text}");
        }
        let rest = "Unix(\"/run/a.sock:x\") unix:/run/a.sock:x None";
        assert_eq!(shown("unix:/run/a.sock:x", Uri::None), rest);
        let long = format!("unix:{}", "x".repeat(108));
        assert_eq!(shown(&long, Uri::None), "too long path in the unix domain socket");
    }
}
