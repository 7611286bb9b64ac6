//! Catching up: a log of 200,000 events through the engine, with a handler that counts and with the inbox
//! projector, beside the same statements by hand.
//!
//! By hand means, for each 1,000 events: read a page by position, decode it, open a transaction, move a
//! checkpoint by compare-and-set, commit; and for the inbox: parse the payloads, fold, one bulk insert and
//! one bulk delete in between. The engine does all of that, and besides loads and claims its row, proves that
//! it passed no hole, and keeps its limits of time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use notification_subscribers::{InboxProjector, UserHasAcknowledgedNotification, UserWasNotified};
use store::{DatabaseKind, DomainEvent, Event, ExpectedVersion, NewEvent, Store, StreamName, Timestamp};
use subscription_engine::{Context, Criteria, Definition, Engine, Outcome, Registry, Subscriber};
use uuid::Uuid;

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Contender, Done, Line, Plan, print_table};

/// Events in the log: a multiple of a thousand.
const EVENTS: u32 = 200_000;
/// Events of one page, for both.
const PAGE: i64 = 1_000;

/// Which handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Count,
    Inbox,
}

/// Measures both handlers on both databases and prints the table.
pub(crate) async fn measure(plan: &Plan) -> Result<(), BoxError> {
    let mut lines = Vec::new();
    for bench in Bench::both().await? {
        lines.extend(on(plan, bench).await?);
    }
    print_table("Herald ÷ this", &lines);
    Ok(())
}

async fn on(plan: &Plan, bench: Bench) -> Result<Vec<Line>, BoxError> {
    let store = bench.store().await?;
    seed(&store, EVENTS).await?;
    let lines = compare(plan, &bench, &store, EVENTS).await?;
    store.close().await;
    bench.clean_up().await?;
    Ok(lines)
}

/// Both handlers on a log that was seeded with so many events; one call is one catch-up of the whole log.
pub(crate) async fn compare(
    plan: &Plan,
    bench: &Bench,
    store: &Store,
    events: u32,
) -> Result<Vec<Line>, BoxError> {
    let mut lines = Vec::new();
    for (handler, what) in
        [(Handler::Count, "a handler that counts"), (Handler::Inbox, "the inbox projector")]
    {
        let by_hand = Contender::new("by hand", [ByHand { store: store.clone(), handler, events }]);
        let herald = Contender::new("Herald", [Herald::new(store, handler, events)?]);
        lines.extend(plan.of_whole_runs().compare(bench.name(), what, vec![by_hand, herald]).await?);
    }
    Ok(lines)
}

/// Fills an empty log with so many thousands of events: two of three notify, the third acknowledges the one before it.
pub(crate) async fn seed(store: &Store, events: u32) -> Result<(), BoxError> {
    let timestamp = Timestamp::from_micros(1_767_225_600_000_000);
    for batch in 0..events / 1_000 {
        let user_id = format!("user{batch}");
        let mut events = Vec::with_capacity(1_000);
        for number in batch * 1_000..(batch + 1) * 1_000 {
            let user_id = user_id.clone();
            events.push(if number % 3 == 2 {
                let notification_id = notification(number - 1);
                NewEvent::of(&UserHasAcknowledgedNotification { user_id, notification_id })?
            } else {
                let message = "The quick brown fox jumps over the lazy dog".to_owned();
                NewEvent::of(&UserWasNotified {
                    user_id,
                    notification_id: notification(number),
                    message,
                    timestamp,
                })?
            });
        }
        let stream = StreamName::new(format!("user-{user_id}"))?;
        store.append(&stream, ExpectedVersion::NoStream, events).await?;
    }
    Ok(())
}

fn notification(number: u32) -> String {
    format!("fdf70c75-daa5-46d5-8cae-{number:012}")
}

/// Through the engine: set up, boot to the head, remove.
struct Herald {
    engine: Engine,
    id: &'static str,
    events: u32,
}

impl Herald {
    fn new(store: &Store, handler: Handler, events: u32) -> Result<Self, BoxError> {
        let (id, subscriber): (_, Arc<dyn Subscriber>) = match handler {
            Handler::Count => ("counter", Arc::new(Counter::default())),
            Handler::Inbox => ("inbox_1", Arc::new(InboxProjector)),
        };
        let engine = Engine::new(store.clone(), Registry::new([subscriber])?, "bench");
        Ok(Self { engine, id, events })
    }
}

#[async_trait]
impl Caller for Herald {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let this = Criteria::id(self.id);
        self.engine.set_up(&this, false).await?;
        let report = self.engine.boot(&this, None).await?;
        let all = u64::from(self.events);
        assert!(
            matches!(report.as_slice(), [(_, Outcome::CaughtUp { events })] if *events == all),
            "every event counts: {report:?}"
        );
        self.engine.remove(&this, "measured").await?;
        Ok(Done::events(self.events as usize))
    }
}

