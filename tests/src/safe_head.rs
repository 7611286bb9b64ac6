//! No reader ever skips an event (S-09), and no stranger ever delays one (S-10).

mod cases;
mod model;
pub(crate) mod mutants;
mod published;
mod role;
mod server_run;
mod standby;
mod steps;

use std::time::Duration;

use sqlx::{Connection as _, Executor, PgConnection};
use store::{Append, Event, ExpectedVersion, Filter, Head, Options, Position, Store, StoreError, Tx};
use testkit::{Findings, Prepared, Random, Read, TestDatabase, WANTED, Wanted, both, judge};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::given::{event, stream};

/// Far above what an undisturbed read takes, and below the second for which a read waits at a hole.
const AT_ONCE: Duration = Duration::from_millis(800);
/// Small, so that pages end in the midst of what is being written.
const PAGE: usize = 20;

async fn read(store: &Store, filter: &Filter, after: Position) -> Read {
    let page = store.read(filter, after, PAGE).await.unwrap();
    let events = page.events.into_iter().map(Into::into).collect();
    Read { events, go_on_after: page.scanned_to }
}

both! {
    async fn s09_four_writers_and_a_reader_of_everything(database: TestDatabase) {
        let store = database.store().await;
        let _stranger = Stranger::begin(&database).await;
        let reader = async |after| read(&store, &Filter::all(), after).await;

        let findings = judge(&database, Random::seed(), Wanted::All, reader).await;

        assert_eq!(findings, Findings::default());
    }

    async fn s09_four_writers_and_a_reader_of_one_type(database: TestDatabase) {
        let store = database.store().await;
        let _stranger = Stranger::begin(&database).await;
        let filter = Filter::all().types([WANTED]);
        let reader = async |after| read(&store, &filter, after).await;

        let findings = judge(&database, Random::seed(), Wanted::OfType, reader).await;

        assert_eq!(findings, Findings::default());
    }

    /// What one reader proves is used by all of its process: it must be true wherever the reader stands.
    async fn s09_readers_of_one_process_do_not_mislead_each_other(database: TestDatabase) {
        let store = database.store().await;
        let mut neighbours = JoinSet::new();
        let at_the_head = store.clone();
        neighbours.spawn(async move {
            loop {
                at_the_head.head().await.unwrap();
            }
        });
        let near_the_end = store.clone();
        neighbours.spawn(async move {
            loop {
                let sql = "SELECT coalesce(MAX(position), 0) FROM herald_events";
                let row = near_the_end.database().fetch_optional::<(i64,)>(sql, ()).await.unwrap();
                let (top,) = row.unwrap();
                near_the_end.read(&Filter::all(), Position((top - 2).max(0)), PAGE).await.unwrap();
            }
        });
        let reader = async |after| read(&store, &Filter::all(), after).await;

        let findings = judge(&database, Random::seed(), Wanted::All, reader).await;

        assert_eq!(findings, Findings::default());
        assert!(neighbours.try_join_next().is_none(), "a neighbour failed");
    }

    async fn s09_what_was_rolled_back_last_is_nothing_to_wait_for(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "a-1").await;
        let tx = appended_in(&store, "b-1").await;
        tx.rollback().await;

        let page = timeout(AT_ONCE, store.read(&Filter::all(), Position(1), 10)).await.unwrap().unwrap();

        assert_eq!((page.events.len(), page.scanned_to), (0, Position(1)));
        assert_eq!(store.head().await.unwrap(), Head { position: Position(1), is_end: true });
        append(&store, "a-1").await;
        let page = timeout(AT_ONCE, store.read(&Filter::all(), Position(1), 10)).await.unwrap().unwrap();
        assert_eq!(page.events.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_an_idle_appender_holds_back_what_stands_behind_it() {
    let Some(database) = TestDatabase::postgres("s09_an_idle_appender_holds_back").await else { return };
    let (store, other) = (database.store().await, database.open().await);
    append(&store, "a-1").await;
    let idle = appended_in(&other, "idle-1").await;
    // With nothing above it there is nothing to wait for.
    assert_eq!(store.head().await.unwrap(), Head { position: Position(1), is_end: true });
    append(&store, "a-1").await;

    // Somebody who starts from now must not start behind what is still to come.
    assert_eq!(store.head().await.unwrap(), Head { position: Position(1), is_end: false });
    let everything = store.read(&Filter::all(), Position::START, 10).await.unwrap();
    assert_eq!((positions(&everything.events), everything.scanned_to), (vec![1], Position(1)));
    // What somebody finds above the gap settles nothing below it.
    let above = store.read(&Filter::all(), Position(2), 10).await.unwrap();
    assert_eq!(positions(&above.events), [3]);
    let behind = store.read(&Filter::all(), Position(1), 10).await.unwrap();
    assert_eq!((positions(&behind.events), behind.scanned_to), (vec![], Position(1)));
    let filtered = Filter::all().stream(stream("a-1"));
    let page = store.read(&filtered, Position::START, 10).await.unwrap();
    assert_eq!((positions(&page.events), page.scanned_to), (vec![1], Position(1)));
    assert_eq!(positions(&store.read_backwards(&Filter::all(), None, 10).await.unwrap().events), [1]);
    // Nor does a fresh handle know better.
    assert_eq!(database.open().await.head().await.unwrap(), Head { position: Position(1), is_end: false });

    idle.commit().await.unwrap();
    let page = store.read(&Filter::all(), Position(1), 10).await.unwrap();
    assert_eq!(positions(&page.events), [2, 3]);
    assert_eq!(store.head().await.unwrap(), Head { position: Position(3), is_end: true });
    let page = store.read(&filtered, Position(1), 10).await.unwrap();
    assert_eq!((positions(&page.events), page.scanned_to), (vec![3], Position(3)));
}

/// A fresh handle that met no hole below an idle appender still counts up to it.
#[tokio::test]
async fn s10_what_stands_before_an_idle_appender_is_the_end_if_nothing_follows() {
    let Some(database) = TestDatabase::postgres("s10_what_stands_before_an_idle_appender").await else {
        return;
    };
    let store = database.store().await;
    append(&store, "a-1").await;
    append(&store, "a-1").await;
    let _idle = appended_in(&store, "idle-1").await;

    assert_eq!(database.open().await.head().await.unwrap(), Head { position: Position(2), is_end: true });
}

/// A prepared transaction loses its process and keeps its locks: it may still commit, even days later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_transaction_prepared_while_a_reader_waits_is_waited_for() {
    for (order, then) in [("COMMIT", vec![2, 3]), ("ROLLBACK", vec![3])] {
        let Some(database) = TestDatabase::postgres("s09_a_transaction_prepared").await else { return };
        let (store, other) = (database.store().await, database.open().await);
        append(&store, "a-1").await;
        let idle = appended_in(&other, "idle-1").await;
        append(&store, "a-1").await;
        let (pages, mut page_of) = mpsc::unbounded_channel();
        let reader = tokio::spawn(async move {
            loop {
                let page = store.read(&Filter::all(), Position(1), 10).await.unwrap();
                let positions = positions(&page.events);
                let end = !positions.is_empty();
                pages.send(positions).unwrap();
                if end {
                    return;
                }
            }
        });

        // The first read has waited in vain; the second one is at its wait once this head gives up its own.
        assert_eq!(page_of.recv().await.unwrap(), Vec::<i64>::new());
        assert!(!other.head().await.unwrap().is_end);
        let prepared = Prepared::from(idle).await;
        for _ in 0..2 {
            assert_eq!(page_of.recv().await.unwrap(), Vec::<i64>::new(), "{order}");
        }
        assert!(!other.head().await.unwrap().is_end);
        prepared.end(&other, order).await;

        let mut read = Vec::new();
        while read.is_empty() {
            read = page_of.recv().await.unwrap();
        }
        assert_eq!(read, then, "{order}");
        reader.await.unwrap();
    }
}

/// In such a session a statement could go on seeing what an earlier one saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_role_with_another_isolation_reads_and_appends_the_same() {
    for isolation in ["repeatable read", "serializable"] {
        reads_and_appends_as_a_role_with(isolation).await;
    }
}

