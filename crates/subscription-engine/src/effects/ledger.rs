//! SQL on the effects themselves: planning, finding, changing, listing and counting them.
//!
//! A change is a compare-and-set on the row's revision. In which order rows are locked, `lanes.rs` says.

use std::collections::{BTreeMap, HashMap};

use store::{Database, Position, Timestamp, Tx};
use uuid::Uuid;

use crate::effects::{Effect, EffectRecord, EffectState, EffectStatus, Hold, Sending, lanes};
use crate::records::{BadRow, RecordError};

#[derive(sqlx::FromRow)]
struct Row {
    number: i64,
    id: Uuid,
    subscription_id: String,
    kind: String,
    destination: String,
    receiver_key: String,
    body: String,
    cause_id: Uuid,
    cause_position: Position,
    correlation_id: Option<String>,
    caused_at: Timestamp,
    state: String,
    due_at: Timestamp,
    attempt: i32,
    failures: i32,
    why: String,
    hold: Option<String>,
    claim: Option<Uuid>,
    claimed_by: Option<Uuid>,
    claimed_at: Option<Timestamp>,
    claimed_until: Option<Timestamp>,
    changed_at: Timestamp,
    revision: i64,
}

/// A query for whole rows.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT number, id, subscription_id, kind, destination, receiver_key, body, cause_id, cause_position,
                    correlation_id, caused_at, state, due_at, attempt, failures, why, hold, claim, claimed_by,
                    claimed_at, claimed_until, changed_at, revision
               FROM herald_effects ",
            $rest
        )
    };
}

impl TryFrom<Row> for EffectRecord {
    type Error = BadRow;

    fn try_from(row: Row) -> Result<Self, BadRow> {
        let bad = |reason: String| BadRow { id: format!("effect {}", row.id), reason };
        let hold = match row.hold.as_deref() {
            None => None,
            Some(word) => Some(Hold::of_word(word).ok_or_else(|| bad(format!("hold: {word:?}")))?),
        };
        let status: EffectStatus = row.state.parse().map_err(|error| bad(format!("state: {error}")))?;
        let state = match status {
            EffectStatus::Pending => EffectState::Pending,
            EffectStatus::Held => {
                EffectState::Held { hold: hold.ok_or_else(|| bad("held without a reason".to_owned()))? }
            }
            EffectStatus::Sending => match (row.claim, row.claimed_by, row.claimed_at, row.claimed_until) {
                (Some(claim), Some(by), Some(since), Some(until)) => {
                    EffectState::Sending { sending: Sending { claim, by, since, until }, hold }
                }
                _ => return Err(bad("sending without a claim".to_owned())),
            },
            EffectStatus::Done => EffectState::Done,
            EffectStatus::Failed => EffectState::Failed,
            EffectStatus::Unwanted => EffectState::Unwanted,
            EffectStatus::Discarded => EffectState::Discarded,
        };
        Ok(Self {
            number: row.number,
            state,
            due_at: row.due_at,
            failures: u32::try_from(row.failures).map_err(|error| bad(format!("failures: {error}")))?,
            changed_at: row.changed_at,
            revision: row.revision,
            effect: Effect {
                id: row.id,
                attempt: u32::try_from(row.attempt).map_err(|error| bad(format!("attempt: {error}")))?,
                subscription_id: row.subscription_id,
                kind: row.kind,
                destination: row.destination,
                key: row.receiver_key,
                body: row.body,
                cause_id: row.cause_id,
                cause_position: row.cause_position,
                correlation_id: row.correlation_id,
                caused_at: row.caused_at,
            },
            why: row.why,
        })
    }
}

/// Writes what a unit has planned, under the claim on its subscription, which says whether it is active.
pub(super) async fn plan(
    tx: &mut Tx,
    planned: Vec<(Effect, Timestamp)>,
    is_active: bool,
) -> sqlx::Result<()> {
    let Some(subscription_id) = planned.first().map(|(effect, _)| effect.subscription_id.clone()) else {
        return Ok(());
    };
    lanes::open_owner(tx, &subscription_id, is_active).await?;
    // In the order of their names, so that two who lock many lanes do not wait for each other.
    let mut lanes = BTreeMap::<(String, String), Timestamp>::new();
    let mut rows = Vec::with_capacity(planned.len());
    for (effect, due_at) in planned {
        let lane = lanes.entry((effect.kind.clone(), effect.destination.clone())).or_insert(due_at);
        *lane = due_at.min(*lane);
        rows.push((
            effect.id,
            effect.subscription_id,
            effect.kind,
            effect.destination,
            effect.key,
            effect.body,
            effect.cause_id,
            effect.cause_position,
            effect.correlation_id,
            effect.caused_at,
            due_at,
            effect.caused_at,
        ));
    }
    tx.execute_many(
        "INSERT INTO herald_effects (id, subscription_id, kind, destination, receiver_key, body, cause_id,
                                     cause_position, correlation_id, caused_at, due_at, changed_at)
         VALUES {rows}
         ON CONFLICT (id) DO NOTHING",
        rows,
    )
    .await?;
    let lanes = lanes
        .into_iter()
        .map(|((kind, destination), next_at)| (subscription_id.clone(), kind, destination, next_at))
        .collect();
    lanes::wake(tx, lanes).await
}

