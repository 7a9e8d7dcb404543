//! Every line against the published JSON Schema.

use serde_json::json;

use super::*;
use crate::{
    event::Sock,
    model::{Histogram, SummaryKey},
    samples,
    session::{Origin, SessionFacts},
};

/// One line of every type.
fn lines() -> Vec<Line> {
    let clock = samples::clock();
    let mut facts = SessionFacts::new(
        Origin {
            tool: "tracer 0.1.0".to_owned(),
            host: "web-1".to_owned(),
            kernel: "6.18.0".to_owned(),
            boot_id: Some("0f0f".to_owned()),
        },
        BTreeMap::from([("keep".to_owned(), json!("all"))]),
    );
    facts.observe(&crate::event::Input::Instance(samples::instance()));
    facts.observe(&crate::event::Input::Hooks(samples::hooks()));
    let mut logged = samples::listener_died();
    logged.log = Some(samples::log_line());
    vec![
        Line::Session(facts.session(samples::at(0), clock)),
        Line::Attempt(Box::new(Attempt::new(&samples::healthy(), clock))),
        Line::Attempt(Box::new(Attempt::new(&logged, clock))),
        Line::Attempt(Box::new(Attempt::new(&samples::keepalive_race(), clock))),
        Line::Event(Event::new(&samples::oom_kill(), clock)),
        Line::Event(Event::continued(samples::at(7), clock)),
        Line::Finding(Finding::new(&samples::finding(), clock)),
        Line::Lost(Lost::new(samples::at(8), LossClass::Ring, 12, clock)),
        Line::Summary(Summary::new(&summary(), clock)),
    ]
}

fn summary() -> model::Summary {
    let key = |outcome, cause| SummaryKey {
        upstream: Some("api".to_owned()),
        peer: Some("127.0.0.1:3000".to_owned()),
        outcome,
        cause,
    };
    model::Summary {
        at: samples::at(9_000_000),
        attempts: 3,
        failures: 2,
        in_flight: 1,
        answered_with_error: None,
        statuses_unread: 0,
        clients_got: BTreeMap::from([("502".to_owned(), 2)]),
        counts: BTreeMap::from([
            (key("ok", None), 1),
            (key("refused", Some("listener-died")), 1),
            (key("closed", Some("keepalive-race")), 1),
        ]),
        latency: BTreeMap::from([(
            ("api".to_owned(), "total_us"),
            Histogram(BTreeMap::from([(0, 1), (7, 2)])),
        )]),
        lost: BTreeMap::from([(LossClass::Ring, 12)]),
        complete: false,
    }
}

#[test]
fn every_line_is_valid_under_the_published_schema() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for line in lines() {
        let value = serde_json::to_value(&line).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{value:#}: {errors:#?}");
    }
}

#[test]
fn the_schema_refuses_what_the_format_does_not_allow() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let good = serde_json::to_value(&lines()[2]).unwrap();
    assert!(validator.is_valid(&good));
    let wrong = [
        ("outcome", json!("exploded")),
        ("phase", json!("dreaming")),
        ("total_us", json!(-1)),
        ("total_us", json!(1.5)),
        ("worker", json!("811")),
        ("cause", json!({"id": "listener-died"})),
        ("type", json!("try")),
    ];
    for (field, value) in wrong {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(!validator.is_valid(&bad), "{field}");
    }
    let mut lacking = good;
    lacking.as_object_mut().unwrap().remove("connect_us");
    assert!(!validator.is_valid(&lacking), "absent is null, not left out");
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for line in lines() {
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
    }
}

#[test]
fn the_form_of_every_line_is_stable() {
    let text: Vec<_> = lines()
        .iter()
        .map(|line| serde_json::to_string(line).unwrap())
        .collect();
    assert!(
        text.iter()
            .all(|line| line.starts_with("{\"type\":\"") && !line.contains('\n'))
    );
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn errors_have_the_names_of_errno_h() {
    let name = |number| errno_name(Errno(number)).into_owned();
    assert_eq!(name(111), "ECONNREFUSED");
    assert_eq!(name(110), "ETIMEDOUT");
    assert_eq!(name(11), "EAGAIN");
    assert_eq!(name(524), "errno 524");
}

#[test]
fn a_connections_id_is_its_own_and_hides_the_address() {
    let id = |sock, since| {
        connection_id(ExchangeId {
            conn: crate::event::ConnId {
                sock: Sock(sock),
                since: Ktime(since),
            },
            number: 1,
        })
    };
    let address = 0xffff_8880_1234_5600;
    assert_eq!(id(address, 1), id(address, 1));
    assert_ne!(id(address, 1), id(address, 2));
    assert_ne!(id(address, 1), id(address + 64, 1));
    assert_eq!(id(address, 1).len(), 12);
}

#[test]
fn a_detail_never_hides_a_field_of_the_record() {
    let mut fact = samples::fact(None, "file", "the text");
    fact.fields
        .insert("text", model::FieldValue::Text("another".to_owned()));
    let facts = evidence(&[fact], Clock::default());
    let value = serde_json::to_value(&facts[0]).unwrap();
    assert_eq!(
        (value["text"].as_str(), value["text_"].as_str()),
        (Some("the text"), Some("another"))
    );
}
