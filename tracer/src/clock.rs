//! From kernel time to wall-clock time: the one place where the two meet.
//!
//! The engine knows kernel time alone; outputs ask a [`Clock`], which holds the offset last read on the host.

use jiff::Timestamp;

use crate::event::Ktime;

/// The distance between wall-clock time and time since boot, as last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    offset_ns: i64,
}

impl Clock {
    /// The clock of a host whose wall clock showed `unix_ns` (nanoseconds since the epoch) at kernel time `at`.
    #[must_use]
    pub fn new(at: Ktime, unix_ns: i64) -> Self {
        let since_boot = i64::try_from(at.0).unwrap_or(i64::MAX);
        Self {
            offset_ns: unix_ns.saturating_sub(since_boot),
        }
    }

    /// Wall-clock time, in nanoseconds since the epoch.
    #[must_use]
    pub fn unix_ns(self, at: Ktime) -> i64 {
        i64::try_from(at.0)
            .unwrap_or(i64::MAX)
            .saturating_add(self.offset_ns)
    }

    /// Wall-clock time as a timestamp.
    #[must_use]
    pub fn timestamp(self, at: Ktime) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.unix_ns(at)))
            .expect("every 64-bit number of nanoseconds is a timestamp")
    }

    /// Wall-clock time as it stands in a trace: RFC 3339, UTC, nanoseconds.
    #[must_use]
    pub fn rfc3339(self, at: Ktime) -> String {
        format!("{:.9}", self.timestamp(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_time_becomes_utc_with_nanoseconds() {
        let clock = Clock::new(Ktime(5_000_000_000), 1_795_348_800_000_000_000);
        assert_eq!(
            clock.rfc3339(Ktime(6_000_000_001)),
            "2026-11-22T12:00:01.000000001Z"
        );
    }

    #[test]
    fn absurd_times_saturate() {
        let clock = Clock::new(Ktime(0), i64::MAX);
        assert_eq!(clock.unix_ns(Ktime(u64::MAX)), i64::MAX);
        assert!(clock.rfc3339(Ktime(u64::MAX)).starts_with("2262-04-11T"));
        let clock = Clock::new(Ktime(u64::MAX), i64::MIN);
        assert!(clock.rfc3339(Ktime(0)).starts_with("1677-09-21T"));
    }
}
