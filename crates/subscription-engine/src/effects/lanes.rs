//! SQL on what says which effect is next: whose effects may be sent, their lanes, and the pace of destinations.
//!
//! Rows are locked in one order, so that nobody waits in a circle: subscription, owner, lane, destination, effect,
//! and the log's own at last. A lane says when to look at it next; it may say so too early, and never too late.

use store::{Database, DatabaseKind, Timestamp, Tx};

use crate::effects::Effect;

/// Whose effects may be sent, and what is waiting.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Waiting {
    pub(super) subscription_id: String,
    /// When to look next; none: nothing of this kind waits, or what goes ahead of all others is under way.
    pub(super) next_at: Option<Timestamp>,
}

/// Of each owner whose effects may be sent: when to look next for one of this kind.
pub(super) async fn waiting(database: &Database, kind: &str) -> sqlx::Result<Vec<Waiting>> {
    let sql = "SELECT o.subscription_id,
                      CASE WHEN o.blocked_kind = $1
                                AND EXISTS (SELECT 1
                                              FROM herald_effects e
                                             WHERE e.subscription_id = o.subscription_id AND e.state = 'sending'
                                               AND e.kind = $1)
                           THEN NULL
                           ELSE (SELECT MIN(l.next_at)
                                   FROM herald_effect_lanes l
                                  WHERE l.subscription_id = o.subscription_id AND l.kind = $1 AND NOT l.sending)
                       END AS next_at
                 FROM herald_effect_owners o
                WHERE o.open
                ORDER BY o.subscription_id";
    database.fetch_all(sql, (kind,)).await
}

/// An owner whose effects may be sent, locked until the transaction ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Owner {
    pub(super) open: bool,
    pub(super) blocked_kind: Option<String>,
    pub(super) blocked_times: i32,
    /// The server's end of this connection.
    pub(super) session: Option<i32>,
}

/// Locks an owner: shared, so that several effects of it can be claimed at once while nobody pauses it; or for
/// oneself.
pub(super) async fn lock_owner(tx: &mut Tx, id: &str, alone: bool) -> sqlx::Result<Option<Owner>> {
    let sql = match (tx.kind(), alone) {
        // The transaction holds the only write lock already.
        (DatabaseKind::Sqlite, _) => {
            "SELECT open, blocked_kind, blocked_times, NULL AS session
               FROM herald_effect_owners
              WHERE subscription_id = $1"
        }
        (DatabaseKind::Postgres, false) => {
            "SELECT open, blocked_kind, blocked_times, pg_backend_pid() AS session
               FROM herald_effect_owners
              WHERE subscription_id = $1
                FOR SHARE"
        }
        (DatabaseKind::Postgres, true) => {
            "SELECT open, blocked_kind, blocked_times, pg_backend_pid() AS session
               FROM herald_effect_owners
              WHERE subscription_id = $1
                FOR UPDATE"
        }
    };
    tx.fetch_optional(sql, (id,)).await
}

/// Notes how often in a row the sending of this kind was blocked; none: it is not any more.
pub(super) async fn set_blocked(tx: &mut Tx, id: &str, blocked: Option<(&str, i32)>) -> sqlx::Result<()> {
    tx.execute(
        "UPDATE herald_effect_owners SET blocked_kind = $2, blocked_times = $3 WHERE subscription_id = $1",
        (id, blocked.map(|(kind, _)| kind.to_owned()), blocked.map_or(0, |(_, times)| times)),
    )
    .await?;
    Ok(())
}

/// An operator has set the subscription going again: what was blocked is counted anew.
pub(crate) async fn forget_blocked_times(tx: &mut Tx, id: &str) -> sqlx::Result<()> {
    let sql = "UPDATE herald_effect_owners SET blocked_times = 0 WHERE subscription_id = $1";
    tx.execute(sql, (id,)).await?;
    Ok(())
}

