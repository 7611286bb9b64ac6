//! The part of the benchmark program that tests call too: the disturbances, and the fire.

pub mod disturb;
pub mod fire;
pub mod isolation;
pub mod takeover;

/// Whatever went wrong on the way.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The throw-away clusters of tests do not sync; a measured one does. Checkpoints stay out of the way.
pub const DURABLE: [&str; 4] =
    ["fsync=on", "full_page_writes=on", "synchronous_commit=on", "max_wal_size=8GB"];
