//! A row of the log becomes an event, whichever driver brings it.
//!
//! Three drivers bring rows: sqlx for PostgreSQL, rusqlite for whole pages of SQLite, and sqlx for SQLite inside
//! a transaction. What a row means is said once. Rows are taken until the page has enough bytes; a row that
//! cannot be read ends the page, so that what stands before it is delivered first (S-25).

use std::ops::ControlFlow;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Encode, Row as _, Type};
use uuid::Uuid;

use super::ReadError;
use super::query::{Bound, Query};
use crate::connection::Connection;
use crate::database::Database;
use crate::event::{Event, Position, Version};
use crate::guard::BoxError;
use crate::json::Json;
use crate::sql::Sql;
use crate::stream_name::StreamName;
use crate::timestamp::Timestamp;

/// The columns of an event, in the order in which they are read here.
pub(super) const COLUMNS: [&str; 10] = [
    "position",
    "stream",
    "version",
    "type",
    "payload",
    "metadata",
    "id",
    "correlation_id",
    "causation_id",
    "recorded_at",
];

/// What a statement brought.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) events: Vec<Event>,
    /// Where the last row that was read stands, in the log and in its stream; see [`Rows::shown`].
    pub(super) last: Option<(Position, Version)>,
    /// Bytes of their payloads and metadata.
    pub(super) bytes: usize,
    /// Rows are left: the page was full, or a row could not be read.
    pub(super) is_cut: bool,
    /// The row behind the last event cannot be read.
    pub(super) bad: Option<ReadError>,
}

/// A row of one of the drivers.
pub(super) trait Row {
    fn integer(&self, column: usize) -> Result<i64, BoxError>;
    fn optional_integer(&self, column: usize) -> Result<Option<i64>, BoxError>;
    fn text(&self, column: usize) -> Result<&str, BoxError>;
    fn optional_text(&self, column: usize) -> Result<Option<&str>, BoxError>;
    fn uuid(&self, column: usize) -> Result<Uuid, BoxError>;
    fn optional_uuid(&self, column: usize) -> Result<Option<Uuid>, BoxError>;
    fn timestamp(&self, column: usize) -> Result<Timestamp, BoxError>;
}

/// Where a read runs: on whatever connection is free, or inside somebody's transaction.
#[derive(Debug)]
pub(super) enum Reader<'a> {
    Pool(&'a Database),
    Transaction(&'a mut Connection),
}

impl Reader<'_> {
    /// See [`fetch`].
    pub(super) async fn fetch(&mut self, query: Query, max_bytes: usize) -> Result<Rows, ReadError> {
        match self {
            Self::Pool(database) => fetch(database, query, max_bytes).await,
            Self::Transaction(connection) => fetch_in(connection, &query, max_bytes).await,
        }
    }

    /// See [`fetch_numbers`].
    pub(super) async fn fetch_numbers(&mut self, query: Query) -> sqlx::Result<(Option<i64>, i64)> {
        match self {
            Self::Pool(database) => fetch_numbers(database, query).await,
            Self::Transaction(connection) => {
                let sql = Sql::built(query.text.clone()).for_database(connection.kind());
                match connection {
                    Connection::Sqlite(connection) => {
                        let arguments: SqliteArguments = arguments(&query)?;
                        sqlx::query_as_with(sql, arguments).fetch_one(&mut **connection).await
                    }
                    Connection::Postgres(connection) => {
                        let arguments: PgArguments = arguments(&query)?;
                        sqlx::query_as_with(sql, arguments).fetch_one(&mut **connection).await
                    }
                }
            }
        }
    }
}

/// Runs the statement and takes rows until there are so many bytes, at least one event.
pub(super) async fn fetch(database: &Database, query: Query, max_bytes: usize) -> Result<Rows, ReadError> {
    match database {
        // One job brings the whole page: sqlx would hop between threads for each row.
        Database::Sqlite { threads, .. } => {
            Ok(threads.read(move |connection| fetch_native(connection, &query, max_bytes)).await?)
        }
        Database::Postgres { .. } => {
            let fetching = async { fetch_in(&mut database.reader().await?, &query, max_bytes).await };
            database.answer(fetching).await
        }
    }
}

