//! The schema: numbered migrations for both databases, embedded in the program.
//!
//! All of them run in one transaction under one lock, so two processes that start at once cannot meet in
//! the middle. A database that is newer than the program is refused, since old code would misread it.
//! (A migration library was considered: sqlx's takes no lock on SQLite, so two processes could collide.)

use std::collections::BTreeSet;
use std::fmt;

use crate::connection::Connection;
use crate::database::{Database, DatabaseKind};
use crate::store::Store;
use crate::tx::Tx;

/// One step of the schema, under the same number and name for both databases.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Its number; numbers are given once and for all.
    pub number: i64,
    /// What it is about.
    pub name: &'static str,
    /// The statements for SQLite.
    pub sqlite: &'static str,
    /// The statements for PostgreSQL.
    pub postgres: &'static str,
}

/// As its files are called: `0001_log`.
impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}_{}", self.number, self.name)
    }
}

/// The migrations of the log itself.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        number: 1,
        name: "log",
        sqlite: include_str!("../../../migrations/sqlite/0001_log.sql"),
        postgres: include_str!("../../../migrations/postgres/0001_log.sql"),
    },
    Migration {
        number: 3,
        name: "log_reads",
        sqlite: include_str!("../../../migrations/sqlite/0003_log_reads.sql"),
        postgres: include_str!("../../../migrations/postgres/0003_log_reads.sql"),
    },
    Migration {
        number: 4,
        name: "append",
        sqlite: include_str!("../../../migrations/sqlite/0004_append.sql"),
        postgres: include_str!("../../../migrations/postgres/0004_append.sql"),
    },
    Migration {
        number: 5,
        name: "settled",
        sqlite: include_str!("../../../migrations/sqlite/0005_settled.sql"),
        postgres: include_str!("../../../migrations/postgres/0005_settled.sql"),
    },
    Migration {
        number: 6,
        name: "snapshots",
        sqlite: include_str!("../../../migrations/sqlite/0006_snapshots.sql"),
        postgres: include_str!("../../../migrations/postgres/0006_snapshots.sql"),
    },
    Migration {
        number: 7,
        name: "log_place",
        sqlite: include_str!("../../../migrations/sqlite/0007_log_place.sql"),
        postgres: include_str!("../../../migrations/postgres/0007_log_place.sql"),
    },
    Migration {
        number: 18,
        name: "closed_streams",
        sqlite: include_str!("../../../migrations/sqlite/0018_closed_streams.sql"),
        postgres: include_str!("../../../migrations/postgres/0018_closed_streams.sql"),
    },
];

