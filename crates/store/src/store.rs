//! The store: one log in one database, and the handle that everybody holds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};

use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::append::Committer;
use crate::arrival::{self, LogPlace, PastPlace, PlaceError};
use crate::clock::Clock;
use crate::closed::KnownClosed;
use crate::database::{ConnectError, Database, DatabaseKind, Options};
use crate::event::Position;
use crate::follow_up::Follower;
use crate::hooks::Hooks;
use crate::migrate::{self, MigrateError, Migration, Schema};
use crate::safe_head::{Publisher, Waited};
use crate::sql::{Sql, TableName};
use crate::timestamp::Timestamp;
use crate::tx::Tx;
use crate::upcast::Upcasters;
use crate::wake::{self, Listening, Signal, Wake};

/// A log. Clones are handles to the same one.
///
/// ```
/// use futures_util::TryStreamExt;
/// use store::{AppendError, ExpectedVersion, Filter, Json, NewEvent, Position, Store, StreamName, Version};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Store::in_memory().await?;
/// let account = StreamName::new("account-7")?;
///
/// // Append: the stream must be as expected.
/// let deposited = NewEvent::new("Bank:MoneyWasDeposited", Json::parse(r#"{"cents":500}"#)?);
/// let appended = store.append(&account, ExpectedVersion::NoStream, vec![deposited]).await?;
/// assert_eq!((appended.position, appended.version), (Some(Position(1)), Some(Version(0))));
///
/// // Conflict: somebody else was faster. Load again, and decide again.
/// let late = NewEvent::new("Bank:MoneyWasDeposited", Json::parse(r#"{"cents":1}"#)?);
/// let refused = store.append(&account, ExpectedVersion::NoStream, vec![late]).await;
/// assert!(matches!(refused, Err(AppendError::WrongVersion { actual: Some(Version(0)), .. })));
///
/// // Read: one stream by version, or any filter by position.
/// assert_eq!(store.read_stream(&account, 0, 100).await?.len(), 1);
/// let events: Vec<_> = store.events(Filter::all().category("account"), Position::START).try_collect().await?;
/// assert_eq!(events[0].payload.as_str(), r#"{"cents":500}"#);
///
/// // Follow: what is there, and then what comes.
/// let mut live = store.follow(Filter::all(), Position::START);
/// assert_eq!(live.try_next().await?.map(|event| event.position), Some(Position(1)));
/// let withdrawn = NewEvent::new("Bank:MoneyWasWithdrawn", Json::parse(r#"{"cents":200}"#)?);
/// store.append(&account, ExpectedVersion::Exactly(Version(0)), vec![withdrawn]).await?;
/// assert_eq!(live.try_next().await?.map(|event| event.position), Some(Position(2)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>, Plugins);

/// What a program plugs into its handle of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plugins {
    pub(crate) upcasters: Option<Arc<Upcasters>>,
    pub(crate) hooks: Option<Arc<Hooks>>,
    pub(crate) follower: Option<Follower>,
    /// Closed streams are read as well.
    pub(crate) shows_closed: bool,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    clock: Clock,
    signal: Signal,
    committer: Committer,
    migrations: Vec<Migration>,
    /// Where the log lives; none before it is set up.
    place: Option<LogPlace>,
    /// Why nobody should write here.
    refusals: Vec<StoreError>,
    /// How large the events of the last page were, on average: it bounds what is asked for at once.
    bytes_per_event: AtomicUsize,
    /// The streams that are closed, as far as this process knows.
    closed: Arc<KnownClosed>,
    /// Held by the one task that finds out who is appending.
    prover: Mutex<Waited>,
    /// Publishes how far the log is settled.
    publisher: Publisher,
    /// Tells other processes about commits.
    notifier: Mutex<Option<JoinHandle<()>>>,
    /// Hears of commits of other processes, while somebody wants to.
    listening: std::sync::Mutex<Weak<Listening>>,
    /// Deleted with the last handle.
    private_folder: Option<Arc<TempDir>>,
}

