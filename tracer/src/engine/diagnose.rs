//! Why an attempt failed: every cause is asked, and of those that stand the deepest at `likely` or better is named.
//!
//! Invariant: a cause never comes from nginx's words where the kernel's evidence exists, and what could not be seen
//! (a hook that is missing, records that were lost) lowers the confidence and is said.

use std::collections::BTreeMap;

use crate::{
    engine::{
        correlate::Resolved,
        message::Said,
        surroundings::{SECOND, Surroundings},
    },
    event::{Balancing, Errno, Exchange, Ktime, Limits, Line, Peer, Pid, Question},
    model::{Attempt, Confidence, Evidence, FieldValue, Outcome, Phase, Verdict},
};

pub mod causes;

/// A root cause: how it is recognised and what is said about it.
pub struct Cause {
    /// The stable id, which users search for.
    pub id: &'static str,
    /// One sentence: what happened.
    pub title: &'static str,
    /// Causes that this one explains: they are its consequences.
    pub explains: &'static [&'static str],
    /// Outcomes it can have; it is asked about no other.
    pub outcomes: &'static [Outcome],
    /// What nginx logs for it.
    pub nginx_logs: &'static str,
    /// How it is recognised.
    pub recognised: &'static str,
    /// Hooks without which its proof is incomplete.
    pub needs: &'static [&'static str],
    /// Causes that look the same in nginx's log.
    pub look_alikes: &'static [&'static str],
    /// What the reader can do.
    pub remedy: &'static str,
    /// Whether it stands for an attempt.
    pub check: fn(&Subject<'_>, &Surroundings) -> Check,
}

/// The attempt a check is about.
pub struct Subject<'a> {
    /// The attempt as far as it is known.
    pub attempt: &'a Attempt,
    /// The kernel's record; `None` for attempts without a socket.
    pub exchange: Option<&'a Exchange>,
    /// nginx's line as it was heard at its source.
    pub line: Option<&'a Line>,
    /// What nginx said, from its source or its log file.
    pub said: Option<&'a Said>,
    /// nginx closed the client's connection right after: when, and whether the client had reset it.
    pub client_left: Option<(Ktime, bool)>,
    /// Timeouts that apply, where they are certain.
    pub limits: &'a Limits,
    /// The configured names that the attempt's address may come from; filled in for attempts that failed.
    pub resolved: &'a Resolved,
    /// Every peer of the attempt's upstream, and when nginx leaves it out, for attempts without a peer.
    pub upstream_peers: &'a BTreeMap<Peer, Option<Balancing>>,
    /// Those that share a `zone` with its worker, by master and when that read its files; likewise.
    pub siblings: Option<(Pid, Ktime)>,
    /// The master of its worker, for attempts without a socket.
    pub master: Option<Pid>,
    /// More evidence may still come; later, a check has to decide with what there is.
    pub may_wait: bool,
}

impl<'a> Subject<'a> {
    /// The record of a TCP exchange that never got an answer to its SYN.
    pub fn connecting(&self) -> Option<&'a Exchange> {
        self.exchange.filter(|exchange| {
            matches!(exchange.peer, Peer::Tcp(_)) && !crate::engine::socket::is_established(exchange)
        })
    }

    /// The record of an exchange on a connection that was up.
    pub fn connected(&self) -> Option<&'a Exchange> {
        self.exchange
            .filter(|exchange| crate::engine::socket::is_established(exchange))
    }

    /// nginx's line when the whole attempt is that line.
    pub fn lone(&self) -> Option<&'a Said> {
        self.said.filter(|said| said.meaning.stands_alone())
    }

    /// The unix path, for attempts at one.
    pub fn path(&self) -> Option<&'a str> {
        match &self.attempt.peer {
            Some(Peer::Unix(path)) => Some(path),
            _ => None,
        }
    }

    /// The TCP address, for attempts at one.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        match self.attempt.peer {
            Some(Peer::Tcp(address)) => Some(address),
            _ => None,
        }
    }

    /// The errno's number.
    pub fn errno(&self) -> Option<i32> {
        self.attempt.errno.map(|errno| errno.0)
    }

    /// `NotYet` while waiting is worth it, `otherwise` after that.
    pub fn wait_or(&self, otherwise: Check) -> Check {
        if self.may_wait { Check::NotYet } else { otherwise }
    }
}

