//! What gets in the way of a unit: locks, broken connections, slow neighbours, and a busy SQLite file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::{DatabaseKind, Options, Store};
use subscription_engine::{Criteria, Definition, Outcome, RunMode, Settings, Status, Subscriber};
use testkit::{Collector, Failing, Held, Scripted, T0, TestDatabase, both, position, positions};

use crate::engine::{Running, append, engine, look, only, until};

/// A handle with few connections to a log that is there already.
async fn with_connections(database: &TestDatabase, connections: u32) -> Store {
    let options = Options { connections, ..Options::default() };
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    Store::open(database.url(), &options, &migrations).await.unwrap()
}

both! {
    /// E-34: the connection of a unit breaks: nothing changed, nothing counts, and it goes on by itself.
    async fn e34_a_broken_connection_is_nobodys_failure(database: TestDatabase) {
        let store = database.store().await;
        let outside = store.clone();
        let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let unlucky = Scripted::new(Definition::projector("unlucky"), move |_, context| {
            let (outside, broken) = (outside.clone(), Arc::clone(&broken));
            Box::pin(async move {
                let first = !broken.swap(true, std::sync::atomic::Ordering::Relaxed);
                let tx = context.tx().await?;
                if first && tx.kind() == DatabaseKind::Postgres {
                    let (session,) = tx.fetch_optional::<(i32,)>("SELECT pg_backend_pid()", ()).await?.unwrap();
                    outside.database().fetch_optional::<(bool,)>("SELECT pg_terminate_backend($1, 5000)", (session,)).await?;
                } else if first {
                    // As near as an embedded database comes to it.
                    return Err(sqlx::Error::WorkerCrashed.into());
                }
                tx.fetch_optional::<(i64,)>("SELECT COUNT(*) FROM herald_events", ()).await?;
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(unlucky)]);
        append(&store, 2).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let outcome = only(engine.boot(&Criteria::all(), None).await.unwrap());
        assert!(matches!(outcome, Outcome::Waiting { .. }), "{outcome:?}");
        let now = look(&engine, "unlucky").await;
        assert_eq!((now.state.status(), now.attempt, now.position), (Status::Booting, 0, None));
        let worker = Running::start(&engine).await;
        until(&engine, "unlucky", |now| position(now) == 2).await;
        worker.stop().await;
        let history = engine.history("unlucky", 9).await.unwrap();
        assert!(history.iter().all(|line| line.to_status != "error"), "{history:?}");
    }

    /// E-20, E-25: however many slow handlers there are, others read, append and ask for the status.
    async fn e20_slow_handlers_leave_connections_to_others(database: TestDatabase) {
        database.store().await;
        let store = with_connections(&database, 6).await;
        let held: Vec<_> = (0..8).map(|n| Held::before_writing(Definition::projector(format!("held_{n}")))).collect();
        let subscribers = held.iter().map(|held| held.clone() as Arc<dyn Subscriber>).collect();
        let engine = engine(&store, subscribers);
        append(&store, 1).await;
        let worker = Running::start(&engine).await;
        let at_once = if database.is_postgres() { 2 } else { 8 };
        let standing = || held.iter().filter(|held| held.calls() == 1).count();
        let mut wake = store.wake();
        while standing() < at_once {
            wake.wait(Duration::from_millis(10)).await;
        }
        append(&store, 1).await;
        assert_eq!(engine.status(&Criteria::all()).await.unwrap().len(), 8);
        assert_eq!(standing(), at_once, "no more than leaves room for others");
        for held in &held {
            held.let_go(2);
        }
        for n in 0..8 {
            until(&engine, &format!("held_{n}"), |now| position(now) == 2).await;
        }
        worker.stop().await;
    }

    /// E-20: whatever an operation does, it needs one connection at a time, also under a manual clock.
    async fn e20_one_connection_is_enough(database: TestDatabase) {
        database.store_with_manual_clock().await;
        let store = with_connections(&database, 1).await;
        let failing = Failing::new(Definition::projector("failing"), [3]);
        let once = Collector::new(Definition::plain("once", RunMode::Once));
        let engine = engine(&store, vec![failing.clone(), once, Collector::new(Definition::processor("now"))]);
        append(&store, 4).await;
        let all = Criteria::all();
        engine.catch_up(&all).await.unwrap();
        engine.set_clock(T0.plus(Duration::from_secs(60)), Duration::from_secs(60)).await.unwrap();
        engine.pause(&all, "test").await.unwrap();
        failing.mend();
        engine.reactivate(&all, "test").await.unwrap();
        engine.catch_up(&all).await.unwrap();
        assert_eq!(failing.positions(&store).await, positions(4));
        let replayed = engine.replay("failing", "test", |_, _| {}).await.unwrap();
        assert_eq!(replayed, Outcome::CaughtUp { events: 4 });
        assert_eq!(engine.remove(&all, "test").await.unwrap().len(), 3);
    }
}

/// E-34: another process holds the file for longer than a handler may take: that is not the handler's time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e34_a_locked_file_is_waited_for() {
    let database = TestDatabase::sqlite();
    let store = database.store().await;
    let collector = Collector::new(Definition::projector("collector"));
    let settings = Settings { time_limit: Duration::from_millis(100), ..Settings::default() };
    let engine = engine(&store, vec![collector.clone()]).with_settings(settings);
    append(&store, 1).await;
    engine.set_up(&Criteria::all(), false).await.unwrap();
    let lock = database.open().await.begin().await.unwrap();
    let outcome = only(engine.boot(&Criteria::all(), None).await.unwrap());
    assert!(matches!(&outcome, Outcome::Waiting { .. }), "{outcome:?}");
    lock.rollback().await;
    engine.catch_up(&Criteria::all()).await.unwrap();
    let now = look(&engine, "collector").await;
    assert_eq!((now.state.status(), now.attempt, position(&now)), (Status::Active, 0, 1));
}

/// E-20a: while one process works off a backlog, another one's append and pause get through within a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e20a_a_backlog_does_not_keep_others_out() {
    let database = TestDatabase::sqlite();
    let store = database.store().await;
    let slow = Scripted::new(Definition::projector("slow"), |_, context| {
        Box::pin(async move {
            let long = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000)
                        SELECT COUNT(*) FROM n";
            context.tx().await?.fetch_optional::<(i64,)>(long, ()).await?;
            Ok(())
        })
    });
    let settings = Settings { unit_events: 1, write_limit: Duration::from_secs(30), ..Settings::default() };
    let working = engine(&store, vec![Arc::new(slow)]).with_settings(settings);
    append(&store, 1_000).await;
    let other =
        engine(&database.store().await, vec![Arc::new(Scripted::idle(Definition::projector("slow")))]);
    let worker = Running::start(&working).await;
    until(&other, "slow", |now| position(now) >= 3).await;
    for _ in 0..5 {
        let start = Instant::now();
        append(other.store(), 1).await;
        assert!(start.elapsed() < Duration::from_secs(1), "appended after {:?}", start.elapsed());
    }
    let start = Instant::now();
    let outcome = only(other.pause(&Criteria::all(), "enough").await.unwrap());
    assert!(start.elapsed() < Duration::from_secs(1), "paused after {:?}", start.elapsed());
    assert!(matches!(outcome, Outcome::Became { to: Status::Paused, .. }), "{outcome:?}");
    assert!(position(&look(&other, "slow").await) < 1_000, "there was a backlog all the time");
    worker.stop().await;
}
