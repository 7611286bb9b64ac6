//! The head explained: where it stands, what is behind it, and who holds it back. For people and for what they
//! watch with; no reader needs it.

use std::time::Duration;

use super::holders::{Holder, describe_holders, holders};
use super::waited::NOTABLE_WAIT;
use crate::database::Database;
use crate::event::Position;
use crate::read::ReadError;
use crate::store::Store;

/// How the safe head stands.
#[derive(Clone, Debug)]
pub struct HeadReport {
    /// Up to here the log may be read.
    pub position: Position,
    /// The last event that is visible. Where it is above the head, readers wait.
    pub end: Position,
    /// How many visible events wait behind the head.
    pub events_waiting: u64,
    /// What is published for other processes; none on SQLite, where nobody needs it.
    pub published: Option<Published>,
    /// How many holes are recorded.
    pub dead_ranges: u64,
    /// How many positions they have.
    pub dead_positions: u64,
    /// Whether the server is a standby, which cannot tell who holds the head back.
    pub is_standby: bool,
    /// For whom readers wait; or, as long as nothing is visible above the head, for whom they would have to wait.
    pub holders: Vec<Holder>,
    /// Other appends that are under way. They hold the lock for moments, and that is as it should be.
    pub passing: usize,
}

/// The head that is published for all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Up to where.
    pub position: Position,
    /// How long ago it was moved.
    pub age: Duration,
}

impl HeadReport {
    /// Whether there are events that no reader gets to see yet.
    pub fn readers_wait(&self) -> bool {
        self.end > self.position
    }
}

impl Store {
    /// Explains where the safe head stands and who holds it back. Takes a tenth of a second if somebody does.
    pub async fn explain_head(&self) -> Result<HeadReport, ReadError> {
        let before = match self.database() {
            Database::Sqlite { .. } => None,
            Database::Postgres { pool, .. } => {
                self.database().answer(async { holders(&mut *pool.acquire().await?).await }).await?
            }
        };
        let head = self.head().await?;
        // Those for whom the head has just waited in vain, and no others.
        let described = match self.database() {
            Database::Postgres { pool, .. } if before.is_some() => {
                self.database().answer(async { describe_holders(&mut *pool.acquire().await?).await }).await?
            }
            _ => Vec::new(),
        };
        let stayed = before.clone().unwrap_or_default();
        let (holders, passing): (Vec<Holder>, Vec<Holder>) = described.into_iter().partition(|holder| {
            let is_old = holder.age.is_some_and(|age| age >= NOTABLE_WAIT);
            stayed.contains(&holder.transaction) && (is_old || !head.is_end)
        });
        let (end, events_waiting) = self.behind(head.position).await?;
        let sql = "SELECT COUNT(*), CAST(COALESCE(SUM(hi - lo + 1), 0) AS BIGINT) FROM herald_dead_ranges";
        let (dead_ranges, dead_positions): (i64, i64) =
            self.database().fetch_optional(sql, ()).await?.unwrap_or((0, 0));
        Ok(HeadReport {
            position: head.position,
            end,
            events_waiting: count(events_waiting),
            published: self.published().await?,
            dead_ranges: count(dead_ranges),
            dead_positions: count(dead_positions),
            is_standby: before.is_none() && matches!(self.database(), Database::Postgres { .. }),
            holders,
            passing: passing.len(),
        })
    }

    /// The last position that is visible, and how many events there are above this one.
    async fn behind(&self, head: Position) -> sqlx::Result<(Position, i64)> {
        let sql = "SELECT MAX(position), COUNT(*) FROM herald_events WHERE position > $1";
        let row: Option<(Option<Position>, i64)> = self.database().fetch_optional(sql, (head,)).await?;
        let (end, waiting) = row.unwrap_or((None, 0));
        Ok((end.unwrap_or(head), waiting))
    }

    async fn published(&self) -> sqlx::Result<Option<Published>> {
        let Database::Postgres { pool, .. } = self.database() else { return Ok(None) };
        let row: Option<(Position, i64)> = sqlx::query_as(
            "SELECT position, (extract(epoch FROM clock_timestamp() - published_at) * 1000)::bigint
               FROM herald_safe_head",
        )
        .fetch_optional(pool)
        .await?;
        Ok(row.map(|(position, age_ms)| {
            let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
            Published { position, age }
        }))
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
