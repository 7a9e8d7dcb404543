//! What lies in the BPF maps of a process, as bytes: everything but its ring buffers.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

/// Commands of `bpf()` (enum `bpf_cmd`, unchanged since 5.10).
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h>
const LOOKUP: libc::c_long = 1;
const NEXT_KEY: libc::c_long = 4;
const DESCRIPTOR_BY_ID: libc::c_long = 14;

/// Types of maps (enum `bpf_map_type`) whose elements are bytes for every CPU.
const PER_CPU: [u32; 2] = [5, 6];
/// Types of maps that can be read element by element: hash, array, and the same per CPU.
const READABLE: [u32; 4] = [1, 2, 5, 6];

/// The part of union `bpf_attr` that reads an element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// A map as /proc describes it.
struct Described {
    kind: u32,
    key: usize,
    value: usize,
    id: u32,
}

/// All keys and values of a process's maps, one behind the other, by the map's id.
///
/// # Errors
/// Not root, or the process is gone.
pub fn contents(pid: u32) -> Result<BTreeMap<u32, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("reading its descriptors")? {
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        if let Some(map) = described(&info)
            && READABLE.contains(&map.kind)
        {
            let bytes = read(&map).with_context(|| format!("reading map {}", map.id))?;
            all.insert(map.id, bytes);
        }
    }
    Ok(all)
}

fn described(info: &str) -> Option<Described> {
    let field = |name: &str| {
        let lines = info.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(found, _)| *found == name);
        values.next_back()?.1.trim().parse::<u32>().ok()
    };
    Some(Described {
        kind: field("map_type")?,
        key: usize::try_from(field("key_size")?).ok()?,
        value: usize::try_from(field("value_size")?).ok()?,
        id: field("map_id")?,
    })
}

fn read(map: &Described) -> Result<Vec<u8>> {
    let cpus = match fs::read_to_string("/sys/devices/system/cpu/possible")?.trim() {
        "0" => 1,
        range => {
            range
                .rsplit(['-', ','])
                .next()
                .and_then(|last| last.parse::<usize>().ok())
                .context("no number of CPUs")?
                + 1
        }
    };
    let mut value = vec![
        0_u8;
        if PER_CPU.contains(&map.kind) {
            map.value.next_multiple_of(8) * cpus
        } else {
            map.value
        }
    ];
    let id = [map.id, 0, 0];
    let made = bpf(DESCRIPTOR_BY_ID, id.as_ptr().cast(), size_of_val(&id)).context("opening it")?;
    // SAFETY: the kernel made this descriptor just now for us alone.
    let opened = unsafe { OwnedFd::from_raw_fd(made) };
    let descriptor = u32::try_from(opened.as_raw_fd())?;
    let mut bytes = Vec::new();
    let mut key = vec![0_u8; map.key];
    let mut next = vec![0_u8; map.key];
    let mut is_first = true;
    loop {
        let step = Element {
            map: descriptor,
            key: if is_first { 0 } else { key.as_ptr() as u64 },
            value: next.as_mut_ptr() as u64,
            ..Element::default()
        };
        match bpf(NEXT_KEY, (&raw const step).cast(), size_of_val(&step)) {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(bytes),
            Err(error) => return Err(error).context("going to the next key"),
        }
        key.copy_from_slice(&next);
        is_first = false;
        let step = Element {
            map: descriptor,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        };
        match bpf(LOOKUP, (&raw const step).cast(), size_of_val(&step)) {
            Ok(_) => bytes.extend(key.iter().chain(&value)),
            // It went meanwhile.
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error).context("reading an element"),
        }
    }
}

/// The system call.
pub(crate) fn bpf(command: libc::c_long, attribute: *const libc::c_void, size: usize) -> nix::Result<i32> {
    // SAFETY: the kernel reads `size` bytes of the attribute, and writes where it says, which has room for a key or value.
    let made = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size) };
    Errno::result(made).map(|made| i32::try_from(made).unwrap_or(-1))
}
