//! An attempt's line, written straight into a buffer: most of a trace is lines of successes, and this is where the
//! tracer's time goes.
//!
//! Invariant: the same bytes as serialising [`schema::Attempt`], which defines the format; a test holds that for
//! arbitrary attempts.

use std::net::{SocketAddr, SocketAddrV4};

use serde::Serialize;

use crate::{
    clock::Clock,
    event::{Ktime, Peer},
    model::Attempt,
    sink::schema,
};

/// Appends the line of an attempt, without its newline. After an error the line is torn.
pub fn append(line: &mut Vec<u8>, attempt: &Attempt, clock: Clock) -> serde_json::Result<()> {
    /// A comma, the field's name and its value.
    macro_rules! field {
        ($name:literal, $value:expr) => {
            line.extend_from_slice(concat!(",\"", $name, "\":").as_bytes());
            $value.append(line)?;
        };
    }
    line.extend_from_slice(b"{\"type\":\"attempt\"");
    field!("time", Time(attempt.began_at, clock));
    field!("worker", attempt.worker.0);
    field!("number", attempt.number);
    field!("upstream", attempt.upstream);
    field!("upstreams", attempt.upstreams);
    field!("server", attempt.server);
    field!("peer", attempt.peer);
    field!("local", attempt.local);
    field!("via", attempt.via);
    field!("outcome", Plain(attempt.outcome.name()));
    field!("phase", Plain(attempt.phase.name()));
    field!(
        "errno",
        attempt.errno.map(|errno| Rare(schema::errno_name(errno)))
    );
    field!("nginx_says", attempt.nginx_says);
    field!("log", attempt.log.as_ref().map(|log| Rare(schema::Log::new(log))));
    field!("reused", attempt.reused);
    field!("exchange", attempt.exchange);
    field!("idle_us", attempt.idle_us);
    field!("connect_us", attempt.connect_us);
    field!("accept_us", attempt.accept_us);
    field!("first_byte_us", attempt.first_byte_us);
    field!("total_us", attempt.total_us);
    field!("bytes_sent", attempt.bytes_sent);
    field!("bytes_acked", attempt.bytes_acked);
    field!("bytes_received", attempt.bytes_received);
    field!("bytes_unread", attempt.bytes_unread);
    field!("syn_retransmits", attempt.syn_retransmits);
    field!("retransmits", attempt.retransmits);
    field!("rtt_us", attempt.rtt_us);
    field!("closed_by", attempt.closed_by.map(|by| Plain(by.name())));
    let request = attempt.request.as_ref();
    field!(
        "request",
        request.map(|request| Rare(schema::Request::new(request)))
    );
    field!(
        "client",
        attempt.client.map(|client| Rare(schema::Client::new(client)))
    );
    field!(
        "retry",
        attempt.retry.map(|(of, n)| Rare(schema::Retry { of, n }))
    );
    field!(
        "connection",
        attempt.connection.map(|id| Plain(schema::connection_id(id)))
    );
    let cause = |verdict| Rare(schema::Cause::new(verdict, clock));
    field!("cause", attempt.cause.as_ref().map(cause));
    field!("also", attempt.also.iter().map(cause).collect::<Vec<_>>());
    field!("preexisting", attempt.preexisting);
    field!("unseen", attempt.unseen);
    line.push(b'}');
    Ok(())
}

/// A value as JSON.
trait Json {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()>;
}

impl<T: Json> Json for Option<T> {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Some(value) => value.append(line),
            None => {
                line.extend_from_slice(b"null");
                Ok(())
            }
        }
    }
}

impl<T: Json> Json for Vec<T> {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        line.push(b'[');
        for (index, value) in self.iter().enumerate() {
            if index > 0 {
                line.push(b',');
            }
            value.append(line)?;
        }
        line.push(b']');
        Ok(())
    }
}

impl Json for u64 {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        line.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
        Ok(())
    }
}

impl Json for u32 {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        u64::from(*self).append(line)
    }
}

impl Json for bool {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        line.extend_from_slice(if *self { b"true" } else { b"false" });
        Ok(())
    }
}

impl Json for &str {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        // Without an early exit the compiler looks at many bytes at a time.
        let is_plain = self.bytes().fold(true, |is_plain, byte| {
            is_plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\')
        });
        if is_plain {
            Plain(self).append(line)
        } else {
            serde_json::to_writer(line, self)
        }
    }
}

impl Json for String {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        self.as_str().append(line)
    }
}

