//! The repository: load, fold, decide, append under the version that was loaded, and again on a conflict.

use store::{
    AppendError, Appended, ExpectedVersion, InvalidJson, NewEvent, ReadError, Store, StreamName,
    UndecodableEvent, Version,
};
use uuid::Uuid;

use crate::{Aggregate, EventSet};

/// How often a decision is made anew because somebody else appended meanwhile.
const MAX_CONFLICTS: usize = 20;
/// How often an append whose answer got lost is repeated.
const MAX_REPEATS: usize = 3;
/// A stream is read in pages of this size.
const PAGE: usize = 1_000;

/// Runs an aggregate on a log.
#[derive(Debug)]
pub struct Repository<A> {
    store: Store,
    aggregate: std::marker::PhantomData<fn() -> A>,
}

/// Where a command comes from, kept with every event that it brings about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// The event that brought it about.
    pub causation_id: Option<Uuid>,
}

/// What a command did.
#[derive(Debug)]
pub struct Executed<E> {
    /// What happened; nothing if it was so already.
    pub events: Vec<E>,
    /// Where in the log.
    pub appended: Appended,
}

/// Why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError<R: std::error::Error + 'static> {
    /// The aggregate refuses.
    #[error(transparent)]
    Refused(R),
    /// Others keep appending to the stream.
    #[error("stream {stream} changed {MAX_CONFLICTS} times while the command was decided; try again")]
    Contended {
        /// The stream.
        stream: StreamName,
    },
    /// An event of the stream is not what its type says.
    #[error(transparent)]
    Undecodable(#[from] UndecodableEvent),
    /// A decided event cannot be written as JSON.
    #[error("an event cannot be written as JSON")]
    Unwritable(#[from] InvalidJson),
    /// The stream could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The events could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl<A: Aggregate> Repository<A> {
    /// A repository on this log.
    pub fn new(store: Store) -> Self {
        Self { store, aggregate: std::marker::PhantomData }
    }

    /// The aggregate's state, and what to expect of its stream when appending what was decided on it.
    pub async fn load(
        &self,
        stream: &StreamName,
    ) -> Result<(A::State, ExpectedVersion), ExecuteError<A::Refusal>> {
        let mut state = A::State::default();
        let mut next = 0;
        loop {
            let page = self.store.read_stream(stream, next, PAGE).await?;
            for event in &page.events {
                // Types that the aggregate does not know are somebody else's in its stream.
                if let Some(decoded) = A::Event::decode(event) {
                    state = A::evolve(state, &decoded?);
                }
                next = event.version.0 + 1;
            }
            if page.next.is_none() {
                break;
            }
        }
        let expected = match next {
            0 => ExpectedVersion::NoStream,
            next => ExpectedVersion::Exactly(Version(next - 1)),
        };
        Ok((state, expected))
    }

    /// Decides on a command and appends what is to happen. On a conflict it is decided again, on the newer
    /// state; either everything that was decided is in the log afterwards, or nothing.
    pub async fn execute(
        &self,
        stream: &StreamName,
        command: &A::Command,
        context: &A::Context,
        provenance: &Provenance,
    ) -> Result<Executed<A::Event>, ExecuteError<A::Refusal>> {
        for _ in 0..MAX_CONFLICTS {
            let (state, expected) = self.load(stream).await?;
            let events = A::decide(&state, command, context).map_err(ExecuteError::Refused)?;
            let mut new = Vec::with_capacity(events.len());
            for event in &events {
                new.push(NewEvent {
                    correlation_id: provenance.correlation_id.clone(),
                    causation_id: provenance.causation_id,
                    ..event.encode()?
                });
            }
            match self.append(stream, expected, new).await {
                Err(AppendError::WrongVersion { .. }) => {}
                result => return Ok(Executed { events, appended: result? }),
            }
        }
        Err(ExecuteError::Contended { stream: stream.clone() })
    }

    /// Appends; an append whose answer got lost is repeated with the same ids, which tells what became of it.
    async fn append(
        &self,
        stream: &StreamName,
        expected: ExpectedVersion,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        for _ in 0..MAX_REPEATS {
            match self.store.append(stream, expected, events.clone()).await {
                Err(AppendError::OutcomeUnknown(_)) => {}
                result => return result,
            }
        }
        self.store.append(stream, expected, events).await
    }
}
