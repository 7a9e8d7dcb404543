//! Judges a trace against a scenario and against nginx's own error log. A single wrong name anywhere in the trace fails
//! the scenario; so does a failure that nginx logged and the trace lacks, or the other way round.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::Value;

use super::{
    Expect, Scenario, Succeeds,
    error_log::{self, AttemptLine},
};
use crate::traced::of_type;

/// What a run left behind.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The whole trace.
    pub records: &'a [Value],
    /// nginx's error log.
    pub error_log: &'a str,
    /// Healthy requests answered between the tracer's being ready and the end.
    pub healthy: u64,
    /// Healthy requests under way at every moment.
    pub clients: usize,
    /// Process ids of nginx's workers in their own namespace, where it is not ours.
    pub inner_pids: &'a BTreeMap<u32, u32>,
}

/// Puts a scenario's names into a text.
type Fill<'a> = &'a dyn Fn(&str) -> Result<String>;

/// What is wrong with the attempts in a trace; empty: nothing. The trace as such: see [`frame`].
pub fn judge(scenario: &Scenario, fill: Fill<'_>, seen: &Seen<'_>) -> Result<Vec<String>> {
    let mut problems = expectations(scenario, fill, seen.records)?;
    problems.extend(successes(scenario, fill, seen.records)?);
    problems.extend(lines(seen));
    problems.extend(healthy(seen));
    problems.extend(patterns(scenario, seen.records));
    problems.extend(disabled(scenario, seen));
    Ok(problems)
}

/// Where nginx logs which servers it disables, the trace says the same of them.
fn disabled(scenario: &Scenario, seen: &Seen<'_>) -> Vec<String> {
    if !matches!(scenario.lab.nginx.level.as_str(), "warn" | "notice" | "info") || !seen.inner_pids.is_empty()
    {
        return Vec::new();
    }
    let logged: BTreeSet<(String, String)> = seen
        .error_log
        .lines()
        .filter(|line| line.contains(" upstream server temporarily disabled "))
        .filter_map(|line| {
            let (_, behind) = line.split_once("[warn] ")?;
            let (worker, _) = behind.split_once('#')?;
            let (_, upstream) = line.split_once(", upstream: \"")?;
            let peer = upstream.split_once("://").map_or(upstream, |(_, peer)| peer);
            let peer = peer.split(['/', '"']).next()?;
            Some((worker.to_owned(), peer.to_owned()))
        })
        .collect();
    let said: BTreeSet<(String, String)> = of_type(seen.records, "event")
        .filter(|event| event["kind"] == "peer-disabled")
        .filter_map(|event| Some((event["worker"].to_string(), event["peer"].as_str()?.to_owned())))
        .collect();
    let missing = logged
        .difference(&said)
        .map(|it| format!("nginx disabled a peer, and no event says so: {it:?}"));
    let wrong = said
        .difference(&logged)
        .map(|it| format!("nginx disabled no such peer: {it:?}"));
    missing.chain(wrong).collect()
}

/// Patterns that should have been found.
fn patterns(scenario: &Scenario, records: &[Value]) -> Vec<String> {
    let found = findings(records);
    let missing = scenario
        .findings
        .iter()
        .filter(|id| !found.contains(&id.as_str()))
        .filter(|id| *id != "answered-with-error" || reads_requests(records));
    missing
        .map(|id| format!("no finding {id} in {found:?}"))
        .collect()
}

/// The ids of a trace's findings.
fn findings(records: &[Value]) -> Vec<&str> {
    of_type(records, "finding")
        .filter_map(|finding| finding["id"].as_str())
        .collect()
}

