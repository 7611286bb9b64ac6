//! Appending: Herald's `append` beside the rows written by hand.
//!
//! By hand means: no stream table, no check of ids, no expected version beyond the unique index, no function in
//! the database, and only the indexes that such a table needs: position, id, stream and version. (Herald's has three
//! more, for reading by type, category and correlation, and it pays for them here.) On PostgreSQL that is one INSERT
//! … RETURNING per append, over UNNEST where there are several events, each caller on a connection of its own. On
//! SQLite it is rusqlite without any hop for one caller, and for many a thread that commits whatever waits. Nobody
//! who keeps such a table can be faster without giving up a sync.

use std::path::Path;
use std::sync::mpsc;

use rusqlite::{TransactionBehavior, params};
use sqlx::{Connection, Executor, PgConnection};
use store::{ExpectedVersion, Json, NewEvent, Store, StreamName, Version};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Line, Plan, print_table};

/// Callers, and events of each append.
const CASES: [(usize, usize); 6] = [(1, 1), (16, 1), (64, 1), (1, 10), (16, 10), (1, 100)];
/// Appends that a thread of the raw SQLite commits together at most.
const RAW_GROUP: usize = 256;
const EVENT_TYPE: &str = "Acme.Notifications:UserWasNotified";

/// Measures all cases on both databases and prints the table.
pub(crate) async fn measure(plan: &Plan) -> Result<(), BoxError> {
    let mut lines = Vec::new();
    for (callers, events) in CASES {
        let bench = Bench::sqlite()?;
        lines.push(case(plan, &bench, callers, events).await?);
        bench.clean_up().await?;
    }
    for (callers, events) in CASES {
        let Some(bench) = Bench::postgres().await? else { break };
        lines.push(case(plan, &bench, callers, events).await?);
        bench.clean_up().await?;
    }
    print_table("appends/s", &lines);
    Ok(())
}

async fn case(plan: &Plan, bench: &Bench, callers: usize, events: usize) -> Result<Line, BoxError> {
    let what = format!("{callers} caller{}, {events} event{}", plural(callers), plural(events));
    let store = bench.store().await?;
    let herald = (0..callers).map(|number| Herald::new(&store, number, events)).collect::<Result<_, _>>()?;
    let line = match bench {
        Bench::Sqlite { folder } => {
            let connection = raw_sqlite(&folder.path().join("raw.db"))?;
            if callers == 1 {
                let raw = vec![RawSqlite { connection, rows: Rows::new(0, events) }];
                plan.compare(bench.name(), what, raw, herald).await?
            } else {
                let (groups, queue) = mpsc::channel();
                let thread = std::thread::spawn(move || commit_groups(connection, &queue));
                let raw = (0..callers)
                    .map(|number| RawSqliteGroup { groups: groups.clone(), rows: Rows::new(number, events) });
                let raw = raw.collect();
                drop(groups);
                let line = plan.compare(bench.name(), what, raw, herald).await?;
                thread.join().map_err(|_| "the raw committer panicked")??;
                line
            }
        }
        Bench::Postgres { .. } => {
            let url = bench.url("");
            PgConnection::connect(&url).await?.execute(RAW_POSTGRES).await?;
            let mut raw = Vec::new();
            for number in 0..callers {
                let connection = PgConnection::connect(&url).await?;
                raw.push(RawPostgres { connection, rows: Rows::new(number, events) });
            }
            plan.compare(bench.name(), what, raw, herald).await?
        }
    };
    store.close().await;
    Ok(line)
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// 200 bytes, as a notification may have.
fn payload(number: i64) -> String {
    let head = format!("{{\"userId\":\"user-{number}\",\"message\":\"");
    let fill = 200_usize.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(fill))
}

/// Appends to a stream of its own, each time under the version that it knows.
struct Herald {
    store: Store,
    stream: StreamName,
    expected: ExpectedVersion,
    events: usize,
    next: i64,
}

impl Herald {
    fn new(store: &Store, number: usize, events: usize) -> Result<Self, BoxError> {
        let stream = StreamName::new(format!("user-{number}"))?;
        Ok(Self { store: store.clone(), stream, expected: ExpectedVersion::NoStream, events, next: 0 })
    }
}

impl Caller for Herald {
    async fn call(&mut self) -> Result<(), BoxError> {
        let mut events = Vec::with_capacity(self.events);
        for _ in 0..self.events {
            events.push(NewEvent::new(EVENT_TYPE, Json::parse(payload(self.next))?));
            self.next += 1;
        }
        let appended = self.store.append(&self.stream, self.expected, events).await?;
        self.expected = appended.version.map_or(ExpectedVersion::NoStream, ExpectedVersion::Exactly);
        assert_eq!(self.expected, ExpectedVersion::Exactly(Version(self.next - 1)), "every append counts");
        Ok(())
    }
}

