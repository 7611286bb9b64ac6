//! The engine's unit and worker, end to end on both databases.

use std::sync::Arc;
use std::time::Duration;

use store::{ExpectedVersion, Json, NewEvent, Position, Store, StreamName};
use subscription_engine::{Criteria, Definition, Engine, Registry, Status, Subscriber, Worker};
use testkit::{Collector, Failing, T0, both, position, positions};

/// Appends so many events to one stream.
pub(crate) async fn append(store: &Store, count: usize) {
    let stream = StreamName::new("thing-1").unwrap();
    for _ in 0..count.div_ceil(1_000) {
        let size = count.min(1_000);
        let events = (0..size).map(|_| NewEvent::new("Acme.Test:Happened", Json::empty_object())).collect();
        store.append(&stream, ExpectedVersion::Any, events).await.unwrap();
    }
}

fn engine(store: &Store, subscribers: Vec<Arc<dyn Subscriber>>) -> Engine {
    Engine::new(store.clone(), Registry::new(subscribers).unwrap(), "test")
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
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let worker = Worker::new(engine.clone(), Criteria::all(), "test");
        let running = tokio::spawn(worker.run(async move { stopped.await.unwrap() }, || {}));
        append(&store, 3).await;
        let mut wake = store.wake();
        loop {
            wake.arm();
            let status = engine.status(&Criteria::all()).await.unwrap().remove(0);
            if status.subscription.state.status() == Status::Active && position(&status.subscription) == 6 {
                break;
            }
            wake.wait(Duration::from_millis(20)).await;
        }
        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
        assert_eq!(collector.positions(&store).await, positions(6));
        assert!(engine.live_workers().await.unwrap().is_empty());
    }
}
