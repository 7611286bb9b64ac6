//! One row of the log as it is stored, whatever is in it: for people who want to know why it cannot be read.
//!
//! Each column is looked at by itself, by the rules of reading an event. One that breaks them hides no other.

use sqlx::postgres::PgArguments;

use super::ReadError;
use super::query::{Bound, Query};
use super::row::{COLUMNS, Row, arguments};
use crate::database::{Database, DatabaseKind};
use crate::event::Position;
use crate::fault::messages;
use crate::guard::BoxError;
use crate::json::Json;
use crate::sql::Sql;
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::timestamp::Timestamp;

/// A row of the log, column by column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// Its position.
    pub position: Position,
    /// The columns of an event, in the order in which the table has them.
    pub columns: Vec<RawColumn>,
    /// When it was recorded, if that can be read.
    pub recorded_at: Option<Timestamp>,
}

/// A column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawColumn {
    /// Its name.
    pub name: &'static str,
    /// What is stored, as text; bytes that are no text in the form `x'00ff'`; none for NULL.
    pub value: Option<String>,
    /// Why it cannot be what an append wrote, if it cannot.
    pub fault: Option<String>,
}

impl RawEvent {
    /// What a column holds, if it can be what an append wrote.
    pub fn valid(&self, name: &str) -> Option<&str> {
        let column = self.columns.iter().find(|column| column.name == name)?;
        column.value.as_deref().filter(|_| column.fault.is_none())
    }

    /// Everything that is wrong with it, in one sentence; empty if nothing is.
    pub fn faults(&self) -> String {
        let faults = self
            .columns
            .iter()
            .filter_map(|column| column.fault.as_ref().map(|fault| format!("{}: {fault}", column.name)));
        faults.collect::<Vec<_>>().join("; ")
    }
}

impl Store {
    /// The row at a position as it is stored; none if there is none.
    pub async fn raw_event(&self, position: Position) -> Result<Option<RawEvent>, ReadError> {
        let database = self.database();
        let query = query(database.kind(), position);
        match database {
            Database::Sqlite { threads, .. } => {
                let job = move |connection: &mut rusqlite::Connection| {
                    let mut statement = connection.prepare(&query.text)?;
                    let mut rows = statement.query(rusqlite::params_from_iter(&query.values))?;
                    Ok(rows.next()?.map(|row| raw(row, position)))
                };
                Ok(threads.read(job).await?)
            }
            Database::Postgres { pool, .. } => {
                let values: PgArguments = arguments(&query)?;
                let sql = Sql::built(query.text).for_database(DatabaseKind::Postgres);
                let row = sqlx::query_with(sql, values).fetch_optional(pool).await?;
                Ok(row.map(|row| raw(&row, position)))
            }
        }
    }
}

/// Each column as it is read, as text, and as bytes, which SQLite may have in the place of text.
fn query(kind: DatabaseKind, position: Position) -> Query {
    let text = |column: &str| match kind {
        DatabaseKind::Postgres => format!("{column}::text"),
        DatabaseKind::Sqlite => {
            format!("CASE typeof({column}) WHEN 'blob' THEN NULL ELSE CAST({column} AS TEXT) END")
        }
    };
    let bytes = |column: &str| match kind {
        DatabaseKind::Postgres => "NULL::text".to_owned(),
        DatabaseKind::Sqlite => {
            format!("CASE WHEN {column} IS NOT NULL THEN 'x''' || lower(hex({column})) || '''' END")
        }
    };
    let place = match kind {
        DatabaseKind::Postgres => "$1",
        DatabaseKind::Sqlite => "?1",
    };
    let columns = COLUMNS.map(str::to_owned).join(", ");
    let texts = COLUMNS.map(text).join(", ");
    let bytes = COLUMNS.map(bytes).join(", ");
    Query {
        text: format!("SELECT {columns}, {texts}, {bytes} FROM herald_events WHERE position = {place}"),
        values: vec![Bound::Integer(position.0)],
        limit: 1,
    }
}

fn raw<R: Row>(row: &R, position: Position) -> RawEvent {
    let number = COLUMNS.len();
    let columns = COLUMNS.iter().enumerate().map(|(index, name)| {
        let (canonical, fault) = match read(row, index, name) {
            Ok(canonical) => (canonical, None),
            Err(error) => (None, Some(messages(&*error).join(": "))),
        };
        let text = |column| row.optional_text(column).ok().flatten().map(str::to_owned);
        let value = canonical.or_else(|| text(number + index)).or_else(|| text(number * 2 + index));
        RawColumn { name, value, fault }
    });
    RawEvent { position, columns: columns.collect(), recorded_at: row.timestamp(9).ok() }
}

/// Reads a column as [`super::row::event`] does; answers with its text where the database keeps something else.
fn read<R: Row>(row: &R, column: usize, name: &str) -> Result<Option<String>, BoxError> {
    Ok(match name {
        "position" | "version" => Some(row.integer(column)?.to_string()),
        "stream" => Some(StreamName::new(row.text(column)?)?.to_string()),
        "payload" | "metadata" => {
            Json::from_row(row.text(column)?)?;
            None
        }
        "id" => Some(row.uuid(column)?.to_string()),
        "causation_id" => row.optional_uuid(column)?.map(|id| id.to_string()),
        "correlation_id" => row.optional_text(column)?.map(str::to_owned),
        "recorded_at" => Some(row.timestamp(column)?.to_string()),
        _ => Some(row.text(column)?.to_owned()),
    })
}
