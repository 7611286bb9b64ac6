//! Writing appends on SQLite, under its one write lock: a group of strangers as one job on the writer's thread,
//! and the appends of somebody's transaction on the connection of that transaction.

use std::sync::Arc;
use std::time::Instant;

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::known::stored_ids;
use super::{Append, Appended, ExpectedVersion, Outcome, is_closed_stream, is_duplicate_id};
use crate::connection::SQLITE_BUSY_TIMEOUT;
use crate::database::SQLITE_WRITER_LOOK;
use crate::database_error::from_rusqlite;
use crate::event::{Position, Version};
use crate::sql::Sql;
use crate::store::Store;
use crate::timestamp::Timestamp;
use crate::tx::Tx;

const ACTUAL_VERSION: &str = "SELECT version FROM herald_streams WHERE stream = ?1";

/// The statement that moves a stream on if it is as expected, and says to which version; it takes the stream, the
/// number of events and, if there is one, the expected version.
fn raise(expected: ExpectedVersion) -> (&'static str, Option<Version>) {
    match expected {
        ExpectedVersion::Exactly(expected) => (
            "UPDATE herald_streams SET version = version + ?2
              WHERE stream = ?1 AND version = ?3 RETURNING version",
            Some(expected),
        ),
        ExpectedVersion::NoStream => (
            "INSERT INTO herald_streams (stream, version) VALUES (?1, ?2 - 1)
                 ON CONFLICT (stream) DO NOTHING RETURNING version",
            None,
        ),
        ExpectedVersion::Any => (
            "INSERT INTO herald_streams (stream, version) VALUES (?1, ?2 - 1)
                 ON CONFLICT (stream) DO UPDATE SET version = version + ?2 RETURNING version",
            None,
        ),
        ExpectedVersion::StreamExists => {
            ("UPDATE herald_streams SET version = version + ?2 WHERE stream = ?1 RETURNING version", None)
        }
    }
}

fn size_of(append: &Append) -> i64 {
    i64::try_from(append.events.len()).unwrap_or(i64::MAX)
}

/// What became of one append of a group.
pub(super) type Fate = sqlx::Result<Outcome>;

/// Writes appends that know nothing of each other in one transaction. One that is refused is undone alone; an
/// error here means that nothing at all was written.
pub(super) fn write_group(
    connection: &mut rusqlite::Connection,
    appends: &[Arc<Append>],
    time_is_set: bool,
) -> rusqlite::Result<Vec<Fate>> {
    let transaction = begin(connection)?;
    let now = if time_is_set {
        transaction.query_row("SELECT test_time FROM herald_log", (), |row| row.get(0))?
    } else {
        let system = Timestamp::system().to_column();
        system.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?
    };
    let mut fates = Vec::with_capacity(appends.len());
    for append in appends {
        run(&transaction, "SAVEPOINT one")?;
        let fate = match write_one(&transaction, append, &now) {
            Ok(outcome) => Ok(outcome),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                run(&transaction, "ROLLBACK TO one")?;
                let error = from_rusqlite(error);
                match error {
                    error if is_duplicate_id(&error) => Ok(Outcome::Known),
                    error if is_closed_stream(&error) => Ok(Outcome::StreamClosed),
                    error => Err(error),
                }
            }
            // The file, not the append: a full disk, say.
            Err(error) => return Err(error),
        };
        run(&transaction, "RELEASE one")?;
        fates.push(fate);
    }
    transaction.commit()?;
    Ok(fates)
}

/// Takes the write lock. Another process lets go of it for short times only: it is looked for often.
fn begin(connection: &rusqlite::Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.busy_timeout(SQLITE_WRITER_LOOK)?;
    let start = Instant::now();
    loop {
        match Transaction::new_unchecked(connection, TransactionBehavior::Immediate) {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && start.elapsed() < SQLITE_BUSY_TIMEOUT => {}
            result => return result,
        }
    }
}

fn run(transaction: &Transaction<'_>, sql: &str) -> rusqlite::Result<()> {
    transaction.prepare_cached(sql)?.execute(()).map(drop)
}

fn write_one(transaction: &Transaction<'_>, append: &Append, now: &str) -> rusqlite::Result<Outcome> {
    let (stream, size) = (append.stream.as_str(), size_of(append));
    let (sql, expected) = raise(append.expected);
    let mut statement = transaction.prepare_cached(sql)?;
    let version = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let reached = match expected {
        Some(expected) => statement.query_row(params![stream, size, expected.0], version).optional()?,
        None => statement.query_row(params![stream, size], version).optional()?,
    };
    let Some(reached) = reached else {
        let mut known = transaction.prepare_cached("SELECT 1 FROM herald_events WHERE id = ?1")?;
        for event in &append.events {
            if known.exists((event.id.as_bytes(),))? {
                return Ok(Outcome::Known);
            }
        }
        let mut statement = transaction.prepare_cached(ACTUAL_VERSION)?;
        let actual = statement.query_row((stream,), version).optional()?;
        return Ok(Outcome::Conflict(actual.map(Version)));
    };
    let mut insert = transaction.prepare_cached(
        "INSERT INTO herald_events (stream, version, type, payload, metadata, id, correlation_id, causation_id,
                                    recorded_at, append_index, append_size)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    let mut position = None;
    for (event, index) in append.events.iter().zip(0_i64..) {
        position = Some(Position(insert.insert(params![
            stream,
            reached - size + 1 + index,
            event.event_type,
            event.payload.as_str(),
            event.metadata.as_str(),
            event.id.as_bytes(),
            event.correlation_id,
            event.causation_id.as_ref().map(Uuid::as_bytes),
            now,
            index,
            size,
        ])?));
    }
    Ok(Outcome::Appended(Appended { position, version: Some(Version(reached)), replayed: false }))
}

