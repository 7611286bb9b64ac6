//! `herald sub remove`: a subscription goes, with what belongs to it; and what an operator is told before.

use clap::Args;
use store::{ReadError, StreamName, SummaryError};
use subscription_engine::{Criteria, RunMode, TimerCounts, emitted_stream};

use super::{Steering, known, told};
use crate::app::App;
use crate::cli::Global;
use crate::cli::confirm::confirm;
use crate::exit::Exit;
use crate::output::note;

pub(super) const HELP: &str = "With --close-stream the stream to which it has emitted is closed: nobody reads it any more, nothing can be appended to \
    it again, and the log keeps its events.\n\n\
    Examples:\n  herald sub remove inbox_1 --yes\n  herald sub remove totals_1 --close-stream --reason \"totals_2 has taken over\" --yes";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    which: Steering,
    /// Close the stream to which it has emitted, for good
    #[arg(long)]
    close_stream: bool,
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Arguments, reason: &str) -> Result<(), Exit> {
    let criteria = known(app, arguments.which.criteria()).await?;
    confirm_removal(app, global, &criteria, arguments.close_stream).await?;
    let report = match arguments.close_stream {
        true => app.engine.remove_and_close(&criteria, reason).await?,
        false => app.engine.remove(&criteria, reason).await?,
    };
    told(global, "remove", &report, "nothing to remove")?;
    warn_of_workers(app).await
}

/// What is removed while a worker knows its subscriber comes back.
async fn warn_of_workers(app: &App) -> Result<(), Exit> {
    if !app.engine.live_workers().await?.is_empty() {
        note(
            "A worker is running: it sets up again what its program has a subscriber for. (`sub pause` stops that.)",
        );
    }
    Ok(())
}

/// Removing drops tables: on a terminal it is asked for, elsewhere it needs a flag.
pub(super) async fn confirm_removal(
    app: &App,
    global: &Global,
    criteria: &Criteria,
    closes_stream: bool,
) -> Result<(), Exit> {
    let overviews = app.engine.status(criteria).await?;
    if global.yes || overviews.is_empty() {
        return Ok(());
    }
    let mut consequences = Vec::new();
    for overview in &overviews {
        for table in &overview.subscription.clean_up {
            let rows = app.engine.rows_of(table).await?;
            consequences.push(format!(
                "drops table {table}{}",
                rows.map_or_else(String::new, |n| format!(" with {n} rows"))
            ));
        }
        let letters = overview.subscription.letters.open;
        if letters > 0 {
            consequences.push(format!("forgets {letters} dead letters of {}", overview.subscription.id));
        }
        if overview.effects.pending > 0 {
            consequences.push(format!("holds {} planned effect(s)", overview.effects.pending));
        }
        if overview.timers.pending > 0 {
            let or_more = if overview.timers.pending == TimerCounts::MOST { " or more" } else { "" };
            consequences.push(format!("forgets {}{or_more} timer(s)", overview.timers.pending));
        }
        if closes_stream && let Some((stream, events)) = emitted(app, &overview.subscription.id).await? {
            consequences.push(format!("closes stream {stream} with {events} event(s) for good"));
        }
        if overview.subscription.run_mode == RunMode::FromNow {
            let id = &overview.subscription.id;
            consequences.push(format!("events until the next set-up of {id} will not be delivered to it"));
        }
    }
    let ids: Vec<&str> = overviews.iter().map(|overview| overview.subscription.id.as_str()).collect();
    let what = format!("removing {} {}", ids.join(", "), consequences.join("; "));
    confirm(global, &what)
}

/// The stream to which a subscription has emitted, with the number of its events, if there is one.
async fn emitted(app: &App, id: &str) -> Result<Option<(StreamName, u64)>, Exit> {
    let Ok(stream) = emitted_stream(id) else { return Ok(None) };
    match app.store.stream_summary(&stream, 0).await {
        Ok(summary) => Ok(summary.map(|summary| (stream, summary.events))),
        Err(SummaryError::Read(ReadError::StreamClosed(_))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
