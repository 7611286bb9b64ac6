//! Read your writes: waiting until a subscription has handled everything up to a position.
//!
//! Whoever has just appended, and is about to read what a projector makes of it, waits here. The answer is typed, so
//! that nobody mistakes a time-out, or a subscription that will never get there, for a read model that is up to date.

use std::time::Duration;

use store::{Position, ReadError};
use tokio::time::Instant;

use crate::engine::{Criteria, Engine, EngineError, refuse_inside_unit};
use crate::records;
use crate::standing::Standing;
use crate::subscription::{Resume, State, Subscription};

/// How often it is looked, at first and at most: positions move without a word to anybody.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const RARE_LOOK: Duration = Duration::from_millis(100);

/// What came of waiting for a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It has handled everything that it wants up to there.
    Passed {
        /// Where it stands.
        position: Position,
    },
    /// It has not, within the time.
    TimedOut {
        /// Where it stands.
        position: Position,
        /// How it gets on.
        standing: Standing,
    },
    /// It has not, and will not by itself.
    Stopped {
        /// Where it stands.
        position: Position,
        /// Why.
        why: String,
    },
    /// There is no such subscription.
    Unknown,
}

impl Engine {
    /// Waits until a subscription has handled everything that it wants up to a position, but not longer than this.
    /// Answers at once if it is stopped and would have to be set going by a person.
    pub async fn wait_for(
        &self,
        id: &str,
        position: Position,
        at_most: Duration,
    ) -> Result<Waited, EngineError> {
        refuse_inside_unit()?;
        let start = Instant::now();
        let mut wake = self.store().wake();
        let mut pause = FIRST_LOOK;
        loop {
            wake.arm();
            let seen = records::load(self.store().database(), id).await?;
            let stands = seen.as_ref().map_or(Position::START, Subscription::read_from);
            match &seen {
                None if self.registered(id).is_none() => return Ok(Waited::Unknown),
                // A worker discovers it.
                None => {}
                Some(seen) => {
                    if let Some(waited) = self.waited(seen, position).await? {
                        return Ok(waited);
                    }
                }
            }
            let left = at_most.saturating_sub(start.elapsed());
            if left.is_zero() {
                let overview = self.status(&Criteria::id(id)).await?.pop();
                let standing = overview.map_or(Standing::Idle, |overview| overview.standing);
                return Ok(Waited::TimedOut { position: stands, standing });
            }
            wake.wait(pause.min(left)).await;
            pause = (pause * 2).min(RARE_LOOK);
        }
    }

    /// What is to be said already, if anything is.
    async fn waited(&self, seen: &Subscription, position: Position) -> Result<Option<Waited>, EngineError> {
        let stands = seen.read_from();
        if seen.state.resume() != Resume::New
            && (stands >= position || self.wants_nothing_up_to(seen, position).await?)
        {
            return Ok(Some(Waited::Passed { position: stands }));
        }
        let why = match &seen.state {
            State::Paused { .. } | State::Detached { .. } | State::Finished => {
                format!("it is {}", seen.state.status())
            }
            State::Error { failure, next_retry: None, .. } => {
                format!("it failed and gave up: {}", failure.chain.join(": "))
            }
            State::New | State::Booting | State::Active | State::Error { .. } => return Ok(None),
        };
        Ok(Some(Waited::Stopped { position: stands, why }))
    }

    /// Whether everything up to there is nothing to it: its position is written down only now and then.
    async fn wants_nothing_up_to(
        &self,
        seen: &Subscription,
        position: Position,
    ) -> Result<bool, EngineError> {
        let Some(registered) = self.registered(&seen.id) else { return Ok(false) };
        match self.store().read(&registered.definition.filter, seen.read_from(), 1).await {
            Ok(page) => Ok(match page.events.first() {
                Some(next) => next.position > position,
                None => page.scanned_to >= position,
            }),
            // It will fail there.
            Err(ReadError::BadRow { position: at, .. }) => Ok(at > position),
            Err(error) => Err(error.into()),
        }
    }
}
