//! Dead letters on the command line: what an operator sees and types.

use testkit::{TestDatabase, both};

use crate::program::{Said, herald};

const BROKEN: &str = r#"{"no": "notification"}"#;
const WHOLE: &str = r#"{"userId": "user1", "notificationId": "n-2", "message": "me too", "timestamp": "2026-01-01T00:00:00Z"}"#;
const TYPE: &str = "Acme.Notifications:UserWasNotified";

fn test_mode(database: &TestDatabase, arguments: &[&str]) -> Said {
    herald(database, &[&["--test-mode"], arguments].concat())
}

/// A log in which the first event of user1 cannot be read, one of user2 can, and all attempts are used up.
fn with_a_dead_letter(database: &TestDatabase) {
    herald(database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
    // It is the inbox that this is about.
    test_mode(database, &["sub", "pause", "--all"]).ok();
    test_mode(database, &["sub", "reactivate", "inbox_1"]).ok();
    test_mode(database, &["events", "append", "user-user1", "--type", TYPE, "--payload", BROKEN]).ok();
    test_mode(database, &["user", "notify", "user2", "hello"]).ok();
    test_mode(database, &["clock", "advance", "3m"]).ok();
}

both! {
    /// E-32, E-33, C-11: a broken event of one user; others get theirs; seen, retried in vain, and given up.
    async fn e33_an_operator_deals_with_a_dead_letter(database: TestDatabase) {
        with_a_dead_letter(&database);
        assert!(test_mode(&database, &["user", "inbox", "user2"]).ok().starts_with("1 pending"));
        test_mode(&database, &["events", "append", "user-user1", "--type", TYPE, "--payload", WHOLE]).ok();
        let said = test_mode(&database, &["sub", "run"]).ok();
        assert!(said.contains("1 set aside as dead letter(s), first position 3"), "{said}");
        assert!(said.contains("there are older dead letters of \"user-user1\""), "{said}");

        let list = test_mode(&database, &["dlq", "list", "inbox_1", "-o", "plain", "--no-header"]).ok();
        let rows: Vec<Vec<&str>> = list.lines().map(|row| row.split('\t').collect()).collect();
        assert_eq!(rows[0][..5], ["inbox_1", "1", TYPE, "user-user1", "6"]);
        assert!(rows[0][6].contains("missing field"), "{list}");
        assert_eq!((rows[1][1], rows[1][4], rows[1][6]), ("3", "0", "behind 1"));
        let page = test_mode(&database, &["dead-letters:list", "--after", "inbox_1/0", "--limit", "1", "-o", "json"]).json();
        assert_eq!((&page["schema"], &page["next"]), (&"herald.dlq.list/1".into(), &"inbox_1/1".into()));
        let page = test_mode(&database, &["dlq", "list", "--after", "inbox_1/1", "-o", "json"]).json();
        assert_eq!((&page["data"][0]["position"], &page["next"]), (&"3".into(), &serde_json::Value::Null));
        let page = test_mode(&database, &["dlq", "list", "inbox_1", "--error", "missing field", "-o", "json"]).json();
        assert_eq!(page["data"].as_array().unwrap().len(), 1);
        let subs = test_mode(&database, &["sub", "list", "-o", "json"]).json();
        let inbox = subs["data"].as_array().unwrap().iter().find(|row| row["id"] == "inbox_1").unwrap();
        assert_eq!(inbox["dead_letters"], "2");
        let shown = test_mode(&database, &["sub", "show", "inbox_1"]).ok();
        assert!(shown.contains("2 dead letter(s)") && shown.contains("herald --test-mode dlq list inbox_1"), "{shown}");

        let shown = test_mode(&database, &["dlq", "show", "inbox_1", "1"]).ok();
        for part in ["6 time(s), first 2026-01-01T00:00:00Z, last 2026-01-01T00:02:35Z", "missing field", "herald --test-mode dlq retry"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let shown = test_mode(&database, &["dlq", "show", "inbox_1", "1", "-o", "json"]).json();
        assert_eq!(shown["data"]["payload"]["no"], "notification");
        let export = test_mode(&database, &["dlq", "export", "inbox_1"]).ok();
        let lines: Vec<serde_json::Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[1]["payload"]["message"], &lines[1]["parked_behind"]), (2, &"me too".into(), &"1".into()));

        let said = test_mode(&database, &["dlq", "retry", "inbox_1", "3"]).fails(5);
        assert!(said.stderr.contains("the one at position 1"), "{said:?}");
        let said = test_mode(&database, &["dlq", "retry", "inbox_1", "--all"]).fails(1);
        assert!(said.stderr.contains("failed again at position 1") && said.stderr.contains("missing field"), "{said:?}");
        assert_eq!(said.stdout, "inbox_1: 0 dead letter(s) handled, 1 failed again, 2 left\n");
        let discard = ["dlq", "discard", "inbox_1", "1", "--reason", "a typo"];
        test_mode(&database, &discard).fails(2);
        let said = test_mode(&database, &[&discard[..], &["--yes"]].concat()).ok();
        assert_eq!(said, "inbox_1: 1 dead letter(s) discarded, 0 failed again, 1 left\n");
        let said = test_mode(&database, &["dlq", "retry", "inbox_1", "--key", "user-user1"]).ok();
        assert_eq!(said, "inbox_1: 1 dead letter(s) handled, 0 failed again, 0 left\n");
        assert!(test_mode(&database, &["user", "inbox", "user1"]).ok().contains("me too"));
        assert_eq!(test_mode(&database, &["dlq", "list", "inbox_1", "-o", "plain", "--no-header"]).ok(), "");
        assert!(test_mode(&database, &["sub", "show", "inbox_1"]).ok().contains(": a typo ("));
    }

    /// C-07, C-10: wrong input is said in a sentence, and nothing is done.
    async fn e33_wrong_words_about_dead_letters(database: TestDatabase) {
        with_a_dead_letter(&database);
        for (arguments, code, part) in [
            (&["dlq", "list", "nobody"][..], 3, "there is no subscription"),
            (&["dlq", "show", "inbox_1", "2"], 3, "no dead letter at position 2"),
            (&["dlq", "retry", "inbox_1"], 2, "required"),
            (&["dlq", "retry", "inbox_1", "2"], 3, "no dead letter at position 2"),
            (&["dlq", "retry", "inbox_1", "1", "--all"], 2, "cannot be used with"),
            (&["dlq", "retry", "nobody", "--all"], 3, "there is no subscription"),
            (&["dlq", "discard", "inbox_1", "1", "--yes"], 2, "without a reason"),
            (&["dlq", "discard", "inbox_1", "--all", "--reason", " ", "--yes"], 2, "--reason is empty"),
            (&["dlq", "discard", "inbox_1", "7", "--reason", "x", "--yes"], 3, "no dead letter at position 7"),
            (&["dlq", "list", "--after", "7"], 2, "names no subscription"),
            (&["dlq", "list", "inbox_1", "--after", "x"], 2, "is no position"),
            (&["dlq", "list", "--error", ""], 2, "error"),
            (&["sub", "skip", "inbox_1", "9"], 2, "without a reason"),
            (&["sub", "skip", "inbox_1", "9", "--reason", "x"], 5, "no event is waiting"),
            (&["sub", "skip", "nobody", "9", "--reason", "x"], 3, "there is no subscription"),
        ] {
            let said = test_mode(&database, arguments).fails(code);
            assert!(said.stderr.contains(part) || said.stdout.contains(part), "{arguments:?}: {said:?}");
        }
        test_mode(&database, &["sub", "pause", "inbox_1"]).ok();
        let said = test_mode(&database, &["dlq", "retry", "inbox_1", "--all"]).fails(5);
        assert!(said.stderr.contains("it is paused; reactivate it first"), "{said:?}");
        let said = test_mode(&database, &["sub", "remove", "inbox_1"]).fails(2);
        assert!(said.stderr.contains("forgets 1 dead letters of inbox_1"), "{said:?}");
        let none = test_mode(&database, &["dlq", "retry", "inbox_1", "--type", "Else"]);
        assert_eq!(none.code, Some(5), "paused first: {none:?}");
    }

    /// E-15: skipped by hand, after a look at what is in the way.
    async fn e15_an_operator_skips_the_event_in_the_way(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["events", "append", "user-user1", "--type", TYPE, "--payload", BROKEN]).ok();
        herald(&database, &["sub", "boot"]).fails(1);
        let shown = herald(&database, &["sub", "show", "inbox_1"]).ok();
        assert!(shown.contains("herald sub skip inbox_1 1 --reason"), "{shown}");
        let skip = herald(&database, &["sub", "skip", "inbox_1", "1", "--reason", "typed by hand"]).ok();
        assert_eq!(skip, "inbox_1: skipped position 1, is booting\n");
        // The archive has met the same event.
        herald(&database, &["sub", "skip", "archive_1", "1", "--reason", "typed by hand"]).ok();
        herald(&database, &["user", "notify", "user2", "hello"]).ok();
        herald(&database, &["worker", "--until-caught-up", "--id", "inbox_1"]).ok();
        assert!(herald(&database, &["user", "inbox", "user2"]).ok().starts_with("1 pending"));
    }
}
