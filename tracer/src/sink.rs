//! Where finished attempts go as data: the stable serialised form, and the files that hold it.

pub mod attempt_line;
pub mod read;
pub mod schema;
pub mod trace_file;
