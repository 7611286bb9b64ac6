//! Verifying a log (S-22, S-25): each thing that can be wrong is broken on purpose, found, and mended where that is safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use store::{
    BadSequence, ExpectedVersion, Finding, Found, Json, Mended, NewEvent, Position, Store, Told, Verified,
    Verify, Version,
};
use testkit::{TestDatabase, both};

use crate::given::{all_events, event, stream};
use crate::restore::{lose_the_end, raw, unguard};

const ALL: Verify = Verify { from: Position::START, quick: false, mend: false };

async fn verify(store: &Store, what: Verify) -> (Verified, Vec<Found>) {
    let mut found = Vec::new();
    let sum = store
        .verify(&what, |told| {
            if let Told::Found(one) = told {
                found.push(one);
            }
        })
        .await
        .unwrap();
    assert_eq!(sum.found, found.len() as u64);
    (sum, found)
}

async fn findings(store: &Store, what: Verify) -> Vec<Finding> {
    verify(store, what).await.1.into_iter().map(|found| found.finding).collect()
}

/// Breaks the log with a statement that only somebody can run who has switched off what guards it.
async fn break_it(store: &Store, sql: &str) {
    let mut tx = store.begin().await.unwrap();
    unguard(&mut tx).await;
    tx.commit().await.unwrap();
    raw(store, sql.to_owned()).await;
}

/// Mends, and finds nothing any more.
async fn is_mended(database: &TestDatabase, expected: usize) {
    let store = Store::open_to_look(
        database.url(),
        &store::Options::default(),
        &[store::MIGRATIONS, subscription_engine::MIGRATIONS],
    )
    .await
    .unwrap();
    let (sum, found) = verify(&store, Verify { mend: true, ..ALL }).await;
    assert_eq!((sum.found, sum.mended), (expected as u64, expected as u64), "{found:?}");
    assert!(found.iter().all(|found| found.mended == Mended::Yes), "{found:?}");
    assert_eq!(findings(&store, ALL).await, []);
}

/// Seven events: three appends to one stream (1, 3 and 1 events), two to another one.
async fn some_events(database: &TestDatabase) -> Store {
    let store = database.store().await;
    for (name, count) in [("a-1", 1), ("a-1", 3), ("b-1", 1), ("a-1", 1), ("b-1", 1)] {
        let events = (0..count).map(event).collect();
        store.append(&stream(name), ExpectedVersion::Any, events).await.unwrap();
    }
    store
}

