//! A connect() that SELinux denied: the kernel's own record of the denial, made inside that very system call.

use super::facts::{Walk, failed_at_once};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        message::{Meaning, Said},
        surroundings::{DenialOf, Surroundings},
    },
    event::{Denial, Errno, Peer},
    model::{Evidence, Outcome},
};

pub const SELINUX_DENIED: Cause = Cause {
    id: "selinux-denied",
    title: "SELinux does not let nginx connect there",
    explains: &[],
    outcomes: &[Outcome::Denied],
    nginx_logs: "connect() to 10.0.0.2:8080 failed (13: Permission denied) while connecting to upstream; the same for \
        unix:/run/app.sock",
    recognised: "connect(2) failed with 13, and inside that system call the kernel audited an SELinux denial: \
        tcp_socket { name_connect } for TCP; sock_file { write }, unix_stream_socket { connectto } or dir { search } for a \
        unix path whose permission bits allow it. A denial that the policy does not audit (dontaudit) is not seen",
    needs: &["selinux"],
    look_alikes: &["unix-permission", "route-forbids"],
    remedy: "set the boolean that allows it (`setsebool -P httpd_can_network_connect on`), or give the port or the file a \
        type that nginx's domain may use (`semanage port`, `semanage fcontext`)",
    check: selinux_denied,
};

/// What a connect() asks SELinux for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The port, or nginx's own socket.
    Tcp,
    /// The process that listens on the path, or nginx's own socket.
    Unix,
    /// The socket file, or what leads to it.
    Path,
}

/// What the denial was about, if a connect() to this peer can have asked for it.
fn wanted(denial: &Denial, peer: &Peer) -> Option<Wanted> {
    let is_denied = |wanted: &[&str]| denial.denied.iter().any(|name| wanted.contains(&&**name));
    match (peer, &*denial.class) {
        (Peer::Tcp(_), "tcp_socket") => is_denied(&["connect", "name_connect"]).then_some(Wanted::Tcp),
        (Peer::Unix(_), "unix_stream_socket") => {
            is_denied(&["connect", "connectto"]).then_some(Wanted::Unix)
        }
        (Peer::Unix(_), "sock_file") => is_denied(&["write"]).then_some(Wanted::Path),
        (Peer::Unix(_), "lnk_file") => is_denied(&["read"]).then_some(Wanted::Path),
        // A walk asks a directory for one thing, `search`, whatever its number is here.
        (Peer::Unix(_), "dir") => Some(Wanted::Path),
        _ => None,
    }
}

/// The permission as the policy calls it.
fn permission(denial: &Denial) -> String {
    match &*denial.class {
        "dir" => "search".to_owned(),
        _ => denial.denied.join(" "),
    }
}

/// The third part of a context: `system_u:system_r:httpd_t:s0`.
fn type_of(context: &str) -> &str {
    context.split(':').nth(2).unwrap_or(context)
}

fn denial_fact(denial: &Denial) -> Evidence {
    let Denial {
        source,
        target,
        class,
        ..
    } = denial;
    let permission = permission(denial);
    let text = format!("denied {{ {permission} }} for {source} on {class} {target}");
    fact(denial.at, "selinux", text)
        .text("source_context", &**source)
        .text("target_context", &**target)
        .text("class", &**class)
        .text("permission", permission)
}

