//! Files of lines, plain or zstd: what traces and recordings have in common.
//!
//! Whatever ends the program, a file written here reads to its last whole line; [`read::LineReader`] skips a torn end
//! and says so.

pub mod read;
pub mod write;

/// The first bytes of every zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
