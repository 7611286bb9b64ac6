//! Writing down what became of an effect: its row, its history, its lane and the event that says so, in one
//! transaction.
//!
//! Whatever changes an effect that was planned goes through here, under the lock of its lane and by
//! compare-and-set: an answer that comes when somebody else has the effect by then changes nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use store::{Append, AppendError, ExpectedVersion, Fault, NewEvent, Timestamp, Tx, messages};
use uuid::Uuid;

use crate::context::DERIVED_IDS;
use crate::effects::lanes::Owner;
use crate::effects::state::{ImpossibleStep, Step, next};
use crate::effects::{Effect, EffectHistoryLine, EffectRecord, Happened, history, lanes, ledger};
use crate::engine::{Engine, EngineError, FaultPoint, Outcome};
use crate::records;
use crate::subscription::{Failure, State, Status, Subscription, Transition};

/// What has to be locked beside the effect, because it may change too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Effect,
    Owner,
    Subscription,
}

/// What there is to decide on, locked.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub(super) record: &'a EffectRecord,
    pub(super) owner: Option<&'a Owner>,
    pub(super) subscription: Option<&'a Subscription>,
    /// By the log's clock.
    pub(super) now: Timestamp,
}

/// What is to become of an effect.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) step: Step,
    pub(super) due_at: Timestamp,
    pub(super) failures: u32,
    /// For the history.
    pub(super) what: &'static str,
    pub(super) why: String,
    /// For the log.
    pub(super) happened: Option<Happened>,
    /// The receiver asked to be left alone until then.
    pub(super) leave_alone: Option<Timestamp>,
    /// How often in a row its kind is blocked now, and what that does to its subscription.
    pub(super) blocked: Option<Blocked>,
}

