//! Hooks: code of a program that is asked before, and told after, its appends and reads.
//!
//! Hooks run one after the other, higher priority first, on the task of the call that they belong to: a slow one
//! delays that call (and is named in the log), never another one. They are plain functions, without a transaction
//! and without waiting for anything. Who must act on every event, whatever crashes, is a subscriber; a hook is told
//! at most once, in the process that appended, and not at all if that process ends in between.
//!
//! *Before an append* a hook may fill in metadata or refuse. It runs once for each call, before the call is queued
//! to share a commit with others, and for each append of [`Store::append_all`]; a refused append has written nothing
//! and used none of its ids. Type, payload, id and stream are the caller's: a repeated append is recognised by them.
//! Limits are checked on what comes out. *After an append* it is told what is durable: of a transaction of the
//! caller's own after its commit, of a repeated append with [`Appended::replayed`], and not of one whose answer nobody
//! waited for. *Before a read* it may
//! refuse, *after a read* it sees the events as they are shown. A hook that panics before has refused; one that
//! panics after is named in the log, and the call succeeds all the same.

mod enricher;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::enricher::MetadataEnricher;
use crate::append::{Append, AppendError, Appended, ExpectedVersion};
use crate::event::{Event, NewEvent};
use crate::filter::Filter;
use crate::guard::{BoxError, guarded};
use crate::json::Json;
use crate::read::{Direction, ReadError};
use crate::store::Store;
use crate::stream_name::StreamName;

/// A hook that takes longer than this is named in the log: it is meant to be done in microseconds.
const SLOW: Duration = Duration::from_millis(100);

/// Listens to the appends and reads of one program. Each method does nothing unless it is written.
pub trait Hook: Send + Sync {
    /// Its name, for people: it stands in errors and logs.
    fn name(&self) -> &str;

    /// Before an append. An error refuses it, with the error as the reason.
    fn before_append(&self, draft: &mut Draft<'_>) -> Result<(), BoxError> {
        let _ = draft;
        Ok(())
    }

    /// After an append that is durable now. Empty appends are not told.
    fn after_append(&self, append: &Append, appended: &Appended) {
        let _ = (append, appended);
    }

    /// Before a page is read. An error refuses it, with the error as the reason.
    fn before_read(&self, reading: &Reading<'_>) -> Result<(), BoxError> {
        let _ = reading;
        Ok(())
    }

    /// After a page was read.
    fn after_read(&self, reading: &Reading<'_>, events: &[Event]) {
        let _ = (reading, events);
    }
}

/// Hooks by priority: higher first, and of one priority in the order in which they were added. A hook of −1000 comes
/// after all others.
#[derive(Clone, Default)]
pub struct Hooks(Vec<(i32, Arc<dyn Hook>)>);

/// An append that is about to happen.
#[derive(Debug)]
pub struct Draft<'a>(&'a mut Append);

/// A page that is about to be read, or was read.
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// Of the log.
    Log {
        /// What is wanted.
        filter: &'a Filter,
        /// Which way.
        direction: Direction,
        /// How many events at most.
        limit: usize,
    },
    /// Of one stream, to rebuild its state.
    Stream {
        /// The stream.
        stream: &'a StreamName,
        /// Which way.
        direction: Direction,
        /// How many events at most.
        limit: usize,
    },
}

impl Hooks {
    /// No hook.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more hook.
    #[must_use]
    pub fn with(mut self, priority: i32, hook: impl Hook + 'static) -> Self {
        let place = self.0.partition_point(|(other, _)| *other >= priority);
        self.0.insert(place, (priority, Arc::new(hook)));
        self
    }

    /// Asks all of them, in order; the first that refuses ends it.
    fn ask(&self, mut question: impl FnMut(&dyn Hook) -> Result<(), BoxError>) -> Result<(), Refusal> {
        self.0.iter().try_for_each(|(_, hook)| {
            let asked = timed(&**hook, || guarded(|| question(&**hook)));
            asked.map_err(|reason| Refusal { hook: hook.name().to_owned(), reason })
        })
    }

