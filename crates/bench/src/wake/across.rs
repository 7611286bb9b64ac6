//! In another process: it waits and writes a line, with the time, for what it has.

use std::io::{BufRead, BufReader};
use std::process::{Child as Process, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use sqlx::postgres::PgListener;
use sqlx::{Connection, PgConnection};
use store::{Filter, Position, Store};
use subscription_engine::{Criteria, Worker};
use testkit::Random;
use tokio::time::sleep;

use super::here::{Append, engine_that_tells, last_raw_sqlite};
use super::{RAW_FILE, RAW_INSERT, RAW_SELECT};
use crate::BoxError;
use crate::databases::{Bench, LOG, open};
use crate::read::by_hand::file_of;
use crate::rounds::{Caller, Contender, Done, Line, Plan};

/// Between two appends: long enough that whoever waits by turns has come to rest, and never in step with it.
const PAUSE_MS: (u64, u64) = (10, 60);
/// Of the pauses: the same for all.
const SEED: u64 = 1;
/// How often it is looked by hand.
const LOOK: Duration = Duration::from_millis(1);
/// How long a process is watched that waits.
const IDLE: Duration = Duration::from_secs(4);

/// What a process waits for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ChildArguments {
    url: String,
    /// Without Herald.
    #[arg(long)]
    by_hand: bool,
    /// As the worker of a subscription.
    #[arg(long, conflicts_with = "by_hand")]
    worker: bool,
}

/// A subscriber in another process, which has an event when its handler is called.
pub(crate) fn worker_there(bench: &Bench, store: &Store) -> Result<Contender, BoxError> {
    let child = Waiting::start(&bench.url(LOG), Some("--worker"))?;
    let append = AppendThere::Here(Append::Herald(store.clone()));
    Ok(Contender::new("Herald", [Across { append, child, random: Random::from_seed(SEED) }]))
}

/// The times, and a line for each process about what it costs when nothing happens.
pub(super) async fn compare(
    plan: &Plan,
    bench: &Bench,
    store: &Store,
) -> Result<(Vec<Line>, Vec<String>), BoxError> {
    let (name, raw_append) = match bench {
        Bench::Sqlite { folder } => {
            let connection = rusqlite::Connection::open(folder.path().join(RAW_FILE))?;
            ("a select each millisecond", AppendThere::Here(Append::Sqlite { connection, wake: None }))
        }
        Bench::Postgres { .. } => {
            let connection = PgConnection::connect(&bench.url("")).await?;
            ("NOTIFY + select", AppendThere::Notify(connection))
        }
    };
    let by_hand = Waiting::start(&bench.url(RAW_FILE), Some("--by-hand"))?;
    let herald = Waiting::start(&bench.url(LOG), None)?;
    let processes = [(name, by_hand.process.id()), ("Herald", herald.process.id())];
    let mut idle = Vec::new();
    for (name, process) in processes {
        let before = run_time(process)?;
        sleep(IDLE).await;
        let part = (run_time(process)? - before).as_secs_f64() / IDLE.as_secs_f64();
        idle.push(format!("| {} | {name} | {:.2} % |", bench.name(), part * 100.0));
    }
    let pairs = [
        (name, Across { append: raw_append, child: by_hand, random: Random::from_seed(SEED) }),
        (
            "Herald",
            Across {
                append: AppendThere::Here(Append::Herald(store.clone())),
                child: herald,
                random: Random::from_seed(SEED),
            },
        ),
    ];
    let contenders = pairs.map(|(name, across)| Contender::new(name, [across]));
    let lines = plan.compare(bench.name(), "another process", contenders.into()).await?;
    Ok((lines, idle))
}

