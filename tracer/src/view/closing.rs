//! The opening lines and the closing summary.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write};

use super::{
    Look, loss_classes,
    text::{Style, count, pad, printable, size, span, thousands, width, wrap},
};
use crate::{
    model::{Finding, Summary},
    session::SessionFacts,
    sink::trace_file::Written,
    tally::{Tally, UpstreamTally},
};

/// Peers named per cause; the files hold all.
const MAX_PEERS: usize = 3;

/// Problems of the configuration named at the start; `tracer check` shows all.
const MAX_PROBLEMS: usize = 5;

/// Says what is watched and what cannot be seen here.
#[must_use]
pub fn opening(facts: &SessionFacts, look: &Look) -> String {
    let style = look.style();
    let measure = look.measure();
    let mut out = String::new();
    let mut is_any = false;
    for instance in facts.instances() {
        is_any = true;
        let version = instance.version.as_deref().unwrap_or(&instance.exe);
        let workers = count(instance.workers.len() as u64, "worker", "workers");
        let conf = instance
            .conf
            .as_deref()
            .map_or_else(String::new, |conf| format!(", {conf}"));
        let line = format!("watching {version} (pid {}, {workers}{conf})", instance.pid);
        let _ = writeln!(out, "{}", style.dim(&printable(&line)));
    }
    if !is_any {
        let _ = writeln!(out, "{}", style.dim("waiting for nginx to start"));
    }
    for hook in facts.missing_hooks() {
        let what = format!("{}: {}", hook.sees, hook.without);
        note(&mut out, "not seen", &what, measure, style);
    }
    let problems: Vec<_> = facts.config_problems().collect();
    for problem in problems.iter().take(MAX_PROBLEMS) {
        note(&mut out, "config", problem, measure, style);
    }
    if problems.len() > MAX_PROBLEMS {
        let more = count(
            (problems.len() - MAX_PROBLEMS) as u64,
            "more problem",
            "more problems",
        );
        note(
            &mut out,
            "config",
            &format!("{more}: see `tracer check`"),
            measure,
            style,
        );
    }
    out
}

fn note(out: &mut String, label: &str, text: &str, measure: usize, style: Style) {
    if text.is_empty() {
        return;
    }
    for (number, line) in wrap(&printable(text), measure - 12).iter().enumerate() {
        let label = if number == 0 { label } else { "" };
        let _ = writeln!(
            out,
            "{}",
            style.dim(&format!("{}{line}", pad(&format!("  {label}"), 12)))
        );
    }
}

/// Appends a text behind a label, painted, set to the width.
pub fn labelled(out: &mut String, label: &str, text: &str, look: &Look, paint: fn(Style, &str) -> String) {
    let style = look.style();
    for (number, line) in wrap(&printable(text), look.measure() - 12).iter().enumerate() {
        let label = if number == 0 { label } else { "" };
        let _ = writeln!(
            out,
            "{}{}",
            style.dim(&pad(&format!("  {label}"), 12)),
            paint(style, line)
        );
    }
}

/// Which answers may be errors of the backend's own that nobody saw.
#[must_use]
pub fn unread(answered_with_error: Option<u64>, statuses_unread: u64) -> Option<String> {
    match (answered_with_error, statuses_unread) {
        (None, _) => Some("whether a backend's own answer was an error (5xx): no status was read".to_owned()),
        (Some(_), 0) => None,
        (Some(_), n) => Some(format!(
            "the status of {}: encrypted or HTTP/2, to requests sent before the trace began, or not in the first bytes",
            count(n, "answer", "answers"),
        )),
    }
}

/// What clients got after failures: `got 502 (40), a cut connection (2)`.
#[must_use]
pub fn clients(clients_got: &BTreeMap<String, u64>) -> Option<String> {
    let got: Vec<String> = clients_got
        .iter()
        .map(|(got, n)| {
            let got = match got.as_str() {
                "cut" => "a cut connection",
                "unread" => "an answer that could not be read",
                status => status,
            };
            format!("{got} ({})", thousands(*n))
        })
        .collect();
    (!got.is_empty()).then(|| format!("got {}", got.join(", ")))
}

/// Says how it went: by upstream and cause, the findings, what was lost, and the files.
#[must_use]
pub fn closing(
    summary: &Summary,
    watched_us: Option<u64>,
    findings: &[Finding],
    written: &[Written],
    look: &Look,
) -> String {
    let style = look.style();
    let mut tally = Tally::default();
    for (key, attempts) in &summary.counts {
        tally.add(
            key.upstream.as_deref(),
            key.peer.as_deref(),
            key.outcome,
            key.cause,
            *attempts,
        );
    }
    let mut out = String::new();
    let watched = watched_us.map_or_else(String::new, |us| format!(" in {}", span(us)));
    let mut totals = vec![
        format!("{}{watched}", count(summary.attempts, "attempt", "attempts")),
        format!("{} failed", thousands(summary.failures)),
    ];
    if tally.cancelled > 0 {
        totals.push(format!("{} cancelled", thousands(tally.cancelled)));
    }
    if let Some(errors @ 1..) = summary.answered_with_error {
        totals.push(format!("{} answered with an error", thousands(errors)));
    }
    if summary.in_flight > 0 {
        totals.push(format!("{} still under way", thousands(summary.in_flight)));
    }
    let _ = writeln!(out, "{}", style.strong(&totals.join(", ")));
    out.push_str(&table(&tally, look));
    out.push_str(&self::findings(findings, look));
    let lost = loss_classes(summary.lost.iter().map(|(class, count)| (*class, *count)));
    let mut label = |name: &str, text: &str, is_warning: bool| {
        for (number, line) in wrap(&printable(text), look.measure() - 12).iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let line = if is_warning {
                style.warning(line)
            } else {
                line.clone()
            };
            let _ = writeln!(out, "{}{line}", style.dim(&pad(&format!("  {name}"), 12)));
        }
    };
    if let Some(text) = clients(&summary.clients_got) {
        label("clients", &text, false);
    }
    if let Some(text) = unread(summary.answered_with_error, summary.statuses_unread) {
        label("not seen", &text, false);
    }
    if lost.is_empty() {
        label("lost", "nothing", false);
    } else {
        label(
            "lost",
            &format!("{lost}: attempts may be missing or less certain"),
            true,
        );
    }
    if !summary.complete && lost.is_empty() {
        label("complete", "no: the end of the trace was not orderly", true);
    }
    for file in written {
        if let Some((text, is_warning)) = file_line(file) {
            // Never wrapped: a path in two pieces cannot be copied.
            let text = printable(&text);
            let text = if is_warning {
                style.warning(&text)
            } else {
                text.into_owned()
            };
            let _ = writeln!(out, "{}{text}", style.dim(&pad("  written", 12)));
        }
    }
    out
}

