//! Handlers that end their process: a unit that may do so is written down before it begins.
//!
//! Nobody catches an abort, an overflow of the stack or the kernel's answer to a lack of memory, and whoever is started
//! again would run into it again. So after an end without a goodbye the units of a worker begin small and are marked,
//! and so is every further try of an event that failed. A marker whose runner is gone tells what that one died of: a
//! larger unit is tried in halves, a single event counts as a failed attempt.

use std::time::Duration;

use store::{Database, DatabaseKind, Position, ReadError, Timestamp, Tx};

use crate::cursor::Cursor;
use crate::engine::{Engine, EngineError, WORKER_SILENCE};
use crate::park;
use crate::runner::{Life, life, this_process, this_runner};
use crate::subscriber::Registered;
use crate::subscription::Subscription;
use crate::unit::{self, FailsAt, Unit};

/// A unit that was under way when its process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marker {
    position: Position,
    events: i64,
    runner: String,
    age: Duration,
}

/// The process that ran a unit was gone before the unit had come to anything.
#[derive(Debug, thiserror::Error)]
#[error("the process ended while this event was handled")]
struct ProcessEnded;

/// Writes down that a unit of so many events from this position on is about to begin; not if another runner's marker is
/// there, which says whether that has happened.
pub(crate) async fn mark(
    database: &Database,
    seen: &Subscription,
    position: Position,
    events: usize,
) -> sqlx::Result<bool> {
    let events = i64::try_from(events).unwrap_or(i64::MAX);
    // On PostgreSQL the session that writes it stands for the runner, on SQLite the process itself.
    let sql = match database.kind() {
        DatabaseKind::Postgres => {
            "INSERT INTO herald_unit_markers AS marker (subscription_id, position, events, runner, marked_at)
             SELECT $1, $2, $3, $4 || ' ' || pid || ' ' || COALESCE(extract(epoch FROM backend_start)::text, ''), {now}
               FROM pg_stat_activity WHERE pid = pg_backend_pid()
             ON CONFLICT (subscription_id) DO UPDATE
                SET position = excluded.position, events = excluded.events, runner = excluded.runner,
                    marked_at = excluded.marked_at
              WHERE marker.runner LIKE $5 || '%' OR marker.position <= $6"
        }
        DatabaseKind::Sqlite => {
            "INSERT INTO herald_unit_markers AS marker (subscription_id, position, events, runner, marked_at)
             VALUES ($1, $2, $3, $4, {now})
             ON CONFLICT (subscription_id) DO UPDATE
                SET position = excluded.position, events = excluded.events, runner = excluded.runner,
                    marked_at = excluded.marked_at
              WHERE marker.runner LIKE $5 || '%' OR marker.position <= $6"
        }
    };
    let ours = this_process().to_string();
    let runner = this_runner(database);
    let values = (seen.id.as_str(), position, events, runner, ours, seen.read_from());
    Ok(database.execute(sql, values).await? == 1)
}

/// The unit has come to something, or never began: our marker goes.
pub(crate) async fn unmark(database: &Database, id: &str) -> sqlx::Result<()> {
    forget(database, id, &this_process().to_string()).await
}

/// The subscription is gone: so is what was said of its units.
pub(crate) async fn unmark_removed(tx: &mut Tx, id: &str) -> sqlx::Result<()> {
    tx.execute("DELETE FROM herald_unit_markers WHERE subscription_id = $1", (id,)).await.map(drop)
}

/// Takes the marker away, if it is of a runner that begins like this.
async fn forget(database: &Database, id: &str, runner: &str) -> sqlx::Result<()> {
    let sql = "DELETE FROM herald_unit_markers WHERE subscription_id = $1 AND runner LIKE $2 || '%'";
    database.execute(sql, (id, runner)).await?;
    Ok(())
}

async fn left(database: &Database, id: &str) -> sqlx::Result<Option<Marker>> {
    let sql = "SELECT position, events, runner, marked_at, {now} FROM herald_unit_markers WHERE subscription_id = $1";
    let row: Option<(Position, i64, String, Timestamp, Timestamp)> =
        database.fetch_optional(sql, (id,)).await?;
    Ok(row.map(|(position, events, runner, at, now)| Marker { position, events, runner, age: now.since(at) }))
}

impl Engine {
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
        if is_ours || marker.position <= seen.read_from() {
            forget(database, &seen.id, &marker.runner).await?;
            return Ok(None);
        }
        let life = life(database, &marker.runner).await?;
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
        tracing::warn!(
            subscription = id,
            position = position.0,
            "the process that handled {events} event(s) of {id} from position {position} on has ended; going on carefully"
        );
        if events > 1 {
            cursor.care = Some(usize::try_from(events / 2).unwrap_or(1));
            forget(database, id, &marker.runner).await?;
            return Ok(None);
        }
        let failed = self.fails_of_a_cut(registered, seen, position).await?;
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
