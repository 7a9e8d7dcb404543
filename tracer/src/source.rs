//! Where inputs come from.

pub mod recording;
