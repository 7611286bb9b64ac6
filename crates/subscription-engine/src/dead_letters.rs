//! Dead letters: events that a subscription set aside, and all SQL on their table.
//!
//! Of one key only the oldest letter can have failed; those after it were never tried. A letter is written in
//! the transaction that moves the position past its event, and goes in the one that handles or discards it.

use std::collections::HashMap;

use serde::Serialize;
use store::{Database, DatabaseKind, Event, Position, Timestamp, Tx};
use uuid::Uuid;

use crate::records::{BadRow, RecordError};
use crate::subscription::FailedEvent;

/// An event that a subscription set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The id of the subscription.
    pub subscription: String,
    /// The event.
    pub event: FailedEvent,
    /// The key within which order holds.
    pub key: String,
    /// When it was set aside, by the log's clock.
    pub parked_at: Timestamp,
    /// Why it is here.
    pub reason: Reason,
}

/// Why an event is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "lowercase")]
pub enum Reason {
    /// It was tried and failed.
    Failed {
        /// The messages of the last time, outermost first.
        error: Vec<String>,
        /// How often it was tried.
        attempts: u32,
        /// When it failed for the first time.
        first_failed_at: Timestamp,
        /// When it failed for the last time.
        last_failed_at: Timestamp,
    },
    /// It was not tried, because of an older letter of its key.
    Behind {
        /// The oldest letter of the key at that time.
        #[serde(rename = "parked_behind")]
        position: Position,
    },
}

/// Which dead letters; nothing given means all. Conditions are joined by AND.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Of this event.
    pub position: Option<Position>,
    /// Of this key.
    pub key: Option<String>,
    /// Of this event type.
    pub event_type: Option<String>,
    /// Failed with this text in one of the messages.
    pub error: Option<String>,
}

/// A letter that is not written yet.
#[derive(Clone, Debug)]
pub(crate) struct NewLetter<'e> {
    pub(crate) event: &'e Event,
    pub(crate) key: String,
    pub(crate) parked_at: Timestamp,
    pub(crate) reason: Reason,
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: String,
    position: Position,
    event_id: Uuid,
    event_type: String,
    stream: String,
    key: String,
    parked_at: Timestamp,
    reason: String,
    parked_behind: Option<Position>,
    error: Option<String>,
    attempts: i32,
    first_failed_at: Option<Timestamp>,
    last_failed_at: Option<Timestamp>,
}

impl TryFrom<Row> for DeadLetter {
    type Error = BadRow;

    fn try_from(row: Row) -> Result<Self, BadRow> {
        let id = format!("{}, dead letter {}", row.subscription_id, row.position);
        let bad = |reason: String| BadRow { id: id.clone(), reason };
        let reason = match (row.reason.as_str(), row.error, row.first_failed_at, row.last_failed_at) {
            ("failed", Some(error), Some(first_failed_at), Some(last_failed_at)) => Reason::Failed {
                error: serde_json::from_str(&error).map_err(|error| bad(format!("error: {error}")))?,
                attempts: u32::try_from(row.attempts).map_err(|error| bad(format!("attempts: {error}")))?,
                first_failed_at,
                last_failed_at,
            },
            ("behind", ..) => {
                let position = row.parked_behind.ok_or_else(|| bad("behind no position".to_owned()))?;
                Reason::Behind { position }
            }
            (word, ..) => return Err(bad(format!("reason {word:?} without what belongs to it"))),
        };
        Ok(Self {
            subscription: row.subscription_id,
            event: FailedEvent {
                position: row.position,
                id: row.event_id,
                event_type: row.event_type,
                stream: row.stream,
            },
            key: row.key,
            parked_at: row.parked_at,
            reason,
        })
    }
}

/// A query for whole letters that pass a filter, which is bound as `$1` to `$4`. Texts are looked for byte by byte:
/// what is left when a text is taken out tells whether it was in.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT subscription_id, position, event_id, event_type, stream, key, parked_at, reason, parked_behind,
                    error, attempts, first_failed_at, last_failed_at
               FROM herald_dead_letters AS letter
              WHERE (CAST($1 AS BIGINT) IS NULL OR position = $1)
                AND (CAST($2 AS TEXT) IS NULL OR key = $2)
                AND (CAST($3 AS TEXT) IS NULL OR event_type = $3)
                AND (CAST($4 AS TEXT) IS NULL OR replace(error, $4, '') <> error) ",
            $rest
        )
    };
}

