//! The annotated log for people.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    Answer, Before, RequestAnswer, Totals, WhyNot, answered_itself, chains::answered, format::Access,
};
use crate::{
    sink::schema::{Attempt, Cause},
    view::{
        Look,
        closing::{labelled, table},
        text::{Style, count, printable, thousands, wrap},
    },
};

/// Where what is said about a line begins: under the line, apart from it.
const MARGIN: usize = 4;

/// Causes at peers whose remedy has been told.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<(String, Option<String>)>);

/// More of them are not remembered: a remedy is then told again.
const MAX_TOLD: usize = 10_000;

/// What is said under a line; with `evidence`, what proves it.
#[must_use]
pub fn annotation(answer: &Answer, evidence: bool, told: &mut Told, look: &Look) -> String {
    let style = look.style();
    let mut out = String::new();
    let attempt = answer.attempt.as_deref();
    let cause = attempt.and_then(|attempt| attempt.cause.as_ref());
    if let Some(cause) = cause {
        let confidence = style.dim(&format!(" · {}", cause.confidence));
        let _ = writeln!(
            out,
            "{:MARGIN$}{}{confidence}",
            "",
            style.cause(&printable(&cause.id))
        );
        paragraph(&mut out, &cause.summary, look, |_, text| text.to_owned());
    }
    if answer.alike > 1 {
        let text = format!(
            "one of {} alike within two seconds: which of them is open, and so are its numbers",
            thousands(answer.alike as u64)
        );
        paragraph(&mut out, &text, look, Style::warning);
    }
    if let Some(before) = &answer.before {
        paragraph(&mut out, &retried(before), look, Style::dim);
    }
    if let Some(why_not) = answer
        .why_not
        .as_ref()
        .filter(|why_not| cause.is_none() || **why_not != WhyNot::UnknownCause)
    {
        paragraph(
            &mut out,
            &format!("not explained: {}", why_not.sentence()),
            look,
            Style::warning,
        );
    }
    if let Some((attempt, cause)) = attempt.zip(cause) {
        proof(&mut out, attempt, cause, evidence, look);
        remedy(&mut out, attempt, cause, told, look);
    }
    out
}

fn proof(out: &mut String, attempt: &Attempt, cause: &Cause, evidence: bool, look: &Look) {
    if evidence {
        for fact in &cause.evidence {
            paragraph(out, &format!("{}: {}", fact.source, fact.text), look, Style::dim);
        }
    }
    for unseen in &attempt.unseen {
        paragraph(out, &format!("not seen: {unseen}"), look, Style::warning);
    }
}

fn remedy(out: &mut String, attempt: &Attempt, cause: &Cause, told: &mut Told, look: &Look) {
    if is_new(told, cause, attempt.peer.as_ref()) && !cause.remedy.is_empty() {
        paragraph(out, &format!("what to do: {}", cause.remedy), look, Style::remedy);
    }
}

/// What is said under a line of an access log: its tries in their order, each with its cause.
#[must_use]
pub fn request(
    access: &Access,
    answer: &RequestAnswer,
    evidence: bool,
    told: &mut Told,
    look: &Look,
) -> String {
    let style = look.style();
    let mut out = String::new();
    let tries = access.tries.as_deref().unwrap_or_default();
    for (index, attempt) in answer.chain.iter().enumerate() {
        let number = match answer.chain.len() {
            1 => String::new(),
            _ => format!("{}. ", index + 1),
        };
        let one = tries.get(index);
        let peer = attempt
            .as_ref()
            .and_then(|attempt| attempt.peer.as_deref())
            .or(one.map(|one| one.addr.as_str()))
            .filter(|_| answer.chain.len() > 1)
            .map_or(String::new(), |peer| format!("{}: ", printable(peer)));
        let cause = attempt.as_ref().and_then(|attempt| attempt.cause.as_ref());
        let Some((attempt, cause)) = attempt.as_ref().zip(cause) else {
            let itself = attempt.as_ref().and_then(|attempt| answered_itself(attempt));
            let status = attempt
                .as_ref()
                .and_then(|attempt| answered(attempt))
                .or(one.and_then(|one| one.status));
            let text = match (itself.filter(|status| *status >= 500), status) {
                (Some(status), _) => format!("{number}{peer}the backend itself answered {status}"),
                (None, Some(status)) => format!("{number}{peer}answered {status}"),
                (None, None) => format!("{number}{peer}answered"),
            };
            paragraph(&mut out, &text, look, |_, text| text.to_owned());
            continue;
        };
        let confidence = style.dim(&format!(" · {}", cause.confidence));
        let id = style.cause(&printable(&cause.id));
        let _ = writeln!(out, "{:MARGIN$}{number}{peer}{id}{confidence}", "");
        paragraph(&mut out, &cause.summary, look, |_, text| text.to_owned());
        proof(&mut out, attempt, cause, evidence, look);
        remedy(&mut out, attempt, cause, told, look);
    }
    if answer.alike > 1 {
        let text = format!(
            "one of {} requests alike at that time: which of them is open, and so are its numbers",
            thousands(answer.alike as u64)
        );
        paragraph(&mut out, &text, look, Style::warning);
    }
    if let Some(why_not) = answer
        .why_not
        .as_ref()
        .filter(|why_not| answer.chain.is_empty() || **why_not != WhyNot::UnknownCause)
    {
        paragraph(
            &mut out,
            &format!("not explained: {}", why_not.sentence()),
            look,
            Style::warning,
        );
    }
    out
}

