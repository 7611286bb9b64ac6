//! Effects: what subscribers want done outside the database, such as a mail or a call of somebody's server.
//!
//! A handler plans an effect in its transaction; a worker sends it later, outside of any transaction, through the
//! [`Delivery`] for its kind. The ledger's row is the only memory of what was tried. An effect is sent at least
//! once: a second time needs a crash or a lost answer between sending and writing down.

mod claim;
mod deliver;
mod dispatch;
mod history;
mod lanes;
mod ledger;
mod operate;
mod pacing;
mod plan;
mod record;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use store::{Json, NewEvent, Position, StreamName, Timestamp, Tx};
use uuid::Uuid;

use crate::retry::RetryStrategy;
use crate::subscriber::{BoxError, RegisterError};

pub use dispatch::Delivered;
pub(crate) use dispatch::keep_delivering;
pub use history::EffectHistoryLine;
pub(crate) use lanes::forget_blocked_times;
pub use ledger::{EffectCounts, EffectFilter};
pub(crate) use ledger::{counts, subscription_became};
pub use operate::EffectOutcome;
pub use pacing::Pacing;
pub(crate) use plan::PlannedEffects;
pub use plan::{InvalidEffect, NewEffect};
pub use state::{EffectRecord, EffectState, EffectStatus, Hold, ImpossibleStep, Sending};

/// An effect as a delivery gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Derived from its cause.
    pub id: Uuid,
    /// Whose handler planned it.
    pub subscription_id: String,
    /// What is to be done; says which delivery does it.
    pub kind: String,
    /// To whom or where; sendings to one destination are paced together.
    pub destination: String,
    /// The same for each attempt, so that the receiver may know a repetition.
    pub key: String,
    /// What is to be sent.
    pub body: String,
    /// The event that brought it about.
    pub cause_id: Uuid,
    /// Where that event stands.
    pub cause_position: Position,
    /// That event's correlation.
    pub correlation_id: Option<String>,
    /// When that event was recorded.
    pub caused_at: Timestamp,
    /// How many attempts were started; while it is being sent this is the one under way.
    pub attempt: u32,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver has it.
    Done {
        /// What the receiver said of it.
        detail: String,
    },
    /// Not now.
    Retry {
        /// Why not.
        why: String,
        /// The receiver asked to be left alone for so long: nothing is sent to this destination before, and it does
        /// not count against the effect's retries. None: the delivery's retry strategy decides.
        after: Option<Duration>,
    },
    /// Never: the receiver refuses this one.
    Failed {
        /// Why.
        why: String,
    },
    /// Nothing of this kind can be sent until a person mends it, such as a password. The effect stays due, nothing
    /// counts against it, and its subscription goes to error.
    Blocked {
        /// Why.
        why: String,
    },
    /// The answer was lost: the receiver may have it or not. See [`InDoubt`].
    Unknown {
        /// How it was lost.
        why: String,
    },
}

/// The last look before sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Send it.
    Yes,
    /// Nobody needs it any more; it ends here.
    No {
        /// Why.
        why: String,
    },
}

/// What happened to an effect, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// An attempt begins: [`Effect::attempt`].
    Started,
    /// It is tried again, not before then.
    Deferred {
        /// When.
        until: Timestamp,
        /// Why.
        why: String,
    },
    /// Nobody knows whether it arrived; an operator decides.
    InDoubt {
        /// Why.
        why: String,
    },
    /// The receiver has it.
    Done {
        /// What the receiver said.
        detail: String,
    },
    /// The receiver refused it, or its retries are used up.
    Failed {
        /// Why.
        why: String,
    },
    /// Nobody needed it any more.
    Unwanted {
        /// Why.
        why: String,
    },
    /// An operator gave it up.
    Discarded {
        /// Why.
        why: String,
    },
}

/// What is done with an effect when nobody knows whether it arrived: the process died between sending and writing
/// down, or the answer was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InDoubt {
    /// It is sent again; it may arrive twice. This counts as a failed try.
    #[default]
    Resend,
    /// It is held until an operator releases or discards it; it may not arrive.
    Hold,
}

