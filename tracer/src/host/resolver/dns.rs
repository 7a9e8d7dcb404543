//! One name asked of one nameserver: its IPv4 and IPv6 addresses, over UDP, and over TCP where an answer was cut short.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};

use crate::event::{NameReply, NameSaid};

/// The largest message taken over UDP; without EDNS a server sends 512 bytes at most.
const MAX_UDP: usize = 4096;
/// Names that stand for another name, one after the other.
const MAX_CHAIN: usize = 16;

/// What a nameserver says of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its addresses; none: the server knows that it has none.
    pub addresses: BTreeSet<IpAddr>,
    /// Asked twice, it gave different addresses.
    pub varies: bool,
    /// How long the answer stands, in seconds: the shortest of its records.
    pub ttl_s: Option<u32>,
}

/// One question on its way.
struct Asked {
    id: u16,
    kind: TYPE,
    is_second: bool,
    answer: Option<Result<Answer, String>>,
}

/// One answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    /// There is such a name.
    exists: bool,
    addresses: BTreeSet<IpAddr>,
    ttl_s: Option<u32>,
}

/// What a message is to a question.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    /// Not its answer, or no message at all.
    Nothing,
    /// Its answer, cut short.
    Cut,
    /// The server fails or refuses: the name of its code.
    Fails(String),
    /// Its answer.
    Whole(Answer),
}

/// Asks one server until a moment. Everything is asked twice, since a server that hands out a part of its addresses,
/// another part each time, must not be taken for one that knows no others.
///
/// # Errors
/// It does not answer in time, fails, or answers nonsense.
pub fn ask(server: SocketAddr, name: &str, until: Instant) -> io::Result<Found> {
    let kinds = [
        (TYPE::A, false),
        (TYPE::AAAA, false),
        (TYPE::A, true),
        (TYPE::AAAA, true),
    ];
    let answers = converse(server, name, &kinds, until)?
        .into_iter()
        .map(|asked| {
            Ok((
                asked.is_second,
                asked.answer.ok_or_else(late)?.map_err(io::Error::other)?,
            ))
        })
        .collect::<io::Result<Vec<_>>>()?;
    Ok(found(&answers))
}

/// What one server says until a moment of the addresses of each family, once.
#[must_use]
pub fn ask_each(server: SocketAddr, name: &str, until: Instant) -> Vec<NameReply> {
    let reply = |kind: TYPE, said| NameReply {
        server,
        is_v6: kind == TYPE::AAAA,
        said,
    };
    let kinds = [(TYPE::A, false), (TYPE::AAAA, false)];
    // What cannot be asked says nothing of the server.
    if question(0, name, TYPE::A).is_err() {
        return Vec::new();
    }
    match converse(server, name, &kinds, until) {
        Ok(asked) => asked
            .into_iter()
            .map(|asked| {
                let said = match asked.answer {
                    None => NameSaid::Nothing(late().to_string()),
                    Some(Err(code)) => NameSaid::Fails(code),
                    Some(Ok(Answer { exists: false, .. })) => NameSaid::NoSuchName,
                    Some(Ok(answer)) => NameSaid::Addresses(answer.addresses.into_iter().collect()),
                };
                reply(asked.kind, said)
            })
            .collect(),
        Err(error) => kinds
            .iter()
            .map(|(kind, _)| reply(*kind, NameSaid::Nothing(crate::lines::plain(&error))))
            .collect(),
    }
}

/// Asks all at once, until everything is answered or a moment comes.
fn converse(
    server: SocketAddr,
    name: &str,
    kinds: &[(TYPE, bool)],
    until: Instant,
) -> io::Result<Vec<Asked>> {
    let socket = UdpSocket::bind(match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    })?;
    // Connected, so that nobody else's packets arrive and a refusal is told.
    socket.connect(server)?;
    let first_id = any_id();
    let mut asked = Vec::new();
    for (number, &(kind, is_second)) in (0_u16..).zip(kinds) {
        let id = first_id.wrapping_add(number);
        socket.send(&question(id, name, kind)?)?;
        asked.push(Asked {
            id,
            kind,
            is_second,
            answer: None,
        });
    }
    let mut buffer = [0; MAX_UDP];
    while asked.iter().any(|asked| asked.answer.is_none()) {
        let Ok(left) = left(until) else { break };
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        let message = &buffer[..length];
        for asked in asked.iter_mut().filter(|asked| asked.answer.is_none()) {
            asked.answer = match read(message, asked.id, name, asked.kind) {
                Reading::Nothing => continue,
                Reading::Cut => Some(
                    ask_whole(server, asked.id, name, asked.kind, until).unwrap_or_else(|error| {
                        Err(format!("cut short, and over TCP {}", crate::lines::plain(&error)))
                    }),
                ),
                Reading::Fails(code) => Some(Err(code)),
                Reading::Whole(answer) => Some(Ok(answer)),
            };
        }
    }
    Ok(asked)
}

