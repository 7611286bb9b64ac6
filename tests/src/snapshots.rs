//! Snapshots (S-18): a shorter way to a state, which is never trusted and never in the way.

use aggregate::{Aggregate, ExecuteError, Provenance, Repository, event_set};
use serde::{Deserialize, Serialize};
use store::{
    AppendError, Connection, DomainEvent, Event, ExpectedVersion, Filter, InvalidEvent, Json, KEPT_SNAPSHOTS,
    MAX_SNAPSHOT_BYTES, Part, Position, Snapshot, SnapshotError, Store, Upcaster, Upcasters, Version,
};
use testkit::{Random, T0, both};

use crate::given::{event, stream};

fn state(number: i64) -> Json {
    Json::of(&number).unwrap()
}

/// So many events in a stream, one append each.
async fn append(store: &Store, name: &str, count: u32) {
    for number in 0..count {
        store.append(&stream(name), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
    }
}

/// The versions and states of the snapshots of a stream, through the stream that shows them.
async fn kept(store: &Store, name: &str) -> Vec<(i64, String)> {
    let page = store.read_stream(&stream(&format!("$snapshot-{name}")), 0, 100).await.unwrap();
    page.iter().map(|event| (event.version.0, event.payload.to_string())).collect()
}

/// Takes the last event of a stream away, as a restore of an older backup would.
async fn lose_last_event(store: &Store, name: &str) {
    let mut tx = store.begin().await.unwrap();
    let (allow, forbid) = match tx.connection() {
        Connection::Sqlite(_) => ("DROP TRIGGER herald_events_never_go", "SELECT 1"),
        Connection::Postgres(_) => (
            "ALTER TABLE herald_events DISABLE TRIGGER herald_events_only_grow",
            "ALTER TABLE herald_events ENABLE TRIGGER herald_events_only_grow",
        ),
    };
    tx.execute(allow, ()).await.unwrap();
    let gone = "DELETE FROM herald_events
                 WHERE stream = $1 AND version = (SELECT version FROM herald_streams WHERE stream = $1)";
    assert_eq!(tx.execute(gone, (name.to_owned(),)).await.unwrap(), 1);
    let back = "UPDATE herald_streams SET version = version - 1 WHERE stream = $1";
    tx.execute(back, (name.to_owned(),)).await.unwrap();
    tx.execute(forbid, ()).await.unwrap();
    tx.commit().await.unwrap();
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Added {
    number: i64,
}

impl DomainEvent for Added {
    const TYPE: &'static str = "Acme.Test:Added";
}

event_set! {
    #[derive(Clone, Debug, PartialEq)]
    enum SumEvent { Added }
}

/// A sum that is never negative, and remembers how it came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    total: i64,
    history: Vec<i64>,
}

#[derive(Debug, thiserror::Error)]
#[error("the sum would be negative")]
struct Negative;

#[derive(Debug)]
struct Summing;

impl Aggregate for Summing {
    type State = Sum;
    type Event = SumEvent;
    type Command = Vec<i64>;
    type Context = ();
    type Refusal = Negative;

    fn decide(state: &Sum, numbers: &Vec<i64>, (): &()) -> Result<Vec<SumEvent>, Negative> {
        if state.total + numbers.iter().sum::<i64>() < 0 {
            return Err(Negative);
        }
        Ok(numbers.iter().map(|number| SumEvent::Added(Added { number: *number })).collect())
    }

    fn evolve(mut state: Sum, event: &SumEvent) -> Sum {
        let SumEvent::Added(Added { number }) = event;
        state.total += number;
        state.history.push(*number);
        state
    }
}

async fn add(sums: &Repository<Summing>, name: &str, numbers: Vec<i64>) -> bool {
    let done = sums.execute(&stream(name), &numbers, &(), &Provenance::default()).await;
    assert!(matches!(done, Ok(_) | Err(ExecuteError::Refused(_))), "{done:?}");
    // So that what was begun is there for the next command.
    sums.close().await;
    done.is_ok()
}

both! {
    async fn s18_the_newest_snapshot_is_found_or_one_below_a_version(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        append(&store, "a-1", 10).await;
        let name = stream("a-1");
        let find = async |schema, up_to: Option<i64>| {
            let found = store.snapshot(&name, schema, up_to.map(Version)).await.unwrap();
            found.map(|snapshot| (snapshot.version.0, snapshot.state.to_string()))
        };
        assert_eq!(find(1, None).await, None);
        append(&store, "b-1", 15).await;
        for version in [12, 13, 14] {
            store.save_snapshot(&stream("b-1"), Version(version), 1, &state(version)).await.unwrap();
        }
        for version in [2, 4, 6, 8] {
            store.save_snapshot(&name, Version(version), 1, &state(version)).await.unwrap();
        }
        assert_eq!(kept(&store, "a-1").await, [(4, "4".to_owned()), (6, "6".to_owned()), (8, "8".to_owned())]);
        assert_eq!(find(1, None).await, Some((8, "8".to_owned())));
        assert_eq!(find(1, Some(8)).await, Some((8, "8".to_owned())));
        assert_eq!(find(1, Some(7)).await, Some((6, "6".to_owned())));
        assert_eq!(find(1, Some(3)).await, None);
        // Another schema number is another state, and one of the same version takes the place.
        assert_eq!(find(2, None).await, None);
        store.save_snapshot(&name, Version(8), 2, &state(-8)).await.unwrap();
        assert_eq!(find(2, None).await, Some((8, "-8".to_owned())));
        assert_eq!(find(1, None).await, Some((6, "6".to_owned())));
        let taken = store.snapshot(&name, 2, None).await.unwrap().unwrap();
        assert_eq!(taken, Snapshot { version: Version(8), schema_number: 2, state: state(-8), taken_at: T0 });
        assert_eq!(store.snapshot(&stream("a-2"), 1, None).await.unwrap(), None);
    }

    async fn s18_a_snapshot_has_a_limit_and_an_event(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "a-1", 2).await;
        let name = stream("a-1");
        let text = |bytes: usize| Json::parse(format!("\"{}\"", "ü".repeat(bytes / 2 - 1))).unwrap();
        let fits = text(MAX_SNAPSHOT_BYTES);
        assert_eq!(fits.as_str().len(), MAX_SNAPSHOT_BYTES);
        store.save_snapshot(&name, Version(0), 1, &fits).await.unwrap();
        assert!(store.snapshot(&name, 1, None).await.unwrap().unwrap().state == fits);
        assert_eq!(store.read_stream(&stream("$snapshot-a-1"), 0, 10).await.unwrap().len(), 1);
        let refused = store.save_snapshot(&name, Version(0), 1, &text(MAX_SNAPSHOT_BYTES + 2)).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::TooLarge { bytes, .. } if bytes == MAX_SNAPSHOT_BYTES + 2), "{refused}");
        for (missing, version) in [("a-1", 2), ("a-1", -1), ("b-1", 0)] {
            let saved = store.save_snapshot(&stream(missing), Version(version), 1, &state(0)).await;
            assert!(matches!(saved, Err(SnapshotError::NoSuchVersion { .. })), "{saved:?}");
        }
    }

    /// S-18: as a stream, for people; nobody appends to it, and it is no part of the log.
    async fn s18_snapshots_are_read_as_a_stream(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        append(&store, "a-1", 5).await;
        append(&store, "b-1", 5).await;
        for (name, version) in [("a-1", 1), ("a-1", 3), ("b-1", 4)] {
            store.save_snapshot(&stream(name), Version(version), 7, &state(version)).await.unwrap();
        }
        let shown = stream("$snapshot-a-1");
        let events = store.read_stream(&stream("a-1"), 0, 10).await.unwrap();

        let page = store.read_stream(&shown, 0, 1).await.unwrap();

        let Event { position, stream: name, version, event_type, payload, metadata, causation_id, recorded_at, .. } = &page[0];
        assert_eq!((*position, name, *version), (events[1].position, &shown, Version(1)));
        assert_eq!((event_type.as_str(), payload, metadata.as_str()), ("$snapshot", &state(1), "{\"schema_number\":7}"));
        assert_eq!((*causation_id, *recorded_at, page.next), (Some(events[1].id), T0, Some(Version(2))));
        let mut tx = store.begin().await.unwrap();
        let page = store.read_stream_in(&mut tx, &shown, 2, 9).await.unwrap();
        tx.rollback().await;
        assert_eq!((page.len(), page[0].version, page.next), (1, Version(3), None));
        let page = store.read_stream_backwards(&shown, None, 1).await.unwrap();
        assert_eq!((page[0].version, page.next), (Version(3), Some(Version(3))));
        let page = store.read_stream_backwards(&shown, page.next, 9).await.unwrap();
        assert_eq!((page.len(), page[0].version, page.next), (1, Version(1), None));
        let refused = store.append(&shown, ExpectedVersion::Any, vec![event(1)]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Invalid { source: InvalidEvent::ReservedStream(_), .. }));
        assert_eq!(store.statistics(1).await.unwrap().events, 10);
        assert_eq!(store.read(&Filter::all().stream(shown), Position::START, 9).await.unwrap().events, []);
    }

    /// S-18: after a restore another event stands where the snapshot was taken, or none does.
    async fn s18_a_snapshot_of_a_lost_event_is_not_used(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "a-1", 6).await;
        let name = stream("a-1");
        for version in [3, 5] {
            store.save_snapshot(&name, Version(version), 1, &state(version)).await.unwrap();
        }
        let newest = async || store.snapshot(&name, 1, None).await.unwrap().map(|snapshot| snapshot.version.0);
        assert_eq!(newest().await, Some(5));

        lose_last_event(&store, "a-1").await;
        assert_eq!(newest().await, Some(3));
        append(&store, "a-1", 1).await;
        assert_eq!(newest().await, Some(3));
        assert_eq!(kept(&store, "a-1").await, [(3, "3".to_owned())]);

        // The next ones take its place, so that it never crowds out those of events that are there.
        append(&store, "a-1", 1).await;
        for version in [2, 4, 6] {
            store.save_snapshot(&name, Version(version), 1, &state(version)).await.unwrap();
        }
        let versions: Vec<_> = kept(&store, "a-1").await.into_iter().map(|(version, _)| version).collect();
        assert_eq!(versions, [3, 4, 6]);
        let rows: Option<(i64,)> =
            store.database().fetch_optional("SELECT COUNT(*) FROM herald_snapshots", ()).await.unwrap();
        assert_eq!(rows, Some((KEPT_SNAPSHOTS,)));
    }

    async fn s18_many_write_at_the_same_time(database: TestDatabase) {
        let (store, other) = (database.store().await, database.store().await);
        append(&store, "a-1", 24).await;
        let mut writing = tokio::task::JoinSet::new();
        for number in 0..48_i64 {
            let store = if number % 2 == 0 { store.clone() } else { other.clone() };
            // Each version is written twice.
            writing.spawn(async move {
                store.save_snapshot(&stream("a-1"), Version(number % 24), 1, &state(number % 24)).await
            });
        }
        while let Some(saved) = writing.join_next().await {
            saved.unwrap().unwrap();
        }
        let versions: Vec<_> = kept(&store, "a-1").await.into_iter().map(|(version, _)| version).collect();
        assert_eq!(versions, [21, 22, 23]);
    }

    /// S-18: with snapshots and without, an aggregate is the same after every command, whatever becomes of its
    /// snapshots.
    async fn s18_the_state_is_the_same_with_and_without(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        let plain = Repository::<Summing>::new(store.clone());
        for round in 0..6 {
            let (name, every) = (format!("sum-{round}"), u32::try_from(1 + random.below(7)).unwrap());
            let mut taken = 0;
            for _ in 0..25 {
                let sums = Repository::<Summing>::new(store.clone()).with_snapshots(1, every);
                let count = random.below(4);
                let numbers = (0..count).map(|_| i64::try_from(random.below(20)).unwrap() - 8).collect();
                add(&sums, &name, numbers).await;
                let (state, expected) = sums.load(&stream(&name)).await.unwrap();
                assert_eq!((state, expected), plain.load(&stream(&name)).await.unwrap(), "{name} {every}");
                let sql = "SELECT COUNT(*) FROM herald_snapshots WHERE stream = $1";
                let rows: Option<(i64,)> = store.database().fetch_optional(sql, (name.clone(),)).await.unwrap();
                taken = taken.max(rows.unwrap().0);
                match random.below(8) {
                    0 => {
                        let sql = "UPDATE herald_snapshots SET state = '{\"total\":1}' WHERE stream = $1";
                        store.database().execute(sql, (name.clone(),)).await.unwrap();
                    }
                    1 => {
                        let sql = "UPDATE herald_snapshots SET state = 'rubbish' WHERE stream = $1 AND version % 2 = 0";
                        store.database().execute(sql, (name.clone(),)).await.unwrap();
                    }
                    2 => {
                        let sql = "UPDATE herald_snapshots SET schema_number = 2 WHERE stream = $1";
                        store.database().execute(sql, (name.clone(),)).await.unwrap();
                    }
                    _ => {}
                }
            }
            assert!(taken > 0, "{name}: no snapshot was ever taken");
        }
    }

    /// S-18: it begins at the snapshot: what stands before is not read any more.
    async fn s18_a_repository_reads_on_from_the_snapshot(database: TestDatabase) {
        let store = database.store().await;
        let sums = Repository::<Summing>::new(store.clone()).with_snapshots(1, 3);
        for _ in 0..4 {
            add(&sums, "sum-1", vec![1]).await;
        }
        assert_eq!(kept(&store, "sum-1").await, [(2, "{\"total\":3,\"history\":[1,1,1]}".to_owned())]);
        // A mark that only a snapshot can have.
        let mark = "UPDATE herald_snapshots SET state = '{\"total\":1003,\"history\":[]}'";
        store.database().execute(mark, ()).await.unwrap();
        let (state, expected) = sums.load(&stream("sum-1")).await.unwrap();
        assert_eq!((state, expected), (Sum { total: 1004, history: vec![1] }, ExpectedVersion::Exactly(Version(3))));
        // Other rules look at other snapshots.
        let newer = Repository::<Summing>::new(store.clone()).with_snapshots(2, 3);
        assert_eq!(newer.load(&stream("sum-1")).await.unwrap().0.total, 4);
        add(&newer, "sum-1", vec![1]).await;
        assert_eq!(newer.load(&stream("sum-1")).await.unwrap().0.total, 5);
    }

    /// S-18: whatever goes wrong with snapshots, commands are carried out.
    async fn s18_a_command_never_fails_for_its_snapshot(database: TestDatabase) {
        let store = database.store().await;
        let sums = Repository::<Summing>::new(store.clone()).with_snapshots(1, 1);
        assert!(add(&sums, "sum-1", vec![1]).await);
        store.database().execute("DROP TABLE herald_snapshots", ()).await.unwrap();
        for _ in 0..3 {
            assert!(add(&sums, "sum-1", vec![1]).await);
        }
        assert!(!add(&sums, "sum-1", vec![-5]).await);
        assert_eq!(sums.load(&stream("sum-1")).await.unwrap().0.total, 4);
    }

    /// S-16, S-18: an aggregate is made of events as they are today, and appends under the version that is stored.
    async fn s16_an_aggregate_is_made_of_upcast_events(database: TestDatabase) {
        let twice = Upcaster::new("added twice", |event: &Event| {
            Ok(vec![Part::new("Acme.Test:Added", 1, event.payload.clone()); 2])
        });
        let noise = Upcaster::new("noise is over", |_| Ok(Vec::new())).takes("Noise", 1);
        let upcasters = [twice.takes("AddedTwice", 1).gives("Acme.Test:Added", 1), noise];
        let store = database.store().await.with_upcasters(Upcasters::new(upcasters).unwrap());
        let old = |name: &str| store::NewEvent::new(name, Json::parse("{\"number\":21}").unwrap());
        let events = vec![old("AddedTwice"), old("Noise"), old("Noise")];
        store.append(&stream("sum-1"), ExpectedVersion::NoStream, events).await.unwrap();
        for every in [1, 1_000] {
            let sums = Repository::<Summing>::new(store.clone()).with_snapshots(1, every);
            assert!(add(&sums, "sum-1", vec![-1]).await);
            assert!(add(&sums, "sum-1", vec![1]).await);
            assert_eq!(sums.load(&stream("sum-1")).await.unwrap().0.total, 42);
        }
        assert_eq!(kept(&store, "sum-1").await.iter().map(|(version, _)| *version).collect::<Vec<_>>(), [2, 3]);
    }
}
