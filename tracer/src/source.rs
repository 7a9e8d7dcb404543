//! Where inputs come from.

pub mod live;
pub mod recording;