/// As [`fetch`], on this connection, which may be in a transaction.
pub(super) async fn fetch_in(
    connection: &mut Connection,
    query: &Query,
    max_bytes: usize,
) -> Result<Rows, ReadError> {
    let mut rows = Rows::default();
    let sql = Sql::built(query.text.clone()).for_database(connection.kind());
    // A stream that is not read to its end leaves the rest to be thrown away by the driver.
    match connection {
        Connection::Sqlite(connection) => {
            let arguments: SqliteArguments = arguments(query)?;
            let mut stream = sqlx::query_with(sql, arguments).fetch(&mut **connection);
            while let Some(row) = stream.try_next().await? {
                if rows.take(&row, query.limit, max_bytes)?.is_break() {
                    break;
                }
            }
        }
        Connection::Postgres(connection) => {
            let arguments: PgArguments = arguments(query)?;
            let mut stream = sqlx::query_with(sql, arguments).fetch(&mut **connection);
            while let Some(row) = stream.try_next().await? {
                if rows.take(&row, query.limit, max_bytes)?.is_break() {
                    break;
                }
            }
        }
    }
    Ok(rows)
}

/// Runs a statement that answers one row of two numbers.
pub(crate) async fn fetch_numbers(database: &Database, query: Query) -> sqlx::Result<(Option<i64>, i64)> {
    match database {
        Database::Sqlite { threads, .. } => {
            let job = move |connection: &mut rusqlite::Connection| {
                let mut statement = connection.prepare_cached(&query.text)?;
                let values = rusqlite::params_from_iter(&query.values);
                statement.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))
            };
            threads.read(job).await
        }
        Database::Postgres { pool, .. } => {
            let arguments: PgArguments = arguments(&query)?;
            let sql = Sql::built(query.text).for_database(database.kind());
            database.answer(sqlx::query_as_with(sql, arguments).fetch_one(pool)).await
        }
    }
}

/// Runs a statement whose rows end with a text.
pub(super) async fn fetch_lines(database: &Database, query: Query) -> sqlx::Result<Vec<String>> {
    match database {
        Database::Sqlite { threads, .. } => {
            let job = move |connection: &mut rusqlite::Connection| {
                let mut statement = connection.prepare(&query.text)?;
                let last = statement.column_count() - 1;
                let values = rusqlite::params_from_iter(&query.values);
                statement.query_map(values, |row| row.get(last))?.collect()
            };
            threads.read(job).await
        }
        Database::Postgres { pool, .. } => {
            let arguments: PgArguments = arguments(&query)?;
            let sql = Sql::built(query.text).for_database(database.kind());
            database.answer(sqlx::query_scalar_with(sql, arguments).fetch_all(pool)).await
        }
    }
}

