//! The BPF object.
fn main() {}
