//! The truth about progress: what a status does not say, and the position does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use store::{Append, ExpectedVersion};
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, RetryStrategy, Settings, Stall, Standing, Status,
};
use testkit::{Collector, Failing, Held, Scripted, TestDatabase, both, position};

use crate::engine::{Running, append, append_typed, engine, look, until};
use crate::given::{event, stream};

async fn standing(engine: &Engine, id: &str) -> Standing {
    engine.status(&Criteria::id(id)).await.unwrap().remove(0).standing
}

/// Waits until a subscription gets on like this.
pub(crate) async fn until_standing(engine: &Engine, id: &str, holds: impl Fn(&Standing) -> bool) {
    let mut wake = engine.store().wake();
    let patience = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        wake.arm();
        let now = standing(engine, id).await;
        if holds(&now) {
            return;
        }
        assert!(tokio::time::Instant::now() < patience, "waited in vain: {now}");
        wake.wait(Duration::from_millis(20)).await;
    }
}

/// An engine that loses patience at once.
fn impatient(engine: Engine) -> Engine {
    engine.with_settings(Settings { stalled_after: Duration::ZERO, ..Settings::default() })
}

both! {
    /// E-62: the status is "booting" or "active" all the time; what becomes of it is told apart.
    async fn e62_lagging_stalled_idle_and_no_worker_are_told_apart(database: TestDatabase) {
        let store = database.store().await;
        let held = Held::before_writing(Definition::projector("held"));
        let engine = engine(&store, vec![held.clone()]);
        append(&store, 2).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        assert_eq!(standing(&engine, "held").await, Standing::NoWorker);

        let worker = Running::start(&engine).await;
        held.entered(1).await;
        assert_eq!(standing(&engine, "held").await, Standing::Lagging);
        let hasty = impatient(crate::engine::engine(&store, vec![held.clone()]));
        let stalled = standing(&hasty, "held").await;
        assert!(matches!(stalled, Standing::Stalled(Stall::NoProgress { .. })), "{stalled}");
        assert!(stalled.to_string().starts_with("stalled: a worker is there"), "{stalled}");

        held.let_go(100);
        until_standing(&engine, "held", |now| *now == Standing::Idle).await;
        assert_eq!(position(&look(&engine, "held").await), 2);
        assert_eq!(standing(&hasty, "held").await, Standing::Idle);
        worker.stop().await;
        assert_eq!(look(&engine, "held").await.state.status(), Status::Active);
        assert_eq!(standing(&engine, "held").await, Standing::NoWorker);
    }

    /// E-62: what a person stopped says who and why, and only while something waits for it.
    async fn e62_paused_detached_and_failed_say_why(database: TestDatabase) {
        let store = database.store().await;
        let failing = Failing::new(Definition::projector("failing").with_retry(RetryStrategy::None), [1]);
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![failing, collector]).on_behalf_of("ada");
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.pause(&Criteria::id("collector"), "maintenance").await.unwrap();
        assert_eq!(standing(&engine, "collector").await, Standing::Idle);
        append(&store, 1).await;
        let paused = Stall::Paused { why: "maintenance".to_owned(), who: "ada".to_owned() };
        assert_eq!(standing(&engine, "collector").await, Standing::Stalled(paused));
        let failed = Stall::Failed { message: "cannot digest position 1".to_owned(), next_retry: None };
        assert_eq!(standing(&engine, "failing").await, Standing::Stalled(failed));

        let other = Collector::new(Definition::projector("other"));
        let without = crate::engine::engine(&store, vec![other]);
        without.detach(&Criteria::all()).await.unwrap();
        assert_eq!(standing(&without, "collector").await, Standing::Stalled(Stall::Detached));
    }

    /// E-34: what passes by itself is shown with its reason as long as it is met, and is nobody's failure.
    async fn e34_what_is_in_the_way_is_shown_until_it_is_gone(database: TestDatabase) {
        let store = database.store().await;
        let is_broken = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&is_broken);
        let unlucky = Scripted::new(Definition::projector("unlucky"), move |_, _| {
            let is_broken = flag.load(Ordering::Relaxed);
            Box::pin(async move { if is_broken { Err(sqlx::Error::WorkerCrashed.into()) } else { Ok(()) } })
        });
        let engine = engine(&store, vec![Arc::new(unlucky)]);
        append(&store, 2).await;
        let worker = Running::start(&engine).await;
        until_standing(&engine, "unlucky", |now| matches!(now, Standing::Stalled(Stall::InTheWay { .. }))).await;
        let why = standing(&engine, "unlucky").await.to_string();
        assert!(why.contains("stalled: ") && why.contains("crashed"), "{why}");
        let now = look(&engine, "unlucky").await;
        assert_eq!((now.state.status(), now.attempt, now.position), (Status::Booting, 0, None));

        is_broken.store(false, Ordering::Relaxed);
        until_standing(&engine, "unlucky", |now| *now == Standing::Idle).await;
        worker.stop().await;
        let left: Vec<(String,)> =
            store.database().fetch_all("SELECT why FROM herald_subscription_stalls", ()).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }

    /// E-26, E-17: whoever gave up in an early round of catching up is in the report, though it has no part in the later
    /// ones.
    async fn e26_who_gave_up_early_is_in_the_report(database: TestDatabase) {
        let store = database.store().await;
        let failing = Failing::new(Definition::projector("failing").with_retry(RetryStrategy::None), [2]);
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![failing, collector]);
        append(&store, 3).await;
        let report = engine.catch_up(&Criteria::all()).await.unwrap();
        let ids: Vec<&str> = report.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["collector", "failing"], "{report:?}");
        assert_eq!(report[0].1, Outcome::CaughtUp { events: 3 });
        assert!(matches!(&report[1].1, Outcome::Failed { .. }), "{report:?}");
    }

    /// E-24, E-62: events that nobody wants are progress as well.
    async fn e62_what_is_not_wanted_does_not_stall(database: TestDatabase) {
        let store = database.store().await;
        let picky = Collector::new(Definition::projector("picky").on(["Wanted"]));
        let engine = engine(&store, vec![picky]);
        append_typed(&store, "thing-1", &["Unwanted", "Unwanted"]).await;
        let worker = Running::start(&engine).await;
        until(&engine, "picky", |now| position(now) == 2).await;
        until_standing(&engine, "picky", |now| *now == Standing::Idle).await;
        worker.stop().await;
    }
}

