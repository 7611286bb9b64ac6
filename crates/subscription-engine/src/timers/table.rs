//! SQL on the timers: setting, finding, changing, listing and counting them.
//!
//! Whoever writes holds the claim on the subscription's row, so that nobody else changes its timers meanwhile.

use std::collections::HashMap;

use store::{Database, Json, Position, Timestamp, Tx};
use uuid::Uuid;

use crate::records::{BadRow, RecordError};
use crate::timers::{Timer, TimerRecord};

/// The next instant at which a timer of a row of `herald_subscriptions` is to be looked at, as a column of a query on
/// that table: whoever reads the row knows it without asking again. It is the first entry of an index.
macro_rules! next_timer {
    () => {
        "(SELECT MIN(try_at) FROM herald_timers WHERE subscription_id = herald_subscriptions.id)"
    };
}
pub(crate) use next_timer;

#[derive(sqlx::FromRow)]
struct Row {
    number: i64,
    subscription_id: String,
    key: String,
    id: Uuid,
    due_at: Timestamp,
    payload: String,
    cause_id: Uuid,
    cause_position: Position,
    correlation_id: Option<String>,
    caused_at: Timestamp,
    try_at: Option<Timestamp>,
    barrier: Option<Position>,
    attempt: i32,
    error: Option<String>,
}

/// A query for whole rows.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT number, subscription_id, key, id, due_at, payload, cause_id, cause_position, correlation_id,
                    caused_at, try_at, barrier, attempt, error
               FROM herald_timers ",
            $rest
        )
    };
}

impl TryFrom<Row> for TimerRecord {
    type Error = BadRow;

    fn try_from(row: Row) -> Result<Self, BadRow> {
        let id = format!("{}, timer {:?}", row.subscription_id, row.key);
        let bad = |reason: String| BadRow { id: id.clone(), reason };
        let payload = Json::parse(row.payload).map_err(|error| bad(format!("payload: {error}")))?;
        let error = row.error.as_deref().map_or(Ok(Vec::new()), serde_json::from_str);
        let timer = Timer {
            due: row.due_at,
            payload,
            id: row.id,
            cause_id: row.cause_id,
            cause_position: row.cause_position,
            correlation_id: row.correlation_id,
            caused_at: row.caused_at,
            attempt: u32::try_from(row.attempt).map_err(|error| bad(format!("attempt: {error}")))?,
            key: row.key,
        };
        Ok(Self {
            number: row.number,
            timer,
            try_at: row.try_at,
            barrier: row.barrier,
            error: error.map_err(|error| bad(format!("error: {error}")))?,
        })
    }
}

fn records(rows: Vec<Row>) -> Result<Vec<TimerRecord>, RecordError> {
    Ok(rows.into_iter().map(TimerRecord::try_from).collect::<Result<_, _>>()?)
}

/// Sets and cancels timers, each key once: what was there under a key is gone.
pub(super) async fn write(
    tx: &mut Tx,
    subscription_id: &str,
    changes: Vec<(String, Option<Timer>)>,
) -> sqlx::Result<()> {
    let keys = changes.iter().map(|(key, _)| (subscription_id, key.clone())).collect();
    tx.execute_many("DELETE FROM herald_timers WHERE (subscription_id, key) IN (VALUES {rows})", keys)
        .await?;
    let row = |timer: Timer| {
        let (id, due, payload) = (timer.id, timer.due, timer.payload.as_str().to_owned());
        let cause = (timer.cause_id, timer.cause_position, timer.correlation_id, timer.caused_at);
        (subscription_id, timer.key, id, due, payload, cause.0, cause.1, cause.2, cause.3, due)
    };
    let sql =
        "INSERT INTO herald_timers (subscription_id, key, id, due_at, payload, cause_id, cause_position,
                                          correlation_id, caused_at, try_at)
               VALUES {rows}";
    tx.execute_many(sql, changes.into_iter().filter_map(|(_, timer)| timer.map(row)).collect()).await?;
    Ok(())
}

