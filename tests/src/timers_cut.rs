//! Timers whose handler ends its process: they are found, count as failed attempts, and keep nobody from firing.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use store::{ExpectedVersion, Json, Store};
use subscription_engine::{
    BoxError, Context, Criteria, Definition, Engine, Poison, RetryStrategy, State, Timer, Worker,
};
use testkit::{Collector, Scripted, TestDatabase, both};
use tokio::process::{Child, Command};

use crate::engine::{append, append_typed, engine, look, until};
use crate::given::stream;

/// Names the database to the process that is to die, and whether the timer is to be held in the end.
const URL: &str = "HERALD_TEST_TIMERS_CUT_URL";
const PARKS: &str = "HERALD_TEST_TIMERS_CUT_PARKS";
const RETRIES: u32 = 2;
const KEYS: [&str; 9] = ["a", "b", "c", "d", "poison", "e", "f", "g", "h"];

/// Sets a timer for each key; all of them are due at once.
async fn set(events: &[store::Event], context: &mut Context<'_>) -> Result<(), BoxError> {
    for event in events {
        for key in KEYS {
            context.because_of(event).set_timer(key, event.recorded_at, Json::empty_object())?;
        }
    }
    Ok(())
}

/// Notes what fires, and ends the process at one of them.
async fn fire(timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
    for timer in timers {
        let fired = format!("Fired:{}", timer.key);
        context.because_of_timer(timer).append(
            &stream("fired"),
            ExpectedVersion::Any,
            &fired,
            Json::empty_object(),
        )?;
    }
    if timers.iter().any(|timer| timer.key == "poison") {
        std::process::abort();
    }
    Ok(())
}

fn engine_with_a_killer(store: &Store, poison: Poison) -> Engine {
    let retry = RetryStrategy::ClockBased {
        base_delay: Duration::from_millis(10),
        delay_factor: 1.0,
        max_attempts: RETRIES,
        max_delay: None,
    };
    let definition = Definition::projector("killer")
        .on(["Set", "Acme.Test:Happened"])
        .with_retry(retry)
        .with_poison(poison);
    let killer = Scripted::new(definition, |events, context| {
        Box::pin(async move {
            let set_them: Vec<store::Event> =
                events.iter().filter(|event| event.event_type == "Set").cloned().collect();
            set(&set_them, context).await
        })
    });
    let killer = killer.with_timers(|timers, context| Box::pin(fire(timers, context)));
    let bystander = Collector::new(Definition::projector("bystander").on(["Acme.Test:Happened"]));
    engine(store, vec![Arc::new(killer), bystander])
}

fn start(database: &TestDatabase, parks: bool) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "timers_cut::a_process_that_may_die_of_a_timer", "--nocapture"])
        .env(URL, database.url())
        .env(PARKS, if parks { "1" } else { "" })
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Not a test: the worker that is started by those below, as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_may_die_of_a_timer() {
    let Ok(url) = std::env::var(URL) else { return };
    let parks = std::env::var(PARKS).is_ok_and(|parks| parks == "1");
    let poison = if parks { Poison::park() } else { Poison::Stop };
    let engine = engine_with_a_killer(&TestDatabase::at(&url).open().await, poison);
    Worker::new(engine, Criteria::all(), "test").run(std::future::pending(), || ()).await.unwrap();
}

async fn fired(store: &Store) -> Vec<String> {
    let events = store.read_stream(&stream("fired"), 0, 100).await.unwrap();
    let mut fired: Vec<String> = events
        .into_iter()
        .filter_map(|event| Some(event.event_type.strip_prefix("Fired:")?.to_owned()))
        .collect();
    fired.sort();
    fired
}

/// Starts the process again each time it dies, as a supervisor would, until this holds.
async fn supervise(database: &TestDatabase, parks: bool, done: impl Future<Output = ()>) -> u32 {
    let mut starts = 0;
    tokio::pin!(done);
    loop {
        starts += 1;
        assert!(starts <= 20, "it dies again and again");
        let mut worker = start(database, parks);
        tokio::select! {
            _ = worker.wait() => {}
            () = &mut done => return starts,
        }
    }
}

/// All but the one that kills.
fn harmless() -> Vec<String> {
    KEYS.iter().filter(|key| **key != "poison").map(|key| (*key).to_owned()).collect()
}

/// What sets them is there before a worker is.
async fn all_set(engine: &Engine) {
    let store = engine.store();
    engine.set_up(&Criteria::all(), true).await.unwrap();
    append_typed(store, "thing-1", &["Set"]).await;
    append(store, 5).await;
}

both! {
    /// E-34, E-43: the attempts of the very timer are used up, and the subscription stops and names it.
    async fn e34_e43_a_timer_that_kills_its_process_ends_in_error(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine_with_a_killer(&store, Poison::Stop);
        all_set(&engine).await;
        let gave_up = until(&engine, "killer", |now| matches!(now.state, State::Error { next_retry: None, .. }));
        let starts = supervise(&database, false, gave_up).await;
        assert!(starts > RETRIES, "an attempt is an attempt: {starts}");
        let State::Error { failure, .. } = look(&engine, "killer").await.state else { panic!() };
        assert!(failure.message().starts_with("timer \"poison\", due "), "{failure:?}");
        assert_eq!(failure.chain[1], "the process ended while this timer was handled");
        let timers = engine.timers("killer", None, 10).await.unwrap();
        let poison = timers.iter().find(|timer| timer.timer.key == "poison").unwrap();
        assert_eq!(poison.timer.attempt, RETRIES + 1);
        let fired = fired(&store).await;
        assert!(fired.iter().all(|key| harmless().contains(key)), "{fired:?}");
        assert_eq!(fired.len() + timers.len(), KEYS.len(), "each has fired once or is there: {fired:?}");
    }

    /// E-34, E-43: where poison is set aside the timer is held, and everything else goes on.
    async fn e34_e43_a_timer_that_kills_its_process_is_held(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine_with_a_killer(&store, Poison::park());
        all_set(&engine).await;
        let reader = engine.clone();
        let held = async move {
            let mut wake = reader.store().wake();
            loop {
                wake.arm();
                let timers = reader.timers("killer", None, 10).await.unwrap();
                if timers.len() == 1 && timers[0].try_at.is_none() {
                    return;
                }
                wake.wait(Duration::from_millis(20)).await;
            }
        };
        supervise(&database, true, held).await;
        let timers = engine.timers("killer", None, 10).await.unwrap();
        assert_eq!((timers[0].timer.key.as_str(), timers[0].timer.attempt), ("poison", RETRIES + 1));
        assert_eq!(fired(&store).await, harmless());
        assert_eq!(look(&engine, "killer").await.state, State::Active);
    }
}
