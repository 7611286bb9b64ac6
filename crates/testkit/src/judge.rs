//! The judge of one reader (S-09): several writers append, roll back, dawdle and prepare their transactions, the
//! reader delivers beside them, and after quiet the oracle says what was wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor};
use store::{Append, Connection, Database, DatabaseKind, ExpectedVersion, Json, NewEvent, Position};
use store::{Store, StreamName, Tx};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::database::TestDatabase;
use crate::oracle::{Acknowledged, Delivered, Findings, Table, WANTED, Wanted};
use crate::random::Random;

const WRITERS: u64 = 4;
const APPENDS_OF_EACH: u64 = 40;
const STREAMS: u64 = 6;
/// Once in a run an appender is idle for this long before it is prepared, and again before it commits.
const IDLE: Duration = Duration::from_millis(150);

/// What a reader was given for "after this position": events, and where to go on from.
#[derive(Debug)]
pub struct Read {
    /// The events.
    pub events: Vec<Delivered>,
    /// Where the reader stands now.
    pub go_on_after: Position,
}

/// Lets one reader run beside writers until all is quiet, and judges it.
pub async fn judge(
    database: &TestDatabase,
    seed: u64,
    wanted: Wanted,
    reader: impl AsyncFn(Position) -> Read,
) -> Findings {
    judge_with(writers(database).await, seed, wanted, reader).await
}

/// The handles of the writers, each as in a process of its own.
pub async fn writers(database: &TestDatabase) -> Vec<Store> {
    let mut stores = Vec::new();
    for _ in 0..WRITERS {
        stores.push(database.open().await);
    }
    stores
}

/// As [`judge`], with writers on handles that were opened before: what is done to the database in between meets
/// them unprepared.
pub async fn judge_with(
    stores: Vec<Store>,
    seed: u64,
    wanted: Wanted,
    reader: impl AsyncFn(Position) -> Read,
) -> Findings {
    let oracle = stores[0].clone();
    let mut writers = JoinSet::new();
    for (number, store) in (0..).zip(stores) {
        let random = Random::from_seed(seed.wrapping_mul(WRITERS).wrapping_add(number));
        // SQLite has one writer: whoever dawdles there stops all the others, and no reader.
        let dawdles = number == 0 && store.database().kind() == DatabaseKind::Postgres;
        writers.spawn(write(store, random, dawdles.then_some(APPENDS_OF_EACH / 4)));
    }
    let quiet = Arc::new(AtomicBool::new(false));
    let watcher = {
        let quiet = Arc::clone(&quiet);
        tokio::spawn(async move {
            let acknowledged = writers.join_all().await.concat();
            quiet.store(true, Ordering::Release);
            acknowledged
        })
    };
    let mut delivered = Vec::new();
    let mut after = Position::START;
    loop {
        // Asked before the read: what was committed until then must be in it.
        let was_quiet = quiet.load(Ordering::Acquire);
        let read = reader(after).await;
        if was_quiet && read.events.is_empty() && read.go_on_after == after {
            break;
        }
        delivered.extend(read.events);
        after = read.go_on_after;
    }
    let acknowledged = watcher.await.expect("the writers come to their end");
    let table = Table::read(&oracle).await.expect("the table can be read");
    let mut findings = table.judge(wanted, &delivered);
    findings += table.judge_acknowledged(&acknowledged);
    findings
}

/// Appends, and sometimes thinks better of it; answers the last event of each append that was committed.
async fn write(store: Store, mut random: Random, dawdles_at: Option<u64>) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for number in 0..APPENDS_OF_EACH {
        let dawdles = dawdles_at == Some(number);
        let mut streams = BTreeSet::from([random.below(STREAMS)]);
        if random.below(3) == 0 {
            streams.insert(random.below(STREAMS));
        }
        let appends = streams.into_iter().map(|name| Append {
            // Nobody waits for the stream of who dawdles, so that others commit above its positions.
            stream: StreamName::new(if dawdles { "idle-1".to_owned() } else { format!("s-{name}") })
                .expect("a good name"),
            expected: ExpectedVersion::Any,
            events: (0..=random.below(3)).map(|_| some_event(&mut random)).collect(),
        });
        let appends: Vec<Append> = appends.take(if dawdles { 1 } else { 2 }).collect();
        let last_ids: Vec<Uuid> =
            appends.iter().filter_map(|append| Some(append.events.last()?.id)).collect();

        let mut tx = store.begin().await.expect("a transaction begins");
        let results = store.append_all(&mut tx, appends).await.expect("it appends");
        let results = results.iter().zip(last_ids).filter_map(|(result, id)| {
            let position = result.position?;
            Some(Acknowledged { position, id })
        });
        if dawdles {
            tokio::time::sleep(IDLE).await;
            let prepared = Prepared::from(tx).await;
            tokio::time::sleep(IDLE).await;
            prepared.end(&store, "COMMIT").await;
            acknowledged.extend(results);
            continue;
        }
        if random.below(2) == 0 {
            // The load itself, not a way to wait: positions are drawn and not yet committed.
            tokio::time::sleep(Duration::from_micros(random.below(3_000))).await;
        }
        if random.below(4) == 0 {
            tx.rollback().await;
        } else {
            tx.commit().await.expect("it commits");
            acknowledged.extend(results);
        }
    }
    acknowledged
}

fn some_event(random: &mut Random) -> NewEvent {
    let event_type = if random.below(2) == 0 { WANTED } else { "Acme.Test:Happened" };
    NewEvent::new(event_type, Json::empty_object())
}

/// A prepared transaction (PostgreSQL): it has lost its process and keeps its locks.
#[derive(Debug)]
pub struct Prepared(String);

impl Prepared {
    /// Prepares it.
    pub async fn from(mut tx: Tx) -> Self {
        let name = format!("herald_{}", Uuid::new_v4().simple());
        let Connection::Postgres(connection) = tx.connection() else {
            panic!("only PostgreSQL prepares transactions")
        };
        let prepare = AssertSqlSafe(format!("PREPARE TRANSACTION '{name}'"));
        connection.execute(sqlx::raw_sql(prepare)).await.expect("it can be prepared");
        Self(name)
    }

    /// `COMMIT` or `ROLLBACK`, by whomever.
    pub async fn end(self, store: &Store, how: &str) {
        let Database::Postgres { pool, .. } = store.database() else {
            panic!("only PostgreSQL prepares transactions")
        };
        let end = AssertSqlSafe(format!("{how} PREPARED '{}'", self.0));
        sqlx::raw_sql(end).execute(pool).await.expect("it was prepared");
    }
}
