//! The values of options: what users may write, and the one line they get when it is something else.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use jiff::{Timestamp, civil, tz::TimeZone};

use crate::{event::Pid, sink::trace_file};

/// The id of a cause.
pub type Name = String;

/// Which nginx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every instance of an executable with this name.
    Name(String),
    /// One instance.
    Pid(Pid),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Pid(pid) => pid.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("expected a name or a pid".to_owned());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(Pid(pid))),
                Ok(_) | Err(_) => Err("no process has such a pid".to_owned()),
            };
        }
        if text.contains('/') {
            return Err("expected the name of an executable, without its folder".to_owned());
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// An output in trace format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile(pub trace_file::Target);

impl FromStr for OutputFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self(trace_file::Target::Stdout));
        }
        if text.ends_with(".jsonl") || text.ends_with(".jsonl.zst") {
            return Ok(Self(trace_file::Target::File(PathBuf::from(text))));
        }
        Err(
            "the format follows from the name, which must end in .jsonl or .jsonl.zst; - is stdout"
                .to_owned(),
        )
    }
}

/// Read it from where nginx has it, not at all, or from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// As nginx itself does.
    Auto,
    /// Not at all.
    Off,
    /// From this file.
    Path(PathBuf),
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Where {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("expected auto, off or a path".to_owned()),
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path => Ok(Self::Path(PathBuf::from(path))),
        }
    }
}

/// What is read of the bytes between nginx and its upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The beginnings of requests and answers: method, path, Host and status are kept of them.
    RequestLine,
    /// Nothing.
    Off,
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestLine => "request-line",
            Self::Off => "off",
        })
    }
}

impl FromStr for Capture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "request-line" => Ok(Self::RequestLine),
            "off" => Ok(Self::Off),
            _ => Err("expected request-line or off".to_owned()),
        }
    }
}

/// On as far as possible, or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// As far as possible.
    Auto,
    /// Not at all.
    Off,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
        })
    }
}

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("expected auto or off".to_owned()),
        }
    }
}

/// When a new file is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotateAt(pub trace_file::Rotate);

impl FromStr for RotateAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unclear = || "expected a size like 100MB or 1GiB, or a time like 10m or 1h".to_owned();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        // `M` alone would be a month to one parser and a megabyte to the other, so sizes end in B.
        if let Some(factor) = size_unit(unit) {
            let size = number
                .parse::<u64>()
                .ok()
                .and_then(|number| number.checked_mul(factor))
                .ok_or_else(unclear)?;
            if size < MIN_SIZE {
                return Err("a file must be allowed to have at least 10kB".to_owned());
            }
            return Ok(Self(trace_file::Rotate::Size(size)));
        }
        if text.contains(|letter: char| letter.is_ascii_uppercase()) {
            return Err(unclear());
        }
        let period = humantime::parse_duration(text).map_err(|_| unclear())?;
        if period < MIN_PERIOD {
            return Err("a file must be allowed to last at least 1s".to_owned());
        }
        Ok(Self(trace_file::Rotate::Every(period)))
    }
}

/// Smaller files would hold little but their own session line.
const MIN_SIZE: u64 = 10_000;
const MIN_PERIOD: Duration = Duration::from_secs(1);

fn size_unit(unit: &str) -> Option<u64> {
    Some(match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    })
}

/// A duration as people write it: `60s`, `10m`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("expected a time like 60s, 10m or 2h".to_owned()),
    }
}

/// A moment as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// With its zone.
    At(Timestamp),
    /// In the reader's zone.
    Local(civil::DateTime),
    /// On the day the trace began, in the reader's zone.
    TimeOfDay(civil::Time),
    /// So long ago.
    Ago(Duration),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(Self::At(at));
        }
        if let Ok(duration) = humantime::parse_duration(text) {
            return Ok(Self::Ago(duration));
        }
        if let Ok(local) = text.parse::<civil::DateTime>() {
            return Ok(Self::Local(local));
        }
        // A bare number would be an hour to one reader and minutes to another.
        if let Ok(time) = text.parse::<civil::Time>()
            && text.contains(':')
        {
            return Ok(Self::TimeOfDay(time));
        }
        Err("expected a time like 2026-11-22T12:04:31Z, 2026-11-22 12:04, 12:04:31 or 10m (ago)".to_owned())
    }
}

impl Moment {
    /// The moment itself, for a trace that began at `began` and a reader who lives at `now` in `zone`.
    pub fn resolve(self, began: Timestamp, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
        let local = match self {
            Self::At(at) => return Ok(at),
            Self::Ago(ago) => {
                return now
                    .checked_sub(ago)
                    .map_err(|_| "that is too long ago".to_owned());
            }
            Self::Local(local) => local,
            Self::TimeOfDay(time) => civil::DateTime::from_parts(began.to_zoned(zone.clone()).date(), time),
        };
        local
            .to_zoned(zone.clone())
            .map(|zoned| zoned.timestamp())
            .map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_or_a_pid() {
        assert_eq!("nginx".parse(), Ok(Target::Name("nginx".to_owned())));
        assert_eq!("811".parse(), Ok(Target::Pid(Pid(811))));
        for wrong in ["", "0", "99999999999", "/usr/sbin/nginx"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_output_tells_its_format() {
        let file = |name: &str| Ok(OutputFile(trace_file::Target::File(PathBuf::from(name))));
        assert_eq!("a.jsonl".parse(), file("a.jsonl"));
        assert_eq!("/x/a.jsonl.zst".parse(), file("/x/a.jsonl.zst"));
        assert_eq!("-".parse(), Ok(OutputFile(trace_file::Target::Stdout)));
        for wrong in ["a.csv", "a.json", "a.zst", "a", ""] {
            assert!(wrong.parse::<OutputFile>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rotation_is_by_size_or_by_time() {
        let size = |bytes| Ok(RotateAt(trace_file::Rotate::Size(bytes)));
        let every = |seconds| Ok(RotateAt(trace_file::Rotate::Every(Duration::from_secs(seconds))));
        assert_eq!("100MB".parse(), size(100_000_000));
        assert_eq!("1GiB".parse(), size(1 << 30));
        assert_eq!("10000B".parse(), size(10_000));
        assert_eq!("10m".parse(), every(600));
        assert_eq!("1h".parse(), every(3_600));
        for wrong in ["", "10", "10M", "1B", "99999999999TB", "1ms", "MB", "ten"] {
            assert!(wrong.parse::<RotateAt>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_understood_in_the_zone_of_the_reader() {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let began: Timestamp = "2026-11-22T23:30:00Z".parse().unwrap();
        let now: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        let cases = [
            ("2026-11-22T12:04:31Z", "2026-11-22T12:04:31Z"),
            ("2026-11-22 12:04:31", "2026-11-22T11:04:31Z"),
            ("2026-11-22 12:04", "2026-11-22T11:04:00Z"),
            // Where the reader lives the trace began on the 23rd.
            ("12:04:31", "2026-11-23T11:04:31Z"),
            ("12:04", "2026-11-23T11:04:00Z"),
            ("10m", "2026-11-23T23:50:00Z"),
        ];
        for (text, expected) in cases {
            let moment: Moment = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(
                moment.resolve(began, now, &zone),
                Ok(expected.parse().unwrap()),
                "{text}"
            );
        }
        for wrong in ["", "12", "yesterday", "25:00"] {
            assert!(wrong.parse::<Moment>().is_err(), "{wrong}");
        }
    }
}
