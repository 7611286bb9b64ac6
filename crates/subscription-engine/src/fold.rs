//! Folding events into a state: one function for each type of event, over a page or over the log.
//!
//! A fold is pure: it has no transaction and brings nothing about. Who keeps what it comes to is another question:
//! [`crate::Handlers`] write it once for each page, a [`crate::StateProjection`] keeps it as JSON, and [`Fold::run`]
//! only looks.

use std::collections::BTreeMap;

use store::{DomainEvent, Event, Filter, Position, ReadError, Store, UndecodableEvent};

/// A read of the log takes pages of this size.
const PAGE: usize = 1_000;

/// What one kind of event does to the state.
type Step<S> = Box<dyn Fn(&mut S, &Event) -> Result<(), UndecodableEvent> + Send + Sync>;

/// How events change a state, by their type.
pub struct Fold<S> {
    by_type: BTreeMap<String, Vec<Step<S>>>,
    any: Vec<Step<S>>,
}

/// Why the log could not be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The payload of an event is not what its type says.
    #[error(transparent)]
    Undecodable(#[from] UndecodableEvent),
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl<S> Default for Fold<S> {
    fn default() -> Self {
        Self { by_type: BTreeMap::new(), any: Vec::new() }
    }
}

impl<S: 'static> Fold<S> {
    /// A fold that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Events of this type do this. An event whose payload is no such thing fails where it stands.
    #[must_use]
    pub fn on<E: DomainEvent>(self, step: impl Fn(&mut S, &E, &Event) + Send + Sync + 'static) -> Self {
        self.step(E::TYPE, move |state, event| {
            if let Some(decoded) = event.decode::<E>() {
                step(state, &decoded?, event);
            }
            Ok(())
        })
    }

    /// Events of the type with this name make another state of the one that there is.
    #[must_use]
    pub fn when(
        self,
        event_type: impl Into<String>,
        step: impl Fn(S, &Event) -> S + Send + Sync + 'static,
    ) -> Self
    where
        S: Default,
    {
        self.step(event_type, move |state, event| {
            *state = step(std::mem::take(state), event);
            Ok(())
        })
    }

    /// Every event does this, whatever its type, after what its own type does.
    #[must_use]
    pub fn any(mut self, step: impl Fn(&mut S, &Event) + Send + Sync + 'static) -> Self {
        self.any.push(Box::new(move |state, event| {
            step(state, event);
            Ok(())
        }));
        self
    }

    fn step(
        mut self,
        event_type: impl Into<String>,
        step: impl Fn(&mut S, &Event) -> Result<(), UndecodableEvent> + Send + Sync + 'static,
    ) -> Self {
        self.by_type.entry(event_type.into()).or_default().push(Box::new(step));
        self
    }

    /// Changes the state by these events, in order.
    pub fn apply(&self, state: &mut S, events: &[Event]) -> Result<(), UndecodableEvent> {
        for event in events {
            let own = self.by_type.get(&event.event_type).into_iter().flatten();
            for step in own.chain(&self.any) {
                step(state, event)?;
            }
        }
        Ok(())
    }

    /// Of what a filter wants, the events that change anything.
    pub(crate) fn wanted(&self, filter: Filter) -> Filter {
        if self.any.is_empty() { filter.only_types(self.by_type.keys()) } else { filter }
    }

    /// Folds what a filter wants of the log up to its head, and keeps nothing. Answers with the state and with how far
    /// the log was read.
    pub async fn run(&self, store: &Store, filter: Filter) -> Result<(S, Position), FoldError>
    where
        S: Default,
    {
        let filter = self.wanted(filter);
        let (mut state, mut after) = (S::default(), Position::START);
        // Appends that go on would keep it from ever being done.
        let head = store.head().await?.position;
        while after < head {
            let page = store.read(&filter, after, PAGE).await?;
            let within = page.events.partition_point(|event| event.position <= head);
            self.apply(&mut state, &page.events[..within])?;
            if page.is_end {
                break;
            }
            after = page.scanned_to;
        }
        Ok((state, head))
    }
}

impl<S> std::fmt::Debug for Fold<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fold")
            .field("types", &self.by_type.keys())
            .field("any", &!self.any.is_empty())
            .finish_non_exhaustive()
    }
}
