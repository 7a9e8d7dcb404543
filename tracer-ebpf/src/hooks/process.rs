//! Processes: nginx's own come and go; the end of one that listened or served explains what follows.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_ebpf::{COMM_LEN, Happening, Process, SignalSent, TaskInfo, Worker, kind, task};

use super::understudy::{of_first, with_understudy};
use crate::{
    filter::worker,
    maps::{NAMES, OWNERS, SIGNALS, WORKERS, offset, setting},
    output::{counted, header, now, say, write},
    sock::{current_task, exit_code, oom_flag, read},
};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGABRT: i32 = 6;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;

/// A worker of which nothing is known yet.
static NEW_WORKER: Worker = {
    // SAFETY: plain integers and byte arrays, for which all zeroes is a value.
    unsafe { core::mem::zeroed() }
};

#[inline(always)]
fn of(task_struct: u64) -> TaskInfo {
    TaskInfo {
        pid: read(task_struct, offset!(task_tgid)),
        flags: 0,
        exit_code: 0,
        pad: 0,
        comm: read(task_struct, offset!(task_comm)),
    }
}

const NOBODY: TaskInfo = TaskInfo {
    pid: 0,
    flags: 0,
    exit_code: 0,
    pad: 0,
    comm: [0; COMM_LEN],
};

with_understudy!(
    btf_tracepoint(function = "sched_process_fork"),
    BtfTracePointContext,
    FORKED,
    /// `trace_sched_process_fork(struct task_struct *parent, struct task_struct *child)`, 5.10 to 7.2.
    process_forked,
    [process_forked_nested, process_forked_nested2, process_forked_nested3],
    of_second,
    on_process_forked
);

/// The child is the second argument.
#[inline(always)]
fn of_second(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(1),
        what: 0,
    }
}

#[inline(always)]
fn on_process_forked(ctx: &BtfTracePointContext) {
    let parent = ctx.arg::<u64>(0);
    let child = ctx.arg::<u64>(1);
    let child_pid: u32 = read(child, offset!(task_tgid));
    if child_pid != read::<u32>(child, offset!(task_pid)) {
        return;
    }
    let parent_pid: u32 = read(parent, offset!(task_tgid));
    if worker(parent_pid).is_none() {
        // A process id that comes back belongs to nobody we knew.
        if worker(child_pid).is_some() {
            let _ = WORKERS.remove(child_pid);
        }
        return;
    }
    counted(WORKERS.insert(child_pid, &NEW_WORKER, 0));
    say!(ctx, "nginx {} forked {}", parent_pid, child_pid);
    write(&Process {
        header: header(kind::FORKED, now()),
        task: of(child),
        parent: parent_pid,
        is_nginx: 1,
        signal: 0,
        signal_age_ms: 0,
        sender: NOBODY,
    });
}

with_understudy!(
    btf_tracepoint(function = "sched_process_exec"),
    BtfTracePointContext,
    EXECUTED,
    /// `trace_sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, 5.10 to 7.2: the
    /// task's name is the new program's already.
    process_executed,
    [process_executed_nested, process_executed_nested2, process_executed_nested3],
    of_first,
    on_process_executed
);

#[inline(always)]
fn on_process_executed(ctx: &BtfTracePointContext) {
    let task_struct = ctx.arg::<u64>(0);
    let info = of(task_struct);
    let was_nginx = worker(info.pid).is_some();
    let may_be = was_nginx || setting!(by_parentage) == 0;
    let is_nginx = may_be && NAMES.get_ptr(info.comm).is_some();
    if is_nginx {
        counted(WORKERS.insert(info.pid, &NEW_WORKER, 0));
    } else if was_nginx {
        let _ = WORKERS.remove(info.pid);
    } else {
        return;
    }
    say!(
        ctx,
        "process {} executed, nginx: {}",
        info.pid,
        u32::from(is_nginx)
    );
    let parent: u64 = read(task_struct, offset!(task_parent));
    write(&Process {
        header: header(kind::EXECUTED, now()),
        task: info,
        parent: read(parent, offset!(task_tgid)),
        is_nginx: u32::from(is_nginx),
        signal: 0,
        signal_age_ms: 0,
        sender: NOBODY,
    });
}

with_understudy!(
    btf_tracepoint(function = "sched_process_exit"),
    BtfTracePointContext,
    EXITED,
    /// `trace_sched_process_exit(struct task_struct *p, …)`, 5.10 to 7.2: per thread, before the sockets are closed.
    process_exited,
    [process_exited_nested, process_exited_nested2, process_exited_nested3],
    of_first,
    on_process_exited
);

