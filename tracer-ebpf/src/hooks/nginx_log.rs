//! nginx's own voice: every line it writes to an error log, at the function that writes it.
//!
//! From 6.13 on the kernel gives a program of this type that uses 64 bytes of stack or more one stack for each CPU, since
//! such a program is never entered twice at a time (kernel/bpf/verifier.c, `bpf_enable_priv_stack`). That does not hold at
//! probes in user space: there a task can be preempted in the program and another one enter it, and both write to the same
//! stack (seen on 6.18: one worker's line with the time of another's and without its text). A program with a tail call
//! stays on its task's own stack (`check_max_stack_depth`), so each of these has one, which is never taken.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, bpf_probe_read_user_buf, bpf_probe_read_user_str_bytes},
    macros::uprobe,
    programs::ProbeContext,
};
use tracer_ebpf::{ABSENT, LINE_PROGRAMS, Line, counter, kind};

use crate::{
    exchange::{Says, own_line},
    filter::worker,
    maps::{NOWHERE, RECORDS, offset, setting},
    output::{count, header, now, say},
    sock::{current, current_pid, is_main_thread, read},
};

/// `NGX_LOG_WARN`: a warning may stand between a line and its close, so it is heard but changes nothing.
const WARN: u64 = 5;

/// The errnos with which a connect is denied: a program of a control group gives the first, unless it sets another one.
const EPERM: i32 = 1;
const EACCES: i32 = 13;

/// A level that nginx does not have, which the verifier does not know.
const NO_LEVEL: u64 = u64::MAX;

/// `void ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t err, const char *fmt, ...)`, nginx 1.22 to
/// 1.31. `ngx_log_t`: level, file, connection (16), disk_full_time, handler, data, writer, wdata, action (64).
#[uprobe]
pub fn nginx_logs(ctx: ProbeContext) -> u32 {
    hear::<2, 64>(&ctx)
}

/// The same in freenginx since 1.27.2, whose `ngx_log_t` has no disk_full_time: action (56).
#[uprobe]
pub fn freenginx_logs(ctx: ProbeContext) -> u32 {
    hear::<2, 56>(&ctx)
}

/// `void ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, const char *filename, ngx_err_t err, const char *fmt, ...)`,
/// Angie since 1.12. `ngx_log_t`: level, file, connection (16), …, action (64).
#[uprobe]
pub fn angie_logs(ctx: ProbeContext) -> u32 {
    hear::<3, 64>(&ctx)
}

/// `ERR` is the number of the argument `err`, `ACTION` the place of `action` in `ngx_log_t`.
#[inline(always)]
fn hear<const ERR: usize, const ACTION: u64>(ctx: &ProbeContext) -> u32 {
    let (Some(level), Some(log), Some(errno), Some(format)) = (
        ctx.arg::<u64>(0),
        ctx.arg::<u64>(1),
        ctx.arg::<u64>(ERR),
        ctx.arg::<u64>(ERR + 1),
    ) else {
        return 0;
    };
    if level > WARN {
        if level == NO_LEVEL {
            // SAFETY: there is no program to go to, and nothing that would have to be dropped.
            unsafe { NOWHERE.tail_call(ctx, 0) };
        }
        return 0;
    }
    let pid = current_pid();
    let Some(owner) = worker(pid) else { return 0 };
    let at = now();
    say!(ctx, "nginx {} logs at level {}", pid, level);
    // SAFETY: the helper checks the address.
    let connection = unsafe { bpf_probe_read_user((log + 16) as *const u64) }.unwrap_or(0);
    // A line without a connection (a syslog that hears nothing) may be written while another is: it ends nothing.
    let is_own = level < WARN && is_main_thread() && connection != 0;
    let Some(mut slot) = RECORDS.reserve::<Line>(0) else {
        count(counter::RING_FULL);
        if is_own {
            own_line(owner, at, Says::Other);
        }
        return 0;
    };
    let says;
    let line = slot.as_mut_ptr();
    // SAFETY: every field of the reserved record is written before it is submitted; user memory is read through
    // helpers that check the address, and a page that is not mapped leaves zeroes.
    unsafe {
        line.write_bytes(0, 1);
        (*line).header = header(kind::LINE, at);
        (*line).level = level as u32;
        (*line).errno = errno as i32;
        (*line).connection = connection;
        (*line).route_at = owner.route_at;
        (*line).route_errno = owner.route_errno;
        (*line).route_daddr = owner.route_daddr;
        (*line).number = ctx.arg(ERR + 3).unwrap_or(0);
        (*line).previous_kind = if is_own { owner.previous_kind } else { u32::MAX };
        (*line).programs = u32::MAX;
        (*line).denied_at = owner.denied_at;
        (*line).denied_errno = owner.denied_errno;
        (*line).denied_by = owner.denied_by;
        (*line).previous_sock = owner.previous_sock;
        (*line).previous_since = owner.previous_since;
        (*line).previous_number = owner.previous_number;
        let _ = bpf_probe_read_user_str_bytes(format as *const u8, &mut (*line).format);
        let action: u64 = bpf_probe_read_user((log + ACTION) as *const u64).unwrap_or(0);
        if action != 0 {
            let _ = bpf_probe_read_user_str_bytes(action as *const u8, &mut (*line).action);
        }
        // Two letters tell "connecting to upstream" from every other phase.
        says = if (*line).action[0] == b'c' && (*line).action[3] == b'n' {
            Says::Connecting
        } else if is_refusal(&(*line).format) {
            Says::Refuses
        } else {
            Says::Other
        };
        let text = argument(ctx, &(*line).format, ERR + 2);
        if let Some((data, len)) = text {
            let len = if len > 127 { 127 } else { len };
            // The verifier needs the bound as a mask.
            let len = (len & 127) as usize;
            if let Some(space) = (*line).argument.get_mut(..len) {
                let _ = bpf_probe_read_user_buf(data as *const u8, space);
            }
        }
        if matches!(errno as i32, EPERM | EACCES) {
            let is_v6 = (*line).argument[0] == b'[';
            (*line).programs = connect_programs(is_v6, &mut *line);
        }
    }
    owner.denied_at = 0;
    slot.submit(u64::from(aya_ebpf::bindings::BPF_RB_NO_WAKEUP));
    // The line's record comes before that of the exchange it ends.
    if is_own {
        own_line(owner, at, says);
    }
    0
}

