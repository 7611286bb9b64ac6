//! What subscriptions cost a process: its memory while they boot, its time while nothing happens.
//!
//! Each is a process of its own, beside one without any subscription.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use store::{DatabaseKind, Store};
use subscription_engine::{Criteria, Worker};

use super::together::Group;
use crate::BoxError;
use crate::databases::{Bench, LOG, open};
use crate::memory::peak_kibibytes;
use crate::wake::run_time;

/// How many wait.
const WAITING: usize = 20;
/// How long they are watched.
const IDLE: Duration = Duration::from_secs(10);
/// Numbers in the server's statistics are at most this old.
const STATISTICS_DELAY: Duration = Duration::from_secs(2);

/// What a process does.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ChildArguments {
    url: String,
    /// How many subscriptions.
    #[arg(long)]
    subscriptions: usize,
    /// Events that each of them is to handle; then it ends and prints its peak.
    #[arg(long)]
    events: Option<usize>,
}

/// A line for each number of subscriptions.
pub(super) fn memory(bench: &Bench, events: u32) -> Result<Vec<String>, BoxError> {
    let none = peak_of_child(bench, 0, events)?;
    let mut lines = Vec::new();
    for count in [1, WAITING] {
        let peak = peak_of_child(bench, count, events)?;
        lines.push(format!("| {} | {count} | {peak:.1} | {:.1} |", bench.name(), peak - none));
    }
    Ok(lines)
}

fn child(bench: &Bench, count: usize) -> Result<Command, BoxError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["engine-child", &bench.url(LOG), "--subscriptions", &count.to_string()]);
    Ok(command)
}

fn peak_of_child(bench: &Bench, count: usize, events: u32) -> Result<f64, BoxError> {
    let output = child(bench, count)?.args(["--events", &events.to_string()]).output()?;
    if !output.status.success() {
        return Err(format!("a process failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let kibibytes: u32 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(f64::from(kibibytes) / 1024.0)
}

/// A line about a process whose subscriptions wait.
pub(super) async fn idle(bench: &Bench, store: &Store) -> Result<String, BoxError> {
    let mut process = child(bench, WAITING)?.stdout(Stdio::piped()).spawn()?;
    let output = process.stdout.take().ok_or("a pipe was asked for")?;
    let watched = async {
        // It says a word when all of them stand at the head.
        let mut line = String::new();
        tokio::task::block_in_place(|| BufReader::new(output).read_line(&mut line))?;
        if line.is_empty() {
            return Err(BoxError::from("the process ended"));
        }
        tokio::time::sleep(STATISTICS_DELAY).await;
        let before = (run_time(process.id())?, transactions(store).await?);
        tokio::time::sleep(IDLE).await;
        let time = (run_time(process.id())? - before.0).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        let transactions = match (before.1, transactions(store).await?) {
            (Some(before), Some(after)) => format!("{:.1}", (after - before) / IDLE.as_secs_f64()),
            _ => "–".to_owned(),
        };
        Ok(format!("| {} | {time:.2} % | {transactions} |", bench.name()))
    }
    .await;
    process.kill()?;
    process.wait()?;
    watched
}

/// Transactions of the server so far, in which every statement outside one counts; SQLite does not count.
async fn transactions(store: &Store) -> Result<Option<f64>, BoxError> {
    if store.database().kind() == DatabaseKind::Sqlite {
        return Ok(None);
    }
    let sql = "SELECT CAST(xact_commit + xact_rollback AS DOUBLE PRECISION)
                 FROM pg_stat_database WHERE datname = current_database()";
    let row: Option<(f64,)> = store.database().fetch_optional(sql, ()).await?;
    Ok(row.map(|row| row.0))
}

/// Boots subscriptions and ends; or brings them to the head and waits until it is killed.
pub(crate) async fn be_child(arguments: &ChildArguments) -> Result<(), BoxError> {
    let store = open(&arguments.url).await?;
    let mut group = Group::new(&store, arguments.subscriptions)?;
    if let Some(events) = arguments.events {
        group.boot(events).await?;
        println!("{}", peak_kibibytes()?);
        group.engine.remove(&Criteria::all(), "measured").await?;
        return Ok(());
    }
    group.engine.set_up(&Criteria::all(), true).await?;
    group.engine.catch_up(&Criteria::all()).await?;
    let worker = Worker::new(group.engine, Criteria::all(), "bench");
    Ok(worker.run(std::future::pending(), || println!("ready")).await?)
}
