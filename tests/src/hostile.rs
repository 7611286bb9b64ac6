//! Hostile input (S-24): the corpus of the fuzzer and thousands of random changes to it, on both databases.

use std::collections::HashMap;
use std::path::Path;

use store::{Append, AppendError, Event, ExpectedVersion, NewEvent, Position, Store, StreamName};
use testkit::{Hostile, Random, TestDatabase, both, why_not_storable};
use uuid::Uuid;

use crate::given::all_events;

const INPUTS: usize = 10_000;
/// Events of one append to many streams.
const BATCH: usize = 500;

/// The files of the corpus, in the order of their names.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/store/fuzz/corpus/hostile");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// A log that takes nothing any more: what it refuses as invalid it refuses before any SQL.
async fn closed(database: &TestDatabase) -> Store {
    let store = database.open().await;
    store.close().await;
    store
}

both! {
    async fn s24_fuzz_corpus_is_stored_as_written_or_refused_before_any_sql(database: TestDatabase) {
        let mut random = Random::new();
        let corpus = corpus();
        let store = database.store().await;
        let closed = closed(&database).await;
        let mut taken: HashMap<Uuid, Hostile> = HashMap::new();
        let mut batch = Vec::new();
        let (mut no_event, mut invalid) = (0, 0);
        for number in 0..corpus.len() + INPUTS {
            let input = match corpus.get(number) {
                Some(bytes) => Hostile::from_bytes(bytes),
                // The large ones are slow and prove nothing new.
                None => {
                    let small: Vec<_> = corpus.iter().filter(|bytes| bytes.len() < 1_000).collect();
                    let start = usize::try_from(random.below(small.len() as u64)).unwrap();
                    Hostile::mutated(small[start], &mut random)
                }
            };
            let Ok((stream, event)) = input.event() else {
                no_event += 1;
                continue;
            };
            match closed.append(&stream, ExpectedVersion::Any, vec![event.clone()]).await {
                Err(AppendError::Invalid { .. }) => invalid += 1,
                Err(AppendError::Closed(_)) => {
                    assert_eq!(why_not_storable(&input.payload), None, "{input:?}");
                    assert_eq!(why_not_storable(&input.metadata), None, "{input:?}");
                    assert!(input.metadata.trim_start().starts_with('{'), "{input:?}");
                    taken.insert(event.id, input);
                    batch.push((stream, event));
                }
                other => panic!("a closed log answers {other:?} to {input:?}"),
            }
            if batch.len() == BATCH {
                append(&store, std::mem::take(&mut batch)).await;
            }
        }
        append(&store, batch).await;

        println!("{} stored, {invalid} invalid, {no_event} no events", taken.len());
        assert!(taken.len() > INPUTS / 20 && invalid > INPUTS / 100 && no_event > INPUTS / 20);
        let events = all_events(&store).await;
        assert_eq!(events.len(), taken.len());
        for event in events {
            let written = taken.remove(&event.id).unwrap();
            assert_eq!(read_back(&event), written, "at position {}", event.position);
        }
    }
}

/// Appends in one transaction, each stream once.
async fn append(store: &Store, events: Vec<(StreamName, NewEvent)>) {
    let mut streams: HashMap<StreamName, Vec<NewEvent>> = HashMap::new();
    for (stream, event) in events {
        streams.entry(stream).or_default().push(event);
    }
    let appends = streams
        .into_iter()
        .map(|(stream, events)| Append { stream, expected: ExpectedVersion::Any, events })
        .collect();
    let mut tx = store.begin().await.unwrap();
    let appended = store.append_all(&mut tx, appends).await.unwrap();
    tx.commit().await.unwrap();
    assert!(appended.iter().all(|appended| appended.position > Some(Position::START)));
}

fn read_back(event: &Event) -> Hostile {
    Hostile {
        stream: event.stream.as_str().to_owned(),
        event_type: event.event_type.clone(),
        payload: event.payload.as_str().to_owned(),
        metadata: event.metadata.as_str().to_owned(),
        correlation_id: event.correlation_id.clone(),
    }
}
