//! Random interleavings of appends, commits, rollbacks, prepared transactions and small pages (S-09): whatever the
//! order in which transactions end, readers of every page size deliver each event once and in order.

use std::time::Duration;

use store::{Append, DatabaseKind, ExpectedVersion, Filter, Json, NewEvent, Position, Store, Tx};
use testkit::{Acknowledged, Delivered, Findings, Prepared, Random, Table, WANTED, Wanted, both};
use tokio::time::timeout;

use crate::given::stream;

const SEEDS: u64 = 100;
const STEPS: u64 = 30;
/// Transactions that may be open at the same time; SQLite has one writer.
const OPEN: u64 = 5;
/// A read that waits for an open transaction, which no other task will end, is given up after this time.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(4);

/// A transaction that has appended.
enum Open {
    Running(Tx),
    Prepared(Prepared),
}

/// One story of appenders that take turns.
struct Script {
    store: Store,
    random: Random,
    open: Vec<(u64, Open, Vec<Acknowledged>)>,
    acknowledged: Vec<Acknowledged>,
}

/// A reader with a page size of its own.
struct Reader {
    filter: Filter,
    wanted: Wanted,
    page: usize,
    after: Position,
    delivered: Vec<Delivered>,
}

both! {
    async fn s09_a_hundred_random_interleavings(database: TestDatabase) {
        let first = Random::seed();
        let store = database.store().await;
        let mut begin = Position::START;
        let mut reading = database.open().await;
        for number in 0..SEEDS {
            let seed = first.wrapping_add(number);
            if number % 10 == 0 {
                // In a fresh handle nobody knows yet what is settled.
                reading.close().await;
                reading = database.open().await;
            }
            let (findings, end) = run(Script::new(store.clone(), seed), &reading, begin).await;
            assert_eq!(findings, Findings::default(), "HERALD_TEST_SEED={seed}");
            begin = end;
        }
        assert!(begin > Position(300), "there was something to read: {begin}");
    }
}

/// Runs one script beside three readers; answers what was wrong, and where the log ends now.
async fn run(mut script: Script, reading: &Store, begin: Position) -> (Findings, Position) {
    let mut readers: Vec<Reader> = Vec::new();
    for _ in 0..2 {
        let page = 1 + script.below(4);
        readers.push(Reader::new(Filter::all(), Wanted::All, page, begin));
    }
    let page = 1 + script.below(4);
    readers.push(Reader::new(Filter::all().types([WANTED]), Wanted::OfType, page, begin));
    for _ in 0..STEPS {
        match script.below(3) {
            0 => script.begin().await,
            1 => script.end().await,
            _ => {
                let reader = script.below(readers.len());
                let _ = timeout(GIVEN_UP_AFTER, readers[reader].read(reading)).await;
            }
        }
    }
    while !script.open.is_empty() {
        script.end().await;
    }
    let table = Table::read_after(reading, begin).await.unwrap();
    let mut findings = table.judge_acknowledged(&script.acknowledged);
    for reader in &mut readers {
        while reader.read(reading).await {}
        findings += table.judge(reader.wanted, &reader.delivered);
    }
    (findings, table.head().max(begin))
}

impl Script {
    fn new(store: Store, seed: u64) -> Self {
        Self { store, random: Random::from_seed(seed), open: Vec::new(), acknowledged: Vec::new() }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap()
    }

    fn is_postgres(&self) -> bool {
        self.store.database().kind() == DatabaseKind::Postgres
    }

    /// Begins a transaction that appends to a stream of nobody else, so that it never waits.
    async fn begin(&mut self) {
        let at_most = if self.is_postgres() { OPEN } else { 1 };
        let Some(slot) = (0..at_most).find(|slot| self.open.iter().all(|(taken, ..)| taken != slot)) else {
            return;
        };
        let mut events = Vec::new();
        for _ in 0..=self.below(3) {
            let event_type = if self.below(2) == 0 { WANTED } else { "Acme.Test:Happened" };
            events.push(NewEvent::new(event_type, Json::empty_object()));
        }
        let last = events[events.len() - 1].id;
        let append =
            Append { stream: stream(&format!("slot-{slot}")), expected: ExpectedVersion::Any, events };
        let mut tx = self.store.begin().await.unwrap();
        let appended = self.store.append_all(&mut tx, vec![append]).await.unwrap();
        let kept =
            appended.iter().map(|appended| Acknowledged { position: appended.position.unwrap(), id: last });
        self.open.push((slot, Open::Running(tx), kept.collect()));
    }

    /// Takes one of the open transactions a step further: commits it, rolls it back, or prepares it.
    async fn end(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let which = self.below(self.open.len());
        let (slot, open, kept) = self.open.swap_remove(which);
        let commits = self.below(2) == 0;
        match open {
            Open::Running(tx) if self.is_postgres() && self.below(3) == 0 => {
                self.open.push((slot, Open::Prepared(Prepared::from(tx).await), kept));
                return;
            }
            Open::Running(tx) if commits => tx.commit().await.unwrap(),
            Open::Running(tx) => tx.rollback().await,
            Open::Prepared(prepared) if commits => prepared.end(&self.store, "COMMIT").await,
            Open::Prepared(prepared) => prepared.end(&self.store, "ROLLBACK").await,
        }
        if commits {
            self.acknowledged.extend(kept);
        }
    }
}

impl Reader {
    fn new(filter: Filter, wanted: Wanted, page: usize, after: Position) -> Self {
        Self { filter, wanted, page, after, delivered: Vec::new() }
    }

    /// Reads a page; says whether that led on.
    async fn read(&mut self, store: &Store) -> bool {
        let page = store.read(&self.filter, self.after, self.page).await.unwrap();
        let leads_on = page.scanned_to > self.after;
        self.after = page.scanned_to;
        self.delivered.extend(page.events.into_iter().map(Delivered::from));
        leads_on
    }
}
