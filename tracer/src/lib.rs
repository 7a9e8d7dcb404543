//! tracer: why nginx answers 502, from kernel evidence.
//!
//! The map of the crate: [`event`] is what goes into the engine and comes out, [`model`] the vocabulary of the result.
//! [`outputs`] takes what the engine says to the files ([`sink`]) and the terminal ([`view`]); [`source`] reads inputs
//! back from a recording; [`report`] reads traces, [`annotate`] reads them beside nginx's log. [`nginx`] finds instances
//! and reads their configuration and log, [`host`] answers questions about processes, sockets, files and routes.

#![forbid(unsafe_code)]

pub mod annotate;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod docs;
pub mod engine;
pub mod event;
pub mod host;
pub mod kernel;
pub mod lines;
pub mod measured;
pub mod model;
pub mod nginx;
pub mod outputs;
pub mod pipeline;
pub mod privilege;
pub mod report;
#[cfg(test)]
mod samples;
pub mod session;
pub mod sink;
pub mod source;
pub mod tally;
#[cfg(test)]
mod trials;
pub mod view;