/// What is wrong with what `tracer annotate` says of nginx's log beside its trace: every line that is an attempt must
/// have one of its own, with the cause that the trace gives it.
pub fn judge_annotation(records: &[Value], log: &str, annotation: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    let Some((summary, lines)) = annotation.split_last() else {
        return vec!["nothing was said of the log".to_owned()];
    };
    let wanted = error_log::attempts(log);
    if wanted.len() != lines.len() {
        problems.push(format!(
            "{} lines of the log are attempts, and {} were annotated",
            wanted.len(),
            lines.len()
        ));
    }
    if summary["failures_without_line"] != 0 {
        problems.push(format!("failures were left without their line: {summary}"));
    }
    let mut taken = BTreeSet::new();
    for line in lines {
        let attempt = &line["attempt"];
        let is_known = attempt["cause"]["id"] != "unknown";
        if line["explained"] != is_known {
            problems.push(format!(
                "line {} is not explained: {}",
                line["number"], line["why_not"]
            ));
            continue;
        }
        let number = attempt["number"].as_u64();
        if !taken.insert(number) {
            problems.push(format!("attempt {number:?} was taken for two lines"));
        }
        // The attempt's own line, where it holds one, is this one; a line is its attempt's peer's in any case.
        let number_of_line = line["number"]
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        let there = number_of_line.and_then(|number| log.lines().nth(number.checked_sub(1)?));
        let held = attempt["log"]["line"].as_str();
        if held.is_some() && held != there {
            problems.push(format!("line {}: taken for {attempt}", line["number"]));
        }
        let of_trace = of_type(records, "attempt").find(|record| record["number"].as_u64() == number);
        if of_trace.is_none_or(|record| record["cause"] != attempt["cause"]) {
            problems.push(format!("line {}: not as in the trace: {attempt}", line["number"]));
        }
    }
    problems
}

/// What is wrong with a recording's replay, whose healthy traffic nobody counted; empty: nothing.
pub fn judge_replay(
    scenario: &Scenario,
    fill: Fill<'_>,
    records: &[Value],
    error_log: &str,
) -> Result<Vec<String>> {
    let mut problems = frame(records);
    problems.extend(expectations(scenario, fill, records)?);
    problems.extend(successes(scenario, fill, records)?);
    let seen = Seen {
        records,
        error_log,
        healthy: 0,
        clients: 0,
        inner_pids: &BTreeMap::new(),
    };
    problems.extend(lines(&seen));
    problems.extend(disabled(scenario, &seen));
    let is_expected = |id: &&str| {
        let mut expected = scenario.findings.iter().chain(&scenario.may_find);
        expected.any(|expected| expected == id)
    };
    problems.extend(patterns(scenario, records));
    let found = findings(records).into_iter();
    problems.extend(
        found
            .filter(|id| !is_expected(id))
            .map(|id| format!("nobody expects finding {id}")),
    );
    Ok(problems)
}

/// Whether nginx's own log shows what the scenario says it logs: does the fault happen at all?
pub fn judge_log(scenario: &Scenario, fill: Fill<'_>, log: &str) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut left = error_log::attempts(log);
    for expect in &scenario.expect {
        let Some(says) = &expect.nginx_says else { continue };
        let says = fill(says)?;
        let raced = says_when_raced(&says);
        let peer = expect.peer.as_deref().map(fill).transpose()?;
        let before = left.len();
        left.retain(|line| {
            let is_said = line.says == says || Some(&line.says) == raced.as_ref();
            !(is_said && line.is_at(peer.as_deref()))
        });
        let found = before - left.len();
        if expect
            .attempts
            .map_or(found == 0 && !expect.optional, |wanted| wanted != found)
        {
            problems.push(format!(
                "nginx logged `{says}` for {peer:?} {found} times, not {:?}",
                expect.attempts
            ));
        }
    }
    problems.extend(
        left.iter()
            .map(|line| format!("nginx logged what nobody expects: {}", line.line)),
    );
    Ok(problems)
}

