//! Events as they are stored, with what stands beside them: for verifying. One that cannot be read is handed out as
//! such, and does not end the page.

use futures_util::TryStreamExt;
use sqlx::postgres::PgArguments;

use super::query::{Bound, Query};
use super::row::{COLUMNS, Row, arguments, event};
use super::{MAX_PAGE_BYTES, ReadError};
use crate::database::{Database, DatabaseKind};
use crate::event::{Event, Position, Version};
use crate::sql::Sql;
use crate::store::Store;

/// An event and what stands beside it.
pub(crate) struct Inspected {
    pub(crate) position: Position,
    pub(crate) event: Result<Event, Box<dyn std::error::Error + Send + Sync>>,
    /// The position of the version before it in its stream.
    pub(crate) previous: Option<Position>,
    /// The versions beside it are of the same append, where its place in it says so.
    pub(crate) append_is_whole: bool,
    /// What the table of streams says of its stream.
    pub(crate) stream_version: Option<Version>,
}

/// The events after a position and up to another one, which the caller knows to be safe; at most so many, and no more
/// than fit a page.
pub(crate) async fn inspect(
    store: &Store,
    after: Position,
    up_to: Position,
    limit: i64,
) -> Result<Vec<Inspected>, ReadError> {
    let database = store.database();
    let query = query(database.kind(), after, up_to, store.rows_at_once_of(limit));
    let mut page = Page::default();
    match database {
        Database::Sqlite { threads, .. } => {
            let job = move |connection: &mut rusqlite::Connection| {
                let mut statement = connection.prepare_cached(&query.text)?;
                let mut rows = statement.query(rusqlite::params_from_iter(&query.values))?;
                while let Some(row) = rows.next()?
                    && page.bytes < MAX_PAGE_BYTES
                {
                    let taken = page.take(row);
                    taken.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                }
                Ok(page)
            };
            page = threads.read(job).await?;
        }
        Database::Postgres { pool, .. } => {
            let values: PgArguments = arguments(&query)?;
            let sql = Sql::built(query.text).for_database(DatabaseKind::Postgres);
            let mut rows = sqlx::query_with(sql, values).fetch(pool);
            while let Some(row) = rows.try_next().await?
                && page.bytes < MAX_PAGE_BYTES
            {
                page.take(&row)?;
            }
        }
    }
    Ok(page.rows)
}

#[derive(Default)]
struct Page {
    rows: Vec<Inspected>,
    bytes: usize,
}

impl Page {
    fn take<R: Row>(&mut self, row: &R) -> Result<(), sqlx::Error> {
        let integer = |column| row.integer(column).map_err(sqlx::Error::Decode);
        let optional = |column| row.optional_integer(column).map_err(sqlx::Error::Decode);
        let first = COLUMNS.len();
        let position = Position(integer(0)?);
        let event = event(row, position);
        if let Ok(event) = &event {
            self.bytes += event.payload.as_str().len() + event.metadata.as_str().len();
        }
        self.rows.push(Inspected {
            position,
            event,
            previous: optional(first)?.map(Position),
            append_is_whole: integer(first + 1)? > 0 && integer(first + 2)? > 0,
            stream_version: optional(first + 3)?.map(Version),
        });
        Ok(())
    }
}

/// Each neighbour is found by one look into an index.
fn query(kind: DatabaseKind, after: Position, up_to: Position, limit: i64) -> Query {
    let place = |number: usize| match kind {
        DatabaseKind::Postgres => format!("${number}"),
        DatabaseKind::Sqlite => format!("?{number}"),
    };
    let columns = COLUMNS.map(|column| format!("e.{column}")).join(", ");
    let text = format!(
        "SELECT {columns},
                (SELECT p.position FROM herald_events p
                  WHERE p.stream = e.stream AND p.version = e.version - 1),
                CASE WHEN e.append_index = 0 THEN 1
                     ELSE (SELECT COUNT(*) FROM herald_events p
                            WHERE p.stream = e.stream AND p.version = e.version - 1
                              AND p.append_index = e.append_index - 1 AND p.append_size = e.append_size) END,
                CASE WHEN e.append_index = e.append_size - 1 THEN 1
                     ELSE (SELECT COUNT(*) FROM herald_events n
                            WHERE n.stream = e.stream AND n.version = e.version + 1
                              AND n.append_index = e.append_index + 1 AND n.append_size = e.append_size) END,
                (SELECT s.version FROM herald_streams s WHERE s.stream = e.stream)
           FROM herald_events e
          WHERE e.position > {} AND e.position <= {}
          ORDER BY e.position
          LIMIT {}",
        place(1),
        place(2),
        place(3)
    );
    Query {
        text,
        values: vec![Bound::Integer(after.0), Bound::Integer(up_to.0), Bound::Integer(limit)],
        limit,
    }
}
