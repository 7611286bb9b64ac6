//! What was left behind by a program that is gone, and what became of a subscription after it was moved.

use std::sync::Arc;

use store::{Store, Timestamp};
use subscription_engine::{Criteria, Definition, FiredTimers, Outcome, RetryStrategy, Standing};
use testkit::{Alarms, Collector, Scripted, both};

use crate::engine::{Running, append, engine, only};
use crate::engine_rewind::setting;
use crate::timers::{after, ask, at, keys, pending, processor, ringing};

/// How many timers, markers and notes of obstacles there are.
async fn left(store: &Store) -> (i64, i64, i64) {
    let sql = "SELECT (SELECT COUNT(*) FROM herald_timers), (SELECT COUNT(*) FROM herald_unit_markers),
                      (SELECT COUNT(*) FROM herald_subscription_stalls)";
    store.database().fetch_optional(sql, ()).await.unwrap().unwrap()
}

/// Leaves a marker and a note behind, as of long ago.
async fn leave_behind(store: &Store, id: &str) {
    let long_ago = Timestamp::from_micros(1_000_000_000_000_000);
    let marker = "INSERT INTO herald_unit_markers (subscription_id, position, events, runner, marked_at)
                  VALUES ($1, 1, 1, 'somewhere else', $2)";
    let note = "INSERT INTO herald_subscription_stalls (subscription_id, why, since, met_at)
                VALUES ($1, 'something of before', $2, $2)";
    for sql in [marker, note] {
        store.database().execute(sql, (id, long_ago)).await.unwrap();
    }
}

both! {
    /// E-11, E-43: an older program removed a row and left its timers; they do not fire in a new life.
    async fn e11_what_an_older_program_left_behind_is_forgotten(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = engine(&store, vec![setting(Definition::projector("alarms"))]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        ask(&store, &[at("of before", 10)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        leave_behind(&store, "alarms").await;
        store.database().execute("DELETE FROM herald_subscriptions", ()).await.unwrap();
        assert_eq!(left(&store).await, (1, 1, 1));

        store.clock().set(after(20)).await.unwrap();
        engine.set_up(&Criteria::all(), false).await.unwrap();
        assert_eq!(left(&store).await, (0, 0, 0));
        engine.boot(&Criteria::all(), None).await.unwrap();
        assert_eq!(engine.fire_timers(&Criteria::all()).await.unwrap(), FiredTimers::default());
    }

    /// E-11, E-14: removed or replayed, a subscription leaves neither markers nor notes behind.
    async fn e11_e14_nothing_is_left_of_what_is_removed_or_replayed(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 2).await;
        let engine = engine(&store, vec![Collector::new(Definition::projector("one"))]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        leave_behind(&store, "one").await;
        engine.replay("one", "test", |_, _| {}).await.unwrap();
        assert_eq!(left(&store).await, (0, 0, 0));
        leave_behind(&store, "one").await;
        engine.remove(&Criteria::all(), "test").await.unwrap();
        assert_eq!(left(&store).await, (0, 0, 0));
    }

    /// E-62: what was in the way weeks ago is not what is in the way now.
    async fn e62_a_note_of_before_says_nothing_of_since_when(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let unlucky = Scripted::new(Definition::projector("unlucky"), |_, _| {
            Box::pin(async { Err(sqlx::Error::WorkerCrashed.into()) })
        });
        let engine = engine(&store, vec![Arc::new(unlucky)]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let note = "INSERT INTO herald_subscription_stalls (subscription_id, why, since, met_at)
                    VALUES ('unlucky', 'something of before', $1, $1)";
        let long_ago = Timestamp::from_micros(1_000_000_000_000_000);
        store.database().execute(note, (long_ago,)).await.unwrap();
        let worker = Running::start(&engine).await;
        let mut wake = store.wake();
        loop {
            wake.arm();
            let now = engine.status(&Criteria::all()).await.unwrap().remove(0).standing;
            if matches!(&now, Standing::Stalled(stall) if format!("{stall:?}").contains("crashed")) {
                break;
            }
            wake.wait(std::time::Duration::from_millis(20)).await;
        }
        worker.stop().await;
        let sql = "SELECT since, {now} FROM herald_subscription_stalls";
        let (since, now): (Timestamp, Timestamp) = store.database().fetch_optional(sql, ()).await.unwrap().unwrap();
        assert!(now.since(since).as_secs() < 3_600, "{since}");
    }

    /// E-17, E-43: one that handled its events and stopped at a timer has failed.
    async fn e17_who_stopped_at_a_timer_has_failed(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = Alarms::new(Definition::processor("alarms").with_retry(RetryStrategy::None));
        let engine = ringing(&store, &alarms).await;
        alarms.fail_at(&["bad"]);
        store.clock().set(after(20)).await.unwrap();
        ask(&store, &[at("bad", 10)]).await;
        let outcome = only(engine.catch_up(&Criteria::all()).await.unwrap());
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");

        engine.reactivate(&Criteria::all(), "not yet mended").await.unwrap();
        let outcome = only(engine.run(&Criteria::all(), None).await.unwrap());
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    }

    /// E-08, E-43: whoever runs what is active by hand fires what is due of it, also if it sets itself again.
    async fn e08_a_run_fires_what_is_due(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        ask(&store, &[at("due", 10), at("later", 30)]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(keys(&store).await.len(), 0);
        store.clock().set(after(20)).await.unwrap();
        let outcome = only(engine.run(&Criteria::all(), None).await.unwrap());
        assert!(matches!(outcome, Outcome::CaughtUp { .. }), "{outcome:?}");
        assert_eq!(keys(&store).await, ["due"]);
        assert_eq!(pending(&engine).await, ["later"]);
    }
}
