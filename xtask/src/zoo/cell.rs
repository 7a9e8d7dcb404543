//! One cell of the scoreboard: what the tracer named of one fault on one kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xtask::{
    scenario::{
        Scenario, judge,
        report::{Report, Went},
    },
    traced::{not_ok, of_type},
};

/// The cause of scenarios in which nothing fails.
pub const HEALTHY: &str = "healthy";
/// How much of what went wrong a cell says.
const MAX_WHY: usize = 300;

/// What a fault was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// By its name.
    Right,
    /// Seen, and not named, or only by a consequence of the real cause.
    Unknown,
    /// This kernel or machine cannot make the fault.
    NotRun,
    /// Not in the trace.
    Unseen,
    /// By another name.
    Wrong,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Right => "right",
            Self::Unknown => "unknown",
            Self::NotRun => "not-run",
            Self::Unseen => "unseen",
            Self::Wrong => "wrong",
        })
    }
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What must be named; [`HEALTHY`] where nothing fails.
    pub cause: String,
    /// The scenario.
    pub scenario: String,
    /// The column: `host`, or a guest's kernel by its short name.
    pub column: String,
    /// `host`, or the guest's kernel as `uname -r` says.
    pub kernel: String,
    /// Where the peer is: `cargo xtask zoo --kernel COLUMN SCENARIO@PLACEMENT` where it is not the scenario's first.
    pub placement: String,
    /// How it was called.
    pub verdict: Verdict,
    /// What was named, the most frequent name first.
    pub named: Vec<String>,
    /// The lowest confidence with which the right name was said.
    pub confidence: Option<String>,
    /// Hooks that this kernel lacked.
    pub hooks: Vec<String>,
    /// What was not as expected, or why it was not run.
    pub why: Option<String>,
    /// The commit that was checked out.
    #[serde(default)]
    pub commit: String,
}

impl Cell {
    /// Same scenario, same placement, same kernel.
    pub fn is_in_place_of(&self, other: &Self) -> bool {
        (&self.scenario, &self.placement, &self.column) == (&other.scenario, &other.placement, &other.column)
    }

    /// Whether it is what came of this scenario.
    pub fn is_of(&self, scenario: &Scenario) -> bool {
        (self.scenario.as_str(), self.placement.as_str()) == (scenario.file(), scenario.placement.name())
    }

    /// Less is right than before; a cell that cannot be run any more is worse, too. How sure a name is says something
    /// only beside the same name: where a scenario's timing decides which of its true names is given, each has a
    /// confidence of its own.
    pub fn is_worse_than(&self, before: &Self) -> bool {
        let is_less_sure = self.named == before.named && self.rank() < before.rank();
        self.verdict > before.verdict || (self.verdict == before.verdict && is_less_sure)
    }

    /// Its verdict with what was named, how surely: `right, keepalive-race, confirmed`.
    pub fn in_short(&self) -> String {
        let verdict = self.verdict.to_string();
        let named = self.named.iter().map(String::as_str);
        let words: Vec<&str> = [verdict.as_str()]
            .into_iter()
            .chain(named)
            .chain(self.confidence.as_deref())
            .collect();
        words.join(", ")
    }

    /// Where its kernel stands among the columns.
    pub fn order(&self) -> usize {
        super::page::columns()
            .iter()
            .position(|column| *column == self.column)
            .unwrap_or(usize::MAX)
    }

    fn rank(&self) -> usize {
        rank(self.confidence.as_deref())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<8} {:<5} {}, {}",
            self.verdict.to_string(),
            self.column,
            self.scenario,
            self.placement
        )?;
        if self.verdict != Verdict::Right {
            write!(f, ": {}", self.named.join(", "))?;
        }
        match &self.why {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

fn rank(confidence: Option<&str>) -> usize {
    ["possible", "likely", "confirmed"]
        .iter()
        .position(|known| Some(*known) == confidence)
        .map_or(0, |at| at + 1)
}

/// What each cause explains, as the page of causes says.
#[derive(Debug, Default)]
pub struct Explained(BTreeMap<String, BTreeSet<String>>);

impl Explained {
    /// Reads the page of causes.
    pub fn of(page: &str) -> Self {
        let mut explained: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut cause = "";
        for line in page.lines() {
            if let Some(id) = line.strip_prefix("### ") {
                cause = id;
            } else if let Some(links) = line.strip_prefix("- **Explains**: ") {
                // `[id](#id), [id](#id)`
                let ids = links.split(", ").map(|link| link.trim_start_matches('['));
                let ids = ids.filter_map(|link| link.split(']').next()).map(str::to_owned);
                explained.entry(cause.to_owned()).or_default().extend(ids);
            }
        }
        Self(explained)
    }

    /// What a cause explains, and what that explains.
    fn by<'a>(&'a self, cause: &'a str) -> BTreeSet<&'a str> {
        let mut all = BTreeSet::new();
        let mut next = vec![cause];
        while let Some(id) = next.pop() {
            let explained = self.0.get(id).into_iter().flatten().map(String::as_str);
            next.extend(explained.filter(|id| all.insert(*id)));
        }
        all
    }
}

/// Where a run was made.
#[derive(Clone, Copy, Debug)]
pub struct Where<'a> {
    /// The column.
    pub column: &'a str,
    /// The kernel.
    pub kernel: &'a str,
    /// The commit.
    pub commit: &'a str,
}

