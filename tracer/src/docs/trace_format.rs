//! The page of the trace format, from the types that are the format.

use std::fmt::Write;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use super::GENERATED;
use crate::sink::schema::{self, Attempt, Cause, Evidence, Line};

/// The page.
#[must_use]
pub fn page() -> String {
    let mut out = format!("{GENERATED}# Trace format\n\n");
    out.push_str(INTRODUCTION);
    let _ = write!(
        out,
        "\nAn attempt that failed (on one line in the file):\n\n```json\n{:#}\n```\n",
        example()
    );
    record::<schema::Session>(&mut out, "session", "Record");
    record::<Attempt>(&mut out, "attempt", "Record");
    record::<schema::Event>(&mut out, "event", "Record");
    record::<schema::Finding>(&mut out, "finding", "Record");
    record::<schema::Lost>(&mut out, "lost", "Record");
    record::<schema::Summary>(&mut out, "summary", "Record");
    record::<schema::Nginx>(&mut out, "Nginx", "Part");
    record::<schema::Hook>(&mut out, "Hook", "Part");
    record::<schema::ConfigSummary>(&mut out, "ConfigSummary", "Part");
    record::<schema::AccessLog>(&mut out, "AccessLog", "Part");
    record::<schema::Log>(&mut out, "Log", "Part");
    record::<schema::Request>(&mut out, "Request", "Part");
    record::<schema::Client>(&mut out, "Client", "Part");
    record::<schema::Retry>(&mut out, "Retry", "Part");
    record::<Cause>(&mut out, "Cause", "Part");
    record::<Evidence>(&mut out, "Evidence", "Part");
    record::<schema::Count>(&mut out, "Count", "Part");
    record::<schema::Latency>(&mut out, "Latency", "Part");
    record::<schema::Bucket>(&mut out, "Bucket", "Part");
    out
}

const INTRODUCTION: &str = "A trace is JSON Lines, `schema: \"tracer/1\"`: one object a line, `type` first. Times are RFC \
3339, UTC, with nanoseconds. Durations are whole microseconds and end in `_us`. What is absent is null, never 0. Names \
follow nginx's own variables and the kernel's own words.

The first line of every file is a `session`. The last line is a `summary`; in a file that was rotated away it is an \
`event` of kind `continued`. A trace without either was cut off: the tracer was killed, the disk was full, or it still \
runs.

A trace cut off at any byte loses at most its last line; of a `.zst` file, at most what was written since the last \
flush. Failures are flushed at once, everything else within a second. Readers skip a torn end and say so.

Fields and types of record may be added at any time: ignore those you do not know. A field is never renamed and never \
changes its meaning within `tracer/1`. [trace.schema.json](trace.schema.json) is the JSON Schema of a line; the tests \
validate every line they write against it.

With `--keep failures` a trace holds every failed attempt, and the attempts at the same peer around it; all others are \
in the counts of the `summary`.
";

/// A failed attempt, for the page.
fn example() -> Value {
    let fact = |time: &str, source: &'static str, text: &str| Evidence {
        time: Some(time.to_owned()),
        source: source.into(),
        text: text.to_owned(),
        fields: [("pid".to_owned(), Value::from(4242))].into(),
    };
    let attempt = Attempt {
        time: "2026-11-22T12:04:31.206800000Z".to_owned(),
        worker: 811,
        number: 2,
        upstream: Some("api".to_owned()),
        upstreams: vec!["api".to_owned()],
        server: Some("127.0.0.1:3000".to_owned()),
        peer: Some("127.0.0.1:3000".to_owned()),
        local: Some("127.0.0.1:41000".to_owned()),
        via: Some("http".to_owned()),
        outcome: "refused".into(),
        phase: "connecting".into(),
        errno: Some("ECONNREFUSED".into()),
        nginx_says: Some(
            "connect() failed (111: Connection refused) while connecting to upstream".to_owned(),
        ),
        exchange: 1,
        total_us: 200,
        bytes_sent: Some(0),
        bytes_received: Some(0),
        closed_by: Some("peer".into()),
        connection: Some("dmh5q1dsvn4f".to_owned()),
        cause: Some(Cause {
            id: "listener-died".into(),
            confidence: "confirmed".into(),
            summary: "node (pid 4242), which listened there, was killed by the OOM killer 312 ms before"
                .to_owned(),
            remedy: "find out what took the memory; let a supervisor start the backend again".to_owned(),
            evidence: vec![
                fact(
                    "2026-11-22T12:04:30.894600000Z",
                    "process",
                    "node[4242] ended by SIGKILL, chosen by the OOM killer",
                ),
                fact(
                    "2026-11-22T12:04:30.895100000Z",
                    "listener",
                    "0.0.0.0:3000 closed (node[4242])",
                ),
            ],
        }),
        ..Attempt::default()
    };
    serde_json::to_value(Line::Attempt(Box::new(attempt))).unwrap_or_default()
}

/// One section: the fields of a record.
fn record<T: JsonSchema>(out: &mut String, name: &str, kind: &str) {
    let schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>();
    let schema = schema.as_value();
    let what = schema["description"].as_str().unwrap_or_default();
    let _ = write!(
        out,
        "\n## {kind} `{name}`\n\n{}\n\n| field | type | meaning |\n|---|---|---|\n",
        joined(what)
    );
    if kind == "Record" {
        let _ = writeln!(out, "| `type` | `\"{name}\"` | The type of record. |");
    }
    for (field, of) in schema["properties"].as_object().into_iter().flatten() {
        let meaning = joined(of["description"].as_str().unwrap_or_default());
        let _ = writeln!(
            out,
            "| `{field}` | {} | {} |",
            type_of(of),
            meaning.replace('|', "\\|")
        );
    }
}

/// A type in words.
fn type_of(of: &Value) -> String {
    if let Some(value) = of["const"].as_str() {
        return format!("`\"{value}\"`");
    }
    if let Some(values) = of["enum"].as_array() {
        let values: Vec<_> = values
            .iter()
            .map(|value| {
                value
                    .as_str()
                    .map_or_else(|| "null".to_owned(), |value| format!("`{value}`"))
            })
            .collect();
        return values.join(", ");
    }
    if let Some(reference) = of["$ref"].as_str() {
        return link(reference);
    }
    if let Some(choices) = of["anyOf"].as_array() {
        let choices: Vec<_> = choices.iter().map(type_of).collect();
        return choices.join(" or ");
    }
    let is_time = of["format"] == "date-time";
    let name = |name: &str| match name {
        "string" if is_time => "time".to_owned(),
        "array" => format!("list of {}", type_of(&of["items"])),
        other => other.to_owned(),
    };
    match &of["type"] {
        Value::String(only) => name(only),
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .map(name)
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "any".to_owned(),
    }
}

fn link(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    format!("[{name}](#part-{})", name.to_lowercase())
}

/// A doc comment is wrapped at the width of the source.
fn joined(text: &str) -> String {
    text.replace('\n', " ")
}