/// The programs that are asked about the worker's connects to addresses of this family: their number, with the names of the
/// first in the line; `u32::MAX` where they are not to be found.
///
/// `struct bpf_prog_array __rcu *effective[]` of `struct cgroup_bpf`, 5.10 to 7.2: what the kernel runs for a control group,
/// those above it included; it ends with a null.
#[inline(always)]
fn connect_programs(is_v6: bool, line: &mut Line) -> u32 {
    let index = if is_v6 {
        setting!(programs_connect6)
    } else {
        setting!(programs_connect4)
    };
    if index == ABSENT {
        return 0;
    }
    if offset!(cgroup_effective) == ABSENT {
        return u32::MAX;
    }
    let group: u64 = read(read(current(), offset!(task_cgroups)), offset!(css_default));
    let array: u64 = read(group, offset!(cgroup_effective) + 8 * index);
    if array == 0 {
        return u32::MAX;
    }
    let mut found = 0;
    for n in 0..LINE_PROGRAMS {
        let item = offset!(programs_items) + n as u32 * setting!(size_program_item);
        let program: u64 = read(array, item);
        if program == 0 {
            break;
        }
        let aux: u64 = read(program, offset!(program_aux));
        line.program_ids[n] = read(aux, offset!(program_id));
        line.program_names[n] = read(aux, offset!(program_name));
        found += 1;
    }
    found
}

/// "upstream sent …": nginx does not take what it just read. But "upstream sent no valid HTTP/1.0 header" it takes,
/// as HTTP/0.9.
#[inline(always)]
fn is_refusal(format: &[u8; 64]) -> bool {
    let begins = |text: &[u8; 14]| (0..14).all(|i| format[i] == text[i]);
    begins(b"upstream sent ") && !(format[14] == b'n' && format[15] == b'o' && format[16] == b' ')
}

/// The first text argument: a `%V` takes a pointer to `{len, data}`, a `%*s` the length and the text.
#[inline(always)]
fn argument(ctx: &ProbeContext, format: &[u8; 64], first: usize) -> Option<(u64, u64)> {
    let mut at = 64usize;
    for i in 0..60 {
        if at == 64 && format[i] == b'%' {
            at = i;
        }
    }
    if at >= 60 {
        return None;
    }
    let value: u64 = ctx.arg(first)?;
    match format[at + 1] {
        b'V' => {
            // SAFETY: the helper checks the address.
            let (len, data) = unsafe {
                (
                    bpf_probe_read_user(value as *const u64).ok()?,
                    bpf_probe_read_user((value + 8) as *const u64).ok()?,
                )
            };
            Some((data, len))
        }
        // The seventh argument is on the stack: such a text is left to the log file.
        b'*' => Some((ctx.arg(first + 1)?, value)),
        _ => None,
    }
}
