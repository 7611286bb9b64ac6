//! What an operator does after a restore (S-22, C-10): adopt, verify, ask the doctor.

use std::fs;

use testkit::{TestDatabase, both};

use crate::engine::append;
use crate::program::{Daemon, Said, command, herald, until};
use crate::restore::{copy_of, lose_the_end, raw, unguard};

fn on(url: &str, arguments: &[&str]) -> Said {
    command(url, arguments).output().unwrap().into()
}

/// What a check of the doctor came to.
fn verdict<'a>(said: &'a serde_json::Value, check: &str) -> &'a str {
    let rows = said["data"].as_array().unwrap();
    let row = rows.iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("no {check}: {said}"));
    row["verdict"].as_str().unwrap()
}

/// With exit code 7, data on stdout and the refusal on stderr.
fn data(said: &Said, code: i32) -> serde_json::Value {
    assert_eq!(said.code, Some(code), "{said:?}");
    serde_json::from_str(&said.stdout).unwrap()
}

both! {
    async fn s22_c10_verify_says_what_is_wrong_and_ends_with_7(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["user", "notify", "user1", "Hello"]).ok();
        let said = herald(&database, &["store", "verify"]).ok();
        assert_eq!(said, "Verified 1 event(s) up to position 1: 0 found, 0 mended.\n");

        let store = database.open().await;
        raw(&store, "UPDATE herald_streams SET version = 7".to_owned()).await;
        let said = herald(&database, &["store:verify"]).fails(7);
        assert!(said.stdout.contains("the table of streams has version 7 for stream user-user1"), "{said:?}");
        assert!(said.stderr.contains("herald store verify --fix"), "{said:?}");
        let said = data(&herald(&database, &["store", "verify", "-o", "json"]), 7);
        assert_eq!(said["schema"], "herald.store.verify/1");
        assert_eq!((&said["data"]["found"], &said["data"]["mended"]), (&"1".into(), &"0".into()));
        assert_eq!(said["data"]["findings"][0]["kind"], "stream");

        let said = herald(&database, &["store", "verify", "--fix"]).ok();
        assert!(said.contains("1 found, 1 mended"), "{said}");
        herald(&database, &["store", "verify"]).ok();
        herald(&database, &["store", "verify", "--from", "0"]).fails(2);
    }

    /// A checkpoint that strayed is in the verification, in the list and in the doctor's report, with the way out.
    async fn s22_a_stray_checkpoint_is_shown_wherever_one_looks(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        for message in ["one", "two", "three"] {
            herald(&database, &["user", "notify", "user1", message]).ok();
        }
        herald(&database, &["worker", "--until-caught-up", "--id", "inbox_1"]).ok();
        lose_the_end(&database.open().await, 2).await;

        let said = herald(&database, &["store", "verify", "-o", "json"]);
        let said = data(&said, 7);
        let mut findings = said["data"]["findings"].as_array().unwrap().iter();
        let finding = findings.find(|finding| finding["subscription"] == "inbox_1").unwrap();
        assert_eq!(finding["kind"], "checkpoint");
        assert_eq!(verdict(&data(&herald(&database, &["doctor", "-o", "json"]), 7), "log"), "problem");

        herald(&database, &["worker", "--until-caught-up"]).fails(1);
        let said = herald(&database, &["sub", "list"]).ok();
        assert!(said.contains("stopped: its checkpoint does not fit the log"), "{said}");
        let said = herald(&database, &["sub", "reactivate", "inbox_1"]).fails(5);
        assert!(said.stdout.contains("herald projection replay inbox_1"), "{said:?}");
        herald(&database, &["projection", "replayall"]).ok();
        // What takes actions begins anew, from now on.
        for id in processors(&database) {
            herald(&database, &["sub", "remove", &id, "--yes"]).ok();
        }
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["store", "verify"]).ok();
        assert!(herald(&database, &["user", "inbox", "user1"]).ok().contains("two"));
    }

    async fn s22_the_doctor_looks_at_everything(database: TestDatabase) {
        let said = data(&herald(&database, &["doctor", "-o", "json"]), 7);
        let missing = if database.is_postgres() { "schema" } else { "database" };
        assert_eq!((verdict(&said, missing), said["schema"].as_str()), ("problem", Some("herald.doctor/1")));

        herald(&database, &["store", "setup"]).ok();
        let said = data(&herald(&database, &["doctor", "-o", "json"]), 7);
        for check in ["connection", "schema", "place", "clock", "head", "log"] {
            assert_eq!(verdict(&said, check), "ok", "{check}");
        }
        assert_eq!((verdict(&said, "subscription"), verdict(&said, "workers")), ("problem", "warning"));

        let worker = Daemon::start(&database, &[]);
        until(&database, &["doctor"], |said| said.contains("1 at work"));
        assert_eq!(verdict(&herald(&database, &["doctor", "-o", "json"]).json(), "subscriptions"), "ok");
        worker.stop();

        let store = database.open().await;
        append(&store, 1).await;
        let mut tx = store.begin().await.unwrap();
        unguard(&mut tx).await;
        tx.execute("UPDATE herald_events SET payload = 'x'", ()).await.unwrap();
        tx.commit().await.unwrap();
        let said = herald(&database, &["doctor"]).fails(7);
        assert!(said.stdout.contains("the event at position 1 cannot be read"), "{said:?}");
        assert!(said.stdout.contains("PROBLEM  log ") && said.stderr.contains(" problems"), "{said:?}");
        // A row that cannot be read hides nothing else.
        herald(&database, &["sub", "list"]).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_copy_is_looked_at_but_not_worked_on_until_it_is_adopted() {
    let database = TestDatabase::sqlite();
    herald(&database, &["store", "setup"]).ok();
    herald(&database, &["user", "notify", "user1", "Hello"]).ok();
    let original = database.url().strip_prefix("sqlite:").unwrap().to_owned();
    let copy = format!("{original}.copy");
    copy_of(&database, &copy).await;
    let url = format!("sqlite:{copy}");

    for arguments in [
        &["store", "status"][..],
        &["store", "verify"],
        &["events", "list"],
        &["events", "show", "1"],
        &["events", "stats"],
        &["sub", "list"],
        &["sub", "show", "inbox_1"],
        &["user", "inbox", "user1"],
    ] {
        let said = on(&url, arguments);
        assert_eq!(said.code, Some(0), "{arguments:?} {said:?}");
        assert!(said.stderr.contains("this log is a copy"), "{arguments:?} {said:?}");
    }
    for arguments in [
        &["user", "notify", "user1", "again"][..],
        &["worker"],
        &["worker", "--until-caught-up"],
        &["sub", "pause", "--all"],
        &["store", "setup"],
        &["projection", "replay", "inbox"],
        &["store", "verify", "--fix"],
    ] {
        on(&url, arguments).fails(78);
    }
    let said = data(&on(&url, &["doctor", "-o", "json"]), 7);
    assert_eq!(verdict(&said, "place"), "problem");

    let said = on(&url, &["store", "adopt"]).fails(2);
    assert!(said.stderr.contains("sent twice") && said.stderr.contains("--yes"), "{said:?}");
    let said = on(&url, &["store", "adopt", "--yes", "--reason", "the original is off"]).ok();
    assert!(said.starts_with("Adopted: the event store lives in ") && said.ends_with("epoch 2.\n"), "{said}");
    on(&url, &["user", "notify", "user1", "again"]).ok();
    let said = on(&url, &["store", "adopt"]).ok();
    assert!(said.starts_with("Nothing to adopt"), "{said}");
    assert_eq!(on(&url, &["store", "status", "-o", "json"]).json()["data"][0]["epoch"], "2");
    let said = on(&format!("sqlite:{original}.nowhere"), &["store", "adopt", "--yes"]).fails(3);
    assert!(said.stderr.contains("not set up"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_moved_file_is_noted_once() {
    let database = TestDatabase::sqlite();
    herald(&database, &["store", "setup"]).ok();
    let original = database.url().strip_prefix("sqlite:").unwrap().to_owned();
    let copy = format!("{original}.copy");
    copy_of(&database, &copy).await;
    fs::remove_file(&original).unwrap();
    let url = format!("sqlite:{copy}");

    let said = on(&url, &["user", "notify", "user1", "Hello"]);
    assert!(said.stderr.contains("has moved from") && said.stderr.contains("epoch 2"), "{said:?}");
    assert_eq!(said.code, Some(0));
    let said = on(&url, &["user", "notify", "user1", "Hello"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
}

/// The sequence is named with its remedy, and the remedy works on a log that is refused otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn s22_a_sequence_behind_its_rows_is_mended_from_the_command_line() {
    let name = "s22_a_sequence_behind_its_rows_is_mended_from_the_command_line";
    let Some(database) = TestDatabase::postgres(name).await else { return };
    herald(&database, &["store", "setup"]).ok();
    for _ in 0..3 {
        herald(&database, &["user", "notify", "user1", "Hello"]).ok();
    }
    raw(&database.open().await, "SELECT setval('herald_positions', 1)".to_owned()).await;

    let said = herald(&database, &["user", "notify", "user1", "Hello"]).fails(78);
    assert!(said.stderr.contains("herald store verify --fix"), "{said:?}");
    herald(&database, &["store", "verify"]).fails(7);
    let said = herald(&database, &["store", "verify", "--fix"]).ok();
    assert!(said.contains("1 found, 1 mended"), "{said}");
    herald(&database, &["user", "notify", "user1", "Hello"]).ok();
}

/// The ids of the subscriptions that take actions.
fn processors(database: &TestDatabase) -> Vec<String> {
    let listed = herald(database, &["sub", "list", "-o", "json"]).json();
    let processors = listed["data"].as_array().unwrap().iter().filter(|sub| sub["group"] == "processor");
    processors.map(|sub| sub["id"].as_str().unwrap().to_owned()).collect()
}
