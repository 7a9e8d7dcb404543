//! nginx's texts, within reach: a page that a worker has never touched is not in its page table, and a program that
//! hears the worker log cannot read a format from there. Reading it from outside puts it there, as its own read would.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use crate::{event::Pid, host::process};

const PAGE: u64 = 4096;
/// nginx's own are a few hundred kilobytes; what is larger is another library's.
const MOST: u64 = 8 << 20;

/// Touches the constants of a worker's executable and of nginx's modules. What cannot be read stays as it was: a line
/// of it is then known by its text in the log file.
pub fn touch(pid: Pid) {
    let (Ok(executable), Ok(maps), Ok(memory)) = (
        process::exe(pid),
        fs::read_to_string(format!("/proc/{pid}/maps")),
        File::open(format!("/proc/{pid}/mem")),
    ) else {
        return;
    };
    let mut byte = [0];
    for (begin, end) in maps.lines().filter_map(|line| constants(line, &executable)) {
        let mut at = begin;
        while at < end {
            let _ = memory.read_at(&mut byte, at);
            at += PAGE;
        }
    }
}

/// The range in a line of `/proc/PID/maps` that holds constants of nginx or of a module.
fn constants(line: &str, executable: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (begin, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "r--p" {
        return None;
    }
    let path = fields.nth(3)?;
    let name = Path::new(path).file_name()?.to_str()?;
    let is_module = name.ends_with(".so") && (name.starts_with("ngx_") || path.contains("/modules/"));
    if path != executable && !is_module {
        return None;
    }
    let (begin, end) = (
        u64::from_str_radix(begin, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    );
    (end.saturating_sub(begin) <= MOST).then_some((begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_nginx_and_its_modules() {
        let of = |line| constants(line, "/usr/sbin/nginx");
        assert_eq!(
            of("5581a000-5581c000 r--p 000d1000 fd:00 1311 /usr/sbin/nginx"),
            Some((0x5581_a000, 0x5581_c000))
        );
        assert_eq!(
            of("7f01a000-7f01b000 r--p 00012000 fd:00 1312 /usr/lib/nginx/modules/ngx_stream_module.so"),
            Some((0x7f01_a000, 0x7f01_b000))
        );
        for line in [
            "5581c000-5581d000 r-xp 000d1000 fd:00 1311 /usr/sbin/nginx",
            "7f01a000-7f01b000 r--p 00012000 fd:00 1313 /usr/lib/x86_64-linux-gnu/libc.so.6",
            "7f01a000-7f01b000 r--p 00000000 00:00 0",
            "7ffc1000-7ffc2000 r--p 00000000 00:00 0 [vvar]",
            "00000000-7ffc2000 r--p 00000000 fd:00 1311 /usr/sbin/nginx",
            "",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }
}
