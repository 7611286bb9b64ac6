//! Stores that leave nothing behind (S-19, PROOPH-12), and several side by side (S-20, NEOS-13, PROOPH-03).

use std::path::PathBuf;

use store::{
    Append, AppendError, ExpectedVersion, Filter, Options, Position, Setup, Store, TableName, Version,
};
use subscription_engine::{Criteria, Definition};
use testkit::{Collector, T0, TestDatabase};
use tokio::time::{Duration, timeout};

use crate::engine::engine;
use crate::given::{all_events, event, stream};

/// No other store's hint or lock can have been waited for.
const AT_ONCE: Duration = Duration::from_secs(10);
/// A hint that was not for this store would come within this time.
const A_WHILE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn s19_a_store_in_memory_is_a_store() {
    let (one, two) = (Store::in_memory().await.unwrap(), Store::in_memory().await.unwrap());
    one.append(&stream("a-1"), ExpectedVersion::NoStream, vec![event(1), event(2)]).await.unwrap();
    let refused = one.append(&stream("a-1"), ExpectedVersion::NoStream, vec![event(3)]).await.unwrap_err();
    assert!(matches!(refused, AppendError::WrongVersion { actual: Some(Version(1)), .. }), "{refused}");
    assert_eq!((all_events(&one).await.len(), all_events(&two).await.len()), (2, 0));
    let rows: Vec<(i64,)> = one.database().fetch_all("SELECT sequencenumber FROM events", ()).await.unwrap();
    assert_eq!(rows.len(), 2);
}

#[tokio::test]
async fn s19_a_store_in_memory_goes_with_its_last_handle() {
    let store = Store::in_memory().await.unwrap();
    let another = store.clone();
    let folder = PathBuf::from(store.database().target().database).parent().unwrap().to_owned();
    drop(store);
    another.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
    // What was set up again is a handle to the same store.
    let setup = Setup { view: TableName::new("other").unwrap(), test_clock: None };
    let (again, ran) = another.set_up(&setup).await.unwrap();
    drop(another);
    assert_eq!((ran, all_events(&again).await.len(), folder.exists()), (0, 1, true));

    drop(again);

    assert!(!folder.exists());
}

/// Projections run on it as well, and its time is set by hand if that is wanted.
#[tokio::test]
async fn prooph12_a_store_in_memory_carries_subscriptions() {
    let setup = Setup { view: TableName::new("events").unwrap(), test_clock: Some(T0) };
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let store = Store::in_memory_with(&migrations, &setup).await.unwrap();
    let collector = Collector::new(Definition::projector("all"));
    let engine = engine(&store, vec![collector.clone()]);
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1), event(2)]).await.unwrap();

    engine.catch_up(&Criteria::all()).await.unwrap();

    assert_eq!(collector.positions(&store).await, [1, 2]);
    assert_eq!(all_events(&store).await[0].recorded_at, T0);
}

/// A store at this place, with a view of this name; and a handle as in another process.
async fn opened(database: &TestDatabase, view: &str) -> (Store, Store) {
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let store = Store::open(database.url(), &Options::default(), &migrations).await.unwrap();
    let setup = Setup { view: TableName::new(view).unwrap(), test_clock: None };
    (store.set_up(&setup).await.unwrap().0, database.open().await)
}

