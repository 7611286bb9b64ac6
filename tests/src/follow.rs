//! The log as a stream (S-12, S-15, S-25, PROOPH-11): to the end, backwards, and for ever.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use store::{
    AppendError, Event, Events, ExpectedVersion, Fault, Filter, MAX_PAGE_BYTES, NewEvent, Position,
    ReadError, Store,
};
use testkit::{Cluster, Findings, Random, Read, T0, TestDatabase, WANTED, Wanted, both, judge};
use tokio::time::timeout;
use uuid::Uuid;

use crate::filters::fill;
use crate::given::{all_events, event, stream};

/// Two pages: the one that is handled, and the one that is fetched meanwhile.
const TWO_PAGES: usize = 2_000;
/// Far above what anything here takes, and no more than a limit for what has gone wrong.
const PATIENCE: Duration = Duration::from_secs(60);

async fn append(store: &Store, number: u32) {
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
}

fn positions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.position.0).collect()
}

async fn next(live: &mut Events) -> Result<Event, ReadError> {
    timeout(PATIENCE, live.next()).await.unwrap().expect("a live stream does not end")
}

/// A row that no program of ours writes, as the next one of the log.
async fn bad_row(store: &Store, position: i64) {
    let insert =
        "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, recorded_at,
                                             append_index, append_size)
                  VALUES ($1, $2, 0, 'common', '{}', '{}', $3, $4, 0, 1)";
    store.database().execute(insert, (position, "a\nb", Uuid::from_u128(1), T0)).await.unwrap();
}

/// Reads events slowly and changes, now and then, the type of all that follow. Those that come with the old type were
/// fetched before: answers with the most of them.
async fn most_fetched_ahead(store: &Store, mut events: Events, count: usize) -> usize {
    let switch_off = if store.database().target().host.is_some() {
        "ALTER TABLE herald_events DISABLE TRIGGER herald_events_only_grow"
    } else {
        "DROP TRIGGER IF EXISTS herald_events_never_change"
    };
    store.database().execute(switch_off, ()).await.unwrap();
    let (mut mark, mut ahead, mut most) = (0, 0, 0);
    for number in 0..count {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!(event.position.0, i64::try_from(number).unwrap() + 1);
        if mark > 0 && event.event_type != format!("mark {mark}") {
            ahead += 1;
            most = most.max(ahead);
        }
        if number % 20_000 == 1_500 {
            (mark, ahead) = (mark + 1, 0);
            let update = "UPDATE herald_events SET type = $1 WHERE position > $2";
            let values = (format!("mark {mark}"), event.position);
            store.database().execute(update, values).await.unwrap();
        }
    }
    most
}

/// What the payloads say, in their order.
async fn numbers(events: Events) -> Vec<u64> {
    let events: Vec<_> = events.try_collect().await.unwrap();
    let number = |event: &Event| event.payload.to::<serde_json::Value>().unwrap()["number"].as_u64().unwrap();
    events.iter().map(number).collect()
}

