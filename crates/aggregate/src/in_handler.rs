//! Aggregates inside a handler of a subscriber: what they decide is appended when the handler's unit commits.

use store::{Event, ExpectedVersion, StreamName, Version, messages};
use subscription_engine::{Cause, Context};

use crate::decision::{Loaded, check_stream, decide};
use crate::error::ExecuteError;
use crate::provenance::{Provenance, with_metadata};
use crate::repository::{PAGE, Repository, after, expected};
use crate::{Aggregate, EventSet};

/// A state as it was after the event of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsOf<S> {
    /// The state.
    pub state: S,
    /// The version.
    pub version: Version,
}

impl<A: Aggregate> Repository<A> {
    /// Decides on a command because of an event or a timer, and has what follows appended when the unit commits. What
    /// the unit has appended so far is part of the past. If somebody else appends to the stream meanwhile, the unit is
    /// repeated, and this with it. Ids, correlation and causation are those of everything that a handler brings about.
    pub async fn execute_in(
        &self,
        cause: &mut Cause<'_, '_>,
        stream: &StreamName,
        command: &A::Command,
        context: &A::Context,
    ) -> Result<Vec<A::Event>, ExecuteError<A::Refusal>> {
        check_stream::<A>(stream, command)?;
        let past = cause.load(stream).await?;
        let mut state = A::State::default();
        for event in &past.events {
            if let Some(decoded) = A::Event::decode_past(event) {
                state = A::evolve(state, &decoded?);
            }
        }
        let last = match past.expected {
            ExpectedVersion::Exactly(last) => Some(last),
            _ => None,
        };
        let (events, mut new) = decide::<A>(stream, &Loaded { state, last }, command, context)?;
        if self.notes_metadata() {
            let provenance = Provenance { causation_id: Some(cause.causation_id()), ..Provenance::default() };
            new = with_metadata(new, stream, last, A::rules(command), &provenance)?;
        }
        // The first one says what the decision was made on; the others follow it.
        let mut expects = expected(last);
        for event in new {
            cause.append_new(stream, expects, event)?;
            expects = ExpectedVersion::Any;
        }
        Ok(events)
    }

    /// The state as it was after the event of this version, as a handler needs it that asks what held then: from a
    /// snapshot where there is one, or from an earlier state where one is given. Nothing that follows is looked at.
    pub async fn as_of(
        &self,
        context: &mut Context<'_>,
        stream: &StreamName,
        version: Version,
        earlier: Option<AsOf<A::State>>,
    ) -> Result<AsOf<A::State>, ExecuteError<A::Refusal>> {
        let earlier = match earlier.filter(|earlier| earlier.version <= version) {
            None => self.snapshot_in(context, stream, version).await,
            earlier => earlier,
        };
        let (mut state, mut last) = match earlier {
            Some(AsOf { state, version }) => (state, Some(version)),
            None => (A::State::default(), None),
        };
        while after(last) <= version.0 {
            let limit = usize::try_from(version.0 - after(last) + 1).unwrap_or(PAGE).min(PAGE);
            let page = context.read_stream(stream, after(last), limit).await?;
            let is_before = |event: &&Event| event.version <= version;
            for event in page.events.iter().take_while(is_before) {
                if let Some(decoded) = A::Event::decode(event) {
                    state = A::evolve(state, &decoded?);
                }
            }
            last = page.scanned_to.or(last);
            if page.next.is_none() {
                break;
            }
        }
        Ok(AsOf { state, version })
    }

    async fn snapshot_in(
        &self,
        context: &mut Context<'_>,
        stream: &StreamName,
        version: Version,
    ) -> Option<AsOf<A::State>> {
        let snapshots = self.snapshots()?;
        match context.snapshot(stream, snapshots.schema_number(), version).await {
            Ok(found) => {
                let found = found?;
                let state = snapshots.read(stream, &found)?;
                Some(AsOf { state, version: found.version })
            }
            Err(error) => {
                let why = messages(&error).join(": ");
                tracing::warn!(
                    stream = stream.as_str(),
                    "no snapshot of {stream} could be looked for: {why}"
                );
                None
            }
        }
    }
}
