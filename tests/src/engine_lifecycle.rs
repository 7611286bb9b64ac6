//! What operators do with subscriptions: set up, boot, run, pause, reactivate, remove, tear down.

use std::sync::Arc;
use std::time::Duration;

use store::{Sql, Store, TableName};
use subscription_engine::{
    Criteria, Definition, Engine, Failure, Outcome, Report, RunMode, State, Status, Subscriber,
};
use testkit::{Collector, Failing, Scripted, T0, both, position, positions};

use crate::engine::{append, engine, look, only, status};
use crate::engine_failure::failure_of;

pub(crate) fn became(from: Status, to: Status) -> Outcome {
    Outcome::Became { from, to }
}

pub(crate) fn refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { .. })
}

pub(crate) fn cannot_be_set_up(definition: Definition) -> Arc<dyn Subscriber> {
    Arc::new(Scripted::idle(definition).with_setup(|_| Box::pin(async { Err("no setup today".into()) })))
}

/// Whether a table is there.
pub(crate) async fn has_table(store: &Store, name: &str) -> bool {
    let table = TableName::new(name).unwrap();
    let rows: Result<Vec<(i64,)>, _> =
        store.database().fetch_all(Sql::named("SELECT COUNT(*) FROM {t}", &table), ()).await;
    rows.is_ok()
}

async fn run(engine: &Engine, limit: u64) -> Outcome {
    only(engine.run(&Criteria::all(), Some(limit)).await.unwrap())
}