/// Those that were seen due and may be tried now, in the order in which they fire.
pub(super) async fn seen_due(
    database: &Database,
    subscription_id: &str,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<TimerRecord>, RecordError> {
    let sql = select!(
        "WHERE subscription_id = $1 AND turn > 0 AND try_at <= $2
         ORDER BY turn, due_at, number
         LIMIT $3"
    );
    records(database.fetch_all(sql, (subscription_id, now, limit)).await?)
}

/// Notes that timers are due, the first due first, and where the head is; says of how many.
pub(super) async fn see_due(
    tx: &mut Tx,
    subscription_id: &str,
    now: Timestamp,
    head: Position,
    limit: i64,
) -> sqlx::Result<u64> {
    let sql = "UPDATE herald_timers
                  SET barrier = $3,
                      turn = 1 + COALESCE((SELECT MAX(turn) FROM herald_timers WHERE subscription_id = $1), 0)
                WHERE number IN (SELECT number
                                   FROM herald_timers
                                  WHERE subscription_id = $1 AND turn IS NULL AND due_at <= $2
                                  ORDER BY due_at, number
                                  LIMIT $4)";
    tx.execute(sql, (subscription_id, now, head, limit)).await
}

/// One timer by its number.
pub(super) async fn of_number(
    database: &Database,
    subscription_id: &str,
    number: i64,
) -> Result<Option<TimerRecord>, RecordError> {
    let sql = select!("WHERE subscription_id = $1 AND number = $2");
    let row: Option<Row> = database.fetch_optional(sql, (subscription_id, number)).await?;
    Ok(row.map(TimerRecord::try_from).transpose()?)
}

/// Takes away timers that have fired; says whether all of them were still there.
pub(super) async fn take(tx: &mut Tx, fired: &[TimerRecord]) -> sqlx::Result<bool> {
    let numbers = fired.iter().map(|record| (record.number,)).collect();
    let taken = tx.execute_many("DELETE FROM herald_timers WHERE number IN (VALUES {rows})", numbers).await?;
    Ok(usize::try_from(taken) == Ok(fired.len()))
}

/// Notes that a timer has failed and when it may be tried again, if ever; says whether it was still as it was seen.
pub(super) async fn note_failure(
    tx: &mut Tx,
    failed: &TimerRecord,
    error: &[String],
    try_at: Option<Timestamp>,
) -> sqlx::Result<bool> {
    let sql = "UPDATE herald_timers
                  SET attempt = attempt + 1, error = $3, try_at = $4
                WHERE number = $1 AND attempt = $2";
    let error = serde_json::Value::from(error).to_string();
    let attempt = i32::try_from(failed.timer.attempt).unwrap_or(i32::MAX);
    Ok(tx.execute(sql, (failed.number, attempt, error, try_at)).await? == 1)
}

/// Whether so many timers of a subscription are held.
pub(super) async fn holds(tx: &mut Tx, subscription_id: &str, count: u64) -> sqlx::Result<bool> {
    let sql = "SELECT COUNT(*)
                 FROM (SELECT 1 FROM herald_timers WHERE subscription_id = $1 AND try_at IS NULL LIMIT $2) AS held";
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let held: Option<(i64,)> = tx.fetch_optional(sql, (subscription_id, count)).await?;
    Ok(held.is_some_and(|held| held.0 >= count))
}

/// Has the failed timers of a subscription tried as if they had not, except for those that are held.
pub(crate) async fn forget_attempts(tx: &mut Tx, subscription_id: &str) -> sqlx::Result<()> {
    let sql = "UPDATE herald_timers
                  SET attempt = 0, error = NULL, try_at = due_at
                WHERE subscription_id = $1 AND attempt > 0 AND try_at IS NOT NULL";
    tx.execute(sql, (subscription_id,)).await?;
    Ok(())
}

/// Has one timer that failed tried as if it had not; says whether there is one.
pub(super) async fn retry(tx: &mut Tx, subscription_id: &str, key: &str) -> sqlx::Result<bool> {
    let sql = "UPDATE herald_timers
                  SET attempt = 0, error = NULL, try_at = due_at
                WHERE subscription_id = $1 AND key = $2 AND attempt > 0";
    Ok(tx.execute(sql, (subscription_id, key)).await? == 1)
}

/// Takes one timer away; says whether there was one.
pub(super) async fn discard(tx: &mut Tx, subscription_id: &str, key: &str) -> sqlx::Result<bool> {
    let sql = "DELETE FROM herald_timers WHERE subscription_id = $1 AND key = $2";
    Ok(tx.execute(sql, (subscription_id, key)).await? == 1)
}

/// Takes away all timers of a subscription; says how many there were.
pub(super) async fn forget(tx: &mut Tx, subscription_id: &str) -> sqlx::Result<u64> {
    tx.execute("DELETE FROM herald_timers WHERE subscription_id = $1", (subscription_id,)).await
}

/// The timers of a subscription, the first due first, after one of them.
pub(super) async fn list(
    database: &Database,
    subscription_id: &str,
    after: Option<(Timestamp, i64)>,
    limit: i64,
) -> Result<Vec<TimerRecord>, RecordError> {
    records(match after {
        None => {
            let sql = select!("WHERE subscription_id = $1 ORDER BY due_at, number LIMIT $2");
            database.fetch_all(sql, (subscription_id, limit)).await?
        }
        Some((due, number)) => {
            let sql = select!(
                "WHERE subscription_id = $1 AND (due_at, number) > ($3, $4)
                 ORDER BY due_at, number
                 LIMIT $2"
            );
            database.fetch_all(sql, (subscription_id, limit, due, number)).await?
        }
    })
}

/// More timers of one subscription than these are not counted: whoever asks how it gets on must not wait for that.
const COUNTED_AT_MOST: i64 = 10_000;

/// How many timers a subscription has; what is [`TimerCounts::MOST`] is that or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerCounts {
    /// All that have not fired.
    pub pending: i64,
    /// Those among them whose instant has come, except for those that are held.
    pub overdue: i64,
    /// When the first of those was due.
    pub overdue_since: Option<Timestamp>,
    /// Those that failed for good and wait for an operator.
    pub held: i64,
    /// When the next one may be tried.
    pub next: Option<Timestamp>,
}

