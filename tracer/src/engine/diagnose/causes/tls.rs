//! The connection was up, and TLS was not agreed upon.

use super::facts::{Read, backend_name, closing_facts, how_much_read, locality, request_fact, timer};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        message::{Meaning, Said},
        surroundings::{Locality, Surroundings},
        text::{between, counted},
    },
    model::{Evidence, Outcome, Phase},
};

pub const TLS_FAILED: Cause = Cause {
    id: "tls-failed",
    title: "the TLS handshake with the upstream failed",
    explains: &["closed-remotely", "reset-remotely"],
    outcomes: &[Outcome::Invalid, Outcome::Closed, Outcome::Reset],
    nginx_logs: "SSL_do_handshake() failed (SSL: error:… alert handshake failure:SSL alert number 40) while SSL \
        handshaking to upstream; upstream SSL certificate verify error; peer closed connection in SSL handshake",
    recognised: "nginx says so, with the alert that the peer sent, what was wrong with its certificate, or that the peer \
        closed in the middle; that the peer had read something of the handshake is the kernel's word, where it runs on \
        this host",
    needs: &[],
    look_alikes: &["protocol-mismatch", "closed-on-accept", "backend-died"],
    remedy: "compare both sides: protocols (proxy_ssl_protocols), ciphers, the name sent (proxy_ssl_server_name on, \
        proxy_ssl_name), and certificates (proxy_ssl_trusted_certificate, proxy_ssl_certificate)",
    check: tls_failed,
};

pub const PROTOCOL_MISMATCH: Cause = Cause {
    id: "protocol-mismatch",
    title: "nginx and the backend do not speak the same protocol",
    explains: &["tls-failed"],
    outcomes: &[Outcome::Invalid],
    nginx_logs: "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number) while SSL handshaking \
        to upstream",
    recognised: "what the peer sent first in the TLS handshake is no TLS: OpenSSL says so through nginx",
    needs: &[],
    look_alikes: &["tls-failed"],
    remedy: "the backend speaks plain text on this port: use http:// there, or the port on which it speaks TLS",
    check: protocol_mismatch,
};

pub const TLS_SILENT: Cause = Cause {
    id: "tls-silent",
    title: "the connection was up, and the peer answered nothing to the beginning of TLS",
    explains: &[],
    outcomes: &[Outcome::TimedOut],
    nginx_logs: "upstream timed out (110: Connection timed out) while SSL handshaking to upstream",
    recognised: "nginx's first message of the handshake was acknowledged (on this host: read by the backend's process), and \
        not a byte came back before nginx's timer",
    needs: &[],
    look_alikes: &["never-accepted", "path-lost", "protocol-mismatch", "tls-failed"],
    remedy: "see whether the backend speaks TLS on this port at all: one that waits for more of a plain-text protocol says \
        nothing (`openssl s_client -connect` hangs as well); if it does, look at what it is busy with",
    check: tls_silent,
};

/// What nginx said of a handshake that failed.
fn handshake<'a>(subject: &Subject<'a>) -> Option<&'a Said> {
    let is_of_tls = |said: &&Said| {
        matches!(said.meaning, Meaning::Unacceptable | Meaning::HandshakeClosed)
            && subject.attempt.phase == Phase::Handshaking
    };
    subject.said.filter(is_of_tls)
}

/// The peer's first bytes were no TLS.
/// <https://github.com/openssl/openssl/blob/openssl-3.0.0/ssl/record/ssl3_record.c>, `ssl3_get_record`
fn is_no_tls(said: &Said) -> bool {
    ["wrong version number", "packet length too long", "upstream prematurely sent response"]
        .iter()
        .any(|text| said.text.contains(text))
}

fn line_fact(subject: &Subject<'_>, text: impl Into<String>) -> Evidence {
    fact(subject.attempt.ended_at, "nginx", text)
}

fn protocol_mismatch(subject: &Subject<'_>, _: &Surroundings) -> Check {
    if !handshake(subject).is_some_and(is_no_tls) {
        return Check::No;
    }
    let received = subject.exchange.map_or(0, |exchange| exchange.received);
    let evidence = line_fact(subject, "OpenSSL found no TLS in what the peer sent first").count("received", received);
    let who = backend_name(subject.exchange.and_then(|exchange| exchange.backend.as_ref()));
    let summary = format!("nginx spoke TLS, and {who} answered with something else: plain text, most likely.");
    Stand::confirmed(summary, vec![evidence]).into()
}

fn tls_silent(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let in_handshake = subject
        .connected()
        .filter(|_| subject.attempt.phase == Phase::Handshaking);
    let Some(exchange) = in_handshake.filter(|exchange| {
        exchange.sent > 0 && exchange.acked >= exchange.sent && exchange.received == 0 && exchange.unread == 0
    }) else {
        return Check::No;
    };
    let who = match &exchange.backend {
        Some(backend) if backend.sent > 0 => return Check::No,
        Some(backend) if backend.read > 0 => format!("{} read", backend_name(Some(backend))),
        // Not accepted, or busy with something else: no matter of TLS.
        Some(_) => return Check::No,
        None if locality(exchange, around) == Locality::ThisHost => return Check::No,
        None => "the peer's kernel acknowledged".to_owned(),
    };
    let (timer, mut evidence) = timer(subject);
    evidence.extend(request_fact(exchange));
    let silence = between(exchange.last_sent_at.unwrap_or(exchange.began_at), exchange.ended_at);
    let summary = format!(
        "{who} nginx's first {} of the TLS handshake, and nothing came back for {silence}; {timer}.",
        counted(exchange.sent, "byte")
    );
    if exchange.backend.is_some() {
        return Stand::confirmed(summary, evidence).into();
    }
    Stand::likely(summary, evidence)
        .without("the backend's process was not seen: an answer may have been lost on the way")
        .into()
}

