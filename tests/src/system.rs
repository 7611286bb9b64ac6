//! The whole system through its public doors, on both databases. One binary: it links once.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod append;
mod bad_input;
mod crash;
mod engine;
mod notifications;
mod program;
mod random;
