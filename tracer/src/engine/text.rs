//! How numbers are said: errnos as nginx prints them, signals, spans of time, processes and their ends.

use crate::{
    engine::surroundings::Death,
    event::{Errno, Exit, Ktime, Task},
};

/// What glibc's `strerror` says, which is what nginx prints behind the number.
pub fn strerror(errno: Errno) -> &'static str {
    match errno.0 {
        1 => "Operation not permitted",
        2 => "No such file or directory",
        4 => "Interrupted system call",
        9 => "Bad file descriptor",
        11 => "Resource temporarily unavailable",
        12 => "Cannot allocate memory",
        13 => "Permission denied",
        20 => "Not a directory",
        22 => "Invalid argument",
        23 => "Too many open files in system",
        24 => "Too many open files",
        28 => "No space left on device",
        32 => "Broken pipe",
        36 => "File name too long",
        40 => "Too many levels of symbolic links",
        64 => "Machine is not on the network",
        71 => "Protocol error",
        91 => "Protocol wrong type for socket",
        92 => "Protocol not available",
        95 => "Operation not supported",
        97 => "Address family not supported by protocol",
        98 => "Address already in use",
        99 => "Cannot assign requested address",
        100 => "Network is down",
        101 => "Network is unreachable",
        103 => "Software caused connection abort",
        104 => "Connection reset by peer",
        105 => "No buffer space available",
        107 => "Transport endpoint is not connected",
        110 => "Connection timed out",
        111 => "Connection refused",
        112 => "Host is down",
        113 => "No route to host",
        _ => "Unknown error",
    }
}

/// `SIGKILL` for 9; `signal 35` for what has no name.
pub fn signal_name(signal: u8) -> String {
    const NAMES: [&str; 32] = [
        "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
        "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    match NAMES.get(usize::from(signal)) {
        Some(name) if !name.is_empty() => format!("SIG{name}"),
        _ => format!("signal {signal}"),
    }
}

/// A length of time for people: `0.2 ms`, `312 ms`, `4.3 s`, `3 min`, `2 h`.
pub fn span(nanoseconds: u64) -> String {
    let micros = nanoseconds / 1000;
    match micros {
        0..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        10_000..999_500 => format!("{} ms", (micros + 500) / 1000),
        999_500..120_000_000 => {
            // A timer of 2 s that ends after 1.9998 s has run for 2.0 s.
            let tenths = (micros + 50_000) / 100_000;
            format!("{}.{} s", tenths / 10, tenths % 10)
        }
        120_000_000..7_200_000_000 => format!("{} min", micros / 60_000_000),
        _ => format!("{} h", micros / 3_600_000_000),
    }
}

/// The span between two moments, whichever is earlier.
pub fn between(one: Ktime, other: Ktime) -> String {
    span(one.since(other).max(other.since(one)))
}

/// `node (pid 4242)`.
pub fn process(task: &Task) -> String {
    format!("{} (pid {})", task.comm, task.pid)
}

/// What ended a process, after its name: `was killed by the OOM killer`, `exited with code 1`; with the record of it,
/// who had sent it a signal.
pub fn ended(exit: Exit, oom: bool, death: Option<&Death>) -> String {
    match exit {
        Exit::Signal(9) if oom => "was killed by the OOM killer".to_owned(),
        Exit::Signal(signal) => match death.and_then(|death| death.signalled_by.as_ref()) {
            Some(sender) => format!("was ended by {} from {}", signal_name(signal), process(sender)),
            None => format!("was ended by {}", signal_name(signal)),
        },
        Exit::Code(code) => match death.and_then(|death| death.told.as_ref()) {
            Some(told) => format!(
                "exited with code {code} after {} from {}",
                signal_name(told.signal),
                process(&told.by)
            ),
            None => format!("exited with code {code}"),
        },
    }
}

/// A count with its noun: `1 attempt`, `3 attempts`.
pub fn counted(n: u64, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well_at_every_scale() {
        let said: Vec<String> = [
            0,
            240_000,
            312_400_000,
            4_250_000_000,
            200_000_000_000,
            9_000_000_000_000,
        ]
        .map(span)
        .into();
        assert_eq!(said, ["0.0 ms", "0.2 ms", "312 ms", "4.3 s", "3 min", "2 h"]);
    }

    #[test]
    fn signals_have_their_names() {
        assert_eq!(
            [9, 11, 31, 35].map(signal_name),
            ["SIGKILL", "SIGSEGV", "SIGSYS", "signal 35"]
        );
    }
}
