//! The published head (PostgreSQL): what one process has found out, no other has to find out again.
//!
//! Up to the published head everything is settled, and each hole below it is recorded as a range of dead positions.
//! A program that starts reads on from there, beside whatever appender is stalled, and so does a reader on a standby.
//! Nothing is published that was found in another run of the server: see [`Known`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::known::{Known, identify};
use crate::database::Database;
use crate::errand::Errand;
use crate::event::Position;
use crate::fault::Fault;
use crate::lifeline::Lifeline;
use crate::store::Store;
use crate::timestamp::Timestamp;
use crate::tx::Tx;

/// What is found out within this time is published at once: it is one small write, however much was read.
const PUBLISH_PAUSE: Duration = Duration::from_millis(100);
/// Steps of 10,000 positions that are published at once; a log that never was published takes many.
const STEPS_AT_ONCE: usize = 5;
/// How often a listening process looks for something to publish although nobody told it of a commit.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Publishes in the background.
#[derive(Debug)]
pub(crate) struct Publisher {
    errand: Errand,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    pub(crate) fn start(database: &Database) -> Self {
        let errand = Errand::new();
        let task = match database {
            // Everything that is visible there is settled.
            Database::Sqlite { .. } => None,
            Database::Postgres { pool, known, lifeline } => {
                let (pool, known, lifeline) = (pool.clone(), Arc::clone(known), Arc::clone(lifeline));
                Some(tokio::spawn(publish_when_asked(errand.clone(), pool, known, lifeline)))
            }
        };
        Self { errand, task: Mutex::new(task) }
    }

    /// There may be something to publish.
    pub(super) fn ask(&self) {
        self.errand.ask();
    }

    /// Publishes what is to be published now, and then no more.
    pub(crate) fn stop(&self) {
        self.errand.stop();
    }

    /// Waits for that.
    pub(crate) async fn ended(&self) {
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

async fn publish_when_asked(errand: Errand, pool: PgPool, known: Arc<Known>, lifeline: Arc<Lifeline>) {
    let is_refused = AtomicBool::new(false);
    let publish = async || {
        if is_refused.load(Ordering::Relaxed) {
            return;
        }
        match lifeline.keep(publish(&pool, &known)).await {
            Ok(Left::Nothing) => {}
            Ok(Left::Something) => errand.ask(),
            Err(error) => {
                tracing::debug!(%error, "could not publish the safe head; others have to prove it again");
                // A role that only reads may lack the right; it would be told so again and again.
                is_refused.store(Fault::of(&error) == Fault::NotAllowed, Ordering::Relaxed);
            }
        }
    };
    errand.clone().run(PUBLISH_PAUSE, publish).await;
}

/// Whether there is more to publish, and it is on us.
enum Left {
    Nothing,
    Something,
}

/// Publishes what is settled, one bounded step after the other.
async fn publish(pool: &PgPool, known: &Known) -> sqlx::Result<Left> {
    let mut connection = pool.acquire().await?;
    let mut before = None;
    for _ in 0..STEPS_AT_ONCE {
        let Some((floor, run)) = known.to_publish() else { return Ok(Left::Nothing) };
        let published: Option<Position> = sqlx::query_scalar("SELECT herald_publish_head($1, $2)")
            .bind(floor.settled)
            .bind(run)
            .fetch_one(&mut *connection)
            .await?;
        match published {
            // The server knows this run no more, or it is a standby, or the log was set up just now.
            None => {
                identify(&mut connection, known).await?;
                return Ok(Left::Nothing);
            }
            // Somebody else is at it.
            _ if published == before => return Ok(Left::Nothing),
            Some(position) => known.note_published(floor.run, position),
        }
        before = published;
    }
    Ok(Left::Something)
}

impl Store {
    /// Publishes how far the log is settled while there are appends, whether or not anybody reads here.
    pub(crate) async fn keep_published(&self) {
        let Database::Postgres { known, .. } = self.database() else {
            return std::future::pending().await;
        };
        let mut wake = self.wake();
        loop {
            wake.arm();
            if let Err(error) = self.head().await {
                tracing::debug!(%error, "could not find out what to publish; trying again");
            }
            if known.to_publish().is_some() {
                self.publisher().ask();
            }
            wake.wait(LOOK_AGAIN).await;
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
    }
}

/// Records positions that no event will ever have, as whole holes: from the first to the last of each.
///
/// For whoever fills a log with positions that were given elsewhere. Recording a hole twice changes nothing.
pub(crate) async fn record_dead_ranges(tx: &mut Tx, holes: &[(Position, Position)]) -> sqlx::Result<()> {
    let now = Timestamp::system();
    let rows = holes.iter().map(|(lo, hi)| (*lo, *hi, now)).collect();
    let sql = "INSERT INTO herald_dead_ranges (lo, hi, proven_at) VALUES {rows}
               ON CONFLICT (lo) DO UPDATE SET hi = EXCLUDED.hi WHERE herald_dead_ranges.hi < EXCLUDED.hi";
    tx.execute_many(sql, rows).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Options;
    use crate::migrate::MIGRATIONS;
    use crate::sql::TableName;
    use crate::store::Setup;

    #[tokio::test]
    async fn s11_a_hole_that_is_recorded_twice_stands_there_once() {
        let folder = std::env::temp_dir().join(format!("herald-holes-{}", uuid::Uuid::now_v7()));
        let url = format!("sqlite:{}", folder.join("herald.db").display());
        let setup = Setup { view: TableName::new("events").unwrap(), test_clock: None };
        let store = Store::open(&url, &Options::default(), &[MIGRATIONS]).await.unwrap();
        let (store, _) = store.set_up(&setup).await.unwrap();

        for holes in [
            &[(Position(2), Position(3)), (Position(7), Position(7))][..],
            &[],
            &[(Position(2), Position(4))],
        ] {
            let mut tx = store.begin().await.unwrap();
            record_dead_ranges(&mut tx, holes).await.unwrap();
            tx.commit().await.unwrap();
        }

        let report = store.explain_head().await.unwrap();
        assert_eq!((report.dead_ranges, report.dead_positions), (2, 4));
        store.close().await;
        std::fs::remove_dir_all(folder).unwrap();
    }
}
