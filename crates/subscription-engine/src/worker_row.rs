//! The rows of running workers: who is there, what it knows, and when it last showed progress. Used for
//! detaching and for the status, never to decide who owns a subscription.

use std::time::Duration;

use store::{Database, DatabaseKind, Timestamp};
use uuid::Uuid;

use crate::engine::Criteria;
use crate::records::{BadRow, RecordError};
use crate::runner::{Life, life, this_runner};
use crate::subscription::Subscription;

/// A running worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRow {
    /// Its id, made at its start.
    pub id: Uuid,
    /// Its program.
    pub program: String,
    /// The build of that program.
    pub build: String,
    /// The subscribers that it knows.
    pub subscriber_ids: Vec<String>,
    /// Which of them it moves.
    pub criteria: Criteria,
    /// How long ago it last showed progress, by the database's clock.
    pub last_progress_ago: Duration,
    /// How long ago it began, by the same clock; none: it is of a program that does not say so.
    pub started_ago: Option<Duration>,
    /// What it says of its process; none: it is of a program that does not say so.
    pub(crate) runner: Option<String>,
}

impl WorkerRow {
    /// Whether it moves this subscription.
    pub fn moves(&self, subscription: &Subscription) -> bool {
        self.subscriber_ids.contains(&subscription.id)
            && self.criteria.matches(&subscription.id, &subscription.group)
    }
}

/// Notes that a worker is there and moving, by the database's clock.
pub(crate) async fn beat(
    database: &Database,
    id: Uuid,
    program: &str,
    build: &str,
    subscriber_ids: &[String],
    criteria: &Criteria,
) -> Result<(), RecordError> {
    let ids = serde_json::to_string(subscriber_ids).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let criteria = serde_json::to_string(criteria).map_err(|error| sqlx::Error::Encode(error.into()))?;
    // On PostgreSQL the session that writes it stands for the process; the next beat may come from another one.
    let sql = match database.kind() {
        DatabaseKind::Postgres => {
            "INSERT INTO herald_workers
                    (id, program, build, subscriber_ids, criteria, last_progress_at, started_at, runner)
             SELECT $1, $2, $3, $4, $5, {now}, {now},
                    $6 || ' ' || pid || ' ' || COALESCE(extract(epoch FROM backend_start)::text, '')
               FROM pg_stat_activity WHERE pid = pg_backend_pid()
             ON CONFLICT (id) DO UPDATE SET last_progress_at = {now}, runner = excluded.runner"
        }
        DatabaseKind::Sqlite => {
            "INSERT INTO herald_workers
                    (id, program, build, subscriber_ids, criteria, last_progress_at, started_at, runner)
             VALUES ($1, $2, $3, $4, $5, {now}, {now}, $6)
             ON CONFLICT (id) DO UPDATE SET last_progress_at = {now}"
        }
    };
    database.execute(sql, (id, program, build, ids, criteria, this_runner(database))).await?;
    Ok(())
}

pub(crate) async fn forget_worker(database: &Database, id: Uuid) -> Result<(), RecordError> {
    database.execute("DELETE FROM herald_workers WHERE id = $1", (id,)).await?;
    Ok(())
}

/// The workers that have a row, whether they still live or not.
pub(crate) async fn workers(database: &Database) -> Result<Vec<WorkerRow>, RecordError> {
    let sql =
        "SELECT id, program, build, subscriber_ids, criteria, last_progress_at, started_at, runner, {now}
                 FROM herald_workers
                ORDER BY id";
    type Row =
        (Uuid, String, String, String, String, Timestamp, Option<Timestamp>, Option<String>, Timestamp);
    let rows: Vec<Row> = database.fetch_all(sql, ()).await?;
    let worker = |(id, program, build, subscriber_ids, criteria, seen, started, runner, now): Row| {
        let bad = |error: serde_json::Error| BadRow { id: format!("worker {id}"), reason: error.to_string() };
        let subscriber_ids = serde_json::from_str(&subscriber_ids).map_err(bad)?;
        let criteria = serde_json::from_str(&criteria).map_err(bad)?;
        let last_progress_ago = now.since(seen);
        let started_ago = started.map(|started| now.since(started));
        Ok(WorkerRow { id, program, build, subscriber_ids, criteria, last_progress_ago, started_ago, runner })
    };
    rows.into_iter().map(worker).collect()
}

/// The workers that showed progress lately, without those whose process is known to be gone.
pub(crate) async fn live_workers(
    database: &Database,
    silence: Duration,
    suspicious: Duration,
) -> Result<Vec<WorkerRow>, RecordError> {
    let mut live = Vec::new();
    for worker in workers(database).await? {
        // A session may end though its process lives on, which then says so from another one at its next beat.
        let may_be_gone = database.kind() == DatabaseKind::Sqlite || worker.last_progress_ago >= suspicious;
        let is_gone = match &worker.runner {
            Some(runner) if may_be_gone => life(database, runner).await? == Life::Gone,
            _ => false,
        };
        if worker.last_progress_ago < silence && !is_gone {
            live.push(worker);
        }
    }
    Ok(live)
}