fn selinux_denied(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let is_refused = subject
        .lone()
        .is_some_and(|said| said.meaning == Meaning::ConnectAtOnce && said.errno == Some(Errno(13)));
    let (true, Some(peer)) = (is_refused, &subject.attempt.peer) else {
        return Check::No;
    };
    let attempt = subject.attempt;
    let found = around
        .denials(attempt.worker, attempt.ended_at)
        .find_map(|(denial, of)| Some((denial, of, wanted(denial, peer)?)));
    let Some((denial, of, wanted)) = found else {
        // A line of the log file may be read before the kernel's record.
        let is_of_file = subject.line.is_none() && !subject.said.is_some_and(Said::is_by_kernel);
        return if is_of_file && around.surely_sees("selinux") {
            subject.wait_or(Check::No)
        } else {
            Check::No
        };
    };
    if wanted == Wanted::Path {
        // The permission bits are asked first: where they forbid it, SELinux was not, and it denied something else.
        match failed_at_once(subject, around, &[13]) {
            Some((_, Walk::Ask(question))) => return Check::Ask(question),
            Some((_, Walk::Known(walk))) if walk.components.iter().any(|component| !component.allowed) => {
                return Check::No;
            }
            Some((_, Walk::Known(_) | Walk::Unknown)) | None => {}
        }
    }
    let connect = fact(
        attempt.ended_at,
        "selinux",
        format!("connect() to {peer} failed at once"),
    )
    .number("errno", 13);
    let summary = format!(
        "SELinux does not let nginx ({}) {}.",
        type_of(&denial.source),
        deed(denial, wanted, peer)
    );
    let stand = Stand::confirmed(summary, vec![denial_fact(denial), connect])
        .with_remedy(remedy(denial, wanted, peer));
    match of {
        DenialOf::This => stand.into(),
        DenialOf::Nothing => stand
            .without("nginx-log: that the denial belongs to this very connect() is known by its time only")
            .into(),
    }
}

/// What nginx was not let do.
fn deed(denial: &Denial, wanted: Wanted, peer: &Peer) -> String {
    let target = type_of(&denial.target);
    let permission = permission(denial);
    match (wanted, peer, &*permission) {
        (_, _, "connect") => "use a socket of its own to connect".to_owned(),
        (Wanted::Tcp, Peer::Tcp(address), _) => {
            format!("connect to port {}, whose type is {target}", address.port())
        }
        (Wanted::Unix, _, _) => format!("connect to {peer}, whose listener runs as {target}"),
        (_, _, "write") => format!("write to {peer}, whose type is {target}"),
        (_, _, "search") => format!("search a directory of type {target} on the way to {peer}"),
        _ => format!("follow a link of type {target} on the way to {peer}"),
    }
}

/// What allows it, as far as it is the same in the policies of the distributions: their httpd_t is nginx's domain.
fn remedy(denial: &Denial, wanted: Wanted, peer: &Peer) -> String {
    const ANY_PORT: &str = "httpd_can_network_connect";
    const RELAY: &str = "httpd_can_network_relay";
    let target = type_of(&denial.target);
    let by_rule = "`ausearch -m AVC -c nginx | audit2allow -M nginx_local` makes a rule of it";
    let permission = permission(denial);
    if type_of(&denial.source) != "httpd_t" || permission == "connect" {
        return format!("allow it in the policy: {by_rule}");
    }
    match (wanted, peer) {
        (Wanted::Tcp, Peer::Tcp(address)) => {
            let port = address.port();
            match target {
                "http_port_t" | "http_cache_port_t" | "ftp_port_t" | "gopher_port_t" | "squid_port_t" => format!(
                    "`setsebool -P {RELAY} on` lets nginx connect to ports of this type; `setsebool -P {ANY_PORT} on` to \
                     any port"
                ),
                "mysqld_port_t" | "postgresql_port_t" | "mssql_port_t" | "oracledb_port_t" | "gds_db_port_t" => {
                    format!(
                        "`setsebool -P httpd_can_network_connect_db on` lets nginx connect to databases; `setsebool -P \
                         {ANY_PORT} on` to any port"
                    )
                }
                _ => {
                    // A port that has a type of its own is changed, not added.
                    let change = match target {
                        "unreserved_port_t" | "ephemeral_port_t" | "reserved_port_t" | "hi_reserved_port_t"
                        | "port_t" => "-a",
                        _ => "-m",
                    };
                    format!(
                        "`setsebool -P {ANY_PORT} on` lets nginx connect to any port; for this one alone `semanage port \
                         {change} -t http_port_t -p tcp {port}` and `setsebool -P {RELAY} on`"
                    )
                }
            }
        }
        (Wanted::Path, Peer::Unix(path)) if permission == "write" => format!(
            "give the socket file a type that nginx may write: `semanage fcontext -a -t httpd_var_run_t '{path}'`, then \
             `restorecon {path}`"
        ),
        (Wanted::Path, _) => format!(
            "put the socket where nginx may go (/run), or allow it in the policy: {by_rule}"
        ),
        _ => format!("run the backend in a domain that nginx may connect to, not as {target}, or allow it: {by_rule}"),
    }
}
