//! The engine: a program's subscribers on a log, and what an operator may ask of them.
//!
//! Operations take criteria and say for each subscription what became of it. "Nothing to do" and "busy
//! elsewhere" are never the same answer. Asking for the status never writes.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::{
    AppendError, Clock, CloseError, DatabaseKind, Position, ReadError, Sql, Store, TableName, Timestamp,
};

use crate::blocked::OnThreads;
use crate::effects::{self, Deliveries, Delivery, EffectCounts, ImpossibleStep};
use crate::feed::Feed;
use crate::gate::{Gate, Passage};
use crate::poison::{Letters, Parked};
use crate::records::{self, HistoryLine, RecordError};
use crate::rows::Rows;
use crate::standing::{Around, Standing};
use crate::steer::changes_of_code;
use crate::subscriber::{Definition, RegisterError, Registered, Registry, RunMode};
use crate::subscription::{Failure, Impossible, Resume, State, Status, Subscription};
use crate::timers::{self, TimerCounts};
use crate::unit::IN_UNIT;
use crate::worker;
use crate::worker_row::{self, WorkerRow};

/// A worker that showed no progress for this long is taken as gone.
pub const WORKER_SILENCE: Duration = Duration::from_secs(30);

/// The engine. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    store: Store,
    registry: Registry,
    program: String,
    who: String,
    settings: Settings,
    gate: Gate,
    feed: Feed,
    rows: Rows,
    deliveries: Deliveries,
    faults: Option<Arc<dyn Faults>>,
    on_threads: Arc<OnThreads>,
}

/// Numbers that an engine works by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Events in one unit, at most.
    pub unit_events: usize,
    /// How long a subscriber may take for one unit.
    pub time_limit: Duration,
    /// How long it may hold the write lock of an SQLite file.
    pub write_limit: Duration,
    /// How often a worker looks for events that it was not told of.
    pub poll: Duration,
    /// How often [`Engine::catch_up`] goes round before it says that subscribers keep each other busy.
    pub catch_up_rounds: usize,
    /// Effects of one kind that a worker sends at the same time, at most.
    pub effects_at_once: usize,
    /// A subscription that has something to do and a worker, and shows no progress for this long, is stalled.
    pub stalled_after: Duration,
    /// About so many bytes of pages that were read lately are kept in memory, for subscriptions that read the same.
    pub feed_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            unit_events: 1_000,
            time_limit: Duration::from_secs(30),
            write_limit: Duration::from_secs(1),
            poll: Duration::from_secs(1),
            catch_up_rounds: 10_000,
            effects_at_once: 8,
            stalled_after: Duration::from_secs(60),
            feed_bytes: 8 * 1024 * 1024,
        }
    }
}

/// A moment in a unit at which a test may have the process seem to die (E-70).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPoint {
    /// Everything is written, nothing is committed.
    BeforeCommit,
    /// The commit was asked for; its answer never comes.
    InsideCommit,
    /// The commit is done; nobody has heard of it.
    AfterCommit,
    /// An effect is claimed and "attempt n started" is written, nothing of it is committed.
    EffectBeforeStart,
    /// That is committed; nothing is sent.
    EffectStarted,
    /// The effect is sent; its answer is not written down.
    EffectSent,
    /// The answer is written down, nothing of it is committed.
    EffectBeforeRecord,
    /// That is committed; nobody has heard of it.
    EffectRecorded,
}

/// Decides where a unit is cut off, for tests of subscribers.
pub trait Faults: Send + Sync {
    /// Whether the unit of this subscription, or the sending of an effect of it, is cut off here.
    fn strikes(&self, point: FaultPoint, subscription: &str) -> bool;
}

/// Which subscriptions: those with one of the ids and in one of the groups. A list that is not given does
/// not restrict; an empty one matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criteria {
    /// One of these ids.
    pub ids: Option<Vec<String>>,
    /// In one of these groups.
    pub groups: Option<Vec<String>>,
}

impl Criteria {
    /// Every subscription.
    pub fn all() -> Self {
        Self::default()
    }

    /// This one subscription.
    pub fn id(id: impl Into<String>) -> Self {
        Self { ids: Some(vec![id.into()]), groups: None }
    }

    pub(crate) fn matches(&self, id: &str, group: &str) -> bool {
        let ids = self.ids.as_ref().is_none_or(|ids| ids.iter().any(|wanted| wanted == id));
        ids && self.groups.as_ref().is_none_or(|groups| groups.iter().any(|wanted| wanted == group))
    }
}

