//! The repository: load, fold, decide, append under the version that was loaded, and again on a conflict.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{
    AppendError, Appended, ExpectedVersion, InvalidJson, NewEvent, ReadError, Store, StreamName,
    UndecodableEvent, Version,
};
use uuid::Uuid;

use crate::snapshots::Snapshots;
use crate::{Aggregate, EventSet};

/// How often a decision is made anew because somebody else appended meanwhile.
const MAX_CONFLICTS: usize = 20;
/// How often an append whose answer got lost is repeated.
const MAX_REPEATS: usize = 3;
/// A stream is read in pages of this size.
const PAGE: usize = 1_000;

/// Runs an aggregate on a log.
pub struct Repository<A: Aggregate> {
    store: Store,
    snapshots: Option<Snapshots<A::State>>,
}

/// An aggregate as it was read.
struct Loaded<S> {
    state: S,
    /// The version of the last event in it.
    last: Option<Version>,
    /// How many events had to be read for it.
    read: i64,
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
    /// The stream did not change, and the append was refused all the same.
    #[error(
        "the log refuses every append to stream {stream}, though nobody else appends to it: it has recorded {} for it, \
         and its last event has another version; `herald store verify` tells more",
        .recorded.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"))
    )]
    Misrecorded {
        /// The stream.
        stream: StreamName,
        /// The version in the table of streams, if it is there.
        recorded: Option<Version>,
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
        Self { store, snapshots: None }
    }

    /// Keeps a snapshot of a stream whenever a command had to read so many events of it, and begins to read after
    /// the newest one. The state is the same with and without.
    ///
    /// Raise `schema_number` whenever a state means something else than before: when its fields change, when
    /// [`Aggregate::evolve`] does, or when upcasters make something else of the events. Snapshots of another number
    /// are not looked at. Call [`Repository::close`] at the end: snapshots are written beside the commands.
    #[must_use]
    pub fn with_snapshots(self, schema_number: u32, every: u32) -> Self
    where
        A::State: Serialize + DeserializeOwned + Send + 'static,
    {
        Self { snapshots: Some(Snapshots::new(schema_number, every)), ..self }
    }

    /// Waits for the snapshots that are still being written.
    pub async fn close(&self) {
        if let Some(snapshots) = &self.snapshots {
            snapshots.finish().await;
        }
    }

    /// The aggregate's state, and what to expect of its stream when appending what was decided on it.
    pub async fn load(
        &self,
        stream: &StreamName,
    ) -> Result<(A::State, ExpectedVersion), ExecuteError<A::Refusal>> {
        let Loaded { state, last, .. } = self.replay(stream).await?;
        Ok((state, expected(last)))
    }

    async fn replay(&self, stream: &StreamName) -> Result<Loaded<A::State>, ExecuteError<A::Refusal>> {
        let newest = match &self.snapshots {
            Some(snapshots) => snapshots.newest(&self.store, stream).await,
            None => None,
        };
        let (mut state, mut last) = match newest {
            Some((state, version)) => (state, Some(version)),
            None => (A::State::default(), None),
        };
        let begin = after(last);
        loop {
            let next = after(last);
            let page = self.store.read_stream(stream, next, PAGE).await?;
            for event in &page.events {
                // Types that the aggregate does not know are somebody else's in its stream.
                if let Some(decoded) = A::Event::decode(event) {
                    state = A::evolve(state, &decoded?);
                }
            }
            last = page.scanned_to.or(last);
            if page.next.is_none() {
                break;
            }
        }
        Ok(Loaded { state, read: after(last) - begin, last })
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
        let mut first_conflict = None;
        let mut has_moved = false;
        for _ in 0..MAX_CONFLICTS {
            let Loaded { state, last, read } = self.replay(stream).await?;
            let events = A::decide(&state, command, context).map_err(ExecuteError::Refused)?;
            let mut new = Vec::with_capacity(events.len());
            for event in &events {
                new.push(NewEvent {
                    correlation_id: provenance.correlation_id.clone(),
                    causation_id: provenance.causation_id,
                    ..event.encode()?
                });
            }
            let appended = match self.append(stream, expected(last), new).await {
                Err(AppendError::WrongVersion { actual, .. }) => {
                    has_moved |= *first_conflict.get_or_insert((last, actual)) != (last, actual);
                    continue;
                }
                result => result?,
            };
            // Of what was read: that is certainly what a later reading makes of these events.
            if let (Some(snapshots), Some(version)) = (&self.snapshots, last) {
                snapshots.take(&self.store, stream, state, version, read);
            }
            return Ok(Executed { events, appended });
        }
        match first_conflict {
            // Nobody was faster: what the log has recorded of the stream is not what it holds.
            Some((last, recorded)) if !has_moved && last != recorded => {
                Err(ExecuteError::Misrecorded { stream: stream.clone(), recorded })
            }
            _ => Err(ExecuteError::Contended { stream: stream.clone() }),
        }
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

/// The version that follows.
fn after(last: Option<Version>) -> i64 {
    last.map_or(0, |version| version.0 + 1)
}

fn expected(last: Option<Version>) -> ExpectedVersion {
    last.map_or(ExpectedVersion::NoStream, ExpectedVersion::Exactly)
}

impl<A: Aggregate> fmt::Debug for Repository<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, snapshots } = self;
        f.debug_struct("Repository").field("store", store).field("snapshots", snapshots).finish()
    }
}
