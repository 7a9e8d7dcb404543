//! Limits of nginx's own host: source ports, source addresses, file descriptors.

use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        message::{Meaning, Said},
        socket::has_no_port,
        surroundings::Surroundings,
        text::strerror,
    },
    event::{Answer, Errno, Question},
    model::{Evidence, Outcome},
};

pub const PORTS_EXHAUSTED: Cause = Cause {
    id: "ports-exhausted",
    title: "no source port was free for a connection to that address",
    explains: &[],
    outcomes: &[Outcome::Exhausted],
    nginx_logs: "connect() to 10.0.0.7:80 failed (99: Cannot assign requested address) while connecting to upstream",
    recognised: "connect(2) failed with 99 after the kernel had begun the connect and found no local port; the sockets to \
        that destination are counted",
    needs: &[],
    look_alikes: &["source-address-missing", "fd-limit"],
    remedy: "use keepalive connections to the upstream first; then widen net.ipv4.ip_local_port_range, or add peer or \
        source addresses (proxy_bind)",
    check: ports_exhausted,
};

pub const SOURCE_ADDRESS_MISSING: Cause = Cause {
    id: "source-address-missing",
    title: "proxy_bind names an address that this host does not have",
    explains: &[],
    outcomes: &[Outcome::Invalid],
    nginx_logs: "bind(192.0.2.9:0) failed (99: Cannot assign requested address) while connecting to upstream",
    recognised: "bind(2) failed with 99 in the worker",
    needs: &[],
    look_alikes: &["ports-exhausted"],
    remedy: "correct proxy_bind, or give nginx's network namespace that address (a floating address may have moved)",
    check: source_address_missing,
};

pub const SOURCE_ADDRESS_IN_USE: Cause = Cause {
    id: "source-address-in-use",
    title: "proxy_bind names an address with a port, and that port is taken",
    explains: &[],
    outcomes: &[Outcome::Invalid],
    nginx_logs: "bind(192.0.2.9:5000) failed (98: Address already in use) while connecting to upstream",
    recognised: "bind(2) failed with 98 in the worker",
    needs: &[],
    look_alikes: &["source-address-missing", "ports-exhausted"],
    remedy: "leave the port out of proxy_bind: the kernel chooses one then. A fixed port serves one connection at a time, \
        and none for a minute after nginx closed one (TIME_WAIT)",
    check: source_address_in_use,
};

pub const FAMILY_DISABLED: Cause = Cause {
    id: "family-disabled",
    title: "nginx is to connect to an IPv6 address, and IPv6 is switched off in its network namespace",
    explains: &["ports-exhausted"],
    outcomes: &[Outcome::Exhausted],
    nginx_logs: "connect() to [::1]:3000 failed (99: Cannot assign requested address) while connecting to upstream",
    recognised: "connect(2) to an IPv6 address failed at once with 99, and disable_ipv6 is 1 for every interface of nginx's \
        network namespace (for ::1: for lo)",
    needs: &[],
    look_alikes: &["ports-exhausted", "source-address-missing"],
    remedy: "write 127.0.0.1 instead of localhost (or an IPv4 address instead of the name), `ipv6=off` in `resolver`; or \
        switch IPv6 on in that namespace (sysctl net.ipv6.conf.all.disable_ipv6=0; for a container its `sysctls`)",
    check: family_disabled,
};

pub const FD_LIMIT: Cause = Cause {
    id: "fd-limit",
    title: "nginx had no file descriptor left for a socket",
    explains: &[],
    outcomes: &[Outcome::Exhausted],
    nginx_logs: "socket() failed (24: Too many open files) while connecting to upstream",
    recognised: "socket(2) failed with 24 (the worker's limit) or 23 (the system's)",
    needs: &[],
    look_alikes: &["ports-exhausted"],
    remedy: "raise worker_rlimit_nofile (for 23: fs.file-max); each proxied request takes two descriptors",
    check: fd_limit,
};

pub const WORKER_CONNECTIONS: Cause = Cause {
    id: "worker-connections",
    title: "the nginx worker has no connection left: worker_connections are used up",
    explains: &[],
    outcomes: &[Outcome::Exhausted],
    nginx_logs: "256 worker_connections are not enough while connecting to upstream",
    recognised: "nginx says so: it makes no socket then",
    needs: &[],
    look_alikes: &["fd-limit", "ports-exhausted"],
    remedy: "raise worker_connections: each proxied request takes two, and each kept connection to a client or an upstream         one; see that worker_rlimit_nofile allows as many",
    check: out_of_connections,
};