/// Makes the row of an owner that has none.
pub(super) async fn open_owner(tx: &mut Tx, id: &str, open: bool) -> sqlx::Result<()> {
    tx.execute(
        "INSERT INTO herald_effect_owners (subscription_id, open) VALUES ($1, $2)
         ON CONFLICT (subscription_id) DO NOTHING",
        (id, open),
    )
    .await?;
    Ok(())
}

/// Takes a lane with something due that nobody else is looking at; none: there is none. Answers with its
/// destination.
pub(super) async fn take_lane(
    tx: &mut Tx,
    owner: &str,
    kind: &str,
    now: Timestamp,
) -> sqlx::Result<Option<String>> {
    let sql = match tx.kind() {
        DatabaseKind::Sqlite => {
            "SELECT destination FROM herald_effect_lanes
              WHERE subscription_id = $1 AND kind = $2 AND NOT sending AND next_at <= $3
              ORDER BY next_at
              LIMIT 1"
        }
        DatabaseKind::Postgres => {
            "SELECT destination FROM herald_effect_lanes
              WHERE subscription_id = $1 AND kind = $2 AND NOT sending AND next_at <= $3
              ORDER BY next_at
              LIMIT 1
                FOR UPDATE SKIP LOCKED"
        }
    };
    Ok(tx.fetch_optional::<(String,)>(sql, (owner, kind, now)).await?.map(|row| row.0))
}

/// Locks the lane of an effect, which is made if it is not there.
pub(super) async fn lock_lane(tx: &mut Tx, effect: &Effect) -> sqlx::Result<()> {
    tx.execute(
        "INSERT INTO herald_effect_lanes (subscription_id, kind, destination) VALUES ($1, $2, $3)
         ON CONFLICT (subscription_id, kind, destination) DO UPDATE SET sending = herald_effect_lanes.sending",
        (effect.subscription_id.as_str(), effect.kind.as_str(), effect.destination.as_str()),
    )
    .await?;
    Ok(())
}

/// Marks a locked lane as one with an attempt under way: nobody takes it.
pub(super) async fn occupy_lane(tx: &mut Tx, effect: &Effect) -> sqlx::Result<()> {
    tx.execute(
        "UPDATE herald_effect_lanes SET sending = TRUE
          WHERE subscription_id = $1 AND kind = $2 AND destination = $3",
        (effect.subscription_id.as_str(), effect.kind.as_str(), effect.destination.as_str()),
    )
    .await?;
    Ok(())
}

/// Has a locked lane looked at when its first pending effect is due, but not before this; takes it away if there is
/// nothing in it.
pub(super) async fn settle_lane(
    tx: &mut Tx,
    (owner, kind, destination): (&str, &str, &str),
    not_before: Option<Timestamp>,
) -> sqlx::Result<()> {
    let sql = "SELECT (SELECT MIN(due_at)
                         FROM herald_effects
                        WHERE subscription_id = $1 AND kind = $2 AND destination = $3 AND state = 'pending'),
                      (SELECT COUNT(*)
                         FROM herald_effects
                        WHERE subscription_id = $1 AND state = 'sending' AND kind = $2 AND destination = $3)";
    let row: Option<(Option<Timestamp>, i64)> = tx.fetch_optional(sql, (owner, kind, destination)).await?;
    let (due_at, sending) = row.unwrap_or((None, 0));
    if due_at.is_none() && sending == 0 {
        let sql =
            "DELETE FROM herald_effect_lanes WHERE subscription_id = $1 AND kind = $2 AND destination = $3";
        tx.execute(sql, (owner, kind, destination)).await?;
        return Ok(());
    }
    let next_at = due_at.map(|due_at| not_before.map_or(due_at, |not_before| due_at.max(not_before)));
    tx.execute(
        "UPDATE herald_effect_lanes SET next_at = $4, sending = $5
          WHERE subscription_id = $1 AND kind = $2 AND destination = $3",
        (owner, kind, destination, next_at, sending > 0),
    )
    .await?;
    Ok(())
}

