//! The effect ledger with 100,000 pending effects: planning them, sending some of them, and whether one that is free
//! to go waits behind all those that are not.
//!
//! By hand means for planning: read a page of events, insert its rows into the same table, commit; and for sending:
//! for each effect one statement that says it was begun and one that says it is done, each a transaction of its own,
//! by as many tasks at once as Herald sends. Herald besides claims, paces, keeps a history, and appends both to the
//! log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use store::{Event, ExpectedVersion, Filter, Json, NewEvent, Position, Store, StreamName, Timestamp};
use subscription_engine::{
    Answer, BoxError as HandlerError, Context, Criteria, Definition, Delivery, Effect, Engine, NewEffect,
    Registry, RunMode, Settings, Subscriber, Worker,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Contender, Done, Line, Plan, print_table};

/// Effects that are pending when sending begins.
const EFFECTS: u32 = 100_000;
/// Destinations that they are for.
const DESTINATIONS: u32 = 1_000;
/// Effects that one call sends.
const SENT: u32 = 1_000;
/// Rows of one transaction, for both.
const PAGE: usize = 1_000;

/// Measures both databases and prints the table.
pub(crate) async fn measure(plan: &Plan) -> Result<(), BoxError> {
    let mut lines = Vec::new();
    for bench in Bench::both().await? {
        lines.extend(on(&plan.of_whole_runs(), bench).await?);
    }
    println!("(An event is an effect here.)\n");
    print_table("Herald ÷ this", &lines);
    Ok(())
}

async fn on(plan: &Plan, bench: Bench) -> Result<Vec<Line>, BoxError> {
    let store = bench.store().await?;
    seed(&store).await?;
    let counter = Arc::new(Counter::default());
    let engine =
        Engine::new(store.clone(), Registry::new([Arc::new(Planner) as Arc<dyn Subscriber>])?, "bench")
            .with_deliveries([Arc::clone(&counter) as Arc<dyn Delivery>])?;
    let by_hand = Contender::new("by hand", [PlanByHand(store.clone())]);
    let herald = Contender::new("Herald", [PlanWithHerald(engine.clone())]);
    let what = format!("planning {EFFECTS}");
    let mut lines = plan.compare(bench.name(), &what, vec![by_hand, herald]).await?;

    PlanWithHerald(engine.clone()).call().await?;
    let by_hand = Contender::new("by hand", [SendByHand::new(&store).await?]);
    let sending = SendWithHerald { engine: engine.clone(), counter: Arc::clone(&counter) };
    let herald = Contender::new("Herald", [sending]);
    let what = format!("sending {SENT} of {EFFECTS} pending");
    lines.extend(plan.compare(bench.name(), &what, vec![by_hand, herald]).await?);

    overtake(&engine, &counter, bench.name()).await?;
    store.close().await;
    bench.clean_up().await?;
    Ok(lines)
}

async fn seed(store: &Store) -> Result<(), BoxError> {
    let stream = StreamName::new("asked-1")?;
    for _ in 0..EFFECTS / 1_000 {
        let events = vec![NewEvent::new("Asked", Json::empty_object()); 1_000];
        let events = events.into_iter().map(|event| NewEvent { id: Uuid::now_v7(), ..event }).collect();
        store.append(&stream, ExpectedVersion::Any, events).await?;
    }
    Ok(())
}

fn destination(position: Position) -> String {
    format!("user{}@example.com", position.0 % i64::from(DESTINATIONS))
}

const BODY: &str = r#"{"subject":"Hello","text":"The quick brown fox jumps over the lazy dog"}"#;

/// Plans a mail for each event.
struct Planner;

#[async_trait]
impl Subscriber for Planner {
    fn definition(&self) -> Definition {
        Definition::plain("planner", RunMode::FromBeginning).on(["Asked"])
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), HandlerError> {
        for event in events {
            let new = NewEffect::new("mail", destination(event.position), BODY);
            context.because_of(event).plan_effect(new)?;
        }
        Ok(())
    }
}

/// Sends nothing and counts.
#[derive(Default)]
struct Counter {
    sent: watch::Sender<u32>,
}

#[async_trait]
impl Delivery for Counter {
    fn kind(&self) -> &str {
        "mail"
    }

    async fn send(&self, _: &Effect) -> Answer {
        self.sent.send_modify(|sent| *sent += 1);
        Answer::Done { detail: String::new() }
    }
}

/// Sets the planner up and boots it to the head, from an empty ledger.
struct PlanWithHerald(Engine);

#[async_trait]
impl Caller for PlanWithHerald {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let this = Criteria::id("planner");
        self.0.remove(&this, "measured").await?;
        empty(self.0.store()).await?;
        self.0.set_up(&this, false).await?;
        self.0.boot(&this, None).await?;
        Ok(Done::events(EFFECTS as usize))
    }
}

async fn empty(store: &Store) -> Result<(), BoxError> {
    for sql in
        ["DELETE FROM herald_effects", "DELETE FROM herald_effect_lanes", "DELETE FROM herald_effect_history"]
    {
        store.database().execute(sql, ()).await?;
    }
    Ok(())
}

/// The same rows by hand.
struct PlanByHand(Store);

