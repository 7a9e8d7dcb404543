//! The engine as a whole: inputs in, attempts out. Per cause one story and its nearest look-alike.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::{
    event::{
        Answer, Balancing, Config, ConfiguredPeer, Confinement, ConnId, ConnectDenied, Denial, Denier, Exit,
        Icmp, Listener, Netns, PathComponent, Program, ResetBy, RouteError, Sock, Task, TcpState, Told,
        Tuple, UnixPath, UnixSocket,
    },
    model::{Confidence, Finding, HookStatus, Summary},
};

mod any;
mod names;
mod outdated;

const MS: u64 = 1_000_000;
const T0: u64 = 1_000_000 * MS;
const WORKER: Pid = Pid(811);
const HERE: Netns = Netns(1);

/// Milliseconds after the story begins.
fn ms(after: i64) -> Ktime {
    Ktime(T0.saturating_add_signed(after * 1_000_000))
}

fn us(after: u64) -> Ktime {
    Ktime(T0 + after * 1000)
}

fn task(pid: u32, comm: &str) -> Task {
    Task {
        pid: Pid(pid),
        comm: comm.to_owned(),
        exiting: None,
        oom: false,
    }
}

fn ending(pid: u32, comm: &str, exit: Exit) -> Task {
    Task {
        exiting: Some(exit),
        ..task(pid, comm)
    }
}

fn peer(text: &str) -> Peer {
    text.parse().expect("an address")
}

fn local() -> SocketAddr {
    "127.0.0.1:40000".parse().expect("an address")
}

fn id(sock: u64, number: u32) -> ExchangeId {
    ExchangeId {
        conn: ConnId {
            sock: Sock(sock),
            since: ms(0),
        },
        number,
    }
}

/// A connect to `to` that began at 0 and ended at `ended`, with nothing else seen.
fn connect(to: &str, ended: Ktime) -> Exchange {
    let to = peer(to);
    Exchange {
        id: id(1, 1),
        worker: WORKER,
        netns: HERE,
        local: matches!(to, Peer::Tcp(_)).then(local),
        peer: to,
        preexisting: false,
        uncut: false,
        began_at: ms(0),
        previous_at: None,
        connect_at: Some(ms(0)),
        established_at: None,
        first_sent_at: None,
        last_sent_at: None,
        sent: 0,
        acked: 0,
        first_received_at: None,
        last_received_at: None,
        received: 0,
        unread: 0,
        arrived_at: None,
        eof_read_at: None,
        send_error: None,
        send_blocked_at: None,
        recv_error: None,
        fin_at: None,
        fin_before_request: false,
        late: false,
        answered: false,
        reset_at: None,
        reset_in: None,
        acked_at_reset: 0,
        error: None,
        error_at: None,
        soft_error: None,
        error_unfetched: false,
        icmp: None,
        syn_retransmits: 0,
        retransmits: 0,
        last_retransmit_at: None,
        head: None,
        rtt_us: None,
        send_window: None,
        ended_at: ended,
        end: EndKind::Closed,
        closed_in: Some(TcpState::SynSent),
        backend: None,
        line: None,
        retry_of: None,
    }
}

/// A connect that a reset refused.
fn refused(to: &str) -> Exchange {
    Exchange {
        reset_at: Some(us(100)),
        reset_in: Some(TcpState::SynSent),
        error: Some(Errno(111)),
        error_at: Some(us(100)),
        closed_in: Some(TcpState::Close),
        ..connect(to, us(200))
    }
}

/// A request of 100 bytes, sent and acknowledged at once on a new connection, and then silence until `ended`.
fn sent(to: &str, ended: Ktime) -> Exchange {
    Exchange {
        established_at: Some(us(50)),
        first_sent_at: Some(ms(1)),
        last_sent_at: Some(ms(1)),
        sent: 100,
        acked: 100,
        rtt_us: Some(80),
        closed_in: Some(TcpState::Established),
        ..connect(to, ended)
    }
}

/// The same on a connection that was idle for 5 s.
fn sent_again(to: &str, ended: Ktime) -> Exchange {
    Exchange {
        id: id(1, 2),
        connect_at: None,
        established_at: None,
        previous_at: Some(ms(-5000)),
        ..sent(to, ended)
    }
}

/// A backend process that has read all of the request.
fn reader() -> Backend {
    Backend {
        sock: Sock(77),
        netns: HERE,
        task: Some(task(4242, "node")),
        accepted: true,
        first_read_at: Some(ms(1)),
        last_read_at: Some(ms(1)),
        read: 100,
        ..Backend::default()
    }
}

/// The peer ended the connection with a FIN at `at`, and nginx read the end.
fn closed(exchange: Exchange, at: Ktime) -> Exchange {
    Exchange {
        fin_at: Some(at),
        eof_read_at: Some(Ktime(at.0 + 100_000)),
        ended_at: Ktime(at.0 + 200_000),
        closed_in: Some(TcpState::CloseWait),
        ..exchange
    }
}

/// The peer reset the connection at `at`, and nginx read the error.
fn reset(exchange: Exchange, at: Ktime) -> Exchange {
    Exchange {
        reset_at: Some(at),
        reset_in: Some(TcpState::Established),
        error: Some(Errno(104)),
        error_at: Some(at),
        recv_error: Some(Errno(104)),
        ended_at: Ktime(at.0 + 200_000),
        closed_in: Some(TcpState::Close),
        ..exchange
    }
}

fn line_id(number: u64) -> LineId {
    LineId {
        at: Ktime(number),
        worker: WORKER,
    }
}

fn line(number: u64, at: Ktime, message: &str, errno: Option<i32>) -> Line {
    Line {
        id: line_id(number),
        worker: WORKER,
        at,
        level: 4,
        errno: errno.map(Errno),
        connection: Some(7),
        message: message.to_owned(),
        action: Some("connecting to upstream".to_owned()),
        argument: None,
        number: None,
        route: None,
        denied: None,
        programs: None,
        follows: None,
    }
}

/// A connect that failed at once, as nginx's own line tells it.
fn at_once(to: &str, errno: i32) -> Line {
    Line {
        argument: Some(to.to_owned()),
        ..line(1, ms(0), "connect() to %V failed", Some(errno))
    }
}

fn logged(message: &str, errno: Option<i32>, to: &str) -> LogLine {
    LogLine {
        text: format!("[error] 811#811: *7 {message}"),
        time: 0,
        pid: WORKER,
        connection: Some(7),
        level: "error".to_owned(),
        message: message.to_owned(),
        errno: errno.map(Errno),
        action: Some("connecting to upstream".to_owned()),
        upstream: Some(format!("http://{to}/a")),
        peer: to.parse().ok(),
        client: Some("192.0.2.9".to_owned()),
        host: Some("shop.example".to_owned()),
        request: Some(("GET".to_owned(), "/a".to_owned())),
        is_udp: false,
    }
}

fn listener(address: &str, owner: Task) -> Listener {
    Listener {
        sock: Sock(500),
        netns: HERE,
        address: peer(address),
        v6only: false,
        queue: 0,
        limit: 511,
        task: owner,
    }
}

fn listener_closed(at: Ktime, address: &str, owner: Task) -> Event {
    Event::ListenerClosed {
        at,
        listener: listener(address, owner),
    }
}

fn exited(at: Ktime, task: Task) -> Event {
    Event::ProcessExited {
        at,
        task,
        parent: Pid(1),
        is_nginx: false,
        signalled_by: None,
        told: None,
    }
}

fn syn(to: &str) -> Tuple {
    let Peer::Tcp(destination) = peer(to) else {
        panic!("a TCP address")
    };
    Tuple {
        source: local(),
        destination,
    }
}

fn no_socket(to: &str) -> Event {
    no_socket_of(to, None)
}

fn no_socket_of(to: &str, conn: Option<ConnId>) -> Event {
    Event::ResetSent {
        at: us(90),
        netns: HERE,
        tuple: syn(to),
        reason: Some("NO_SOCKET".to_owned()),
        by: ResetBy::NoSocket,
        flags: 2,
        conn,
    }
}

fn dropped(to: &str, reason: &str) -> Event {
    Event::Dropped {
        at: us(80),
        netns: HERE,
        tuple: syn(to),
        flags: 2,
        reason: Some(reason.to_owned()),
        location: None,
        conn: None,
    }
}

/// An engine under test with the host's usual introduction behind it.
struct Lab {
    engine: Engine,
    outputs: Vec<Output>,
}

impl Lab {
    /// Everything can be seen, nginx's own voice included.
    fn new() -> Self {
        Self::with_hooks(&[])
    }

    fn with_hooks(missing: &[&str]) -> Self {
        let mut lab = Self {
            engine: Engine::new(EngineOptions::default()),
            outputs: Vec::new(),
        };
        let hook = |sees: &&str| HookStatus {
            sees: (*sees).to_owned(),
            how: (!missing.contains(sees)).then(|| "a way".to_owned()),
            why_not: None,
            without: "it is not seen".to_owned(),
        };
        let hooks = [
            "bytes",
            "resets-received",
            "resets-sent",
            "drops",
            "nginx-log",
            "snapshot",
        ];
        // Where nobody said that the log file is read, nothing waits for it.
        let file = missing.iter().filter(|sees| **sees == "error-log-file");
        let hooks = hooks.iter().chain(file).map(hook).collect();
        lab.tell(ms(-9000), Input::Hooks(hooks));
        let own: IpAddr = "10.0.0.1".parse().expect("an address");
        lab.tell(
            ms(-9000),
            Input::Addresses {
                netns: HERE,
                addresses: vec![Ipv4Addr::LOCALHOST.into(), own],
            },
        );
        lab.introduce(WORKER);
        lab
    }

    /// Says whose this worker is.
    fn introduce(&mut self, worker: Pid) {
        self.tell(
            ms(-9000),
            Input::Worker {
                worker,
                master: Pid(800),
                started: ms(-9500),
            },
        );
    }

    fn tell(&mut self, at: Ktime, input: Input) {
        self.outputs.extend(self.engine.apply(at, input));
    }

    fn see(&mut self, event: Event) {
        self.tell(ms(0), Input::Kernel(event));
    }

    fn end(&mut self, exchange: Exchange) {
        self.tell(
            exchange.ended_at,
            Input::Kernel(Event::Exchange(Box::new(exchange))),
        );
    }

    fn answer(&mut self, answer: Answer) {
        self.answer_at(ms(5), answer);
    }

    fn answer_at(&mut self, at: Ktime, answer: Answer) {
        let asked = self.outputs.iter().rev().find_map(|output| match output {
            Output::Ask(question) => Some(question.clone()),
            _ => None,
        });
        let question = asked.expect("a question was asked");
        self.tell(at, Input::Answer { question, answer });
    }

    fn attempts(&self) -> Vec<&Attempt> {
        let attempt = |output: &'_ Output| matches!(output, Output::Attempt(_));
        self.outputs
            .iter()
            .filter(|output| attempt(output))
            .filter_map(|output| match output {
                Output::Attempt(attempt) => Some(&**attempt),
                _ => None,
            })
            .collect()
    }

    /// Detaches and returns the one attempt there must be.
    fn only(mut self) -> Attempt {
        self.tell(ms(100_000), Input::Detach { in_flight: 0 });
        let attempts = self.attempts();
        assert_eq!(attempts.len(), 1, "{attempts:#?}");
        attempts[0].clone()
    }

    fn summary(&mut self) -> Summary {
        self.tell(ms(100_000), Input::Detach { in_flight: 0 });
        match self.outputs.last() {
            Some(Output::Summary(summary)) => (**summary).clone(),
            other => panic!("the last output is {other:?}"),
        }
    }
}

fn verdict(attempt: &Attempt) -> (&'static str, Confidence) {
    let cause = attempt.cause.as_ref().expect("a cause");
    (cause.id, cause.confidence)
}

/// What a story without any further input is called, at detach.
fn named(events: Vec<Event>, exchange: Exchange) -> (&'static str, Confidence) {
    let mut lab = Lab::new();
    for event in events {
        lab.see(event);
    }
    lab.end(exchange);
    verdict(&lab.only())
}

const APP: &str = "127.0.0.1:3000";
const FAR: &str = "192.0.2.7:80";
use Confidence::{Confirmed, Likely};

#[test]
fn a_refusal_is_told_by_who_refused() {
    assert_eq!(
        named(vec![no_socket(APP)], refused(APP)),
        ("no-listener", Confirmed)
    );
    assert_eq!(named(vec![], refused(FAR)), ("refused-remotely", Confirmed));
    assert_eq!(
        named(vec![dropped(APP, "NETFILTER_DROP")], refused(APP)),
        ("firewall-reset", Confirmed)
    );
    // On this host, and nobody was seen to refuse it: an honest unknown.
    assert_eq!(named(vec![], refused(APP)).0, "unknown");
}

#[test]
fn a_closed_listener_is_told_by_how_its_owner_ended() {
    let after = |owner: Task| {
        named(
            vec![listener_closed(ms(-300), "0.0.0.0:3000", owner), no_socket(APP)],
            refused(APP),
        )
    };
    assert_eq!(
        after(ending(4242, "node", Exit::Signal(9))),
        ("listener-died", Confirmed)
    );
    assert_eq!(
        after(ending(4242, "node", Exit::Code(1))),
        ("listener-died", Confirmed)
    );
    assert_eq!(
        after(ending(4242, "node", Exit::Signal(15))),
        ("listener-restarting", Confirmed)
    );
    assert_eq!(
        after(ending(4242, "node", Exit::Code(0))),
        ("listener-restarting", Confirmed)
    );
    assert_eq!(after(task(4242, "node")), ("listener-restarting", Confirmed));
    let old = listener_closed(
        ms(-700_000),
        "0.0.0.0:3000",
        ending(4242, "node", Exit::Signal(9)),
    );
    assert_eq!(named(vec![old, no_socket(APP)], refused(APP)).0, "no-listener");
}

#[test]
fn the_sentence_of_a_dead_listener_says_who_and_how() {
    let mut lab = Lab::new();
    let node = Task {
        oom: true,
        ..ending(4242, "node", Exit::Signal(9))
    };
    lab.see(exited(ms(-312), node.clone()));
    lab.see(listener_closed(ms(-311), "0.0.0.0:3000", node));
    lab.see(no_socket(APP));
    lab.end(refused(APP));
    let attempt = lab.only();
    let cause = attempt.cause.as_ref().expect("a cause");
    assert_eq!(
        cause.summary,
        "Nothing listens there any more: node (pid 4242) was killed by the OOM killer 312 ms before, and its listener \
         closed with it."
    );
    let texts: Vec<&str> = cause.evidence.iter().map(|fact| fact.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "node[4242] ended by SIGKILL, chosen by the OOM killer",
            "0.0.0.0:3000 closed (node[4242], backlog 511)",
            "this host answered 127.0.0.1:3000 with RST: no socket there",
        ]
    );
    assert_eq!(
        attempt.also.iter().map(|cause| cause.id).collect::<Vec<_>>(),
        ["no-listener"]
    );
}

#[test]
fn a_listener_on_another_family_is_named() {
    let found = |address: &str| Event::ListenerFound {
        at: ms(-9),
        listener: listener(address, task(9, "app")),
    };
    let elsewhere = found("[::1]:3000");
    assert_eq!(
        named(vec![elsewhere, no_socket(APP)], refused(APP)),
        ("listener-elsewhere", Confirmed)
    );
    let other_port = found("[::1]:3001");
    assert_eq!(
        named(vec![other_port, no_socket(APP)], refused(APP)).0,
        "no-listener"
    );
}

#[test]
fn a_kernel_without_reset_reasons_still_tells_who_refused() {
    let mut lab = Lab::with_hooks(&["resets-sent"]);
    lab.see(dropped(APP, "NO_SOCKET"));
    lab.end(refused(APP));
    assert_eq!(verdict(&lab.only()), ("no-listener", Confirmed));

    let mut lab = Lab::with_hooks(&["resets-sent"]);
    lab.end(refused(APP));
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("no-listener", Likely));
    assert!(
        attempt.unseen.iter().any(|text| text.contains("resets-sent")),
        "{:?}",
        attempt.unseen
    );
}

/// ICMP in `SYN_SENT`: no `sk_err`, only the soft error and the packet.
fn icmp(to: &str, kind: u8, code: u8, sender: &str, errno: i32) -> Exchange {
    Exchange {
        soft_error: Some(Errno(errno)),
        icmp: Some(Icmp {
            at: us(120),
            kind,
            code,
            sender: sender.parse().ok(),
            errno: Errno(errno),
        }),
        ..connect(to, us(300))
    }
}

