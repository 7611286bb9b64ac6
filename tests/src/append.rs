//! Appending (S-04, S-24): whole, versioned, within limits.

use store::{
    AppendError, ExpectedVersion, Filter, InvalidEvent, Json, MAX_APPEND_EVENTS, MAX_METADATA_BYTES,
    MAX_PAYLOAD_BYTES, NewEvent, Position, Version,
};
use testkit::both;
use tokio::task::JoinSet;

use crate::given::{all_events, event, stream};

/// JSON text of exactly this many bytes: an object with one long string.
fn json_of(bytes: usize) -> Json {
    let json = Json::parse(format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8))).unwrap();
    assert_eq!(json.as_str().len(), bytes);
    json
}

both! {
    async fn s04_expected_versions(database: TestDatabase) {
        let store = database.store().await;
        let name = stream("user-1");
        use ExpectedVersion::{Any, Exactly, NoStream, StreamExists};

        let refused = store.append(&name, StreamExists, vec![event(0)]).await.unwrap_err();
        assert!(matches!(refused, AppendError::WrongVersion { actual: None, .. }), "{refused}");
        let refused = store.append(&name, Exactly(Version(0)), vec![event(0)]).await.unwrap_err();
        assert!(matches!(refused, AppendError::WrongVersion { actual: None, .. }), "{refused}");

        let first = store.append(&name, NoStream, vec![event(0), event(1)]).await.unwrap();
        assert_eq!(first.version, Some(Version(1)));
        let refused = store.append(&name, NoStream, vec![event(2)]).await.unwrap_err();
        assert!(matches!(refused, AppendError::WrongVersion { actual: Some(Version(1)), .. }), "{refused}");
        let refused = store.append(&name, Exactly(Version(0)), vec![event(2)]).await.unwrap_err();
        assert_eq!(refused.to_string(), "stream user-1 is at version 1 but version 0 was expected");

        store.append(&name, Exactly(Version(1)), vec![event(2)]).await.unwrap();
        store.append(&name, StreamExists, vec![event(3)]).await.unwrap();
        let last = store.append(&name, Any, vec![event(4)]).await.unwrap();
        assert_eq!(last.version, Some(Version(4)));

        let page = store.read(&Filter::all(), Position::START, 100).await.unwrap();
        let versions: Vec<i64> = page.events.iter().map(|event| event.version.0).collect();
        assert_eq!(versions, [0, 1, 2, 3, 4]);
        assert_eq!(page.scanned_to, last.position.unwrap());
    }

    async fn s04_all_events_of_an_append_or_none(database: TestDatabase) {
        let store = database.store().await;
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(0)]).await.unwrap();
        let used = event(3);
        store.append(&stream("b-1"), ExpectedVersion::Any, vec![used.clone()]).await.unwrap();

        // The last of three meets the unique index of ids only after the others were written.
        let events = vec![event(1), event(2), used];
        let refused = store.append(&stream("a-1"), ExpectedVersion::Any, events).await.unwrap_err();

        assert!(matches!(refused, AppendError::IdReused { .. }), "{refused}");
        assert_eq!(all_events(&store).await.len(), 2);
        let next = store.append(&stream("a-1"), ExpectedVersion::Exactly(Version(0)), vec![event(4)]).await;
        assert_eq!(next.unwrap().version, Some(Version(1)));
    }

    async fn s04_an_empty_append_does_nothing(database: TestDatabase) {
        let store = database.store().await;

        // Not even the version is looked at.
        let nothing = store.append(&stream("a-1"), ExpectedVersion::StreamExists, Vec::new()).await.unwrap();

        assert_eq!((nothing.position, nothing.version, nothing.replayed), (None, None, false));
        store.append(&stream("a-1"), ExpectedVersion::NoStream, vec![event(1)]).await.unwrap();
    }

    async fn s04_sixteen_writers_lose_no_update(database: TestDatabase) {
        const WRITERS: u32 = 16;
        const INCREMENTS: u32 = 10;
        let store = database.store().await;
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            // Half of them share a handle, the others look like processes of their own.
            let store = if writer % 2 == 0 { store.clone() } else { database.open().await };
            writers.spawn(async move {
                let (mut expected, mut done) = (ExpectedVersion::NoStream, 0);
                while done < INCREMENTS {
                    match store.append(&stream("counter-1"), expected, vec![event(writer)]).await {
                        Ok(appended) => {
                            done += 1;
                            expected = ExpectedVersion::Exactly(appended.version.unwrap());
                        }
                        Err(AppendError::WrongVersion { actual: Some(actual), .. }) => {
                            expected = ExpectedVersion::Exactly(actual);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        writers.join_all().await;

        let events = all_events(&store).await;
        let versions: Vec<i64> = events.iter().map(|event| event.version.0).collect();
        assert_eq!(versions, (0..i64::from(WRITERS * INCREMENTS)).collect::<Vec<_>>());
    }

    /// The database is closed: whatever is answered, it was answered before any SQL.
    async fn s24_limits_are_checked_before_any_sql(database: TestDatabase) {
        let store = database.store().await;
        store.close().await;
        let refusal = async |name: &str, events: Vec<NewEvent>| {
            match store.append(&stream(name), ExpectedVersion::Any, events).await.unwrap_err() {
                AppendError::Invalid { source, .. } => source,
                other => panic!("{other}: {:?}", std::error::Error::source(&other)),
            }
        };

        let payload = |bytes| vec![NewEvent { payload: json_of(bytes), ..event(1) }];
        let too_large = refusal("a-1", payload(MAX_PAYLOAD_BYTES + 1)).await;
        assert!(matches!(too_large, InvalidEvent::PayloadTooLarge(262_145)), "{too_large}");
        let metadata = |metadata| vec![NewEvent { metadata, ..event(1) }];
        let too_large = refusal("a-1", metadata(json_of(MAX_METADATA_BYTES + 1))).await;
        assert!(matches!(too_large, InvalidEvent::MetadataTooLarge(16_385)), "{too_large}");
        let no_object = refusal("a-1", metadata(Json::parse("[]").unwrap())).await;
        assert!(matches!(no_object, InvalidEvent::Metadata(_)), "{no_object}");
        let too_many = refusal("a-1", (0..=1_000).map(event).collect()).await;
        assert!(matches!(too_many, InvalidEvent::TooManyEvents(1_001)), "{too_many}");
        let twice = event(1);
        let twice = refusal("a-1", vec![twice.clone(), event(2), twice]).await;
        assert!(matches!(twice, InvalidEvent::IdTwice(_)), "{twice}");
        let reserved = refusal("$all", vec![event(1)]).await;
        assert!(matches!(reserved, InvalidEvent::ReservedStream(_)), "{reserved}");
        for event_type in ["", "a\nb", &"x".repeat(256)] {
            let name = refusal("a-1", vec![NewEvent { event_type: event_type.to_owned(), ..event(1) }]).await;
            assert!(matches!(name, InvalidEvent::Name { what: "event type", .. }), "{name}");
            let correlation_id = Some(event_type.to_owned());
            let name = refusal("a-1", vec![NewEvent { correlation_id, ..event(1) }]).await;
            assert!(matches!(name, InvalidEvent::Name { what: "correlation id", .. }), "{name}");
        }
    }

    async fn s24_what_just_keeps_the_limits_is_stored(database: TestDatabase) {
        let store = database.store().await;
        let large =
            NewEvent { payload: json_of(MAX_PAYLOAD_BYTES), metadata: json_of(MAX_METADATA_BYTES), ..event(1) };
        store.append(&stream("large-1"), ExpectedVersion::NoStream, vec![large.clone()]).await.unwrap();
        let many = (0..1_000).map(event).collect::<Vec<_>>();
        assert_eq!(many.len(), MAX_APPEND_EVENTS);

        let appended = store.append(&stream("many-1"), ExpectedVersion::NoStream, many).await.unwrap();

        assert_eq!(appended.version, Some(Version(999)));
        let events = all_events(&store).await;
        assert_eq!(events[0].payload, large.payload);
        assert_eq!((events.len(), events.last().map(|event| event.position)), (1_001, appended.position));
    }
}
