//! Memory: the most that a process needed which read a long log page by page, beside one that does so by hand.
//!
//! Each reader is a process of its own, which tells what the kernel noted as the peak of its resident memory.

use std::path::PathBuf;
use std::process::Command;

use store::Filter;

use crate::BoxError;
use crate::databases::{Bench, LOG, open};
use crate::filled_log::{Size, fill};
use crate::read::{Herald, by_hand};
use crate::rounds::{Caller, thousands};

/// What is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Events that the longest reader reads; another one reads a tenth of it.
    #[arg(long, default_value_t = 1_000_000)]
    events: u32,
}

/// What a process reads.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ChildArguments {
    url: String,
    /// How many events.
    #[arg(long)]
    events: usize,
    /// Without Herald.
    #[arg(long)]
    by_hand: bool,
}

/// Measures on both databases and prints the table.
pub(crate) async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    println!("| database | events | by hand, peak MiB | Herald, peak MiB | Herald − by hand |");
    println!("|---|---:|---:|---:|---:|");
    for bench in Bench::both().await? {
        let store = fill(&bench, Size { events: arguments.events, rare: 0 }).await?;
        for events in [arguments.events / 10, arguments.events] {
            let by_hand = peak_of_child(&bench, events, true)?;
            let herald = peak_of_child(&bench, events, false)?;
            let (name, events) = (bench.name(), thousands(f64::from(events)));
            println!("| {name} | {events} | {by_hand:.1} | {herald:.1} | {:.1} |", herald - by_hand);
        }
        store.close().await;
        bench.clean_up().await?;
    }
    Ok(())
}

fn peak_of_child(bench: &Bench, events: u32, by_hand: bool) -> Result<f64, BoxError> {
    let program: PathBuf = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(["memory-child", &bench.url(LOG), "--events", &events.to_string()]);
    if by_hand {
        command.arg("--by-hand");
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("a reader failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let kibibytes: u32 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(f64::from(kibibytes) / 1024.0)
}

/// Reads and prints the peak, in KiB.
pub(crate) async fn be_child(arguments: &ChildArguments) -> Result<(), BoxError> {
    let mut reader: Box<dyn Caller> = if arguments.by_hand {
        by_hand::page_by_page(&arguments.url).await?
    } else {
        Box::new(Herald::new(&open(&arguments.url).await?, &Filter::all(), 1))
    };
    let mut events = 0;
    while events < arguments.events {
        events += reader.call().await?.count();
    }
    println!("{}", peak_kibibytes()?);
    Ok(())
}

/// Forgets this process's peak of resident memory, and tells what it holds now, in MiB.
pub(crate) fn reset_peak() -> Result<f64, BoxError> {
    std::fs::write("/proc/self/clear_refs", "5")?;
    peak_mebibytes()
}

/// The peak of this process's resident memory, in MiB.
pub(crate) fn peak_mebibytes() -> Result<f64, BoxError> {
    Ok(f64::from(peak_kibibytes()?) / 1024.0)
}

/// The most memory that this process has had.
pub(crate) fn peak_kibibytes() -> Result<u32, BoxError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")).ok_or("the kernel tells no VmHWM")?;
    Ok(number.trim().parse()?)
}
