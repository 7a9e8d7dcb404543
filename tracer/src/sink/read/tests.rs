//! Traces cut, corrupt, foreign and newer.

use std::io::Cursor;

use super::*;

const SESSION: &str = r#"{"type":"session","schema":"tracer/1","tool":"tracer 0.1.0"}"#;
const ATTEMPT: &str = r#"{"type":"attempt","outcome":"refused","number":7}"#;

/// All records of a text, and what was said about its end.
fn read(text: &str) -> Result<(Vec<Line>, Option<String>), String> {
    read_bytes(text.as_bytes().to_vec())
}

fn read_bytes(bytes: Vec<u8>) -> Result<(Vec<Line>, Option<String>), String> {
    let lines = LineReader::new("sample", Box::new(Cursor::new(bytes))).map_err(|error| error.to_string())?;
    let mut reader = TraceReader::new(lines);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().map_err(|error| error.to_string())? {
        records.push(record);
    }
    Ok((records, reader.torn().map(ToOwned::to_owned)))
}

#[test]
fn older_files_lack_fields_and_newer_ones_have_more() {
    let text = format!(
        "{SESSION}\n{{\"type\":\"attempt\",\"outcome\":\"ok\",\"brand_new\":[1]}}\n{{\"type\":\"novelty\"}}\n{ATTEMPT}\n"
    );
    let (records, torn) = read(&text).unwrap();
    assert_eq!(torn, None);
    assert_eq!(records.len(), 3, "the unknown type is skipped: {records:?}");
    let Line::Attempt(attempt) = &records[2] else {
        panic!("{records:?}");
    };
    assert_eq!((attempt.number, attempt.outcome.as_ref()), (7, "refused"));
    assert_eq!(attempt.connect_us, None);
}

#[test]
fn type_need_not_come_first() {
    let text = format!("{SESSION}\n{{\"outcome\":\"ok\",\"type\":\"attempt\"}}\n");
    assert_eq!(read(&text).unwrap().0.len(), 2);
}

#[test]
fn a_trace_cut_at_any_byte_loses_at_most_its_last_line() {
    let text = format!("{SESSION}\n{ATTEMPT}\n{ATTEMPT}\n{ATTEMPT}\n");
    for cut in SESSION.len()..=text.len() {
        let (records, torn) = read(&text[..cut]).unwrap();
        let whole = text[..cut].matches('\n').count();
        assert!(
            (whole..=whole + 1).contains(&records.len()),
            "cut at {cut}: {records:?}"
        );
        let is_inside = !text[..cut].ends_with('\n') && records.len() == whole;
        assert_eq!(torn.is_some(), is_inside, "cut at {cut}");
    }
}

#[test]
fn a_compressed_trace_cut_at_any_byte_is_read_or_refused_in_one_line() {
    let mut bytes = Vec::new();
    for lines in [
        format!("{SESSION}\n"),
        format!("{ATTEMPT}\n{ATTEMPT}\n"),
        format!("{ATTEMPT}\n"),
    ] {
        bytes.extend(zstd::bulk::compress(lines.as_bytes(), 3).unwrap());
    }
    let first_frame = zstd::bulk::compress(format!("{SESSION}\n").as_bytes(), 3)
        .unwrap()
        .len();
    for cut in 0..=bytes.len() {
        match read_bytes(bytes[..cut].to_vec()) {
            Ok((records, _)) => assert!(!records.is_empty(), "cut at {cut}"),
            Err(error) => {
                assert!(cut < first_frame, "cut at {cut}: {error}");
                assert!(!error.contains('\n'), "{error}");
            }
        }
    }
    assert_eq!(read_bytes(bytes).unwrap().0.len(), 4);
}

#[test]
fn every_bad_file_is_one_clear_line() {
    let damaged = format!("{SESSION}\n{ATTEMPT}\n{{\"type\":\"attempt\",\n{ATTEMPT}\n");
    let cases = [
        ("", "sample: is empty: a trace begins with its session line"),
        (
            "2026/11/22 12:04:31 [error] 811#811: *1 connect() failed\n",
            "sample: is no trace: its first line is not the session line that tracer writes",
        ),
        (
            "{\"type\":\"session\",\"schema\":\"tracer/2\"}\n",
            "sample: was written by a newer tracer (schema tracer/2; this one reads tracer/1)",
        ),
        (
            "{\"type\":\"session\",\"schema\":\"trac",
            "sample: is no trace: its first line is not the session line that tracer writes",
        ),
        (
            "{\"format\":\"tracer-recording/1\",\"kernel\":\"6.18\"}\n",
            "sample: is a recording (tracer-recording/1), not a trace: read it with `tracer replay`",
        ),
        (
            damaged.as_str(),
            "sample: line 3 is damaged: EOF while parsing a value at line 1 column 18",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(read(text).unwrap_err(), expected);
    }
}

#[test]
fn traces_one_behind_the_other_are_one_reading() {
    let text = format!("{SESSION}\n{ATTEMPT}\n{SESSION}\n{ATTEMPT}\n");
    assert_eq!(read(&text).unwrap().0.len(), 4);
}

#[test]
fn every_type_is_read_as_it_was_written() {
    let event = Event {
        kind: "oom-kill".into(),
        fields: [("pid".to_owned(), 4242.into())].into(),
        ..Event::default()
    };
    let line = Line::Event(event);
    let text = format!("{SESSION}\n{}\n", serde_json::to_string(&line).unwrap());
    assert_eq!(read(&text).unwrap().0[1], line);
}