/// Judges what a run left behind; `records` is empty where there is no trace.
pub fn judge(
    at: Where<'_>,
    scenario: &Scenario,
    report: &Report,
    records: &[Value],
    explained: &Explained,
) -> Cell {
    let wanted: BTreeSet<&str> = scenario
        .expect
        .iter()
        .map(|expect| expect.cause.as_str())
        .collect();
    let consequences: BTreeSet<&str> = wanted.iter().flat_map(|cause| explained.by(cause)).collect();
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut confidence: Option<&str> = None;
    for attempt in not_ok(records) {
        let id = attempt["cause"]["id"].as_str().unwrap_or("unknown");
        *names.entry(id).or_default() += 1;
        let said = attempt["cause"]["confidence"].as_str();
        if wanted.contains(id) && (confidence.is_none() || rank(said) < rank(confidence)) {
            confidence = said;
        }
    }
    let n_failed: usize = names.values().sum();
    let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
    for expect in &scenario.expect {
        if !expect.optional {
            *expected.entry(&expect.cause).or_default() += expect.attempts.unwrap_or(1);
        }
    }
    let n_expected: usize = expected.values().sum();
    let seen = |id: &str| names.get(id).copied().unwrap_or_default();
    let short: Vec<&str> = expected
        .iter()
        .filter(|(id, n)| seen(id) < **n)
        .map(|(id, _)| *id)
        .collect();
    let instead = || {
        let more = |id: &&&str| seen(id) > expected.get(**id).copied().unwrap_or_default();
        names.keys().filter(more)
    };
    let is_consequence = |id: &&str| short.iter().any(|cause| explained.by(cause).contains(*id));
    let is_false = |id: &&str| !wanted.contains(id) && !consequences.contains(id) && *id != "unknown";
    let is_miscounted = report.why.iter().any(|why| judge::is_miscount(why));
    let verdict = if report.went == Went::Skipped {
        Verdict::NotRun
    } else if names.keys().any(|id| wanted.is_empty() || is_false(id)) {
        Verdict::Wrong
    } else if records.is_empty() || n_failed < n_expected || report.went == Went::Error {
        Verdict::Unseen
    } else if names.keys().any(|id| !wanted.contains(id)) {
        Verdict::Unknown
    } else if short.is_empty() && is_miscounted {
        Verdict::Unseen
    } else if short.is_empty() {
        Verdict::Right
    } else if instead().all(is_consequence) {
        // What is expected of others stands for what explains it.
        Verdict::Unknown
    } else {
        // Each name is one of those expected, but of another attempt.
        Verdict::Wrong
    };
    let mut named: Vec<(&str, usize)> = names.into_iter().collect();
    named.sort_by_key(|(id, n)| (std::cmp::Reverse(*n), *id));
    let mut why = report.why.join("; ");
    if let Some((at, _)) = why.char_indices().nth(MAX_WHY) {
        why.truncate(at);
        why.push('…');
    }
    Cell {
        cause: scenario
            .expect
            .first()
            .map_or(HEALTHY, |expect| expect.cause.as_str())
            .to_owned(),
        scenario: scenario.file().to_owned(),
        column: at.column.to_owned(),
        kernel: at.kernel.to_owned(),
        placement: scenario.placement.name().to_owned(),
        verdict,
        named: named.into_iter().map(|(id, _)| id.to_owned()).collect(),
        confidence: confidence.map(str::to_owned),
        hooks: missing(records),
        why: (!why.is_empty()).then_some(why),
        commit: at.commit.to_owned(),
    }
}

