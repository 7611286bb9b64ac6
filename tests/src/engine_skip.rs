//! An operator skips one event: the one that is next, and no other.

use store::Position;
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, RetryStrategy, RunMode, Settings, State, Status,
};
use testkit::{Collector, Failing, both, position};

use crate::engine::{append, append_typed, engine, look, status};

async fn skip(engine: &Engine, id: &str, at: i64) -> Outcome {
    engine.skip(id, Position(at), "it is in the way").await.unwrap()
}

#[track_caller]
fn assert_refused(outcome: Outcome, why: &str) {
    let Outcome::Refused { why: said } = outcome else { panic!("{outcome:?}") };
    assert!(said.contains(why), "{said}");
}

both! {
    /// E-15: exactly the event at which it failed; it goes on, and the history knows who and why.
    async fn e15_the_failing_event_is_skipped_and_no_other(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("failing"), [3]);
        let engine = engine(&store, vec![failing.clone()]).on_behalf_of("ann");
        append(&store, 5).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "failing").await, Status::Error);
        for other in [0, 1, 2, 4, 5, 6, 77] {
            assert_refused(skip(&engine, "failing", other).await, "that is at position 3");
        }
        assert_refused(engine.skip("failing", Position(3), "").await.unwrap(), "without a reason");
        assert_eq!(skip(&engine, "failing", 3).await, Outcome::Skipped { position: Position(3), to: Status::Booting });
        let now = look(&engine, "failing").await;
        assert_eq!((position(&now), now.attempt, now.failing_position), (3, 0, None));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(failing.positions(&store).await, [1, 2, 4, 5]);
        let history = engine.history("failing", 100).await.unwrap();
        let line = history.iter().find(|line| line.why.starts_with("skipped position 3 (Acme.Test:Happened ")).unwrap();
        assert!(line.why.ends_with(": it is in the way") && line.who == "ann", "{line:?}");
    }

    /// E-15: the next event by name, of those that it wants; a paused one stays paused.
    async fn e15_the_next_event_is_skipped_by_name(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector").on(["Wanted"]));
        let engine = engine(&store, vec![collector.clone()]);
        assert_refused(skip(&engine, "collector", 1).await, "there is no such subscription");
        engine.set_up(&Criteria::all(), true).await.unwrap();
        assert_refused(skip(&engine, "collector", 1).await, "no event is waiting");
        append_typed(&store, "a-1", &["Other", "Wanted", "Other", "Wanted", "Wanted"]).await;
        assert_refused(skip(&engine, "collector", 1).await, "that is at position 2");
        assert_eq!(skip(&engine, "collector", 2).await, Outcome::Skipped { position: Position(2), to: Status::Active });
        engine.pause(&Criteria::all(), "wait").await.unwrap();
        assert_eq!(skip(&engine, "collector", 4).await, Outcome::Skipped { position: Position(4), to: Status::Paused });
        engine.reactivate(&Criteria::all(), "go on").await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(collector.positions(&store).await, [5]);
    }

    /// E-15: where nothing is handled nothing can be skipped.
    async fn e15_refused_where_nothing_is_handled(database: TestDatabase) {
        let store = database.store().await;
        let once = Collector::new(Definition::plain("once", RunMode::Once));
        let fresh = Collector::new(Definition::projector("fresh"));
        let program = engine(&store, vec![once, fresh]);
        append(&store, 1).await;
        program.discover().await.unwrap();
        assert_refused(skip(&program, "fresh", 1).await, "not set up yet");
        program.catch_up(&Criteria::all()).await.unwrap();
        append(&store, 1).await;
        assert_refused(skip(&program, "once", 2).await, "it is finished");
        let without_code = engine(&store, vec![]);
        assert_refused(skip(&without_code, "fresh", 2).await, "this program has no subscriber");
        without_code.detach(&Criteria::all()).await.unwrap();
        assert_refused(skip(&program, "fresh", 2).await, "it is detached");
    }

    /// E-15, S-25: an event that cannot be read stops those who want it; it can be skipped like any other.
    async fn e15_an_unreadable_event_can_be_skipped(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector").with_retry(RetryStrategy::None));
        let settings = Settings { unit_events: 1, ..Settings::default() };
        let engine = engine(&store, vec![collector.clone()]).with_settings(settings);
        append(&store, 3).await;
        let sql = if database.is_postgres() {
            "ALTER TABLE herald_events DISABLE TRIGGER ALL"
        } else {
            "DROP TRIGGER herald_events_never_change"
        };
        store.database().execute(sql, ()).await.unwrap();
        store.database().execute("UPDATE herald_events SET stream = '' WHERE position = 2", ()).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        let now = look(&engine, "collector").await;
        assert_eq!(position(&now), 1);
        assert!(matches!(now.state, State::Error { next_retry: None, .. }), "{:?}", now.state);
        assert_eq!(skip(&engine, "collector", 2).await, Outcome::Skipped { position: Position(2), to: Status::Booting });
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(collector.positions(&store).await, [1, 3]);
    }
}