both! {
    async fn prooph11_a_stream_is_created_appended_to_and_loaded(database: TestDatabase) {
        let store = database.store().await;
        let (orders, nobody) = (stream("order-1"), stream("order-2"));
        store.append(&orders, ExpectedVersion::NoStream, vec![event(1), event(2)]).await.unwrap();
        store.append(&orders, ExpectedVersion::StreamExists, vec![event(3)]).await.unwrap();

        for (name, expected) in [(&orders, ExpectedVersion::NoStream), (&nobody, ExpectedVersion::StreamExists)] {
            let refused = store.append(name, expected, vec![event(4)]).await.unwrap_err();
            assert!(matches!(refused, AppendError::WrongVersion { .. }), "{refused}");
        }
        assert_eq!(numbers(store.events(Filter::all().stream(orders.clone()), Position::START)).await, [1, 2, 3]);
        assert_eq!(numbers(store.events_backwards(Filter::all().stream(orders), None)).await, [3, 2, 1]);
        assert_eq!(numbers(store.events(Filter::all().stream(nobody), Position::START)).await, Vec::<u64>::new());
    }

    async fn s12_a_stream_of_events_has_what_the_pages_have(database: TestDatabase) {
        let store = database.store().await;
        fill(&store, 5_000, 7).await;
        for filter in [
            Filter::all(),
            Filter::all().types(["rare-3", "common"]),
            Filter::all().category("rare3"),
            Filter::all().stream(stream("nobody-1")),
            Filter::all().types(Vec::<String>::new()),
        ] {
            let mut wanted = store.read(&filter, Position(100), 10_000).await.unwrap().events;
            let events: Vec<_> = store.events(filter.clone(), Position(100)).try_collect().await.unwrap();
            assert_eq!(positions(&events), positions(&wanted), "{filter:?}");

            let pages: Vec<_> = store.pages(filter.clone(), Position(100)).try_collect().await.unwrap();
            let ends: Vec<_> = pages.iter().map(|page| page.is_end).collect();
            assert_eq!(ends.iter().filter(|is_end| **is_end).count(), 1, "{filter:?}");
            assert_eq!((ends.last(), pages.last().unwrap().scanned_to), (Some(&true), Position(5_000)));

            wanted.retain(|event| event.position < Position(4_000));
            wanted.reverse();
            let events = store.events_backwards(filter.clone(), Some(Position(4_000)));
            let mut events: Vec<_> = events.try_collect().await.unwrap();
            events.retain(|event| event.position > Position(100));
            assert_eq!(positions(&events), positions(&wanted), "{filter:?}");
        }
        let newest: Vec<_> = store.events_backwards(Filter::all(), None).take(3).try_collect().await.unwrap();
        assert_eq!(positions(&newest), [5_000, 4_999, 4_998]);
    }

    /// Otherwise a reader that is slower than the writers would never come to an end.
    async fn s12_a_stream_of_events_ends_where_the_log_ended_when_it_began(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        append(&store, 2).await;

        let mut events = store.events(Filter::all(), Position::START);
        let first = events.next().await.unwrap().unwrap();
        append(&store, 3).await;
        let rest: Vec<_> = events.try_collect().await.unwrap();

        assert_eq!((first.position, positions(&rest)), (Position(1), vec![2]));
    }

    async fn s12_a_slow_reader_is_not_run_over(database: TestDatabase) {
        let store = database.store().await;
        fill(&store, 100_000, 600).await;
        for events in [store.events(Filter::all(), Position::START), store.follow(Filter::all(), Position::START)] {
            let most = most_fetched_ahead(&store, events, 100_000).await;
            assert!(most <= TWO_PAGES, "{most} events had been fetched ahead");
        }
    }

    async fn s12_pages_of_a_stream_are_bounded_by_bytes(database: TestDatabase) {
        let store = database.store().await;
        let large = store::Json::of(&"x".repeat(256 * 1024 - 2)).unwrap();
        for _ in 0..5 {
            let events = (0..9).map(|_| NewEvent::new("large", large.clone())).collect();
            store.append(&stream("a-1"), ExpectedVersion::Any, events).await.unwrap();
        }
        let pages: Vec<_> = store.pages(Filter::all(), Position::START).try_collect().await.unwrap();
        let mut count = 0;
        for page in pages {
            let bytes: usize = page.events.iter().map(|event| event.payload.as_str().len()).sum();
            assert!(bytes < MAX_PAGE_BYTES + 256 * 1024, "{bytes}");
            count += page.events.len();
        }
        assert_eq!(count, 45);
    }

    async fn s25_what_stands_before_a_bad_row_comes_first(database: TestDatabase) {
        let store = database.store().await;
        fill(&store, 1_500, 600).await;
        bad_row(&store, 1_501).await;
        let streams = [
            store.events(Filter::all(), Position::START),
            store.events(Filter::all().types(["common", "rare-1"]), Position::START),
            store.follow(Filter::all(), Position::START),
            store.follow(Filter::all().types(["common", "rare-1", "rare-2"]), Position::START),
        ];
        for mut events in streams {
            let mut last = Position::START;
            let error = loop {
                match timeout(PATIENCE, events.next()).await.unwrap().unwrap() {
                    Ok(event) => last = event.position,
                    Err(error) => break error,
                }
            };
            assert_eq!(last, Position(1_500));
            assert!(matches!(error, ReadError::BadRow { position: Position(1_501), .. }), "{error}");
            assert!(events.next().await.is_none(), "it ends with the error");
        }
        // Who knows better goes on behind it.
        append_after_bad_row(&store).await;
        let rest: Vec<_> = store.events(Filter::all(), Position(1_501)).try_collect().await.unwrap();
        assert_eq!(positions(&rest), [1_502]);
    }

    async fn s12_a_live_stream_catches_up_and_goes_on(database: TestDatabase) {
        let store = database.store().await;
        fill(&store, 2_500, 600).await;
        let mut live = store.follow(Filter::all().types(["Acme.Test:Happened", "rare-1"]), Position(600));
        // Of type rare-1 are 600, 6600 and so on: nothing is there yet.
        let waiting = tokio::spawn(async move {
            let event = next(&mut live).await.unwrap();
            (event, live)
        });
        set_sequence(&store, 2_500).await;
        append(&store, 1).await;
        let (first, mut live) = waiting.await.unwrap();
        append(&store, 2).await;
        let second = next(&mut live).await.unwrap();
        assert_eq!((first.position, second.position), (Position(2_501), Position(2_502)));
    }

    async fn s12_live_pages_tell_each_time_when_the_end_is_reached(database: TestDatabase) {
        let store = database.store().await;
        for filter in [Filter::all(), Filter::all().category("a")] {
            let mut pages = store.follow_pages(filter, store.head().await.unwrap().position);
            assert!(pages.next().await.unwrap().unwrap().is_end);
            for number in 0..3 {
                append(&store, number).await;
                let (mut seen, mut is_end) = (0, false);
                while !is_end || seen == 0 {
                    let page = timeout(PATIENCE, pages.next()).await.unwrap().unwrap().unwrap();
                    (seen, is_end) = (seen + page.events.len(), page.is_end);
                }
                assert_eq!(seen, 1);
            }
            // Somebody else's event is none for this stream, and still moves it on.
            let to = Position(store.head().await.unwrap().position.0 + 1);
            store.append(&stream("b-1"), ExpectedVersion::Any, vec![event(9)]).await.unwrap();
            while timeout(PATIENCE, pages.next()).await.unwrap().unwrap().unwrap().scanned_to < to {}
        }
    }

    /// The wait without a hint is two seconds: ten events one after the other would take twenty.
    async fn s15_a_live_stream_hears_of_other_processes(database: TestDatabase) {
        let (writer, reader) = (database.store().await, database.open().await);
        let mut pages = reader.follow_pages(Filter::all(), Position::START);
        let start = Instant::now();
        for number in 1..=10 {
            // It has seen the end, so it waits, or will in a moment.
            while !timeout(PATIENCE, pages.next()).await.unwrap().unwrap().unwrap().is_end {}
            for _ in 0..20 {
                reader.head().await.unwrap();
            }
            append(&writer, number).await;
            let page = timeout(PATIENCE, pages.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(positions(&page.events), [i64::from(number)]);
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it polled: {:?}", start.elapsed());
    }

    async fn s12_a_live_stream_ends_when_the_store_is_closed(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let mut live = store.follow(Filter::all(), Position::START);
        next(&mut live).await.unwrap();
        let waiting = tokio::spawn(async move { live.next().await.is_none() });

        timeout(PATIENCE, store.close()).await.expect("nothing that is followed keeps it open");

        assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap());
        // What was promised to an end must not look as if it had reached it.
        let events: Result<Vec<_>, _> = store.events(Filter::all(), Position::START).try_collect().await;
        assert!(matches!(events, Err(ReadError::Database(sqlx::Error::PoolClosed))), "{events:?}");
    }

    async fn s09_live_streams_skip_nothing(database: TestDatabase) {
        let store = database.store().await;
        let reader = async |after| first_page(store.follow_pages(Filter::all(), after)).await;
        assert_eq!(judge(&database, Random::seed(), Wanted::All, reader).await, Findings::default());
    }

    async fn s09_streams_to_the_end_skip_nothing(database: TestDatabase) {
        let store = database.store().await;
        let filter = Filter::all().types([WANTED]);
        let reader = async |after| first_page(store.pages(filter.clone(), after)).await;
        assert_eq!(judge(&database, Random::seed(), Wanted::OfType, reader).await, Findings::default());
    }
}

async fn first_page(mut pages: store::Pages) -> Read {
    let page = pages.next().await.unwrap().unwrap();
    let events = page.events.into_iter().map(Into::into).collect();
    Read { events, go_on_after: page.scanned_to }
}

/// Lets the next append draw the position behind this one, where rows were written past it.
async fn set_sequence(store: &Store, to: i64) {
    if store.database().target().host.is_some() {
        let sql = "SELECT setval('herald_positions', $1)";
        store.database().fetch_optional::<(i64,)>(sql, (to,)).await.unwrap();
    }
}

async fn append_after_bad_row(store: &Store) {
    set_sequence(store, 1_501).await;
    append(store, 1).await;
}

/// What a live stream holds is let go of: the file is deleted with the last handle.
#[tokio::test]
async fn s12_a_live_stream_that_is_dropped_stops() {
    let store = Store::in_memory().await.unwrap();
    append(&store, 1).await;
    let file = std::path::PathBuf::from(store.database().target().database);
    let mut live = store.follow(Filter::all(), Position::START);
    next(&mut live).await.unwrap();
    drop(store);
    assert!(file.exists(), "the stream is a handle as well");

    drop(live);

    let start = Instant::now();
    while file.exists() {
        assert!(start.elapsed() < PATIENCE, "something still holds the store");
        tokio::task::yield_now().await;
    }
}

/// Appends until it is certain that it has happened, as a careful program does.
async fn append_through_a_restart(store: &Store, number: u32) {
    let new = event(number);
    let start = Instant::now();
    while let Err(error) = store.append(&stream("a-1"), ExpectedVersion::Any, vec![new.clone()]).await {
        let may_heal = matches!(error, AppendError::OutcomeUnknown(_))
            || matches!(Fault::of(&error), Fault::Transient | Fault::Unreachable);
        assert!(may_heal && start.elapsed() < PATIENCE, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s15_a_live_stream_outlives_restarts_of_the_server() {
    let name = "s15_a_live_stream_outlives_restarts_of_the_server";
    let Some(mut cluster) = testkit::own_postgres_or_left_out(name) else { return };
    let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
    let (writer, reader) = (database.store().await, database.open().await);
    let (seen, mut sees) = tokio::sync::watch::channel(0);
    let following = tokio::spawn(async move {
        let (mut live, mut events) = (reader.follow(Filter::all(), Position::START), Vec::new());
        while events.len() < 90 {
            events.push(next(&mut live).await.unwrap());
            seen.send_replace(events.len());
        }
        events
    });
    for (round, restart) in [Cluster::restart_immediate, Cluster::restart_fast, Cluster::restart_immediate]
        .into_iter()
        .enumerate()
    {
        for number in 0..30 {
            append_through_a_restart(&writer, number).await;
        }
        // It follows, and is in the midst of it.
        sees.wait_for(|seen| *seen > round * 30).await.unwrap();
        let restarted = tokio::task::spawn_blocking(move || restart(&cluster).map(|()| cluster));
        cluster = restarted.await.unwrap().unwrap();
    }

    let followed = following.await.unwrap();

    // The connections of the writer are of before the last restart.
    assert_eq!(positions(&followed), positions(&all_events(&database.open().await).await));
}
