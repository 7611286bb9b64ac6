//! How a subscription gets on: derived from what it has done, not from what its status is called.
//!
//! A status says what a subscription is allowed to do. Whether it does so can only be seen by its position, by the
//! head, and by who is there to move it. Nothing here writes.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use store::{Head, Timestamp};

use crate::engine::{Engine, EngineError};
use crate::records;
use crate::stalls::{self, Met};
use crate::subscription::{State, Subscription};
use crate::timers::TimerCounts;
use crate::worker_row::WorkerRow;

/// How a subscription gets on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing waits for it.
    Idle,
    /// Events wait for it, and it moves.
    Lagging,
    /// It does not move, because of this.
    Stalled(Stall),
    /// It is to move, and no worker is there that would move it.
    NoWorker,
}

/// Why a subscription does not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// It failed.
    Failed {
        /// The outermost message.
        message: String,
        /// When it is tried again; none: it gave up.
        next_retry: Option<Timestamp>,
    },
    /// A person stopped it.
    Paused {
        /// Why.
        why: String,
        /// Who.
        who: String,
    },
    /// Its subscriber is not in the program any more.
    Detached,
    /// Something passing is in the way; its worker keeps trying.
    InTheWay {
        /// What.
        why: String,
        /// Since how long.
        since: Duration,
    },
    /// An append that does not end hides the events behind it.
    HeadHeld {
        /// How many events.
        events: u64,
        /// Who holds them back.
        by: String,
    },
    /// No event waits, and timers that are due do not fire: they fail, or nothing comes of them.
    TimersOverdue {
        /// How many.
        timers: i64,
        /// For how long the first of them.
        since: Duration,
    },
    /// A worker is there, and for this long nothing has come of it.
    NoProgress {
        /// For how long.
        since: Duration,
    },
}

impl Standing {
    /// The word for it, on the command line and in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Lagging => "lagging",
            Self::Stalled(_) => "stalled",
            Self::NoWorker => "no worker",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled(stall) => write!(f, "stalled: {stall}"),
            Self::NoWorker => f.write_str("no worker runs it"),
            _ => f.write_str(self.word()),
        }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds =
            |duration: &Duration| humantime::format_duration(Duration::from_secs(duration.as_secs()));
        match self {
            Self::Failed { message, next_retry: Some(at) } => {
                write!(f, "it failed and is tried again at {at}: {message}")
            }
            Self::Failed { message, next_retry: None } => write!(f, "it failed and gave up: {message}"),
            // Where no reason was given, that stands in its place.
            Self::Paused { why, who } if *why == format!("paused by {who}") => f.write_str(why),
            Self::Paused { why, who } => write!(f, "paused by {who}: {why}"),
            Self::Detached => f.write_str("detached, no program knows its subscriber"),
            Self::InTheWay { why, since } => write!(f, "{why} (for {})", seconds(since)),
            Self::HeadHeld { events, by } => write!(f, "{events} event(s) are held back by {by}"),
            Self::TimersOverdue { timers, since } => {
                write!(f, "{timers} timer(s) are due and do not fire (for {})", seconds(since))
            }
            Self::NoProgress { since } => {
                write!(f, "a worker is there, and nothing has come of it for {}", seconds(since))
            }
        }
    }
}

/// What has to be known of everything around them to say how subscriptions get on.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) head: Head,
    pub(crate) workers: Vec<WorkerRow>,
    moved: HashMap<String, Duration>,
    met: HashMap<String, Met>,
    paused: HashMap<String, Stall>,
    held: Option<Stall>,
    stalled_after: Duration,
}

impl Around {
    pub(crate) async fn look(engine: &Engine, subscriptions: &[Subscription]) -> Result<Self, EngineError> {
        let database = engine.store().database();
        let stalled_after = engine.settings().stalled_after;
        let head = engine.store().head().await?;
        let mut paused = HashMap::new();
        for subscription in subscriptions {
            if let State::Paused { .. } = subscription.state
                && let Some(line) = records::last_change(database, &subscription.id).await?
            {
                paused.insert(subscription.id.clone(), Stall::Paused { why: line.why, who: line.who });
            }
        }
        Ok(Self {
            workers: engine.live_workers().await?,
            moved: records::last_moves(database).await?,
            met: stalls::met(database).await?,
            // Asking who holds the head back takes a moment.
            held: if head.is_end { None } else { held_for(engine, stalled_after).await? },
            head,
            paused,
            stalled_after,
        })
    }

    /// How a subscription gets on that is so far behind, whose next event has waited since then.
    pub(crate) fn standing(
        &self,
        subscription: &Subscription,
        lag: i64,
        waiting_since: Option<Timestamp>,
        timers: TimerCounts,
        now: Timestamp,
    ) -> Standing {
        let id = &subscription.id;
        match &subscription.state {
            State::Error { failure, next_retry, .. } => {
                let message = failure.message().to_owned();
                return Standing::Stalled(Stall::Failed { message, next_retry: *next_retry });
            }
            State::Paused { .. } if lag > 0 => {
                let unknown = || Stall::Paused { why: "unknown".to_owned(), who: "unknown".to_owned() };
                return Standing::Stalled(self.paused.get(id).cloned().unwrap_or_else(unknown));
            }
            State::Detached { .. } if lag > 0 => return Standing::Stalled(Stall::Detached),
            State::Paused { .. } | State::Detached { .. } | State::Finished => return Standing::Idle,
            State::New | State::Booting | State::Active => {}
        }
        let of_it = self.workers.iter().filter(|worker| worker.moves(subscription));
        let Some(worker_for) = of_it.map(|worker| worker.started_ago.unwrap_or(Duration::MAX)).max() else {
            return Standing::NoWorker;
        };
        let moved = self.moved.get(id).copied().unwrap_or(Duration::MAX);
        // Another worker may move it all the same.
        if let Some(met) = self.met.get(id).filter(|met| met.last < moved) {
            return Standing::Stalled(Stall::InTheWay { why: met.why.clone(), since: met.since });
        }
        if lag == 0 {
            // After a downtime they are overdue at once, and nobody is to blame yet.
            let overdue = timers.overdue_since.map(|since| now.since(since).min(worker_for));
            if let Some(since) = overdue.filter(|since| *since >= self.stalled_after) {
                return Standing::Stalled(Stall::TimersOverdue { timers: timers.overdue, since });
            }
            return self.held.clone().map_or(Standing::Idle, Standing::Stalled);
        }
        let waited = waiting_since.map_or(Duration::MAX, |since| now.since(since));
        let since = moved.min(waited).min(worker_for).min(now.since(subscription.changed_at));
        if since < self.stalled_after {
            Standing::Lagging
        } else {
            Standing::Stalled(Stall::NoProgress { since })
        }
    }
}

/// Who has held the head back for so long, if anybody has and events wait.
async fn held_for(engine: &Engine, limit: Duration) -> Result<Option<Stall>, EngineError> {
    let report = engine.store().explain_head().await?;
    if !report.readers_wait() {
        return Ok(None);
    }
    let holder = report.holders.iter().find(|holder| holder.age.is_some_and(|age| age >= limit));
    let held = |by: String| Stall::HeadHeld { events: report.events_waiting, by };
    Ok(holder.map(|holder| held(holder.to_string())))
}
