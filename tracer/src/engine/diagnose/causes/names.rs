//! A name of a request that nginx's own resolver could not turn into an address.
//!
//! nginx says how its resolver ended; that is the kernel of each of these causes. What its nameservers say of the name a
//! moment later, family by family, and whether the system knows a name that nginx's resolver cannot know, is asked after
//! the failure (not with `--resolve off`), through nginx's own namespace and files.

use std::net::SocketAddr;

use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        message::{Meaning, Said, resolver_says},
        surroundings::{ResolverSays, SECOND, Surroundings},
        text::strerror,
    },
    event::{Answer, NameMeaning, NameReply, NameSaid, NameSource, Question},
    model::{Evidence, Outcome},
};

pub const NAME_NOT_FOUND: Cause = Cause {
    id: "name-not-found",
    title: "nginx's nameserver knows no address of the name that the request leads to",
    explains: &[],
    outcomes: &[Outcome::Unresolved],
    nginx_logs: "api.example could not be resolved (3: Host not found)",
    recognised: "nginx says that its resolver ended with 3: the nameserver answered that there is no such name, or that \
        it has no address of either family. The hosts file and search domains, which nginx's resolver does not use, are \
        looked into afterwards, and the nameserver is asked once more",
    needs: &[],
    look_alikes: &["resolver-failed", "resolver-silent", "resolver-undefined"],
    remedy: "correct the name, or give the nameserver that `resolver` names its address; nginx's resolver reads no hosts \
        file and adds no search domain, so write the name in full",
    check: name_not_found,
};

pub const RESOLVER_FAILED: Cause = Cause {
    id: "resolver-failed",
    title: "nginx's nameserver answered that it cannot find out",
    explains: &[],
    outcomes: &[Outcome::Unresolved],
    nginx_logs: "api.example could not be resolved (2: Server failure)",
    recognised: "nginx says that its resolver ended with 2 (or 1, 4): the nameserver answered with SERVFAIL (FORMERR, \
        NOTIMP). One family's failure is enough, though the other has an address: which one it was, the nameserver is \
        asked afterwards",
    needs: &[],
    look_alikes: &["name-not-found", "resolver-refused", "resolver-silent"],
    remedy: "look at the nameserver's own log: its upstream servers, DNSSEC; where only one family fails, leave it out \
        (`resolver … ipv6=off`)",
    check: resolver_failed,
};

pub const RESOLVER_REFUSED: Cause = Cause {
    id: "resolver-refused",
    title: "nginx's nameserver refuses to answer this host",
    explains: &[],
    outcomes: &[Outcome::Unresolved],
    nginx_logs: "api.example could not be resolved (5: Operation refused)",
    recognised: "nginx says that its resolver ended with 5: the nameserver answered with REFUSED",
    needs: &[],
    look_alikes: &["resolver-failed", "resolver-unreachable"],
    remedy: "allow this host in the nameserver (recursion, access list), or name another one in `resolver`",
    check: resolver_refused,
};

pub const RESOLVER_SILENT: Cause = Cause {
    id: "resolver-silent",
    title: "nginx's nameserver gave no answer in time",
    explains: &[],
    outcomes: &[Outcome::Unresolved],
    nginx_logs: "api.example could not be resolved (110: Operation timed out)",
    recognised: "nginx says that its resolver ended with 110, and said nothing of an error of its socket or of an answer \
        that it could not use in the 30 s before",
    needs: &[],
    look_alikes: &["resolver-unreachable", "resolver-failed"],
    remedy: "see that the nameserver runs and that UDP (and TCP) port 53 passes both ways between the two; name several \
        in `resolver`: nginx asks one after the other",
    check: resolver_silent,
};

pub const RESOLVER_UNREACHABLE: Cause = Cause {
    id: "resolver-unreachable",
    title: "nginx could not send to its nameserver, or its host said that nobody listens there",
    explains: &["resolver-silent"],
    outcomes: &[Outcome::Unresolved],
    nginx_logs: "recv() failed (111: Connection refused) while resolving, resolver: 10.0.0.2:53; then api.example could \
        not be resolved (110: Operation timed out)",
    recognised: "nginx says that its resolver ended with 110, and that a socket of its resolver failed in the 6 s \
        before: 111 (an ICMP port unreachable), 101 and 113 (no route), 1 (a firewall rule of this host)",
    needs: &[],
    look_alikes: &["resolver-silent"],
    remedy: "111: start the nameserver, or correct the address in `resolver`; 101, 113: look at the route to it; 1: look \
        at this host's firewall",
    check: resolver_unreachable,
};

