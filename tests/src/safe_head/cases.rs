//! Cases of appenders and strangers that have each been wrong somewhere once (S-09, S-10).

use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection};
use store::{Filter, Head, Position};
use testkit::TestDatabase;
use tokio::time::timeout;

use super::{AT_ONCE, append, appended_in, positions, with_connections};

/// Takes the append lock as another log would whose key happens to be the same.
const TAKE_KEY: &str =
    "SELECT pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer)";

/// A function of a user that appends in a block and survives its failure: rows and lock go together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_an_append_in_an_exception_block_that_fails_leaves_only_a_hole() {
    let Some(database) = TestDatabase::postgres("s09_an_append_in_an_exception_block").await else { return };
    let store = database.store().await;
    append(&store, "a-1").await;
    let mut user = PgConnection::connect(database.url()).await.unwrap();
    // One append before the block, which is kept, and one in it, which is not.
    let call = |stream: &str| {
        format!(
            "PERFORM * FROM herald_append(ARRAY['{stream}'], ARRAY[-2::bigint], ARRAY[1], ARRAY[gen_random_uuid()],
                 ARRAY['T'], ARRAY['1'], ARRAY['{{}}'], ARRAY[NULL::text], ARRAY[NULL::uuid]);"
        )
    };
    let (kept, lost) = (call("kept-1"), call("lost-1"));
    let block = format!(
        "DO $$ BEGIN {kept} BEGIN {lost} RAISE EXCEPTION 'no'; EXCEPTION WHEN raise_exception THEN END; END $$"
    );
    let mut open = user.begin().await.unwrap();
    open.execute(sqlx::raw_sql(AssertSqlSafe(block))).await.unwrap();
    append(&store, "a-1").await;
    assert_eq!(store.head().await.unwrap(), Head { position: Position(1), is_end: false });

    open.commit().await.unwrap();

    let page = store.read(&Filter::all(), Position::START, 10).await.unwrap();
    assert_eq!(positions(&page.events), [1, 2]);
    let page = store.read(&Filter::all(), Position(2), 10).await.unwrap();
    assert_eq!(positions(&page.events), [4]);
}

/// It can only make readers wait, never make them skip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_stranger_with_the_same_key_only_delays() {
    let Some(database) = TestDatabase::postgres("s10_a_stranger_with_the_same_key").await else { return };
    let store = database.store().await;
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;
    let mut stranger = PgConnection::connect(database.url()).await.unwrap();
    let mut open = stranger.begin().await.unwrap();
    open.execute(TAKE_KEY).await.unwrap();
    assert_eq!(store.head().await.unwrap(), Head { position: Position::START, is_end: false });

    open.rollback().await.unwrap();

    assert_eq!(positions(&store.read(&Filter::all(), Position::START, 10).await.unwrap().events), [2]);
}

/// The lock table shows the keys of all databases, and a copy of a database has the same numbers for everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_copy_of_the_database_delays_nobody() {
    let name = "s10_a_copy_of_the_database_delays_nobody";
    let Some(url) = testkit::postgres_or_left_out(name) else { return };
    let mut administrator = PgConnection::connect(url).await.unwrap();
    let [original, copy] =
        ["original", "copy"].map(|part| format!("{part}_{}", uuid::Uuid::new_v4().simple()));
    let mut run = async |sql: String| administrator.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    run(format!("CREATE DATABASE {original}")).await;
    let in_database = |name: &str| {
        let (server, _) = url.rsplit_once('/').unwrap();
        format!("{server}/{name}")
    };
    let database = TestDatabase::schema_in(&in_database(&original)).await;
    database.store().await.close().await;
    run(format!("CREATE DATABASE {copy} TEMPLATE {original}")).await;
    let store = database.store().await;
    let mut stranger = PgConnection::connect(&database.url().replacen(&original, &copy, 1)).await.unwrap();
    stranger.execute("BEGIN").await.unwrap();
    stranger.execute(TAKE_KEY).await.unwrap();
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;

    let page = timeout(AT_ONCE, store.read(&Filter::all(), Position::START, 10)).await.unwrap().unwrap();

    assert_eq!(positions(&page.events), [2]);
    stranger.close().await.unwrap();
    store.close().await;
    run(format!("DROP DATABASE {copy} WITH (FORCE)")).await;
    run(format!("DROP DATABASE {original} WITH (FORCE)")).await;
}

/// A dump takes a lock on each table, and a look at the lock table copies them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_thousands_of_locks_of_others_delay_nobody() {
    let Some(database) = TestDatabase::postgres("s10_thousands_of_locks_of_others").await else { return };
    let store = database.store().await;
    let mut stranger = PgConnection::connect(database.url()).await.unwrap();
    stranger.execute("SELECT pg_advisory_lock(1, n) FROM generate_series(1, 5000) AS n").await.unwrap();
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;

    let page = timeout(AT_ONCE, store.read(&Filter::all(), Position::START, 10)).await.unwrap().unwrap();

    assert_eq!(positions(&page.events), [2]);
}

/// The proof needs a connection of its own, and gets one after the page has given its back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_one_connection_is_enough_to_prove_a_hole() {
    let Some(database) = TestDatabase::postgres("s10_one_connection_is_enough").await else { return };
    let store = database.store().await;
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;
    let narrow = with_connections(&database, 1).await.unwrap();

    let page = timeout(AT_ONCE, narrow.read(&Filter::all(), Position::START, 10)).await.unwrap().unwrap();

    assert_eq!(positions(&page.events), [2]);
    narrow.close().await;
}
