//! A reader of the log in plain SQL, step by step as safe_head.rs describes it, that can be broken on purpose.
//!
//! It exists so that the judge is known to catch each way in which a reader can be wrong. It takes its time between
//! its steps: what a hurried reader would get away with for hours is caught at once. Unbroken it is right, however
//! long it takes.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::{Executor, PgConnection, PgPool};
use store::Position;
use testkit::{Delivered, Read};

/// The pause between two steps: about as long as the writers dawdle between drawing and committing.
const BETWEEN_STEPS: Duration = Duration::from_millis(2);
const PAGE: i64 = 20;

/// A way in which a reader can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    /// It hands on what it sees.
    SkipsHoles,
    /// It takes a hole for dead without waiting for anybody.
    WaitsForNobody,
    /// It notes who holds the append lock before it reads the page, instead of afterwards.
    HoldersBeforePage,
    /// It looks again in the snapshot in which it looked before.
    OneSnapshot,
    /// It knows a holder by process and transaction; a prepared transaction loses its process.
    KnowsHoldersByProcess,
    /// It does not ask whether it talks to a standby, which shows nobody's locks.
    TrustsStandby,
}

/// The reader.
pub(super) struct Model {
    pool: PgPool,
    mutation: Option<Mutation>,
}

impl Model {
    pub(super) fn new(url: &str, mutation: Option<Mutation>) -> Self {
        Self { pool: PgPool::connect_lazy(url).unwrap(), mutation }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// What follows a position without a hole that might still be filled.
    pub(super) async fn read(&self, after: Position) -> Read {
        let mut session = self.pool.acquire().await.unwrap();
        let isolation = if self.is(Mutation::OneSnapshot) { "REPEATABLE READ" } else { "READ COMMITTED" };
        let begin = sqlx::AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {isolation}"));
        session.execute(sqlx::raw_sql(begin)).await.unwrap();
        let events = self.read_in(&mut session, after).await;
        session.execute("COMMIT").await.unwrap();
        let go_on_after = events.last().map_or(after, |event| event.position);
        Read { events, go_on_after }
    }

    async fn read_in(&self, session: &mut PgConnection, after: Position) -> Vec<Delivered> {
        let mut held = HashSet::new();
        if self.is(Mutation::HoldersBeforePage) {
            held = self.holders(session).await;
            pause().await;
        }
        let mut page = rows(session, after, Position(i64::MAX)).await;
        let Some(top) = page.last().map(|event| event.position) else { return page };
        let without_hole =
            (after.0 + 1..).zip(&page).take_while(|(next, event)| event.position.0 == *next).count();
        if without_hole > 0 && !self.is(Mutation::SkipsHoles) {
            page.truncate(without_hole);
        }
        if without_hole > 0 || self.is(Mutation::SkipsHoles) {
            return page;
        }
        if !self.is(Mutation::HoldersBeforePage) {
            pause().await;
            held = self.holders(session).await;
        }
        if !self.is(Mutation::WaitsForNobody) {
            while !held.is_disjoint(&self.holders(session).await) {
                pause().await;
            }
        }
        rows(session, after, top).await
    }

    /// Who holds the append lock.
    async fn holders(&self, session: &mut PgConnection) -> HashSet<(Option<i32>, String)> {
        let rows: Vec<(bool, Option<i32>, Option<String>)> = sqlx::query_as(
            "SELECT pg_is_in_recovery(), l.pid, l.virtualtransaction
               FROM (SELECT 1) AS one
               LEFT JOIN pg_locks l
                 ON l.locktype = 'advisory' AND l.granted
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND l.classid = 1214607969 AND l.objid = 'herald_positions'::regclass::oid AND l.objsubid = 2
                AND l.virtualtransaction NOT LIKE '%/0'",
        )
        .fetch_all(session)
        .await
        .unwrap();
        let in_recovery = rows.iter().any(|row| row.0);
        assert!(!in_recovery || self.is(Mutation::TrustsStandby), "a standby does not know who is appending");
        let by_process = self.is(Mutation::KnowsHoldersByProcess);
        rows.into_iter()
            .filter_map(|(_, pid, transaction)| Some((pid.filter(|_| by_process), transaction?)))
            .collect()
    }
}

async fn rows(session: &mut PgConnection, after: Position, up_to: Position) -> Vec<Delivered> {
    let rows: Vec<(Position, uuid::Uuid, String, i64)> = sqlx::query_as(
        "SELECT position, id, stream, version
           FROM herald_events
          WHERE position > $1 AND position <= $2
          ORDER BY position
          LIMIT $3",
    )
    .bind(after)
    .bind(up_to)
    .bind(PAGE)
    .fetch_all(session)
    .await
    .unwrap();
    let delivered = |(position, id, stream, version)| Delivered { position, id, stream, version };
    rows.into_iter().map(delivered).collect()
}

/// Not to wait for anything: in this time the writers do what must not deceive the reader.
async fn pause() {
    tokio::time::sleep(BETWEEN_STEPS).await;
}
