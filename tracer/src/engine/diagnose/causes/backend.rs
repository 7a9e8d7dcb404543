//! The backend's process ended, or stopped serving, with this connection in its hands.

use super::facts::{End, answered, closing_facts, end_of, listener_closed_fact, told_numbers};
use crate::{
    engine::{
        diagnose::{Cause, Check, Stand, Subject, fact},
        surroundings::{Death, ListenerLife, SECOND, Surroundings, is_stop},
        text::{between, process, signal_name},
    },
    event::{Exchange, Exit, Ktime, Peer, Pid, Task, Told},
    model::{Confidence, Evidence, Outcome},
};

/// What follows from the end of a backend.
const EXPLAINED: &[&str] = &[
    "closed-unread",
    "closed-abortively",
    "closed-on-accept",
    "closed-without-response",
    "closed-mid-response",
    "response-unread",
    "keepalive-race",
    "tls-failed",
];

pub const BACKEND_DIED: Cause = Cause {
    id: "backend-died",
    title: "the backend's process was killed or crashed with this request in hand",
    explains: EXPLAINED,
    outcomes: &[Outcome::Closed, Outcome::Reset],
    nginx_logs: "upstream prematurely closed connection while reading response header from upstream; or recv() failed \
        (104: Connection reset by peer)",
    recognised: "the process that held the other end ended by a signal other than TERM, INT, QUIT and HUP, by the OOM \
        killer or with a non-zero code, and its end closed the connection; `likely` when it closed the connection and \
        ended within 250 ms, or when it closed the connection within 5 s of an ABRT from another process. A code after \
        TERM, INT or QUIT is no death",
    needs: &[],
    look_alikes: &[
        "backend-restarting",
        "closed-without-response",
        "closed-unread",
        "keepalive-race",
    ],
    remedy: "find out why it died (its own log, the kernel log, the supervisor's); a request that kills it will do so \
        again",
    check: backend_died,
};

pub const BACKEND_RESTARTING: Cause = Cause {
    id: "backend-restarting",
    title: "the backend was stopped or restarted and closed this connection with it",
    explains: EXPLAINED,
    outcomes: &[Outcome::Closed, Outcome::Reset],
    nginx_logs: "upstream prematurely closed connection while reading response header from upstream; or recv() failed \
        (104: Connection reset by peer)",
    recognised: "the process that held the other end ended in an orderly way (TERM, INT, QUIT, HUP or code 0) with the \
        connection open, was killed by its master that had been told to stop, or closed its listener together with the \
        connection; `likely` when it closed the connection and ended within 250 ms (confirmed where its parent had been \
        sent HUP, QUIT, USR2, TERM or INT in the 5 s before), or closed it within 30 s of a TERM or INT from another \
        process",
    needs: &[],
    look_alikes: &["backend-died", "closed-without-response", "closed-on-accept"],
    remedy: "let the backend finish its requests before it stops (graceful shutdown), or take it out of the upstream first",
    check: backend_restarting,
};

/// Who closed the other end, and when, as far as it is known.
fn closer(exchange: &Exchange) -> Option<(&Task, Ktime)> {
    let backend = exchange.backend.as_ref()?;
    let at = backend
        .closed_at
        .or(exchange.fin_at)
        .or(exchange.reset_at)
        .or(exchange.eof_read_at)
        .or(exchange.error_at);
    let task = backend.closed_by.as_ref().or(backend.task.as_ref())?;
    Some((task, at.unwrap_or(exchange.ended_at)))
}

/// How the process that held the other end came to its end, and that this closed the connection.
struct Closing<'a> {
    end: End<'a>,
    /// When the connection was closed.
    at: Ktime,
    /// Closed by the exit itself, as all that a process holds; otherwise the process closed it and ended right after.
    is_by_exit: bool,
}

/// A process on its way out closes what it holds first: a worker that leaves its loop, a runtime that unwinds.
const ON_ITS_WAY_OUT: u64 = 250_000_000;

fn closing<'a>(exchange: &'a Exchange, around: &'a Surroundings) -> Option<Closing<'a>> {
    let (task, at) = closer(exchange)?;
    let reader = exchange.backend.as_ref().and_then(|backend| backend.task.as_ref());
    if let Some(reader) = reader.filter(|reader| reader.pid != task.pid) {
        // A child that had inherited the connection closed it last; what became of its server is the reason.
        let latest = Ktime(at.0.saturating_add(ON_ITS_WAY_OUT));
        let death = around.death_between(reader.pid, exchange.began_at, latest)?;
        let end = End {
            exit: death.task.exiting?,
            oom: death.task.oom,
            death: Some(death),
            task: reader,
        };
        let is_by_exit = death.at.since(at) <= 1_000_000;
        return Some(Closing { end, at, is_by_exit });
    }
    let end = end_of(task, at, around)?;
    let is_by_exit = match (task.exiting, end.death) {
        (Some(_), _) => true,
        (None, Some(death)) if death.at.since(at) <= 1_000_000 => true,
        (None, Some(death)) if death.at.since(at) <= ON_ITS_WAY_OUT => false,
        (None, _) => return None,
    };
    Some(Closing { end, at, is_by_exit })
}

