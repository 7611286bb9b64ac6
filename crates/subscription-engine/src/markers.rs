//! Handlers that end their process: a unit that may do so, of events or of timers, is written down before it begins.
//!
//! Nobody catches an abort, an overflow of the stack or the kernel's answer to a lack of memory, and whoever is started
//! again would run into it again. So after an end without a goodbye the units of a worker begin small and are marked,
//! and so is every further try of an event or a timer that failed. A marker whose process is gone tells what that one
//! died of: a larger unit is tried in halves, a single event or timer counts as a failed attempt. That a connection is
//! gone proves nothing: it is the process itself that is looked for, and where that cannot be seen, such as on another
//! machine, the longest time that a unit can take is waited for.

use std::time::Duration;

use store::{Database, DatabaseKind, Position, ReadError, Timestamp, Tx};
use uuid::Uuid;

use crate::cursor::Cursor;
use crate::engine::{Engine, EngineError, WORKER_SILENCE};
use crate::feed::Moment;
use crate::park;
use crate::runner::{Life, life_in_this_system, this_process, this_process_here};
use crate::subscriber::Registered;
use crate::subscription::Subscription;
use crate::unit::{self, FailsAt, Unit};
use crate::worker_row;

/// A unit that was under way when its process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marker {
    position: Position,
    events: i64,
    /// The first of its timers, if it was a unit of timers.
    timer: Option<i64>,
    runner: String,
    /// When the state of the row last changed that the unit began with.
    row_changed_at: Option<Timestamp>,
    marked_at: Timestamp,
    age: Duration,
}

/// The process that ran a unit was gone before the unit had come to anything.
#[derive(Debug, thiserror::Error)]
#[error("the process ended while this event was handled")]
struct ProcessEnded;

/// What a unit is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marked {
    /// Events, from this position on.
    Events(Position),
    /// Timers, the first of which has this number.
    Timers(i64),
}

/// Writes down that a unit of so many events or timers is about to begin; not if another runner's marker is there, which
/// says whether that has happened.
pub(crate) async fn mark(
    database: &Database,
    seen: &Subscription,
    what: Marked,
    events: usize,
) -> sqlx::Result<bool> {
    let (position, timer) = match what {
        Marked::Events(position) => (position, None),
        Marked::Timers(number) => (seen.read_from(), Some(number)),
    };
    let events = i64::try_from(events).unwrap_or(i64::MAX);
    let sql = "INSERT INTO herald_unit_markers AS marker (subscription_id, position, events, timer_number, runner,
                                                          row_changed_at, marked_at)
               VALUES ($1, $2, $3, $4, $5, $6, {now})
               ON CONFLICT (subscription_id) DO UPDATE
                  SET position = excluded.position, events = excluded.events, timer_number = excluded.timer_number,
                      runner = excluded.runner, row_changed_at = excluded.row_changed_at,
                      marked_at = excluded.marked_at
                WHERE marker.runner LIKE $7 || '%'
                   OR marker.row_changed_at < excluded.row_changed_at
                   OR (marker.timer_number IS NULL AND marker.position <= $8)
                   OR (marker.timer_number IS NOT NULL
                       AND NOT EXISTS (SELECT 1 FROM herald_timers WHERE number = marker.timer_number))";
    let ours = this_process().to_string();
    let runner = this_process_here();
    let values = (seen.id.as_str(), position, events, timer, runner, seen.changed_at, ours, seen.read_from());
    Ok(database.execute(sql, values).await? == 1)
}

/// The unit has come to something, or never began: our marker goes.
pub(crate) async fn unmark(database: &Database, id: &str) -> sqlx::Result<()> {
    forget(database, id, &this_process().to_string()).await
}

/// The subscription is gone, or stands somewhere else: so is what was said of its units.
pub(crate) async fn forget_all(tx: &mut Tx, id: &str) -> sqlx::Result<()> {
    tx.execute("DELETE FROM herald_unit_markers WHERE subscription_id = $1", (id,)).await.map(drop)
}

/// Takes the marker away, if it is of a runner that begins like this.
async fn forget(database: &Database, id: &str, runner: &str) -> sqlx::Result<()> {
    let sql = "DELETE FROM herald_unit_markers WHERE subscription_id = $1 AND runner LIKE $2 || '%'";
    database.execute(sql, (id, runner)).await?;
    Ok(())
}

async fn left(database: &Database, id: &str) -> sqlx::Result<Option<Marker>> {
    let sql = "SELECT position, events, timer_number, runner, row_changed_at, marked_at, {now}
                 FROM herald_unit_markers
                WHERE subscription_id = $1";
    type Row = (Position, i64, Option<i64>, String, Option<Timestamp>, Timestamp, Timestamp);
    let row: Option<Row> = database.fetch_optional(sql, (id,)).await?;
    Ok(row.map(|(position, events, timer, runner, row_changed_at, marked_at, now)| Marker {
        position,
        events,
        timer,
        runner,
        row_changed_at,
        marked_at,
        age: now.since(marked_at),
    }))
}