/// What a check says.
#[derive(Debug)]
pub enum Check {
    /// It does not stand.
    No,
    /// Evidence that decides may still come.
    NotYet,
    /// The host has to be asked; until it answers, `NotYet`.
    Ask(Question),
    /// It stands.
    Stands(Stand),
}

/// A cause that stands.
#[derive(Clone, Debug)]
pub struct Stand {
    /// How sure.
    pub confidence: Confidence,
    /// One or two sentences about this attempt.
    pub summary: String,
    /// What to do about this attempt; `None`: the cause's own remedy.
    pub remedy: Option<String>,
    /// The facts.
    pub evidence: Vec<Evidence>,
    /// What of this could not be seen.
    pub unseen: Vec<String>,
}

impl Stand {
    /// Stands with this confidence, sentence and facts.
    pub fn new(confidence: Confidence, summary: impl Into<String>, evidence: Vec<Evidence>) -> Self {
        Self {
            confidence,
            summary: summary.into(),
            remedy: None,
            evidence,
            unseen: Vec::new(),
        }
    }

    /// The kernel told us.
    pub fn confirmed(summary: impl Into<String>, evidence: Vec<Evidence>) -> Self {
        Self::new(Confidence::Confirmed, summary, evidence)
    }

    /// The pattern fits, and its siblings were ruled out.
    pub fn likely(summary: impl Into<String>, evidence: Vec<Evidence>) -> Self {
        Self::new(Confidence::Likely, summary, evidence)
    }

    /// Says what to do about this very attempt.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Lowers a confirmed cause to likely because something could not be seen.
    #[must_use]
    pub fn without(mut self, unseen: impl Into<String>) -> Self {
        self.confidence = self.confidence.min(Confidence::Likely);
        self.unseen.push(unseen.into());
        self
    }
}

impl From<Stand> for Check {
    fn from(stand: Stand) -> Self {
        Self::Stands(stand)
    }
}

/// A fact with its moment.
pub fn fact(at: impl Into<Option<Ktime>>, source: &'static str, text: impl Into<String>) -> Evidence {
    Evidence {
        at: at.into(),
        source,
        text: text.into(),
        fields: BTreeMap::new(),
    }
}

impl Evidence {
    /// Adds a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: impl Into<i64>) -> Self {
        self.fields.insert(name, FieldValue::Number(value.into()));
        self
    }

    /// Adds a count of bytes or things.
    #[must_use]
    pub fn count(self, name: &'static str, value: u64) -> Self {
        self.number(name, i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.insert(name, FieldValue::Text(value.into()));
        self
    }

    /// Adds a claim.
    #[must_use]
    pub fn flag(mut self, name: &'static str, value: bool) -> Self {
        self.fields.insert(name, FieldValue::Flag(value));
        self
    }
}

/// What asking every cause came to.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// The headline; `None` while nothing stands.
    pub headline: Option<Verdict>,
    /// The others that stand.
    pub also: Vec<Verdict>,
    /// What could not be seen.
    pub unseen: Vec<String>,
    /// Questions for the host.
    pub questions: Vec<Question>,
    /// The headline is confirmed and nothing that may still come can explain it.
    pub is_settled: bool,
}

/// What can be told of a connection that was up where nobody sees what was sent and read on it.
const STANDS_WITHOUT_BYTES: [&str; 3] = ["backend-died", "backend-restarting", "worker-died"];

