//! Tests of subscribers: given these events, when they run, then these rows, events and effects.
//!
//! The log is real and so is the engine; only the clock stands still until it is moved. Whoever writes a subscriber
//! needs nothing else of this crate but a [`TestDatabase`] and [`crate::both`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store::{DomainEvent, Event, ExpectedVersion, Filter, NewEvent, Position, Record, Store, StreamName};
use subscription_engine::{
    Criteria, Delivery, EffectFilter, EffectRecord, Engine, EngineError, Failure, FaultPoint, Faults,
    Registry, State, Subscriber, TimerRecord,
};

use crate::database::TestDatabase;
use crate::random::Random;

/// How long the clock may take to get where it is set.
const PATIENCE: Duration = Duration::from_secs(60);
/// A run is cut off so often at most.
const MOST_CRASHES: u32 = 20;

/// A log with subscribers on it, all of which are set up.
pub struct Stage {
    engine: Engine,
    /// Goes away with the stage.
    database: TestDatabase,
}

impl Stage {
    /// Sets these subscribers up on an empty log, whose clock stands at [`crate::T0`].
    pub async fn new(database: TestDatabase, subscribers: Vec<Arc<dyn Subscriber>>) -> Self {
        let registry = Registry::new(subscribers).expect("the subscribers can be registered");
        let engine = Engine::new(database.store_with_manual_clock().await, registry, "test");
        engine.set_up(&Criteria::all(), false).await.expect("the database is there");
        let stage = Self { engine, database };
        stage.all_is_well().await;
        stage
    }

    /// With these deliveries, which send what is planned.
    #[must_use]
    pub fn with_deliveries(self, deliveries: Vec<Arc<dyn Delivery>>) -> Self {
        let engine = self.engine.with_deliveries(deliveries).expect("each kind has one delivery");
        Self { engine, ..self }
    }

    /// The engine, for everything else.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The log.
    pub fn store(&self) -> &Store {
        self.engine.store()
    }

    /// Appends events to a stream.
    pub async fn given<E: DomainEvent>(&self, stream: &str, events: &[E]) {
        let stream = StreamName::new(stream).expect("a stream name");
        let events = events.iter().map(|event| NewEvent::of(event).expect("it can be written as JSON"));
        let appended = self.store().append(&stream, ExpectedVersion::Any, events.collect()).await;
        appended.expect("the events can be appended");
    }

    /// Runs everything until nothing moves any more: set-up, handlers, what follows from what they append, deliveries.
    /// Panics if a subscription is in error.
    pub async fn run(&self) {
        self.engine.catch_up(&Criteria::all()).await.expect("the engine can run");
        self.all_is_well().await;
    }

    /// As [`Stage::run`], with the process seeming to die again and again before, inside and after a commit. When is
    /// random; the seed is printed and taken from `HERALD_TEST_SEED`.
    pub async fn run_through_crashes(&self) {
        let unlucky = self.engine.clone().with_faults(Arc::new(Crashes::new()));
        loop {
            match unlucky.catch_up(&Criteria::all()).await {
                Ok(_) => break,
                Err(EngineError::Injected(_)) => {}
                Err(error) => panic!("the engine cannot run: {error}"),
            }
        }
        self.run().await;
    }

    /// Runs until nothing moves any more, and tells with what this subscription failed. Panics if it has not.
    pub async fn fails(&self, id: &str) -> Failure {
        self.engine.catch_up(&Criteria::all()).await.expect("the engine can run");
        let failure = self.failures().await.into_iter().find(|(failed, _)| failed == id);
        failure.unwrap_or_else(|| panic!("{id} is not in error")).1
    }

    /// Lets so much time pass; what falls due is done.
    pub async fn pass(&self, time: Duration) {
        let now = self.engine.clock().now().await.expect("the clock can be read");
        self.engine.set_clock(now.plus(time), PATIENCE).await.expect("the clock can be set");
    }

    /// What subscribers and deliveries have appended, in the order of the log.
    pub async fn appended(&self) -> Vec<Event> {
        let (mut appended, mut after) = (Vec::new(), Position::START);
        loop {
            let page =
                self.store().read(&Filter::all(), after, usize::MAX).await.expect("the log can be read");
            appended.extend(page.events.into_iter().filter(|event| event.causation_id.is_some()));
            if page.is_end {
                return appended;
            }
            after = page.scanned_to;
        }
    }

    /// What was planned to be done outside, oldest first, at most 10,000.
    pub async fn effects(&self) -> Vec<EffectRecord> {
        let effects = self.engine.effects(&EffectFilter::default(), None, 10_000).await;
        let mut effects = effects.expect("the effects can be read");
        effects.reverse();
        effects
    }

    /// The timers that a subscription has set and that have not fired, the first due first, at most 10,000.
    pub async fn timers(&self, id: &str) -> Vec<TimerRecord> {
        self.engine.timers(id, None, 10_000).await.expect("the timers can be read")
    }

    /// The rows of a query, such as one on a table of a subscriber.
    pub async fn rows<T: Record>(&self, sql: &'static str) -> Vec<T> {
        self.store().database().fetch_all(sql, ()).await.expect("the query can be run")
    }

    async fn failures(&self) -> Vec<(String, Failure)> {
        let overviews = self.engine.status(&Criteria::all()).await.expect("the status can be read");
        let failure = |state| match state {
            State::Error { failure, .. } => Some(failure),
            _ => None,
        };
        let failures = overviews.into_iter().filter_map(|overview| {
            let subscription = overview.subscription;
            Some((subscription.id, failure(subscription.state)?))
        });
        failures.collect()
    }

    async fn all_is_well(&self) {
        if let Some((id, failure)) = self.failures().await.first() {
            let place = failure.event.as_ref().map_or(String::new(), |event| {
                format!(" at position {} ({})", event.position, event.event_type)
            });
            panic!("{id} failed{place}: {}", failure.chain.join(": "));
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("database", &self.database).finish_non_exhaustive()
    }
}

/// Strikes at about every second place at which a unit can be cut off.
struct Crashes(Mutex<(Random, u32)>);

impl Crashes {
    fn new() -> Self {
        Self(Mutex::new((Random::new(), MOST_CRASHES)))
    }
}

impl Faults for Crashes {
    fn strikes(&self, point: FaultPoint, _: &str) -> bool {
        // An effect that was cut off waits for its claim to expire, by the database's clock.
        let cuts_a_unit =
            matches!(point, FaultPoint::BeforeCommit | FaultPoint::InsideCommit | FaultPoint::AfterCommit);
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (random, left) = &mut *guard;
        let strikes = cuts_a_unit && *left > 0 && random.below(2) == 0;
        *left -= u32::from(strikes);
        strikes
    }
}
