//! Who has read how far, and moving them on.

mod migrations;

pub use migrations::MIGRATIONS;
