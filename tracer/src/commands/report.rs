//! `tracer report`: what traces say.

use std::path::Path;

use jiff::{Timestamp, tz::TimeZone};

use super::{Status, Stop, print};
use crate::{
    cli::ReportArgs,
    report::{Filter, Report, json::json, text::text},
    sink::{read::TraceReader, schema::Line},
    view::Look,
};

/// Runs the command.
pub fn run(args: &ReportArgs) -> Result<Status, Stop> {
    let look = Look::of_stdout();
    let mut report = Report::new(Filter {
        since: None,
        until: None,
        upstreams: args.upstream.clone(),
        causes: args.cause.clone(),
    });
    let mut has_times = false;
    for path in &args.traces {
        read(path, args, &mut report, &mut has_times, &look.zone)?;
    }
    if args.json {
        print(&format!("{:#}\n", json(&report)))?;
    } else {
        print(&text(&report, &look))?;
    }
    if args.fail_on_failure && report.tally().failures > 0 {
        return Ok(Status::FailuresFound);
    }
    Ok(Status::Ran)
}

fn read(
    path: &Path,
    args: &ReportArgs,
    report: &mut Report,
    has_times: &mut bool,
    zone: &TimeZone,
) -> Result<(), Stop> {
    let mut reader = TraceReader::open(path)?;
    while let Some(line) = reader.next_record()? {
        // A time of day is one of the day the first trace began, which its first line tells.
        if let Line::Session(session) = &line
            && !*has_times
        {
            *has_times = true;
            let began = session.started.parse().unwrap_or_default();
            report.set_filter(with_times(report.filter().clone(), args, began, zone)?);
        }
        report.add(line);
    }
    if let Some(torn) = reader.torn() {
        report.add_torn(torn);
    }
    Ok(())
}

fn with_times(filter: Filter, args: &ReportArgs, began: Timestamp, zone: &TimeZone) -> Result<Filter, Stop> {
    let now = Timestamp::now();
    let resolved = |name: &str, moment: Option<crate::cli::values::Moment>| {
        moment
            .map(|moment| moment.resolve(began, now, zone))
            .transpose()
            .map_err(|problem| Stop::usage(format!("{name}: {problem}")))
    };
    let since = resolved("--since", args.since)?;
    let until = resolved("--until", args.until)?;
    if let (Some(since), Some(until)) = (since, until)
        && since >= until
    {
        return Err(Stop::usage(
            "--since is not before --until: nothing lies between them",
        ));
    }
    Ok(Filter {
        since,
        until,
        ..filter
    })
}