impl Closing<'_> {
    fn stand(&self, exchange: &Exchange) -> Stand {
        let mut evidence = closing_facts(exchange);
        evidence.push(self.end.fact(self.at));
        if self.is_by_exit {
            let summary = format!("{} {}.", self.end.sentence(), in_hand(exchange));
            return Stand::confirmed(summary, evidence);
        }
        let later = self
            .end
            .death
            .map_or(String::new(), |death| format!(" {} later", between(self.at, death.at)));
        let summary = format!(
            "{} closed the connection {}, and{later} {}.",
            process(self.end.task),
            in_hand(exchange),
            self.end.how()
        );
        Stand::likely(summary, evidence)
    }

    /// The master that killed it because it had been told to stop itself.
    fn told_master(&self, around: &Surroundings) -> Option<(&Task, Ktime, Told)> {
        let death = self.end.death?;
        let master = death.signalled_by.as_ref()?;
        let (sent_at, told) = around.told_before(master.pid, death.at)?;
        is_stop(told.signal).then_some((master, sent_at, told))
    }

    fn stand_with_master(&self, exchange: &Exchange, master: &Task, sent_at: Ktime, told: &Told) -> Stand {
        let mut evidence = closing_facts(exchange);
        evidence.push(self.end.fact(self.at));
        let at = self.end.death.map_or(self.at, |death| death.at);
        evidence.push(told_fact(sent_at, master, told));
        let summary = format!(
            "{} {}; {} had been told to stop: {} from {} {} before.",
            self.end.sentence(),
            in_hand(exchange),
            process(master),
            signal_name(told.signal),
            process(&told.by),
            between(sent_at, at)
        );
        Stand::confirmed(summary, evidence).with_remedy(
            "let the backend finish its requests before it stops (graceful shutdown; PHP-FPM: process_control_timeout), or \
             take it out of the upstream first",
        )
    }

    /// It was killed, and by whom and why cannot be seen here.
    fn is_killer_unseen(&self, around: &Surroundings) -> bool {
        self.end.exit == Exit::Signal(9) && !self.end.oom && self.end.death.is_some() && !around.sees("signals")
    }

    /// Its parent, which ended in an orderly way right after it.
    fn gone_master<'a>(&self, around: &'a Surroundings) -> Option<&'a Death> {
        let death = self.end.death?;
        let latest = Ktime(death.at.0.saturating_add(SECOND));
        around
            .death_between(death.parent, death.at, latest)
            .filter(|master| master.is_orderly())
    }

    /// What its parent had been told last, where nobody told it anything: many a master tells its workers over a pipe.
    fn told_parent(&self, around: &Surroundings) -> Option<(&Death, Ktime, Told)> {
        // To the first process of the host such signals mean something else.
        let death = self.end.death.filter(|death| death.parent != Pid(1))?;
        let (sent_at, told) = around.told_to_renew(death.parent, death.at)?;
        self.sender().is_none().then_some((death, sent_at, told))
    }

    /// Shortly after the signal the end was its doing; later it may have been, and what was seen of the end itself counts.
    fn stand_with_parent(&self, exchange: &Exchange, death: &Death, sent_at: Ktime, told: &Told) -> Stand {
        const AT_ONCE: u64 = 5_000_000_000;
        let mut stand = self.stand(exchange);
        let signal = signal_name(told.signal);
        let text = format!(
            "its parent, pid {}, was sent {signal} by {}[{}]",
            death.parent, told.by.comm, told.by.pid
        );
        let fact = fact(sent_at, "process", text).number("pid", death.parent.0);
        stand.evidence.push(told_numbers(fact, told));
        stand.summary = format!(
            "{}; its parent (pid {}) had been sent {signal} by {} {} before.",
            stand.summary.trim_end_matches('.'),
            death.parent,
            process(&told.by),
            between(sent_at, death.at)
        );
        if death.at.since(sent_at) > AT_ONCE {
            return stand;
        }
        stand.confidence = Confidence::Confirmed;
        stand.with_remedy(
            "a server that is told to reload or to stop ends its workers, and they close their kept connections: let nginx \
             try again (proxy_next_upstream; non_idempotent for POST), or take it out of the upstream first",
        )
    }

    fn stand_with_gone_master(&self, exchange: &Exchange, master: &Death) -> Stand {
        let stand = self.stand(exchange);
        let summary = format!(
            "{} {}; its master, {}, ended right after it.",
            self.end.sentence(),
            in_hand(exchange),
            process(&master.task)
        );
        Stand::likely(summary, stand.evidence).without("who killed it")
    }

    fn stand_without_killer(&self, exchange: &Exchange) -> Stand {
        let stand = self.stand(exchange);
        Stand::likely(stand.summary, stand.evidence).without("who killed it")
    }

    /// Who sent the signal that ended it, or that it ended itself upon.
    fn sender(&self) -> Option<&Task> {
        let death = self.end.death?;
        let told = death.told.as_ref().map(|told| &told.by);
        death.signalled_by.as_ref().or(told)
    }
}

