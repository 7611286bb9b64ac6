//! 100,000 timers that are due at the same minute: firing all of them, and how long an event waits meanwhile.
//!
//! By hand means: look for a page of due rows of the same table, delete them, commit, until none is left. Herald
//! besides gives them their turn and their barrier, hands them to a subscriber, and looks for events in between.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use store::{Event, ExpectedVersion, Json, NewEvent, Position, Store, StreamName, Timestamp};
use subscription_engine::{
    BoxError as HandlerError, Context, Criteria, Definition, Engine, Registry, Subscriber, Timer, Worker,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Contender, Done, Line, Plan, print_table};

/// Timers that are due together.
const TIMERS: usize = 100_000;
/// Rows of one transaction, for both.
const PAGE: usize = 1_000;

/// Measures both databases and prints the table.
pub(crate) async fn measure(plan: &Plan) -> Result<(), BoxError> {
    let mut lines = Vec::new();
    for bench in Bench::both().await? {
        lines.extend(on(&plan.of_whole_runs(), bench).await?);
    }
    println!("(An event is a timer here.)\n");
    print_table("Herald ÷ this", &lines);
    Ok(())
}

async fn on(plan: &Plan, bench: Bench) -> Result<Vec<Line>, BoxError> {
    let store = bench.store().await?;
    let sleeper = Arc::new(Sleeper::default());
    let registry = Registry::new([Arc::clone(&sleeper) as Arc<dyn Subscriber>])?;
    let engine = Engine::new(store.clone(), registry, "bench");
    engine.catch_up(&Criteria::all()).await?;
    let by_hand = Contender::new("by hand", [ByHand(store.clone())]);
    let herald = Contender::new("Herald", [WithHerald(engine.clone())]);
    let lines = plan.compare(bench.name(), &format!("firing {TIMERS}"), vec![by_hand, herald]).await?;
    meanwhile(&engine, &sleeper, bench.name()).await?;
    store.close().await;
    bench.clean_up().await?;
    Ok(lines)
}

/// Does nothing and says how many events it has handled.
#[derive(Default)]
struct Sleeper {
    handled: watch::Sender<usize>,
    rang: watch::Sender<usize>,
}

#[async_trait]
impl Subscriber for Sleeper {
    fn definition(&self) -> Definition {
        Definition::processor("sleeper")
    }

    async fn handle(&self, events: &[Event], _: &mut Context<'_>) -> Result<(), HandlerError> {
        self.handled.send_modify(|handled| *handled += events.len());
        Ok(())
    }

    async fn on_timer(&self, timers: &[Timer], _: &mut Context<'_>) -> Result<(), HandlerError> {
        self.rang.send_modify(|rang| *rang += timers.len());
        Ok(())
    }
}

/// Fills the table with timers that are due.
async fn fill(store: &Store, subscription: &str) -> Result<(), BoxError> {
    let now = store.clock().now().await?;
    for page in 0..TIMERS / PAGE {
        let row = |number: usize| {
            let (key, payload) = (format!("user-{number}"), r#"{"what":"remind"}"#);
            (subscription, key, Uuid::now_v7(), now, payload, Uuid::now_v7(), Position(1), now, now)
        };
        let mut tx = store.begin().await?;
        tx.execute_many(
            "INSERT INTO herald_timers (subscription_id, key, id, due_at, payload, cause_id, cause_position,
                                        caused_at, try_at)
             VALUES {rows}",
            (page * PAGE..(page + 1) * PAGE).map(row).collect(),
        )
        .await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Fires all of them; filling the table is not counted.
struct WithHerald(Engine);

#[async_trait]
impl Caller for WithHerald {
    async fn call(&mut self) -> Result<Done, BoxError> {
        fill(self.0.store(), "sleeper").await?;
        let start = Instant::now();
        self.0.catch_up(&Criteria::all()).await?;
        Ok(Done::events_after(TIMERS, start.elapsed()))
    }
}

/// Deletes them page by page.
struct ByHand(Store);

#[async_trait]
impl Caller for ByHand {
    async fn call(&mut self) -> Result<Done, BoxError> {
        fill(&self.0, "by hand").await?;
        let now: Timestamp = self.0.clock().now().await?;
        let start = Instant::now();
        loop {
            let sql = "SELECT number FROM herald_timers
                        WHERE subscription_id = 'by hand' AND try_at <= $1
                        ORDER BY try_at, number
                        LIMIT 1000";
            let due: Vec<(i64,)> = self.0.database().fetch_all(sql, (now,)).await?;
            if due.is_empty() {
                return Ok(Done::events_after(TIMERS, start.elapsed()));
            }
            let mut tx = self.0.begin().await?;
            tx.execute_many("DELETE FROM herald_timers WHERE number IN (VALUES {rows})", due).await?;
            tx.commit().await?;
        }
    }
}

/// How long an event waits while all of them fire.
async fn meanwhile(engine: &Engine, sleeper: &Sleeper, database: &str) -> Result<(), BoxError> {
    let store = engine.store();
    fill(store, "sleeper").await?;
    let (mut handled, mut rang) = (sleeper.handled.subscribe(), sleeper.rang.subscribe());
    let goal = *rang.borrow() + TIMERS;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let start = Instant::now();
    let worker = tokio::spawn(Worker::new(engine.clone(), Criteria::all(), "bench").run(stopped, || {}));
    let mut took: Vec<Duration> = Vec::new();
    while *rang.borrow_and_update() < goal {
        let before = *handled.borrow_and_update();
        let start = Instant::now();
        let event = NewEvent::new("Asked", Json::empty_object());
        store.append(&StreamName::new("asked-1")?, ExpectedVersion::Any, vec![event]).await?;
        handled.wait_for(|handled| *handled > before).await?;
        took.push(start.elapsed());
    }
    let all = start.elapsed();
    let _ = stop.send(());
    worker.await??;
    took.sort();
    eprintln!(
        "{database}: while {TIMERS} timers fire in {:.1} s, {} events one after the other, from the append until it is \
         handled: median {:.1} ms, at most {:.1} ms",
        all.as_secs_f64(),
        took.len(),
        took.get(took.len() / 2).map_or(0.0, Duration::as_secs_f64) * 1e3,
        took.last().map_or(0.0, Duration::as_secs_f64) * 1e3
    );
    Ok(())
}
