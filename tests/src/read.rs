//! Reading (S-01, S-02, S-25): what was put in comes out, and a row that cannot be read is named.

use std::error::Error;

use store::{
    Event, ExpectedVersion, Filter, InvalidStreamName, Json, NewEvent, Position, ReadError, Store,
    StreamName, Timestamp, Version,
};
use testkit::{T0, both};
use uuid::Uuid;

use crate::given::{all_events, event, stream};

fn positions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.position.0).collect()
}

/// The ten columns of the view, by their names.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
struct ViewRow {
    sequencenumber: i64,
    stream: String,
    version: i64,
    r#type: String,
    payload: String,
    metadata: String,
    id: String,
    correlationidentifier: Option<String>,
    causationidentifier: Option<String>,
    recordedat: Timestamp,
}

/// Five events: of type one at the positions 1, 3 and 5, of type two at 2 and 4.
async fn five_events(store: &Store) {
    for number in 1..=5 {
        let event_type = if number % 2 == 1 { "one" } else { "two" };
        let events = vec![NewEvent { event_type: event_type.to_owned(), ..event(number) }];
        store.append(&stream(event_type), ExpectedVersion::Any, events).await.unwrap();
    }
}

both! {
    async fn s01_an_event_comes_back_as_it_was_given(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let cause = event(0);
        store.append(&stream("user-1"), ExpectedVersion::NoStream, vec![cause.clone()]).await.unwrap();
        // Spaces, order of keys, ways to write a number, escapes: nothing may be tidied up.
        let payload = "{ \"b\" : 1.0,\n\t\"a\":[1e3 , \"\\u00fc ü 😀 \\/ \"], \"a\": null }";
        let given = NewEvent {
            payload: Json::parse(payload).unwrap(),
            metadata: Json::parse("{\"by\": \"ü\"}").unwrap(),
            correlation_id: Some("order 7".to_owned()),
            causation_id: Some(cause.id),
            ..NewEvent::new("Acme.Notifications:UserWasNotified", Json::empty_object())
        };

        let appended =
            store.append(&stream("user-1"), ExpectedVersion::StreamExists, vec![given.clone()]).await.unwrap();

        let stored = all_events(&store).await.pop().unwrap();
        assert_eq!(stored.payload.as_str(), payload);
        assert_eq!(Some(stored.position), appended.position);
        assert_eq!((stored.stream, stored.version), (stream("user-1"), Version(1)));
        assert_eq!((stored.event_type, stored.id), (given.event_type, given.id));
        assert_eq!((stored.correlation_id, stored.causation_id), (given.correlation_id, given.causation_id));
        assert_eq!(stored.metadata.to::<serde_json::Value>().unwrap(), serde_json::json!({ "by": "ü" }));
        assert_eq!(stored.recorded_at, T0);
    }

    async fn s01_the_manual_clock_tells_when_an_event_was_recorded(database: TestDatabase) {
        let (store, other) = (database.store_with_manual_clock().await, database.store().await);
        let later: Timestamp = "2026-03-01T10:20:30.123456Z".parse().unwrap();
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1), event(2)]).await.unwrap();

        store.clock().set(later).await.unwrap();
        other.append(&stream("a-1"), ExpectedVersion::Any, vec![event(3)]).await.unwrap();

        let times: Vec<_> = all_events(&store).await.iter().map(|event| event.recorded_at).collect();
        assert_eq!(times, [T0, T0, later]);
    }

    async fn s01_the_view_shows_ten_columns(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let cause = event(0);
        let effect = NewEvent {
            metadata: Json::parse("{\"by\": 1}").unwrap(),
            correlation_id: Some("order 7".to_owned()),
            causation_id: Some(cause.id),
            ..event(1)
        };
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![cause.clone(), effect.clone()]).await.unwrap();

        let select = "SELECT sequencenumber, stream, version, type, payload, metadata, CAST(id AS TEXT) AS id,
                             correlationidentifier, CAST(causationidentifier AS TEXT) AS causationidentifier,
                             recordedat
                        FROM acme_notifications_events
                       ORDER BY sequencenumber";
        let rows: Vec<ViewRow> = store.database().fetch_all(select, ()).await.unwrap();

        let first = ViewRow {
            sequencenumber: 1,
            stream: "a-1".to_owned(),
            version: 0,
            r#type: "Acme.Test:Happened".to_owned(),
            payload: "{\"number\":0}".to_owned(),
            metadata: "{}".to_owned(),
            id: cause.id.to_string(),
            correlationidentifier: None,
            causationidentifier: None,
            recordedat: T0,
        };
        let second = ViewRow {
            sequencenumber: 2,
            version: 1,
            payload: "{\"number\":1}".to_owned(),
            metadata: "{\"by\": 1}".to_owned(),
            id: effect.id.to_string(),
            correlationidentifier: Some("order 7".to_owned()),
            causationidentifier: Some(cause.id.to_string()),
            ..first.clone()
        };
        assert_eq!(rows, [first, second]);
    }

    async fn s02_a_stream_is_found_by_its_whole_name(database: TestDatabase) {
        let store = database.store().await;
        for name in ["user-1", "user-10", "User-1", "ü ' \" % _ \\ 1"] {
            store.append(&stream(name), ExpectedVersion::NoStream, vec![event(1)]).await.unwrap();
        }
        for (name, position) in [("user-1", 1), ("User-1", 3), ("ü ' \" % _ \\ 1", 4)] {
            let events = store.read_stream(&stream(name), 0, 10).await.unwrap();
            assert_eq!(positions(&events), [position], "{name}");
            let page = store.read(&Filter::all().stream(stream(name)), Position::START, 10).await.unwrap();
            assert_eq!((positions(&page.events), page.scanned_to), (vec![position], Position(4)), "{name}");
        }
    }

    async fn s09_pages_follow_each_other_without_a_gap(database: TestDatabase) {
        let store = database.store().await;
        five_events(&store).await;
        let one = Filter::all().types(["one"]);
        let read = async |filter: &Filter, after, limit| {
            let page = store.read(filter, Position(after), limit).await.unwrap();
            (positions(&page.events), page.scanned_to.0)
        };

        assert_eq!(read(&Filter::all(), 0, 3).await, (vec![1, 2, 3], 3));
        assert_eq!(read(&Filter::all(), 3, 3).await, (vec![4, 5], 5));
        assert_eq!(read(&Filter::all(), 5, 3).await, (vec![], 5));
        assert_eq!(read(&one, 0, 2).await, (vec![1, 3], 3));
        assert_eq!(read(&one, 3, 2).await, (vec![5], 5));
        assert_eq!(read(&Filter::all().types(["two"]), 3, 9).await, (vec![4], 5));
        assert_eq!(read(&Filter::all().types(["one", "two"]), 1, 2).await, (vec![2, 3], 3));
        assert_eq!(read(&Filter::all().types(Vec::<String>::new()), 0, 9).await, (vec![], 5));
        // Who asks for nothing has looked at nothing.
        assert_eq!(read(&Filter::all(), 0, 0).await, (vec![], 0));
        assert_eq!(read(&one, 0, 0).await, (vec![], 0));

        let backwards = async |filter: &Filter, before: Option<i64>, limit| {
            positions(&store.read_backwards(filter, before.map(Position), limit).await.unwrap().events)
        };
        assert_eq!(backwards(&Filter::all(), None, 2).await, [5, 4]);
        assert_eq!(backwards(&Filter::all(), Some(4), 9).await, [3, 2, 1]);
        assert_eq!(backwards(&one, Some(5), 9).await, [3, 1]);
        assert_eq!(backwards(&one, Some(1), 9).await, Vec::<i64>::new());
    }

    async fn s25_a_row_that_cannot_be_read_is_named(database: TestDatabase) {
        let store = database.store().await;
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        // No program of ours writes a stream name with a line break.
        let insert = "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, recorded_at,
                                                 append_index, append_size)
                      VALUES (2, $1, 0, 'bad', '{}', '{}', $2, $3, 0, 1)";
        store.database().execute(insert, ("a\nb", Uuid::from_u128(1), T0)).await.unwrap();

        let bad = Filter::all().types(["bad"]);
        let errors = [
            store.read(&Filter::all(), Position(1), 10).await.unwrap_err(),
            store.read(&bad, Position::START, 10).await.unwrap_err(),
            store.read_backwards(&Filter::all(), None, 1).await.unwrap_err(),
        ];

        for error in errors {
            assert!(matches!(error, ReadError::BadRow { position: Position(2), .. }), "{error}");
            assert_eq!(error.to_string(), "the event at position 2 cannot be read");
            let source = error.source().unwrap().downcast_ref::<InvalidStreamName>();
            assert_eq!(source, Some(&StreamName::new("a\nb").unwrap_err()));
        }
        // What stands before it is delivered first.
        let page = store.read(&Filter::all(), Position::START, 10).await.unwrap();
        assert_eq!((positions(&page.events), page.scanned_to, page.is_end), (vec![1], Position(1), false));
        let both = Filter::all().types(["bad", "Acme.Test:Happened"]);
        let page = store.read(&both, Position::START, 10).await.unwrap();
        assert_eq!((positions(&page.events), page.scanned_to, page.is_end), (vec![1], Position(1), false));
    }
}
