//! `herald events tail`: events as they come, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use store::{ExpectedVersion, Json, NewEvent, Store};
use testkit::{TestDatabase, both};

use crate::given::{event, stream};
use crate::program::{command, herald};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running `herald events tail`.
struct Tail {
    child: Child,
    lines: Receiver<String>,
}

impl Tail {
    fn start(database: &TestDatabase, arguments: &[&str]) -> Self {
        let mut child = Self::spawn(database, arguments);
        let (line, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|text| line.send(text).map_err(drop))
        });
        Self { child, lines }
    }

    fn spawn(database: &TestDatabase, arguments: &[&str]) -> Child {
        let mut tail = command(database.url(), ["events", "tail"]);
        tail.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line comes")
    }

    /// The number in the payload of the next line of JSON.
    #[track_caller]
    fn number(&self) -> u64 {
        let line: serde_json::Value = serde_json::from_str(&self.line()).unwrap();
        line["payload"]["number"].as_u64().unwrap()
    }

    fn ends_after(mut self, signal: &str) -> (Option<i32>, String) {
        send(&self.child, signal);
        (ended(&mut self.child), text_of(self.child.stderr.take().unwrap()))
    }
}

fn send(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[track_caller]
fn ended(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(start.elapsed() < PATIENCE, "it does not end");
        std::thread::yield_now();
    }
}

fn text_of(mut stderr: ChildStderr) -> String {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    text
}

async fn append(store: &Store, name: &str, number: u32) {
    store.append(&stream(name), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
}

both! {
    async fn c05_events_are_shown_as_they_come(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "a-1", 1).await;
        append(&store, "b-1", 2).await;
        append(&store, "a-1", 3).await;
        let tail = Tail::start(&database, &["--from-start", "--category", "a", "-o", "jsonl"]);
        assert_eq!((tail.number(), tail.number()), (1, 3));
        append(&store, "b-1", 4).await;
        append(&store, "a-2", 5).await;
        assert_eq!(tail.number(), 5);
        append(&store, "a-1", 6).await;
        assert_eq!(tail.number(), 6);

        assert_eq!(tail.ends_after("-INT"), (Some(130), String::new()));
    }

    async fn c05_the_last_ones_come_first(database: TestDatabase) {
        let store = database.store().await;
        for number in 1..=12 {
            append(&store, "a-1", number).await;
        }
        let tail = Tail::start(&database, &["-n", "2", "-o", "json"]);
        let line: serde_json::Value = serde_json::from_str(&tail.line()).unwrap();
        assert_eq!((&line["schema"], &line["data"]["position"]), (&"herald.events.tail/1".into(), &"11".into()));
        tail.line();
        append(&store, "a-1", 13).await;
        assert!(tail.line().contains("\"position\":\"13\""));
        assert_eq!(tail.ends_after("-TERM"), (Some(143), String::new()));

        // Ten, if nothing is said.
        let tail = Tail::start(&database, &["-o", "plain", "--no-header"]);
        assert!(tail.line().starts_with("4\t"));
        let tail = Tail::start(&database, &["-o", "plain", "-n", "1"]);
        assert_eq!(tail.line(), "position\trecorded\ttype\tstream\tversion\tid");
        let tail = Tail::start(&database, &["--after", "12"]);
        let line = tail.line();
        assert!(line.contains("  Acme.Test:Happened  a-1 12  {\"number\":13}"), "{line}");
    }

    async fn c05_a_payload_of_several_lines_is_one_line(database: TestDatabase) {
        let store = database.store().await;
        let events = [1, 2].map(|number| {
            NewEvent { payload: Json::parse(format!("{{\n  \"number\":{number}\n}}")).unwrap(), ..event(0) }
        });
        store.append(&stream("a-1"), ExpectedVersion::Any, events.into()).await.unwrap();
        for output in ["table", "plain", "json", "jsonl"] {
            let tail = Tail::start(&database, &["-o", output, "--no-header"]);
            let (one, two) = (tail.line(), tail.line());
            assert!(output == "plain" || (one.contains("\"number\":1") && two.contains("\"number\":2")), "{one} {two}");
        }
    }

    async fn c05_a_closed_pipe_ends_it_while_nothing_comes(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "a-1", 1).await;
        let mut child = Tail::spawn(&database, &[]);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();

        drop(stdout);

        assert_eq!(ended(&mut child), Some(0));
        assert_eq!(text_of(child.stderr.take().unwrap()), "");
    }

    /// Such as a pager that waits for a key.
    async fn c05_a_reader_that_does_not_read_keeps_it_from_nothing(database: TestDatabase) {
        let store = database.store().await;
        for _ in 0..4 {
            let large = || NewEvent::new("large", Json::of(&"x".repeat(100_000)).unwrap());
            store.append(&stream("a-1"), ExpectedVersion::Any, vec![large(), large()]).await.unwrap();
        }
        let mut child = Tail::spawn(&database, &["-o", "jsonl"]);
        let mut stdout = child.stdout.take().unwrap();
        // It has begun to write, and far more than a pipe holds is left.
        stdout.read_exact(&mut [0; 10]).unwrap();

        send(&child, "-TERM");

        assert_eq!(ended(&mut child), Some(143));
    }

    async fn c10_words_that_cannot_be_are_refused(database: TestDatabase) {
        let said = herald(&database, &["events", "tail"]).fails(3);
        assert!(said.stderr.contains("run `herald store setup` first"), "{said:?}");
        database.store().await;
        for (wrong, says) in [
            (&["--stream", "$al"][..], "there is no special stream $al"),
            (&["--where", "tenant = acme"], "there is no field \"tenant\"; write meta.NAME"),
            (&["--where", "meta.a in 1", "--where", "meta.a regex ("], "not a regular expression"),
            (&["--after", "-1"], "-1"),
            (&["--after", "1", "--from-start"], "cannot be used with"),
            (&["--stream", "$correlation-a", "--correlation-id", "a"], "names a correlation already"),
        ] {
            let said = herald(&database, &[&["events", "tail"], wrong].concat()).fails(2);
            assert!(said.stderr.contains(says), "{said:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_a_restart_of_the_server_is_said_once_and_outlived() {
    let name = "c05_a_restart_of_the_server_is_said_once_and_outlived";
    let Some(cluster) = testkit::own_postgres_or_left_out(name) else { return };
    let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
    let store = database.store().await;
    append(&store, "a-1", 1).await;
    let tail = Tail::start(&database, &["-o", "jsonl"]);
    assert_eq!(tail.number(), 1);

    let restarted = tokio::task::spawn_blocking(move || cluster.restart_immediate().map(|()| cluster));
    let _cluster = restarted.await.unwrap().unwrap();
    let store = database.open().await;
    append(&store, "a-1", 2).await;
    append(&store, "a-1", 3).await;

    assert_eq!((tail.number(), tail.number()), (2, 3));
    let (code, said) = tail.ends_after("-INT");
    assert_eq!(code, Some(130));
    // Not at all, if the server was there again when it was asked next.
    assert!(said.matches("Lost the database").count() <= 1, "{said}");
    assert_eq!(
        said.matches("Lost the database").count(),
        said.matches("The database is back").count(),
        "{said}"
    );
}
