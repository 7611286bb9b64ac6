//! An operator in a hurry: wrong words, wrong states, wrong places, each answered with what is so and what helps.

use testkit::{TestDatabase, both};

use crate::program::{command, herald};
use crate::restore::raw;

both! {
    /// C-05, C-10: why something was refused stands in the error, also in that of a program; nobody is asked first.
    async fn c05_a_refusal_says_why(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        let said = herald(&database, &["sub", "reactivate", "inbox_1"]).fails(5);
        assert!(said.stderr.contains("error: not done for inbox_1: "), "{said:?}");
        let said = herald(&database, &["sub", "reactivate", "inbox_1", "-o", "json"]).fails(5);
        let error: serde_json::Value = serde_json::from_str(said.stderr.lines().last().unwrap()).unwrap();
        assert_eq!(error["error"]["refused"][0]["id"], "inbox_1");
        assert!(error["error"]["refused"][0]["why"].is_string(), "{error}");

        let said = herald(&database, &["sub", "teardown", "inbox_1"]).fails(5);
        assert!(said.stderr.contains("inbox_1: its status is booting, not detached"), "{said:?}");
        for words in [
            &["sub", "list", "nope"][..],
            &["sub", "list", "--group", "nope"],
            &["effects", "list", "--subscription", "nope"],
        ] {
            let said = herald(&database, words).fails(3);
            assert!(said.stderr.contains("hint:  there are: "), "{words:?}: {said:?}");
        }
        herald(&database, &["sub", "pause", "inbox_1", "--reason", " "]).fails(2);
        let said = herald(&database, &["effects", "show", "1"]).fails(2);
        assert!(said.stderr.contains("an effect id is a UUID"), "{said:?}");
        let said = herald(&database, &["status", "--watch", "--every", "0s"]).fails(2);
        assert!(said.stderr.contains("at least 100ms"), "{said:?}");
        herald(&database, &["sub", "wait", "inbox_1", "--timeout", "5"]).ok();
    }

    /// C-11, E-62: why it is paused, and by whom, is told once, also where nothing waits.
    async fn c11_the_note_of_a_paused_one(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["sub", "pause", "inbox_1"]).ok();
        let said = herald(&database, &["sub", "list", "-o", "json"]).json();
        let inbox = said["data"].as_array().unwrap().iter().find(|one| one["id"] == "inbox_1").unwrap();
        let note = inbox["note"].as_str().unwrap();
        assert!(note.starts_with("paused by ") && !note.contains(':'), "{note}");
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        let said = herald(&database, &["user", "inbox", "user1"]);
        assert!(said.stderr.contains("warning: inbox_1 is 1 behind, stalled: paused by "), "{said:?}");
        assert!(said.ok().starts_with("0 pending message(s)"));
        herald(&database, &["sub", "reactivate", "inbox_1"]).ok();
        let said = herald(&database, &["user", "inbox", "user1"]);
        assert!(said.stderr.contains("warning: inbox_1 is 1 behind and no worker runs it"), "{said:?}");
        herald(&database, &["worker", "--until-caught-up"]).ok();
        let said = herald(&database, &["user", "inbox", "user1"]);
        assert!(said.stderr.is_empty() && said.stdout.starts_with("1 pending"), "{said:?}");
    }

    /// E-62, C-10: an answer for monitoring also where the question was wrong.
    async fn e62_a_plugin_that_is_asked_wrongly_answers_unknown(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        for words in [
            &["check", "--format", "nagios", "--max-lag", "soon"][..],
            &["check", "--format=nagios", "--nope"],
            &["check", "--format", "nagios", "-o", "json"],
        ] {
            let said = herald(&database, words).fails(3);
            assert!(said.stdout.starts_with("HERALD UNKNOWN - ") && said.stdout.lines().count() == 1, "{said:?}");
        }
        // The doctor and the check agree.
        let said = herald(&database, &["doctor"]).fails(7);
        assert!(said.stdout.contains("inbox_1: no worker runs it"), "{said:?}");
        herald(&database, &["check"]).fails(7);
    }

    /// C-06: lines of JSON have one form, whatever the command.
    async fn c06_every_line_of_json_says_what_it_is(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        for (words, schema, field) in [
            (&["sub", "list"][..], "herald.sub.list/1", "id"),
            (&["sub", "show", "inbox_1"], "herald.sub.show/1", "id"),
            (&["sub", "pause", "inbox_1"], "herald.sub.pause/1", "outcome"),
            (&["events", "list"], "herald.events.list/1", "payload"),
            (&["streams", "categories"], "herald.streams.categories/1", "data"),
            (&["status"], "herald.status/1", "head"),
        ] {
            let said = herald(&database, &[words, &["-o", "jsonl"]].concat()).ok();
            let line: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
            assert_eq!(line["schema"], schema);
            assert!(!line[field].is_null(), "{line}");
        }
    }

    /// S-05, C-10: a row in the table of streams that is not true does not look like a crowd.
    async fn c10_a_wrong_row_in_the_table_of_streams_is_named(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        let store = database.open().await;
        raw(&store, "UPDATE herald_streams SET version = 7 WHERE stream = 'user-user1'".to_owned()).await;
        store.close().await;
        let said = herald(&database, &["user", "notify", "user1", "again"]).fails(78);
        assert!(said.stderr.contains("herald store verify --fix"), "{said:?}");
        herald(&database, &["store", "verify", "--fix"]).ok();
        herald(&database, &["user", "notify", "user1", "again"]).ok();
    }

    /// S-22, C-10: nothing is set up is said with the place.
    async fn c10_what_is_not_set_up_has_a_place(database: TestDatabase) {
        let said = herald(&database, &["sub", "list"]).fails(3);
        let place = if database.is_postgres() { "there are no tables of it in " } else { "there is no database file " };
        assert!(said.stderr.contains("is not set up yet") && said.stderr.contains(place), "{said:?}");
        for url in ["", "sqlite:", "sqlite://"] {
            let said = command(url, ["sub", "list"]).output().unwrap();
            assert_eq!(said.status.code(), Some(2), "{url:?}: {said:?}");
        }
    }
}

