//! Several subscriptions that boot at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use store::{Event, Hook, Hooks, Reading, Store};
use subscription_engine::{
    BoxError as HandlerError, Context, Criteria, Definition, Engine, Registry, Subscriber, Worker,
};
use tokio::sync::{oneshot, watch};

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Contender, Done, Line, Plan};

/// How many; the last number is compared with the others.
const SUBSCRIPTIONS: [usize; 3] = [1, 5, 20];

/// The times, and a line for each about how often the log was read.
pub(super) async fn compare(
    plan: &Plan,
    bench: &Bench,
    store: &Store,
    events: u32,
) -> Result<(Vec<Line>, Vec<String>), BoxError> {
    let (mut contenders, mut reads) = (Vec::new(), Vec::new());
    for count in SUBSCRIPTIONS {
        let read = Reads::default();
        let store = store.clone().with_hooks(Hooks::new().with(0, read.clone()));
        let group = Group::new(&store, count)?;
        contenders.push(Contender::new(count.to_string(), [Together { group, events: events as usize }]));
        reads.push((count, read));
    }
    let lines = plan.of_whole_runs().compare(bench.name(), "booting together", contenders).await?;
    let runs = plan.of_whole_runs().runs();
    let line = |(count, read): (usize, Reads)| {
        let times = f64::from(u32::try_from(read.0.load(Ordering::Relaxed) / runs).unwrap_or(u32::MAX));
        format!("| {} | {count} | {:.2} |", bench.name(), times / f64::from(events))
    };
    let reads = reads.into_iter().map(line).collect();
    Ok((lines, reads))
}

/// Counts events that are read.
#[derive(Clone, Default)]
struct Reads(Arc<AtomicUsize>);

impl Hook for Reads {
    fn name(&self) -> &'static str {
        "reads"
    }

    fn after_read(&self, _: &Reading<'_>, events: &[Event]) {
        self.0.fetch_add(events.len(), Ordering::Relaxed);
    }
}

/// Subscriptions that count what they get, together.
pub(super) struct Group {
    pub(super) engine: Engine,
    count: usize,
    handled: watch::Receiver<usize>,
}

impl Group {
    pub(super) fn new(store: &Store, count: usize) -> Result<Self, BoxError> {
        let handled = Arc::new(watch::Sender::new(0));
        let receiver = handled.subscribe();
        let counters = (0..count).map(|number| {
            let id = format!("counter_{number}_of_{count}");
            Arc::new(Counter { id, handled: Arc::clone(&handled) }) as Arc<dyn Subscriber>
        });
        let engine = Engine::new(store.clone(), Registry::new(counters)?, "bench");
        Ok(Self { engine, count, handled: receiver })
    }

    /// Has a worker move all of them over so many events, from the beginning.
    pub(super) async fn boot(&mut self, events: usize) -> Result<(), BoxError> {
        let goal = *self.handled.borrow() + events * self.count;
        self.engine.set_up(&Criteria::all(), false).await?;
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move {
            let _ = stopped.await;
        };
        let worker = Worker::new(self.engine.clone(), Criteria::all(), "bench");
        let worker = tokio::spawn(worker.run(stopped, || {}));
        self.handled.wait_for(|handled| *handled >= goal).await?;
        let _ = stop.send(());
        // It finishes the units under way.
        Ok(worker.await??)
    }
}

struct Counter {
    id: String,
    handled: Arc<watch::Sender<usize>>,
}

#[async_trait]
impl Subscriber for Counter {
    fn definition(&self) -> Definition {
        Definition::projector(&self.id)
    }

    async fn handle(&self, events: &[Event], _: &mut Context<'_>) -> Result<(), HandlerError> {
        self.handled.send_modify(|handled| *handled += events.len());
        Ok(())
    }
}

/// Boots them, and removes them afterwards.
struct Together {
    group: Group,
    events: usize,
}

#[async_trait]
impl Caller for Together {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let start = tokio::time::Instant::now();
        self.group.boot(self.events).await?;
        let took = start.elapsed();
        self.group.engine.remove(&Criteria::all(), "measured").await?;
        Ok(Done::events_after(self.events, took))
    }
}
