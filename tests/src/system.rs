//! The whole system through its public doors, on both databases. One binary: it links once.

mod append;
mod engine;
mod engine_failure;
mod engine_worker;
