//! Appending: whole or not at all, under an expected version, and safe to repeat.
//!
//! One call is one transaction. Event ids are unique in the whole log, so a call that is repeated because
//! its answer got lost is recognised and answered with what it did the first time. Appends to several
//! streams take all stream rows in the order of their names first, then the append lock, then positions.

use std::collections::{HashMap, HashSet};
use std::future::Future;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use uuid::Uuid;

use crate::database::{Connection, DatabaseKind};
use crate::event::{InvalidEvent, MAX_APPEND_EVENTS, NewEvent, Position, Version};
use crate::json::Json;
use crate::sql::Sql;
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::tx::Tx;

/// What must hold of the stream for an append to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Nothing.
    Any,
    /// It has no events.
    NoStream,
    /// It has events.
    StreamExists,
    /// Its last event has this version.
    Exactly(Version),
}

/// Events for one stream.
#[derive(Clone, Debug)]
pub struct Append {
    /// The stream.
    pub stream: StreamName,
    /// What must hold of it.
    pub expected: ExpectedVersion,
    /// The events, in order. None is allowed and does nothing.
    pub events: Vec<NewEvent>,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The position of the last event; none when there was nothing to append.
    pub position: Option<Position>,
    /// The version of the last event; none when there was nothing to append.
    pub version: Option<Version>,
    /// The same events had been appended before; this is what that append answered.
    pub replayed: bool,
}

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The stream is not as expected: somebody else appended. Reload and decide again.
    #[error("stream {stream} is at {} but {} was expected", show_actual(*.actual), show_expected(*.expected))]
    WrongVersion {
        /// The stream.
        stream: StreamName,
        /// What was expected of it.
        expected: ExpectedVersion,
        /// The version of its last event; none if it has no events.
        actual: Option<Version>,
    },
    /// An event id is in the log already, and this is not a repetition of that append.
    #[error("event id {id} is already used by position {position} in stream {stream}")]
    IdReused {
        /// The id.
        id: Uuid,
        /// Where it was used.
        stream: StreamName,
        /// Where it was used.
        position: Position,
    },
    /// An event breaks a limit.
    #[error("the append to {stream} is not valid")]
    Invalid {
        /// The stream.
        stream: StreamName,
        /// Which limit.
        #[source]
        source: InvalidEvent,
    },
    /// A transaction appends once, as its last statement: positions are drawn there.
    #[error("this transaction has already appended; put all appends into one call")]
    SecondAppend,
    /// Two appends of one call go to one stream.
    #[error("stream {0} stands twice in one call; put its events into one append")]
    StreamTwice(StreamName),
    /// Appending past the transaction that is running here would not commit together with it.
    #[error("an append is refused here: {0}")]
    RefusedHere(&'static str),
    /// The connection broke while the append was under way: it may or may not be in the log. Repeating it
    /// with the same event ids is safe.
    #[error(
        "the connection broke during the append, so its outcome is unknown; repeat it with the same event ids"
    )]
    OutcomeUnknown(#[source] sqlx::Error),
    /// The database refused; nothing was written.
    #[error("could not append")]
    Database(#[from] sqlx::Error),
}

fn show_actual(actual: Option<Version>) -> String {
    actual.map_or_else(|| "no version (it has no events)".to_owned(), |version| format!("version {version}"))
}

fn show_expected(expected: ExpectedVersion) -> String {
    match expected {
        ExpectedVersion::Any => "any version".to_owned(),
        ExpectedVersion::NoStream => "no stream".to_owned(),
        ExpectedVersion::StreamExists => "an existing stream".to_owned(),
        ExpectedVersion::Exactly(version) => format!("version {version}"),
    }
}

tokio::task_local! {
    static REFUSED: &'static str;
}

/// Runs a future in which every append is refused, giving this reason: also one in a lent transaction, which
/// has to be its last statement.
pub async fn refuse_appends<F: Future>(reason: &'static str, future: F) -> F::Output {
    REFUSED.scope(reason, future).await
}

fn refused_here() -> Result<(), AppendError> {
    REFUSED.try_with(|reason| AppendError::RefusedHere(reason)).map_or(Ok(()), Err)
}

impl Store {
    /// Appends events to one stream, in a transaction of their own.
    ///
    /// Returns when the events are durable. Repeating a call with the same event ids is safe and answers
    /// what the first one did.
    pub async fn append(
        &self,
        stream: &StreamName,
        expected: ExpectedVersion,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        refused_here()?;
        let append = Append { stream: stream.clone(), expected, events };
        check(std::slice::from_ref(&append))?;
        if append.events.is_empty() {
            return Ok(Appended { position: None, version: None, replayed: false });
        }
        let outcome = if self.database().kind() == DatabaseKind::Postgres {
            // One call is one statement is one transaction: a single round trip.
            let mut connection = self.database().writer().await?;
            match append_one_on_postgres(&mut connection, &append).await {
                Ok(outcome) => outcome,
                Err(error) if is_duplicate_id(&error) => Outcome::Known,
                Err(error) => return Err(broken(error)),
            }
        } else {
            let mut tx = self.begin().await?;
            let outcome = append_on_sqlite(&mut tx, self, &[&append], true).await?[0];
            if matches!(outcome, Outcome::Appended(_)) {
                tx.commit().await.map_err(broken)?;
            } else {
                tx.rollback().await;
            }
            outcome
        };
        match outcome {
            Outcome::Appended(appended) => {
                self.signal().send();
                Ok(appended)
            }
            Outcome::Conflict(actual) => Err(wrong_version(&append, actual)),
            Outcome::Known => {
                let mut connection = self.database().reader().await?;
                known_append(&mut connection, &append).await
            }
        }
    }

    /// Appends to several streams inside a transaction, as its last statement: once, and then commit.
    ///
    /// Answers in the order of the appends; one that is a repetition answers what it did the first time and
    /// keeps no other from being written. On an error nothing can be committed: roll the transaction back.
    /// Events with a derived id that the log already has are left out: the first stored one wins.
    pub async fn append_all(&self, tx: &mut Tx, appends: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        refused_here()?;
        check(&appends)?;
        tx.usable()?;
        if appends.iter().all(|append| append.events.is_empty()) {
            return Ok(vec![Appended { position: None, version: None, replayed: false }; appends.len()]);
        }
        if !tx.note_append() {
            return Err(AppendError::SecondAppend);
        }
        // Some of the appends may have been written when another one is refused.
        let result = self.append_sorted(tx, appends).await;
        tx.remember(result)
    }

    async fn append_sorted(
        &self,
        tx: &mut Tx,
        mut appends: Vec<Append>,
    ) -> Result<Vec<Appended>, AppendError> {
        let already = leave_out_stored_derived(tx, &mut appends).await?;
        let mut order: Vec<usize> = (0..appends.len()).filter(|i| !appends[*i].events.is_empty()).collect();
        order.sort_by(|a, b| {
            appends[*a].stream.as_str().as_bytes().cmp(appends[*b].stream.as_str().as_bytes())
        });
        let sorted: Vec<&Append> = order.iter().map(|i| &appends[*i]).collect();
        let outcomes = match tx.kind() {
            _ if sorted.is_empty() => Vec::new(),
            DatabaseKind::Postgres => append_on_postgres(tx.connection(), &sorted).await?,
            DatabaseKind::Sqlite => append_on_sqlite(tx, self, &sorted, false).await?,
        };
        let mut results = already;
        for (index, outcome) in order.into_iter().zip(outcomes) {
            results[index] = match outcome {
                Outcome::Appended(appended) => appended,
                Outcome::Conflict(actual) => return Err(wrong_version(&appends[index], actual)),
                Outcome::Known => known_append(tx.connection(), &appends[index]).await?,
            };
        }
        Ok(results)
    }
}

fn check(appends: &[Append]) -> Result<(), AppendError> {
    let (mut streams, mut ids) = (HashSet::new(), HashSet::new());
    for append in appends {
        let invalid = |source| AppendError::Invalid { stream: append.stream.clone(), source };
        if append.stream.is_reserved() {
            return Err(invalid(InvalidEvent::ReservedStream(append.stream.clone())));
        }
        if append.events.len() > MAX_APPEND_EVENTS {
            return Err(invalid(InvalidEvent::TooManyEvents(append.events.len())));
        }
        append.events.iter().try_for_each(NewEvent::check).map_err(invalid)?;
        if let Some(twice) = append.events.iter().find(|event| !ids.insert(event.id)) {
            return Err(invalid(InvalidEvent::IdTwice(twice.id)));
        }
        if !streams.insert(&append.stream) {
            return Err(AppendError::StreamTwice(append.stream.clone()));
        }
    }
    Ok(())
}

fn wrong_version(append: &Append, actual: Option<Version>) -> AppendError {
    AppendError::WrongVersion { stream: append.stream.clone(), expected: append.expected, actual }
}

/// Tells a refusal from a broken connection, after which nobody knows.
fn broken(error: sqlx::Error) -> AppendError {
    // With such an error the server ends the session, be it before or after the commit.
    let ends_the_session = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic));
    match error {
        _ if ends_the_session => AppendError::OutcomeUnknown(error),
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed | sqlx::Error::Tls(_) => {
            AppendError::OutcomeUnknown(error)
        }
        _ => AppendError::Database(error),
    }
}

