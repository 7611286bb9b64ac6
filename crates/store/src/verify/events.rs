//! The events, one after the other, each with its neighbours in its stream; and the table of streams beside them.

use super::{Finding, Report, Told};
use crate::event::{Event, NewEvent, Position, Version};
use crate::fault::messages;
use crate::json::Json;
use crate::read::{Inspected, ReadError, inspect};

/// Events looked at by one statement.
const PAGE: i64 = 1_000;
/// Streams looked at by one statement.
const STREAMS: i64 = 1_000;
/// So many of the newest positions are looked at if it is to be quick.
const QUICK: i64 = 10_000;

impl<T: FnMut(Told) + Send> Report<'_, T> {
    pub(super) async fn events(&mut self) -> Result<(), ReadError> {
        let head = self.sum.head;
        let newest = if self.what.quick { head.0.saturating_sub(QUICK) } else { 0 };
        let mut after = Position(self.what.from.0.saturating_sub(1).max(newest).max(0));
        loop {
            let rows = inspect(self.store, after, head, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.position;
            for row in rows {
                self.sum.events += 1;
                self.event(row).await?;
            }
            (self.tell)(Told::Progress { position: after, head });
        }
    }

    async fn event(&mut self, row: Inspected) -> Result<(), ReadError> {
        let position = row.position;
        let event = match row.event {
            Ok(event) => event,
            Err(error) => {
                let why = messages(&*error).join(": ");
                self.found(Finding::Unreadable { position, why }).await;
                return Ok(());
            }
        };
        let (stream, version) = (event.stream.to_string(), event.version);
        match row.previous {
            None if version > Version(0) => {
                self.found(Finding::Gap { stream: stream.clone(), version, position }).await;
            }
            Some(previous) if previous >= position => {
                let stream = stream.clone();
                self.found(Finding::OutOfOrder { stream, version, position, previous }).await;
            }
            _ => {}
        }
        if !row.append_is_whole {
            self.found(Finding::TornAppend { stream: stream.clone(), version, position }).await;
        }
        // A stream that has a row is looked at with the table of streams.
        let is_behind = row.stream_version.is_none_or(|recorded| self.what.quick && recorded < version);
        if is_behind {
            self.stream_of(stream, version).await?;
        }
        if let Some(why) = why_invalid(event) {
            self.found(Finding::Invalid { position, why }).await;
        }
        Ok(())
    }

    /// Tells once, at its last event, that a stream has no row or a lagging one.
    async fn stream_of(&mut self, stream: String, version: Version) -> Result<(), ReadError> {
        let sql = "SELECT (SELECT version FROM herald_streams WHERE stream = $1),
                          (SELECT MAX(version) FROM herald_events WHERE stream = $1)";
        let row: Option<(Option<Version>, Option<Version>)> =
            self.store.database().fetch_optional(sql, (stream.as_str(),)).await?;
        if let Some((recorded, actual)) = row
            && recorded != actual
            && actual == Some(version)
        {
            self.found(Finding::Stream { stream, recorded, actual }).await;
        }
        Ok(())
    }

    /// The table of streams: each row and its last event are of one snapshot, and were written by one transaction.
    pub(super) async fn streams(&mut self) -> Result<(), ReadError> {
        let sql = "SELECT s.stream, s.version,
                          (SELECT MAX(e.version) FROM herald_events e WHERE e.stream = s.stream)
                     FROM herald_streams s
                    WHERE s.stream > $1
                    ORDER BY s.stream
                    LIMIT $2";
        let mut after = String::new();
        loop {
            let rows: Vec<(String, Version, Option<Version>)> =
                self.store.database().fetch_all(sql, (after.as_str(), STREAMS)).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after.clone_from(&last.0);
            for (stream, recorded, actual) in rows {
                self.sum.streams += 1;
                if actual != Some(recorded) {
                    self.found(Finding::Stream { stream, recorded: Some(recorded), actual }).await;
                }
            }
        }
    }
}

/// What keeps an event from being one that an append would have taken.
fn why_invalid(event: Event) -> Option<String> {
    if event.recorded_at.to_column().is_err() {
        return Some("its time is outside of all calendars".to_owned());
    }
    for (what, json) in [("payload", &event.payload), ("metadata", &event.metadata)] {
        if let Err(error) = Json::parse(json.as_str()) {
            return Some(format!("its {what} is {}", messages(&error).join(": ")));
        }
    }
    let Event { event_type, payload, metadata, correlation_id, .. } = event;
    let as_new = NewEvent { metadata, correlation_id, ..NewEvent::new(event_type, payload) };
    as_new.check().err().map(|error| messages(&error).join(": "))
}
