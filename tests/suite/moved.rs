//! Inputs of a recording as if they came at another time, on another host: every kernel time moved, and every process,
//! namespace and socket with another number.
//!
//! Each type is taken apart field by field, so that one that is added must be thought of here.

use tracer::event::{
    Answer, Backend, ConnId, ConnectDenied, Denial, Event, Exchange, ExchangeId, Follows, Icmp, Input,
    Instance, Ktime, Line, LineId, Listener, LogLine, Netns, Pid, ProcessInfo, Question, RetryOf, RouteError,
    Sock, Stamped, Task, Told, UnixPath,
};

/// What is added to each number.
#[derive(Clone, Debug, Default)]
pub struct Move {
    /// To kernel times; what was there from the start stays.
    pub time: i64,
    /// To wall-clock time, in seconds.
    pub wall_s: i64,
    /// To process ids, but for those of nobody and init.
    pub pids: u32,
    /// To namespaces.
    pub namespaces: u32,
    /// To the addresses of sockets.
    pub sockets: u64,
}

impl Move {
    /// An input at its new place.
    pub fn stamped(&self, stamped: &Stamped) -> Stamped {
        let mut moved = stamped.clone();
        self.time(&mut moved.at);
        self.input(&mut moved.input);
        moved
    }

    fn time(&self, at: &mut Ktime) {
        if at.0 != 0 {
            at.0 = at.0.saturating_add_signed(self.time);
        }
    }

    fn times(&self, times: &mut [&mut Option<Ktime>]) {
        for at in times.iter_mut().filter_map(|at| at.as_mut()) {
            self.time(at);
        }
    }

    fn pid(&self, pid: &mut Pid) {
        if pid.0 > 1 {
            pid.0 += self.pids;
        }
    }

    fn netns(&self, netns: &mut Netns) {
        if netns.0 != 0 {
            netns.0 = netns.0.wrapping_add(self.namespaces);
        }
    }

    fn sock(&self, sock: &mut Sock) {
        if sock.0 != 0 {
            sock.0 = sock.0.wrapping_add(self.sockets);
        }
    }

    fn task(&self, task: &mut Task) {
        let Task {
            pid,
            comm: _,
            exiting: _,
            oom: _,
        } = task;
        self.pid(pid);
    }

    fn tasks(&self, tasks: &mut [&mut Option<Task>]) {
        for task in tasks.iter_mut().filter_map(|task| task.as_mut()) {
            self.task(task);
        }
    }

    fn conn(&self, conn: &mut ConnId) {
        let ConnId { sock, since } = conn;
        self.sock(sock);
        self.time(since);
    }

    fn exchange_id(&self, id: &mut ExchangeId) {
        let ExchangeId { conn, number: _ } = id;
        self.conn(conn);
    }

    fn line_id(&self, id: &mut LineId) {
        let LineId { at, worker } = id;
        self.time(at);
        self.pid(worker);
    }

    fn input(&self, input: &mut Input) {
        match input {
            Input::Kernel(event) => self.event(event),
            Input::Hooks(_) | Input::Lost { .. } | Input::Tick | Input::Detach { .. } => {}
            Input::Addresses { netns, addresses: _ } => self.netns(netns),
            Input::Instance(instance) => self.instance(instance),
            Input::Config {
                master,
                since,
                config: _,
            } => {
                self.pid(master);
                self.time(since);
            }
            Input::Worker {
                worker,
                master,
                started,
            } => {
                self.pid(worker);
                self.pid(master);
                self.time(started);
            }
            Input::LogLine(log) => self.log_line(log),
            Input::Answer { question, answer } => {
                self.question(question);
                self.answer(answer);
            }
            Input::Clock { unix_ns } => *unix_ns += self.wall_s * 1_000_000_000,
        }
    }

    fn instance(&self, instance: &mut Instance) {
        let Instance {
            pid,
            exe: _,
            version: _,
            conf: _,
            workers,
            netns,
            heard_since,
        } = instance;
        self.pid(pid);
        workers.iter_mut().for_each(|worker| self.pid(worker));
        self.netns(netns);
        self.times(&mut [heard_since]);
    }

