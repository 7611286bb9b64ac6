//! Running right after an append, and operations that must succeed for everybody.

use std::sync::Arc;

use store::{ExpectedVersion, Store};
use subscription_engine::{
    BoxError, Criteria, Definition, Engine, Outcome, RetryStrategy, State, Status, none_failed,
};
use testkit::{Collector, Failing, Scripted, both, positions};

use super::stands;
use crate::engine::{append, append_typed, engine, look, only};
use crate::engine_exactly_once::answering;
use crate::engine_failure::failure_of;
use crate::given::stream;

fn failing(id: &str, at: i64) -> Arc<Failing> {
    Failing::new(Definition::projector(id).with_retry(RetryStrategy::None), [at])
}

/// Everything is Active before the first event.
async fn active(engine: &Engine) {
    engine.set_up(&Criteria::all(), true).await.unwrap();
}

/// Appends one event through a handle that runs subscriptions.
async fn save(store: &Store) {
    append(store, 1).await;
}

both! {
    async fn pl_125_what_failed_is_raised_and_what_did_not_passes_through(database: TestDatabase) {
        let store = database.store().await;
        let (a, c) = (failing("a", 1), failing("c", 1));
        let engine = engine(&store, vec![a.clone(), Failing::new(Definition::projector("b"), []), c.clone()]);
        append(&store, 1).await;

        let raised = none_failed(engine.catch_up(&Criteria::all()).await.unwrap()).unwrap_err();

        let ids: Vec<&str> = raised.0.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert_eq!(raised.0[0].1, failure_of(&engine, "a").await);
        assert_eq!(
            raised.to_string(),
            "a failed at position 1 (Acme.Test:Happened): cannot digest position 1; \
             c failed at position 1 (Acme.Test:Happened): cannot digest position 1"
        );
        a.mend();
        c.mend();
        engine.reactivate(&Criteria::all(), "mended").await.unwrap();
        let report = engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(none_failed(report.clone()), Ok(report));
        assert_eq!(stands(&engine, "c").await, (Status::Active, 1));
    }

    /// SUB-36: also a teardown that failed, though the subscription is gone.
    async fn sub_36_a_teardown_that_failed_is_raised(database: TestDatabase) {
        let store = database.store().await;
        let stubborn = Scripted::idle(Definition::projector("a"))
            .with_teardown(|_| Box::pin(async { Err(BoxError::from("it will not go")) }));
        let engine = engine(&store, vec![Arc::new(stubborn)]);
        active(&engine).await;
        let report = engine.remove(&Criteria::all(), "test").await.unwrap();
        assert_eq!(none_failed(report).unwrap_err().to_string(), "a failed: it will not go");
    }

    /// PL-127, E-44: the append succeeds, and who failed is in error.
    async fn pl_127_an_append_succeeds_whatever_becomes_of_who_runs_after_it(database: TestDatabase) {
        let store = database.store().await;
        let (bad, good) = (failing("bad", 1), Collector::new(Definition::projector("good")));
        let engine = engine(&store, vec![bad, good.clone()]);
        active(&engine).await;
        let running = engine.store_that_runs(Criteria::all(), None);

        save(&running).await;

        assert!(matches!(look(&engine, "bad").await.state, State::Error { .. }));
        assert_eq!(good.positions(&store).await, [1]);
    }

    /// E-44, SUB-37: the chosen ones run, to the limit, before the append answers; and none without the option.
    async fn e44_sub_37_chosen_subscriptions_run_after_an_append(database: TestDatabase) {
        let store = database.store().await;
        let collector = |id: &str, group: &str| Collector::new(Definition::projector(id).in_group(group));
        let (a, b, c) = (collector("a", "x"), collector("b", "x"), collector("c", "y"));
        let engine = engine(&store, vec![a.clone(), b.clone(), c.clone()]);
        active(&engine).await;
        let criteria = Criteria {
            ids: Some(vec!["a".to_owned(), "c".to_owned()]),
            groups: Some(vec!["x".to_owned()]),
        };
        append(&store, 2).await;
        assert!(a.positions(&store).await.is_empty(), "the handle without the option runs nothing");

        let running = engine.store_that_runs(criteria, Some(2));
        save(&running).await;
        assert_eq!(a.positions(&store).await, [1, 2], "two of the three");
        save(&running).await;
        assert_eq!(a.positions(&store).await, positions(4));
        assert_eq!((b.positions(&store).await.len(), c.positions(&store).await.len()), (0, 0));
    }

    /// E-44: appends at the same time all find their events handled.
    async fn e44_no_event_is_left_behind_by_appends_at_once(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("a"));
        let engine = engine(&store, vec![collector.clone()]);
        active(&engine).await;
        let running = engine.store_that_runs(Criteria::all(), None);
        let appends = (0..20).map(|number| {
            let running = running.clone();
            tokio::spawn(async move { append_typed(&running, &format!("s-{number}"), &["X"]).await })
        });
        for append in appends.collect::<Vec<_>>() {
            append.await.unwrap();
        }
        assert_eq!(collector.positions(&store).await.len(), 20);
    }

    /// PL-126, E-44: what a handler appends runs nobody inside its unit; the next run has it.
    async fn e44_pl_126_what_a_handler_appends_waits_for_the_next_run(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![answering("b")]);
        active(&engine).await;
        let running = engine.store_that_runs(Criteria::all(), None);
        save(&running).await;
        assert_eq!(stands(&engine, "b").await, (Status::Active, 1));
        assert_eq!(store.head().await.unwrap().position.0, 2, "the answer is there, and not handled yet");
        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 0 });
    }

    /// SUB-37: in a transaction of the caller's nothing runs, because it may be rolled back.
    async fn sub_37_nothing_runs_in_a_surrounding_transaction(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("a"));
        let engine = engine(&store, vec![collector.clone()]);
        active(&engine).await;
        let running = engine.store_that_runs(Criteria::all(), None);
        let mut tx = running.begin().await.unwrap();
        let append = store::Append {
            stream: stream("s-1"),
            expected: ExpectedVersion::Any,
            events: vec![crate::given::event(1)],
        };
        running.append_all(&mut tx, vec![append]).await.unwrap();
        tx.rollback().await;
        assert!(collector.positions(&store).await.is_empty());
        assert_eq!(stands(&engine, "a").await, (Status::Active, 0));
    }
}
