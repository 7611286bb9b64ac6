//! Read your writes: waiting for a subscription, and putting one somewhere else.

use std::sync::Arc;
use std::time::Duration;

use store::{Position, Store};
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, Placing, Poison, RetryStrategy, RunMode, Standing, State, Status,
    Waited,
};
use testkit::{Collector, Failing, Scripted, both, position};

use crate::engine::{Running, append, append_typed, engine, look, only, status};

const LONG: Duration = Duration::from_secs(60);

/// A projector that counts how often it was given each position.
fn counting(definition: Definition) -> Arc<Scripted> {
    let definition = definition.with_table("seen", "seen_by_counting");
    let counting = Scripted::new(definition, |events, context| {
        Box::pin(async move {
            let rows = events.iter().map(|event| (event.position,)).collect();
            context.execute_many("seen", "INSERT INTO {t} (position) VALUES {rows}", rows).await?;
            Ok(())
        })
    });
    Arc::new(counting.with_setup(|context| {
        Box::pin(async move {
            context.execute("seen", "CREATE TABLE {t} (position BIGINT)", ()).await?;
            Ok(())
        })
    }))
}

async fn counted(store: &Store) -> Vec<i64> {
    let sql = "SELECT position FROM seen_by_counting ORDER BY position";
    let rows: Vec<(i64,)> = store.database().fetch_all(sql, ()).await.unwrap();
    rows.into_iter().map(|row| row.0).collect()
}

async fn rewind(engine: &Engine, id: &str, to: i64) -> Outcome {
    let seen_at = engine.status(&Criteria::id(id)).await.unwrap();
    let seen_at = seen_at.first().map_or(Position::START, |overview| overview.subscription.read_from());
    engine.rewind(id, Placing { seen_at, to: Position(to) }, "to see it").await.unwrap()
}

