//! How fast Herald is beside what the database could do at most, both measured in the same run.
//!
//! ```text
//! cargo run --release -p bench -- append
//! cargo run --release -p bench -- append --rounds 15 --turns 40
//! cargo run --release -p bench -- read
//! cargo run --release -p bench -- read --events 2000000
//! cargo run --release -p bench -- wake
//! cargo run --release -p bench -- memory
//! cargo run --release -p bench -- growth --events 10000000
//! cargo run --release -p bench -- catchup
//! cargo run --release -p bench -- engine --events 500000 --rounds 3
//! cargo run --release -p bench -- disturb --seconds 4
//! cargo run --release -p bench -- effects --rounds 3
//! cargo run --release -p bench -- fire --runs 5000
//! cargo run --release -p bench -- timers --rounds 3
//! cargo run --release -p bench -- takeover
//! cargo run --release -p bench -- takeover --vanish --rounds 3
//! cargo run --release -p bench -- isolation
//! cargo run --release -p bench -- fan-out --users 100000
//! cargo run --release -p bench -- reminders
//! ```
//!
//! Absolute numbers say more about the disk than about us, so each figure of Herald stands beside the raw
//! limit: the same rows, written by hand through the same driver. The two take many short turns within each
//! round, and the ratio is taken within a round, so that a busy moment of the machine meets both. The table on standard
//! output is Markdown.
//!
//! SQLite works on files in a temporary folder (`TMPDIR` chooses the disk). PostgreSQL is a throw-away cluster
//! that syncs to disk, or the server that `HERALD_BENCH_POSTGRES_URL` names; there a schema is made for the
//! run and dropped at its end. Without a PostgreSQL its part is left out, which is said.

mod append;
mod catchup;
mod databases;
mod effects;
mod engine;
mod fan_out;
mod filled_log;
mod growth;
mod memory;
mod read;
mod reminders;
mod rounds;
mod timers;
mod wake;

use std::process::ExitCode;

use bench::{BoxError, disturb, fire, isolation, takeover};
use clap::{Parser, Subcommand};

/// Measures Herald beside the raw limit of the database.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    measurement: Measurement,
}

/// What is measured; each has a file of its own.
#[derive(Debug, Subcommand)]
enum Measurement {
    /// Single appends and batches, by one caller and by many.
    Append(rounds::Plan),
    /// Pages of everything and of what a filter wants, and finding few events among many.
    Read(read::Arguments),
    /// From an append to the moment at which a waiting reader has the event, here and in another process.
    Wake(rounds::Plan),
    /// The most memory that a process needs which reads a million events.
    Memory(memory::Arguments),
    /// What appending, reading and opening cost in logs of ten thousand events and more.
    Growth(growth::Arguments),
    /// Catching up with 200,000 events, counting them and filling inboxes.
    Catchup(rounds::Plan),
    /// Subscriptions: booting alone and together, from an append to its handler, and what they cost when nothing happens.
    Engine(engine::Arguments),
    /// Planning 100,000 effects, sending some of them, and one that does not wait behind all others.
    Effects(rounds::Plan),
    /// Firing 100,000 timers that are due together, and how long an event waits meanwhile.
    Timers(rounds::Plan),
    /// A notification of a channel with 100,000 users: time, memory, and how long a direct one waits meanwhile.
    FanOut(fan_out::Arguments),
    /// 10,000 users who are due for a reminder in the same minute get one mail each. Fails otherwise.
    Reminders(reminders::Arguments),
    /// Appenders and readers while somebody gets in their way: nothing lost, nothing doubled, nobody held up. Fails otherwise.
    Disturb(disturb::Arguments),
    /// Workers, backends and the server die, operators interfere, events are poison: each event is handled once all
    /// the same. Fails otherwise, and says which run to repeat.
    Fire(fire::Arguments),
    /// Until another worker goes on: after kill -9, after SIGTERM, after the network of the one has vanished.
    Takeover(takeover::Arguments),
    /// From an append until it is handled, with and without subscriptions that sleep, panic, fail and block.
    Isolation(isolation::Arguments),
    /// A process that waits for events.
    #[command(hide = true)]
    WakeChild(wake::ChildArguments),
    /// A process that reads.
    #[command(hide = true)]
    MemoryChild(memory::ChildArguments),
    /// A process that runs subscriptions.
    #[command(hide = true)]
    EngineChild(engine::ChildArguments),
    /// A process that disturbs.
    #[command(hide = true)]
    DisturbChild(disturb::ChildArguments),
    /// A worker that gets killed.
    #[command(hide = true)]
    FireWorker(fire::WorkerArguments),
    /// A worker that makes room for another one.
    #[command(hide = true)]
    TakeoverWorker(takeover::ChildArguments),
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    match Arguments::parse().measurement {
        Measurement::Append(plan) => append::measure(&plan).await?,
        Measurement::Read(arguments) => read::measure(&arguments).await?,
        Measurement::Wake(plan) => wake::measure(&plan).await?,
        Measurement::Memory(arguments) => memory::measure(&arguments).await?,
        Measurement::Growth(arguments) => growth::measure(&arguments).await?,
        Measurement::WakeChild(arguments) => wake::be_child(&arguments).await?,
        Measurement::MemoryChild(arguments) => memory::be_child(&arguments).await?,
        Measurement::Catchup(plan) => catchup::measure(&plan).await?,
        Measurement::Engine(arguments) => engine::measure(&arguments).await?,
        Measurement::EngineChild(arguments) => engine::be_child(&arguments).await?,
        Measurement::Effects(plan) => effects::measure(&plan).await?,
        Measurement::Timers(plan) => timers::measure(&plan).await?,
        Measurement::FanOut(arguments) => fan_out::measure(&arguments).await?,
        Measurement::Reminders(arguments) => {
            if !reminders::measure(&arguments).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Measurement::Disturb(arguments) => {
            if !disturb::measure(&arguments).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Measurement::DisturbChild(arguments) => disturb::be_child(&arguments).await?,
        Measurement::Fire(arguments) => {
            if !fire::measure(&arguments).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Measurement::Takeover(arguments) => takeover::measure(&arguments).await?,
        Measurement::TakeoverWorker(arguments) => takeover::be_child(&arguments).await?,
        Measurement::Isolation(arguments) => isolation::measure(&arguments).await?,
        Measurement::FireWorker(arguments) => fire::be_worker(&arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}