/// The pace of a destination, locked until the transaction ends.
pub(super) async fn lock_destination(
    tx: &mut Tx,
    (kind, destination): (&str, &str),
    now: Timestamp,
) -> sqlx::Result<(Timestamp, Timestamp)> {
    let sql = "INSERT INTO herald_effect_destinations (kind, destination, paced_at, not_before)
               VALUES ($1, $2, $3, $3)
               ON CONFLICT (kind, destination) DO UPDATE SET paced_at = herald_effect_destinations.paced_at
               RETURNING paced_at, not_before";
    tx.fetch_optional(sql, (kind, destination, now)).await?.ok_or(sqlx::Error::RowNotFound)
}

/// Until when the receiver asked to be left alone, if it ever did.
pub(super) async fn not_before(
    tx: &mut Tx,
    (kind, destination): (&str, &str),
) -> sqlx::Result<Option<Timestamp>> {
    let sql = "SELECT not_before FROM herald_effect_destinations WHERE kind = $1 AND destination = $2";
    Ok(tx.fetch_optional::<(Timestamp,)>(sql, (kind, destination)).await?.map(|row| row.0))
}

pub(super) async fn set_pace(
    tx: &mut Tx,
    (kind, destination): (&str, &str),
    paced_at: Timestamp,
) -> sqlx::Result<()> {
    let sql = "UPDATE herald_effect_destinations SET paced_at = $3 WHERE kind = $1 AND destination = $2";
    tx.execute(sql, (kind, destination, paced_at)).await?;
    Ok(())
}

/// Leaves a destination alone until then, whoever has something for it.
pub(super) async fn leave_alone(
    tx: &mut Tx,
    (kind, destination): (&str, &str),
    until: Timestamp,
) -> sqlx::Result<()> {
    tx.execute(
        "INSERT INTO herald_effect_destinations (kind, destination, paced_at, not_before)
         VALUES ($1, $2, $3, $3)
         ON CONFLICT (kind, destination) DO UPDATE
            SET not_before = CASE WHEN herald_effect_destinations.not_before < excluded.not_before
                                  THEN excluded.not_before
                                  ELSE herald_effect_destinations.not_before END",
        (kind, destination, until),
    )
    .await?;
    Ok(())
}

/// Forgets destinations whose pace is long past: they may be sent to at once anyway.
pub(super) async fn forget_paces(database: &Database, before: Timestamp) -> sqlx::Result<u64> {
    let sql = "DELETE FROM herald_effect_destinations WHERE paced_at < $1 AND not_before < $1";
    database.execute(sql, (before,)).await
}

/// Has lanes looked at when something new in them is due; makes those that are not there. Sorted, so that two who
/// lock many lanes do not wait for each other.
pub(super) async fn wake(tx: &mut Tx, lanes: Vec<(String, String, String, Timestamp)>) -> sqlx::Result<()> {
    tx.execute_many(
        "INSERT INTO herald_effect_lanes (subscription_id, kind, destination, next_at)
         VALUES {rows}
         ON CONFLICT (subscription_id, kind, destination) DO UPDATE
            SET next_at = CASE WHEN herald_effect_lanes.next_at <= excluded.next_at
                               THEN herald_effect_lanes.next_at
                               ELSE excluded.next_at END",
        lanes,
    )
    .await?;
    Ok(())
}

/// Says whether the effects of an owner may be sent; answers whether there is such an owner.
pub(super) async fn set_open(tx: &mut Tx, id: &str, open: bool) -> sqlx::Result<bool> {
    let sql = "UPDATE herald_effect_owners SET open = $2 WHERE subscription_id = $1";
    Ok(tx.execute(sql, (id, open)).await? > 0)
}

pub(super) async fn delete_lanes(tx: &mut Tx, owner: &str) -> sqlx::Result<()> {
    tx.execute("DELETE FROM herald_effect_lanes WHERE subscription_id = $1", (owner,)).await?;
    Ok(())
}

pub(super) async fn delete_owner(tx: &mut Tx, id: &str) -> sqlx::Result<()> {
    tx.execute("DELETE FROM herald_effect_owners WHERE subscription_id = $1", (id,)).await?;
    Ok(())
}
