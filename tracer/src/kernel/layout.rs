//! The running kernel's layout: member offsets, tracepoint signatures and enum names, all from its own BTF.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, anyhow};
use btfparse::{Integer32Value, Offset, Readable, TypeInformation, TypeVariant};
use tracer_ebpf::{ABSENT, Offsets};

use super::plan;

/// Where the kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What the running kernel's BTF says.
#[derive(Debug)]
pub struct Layout {
    /// Member offsets; [`ABSENT`] where a member does not exist here.
    pub offsets: Offsets,
    /// The bit of `skc_ipv6only` in its byte.
    pub ipv6only_bit: u32,
    /// Number of arguments of each tracepoint that exists, by name.
    pub tracepoints: BTreeMap<String, usize>,
    /// Number of arguments of those functions of the plan that exist, by name.
    pub functions: BTreeMap<String, usize>,
    /// `enum skb_drop_reason` by number; empty before 5.17.
    pub drop_reasons: BTreeMap<u32, String>,
    /// `enum sk_rst_reason` by number; empty before 6.10.
    pub reset_reasons: BTreeMap<u32, String>,
    /// Which of a control group's arrays of programs is asked about connects to IPv4 and to IPv6 addresses; [`ABSENT`]:
    /// this kernel has none.
    pub connect_programs: (u32, u32),
    /// The size of `struct bpf_prog_array_item`.
    pub size_program_item: u32,
    /// The size of `struct pt_regs`; 0: this kernel has none.
    pub size_pt_regs: u32,
    /// Whether programs may call `bpf_task_pt_regs` (5.15).
    pub has_task_pt_regs: bool,
    /// The kernel is built so that a task in it can be preempted: it has `preempt_schedule` (`CONFIG_PREEMPTION`).
    pub is_preemptible: bool,
}

struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let source = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| btfparse::Error::new(btfparse::ErrorKind::IOError, "the BTF ends too early"))?;
        buffer.copy_from_slice(source);
        Ok(())
    }
}

/// Members without which the programs cannot tell one socket from another; others may be absent.
const OPTIONAL: &[&str] = &[
    "exterr_ee",
    "task_cgroups",
    "css_default",
    "cgroup_effective",
    "programs_items",
    "program_aux",
    "program_id",
    "program_name",
    "flowi4_daddr",
    "flowi6_daddr",
    "fib6_type",
    "selinux_denied",
    "selinux_result",
    "signal_oom_mm",
    "task_migration_disabled",
    "regs_orig_ax",
    "regs_syscallno",
    "regs_di",
    "regs_si",
    "regs_regs",
    "regs_orig_x0",
];

impl Layout {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// No BTF, or one without the members of TCP sockets.
    pub fn read() -> Result<Self> {
        let bytes = std::fs::read(Path::new(VMLINUX)).with_context(|| {
            format!("{VMLINUX}: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF); a kernel of your distribution has it")
        })?;
        Self::parse(bytes)
    }

