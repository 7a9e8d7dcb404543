//! Addresses that a configured name meant when nginx read its configuration, and what it means when a connect fails.

use super::*;
use crate::event::{ConfiguredName, NameMeaning, NameSource};

const OLD: &str = "10.9.0.6:5001";

fn name(name: &str) -> ConfiguredName {
    ConfiguredName {
        name: name.to_owned(),
        port: 5001,
        upstream: name.to_owned(),
        server: format!("{name}:5001"),
    }
}

fn named_peer(name: &str) -> ConfiguredPeer {
    ConfiguredPeer {
        server: format!("{name}:5001"),
        ..configured(name, OLD)
    }
}

/// An nginx of which every address is accounted for by these.
fn lab(peers: Vec<ConfiguredPeer>, names: Vec<ConfiguredName>, is_whole: bool) -> Lab {
    let mut lab = Lab::new();
    let config = Config {
        peers,
        names,
        is_whole,
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

fn api() -> Lab {
    lab(vec![named_peer("api")], vec![name("api")], true)
}

fn means(from: NameSource, addresses: &[&str]) -> Answer {
    Answer::Name(NameMeaning {
        addresses: addresses
            .iter()
            .map(|address| address.parse().expect("an address"))
            .collect(),
        from,
        varies: false,
        ttl_s: (from != NameSource::HostsFile).then_some(60),
        whole: None,
    })
}

fn hosts(addresses: &[&str]) -> Answer {
    means(NameSource::HostsFile, addresses)
}

fn nameserver(addresses: &[&str]) -> Answer {
    means(NameSource::Nameserver(Ipv4Addr::LOCALHOST.into()), addresses)
}

/// A refused connect, and nginx's line about it.
fn end_with_line(lab: &mut Lab, action: &str) {
    let mut line = line(1, us(150), "connect() failed", Some(111));
    line.action = Some(action.to_owned());
    lab.see(Event::Line(line));
    lab.end(Exchange {
        line: Some(line_id(1)),
        ..refused(OLD)
    });
}

fn questions(lab: &Lab) -> usize {
    let is_asked = |output: &&Output| matches!(output, Output::Ask(Question::Name { .. }));
    lab.outputs.iter().filter(is_asked).count()
}

/// What a refused connect is called when the name is answered so.
fn called(mut lab: Lab, answer: Answer) -> (&'static str, Confidence) {
    lab.end(refused(OLD));
    lab.answer(answer);
    verdict(&lab.only())
}

#[test]
fn a_name_that_means_another_address_is_the_cause_and_the_refusal_its_face() {
    let mut lab = api();
    lab.end(refused(OLD));
    assert_eq!(questions(&lab), 1);
    lab.answer(hosts(&["10.9.0.9"]));
    let attempt = lab.only();
    assert_eq!(verdict(&attempt), ("address-outdated", Likely));
    assert_eq!(
        attempt.also.iter().map(|also| also.id).collect::<Vec<_>>(),
        ["refused-remotely"]
    );
    assert_eq!(
        attempt.cause.expect("a cause").summary,
        "`api:5001` meant 10.9.0.6 when nginx loaded its configuration 9.5 s before; api means 10.9.0.9 now, and the host \
         at the old address refuses the connection."
    );
}

#[test]
fn what_is_not_known_to_have_changed_is_not_called_so() {
    let other = || nameserver(&["10.9.0.9"]);
    let varying = || match other() {
        Answer::Name(meaning) => Answer::Name(NameMeaning {
            varies: true,
            ..meaning
        }),
        other => other,
    };
    let face = ("refused-remotely", Confirmed);
    assert_eq!(called(api(), other()), ("address-outdated", Likely));
    assert_eq!(called(api(), hosts(&["10.9.0.9", "10.9.0.6"])), face);
    assert_eq!(called(api(), hosts(&[])), face);
    assert_eq!(called(api(), varying()), face);
    let why = "no answer in time".to_owned();
    assert_eq!(called(api(), Answer::Unavailable { why }), face);
    // An answer that comes too late, or never.
    let mut silent = api();
    silent.end(refused(OLD));
    assert_eq!(verdict(&silent.only()), face);
}

#[test]
fn only_an_address_that_comes_from_a_name_is_asked_about() {
    let face = ("refused-remotely", Confirmed);
    let unasked = |mut lab: Lab| {
        lab.end(refused(OLD));
        assert_eq!(questions(&lab), 0);
        assert_eq!(verdict(&lab.only()), face);
    };
    // Written out as well.
    unasked(lab(
        vec![named_peer("api"), configured("b", OLD)],
        vec![name("api")],
        true,
    ));
    // Not among the peers, and it may come from elsewhere; or no name has that port.
    unasked(lab(vec![], vec![name("api")], false));
    let elsewhere = ConfiguredName {
        port: 5002,
        ..name("api")
    };
    unasked(lab(vec![], vec![elsewhere], true));
    // Nothing may be asked for.
    unasked(lab(vec![named_peer("api")], vec![], false));
    unasked(lab(vec![], ["a", "b", "c", "d", "e"].map(name).into(), true));
}

#[test]
fn an_address_that_nothing_else_leads_to_comes_from_the_name() {
    let attempt = |names: Vec<ConfiguredName>, answers: Vec<Answer>| {
        let mut lab = lab(vec![], names, true);
        end_with_line(&mut lab, "connecting to upstream");
        for answer in answers {
            lab.answer(answer);
        }
        lab.only()
    };
    let one = attempt(vec![name("api")], vec![hosts(&["10.9.0.9"])]);
    assert_eq!(verdict(&one), ("address-outdated", Likely));
    assert!(one.cause.expect("a cause").summary.contains("must have meant"));
    let two = || vec![name("api"), name("db")];
    let both = attempt(two(), vec![hosts(&["10.9.0.9"]), hosts(&["10.9.0.8"])]);
    assert_eq!(verdict(&both), ("address-outdated", Likely));
    assert!(
        both.cause
            .expect("a cause")
            .summary
            .starts_with("One of `api:5001`, `db:5001` meant")
    );
    // One of them still means it.
    let still = attempt(two(), vec![hosts(&["10.9.0.9"]), hosts(&["10.9.0.6"])]);
    assert_eq!(verdict(&still).0, "refused-remotely");
    // nginx says that it was no upstream.
    let mut stapling = lab(vec![], vec![name("api")], true);
    end_with_line(&mut stapling, "requesting certificate status");
    assert_eq!(questions(&stapling), 0);
}

#[test]
fn several_addresses_of_a_nameserver_are_believed_when_it_says_them_again() {
    let mut lab = api();
    let several = || nameserver(&["10.9.0.9", "10.9.0.8"]);
    let mut fail = |number: u64, at: i64| {
        lab.tell(ms(at), Input::Tick);
        lab.tell(
            ms(at),
            Input::Kernel(Event::Exchange(Box::new(Exchange {
                id: id(number, 1),
                began_at: ms(at),
                reset_at: Some(ms(at)),
                error_at: Some(ms(at)),
                ended_at: ms(at),
                ..refused(OLD)
            }))),
        );
        lab.answer_at(ms(at + 5), several());
        for later in [100, 200, 300, 400] {
            lab.tell(ms(at + later), Input::Tick);
        }
        let attempt = lab.attempts().pop().expect("an attempt").clone();
        let possible = attempt.also.iter().find(|also| also.id == "address-outdated");
        (verdict(&attempt), possible.map(|also| also.confidence))
    };
    let unsure = (("refused-remotely", Confirmed), Some(Confidence::Possible));
    assert_eq!(fail(1, 0), unsure);
    // Its answer stands for 60 s, so it may be the same one.
    assert_eq!(fail(2, 20_000), unsure);
    assert_eq!(fail(3, 61_000), (("address-outdated", Likely), None));
}

#[test]
fn a_name_is_asked_for_once_in_five_seconds() {
    let mut lab = api();
    for number in 0..20_u64 {
        let at = ms(i64::try_from(number).expect("small") * 500);
        lab.tell(at, Input::Tick);
        lab.tell(
            at,
            Input::Kernel(Event::Exchange(Box::new(Exchange {
                id: id(number + 1, 1),
                began_at: at,
                reset_at: Some(at),
                error_at: Some(at),
                ended_at: at,
                ..refused(OLD)
            }))),
        );
    }
    assert_eq!(questions(&lab), 2);
}

#[test]
fn whoever_is_there_is_not_called_outdated() {
    // A process of this host listens there: something else refused.
    let mut served = lab(
        vec![ConfiguredPeer {
            server: "api:3000".to_owned(),
            ..configured("api", APP)
        }],
        vec![ConfiguredName {
            port: 3000,
            server: "api:3000".to_owned(),
            ..name("api")
        }],
        true,
    );
    served.see(Event::ListenerFound {
        at: ms(-100),
        listener: listener(APP, task(9, "app")),
    });
    served.see(dropped(APP, "NETFILTER_DROP"));
    served.end(refused(APP));
    assert_eq!(questions(&served), 0);
    assert_eq!(verdict(&served.only()), ("firewall-reset", Confirmed));
    // A rule kept the SYN from whoever is there.
    let mut ruled = api();
    ruled.see(dropped(OLD, "NETFILTER_DROP"));
    ruled.end(refused(OLD));
    ruled.answer(hosts(&["10.9.0.9"]));
    assert_eq!(verdict(&ruled.only()), ("firewall-reset", Confirmed));
    // A connection that came up has another cause.
    let mut connected = api();
    connected.end(reset(sent(OLD, ms(10)), ms(10)));
    assert_eq!(questions(&connected), 0);
}

#[test]
fn a_reload_makes_the_names_new() {
    let mut lab = api();
    let worker = Pid(812);
    lab.see(Event::Signalled {
        at: ms(-3000),
        pid: Pid(800),
        signal: 1,
        by: task(1, "sh"),
    });
    for (worker, started) in [(worker, ms(-2900)), (Pid(813), ms(-2500))] {
        lab.tell(
            ms(-2000),
            Input::Worker {
                worker,
                master: Pid(800),
                started,
            },
        );
    }
    lab.end(Exchange {
        worker: Pid(813),
        ..refused(OLD)
    });
    lab.answer(hosts(&["10.9.0.9"]));
    let summary = lab.only().cause.expect("a cause").summary;
    assert!(summary.contains("configuration 2.9 s before"), "{summary}");
}
