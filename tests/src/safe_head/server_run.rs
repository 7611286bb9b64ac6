//! A server that loses commits in a crash draws their positions again, and no reader skips them (S-09).
//!
//! Only who appends with relaxed durability can lose a commit in this way; a failover to a standby that lags behind
//! is the same for everybody.

use std::process::Command;

use sqlx::{Connection as _, Executor, PgConnection};
use store::{Durability, Filter, Options, Position, Store};
use testkit::{Cluster, TestDatabase, own_postgres_or_left_out};

use super::{append, appended_in, positions};

/// More than the numbers that a sequence notes ahead: it must come back to one that was seen.
const LOST: usize = 100;
const CRASHES_AT_MOST: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_positions_that_a_crash_gave_back_are_not_skipped() {
    let Some(cluster) = own_postgres_or_left_out("s09_positions_that_a_crash_gave_back") else { return };
    positions_are_given_back(&cluster, async || cluster.restart_immediate().unwrap()).await;
}

/// The server restarts itself then, and its time of start stays what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_positions_that_a_killed_backend_gave_back_are_not_skipped() {
    let Some(cluster) = own_postgres_or_left_out("s09_positions_that_a_killed_backend_gave_back") else {
        return;
    };
    positions_are_given_back(&cluster, async || {
        let mut victim = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut victim).await.unwrap();
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        // Returns once the server has noticed.
        while victim.execute("SELECT 1").await.is_ok() {}
    })
    .await;
}

/// On a busy machine the server may sync most of it before it crashes; then it is tried again.
async fn positions_are_given_back(cluster: &Cluster, crash: impl AsyncFn()) {
    for _ in 0..CRASHES_AT_MOST {
        if enough_was_lost(cluster, &crash).await {
            return;
        }
    }
    panic!("no crash has lost enough");
}

/// Crashes once; says whether positions were drawn again, and checks that none of them was skipped.
async fn enough_was_lost(cluster: &Cluster, crash: &impl AsyncFn()) -> bool {
    let url = cluster.url("postgres");
    let mut owner = PgConnection::connect(&url).await.unwrap();
    // Nothing is synced but what asks for it.
    owner.execute("ALTER SYSTEM SET wal_writer_delay = '2s'").await.unwrap();
    owner.execute("SELECT pg_reload_conf()").await.unwrap();
    let database = TestDatabase::schema_in(&url).await;
    let reading = database.store().await;
    append(&reading, "a-1").await;
    let relaxed = Options { durability: Durability::PowerCutMayLoseCommits, ..Options::default() };
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let appending = Store::open(database.url(), &relaxed, &migrations).await.unwrap();
    // Whoever writes the log to the disk in the background is woken by the first such append, and then rests.
    append(&appending, "a-2").await;
    let written = "SELECT CAST(pg_current_wal_insert_lsn() AS text)";
    let written: String = sqlx::query_scalar(written).fetch_one(&mut owner).await.unwrap();
    let is_synced = "SELECT pg_current_wal_flush_lsn() >= CAST($1 AS pg_lsn)";
    while !sqlx::query_scalar::<_, bool>(is_synced).bind(&written).fetch_one(&mut owner).await.unwrap() {}
    for _ in 0..LOST {
        append(&appending, "a-2").await;
    }
    let seen = reading.read(&Filter::all(), Position::START, 1_000).await.unwrap();
    assert_eq!(seen.events.len(), 2 + LOST);

    crash().await;

    let top = "SELECT CAST(max(position) AS BIGINT) FROM herald_events";
    let after_crash = loop {
        if let Ok(store) = Store::open(database.url(), &Options::default(), &migrations).await {
            break store;
        }
    };
    let (end,): (i64,) = after_crash.database().fetch_optional(top, ()).await.unwrap().unwrap();
    if end >= seen.scanned_to.0 {
        return false;
    }
    let late = appended_in(&after_crash, "late-1").await;
    append(&after_crash, "a-3").await;
    let (end,): (i64,) = after_crash.database().fetch_optional(top, ()).await.unwrap().unwrap();
    if end >= seen.scanned_to.0 {
        return false;
    }

    let page = loop {
        match reading.read(&Filter::all(), Position(1), 1_000).await {
            Ok(page) => break page,
            // A connection from before the crash.
            Err(error) => println!("{error}"),
        }
    };

    let below = |page: &store::Page| page.events.iter().all(|event| event.stream.as_str() == "a-2");
    assert!(below(&page), "{:?}", positions(&page.events));
    let stands_at = page.scanned_to;
    late.commit().await.unwrap();
    let page = reading.read(&Filter::all(), stands_at, 1_000).await.unwrap();
    let streams: Vec<&str> = page.events.iter().map(|event| event.stream.as_str()).collect();
    assert_eq!(streams, ["late-1", "a-3"]);
    true
}