fn tls_failed(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(said) = handshake(subject).filter(|said| !is_no_tls(said)) else {
        return Check::No;
    };
    if said.meaning == Meaning::HandshakeClosed {
        return closed(subject, said);
    }
    if let Some((number, name, remedy)) = alert(&said.text) {
        let evidence = line_fact(subject, format!("the peer sent TLS alert {number} ({name})")).number("alert", number);
        let summary = format!("The peer ended the TLS handshake with alert {number} ({name}).");
        let stand = Stand::confirmed(summary, vec![evidence]);
        return match remedy {
            Some(remedy) => stand.with_remedy(remedy).into(),
            None => stand.into(),
        };
    }
    if said.text.contains("certificate") {
        let evidence = line_fact(subject, "nginx did not accept the peer's certificate");
        let what = match said.text.contains("does not match") {
            true => "it is made out for another name",
            false => "it could not be verified",
        };
        return Stand::confirmed(format!("nginx did not accept the peer's certificate: {what}."), vec![evidence])
            .with_remedy(
                "see to it that proxy_ssl_trusted_certificate holds the issuer and that proxy_ssl_name is a name in the \
                 certificate; `openssl s_client -connect` shows what the backend sends",
            )
            .into();
    }
    let reason = reason(&said.text).unwrap_or("nginx's line says why");
    let evidence = line_fact(subject, format!("the TLS handshake failed: {reason}"));
    Stand::confirmed(format!("The TLS handshake failed: {reason}."), vec![evidence]).into()
}

/// The peer ended the connection without a word of TLS about it.
fn closed(subject: &Subject<'_>, said: &Said) -> Check {
    let how = if said.errno.is_some() { "reset" } else { "closed" };
    let mut evidence = Vec::new();
    let mut who = "The peer".to_owned();
    if let Some(exchange) = subject.exchange {
        // Who reads nothing at all refuses connections, not TLS.
        if exchange.backend.is_some() && how_much_read(exchange) == Read::Nothing && exchange.received == 0 {
            return Check::No;
        }
        evidence.extend(closing_facts(exchange));
        if let Some(backend) = &exchange.backend {
            who = backend_name(Some(backend));
        }
    }
    evidence.push(line_fact(subject, format!("the peer {how} the connection in the middle of the TLS handshake")));
    let summary = format!("{who} {how} the connection in the middle of the TLS handshake, without an alert.");
    Stand::confirmed(summary, evidence)
        .with_remedy(
            "look at the backend's own log: it may not speak TLS on this port, or want another name \
             (proxy_ssl_server_name on), protocol or certificate than nginx offers",
        )
        .into()
}

/// OpenSSL's reason, which stands last: `error:0A000102:SSL routines::unsupported protocol`.
fn reason(text: &str) -> Option<&str> {
    let (_, behind) = text.split_once("routines::")?;
    Some(behind.split([')', ':']).next().unwrap_or(behind).trim())
}

/// The alert in OpenSSL's text, its name, and what to do about it.
/// <https://www.rfc-editor.org/rfc/rfc8446#section-6>
fn alert(text: &str) -> Option<(u8, &'static str, Option<&'static str>)> {
    const CLIENT_CERTIFICATE: &str =
        "the backend asks nginx for a certificate it accepts: proxy_ssl_certificate and proxy_ssl_certificate_key";
    const NAME: &str = "send the name the backend expects: proxy_ssl_server_name on, and proxy_ssl_name where it differs";
    const PROTOCOLS: &str = "let both sides share a protocol version: proxy_ssl_protocols, and the backend's setting";
    const CIPHERS: &str = "let both sides share a cipher and curve (proxy_ssl_ciphers), and send the name the backend \
        expects (proxy_ssl_server_name on)";
    let (_, behind) = text.split_once("SSL alert number ")?;
    let digits = behind.split(|letter: char| !letter.is_ascii_digit()).next()?;
    let number: u8 = digits.parse().ok()?;
    let (name, remedy) = match number {
        40 => ("handshake_failure", Some(CIPHERS)),
        42 => ("bad_certificate", Some(CLIENT_CERTIFICATE)),
        43 => ("unsupported_certificate", Some(CLIENT_CERTIFICATE)),
        44 => ("certificate_revoked", Some(CLIENT_CERTIFICATE)),
        45 => ("certificate_expired", Some(CLIENT_CERTIFICATE)),
        46 => ("certificate_unknown", Some(CLIENT_CERTIFICATE)),
        48 => ("unknown_ca", Some(CLIENT_CERTIFICATE)),
        49 => ("access_denied", None),
        70 => ("protocol_version", Some(PROTOCOLS)),
        71 => ("insufficient_security", Some(CIPHERS)),
        80 => ("internal_error", None),
        112 => ("unrecognized_name", Some(NAME)),
        116 => ("certificate_required", Some(CLIENT_CERTIFICATE)),
        120 => ("no_application_protocol", None),
        _ => ("see RFC 8446", None),
    };
    Some((number, name, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_is_understood() {
        let refused = "SSL_do_handshake() failed (SSL: error:0A000410:SSL routines::sslv3 alert handshake failure:SSL alert \
                       number 40) while SSL handshaking to upstream";
        assert_eq!(alert(refused).map(|(number, name, _)| (number, name)), Some((40, "handshake_failure")));
        let own = "SSL_do_handshake() failed (SSL: error:0A000102:SSL routines::unsupported protocol) while SSL handshaking \
                   to upstream";
        assert_eq!(alert(own), None);
        assert_eq!(reason(own), Some("unsupported protocol"));
    }
}