#[test]
fn icmp_is_told_by_its_code_and_sender() {
    assert_eq!(
        named(vec![], icmp(FAR, 3, 3, "192.0.2.7", 111)),
        ("firewall-port-unreachable", Confirmed)
    );
    assert_eq!(
        named(vec![], icmp(FAR, 3, 10, "192.0.2.1", 113)),
        ("icmp-prohibited", Confirmed)
    );
    assert_eq!(
        named(vec![], icmp(FAR, 3, 1, "192.0.2.1", 113)),
        ("icmp-unreachable", Confirmed)
    );
    assert_eq!(
        named(vec![], icmp(FAR, 3, 0, "192.0.2.1", 101)),
        ("icmp-unreachable", Confirmed)
    );
    assert_eq!(
        named(vec![], icmp(FAR, 11, 0, "192.0.2.1", 113)),
        ("ttl-exceeded", Confirmed)
    );
    assert_eq!(
        named(vec![], icmp("[2001:db8::7]:80", 3, 0, "2001:db8::1", 113)).0,
        "ttl-exceeded"
    );
    // A fragment that was never completed.
    assert_eq!(named(vec![], icmp(FAR, 11, 1, "192.0.2.1", 113)).0, "unknown");
    let silent = Exchange {
        syn_retransmits: 2,
        ended_at: ms(3050),
        ..icmp(FAR, 3, 1, "10.0.0.1", 113)
    };
    assert_eq!(named(vec![], silent), ("neighbour-silent", Confirmed));
    // The same packet from our own address, sent by a rule of ours, is no silent neighbour.
    let rule = icmp(FAR, 3, 1, "10.0.0.1", 113);
    assert_eq!(
        named(vec![dropped(FAR, "NETFILTER_DROP")], rule),
        ("icmp-unreachable", Confirmed)
    );
}

/// The round trip of a connection that was measured on a busy machine is no bound for the next one.
#[test]
fn a_reset_sooner_than_half_the_usual_round_trip_is_no_race() {
    let soon = Exchange {
        acked: 0,
        rtt_us: Some(42_884),
        ..reset(sent_again(FAR, ms(80)), ms(10))
    };
    assert_eq!(named(vec![], soon), ("reset-remotely", Confirmed));
}

/// Another task that holds the socket's file delays nginx's close, and nginx has gone on meanwhile.
#[test]
fn a_close_that_is_seen_late_has_its_line() {
    let late = |exchange: Exchange| Exchange {
        late: true,
        ended_at: ms(2),
        line: None,
        ..exchange
    };
    let says = |number, errno| {
        let message = "connect() failed";
        Event::Line(line(number, Ktime(us(150).0 + number), message, errno))
    };
    let mut lab = Lab::new();
    lab.see(says(1, Some(113)));
    lab.see(says(2, Some(111)));
    lab.see(no_socket(APP));
    lab.end(late(refused(APP)));
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("no-listener", Confirmed));
    assert!(attempt.nginx_says.is_some(), "{attempt:?}");
    assert_eq!(attempt.ended_at, Ktime(us(150).0 + 2));

    // Without a line nobody knows what nginx thought of it.
    let mut lab = Lab::new();
    lab.see(says(1, Some(113)));
    lab.see(no_socket(APP));
    lab.end(late(refused(APP)));
    assert!(lab.only().nginx_says.is_none());
}

/// A kernel may skip programs: what one of them would have seen must not be taken for what did not happen.
#[test]
fn what_no_program_saw_is_not_what_did_not_happen() {
    // This host gave up on the neighbour: a rule would have answered at once.
    let busy = Exchange {
        ended_at: ms(620),
        ..icmp(FAR, 3, 1, "10.0.0.1", 113)
    };
    let mut late = busy.clone();
    late.icmp.as_mut().unwrap().at = ms(619);
    assert_eq!(named(vec![], late), ("neighbour-silent", Likely));
    // It had come at once, and the worker saw it late.
    assert_eq!(named(vec![], busy).0, "unknown");
    // A rule, or a neighbour that was asked for by an earlier connection.
    let soon = icmp(FAR, 3, 1, "10.0.0.1", 113);
    assert_eq!(named(vec![], soon).0, "unknown");
    // A segment that ended the connect was a reset.
    let unseen = Exchange {
        answered: true,
        reset_at: None,
        reset_in: None,
        ..refused(APP)
    };
    assert_eq!(
        named(vec![no_socket(APP)], unseen.clone()),
        ("no-listener", Confirmed)
    );
    let ipv6 = Exchange {
        peer: peer("[::1]:3000"),
        ..unseen
    };
    assert_eq!(
        named(vec![dropped("[::1]:3000", "NETFILTER_DROP")], ipv6),
        ("firewall-reset", Confirmed)
    );
    // On IPv4 an ICMP error would lie in the socket's queue.
    let bare = Exchange {
        reset_at: None,
        reset_in: None,
        ..refused(FAR)
    };
    assert_eq!(named(vec![], bare).0, "unknown");
    // A SYN to this host is answered or dropped.
    let silent = Exchange {
        syn_retransmits: 2,
        ..connect(APP, ms(3000))
    };
    let mut deaf = Lab::with_hooks(&["nginx-log"]);
    deaf.end(silent);
    assert_eq!(verdict(&deaf.only()).0, "unknown");
}

#[test]
fn a_silent_connect_is_told_by_what_became_of_the_syn() {
    let silent = || Exchange {
        syn_retransmits: 2,
        ..connect(FAR, ms(3000))
    };
    let mut deaf = Lab::with_hooks(&["nginx-log"]);
    deaf.end(silent());
    assert_eq!(verdict(&deaf.only()), ("syn-unanswered", Confirmed));

    let mut lab = Lab::new();
    lab.see(Event::Line(line(1, ms(2999), "upstream timed out", Some(110))));
    lab.see(dropped(FAR, "NETFILTER_DROP"));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..silent()
    });
    assert_eq!(verdict(&lab.only()), ("packet-dropped-locally", Confirmed));

    let mut lab = Lab::new();
    lab.see(Event::Line(line(1, ms(2999), "upstream timed out", Some(110))));
    let full = Listener {
        queue: 129,
        limit: 128,
        ..listener("127.0.0.1:3000", task(9, "gunicorn"))
    };
    lab.see(Event::ListenerQueue {
        at: ms(1000),
        conn: id(1, 1).conn,
        listener: full,
    });
    lab.end(Exchange {
        line: Some(line_id(1)),
        syn_retransmits: 2,
        ..connect(APP, ms(3000))
    });
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("accept-queue-full", Confirmed));
    assert_eq!(
        attempt.nginx_says.as_deref(),
        Some("upstream timed out (110: Connection timed out) while connecting to upstream")
    );
    assert_eq!(
        (attempt.outcome, attempt.phase),
        (Outcome::TimedOut, Phase::Connecting)
    );
}

/// A SYN+ACK of `FAR` for which this host has no socket.
fn late_answer(at: Ktime) -> Event {
    Event::ResetSent {
        at,
        netns: HERE,
        tuple: syn(FAR).reversed(),
        reason: Some("NO_SOCKET".to_owned()),
        by: ResetBy::NoSocket,
        flags: 0x12,
        conn: None,
    }
}

#[test]
fn a_handshake_that_is_too_slow_is_told_by_what_comes_after_it() {
    let given_up = |syn_retransmits| Exchange {
        syn_retransmits,
        line: Some(line_id(1)),
        ..connect(FAR, ms(1500))
    };
    let told = |before: Option<Exchange>, gives_up: Exchange, after: Option<Event>| {
        let mut lab = Lab::new();
        lab.see(Event::Line(line(
            1,
            us(1_499_900),
            "upstream timed out",
            Some(110),
        )));
        if let Some(other) = before {
            lab.end(other);
        }
        lab.end(gives_up);
        if let Some(after) = after {
            lab.tell(ms(1600), Input::Kernel(after));
        }
        lab.tell(ms(100_000), Input::Detach { in_flight: 0 });
        let attempts = lab.attempts();
        let attempt = attempts.last().expect("an attempt");
        (
            verdict(attempt),
            attempt.also.iter().map(|also| also.id).collect::<Vec<_>>(),
        )
    };
    let unanswered = (("syn-unanswered", Confirmed), vec![]);
    let slow = |confidence| (("slow-handshake", confidence), vec!["syn-unanswered"]);

    assert_eq!(told(None, given_up(1), None), unanswered);
    assert_eq!(
        told(None, given_up(0), Some(late_answer(ms(1600)))),
        slow(Confirmed)
    );
    // Before 6.10 the packet that was freed says it.
    let freed = Event::Dropped {
        at: ms(1600),
        netns: HERE,
        tuple: syn(FAR).reversed(),
        flags: 0x12,
        reason: None,
        location: Some("tcp_v4_rcv".to_owned()),
        conn: None,
    };
    assert_eq!(told(None, given_up(0), Some(freed)), slow(Confirmed));
    // What comes for another port, or before it was given up, is another's.
    let other = Event::ResetSent {
        at: ms(1600),
        netns: HERE,
        tuple: Tuple {
            destination: "127.0.0.1:40001".parse().expect("an address"),
            ..syn(FAR).reversed()
        },
        reason: None,
        by: ResetBy::NoSocket,
        flags: 0x12,
        conn: None,
    };
    assert_eq!(told(None, given_up(1), Some(other)), unanswered);
    assert_eq!(told(None, given_up(1), Some(late_answer(ms(700)))), unanswered);

    // Another connect was complete meanwhile, after its SYN had been repeated.
    let complete = |syn_retransmits, at: Ktime| Exchange {
        id: id(2, 1),
        syn_retransmits,
        established_at: Some(at),
        first_received_at: Some(at),
        last_received_at: Some(at),
        received: 100,
        ..sent(FAR, at)
    };
    assert_eq!(told(Some(complete(1, ms(1002))), given_up(1), None), slow(Likely));
    assert_eq!(told(Some(complete(0, ms(2))), given_up(1), None), unanswered);
    assert_eq!(told(Some(complete(1, ms(-2))), given_up(1), None), unanswered);
    assert_eq!(told(Some(complete(1, ms(1002))), given_up(3), None), unanswered);
}

#[test]
fn a_handshake_that_is_complete_as_the_timer_runs_out_is_too_slow() {
    let named = |established: Ktime| {
        let mut lab = Lab::new();
        lab.see(Event::Line(line(
            1,
            us(1_000_300),
            "upstream timed out",
            Some(110),
        )));
        lab.end(Exchange {
            syn_retransmits: 1,
            established_at: Some(established),
            closed_in: Some(TcpState::Established),
            line: Some(line_id(1)),
            ..connect(FAR, us(1_000_400))
        });
        verdict(&lab.only())
    };
    assert_eq!(named(us(1_000_200)), ("slow-handshake", Confirmed));
    // A worker that had a second's time to notice did something else.
    assert_eq!(named(ms(300)).0, "unknown");
}

/// A connection that the peer's kernel never made: nothing of the request is acknowledged, and no socket is there.
fn half_made(ended: Ktime) -> Exchange {
    Exchange {
        acked: 0,
        retransmits: 3,
        last_retransmit_at: Some(ms(1500)),
        ..sent(APP, ended)
    }
}

/// What nginx sent on it met a full accept queue.
fn overflow(at: Ktime) -> Event {
    Event::Dropped {
        at,
        netns: HERE,
        tuple: syn(APP),
        flags: 0x10,
        reason: Some("TCP_LISTEN_OVERFLOW".to_owned()),
        location: None,
        conn: None,
    }
}

#[test]
fn a_half_made_connection_is_told_by_the_queue_that_was_full() {
    let timed_out = |events: Vec<Event>, exchange: Exchange| {
        let mut lab = Lab::new();
        for event in events {
            lab.see(event);
        }
        lab.see(Event::Line(line(
            1,
            us(1_999_900),
            "upstream timed out",
            Some(110),
        )));
        lab.end(Exchange {
            line: Some(line_id(1)),
            ..exchange
        });
        verdict(&lab.only())
    };
    let queue = |queue| Event::ListenerQueue {
        at: ms(2000),
        conn: id(1, 1).conn,
        listener: Listener {
            queue,
            limit: 3,
            ..listener(APP, task(9, "gunicorn"))
        },
    };
    let named = |events| timed_out(events, half_made(ms(2000)));
    assert_eq!(named(vec![overflow(us(60))]), ("handshake-half-open", Confirmed));
    assert_eq!(named(vec![queue(4)]), ("handshake-half-open", Confirmed));
    assert_eq!(named(vec![queue(3)]).0, "unknown");
    assert_eq!(named(vec![]).0, "unknown");
    // A rule that takes what nginx sends is the reason, however full the queue is.
    let rule = Event::Dropped {
        at: us(1_100),
        netns: HERE,
        tuple: syn(APP),
        flags: 0x18,
        reason: Some("NETFILTER_DROP".to_owned()),
        location: None,
        conn: None,
    };
    assert_eq!(
        named(vec![queue(4), rule.clone()]),
        ("packet-dropped-locally", Confirmed)
    );
    assert_eq!(
        named(vec![rule, overflow(ms(2))]),
        ("handshake-half-open", Confirmed)
    );
    // A connection that both kernels have.
    let queued = Exchange {
        backend: Some(Backend {
            accepted: false,
            task: None,
            read: 0,
            first_read_at: None,
            last_read_at: None,
            ..reader()
        }),
        acked: 100,
        ..half_made(ms(2000))
    };
    assert_eq!(
        timed_out(vec![overflow(us(60)), queue(4)], queued),
        ("never-accepted", Confirmed)
    );
    // The kernel that never made it forgets it, and resets what still comes.
    let forgotten = |at: Ktime| named_reset(vec![overflow(us(60))], reset(half_made(ms(2000)), at), None);
    assert_eq!(forgotten(ms(1999)), "handshake-half-open");
    assert_eq!(forgotten(us(70)), "unknown");
}

/// What a reset is called; `is_set`: what the host says of `tcp_abort_on_overflow`, where it is asked.
fn named_reset(events: Vec<Event>, exchange: Exchange, is_set: Option<bool>) -> &'static str {
    let mut lab = Lab::new();
    for event in events {
        lab.see(event);
    }
    let at = exchange.ended_at;
    lab.end(exchange);
    if let Some(is_set) = is_set {
        lab.answer_at(at, Answer::AbortsOnOverflow { is_set });
        if is_set {
            lab.answer_at(
                at,
                Answer::AcceptQueue {
                    waiting: 4,
                    limit: 3,
                    are_all_full: true,
                },
            );
        }
    }
    verdict(&lab.only()).0
}

#[test]
fn a_listener_that_resets_a_new_connection_is_asked_whether_it_is_told_to() {
    let by = |by| Event::ResetSent {
        at: us(65),
        netns: HERE,
        tuple: syn(APP),
        reason: None,
        by,
        flags: 0x10,
        conn: None,
    };
    let listening = || Event::ListenerFound {
        at: ms(-9000),
        listener: listener(APP, task(9, "gunicorn")),
    };
    let cut = || Exchange {
        retransmits: 0,
        last_retransmit_at: None,
        first_sent_at: None,
        last_sent_at: None,
        sent: 0,
        ..reset(half_made(us(200)), us(70))
    };
    let named = |event, is_set| named_reset(vec![listening(), event], cut(), is_set);
    assert_eq!(named(by(ResetBy::Listener), Some(true)), "accept-queue-reset");
    // It resets what it has no connection for, too.
    assert_eq!(named(by(ResetBy::Listener), Some(false)), "unknown");
    assert_eq!(named(by(ResetBy::NoSocket), None), "unknown");
    // One that opened only after the SYN had been answered never had the connection.
    let reopened = Event::ListenerOpened {
        at: us(60),
        listener: listener(APP, task(9, "gunicorn")),
    };
    assert_eq!(
        named_reset(vec![reopened, by(ResetBy::Listener)], cut(), None),
        "unknown"
    );
}

#[test]
fn silence_without_a_word_from_nginx_is_a_client_that_left() {
    // nginx logs its own timeouts; that it did not is what tells.
    let mut lab = Lab::new();
    lab.end(sent(APP, ms(700)));
    lab.tell(
        ms(701),
        Input::Kernel(Event::ClientLeft {
            at: ms(701),
            worker: WORKER,
            exchange: Some(id(1, 1)),
            reset: false,
        }),
    );
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 1, "it is written when the client's end is seen");
    assert_eq!(
        (attempts[0].outcome, verdict(attempts[0])),
        (Outcome::Cancelled, ("client-closed", Confirmed))
    );

    let mut lab = Lab::new();
    lab.end(Exchange {
        error_unfetched: true,
        ..refused(APP)
    });
    let attempt = lab.only();
    assert_eq!(
        (attempt.outcome, verdict(&attempt)),
        (Outcome::Cancelled, ("client-closed", Likely))
    );
}

#[test]
fn a_slow_answer_is_told_by_how_far_the_request_came() {
    let timed_out = |exchange: Exchange| {
        let mut lab = Lab::new();
        lab.see(Event::Line(line(1, ms(2999), "upstream timed out", Some(110))));
        lab.end(Exchange {
            line: Some(line_id(1)),
            ..exchange
        });
        verdict(&lab.only())
    };
    let with = |backend: Backend| Exchange {
        backend: Some(backend),
        ..sent(APP, ms(3000))
    };
    assert_eq!(timed_out(with(reader())), ("backend-slow", Confirmed));
    assert_eq!(
        timed_out(with(Backend {
            netns: HERE,
            ..Backend::default()
        })),
        ("never-accepted", Confirmed)
    );
    assert_eq!(timed_out(sent(FAR, ms(3000))), ("backend-slow", Likely));
    let lost = Exchange {
        acked: 0,
        retransmits: 4,
        last_retransmit_at: Some(ms(2000)),
        ..sent(FAR, ms(3000))
    };
    assert_eq!(timed_out(lost), ("path-lost", Confirmed));
    let stalled = Exchange {
        received: 10,
        last_received_at: Some(ms(20)),
        ..with(reader())
    };
    assert_eq!(timed_out(stalled), ("response-stalled", Confirmed));
}

