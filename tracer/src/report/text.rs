//! The report for people.

use std::fmt::Write;

use jiff::Timestamp;

use super::{Report, Story, StoryKey, Trace};
use crate::{
    sink::schema::Event,
    view::{
        Look,
        closing::{clients, finding, labelled, table, unread},
        text::{Style, count, pad, printable, span, thousands, width, wrap},
    },
};

/// Stories told in full; the worst come first in number, the earliest in order.
const MAX_TOLD: usize = 20;

/// Events told between the stories.
const MAX_EVENTS: usize = 20;

/// Peers listed.
const MAX_PEERS: usize = 10;

/// The report as text.
#[must_use]
pub fn text(report: &Report, look: &Look) -> String {
    let style = look.style();
    let mut out = String::new();
    for trace in report.traces.values() {
        heading(&mut out, trace, look);
    }
    let tally = report.tally();
    let mut totals = vec![
        count(tally.attempts, "attempt", "attempts"),
        format!("{} failed", thousands(tally.failures)),
    ];
    if tally.cancelled > 0 {
        totals.push(format!("{} cancelled", thousands(tally.cancelled)));
    }
    if let Some(errors @ 1..) = report.answered_with_error() {
        totals.push(format!("{} answered with an error", thousands(errors)));
    }
    if report.in_flight() > 0 {
        totals.push(format!(
            "{} still under way at the end",
            thousands(report.in_flight())
        ));
    }
    let _ = writeln!(out, "\n{}", style.strong(&totals.join(", ")));
    if tally.upstreams.is_empty() {
        out.push('\n');
    }
    out.push_str(&table(&tally, look));
    worst_peers(&mut out, &tally.worst_peers(), look);
    timeline(&mut out, report, look);
    if report.filter().is_everything() && report.findings().next().is_some() {
        let _ = writeln!(out, "{}\n", style.strong("findings"));
        for found in report.findings() {
            out.push_str(&finding(&found.id, &found.summary, &found.remedy, look));
        }
    }
    closing(&mut out, report, look);
    out
}

fn heading(out: &mut String, trace: &Trace, look: &Look) {
    let style = look.style();
    let session = &trace.session;
    let started = local(&session.started, "%Y-%m-%d %H:%M:%S", look);
    let until = trace.summary.as_ref().map_or_else(String::new, |summary| {
        let watched = microseconds_between(&session.started, &summary.time);
        format!(
            " to {} ({})",
            local(&summary.time, "%H:%M:%S", look),
            span(watched.unwrap_or_default())
        )
    });
    let zone = local(&session.started, "UTC%:z", look);
    let line = format!(
        "{started}{until}, {zone}, on {}, Linux {}",
        session.host, session.kernel
    );
    let _ = writeln!(out, "{}", style.strong(&printable(&line)));
    for nginx in &session.nginx {
        let version = nginx.version.as_deref().unwrap_or(&nginx.exe);
        let workers = count(nginx.workers.len() as u64, "worker", "workers");
        let conf = nginx
            .conf
            .as_deref()
            .map_or_else(String::new, |conf| format!(", {conf}"));
        let line = format!("{version} (pid {}, {workers}{conf})", nginx.pid);
        let _ = writeln!(out, "{}", style.dim(&printable(&line)));
    }
    for hook in session
        .hooks
        .iter()
        .filter(|hook| hook.how.is_none() && !hook.without.is_empty())
    {
        let what = format!("{}: {}", hook.sees, hook.without);
        labelled(out, "not seen", &what, look, Style::dim);
    }
    for problem in &session.config.problems {
        labelled(out, "config", problem, look, Style::dim);
    }
}

fn worst_peers(out: &mut String, peers: &[(&str, crate::tally::PeerTally)], look: &Look) {
    // With one peer the table above has said it all.
    if peers.len() < 2 {
        return;
    }
    let style = look.style();
    let _ = writeln!(out, "{}\n", style.strong("worst peers"));
    let shown = &peers[..peers.len().min(MAX_PEERS)];
    let columns = shown
        .iter()
        .map(|(peer, _)| width(peer))
        .max()
        .unwrap_or(0)
        .min(60);
    for (peer, counts) in shown {
        let percent = u128::from(counts.failures) * 1_000 / u128::from(counts.attempts.max(1));
        let _ = writeln!(
            out,
            "    {}   {} of {} failed ({}.{} %)",
            pad(&printable(peer), columns),
            thousands(counts.failures),
            count(counts.attempts, "attempt", "attempts"),
            percent / 10,
            percent % 10,
        );
    }
    if peers.len() > shown.len() {
        let _ = writeln!(
            out,
            "    and {} more",
            thousands((peers.len() - shown.len()) as u64)
        );
    }
    out.push('\n');
}

