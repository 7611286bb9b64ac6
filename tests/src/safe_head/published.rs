//! What is proven once is published, and costs later readers nothing (S-11).

use std::time::Duration;

use sqlx::{Connection as _, Executor, PgConnection};
use store::{Filter, Head, Position, Store};
use testkit::TestDatabase;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{AT_ONCE, append, appended_in, positions};

/// Far above the tenth of a second after which a listening process publishes.
const SOON: Duration = Duration::from_secs(20);

async fn published(store: &Store) -> i64 {
    let sql = "SELECT position FROM herald_safe_head";
    store.database().fetch_optional::<(i64,)>(sql, ()).await.unwrap().unwrap().0
}

async fn dead_ranges(store: &Store) -> Vec<(i64, i64)> {
    store.database().fetch_all("SELECT lo, hi FROM herald_dead_ranges ORDER BY lo", ()).await.unwrap()
}

/// Events at 2, 4, 6 …, and nobody who appends any more.
async fn log_with_holes(database: &TestDatabase, events: usize) -> Store {
    let store = database.store().await;
    for _ in 0..events {
        appended_in(&store, "gone-1").await.rollback().await;
        append(&store, "a-1").await;
    }
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_fresh_process_reads_over_old_holes_beside_a_stalled_appender() {
    let Some(database) = TestDatabase::postgres("s11_a_fresh_process_reads_over_old_holes").await else {
        return;
    };
    let store = log_with_holes(&database, 3).await;
    let first = database.open().await;
    assert_eq!(positions(&first.read(&Filter::all(), Position::START, 10).await.unwrap().events), [2, 4, 6]);
    // What it has found out is published before it is gone.
    first.close().await;
    let _stalled = appended_in(&store, "stalled-1").await;
    append(&store, "a-1").await;

    let fresh = database.open().await;
    let page = timeout(AT_ONCE, fresh.read(&Filter::all(), Position::START, 10)).await.unwrap().unwrap();

    assert_eq!(positions(&page.events), [2, 4, 6]);
    assert_eq!(fresh.head().await.unwrap(), Head { position: Position(6), is_end: false });
    assert_eq!((published(&store).await, dead_ranges(&store).await), (6, vec![(1, 1), (3, 3), (5, 5)]));
}

/// What another process publishes meanwhile is used by one that has been there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_process_uses_what_others_have_published_since_it_began() {
    let Some(database) = TestDatabase::postgres("s11_a_process_uses_what_others_have_published").await else {
        return;
    };
    let old = database.store().await;
    assert_eq!(old.head().await.unwrap().position, Position::START);
    let store = log_with_holes(&database, 2).await;
    let other = database.open().await;
    other.head().await.unwrap();
    other.close().await;
    let _stalled = appended_in(&store, "stalled-1").await;

    let page = timeout(AT_ONCE, old.read(&Filter::all(), Position::START, 10)).await.unwrap().unwrap();

    assert_eq!(positions(&page.events), [2, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_two_who_prove_the_same_holes_at_once_record_them_once() {
    let Some(database) = TestDatabase::postgres("s11_two_who_prove_the_same_holes_at_once").await else {
        return;
    };
    let store = log_with_holes(&database, 5).await;
    let both = [database.open().await, database.open().await];

    let heads = tokio::join!(both[0].head(), both[1].head());
    let _ = tokio::join!(both[0].close(), both[1].close());

    let end = Head { position: Position(10), is_end: true };
    assert_eq!((heads.0.unwrap(), heads.1.unwrap()), (end, end));
    let report = store.explain_head().await.unwrap();
    assert_eq!((report.dead_ranges, report.dead_positions), (5, 5));
    assert_eq!(report.published.unwrap().position, Position(10));
}

/// A hole wider than one step stands there as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_wide_hole_is_recorded_as_one_range() {
    let Some(database) = TestDatabase::postgres("s11_a_wide_hole_is_recorded_as_one_range").await else {
        return;
    };
    let store = log_with_holes(&database, 1).await;
    for next in [5, 25_000] {
        let draw = format!("SELECT setval('herald_positions', {next}, false)");
        let mut owner = PgConnection::connect(database.url()).await.unwrap();
        owner.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(draw))).await.unwrap();
        append(&store, "a-1").await;
    }
    let reading = database.open().await;
    assert_eq!(reading.head().await.unwrap().position, Position(25_000));

    reading.close().await;

    assert_eq!(dead_ranges(&store).await, [(1, 1), (3, 4), (6, 24_999)]);
    assert_eq!(published(&store).await, 25_000);
}

/// Nobody reads, and there is no hole: a standby needs the head all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_who_listens_publishes() {
    let Some(database) = TestDatabase::postgres("s11_who_listens_publishes").await else { return };
    let (store, listening) = (database.store().await, database.open().await);
    let (stop, stopped) = oneshot::channel::<()>();
    let listener = tokio::spawn({
        let listening = listening.clone();
        async move { listening.listen(async { drop(stopped.await) }).await }
    });

    for position in 1..=3 {
        append(&store, "a-1").await;
        let is_published = async { while published(&store).await < position {} };
        timeout(SOON, is_published).await.expect("it is published");
    }

    assert_eq!(dead_ranges(&store).await, []);
    stop.send(()).unwrap();
    listener.await.unwrap();
}

/// What a wrong or late publisher says does no harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_published_head_is_neither_lowered_nor_beyond_the_end() {
    let Some(database) = TestDatabase::postgres("s11_a_published_head_is_neither_lowered").await else {
        return;
    };
    let store = log_with_holes(&database, 2).await;
    appended_in(&store, "gone-1").await.rollback().await;
    let mut raw = PgConnection::connect(database.url()).await.unwrap();
    let run = "SELECT run FROM herald_identify_server()";
    let run: String = sqlx::query_scalar(run).fetch_one(&mut raw).await.unwrap();
    let mut publish = async |known: i64, run: &str| -> Option<i64> {
        let sql = "SELECT herald_publish_head($1, $2)";
        sqlx::query_scalar(sql).bind(known).bind(run).fetch_one(&mut raw).await.unwrap()
    };

    assert_eq!(publish(3, &run).await, Some(3));
    assert_eq!(publish(1, &run).await, Some(3));
    assert_eq!(publish(4, "of another server").await, None);
    assert_eq!(
        publish(1_000_000, &run).await,
        Some(4),
        "position 5 was rolled back, and may yet be drawn again"
    );

    assert_eq!((published(&store).await, dead_ranges(&store).await), (4, vec![(1, 1), (3, 3)]));
}