#[test]
fn a_handshake_of_tls_that_gets_no_answer_is_told_by_who_read_it() {
    let timed_out = |exchange: Exchange| {
        let mut lab = Lab::new();
        let said = line(1, ms(2999), "upstream timed out", Some(110));
        lab.see(Event::Line(Line {
            action: Some("SSL handshaking to upstream".to_owned()),
            ..said
        }));
        lab.end(Exchange {
            line: Some(line_id(1)),
            uncut: true,
            ..exchange
        });
        verdict(&lab.only())
    };
    let with = |backend: Backend| Exchange {
        backend: Some(backend),
        ..sent(APP, ms(3000))
    };
    assert_eq!(timed_out(with(reader())), ("tls-silent", Confirmed));
    assert_eq!(timed_out(sent(FAR, ms(3000))), ("tls-silent", Likely));
    let unread = Backend {
        accepted: true,
        ..Backend::default()
    };
    assert_eq!(timed_out(with(unread)).0, "unknown");
    assert_eq!(timed_out(with(Backend::default())), ("never-accepted", Confirmed));
    // It began to answer.
    let begun = Exchange {
        received: 90,
        first_received_at: Some(ms(4)),
        last_received_at: Some(ms(4)),
        ..sent(FAR, ms(3000))
    };
    assert_ne!(timed_out(begun).0, "tls-silent");
    let lost = Exchange {
        acked: 0,
        retransmits: 4,
        last_retransmit_at: Some(ms(2000)),
        ..sent(FAR, ms(3000))
    };
    assert_eq!(timed_out(lost), ("path-lost", Confirmed));
}

#[test]
fn an_early_end_is_told_by_how_much_was_read() {
    let backend = |backend: Backend| Backend {
        closed_at: Some(ms(30)),
        closed_by: backend.task.clone(),
        ..backend
    };
    let fin = |read| {
        closed(
            Exchange {
                backend: Some(read),
                ..sent(APP, ms(30))
            },
            ms(30),
        )
    };
    let rst = |read| {
        reset(
            Exchange {
                backend: Some(read),
                ..sent(APP, ms(30))
            },
            ms(30),
        )
    };
    assert_eq!(
        named(vec![], fin(backend(reader()))),
        ("closed-without-response", Confirmed)
    );
    let part = Backend {
        read: 40,
        unread: 60,
        aborted: true,
        ..backend(reader())
    };
    assert_eq!(named(vec![], rst(part)), ("closed-unread", Confirmed));
    let none = Backend {
        read: 0,
        unread: 100,
        aborted: true,
        ..backend(reader())
    };
    assert_eq!(named(vec![], rst(none)), ("closed-on-accept", Confirmed));
    let linger = Backend {
        aborted: true,
        error_at_destroy: Some(Errno(104)),
        ..backend(reader())
    };
    assert_eq!(named(vec![], rst(linger)), ("closed-abortively", Confirmed));
    let early = Exchange {
        unread: 66,
        send_error: Some(Errno(104)),
        ..rst(Backend {
            read: 40,
            unread: 60,
            aborted: true,
            ..backend(reader())
        })
    };
    assert_eq!(named(vec![], early), ("response-unread", Confirmed));
    assert_eq!(
        named(vec![], reset(sent(FAR, ms(30)), ms(30))),
        ("reset-remotely", Confirmed)
    );
    assert_eq!(
        named(vec![], closed(sent(FAR, ms(30)), ms(30))),
        ("closed-remotely", Confirmed)
    );
}

#[test]
fn an_orderly_end_of_a_unix_connection_says_that_something_was_read() {
    let end = |eof_read_at, recv_error| {
        let unseen = Backend {
            task: None,
            accepted: false,
            first_read_at: None,
            last_read_at: None,
            read: 0,
            ..reader()
        };
        named(
            vec![],
            Exchange {
                eof_read_at,
                recv_error,
                ended_at: ms(30),
                end: EndKind::Closed,
                backend: Some(unseen),
                ..sent("unix:/run/app.sock", ms(30))
            },
        )
    };
    // Who read it was not seen, but what lies unread at the close makes Linux say 104.
    assert_eq!(end(Some(ms(29)), None), ("closed-without-response", Likely));
    assert_eq!(end(None, Some(Errno(104))).0, "closed-on-accept");
}

#[test]
fn a_dead_backend_is_the_headline_over_how_its_connection_ended() {
    let killed = |exit| {
        let backend = Backend {
            closed_at: Some(ms(30)),
            closed_by: Some(ending(4242, "node", exit)),
            ..reader()
        };
        let mut lab = Lab::new();
        lab.end(closed(
            Exchange {
                backend: Some(backend),
                ..sent(APP, ms(30))
            },
            ms(30),
        ));
        let attempt = lab.only();
        (
            verdict(&attempt).0,
            attempt.also.iter().map(|cause| cause.id).collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        killed(Exit::Signal(9)),
        ("backend-died", vec!["closed-without-response"])
    );
    assert_eq!(
        killed(Exit::Signal(15)),
        ("backend-restarting", vec!["closed-without-response"])
    );
}

#[test]
fn a_backend_that_closes_and_ends_right_after_was_on_its_way_out() {
    let ended = |after: i64, exit: Exit, told: Option<u8>| {
        let backend = Backend {
            closed_at: Some(ms(30)),
            closed_by: Some(task(4242, "node")),
            ..reader()
        };
        let exchange = Exchange {
            backend: Some(backend),
            ..sent(APP, ms(30))
        };
        let mut lab = Lab::new();
        lab.end(closed(exchange, ms(30)));
        lab.see(Event::ProcessExited {
            at: ms(30 + after),
            task: ending(4242, "node", exit),
            parent: Pid(1),
            is_nginx: false,
            signalled_by: None,
            told: told.map(|signal| Told {
                signal,
                by: task(1, "init"),
                ago_ms: 40,
            }),
        });
        let attempt = lab.only();
        let cause = attempt.cause.as_ref().expect("a cause");
        (cause.id, cause.confidence, cause.summary.clone())
    };
    let (id, confidence, summary) = ended(20, Exit::Code(1), Some(6));
    assert_eq!((id, confidence), ("backend-died", Likely));
    assert_eq!(
        summary,
        "node (pid 4242) closed the connection 29 ms after it read this request, and 20 ms later exited with code 1 after \
         SIGABRT from init (pid 1)."
    );
    let cause = |after, exit, told| {
        let (id, confidence, _) = ended(after, exit, told);
        (id, confidence)
    };
    assert_eq!(cause(20, Exit::Code(0), None), ("backend-restarting", Likely));
    // Asked to stop, it stopped, whatever code it gives.
    assert_eq!(cause(20, Exit::Code(1), Some(15)), ("backend-restarting", Likely));
    assert_eq!(cause(20, Exit::Code(143), None), ("backend-restarting", Likely));
    // A signal that told it to end explains the close, whatever became of the process since.
    let told = |before: i64, signal| {
        let backend = Backend {
            closed_at: Some(ms(30)),
            closed_by: Some(task(4242, "node")),
            ..reader()
        };
        let exchange = Exchange {
            backend: Some(backend),
            ..sent(APP, ms(30))
        };
        let signalled = Event::Signalled {
            at: ms(30 - before),
            pid: Pid(4242),
            signal,
            by: task(1, "init"),
        };
        named(vec![signalled], closed(exchange, ms(30)))
    };
    assert_eq!(told(3, 6), ("backend-died", Likely));
    assert_eq!(told(3, 15), ("backend-restarting", Likely));
    // Sent after the close, or one that dumps a JVM's threads: no reason.
    assert_eq!(told(-3, 6), ("closed-without-response", Confirmed));
    assert_eq!(told(3, 3), ("closed-without-response", Confirmed));
    // A master that is told to stop kills its workers: that is a restart.
    let killed_by = |told: Option<u8>| {
        let backend = Backend {
            closed_at: Some(ms(30)),
            closed_by: Some(ending(4242, "php-fpm", Exit::Signal(9))),
            ..reader()
        };
        let exchange = Exchange {
            backend: Some(backend),
            ..sent(APP, ms(30))
        };
        let mut events: Vec<Event> = told
            .map(|signal| Event::Signalled {
                at: ms(20),
                pid: Pid(4200),
                signal,
                by: task(1, "init"),
            })
            .into_iter()
            .collect();
        events.push(Event::ProcessExited {
            at: ms(30),
            task: ending(4242, "php-fpm", Exit::Signal(9)),
            parent: Pid(4200),
            is_nginx: false,
            signalled_by: Some(task(4200, "php-fpm")),
            told: None,
        });
        named(events, closed(exchange, ms(30)))
    };
    assert_eq!(killed_by(Some(15)), ("backend-restarting", Confirmed));
    assert_eq!(killed_by(None), ("backend-died", Confirmed));
    // Its end much later is another story.
    assert_eq!(
        cause(280, Exit::Code(1), None),
        ("closed-without-response", Confirmed)
    );
}

#[test]
fn a_worker_whose_master_was_told_to_reload_ended_for_that() {
    let ended = |told: Option<(Pid, u8)>, told_at: Ktime| {
        let backend = Backend {
            closed_at: Some(ms(70_030)),
            closed_by: Some(task(4242, "nginx")),
            ..reader()
        };
        let mut lab = Lab::new();
        if let Some((pid, signal)) = told {
            lab.tell(told_at, Input::Tick);
            lab.see(Event::Signalled {
                at: told_at,
                pid,
                signal,
                by: task(7, "sh"),
            });
        }
        lab.end(closed(
            Exchange {
                backend: Some(backend),
                ..sent(APP, ms(70_030))
            },
            ms(70_030),
        ));
        lab.see(Event::ProcessExited {
            at: ms(70_050),
            task: ending(4242, "nginx", Exit::Code(0)),
            parent: Pid(4200),
            is_nginx: false,
            signalled_by: None,
            told: None,
        });
        let attempt = lab.only();
        let summary = attempt.cause.as_ref().map(|cause| cause.summary.clone());
        (verdict(&attempt), summary.unwrap_or_default())
    };
    let (named, summary) = ended(Some((Pid(4200), 1)), ms(70_000));
    assert_eq!(named, ("backend-restarting", Confirmed));
    assert!(
        summary.ends_with("; its parent (pid 4200) had been sent SIGHUP by sh (pid 7) 50 ms before."),
        "{summary}"
    );
    let confidence = |told, told_at| ended(told, told_at).0.1;
    assert_eq!(confidence(Some((Pid(4200), 12)), ms(69_000)), Confirmed);
    assert_eq!(confidence(Some((Pid(4200), 15)), ms(69_000)), Confirmed);
    // Seconds later the end may have another reason: it is told, and no surer than it was.
    let (named, summary) = ended(Some((Pid(4200), 1)), ms(60_000));
    assert_eq!(named, ("backend-restarting", Likely));
    assert!(summary.contains("had been sent SIGHUP"), "{summary}");
    // A watchdog's ABRT is no reload.
    assert_eq!(confidence(Some((Pid(4200), 6)), ms(70_000)), Likely);
    // Somebody else was told, nobody was, it was long ago, or later.
    assert_eq!(confidence(Some((Pid(4201), 1)), ms(70_000)), Likely);
    assert_eq!(confidence(None, ms(0)), Likely);
    assert_eq!(confidence(Some((Pid(4200), 1)), ms(5_000)), Likely);
    assert_eq!(confidence(Some((Pid(4200), 1)), ms(70_060)), Likely);
}

#[test]
fn a_child_that_inherited_the_connection_does_not_hide_how_its_server_ended() {
    let closed_by_child = |events: Vec<Event>| {
        let backend = Backend {
            closed_at: Some(ms(30)),
            closed_by: Some(ending(5000, "sh", Exit::Code(0))),
            ..reader()
        };
        let exchange = Exchange {
            backend: Some(backend),
            ..sent(APP, ms(30))
        };
        named(events, closed(exchange, ms(30)))
    };
    let died = exited(ms(25), ending(4242, "node", Exit::Signal(11)));
    assert_eq!(closed_by_child(vec![died]), ("backend-died", Confirmed));
    // The server lives: it let go of the connection before its child did.
    assert_eq!(closed_by_child(vec![]), ("closed-without-response", Confirmed));
}

#[test]
fn an_answer_that_this_host_dropped_is_no_slow_backend() {
    let dropped_at = |at, flags| {
        let mut lab = Lab::new();
        lab.see(Event::Dropped {
            at,
            netns: HERE,
            tuple: Tuple {
                source: syn(APP).destination,
                destination: local(),
            },
            flags,
            reason: Some("NETFILTER_DROP".to_owned()),
            location: None,
            conn: None,
        });
        lab.see(Event::Line(line(1, ms(2999), "upstream timed out", Some(110))));
        lab.end(Exchange {
            line: Some(line_id(1)),
            backend: Some(reader()),
            ..sent(APP, ms(3000))
        });
        verdict(&lab.only())
    };
    assert_eq!(dropped_at(ms(1000), 0x18), ("packet-dropped-locally", Confirmed));
    // A bare acknowledgement is no answer, and what came before the request is not about it.
    assert_eq!(dropped_at(ms(1000), 0x10), ("backend-slow", Confirmed));
    assert_eq!(dropped_at(us(500), 0x18), ("backend-slow", Confirmed));
}

#[test]
fn a_request_that_waited_for_a_free_worker_is_said_to_have_waited() {
    let mut lab = Lab::new();
    lab.see(Event::Line(line(1, ms(2999), "upstream timed out", Some(110))));
    lab.end(Exchange {
        line: Some(line_id(1)),
        backend: Some(Backend {
            first_read_at: Some(ms(2901)),
            last_read_at: Some(ms(2901)),
            ..reader()
        }),
        ..sent(APP, ms(3000))
    });
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("backend-slow", Confirmed));
    let cause = attempt.cause.expect("a cause");
    assert!(
        cause
            .summary
            .starts_with("node (pid 4242) read the request only 2.9 s after it was sent"),
        "{}",
        cause.summary
    );
}

#[test]
fn what_a_tls_backend_answers_to_the_goodbye_ended_nothing() {
    // nginx said that its timer expired, sent its close_notify and lost its processor for a moment; the backend said
    // goodbye as well.
    let given_up = LineId {
        at: ms(2999),
        worker: WORKER,
    };
    let mut lab = Lab::new();
    lab.see(Event::Line(Line {
        id: given_up,
        action: Some("reading response header from upstream".to_owned()),
        ..line(1, ms(2999), "upstream timed out", Some(110))
    }));
    lab.end(Exchange {
        line: Some(given_up),
        uncut: true,
        first_received_at: Some(ms(1)),
        last_received_at: Some(ms(2)),
        received: 844,
        unread: 31,
        fin_at: Some(ms(3001)),
        closed_in: Some(TcpState::CloseWait),
        backend: Some(Backend {
            sent: 875,
            closed_at: Some(ms(3001)),
            ..reader()
        }),
        ..sent(APP, ms(3003))
    });
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("backend-slow", Confirmed));
    assert_eq!(attempt.ended_at, ms(2999));

    // Its goodbye comes before its close: nginx may be done between the two, on a kept connection without an answer.
    let ended = |last_read_at| {
        let mut lab = Lab::new();
        lab.see(Event::Line(Line {
            id: given_up,
            action: Some("reading response header from upstream".to_owned()),
            ..line(1, ms(2999), "upstream timed out", Some(110))
        }));
        lab.end(Exchange {
            line: Some(given_up),
            uncut: true,
            unread: 31,
            closed_in: Some(TcpState::Established),
            backend: Some(Backend {
                sent: 31,
                last_read_at: Some(last_read_at),
                ..reader()
            }),
            ..sent(APP, ms(3003))
        });
        verdict(&lab.only()).0
    };
    assert_eq!(ended(ms(3001)), "backend-slow");
    // Not one that answers what it read long before.
    assert_eq!(ended(ms(2)), "unknown");
}

/// What is named when a connect to a TCP address fails at once with `errno`: with these programs in the worker's control
/// groups, whoever was seen to deny it, and what else may have.
fn named_denied(
    errno: i32,
    programs: usize,
    by: Option<Denier>,
    found: Confinement,
) -> (&'static str, Confidence) {
    let mut lab = Lab::new();
    let program = Program {
        id: 7,
        name: "deny".to_owned(),
    };
    lab.see(Event::Line(Line {
        programs: Some(vec![program; programs]),
        denied: by.map(|by| ConnectDenied {
            at: ms(0),
            errno: Errno(errno),
            by,
        }),
        ..at_once("10.0.0.2:80", errno)
    }));
    let asked = |lab: &Lab, what: fn(&Question) -> bool| {
        let mut asked = lab.outputs.iter().rev().filter_map(|output| match output {
            Output::Ask(question) => Some(question.clone()),
            _ => None,
        });
        asked.find(what)
    };
    if let Some(question) = asked(&lab, |question| matches!(question, Question::Confinement { .. })) {
        let answer = Answer::Confinement(found);
        lab.tell(ms(5), Input::Answer { question, answer });
    }
    if let Some(question) = asked(&lab, |question| matches!(question, Question::Route { .. })) {
        let answer = Answer::Route {
            is_local: false,
            kind: Some("unicast".to_owned()),
            errno: None,
            via: None,
        };
        lab.tell(ms(6), Input::Answer { question, answer });
    }
    verdict(&lab.only())
}

