//! Any inputs in any order, with any times: nothing panics, everything is counted, memory stays bounded.

use proptest::prelude::*;

use super::*;
use crate::event::{ConnectDenied, Denier, Program, Stamped};

/// A small generator of arbitrary inputs: few addresses and ids, so that they meet each other.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn yes(&mut self) -> bool {
        self.roll(2) == 0
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.yes().then(|| value(self))
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        let index = usize::try_from(self.roll(values.len() as u64)).expect("small");
        values[index].clone()
    }

    fn time(&mut self) -> Ktime {
        match self.roll(40) {
            0 => Ktime(0),
            1 => Ktime(u64::MAX),
            _ => Ktime(T0 + self.roll(4_000) * MS),
        }
    }

    fn count(&mut self) -> u64 {
        self.of(&[0, 0, 1, 100, u64::MAX])
    }

    fn errno(&mut self) -> Errno {
        Errno(self.of(&[
            0,
            2,
            11,
            13,
            22,
            24,
            32,
            99,
            101,
            104,
            110,
            111,
            113,
            -5,
            i32::MAX,
        ]))
    }

    fn peer(&mut self) -> Peer {
        peer(self.of(&[APP, FAR, "[::1]:3000", "unix:/run/app.sock", "10.0.0.1:0"]))
    }

    fn retry_of(&mut self) -> RetryOf {
        match self.yes() {
            true => RetryOf::Exchange(self.exchange_id()),
            false => RetryOf::Line(self.line_id()),
        }
    }

    fn address(&mut self) -> SocketAddr {
        self.of(&[
            local(),
            "192.0.2.7:80".parse().expect("an address"),
            "127.0.0.1:3000".parse().expect("an address"),
        ])
    }

    fn pid(&mut self) -> Pid {
        self.of(&[WORKER, Pid(800), Pid(4242), Pid(0)])
    }

    fn task(&mut self) -> Task {
        let exiting =
            self.maybe(|dice| dice.of(&[Exit::Code(0), Exit::Code(1), Exit::Signal(9), Exit::Signal(255)]));
        Task {
            pid: self.pid(),
            comm: self.of(&["node", ""]).to_owned(),
            exiting,
            oom: self.yes(),
        }
    }

    fn told(&mut self) -> Told {
        Told {
            signal: self.of(&[0, 1, 6, 15, 255]),
            by: self.task(),
            ago_ms: self.of(&[0, 2_000, u32::MAX]),
        }
    }

    fn exchange_id(&mut self) -> ExchangeId {
        let number = self.of(&[0, 1, 2, u32::MAX]);
        id(self.roll(4), number)
    }

    fn backend(&mut self) -> Backend {
        Backend {
            sock: Sock(self.roll(4)),
            netns: HERE,
            task: self.maybe(Self::task),
            accepted: self.yes(),
            accepted_at: self.maybe(Self::time),
            first_read_at: self.maybe(Self::time),
            last_read_at: self.maybe(Self::time),
            read: self.count(),
            sent: self.count(),
            unread: self.count(),
            closed_at: self.maybe(Self::time),
            closed_by: self.maybe(Self::task),
            aborted: self.yes(),
            reset_reason: self.maybe(|_| "TCP_STATE".to_owned()),
            error_at_destroy: self.maybe(Self::errno),
        }
    }

    fn state(&mut self) -> TcpState {
        self.of(&[
            TcpState::SynSent,
            TcpState::Established,
            TcpState::CloseWait,
            TcpState::FinWait1,
        ])
    }

    fn exchange(&mut self) -> Exchange {
        let peer = self.peer();
        Exchange {
            id: self.exchange_id(),
            worker: self.pid(),
            netns: HERE,
            local: self.maybe(Self::address),
            peer,
            preexisting: self.yes(),
            uncut: self.yes(),
            began_at: self.time(),
            previous_at: self.maybe(Self::time),
            connect_at: self.maybe(Self::time),
            established_at: self.maybe(Self::time),
            first_sent_at: self.maybe(Self::time),
            last_sent_at: self.maybe(Self::time),
            sent: self.count(),
            acked: self.count(),
            first_received_at: self.maybe(Self::time),
            last_received_at: self.maybe(Self::time),
            received: self.count(),
            unread: self.count(),
            arrived_at: self.maybe(Self::time),
            eof_read_at: self.maybe(Self::time),
            send_error: self.maybe(Self::errno),
            send_blocked_at: self.maybe(Self::time),
            recv_error: self.maybe(Self::errno),
            fin_at: self.maybe(Self::time),
            fin_before_request: self.yes(),
            late: self.yes(),
            answered: self.yes(),
            reset_at: self.maybe(Self::time),
            reset_in: self.maybe(Self::state),
            acked_at_reset: self.count(),
            error: self.maybe(Self::errno),
            error_at: self.maybe(Self::time),
            soft_error: self.maybe(Self::errno),
            error_unfetched: self.yes(),
            icmp: self.maybe(|dice| Icmp {
                at: dice.time(),
                kind: dice.of(&[1, 3]),
                code: dice.of(&[0, 1, 3, 10]),
                sender: dice.maybe(|dice| dice.address().ip()),
                errno: dice.errno(),
            }),
            syn_retransmits: self.of(&[0, 1, u32::MAX]),
            retransmits: self.of(&[0, 1, u32::MAX]),
            last_retransmit_at: self.maybe(Self::time),
            head: self.maybe(|dice| {
                Box::new(Head {
                    path: Some("/a".into()),
                    status: dice.maybe(|dice| dice.of(&[200, 502])),
                    ..Head::default()
                })
            }),
            rtt_us: self.maybe(|dice| dice.of(&[0, 80, u32::MAX])),
            send_window: self.maybe(|dice| dice.of(&[0, 1])),
            ended_at: self.time(),
            end: self.of(&[
                EndKind::Closed,
                EndKind::Closed,
                EndKind::NextExchange,
                EndKind::Idle,
                EndKind::WorkerGone,
                EndKind::Presumed,
                EndKind::Detached,
            ]),
            closed_in: self.maybe(Self::state),
            backend: self.maybe(Self::backend),
            line: self.maybe(|dice| dice.line_id()),
            retry_of: self.maybe(Self::retry_of),
        }
    }

    fn message(&mut self) -> &'static str {
        self.of(&[
            "connect() to %V failed",
            "connect() failed",
            "upstream timed out",
            "upstream prematurely closed connection",
            "no live upstreams",
            "socket() failed",
            "bind(%V) failed",
            "%*s",
            "",
            "upstream sent invalid header: \"%*s\\x%02xd...\"",
        ])
    }

    fn line_id(&mut self) -> LineId {
        LineId {
            at: Ktime(self.roll(6)),
            worker: self.pid(),
        }
    }

    fn line(&mut self) -> Line {
        Line {
            id: self.line_id(),
            worker: self.pid(),
            at: self.time(),
            level: self.of(&[2, 3, 4, 5]),
            errno: self.maybe(Self::errno),
            connection: self.maybe(|dice| dice.roll(3)),
            message: self.message().to_owned(),
            action: self.maybe(|_| "connecting to upstream".to_owned()),
            argument: self.maybe(|dice| dice.peer().to_string()),
            number: self.maybe(|dice| dice.roll(8)),
            route: self.maybe(|dice| RouteError {
                at: dice.time(),
                errno: dice.errno(),
                destination: dice.address().ip(),
            }),
            denied: self.maybe(|dice| ConnectDenied {
                at: dice.time(),
                errno: dice.errno(),
                by: dice.of(&[Denier::Cgroup, Denier::SecurityModule]),
            }),
            programs: self.maybe(|dice| {
                let program = Program {
                    id: 7,
                    name: String::new(),
                };
                vec![program; usize::from(dice.of(&[0_u8, 1, 4]))]
            }),
            follows: self.maybe(|dice| match dice.roll(3) {
                0 => Follows::Other,
                1 => Follows::Failure(RetryOf::Line(dice.line_id())),
                _ => Follows::Failure(RetryOf::Exchange(dice.exchange_id())),
            }),
        }
    }

    fn listener(&mut self) -> Listener {
        Listener {
            sock: Sock(self.roll(9)),
            netns: HERE,
            address: self.peer(),
            v6only: self.yes(),
            queue: self.of(&[0, 129, u32::MAX]),
            limit: 128,
            task: self.task(),
        }
    }

    fn event(&mut self) -> Event {
        let tuple = Tuple {
            source: self.address(),
            destination: self.address(),
        };
        let at = self.time();
        match self.roll(15) {
            0..=3 => Event::Exchange(Box::new(self.exchange())),
            4 | 5 => Event::Line(self.line()),
            6 => Event::ListenerOpened {
                at,
                listener: self.listener(),
            },
            7 => Event::ListenerClosed {
                at,
                listener: self.listener(),
            },
            8 => Event::ListenerQueue {
                at,
                conn: self.exchange_id().conn,
                listener: self.listener(),
            },
            9 => Event::ResetSent {
                at,
                netns: HERE,
                tuple,
                reason: None,
                by: self.of(&[ResetBy::NoSocket, ResetBy::Listener, ResetBy::Socket]),
                flags: self.of(&[0, 2, 0x12, 0x10]),
                conn: self.maybe(|dice| dice.exchange_id().conn),
            },
            10 if self.yes() => Event::DatagramDropped {
                at,
                netns: HERE,
                tuple,
                reason: self.of(&["NO_SOCKET", "NETFILTER_DROP"]).to_owned(),
            },
            10 => Event::Dropped {
                at,
                netns: HERE,
                tuple,
                flags: self.of(&[2, 0x12, 0x10]),
                reason: self.maybe(|dice| {
                    dice.of(&["NETFILTER_DROP", "NO_SOCKET", "NEIGH_FAILED"])
                        .to_owned()
                }),
                location: self.maybe(|_| "tcp_v4_rcv".to_owned()),
                conn: self.maybe(|dice| dice.exchange_id().conn),
            },
            11 => Event::BackendEdge {
                at,
                exchange: self.exchange_id(),
                backend: Box::new(self.backend()),
            },
            12 => Event::ClientLeft {
                at,
                worker: self.pid(),
                exchange: self.maybe(Self::exchange_id),
                reset: self.yes(),
            },
            13 => Event::ClientAnswered {
                at,
                worker: self.pid(),
                of: self.retry_of(),
                client: self.maybe(Self::address),
                status: self.maybe(|dice| dice.of(&[200, 502])),
                cut: self.yes(),
            },
            _ => Event::ProcessExited {
                at,
                task: self.task(),
                parent: self.pid(),
                is_nginx: self.yes(),
                signalled_by: self.maybe(Self::task),
                told: self.maybe(Self::told),
            },
        }
    }

    fn input(&mut self, questions: &[Question]) -> Input {
        match self.roll(20) {
            0 => Input::Tick,
            1 => Input::Lost {
                class: LossClass::Ring,
                count: self.count(),
            },
            2 => Input::Clock {
                unix_ns: self.of(&[0, i64::MIN, i64::MAX]),
            },
            3 => {
                let message = self.message().replacen("%V", &self.peer().to_string(), 1);
                let to = self.peer().to_string();
                Input::LogLine(LogLine {
                    pid: self.pid(),
                    is_udp: self.roll(4) == 0,
                    ..logged(&message, self.maybe(|dice| dice.errno().0), &to)
                })
            }
            4 if !questions.is_empty() => {
                let answer = match self.roll(4) {
                    0 => Answer::Unavailable { why: "no".to_owned() },
                    3 => Answer::Name(crate::event::NameMeaning {
                        addresses: vec![Ipv4Addr::new(10, 9, 0, 9).into(); 2],
                        from: crate::event::NameSource::HostsFile,
                        varies: self.yes(),
                        ttl_s: None,
                        whole: None,
                    }),
                    1 => Answer::Ports {
                        range: (60_000, 1),
                        by_state: vec![("x".to_owned(), u32::MAX); 3],
                    },
                    _ => walked(
                        vec![component("/run/app.sock", "socket", self.yes())],
                        None,
                        vec![],
                    ),
                };
                Input::Answer {
                    question: self.of(questions),
                    answer,
                }
            }
            5 => Input::Worker {
                worker: self.pid(),
                master: self.pid(),
                started: self.time(),
            },
            6 => Input::Config {
                master: self.pid(),
                since: self.time(),
                config: Config {
                    peers: vec![configured("api", APP), configured("b", APP)],
                    names: ["api", "b"]
                        .map(|name| crate::event::ConfiguredName {
                            name: name.to_owned(),
                            port: 3000,
                            upstream: name.to_owned(),
                            server: APP.to_owned(),
                        })
                        .into(),
                    is_whole: self.yes(),
                    may_ask_names: self.yes(),
                    cuts_at_shutdown: self.yes(),
                    ..Config::default()
                },
            },
            7 => Input::Hooks(vec![HookStatus {
                sees: self.of(&["nginx-log", "drops", "error-log-file"]).to_owned(),
                how: self.maybe(|_| "a way".to_owned()),
                why_not: None,
                without: String::new(),
            }]),
            _ => Input::Kernel(self.event()),
        }
    }
}

