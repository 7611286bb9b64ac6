//! What people who come from Prooph's event store expect of a log (PROOPH-01 to -16), told in their words. The rules
//! behind it are proved elsewhere: here stands what they would do first.

use std::sync::Arc;

use store::{
    AppendError, ExpectedVersion, Filter, Json, Matcher, NewEvent, Operator, Position, Store, Version,
};
use testkit::both;
use tokio::sync::Barrier;

use crate::given::{all_events, event, stream};

/// The numbers in the payloads.
fn numbers(events: &[store::Event]) -> Vec<i64> {
    let number = |event: &store::Event| event.payload.to::<serde_json::Value>().unwrap()["number"].as_i64();
    events.iter().filter_map(number).collect()
}

async fn ten_events(store: &Store) {
    let events = (1..=10).map(event).collect();
    store.append(&stream("user-1"), ExpectedVersion::NoStream, events).await.unwrap();
}

/// An event with this metadata.
fn noted(number: u32, metadata: &str) -> NewEvent {
    NewEvent { metadata: Json::parse(metadata.to_owned()).unwrap(), ..event(number) }
}

both! {
    /// PROOPH-01: append-only. Nobody changes what happened, not even past the library.
    async fn prooph01_events_are_never_changed(database: TestDatabase) {
        let store = database.store().await;
        ten_events(&store).await;

        for sql in ["UPDATE herald_events SET type = 'Another'", "DELETE FROM herald_events"] {
            let error = store.database().execute(sql, ()).await.unwrap_err();
            assert!(error.to_string().contains("never changed or deleted"), "{error}");
        }

        assert_eq!(numbers(&all_events(&store).await), (1..=10).collect::<Vec<_>>());
    }

    /// PROOPH-05: all events of one command are stored, or none.
    async fn prooph05_a_commands_events_are_stored_atomically(database: TestDatabase) {
        let store = database.store().await;
        let twice = event(1);
        store.append(&stream("user-1"), ExpectedVersion::Any, vec![twice.clone()]).await.unwrap();

        let refused = store.append(&stream("user-2"), ExpectedVersion::Any, vec![event(2), twice]).await;

        assert!(matches!(refused, Err(AppendError::IdReused { .. })), "{refused:?}");
        assert_eq!(numbers(&all_events(&store).await), [1]);
    }

    /// PROOPH-06: metadata is compared by the type of the value: a number as a number, a boolean as its word.
    async fn prooph06_metadata_is_filtered_by_type(database: TestDatabase) {
        let store = database.store().await;
        let events = vec![
            noted(1, r#"{"tries":9,"urgent":true}"#),
            noted(2, r#"{"tries":10,"urgent":"true"}"#),
            noted(3, r#"{"tries":"11","urgent":false}"#),
            noted(4, "{}"),
        ];
        store.append(&stream("user-1"), ExpectedVersion::Any, events).await.unwrap();
        let found = async |matcher: Matcher| {
            let filter = Filter::all().matching(matcher);
            numbers(&store.read(&filter, Position::START, 100).await.unwrap().events)
        };

        // As a text "9" is above "10"; as a number it is not.
        assert_eq!(found(Matcher::new().metadata("tries", Operator::GreaterThan, 9).unwrap()).await, [2, 3]);
        assert_eq!(found(Matcher::new().metadata("tries", Operator::LowerThan, "9").unwrap()).await, [2, 3]);
        assert_eq!(found(Matcher::new().metadata("urgent", Operator::Equals, true).unwrap()).await, [1, 2]);
        // Who has no such field matches nothing, not even "not equal".
        assert_eq!(found(Matcher::new().metadata("urgent", Operator::NotEquals, true).unwrap()).await, [3]);
    }

    /// PROOPH-07: one total order over all streams, which everybody who builds a read model agrees on.
    async fn prooph07_all_streams_have_one_order(database: TestDatabase) {
        let store = database.store().await;
        for number in 1..=6 {
            let name = stream(&format!("user-{}", number % 2));
            store.append(&name, ExpectedVersion::Any, vec![event(number)]).await.unwrap();
        }

        let events = all_events(&store).await;

        assert_eq!(numbers(&events), [1, 2, 3, 4, 5, 6]);
        assert!(events.windows(2).all(|two| two[0].position < two[1].position));
    }

    /// PROOPH-08: of two commands that both saw version 2 and both want to write version 3, one is refused.
    async fn prooph08_of_two_commands_on_one_version_one_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let name = stream("user-1");
        store.append(&name, ExpectedVersion::NoStream, vec![event(0), event(1), event(2)]).await.unwrap();
        let together = Arc::new(Barrier::new(2));
        let command = |number| {
            // Another process as far as the log is concerned.
            let (database, together, name) = (database.open(), Arc::clone(&together), name.clone());
            async move {
                let store = database.await;
                together.wait().await;
                store.append(&name, ExpectedVersion::Exactly(Version(2)), vec![event(number)]).await
            }
        };

        let (first, second) = tokio::join!(command(3), command(4));

        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        let refused = first.err().or(second.err()).unwrap();
        assert!(matches!(refused, AppendError::WrongVersion { actual: Some(Version(3)), .. }), "{refused}");
        assert_eq!(all_events(&store).await.len(), 4);
    }

    /// PROOPH-14, PROOPH-15: from the third event five of them; the newest five, newest first.
    async fn prooph14_prooph15_a_stream_is_loaded_in_pages_and_in_reverse(database: TestDatabase) {
        let store = database.store().await;
        ten_events(&store).await;
        let name = stream("user-1");

        // There positions of a stream count from 1, here versions from 0.
        assert_eq!(numbers(&store.read_stream(&name, 2, 5).await.unwrap()), [3, 4, 5, 6, 7]);
        let newest = store.read_stream_backwards(&name, None, 5).await.unwrap();
        assert_eq!(numbers(&newest), [10, 9, 8, 7, 6]);
        let before = store.read_stream_backwards(&name, newest.next, 100).await.unwrap();
        assert_eq!(numbers(&before), [5, 4, 3, 2, 1]);
    }

    /// PROOPH-16: matches are chained and joined by AND; adding one leaves the earlier matcher as it was.
    async fn prooph16_matches_are_chained(database: TestDatabase) {
        let store = database.store().await;
        let events = vec![
            noted(1, r#"{"tenant":"a","tries":1}"#),
            noted(2, r#"{"tenant":"a","tries":5}"#),
            noted(3, r#"{"tenant":"b","tries":5}"#),
        ];
        store.append(&stream("user-1"), ExpectedVersion::Any, events).await.unwrap();
        let of_a = Matcher::new().metadata("tenant", Operator::Equals, "a").unwrap();
        let often = of_a.clone().metadata("tries", Operator::GreaterThanEquals, 5).unwrap();

        for (matcher, expected) in [(of_a, vec![1, 2]), (often, vec![2])] {
            let filter = Filter::of(&stream("user-1")).unwrap().matching(matcher);
            let page = store.read(&filter, Position::START, 100).await.unwrap();
            assert_eq!(numbers(&page.events), expected);
        }
    }
}
