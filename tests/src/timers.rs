//! Timers: set by handlers under a key, fired once when they are due and all that happened before is handled.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use store::{ExpectedVersion, Json, NewEvent, Store, Timestamp};
use subscription_engine::{
    ContextError, Criteria, Definition, Engine, FiredTimers, InvalidTimer, Outcome, RunMode, Settings,
};
use testkit::{Alarm, Alarms, Scripted, T0, both, position};

use crate::engine::{append, engine, look, only};
use crate::given::{all_events, stream};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn after(seconds: u64) -> Timestamp {
    T0.plus(Duration::from_secs(seconds))
}

pub(crate) fn at(key: &str, seconds: u64) -> Alarm {
    Alarm::at(key, after(seconds))
}

/// Appends an event for each of these.
pub(crate) async fn ask(store: &Store, alarms: &[Alarm]) {
    let events = alarms.iter().map(Alarm::asked).collect();
    store.append(&stream("alarms-1"), ExpectedVersion::Any, events).await.unwrap();
}

/// An engine with a processor of alarms that is set up.
pub(crate) async fn ringing(store: &Store, alarms: &Arc<Alarms>) -> Engine {
    let engine = engine(store, vec![alarms.clone()]);
    engine.set_up(&Criteria::all(), false).await.unwrap();
    engine
}

pub(crate) fn processor() -> Arc<Alarms> {
    Alarms::new(Definition::processor("alarms"))
}

/// What has rung, in order: the key, when by the log's clock in seconds, and the last event handled before.
pub(crate) async fn rang(store: &Store) -> Vec<(String, u64, i64)> {
    let events = all_events(store).await.into_iter().filter(|event| event.event_type == Alarm::RANG);
    let told = events.map(|event| {
        let said: Value = event.payload.to().unwrap();
        let key = said["key"].as_str().unwrap().to_owned();
        (key, event.recorded_at.since(T0).as_secs(), said["handled"].as_i64().unwrap())
    });
    told.collect()
}

/// The keys that have rung, in order.
pub(crate) async fn keys(store: &Store) -> Vec<String> {
    rang(store).await.into_iter().map(|(key, ..)| key).collect()
}

/// The keys of the timers that have not fired, the first due first.
pub(crate) async fn pending(engine: &Engine) -> Vec<String> {
    let timers = engine.timers("alarms", None, 10_000).await.unwrap();
    timers.into_iter().map(|record| record.timer.key).collect()
}

