//! Repeated appends (S-05): whoever lost the answer asks again, with the same event ids, and gets it.

use store::{AppendError, Appended, ExpectedVersion, Json, NewEvent, Position, Store, StreamName, Version};
use testkit::both;
use uuid::Uuid;

use crate::given::{all_events, event, stream};

async fn append(store: &Store, name: &str, events: &[NewEvent]) -> Result<Appended, AppendError> {
    store.append(&stream(name), ExpectedVersion::Any, events.to_vec()).await
}

/// Takes an `IdReused` apart.
fn reused(result: Result<Appended, AppendError>) -> (Uuid, StreamName, Position) {
    match result {
        Err(AppendError::IdReused { id, stream, position }) => (id, stream, position),
        other => panic!("{other:?}"),
    }
}

both! {
    async fn s05_a_repeated_append_answers_the_first_result(database: TestDatabase) {
        let store = database.store().await;
        let (name, events) = (stream("a-1"), vec![event(1), event(2)]);
        let first = store.append(&name, ExpectedVersion::NoStream, events.clone()).await.unwrap();
        assert!(!first.replayed);

        for later in 3..5 {
            use ExpectedVersion::{Any, Exactly, NoStream, StreamExists};
            for expected in [NoStream, Any, StreamExists, Exactly(Version(1)), Exactly(Version(77))] {
                let again = store.append(&name, expected, events.clone()).await.unwrap();
                assert_eq!(again, Appended { replayed: true, ..first }, "{expected:?}");
            }
            append(&store, "a-1", &[event(later)]).await.unwrap();
        }

        assert_eq!(all_events(&store).await.len(), 4);
        let after = store.append(&name, ExpectedVersion::Exactly(Version(3)), vec![event(9)]).await.unwrap();
        assert_eq!(after.version, Some(Version(4)));
    }

    async fn s05_a_used_id_is_refused_with_the_place_of_its_use(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "other-1", &[event(0)]).await.unwrap();
        let (one, two) = (event(1), event(2));
        let first = append(&store, "a-1", &[one.clone(), two.clone()]).await.unwrap();
        let (at_two, at_one) = (first.position.unwrap(), Position(first.position.unwrap().0 - 1));
        let at_one = (one.id, stream("a-1"), at_one);

        // A prefix, more than the whole, another order, another stream.
        assert_eq!(reused(append(&store, "a-1", std::slice::from_ref(&one)).await), at_one);
        assert_eq!(reused(append(&store, "a-1", &[one.clone(), two.clone(), event(3)]).await), at_one);
        assert_eq!(reused(append(&store, "a-1", &[two.clone(), one.clone()]).await).1, stream("a-1"));
        assert_eq!(reused(append(&store, "b-1", &[one.clone(), two.clone()]).await), at_one);
        assert_eq!(reused(append(&store, "b-1", &[event(4), one.clone()]).await), at_one);
        // Another content.
        let payload = Json::parse("{\"number\": 2}").unwrap();
        let changed = NewEvent { payload, ..two.clone() };
        assert_eq!(reused(append(&store, "a-1", &[one.clone(), changed]).await), (two.id, stream("a-1"), at_two));
        let changed = NewEvent { event_type: "Acme.Test:Other".to_owned(), ..one.clone() };
        assert_eq!(reused(append(&store, "a-1", &[changed, two.clone()]).await), at_one);

        assert_eq!(all_events(&store).await.len(), 3);
        let refused = append(&store, "b-1", &[one, two]).await.unwrap_err();
        let message = format!("event id {} is already used by position {} in stream a-1", at_one.0, at_one.2);
        assert_eq!(refused.to_string(), message);
    }

    async fn s05_two_appends_of_one_stream_are_not_one(database: TestDatabase) {
        let store = database.store().await;
        let (one, two) = (event(1), event(2));
        append(&store, "a-1", std::slice::from_ref(&one)).await.unwrap();
        append(&store, "a-1", std::slice::from_ref(&two)).await.unwrap();

        assert_eq!(reused(append(&store, "a-1", &[one.clone(), two]).await).0, one.id);
    }

    async fn s05_of_two_events_with_one_derived_id_the_first_wins(database: TestDatabase) {
        let store = database.store().await;
        let derived = |number| NewEvent { id: Uuid::from_u128(7), id_is_derived: true, ..event(number) };
        let first = append(&store, "a-1", &[derived(1)]).await.unwrap();

        let second = append(&store, "a-1", &[derived(2)]).await.unwrap();

        assert_eq!(second, Appended { replayed: true, ..first });
        let events = all_events(&store).await;
        assert_eq!(events.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>(), ["{\"number\":1}"]);
        assert_eq!(reused(append(&store, "b-1", &[derived(1)]).await).1, stream("a-1"));
    }

    async fn s05_the_same_append_by_two_at_once_happens_once(database: TestDatabase) {
        let (store, other) = (database.store().await, database.open().await);
        for round in 0..20 {
            let events = [event(round), event(round)];
            let name = format!("a-{round}");

            let (one, two) = tokio::join!(append(&store, &name, &events), append(&other, &name, &events));

            let (one, two) = (one.unwrap(), two.unwrap());
            assert!(one.replayed != two.replayed, "{one:?} {two:?}");
            assert_eq!((one.position, one.version), (two.position, two.version));
            assert_eq!(store.read_stream(&stream(&name), 0, 10).await.unwrap().len(), 2);
        }
    }

    async fn s05_the_same_id_in_two_streams_at_once_happens_in_one(database: TestDatabase) {
        let (store, other) = (database.store().await, database.open().await);
        for round in 0..20 {
            let events = [event(round)];
            let (a, b) = (format!("a-{round}"), format!("b-{round}"));

            let (one, two) = tokio::join!(append(&store, &a, &events), append(&other, &b, &events));

            let (name, won, lost) = if one.is_ok() { (a, one, two) } else { (b, two, one) };
            let place = (events[0].id, stream(&name), won.unwrap().position.unwrap());
            assert_eq!(reused(lost), place);
        }
        assert_eq!(all_events(&store).await.len(), 20);
    }
}
