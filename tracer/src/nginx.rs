//! What nginx says about itself without being asked: its processes, its configuration files, its error log.

pub mod config;
pub mod error_log;
pub mod find;
pub mod reload;
pub mod tail;
pub mod texts;

#[cfg(test)]
mod tests;