async fn reads_and_appends_as_a_role_with(isolation: &str) {
    let Some(database) = TestDatabase::postgres("s09_a_role_with_another_isolation").await else { return };
    let admin = database.store().await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    let mut raw = PgConnection::connect(database.url()).await.unwrap();
    let create = format!(
        "CREATE ROLE {role} LOGIN SUPERUSER;
         ALTER ROLE {role} SET default_transaction_isolation = '{isolation}';
         ALTER ROLE {role} SET default_transaction_read_only = on"
    );
    raw.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(create))).await.unwrap();
    let url = database.url().replacen("postgres://postgres@", &format!("postgres://{role}@"), 1);
    assert_ne!(url, database.url());
    let store =
        Store::open(&url, &Options::default(), &[store::MIGRATIONS, subscription_engine::MIGRATIONS]).await;
    let store = store.unwrap();
    let mut tx = store.begin().await.unwrap();
    let sql = "SELECT current_user::text, current_setting('transaction_isolation')";
    let row = tx.fetch_optional::<(String, String)>(sql, ()).await.unwrap().unwrap();
    assert_eq!(row, (role.clone(), "read committed".to_owned()));
    tx.rollback().await;

    append(&store, "a-1").await;
    let findings = judge(&database, Random::seed(), Wanted::All, async |after| {
        read(&store, &Filter::all(), after).await
    })
    .await;

    assert_eq!(findings, Findings::default());
    store.close().await;
    admin.close().await;
    let drop = format!("DROP ROLE {role}");
    raw.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(drop))).await.unwrap();
}