/// Counts what it gets and writes nothing.
#[derive(Debug, Default)]
struct Counter(AtomicUsize);

#[async_trait]
impl Subscriber for Counter {
    fn definition(&self) -> Definition {
        Definition::projector("counter")
    }

    async fn handle(&self, events: &[Event], _: &mut Context<'_>) -> Result<(), BoxError> {
        self.0.fetch_add(events.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// The same by hand, through the same driver.
struct ByHand {
    store: Store,
    handler: Handler,
    events: u32,
}

/// A row as the log has it: everything that a handler may ask for is decoded.
#[derive(sqlx::FromRow)]
struct Row {
    position: i64,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    stream: String,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    version: i64,
    r#type: String,
    payload: String,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    metadata: String,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    id: Uuid,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    correlation_id: Option<String>,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    causation_id: Option<Uuid>,
    #[expect(dead_code, reason = "decoding it is part of reading a page")]
    recorded_at: Timestamp,
}

impl ByHand {
    async fn prepare(&self) -> Result<(), BoxError> {
        for sql in [
            "DROP TABLE IF EXISTS checkpoint",
            "CREATE TABLE checkpoint (name TEXT PRIMARY KEY, position BIGINT NOT NULL)",
            "INSERT INTO checkpoint (name, position) VALUES ('by hand', 0)",
            "DROP TABLE IF EXISTS inbox_by_hand",
            "CREATE TABLE inbox_by_hand (
                 notification_id TEXT NOT NULL, user_id TEXT NOT NULL, message TEXT NOT NULL,
                 timestamp TIMESTAMPTZ NOT NULL, PRIMARY KEY (notification_id, user_id))",
            "CREATE INDEX inbox_by_hand_of ON inbox_by_hand (user_id, timestamp)",
        ] {
            self.store.database().execute(sql, ()).await?;
        }
        Ok(())
    }

    async fn page(&self, after: i64) -> Result<Vec<Row>, BoxError> {
        let sql = match self.store.database().kind() {
            DatabaseKind::Sqlite => {
                "SELECT position, stream, version, type, payload, metadata, id, correlation_id, causation_id, recorded_at
                   FROM herald_events WHERE position > $1 ORDER BY position LIMIT $2"
            }
            DatabaseKind::Postgres => {
                "SELECT position, stream, version, type, payload, metadata, id, correlation_id,
                        causation_id, recorded_at
                   FROM herald_events WHERE position > $1 ORDER BY position LIMIT $2"
            }
        };
        Ok(self.store.database().fetch_all(sql, (after, PAGE)).await?)
    }
}

#[async_trait]
impl Caller for ByHand {
    async fn call(&mut self) -> Result<Done, BoxError> {
        self.prepare().await?;
        let (mut position, mut count) = (0, 0_usize);
        loop {
            let rows = self.page(position).await?;
            let Some(last) = rows.last().map(|row| row.position) else { break };
            let mut tx = self.store.begin().await?;
            if self.handler == Handler::Inbox {
                let (pending, acknowledged) = fold(&rows)?;
                tx.execute_many(
                    "INSERT INTO inbox_by_hand (notification_id, user_id, message, timestamp) VALUES {rows}
                     ON CONFLICT (notification_id, user_id) DO NOTHING",
                    pending,
                )
                .await?;
                tx.execute_many(
                    "DELETE FROM inbox_by_hand WHERE (notification_id, user_id) IN (VALUES {rows})",
                    acknowledged,
                )
                .await?;
            }
            let sql = "UPDATE checkpoint SET position = $1 WHERE name = 'by hand' AND position = $2";
            assert_eq!(tx.execute(sql, (last, position)).await?, 1);
            tx.commit().await?;
            position = last;
            count += rows.len();
        }
        assert_eq!(u32::try_from(count), Ok(self.events), "every event counts");
        Ok(Done::events(count))
    }
}

type Pending = (String, String, String, Timestamp);
type Acknowledged = (String, String);

fn fold(rows: &[Row]) -> Result<(Vec<Pending>, Vec<Acknowledged>), BoxError> {
    let mut pending = BTreeMap::new();
    let mut acknowledged = Vec::new();
    for row in rows {
        if row.r#type == UserWasNotified::TYPE {
            let event: UserWasNotified = serde_json::from_str(&row.payload)?;
            pending.insert((event.notification_id, event.user_id), (event.message, event.timestamp));
        } else {
            let event: UserHasAcknowledgedNotification = serde_json::from_str(&row.payload)?;
            let key = (event.notification_id, event.user_id);
            pending.remove(&key);
            acknowledged.push(key);
        }
    }
    let pending = pending.into_iter().map(|((id, user), (message, at))| (id, user, message, at)).collect();
    Ok((pending, acknowledged))
}
