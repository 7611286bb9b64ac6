//! All SQL on the engine's own tables, and the claim that a row is.
//!
//! A claim is a row lock in the transaction that does the work: it needs no lease and trusts no clock, and a
//! dead worker's claim ends with its connection. Positions move by compare-and-set on top of that.

use std::collections::HashMap;
use std::time::Duration;

use store::{Connection, Database, DatabaseKind, Position, TableName, Timestamp, Tx};

use crate::definition_record::DefinitionRecord;
use crate::effects;
use crate::poison::Letters;
use crate::subscriber::RunMode;
use crate::subscription::{Failure, Resume, State, Status, Subscription};
use crate::timers::next_timer;

/// A row that no state of this program could have written.
#[derive(Debug, thiserror::Error)]
#[error("the row of subscription {id} cannot be read: {reason}")]
pub struct BadRow {
    /// Whose row.
    pub id: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a row could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A row that nobody could have written.
    #[error(transparent)]
    BadRow(#[from] BadRow),
    /// The database refused.
    #[error("could not read or write the subscriptions")]
    Database(#[from] sqlx::Error),
}

/// The server's end of the connection that holds a claim (PostgreSQL).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session(pub(crate) Option<i32>);

/// What came of asking for a row's lock.
pub(crate) enum Claim {
    /// It is ours until the transaction ends.
    Held(Box<Subscription>, Session),
    /// Somebody else has it.
    Busy,
    /// There is no such row.
    Gone,
}

/// How long an operator's command waits for a worker to finish its unit.
const CLAIM_PATIENCE: &str = "SET LOCAL lock_timeout = '5s'";

/// A query for whole rows.
macro_rules! select {
    ($rest:literal) => {
        select!("NULL", $rest)
    };
    ($session:literal, $rest:literal) => {
        concat!(
            r#"SELECT id, program, "group", run_mode, status, resume, position, error, attempt,
                      failing_position, failing_since, next_retry_at, dead_letters, recent_events,
                      recent_dead_letters, clean_up, definition, created_at, changed_at, history_to, "#,
            next_timer!(),
            " AS next_timer, ",
            $session,
            " AS session FROM herald_subscriptions ",
            $rest
        )
    };
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    program: String,
    group: String,
    run_mode: String,
    status: String,
    resume: Option<String>,
    position: Option<Position>,
    error: Option<String>,
    attempt: i32,
    failing_position: Option<Position>,
    failing_since: Option<Timestamp>,
    next_retry_at: Option<Timestamp>,
    dead_letters: i64,
    recent_events: i64,
    recent_dead_letters: i64,
    clean_up: String,
    definition: Option<String>,
    created_at: Timestamp,
    changed_at: Timestamp,
    next_timer: Option<Timestamp>,
    history_to: Option<Position>,
    session: Option<i32>,
}

impl TryFrom<Row> for Subscription {
    type Error = BadRow;

    fn try_from(row: Row) -> Result<Self, BadRow> {
        let id = row.id.clone();
        let bad = |reason: String| BadRow { id: id.clone(), reason };
        let status: Status = row.status.parse().map_err(|error| bad(format!("status: {error}")))?;
        let run_mode: RunMode = row.run_mode.parse().map_err(|error| bad(format!("run mode: {error}")))?;
        let resume = || -> Result<Resume, BadRow> {
            let word =
                row.resume.as_deref().ok_or_else(|| bad(format!("{status} without what it resumes as")))?;
            word.parse().map_err(|error| bad(format!("resume: {error}")))
        };
        let state = match status {
            Status::New => State::New,
            Status::Booting => State::Booting,
            Status::Active => State::Active,
            Status::Finished => State::Finished,
            Status::Paused => State::Paused { resume: resume()? },
            Status::Detached => State::Detached { resume: resume()? },
            Status::Error => {
                let text = row.error.as_deref().ok_or_else(|| bad("error without an error".to_owned()))?;
                let failure: Failure =
                    serde_json::from_str(text).map_err(|error| bad(format!("error: {error}")))?;
                State::Error { resume: resume()?, failure, next_retry: row.next_retry_at }
            }
        };
        let tables: Vec<String> =
            serde_json::from_str(&row.clean_up).map_err(|error| bad(format!("clean-up: {error}")))?;
        let clean_up = tables.into_iter().map(TableName::new).collect::<Result<_, _>>();
        Ok(Self {
            program: row.program,
            group: row.group,
            run_mode,
            state,
            position: row.position,
            attempt: u32::try_from(row.attempt).map_err(|error| bad(format!("attempt: {error}")))?,
            failing_position: row.failing_position,
            failing_since: row.failing_since,
            // The schema keeps them from being negative.
            letters: Letters {
                open: row.dead_letters.unsigned_abs(),
                recent_events: row.recent_events.unsigned_abs(),
                recent: row.recent_dead_letters.unsigned_abs(),
            },
            clean_up: clean_up.map_err(|error| bad(format!("clean-up: {error}")))?,
            definition: row.definition.map(DefinitionRecord::stored),
            created_at: row.created_at,
            changed_at: row.changed_at,
            next_timer: row.next_timer,
            history_to: row.history_to,
            id: row.id,
        })
    }
}

/// Every subscription, by id. The number of subscribers bounds it.
pub(crate) async fn load_all(database: &Database) -> Result<Vec<Subscription>, RecordError> {
    let sql = select!("ORDER BY id");
    let rows: Vec<Row> = database.fetch_all(sql, ()).await?;
    Ok(rows.into_iter().map(Subscription::try_from).collect::<Result<_, _>>()?)
}

pub(crate) async fn load(database: &Database, id: &str) -> Result<Option<Subscription>, RecordError> {
    let row: Option<Row> = database.fetch_optional(select!("WHERE id = $1"), (id,)).await?;
    Ok(row.map(Subscription::try_from).transpose()?)
}

/// Asks for a row's lock and does not wait: a worker has other things to do.
pub(crate) async fn claim(tx: &mut Tx, id: &str) -> Result<Claim, RecordError> {
    match tx.kind() {
        // The transaction holds the only write lock already.
        DatabaseKind::Sqlite => claimed(tx.fetch_optional(select!("WHERE id = $1"), (id,)).await?),
        DatabaseKind::Postgres => {
            let sql = select!("pg_backend_pid()", "WHERE id = $1 FOR UPDATE SKIP LOCKED");
            match claimed(tx.fetch_optional(sql, (id,)).await?)? {
                Claim::Gone => {
                    let exists: Option<Row> = tx.fetch_optional(select!("WHERE id = $1"), (id,)).await?;
                    Ok(if exists.is_some() { Claim::Busy } else { Claim::Gone })
                }
                claim => Ok(claim),
            }
        }
    }
}

/// Asks for a row's lock and waits for a worker to finish its unit: an operator's command gets through.
pub(crate) async fn claim_patiently(tx: &mut Tx, id: &str) -> Result<Claim, RecordError> {
    if let Connection::Sqlite(_) = tx.connection() {
        return claim(tx, id).await;
    }
    tx.execute(CLAIM_PATIENCE, ()).await?;
    let sql = select!("pg_backend_pid()", "WHERE id = $1 FOR UPDATE");
    match tx.fetch_optional(sql, (id,)).await {
        Ok(row) => claimed(row),
        // 55P03: the lock was not free in time.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => Ok(Claim::Busy),
        Err(error) => Err(error.into()),
    }
}

fn claimed(row: Option<Row>) -> Result<Claim, RecordError> {
    let Some(row) = row else { return Ok(Claim::Gone) };
    let session = Session(row.session);
    Ok(Claim::Held(Box::new(row.try_into()?), session))
}

/// Has the server end a session of ours that hangs in a statement and would keep its claim until that ends;
/// waits until it is gone, up to 5 s.
pub(crate) async fn end_session(database: &Database, session: Session) {
    let Session(Some(process)) = session else { return };
    let ended: sqlx::Result<Option<(bool,)>> =
        database.fetch_optional("SELECT pg_terminate_backend($1, 5000)", (process,)).await;
    if let Err(error) = ended {
        tracing::debug!(%error, "could not end a session that was cut short; its claim lasts until its statement ends");
    }
}

/// Adds a row unless there is one; says whether it did. Two processes may do this at once.
pub(crate) async fn insert(tx: &mut Tx, subscription: &Subscription, who: &str) -> Result<bool, RecordError> {
    let added = tx
        .execute(
            r#"INSERT INTO herald_subscriptions (id, program, "group", run_mode, status, attempt, clean_up,
                                                 created_at, changed_at)
               VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $7)
               ON CONFLICT (id) DO NOTHING"#,
            (
                subscription.id.as_str(),
                subscription.program.as_str(),
                subscription.group.as_str(),
                subscription.run_mode.word(),
                subscription.state.status().word(),
                clean_up_text(&subscription.clean_up),
                subscription.created_at,
            ),
        )
        .await?;
    if added > 0 {
        let status = subscription.state.status().word();
        write_history(tx, subscription, None, status, "discovered", who).await?;
    }
    Ok(added > 0)
}

