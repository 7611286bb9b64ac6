//! `herald events`: appending by hand, and counting what is there.

use testkit::both;

use crate::program::herald;

const ID: &str = "0190d6f2-0000-7000-8000-000000000001";

both! {
    async fn c04_an_event_appended_by_hand_is_kept_byte_for_byte(database: TestDatabase) {
        database.store().await;
        let payload = "{ \"cents\" : 5e2,\n  \"b\":1, \"a\":2 }";
        let metadata = "{\"z\": 1.0,  \"a\":\"ü\"}";
        let append = ["events", "append", "account-7", "--type", "Bank:Deposited", "--payload", payload,
            "--metadata", metadata, "--expected", "none", "--id", ID, "--correlation-id", "c1"];

        let said = herald(&database, &append).ok();

        assert_eq!(said, "Appended 1 event: account-7 is at version 0, position 1.\n");
        // Byte for byte also in the JSON that is printed.
        let shown = herald(&database, &["events", "show", ID, "-o", "json"]).ok();
        assert!(shown.contains(&format!("\"payload\":{payload}")) && shown.contains(&format!("\"metadata\":{metadata}")), "{shown}");
        // One event is one line where lines count.
        let lines = herald(&database, &["events", "list", "-o", "jsonl"]).ok();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        // Again: the same answer, and nothing more in the log.
        let again = herald(&database, &append).ok();
        assert_eq!(again, "1 event had been appended before: account-7 is at version 0, position 1.\n");
        // Not the same: the stream is there already.
        let other = ["events", "append", "account-7", "--type", "T", "--payload", "1", "--expected", "none", "-o", "json"];
        let said = herald(&database, &other).fails(5);
        assert!(said.stderr.contains("\"code\":\"conflict\"") && said.stdout.is_empty(), "{said:?}");
    }

    async fn c04_lines_are_one_append_or_none(database: TestDatabase) {
        database.store().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.jsonl");
        let file = file.to_str().unwrap();
        let append = ["events", "append", "account-7", "--lines", file];
        std::fs::write(file, "{\"type\":\"A\",\"payload\":{}}\n\n{\"type\":\"B\",\"payload\":[1,\n").unwrap();
        let said = herald(&database, &append).fails(2);
        assert!(said.stderr.contains("line 3"), "{said:?}");

        std::fs::write(file, "{\"type\":\"A\",\"payload\":{}}\n\n{\"type\":\"B\",\"payload\":[1]}\n").unwrap();
        let said = herald(&database, &append).ok();

        assert_eq!(said, "Appended 2 events: account-7 is at version 1, position 2.\n");
    }

    async fn c10_words_that_cannot_be_are_refused_before_anything_is_made(database: TestDatabase) {
        for (wrong, says) in [
            (&["--payload", "{]"][..], "not valid JSON"),
            (&["--payload", "\"\\u0000\""], "which no database can hold"),
            (&["--payload", "1", "--metadata", "[]"], "not a JSON object"),
            (&["--payload", "1", "--expected", "-1"], "any, none, exists"),
            (&["--payload", "@/no/such/file"], "could not read /no/such/file"),
        ] {
            let said = herald(&database, &[&["events", "append", "s-1", "--type", "T"], wrong].concat()).fails(2);
            assert!(said.stderr.contains(says), "{said:?}");
        }
        let said = herald(&database, &["events", "append", "$all", "--type", "T", "--payload", "1"]).fails(2);
        assert!(said.stderr.contains("belongs to the log"), "{said:?}");
    }

    async fn c04_what_is_in_the_log_is_counted(database: TestDatabase) {
        database.store().await;
        for (stream, event_type) in [("a-1", "A"), ("a-2", "B"), ("a-1", "A")] {
            herald(&database, &["events", "append", stream, "--type", event_type, "--payload", "1"]).ok();
        }

        let stats = herald(&database, &["events", "stats", "-o", "json"]).json();

        let stats = &stats["data"];
        assert_eq!((&stats["events"], &stats["streams"], &stats["holes"]), (&"3".into(), &"2".into(), &"0".into()));
        assert_eq!(stats["types"][0], serde_json::json!({ "type": "A", "events": "2", "first": "1", "last": "3" }));
        let said = herald(&database, &["events", "stats"]).ok();
        assert!(said.contains("streams     2") && said.contains("A     2       1      3"), "{said}");
    }
}