both! {
    /// PL-001, PL-020, PL-033: nothing to do is said as such.
    async fn pl_001_pl_020_pl_033_nothing_to_do(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![]);
        append(&store, 1).await;
        assert_eq!(engine.set_up(&Criteria::all(), false).await.unwrap(), Report::new());
        assert_eq!(engine.boot(&Criteria::all(), None).await.unwrap(), Report::new());
        assert_eq!(engine.run(&Criteria::all(), None).await.unwrap(), Report::new());
    }

    /// PL-008, PL-009, E-03: from now is the head before `setup`, so nothing appended meanwhile is lost.
    async fn pl_008_pl_009_e03_from_now_begins_at_the_head_before_setup(database: TestDatabase) {
        let store = database.store().await;
        let (entered, is_entered) = tokio::sync::oneshot::channel();
        let entered = std::sync::Mutex::new(Some(entered));
        let (go_on, gate) = tokio::sync::watch::channel(false);
        let slow = Scripted::idle(Definition::processor("slow")).with_setup(move |_| {
            let entered = entered.lock().unwrap().take();
            let mut gate = gate.clone();
            Box::pin(async move {
                entered.ok_or("set up twice")?.send(()).map_err(|()| "nobody waits")?;
                gate.wait_for(|open| *open).await?;
                Ok(())
            })
        });
        let early = Scripted::idle(Definition::processor("early"));
        let engine = engine(&store, vec![Arc::new(slow), Arc::new(early)]);
        engine.set_up(&Criteria::id("early"), false).await.unwrap();
        assert_eq!(look(&engine, "early").await.position, Some(store::Position(0)));

        append(&store, 2).await;
        let operator = engine.clone();
        let setting_up = tokio::spawn(async move { operator.set_up(&Criteria::id("slow"), false).await });
        is_entered.await.unwrap();
        // On SQLite this waits until the set-up is done; on PostgreSQL it is done while it goes on.
        let appender = store.clone();
        let appending = tokio::spawn(async move { append(&appender, 1).await });
        if database.is_postgres() {
            appending.await.unwrap();
            go_on.send_replace(true);
        } else {
            go_on.send_replace(true);
            appending.await.unwrap();
        }
        assert_eq!(only(setting_up.await.unwrap().unwrap()), became(Status::New, Status::Active));
        assert_eq!(position(&look(&engine, "slow").await), 2);
        assert_eq!(only(engine.run(&Criteria::id("slow"), None).await.unwrap()), Outcome::CaughtUp { events: 1 });
    }

    /// PL-021, PL-034, PL-103: events are handled in units, each in one transaction.
    async fn pl_021_pl_034_pl_103_units(database: TestDatabase) {
        let store = database.store().await;
        let collector = Failing::new(Definition::projector("collector"), []);
        let engine = engine(&store, vec![collector.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        assert_eq!(only(engine.boot(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 1 });
        let now = look(&engine, "collector").await;
        assert_eq!((now.state.status(), position(&now), collector.calls()), (Status::Active, 1, 1));

        append(&store, 4).await;
        let settings = subscription_engine::Settings { unit_events: 2, ..Default::default() };
        let engine = engine.with_settings(settings);
        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 4 });
        assert_eq!(collector.calls(), 3);
        assert_eq!(collector.positions(&store).await, positions(5));
    }

    /// PL-022, PL-037, PL-105: a handler that fails leaves everything as it was, and the outcome says so.
    async fn pl_022_pl_037_pl_105_a_failure_is_an_outcome(database: TestDatabase) {
        let store = database.store().await;
        let booting = Failing::new(Definition::projector("booting"), [1]);
        let active = Failing::new(Definition::projector("active"), [1]);
        let engine = engine(&store, vec![booting, active]);
        append(&store, 1).await;
        engine.set_up(&Criteria::id("active"), true).await.unwrap();
        engine.set_up(&Criteria::id("booting"), false).await.unwrap();
        let all = Criteria::all();
        let failed = |report| matches!(only(report), Outcome::Failed { failure: Failure { event: Some(_), .. } });
        assert!(failed(engine.boot(&all, None).await.unwrap()));
        assert!(failed(engine.run(&all, None).await.unwrap()));
        for (id, resume) in [("booting", subscription_engine::Resume::Booting), ("active", subscription_engine::Resume::Active)] {
            let now = look(&engine, id).await;
            assert_eq!((now.position, now.attempt, now.state.resume()), (None, 0, resume));
        }
    }

    /// PL-023, PL-024, PL-035, PL-048: a limit is a limit, and the last step is the one that says it is done.
    async fn pl_023_pl_024_pl_035_pl_048_limits(database: TestDatabase) {
        let store = database.store().await;
        let projector = Scripted::idle(Definition::projector("projector"));
        let first = engine(&store, vec![Arc::new(projector)]);
        append(&store, 2).await;
        first.set_up(&Criteria::all(), false).await.unwrap();
        let boot = async || only(first.boot(&Criteria::all(), Some(1)).await.unwrap());
        for at in [1, 2] {
            assert_eq!(boot().await, Outcome::LimitReached { events: 1 });
            assert_eq!((status(&first, "projector").await, position(&look(&first, "projector").await)), (Status::Booting, at));
        }
        assert_eq!(boot().await, Outcome::CaughtUp { events: 0 });
        assert_eq!(status(&first, "projector").await, Status::Active);
        append(&store, 2).await;
        assert_eq!(run(&first, 1).await, Outcome::LimitReached { events: 1 });
        assert_eq!(position(&look(&first, "projector").await), 3);

        let once = Scripted::idle(Definition::plain("once", RunMode::Once));
        let second = engine(&store, vec![Arc::new(once)]);
        second.set_up(&Criteria::id("once"), true).await.unwrap();
        let report = second.run(&Criteria::id("once"), Some(1)).await.unwrap();
        assert_eq!(only(report), Outcome::LimitReached { events: 1 });
        assert_eq!(status(&second, "once").await, Status::Active);
    }

    /// PL-028: each from its own position; at the head of an empty log it has not begun.
    async fn pl_028_each_from_its_own_position(database: TestDatabase) {
        let store = database.store().await;
        let (a, b) = (Collector::new(Definition::projector("a")), Collector::new(Definition::projector("b")));
        let first = engine(&store, vec![a.clone()]);
        first.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!((status(&first, "a").await, look(&first, "a").await.position), (Status::Active, None));
        append(&store, 1).await;
        first.catch_up(&Criteria::all()).await.unwrap();
        let both = engine(&store, vec![a.clone(), b.clone()]);
        both.catch_up(&Criteria::all()).await.unwrap();
        for id in ["a", "b"] {
            assert_eq!(position(&look(&both, id).await), 1);
        }
        assert_eq!(a.positions(&store).await, [1]);
        assert_eq!(b.positions(&store).await, [1]);
    }

    /// PL-027, PL-047, PL-090: once is done at the head, and again when it is reactivated.
    async fn pl_027_pl_047_pl_090_once(database: TestDatabase) {
        let store = database.store().await;
        let once = Collector::new(Definition::plain("once", RunMode::Once));
        let engine = engine(&store, vec![once.clone()]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "once").await, Status::Finished);
        append(&store, 1).await;
        assert_eq!(engine.run(&Criteria::all(), None).await.unwrap(), Report::new());
        assert_eq!(only(engine.reactivate(&Criteria::all(), "again").await.unwrap()), became(Status::Finished, Status::Active));
        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 1 });
        assert_eq!(status(&engine, "once").await, Status::Finished);
        assert_eq!(once.positions(&store).await, [1, 2]);
    }

    /// E-10: what is paused or in error goes on as what it was, healed.
    async fn e10_pause_and_reactivate(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let booting = Collector::new(Definition::projector("booting"));
        let active = Collector::new(Definition::projector("active"));
        let error = Failing::new(Definition::projector("error"), [1]);
        let new = cannot_be_set_up(Definition::projector("new"));
        let engine = engine(&store, vec![booting, active, error.clone(), new]);
        append(&store, 2).await;
        let all = Criteria::all();
        engine.set_up(&Criteria::id("active"), true).await.unwrap();
        engine.set_up(&all, false).await.unwrap();
        engine.boot(&Criteria::id("error"), None).await.unwrap();
        engine.boot(&Criteria::id("booting"), Some(1)).await.unwrap();

        let report = engine.pause(&all, "lunch").await.unwrap();
        assert!(report.iter().all(|(_, outcome)| matches!(outcome, Outcome::Became { to: Status::Paused, .. })), "{report:?}");
        append(&store, 1).await;
        store.clock().set(T0.plus(Duration::from_secs(3600))).await.unwrap();
        assert!(engine.pause(&all, "again").await.unwrap().iter().all(|(_, outcome)| refused(outcome)));
        for report in [engine.set_up(&all, false).await, engine.boot(&all, None).await, engine.run(&all, None).await] {
            assert_eq!(report.unwrap(), Report::new(), "nothing moves while it is paused");
        }
        assert_eq!(error.calls(), 2, "not even what was due");

        let engine = engine.on_behalf_of("ada");
        let report = engine.reactivate(&all, "lunch is over").await.unwrap();
        let to = |status| Outcome::Became { from: Status::Paused, to: status };
        assert_eq!(report.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>(), [
            to(Status::Active), to(Status::Booting), to(Status::Booting), to(Status::New),
        ]);
        for (id, at) in [("active", 0), ("booting", 1), ("error", 0), ("new", 0)] {
            let now = look(&engine, id).await;
            assert_eq!((now.attempt, now.failing_position, position(&now)), (0, None, at), "{id}");
        }
        let line = engine.history("booting", 1).await.unwrap().remove(0);
        assert_eq!((line.from_status.as_deref(), line.to_status.as_str()), (Some("paused"), "booting"));
        assert_eq!((line.why.as_str(), line.who.as_str(), line.position), ("lunch is over", "ada", Some(store::Position(1))));
        assert_eq!(line.at, T0.plus(Duration::from_secs(3600)));
    }

    /// E-10: what gave up goes on when it is reactivated; what does no work cannot be paused.
    async fn e10_reactivation_after_giving_up(database: TestDatabase) {
        let store = database.store().await;
        let definition = Definition::projector("failing").with_retry(subscription_engine::RetryStrategy::None);
        let failing = Failing::new(definition, [2]);
        let done = Scripted::idle(Definition::plain("done", RunMode::Once));
        let engine = engine(&store, vec![failing.clone(), Arc::new(done)]);
        append(&store, 3).await;
        engine.discover().await.unwrap();
        assert!(refused(&only(engine.pause(&Criteria::id("done"), "new").await.unwrap())));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert!(refused(&only(engine.pause(&Criteria::id("done"), "finished").await.unwrap())));
        failing.mend();
        engine.reactivate(&Criteria::id("failing"), "mended").await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((now.state.status(), now.attempt, position(&now)), (Status::Booting, 0, 1));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(failing.positions(&store).await, positions(3));
    }

    /// PL-080, PL-085: removal tears down, and what is still in the code comes back as new.
    async fn pl_080_pl_085_remove(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![collector.clone()]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert!(has_table(&store, "collected_collector").await);
        assert_eq!(only(engine.remove(&Criteria::all(), "no use").await.unwrap()), Outcome::Removed { failure: None });
        assert!(!has_table(&store, "collected_collector").await);
        let now = look(&engine, "collector").await;
        assert_eq!((now.state, now.position, now.attempt), (State::New, None, 0));
        let history = engine.history("collector", 9).await.unwrap();
        assert_eq!((history.last().unwrap().to_status.as_str(), history.last().unwrap().why.as_str()), ("removed", "no use"));
    }

    /// PL-081, PL-082: removal calls no teardown on what is new, and is not stopped by one that fails.
    async fn pl_081_pl_082_remove_without_a_teardown(database: TestDatabase) {
        let store = database.store().await;
        let failing = Scripted::idle(Definition::projector("a").with_table("t", "t_a"))
            .with_setup(|context| Box::pin(async move {
                context.tx().await?.execute("CREATE TABLE t_a (n BIGINT)", ()).await?;
                Ok(())
            }))
            .with_teardown(|context| Box::pin(async move {
                context.tx().await?.execute("INSERT INTO t_a VALUES (1)", ()).await?;
                context.tx().await?.execute("INSERT INTO nowhere VALUES (1)", ()).await?;
                Ok(())
            }));
        let engine = engine(&store, vec![Arc::new(failing)]);
        engine.discover().await.unwrap();
        assert_eq!(only(engine.remove(&Criteria::all(), "new").await.unwrap()), Outcome::Removed { failure: None });
        engine.catch_up(&Criteria::all()).await.unwrap();
        let outcome = only(engine.remove(&Criteria::all(), "set up").await.unwrap());
        assert!(matches!(&outcome, Outcome::Removed { failure: Some(_) }), "{outcome:?}");
        assert_eq!(look(&engine, "a").await.state, State::New);
    }

    /// PL-052, PL-057, PL-144: in the order of ids, each by itself; criteria are an OR inside a list and
    /// an AND between the lists.
    async fn pl_052_pl_057_pl_144_order_and_criteria(database: TestDatabase) {
        let store = database.store().await;
        let of = |id: &str, group: &str| Failing::new(Definition::projector(id).in_group(group), [1]);
        let (c, a, b) = (of("c", "x"), of("a", "x"), of("b", "y"));
        b.mend();
        let engine = engine(&store, vec![c, a, b.clone()]);
        append(&store, 1).await;
        let report = engine.catch_up(&Criteria::all()).await.unwrap();
        assert!(report.iter().all(|(_, outcome)| !matches!(outcome, Outcome::Failed { .. })), "the last round is quiet");
        assert_eq!(b.positions(&store).await, [1]);
        assert_eq!(failure_of(&engine, "a").await.chain, ["cannot digest position 1"]);

        let list = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (ids, groups, expected) in [
            (None, None, vec!["a", "b", "c"]),
            (list(&["c", "a"]), None, vec!["a", "c"]),
            (None, list(&["y", "x"]), vec!["a", "b", "c"]),
            (list(&["a", "b"]), list(&["y"]), vec!["b"]),
            (list(&[]), None, vec![]),
            (None, list(&[]), vec![]),
        ] {
            let overviews = engine.status(&Criteria { ids, groups }).await.unwrap();
            let ids: Vec<String> = overviews.into_iter().map(|one| one.subscription.id).collect();
            assert_eq!(ids, expected);
        }
    }
}