fn ports_exhausted(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let is_line = subject
        .lone()
        .is_some_and(|said| said.meaning == Meaning::ConnectAtOnce);
    let is_portless = subject.exchange.is_some_and(has_no_port);
    let (Some(99), Some(destination), true) = (subject.errno(), subject.address(), is_line || is_portless)
    else {
        return Check::No;
    };
    let at = subject.attempt.ended_at;
    let mut evidence = Vec::new();
    if is_portless {
        evidence.push(fact(
            at,
            "tcp",
            "the connect began and ended at once without a source port",
        ));
    } else {
        evidence
            .push(fact(at, "tcp", format!("connect() to {destination} failed at once")).number("errno", 99));
    }
    let question = Question::Ports {
        pid: subject.attempt.worker,
        destination,
    };
    let answer = match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => return Check::Ask(question),
        answer => answer,
    };
    let Some(Answer::Ports {
        range: (first, last),
        by_state,
    }) = answer
    else {
        let summary = format!("No source port was free for a connection to {destination}.");
        let stand = Stand::confirmed(summary, evidence);
        // IPv6 switched off gives the same errno, but never begins a connect.
        return match (is_portless, destination.is_ipv6()) {
            (true, _) => stand.into(),
            (false, false) => stand
                .without("the sockets to that destination were not counted")
                .into(),
            (false, true) => Check::No,
        };
    };
    let n_ports = u64::from(last.saturating_sub(*first)) + 1;
    let n_used: u64 = by_state.iter().map(|(_, n)| u64::from(*n)).sum();
    let is_full = n_used.saturating_mul(10) >= n_ports.saturating_mul(9);
    if !is_portless && !is_full {
        return Check::No;
    }
    let states: Vec<String> = by_state.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let text = format!(
        "{n_used} sockets to {destination} ({}), local ports {first} to {last}",
        states.join(", ")
    );
    let mut count = fact(None, "limit", text)
        .count("used", n_used)
        .count("ports", n_ports);
    if let Some((_, n)) = by_state
        .iter()
        .find(|(state, _)| state.replace('-', "_").eq_ignore_ascii_case("time_wait"))
    {
        count = count.number("time_wait", *n);
    }
    evidence.push(count);
    let summary = format!(
        "All local ports for {destination} are taken: {n_used} sockets ({}) for the {n_ports} ports {first} to {last}.",
        states.join(", ")
    );
    Stand::confirmed(summary, evidence)
        .with_remedy(format!(
            "let nginx reuse connections to this upstream (keepalive), so that {n_used} sockets are not needed; then widen \
             net.ipv4.ip_local_port_range (now {first} to {last})"
        ))
        .into()
}

fn line_fact(subject: &Subject<'_>, what: &str, errno: Errno) -> Evidence {
    fact(
        subject.attempt.ended_at,
        "nginx",
        format!("{what} failed: {}", strerror(errno)),
    )
    .number("errno", errno.0)
}

/// The address of a bind() that failed so, and nginx's word of it.
fn failed_bind<'a>(subject: &Subject<'a>, errno: Errno) -> Option<(&'a str, Evidence)> {
    let is_it = |said: &&Said| said.meaning == Meaning::Bind && said.errno == Some(errno);
    let said = subject.lone().filter(is_it)?;
    let address = said.argument.as_deref().unwrap_or("the configured address");
    let evidence = line_fact(subject, &format!("bind() to {address}"), errno).text("address", address);
    Some((address, evidence))
}

fn source_address_missing(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some((address, evidence)) = failed_bind(subject, Errno(99)) else {
        return Check::No;
    };
    let summary = format!(
        "nginx is to connect from {address} (proxy_bind), an address its network namespace does not have."
    );
    Stand::confirmed(summary, vec![evidence]).into()
}

fn source_address_in_use(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some((address, evidence)) = failed_bind(subject, Errno(98)) else {
        return Check::No;
    };
    let summary = format!("nginx is to connect from {address} (proxy_bind), and that port is taken.");
    Stand::confirmed(summary, vec![evidence]).into()
}

