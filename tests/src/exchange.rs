//! Export and import (S-23): exact, resumable, from each database to the other, and nothing but what was exported.

use std::path::Path;

use store::{
    Append, AppendError, Event, ExchangeProgress, ExpectedVersion, ExportError, ImportError, ImportMode,
    Imported, NewEvent, Position, Store,
};
use testkit::{Hostile, Random, TestDatabase, both};
use uuid::Uuid;

use crate::given::{all_events, event, stream};

pub(crate) fn quiet(_: ExchangeProgress) {}

/// The exported log.
pub(crate) async fn export(store: &Store, after: i64) -> String {
    let mut bytes = Vec::new();
    store.export(&mut bytes, Position(after), quiet).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

pub(crate) async fn import(store: &Store, text: &str) -> Result<Imported, ImportError> {
    store.import(text.as_bytes(), ImportMode::Write, quiet).await
}

/// Everything but the first line, which says where the events come from.
pub(crate) fn without_first_line(text: &str) -> &str {
    text.split_once('\n').unwrap().1
}

/// A log of random appends of random, and often hostile, events; on PostgreSQL with holes.
pub(crate) async fn fill(store: &Store, random: &mut Random, appends: u64) {
    let harmless = Hostile::from_bytes(
        b"user-1\xffAcme.Test:Happened\xff{ \"a\" :\t[1e400, \"\\ud83d\\ude00\"],\n\"a\":2}\xff{ \"b\":1.0 }",
    );
    for number in 0..appends {
        let mut events: Vec<NewEvent> = Vec::new();
        for _ in 0..=random.below(5) {
            let (_, event) = Hostile::mutated(&harmless.to_bytes(), random)
                .event()
                .unwrap_or_else(|_| harmless.event().unwrap());
            events.push(event);
        }
        events[0].causation_id = (number % 3 == 0).then(Uuid::now_v7);
        events[0].correlation_id = (number % 2 == 0).then(|| format!("correlation {number} 💌"));
        let name = stream(&format!("user-{} ü\"\\", random.below(20)));
        let expected = ExpectedVersion::Any;
        if random.below(5) == 0 {
            let mut tx = store.begin().await.unwrap();
            let append = Append { stream: name.clone(), expected, events: vec![event(0), event(1)] };
            store.append_all(&mut tx, vec![append]).await.unwrap();
            tx.rollback().await;
        }
        match store.append(&name, expected, events).await {
            // What no log takes is in none.
            Ok(_) | Err(AppendError::Invalid { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let note = "INSERT INTO herald_stream_metadata (stream, metadata, changed_at) VALUES ($1, $2, {now})";
    for name in ["user-1", "ü", "a"] {
        store.database().execute(note, (name, "{ \"owner\" :\n\"ü\" }")).await.unwrap();
    }
}

/// An empty log on the other kind of database, and one on the same kind.
async fn targets(database: &TestDatabase, test_name: &str) -> Vec<TestDatabase> {
    let mut targets = vec![TestDatabase::sqlite()];
    targets.extend(TestDatabase::postgres(test_name).await);
    if !database.is_postgres() {
        targets.reverse();
    }
    targets
}

both! {
    async fn s23_an_import_is_what_was_exported_byte_for_byte_on_either_database(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        fill(&store, &mut random, 400).await;
        let original = export(&store, 0).await;
        let events = all_events(&store).await;

        for target in targets(&database, "s23_an_import_is_what_was_exported").await {
            let copy = target.store().await;
            let imported = import(&copy, &original).await.unwrap();

            assert_eq!(imported.events, events.len() as u64);
            assert_eq!(imported.holes, events.last().unwrap().position.0 as u64 - imported.events);
            assert_eq!(all_events(&copy).await, events);
            assert_eq!(without_first_line(&export(&copy, 0).await), without_first_line(&original));
            // It is a copy: it has an identity of its own.
            assert_ne!(copy.identity().await.unwrap().unwrap().id, store.identity().await.unwrap().unwrap().id);
            // The log goes on: versions, positions, and repetitions of what was appended elsewhere.
            goes_on(&copy, events.last().unwrap()).await;
            // And who opens it finds nothing wrong with its sequence.
            target.open().await;
        }
    }

    async fn s23_what_came_since_is_exported_and_imported_on_top(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        let (target, empty) = (TestDatabase::sqlite(), TestDatabase::sqlite());
        let copy = target.store().await;
        let mut after = 0;
        for _ in 0..4 {
            fill_events(&store, &mut random, 30).await;
            let text = export(&store, after).await;
            // Without what comes before it a part cannot be imported.
            if after > 0 {
                let refused = import(&empty.store().await, &text).await.unwrap_err();
                assert!(matches!(&refused, ImportError::OtherLog(why) if why.contains("begins after")), "{refused}");
            }
            import(&copy, &text).await.unwrap();
            assert_eq!(all_events(&copy).await, all_events(&store).await);
            after = all_events(&store).await.last().unwrap().position.0;
        }
        // All of it at once is the same file.
        assert_eq!(without_first_line(&export(&copy, 0).await), without_first_line(&export(&store, 0).await));
        let refused = store.export(Vec::new(), Position(after + 1), quiet).await.unwrap_err();
        assert!(matches!(refused, ExportError::BeyondTheEnd { .. }), "{refused}");
    }

    async fn s23_an_import_done_again_goes_on_and_then_changes_nothing(database: TestDatabase) {
        let source = TestDatabase::sqlite();
        let store = source.store().await;
        append_many(&store, 4_500).await;
        let text = export(&store, 0).await;
        let copy = database.store().await;
        // It breaks off after each whole chunk, and in the middle of one.
        let checks: Vec<usize> = text.match_indices("{\"check\"").map(|found| found.0).collect();
        assert_eq!(checks.len(), 3);
        for (number, at) in checks.iter().enumerate() {
            let end = at + text[*at..].find('\n').unwrap() + 1;
            for cut in [&text[..*at], &text[..end], &text[..end + 100]] {
                let broken = import(&copy, cut).await.unwrap_err();
                assert!(matches!(broken, ImportError::Truncated { .. }), "{broken}");
            }
            let written = all_events(&copy).await.len();
            assert_eq!(written, 4_500.min((number + 1) * 2_000));
            // A half imported log takes no appends, from whomever.
            for store in [&copy, &database.open().await] {
                let refused = store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap_err();
                assert!(store::messages(&refused).join(": ").contains("an import into this log is under way"), "{refused:?}");
            }
        }

        let imported = import(&copy, &text).await.unwrap();

        assert_eq!((imported.events, imported.known), (0, 4_500));
        assert_eq!(all_events(&copy).await, all_events(&store).await);
        let again = import(&copy, &text).await.unwrap();
        assert_eq!((again.events, again.known), (0, 4_500));
        goes_on(&copy, all_events(&store).await.last().unwrap()).await;
        // From here on it is a log of its own.
        let refused = import(&copy, &text).await.unwrap_err();
        assert!(matches!(&refused, ImportError::OtherLog(why) if why.contains("goes on to")), "{refused}");
    }

    async fn s23_a_dry_run_finds_what_is_wrong_and_writes_nothing(database: TestDatabase) {
        let source = TestDatabase::sqlite();
        let store = source.store().await;
        append_many(&store, 2_100).await;
        let text = export(&store, 0).await;
        let copy = database.store().await;

        let imported = copy.import(text.as_bytes(), ImportMode::DryRun, quiet).await.unwrap();

        assert_eq!((imported.events, all_events(&copy).await.len()), (2_100, 0));
        let cut = &text[..text.len() - 10];
        let broken = copy.import(cut.as_bytes(), ImportMode::DryRun, quiet).await.unwrap_err();
        assert!(matches!(broken, ImportError::Truncated { line: 2_103 }), "{broken}");
        // Nothing is left behind, and nobody is kept out.
        let appended = copy.append(&stream("a-1"), ExpectedVersion::NoStream, vec![event(1)]).await.unwrap();
        assert_eq!(appended.position, Some(Position(1)));
    }

    async fn s23_a_log_that_is_no_beginning_of_the_file_is_left_alone(database: TestDatabase) {
        let source = TestDatabase::sqlite();
        let store = source.store().await;
        append_many(&store, 50).await;
        let text = export(&store, 0).await;
        // One event of its own, at a position that the file has too.
        let copy = database.store().await;
        copy.append(&stream("b-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        let before = all_events(&copy).await;

        let refused = import(&copy, &text).await.unwrap_err();

        assert!(matches!(&refused, ImportError::OtherLog(why) if why.contains("line 2")), "{refused}");
        assert!(refused.to_string().contains("Nothing was written"), "{refused}");
        assert_eq!(all_events(&copy).await, before);
        copy.append(&stream("b-1"), ExpectedVersion::Any, vec![event(2)]).await.unwrap();
    }

    async fn s23_an_append_between_two_chunks_is_refused_and_the_import_completes(database: TestDatabase) {
        let source = TestDatabase::sqlite();
        let store = source.store().await;
        append_many(&store, 4_100).await;
        let text = export(&store, 0).await;
        let (copy, other) = (database.store().await, database.open().await);
        let handle = tokio::runtime::Handle::current();
        let mut refused = 0;

        // In the very moment between two transactions.
        let between = |_: ExchangeProgress| {
            let name = stream("b-1");
            let append = other.append(&name, ExpectedVersion::Any, vec![event(1)]);
            let result = tokio::task::block_in_place(|| handle.block_on(append));
            refused += u32::from(result.is_err());
        };
        let imported = copy.import(text.as_bytes(), ImportMode::Write, between).await.unwrap();

        assert_eq!((imported.events, refused), (4_100, 3));
        assert_eq!(all_events(&copy).await, all_events(&store).await);
    }

    async fn s23_a_test_log_and_a_real_one_are_not_mixed(database: TestDatabase) {
        let [source, one, two, three] = [(); 4].map(|()| TestDatabase::sqlite());
        let real = source.store().await;
        real.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        let manual = database.store_with_manual_clock().await;
        manual.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        let text = export(&manual, 0).await;

        for (target, text) in [
            (one.store().await, &text),
            (two.store_with_manual_clock().await, &export(&real, 0).await),
        ] {
            let refused = import(&target, text).await.unwrap_err();
            assert!(matches!(refused, ImportError::TestClock { .. }), "{refused}");
        }
        let copy = three.store_with_manual_clock().await;
        import(&copy, &text).await.unwrap();
        assert_eq!(all_events(&copy).await, all_events(&manual).await);
    }

    async fn s23_damage_is_found_by_line_and_nothing_of_its_chunk_is_written(database: TestDatabase) {
        let mut random = Random::new();
        let source = TestDatabase::sqlite();
        let store = source.store().await;
        append_many(&store, 2_300).await;
        let text = export(&store, 0).await;
        let first_chunk = text.find("{\"check\"").unwrap();
        let copy = database.store().await;
        for _ in 0..60 {
            let mut bytes = text.clone().into_bytes();
            let at = text.find('\n').unwrap() + usize::try_from(random.below(text.len() as u64 / 2)).unwrap();
            match random.below(3) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, b'7'),
                _ => bytes[at] ^= 1,
            }
            let mode = if random.below(2) == 0 { ImportMode::DryRun } else { ImportMode::Write };

            let error = copy.import(bytes.as_slice(), mode, quiet).await.unwrap_err();

            let written = all_events(&copy).await.len();
            assert!(written == 0 || (at > first_chunk && written == 2_000), "{at}: {error}");
            let words = error.to_string();
            assert!(words.contains("line ") || matches!(error, ImportError::Format(_)), "{words}");
        }
        import(&copy, &text).await.unwrap();
        assert_eq!(all_events(&copy).await, all_events(&store).await);
    }

    async fn s23_an_export_that_broke_off_is_resumed_to_the_same_file(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        append_many(&store, 5_000).await;
        fill(&store, &mut random, 20).await;
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole.jsonl");
        store.export_file(&whole, None, false, quiet).await.unwrap();
        let text = std::fs::read_to_string(&whole).unwrap();
        assert_eq!(mode_of(&whole), 0o600);

        for number in 0..20 {
            let file = folder.path().join(format!("{number}.jsonl"));
            let part = folder.path().join(format!("{number}.jsonl.part"));
            let cut = usize::try_from(random.below(text.len() as u64)).unwrap();
            let mut bytes = text.as_bytes()[..cut].to_vec();
            if number % 4 == 0 && cut > 1_000 {
                // A power cut can leave holes behind, too.
                bytes[cut / 2..cut / 2 + 100].fill(0);
            }
            std::fs::write(&part, bytes).unwrap();
            let refused = store.export_file(&file, None, false, quiet).await.unwrap_err();
            assert!(refused.to_string().contains("--resume"), "{refused}");

            let exported = store.export_file(&file, None, true, quiet).await.unwrap();

            let resumed = std::fs::read_to_string(&file).unwrap();
            assert_eq!(without_first_line(&resumed), without_first_line(&text), "cut at {cut}");
            assert!(!part.exists());
            assert_eq!(exported.events, all_events(&store).await.len() as u64);
            // What is there is never written over.
            let refused = store.export_file(&file, None, true, quiet).await.unwrap_err();
            assert!(matches!(refused, ExportError::File(store::FileError::Exists(_))), "{refused}");
        }
    }

    async fn s23_an_export_of_another_log_is_not_resumed(database: TestDatabase) {
        let store = database.store().await;
        append_many(&store, 2_500).await;
        let folder = tempfile::tempdir().unwrap();
        let (file, part) = (folder.path().join("log.jsonl"), folder.path().join("log.jsonl.part"));
        let text = export(&store, 0).await;
        let end_of_chunk = text.find("{\"check\"").unwrap();
        let end_of_chunk = end_of_chunk + text[end_of_chunk..].find('\n').unwrap() + 1;
        let other_database = TestDatabase::sqlite();
        let other = other_database.store().await;
        append_many(&other, 2_500).await;
        let other_text = export(&other, 0).await;
        // The same log in another past: it was restored in between.
        let id = store.identity().await.unwrap().unwrap().id;
        other.database().execute("UPDATE herald_log SET id = $1", (id,)).await.unwrap();
        let restored = export(&other, 0).await;

        for (bytes, after, says) in [
            (other_text, None, "begun on the log"),
            (text[..end_of_chunk].to_owned(), Some(Position(7)), "begins after position 0"),
            (restored, None, "it was restored in between"),
            ("something else\n".to_owned(), None, "does not begin like an export"),
        ] {
            std::fs::write(&part, bytes).unwrap();
            let refused = store.export_file(&file, after, true, quiet).await.unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }

    async fn s23_pages_of_large_events_stay_small(database: TestDatabase) {
        let store = database.store().await;
        let large = format!("\"{}\"", "x".repeat(250_000));
        for number in 0..60 {
            let event = NewEvent::new("T", store::Json::parse(large.clone()).unwrap());
            store.append(&stream(&format!("a-{}", number % 3)), ExpectedVersion::Any, vec![event]).await.unwrap();
        }
        let text = export(&store, 0).await;
        assert_eq!(text.matches("{\"check\"").count(), 2);
        let target = TestDatabase::sqlite();
        let copy = target.store().await;
        import(&copy, &text).await.unwrap();
        assert_eq!(all_events(&copy).await, all_events(&store).await);
    }
}

fn mode_of(file: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;

    std::fs::metadata(file).unwrap().permissions().mode() & 0o777
}

async fn fill_events(store: &Store, random: &mut Random, appends: u64) {
    for number in 0..appends {
        let name = stream(&format!("user-{}", random.below(7)));
        let events = (0..=random.below(3)).map(|_| event(u32::try_from(number).unwrap())).collect();
        store.append(&name, ExpectedVersion::Any, events).await.unwrap();
    }
}

/// So many events, a hundred in each append.
pub(crate) async fn append_many(store: &Store, events: u32) {
    for start in (0..events).step_by(100) {
        let events = (start..events.min(start + 100)).map(event).collect();
        store.append(&stream(&format!("many-{}", start % 700)), ExpectedVersion::Any, events).await.unwrap();
    }
}

/// The log takes appends behind its last event, and knows those that it has.
async fn goes_on(store: &Store, last: &Event) {
    let appended =
        store.append(&last.stream, ExpectedVersion::Exactly(last.version), vec![event(1)]).await.unwrap();
    assert_eq!(appended.version.unwrap().0, last.version.0 + 1);
    assert!(appended.position.unwrap() > last.position);
    let mut again = NewEvent::new(last.event_type.clone(), last.payload.clone());
    again.id = last.id;
    match store.append(&last.stream, ExpectedVersion::Any, vec![again]).await {
        Ok(appended) => assert!(appended.replayed, "{appended:?}"),
        // It was one of several.
        Err(AppendError::IdReused { position, .. }) => assert_eq!(position, last.position),
        Err(error) => panic!("{error}"),
    }
}
