//! One failure as one block: what happened, why, the evidence with its times, what to do.

use super::{
    Look,
    text::{self, Style, pad, printable, span, width, wrap},
};
use crate::{
    clock::Clock,
    event::Ktime,
    model::{Attempt, Evidence, Outcome, Phase, Verdict},
};

/// Evidence beyond this many lines is in the trace only.
const MAX_EVIDENCE: usize = 30;

/// The column at which the text behind a label begins.
const LABEL_COLUMNS: usize = 15;

/// Draws a failed attempt; the time is that of its end, which is also when nginx logs it.
#[must_use]
pub fn block(attempt: &Attempt, clock: Clock, look: &Look) -> String {
    let style = look.style();
    let measure = look.measure();
    let mut out = headline(attempt, &look.time(attempt.ended_at, clock), measure, style);
    let Some(cause) = &attempt.cause else {
        return out;
    };
    for line in wrap(&printable(&cause.summary), measure - 2) {
        out.push_str(&format!("  {line}\n"));
    }
    out.push_str(&evidence(&cause.evidence, attempt.ended_at, measure, style));
    let mut label = |name: &str, text: &str, paint: &dyn Fn(&str) -> String| {
        for (number, line) in wrap(&printable(text), measure - LABEL_COLUMNS).iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let name = style.dim(&pad(&format!("  {name}"), LABEL_COLUMNS));
            out.push_str(&format!("{name}{}\n", paint(line)));
        }
    };
    let plain = |text: &str| text.to_owned();
    if let Some(request) = request(attempt) {
        label("request", &request, &plain);
    }
    if let Some(client) = client(attempt) {
        label("client got", &client, &plain);
    }
    label(
        "nginx logs",
        attempt.nginx_says.as_deref().unwrap_or("nothing"),
        &plain,
    );
    if !attempt.also.is_empty() {
        label("also true", &names(&attempt.also), &plain);
    }
    if !cause.remedy.is_empty() {
        label("what to do", &cause.remedy, &|text| style.remedy(text));
    }
    for unseen in &attempt.unseen {
        label("not seen", unseen, &|text| style.warning(text));
    }
    out
}

/// Draws an attempt that the backend itself answered with an error.
#[must_use]
pub fn answered(attempt: &Attempt, clock: Clock, look: &Look) -> String {
    let style = look.style();
    let measure = look.measure();
    let headline = headline(attempt, &look.time(attempt.ended_at, clock), measure, style);
    // There is no cause at its end.
    let mut out: String = headline
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    if let Some(request) = request(attempt) {
        for (number, line) in wrap(&printable(&request), measure - LABEL_COLUMNS)
            .iter()
            .enumerate()
        {
            let name = if number == 0 { "  request" } else { "" };
            out.push_str(&format!("{}{line}\n", style.dim(&pad(name, LABEL_COLUMNS))));
        }
    }
    out
}

/// The upstream and the peer: `api → 127.0.0.1:3000`.
#[must_use]
pub fn target(attempt: &Attempt) -> String {
    let upstream = match (&attempt.upstream, attempt.upstreams.as_slice()) {
        (Some(upstream), _) => Some(upstream.clone()),
        (None, []) => None,
        (None, several) => Some(several.join(" or ")),
    };
    let peer = attempt.peer.as_ref().map(ToString::to_string);
    let target = match (upstream, peer) {
        (Some(upstream), Some(peer)) => format!("{upstream} → {peer}"),
        (Some(upstream), None) => upstream,
        (None, Some(peer)) => peer,
        (None, None) => "an unknown peer".to_owned(),
    };
    printable(&target).into_owned()
}

/// The cause and how sure it is: `listener-died · confirmed`.
#[must_use]
pub fn cause_name(attempt: &Attempt, style: Style) -> (String, usize) {
    match &attempt.cause {
        Some(cause) => {
            let columns = width(cause.id) + 3 + width(cause.confidence.name());
            let confidence = style.dim(&format!("· {}", cause.confidence));
            (format!("{} {confidence}", style.cause(cause.id)), columns)
        }
        None => (String::new(), 0),
    }
}

fn headline(attempt: &Attempt, time: &str, measure: usize, style: Style) -> String {
    let target = target(attempt);
    let mut facts = happened(attempt);
    facts.push_str(&format!("   worker {}", attempt.worker));
    if let Some((_, n)) = attempt.retry {
        facts.push_str(&format!("   try {n}"));
    }
    let (cause, cause_width) = cause_name(attempt, style);
    let margin = width(time) + 2;
    let first_width = margin + width(&target);
    if first_width > measure {
        // A long path: it takes its own lines.
        let mut out = String::new();
        for (number, line) in wrap(&target, measure - margin).iter().enumerate() {
            let time = if number == 0 { time } else { "" };
            let time = style.dim(&pad(time, margin));
            out.push_str(&format!("{time}{}\n", style.strong(line)));
        }
        return format!("{out}  {facts}   {cause}\n");
    }
    let first = format!("{}  {}", style.dim(time), style.strong(&target));
    let left_width = first_width + 3 + width(&facts);
    if left_width + 3 + cause_width <= measure {
        let gap = measure - left_width - cause_width;
        return format!("{first}   {facts}{:gap$}{cause}\n", "");
    }
    if left_width <= measure {
        return format!("{first}   {facts}\n  {cause}\n");
    }
    if 2 + width(&facts) + 3 + cause_width <= measure {
        return format!("{first}\n  {facts}   {cause}\n");
    }
    format!("{first}\n  {facts}\n  {cause}\n")
}