/// The migration that changes the types of columns which the view shows.
const COLUMNS_CHANGE: i64 = 3;

/// What was found out about a log when it was opened.
#[derive(Default)]
struct Found {
    /// Its clock is set by hand.
    is_manual: bool,
    place: Option<LogPlace>,
    refusals: Vec<StoreError>,
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
    #[error("the sequence herald_positions {0}; events could be skipped, so the log is not worked on")]
    BadSequence(BadSequence),
    /// The log is a copy, or was restored.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The database refused.
    #[error("could not read the log's state")]
    Database(#[from] sqlx::Error),
}

/// Why positions would not be drawn in the order of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSequence {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// Sessions would draw numbers ahead.
    #[error("caches {0} numbers; run ALTER SEQUENCE herald_positions CACHE 1")]
    Caches(i64),
    /// It leaves numbers out.
    #[error("counts in steps of {0}; run ALTER SEQUENCE herald_positions INCREMENT 1")]
    Steps(i64),
    /// It would begin again.
    #[error("cycles; run ALTER SEQUENCE herald_positions NO CYCLE")]
    Cycles,
    /// It would give out numbers that events have already.
    #[error(
        "is at {last}, behind position {end} of the log (events were brought in without it); run `herald store \
         verify --fix`"
    )]
    Behind {
        /// The last number that it gave out.
        last: i64,
        /// The position of the last event.
        end: Position,
    },
}

// Not `#[from]`: it is the sentence, and would be said once more as the source.
impl From<BadSequence> for StoreError {
    fn from(bad: BadSequence) -> Self {
        Self::BadSequence(bad)
    }
}

impl Store {
    /// Connects, to work on a log. A database without a log is fine: see [`Store::schema`].
    ///
    /// Where a log is found for the first time, or was moved to, is written down; a copy whose original may still run
    /// is refused ([`PlaceError`]). Nothing else is written.
    ///
    /// `migrations` are all that the program knows: the log's own and those of whoever else keeps rows here.
    pub async fn open(url: &str, options: &Options, migrations: &[&[Migration]]) -> Result<Self, StoreError> {
        Self::open_in(None, url, options, migrations).await
    }

    /// As [`Store::open`], in a folder that is deleted with the last handle.
    pub(crate) async fn open_in(
        private_folder: Option<TempDir>,
        url: &str,
        options: &Options,
        migrations: &[&[Migration]],
    ) -> Result<Self, StoreError> {
        let database = Database::connect(url, options).await?;
        let migrations = migrations.concat();
        let mut found = Found::default();
        // A newer one the caller is told of by `schema`, and goes no further.
        if let Schema::Behind(_) | Schema::Current = migrate::schema(&database, &migrations).await? {
            check_sequence(&database).await?;
            found.place = arrival::arrive(&database).await?;
            found.is_manual = is_manual(&database).await?;
        }
        Ok(Self::assemble(database, migrations, found, private_folder.map(Arc::new)))
    }

    /// Connects, only to look: writes nothing, and refuses no log for its state. [`Store::refusals`] says why it
    /// should not be worked on.
    pub async fn open_to_look(
        url: &str,
        options: &Options,
        migrations: &[&[Migration]],
    ) -> Result<Self, StoreError> {
        let database = Database::connect(url, options).await?;
        let migrations = migrations.concat();
        let mut found = Found::default();
        if let Schema::Behind(_) | Schema::Current = migrate::schema(&database, &migrations).await? {
            match check_sequence(&database).await {
                Err(StoreError::BadSequence(bad)) => found.refusals.push(bad.into()),
                result => result?,
            }
            if let Some((place, refused)) = arrival::look(&database).await? {
                found.place = Some(place);
                found.refusals.extend(refused.map(StoreError::from));
            }
            found.is_manual = is_manual(&database).await?;
        }
        Ok(Self::assemble(database, migrations, found, None))
    }

