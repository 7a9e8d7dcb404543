//! The report for programs: one JSON object.

use serde_json::{Value, json};

use super::Report;

/// The name and version of the report's form.
pub const SCHEMA: &str = "tracer-report/1";

/// The report as JSON.
#[must_use]
pub fn json(report: &Report) -> Value {
    let tally = report.tally();
    let gaps = report.gaps();
    let upstreams: Vec<_> = tally
        .upstreams
        .iter()
        .map(|(name, upstream)| {
            let causes: Vec<_> = upstream
                .by_frequency()
                .into_iter()
                .map(|(cause, by_cause)| {
                    let peers: Vec<_> = by_cause
                        .by_frequency()
                        .into_iter()
                        .map(|(peer, attempts)| json!({"peer": present(peer), "attempts": attempts}))
                        .collect();
                    json!({"cause": cause, "attempts": by_cause.attempts, "peers": peers})
                })
                .collect();
            json!({
                "upstream": name,
                "attempts": upstream.attempts,
                "failures": upstream.failures,
                "cancelled": upstream.cancelled,
                "causes": causes,
            })
        })
        .collect();
    let peers: Vec<_> = tally
        .worst_peers()
        .into_iter()
        .map(|(peer, counts)| json!({"peer": peer, "attempts": counts.attempts, "failures": counts.failures}))
        .collect();
    let stories: Vec<_> = report
        .stories
        .iter()
        .map(|(key, story)| {
            json!({
                "upstream": key.upstream,
                "peer": key.peer,
                "cause": key.cause,
                "outcome": story.outcome,
                "confidence": present(&story.confidence),
                "first": story.first,
                "last": story.last,
                "attempts": story.attempts,
                "bursts": story.bursts,
                "summary": story.summary,
                "remedy": story.remedy,
                "evidence": story.evidence,
                "unseen": story.unseen,
            })
        })
        .collect();
    let traces: Vec<_> = report
        .traces
        .values()
        .map(|trace| {
            let session = &trace.session;
            json!({
                "started": session.started,
                "ended": trace.summary.as_ref().map(|summary| &summary.time),
                "tool": session.tool,
                "host": session.host,
                "kernel": session.kernel,
                "nginx": session.nginx,
                "not_seen": session.hooks.iter().filter(|hook| hook.how.is_none()).collect::<Vec<_>>(),
                "config": session.config,
            })
        })
        .collect();
    json!({
        "schema": SCHEMA,
        "traces": traces,
        "attempts": tally.attempts,
        "failures": tally.failures,
        "cancelled": tally.cancelled,
        "in_flight": report.in_flight(),
        "answered_with_error": report.answered_with_error(),
        "statuses_unread": report.statuses_unread(),
        "clients_got": report.clients_got(),
        "upstreams": upstreams,
        "peers": peers,
        "timeline": stories,
        "events": report.events,
        "findings": report.findings().collect::<Vec<_>>(),
        "lost": report.lost(),
        "complete": gaps.is_empty(),
        "gaps": gaps,
    })
}

fn present(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