#[async_trait]
impl Caller for PlanByHand {
    async fn call(&mut self) -> Result<Done, BoxError> {
        empty(&self.0).await?;
        let mut after = Position::START;
        let filter = Filter::all().types(["Asked"]);
        loop {
            let page = self.0.read(&filter, after, PAGE).await?;
            if page.events.is_empty() {
                return Ok(Done::events(EFFECTS as usize));
            }
            let row = |event: &Event| {
                let id = Uuid::now_v7();
                let at = event.recorded_at;
                let to = destination(event.position);
                (id, "by hand", "mail", to, id.to_string(), BODY, event.id, event.position, at, at, at)
            };
            let rows = page.events.iter().map(row).collect();
            let mut tx = self.0.begin().await?;
            tx.execute_many(
                "INSERT INTO herald_effects (id, subscription_id, kind, destination, receiver_key, body, cause_id,
                                             cause_position, caused_at, due_at, changed_at)
                 VALUES {rows}",
                rows,
            )
            .await?;
            tx.commit().await?;
            after = page.scanned_to;
        }
    }
}

/// A worker that is stopped when it has sent so many.
struct SendWithHerald {
    engine: Engine,
    counter: Arc<Counter>,
}

#[async_trait]
impl Caller for SendWithHerald {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let mut sent = self.counter.sent.subscribe();
        let goal = *sent.borrow() + SENT;
        let enough = async move {
            // The sender lives as long as the delivery.
            let _ = sent.wait_for(|sent| *sent >= goal).await;
        };
        Worker::new(self.engine.clone(), Criteria::all(), "bench").run(enough, || {}).await?;
        Ok(Done::events(SENT as usize))
    }
}

/// Two statements for each effect, by as many tasks.
struct SendByHand {
    store: Store,
    next: Arc<AtomicU32>,
}

impl SendByHand {
    async fn new(store: &Store) -> Result<Self, BoxError> {
        let create = "CREATE TABLE by_hand (number BIGINT PRIMARY KEY, state TEXT NOT NULL, at TIMESTAMPTZ)";
        store.database().execute(create, ()).await?;
        for page in 0..i64::from(EFFECTS) / 1_000 {
            let rows = (page * 1_000..(page + 1) * 1_000).map(|number| (number, "pending")).collect();
            let mut tx = store.begin().await?;
            tx.execute_many("INSERT INTO by_hand (number, state) VALUES {rows}", rows).await?;
            tx.commit().await?;
        }
        Ok(Self { store: store.clone(), next: Arc::new(AtomicU32::new(0)) })
    }
}

#[async_trait]
impl Caller for SendByHand {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let goal = self.next.load(Ordering::Relaxed) + SENT;
        let mut tasks = JoinSet::new();
        for _ in 0..Settings::default().effects_at_once {
            let (store, next) = (self.store.clone(), Arc::clone(&self.next));
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= goal {
                        return Ok::<_, BoxError>(());
                    }
                    let number = i64::from(number % EFFECTS);
                    for state in ["sending", "done"] {
                        let now = Timestamp::from_micros(number);
                        let sql = "UPDATE by_hand SET state = $2, at = $3 WHERE number = $1";
                        store.database().execute(sql, (number, state, now)).await?;
                    }
                }
            });
        }
        tasks.join_all().await.into_iter().collect::<Result<(), _>>()?;
        self.next.store(goal, Ordering::Relaxed);
        Ok(Done::events(SENT as usize))
    }
}

/// All pending effects are for one destination that wants to be left alone: how long one for another takes.
async fn overtake(engine: &Engine, counter: &Arc<Counter>, database: &str) -> Result<(), BoxError> {
    let store = engine.store();
    let later = store.clock().now().await?.plus(std::time::Duration::from_secs(3_600));
    for sql in [
        "DELETE FROM herald_effect_lanes",
        "UPDATE herald_effects SET destination = 'busy' WHERE state = 'pending'",
        "INSERT INTO herald_effect_lanes (subscription_id, kind, destination, next_at)
         SELECT 'planner', 'mail', 'busy', MIN(due_at) FROM herald_effects WHERE state = 'pending'",
    ] {
        store.database().execute(sql, ()).await?;
    }
    let sql = "INSERT INTO herald_effect_destinations (kind, destination, paced_at, not_before) VALUES ('mail', 'busy', $1, $1)";
    store.database().execute(sql, (later,)).await?;
    let mut sent = counter.sent.subscribe();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = Worker::new(engine.clone(), Criteria::all(), "bench");
    let stopped = async move {
        let _ = stopped.await;
    };
    let worker = tokio::spawn(worker.run(stopped, || {}));
    let mut took = Vec::new();
    for _ in 0..20 {
        let before = *sent.borrow_and_update();
        let start = Instant::now();
        let event = NewEvent::new("Asked", Json::empty_object());
        store.append(&StreamName::new("asked-1")?, ExpectedVersion::Any, vec![event]).await?;
        sent.wait_for(|sent| *sent > before).await?;
        took.push(start.elapsed());
    }
    let _ = stop.send(());
    worker.await??;
    took.sort();
    eprintln!(
        "{database}: behind {EFFECTS} that have to wait, from the append to the sending: median {:.1} ms, at most {:.1} ms",
        took[took.len() / 2].as_secs_f64() * 1e3,
        took[took.len() - 1].as_secs_f64() * 1e3
    );
    Ok(())
}
