//! Whether subscriptions that get on badly delay others (E-23, E-25): one sleeps in its handler, one panics, one fails at
//! each event, and two block their threads. Measured is the time from an append until the others handle the event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use store::{Event, ExpectedVersion, Json, NewEvent, Store, StreamName};
use subscription_engine::{
    BoxError as HandlerError, Context, Criteria, Definition, Engine, Registry, Subscriber, Worker,
};
use testkit::{Cluster, ClusterError, Scripted, TestDatabase};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::BoxError;

/// Subscriptions that are to be left in peace.
const GOOD: [&str; 3] = ["good_1", "good_2", "good_3"];
const TABLES: [&str; 3] = ["good_1_seen", "good_2_seen", "good_3_seen"];
/// Whatever is waited for comes sooner, or not at all.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_millis(2);

/// How much.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Events that are appended, one by one.
    #[arg(long, default_value_t = 500)]
    pub events: usize,
}

/// The company that the good ones keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Only each other.
    Good,
    /// Those that get on badly.
    Bad,
}

/// Counts what it handles in a table, and notes how long after its append each event came.
struct Good {
    id: &'static str,
    table: &'static str,
    began: Instant,
    delays: Arc<Mutex<Vec<Duration>>>,
}

#[async_trait]
impl Subscriber for Good {
    fn definition(&self) -> Definition {
        Definition::projector(self.id).with_table("seen", self.table)
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), HandlerError> {
        context.execute("seen", "CREATE TABLE {t} (position BIGINT PRIMARY KEY)", ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), HandlerError> {
        let rows = events.iter().map(|event| (event.position,)).collect();
        context.execute_many("seen", "INSERT INTO {t} (position) VALUES {rows}", rows).await?;
        let now = self.began.elapsed();
        for event in events {
            let appended: u64 = event.payload.to()?;
            let delay = now.saturating_sub(Duration::from_micros(appended));
            self.delays.lock().unwrap_or_else(PoisonError::into_inner).push(delay);
        }
        Ok(())
    }
}

/// Those that get on badly; the two that block their threads do so until they are told to stop.
fn bad(over: &Arc<AtomicBool>) -> Vec<Arc<dyn Subscriber>> {
    let scripted = |id: &str, scripted: fn() -> Result<(), HandlerError>| -> Arc<dyn Subscriber> {
        Arc::new(Scripted::new(Definition::projector(id), move |_, _| Box::pin(async move { scripted() })))
    };
    let sleeping = Scripted::new(Definition::projector("sleeping"), |_, _| Box::pin(std::future::pending()));
    let mut bad = vec![
        Arc::new(sleeping) as Arc<dyn Subscriber>,
        scripted("panicking", || panic!("it always does")),
        scripted("failing", || Err("it always does".into())),
    ];
    for id in ["blocking_1", "blocking_2"] {
        let over = Arc::clone(over);
        let handle = move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(PAUSE);
            }
        };
        bad.push(Arc::new(Scripted::new(Definition::projector(id), move |_, _| {
            handle();
            Box::pin(std::future::ready(Ok(())))
        })));
    }
    bad
}

/// Appends so many events beside a worker, and answers with how long each took to each of the good ones. `meanwhile` is
/// called when all is handled and the bad ones still get on badly.
pub async fn delays(
    database: &TestDatabase,
    company: Company,
    events: usize,
    meanwhile: impl AsyncFnOnce(&Engine),
) -> Result<Vec<Duration>, BoxError> {
    let store = database.store().await;
    let (delays, over, began) = (Arc::default(), Arc::new(AtomicBool::new(false)), Instant::now());
    let mut subscribers: Vec<Arc<dyn Subscriber>> = Vec::new();
    for (id, table) in GOOD.into_iter().zip(TABLES) {
        subscribers.push(Arc::new(Good { id, table, began, delays: Arc::clone(&delays) }));
    }
    if company == Company::Bad {
        subscribers.extend(bad(&over));
    }
    let engine = Engine::new(store.clone(), Registry::new(subscribers)?, "isolation");
    engine.set_up(&Criteria::all(), true).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = Worker::new(engine.clone(), Criteria::all(), "isolation");
    let until_stopped = async {
        let _ = stopped.await;
    };
    let worker = tokio::spawn(worker.run(until_stopped, || ()));
    let appended = append(&store, events, began).await;
    if appended.is_ok() {
        meanwhile(&engine).await;
    }
    over.store(true, Ordering::Relaxed);
    drop(stop);
    // The one that sleeps would be waited for until its time is up.
    worker.abort();
    let _ = worker.await;
    store.close().await;
    appended?;
    let delays = std::mem::take(&mut *delays.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(delays)
}

/// Appends the events, and waits until each of the good ones has handled all of them.
async fn append(store: &Store, events: usize, began: Instant) -> Result<(), BoxError> {
    let stream = StreamName::new("isolation-1")?;
    for _ in 0..events {
        let now = u64::try_from(began.elapsed().as_micros())?;
        let event = NewEvent::new("Isolation.Happened", Json::of(&now)?);
        store.append(&stream, ExpectedVersion::Any, vec![event]).await?;
        sleep(PAUSE).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let sql =
        "SELECT COUNT(*) FROM (SELECT position FROM good_1_seen UNION ALL SELECT position FROM good_2_seen
               UNION ALL SELECT position FROM good_3_seen) AS seen";
    loop {
        let seen: Option<(i64,)> = store.database().fetch_optional(sql, ()).await?;
        if seen.is_some_and(|seen| usize::try_from(seen.0) == Ok(events * GOOD.len())) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(
                format!("{seen:?} of {} were handled within {PATIENCE:?}", events * GOOD.len()).into()
            );
        }
        sleep(LOOK).await;
    }
}

/// Measures on both databases and prints a table.
pub async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    let cluster = match Cluster::start() {
        Ok(cluster) => Some(cluster),
        Err(ClusterError::NoServer(error)) => {
            eprintln!("PostgreSQL is left out: could not {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    println!("| database | beside | p50 ms | p99 ms | max ms |\n|---|---|---:|---:|---:|");
    for (company, beside) in [(Company::Good, "nobody"), (Company::Bad, "five that get on badly")] {
        let sqlite = delays(&TestDatabase::sqlite(), company, arguments.events, async |_| ()).await?;
        print("SQLite", beside, sqlite);
        if let Some(cluster) = &cluster {
            let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
            print("PostgreSQL", beside, delays(&database, company, arguments.events, async |_| ()).await?);
        }
    }
    Ok(())
}

fn print(database: &str, beside: &str, mut delays: Vec<Duration>) {
    delays.sort();
    let at = |percent: usize| {
        let place = (delays.len() * percent / 100).min(delays.len().saturating_sub(1));
        delays.get(place).map_or(0.0, |delay| delay.as_secs_f64() * 1_000.0)
    };
    println!("| {database} | {beside} | {:.2} | {:.2} | {:.2} |", at(50), at(99), at(100));
}
