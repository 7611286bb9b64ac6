//! The engine: what it costs to bring a log to its subscribers.
//!
//! Booting one subscription is compared with the same statements by hand, as in `catchup`. Booting several together
//! says what the shared feed is worth: how long all of them take beside one, and how often the log is read. Then how long
//! it takes from an append to the handler, here and in another process, what subscriptions cost while nothing happens,
//! and how much memory they take.

mod cost;
mod together;

pub(crate) use self::cost::{ChildArguments, be_child};

use crate::BoxError;
use crate::catchup;
use crate::databases::Bench;
use crate::rounds::{Plan, print_table, print_times, thousands};
use crate::wake::{worker_here, worker_there};

/// What is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    plan: Plan,
    /// Events in the log, in whole thousands.
    #[arg(long, default_value_t = 500_000)]
    events: u32,
}

/// Measures on both databases and prints the tables.
pub(crate) async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    let Arguments { plan, events } = arguments;
    let events = (events / 1_000).max(1) * 1_000;
    let (mut alone, mut together, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let (mut latencies, mut idle, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for bench in Bench::both().await? {
        let store = bench.store().await?;
        catchup::seed(&store, events).await?;
        alone.extend(catchup::compare(plan, &bench, &store, events).await?);
        let (lines, of_reads) = together::compare(plan, &bench, &store, events).await?;
        together.extend(lines);
        reads.extend(of_reads);
        memory.extend(cost::memory(&bench, events)?);
        idle.push(cost::idle(&bench, &store).await?);
        latencies.extend(plan.compare(bench.name(), "here", vec![worker_here(&store).await?]).await?);
        let there = vec![worker_there(&bench, &store)?];
        latencies.extend(plan.compare(bench.name(), "another process", there).await?);
        store.close().await;
        bench.clean_up().await?;
    }
    let events = thousands(f64::from(events));
    println!("Booting one subscription over {events} events.\n");
    print_table("Herald ÷ this", &alone);
    println!("\nBooting several that want everything, in one worker; an event counts once.\n");
    print_table("20 ÷ this", &together);
    println!("\n| database | subscriptions | how often each event was read |\n|---|---:|---:|");
    reads.iter().for_each(|line| println!("{line}"));
    println!("\nFrom the acknowledgement of an append to the call of the handler.\n");
    print_times(&latencies);
    println!("\n20 subscriptions while nothing happens.\n");
    println!("| database | part of one core | transactions/s |\n|---|---:|---:|");
    idle.iter().for_each(|line| println!("{line}"));
    println!("\nThe peak of the memory of a process that boots subscriptions over {events} events.\n");
    println!("| database | subscriptions | peak MiB | above none |\n|---|---:|---:|---:|");
    memory.iter().for_each(|line| println!("{line}"));
    Ok(())
}