#[test]
fn a_denied_connect_is_named_only_where_nothing_else_can_have_denied_it() {
    let free = || Confinement {
        modules: Some(vec![
            "capability".to_owned(),
            "landlock".to_owned(),
            "bpf".to_owned(),
        ]),
        lsm_programs: Some(vec![]),
        ipsec_blocked: Some(0),
        ..Confinement::default()
    };
    let filtered = || Confinement {
        seccomp: true,
        ..free()
    };
    let guarded = || Confinement {
        lsm_programs: Some(vec![Program {
            id: 9,
            name: "guard".to_owned(),
        }]),
        ..free()
    };
    let blocked = || Confinement {
        ipsec_blocked: Some(1),
        ..free()
    };
    let unlisted = || Confinement {
        lsm_programs: None,
        ..free()
    };
    const UNKNOWN: (&str, Confidence) = ("unknown", Confidence::Possible);
    const CGROUP: (&str, Confidence) = ("cgroup-denied", Likely);
    const MODULE: (&str, Confidence) = ("security-module-denied", Likely);
    // A program of a control group, and nobody else.
    assert_eq!(named_denied(1, 1, None, free()), CGROUP);
    assert_eq!(named_denied(1, 4, None, free()), CGROUP);
    for others in [filtered(), guarded(), blocked(), unlisted()] {
        assert_eq!(named_denied(1, 1, None, others), UNKNOWN);
    }
    // No program: what else there is.
    assert_eq!(named_denied(1, 0, None, free()), UNKNOWN);
    assert_eq!(named_denied(1, 0, None, blocked()), UNKNOWN);
    assert_eq!(named_denied(1, 0, None, filtered()), MODULE);
    assert_eq!(named_denied(1, 0, None, guarded()), MODULE);
    assert_eq!(named_denied(13, 0, None, free()), MODULE);
    let without_landlock = Confinement {
        modules: Some(vec!["capability".to_owned()]),
        ..free()
    };
    assert_eq!(named_denied(13, 0, None, without_landlock), UNKNOWN);
    // It may have set this errno.
    assert_eq!(named_denied(13, 1, None, free()), UNKNOWN);
    // Seen.
    let seen = Some(Denier::Cgroup);
    assert_eq!(named_denied(1, 1, seen, guarded()), ("cgroup-denied", Confirmed));
    assert_eq!(named_denied(13, 2, seen, free()), ("cgroup-denied", Confirmed));
    assert_eq!(named_denied(113, 0, seen, free()), ("cgroup-denied", Confirmed));
    assert_eq!(named_denied(1, 1, Some(Denier::SecurityModule), free()), MODULE);
    assert_eq!(named_denied(13, 1, Some(Denier::SecurityModule), free()), MODULE);
}

/// A seccomp filter reads numbers: one that lets a worker connect to one address lets it connect to all of the family.
#[test]
fn a_filter_under_which_the_worker_connects_denies_no_connect() {
    let mut lab = Lab::new();
    lab.end(sent(APP, ms(-500)));
    lab.see(Event::Line(Line {
        programs: Some(vec![]),
        ..at_once("10.0.0.2:80", 1)
    }));
    lab.answer(Answer::Confinement(Confinement {
        seccomp: true,
        lsm_programs: Some(vec![]),
        ipsec_blocked: Some(0),
        ..Confinement::default()
    }));
    lab.tell(ms(100_000), Input::Detach { in_flight: 0 });
    let attempts = lab.attempts();
    let failed: Vec<_> = attempts
        .iter()
        .filter(|attempt| attempt.errno == Some(Errno(1)))
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(verdict(failed[0]), ("unknown", Confidence::Possible));
}

#[test]
fn a_unix_request_that_nobody_read_waits_in_the_queue() {
    const UNIX: &str = "unix:/run/app.sock";
    let waiting = |queue| {
        let mut lab = Lab::new();
        lab.see(Event::Line(line(1, ms(2999), "upstream timed out", Some(110))));
        lab.end(Exchange {
            line: Some(line_id(1)),
            backend: Some(Backend::default()),
            ..sent(UNIX, ms(3000))
        });
        lab.answer_at(
            ms(3010),
            Answer::UnixPath(UnixPath {
                components: vec![],
                stopped: None,
                credentials: (33, 33, vec![], false),
                sockets: vec![UnixSocket {
                    listening: true,
                    kind: "stream".to_owned(),
                    file: None,
                    in_place_at: None,
                    queue: Some((queue, 128)),
                    owners: vec![(Pid(4242), "node".to_owned())],
                }],
            }),
        );
        // The answer stands as long as the attempt waits for what could explain it.
        for after in [3200, 3280, 3400] {
            lab.tell(ms(after), Input::Tick);
        }
        verdict(&lab.only())
    };
    assert_eq!(waiting(3), ("never-accepted", Likely));
    assert_eq!(waiting(0), ("backend-slow", Likely));
}

#[test]
fn a_backend_that_closes_its_listener_too_is_restarting() {
    let backend = Backend {
        closed_at: Some(ms(30)),
        closed_by: Some(task(4242, "node")),
        ..reader()
    };
    let exchange = closed(
        Exchange {
            backend: Some(backend),
            ..sent(APP, ms(30))
        },
        ms(30),
    );
    let listener = listener_closed(ms(29), APP, task(4242, "node"));
    assert_eq!(named(vec![listener], exchange), ("backend-restarting", Confirmed));
}

#[test]
fn a_keepalive_race_needs_the_end_before_the_request() {
    let race = Exchange {
        fin_before_request: true,
        acked: 0,
        ..closed(sent_again(FAR, ms(2)), us(900))
    };
    assert_eq!(named(vec![], race), ("keepalive-race", Confirmed));
    // The same on a connection's first request is no race.
    let first = Exchange {
        fin_before_request: true,
        acked: 0,
        ..closed(sent(FAR, ms(2)), us(900))
    };
    assert_eq!(named(vec![], first), ("closed-on-accept", Confirmed));
    // Acknowledged and then closed: the far application had it.
    let later = closed(sent_again(FAR, ms(40)), ms(40));
    assert_eq!(named(vec![], later), ("closed-remotely", Confirmed));
    // Killed while idle: the death explains the race.
    let killed = Backend {
        closed_at: Some(us(900)),
        closed_by: Some(ending(4242, "node", Exit::Signal(9))),
        ..Backend::default()
    };
    let died = Exchange {
        fin_before_request: true,
        acked: 0,
        backend: Some(killed),
        ..closed(sent_again(APP, ms(2)), us(900))
    };
    assert_eq!(named(vec![], died), ("backend-died", Confirmed));
}

#[test]
fn a_reset_that_answers_the_request_itself_is_no_keepalive_race() {
    // The send is told of once it is over: a rule's reset comes before that.
    let rejected = |to: &str, backend: Option<Backend>| Exchange {
        acked: 0,
        backend,
        ..reset(sent_again(to, ms(2)), us(988))
    };
    let rule_at = |at: Ktime, to: &str| Event::Dropped {
        at,
        netns: HERE,
        tuple: syn(to),
        flags: 0x18,
        reason: Some("NETFILTER_DROP".to_owned()),
        location: None,
        conn: None,
    };
    let rule = |to: &str| rule_at(us(989), to);
    let open = Some(Backend {
        read: 0,
        first_read_at: None,
        last_read_at: None,
        ..reader()
    });
    assert_eq!(
        named(vec![rule(APP)], rejected(APP, open.clone())),
        ("firewall-reset-midstream", Confirmed)
    );
    assert_eq!(
        named(vec![rule(FAR)], rejected(FAR, None)),
        ("firewall-reset-midstream", Confirmed)
    );
    // A slow processor: the rule's work, the reset's arrival and the end of the call are milliseconds apart.
    assert_eq!(
        named(vec![rule_at(ms(-3), APP)], rejected(APP, open.clone())),
        ("firewall-reset-midstream", Confirmed)
    );
    // Of a far host's reset a packet that was dropped milliseconds before may be the reason or not.
    assert_eq!(
        named(vec![rule_at(ms(-3), FAR)], rejected(FAR, None)).0,
        "unknown"
    );
    // In the middle of an answer it is the rule as well.
    let mut lab = Lab::new();
    lab.see(rule(APP));
    lab.see(Event::Line(line(1, us(1990), "recv() failed", Some(104))));
    lab.end(Exchange {
        first_received_at: Some(us(900)),
        last_received_at: Some(us(900)),
        received: 500,
        recv_error: Some(Errno(104)),
        line: Some(line_id(1)),
        ..rejected(APP, open.clone())
    });
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("firewall-reset-midstream", Confirmed));
    assert_eq!(attempt.also[0].id, "closed-mid-response");
    assert_eq!(named(vec![], rejected(APP, open)).0, "unknown");
    assert_eq!(named(vec![], rejected(FAR, None)), ("reset-remotely", Confirmed));
}

#[test]
fn what_the_backend_did_may_be_told_after_the_exchange() {
    let mut lab = Lab::new();
    let open = Backend { read: 40, ..reader() };
    lab.see(Event::Line(line(1, ms(30), "recv() failed", Some(104))));
    lab.end(reset(
        Exchange {
            line: Some(line_id(1)),
            backend: Some(open.clone()),
            ..sent(APP, ms(30))
        },
        ms(30),
    ));
    assert_eq!(lab.attempts().len(), 0, "the backend's close is on its way");
    let edge = Backend {
        unread: 60,
        aborted: true,
        closed_at: Some(ms(30)),
        closed_by: Some(task(4242, "node")),
        ..open
    };
    lab.tell(
        ms(31),
        Input::Kernel(Event::BackendEdge {
            at: ms(30),
            exchange: id(1, 1),
            backend: Box::new(edge),
        }),
    );
    assert_eq!(lab.attempts().len(), 0, "its process may be on its way out");
    for after in [400, 401] {
        lab.tell(ms(after), Input::Tick);
    }
    assert_eq!(
        lab.attempts().len(),
        1,
        "it is written when it has waited long enough"
    );
    assert_eq!(verdict(lab.attempts()[0]), ("closed-unread", Confirmed));
}

#[test]
fn a_success_is_no_failure_whatever_follows() {
    let ok = || Exchange {
        received: 500,
        first_received_at: Some(ms(9)),
        last_received_at: Some(ms(9)),
        ..sent(APP, us(9020))
    };
    let stories = [
        ok(),
        Exchange {
            end: EndKind::NextExchange,
            ..ok()
        },
        Exchange {
            end: EndKind::Idle,
            ..ok()
        },
        // The backend closed with its last bytes.
        closed(
            Exchange {
                ended_at: us(9020),
                ..ok()
            },
            us(8990),
        ),
        // An early 413: much of the body never acknowledged, a reset on its way.
        Exchange {
            sent: 278_000,
            acked: 93_000,
            ..ok()
        },
        // nginx's keepalive_timeout closes a kept connection a minute later.
        Exchange {
            ended_at: ms(60_000),
            ..ok()
        },
        // The worker exits with an idle connection in its pool.
        Exchange {
            end: EndKind::WorkerGone,
            ended_at: ms(60_000),
            ..ok()
        },
    ];
    for missing in [&[][..], &["nginx-log"][..]] {
        for story in &stories {
            let mut lab = Lab::with_hooks(missing);
            lab.end(story.clone());
            let attempt = lab.only();
            assert_eq!(
                (attempt.outcome, attempt.cause),
                (Outcome::Ok, None),
                "{story:#?}"
            );
        }
    }
    // An idle connection that closes is no attempt at all.
    let mut lab = Lab::new();
    let idle = Exchange {
        first_sent_at: None,
        last_sent_at: None,
        sent: 0,
        acked: 0,
        ..closed(sent_again(APP, ms(30)), ms(30))
    };
    lab.end(idle);
    assert_eq!(lab.summary().attempts, 0);
}

#[test]
fn a_worker_killed_in_mid_request_cancels_it() {
    let mut lab = Lab::new();
    lab.see(exited(ms(30), ending(WORKER.0, "nginx", Exit::Signal(9))));
    lab.end(Exchange {
        end: EndKind::WorkerGone,
        ..sent(APP, ms(31))
    });
    let attempt = lab.only();
    assert_eq!(
        (attempt.outcome, verdict(&attempt)),
        (Outcome::Cancelled, ("worker-died", Confirmed))
    );
}

fn walked(
    components: Vec<PathComponent>,
    stopped: Option<(String, Errno)>,
    sockets: Vec<UnixSocket>,
) -> Answer {
    Answer::UnixPath(UnixPath {
        components,
        stopped,
        credentials: (33, 33, vec![33], false),
        sockets,
    })
}

fn component(path: &str, kind: &str, allowed: bool) -> PathComponent {
    PathComponent {
        path: path.to_owned(),
        kind: kind.to_owned(),
        mode: 0o600,
        uid: 0,
        gid: 0,
        inode: (1, 2),
        allowed,
    }
}

#[test]
fn an_answer_that_served_an_earlier_attempt_is_not_lost_when_the_line_comes_late() {
    let mut lab = Lab::new();
    lab.see(Event::Line(at_once("unix:/run/app.sock", 13)));
    lab.answer(walked(
        vec![component("/run/app.sock", "socket", false)],
        None,
        vec![],
    ));
    // Another worker's attempt, while the answer is fresh; its line of the file comes when it is not any more.
    lab.tell(
        ms(240),
        Input::Kernel(Event::Line(Line {
            id: line_id(2),
            at: ms(240),
            ..at_once("unix:/run/app.sock", 13)
        })),
    );
    lab.tell(
        ms(500),
        Input::LogLine(logged(
            "connect() to unix:/run/app.sock failed",
            Some(13),
            "unix:/run/app.sock",
        )),
    );
    lab.tell(ms(100_000), Input::Detach { in_flight: 0 });
    let verdicts: Vec<_> = lab.attempts().into_iter().map(verdict).collect();
    assert_eq!(verdicts, [("unix-permission", Confirmed); 2]);
}

#[test]
fn a_unix_failure_is_told_by_errno_and_path() {
    const PATH: &str = "/run/app.sock";
    let asked = |errno, answer| {
        let mut lab = Lab::new();
        lab.see(Event::Line(at_once("unix:/run/app.sock", errno)));
        lab.answer(answer);
        verdict(&lab.only())
    };
    let file = || component(PATH, "socket", true);
    let bound = |listening| UnixSocket {
        listening,
        kind: "stream".to_owned(),
        file: Some((1, 2)),
        in_place_at: None,
        queue: Some((5, 4)),
        owners: vec![(Pid(9), "app".to_owned())],
    };
    assert_eq!(
        asked(2, walked(vec![], Some((PATH.to_owned(), Errno(2))), vec![])),
        ("unix-missing", Confirmed)
    );
    assert_eq!(
        asked(111, walked(vec![file()], None, vec![])),
        ("unix-stale-socket", Confirmed)
    );
    assert_eq!(
        asked(111, walked(vec![file()], None, vec![bound(false)])),
        ("unix-not-listening", Confirmed)
    );
    assert_eq!(
        asked(111, walked(vec![component(PATH, "file", true)], None, vec![])),
        ("unix-not-listening", Confirmed)
    );
    assert_eq!(
        asked(11, walked(vec![file()], None, vec![bound(true)])),
        ("unix-backlog-full", Confirmed)
    );
    assert_eq!(
        asked(13, walked(vec![component(PATH, "socket", false)], None, vec![])),
        ("unix-permission", Confirmed)
    );
    // Everything allows it, and yet it was denied: somebody else's doing.
    assert_eq!(asked(13, walked(vec![file()], None, vec![])).0, "unknown");
    // Somebody listens on it again: not merely left behind.
    assert_eq!(
        asked(111, walked(vec![file()], None, vec![bound(true)])).0,
        "unknown"
    );
}

#[test]
fn a_stale_socket_says_who_served_it_and_how_it_ended() {
    let mut lab = Lab::new();
    lab.see(Event::ListenerFound {
        at: ms(-9000),
        listener: listener("unix:/run/app.sock", task(55, "php-fpm")),
    });
    lab.see(exited(ms(-4000), ending(55, "php-fpm", Exit::Signal(11))));
    lab.see(Event::Line(at_once("unix:/run/app.sock", 111)));
    lab.answer(walked(
        vec![component("/run/app.sock", "socket", true)],
        None,
        vec![],
    ));
    assert_eq!(
        lab.only().cause.expect("a cause").summary,
        "/run/app.sock is a socket file that nobody serves any more. php-fpm (pid 55), which had served it, was ended by \
         SIGSEGV 4.0 s before."
    );
}

#[test]
fn a_route_is_told_by_its_lookup() {
    let looked_up = |errno, lookup| {
        let mut lab = Lab::new();
        let destination = "192.0.2.7".parse().expect("an address");
        let route = Some(RouteError {
            at: us(0),
            errno: Errno(lookup),
            destination,
        });
        lab.see(Event::Line(Line {
            route,
            ..at_once(FAR, errno)
        }));
        let attempt = lab.only();
        (attempt.outcome, verdict(&attempt).0)
    };
    assert_eq!(looked_up(101, 11), (Outcome::Unreachable, "route-missing"));
    assert_eq!(looked_up(113, 113), (Outcome::Unreachable, "route-forbids"));
    assert_eq!(looked_up(13, 13), (Outcome::Denied, "route-forbids"));
    assert_eq!(looked_up(22, 22), (Outcome::Unreachable, "route-forbids"));
    // Denied without any failed lookup: a security module, and no name for it yet.
    assert_eq!(looked_up(13, 11), (Outcome::Denied, "unknown"));
}

