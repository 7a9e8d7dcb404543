//! Names of requests that nginx's resolver could not turn into an address.

use super::*;
use crate::event::{NameMeaning, NameReply, NameSaid, NameSource};

const RESOLVER: &str = "10.0.0.2:53";

fn resolver() -> SocketAddr {
    RESOLVER.parse().expect("an address")
}

/// An nginx with one nameserver.
fn lab(may_ask_names: bool) -> Lab {
    let mut lab = Lab::new();
    let config = Config {
        resolvers: vec![resolver()],
        may_ask_names,
        ..Config::default()
    };
    lab.tell(
        ms(-9000),
        Input::Config {
            master: Pid(800),
            since: Ktime(0),
            config,
        },
    );
    lab
}

/// nginx's line at the end of its resolver.
fn ended(code: u64) -> Event {
    Event::Line(Line {
        action: None,
        argument: Some("api".to_owned()),
        number: Some(code),
        ..line(1, ms(0), "%V could not be resolved (%i: %s)", None)
    })
}

/// nginx's line about a socket of its resolver.
fn complains(at: Ktime, message: &str, errno: Option<i32>) -> Event {
    Event::Line(Line {
        action: Some("resolving".to_owned()),
        ..line(2, at, message, errno)
    })
}

fn replies(v4: NameSaid, v6: NameSaid) -> Answer {
    let reply = |is_v6, said| NameReply {
        server: resolver(),
        is_v6,
        said,
    };
    Answer::Nameservers {
        replies: vec![reply(false, v4), reply(true, v6)],
    }
}

fn means(from: NameSource, whole: Option<&str>) -> Answer {
    Answer::Name(NameMeaning {
        addresses: vec!["10.9.0.7".parse().expect("an address")],
        from,
        varies: false,
        ttl_s: None,
        whole: whole.map(str::to_owned),
    })
}

fn nobody_knows() -> Answer {
    Answer::Name(NameMeaning {
        addresses: vec![],
        from: NameSource::HostsFile,
        varies: false,
        ttl_s: None,
        whole: None,
    })
}

/// The attempt after this end of the resolver and these answers, each to the question it was asked by.
fn told(code: u64, answers: Vec<Answer>) -> Attempt {
    let mut lab = lab(true);
    lab.see(ended(code));
    for answer in answers {
        lab.answer(answer);
    }
    lab.only()
}

fn summary(attempt: &Attempt) -> &str {
    &attempt.cause.as_ref().expect("a cause").summary
}

#[test]
fn a_name_is_told_by_how_the_resolver_ended() {
    use NameSaid::{Fails, NoSuchName, Nothing};
    let named = |code, answers| {
        let attempt = told(code, answers);
        assert_eq!(
            (attempt.outcome, attempt.phase),
            (Outcome::Unresolved, Phase::Resolving)
        );
        assert_eq!(attempt.upstream.as_deref(), Some("api"));
        verdict(&attempt)
    };
    let unknown = replies(NoSuchName, NoSuchName);
    assert_eq!(
        named(3, vec![unknown, nobody_knows()]),
        ("name-not-found", Confirmed)
    );
    let fails = |code: &str| replies(Fails(code.to_owned()), Fails(code.to_owned()));
    assert_eq!(named(2, vec![fails("SERVFAIL")]), ("resolver-failed", Confirmed));
    assert_eq!(named(5, vec![fails("REFUSED")]), ("resolver-refused", Confirmed));
    let silence = || Nothing("no answer in time".to_owned());
    assert_eq!(
        named(110, vec![replies(silence(), silence())]),
        ("resolver-silent", Confirmed)
    );
    // A number that is none of these.
    assert_eq!(named(77, vec![]), ("unknown", Confidence::Possible));
}

#[test]
fn the_line_is_told_as_nginx_prints_it() {
    let attempt = told(5, vec![]);
    assert_eq!(
        attempt.nginx_says.as_deref(),
        Some("api could not be resolved (5: Operation refused)")
    );
    assert_eq!(attempt.errno, None);
}

#[test]
fn what_the_system_knows_and_the_resolver_does_not_is_said() {
    use NameSaid::NoSuchName;
    let unknown = || replies(NoSuchName, NoSuchName);
    let hosts = told(3, vec![unknown(), means(NameSource::HostsFile, None)]);
    assert!(summary(&hosts).ends_with("The hosts file has api, which nginx's resolver does not read."));
    let server = NameSource::Nameserver("10.0.0.2".parse().expect("an address"));
    let searched = told(3, vec![unknown(), means(server, Some("api.lab"))]);
    assert!(summary(&searched).contains("With a search domain of resolv.conf it is api.lab"));
    let elsewhere = told(3, vec![unknown(), means(server, Some("api"))]);
    assert!(summary(&elsewhere).ends_with("10.0.0.2, the nameserver of resolv.conf, knows it."));
    // It is there by now: the system's nameserver is no better.
    let address = || NameSaid::Addresses(vec!["10.9.0.7".parse().expect("an address")]);
    let later = told(
        3,
        vec![
            replies(address(), NameSaid::Addresses(vec![])),
            means(server, Some("api")),
        ],
    );
    assert_eq!(
        summary(&later),
        "10.0.0.2:53, nginx's nameserver, told nginx that api has no address; asked again now, 10.0.0.2:53 gives one."
    );
}

