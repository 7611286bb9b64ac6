//! The engine's unit and worker, end to end on both databases.

use std::sync::Arc;
use std::time::Duration;

use store::{ExpectedVersion, Json, NewEvent, Position, Store, StreamName};
use subscription_engine::{
    Criteria, Definition, Engine, EngineError, Outcome, Registry, Report, Status, Subscriber, Subscription,
    Worker,
};
use testkit::{Collector, Failing, T0, both, position, positions};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Appends so many events to one stream.
pub(crate) async fn append(store: &Store, count: usize) {
    append_typed(store, "thing-1", &vec!["Acme.Test:Happened"; count]).await;
}

/// Appends events of these types to a stream.
pub(crate) async fn append_typed(store: &Store, stream: &str, types: &[&str]) {
    let stream = StreamName::new(stream).unwrap();
    for types in types.chunks(1_000) {
        let events = types.iter().map(|name| NewEvent::new(*name, Json::empty_object())).collect();
        store.append(&stream, ExpectedVersion::Any, events).await.unwrap();
    }
}

pub(crate) fn engine(store: &Store, subscribers: Vec<Arc<dyn Subscriber>>) -> Engine {
    Engine::new(store.clone(), Registry::new(subscribers).unwrap(), "test")
}

/// A subscription as it stands.
pub(crate) async fn look(engine: &Engine, id: &str) -> Subscription {
    engine.status(&Criteria::id(id)).await.unwrap().remove(0).subscription
}

pub(crate) async fn status(engine: &Engine, id: &str) -> Status {
    look(engine, id).await.state.status()
}

/// What a report says of the one subscription in it.
pub(crate) fn only(report: Report) -> Outcome {
    assert_eq!(report.len(), 1, "{report:?}");
    report.into_iter().next().unwrap().1
}

/// Waits until this holds of a subscription.
pub(crate) async fn until(engine: &Engine, id: &str, holds: impl Fn(&Subscription) -> bool) {
    let mut wake = engine.store().wake();
    let patience = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        wake.arm();
        let now = look(engine, id).await;
        if holds(&now) {
            return;
        }
        assert!(tokio::time::Instant::now() < patience, "waited in vain: {now:?}");
        wake.wait(Duration::from_millis(20)).await;
    }
}

/// A worker that runs until it is stopped.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), EngineError>>,
}

impl Running {
    /// Starts a worker and returns once it is about to move.
    pub(crate) async fn start(engine: &Engine) -> Self {
        Self::start_for(engine, Criteria::all()).await
    }

    pub(crate) async fn start_for(engine: &Engine, criteria: Criteria) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let worker = Worker::new(engine.clone(), criteria, "test");
        let task = tokio::spawn(worker.run(async { stopped.await.unwrap() }, || ready.send(()).unwrap()));
        is_ready.await.unwrap();
        Self { stop, task }
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

both! {
    /// E-23, E-30: a page that fails keeps what stands before the failing event, and names that event.
    async fn e23_e30_a_poison_event_is_found_retried_and_given_up(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("failing"), [7]);
        let collector = Collector::new(Definition::projector("other"));
        let engine = engine(&store, vec![failing.clone(), collector.clone()]);
        append(&store, 20).await;
        engine.catch_up(&Criteria::all()).await.unwrap();

        assert_eq!(failing.positions(&store).await, positions(6));
        assert_eq!(collector.positions(&store).await, positions(20));
        let mut seconds = 0;
        for (attempt, delay) in [5, 10, 20, 40, 80].into_iter().enumerate() {
            let status = engine.status(&Criteria::id("failing")).await.unwrap().remove(0);
            assert_eq!(position(&status.subscription), 6);
            assert_eq!(status.subscription.attempt as usize, attempt);
            let subscription_engine::State::Error { failure, next_retry, .. } = status.subscription.state else {
                panic!("not in error: {:?}", status.subscription);
            };
            assert_eq!(failure.event.unwrap().position, Position(7));
            assert_eq!(failure.chain, ["cannot digest position 7"]);
            seconds += delay;
            let due = T0.plus(Duration::from_secs(seconds));
            assert_eq!(next_retry, Some(due));
            engine.set_clock(due, Duration::from_secs(30)).await.unwrap();
        }
        assert_eq!(seconds, 155);
        let status = engine.status(&Criteria::id("failing")).await.unwrap().remove(0);
        assert!(matches!(status.subscription.state, subscription_engine::State::Error { next_retry: None, .. }));
        assert_eq!(status.subscription.attempt, 5);

        failing.mend();
        engine.reactivate(&Criteria::id("failing"), "mended").await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(failing.positions(&store).await, positions(20));
    }

    /// E-08: a worker sets up, boots and runs by itself, and stops between units.
    async fn e08_a_worker_keeps_its_rows_moving(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![collector.clone()]);
        append(&store, 3).await;
        let worker = Running::start(&engine).await;
        append(&store, 3).await;
        until(&engine, "collector", |now| now.state.status() == Status::Active && position(now) == 6).await;
        worker.stop().await;
        assert_eq!(collector.positions(&store).await, positions(6));
        assert!(engine.live_workers().await.unwrap().is_empty());
    }
}
