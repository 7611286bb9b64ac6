//! Wake-up: from the acknowledgement of an append to the moment at which a waiting reader has the event, in the same
//! process and in another one.
//!
//! By hand in the same process: a channel, and one select. Across processes: on PostgreSQL a NOTIFY in the
//! transaction and one select; on SQLite a select each millisecond. Besides, what a process costs that waits while nothing
//! happens.

mod across;
mod here;

pub(crate) use self::across::{ChildArguments, be_child, run_time, worker_there};
pub(crate) use self::here::worker_here;

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Plan, print_times};

/// By hand: the least that can be waited for.
const RAW_TABLE_POSTGRES: &str =
    "CREATE TABLE raw_wake (position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload TEXT NOT NULL)";
const RAW_TABLE_SQLITE: &str = "PRAGMA journal_mode = WAL;
     PRAGMA synchronous = FULL;
     CREATE TABLE raw_wake (position INTEGER PRIMARY KEY, payload TEXT NOT NULL)";
const RAW_FILE: &str = "raw.db";
const RAW_SELECT: &str =
    "SELECT position, payload FROM raw_wake WHERE position > $1 ORDER BY position LIMIT 1000";
const RAW_INSERT: &str = "INSERT INTO raw_wake (payload) VALUES ($1) RETURNING position";

/// Measures on both databases and prints the tables.
pub(crate) async fn measure(plan: &Plan) -> Result<(), BoxError> {
    let (mut lines, mut idle) = (Vec::new(), Vec::new());
    for bench in Bench::both().await? {
        let store = bench.store().await?;
        lines.extend(here::compare(plan, &bench, &store).await?);
        let (across, costs) = across::compare(plan, &bench, &store).await?;
        lines.extend(across);
        idle.extend(costs);
        store.close().await;
        bench.clean_up().await?;
    }
    print_times(&lines);
    println!("\nA process that waits while nothing happens:\n");
    println!("| database | who | part of one core |");
    println!("|---|---|---:|");
    for line in idle {
        println!("{line}");
    }
    Ok(())
}
