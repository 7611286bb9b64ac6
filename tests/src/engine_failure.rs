//! When a handler fails: what stays, what is recorded, and when it is tried again.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use store::{DatabaseKind, Position, Store};
use subscription_engine::{
    Criteria, Definition, Engine, Failure, Outcome, RetryStrategy, Settings, State, Status, Subscriber,
};
use testkit::{Collector, Failing, Scripted, T0, both, position, positions};

use crate::engine::{Running, append, append_typed, engine, look, only, status, until};

/// What a subscription in error failed with.
pub(crate) async fn failure_of(engine: &Engine, id: &str) -> Failure {
    match look(engine, id).await.state {
        State::Error { failure, .. } => failure,
        state => panic!("not in error: {state:?}"),
    }
}

fn in_units_of(unit_events: usize, store: &Store, subscribers: Vec<Arc<dyn Subscriber>>) -> Engine {
    engine(store, subscribers).with_settings(Settings { unit_events, ..Settings::default() })
}

/// With limits that a test can wait for.
fn in_a_hurry(store: &Store, subscribers: Vec<Arc<dyn Subscriber>>) -> Engine {
    let (time_limit, write_limit) = (Duration::from_millis(300), Duration::from_millis(200));
    let settings = Settings { time_limit, write_limit, ..Settings::default() };
    engine(store, subscribers).with_settings(settings)
}

