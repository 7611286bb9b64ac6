//! The store: one log in one database, and the handle that everybody holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::append::Committer;
use crate::clock::Clock;
use crate::database::{ConnectError, Database, DatabaseKind, Options};
use crate::event::Position;
use crate::hooks::Hooks;
use crate::migrate::{self, MigrateError, Migration, Schema};
use crate::sql::{Sql, TableName};
use crate::timestamp::Timestamp;
use crate::tx::Tx;
use crate::upcast::Upcasters;
use crate::wake::{self, Signal, Wake};

/// A log. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>, Plugins);

/// What a program plugs into its handle of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plugins {
    pub(crate) upcasters: Option<Arc<Upcasters>>,
    pub(crate) hooks: Option<Arc<Hooks>>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    clock: Clock,
    signal: Signal,
    committer: Committer,
    migrations: Vec<Migration>,
    /// Up to here everything is settled, as far as this process has seen or proven. Only ever raised.
    known_head: AtomicI64,
    /// The highest position that this process has seen, settled or not. Only ever raised.
    seen: AtomicI64,
    /// How large the events of the last page were, on average: it bounds what is asked for at once.
    bytes_per_event: AtomicUsize,
    /// Held by the one task that finds out who is appending.
    prover: Mutex<()>,
    /// Tells other processes about commits.
    notifier: Mutex<Option<JoinHandle<()>>>,
}

/// What makes this log this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Given when it was set up.
    pub id: Uuid,
    /// When that was.
    pub created_at: Timestamp,
    /// The time, if the log is in test mode.
    pub test_time: Option<Timestamp>,
}

/// How to set a log up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The read-only view that shows the log with the ten columns of the Neos-style event table.
    pub view: TableName,
    /// Makes a log in test mode, at this time. Ignored when the log is already there.
    pub test_clock: Option<Timestamp>,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The schema is newer, or could not be migrated.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// Positions would not be drawn in the order of time.
    #[error("the sequence herald_positions {0}; events could be skipped, so the log is not opened")]
    BadSequence(String),
    /// The database refused.
    #[error("could not read the log's state")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// Connects. Nothing is written, so a database without a log is fine: see [`Store::schema`].
    ///
    /// `migrations` are all that the program knows: the log's own and those of whoever else keeps rows here.
    pub async fn open(url: &str, options: &Options, migrations: &[&[Migration]]) -> Result<Self, StoreError> {
        let database = Database::connect(url, options).await?;
        let migrations = migrations.concat();
        let signal = Signal::new();
        let manual = match migrate::schema(&database, &migrations).await? {
            Schema::Missing => false,
            Schema::Behind(_) | Schema::Current => {
                check_sequence(&database).await?;
                identity(&database).await?.is_some_and(|log| log.test_time.is_some())
            }
            // The caller is told by `schema` and goes no further.
            Schema::Newer(_) => false,
        };
        Ok(Self::assemble(database, signal, migrations, manual))
    }

    fn assemble(database: Database, signal: Signal, migrations: Vec<Migration>, manual: bool) -> Self {
        let notifier = tokio::spawn(wake::notify_others(database.clone(), signal.elsewhere()));
        let clock = Clock::new(database.clone(), signal.clone(), manual);
        let committer = Committer::new(&database, &signal, manual);
        let inner = Inner {
            database,
            clock,
            signal,
            committer,
            migrations,
            known_head: AtomicI64::new(0),
            seen: AtomicI64::new(0),
            bytes_per_event: AtomicUsize::new(0),
            prover: Mutex::new(()),
            notifier: Mutex::new(Some(notifier)),
        };
        Self(Arc::new(inner), Plugins::default())
    }

    /// How the schema stands.
    pub async fn schema(&self) -> sqlx::Result<Schema> {
        migrate::schema(&self.0.database, &self.0.migrations).await
    }

    /// Creates or completes the schema and gives the log its identity; says how many migrations ran.
    ///
    /// Safe to call by two processes at once, and on a log that is already there. Answers with a handle that
    /// knows the log's clock: use that one from here on.
    pub async fn set_up(&self, setup: &Setup) -> Result<(Self, usize), StoreError> {
        let mut tx = self.begin().await?;
        if self.schema().await? != Schema::Current {
            // A view pins the types of the columns that it shows.
            tx.execute(Sql::named("DROP VIEW IF EXISTS {t}", &setup.view), ()).await?;
        }
        let ran = match migrate::migrate(self, &mut tx, &self.0.migrations).await {
            Ok(ran) => ran,
            Err(error) => {
                tx.rollback().await;
                return Err(error.into());
            }
        };
        tx.execute(
            "INSERT INTO herald_log (singleton, id, created_at, test_time) VALUES (1, $1, {now}, $2)
             ON CONFLICT (singleton) DO NOTHING",
            (Uuid::now_v7(), setup.test_clock),
        )
        .await?;
        if tx.kind() == DatabaseKind::Sqlite {
            // PostgreSQL replaces the view in place: it would refuse to drop one that somebody has built upon.
            tx.execute(Sql::named("DROP VIEW IF EXISTS {t}", &setup.view), ()).await?;
        }
        tx.execute(Sql::named(view_sql(tx.kind()), &setup.view), ()).await?;
        tx.commit().await?;
        check_sequence(&self.0.database).await?;
        let manual = self.identity().await?.is_some_and(|log| log.test_time.is_some());
        let signal = Signal::new();
        let mut store = Self::assemble(self.0.database.clone(), signal, self.0.migrations.clone(), manual);
        store.1 = self.1.clone();
        Ok((store, ran))
    }

    /// The log's identity; none before it is set up.
    pub async fn identity(&self) -> sqlx::Result<Option<LogIdentity>> {
        identity(&self.0.database).await
    }

    /// The database underneath, for rows that live beside the log.
    pub fn database(&self) -> &Database {
        &self.0.database
    }

    /// The clock by which this log lives.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Begins a transaction. On SQLite it holds the only write lock until it ends: be brief.
    pub async fn begin(&self) -> sqlx::Result<Tx> {
        Tx::begin(&self.0.database, self.0.signal.clone()).await
    }

    /// Waits for commits, of this process and, while somebody runs [`Store::listen`], of others.
    pub fn wake(&self) -> Wake {
        self.0.signal.wake()
    }

    /// Hints to every waiting process that something other than an event changed.
    pub fn announce(&self) {
        self.0.signal.send();
    }

    /// Passes the hints of other processes on to this one, until `stop` resolves.
    pub async fn listen(&self, stop: impl Future<Output = ()>) {
        wake::listen(&self.0.database, &self.0.signal, stop).await;
    }

    /// Finishes the appends that wait, sends the last hint and closes every connection. Other handles of this store are of no use afterwards.
    pub async fn close(&self) {
        self.0.committer.close().await;
        if let Some(notifier) = self.0.notifier.lock().await.take() {
            self.0.signal.stop();
            let _ = notifier.await;
        }
        self.0.database.close().await;
    }

    pub(crate) fn plugins(&self) -> &Plugins {
        &self.1
    }

    pub(crate) fn plugins_mut(&mut self) -> &mut Plugins {
        &mut self.1
    }

    pub(crate) fn committer(&self) -> &Committer {
        &self.0.committer
    }

    pub(crate) fn known_head(&self) -> Position {
        Position(self.0.known_head.load(Ordering::Acquire))
    }

    pub(crate) fn raise_known_head(&self, to: Position) {
        self.0.known_head.fetch_max(to.0, Ordering::AcqRel);
    }

    pub(crate) fn seen(&self) -> Position {
        Position(self.0.seen.load(Ordering::Acquire))
    }

    pub(crate) fn note_seen(&self, position: Position) {
        self.0.seen.fetch_max(position.0, Ordering::AcqRel);
    }

    pub(crate) fn bytes_per_event(&self) -> usize {
        self.0.bytes_per_event.load(Ordering::Relaxed)
    }

    pub(crate) fn note_bytes_per_event(&self, average: usize) {
        self.0.bytes_per_event.store(average, Ordering::Relaxed);
    }

    pub(crate) fn prover(&self) -> &Mutex<()> {
        &self.0.prover
    }
}

