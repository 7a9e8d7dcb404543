//! tracer: why nginx answers 502, from kernel evidence.
//!
//! The map of the crate: [`event`] is what goes into the engine and comes out, [`model`] the vocabulary of the result.

pub mod event;
pub mod host;
pub mod model;
pub mod nginx;
