//! Positions that nobody has: what is known to stay away is not waited for, and what may still come is.

use store::{DatabaseKind, Store};
use subscription_engine::{Criteria, Definition, Engine, Outcome, Status};
use testkit::{Failing, both, positions};

use super::stands;
use crate::engine::{append, append_typed, engine, only};
use crate::restore::raw;
use crate::safe_head::appended_in;

/// Appends so many events, leaves out the next position for good, and appends so many more.
async fn append_around_a_hole(store: &Store, before: usize, after: usize) {
    append(store, before).await;
    match store.database().kind() {
        DatabaseKind::Postgres => {
            appended_in(store, "gone-1").await.rollback().await;
            append(store, after).await;
        }
        // There a position that was rolled back is drawn again; only a hand in the file makes a hole.
        DatabaseKind::Sqlite => {
            append_typed(store, "gone-1", &["Gone"]).await;
            append(store, after).await;
            let delete = "DELETE FROM herald_events WHERE stream = 'gone-1'";
            raw(store, format!("DROP TRIGGER herald_events_never_go; {delete}")).await;
        }
    }
}

/// A subscription that is Active at position 5 of 5.
async fn at_five(store: &Store) -> (Engine, std::sync::Arc<Failing>) {
    let collector = Failing::new(Definition::projector("a"), []);
    let engine = engine(store, vec![collector.clone()]);
    append(store, 5).await;
    engine.catch_up(&Criteria::all()).await.unwrap();
    assert_eq!((stands(&engine, "a").await, collector.calls()), ((Status::Active, 5), 1));
    (engine, collector)
}

async fn run(engine: &Engine) -> Outcome {
    only(engine.run(&Criteria::all(), None).await.unwrap())
}

both! {
    async fn pl_026_a_hole_is_passed(database: TestDatabase) {
        let store = database.store().await;
        append_around_a_hole(&store, 1, 1).await;
        let collector = Failing::new(Definition::projector("a"), []);
        let engine = engine(&store, vec![collector.clone()]);
        engine.set_up(&Criteria::all(), false).await.unwrap();

        assert_eq!(only(engine.boot(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 2 });

        assert_eq!(collector.positions(&store).await, [1, 3]);
        assert_eq!(stands(&engine, "a").await, (Status::Active, 3));
    }

    async fn pl_114_no_gap_is_one_page(database: TestDatabase) {
        let store = database.store().await;
        let (engine, collector) = at_five(&store).await;
        append(&store, 4).await;

        assert_eq!(run(&engine).await, Outcome::CaughtUp { events: 4 });

        assert_eq!(collector.calls(), 2);
        assert_eq!(collector.positions(&store).await, positions(9));
    }

    /// An append that has drawn its position and not ended: nothing is handled past it before it has.
    async fn pl_115_what_may_still_come_is_not_passed(database: TestDatabase) {
        let store = database.store().await;
        let (engine, collector) = at_five(&store).await;
        append(&store, 2).await;
        if !database.is_postgres() {
            // There an appender keeps every other writer out, also one that handles events.
            run(&engine).await;
        }
        let late = appended_in(&database.open().await, "late-1").await;
        if database.is_postgres() {
            append(&store, 1).await;
            run(&engine).await;
        }
        assert_eq!(store.head().await.unwrap().position.0, 7);
        assert_eq!(collector.positions(&store).await, positions(7));
        assert_eq!(stands(&engine, "a").await, (Status::Active, 7));

        late.commit().await.unwrap();
        if !database.is_postgres() {
            append(&store, 1).await;
        }
        assert_eq!(run(&engine).await, Outcome::CaughtUp { events: 2 });
        assert_eq!(collector.positions(&store).await, positions(9));
    }

    async fn pl_116_what_is_known_to_stay_away_is_passed_at_once(database: TestDatabase) {
        let store = database.store().await;
        let (engine, collector) = at_five(&store).await;
        append_around_a_hole(&store, 2, 1).await;

        assert_eq!(run(&engine).await, Outcome::CaughtUp { events: 3 });

        assert_eq!(collector.calls(), 2, "in one page");
        assert_eq!(collector.positions(&store).await, [1, 2, 3, 4, 5, 6, 7, 9]);
    }

    /// The same for who meets the hole long after, in another process.
    async fn pl_117_an_old_hole_is_passed_at_once(database: TestDatabase) {
        let store = database.store().await;
        let (_, collector) = at_five(&store).await;
        append_around_a_hole(&store, 2, 1).await;
        let later = engine(&database.open().await, vec![collector.clone()]);

        assert_eq!(run(&later).await, Outcome::CaughtUp { events: 3 });

        assert_eq!((stands(&later, "a").await, collector.calls()), ((Status::Active, 9), 2));
    }
}
