//! The whole system through its public doors, on both databases. One binary: it links once.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod append;
mod bad_input;
mod crash;
mod demo;
mod disturbances;
mod engine;
mod engine_clock;
mod engine_context;
mod engine_detach;
mod engine_exactly_once;
mod engine_failure;
mod engine_interference;
mod engine_lifecycle;
mod engine_upcasting;
mod engine_worker;
mod events_cli;
mod faults;
mod filters;
mod given;
mod hooks;
mod hostile;
mod interleavings;
mod matcher;
mod notifications;
mod open;
mod program;
mod read;
mod repeated_append;
mod safe_head;
mod snapshots;
mod transaction;
mod upcasting;
mod wake;