/// Asks every cause about an attempt.
pub fn diagnose(subject: &Subject<'_>, around: &Surroundings) -> Diagnosis {
    let mut standing: Vec<(&'static Cause, Stand)> = Vec::new();
    let mut open: Vec<&'static Cause> = Vec::new();
    let mut diagnosis = Diagnosis::default();
    let is_blind = !around.sees("bytes") && subject.connected().is_some();
    // Before anything is concluded from packets it has to be known whose they were.
    let asks_first = subject
        .exchange
        .and_then(|exchange| around.whose_packets(exchange));
    if let Some(question) = asks_first.filter(|_| subject.may_wait) {
        diagnosis.questions.push(question);
        return diagnosis;
    }
    for cause in causes::ALL
        .iter()
        .copied()
        .filter(|cause| cause.outcomes.contains(&subject.attempt.outcome))
        .filter(|cause| !is_blind || STANDS_WITHOUT_BYTES.contains(&cause.id))
    {
        match (cause.check)(subject, around) {
            Check::No => {}
            Check::NotYet => open.push(cause),
            Check::Ask(question) => {
                open.push(cause);
                if !diagnosis.questions.contains(&question) {
                    diagnosis.questions.push(question);
                }
            }
            Check::Stands(stand) => standing.push((cause, lowered_by_hooks(cause, stand, around))),
        }
    }
    lower_by_losses(subject, around, &mut standing);
    lower_by_unheard_timer(subject, around, &mut standing);

    let Some(headline) = deepest(&standing) else {
        diagnosis.also = standing
            .into_iter()
            .map(|(cause, stand)| verdict(cause, stand, &mut Vec::new()))
            .collect();
        return diagnosis;
    };
    let (cause, stand) = standing.remove(headline);
    let is_open = open.iter().any(|open| explains(open, cause.id));
    diagnosis.is_settled = stand.confidence == Confidence::Confirmed && !is_open;
    diagnosis.headline = Some(verdict(cause, stand, &mut diagnosis.unseen));
    diagnosis.also = standing
        .into_iter()
        .map(|(cause, stand)| verdict(cause, stand, &mut Vec::new()))
        .collect();
    diagnosis
}

/// The cause that is named: at least likely, explained by no other such; among several the surest, then the one that
/// explains most.
fn deepest(standing: &[(&'static Cause, Stand)]) -> Option<usize> {
    let is_likely = |stand: &Stand| stand.confidence >= Confidence::Likely;
    let is_explained = |cause: &Cause| {
        standing
            .iter()
            .any(|(other, stand)| is_likely(stand) && other.id != cause.id && explains(other, cause.id))
    };
    standing
        .iter()
        .enumerate()
        .filter(|(_, (cause, stand))| is_likely(stand) && !is_explained(cause))
        // `max_by_key` takes the last of equals; reversed, the first in the list.
        .rev()
        .max_by_key(|(_, (cause, stand))| (stand.confidence, cause.explains.len()))
        .map(|(index, _)| index)
}

/// Whether one cause explains another, directly or through what it explains.
pub fn explains(cause: &Cause, id: &str) -> bool {
    let mut to_visit: Vec<&'static str> = cause.explains.to_vec();
    let mut seen: Vec<&'static str> = Vec::new();
    while let Some(next) = to_visit.pop() {
        if next == id {
            return true;
        }
        if seen.contains(&next) {
            continue;
        }
        seen.push(next);
        if let Some(cause) = causes::find(next) {
            to_visit.extend(cause.explains);
        }
    }
    false
}

fn lowered_by_hooks(cause: &Cause, mut stand: Stand, around: &Surroundings) -> Stand {
    for hook in cause.needs.iter().filter(|hook| !around.sees(hook)) {
        stand = stand.without(around.without(hook));
    }
    stand
}

fn lower_by_losses(subject: &Subject<'_>, around: &Surroundings, standing: &mut [(&'static Cause, Stand)]) {
    let attempt = subject.attempt;
    let from = Ktime(attempt.began_at.0.saturating_sub(SECOND));
    let to = Ktime(attempt.ended_at.0.saturating_add(SECOND / 3));
    let losses = around.losses(from, to);
    if losses.is_empty() {
        return;
    }
    // What neither nginx nor the kernel complained of may have succeeded, with the record of its answer among the lost ones.
    let is_complaint = attempt.nginx_says.is_some() || attempt.errno.is_some() || !around.sees("nginx-log");
    let most = if is_complaint {
        Confidence::Likely
    } else {
        Confidence::Possible
    };
    for (_, stand) in standing.iter_mut() {
        stand.confidence = stand.confidence.min(most);
        stand
            .unseen
            .push("records were lost around this attempt; what they said is not known".to_owned());
    }
}

/// Where nginx was not heard and its limits are not known, that a timer of its own ended the wait is a guess. Before
/// the connection is up the causes are about the SYN, whoever lost patience.
fn lower_by_unheard_timer(
    subject: &Subject<'_>,
    around: &Surroundings,
    standing: &mut [(&'static Cause, Stand)],
) {
    let is_kernels = subject
        .exchange
        .is_none_or(|exchange| exchange.error == Some(Errno(110)));
    let limit = match subject.attempt.phase {
        Phase::Resolving | Phase::Connecting | Phase::Handshaking => return,
        Phase::Sending => subject.limits.send_timeout_ms,
        Phase::Waiting | Phase::Reading | Phase::Idle => subject.limits.read_timeout_ms,
    };
    if subject.attempt.outcome != Outcome::TimedOut || subject.said.is_some() || is_kernels || limit.is_some()
    {
        return;
    }
    for (_, stand) in standing.iter_mut() {
        stand.confidence = stand.confidence.min(Confidence::Likely);
        stand.unseen.push(format!(
            "{}; nor is nginx's timer known",
            around.without("nginx-log")
        ));
    }
}

fn verdict(cause: &Cause, stand: Stand, unseen: &mut Vec<String>) -> Verdict {
    let mut evidence = stand.evidence;
    // Facts without a moment (limits, permissions) come last.
    evidence.sort_by_key(|fact| fact.at.map_or(u64::MAX, |at| at.0));
    unseen.extend(stand.unseen);
    Verdict {
        id: cause.id,
        confidence: stand.confidence,
        summary: stand.summary,
        remedy: stand.remedy.unwrap_or_else(|| cause.remedy.to_owned()),
        evidence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every two causes that one attempt can have, the deeper one is named though it is less sure; of two that have
    /// nothing to do with each other, the surer.
    #[test]
    fn the_headline_is_the_deeper_of_every_two_causes() {
        let stand = |confidence| Stand::new(confidence, "", vec![]);
        let named = |one: (&'static Cause, Confidence), other: (&'static Cause, Confidence)| {
            let standing = [(one.0, stand(one.1)), (other.0, stand(other.1))];
            deepest(&standing).map(|index| standing[index].0.id)
        };
        let causes = || causes::ALL.iter().copied();
        let pairs = causes().flat_map(|one| causes().map(move |other| (one, other)));
        for (one, other) in pairs.filter(|(one, other)| one.id != other.id) {
            if !one
                .outcomes
                .iter()
                .any(|outcome| other.outcomes.contains(outcome))
            {
                continue;
            }
            let is_deeper = explains(one, other.id);
            assert!(
                !(is_deeper && explains(other, one.id)),
                "{} and {} explain each other",
                one.id,
                other.id
            );
            let (likely, confirmed) = (Confidence::Likely, Confidence::Confirmed);
            let expected = if is_deeper { one.id } else { other.id };
            assert_eq!(
                named((one, likely), (other, confirmed)),
                Some(expected),
                "{} and {}",
                one.id,
                other.id
            );
            assert_eq!(named((other, confirmed), (one, likely)), Some(expected));
            // What is only possible is never the headline.
            assert_eq!(
                named((one, Confidence::Possible), (other, likely)),
                Some(other.id)
            );
        }
    }
}
