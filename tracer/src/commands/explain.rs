//! `tracer explain`: what the causes mean.

use std::fmt::Write;

use super::{Status, Stop, find_cause, print};
use crate::{
    cli::ExplainArgs,
    engine::diagnose::{Cause, causes},
    model::Outcome,
    view::{
        Look,
        text::{pad, width, wrap},
    },
};

/// Runs the command.
pub fn run(args: &ExplainArgs) -> Result<Status, Stop> {
    let look = Look::of_stdout();
    let text = match &args.cause {
        Some(id) => one(find_cause(id)?, &look),
        None => all(&look),
    };
    print(&text)?;
    Ok(Status::Ran)
}

/// The causes by family: what happened to the attempt. Causes of several outcomes stand with their first one.
#[must_use]
pub fn families() -> Vec<(&'static str, Vec<&'static Cause>)> {
    let mut families: Vec<_> = Outcome::ALL
        .iter()
        .map(|outcome| {
            let causes = causes::ALL
                .iter()
                .copied()
                .filter(|cause| !is_any(cause) && cause.outcomes.first() == Some(outcome))
                .collect::<Vec<_>>();
            (outcome.name(), causes)
        })
        .collect();
    families.push((
        "any outcome",
        causes::ALL
            .iter()
            .copied()
            .filter(|cause| is_any(cause))
            .collect(),
    ));
    families.retain(|(_, causes)| !causes.is_empty());
    families
}

/// Causes that fit nearly every outcome belong to no family.
fn is_any(cause: &Cause) -> bool {
    cause.outcomes.is_empty() || cause.outcomes.len() > Outcome::ALL.len() / 2
}

fn all(look: &Look) -> String {
    let style = look.style();
    let columns = causes::ALL.iter().map(|cause| width(cause.id)).max().unwrap_or(0);
    let margin = columns + 4;
    let mut out = String::from("Why an attempt fails, by what happened to it. More: tracer explain CAUSE\n");
    for (family, causes) in families() {
        let _ = writeln!(out, "\n{}", style.strong(&family.replace('-', " ")));
        for cause in causes {
            for (number, line) in wrap(cause.title, look.measure() - margin).iter().enumerate() {
                let id = if number == 0 { cause.id } else { "" };
                let gap = margin - 2 - width(id);
                let _ = writeln!(out, "  {}{:gap$}{line}", style.cause(id), "");
            }
        }
    }
    out
}

fn one(cause: &Cause, look: &Look) -> String {
    let style = look.style();
    let mut out = format!("{}\n", style.cause(cause.id));
    for line in wrap(cause.title, look.measure() - 2) {
        let _ = writeln!(out, "  {line}");
    }
    out.push('\n');
    let mut label = |name: &str, text: &str, paint: &dyn Fn(&str) -> String| {
        for (number, line) in wrap(text, look.measure() - 17).iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let name = style.dim(&pad(&format!("  {name}"), 17));
            let _ = writeln!(out, "{name}{}", paint(line));
        }
    };
    let plain = |text: &str| text.to_owned();
    label("nginx logs", cause.nginx_logs, &plain);
    label("recognised by", cause.recognised, &plain);
    if !cause.needs.is_empty() {
        label("needs hooks", &cause.needs.join(", "), &plain);
    }
    if !cause.explains.is_empty() {
        label("explains", &cause.explains.join(", "), &plain);
    }
    for (number, id) in cause.look_alikes.iter().enumerate() {
        let name = if number == 0 { "looks alike" } else { "" };
        let title = causes::find(id).map_or("", |other| other.title);
        label(name, &format!("{id}: {title}"), &plain);
    }
    label("what to do", cause.remedy, &|text| style.remedy(text));
    out
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn look() -> Look {
        Look {
            width: 80,
            colour: false,
            zone: TimeZone::UTC,
        }
    }

    #[test]
    fn every_cause_is_listed_once() {
        let listed = all(&look());
        for cause in causes::ALL {
            let lines = listed
                .lines()
                .filter(|line| line.starts_with(&format!("  {} ", cause.id)))
                .count();
            assert_eq!(lines, 1, "{}", cause.id);
        }
        assert!(listed.lines().all(|line| width(line) <= 80), "{listed}");
    }

    #[test]
    fn every_cause_is_explained() {
        for cause in causes::ALL {
            let page = one(cause, &look());
            for label in ["nginx logs", "recognised by", "what to do"] {
                assert!(page.contains(label), "{page}");
            }
            assert!(page.lines().all(|line| width(line) <= 80), "{page}");
        }
    }
}