fn file_line(file: &Written) -> Option<(String, bool)> {
    let path = file.path.as_ref()?.display();
    let attempts = count(file.attempts, "attempt", "attempts");
    let parts = match file.parts {
        0 | 1 => String::new(),
        parts => format!(", in {parts} files"),
    };
    Some(match &file.broken {
        None => (format!("{path}   {attempts}, {}{parts}", size(file.bytes)), false),
        Some((why, missed)) => {
            let missed = count(*missed, "record is", "records are");
            (
                format!("{path}   {attempts}{parts}, then {why}: {missed} missing"),
                true,
            )
        }
    })
}

/// The table by upstream and cause.
#[must_use]
pub fn table(tally: &Tally, look: &Look) -> String {
    let style = look.style();
    let mut out = String::new();
    let mut upstreams: Vec<_> = tally.upstreams.iter().collect();
    upstreams.sort_by_key(|(name, upstream)| (Reverse(upstream.failures), name.is_none(), *name));
    let cause_columns = tally
        .upstreams
        .values()
        .flat_map(|upstream| upstream.causes.keys())
        .map(|cause| width(cause))
        .max()
        .unwrap_or(0);
    for (name, upstream) in upstreams {
        let name = match name {
            Some(name) => printable(name).into_owned(),
            None => "without a known upstream".to_owned(),
        };
        let _ = writeln!(
            out,
            "\n  {}   {}",
            style.strong(&name),
            style.dim(&upstream_totals(upstream))
        );
        for (cause, by_cause) in upstream.by_frequency() {
            let head = format!("    {:>8}  ", thousands(by_cause.attempts));
            let gap = cause_columns - width(cause);
            let margin = width(&head) + cause_columns + 2;
            let peers = peers(&by_cause.by_frequency());
            for (number, line) in wrap(&printable(&peers), look.measure().saturating_sub(margin))
                .iter()
                .enumerate()
            {
                if number == 0 {
                    let _ = write!(out, "{head}{}{:gap$}  ", style.cause(cause), "");
                } else {
                    let _ = write!(out, "{:margin$}", "");
                }
                let _ = writeln!(out, "{line}");
            }
        }
    }
    if !tally.upstreams.is_empty() {
        out.push('\n');
    }
    out
}

fn upstream_totals(upstream: &UpstreamTally) -> String {
    let mut totals = vec![count(upstream.attempts, "attempt", "attempts")];
    totals.push(if upstream.failures == 0 {
        "none failed".to_owned()
    } else {
        format!("{} failed", thousands(upstream.failures))
    });
    if upstream.cancelled > 0 {
        totals.push(format!("{} cancelled", thousands(upstream.cancelled)));
    }
    totals.join(", ")
}

fn peers(peers: &[(&str, u64)]) -> String {
    let named = |peer: &str| {
        if peer.is_empty() {
            "no peer".to_owned()
        } else {
            peer.to_owned()
        }
    };
    if let [(peer, _)] = peers {
        return named(peer);
    }
    let mut words: Vec<_> = peers
        .iter()
        .take(MAX_PEERS)
        .map(|(peer, attempts)| format!("{} ({})", named(peer), thousands(*attempts)))
        .collect();
    if peers.len() > MAX_PEERS {
        words.push(format!("and {} more", peers.len() - MAX_PEERS));
    }
    words.join(", ")
}

fn findings(findings: &[Finding], look: &Look) -> String {
    let mut out = String::new();
    for finding in findings {
        out.push_str(&self::finding(
            finding.id,
            &finding.summary,
            &finding.remedy,
            look,
        ));
    }
    out
}

/// One finding as two or more lines and a blank one.
#[must_use]
pub fn finding(id: &str, summary: &str, remedy: &str, look: &Look) -> String {
    let style = look.style();
    let mut out = String::new();
    let _ = writeln!(out, "  {}", style.strong(id));
    for line in wrap(&printable(summary), look.measure() - 4) {
        let _ = writeln!(out, "    {line}");
    }
    if !remedy.is_empty() {
        for line in wrap(&printable(&format!("what to do: {remedy}")), look.measure() - 4) {
            let _ = writeln!(out, "    {}", style.remedy(&line));
        }
    }
    out.push('\n');
    out
}
