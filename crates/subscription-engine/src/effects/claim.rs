//! Claiming an effect: which one is next, whether it is still wanted, and "attempt n started".
//!
//! All of that commits before anything is sent. Whoever stops the subscription, or removes it, comes before this
//! transaction or waits for its end.

use std::sync::Arc;
use std::time::Duration;

use store::{Fault, Timestamp, Tx, messages};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::context::Writing;
use crate::effects::deliver::tried_in_vain;
use crate::effects::record::{self, Scope, Seen, rewrite};
use crate::effects::state::{Step, next};
use crate::effects::{
    Delivery, Effect, EffectRecord, Happened, Pacing, Sending, Terms, Wanted, lanes, ledger,
};
use crate::engine::{Engine, EngineError, FaultPoint};
use crate::records::{self, Session};
use crate::retry::RetryStrategy;
use crate::subscriber::BoxError;
use crate::unit::{self, bounded};

/// A claim lasts twice the deadline and this, so that the answer can be written down.
const CLAIM_MARGIN: Duration = Duration::from_secs(10);

/// An effect whose attempt has begun.
pub(super) struct Claimed {
    pub(super) delivery: Arc<dyn Delivery>,
    pub(super) effect: Effect,
    pub(super) sending: Sending,
    /// Its kind was blocked: if this one is sent, it is not any more.
    pub(super) is_probe: bool,
    /// When the claim runs out, as this process measures time.
    pub(super) until: Instant,
}

/// What came of looking for an effect to send.
pub(super) enum Look {
    /// This one is to be sent.
    Claimed(Box<Claimed>),
    /// Something was written; look again.
    Changed,
    /// There is nothing that could be taken.
    Nothing,
    /// Something passing is in the way.
    Stalled(String),
}

/// Takes the next due effect of an owner and a kind, and writes down that an attempt begins.
pub(super) async fn claim(
    engine: &Engine,
    owner_id: &str,
    delivery: &Arc<dyn Delivery>,
    by: Uuid,
) -> Result<Look, EngineError> {
    let now = engine.clock().now().await?;
    let passage = engine.pass_where_writers_exclude_each_other().await;
    let mut tx = engine.store().begin().await?;
    let mut found = find(&mut tx, owner_id, delivery, now, false).await;
    if let Ok(Found::AskAlone) = found {
        tx.rollback().await;
        tx = engine.store().begin().await?;
        found = find(&mut tx, owner_id, delivery, now, true).await;
    }
    let (mut record, paced_at, is_probe, session) = match found {
        Ok(Found::Effect { record, paced_at, is_probe, session }) => (*record, paced_at, is_probe, session),
        Ok(Found::Later) => {
            tx.commit().await?;
            return Ok(Look::Changed);
        }
        Ok(Found::AskAlone | Found::Nothing) => {
            tx.rollback().await;
            return Ok(Look::Nothing);
        }
        Err(error) => {
            tx.rollback().await;
            return Err(error);
        }
    };
    let seen = record.clone();
    let terms = delivery.terms();
    let until = Instant::now() + lasts(&terms);
    let sending = match begin(engine, delivery, &mut tx, &mut record, Begin { now, by, paced_at }).await {
        Ok(sending) => sending,
        Err(error) => {
            // What was cut short may be in the middle of a statement, on which the server would go on.
            match unit::find::<unit::Cut>(&*error) {
                Some(_) => {
                    records::end_session(engine.store().database(), session).await;
                    drop(tx);
                }
                None => tx.rollback().await,
            }
            drop(passage);
            return not_begun(engine, &seen, &terms.retry, &*error).await;
        }
    };
    engine.strike(FaultPoint::EffectBeforeStart, owner_id)?;
    tx.commit().await?;
    engine.strike(FaultPoint::EffectStarted, owner_id)?;
    let Some(sending) = sending else {
        engine.store().announce();
        return Ok(Look::Changed);
    };
    let delivery = Arc::clone(delivery);
    Ok(Look::Claimed(Box::new(Claimed { delivery, effect: record.effect, sending, is_probe, until })))
}

/// What there is of an owner and a kind.
enum Found {
    /// This is due; where the pace of its destination is then, if it has one.
    Effect { record: Box<EffectRecord>, paced_at: Option<Timestamp>, is_probe: bool, session: Session },
    /// Not yet; when to look again is written down.
    Later,
    /// One goes ahead of all others, so nobody else may look at the same time.
    AskAlone,
    /// Nothing that could be taken.
    Nothing,
}

/// Locks the owner, a lane with something due, and its destination.
async fn find(
    tx: &mut Tx,
    owner_id: &str,
    delivery: &Arc<dyn Delivery>,
    now: Timestamp,
    alone: bool,
) -> Result<Found, EngineError> {
    let kind = delivery.kind();
    // Whoever stops the subscription waits for this transaction, or comes before it.
    let owner = lanes::lock_owner(tx, owner_id, alone).await?.unwrap_or_default();
    let is_probe = owner.blocked_kind.as_deref() == Some(kind);
    if !owner.open {
        return Ok(Found::Nothing);
    }
    if is_probe && !alone {
        // A lock is not made stronger while others share it: each would wait for the other.
        return Ok(Found::AskAlone);
    }
    if is_probe && ledger::is_sending(tx, owner_id, kind).await? {
        return Ok(Found::Nothing);
    }
    let Some(destination) = lanes::take_lane(tx, owner_id, kind, now).await? else {
        return Ok(Found::Nothing);
    };
    let lane = (owner_id, kind, destination.as_str());
    let paced_at = match free_at(tx, delivery.terms().pacing, (kind, &destination), now).await? {
        Ok(paced_at) => paced_at,
        Err(until) => {
            lanes::settle_lane(tx, lane, Some(until)).await?;
            return Ok(Found::Later);
        }
    };
    match ledger::first_due(tx, lane, now).await? {
        Some(record) => {
            let session = Session(owner.session);
            Ok(Found::Effect { record: Box::new(record), paced_at, is_probe, session })
        }
        None => {
            lanes::settle_lane(tx, lane, None).await?;
            Ok(Found::Later)
        }
    }
}

