//! `herald check`, `herald status`, and the verbs of `herald sub` that wait, look back and put elsewhere.

use std::process::Stdio;

use testkit::{TestDatabase, both};

use crate::program::{Daemon, command, herald, until};

/// A log with a notification that the inbox has handled, and nobody at work.
fn caught_up(database: &TestDatabase) {
    herald(database, &["store", "setup"]).ok();
    herald(database, &["user", "notify", "user1", "hello"]).ok();
    herald(database, &["worker", "--until-caught-up", "--id", "inbox_1"]).ok();
}

both! {
    /// E-62, C-10: looks active and nobody runs it; and what a worker changes about that.
    async fn e62_check_tells_whether_somebody_is_at_work(database: TestDatabase) {
        let said = herald(&database, &["check"]);
        assert!(matches!(said.code, Some(3 | 78)), "{said:?}");
        let said = herald(&database, &["check", "--format", "nagios"]).fails(3);
        assert!(said.stdout.starts_with("HERALD UNKNOWN - "), "{said:?}");

        caught_up(&database);
        let said = herald(&database, &["check"]).fails(7);
        assert!(said.stdout.contains("PROBLEM  inbox_1: no worker runs it"), "{said:?}");
        let said = herald(&database, &["check", "--format", "nagios"]).fails(2);
        assert!(said.stdout.starts_with("HERALD CRITICAL - "), "{said:?}");
        assert!(said.stdout.contains("inbox_1: no worker runs it"), "{said:?}");
        assert!(said.stdout.contains(" dead_letters=0 workers=0 "), "{said:?}");
        let listed = herald(&database, &["sub", "list", "-o", "json"]).json();
        let mut listed = listed["data"].as_array().unwrap().iter();
        let inbox = listed.find(|one| one["id"] == "inbox_1").unwrap();
        assert_eq!((&inbox["status"], &inbox["progress"]), (&"active".into(), &"no worker".into()));

        let daemon = Daemon::start(&database, &[]);
        until(&database, &["check", "--max-lag-events", "0"], |out| out.starts_with("ok "));
        let said = herald(&database, &["check", "--max-lag", "30s", "--max-lag-events", "0", "--max-dead-letters", "0", "-o", "json"]).json();
        assert_eq!((&said["schema"], &said["data"]["verdict"]), (&"herald.check/1".into(), &"ok".into()));
        let said = herald(&database, &["check", "--format", "nagios"]).ok();
        assert!(said.starts_with("HERALD OK - "), "{said}");

        herald(&database, &["sub", "pause", "inbox_1", "--reason", "maintenance"]).ok();
        herald(&database, &["user", "notify", "user1", "again"]).ok();
        let said = herald(&database, &["check"]).ok();
        assert!(said.contains("warning  inbox_1: stalled: paused by ") && said.contains("maintenance"), "{said}");
        herald(&database, &["check", "--format", "nagios"]).fails(1);
        let said = herald(&database, &["check", "--max-lag-events", "0"]).fails(7);
        assert!(said.stdout.contains("PROBLEM  inbox_1: "), "{said:?}");
        herald(&database, &["check", "--max-lag-events", "0", "-o", "json"]).fails(7);
        herald(&database, &["check", "--max-lag", "soon"]).fails(2);
        assert_eq!(daemon.stop(), Some(143));
    }

    /// E-62: the page for people, and the one for programs; again and again until nobody reads it.
    async fn e62_status_is_one_page(database: TestDatabase) {
        caught_up(&database);
        let said = herald(&database, &["status"]).ok();
        assert!(said.contains("workers        none runs") && said.contains("no worker"), "{said}");
        let said = herald(&database, &["status", "-o", "json"]).json();
        assert_eq!((&said["schema"], &said["data"]["head"]), (&"herald.status/1".into(), &"1".into()));
        assert_eq!(said["data"]["subscriptions"][0]["progress"], "no worker");
        herald(&database, &["status", "--every", "1s"]).fails(2);

        let mut watching = command(database.url(), ["status", "--watch", "--every", "100ms", "-o", "jsonl"]);
        let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
        let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let second: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(first["append_rate"].is_null() && second["append_rate"].is_number(), "{second}");
        // Whoever closes the pipe has seen enough.
        drop(lines);
        assert_eq!(watching.wait().unwrap().code(), Some(0));
    }

    /// E-42, E-13, E-16: the verbs, used well and wrongly.
    async fn e42_e16_an_operator_waits_looks_back_and_puts_elsewhere(database: TestDatabase) {
        caught_up(&database);
        let said = herald(&database, &["sub", "wait", "inbox_1"]).ok();
        assert_eq!(said, "inbox_1 has handled everything up to position 1\n");
        let said = herald(&database, &["sub", "wait", "inbox_1", "--position", "1", "-o", "json"]).json();
        assert_eq!((&said["schema"], &said["data"]["position"]), (&"herald.sub.wait/1".into(), &"1".into()));
        let late = herald(&database, &["sub", "wait", "inbox_1", "--position", "2", "--timeout", "10ms"]).fails(8);
        assert!(late.stderr.contains("stands at position 1, not at 2") && late.stderr.contains("no worker runs it"), "{late:?}");
        herald(&database, &["sub", "wait", "nobody"]).fails(3);
        herald(&database, &["sub", "wait", "inbox_1", "--head", "--position", "2"]).fails(2);

        assert_eq!(herald(&database, &["sub", "discover"]).ok(), "0 added\n");
        assert_eq!(herald(&database, &["sub", "refresh", "inbox_1"]).ok(), "inbox_1: nothing to refresh\n");
        let said = herald(&database, &["sub", "history", "inbox_1", "-o", "json"]).json();
        assert_eq!((&said["schema"], &said["data"][0]["why"]), (&"herald.sub.history/1".into(), &"discovered".into()));
        herald(&database, &["sub", "history", "nobody"]).fails(3);

        let said = herald(&database, &["sub", "rewind", "inbox_1", "0"]).fails(2);
        assert!(said.stderr.contains("handle up to 1 event(s) once more") && said.stderr.contains("--yes"), "{said:?}");
        herald(&database, &["sub", "rewind", "inbox_1", "9", "--yes"]).fails(2);
        herald(&database, &["sub", "rewind", "inbox_1", "9", "--yes", "--reason", "too far"]).fails(5);
        herald(&database, &["sub", "rewind", "nobody", "0", "--yes"]).fails(3);
        let said = herald(&database, &["sub", "rewind", "inbox_1", "0", "--yes"]).ok();
        assert_eq!(said, "inbox_1: stood at position 1, stands at 0, is active\n");
        herald(&database, &["sub", "pause", "inbox_1"]).ok();
        let said = herald(&database, &["sub", "wait", "inbox_1"]).fails(5);
        assert!(said.stderr.contains("will not get to 1 by itself: it is paused"), "{said:?}");
    }
}
