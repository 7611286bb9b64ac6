//! What an imported event has to fulfil by itself and among its neighbours: the limits of an append, and no hole.

use std::collections::HashMap;

use super::ImportError;
use crate::event::{InvalidEvent, MAX_APPEND_EVENTS, MAX_METADATA_BYTES, NewEvent, Version};
use crate::export_format::{StoredEvent, StreamDocument};
use crate::json::{InvalidJson, Json};
use crate::stream_name::StreamName;

/// Where an event stands in its stream and in its append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: i64,
    pub(super) append_index: i32,
    pub(super) append_size: i32,
}

impl Place {
    pub(super) fn of(event: &StoredEvent) -> Self {
        Self { version: event.version, append_index: event.append_index, append_size: event.append_size }
    }

    /// Says what is wrong if this cannot be the place after another one, or the first of its stream.
    pub(super) fn why_not_after(self, before: Option<Self>) -> Option<String> {
        let expected = before.map_or(0, |before| before.version + 1);
        if self.version != expected {
            return Some(format!("version {expected} should come"));
        }
        let begins = match before {
            Some(before) => before.append_index + 1 == before.append_size,
            None => true,
        };
        let goes_on = before.is_some_and(|before| {
            before.append_index + 1 == self.append_index && before.append_size == self.append_size
        });
        let fits = if self.append_index == 0 { begins } else { goes_on };
        (!fits).then(|| "its append is not whole".to_owned())
    }
}

/// Checks an event by itself and against those before it in its chunk.
pub(super) fn check_event(
    line: u64,
    event: &StoredEvent,
    reached: &mut HashMap<String, Place>,
) -> Result<(), ImportError> {
    let stream = stream(line, &event.stream)?;
    let invalid = |source| ImportError::Invalid { line, source };
    if stream.is_reserved() {
        return Err(invalid(InvalidEvent::ReservedStream(stream)));
    }
    let mut new = NewEvent::new(event.event_type.clone(), json(line, "payload", &event.payload)?);
    new.metadata = json(line, "metadata", &event.metadata)?;
    new.correlation_id.clone_from(&event.correlation_id);
    new.check().map_err(invalid)?;
    let size = usize::try_from(event.append_size).unwrap_or(usize::MAX);
    if size > MAX_APPEND_EVENTS {
        return Err(invalid(InvalidEvent::TooManyEvents(size)));
    }
    let place = Place::of(event);
    let does_not_follow = |why| does_not_follow(line, event, why);
    if place.version < 0 || !(0..place.append_size).contains(&place.append_index) {
        return Err(does_not_follow("its version or its place in the append cannot be".to_owned()));
    }
    if let Some(before) = reached.get_mut(&event.stream) {
        if let Some(why) = place.why_not_after(Some(*before)) {
            return Err(does_not_follow(why));
        }
        *before = place;
    } else {
        reached.insert(event.stream.clone(), place);
    }
    Ok(())
}

/// Checks a document of a stream.
pub(super) fn check_document(line: u64, document: &StreamDocument) -> Result<(), ImportError> {
    stream(line, &document.stream)?;
    let metadata = json(line, "metadata", &document.metadata)?;
    if !metadata.is_object() {
        return Err(ImportError::Json { line, what: "metadata", source: InvalidJson::NotAnObject });
    }
    let bytes = metadata.as_str().len();
    if bytes > MAX_METADATA_BYTES {
        return Err(ImportError::Invalid { line, source: InvalidEvent::MetadataTooLarge(bytes) });
    }
    Ok(())
}

pub(super) fn does_not_follow(line: u64, event: &StoredEvent, why: String) -> ImportError {
    ImportError::DoesNotFollow { line, stream: event.stream.clone(), version: Version(event.version), why }
}

fn stream(line: u64, name: &str) -> Result<StreamName, ImportError> {
    StreamName::new(name).map_err(|source| ImportError::Stream { line, source })
}

fn json(line: u64, what: &'static str, text: &str) -> Result<Json, ImportError> {
    Json::parse(text).map_err(|source| ImportError::Json { line, what, source })
}
