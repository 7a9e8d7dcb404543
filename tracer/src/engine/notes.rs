//! Events: things that matter to several attempts, each said once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    engine::{
        surroundings::Death,
        text::{counted, ended as how_ended, process, span},
    },
    event::{Balancing, Exit, Ktime, Listener, Pid},
    model::{Attempt, FieldValue, NoteEvent},
};

fn note(at: Ktime, kind: &'static str, text: String) -> NoteEvent {
    NoteEvent {
        at,
        kind,
        text,
        fields: BTreeMap::new(),
    }
}

fn number(value: impl Into<i64>) -> FieldValue {
    FieldValue::Number(value.into())
}

/// A listener on a port or path of nginx's opened or closed.
pub fn listener(at: Ktime, kind: &'static str, listener: &Listener) -> NoteEvent {
    let verb = if kind == "listener-open" {
        "opened"
    } else {
        "closed"
    };
    let text = format!(
        "{} {verb} by {}, backlog {}",
        listener.address,
        process(&listener.task),
        listener.limit
    );
    let mut note = note(at, kind, text);
    note.fields
        .insert("address", FieldValue::Text(listener.address.to_string()));
    note.fields.insert("pid", number(listener.task.pid.0));
    note.fields
        .insert("comm", FieldValue::Text(listener.task.comm.clone()));
    note.fields.insert("backlog", number(listener.limit));
    note.fields.insert("netns", number(listener.netns.0));
    note
}

/// A process that mattered ended.
pub fn ended(death: &Death, kind: &'static str) -> NoteEvent {
    let task = &death.task;
    let how = match task.exiting {
        Some(exit) => how_ended(exit, task.oom, Some(death)),
        None => "ended".to_owned(),
    };
    let mut note = note(death.at, kind, format!("{} {how}", process(task)));
    note.fields.insert("pid", number(task.pid.0));
    note.fields.insert("comm", FieldValue::Text(task.comm.clone()));
    match task.exiting {
        Some(Exit::Code(code)) => note.fields.insert("exit_code", number(code)),
        Some(Exit::Signal(signal)) => note.fields.insert("signal", number(signal)),
        None => None,
    };
    note.fields.insert("oom", FieldValue::Flag(task.oom));
    note
}

/// A worker started.
pub fn worker_started(at: Ktime, worker: Pid, master: Pid) -> NoteEvent {
    let mut note = note(
        at,
        "worker-start",
        format!("worker {worker} started (master {master})"),
    );
    note.fields.insert("pid", number(worker.0));
    note.fields.insert("master", number(master.0));
    note
}

/// A master has a new configuration: the reload, and what it changed where it changed anything.
pub fn reloaded(
    at: Ktime,
    master: Pid,
    changed: &BTreeSet<String>,
) -> impl Iterator<Item = NoteEvent> + use<> {
    let mut reload = note(
        at,
        "reload",
        format!("master {master} has a new configuration generation"),
    );
    reload.fields.insert("pid", number(master.0));
    let changes = (!changed.is_empty()).then(|| {
        let names = changed.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let mut note = note(at, "config", format!("upstreams changed: {names}"));
        note.fields.insert("upstreams", FieldValue::Text(names));
        note
    });
    std::iter::once(reload).chain(changes)
}

/// Who keeps count of a peer's failures.
fn balancer(attempt: &Attempt, balancing: Balancing) -> String {
    match balancing.is_shared {
        true => "nginx".to_owned(),
        false => format!("worker {}", attempt.worker),
    }
}

/// `127.0.0.1:3000`, or nothing.
fn peer_of(attempt: &Attempt) -> String {
    attempt
        .peer
        .as_ref()
        .map_or_else(String::new, ToString::to_string)
}

/// nginx's balancer leaves a peer out from now on; the latest of the failures that count (attempt and cause), the last of
/// them this attempt.
pub fn peer_disabled(attempt: &Attempt, balancing: Balancing, causes: &[(u64, &'static str)]) -> NoteEvent {
    let times: Vec<String> = causes
        .iter()
        .map(|(number, cause)| format!("{cause} (attempt {number})"))
        .collect();
    let last = match causes.len() < balancing.max_fails as usize {
        true => format!("{} failures, the last ", balancing.max_fails),
        false => String::new(),
    };
    let text = format!(
        "{} leaves {} out of {} for {}: max_fails={} reached by {last}{}",
        balancer(attempt, balancing),
        peer_of(attempt),
        attempt.upstream.as_deref().unwrap_or_default(),
        span(balancing.fail_timeout_ms.saturating_mul(1_000_000)),
        balancing.max_fails,
        times.join(", ")
    );
    let mut note = of_peer(attempt, "peer-disabled", text);
    note.fields.insert("max_fails", number(balancing.max_fails));
    let timeout = i64::try_from(balancing.fail_timeout_ms).unwrap_or(i64::MAX);
    note.fields.insert("fail_timeout_ms", number(timeout));
    let cause = causes.last().map_or("unknown", |(_, cause)| *cause);
    note.fields.insert("cause", FieldValue::Text(cause.to_owned()));
    note
}

/// A peer that was first left out then, for this cause, has answered again.
pub fn peer_enabled(attempt: &Attempt, balancing: Balancing, since: Ktime, cause: &'static str) -> NoteEvent {
    let text = format!(
        "{} of {} answers {} again, which had first left it out {} before ({cause})",
        peer_of(attempt),
        attempt.upstream.as_deref().unwrap_or_default(),
        balancer(attempt, balancing),
        span(attempt.ended_at.since(since)),
    );
    let mut note = of_peer(attempt, "peer-enabled", text);
    let out = i64::try_from(attempt.ended_at.since(since) / 1000).unwrap_or(i64::MAX);
    note.fields.insert("since_us", number(out));
    note.fields.insert("cause", FieldValue::Text(cause.to_owned()));
    note
}

fn of_peer(attempt: &Attempt, kind: &'static str, text: String) -> NoteEvent {
    let mut note = note(attempt.ended_at, kind, text);
    let mut name = |field, value: Option<String>| {
        if let Some(value) = value {
            note.fields.insert(field, FieldValue::Text(value));
        }
    };
    name("upstream", attempt.upstream.clone());
    name("peer", attempt.peer.as_ref().map(ToString::to_string));
    note.fields.insert("worker", number(attempt.worker.0));
    note
}

/// Lines about upstreams that belong to no attempt we could be sure of.
pub fn lines_unjoined(at: Ktime, count: u64) -> NoteEvent {
    let text = format!(
        "{} of nginx about upstreams could not be joined to an attempt",
        counted(count, "line")
    );
    let mut note = note(at, "lines-unjoined", text);
    note.fields.insert(
        "count",
        FieldValue::Number(i64::try_from(count).unwrap_or(i64::MAX)),
    );
    note
}

/// Connections to resolvers, which are no attempts.
pub fn resolver_connections(at: Ktime, count: u64) -> NoteEvent {
    let mut note = note(
        at,
        "resolver-connections",
        format!("{} to resolvers left out", counted(count, "connection")),
    );
    note.fields.insert(
        "count",
        FieldValue::Number(i64::try_from(count).unwrap_or(i64::MAX)),
    );
    note
}