/// The hooks that the trace's session says are not there.
fn missing(records: &[Value]) -> Vec<String> {
    let hooks = of_type(records, "session")
        .next()
        .and_then(|session| session["hooks"].as_array());
    hooks
        .into_iter()
        .flatten()
        .filter(|hook| hook["how"].is_null())
        .filter_map(|hook| hook["sees"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scenario(expect: &str) -> Scenario {
        let text = format!("about = \"x\"\n[lab]\nnginx.http = \"\"\nsteps = []\n{expect}",);
        Scenario::parse("no-listener", &text).unwrap()
    }

    fn failing() -> Scenario {
        scenario(
            "[[expect]]\nattempts = 2\ncause = \"backend-died\"\nconfidence = \"confirmed\"\noutcome = \"closed\"\n\
             phase = \"sending\"\n",
        )
    }

    fn trace(named: &[(&str, &str)]) -> Vec<Value> {
        let hooks = json!([{"sees": "accept", "how": null}, {"sees": "bytes", "how": "tp_btf"}]);
        let mut records = vec![json!({"type": "session", "hooks": hooks})];
        records.extend(named.iter().map(|(id, confidence)| {
            json!({"type": "attempt", "outcome": "closed", "cause": {"id": id, "confidence": confidence}})
        }));
        records
    }

    fn report(went: Went, why: &[&str]) -> Report {
        Report {
            scenario: "no-listener".to_owned(),
            went,
            why: why.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn judged(scenario: &Scenario, report: &Report, records: &[Value]) -> Cell {
        let at = Where {
            column: "6.1",
            kernel: "6.1.0-56-amd64",
            commit: "c254e18",
        };
        let page = "### backend-died\n\n- **Explains**: [closed-without-response](#closed-without-response), [x](#x)\n";
        judge(at, scenario, report, records, &Explained::of(page))
    }

    fn verdict(scenario: &Scenario, named: &[(&str, &str)]) -> Verdict {
        judged(scenario, &report(Went::Wrong, &[]), &trace(named)).verdict
    }

    #[test]
    fn a_cell_is_judged_by_the_names_in_its_trace() {
        let right = ("backend-died", "confirmed");
        assert_eq!(verdict(&failing(), &[right, right]), Verdict::Right);
        assert_eq!(verdict(&failing(), &[right]), Verdict::Unseen);
        assert_eq!(
            verdict(&failing(), &[right, ("unknown", "possible")]),
            Verdict::Unknown
        );
        // What the real cause explains is true.
        let consequence = ("closed-without-response", "confirmed");
        assert_eq!(verdict(&failing(), &[right, consequence]), Verdict::Unknown);
        assert_eq!(
            verdict(&failing(), &[right, right, ("keepalive-race", "likely")]),
            Verdict::Wrong
        );
        // Also where others are expected to have that name.
        let both = scenario(
            "[[expect]]\nattempts = 1\ncause = \"backend-died\"\nconfidence = \"confirmed\"\noutcome = \"closed\"\n\
             phase = \"waiting\"\n[[expect]]\nattempts = 1\ncause = \"closed-without-response\"\n\
             confidence = \"confirmed\"\noutcome = \"closed\"\nphase = \"waiting\"\n",
        );
        assert_eq!(verdict(&both, &[right, consequence]), Verdict::Right);
        assert_eq!(verdict(&both, &[consequence, consequence]), Verdict::Unknown);
        assert_eq!(verdict(&both, &[right, right]), Verdict::Wrong);
        assert_eq!(verdict(&scenario(""), &[]), Verdict::Right);
        let miscounted = ["2 successful attempts at app, not 7 to 7"];
        assert_eq!(
            judged(&scenario(""), &report(Went::Wrong, &miscounted), &trace(&[])).verdict,
            Verdict::Unseen
        );
        assert_eq!(verdict(&scenario(""), &[("unknown", "possible")]), Verdict::Wrong);
    }

    #[test]
    fn a_cell_says_what_was_named_how_surely_and_what_the_kernel_lacked() {
        let named = [("backend-died", "likely"), ("backend-died", "confirmed")];
        let cell = judged(&failing(), &report(Went::Wrong, &["less sure"]), &trace(&named));
        assert_eq!(cell.named, ["backend-died"]);
        assert_eq!(cell.confidence.as_deref(), Some("likely"));
        assert_eq!(cell.hooks, ["accept"]);
        assert_eq!(cell.why.as_deref(), Some("less sure"));
        let surer = Cell {
            confidence: Some("confirmed".to_owned()),
            ..cell.clone()
        };
        assert!(cell.is_worse_than(&surer) && !surer.is_worse_than(&cell));
        let another = Cell {
            named: vec!["listener-died".to_owned()],
            ..surer
        };
        assert!(!cell.is_worse_than(&another) && !another.is_worse_than(&cell));
    }

    #[test]
    fn what_cannot_be_run_says_why_and_what_left_no_trace_is_unseen() {
        let skipped = judged(&failing(), &report(Went::Skipped, &["no tun"]), &[]);
        assert_eq!(
            (skipped.verdict, skipped.why.as_deref()),
            (Verdict::NotRun, Some("no tun"))
        );
        let failed = judged(&failing(), &report(Went::Error, &["no ready file"]), &[]);
        assert_eq!(failed.verdict, Verdict::Unseen);
        assert!(failed.is_worse_than(&skipped));
    }
}