/// What an append writes, by hand.
struct Rows {
    stream: String,
    events: usize,
    next: i64,
}

impl Rows {
    fn new(number: usize, events: usize) -> Self {
        Self { stream: format!("user-{number}"), events, next: 0 }
    }

    /// The versions and payloads of the next append.
    fn next(&mut self) -> Vec<(i64, String)> {
        let first = self.next;
        self.next += i64::try_from(self.events).unwrap_or(i64::MAX);
        (first..self.next).map(|version| (version, payload(version))).collect()
    }
}

const RAW_POSTGRES: &str = "CREATE TABLE raw_events (
    position     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream       TEXT NOT NULL,
    version      BIGINT NOT NULL,
    type         TEXT NOT NULL,
    payload      TEXT NOT NULL,
    metadata     TEXT NOT NULL,
    id           UUID NOT NULL UNIQUE,
    recorded_at  TIMESTAMPTZ NOT NULL,
    UNIQUE (stream, version)
)";

struct RawPostgres {
    connection: PgConnection,
    rows: Rows,
}

impl Caller for RawPostgres {
    async fn call(&mut self) -> Result<(), BoxError> {
        let rows = self.rows.next();
        let count = rows.len();
        let stream = self.rows.stream.as_str();
        let positions = if let [(version, payload)] = rows.as_slice() {
            let insert = sqlx::query_scalar::<_, i64>(
                "INSERT INTO raw_events (stream, version, type, payload, metadata, id, recorded_at)
                 VALUES ($1, $2, $3, $4, '{}', $5, clock_timestamp()) RETURNING position",
            );
            let insert =
                insert.bind(stream).bind(version).bind(EVENT_TYPE).bind(payload).bind(Uuid::now_v7());
            insert.fetch_all(&mut self.connection).await?
        } else {
            let insert = sqlx::query_scalar::<_, i64>(
                "INSERT INTO raw_events (stream, version, type, payload, metadata, id, recorded_at)
                 SELECT $1, r.version, $2, r.payload, '{}', r.id, clock_timestamp()
                   FROM UNNEST($3::bigint[], $4::text[], $5::uuid[]) AS r(version, payload, id)
                 RETURNING position",
            );
            let (versions, payloads): (Vec<i64>, Vec<String>) = rows.into_iter().unzip();
            let ids: Vec<Uuid> = versions.iter().map(|_| Uuid::now_v7()).collect();
            let insert = insert.bind(stream).bind(EVENT_TYPE).bind(versions).bind(payloads).bind(ids);
            insert.fetch_all(&mut self.connection).await?
        };
        assert_eq!(positions.len(), count);
        Ok(())
    }
}

fn raw_sqlite(file: &Path) -> Result<rusqlite::Connection, BoxError> {
    let connection = rusqlite::Connection::open(file)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         CREATE TABLE raw_events (
             position     INTEGER PRIMARY KEY,
             stream       TEXT NOT NULL,
             version      INTEGER NOT NULL,
             type         TEXT NOT NULL,
             payload      TEXT NOT NULL,
             metadata     TEXT NOT NULL,
             id           BLOB NOT NULL UNIQUE,
             recorded_at  TEXT NOT NULL,
             UNIQUE (stream, version)
         )",
    )?;
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
struct RawSqlite {
    connection: rusqlite::Connection,
    rows: Rows,
}

impl Caller for RawSqlite {
    async fn call(&mut self) -> Result<(), BoxError> {
        let rows = self.rows.next();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        insert(&transaction, &self.rows.stream, &rows)?;
        transaction.commit()?;
        Ok(())
    }
}

/// The rows of one append and who waits for them.
type Waiting = (String, Vec<(i64, String)>, oneshot::Sender<()>);

/// Many callers share the commits of one thread.
struct RawSqliteGroup {
    groups: mpsc::Sender<Waiting>,
    rows: Rows,
}

impl Caller for RawSqliteGroup {
    async fn call(&mut self) -> Result<(), BoxError> {
        let (done, is_done) = oneshot::channel();
        let rows = self.rows.next();
        self.groups.send((self.rows.stream.clone(), rows, done))?;
        Ok(is_done.await?)
    }
}

fn commit_groups(
    mut connection: rusqlite::Connection,
    queue: &mpsc::Receiver<Waiting>,
) -> Result<(), rusqlite::Error> {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(RAW_GROUP - 1));
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
