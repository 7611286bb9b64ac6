//! The worker: what it keeps moving while others change things under it, and how it stops.

use subscription_engine::{Criteria, Definition, Outcome, Status};
use testkit::{Collector, both, position, positions};

use crate::engine::{Running, append, engine, until};

both! {
    /// E-24: what a worker remembers of the log says nothing about a subscription that starts over.
    async fn e24_a_worker_reads_anew_what_is_removed_or_replayed_under_it(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![collector.clone()]);
        append(&store, 5).await;
        let worker = Running::start(&engine).await;
        let caught_up = |now: &subscription_engine::Subscription| {
            now.state.status() == Status::Active && position(now) == 5
        };
        until(&engine, "collector", caught_up).await;

        let operator = crate::engine::engine(&database.store().await, vec![collector.clone()]);
        let replayed = operator.replay("collector", "to see whether it works", |_, _| {}).await.unwrap();
        assert_eq!(replayed, Outcome::CaughtUp { events: 5 });
        assert_eq!(collector.positions(&store).await, positions(5));

        operator.remove(&Criteria::id("collector"), "to see whether it comes back").await.unwrap();
        until(&engine, "collector", caught_up).await;
        assert_eq!(collector.positions(&store).await, positions(5));
        worker.stop().await;
    }
}