/// Writes a claimed row back after a transition, with a line of history.
///
/// A position that moves takes the event at which it stands with it; one that stays keeps the event at which it
/// stood, so that what does not fit the log (`checkpoint.rs`) is not made to fit by the way.
pub(crate) async fn save(
    tx: &mut Tx,
    subscription: &Subscription,
    from: Status,
    why: &str,
    who: &str,
) -> Result<(), RecordError> {
    let (resume, failure, next_retry) = match &subscription.state {
        State::Paused { resume } | State::Detached { resume } => (Some(resume.word()), None, None),
        State::Error { resume, failure, next_retry } => {
            let text = serde_json::to_string(failure).map_err(|error| sqlx::Error::Encode(error.into()))?;
            (Some(resume.word()), Some(text), *next_retry)
        }
        State::New | State::Booting | State::Active | State::Finished => (None, None, None),
    };
    tx.execute(
        "UPDATE herald_subscriptions
            SET status = $2, resume = $3, position = $4, error = $5, attempt = $6, failing_position = $7,
                next_retry_at = $8, clean_up = $9, changed_at = $10, failing_since = $11, dead_letters = $12,
                recent_events = $13, recent_dead_letters = $14, history_to = $15,
                moved_at = CASE WHEN position IS NOT DISTINCT FROM $4 THEN moved_at ELSE {now} END,
                position_event_at = CASE WHEN position = $4 THEN position_event_at ELSE $4 END,
                position_event_id = CASE WHEN position = $4 THEN position_event_id
                                         ELSE (SELECT id FROM herald_events
                                                WHERE position <= $4 ORDER BY position DESC LIMIT 1) END
          WHERE id = $1",
        (
            subscription.id.as_str(),
            subscription.state.status().word(),
            resume,
            subscription.position,
            failure,
            i32::try_from(subscription.attempt).unwrap_or(i32::MAX),
            subscription.failing_position,
            next_retry,
            clean_up_text(&subscription.clean_up),
            subscription.changed_at,
            subscription.failing_since,
            number(subscription.letters.open),
            number(subscription.letters.recent_events),
            number(subscription.letters.recent),
            subscription.history_to,
        ),
    )
    .await?;
    write_history(tx, subscription, Some(from), subscription.state.status().word(), why, who).await
}

