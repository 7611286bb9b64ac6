//! How long it takes until another worker goes on with a subscription (E-60, E-61): after kill -9 of the one in the
//! middle of a unit, after a stop that was asked for, and after its network has vanished.
//!
//! Two worker processes compete for one subscription. What each handles stands in a table, with its name and the time;
//! a position that was handled twice would not fit in.

mod child;
mod network;

use std::process::ExitStatus;
use std::time::Duration;

use store::{ExpectedVersion, Json, NewEvent, Position, Store, StreamName};
use subscription_engine::{Criteria, Engine, Registry};
use testkit::{Cluster, ClusterError, TestDatabase};
use tokio::time::{Instant, sleep, timeout};

pub use self::child::{ChildArguments, be_child};

use self::child::{Process, Relay, micros};
use crate::BoxError;
use crate::disturb::ChildProgram;

/// Whatever is waited for comes sooner, or not at all.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(1);
/// Appended before and after the one worker is asked to stop, and the pause between two.
const EVENTS: usize = 30;
const PAUSE: Duration = Duration::from_millis(5);

/// How often.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// How often each is measured on each database.
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
    /// Instead, a network that vanishes: needs PostgreSQL, root, `unshare`, `ip` and `nft`, and works in a network of
    /// its own, so that nobody else notices. Fails where it cannot.
    #[arg(long)]
    pub vanish: bool,
}

/// A log and an engine that looks at it, without a worker.
struct Scene<'a> {
    store: Store,
    url: String,
    child: &'a ChildProgram,
}

/// A row of the subscriber's table.
type Handled = (i64, String, i64, i64);

impl<'a> Scene<'a> {
    async fn set(database: &TestDatabase, child: &'a ChildProgram) -> Result<Self, BoxError> {
        let store = database.store().await;
        let engine =
            Engine::new(store.clone(), Registry::new([Relay::subscriber("nobody", None)])?, "takeover");
        engine.set_up(&Criteria::all(), true).await?;
        Ok(Self { store, url: database.url().to_owned(), child })
    }

    async fn start(&self, name: &str, more: &[&str]) -> Result<Process, BoxError> {
        Process::start(self.child, &self.url, name, more).await
    }

    async fn append(&self) -> Result<(Position, i64), BoxError> {
        let event = NewEvent::new("Relay.Happened", Json::empty_object());
        let appended =
            self.store.append(&StreamName::new("relay-1")?, ExpectedVersion::Any, vec![event]).await?;
        Ok((appended.position.ok_or("an event was appended")?, micros()))
    }

    async fn handled(&self) -> Result<Vec<Handled>, BoxError> {
        let sql = "SELECT position, worker, began_us, ended_us FROM relay_handled ORDER BY position";
        Ok(self.store.database().fetch_all(sql, ()).await?)
    }

    /// Waits until this position is handled.
    async fn until_handled(&self, position: Position) -> Result<Handled, BoxError> {
        let deadline = Instant::now() + PATIENCE;
        let sql = "SELECT position, worker, began_us, ended_us FROM relay_handled WHERE position = $1";
        loop {
            if let Some(row) = self.store.database().fetch_optional(sql, (position,)).await? {
                return Ok(row);
            }
            if Instant::now() > deadline {
                return Err(format!("nobody has handled {position} within {PATIENCE:?}").into());
            }
            sleep(LOOK).await;
        }
    }

    /// Has the first one stand in the middle of a unit; answers with the position.
    async fn have_it_hold(&self, first: &mut Process) -> Result<Position, BoxError> {
        let deadline = Instant::now() + PATIENCE;
        // The other one may be faster.
        loop {
            let (position, _) = self.append().await?;
            tokio::select! {
                held = first.says("holds") => return held.map(|()| position),
                handled = self.until_handled(position) => { handled?; }
            }
            if Instant::now() > deadline {
                return Err("the other worker always was faster".into());
            }
        }
    }
}