pub const RESOLVER_UNDEFINED: Cause = Cause {
    id: "resolver-undefined",
    title: "the request leads to a name that nginx has to look up, and no `resolver` is configured for it",
    explains: &[],
    outcomes: &[Outcome::Unresolved],
    nginx_logs: "no resolver defined to resolve api.example",
    recognised: "nginx says so",
    needs: &[],
    look_alikes: &["name-not-found"],
    remedy: "set `resolver` in http, server or location; or define an upstream of that very name, which is used instead. \
        A name in a variable is not looked up when nginx loads its configuration",
    check: resolver_undefined,
};

/// A longer name may have been cut where it was heard.
const MAX_NAME: usize = 126;

/// A name that nginx's resolver has done with.
struct Ended<'a> {
    name: &'a str,
    /// What the nameservers said when they were asked afterwards; none: they were not.
    replies: &'a [NameReply],
    evidence: Vec<Evidence>,
    /// Who answered nginx, for the beginning of a sentence.
    by: String,
}

/// nginx's line about a name, and the name.
fn unresolved<'a>(subject: &Subject<'a>) -> Option<(&'a Said, &'a str)> {
    let said = subject.lone().filter(|said| said.meaning == Meaning::Unresolved)?;
    Some((said, said.argument.as_deref()?))
}

/// The same where nginx's resolver ended with one of these; `Err`: what the check says instead.
fn ended_with<'a>(subject: &Subject<'a>, around: &'a Surroundings, codes: &[u32]) -> Result<Ended<'a>, Check> {
    let is_of = |said: &Said| said.resolver.is_some_and(|code| codes.contains(&code));
    let Some((said, name)) = unresolved(subject).filter(|(said, _)| is_of(said)) else {
        return Err(Check::No);
    };
    let replies = replies(subject, around, name)?;
    let mut evidence = vec![said_fact(subject, said, name)];
    evidence.extend(replies.iter().map(reply_fact));
    let (whom, comma) = nameserver(&subject.resolved.resolvers);
    Ok(Ended {
        name,
        replies,
        evidence,
        by: whom + comma,
    })
}

fn name_not_found(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let ended = ended_with(subject, around, &[3]);
    let Ended { name, replies, mut evidence, by } = match ended {
        Ok(ended) => ended,
        Err(check) => return check,
    };
    let system = match system_knows(subject, around, name) {
        Ok(system) => system,
        Err(check) => return check,
    };
    if let Some(missing) = one_family(replies, |said| matches!(said, NameSaid::NoSuchName)) {
        return half(missing, format!("{by} told nginx that there is no {name}"), evidence).into();
    }
    let found = replies.iter().find(|reply| has_address(reply));
    let mut summary = format!("{by} told nginx that {name} has no address");
    summary += &match found {
        Some(reply) => format!("; asked again now, {} gives one.", reply.server),
        None => ".".to_owned(),
    };
    let Some(meaning) = system else {
        return Stand::confirmed(summary, evidence).into();
    };
    evidence.push(system_fact(name, meaning));
    let remedy = match (&meaning.from, &meaning.whole) {
        (NameSource::HostsFile, _) => {
            summary += &format!(" The hosts file has {name}, which nginx's resolver does not read.");
            format!(
                "nginx's resolver does not read the hosts file: point `resolver` at a nameserver that knows {name}, or write \
                 the name without a variable (an `upstream` block), so that nginx resolves it as the system does when it loads"
            )
        }
        (NameSource::Nameserver(_), Some(whole)) if whole != name => {
            summary += &format!(" With a search domain of resolv.conf it is {whole}; nginx's resolver adds none.");
            format!("write the name in full: {whole}")
        }
        (NameSource::Nameserver(server), _) if found.is_none() => {
            summary += &format!(" {server}, the nameserver of resolv.conf, knows it.");
            format!("name a nameserver in `resolver` that knows {name}: the system asks {server} (resolv.conf)")
        }
        _ => return Stand::confirmed(summary, evidence).into(),
    };
    Stand::confirmed(summary, evidence).with_remedy(remedy).into()
}

fn resolver_failed(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Ended { name, replies, evidence, by } = match ended_with(subject, around, &[1, 2, 4]) {
        Ok(ended) => ended,
        Err(check) => return check,
    };
    let summary = format!("{by} answered for {name} that it cannot find out");
    match one_family(replies, |said| matches!(said, NameSaid::Fails(_))) {
        Some(failing) => half(failing, summary, evidence).into(),
        None => Stand::confirmed(format!("{summary}."), evidence).into(),
    }
}

fn has_address(reply: &NameReply) -> bool {
    matches!(&reply.said, NameSaid::Addresses(addresses) if !addresses.is_empty())
}