both! {
    /// E-23: wherever in a page the event stands, position is the one before it.
    async fn e23_the_failing_event_is_found_anywhere_in_a_page(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        append(&store, 12).await;
        for poison in [1, 2, 5, 6, 10, 11, 12] {
            let failing = Failing::new(Definition::projector(format!("at_{poison}")), [poison]);
            let engine = in_units_of(5, &store, vec![failing.clone()]);
            engine.catch_up(&Criteria::all()).await.unwrap();
            let id = format!("at_{poison}");
            assert_eq!(position(&look(&engine, &id).await), poison - 1);
            assert_eq!(failure_of(&engine, &id).await.event.unwrap().position, Position(poison));
            assert_eq!(failing.positions(&store).await, positions(poison - 1));
        }
    }

    /// S-25: a row that cannot be read is the failure of the subscription that wants it, at its position; what stands
    /// before it is handled, and others go on.
    async fn s25_an_unreadable_event_is_the_failure_of_who_wants_it(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let all = Collector::new(Definition::projector("all"));
        let others = Collector::new(Definition::projector("others").on(["Other"]));
        let engine = engine(&store, vec![all.clone(), others.clone()]);
        append_typed(&store, "thing-1", &["Other", "Other", "Bad", "Other"]).await;
        crate::restore::raw(&store, match database.is_postgres() {
            true => "ALTER TABLE herald_events DISABLE TRIGGER USER",
            false => "DROP TRIGGER herald_events_never_change",
        }.to_owned()).await;
        crate::restore::raw(&store, "UPDATE herald_events SET payload = 'x' WHERE position = 3".to_owned()).await;

        engine.catch_up(&Criteria::all()).await.unwrap();

        assert_eq!(others.positions(&store).await, [1, 2, 4]);
        assert_eq!(all.positions(&store).await, [1, 2]);
        let now = look(&engine, "all").await;
        assert_eq!((position(&now), now.failing_position), (2, Some(Position(3))));
        let State::Error { failure, next_retry: Some(due), .. } = now.state else { panic!("{now:?}") };
        assert_eq!(failure.message(), "the event at position 3 cannot be read");
        assert!(failure.chain.len() > 1, "{failure:?}");
        // Tried again by the clock, like every failure at an event; and mended, it goes on.
        crate::restore::raw(&store, "UPDATE herald_events SET payload = '1' WHERE position = 3".to_owned()).await;
        engine.set_clock(due, Duration::from_secs(30)).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(all.positions(&store).await, positions(4));
    }

    /// E-30: attempts count for one position; the next poison event begins at none.
    async fn e30_attempts_count_per_failing_position(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("failing"), [3, 7]);
        let engine = engine(&store, vec![failing.clone()]);
        append(&store, 9).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.set_clock(T0.plus(Duration::from_secs(5)), Duration::from_secs(30)).await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((position(&now), now.attempt, now.failing_position), (2, 1, Some(Position(3))));

        failing.fail_at([7]);
        engine.set_clock(T0.plus(Duration::from_secs(15)), Duration::from_secs(30)).await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((position(&now), now.attempt, now.failing_position), (6, 0, Some(Position(7))));
        let State::Error { next_retry, .. } = now.state else { panic!("{now:?}") };
        assert_eq!(next_retry, Some(T0.plus(Duration::from_secs(20))));

        failing.mend();
        engine.set_clock(T0.plus(Duration::from_secs(20)), Duration::from_secs(30)).await.unwrap();
        let now = look(&engine, "failing").await;
        assert_eq!((position(&now), now.attempt, now.failing_position), (9, 0, None));
        assert_eq!(failing.positions(&store).await, positions(9));
    }

    /// E-23: events that it does not want, up to the failing one, are behind it.
    async fn e23_a_filtered_subscription_fails_right_before_the_event(database: TestDatabase) {
        let store = database.store().await;
        let failing = Failing::new(Definition::projector("failing").on(["Wanted"]), [6]);
        let engine = engine(&store, vec![failing.clone()]);
        append_typed(&store, "thing-1", &["Other", "Wanted", "Other", "Other", "Other", "Wanted", "Wanted"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(failing.positions(&store).await, [2]);
        assert_eq!(position(&look(&engine, "failing").await), 5);
        assert_eq!(failure_of(&engine, "failing").await.event.unwrap().position, Position(6));
    }

    /// E-23: a panic is a failure like any other, with its message.
    async fn e23_a_panic_fails_like_an_error(database: TestDatabase) {
        let store = database.store().await;
        let panicking = Scripted::new(Definition::projector("panicking"), |events, context| {
            Box::pin(async move {
                context.tx().await?;
                assert!(events.iter().all(|event| event.position.0 != 2), "the handler lost its head");
                Ok(())
            })
        });
        let collector = Collector::new(Definition::projector("other"));
        let engine = engine(&store, vec![Arc::new(panicking), collector.clone()]);
        append(&store, 3).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&engine, "panicking").await;
        assert_eq!(failure.message(), "the handler panicked: the handler lost its head");
        assert_eq!(failure.event.unwrap().position, Position(2));
        assert_eq!(position(&look(&engine, "panicking").await), 1);
        assert_eq!(collector.positions(&store).await, positions(3));
    }

    /// E-23: a statement that never ends is ended on the server too, or its row would stay claimed.
    async fn e23_a_handler_that_hangs_in_its_transaction_is_cut_and_recorded(database: TestDatabase) {
        let store = database.store().await;
        let hanging = Scripted::new(Definition::projector("hanging"), |_, context| {
            Box::pin(async move {
                let tx = context.tx().await?;
                match tx.kind() {
                    DatabaseKind::Postgres => tx.execute("SELECT pg_sleep(3600)", ()).await.map(drop)?,
                    DatabaseKind::Sqlite => pending().await,
                }
                Ok(())
            })
        });
        let collector = Collector::new(Definition::projector("other"));
        let engine = in_a_hurry(&store, vec![Arc::new(hanging), collector.clone()]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let expected = match store.database().kind() {
            DatabaseKind::Postgres => "the handler took longer than 300ms",
            DatabaseKind::Sqlite => "the handler held SQLite's write lock longer than 200ms",
        };
        assert_eq!(failure_of(&engine, "hanging").await.message(), expected);
        assert_eq!(collector.positions(&store).await, positions(1));
    }

    /// E-23: the same where it hangs outside of its transaction, and while it is set up.
    async fn e23_a_handler_and_a_setup_that_hang_are_cut_and_recorded(database: TestDatabase) {
        let store = database.store().await;
        let hanging = Scripted::new(Definition::projector("hanging"), |_, _| Box::pin(pending()));
        let stuck = Scripted::idle(Definition::projector("stuck")).with_setup(|_| Box::pin(pending()));
        let engine = in_a_hurry(&store, vec![Arc::new(hanging), Arc::new(stuck)]);
        append(&store, 2).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(failure_of(&engine, "hanging").await.message(), "the handler took longer than 300ms");
        assert_eq!(failure_of(&engine, "hanging").await.event.unwrap().position, Position(1));
        let message = failure_of(&engine, "stuck").await.message().to_owned();
        assert!(message.ends_with("longer than 300ms") || message.ends_with("longer than 200ms"), "{message}");
    }

    /// E-27: whoever swallows a failed statement does not get the rest committed.
    async fn e27_a_swallowed_failure_is_not_committed(database: TestDatabase) {
        let store = database.store().await;
        let swallowing = Scripted::new(Definition::projector("swallowing"), |_, context| {
            Box::pin(async move {
                let _ = context.tx().await?.execute("INSERT INTO there_is_no_such_table VALUES (1)", ()).await;
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(swallowing)]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let message = failure_of(&engine, "swallowing").await.chain.join(": ");
        assert!(message.contains("an earlier statement in it failed"), "{message}");
        assert_eq!(position(&look(&engine, "swallowing").await), 0);
    }

    /// PL-133, PL-134: messages are kept whole, outermost first; even one that the database could not store.
    async fn pl_133_pl_134_messages_of_any_length_and_alphabet_are_kept(database: TestDatabase) {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}\0", "Zeichen für Zeichen 🦉 ".repeat(100))
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let store = database.store().await;
        let failing = Scripted::new(Definition::projector("failing"), |_, _| {
            Box::pin(async { Err(Outer(std::io::Error::other("the cause")).into()) })
        });
        let engine = engine(&store, vec![Arc::new(failing)]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let chain = failure_of(&engine, "failing").await.chain;
        assert_eq!(chain, [format!("{}\u{fffd}", "Zeichen für Zeichen 🦉 ".repeat(100)), "the cause".to_owned()]);
    }

    /// E-30 with a worker: it tries again at each due instant, gives up, and the others keep running.
    async fn e30_a_worker_retries_by_the_manual_clock_and_gives_up(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("failing"), [3]);
        let collector = Collector::new(Definition::projector("other"));
        let engine = engine(&store, vec![failing.clone(), collector.clone()]);
        append(&store, 5).await;
        let worker = Running::start(&engine).await;
        until(&engine, "failing", |now| now.state.status() == Status::Error).await;
        for (attempt, seconds) in [5, 15, 35, 75, 155].into_iter().enumerate() {
            let now = look(&engine, "failing").await;
            let due = T0.plus(Duration::from_secs(seconds));
            assert!(matches!(now.state, State::Error { next_retry: Some(at), .. } if at == due), "{now:?}");
            assert_eq!(now.attempt as usize, attempt);
            let calls = failing.calls();
            engine.set_clock(due, Duration::from_secs(30)).await.unwrap();
            assert_eq!(failing.calls(), calls + 1, "once at each instant, and only the failing event");
        }
        let now = look(&engine, "failing").await;
        assert!(matches!(now.state, State::Error { next_retry: None, .. }), "{now:?}");
        assert_eq!((position(&now), now.attempt), (2, 5));
        append(&store, 5).await;
        until(&engine, "other", |now| position(now) == 10).await;
        worker.stop().await;
        assert_eq!(status(&engine, "failing").await, Status::Error);
        assert_eq!(failing.positions(&store).await, positions(2));

        let history = engine.history("failing", 100).await.unwrap();
        let lines: Vec<_> = history.iter().map(|line| format!("{}: {}", line.to_status, line.why)).collect();
        let end = ["booting: retry 5", "error: failed: cannot digest position 3"];
        assert_eq!(lines[lines.len() - 2..], end);
        assert_eq!(history.last().unwrap().at, T0.plus(Duration::from_secs(155)));
        assert_eq!(history.last().unwrap().who, "engine");
    }

    /// PL-060, PL-061, PL-062: what failed is retried in the operation it failed in, in no other.
    async fn pl_060_pl_061_pl_062_a_retry_belongs_to_its_operation(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let broken_setup = Scripted::idle(Definition::projector("new"))
            .with_setup(|_| Box::pin(async { Err("cannot be set up".into()) }));
        let booting = Failing::new(Definition::projector("booting"), [1]);
        let active = Failing::new(Definition::projector("active"), [1]);
        let engine = engine(&store, vec![Arc::new(broken_setup), booting.clone(), active.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::id("active"), true).await.unwrap();
        engine.set_up(&Criteria::all(), false).await.unwrap();
        engine.boot(&Criteria::all(), None).await.unwrap();
        engine.run(&Criteria::all(), None).await.unwrap();
        store.clock().set(T0.plus(Duration::from_secs(5))).await.unwrap();

        let attempts = async || {
            let mut attempts = Vec::new();
            for id in ["new", "booting", "active"] {
                attempts.push(look(&engine, id).await.attempt);
            }
            attempts
        };
        assert_eq!(attempts().await, [0, 0, 0]);
        assert!(matches!(only(engine.set_up(&Criteria::all(), false).await.unwrap()), Outcome::Failed { .. }));
        assert_eq!(attempts().await, [1, 0, 0]);
        engine.boot(&Criteria::all(), None).await.unwrap();
        assert_eq!(attempts().await, [1, 1, 0]);
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(attempts().await, [1, 1, 1]);
    }

    /// PL-005, PL-038, PL-063: without a strategy it gives up at once and is never tried again.
    async fn pl_005_pl_038_pl_063_no_retry_gives_up_at_once(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("failing").with_retry(RetryStrategy::None), [1]);
        let broken = Scripted::idle(Definition::projector("broken").with_retry(RetryStrategy::None))
            .with_setup(|_| Box::pin(async { Err("cannot be set up".into()) }));
        let engine = engine(&store, vec![failing.clone(), Arc::new(broken)]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let calls = failing.calls();
        engine.set_clock(T0.plus(Duration::from_secs(1_000_000)), Duration::from_secs(30)).await.unwrap();
        assert_eq!(failing.calls(), calls);
        for id in ["failing", "broken"] {
            let now = look(&engine, id).await;
            assert!(matches!(now.state, State::Error { next_retry: None, .. }), "{now:?}");
            assert_eq!(now.attempt, 0);
        }
    }
}
