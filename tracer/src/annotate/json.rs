//! The annotated log for programs: one JSON object for each line about an upstream or request with a failure,
//! and one at the end.

use serde_json::{Value, json};

use super::{Answer, RequestAnswer, Totals, format::Access};

/// The name and version of the form.
pub const SCHEMA: &str = "tracer-annotate/1";

/// One line about an upstream.
#[must_use]
pub fn line(log: &str, number: u64, answer: &Answer) -> Value {
    let attempt = answer.attempt.as_deref();
    json!({
        "type": "line",
        "log": log,
        "number": number,
        "explained": answer.why_not.is_none(),
        "why_not": answer.why_not.as_ref().map(|why_not| json!({"id": why_not.id(), "text": why_not.sentence()})),
        "alike": answer.alike,
        "attempt": attempt,
        "before": answer.before.as_ref().map(|before| json!({"n": before.n, "peer": before.peer, "cause": before.cause})),
    })
}

/// One request of an access log with a failed attempt, or with a status that says so.
#[must_use]
pub fn request(log: &str, number: u64, access: &Access, answer: &RequestAnswer) -> Value {
    let tries = access.tries.as_deref().unwrap_or_default();
    let chain: Vec<_> = (0..tries.len().max(answer.chain.len()))
        .map(|index| {
            let one = tries.get(index);
            json!({
                "addr": one.map(|one| &one.addr),
                "status": one.and_then(|one| one.status),
                "attempt": answer.chain.get(index).and_then(|attempt| attempt.as_deref()),
            })
        })
        .collect();
    json!({
        "type": "request",
        "log": log,
        "number": number,
        "explained": answer.why_not.is_none(),
        "why_not": answer.why_not.as_ref().map(|why_not| json!({"id": why_not.id(), "text": why_not.sentence()})),
        "alike": answer.alike,
        "status": access.status,
        "tries": chain,
    })
}

/// What is said at the end.
#[must_use]
pub fn closing(totals: &Totals, logs: &[String], unclaimed: Option<u64>, torn: &[String]) -> Value {
    let mut causes = Vec::new();
    for (upstream, tally) in &totals.tally.upstreams {
        for (cause, by_cause) in tally.by_frequency() {
            causes.push(json!({"upstream": upstream, "cause": cause, "lines": by_cause.attempts}));
        }
    }
    let unexplained: Vec<_> = totals
        .unexplained
        .iter()
        .map(|(why_not, lines)| {
            let first: Vec<_> = lines
                .first
                .iter()
                .map(|(log, line)| json!({"log": logs.get(*log), "number": line}))
                .collect();
            json!({"id": why_not.id(), "text": why_not.sentence(), "lines": lines.lines, "first": first})
        })
        .collect();
    json!({
        "type": "summary",
        "schema": SCHEMA,
        "lines": totals.lines,
        "nginx_lines": totals.nginx_lines,
        "requests": totals.requests,
        "status_by_no_upstream": totals.elsewhere,
        "upstream_lines": totals.upstream_lines,
        "explained": totals.explained,
        "causes": causes,
        "unexplained": unexplained,
        "formats": totals.missing,
        "failures_without_line": unclaimed,
        "torn": torn,
    })
}