    fn assemble(
        database: Database,
        migrations: Vec<Migration>,
        found: Found,
        private_folder: Option<Arc<TempDir>>,
    ) -> Self {
        let signal = Signal::new();
        let notifier = tokio::spawn(wake::notify_others(database.clone(), signal.elsewhere()));
        let clock = Clock::new(database.clone(), signal.clone(), found.is_manual);
        let committer = Committer::new(&database, &signal, found.is_manual);
        let publisher = Publisher::start(&database);
        let inner = Inner {
            database,
            clock,
            signal,
            committer,
            migrations,
            place: found.place,
            refusals: found.refusals,
            bytes_per_event: AtomicUsize::new(0),
            closed: Arc::default(),
            prover: Mutex::default(),
            publisher,
            notifier: Mutex::new(Some(notifier)),
            listening: std::sync::Mutex::default(),
            private_folder,
        };
        Self(Arc::new(inner), Plugins::default())
    }

    /// How the schema stands.
    pub async fn schema(&self) -> sqlx::Result<Schema> {
        migrate::schema(&self.0.database, &self.0.migrations).await
    }

    /// The migrations that [`Store::set_up`] would run.
    pub async fn missing_migrations(&self) -> sqlx::Result<Vec<Migration>> {
        migrate::missing(&self.0.database, &self.0.migrations).await
    }

