//! Sockets that were there before.