/// A process that waits; killed when dropped.
struct Waiting {
    process: Process,
    output: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(url: &str, how: Option<&str>) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["wake-child", url]).args(how).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let output = BufReader::new(process.stdout.take().ok_or("a pipe was asked for")?);
        let mut waiting = Self { process, output };
        // It begins with what is there already.
        waiting.next()?;
        Ok(waiting)
    }

    /// Up to which position it has read, and since when.
    fn next(&mut self) -> Result<(i64, Duration), BoxError> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let (position, nanos) = line.trim().split_once(' ').ok_or("the waiting process ended")?;
        Ok((position.parse()?, Duration::from_nanos(nanos.parse()?)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the threads of a process have run in all.
pub(crate) fn run_time(process: u32) -> Result<Duration, BoxError> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

enum AppendThere {
    Here(Append),
    /// The database tells the other process.
    Notify(PgConnection),
}

/// Appends one event and waits until the other process has it.
struct Across {
    append: AppendThere,
    child: Waiting,
    random: Random,
}

#[async_trait]
impl Caller for Across {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let (least, most) = PAUSE_MS;
        sleep(Duration::from_micros(least * 1_000 + self.random.below((most - least) * 1_000))).await;
        let position = match &mut self.append {
            AppendThere::Here(append) => append.append().await?,
            AppendThere::Notify(connection) => {
                let sql = format!(
                    "WITH written AS ({RAW_INSERT}) SELECT position, pg_notify('raw_wake', '') FROM written"
                );
                let insert = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind("{}");
                insert.fetch_one(connection).await?
            }
        };
        let acknowledged = now()?;
        loop {
            let (reached, at) = tokio::task::block_in_place(|| self.child.next())?;
            if reached >= position {
                return Ok(Done::event_after(at.saturating_sub(acknowledged)));
            }
        }
    }
}

/// By the clock that all processes share.
fn now() -> Result<Duration, BoxError> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

fn tell(position: i64) -> Result<(), BoxError> {
    println!("{position} {}", now()?.as_nanos());
    Ok(())
}

/// Waits, and tells of whatever came, until it is killed.
pub(crate) async fn be_child(arguments: &ChildArguments) -> Result<(), BoxError> {
    let url = &arguments.url;
    match file_of(url) {
        Some(file) if arguments.by_hand => {
            let connection = rusqlite::Connection::open(file)?;
            let mut after = last_raw_sqlite(&connection, 0)?;
            tell(after)?;
            loop {
                std::thread::sleep(LOOK);
                let reached = last_raw_sqlite(&connection, after)?;
                if reached != after {
                    after = reached;
                    tell(after)?;
                }
            }
        }
        None if arguments.by_hand => {
            let mut connection = PgConnection::connect(url).await?;
            let mut listener = PgListener::connect(url).await?;
            listener.listen("raw_wake").await?;
            let mut after = 0_i64;
            loop {
                // A statement does not bring all that an earlier case has left.
                loop {
                    let select = sqlx::query_as::<_, (i64, String)>(RAW_SELECT).bind(after);
                    let rows = select.fetch_all(&mut connection).await?;
                    let Some(last) = rows.last() else { break };
                    after = last.0;
                }
                tell(after)?;
                listener.recv().await?;
            }
        }
        _ if arguments.worker => {
            let engine = engine_that_tells(&open(url).await?, "there", |position| tell(position).is_ok())?;
            engine.catch_up(&Criteria::all()).await?;
            let worker = Worker::new(engine, Criteria::all(), "bench");
            Ok(worker.run(std::future::pending(), || drop(tell(0))).await?)
        }
        _ => {
            let store = open(url).await?;
            let reading = read(&store);
            tokio::select! {
                result = reading => result,
                () = store.listen(std::future::pending()) => Ok(()),
            }
        }
    }
}

async fn read(store: &Store) -> Result<(), BoxError> {
    let mut after = store.head().await?.position;
    tell(after.0)?;
    let mut wake = store.wake();
    loop {
        wake.arm();
        let page = store.read(&Filter::all(), Position(after.0), 1_000).await?;
        if page.events.is_empty() {
            wake.wait(Duration::from_secs(5)).await;
        } else {
            after = page.scanned_to;
            tell(after.0)?;
        }
    }
}
