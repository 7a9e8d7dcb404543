//! The page of the command line: the help texts, as the program prints them.

use std::fmt::Write;

use clap::CommandFactory;

use super::GENERATED;
use crate::cli::Cli;

/// The page.
#[must_use]
pub fn page() -> String {
    let mut tracer = Cli::command().term_width(100);
    tracer.build();
    let mut out = format!("{GENERATED}# Command line\n\n");
    out.push_str(
        "Human output goes to stdout: one block per failure, and a closing summary by upstream and cause. Diagnostics of \
         the tool itself go to stderr. Colour is used on a terminal only, and not when `NO_COLOR` is set. Times are \
         those of the reader's zone on the terminal and UTC in files.\n\n\
         Ctrl-C and SIGTERM finish the files and print the summary; a second Ctrl-C ends at once.\n\n\
         | exit status | meaning |\n|---|---|\n\
         | 0 | it ran |\n\
         | 1 | it ran and attempts failed (only with `--fail-on-failure`) |\n\
         | 2 | wrong usage, or a file that cannot be read or written |\n\
         | 3 | it could not attach: a capability, a kernel feature or a process is missing |\n",
    );
    help(&mut out, &mut tracer);
    let names: Vec<_> = tracer
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    for name in names {
        if let Some(command) = tracer.find_subcommand_mut(&name) {
            help(&mut out, command);
        }
    }
    out
}

fn help(out: &mut String, command: &mut clap::Command) {
    let title = command.get_bin_name().unwrap_or("tracer").to_owned();
    let help = command.clone().term_width(100).render_long_help();
    let lines: Vec<_> = help
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    let _ = write!(
        out,
        "\n## {title}\n\n```text\n{}\n```\n",
        lines.join("\n").trim_end()
    );
}
