//! Everything behind the engine, fed with made-up attempts.

use std::{cell::RefCell, path::Path, rc::Rc};

use jiff::tz::TimeZone;

use super::*;
use crate::{
    lines::read::LineReader,
    model::{Outcome, SummaryKey},
    samples,
    sink::{read::TraceReader, schema::Line},
};

/// A stdout for tests, which may lose its reader.
#[derive(Clone, Default)]
struct Screen(Rc<RefCell<Option<Vec<u8>>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.borrow_mut() {
            Some(shown) => {
                shown.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options(path: &Path) -> OutputOptions {
    OutputOptions {
        targets: vec![Target::File(path.to_owned())],
        keep: Keep::All,
        rotation: Rotation::default(),
        view: Some(Detail::Failures),
        pace: Pace::Live,
    }
}

fn open(options: OutputOptions, screen: &Screen) -> Outputs {
    let look = Look {
        width: 100,
        colour: false,
        zone: TimeZone::UTC,
    };
    let view = options.view.map(|detail| {
        View::new(
            Box::new(screen.clone()) as Box<dyn Write>,
            look,
            detail,
            Medium::Plain,
        )
    });
    let mut outputs = Outputs::open_with(options, view, Origin::default(), BTreeMap::new()).unwrap();
    let at = Ktime(1_000_000_000_000);
    outputs.observe(
        at,
        &Input::Clock {
            unix_ns: samples::clock().unix_ns(at),
        },
    );
    outputs
}

fn screen() -> Screen {
    Screen(Rc::new(RefCell::new(Some(Vec::new()))))
}

fn summary(attempts: u64, failures: u64) -> Output {
    Output::Summary(Box::new(Summary {
        attempts,
        failures,
        complete: true,
        ..Summary::default()
    }))
}

fn records(path: &Path) -> Vec<Line> {
    let mut reader = TraceReader::new(LineReader::open(path).unwrap());
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    assert_eq!(reader.torn(), None);
    records
}

fn kinds(path: &Path) -> String {
    let kinds: Vec<_> = records(path)
        .iter()
        .map(|record| match record {
            Line::Session(_) => "session",
            Line::Attempt(_) => "attempt",
            Line::Event(_) => "event",
            Line::Finding(_) => "finding",
            Line::Lost(_) => "lost",
            Line::Summary(_) => "summary",
        })
        .collect();
    kinds.join(" ")
}

fn attempt(attempt: Attempt) -> Output {
    Output::Attempt(Box::new(attempt))
}

#[test]
fn everything_said_is_in_the_file_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl.zst");
    let screen = screen();
    let mut outputs = open(options(&path), &screen);
    // Said before anything is attached; the session line comes first all the same.
    outputs.take(Output::Event(samples::oom_kill()));
    outputs.observe(samples::at(0), &Input::Instance(samples::instance()));
    outputs.begin();
    assert_eq!(kinds(&path), "session", "the session line is there at once");
    outputs.take(attempt(samples::healthy()));
    outputs.take(attempt(samples::listener_died()));
    outputs.settle();
    assert_eq!(
        kinds(&path),
        "session event attempt attempt",
        "a failure is there at once"
    );
    outputs.take(Output::Lost {
        at: samples::at(5),
        class: crate::event::LossClass::Ring,
        count: 3,
    });
    outputs.take(Output::Finding(samples::finding()));
    outputs.take(summary(2, 1));
    let closed = outputs.close();
    assert_eq!(kinds(&path), "session event attempt attempt lost finding summary");
    assert_eq!(closed.failures, 1);
    assert_eq!(closed.written[0].attempts, 2);
    assert!(!closed.is_any_broken());
    let Line::Session(session) = &records(&path)[0] else {
        panic!("a session");
    };
    assert_eq!(session.nginx[0].pid, 810);
    assert_eq!(session.started, "2026-11-22T12:04:31.000000000Z");
    let shown = String::from_utf8(screen.0.borrow().clone().unwrap()).unwrap();
    assert!(shown.contains("listener-died · confirmed"), "{shown}");
    assert!(shown.contains("a.jsonl.zst   2 attempts, "), "{shown}");
}

#[test]
fn keeping_failures_still_counts_successes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let mut options = options(&path);
    options.keep = Keep::Failures { context: 1 };
    let mut outputs = open(options, &screen());
    for number in 1..=10 {
        let outcome = if number == 5 { Outcome::Reset } else { Outcome::Ok };
        outputs.take(attempt(Attempt {
            number,
            outcome,
            ..samples::healthy()
        }));
    }
    let mut said = Summary {
        attempts: 10,
        failures: 1,
        ..Summary::default()
    };
    said.counts.insert(SummaryKey::default(), 10);
    outputs.take(Output::Summary(Box::new(said)));
    outputs.close();
    let numbers: Vec<_> = records(&path)
        .iter()
        .filter_map(|record| match record {
            Line::Attempt(attempt) => Some(attempt.number),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [4, 5, 6]);
    assert_eq!(kinds(&path), "session attempt attempt attempt summary");
}

#[test]
fn a_rotated_file_begins_with_what_is_known_by_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let mut rotated = options(&path);
    rotated.rotation.when = Some(crate::sink::trace_file::Rotate::Every(
        std::time::Duration::from_secs(60),
    ));
    let mut outputs = open(rotated, &screen());
    outputs.begin();
    let later = Ktime(samples::at(61_000_000).0);
    outputs.observe(later, &Input::Instance(samples::instance()));
    outputs.settle();
    outputs.take(summary(0, 0));
    outputs.close();
    let session = |path: &Path| match records(path).into_iter().next() {
        Some(Line::Session(session)) => session,
        other => panic!("{other:?}"),
    };
    let (first, second) = (session(&folder.path().join("a.1.jsonl")), session(&path));
    assert_eq!((first.part, second.part), (1, 2));
    assert_eq!((first.nginx.len(), second.nginx.len()), (0, 1));
    assert_eq!(first.started, second.started);
}

#[test]
fn a_reader_that_leaves_ends_the_trace_quietly_and_the_file_properly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let screen = screen();
    let mut outputs = open(options(&path), &screen);
    outputs.take(attempt(samples::listener_died()));
    assert!(!outputs.is_deaf());
    *screen.0.borrow_mut() = None;
    outputs.take(attempt(samples::keepalive_race()));
    assert!(outputs.is_deaf());
    outputs.take(summary(2, 2));
    outputs.close();
    assert_eq!(kinds(&path), "session attempt attempt summary");
}

#[test]
fn a_full_disk_does_not_stop_what_still_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let mut both = options(&path);
    both.targets.push(Target::File("/dev/full".into()));
    let mut outputs = open(both, &screen());
    outputs.take(attempt(samples::listener_died()));
    outputs.settle();
    assert!(!outputs.is_deaf(), "the view and the other file go on");
    outputs.take(summary(1, 1));
    let closed = outputs.close();
    assert!(closed.is_any_broken());
    assert_eq!(kinds(&path), "session attempt summary");

    let mut alone = options(Path::new("/dev/full"));
    alone.view = None;
    let mut outputs = open(alone, &Screen::default());
    outputs.begin();
    assert!(outputs.is_deaf(), "nobody takes anything any more");
}

#[test]
fn a_file_that_cannot_be_created_is_one_line() {
    let error = Outputs::open(
        options(Path::new("/nonexistent/a.jsonl")),
        Origin::default(),
        BTreeMap::new(),
    )
    .err()
    .map(|error| format!("{error:#}"));
    assert_eq!(
        error.as_deref(),
        Some("cannot write /nonexistent/a.jsonl: no such file or directory")
    );
}
