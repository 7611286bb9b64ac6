//! A network that vanishes without a word, seen from the worker's side (PostgreSQL). The server's side needs a network
//! of its own and is measured by `bench takeover --vanish`.

use std::time::{Duration, Instant};

use store::{Fault, Options, Store};
use subscription_engine::{Definition, Settings};
use testkit::{Collector, Held, Proxy, TestDatabase, position, positions};

use crate::engine::{Running, append, engine, until};

/// Generous: within ten seconds on a machine that has time.
const NOTICED: Duration = Duration::from_secs(30);

async fn scene(name: &str) -> Option<(TestDatabase, Store, Proxy, Store)> {
    let database = TestDatabase::postgres(name).await?;
    let store = database.store().await;
    let proxy = Proxy::start(database.url()).await;
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let far = Store::open(&proxy.url(database.url()), &Options::default(), &migrations).await.unwrap();
    Some((database, store, proxy, far))
}

/// E-60: whoever waits for an answer is told that there will be none.
#[tokio::test]
async fn e60_a_statement_whose_server_has_vanished_comes_back() {
    let Some((_database, store, proxy, far)) = scene("e60_a_statement_whose_server_has_vanished").await
    else {
        return;
    };
    append(&store, 1).await;
    assert_eq!(far.head().await.unwrap().position.0, 1);
    proxy.vanish();
    let since = Instant::now();

    let error = far.head().await.unwrap_err();

    assert_eq!(Fault::of(&error), Fault::Unreachable, "{error:?}");
    assert!(since.elapsed() < NOTICED, "after {:?}", since.elapsed());
    proxy.come_back();
    assert_eq!(far.head().await.unwrap().position.0, 1);
}

/// E-60: a statement that takes long is no server that has vanished.
#[tokio::test]
async fn e60_a_long_statement_is_waited_for() {
    let Some((_database, _store, _proxy, far)) = scene("e60_a_long_statement_is_waited_for").await else {
        return;
    };
    let slept = far.database().fetch_all::<(bool,)>("SELECT pg_sleep(6) IS NULL", ()).await.unwrap();
    assert_eq!(slept, [(false,)]);
}

/// E-60: a worker in the middle of a unit, and its ear for wake-ups, survive; nothing is lost or doubled.
#[tokio::test]
async fn e60_a_worker_survives_a_network_that_vanishes_and_comes_back() {
    let name = "e60_a_worker_survives_a_network_that_vanishes_and_comes_back";
    let Some((_database, store, proxy, far)) = scene(name).await else { return };
    let held = Held::while_writing(Definition::projector("held"));
    let other = Collector::new(Definition::projector("other"));
    // Only by its ear does it learn of what others append.
    let settings = Settings { poll: Duration::from_secs(3_600), ..Settings::default() };
    let here = engine(&store, vec![held.clone(), other.clone()]);
    let there = engine(&far, vec![held.clone(), other.clone()]).with_settings(settings);
    append(&store, 1).await;
    let worker = Running::start(&there).await;
    held.entered(1).await;
    until(&here, "other", |now| position(now) == 1).await;

    proxy.vanish();
    // Its commit will never be answered.
    held.let_go(1);
    assert_eq!(Fault::of(&far.head().await.unwrap_err()), Fault::Unreachable);
    proxy.come_back();
    held.entered(2).await;
    held.let_go(1);
    until(&here, "held", |now| position(now) == 1).await;
    append(&store, 1).await;
    held.entered(3).await;
    held.let_go(1);

    until(&here, "other", |now| position(now) == 2).await;
    until(&here, "held", |now| position(now) == 2).await;
    worker.stop().await;
    assert_eq!(held.positions(&store).await, positions(2));
    assert_eq!(other.positions(&store).await, positions(2));
    far.close().await;
}