    /// Creates or completes the schema and gives the log its identity; says how many migrations ran.
    ///
    /// Safe to call by two processes at once, and on a log that is already there. Answers with a handle that
    /// knows the log's clock: use that one from here on.
    pub async fn set_up(&self, setup: &Setup) -> Result<(Self, usize), StoreError> {
        if !self.0.refusals.is_empty() {
            // Opened only to look. Not before it is at home here is anything written.
            check_sequence(&self.0.database).await?;
            arrival::arrive(&self.0.database).await?;
        }
        let mut tx = self.begin().await?;
        if self.missing_migrations().await?.iter().any(|missing| missing.number == COLUMNS_CHANGE) {
            // A view pins the types of the columns that it shows. With it go the rights on it: not without need.
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
        let found = Found {
            is_manual: is_manual(&self.0.database).await?,
            place: arrival::arrive(&self.0.database).await?,
            refusals: Vec::new(),
        };
        let (database, migrations) = (self.0.database.clone(), self.0.migrations.clone());
        let private_folder = self.0.private_folder.clone();
        let mut store = Self::assemble(database, migrations, found, private_folder);
        store.1 = self.1.clone();
        Ok((store, ran))
    }

    /// Where the log lives, as was found when it was opened; none before it is set up.
    pub fn place(&self) -> Option<&LogPlace> {
        self.0.place.as_ref()
    }

    /// Why this log should not be worked on, if it was opened only to look.
    pub fn refusals(&self) -> &[StoreError] {
        &self.0.refusals
    }

    /// Takes the place where the log is now for its home, on somebody's word that the original does not run any
    /// more. Its epoch grows. Open the log again afterwards.
    pub async fn adopt(&self, why: &str, who: &str) -> Result<LogPlace, StoreError> {
        Ok(arrival::adopt(&self.0.database, why, who).await?)
    }

    /// Where the log has lived, oldest first.
    pub async fn places(&self) -> Result<Vec<PastPlace>, StoreError> {
        Ok(arrival::history(&self.0.database).await?)
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

    /// Waits for commits, of this process and, while somebody listens ([`Store::listen`], [`Store::follow`]), of others.
    pub fn wake(&self) -> Wake {
        self.0.signal.wake()
    }

    /// Hints to every waiting process that something other than an event changed.
    pub fn announce(&self) {
        self.0.signal.send();
    }

    /// Passes the hints of other processes on to this one, and publishes how far the log is settled, until `stop`
    /// resolves.
    pub async fn listen(&self, stop: impl Future<Output = ()>) {
        let _listening = self.listening();
        tokio::select! {
            () = stop => {}
            () = self.keep_published() => {}
        }
    }

    /// Has the hints of other processes passed on to this one as long as the answer is held.
    pub(crate) fn listening(&self) -> Arc<Listening> {
        let mut current = self.0.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listening) = current.upgrade().filter(|listening| !listening.is_over()) {
            return listening;
        }
        let listening = Arc::new(Listening::begin(self.0.database.clone(), self.0.signal.clone()));
        *current = Arc::downgrade(&listening);
        listening
    }

    /// Finishes the appends that wait, sends the last hint and closes every connection. Other handles of this store are of no use afterwards.
    pub async fn close(&self) {
        self.0.committer.close().await;
        self.0.publisher.stop();
        if let Some(notifier) = self.0.notifier.lock().await.take() {
            self.0.signal.stop();
            let _ = notifier.await;
        }
        self.0.publisher.ended().await;
        self.0.database.close().await;
        // Who follows the log sees that this is the end.
        self.announce();
    }

    pub(crate) fn migrations(&self) -> &[Migration] {
        &self.0.migrations
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

    pub(crate) fn known_closed(&self) -> &Arc<KnownClosed> {
        &self.0.closed
    }

    pub(crate) fn bytes_per_event(&self) -> usize {
        self.0.bytes_per_event.load(Ordering::Relaxed)
    }

    pub(crate) fn note_bytes_per_event(&self, average: usize) {
        self.0.bytes_per_event.store(average, Ordering::Relaxed);
    }

    pub(crate) fn prover(&self) -> &Mutex<Waited> {
        &self.0.prover
    }

    pub(crate) fn publisher(&self) -> &Publisher {
        &self.0.publisher
    }
}

/// Whether the log's clock is set by hand.
async fn is_manual(database: &Database) -> sqlx::Result<bool> {
    Ok(identity(database).await?.is_some_and(|log| log.test_time.is_some()))
}

async fn identity(database: &Database) -> sqlx::Result<Option<LogIdentity>> {
    let sql = "SELECT id, created_at, test_time FROM herald_log";
    let row: Option<(Uuid, Timestamp, Option<Timestamp>)> = database.fetch_optional(sql, ()).await?;
    Ok(row.map(|(id, created_at, test_time)| LogIdentity { id, created_at, test_time }))
}

/// The proof that no event is skipped needs positions that are drawn in the order of time (PostgreSQL).
pub(crate) async fn check_sequence(database: &Database) -> Result<(), StoreError> {
    let Database::Postgres { pool, .. } = database else { return Ok(()) };
    let declared: Option<(i64, i64, bool)> = sqlx::query_as(
        "SELECT seqcache, seqincrement, seqcycle
           FROM pg_sequence
          WHERE seqrelid = to_regclass('herald_positions')",
    )
    .fetch_optional(pool)
    .await?;
    match declared {
        None => return Err(BadSequence::Missing.into()),
        Some((cache, ..)) if cache != 1 => return Err(BadSequence::Caches(cache).into()),
        Some((_, increment, _)) if increment != 1 => return Err(BadSequence::Steps(increment).into()),
        Some((.., true)) => return Err(BadSequence::Cycles.into()),
        Some(_) => {}
    }
    // What was set but not yet given out does not count as the last number. The rows are read before the sequence: a
    // position that is drawn in between must not look as if it were ahead.
    let end: (Position,) =
        sqlx::query_as("SELECT coalesce(max(position), 0) FROM herald_events").fetch_one(pool).await?;
    let last: (i64,) = sqlx::query_as(
        "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM herald_positions",
    )
    .fetch_one(pool)
    .await?;
    let ((end,), (last,)) = (end, last);
    if last < end.0 { Err(BadSequence::Behind { last, end }.into()) } else { Ok(()) }
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
        self.publisher.stop();
    }
}
