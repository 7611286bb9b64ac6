//! Appending: Herald's `append` beside the rows written by hand.
//!
//! By hand means: no stream table, no check of ids, no expected version beyond the unique index, no function in
//! the database. On PostgreSQL that is one INSERT … RETURNING per append, each caller on a connection of its
//! own. On SQLite it is BEGIN IMMEDIATE, INSERT, COMMIT on the one connection that may write, which the callers
//! share. Nobody who keeps such a table can be faster without giving up a sync.

use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use store::{ExpectedVersion, Json, NewEvent, Store, StreamName, Version};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Line, Plan, print_table};

/// Callers, and events of each append.
const CASES: [(usize, usize); 4] = [(1, 1), (16, 1), (1, 10), (1, 100)];
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
        Bench::Sqlite { .. } => {
            let connection = Arc::new(Mutex::new(raw_sqlite(&bench.url("raw.db")).await?));
            let raw = (0..callers).map(|number| RawSqlite {
                connection: Arc::clone(&connection),
                rows: Rows::new(number, events),
            });
            plan.compare(bench.name(), what, raw.collect(), herald).await?
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
        let count = self.rows.events;
        let places: Vec<String> = (0..count)
            .map(|row| {
                let place = |column| row * 5 + column;
                format!(
                    "(${}, ${}, ${}, ${}, '{{}}', ${}, clock_timestamp())",
                    place(1),
                    place(2),
                    place(3),
                    place(4),
                    place(5)
                )
            })
            .collect();
        let sql = format!(
            "INSERT INTO raw_events (stream, version, type, payload, metadata, id, recorded_at)
             VALUES {} RETURNING position",
            places.join(", ")
        );
        let mut query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql));
        for (version, payload) in self.rows.next() {
            query = query
                .bind(self.rows.stream.clone())
                .bind(version)
                .bind(EVENT_TYPE)
                .bind(payload)
                .bind(Uuid::now_v7());
        }
        let positions = query.fetch_all(&mut self.connection).await?;
        assert_eq!(positions.len(), count);
        Ok(())
    }
}

async fn raw_sqlite(url: &str) -> Result<SqliteConnection, BoxError> {
    let options: SqliteConnectOptions = url.parse()?;
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    connection
        .execute(
            "CREATE TABLE raw_events (
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
        )
        .await?;
    Ok(connection)
}

struct RawSqlite {
    connection: Arc<Mutex<SqliteConnection>>,
    rows: Rows,
}

impl Caller for RawSqlite {
    async fn call(&mut self) -> Result<(), BoxError> {
        let places = vec!["(?, ?, ?, ?, '{}', ?, ?)"; self.rows.events].join(", ");
        let sql = format!(
            "INSERT INTO raw_events (stream, version, type, payload, metadata, id, recorded_at) VALUES {places}"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (version, payload) in self.rows.next() {
            query = query
                .bind(self.rows.stream.clone())
                .bind(version)
                .bind(EVENT_TYPE)
                .bind(payload)
                .bind(Uuid::now_v7())
                .bind("2026-01-01 00:00:00.000000");
        }
        let mut connection = self.connection.lock().await;
        connection.execute(sqlx::raw_sql("BEGIN IMMEDIATE")).await?;
        query.execute(&mut *connection).await?;
        connection.execute(sqlx::raw_sql("COMMIT")).await?;
        Ok(())
    }
}
