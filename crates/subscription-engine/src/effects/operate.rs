//! What operators may ask of effects: look, hold, release, have tried at once, give up.

use uuid::Uuid;

use crate::effects::record::{Scope, Seen, Verdict, Written, rewrite};
use crate::effects::state::Step;
use crate::effects::{
    EffectFilter, EffectHistoryLine, EffectRecord, EffectState, Happened, Hold, history, ledger,
};
use crate::engine::{Engine, EngineError, refuse_inside_unit};

/// Lines of an effect's history that are shown at most.
const HISTORY: i64 = 1_000;

/// What an operation did with one effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EffectOutcome {
    /// It is in this state now.
    Became(Box<EffectRecord>),
    /// It cannot be done, and nothing was.
    Refused {
        /// Why not.
        why: String,
    },
    /// A worker has its subscription; try again.
    Busy,
    /// There is no such effect.
    Gone,
}

impl Engine {
    /// Effects that meet the filter, the newest first, older than the effect with this number.
    pub async fn effects(
        &self,
        filter: &EffectFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<EffectRecord>, EngineError> {
        let before = before.unwrap_or(i64::MAX);
        Ok(ledger::list(self.store().database(), filter, before, i64::from(limit)).await?)
    }

    /// One effect and what happened to it, oldest first.
    pub async fn effect(
        &self,
        id: Uuid,
    ) -> Result<Option<(EffectRecord, Vec<EffectHistoryLine>)>, EngineError> {
        let database = self.store().database();
        let Some(record) = ledger::load(database, id).await? else { return Ok(None) };
        Ok(Some((record, history::read(database, id, HISTORY).await?)))
    }

    /// Whether this program can send effects of this kind.
    pub fn delivers(&self, kind: &str) -> bool {
        self.deliveries().get(kind).is_some()
    }

    /// Keeps an effect from being sent until it is released. One that is on its way is held if this attempt does not
    /// end it.
    pub async fn hold_effect(&self, id: Uuid, reason: &str) -> Result<EffectOutcome, EngineError> {
        self.operate(id, Step::Hold(Hold::Operator), "held", reason).await
    }

    /// Lets a held effect be sent, with all its retries.
    pub async fn release_effect(&self, id: Uuid, reason: &str) -> Result<EffectOutcome, EngineError> {
        self.operate(id, Step::Release, "released", reason).await
    }

    /// Has an effect that failed, or waits to be tried again, tried at once and with all its retries.
    pub async fn retry_effect(&self, id: Uuid, reason: &str) -> Result<EffectOutcome, EngineError> {
        self.operate(id, Step::Retry, "retried", reason).await
    }

    /// Gives an effect up: it is never sent. The event that says so is appended if this program has its delivery.
    pub async fn discard_effect(&self, id: Uuid, reason: &str) -> Result<EffectOutcome, EngineError> {
        self.operate(id, Step::Discard, "discarded", reason).await
    }

    async fn operate(
        &self,
        id: Uuid,
        step: Step,
        what: &'static str,
        reason: &str,
    ) -> Result<EffectOutcome, EngineError> {
        refuse_inside_unit()?;
        let Some(mut record) = ledger::load(self.store().database(), id).await? else {
            return Ok(EffectOutcome::Gone);
        };
        if let Some(abandoned) = self.hold_if_abandoned(&record).await? {
            if let Step::Hold(_) = step {
                return Ok(EffectOutcome::Became(Box::new(abandoned)));
            }
            record = abandoned;
        }
        // What a removed subscription had planned belongs to nobody: who releases it is its owner's only word.
        let scope = if step == Step::Release { Scope::Subscription } else { Scope::Effect };
        let happened = matches!(step, Step::Discard).then(|| Happened::Discarded { why: reason.to_owned() });
        let decide = |seen: &Seen<'_>| {
            let begins_anew = matches!(step, Step::Release | Step::Retry);
            let is_sending = matches!(seen.record.state, EffectState::Sending { .. });
            Some(Verdict {
                step,
                due_at: if begins_anew && !is_sending { seen.now } else { seen.record.due_at },
                failures: if begins_anew { 0 } else { seen.record.failures },
                what,
                why: reason.to_owned(),
                happened: happened.clone(),
                leave_alone: None,
                blocked: None,
            })
        };
        Ok(match rewrite(self, &record.effect, scope, decide).await? {
            Written::Saved(record) => EffectOutcome::Became(record),
            Written::Refused(impossible) => EffectOutcome::Refused { why: impossible.to_string() },
            Written::Busy | Written::Left => EffectOutcome::Busy,
            Written::Gone => EffectOutcome::Gone,
        })
    }

    /// An attempt whose claim has run out is given up on by a worker that can send its kind; where there is none,
    /// the operator who asks finds it held.
    async fn hold_if_abandoned(&self, record: &EffectRecord) -> Result<Option<EffectRecord>, EngineError> {
        let EffectState::Sending { sending, .. } = record.state else { return Ok(None) };
        let manual = if self.clock().is_manual() { Some(self.clock().now().await?) } else { None };
        if !ledger::is_past(self.store().database(), sending.until, manual).await? {
            return Ok(None);
        }
        let why = format!(
            "attempt {} began at {} and no answer was written down",
            record.effect.attempt, sending.since
        );
        let written = rewrite(self, &record.effect, Scope::Effect, |seen| {
            (seen.record.revision == record.revision).then(|| Verdict {
                step: Step::Doubt,
                due_at: seen.record.due_at,
                failures: seen.record.failures,
                what: "in doubt",
                why: why.clone(),
                happened: Some(Happened::InDoubt { why: why.clone() }),
                leave_alone: None,
                blocked: None,
            })
        })
        .await?;
        Ok(match written {
            Written::Saved(record) => Some(*record),
            _ => None,
        })
    }
}