/// The answer for one family that is such an error, while the same server has an address of the other.
fn one_family(replies: &[NameReply], is_error: impl Fn(&NameSaid) -> bool) -> Option<&NameReply> {
    replies.iter().find(|failing| {
        let is_other = |reply: &NameReply| reply.server == failing.server && reply.is_v6 != failing.is_v6;
        is_error(&failing.said) && replies.iter().any(|reply| is_other(reply) && has_address(reply))
    })
}

/// One family's error, which nginx takes for the whole name's.
fn half(failing: &NameReply, summary: String, evidence: Vec<Evidence>) -> Stand {
    let (fails, works, off) = match failing.is_v6 {
        true => ("IPv6", "IPv4", "ipv6=off"),
        false => ("IPv4", "IPv6", "ipv4=off (nginx 1.23.1 or later)"),
    };
    let summary = format!(
        "{summary}: asked again now, it says so for {fails} only and has an address for {works}. nginx takes one family's \
         error for the whole name's."
    );
    Stand::confirmed(summary, evidence).with_remedy(format!(
        "do not ask for what the nameserver cannot answer: `resolver {} {off}`; and mend the nameserver",
        failing.server
    ))
}

fn resolver_refused(subject: &Subject<'_>, around: &Surroundings) -> Check {
    match ended_with(subject, around, &[5]) {
        Ok(Ended { name, evidence, by, .. }) => {
            Stand::confirmed(format!("{by} refused to answer for {name}."), evidence).into()
        }
        Err(check) => check,
    }
}

fn resolver_silent(subject: &Subject<'_>, around: &Surroundings) -> Check {
    // An answer that nginx could not use, or an error of its socket: not silence.
    if complaints(subject, around).next().is_some() {
        return Check::No;
    }
    let Ended { name, replies, evidence, by } = match ended_with(subject, around, &[110]) {
        Ok(ended) => ended,
        Err(check) => return check,
    };
    let is_silent = |reply: &NameReply| matches!(reply.said, NameSaid::Nothing(_));
    let silent = replies.iter().find(|reply| is_silent(reply));
    let summary = format!("{by} gave no answer for {name} within nginx's resolver_timeout.");
    if replies.iter().all(is_silent) {
        let now = if replies.is_empty() { "" } else { " Asked again now, it does not answer either." };
        return Stand::confirmed(summary + now, evidence).into();
    }
    let now = match silent {
        Some(reply) => {
            let family = if reply.is_v6 { "IPv6" } else { "IPv4" };
            format!(" Asked again now, {} answers, but not for {family}: nginx waits for both.", reply.server)
        }
        None => " Asked again now, it answers.".to_owned(),
    };
    Stand::likely(summary + &now, evidence)
        .without("what came back to nginx itself was not seen")
        .into()
}

/// nginx asks a nameserver that does not answer every five seconds: what its socket met the last time.
/// <https://github.com/nginx/nginx/blob/release-1.22.1/src/core/ngx_resolver.c>, `resend_timeout`
const ASKS_AGAIN: u64 = 6 * SECOND;

fn resolver_unreachable(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let is_last = |line: &&ResolverSays| subject.attempt.ended_at.since(line.at) <= ASKS_AGAIN;
    let failed = complaints(subject, around)
        .filter(is_last)
        .filter_map(|line| Some((line, line.errno?)))
        .last();
    let Some((line, errno)) = failed else {
        return Check::No;
    };
    let Ended { name, mut evidence, .. } = match ended_with(subject, around, &[110]) {
        Ok(ended) => ended,
        Err(check) => return check,
    };
    evidence.insert(0, fact(line.at, "nginx", line.text.as_str()).number("errno", errno.0));
    let (whom, comma) = nameserver(&subject.resolved.resolvers);
    let what = match errno.0 {
        111 => format!("the host of {whom}{comma} said that nobody listens there"),
        1 => format!("this host's own firewall kept the question from {whom}"),
        101 | 113 => format!("there is no way to {whom}"),
        _ => format!("nginx could not talk to {whom} ({}: {})", errno.0, strerror(errno)),
    };
    let n = complaints(subject, around).count();
    let times = if n > 1 { format!(" ({n} times)") } else { String::new() };
    let summary = format!("{name} could not be looked up: {what}{times}.");
    let stand = Stand::confirmed(summary, evidence);
    match &subject.resolved.resolvers[..] {
        [_, _, ..] => stand.without("which of several nameservers nginx means").into(),
        _ => stand.into(),
    }
}

