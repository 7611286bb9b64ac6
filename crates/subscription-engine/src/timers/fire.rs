//! Firing: due timers are handled in units of their own, in turns with the units of events.
//!
//! A timer that is first seen due gets a barrier, the head at that moment, and a turn. It fires once the subscription
//! has moved past its barrier: so what had happened by then is handled, and later events cannot put it off for ever.
//! What is set again while others wait gets a later turn than theirs, however early it was due.

use store::{Position, Timestamp, Tx, messages};

use crate::context::Context;
use crate::cursor::Cursor;
use crate::engine::{Criteria, Engine, EngineError};
use crate::poison::Poison;
use crate::progress::Step;
use crate::records::{self, Claim};
use crate::retry::RetryStrategy;
use crate::subscriber::{BoxError, Registered};
use crate::subscription::{State, Subscription};
use crate::timers::{Timer, TimerRecord, table};
use crate::unit::{self, FailsAt, Part, Unit, bounded, classify, not_begun};

/// So many timers are given their turn at once; the others when none of these is left. It bounds the one statement.
const SEEN_AT_ONCE: i64 = 10_000;

/// What came of looking for due timers of one subscription.
#[derive(Debug)]
enum Look {
    /// So many fired.
    Fired(usize),
    /// One failed; so many had fired before it.
    Failed(usize),
    /// They wait for the events up to here.
    Behind(Position),
    /// None is due.
    Nothing,
    /// Another worker has the subscription, or somebody changed it meanwhile.
    Busy,
    /// Something passing is in the way.
    Stalled(String),
}

/// What [`Engine::fire_timers`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FiredTimers {
    /// How many fired.
    pub fired: usize,
    /// How many failed.
    pub failed: usize,
}

impl FiredTimers {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a subscription stopped at a timer.
#[derive(Debug, thiserror::Error)]
#[error("timer {key:?}, due {due}, failed")]
struct TimerFailed {
    key: String,
    due: Timestamp,
    #[source]
    source: BoxError,
}

impl Engine {
    /// Fires due timers of the active subscriptions that meet the criteria: one unit of each at most, so that what
    /// sets itself again does not go on for ever. [`Engine::catch_up`] and workers do so until none is due.
    pub async fn fire_timers(&self, criteria: &Criteria) -> Result<FiredTimers, EngineError> {
        let mut done = FiredTimers::default();
        let now = self.clock().now().await?;
        for seen in self.select(criteria).await? {
            let is_due = seen.state == State::Active && seen.next_timer.is_some_and(|at| at <= now);
            let Some(registered) = self.registered(&seen.id).filter(|_| is_due) else { continue };
            // Where it stands does not fit the log; the next unit of events stops it and says so.
            if self.bad_checkpoint_of(&seen.id).await?.is_some() {
                continue;
            }
            match fire(self, registered, &seen, seen.read_from(), now).await? {
                Look::Fired(fired) => done.fired += fired,
                Look::Failed(fired) => {
                    done.fired += fired;
                    done.failed += 1;
                }
                Look::Behind(_) | Look::Nothing | Look::Busy | Look::Stalled(_) => {}
            }
        }
        Ok(done)
    }

    /// One step of an active subscription. Its timers and its events take turns, so that neither can keep the others
    /// from moving.
    pub(crate) async fn step_in_turns(
        &self,
        seen: &Subscription,
        cursor: &mut Cursor,
        save_now: bool,
    ) -> Result<Step, EngineError> {
        let (Some(next), Some(registered)) = (seen.next_timer, self.registered(&seen.id)) else {
            cursor.timers_went = false;
            return self.step_of(seen, cursor, save_now, usize::MAX).await;
        };
        let now = self.clock().now().await?;
        let is_due = next <= now;
        let is_their_turn = cursor.is_checked && !cursor.timers_went;
        let mut barrier = None;
        if is_due && is_their_turn {
            // Whatever comes of it, also an error: the events are next.
            cursor.timers_went = true;
            match fire(self, registered, seen, cursor.read_from(seen), now).await? {
                Look::Behind(position) => barrier = Some(position),
                // Nothing: somebody else has fired them meanwhile.
                Look::Busy | Look::Nothing => return Ok(Step::Busy),
                Look::Stalled(why) => return Ok(Step::Stalled(why)),
                Look::Fired(_) | Look::Failed(_) => return Ok(Step::Moved(0)),
            }
        }
        cursor.timers_went = false;
        Ok(match self.step_of(seen, cursor, save_now, usize::MAX).await? {
            Step::Idle(_) if !is_due => Step::Idle(Some(next)),
            // The events are done: look again at once if timers were left out, or wait for nothing else any more.
            Step::Idle(_)
                if !is_their_turn || barrier.is_some_and(|barrier| barrier <= cursor.read_from(seen)) =>
            {
                Step::Moved(0)
            }
            step => step,
        })
    }