/// Somebody who holds a row lock on a stream keeps others from appending to it, and no reader from reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_an_appender_that_waits_for_its_stream_holds_nobody_back() {
    let Some(database) = TestDatabase::postgres("s10_an_appender_that_waits_for_its_stream").await else {
        return;
    };
    let store = database.store().await;

    assert!(reads_on_beside_a_waiting_appender(&database, &store).await);
}

/// Whether a reader gets past a hole at once while an appender waits for a stream that somebody else has locked.
async fn reads_on_beside_a_waiting_appender(database: &TestDatabase, store: &Store) -> bool {
    append(store, "a-1").await;
    let mut row = PgConnection::connect(database.url()).await.unwrap();
    let mut row = row.begin().await.unwrap();
    row.execute("SELECT FROM herald_streams WHERE stream = 'a-1' FOR UPDATE").await.unwrap();
    let waiting = tokio::spawn({
        let another = database.open().await;
        // In a transaction of its own making: an append by itself waits without the lock, whatever the order.
        async move { appended_in(&another, "a-1").await.commit().await }
    });
    let blocked =
        "SELECT CAST(count(*) AS BIGINT) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'
                      AND transactionid = pg_current_xact_id()::xid";
    while sqlx::query_scalar::<_, i64>(blocked).fetch_one(&mut *row).await.unwrap() == 0 {}
    appended_in(store, "b-1").await.rollback().await;
    append(store, "c-1").await;

    let page = timeout(AT_ONCE, store.read(&Filter::all(), Position(1), 10)).await;

    assert!(!waiting.is_finished());
    row.rollback().await.unwrap();
    waiting.await.unwrap().unwrap();
    page.is_ok_and(|page| positions(&page.unwrap().events) == [3])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_neither_a_stranger_nor_another_log_delays_a_reader() {
    let Some(database) = TestDatabase::postgres("s10_neither_a_stranger_nor_another_log").await else {
        return;
    };
    let Some(another) = TestDatabase::postgres("s10_neither_a_stranger_nor_another_log").await else {
        return;
    };
    let (store, another_store) = (database.store().await, another.store().await);
    let _stranger = Stranger::begin(&database).await;
    let _idle = appended_in(&another_store, "idle-1").await;
    appended_in(&store, "b-1").await.rollback().await;
    append(&store, "a-1").await;

    let page = timeout(AT_ONCE, store.read(&Filter::all(), Position::START, 10)).await.unwrap().unwrap();

    assert_eq!(positions(&page.events), [2]);
    assert_eq!(store.head().await.unwrap(), Head { position: Position(2), is_end: true });
}

/// Readers that wait at a hole must not hold the connections that the appends need which they wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_waiting_readers_leave_connections_to_others() {
    let Some(database) = TestDatabase::postgres("s10_waiting_readers_leave_connections").await else {
        return;
    };
    let idle = appended_in(&database.store().await, "idle-1").await;
    let store = with_connections(&database, 3).await.unwrap();
    append(&store, "a-1").await;
    let mut readers = JoinSet::new();
    let (asked, mut asks) = mpsc::unbounded_channel();
    for _ in 0..12 {
        let (store, asked) = (store.clone(), asked.clone());
        readers.spawn(async move {
            loop {
                asked.send(()).unwrap();
                let page = store.read(&Filter::all(), Position::START, 10).await.unwrap();
                if !page.events.is_empty() {
                    return positions(&page.events);
                }
            }
        });
    }
    for _ in 0..12 {
        asks.recv().await.unwrap();
    }

    for _ in 0..20 {
        timeout(AT_ONCE, append(&store, "a-1")).await.expect("a connection is free");
    }

    assert!(readers.try_join_next().is_none());
    idle.commit().await.unwrap();
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap()[..2], [1, 2]);
    }
}

