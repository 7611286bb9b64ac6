//! In the same process: a task waits in a loop and says when it had which event.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use store::{Event, ExpectedVersion, Filter, Json, NewEvent, Position, Store, StreamName};
use subscription_engine::{
    BoxError as HandlerError, Context, Criteria, Definition, Engine, Registry, Subscriber, Worker,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::{RAW_FILE, RAW_INSERT, RAW_SELECT, RAW_TABLE_POSTGRES, RAW_TABLE_SQLITE};
use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Contender, Done, Line, Plan};

pub(super) async fn compare(plan: &Plan, bench: &Bench, store: &Store) -> Result<Vec<Line>, BoxError> {
    let raw = match bench {
        Bench::Sqlite { folder } => {
            let file = folder.path().join(RAW_FILE);
            let connection = rusqlite::Connection::open(&file)?;
            connection.execute_batch(RAW_TABLE_SQLITE)?;
            let (wake, woken) = std::sync::mpsc::channel();
            let (had, arrived) = mpsc::unbounded_channel();
            let reader = rusqlite::Connection::open(&file)?;
            std::thread::spawn(move || read_raw_sqlite(&reader, &woken, &had));
            Contender::new(
                "channel + select",
                [Here { append: Append::Sqlite { connection, wake: Some(wake) }, arrived }],
            )
        }
        Bench::Postgres { .. } => {
            let url = bench.url("");
            let mut connection = PgConnection::connect(&url).await?;
            connection.execute(AssertSqlSafe(RAW_TABLE_POSTGRES)).await?;
            let wake = Arc::new(Notify::new());
            let (had, arrived) = mpsc::unbounded_channel();
            tokio::spawn(read_raw_postgres(PgConnection::connect(&url).await?, Arc::clone(&wake), had));
            Contender::new(
                "channel + select",
                [Here { append: Append::Postgres { connection, wake }, arrived }],
            )
        }
    };
    let (had, arrived) = mpsc::unbounded_channel();
    tokio::spawn(read(store.clone(), had));
    let herald = Here { append: Append::Herald(store.clone()), arrived };
    plan.compare(bench.name(), "same process", vec![raw, Contender::new("Herald", [herald])]).await
}

/// A subscriber in this process, which has an event when its handler is called.
pub(crate) async fn worker_here(store: &Store) -> Result<Contender, BoxError> {
    let (had, arrived) = mpsc::unbounded_channel();
    let had_last = move |position| had.send((position, Instant::now())).is_ok();
    let engine = engine_that_tells(store, "here", had_last)?;
    engine.catch_up(&Criteria::all()).await?;
    tokio::spawn(Worker::new(engine, Criteria::all(), "bench").run(std::future::pending(), || {}));
    Ok(Contender::new("Herald", [Here { append: Append::Herald(store.clone()), arrived }]))
}

/// An engine with one subscriber that tells of the last event of each call; where nobody listens it fails.
pub(super) fn engine_that_tells(
    store: &Store,
    id: &'static str,
    tell: impl Fn(i64) -> bool + Send + Sync + 'static,
) -> Result<Engine, BoxError> {
    let teller: Arc<dyn Subscriber> = Arc::new(Teller { id, tell });
    Ok(Engine::new(store.clone(), Registry::new([teller])?, "bench"))
}

struct Teller<T> {
    id: &'static str,
    tell: T,
}

#[async_trait]
impl<T: Fn(i64) -> bool + Send + Sync> Subscriber for Teller<T> {
    fn definition(&self) -> Definition {
        Definition::processor(self.id)
    }

    async fn handle(&self, events: &[Event], _: &mut Context<'_>) -> Result<(), HandlerError> {
        match events.last() {
            Some(last) if !(self.tell)(last.position.0) => Err("nobody listens".into()),
            _ => Ok(()),
        }
    }
}

/// Appends one event and waits until the reader has it.
struct Here {
    append: Append,
    arrived: mpsc::UnboundedReceiver<(i64, Instant)>,
}

/// How an event gets in, and who of this process is told.
pub(super) enum Append {
    Herald(Store),
    Sqlite { connection: rusqlite::Connection, wake: Option<std::sync::mpsc::Sender<()>> },
    Postgres { connection: PgConnection, wake: Arc<Notify> },
}

impl Append {
    /// Answers with the position.
    pub(super) async fn append(&mut self) -> Result<i64, BoxError> {
        match self {
            Self::Herald(store) => {
                let event = NewEvent::new("Acme.Test:Happened", Json::parse("{}")?);
                let stream = StreamName::new("wake-1")?;
                let appended = store.append(&stream, ExpectedVersion::Any, vec![event]).await?;
                Ok(appended.position.ok_or("an event was appended")?.0)
            }
            Self::Sqlite { connection, wake } => {
                let position = connection.prepare_cached(RAW_INSERT)?.query_row(("{}",), |row| row.get(0))?;
                if let Some(wake) = wake {
                    wake.send(())?;
                }
                Ok(position)
            }
            Self::Postgres { connection, wake } => {
                let insert = sqlx::query_scalar(RAW_INSERT).bind("{}");
                let position = insert.fetch_one(connection).await?;
                wake.notify_one();
                Ok(position)
            }
        }
    }
}

#[async_trait]
impl Caller for Here {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let position = self.append.append().await?;
        let acknowledged = Instant::now();
        loop {
            let (reached, at) = self.arrived.recv().await.ok_or("the reader ended")?;
            if reached >= position {
                return Ok(Done::event_after(at.saturating_duration_since(acknowledged)));
            }
        }
    }
}

type Had = mpsc::UnboundedSender<(i64, Instant)>;

async fn read(store: Store, had: Had) {
    let (mut wake, mut after) = (store.wake(), Position::START);
    loop {
        wake.arm();
        match store.read(&Filter::all(), after, 1_000).await {
            Ok(page) if page.events.is_empty() => wake.wait(Duration::from_secs(1)).await,
            Ok(page) => {
                after = page.scanned_to;
                if had.send((after.0, Instant::now())).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

async fn read_raw_postgres(mut connection: PgConnection, wake: Arc<Notify>, had: Had) {
    let mut after = 0_i64;
    loop {
        wake.notified().await;
        let select = sqlx::query_as::<_, (i64, String)>(RAW_SELECT).bind(after);
        let Ok(rows) = select.fetch_all(&mut connection).await else { return };
        after = rows.last().map_or(after, |row| row.0);
        if had.send((after, Instant::now())).is_err() {
            return;
        }
    }
}

fn read_raw_sqlite(connection: &rusqlite::Connection, woken: &std::sync::mpsc::Receiver<()>, had: &Had) {
    let mut after = 0_i64;
    while woken.recv().is_ok() {
        let Ok(reached) = last_raw_sqlite(connection, after) else { return };
        after = reached;
        if had.send((after, Instant::now())).is_err() {
            return;
        }
    }
}

/// Reads on; answers with the last position.
pub(super) fn last_raw_sqlite(connection: &rusqlite::Connection, after: i64) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached(RAW_SELECT)?;
    let rows = select.query_map((after,), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows: Vec<(i64, String)> = rows.collect::<Result<_, _>>()?;
    Ok(rows.last().map_or(after, |row| row.0))
}
