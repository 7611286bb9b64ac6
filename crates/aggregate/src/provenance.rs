//! Where events come from: kept with each of them, never in the payload.

use store::{InvalidJson, Json, NewEvent, StreamName, Version};
use uuid::Uuid;

use crate::rules::CommandRules;

/// Where a command comes from, kept with every event that it brings about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// The event that brought it about.
    pub causation_id: Option<Uuid>,
    /// The command's own id, if it has one: then the ids of its events are derived from it ([`event_id`]), and what it
    /// brings about is in the log once, however often it is sent.
    pub command_id: Option<Uuid>,
}

/// The id of the event that a command with an id records at this place, from 0.
pub fn event_id(command_id: Uuid, ordinal: usize) -> Uuid {
    Uuid::new_v5(&command_id, ordinal.to_string().as_bytes())
}

impl Provenance {
    /// Events with what is known of their command.
    pub(crate) fn kept_with(&self, events: Vec<NewEvent>) -> Vec<NewEvent> {
        let keep = |(ordinal, event): (usize, NewEvent)| NewEvent {
            id: self.command_id.map_or(event.id, |command_id| event_id(command_id, ordinal)),
            correlation_id: self.correlation_id.clone(),
            causation_id: self.causation_id,
            ..event
        };
        events.into_iter().enumerate().map(keep).collect()
    }

    /// What brought the events about: the command, or the event before it.
    fn cause(&self) -> Option<Uuid> {
        self.command_id.or(self.causation_id)
    }
}

/// Events with their aggregate in the metadata: `_aggregate_type`, `_aggregate_id` and `_aggregate_version`, which
/// counts from 1, and what brought them about as `_causation_id` and `_causation_name`.
pub(crate) fn with_metadata(
    events: Vec<NewEvent>,
    stream: &StreamName,
    last: Option<Version>,
    rules: CommandRules,
    provenance: &Provenance,
) -> Result<Vec<NewEvent>, InvalidJson> {
    let category = stream.category();
    let id = stream.as_str()[category.len()..].trim_start_matches('-');
    let first = last.map_or(1, |last| last.0 + 2);
    let noted = |(version, event): (i64, NewEvent)| {
        let mut metadata = event.metadata;
        for (name, value) in [
            ("_aggregate_type", Some(Json::of(&category)?)),
            ("_aggregate_id", Some(Json::of(&id)?)),
            ("_aggregate_version", Some(Json::of(&version)?)),
            ("_causation_id", provenance.cause().map(|cause| Json::of(&cause)).transpose()?),
            ("_causation_name", (!rules.name.is_empty()).then(|| Json::of(&rules.name)).transpose()?),
        ] {
            if let Some(value) = value {
                metadata = metadata.with_field(name, &value)?;
            }
        }
        Ok(NewEvent { metadata, ..event })
    };
    (first..).zip(events).map(noted).collect()
}