/// One store has an append under way, and hears and is told a lot; nothing of that reaches the other one.
async fn keep_apart(one: &TestDatabase, other: &TestDatabase) {
    let (busy, busy_elsewhere) = opened(one, "busy_events").await;
    let (quiet, quiet_elsewhere) = opened(other, "quiet_events").await;
    for number in 0..3 {
        busy.append(&stream("a-1"), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
    }

    // Positions, streams and identities are each store's own.
    let appended = quiet.append(&stream("a-1"), ExpectedVersion::NoStream, vec![event(7)]).await.unwrap();
    assert_eq!((appended.position, appended.version), (Some(Position(1)), Some(Version(0))));
    assert_ne!(busy.identity().await.unwrap(), quiet.identity().await.unwrap());
    assert_eq!((all_events(&busy).await.len(), all_events(&quiet).await.len()), (3, 1));

    // Locks and heads: an append that stays open in one holds nothing up in the other.
    let mut tx = busy.begin().await.unwrap();
    let append = Append { stream: stream("b-1"), expected: ExpectedVersion::Any, events: vec![event(1)] };
    busy.append_all(&mut tx, vec![append]).await.unwrap();
    let undisturbed = timeout(AT_ONCE, async {
        quiet.append(&stream("a-1"), ExpectedVersion::Any, vec![event(8)]).await.unwrap();
        quiet_elsewhere.append(&stream("b-1"), ExpectedVersion::NoStream, vec![event(9)]).await.unwrap();
        let head = quiet.head().await.unwrap();
        assert_eq!((head.position, head.is_end), (Position(3), true));
        assert_eq!(quiet.read(&Filter::all(), Position::START, 9).await.unwrap().events.len(), 3);
    });
    undisturbed.await.expect("an append to another store is waited for");
    tx.rollback().await;

    // Hints: whoever listens here hears nothing of there, and hears what is here.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut wake = quiet.wake();
    wake.arm();
    let listening = tokio::spawn({
        let quiet = quiet.clone();
        async move { quiet.listen(async { drop(stopped.await) }).await }
    });
    wake.wait(AT_ONCE).await;
    // The last hint of the appends above may still be on its way.
    while hinted_within(&mut wake, A_WHILE).await {
        wake.arm();
    }
    // Armed before each append: its hint may be faster than its acknowledgement.
    wake.arm();
    busy.append(&stream("a-1"), ExpectedVersion::Any, vec![event(4)]).await.unwrap();
    busy_elsewhere.append(&stream("a-1"), ExpectedVersion::Any, vec![event(5)]).await.unwrap();
    assert!(!hinted_within(&mut wake, A_WHILE).await, "a hint came from another store");
    wake.arm();
    quiet_elsewhere.append(&stream("a-1"), ExpectedVersion::Any, vec![event(6)]).await.unwrap();
    assert!(hinted_within(&mut wake, AT_ONCE).await);
    stop.send(()).unwrap();
    listening.await.unwrap();

    // Views: each shows its own, with the ten columns.
    for (store, view, count) in [(&busy, "busy_events", 5), (&quiet, "quiet_events", 4)] {
        let columns = store::Sql::named(
            "SELECT sequencenumber, stream, version, type, payload, metadata, CAST(id AS TEXT) AS id,
                    correlationidentifier, CAST(causationidentifier AS TEXT) AS causationidentifier, recordedat
               FROM {t}
              ORDER BY sequencenumber",
            &TableName::new(view).unwrap(),
        );
        let rows: Vec<ViewRow> = store.database().fetch_all(columns, ()).await.unwrap();
        let wanted: Vec<ViewRow> = all_events(store).await.into_iter().map(ViewRow::from).collect();
        assert_eq!(rows, wanted, "{view}");
        assert_eq!(rows.len(), count, "{view}");
    }

    // One that is closed closes no other.
    busy.close().await;
    quiet.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
}

/// Whether a hint comes, or has come since it was armed.
async fn hinted_within(wake: &mut store::Wake, at_most: Duration) -> bool {
    timeout(at_most, wake.wait(Duration::MAX)).await.is_ok()
}

/// The ten columns by their names (NEOS-21, NEOS-22 as amended).
#[derive(Debug, PartialEq, sqlx::FromRow)]
struct ViewRow {
    sequencenumber: i64,
    stream: String,
    version: i64,
    r#type: String,
    payload: String,
    metadata: String,
    id: String,
    correlationidentifier: Option<String>,
    causationidentifier: Option<String>,
    recordedat: store::Timestamp,
}

impl From<store::Event> for ViewRow {
    fn from(event: store::Event) -> Self {
        Self {
            sequencenumber: event.position.0,
            stream: event.stream.to_string(),
            version: event.version.0,
            r#type: event.event_type,
            payload: event.payload.to_string(),
            metadata: event.metadata.to_string(),
            id: event.id.to_string(),
            correlationidentifier: event.correlation_id,
            causationidentifier: event.causation_id.map(|id| id.to_string()),
            recordedat: event.recorded_at,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s20_two_files_are_two_stores() {
    keep_apart(&TestDatabase::sqlite(), &TestDatabase::sqlite()).await;
}

/// In one database of one server, in two schemas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s20_two_schemas_are_two_stores() {
    let name = "s20_two_schemas_are_two_stores";
    let Some(one) = TestDatabase::postgres(name).await else { return };
    let Some(other) = TestDatabase::postgres(name).await else { return };
    keep_apart(&one, &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s20_a_file_and_a_schema_are_two_stores() {
    let Some(schema) = TestDatabase::postgres("s20_a_file_and_a_schema_are_two_stores").await else { return };
    keep_apart(&TestDatabase::sqlite(), &schema).await;
    let Some(schema) = TestDatabase::postgres("s20_a_file_and_a_schema_are_two_stores").await else { return };
    keep_apart(&schema, &TestDatabase::sqlite()).await;
}