/// How the schema of a database stands to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// Nothing there yet.
    Missing,
    /// There, with this many migrations still to run.
    Behind(usize),
    /// As the program expects it.
    Current,
    /// Newer than the program: it has a migration that the program does not know.
    Newer(i64),
}

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database belongs to a newer program.
    #[error(
        "the database is newer than this program: it has migration {database}, the program ends at {program}; \
         use the newer program"
    )]
    Newer {
        /// The newest migration of the database.
        database: i64,
        /// The newest one that the program knows.
        program: i64,
    },
    /// A migration failed; nothing was changed.
    #[error("could not run migration {number:04}_{name}")]
    Failed {
        /// Its number.
        number: i64,
        /// Its name.
        name: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// The database refused for another reason; nothing was changed.
    #[error("could not bring the schema up to date")]
    Database(#[from] sqlx::Error),
}

/// The functions look for their tables in the schema in which they were made, by its name. If that got another name
/// since, they are told.
const FUNCTIONS_COME_ALONG: &str = "DO $$
DECLARE
    home   text := quote_ident(current_schema()) || ', pg_temp';
    lost   regprocedure;
BEGIN
    FOR lost IN SELECT oid::regprocedure
                  FROM pg_proc
                 WHERE pronamespace = current_schema()::regnamespace
                   AND proname IN ('herald_append', 'herald_append_one', 'herald_identify_server',
                                   'herald_publish_head')
                   AND EXISTS (SELECT FROM unnest(proconfig) AS setting
                                WHERE setting LIKE 'search_path=%' AND setting <> 'search_path=' || home)
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path TO %I, pg_temp', lost, current_schema());
    END LOOP;
END
$$";

/// Taken by whoever migrates; the number is ours and means nothing to anybody else.
const MIGRATION_LOCK: i64 = 0x6865_7261_6C64;

/// Reads how the schema stands, without writing anything.
pub(crate) async fn schema(database: &Database, known: &[Migration]) -> sqlx::Result<Schema> {
    Ok(applied(database).await?.map_or(Schema::Missing, |applied| compare(&applied, known)))
}

/// What is still to run, in the order of the numbers.
pub(crate) async fn missing(database: &Database, known: &[Migration]) -> sqlx::Result<Vec<Migration>> {
    Ok(not_among(&applied(database).await?.unwrap_or_default(), known))
}

fn not_among(applied: &[(i64,)], known: &[Migration]) -> Vec<Migration> {
    let is_missing = |migration: &&Migration| !applied.contains(&(migration.number,));
    let mut missing: Vec<Migration> = known.iter().filter(is_missing).copied().collect();
    missing.sort_by_key(|migration| migration.number);
    missing
}

/// The numbers of the migrations that ran; none where the schema was never begun.
async fn applied(database: &Database) -> sqlx::Result<Option<Vec<(i64,)>>> {
    let exists: Option<(i64,)> = match database.kind() {
        // The catalogues differ.
        DatabaseKind::Sqlite => {
            let sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'herald_migrations'";
            database.fetch_optional(sql, ()).await?
        }
        DatabaseKind::Postgres => {
            let sql = "SELECT CAST(1 AS BIGINT) WHERE to_regclass('herald_migrations') IS NOT NULL";
            database.fetch_optional(sql, ()).await?
        }
    };
    if exists.is_none() {
        return Ok(None);
    }
    database.fetch_all("SELECT number FROM herald_migrations ORDER BY number", ()).await.map(Some)
}

/// Whether this migration has run; the schema must not be missing.
pub(crate) async fn has_run(database: &Database, number: i64) -> sqlx::Result<bool> {
    let sql = "SELECT number FROM herald_migrations WHERE number = $1";
    Ok(database.fetch_optional::<(i64,)>(sql, (number,)).await?.is_some())
}

fn compare(applied: &[(i64,)], known: &[Migration]) -> Schema {
    let applied: BTreeSet<i64> = applied.iter().map(|row| row.0).collect();
    let known: BTreeSet<i64> = known.iter().map(|migration| migration.number).collect();
    if let Some(newer) = applied.difference(&known).last() {
        return Schema::Newer(*newer);
    }
    match known.difference(&applied).count() {
        0 => Schema::Current,
        _ if applied.is_empty() => Schema::Missing,
        missing => Schema::Behind(missing),
    }
}

/// Runs what is missing, in the order of the numbers, and says how many that were.
pub(crate) async fn migrate(store: &Store, tx: &mut Tx, known: &[Migration]) -> Result<usize, MigrateError> {
    if let Connection::Postgres(_) = tx.connection() {
        // SQLite's write lock is already held.
        tx.fetch_optional::<(bool,)>("SELECT pg_advisory_xact_lock($1) IS NULL", (MIGRATION_LOCK,)).await?;
        // Whoever waits for a table keeps everybody out who comes later: better to fail, and to be called again.
        tx.execute("SET LOCAL lock_timeout = '10s'", ()).await?;
    }
    tx.execute(
        "CREATE TABLE IF NOT EXISTS herald_migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL)",
        (),
    )
    .await?;
    let applied = tx.fetch_all::<(i64,)>("SELECT number FROM herald_migrations ORDER BY number", ()).await?;
    if let Schema::Newer(database) = compare(&applied, known) {
        let program = known.iter().map(|migration| migration.number).max().unwrap_or(0);
        return Err(MigrateError::Newer { database, program });
    }
    let missing = not_among(&applied, known);
    for migration in &missing {
        let sql = match store.database().kind() {
            DatabaseKind::Sqlite => migration.sqlite,
            DatabaseKind::Postgres => migration.postgres,
        };
        let Migration { number, name, .. } = *migration;
        let failed = |source| MigrateError::Failed { number, name, source };
        tx.connection().run(sql).await.map_err(failed)?;
        tx.execute("INSERT INTO herald_migrations (number, name) VALUES ($1, $2)", (number, name)).await?;
        tracing::info!(migration = number, "ran migration {number:04}_{name}");
    }
    if let connection @ Connection::Postgres(_) = tx.connection() {
        connection.run(FUNCTIONS_COME_ALONG).await?;
    }
    Ok(missing.len())
}
