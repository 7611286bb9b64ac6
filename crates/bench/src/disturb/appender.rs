//! One appender: appends under its habits until it is told to stop, and never leaves an outcome unknown.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::Executor;
use store::{Append, AppendError, Appended, Database, ExpectedVersion, Json, NewEvent, Store, StreamName};
use testkit::{Acknowledged, Random, WANTED};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Record;
use super::disturbance::{Disturbance, Way};

/// The pause before a failed call is repeated: long enough for a server that comes up not to be flooded.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(5);
/// Streams for each appender; all of them are everybody's, so that appenders do meet.
const STREAMS_OF_EACH: usize = 4;

/// What an appender is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    pub(super) number: usize,
    /// How many appenders there are.
    pub(super) of: usize,
    pub(super) way: Way,
    pub(super) disturbance: Disturbance,
    pub(super) think: Duration,
}

/// The last event of an acknowledged append.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) event: Acknowledged,
    /// When the call came back, if that is known here.
    pub(super) at: Option<Instant>,
}

/// One appender.
pub(super) struct Appender {
    store: Store,
    habits: Habits,
    record: Record,
    random: Random,
}

impl Appender {
    pub(super) fn new(store: Store, habits: Habits, record: Record) -> Self {
        let random = Random::from_seed(habits.number as u64);
        Self { store, habits, record, random }
    }

    /// Appends until told to stop.
    pub(super) async fn run(mut self, stop: watch::Receiver<bool>) {
        let mut number: u64 = 0;
        while !*stop.borrow() {
            let appends = self.next();
            number += 1;
            match self.habits.disturbance {
                Disturbance::Rollbacks if number.is_multiple_of(10) => self.roll_back(appends).await,
                Disturbance::Savepoints if number.is_multiple_of(3) => self.think_twice(appends).await,
                _ => self.append(appends).await,
            }
            if self.habits.disturbance == Disturbance::SharedSessions {
                self.discard_all().await;
            }
            tokio::time::sleep(self.habits.think).await;
        }
    }

    /// One to three events, for one stream or several.
    fn next(&mut self) -> Vec<Append> {
        let streams = (STREAMS_OF_EACH * self.habits.of) as u64;
        let count = if self.habits.disturbance == Disturbance::SeveralStreams { 3 } else { 1 };
        let names: BTreeSet<u64> = (0..count).map(|_| self.random.below(streams)).collect();
        names.into_iter().map(|name| some_append(&format!("s-{name}"), &mut self.random)).collect()
    }

    async fn append(&mut self, appends: Vec<Append>) {
        append(&self.store, self.habits.way, appends, &self.record).await;
    }

    async fn roll_back(&mut self, appends: Vec<Append>) {
        let ids = ids(&appends);
        let done = async {
            let mut tx = self.store.begin().await?;
            self.store.append_all(&mut tx, appends).await?;
            tx.rollback().await;
            Ok::<_, AppendError>(())
        };
        match done.await {
            Ok(()) => self.record.note(|noted| noted.void.extend(ids)),
            Err(error) => self.record.error(&error),
        }
    }

    /// Appends in a savepoint, goes back, and appends the same events for good under fresh ids.
    async fn think_twice(&mut self, appends: Vec<Append>) {
        let void = ids(&appends);
        let mut again = appends.clone();
        for event in again.iter_mut().flat_map(|append| &mut append.events) {
            event.id = uuid::Uuid::now_v7();
        }
        let done = async {
            let mut tx = self.store.begin().await?;
            let savepoint = tx.savepoint().await?;
            self.store.append_all(&mut tx, appends).await?;
            tx.roll_back_to(savepoint).await?;
            let appended = self.store.append_all(&mut tx, again.clone()).await?;
            tx.commit().await?;
            Ok::<_, AppendError>(appended)
        };
        match done.await {
            Ok(appended) => {
                self.record.note(|noted| noted.void.extend(void));
                acknowledge(&self.record, &again, &appended);
            }
            Err(error) => self.record.error(&error),
        }
    }

    /// What a pooler does with a session before it gives it to the next client.
    async fn discard_all(&self) {
        let Database::Postgres { pool, .. } = self.store.database() else { return };
        let discarded = async { pool.acquire().await?.execute(sqlx::raw_sql("DISCARD ALL")).await.map(drop) };
        if let Err(error) = discarded.await {
            self.record.error(&error);
        }
    }
}

/// Appends, and repeats the call with the same ids until its outcome is known.
pub(super) async fn append(store: &Store, way: Way, appends: Vec<Append>, record: &Record) {
    loop {
        match try_append(store, way, &appends).await {
            Ok(appended) => return acknowledge(record, &appends, &appended),
            Err(error) => {
                record.error(&error);
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

async fn try_append(store: &Store, way: Way, appends: &[Append]) -> Result<Vec<Appended>, AppendError> {
    if let (Way::Append, [append]) = (way, appends) {
        return Ok(vec![store.append(&append.stream, append.expected, append.events.clone()).await?]);
    }
    let mut tx = store.begin().await?;
    match store.append_all(&mut tx, appends.to_vec()).await {
        Ok(appended) => {
            tx.commit().await?;
            Ok(appended)
        }
        Err(error) => {
            tx.rollback().await;
            Err(error)
        }
    }
}

/// Notes that the log said it has these.
pub(super) fn acknowledge(record: &Record, appends: &[Append], appended: &[Appended]) {
    let at = Some(Instant::now());
    let kept = appends.iter().zip(appended).filter_map(|(append, appended)| {
        let last = append.events.last()?;
        let event = Acknowledged { position: appended.position?, id: last.id };
        Some(Kept { event, at })
    });
    record.note(|noted| {
        noted.acknowledged.extend(kept);
        noted.appends += 1;
    });
}

/// An append of one to three events, half of them of the type that a reader wants.
pub(super) fn some_append(stream: &str, random: &mut Random) -> Append {
    let events = (0..=random.below(3)).map(|_| {
        let event_type = if random.below(2) == 0 { WANTED } else { "Acme.Test:Happened" };
        NewEvent::new(event_type, Json::empty_object())
    });
    Append {
        stream: StreamName::new(stream).expect("a good name"),
        expected: ExpectedVersion::Any,
        events: events.collect(),
    }
}

/// The ids of all events.
pub(super) fn ids(appends: &[Append]) -> Vec<uuid::Uuid> {
    appends.iter().flat_map(|append| &append.events).map(|event| event.id).collect()
}
