//! What may be read without ever skipping an event (PostgreSQL).
//!
//! Positions are drawn before their transactions commit, so a reader can see position 8 before 7. It must
//! not go past 7 until 7 is visible or known to be dead. Whoever draws holds a shared advisory lock from
//! before the draw to the end of its transaction (`herald_append`), so: all who held the lock *after* 8 was
//! seen, once they are gone, have settled everything below 8. Evidence, no time-outs: a stranger's long
//! transaction delays nobody, and a slow appender delays only what stands behind its own positions.
//!
//! SQLite needs none of this: it has one writer, and what a reader sees has no holes.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;

use crate::database::Database;
use crate::event::{Event, Position};
use crate::read::{Filter, ReadError, select};
use crate::store::Store;

/// Most holes close within this time, without a look at the lock table.
const GRACE: Duration = Duration::from_micros(700);
/// The wait between two looks at those who hold the append lock, at first and at most.
const SHORT_NAP: Duration = Duration::from_micros(500);
const LONG_NAP: Duration = Duration::from_millis(5);
/// How long a bounded read waits for appends under way before it takes the lower head it already knows.
const HEAD_PATIENCE: Duration = Duration::from_millis(100);
/// How long one page read waits at a hole before it comes back empty, so that its caller can stop or report.
const HOLE_PATIENCE: Duration = Duration::from_secs(1);
/// Positions looked at in one query when the head is counted up from what this process knows.
const COUNT_PAGE: i64 = 10_000;

/// How far the log may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Every event at or below this position is visible, or will never be.
    pub position: Position,
    /// Whether this is the end of the log as it was when asked. If not, an append is under way above it.
    pub is_end: bool,
}

impl Store {
    /// How far the log may be read right now. Waits a moment for appends under way, never for strangers.
    pub async fn head(&self) -> Result<Head, ReadError> {
        let top = self.top().await?;
        let Database::Postgres { pool } = self.database() else {
            return Ok(Head { position: top, is_end: true });
        };
        if top <= self.known_head() {
            return Ok(Head { position: top, is_end: true });
        }
        let mut connection = pool.acquire().await?;
        let settled = wait_for_holders(&mut connection, HEAD_PATIENCE).await?;
        drop(connection);
        if settled {
            self.raise_known_head(top);
            return Ok(Head { position: top, is_end: true });
        }
        Ok(Head { position: self.count_up().await?, is_end: false })
    }

    /// The highest position that is visible; below it there may be holes.
    async fn top(&self) -> sqlx::Result<Position> {
        let sql = "SELECT MAX(position) FROM herald_events";
        let row: Option<(Option<Position>,)> = self.database().fetch_optional(sql, ()).await?;
        Ok(row.and_then(|row| row.0).unwrap_or(Position::START))
    }

    /// Counts on from the known head as long as there is no hole.
    async fn count_up(&self) -> sqlx::Result<Position> {
        let mut head = self.known_head();
        loop {
            let sql = "SELECT position FROM herald_events WHERE position > $1 ORDER BY position LIMIT $2";
            let rows: Vec<(Position,)> = self.database().fetch_all(sql, (head, COUNT_PAGE)).await?;
            let before = head;
            head = rows.iter().fold(head, |head, row| if row.0.0 == head.0 + 1 { row.0 } else { head });
            self.raise_known_head(head);
            if head == before || head.0 - before.0 < COUNT_PAGE {
                return Ok(head);
            }
        }
    }

    /// The next events after a position, without a hole that might still be filled.
    ///
    /// Empty while the very next position belongs to an append under way, or when there is nothing more.
    pub(crate) async fn read_contiguous(&self, after: Position, limit: i64) -> Result<Vec<Event>, ReadError> {
        let all = Filter::all();
        // Up to here everything was seen or proven before this snapshot: what is missing in it is dead.
        let floor = self.known_head();
        let mut page = select(self, &all, after, None, limit).await?;
        let Database::Postgres { pool } = self.database() else { return Ok(page) };
        let Some(top) = page.last().map(|event| event.position) else { return Ok(page) };
        let mut whole = contiguous(&page, after, floor);
        if whole == page.len() {
            self.raise_if_anchored(after, floor, top);
            return Ok(page);
        }
        if whole == 0 {
            tokio::time::sleep(GRACE).await;
            page = select(self, &all, after, Some(top), limit).await?;
            whole = contiguous(&page, after, floor);
        }
        if whole == 0 {
            // The lock table is read after the page, and the page again after the lock table: each in a
            // statement, and so in a snapshot, of its own.
            let mut connection = pool.acquire().await?;
            let settled = wait_for_holders(&mut connection, HOLE_PATIENCE).await?;
            drop(connection);
            page = select(self, &all, after, Some(top), limit).await?;
            if settled {
                self.raise_known_head(page.last().map_or(top, |event| event.position).min(top));
                return Ok(page);
            }
            tracing::debug!(after = after.0, "an append under way holds back the events behind it");
            whole = contiguous(&page, after, floor);
        }
        page.truncate(whole);
        if let Some(last) = page.last() {
            self.raise_if_anchored(after, floor, last.position);
        }
        Ok(page)
    }

    /// A run without holes settles what it covers only if it starts where everything below is settled.
    fn raise_if_anchored(&self, after: Position, floor: Position, to: Position) {
        if after <= floor {
            self.raise_known_head(to);
        }
    }
}

/// How many events of the page follow `after` without a hole above the floor.
fn contiguous(page: &[Event], after: Position, floor: Position) -> usize {
    let mut expected = after.max(floor).0 + 1;
    page.iter()
        .take_while(|event| {
            let fits = event.position.0 <= expected;
            expected = expected.max(event.position.0 + 1);
            fits
        })
        .count()
}

/// The transactions that hold the append lock of this log and are still open.
///
/// They are known by their virtual transaction alone: a prepared transaction keeps it but loses its pid.
/// One that ends in /0 has committed, is visible, and only has not let go of its locks yet.
async fn holders(connection: &mut PgConnection) -> Result<HashSet<String>, ReadError> {
    let rows: Vec<(bool, Option<String>)> = sqlx::query_as(
        "SELECT pg_is_in_recovery(), l.virtualtransaction
           FROM (SELECT 1) AS one
           LEFT JOIN pg_locks l
             ON l.locktype = 'advisory' AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.classid = 1214607969 AND l.objid = 'herald_positions'::regclass::oid AND l.objsubid = 2
            AND l.virtualtransaction NOT LIKE '%/0'",
    )
    .fetch_all(connection)
    .await?;
    if rows.iter().any(|row| row.0) {
        return Err(ReadError::Standby);
    }
    Ok(rows.into_iter().filter_map(|row| row.1).collect())
}

/// Waits until none of those who hold the append lock now holds it any more; says whether that came true in
/// time. All looks go through one connection: if the server restarts in between, the proof is void and this
/// fails, since a prepared transaction would have changed its name.
async fn wait_for_holders(connection: &mut PgConnection, patience: Duration) -> Result<bool, ReadError> {
    let held = holders(connection).await?;
    if held.is_empty() {
        return Ok(true);
    }
    let start = tokio::time::Instant::now();
    let mut nap = SHORT_NAP;
    while start.elapsed() < patience {
        tokio::time::sleep(nap).await;
        nap = (nap * 2).min(LONG_NAP);
        if held.is_disjoint(&holders(connection).await?) {
            return Ok(true);
        }
    }
    Ok(false)
}