/// An event id is in the log already. Only the unique index sees that when two calls bring one id at the same
/// time, and it is the cheapest way to see it for an append that is alone in its transaction.
pub(crate) fn is_duplicate_id(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        let index = error.constraint().unwrap_or(error.message());
        error.is_unique_violation()
            && (index == "herald_events_id_key" || index.ends_with("herald_events.id"))
    })
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
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
async fn append_one_on_postgres(connection: &mut Connection, append: &Append) -> sqlx::Result<Outcome> {
    const APPEND: &str = "SELECT outcome, stream_version, last_position
         FROM herald_append_one($1, $2, $3, $4, $5, $6, $7, $8)";
    let Connection::Postgres(connection) = connection else { return Err(sqlx::Error::RowNotFound) };
    let events = || append.events.iter();
    let row: OutcomeRow = sqlx::query_as(APPEND)
        .bind(append.stream.as_str())
        .bind(expected_number(append.expected))
        .bind(events().map(|event| event.id).collect::<Vec<_>>())
        .bind(events().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.payload.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.metadata.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.correlation_id.as_deref()).collect::<Vec<_>>())
        .bind(events().map(|event| event.causation_id).collect::<Vec<_>>())
        .fetch_one(&mut **connection)
        .await?;
    Ok(outcome(row))
}