/// What answers, each with whether it was asked for a second time, come to.
fn found(answers: &[(bool, Answer)]) -> Found {
    let of_time = |is_second: bool| -> BTreeSet<IpAddr> {
        let of_it = answers.iter().filter(|(is, _)| *is == is_second);
        of_it
            .flat_map(|(_, answer)| answer.addresses.iter().copied())
            .collect()
    };
    let (first, second) = (of_time(false), of_time(true));
    Found {
        varies: first != second,
        addresses: first.union(&second).copied().collect(),
        ttl_s: answers.iter().filter_map(|(_, answer)| answer.ttl_s).min(),
    }
}

/// Asks over TCP.
fn ask_whole(
    server: SocketAddr,
    id: u16,
    name: &str,
    kind: TYPE,
    until: Instant,
) -> io::Result<Result<Answer, String>> {
    let mut stream = TcpStream::connect_timeout(&server, left(until)?)?;
    let message = question(id, name, kind)?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.set_write_timeout(Some(left(until)?))?;
    stream.write_all(&[&length.to_be_bytes()[..], &message].concat())?;
    let mut length = [0; 2];
    read_until(&mut stream, &mut length, until)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    read_until(&mut stream, &mut message, until)?;
    match read(&message, id, name, kind) {
        Reading::Whole(answer) => Ok(Ok(answer)),
        Reading::Fails(code) => Ok(Err(code)),
        Reading::Cut | Reading::Nothing => Err(io::Error::other("its answer over TCP is none")),
    }
}

/// Fills the buffer, however slowly the bytes come, but not beyond the moment.
fn read_until(stream: &mut TcpStream, buffer: &mut [u8], until: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn question(id: u16, name: &str, kind: TYPE) -> io::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let is_name = !plain_text(name).split('.').any(str::is_empty);
    let name = Name::new(name)
        .ok()
        .filter(|_| is_name)
        .ok_or_else(|| io::Error::other(format!("`{name}` is no name that can be asked for")))?;
    packet.questions.push(Question::new(
        name,
        QTYPE::TYPE(kind),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet
        .build_bytes_vec()
        .map_err(|error| io::Error::other(format!("{error:?}")))
}

/// What `message` says to the question with this id.
fn read(message: &[u8], id: u16, name: &str, kind: TYPE) -> Reading {
    let Ok(packet) = Packet::parse(message) else {
        return Reading::Nothing;
    };
    let [question] = &packet.questions[..] else {
        return Reading::Nothing;
    };
    let is_its = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && plain(&question.qname) == plain_text(name)
        && question.qtype == QTYPE::TYPE(kind);
    if !is_its {
        return Reading::Nothing;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Reading::Cut;
    }
    match packet.rcode() {
        RCODE::NoError | RCODE::NameError => {}
        RCODE::FormatError => return Reading::Fails("FORMERR".to_owned()),
        RCODE::ServerFailure => return Reading::Fails("SERVFAIL".to_owned()),
        RCODE::NotImplemented => return Reading::Fails("NOTIMP".to_owned()),
        RCODE::Refused => return Reading::Fails("REFUSED".to_owned()),
        other => return Reading::Fails(format!("{other:?}")),
    }
    let mut owner = plain_text(name);
    let mut answer = Answer {
        exists: packet.rcode() == RCODE::NoError,
        addresses: BTreeSet::new(),
        ttl_s: None,
    };
    let mut took = |ttl: u32| answer.ttl_s = Some(answer.ttl_s.map_or(ttl, |before| before.min(ttl)));
    for _ in 0..MAX_CHAIN {
        let alias = packet.answers.iter().find_map(|record| match &record.rdata {
            RData::CNAME(target) if plain(&record.name) == owner => Some((plain(&target.0), record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        took(ttl);
        owner = target;
    }
    for record in packet
        .answers
        .iter()
        .filter(|record| plain(&record.name) == owner)
    {
        let address = match &record.rdata {
            RData::A(a) => IpAddr::V4(Ipv4Addr::from(a.address)),
            RData::AAAA(aaaa) => IpAddr::V6(Ipv6Addr::from(aaaa.address)),
            _ => continue,
        };
        took(record.ttl);
        answer.addresses.insert(address.to_canonical());
    }
    Reading::Whole(answer)
}

/// A name without regard to case.
fn plain(name: &Name<'_>) -> String {
    name.to_string().to_ascii_lowercase()
}

fn plain_text(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A number that nobody on the way can foresee.
fn any_id() -> u16 {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(left) }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

#[cfg(test)]
mod tests;
