//! State projections, folds that only look, and read models that queue what they write.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{Event, ExpectedVersion, Filter, Json, NewEvent, Position, Sql, Store, TableName};
use subscription_engine::{
    BoxError, Context, Criteria, Definition, Engine, Fold, Folded, Handlers, KeptState, Settings, StateError,
    StateProjection, Subscriber,
};
use testkit::{both, position};

use crate::engine::{append_typed, engine, look};
use crate::engine_failure::failure_of;
use crate::engine_handlers::{Deposited, Withdrawn, happened};
use crate::given::stream;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Totals {
    deposited: i64,
    withdrawn: i64,
    events: i64,
}

/// Counts every event, and adds up what is booked.
fn totals() -> Fold<Totals> {
    Fold::new()
        .on::<Deposited>(|totals: &mut Totals, deposited, _| totals.deposited += deposited.cents)
        .on::<Withdrawn>(|totals: &mut Totals, withdrawn, _| totals.withdrawn += withdrawn.cents)
        .any(|totals: &mut Totals, _| totals.events += 1)
}

fn table(name: &str) -> TableName {
    TableName::new(name).unwrap()
}

fn kept(deposited: i64, withdrawn: i64, events: i64, position: i64) -> KeptState<Totals> {
    KeptState { state: Totals { deposited, withdrawn, events }, position: Position(position) }
}

async fn kept_in(store: &Store, name: &str) -> KeptState<Totals> {
    StateProjection::kept_in(store, &table(name)).await.unwrap().unwrap()
}

fn in_units_of(unit_events: usize, store: &Store, subscribers: Vec<Arc<dyn Subscriber>>) -> Engine {
    engine(store, subscribers).with_settings(Settings { unit_events, ..Settings::default() })
}

async fn given(store: &Store) {
    happened(store, "account-1", &[Deposited { cents: 500 }, Deposited { cents: 70 }]).await;
    happened(store, "account-2", &[Withdrawn { cents: 20 }, Withdrawn { cents: 1 }]).await;
    append_typed(store, "accounts-3", &["Bank:Renamed"]).await;
}

