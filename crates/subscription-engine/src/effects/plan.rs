//! Planning: a handler says what is to be done outside, and the row is written in its transaction.
//!
//! The id is derived from the cause, so that a unit which is done again plans the same effects, and each is there
//! once. A projector that works off history plans nothing: it may be replayed at any time.

use std::collections::HashMap;

use store::{Timestamp, Tx};
use uuid::Uuid;

use crate::context::{Cause, ContextError, DERIVED_IDS};
use crate::effects::{Effect, ledger};
use crate::subscription::{State, Subscription};

/// The longest body, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// The longest destination or key, in bytes: they stand in indexes.
const MAX_DESTINATION_BYTES: usize = 1_000;
/// The longest kind, in bytes.
const MAX_KIND_BYTES: usize = 100;

/// What is to be done outside the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEffect {
    /// What is to be done; says which [`Delivery`](crate::Delivery) does it.
    pub kind: String,
    /// To whom or where: 1 to 1,000 bytes. Effects of one subscription for one destination are sent in order.
    pub destination: String,
    /// What is to be sent: text, or the text of a JSON document; up to 256 KiB.
    pub body: String,
    /// By which the receiver may know a repetition. None: the effect's id.
    pub key: Option<String>,
    /// It is not sent before this.
    pub not_before: Option<Timestamp>,
}

impl NewEffect {
    /// To be done as soon as possible, and known by its id.
    pub fn new(kind: impl Into<String>, destination: impl Into<String>, body: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            destination: destination.into(),
            body: body.into(),
            key: None,
            not_before: None,
        }
    }

    fn check(&self) -> Result<(), InvalidEffect> {
        check_name("kind", &self.kind, MAX_KIND_BYTES)?;
        check_name("destination", &self.destination, MAX_DESTINATION_BYTES)?;
        if let Some(key) = &self.key {
            check_name("key", key, MAX_DESTINATION_BYTES)?;
        }
        if self.body.len() > MAX_BODY_BYTES {
            return Err(InvalidEffect::BodyTooLarge(self.body.len()));
        }
        // PostgreSQL cannot hold it as text.
        if self.body.contains('\0') {
            return Err(InvalidEffect::NulInBody);
        }
        Ok(())
    }
}

fn check_name(what: &'static str, name: &str, most: usize) -> Result<(), InvalidEffect> {
    if name.is_empty() || name.len() > most || name.chars().any(char::is_control) {
        return Err(InvalidEffect::Name { what, name: name.chars().take(80).collect(), most });
    }
    Ok(())
}

/// Why an effect cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEffect {
    /// Kind, destination or key.
    #[error("the {what} {name:?} of an effect must have 1 to {most} bytes and no control characters")]
    Name {
        /// Which of them.
        what: &'static str,
        /// How it begins.
        name: String,
        /// The most bytes it may have.
        most: usize,
    },
    /// The body is too long.
    #[error("the body of an effect has {0} bytes, at most {MAX_BODY_BYTES} are allowed")]
    BodyTooLarge(usize),
    /// The body has the character NUL.
    #[error("the body of an effect contains the character NUL, which no database can hold as text")]
    NulInBody,
}

/// What a unit has planned so far.
#[derive(Debug, Default)]
pub(crate) struct PlannedEffects {
    planned: Vec<(Effect, Timestamp)>,
    ordinals: HashMap<(Uuid, String, String), u32>,
}

impl PlannedEffects {
    pub(crate) fn is_empty(&self) -> bool {
        self.planned.is_empty()
    }

    /// Writes them in the unit's transaction.
    pub(crate) async fn write(self, tx: &mut Tx, subscription: &Subscription) -> sqlx::Result<()> {
        if self.planned.is_empty() {
            return Ok(());
        }
        ledger::plan(tx, self.planned, subscription.state == State::Active).await
    }
}

impl Cause<'_, '_> {
    /// Has something done outside the database once this unit has committed, and as long as this subscription is
    /// active. Answers with the effect's id, which is derived from the cause: however often this is repeated, it is
    /// planned once. A projector that is booting plans nothing.
    pub fn plan_effect(&mut self, new: NewEffect) -> Result<Uuid, ContextError> {
        new.check()?;
        let subscription_id = &self.context.definition.id;
        let ordinals = &mut self.context.effects.ordinals;
        let ordinal =
            ordinals.entry((self.origin.seed, new.kind.clone(), new.destination.clone())).or_insert(0);
        let name = format!(
            "{}\n{subscription_id}\neffect\n{}\n{}\n{ordinal}",
            self.origin.seed, new.kind, new.destination
        );
        *ordinal += 1;
        let id = Uuid::new_v5(&DERIVED_IDS, name.as_bytes());
        if self.works_off_history() {
            return Ok(id);
        }
        let origin = self.origin;
        let due_at = new.not_before.unwrap_or(origin.recorded_at).max(origin.recorded_at);
        let effect = Effect {
            id,
            subscription_id: self.context.definition.id.clone(),
            kind: new.kind,
            destination: new.destination,
            key: new.key.unwrap_or_else(|| id.to_string()),
            body: new.body,
            cause_id: origin.event_id,
            cause_position: origin.position,
            correlation_id: origin.correlation_id.cloned(),
            caused_at: origin.recorded_at,
            attempt: 0,
        };
        self.context.effects.planned.push((effect, due_at));
        Ok(id)
    }
}