#[test]
fn the_family_that_fails_is_named() {
    let address = NameSaid::Addresses(vec!["10.9.0.7".parse().expect("an address")]);
    let attempt = told(2, vec![replies(address, NameSaid::Fails("SERVFAIL".to_owned()))]);
    assert!(summary(&attempt).contains("it says so for IPv6 only and has an address for IPv4"));
    let remedy = &attempt.cause.as_ref().expect("a cause").remedy;
    assert!(remedy.contains("resolver 10.0.0.2:53 ipv6=off"), "{remedy}");
    // Both fail: nothing is to be left out.
    let both = || NameSaid::Fails("SERVFAIL".to_owned());
    assert!(!summary(&told(2, vec![replies(both(), both())])).contains("only"));
}

#[test]
fn silence_and_an_unreachable_nameserver_are_told_apart_by_what_nginx_said_before() {
    let after = |says: Event| {
        let mut lab = lab(false);
        lab.see(says);
        lab.see(ended(110));
        lab.only()
    };
    let refused = after(complains(ms(-2000), "recv() failed", Some(111)));
    assert_eq!(verdict(&refused), ("resolver-unreachable", Confirmed));
    assert!(summary(&refused).contains("said that nobody listens there"));
    let firewall = after(complains(ms(-2000), "send() failed", Some(1)));
    assert!(summary(&firewall).contains("this host's own firewall"));
    let late = |at: i64| {
        let mut lab = lab(false);
        lab.see(complains(ms(0), "recv() failed", Some(111)));
        let end = match ended(110) {
            Event::Line(line) => Line {
                at: ms(at),
                id: line_id(9),
                ..line
            },
            other => panic!("{other:?}"),
        };
        lab.tell(ms(at), Input::Kernel(Event::Line(end)));
        verdict(&lab.only()).0
    };
    // It was asked again since; and longer ago than a name may take.
    assert_eq!(late(5_900), "resolver-unreachable");
    assert_eq!(late(6_100), "unknown");
    assert_eq!(late(31_000), "resolver-silent");
    // An answer that nginx could not use: neither.
    let unusable = after(complains(
        ms(-10),
        "wrong ident %ui response for %V, expect %ui",
        None,
    ));
    assert_eq!(verdict(&unusable), ("unknown", Confidence::Possible));
}

#[test]
fn without_leave_nobody_is_asked() {
    let mut lab = lab(false);
    lab.see(ended(3));
    let is_ask = |output: &Output| matches!(output, Output::Ask(_));
    assert!(!lab.outputs.iter().any(is_ask));
    assert_eq!(verdict(&lab.only()), ("name-not-found", Confirmed));
}

#[test]
fn a_name_that_no_request_waits_for_is_no_attempt() {
    // `server NAME resolve` in an upstream: nginx keeps what it had.
    let mut lab = lab(false);
    lab.see(match ended(3) {
        Event::Line(line) => Event::Line(Line {
            connection: None,
            ..line
        }),
        other => other,
    });
    assert_eq!(lab.summary().attempts, 0);
}

#[test]
fn the_log_file_alone_tells_the_same() {
    let mut lab = Lab::with_hooks(&["nginx-log"]);
    let said = |message: &str, errno: Option<i32>| LogLine {
        action: None,
        upstream: None,
        peer: None,
        ..logged(message, errno, RESOLVER)
    };
    lab.tell(ms(0), Input::LogLine(said("api could not be resolved", Some(3))));
    lab.tell(
        ms(1),
        Input::LogLine(said("no resolver defined to resolve web", None)),
    );
    lab.tell(ms(100_000), Input::Detach { in_flight: 0 });
    let attempts: Vec<_> = lab
        .attempts()
        .into_iter()
        .map(|attempt| {
            (
                attempt.upstream.as_deref(),
                attempt.nginx_says.as_deref(),
                verdict(attempt).0,
            )
        })
        .collect();
    assert_eq!(
        attempts,
        [
            (
                Some("api"),
                Some("api could not be resolved (3: Host not found)"),
                "name-not-found"
            ),
            (
                Some("web"),
                Some("no resolver defined to resolve web"),
                "resolver-undefined"
            ),
        ]
    );
}