/// What an attempt begins with.
#[derive(Clone, Copy)]
struct Begin {
    now: Timestamp,
    by: Uuid,
    paced_at: Option<Timestamp>,
}

/// Takes the last look, and writes down that the attempt begins; or that nobody wants the effect any more: then there
/// is no attempt.
async fn begin(
    engine: &Engine,
    delivery: &Arc<dyn Delivery>,
    tx: &mut Tx,
    record: &mut EffectRecord,
    Begin { now, by, paced_at }: Begin,
) -> Result<Option<Sending>, BoxError> {
    let wanted = last_look(engine, delivery, &record.effect, tx).await?;
    // The first statement after the look: one that failed there and was swallowed is found here.
    let manual = engine.clock().is_manual().then_some(now);
    let since = ledger::database_now(tx, manual).await?;
    if let Wanted::No { why } = wanted {
        record.state = next(record.state, Step::Drop)?;
        record.why.clone_from(&why);
        written(record::write(engine, tx, record, "unwanted", now).await?)?;
        let Effect { subscription_id, kind, destination, .. } = &record.effect;
        lanes::settle_lane(tx, (subscription_id, kind, destination), None).await?;
        record::append(engine, tx, record, &Happened::Unwanted { why }).await?;
        return Ok(None);
    }
    if let Some(paced_at) = paced_at {
        lanes::set_pace(tx, (&record.effect.kind, &record.effect.destination), paced_at).await?;
    }
    let sending = Sending { claim: Uuid::now_v7(), by, since, until: since.plus(lasts(&delivery.terms())) };
    record.state = next(record.state, Step::Start(sending))?;
    record.effect.attempt = record.effect.attempt.saturating_add(1);
    record.why.clear();
    written(record::write(engine, tx, record, "started", now).await?)?;
    lanes::occupy_lane(tx, &record.effect).await?;
    record::append(engine, tx, record, &Happened::Started).await?;
    Ok(Some(sending))
}

/// Nobody changes an effect whose lane is locked; what was not written must not be sent.
fn written(is_written: bool) -> Result<(), BoxError> {
    if is_written { Ok(()) } else { Err("somebody changed it meanwhile".into()) }
}

/// How long a claim lasts.
fn lasts(terms: &Terms) -> Duration {
    terms.deadline.saturating_mul(2) + CLAIM_MARGIN
}

/// Whether a destination may be sent to now: where its pace is then, if it is paced; or when it may be.
async fn free_at(
    tx: &mut Tx,
    pacing: Option<Pacing>,
    destination: (&str, &str),
    now: Timestamp,
) -> sqlx::Result<Result<Option<Timestamp>, Timestamp>> {
    let (paced_at, not_before) = match pacing {
        None => (None, lanes::not_before(tx, destination).await?),
        Some(pacing) => {
            let (paced_at, not_before) = lanes::lock_destination(tx, destination, now).await?;
            (Some(pacing.take(paced_at, now)), Some(not_before))
        }
    };
    if let Some(not_before) = not_before.filter(|not_before| *not_before > now) {
        return Ok(Err(not_before));
    }
    Ok(paced_at.transpose())
}

/// Asks the delivery whether the effect is still wanted, within the limits of any other code in a transaction.
async fn last_look(
    engine: &Engine,
    delivery: &Arc<dyn Delivery>,
    effect: &Effect,
    tx: &mut Tx,
) -> Result<Wanted, BoxError> {
    let writing = watch::Sender::new(Writing::Since(Instant::now()));
    let mut wanted = Wanted::Yes;
    let look = async {
        wanted = delivery.still_wanted(effect, tx).await?;
        Ok(())
    };
    bounded(engine, &effect.subscription_id, writing.subscribe(), look).await?;
    Ok(wanted)
}

/// Nothing was sent. Unless it passes by itself, it is tried again by the delivery's strategy.
async fn not_begun(
    engine: &Engine,
    seen: &EffectRecord,
    retry: &RetryStrategy,
    error: &(dyn std::error::Error + Send + Sync + 'static),
) -> Result<Look, EngineError> {
    let why = format!("its attempt could not begin: {}", messages(error).join(": "));
    if let Fault::Transient | Fault::Unreachable = Fault::of(error) {
        return Ok(Look::Stalled(why));
    }
    tracing::warn!(effect = %seen.effect.id, "effect {}: {why}", seen.effect.id);
    let decide = |now: &Seen<'_>| {
        (now.record.revision == seen.revision).then(|| tried_in_vain(now, retry, &why, Step::Fail))
    };
    rewrite(engine, &seen.effect, Scope::Effect, decide).await?;
    Ok(Look::Changed)
}