    fn log_line(&self, log: &mut LogLine) {
        let LogLine {
            text: _,
            time,
            pid,
            connection: _,
            level: _,
            message: _,
            errno: _,
            action: _,
            upstream: _,
            peer: _,
            client: _,
            host: _,
            request: _,
            is_udp: _,
        } = log;
        *time += self.wall_s;
        self.pid(pid);
    }

    /// A question, as the engine asked it.
    fn question(&self, question: &mut Question) {
        match question {
            Question::UnixPath { pid, .. }
            | Question::Ports { pid, .. }
            | Question::Descriptors { pid }
            | Question::Route { pid, .. }
            | Question::Process { pid }
            | Question::Ipv6 { pid }
            | Question::AbortsOnOverflow { pid }
            | Question::Translation { pid, .. }
            | Question::AcceptQueue { pid, .. }
            | Question::Confinement { pid }
            | Question::Name { pid, .. }
            | Question::Nameservers { pid, .. } => self.pid(pid),
        }
    }

    fn answer(&self, answer: &mut Answer) {
        match answer {
            Answer::UnixPath(UnixPath { sockets, .. }) => {
                let owners = sockets.iter_mut().flat_map(|socket| &mut socket.owners);
                owners.for_each(|(pid, _)| self.pid(pid));
            }
            Answer::Process {
                found: Some(ProcessInfo { parent, .. }),
            } => self.pid(parent),
            Answer::Process { found: None }
            | Answer::Ports { .. }
            | Answer::Descriptors { .. }
            | Answer::Route { .. }
            | Answer::Ipv6 { .. }
            | Answer::AbortsOnOverflow { .. }
            | Answer::Translation { .. }
            | Answer::AcceptQueue { .. }
            | Answer::Confinement(_)
            | Answer::Name(_)
            | Answer::Nameservers { .. }
            | Answer::Unavailable { .. } => {}
        }
    }

    fn event(&self, event: &mut Event) {
        match event {
            Event::Exchange(exchange) => self.exchange(exchange),
            Event::Line(line) => self.line(line),
            Event::ListenerOpened { at, listener }
            | Event::ListenerClosed { at, listener }
            | Event::ListenerFound { at, listener } => {
                self.time(at);
                self.listener(listener);
            }
            Event::ListenerQueue { at, conn, listener } => {
                self.time(at);
                self.conn(conn);
                self.listener(listener);
            }
            Event::ResetSent {
                at,
                netns,
                tuple: _,
                reason: _,
                by: _,
                flags: _,
                conn,
            }
            | Event::IcmpSent {
                at,
                netns,
                tuple: _,
                kind: _,
                code: _,
                conn,
            }
            | Event::Dropped {
                at,
                netns,
                tuple: _,
                flags: _,
                reason: _,
                location: _,
                conn,
            } => {
                self.time(at);
                self.netns(netns);
                conn.iter_mut().for_each(|conn| self.conn(conn));
            }
            Event::DatagramDropped {
                at,
                netns,
                tuple: _,
                reason: _,
            } => {
                self.time(at);
                self.netns(netns);
            }
            Event::BackendEdge {
                at,
                exchange,
                backend,
            } => {
                self.time(at);
                self.exchange_id(exchange);
                self.backend(backend);
            }
            Event::ConnectFailed {
                at,
                worker,
                peer: _,
                errno: _,
            } => {
                self.time(at);
                self.pid(worker);
            }
            Event::SelinuxDenied(Denial {
                at,
                worker,
                source: _,
                target: _,
                class: _,
                denied: _,
            }) => {
                self.time(at);
                self.pid(worker);
            }
            Event::ClientLeft {
                at,
                worker,
                exchange,
                reset: _,
            } => {
                self.time(at);
                self.pid(worker);
                exchange
                    .iter_mut()
                    .for_each(|exchange| self.exchange_id(exchange));
            }
            Event::ClientAnswered {
                at,
                worker,
                of,
                client: _,
                status: _,
                cut: _,
            } => {
                self.time(at);
                self.pid(worker);
                self.retry_of(of);
            }
            Event::ProcessExited {
                at,
                task,
                parent,
                is_nginx: _,
                signalled_by,
                told,
            } => {
                self.time(at);
                self.task(task);
                self.pid(parent);
                self.tasks(&mut [signalled_by]);
                if let Some(Told {
                    signal: _,
                    by,
                    ago_ms: _,
                }) = told
                {
                    self.task(by);
                }
            }
            Event::Signalled {
                at,
                pid,
                signal: _,
                by,
            } => {
                self.time(at);
                self.pid(pid);
                self.task(by);
            }
            Event::Forked { at, parent, child } => {
                self.time(at);
                self.pid(parent);
                self.pid(child);
            }
            Event::Executed {
                at,
                pid,
                comm: _,
                is_nginx: _,
            } => {
                self.time(at);
                self.pid(pid);
            }
            Event::Unknown { kind: _, length: _ } => {}
        }
    }

