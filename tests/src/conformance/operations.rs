//! What an operator stops and sets going again.

use std::sync::Arc;

use store::Store;
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, Report, Resume, RetryStrategy, RunMode, State, Status, Subscriber,
};
use testkit::{Failing, Scripted, both};

use super::{idle, stands};
use crate::engine::{append, engine, look, only};
use crate::engine_lifecycle::{became, cannot_be_set_up, refused};

fn id(id: &str) -> Criteria {
    Criteria::id(id)
}

/// One that fails at the first event and is not tried again.
fn giving_up(id: &str) -> Arc<Failing> {
    Failing::new(Definition::projector(id).with_retry(RetryStrategy::None), [1])
}

async fn pause(engine: &Engine, id: &str) -> Outcome {
    only(engine.pause(&Criteria::id(id), "test").await.unwrap())
}

async fn reactivate(engine: &Engine, id: &str) -> Outcome {
    only(engine.reactivate(&Criteria::id(id), "test").await.unwrap())
}

/// One that is Active at the first of two events, and detached there; with and without its code.
async fn detached(store: &Store) -> (Engine, Engine) {
    let (full, without) = (engine(store, vec![idle("a")]), engine(store, vec![]));
    append(store, 1).await;
    full.catch_up(&Criteria::all()).await.unwrap();
    let report = without.run(&Criteria::all(), None).await.unwrap();
    assert_eq!(only(report), became(Status::Active, Status::Detached));
    append(store, 1).await;
    (full, without)
}

both! {
    async fn pl_087_what_failed_in_its_setup_is_new_again(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![cannot_be_set_up(Definition::projector("a"))]);
        engine.set_up(&Criteria::all(), false).await.unwrap();

        assert_eq!(reactivate(&engine, "a").await, became(Status::Error, Status::New));

        let now = look(&engine, "a").await;
        assert_eq!((now.state, now.attempt), (State::New, 0));
    }

    async fn pl_088_what_was_detached_goes_on_where_it_stood(database: TestDatabase) {
        let store = database.store().await;
        let (full, _) = detached(&store).await;

        assert_eq!(reactivate(&full, "a").await, became(Status::Detached, Status::Active));

        assert_eq!(stands(&full, "a").await, (Status::Active, 1));
    }

    async fn pl_094_without_its_code_it_stays_detached(database: TestDatabase) {
        let store = database.store().await;
        let (_, without) = detached(&store).await;

        assert!(refused(&reactivate(&without, "a").await));

        assert_eq!(stands(&without, "a").await, (Status::Detached, 1));
    }

    async fn pl_089_what_was_paused_goes_on(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![idle("a")]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        pause(&engine, "a").await;

        assert_eq!(reactivate(&engine, "a").await, became(Status::Paused, Status::Active));

        assert_eq!(stands(&engine, "a").await, (Status::Active, 1));
    }

    async fn pl_091_what_gave_up_while_it_booted_boots_again(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![giving_up("a")]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        engine.boot(&Criteria::all(), None).await.unwrap();
        let now = look(&engine, "a").await;
        assert!(matches!(now.state, State::Error { resume: Resume::Booting, next_retry: None, .. }), "{now:?}");

        assert_eq!(reactivate(&engine, "a").await, became(Status::Error, Status::Booting));

        assert_eq!(look(&engine, "a").await.attempt, 0);
    }

    async fn pl_095_what_works_or_is_tried_again_can_be_paused(database: TestDatabase) {
        let store = database.store().await;
        let error = Failing::new(Definition::projector("error"), [1]);
        let engine = engine(&store, vec![idle("active"), idle("booting"), error]);
        append(&store, 1).await;
        engine.set_up(&id("active"), true).await.unwrap();
        engine.set_up(&Criteria::all(), false).await.unwrap();
        engine.boot(&id("error"), None).await.unwrap();
        for (id, from) in [("active", Status::Active), ("booting", Status::Booting), ("error", Status::Error)] {
            assert_eq!(pause(&engine, id).await, became(from, Status::Paused));
        }
    }

    async fn pl_096_what_does_no_work_cannot_be_paused(database: TestDatabase) {
        let store = database.store().await;
        let (full, without) = detached(&store).await;
        assert!(refused(&pause(&without, "a").await), "detached");
        assert_eq!(stands(&full, "a").await.0, Status::Detached);

        let once: Arc<dyn Subscriber> = Arc::new(Scripted::idle(Definition::plain("once", RunMode::Once)));
        let engine = engine(&store, vec![idle("a"), once, giving_up("given_up")]);
        engine.discover().await.unwrap();
        assert!(refused(&pause(&engine, "once").await), "new");
        assert_eq!(stands(&engine, "once").await.0, Status::New);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert!(refused(&pause(&engine, "once").await), "finished");
        assert_eq!(stands(&engine, "once").await.0, Status::Finished);
        // With us an error is an error, also where it is not tried again.
        assert_eq!(pause(&engine, "given_up").await, became(Status::Error, Status::Paused));
    }

    async fn pl_098_what_is_paused_is_left_alone(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![idle("a")]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        pause(&engine, "a").await;
        let before = look(&engine, "a").await;
        append(&store, 1).await;
        let all = Criteria::all();

        let reports = [
            engine.run(&all, None).await.unwrap(),
            engine.boot(&all, None).await.unwrap(),
            engine.set_up(&all, false).await.unwrap(),
        ];

        assert_eq!(reports, [Report::new(), Report::new(), Report::new()]);
        assert_eq!(look(&engine, "a").await, before);
    }

    async fn pl_129_after_the_switch_the_old_version_is_detached_and_torn_down(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let (old, new) = (engine(&store, vec![idle("v1")]), engine(&store, vec![idle("v2")]));
        let all = Criteria::all();
        old.catch_up(&all).await.unwrap();
        new.set_up(&all, false).await.unwrap();
        new.boot(&all, None).await.unwrap();

        new.run(&all, None).await.unwrap();
        assert_eq!(stands(&new, "v1").await, (Status::Detached, 1));
        let report = old.tear_down_detached(&all, "gone").await.unwrap();

        assert_eq!(report, [("v1".to_owned(), Outcome::Removed { failure: None })]);
        let left = new.status(&all).await.unwrap();
        assert_eq!(left.iter().map(|one| one.subscription.id.as_str()).collect::<Vec<_>>(), ["v2"]);
    }
}
