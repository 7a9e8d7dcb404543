//! A connect to a unix socket that failed at once: the errno says what, the path and its history say why.

use super::facts::{Walk, failed_at_once};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{Death, Surroundings},
        text::{between, ended, process},
    },
    event::{PathComponent, Task, UnixPath, UnixSocket},
    model::{Evidence, Outcome},
};

pub const UNIX_MISSING: Cause = Cause {
    id: "unix-missing",
    title: "the socket file is not there",
    explains: &[],
    outcomes: &[Outcome::Missing],
    nginx_logs: "connect() to unix:/run/app.sock failed (2: No such file or directory) while connecting to upstream",
    recognised: "connect(2) failed with 2, 20 or 40; the walk along the path in nginx's own root says which component is \
        missing",
    needs: &[],
    look_alikes: &["unix-stale-socket", "unix-permission"],
    remedy: "start the backend, or correct the path; a backend with PrivateTmp or in a container may have its socket \
        elsewhere",
    check: unix_missing,
};

pub const UNIX_PERMISSION: Cause = Cause {
    id: "unix-permission",
    title: "nginx's worker may not use the socket file or a directory above it",
    explains: &[],
    outcomes: &[Outcome::Denied],
    nginx_logs: "connect() to unix:/run/app.sock failed (13: Permission denied) while connecting to upstream",
    recognised: "connect(2) failed with 13, and the permission bits along the path forbid it to the worker's user and groups",
    needs: &[],
    look_alikes: &["selinux-denied", "route-forbids", "unix-missing"],
    remedy: "give nginx's user write permission on the socket and search permission on each directory (a common group, \
        mode 0660)",
    check: unix_permission,
};

pub const UNIX_STALE_SOCKET: Cause = Cause {
    id: "unix-stale-socket",
    title: "the socket file is there, but nobody serves it any more",
    explains: &[],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() to unix:/run/app.sock failed (111: Connection refused) while connecting to upstream",
    recognised: "connect(2) failed with 111, the path is a socket, and no socket on this host is bound to it; who served \
        it and how that process ended, where it was seen",
    needs: &[],
    look_alikes: &["unix-not-listening", "unix-backlog-full", "unix-missing"],
    remedy: "start the backend again; it left its socket file behind when it ended",
    check: unix_stale_socket,
};

pub const UNIX_REPLACED: Cause = Cause {
    id: "unix-replaced",
    title: "nginx sees a removed socket file; another one is in its place, and a backend listens there",
    explains: &["unix-stale-socket"],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() to unix:/run/app.sock failed (111: Connection refused) while connecting to upstream",
    recognised: "connect(2) failed with 111; the path leads nginx to a socket file that is mounted alone (as containers do with \
        `-v /run/app.sock:/run/app.sock`), was removed where it was mounted from, and that nobody serves; a process listens on \
        another file at that very place of the same file system",
    needs: &[],
    look_alikes: &["unix-stale-socket", "unix-missing"],
    remedy: "mount the folder that holds the socket instead of the socket file, and restart nginx's container: a mount of a file \
        goes on showing the old one when the backend makes its socket anew",
    check: unix_replaced,
};

pub const UNIX_NOT_LISTENING: Cause = Cause {
    id: "unix-not-listening",
    title: "the path is bound but not listening, or it is no socket at all",
    explains: &[],
    outcomes: &[Outcome::Refused],
    nginx_logs: "connect() to unix:/run/app.sock failed (111: Connection refused) while connecting to upstream",
    recognised: "connect(2) failed with 111, and the path is a file or directory, or a socket is bound to it that does not \
        listen",
    needs: &[],
    look_alikes: &["unix-stale-socket"],
    remedy: "correct the path if it is no socket; otherwise the backend has bound its socket and not called listen() yet",
    check: unix_not_listening,
};

pub const UNIX_BACKLOG_FULL: Cause = Cause {
    id: "unix-backlog-full",
    title: "the unix socket's listen queue is full",
    explains: &[],
    outcomes: &[Outcome::Exhausted],
    nginx_logs: "connect() to unix:/run/app.sock failed (11: Resource temporarily unavailable) while connecting to upstream",
    recognised: "connect(2) on a unix stream socket failed with 11, which means exactly this; the queue and its owner are \
        read from the host",
    needs: &[],
    look_alikes: &["unix-stale-socket"],
    remedy: "the backend does not accept fast enough: more workers (pm.max_children, --workers), or a larger backlog \
        together with net.core.somaxconn",
    check: unix_backlog_full,
};