/// Several appends inside a transaction: a conflict keeps all of them from being written.
async fn append_on_postgres(connection: &mut Connection, appends: &[&Append]) -> sqlx::Result<Vec<Outcome>> {
    const APPEND: &str = "SELECT outcome, stream_version, last_position
         FROM herald_append($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let Connection::Postgres(connection) = connection else { return Ok(Vec::new()) };
    let events = || appends.iter().flat_map(|append| &append.events);
    let rows: Vec<OutcomeRow> = sqlx::query_as(APPEND)
        .bind(appends.iter().map(|append| append.stream.as_str()).collect::<Vec<_>>())
        .bind(appends.iter().map(|append| expected_number(append.expected)).collect::<Vec<_>>())
        .bind(
            appends.iter().map(|append| i32::try_from(append.events.len()).unwrap_or(0)).collect::<Vec<_>>(),
        )
        .bind(events().map(|event| event.id).collect::<Vec<_>>())
        .bind(events().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.payload.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.metadata.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.correlation_id.as_deref()).collect::<Vec<_>>())
        .bind(events().map(|event| event.causation_id).collect::<Vec<_>>())
        .fetch_all(&mut **connection)
        .await?;
    Ok(rows.into_iter().map(outcome).collect())
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
async fn append_on_sqlite(
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
    now: crate::Timestamp,
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

/// An event of the log as the check for repeated appends sees it.
#[derive(sqlx::FromRow)]
struct StoredId {
    id: Uuid,
    stream: String,
    version: Version,
    position: Position,
    append_index: i32,
    append_size: i32,
}

/// Which of these ids the log has.
async fn stored_ids(connection: &mut Connection, ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, StoredId>> {
    const COLUMNS: &str =
        "SELECT id, stream, version, position, append_index, append_size FROM herald_events";
    let rows: Vec<StoredId> = match connection {
        // Lists are bound differently: an array here, a placeholder for each there.
        Connection::Postgres(connection) => {
            let sql =
                Sql::built(format!("{COLUMNS} WHERE id = ANY ($1)")).for_database(DatabaseKind::Postgres);
            sqlx::query_as(sql).bind(ids).fetch_all(&mut **connection).await?
        }
        Connection::Sqlite(connection) => {
            let marks = vec!["?"; ids.len()].join(", ");
            let sql =
                Sql::built(format!("{COLUMNS} WHERE id IN ({marks})")).for_database(DatabaseKind::Sqlite);
            let query = sqlx::query_as(sql).persistent(ids.len() == 1);
            ids.iter().fold(query, sqlx::query::QueryAs::bind).fetch_all(&mut **connection).await?
        }
    };
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

/// Decides what an append is of which some ids are in the log: a repetition, or a misuse (S-05).
async fn known_append(connection: &mut Connection, append: &Append) -> Result<Appended, AppendError> {
    let ids: Vec<Uuid> = append.events.iter().map(|event| event.id).collect();
    let stored = stored_ids(connection, &ids).await?;
    let reused = |row: &StoredId| {
        let stream = StreamName::new(row.stream.clone()).unwrap_or_else(|_| append.stream.clone());
        AppendError::IdReused { id: row.id, stream, position: row.position }
    };
    let first_known = append.events.iter().find_map(|event| stored.get(&event.id));
    let Some(first_known) = first_known else {
        // The transaction that held the id is gone again; the caller may simply repeat the call.
        return Err(AppendError::Database(sqlx::Error::RowNotFound));
    };
    for (index, event) in append.events.iter().enumerate() {
        let same_append = stored.get(&event.id).is_some_and(|row| {
            row.stream == append.stream.as_str()
                && usize::try_from(row.append_index) == Ok(index)
                && usize::try_from(row.append_size) == Ok(append.events.len())
                && row.version.0 - i64::from(row.append_index)
                    == first_known.version.0 - i64::from(first_known.append_index)
        });
        if !same_append || (!event.id_is_derived && !same_content(connection, event).await?) {
            return Err(reused(stored.get(&event.id).unwrap_or(first_known)));
        }
    }
    let last = append.events.last().and_then(|event| stored.get(&event.id)).unwrap_or(first_known);
    Ok(Appended { position: Some(last.position), version: Some(last.version), replayed: true })
}

async fn same_content(connection: &mut Connection, event: &NewEvent) -> sqlx::Result<bool> {
    let sql = Sql::from("SELECT type, payload FROM herald_events WHERE id = $1");
    let row: Option<(String, String)> = connection.fetch_optional(sql, (event.id,)).await?;
    Ok(row.is_some_and(|(event_type, payload)| {
        event_type == event.event_type && Json::stored(payload) == event.payload
    }))
}

/// Takes out of the appends every event whose derived id the log already has in that stream, and answers
/// for each append what had been stored of it.
async fn leave_out_stored_derived(tx: &mut Tx, appends: &mut [Append]) -> Result<Vec<Appended>, AppendError> {
    let mut results = vec![Appended { position: None, version: None, replayed: false }; appends.len()];
    let derived: Vec<Uuid> = appends
        .iter()
        .flat_map(|append| &append.events)
        .filter(|event| event.id_is_derived)
        .map(|event| event.id)
        .collect();
    if derived.is_empty() {
        return Ok(results);
    }
    let stored = stored_ids(tx.connection(), &derived).await?;
    for (append, result) in appends.iter_mut().zip(&mut results) {
        append.events.retain(|event| {
            let Some(row) = stored.get(&event.id) else { return true };
            let known = event.id_is_derived && row.stream == append.stream.as_str();
            if known {
                *result =
                    Appended { position: Some(row.position), version: Some(row.version), replayed: true };
            }
            !known
        });
    }
    Ok(results)
}
