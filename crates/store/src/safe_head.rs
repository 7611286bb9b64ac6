//! What may be read without ever skipping an event (PostgreSQL).
//!
//! Positions are drawn before their transactions commit, so a reader can see position 8 before 7. It must
//! not go past 7 until 7 is visible or known to be dead. Whoever draws holds a shared advisory lock from
//! before the draw to the end of its transaction (`herald_append`), so: all who held the lock *after* 8 was
//! seen, once they are gone, have settled everything below 8. Evidence, no time-outs: a stranger's long
//! transaction delays nobody, and a slow appender delays only what stands behind its own positions.
//!
//! What is proven is shared: with all tasks of the process for as long as the server runs on ([`Known`]), and with
//! all processes by the published head, beyond which a standby is read only as long as there is no hole.
//!
//! SQLite needs none of this: it has one writer, and what a reader sees has no holes.

mod explain;
mod holders;
mod known;
mod publish;
mod waited;

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

pub use self::explain::{HeadReport, Published};
use self::holders::holders;
pub use self::holders::{Holder, HolderKind};
pub use self::known::Run;
pub(crate) use self::known::{Known, identify};
pub(crate) use self::publish::{Publisher, record_dead_ranges};
pub(crate) use self::waited::Waited;
use crate::database::Database;
use crate::event::{Event, Position};
use crate::filter::Filter;
use crate::read::{Query, ReadError, fetch_numbers, select};
use crate::store::Store;

/// Most holes close within this time, without a look at the lock table.
const GRACE: Duration = Duration::from_micros(700);
/// The wait between two looks at those who hold the append lock, at first and at most.
const SHORT_NAP: Duration = Duration::from_micros(500);
const LONG_NAP: Duration = Duration::from_millis(5);
/// The same, where readers have waited for long already: a look at the lock table is not for nothing.
const LONGEST_NAP: Duration = Duration::from_millis(100);
/// How long a bounded read waits for appends under way before it takes the lower head it already knows.
const HEAD_PATIENCE: Duration = Duration::from_millis(100);
/// How long one page read waits at a hole before it comes back empty, so that its caller can stop or report.
const HOLE_PATIENCE: Duration = Duration::from_secs(1);
/// Positions looked at in one query when the head is counted up from what this process knows.
const COUNT_PAGE: i64 = 10_000;
/// So often a read begins anew because the server turned out to be another one, before it fails.
const RUNS_AT_MOST: usize = 8;

/// How far the log may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Every event at or below this position is visible, or will never be.
    pub position: Position,
    /// Whether this is the end of the log as it was when asked. If not, an append is under way above it, or on a
    /// standby there was one.
    pub is_end: bool,
}

/// The highest position that is visible; below it there may be holes.
#[derive(Clone, Copy, Debug)]
struct Top {
    position: Position,
    /// The run of the server in which it was looked for.
    run: Run,
    /// A standby shows nobody's locks: there nothing can be proven.
    is_standby: bool,
}

impl Store {
    /// How far the log may be read right now. Waits a moment for appends under way, never for strangers.
    ///
    /// On a standby: up to what is published, and on from there as long as there is no hole.
    pub async fn head(&self) -> Result<Head, ReadError> {
        self.in_one_run(|| self.find_head()).await
    }

    /// Repeats a read during which the server turned out to be another one: what was known when it began, and what
    /// it has read, may belong to two different pasts.
    pub(crate) async fn in_one_run<T, F: Future<Output = Result<T, ReadError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, ReadError> {
        for _ in 0..RUNS_AT_MOST {
            let run = self.run();
            let result = read().await?;
            if self.run() == run {
                return Ok(result);
            }
        }
        Err(ReadError::ManyServers)
    }

    /// The run of the server in which this process reads now, as far as it knows. What was read in another one may
    /// never have happened: a crash can lose what was not synced, and a standby that takes over can lack it.
    pub fn run(&self) -> Run {
        match self.database() {
            Database::Sqlite { .. } => Run::default(),
            Database::Postgres { known, .. } => known.floor().run,
        }
    }

