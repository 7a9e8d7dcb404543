//! The answer came, and nginx refused its header: only nginx can tell, and says so.

use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        message::{Meaning, Said},
        surroundings::Surroundings,
        text::counted,
    },
    model::{Evidence, Outcome},
};

const READING_HEADER: &str = "reading response header from upstream";

pub const HEADER_TOO_BIG: Cause = Cause {
    id: "header-too-big",
    title: "the response's header does not fit into nginx's buffer for it",
    explains: &[],
    outcomes: &[Outcome::Invalid],
    nginx_logs: "upstream sent too big header while reading response header from upstream",
    recognised: "nginx says so; how many bytes it had read by then is the kernel's word",
    needs: &[],
    look_alikes: &["header-invalid", "closed-mid-response"],
    remedy: "raise proxy_buffer_size (fastcgi_buffer_size …) above the header's size, or find what makes it so large: \
        cookies and tokens, mostly",
    check: header_too_big,
};

pub const HEADER_INVALID: Cause = Cause {
    id: "header-invalid",
    title: "the response's header is not one that nginx accepts",
    explains: &[],
    outcomes: &[Outcome::Invalid],
    nginx_logs: "upstream sent invalid header: \"X\\x0d...\" while reading response header from upstream",
    recognised: "nginx says so, and what it found; that an answer had come is the kernel's word",
    needs: &[],
    look_alikes: &["header-too-big", "closed-mid-response", "protocol-mismatch"],
    remedy: "look at what the backend sends as its header: a line without a colon, a stray carriage return, two \
        Content-Length lines, or output of a script before its headers",
    check: header_invalid,
};

/// What nginx said of the header it refused.
fn refused<'a>(subject: &Subject<'a>) -> Option<&'a Said> {
    let is_of_header = |said: &&Said| {
        said.meaning == Meaning::Unacceptable
            && said.action.as_deref() == Some(READING_HEADER)
            && said.text.starts_with("upstream sent ")
    };
    subject.said.filter(is_of_header)
}

fn is_too_big(said: &Said) -> bool {
    said.text.starts_with("upstream sent too big header")
}

fn facts(subject: &Subject<'_>) -> (u64, Vec<Evidence>) {
    let received = subject.exchange.map_or(0, |exchange| exchange.received);
    let mut evidence = Vec::new();
    if let Some(exchange) = subject.exchange.filter(|_| received > 0) {
        let text = format!("{} of an answer read", counted(received, "byte"));
        evidence.push(fact(exchange.last_received_at, "tcp", text).count("received", received));
    }
    evidence.push(fact(
        subject.attempt.ended_at,
        "nginx",
        "nginx refused the response's header",
    ));
    (received, evidence)
}

fn header_too_big(subject: &Subject<'_>, _: &Surroundings) -> Check {
    if !refused(subject).is_some_and(is_too_big) {
        return Check::No;
    }
    let (received, evidence) = facts(subject);
    let directive = match subject.attempt.via.as_deref() {
        Some(via @ ("fastcgi" | "uwsgi" | "scgi" | "grpc" | "memcached")) => format!("{via}_buffer_size"),
        _ => "proxy_buffer_size".to_owned(),
    };
    let read = match received {
        0 => String::new(),
        n => format!(" (nginx had read {})", counted(n, "byte")),
    };
    let summary = format!(
        "The response's header does not fit into {directive}{read}; unless set, that is one memory page, 4k or 8k."
    );
    Stand::confirmed(summary, evidence)
        .with_remedy(format!(
            "raise {directive} above the header's size, or find what makes it so large: cookies and tokens, mostly"
        ))
        .into()
}

fn header_invalid(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(said) = refused(subject).filter(|said| !is_too_big(said)) else {
        return Check::No;
    };
    let (_, evidence) = facts(subject);
    // What stands behind the colon is the backend's own text.
    let what = said.text.split_once(" while ").map_or(&*said.text, |(what, _)| what);
    let what = what.split_once(": ").map_or(what, |(what, _)| what);
    Stand::confirmed(format!("nginx refused the response's header: {what}."), evidence).into()
}
