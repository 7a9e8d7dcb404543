//! Files of lines, plain or zstd: what traces and recordings have in common.
//!
//! Whatever ends the program, a file written here reads to its last whole line; [`read::LineReader`] skips a torn end
//! and says so.

pub mod read;
pub mod write;

/// The first bytes of every zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// An I/O error in the house's words: lower case, without Rust's `(os error 2)` behind it.
#[must_use]
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}
