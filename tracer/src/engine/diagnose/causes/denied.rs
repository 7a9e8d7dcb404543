//! A connect() that somebody in the kernel denied before any route was looked for: seccomp, a security module, a program of
//! a control group; in this order they are asked.

use std::net::SocketAddr;

use super::unreachable::{at_once, lookup_fact};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::Surroundings,
        text::strerror,
    },
    event::{Answer, Confinement, ConnectDenied, Denier, Errno, Line, Program, Question},
    model::{Evidence, Outcome},
};

pub const CGROUP_DENIED: Cause = Cause {
    id: "cgroup-denied",
    title: "a BPF program of a control group does not let nginx connect there",
    explains: &[],
    outcomes: &[Outcome::Denied, Outcome::Unreachable, Outcome::Refused],
    nginx_logs: "connect() to 10.0.0.2:8080 failed (1: Operation not permitted) while connecting to upstream",
    recognised: "connect(2) failed with the errno that the programs of the worker's control groups had just given, where that \
        function of the kernel can be watched. Elsewhere: with 1, the kernel asks such a program about the worker's connects, \
        and nothing else is there that gives 1: no seccomp filter that could deny this connect(), no program that acts as a \
        security module, no IPsec policy that blocked anything",
    needs: &["connect-denials"],
    look_alikes: &["security-module-denied", "route-forbids", "packet-dropped-locally"],
    remedy: "`bpftool cgroup tree` shows the program and whose it is: a network policy of Cilium or another agent, systemd's \
        `BPFProgram=`; allow nginx's destination there",
    check: cgroup_denied,
};

pub const SECURITY_MODULE_DENIED: Cause = Cause {
    id: "security-module-denied",
    title: "a security module or a seccomp filter does not let nginx connect there",
    explains: &[],
    outcomes: &[Outcome::Denied],
    nginx_logs: "connect() to 10.0.0.2:8080 failed (13: Permission denied) while connecting to upstream; or (1: Operation not \
        permitted)",
    recognised: "connect(2) to a TCP address failed with 13 or 1, a security module was seen to give it or everything else that \
        does was ruled out (a route, a program of a control group, an IPsec policy, a denial that SELinux audited), and \
        something is there that can have: a seccomp filter under which this worker never connected to an address of the family, \
        Landlock, a program that acts as a security module, an AppArmor profile",
    needs: &["connect-denials"],
    look_alikes: &["selinux-denied", "cgroup-denied", "route-forbids", "unix-permission"],
    remedy: "see how nginx is started: systemd's `SystemCallFilter=`, a container's seccomp or AppArmor profile, or a launcher \
        with Landlock; allow connect() to this destination there",
    check: security_module_denied,
};

/// What else gives an errno of a denial is to be asked.
enum Siblings<'a> {
    Ask(Question),
    Unknown,
    Known(&'a Confinement),
}

fn siblings<'a>(subject: &Subject<'_>, around: &'a Surroundings) -> Siblings<'a> {
    let question = Question::Confinement {
        pid: subject.attempt.worker,
    };
    match around.answer(&question, subject.attempt.ended_at) {
        Some(Answer::Confinement(found)) => Siblings::Known(found),
        None if subject.may_wait => Siblings::Ask(question),
        _ => Siblings::Unknown,
    }
}

/// Who was seen to deny this very connect(): the note of it lasts until the line.
fn denier(line: &Line, errno: Errno) -> Option<ConnectDenied> {
    line.denied.filter(|denied| denied.errno == errno)
}

fn connect_fact(subject: &Subject<'_>, address: SocketAddr, errno: Errno) -> Evidence {
    let text = format!(
        "connect() to {address} failed at once: {}",
        strerror(errno)
    );
    fact(subject.attempt.ended_at, "connect", text).number("errno", errno.0)
}

fn program_fact(program: &Program) -> Evidence {
    let name = match program.name.as_str() {
        "" => String::new(),
        name => format!(" ({name})"),
    };
    let text = format!(
        "BPF program {}{name} of its control groups is asked about the worker's connects",
        program.id
    );
    fact(None, "cgroup", text)
        .number("program", program.id)
        .text("name", &*program.name)
}

