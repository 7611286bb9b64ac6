//! Timers under a worker: it wakes when one is due, and events and timers do not keep each other from moving.

use std::time::Duration;

use subscription_engine::{Criteria, Engine, Settings};
use testkit::{Alarm, Alarms, both};
use tokio::time::Instant;

use crate::engine::{Running, append, until};
use crate::timers::{PATIENCE, after, ask, at, keys, processor, rang, ringing};

/// Waits until so many have rung.
pub(crate) async fn until_rang(engine: &Engine, alarms: &Alarms, count: i64) {
    let mut wake = engine.store().wake();
    let patience = Instant::now() + PATIENCE;
    loop {
        wake.arm();
        if alarms.count(engine.store()).await >= count {
            return;
        }
        assert!(Instant::now() < patience, "{:?}", engine.timers("alarms", None, 10).await);
        wake.wait(Duration::from_millis(20)).await;
    }
}

/// It would be found by nobody who only looks now and then.
fn without_polling() -> Settings {
    Settings { poll: Duration::from_secs(3_600), ..Settings::default() }
}

both! {
    /// E-43: by real time, a worker that never polls wakes when a timer is due.
    async fn e43_a_worker_wakes_when_it_is_due(database: TestDatabase) {
        let store = database.store().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await.with_settings(without_polling());
        let worker = Running::start(&engine).await;
        let now = store.clock().now().await.unwrap();
        let in_ms = |key: &str, ms| Alarm::at(key, now.plus(Duration::from_millis(ms)));
        ask(&store, &[in_ms("later", 300), in_ms("soon", 100), in_ms("hour", 3_600_000)]).await;
        until_rang(&engine, &alarms, 2).await;
        assert_eq!(keys(&store).await, ["soon", "later"]);
        worker.stop().await;
    }

    /// E-31, E-43: a worker that never polls wakes when the manual clock is moved.
    async fn e43_a_worker_wakes_with_the_manual_clock(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await.with_settings(without_polling());
        let worker = Running::start(&engine).await;
        ask(&store, &[at("a", 3_600), at("b", 7_200)]).await;
        until(&engine, "alarms", |now| now.next_timer == Some(after(3_600))).await;
        for (count, seconds) in [(1, 3_600), (2, 7_200)] {
            store.clock().set(after(seconds)).await.unwrap();
            until_rang(&engine, &alarms, count).await;
        }
        let told: Vec<_> = rang(&store).await.into_iter().map(|(key, at, _)| (key, at)).collect();
        assert_eq!(told, [("a".to_owned(), 3_600), ("b".to_owned(), 7_200)]);
        worker.stop().await;
    }

    /// E-43: a timer that is always due does not keep events waiting.
    async fn e43_timers_do_not_starve_events(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        let worker = Running::start(&engine).await;
        ask(&store, &[Alarm { again: vec![after(0); 100_000 / 300], ..at("always", 0) }]).await;
        until_rang(&engine, &alarms, 3).await;
        ask(&store, &[at("other", 0), Alarm::cancelled("always")]).await;
        until(&engine, "alarms", |now| now.next_timer.is_none()).await;
        worker.stop().await;
        let keys = keys(&store).await;
        assert!(keys.contains(&"other".to_owned()));
        assert!(keys.len() < 300, "it was cancelled while it went on: {}", keys.len());
    }

    /// E-43: events that never end do not keep a timer waiting.
    async fn e43_events_do_not_starve_timers(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let settings = Settings { unit_events: 2, ..Settings::default() };
        let engine = ringing(&store, &alarms).await.with_settings(settings);
        ask(&store, &[at("timer", 1)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let backlog: Vec<Alarm> = (0..1_000).map(|_| Alarm::cancelled("nothing")).collect();
        ask(&store, &backlog[..200]).await;
        store.clock().set(after(1)).await.unwrap();
        assert_eq!(engine.fire_timers(&Criteria::all()).await.unwrap().fired, 0, "it is behind the backlog");
        // They stand behind the barrier.
        ask(&store, &backlog).await;
        let worker = Running::start(&engine).await;
        until_rang(&engine, &alarms, 1).await;
        let (_, _, handled) = rang(&store).await[0].clone();
        assert!((201..1_201).contains(&handled), "behind the barrier and before the end: {handled}");
        worker.stop().await;
    }

    /// E-43: many timers that are due at the same time fire in bounded units, and an event in between is handled.
    async fn e43_many_due_at_once(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let settings = Settings { unit_events: 100, ..Settings::default() };
        let engine = ringing(&store, &alarms).await.with_settings(settings);
        for part in 0..3 {
            let all: Vec<Alarm> = (0..1_000).map(|n| at(&format!("k{part}-{n}"), 60)).collect();
            ask(&store, &all).await;
        }
        append(&store, 1).await;
        engine.set_clock(after(60), PATIENCE).await.unwrap();
        assert_eq!(alarms.count(&store).await, 3_000);
        let calls = alarms.calls();
        assert_eq!((calls.len(), calls[0].len()), (30, 100));
        assert_eq!(calls[29][99], "k2-999", "in the order in which they were set");
    }
}