/// What nginx says instead when a connect fails between its look at `SO_ERROR` and the `recv()` after that: the same
/// errno from another call, in the next phase (seen with nginx 1.22.1 when an ICMP error came within 50 µs).
fn says_when_raced(says: &str) -> Option<String> {
    let errno = says
        .strip_prefix("connect() failed (")?
        .strip_suffix(") while connecting to upstream")?;
    Some(format!(
        "recv() failed ({errno}) while reading response header from upstream"
    ))
}

/// The trace as such: first and last line, completeness.
pub fn frame(records: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    match records.first() {
        Some(first) if first["type"] == "session" && first["schema"] == "tracer/1" => {}
        other => problems.push(format!(
            "the first line is no session of schema tracer/1: {other:?}"
        )),
    }
    match records.last() {
        Some(last) if last["type"] == "summary" => {
            if last["complete"] != Value::Bool(true) {
                problems.push(format!("the trace is not complete: {}", last["lost"]));
            }
            let counted = of_type(records, "attempt").count();
            if last["attempts"] != counted {
                problems.push(format!(
                    "the summary counts {}, the trace holds {counted} attempts",
                    last["attempts"]
                ));
            }
        }
        other => problems.push(format!("the last line is no summary: {other:?}")),
    }
    problems.extend(of_type(records, "lost").map(|lost| format!("something was lost: {lost}")));
    problems
}

/// Every attempt that did not succeed fits an expectation, and every expectation is met.
fn expectations(scenario: &Scenario, fill: Fill<'_>, records: &[Value]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut met = vec![0; scenario.expect.len()];
    for attempt in of_type(records, "attempt") {
        let differences: Vec<Vec<String>> = scenario
            .expect
            .iter()
            .map(|expect| differences(expect, fill, attempt))
            .collect::<Result<_>>()?;
        match differences.iter().position(Vec::is_empty) {
            Some(found) => met[found] += 1,
            None if attempt["outcome"] == "ok" => {}
            None => {
                let nearest = differences
                    .into_iter()
                    .min_by_key(Vec::len)
                    .unwrap_or_else(|| vec!["nothing was expected to fail".to_owned()]);
                problems.push(format!("{}: {}", nearest.join("; "), short(attempt)));
            }
        }
    }
    for (expect, met) in scenario.expect.iter().zip(met) {
        if expect
            .attempts
            .map_or(met == 0 && !expect.optional, |wanted| wanted != met)
        {
            problems.push(format!(
                "{} attempts expected with cause {}, {met} seen",
                expect
                    .attempts
                    .map_or("some".to_owned(), |wanted| wanted.to_string()),
                expect.cause
            ));
        }
    }
    Ok(problems)
}

/// Whether this problem is one of how many attempts succeeded.
#[must_use]
pub fn is_miscount(problem: &str) -> bool {
    problem.contains(" successful attempts ")
}

/// As many successful attempts as there were requests.
fn successes(scenario: &Scenario, fill: Fill<'_>, records: &[Value]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for wanted in &scenario.succeeds {
        let Succeeds {
            upstream,
            peer,
            attempts,
            at_most,
            reused,
            retries,
            requests,
        } = wanted;
        let peer = peer.as_deref().map(fill).transpose()?;
        let is_it = |attempt: &&Value| {
            attempt["outcome"] == "ok"
                && upstream.as_ref().is_none_or(|name| attempt["upstream"] == **name)
                && peer.as_ref().is_none_or(|peer| attempt["peer"] == **peer)
        };
        let seen: Vec<&Value> = of_type(records, "attempt").filter(is_it).collect();
        let name = upstream.as_deref().or(peer.as_deref()).unwrap_or_default();
        let most = at_most.unwrap_or(*attempts);
        if seen.len() < *attempts || seen.len() > most {
            problems.push(format!(
                "{} successful attempts at {name}, not {attempts} to {most}",
                seen.len()
            ));
        }
        let again = seen.iter().filter(|attempt| attempt["reused"] == true).count();
        if reused.is_some_and(|wanted| wanted != again) {
            problems.push(format!(
                "{again} attempts at {name} on a used connection, not {reused:?}"
            ));
        }
        if !requests.is_empty() {
            let known: BTreeSet<String> = seen.iter().map(|attempt| request(attempt)).collect();
            let wanted: BTreeSet<String> = if reads_requests(records) {
                requests
                    .iter()
                    .map(|request| fill(request))
                    .collect::<Result<_>>()?
            } else {
                BTreeSet::from(["- - - - -".to_owned()])
            };
            if known != wanted {
                problems.push(format!("the requests at {name} are {known:?}, not {wanted:?}"));
            }
        }
        let retried = seen.iter().filter(|attempt| attempt["retry"].is_object()).count();
        if retries.is_some_and(|wanted| wanted != retried) {
            problems.push(format!(
                "{retried} attempts at {name} are retries, not {retries:?}"
            ));
        }
    }
    Ok(problems)
}

