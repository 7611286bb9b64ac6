//! What an operator sees of a definition that changed, and of a stream that goes with its subscription.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use store::{ExpectedVersion, Json, NewEvent};
use testkit::both;

use crate::given::stream;
use crate::program::{command, herald};

/// As an older release would have written it.
const OLDER: &str = r#"UPDATE herald_subscriptions
                          SET definition = '{"version":0,"kind":"projector","wants":{"types":["X"]},"emits":"when_active"}'
                        WHERE id = 'inbox_1'"#;
const CHANGED: &str = "the author's version was 0, is 1";

/// The inbox among the subscriptions that are listed.
fn inbox(listed: &serde_json::Value) -> &serde_json::Value {
    listed.as_array().unwrap().iter().find(|one| one["id"] == "inbox_1").unwrap()
}

both! {
    /// E-41, C-09: it is said wherever somebody looks, until it is accepted or replayed.
    async fn e41_a_changed_definition_is_seen_everywhere(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        herald(&database, &["worker", "--until-caught-up"]).ok();
        let quiet = herald(&database, &["sub", "list", "-o", "json"]).json();
        assert_eq!(inbox(&quiet["data"])["definition_changes"], serde_json::json!([]));
        let store = database.open().await;
        store.database().execute(OLDER, ()).await.unwrap();

        let list = herald(&database, &["sub", "list"]);
        assert!(list.stdout.contains("its definition has changed"), "{list:?}");
        assert!(list.stderr.contains("herald sub show inbox_1"), "{list:?}");
        let list = herald(&database, &["sub", "list", "-o", "json"]).json();
        assert_eq!(inbox(&list["data"])["definition_changes"][0], CHANGED);
        let shown = herald(&database, &["sub", "show", "inbox_1"]).ok();
        assert!(shown.contains(CHANGED) && shown.contains("herald sub refresh inbox_1 --accept-definition"), "{shown}");
        let shown = herald(&database, &["sub", "show", "inbox_1", "-o", "json"]).json();
        assert_eq!(shown["data"]["definition_changes"][0], CHANGED);
        assert!(herald(&database, &["status"]).ok().contains("definition changed"));
        let status = herald(&database, &["status", "-o", "json"]).json();
        assert_eq!(inbox(&status["data"]["subscriptions"])["definition_changes"][0], CHANGED);
        let check = herald(&database, &["check"]);
        let warning = format!("warning  inbox_1: its definition has changed: {CHANGED}");
        assert!(check.stdout.contains(&warning), "{check:?}");

        let mut worker = command(database.url(), ["worker"]);
        let mut worker = worker.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(worker.stderr.take().unwrap()).lines();
        let said = log.find(|line| line.as_ref().unwrap().contains("has changed since it was set up"));
        let said = said.unwrap().unwrap();
        assert!(said.contains(CHANGED) && said.contains("--accept-definition"), "{said}");
        worker.kill().unwrap();
        worker.wait().unwrap();

        assert_eq!(herald(&database, &["sub", "refresh", "inbox_1"]).ok(), "inbox_1: nothing to refresh\n");
        let said = herald(&database, &["sub", "refresh", "inbox_1", "--accept-definition", "--reason", "it is right"]).ok();
        assert!(said.starts_with("inbox_1: refreshed: ") && said.contains(CHANGED), "{said}");
        assert!(!herald(&database, &["status"]).ok().contains("definition changed"));
        let history = herald(&database, &["sub", "history", "inbox_1"]).ok();
        assert!(history.contains("it is right"), "{history}");

        store.database().execute(OLDER, ()).await.unwrap();
        herald(&database, &["sub", "replay", "nobody"]).fails(3);
        let said = herald(&database, &["sub", "replay", "inbox_1"]).ok();
        assert_eq!(said, "inbox_1: caught up, 1 event(s) handled\n");
        assert!(!herald(&database, &["status"]).ok().contains("definition changed"));
    }

    /// E-29, C-07: what is closed with a subscription is named before.
    async fn e29_c07_removal_names_the_stream_that_it_closes(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        let store = database.open().await;
        let emitted = stream("subscription_inbox_1");
        let event = NewEvent::new("Acme.Test:Happened", Json::empty_object());
        store.append(&emitted, ExpectedVersion::Any, vec![event]).await.unwrap();
        let asked = herald(&database, &["sub", "remove", "inbox_1", "--close-stream"]).fails(2);
        assert!(asked.stderr.contains("closes stream subscription_inbox_1 with 1 event(s) for good"), "{asked:?}");
        herald(&database, &["streams", "show", "subscription_inbox_1"]).ok();
        herald(&database, &["sub", "remove", "inbox_1", "--close-stream", "--yes"]).ok();
        herald(&database, &["streams", "show", "subscription_inbox_1"]).fails(3);
        herald(&database, &["sub", "remove", "inbox_1", "--close-stream", "--yes"]).ok();
    }
}