fn family_disabled(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let said = subject
        .lone()
        .filter(|said| said.meaning == Meaning::ConnectAtOnce);
    let address = subject.address().filter(|address| address.is_ipv6());
    let (Some(99), Some(address), Some(_)) = (subject.errno(), address, said) else {
        return Check::No;
    };
    let question = Question::Ipv6 {
        pid: subject.attempt.worker,
    };
    let interfaces = match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => return Check::Ask(question),
        Some(Answer::Ipv6 { interfaces }) => interfaces,
        _ => return Check::No,
    };
    let is_asked = |name: &str| !address.ip().is_loopback() || name == "lo";
    let mut asked = interfaces.iter().filter(|(name, _)| is_asked(name)).peekable();
    if asked.peek().is_none() || asked.any(|(_, is_off)| !is_off) {
        return Check::No;
    }
    let connect = fact(
        subject.attempt.ended_at,
        "tcp",
        format!("connect() to {address} failed at once"),
    )
    .number("errno", 99);
    let names: Vec<&str> = interfaces
        .iter()
        .filter(|(_, is_off)| *is_off)
        .map(|(name, _)| name.as_str())
        .collect();
    let text = format!("net.ipv6.conf.*.disable_ipv6 is 1 for {}", names.join(", "));
    let off = fact(None, "limit", text).text("interfaces", names.join(" "));
    let summary = format!(
        "nginx is to connect to {address}, and IPv6 is switched off in its network namespace (disable_ipv6 of {}).",
        names.join(", ")
    );
    Stand::confirmed(summary, vec![connect, off]).into()
}

fn fd_limit(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(errno) = subject
        .lone()
        .filter(|said| said.meaning == Meaning::Socket)
        .and_then(|said| said.errno)
    else {
        return Check::No;
    };
    if !matches!(errno.0, 23 | 24) {
        return Check::No;
    }
    let worker = subject.attempt.worker;
    let question = Question::Descriptors { pid: worker };
    let answer = match around.answer(&question, subject.attempt.ended_at) {
        None if subject.may_wait => return Check::Ask(question),
        answer => answer,
    };
    let mut evidence = vec![line_fact(subject, "socket()", errno)];
    let Some(Answer::Descriptors { open, limit, system }) = answer else {
        let whose = if errno.0 == 24 { "worker" } else { "system" };
        return Stand::confirmed(format!("The {whose} has no file descriptor left."), evidence).into();
    };
    if errno.0 == 24 {
        evidence.push(
            fact(
                None,
                "limit",
                format!("worker {worker}: {open} descriptors open, limit {limit}"),
            )
            .count("open", *open)
            .count("limit", *limit),
        );
        let summary = format!(
            "Worker {worker} has used up its file descriptors: its limit is {limit}, {open} were open a moment later."
        );
        let remedy =
            format!("raise worker_rlimit_nofile above {limit}; each proxied request takes two descriptors");
        return Stand::confirmed(summary, evidence).with_remedy(remedy).into();
    }
    let (used, most) = *system;
    evidence.push(
        fact(None, "limit", format!("system: {used} files open of {most}"))
            .count("open", used)
            .count("limit", most),
    );
    let summary = format!("The whole system has used up its file descriptors: {used} open of {most}.");
    Stand::confirmed(summary, evidence)
        .with_remedy(format!(
            "raise fs.file-max above {most}, or find what leaks files"
        ))
        .into()
}

fn out_of_connections(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some(said) = subject
        .lone()
        .filter(|said| said.meaning == Meaning::WorkerConnections)
    else {
        return Check::No;
    };
    let worker = subject.attempt.worker;
    let evidence = fact(
        subject.attempt.ended_at,
        "nginx",
        "nginx had no connection left for the upstream",
    );
    // Where it was heard at its source, the number is not known.
    let limit: Option<i64> = said.text.split(' ').next().and_then(|word| word.parse().ok());
    let (limit, evidence) = match limit {
        Some(limit) => (format!("all {limit} of its worker_connections"), evidence.number("limit", limit)),
        None => ("all of its worker_connections".to_owned(), evidence),
    };
    let summary = format!("Worker {worker} has used up {limit}, so it could not connect to the upstream.");
    Stand::confirmed(summary, vec![evidence]).into()
}