    /// Timers end with what they belong to; the history says so.
    pub(crate) async fn forget_timers(&self, tx: &mut Tx, id: &str, why: String) -> sqlx::Result<String> {
        let count = table::forget(tx, id).await?;
        Ok(if count == 0 { why } else { format!("{why} (and forgot {count} timers)") })
    }
}

/// Runs one unit of timers that are due at `now`, of a subscription that has handled everything up to `handled`.
async fn fire(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    handled: Position,
    now: Timestamp,
) -> Result<Look, EngineError> {
    let database = engine.store().database();
    let limit = i64::try_from(engine.settings().unit_events).unwrap_or(i64::MAX);
    let mut due = table::seen_due(database, &seen.id, now, limit).await?;
    if due.is_empty() {
        if !see_due(engine, seen, now).await? {
            return Ok(Look::Busy);
        }
        due = table::seen_due(database, &seen.id, now, limit).await?;
    }
    let Some(first) = due.first() else { return Ok(Look::Nothing) };
    // Later turns have later barriers.
    let is_behind = |record: &TimerRecord| record.barrier.is_none_or(|barrier| barrier > handled);
    if is_behind(first) {
        return Ok(first.barrier.map_or(Look::Nothing, Look::Behind));
    }
    let ready = due.iter().position(is_behind).unwrap_or(due.len());
    fire_in_parts(engine, registered, seen, &due[..ready]).await
}

/// Gives due timers their turn and their barrier; says whether the subscription was to be had.
async fn see_due(engine: &Engine, seen: &Subscription, now: Timestamp) -> Result<bool, EngineError> {
    // After the look at the clock: the barrier may be later than need be, never earlier.
    let head = engine.store().head().await?.position;
    let _passage = engine.gate().pass().await;
    let mut tx = engine.store().begin().await?;
    match records::claim(&mut tx, &seen.id).await? {
        Claim::Held(subscription, _) if subscription.state == State::Active => {}
        _ => {
            tx.rollback().await;
            return Ok(false);
        }
    }
    table::see_due(&mut tx, &seen.id, now, head, SEEN_AT_ONCE).await?;
    tx.commit().await?;
    Ok(true)
}

/// Fires timers in one transaction; where that fails in halves, until a single one is left.
async fn fire_in_parts(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    timers: &[TimerRecord],
) -> Result<Look, EngineError> {
    let (mut done, mut size) = (0, timers.len());
    while done < timers.len() {
        let part = &timers[done..timers.len().min(done + size)];
        match fire_part(engine, registered, seen, part).await? {
            Part::Committed => done += part.len(),
            Part::Failed(_) if part.len() > 1 => size = part.len() / 2,
            Part::Failed(error) => {
                return Ok(if note_failure(engine, registered, seen, &part[0], error).await? {
                    Look::Failed(done)
                } else {
                    Look::Busy
                });
            }
            Part::Busy if done == 0 => return Ok(Look::Busy),
            Part::Stalled(why) if done == 0 => return Ok(Look::Stalled(why)),
            Part::Busy | Part::Stalled(_) => break,
        }
    }
    Ok(Look::Fired(done))
}

async fn fire_part(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    part: &[TimerRecord],
) -> Result<Part, EngineError> {
    let mut context = Context::new(engine, &registered.definition, seen);
    if engine.has_row_locks()
        && let Err(error) = context.tx().await
    {
        return not_begun(error);
    }
    let timers: Vec<Timer> = part.iter().map(|record| record.timer.clone()).collect();
    let writing = context.writing();
    let work = registered.subscriber.on_timer(&timers, &mut context);
    let worked = bounded(engine, &seen.id, writing, work).await;
    let mut context = match unit::undone_if_failed(worked, context).await {
        Ok(context) => context,
        Err(part) => return Ok(part),
    };
    // A handler that wrote nothing has not opened the transaction yet.
    if let Err(error) = context.tx().await {
        return not_begun(error);
    }
    let (Some(mut tx), planned) = context.take() else { return Ok(Part::Busy) };
    // Before those that the handler sets, which may have the same keys.
    match table::take(&mut tx, part).await {
        Ok(true) => unit::finish(engine, seen, tx, planned).await,
        // Another worker was first, or an operator.
        Ok(false) => {
            tx.rollback().await;
            Ok(Part::Busy)
        }
        Err(error) => {
            tx.rollback().await;
            Ok(classify(error.into()))
        }
    }
}

/// What follows when a single timer has failed: it is tried again later, while all others go on; or it is held, or
/// the subscription stops. Says whether the timer and the subscription were still as they were seen.
async fn note_failure(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    failed: &TimerRecord,
    error: BoxError,
) -> Result<bool, EngineError> {
    let Timer { key, due, attempt, .. } = &failed.timer;
    let now = engine.clock().now().await?;
    let next_retry = registered.definition.retry.next_retry(*attempt, now);
    let stops = next_retry.is_none() && registered.definition.poison == Poison::Stop;
    let chain = messages(&*error);
    let why = chain.join(": ");
    let mut tx = engine.store().begin().await?;
    // Patiently: the connection of a handler that was cut short may not be closed yet.
    let claimed = match records::claim_patiently(&mut tx, &seen.id).await? {
        Claim::Held(subscription, _) => Some(*subscription),
        Claim::Busy | Claim::Gone => None,
    };
    // Where the subscription stops, its timer is as due as it was.
    let try_at = if stops { Some(now) } else { next_retry };
    let subscription = match claimed {
        Some(subscription) if table::note_failure(&mut tx, failed, &chain, try_at).await? => subscription,
        _ => {
            tx.rollback().await;
            return Ok(false);
        }
    };
    if try_at.is_none() {
        let line = format!("timer {key:?}, due {due}, is held: {why}");
        records::note(&mut tx, &subscription, now, &[line], engine.who()).await?;
    }
    tx.commit().await?;
    if stops {
        let error = TimerFailed { key: key.clone(), due: *due, source: error };
        let stopped = unit::fail(engine, &RetryStrategy::None, seen, FailsAt::Nowhere, &error).await?;
        return Ok(matches!(stopped, Unit::Failed(_)));
    }
    let id = &seen.id;
    match next_retry {
        Some(at) => tracing::warn!(
            subscription = id,
            attempt,
            "timer {key:?} of {id} failed and is tried again at {at}: {why}"
        ),
        None => tracing::error!(
            subscription = id,
            attempt,
            "timer {key:?} of {id} failed for good and is held: {why}"
        ),
    }
    Ok(true)
}