/// A page of one subscription: after a position, by position.
const OF_ONE: &str = select!("AND subscription_id = $5 AND position > $6 ORDER BY position LIMIT $7");

impl LetterFilter {
    /// This one letter.
    pub fn at(position: Position) -> Self {
        Self { position: Some(position), ..Self::default() }
    }

    /// The letters of this key.
    pub fn of_key(key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    fn values(&self) -> (Option<Position>, Option<String>, Option<String>, Option<String>) {
        (self.position, self.key.clone(), self.event_type.clone(), self.stored_error())
    }

    /// What to look for in the stored messages, which are JSON.
    fn stored_error(&self) -> Option<String> {
        let quoted = serde_json::Value::from(self.error.as_deref()?).to_string();
        Some(quoted[1..quoted.len() - 1].to_owned())
    }
}

fn letters(rows: Vec<Row>) -> Result<Vec<DeadLetter>, RecordError> {
    Ok(rows.into_iter().map(DeadLetter::try_from).collect::<Result<_, _>>()?)
}

/// Letters of every subscription that pass a filter, by subscription and position, after one of them.
pub(crate) async fn list(
    database: &Database,
    filter: &LetterFilter,
    after: (&str, Position),
    limit: i64,
) -> Result<Vec<DeadLetter>, RecordError> {
    let sql = select!(
        "AND (subscription_id, position) > ($5, $6)
         ORDER BY subscription_id, position
         LIMIT $7"
    );
    let (position, key, event_type, error) = filter.values();
    letters(database.fetch_all(sql, (position, key, event_type, error, after.0, after.1, limit)).await?)
}

/// Letters of one subscription that pass a filter, by position, after one of them.
pub(crate) async fn list_of(
    database: &Database,
    subscription: &str,
    filter: &LetterFilter,
    after: Position,
    limit: i64,
) -> Result<Vec<DeadLetter>, RecordError> {
    let (position, key, event_type, error) = filter.values();
    let bound = (position, key, event_type, error, subscription, after, limit);
    letters(database.fetch_all(OF_ONE, bound).await?)
}

/// As [`list_of`], from the beginning and under the claim.
pub(crate) async fn list_in(
    tx: &mut Tx,
    subscription: &str,
    filter: &LetterFilter,
    limit: i64,
) -> Result<Vec<DeadLetter>, RecordError> {
    let (position, key, event_type, error) = filter.values();
    let bound = (position, key, event_type, error, subscription, Position::START, limit);
    letters(tx.fetch_all(OF_ONE, bound).await?)
}

/// The next letter after a position that is the oldest of its key and passes a filter.
pub(crate) async fn next_head(
    database: &Database,
    subscription: &str,
    filter: &LetterFilter,
    after: Position,
) -> Result<Option<DeadLetter>, RecordError> {
    let sql = select!(
        "AND subscription_id = $5 AND position > $6
         AND NOT EXISTS (SELECT 1 FROM herald_dead_letters AS older
                          WHERE older.subscription_id = letter.subscription_id AND older.key = letter.key
                            AND older.position < letter.position)
         ORDER BY position
         LIMIT 1"
    );
    let (position, key, event_type, error) = filter.values();
    let bound = (position, key, event_type, error, subscription, after);
    let row: Option<Row> = database.fetch_optional(sql, bound).await?;
    Ok(row.map(DeadLetter::try_from).transpose()?)
}

/// How many letters there are of events up to a position.
pub(crate) async fn count_up_to(
    database: &Database,
    subscription: &str,
    position: Position,
) -> sqlx::Result<u64> {
    let sql = "SELECT COUNT(*) FROM herald_dead_letters WHERE subscription_id = $1 AND position <= $2";
    let row: Option<(i64,)> = database.fetch_optional(sql, (subscription, position)).await?;
    Ok(row.map_or(0, |row| row.0.unsigned_abs()))
}

/// The keys among these that have letters, with the position of the oldest.
pub(crate) async fn oldest_of(
    database: &Database,
    subscription: &str,
    keys: &[&str],
) -> Result<HashMap<String, Position>, RecordError> {
    // Lists of texts are bound as JSON, which each database unfolds in its own way.
    let sql = match database.kind() {
        DatabaseKind::Sqlite => {
            "SELECT asked.value, (SELECT MIN(position) FROM herald_dead_letters
                                   WHERE subscription_id = $1 AND key = asked.value)
               FROM json_each($2) AS asked"
        }
        DatabaseKind::Postgres => {
            r#"SELECT asked.value, (SELECT MIN(position) FROM herald_dead_letters
                                     WHERE subscription_id = $1 AND key = asked.value COLLATE "C")
                 FROM jsonb_array_elements_text(CAST($2 AS JSONB)) AS asked (value)"#
        }
    };
    let keys = serde_json::Value::from(keys).to_string();
    let rows: Vec<(String, Option<Position>)> = database.fetch_all(sql, (subscription, keys)).await?;
    Ok(rows.into_iter().filter_map(|(key, oldest)| Some((key, oldest?))).collect())
}

