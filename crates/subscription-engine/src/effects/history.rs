//! What happened to an effect, line by line: each attempt, each change by hand, with why and who.

use store::{Database, Timestamp, Tx};
use uuid::Uuid;

/// One line of an effect's history.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct EffectHistoryLine {
    /// When, by the log's clock.
    pub at: Timestamp,
    /// How many attempts had been started.
    pub attempt: i32,
    /// What happened: `started`, `deferred`, `done`, `held` and so on.
    pub what: String,
    /// Why.
    pub why: String,
    /// By whom.
    pub who: String,
}

pub(super) async fn note(tx: &mut Tx, effect_id: Uuid, line: &EffectHistoryLine) -> sqlx::Result<()> {
    tx.execute(
        "INSERT INTO herald_effect_history (effect_id, at, attempt, what, why, who) VALUES ($1, $2, $3, $4, $5, $6)",
        (effect_id, line.at, line.attempt, line.what.as_str(), line.why.as_str(), line.who.as_str()),
    )
    .await?;
    Ok(())
}

/// The last lines, oldest first.
pub(super) async fn read(
    database: &Database,
    effect_id: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<EffectHistoryLine>> {
    let sql = "SELECT at, attempt, what, why, who
                 FROM herald_effect_history
                WHERE effect_id = $1
                ORDER BY number DESC
                LIMIT $2";
    let mut lines: Vec<EffectHistoryLine> = database.fetch_all(sql, (effect_id, limit)).await?;
    lines.reverse();
    Ok(lines)
}
