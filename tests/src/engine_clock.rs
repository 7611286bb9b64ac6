//! The manual clock: it stops wherever something is due, and returns when everybody has caught up with it.

use std::sync::Arc;
use std::time::Duration;

use store::{ClockError, ExpectedVersion, Json, Position, Timestamp};
use subscription_engine::{
    ClockAdvanceError, Criteria, Definition, Engine, NewEffect, Outcome, Registry, State, Subscriber,
};
use testkit::{Collector, Failing, Held, Receiver, Scripted, T0, both, position, positions};

use crate::effects::{ask, ledger, mailer, posting};
use crate::engine::{Running, append, engine, look, only, until};
use crate::given::stream;
use crate::program::herald;

const PATIENCE: Duration = Duration::from_secs(60);

fn after(seconds: u64) -> Timestamp {
    T0.plus(Duration::from_secs(seconds))
}

/// When it failed, by the log's clock, in seconds after the beginning.
async fn failures(engine: &Engine, id: &str) -> Vec<u64> {
    let history = engine.history(id, 100).await.unwrap();
    history.iter().filter(|line| line.to_status == "error").map(|line| line.at.since(T0).as_secs()).collect()
}

both! {
    /// E-31: one step of the clock over five due instants is as good as five, also where a worker does the work.
    async fn e31_the_clock_stops_at_each_due_instant(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alone = Failing::new(Definition::projector("alone").in_group("alone"), [2]);
        let attended = Failing::new(Definition::projector("attended").in_group("attended"), [2]);
        let engine = engine(&store, vec![alone.clone(), attended.clone()]);
        append(&store, 3).await;
        let elsewhere = crate::engine::engine(&database.open().await, vec![attended.clone()]);
        let group = Criteria { groups: Some(vec!["attended".to_owned()]), ids: None };
        let worker = Running::start_for(&elsewhere, group).await;
        engine.set_clock(after(10_000), PATIENCE).await.unwrap();
        for id in ["alone", "attended"] {
            assert_eq!(failures(&engine, id).await, [0, 5, 15, 35, 75, 155], "{id}");
            let now = look(&engine, id).await;
            assert!(matches!(now.state, State::Error { next_retry: None, .. }), "{now:?}");
        }
        assert_eq!(engine.clock().now().await.unwrap(), after(10_000));

        attended.mend();
        append(&store, 1).await;
        engine.reactivate(&Criteria::id("attended"), "mended").await.unwrap();
        engine.set_clock(after(10_001), PATIENCE).await.unwrap();
        assert_eq!(attended.positions(&store).await, positions(4), "it returns when everything is handled");
        worker.stop().await;
    }

    /// E-31: who does not catch up is named, and the clock stands where it was set.
    async fn e31_who_lags_is_named(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let held = Held::before_writing(Definition::projector("held"));
        let collector = Collector::new(Definition::projector("other"));
        let engine = engine(&store, vec![held.clone(), collector]);
        append(&store, 1).await;
        let worker = Running::start(&engine).await;
        held.entered(1).await;
        until(&engine, "other", |now| position(now) == 1).await;
        let error = engine.set_clock(after(60), Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(error, ClockAdvanceError::TimedOut { .. }), "{error}");
        let expected = format!("the time is {T0}, but held did not catch up within 200ms");
        assert_eq!(error.to_string(), expected);
        held.let_go(1);
        engine.set_clock(after(60), PATIENCE).await.unwrap();
        assert_eq!(held.positions(&store).await, [1]);
        worker.stop().await;
    }

    /// E-31: time does not run backwards, and a log by the machine's clock has none to set.
    async fn e31_what_the_clock_refuses(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let manual = engine(&store, vec![]);
        manual.set_clock(after(60), PATIENCE).await.unwrap();
        let error = manual.set_clock(after(59), PATIENCE).await.unwrap_err();
        assert!(matches!(error, ClockAdvanceError::Clock(ClockError::Backwards { .. })), "{error}");
    }

    /// PL-058, PL-059, PL-066, PL-068: due at exactly now is due; until it is past the event, attempts stay.
    async fn pl_058_pl_059_pl_066_pl_068_due_at_exactly_now(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("failing"), [1]);
        let engine = engine(&store, vec![failing.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), true).await.unwrap();
        engine.run(&Criteria::all(), None).await.unwrap();
        store.clock().set(Timestamp::from_micros(after(5).as_micros() - 1)).await.unwrap();
        let outcome = only(engine.run(&Criteria::all(), None).await.unwrap());
        assert_eq!(outcome, Outcome::Waiting { why: format!("it failed and is tried again at {}", after(5)) });
        assert_eq!(failing.calls(), 1);

        store.clock().set(after(5)).await.unwrap();
        engine.run(&Criteria::all(), None).await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((failing.calls(), now.attempt, now.failing_position), (2, 1, Some(Position(1))));
        failing.mend();
        store.clock().set(after(15)).await.unwrap();
        assert_eq!(only(engine.run(&Criteria::all(), None).await.unwrap()), Outcome::CaughtUp { events: 1 });
        let now = look(&engine, "failing").await;
        assert_eq!((now.state.status().word(), now.attempt, now.failing_position), ("active", 0, None));
    }

    /// E-31: retries, timers and effects are each done at their own instant, though the clock is moved once.
    async fn e31_retries_timers_and_effects_each_at_their_instant(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let acting = Scripted::new(Definition::processor("acting").on(["Acme.Test:Happened"]), |events, context| {
            Box::pin(async move {
                for event in events {
                    let mut cause = context.because_of(event);
                    cause.set_timer("ring", after(7), Json::empty_object())?;
                    cause.plan_effect(NewEffect { not_before: Some(after(9)), ..NewEffect::new("mail", "a", "first") })?;
                }
                Ok(())
            })
        });
        let acting = acting.with_timers(|timers, context| {
            Box::pin(async move {
                for timer in timers {
                    let mut cause = context.because_of_timer(timer);
                    cause.append(&stream("rang"), ExpectedVersion::Any, "Rang", Json::empty_object())?;
                    // Due on the way as well, though nobody knew of it when the clock was set.
                    cause.plan_effect(NewEffect { not_before: Some(after(8)), ..NewEffect::new("mail", "b", "second") })?;
                }
                Ok(())
            })
        });
        let failing = Failing::new(Definition::projector("failing"), [1]);
        let receiver = Arc::new(Receiver::new("mail"));
        let engine = posting(engine(&store, vec![Arc::new(acting), failing]), &receiver);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        append(&store, 1).await;

        engine.set_clock(after(10_000), PATIENCE).await.unwrap();

        assert_eq!(failures(&engine, "failing").await, [0, 5, 15, 35, 75, 155]);
        assert_eq!(store.read_stream(&stream("rang"), 0, 10).await.unwrap()[0].recorded_at, after(7));
        assert_eq!(receiver.bodies(), ["second", "first"]);
        let mut done: Vec<Timestamp> = ledger(&engine).await.iter().map(|effect| effect.changed_at).collect();
        done.sort();
        assert_eq!(done, [after(8), after(9)]);
    }

    /// E-31: what is on its way is waited for, and named where it takes too long.
    async fn e31_an_effect_on_its_way_is_waited_for(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let receiver = Arc::new(Receiver::new("mail").held());
        let engine = mailer(&store, &receiver).await;
        let worker = Running::start(&engine).await;
        ask(&store, 0, &["a"]).await;
        receiver.has_received(1).await;
        let error = engine.set_clock(after(60), Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(&error, ClockAdvanceError::TimedOut { lagging, .. } if lagging == "mailing"), "{error}");
        receiver.let_go(1);
        engine.set_clock(after(60), PATIENCE).await.unwrap();
        assert_eq!(receiver.bodies().len(), 1);
        worker.stop().await;
    }

    /// E-31, C-10: the command gives up after its time-out with a code of its own, and says who lags.
    async fn e31_c10_the_command_times_out(database: TestDatabase) {
        herald(&database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
        let store = database.open().await;
        let held = Held::before_writing(Definition::projector("inbox_1"));
        let registry = Registry::new([held.clone() as Arc<dyn Subscriber>]).unwrap();
        let engine = Engine::new(store.clone(), registry, "herald");
        append(&store, 1).await;
        let worker = Running::start(&engine).await;
        held.entered(1).await;
        let said = herald(&database, &["--test-mode", "clock", "advance", "10s", "--timeout", "100ms"]).fails(8);
        assert!(said.stderr.contains("inbox_1 did not catch up within 100ms"), "{said:?}");
        herald(&database, &["--test-mode", "clock", "advance", "10s", "--timeout", "soon"]).fails(2);
        // What it does with the event is another matter: it has no table.
        held.let_go(10);
        worker.kill().await;
    }
}