/// Writes letters.
pub(crate) async fn insert(
    tx: &mut Tx,
    subscription: &str,
    letters: Vec<NewLetter<'_>>,
) -> Result<(), RecordError> {
    let mut rows = Vec::with_capacity(letters.len());
    for NewLetter { event, key, parked_at, reason } in letters {
        let (word, behind, error, attempts, first, last) = match &reason {
            Reason::Behind { position } => ("behind", Some(*position), None, 0, None, None),
            Reason::Failed { error, attempts, first_failed_at, last_failed_at } => {
                let (first, last) = (Some(*first_failed_at), Some(*last_failed_at));
                ("failed", None, Some(chain_text(error)), attempts_number(*attempts), first, last)
            }
        };
        rows.push((
            subscription,
            event.position,
            event.id,
            event.event_type.as_str(),
            event.stream.as_str(),
            key,
            parked_at,
            word,
            behind,
            error,
            attempts,
            first,
            last,
        ));
    }
    let sql = "INSERT INTO herald_dead_letters (subscription_id, position, event_id, event_type, stream, key,
                                                parked_at, reason, parked_behind, error, attempts,
                                                first_failed_at, last_failed_at)
               VALUES {rows}";
    tx.execute_many(sql, rows).await?;
    Ok(())
}

/// Takes away a letter that was handled; says whether it still was as it was seen, and the oldest of its key.
pub(crate) async fn take(tx: &mut Tx, letter: &DeadLetter) -> Result<bool, RecordError> {
    let sql = "DELETE FROM herald_dead_letters
                WHERE subscription_id = $1 AND position = $2 AND key = $3 AND attempts = $4
                  AND NOT EXISTS (SELECT 1 FROM herald_dead_letters AS older
                                   WHERE older.subscription_id = $1 AND older.key = $3 AND older.position < $2)";
    let taken = tx
        .execute(
            sql,
            (letter.subscription.as_str(), letter.event.position, letter.key.as_str(), letter.attempts()),
        )
        .await?;
    Ok(taken == 1)
}

/// Notes that a letter was tried again and failed; says whether it still was as it was seen.
pub(crate) async fn note_failure(
    tx: &mut Tx,
    letter: &DeadLetter,
    error: &[String],
    now: Timestamp,
) -> Result<bool, RecordError> {
    let sql = "UPDATE herald_dead_letters
                  SET reason = 'failed', error = $4, attempts = attempts + 1, last_failed_at = $5,
                      first_failed_at = COALESCE(first_failed_at, $5)
                WHERE subscription_id = $1 AND position = $2 AND attempts = $3";
    let bound =
        (letter.subscription.as_str(), letter.event.position, letter.attempts(), chain_text(error), now);
    Ok(tx.execute(sql, bound).await? == 1)
}

/// Takes letters away, whatever became of them; says how many were there.
pub(crate) async fn delete(
    tx: &mut Tx,
    subscription: &str,
    letters: &[DeadLetter],
) -> Result<u64, RecordError> {
    let rows = letters.iter().map(|letter| (subscription, letter.event.position)).collect();
    let sql = "DELETE FROM herald_dead_letters WHERE (subscription_id, position) IN (VALUES {rows})";
    Ok(tx.execute_many(sql, rows).await?)
}

/// Forgets all letters after a position, because their events will be read again or never; says how many.
pub(crate) async fn forget(tx: &mut Tx, subscription: &str, after: Position) -> Result<u64, RecordError> {
    let sql = "DELETE FROM herald_dead_letters WHERE subscription_id = $1 AND position > $2";
    Ok(tx.execute(sql, (subscription, after)).await?)
}

impl DeadLetter {
    fn attempts(&self) -> i32 {
        match &self.reason {
            Reason::Failed { attempts, .. } => attempts_number(*attempts),
            Reason::Behind { .. } => 0,
        }
    }
}

fn attempts_number(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

fn chain_text(chain: &[String]) -> String {
    serde_json::Value::from(chain).to_string()
}
