//! What an event is: as it is handed in, and as the log gives it back.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::json::{InvalidJson, Json};
use crate::schema_version::{self, InvalidSchemaVersion};
use crate::stream_name::StreamName;
use crate::timestamp::Timestamp;

/// A payload has at most this many bytes (S-24).
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;
/// Metadata has at most this many bytes (S-24).
pub const MAX_METADATA_BYTES: usize = 16 * 1024;
/// One append has at most this many events (S-24).
pub const MAX_APPEND_EVENTS: usize = 1_000;
/// An event type or a correlation id has at most this many bytes.
const MAX_NAME_BYTES: usize = 255;

/// A place in the log: 1 is the first event, 0 is before it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type,
)]
#[sqlx(transparent)]
#[serde(transparent)]
pub struct Position(pub i64);

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an event in its stream, from 0, without holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
#[sqlx(transparent)]
#[serde(transparent)]
pub struct Version(pub i64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it stands in the log.
    pub position: Position,
    /// Its stream.
    pub stream: StreamName,
    /// Its number in the stream.
    pub version: Version,
    /// Its type, such as `Acme.Notifications:UserWasNotified`.
    pub event_type: String,
    /// The payload, byte for byte as appended.
    pub payload: Json,
    /// The metadata, a JSON object.
    pub metadata: Json,
    /// Its id, unique in the whole log.
    pub id: Uuid,
    /// The id of the stored event, where this is a further part of what upcasters made of one; such a part has an
    /// id that is derived and stands in no row. The first part keeps the stored id.
    pub part_of: Option<Uuid>,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// The id of the event that brought it about.
    pub causation_id: Option<Uuid>,
    /// When it was written, by the log's clock. Never used for order.
    pub recorded_at: Timestamp,
}

impl Event {
    /// The id under which the log finds it.
    pub fn stored_id(&self) -> Uuid {
        self.part_of.unwrap_or(self.id)
    }
}

/// An event to be appended.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Unique in the whole log; the same id again is the same event (S-05).
    pub id: Uuid,
    /// Whether the id was derived from a cause. Of two events with one derived id the first stored wins.
    pub id_is_derived: bool,
    /// The type, such as `Acme.Notifications:UserWasNotified`.
    pub event_type: String,
    /// The payload, kept byte for byte.
    pub payload: Json,
    /// The metadata, a JSON object.
    pub metadata: Json,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// The id of the event that brings it about.
    pub causation_id: Option<Uuid>,
}

impl NewEvent {
    /// An event with a fresh id (UUIDv7), empty metadata, no correlation and no causation.
    pub fn new(event_type: impl Into<String>, payload: Json) -> Self {
        Self {
            id: Uuid::now_v7(),
            id_is_derived: false,
            event_type: event_type.into(),
            payload,
            metadata: Json::empty_object(),
            correlation_id: None,
            causation_id: None,
        }
    }

    /// Checks the limits that the log promises (S-24), before any SQL.
    pub(crate) fn check(&self) -> Result<(), InvalidEvent> {
        check_name("event type", &self.event_type)?;
        if let Some(correlation_id) = &self.correlation_id {
            check_name("correlation id", correlation_id)?;
        }
        let payload = self.payload.as_str().len();
        if payload > MAX_PAYLOAD_BYTES {
            return Err(InvalidEvent::PayloadTooLarge(payload));
        }
        check_metadata(&self.metadata)?;
        schema_version::stated(&self.metadata)?;
        Ok(())
    }
}

/// Checks the limits of metadata, of an event or of a stream.
pub(crate) fn check_metadata(metadata: &Json) -> Result<(), InvalidEvent> {
    let bytes = metadata.as_str().len();
    if bytes > MAX_METADATA_BYTES {
        return Err(InvalidEvent::MetadataTooLarge(bytes));
    }
    if !metadata.is_object() {
        return Err(InvalidEvent::Metadata(InvalidJson::NotAnObject));
    }
    if let Some(key) = metadata.repeated_key() {
        return Err(InvalidEvent::MetadataKeyTwice(key));
    }
    Ok(())
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), InvalidEvent> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(InvalidEvent::Name { what, name: name.chars().take(80).collect() });
    }
    Ok(())
}

/// Why an event cannot be appended; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum InvalidEvent {
    /// More than [`MAX_PAYLOAD_BYTES`].
    #[error("the payload has {0} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")]
    PayloadTooLarge(usize),
    /// More than [`MAX_METADATA_BYTES`].
    #[error("the metadata has {0} bytes, at most {MAX_METADATA_BYTES} are allowed")]
    MetadataTooLarge(usize),
    /// Metadata is not a JSON object.
    #[error("the metadata cannot be stored")]
    Metadata(#[source] InvalidJson),
    /// A field of the metadata stands twice: nobody could say which of them counts.
    #[error("the metadata has the field {0:?} twice; give each field once")]
    MetadataKeyTwice(String),
    /// The metadata names a schema version that is none; nobody could read the event by it.
    #[error(transparent)]
    SchemaVersion(#[from] InvalidSchemaVersion),
    /// More than [`MAX_APPEND_EVENTS`] in one append.
    #[error("{0} events in one append, at most {MAX_APPEND_EVENTS} are allowed")]
    TooManyEvents(usize),
    /// An event type or correlation id that is empty, too long or holds a control character.
    #[error("the {what} {name:?} must have 1 to {MAX_NAME_BYTES} bytes and no control characters")]
    Name {
        /// Which of the two.
        what: &'static str,
        /// Its beginning.
        name: String,
    },
    /// One id stands for two events.
    #[error("the event id {0} stands twice in one call")]
    IdTwice(Uuid),
    /// The type is one of the log's own.
    #[error("the event type {0:?} belongs to the log: types that start with $ are reserved")]
    ReservedType(String),
    /// The stream is one of the log's own.
    #[error("the stream {0} belongs to the log: names that start with $ are reserved")]
    ReservedStream(StreamName),
}
