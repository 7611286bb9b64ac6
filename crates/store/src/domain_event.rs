//! Typed events: a type of yours on one side, a type name and JSON in the log on the other.

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

use crate::event::{Event, NewEvent, Position};
use crate::json::{InvalidJson, Json};
use crate::schema_version::stated;

/// Marks a type as a domain event. Implement it on immutable types that say what happened.
pub trait DomainEvent: Serialize + DeserializeOwned {
    /// Its name in the log, such as `Acme.Notifications:UserWasNotified`. Never derived from a Rust path:
    /// the name outlives every refactoring.
    const TYPE: &'static str;
    /// In which form it is written today. Raised when older payloads cannot be read as this type any more; then an
    /// [`crate::Upcaster`] takes them from the version before.
    const SCHEMA_VERSION: u32 = 1;
}

/// The payload of an event is not what its type says.
#[derive(Debug, thiserror::Error)]
#[error("the payload of position {position} is no {expected}")]
pub struct UndecodableEvent {
    /// Where the event stands.
    pub position: Position,
    /// The type it should have been.
    pub expected: &'static str,
    /// What is wrong.
    #[source]
    pub source: serde_json::Error,
}

impl Event {
    /// Reads the payload, if the event is of this type; none if it is of another one.
    pub fn decode<E: DomainEvent>(&self) -> Option<Result<E, UndecodableEvent>> {
        let Self { position, event_type, payload, metadata, .. } = self;
        decode(*position, event_type, payload, metadata)
    }
}

/// As [`Event::decode`], for who has no more of an event than this.
pub fn decode<E: DomainEvent>(
    position: Position,
    event_type: &str,
    payload: &Json,
    metadata: &Json,
) -> Option<Result<E, UndecodableEvent>> {
    (event_type == E::TYPE).then(|| {
        let undecodable = |source| UndecodableEvent { position, expected: E::TYPE, source };
        // What an older program wrote may well be read by this one, but never the other way round.
        match stated(metadata) {
            Ok(version) if version <= E::SCHEMA_VERSION => payload.to(),
            Ok(version) => Err(serde_json::Error::custom(format!(
                "it has schema version {version} and this program knows {}; use the newer program",
                E::SCHEMA_VERSION
            ))),
            Err(error) => Err(serde_json::Error::custom(error)),
        }
        .map_err(undecodable)
    })
}

impl NewEvent {
    /// A new event that says this.
    pub fn of<E: DomainEvent>(event: &E) -> Result<Self, InvalidJson> {
        let new = Self::new(E::TYPE, Json::of(event)?);
        if E::SCHEMA_VERSION == 1 { Ok(new) } else { new.with_schema_version(E::SCHEMA_VERSION) }
    }
}
