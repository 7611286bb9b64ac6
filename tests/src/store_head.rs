//! `herald store head`: how far the log may be read, and who holds that back (S-10).

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use store::{Append, ExpectedVersion, Store, Tx};
use testkit::{Prepared, TestDatabase, both};

use crate::given::{event, stream};
use crate::program::{command, herald, until};

/// Far above the second after which a worker says for whom readers wait.
const SOON: Duration = Duration::from_secs(60);

async fn append(store: &Store) {
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
}

/// A transaction that has appended and does not end, and its process.
async fn idle(store: &Store) -> (Tx, i32) {
    let mut tx = store.begin().await.unwrap();
    let append = Append { stream: stream("idle-1"), expected: ExpectedVersion::Any, events: vec![event(1)] };
    store.append_all(&mut tx, vec![append]).await.unwrap();
    let (pid,) = tx.fetch_optional("SELECT pg_backend_pid()", ()).await.unwrap().unwrap();
    (tx, pid)
}

fn head(database: &TestDatabase) -> Value {
    let said = herald(database, &["store", "head", "-o", "json"]).json();
    assert_eq!(said["schema"], "herald.store.head/1", "{said}");
    said["data"].clone()
}

both! {
    async fn s10_where_nobody_appends_head_and_end_agree(database: TestDatabase) {
        let store = database.store().await;
        append(&store).await;
        append(&store).await;

        let said = head(&database);

        assert_eq!((&said["head"], &said["end"]), (&json!("2"), &json!("2")), "{said}");
        assert_eq!((&said["readers_wait"], &said["held_back_by"]), (&json!(false), &json!([])), "{said}");
        assert_eq!(said["published"].is_null(), !database.is_postgres(), "{said}");
        let said = herald(&database, &["store", "head"]);
        let note = if database.is_postgres() { "Nothing waits." } else { "Who holds the write lock of an SQLite file" };
        assert!(said.stderr.contains(note), "{said:?}");
        let said = said.ok();
        assert!(said.starts_with("safe head   2\nend of log  2\npublished   "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_session_that_holds_readers_back_is_named_with_its_end() {
    let Some(database) = TestDatabase::postgres("s10_a_session_that_holds_readers_back").await else {
        return;
    };
    let store = database.store().await;
    append(&store).await;
    let (tx, pid) = idle(&store).await;
    append(&store).await;

    let said = head(&database);

    assert_eq!((&said["head"], &said["end"]), (&json!("1"), &json!("3")), "{said}");
    assert_eq!((&said["events_waiting"], &said["readers_wait"]), (&json!("1"), &json!(true)), "{said}");
    let held = &said["held_back_by"][0];
    assert_eq!((&held["kind"], &held["pid"]), (&json!("session"), &json!(pid)), "{said}");
    assert_eq!((&held["application"], &held["user"]), (&json!("herald"), &json!("postgres")), "{said}");
    assert_eq!(
        (&held["state"], &held["client"]),
        (&json!("idle in transaction"), &json!("127.0.0.1")),
        "{said}"
    );
    assert!(held["query"].as_str().unwrap().contains("pg_backend_pid"), "{said}");
    assert!(held["age_ms"].as_str().unwrap().parse::<u64>().is_ok(), "{said}");
    let table = herald(&database, &["store", "head"]);
    assert!(table.stderr.contains("Readers wait until that is committed or given up."), "{table:?}");
    let table = table.ok();
    assert!(table.contains(&format!("session {pid}")) && table.contains("idle in transaction"), "{table}");

    // What it says does what it says.
    let ending = format!("SELECT pg_terminate_backend({pid})");
    assert_eq!(held["to_give_it_up"], json!(ending));
    let ended: Option<(bool,)> =
        store.database().fetch_optional("SELECT pg_terminate_backend($1)", (pid,)).await.unwrap();
    assert_eq!(ended, Some((true,)));
    until(&database, &["store", "head"], |out| out.starts_with("safe head   3\nend of log  3\n"));
    drop(tx);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_prepared_transaction_that_holds_readers_back_is_named_with_its_end() {
    let Some(database) = TestDatabase::postgres("s10_a_prepared_transaction_that_holds").await else {
        return;
    };
    let store = database.store().await;
    let prepared = Prepared::from(idle(&store).await.0).await;
    append(&store).await;

    let said = head(&database);

    let held = &said["held_back_by"][0];
    assert_eq!((&held["kind"], &held["user"]), (&json!("prepared"), &json!("postgres")), "{said}");
    assert_eq!(
        held["to_give_it_up"],
        json!(format!("ROLLBACK PREPARED '{}'", held["gid"].as_str().unwrap()))
    );
    assert!(held["age_ms"].is_string() && held["pid"].is_null(), "{said}");
    prepared.end(&store, "ROLLBACK").await;
    let said = head(&database);
    assert_eq!((&said["head"], &said["end"]), (&json!("2"), &json!("2")), "{said}");
    // The command that found the hole dead has recorded it.
    assert_eq!(head(&database)["dead_positions"], json!("1"));
}

/// Once for each, not at every look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_worker_says_for_whom_readers_wait() {
    let Some(database) = TestDatabase::postgres("s10_a_worker_says_for_whom_readers_wait").await else {
        return;
    };
    let store = database.store().await;
    let (tx, pid) = idle(&store).await;
    append(&store).await;
    let mut worker = command(database.url(), ["worker", "--until-stdin-ends"]);
    let mut worker =
        worker.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (lines, line) = mpsc::channel();
    let log = BufReader::new(worker.stderr.take().unwrap());
    std::thread::spawn(move || log.lines().map_while(Result::ok).all(|line| lines.send(line).is_ok()));
    let next_of = |text: &str| {
        let mut others = Vec::new();
        loop {
            match line.recv_timeout(SOON) {
                Ok(line) if line.contains(text) => return (line, others),
                Ok(line) => others.push(line),
                Err(error) => panic!("waited in vain for {text:?}: {error}; {others:?}"),
            }
        }
    };

    let (warning, _) = next_of("readers wait");

    assert!(warning.contains(&format!("session {pid} of")) && warning.contains("\"WARN\""), "{warning}");
    assert!(warning.contains(&format!("SELECT pg_terminate_backend({pid})")), "{warning}");
    // Two more looks, each of which waits in vain.
    for _ in 0..2 {
        assert!(!store.head().await.unwrap().is_end);
    }
    tx.commit().await.unwrap();
    let (_, before) = next_of("readers go on");
    assert!(!before.iter().any(|line| line.contains("readers wait")), "{before:?}");
    drop(worker.stdin.take());
    assert_eq!(worker.wait().unwrap().code(), Some(143));
}
