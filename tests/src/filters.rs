//! Filters (S-12, S-14, PROOPH-14, PROOPH-15): each way to ask gives the right events and walks its own index,
//! on a table of which the database knows much and on one of which it knows nothing.

use store::{
    AppendError, Connection, Direction, Event, ExpectedVersion, Filter, InvalidEvent, Json, MAX_PAGE_BYTES,
    NewEvent, Position, Store, Version,
};
use testkit::{Random, T0, both};

use crate::given::{event, stream};

fn positions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.position.0).collect()
}

/// Reads forwards to the end, and says how many pages that took.
pub(crate) async fn forwards(store: &Store, filter: &Filter, limit: usize) -> Vec<Event> {
    let (mut events, mut after) = (Vec::new(), Position::START);
    loop {
        let page = store.read(filter, after, limit).await.unwrap();
        assert!(page.events.iter().all(|event| event.position > after && event.position <= page.scanned_to));
        assert!(page.scanned_to > after || page.is_end);
        after = page.scanned_to;
        events.extend(page.events);
        if page.is_end {
            return events;
        }
    }
}

/// Reads backwards to the beginning.
pub(crate) async fn backwards(store: &Store, filter: &Filter, limit: usize) -> Vec<Event> {
    let (mut events, mut before) = (Vec::new(), None);
    loop {
        let page = store.read_backwards(filter, before, limit).await.unwrap();
        before = Some(page.scanned_to);
        events.extend(page.events);
        if page.is_end {
            return events;
        }
    }
}

/// Writes `count` events at once, past the append: of the types `common` and, each `rare_each`-th, `rare-0` to
/// `rare-9`, in as many categories and correlations.
pub(crate) async fn fill(store: &Store, count: i64, rare_each: i64) {
    let mut tx = store.begin().await.unwrap();
    let insert = match tx.connection() {
        Connection::Sqlite(_) => {
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < $1)
             INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                        recorded_at, append_index, append_size)
             SELECT n, CASE WHEN n % $2 = 0 THEN 'rare' || (n / $2 % 10) || '-1' ELSE 'common-' || (n % 97) END,
                    n, CASE WHEN n % $2 = 0 THEN 'rare-' || (n / $2 % 10) ELSE 'common' END, '{}', '{}',
                    CAST(printf('%016d', n) AS BLOB), CASE WHEN n % $2 = 0 THEN 'rare' || (n / $2 % 10) END, $3, 0, 1
               FROM n"
        }
        Connection::Postgres(_) => {
            "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                        recorded_at, append_index, append_size)
             SELECT n, CASE WHEN n % $2 = 0 THEN 'rare' || (n / $2 % 10) || '-1' ELSE 'common-' || (n % 97) END,
                    n, CASE WHEN n % $2 = 0 THEN 'rare-' || (n / $2 % 10) ELSE 'common' END, '{}', '{}',
                    gen_random_uuid(), CASE WHEN n % $2 = 0 THEN 'rare' || (n / $2 % 10) END, $3, 0, 1
               FROM generate_series(1, $1) AS n"
        }
    };
    tx.execute(insert, (count, rare_each, T0)).await.unwrap();
    tx.commit().await.unwrap();
}

