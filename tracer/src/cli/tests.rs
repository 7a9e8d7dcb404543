//! The command line, as users type it.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn attach_follows_nginx_by_name_unless_told_otherwise() {
    let cli = parse("tracer attach").unwrap();
    let Command::Attach(args) = cli.command else {
        panic!("attach");
    };
    assert_eq!(args.pid, Target::Name("nginx".to_owned()));
    assert_eq!(args.config, Where::Auto);
    assert_eq!(args.resolve, Switch::Auto);
    assert_eq!(args.capture, Capture::RequestLine);
    assert_eq!((args.output.keep, args.output.context), (KeepArg::All, 5));
}

#[test]
fn options_that_are_not_there_yet_are_refused() {
    for option in ["--tui", "--metrics=1.2.3.4:9", "--otlp=x"] {
        assert!(parse(&format!("tracer attach {option}")).is_err(), "{option}");
    }
}

#[test]
fn mistakes_are_explained() {
    let cases = [
        ("tracer attach -o a.csv", "must end in .jsonl or .jsonl.zst"),
        (
            "tracer attach --peer nowhere",
            "neither ADDRESS:PORT nor unix:PATH",
        ),
        ("tracer attach --count 0", "0 is not in 1.."),
        ("tracer attach --rotate-keep 3", "--rotate <SIZE|TIME>"),
        ("tracer attach --json --quiet", "cannot be used with"),
        ("tracer report", "<TRACE>..."),
    ];
    for (line, expected) in cases {
        let error = parse(line).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }
}