    /// As [`Store::head`], for use inside [`Store::in_one_run`].
    pub(crate) async fn find_head(&self) -> Result<Head, ReadError> {
        let top = self.top().await?;
        if self.settle(top, HEAD_PATIENCE).await? {
            return Ok(Head { position: top.position, is_end: true });
        }
        let position = self.count_up().await?;
        Ok(Head { position, is_end: position >= top.position })
    }

    /// The next events after a position, without a hole that might still be filled. For use inside
    /// [`Store::in_one_run`].
    ///
    /// Empty while the very next position belongs to an append under way, or when there is nothing more.
    pub(crate) async fn read_contiguous(&self, after: Position, limit: i64) -> Result<Vec<Event>, ReadError> {
        let mut part = self.look(after, limit).await?;
        if part.stops_at_once {
            tokio::time::sleep(GRACE).await;
            part = self.look(after, limit).await?;
        }
        if part.stops_at_once {
            // Not only up to where this page ends: one proof spares every later page the holes of the whole log.
            let top = self.top().await?;
            if !self.settle(top, HOLE_PATIENCE).await? {
                tracing::debug!(after = after.0, "an append under way holds back the events behind it");
            }
            part = self.look(after, limit).await?;
        }
        Ok(part.events)
    }

    /// Reads what follows a position up to the first hole that is not known to be dead.
    async fn look(&self, after: Position, limit: i64) -> Result<Part, ReadError> {
        let Database::Postgres { known, .. } = self.database() else {
            let events = select(self, &Filter::all(), after, None, limit).await?;
            return Ok(Part { events, stops_at_once: false });
        };
        // Taken before the snapshot: what is missing below it then was rolled back.
        let floor = known.floor();
        let mut events = match select(self, &Filter::all(), after, None, limit).await {
            // Behind a hole it is not the next one yet: what may still come there comes first.
            Err(ReadError::BadRow { position, .. }) if position.0 > after.max(floor.settled).0 + 1 => {
                return Ok(Part { events: Vec::new(), stops_at_once: true });
            }
            result => result?,
        };
        let length = contiguous(&events, after, floor.settled);
        let stops_at_once = length == 0 && !events.is_empty();
        events.truncate(length);
        // A run without holes settles what it covers only if it starts where everything below is settled.
        if let Some(last) = events.last()
            && after <= floor.settled
        {
            known.raise(floor.run, last.position);
        }
        Ok(Part { events, stops_at_once })
    }

    /// Sees to it that everything at or below `top` is visible to the next snapshot or dead for good; says whether
    /// that came true in time.
    ///
    /// Only one task of a process watches the lock table at a time: what it proves is true for all of them, and
    /// a hundred readers at one hole must not keep every connection from the appends they wait for.
    async fn settle(&self, top: Top, patience: Duration) -> Result<bool, ReadError> {
        let Database::Postgres { pool, known, .. } = self.database() else { return Ok(true) };
        if top.position <= known.floor().settled {
            return Ok(true);
        }
        if top.is_standby {
            return Ok(false);
        }
        known.note_seen(top.run, top.position);
        let deadline = Instant::now() + patience;
        let turn = tokio::time::timeout_at(deadline, self.prover().lock()).await;
        if top.position <= known.floor().settled {
            return Ok(true);
        }
        let Ok(mut waited) = turn else { return Ok(false) };
        let mut connection = pool.acquire().await?;
        // All that was seen by anybody until now, and so before the lock table is read.
        let Some(seen) = known.seen(top.run) else { return Ok(false) };
        let longest_nap = if waited.is_long() { LONGEST_NAP } else { LONG_NAP };
        // Not before: an append that was begun while this task waited for its turn has kept nobody waiting.
        let start = Instant::now();
        let waiting = wait_for_holders(&mut connection, deadline, longest_nap);
        match self.database().answer(waiting).await? {
            Proof::Done => {
                known.raise(top.run, seen);
                self.publisher().ask();
                waited.is_over();
                Ok(true)
            }
            Proof::Waits(blockers) => {
                waited.note(&blockers, start, &mut connection).await;
                Ok(false)
            }
            Proof::Impossible => Ok(false),
        }
    }

