//! Typed handlers: a function for each type of event, one write for each page.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Event, ExpectedVersion, Filter, Json, NewEvent, Position, Store, TableName};
use subscription_engine::{
    BoxError, Context, Criteria, Definition, Engine, Folded, Handlers, Outcome, Settings, Subscriber,
};
use testkit::{both, position};

use crate::engine::{append_typed, engine, look, only};
use crate::engine_failure::failure_of;
use crate::given::stream;

#[derive(Serialize, Deserialize)]
pub(crate) struct Deposited {
    pub(crate) cents: i64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Withdrawn {
    pub(crate) cents: i64,
}

impl DomainEvent for Deposited {
    const TYPE: &'static str = "Bank:Deposited";
}

impl DomainEvent for Withdrawn {
    const TYPE: &'static str = "Bank:Withdrawn";
}

/// Appends what happened to an account.
pub(crate) async fn happened<E: DomainEvent>(store: &Store, account: &str, events: &[E]) {
    let events = events.iter().map(|event| NewEvent::of(event).unwrap()).collect();
    store.append(&stream(account), ExpectedVersion::Any, events).await.unwrap();
}

/// A page of bookings: balances, and what passed by.
#[derive(Default)]
struct Page {
    balances: BTreeMap<String, i64>,
    passed_by: Vec<Position>,
}

impl Page {
    fn deposited(&mut self, deposited: &Deposited, event: &Event) {
        *self.balances.entry(event.stream.to_string()).or_default() += deposited.cents;
    }

    fn withdrawn(&mut self, withdrawn: &Withdrawn, event: &Event) {
        *self.balances.entry(event.stream.to_string()).or_default() -= withdrawn.cents;
    }

    fn passed_by(&mut self, event: &Event) {
        self.passed_by.push(event.position);
    }
}

#[async_trait]
impl Folded for Page {
    async fn setup(context: &mut Context<'_>) -> Result<(), BoxError> {
        let create = "CREATE TABLE {t} (account TEXT PRIMARY KEY, cents BIGINT NOT NULL)";
        context.execute("balances", create, ()).await?;
        let create = "CREATE TABLE {t} (position BIGINT PRIMARY KEY, page BIGINT NOT NULL)";
        context.execute("passed_by", create, ()).await?;
        Ok(())
    }