impl TimerCounts {
    /// More are not counted.
    pub const MOST: i64 = COUNTED_AT_MOST;
}

/// How many timers each subscription has.
pub(crate) async fn counts(
    database: &Database,
    now: Timestamp,
) -> sqlx::Result<HashMap<String, TimerCounts>> {
    // Each count ends at the limit and reads one index. What has failed and waits for its next try is overdue as well,
    // though not to be tried yet.
    let sql = "SELECT id,
                      (SELECT COUNT(*) FROM (SELECT 1 FROM herald_timers AS timer
                                              WHERE timer.subscription_id = one.id LIMIT $2) AS pending),
                      (SELECT COUNT(*) FROM (SELECT 1 FROM herald_timers AS timer
                                              WHERE timer.subscription_id = one.id AND timer.due_at <= $1
                                                AND timer.try_at IS NOT NULL LIMIT $2) AS overdue),
                      (SELECT MIN(due_at) FROM herald_timers AS timer
                        WHERE timer.subscription_id = one.id AND timer.due_at <= $1 AND timer.try_at IS NOT NULL),
                      (SELECT COUNT(*) FROM (SELECT 1 FROM herald_timers AS timer
                                              WHERE timer.subscription_id = one.id AND timer.try_at IS NULL
                                              LIMIT $2) AS held),
                      (SELECT MIN(try_at) FROM herald_timers AS timer WHERE timer.subscription_id = one.id)
                 FROM herald_subscriptions AS one";
    type Row = (String, i64, i64, Option<Timestamp>, i64, Option<Timestamp>);
    let rows: Vec<Row> = database.fetch_all(sql, (now, COUNTED_AT_MOST)).await?;
    let counts = |(id, pending, overdue, overdue_since, held, next)| {
        (id, TimerCounts { pending, overdue, overdue_since, held, next })
    };
    Ok(rows.into_iter().map(counts).collect())
}