both! {
    /// E-46, PROOPH-17: a state is folded over everything, a category or a stream, page by page, and is kept as JSON with
    /// its position.
    async fn e46_prooph_17_a_state_is_kept_with_its_position(database: TestDatabase) {
        let store = database.store().await;
        given(&store).await;
        let everything = StateProjection::new(Definition::projector("all"), "all_totals", totals());
        let category = Definition::projector("category").within(Filter::all().category("account"));
        let category = StateProjection::new(category, "category_totals", totals());
        let one = Definition::projector("one").within(Filter::all().stream(stream("account-2")));
        let one = StateProjection::new(one, "one_totals", totals());
        let engine = in_units_of(2, &store, vec![Arc::new(everything), Arc::new(category), Arc::new(one)]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        assert_eq!(StateProjection::<Totals>::kept_in(&store, &table("all_totals")).await.unwrap(), None);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(kept_in(&store, "all_totals").await, kept(570, 21, 5, 5));
        assert_eq!(kept_in(&store, "category_totals").await, kept(570, 21, 4, 4));
        assert_eq!(kept_in(&store, "one_totals").await, kept(0, 21, 2, 4));

        let sql = Sql::named("SELECT state FROM {t}", &table("all_totals"));
        let row: Option<(String,)> = store.database().fetch_optional(sql, ()).await.unwrap();
        assert_eq!(row.unwrap().0, r#"{"deposited":570,"withdrawn":21,"events":5}"#);

        happened(&store, "account-2", &[Deposited { cents: 5 }]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(kept_in(&store, "one_totals").await, kept(5, 21, 3, 6));
        engine.replay("all", "once more", |_, _| {}).await.unwrap();
        assert_eq!(kept_in(&store, "all_totals").await, kept(575, 21, 6, 6));
        engine.remove(&Criteria::id("all"), "not needed").await.unwrap();
        assert_eq!(engine.rows_of(&table("all_totals")).await.unwrap(), None);
        let gone = StateProjection::<Totals>::kept_in(&store, &table("all_totals")).await.unwrap_err();
        assert!(matches!(gone, StateError::Database { .. }));
    }

    /// E-46, E-23: an event that cannot be read stops the projection right before it; the state is that of before.
    async fn e46_a_bad_event_leaves_the_state_of_before(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        given(&store).await;
        let bad = NewEvent::new("Bank:Deposited", Json::empty_object());
        store.append(&stream("account-1"), ExpectedVersion::Any, vec![bad]).await.unwrap();
        let projection = StateProjection::new(Definition::projector("all"), "all_totals", totals());
        let engine = engine(&store, vec![Arc::new(projection)]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(failure_of(&engine, "all").await.event.unwrap().position, Position(6));
        assert_eq!(position(&look(&engine, "all").await), 5);
        assert_eq!(kept_in(&store, "all_totals").await, kept(570, 21, 5, 5));
    }

    /// E-46: a state of another form is not taken for one of this form; a replay mends it.
    async fn e46_a_state_of_another_form_asks_for_a_replay(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        given(&store).await;
        let older = Fold::<Vec<i64>>::new().any(|seen, event| seen.push(event.position.0));
        let older = StateProjection::new(Definition::projector("all"), "all_totals", older);
        engine(&store, vec![Arc::new(older)]).catch_up(&Criteria::all()).await.unwrap();
        happened(&store, "account-2", &[Deposited { cents: 5 }]).await;
        let newer = StateProjection::new(Definition::projector("all"), "all_totals", totals());
        let engine = engine(&store, vec![Arc::new(newer)]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&engine, "all").await;
        let said = "the state in all_totals is not of the form that the program knows; replay the projection";
        assert_eq!(failure.message(), said);
        engine.replay("all", "another form", |_, _| {}).await.unwrap();
        assert_eq!(kept_in(&store, "all_totals").await, kept(575, 21, 6, 6));
    }

    /// E-46: a fold can be run on the log as it is, and leaves nothing behind.
    async fn e46_a_fold_can_only_look(database: TestDatabase) {
        let store = database.store().await;
        given(&store).await;
        // More than a page of the read.
        append_typed(&store, "account-9", &["Bank:Renamed"; 1_500]).await;
        let (state, position) = totals().run(&store, Filter::all().category("account")).await.unwrap();
        assert_eq!((state, position), (Totals { deposited: 570, withdrawn: 21, events: 1_504 }, Position(1_505)));
        let renamed = Fold::new().when("Bank:Renamed", |count: i64, _| count + 1);
        assert_eq!(renamed.run(&store, Filter::all()).await.unwrap(), (1_501, Position(1_505)));
        let bad = NewEvent::new("Bank:Deposited", Json::empty_object());
        store.append(&stream("account-1"), ExpectedVersion::Any, vec![bad]).await.unwrap();
        let error = totals().run(&store, Filter::all()).await.unwrap_err();
        assert_eq!(error.to_string(), "the payload of position 1506 is no Bank:Deposited");
        assert_eq!(look_for_subscriptions(&store).await, 0);
    }

    /// PROOPH-18: handlers queue what is to be done with the read model, and it is done when the page is persisted.
    async fn prooph_18_operations_are_queued_and_done_when_persisted(database: TestDatabase) {
        let store = database.store().await;
        let signed_up = |id: &str, name: &str| {
            let payload = Json::of(&BTreeMap::from([("id", id), ("name", name)])).unwrap();
            NewEvent::new("User:SignedUp", payload)
        };
        let renamed = |id: &str, name: &str| NewEvent { event_type: "User:Renamed".to_owned(), ..signed_up(id, name) };
        let events = vec![signed_up("1", "Ada"), signed_up("2", "Bob"), renamed("1", "Ada L."), renamed("1", "Ada K.")];
        store.append(&stream("users"), ExpectedVersion::Any, events).await.unwrap();
        let users = Handlers::new(Definition::projector("users").with_table("users", "read_users"))
            .any(Operations::queue);
        engine(&store, vec![Arc::new(users)]).catch_up(&Criteria::all()).await.unwrap();
        let sql = Sql::named("SELECT id, name FROM {t} ORDER BY id", &table("read_users"));
        let rows: Vec<(String, String)> = store.database().fetch_all(sql, ()).await.unwrap();
        let row = |id: &str, name: &str| (id.to_owned(), name.to_owned());
        assert_eq!(rows, [row("1", "Ada K."), row("2", "Bob")]);
    }
}

async fn look_for_subscriptions(store: &Store) -> usize {
    let sql = "SELECT id FROM herald_subscriptions";
    let rows: Vec<(String,)> = store.database().fetch_all(sql, ()).await.unwrap();
    rows.len()
}

/// What is to be done with the read model of the users, in order.
#[derive(Default)]
struct Operations(Vec<(&'static str, BTreeMap<String, String>)>);

impl Operations {
    fn queue(&mut self, event: &Event) {
        let operation = if event.event_type == "User:SignedUp" { INSERT } else { RENAME };
        self.0.push((operation, event.payload.to().unwrap()));
    }
}

const INSERT: &str = "INSERT INTO {t} (id, name) VALUES ($1, $2)";
const RENAME: &str = "UPDATE {t} SET name = $2 WHERE id = $1";

#[async_trait]
impl Folded for Operations {
    async fn setup(context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("users", "CREATE TABLE {t} (id TEXT PRIMARY KEY, name TEXT NOT NULL)", ()).await?;
        Ok(())
    }

    async fn write(self, context: &mut Context<'_>) -> Result<(), BoxError> {
        for (operation, user) in self.0 {
            context.execute("users", operation, (user["id"].as_str(), user["name"].as_str())).await?;
        }
        Ok(())
    }
}