/// The numbers a delivery works by.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// How long one attempt may take. The claim on the effect lasts more than twice as long.
    pub deadline: Duration,
    /// What is done when nobody knows whether it arrived.
    pub in_doubt: InDoubt,
    /// When a failed try is repeated, and how often.
    pub retry: RetryStrategy,
    /// How fast one destination is sent to; none: as fast as it goes, one after the other.
    pub pacing: Option<Pacing>,
}

impl Default for Terms {
    /// 30 s for an attempt; resent after 30 s, 1, 2, 4, 8, 16 and 32 min and 1 h, then it has failed.
    fn default() -> Self {
        let retry = RetryStrategy::ClockBased {
            base_delay: Duration::from_secs(30),
            delay_factor: 2.0,
            max_attempts: 8,
            max_delay: Some(Duration::from_secs(3_600)),
        };
        Self { deadline: Duration::from_secs(30), in_doubt: InDoubt::Resend, retry, pacing: None }
    }
}

/// Code that sends the effects of one kind. The only code of a program that talks to the outside.
#[async_trait]
pub trait Delivery: Send + Sync {
    /// The kind of effects it sends.
    fn kind(&self) -> &str;

    /// Sends one, outside of any transaction, within the deadline of its [`Terms`].
    async fn send(&self, effect: &Effect) -> Answer;

    /// The last look before an attempt, in the transaction that starts it: whether anybody still needs it.
    async fn still_wanted(&self, _: &Effect, _: &mut Tx) -> Result<Wanted, BoxError> {
        Ok(Wanted::Yes)
    }

    /// The event that says in the log what happened, appended in the transaction that writes it down; its id is
    /// derived from the effect. Unless the delivery says otherwise, this is one of `Herald.Effects:…` in the stream
    /// `effect-<id>`.
    fn event(&self, effect: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
        audit_event(effect, happened)
    }

    /// The numbers it works by.
    fn terms(&self) -> Terms {
        Terms::default()
    }
}

/// The deliveries of a program, by kind.
#[derive(Clone, Default)]
pub(crate) struct Deliveries(Arc<BTreeMap<String, Arc<dyn Delivery>>>);

impl Deliveries {
    pub(crate) fn new(
        deliveries: impl IntoIterator<Item = Arc<dyn Delivery>>,
    ) -> Result<Self, RegisterError> {
        let mut by_kind = BTreeMap::new();
        for delivery in deliveries {
            let kind = delivery.kind().to_owned();
            if by_kind.insert(kind.clone(), delivery).is_some() {
                return Err(RegisterError::DuplicateKind(kind));
            }
        }
        Ok(Self(Arc::new(by_kind)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, kind: &str) -> Option<&Arc<dyn Delivery>> {
        self.0.get(kind)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<dyn Delivery>> {
        self.0.values()
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The event for the log where a delivery has none of its own.
fn audit_event(effect: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
    let why = match happened {
        Happened::Started => "",
        Happened::Done { detail } => detail,
        Happened::Deferred { why, .. }
        | Happened::InDoubt { why }
        | Happened::Failed { why }
        | Happened::Unwanted { why }
        | Happened::Discarded { why } => why,
    };
    let until = match happened {
        Happened::Deferred { until, .. } => Some(*until),
        _ => None,
    };
    let payload = serde_json::json!({
        "effectId": effect.id,
        "subscriptionId": effect.subscription_id,
        "kind": effect.kind,
        "attempt": effect.attempt,
        "why": why,
        "until": until,
    });
    let stream = StreamName::new(format!("effect-{}", effect.id)).ok()?;
    let event_type = match happened {
        Happened::Started => "Herald.Effects:AttemptStarted",
        Happened::Deferred { .. } => "Herald.Effects:EffectDeferred",
        Happened::InDoubt { .. } => "Herald.Effects:EffectInDoubt",
        Happened::Done { .. } => "Herald.Effects:EffectDone",
        Happened::Failed { .. } => "Herald.Effects:EffectFailed",
        Happened::Unwanted { .. } => "Herald.Effects:EffectUnwanted",
        Happened::Discarded { .. } => "Herald.Effects:EffectDiscarded",
    };
    Some((stream, NewEvent::new(event_type, Json::of(&payload).ok()?)))
}
