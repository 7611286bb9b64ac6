//! Sending a claimed effect, and what each answer means for it.
//!
//! The sending holds no transaction, no lock and no connection; the answer is written down only by whoever still has
//! the claim.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use store::{Timestamp, messages, panic_message};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::effects::claim::Claimed;
use crate::effects::record::{Blocked, Scope, Seen, Verdict, Written, can_fail, rewrite};
use crate::effects::state::Step;
use crate::effects::{Answer, Delivery, Effect, EffectRecord, EffectState, Happened, InDoubt};
use crate::engine::{Engine, EngineError, FaultPoint};
use crate::retry::RetryStrategy;
use crate::subscription::State;

/// A receiver that asks to be left alone is asked again after this at the earliest, and at the latest after that.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// What is blocked and cannot stop its subscription is tried again after this.
const BLOCKED_PAUSE: Duration = Duration::from_secs(300);
/// The wait after an answer could not be written down, at first and at most.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// So often it is tried to write an answer down when the worker is asked to stop.
const LAST_TRIES: u32 = 3;

/// Sends a claimed effect and writes its answer down.
pub(super) async fn send(
    engine: Engine,
    claimed: Claimed,
    stopping: watch::Receiver<bool>,
) -> Result<(), EngineError> {
    let Claimed { delivery, effect, sending, is_probe, until } = &claimed;
    let deadline = delivery.terms().deadline;
    let answer = attempt(delivery, effect, deadline, *until).await;
    engine.strike(FaultPoint::EffectSent, &effect.subscription_id)?;
    let mut back_off = FIRST_BACK_OFF;
    let mut tries = 0;
    loop {
        tries += 1;
        let why = match write_down(&engine, delivery, effect, sending.claim, *is_probe, &answer).await {
            Ok(Written::Busy) => "a worker has its subscription".to_owned(),
            Ok(written) => {
                if !matches!(written, Written::Saved(_)) {
                    tracing::warn!(effect = %effect.id, "the answer of effect {} came too late: {answer:?}", effect.id);
                }
                return Ok(());
            }
            Err(error @ EngineError::Injected(_)) => return Err(error),
            Err(error) => messages(&error).join(": "),
        };
        let is_last = Instant::now() + back_off >= *until || (*stopping.borrow() && tries >= LAST_TRIES);
        if is_last {
            tracing::error!(
                effect = %effect.id,
                "could not write down the answer of effect {}, which is in doubt now: {answer:?}: {why}",
                effect.id
            );
            return Ok(());
        }
        tracing::warn!(effect = %effect.id, "could not write down the answer of effect {}: {why}; trying again", effect.id);
        tokio::time::sleep(back_off).await;
        back_off = (back_off * 2).min(LONGEST_BACK_OFF);
    }
}

/// Sends within the deadline, unless the claim would not outlast it.
async fn attempt(
    delivery: &Arc<dyn Delivery>,
    effect: &Effect,
    deadline: Duration,
    until: Instant,
) -> Answer {
    if Instant::now() + deadline > until {
        // The commit took that long: others may think soon that we have died.
        return Answer::Retry { why: "its claim was nearly over before it was sent".to_owned(), after: None };
    }
    let work = AssertUnwindSafe(delivery.send(effect)).catch_unwind();
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            Answer::Unknown { why: format!("the delivery panicked: {}", panic_message(&*panic)) }
        }
        Err(_) => Answer::Unknown {
            why: format!("there was no answer within {}", humantime::format_duration(deadline)),
        },
    }
}

/// Writes down what came of an attempt whose claim has run out: nobody knows.
pub(super) async fn give_up_on(
    engine: &Engine,
    delivery: &Arc<dyn Delivery>,
    expired: &EffectRecord,
) -> Result<(), EngineError> {
    let EffectState::Sending { sending, .. } = expired.state else { return Ok(()) };
    let effect = &expired.effect;
    let why = format!(
        "attempt {} began at {} and no answer was written down: its process may have died before or after sending",
        effect.attempt, sending.since
    );
    tracing::warn!(effect = %effect.id, "effect {} is in doubt: {why}", effect.id);
    let answer = Answer::Unknown { why };
    write_down(engine, delivery, effect, sending.claim, false, &answer).await?;
    Ok(())
}