/// What an operation did with one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its status changed.
    Became {
        /// What it was.
        from: Status,
        /// What it is.
        to: Status,
    },
    /// It moved past this event without handling it.
    Skipped {
        /// Where the event stands.
        position: Position,
        /// What it is now.
        to: Status,
    },
    /// It stands somewhere else now, because a person put it there.
    Placed {
        /// Where it stood.
        from: Position,
        /// Where it stands.
        to: Position,
        /// What it is now.
        status: Status,
        /// How many dead letters are forgotten, because their events come again.
        letters: u64,
    },
    /// Its row says what its code says; this is what was different.
    Refreshed {
        /// What changed, in words; empty if nothing had to.
        changes: Vec<String>,
    },
    /// It was removed; the failure is of its teardown, which did not keep it.
    Removed {
        /// What went wrong when it was torn down.
        failure: Option<Failure>,
    },
    /// It handled so many events and stands at the head.
    CaughtUp {
        /// How many.
        events: u64,
    },
    /// It handled so many events; the limit was reached, the head may not be.
    LimitReached {
        /// How many.
        events: u64,
    },
    /// It handled so many events and set others aside as dead letters, as its poison policy says.
    Parked {
        /// How many it handled.
        events: u64,
        /// What it set aside.
        parked: Parked,
        /// Whether it stands at the head; if not, the limit was reached.
        at_head: bool,
    },
    /// Another worker has it.
    Busy,
    /// Something passing is in the way.
    Waiting {
        /// What.
        why: String,
    },
    /// It cannot be done, and nothing was.
    Refused {
        /// Why not.
        why: String,
    },
    /// It failed.
    Failed {
        /// How.
        failure: Failure,
    },
}

/// What an operation did, by subscription id.
pub type Report = Vec<(String, Outcome)>;

/// Why an operation could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A subscriber tried to run the engine that runs it.
    #[error("the engine cannot be run from inside a subscriber")]
    InsideUnit,
    /// A row of the engine.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The log.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A change that the state does not allow.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// What happened to an effect could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The stream of a subscription could not be closed.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// A change that the state of an effect does not allow.
    #[error(transparent)]
    ImpossibleStep(#[from] ImpossibleStep),
    /// The database refused.
    #[error("the database refused")]
    Database(#[from] sqlx::Error),
    /// A test had the process seem to die.
    #[error("cut off by a test: {0:?}")]
    Injected(FaultPoint),
}

/// A subscription as an operator sees it.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Its row; for a subscriber that was not discovered yet, the row it would get.
    pub subscription: Subscription,
    /// Positions between where it stands and the head: at most so many events are its own.
    pub lag: i64,
    /// When the next event that it has not handled was recorded.
    pub waiting_since: Option<Timestamp>,
    /// How often it is tried again at most, if the program knows its subscriber.
    pub max_attempts: Option<u32>,
    /// Whether a live worker moves it.
    pub has_worker: bool,
    /// What it has planned and is not done yet.
    pub effects: EffectCounts,
    /// How it gets on, whatever its status is called.
    pub standing: Standing,
    /// What it wants to be called for.
    pub timers: TimerCounts,
    /// What its code says otherwise than its row, in words: it was changed without a new id, and nobody has accepted
    /// that yet (E-41).
    pub changes: Vec<String>,
}

impl Engine {
    /// An engine for the subscribers of `program`. Rows are this program's only if they carry its name.
    pub fn new(store: Store, registry: Registry, program: impl Into<String>) -> Self {
        let gate = Gate::new(store.database());
        let who = "engine".to_owned();
        let (program, settings) = (program.into(), Settings::default());
        let deliveries = Deliveries::default();
        let feed = Feed::new(store.clone(), settings.unit_events, settings.feed_bytes);
        let (rows, faults, on_threads) = (Rows::default(), None, Arc::default());
        Self(Arc::new(Inner {
            store,
            registry,
            program,
            who,
            settings,
            gate,
            feed,
            rows,
            deliveries,
            faults,
            on_threads,
        }))
    }

