//! By hand on SQLite: rusqlite, synced at each commit, without any hop for one caller; for many, a thread that commits
//! whatever waits. Into a table with and without the indexes for reading that Herald's has.

use std::path::Path;
use std::sync::mpsc;

use async_trait::async_trait;
use rusqlite::{TransactionBehavior, params};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{EVENT_TYPE, Rows};
use crate::BoxError;
use crate::rounds::{Caller, Contender, Done};

/// Appends that the thread commits together at most.
const GROUP: usize = 256;

const TABLE: &str = "CREATE TABLE raw_events (
    position        INTEGER PRIMARY KEY,
    stream          TEXT NOT NULL,
    version         INTEGER NOT NULL,
    type            TEXT NOT NULL,
    payload         TEXT NOT NULL,
    metadata        TEXT NOT NULL,
    id              BLOB NOT NULL UNIQUE,
    correlation_id  TEXT,
    recorded_at     TEXT NOT NULL,
    UNIQUE (stream, version)
)";
const INDEXES: &str = "CREATE INDEX by_type ON raw_events (type, position);
     CREATE INDEX by_category ON raw_events (substr(stream, 1, instr(stream || '-', '-') - 1), position);
     CREATE INDEX by_correlation ON raw_events (correlation_id, position) WHERE correlation_id IS NOT NULL";

pub(super) fn by_hand(folder: &Path, callers: usize, events: usize) -> Result<Vec<Contender>, BoxError> {
    let who = if callers == 1 { "rusqlite" } else { "rusqlite, group commit" };
    Ok(vec![
        contender(who, open(&folder.join("raw.db"), "")?, callers, events),
        contender(
            "the same, with Herald's indexes",
            open(&folder.join("indexed.db"), INDEXES)?,
            callers,
            events,
        ),
    ])
}

fn contender(name: &str, connection: rusqlite::Connection, callers: usize, events: usize) -> Contender {
    if callers == 1 {
        return Contender::new(name, [Alone { connection, rows: Rows::new(0, events) }]);
    }
    let (groups, queue) = mpsc::channel();
    // Ends when the last caller is gone; who still waits then sees its answer missing.
    std::thread::spawn(move || commit_groups(connection, &queue));
    let shared =
        (0..callers).map(|number| Shared { groups: groups.clone(), rows: Rows::new(number, events) });
    Contender::new(name, shared)
}

fn open(file: &Path, indexes: &str) -> Result<rusqlite::Connection, BoxError> {
    let connection = rusqlite::Connection::open(file)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    connection.execute_batch(TABLE)?;
    connection.execute_batch(indexes)?;
    Ok(connection)
}

fn insert(connection: &rusqlite::Connection, stream: &str, rows: &[(i64, String)]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO raw_events (stream, version, type, payload, metadata, id, recorded_at)
         VALUES (?1, ?2, ?3, ?4, '{}', ?5, '2026-01-01 00:00:00.000000')",
    )?;
    for (version, payload) in rows {
        insert.execute(params![stream, version, EVENT_TYPE, payload, Uuid::now_v7().as_bytes()])?;
    }
    Ok(())
}

/// One caller, on the very thread that calls.
struct Alone {
    connection: rusqlite::Connection,
    rows: Rows,
}

#[async_trait]
impl Caller for Alone {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let rows = self.rows.next();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        insert(&transaction, &self.rows.stream, &rows)?;
        transaction.commit()?;
        Ok(Done::events(rows.len()))
    }
}

/// The rows of one append and who waits for them.
type Waiting = (String, Vec<(i64, String)>, oneshot::Sender<()>);

/// Many callers share the commits of one thread.
struct Shared {
    groups: mpsc::Sender<Waiting>,
    rows: Rows,
}

#[async_trait]
impl Caller for Shared {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let (done, is_done) = oneshot::channel();
        let rows = self.rows.next();
        let events = rows.len();
        self.groups.send((self.rows.stream.clone(), rows, done))?;
        is_done.await?;
        Ok(Done::events(events))
    }
}

fn commit_groups(
    mut connection: rusqlite::Connection,
    queue: &mpsc::Receiver<Waiting>,
) -> Result<(), rusqlite::Error> {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP - 1));
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (stream, rows, _) in &group {
            insert(&transaction, stream, rows)?;
        }
        transaction.commit()?;
        for (_, _, done) in group {
            // A caller that is gone waits for nothing.
            let _ = done.send(());
        }
    }
    Ok(())
}
