//! Tearing down and removing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use store::Store;
use subscription_engine::{Criteria, Definition, Engine, Outcome, Report, Status, Subscriber};
use testkit::{Collector, Scripted, both};

use super::{idle, stands};
use crate::engine::{append, engine, only};
use crate::engine_lifecycle::{became, has_table, refused};
use crate::restore::raw;

const GONE: Outcome = Outcome::Removed { failure: None };

/// A subscription of this subscriber, detached; as a program sees it that has the code, and as one that has not.
async fn detached(store: &Store, subscriber: Arc<dyn Subscriber>) -> (Engine, Engine) {
    let (full, without) = (engine(store, vec![subscriber]), engine(store, vec![]));
    append(store, 1).await;
    full.catch_up(&Criteria::all()).await.unwrap();
    let report = without.run(&Criteria::all(), None).await.unwrap();
    assert_eq!(only(report), became(Status::Active, Status::Detached));
    (full, without)
}

async fn tear_down(engine: &Engine) -> Outcome {
    only(engine.tear_down_detached(&Criteria::all(), "test").await.unwrap())
}

async fn remove(engine: &Engine) -> Outcome {
    only(engine.remove(&Criteria::all(), "test").await.unwrap())
}

/// The subscriptions that have a row, as somebody sees them who adds none.
async fn rows(without: &Engine) -> Vec<(String, Status)> {
    let overviews = without.status(&Criteria::all()).await.unwrap();
    overviews.into_iter().map(|one| (one.subscription.id, one.subscription.state.status())).collect()
}

fn still_detached() -> Vec<(String, Status)> {
    vec![("a".to_owned(), Status::Detached)]
}

/// One whose teardown is counted.
fn counting() -> (Arc<dyn Subscriber>, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let subscriber = Scripted::idle(Definition::projector("a")).with_teardown(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    });
    (Arc::new(subscriber), calls)
}

/// Puts a view where its table was: neither database drops that as a table.
async fn make_the_clean_up_fail(store: &Store) {
    raw(store, "DROP TABLE collected_a; CREATE VIEW collected_a AS SELECT 1 AS position".to_owned()).await;
}

both! {
    async fn pl_072_one_without_a_teardown_is_removed(database: TestDatabase) {
        let store = database.store().await;
        let (full, without) = detached(&store, idle("a")).await;

        assert_eq!(tear_down(&full).await, GONE);

        assert!(rows(&without).await.is_empty());
        let history = full.history("a", 1).await.unwrap().remove(0);
        assert_eq!((history.from_status.as_deref(), history.to_status.as_str()), (Some("detached"), "removed"));
    }

    async fn pl_073_teardown_is_called_once(database: TestDatabase) {
        let store = database.store().await;
        let (subscriber, calls) = counting();
        let (full, without) = detached(&store, subscriber).await;

        assert_eq!(tear_down(&full).await, GONE);

        assert_eq!((rows(&without).await, calls.load(Ordering::Relaxed)), (vec![], 1));
    }

    async fn pl_074_one_whose_teardown_fails_stays(database: TestDatabase) {
        let store = database.store().await;
        let stubborn = Scripted::idle(Definition::projector("a"))
            .with_teardown(|_| Box::pin(async { Err("I stay".into()) }));
        let (full, without) = detached(&store, Arc::new(stubborn)).await;

        let outcome = tear_down(&full).await;

        assert!(matches!(&outcome, Outcome::Failed { failure } if failure.chain == ["I stay"]), "{outcome:?}");
        assert_eq!(rows(&without).await, still_detached());
    }

    async fn pl_075_without_code_and_clean_up_steps_it_stays(database: TestDatabase) {
        let store = database.store().await;
        let (_, without) = detached(&store, idle("a")).await;

        assert!(refused(&tear_down(&without).await));

        assert_eq!(rows(&without).await, still_detached());
    }

    async fn pl_076_without_code_the_clean_up_steps_are_done(database: TestDatabase) {
        let store = database.store().await;
        let (_, without) = detached(&store, Collector::new(Definition::projector("a"))).await;
        assert!(has_table(&store, "collected_a").await);

        assert_eq!(tear_down(&without).await, GONE);

        assert!(rows(&without).await.is_empty());
        assert!(!has_table(&store, "collected_a").await);
    }

    async fn pl_077_where_a_clean_up_step_fails_it_stays(database: TestDatabase) {
        let store = database.store().await;
        let (_, without) = detached(&store, Collector::new(Definition::projector("a"))).await;
        make_the_clean_up_fail(&store).await;

        let outcome = tear_down(&without).await;

        assert!(matches!(&outcome, Outcome::Failed { failure } if !failure.chain.is_empty()), "{outcome:?}");
        assert_eq!(rows(&without).await, still_detached());
    }

    async fn pl_079_what_is_active_is_not_torn_down(database: TestDatabase) {
        let store = database.store().await;
        let (subscriber, calls) = counting();
        let engine = engine(&store, vec![subscriber]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();

        assert_eq!(engine.tear_down_detached(&Criteria::all(), "test").await.unwrap(), Report::new());

        assert_eq!((stands(&engine, "a").await, calls.load(Ordering::Relaxed)), ((Status::Active, 1), 0));
    }

    async fn pl_083_removal_needs_no_code(database: TestDatabase) {
        let store = database.store().await;
        let (_, without) = detached(&store, idle("a")).await;

        assert_eq!(remove(&without).await, GONE);

        assert!(rows(&without).await.is_empty());
    }

    async fn pl_084_removal_is_not_stopped_by_a_clean_up_step_that_fails(database: TestDatabase) {
        let store = database.store().await;
        let (_, without) = detached(&store, Collector::new(Definition::projector("a"))).await;
        make_the_clean_up_fail(&store).await;

        let outcome = remove(&without).await;

        assert!(matches!(outcome, Outcome::Removed { failure: Some(_) }), "{outcome:?}");
        assert!(rows(&without).await.is_empty());
    }
}