pub const UNIX_WRONG_TYPE: Cause = Cause {
    id: "unix-wrong-type",
    title: "the unix socket is of another type than a stream socket",
    explains: &[],
    outcomes: &[Outcome::Missing],
    nginx_logs: "connect() to unix:/run/app.sock failed (91: Protocol wrong type for socket) while connecting to upstream",
    recognised: "connect(2) on a unix stream socket failed with 91, which means exactly this; what kind of socket is bound \
        there, and whose, is read from the host",
    needs: &[],
    look_alikes: &["unix-not-listening", "unix-missing"],
    remedy: "correct the path in the upstream, or give the backend a stream socket: a log or notify socket (SOCK_DGRAM) \
        takes no connections",
    check: unix_wrong_type,
};

fn connect_fact(subject: &Subject<'_>, path: &str) -> Evidence {
    let errno = subject.errno().unwrap_or_default();
    fact(
        subject.attempt.ended_at,
        "file",
        format!("connect() to {path} failed at once"),
    )
    .number("errno", errno)
}

fn component_fact(component: &PathComponent, why: &str) -> Evidence {
    let text = format!(
        "{}: {} with mode {:04o}, owner {}:{}{why}",
        component.path,
        component.kind,
        component.mode & 0o7777,
        component.uid,
        component.gid
    );
    fact(None, "file", text)
        .text("path", &*component.path)
        .text("kind", &*component.kind)
        .number("mode", component.mode & 0o7777)
        .number("uid", component.uid)
        .number("gid", component.gid)
}

/// Who served the path before, and its end where it was seen.
fn server<'a>(path: &str, around: &'a Surroundings) -> Option<(&'a Task, Option<&'a Death>)> {
    let known: Vec<&Task> = around
        .listeners_at(path)
        .rev()
        .map(|life| &life.listener.task)
        .chain(around.server_of(path))
        .collect();
    let dead = known
        .iter()
        .find_map(|task| around.death(task.pid).map(|death| (*task, Some(death))));
    dead.or_else(|| known.first().map(|task| (*task, None)))
}

/// The server's end as a sentence and as evidence.
fn server_story(subject: &Subject<'_>, path: &str, around: &Surroundings) -> (String, Vec<Evidence>) {
    let Some((task, death)) = server(path, around) else {
        return (String::new(), Vec::new());
    };
    let Some(death) = death else {
        let text = format!("{}[{}] had served {path}", task.comm, task.pid);
        let evidence = fact(None, "process", text)
            .number("pid", task.pid.0)
            .text("comm", &*task.comm);
        return (format!(" {} had served it.", process(task)), vec![evidence]);
    };
    let Some(exit) = death.task.exiting else {
        return (String::new(), Vec::new());
    };
    let how = ended(exit, death.task.oom, Some(death));
    let sentence = format!(
        " {}, which had served it, {how} {} before.",
        process(task),
        between(death.at, subject.attempt.ended_at)
    );
    let end = super::facts::End {
        exit,
        oom: death.task.oom,
        death: Some(death),
        task,
    };
    (sentence, vec![end.fact(death.at)])
}

fn unix_missing(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some((path, walk)) = failed_at_once(subject, around, &[2, 20, 40]) else {
        return Check::No;
    };
    let mut evidence = vec![connect_fact(subject, path)];
    let (history, facts) = server_story(subject, path, around);
    evidence.extend(facts);
    let summary = match (walk, subject.errno()) {
        (Walk::Ask(question), _) => return Check::Ask(question),
        (_, Some(40)) => format!("{path} cannot be reached: its symbolic links go in circles."),
        (
            Walk::Known(UnixPath {
                stopped: Some((component, errno)),
                sockets,
                ..
            }),
            _,
        ) => {
            let why = if errno.0 == 20 {
                "is no directory"
            } else {
                "does not exist"
            };
            evidence.push(
                fact(None, "file", format!("{component} {why}"))
                    .text("path", &**component)
                    .number("errno", errno.0),
            );
            evidence.extend(sockets.iter().filter_map(|socket| {
                socket_fact(path, socket, " (in another mount namespace or directory)")
            }));
            if component == path {
                format!("{path} does not exist in nginx's view of the file system.")
            } else {
                format!("{component} {why} in nginx's view of the file system, so {path} cannot be reached.")
            }
        }
        (Walk::Known(UnixPath { stopped: None, .. }), _) => {
            evidence.push(fact(None, "file", format!("{path} exists now")).text("path", path));
            format!("{path} did not exist at that moment; it is there now.")
        }
        (Walk::Unknown, Some(20)) => format!("A component of {path} is no directory."),
        (Walk::Unknown, _) => format!("{path} does not exist in nginx's view of the file system."),
    };
    Stand::confirmed(summary + &history, evidence).into()
}