/// From kill -9 of a worker in the middle of a unit until another one has handled its event.
pub async fn after_kill(database: &TestDatabase, child: &ChildProgram) -> Result<Duration, BoxError> {
    let scene = Scene::set(database, child).await?;
    let second = scene.start("second", &[]).await?;
    let mut first = scene.start("first", &["--hold"]).await?;
    let position = scene.have_it_hold(&mut first).await?;
    let killed = micros();
    first.kill().await?;
    let (_, worker, ..) = scene.until_handled(position).await?;
    // Seen from outside: on SQLite it waits for the lock after it has looked at the clock.
    let ended = micros();
    second.kill().await?;
    scene.store.close().await;
    if worker != "second" {
        return Err(format!("a unit of the killed worker was committed: {worker}").into());
    }
    Ok(since(killed, ended))
}

/// From the last unit of a worker that was asked to stop until the next one of another worker begins. All events are
/// handled once.
pub async fn after_stop(database: &TestDatabase, child: &ChildProgram) -> Result<Duration, BoxError> {
    let scene = Scene::set(database, child).await?;
    let first = scene.start("first", &["--slow"]).await?;
    // Alone at first, so that there is something to hand over.
    let mut appended = vec![scene.append().await?];
    scene.until_handled(appended[0].0).await?;
    let second = scene.start("second", &["--slow"]).await?;
    append_slowly(&scene, &mut appended).await?;
    let stopping = tokio::spawn(first.stop());
    append_slowly(&scene, &mut appended).await?;
    let how: ExitStatus = timeout(PATIENCE, stopping).await???;
    if let Some((last, _)) = appended.last() {
        scene.until_handled(*last).await?;
    }
    let handled = scene.handled().await?;
    second.kill().await?;
    scene.store.close().await;
    if !how.success() || handled.len() != appended.len() {
        return Err(
            format!("{how}; {} events were appended, {} handled", appended.len(), handled.len()).into()
        );
    }
    let last = handled.iter().filter(|row| row.1 == "first").map(|row| row.3).max();
    let Some(last) = last else { return Err("the first worker handled nothing".into()) };
    let next = handled.iter().filter(|row| row.1 == "second" && row.2 >= last).min_by_key(|row| row.2);
    let Some(next) = next else { return Ok(Duration::ZERO) };
    let there_since = appended.iter().find(|(position, _)| position.0 == next.0).map_or(0, |event| event.1);
    Ok(since(last.max(there_since), next.2))
}

async fn append_slowly(scene: &Scene<'_>, appended: &mut Vec<(Position, i64)>) -> Result<(), BoxError> {
    for _ in 0..EVENTS {
        appended.push(scene.append().await?);
        sleep(PAUSE).await;
    }
    Ok(())
}

fn since(from: i64, to: i64) -> Duration {
    Duration::from_micros(u64::try_from(to - from).unwrap_or(0))
}

/// Measures on both databases, or what follows when a network vanishes, and prints a table.
pub async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    let child = ChildProgram(std::env::current_exe()?);
    if arguments.vanish {
        return network::measure(&child, arguments.rounds).await;
    }
    let cluster = match Cluster::start() {
        Ok(cluster) => Some(cluster),
        Err(ClusterError::NoServer(error)) => {
            eprintln!("PostgreSQL is left out: could not {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    println!("| database | what | p50 ms | max ms |\n|---|---|---:|---:|");
    for name in ["SQLite", "PostgreSQL"] {
        let database = async || match (&cluster, name) {
            (Some(cluster), "PostgreSQL") => Some(TestDatabase::schema_in(&cluster.url("postgres")).await),
            (_, "SQLite") => Some(TestDatabase::sqlite()),
            _ => None,
        };
        let (mut killed, mut stopped) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            let Some(one) = database().await else { continue };
            killed.push(after_kill(&one, &child).await?);
            let Some(another) = database().await else { continue };
            stopped.push(after_stop(&another, &child).await?);
        }
        print(name, "kill -9 in the middle of a unit", killed);
        print(name, "SIGTERM", stopped);
    }
    Ok(())
}

fn print(database: &str, what: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |time: &Duration| time.as_secs_f64() * 1_000.0;
    if let (Some(middle), Some(last)) = (times.get(times.len() / 2), times.last()) {
        println!("| {database} | {what} | {:.1} | {:.1} |", ms(middle), ms(last));
    }
}