fn cgroup_denied(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (Some((errno, address)), Some(line)) = (at_once(subject), subject.line) else {
        return Check::No;
    };
    let programs = line.programs.as_deref().unwrap_or_default();
    let mut evidence: Vec<Evidence> = programs.iter().map(program_fact).collect();
    evidence.push(connect_fact(subject, address, errno));
    let which = match programs {
        [only] if !only.name.is_empty() => format!("BPF program `{}` (id {})", only.name, only.id),
        [only] => format!("BPF program {}", only.id),
        _ => "A BPF program".to_owned(),
    };
    let summary = format!("{which} of the worker's control groups does not let it connect to {address}.");
    let remedy = |stand: Stand| match programs {
        [only] => stand.with_remedy(format!(
            "`bpftool prog show id {}` and `bpftool cgroup tree` show the program and whose it is; allow {address} there",
            only.id
        )),
        _ => stand,
    };
    match denier(line, errno) {
        Some(ConnectDenied {
            at,
            by: Denier::Cgroup,
            ..
        }) => {
            let said = format!("the control groups' programs gave {}: {}", errno.0, strerror(errno));
            evidence.push(fact(at, "cgroup", said).number("errno", errno.0));
            return remedy(Stand::confirmed(summary, evidence)).into();
        }
        Some(_) => return Check::No,
        // Silence proves little, also where the function is watched: a program may be skipped.
        None => {}
    }
    if errno != Errno(1) || programs.is_empty() {
        return Check::No;
    }
    let found = match siblings(subject, around) {
        Siblings::Ask(question) => return Check::Ask(question),
        Siblings::Unknown => return Check::No,
        Siblings::Known(found) => found,
    };
    // A filter cannot read the address: one that let this worker connect to another address of the family lets it here.
    let is_let_by_seccomp = !found.seccomp || around.can_connect(subject.attempt.worker, address.is_ipv6());
    let is_no_module = found.lsm_programs.as_ref().is_some_and(Vec::is_empty)
        && !found.modules.iter().flatten().any(|module| module == "tomoyo");
    if !is_let_by_seccomp || !is_no_module || found.ipsec_blocked != Some(0) {
        return Check::No;
    }
    evidence.push(fact(
        None,
        "process",
        "no seccomp filter, security module or IPsec policy is there that would have given it",
    ));
    remedy(Stand::likely(summary, evidence)).into()
}

/// What can have denied a connect(): its name, and what speaks for it.
struct Suspect {
    module: &'static str,
    name: String,
    because: String,
}

impl Suspect {
    fn fact(&self) -> Evidence {
        fact(None, "module", self.because.clone()).text("module", self.module)
    }
}

/// Everybody who can have given this errno; `is_module`: a security module was seen to.
fn suspects(errno: Errno, is_module: bool, can_connect: bool, found: &Confinement) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    if found.seccomp && !can_connect && !is_module {
        suspects.push(Suspect {
            module: "seccomp",
            name: "a seccomp filter".to_owned(),
            because: "a seccomp filter judges the worker's system calls, and no connect() of it to an address of this family is \
                known to have passed"
                .to_owned(),
        });
    }
    let active = |name: &str| found.modules.as_ref().map(|modules| modules.iter().any(|module| module == name));
    if let Some(programs) = found.lsm_programs.as_deref().filter(|programs| !programs.is_empty()) {
        let names: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        suspects.push(Suspect {
            module: "bpf",
            name: "a BPF program that acts as a security module".to_owned(),
            because: format!("BPF programs that act as a security module: {}", names.join(", ")),
        });
    }
    match &found.profile {
        Some(profile) if profile.ends_with("(complain)") => {}
        Some(profile) if profile.ends_with(')') => suspects.push(Suspect {
            module: "apparmor",
            name: "AppArmor".to_owned(),
            because: format!("the worker is confined by AppArmor's profile {profile}"),
        }),
        Some(context) => suspects.push(Suspect {
            module: "selinux",
            name: "SELinux, unaudited".to_owned(),
            because: format!("the worker runs in the context {context}, and no denial was audited"),
        }),
        None => {}
    }
    // It gives no other errno, and nothing shows which processes it confines.
    match active("landlock") {
        Some(true) if errno == Errno(13) => suspects.push(Suspect {
            module: "landlock",
            name: "Landlock".to_owned(),
            because: "Landlock is active in this kernel; whom it confines cannot be seen".to_owned(),
        }),
        None if errno == Errno(13) => suspects.push(Suspect {
            module: "landlock",
            name: "a security module that does not show itself, such as Landlock,".to_owned(),
            because: "Landlock may be active in this kernel (securityfs is not mounted, so its security modules are not known)"
                .to_owned(),
        }),
        _ => {}
    }
    suspects
}

