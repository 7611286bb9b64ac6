//! Reading the log: pages, forwards and backwards, of everything, of one stream, of some types.
//!
//! The unfiltered feed proves each hole. Every other read first takes the safe head and then reads no
//! further than that; without the bound a filtered read could pass an event that is still being committed.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use crate::connection::Connection;
use crate::event::{Event, Position};
use crate::filter::Filter;
use crate::json::Json;
use crate::sql::Sql;
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::tx::Tx;
use crate::values::Record;

/// The largest page.
pub const MAX_PAGE_EVENTS: usize = 10_000;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first, from after a position.
    Forwards,
    /// Newest first, from before a position.
    Backwards,
}

/// A page of events.
#[derive(Clone, Debug)]
pub struct Page {
    /// The events, in the order asked for.
    pub events: Vec<Event>,
    /// Reading forwards: everything up to here has been looked at, so a reader may move here even if the
    /// last event that it wanted stands lower.
    pub scanned_to: Position,
}

/// Why events could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A row of the log cannot be what the program wrote.
    #[error("the event at position {position} cannot be read")]
    BadRow {
        /// Its position.
        position: Position,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection leads to a read-only copy, which does not show who is appending.
    #[error("this is a standby server, which cannot tell what is safe to read; connect to the primary")]
    Standby,
    /// The database refused.
    #[error("could not read the log")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// The next events after a position, oldest first, at most `limit` (and [`MAX_PAGE_EVENTS`]).
    ///
    /// A page may be shorter than its limit although more events follow, where somebody is just appending;
    /// an empty one means that there is nothing to read for now. No event is ever skipped: what a page leaves behind it can never get an event later.
    pub async fn read(&self, filter: &Filter, after: Position, limit: usize) -> Result<Page, ReadError> {
        let limit = page_limit(limit);
        if filter.is_all() {
            let events = self.read_contiguous(after, limit).await?;
            let scanned_to = events.last().map_or(after, |event| event.position);
            return Ok(Page { events, scanned_to });
        }
        // The head is taken before the snapshot of the read, never in the same statement.
        let head = self.head().await?.position;
        if head <= after {
            return Ok(Page { events: Vec::new(), scanned_to: after });
        }
        let events = select(self, filter, after, Some(head), limit).await?;
        let is_full = i64::try_from(events.len()) == Ok(limit);
        let scanned_to = if is_full { events.last().map_or(after, |event| event.position) } else { head };
        Ok(Page { events, scanned_to })
    }

    /// The events before a position (or from the end), newest first, at most `limit`.
    pub async fn read_backwards(
        &self,
        filter: &Filter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Event>, ReadError> {
        let head = self.head().await?.position;
        let up_to = before.map_or(head, |before| head.min(Position(before.0 - 1)));
        let statement = Statement::new(filter, Position::START, Some(up_to), page_limit(limit))
            .in_direction(Direction::Backwards);
        statement.fetch(&mut self.database().reader().await?).await
    }

    /// Where the event with this id stands, if the log has it.
    pub async fn find(&self, id: Uuid) -> Result<Option<Position>, ReadError> {
        let sql = "SELECT position FROM herald_events WHERE id = $1";
        let row: Option<(Position,)> = self.database().fetch_optional(sql, (id,)).await?;
        Ok(row.map(|row| row.0))
    }

    /// How many events there are up to a position, which must not be beyond the head.
    pub async fn count(&self, filter: &Filter, up_to: Position) -> Result<u64, ReadError> {
        let statement = Statement::new(filter, Position::START, Some(up_to), i64::MAX);
        statement.count(&mut self.database().reader().await?).await
    }

    /// The events of one stream from a version on, oldest first, at most `limit`.
    ///
    /// A stream has no holes, so this needs no head: it shows what is committed. Use it to rebuild state.
    pub async fn read_stream(
        &self,
        stream: &StreamName,
        from_version: i64,
        limit: usize,
    ) -> Result<Vec<Event>, ReadError> {
        read_stream(&mut self.database().reader().await?, stream, from_version, page_limit(limit)).await
    }

    /// As [`Store::read_stream`], inside a transaction.
    pub async fn read_stream_in(
        &self,
        tx: &mut Tx,
        stream: &StreamName,
        from_version: i64,
        limit: usize,
    ) -> Result<Vec<Event>, ReadError> {
        tx.usable()?;
        read_stream(tx.connection(), stream, from_version, page_limit(limit)).await
    }
}

fn page_limit(limit: usize) -> i64 {
    i64::try_from(limit.min(MAX_PAGE_EVENTS)).unwrap_or(i64::MAX)
}

/// The columns of an event in the order in which [`EventRow`] reads them.
const COLUMNS: &str = "position, stream, version, type, payload, metadata, id, correlation_id, causation_id, \
                       recorded_at";

async fn read_stream(
    connection: &mut Connection,
    stream: &StreamName,
    from_version: i64,
    limit: i64,
) -> Result<Vec<Event>, ReadError> {
    let sql = Sql::built(format!(
        "SELECT {COLUMNS} FROM herald_events WHERE stream = $1 AND version >= $2 ORDER BY version LIMIT $3"
    ));
    let rows: Vec<EventRow> = connection.fetch_all(sql, (stream.as_str(), from_version, limit)).await?;
    rows.into_iter().map(|row| row.0).collect()
}

/// Reads what is visible after a position and up to another one. No promise about holes: see the callers.
pub(crate) async fn select(
    store: &Store,
    filter: &Filter,
    after: Position,
    up_to: Option<Position>,
    limit: i64,
) -> Result<Vec<Event>, ReadError> {
    let statement = Statement::new(filter, after, up_to, limit);
    statement.fetch(&mut store.database().reader().await?).await
}

struct Statement<'a> {
    filter: &'a Filter,
    after: Position,
    up_to: Position,
    limit: i64,
    direction: Direction,
}