both! {
    async fn s22_a_sound_log_has_no_findings(database: TestDatabase) {
        let store = some_events(&database).await;
        let (sum, found) = verify(&store, ALL).await;
        assert_eq!(found, []);
        assert_eq!((sum.head, sum.events, sum.streams), (Position(7), 7, 2));
        let (sum, _) = verify(&store, Verify { from: Position(6), ..ALL }).await;
        assert_eq!(sum.events, 2);
        let (sum, found) = verify(&store, Verify { quick: true, ..ALL }).await;
        assert_eq!((sum.events, sum.streams, found), (7, 0, vec![]));
        let empty = if database.is_postgres() {
            let name = "s22_a_sound_log_has_no_findings";
            TestDatabase::postgres(name).await.unwrap()
        } else {
            TestDatabase::sqlite()
        };
        assert_eq!(findings(&empty.store().await, ALL).await, []);
    }

    /// Holes that rolled-back appends leave, and many streams in one append, are nothing to be found.
    async fn s22_what_is_unusual_but_right_is_not_found(database: TestDatabase) {
        let store = some_events(&database).await;
        for _ in 0..3 {
            let mut tx = store.begin().await.unwrap();
            let appends = ["c-1", "a-1"].map(|name| store::Append {
                stream: stream(name),
                expected: ExpectedVersion::Any,
                events: vec![event(1), event(2)],
            });
            store.append_all(&mut tx, appends.to_vec()).await.unwrap();
            tx.rollback().await;
        }
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        assert_eq!(findings(&store, ALL).await, []);
    }

    async fn s22_a_missing_event_is_a_gap_and_a_torn_append(database: TestDatabase) {
        let store = some_events(&database).await;
        break_it(&store, "DELETE FROM herald_events WHERE position = 3").await;
        let torn = |position, version| Finding::TornAppend {
            stream: "a-1".to_owned(), version: Version(version), position: Position(position)
        };
        assert_eq!(findings(&store, ALL).await, [
            torn(2, 1),
            Finding::Gap { stream: "a-1".to_owned(), version: Version(3), position: Position(4) },
            torn(4, 3),
        ]);
        assert_eq!(findings(&store, Verify { from: Position(5), ..ALL }).await, []);
        // No event is ever made up.
        let (sum, _) = verify(&store, Verify { mend: true, ..ALL }).await;
        assert_eq!((sum.found, sum.mended), (3, 0));
    }

    async fn s22_a_lost_end_of_an_append_is_found(database: TestDatabase) {
        let store = some_events(&database).await;
        lose_the_end(&store, 3).await;
        let expected = Finding::TornAppend { stream: "a-1".to_owned(), version: Version(2), position: Position(3) };
        assert_eq!(findings(&store, ALL).await, [expected]);
    }

    async fn s22_versions_in_another_order_than_positions_are_found(database: TestDatabase) {
        let store = some_events(&database).await;
        let swap = "UPDATE herald_events SET position = 99 WHERE position = 5;
                    UPDATE herald_events SET position = 5 WHERE position = 7;
                    UPDATE herald_events SET position = 7 WHERE position = 99";
        break_it(&store, swap).await;
        assert_eq!(findings(&store, ALL).await, [
            Finding::OutOfOrder {
                stream: "b-1".to_owned(), version: Version(1), position: Position(5), previous: Position(7)
            },
        ]);
    }

    async fn s22_the_table_of_streams_is_computed_anew(database: TestDatabase) {
        let store = some_events(&database).await;
        for (harm, recorded, actual) in [
            ("UPDATE herald_streams SET version = 9 WHERE stream = 'b-1'", Some(9), Some(1)),
            ("UPDATE herald_streams SET version = 0 WHERE stream = 'b-1'", Some(0), Some(1)),
            ("DELETE FROM herald_streams WHERE stream = 'b-1'", None, Some(1)),
            ("INSERT INTO herald_streams (stream, version) VALUES ('never', 3)", Some(3), None),
        ] {
            raw(&store, harm.to_owned()).await;
            let name = if actual.is_some() { "b-1" } else { "never" };
            let expected = Finding::Stream {
                stream: name.to_owned(), recorded: recorded.map(Version), actual: actual.map(Version)
            };
            assert_eq!(findings(&store, ALL).await, [expected], "{harm}");
            is_mended(&database, 1).await;
        }
        let appended = store.append(&stream("b-1"), ExpectedVersion::Exactly(Version(1)), vec![event(1)]).await;
        assert_eq!(appended.unwrap().version, Some(Version(2)));
        let appended = store.append(&stream("never"), ExpectedVersion::NoStream, vec![event(1)]).await;
        assert_eq!(appended.unwrap().version, Some(Version(0)));
    }

    async fn s22_a_missing_index_is_made_again(database: TestDatabase) {
        let store = some_events(&database).await;
        for index in ["herald_events_type", "herald_streams_category", "herald_subscription_history_of"] {
            raw(&store, format!("DROP INDEX {index}")).await;
            assert_eq!(findings(&store, ALL).await, [Finding::MissingIndex { index: index.to_owned() }]);
            is_mended(&database, 1).await;
        }
    }

    /// S-25: all of them are listed, and what stands behind them is looked at all the same.
    async fn s25_every_row_that_cannot_be_read_or_was_not_written_by_an_append(database: TestDatabase) {
        let store = some_events(&database).await;
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        for harm in [
            "UPDATE herald_events SET payload = 'no json' WHERE position = 1".to_owned(),
            "UPDATE herald_events SET payload = '{\"looks\": fine }' WHERE position = 2".to_owned(),
            format!("UPDATE herald_events SET payload = '{deep}' WHERE position = 3"),
            "UPDATE herald_events SET metadata = '{\"a\": 1, \"a\": 2}' WHERE position = 4".to_owned(),
            "UPDATE herald_events SET type = '' WHERE position = 5".to_owned(),
            "UPDATE herald_events SET payload = '\"\\u0000\"' WHERE position = 7".to_owned(),
        ] {
            break_it(&store, &harm).await;
        }
        let time = if database.is_postgres() { "infinity" } else { "yesterday" };
        break_it(&store, &format!("UPDATE herald_events SET recorded_at = '{time}' WHERE position = 6")).await;

        let found = findings(&store, ALL).await;

        let kinds: Vec<_> = found.iter().map(|f| (f.kind(), f.position().unwrap().0)).collect();
        assert_eq!(kinds, [
            ("unreadable", 1), ("invalid", 2), ("invalid", 3), ("invalid", 4), ("invalid", 5), ("unreadable", 6),
            ("invalid", 7),
        ]);
        let words = ["", "its payload is not valid JSON", "deeper than 64", "field \"a\" twice", "event type", "", "\\u0000"];
        for (finding, words) in found.iter().zip(words) {
            assert!(finding.to_string().contains(words), "{finding}");
        }
    }

    async fn s22_an_event_among_dead_positions_is_found(database: TestDatabase) {
        let store = some_events(&database).await;
        let time = if database.is_postgres() { "TIMESTAMPTZ" } else { "TEXT" };
        raw(&store, format!(
            "CREATE TABLE IF NOT EXISTS herald_dead_ranges (lo BIGINT PRIMARY KEY, hi BIGINT NOT NULL, proven_at {time} NOT NULL);
             INSERT INTO herald_dead_ranges (lo, hi, proven_at) VALUES (6, 7, '2026-01-01 00:00:00')"
        )).await;
        let expected = Finding::DeadRange { from: Position(6), to: Position(7), position: Position(6) };
        assert_eq!(findings(&store, ALL).await, [expected]);

        // The end was lost, and what was recorded of it was not: what is appended there would be passed.
        lose_the_end(&store, 5).await;
        let beyond = Finding::SettledBeyondEnd { position: Position(7), end: Position(5) };
        assert_eq!(findings(&store, ALL).await, [beyond]);
        is_mended(&database, 1).await;
    }

    /// No false alarm while others append, and mending under way never breaks an append.
    async fn s22_verifying_beside_appends_finds_nothing(database: TestDatabase) {
        let store = some_events(&database).await;
        let done = Arc::new(AtomicBool::new(false));
        let appenders: Vec<_> = (0..3)
            .map(|number| {
                let (store, done) = (store.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut round = 0_u32;
                    while !done.load(Ordering::Relaxed) {
                        let name = format!("busy-{}", (round + number) % 5);
                        let events = (0..=round % 4).map(event).collect();
                        store.append(&stream(&name), ExpectedVersion::Any, events).await.unwrap();
                        round += 1;
                    }
                    round
                })
            })
            .collect();
        for round in 0..6 {
            let (_, found) = verify(&store, Verify { mend: round % 2 == 1, ..ALL }).await;
            assert_eq!(found, []);
        }
        // Rows of the table of streams are mended while others append.
        for _ in 0..4 {
            let harm = "UPDATE herald_streams SET version = version + 5 WHERE stream = 'b-1'";
            raw(&store, harm.to_owned()).await;
            let (sum, found) = verify(&store, Verify { mend: true, ..ALL }).await;
            assert_eq!((sum.found, sum.mended), (1, 1), "{found:?}");
        }
        done.store(true, Ordering::Relaxed);
        for appender in appenders {
            assert!(appender.await.unwrap() > 0);
        }
        assert_eq!(findings(&store, ALL).await, []);
    }

    /// Large payloads are looked at a few at a time, and none is left out.
    async fn s22_large_events_are_all_looked_at(database: TestDatabase) {
        let store = database.store().await;
        let payload = Json::parse(format!("\"{}\"", "x".repeat(200 * 1024))).unwrap();
        for _ in 0..3 {
            let events = (0..30).map(|_| NewEvent::new("Acme.Test:Large", payload.clone())).collect();
            store.append(&stream("large-1"), ExpectedVersion::Any, events).await.unwrap();
        }
        let (sum, found) = verify(&store, ALL).await;
        assert_eq!((sum.events, found), (90, vec![]));
    }
}

