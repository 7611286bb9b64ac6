//! Handlers that end their process: they stop in error like any other, and do not take everybody with them for ever.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use store::{Position, Timestamp};
use subscription_engine::{Criteria, Definition, Engine, Outcome, RetryStrategy, State, Worker};
use testkit::{Collector, Scripted, TestDatabase, both, position, positions};
use tokio::process::{Child, Command};

use crate::engine::{Running, append, engine, look, only, until};

/// Names the database to the process that is to die.
const URL: &str = "HERALD_TEST_CUT_URL";
/// Where it dies, and how often an event is tried again.
const POISON: i64 = 300;
const RETRIES: u32 = 2;

/// A subscriber that collects, and aborts its process at one event; and one beside it that does nothing bad.
fn engine_with_a_killer(store: &store::Store) -> (Engine, Arc<Collector>) {
    let retry = RetryStrategy::ClockBased {
        base_delay: Duration::from_millis(10),
        delay_factor: 1.0,
        max_attempts: RETRIES,
        max_delay: None,
    };
    let killer = Scripted::new(Definition::projector("killer").with_retry(retry), |events, _| {
        if events.iter().any(|event| event.position == Position(POISON)) {
            std::process::abort();
        }
        Box::pin(async { Ok(()) })
    });
    let bystander = Collector::new(Definition::projector("bystander"));
    (engine(store, vec![Arc::new(killer), bystander.clone()]), bystander)
}

/// A process that runs one of those below that are no tests.
fn process(database: &TestDatabase, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("engine_cut::{name}"), "--nocapture"])
        .env(URL, database.url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

fn start(database: &TestDatabase) -> Child {
    process(database, "a_process_that_may_die").spawn().unwrap()
}

/// Lets workers die until one has left behind that it died of one event, and nothing else.
async fn die_of_one_event(database: &TestDatabase, store: &store::Store) {
    let sql = "SELECT position FROM herald_unit_markers WHERE subscription_id = 'killer' AND events = 1";
    for _ in 0..20 {
        start(database).wait().await.unwrap();
        if store.database().fetch_optional::<(i64,)>(sql, ()).await.unwrap() == Some((POISON,)) {
            return;
        }
    }
    panic!("no process died of a single event");
}

/// Not a test: the worker that is started by the one below, as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_may_die() {
    let Ok(url) = std::env::var(URL) else { return };
    let store = TestDatabase::at(&url).open().await;
    let (engine, _) = engine_with_a_killer(&store);
    Worker::new(engine, Criteria::all(), "test").run(std::future::pending(), || ()).await.unwrap();
}

/// Not a test: a worker that waits within its first event until it is told to go on, as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_waits() {
    let Ok(url) = std::env::var(URL) else { return };
    let store = TestDatabase::at(&url).open().await;
    let waiting = Scripted::new(Definition::projector("waiting"), |_, _| {
        Box::pin(async {
            let mut told = String::new();
            tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut told)).await??;
            Ok(())
        })
    });
    let engine = engine(&store, vec![Arc::new(waiting)]);
    Worker::new(engine, Criteria::all(), "test").run(std::future::pending(), || ()).await.unwrap();
}

/// E-34: nobody died because connections are cut or the server is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e34_a_lost_server_is_no_death() {
    let name = "e34_a_lost_server_is_no_death";
    let Some(cluster) = testkit::own_postgres_or_left_out(name) else { return };
    let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
    let definition = || Definition::projector("waiting").with_retry(RetryStrategy::None);
    let here = |store: &store::Store| engine(store, vec![Collector::new(definition())]);
    let waiting = Criteria::id("waiting");
    let store = database.store().await;
    append(&store, 3).await;
    here(&store).set_up(&waiting, false).await.unwrap();
    // Its row is left behind, so that whoever comes next is careful.
    Running::start_for(&here(&store), Criteria::id("nobody")).await.kill().await;
    let mut worker = process(&database, "a_process_that_waits").stdin(Stdio::piped()).spawn().unwrap();
    let mut wake = store.wake();
    let sql = "SELECT position, events FROM herald_unit_markers WHERE subscription_id = 'waiting'";
    loop {
        wake.arm();
        match store.database().fetch_optional::<(i64, i64)>(sql, ()).await.unwrap() {
            Some(marked) => break assert_eq!(marked, (1, 1)),
            None => wake.wait(Duration::from_millis(20)).await,
        }
        assert_eq!(worker.try_wait().unwrap(), None, "it is to wait");
    }

    let cut = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    store.database().fetch_optional::<(i64,)>(cut, ()).await.unwrap();
    let store = database.open().await;
    let outcome = only(here(&store).boot(&waiting, None).await.unwrap());
    assert_eq!(outcome, Outcome::Busy, "it lives, and is at it");

    tokio::task::block_in_place(|| cluster.restart_immediate()).unwrap();
    let store = database.open().await;
    let outcome = only(here(&store).boot(&waiting, None).await.unwrap());
    assert_eq!(outcome, Outcome::CaughtUp { events: 3 });
    let history = here(&store).history("waiting", 100).await.unwrap();
    assert!(history.iter().all(|line| line.to_status != "error"), "{history:?}");
    worker.kill().await.unwrap();
}