/// E-62, S-10: everybody stands at the head and nothing moves, because somebody holds the head back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e62_a_head_that_is_held_back_is_no_idleness() {
    let Some(database) = TestDatabase::postgres("e62_a_head_that_is_held_back").await else { return };
    let store = database.store().await;
    let collector = Collector::new(Definition::projector("collector"));
    let engine = impatient(engine(&store, vec![collector]));
    append(&store, 1).await;
    let worker = Running::start(&engine).await;
    until_standing(&engine, "collector", |now| *now == Standing::Idle).await;

    let holder = database.store().await;
    let mut tx = holder.begin().await.unwrap();
    let of =
        |name: &str| Append { stream: stream(name), expected: ExpectedVersion::Any, events: vec![event(1)] };
    holder.append_all(&mut tx, vec![of("idle-1")]).await.unwrap();
    append(&store, 1).await;
    until_standing(&engine, "collector", |now| matches!(now, Standing::Stalled(Stall::HeadHeld { .. })))
        .await;
    tx.commit().await.unwrap();
    until_standing(&engine, "collector", |now| *now == Standing::Idle).await;
    worker.stop().await;
}

/// E-60: a claim ends with its session, and the server ends the session of a machine that vanished without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e60_the_server_looks_after_sessions_that_go_silent() {
    let Some(database) = TestDatabase::postgres("e60_the_server_looks_after_sessions").await else { return };
    let store = database.store().await;
    let sql = "SELECT current_setting('tcp_keepalives_idle')::int
                    + current_setting('tcp_keepalives_interval')::int * current_setting('tcp_keepalives_count')::int,
                      (SELECT setting::int FROM pg_settings WHERE name = 'tcp_user_timeout')";
    let row: Option<(i32, i32)> = store.database().fetch_optional(sql, ()).await.unwrap();
    let (seconds, milliseconds) = row.unwrap();
    assert!(seconds > 0 && seconds <= 10, "{seconds}");
    assert!(milliseconds > 0 && milliseconds <= 10_000, "{milliseconds}");
}
