//! `herald clock`: the clock of a store in test mode.

use std::time::Duration;

use ::store::{ClockError, Timestamp};
use clap::{Args, Subcommand};
use subscription_engine::ClockAdvanceError;

use crate::app::App;
use crate::cli::{Global, parse_duration, parse_time};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Set the clock and wait until everything has caught up with it
    #[command(after_help = "Example:\n  herald --test-mode clock set 2026-01-01T01:00:00Z")]
    Set {
        /// The time
        #[arg(value_parser = parse_time)]
        time: Timestamp,
        #[command(flatten)]
        patience: Patience,
    },
    /// Move the clock on and wait until everything has caught up with it
    #[command(after_help = "Example:\n  herald --test-mode clock advance 10s")]
    Advance {
        /// By how much
        #[arg(value_parser = parse_duration)]
        by: Duration,
        #[command(flatten)]
        patience: Patience,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Patience {
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
}

/// Room for what is due later than the time that a clock is set to.
const LATEST: &str = "9000-01-01T00:00:00Z";

fn within_range(time: Timestamp) -> Result<(), Exit> {
    let latest: Timestamp = LATEST.parse()?;
    if time <= latest {
        return Ok(());
    }
    Err(Exit::new(Code::Usage, format!("a clock can be set to {LATEST} at the latest")))
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    if let Command::Set { time, .. } = &command {
        within_range(*time)?;
    }
    let app = App::open(config).await?;
    let now = app.store.clock().now().await?;
    let (target, patience) = match command {
        Command::Set { time, patience } => (time, patience.timeout),
        Command::Advance { by, patience } => (now.plus(by), patience.timeout),
    };
    within_range(target)?;
    match app.engine.set_clock(target, patience).await {
        Ok(()) => {}
        Err(error @ ClockAdvanceError::TimedOut { .. }) => {
            return Err(Exit::new(Code::TimedOut, error.to_string()).with_hint("see `herald sub list`"));
        }
        Err(ClockAdvanceError::Clock(error @ (ClockError::Backwards { .. } | ClockError::NotInTestMode))) => {
            return Err(Exit::new(Code::Conflict, error.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    app.store.close().await;
    if global.output.is_json() {
        return json("herald.clock/1", &serde_json::json!({ "time": target }));
    }
    line(&format!("The time is {target}."));
    Ok(())
}
