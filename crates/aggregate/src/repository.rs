//! The repository: load, fold, decide, append under the version that was loaded, and again on a conflict.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{AppendError, Appended, ExpectedVersion, NewEvent, Store, StreamName, Version};

use crate::decision::{Loaded, check_stream, decide};
use crate::error::{ExecuteError, MAX_CONFLICTS};
use crate::provenance::{Provenance, with_metadata};
use crate::provide::{ContextProvider, Provide};
use crate::snapshots::Snapshots;
use crate::{Aggregate, EventSet};

/// How often an append whose answer got lost is repeated.
const MAX_REPEATS: usize = 3;
/// A stream is read in pages of this size.
pub(crate) const PAGE: usize = 1_000;

/// Runs an aggregate on a log.
pub struct Repository<A: Aggregate> {
    store: Store,
    snapshots: Option<Snapshots<A::State>>,
    notes_metadata: bool,
}

/// What a command did.
#[derive(Debug)]
pub struct Executed<E> {
    /// What happened; nothing if it was so already.
    pub events: Vec<E>,
    /// Where in the log.
    pub appended: Appended,
}

impl<A: Aggregate> Repository<A> {
    /// A repository on this log.
    pub fn new(store: Store) -> Self {
        Self { store, snapshots: None, notes_metadata: false }
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

    /// Notes with each event, in its metadata, what it belongs to: `_aggregate_type`, `_aggregate_id`,
    /// `_aggregate_version` (from 1), and what brought it about: `_causation_id` and `_causation_name`. The stream, the
    /// version and the causation of an event say the same without it; this is for readers that look for those names.
    #[must_use]
    pub fn with_metadata(self) -> Self {
        Self { notes_metadata: true, ..self }
    }

    pub(crate) fn notes_metadata(&self) -> bool {
        self.notes_metadata
    }

    pub(crate) fn snapshots(&self) -> Option<&Snapshots<A::State>> {
        self.snapshots.as_ref()
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
        let (Loaded { state, last }, _) = self.replay(stream).await?;
        Ok((state, expected(last)))
    }

    /// The aggregate, and how many events had to be read for it.
    async fn replay(&self, stream: &StreamName) -> Result<(Loaded<A::State>, i64), ExecuteError<A::Refusal>> {
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
        Ok((Loaded { state, last }, after(last) - begin))
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
        self.decide_and_append(stream, command, Provide::Given(context), provenance).await
    }

    /// As [`Repository::execute`], with a context that is looked up whenever a decision is made.
    pub async fn execute_with(
        &self,
        stream: &StreamName,
        command: &A::Command,
        provider: &dyn ContextProvider<A>,
        provenance: &Provenance,
    ) -> Result<Executed<A::Event>, ExecuteError<A::Refusal>> {
        self.decide_and_append(stream, command, Provide::By(provider), provenance).await
    }

    async fn decide_and_append(
        &self,
        stream: &StreamName,
        command: &A::Command,
        provide: Provide<'_, A>,
        provenance: &Provenance,
    ) -> Result<Executed<A::Event>, ExecuteError<A::Refusal>> {
        check_stream::<A>(stream, command)?;
        let rules = A::rules(command);
        let mut first_conflict = None;
        let mut has_moved = false;
        for _ in 0..MAX_CONFLICTS {
            let (loaded, read) = self.replay(stream).await?;
            let provided;
            let context = match provide {
                Provide::Given(context) => context,
                Provide::By(provider) => {
                    let failed = |source| ExecuteError::Context { command: rules.shown(), source };
                    provided = provider.provide(command).await.map_err(failed)?;
                    &provided
                }
            };
            let (events, mut new) = decide::<A>(stream, &loaded, command, context)?;
            if self.notes_metadata {
                new = with_metadata(new, stream, loaded.last, rules, provenance)?;
            }
            let new = provenance.kept_with(new);
            let last = loaded.last;
            let appended = match self.append(stream, expected(last), new).await {
                Err(AppendError::WrongVersion { actual, .. }) => {
                    has_moved |= *first_conflict.get_or_insert((last, actual)) != (last, actual);
                    continue;
                }
                result => result?,
            };
            // Of what was read: that is certainly what a later reading makes of these events.
            if let (Some(snapshots), Some(version)) = (&self.snapshots, loaded.last) {
                snapshots.take(&self.store, stream, loaded.state, version, read);
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
pub(crate) fn after(last: Option<Version>) -> i64 {
    last.map_or(0, |version| version.0 + 1)
}

/// What to expect of a stream with this last version.
pub(crate) fn expected(last: Option<Version>) -> ExpectedVersion {
    last.map_or(ExpectedVersion::NoStream, ExpectedVersion::Exactly)
}

impl<A: Aggregate> fmt::Debug for Repository<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, snapshots, notes_metadata } = self;
        f.debug_struct("Repository")
            .field("store", store)
            .field("snapshots", snapshots)
            .field("notes_metadata", notes_metadata)
            .finish()
    }
}
