//! nginx's error log, read independently of the tracer: which lines are failed attempts at an upstream.

/// A line of the error log that is an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptLine {
    /// The whole line.
    pub line: String,
    /// The worker.
    pub worker: u32,
    /// The message with its errno and phase: what `nginx_says` holds.
    pub says: String,
    /// The `upstream:` field.
    pub upstream: Option<String>,
}

/// Messages that are failed attempts when they name an upstream, by how they begin.
const WITH_UPSTREAM: &[&str] = &[
    "connect() to ",
    "connect() failed",
    "upstream timed out",
    "upstream prematurely closed",
    "upstream rejected",
    "upstream sent",
    "upstream SSL certificate",
    "no live upstreams",
    "recv() failed",
    "readv() failed",
    "writev() failed",
    "send() failed",
    "sendfile() failed",
    "bind(",
    "socket() failed",
    "SSL_do_handshake() failed",
    "SSL_read() failed",
    "SSL_write() failed",
    "peer closed connection in SSL handshake",
];

/// Messages that are failed attempts without naming an upstream.
const WITHOUT_UPSTREAM: &[&str] = &["no resolver defined to resolve"];

/// Whether a phase is called so.
#[must_use]
pub fn is_phase(name: &str) -> bool {
    let phases = [
        "resolving",
        "connecting",
        "handshaking",
        "sending",
        "waiting",
        "reading",
        "idle",
    ];
    phases.contains(&name)
}

/// The attempts in an error log's text.
#[must_use]
pub fn attempts(log: &str) -> Vec<AttemptLine> {
    log.lines().filter_map(attempt).collect()
}

/// The attempt in a line, if it is one.
fn attempt(line: &str) -> Option<AttemptLine> {
    // 2026/01/01 00:00:00 [error] 811#811: *5 connect() failed (111: …) while …, client: …, upstream: "…", host: "…"
    let (_, rest) = line.split_once('[')?;
    let (level, rest) = rest.split_once("] ")?;
    if !matches!(level, "error" | "crit" | "alert" | "emerg") {
        return None;
    }
    let (worker, rest) = rest.split_once('#')?;
    let worker = worker.parse().ok()?;
    let (_, rest) = rest.split_once(": ")?;
    // Without a connection's number it belongs to no request.
    let (_, message) = rest.strip_prefix('*')?.split_once(' ')?;
    // The client of a UDP proxy is a `udp client`.
    let (says, _) = message
        .split_once(", client: ")
        .or_else(|| message.split_once(", udp client: "))
        .unwrap_or((message, ""));
    let says = says.to_owned();
    let upstream = message
        .split_once(", upstream: \"")
        .and_then(|(_, rest)| rest.split('"').next())
        .map(str::to_owned);
    let begins = |with: &&str| says.starts_with(*with);
    let is_attempt = match upstream {
        Some(_) => WITH_UPSTREAM.iter().any(begins) || says.contains(" worker_connections are not enough "),
        None => WITHOUT_UPSTREAM.iter().any(begins) || says.contains(" could not be resolved ("),
    };
    let is_only_a_remark = says.starts_with("upstream sent no valid HTTP/1.0 header")
        || says.contains(", ignored")
        || says.contains("while connecting to client");
    (is_attempt && !is_only_a_remark).then(|| AttemptLine {
        line: line.to_owned(),
        worker,
        says,
        upstream,
    })
}

impl AttemptLine {
    /// Whether the line's upstream is this peer; a line without one fits a missing peer only.
    #[must_use]
    pub fn is_at(&self, peer: Option<&str>) -> bool {
        match (&self.upstream, peer) {
            (None, _) => true,
            // `no live upstreams` names the upstream, not a peer.
            (Some(_), None) => self.says.starts_with("no live upstreams"),
            (Some(upstream), Some(peer)) => {
                let address = upstream
                    .split_once("://")
                    .map_or(upstream.as_str(), |(_, rest)| rest);
                address.strip_prefix(peer).is_some_and(|rest| {
                    // After a port another digit would be another port.
                    !rest.starts_with(|c: char| c.is_ascii_digit())
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "2026/11/22 01:02:03 [error] 811#811: *5 connect() failed (111: Connection refused) while \
                           connecting to upstream, client: 127.0.0.1, server: , request: \"GET /app HTTP/1.1\", \
                           upstream: \"http://127.0.0.1:3000/app\", host: \"lab\"";

    #[test]
    fn a_refused_connect_is_an_attempt() {
        let lines = attempts(REFUSED);
        assert_eq!(
            lines,
            [AttemptLine {
                line: REFUSED.to_owned(),
                worker: 811,
                says: "connect() failed (111: Connection refused) while connecting to upstream".to_owned(),
                upstream: Some("http://127.0.0.1:3000/app".to_owned()),
            }]
        );
        assert!(lines[0].is_at(Some("127.0.0.1:3000")));
        assert!(!lines[0].is_at(Some("127.0.0.1:300")));
        assert!(!lines[0].is_at(None));
    }

    #[test]
    fn remarks_and_clients_are_no_attempts() {
        for line in [
            "2026/11/22 01:02:03 [warn] 8#8: *5 upstream server temporarily disabled while connecting to upstream, \
             client: 127.0.0.1, upstream: \"http://127.0.0.1:3000/\"",
            "2026/11/22 01:02:03 [error] 8#8: *5 FastCGI sent in stderr: \"x\" while reading response header from \
             upstream, client: 127.0.0.1, upstream: \"fastcgi://127.0.0.1:9000\"",
            "2026/11/22 01:02:03 [error] 8#8: *5 upstream sent no valid HTTP/1.0 header while reading response header \
             from upstream, client: 127.0.0.1, upstream: \"http://127.0.0.1:3000/\"",
            "2026/11/22 01:02:03 [error] 8#8: *5 open() \"/x\" failed (2: No such file or directory), client: 127.0.0.1",
            "2026/11/22 01:02:03 [alert] 8#8: worker process 9 exited on signal 9",
            "",
        ] {
            assert_eq!(attempts(line), [], "{line}");
        }
    }
}
