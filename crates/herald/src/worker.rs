//! `herald worker`: the long-running process, and its life between signals.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use subscription_engine::{Criteria, Status, Worker};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::cli::{code_of, known, outcome_text};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::note;

/// The wait for a database that is not there, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long the end of the program waits for connections to close.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  herald worker\n  herald worker --group projector\n  herald worker --until-caught-up"
)]
pub(crate) struct Arguments {
    /// Only this group; may be given more than once
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Only this subscription; may be given more than once
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Set up, boot and run once, then end
    #[arg(long, conflicts_with = "until_caught_up")]
    once: bool,
    /// End when nothing moves any more
    #[arg(long)]
    until_caught_up: bool,
    /// End when stdin does, so that whoever started this process never leaves it behind
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Logs to stderr: sentences for people on a terminal, JSON elsewhere. HERALD_LOG sets what is logged.
pub(crate) fn log_to_stderr(verbosity: u8, is_worker: bool) {
    let level = match (verbosity, is_worker) {
        (0, false) => "error",
        // A connection that takes a while to come free is the daemon's everyday life.
        (0, true) => "info,sqlx=warn,sqlx::pool::acquire=error",
        (1, _) => "info,sqlx=warn",
        _ => "debug,sqlx=info",
    };
    let filter = match std::env::var("HERALD_LOG").ok().filter(|filter| !filter.is_empty()) {
        None => EnvFilter::new(level),
        Some(given) => EnvFilter::try_new(&given).unwrap_or_else(|error| {
            note(&format!("HERALD_LOG is not understood ({error}); logging {level}"));
            EnvFilter::new(level)
        }),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        // A log that cannot be written is no reason to fall over.
        .log_internal_errors(false);
    // A second call, in a test, changes nothing.
    let _ = if std::io::stderr().is_terminal() {
        builder.try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}

pub(crate) async fn run(config: &Config, arguments: Arguments) -> Result<u8, Exit> {
    let given = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let criteria = Criteria { ids: given(arguments.ids), groups: given(arguments.groups) };
    if arguments.once || arguments.until_caught_up {
        let app = App::open_or_set_up(config).await?;
        let criteria = known(&app, criteria).await?;
        let result = catch_up(&app, &criteria, arguments.once).await;
        app.store.close().await;
        return result.map(|()| 0);
    }
    let mut signals = Signals::new(arguments.until_stdin_ends)?;
    let app = tokio::select! {
        app = open_when_there(config) => app?,
        code = signals.next() => return Ok(code),
    };
    let criteria = known(&app, criteria).await.map_err(Exit::of_daemon)?;
    let engine = app.engine.clone().on_behalf_of("worker");
    let (stop, mut stopped) = watch::channel(0_u8);
    let watcher = tokio::spawn(async move {
        stop.send_replace(signals.next().await);
        // Whoever asks twice does not want to wait.
        std::process::exit(i32::from(signals.next().await));
    });
    let target = app.store.database().target().database;
    let ready = || tracing::info!(database = target, "the worker is ready on {target}");
    let result = loop {
        let mut stopping = stopped.clone();
        let stop = async move {
            let _ = stopping.wait_for(|code| *code != 0).await;
            tracing::info!("asked to stop; finishing the units under way");
        };
        let worker = Worker::new(engine.clone(), criteria.clone(), env!("CARGO_PKG_VERSION"));
        match worker.run(stop, ready).await.map_err(Exit::from) {
            Err(exit) if exit.may_heal() && *stopped.borrow_and_update() == 0 => {
                tracing::warn!("{exit}; starting again in {LONGEST_WAIT:?}");
                let _ = tokio::time::timeout(LONGEST_WAIT, stopped.wait_for(|code| *code != 0)).await;
            }
            result => break result,
        }
    };
    watcher.abort();
    // A server that is gone must not hold up the end.
    let _ = tokio::time::timeout(CLOSE_LIMIT, app.store.close()).await;
    result.map_err(Exit::of_daemon)?;
    tracing::info!("the worker has stopped");
    Ok(*stopped.borrow())
}

/// Opens the log, and waits for a database that may come. What cannot heal by itself ends the program so
/// that it is not started again and again.
async fn open_when_there(config: &Config) -> Result<App, Exit> {
    let mut wait = FIRST_WAIT;
    loop {
        match App::open_or_set_up(config).await {
            Err(exit) if exit.may_heal() => {
                tracing::warn!("{exit}; trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            result => return result.map_err(Exit::of_daemon),
        }
    }
}

async fn catch_up(app: &App, criteria: &Criteria, once: bool) -> Result<(), Exit> {
    let report = if once {
        let mut report = app.engine.set_up(criteria, false).await?;
        report.extend(app.engine.boot(criteria, None).await?);
        report.extend(app.engine.run(criteria, None).await?);
        app.engine.deliver(criteria).await?;
        report
    } else {
        app.engine.catch_up(criteria).await?
    };
    for (id, outcome) in &report {
        note(&format!("{id}: {}", outcome_text(outcome)));
    }
    // Also what was in error before, and so was not even tried, is work left undone.
    let overviews = app.engine.status(criteria).await?;
    if let Some(stuck) =
        overviews.iter().find(|overview| overview.subscription.state.status() == Status::Error)
    {
        let id = &stuck.subscription.id;
        return Err(Exit::new(Code::Failed, format!("{id} is in error"))
            .with_hint(format!("see `herald sub show {id}`")));
    }
    match report.iter().find_map(|(id, outcome)| code_of(outcome).map(|code| (id, code))) {
        Some((id, code)) => Err(Exit::new(code, format!("{id} has not caught up"))),
        None => Ok(()),
    }
}

/// The signals that end the program, and the exit codes that say so.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// Resolves when stdin ends; never, if that does not matter.
    orphaned: BoxFuture<'static, ()>,
}

impl Signals {
    pub(crate) fn new(until_stdin_ends: bool) -> std::io::Result<Self> {
        let orphaned = async move {
            if !until_stdin_ends
                || tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await.is_err()
            {
                std::future::pending::<()>().await;
            }
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            orphaned: Box::pin(orphaned.fuse()),
        })
    }

    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            () = &mut self.orphaned => 143,
        }
    }
}
