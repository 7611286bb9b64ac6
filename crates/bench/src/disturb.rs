//! Disturbances: appenders and readers of one log while somebody gets in their way, and an oracle that counts
//! afterwards what was lost, doubled, put out of order, or acknowledged and not kept (S-09, S-10).
//!
//! Each cell of the matrix is a log of its own, so many appenders, one disturbance, and two readers: of everything,
//! on the appenders' own handle, and of one type, on a handle as another process has it. The oracle reads the table
//! by itself once all is quiet. Strangers stay open until the readers are done: who waits for them never ends.

mod actor;
mod appender;
mod child;
mod disturbance;
mod matrix;
mod outcome;
mod reader;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store::{Filter, Options, Store};
use testkit::{Cluster, Findings, Table, TestDatabase, WANTED, Wanted};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub use self::child::{ChildArguments, ChildProgram, be_child};
pub use self::disturbance::{Disturbance, Way};
pub use self::matrix::{Arguments, measure};
pub use self::outcome::{Delays, Outcome};

use self::actor::{Actor, Stranger};
use self::appender::{Appender, Habits, Kept};
use self::reader::{Goal, Reading};
use crate::BoxError;

/// How long the appenders and who disturbs them may take to come to an end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Sessions that appenders share as behind a pooler.
const POOLED_SESSIONS: u32 = 4;

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What gets in the way.
    pub disturbance: Disturbance,
    /// How the appenders append.
    pub way: Way,
    /// How many there are.
    pub appenders: usize,
    /// For how long they append.
    pub span: Duration,
    /// The pause of each between two appends.
    pub think: Duration,
    /// An event that no slow appender holds back must be delivered within this time after it was acknowledged.
    pub delay_bound: Duration,
    /// How long the readers may take to the end of the log once nobody appends any more; strangers are still there.
    pub catch_up_limit: Duration,
}

/// Where a cell takes place.
#[derive(Debug)]
pub struct Place<'a> {
    /// An empty database.
    pub database: TestDatabase,
    /// Its server, if it may be restarted and its backends killed.
    pub cluster: Option<&'a Cluster>,
    /// What can be started as a process of its own.
    pub child: &'a ChildProgram,
}

/// What appenders and whoever disturbs them note down together.
#[derive(Clone, Debug, Default)]
struct Record(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    /// What the log said that it has, and when it said so.
    acknowledged: Vec<Kept>,
    /// Events that were rolled back: they must never be seen.
    void: Vec<uuid::Uuid>,
    /// Appends that were acknowledged.
    appends: usize,
    /// Calls that failed and were repeated.
    errors: Vec<String>,
}

impl Record {
    fn note<T>(&self, note: impl FnOnce(&mut Noted) -> T) -> T {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn error(&self, error: &dyn std::error::Error) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        self.note(|noted| noted.errors.push(text));
    }
}

/// Runs one cell and judges it.
pub async fn run(plan: &Plan, place: &Place<'_>) -> Result<Outcome, BoxError> {
    let pooled = plan.disturbance == Disturbance::SharedSessions;
    place.database.store().await.close().await;
    let connections = if pooled { POOLED_SESSIONS } else { u32::try_from(plan.appenders)? + 8 };
    let appending = open(&appending_url(&place.database, pooled), connections).await?;
    let elsewhere = open(place.database.url(), 4).await?;
    let feeding = if pooled { open(place.database.url(), 4).await? } else { appending.clone() };

    let (stop_listening, stopped) = watch::channel(());
    let mut listeners = JoinSet::new();
    for store in [elsewhere.clone(), feeding.clone()] {
        let mut stopped = stopped.clone();
        listeners.spawn(async move { store.listen(async move { drop(stopped.changed().await) }).await });
    }
    let (goal, goals) = watch::channel(Goal::Unknown);
    let feed = tokio::spawn(reader::read(feeding.clone(), Filter::all(), goals.clone()));
    let typed = tokio::spawn(reader::read(elsewhere.clone(), Filter::all().types([WANTED]), goals));

    let record = Record::default();
    let stranger = Stranger::begin(plan.disturbance, place, &record).await?;
    let start = Instant::now();
    let (stop, stopping) = watch::channel(false);
    let mut appenders = JoinSet::new();
    for number in 0..plan.appenders {
        let habits = Habits {
            number,
            of: plan.appenders,
            way: plan.way,
            disturbance: plan.disturbance,
            think: plan.think,
        };
        appenders.spawn(Appender::new(appending.clone(), habits, record.clone()).run(stopping.clone()));
    }
    let actor = Actor { plan, place, store: open(place.database.url(), 4).await?, record: record.clone() };
    timeout(END_LIMIT, actor.act()).await.map_err(|_| "the disturbance did not come to its end")??;
    tokio::time::sleep_until(start + plan.span).await;
    stop.send_replace(true);
    timeout(END_LIMIT, appenders.join_all()).await.map_err(|_| "the appenders did not come to their end")?;
    let took = start.elapsed();

    let table = Table::read(&elsewhere).await?;
    let deadline = Instant::now() + plan.catch_up_limit;
    goal.send_replace(Goal::Reach { position: table.head(), deadline });
    let (feed, typed) = (feed.await?, typed.await?);
    // Only now: whoever waited for a stranger has run into the deadline.
    stranger.end().await?;
    let outcome = judge(plan, &place.database, &table, &record, [feed, typed], took);

    drop(stop_listening);
    listeners.join_all().await;
    for store in [appending, elsewhere, feeding, actor.store] {
        store.close().await;
    }
    Ok(outcome)
}

fn judge(
    plan: &Plan,
    database: &TestDatabase,
    table: &Table,
    record: &Record,
    [feed, typed]: [Reading; 2],
    took: Duration,
) -> Outcome {
    record.note(|noted| {
        let mut findings = Findings::default();
        findings += table.judge(Wanted::All, &feed.events());
        findings += table.judge(Wanted::OfType, &typed.events());
        findings += table.judge_acknowledged(noted.acknowledged.iter().map(|kept| &kept.event));
        let errors: Vec<String> =
            noted.errors.iter().chain(&feed.errors).chain(&typed.errors).cloned().collect();
        Outcome {
            plan: *plan,
            database: if database.is_postgres() { "PostgreSQL" } else { "SQLite" },
            appends: noted.appends,
            events: table.len(),
            revived: table.count_of(&noted.void),
            findings,
            took,
            feed: Delays::of(&noted.acknowledged, &feed),
            typed: Delays::of(&noted.acknowledged, &typed),
            errors,
        }
    })
}

pub(crate) async fn open(url: &str, connections: u32) -> Result<Store, BoxError> {
    let options = Options { connections, ..Options::default() };
    Ok(Store::open(url, &options, &[store::MIGRATIONS, subscription_engine::MIGRATIONS]).await?)
}

/// Behind a pooler no session keeps a prepared statement.
fn appending_url(database: &TestDatabase, pooled: bool) -> String {
    if pooled { format!("{}&statement-cache-capacity=0", database.url()) } else { database.url().to_owned() }
}