/// What nginx said about its resolver while it looked this name up.
fn complaints<'a>(subject: &Subject<'_>, around: &'a Surroundings) -> impl Iterator<Item = &'a ResolverSays> {
    around.resolver_says(subject.attempt.worker, subject.attempt.ended_at)
}

fn resolver_undefined(subject: &Subject<'_>, _: &Surroundings) -> Check {
    let Some((said, name)) = unresolved(subject) else {
        return Check::No;
    };
    if said.resolver.is_some() || !said.text.starts_with("no resolver defined") {
        return Check::No;
    }
    let summary = format!(
        "The request leads to {name}, which nginx has to look up, and no `resolver` is configured where it is handled."
    );
    Stand::confirmed(summary, vec![fact(subject.attempt.ended_at, "nginx", said.text.as_str()).text("name", name)]).into()
}

/// What nginx's nameservers say of the name now; nothing where they may not be asked. `Err`: what the check says instead.
fn replies<'a>(subject: &Subject<'_>, around: &'a Surroundings, name: &str) -> Result<&'a [NameReply], Check> {
    let resolved = subject.resolved;
    if !resolved.may_ask || resolved.resolvers.is_empty() || name.len() > MAX_NAME {
        return Ok(&[]);
    }
    let question = Question::Nameservers {
        pid: resolved.asks,
        servers: resolved.resolvers.clone(),
        name: name.to_owned(),
    };
    match around.answer(&question, subject.attempt.ended_at) {
        Some(Answer::Nameservers { replies }) => Ok(replies),
        None if subject.may_wait => Err(Check::Ask(question)),
        _ => Ok(&[]),
    }
}

/// What the name means to the system, if it means anything.
fn system_knows<'a>(
    subject: &Subject<'_>,
    around: &'a Surroundings,
    name: &str,
) -> Result<Option<&'a NameMeaning>, Check> {
    let resolved = subject.resolved;
    if !resolved.may_ask || name.len() > MAX_NAME {
        return Ok(None);
    }
    let question = Question::Name {
        pid: resolved.asks,
        name: name.to_owned(),
    };
    match around.answer(&question, subject.attempt.ended_at) {
        Some(Answer::Name(meaning)) => Ok(Some(meaning).filter(|meaning| !meaning.addresses.is_empty())),
        None if subject.may_wait => Err(Check::Ask(question)),
        _ => Ok(None),
    }
}

/// Whom nginx asks, and what goes between that and the verb.
fn nameserver(resolvers: &[SocketAddr]) -> (String, &'static str) {
    match resolvers {
        [one] => (format!("{one}, nginx's nameserver"), ","),
        _ => ("nginx's nameserver".to_owned(), ""),
    }
}

fn listed(resolvers: &[SocketAddr]) -> String {
    let shown: Vec<String> = resolvers.iter().take(3).map(ToString::to_string).collect();
    shown.join(", ")
}

fn said_fact(subject: &Subject<'_>, said: &Said, name: &str) -> Evidence {
    let code = said.resolver.unwrap_or_default();
    let resolvers = listed(&subject.resolved.resolvers);
    let of = if resolvers.is_empty() { String::new() } else { format!(" ({resolvers})") };
    let text = format!("the resolver{of} ended with {code}: {}", resolver_says(code));
    fact(subject.attempt.ended_at, "nginx", text)
        .text("name", name)
        .text("resolver", resolvers)
        .number("code", code)
}

fn reply_fact(reply: &NameReply) -> Evidence {
    let kind = if reply.is_v6 { "AAAA" } else { "A" };
    let said = match &reply.said {
        NameSaid::Addresses(addresses) if addresses.is_empty() => "no address".to_owned(),
        NameSaid::Addresses(addresses) => {
            let shown: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
            shown.join(", ")
        }
        NameSaid::NoSuchName => "NXDOMAIN".to_owned(),
        NameSaid::Fails(code) => code.clone(),
        NameSaid::Nothing(why) => why.clone(),
    };
    fact(None, "name", format!("{} asked again for {kind}: {said}", reply.server))
        .text("server", reply.server.to_string())
        .text("type", kind)
        .text("said", said)
}

fn system_fact(name: &str, meaning: &NameMeaning) -> Evidence {
    let of = match meaning.from {
        NameSource::HostsFile => "",
        NameSource::Nameserver(_) => " of resolv.conf",
    };
    let source = format!("{}{of}", meaning.from);
    let addresses: Vec<String> = meaning.addresses.iter().take(4).map(ToString::to_string).collect();
    let whole = meaning.whole.as_deref().unwrap_or(name);
    fact(None, "name", format!("{whole} means {} ({source})", addresses.join(", ")))
        .text("whole", whole)
        .text("addresses", addresses.join(", "))
        .text("from", source)
}
