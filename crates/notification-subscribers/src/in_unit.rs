//! An aggregate inside a handler: loaded with what the unit has appended, decided on, appended with the unit.

use aggregate::{Aggregate, EventSet};
use store::{ExpectedVersion, StreamName, Version};
use subscription_engine::{BoxError, Cause};

use crate::streams::Writer;

/// An aggregate as this unit sees it. May be kept while the unit lasts.
pub(crate) struct InUnit<A: Aggregate> {
    stream: StreamName,
    pub(crate) state: A::State,
    expected: ExpectedVersion,
}

impl<A: Aggregate> InUnit<A> {
    /// Loads it.
    pub(crate) async fn load(cause: &mut Cause<'_, '_>, stream: StreamName) -> Result<Self, BoxError> {
        let loaded = cause.load(&stream).await?;
        let mut state = A::State::default();
        for past in &loaded.events {
            if let Some(event) = A::Event::decode_past(past) {
                state = A::evolve(state, &event?);
            }
        }
        Ok(Self { stream, state, expected: loaded.expected })
    }

    /// Decides on a command; what is to happen is appended when the unit commits, and is in the state already.
    pub(crate) fn execute(
        &mut self,
        cause: &mut Cause<'_, '_>,
        writer: Writer,
        command: &A::Command,
        context: &A::Context,
    ) -> Result<Vec<A::Event>, BoxError> {
        let events = A::decide(&self.state, command, context)?;
        for event in &events {
            writer.append_one_of(cause, &self.stream, self.expected, event)?;
            self.expected = match self.expected {
                ExpectedVersion::Exactly(version) => ExpectedVersion::Exactly(Version(version.0 + 1)),
                _ => ExpectedVersion::Exactly(Version(0)),
            };
            self.state = A::evolve(std::mem::take(&mut self.state), event);
        }
        Ok(events)
    }
}
