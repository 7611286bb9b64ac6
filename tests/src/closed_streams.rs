//! Closed streams: nobody reads them or appends to them any more, and the log keeps them.

use store::{
    Append, AppendError, CLOSED, CloseError, Direction, Event, ExpectedVersion, Filter, InvalidEvent, Json,
    NewEvent, Part, Position, ReadError, Store, StreamList, StreamMetadataError, StreamName, SummaryError,
    Upcaster, Upcasters, Verify, Version,
};
use testkit::{TestDatabase, both};

use crate::given::{all_events, event, stream};
use crate::program::herald;

fn gone() -> StreamName {
    stream("gone-1")
}

async fn append(store: &Store, name: &str, count: u32) {
    let events = (0..count).map(event).collect();
    store.append(&stream(name), ExpectedVersion::Any, events).await.unwrap();
}

/// Five events of a stream that is closed then, between those of another one.
async fn closed(store: &Store) {
    append(store, "kept-1", 1).await;
    append(store, "gone-1", 5).await;
    append(store, "kept-1", 1).await;
    let appended = store.close_stream(&gone(), "nobody needs it").await.unwrap();
    assert_eq!(appended.version, Some(Version(5)));
    append(store, "kept-1", 1).await;
}

fn is_closed<T: std::fmt::Debug>(result: Result<T, ReadError>) -> bool {
    matches!(result, Err(ReadError::StreamClosed(name)) if name == gone())
}

fn refuses<T: std::fmt::Debug>(result: Result<T, AppendError>) -> bool {
    matches!(result, Err(AppendError::StreamClosed(name)) if name == gone())
}

fn streams_of(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.stream.as_str()).collect()
}

const KEPT: [&str; 3] = ["kept-1", "kept-1", "kept-1"];

