//! What the code says otherwise than the row, and what of it a refresh brings over.

use std::sync::Arc;
use std::time::Duration;

use store::Store;
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, RunMode, State, Status, Subscriber, Subscription,
};
use testkit::{Failing, Scripted, T0, both};

use super::{idle, stands};
use crate::engine::{append, engine, look, only};
use crate::engine_lifecycle::refused;

async fn refresh(engine: &Engine) -> Outcome {
    only(engine.refresh(&Criteria::all(), false, "test").await.unwrap())
}

/// The same subscription, whose code says something else now.
fn changed(store: &Store, definition: Definition) -> Engine {
    let subscriber: Arc<dyn Subscriber> = Arc::new(Scripted::idle(definition));
    engine(store, vec![subscriber])
}

/// Active at the only event.
async fn active(store: &Store) -> Engine {
    let engine = engine(store, vec![idle("a")]);
    append(store, 1).await;
    engine.catch_up(&Criteria::all()).await.unwrap();
    engine
}

fn other_group() -> Definition {
    Definition::projector("a").in_group("fast")
}

both! {
    /// The retry time stands in the row; to write the row moves nothing.
    async fn pl_071_a_refresh_does_not_move_the_retry(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = |definition| Failing::new(definition, [1]);
        let before = engine(&store, vec![failing(Definition::projector("a"))]);
        append(&store, 1).await;
        before.catch_up(&Criteria::all()).await.unwrap();
        store.clock().set(T0.plus(Duration::from_secs(4))).await.unwrap();
        let after = failing(other_group());
        let engine = engine(&store, vec![after.clone()]);
        assert!(matches!(refresh(&engine).await, Outcome::Refreshed { .. }));
        let now = look(&engine, "a").await;
        let due = T0.plus(Duration::from_secs(5));
        assert!(matches!(now.state, State::Error { next_retry: Some(at), .. } if at == due), "{now:?}");

        store.clock().set(T0.plus(Duration::from_secs(6))).await.unwrap();
        engine.boot(&Criteria::all(), None).await.unwrap();

        assert_eq!(after.calls(), 1, "it is tried again two seconds after the refresh");
    }

    async fn pl_099_where_nothing_differs_nothing_is_written(database: TestDatabase) {
        let store = database.store().await;
        let engine = active(&store).await;
        let (before, lines) = (look(&engine, "a").await, engine.history("a", 100).await.unwrap());

        assert_eq!(refresh(&engine).await, Outcome::Refreshed { changes: Vec::new() });

        assert_eq!(look(&engine, "a").await, before);
        assert_eq!(engine.history("a", 100).await.unwrap(), lines);
    }

    async fn pl_100_exactly_what_the_code_says_is_changed(database: TestDatabase) {
        let store = database.store().await;
        let mut before = look(&active(&store).await, "a").await;
        let table = || Definition::projector("a").with_table("t", "a_table");
        type Change = fn(&mut Subscription);
        let group: Change = |row| row.group = "fast".to_owned();
        let mode: Change = |row| row.run_mode = RunMode::Once;
        let tables: Change = |row| row.clean_up = vec![store::TableName::new("a_table").unwrap()];
        let home: Change = |row| *row = Subscription {
            group: "projector".to_owned(), run_mode: RunMode::FromBeginning, clean_up: Vec::new(), ..row.clone()
        };
        let plain = || Definition::projector("a");
        let steps: [(Definition, &[Change], usize); 6] = [
            (other_group(), &[group], 1),
            (plain(), &[home], 1),
            (plain().with_run_mode(RunMode::Once), &[mode], 1),
            (table(), &[home, tables], 2),
            (plain(), &[home], 1),
            (table().in_group("fast").with_run_mode(RunMode::Once), &[group, mode, tables], 3),
        ];
        for (definition, expected, count) in steps {
            let engine = changed(&store, definition);
            let outcome = refresh(&engine).await;
            assert!(matches!(&outcome, Outcome::Refreshed { changes } if changes.len() == count), "{outcome:?}");
            expected.iter().for_each(|change| change(&mut before));
            assert_eq!(look(&engine, "a").await, before);
        }
        assert_eq!((before.state, before.position.unwrap().0), (State::Active, 1));
    }

    async fn pl_101_without_its_code_a_row_is_left_alone(database: TestDatabase) {
        let store = database.store().await;
        let before = look(&active(&store).await, "a").await;
        let without = engine(&store, vec![]);

        assert!(refused(&refresh(&without).await));

        assert_eq!(look(&without, "a").await, before);
        assert_eq!(stands(&without, "a").await, (Status::Active, 1));
    }
}