#[test]
fn a_destination_that_the_kernel_does_not_take_is_told_by_its_address_and_the_source() {
    let named = |to: &str, source: Option<&str>, lookup: Option<i32>, kind: Option<&str>| {
        let mut lab = Lab::new();
        let mut peer = configured("app", to);
        peer.limits.source = source.map(|source| source.parse().expect("an address"));
        configure(&mut lab, ms(-9000), vec![peer]);
        let route = lookup.map(|errno| RouteError {
            at: us(0),
            errno: Errno(errno),
            destination: to.parse::<SocketAddr>().expect("an address").ip(),
        });
        lab.see(Event::Line(Line {
            route,
            ..at_once(to, 22)
        }));
        if let Some(kind) = kind {
            lab.answer(Answer::Route {
                is_local: false,
                kind: Some(kind.to_owned()),
                errno: None,
                via: None,
            });
        }
        verdict(&lab.only())
    };
    let lo = Some("127.0.0.1");
    assert_eq!(
        named("[fe80::1]:80", None, None, None),
        ("destination-invalid", Confirmed)
    );
    assert_eq!(
        named(FAR, lo, None, Some("unicast")),
        ("destination-invalid", Confirmed)
    );
    assert_eq!(named(FAR, lo, None, None), ("destination-invalid", Likely));
    // A route that forbids gives the same errno, and so does what nobody knows.
    assert_eq!(named(FAR, lo, Some(22), None), ("route-forbids", Confirmed));
    assert_eq!(
        named(FAR, lo, None, Some("blackhole")),
        ("route-forbids", Confirmed)
    );
    assert_eq!(named(FAR, Some("10.0.0.1"), None, Some("unicast")).0, "unknown");
    assert_eq!(named(FAR, None, None, Some("unicast")).0, "unknown");
}

#[test]
fn ipv6_that_is_off_is_no_want_of_ports() {
    let named = |to: &str, interfaces: &[(&str, bool)]| {
        let mut lab = Lab::new();
        lab.see(Event::Line(at_once(to, 99)));
        let question = Question::Ipv6 { pid: WORKER };
        let is_asked = |output: &Output| matches!(output, Output::Ask(asked) if *asked == question);
        assert!(lab.outputs.iter().any(is_asked), "{:?}", lab.outputs);
        let interfaces = interfaces
            .iter()
            .map(|(name, is_off)| ((*name).to_owned(), *is_off))
            .collect();
        let answer = Answer::Ipv6 { interfaces };
        lab.tell(ms(5), Input::Answer { question, answer });
        verdict(&lab.only()).0
    };
    assert_eq!(
        named("[::1]:3000", &[("lo", true), ("eth0", false)]),
        "family-disabled"
    );
    assert_eq!(
        named("[2001:db8::1]:80", &[("lo", true), ("eth0", true)]),
        "family-disabled"
    );
    // A way out is left, or nothing is known.
    assert_eq!(
        named("[2001:db8::1]:80", &[("lo", true), ("eth0", false)]),
        "unknown"
    );
    assert_eq!(named("[::1]:3000", &[("lo", false)]), "unknown");
    assert_eq!(named("[::1]:3000", &[]), "unknown");
}

/// What SELinux denies to nginx in its usual domain.
fn denied(class: &str, target: &str, permission: &str) -> Event {
    Event::SelinuxDenied(Denial {
        at: ms(0),
        worker: WORKER,
        source: "system_u:system_r:httpd_t:s0".to_owned(),
        target: format!("system_u:object_r:{target}:s0"),
        class: class.to_owned(),
        denied: vec![permission.to_owned()],
    })
}

#[test]
fn a_denial_of_selinux_is_told_by_its_event() {
    let told = |event, to| {
        let mut lab = Lab::new();
        lab.see(event);
        lab.see(Event::Line(at_once(to, 13)));
        lab.answer(walked(
            vec![
                component("/run", "directory", true),
                component("/run/app.sock", "socket", true),
            ],
            None,
            vec![],
        ));
        let attempt = lab.only();
        let (id, confidence) = verdict(&attempt);
        let summary = attempt.cause.expect("a cause").summary;
        (id, confidence, summary)
    };
    let unix = "unix:/run/app.sock";
    let expected = |summary: &str| ("selinux-denied", Confirmed, summary.to_owned());
    assert_eq!(
        told(denied("tcp_socket", "unreserved_port_t", "name_connect"), FAR),
        expected("SELinux does not let nginx (httpd_t) connect to port 80, whose type is unreserved_port_t.")
    );
    assert_eq!(
        told(denied("sock_file", "user_tmp_t", "write"), unix),
        expected(
            "SELinux does not let nginx (httpd_t) write to unix:/run/app.sock, whose type is user_tmp_t."
        )
    );
    assert_eq!(
        told(denied("unix_stream_socket", "kernel_t", "connectto"), unix),
        expected(
            "SELinux does not let nginx (httpd_t) connect to unix:/run/app.sock, whose listener runs as kernel_t."
        )
    );
    assert_eq!(
        told(denied("dir", "user_home_dir_t", "0x10000000"), unix),
        expected(
            "SELinux does not let nginx (httpd_t) search a directory of type user_home_dir_t on the way to \
             unix:/run/app.sock."
        )
    );
    // Of another kind than the connect(): it was denied something else.
    assert_eq!(told(denied("file", "etc_t", "read"), FAR).0, "unknown");
    assert_eq!(told(denied("sock_file", "devlog_t", "write"), FAR).0, "unknown");
    assert_eq!(
        told(denied("tcp_socket", "http_port_t", "name_bind"), FAR).0,
        "unknown"
    );
}

#[test]
fn permission_bits_come_before_selinux() {
    let mut lab = Lab::new();
    lab.see(denied("sock_file", "devlog_t", "write"));
    lab.see(Event::Line(at_once("unix:/run/app.sock", 13)));
    lab.answer(walked(
        vec![component("/run/app.sock", "socket", false)],
        None,
        vec![],
    ));
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("unix-permission", Confirmed));
    assert!(attempt.also.is_empty(), "{attempt:#?}");
}

#[test]
fn a_denial_belongs_to_what_the_worker_does_next() {
    let mut lab = Lab::new();
    lab.see(denied("tcp_socket", "http_port_t", "name_connect"));
    for number in [1, 2] {
        let at = us(number);
        lab.see(Event::Line(Line {
            id: line_id(at.0),
            at,
            connection: Some(number),
            ..at_once(FAR, 13)
        }));
    }
    lab.tell(ms(150), Input::Tick);
    lab.tell(ms(400), Input::Tick);
    let causes: Vec<&str> = lab.attempts().iter().map(|attempt| verdict(attempt).0).collect();
    assert_eq!(causes, ["selinux-denied", "unknown"]);
}

#[test]
fn without_nginx_s_voice_a_denial_is_likely() {
    for missing in [&["nginx-log"][..], &["nginx-log", "connect-errno"][..]] {
        let mut lab = with_connects(missing);
        lab.see(denied("tcp_socket", "http_port_t", "name_connect"));
        lab.tell(
            ms(20),
            Input::LogLine(LogLine {
                level: "crit".to_owned(),
                ..logged(&format!("connect() to {FAR} failed"), Some(13), FAR)
            }),
        );
        lab.tell(ms(150), Input::Tick);
        lab.tell(ms(400), Input::Tick);
        assert_eq!(verdict(&lab.only()), ("selinux-denied", Likely), "{missing:?}");
    }
}

#[test]
fn a_translated_address_is_no_far_host_s() {
    let named = |exchange: Exchange, real: Option<&str>| {
        let mut lab = Lab::with_hooks(&["nginx-log"]);
        lab.end(exchange);
        lab.answer(Answer::Translation {
            destination: real.map(|real| real.parse().expect("an address")),
        });
        verdict(&lab.only()).0
    };
    let silent = || Exchange {
        syn_retransmits: 2,
        ..connect(FAR, ms(3))
    };
    // 10.0.0.1 is one of this host's.
    assert_eq!(named(refused(FAR), Some("10.0.0.1:3000")), "unknown");
    assert_eq!(named(silent(), Some("10.0.0.1:3000")), "unknown");
    for real in [None, Some(FAR), Some("192.0.2.8:3000")] {
        assert_eq!(named(refused(FAR), real), "refused-remotely");
        assert_eq!(named(silent(), real), "syn-unanswered");
    }

    // Seen to be refused at the address that it was translated to, which is where a listener had died: known by what the
    // host says, or by the SYN's number where connection tracking has dropped what was refused.
    let is_refused_there = |conn: Option<ConnId>, translation: Option<&str>| {
        let mut lab = Lab::new();
        let dead = ending(4242, "node", Exit::Signal(9));
        lab.see(listener_closed(ms(-300), "10.0.0.1:3000", dead));
        lab.see(Event::ResetSent {
            at: us(90),
            netns: HERE,
            tuple: syn("10.0.0.1:3000"),
            reason: Some("NO_SOCKET".to_owned()),
            by: ResetBy::NoSocket,
            flags: 2,
            conn,
        });
        lab.end(refused(FAR));
        if conn.is_none() {
            lab.answer(Answer::Translation {
                destination: translation.and_then(|to| to.parse().ok()),
            });
        }
        verdict(&lab.only()).0
    };
    assert_eq!(is_refused_there(None, Some("10.0.0.1:3000")), "listener-died");
    assert_eq!(is_refused_there(None, None), "unknown");
    assert_eq!(
        is_refused_there(Some(refused(FAR).id.conn), None),
        "listener-died"
    );
}

#[test]
fn a_translation_is_to_blame_where_something_listens_at_the_address_that_was_asked_for() {
    let conn = Some(connect(APP, ms(0)).id.conn);
    let refused_at = |to: &str| no_socket_of(to, conn);
    let open = |address: &str, owner: &str| Event::ListenerFound {
        at: ms(-9000),
        listener: listener(address, task(9, owner)),
    };
    let there = || refused_at("127.0.0.1:15001");
    assert_eq!(
        named(vec![open(APP, "node"), there()], refused(APP)),
        ("destination-translated", Confirmed)
    );
    // Nothing listens at a service's address.
    assert_eq!(named(vec![there()], refused(APP)), ("no-listener", Confirmed));
    // What ended where the address leads, or listens beside it, is the better name.
    let dead = listener_closed(
        ms(-300),
        "127.0.0.1:15001",
        ending(4242, "envoy", Exit::Signal(9)),
    );
    assert_eq!(
        named(vec![open(APP, "node"), dead, there()], refused(APP)),
        ("listener-died", Confirmed)
    );
    assert_eq!(
        named(
            vec![open(APP, "docker-proxy"), open("10.0.0.9:15001", "node"), there()],
            refused(APP)
        ),
        ("listener-elsewhere", Confirmed)
    );
}

#[test]
fn a_full_queue_behind_a_translated_address_is_asked_of_the_host() {
    let elsewhere = Netns(HERE.0 + 1);
    let named = |answer: Answer, in_two_places: bool| {
        let mut lab = Lab::with_hooks(&["nginx-log"]);
        for netns in [elsewhere, Netns(elsewhere.0 + 1)]
            .into_iter()
            .take(1 + usize::from(in_two_places))
        {
            lab.tell(
                ms(0),
                Input::Addresses {
                    netns,
                    addresses: vec!["10.9.0.7".parse().expect("an address")],
                },
            );
            let mut listener = listener("10.9.0.7:3000", task(4242, "node"));
            listener.netns = netns;
            lab.see(Event::ListenerOpened { at: ms(0), listener });
        }
        lab.end(Exchange {
            syn_retransmits: 2,
            ..connect(FAR, ms(3))
        });
        lab.answer(Answer::Translation {
            destination: Some("10.9.0.7:3000".parse().expect("an address")),
        });
        let is_asked = |output: &Output| matches!(output, Output::Ask(Question::AcceptQueue { .. }));
        assert_eq!(lab.outputs.iter().any(is_asked), !in_two_places);
        if !in_two_places {
            lab.answer(answer);
        }
        verdict(&lab.only()).0
    };
    let queue = |waiting, are_all_full| Answer::AcceptQueue {
        waiting,
        limit: 128,
        are_all_full,
    };
    assert_eq!(named(queue(129, true), false), "accept-queue-full");
    assert_eq!(named(queue(128, false), false), "unknown");
    // Of several sockets that share the port another one may have been meant.
    assert_eq!(named(queue(129, false), false), "unknown");
    let gone = Answer::Unavailable {
        why: "process 4242 is gone".to_owned(),
    };
    assert_eq!(named(gone, false), "unknown");
    // Containers may have the same address in networks of their own; then nobody is asked.
    assert_eq!(named(Answer::Translation { destination: None }, true), "unknown");
}

#[test]
fn a_thread_that_ended_by_itself_as_its_process_was_killed_hides_no_death() {
    let mut lab = Lab::new();
    // The last thread closes the listener; it had been on its way out with a code of its own, and counts as last as well.
    let killed = |signalled_by| Event::ProcessExited {
        at: ms(-2),
        task: ending(4242, "node", Exit::Signal(9)),
        parent: Pid(1),
        is_nginx: false,
        signalled_by,
        told: None,
    };
    lab.see(killed(Some(task(7, "sh"))));
    lab.see(killed(None));
    lab.see(listener_closed(ms(-1), APP, ending(4242, "node", Exit::Code(0))));
    lab.see(no_socket(APP));
    lab.see(Event::Line(line(1, us(190), "connect() failed", Some(111))));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("listener-died", Confirmed));
    let summary = attempt
        .cause
        .as_ref()
        .map(|cause| cause.summary.clone())
        .unwrap_or_default();
    assert!(
        summary.contains("killed by SIGKILL from sh (pid 7)") || summary.contains("sh (pid 7)"),
        "{summary}"
    );
}

#[test]
fn a_listener_that_is_just_opened_or_closed_was_not_found_yet_or_any_more() {
    let named = |opened_after: Option<u64>, closed: Ktime| {
        let mut lab = Lab::new();
        let dead = ending(4242, "node", Exit::Signal(9));
        lab.see(listener_closed(closed, APP, dead));
        if let Some(opened) = opened_after {
            lab.see(Event::ListenerOpened {
                at: us(opened),
                listener: Listener {
                    sock: Sock(99),
                    ..listener(APP, task(4243, "node"))
                },
            });
        }
        // Refused after 90 µs.
        lab.see(no_socket(APP));
        lab.end(refused(APP));
        verdict(&lab.only()).0
    };
    assert_eq!(named(None, ms(-7)), "listener-died");
    // Seen under load: called a listener 6 µs before it could be found.
    assert_eq!(named(Some(84), ms(-7)), "listener-died");
    // And taken away before it was called closed.
    assert_eq!(named(None, us(96)), "listener-died");
}

/// The same with its packet's other end, or in another namespace.
fn elsewhere(event: Event, to: &str, place: Netns) -> Event {
    let other_end = syn(to);
    match event {
        Event::ResetSent {
            at,
            reason,
            by,
            flags,
            conn,
            ..
        } => Event::ResetSent {
            at,
            netns: place,
            tuple: other_end,
            reason,
            by,
            flags,
            conn,
        },
        Event::Dropped {
            at,
            flags,
            reason,
            location,
            conn,
            ..
        } => Event::Dropped {
            at,
            netns: place,
            tuple: other_end,
            flags,
            reason,
            location,
            conn,
        },
        other => panic!("no packet: {other:?}"),
    }
}

#[test]
fn what_became_of_another_s_packet_from_the_same_port_is_not_taken_for_nginx_s() {
    const OTHER: &str = "127.0.0.1:3999";
    const ELSEWHERE: Netns = Netns(2);
    let named = |seen: Vec<Event>, exchange: Exchange| {
        let mut lab = Lab::with_hooks(&["nginx-log"]);
        for event in seen {
            lab.see(event);
        }
        lab.end(exchange);
        let asked = lab.outputs.iter().any(|output| matches!(output, Output::Ask(_)));
        if asked {
            lab.answer(Answer::Translation { destination: None });
        }
        verdict(&lab.only()).0
    };
    let rule = || dropped(APP, "NETFILTER_DROP");
    let silent = || Exchange {
        syn_retransmits: 2,
        ..connect(APP, ms(3000))
    };
    // A rule refused nginx; from the same port another process was refused for want of a socket.
    assert_eq!(named(vec![rule()], refused(APP)), "firewall-reset");
    for noise in [
        elsewhere(no_socket(APP), OTHER, HERE),
        elsewhere(no_socket(APP), APP, ELSEWHERE),
        elsewhere(no_socket(APP), OTHER, ELSEWHERE),
        elsewhere(dropped(APP, "NO_SOCKET"), OTHER, HERE),
        elsewhere(dropped(APP, "NO_SOCKET"), APP, ELSEWHERE),
    ] {
        assert_eq!(named(vec![noise, rule()], refused(APP)), "firewall-reset");
    }
    // The other way round.
    for noise in [elsewhere(rule(), OTHER, HERE), elsewhere(rule(), APP, ELSEWHERE)] {
        assert_eq!(named(vec![noise.clone()], silent()), "unknown");
        assert_eq!(named(vec![noise, no_socket(APP)], refused(APP)), "no-listener");
    }
    assert_eq!(named(vec![rule()], silent()), "packet-dropped-locally");
}