/// Runs `n` arbitrary inputs; returns the inputs with what was said.
fn run(seed: u64, n: usize, capacity: usize) -> (Vec<Stamped>, Vec<Output>, usize) {
    let mut dice = Dice(seed);
    let mut engine = Engine::new(EngineOptions {
        capacity,
        ..EngineOptions::default()
    });
    let (mut inputs, mut outputs, mut questions, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for step in 0..=n {
        let at = dice.time();
        let input = if step == n {
            Input::Detach { in_flight: 0 }
        } else {
            dice.input(&questions)
        };
        inputs.push(Stamped {
            at,
            input: input.clone(),
        });
        let said = engine.apply(at, input);
        questions.extend(said.iter().filter_map(|output| match output {
            Output::Ask(question) => Some(question.clone()),
            _ => None,
        }));
        outputs.extend(said);
        most = most.max(engine.len());
    }
    (inputs, outputs, most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_inputs_are_taken_and_counted(seed in any::<u64>(), n in 0_usize..400) {
        let (inputs, outputs, _) = run(seed, n, 64);
        let attempts: Vec<&Attempt> = outputs.iter().filter_map(|output| match output {
            Output::Attempt(attempt) => Some(&**attempt),
            _ => None,
        }).collect();
        // Every failure has a cause, every success none, and nothing is written twice.
        for attempt in &attempts {
            prop_assert_eq!(attempt.cause.is_some(), attempt.outcome != Outcome::Ok, "{:#?}", attempt);
        }
        let mut numbers: Vec<u64> = attempts.iter().map(|attempt| attempt.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), attempts.len());
        let Some(Output::Summary(summary)) = outputs.last() else { panic!("the summary comes last") };
        prop_assert_eq!(summary.attempts, attempts.len() as u64);
        prop_assert_eq!(summary.counts.values().sum::<u64>(), summary.attempts);
        // The same again, from the same inputs.
        let mut engine = Engine::new(EngineOptions { capacity: 64, ..EngineOptions::default() });
        let again: Vec<Output> = inputs.into_iter().flat_map(|stamped| engine.apply(stamped.at, stamped.input)).collect();
        prop_assert_eq!(again, outputs);
    }
}

#[test]
fn a_small_engine_stays_small_under_many_inputs() {
    let (_, outputs, most) = run(42, 30_000, 64);
    // Some thirty tables of at most 64 entries (packets count twice), and the counts by name.
    assert!(most < 64 * 48, "{most} entries");
    assert!(
        outputs.iter().any(|output| matches!(
            output,
            Output::Lost {
                class: LossClass::Queue,
                ..
            }
        )),
        "it says what it pushed out"
    );
}