    /// With these numbers. A unit has at least one event.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        let settings = Settings { unit_events: settings.unit_events.max(1), ..settings };
        self.changed(|inner| {
            inner.settings = settings;
            inner.feed = Feed::new(inner.store.clone(), settings.unit_events, settings.feed_bytes);
        })
    }

    /// With this name in the history of what is done.
    #[must_use]
    pub fn on_behalf_of(self, who: impl Into<String>) -> Self {
        let who = who.into();
        self.changed(|inner| inner.who = who)
    }

    /// With these deliveries: its workers send the effects of their kinds.
    pub fn with_deliveries(
        self,
        deliveries: impl IntoIterator<Item = Arc<dyn Delivery>>,
    ) -> Result<Self, RegisterError> {
        let deliveries = Deliveries::new(deliveries)?;
        Ok(self.changed(|inner| inner.deliveries = deliveries))
    }

    /// With units cut off where a test says so.
    #[must_use]
    pub fn with_faults(self, faults: Arc<dyn Faults>) -> Self {
        self.changed(|inner| inner.faults = Some(faults))
    }

    fn changed(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = (*self.0).clone();
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// The log it works on.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The log's clock.
    pub fn clock(&self) -> &Clock {
        self.0.store.clock()
    }

    /// The subscribers it knows.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The numbers it works by.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn program(&self) -> &str {
        &self.0.program
    }

    pub(crate) fn who(&self) -> &str {
        &self.0.who
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    pub(crate) fn feed(&self) -> &Feed {
        &self.0.feed
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.0.rows
    }

    pub(crate) fn on_threads(&self) -> &OnThreads {
        &self.0.on_threads
    }

    /// Passes the gate on SQLite, where one writer keeps all others out. Elsewhere what only takes a moment does not
    /// queue behind slow handlers.
    pub(crate) async fn pass_where_writers_exclude_each_other(&self) -> Option<Passage> {
        if self.has_row_locks() { None } else { Some(self.gate().pass().await) }
    }

    pub(crate) fn deliveries(&self) -> &Deliveries {
        &self.0.deliveries
    }

    pub(crate) fn registered(&self, id: &str) -> Option<&Registered> {
        self.0.registry.get(id)
    }

    /// Whether two units can be under way at once, so that each must claim its row before it begins.
    pub(crate) fn has_row_locks(&self) -> bool {
        self.store().database().kind() == DatabaseKind::Postgres
    }

    pub(crate) fn strikes(&self, point: FaultPoint, subscription: &str) -> bool {
        self.0.faults.as_ref().is_some_and(|faults| faults.strikes(point, subscription))
    }

    pub(crate) fn strike(&self, point: FaultPoint, subscription: &str) -> Result<(), EngineError> {
        if self.strikes(point, subscription) { Err(EngineError::Injected(point)) } else { Ok(()) }
    }

    /// Adds a row for every subscriber that has none; says how many.
    pub async fn discover(&self) -> Result<usize, EngineError> {
        refuse_inside_unit()?;
        let known = records::load_all(self.store().database()).await?;
        self.discover_beside(&known).await
    }

    async fn discover_beside(&self, known: &[Subscription]) -> Result<usize, EngineError> {
        let unknown: Vec<&Definition> = self.undiscovered(known).collect();
        if unknown.is_empty() {
            return Ok(0);
        }
        let now = self.clock().now().await?;
        let mut added = 0;
        let mut tx = self.store().begin().await?;
        for definition in unknown {
            let subscription = self.first_row(definition, now);
            added += usize::from(records::insert(&mut tx, &subscription, self.who()).await?);
        }
        tx.commit().await?;
        Ok(added)
    }

    /// The subscribers that have no row among these.
    fn undiscovered<'a>(&'a self, known: &'a [Subscription]) -> impl Iterator<Item = &'a Definition> {
        self.registry()
            .definitions()
            .filter(|definition| known.iter().all(|subscription| subscription.id != definition.id))
    }

    /// The row that a subscriber gets when it is discovered.
    fn first_row(&self, definition: &Definition, now: Timestamp) -> Subscription {
        Subscription {
            id: definition.id.clone(),
            program: self.program().to_owned(),
            group: definition.group.clone(),
            run_mode: definition.run_mode,
            state: State::New,
            position: None,
            attempt: 0,
            failing_position: None,
            failing_since: None,
            letters: Letters::default(),
            clean_up: definition.table_names().unwrap_or_default(),
            definition: None,
            created_at: now,
            changed_at: now,
            next_timer: None,
            history_to: None,
        }
    }

    /// The subscriptions that meet the criteria, by id. Writes nothing: what was not discovered yet is shown
    /// as it would be.
    pub async fn status(&self, criteria: &Criteria) -> Result<Vec<Overview>, EngineError> {
        let database = self.store().database();
        let mut subscriptions = records::load_all(database).await?;
        let now = self.clock().now().await?;
        let new: Vec<Subscription> =
            self.undiscovered(&subscriptions).map(|definition| self.first_row(definition, now)).collect();
        subscriptions.extend(new);
        subscriptions.sort_by(|a, b| a.id.cmp(&b.id));
        subscriptions.retain(|subscription| criteria.matches(&subscription.id, &subscription.group));
        let around = Around::look(self, &subscriptions).await?;
        let (head, workers) = (around.head.position, &around.workers);
        let mut effects = effects::counts(database).await?;
        let mut timers = timers::counts(database, now).await?;
        let mut overviews = Vec::with_capacity(subscriptions.len());
        for subscription in subscriptions {
            let lag = Self::lag(&subscription, head);
            let waiting_since = if lag > 0 { self.next_recorded(&subscription).await? } else { None };
            let registered = self.registered(&subscription.id);
            let max_attempts = registered.map(|registered| registered.definition.retry.max_attempts());
            let has_worker = workers.iter().any(|worker| worker.moves(&subscription));
            let effects = effects.remove(&subscription.id).unwrap_or_default();
            let timers = timers.remove(&subscription.id).unwrap_or_default();
            let standing = around.standing(&subscription, lag, waiting_since, timers, now);
            let changes = registered
                .map_or_else(Vec::new, |registered| changes_of_code(&registered.definition, &subscription));
            overviews.push(Overview {
                lag,
                waiting_since,
                max_attempts,
                has_worker,
                effects,
                standing,
                timers,
                changes,
                subscription,
            });
        }
        Ok(overviews)
    }

    /// Positions up to the head that a subscription has not moved past; none for one that is done, nor for one
    /// that will begin at whatever is the head when it is set up.
    fn lag(subscription: &Subscription, head: Position) -> i64 {
        match subscription.state.resume() {
            Resume::Finished => 0,
            Resume::New if subscription.run_mode == RunMode::FromNow => 0,
            _ => (head.0 - subscription.read_from().0).max(0),
        }
    }

    async fn next_recorded(&self, subscription: &Subscription) -> Result<Option<Timestamp>, EngineError> {
        // Only its time is wanted, which can be told even of an event that cannot be upcast.
        let store = self.store().without_upcasters();
        match store.read(&store::Filter::all(), subscription.read_from(), 1).await {
            Ok(page) => Ok(page.events.first().map(|event| event.recorded_at)),
            // Whoever wants it will say so; that it is there must not hide how everybody else stands, nor for how long.
            Err(ReadError::BadRow { position, .. }) => self.recorded_about(position).await,
            Err(error) => Err(error.into()),
        }
    }

    /// When an event that cannot be read was recorded: what its row says, or at the latest what the next one says.
    async fn recorded_about(&self, position: Position) -> Result<Option<Timestamp>, EngineError> {
        let store = self.store().without_upcasters();
        if let Some(at) = store.raw_event(position).await?.and_then(|row| row.recorded_at) {
            return Ok(Some(at));
        }
        match store.read(&store::Filter::all(), position, 1).await {
            Ok(page) => Ok(page.events.first().map(|event| event.recorded_at)),
            Err(ReadError::BadRow { position, .. }) => {
                Ok(store.raw_event(position).await?.and_then(|row| row.recorded_at))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How many rows a table has; none if it is not there.
    pub async fn rows_of(&self, table: &TableName) -> Result<Option<i64>, EngineError> {
        let sql = Sql::named("SELECT COUNT(*) FROM {t}", table);
        match self.store().database().fetch_optional::<(i64,)>(sql, ()).await {
            Ok(row) => Ok(row.map(|row| row.0)),
            Err(sqlx::Error::Database(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The last lines of a subscription's history, oldest first.
    pub async fn history(&self, id: &str, limit: i64) -> Result<Vec<HistoryLine>, EngineError> {
        Ok(records::history(self.store().database(), id, limit).await?)
    }

    /// The workers of every program that showed progress lately, and whose process is not known to be gone.
    pub async fn live_workers(&self) -> Result<Vec<WorkerRow>, EngineError> {
        let database = self.store().database();
        Ok(worker_row::live_workers(database, WORKER_SILENCE, worker::SUSPICIOUS_SILENCE).await?)
    }

    /// The discovered subscriptions that meet the criteria, by id.
    pub(crate) async fn select(&self, criteria: &Criteria) -> Result<Vec<Subscription>, EngineError> {
        refuse_inside_unit()?;
        let mut subscriptions = records::load_all(self.store().database()).await?;
        if self.undiscovered(&subscriptions).next().is_some() {
            self.discover_beside(&subscriptions).await?;
            subscriptions = records::load_all(self.store().database()).await?;
        }
        subscriptions.retain(|subscription| criteria.matches(&subscription.id, &subscription.group));
        Ok(subscriptions)
    }
}

/// A subscriber that ran the engine would wait for itself.
pub(crate) fn refuse_inside_unit() -> Result<(), EngineError> {
    if IN_UNIT.try_with(|()| ()).is_ok() { Err(EngineError::InsideUnit) } else { Ok(()) }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("program", &self.program)
            .field("registry", &self.registry)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
