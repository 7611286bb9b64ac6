//! The worker: what it keeps moving while others change things under it, and how it stops.

use std::sync::Arc;

use store::{DatabaseKind, Store};
use subscription_engine::{Criteria, Definition, Outcome, Settings, Status};
use testkit::{Collector, Held, Scripted, both, position, positions};

use crate::engine::{Running, append, append_typed, engine, look, until};

/// From here on every write of a subscription's position is counted.
async fn count_moves(store: &Store) {
    let database = store.database();
    database.execute("CREATE TABLE moves (position BIGINT)", ()).await.unwrap();
    if database.kind() == DatabaseKind::Postgres {
        database
            .execute(
                "CREATE FUNCTION count_move() RETURNS trigger LANGUAGE plpgsql
                 AS $$ BEGIN INSERT INTO moves VALUES (NEW.position); RETURN NULL; END $$",
                (),
            )
            .await
            .unwrap();
    }
    let sql = match database.kind() {
        DatabaseKind::Postgres => {
            "CREATE TRIGGER moves AFTER UPDATE ON herald_subscriptions FOR EACH ROW EXECUTE FUNCTION count_move()"
        }
        DatabaseKind::Sqlite => {
            "CREATE TRIGGER moves AFTER UPDATE ON herald_subscriptions
             BEGIN INSERT INTO moves VALUES (NEW.position); END"
        }
    };
    database.execute(sql, ()).await.unwrap();
}

async fn moves(store: &Store) -> i64 {
    let row: Option<(i64,)> =
        store.database().fetch_optional("SELECT COUNT(*) FROM moves", ()).await.unwrap();
    row.unwrap().0
}

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

    /// E-61: asked to stop, a worker finishes the unit under way and begins no other.
    async fn e61_a_stop_finishes_the_unit_and_another_worker_goes_on(database: TestDatabase) {
        let store = database.store().await;
        let held = Held::before_writing(Definition::projector("held"));
        let settings = Settings { unit_events: 1, ..Settings::default() };
        let engine = engine(&store, vec![held.clone()]).with_settings(settings);
        append(&store, 3).await;
        let worker = Running::start(&engine).await;
        held.entered(1).await;
        let stopped = worker.ask_to_stop().await;
        // Two: whatever were begun now would go through as well.
        held.let_go(2);
        stopped.await.unwrap().unwrap();
        assert_eq!(held.calls(), 1);
        assert_eq!(position(&look(&engine, "held").await), 1);
        assert!(engine.live_workers().await.unwrap().is_empty());

        let second = Held::before_writing(Definition::projector("held"));
        let other = crate::engine::engine(&database.store().await, vec![second.clone()]);
        second.let_go(1);
        let worker = Running::start(&other).await;
        until(&other, "held", |now| position(now) == 3).await;
        worker.stop().await;
        assert_eq!(held.positions(&store).await, positions(3));
    }

    /// E-24: events that nobody wants move the position without a write for each, and before a worker goes idle
    /// or stops.
    async fn e24_unwanted_events_are_not_written_down_one_by_one(database: TestDatabase) {
        let store = database.store().await;
        let picky = Collector::new(Definition::projector("picky").on(["Wanted"]));
        let engine = engine(&store, vec![picky.clone()]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        count_moves(&store).await;
        let worker = Running::start(&engine).await;
        for _ in 0..200 {
            append(&store, 1).await;
        }
        until(&engine, "picky", |now| position(now) == 201).await;
        let when_idle = moves(&store).await;
        assert!(when_idle <= 20, "{when_idle} writes for 200 events");

        append(&store, 1).await;
        append_typed(&store, "thing-2", &["Wanted", "Unwanted"]).await;
        until(&engine, "picky", |now| position(now) >= 203).await;
        worker.stop().await;
        assert_eq!(position(&look(&engine, "picky").await), 204);
        assert_eq!(picky.positions(&store).await, [203]);
    }

    /// PL-049, PL-111, PL-121: a run moves the position past what nobody wants, in one write.
    async fn pl_049_pl_111_pl_121_a_run_moves_past_unwanted_events(database: TestDatabase) {
        let store = database.store().await;
        let idle = Scripted::new(Definition::projector("picky").on(["Wanted"]), |_, _| {
            Box::pin(async { panic!("nobody asked for these events") })
        });
        let engine = engine(&store, vec![Arc::new(idle)]);
        append(&store, 3).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        append(&store, 1_000).await;
        count_moves(&store).await;
        let report = engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(report, [("picky".to_owned(), Outcome::CaughtUp { events: 0 })]);
        let overview = engine.status(&Criteria::all()).await.unwrap().remove(0);
        assert_eq!((position(&overview.subscription), overview.lag), (1_003, 0));
        assert_eq!(moves(&store).await, 1);
    }

    /// E-08: a worker picks up what is added while it runs; what it does not know it leaves alone.
    async fn e08_a_worker_moves_only_its_groups(database: TestDatabase) {
        let store = database.store().await;
        let mine = Collector::new(Definition::projector("mine").in_group("a"));
        let other = Collector::new(Definition::projector("other").in_group("b"));
        let engine = engine(&store, vec![mine.clone(), other.clone()]);
        append(&store, 2).await;
        let group = Criteria { groups: Some(vec!["a".to_owned()]), ids: None };
        let worker = Running::start_for(&engine, group).await;
        until(&engine, "mine", |now| position(now) == 2).await;
        let overviews = engine.status(&Criteria::all()).await.unwrap();
        let moved: Vec<_> = overviews.iter().map(|one| (one.subscription.id.as_str(), one.has_worker)).collect();
        assert_eq!(moved, [("mine", true), ("other", false)]);
        worker.stop().await;
        assert_eq!(look(&engine, "other").await.state.status(), Status::New);
    }
}