#[derive(Debug)]
pub(super) enum Blocked {
    /// It is not any more.
    No,
    /// The subscription goes to error and is tried again then.
    Error { times: u32, next_retry: Option<Timestamp> },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Written {
    /// The effect is in its new state.
    Saved(Box<EffectRecord>),
    /// Nothing was to be changed.
    Left,
    /// The state does not allow it.
    Refused(ImpossibleStep),
    /// A worker has its subscription.
    Busy,
    /// There is no such effect.
    Gone,
}

/// Decides on an effect while nobody else can change it, and writes down what was decided.
pub(super) async fn rewrite(
    engine: &Engine,
    effect: &Effect,
    scope: Scope,
    decide: impl Fn(&Seen<'_>) -> Option<Verdict> + Send + Sync,
) -> Result<Written, EngineError> {
    match attempt(engine, effect, scope, &decide, Say::InTheLog).await {
        // What happened is a fact, whatever is wrong with the event that a delivery makes of it: without that it
        // would be forgotten, and the effect sent again.
        Err(EngineError::Append(error)) if !passes(&error) => {
            let why = messages(&error).join(": ");
            tracing::error!(effect = %effect.id, "the event of effect {} could not be appended: {why}", effect.id);
            attempt(engine, effect, scope, &decide, Say::InTheHistory(&why)).await
        }
        result => result,
    }
}

/// Where it is said what happened.
#[derive(Clone, Copy, Debug)]
enum Say<'a> {
    InTheLog,
    /// The log does not take it, because of this.
    InTheHistory(&'a str),
}

fn passes(error: &AppendError) -> bool {
    matches!(Fault::of(error), Fault::Transient | Fault::Unreachable)
}

async fn attempt(
    engine: &Engine,
    effect: &Effect,
    scope: Scope,
    decide: &(impl Fn(&Seen<'_>) -> Option<Verdict> + Send + Sync),
    say: Say<'_>,
) -> Result<Written, EngineError> {
    let now = engine.clock().now().await?;
    let _passage = engine.pass_where_writers_exclude_each_other().await;
    let (mut tx, subscription) = match scope {
        Scope::Effect | Scope::Owner => (engine.store().begin().await?, None),
        Scope::Subscription => match engine.begin_claimed(&effect.subscription_id).await? {
            Ok((tx, subscription, _)) => (tx, Some(subscription)),
            Err(Outcome::Busy) => return Ok(Written::Busy),
            // It was removed.
            Err(_) => (engine.store().begin().await?, None),
        },
    };
    let written = decide_in(engine, &mut tx, effect, (scope, subscription), decide, say, now).await;
    if !matches!(written, Ok(Written::Saved(_))) {
        tx.rollback().await;
        return written;
    }
    engine.strike(FaultPoint::EffectBeforeRecord, &effect.subscription_id)?;
    tx.commit().await?;
    engine.strike(FaultPoint::EffectRecorded, &effect.subscription_id)?;
    engine.store().announce();
    written
}

async fn decide_in(
    engine: &Engine,
    tx: &mut Tx,
    effect: &Effect,
    (scope, subscription): (Scope, Option<Subscription>),
    decide: &(impl Fn(&Seen<'_>) -> Option<Verdict> + Send + Sync),
    say: Say<'_>,
    now: Timestamp,
) -> Result<Written, EngineError> {
    if scope == Scope::Subscription {
        // What a removed subscription had planned belongs to nobody: who releases it has the only word.
        let open = subscription
            .as_ref()
            .is_none_or(|it| matches!(it.state.status(), Status::Active | Status::Finished));
        lanes::open_owner(tx, &effect.subscription_id, open).await?;
    }
    let owner = match scope {
        Scope::Effect => None,
        Scope::Owner | Scope::Subscription => lanes::lock_owner(tx, &effect.subscription_id, true).await?,
    };
    lanes::lock_lane(tx, effect).await?;
    let Some(mut record) = ledger::load_in(tx, effect.id).await? else { return Ok(Written::Gone) };
    let seen = Seen { record: &record, owner: owner.as_ref(), subscription: subscription.as_ref(), now };
    let Some(verdict) = decide(&seen) else { return Ok(Written::Left) };
    record.state = match next(record.state, verdict.step) {
        Ok(state) => state,
        Err(impossible) => return Ok(Written::Refused(impossible)),
    };
    record.due_at = verdict.due_at;
    record.failures = verdict.failures;
    record.why = verdict.why;
    if let Some(blocked) = verdict.blocked {
        write_blocked(engine, tx, &record, subscription, &blocked, now).await?;
    }
    if let Some(until) = verdict.leave_alone {
        lanes::leave_alone(tx, (&effect.kind, &effect.destination), until).await?;
    }
    if !write(engine, tx, &mut record, verdict.what, now).await? {
        return Ok(Written::Left);
    }
    if let Say::InTheHistory(why) = say {
        let why = format!("its event could not be appended: {why}");
        history::note(tx, effect.id, &line(engine, &record, "unsaid", why, now)).await?;
    }
    let lane = (effect.subscription_id.as_str(), effect.kind.as_str(), effect.destination.as_str());
    lanes::settle_lane(tx, lane, verdict.leave_alone).await?;
    if let (Say::InTheLog, Some(happened)) = (say, &verdict.happened) {
        append(engine, tx, &record, happened).await?;
    }
    Ok(Written::Saved(Box::new(record)))
}

/// Writes an effect back with a line of history; says whether it was still as it had been read.
pub(super) async fn write(
    engine: &Engine,
    tx: &mut Tx,
    record: &mut EffectRecord,
    what: &'static str,
    now: Timestamp,
) -> sqlx::Result<bool> {
    record.changed_at = now;
    if !ledger::save(tx, record).await? {
        return Ok(false);
    }
    record.revision += 1;
    history::note(tx, record.effect.id, &line(engine, record, what, record.why.clone(), now)).await?;
    Ok(true)
}

fn line(engine: &Engine, record: &EffectRecord, what: &str, why: String, at: Timestamp) -> EffectHistoryLine {
    let attempt = i32::try_from(record.effect.attempt).unwrap_or(i32::MAX);
    EffectHistoryLine { at, attempt, what: what.to_owned(), why, who: engine.who().to_owned() }
}

/// Appends what happened, as the last statement before the commit.
pub(super) async fn append(
    engine: &Engine,
    tx: &mut Tx,
    record: &EffectRecord,
    happened: &Happened,
) -> Result<(), AppendError> {
    let effect = &record.effect;
    let Some(delivery) = engine.deliveries().get(&effect.kind) else { return Ok(()) };
    let Ok(event) = catch_unwind(AssertUnwindSafe(|| delivery.event(effect, happened))) else {
        // As good as none; what happened is in the history.
        tracing::error!(effect = %effect.id, "the delivery of {} panicked over its event", effect.kind);
        return Ok(());
    };
    let Some((stream, event)) = event else { return Ok(()) };
    // Each change of the row has a revision of its own: a commit whose answer got lost is not said twice.
    let name = format!("{}\n{}\n{}", effect.id, record.revision, event.event_type);
    let event = NewEvent {
        id: Uuid::new_v5(&DERIVED_IDS, name.as_bytes()),
        id_is_derived: true,
        causation_id: Some(effect.cause_id),
        correlation_id: effect.correlation_id.clone(),
        ..event
    };
    engine
        .store()
        .append_all(tx, vec![Append { stream, expected: ExpectedVersion::Any, events: vec![event] }])
        .await?;
    Ok(())
}

/// A person has to mend something: the subscription goes to error, and its retry tries one effect.
async fn write_blocked(
    engine: &Engine,
    tx: &mut Tx,
    record: &EffectRecord,
    subscription: Option<Subscription>,
    blocked: &Blocked,
    now: Timestamp,
) -> Result<(), EngineError> {
    let effect = &record.effect;
    let (times, next_retry) = match blocked {
        Blocked::No => return Ok(lanes::set_blocked(tx, &effect.subscription_id, None).await?),
        Blocked::Error { times, next_retry } => (*times, *next_retry),
    };
    let Some(mut subscription) = subscription else { return Ok(()) };
    let blocked = (effect.kind.as_str(), i32::try_from(times).unwrap_or(i32::MAX));
    lanes::set_blocked(tx, &effect.subscription_id, Some(blocked)).await?;
    let why = format!("effects of kind {} are blocked: {}", effect.kind, record.why);
    let failure = Failure { chain: vec![why.clone()], event: None, at: now };
    let from = subscription.state.status();
    subscription.state =
        crate::subscription::next(&subscription.state, Transition::Fail { failure, next_retry })?;
    subscription.attempt = times.saturating_sub(1);
    subscription.failing_position = None;
    subscription.changed_at = now;
    records::save(tx, &subscription, from, &why, engine.who()).await?;
    tracing::error!(subscription = subscription.id, effect = %effect.id, "{} is stopped: {why}", subscription.id);
    Ok(())
}

/// Whether a subscription can go to error because its effects are blocked.
pub(super) fn can_fail(subscription: Option<&Subscription>) -> bool {
    subscription.is_some_and(|subscription| subscription.state == State::Active)
}