/// A subscription became this, in this transaction and under its claim: only effects of one that is active are
/// sent, or of one that has finished what it was to do. What is planned for one that is removed is held.
pub(crate) async fn subscription_became(
    tx: &mut Tx,
    id: &str,
    status: &str,
    at: Timestamp,
    who: &str,
) -> sqlx::Result<()> {
    let open = matches!(status, "active" | "finished");
    // Whoever never planned anything costs this one look.
    if !lanes::set_open(tx, id, open).await? || status != "removed" {
        return Ok(());
    }
    lanes::delete_lanes(tx, id).await?;
    tx.execute(
        "INSERT INTO herald_effect_history (effect_id, at, attempt, what, why, who)
         SELECT id, $2, attempt, 'held', 'its subscription was removed', $3
           FROM herald_effects
          WHERE subscription_id = $1 AND state IN ('pending', 'sending')",
        (id, at, who),
    )
    .await?;
    tx.execute(
        "UPDATE herald_effects
            SET state = CASE WHEN state = 'pending' THEN 'held' ELSE state END, hold = 'removed',
                why = 'its subscription was removed', changed_at = $2, revision = revision + 1
          WHERE subscription_id = $1 AND state IN ('pending', 'sending')",
        (id, at),
    )
    .await?;
    lanes::delete_owner(tx, id).await
}

/// The first effect of a lane that is due.
pub(super) async fn first_due(
    tx: &mut Tx,
    (owner, kind, destination): (&str, &str, &str),
    now: Timestamp,
) -> Result<Option<EffectRecord>, RecordError> {
    let sql = select!(
        "WHERE subscription_id = $1 AND kind = $2 AND destination = $3 AND state = 'pending' AND due_at <= $4
         ORDER BY due_at, number
         LIMIT 1"
    );
    let row: Option<Row> = tx.fetch_optional(sql, (owner, kind, destination, now)).await?;
    Ok(row.map(EffectRecord::try_from).transpose()?)
}

/// Whether an attempt of this owner and kind is under way.
pub(super) async fn is_sending(tx: &mut Tx, owner: &str, kind: &str) -> sqlx::Result<bool> {
    let sql = "SELECT number FROM herald_effects
                WHERE subscription_id = $1 AND state = 'sending' AND kind = $2
                LIMIT 1";
    Ok(tx.fetch_optional::<(i64,)>(sql, (owner, kind)).await?.is_some())
}

/// The database's clock, or the manual one.
pub(super) async fn database_now(tx: &mut Tx, manual: Option<Timestamp>) -> sqlx::Result<Timestamp> {
    let row: Option<(Timestamp,)> = tx.fetch_optional("SELECT COALESCE($1, {now})", (manual,)).await?;
    row.map(|row| row.0).ok_or(sqlx::Error::RowNotFound)
}

/// Whether this instant is past by the database's clock, or the manual one.
pub(super) async fn is_past(
    database: &Database,
    at: Timestamp,
    manual: Option<Timestamp>,
) -> sqlx::Result<bool> {
    let row: Option<(Timestamp,)> = database.fetch_optional("SELECT COALESCE($1, {now})", (manual,)).await?;
    Ok(row.is_some_and(|(now,)| at <= now))
}

/// Attempts of this kind whose claim has expired: nobody knows what became of them.
pub(super) async fn expired(
    database: &Database,
    kind: &str,
    manual: Option<Timestamp>,
    limit: i64,
) -> Result<Vec<EffectRecord>, RecordError> {
    let sql = select!(
        "WHERE state = 'sending' AND claimed_until <= COALESCE($1, {now}) AND kind = $2
         ORDER BY claimed_until
         LIMIT $3"
    );
    let rows: Vec<Row> = database.fetch_all(sql, (manual, kind, limit)).await?;
    Ok(rows.into_iter().map(EffectRecord::try_from).collect::<Result<_, _>>()?)
}

/// The attempts under way: whose they are, who makes them, and until when they are claimed.
pub(super) async fn under_way(
    database: &Database,
    limit: i64,
) -> sqlx::Result<Vec<(String, String, Uuid, Timestamp)>> {
    let sql = "SELECT subscription_id, kind, claimed_by, claimed_until
                 FROM herald_effects
                WHERE state = 'sending'
                ORDER BY claimed_until
                LIMIT $1";
    database.fetch_all(sql, (limit,)).await
}

pub(super) async fn load(database: &Database, id: Uuid) -> Result<Option<EffectRecord>, RecordError> {
    let row: Option<Row> = database.fetch_optional(select!("WHERE id = $1"), (id,)).await?;
    Ok(row.map(EffectRecord::try_from).transpose()?)
}