    /// Looks for the end of the log, and for what others have published meanwhile.
    async fn top(&self) -> sqlx::Result<Top> {
        let Database::Postgres { pool, known, .. } = self.database() else {
            let sql = "SELECT MAX(position), CAST(0 AS BIGINT) FROM herald_events";
            let (top, _) = fetch_numbers(self.database(), Query::literal(sql)).await?;
            let position = top.map_or(Position::START, Position);
            return Ok(Top { position, run: Run::default(), is_standby: false });
        };
        let run = known.floor().run;
        let looking = sqlx::query_as(
            "SELECT (SELECT MAX(position) FROM herald_events),
                    (SELECT position FROM herald_safe_head),
                    pg_is_in_recovery()",
        )
        .fetch_one(pool);
        let (top, published, is_standby): (Option<Position>, Option<Position>, bool) =
            self.database().answer(looking).await?;
        let position = top.unwrap_or(Position::START);
        // A log that was cut off may have a head that was published beyond its end: nothing there is settled.
        known.note_published(run, published.map_or(Position::START, |published| published.min(position)));
        Ok(Top { position, run, is_standby })
    }

    /// Up to where everything is known to be settled, without asking anybody.
    pub(crate) fn settled(&self) -> Position {
        match self.database() {
            Database::Sqlite { .. } => Position::START,
            Database::Postgres { known, .. } => known.floor().settled,
        }
    }

    /// Counts on from the known head as long as there is no hole.
    async fn count_up(&self) -> sqlx::Result<Position> {
        let Database::Postgres { pool, known, .. } = self.database() else { return Ok(Position::START) };
        // Mostly the hole comes at once.
        let mut limit = 1;
        loop {
            let floor = known.floor();
            let looking = sqlx::query_as(
                "SELECT position FROM herald_events WHERE position > $1 ORDER BY position LIMIT $2",
            )
            .bind(floor.settled)
            .bind(limit)
            .fetch_all(pool);
            let rows: Vec<(Position,)> = self.database().answer(looking).await?;
            let before = floor.settled;
            let head = rows.iter().fold(before, |head, row| if row.0.0 == head.0 + 1 { row.0 } else { head });
            known.raise(floor.run, head);
            if head.0 - before.0 < limit {
                return Ok(head);
            }
            limit = COUNT_PAGE;
        }
    }
}

/// Events that follow each other without a hole.
struct Part {
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

/// What came of the wait for those who hold the append lock.
enum Proof {
    /// None of them holds it any more.
    Done,
    /// These still do.
    Waits(HashSet<String>),
    /// The server does not show who holds it: it is a standby.
    Impossible,
}

/// Waits until none of those who hold the append lock now holds it any more, or until the deadline. All looks go
/// through one connection: if the server restarts in between, the proof is void and this fails, since a prepared
/// transaction would have changed its name.
async fn wait_for_holders(
    connection: &mut PgConnection,
    deadline: Instant,
    longest_nap: Duration,
) -> Result<Proof, ReadError> {
    let Some(mut held) = holders(connection).await? else { return Ok(Proof::Impossible) };
    let mut nap = SHORT_NAP;
    while !held.is_empty() {
        if Instant::now() >= deadline {
            return Ok(Proof::Waits(held));
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + nap)).await;
        nap = (nap * 2).min(longest_nap);
        let Some(now) = holders(connection).await? else { return Ok(Proof::Impossible) };
        held.retain(|transaction| now.contains(transaction));
    }
    Ok(Proof::Done)
}
