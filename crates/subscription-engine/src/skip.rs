//! Skipping: an operator decides that one event is never handled. Only the very next one can be named, so that
//! nothing is skipped by a slip, and the history keeps who did it and why.

use store::{Event, Position, ReadError};

use crate::context::unchanged;
use crate::engine::{Engine, EngineError, Outcome, refuse_inside_unit};
use crate::lifecycle::no_code;
use crate::records;
use crate::subscriber::Registered;
use crate::subscription::{FailedEvent, Resume, State, Status, Subscription, Transition, next};

/// The next event that a subscription wants.
enum Next {
    Event(FailedEvent),
    /// There is one, but it cannot be read.
    Unreadable(Position),
    None,
}

impl Engine {
    /// Moves a subscription past the event at which it failed, or past the next one that it wants, without handling
    /// it. One that is in error goes on. Every other position is refused.
    pub async fn skip(&self, id: &str, position: Position, reason: &str) -> Result<Outcome, EngineError> {
        refuse_inside_unit()?;
        let refused = |why: String| Ok(Outcome::Refused { why });
        if reason.trim().is_empty() {
            return refused("nothing is skipped without a reason".to_owned());
        }
        let Some(seen) = records::load(self.store().database(), id).await? else {
            return refused("there is no such subscription".to_owned());
        };
        let Some(registered) = self.registered(id) else { return Ok(no_code(&seen)) };
        if seen.state.resume() == Resume::New {
            return refused("it is not set up yet".to_owned());
        }
        if let Status::Finished | Status::Detached = seen.state.status() {
            return refused(format!("it is {} and handles nothing", seen.state.status()));
        }
        if let Some(bad) = self.bad_checkpoint_of(id).await? {
            return refused(bad.to_string());
        }
        let (at, what) = match self.next_for(registered, &seen).await? {
            Next::Event(event) => (event.position, format!("{} {}", event.event_type, event.id)),
            Next::Unreadable(at) => (at, "unreadable".to_owned()),
            Next::None => return refused("no event is waiting for it".to_owned()),
        };
        if at != position {
            return refused(format!("only the next event can be skipped, and that is at position {at}"));
        }
        let now = self.clock().now().await?;
        let (mut tx, subscription, _) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(outcome),
        };
        if !unchanged(&seen, &subscription) {
            tx.rollback().await;
            return Ok(Outcome::Busy);
        }
        let from = subscription.state.status();
        let mut subscription = Subscription { changed_at: now, ..subscription.moved_to(position) };
        if let State::Error { .. } = subscription.state {
            subscription.state = next(&subscription.state, Transition::Reactivate)?;
        }
        let why = format!("skipped position {position} ({what}): {reason}");
        records::save(&mut tx, &subscription, from, &why, self.who()).await?;
        tx.commit().await?;
        self.store().announce();
        tracing::warn!(subscription = id, position = position.0, "{id} {why}");
        Ok(Outcome::Skipped { position, to: subscription.state.status() })
    }

    async fn next_for(&self, registered: &Registered, seen: &Subscription) -> Result<Next, EngineError> {
        let mut from = seen.read_from();
        loop {
            let page = match self.store().read(&registered.definition.filter, from, 1).await {
                Ok(page) => page,
                Err(ReadError::BadRow { position, .. }) => return Ok(Next::Unreadable(position)),
                Err(error) => return Err(error.into()),
            };
            match page.events.first() {
                Some(event) => return Ok(Next::Event(FailedEvent::from(event as &Event))),
                None if page.is_end => return Ok(Next::None),
                None => from = page.scanned_to,
            }
        }
    }
}
