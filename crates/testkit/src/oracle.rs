//! The one judge of readers (S-09): several writers append, roll back and dawdle, a reader delivers beside
//! them, and after quiet an independent read of the whole table says what the reader lost.
//!
//! It knows nothing of how a reader finds its way: real readers and deliberately broken ones are judged alike.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use store::{Append, ExpectedVersion, Json, NewEvent, Position, Store, StreamName};
use tokio::task::JoinSet;

use crate::database::TestDatabase;
use crate::random::Random;

const WRITERS: u64 = 4;
const APPENDS_OF_EACH: u64 = 40;
const STREAMS: u64 = 6;
/// Once in a run an appender is idle for this long before it commits.
const IDLE: Duration = Duration::from_millis(300);

/// The type of half of the events.
pub const WANTED: &str = "Acme.Test:Wanted";

/// What a reader hands on of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its place in the log.
    pub position: Position,
    /// Its stream.
    pub stream: String,
    /// Its number there.
    pub version: i64,
}

/// What a reader was given for "after this position": events, and where to go on from.
#[derive(Debug)]
pub struct Read {
    /// The events.
    pub events: Vec<Delivered>,
    /// Where the reader stands now.
    pub go_on_after: Position,
}

/// What was wrong, counted in events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// In the table, wanted, and never delivered.
    pub lost: usize,
    /// Delivered more than once.
    pub twice: usize,
    /// Delivered after a later event of its stream.
    pub out_of_order: usize,
    /// Acknowledged by the log, but not in it.
    pub unfounded: usize,
}

/// Which events a reader is to deliver.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Every event.
    All,
    /// Those of the type [`WANTED`].
    OfType,
}

/// Lets one reader run beside the writers until all is quiet, and judges it.
pub async fn judge(
    database: &TestDatabase,
    seed: u64,
    wanted: Wanted,
    reader: impl AsyncFn(Position) -> Read,
) -> Findings {
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let (store, random) =
            (database.open().await, Random::from_seed(seed.wrapping_mul(WRITERS).wrapping_add(number)));
        // SQLite has one writer: whoever dawdles there stops all the others, and no reader.
        let idle_at = (number == 0 && database.is_postgres()).then_some(APPENDS_OF_EACH / 2);
        writers.spawn(write(store, random, idle_at));
    }
    let quiet = Arc::new(AtomicBool::new(false));
    let watcher = {
        let quiet = Arc::clone(&quiet);
        tokio::spawn(async move {
            let acknowledged = writers.join_all().await.concat();
            quiet.store(true, Ordering::Release);
            acknowledged
        })
    };
    let mut delivered = Vec::new();
    let mut after = Position::START;
    loop {
        // Asked before the read: what was committed until then must be in it.
        let was_quiet = quiet.load(Ordering::Acquire);
        let read = reader(after).await;
        if was_quiet && read.events.is_empty() && read.go_on_after == after {
            break;
        }
        delivered.extend(read.events);
        after = read.go_on_after;
    }
    let acknowledged = watcher.await.expect("the writers come to their end");
    compare(&independent_read(database).await, wanted, &delivered, &acknowledged)
}

/// Appends, and sometimes thinks better of it; answers the last position of each append that was committed.
async fn write(store: Store, mut random: Random, idle_at: Option<u64>) -> Vec<Position> {
    let mut acknowledged = Vec::new();
    for number in 0..APPENDS_OF_EACH {
        let idle = idle_at == Some(number);
        let mut streams = BTreeSet::from([random.below(STREAMS)]);
        if random.below(3) == 0 {
            streams.insert(random.below(STREAMS));
        }
        let appends = streams.into_iter().map(|name| Append {
            // Nobody waits for the stream of an idle appender, so that others commit above its positions.
            stream: StreamName::new(if idle { "idle-1".to_owned() } else { format!("s-{name}") })
                .expect("a good name"),
            expected: ExpectedVersion::Any,
            events: (0..=random.below(3)).map(|_| some_event(&mut random)).collect(),
        });
        let appends = appends.take(if idle { 1 } else { 2 }).collect();

        let mut tx = store.begin().await.expect("a transaction begins");
        let results = store.append_all(&mut tx, appends).await.expect("it appends");
        let pause = if idle { IDLE } else { Duration::from_micros(random.below(3_000)) };
        if idle || random.below(2) == 0 {
            // The load itself, not a way to wait: positions are drawn and not yet committed.
            tokio::time::sleep(pause).await;
        }
        if random.below(4) == 0 && !idle {
            tx.rollback().await;
        } else {
            tx.commit().await.expect("it commits");
            acknowledged.extend(results.iter().filter_map(|result| result.position));
        }
    }
    acknowledged
}

fn some_event(random: &mut Random) -> NewEvent {
    let mut event = NewEvent::new("Acme.Test:Happened", Json::empty_object());
    if random.below(2) == 0 {
        event.event_type = WANTED.to_owned();
    }
    event
}

/// Reads the table past everything that is to be judged.
async fn independent_read(database: &TestDatabase) -> Vec<(Delivered, String)> {
    let sql = "SELECT position, stream, version, type FROM herald_events ORDER BY position";
    let store = database.open().await;
    let rows: Vec<(Position, String, i64, String)> =
        store.database().fetch_all(sql, ()).await.expect("the table can be read");
    rows.into_iter()
        .map(|(position, stream, version, event_type)| (Delivered { position, stream, version }, event_type))
        .collect()
}

fn compare(
    table: &[(Delivered, String)],
    wanted: Wanted,
    delivered: &[Delivered],
    acknowledged: &[Position],
) -> Findings {
    let in_table: BTreeSet<Position> = table.iter().map(|(event, _)| event.position).collect();
    let times = delivered.iter().fold(HashMap::new(), |mut times, event| {
        *times.entry(event.position).or_insert(0) += 1;
        times
    });
    let due = table.iter().filter(|(_, event_type)| match wanted {
        Wanted::All => true,
        Wanted::OfType => event_type == WANTED,
    });
    let mut last_of: HashMap<&str, i64> = HashMap::new();
    let out_of_order = delivered.iter().filter(|event| {
        let last = last_of.insert(&event.stream, event.version);
        last.is_some_and(|last| last >= event.version)
    });
    Findings {
        lost: due.filter(|(event, _)| !times.contains_key(&event.position)).count(),
        twice: times.values().filter(|times| **times > 1).count(),
        out_of_order: out_of_order.count(),
        unfounded: acknowledged.iter().filter(|position| !in_table.contains(position)).count(),
    }
}
