//! Appends of which the log knows some event ids already: repetitions, and misuse (S-05).

use std::collections::HashMap;

use uuid::Uuid;

use super::{Append, AppendError, Appended};
use crate::connection::Connection;
use crate::database::DatabaseKind;
use crate::event::{NewEvent, Position, Version};
use crate::json::Json;
use crate::sql::Sql;
use crate::stream_name::StreamName;
use crate::tx::Tx;

/// An event of the log as the check for repeated appends sees it.
#[derive(sqlx::FromRow)]
pub(super) struct StoredId {
    id: Uuid,
    stream: String,
    version: Version,
    position: Position,
    append_index: i32,
    append_size: i32,
}

/// Which of these ids the log has.
pub(super) async fn stored_ids(
    connection: &mut Connection,
    ids: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, StoredId>> {
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
pub(super) async fn known_append(
    connection: &mut Connection,
    append: &Append,
) -> Result<Appended, AppendError> {
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
pub(super) async fn leave_out_stored_derived(
    tx: &mut Tx,
    appends: &mut [Append],
) -> Result<Vec<Appended>, AppendError> {
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
