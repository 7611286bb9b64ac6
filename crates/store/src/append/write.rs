//! Writing appends, on each database in its own way: PostgreSQL has a function for it, SQLite one writer.

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use uuid::Uuid;

use super::known::stored_ids;
use super::{Append, Appended, ExpectedVersion, is_duplicate_id};
use crate::connection::Connection;
use crate::event::{NewEvent, Position, Version};
use crate::sql::Sql;
use crate::store::Store;
use crate::timestamp::Timestamp;
use crate::tx::Tx;

#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Appended(Appended),
    Conflict(Option<Version>),
    /// Some of its ids are in the log: see [`known_append`].
    Known,
}

/// What the functions of the database answer.
type OutcomeRow = (String, Option<Version>, Option<Position>);

fn outcome((outcome, version, position): OutcomeRow) -> Outcome {
    match outcome.as_str() {
        "appended" => Outcome::Appended(Appended { position, version, replayed: false }),
        "conflict" => Outcome::Conflict(version),
        _ => Outcome::Known,
    }
}

/// One append in a transaction of its own, in a single round trip. A known id may show as a broken index.
pub(super) async fn append_one_on_postgres(
    connection: &mut Connection,
    append: &Append,
) -> sqlx::Result<Outcome> {
    const APPEND: &str = "SELECT outcome, stream_version, last_position
         FROM herald_append_one($1, $2, $3, $4, $5, $6, $7, $8)";
    let Connection::Postgres(connection) = connection else { return Err(sqlx::Error::RowNotFound) };
    let query = sqlx::query_as(APPEND).bind(append.stream.as_str()).bind(expected_number(append.expected));
    let row = with_events(query, &append.events.iter()).fetch_one(&mut **connection).await?;
    Ok(outcome(row))
}

/// Several appends inside a transaction: a conflict keeps all of them from being written.
pub(super) async fn append_on_postgres(
    connection: &mut Connection,
    appends: &[&Append],
) -> sqlx::Result<Vec<Outcome>> {
    const APPEND: &str = "SELECT outcome, stream_version, last_position
         FROM herald_append($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let Connection::Postgres(connection) = connection else { return Err(sqlx::Error::RowNotFound) };
    let query = sqlx::query_as(APPEND)
        .bind(appends.iter().map(|append| append.stream.as_str()).collect::<Vec<_>>())
        .bind(appends.iter().map(|append| expected_number(append.expected)).collect::<Vec<_>>())
        .bind(
            appends.iter().map(|append| i32::try_from(append.events.len()).unwrap_or(0)).collect::<Vec<_>>(),
        );
    let events = appends.iter().flat_map(|append| &append.events);
    let rows = with_events(query, &events).fetch_all(&mut **connection).await?;
    Ok(rows.into_iter().map(outcome).collect())
}

type OutcomeQuery<'q> = QueryAs<'q, Postgres, OutcomeRow, PgArguments>;

/// Binds the events as both functions take them: one array for each column.
fn with_events<'e>(
    query: OutcomeQuery<'e>,
    events: &(impl Iterator<Item = &'e NewEvent> + Clone),
) -> OutcomeQuery<'e> {
    let events = || events.clone();
    query
        .bind(events().map(|event| event.id).collect::<Vec<_>>())
        .bind(events().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.payload.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.metadata.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.correlation_id.as_deref()).collect::<Vec<_>>())
        .bind(events().map(|event| event.causation_id).collect::<Vec<_>>())
}

/// How `herald_append` reads an expected version.
fn expected_number(expected: ExpectedVersion) -> i64 {
    match expected {
        ExpectedVersion::Exactly(version) => version.0,
        ExpectedVersion::NoStream => -1,
        ExpectedVersion::Any => -2,
        ExpectedVersion::StreamExists => -3,
    }
}

/// With `alone` the transaction holds nothing but this one append: then the unique index may find a known id,
/// which costs nothing where there is none.
pub(super) async fn append_on_sqlite(
    tx: &mut Tx,
    store: &Store,
    appends: &[&Append],
    alone: bool,
) -> sqlx::Result<Vec<Outcome>> {
    let now = store.clock().recorded_in(tx).await?;
    let mut outcomes = Vec::with_capacity(appends.len());
    for append in appends {
        outcomes.push(if !alone && has_known_id(tx, append).await? {
            Outcome::Known
        } else if let Some(reached) = raise_version(tx, append).await? {
            match write_on_sqlite(tx, append, reached, now).await {
                Err(error) if alone && is_duplicate_id(&error) => Outcome::Known,
                written => Outcome::Appended(written?),
            }
        } else if alone && has_known_id(tx, append).await? {
            Outcome::Known
        } else {
            let sql = "SELECT version FROM herald_streams WHERE stream = $1";
            let actual: Option<(Version,)> = tx.fetch_optional(sql, (append.stream.as_str(),)).await?;
            Outcome::Conflict(actual.map(|row| row.0))
        });
    }
    Ok(outcomes)
}

async fn has_known_id(tx: &mut Tx, append: &Append) -> sqlx::Result<bool> {
    let ids: Vec<Uuid> = append.events.iter().map(|event| event.id).collect();
    Ok(!stored_ids(tx.connection(), &ids).await?.is_empty())
}

/// Moves the stream on if it is as expected, and says to which version.
async fn raise_version(tx: &mut Tx, append: &Append) -> sqlx::Result<Option<Version>> {
    let size = i64::try_from(append.events.len()).unwrap_or(i64::MAX);
    let stream = append.stream.as_str();
    let row: Option<(Version,)> = match append.expected {
        ExpectedVersion::Exactly(expected) => {
            let sql = "UPDATE herald_streams SET version = version + $2
                        WHERE stream = $1 AND version = $3 RETURNING version";
            tx.fetch_optional(sql, (stream, size, expected)).await?
        }
        ExpectedVersion::NoStream => {
            let sql = "INSERT INTO herald_streams (stream, version) VALUES ($1, $2 - 1)
                           ON CONFLICT (stream) DO NOTHING RETURNING version";
            tx.fetch_optional(sql, (stream, size)).await?
        }
        ExpectedVersion::Any => {
            let sql = "INSERT INTO herald_streams (stream, version) VALUES ($1, $2 - 1)
                           ON CONFLICT (stream) DO UPDATE SET version = version + $2 RETURNING version";
            tx.fetch_optional(sql, (stream, size)).await?
        }
        ExpectedVersion::StreamExists => {
            let sql = "UPDATE herald_streams SET version = version + $2 WHERE stream = $1 RETURNING version";
            tx.fetch_optional(sql, (stream, size)).await?
        }
    };
    Ok(row.map(|row| row.0))
}

async fn write_on_sqlite(
    tx: &mut Tx,
    append: &Append,
    reached: Version,
    now: Timestamp,
) -> sqlx::Result<Appended> {
    let size = i64::try_from(append.events.len()).unwrap_or(i64::MAX);
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