/// A dump that was restored in parts: positions would be given out twice.
#[tokio::test]
async fn s22_a_sequence_behind_its_rows_is_moved_forward() {
    let name = "s22_a_sequence_behind_its_rows_is_moved_forward";
    let Some(database) = TestDatabase::postgres(name).await else { return };
    let store = some_events(&database).await;
    raw(&store, "SELECT setval('herald_positions', 3)".to_owned()).await;
    let bad = BadSequence::Behind { last: 3, end: Position(7) };
    assert_eq!(findings(&store, ALL).await, [Finding::Sequence(bad)]);
    is_mended(&database, 1).await;

    let appended = store.append(&stream("b-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
    assert_eq!(appended.position, Some(Position(8)));
    // What cannot be mended by moving it is told with the statement that does.
    raw(&store, "ALTER SEQUENCE herald_positions CACHE 5".to_owned()).await;
    let (sum, found) = verify(&store, Verify { mend: true, ..ALL }).await;
    assert_eq!((found[0].finding.clone(), sum.mended), (Finding::Sequence(BadSequence::Caches(5)), 0));
}

/// A key that is gone, and one that cannot come back because something stands twice.
#[tokio::test]
async fn s22_a_missing_key_is_made_again_if_it_can_be() {
    let name = "s22_a_missing_key_is_made_again_if_it_can_be";
    let Some(database) = TestDatabase::postgres(name).await else { return };
    let store = some_events(&database).await;
    raw(&store, "ALTER TABLE herald_events DROP CONSTRAINT herald_events_id_key".to_owned()).await;
    let missing = Finding::MissingIndex { index: "herald_events_id_key".to_owned() };
    assert_eq!(findings(&store, ALL).await, [missing]);
    is_mended(&database, 1).await;

    raw(&store, "ALTER TABLE herald_events DROP CONSTRAINT herald_events_id_key".to_owned()).await;
    let twice =
        "UPDATE herald_events SET id = (SELECT id FROM herald_events WHERE position = 1) WHERE position = 7";
    break_it(&store, twice).await;
    let (sum, found) = verify(&store, Verify { mend: true, ..ALL }).await;
    assert_eq!((sum.found, sum.mended), (1, 0));
    assert!(
        matches!(&found[0].mended, Mended::No { why } if why.contains("herald_events_id_key")),
        "{found:?}"
    );
}

/// A damaged file is a finding, and neither a panic nor an error.
#[tokio::test]
async fn s22_a_damaged_file_is_found() {
    use std::io::{Seek, SeekFrom, Write};

    let database = TestDatabase::sqlite();
    let store = database.store().await;
    for _ in 0..20 {
        let events = (0..100).map(event).collect();
        store.append(&stream("a-1"), ExpectedVersion::Any, events).await.unwrap();
    }
    assert_eq!(all_events(&store).await.len(), 2_000);
    raw(&store, "SELECT 1".to_owned()).await;
    store.close().await;
    let path = database.url().strip_prefix("sqlite:").unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length / 4096 / 2 * 4096)).unwrap();
    file.write_all(&vec![0xAA; 40 * 4096]).unwrap();
    file.sync_all().unwrap();

    let found = findings(&database.open().await, ALL).await;

    assert!(found.iter().any(|finding| matches!(finding, Finding::Damaged { .. })), "{found:?}");
}