/// S-22, C-10: a sequence that lags is told once, what mends it comes first, and who is to stop may be stopped.
#[tokio::test]
async fn s22_a_sequence_that_lags_is_mended_first() {
    let Some(database) = TestDatabase::postgres("s22_a_sequence_that_lags_is_mended_first").await else {
        return;
    };
    herald(&database, &["store", "setup"]).ok();
    herald(&database, &["user", "notify", "user1", "hello"]).ok();
    let store = database.open().await;
    raw(&store, "SELECT setval('herald_positions', 1, false)".to_owned()).await;
    store.close().await;
    let said = herald(&database, &["user", "notify", "user1", "again"]).fails(78);
    assert_eq!(said.stderr.matches("behind position 1").count(), 1, "{said:?}");
    let said = herald(&database, &["status"]);
    assert!(said.stdout.contains("→ herald store verify --fix"), "{said:?}");
    herald(&database, &["check"]).fails(7);
    let said = herald(&database, &["sub", "show", "inbox_1", "-o", "json"]).json();
    assert_eq!(said["data"]["next"][0]["command"], "herald store verify --fix");
    herald(&database, &["sub", "pause", "inbox_1"]).ok();
    herald(&database, &["sub", "reactivate", "inbox_1"]).fails(78);
    herald(&database, &["store", "verify", "--fix"]).ok();
    herald(&database, &["sub", "reactivate", "inbox_1"]).ok();
}

/// N-01, C-10: a clock that would leave the calendars is refused before anything is done.
#[tokio::test]
async fn c10_a_clock_has_an_end() {
    let database = TestDatabase::sqlite();
    herald(&database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
    for words in [
        &["clock", "advance", "99999999999h"][..],
        &["clock", "set", "9999-12-31T23:59:59Z"],
        &["clock", "set", "9500-01-01T00:00:00Z"],
    ] {
        let said = herald(&database, &[&["--test-mode"], words].concat()).fails(2);
        assert!(said.stderr.contains("9000-01-01") || said.stderr.contains("9999-12-30"), "{said:?}");
    }
}

/// S-27: a file that somebody keeps locked is told by the doctor, with how to find out who.
#[tokio::test]
async fn s27_the_doctor_tells_of_a_locked_file() {
    let database = TestDatabase::sqlite();
    herald(&database, &["store", "setup"]).ok();
    let store = database.open().await;
    let tx = store.begin().await.unwrap();
    let said = herald(&database, &["doctor"]);
    assert!(said.stdout.contains("warning  lock") && said.stdout.contains("fuser -v "), "{said:?}");
    tx.rollback().await;
    let said = herald(&database, &["doctor"]);
    assert!(said.stdout.contains("ok       lock"), "{said:?}");
}
