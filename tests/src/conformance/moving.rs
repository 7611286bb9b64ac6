//! Booting and running: who gets which events, and what becomes of the others when one fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use store::{DatabaseKind, ExpectedVersion, Json, Store};
use subscription_engine::{
    BoxError, Context, Criteria, Definition, Engine, Outcome, Resume, Settings, State, Status,
};
use testkit::{Collector, Failing, Scripted, T0, both, positions};

use super::setup::counting_setups;
use super::{idle, stands};
use crate::dead_letters::{Bad, handled, happened, letters, parking, picky};
use crate::engine::{append, append_typed, engine, look, only};
use crate::engine_exactly_once::answering;
use crate::engine_failure::failure_of;
use crate::given::stream;

fn id(id: &str) -> Criteria {
    Criteria::id(id)
}

/// Two collectors on a log of one event, which `b` has handled already and `a` has not.
async fn a_behind_b(store: &Store, skip_booting: bool) -> (Engine, Arc<Failing>, Arc<Failing>) {
    let collector = |id: &str| Failing::new(Definition::projector(id), []);
    let (a, b) = (collector("a"), collector("b"));
    let engine = engine(store, vec![a.clone(), b.clone()]);
    append(store, 1).await;
    engine.set_up(&Criteria::all(), skip_booting).await.unwrap();
    let moved = match skip_booting {
        true => engine.run(&id("b"), Some(1)).await,
        false => engine.boot(&id("b"), Some(1)).await,
    };
    assert_eq!(only(moved.unwrap()), Outcome::LimitReached { events: 1 });
    let status = if skip_booting { Status::Active } else { Status::Booting };
    assert_eq!((stands(&engine, "a").await, stands(&engine, "b").await), ((status, 0), (status, 1)));
    (engine, a, b)
}

/// Does what was asked for first and second in one handler, and fails after that until it is mended.
async fn first_and_second(context: &mut Context<'_>, fails: bool) -> Result<(), BoxError> {
    for number in [1_i64, 2] {
        context.execute("done", "INSERT INTO {t} (number) VALUES ($1)", (number,)).await?;
    }
    if fails { Err("the second one failed".into()) } else { Ok(()) }
}