both! {
    /// E-43, E-22: due at exactly now is due, a microsecond before is not; it fires once, and what it brings about has
    /// the event as its cause because of which it was set.
    async fn e43_a_timer_fires_once_and_never_early(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        let asked = NewEvent { correlation_id: Some("the order".to_owned()), ..at("a", 10).asked() };
        let cause = asked.id;
        store.append(&stream("alarms-1"), ExpectedVersion::Any, vec![asked]).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        store.clock().set(Timestamp::from_micros(after(10).as_micros() - 1)).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(alarms.calls().len(), 0);
        assert_eq!(pending(&engine).await, ["a"]);

        store.clock().set(after(10)).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(rang(&store).await, [("a".to_owned(), 10, 1)]);
        assert_eq!(pending(&engine).await, [""; 0]);
        let events = all_events(&store).await;
        let told = events.last().unwrap();
        assert_eq!((told.causation_id, told.correlation_id.as_deref()), (Some(cause), Some("the order")));
        assert_eq!(alarms.calls().len(), 1);
        assert_eq!(look(&engine, "alarms").await.next_timer, None);
    }

    /// E-43: whatever could be read when it was first seen due is handled before; what comes later does not put it off.
    async fn e43_it_fires_behind_what_happened_before_it_was_due(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        ask(&store, &[at("a", 10), at("b", 10), at("c", 10)]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        ask(&store, &[Alarm::cancelled("a"), at("b", 99)]).await;
        store.clock().set(after(10)).await.unwrap();
        let nothing = FiredTimers::default();
        assert_eq!(engine.fire_timers(&Criteria::all()).await.unwrap(), nothing, "two events go first");
        ask(&store, &[Alarm::cancelled("c")]).await;
        assert_eq!(only(engine.run(&Criteria::all(), Some(1)).await.unwrap()), Outcome::LimitReached { events: 1 });
        assert_eq!(engine.fire_timers(&Criteria::all()).await.unwrap(), nothing);
        engine.run(&Criteria::all(), Some(1)).await.unwrap();
        assert_eq!(rang(&store).await, [("c".to_owned(), 10, 5)], "it was cancelled after it fell due");
        assert_eq!(engine.fire_timers(&Criteria::all()).await.unwrap(), nothing, "it has fired once");
        engine.set_clock(after(200), PATIENCE).await.unwrap();
        assert_eq!(rang(&store).await[1..], [("b".to_owned(), 99, 6)]);
    }

    /// E-43: events that the subscriber does not want count as handled, without a write for each.
    async fn e43_what_is_not_wanted_is_no_barrier(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        ask(&store, &[at("a", 10)]).await;
        append(&store, 5_000).await;
        engine.set_clock(after(11), PATIENCE).await.unwrap();
        assert_eq!(rang(&store).await, [("a".to_owned(), 10, 1)]);
        assert!(position(&look(&engine, "alarms").await) >= 5_001);
    }

    /// E-43: what was said last of a key is what counts, within one unit and across units.
    async fn e43_a_key_has_one_timer(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = ringing(&store, &processor()).await;
        ask(&store, &[at("a", 10), Alarm::cancelled("a"), at("a", 20), at("b", 10), Alarm::cancelled("b")]).await;
        ask(&store, &[Alarm::cancelled("c"), at("d", 30)]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(pending(&engine).await, ["a", "d"]);
        ask(&store, &[at("d", 5), at("a", 40)]).await;
        engine.set_clock(after(100), PATIENCE).await.unwrap();
        assert_eq!(rang(&store).await, [("d".to_owned(), 5, 9), ("a".to_owned(), 40, 9)]);
    }

    /// E-31, E-43: one step of the clock stops at each instant at which a timer is due, also at those that fired
    /// timers set.
    async fn e31_e43_the_clock_stops_at_each_timer(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = ringing(&store, &processor()).await;
        let often = Alarm { again: vec![after(30), after(50), after(2_000)], ..at("often", 20) };
        ask(&store, &[at("once", 40), often]).await;
        engine.set_clock(after(1_000), PATIENCE).await.unwrap();
        let rang = rang(&store).await;
        let told: Vec<_> = rang.iter().map(|(key, at, _)| (key.as_str(), *at)).collect();
        assert_eq!(told, [("often", 20), ("often", 30), ("once", 40), ("often", 50)]);
        assert_eq!(engine.clock().now().await.unwrap(), after(1_000));
        assert_eq!(look(&engine, "alarms").await.next_timer, Some(after(2_000)));
    }

    /// E-43: after a long time each overdue one fires once, in the order in which they were due, in bounded units.
    async fn e43_what_is_overdue_fires_in_order(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let settings = Settings { unit_events: 4, ..Settings::default() };
        let engine = ringing(&store, &alarms).await.with_settings(settings);
        let all: Vec<Alarm> = (0..10_u64).map(|n| at(&format!("k{n}"), 100 - n)).collect();
        ask(&store, &all).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        store.clock().set(after(10_000)).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(keys(&store).await, ["k9", "k8", "k7", "k6", "k5", "k4", "k3", "k2", "k1", "k0"]);
        let sizes: Vec<usize> = alarms.calls().iter().map(Vec::len).collect();
        assert_eq!(sizes, [4, 4, 2]);
    }

    /// E-43: keys that are due together go round robin: who sets itself again lets the others go first, however early
    /// it was due.
    async fn e43_keys_due_together_take_turns(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let settings = Settings { unit_events: 1, ..Settings::default() };
        let engine = ringing(&store, &processor()).await.with_settings(settings);
        let large = Alarm { again: vec![after(1); 3], ..at("large", 1) };
        let small = Alarm { again: vec![after(2)], ..at("small", 2) };
        ask(&store, &[large, small, at("single", 3)]).await;
        store.clock().set(after(5)).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        let keys = keys(&store).await;
        assert_eq!(keys, ["large", "small", "single", "large", "small", "large", "large"]);
    }

    /// E-43: a projector that works off history sets none, and a replay forgets those that are there.
    async fn e43_history_sets_no_timers(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = Alarms::new(Definition::projector("alarms"));
        ask(&store, &[at("history", 10)]).await;
        let engine = ringing(&store, &alarms).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(pending(&engine).await, [""; 0]);
        ask(&store, &[at("live", 10)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(pending(&engine).await, ["live"]);
        engine.replay("alarms", "test", |_, _| {}).await.unwrap();
        assert_eq!(pending(&engine).await, [""; 0]);
        let history = engine.history("alarms", 100).await.unwrap();
        assert!(history.iter().any(|line| line.why == "test (and forgot 1 timers)"), "{history:?}");

        let processor = Alarms::new(Definition::plain("from_beginning", RunMode::FromBeginning));
        let engine = crate::engine::engine(&store, vec![processor]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        engine.boot(&Criteria::all(), Some(1)).await.unwrap();
        store.clock().set(after(20)).await.unwrap();
        assert_eq!(engine.fire_timers(&Criteria::all()).await.unwrap().fired, 0, "not while it boots");
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(keys(&store).await, ["history", "live"]);
    }

    /// E-43: what cannot be a timer is refused when it is set.
    async fn e43_what_is_no_timer(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let run_once = Scripted::new(Definition::plain("once", RunMode::Once), |events, context| {
            Box::pin(async move {
                let refused = context.because_of(&events[0]).set_timer("a", T0, Json::empty_object());
                assert!(matches!(refused, Err(ContextError::InvalidTimer(InvalidTimer::Once))));
                Ok(())
            })
        });
        let limits = Scripted::new(Definition::plain("limits", RunMode::FromBeginning), |events, context| {
            Box::pin(async move {
                let mut cause = context.because_of(&events[0]);
                let mut refused = |key: &str, due, payload: usize| {
                    let payload = Json::of(&"x".repeat(payload - 2)).unwrap();
                    match cause.set_timer(key, due, payload) {
                        Ok(()) => None,
                        Err(ContextError::InvalidTimer(invalid)) => Some(invalid),
                        Err(error) => panic!("{error}"),
                    }
                };
                for key in ["", "a\nb", &"k".repeat(501)] {
                    assert!(matches!(refused(key, T0, 2), Some(InvalidTimer::Key(_))), "{key}");
                }
                assert_eq!(refused("a", T0, 16_385), Some(InvalidTimer::PayloadTooLarge(16_385)));
                for micros in [-1, 253_370_764_800_000_000, i64::MAX] {
                    let due = Timestamp::from_micros(micros);
                    assert_eq!(refused("a", due, 2), Some(InvalidTimer::Due(due)));
                }
                assert_eq!(refused(&"k".repeat(500), Timestamp::from_micros(0), 16_384), None);
                assert_eq!(refused("late", Timestamp::from_micros(253_370_764_799_999_999), 2), None);
                Ok(())
            })
        });
        let limits = limits.with_timers(|timers, _| {
            Box::pin(async move {
                assert_eq!((timers[0].key.len(), timers[0].payload.as_str().len()), (500, 16_384));
                Ok(())
            })
        });
        append(&store, 1).await;
        let engine = engine(&store, vec![Arc::new(run_once), Arc::new(limits)]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        for id in ["once", "limits"] {
            let now = look(&engine, id).await;
            assert!(matches!(now.state.status().word(), "active" | "finished"), "{now:?}");
        }
        assert_eq!(engine.timers("limits", None, 10).await.unwrap()[0].timer.key, "late");
    }
}
