//! What is acknowledged survives the moment in which everything stops (S-08), and no append is there by half (S-04).
//!
//! SQLite: two processes append and are halted at a random instant, and the files as they are then are looked at, once
//! whole and once with the end of the write-ahead log torn off. PostgreSQL: the server is stopped at a random instant
//! without a checkpoint, and started again.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use store::{Append, ExpectedVersion, Position, Store};
use testkit::{Acknowledged, Findings, Random, Table, TestDatabase, own_postgres_or_left_out};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::given::{event, stream};
use crate::program;

/// How often everything stops.
const CUTS: usize = 30;
const CRASHES: usize = 4;

/// The log is sound: every append is there as a whole, and streams have no holes.
async fn no_append_is_there_by_half(store: &Store) {
    let half = "SELECT stream, CAST(COUNT(*) AS BIGINT)
                  FROM herald_events
                 GROUP BY stream, version - append_index, append_size
                HAVING COUNT(*) <> append_size";
    let half: Vec<(String, i64)> = store.database().fetch_all(half, ()).await.unwrap();
    assert_eq!(half, []);
    let disagreeing = "SELECT s.stream, s.version
                         FROM herald_streams s
                        WHERE s.version <> (SELECT COUNT(*) - 1 FROM herald_events e WHERE e.stream = s.stream)";
    let disagreeing: Vec<(String, i64)> = store.database().fetch_all(disagreeing, ()).await.unwrap();
    assert_eq!(disagreeing, []);
}

/// A process that appends and writes down what the log has acknowledged.
struct Appender {
    process: Child,
    said: PathBuf,
}

