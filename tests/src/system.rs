//! The whole system through its public doors, on both databases. One binary: it links once.

#![expect(clippy::unwrap_used, reason = "a story ends at the first thing that goes wrong")]

mod append;
mod faults;
mod given;
mod open;
mod read;
mod repeated_append;
mod safe_head;
mod transaction;
mod wake;