impl Json for Peer {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::Tcp(address) => address.append(line),
            Self::Unix(_) => self.to_string().append(line),
        }
    }
}

impl Json for SocketAddr {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::V4(address) => address.append(line),
            Self::V6(_) => self.to_string().append(line),
        }
    }
}

impl Json for SocketAddrV4 {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        let [first, rest @ ..] = self.ip().octets();
        line.push(b'"');
        u64::from(first).append(line)?;
        for octet in rest {
            line.push(b'.');
            u64::from(octet).append(line)?;
        }
        line.push(b':');
        u64::from(self.port()).append(line)?;
        line.push(b'"');
        Ok(())
    }
}

/// Text in which nothing has to be escaped.
struct Plain<T>(T);

impl<T: AsRef<[u8]>> Json for Plain<T> {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        line.push(b'"');
        line.extend_from_slice(self.0.as_ref());
        line.push(b'"');
        Ok(())
    }
}

/// A moment as it stands in a trace.
struct Time(Ktime, Clock);

impl Json for Time {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        let Self(at, clock) = *self;
        Plain(clock.rfc3339_bytes(at)).append(line)
    }
}

/// A value that few attempts have: the serialiser of the format does.
struct Rare<T>(T);

impl<T: Serialize> Json for Rare<T> {
    fn append(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(line, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        event::Errno,
        model::{ClosedBy, Outcome, Phase},
        samples,
    };

    fn assert_as_the_format_says(attempt: &Attempt, clock: Clock) {
        let defined = schema::Line::Attempt(Box::new(schema::Attempt::new(attempt, clock)));
        let mut line = Vec::new();
        append(&mut line, attempt, clock).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            serde_json::to_string(&defined).unwrap()
        );
    }

    #[test]
    fn failures_with_everything_they_can_have_are_written_as_the_format_says() {
        for attempt in [
            samples::healthy(),
            samples::listener_died(),
            samples::keepalive_race(),
        ] {
            assert_as_the_format_says(&attempt, samples::clock());
        }
        let mut logged = samples::listener_died();
        logged.log = Some(samples::log_line());
        assert_as_the_format_says(&logged, samples::clock());
    }

    proptest! {
        #[test]
        fn any_attempt_is_written_as_the_format_says(
            times in any::<(u64, u64, i64)>(),
            texts in any::<(Option<String>, Vec<String>, Option<String>, Option<String>, Option<String>, Vec<String>)>(),
            peer in proptest::option::of(prop_oneof![
                any::<SocketAddr>().prop_map(Peer::Tcp),
                ".*".prop_map(Peer::Unix),
            ]),
            local in any::<Option<SocketAddr>>(),
            durations in any::<[Option<u64>; 4]>(),
            bytes in any::<[Option<u64>; 4]>(),
            counts in any::<([Option<u32>; 3], u32, u64, Option<(u64, u32)>)>(),
            flags in any::<(bool, bool)>(),
            kinds in (0..Outcome::ALL.len(), proptest::option::of(0..200), 0..4_usize),
        ) {
            let (at, boot, unix_ns) = times;
            let (upstream, upstreams, server, via, nginx_says, unseen) = texts;
            let ([syn_retransmits, retransmits, rtt_us], exchange, total_us, retry) = counts;
            let (outcome, errno, closed_by) = kinds;
            let [idle_us, connect_us, accept_us, first_byte_us] = durations;
            let [bytes_sent, bytes_acked, bytes_received, bytes_unread] = bytes;
            let attempt = Attempt {
                began_at: Ktime(at),
                upstream,
                upstreams,
                server,
                peer,
                local,
                via,
                outcome: Outcome::ALL[outcome],
                phase: Phase::Waiting,
                errno: errno.map(Errno),
                nginx_says,
                reused: flags.0,
                exchange,
                idle_us,
                connect_us,
                accept_us,
                first_byte_us,
                total_us,
                bytes_sent,
                bytes_acked,
                bytes_received,
                bytes_unread,
                syn_retransmits,
                retransmits,
                rtt_us,
                closed_by: [None, Some(ClosedBy::Nginx), Some(ClosedBy::Peer), Some(ClosedBy::Kernel)][closed_by],
                retry,
                preexisting: flags.1,
                unseen,
                ..samples::keepalive_race()
            };
            assert_as_the_format_says(&attempt, Clock::new(Ktime(boot), unix_ns));
        }
    }
}
