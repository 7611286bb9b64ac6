//! Read your writes: waiting until a subscription has handled everything up to a position.
//!
//! Whoever has just appended, and is about to read what a projector makes of it, waits here. The answer is typed, so
//! that nobody mistakes a time-out, or a subscription that will never get there, for a read model that is up to date.

use std::time::Duration;

use store::{Position, ReadError};
use tokio::time::Instant;

use crate::dead_letters;
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
    /// It has moved past there, and handled everything that it wants but for what it has set aside.
    Passed {
        /// Where it stands.
        position: Position,
        /// How many dead letters of events up to there are open: what they say is not in the read model.
        set_aside: u64,
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

/// How far a wait has looked beyond where the subscription stands.
#[derive(Debug, Default)]
struct Looked {
    from: Position,
    to: Position,
    /// The first event that it wants after that, once it is found.
    wants: Option<Position>,
}

impl Looked {
    /// Where to look on; from where the subscription stands, once it has moved.
    fn read_from(&mut self, stands: Position) -> Position {
        if self.from != stands {
            *self = Self { from: stands, to: stands, wants: None };
        }
        self.to.max(stands)
    }
}

impl Engine {
    /// Waits until a subscription has moved past a position, but not longer than this. What it has handled of that
    /// is everything that it wants, unless it has dead letters: see [`Waited::Passed`]. Answers at once if it is stopped and would have to be set going by a person.
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
        let mut looked = Looked::default();
        loop {
            wake.arm();
            let seen = records::load(self.store().database(), id).await?;
            let stands = seen.as_ref().map_or(Position::START, Subscription::read_from);
            match &seen {
                None if self.registered(id).is_none() => return Ok(Waited::Unknown),
                // A worker discovers it.
                None => {}
                Some(seen) => {
                    if let Some(waited) = self.waited(seen, position, &mut looked).await? {
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
    async fn waited(
        &self,
        seen: &Subscription,
        position: Position,
        looked: &mut Looked,
    ) -> Result<Option<Waited>, EngineError> {
        let stands = seen.read_from();
        if seen.state.resume() != Resume::New
            && (stands >= position || self.wants_nothing_up_to(seen, position, looked).await?)
        {
            let set_aside = match seen.letters.open {
                0 => 0,
                _ => dead_letters::count_up_to(self.store().database(), &seen.id, position).await?,
            };
            return Ok(Some(Waited::Passed { position: stands, set_aside }));
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

    /// Whether everything up to there is nothing to it: its position is written down only now and then. One page is
    /// looked at each time, from where the last one ended.
    async fn wants_nothing_up_to(
        &self,
        seen: &Subscription,
        position: Position,
        looked: &mut Looked,
    ) -> Result<bool, EngineError> {
        let Some(registered) = self.registered(&seen.id) else { return Ok(false) };
        let after = looked.read_from(seen.read_from());
        // What it wants next is known, and it has not moved.
        if let Some(next) = looked.wants {
            return Ok(next > position);
        }
        match self.store().read(&registered.definition.filter, after, 1).await {
            Ok(page) => {
                looked.to = page.scanned_to;
                looked.wants = page.events.first().map(|next| next.position);
                Ok(looked.wants.map_or(page.scanned_to >= position, |next| next > position))
            }
            // It will fail there.
            Err(ReadError::BadRow { position: at, .. }) => Ok(at > position),
            Err(error) => Err(error.into()),
        }
    }
}