fn unix_permission(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (path, walk) = match failed_at_once(subject, around, &[13]) {
        Some((_, Walk::Ask(question))) => return Check::Ask(question),
        Some((path, Walk::Known(walk))) => (path, walk),
        Some((_, Walk::Unknown)) | None => return Check::No,
    };
    let Some(barrier) = walk.components.iter().find(|component| !component.allowed) else {
        return Check::No;
    };
    let (uid, gid, groups, _) = &walk.credentials;
    let needs = if barrier.kind == "directory" {
        "search (x)"
    } else {
        "write (w)"
    };
    let evidence = vec![
        connect_fact(subject, path),
        component_fact(barrier, &format!("; the worker needs {needs}")),
        fact(
            None,
            "file",
            format!(
                "worker {} runs as {uid}:{gid}, groups {groups:?}",
                subject.attempt.worker
            ),
        )
        .number("uid", *uid)
        .number("gid", *gid),
    ];
    let summary = format!(
        "nginx's worker ({uid}:{gid}) may not {} {}: its mode is {:04o}, owner {}:{}.",
        if barrier.kind == "directory" {
            "search the directory"
        } else {
            "write to"
        },
        barrier.path,
        barrier.mode & 0o7777,
        barrier.uid,
        barrier.gid
    );
    let remedy = format!(
        "give user {uid} (or one of its groups) {needs} permission on {}: a common group and mode {}",
        barrier.path,
        if barrier.kind == "directory" {
            "0750"
        } else {
            "0660"
        }
    );
    Stand::confirmed(summary, evidence).with_remedy(remedy).into()
}

/// The path's last component, when the walk reached it.
fn last(path: &UnixPath) -> Option<&PathComponent> {
    path.components.last().filter(|_| path.stopped.is_none())
}

/// Whether a bound socket belongs to the very file nginx connected to.
fn is_bound_to(socket: &UnixSocket, file: &PathComponent) -> bool {
    socket.file.is_none_or(|inode| inode == file.inode)
}

fn socket_fact(path: &str, socket: &UnixSocket, remark: &str) -> Option<Evidence> {
    let (pid, comm) = socket.owners.first()?;
    let state = if socket.listening {
        "listens"
    } else {
        "is bound, not listening"
    };
    let base = fact(
        None,
        "listener",
        format!(
            "a {} socket of {comm}[{pid}] {state} at {path}{remark}",
            socket.kind
        ),
    )
    .number("pid", pid.0)
    .text("comm", &**comm)
    .flag("listening", socket.listening);
    Some(match socket.queue {
        Some((queue, limit)) => base.number("queue", queue).number("limit", limit),
        None => base,
    })
}

/// The path at which a connect was refused, what the host says of it, and the file at its end; without them, what is to be
/// done instead.
fn refused_at<'a>(
    subject: &Subject<'a>,
    around: &'a Surroundings,
) -> Result<(&'a str, &'a UnixPath, &'a PathComponent), Check> {
    match failed_at_once(subject, around, &[111]) {
        Some((_, Walk::Ask(question))) => Err(Check::Ask(question)),
        Some((path, Walk::Known(walk))) => last(walk).map(|file| (path, walk, file)).ok_or(Check::No),
        Some((_, Walk::Unknown)) | None => Err(Check::No),
    }
}

fn unix_stale_socket(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (path, walk, file) = match refused_at(subject, around) {
        Ok(found) => found,
        Err(check) => return check,
    };
    if file.kind != "socket" {
        return Check::No;
    }
    // Somebody is there, on this file or on another one of the same name: then it is not merely left behind, unless that
    // other one came in its place.
    if walk.sockets.iter().any(|socket| socket.in_place_at.is_none()) {
        return Check::No;
    }
    let mut evidence = vec![
        connect_fact(subject, path),
        component_fact(file, "; no socket is bound to it"),
    ];
    let (history, facts) = server_story(subject, path, around);
    evidence.extend(facts);
    let summary = format!("{path} is a socket file that nobody serves any more.{history}");
    let stand = Stand::confirmed(summary, evidence);
    match server(path, around) {
        Some((task, _)) => stand
            .with_remedy(format!(
                "start {} again; it left its socket file behind when it ended",
                task.comm
            ))
            .into(),
        None => stand.into(),
    }
}