/// How far the request had come, as the end of a sentence.
fn in_hand(exchange: &Exchange) -> String {
    let read = exchange.backend.as_ref().map_or(0, |backend| backend.read);
    if exchange.received > 0 {
        format!("after {}", answered(exchange))
    } else if read > 0 {
        format!(
            "{} after it read this request",
            match exchange
                .backend
                .as_ref()
                .and_then(|backend| backend.first_read_at)
            {
                Some(first) => between(first, exchange.ended_at),
                None => "shortly".to_owned(),
            }
        )
    } else {
        "before it read any of this request".to_owned()
    }
}

fn backend_died(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connected() else {
        return Check::No;
    };
    let Some(closing) = closing(exchange, around) else {
        return match TellsToEnd::find(exchange, around) {
            Some(told) if !is_stop(told.told.signal) => subject.wait_or(
                told.stand(exchange)
                    .with_remedy(why_killed(&told.told.by, told.task))
                    .into(),
            ),
            Some(_) | None => wait_for_the_end(subject, exchange),
        };
    };
    if closing.end.is_orderly() || closing.told_master(around).is_some() {
        return Check::No;
    }
    if closing.is_killer_unseen(around) {
        return match closing.gone_master(around) {
            Some(_) => Check::No,
            None => subject.wait_or(closing.stand_without_killer(exchange).into()),
        };
    }
    let mut stand = closing.stand(exchange);
    if closing.end.oom {
        stand = stand.with_remedy(format!(
            "find what took the memory: raise the limit of {} or make it use less",
            closing.end.task.comm
        ));
    } else if let Some(sender) = closing.sender() {
        stand = stand.with_remedy(why_killed(sender, closing.end.task));
    }
    stand.into()
}

/// For what the masters of servers kill their workers, by the beginning of their processes' names.
const MASTERS: &[(&str, &str)] = &[
    (
        "gunicorn",
        "gunicorn's master ends a worker that is busy for longer than its timeout (30 s unless set): make the request \
         shorter, raise --timeout, or take a worker class whose requests do not hold it up",
    ),
    (
        "uwsgi",
        "uWSGI's master kills a worker whose request takes longer than harakiri: make the request shorter, or raise \
         harakiri",
    ),
];

/// The remedy where somebody killed the process.
fn why_killed(sender: &Task, killed: &Task) -> String {
    let known = MASTERS
        .iter()
        .find(|(name, _)| sender.comm.starts_with(name) && killed.comm.starts_with(name));
    match known {
        Some((_, why)) => (*why).to_owned(),
        None => format!(
            "find out why {} killed it (a supervisor's or worker manager's own timeout is the usual reason)",
            process(sender)
        ),
    }
}

/// `gunicorn[4242] was sent SIGABRT by gunicorn[4240]`.
fn told_fact(at: Ktime, task: &Task, told: &Told) -> Evidence {
    let text = format!(
        "{}[{}] was sent {} by {}[{}]",
        task.comm,
        task.pid,
        signal_name(told.signal),
        told.by.comm,
        told.by.pid
    );
    let fact = fact(at, "process", text)
        .number("pid", task.pid.0)
        .text("comm", &*task.comm);
    told_numbers(fact, told)
}

/// A process that was told to end and then closed the connection, whether it has ended yet or not: a large application
/// takes longer to come down than anybody waits for.
struct TellsToEnd<'a> {
    told: Told,
    sent_at: Ktime,
    task: &'a Task,
    closed_at: Ktime,
}