/// Whether the beginnings of requests were read in a trace.
fn reads_requests(records: &[Value]) -> bool {
    let hooks = records.first().and_then(|session| session["hooks"].as_array());
    let mut hooks = hooks.into_iter().flatten();
    hooks.any(|hook| hook["sees"] == "requests" && !hook["how"].is_null())
}

/// An attempt's request as a scenario file spells it.
fn request(attempt: &Value) -> String {
    let fields =
        ["method", "path", "host", "client", "status"].map(|field| match &attempt["request"][field] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => "-".to_owned(),
        });
    fields.join(" ")
}

/// In what an attempt differs from an expectation.
fn differences(expect: &Expect, fill: Fill<'_>, attempt: &Value) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, wanted: Option<&str>, seen: &Value| {
        let is_same = match wanted {
            Some(wanted) => seen == wanted,
            None => seen.is_null(),
        };
        if !is_same {
            differences.push(format!("{what} is {seen}, not {}", wanted.unwrap_or("null")));
        }
    };
    let cause = &attempt["cause"];
    compare("cause", Some(&expect.cause), &cause["id"]);
    compare("confidence", Some(&expect.confidence), &cause["confidence"]);
    compare("outcome", Some(&expect.outcome), &attempt["outcome"]);
    compare("phase", Some(&expect.phase), &attempt["phase"]);
    compare("errno", expect.errno.as_deref(), &attempt["errno"]);
    let mut says = expect.nginx_says.as_deref().map(fill).transpose()?;
    if let Some(raced) = says.as_deref().and_then(says_when_raced)
        && attempt["nginx_says"] == *raced
    {
        says = Some(raced);
    }
    compare("nginx_says", says.as_deref(), &attempt["nginx_says"]);
    if let Some(upstream) = &expect.upstream {
        compare("upstream", Some(upstream), &attempt["upstream"]);
    }
    if let Some(peer) = &expect.peer {
        compare("peer", Some(&fill(peer)?), &attempt["peer"]);
    }
    if let Some(reused) = expect.reused
        && attempt["reused"] != reused
    {
        differences.push(format!("reused is {}, not {reused}", attempt["reused"]));
    }
    let client = &attempt["client"];
    let got = match (client["status"].as_u64(), client["cut"] == true) {
        (Some(status), false) => status.to_string(),
        (Some(status), true) => format!("{status} cut"),
        (None, true) => "cut".to_owned(),
        (None, false) => "nothing".to_owned(),
    };
    if let Some(wanted) = expect.client.as_ref().filter(|wanted| **wanted != got) {
        differences.push(format!("its client got {got}, not {wanted}"));
    }
    for (field, wanted) in &expect.evidence {
        let wanted = match wanted {
            toml::Value::String(text) => Value::String(fill(text)?),
            other => serde_json::to_value(other)?,
        };
        let evidence = cause["evidence"].as_array().map_or(&[][..], Vec::as_slice);
        // A process id comes as text from a name and as a number from the trace.
        let is_same = |seen: &Value| *seen == wanted || wanted.as_str() == Some(&seen.to_string());
        if !evidence.iter().any(|fact| is_same(&fact[field])) {
            differences.push(format!("no evidence has {field} = {wanted}"));
        }
    }
    let also: Vec<&str> = attempt["also"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|cause| cause["id"].as_str())
        .collect();
    for wanted in &expect.also {
        if !also.contains(&wanted.as_str()) {
            differences.push(format!("{wanted} is not among the other causes {also:?}"));
        }
    }
    for unwanted in &expect.not {
        if also.contains(&unwanted.as_str()) {
            differences.push(format!("{unwanted} is named beside the headline"));
        }
    }
    Ok(differences)
}