/// Not a test: somebody who moves everything by hand once, as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catch_up_that_may_die() {
    let Ok(url) = std::env::var(URL) else { return };
    let store = TestDatabase::at(&url).open().await;
    let (engine, _) = engine_with_a_killer(&store);
    engine.catch_up(&Criteria::all()).await.unwrap();
}

both! {
    /// E-34, E-08: moved by hand after a worker has died, the very event is found as well.
    async fn e34_what_is_moved_by_hand_is_as_careful_as_a_worker(database: TestDatabase) {
        let store = database.store().await;
        let (engine, _) = engine_with_a_killer(&store);
        append(&store, 400).await;
        Running::start_for(&engine, Criteria::id("nobody")).await.kill().await;
        for starts in 1.. {
            assert!(starts <= 40, "it dies again and again: {:?}", look(&engine, "killer").await);
            process(&database, "a_catch_up_that_may_die").status().await.unwrap();
            if let State::Error { next_retry: None, .. } = look(&engine, "killer").await.state {
                break;
            }
        }
        let now = look(&engine, "killer").await;
        assert_eq!((position(&now), now.attempt), (POISON - 1, RETRIES));
    }

    /// E-34, E-11, E-14: a marker that was written for an earlier life says nothing of this one, whoever may be at it.
    async fn e34_a_marker_of_an_earlier_life_is_not_believed(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 3).await;
        let collector = Collector::new(Definition::projector("again").with_retry(RetryStrategy::None));
        let engine = engine(&store, vec![collector]);
        let again = Criteria::id("again");
        engine.set_up(&again, false).await.unwrap();
        let now = look(&engine, "again").await.changed_at;
        let before = Timestamp::from_micros(now.as_micros() - 1);
        let leave = async |at: Timestamp| {
            let sql = "INSERT INTO herald_unit_markers (subscription_id, position, events, runner, row_changed_at, marked_at)
                       VALUES ('again', 1, 1, 'somewhere else', $1, {now})";
            store.database().execute(sql, (at,)).await.unwrap();
        };
        leave(now).await;
        assert_eq!(only(engine.boot(&again, None).await.unwrap()), Outcome::Busy, "it may be at it");
        let replayed = engine.replay("again", "test", |_, _| {}).await.unwrap();
        assert_eq!(replayed, Outcome::CaughtUp { events: 3 }, "a replay is another life");

        engine.remove(&again, "test").await.unwrap();
        engine.set_up(&again, false).await.unwrap();
        leave(before).await;
        assert_eq!(only(engine.boot(&again, None).await.unwrap()), Outcome::CaughtUp { events: 3 });
    }

    /// E-34: the process is started again each time, as a supervisor would, and the very event is found.
    async fn e34_a_handler_that_kills_its_process_ends_in_error(database: TestDatabase) {
        let store = database.store().await;
        let (engine, bystander) = engine_with_a_killer(&store);
        append(&store, 400).await;
        let mut starts = 0;
        loop {
            starts += 1;
            // The first page is halved about a dozen times, and each attempt costs a process.
            assert!(starts <= 20, "it dies again and again: {:?}", look(&engine, "killer").await);
            let mut worker = start(&database);
            tokio::select! {
                _ = worker.wait() => {}
                () = until(&engine, "killer", |now| matches!(now.state, State::Error { next_retry: None, .. })) => {
                    break;
                }
            }
        }
        let now = look(&engine, "killer").await;
        assert_eq!((position(&now), now.attempt), (POISON - 1, RETRIES));
        let State::Error { failure, .. } = now.state else { panic!("{now:?}") };
        assert_eq!(failure.event.unwrap().position, Position(POISON));
        assert_eq!(failure.chain, ["the process ended while this event was handled"]);
        assert!(starts >= 3, "an attempt is an attempt: {starts}");

        let worker = start(&database);
        until(&engine, "bystander", |now| position(now) == 400).await;
        assert_eq!(bystander.positions(&store).await, positions(400));
        drop(worker);
    }

    /// E-34, E-11, E-16: that a process died of an event says nothing of those before it once a subscription starts over.
    async fn e34_what_is_started_over_after_a_cut_handles_everything(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 400).await;
        let again = Collector::new(Definition::projector("killer"));
        let engine = engine(&store, vec![again.clone()]);
        let killer = Criteria::id("killer");

        die_of_one_event(&database, &store).await;
        engine.remove(&killer, "test").await.unwrap();
        engine.catch_up(&killer).await.unwrap();
        assert_eq!(again.positions(&store).await, positions(400), "after it was removed");

        // A marker that outlives a rewind, as one of a program of before does.
        engine.remove(&killer, "test").await.unwrap();
        engine.set_up(&killer, false).await.unwrap();
        die_of_one_event(&database, &store).await;
        let sql = "UPDATE herald_subscriptions SET position = NULL, position_event_id = NULL WHERE id = 'killer'";
        store.database().execute(sql, ()).await.unwrap();
        engine.catch_up(&killer).await.unwrap();
        assert_eq!(again.positions(&store).await, positions(400), "after its position was set back");
    }
}
