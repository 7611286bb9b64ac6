//! Emitting: a subscription's own stream, and links from one stream to another.
//!
//! Both are appends like any other: they commit with the position, and their ids are derived from the cause. They are
//! off while a subscription works off history, unless it asks for them. No subscriber feeds itself for ever: it
//! emits nothing because of what it has emitted, and a link is not linked again.

use serde::{Deserialize, Serialize};
use store::{
    DomainEvent, Event, ExpectedVersion, InvalidStreamName, Json, NewEvent, Position, StreamName, Version,
};
use uuid::Uuid;

use crate::context::{Cause, ContextError};

/// The field of the metadata that says of which event another one is a link.
pub const LINKED_FIELD: &str = "linked";

/// When a subscriber emits and links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Emission {
    /// Once it has caught up with history.
    #[default]
    WhenActive,
    /// Always, so that history is emitted as well. What a replay emits again is there already.
    Always,
    /// Never, such as in a second installation.
    Never,
}

impl Emission {
    /// The word for it, in rows.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::WhenActive => "when_active",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// Of which event another one is a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    /// The stream of the event.
    pub stream: StreamName,
    /// Its number there.
    pub version: Version,
    /// Where it stands in the log.
    pub position: Position,
}

impl Linked {
    /// What an event is a link of; none if it is none.
    pub fn of(event: &Event) -> Option<Self> {
        event.metadata.field(LINKED_FIELD)?.to().ok()
    }
}

/// The stream to which a subscription emits: `subscription_<id>`.
pub fn emitted_stream(subscription: &str) -> Result<StreamName, InvalidStreamName> {
    StreamName::new(format!("subscription_{subscription}"))
}

impl Cause<'_, '_> {
    /// Appends an event to the subscription's own stream, [`emitted_stream`], when this unit commits. None: it does not
    /// emit now (see [`Emission`]), or the cause stands in that stream itself. The unit fails where the stream was closed
    /// ([`crate::Engine::remove_and_close`]).
    pub fn emit(&mut self, event_type: &str, payload: Json) -> Result<Option<Uuid>, ContextError> {
        self.emit_new(NewEvent::new(event_type, payload))
    }

    /// As [`Cause::emit`], of a typed event.
    pub fn emit_event<E: DomainEvent>(&mut self, event: &E) -> Result<Option<Uuid>, ContextError> {
        self.emit_new(NewEvent::of(event)?)
    }

    fn emit_new(&mut self, event: NewEvent) -> Result<Option<Uuid>, ContextError> {
        let stream = emitted_stream(&self.context.definition.id)?;
        if !self.emits() || self.origin.event.is_some_and(|event| event.stream == stream) {
            return Ok(None);
        }
        self.plan(&stream, ExpectedVersion::Any, event).map(Some)
    }

    /// Appends a link of this event to another stream when this unit commits: an event with an id of its own, the same
    /// type, payload and metadata, and [`Linked`] in its metadata. None: it does not link now (see [`Emission`]),
    /// this event is a link already, or the cause is a timer, of which there is nothing to link.
    pub fn link_to(&mut self, stream: &StreamName) -> Result<Option<Uuid>, ContextError> {
        let Some(event) = self.origin.event else { return Ok(None) };
        if !self.emits() || Linked::of(event).is_some() {
            return Ok(None);
        }
        let linked =
            Linked { stream: event.stream.clone(), version: event.version, position: event.position };
        let metadata = event.metadata.with_field(LINKED_FIELD, &Json::of(&linked)?)?;
        let link = NewEvent { metadata, ..NewEvent::new(event.event_type.clone(), event.payload.clone()) };
        self.plan(stream, ExpectedVersion::Any, link).map(Some)
    }

    fn emits(&self) -> bool {
        match self.context.definition.emission {
            Emission::Always => true,
            Emission::Never => false,
            Emission::WhenActive => !self.is_history(),
        }
    }
}