/// Every line that is an attempt has exactly one attempt, and every attempt that says it is logged has its line.
pub fn lines(seen: &Seen<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut attempts: Vec<&Value> = of_type(seen.records, "attempt")
        .filter(|attempt| !attempt["nginx_says"].is_null())
        .collect();
    // An attempt that claims a line has that one; one that claims none may be any line's that is left.
    let mut left = error_log::attempts(seen.error_log);
    for is_claimed in [true, false] {
        left.retain(|line| {
            let found = attempts
                .iter()
                .position(|attempt| attempt["log"].is_object() == is_claimed && fits(line, attempt, seen));
            found.map(|at| attempts.swap_remove(at)).is_none()
        });
    }
    problems.extend(
        left.iter()
            .map(|line| format!("no attempt for nginx's line: {}", line.line)),
    );
    problems.extend(
        attempts
            .iter()
            .map(|attempt| format!("nginx logged no such line: {}", short(attempt))),
    );
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for attempt in of_type(seen.records, "attempt") {
        if let Some(line) = attempt["log"]["line"].as_str() {
            *lines.entry(line).or_default() += 1;
        }
    }
    for (line, used) in lines {
        let there = seen.error_log.lines().filter(|there| *there == line).count();
        if used > there {
            problems.push(format!(
                "{used} attempts claim a line that nginx logged {there} times: {line}"
            ));
        }
    }
    problems
}

fn fits(line: &AttemptLine, attempt: &Value, seen: &Seen<'_>) -> bool {
    attempt["nginx_says"] == *line.says
        && is_by(attempt, line.worker, seen)
        && line.is_at(attempt["peer"].as_str())
        && attempt["log"]["line"]
            .as_str()
            .is_none_or(|claimed| claimed == line.line)
}

/// Whether a line's worker is the attempt's: nginx writes the number it has in its own namespace.
fn is_by(attempt: &Value, worker: u32, seen: &Seen<'_>) -> bool {
    let outer = attempt["worker"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    outer.is_some_and(|pid| seen.inner_pids.get(&pid).copied().unwrap_or(pid) == worker)
}

/// Healthy requests are all there: nothing was lost silently.
fn healthy(seen: &Seen<'_>) -> Vec<String> {
    let ok = of_type(seen.records, "attempt")
        .filter(|attempt| attempt["outcome"] == "ok")
        .count();
    // Requests under way when the tracer became ready may have begun before it could see them.
    let wanted = usize::try_from(seen.healthy)
        .unwrap_or(usize::MAX)
        .saturating_sub(seen.clients);
    if ok < wanted {
        return vec![format!(
            "{ok} successful attempts in the trace, at least {wanted} happened"
        )];
    }
    Vec::new()
}

/// An attempt in few words.
pub fn short(attempt: &Value) -> String {
    format!(
        "{} → {} {} while {}, cause {} ({}), says {}, also {}, unseen {}",
        attempt["upstream"],
        attempt["peer"],
        attempt["outcome"],
        attempt["phase"],
        attempt["cause"]["id"],
        attempt["cause"]["confidence"],
        attempt["nginx_says"],
        attempt["also"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cause| cause["id"].to_string())
            .collect::<Vec<_>>()
            .join(" "),
        attempt["unseen"],
    )
}
