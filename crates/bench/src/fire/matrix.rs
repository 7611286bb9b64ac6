//! Many runs, one after the other, each with its own number.

use std::io::Write;
use std::time::{Duration, Instant};

use testkit::{Cluster, ClusterError, Random, TestDatabase};

use super::{Ended, Plan, run};
use crate::BoxError;
use crate::disturb::{ChildProgram, Place};

/// So many runs there are between two signs of life.
const REPORT_EVERY: u64 = 100;

/// How many runs, and which.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// How many runs on each database.
    #[arg(long, default_value_t = 1_000)]
    pub runs: u64,
    /// The number of the first one; the others follow. Without it a random one.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How much happens in each.
    #[arg(long, default_value_t = 40)]
    pub actions: usize,
    /// Only on this database.
    #[arg(long, value_parser = ["sqlite", "postgres"])]
    pub only: Option<String>,
}

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Sum {
    /// How many there were.
    pub runs: u64,
    /// What was done in them.
    pub actions: usize,
    /// Workers that were killed or died.
    pub deaths: usize,
    /// Events in their logs.
    pub events: usize,
    /// Those that ended as they must not.
    pub failed: Vec<Ended>,
}

/// Runs so many plans, or as many as are begun within this time; on a server that is ours alone, or on SQLite.
pub async fn run_many(
    plans: impl Iterator<Item = Plan>,
    limit: Duration,
    cluster: Option<&Cluster>,
    child: &ChildProgram,
) -> Result<Sum, BoxError> {
    let start = Instant::now();
    let mut sum = Sum::default();
    for plan in plans {
        if start.elapsed() > limit {
            break;
        }
        let database = match cluster {
            Some(cluster) => TestDatabase::schema_in(&cluster.url("postgres")).await,
            None => TestDatabase::sqlite(),
        };
        let place = Place { database, cluster, child };
        let ended = run(&plan, &place).await.map_err(|error| format!("run {}: {error}", plan.seed))?;
        sum.runs += 1;
        sum.actions += plan.actions;
        sum.deaths += ended.deaths;
        sum.events += ended.events;
        if !ended.violations.is_empty() {
            sum.failed.push(ended);
        }
        if sum.runs % REPORT_EVERY == 0 {
            eprintln!("{} runs, {} failed, {:.0?}", sum.runs, sum.failed.len(), start.elapsed());
        }
    }
    Ok(sum)
}

/// Runs them on both databases and prints a table; says whether all was well.
pub async fn measure(arguments: &Arguments) -> Result<bool, BoxError> {
    let child = ChildProgram(std::env::current_exe()?);
    let first = arguments.seed.unwrap_or_else(Random::seed);
    let wants = |name: &str| arguments.only.as_deref().is_none_or(|only| only == name);
    let cluster = match wants("postgres").then(Cluster::start) {
        None => None,
        Some(Ok(cluster)) => Some(cluster),
        Some(Err(ClusterError::NoServer(error))) => {
            eprintln!("PostgreSQL is left out: could not {error}");
            None
        }
        Some(Err(error)) => return Err(error.into()),
    };
    println!("| database | runs | actions | workers that died | events | seconds | failed |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut all_is_well = true;
    let places = cluster.as_ref().map(|cluster| ("postgres", Some(cluster)));
    for (name, cluster) in places.into_iter().chain(wants("sqlite").then_some(("sqlite", None))) {
        let start = Instant::now();
        let plans = (0..arguments.runs).map(|run| Plan {
            seed: first.wrapping_add(run),
            actions: arguments.actions,
            sabotage: None,
        });
        let sum = run_many(plans, Duration::MAX, cluster, &child).await?;
        println!(
            "| {name} | {} | {} | {} | {} | {:.0} | {} |",
            sum.runs,
            sum.actions,
            sum.deaths,
            sum.events,
            start.elapsed().as_secs_f64(),
            sum.failed.len()
        );
        std::io::stdout().flush()?;
        for ended in &sum.failed {
            all_is_well = false;
            let again = format!(
                "bench fire --runs 1 --seed {} --actions {} --only {name}",
                ended.plan.seed, arguments.actions
            );
            eprintln!("{ended}again: {again}");
        }
    }
    Ok(all_is_well)
}
