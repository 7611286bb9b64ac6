//! Two tasks of one process in one certain order (S-09). What one of them proves is used by the other; whoever takes
//! the steps of safe_head.rs in another order skips an event here, at once and each time.

use store::{Filter, Head, Options, Position, Store};
use testkit::{Proxy, TestDatabase};

use super::{append, appended_in, positions};

/// In the statement that reads a page, and in no other that a reader sends.
const PAGE: &str = "correlation_id";
/// In the statement that asks who holds the append lock.
const LOCK_TABLE: &str = "pg_locks";

/// A log with one event, and a handle of which answers can be kept back.
async fn scene(name: &str) -> Option<(TestDatabase, Store, Proxy, Store)> {
    let database = TestDatabase::postgres(name).await?;
    let store = database.store().await;
    append(&store, "a-1").await;
    let proxy = Proxy::start(database.url()).await;
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let reading = Store::open(&proxy.url(database.url()), &Options::default(), &migrations).await.unwrap();
    Some((database, store, proxy, reading))
}

/// What is known to be settled counts only if it was known before the page was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_what_is_proven_after_a_page_was_read_says_nothing_of_its_holes() {
    let Some((_database, store, proxy, reading)) = scene("s09_what_is_proven_after_a_page").await else {
        return;
    };
    let late = appended_in(&store, "late-1").await;
    append(&store, "a-1").await;

    let mut page_with_hole = proxy.hold_answer_to(PAGE);
    let reader = tokio::spawn({
        let reading = reading.clone();
        async move { reading.read(&Filter::all(), Position(1), 10).await.unwrap() }
    });
    page_with_hole.arrived().await;
    late.commit().await.unwrap();
    assert_eq!(reading.head().await.unwrap(), Head { position: Position(3), is_end: true });
    page_with_hole.release();

    assert_eq!(positions(&reader.await.unwrap().events), [2, 3]);
}

/// A proof is good for what was seen before it began, not for what somebody else sees meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_what_is_seen_during_a_proof_is_not_proven_by_it() {
    let Some((_database, store, proxy, reading)) = scene("s09_what_is_seen_during_a_proof").await else {
        return;
    };
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;

    let mut nobody_appends = proxy.hold_answer_to(LOCK_TABLE);
    let prover = tokio::spawn({
        let reading = reading.clone();
        async move { reading.head().await.unwrap() }
    });
    nobody_appends.arrived().await;
    let late = appended_in(&store, "late-1").await;
    append(&store, "a-1").await;
    // Sees position 5, and gives up the wait for its turn.
    assert_eq!(reading.head().await.unwrap(), Head { position: Position(1), is_end: false });
    nobody_appends.release();

    assert_eq!(prover.await.unwrap(), Head { position: Position(3), is_end: true });
    let page = reading.read(&Filter::all(), Position(3), 10).await.unwrap();
    assert_eq!((positions(&page.events), page.scanned_to), (vec![], Position(3)));
    late.commit().await.unwrap();
    let page = reading.read(&Filter::all(), Position(3), 10).await.unwrap();
    assert_eq!(positions(&page.events), [4, 5]);
}
