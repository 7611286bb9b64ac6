//! What an operator sees of timers and decides on them.
//!
//! Each decision is one transaction under the claim of the subscription, and stands in its history.

use store::Timestamp;

use crate::engine::{Engine, EngineError, Outcome};
use crate::records;
use crate::timers::{TimerRecord, table};

/// What came of a decision on a timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimerOutcome {
    /// It is done.
    Done,
    /// There is no timer of this key for which that could be done.
    NotThere,
    /// The subscription was not to be had, and why.
    Not(Outcome),
}

enum Decision {
    Retry,
    Discard,
}

impl Engine {
    /// The timers of a subscription that have not fired, the first due first, after the instant and number of one of
    /// them.
    pub async fn timers(
        &self,
        id: &str,
        after: Option<(Timestamp, i64)>,
        limit: u32,
    ) -> Result<Vec<TimerRecord>, EngineError> {
        Ok(table::list(self.store().database(), id, after, i64::from(limit)).await?)
    }

    /// Has a timer tried at once that has failed, whether it is held or waits.
    pub async fn retry_timer(&self, id: &str, key: &str, reason: &str) -> Result<TimerOutcome, EngineError> {
        self.decide(id, key, &Decision::Retry, reason).await
    }

    /// Gives a timer up: it never fires.
    pub async fn discard_timer(
        &self,
        id: &str,
        key: &str,
        reason: &str,
    ) -> Result<TimerOutcome, EngineError> {
        self.decide(id, key, &Decision::Discard, reason).await
    }

    async fn decide(
        &self,
        id: &str,
        key: &str,
        decision: &Decision,
        reason: &str,
    ) -> Result<TimerOutcome, EngineError> {
        let now = self.clock().now().await?;
        let (mut tx, subscription, _) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(TimerOutcome::Not(outcome)),
        };
        let (is_done, what) = match decision {
            Decision::Retry => (table::retry(&mut tx, id, key).await?, "had timer tried again"),
            Decision::Discard => (table::discard(&mut tx, id, key).await?, "discarded timer"),
        };
        if !is_done {
            tx.rollback().await;
            return Ok(TimerOutcome::NotThere);
        }
        let line = format!("{what} {key:?}: {reason}");
        records::note(&mut tx, &subscription, now, &[line], self.who()).await?;
        tx.commit().await?;
        self.store().announce();
        Ok(TimerOutcome::Done)
    }
}
