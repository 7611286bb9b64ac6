//! A definition that changed without a new id is reported until somebody replays the subscription or accepts it.

use std::sync::Arc;

use store::{Store, TableName};
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, RegisterError, Registry, Status, Subscriber,
};
use testkit::{Collector, Scripted, both};

use crate::engine::{Running, append, engine, look, only, status};

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

    /// E-05: what begins now is set up before whoever appends does so, and nothing else is touched.
    async fn e05_what_begins_now_is_set_up_before_an_append(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 2).await;
        let processor = Collector::new(Definition::processor("processor"));
        let engine = engine(&store, vec![processor.clone(), Collector::new(Definition::projector("projector"))]);
        assert_eq!(
            engine.set_up_what_begins_now().await.unwrap(),
            [("processor".to_owned(), Outcome::Became { from: Status::New, to: Status::Active })]
        );
        append(&store, 1).await;
        assert_eq!(status(&engine, "projector").await, Status::New);
        assert_eq!(engine.set_up_what_begins_now().await.unwrap(), [], "once");
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(processor.positions(&store).await, [3]);
    }

    /// E-14, SUB-16: actions are not repeated, and a new id begins from the beginning beside the old one.
    async fn e14_sub_16_processors_are_not_replayed_and_a_new_id_begins_anew(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 2).await;
        let (processor, old) = (Collector::new(Definition::processor("p")), Collector::new(Definition::projector("v_1")));
        let before = engine(&store, vec![processor, old.clone()]);
        before.catch_up(&Criteria::all()).await.unwrap();
        let refused = before.replay("p", "test", |_, _| {}).await.unwrap();
        assert!(matches!(&refused, Outcome::Refused { why } if why.contains("actions would be repeated")), "{refused:?}");

        let new = Collector::new(Definition::projector("v_2"));
        let after = engine(&store, vec![old.clone(), new.clone()]);
        after.set_up(&Criteria::all(), false).await.unwrap();
        after.boot(&Criteria::all(), None).await.unwrap();
        assert_eq!((old.positions(&store).await, new.positions(&store).await), (vec![1, 2], vec![1, 2]));
    }

    /// SUB-15: a table named after the id, so that a new id never meets the old table; too long a name is refused.
    async fn sub_15_a_table_is_named_after_the_id(database: TestDatabase) {
        let store = database.store().await;
        let projector = |id: &str| {
            let definition = Definition::projector(id).on(["A"]).with_projection_table("rows");
            Arc::new(Scripted::idle(definition).with_setup(|context| {
                Box::pin(async move {
                    context.execute("rows", "CREATE TABLE {t} (number BIGINT)", ()).await?;
                    Ok(())
                })
            })) as Arc<dyn Subscriber>
        };
        let engine = engine(&store, vec![projector("profile_1"), projector("profile_2")]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        for table in ["projection_profile_1", "projection_profile_2"] {
            assert_eq!(engine.rows_of(&TableName::new(table).unwrap()).await.unwrap(), Some(0));
        }
        engine.remove(&Criteria::id("profile_1"), "test").await.unwrap();
        assert_eq!(engine.rows_of(&TableName::new("projection_profile_1").unwrap()).await.unwrap(), None);
        let longest = "x".repeat(63 - "projection_".len());
        assert!(Registry::new([projector(&longest)]).is_ok());
        let refused = Registry::new([projector(&format!("{longest}x"))]).unwrap_err();
        assert!(matches!(refused, RegisterError::InvalidTable { .. }), "{refused}");
    }
}
