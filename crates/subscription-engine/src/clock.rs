//! Moving the manual clock of a log in test mode, and waiting until everything has caught up with it.

use std::time::Duration;

use store::{ClockError, Timestamp};
use tokio::time::Instant;

use crate::engine::{Criteria, Engine, EngineError};
use crate::subscription::State;

/// How long a look at whether everything has caught up is apart from the next.
const LOOK: Duration = Duration::from_millis(20);

/// Why the clock could not be moved, or not waited for.
#[derive(Debug, thiserror::Error)]
pub enum ClockAdvanceError {
    /// It could not be set.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Something did not catch up in time.
    #[error("the time is {now}, but {lagging} did not catch up within {}", humantime::format_duration(*.waited))]
    TimedOut {
        /// The time that the clock shows.
        now: Timestamp,
        /// Who did not.
        lagging: String,
        /// How long was waited.
        waited: Duration,
    },
}

impl Engine {
    /// Sets the manual clock, stopping at every instant at which something is due on the way, and returns
    /// when nothing lags and nothing is due. Where a worker runs it does the work; else it is done here.
    pub async fn set_clock(&self, target: Timestamp, patience: Duration) -> Result<(), ClockAdvanceError> {
        let start = Instant::now();
        if !self.clock().is_manual() {
            return Err(ClockError::NotInTestMode.into());
        }
        loop {
            self.settle(start, patience).await?;
            let now = self.clock().now().await.map_err(EngineError::from)?;
            match self.next_due(now).await?.filter(|due| *due < target) {
                Some(due) => self.clock().set(due).await?,
                None => break,
            }
        }
        self.clock().set(target).await?;
        self.settle(start, patience).await
    }

    /// The first instant after now at which something is to be tried again, or a timer or an effect is due.
    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, EngineError> {
        let subscriptions = self.select(&Criteria::all()).await?;
        let due = subscriptions.iter().filter_map(|subscription| match subscription.state {
            _ if self.registered(&subscription.id).is_none() => None,
            State::Error { next_retry, .. } => next_retry,
            State::Active => subscription.next_timer,
            _ => None,
        });
        let due = due.filter(|due| *due > now).min();
        let effect = self.next_effect_due(&Criteria::all(), now).await?;
        Ok(due.into_iter().chain(effect).min())
    }

    /// Returns when no subscription lags and no retry is due.
    async fn settle(&self, start: Instant, patience: Duration) -> Result<(), ClockAdvanceError> {
        let mut wake = self.store().wake();
        loop {
            wake.arm();
            let unattended = self.unattended().await?;
            if unattended.ids.as_ref().is_some_and(|ids| !ids.is_empty()) {
                self.catch_up(&unattended).await?;
            }
            let lagging = self.lagging().await?;
            if lagging.is_empty() {
                return Ok(());
            }
            if start.elapsed() >= patience {
                let now = self.clock().now().await.map_err(EngineError::from)?;
                let lagging = lagging.join(", ");
                return Err(ClockAdvanceError::TimedOut { now, lagging, waited: patience });
            }
            wake.wait(LOOK).await;
        }
    }

    /// The subscriptions that no live worker moves.
    async fn unattended(&self) -> Result<Criteria, EngineError> {
        let workers = self.live_workers().await?;
        let mut subscriptions = self.select(&Criteria::all()).await?;
        subscriptions.retain(|subscription| !workers.iter().any(|worker| worker.moves(subscription)));
        let ids = subscriptions.into_iter().map(|subscription| subscription.id).collect();
        Ok(Criteria { ids: Some(ids), groups: None })
    }

    /// The subscriptions of this program that have something to do right now.
    async fn lagging(&self) -> Result<Vec<String>, EngineError> {
        let head = self.store().head().await?.position;
        let now = self.clock().now().await?;
        let mut lagging = self.select(&Criteria::all()).await?;
        lagging.retain(|subscription| {
            self.registered(&subscription.id).is_some()
                && match &subscription.state {
                    State::New | State::Booting => true,
                    State::Active => {
                        subscription.read_from() < head || subscription.next_timer.is_some_and(|at| at <= now)
                    }
                    State::Error { next_retry, .. } => next_retry.is_some_and(|at| at <= now),
                    _ => false,
                }
        });
        let mut lagging: Vec<String> = lagging.into_iter().map(|subscription| subscription.id).collect();
        let with_effects = self.with_effects_due(now).await?;
        lagging.extend(with_effects.into_iter().filter(|id| !lagging.contains(id)).collect::<Vec<_>>());
        Ok(lagging)
    }
}
