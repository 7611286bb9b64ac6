//! Recipients and notifications through the built program.

use testkit::{TestDatabase, both};
use uuid::Uuid;

use crate::program::herald;

/// Says what came of a message, in place of what would send it.
fn answer(database: &TestDatabase, tracking: &str, stream: &str, event: &str, payload: &serde_json::Value) {
    let (event, payload) = (format!("Acme.Notifications:{event}"), payload.to_string());
    let arguments = ["events", "append", stream, "--type", &event, "--payload", &payload];
    herald(database, &[&arguments[..], &["--correlation-id", tracking]].concat()).ok();
}

/// Nothing can be sent, as no server is named; the rest goes on.
fn run(database: &TestDatabase) {
    let deliveries = ["email_delivery", "slack_delivery"];
    let said = herald(database, &["worker", "--until-caught-up"]);
    assert!(
        said.code == Some(0)
            || deliveries.iter().any(|id| said.stderr.contains(&format!("{id} is in error"))),
        "{said:?}"
    );
}

fn channel(view: &serde_json::Value, number: usize) -> (String, String) {
    let of = |field: &str| view["data"]["channels"][number][field].as_str().unwrap().to_owned();
    (of("operationId"), of("to"))
}

both! {
    /// N-20, N-21: queued, sent by one channel, failed by the other.
    async fn n20_n21_by_the_command_line(database: TestDatabase) {
        herald(&database, &["recipient", "set-email", "alice", "alice@example.org"]).ok();
        herald(&database, &["recipient", "set-slack", "alice", "C0404"]).ok();
        let send = ["notification", "send", "alice", "--subject", "News", "--body", "They are good."];
        let said = herald(&database, &send);
        let id = said.stdout.trim().to_owned();
        id.parse::<Uuid>().unwrap();
        assert_eq!(said.stderr, format!("See how far it is: herald notification status {id}\n"));
        let status = || herald(&database, &["notification", "status", &id]).ok();
        assert_eq!(status(), format!("Notification {id}: accepted, and waits for a worker\n"));
        run(&database);
        assert!(status().starts_with(&format!("Notification {id} to alice: sending\n")), "{}", status());

        let view = herald(&database, &["notification", "status", &id, "-o", "json"]).json();
        assert_eq!(view["schema"], "herald.notification.status/1");
        let (operation, to) = channel(&view, 0);
        answer(&database, &id, &format!("email-{operation}"), "SucceededInSendingEmailEvent", &serde_json::json!({
            "operationId": operation, "to": to, "messageId": "<x@test>", "response": "250 ok"
        }));
        let (operation, to) = channel(&view, 1);
        answer(&database, &id, &format!("slack-{operation}"), "FailedToSendSlackMessageEvent", &serde_json::json!({
            "operationId": operation, "to": to, "reason": "channel_not_found"
        }));
        run(&database);
        let lines = status();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[0], format!("Notification {id} to alice: failed"));
        assert_eq!(lines[1], "  subject    News");
        assert_eq!(lines[4..], [
            "  email      sent to alice@example.org",
            "  slack      failed to C0404: channel_not_found",
            "  outcome    SentOnSomePreparedChannels",
        ]);
    }

    /// N-24: opted out is a good end, by words that people read.
    async fn n24_by_the_command_line(database: TestDatabase) {
        herald(&database, &["recipient", "set-email", "bob", "bob@example.org"]).ok();
        herald(&database, &["recipient", "set-preferences", "bob", "--email", "off", "--slack", "off"]).ok();
        let send = |to: &str| {
            herald(&database, &["notification", "send", to, "--subject", "News", "--body", "x"]).ok()
        };
        let (bob, carol) = (send("bob"), send("carol"));
        run(&database);
        let status = |id: &str| herald(&database, &["notification", "status", id.trim()]).ok();
        assert!(status(&bob).starts_with(&format!("Notification {} to bob: opted out\n", bob.trim())));
        assert!(status(&bob).contains("  email      not used: opted-out\n"), "{}", status(&bob));
        assert!(status(&carol).starts_with(&format!("Notification {} to carol: failed\n", carol.trim())));
        assert!(status(&carol).contains("  email      failed: no-address\n"), "{}", status(&carol));
        assert!(status(&carol).contains("  outcome    CouldNotPrepareToSendOnAnyChannel\n"));
    }

    async fn n25_by_the_command_line(database: TestDatabase) {
        let send = |body: &str, key: &str| {
            let arguments = ["notification", "send", "alice", "--subject", "News", "--body", body];
            herald(&database, &[&arguments[..], &["--idempotency-key", key]].concat())
        };
        let first = send("one", "k1").ok();
        let again = send("one", "k1");
        assert!(again.stderr.contains("It was queued before under this key"), "{again:?}");
        assert_eq!(again.ok(), first);
        let refused = send("two", "k1").fails(5);
        assert!(refused.stderr.contains("was used for another request"), "{refused:?}");
        let long = "k".repeat(256);
        send("one", &long).fails(2);
        send("", "k2").fails(2);
        let events = herald(&database, &["events", "list", "-o", "plain", "--no-header"]).ok();
        assert_eq!(events.lines().count(), 1);
        let sent = herald(&database, &["notification", "send", "a", "--subject", "s", "--body", "b", "-o", "json"]).json();
        assert_eq!((&sent["schema"], &sent["data"]["replayed"]), (&"herald.notification.send/1".into(), &false.into()));
    }

    async fn recipients_are_set_and_shown(database: TestDatabase) {
        herald(&database, &["recipient", "show", "alice"]).fails(3);
        herald(&database, &["recipient", "set-email", "alice", "Alice <alice@example.org>"]).fails(2);
        herald(&database, &["recipient", "set-slack", "alice", "#general"]).fails(2);
        herald(&database, &["recipient", "set-preferences", "alice"]).fails(2);
        herald(&database, &["recipient", "set-preferences", "alice", "--time-zone", "Europe/Atlantis"]).fails(2);
        herald(&database, &["recipient", "set-preferences", "alice", "--quiet-hours", "22:00"]).fails(2);
        let set = herald(&database, &["recipient:set-email", "alice", "alice@example.org"]);
        assert!(!set.stderr.contains("nothing was changed"), "{set:?}");
        set.ok();
        let again = herald(&database, &["recipient", "set-email", "alice", "alice@example.org"]);
        assert!(again.stderr.contains("nothing was changed"), "{again:?}");
        let change = ["--time-zone", "Europe/Vienna", "--quiet-hours", "22:00-07:00", "--reminders", "off"];
        herald(&database, &[&["recipient", "set-preferences", "alice"][..], &change[..]].concat()).ok();
        herald(&database, &["recipient", "suppress", "alice", "alice@example.org"]).fails(2);
        let suppress = ["recipient", "suppress", "alice", "alice@example.org", "--reason", "550 5.1.1"];
        assert_eq!(
            herald(&database, &suppress).ok(),
            "Recipient alice\n  email        alice@example.org, not used: suppressed\n  \
             slack        none: no-address\n  reminders    off\n  time zone    Europe/Vienna\n  \
             quiet hours  22:00-07:00\n  suppressed   alice@example.org\n"
        );
        let shown = herald(&database, &["recipient", "show", "alice", "-o", "json"]).json();
        assert_eq!(shown["data"]["suppressed"][0], "alice@example.org");
        assert_eq!(shown["data"]["preferences"]["quietHours"]["from"], "22:00");
        herald(&database, &["notification", "status", &Uuid::new_v4().to_string()]).fails(3);
    }
}