async fn write_down(
    engine: &Engine,
    delivery: &Arc<dyn Delivery>,
    effect: &Effect,
    claim: Uuid,
    is_probe: bool,
    answer: &Answer,
) -> Result<Written, EngineError> {
    let scope = match answer {
        Answer::Blocked { .. } => Scope::Subscription,
        Answer::Done { .. } if is_probe => Scope::Owner,
        _ => Scope::Effect,
    };
    let terms = delivery.terms();
    let subscriber = engine.registered(&effect.subscription_id);
    let of_subscription = subscriber.map_or_else(RetryStrategy::default, |of| of.definition.retry.clone());
    rewrite(engine, effect, scope, |seen| {
        let record = seen.record;
        let is_mine = matches!(record.state, EffectState::Sending { sending, .. } if sending.claim == claim);
        // Taken from us as in doubt, but not tried again since: now it is known.
        let is_late = !is_mine
            && record.effect.attempt == effect.attempt
            && matches!(record.state, EffectState::Pending | EffectState::Held { .. })
            && matches!(answer, Answer::Done { .. });
        if !is_mine && !is_late {
            return None;
        }
        let mut verdict = match answer {
            Answer::Done { detail } => {
                let happened = Happened::Done { detail: detail.clone() };
                verdict(record, Step::Finish, "done", detail, Some(happened))
            }
            Answer::Failed { why } => {
                verdict(record, Step::Fail, "failed", why, Some(Happened::Failed { why: why.clone() }))
            }
            Answer::Retry { why, after: None } => tried_in_vain(seen, &terms.retry, why, Step::Fail),
            Answer::Retry { why, after: Some(after) } => {
                let until = seen.now.plus((*after).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
                Verdict { leave_alone: Some(until), ..deferred(record, until, why) }
            }
            Answer::Unknown { why } if terms.in_doubt == InDoubt::Resend => {
                tried_in_vain(seen, &terms.retry, why, Step::Doubt)
            }
            Answer::Unknown { why } => in_doubt(record, why.clone()),
            Answer::Blocked { why } => blocked(seen, &of_subscription, why),
        };
        if is_probe && matches!(answer, Answer::Done { .. }) {
            verdict.blocked = Some(Blocked::No);
        }
        Some(verdict)
    })
    .await
}

fn verdict(
    record: &EffectRecord,
    step: Step,
    what: &'static str,
    why: impl Into<String>,
    happened: Option<Happened>,
) -> Verdict {
    Verdict {
        step,
        due_at: record.due_at,
        failures: record.failures,
        what,
        why: why.into(),
        happened,
        leave_alone: None,
        blocked: None,
    }
}

fn deferred(record: &EffectRecord, until: Timestamp, why: &str) -> Verdict {
    let held = matches!(record.state, EffectState::Sending { hold: Some(_), .. });
    let happened = (!held).then(|| Happened::Deferred { until, why: why.to_owned() });
    let what = if held { "held" } else { "deferred" };
    Verdict { due_at: until, ..verdict(record, Step::Defer, what, why, happened) }
}

fn in_doubt(record: &EffectRecord, why: String) -> Verdict {
    let happened = Happened::InDoubt { why: why.clone() };
    verdict(record, Step::Doubt, "in doubt", why, Some(happened))
}

/// Tried again by the strategy; when that is used up it ends in this way.
pub(super) fn tried_in_vain(seen: &Seen<'_>, retry: &RetryStrategy, why: &str, at_last: Step) -> Verdict {
    let record = seen.record;
    match retry.next_retry(record.failures, seen.now) {
        Some(until) => {
            Verdict { failures: record.failures.saturating_add(1), ..deferred(record, until, why) }
        }
        None => {
            let why = format!("gave up after {} further tries: {why}", record.failures);
            if at_last == Step::Doubt {
                return in_doubt(record, why);
            }
            let happened = Happened::Failed { why: why.clone() };
            verdict(record, at_last, "failed", why, Some(happened))
        }
    }
}

/// Nothing counts against the effect, and it stays due; its subscription stops.
fn blocked(seen: &Seen<'_>, retry: &RetryStrategy, why: &str) -> Verdict {
    let record = seen.record;
    if can_fail(seen.subscription) {
        let before = seen.owner.filter(|owner| owner.blocked_kind.as_deref() == Some(&record.effect.kind));
        let times = before.map_or(0, |owner| u32::try_from(owner.blocked_times).unwrap_or(0));
        let next_retry = retry.next_retry(times, seen.now);
        let blocked = Blocked::Error { times: times.saturating_add(1), next_retry };
        return Verdict { blocked: Some(blocked), what: "blocked", ..deferred(record, record.due_at, why) };
    }
    // It is stopped already and this one waits with the others; unless it has finished, or is gone.
    let is_stopped = seen.subscription.is_some_and(|it| it.state != State::Finished);
    let due_at = if !is_stopped { seen.now.plus(BLOCKED_PAUSE) } else { record.due_at };
    Verdict { what: "blocked", ..deferred(record, due_at, why) }
}
