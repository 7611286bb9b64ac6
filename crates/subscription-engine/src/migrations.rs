//! The engine's own tables, numbered after the log's.

use store::Migration;

/// The migrations of the subscription engine.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        number: 2,
        name: "subscriptions",
        sqlite: include_str!("../../../migrations/sqlite/0002_subscriptions.sql"),
        postgres: include_str!("../../../migrations/postgres/0002_subscriptions.sql"),
    },
    Migration {
        number: 13,
        name: "effects",
        sqlite: include_str!("../../../migrations/sqlite/0013_effects.sql"),
        postgres: include_str!("../../../migrations/postgres/0013_effects.sql"),
    },
];