both! {
    async fn pl_025_boot_gives_each_what_it_has_not_had(database: TestDatabase) {
        let store = database.store().await;
        let (engine, a, b) = a_behind_b(&store, false).await;

        engine.boot(&Criteria::all(), None).await.unwrap();

        for id in ["a", "b"] {
            assert_eq!(stands(&engine, id).await, (Status::Active, 1), "{id}");
        }
        assert_eq!((a.calls(), b.calls()), (1, 1));
    }

    async fn pl_036_run_gives_each_what_it_has_not_had(database: TestDatabase) {
        let store = database.store().await;
        let (engine, a, b) = a_behind_b(&store, true).await;

        engine.run(&Criteria::all(), None).await.unwrap();

        assert_eq!((a.positions(&store).await, b.positions(&store).await), (vec![1], vec![1]));
        assert_eq!((a.calls(), b.calls()), (1, 1));
    }

    async fn pl_031_booting_twice_works_also_after_a_failure(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let (good, bad) = (Failing::new(Definition::projector("good"), []), Failing::new(Definition::projector("bad"), [1]));
        let engine = engine(&store, vec![good.clone(), bad.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let report = engine.boot(&Criteria::all(), None).await.unwrap();
        assert!(matches!(report[0].1, Outcome::Failed { .. }), "{report:?}");

        let report = engine.boot(&Criteria::all(), None).await.unwrap();
        assert!(matches!(&report[..], [(id, Outcome::Waiting { .. })] if id == "bad"), "{report:?}");

        bad.mend();
        store.clock().set(T0.plus(Duration::from_secs(5))).await.unwrap();
        assert_eq!(only(engine.boot(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 1 });
        assert_eq!((stands(&engine, "bad").await, good.calls()), ((Status::Active, 1), 1));
    }

    async fn pl_032_boot_leaves_alone_what_has_no_code(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        engine(&store, vec![idle("a")]).set_up(&Criteria::all(), false).await.unwrap();
        let later = engine(&store, vec![]);

        let outcome = only(later.boot(&Criteria::all(), None).await.unwrap());

        assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
        assert_eq!(stands(&later, "a").await, (Status::Booting, 0));
        later.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(stands(&later, "a").await, (Status::Detached, 0), "by the next run of the same program");
    }

    async fn pl_051_a_handler_that_fails_half_way_is_undone_as_a_whole(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let definition = Definition::projector("a").with_table("done", "done_by_a");
        let twofold = Scripted::new(definition, move |_, context| {
            let fails = counted.fetch_add(1, Ordering::Relaxed) == 0;
            Box::pin(first_and_second(context, fails))
        })
        .with_setup(|context| Box::pin(async move {
            context.execute("done", "CREATE TABLE {t} (number BIGINT PRIMARY KEY)", ()).await?;
            Ok(())
        }));
        let engine = engine(&store, vec![Arc::new(twofold)]);
        append(&store, 1).await;
        let done = async || {
            let rows: Vec<(i64,)> = store.database().fetch_all("SELECT number FROM done_by_a ORDER BY number", ()).await.unwrap();
            rows.into_iter().map(|row| row.0).collect::<Vec<_>>()
        };
        engine.set_up(&Criteria::all(), true).await.unwrap();
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(stands(&engine, "a").await, (Status::Error, 0));
        assert_eq!(done().await, [0_i64; 0], "neither is done");

        store.clock().set(T0.plus(Duration::from_secs(5))).await.unwrap();
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!((done().await, calls.load(Ordering::Relaxed)), (vec![1, 2], 2));
    }

    /// Its session is gone when it comes to commit; on SQLite, which has none, the driver says the like.
    async fn pl_055_a_connection_lost_at_the_commit_is_nobodys_failure(database: TestDatabase) {
        let store = database.store().await;
        let outside = store.clone();
        let unlucky = Scripted::new(Definition::projector("a"), move |_, context| {
            let outside = outside.clone();
            Box::pin(async move {
                let tx = context.tx().await?;
                if tx.kind() == DatabaseKind::Sqlite {
                    return Err(sqlx::Error::WorkerCrashed.into());
                }
                let (session,) = tx.fetch_optional::<(i32,)>("SELECT pg_backend_pid()", ()).await?.unwrap();
                let terminate = "SELECT pg_terminate_backend($1, 5000)";
                outside.database().fetch_optional::<(bool,)>(terminate, (session,)).await?;
                Ok(())
            })
        });
        let b = Collector::new(Definition::projector("b"));
        let engine = engine(&store, vec![Arc::new(unlucky), b.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), true).await.unwrap();
        let before = look(&engine, "a").await;

        let report = engine.run(&Criteria::all(), None).await.unwrap();

        assert!(matches!(report[0].1, Outcome::Waiting { .. }), "{report:?}");
        assert_eq!(report[1], ("b".to_owned(), Outcome::CaughtUp { events: 1 }));
        assert_eq!(look(&engine, "a").await, before);
        assert_eq!(b.positions(&store).await, [1]);
    }

    /// The handler is content; what the engine does for it afterwards fails.
    async fn pl_056_what_fails_after_the_handler_fails_this_one_only(database: TestDatabase) {
        let store = database.store().await;
        let content = Scripted::new(Definition::projector("a"), |events, context| {
            Box::pin(async move {
                let payload = Json::of(&"x".repeat(store::MAX_PAYLOAD_BYTES + 1))?;
                context.because_of(&events[0]).append(&stream("a-1"), ExpectedVersion::Any, "Noted", payload)?;
                Ok(())
            })
        });
        let b = Collector::new(Definition::projector("b"));
        let engine = engine(&store, vec![Arc::new(content), b.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), true).await.unwrap();

        let report = engine.run(&Criteria::all(), None).await.unwrap();

        assert!(matches!(&report[0], (id, Outcome::Failed { .. }) if id == "a"), "{report:?}");
        let now = look(&engine, "a").await;
        assert!(matches!(now.state, State::Error { resume: Resume::Active, .. }), "{now:?}");
        assert_eq!(failure_of(&engine, "a").await.event.unwrap().position.0, 1);
        assert_eq!((report[1].1.clone(), b.positions(&store).await), (Outcome::CaughtUp { events: 1 }, vec![1]));
    }

    async fn pl_104_units_of_one_event(database: TestDatabase) {
        let store = database.store().await;
        let collector = Failing::new(Definition::projector("a"), []);
        let settings = Settings { unit_events: 1, ..Settings::default() };
        let engine = engine(&store, vec![collector.clone()]).with_settings(settings);
        append(&store, 2).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();

        assert_eq!(only(engine.boot(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 2 });

        assert_eq!((collector.calls(), stands(&engine, "a").await), (2, (Status::Active, 2)));
    }

    /// The policy decides about the one event, also where a page has others.
    async fn pl_113_the_poison_policy_holds_for_one_event_of_a_page(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![picky(parking(), &Bad::at([2]))]);
        happened(&store, "a-1 b-1 c-1").await;
        engine.set_up(&Criteria::all(), true).await.unwrap();

        let outcome = only(engine.run(&Criteria::all(), None).await.unwrap());

        assert!(matches!(&outcome, Outcome::Parked { events: 2, parked, .. } if parked.letters == 1), "{outcome:?}");
        assert_eq!((handled(&store).await, letters(&engine).await.len()), (vec![1, 3], 1));
        assert_eq!(look(&engine, "picky").await.state, State::Active);
    }

    async fn pl_119_only_what_is_wanted_is_loaded(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("a").on(["X", "X1"]));
        let engine = engine(&store, vec![collector.clone()]);
        append_typed(&store, "thing-1", &["X", "Y", "X1", "Y"]).await;
        engine.set_up(&Criteria::all(), true).await.unwrap();

        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 2 });

        assert_eq!(collector.positions(&store).await, [1, 3]);
        assert_eq!(stands(&engine, "a").await, (Status::Active, 4), "at the end of what was scanned");
    }

    async fn pl_120_who_wants_everything_gets_everything(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("a"));
        let engine = engine(&store, vec![collector.clone()]);
        append_typed(&store, "thing-1", &["X", "Y"]).await;
        append_typed(&store, "other-1", &["Z"]).await;
        engine.set_up(&Criteria::all(), true).await.unwrap();

        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 3 });

        assert_eq!(collector.positions(&store).await, positions(3));
    }

    /// The answer to the first event comes in the second round, and both are counted.
    async fn pl_122_catching_up_counts_what_all_rounds_handled(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("a"));
        let engine = engine(&store, vec![collector.clone(), answering("b")]);
        append(&store, 1).await;

        let report = engine.catch_up(&Criteria::all()).await.unwrap();

        let handled = |events| Outcome::CaughtUp { events };
        assert_eq!(report, [("a".to_owned(), handled(2)), ("b".to_owned(), handled(1))]);
        assert_eq!(collector.positions(&store).await, [1, 2]);
    }

    async fn pl_124_catching_up_sets_up_once(database: TestDatabase) {
        let store = database.store().await;
        let (a, calls) = counting_setups("a");
        let engine = engine(&store, vec![a]);
        append(&store, 1).await;

        let report = engine.catch_up(&Criteria::all()).await.unwrap();

        assert_eq!((only(report), calls.load(Ordering::Relaxed)), (Outcome::CaughtUp { events: 1 }, 1));
    }
}