pub(super) async fn load_in(tx: &mut Tx, id: Uuid) -> Result<Option<EffectRecord>, RecordError> {
    let row: Option<Row> = tx.fetch_optional(select!("WHERE id = $1"), (id,)).await?;
    Ok(row.map(EffectRecord::try_from).transpose()?)
}

/// Writes a row back, if nobody has changed it since it was read; says whether that was so.
pub(super) async fn save(tx: &mut Tx, record: &EffectRecord) -> sqlx::Result<bool> {
    let (sending, hold) = match record.state {
        EffectState::Sending { sending, hold } => (Some(sending), hold),
        EffectState::Held { hold } => (None, Some(hold)),
        _ => (None, None),
    };
    let saved = tx
        .execute(
            "UPDATE herald_effects
                SET state = $3, due_at = $4, attempt = $5, failures = $6, why = $7, hold = $8, claim = $9,
                    claimed_by = $10, claimed_at = $11, claimed_until = $12, changed_at = $13,
                    revision = revision + 1
              WHERE id = $1 AND revision = $2",
            (
                record.effect.id,
                record.revision,
                record.state.status().word(),
                record.due_at,
                i32::try_from(record.effect.attempt).unwrap_or(i32::MAX),
                i32::try_from(record.failures).unwrap_or(i32::MAX),
                record.why.as_str(),
                hold.map(|hold| hold.word().to_owned()),
                sending.map(|sending| sending.claim),
                sending.map(|sending| sending.by),
                sending.map(|sending| sending.since),
                sending.map(|sending| sending.until),
                record.changed_at,
            ),
        )
        .await?;
    Ok(saved == 1)
}

/// Which effects; what is not given does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EffectFilter {
    /// In this state.
    pub status: Option<EffectStatus>,
    /// Of this kind.
    pub kind: Option<String>,
    /// For this destination.
    pub destination: Option<String>,
    /// Planned by this subscription.
    pub subscription: Option<String>,
}

/// Effects that meet the filter, the newest first, older than this number.
pub(super) async fn list(
    database: &Database,
    filter: &EffectFilter,
    before: i64,
    limit: i64,
) -> Result<Vec<EffectRecord>, RecordError> {
    let status = filter.status.map(|status| status.word().to_owned());
    let values = (before, limit, filter.kind.clone(), filter.subscription.clone());
    // Four texts and no more, so that each narrow filter finds its index.
    let rows: Vec<Row> = match (status, filter.destination.clone()) {
        (None, None) => {
            let sql = select!(
                "WHERE number < $1 AND ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR subscription_id = $4)
                 ORDER BY number DESC
                 LIMIT $2"
            );
            database.fetch_all(sql, values).await?
        }
        (Some(status), None) => {
            let sql = select!(
                "WHERE number < $1 AND ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR subscription_id = $4)
                   AND state = $5
                 ORDER BY number DESC
                 LIMIT $2"
            );
            let (before, limit, kind, subscription) = values;
            database.fetch_all(sql, (before, limit, kind, subscription, status)).await?
        }
        (None, Some(destination)) => {
            let sql = select!(
                "WHERE number < $1 AND ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR subscription_id = $4)
                   AND destination = $5
                 ORDER BY number DESC
                 LIMIT $2"
            );
            let (before, limit, kind, subscription) = values;
            database.fetch_all(sql, (before, limit, kind, subscription, destination)).await?
        }
        (Some(status), Some(destination)) => {
            let sql = select!(
                "WHERE number < $1 AND ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR subscription_id = $4)
                   AND state = $5 AND destination = $6
                 ORDER BY number DESC
                 LIMIT $2"
            );
            let (before, limit, kind, subscription) = values;
            database.fetch_all(sql, (before, limit, kind, subscription, status, destination)).await?
        }
    };
    Ok(rows.into_iter().map(EffectRecord::try_from).collect::<Result<_, _>>()?)
}

/// How much a subscription has still to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectCounts {
    /// Pending ones, with those that are being sent.
    pub pending: i64,
    /// Those that wait for an operator.
    pub held: i64,
    /// When the cause of the oldest of all of them was recorded.
    pub oldest: Option<Timestamp>,
}

/// How much each subscription has still to send.
pub(crate) async fn counts(database: &Database) -> sqlx::Result<HashMap<String, EffectCounts>> {
    let sql = "SELECT subscription_id, state, COUNT(*), MIN(caused_at)
                 FROM herald_effects
                WHERE state IN ('pending', 'sending', 'held')
                GROUP BY subscription_id, state";
    let rows: Vec<(String, String, i64, Timestamp)> = database.fetch_all(sql, ()).await?;
    let mut counts = HashMap::<String, EffectCounts>::new();
    for (subscription_id, state, count, oldest) in rows {
        let of = counts.entry(subscription_id).or_default();
        match state.as_str() {
            "held" => of.held += count,
            _ => of.pending += count,
        }
        of.oldest = Some(of.oldest.map_or(oldest, |known| known.min(oldest)));
    }
    Ok(counts)
}
