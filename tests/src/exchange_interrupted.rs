//! Export and import (S-23) beside what gets in their way: kill -9, appends under way, subscriptions.

use std::process::Stdio;
use std::time::Duration;

use store::{Position, Sql};
use subscription_engine::{Criteria, Definition, Engine, Registry};
use testkit::{Collector, Random, TestDatabase, both};
use uuid::Uuid;

use crate::exchange::{append_many, export, fill, import, quiet, without_first_line};
use crate::given::all_events;
use crate::program::command;

/// Runs a command again and again, and kills it at a random moment each time, later and later, until it is done.
async fn killed_until_done(url: &str, arguments: &[&str], random: &mut Random) -> u32 {
    for kills in 0.. {
        let mut child = command(url, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let moment = Duration::from_micros(random.below(20_000 * (u64::from(kills) + 1)));
        tokio::time::sleep(moment).await;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        // It was killed when all was done but the last word: the next one finds the file there, and refuses.
        if status.success() || status.code() == Some(5) {
            return kills;
        }
    }
    unreachable!("the loop has no end")
}

both! {
    async fn s23_kill_9_at_random_moments_loses_nothing_of_an_export_or_import(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        append_many(&store, 9_000).await;
        fill(&store, &mut random, 50).await;
        let whole = export(&store, 0).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.jsonl");
        let file = file.to_str().unwrap();

        let kills = killed_until_done(database.url(), &["store", "export", file, "--resume"], &mut random).await;
        println!("exported after {kills} kills");
        assert_eq!(without_first_line(&std::fs::read_to_string(file).unwrap()), without_first_line(&whole));

        let target = match database.is_postgres() {
            true => Some(TestDatabase::sqlite()),
            false => TestDatabase::postgres("s23_kill_9_at_random_moments").await,
        };
        let Some(target) = target else { return };
        let copy = target.store().await;
        let kills = killed_until_done(target.url(), &["store", "import", file], &mut random).await;
        println!("imported after {kills} kills");
        assert_eq!(all_events(&copy).await, all_events(&store).await);
        assert_eq!(without_first_line(&export(&copy, 0).await), without_first_line(&whole));
    }

    async fn s23_a_subscription_on_the_copy_has_the_rows_of_the_original(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        fill(&store, &mut random, 200).await;
        let text = export(&store, 0).await;
        let mut rows = Vec::new();
        let others = [Some(TestDatabase::sqlite()), TestDatabase::postgres("s23_a_subscription_on_the_copy").await];
        for target in others.into_iter().flatten() {
            let copy = target.store().await;
            import(&copy, &text).await.unwrap();
            rows.push(booted(&copy).await);
        }
        let original = booted(&store).await;
        assert_eq!(original.len(), all_events(&store).await.len());
        assert!(rows.iter().all(|rows| *rows == original));
    }
}

/// What a subscription from the beginning has collected when it has caught up.
async fn booted(store: &store::Store) -> Vec<i64> {
    let collector = Collector::new(Definition::projector("collector_1"));
    let engine = Engine::new(
        store.clone(),
        Registry::new([collector.clone() as std::sync::Arc<dyn subscription_engine::Subscriber>]).unwrap(),
        "test",
    );
    engine.catch_up(&Criteria::all()).await.unwrap();
    collector.positions(store).await
}

/// On PostgreSQL an export may have to end below an append under way. It ends between two appends, never inside one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s23_an_export_below_an_append_under_way_cuts_no_other_append() {
    let Some(database) = TestDatabase::postgres("s23_an_export_below_an_append_under_way").await else {
        return;
    };
    let store = database.store().await;
    append_many(&store, 10).await;
    // Two appends that drew their positions at the same time: 11 and 13, 12. The second one is not done yet.
    let mut under_way = store.begin().await.unwrap();
    let lock =
        "SELECT pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer) IS NULL";
    under_way.fetch_optional::<(bool,)>(lock, ()).await.unwrap();
    let insert =
        "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, recorded_at,
                                             append_index, append_size)
                  VALUES {rows}";
    let row = |position: i64, stream: &'static str, version: i64, size: i32| {
        let index = i32::try_from(version).unwrap();
        let now = store::Timestamp::from_micros(0);
        (position, stream, version, "T", "1", "{}", Uuid::now_v7(), now, index, size)
    };
    under_way.execute_many(Sql::from(insert), vec![row(12, "b", 0, 1)]).await.unwrap();
    let mut done = store.begin().await.unwrap();
    done.execute_many(Sql::from(insert), vec![row(11, "a", 0, 2), row(13, "a", 1, 2)]).await.unwrap();
    done.execute("INSERT INTO herald_streams (stream, version) VALUES ('a', 1), ('b', 0)", ()).await.unwrap();
    done.execute("SELECT setval('herald_positions', 13)", ()).await.unwrap();
    done.commit().await.unwrap();
    // As far as a reader may go, the first of the two is there.
    assert_eq!(store.head().await.unwrap().position, Position(11));

    let exported = store.export(Vec::new(), Position::START, quiet).await.unwrap();

    assert_eq!((exported.head, exported.events), (Position(10), 10));
    under_way.commit().await.unwrap();
    let exported = store.export(Vec::new(), Position::START, quiet).await.unwrap();
    assert_eq!((exported.head, exported.events), (Position(13), 13));
}
