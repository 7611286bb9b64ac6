//! Retry strategies that subscribers choose by name.

use std::sync::Arc;
use std::time::Duration;

use store::Store;
use subscription_engine::{
    Criteria, Definition, Engine, RegisterError, Registry, RetryStrategies, RetryStrategy, State, Subscriber,
};
use testkit::{Failing, T0, both};

use crate::engine::{append, look};

fn strategies() -> RetryStrategies {
    let patient = RetryStrategy::own(2, |attempt| Duration::from_secs(7 * u64::from(attempt + 1)));
    let daily = RetryStrategy::own(1, |_| Duration::from_secs(24 * 3600));
    RetryStrategies::default().with("patient", patient).with("default", daily)
}

fn engine_with(store: &Store, definitions: impl IntoIterator<Item = Definition>) -> Engine {
    let failing = |definition| Failing::new(definition, [1]) as Arc<dyn Subscriber>;
    let registry = Registry::with_retry_strategies(definitions.into_iter().map(failing), &strategies());
    Engine::new(store.clone(), registry.unwrap(), "test")
}

/// When it is tried again, in seconds from the beginning; none: it gave up.
async fn due(engine: &Engine, id: &str) -> Option<u64> {
    match look(engine, id).await.state {
        State::Error { next_retry, .. } => next_retry.map(|at| at.since(T0).as_secs()),
        state => panic!("not in error: {state:?}"),
    }
}

both! {
    /// E-30: an author's own strategy is chosen by name; who names none gets the program's default.
    async fn e30_a_strategy_is_chosen_by_name(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        append(&store, 1).await;
        let engine = engine_with(&store, [
            Definition::projector("patient").with_retry_named("patient"),
            Definition::projector("unnamed"),
            Definition::projector("hopeless").with_retry_named("none"),
            Definition::projector("given").with_retry_named("none").with_retry(RetryStrategy::default()),
        ]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(due(&engine, "patient").await, Some(7));
        assert_eq!(due(&engine, "unnamed").await, Some(24 * 3600));
        assert_eq!(due(&engine, "hopeless").await, None);
        assert_eq!(due(&engine, "given").await, Some(5));
        let overview = engine.status(&Criteria::id("patient")).await.unwrap().remove(0);
        assert_eq!(overview.max_attempts, Some(2));

        engine.set_clock(T0.plus(Duration::from_secs(7)), Duration::from_secs(30)).await.unwrap();
        assert_eq!(due(&engine, "patient").await, Some(7 + 14));
        engine.set_clock(T0.plus(Duration::from_secs(60)), Duration::from_secs(30)).await.unwrap();
        assert_eq!(due(&engine, "patient").await, None);
    }
}

#[test]
fn e30_pl_070_an_unknown_name_is_refused_when_registered() {
    let definition = Definition::projector("hopeful").with_retry_named("patience");
    let subscriber = Failing::new(definition, []) as Arc<dyn Subscriber>;
    let error = Registry::with_retry_strategies([subscriber], &strategies()).unwrap_err();
    assert!(matches!(error, RegisterError::UnknownRetryStrategy { .. }));
    let said =
        "subscriber hopeful names the retry strategy \"patience\"; the program knows default, none, patient";
    assert_eq!(error.to_string(), said);
}