pub(super) fn arguments<'q, A>(query: &Query) -> sqlx::Result<A>
where
    A: Arguments + Default,
    i64: Encode<'q, A::Database> + Type<A::Database>,
    String: Encode<'q, A::Database> + Type<A::Database>,
{
    let mut arguments = A::default();
    for value in &query.values {
        match value {
            Bound::Integer(value) => arguments.add(*value),
            Bound::Text(value) => arguments.add(value.clone()),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn fetch_native(
    connection: &rusqlite::Connection,
    query: &Query,
    max_bytes: usize,
) -> rusqlite::Result<Rows> {
    let mut rows = Rows::default();
    rows.events.reserve(usize::try_from(query.limit).unwrap_or(0).min(super::PAGE_EVENTS));
    let mut statement = connection.prepare_cached(&query.text)?;
    let mut found = statement.query(rusqlite::params_from_iter(&query.values))?;
    while let Some(row) = found.next()? {
        let taken = rows.take(row, query.limit, max_bytes);
        if taken.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?.is_break() {
            break;
        }
    }
    Ok(rows)
}

impl Rows {
    /// Takes one row; breaks when the next one is not wanted any more.
    fn take<R: Row>(
        &mut self,
        row: &R,
        limit: i64,
        max_bytes: usize,
    ) -> Result<ControlFlow<()>, sqlx::Error> {
        let position = Position(row.integer(0).map_err(sqlx::Error::Decode)?);
        match event(row, position) {
            Ok(event) => {
                self.bytes += event.payload.as_str().len() + event.metadata.as_str().len();
                self.events.push(event);
                self.is_cut = self.bytes >= max_bytes || i64::try_from(self.events.len()) == Ok(limit);
            }
            Err(source) => {
                self.bad = Some(ReadError::BadRow { position, source });
                self.is_cut = true;
            }
        }
        Ok(if self.is_cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

pub(super) fn event<R: Row>(row: &R, position: Position) -> Result<Event, BoxError> {
    Ok(Event {
        position,
        stream: StreamName::new(row.text(1)?)?,
        version: Version(row.integer(2)?),
        event_type: row.text(3)?.to_owned(),
        payload: Json::from_row(row.text(4)?)?,
        metadata: Json::from_row(row.text(5)?)?,
        id: row.uuid(6)?,
        part_of: None,
        correlation_id: row.optional_text(7)?.map(str::to_owned),
        causation_id: row.optional_uuid(8)?,
        recorded_at: row.timestamp(9)?,
    })
}

macro_rules! sqlx_row {
    ($row:ty) => {
        impl Row for $row {
            fn integer(&self, column: usize) -> Result<i64, BoxError> {
                Ok(self.try_get(column)?)
            }

            fn optional_integer(&self, column: usize) -> Result<Option<i64>, BoxError> {
                Ok(self.try_get(column)?)
            }

            fn text(&self, column: usize) -> Result<&str, BoxError> {
                Ok(self.try_get(column)?)
            }

            fn optional_text(&self, column: usize) -> Result<Option<&str>, BoxError> {
                Ok(self.try_get(column)?)
            }

            fn uuid(&self, column: usize) -> Result<Uuid, BoxError> {
                Ok(self.try_get(column)?)
            }

            fn optional_uuid(&self, column: usize) -> Result<Option<Uuid>, BoxError> {
                Ok(self.try_get(column)?)
            }

            fn timestamp(&self, column: usize) -> Result<Timestamp, BoxError> {
                Ok(self.try_get(column)?)
            }
        }
    };
}

sqlx_row!(PgRow);
sqlx_row!(SqliteRow);

impl Row for rusqlite::Row<'_> {
    fn integer(&self, column: usize) -> Result<i64, BoxError> {
        Ok(self.get_ref(column)?.as_i64()?)
    }

    fn optional_integer(&self, column: usize) -> Result<Option<i64>, BoxError> {
        Ok(self.get_ref(column)?.as_i64_or_null()?)
    }

    fn text(&self, column: usize) -> Result<&str, BoxError> {
        Ok(self.get_ref(column)?.as_str()?)
    }

    fn optional_text(&self, column: usize) -> Result<Option<&str>, BoxError> {
        Ok(self.get_ref(column)?.as_str_or_null()?)
    }

    fn uuid(&self, column: usize) -> Result<Uuid, BoxError> {
        Ok(Uuid::from_slice(self.get_ref(column)?.as_blob()?)?)
    }

    fn optional_uuid(&self, column: usize) -> Result<Option<Uuid>, BoxError> {
        Ok(self.get_ref(column)?.as_blob_or_null()?.map(Uuid::from_slice).transpose()?)
    }

    fn timestamp(&self, column: usize) -> Result<Timestamp, BoxError> {
        Timestamp::from_column(self.get_ref(column)?.as_str()?)
    }
}