async fn identity(database: &Database) -> sqlx::Result<Option<LogIdentity>> {
    let sql = "SELECT id, created_at, test_time FROM herald_log";
    let row: Option<(Uuid, Timestamp, Option<Timestamp>)> = database.fetch_optional(sql, ()).await?;
    Ok(row.map(|(id, created_at, test_time)| LogIdentity { id, created_at, test_time }))
}

/// The proof that no event is skipped needs positions that are drawn in the order of time (PostgreSQL).
async fn check_sequence(database: &Database) -> Result<(), StoreError> {
    let Database::Postgres { pool } = database else { return Ok(()) };
    let bad = |what: String| Err(StoreError::BadSequence(what));
    let declared: Option<(i64, i64, bool)> = sqlx::query_as(
        "SELECT seqcache, seqincrement, seqcycle
           FROM pg_sequence
          WHERE seqrelid = to_regclass('herald_positions')",
    )
    .fetch_optional(pool)
    .await?;
    match declared {
        None => return bad("is missing".to_owned()),
        Some((cache, ..)) if cache != 1 => {
            return bad(format!("caches {cache} numbers; run ALTER SEQUENCE herald_positions CACHE 1"));
        }
        Some((_, increment, _)) if increment != 1 => {
            return bad(format!(
                "counts in steps of {increment}; run ALTER SEQUENCE herald_positions INCREMENT 1"
            ));
        }
        Some((.., true)) => return bad("cycles; run ALTER SEQUENCE herald_positions NO CYCLE".to_owned()),
        Some(_) => {}
    }
    // What was set but not yet given out does not count as the last number.
    let (last, top): (i64, i64) = sqlx::query_as(
        "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END,
                coalesce((SELECT max(position) FROM herald_events), 0)
           FROM herald_positions",
    )
    .fetch_one(pool)
    .await?;
    if last < top {
        return bad(format!("is at {last}, behind position {top} of the log: was it restored?"));
    }
    Ok(())
}

/// The log as the Neos-style event table shows it.
fn view_sql(kind: DatabaseKind) -> &'static str {
    match kind {
        DatabaseKind::Postgres => {
            "CREATE OR REPLACE VIEW {t} AS
             SELECT position AS sequencenumber, stream, version, type, payload, metadata, id,
                    correlation_id AS correlationidentifier, causation_id AS causationidentifier,
                    recorded_at AS recordedat
               FROM herald_events"
        }
        // Ids are kept as 16 bytes; people expect text.
        DatabaseKind::Sqlite => {
            "CREATE VIEW {t} AS
             SELECT position AS sequencenumber, stream, version, type, payload, metadata,
                    lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4)
                       || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)) AS id,
                    correlation_id AS correlationidentifier,
                    CASE WHEN causation_id IS NULL THEN NULL ELSE
                    lower(substr(hex(causation_id), 1, 8) || '-' || substr(hex(causation_id), 9, 4) || '-'
                       || substr(hex(causation_id), 13, 4) || '-' || substr(hex(causation_id), 17, 4) || '-'
                       || substr(hex(causation_id), 21)) END AS causationidentifier,
                    recorded_at AS recordedat
               FROM herald_events"
        }
    }
}

impl Drop for Inner {
    /// Who forgot to close loses the last hint, not a task.
    fn drop(&mut self) {
        self.signal.stop();
    }
}
