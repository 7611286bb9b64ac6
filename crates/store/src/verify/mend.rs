//! Mending what can safely be mended: under the locks that appends take, so that none comes in between.

use sqlx::{AssertSqlSafe, Executor};

use super::Finding;
use super::schema::{KEYS, indexes};
use super::settled::{Table, has_table};
use crate::connection::Connection;
use crate::database::DatabaseKind;
use crate::store::{BadSequence, Store};
use crate::tx::Tx;

/// While it waits for a lock, others wait behind it: not for long.
const PATIENCE: &str = "SET LOCAL lock_timeout = '10s'";

/// Mends one finding; what cannot be mended is left as it is.
pub(super) async fn mend(store: &Store, finding: &Finding) -> sqlx::Result<()> {
    let mut tx = store.begin().await?;
    if tx.kind() == DatabaseKind::Postgres {
        tx.execute(PATIENCE, ()).await?;
    }
    let mended = match finding {
        Finding::MissingIndex { index } => make_index(store, &mut tx, index).await,
        Finding::Sequence(BadSequence::Behind { .. }) => move_sequence(&mut tx).await,
        Finding::Stream { stream, .. } => count_stream(&mut tx, stream).await,
        Finding::SettledBeyondEnd { .. } => forget_settled(store, &mut tx).await,
        _ => Ok(()),
    };
    match mended {
        Ok(()) => tx.commit().await,
        Err(error) => {
            tx.rollback().await;
            Err(error)
        }
    }
}

/// On PostgreSQL appends wait while it is made.
async fn make_index(store: &Store, tx: &mut Tx, name: &str) -> sqlx::Result<()> {
    let known = indexes(store.migrations(), tx.kind());
    let create = known.iter().find(|(index, _)| *index == name).map(|(_, create)| *create);
    match create.or_else(|| KEYS.iter().find(|key| key.name == name).map(|key| key.create)) {
        Some(create) => {
            // One that cannot be used has the name already. The name is one of ours.
            let text = format!("DROP INDEX IF EXISTS {name}; {create}");
            tx.connection().run(AssertSqlSafe(text)).await
        }
        None => Ok(()),
    }
}

/// Keeps appends out that have not drawn their positions yet, and waits for those that have (PostgreSQL; on SQLite
/// the transaction itself does).
async fn keep_appends_out(tx: &mut Tx) -> sqlx::Result<()> {
    if let Connection::Postgres(connection) = tx.connection() {
        let lock = "SELECT pg_advisory_xact_lock(1214607969, 'herald_positions'::regclass::oid::integer)";
        connection.execute(lock).await?;
    }
    Ok(())
}

async fn move_sequence(tx: &mut Tx) -> sqlx::Result<()> {
    keep_appends_out(tx).await?;
    if let Connection::Postgres(connection) = tx.connection() {
        let set = "SELECT setval('herald_positions', MAX(position)) FROM herald_events
                   HAVING MAX(position) > (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
                                             FROM herald_positions)";
        connection.execute(set).await?;
    }
    Ok(())
}

/// Computes a stream's row anew. Whoever appends to the stream changes its row first, and waits for this.
async fn count_stream(tx: &mut Tx, stream: &str) -> sqlx::Result<()> {
    // Takes the row's lock, and makes the row if there is none.
    let take = "INSERT INTO herald_streams (stream, version) VALUES ($1, 0)
                ON CONFLICT (stream) DO UPDATE SET version = herald_streams.version";
    tx.execute(take, (stream,)).await?;
    // A statement of its own sees what was committed before the lock was had.
    let count = "UPDATE herald_streams
                    SET version = (SELECT MAX(version) FROM herald_events WHERE stream = $1),
                        closed_version = (SELECT MAX(version) FROM herald_events
                                           WHERE stream = $1 AND type = '$closed')
                  WHERE stream = $1 AND EXISTS (SELECT 1 FROM herald_events WHERE stream = $1)";
    if tx.execute(count, (stream,)).await? == 0 {
        tx.execute("DELETE FROM herald_streams WHERE stream = $1", (stream,)).await?;
    }
    Ok(())
}

/// Nothing is settled beyond the last event.
async fn forget_settled(store: &Store, tx: &mut Tx) -> sqlx::Result<()> {
    keep_appends_out(tx).await?;
    if has_table(store.database(), Table::SafeHead).await? {
        let lower = "UPDATE herald_safe_head
                        SET position = (SELECT COALESCE(MAX(position), 0) FROM herald_events)
                      WHERE position > (SELECT COALESCE(MAX(position), 0) FROM herald_events)";
        tx.execute(lower, ()).await?;
    }
    if has_table(store.database(), Table::DeadRanges).await? {
        let cut = "UPDATE herald_dead_ranges
                      SET hi = (SELECT MAX(position) FROM herald_events)
                    WHERE hi > (SELECT MAX(position) FROM herald_events)
                      AND lo <= (SELECT MAX(position) FROM herald_events)";
        tx.execute(cut, ()).await?;
        let forget = "DELETE FROM herald_dead_ranges
                       WHERE lo > (SELECT COALESCE(MAX(position), 0) FROM herald_events)";
        tx.execute(forget, ()).await?;
    }
    Ok(())
}