impl<'a> Statement<'a> {
    fn new(filter: &'a Filter, after: Position, up_to: Option<Position>, limit: i64) -> Self {
        let up_to = up_to.unwrap_or(Position(i64::MAX));
        Self { filter, after, up_to, limit, direction: Direction::Forwards }
    }

    fn in_direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    async fn fetch(&self, connection: &mut Connection) -> Result<Vec<Event>, ReadError> {
        let order = match self.direction {
            Direction::Forwards => "ORDER BY position",
            Direction::Backwards => "ORDER BY position DESC",
        };
        let rows: Vec<EventRow> = self.rows(connection, COLUMNS, order).await?;
        rows.into_iter().map(|row| row.0).collect()
    }

    async fn count(&self, connection: &mut Connection) -> Result<u64, ReadError> {
        let rows: Vec<(i64,)> = self.rows(connection, "COUNT(*)", "").await?;
        Ok(rows.first().and_then(|row| u64::try_from(row.0).ok()).unwrap_or(0))
    }

    /// Selects, with a place for each value: bounds and limit first, then stream, then types.
    async fn rows<T: Record>(
        &self,
        connection: &mut Connection,
        select: &str,
        order: &str,
    ) -> sqlx::Result<Vec<T>> {
        let types = self.filter.types.as_deref().unwrap_or_default();
        if self.filter.types.is_some() && types.is_empty() {
            return Ok(Vec::new());
        }
        let stream = self.filter.stream.as_ref().map(StreamName::as_str);
        let mut text = format!("SELECT {select} FROM herald_events WHERE position > $1 AND position <= $2");
        let first_type = if stream.is_some() { 5 } else { 4 };
        if stream.is_some() {
            text.push_str(" AND stream = $4");
        }
        if !types.is_empty() {
            let places: Vec<String> =
                (first_type..).take(types.len()).map(|place| format!("${place}")).collect();
            text.push_str(&format!(" AND type IN ({})", places.join(", ")));
        }
        text.push_str(&format!(" {order} LIMIT $3"));
        let sql = Sql::built(text).for_database(connection.kind());
        // The number of values is known at run time only, so they are bound one by one.
        let values = stream.into_iter().chain(types.iter().map(String::as_str));
        match connection {
            Connection::Sqlite(connection) => {
                let query = sqlx::query_as(sql).bind(self.after).bind(self.up_to).bind(self.limit);
                values.fold(query, sqlx::query::QueryAs::bind).fetch_all(&mut **connection).await
            }
            Connection::Postgres(connection) => {
                let query = sqlx::query_as(sql).bind(self.after).bind(self.up_to).bind(self.limit);
                values.fold(query, sqlx::query::QueryAs::bind).fetch_all(&mut **connection).await
            }
        }
    }
}

/// A row of the log, or why it is none.
struct EventRow(Result<Event, ReadError>);

macro_rules! event_row {
    ($row:ty) => {
        impl<'r> FromRow<'r, $row> for EventRow {
            fn from_row(row: &'r $row) -> sqlx::Result<Self> {
                let position = row.try_get(0)?;
                let event = || -> Result<Event, Box<dyn std::error::Error + Send + Sync>> {
                    Ok(Event {
                        position,
                        stream: StreamName::new(row.try_get::<String, _>(1)?)?,
                        version: row.try_get(2)?,
                        event_type: row.try_get(3)?,
                        payload: Json::stored(row.try_get(4)?),
                        metadata: Json::stored(row.try_get(5)?),
                        id: row.try_get(6)?,
                        correlation_id: row.try_get(7)?,
                        causation_id: row.try_get(8)?,
                        recorded_at: row.try_get(9)?,
                    })
                };
                Ok(Self(event().map_err(|source| ReadError::BadRow { position, source })))
            }
        }
    };
}

event_row!(SqliteRow);
event_row!(PgRow);