/// Moves a claimed row on; says whether it stood where it was thought to stand.
pub(crate) async fn advance(
    tx: &mut Tx,
    seen: &Subscription,
    after: &Subscription,
) -> Result<bool, RecordError> {
    let moved = tx
        .execute(
            "UPDATE herald_subscriptions
                SET position = $2, attempt = $3, failing_position = $4, failing_since = $5, dead_letters = $6,
                    recent_events = $7, recent_dead_letters = $8, moved_at = {now}, position_event_at = $2,
                    position_event_id = (SELECT id FROM herald_events
                                          WHERE position <= $2 ORDER BY position DESC LIMIT 1)
              WHERE id = $1 AND status = $9 AND COALESCE(position, 0) = $10",
            (
                seen.id.as_str(),
                after.position,
                i32::try_from(after.attempt).unwrap_or(i32::MAX),
                after.failing_position,
                after.failing_since,
                number(after.letters.open),
                number(after.letters.recent_events),
                number(after.letters.recent),
                seen.state.status().word(),
                seen.read_from(),
            ),
        )
        .await?;
    Ok(moved == 1)
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(crate) async fn delete(
    tx: &mut Tx,
    subscription: &Subscription,
    why: &str,
    who: &str,
) -> Result<(), RecordError> {
    tx.execute("DELETE FROM herald_subscriptions WHERE id = $1", (subscription.id.as_str(),)).await?;
    write_history(tx, subscription, Some(subscription.state.status()), "removed", why, who).await
}

async fn write_history(
    tx: &mut Tx,
    subscription: &Subscription,
    from: Option<Status>,
    to: &str,
    why: &str,
    who: &str,
) -> Result<(), RecordError> {
    tx.execute(
        "INSERT INTO herald_subscription_history (subscription_id, at, from_status, to_status, position, why, who)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        (
            subscription.id.as_str(),
            subscription.changed_at,
            from.map(Status::word),
            to,
            subscription.position,
            why,
            who,
        ),
    )
    .await?;
    // Whatever a subscription becomes says whether its effects may be sent.
    Ok(effects::subscription_became(tx, &subscription.id, to, subscription.changed_at, who).await?)
}

