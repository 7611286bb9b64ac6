//! Firing: due timers are handled in units of their own, in turns with the units of events.
//!
//! A timer that is first seen due gets a barrier, the head at that moment, and a turn. It fires once the subscription
//! has moved past its barrier: so what had happened by then is handled, and later events cannot put it off for ever.
//! What is set again while others wait gets a later turn than theirs, however early it was due.

use store::{Position, Timestamp, Tx, messages};

use crate::context::{Context, unchanged};
use crate::cursor::Cursor;
use crate::engine::{Criteria, Engine, EngineError};
use crate::markers::{self, Marked};
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
#[error("timer {key:?}, due {due}, failed{}", if *cap_is_reached { ", and as many are held as may be" } else { "" })]
struct TimerFailed {
    key: String,
    due: Timestamp,
    cap_is_reached: bool,
    #[source]
    source: BoxError,
}

/// The process that ran it was gone before it had come to anything.
#[derive(Debug, thiserror::Error)]
#[error("the process ended while this timer was handled")]
struct ProcessEnded;

impl Engine {
    /// One timer of a subscription, if it is still there.
    pub(crate) async fn timer(&self, id: &str, number: i64) -> Result<Option<TimerRecord>, EngineError> {
        Ok(table::of_number(self.store().database(), id, number).await?)
    }

    /// Counts a timer whose handler has ended its process as failed; says whether it and the subscription were still as
    /// they were seen.
    pub(crate) async fn timer_ended_its_process(
        &self,
        registered: &Registered,
        seen: &Subscription,
        timer: &TimerRecord,
    ) -> Result<bool, EngineError> {
        note_failure(self, registered, seen, timer, ProcessEnded.into()).await
    }

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
            let mut cursor = Cursor::new(self);
            match self.after_a_cut(registered, &seen, &mut cursor).await? {
                None => {}
                Some(Unit::Busy) => continue,
                Some(_) => {
                    done.failed += 1;
                    continue;
                }
            }
            match fire(self, registered, &seen, &cursor, now).await? {
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
        let is_their_turn = cursor.is_checked(self) && !cursor.timers_went;
        let mut barrier = None;
        if is_due && is_their_turn {
            // Whatever comes of it, also an error: the events are next.
            cursor.timers_went = true;
            match fire(self, registered, seen, cursor, now).await? {
                Look::Behind(position) => barrier = Some(position),
                // Somebody else has fired them meanwhile.
                Look::Nothing => return Ok(Step::Busy),
                Look::Busy => {
                    // Somebody else's marker may be in the way.
                    cursor.is_to_be_checked();
                    return Ok(Step::Busy);
                }
                Look::Stalled(why) => return Ok(Step::Stalled(why)),
                Look::Fired(_) => {
                    cursor.takes_more(self.settings().unit_events);
                    return Ok(Step::Moved(0));
                }
                Look::Failed(_) => return Ok(Step::Moved(0)),
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

/// Runs one unit of timers that are due at `now`, of a subscription that has looked as far as the cursor says.
async fn fire(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    cursor: &Cursor,
    now: Timestamp,
) -> Result<Look, EngineError> {
    let database = engine.store().database();
    let handled = cursor.read_from(seen);
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
    // What failed before is tried alone, and marked as what comes after an end without a goodbye: it may end the process.
    let was_tried = |record: &TimerRecord| record.timer.attempt > 0;
    let is_marked = cursor.care.is_some() || was_tried(first);
    let alone = due.iter().position(was_tried).map_or(ready, |tried| tried.max(1));
    let unit = &due[..ready.min(alone).min(cursor.care.unwrap_or(ready)).max(1)];
    if !is_marked {
        return fire_in_parts(engine, registered, seen, unit).await;
    }
    if !markers::mark(database, seen, Marked::Timers(first.number), unit.len()).await? {
        return Ok(Look::Busy);
    }
    let look = fire_in_parts(engine, registered, seen, unit).await?;
    markers::unmark(database, &seen.id).await?;
    Ok(look)
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
            Part::Committed { .. } => done += part.len(),
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
    // What one takes back must not fire beside it: they are done again in smaller parts.
    if part.len() > 1 && planned.timers.changes_a_later_one_of(&timers) {
        tx.rollback().await;
        return Ok(Part::Failed("a timer changes one that is due with it".into()));
    }
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
    let chain = messages(&*error);
    let why = chain.join(": ");
    let mut tx = engine.store().begin().await?;
    // Patiently: the connection of a handler that was cut short may not be closed yet.
    let claimed = match records::claim_patiently(&mut tx, &seen.id).await? {
        Claim::Held(subscription, _) => Some(*subscription),
        Claim::Busy | Claim::Gone => None,
    };
    let (stops, cap_is_reached) = match registered.definition.poison {
        _ if next_retry.is_some() => (false, false),
        Poison::Stop => (true, false),
        Poison::Park { cap_count, .. } => {
            let is_reached = table::holds(&mut tx, &seen.id, cap_count).await?;
            (is_reached, is_reached)
        }
    };
    // Where the subscription stops, its timer is as due as it was.
    let try_at = if stops { Some(now) } else { next_retry };
    let subscription = match claimed {
        Some(subscription)
            if (!stops || unchanged(seen, &subscription))
                && table::note_failure(&mut tx, failed, &chain, try_at).await? =>
        {
            subscription
        }
        _ => {
            tx.rollback().await;
            return Ok(false);
        }
    };
    if stops {
        let error = TimerFailed { key: key.clone(), due: *due, cap_is_reached, source: error };
        let none = &RetryStrategy::None;
        unit::fail_claimed(engine, none, tx, subscription, FailsAt::Nowhere, &error, now).await?;
        return Ok(true);
    }
    if try_at.is_none() {
        let line = format!("timer {key:?}, due {due}, is held: {why}");
        records::note(&mut tx, &subscription, now, &[line], engine.who()).await?;
    }
    tx.commit().await?;
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
