//! An event whose row cannot be read, as an operator meets it: named everywhere, with a way forward, hiding nothing else.

use testkit::{TestDatabase, both};

use crate::program::herald;
use crate::restore::{raw, unguard};

/// Three notifications, all of user1; the row of the second cannot be read.
async fn with_a_bad_row(database: &TestDatabase, harm: &str) {
    herald(database, &["store", "setup"]).ok();
    for message in ["one", "two", "three"] {
        herald(database, &["user", "notify", "user1", message]).ok();
    }
    let store = database.open().await;
    let mut tx = store.begin().await.unwrap();
    unguard(&mut tx).await;
    tx.commit().await.unwrap();
    raw(&store, format!("UPDATE herald_events SET {harm} WHERE position = 2")).await;
    store.close().await;
}

both! {
    /// S-25, C-11: `sub show` tells what the row tells, and what helps comes first; so does `store verify`.
    async fn s25_c11_who_is_stuck_at_a_bad_row_is_told_to_skip_it(database: TestDatabase) {
        with_a_bad_row(&database, "payload = 'x'").await;
        herald(&database, &["worker", "--until-caught-up"]).fails(1);

        let said = herald(&database, &["sub", "show", "inbox_1"]).ok();
        assert!(said.contains("failed on   2   Acme.Notifications:UserWasNotified   stream user-user1"), "{said}");
        let next: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("next")).collect();
        assert!(next[0].contains("herald sub skip inbox_1 2 --reason …"), "{said}");
        let shown = herald(&database, &["sub", "show", "inbox_1", "-o", "json"]).json();
        let failure = &shown["data"]["failure"];
        assert_eq!((&failure["position"], &failure["stream"]), (&"2".into(), &"user-user1".into()));
        assert!(failure["event_id"].is_string(), "{failure}");
        assert_eq!(shown["data"]["next"][0]["command"], "herald sub skip inbox_1 2 --reason …");
        assert_eq!(shown["data"]["next"][0]["when"], "to go on without that event");

        let said = herald(&database, &["store", "verify"]).fails(7);
        assert!(said.stderr.contains("next:  herald sub skip inbox_1 2 --reason …"), "{said:?}");
        assert!(said.stderr.contains("herald events show 2 --raw"), "{said:?}");

        // C-07, E-62: stuck, with the time for which the row's event has waited, on one line.
        let said = herald(&database, &["check", "--format", "nagios"]).fails(2);
        assert_eq!(said.stdout.lines().count(), 1, "{said:?}");
        assert!(said.stdout.contains("tried again") && !said.stdout.contains("lag_seconds=U"), "{said:?}");
        let said = herald(&database, &["check", "-o", "json"]).fails(7);
        let said: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert!(said["data"]["worst_lag_seconds"].is_u64(), "{said}");
        let mut findings = said["data"]["findings"].as_array().unwrap().iter();
        assert!(findings.any(|finding| finding["next"]["command"] == "herald sub show inbox_1"), "{said}");
        let said = herald(&database, &["status"]).ok();
        assert!(said.contains("→ herald sub show inbox_1"), "{said}");

        herald(&database, &["sub", "skip", "inbox_1", "2", "--reason", "damaged"]).ok();
        herald(&database, &["worker", "--until-caught-up", "--id", "inbox_1"]).ok();
        let inbox = herald(&database, &["user", "inbox", "user1"]).ok();
        assert!(inbox.contains("one") && inbox.contains("three") && !inbox.contains("two"), "{inbox}");
        let said = herald(&database, &["projection", "replay", "inbox"]);
        assert!(said.stderr.contains("warning: it meets 1 event(s) again that were skipped"), "{said:?}");
    }

    /// S-25, C-08: what can be read is printed, and then why that is not all and how to go on.
    async fn s25_c08_a_bad_row_hides_no_other(database: TestDatabase) {
        with_a_bad_row(&database, "payload = 'x'").await;

        let said = herald(&database, &["events", "list"]).fails(1);
        assert!(said.stdout.contains("\n1 ") && !said.stdout.contains("\n3 "), "{said:?}");
        assert!(said.stderr.contains("position 2 cannot be read") && said.stderr.contains("add --after 2"), "{said:?}");
        let said = herald(&database, &["events", "list", "--after", "2"]).ok();
        assert!(said.contains("\n3 "), "{said}");
        let said = herald(&database, &["events", "list", "--reverse"]).fails(1);
        assert!(said.stdout.contains("\n3 ") && said.stderr.contains("add --before 2"), "{said:?}");

        let said = herald(&database, &["streams", "show", "user-user1"]).fails(1);
        assert!(said.stdout.contains("\n3 ") && said.stderr.contains("events show 2 --raw"), "{said:?}");
        let said = herald(&database, &["events", "show", "2"]).fails(1);
        assert!(said.stderr.contains("herald events show 2 --raw"), "{said:?}");
        let said = herald(&database, &["events", "show", "2", "--raw"]).ok();
        assert!(said.contains("payload         x\n") && said.contains("stream          user-user1\n"), "{said}");
        assert!(said.contains("^ cannot be read: "), "{said}");
        let said = herald(&database, &["events", "show", "1", "--raw", "-o", "json"]).json();
        let columns = said["data"]["columns"].as_array().unwrap();
        assert!(columns.len() == 10 && columns.iter().all(|column| column["fault"].is_null()), "{said}");
        herald(&database, &["events", "show", "99", "--raw"]).fails(3);
        let said = herald(&database, &["store", "export", "-"]);
        assert!(said.stderr.contains("warning: 1 event(s) hold something that is not JSON"), "{said:?}");

        let said = herald(&database, &["user", "notify", "user1", "four"]).fails(1);
        assert!(said.stderr.contains("hint:  until that stream can be read again"), "{said:?}");
        herald(&database, &["user", "notify", "user2", "hello"]).ok();
    }
}

/// S-25: everything that is wrong with a row is told, and no empty file stays behind.
#[tokio::test]
async fn s25_an_export_tells_all_faults_of_a_row() {
    let database = TestDatabase::sqlite();
    with_a_bad_row(&database, "payload = x'ff00', recorded_at = 'yesterday'").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.jsonl");

    let said = herald(&database, &["store", "export", file.to_str().unwrap()]).fails(1);

    assert!(said.stderr.contains("payload: ") && said.stderr.contains("recorded_at: "), "{said:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // Since when it waits is told by the next event.
    herald(&database, &["worker", "--until-caught-up"]).fails(1);
    let said = herald(&database, &["check", "--format", "nagios"]).fails(2);
    assert!(!said.stdout.contains("lag_seconds=U"), "{said:?}");
    let said = herald(&database, &["events", "show", "2", "--raw"]).ok();
    assert!(
        said.contains("payload         x'ff00'\n") && said.contains("recorded_at     yesterday\n"),
        "{said}"
    );
}
