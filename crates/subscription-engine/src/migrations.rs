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
        number: 8,
        name: "checkpoint_event",
        sqlite: include_str!("../../../migrations/sqlite/0008_checkpoint_event.sql"),
        postgres: include_str!("../../../migrations/postgres/0008_checkpoint_event.sql"),
    },
    Migration {
        number: 11,
        name: "dead_letters",
        sqlite: include_str!("../../../migrations/sqlite/0011_dead_letters.sql"),
        postgres: include_str!("../../../migrations/postgres/0011_dead_letters.sql"),
    },
    Migration {
        number: 12,
        name: "timers",
        sqlite: include_str!("../../../migrations/sqlite/0012_timers.sql"),
        postgres: include_str!("../../../migrations/postgres/0012_timers.sql"),
    },
    Migration {
        number: 13,
        name: "effects",
        sqlite: include_str!("../../../migrations/sqlite/0013_effects.sql"),
        postgres: include_str!("../../../migrations/postgres/0013_effects.sql"),
    },
    Migration {
        number: 14,
        name: "progress",
        sqlite: include_str!("../../../migrations/sqlite/0014_progress.sql"),
        postgres: include_str!("../../../migrations/postgres/0014_progress.sql"),
    },
    Migration {
        number: 15,
        name: "definitions",
        sqlite: include_str!("../../../migrations/sqlite/0015_definitions.sql"),
        postgres: include_str!("../../../migrations/postgres/0015_definitions.sql"),
    },
    Migration {
        number: 16,
        name: "worker_process",
        sqlite: include_str!("../../../migrations/sqlite/0016_worker_process.sql"),
        postgres: include_str!("../../../migrations/postgres/0016_worker_process.sql"),
    },
    Migration {
        number: 17,
        name: "history",
        sqlite: include_str!("../../../migrations/sqlite/0017_history.sql"),
        postgres: include_str!("../../../migrations/postgres/0017_history.sql"),
    },
];
