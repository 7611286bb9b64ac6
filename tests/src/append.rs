//! Appending (S-04 to S-06): whole, versioned, repeatable.

use store::{Append, AppendError, ExpectedVersion, Filter, Json, NewEvent, Position, StreamName, Version};
use testkit::both;

fn event(number: u32) -> NewEvent {
    NewEvent::new("Acme.Test:Happened", Json::of(&serde_json::json!({ "number": number })).unwrap())
}

fn stream(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
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

    async fn s06_many_streams_in_one_transaction(database: TestDatabase) {
        let store = database.store().await;
        let append = |name: &str, expected| Append { stream: stream(name), expected, events: vec![event(1), event(2)] };
        let mut tx = store.begin().await.unwrap();
        let appends = vec![append("b-1", ExpectedVersion::Any), append("a-1", ExpectedVersion::NoStream)];
        let results = store.append_all(&mut tx, appends).await.unwrap();
        tx.commit().await.unwrap();
        assert!(results[1].position < results[0].position);

        let mut tx = store.begin().await.unwrap();
        let appends = vec![append("c-1", ExpectedVersion::Any), append("a-1", ExpectedVersion::NoStream)];
        let refused = store.append_all(&mut tx, appends).await.unwrap_err();
        assert!(matches!(refused, AppendError::WrongVersion { .. }), "{refused}");
        tx.rollback().await;
        assert_eq!(store.read(&Filter::all(), Position::START, 100).await.unwrap().events.len(), 4);
    }
}
