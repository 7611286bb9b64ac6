//! A log that is already long: filled by statements over many rows, as a million appends would take minutes.
//!
//! It is what appending would have left, streams and positions included. A hundred events make a stream; four of five
//! streams are of the category `user`; there are five types and as many tenants in the metadata; a fifth of the
//! events belongs to one correlation. And evenly spread there are a few that are alike in nothing to the others:
//! type, category, correlation and tenant are `rare`.

use std::path::Path;

use sqlx::{Connection, Executor, PgConnection};
use store::Store;

use crate::BoxError;
use crate::databases::{Bench, LOG};

/// How many events, and how many of them are rare ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) events: u32,
    pub(crate) rare: u32,
}

/// One of the five types.
pub(crate) const TYPE: &str = "Acme.Notifications:Type1";
pub(crate) const CATEGORY: &str = "user";
/// A fifth of the events belongs to it.
pub(crate) const CORRELATION: &str = "import-1";
/// A fifth of the events has it in its metadata.
pub(crate) const TENANT: &str = "tenant-2";
pub(crate) const RARE: &str = "rare";

/// Fills an empty log.
pub(crate) async fn fill(bench: &Bench, size: Size) -> Result<Store, BoxError> {
    let store = bench.store().await?;
    let rare_one_in = size.events / size.rare.max(1);
    match bench {
        Bench::Sqlite { folder } => fill_sqlite(&folder.path().join(LOG), size.events, rare_one_in)?,
        Bench::Postgres { .. } => fill_postgres(&bench.url(""), size.events, rare_one_in).await?,
    }
    Ok(store)
}

fn fill_sqlite(file: &Path, events: u32, rare_one_in: u32) -> Result<(), BoxError> {
    let connection = rusqlite::Connection::open(file)?;
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -200000; BEGIN IMMEDIATE")?;
    connection.execute(
        "WITH RECURSIVE
             numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < ?1),
             kinds AS (SELECT i, i % ?2 = 0 AS is_rare,
                              CASE WHEN i % ?2 = 0 THEN i / ?2 - 1 ELSE i - 1 - i / ?2 END AS n FROM numbers)
         INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                    causation_id, recorded_at, append_index, append_size)
         SELECT i,
                CASE WHEN is_rare THEN 'rare' WHEN n / 100 % 5 = 0 THEN 'order' ELSE 'user' END
                    || '-' || (n / 100),
                n % 100,
                CASE WHEN is_rare THEN 'rare' ELSE 'Acme.Notifications:Type' || (n % 5) END,
                '{\"userId\":\"user-' || n || '\",\"message\":\"' || printf('%.*c', 160, 'x') || '\"}',
                '{\"tenant\":\"' || iif(is_rare, 'rare', 'tenant-' || (n % 5)) || '\",\"agent\":\"bench\"}',
                unhex(printf('%032x', i)),
                CASE WHEN is_rare THEN 'rare' WHEN n % 5 = 3 THEN 'import-1' ELSE 'request-' || (n / 10) END,
                NULL, '2026-01-01 00:00:00.000000', 0, 1
           FROM kinds",
        (events, rare_one_in),
    )?;
    connection.execute_batch(
        "INSERT INTO herald_streams (stream, version)
             SELECT stream, MAX(version) FROM herald_events GROUP BY stream;
         COMMIT;
         ANALYZE;
         PRAGMA wal_checkpoint(TRUNCATE)",
    )?;
    Ok(())
}

async fn fill_postgres(url: &str, events: u32, rare_one_in: u32) -> Result<(), BoxError> {
    let mut connection = PgConnection::connect(url).await?;
    let fill = sqlx::query(
        "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                    causation_id, recorded_at, append_index, append_size)
         SELECT i,
                CASE WHEN is_rare THEN 'rare' WHEN n / 100 % 5 = 0 THEN 'order' ELSE 'user' END
                    || '-' || (n / 100),
                n % 100,
                CASE WHEN is_rare THEN 'rare' ELSE 'Acme.Notifications:Type' || (n % 5) END,
                '{\"userId\":\"user-' || n || '\",\"message\":\"' || repeat('x', 160) || '\"}',
                '{\"tenant\":\"' || CASE WHEN is_rare THEN 'rare' ELSE 'tenant-' || (n % 5) END
                    || '\",\"agent\":\"bench\"}',
                lpad(to_hex(i), 32, '0')::uuid,
                CASE WHEN is_rare THEN 'rare' WHEN n % 5 = 3 THEN 'import-1' ELSE 'request-' || (n / 10) END,
                NULL, '2026-01-01T00:00:00Z', 0, 1
           FROM generate_series(1, $1::integer) AS numbers(i),
                LATERAL (SELECT i % $2::integer = 0 AS is_rare,
                                CASE WHEN i % $2 = 0 THEN i / $2 - 1 ELSE i - 1 - i / $2 END AS n) AS kinds
          ORDER BY i",
    );
    let (events, rare_one_in) = (i32::try_from(events)?, i32::try_from(rare_one_in)?);
    fill.bind(events).bind(rare_one_in).execute(&mut connection).await?;
    for sql in [
        "INSERT INTO herald_streams (stream, version)
             SELECT stream, max(version) FROM herald_events GROUP BY stream",
        "SELECT setval('herald_positions', (SELECT max(position) FROM herald_events))",
        // As the server does it by itself after a while; and what was written must not be written in our time.
        "VACUUM ANALYZE herald_events",
        "VACUUM ANALYZE herald_streams",
        "CHECKPOINT",
    ] {
        connection.execute(sql).await?;
    }
    connection.close().await?;
    Ok(())
}