/// One proof is good for the whole log: many holes do not each cost a look at the lock table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_holes_that_were_seen_once_cost_no_page() {
    let Some(database) = TestDatabase::postgres("s11_holes_that_were_seen_once").await else { return };
    let store = database.store().await;
    for _ in 0..10 {
        appended_in(&store, "b-1").await.rollback().await;
        append(&store, "a-1").await;
    }
    let store = database.open().await;
    let first = store.read(&Filter::all(), Position::START, 3).await.unwrap();
    // From here on nobody can prove anything.
    let _idle = appended_in(&database.open().await, "idle-1").await;
    append(&store, "a-1").await;

    let second = timeout(AT_ONCE, store.read(&Filter::all(), first.scanned_to, 100)).await.unwrap().unwrap();

    assert_eq!(positions(&first.events), [2, 4, 6]);
    assert_eq!(positions(&second.events), [8, 10, 12, 14, 16, 18, 20]);
}

async fn append(store: &Store, name: &str) {
    store.append(&stream(name), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
}

/// A transaction that has appended and not ended.
pub(crate) async fn appended_in(store: &Store, name: &str) -> Tx {
    let mut tx = store.begin().await.unwrap();
    let append = Append { stream: stream(name), expected: ExpectedVersion::Any, events: vec![event(1)] };
    store.append_all(&mut tx, vec![append]).await.unwrap();
    tx
}

async fn with_connections(database: &TestDatabase, connections: u32) -> Result<Store, StoreError> {
    let options = Options { connections, ..Options::default() };
    Store::open(database.url(), &options, &[store::MIGRATIONS, subscription_engine::MIGRATIONS]).await
}

fn positions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.position.0).collect()
}

/// Somebody else's transaction that has written in the same database and does not end (PostgreSQL; on SQLite
/// it would stop every writer, which is no question of reading).
struct Stranger {
    _connection: Option<PgConnection>,
}

impl Stranger {
    async fn begin(database: &TestDatabase) -> Self {
        if !database.is_postgres() {
            return Self { _connection: None };
        }
        let mut connection = PgConnection::connect(database.url()).await.unwrap();
        let write = "CREATE TABLE strange (id BIGINT); BEGIN; INSERT INTO strange VALUES (1)";
        connection.execute(sqlx::raw_sql(write)).await.unwrap();
        Self { _connection: Some(connection) }
    }
}
