//! Timers that fail, and operators who pause, reactivate and remove.

use std::sync::Arc;
use std::time::Duration;

use store::{ExpectedVersion, Json};
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, ParkKey, Poison, RetryStrategy, Settings, Stall, Standing, State,
    TimerOutcome,
};
use testkit::{Alarm, Alarms, Scripted, both, position};

use crate::engine::{Running, engine, look, status};
use crate::engine_standing::until_standing;
use crate::given::stream;
use crate::timers::{PATIENCE, after, ask, at, keys, pending, processor, rang, ringing};

fn twice() -> RetryStrategy {
    RetryStrategy::ClockBased {
        base_delay: Duration::from_secs(5),
        delay_factor: 2.0,
        max_attempts: 2,
        max_delay: None,
    }
}

/// What of the only timer there is: attempts, when it may be tried in seconds, and its error.
async fn only_timer(engine: &Engine) -> (u32, Option<u64>, Vec<String>) {
    let mut timers = engine.timers("alarms", None, 10).await.unwrap();
    assert_eq!(timers.len(), 1, "{timers:?}");
    let record = timers.remove(0);
    (record.timer.attempt, record.try_at.map(|at| at.since(after(0)).as_secs()), record.error)
}

both! {
    /// E-43: one that fails is found in its unit and tried again under its own count, while the others and the events
    /// go on; what it wrote is undone.
    async fn e43_a_failing_timer_holds_up_nobody(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = Alarms::new(Definition::processor("alarms").with_retry(twice()));
        let engine = ringing(&store, &alarms).await;
        alarms.fail_at(&["k3"]);
        ask(&store, &(0..8).map(|n| at(&format!("k{n}"), 10)).collect::<Vec<_>>()).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        store.clock().set(after(10)).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        let mut others = keys(&store).await;
        others.sort();
        assert_eq!(others, ["k0", "k1", "k2", "k4", "k5", "k6", "k7"]);
        assert_eq!(only_timer(&engine).await, (1, Some(15), vec!["cannot ring k3".to_owned()]));
        ask(&store, &[at("later", 12)]).await;
        engine.set_clock(after(16), PATIENCE).await.unwrap();
        assert_eq!(rang(&store).await.pop().unwrap(), ("later".to_owned(), 12, position_of_last(&store).await));
        assert_eq!(only_timer(&engine).await.0, 2);
        alarms.fail_at(&[]);
        engine.set_clock(after(25), PATIENCE).await.unwrap();
        assert_eq!(rang(&store).await.pop().map(|(key, at, _)| (key, at)), Some(("k3".to_owned(), 25)));
        assert_eq!(status(&engine, "alarms").await.word(), "active");
    }

    /// E-43: its retries used up, the subscription stops and names the key; reactivated, it is tried anew.
    async fn e43_retries_used_up_stop_the_subscription(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = Alarms::new(Definition::processor("alarms").with_retry(twice()));
        let engine = ringing(&store, &alarms).await;
        alarms.fail_at(&["bad"]);
        ask(&store, &[at("bad", 10), at("good", 1_000)]).await;
        engine.set_clock(after(500), PATIENCE).await.unwrap();
        let now = look(&engine, "alarms").await;
        let State::Error { failure, next_retry: None, .. } = &now.state else { panic!("{now:?}") };
        let expected = format!("timer \"bad\", due {}, failed", after(10));
        assert_eq!(failure.chain, [expected, "cannot ring bad".to_owned()]);
        assert_eq!(failure.at, after(25), "at 10, at 15, at 25");
        assert_eq!(alarms.calls().len(), 3);
        engine.set_clock(after(2_000), PATIENCE).await.unwrap();
        assert_eq!(pending(&engine).await, ["bad", "good"], "they wait");

        engine.reactivate(&Criteria::all(), "not yet mended").await.unwrap();
        engine.set_clock(after(2_007), PATIENCE).await.unwrap();
        assert_eq!(status(&engine, "alarms").await.word(), "active");
        assert_eq!(keys(&store).await, ["good"]);
        assert_eq!(only_timer(&engine).await.0, 2, "counted anew");
        alarms.fail_at(&[]);
        engine.set_clock(after(3_000), PATIENCE).await.unwrap();
        assert_eq!(keys(&store).await, ["good", "bad"]);
    }

    /// E-43, E-32: where poison is parked the timer is held, until an operator retries or discards it.
    async fn e43_where_poison_is_parked_the_timer_is_held(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let definition = Definition::processor("alarms").with_retry(RetryStrategy::None).with_poison(Poison::park());
        let alarms = Alarms::new(definition);
        let engine = ringing(&store, &alarms).await;
        alarms.fail_at(&["bad", "worse"]);
        ask(&store, &[at("bad", 10), at("worse", 10), at("good", 20)]).await;
        engine.set_clock(after(100), PATIENCE).await.unwrap();
        assert_eq!(keys(&store).await, ["good"]);
        let counts = engine.status(&Criteria::id("alarms")).await.unwrap()[0].timers;
        assert_eq!((counts.pending, counts.overdue, counts.held, counts.next), (2, 0, 2, None));
        let history = engine.history("alarms", 10).await.unwrap();
        let said = format!("timer \"bad\", due {}, is held: cannot ring bad", after(10));
        assert!(history.iter().any(|line| line.why == said), "{history:?}");
        engine.pause(&Criteria::all(), "test").await.unwrap();
        engine.reactivate(&Criteria::all(), "test").await.unwrap();
        engine.set_clock(after(200), PATIENCE).await.unwrap();
        assert_eq!(alarms.calls().concat().iter().filter(|key| *key == "worse").count(), 2, "with bad, and alone");

        alarms.fail_at(&[]);
        assert_eq!(engine.retry_timer("alarms", "bad", "mended").await.unwrap(), TimerOutcome::Done);
        assert_eq!(engine.discard_timer("alarms", "worse", "no need").await.unwrap(), TimerOutcome::Done);
        assert_eq!(engine.retry_timer("alarms", "worse", "gone").await.unwrap(), TimerOutcome::NotThere);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(keys(&store).await, ["good", "bad"]);
        assert_eq!(pending(&engine).await, [""; 0]);
    }

    /// E-43, E-32: as many as the cap allows are held, then the subscription stops; nothing of that is half done.
    async fn e43_e32_a_cap_turns_held_timers_into_a_stop(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let park = Poison::Park { key: ParkKey::Stream, cap_count: 2, cap_share: 1.0 };
        let definition = Definition::processor("alarms").with_retry(RetryStrategy::None).with_poison(park);
        let alarms = Alarms::new(definition);
        let engine = ringing(&store, &alarms).await;
        alarms.fail_at(&["a", "b", "c"]);
        ask(&store, &[at("a", 10), at("b", 11), at("c", 12), at("d", 13)]).await;
        engine.set_clock(after(100), PATIENCE).await.unwrap();
        let counts = engine.status(&Criteria::id("alarms")).await.unwrap()[0].timers;
        assert_eq!((counts.held, counts.pending), (2, 4));
        let now = look(&engine, "alarms").await;
        let State::Error { failure, next_retry: None, .. } = &now.state else { panic!("{now:?}") };
        let expected = format!("timer \"c\", due {}, failed, and as many are held as may be", after(12));
        assert_eq!(failure.chain[0], expected);
        assert_eq!(keys(&store).await, [""; 0], "those behind it wait");
    }

    /// E-62: at the head, with timers that are due and come to nothing, it is not idle.
    async fn e62_timers_that_do_not_fire_are_no_idleness(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = Alarms::new(Definition::processor("alarms").with_retry(twice()));
        let settings = Settings { stalled_after: Duration::ZERO, ..Settings::default() };
        let engine = ringing(&store, &alarms).await.with_settings(settings);
        alarms.fail_at(&["bad"]);
        ask(&store, &[at("bad", 10)]).await;
        let worker = Running::start(&engine).await;
        until_standing(&engine, "alarms", |now| *now == Standing::Idle).await;
        store.clock().set(after(10)).await.unwrap();
        until_standing(&engine, "alarms", |now| matches!(now, Standing::Stalled(Stall::TimersOverdue { timers: 1, .. }))).await;
        alarms.fail_at(&[]);
        store.clock().set(after(15)).await.unwrap();
        until_standing(&engine, "alarms", |now| *now == Standing::Idle).await;
        worker.stop().await;
        assert_eq!(keys(&store).await, ["bad"]);
    }

    /// E-43: of timers that are due together the first may take the next one back; it is as if each fired alone.
    async fn e43_a_timer_takes_back_one_that_is_due_with_it(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let subscriber = Scripted::new(Definition::processor("chain"), |events, context| {
            Box::pin(async move {
                for event in events.iter().filter(|event| event.event_type != Alarm::RANG) {
                    for key in ["a", "b", "c"] {
                        context.because_of(event).set_timer(key, after(10), Json::empty_object())?;
                    }
                }
                Ok(())
            })
        });
        let subscriber = subscriber.with_timers(|timers, context| {
            Box::pin(async move {
                for timer in timers {
                    let mut cause = context.because_of_timer(timer);
                    let said = Json::of(&serde_json::json!({ "key": timer.key, "handled": 0 }))?;
                    cause.append(&stream("rang-1"), ExpectedVersion::Any, Alarm::RANG, said)?;
                    if timer.key == "a" {
                        cause.cancel_timer("b")?;
                        cause.set_timer("c", after(20), Json::empty_object())?;
                    }
                }
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(subscriber)]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        crate::engine::append(&store, 1).await;
        engine.set_clock(after(15), PATIENCE).await.unwrap();
        assert_eq!(keys(&store).await, ["a"], "b is taken back, and c put off");
        engine.set_clock(after(30), PATIENCE).await.unwrap();
        assert_eq!(keys(&store).await, ["a", "c"]);
    }

    /// E-43: what is paused or detached keeps its timers, and each fires once when it is active again, behind the
    /// events that came meanwhile.
    async fn e43_timers_wait_for_their_subscription(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        ask(&store, &[at("a", 10), at("b", 20)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.pause(&Criteria::all(), "test").await.unwrap();
        engine.set_clock(after(15), PATIENCE).await.unwrap();
        let without = crate::engine::engine(&store, vec![]);
        without.detach(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "alarms").await.word(), "detached");
        engine.set_clock(after(100), PATIENCE).await.unwrap();
        assert_eq!(alarms.calls().len(), 0);
        ask(&store, &[Alarm::cancelled("a")]).await;
        engine.reactivate(&Criteria::all(), "test").await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(rang(&store).await, [("b".to_owned(), 100, 3)]);
    }

    /// E-11, E-43: what is removed leaves no timers behind, and the history counts them.
    async fn e11_e43_removed_with_its_timers(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = ringing(&store, &processor()).await;
        ask(&store, &[at("a", 10), at("b", 20)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.remove(&Criteria::id("alarms"), "test").await.unwrap();
        assert_eq!(pending(&engine).await, [""; 0]);
        let history = engine.history("alarms", 1).await.unwrap();
        assert_eq!(history[0].why, "test (and forgot 2 timers)");
        engine.set_clock(after(100), PATIENCE).await.unwrap();
        assert_eq!(keys(&store).await, [""; 0]);
    }

    /// E-43: who sets timers and does not handle them is told so, and none is lost.
    async fn e43_a_subscriber_that_forgot_its_timers(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        #[derive(Debug)]
        struct Forgetful;
        #[async_trait::async_trait]
        impl subscription_engine::Subscriber for Forgetful {
            fn definition(&self) -> Definition {
                Definition::processor("alarms").with_retry(RetryStrategy::None)
            }

            async fn handle(
                &self,
                events: &[store::Event],
                context: &mut subscription_engine::Context<'_>,
            ) -> Result<(), subscription_engine::BoxError> {
                Ok(context.because_of(&events[0]).set_timer("a", after(10), Json::empty_object())?)
            }
        }
        let engine = engine(&store, vec![Arc::new(Forgetful)]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        crate::engine::append(&store, 1).await;
        engine.set_clock(after(10), PATIENCE).await.unwrap();
        let State::Error { failure, .. } = look(&engine, "alarms").await.state else { panic!("it goes on") };
        assert!(failure.chain[1].contains("does not handle them: a"), "{failure:?}");
        assert_eq!(pending(&engine).await, ["a"]);
    }

    /// E-43: timers are of one subscription; another one gets the events that they bring about.
    async fn e43_timers_are_of_one_subscription(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let other = Arc::new(Scripted::idle(Definition::processor("other")));
        let engine = engine(&store, vec![processor(), other]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, &[at("a", 10)]).await;
        engine.set_clock(after(10), PATIENCE).await.unwrap();
        assert_eq!(engine.timers("other", None, 10).await.unwrap(), []);
        assert_eq!(position(&look(&engine, "other").await), 2, "it got the event of the timer");
        assert!(matches!(engine.retry_timer("nobody", "a", "x").await.unwrap(), TimerOutcome::Not(Outcome::Refused { .. })));
    }
}

/// Where the last event that asks stands.
async fn position_of_last(store: &store::Store) -> i64 {
    let events = crate::given::all_events(store).await;
    events.iter().rfind(|event| event.event_type == Alarm::ASKED).unwrap().position.0
}