impl Appender {
    fn start(url: &str, number: usize, folder: &Path) -> Self {
        let said = folder.join(format!("acknowledged-{number}"));
        let process = Command::new(program::beside_the_tests("bench"))
            .args(["disturb-child", url, "--append", &number.to_string()])
            .stdin(Stdio::piped())
            .stdout(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        Self { process, said }
    }

    /// What it has written down so far, in whole lines.
    fn acknowledged(&self) -> Vec<Acknowledged> {
        let said = fs::read_to_string(&self.said).unwrap();
        let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let events = lines.filter_map(|line| line.split_once(' ')).map(|(position, id)| Acknowledged {
            position: Position(position.parse().unwrap()),
            id: id.parse().unwrap(),
        });
        events.collect()
    }

    /// Waits until it has been acknowledged that many appends.
    fn wait_for(&mut self, appends: usize) {
        while self.acknowledged().len() < appends {
            assert!(self.process.try_wait().unwrap().is_none(), "it appends until it is killed");
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Halts it in the middle of whatever it does.
    fn halt(&self) {
        self.signal("-STOP");
        let status = format!("/proc/{}/status", self.process.id());
        while !fs::read_to_string(&status).unwrap().contains("State:\tT") {
            std::thread::yield_now();
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The database and its write-ahead log, as a disk would have them after the power is gone. The third file, shared
/// memory, would be gone as well.
fn copy_files(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for name in ["herald.db", "herald.db-wal"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    to.join("herald.db")
}

/// How much of the write-ahead log the disk has for certain: what is being moved into the database file was synced
/// before. The third file knows how far that goes (SQLite's "WAL-index": the checkpoint's goal stands at byte 128), in
/// frames of a page and 24 bytes, behind a header of 32.
fn synced_for_certain(folder: &Path) -> u64 {
    const PAGE: u64 = 4096;
    let shared = fs::read(folder.join("herald.db-shm")).unwrap();
    let frames = u32::from_ne_bytes(shared[128..132].try_into().unwrap());
    32 + u64::from(frames) * (24 + PAGE)
}

async fn open_copy(file: &Path) -> Store {
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let (url, options) = (format!("sqlite:{}", file.display()), store::Options::default());
    // Beside its original it is a copy until somebody says that this is meant.
    let looking = Store::open_to_look(&url, &options, &migrations).await.unwrap();
    looking.adopt("the power was cut", "a test").await.unwrap();
    looking.close().await;
    let store = Store::open(&url, &options, &migrations).await.unwrap();
    let (sound,): (String,) =
        store.database().fetch_optional("PRAGMA integrity_check", ()).await.unwrap().unwrap();
    assert_eq!(sound, "ok");
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_what_is_acknowledged_is_in_the_files_at_every_instant() {
    let mut random = Random::new();
    let folder = tempfile::tempdir().unwrap();
    let origin = folder.path().join("origin");
    fs::create_dir(&origin).unwrap();
    let url = format!("sqlite:{}", origin.join("herald.db").display());
    let database = TestDatabase::at(&url);
    database.store().await.close().await;
    let mut appenders: Vec<Appender> =
        (1..=2).map(|number| Appender::start(&url, number, folder.path())).collect();
    let mut appends = 0;

    for cut in 0..CUTS {
        appends += 2 + usize::try_from(random.below(20)).unwrap();
        for appender in &mut appenders {
            appender.wait_for(appends);
        }
        std::thread::sleep(Duration::from_micros(random.below(3_000)));
        for appender in &appenders {
            appender.halt();
        }
        let acknowledged: Vec<Acknowledged> = appenders.iter().flat_map(Appender::acknowledged).collect();
        let file = copy_files(&origin, &folder.path().join(format!("copy-{cut}")));
        let torn_file = copy_files(&origin, &folder.path().join(format!("torn-{cut}")));
        let synced = synced_for_certain(&origin);
        for appender in &appenders {
            appender.signal("-CONT");
        }

        let copy = open_copy(&file).await;
        no_append_is_there_by_half(&copy).await;
        let whole = Table::read(&copy).await.unwrap();
        assert_eq!(whole.judge_acknowledged(&acknowledged), Findings::default(), "cut {cut}");
        // The next append finds its place.
        copy.append(&stream("after-1"), ExpectedVersion::NoStream, vec![event(1)]).await.unwrap();
        copy.close().await;

        // A disk that lost the last writes, one of them by half: what is left is a beginning, and whole.
        let log = OpenOptions::new().write(true).open(torn_file.with_extension("db-wal")).unwrap();
        let length = log.metadata().unwrap().len();
        log.set_len(synced + random.below(length + 1 - synced)).unwrap();
        let torn = open_copy(&torn_file).await;
        no_append_is_there_by_half(&torn).await;
        assert!(Table::read(&torn).await.unwrap().is_beginning_of(&whole), "cut {cut}");
        torn.close().await;
    }
}

/// Appends to two streams of its own at once until told to stop; answers what was acknowledged.
async fn append_pairs(store: Store, number: usize, stop: watch::Receiver<bool>) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    while !*stop.borrow() {
        let events = || (0..3).map(event).collect::<Vec<_>>();
        let appends: Vec<Append> = ["a", "b"]
            .into_iter()
            .map(|name| Append {
                stream: stream(&format!("{name}-{number}")),
                expected: ExpectedVersion::Any,
                events: events(),
            })
            .collect();
        let last: Vec<_> = appends.iter().map(|append| append.events[2].id).collect();
        let done = async {
            let mut tx = store.begin().await.ok()?;
            let appended = store.append_all(&mut tx, appends).await.ok()?;
            tx.commit().await.ok()?;
            Some(appended)
        };
        let Some(appended) = done.await else {
            // The server is down: whoever asks again at once only heats the machine.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        acknowledged.extend(
            appended.iter().zip(last).map(|(one, id)| Acknowledged { position: one.position.unwrap(), id }),
        );
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_what_is_acknowledged_survives_crashes_of_the_server() {
    let Some(mut cluster) = own_postgres_or_left_out("s08_what_is_acknowledged_survives_crashes") else {
        return;
    };
    let mut random = Random::new();
    let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
    let store = database.store().await;
    for crash in 0..CRASHES {
        let (stop, stopped) = watch::channel(false);
        let mut appending = JoinSet::new();
        for number in 0..4 {
            appending.spawn(append_pairs(store.clone(), number, stopped.clone()));
        }
        let pause = Duration::from_micros(50_000 + random.below(200_000));
        let restarted = tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            cluster.restart_immediate().map(|()| cluster)
        });
        cluster = restarted.await.unwrap().unwrap();
        stop.send_replace(true);
        let acknowledged = appending.join_all().await.concat();

        let reader = database.open().await;
        no_append_is_there_by_half(&reader).await;
        let table = Table::read(&reader).await.unwrap();
        assert!(!acknowledged.is_empty(), "crash {crash} came after some appends");
        assert_eq!(table.judge_acknowledged(&acknowledged), Findings::default(), "crash {crash}");
        reader.close().await;
    }
}
