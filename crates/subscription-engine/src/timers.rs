//! Durable timers: a handler asks to be called at an instant, under a key, in its own transaction.
//!
//! A timer fires in a unit of its own, once the clock shows its instant and the subscription has handled all that
//! could be read when that was first seen; it is deleted in the transaction of what it brings about. So it fires
//! exactly once, never early, and after whatever event should have cancelled it, unless that one is a dead letter.

mod fire;
mod operate;
mod plan;
mod table;

use store::{Json, Position, Timestamp};
use uuid::Uuid;

pub use fire::FiredTimers;
pub use operate::TimerOutcome;
pub use plan::InvalidTimer;
pub(crate) use plan::PlannedTimers;
pub use table::TimerCounts;
pub(crate) use table::{counts, forget_attempts, next_timer};

/// A timer as a subscriber gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Under which it was set; a subscription has one timer of a key at most.
    pub key: String,
    /// When it was to fire.
    pub due: Timestamp,
    /// What was stored with it.
    pub payload: Json,
    /// Derived from what set it; another one each time the key is set.
    pub id: Uuid,
    /// The event because of which it was set, also where it was set by a timer.
    pub cause_id: Uuid,
    /// Where that event stands.
    pub cause_position: Position,
    /// That event's correlation.
    pub correlation_id: Option<String>,
    /// When that event was recorded.
    pub caused_at: Timestamp,
    /// How often it has failed.
    pub attempt: u32,
}

/// A timer as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerRecord {
    /// Its number; higher ones were set later.
    pub number: i64,
    /// The timer.
    pub timer: Timer,
    /// When it may be tried; none: it failed for good and is held.
    pub try_at: Option<Timestamp>,
    /// What the subscription must have moved past before it fires; none: it was not seen due yet.
    pub barrier: Option<Position>,
    /// The messages of its last failure, outermost first.
    pub error: Vec<String>,
}
