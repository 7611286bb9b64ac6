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
use tokio::time::Instant;

use crate::database::{Database, DatabaseKind};
use crate::event::{Event, Position};
use crate::filter::Filter;
use crate::read::{Query, ReadError, fetch_numbers, select};
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
        if self.settle(top, HEAD_PATIENCE).await? {
            return Ok(Head { position: top, is_end: true });
        }
        let position = self.count_up().await?;
        Ok(Head { position, is_end: position >= top })
    }

    /// The next events after a position, without a hole that might still be filled.
    ///
    /// Empty while the very next position belongs to an append under way, or when there is nothing more.
    pub(crate) async fn read_contiguous(&self, after: Position, limit: i64) -> Result<Vec<Event>, ReadError> {
        let mut run = self.look(after, limit).await?;
        if run.stops_at_once {
            tokio::time::sleep(GRACE).await;
            run = self.look(after, limit).await?;
        }
        if run.stops_at_once {
            // Not only up to where this page ends: one proof spares every later page the holes of the whole log.
            let top = self.top().await?;
            if !self.settle(top, HOLE_PATIENCE).await? {
                tracing::debug!(after = after.0, "an append under way holds back the events behind it");
            }
            run = self.look(after, limit).await?;
        }
        Ok(run.events)
    }

    /// Reads what follows a position up to the first hole that is not known to be dead.
    async fn look(&self, after: Position, limit: i64) -> Result<Run, ReadError> {
        // Taken before the snapshot: what is missing below it then was rolled back.
        let floor = self.known_head();
        let mut events = select(self, &Filter::all(), after, None, limit).await?;
        if self.database().kind() == DatabaseKind::Sqlite {
            return Ok(Run { events, stops_at_once: false });
        }
        let length = contiguous(&events, after, floor);
        let stops_at_once = length == 0 && !events.is_empty();
        events.truncate(length);
        // A run without holes settles what it covers only if it starts where everything below is settled.
        if let Some(last) = events.last()
            && after <= floor
        {
            self.raise_known_head(last.position);
        }
        Ok(Run { events, stops_at_once })
    }

    /// Sees to it that everything at or below `top`, a position that was visible, is visible to the next
    /// snapshot or dead for good; says whether that came true in time.
    ///
    /// Only one task of a process watches the lock table at a time: what it proves is true for all of them, and
    /// a hundred readers at one hole must not keep every connection from the appends they wait for.
    async fn settle(&self, top: Position, patience: Duration) -> Result<bool, ReadError> {
        let Database::Postgres { pool, .. } = self.database() else { return Ok(true) };
        if top <= self.known_head() {
            return Ok(true);
        }
        self.note_seen(top);
        let deadline = Instant::now() + patience;
        let turn = tokio::time::timeout_at(deadline, self.prover().lock()).await;
        if top <= self.known_head() {
            return Ok(true);
        }
        if turn.is_err() {
            return Ok(false);
        }
        let mut connection = pool.acquire().await?;
        // All that was seen by anybody until now, and so before the lock table is read.
        let seen = self.seen();
        let settled = wait_for_holders(&mut connection, deadline).await?;
        if settled {
            self.raise_known_head(seen);
        }
        Ok(settled)
    }

    /// The highest position that is visible; below it there may be holes.
    async fn top(&self) -> sqlx::Result<Position> {
        let sql = "SELECT MAX(position), CAST(0 AS BIGINT) FROM herald_events";
        let (top, _) = fetch_numbers(self.database(), Query::literal(sql)).await?;
        Ok(top.map_or(Position::START, Position))
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
}

/// Events that follow each other without a hole.
struct Run {
    events: Vec<Event>,
    /// There are events, but a hole comes before the first of them.
    stops_at_once: bool,
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
async fn wait_for_holders(connection: &mut PgConnection, deadline: Instant) -> Result<bool, ReadError> {
    let held = holders(connection).await?;
    let mut nap = SHORT_NAP;
    let mut gone = held.is_empty();
    while !gone && Instant::now() < deadline {
        tokio::time::sleep(nap).await;
        nap = (nap * 2).min(LONG_NAP);
        gone = held.is_disjoint(&holders(connection).await?);
    }
    Ok(gone)
}