both! {
    async fn e29_a_closed_stream_is_not_found(database: TestDatabase) {
        let store = database.store().await;
        closed(&store).await;
        let other = database.store().await;
        for (from, limit) in [(0, 100), (0, 2), (3, 100), (6, 100), (5, 1)] {
            assert!(is_closed(other.read_stream(&gone(), from, limit).await), "{from} {limit}");
            let mut tx = other.begin().await.unwrap();
            assert!(is_closed(other.read_stream_in(&mut tx, &gone(), from, limit).await), "{from} {limit}");
            tx.rollback().await;
        }
        for before in [None, Some(Version(3)), Some(Version(0))] {
            assert!(is_closed(other.read_stream_backwards(&gone(), before, 2).await), "{before:?}");
        }
        let error = other.read_stream(&gone(), 0, 1).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no stream gone-1: it was closed");
        assert!(matches!(other.stream_summary(&gone(), 1).await, Err(SummaryError::Read(ReadError::StreamClosed(_)))));
        assert!(matches!(other.stream_metadata(&gone()).await, Err(StreamMetadataError::NoSuchStream(_))));
        let set = other.set_stream_metadata(&gone(), Some(&Json::empty_object())).await;
        assert!(matches!(set, Err(StreamMetadataError::NoSuchStream(_))));
        let names = other.streams(&StreamList::default(), 10).await.unwrap();
        assert_eq!(names.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["kept-1"]);
        let of = |category: &str| StreamList { category: Some(category.to_owned()), ..StreamList::default() };
        assert_eq!(other.streams(&of("gone"), 10).await.unwrap(), []);
        assert_eq!(other.streams(&of("kept"), 10).await.unwrap().len(), 1);
        assert_eq!(other.categories("", None, 10).await.unwrap(), ["kept"]);
        assert!(other.read_stream(&stream("never-1"), 0, 10).await.unwrap().is_empty(), "another thing is never there");
    }

    async fn e29_every_other_read_skips_it(database: TestDatabase) {
        let store = database.store().await;
        closed(&store).await;
        let other = database.store().await;
        for store in [&store, &other] {
            assert_eq!(streams_of(&all_events(store).await), KEPT);
            let one_by_one = {
                let (mut found, mut after) = (Vec::new(), Position::START);
                loop {
                    let page = store.read(&Filter::all(), after, 1).await.unwrap();
                    found.extend(page.events);
                    after = page.scanned_to;
                    if page.is_end { break found; }
                }
            };
            assert_eq!(streams_of(&one_by_one), KEPT);
            let typed = Filter::all().types(["Acme.Test:Happened"]);
            assert_eq!(streams_of(&store.read(&typed, Position::START, 2).await.unwrap().events), KEPT[..2]);
            assert_eq!(streams_of(&store.read_backwards(&Filter::all(), None, 3).await.unwrap().events), KEPT);
            let gone = Filter::all().category("gone");
            let page = store.read(&gone, Position::START, 10).await.unwrap();
            assert!(page.events.is_empty() && page.is_end);
            assert!(store.read(&Filter::all().types([CLOSED]), Position::START, 10).await.unwrap().events.is_empty());
            let head = store.head().await.unwrap().position;
            assert_eq!(store.count(&typed, head).await.unwrap(), 3);
            assert_eq!(store.count(&Filter::all(), head).await.unwrap(), 3);
            assert_eq!(store.stream_summary(&stream("$all"), 9).await.unwrap().unwrap().events, 3);
            let before = (Position::START, Position(head.0 + 1));
            let page = store.read_between(None, &Filter::all(), before, Direction::Backwards, 9).await.unwrap();
            assert_eq!(streams_of(&page.events), KEPT);
        }
    }

    /// A process that has read before sees within a second that another one has closed a stream; one that reads the
    /// stream itself sees it at once.
    async fn e29_another_process_sees_it(database: TestDatabase) {
        let (store, other) = (database.store().await, database.store().await);
        append(&store, "gone-1", 3).await;
        assert_eq!(all_events(&other).await.len(), 3);
        store.close_stream(&gone(), "test").await.unwrap();
        assert!(is_closed(other.read_stream(&gone(), 0, 1).await));
        let start = std::time::Instant::now();
        while !all_events(&other).await.is_empty() {
            assert!(start.elapsed() < std::time::Duration::from_secs(30), "it still reads the stream");
        }
    }

    async fn e29_appends_to_it_are_refused(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "gone-1", 1).await;
        let before = event(7);
        store.append(&gone(), ExpectedVersion::Any, vec![before.clone()]).await.unwrap();
        store.close_stream(&gone(), "test").await.unwrap();
        let expectations =
            [ExpectedVersion::Any, ExpectedVersion::NoStream, ExpectedVersion::StreamExists, ExpectedVersion::Exactly(Version(2)),
             ExpectedVersion::Exactly(Version(1))];
        for expected in expectations {
            assert!(refuses(store.append(&gone(), expected, vec![event(1)]).await), "{expected:?}");
            let append = |name: StreamName| Append { stream: name, expected, events: vec![event(2)] };
            let others = Append { expected: ExpectedVersion::Any, ..append(stream("a-1")) };
            let last = Append { expected: ExpectedVersion::Any, ..append(stream("z-1")) };
            let mut tx = store.begin().await.unwrap();
            assert!(refuses(store.append_all(&mut tx, vec![last, append(gone()), others]).await), "{expected:?}");
            tx.rollback().await;
        }
        let repeated = store.append(&gone(), ExpectedVersion::Any, vec![before]).await.unwrap();
        assert!(repeated.replayed, "what was appended before is still known");
        let again = store.close_stream(&gone(), "twice").await.unwrap_err();
        assert!(matches!(again, CloseError::Append(AppendError::StreamClosed(_))), "{again}");
        let none = store.close_stream(&stream("never-1"), "test").await.unwrap_err();
        assert!(matches!(none, CloseError::Append(AppendError::WrongVersion { actual: None, .. })), "{none}");
        assert_eq!(store.head().await.unwrap().position.0, all_in_the_log(&store).await, "nothing else was written");
    }

    /// Of several appends of a transaction, the stream that is closed is named, however long its name is.
    async fn e29_a_closed_stream_with_a_long_name_is_named(database: TestDatabase) {
        let store = database.store().await;
        let long = stream(&format!("ü{}", "é".repeat(100)));
        store.append(&long, ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        store.close_stream(&long, "test").await.unwrap();
        let append =
            |name: &StreamName| Append { stream: name.clone(), expected: ExpectedVersion::Any, events: vec![event(2)] };
        let mut tx = store.begin().await.unwrap();
        let refused = store.append_all(&mut tx, vec![append(&stream("a-1")), append(&long), append(&stream("z-1"))]).await;
        assert!(matches!(&refused, Err(AppendError::StreamClosed(name)) if *name == long), "{refused:?}");
        tx.rollback().await;
    }

    /// Strangers that share a commit with an append to a closed stream are not refused with it.
    async fn e29_others_of_the_same_commit_are_written(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "gone-1", 1).await;
        store.close_stream(&gone(), "test").await.unwrap();
        let appends = (0..60).map(|number| {
            let store = store.clone();
            let name = if number % 3 == 0 { gone() } else { stream(&format!("kept-{number}")) };
            tokio::spawn(async move { store.append(&name, ExpectedVersion::Any, vec![event(number)]).await.is_ok() })
        });
        let mut written = Vec::new();
        for append in appends.collect::<Vec<_>>() {
            written.push(append.await.unwrap());
        }
        assert!(written.iter().enumerate().all(|(number, written)| *written == (number % 3 != 0)), "{written:?}");
    }

    async fn e29_only_the_log_closes(database: TestDatabase) {
        let store = database.store().await;
        let closing = || vec![NewEvent::new(CLOSED, Json::empty_object())];
        let refused = store.append(&gone(), ExpectedVersion::Any, closing()).await.unwrap_err();
        assert!(matches!(refused, AppendError::Invalid { source: InvalidEvent::ReservedType(_), .. }), "{refused}");
        let mut tx = store.begin().await.unwrap();
        let append = Append { stream: gone(), expected: ExpectedVersion::Any, events: closing() };
        let refused = store.append_all(&mut tx, vec![append]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Invalid { source: InvalidEvent::ReservedType(_), .. }), "{refused}");
        tx.rollback().await;
    }

    /// Whoever closes in a transaction that is undone has closed nothing.
    async fn e29_closed_with_the_transaction_or_not(database: TestDatabase) {
        let store = database.store().await;
        append(&store, "gone-1", 2).await;
        let mut tx = store.begin().await.unwrap();
        assert!(store.close_stream_in(&mut tx, &gone(), "test").await.unwrap());
        tx.rollback().await;
        assert_eq!(all_events(&store).await.len(), 2);
        append(&store, "gone-1", 1).await;
        let mut tx = store.begin().await.unwrap();
        assert!(store.close_stream_in(&mut tx, &gone(), "test").await.unwrap());
        tx.commit().await.unwrap();
        assert!(all_events(&store).await.is_empty(), "seen at once where it was closed");
        let mut tx = store.begin().await.unwrap();
        assert!(!store.close_stream_in(&mut tx, &gone(), "test").await.unwrap(), "it is closed already");
        assert!(!store.close_stream_in(&mut tx, &stream("never-1"), "test").await.unwrap());
        tx.commit().await.unwrap();
    }

    /// What upcasters make of others does not bring it back.
    async fn e29_upcasters_do_not_show_it(database: TestDatabase) {
        let store = database.store().await;
        closed(&store).await;
        let renamed = Upcaster::new("renamed", |event| Ok(vec![Part::new("Acme.Test:Renamed", 1, event.payload.clone())]))
            .takes("Acme.Test:Happened", 1)
            .gives("Acme.Test:Renamed", 1);
        let upcasters = Upcasters::new([renamed]).unwrap();
        let store = store.with_upcasters(upcasters);
        let events = all_events(&store).await;
        assert_eq!(streams_of(&events), KEPT);
        let renamed = Filter::all().types(["Acme.Test:Renamed"]);
        assert_eq!(streams_of(&store.read(&renamed, Position::START, 1).await.unwrap().events), KEPT[..1]);
        assert_eq!(store.count(&renamed, store.head().await.unwrap().position).await.unwrap(), 3);
    }

    /// S-30: it is closed wherever the log is carried to, and nothing is wrong with it.
    async fn e29_an_import_closes_it_as_well(database: TestDatabase) {
        let store = database.store().await;
        closed(&store).await;
        assert_eq!(store.verify(&Verify::default(), |_| ()).await.unwrap().found, 0);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.jsonl");
        let file = file.to_str().unwrap();
        herald(&database, &["store", "export", file]).ok();
        let copy = TestDatabase::sqlite();
        herald(&copy, &["store", "setup"]).ok();
        let said = herald(&copy, &["store", "import", file, "--yes"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let copy = copy.store().await;
        assert!(is_closed(copy.read_stream(&gone(), 0, 10).await));
        assert!(refuses(copy.append(&gone(), ExpectedVersion::Any, vec![event(1)]).await));
        assert_eq!(streams_of(&all_events(&copy).await), KEPT);
    }

    async fn e29_c10_the_program_says_so(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        let store = database.open().await;
        closed(&store).await;
        let said = herald(&database, &["streams", "show", "gone-1"]).fails(3);
        assert!(said.stderr.contains("there is no stream gone-1: it was closed"), "{said:?}");
        herald(&database, &["events", "list", "--stream", "gone-1"]).fails(3);
        herald(&database, &["streams", "metadata", "gone-1"]).fails(3);
        let all = herald(&database, &["events", "list", "--stream", "$all", "-o", "json"]).json();
        assert_eq!(all["data"].as_array().unwrap().len(), 3);
        let said = herald(&database, &["events", "append", "gone-1", "--type", "Acme.Test:Happened", "--payload", "{}"]).fails(5);
        assert!(said.stderr.contains("stream gone-1 is closed"), "{said:?}");
        let kept = herald(&database, &["events", "show", "3"]).ok();
        assert!(kept.contains("gone-1"), "the log keeps it: {kept}");
        herald(&database, &["store", "verify"]).ok();
    }
}

async fn all_in_the_log(store: &Store) -> i64 {
    let sql = "SELECT MAX(position) FROM herald_events";
    store.database().fetch_optional::<(i64,)>(sql, ()).await.unwrap().unwrap().0
}