#[test]
fn a_silent_log_proves_nothing_where_only_another_instance_is_known_to_log_errors() {
    let silence = |other: bool| {
        let mut lab = Lab::new();
        let mut peer = configured("app", APP);
        peer.limits.read_timeout_ms = Some(700);
        configure(&mut lab, Ktime(0), vec![peer]);
        lab.introduce(WORKER);
        let said = Line {
            worker: if other { Pid(911) } else { WORKER },
            ..line(9, ms(-1), "connect() failed", Some(111))
        };
        lab.tell(
            ms(-9000),
            Input::Worker {
                worker: Pid(911),
                master: Pid(900),
                started: ms(-9500),
            },
        );
        lab.see(Event::Line(said));
        lab.end(sent(APP, ms(701)));
        lab.only().outcome
    };
    assert_eq!(silence(false), Outcome::Cancelled, "it logs its own timeouts");
    assert_eq!(silence(true), Outcome::TimedOut, "it may not");
}

#[test]
fn a_number_used_again_is_another_process() {
    let mut lab = Lab::new();
    let end = |lab: &mut Lab, at: Ktime, pid: u32, comm: &str| {
        let before = lab.outputs.len();
        lab.tell(at, Input::Kernel(exited(at, ending(pid, comm, Exit::Code(0)))));
        let notes = lab.outputs.split_off(before);
        notes
            .into_iter()
            .filter_map(|output| match output {
                Output::Event(event) => Some(event.kind),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    configure(&mut lab, Ktime(0), vec![configured("app", APP)]);
    lab.introduce(WORKER);
    lab.see(Event::ListenerOpened {
        at: ms(0),
        listener: listener(APP, task(9, "node")),
    });
    assert_eq!(end(&mut lab, ms(1), WORKER.0, "nginx"), ["worker-exit"]);
    assert_eq!(end(&mut lab, ms(2), WORKER.0, "cron"), [""; 0]);
    assert_eq!(end(&mut lab, ms(3), 9, "node"), ["process-exit"]);
    assert_eq!(end(&mut lab, ms(4), 9, "cron"), [""; 0]);
    // And a worker again: it is said to have started.
    let before = lab.outputs.len();
    lab.tell(
        ms(5),
        Input::Worker {
            worker: WORKER,
            master: Pid(800),
            started: ms(5),
        },
    );
    assert!(
        matches!(&lab.outputs[before..], [Output::Event(event)] if event.kind == "worker-start"),
        "{:?}",
        &lab.outputs[before..]
    );
}

#[test]
fn closed_listeners_do_not_fill_the_table_and_are_no_loss() {
    let mut lab = Lab::new();
    let before = lab.engine.len();
    for hour in 0..20_i64 {
        for port in 0..8_000_i64 {
            let at = ms(hour * 3_600_000 + port * 400);
            let address = format!("127.0.0.1:{}", 10_000 + (port + hour * 8_000) % 50_000);
            lab.tell(
                at,
                Input::Kernel(Event::ListenerOpened {
                    at,
                    listener: listener(&address, task(9, "node")),
                }),
            );
            lab.tell(at, Input::Kernel(listener_closed(at, &address, task(9, "node"))));
        }
    }
    lab.tell(ms(21 * 3_600_000), Input::Tick);
    // Where process 9 served is known until it ends.
    let end = exited(ms(21 * 3_600_000), ending(9, "node", Exit::Code(0)));
    lab.tell(ms(21 * 3_600_000), Input::Kernel(end));
    lab.tell(ms(22 * 3_600_000), Input::Tick);
    assert_eq!(lab.engine.len(), before);
    let lost = |output: &Output| matches!(output, Output::Lost { .. });
    assert!(!lab.outputs.iter().any(lost));
}

#[test]
fn a_worker_of_many_reloads_later_keeps_its_names() {
    let mut lab = Lab::new();
    configure(&mut lab, Ktime(0), vec![configured("app", APP)]);
    // The lowest number of all is that of the worker that lives.
    lab.introduce(Pid(2));
    for reload in 0..5_000_u32 {
        let at = ms(i64::from(reload) * 1000);
        let worker = Pid(1_000 + reload);
        lab.tell(
            at,
            Input::Worker {
                worker,
                master: Pid(800),
                started: at,
            },
        );
        let end = exited(at, ending(worker.0, "nginx", Exit::Code(0)));
        lab.tell(at, Input::Kernel(end));
    }
    lab.see(no_socket(APP));
    lab.end(Exchange {
        worker: Pid(2),
        ..refused(APP)
    });
    assert_eq!(lab.only().upstream.as_deref(), Some("app"));
}

#[test]
fn exhausted_ports_are_one_attempt_from_line_and_socket() {
    let mut lab = Lab::new();
    lab.see(Event::Line(at_once(APP, 99)));
    let portless = Exchange {
        local: None,
        line: Some(line_id(1)),
        closed_in: Some(TcpState::Close),
        ..connect(APP, us(40))
    };
    lab.end(portless.clone());
    lab.answer(Answer::Ports {
        range: (50_000, 50_003),
        by_state: vec![("TIME_WAIT".to_owned(), 4)],
    });
    let attempt = lab.only();
    assert_eq!(
        (attempt.outcome, verdict(&attempt)),
        (Outcome::Exhausted, ("ports-exhausted", Confirmed))
    );
    assert_eq!(attempt.connection, Some(id(1, 1)));

    // Without nginx's voice the kernel alone says the same.
    let mut lab = Lab::with_hooks(&["nginx-log"]);
    lab.end(Exchange {
        line: None,
        ..portless
    });
    assert_eq!(verdict(&lab.only()), ("ports-exhausted", Confirmed));
}

#[test]
fn other_limits_are_told_by_nginx_s_own_call() {
    let mut lab = Lab::new();
    let bind = Line {
        argument: Some("192.0.2.9:0".to_owned()),
        ..line(1, ms(0), "bind(%V) failed", Some(99))
    };
    lab.see(Event::Line(bind));
    let attempt = lab.only();
    assert_eq!(
        (attempt.peer.clone(), attempt.outcome),
        (None, Outcome::Invalid),
        "its argument is the local address"
    );
    assert_eq!(verdict(&attempt), ("source-address-missing", Confirmed));

    let mut lab = Lab::new();
    lab.see(Event::Line(Line {
        level: 2,
        ..line(1, ms(0), "socket() failed", Some(24))
    }));
    lab.answer(Answer::Descriptors {
        open: 64,
        limit: 64,
        system: (900, 90_000),
    });
    assert_eq!(verdict(&lab.only()), ("fd-limit", Confirmed));
}

fn configured(upstream: &str, address: &str) -> ConfiguredPeer {
    ConfiguredPeer {
        peer: peer(address),
        upstream: upstream.to_owned(),
        server: address.to_owned(),
        via: Some("http".to_owned()),
        upgrades: false,
        limits: Limits {
            read_timeout_ms: Some(60_000),
            ..Limits::default()
        },
        balancing: Some(Balancing {
            max_fails: 1,
            fail_timeout_ms: 10_000,
            max_conns: 0,
            is_shared: false,
            counts_statuses: false,
        }),
    }
}

fn configure(lab: &mut Lab, since: Ktime, peers: Vec<ConfiguredPeer>) {
    let config = Config {
        path: "/etc/nginx/nginx.conf".to_owned(),
        peers,
        ..Config::default()
    };
    lab.tell(
        since,
        Input::Config {
            master: Pid(800),
            since,
            config,
        },
    );
}

#[test]
fn without_lines_a_unix_request_that_outlived_the_timer_timed_out() {
    const UNIX: &str = "unix:/run/app.sock";
    let ended = |ended: Ktime| {
        let mut lab = Lab::new();
        let mut peer = configured("app", UNIX);
        peer.limits.read_timeout_ms = Some(3000);
        configure(&mut lab, ms(-8000), vec![peer]);
        lab.tell(
            ms(-7000),
            Input::Worker {
                worker: WORKER,
                master: Pid(800),
                started: ms(-7500),
            },
        );
        // The backend sees nginx's close only when it looks.
        lab.end(Exchange {
            backend: Some(reader()),
            ..sent(UNIX, ended)
        });
        lab.only()
    };
    let named = |at| {
        let attempt = ended(at);
        (attempt.outcome, verdict(&attempt))
    };
    assert_eq!(named(ms(3100)), (Outcome::TimedOut, ("backend-slow", Confirmed)));
    // So late that nginx's worker may have slept, with an answer in its socket that nobody sees.
    assert_eq!(
        named(ms(5000)),
        (Outcome::TimedOut, ("unknown", Confidence::Possible))
    );
    assert_eq!(ended(ms(1000)).outcome, Outcome::Cancelled);
}

#[test]
fn old_workers_keep_the_names_they_started_with() {
    let mut lab = Lab::new();
    configure(&mut lab, ms(-8000), vec![configured("old", APP)]);
    lab.tell(
        ms(-7000),
        Input::Worker {
            worker: WORKER,
            master: Pid(800),
            started: ms(-9500),
        },
    );
    configure(
        &mut lab,
        ms(-100),
        vec![configured("new", APP), configured("both", APP)],
    );
    lab.tell(
        ms(-90),
        Input::Worker {
            worker: Pid(812),
            master: Pid(800),
            started: ms(-95),
        },
    );
    lab.see(no_socket(APP));
    lab.end(refused(APP));
    lab.end(Exchange {
        worker: Pid(812),
        id: id(2, 1),
        ..refused(APP)
    });
    lab.tell(ms(300), Input::Tick);
    lab.tell(ms(500), Input::Tick);
    let names: Vec<_> = lab
        .attempts()
        .iter()
        .map(|attempt| (attempt.upstream.clone(), attempt.upstreams.clone()))
        .collect();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        names,
        [
            (Some("old".to_owned()), set(&["old"])),
            (None, set(&["both", "new"]))
        ]
    );
    let kinds = lab.outputs.iter().filter_map(|output| match output {
        Output::Event(event) => Some(event.kind),
        _ => None,
    });
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        ["reload", "config", "worker-start", "peer-disabled"]
    );
}

#[test]
fn lines_of_two_workers_in_the_same_nanosecond_are_two() {
    let mut lab = Lab::new();
    let other = Pid(WORKER.0 + 1);
    let of_other = LineId {
        worker: other,
        ..line_id(1)
    };
    lab.see(no_socket(APP));
    lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
    lab.see(Event::Line(Line {
        id: of_other,
        worker: other,
        ..line(1, us(150), "connect() failed", Some(111))
    }));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    let mut second = refused(APP);
    second.id.conn.sock.0 += 1;
    lab.end(Exchange {
        line: Some(of_other),
        worker: other,
        ..second
    });
    lab.tell(ms(3000), Input::Tick);
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 2);
    for attempt in attempts {
        let says = attempt.nginx_says.as_deref();
        assert_eq!(
            says,
            Some("connect() failed (111: Connection refused) while connecting to upstream")
        );
    }
}

/// A refusal at [`APP`], and 150 µs later, for the same client, nobody whom nginx would try.
fn refused_then_nobody(lab: &mut Lab) -> Attempt {
    lab.see(no_socket(APP));
    lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    lab.tell(
        us(300),
        Input::Kernel(Event::Line(line(2, us(300), "no live upstreams", None))),
    );
    for at in [400, 700, 1000] {
        lab.tell(ms(at), Input::Tick);
    }
    (*lab.attempts().last().expect("two attempts")).clone()
}

#[test]
fn no_live_upstreams_names_the_failures_behind_it() {
    let mut lab = Lab::new();
    configure(&mut lab, ms(-8000), vec![configured("api", APP)]);
    let last = refused_then_nobody(&mut lab);
    assert_eq!(
        (last.outcome, last.peer.clone(), last.upstream.as_deref()),
        (Outcome::NoLiveUpstreams, None, Some("api"))
    );
    assert_eq!(verdict(&last), ("no-live-upstreams", Confirmed));
    assert!(
        last.cause
            .as_ref()
            .is_some_and(|cause| cause.summary.contains("no-listener")),
        "{last:#?}"
    );
    assert_eq!(last.retry, Some((1, 2)));
    // Nobody left was that request's end: what comes next for the client is another's.
    for (number, at) in [(3, ms(1003)), (4, ms(1004))] {
        let event = Event::Line(line(number, at, "no live upstreams", None));
        lab.tell(at, Input::Kernel(event));
    }
    for at in [1400, 1700, 2000] {
        lab.tell(ms(at), Input::Tick);
    }
    let retries: Vec<_> = lab.attempts().iter().map(|attempt| attempt.retry).collect();
    assert_eq!(retries, [None, Some((1, 2)), None, None]);
}

#[test]
fn a_line_is_the_retry_of_what_its_worker_did_right_before_not_of_the_clients_request_before() {
    let second = |follows: Follows| {
        let mut lab = Lab::new();
        configure(&mut lab, ms(-8000), vec![configured("api", APP)]);
        let refused = Exchange {
            line: Some(line_id(1)),
            ..refused(APP)
        };
        let of = refused.id;
        lab.see(no_socket(APP));
        lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
        lab.end(refused);
        // On the same kept connection of the client, a moment later.
        let line = Line {
            follows: Some(match follows {
                Follows::Other => Follows::Other,
                Follows::Failure(_) => Follows::Failure(RetryOf::Exchange(of)),
            }),
            ..line(2, us(300), "no live upstreams", None)
        };
        lab.tell(us(300), Input::Kernel(Event::Line(line)));
        for at in [400, 700, 1000] {
            lab.tell(ms(at), Input::Tick);
        }
        let last = (*lab.attempts().last().expect("two attempts")).clone();
        (last.retry, last.upstream)
    };
    let failure = Follows::Failure(RetryOf::Line(line_id(1)));
    assert_eq!(second(failure), (Some((1, 2)), Some("api".to_owned())));
    // The request before was answered by another peer, which nginx says nothing about.
    assert_eq!(second(Follows::Other), (None, None));
}

#[test]
fn a_refusal_that_nginx_fetched_is_one_though_the_client_has_half_closed() {
    let cause = |error_unfetched: bool| {
        let mut deaf = Lab::with_hooks(&["nginx-log", "error-log-file"]);
        configure(&mut deaf, ms(-8000), vec![configured("api", APP)]);
        deaf.see(no_socket(APP));
        let refused = Exchange {
            error_unfetched,
            ..refused(APP)
        };
        let of = refused.id;
        deaf.end(refused);
        deaf.see(Event::ClientLeft {
            at: us(260),
            worker: WORKER,
            exchange: Some(of),
            reset: true,
        });
        let attempt = deaf.only();
        (attempt.outcome, verdict(&attempt).0)
    };
    assert_eq!(cause(false), (Outcome::Refused, "no-listener"));
    // Its client had gone before nginx looked.
    assert_eq!(cause(true), (Outcome::Cancelled, "client-closed"));
}

#[test]
fn a_failure_that_disables_no_peer_is_not_why_nginx_has_none() {
    let balanced = |balancing: Balancing| {
        let mut lab = Lab::new();
        let only = ConfiguredPeer {
            balancing: Some(balancing),
            ..configured("api", APP)
        };
        configure(&mut lab, ms(-8000), vec![only]);
        verdict(&refused_then_nobody(&mut lab))
    };
    let usual = configured("api", APP).balancing.expect("the usual balancing");
    let cases = [
        (usual, Confirmed),
        (
            Balancing {
                max_fails: 0,
                ..usual
            },
            Likely,
        ),
        (
            Balancing {
                fail_timeout_ms: 0,
                max_conns: 1,
                ..usual
            },
            Likely,
        ),
        (
            Balancing {
                max_conns: 1,
                ..usual
            },
            Confirmed,
        ),
        (
            Balancing {
                max_conns: 1,
                max_fails: 2,
                ..usual
            },
            Likely,
        ),
    ];
    for (balancing, confidence) in cases {
        assert_eq!(
            balanced(balancing),
            ("no-live-upstreams", confidence),
            "{balancing:?}"
        );
    }
}

#[test]
fn a_retry_names_the_attempt_it_retried() {
    let mut lab = Lab::new();
    lab.see(no_socket(APP));
    lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    let answered = Exchange {
        received: 9,
        first_received_at: Some(ms(9)),
        last_received_at: Some(ms(9)),
        ..sent(FAR, us(9020))
    };
    lab.end(Exchange {
        id: id(2, 1),
        began_at: us(300),
        retry_of: Some(RetryOf::Exchange(id(1, 1))),
        ..answered
    });
    let summary = lab.summary();
    let retries: Vec<_> = lab
        .attempts()
        .iter()
        .map(|attempt| (attempt.number, attempt.retry))
        .collect();
    assert_eq!(retries, [(1, None), (2, Some((1, 2)))]);
    assert_eq!(
        (summary.attempts, summary.failures, summary.complete),
        (2, 1, true)
    );
    let findings: Vec<&Finding> = lab
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Finding(finding) => Some(finding),
            _ => None,
        })
        .collect();
    assert_eq!(
        findings.iter().map(|finding| finding.id).collect::<Vec<_>>(),
        ["failures-hidden-by-retries"]
    );
}

#[test]
fn a_late_log_line_still_finds_its_attempt() {
    let mut lab = Lab::new();
    lab.tell(
        ms(-10),
        Input::LogLine(logged("connect() failed", Some(111), FAR)),
    );
    lab.see(no_socket(APP));
    lab.see(Event::Line(Line {
        connection: Some(8),
        ..line(1, us(150), "connect() failed", Some(111))
    }));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    assert_eq!(lab.attempts().len(), 0, "its log line is awaited");
    lab.tell(
        ms(40),
        Input::LogLine(LogLine {
            connection: Some(8),
            ..logged("connect() failed", Some(111), APP)
        }),
    );
    lab.see(client_got(refused(APP).id, Some(502), false));
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 1, "it is written as soon as the line is there");
    assert_eq!(attempts[0].log.as_ref().and_then(|log| log.connection), Some(8));
    assert_eq!(
        attempts[0]
            .request
            .as_ref()
            .and_then(|request| request.path.as_deref()),
        Some("/a")
    );
    assert_eq!(
        attempts[0].nginx_says.as_deref(),
        Some("connect() failed (111: Connection refused) while connecting to upstream")
    );
}