/// Writes the appends of somebody's transaction. Nothing is undone here: on an error or a conflict the caller
/// rolls back.
pub(super) async fn append_on_sqlite(
    tx: &mut Tx,
    store: &Store,
    appends: &[&Append],
) -> sqlx::Result<Vec<Outcome>> {
    let now = store.clock().recorded_in(tx).await?;
    let mut outcomes = Vec::with_capacity(appends.len());
    for append in appends {
        if has_known_id(tx, append).await? {
            outcomes.push(Outcome::Known);
            continue;
        }
        outcomes.push(match raise_version(tx, append).await {
            Ok(Some(reached)) => Outcome::Appended(insert_events(tx, append, reached, now).await?),
            Ok(None) => {
                let actual: Option<(Version,)> =
                    tx.fetch_optional(ACTUAL_VERSION, (append.stream.as_str(),)).await?;
                Outcome::Conflict(actual.map(|row| row.0))
            }
            Err(error) if is_closed_stream(&error) => {
                // Nothing more can be done in this transaction.
                outcomes.push(Outcome::StreamClosed);
                break;
            }
            Err(error) => return Err(error),
        });
    }
    Ok(outcomes)
}

async fn has_known_id(tx: &mut Tx, append: &Append) -> sqlx::Result<bool> {
    let ids: Vec<Uuid> = append.events.iter().map(|event| event.id).collect();
    Ok(!stored_ids(tx.connection(), &ids).await?.is_empty())
}

async fn raise_version(tx: &mut Tx, append: &Append) -> sqlx::Result<Option<Version>> {
    let (stream, size) = (append.stream.as_str(), size_of(append));
    let (sql, expected) = raise(append.expected);
    let row: Option<(Version,)> = match expected {
        Some(expected) => tx.fetch_optional(sql, (stream, size, expected)).await?,
        None => tx.fetch_optional(sql, (stream, size)).await?,
    };
    Ok(row.map(|row| row.0))
}

async fn insert_events(
    tx: &mut Tx,
    append: &Append,
    reached: Version,
    now: Timestamp,
) -> sqlx::Result<Appended> {
    let size = size_of(append);
    let mut rows = Vec::with_capacity(append.events.len());
    for (event, index) in append.events.iter().zip(0_i64..) {
        rows.push((
            append.stream.as_str(),
            reached.0 - size + 1 + index,
            event.event_type.as_str(),
            event.payload.as_str(),
            event.metadata.as_str(),
            event.id,
            event.correlation_id.clone(),
            event.causation_id,
            now,
            index,
            size,
        ));
    }
    let insert = Sql::from(
        "INSERT INTO herald_events (stream, version, type, payload, metadata, id, correlation_id, causation_id,
                                    recorded_at, append_index, append_size)
         VALUES {rows}",
    );
    let result = tx.connection().execute_many(&insert, rows).await;
    let written = tx.remember(result)?;
    // The position is SQLite's row id: one more than the largest, given under the write lock.
    let position = written.last_row_id.map(Position);
    Ok(Appended { position, version: Some(reached), replayed: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;
    use crate::json::Json;
    use crate::migrate::MIGRATIONS;
    use crate::stream_name::StreamName;

    fn log() -> rusqlite::Connection {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        for migration in MIGRATIONS {
            connection.execute_batch(migration.sqlite).unwrap();
        }
        connection
    }

    fn append(stream: &str, bytes: usize) -> Arc<Append> {
        let payload = Json::parse(format!("\"{}\"", "x".repeat(bytes))).unwrap();
        let events = vec![NewEvent::new("Acme.Test:Happened", payload)];
        let stream = StreamName::new(stream).unwrap();
        Arc::new(Append { stream, expected: ExpectedVersion::Any, events })
    }

    fn count(connection: &rusqlite::Connection) -> i64 {
        connection.query_row("SELECT COUNT(*) FROM herald_events", (), |row| row.get(0)).unwrap()
    }

    /// SQLite's own limit of a connection answers as a full disk does, and no other connection can set it.
    #[test]
    fn s27_a_group_on_a_full_disk_is_not_written_and_the_next_one_is() {
        let mut connection = log();
        write_group(&mut connection, &[append("a-1", 10)], false).unwrap();
        let pages: i64 = connection.query_row("PRAGMA page_count", (), |row| row.get(0)).unwrap();
        connection.pragma_update(None, "max_page_count", pages + 10).unwrap();
        let group = [append("a-1", 10), append("b-1", 100_000), append("c-1", 10)];

        let error = from_rusqlite(write_group(&mut connection, &group, false).unwrap_err());

        assert_eq!(crate::fault::Fault::of(&error), crate::fault::Fault::Transient);
        assert!(connection.is_autocommit());
        assert_eq!(count(&connection), 1);
        connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        let fates = write_group(&mut connection, &group, false).unwrap();
        assert!(fates.iter().all(|fate| matches!(fate, Ok(Outcome::Appended(_)))), "{fates:?}");
        assert_eq!(count(&connection), 4);
    }
}