#[inline(always)]
fn on_process_exited(ctx: &BtfTracePointContext) {
    let task_struct = ctx.arg::<u64>(0);
    let pid: u32 = read(task_struct, offset!(task_tgid));
    let owner = worker(pid);
    let is_nginx = owner.is_some();
    if !is_nginx && OWNERS.get_ptr(pid).is_none() {
        return;
    }
    let signal: u64 = read(task_struct, offset!(task_signal));
    // do_exit() has already counted this thread off.
    if read::<i32>(signal, offset!(signal_live)) != 0 {
        return;
    }
    if let Some(owner) = owner {
        owner.exiting = 1;
    }
    let mut info = of(task_struct);
    info.flags = task::EXITING | task::GROUP_DEAD | oom_flag(task_struct);
    info.exit_code = exit_code(task_struct);
    let parent: u64 = read(task_struct, offset!(task_parent));
    let mut record = Process {
        header: header(kind::PROCESS_EXITED, now()),
        task: info,
        parent: read(parent, offset!(task_tgid)),
        is_nginx: u32::from(is_nginx),
        signal: 0,
        signal_age_ms: 0,
        sender: NOBODY,
    };
    if let Some(sent) = SIGNALS.get_ptr(pid) {
        // SAFETY: a value of a preallocated map.
        let sent = unsafe { *sent };
        record.signal = sent.signal;
        let age_ms = record.header.at.saturating_sub(sent.at) / 1_000_000;
        record.signal_age_ms = if age_ms > u64::from(u32::MAX) {
            u32::MAX
        } else {
            age_ms as u32
        };
        record.sender = sent.sender;
        let _ = SIGNALS.remove(pid);
    }
    write(&record);
}

with_understudy!(
    btf_tracepoint(function = "signal_generate"),
    BtfTracePointContext,
    SIGNALLED,
    /// `trace_signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)`,
    /// 5.10 to 7.2: the sender is current.
    signal_sent,
    [signal_sent_nested, signal_sent_nested2, signal_sent_nested3],
    of_signal,
    on_signal_sent
);

#[inline(always)]
fn of_signal(ctx: &BtfTracePointContext) -> Happening {
    Happening {
        object: ctx.arg(2),
        what: ctx.arg(0),
    }
}

#[inline(always)]
fn on_signal_sent(ctx: &BtfTracePointContext) {
    let signal = ctx.arg::<i32>(0);
    // HUP INT QUIT ILL ABRT BUS FPE KILL SEGV USR2 TERM CONT STOP TSTP
    if !matches!(
        signal,
        1 | 2 | 3 | 4 | 6 | 7 | 8 | 9 | 11 | 12 | 15 | 18 | 19 | 20
    ) {
        return;
    }
    let task_struct = ctx.arg::<u64>(2);
    let pid: u32 = read(task_struct, offset!(task_tgid));
    let is_nginx = worker(pid).is_some();
    // One that is stopped does nothing about its answers, and another one that is stopped shows so when it is asked.
    let is_halt = matches!(signal, SIGCONT | SIGSTOP | SIGTSTP);
    if !is_nginx && (is_halt || OWNERS.get_ptr(pid).is_none()) {
        return;
    }
    let sender = current_task();
    // nginx's master reads its files anew; nothing else shows that before it forks. A backend that is told to end
    // closes its connections first, and may take longer to end than anybody waits for; one that is told to reload has
    // its workers end, and many tell them over a pipe.
    let is_told = !is_nginx
        && sender.pid != pid
        && matches!(signal, SIGHUP | SIGINT | SIGQUIT | SIGABRT | SIGUSR2 | SIGTERM);
    if is_nginx && (is_halt || signal == SIGHUP) || is_told {
        write(&Process {
            header: header(kind::SIGNALLED, now()),
            task: of(task_struct),
            parent: 0,
            is_nginx: u32::from(is_nginx),
            signal: signal as u32,
            signal_age_ms: 0,
            sender,
        });
    }
    // Most have a handler for it and go on: a later end is not put down to it.
    if is_halt || signal == SIGUSR2 {
        return;
    }
    if sender.pid == pid
        && let Some(before) = SIGNALS.get_ptr(pid)
    {
        // SAFETY: a value of a preallocated map.
        let before = unsafe { *before };
        // A handler that is done raises the signal anew to end its process: whoever sent it first is the sender.
        if before.signal == signal as u32 && before.sender.pid != pid {
            return;
        }
    }
    let sent = SignalSent {
        at: now(),
        signal: signal as u32,
        pad: 0,
        sender,
    };
    counted(SIGNALS.insert(pid, &sent, 0));
}
