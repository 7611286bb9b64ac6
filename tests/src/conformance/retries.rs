//! How often, and when, what failed is tried again.

use std::time::Duration;

use subscription_engine::{Criteria, Definition, Engine, Outcome, RetryStrategy, State, Status};
use testkit::{Failing, T0, both};

use super::stands;
use crate::engine::{append, engine, look, only};

const PATIENCE: Duration = Duration::from_secs(30);

async fn run(engine: &Engine) -> Outcome {
    only(engine.run(&Criteria::all(), None).await.unwrap())
}

/// It gave up after so many further attempts.
async fn gave_up_after(engine: &Engine, attempts: u32) {
    let now = look(engine, "a").await;
    assert!(matches!(now.state, State::Error { next_retry: None, .. }), "{now:?}");
    assert_eq!(now.attempt, attempts);
}

both! {
    async fn pl_064_pl_065_retries_by_the_clock_until_it_gives_up_and_is_reactivated(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let strategy = RetryStrategy::ClockBased {
            base_delay: Duration::from_secs(5),
            delay_factor: 2.0,
            max_attempts: 2,
            max_delay: None,
        };
        let failing = Failing::new(Definition::projector("a").with_retry(strategy), [1]);
        let engine = engine(&store, vec![failing.clone()]);
        append(&store, 1).await;
        engine.set_up(&Criteria::all(), true).await.unwrap();
        let failed = |outcome: Outcome| matches!(outcome, Outcome::Failed { .. });

        assert!(failed(run(&engine).await));
        assert_eq!((look(&engine, "a").await.attempt, failing.calls()), (0, 1));
        assert!(matches!(run(&engine).await, Outcome::Waiting { .. }));
        assert_eq!(failing.calls(), 1);
        store.clock().set(T0.plus(Duration::from_secs(5))).await.unwrap();
        assert!(failed(run(&engine).await));
        assert_eq!((look(&engine, "a").await.attempt, failing.calls()), (1, 2));
        store.clock().set(T0.plus(Duration::from_secs(15))).await.unwrap();
        assert!(failed(run(&engine).await));
        gave_up_after(&engine, 2).await;

        failing.mend();
        engine.reactivate(&Criteria::all(), "mended").await.unwrap();
        let now = look(&engine, "a").await;
        assert_eq!((now.state, now.attempt, now.failing_position), (State::Active, 0, None));
        assert_eq!(run(&engine).await, Outcome::CaughtUp { events: 1 });
        assert_eq!(stands(&engine, "a").await, (Status::Active, 1));
    }

    async fn pl_069_after_the_last_attempt_there_is_no_other(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = Failing::new(Definition::projector("a"), [1]);
        let engine = engine(&store, vec![failing.clone()]);
        append(&store, 1).await;
        engine.set_clock(T0.plus(Duration::from_secs(3600)), PATIENCE).await.unwrap();
        gave_up_after(&engine, 5).await;
        assert_eq!(failing.calls(), 6);

        engine.set_clock(T0.plus(Duration::from_secs(1_000_000)), PATIENCE).await.unwrap();

        gave_up_after(&engine, 5).await;
        assert_eq!(failing.calls(), 6);
    }
}