/// What happened, in the order in which it began.
fn timeline(out: &mut String, report: &Report, look: &Look) {
    let mut stories: Vec<_> = report.stories.iter().collect();
    if stories.is_empty() && report.events.is_empty() {
        return;
    }
    let style = look.style();
    let _ = writeln!(out, "{}\n", style.strong("what happened"));
    stories.sort_by_key(|(_, story)| std::cmp::Reverse(story.attempts));
    let untold: u64 = stories
        .iter()
        .skip(MAX_TOLD)
        .map(|(_, story)| story.attempts)
        .sum();
    stories.truncate(MAX_TOLD);
    let mut told: Vec<(&str, String)> = stories
        .iter()
        .map(|(key, story)| (story.first.as_str(), tell(key, story, look)))
        .collect();
    let events = report.events.iter().take(MAX_EVENTS);
    told.extend(events.map(|event| (event.time.as_str(), event_line(event, look))));
    told.sort_by_key(|(time, _)| *time);
    for (_, text) in &told {
        out.push_str(text);
    }
    let more = untold + report.untold;
    if more > 0 {
        let _ = writeln!(
            out,
            "  and {} of other causes or peers\n",
            count(more, "failure", "failures")
        );
    }
    let events = report.events.len().saturating_sub(MAX_EVENTS) as u64 + report.more_events;
    if events > 0 {
        let _ = writeln!(out, "  and {}\n", count(events, "more event", "more events"));
    }
}

fn tell(key: &StoryKey, story: &Story, look: &Look) -> String {
    let style = look.style();
    let target = match (&key.upstream, &key.peer) {
        (Some(upstream), Some(peer)) => format!("{upstream} → {peer}"),
        (Some(only), None) | (None, Some(only)) => only.clone(),
        (None, None) => "an unknown peer".to_owned(),
    };
    let first = local(&story.first, "%H:%M:%S", look);
    let last = local(&story.last, "%H:%M:%S", look);
    let when = if first == last {
        count(story.attempts, "failure", "failures")
    } else if story.bursts > 1 {
        format!(
            "{} until {last}, in {} bursts",
            count(story.attempts, "failure", "failures"),
            thousands(story.bursts)
        )
    } else {
        format!("{} until {last}", count(story.attempts, "failure", "failures"))
    };
    let confidence = if story.confidence.is_empty() {
        String::new()
    } else {
        format!(" · {}", story.confidence)
    };
    let target = printable(&target);
    let cause = format!("{}{}", style.cause(&key.cause), style.dim(&confidence));
    let used = 12 + width(&target) + width(&key.cause) + width(&confidence);
    let mut out = format!("  {}  {}", style.dim(&first), style.strong(&target));
    if used + 3 <= look.measure() {
        let gap = look.measure() - used;
        let _ = writeln!(out, "{:gap$}{cause}", "");
    } else {
        let _ = writeln!(out, "\n            {cause}");
    }
    let _ = writeln!(out, "            {when}");
    for line in wrap(&printable(&story.summary), look.measure() - 12) {
        let _ = writeln!(out, "            {line}");
    }
    if !story.remedy.is_empty() {
        for line in wrap(
            &printable(&format!("what to do: {}", story.remedy)),
            look.measure() - 12,
        ) {
            let _ = writeln!(out, "            {}", style.remedy(&line));
        }
    }
    for unseen in &story.unseen {
        for line in wrap(&printable(&format!("not seen: {unseen}")), look.measure() - 12) {
            let _ = writeln!(out, "            {}", style.warning(&line));
        }
    }
    out.push('\n');
    out
}

fn event_line(event: &Event, look: &Look) -> String {
    let style = look.style();
    let time = local(&event.time, "%H:%M:%S", look);
    let mut out = String::new();
    for (number, line) in wrap(&printable(&event.text), look.measure() - 12)
        .iter()
        .enumerate()
    {
        let time = if number == 0 { time.as_str() } else { "" };
        let _ = writeln!(out, "  {}", style.dim(&format!("{}{line}", pad(time, 10))));
    }
    out.push('\n');
    out
}

fn closing(out: &mut String, report: &Report, look: &Look) {
    if let Some(text) = clients(&report.clients_got()) {
        labelled(out, "clients", &text, look, |_, text| text.to_owned());
    }
    if let Some(text) = unread(report.answered_with_error(), report.statuses_unread()) {
        labelled(out, "not seen", &text, look, |_, text| text.to_owned());
    }
    let lost = report.lost();
    if lost.is_empty() {
        labelled(out, "lost", "nothing", look, |_, text| text.to_owned());
    } else {
        let classes: Vec<_> = lost
            .iter()
            .map(|(class, count)| format!("{} {class}", thousands(*count)))
            .collect();
        labelled(out, "lost", &classes.join(", "), look, Style::warning);
    }
    let gaps = report.gaps();
    if gaps.is_empty() {
        labelled(out, "complete", "yes", look, |_, text| text.to_owned());
    }
    for (number, gap) in gaps.iter().enumerate() {
        let label = if number == 0 { "complete" } else { "" };
        let text = if number == 0 {
            format!("no: {gap}")
        } else {
            gap.clone()
        };
        labelled(out, label, &text, look, Style::warning);
    }
}

/// A time of the trace in the reader's zone; as it stands when it is no time.
fn local(time: &str, format: &str, look: &Look) -> String {
    match time.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(look.zone.clone()).strftime(format).to_string(),
        Err(_) => time.to_owned(),
    }
}

fn microseconds_between(from: &str, to: &str) -> Option<u64> {
    let from = from.parse::<Timestamp>().ok()?;
    let to = to.parse::<Timestamp>().ok()?;
    u64::try_from(to.as_microsecond() - from.as_microsecond()).ok()
}