fn is_new(told: &mut Told, cause: &Cause, peer: Option<&String>) -> bool {
    let key = (cause.id.clone().into_owned(), peer.cloned());
    told.0.len() >= MAX_TOLD || told.0.insert(key)
}

fn retried(before: &Before) -> String {
    let peer = before.peer.as_deref().unwrap_or("no peer");
    let cause = before.cause.as_deref().unwrap_or("unknown");
    match before.n {
        0..=2 => format!("the second try of its request: {peer} failed before it ({cause})"),
        n => format!("try {n} of its request: {peer} failed before it ({cause})"),
    }
}

fn paragraph(out: &mut String, text: &str, look: &Look, paint: fn(Style, &str) -> String) {
    for line in wrap(&printable(text), look.measure() - MARGIN) {
        let _ = writeln!(out, "{:MARGIN$}{}", "", paint(look.style(), &line));
    }
}

/// What is said at the end: how many lines are explained, by what, and which are not.
#[must_use]
pub fn closing(
    totals: &Totals,
    logs: &[String],
    unclaimed: Option<u64>,
    torn: &[String],
    look: &Look,
) -> String {
    let style = look.style();
    let mut out = String::new();
    let failed = match totals.requests {
        0 => count(totals.upstream_lines, "upstream line", "upstream lines"),
        _ => count(
            totals.upstream_lines,
            "line with an upstream failure",
            "lines with an upstream failure",
        ),
    };
    let claim = format!(
        "{} of {failed} explained, in {}",
        thousands(totals.explained),
        count(totals.lines, "line", "lines")
    );
    let _ = writeln!(out, "{}", style.strong(&claim));
    if totals.tally.upstreams.is_empty() {
        out.push('\n');
    }
    out.push_str(&table(&totals.tally, look));
    let mut unexplained: Vec<_> = totals.unexplained.iter().collect();
    unexplained.sort_by_key(|(_, lines)| std::cmp::Reverse(lines.lines));
    for (why_not, lines) in unexplained {
        let more = if lines.lines > lines.first.len() as u64 {
            " …"
        } else {
            ""
        };
        let places: Vec<String> = lines
            .first
            .iter()
            .map(|(log, line)| match logs {
                [_] => line.to_string(),
                _ => format!("{}:{line}", logs.get(*log).map_or("", String::as_str)),
            })
            .collect();
        let text = format!(
            "{} not explained (in {} {}{more}): {}",
            count(lines.lines, "failure", "failures"),
            if lines.lines == 1 { "line" } else { "lines" },
            places.join(", "),
            why_not.sentence(),
        );
        labelled(&mut out, "open", &text, look, Style::warning);
    }
    if totals.elsewhere > 0 {
        let text = format!(
            "{} with status 5xx or 499 by no failure of an upstream: nginx itself answered so, or a client left",
            count(totals.elsewhere, "line", "lines")
        );
        labelled(&mut out, "other", &text, look, Style::dim);
    }
    for missing in &totals.missing {
        labelled(&mut out, "format", missing, look, Style::dim);
    }
    if let Some(unclaimed) = unclaimed.filter(|unclaimed| *unclaimed > 0) {
        let text = format!(
            "{} of that time whose lines are not in the log: another log may have them; `tracer report` has the failures",
            count(unclaimed, "failure", "failures")
        );
        labelled(&mut out, "more", &text, look, Style::dim);
    }
    for torn in torn {
        labelled(&mut out, "torn", torn, look, Style::warning);
    }
    out
}
