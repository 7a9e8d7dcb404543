//! The project's own automation: one verb per file.
fn main() {}