/// A line whose text lay on a page that the worker had never touched.
fn unread(number: u64, at: Ktime, errno: i32) -> Line {
    Line {
        message: String::new(),
        action: None,
        ..line(number, at, "", Some(errno))
    }
}

#[test]
fn a_line_that_could_not_be_read_gets_its_text_from_the_file() {
    let mut lab = Lab::new();
    lab.see(Event::Line(unread(1, us(190), 111)));
    lab.see(no_socket(APP));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    assert_eq!(lab.attempts().len(), 0, "its text is awaited");
    lab.see(client_got(refused(APP).id, Some(502), false));
    lab.tell(ms(40), Input::LogLine(logged("connect() failed", Some(111), APP)));
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 1);
    assert_eq!(verdict(attempts[0]), ("no-listener", Confirmed));
    assert_eq!(
        attempts[0].nginx_says.as_deref(),
        Some("connect() failed (111: Connection refused) while connecting to upstream")
    );

    // An attempt that is its line and nothing else.
    let mut lab = Lab::new();
    lab.see(Event::Line(unread(1, us(190), 2)));
    lab.tell(
        ms(40),
        Input::LogLine(LogLine {
            level: "crit".to_owned(),
            ..logged("connect() to unix:/x failed", Some(2), "unix:/x")
        }),
    );
    lab.tell(ms(100), Input::Tick);
    lab.tell(ms(400), Input::Tick);
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].peer, Some(peer("unix:/x")));
}

#[test]
fn a_line_that_nobody_could_read_makes_no_failure() {
    let mut lab = Lab::new();
    lab.see(Event::Line(unread(1, ms(5), 11)));
    let mut answered = sent(APP, ms(6));
    answered.first_received_at = Some(ms(5));
    answered.last_received_at = Some(ms(5));
    answered.received = 300;
    answered.line = Some(line_id(1));
    lab.end(answered);
    lab.tell(ms(100), Input::Tick);
    lab.tell(ms(400), Input::Tick);
    assert_eq!(lab.only().outcome, Outcome::Ok);
}

#[test]
fn what_a_handshake_read_is_no_answer() {
    let over_tls = |action: &str, ended: Exchange| {
        let mut exchange = Exchange {
            uncut: true,
            first_received_at: Some(ms(1)),
            last_received_at: Some(ms(2)),
            received: 1200,
            line: Some(line_id(1)),
            ..ended
        };
        if let Some(backend) = &mut exchange.backend {
            backend.sent = 1200;
        }
        let line = Line {
            action: Some(action.to_owned()),
            ..line(
                1,
                exchange.ended_at,
                "upstream prematurely closed connection",
                None,
            )
        };
        named(vec![Event::Line(line)], exchange)
    };
    let ended = || {
        let exchange = Exchange {
            backend: Some(reader()),
            ..sent(APP, ms(9))
        };
        closed(exchange, ms(8))
    };
    let header = "reading response header from upstream";
    assert_eq!(over_tls(header, ended()), ("closed-without-response", Confirmed));
    assert_eq!(
        over_tls("reading upstream", ended()),
        ("closed-mid-response", Confirmed)
    );
}

#[test]
fn nothing_waits_longer_than_its_bound() {
    let mut lab = Lab::new();
    lab.tell(
        ms(-10),
        Input::LogLine(logged("connect() failed", Some(111), FAR)),
    );
    lab.see(no_socket(APP));
    lab.see(Event::Line(Line {
        connection: Some(8),
        ..line(1, us(150), "connect() failed", Some(111))
    }));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    lab.tell(ms(299), Input::Tick);
    assert_eq!(lab.attempts().len(), 0);
    lab.tell(ms(301), Input::Tick);
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 1);
    assert!(
        attempts[0]
            .unseen
            .iter()
            .any(|text| text.starts_with("error-log-file")),
        "{:?}",
        attempts[0].unseen
    );
}

#[test]
fn without_nginx_s_voice_the_file_tells_what_it_can() {
    let mut lab = Lab::with_hooks(&["nginx-log"]);
    // The line came first, the kernel's record after it.
    lab.tell(
        us(250),
        Input::LogLine(logged("connect() failed", Some(111), APP)),
    );
    lab.see(no_socket(APP));
    lab.end(refused(APP));
    lab.tell(
        ms(1),
        Input::LogLine(LogLine {
            level: "crit".to_owned(),
            ..logged("connect() to unix:/x failed", Some(2), "unix:/x")
        }),
    );
    lab.tell(ms(100), Input::Tick);
    lab.tell(ms(400), Input::Tick);
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 2);
    assert_eq!(verdict(attempts[0]), ("no-listener", Confirmed));
    assert!(attempts[0].log.is_some());
    assert_eq!(
        (attempts[1].peer.clone(), verdict(attempts[1]).0),
        (Some(peer("unix:/x")), "unix-missing")
    );
}

fn instance(pid: u32, worker: Pid, heard_since: Option<Ktime>) -> Input {
    Input::Instance(crate::event::Instance {
        pid: Pid(pid),
        workers: vec![worker],
        heard_since,
        ..crate::samples::instance()
    })
}

#[test]
fn a_worker_that_is_first_told_with_its_instance_is_still_said_to_have_started() {
    let mut lab = Lab::new();
    let worker = Pid(901);
    let starts = |lab: &Lab| {
        let events = lab.outputs.iter().filter_map(|output| match output {
            Output::Event(event) => Some(event.kind),
            _ => None,
        });
        events.filter(|kind| *kind == "worker-start").count()
    };
    lab.tell(ms(10), instance(800, worker, None));
    let told = Input::Worker {
        worker,
        master: Pid(800),
        started: ms(9),
    };
    lab.tell(ms(11), told.clone());
    assert_eq!(starts(&lab), 1);
    lab.tell(ms(12), told);
    assert_eq!(starts(&lab), 1, "once");
}

#[test]
fn an_executable_that_is_not_heard_is_judged_as_without_nginx_s_voice() {
    for (since, has_line) in [(Some(ms(50)), true), (None, true), (None, false)] {
        let mut lab = Lab::new();
        let worker = Pid(900);
        lab.tell(ms(-10), instance(899, worker, since));
        lab.see(no_socket(APP));
        lab.end(Exchange {
            worker,
            ..refused(APP)
        });
        if has_line {
            let text = LogLine {
                pid: worker,
                ..logged("connect() failed", Some(111), APP)
            };
            lab.tell(ms(20), Input::LogLine(text));
        }
        lab.tell(ms(200), Input::Tick);
        lab.tell(ms(400), Input::Tick);
        let attempt = lab.only();
        assert_eq!(verdict(&attempt).0, "no-listener");
        assert_eq!(attempt.nginx_says.is_some(), has_line, "{attempt:#?}");
        let is_said = attempt
            .unseen
            .iter()
            .any(|unseen| unseen.contains("was not heard at that time"));
        assert_eq!(is_said, !has_line, "{:?}", attempt.unseen);
    }
}

#[test]
fn a_timeout_of_an_executable_that_is_not_heard_is_no_client_that_left() {
    let mut lab = Lab::new();
    let worker = Pid(900);
    lab.tell(ms(-10), instance(899, worker, None));
    // Others' lines are heard.
    lab.see(Event::Line(line(9, ms(-5), "upstream timed out", Some(110))));
    lab.end(Exchange {
        worker,
        ..sent(APP, ms(700))
    });
    assert_eq!(lab.only().outcome, Outcome::TimedOut);
}

#[test]
fn a_lone_line_of_a_worker_not_heard_yet_is_an_attempt() {
    for since in [Some(ms(500)), None] {
        let mut lab = Lab::new();
        lab.tell(ms(-10), instance(899, Pid(900), since));
        lab.tell(ms(-10), Input::Clock { unix_ns: 1_000 });
        let text = LogLine {
            pid: Pid(900),
            time: 0,
            ..logged("connect() to unix:/x failed", Some(2), "unix:/x")
        };
        lab.tell(ms(1), Input::LogLine(text));
        for at in [100, 200, 300, 600] {
            lab.tell(ms(at), Input::Tick);
        }
        assert_eq!(lab.only().peer, Some(peer("unix:/x")));
    }
}

#[test]
fn attempts_of_a_worker_not_introduced_yet_wait_for_their_names() {
    let mut lab = Lab::new();
    let worker = Pid(900);
    configure(&mut lab, ms(-8000), vec![configured("another", APP)]);
    lab.see(no_socket(APP));
    lab.end(Exchange {
        worker,
        ..refused(APP)
    });
    lab.end(Exchange {
        worker,
        id: id(2, 1),
        end: EndKind::NextExchange,
        first_received_at: Some(ms(3)),
        last_received_at: Some(ms(3)),
        received: 10,
        ..sent(APP, ms(4))
    });
    assert!(lab.attempts().is_empty(), "whose worker it is is not known");
    let config = Config {
        peers: vec![configured("own", APP)],
        ..Config::default()
    };
    lab.tell(
        ms(30),
        Input::Config {
            master: Pid(899),
            since: Ktime(0),
            config,
        },
    );
    lab.tell(ms(30), instance(899, worker, Some(Ktime(0))));
    lab.tell(
        ms(30),
        Input::Worker {
            worker,
            master: Pid(899),
            started: ms(-1),
        },
    );
    lab.tell(ms(300), Input::Tick);
    lab.tell(ms(600), Input::Tick);
    let names: Vec<_> = lab
        .attempts()
        .iter()
        .map(|attempt| attempt.upstream.clone())
        .collect();
    assert_eq!(names, [Some("own".to_owned()), Some("own".to_owned())]);
}

#[test]
fn a_worker_that_is_never_introduced_has_no_names() {
    let mut lab = Lab::new();
    configure(&mut lab, ms(-8000), vec![configured("another", APP)]);
    lab.see(no_socket(APP));
    lab.end(Exchange {
        worker: Pid(900),
        ..refused(APP)
    });
    lab.tell(ms(200), Input::Tick);
    lab.tell(ms(400), Input::Tick);
    let attempts = lab.attempts();
    assert_eq!((attempts.len(), &attempts[0].upstream), (1, &None));
}

#[test]
fn a_master_s_number_used_again_has_its_own_names() {
    let mut lab = Lab::new();
    for since in [Ktime(0), ms(-8000)] {
        configure(&mut lab, since, vec![configured("before", APP)]);
    }
    configure(&mut lab, Ktime(0), vec![configured("after", APP)]);
    lab.see(no_socket(APP));
    lab.end(refused(APP));
    assert_eq!(lab.only().upstream.as_deref(), Some("after"));
}

fn connect_failed(to: &str, errno: i32) -> Event {
    Event::ConnectFailed {
        at: ms(0),
        worker: WORKER,
        peer: peer(to),
        errno: Errno(errno),
    }
}

const CONNECTS: [(&str, i32, Outcome); 7] = [
    ("unix:/x", 2, Outcome::Missing),
    ("unix:/x", 13, Outcome::Denied),
    ("unix:/x", 11, Outcome::Exhausted),
    ("unix:/x", 111, Outcome::Refused),
    (FAR, 101, Outcome::Unreachable),
    (FAR, 99, Outcome::Exhausted),
    (FAR, 13, Outcome::Denied),
];

/// Hooks as on a kernel where fexit loads.
fn with_connects(missing: &[&str]) -> Lab {
    let mut lab = Lab::new();
    let hooks = ["nginx-log", "connect-errno"].map(|sees| HookStatus {
        sees: sees.to_owned(),
        how: (!missing.contains(&sees)).then(|| "a way".to_owned()),
        why_not: None,
        without: "it is not seen".to_owned(),
    });
    lab.tell(ms(-9000), Input::Hooks(hooks.into()));
    lab
}

#[test]
fn a_connect_that_failed_at_once_is_an_attempt_without_nginx_s_voice() {
    for (to, errno, outcome) in CONNECTS {
        let mut lab = with_connects(&["nginx-log"]);
        lab.see(connect_failed(to, errno));
        lab.tell(ms(150), Input::Tick);
        lab.tell(ms(400), Input::Tick);
        let attempt = lab.only();
        assert_eq!(
            (attempt.peer.clone(), attempt.outcome, attempt.errno),
            (Some(peer(to)), outcome, Some(Errno(errno)))
        );
        assert_eq!((attempt.nginx_says, attempt.log), (None, None));
    }
}

#[test]
fn a_connect_that_failed_at_once_is_not_doubled_by_its_line() {
    for (to, errno, outcome) in CONNECTS {
        let mut lab = with_connects(&[]);
        lab.see(connect_failed(to, errno));
        lab.see(Event::Line(Line {
            at: us(20),
            ..at_once(to, errno)
        }));
        lab.tell(ms(150), Input::Tick);
        lab.tell(ms(400), Input::Tick);
        let attempt = lab.only();
        assert_eq!(attempt.outcome, outcome);
        assert!(attempt.nginx_says.is_some(), "{attempt:#?}");
    }
}

#[test]
fn a_connect_that_failed_at_once_is_not_doubled_by_the_log_file() {
    let orders = [false, true].map(|is_line_first| [("unix:/x", 2, is_line_first), (FAR, 13, is_line_first)]);
    for (to, errno, is_line_first) in orders.into_iter().flatten() {
        let mut lab = with_connects(&["nginx-log"]);
        let text = || {
            Input::LogLine(LogLine {
                level: "crit".to_owned(),
                ..logged(&format!("connect() to {to} failed"), Some(errno), to)
            })
        };
        if is_line_first {
            lab.tell(ms(0), text());
        }
        lab.see(connect_failed(to, errno));
        if !is_line_first {
            lab.tell(ms(20), text());
        }
        lab.tell(ms(150), Input::Tick);
        lab.tell(ms(400), Input::Tick);
        let attempt = lab.only();
        assert!(attempt.log.is_some(), "{attempt:#?}");
        assert!(attempt.nginx_says.is_some());
    }
}

#[test]
fn the_socket_of_a_connect_that_failed_at_once_joins_it() {
    for missing in [&[][..], &["nginx-log"][..]] {
        let mut lab = with_connects(missing);
        lab.see(connect_failed(FAR, 99));
        let line = missing.is_empty().then(|| at_once(FAR, 99));
        if let Some(line) = line.clone() {
            lab.see(Event::Line(line));
        }
        lab.end(Exchange {
            local: None,
            line: line.map(|line| line.id),
            ..connect(FAR, ms(0))
        });
        lab.tell(ms(150), Input::Tick);
        lab.tell(ms(400), Input::Tick);
        let attempt = lab.only();
        assert!(attempt.connection.is_some(), "{attempt:#?}");
        assert_eq!(attempt.errno, Some(Errno(99)));
    }
}

#[test]
fn a_loss_lowers_what_is_said() {
    let mut lab = Lab::new();
    lab.tell(
        ms(0),
        Input::Lost {
            class: LossClass::Ring,
            count: 3,
        },
    );
    lab.see(no_socket(APP));
    lab.end(refused(APP));
    let summary = lab.summary();
    assert_eq!(verdict(lab.attempts()[0]), ("no-listener", Likely));
    assert_eq!(
        (summary.lost.get(&LossClass::Ring), summary.complete),
        (Some(&3), false)
    );

    // An answer whose record was lost looks like none; nginx did not complain.
    let mut lab = Lab::new();
    lab.tell(
        ms(0),
        Input::Lost {
            class: LossClass::Probe,
            count: 1,
        },
    );
    lab.end(closed(sent(FAR, ms(20)), ms(10)));
    assert_eq!(verdict(&lab.only()).0, "unknown");
}

#[test]
fn races_at_one_idle_time_make_a_finding() {
    let races = |spread: i64| {
        let mut lab = Lab::new();
        configure(&mut lab, ms(-8000), vec![configured("api", FAR)]);
        for n in 0..6 {
            let race = Exchange {
                fin_before_request: true,
                acked: 0,
                ..closed(sent_again(FAR, ms(2)), us(900))
            };
            lab.end(Exchange {
                id: id(n, 2),
                previous_at: Some(ms(-5000 - spread * i64::try_from(n).expect("small"))),
                ..race
            });
        }
        lab.summary();
        lab.outputs.iter().filter(|output| matches!(output, Output::Finding(finding) if finding.id == "keepalive-races-at-one-idle-time")).count()
    };
    assert_eq!((races(5), races(500)), (1, 0));
}

#[test]
fn a_finding_is_said_when_it_has_stood_for_a_minute_and_again_at_the_end() {
    let mut lab = Lab::new();
    configure(&mut lab, ms(-8000), vec![configured("api", FAR)]);
    for n in 0..6 {
        lab.end(Exchange {
            id: id(n, 2),
            previous_at: Some(ms(-5000)),
            fin_before_request: true,
            acked: 0,
            ..closed(sent_again(FAR, ms(2)), us(900))
        });
    }
    let said = |lab: &mut Lab, minute: i64| {
        let before = lab.outputs.len();
        lab.tell(ms(10 + minute * 60_000), Input::Tick);
        let new = lab.outputs[before..].iter();
        let found = new.filter_map(|output| match output {
            Output::Finding(finding) => Some((finding.about.clone(), finding.at)),
            _ => None,
        });
        found.collect::<Vec<_>>()
    };
    assert_eq!(said(&mut lab, 1), []);
    let about = format!("api at {FAR}");
    assert_eq!(said(&mut lab, 2), [(about.clone(), Some(ms(120_010)))]);
    assert_eq!(said(&mut lab, 3), []);
    lab.tell(ms(300_000), Input::Detach { in_flight: 0 });
    let last = |output: &Output| matches!(output, Output::Finding(finding) if finding.at.is_none() && finding.about == about);
    assert_eq!(lab.outputs.iter().filter(|output| last(output)).count(), 1);
}

