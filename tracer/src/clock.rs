//! From kernel time to wall-clock time: the one place where the two meet.
//!
//! The engine knows kernel time alone; outputs ask a [`Clock`], which holds the offset last read on the host.

use jiff::{Timestamp, tz::Offset};

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
        self.rfc3339_bytes(at).into_iter().map(char::from).collect()
    }

    /// The same as ASCII.
    #[must_use]
    pub fn rfc3339_bytes(self, at: Ktime) -> [u8; 30] {
        let time = Offset::UTC.to_datetime(self.timestamp(at));
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        // 64-bit nanoseconds reach from 1677 to 2262.
        put_digits(&mut text[..4], time.year().unsigned_abs().into());
        put_digits(&mut text[5..7], time.month().unsigned_abs().into());
        put_digits(&mut text[8..10], time.day().unsigned_abs().into());
        put_digits(&mut text[11..13], time.hour().unsigned_abs().into());
        put_digits(&mut text[14..16], time.minute().unsigned_abs().into());
        put_digits(&mut text[17..19], time.second().unsigned_abs().into());
        put_digits(&mut text[20..29], time.subsec_nanosecond().unsigned_abs());
        text
    }
}

/// Writes a number with leading zeros.
fn put_digits(places: &mut [u8], mut number: u32) {
    for place in places.iter_mut().rev() {
        *place = b"0123456789"[(number % 10) as usize];
        number /= 10;
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
