//! What SELinux denies to nginx's workers: the contexts, the class and the permissions.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, helpers::bpf_probe_read_kernel_str_bytes, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tracer_ebpf::{SelinuxDenied, counter, kind};

use crate::{
    filter::worker,
    maps::{RECORDS, offset},
    output::{count, header, now},
    sock::{current_pid, is_main_thread, read},
};

/// `trace_selinux_audited(struct selinux_audit_data *sad, char *scontext, char *tcontext, const char *tclass)`, 5.10 to
/// 7.2, where the kernel is built with SELinux. It fires inside the system call that is denied, for all that the policy
/// audits, as long as the kernel's audit takes records (not with `audit=0`, nor with a full backlog). `result` is 0 where
/// nothing was denied: SELinux or the domain is permissive, or the policy audits what it allows (`auditallow`).
#[btf_tracepoint(function = "selinux_audited")]
pub fn selinux_audited(ctx: BtfTracePointContext) -> i32 {
    let audit = ctx.arg::<u64>(0);
    if read::<i32>(audit, offset!(selinux_result)) == 0
        || worker(current_pid()).is_none()
        || !is_main_thread()
    {
        return 0;
    }
    let Some(mut slot) = RECORDS.reserve::<SelinuxDenied>(0) else {
        count(counter::RING_FULL);
        return 0;
    };
    let denied = read(audit, offset!(selinux_denied));
    let record = slot.as_mut_ptr();
    // SAFETY: every field of the reserved record is written before it is submitted; the helper checks the addresses and
    // stops at the end of each text.
    unsafe {
        record.write_bytes(0, 1);
        (*record).header = header(kind::SELINUX_DENIED, now());
        (*record).denied = denied;
        let _ = bpf_probe_read_kernel_str_bytes(ctx.arg::<u64>(1) as *const u8, &mut (*record).source);
        let _ = bpf_probe_read_kernel_str_bytes(ctx.arg::<u64>(2) as *const u8, &mut (*record).target);
        let _ = bpf_probe_read_kernel_str_bytes(ctx.arg::<u64>(3) as *const u8, &mut (*record).class);
    }
    slot.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}
