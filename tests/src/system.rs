//! The whole system through its public doors, on both databases. One binary: it links once.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod append;
mod append_model;
mod bad_input;
mod crash;
mod dead_letters;
mod dead_letters_model;
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
mod engine_skip;
mod engine_worker;
mod events_cli;
mod faults;
mod filters;
mod given;
mod hostile;
mod interleavings;
mod matcher;
mod notifications;
mod open;
mod power_cut;
mod program;
mod prooph;
mod read;
mod repeated_append;
mod safe_head;
mod transaction;
mod wake;