/// What happened, where and after how long: `refused after 0.2 ms`, `closed while waiting after 1.20 s`.
fn happened(attempt: &Attempt) -> String {
    if let Some(status) = attempt.answered() {
        return format!("answered {status} itself after {}", span(attempt.total_us));
    }
    let outcome = attempt.outcome.name().replace('-', " ");
    let is_plain = match attempt.outcome {
        Outcome::NoLiveUpstreams => return outcome,
        Outcome::Unresolved if attempt.total_us == 0 => return outcome,
        Outcome::Refused | Outcome::Unreachable | Outcome::Denied | Outcome::Missing | Outcome::Exhausted => {
            attempt.phase == Phase::Connecting
        }
        Outcome::Unresolved => attempt.phase == Phase::Resolving,
        Outcome::Ok
        | Outcome::TimedOut
        | Outcome::Reset
        | Outcome::Closed
        | Outcome::Invalid
        | Outcome::Cancelled => false,
    };
    let phase = if is_plain {
        String::new()
    } else {
        format!(" while {}", attempt.phase)
    };
    format!("{outcome}{phase} after {}", span(attempt.total_us))
}

fn evidence(facts: &[Evidence], end: Ktime, measure: usize, style: Style) -> String {
    let shown = &facts[..facts.len().min(MAX_EVIDENCE)];
    let times: Vec<String> = shown.iter().map(|fact| relative(fact.at, end)).collect();
    let time_columns = times.iter().map(|time| width(time)).max().unwrap_or(0).max(9);
    let source_columns = shown
        .iter()
        .map(|fact| width(fact.source))
        .max()
        .unwrap_or(0)
        .max(8);
    let margin = 4 + time_columns + 2 + source_columns + 2;
    let mut out = String::new();
    for (fact, time) in shown.iter().zip(&times) {
        let gap = 4 + time_columns - width(time);
        let head = format!("{:gap$}{time}  {}", "", pad(fact.source, source_columns + 2));
        for (number, line) in wrap(&printable(&fact.text), measure.saturating_sub(margin))
            .iter()
            .enumerate()
        {
            if number == 0 {
                out.push_str(&style.dim(&head));
            } else {
                out.push_str(&format!("{:margin$}", ""));
            }
            out.push_str(line);
            out.push('\n');
        }
    }
    let rest = facts.len() - shown.len();
    if rest > 0 {
        let more = text::count(rest as u64, "fact", "facts");
        out.push_str(&format!("{:margin$}and {more} more in the trace\n", ""));
    }
    out
}

/// A time as seen from the end of the attempt: `-312.4 ms`.
fn relative(at: Option<Ktime>, end: Ktime) -> String {
    match at {
        None => String::new(),
        Some(at) if end.micros_since(at) == 0 && at.micros_since(end) == 0 => span(0),
        Some(at) if at <= end => format!("-{}", span(end.micros_since(at))),
        Some(at) => format!("+{}", span(at.micros_since(end))),
    }
}

fn request(attempt: &Attempt) -> Option<String> {
    let request = attempt.request.as_ref()?;
    let mut words = Vec::new();
    words.extend(request.method.clone());
    words.extend(request.path.clone());
    if let Some(host) = &request.host {
        words.push(format!("(host {host})"));
    }
    if let Some(client) = &request.client {
        words.push(format!("from {client}"));
    }
    if let Some(status) = request.status {
        words.push(format!("→ {status}"));
    }
    (!words.is_empty()).then(|| words.join(" "))
}

/// What its client got: `502`, `no more of its answer: nginx closed the connection`.
fn client(attempt: &Attempt) -> Option<String> {
    let client = attempt.client?;
    let got = match (client.status, client.cut) {
        (Some(status), false) => status.to_string(),
        (Some(status), true) => format!("the beginning of a {status}, then nginx closed its connection"),
        (None, true) => "nothing more: nginx closed its connection".to_owned(),
        (None, false) => return None,
    };
    let from_logged = attempt
        .request
        .as_ref()
        .and_then(|request| request.client.as_ref());
    Some(match client.address {
        Some(address) if from_logged.is_none() => format!("{got} (at {address})"),
        _ => got,
    })
}

fn names(verdicts: &[Verdict]) -> String {
    verdicts
        .iter()
        .map(|verdict| format!("{} · {}", verdict.id, verdict.confidence))
        .collect::<Vec<_>>()
        .join(", ")
}
