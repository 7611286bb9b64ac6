//! Looking back: what stands in the log before the event that is handled.
//!
//! It shows the same whenever the event is handled, today or in a replay years later: nothing at or behind the
//! event's position, and nothing that this unit appends.

use store::{Direction, Event, Filter, Position, Store, StreamName, Tx};

use crate::context::{Cause, ContextError};

/// One read takes so many events.
const PAGE: usize = 1_000;

/// The events before another one; see [`Cause::look_back`].
#[derive(Debug)]
pub struct LookBack<'l> {
    store: &'l Store,
    /// Where the transaction is open it is used, so that a unit never waits for a second connection.
    tx: Option<&'l mut Tx>,
    /// Before here …
    position: Position,
    /// … and this is the stream of the event; not known of a timer's.
    stream: Option<&'l StreamName>,
    filter: Filter,
}

impl Cause<'_, '_> {
    /// Looks at what stands in the log before this event, as far as the filter wants it.
    pub fn look_back(&mut self, filter: Filter) -> LookBack<'_> {
        let (position, stream) = (self.origin.position, self.origin.event.map(|event| &event.stream));
        LookBack { store: self.context.store(), tx: self.context.tx.as_mut(), position, stream, filter }
    }
}

impl LookBack<'_> {
    /// Only in the stream of the event. Where a timer is the cause nothing is found: name the stream in the filter.
    #[must_use]
    pub fn in_its_stream(self) -> Self {
        let filter = match self.stream {
            Some(stream) => self.filter.stream(stream.clone()),
            None => self.filter.types(Vec::<String>::new()),
        };
        Self { filter, ..self }
    }

    /// The first of them.
    pub async fn first(mut self) -> Result<Option<Event>, ContextError> {
        Ok(self.some(Direction::Forwards, 1).await?.into_iter().next())
    }

    /// The last of them: the one nearest to the event.
    pub async fn last(mut self) -> Result<Option<Event>, ContextError> {
        // Where upcasters show one event as several, they come together, the last part first.
        Ok(self.some(Direction::Backwards, 1).await?.into_iter().next())
    }

    /// All of them, oldest first. Where there are more than `at_most` it fails: a decision on a part of the past would
    /// be a wrong one.
    pub async fn all(mut self, at_most: usize) -> Result<Vec<Event>, ContextError> {
        let events = self.some(Direction::Forwards, at_most.saturating_add(1)).await?;
        if events.len() > at_most {
            return Err(ContextError::TooManyBefore { position: self.position, at_most });
        }
        Ok(events)
    }

    /// So many of them, or all, in this direction.
    async fn some(&mut self, direction: Direction, count: usize) -> Result<Vec<Event>, ContextError> {
        let (mut after, mut before) = (Position::START, self.position);
        let mut events = Vec::new();
        while events.len() < count {
            let limit = (count - events.len()).min(PAGE);
            let tx = self.tx.as_deref_mut();
            let page = self.store.read_between(tx, &self.filter, (after, before), direction, limit).await?;
            events.extend(page.events);
            match direction {
                Direction::Forwards => after = page.scanned_to,
                Direction::Backwards => before = page.scanned_to,
            }
            if page.is_end {
                break;
            }
        }
        Ok(events)
    }
}