both! {
    /// E-42: whoever has appended waits for the read model, in another process than the worker's.
    async fn e42_a_wait_ends_when_the_position_is_passed(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![collector.clone()]);
        append(&store, 3).await;
        let reader = crate::engine::engine(&database.store().await, vec![collector.clone()]);
        let waiting = tokio::spawn(async move { reader.wait_for("collector", Position(3), LONG).await });
        let worker = Running::start(&engine).await;
        assert_eq!(waiting.await.unwrap().unwrap(), Waited::Passed { position: Position(3), set_aside: 0 });
        assert_eq!(collector.positions(&store).await, [1, 2, 3]);
        worker.stop().await;
    }

    /// E-42: the answer tells why it has not.
    async fn e42_a_wait_in_vain_says_why(database: TestDatabase) {
        let store = database.store().await;
        let failing = Failing::new(Definition::projector("failing").with_retry(RetryStrategy::None), [2]);
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![collector, failing]);
        append(&store, 1).await;
        let late = Waited::TimedOut { position: Position(0), standing: Standing::NoWorker };
        assert_eq!(engine.wait_for("collector", Position(1), Duration::ZERO).await.unwrap(), late);
        assert_eq!(engine.wait_for("nobody", Position(1), LONG).await.unwrap(), Waited::Unknown);

        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.pause(&Criteria::id("collector"), "maintenance").await.unwrap();
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let stopped = |why: &str| Waited::Stopped { position: Position(1), why: why.to_owned() };
        assert_eq!(engine.wait_for("collector", Position(2), LONG).await.unwrap(), stopped("it is paused"));
        let failed = engine.wait_for("failing", Position(2), LONG).await.unwrap();
        assert_eq!(failed, stopped("it failed and gave up: cannot digest position 2"));
    }

    /// E-42, E-32: what was set aside is not in the read model, and the answer says so.
    async fn e42_a_wait_tells_what_was_set_aside(database: TestDatabase) {
        let store = database.store().await;
        let definition = Definition::projector("failing").with_retry(RetryStrategy::None).with_poison(Poison::park());
        let engine = engine(&store, vec![Failing::new(definition, [2])]);
        append(&store, 3).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let passed = |set_aside| Waited::Passed { position: Position(3), set_aside };
        assert_eq!(engine.wait_for("failing", Position(1), LONG).await.unwrap(), passed(0));
        let all = engine.wait_for("failing", Position(3), LONG).await.unwrap();
        assert!(matches!(all, Waited::Passed { set_aside: 1.., .. }), "{all:?}");
    }

    /// E-24, E-42: a position is written down only now and then where nothing is wanted; that is nothing to wait for.
    async fn e42_what_it_does_not_want_is_not_waited_for(database: TestDatabase) {
        let store = database.store().await;
        let picky = Collector::new(Definition::projector("picky").on(["Wanted"]));
        let engine = engine(&store, vec![picky]);
        append_typed(&store, "thing-1", &["Wanted"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        append_typed(&store, "thing-1", &["Unwanted", "Unwanted", "Wanted"]).await;
        let passed = Waited::Passed { position: Position(1), set_aside: 0 };
        assert_eq!(engine.wait_for("picky", Position(3), Duration::ZERO).await.unwrap(), passed);
        let late = engine.wait_for("picky", Position(4), Duration::ZERO).await.unwrap();
        assert!(matches!(late, Waited::TimedOut { .. }), "{late:?}");
    }

    /// E-16: a projector is set back and handles events once more, and forward past some.
    async fn e16_a_projector_is_put_somewhere_else(database: TestDatabase) {
        let store = database.store().await;
        let actor = Arc::new(Scripted::idle(Definition::processor("actor")));
        let engine = engine(&store, vec![counting(Definition::projector("counting")), actor]);
        append(&store, 4).await;
        assert_eq!(
            rewind(&engine, "counting", 0).await,
            Outcome::Refused { why: "there is no such subscription".to_owned() }
        );
        engine.catch_up(&Criteria::all()).await.unwrap();
        let placed = |from, to, status| {
            Outcome::Placed { from: Position(from), to: Position(to), status, letters: 0 }
        };
        assert_eq!(rewind(&engine, "counting", 2).await, placed(4, 2, Status::Active));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(counted(&store).await, [1, 2, 3, 3, 4, 4]);
        assert_eq!(status(&engine, "counting").await, Status::Active);

        append(&store, 3).await;
        assert_eq!(rewind(&engine, "counting", 6).await, placed(4, 6, Status::Active));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(counted(&store).await, [1, 2, 3, 3, 4, 4, 7]);
        let history = engine.history("counting", 100).await.unwrap();
        assert!(history.iter().any(|line| line.why == "set back from position 4 to 2: to see it"), "{history:?}");

        engine.pause(&Criteria::id("counting"), "maintenance").await.unwrap();
        assert_eq!(rewind(&engine, "counting", 6).await, placed(7, 6, Status::Paused));
        engine.reactivate(&Criteria::id("counting"), "done").await.unwrap();
        assert_eq!(status(&engine, "counting").await, Status::Active);
        for (id, to) in [("actor", 1), ("counting", 8), ("counting", -1), ("counting", 6), ("nobody", 1)] {
            let outcome = rewind(&engine, id, to).await;
            assert!(matches!(outcome, Outcome::Refused { .. }), "{id} {to}: {outcome:?}");
        }
    }

    /// E-16, E-33: letters whose events come again are forgotten and counted out; those before stay.
    async fn e16_letters_after_the_place_are_forgotten(database: TestDatabase) {
        let store = database.store().await;
        let definition = Definition::projector("failing").with_retry(RetryStrategy::None).with_poison(Poison::park());
        let failing = Scripted::new(definition, |events, _| {
            Box::pin(async move {
                match events.iter().find(|event| event.event_type == "Bad") {
                    Some(event) => Err(format!("cannot digest position {}", event.position).into()),
                    None => Ok(()),
                }
            })
        });
        let engine = engine(&store, vec![Arc::new(failing)]);
        append_typed(&store, "a-1", &["Bad"]).await;
        append_typed(&store, "b-1", &["Good", "Bad"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(look(&engine, "failing").await.letters.open, 2);
        let outcome = rewind(&engine, "failing", 1).await;
        assert!(matches!(outcome, Outcome::Placed { letters: 1, .. }), "{outcome:?}");
        let now = look(&engine, "failing").await;
        assert_eq!((now.letters.open, position(&now)), (1, 1));
        engine.catch_up(&Criteria::all()).await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((now.letters.open, position(&now)), (2, 3));
    }

    /// E-16: what failed goes on from where it is put.
    async fn e16_putting_it_elsewhere_ends_an_error(database: TestDatabase) {
        let store = database.store().await;
        let failing = Failing::new(Definition::projector("failing").with_retry(RetryStrategy::None), [2]);
        let engine = engine(&store, vec![failing]);
        append(&store, 3).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "failing").await, Status::Error);
        let outcome = rewind(&engine, "failing", 2).await;
        assert!(matches!(outcome, Outcome::Placed { status: Status::Booting, .. }), "{outcome:?}");
        engine.catch_up(&Criteria::all()).await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((now.state, now.position, now.attempt), (State::Active, Some(Position(3)), 0));
    }

    /// E-13: group, run mode and tables come from the code, and nothing else changes.
    async fn e13_a_refresh_brings_the_row_to_what_the_code_says(database: TestDatabase) {
        let store = database.store().await;
        let before = engine(&store, vec![Arc::new(Scripted::idle(Definition::projector("one")))]);
        append(&store, 2).await;
        before.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(
            only(before.refresh(&Criteria::all(), false, "to see it").await.unwrap()),
            Outcome::Refreshed { changes: Vec::new() }
        );
        let definition = Definition::projector("one")
            .in_group("fast")
            .with_run_mode(RunMode::Once)
            .with_table("t", "one_more_table");
        let after = engine(&store, vec![Arc::new(Scripted::idle(definition))]);
        let was = look(&after, "one").await;
        let outcome = only(after.refresh(&Criteria::all(), false, "to see it").await.unwrap());
        let Outcome::Refreshed { changes } = outcome else { panic!("{outcome:?}") };
        assert_eq!(changes.len(), 3, "{changes:?}");
        let is = look(&after, "one").await;
        assert_eq!((is.group.as_str(), is.run_mode), ("fast", RunMode::Once));
        assert_eq!(is.clean_up.len(), 1);
        assert_eq!((is.state, is.position, is.created_at), (was.state, was.position, was.created_at));
        let history = after.history("one", 1).await.unwrap();
        assert!(history[0].why.contains("the group was projector, is fast"), "{history:?}");
    }
}
