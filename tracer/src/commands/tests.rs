//! The command line's own checks.

use clap::Parser;

use super::*;

fn options(line: &str) -> Result<OutputOptions, String> {
    let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
    let Command::Attach(args) = cli.command else {
        panic!("attach");
    };
    output_options(&args.output, Pace::Live).map_err(|stop| stop.to_string())
}

#[test]
fn a_trace_on_stdout_leaves_no_room_for_the_view() {
    for line in [
        "tracer attach -o -",
        "tracer attach --json",
        "tracer attach --json -o - -o a.jsonl",
    ] {
        let options = options(line).unwrap();
        assert_eq!(options.view, None, "{line}");
        let stdouts = options
            .targets
            .iter()
            .filter(|target| **target == Target::Stdout)
            .count();
        assert_eq!(stdouts, 1, "{line}");
    }
    assert_eq!(options("tracer attach").unwrap().view, Some(Detail::Failures));
    assert_eq!(
        options("tracer attach --quiet").unwrap().view,
        Some(Detail::SummaryOnly)
    );
}

#[test]
fn outputs_that_cannot_be_meant_are_refused() {
    assert_eq!(
        options("tracer attach -o a.jsonl -o a.jsonl").unwrap_err(),
        "the same output is given twice: each -o needs its own file"
    );
    assert_eq!(
        options("tracer attach --rotate 1MB -o -").unwrap_err(),
        "--rotate needs a file to rotate: give one with -o FILE"
    );
}

#[test]
fn context_belongs_to_keeping_failures() {
    assert_eq!(options("tracer attach --context 9").unwrap().keep, Keep::All);
    let keep = options("tracer attach --keep failures --context 9").unwrap().keep;
    assert_eq!(keep, Keep::Failures { context: 9 });
}

#[test]
fn a_mistyped_cause_gets_the_nearest_one() {
    let stop = |id| find_cause(id).err().map(|stop| stop.to_string());
    assert_eq!(stop("listener-died"), None);
    assert_eq!(
        stop("listner-dead").as_deref(),
        Some(
            "no cause is called `listner-dead`, the nearest is `listener-died`: `tracer explain` lists them all"
        )
    );
}
