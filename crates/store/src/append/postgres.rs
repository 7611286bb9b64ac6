//! Writing appends on PostgreSQL: functions of the database do it in one round trip.

use std::borrow::Borrow;

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;

use super::{Append, Appended, ExpectedVersion, Outcome};
use crate::connection::Connection;
use crate::event::{NewEvent, Position, Version};

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

/// What a conflict of one append means for the others of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Together {
    /// They belong to one transaction, and none is written.
    AllOrNone,
    /// They are strangers that share a commit, and each has its own fate. A known id may show as a broken index,
    /// and then none is written.
    EachForItself,
}

/// Several appends in one call, sorted by stream.
pub(super) async fn append_on_postgres(
    connection: &mut Connection,
    appends: &[impl Borrow<Append>],
    together: Together,
) -> sqlx::Result<Vec<Outcome>> {
    const APPEND: &str = "SELECT outcome, stream_version, last_position
         FROM herald_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let Connection::Postgres(connection) = connection else { return Err(sqlx::Error::RowNotFound) };
    let appends = || appends.iter().map(Borrow::borrow);
    let query = sqlx::query_as(APPEND)
        .bind(appends().map(|append: &Append| append.stream.as_str()).collect::<Vec<_>>())
        .bind(appends().map(|append| expected_number(append.expected)).collect::<Vec<_>>())
        .bind(appends().map(|append| i32::try_from(append.events.len()).unwrap_or(0)).collect::<Vec<_>>());
    let events = appends().flat_map(|append| &append.events);
    let query = with_events(query, &events).bind(together == Together::AllOrNone);
    let rows = query.fetch_all(&mut **connection).await?;
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
