//! What is in the way of a subscription though nobody failed: a lock, a lost connection, a full disk.
//!
//! The worker that meets it goes on trying and writes down why, so that people see more than a position that does not
//! move. It says nothing about the subscription's state: whoever moves on takes it away.

use std::collections::HashMap;
use std::time::Duration;

use store::{Database, Timestamp, Tx, messages};

use crate::engine::{Engine, WORKER_SILENCE};

/// Writing it down must not hold up what it is about.
const NOTE_LIMIT: Duration = Duration::from_secs(1);
const FORGET: &str = "DELETE FROM herald_subscription_stalls WHERE subscription_id = $1";

/// Something in the way, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) why: String,
    /// Since how long it is met …
    pub(crate) since: Duration,
    /// … and how long ago it was last met.
    pub(crate) last: Duration,
}

/// What one worker knows of what is in the way of one subscription.
#[derive(Debug)]
pub(crate) struct Obstacle {
    times: u32,
    may_be_noted: bool,
}

impl Obstacle {
    /// None that we know of; a worker that was killed may have left a note.
    pub(crate) fn perhaps_left_behind() -> Self {
        Self { times: 0, may_be_noted: true }
    }

    /// It is in the way. What is gone at the next try is not worth a write.
    pub(crate) async fn is_met(&mut self, engine: &Engine, id: &str, why: &str) {
        self.times = self.times.saturating_add(1);
        if self.times < 2 {
            return;
        }
        self.may_be_noted = true;
        bounded(id, note(engine.store().database(), id, why)).await;
    }

    /// Nothing is in the way any more.
    pub(crate) async fn is_gone(&mut self, engine: &Engine, id: &str) {
        self.times = 0;
        if std::mem::take(&mut self.may_be_noted) {
            self.may_be_noted = !bounded(id, forget(engine.store().database(), id)).await;
        }
    }
}

/// Does it if that is possible right now; what is in the way may be in the way of this as well.
async fn bounded(id: &str, work: impl Future<Output = sqlx::Result<()>>) -> bool {
    match tokio::time::timeout(NOTE_LIMIT, work).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            let why = messages(&error).join(": ");
            tracing::debug!(subscription = id, "could not write down what is in the way of {id}: {why}");
            false
        }
        Err(_) => false,
    }
}

/// Writes down what is in the way of somebody who cannot do so, if that is possible right now.
pub(crate) async fn note_at_once(engine: &Engine, id: &str, why: &str) {
    bounded(id, note(engine.store().database(), id, why)).await;
}

/// Takes that back.
pub(crate) async fn take_back(engine: &Engine, id: &str) {
    bounded(id, forget(engine.store().database(), id)).await;
}

async fn note(database: &Database, id: &str, why: &str) -> sqlx::Result<()> {
    let Some((now,)) = database.fetch_optional::<(Timestamp,)>("SELECT {now}", ()).await? else {
        return Ok(());
    };
    // What nobody has met for so long was left behind by a worker that was killed; this is something new.
    let silence = i64::try_from(WORKER_SILENCE.as_micros()).unwrap_or(i64::MAX);
    let lately = Timestamp::from_micros(now.as_micros().saturating_sub(silence));
    let sql = "INSERT INTO herald_subscription_stalls AS stall (subscription_id, why, since, met_at)
               VALUES ($1, $2, $3, $3)
               ON CONFLICT (subscription_id) DO UPDATE
                  SET why = excluded.why, met_at = excluded.met_at,
                      since = CASE WHEN stall.met_at < $4 THEN excluded.since ELSE stall.since END";
    database.execute(sql, (id, why, now, lately)).await?;
    Ok(())
}

/// The subscription is gone, or begins anew: so is what was in its way.
pub(crate) async fn forget_removed(tx: &mut Tx, id: &str) -> sqlx::Result<()> {
    tx.execute(FORGET, (id,)).await.map(drop)
}

async fn forget(database: &Database, id: &str) -> sqlx::Result<()> {
    database.execute(FORGET, (id,)).await.map(drop)
}

/// What workers met lately, by subscription.
pub(crate) async fn met(database: &Database) -> sqlx::Result<HashMap<String, Met>> {
    let sql = "SELECT subscription_id, why, since, met_at, {now} FROM herald_subscription_stalls";
    let rows: Vec<(String, String, Timestamp, Timestamp, Timestamp)> = database.fetch_all(sql, ()).await?;
    let met = rows.into_iter().map(|(id, why, since, met_at, now)| {
        (id, Met { why, since: now.since(since), last: now.since(met_at) })
    });
    // What is older was left behind by a worker that was killed.
    Ok(met.filter(|(_, met)| met.last < WORKER_SILENCE).collect())
}
