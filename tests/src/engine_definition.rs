//! A definition that changed without a new id is reported until somebody replays the subscription or accepts it.

use std::sync::Arc;

use store::Store;
use subscription_engine::{Criteria, Definition, Engine, Outcome, Subscriber};
use testkit::{Scripted, both};

use crate::engine::{Running, append, engine, look, only};

const VERSION: &str = "the author's version was 1, is 2";

fn program(store: &Store, definition: Definition) -> Engine {
    let subscriber: Arc<dyn Subscriber> = Arc::new(Scripted::idle(definition));
    engine(store, vec![subscriber])
}

fn first() -> Definition {
    Definition::projector("a").on(["A"])
}

/// Of the next release: more events are wanted, and the handler does something else.
fn second() -> Definition {
    Definition::projector("a").on(["A", "B"]).with_version(2)
}

async fn changes(engine: &Engine) -> Vec<String> {
    engine.status(&Criteria::id("a")).await.unwrap().remove(0).changes
}

async fn refresh(engine: &Engine, accepts: bool) -> Vec<String> {
    match only(engine.refresh(&Criteria::id("a"), accepts, "it only wants more").await.unwrap()) {
        Outcome::Refreshed { changes } => changes,
        outcome => panic!("{outcome:?}"),
    }
}

both! {
    async fn e41_a_change_is_reported_until_it_is_accepted(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let before = program(&store, first());
        assert!(changes(&before).await.is_empty(), "one that is not set up has nothing to compare with");
        before.catch_up(&Criteria::all()).await.unwrap();
        assert!(changes(&before).await.is_empty());

        let after = program(&store, second());
        let reported = changes(&after).await;
        let wants = r#"what it wants was {"types":["A"]}, is {"types":["A","B"]}"#;
        assert_eq!(reported, [VERSION, wants]);
        after.catch_up(&Criteria::all()).await.unwrap();
        assert!(refresh(&after, false).await.is_empty(), "a refresh accepts it only where it is asked to");
        assert_eq!(changes(&after).await, reported);

        assert_eq!(refresh(&after, true).await, reported);
        assert!(changes(&after).await.is_empty());
        assert_eq!(changes(&before).await.len(), 2, "and the program of before has changed now");
        let history = after.history("a", 1).await.unwrap();
        assert!(history[0].why.contains(VERSION) && history[0].why.contains("it only wants more"), "{history:?}");
    }

    async fn e41_a_replay_and_a_new_setup_are_of_the_code(database: TestDatabase) {
        let store = database.store().await;
        program(&store, first()).catch_up(&Criteria::all()).await.unwrap();
        let after = program(&store, second());
        after.replay("a", "built anew", |_, _| {}).await.unwrap();
        assert!(changes(&after).await.is_empty(), "replayed");

        program(&store, first()).replay("a", "and back", |_, _| {}).await.unwrap();
        assert_eq!(changes(&after).await.len(), 2);
        after.remove(&Criteria::all(), "test").await.unwrap();
        after.catch_up(&Criteria::all()).await.unwrap();
        assert!(changes(&after).await.is_empty(), "set up anew");
    }

    /// What the row says in columns of its own is reported as well, and a refresh settles that.
    async fn e41_e13_another_group_is_a_change_until_the_refresh(database: TestDatabase) {
        let store = database.store().await;
        program(&store, first()).catch_up(&Criteria::all()).await.unwrap();
        let after = program(&store, first().in_group("fast"));
        assert_eq!(changes(&after).await, ["the group was projector, is fast"]);
        refresh(&after, false).await;
        assert!(changes(&after).await.is_empty());
    }

    /// A row of an older program has no definition: a worker writes down what it finds, and reports what changes then.
    async fn e41_a_worker_writes_down_what_an_older_program_did_not(database: TestDatabase) {
        let store = database.store().await;
        let engine = program(&store, first());
        engine.catch_up(&Criteria::all()).await.unwrap();
        store.database().execute("UPDATE herald_subscriptions SET definition = NULL", ()).await.unwrap();
        assert!(changes(&program(&store, second())).await.is_empty(), "nobody knows");
        Running::start(&engine).await.stop().await;
        assert!(look(&engine, "a").await.definition.is_some());
        assert_eq!(changes(&program(&store, second())).await.len(), 2);
    }
}