both! {
    async fn s12_each_filter_finds_its_events_in_both_directions(database: TestDatabase) {
        let store = database.store().await;
        let mut random = Random::new();
        let types = ["a", "b", "c", "d"];
        let streams = ["user-1", "user-2", "users-1", "user", "order-1-2", "-x"];
        let mut all = Vec::new();
        for number in 0..120 {
            let to = stream(streams[usize::try_from(random.below(6)).unwrap()]);
            let event_type = types[usize::try_from(random.below(4)).unwrap()].to_owned();
            let correlation_id = (random.below(3) == 0).then(|| format!("order {}", random.below(3)));
            let new = NewEvent { event_type, correlation_id, ..event(number) };
            store.append(&to, ExpectedVersion::Any, vec![new]).await.unwrap();
        }
        all.extend(forwards(&store, &Filter::all(), 50).await);
        assert_eq!(all.len(), 120);

        let many: Vec<String> = (0..100).map(|number| format!("t{number}")).chain(["a".to_owned()]).collect();
        let filters = [
            Filter::all().stream(stream("user-1")),
            Filter::all().stream(stream("nobody-1")),
            Filter::all().category("user"),
            Filter::all().category("users"),
            Filter::all().category(""),
            Filter::all().category("use"),
            Filter::all().types(["a"]),
            Filter::all().types(["a", "c"]),
            Filter::all().types(["a", "a", "nothing"]),
            Filter::all().types(many),
            Filter::all().correlation_id("order 1"),
            Filter::all().correlation_id("order 1").types(["a", "b"]).category("user"),
            Filter::all().stream(stream("user-1")).types(["b"]).correlation_id("order 2"),
            Filter::all().stream(stream("user-1")).category("user"),
            Filter::all().stream(stream("user-1")).category("order"),
            Filter::all().category("user").types(["d", "a"]),
        ];
        for filter in filters {
            let mut wanted: Vec<i64> =
                all.iter().filter(|event| filter.matches(event)).map(|event| event.position.0).collect();
            for limit in [1, 7, 1_000] {
                assert_eq!(positions(&forwards(&store, &filter, limit).await), wanted, "{filter:?} {limit}");
            }
            let some = wanted.len() / 2;
            let after = Position(wanted.get(some).copied().unwrap_or(60));
            let page = store.read(&filter, after, 1_000).await.unwrap();
            let behind: Vec<i64> = wanted.iter().copied().filter(|position| *position > after.0).collect();
            assert_eq!(positions(&page.events), behind, "{filter:?} after {after}");
            assert_eq!(store.count(&filter, Position(120)).await.unwrap(), wanted.len() as u64, "{filter:?}");
            wanted.reverse();
            for limit in [1, 7, 1_000] {
                assert_eq!(positions(&backwards(&store, &filter, limit).await), wanted, "{filter:?} {limit}");
            }
            let page = store.read_backwards(&filter, Some(after), 1_000).await.unwrap();
            let before: Vec<i64> = wanted.iter().copied().filter(|position| *position < after.0).collect();
            assert_eq!(positions(&page.events), before, "{filter:?} before {after}");
        }
    }

    async fn s12_a_stream_is_loaded_from_a_version_and_backwards(database: TestDatabase) {
        let store = database.store().await;
        for number in 0..10 {
            store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
            store.append(&stream("b-1"), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
        }
        let versions = |events: &[Event]| events.iter().map(|event| event.version.0).collect::<Vec<_>>();

        let page = store.read_stream(&stream("a-1"), 3, 5).await.unwrap();
        assert_eq!((versions(&page), page.next), (vec![3, 4, 5, 6, 7], Some(Version(8))));
        let page = store.read_stream(&stream("a-1"), 8, 5).await.unwrap();
        assert_eq!((versions(&page), page.next), (vec![8, 9], None));
        let page = store.read_stream_backwards(&stream("a-1"), None, 5).await.unwrap();
        assert_eq!((versions(&page), page.next), (vec![9, 8, 7, 6, 5], Some(Version(5))));
        let page = store.read_stream_backwards(&stream("a-1"), page.next, 5).await.unwrap();
        assert_eq!((versions(&page), page.next), (vec![4, 3, 2, 1, 0], None));
    }

    async fn s12_a_page_is_bounded_by_bytes(database: TestDatabase) {
        let store = database.store().await;
        let large = "x".repeat(256 * 1024 - 2);
        for _ in 0..5 {
            let events = (0..9).map(|_| NewEvent::new("large", Json::of(&large).unwrap())).collect();
            store.append(&stream("a-1"), ExpectedVersion::Any, events).await.unwrap();
        }
        let reads = [Filter::all(), Filter::all().types(["large"]), Filter::all().types(["large", "none"])];
        for filter in reads {
            let page = store.read(&filter, Position::START, 1_000).await.unwrap();
            let bytes: usize = page.events.iter().map(|event| event.payload.as_str().len()).sum();
            assert!((MAX_PAGE_BYTES..MAX_PAGE_BYTES + 256 * 1024).contains(&bytes), "{bytes} {filter:?}");
            assert_eq!(forwards(&store, &filter, 1_000).await.len(), 45, "{filter:?}");
        }
        let first = store.read_stream(&stream("a-1"), 0, 1_000).await.unwrap();
        let rest = store.read_stream(&stream("a-1"), first.next.unwrap().0, 1_000).await.unwrap();
        assert_eq!((first.len() < 45, first.len() + rest.len(), rest.next), (true, 45, None));
    }

    async fn s13_a_field_of_the_metadata_stands_once(database: TestDatabase) {
        let store = database.store().await;
        let twice = NewEvent { metadata: Json::parse(r#"{"a":1,"b":{"c":1,"c":2},"\u0061":2}"#).unwrap(), ..event(1) };
        let nested = NewEvent { metadata: Json::parse(r#"{"a":1,"b":{"c":1,"c":2}}"#).unwrap(), ..event(1) };

        let refused = store.append(&stream("a-1"), ExpectedVersion::Any, vec![twice]).await.unwrap_err();

        let AppendError::Invalid { source, .. } = refused else { panic!("{refused}") };
        assert!(matches!(&source, InvalidEvent::MetadataKeyTwice(key) if key == "a"), "{source}");
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![nested]).await.unwrap();
    }

    async fn s12_few_are_found_among_many_by_an_index(database: TestDatabase) {
        let store = database.store().await;
        fill(&store, 60_000, 600).await;
        let filters = [
            (Filter::all().types(["rare-3"]), "herald_events_type"),
            (Filter::all().types(["rare-3", "rare-4"]), "herald_events_type"),
            (Filter::all().types(["rare-3", "common"]), "herald_events_type"),
            (Filter::all().category("rare3"), "herald_events_category"),
            (Filter::all().category("common"), "herald_events_category"),
            (Filter::all().correlation_id("rare3"), "herald_events_correlation"),
            (Filter::all().stream(stream("rare3-1")), "stream_version"),
        ];
        for is_analysed in [false, true] {
            if is_analysed {
                store.database().execute("ANALYZE", ()).await.unwrap();
            }
            for (filter, index) in &filters {
                for (after, is_backwards) in [(0, false), (30_000, false), (50_000, true)] {
                    let direction = if is_backwards { Direction::Backwards } else { Direction::Forwards };
                    let plan = store.explain(filter, direction, Position(after), 1_000).await.unwrap();
                    let said = format!("{filter:?} {after} {is_analysed}\n{plan}");
                    let index_of_sqlite = if *index == "stream_version" { "sqlite_autoindex_herald_events" } else { index };
                    assert!(plan.contains(if database.is_postgres() { index } else { index_of_sqlite }), "{said}");
                    assert!(!plan.contains("Seq Scan on herald_events") && !plan.contains("SCAN herald_events"), "{said}");
                    assert!(!plan.contains("SCAN e"), "{said}");
                }
            }
        }
        let found = forwards(&store, &Filter::all().types(["rare-3"]), 1_000).await;
        assert_eq!(found.len(), 10);
    }
}