    fn retry_of(&self, of: &mut RetryOf) {
        match of {
            RetryOf::Exchange(exchange) => self.exchange_id(exchange),
            RetryOf::Line(line) => self.line_id(line),
        }
    }

    fn line(&self, line: &mut Line) {
        let Line {
            id,
            worker,
            at,
            level: _,
            errno: _,
            connection: _,
            message: _,
            action: _,
            argument: _,
            number: _,
            route,
            denied,
            programs: _,
            follows,
        } = line;
        match follows {
            Some(Follows::Failure(of)) => self.retry_of(of),
            Some(Follows::Other) | None => {}
        }
        self.line_id(id);
        self.pid(worker);
        self.time(at);
        if let Some(RouteError {
            at,
            errno: _,
            destination: _,
        }) = route
        {
            self.time(at);
        }
        if let Some(ConnectDenied { at, errno: _, by: _ }) = denied {
            self.time(at);
        }
    }

    fn listener(&self, listener: &mut Listener) {
        let Listener {
            sock,
            netns,
            address: _,
            v6only: _,
            queue: _,
            limit: _,
            task,
        } = listener;
        self.sock(sock);
        self.netns(netns);
        self.task(task);
    }

    fn backend(&self, backend: &mut Backend) {
        let Backend {
            sock,
            netns,
            task,
            accepted: _,
            accepted_at,
            first_read_at,
            last_read_at,
            read: _,
            sent: _,
            unread: _,
            closed_at,
            closed_by,
            aborted: _,
            reset_reason: _,
            error_at_destroy: _,
        } = backend;
        self.sock(sock);
        self.netns(netns);
        self.tasks(&mut [task, closed_by]);
        self.times(&mut [accepted_at, first_read_at, last_read_at, closed_at]);
    }

    fn exchange(&self, exchange: &mut Exchange) {
        let Exchange {
            id,
            worker,
            netns,
            peer: _,
            local: _,
            preexisting: _,
            uncut: _,
            began_at,
            previous_at,
            connect_at,
            established_at,
            first_sent_at,
            last_sent_at,
            sent: _,
            acked: _,
            first_received_at,
            last_received_at,
            received: _,
            unread: _,
            arrived_at,
            eof_read_at,
            send_error: _,
            send_blocked_at,
            recv_error: _,
            fin_at,
            fin_before_request: _,
            late: _,
            answered: _,
            reset_at,
            reset_in: _,
            acked_at_reset: _,
            error: _,
            error_at,
            soft_error: _,
            error_unfetched: _,
            icmp,
            syn_retransmits: _,
            retransmits: _,
            last_retransmit_at,
            head: _,
            rtt_us: _,
            send_window: _,
            ended_at,
            end: _,
            closed_in: _,
            backend,
            line,
            retry_of,
        } = exchange;
        self.exchange_id(id);
        self.pid(worker);
        self.netns(netns);
        self.time(began_at);
        self.time(ended_at);
        self.times(&mut [
            previous_at,
            connect_at,
            established_at,
            first_sent_at,
            last_sent_at,
            first_received_at,
            last_received_at,
            arrived_at,
            eof_read_at,
            send_blocked_at,
            fin_at,
            reset_at,
            error_at,
            last_retransmit_at,
        ]);
        if let Some(Icmp {
            at,
            kind: _,
            code: _,
            sender: _,
            errno: _,
        }) = icmp
        {
            self.time(at);
        }
        backend.iter_mut().for_each(|backend| self.backend(backend));
        line.iter_mut().for_each(|line| self.line_id(line));
        retry_of.iter_mut().for_each(|of| self.retry_of(of));
    }
}