fn security_module_denied(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (Some((errno @ Errno(1 | 13), address)), Some(line)) = (at_once(subject), subject.line) else {
        return Check::No;
    };
    let attempt = subject.attempt;
    let denied = denier(line, errno);
    let is_module = denied.is_some_and(|denied| denied.by == Denier::SecurityModule);
    let is_audited = around.denials(attempt.worker, attempt.ended_at).next().is_some();
    // Nobody was seen to: a program of a control group can have, if there is one.
    let may_be_cgroup = line.programs.as_ref().is_none_or(|programs| !programs.is_empty());
    if is_audited || !is_module && (denied.is_some() || may_be_cgroup) {
        return Check::No;
    }
    let found = match siblings(subject, around) {
        Siblings::Ask(question) => return Check::Ask(question),
        Siblings::Unknown => return Check::No,
        Siblings::Known(found) => found,
    };
    let mut evidence = vec![connect_fact(subject, address, errno)];
    match denied {
        Some(ConnectDenied { at, .. }) => {
            let said = format!("the security modules gave {}: {}", errno.0, strerror(errno));
            evidence.push(fact(at, "module", said).number("errno", errno.0));
        }
        // What is asked after them: routing, and IPsec's policies with it.
        None if errno == Errno(1) && found.ipsec_blocked != Some(0) => return Check::No,
        None if errno == Errno(13) => {
            let is_routes = lookup_fact(subject, address).is_some_and(|(looked_up, _)| looked_up == errno);
            let question = Question::Route {
                pid: attempt.worker,
                destination: address.ip(),
            };
            match around.answer(&question, attempt.ended_at) {
                _ if is_routes || !around.sees("routes") => return Check::No,
                None if subject.may_wait => return Check::Ask(question),
                Some(Answer::Route { errno: None, kind, .. })
                    if matches!(kind.as_deref(), Some("unicast" | "local")) =>
                {
                    let text = format!("there is a route to {}, and none that forbids it", address.ip());
                    evidence.push(fact(None, "route", text));
                }
                _ => return Check::No,
            }
        }
        None => {}
    }
    let can_connect = around.can_connect(attempt.worker, address.is_ipv6());
    let suspects = suspects(errno, is_module, can_connect, found);
    evidence.extend(suspects.iter().map(Suspect::fact));
    if found.no_new_privs {
        let text = "the worker can gain no privileges (no_new_privs), which those who confine themselves have to say first";
        evidence.push(fact(None, "process", text));
    }
    let names: Vec<&str> = suspects.iter().map(|suspect| &*suspect.name).collect();
    let summary = match (&names[..], is_module) {
        ([], true) => format!("A security module does not let nginx's worker connect to {address}."),
        ([], _) => return Check::No,
        ([only], _) => format!(
            "nginx's worker may not connect to {address}; everything but {only} that could forbid it was ruled out."
        ),
        (several, _) => format!(
            "nginx's worker may not connect to {address}; one of these forbids it: {}.",
            several.join(", ")
        ),
    };
    Stand::likely(summary, evidence).into()
}