/// Whether the server has begun since then: all units of before have ended with it, and nobody died of an event.
async fn server_began_after(database: &Database, marked_at: Timestamp) -> sqlx::Result<bool> {
    match database.kind() {
        // There is no server.
        DatabaseKind::Sqlite => Ok(false),
        DatabaseKind::Postgres => {
            let sql = "SELECT $1 < pg_postmaster_start_time()";
            let row: Option<(bool,)> = database.fetch_optional(sql, (marked_at,)).await?;
            Ok(row.is_some_and(|row| row.0))
        }
    }
}

impl Engine {
    /// Whether a worker other than this one has left its row behind: it died, perhaps of an event, or it is still at
    /// work.
    pub(crate) async fn a_worker_may_have_died(&self, but_not: Option<Uuid>) -> Result<bool, EngineError> {
        let workers = worker_row::workers(self.store().database()).await?;
        Ok(workers.iter().any(|worker| Some(worker.id) != but_not && worker.program == self.program()))
    }

    /// The cursor of who moves subscriptions by hand, since this moment: as careful as that of a worker that begins.
    pub(crate) async fn cursor_by_hand(&self, began: Moment) -> Result<Cursor, EngineError> {
        let is_careful = self.a_worker_may_have_died(None).await?;
        let cursor = Cursor::since(self, began);
        Ok(if is_careful { cursor.with_care() } else { cursor })
    }

    /// What follows from a marker that is there before a unit begins: nothing, if there is none or it is ours; a
    /// failed attempt, if somebody died of that very event. Otherwise the cursor is told to go on carefully.
    pub(crate) async fn after_a_cut(
        &self,
        registered: &Registered,
        seen: &Subscription,
        cursor: &mut Cursor,
    ) -> Result<Option<Unit>, EngineError> {
        let database = self.store().database();
        let Some(marker) = left(database, &seen.id).await? else { return Ok(None) };
        let is_ours = marker.runner.starts_with(&this_process().to_string());
        let timer = match marker.timer {
            None => None,
            Some(number) => self.timer(&seen.id, number).await?,
        };
        // It was removed, replayed or put elsewhere since: that was another life of it.
        let is_of_before = marker.row_changed_at.is_some_and(|at| at < seen.changed_at);
        // What it was about is done, or gone.
        let is_over =
            if marker.timer.is_some() { timer.is_none() } else { marker.position <= seen.read_from() };
        if is_ours || is_of_before || is_over {
            forget(database, &seen.id, &marker.runner).await?;
            return Ok(None);
        }
        if server_began_after(database, marker.marked_at).await? {
            cursor.care = Some(1);
            forget(database, &seen.id, &marker.runner).await?;
            return Ok(None);
        }
        let life = life_in_this_system(&marker.runner);
        let is_fresh = marker.age < self.settings().time_limit + WORKER_SILENCE;
        match life {
            // It is about to begin, or at it.
            Life::Lives | Life::CannotTell if is_fresh => return Ok(Some(Unit::Busy)),
            // It left the marker lying about.
            Life::Lives => {
                forget(database, &seen.id, &marker.runner).await?;
                return Ok(None);
            }
            Life::Gone | Life::CannotTell => {}
        }
        let (id, position, events) = (&seen.id, marker.position, marker.events);
        match &timer {
            None => tracing::warn!(
                subscription = id,
                position = position.0,
                "the process that handled {events} event(s) of {id} from position {position} on has ended; going on carefully"
            ),
            Some(timer) => tracing::warn!(
                subscription = id,
                "the process that handled {events} timer(s) of {id} from {:?} on has ended; going on carefully",
                timer.timer.key
            ),
        }
        if events > 1 {
            cursor.care = Some(usize::try_from(events / 2).unwrap_or(1));
            forget(database, id, &marker.runner).await?;
            return Ok(None);
        }
        let failed = match timer {
            None => self.fails_of_a_cut(registered, seen, position).await?,
            Some(timer) => {
                let noted = self.timer_ended_its_process(registered, seen, &timer).await?;
                // Whatever came of it, the row is to be looked at again.
                Some(if noted { Unit::Looked { scanned_to: seen.read_from() } } else { Unit::Busy })
            }
        };
        cursor.care = Some(1);
        forget(database, id, &marker.runner).await?;
        Ok(failed)
    }

    async fn fails_of_a_cut(
        &self,
        registered: &Registered,
        seen: &Subscription,
        position: Position,
    ) -> Result<Option<Unit>, EngineError> {
        // What stands before it may be still to come: the subscription was started over since. Then the marker says
        // nothing.
        match self.store().read(&registered.definition.filter, seen.read_from(), 1).await {
            Ok(page) => match page.events.first().filter(|event| event.position == position) {
                Some(event) => {
                    park::fail_or_park(self, registered, seen, event, ProcessEnded.into()).await.map(Some)
                }
                None => Ok(None),
            },
            Err(ReadError::BadRow { position: bad, .. }) if bad == position => {
                let retry = &registered.definition.retry;
                unit::fail(self, retry, seen, FailsAt::Row(position), &ProcessEnded).await.map(Some)
            }
            Err(ReadError::BadRow { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
