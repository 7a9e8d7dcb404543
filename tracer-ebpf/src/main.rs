//! tracer's BPF programs: they turn kernel moments that concern nginx's upstream connections into records.
//!
//! Each program is a few lines in `hooks/`: read the arguments, call the shared handler. What is kept per connection
//! is in `maps.rs`; kernel memory is read in `sock.rs` only.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod exchange;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod output;
#[cfg(target_arch = "bpf")]
mod sock;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// A panic that could be reached is refused by the verifier, since this never returns.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel gives the helpers these programs need only to GPL-compatible ones.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
