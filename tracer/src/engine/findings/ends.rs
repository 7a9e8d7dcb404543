//! Failures that each follow the end of a process: a backend that is restarted, crashes or is killed again and again.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    engine::{
        diagnose::fact,
        text::{counted, signal_name},
    },
    event::Pid,
    model::{Attempt, Confidence, Evidence, FieldValue, Finding},
};

/// How many upstreams are watched.
const UPSTREAMS: usize = 1024;
/// Names of programs of each, processes of each name, and ways in which they ended.
const NAMES: usize = 8;
const PROCESSES: usize = 1024;
const WAYS: usize = 8;
/// Fewer ends than these may be a deploy.
const ENOUGH: usize = 3;

/// The ends of processes that explain failures, by master and upstream.
#[derive(Debug, Default)]
pub struct Ends {
    upstreams: BTreeMap<(Pid, String), OfUpstream>,
}

#[derive(Debug, Default)]
struct OfUpstream {
    failures: u64,
    programs: BTreeMap<String, Program>,
}

#[derive(Debug, Default)]
struct Program {
    failures: u64,
    pids: BTreeSet<i64>,
    ways: BTreeMap<String, u64>,
    oom: bool,
    /// Who sent the last signal.
    sender: Option<String>,
}

impl Ends {
    /// Takes in a finished attempt of a worker of `master`.
    pub fn add(&mut self, attempt: &Attempt, master: Pid) {
        let (true, Some(upstream)) = (attempt.outcome.is_failure(), &attempt.upstream) else {
            return;
        };
        let key = (master, upstream.clone());
        if self.upstreams.len() >= UPSTREAMS && !self.upstreams.contains_key(&key) {
            return;
        }
        let of = self.upstreams.entry(key).or_default();
        of.failures += 1;
        let cause = attempt
            .cause
            .as_ref()
            .filter(|cause| cause.confidence == Confidence::Confirmed);
        if let Some(end) = cause.and_then(|cause| cause.evidence.iter().find_map(End::of)) {
            of.add(&end);
        }
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        let programs = self.upstreams.values().flat_map(|of| of.programs.values());
        self.upstreams.len() + programs.map(|program| program.pids.len()).sum::<usize>()
    }

    /// The patterns that stand; `shown` is how an upstream of a master is called.
    pub fn findings(&self, shown: impl Fn(Pid, &str) -> String) -> Vec<(Pid, Finding)> {
        let of = |((master, upstream), of): (&(Pid, String), &OfUpstream)| {
            let (comm, program) = of.programs.iter().max_by_key(|(_, program)| program.failures)?;
            let is_pattern = program.pids.len() >= ENOUGH && program.failures * 10 >= of.failures * 8;
            is_pattern.then(|| {
                let finding = program.finding(comm, upstream, &shown(*master, upstream), of.failures);
                (*master, finding)
            })
        };
        self.upstreams.iter().filter_map(of).collect()
    }
}

impl OfUpstream {
    fn add(&mut self, end: &End<'_>) {
        if self.programs.len() >= NAMES && !self.programs.contains_key(end.comm) {
            return;
        }
        let program = self.programs.entry(end.comm.to_owned()).or_default();
        program.failures += 1;
        program.oom |= end.oom;
        program.sender = end.sender.map(str::to_owned);
        let is_new = program.pids.len() < PROCESSES && program.pids.insert(end.pid);
        if is_new && (program.ways.len() < WAYS || program.ways.contains_key(&end.way)) {
            *program.ways.entry(end.way.clone()).or_default() += 1;
        }
    }
}

impl Program {
    fn finding(&self, comm: &str, upstream: &str, shown: &str, failures: u64) -> Finding {
        let n = self.pids.len() as u64;
        let ways: Vec<String> = self
            .ways
            .iter()
            .map(|(way, times)| format!("{way}: {times}"))
            .collect();
        let ways = ways.join(", ");
        let remedy = if self.oom {
            format!(
                "the OOM killer takes {comm}: raise the memory limit of its control group, or find what in it takes so much"
            )
        } else if let Some(sender) = &self.sender {
            format!(
                "see why {sender} ends {comm}; where that has to be, start the next process before the last one ends, or have \
                 another server in {upstream} and let proxy_next_upstream try it"
            )
        } else {
            format!("see in the log of {comm} why it ends; have another server in {upstream} meanwhile")
        };
        Finding {
            id: "failures-follow-ends-of-a-process",
            about: format!("{shown}: {comm}"),
            at: None,
            summary: format!(
                "{} of {} of {shown} follow the end of a process of {comm}: {n} of them ended ({ways})",
                self.failures,
                counted(failures, "failure")
            ),
            remedy,
            attempts: self.failures,
            evidence: vec![
                fact(None, "process", format!("{n} processes of {comm} ended: {ways}"))
                    .text("upstream", upstream)
                    .text("comm", comm)
                    .count("ends", n)
                    .count("failures", self.failures),
            ],
        }
    }
}

/// The end of a process, as the evidence of a cause tells it.
struct End<'a> {
    pid: i64,
    comm: &'a str,
    way: String,
    oom: bool,
    sender: Option<&'a str>,
}

impl<'a> End<'a> {
    fn of(fact: &'a Evidence) -> Option<Self> {
        let number = |name| match fact.fields.get(name) {
            Some(FieldValue::Number(number)) => Some(*number),
            _ => None,
        };
        let text = |name| match fact.fields.get(name) {
            Some(FieldValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        // Only the end of a process says whether it was for want of memory.
        let Some(FieldValue::Flag(oom)) = fact.fields.get("oom") else {
            return None;
        };
        let sender = text("signalled_by_comm").or(text("told_by_comm"));
        let way = match (number("signal"), number("exit_code")) {
            (Some(_), _) if *oom => "the OOM killer".to_owned(),
            (Some(signal), _) => {
                u8::try_from(signal).map_or_else(|_| format!("signal {signal}"), signal_name)
            }
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => return None,
        };
        Some(Self {
            pid: number("pid")?,
            comm: text("comm")?,
            way,
            oom: *oom,
            sender,
        })
    }
}
