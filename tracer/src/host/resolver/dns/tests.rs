//! Messages of nameservers, whole, cut short and broken, and servers of one process.

use std::{net::TcpListener, thread};

use proptest::prelude::*;
use simple_dns::{ResourceRecord, rdata};

use super::*;

fn name(text: &str) -> Name<'_> {
    Name::new(text).expect("a name")
}

fn a(owner: &'static str, last: u8) -> ResourceRecord<'static> {
    let address = u32::from(Ipv4Addr::new(10, 0, 0, last));
    ResourceRecord::new(name(owner), CLASS::IN, 60, RData::A(rdata::A { address }))
}

fn alias(owner: &'static str, target: &'static str, ttl: u32) -> ResourceRecord<'static> {
    ResourceRecord::new(
        name(owner),
        CLASS::IN,
        ttl,
        RData::CNAME(rdata::CNAME(name(target))),
    )
}

/// The answer to what `asked` asks.
fn reply(asked: &[u8], records: Vec<ResourceRecord<'static>>, flags: PacketFlag, code: RCODE) -> Vec<u8> {
    let mut packet = Packet::parse(asked).expect("a question").into_reply();
    packet.answers = records;
    packet.set_flags(PacketFlag::RESPONSE | flags);
    *packet.rcode_mut() = code;
    packet.build_bytes_vec_compressed().expect("an answer")
}

fn whole(asked: &[u8], records: Vec<ResourceRecord<'static>>) -> Vec<u8> {
    reply(asked, records, PacketFlag::RECURSION_AVAILABLE, RCODE::NoError)
}

fn kind_of(asked: &[u8]) -> QTYPE {
    Packet::parse(asked).expect("a question").questions[0].qtype
}

fn addresses(last: &[u8]) -> BTreeSet<IpAddr> {
    last.iter()
        .map(|last| Ipv4Addr::new(10, 0, 0, *last).into())
        .collect()
}

#[test]
fn an_answer_is_read_along_its_chain_of_names() {
    let asked = question(7, "API.lab", TYPE::A).expect("a question");
    let message = whole(
        &asked,
        vec![
            alias("api.lab", "web.lab", 5),
            a("web.lab", 9),
            // Nobody asked for that one.
            a("other.lab", 1),
        ],
    );
    let expected = Answer {
        exists: true,
        addresses: addresses(&[9]),
        ttl_s: Some(5),
    };
    assert_eq!(read(&message, 7, "api.lab.", TYPE::A), Reading::Whole(expected));
    assert_eq!(read(&message, 8, "api.lab", TYPE::A), Reading::Nothing);
    assert_eq!(read(&message, 7, "api.lab", TYPE::AAAA), Reading::Nothing);
    assert_eq!(read(&message, 7, "app.lab", TYPE::A), Reading::Nothing);
    assert_eq!(read(&asked, 7, "api.lab", TYPE::A), Reading::Nothing);
}

#[test]
fn a_server_that_fails_says_nothing_of_the_name() {
    let asked = question(7, "api.lab", TYPE::A).expect("a question");
    let said = |code| {
        read(
            &reply(&asked, vec![], PacketFlag::RECURSION_AVAILABLE, code),
            7,
            "api.lab",
            TYPE::A,
        )
    };
    let nothing = |exists| {
        Reading::Whole(Answer {
            exists,
            addresses: BTreeSet::new(),
            ttl_s: None,
        })
    };
    assert_eq!(said(RCODE::NameError), nothing(false));
    assert_eq!(said(RCODE::NoError), nothing(true));
    assert_eq!(said(RCODE::ServerFailure), Reading::Fails("SERVFAIL".to_owned()));
    assert_eq!(said(RCODE::Refused), Reading::Fails("REFUSED".to_owned()));
    let cut = reply(&asked, vec![], PacketFlag::TRUNCATION, RCODE::NoError);
    assert_eq!(read(&cut, 7, "api.lab", TYPE::A), Reading::Cut);
}

#[test]
fn aliases_in_a_circle_end() {
    let asked = question(7, "a.lab", TYPE::A).expect("a question");
    let message = whole(
        &asked,
        vec![alias("a.lab", "b.lab", 5), alias("b.lab", "a.lab", 5)],
    );
    assert!(
        matches!(read(&message, 7, "a.lab", TYPE::A), Reading::Whole(answer) if answer.addresses.is_empty())
    );
}

#[test]
fn what_is_no_name_is_not_asked_for() {
    assert!(question(7, &"x".repeat(64), TYPE::A).is_err());
    assert!(question(7, "a..b", TYPE::A).is_err());
}

proptest! {
    #[test]
    fn no_message_is_too_broken(message in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&message, 7, "api.lab", TYPE::A);
    }

    /// A message that is right but for a few bytes.
    #[test]
    fn no_answer_is_too_broken(at in proptest::collection::vec((0_usize..200, any::<u8>()), 1..8), cut in 0_usize..200) {
        let asked = question(7, "api.lab", TYPE::A).expect("a question");
        let mut message = whole(&asked, vec![alias("api.lab", "web.lab", 5), a("web.lab", 9)]);
        let length = message.len();
        for (place, byte) in at {
            message[place % length] = byte;
        }
        message.truncate(cut);
        let _ = read(&message, 7, "api.lab", TYPE::A);
    }
}

/// A nameserver for one `ask`, that answers each of its questions by number.
fn serve(answer: impl Fn(usize, &[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        for number in 0..4 {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                return;
            };
            let _ = socket.send_to(b"no message", from);
            let _ = socket.send_to(&answer(number, &buffer[..length]), from);
        }
    });
    address
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_name_is_asked_for_twice() {
    let of_kind = |asked: &[u8], last: u8| match kind_of(asked) {
        QTYPE::TYPE(TYPE::A) => whole(asked, vec![a("api.lab", last)]),
        _ => whole(asked, vec![]),
    };
    let same = serve(move |_, asked| of_kind(asked, 9));
    let expected = Found {
        addresses: addresses(&[9]),
        varies: false,
        ttl_s: Some(60),
    };
    assert_eq!(ask(same, "api.lab", soon()).expect("an answer"), expected);
    let other = serve(move |number, asked| of_kind(asked, if number < 2 { 9 } else { 8 }));
    let found = ask(other, "api.lab", soon()).expect("an answer");
    assert_eq!((found.varies, found.addresses), (true, addresses(&[8, 9])));
}

#[test]
fn an_answer_that_was_cut_short_is_asked_for_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("bound");
    let socket = UdpSocket::bind(address).expect("the same port");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let cut = reply(&buffer[..length], vec![], PacketFlag::TRUNCATION, RCODE::NoError);
            let _ = socket.send_to(&cut, from);
        }
    });
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut asked = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut asked).expect("a question");
            let records = match kind_of(&asked) {
                QTYPE::TYPE(TYPE::A) => (1..=40).map(|last| a("api.lab", last)).collect(),
                _ => vec![],
            };
            let answer = whole(&asked, records);
            let length = u16::try_from(answer.len()).expect("short").to_be_bytes();
            stream.write_all(&length).expect("written");
            stream.write_all(&answer).expect("written");
        }
    });
    let found = ask(address, "api.lab", soon()).expect("an answer");
    assert_eq!((found.varies, found.addresses.len()), (false, 40));
}

#[test]
fn a_server_that_is_not_there_or_silent_gives_no_answer() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = silent.local_addr().expect("bound");
    let error = ask(address, "api.lab", Instant::now() + Duration::from_millis(50)).expect_err("silence");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(silent);
    let error = ask(address, "api.lab", soon()).expect_err("nobody");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}