#[test]
fn a_line_may_come_after_the_exchange_it_ended() {
    let mut lab = Lab::new();
    lab.see(no_socket(APP));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(APP)
    });
    assert_eq!(lab.attempts().len(), 0, "its line is on its way");
    lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
    lab.see(client_got(refused(APP).id, Some(502), false));
    let attempts = lab.attempts();
    assert_eq!(attempts.len(), 1);
    assert!(attempts[0].nginx_says.is_some());
}

/// What nginx gave its client after this exchange.
fn client_got(of: ExchangeId, status: Option<u16>, cut: bool) -> Event {
    Event::ClientAnswered {
        at: us(210),
        worker: WORKER,
        of: RetryOf::Exchange(of),
        client: Some("192.0.2.9:50123".parse().unwrap()),
        status,
        cut,
    }
}

#[test]
fn what_the_client_got_is_its_attempt_s() {
    let address = Some("192.0.2.9:50123".parse().unwrap());
    for is_early in [false, true] {
        let mut lab = Lab::new();
        lab.see(no_socket(APP));
        lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
        let got = client_got(refused(APP).id, Some(502), false);
        let exchange = Exchange {
            line: Some(line_id(1)),
            ..refused(APP)
        };
        if is_early {
            lab.see(got);
            lab.end(exchange);
            lab.tell(ms(25), Input::Tick);
            lab.tell(ms(50), Input::Tick);
        } else {
            lab.end(exchange);
            assert_eq!(lab.attempts().len(), 0, "what its client gets is awaited");
            lab.see(got);
        }
        assert_eq!(
            lab.only().client,
            Some(Client {
                address,
                status: Some(502),
                cut: false
            })
        );
    }
}

#[test]
fn only_a_request_s_own_failure_cuts_its_client_s_connection() {
    let cut = |text: &str| {
        let mut lab = Lab::new();
        lab.see(no_socket(APP));
        lab.see(Event::Line(line(1, us(150), "connect() failed", Some(111))));
        lab.end(Exchange {
            line: Some(line_id(1)),
            ..refused(APP)
        });
        let mut log = logged("connect() failed", Some(111), APP);
        log.text.push_str(text);
        lab.tell(us(200), Input::LogLine(log));
        lab.see(client_got(refused(APP).id, None, true));
        lab.only().client.map(|client| client.cut)
    };
    assert_eq!(cut(""), Some(true));
    assert_eq!(cut(", subrequest: \"/copy\""), Some(false));
}

#[test]
fn a_timed_out_unix_attempt_finds_its_line_without_a_close() {
    const UNIX: &str = "unix:/run/app.sock";
    let mut lab = Lab::new();
    let unix = |ended| Exchange {
        backend: Some(reader()),
        acked: 0,
        ..sent(UNIX, ended)
    };
    lab.see(Event::Line(line(1, ms(1001), "upstream timed out", Some(110))));
    // The backend notices the end only when it is done with its work.
    lab.end(unix(ms(1400)));
    lab.tell(ms(1500), Input::Tick);
    let attempt = lab.only();
    assert_eq!(
        (attempt.outcome, verdict(&attempt)),
        (Outcome::TimedOut, ("backend-slow", Confirmed))
    );
    assert_eq!(attempt.ended_at, ms(1001), "nginx closed when it said so");

    // A healthy answer takes nobody's line.
    let mut lab = Lab::new();
    lab.see(Event::Line(line(1, ms(1001), "upstream timed out", Some(110))));
    lab.end(Exchange {
        received: 9,
        last_received_at: Some(ms(20)),
        ..unix(ms(1400))
    });
    lab.tell(ms(1500), Input::Tick);
    assert_eq!(lab.only().outcome, Outcome::Ok);
}

#[test]
fn a_kept_connection_found_dead_before_use_is_a_race_of_the_next_request() {
    let mut lab = Lab::new();
    lab.see(Event::Line(line(1, ms(5000), "connect() failed", Some(104))));
    let answered = Exchange {
        received: 66,
        first_received_at: Some(ms(2)),
        last_received_at: Some(ms(2)),
        ..sent(FAR, ms(2))
    };
    let died = Exchange {
        recv_error: None,
        ended_at: ms(5001),
        line: Some(line_id(1)),
        ..reset(answered, ms(4900))
    };
    lab.end(died);
    lab.tell(ms(9000), Input::Tick);
    let attempts = lab.attempts();
    assert_eq!(
        attempts.iter().map(|attempt| attempt.outcome).collect::<Vec<_>>(),
        [Outcome::Ok, Outcome::Reset]
    );
    let race = attempts[1];
    assert_eq!((race.phase, race.reused, race.exchange), (Phase::Idle, true, 2));
    assert_eq!(verdict(race), ("keepalive-race", Confirmed));
}

#[test]
fn a_log_line_alone_blames_no_answered_attempt_by_chance() {
    let mut lab = Lab::with_hooks(&["nginx-log"]);
    lab.tell(ms(0), Input::LogLine(logged("connect() failed", Some(111), FAR)));
    let ok = || Exchange {
        received: 500,
        first_received_at: Some(ms(9)),
        last_received_at: Some(ms(9)),
        ..sent(APP, us(9020))
    };
    lab.end(ok());
    lab.end(Exchange { id: id(2, 1), ..ok() });
    let cut = closed(Exchange { id: id(3, 1), ..ok() }, us(8990));
    lab.end(Exchange {
        ended_at: us(9020),
        ..cut
    });
    lab.tell(
        ms(20),
        Input::LogLine(logged("upstream prematurely closed connection", None, APP)),
    );
    lab.summary();
    let outcomes: Vec<_> = lab
        .attempts()
        .iter()
        .map(|attempt| (attempt.connection.map(|id| id.conn.sock.0), attempt.outcome))
        .collect();
    // The one whose peer had closed is the one nginx spoke of.
    assert!(outcomes.contains(&(Some(3), Outcome::Closed)), "{outcomes:?}");
    assert_eq!(
        outcomes
            .iter()
            .filter(|(_, outcome)| *outcome == Outcome::Ok)
            .count(),
        2
    );
}

/// nginx is known from its log file alone.
fn reader_of_the_file() -> Lab {
    let mut lab = Lab::with_hooks(&["nginx-log"]);
    lab.tell(
        ms(-8000),
        Input::LogLine(logged("client timed out", Some(110), APP)),
    );
    lab
}

#[test]
fn without_its_own_voice_nginx_is_believed_when_every_answer_that_fits_has_a_line() {
    let outcomes = |n_lines: u64| {
        let mut lab = reader_of_the_file();
        for n in 1..=2 {
            let answered = Exchange {
                id: id(n, 1),
                received: 500,
                first_received_at: Some(ms(2)),
                last_received_at: Some(ms(2)),
                ..sent(APP, us(9020))
            };
            lab.end(closed(answered, ms(5)));
        }
        for _ in 0..n_lines {
            let line = logged("upstream prematurely closed connection", None, APP);
            lab.tell(ms(20), Input::LogLine(line));
        }
        lab.tell(ms(100), Input::Tick);
        let is_unjoined =
            |output: &Output| matches!(output, Output::Event(note) if note.kind == "lines-unjoined");
        lab.summary();
        let outcomes: Vec<_> = lab.attempts().iter().map(|attempt| attempt.outcome).collect();
        (outcomes, lab.outputs.iter().any(is_unjoined))
    };
    assert_eq!(outcomes(2), (vec![Outcome::Closed; 2], false));
    // Whose line it is cannot be told: nobody is blamed, and that is said.
    assert_eq!(outcomes(1), (vec![Outcome::Ok; 2], true));
}

#[test]
fn a_kept_connection_found_dead_is_told_by_the_log_file_as_well() {
    let mut lab = reader_of_the_file();
    let answered = Exchange {
        received: 66,
        first_received_at: Some(ms(2)),
        last_received_at: Some(ms(2)),
        ..sent(FAR, ms(2))
    };
    lab.end(Exchange {
        recv_error: None,
        ended_at: ms(5001),
        ..reset(answered, ms(4900))
    });
    lab.tell(
        ms(5020),
        Input::LogLine(logged("connect() failed", Some(104), FAR)),
    );
    lab.tell(ms(5100), Input::Tick);
    lab.tell(ms(9000), Input::Tick);
    let attempts = lab.attempts();
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt.outcome, attempt.exchange, attempt.log.is_some()))
        .collect();
    assert_eq!(told, [(Outcome::Ok, 1, false), (Outcome::Reset, 2, true)]);
    assert_eq!(verdict(attempts[1]), ("keepalive-race", Confirmed));
}

#[test]
fn a_send_that_fails_is_an_attempt_without_any_line() {
    let mut deaf = Lab::with_hooks(&["nginx-log", "error-log-file"]);
    deaf.end(Exchange {
        first_sent_at: None,
        last_sent_at: None,
        sent: 0,
        acked: 0,
        send_error: Some(Errno(32)),
        ..sent_again("unix:/run/app.sock", us(1010))
    });
    assert_eq!(verdict(&deaf.only()), ("keepalive-race", Confirmed));
}

#[test]
fn a_refusal_whose_reset_cannot_be_seen_is_named_only_by_who_sent_it() {
    let refused = |to| Exchange {
        late: false,
        answered: false,
        reset_at: None,
        reset_in: None,
        ..refused(to)
    };
    let named = |event: Option<Event>, to| {
        let mut lab = Lab::with_hooks(&["resets-received"]);
        if let Some(event) = event {
            lab.see(event);
        }
        lab.end(refused(to));
        verdict(&lab.only()).0
    };
    assert_eq!(named(Some(no_socket(APP)), APP), "no-listener");
    // A rule may answer with a reset or with ICMP.
    assert_eq!(named(Some(dropped(APP, "NETFILTER_DROP")), APP), "unknown");
    assert_eq!(named(None, FAR), "unknown");
}

#[test]
fn without_nginx_a_timer_that_is_not_known_confirms_nothing() {
    let slow = |timeout: Option<u64>| {
        let mut deaf = Lab::with_hooks(&["nginx-log", "error-log-file"]);
        let limits = Limits {
            read_timeout_ms: timeout,
            ..Limits::default()
        };
        let configured = ConfiguredPeer {
            limits,
            ..configured("api", APP)
        };
        configure(&mut deaf, ms(-8000), vec![configured]);
        deaf.end(Exchange {
            backend: Some(reader()),
            ..sent(APP, ms(1001))
        });
        verdict(&deaf.only())
    };
    assert_eq!(slow(Some(1000)), ("backend-slow", Confirmed));
    assert_eq!(slow(None), ("backend-slow", Likely));
    // Long before its timer, for a reason that only nginx knows.
    assert_eq!(slow(Some(60_000)).0, "unknown");
}

#[test]
fn a_client_that_left_when_a_unix_timer_was_due_is_not_why() {
    let ended = |after: i64| {
        let mut deaf = Lab::with_hooks(&["nginx-log", "error-log-file"]);
        let limits = Limits {
            read_timeout_ms: Some(1000),
            ..Limits::default()
        };
        const UNIX: &str = "unix:/run/app.sock";
        let configured = ConfiguredPeer {
            limits,
            ..configured("api", UNIX)
        };
        configure(&mut deaf, ms(-8000), vec![configured]);
        deaf.end(Exchange {
            backend: Some(reader()),
            ..sent(UNIX, ms(after))
        });
        deaf.see(Event::ClientLeft {
            at: ms(after),
            worker: WORKER,
            exchange: None,
            reset: false,
        });
        verdict(&deaf.only()).0
    };
    assert_eq!(ended(1001), "backend-slow");
    assert_eq!(ended(500), "client-closed");
}

#[test]
fn where_no_bytes_are_seen_only_a_line_makes_an_answer_a_failure() {
    let blind = || {
        let mut lab = Lab::with_hooks(&["bytes"]);
        // Another line was heard: the log level lets failures through.
        lab.see(Event::Line(Line {
            action: Some("reading client request line".to_owned()),
            ..line(9, ms(-9), "something", None)
        }));
        lab
    };
    let unseen = || Exchange {
        first_sent_at: None,
        last_sent_at: None,
        backend: Some(reader()),
        ..sent(APP, ms(1001))
    };
    let mut lab = blind();
    lab.see(Event::ClientLeft {
        at: ms(1001),
        worker: WORKER,
        exchange: Some(unseen().id),
        reset: false,
    });
    lab.end(unseen());
    assert_eq!(lab.only().outcome, Outcome::Ok);

    // How far the answer had come is not known: slow or stalled.
    let mut lab = blind();
    lab.see(Event::Line(Line {
        action: Some("reading response header from upstream".to_owned()),
        ..line(1, ms(1000), "upstream timed out", Some(110))
    }));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..unseen()
    });
    let attempt = lab.only();
    assert_eq!(
        (attempt.outcome, verdict(&attempt).0),
        (Outcome::TimedOut, "unknown")
    );
    assert!(
        attempt.unseen.iter().any(|unseen| unseen.starts_with("bytes")),
        "{:?}",
        attempt.unseen
    );

    let died = Exchange {
        fin_at: Some(ms(900)),
        line: Some(line_id(1)),
        backend: Some(Backend {
            closed_at: Some(ms(900)),
            closed_by: Some(ending(4242, "node", Exit::Signal(9))),
            ..reader()
        }),
        ..unseen()
    };
    let mut lab = blind();
    lab.see(Event::Line(Line {
        action: Some("reading response header from upstream".to_owned()),
        ..line(1, ms(1000), "upstream prematurely closed connection", None)
    }));
    lab.end(died);
    assert_eq!(verdict(&lab.only()).0, "backend-died");
}

#[test]
fn a_far_host_is_blamed_only_where_this_hosts_drops_are_seen() {
    let named = |missing: &str, exchange: Exchange| {
        let mut lab = Lab::with_hooks(&[missing]);
        lab.end(exchange);
        verdict(&lab.only()).0
    };
    let was_reset = || reset(sent(FAR, ms(20)), ms(10));
    assert_eq!(named("snapshot", refused(FAR)), "refused-remotely");
    assert_eq!(named("drops", refused(FAR)), "unknown");
    assert_eq!(named("resets-sent", refused(FAR)), "unknown");
    assert_eq!(named("snapshot", was_reset()), "reset-remotely");
    assert_eq!(named("drops", was_reset()), "unknown");
    let silent = || connect(FAR, ms(60_000));
    let mut lab = Lab::with_hooks(&["drops", "nginx-log"]);
    lab.end(silent());
    assert_eq!(verdict(&lab.only()).0, "unknown");
}

#[test]
fn a_line_over_udp_is_the_attempt_and_what_became_of_the_datagram_its_cause() {
    const ELSEWHERE: Netns = Netns(2);
    let text = LogLine {
        action: Some("proxying and reading from upstream".to_owned()),
        host: None,
        request: None,
        is_udp: true,
        ..logged("recv() failed", Some(111), APP)
    };
    let heard = Line {
        action: text.action.clone(),
        ..line(1, ms(0), "recv() failed", Some(111))
    };
    let told = |is_text_first: bool, drop: Option<(Netns, &str)>| {
        let mut lab = Lab::new();
        lab.tell(
            ms(-9000),
            Input::Instance(crate::event::Instance {
                pid: Pid(800),
                exe: "/usr/sbin/nginx".to_owned(),
                version: None,
                conf: None,
                workers: vec![WORKER],
                netns: HERE,
                heard_since: Some(Ktime(0)),
            }),
        );
        if is_text_first {
            lab.tell(ms(-1), Input::LogLine(text.clone()));
        }
        if let Some((netns, reason)) = drop {
            lab.see(Event::DatagramDropped {
                at: ms(-1),
                netns,
                tuple: syn(APP),
                reason: reason.to_owned(),
            });
        }
        lab.see(Event::Line(heard.clone()));
        if !is_text_first {
            lab.tell(ms(20), Input::LogLine(text.clone()));
        }
        lab.tell(ms(150), Input::Tick);
        lab.tell(ms(500), Input::Tick);
        let attempt = &lab.only();
        assert_eq!(
            (attempt.outcome, attempt.phase, attempt.via.as_deref()),
            (Outcome::Refused, Phase::Waiting, Some("stream"))
        );
        assert_eq!(attempt.peer, Some(peer(APP)));
        verdict(attempt)
    };
    for is_text_first in [true, false] {
        let named = |drop| told(is_text_first, drop);
        assert_eq!(named(Some((HERE, "NO_SOCKET"))), ("no-listener", Confirmed));
        assert_eq!(
            named(Some((HERE, "NETFILTER_DROP"))),
            ("firewall-port-unreachable", Confirmed)
        );
        // Each namespace has its own loopback.
        assert_eq!(named(Some((ELSEWHERE, "NO_SOCKET"))).0, "unknown");
        assert_eq!(named(Some((HERE, "SOCKET_RCVBUFF"))).0, "unknown");
        assert_eq!(named(None).0, "unknown");
    }
}
