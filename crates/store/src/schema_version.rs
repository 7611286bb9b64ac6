//! The schema version of an event: which form of its type the payload has.
//!
//! It is kept in the metadata, in the field [`SCHEMA_VERSION_FIELD`], so that it travels with the event wherever
//! that goes. An event without the field has version 1, which is how every type begins. [`crate::Upcaster`]s are
//! chosen by it.

use crate::event::{Event, NewEvent};
use crate::json::{InvalidJson, Json};

/// The field of the metadata that says in which form the payload is.
pub const SCHEMA_VERSION_FIELD: &str = "_schema_version";
/// The version of an event that says nothing about it.
pub(crate) const FIRST: u32 = 1;

/// The metadata names a schema version that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the field {SCHEMA_VERSION_FIELD} of the metadata is {0}, but a schema version is a whole number from 1 on"
)]
pub struct InvalidSchemaVersion(String);

impl Event {
    /// In which form the payload is.
    pub fn schema_version(&self) -> Result<u32, InvalidSchemaVersion> {
        stated(&self.metadata)
    }
}

impl NewEvent {
    /// With this schema version in its metadata; for version 1 with none.
    pub fn with_schema_version(self, version: u32) -> Result<Self, InvalidJson> {
        Ok(Self { metadata: restated(&self.metadata, version)?, ..self })
    }
}

/// The schema version that metadata states.
pub(crate) fn stated(metadata: &Json) -> Result<u32, InvalidSchemaVersion> {
    let text = metadata.as_str();
    // Most events are of version 1, and reading the metadata costs more than this look. Without \u JSON shows
    // every such name as it is.
    if !text.contains(SCHEMA_VERSION_FIELD) && !text.contains("\\u") {
        return Ok(FIRST);
    }
    let Some(version) = metadata.field(SCHEMA_VERSION_FIELD) else { return Ok(FIRST) };
    match version.as_str().parse() {
        Ok(version) if version >= FIRST => Ok(version),
        _ => Err(InvalidSchemaVersion(version.as_str().chars().take(80).collect())),
    }
}

/// The metadata with another schema version.
pub(crate) fn restated(metadata: &Json, version: u32) -> Result<Json, InvalidJson> {
    if version == FIRST {
        return metadata.without_field(SCHEMA_VERSION_FIELD);
    }
    metadata.with_field(SCHEMA_VERSION_FIELD, &Json::of(&version)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s16_metadata_states_a_schema_version_or_means_the_first() {
        let of = |metadata: &str| stated(&Json::parse(metadata).unwrap());
        assert_eq!(of("{}"), Ok(1));
        assert_eq!(of(r#"{"by":"_schema_version"}"#), Ok(1));
        assert_eq!(of(r#"{"by":{"_schema_version":7},"a":"\n"}"#), Ok(1));
        assert_eq!(of(r#"{"_schema_version": 2 }"#), Ok(2));
        assert_eq!(of(r#"{"\u005fschema_version":3}"#), Ok(3));
        for metadata in ["0", "-1", "1.0", "1e1", "\"2\"", "null", "[2]", "4294967296"] {
            let error = of(&format!(r#"{{"_schema_version":{metadata}}}"#)).unwrap_err();
            assert!(error.to_string().contains(&format!("is {metadata},")), "{error}");
        }
    }

    #[test]
    fn s16_a_new_event_is_given_its_schema_version() {
        let given = NewEvent::new("T", Json::empty_object()).with_schema_version(3).unwrap();
        assert_eq!(given.metadata.as_str(), r#"{"_schema_version":3}"#);
        let first = given.with_schema_version(1).unwrap();
        assert_eq!(first.metadata, Json::empty_object());
    }
}
