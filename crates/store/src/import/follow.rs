//! Whether a chunk follows what the log has, stream by stream: asked and done in the statements that move the streams.

use std::collections::HashMap;

use super::ImportError;
use super::check::{Place, does_not_follow};
use super::lines::Numbered;
use crate::export_format::StoredEvent;
use crate::tx::Tx;

/// A stream in a chunk: the first of its events there, and the version of the last.
struct Moved<'a> {
    first: &'a Numbered<StoredEvent>,
    to: i64,
}

/// Moves each stream to its last version in the chunk, if its first event there is the next one.
pub(super) async fn move_streams(tx: &mut Tx, events: &[Numbered<StoredEvent>]) -> Result<(), ImportError> {
    let mut order: Vec<&str> = Vec::new();
    let mut streams: HashMap<&str, Moved<'_>> = HashMap::new();
    for event in events {
        let stream = event.item.stream.as_str();
        let moved = streams.entry(stream).or_insert_with(|| {
            order.push(stream);
            Moved { first: event, to: event.item.version }
        });
        moved.to = event.item.version;
    }
    let (mut new, mut known) = (Vec::new(), Vec::new());
    for stream in &order {
        let Moved { first, to } = &streams[stream];
        let place = Place::of(&first.item);
        if place.version == 0 {
            if let Some(why) = place.why_not_after(None) {
                return Err(does_not_follow(first.line, &first.item, why));
            }
            new.push((*stream, *to));
        } else {
            known.push((*stream, *to, place.version, place.append_index, place.append_size));
        }
    }
    let expected = streams.len() as u64;
    let mut moved = 0;
    if !new.is_empty() {
        let sql =
            "INSERT INTO herald_streams (stream, version) VALUES {rows} ON CONFLICT (stream) DO NOTHING";
        moved += tx.execute_many(sql, new).await?;
    }
    if !known.is_empty() {
        let sql = "WITH moved (stream, last, first, append_index, append_size) AS (VALUES {rows})
                   UPDATE herald_streams SET version = moved.last
                     FROM moved JOIN herald_events AS e ON e.stream = moved.stream AND e.version = moved.first - 1
                    WHERE herald_streams.stream = moved.stream AND herald_streams.version = moved.first - 1
                      AND ((moved.append_index = 0 AND e.append_index + 1 = e.append_size)
                           OR (moved.append_index = e.append_index + 1 AND moved.append_size = e.append_size))";
        moved += tx.execute_many(sql, known).await?;
    }
    if moved == expected { Ok(()) } else { Err(first_that_does_not_follow(tx, &order, &streams).await?) }
}

/// Of the streams that were to be moved, the first one that was not, and why.
async fn first_that_does_not_follow(
    tx: &mut Tx,
    order: &[&str],
    streams: &HashMap<&str, Moved<'_>>,
) -> sqlx::Result<ImportError> {
    for stream in order {
        let Moved { first, .. } = &streams[stream];
        let sql = "SELECT version, append_index, append_size FROM herald_events
                    WHERE stream = $1 ORDER BY stream DESC, version DESC LIMIT 1";
        let last: Option<(i64, i32, i32)> = tx.fetch_optional(sql, (*stream,)).await?;
        let last =
            last.map(|(version, append_index, append_size)| Place { version, append_index, append_size });
        if let Some(why) = Place::of(&first.item).why_not_after(last) {
            return Ok(does_not_follow(first.line, &first.item, why));
        }
    }
    Err(sqlx::Error::Protocol(
        "the stream table does not agree with the events; see `herald store verify`".to_owned(),
    ))
}