    fn tell(&self, mut news: impl FnMut(&dyn Hook)) {
        for (_, hook) in &self.0 {
            let told = timed(&**hook, || {
                guarded(|| {
                    news(&**hook);
                    Ok(())
                })
            });
            if let Err(error) = told {
                tracing::error!(hook = hook.name(), "hook {} failed, and nothing else: {error}", hook.name());
            }
        }
    }

    pub(crate) fn before_append(&self, append: &mut Append) -> Result<(), AppendError> {
        if append.events.is_empty() {
            return Ok(());
        }
        self.ask(|hook| hook.before_append(&mut Draft(append))).map_err(|Refusal { hook, reason }| {
            AppendError::RefusedByHook { stream: append.stream.clone(), hook, reason }
        })
    }

    pub(crate) fn after_append(&self, append: &Append, appended: &Appended) {
        if !append.events.is_empty() {
            self.tell(|hook| hook.after_append(append, appended));
        }
    }
}

/// Who refused, and why.
struct Refusal {
    hook: String,
    reason: BoxError,
}

fn timed<T>(hook: &dyn Hook, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    if took > SLOW {
        let name = hook.name();
        tracing::warn!(hook = name, "hook {name} took {took:?}; whoever appends or reads waits for it");
    }
    result
}

impl Draft<'_> {
    /// The stream.
    pub fn stream(&self) -> &StreamName {
        &self.0.stream
    }

    /// What must hold of it.
    pub fn expected(&self) -> ExpectedVersion {
        self.0.expected
    }

    /// The events.
    pub fn events(&self) -> &[NewEvent] {
        &self.0.events
    }

    /// Changes the metadata of each event: it is given the event and answers with the metadata, or with none if
    /// they stay as they are.
    pub fn change_metadata(
        &mut self,
        mut change: impl FnMut(&StreamName, &NewEvent) -> Result<Option<Json>, BoxError>,
    ) -> Result<(), BoxError> {
        for event in &mut self.0.events {
            if let Some(metadata) = change(&self.0.stream, event)? {
                event.metadata = metadata;
            }
        }
        Ok(())
    }
}

/// Appends of a transaction, to be told when it is committed.
#[derive(Debug)]
pub(crate) struct Untold {
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) appends: Vec<Append>,
    pub(crate) appended: Vec<Appended>,
}

impl Untold {
    pub(crate) fn tell(self) {
        for (append, appended) in self.appends.iter().zip(&self.appended) {
            self.hooks.after_append(append, appended);
        }
    }
}

impl Store {
    /// A handle to the same log whose appends and reads these hooks listen to, in place of earlier ones.
    #[must_use]
    pub fn with_hooks(mut self, hooks: Hooks) -> Self {
        self.plugins_mut().hooks = (!hooks.0.is_empty()).then(|| Arc::new(hooks));
        self
    }

    pub(crate) fn hooks(&self) -> Option<&Arc<Hooks>> {
        self.plugins().hooks.as_ref()
    }

    /// Asks the hooks, reads, and tells them.
    pub(crate) async fn hooked<T>(
        &self,
        reading: Reading<'_>,
        read: impl Future<Output = Result<T, ReadError>>,
        events: impl FnOnce(&T) -> &[Event],
    ) -> Result<T, ReadError> {
        let Some(hooks) = self.hooks() else { return read.await };
        hooks
            .ask(|hook| hook.before_read(&reading))
            .map_err(|Refusal { hook, reason }| ReadError::RefusedByHook { hook, reason })?;
        let page = read.await?;
        let events = events(&page);
        hooks.tell(|hook| hook.after_read(&reading, events));
        Ok(page)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(priority, hook)| (priority, hook.name()))).finish()
    }
}
