//! Discovering and setting up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use store::Position;
use subscription_engine::{
    Criteria, Definition, Outcome, RegisterError, Registry, Report, Resume, State, Status, Subscriber,
};
use testkit::{Scripted, both};
use tokio::time::timeout;

use super::{idle, stands};
use crate::engine::{append, engine, look, only, status};
use crate::engine_lifecycle::{became, cannot_be_set_up, refused};

/// One that is set up without trouble, and how often that was done.
pub(super) fn counting_setups(id: &str) -> (Arc<dyn Subscriber>, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let subscriber = Scripted::idle(Definition::projector(id)).with_setup(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    });
    (Arc::new(subscriber), calls)
}

both! {
    async fn pl_002_what_needs_no_setup_boots(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![idle("a")]);
        engine.discover().await.unwrap();

        let report = engine.set_up(&Criteria::all(), false).await.unwrap();

        assert_eq!(report, [("a".to_owned(), became(Status::New, Status::Booting))]);
        assert_eq!(look(&engine, "a").await.position, None);
    }

    async fn pl_003_setup_is_called_once(database: TestDatabase) {
        let store = database.store().await;
        let (a, calls) = counting_setups("a");
        let engine = engine(&store, vec![a]);

        let report = engine.set_up(&Criteria::all(), false).await.unwrap();

        assert_eq!(only(report), became(Status::New, Status::Booting));
        assert_eq!(engine.set_up(&Criteria::all(), false).await.unwrap(), Report::new());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    async fn pl_004_a_setup_that_fails_is_an_error_that_goes_back_to_new(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = engine(&store, vec![cannot_be_set_up(Definition::projector("a"))]);

        let outcome = only(engine.set_up(&Criteria::all(), false).await.unwrap());

        let Outcome::Failed { failure: reported } = outcome else { panic!("{outcome:?}") };
        let now = look(&engine, "a").await;
        let State::Error { resume: Resume::New, failure, next_retry: Some(_) } = now.state else { panic!("{now:?}") };
        assert_eq!(failure.chain, ["no setup today"]);
        assert_eq!((failure, now.attempt, now.position), (reported, 0, None));
    }

    async fn pl_007_booting_can_be_skipped(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let engine = engine(&store, vec![idle("a")]);

        let report = engine.set_up(&Criteria::all(), true).await.unwrap();

        assert_eq!(only(report), became(Status::New, Status::Active));
        assert_eq!(look(&engine, "a").await.position, None);
    }

    async fn pl_011_one_setup_that_fails_stops_no_other(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![cannot_be_set_up(Definition::projector("a")), idle("b")]);

        let report = engine.set_up(&Criteria::all(), false).await.unwrap();

        assert!(matches!(&report[0], (id, Outcome::Failed { .. }) if id == "a"), "{report:?}");
        assert_eq!(report[1..], [("b".to_owned(), became(Status::New, Status::Booting))]);
        assert_eq!((status(&engine, "a").await, status(&engine, "b").await), (Status::Error, Status::Booting));
    }

    async fn pl_013_boot_discovers_and_boots_nothing_new(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let engine = engine(&store, vec![idle("a")]);

        assert_eq!(engine.boot(&Criteria::all(), None).await.unwrap(), Report::new());

        assert_eq!(stands(&engine, "a").await, (Status::New, 0));
        assert_eq!(engine.history("a", 9).await.unwrap()[0].why, "discovered");
    }

    async fn pl_014_every_operation_discovers(database: TestDatabase) {
        let store = database.store().await;
        let all = Criteria::all();
        let with = |id: &str| engine(&store, vec![idle(id)]);
        with("run").run(&all, None).await.unwrap();
        with("tear").tear_down_detached(&all, "test").await.unwrap();
        // Criteria do not restrict what is discovered; what is removed would be gone again.
        with("remove").remove(&Criteria::id("nobody"), "test").await.unwrap();
        with("reactivate").reactivate(&all, "test").await.unwrap();
        with("pause").pause(&all, "test").await.unwrap();
        for id in ["run", "tear", "remove", "reactivate", "pause"] {
            let history = with(id).history(id, 9).await.unwrap();
            assert_eq!((history[0].to_status.as_str(), history[0].why.as_str()), ("new", "discovered"), "{id}");
        }
    }

    async fn pl_015_who_asks_for_the_status_is_shown_what_would_be(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![idle("a")]);

        let shown = engine.status(&Criteria::all()).await.unwrap().remove(0).subscription;

        assert_eq!((shown.id.as_str(), shown.state), ("a", State::New));
        assert!(engine.history("a", 9).await.unwrap().is_empty(), "it is shown, not stored");
        assert_eq!(engine.discover().await.unwrap(), 1);
    }

    /// Somebody holds the row, and on SQLite the file: who only asks does not wait for that.
    async fn pl_018_the_status_takes_no_lock(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![idle("a")]);
        engine.discover().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        tx.execute("UPDATE herald_subscriptions SET attempt = attempt", ()).await.unwrap();

        let overviews = timeout(Duration::from_secs(5), engine.status(&Criteria::all())).await.unwrap().unwrap();

        tx.rollback().await;
        assert_eq!(overviews.len(), 1);
        assert_eq!(engine.history("a", 9).await.unwrap().len(), 1, "only that it was discovered");
    }

    async fn pl_135_a_row_is_added_once(database: TestDatabase) {
        let store = database.store().await;
        let first = engine(&store, vec![Arc::new(Scripted::idle(Definition::projector("a").in_group("first")))]);
        let second = engine(&database.store().await, vec![idle("a")]);
        assert_eq!(first.discover().await.unwrap(), 1);
        let row = look(&first, "a").await;

        assert_eq!(second.discover().await.unwrap(), 0);

        assert_eq!(look(&second, "a").await, row);
        // Two at once as well: one adds it, the other finds it there.
        let (one, other) = (engine(&store, vec![idle("b")]), engine(second.store(), vec![idle("b")]));
        let (one, other) = tokio::join!(one.discover(), other.discover());
        assert_eq!(one.unwrap() + other.unwrap(), 1);
    }

    async fn pl_136_an_operation_that_changes_nothing_is_no_error(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        append(&store, 1).await;
        let engine = engine(&store, vec![idle("a")]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        let (row, history) = (look(&engine, "a").await, engine.history("a", 99).await.unwrap().len());

        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 0 });

        assert_eq!(look(&engine, "a").await, row);
        assert_eq!(engine.history("a", 99).await.unwrap().len(), history);
    }

    async fn pl_137_nobody_of_that_name(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![]);
        let nobody = Criteria::id("nobody");
        for report in [
            engine.pause(&nobody, "test").await,
            engine.reactivate(&nobody, "test").await,
            engine.remove(&nobody, "test").await,
        ] {
            assert_eq!(report.unwrap(), Report::new());
        }
        assert!(refused(&engine.skip("nobody", Position(1), "test").await.unwrap()));
        assert!(engine.status(&nobody).await.unwrap().is_empty());
    }
}

#[test]
fn pl_019_two_subscribers_of_one_id_are_refused() {
    let error = Registry::new([idle("a"), idle("a")]).unwrap_err();
    assert!(matches!(&error, RegisterError::DuplicateId(id) if id == "a"), "{error}");
}