fn unix_replaced(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (path, walk, file) = match refused_at(subject, around) {
        Ok(found) => found,
        Err(check) => return check,
    };
    if file.kind != "socket" {
        return Check::No;
    }
    let is_served = |socket: &UnixSocket| socket.in_place_at.is_none() && is_bound_to(socket, file);
    let mut live = walk.sockets.iter().filter_map(|socket| {
        let at = socket.in_place_at.as_deref()?;
        (socket.listening && socket.kind == "stream").then_some((socket, at))
    });
    let Some((socket, at)) = live.next().filter(|_| !walk.sockets.iter().any(is_served)) else {
        return Check::No;
    };
    let mut evidence = vec![
        connect_fact(subject, path),
        component_fact(file, "; mounted alone, removed at its source, and no socket is bound to it"),
    ];
    evidence.extend(socket_fact(at, socket, ", on the file that is there now").map(|fact| {
        let (_, inode) = socket.file.unwrap_or_default();
        fact.text("path", at).count("inode", inode)
    }));
    let who = socket
        .owners
        .first()
        .map_or("a process".to_owned(), |(pid, comm)| format!("{comm} (pid {pid})"));
    let summary = format!(
        "nginx sees at {path} a socket file that was removed since it was mounted there; {who} listens on a new one at {at}."
    );
    Stand::likely(summary, evidence).into()
}

fn unix_not_listening(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (path, walk, file) = match refused_at(subject, around) {
        Ok(found) => found,
        Err(check) => return check,
    };
    let mut evidence = vec![connect_fact(subject, path)];
    if file.kind != "socket" {
        evidence.push(component_fact(file, ""));
        let summary = format!("{path} is no socket but a {}.", file.kind);
        return Stand::confirmed(summary, evidence)
            .with_remedy("correct the path in the upstream")
            .into();
    }
    let Some(bound) = walk
        .sockets
        .iter()
        .find(|socket| !socket.listening && is_bound_to(socket, file))
    else {
        return Check::No;
    };
    if walk
        .sockets
        .iter()
        .any(|socket| socket.listening && is_bound_to(socket, file))
    {
        return Check::No;
    }
    let who = bound
        .owners
        .first()
        .map_or("A process".to_owned(), |(pid, comm)| {
            format!("{comm} (pid {pid})")
        });
    evidence.extend(socket_fact(path, bound, ""));
    Stand::confirmed(
        format!("{who} has bound {path} but does not listen on it."),
        evidence,
    )
    .into()
}

fn unix_wrong_type(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let (path, walk) = match failed_at_once(subject, around, &[91]) {
        Some((_, Walk::Ask(question))) => return Check::Ask(question),
        Some((path, Walk::Known(walk))) => (path, Some(walk)),
        Some((path, Walk::Unknown)) => (path, None),
        None => return Check::No,
    };
    let mut evidence = vec![connect_fact(subject, path)];
    let bound = walk.and_then(|walk| {
        let file = last(walk)?;
        let mut others = walk.sockets.iter().filter(|socket| socket.kind != "stream");
        others.find(|socket| is_bound_to(socket, file))
    });
    let summary = match bound {
        Some(socket) => {
            evidence.extend(socket_fact(path, socket, ""));
            let mut owners = socket.owners.iter();
            let of = owners
                .next()
                .map_or(String::new(), |(pid, comm)| format!(" of {comm} (pid {pid})"));
            format!("{path} is a {} socket{of}; nginx connects a stream socket.", socket.kind)
        }
        None => format!("The socket at {path} is no stream socket, as nginx's is."),
    };
    Stand::confirmed(summary, evidence).into()
}

fn unix_backlog_full(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some((path, walk)) = failed_at_once(subject, around, &[11]) else {
        return Check::No;
    };
    let mut evidence = vec![connect_fact(subject, path)];
    let walk = match walk {
        Walk::Ask(question) => return Check::Ask(question),
        Walk::Known(walk) => Some(walk),
        Walk::Unknown => None,
    };
    let listener = walk.and_then(|walk| walk.sockets.iter().find(|socket| socket.listening));
    let Some(listener) = listener else {
        let (history, facts) = server_story(subject, path, around);
        evidence.extend(facts);
        return Stand::confirmed(format!("The listen queue of {path} is full.{history}"), evidence).into();
    };
    evidence.extend(socket_fact(path, listener, ""));
    let who = listener
        .owners
        .first()
        .map(|(pid, comm)| format!("{comm} (pid {pid})"));
    let queue = listener
        .queue
        .map(|(queue, limit)| format!("{queue} waiting a moment later, limit {limit}"));
    let details: Vec<String> = queue.into_iter().chain(who).collect();
    let summary = if details.is_empty() {
        format!("The listen queue of {path} is full.")
    } else {
        format!("The listen queue of {path} is full ({}).", details.join("; "))
    };
    let stand = Stand::confirmed(summary, evidence);
    match listener.queue {
        Some((_, limit)) => stand
            .with_remedy(format!(
                "the backend does not accept fast enough: give it more workers, or raise its backlog above {limit} together \
                 with net.core.somaxconn"
            ))
            .into(),
        None => stand.into(),
    }
}