impl<'a> TellsToEnd<'a> {
    fn find(exchange: &'a Exchange, around: &Surroundings) -> Option<Self> {
        let backend = exchange.backend.as_ref()?;
        let (task, closed_at) = (backend.closed_by.as_ref()?, backend.closed_at?);
        let is_its_reader = backend.task.as_ref().is_none_or(|reader| reader.pid == task.pid);
        let (sent_at, told) = around.told_before(task.pid, closed_at)?;
        is_its_reader.then_some(Self {
            told,
            sent_at,
            task,
            closed_at,
        })
    }

    fn stand(&self, exchange: &Exchange) -> Stand {
        let Self {
            told,
            sent_at,
            task,
            closed_at,
        } = self;
        let signal = signal_name(told.signal);
        let mut evidence = closing_facts(exchange);
        evidence.push(told_fact(*sent_at, task, told));
        Stand::likely(
            format!(
                "{} closed the connection {}, {} after {signal} from {}.",
                process(task),
                in_hand(exchange),
                between(*sent_at, *closed_at),
                process(&told.by)
            ),
            evidence,
        )
    }
}

fn backend_restarting(subject: &Subject<'_>, around: &Surroundings) -> Check {
    let Some(exchange) = subject.connected() else {
        return Check::No;
    };
    if let Some(closing) = closing(exchange, around) {
        if let Some((master, sent_at, told)) = closing.told_master(around) {
            return closing
                .stand_with_master(exchange, master, sent_at, &told)
                .into();
        }
        if closing.is_killer_unseen(around) {
            return match closing.gone_master(around) {
                Some(master) => closing.stand_with_gone_master(exchange, master).into(),
                None => subject.wait_or(Check::No),
            };
        }
        if !closing.end.is_orderly() {
            return Check::No;
        }
        if let Some((death, sent_at, told)) = closing.told_parent(around) {
            return closing
                .stand_with_parent(exchange, death, sent_at, &told)
                .into();
        }
        let stand = closing.stand(exchange);
        let parent = closing.end.death.map(|death| death.parent);
        return match closing.sender() {
            Some(sender) if Some(sender.pid) == parent => stand.with_remedy(format!(
                "find out why {}, its parent, stopped it: a limit on the time of a request (request_terminate_timeout, \
                 --timeout), or a reload that does not wait for requests under way",
                process(sender)
            )),
            None if closing.end.exit == Exit::Code(0) => stand.with_remedy(
                "it ended by itself: where workers are replaced after a number of requests (max_requests), raise the \
                 number or let nginx try another (proxy_next_upstream); otherwise let it finish its requests first",
            ),
            _ => stand,
        }
        .into();
    }
    // Where nobody sees how processes end, one that closed everything may have been on its way to any end.
    if !around.sees("processes") {
        return Check::No;
    }
    let mut evidence = closing_facts(exchange);
    let Some((task, at)) = closer(exchange) else {
        return wait_for_the_end(subject, exchange);
    };
    let Some(life) = closed_listener(exchange, task, at, around) else {
        return match TellsToEnd::find(exchange, around) {
            Some(told) if is_stop(told.told.signal) => subject.wait_or(told.stand(exchange).into()),
            Some(_) | None => wait_for_the_end(subject, exchange),
        };
    };
    evidence.extend(listener_closed_fact(life));
    let summary = format!(
        "{} closed its listener {} and this connection with it, {}.",
        process(task),
        life.listener.address,
        in_hand(exchange)
    );
    Stand::confirmed(summary, evidence).into()
}

/// The listener of the same port that the same process closed about then.
fn closed_listener<'a>(
    exchange: &Exchange,
    task: &Task,
    at: Ktime,
    around: &'a Surroundings,
) -> Option<&'a ListenerLife> {
    let Peer::Tcp(address) = exchange.peer else {
        return None;
    };
    let netns = exchange.backend.as_ref()?.netns;
    around.listeners_on(netns, address.port()).rfind(|life| {
        life.closed.as_ref().is_some_and(|(closed, by)| {
            by.pid == task.pid && at.since(*closed) <= 2 * SECOND && closed.since(at) <= SECOND / 4
        })
    })
}

/// The far end's part may be told after nginx's: its close, and the end of its process, are on their way.
fn wait_for_the_end(subject: &Subject<'_>, exchange: &Exchange) -> Check {
    let was_ended_there = exchange.fin_at.is_some()
        || exchange.reset_at.is_some()
        || exchange.eof_read_at.is_some()
        || exchange.recv_error.is_some();
    let is_awaited = exchange
        .backend
        .as_ref()
        .is_some_and(|backend| backend.closed_at.is_none() || was_ended_there);
    if is_awaited {
        subject.wait_or(Check::No)
    } else {
        Check::No
    }
}