/// Counts dead letters of a claimed row that were handled or discarded; where none is left nothing is counted.
pub(crate) async fn count_letters_out(tx: &mut Tx, id: &str, letters: u64) -> Result<(), RecordError> {
    let sql = "UPDATE herald_subscriptions
                  SET dead_letters = dead_letters - $2,
                      recent_events = CASE WHEN dead_letters > $2 THEN recent_events ELSE 0 END,
                      recent_dead_letters = CASE WHEN dead_letters > $2 THEN recent_dead_letters ELSE 0 END
                WHERE id = $1";
    tx.execute(sql, (id, number(letters))).await?;
    Ok(())
}

/// Adds lines to the history of a claimed row whose state stays as it is.
pub(crate) async fn note(
    tx: &mut Tx,
    subscription: &Subscription,
    at: Timestamp,
    lines: &[String],
    who: &str,
) -> Result<(), RecordError> {
    let status = subscription.state.status().word();
    let line = |why: &String| {
        let id = subscription.id.as_str();
        (id, at, status, status, subscription.position, why.clone(), who)
    };
    let sql =
        "INSERT INTO herald_subscription_history (subscription_id, at, from_status, to_status, position, why,
                                                        who)
               VALUES {rows}";
    tx.execute_many(sql, lines.iter().map(line).collect()).await?;
    Ok(())
}

/// One line of a subscription's history.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct HistoryLine {
    /// When, by the log's clock.
    pub at: Timestamp,
    /// What it was; none: it came into being.
    pub from_status: Option<String>,
    /// What it became; `removed` at the end.
    pub to_status: String,
    /// Where it stood.
    pub position: Option<Position>,
    /// Why.
    pub why: String,
    /// By whom.
    pub who: String,
}

/// The last lines of a subscription's history, oldest first.
pub(crate) async fn history(
    database: &Database,
    id: &str,
    limit: i64,
) -> Result<Vec<HistoryLine>, RecordError> {
    let sql = "SELECT at, from_status, to_status, position, why, who
                 FROM herald_subscription_history
                WHERE subscription_id = $1
                ORDER BY number DESC
                LIMIT $2";
    let mut lines: Vec<HistoryLine> = database.fetch_all(sql, (id, limit)).await?;
    lines.reverse();
    Ok(lines)
}

/// How long ago each subscription last moved, by the database's clock.
pub(crate) async fn last_moves(database: &Database) -> Result<HashMap<String, Duration>, RecordError> {
    let sql = "SELECT id, moved_at, {now} FROM herald_subscriptions WHERE moved_at IS NOT NULL";
    let rows: Vec<(String, Timestamp, Timestamp)> = database.fetch_all(sql, ()).await?;
    Ok(rows.into_iter().map(|(id, moved, now)| (id, now.since(moved))).collect())
}

/// The line that says since when a subscription is what it is.
pub(crate) async fn last_change(database: &Database, id: &str) -> Result<Option<HistoryLine>, RecordError> {
    let sql = "SELECT at, from_status, to_status, position, why, who
                 FROM herald_subscription_history
                WHERE subscription_id = $1 AND (from_status IS NULL OR from_status <> to_status)
                ORDER BY number DESC
                LIMIT 1";
    Ok(database.fetch_optional(sql, (id,)).await?)
}

/// Writes what the code says of a claimed row: its group, its run mode, the tables to drop with it, and what it was
/// set up as.
pub(crate) async fn save_definition(tx: &mut Tx, subscription: &Subscription) -> Result<(), RecordError> {
    let sql = r#"UPDATE herald_subscriptions SET "group" = $2, run_mode = $3, clean_up = $4, definition = $5
                  WHERE id = $1"#;
    let (id, group) = (subscription.id.as_str(), subscription.group.as_str());
    let clean_up = clean_up_text(&subscription.clean_up);
    let definition = subscription.definition.as_ref().map(|record| record.as_str().to_owned());
    tx.execute(sql, (id, group, subscription.run_mode.word(), clean_up, definition)).await?;
    Ok(())
}

/// Writes down what a row was set up as that a program set up which did not keep that.
pub(crate) async fn keep_definition(
    database: &Database,
    id: &str,
    definition: &DefinitionRecord,
) -> Result<(), RecordError> {
    let sql = "UPDATE herald_subscriptions SET definition = $2
                WHERE id = $1 AND definition IS NULL AND status <> 'new' AND COALESCE(resume, '') <> 'new'";
    database.execute(sql, (id, definition.as_str())).await?;
    Ok(())
}

fn clean_up_text(tables: &[TableName]) -> String {
    let names: Vec<&str> = tables.iter().map(TableName::as_str).collect();
    serde_json::to_string(&names).unwrap_or_else(|_| "[]".to_owned())
}