    /// Reads a BTF blob.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let types = TypeInformation::new(&Bytes(bytes)).map_err(|error| anyhow!("{VMLINUX}: {error:?}"))?;
        let mut structs = BTreeMap::new();
        let mut tracepoints = BTreeMap::new();
        let mut functions = BTreeMap::new();
        let wanted = plan::functions();
        let mut is_preemptible = false;
        let mut size_pt_regs = 0;
        let mut size_program_item = 0;
        let mut enums = BTreeMap::new();
        for (id, variant) in types.get() {
            match variant {
                TypeVariant::Struct(found) => {
                    if let Some(name) = found.name() {
                        structs.entry(name.clone()).or_insert(*id);
                        let size = u32::try_from(*found.size()).unwrap_or(0);
                        match name.as_str() {
                            "pt_regs" => size_pt_regs = size,
                            "bpf_prog_array_item" => size_program_item = size,
                            _ => {}
                        }
                    }
                }
                TypeVariant::Typedef(found) => {
                    if let Some(name) = found
                        .name()
                        .as_deref()
                        .and_then(|name| name.strip_prefix("btf_trace_"))
                        && let Some(arity) = arity(&types, *found.tid())
                    {
                        tracepoints.insert(name.to_owned(), arity);
                    }
                }
                TypeVariant::Func(found) => {
                    is_preemptible |= found.name().as_deref() == Some("preempt_schedule");
                    if let Some(name) = found.name().as_deref().and_then(|name| wanted.get(name))
                        && let Some(TypeVariant::FuncProto(prototype)) = types.from_id(*found.prototype_tid())
                    {
                        functions.insert((*name).to_owned(), prototype.parameter_list().len());
                    }
                }
                TypeVariant::Enum(found) => {
                    if let Some(
                        name @ ("skb_drop_reason"
                        | "sk_rst_reason"
                        | "bpf_func_id"
                        | "bpf_attach_type"
                        | "cgroup_bpf_attach_type"),
                    ) = found.name().as_deref()
                    {
                        enums.insert(name.to_owned(), names(found.named_value_list()));
                    }
                }
                _ => {}
            }
        }
        let mut list = Vec::new();
        let mut ipv6only_bit = 0;
        for (field, path) in Offsets::PATHS {
            let (name, member) = path
                .split_once('.')
                .expect("every path names a struct and a member");
            let found = structs.get(name).and_then(|id| types.offset_of(*id, member).ok());
            list.push(match found {
                Some((_, Offset::ByteOffset(byte))) => byte,
                Some((_, Offset::BitOffsetAndSize(bit, _))) => {
                    if *field == "skc_ipv6only_byte" {
                        ipv6only_bit = bit % 8;
                    }
                    bit / 8
                }
                None if OPTIONAL.contains(field) => ABSENT,
                None => {
                    return Err(anyhow!(
                        "{VMLINUX}: this kernel has no `{path}`; tracer needs Linux 5.10 or later"
                    ));
                }
            });
        }
        // Their numbers are their own since 5.15, before that those of the system call.
        let index = |name: &str| {
            let own = enums
                .get("cgroup_bpf_attach_type")
                .map(|own| (own, format!("CGROUP_{name}")));
            let shared = || {
                enums
                    .get("bpf_attach_type")
                    .map(|all| (all, format!("BPF_CGROUP_{name}")))
            };
            let (numbers, name) = own.or_else(shared)?;
            let (number, _) = numbers.iter().find(|(_, found)| **found == name)?;
            Some(*number)
        };
        let connect_programs = (
            index("INET4_CONNECT").unwrap_or(ABSENT),
            index("INET6_CONNECT").unwrap_or(ABSENT),
        );
        Ok(Self {
            connect_programs,
            size_program_item,
            offsets: Offsets::from_list(&list).expect("one offset per path"),
            ipv6only_bit,
            tracepoints,
            functions,
            is_preemptible,
            drop_reasons: enums.remove("skb_drop_reason").unwrap_or_default(),
            reset_reasons: enums.remove("sk_rst_reason").unwrap_or_default(),
            size_pt_regs,
            has_task_pt_regs: enums
                .get("bpf_func_id")
                .is_some_and(|helpers| helpers.values().any(|name| name == "BPF_FUNC_task_pt_regs")),
        })
    }
}

/// Arguments of a tracepoint, the hidden first one (`void *__data`) not counted.
fn arity(types: &TypeInformation, id: u32) -> Option<usize> {
    let prototype = types.pointee_tid(id).ok()?;
    match types.from_id(prototype)? {
        TypeVariant::FuncProto(prototype) => prototype.parameter_list().len().checked_sub(1),
        _ => None,
    }
}

/// Enum values by number, without the prefix that all share.
fn names(values: &[btfparse::NamedValue32]) -> BTreeMap<u32, String> {
    values
        .iter()
        .filter_map(|value| {
            let number = match value.value {
                Integer32Value::Signed(number) => u32::try_from(number).ok()?,
                Integer32Value::Unsigned(number) => number,
            };
            let name = ["SKB_DROP_REASON_", "SK_RST_REASON_", "SKB_"]
                .iter()
                .find_map(|prefix| value.name.strip_prefix(prefix))
                .unwrap_or(&value.name);
            Some((number, name.to_owned()))
        })
        .collect()
}