    async fn write(self, context: &mut Context<'_>) -> Result<(), BoxError> {
        let sql = "INSERT INTO {t} (account, cents) VALUES {rows}
                   ON CONFLICT (account) DO UPDATE SET cents = {t}.cents + excluded.cents";
        context.execute_many("balances", sql, self.balances.into_iter().collect()).await?;
        let page = self.passed_by.first().map_or(0, |position| position.0);
        let rows = self.passed_by.into_iter().map(|position| (position, page)).collect();
        context.execute_many("passed_by", "INSERT INTO {t} (position, page) VALUES {rows}", rows).await?;
        Ok(())
    }
}

fn bank(id: &str) -> Definition {
    Definition::projector(id)
        .with_table("balances", "bank_balances")
        .with_table("passed_by", "bank_passed_by")
}

fn typed(definition: Definition) -> Handlers<Page> {
    Handlers::new(definition).on::<Deposited>(Page::deposited).on::<Withdrawn>(Page::withdrawn)
}

fn in_units_of(unit_events: usize, store: &Store, handlers: Handlers<Page>) -> Engine {
    let subscriber: Arc<dyn Subscriber> = Arc::new(handlers);
    engine(store, vec![subscriber]).with_settings(Settings { unit_events, ..Settings::default() })
}

async fn balances(store: &Store) -> Vec<(String, i64)> {
    store.database().fetch_all("SELECT account, cents FROM bank_balances ORDER BY account", ()).await.unwrap()
}

/// Each position, and the first one of its page.
async fn passed_by(store: &Store) -> Vec<(i64, i64)> {
    store
        .database()
        .fetch_all("SELECT position, page FROM bank_passed_by ORDER BY position", ())
        .await
        .unwrap()
}

both! {
    /// SUB-11, SUB-13: each type has its function, which gets the typed event and everything else of it; what no
    /// function is for is not delivered, and a page is written once.
    async fn sub_11_sub_13_a_function_for_each_type(database: TestDatabase) {
        let store = database.store().await;
        happened(&store, "account-1", &[Deposited { cents: 500 }, Deposited { cents: 70 }]).await;
        happened(&store, "account-1", &[Withdrawn { cents: 20 }]).await;
        append_typed(&store, "account-2", &["Bank:Renamed", "Bank:Renamed"]).await;
        happened(&store, "account-2", &[Deposited { cents: 5 }]).await;
        let handlers = typed(bank("bank"));
        let engine = in_units_of(2, &store, handlers);
        let report = engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(only(report), Outcome::CaughtUp { events: 4 });
        assert_eq!(balances(&store).await, [("account-1".to_owned(), 550), ("account-2".to_owned(), 5)]);
        assert_eq!(position(&look(&engine, "bank").await), 6);
    }

    /// SUB-12, PL-050: a function for everything sees every event, also those that have a function of their own, and both
    /// are called once; each page is written once and begins empty.
    async fn pl_050_sub_12_a_function_for_everything(database: TestDatabase) {
        let store = database.store().await;
        happened(&store, "account-1", &[Deposited { cents: 500 }]).await;
        append_typed(&store, "account-1", &["Bank:Renamed"]).await;
        happened(&store, "account-1", &[Withdrawn { cents: 20 }, Withdrawn { cents: 1 }, Withdrawn { cents: 1 }]).await;
        let engine = in_units_of(2, &store, typed(bank("bank")).any(Page::passed_by));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(balances(&store).await, [("account-1".to_owned(), 478)]);
        assert_eq!(passed_by(&store).await, [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5)]);
    }

    /// E-01: a category can be wanted, and within it everything.
    async fn e01_everything_of_a_category(database: TestDatabase) {
        let store = database.store().await;
        happened(&store, "account-1", &[Deposited { cents: 500 }]).await;
        append_typed(&store, "accounts-1", &["Bank:Renamed"]).await;
        append_typed(&store, "account-2", &["Bank:Renamed"]).await;
        let definition = bank("bank").within(Filter::all().category("account"));
        let engine = in_units_of(10, &store, typed(definition).any(Page::passed_by));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(passed_by(&store).await, [(1, 1), (3, 1)]);
    }

    /// E-23: a payload that is not what its type says is the failure of that very event; what stands before it is
    /// written, and nothing twice.
    async fn e23_an_undecodable_payload_is_that_events_failure(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        happened(&store, "account-1", &[Deposited { cents: 1 }, Deposited { cents: 2 }, Deposited { cents: 4 }]).await;
        let bad = NewEvent::new("Bank:Deposited", Json::parse(r#"{"cents":"many"}"#).unwrap());
        store.append(&stream("account-1"), ExpectedVersion::Any, vec![bad]).await.unwrap();
        happened(&store, "account-1", &[Deposited { cents: 8 }]).await;
        let engine = in_units_of(10, &store, typed(bank("bank")));
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&engine, "bank").await;
        assert_eq!(failure.event.as_ref().unwrap().position, Position(4));
        assert_eq!(failure.message(), "the payload of position 4 is no Bank:Deposited");
        assert!(failure.chain[1].contains("invalid type: string \"many\""), "{failure:?}");
        assert_eq!(position(&look(&engine, "bank").await), 3);
        assert_eq!(balances(&store).await, [("account-1".to_owned(), 7)]);
    }

    /// E-12: setup and teardown are those of the state; its tables go with it.
    async fn e12_its_tables_go_with_it(database: TestDatabase) {
        let store = database.store().await;
        let engine = in_units_of(10, &store, typed(bank("bank")));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert!(balances(&store).await.is_empty());
        engine.remove(&Criteria::all(), "not needed").await.unwrap();
        let table = TableName::new("bank_balances").unwrap();
        assert_eq!(engine.rows_of(&table).await.unwrap(), None);
    }
}
