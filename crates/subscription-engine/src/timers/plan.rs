//! Setting and cancelling: what a handler says is kept until its unit commits, and written in bulk then.
//!
//! The id is derived from what set the timer, so that a unit which is done again sets the same one. A projector that
//! works off history sets and cancels none.

use std::collections::HashMap;

use store::{Json, Timestamp, Tx};
use uuid::Uuid;

use crate::context::{Cause, ContextError, DERIVED_IDS};
use crate::subscriber::{Kind, RunMode};
use crate::timers::{Timer, table};

/// The longest key, in bytes: it stands in an index.
const MAX_KEY_BYTES: usize = 500;
/// The longest payload, in bytes.
const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
/// 1970-01-01 and 9999-01-01: both databases hold what is between, and sort it alike.
const FIRST_INSTANT: Timestamp = Timestamp::from_micros(0);
const LAST_INSTANT: Timestamp = Timestamp::from_micros(253_370_764_800_000_000);

/// Why a timer cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimer {
    /// The key is empty, too long or has a control character.
    #[error("the key {0:?} of a timer must have 1 to {MAX_KEY_BYTES} bytes and no control characters")]
    Key(String),
    /// The payload is too long.
    #[error("the payload of a timer has {0} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")]
    PayloadTooLarge(usize),
    /// The instant is too far away.
    #[error("a timer cannot be due at {0}; it must be between the years 1970 and 9999")]
    Due(Timestamp),
    /// The subscription will not be there any more.
    #[error("a subscriber that runs once has no timers: it is finished at the head")]
    Once,
}

/// What a unit has set and cancelled so far.
#[derive(Debug, Default)]
pub(crate) struct PlannedTimers {
    /// By key; with a number that tells what was said later.
    changes: HashMap<String, (usize, Option<Timer>)>,
    said: usize,
    /// Which key was changed because of what.
    because_of: Vec<(String, Uuid)>,
    ordinals: HashMap<(Uuid, String), u32>,
}

impl PlannedTimers {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether one of these timers, which are handled together, has changed a later one.
    pub(crate) fn changes_a_later_one_of(&self, timers: &[Timer]) -> bool {
        let place = |wanted: &dyn Fn(&Timer) -> bool| timers.iter().position(wanted);
        self.because_of.iter().any(|(key, by)| {
            let (changed, by) = (place(&|timer| timer.key == *key), place(&|timer| timer.id == *by));
            matches!((changed, by), (Some(changed), Some(by)) if by < changed)
        })
    }

    /// What was said last of a key is what counts.
    fn change(&mut self, key: String, timer: Option<Timer>, because_of: Uuid) {
        self.said += 1;
        self.because_of.push((key.clone(), because_of));
        self.changes.insert(key, (self.said, timer));
    }

    /// Writes them in the unit's transaction.
    pub(crate) async fn write(self, tx: &mut Tx, subscription_id: &str) -> sqlx::Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let mut changes: Vec<_> = self.changes.into_iter().collect();
        changes.sort_by_key(|(_, (said, _))| *said);
        let changes = changes.into_iter().map(|(key, (_, timer))| (key, timer)).collect();
        table::write(tx, subscription_id, changes).await
    }
}

fn check_key(key: &str) -> Result<(), InvalidTimer> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.chars().any(char::is_control) {
        return Err(InvalidTimer::Key(key.chars().take(80).collect()));
    }
    Ok(())
}

impl Cause<'_, '_> {
    /// Has [`Subscriber::on_timer`](crate::Subscriber::on_timer) called once the log's clock shows this instant, if
    /// this unit commits; at once if it has passed. A timer of this subscription with the same key is replaced. What
    /// the timer brings about is brought about by this event. A projector that is booting sets none.
    pub fn set_timer(
        &mut self,
        key: impl Into<String>,
        due: Timestamp,
        payload: Json,
    ) -> Result<(), ContextError> {
        let key = key.into();
        check_key(&key)?;
        if payload.as_str().len() > MAX_PAYLOAD_BYTES {
            return Err(InvalidTimer::PayloadTooLarge(payload.as_str().len()).into());
        }
        if !(FIRST_INSTANT..LAST_INSTANT).contains(&due) {
            return Err(InvalidTimer::Due(due).into());
        }
        if self.context.definition.run_mode == RunMode::Once {
            return Err(InvalidTimer::Once.into());
        }
        if self.works_off_history() {
            return Ok(());
        }
        let planned = &mut self.context.timers;
        let ordinal = planned.ordinals.entry((self.origin.seed, key.clone())).or_insert(0);
        let name = format!("{}\n{}\ntimer\n{key}\n{ordinal}", self.origin.seed, self.context.definition.id);
        *ordinal += 1;
        let timer = Timer {
            key: key.clone(),
            due,
            payload,
            id: Uuid::new_v5(&DERIVED_IDS, name.as_bytes()),
            cause_id: self.origin.stored_id,
            cause_position: self.origin.position,
            correlation_id: self.origin.correlation_id.cloned(),
            caused_at: self.origin.recorded_at,
            attempt: 0,
        };
        planned.change(key, Some(timer), self.origin.seed);
        Ok(())
    }

    /// Takes back the timer of this key, if this unit commits and there is one.
    pub fn cancel_timer(&mut self, key: impl Into<String>) -> Result<(), ContextError> {
        let key = key.into();
        check_key(&key)?;
        // Whatever is set under this key now was set after this event.
        if !self.works_off_history() {
            self.context.timers.change(key, None, self.origin.seed);
        }
        Ok(())
    }

    /// A projector only reads what has happened: because of that it plans nothing.
    pub(crate) fn works_off_history(&self) -> bool {
        self.context.definition.kind == Kind::Projector && self.is_history()
    }

    /// Whether the cause is an event that only tells what has happened. A timer fires once, whatever set it.
    pub(crate) fn is_history(&self) -> bool {
        self.origin.event.is_some_and(|event| self.context.seen.is_history(event.position))
    }
}
