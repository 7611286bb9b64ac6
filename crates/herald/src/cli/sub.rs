//! `herald sub`: seeing and steering subscriptions.

mod history;
mod next;
mod refresh;
mod remove;
mod rewind;
mod show;
mod timers;
mod wait;

use clap::{Args, Subcommand};
use serde::Serialize;
use store::{Position, Timestamp};
use subscription_engine::{Criteria, Outcome, Overview, Report, Stall, Standing, State, Status};

use crate::app::App;
use crate::cli::findings::{stall_text, standing_text};
use crate::cli::pace::{self, Stood, time_left};
use crate::cli::projection::progress_of;
use crate::cli::{Global, code_of};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{duration, json, line, list, note};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List subscriptions: where each stands, and what is wrong
    #[command(after_help = "Examples:\n  herald sub list\n  herald sub list --group projector -o json")]
    List(Selection),
    /// Show one subscription: what broke, where, and what to do next
    #[command(after_help = "Example:\n  herald sub show inbox_1")]
    Show {
        /// Its id
        id: String,
    },
    /// Show what became of one subscription, when, why and by whom
    #[command(
        after_help = "Examples:\n  herald sub history inbox_1\n  herald sub history inbox_1 --limit 1000 -o jsonl"
    )]
    History(history::Arguments),
    /// Wait until a subscription has handled everything up to a position
    #[command(after_help = wait::HELP)]
    Wait(wait::Arguments),
    /// Add a row for every subscriber of this program that has none
    #[command(after_help = "Example:\n  herald sub discover")]
    Discover,
    /// Bring group, run mode and tables from the code to the rows
    #[command(after_help = refresh::HELP)]
    Refresh(refresh::Arguments),
    /// Build a projector's tables anew from the first event on; they are empty meanwhile
    #[command(after_help = "Example:\n  herald sub replay inbox_1 --reason \"the handler was wrong\"")]
    Replay {
        /// Its id
        id: String,
    },
    /// Put a projector somewhere else in the log: back or forward
    #[command(after_help = rewind::HELP)]
    Rewind(rewind::Arguments),
    /// List the timers of a subscription, the first due first; or decide on one
    #[command(
        after_help = "Examples:\n  herald sub timers reminder_schedule\n  herald sub timers reminder_schedule --retry user-7 --reason \"fixed\""
    )]
    Timers(timers::Timers),
    /// Set up what is new
    #[command(after_help = "Example:\n  herald sub setup inbox_1")]
    Setup {
        #[command(flatten)]
        selection: Selection,
        /// Go straight to active
        #[arg(long)]
        skip_booting: bool,
    },
    /// Move what is booting to the head
    #[command(after_help = "Example:\n  herald sub boot")]
    Boot(Moving),
    /// Move what is active to the head, and fire its timers that are due
    #[command(after_help = "Example:\n  herald sub run --group projector")]
    Run(Moving),
    /// Stop subscriptions until they are reactivated
    #[command(after_help = "Example:\n  herald sub pause inbox_1 --reason \"maintenance\"")]
    Pause(Steering),
    /// Set paused, failed, finished or detached subscriptions going again
    #[command(after_help = "Example:\n  herald sub reactivate inbox_1 --reason \"fixed\"")]
    Reactivate(Steering),
    /// Move a subscription past the next event without handling it
    #[command(
        after_help = "Example:\n  herald sub skip inbox_1 42 --reason \"a test event that got in by mistake\""
    )]
    Skip {
        /// Its id
        id: String,
        /// The position of the event: where it failed, or the next one that it wants
        position: i64,
    },
    /// Tear down what is detached: drop its tables and forget it
    #[command(after_help = "Example:\n  herald sub teardown old_1 --yes")]
    Teardown(Steering),
    /// Remove subscriptions and drop their tables
    #[command(after_help = remove::HELP)]
    Remove(remove::Arguments),
}

/// Which subscriptions; nothing given means all.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only these ids
    ids: Vec<String>,
    /// Only this group; may be given more than once
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
}

/// Which subscriptions, and how far.
#[derive(Debug, Args)]
pub(crate) struct Moving {
    #[command(flatten)]
    selection: Selection,
    /// Stop after so many events of each subscription
    #[arg(long, value_name = "EVENTS")]
    limit: Option<u64>,
}

/// Which subscriptions; they must be named.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "groups", "all"])))]
pub(crate) struct Steering {
    /// These ids
    ids: Vec<String>,
    /// This group; may be given more than once
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Every subscription
    #[arg(long, conflicts_with_all = ["ids", "groups"])]
    all: bool,
}

fn criteria(ids: &[String], groups: &[String]) -> Criteria {
    let given = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    Criteria { ids: given(ids), groups: given(groups) }
}

impl Selection {
    fn criteria(&self) -> Criteria {
        criteria(&self.ids, &self.groups)
    }
}

impl Steering {
    fn criteria(&self) -> Criteria {
        criteria(&self.ids, &self.groups)
    }
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    let app = match command {
        Command::List(_) | Command::Show { .. } | Command::History(_) | Command::Wait(_) => {
            App::open_to_look(config).await?
        }
        Command::Timers(ref timers) if timers.only_looks() => App::open_to_look(config).await?,
        Command::Pause(_) => App::open_to_stop(config).await?,
        _ => App::open(config).await?,
    };
    let engine = &app.engine;
    let reason = |verb: &str| global.reason.clone().unwrap_or_else(|| format!("{verb} by {}", config.who));
    let result = match command {
        Command::List(selection) => {
            let criteria = known(&app, selection.criteria()).await?;
            list_all(&app, global, &criteria).await
        }
        Command::Show { id } => show::run(&app, global, &id).await,
        Command::History(arguments) => history::run(&app, global, &arguments).await,
        Command::Wait(arguments) => wait::run(&app, global, &arguments).await,
        Command::Discover => discover(&app, global).await,
        Command::Refresh(arguments) => refresh::run(&app, global, &arguments, &reason("refreshed")).await,
        Command::Replay { id } => {
            known(&app, Criteria::id(&id)).await?;
            let outcome = engine.replay(&id, &reason("replayed"), progress_of(&id)).await?;
            told(global, "replay", &vec![(id, outcome)], "nothing to replay")
        }
        Command::Rewind(arguments) => rewind::run(&app, global, &arguments, &reason("put elsewhere")).await,
        Command::Timers(arguments) => timers::run(&app, global, &arguments, &config.who).await,
        Command::Setup { selection, skip_booting } => {
            let criteria = known(&app, selection.criteria()).await?;
            told(global, "setup", &engine.set_up(&criteria, skip_booting).await?, "nothing is new")
        }
        Command::Boot(Moving { selection, limit }) => {
            let criteria = known(&app, selection.criteria()).await?;
            told(global, "boot", &engine.boot(&criteria, limit).await?, "nothing is booting")
        }
        Command::Run(Moving { selection, limit }) => {
            let criteria = known(&app, selection.criteria()).await?;
            told(global, "run", &engine.run(&criteria, limit).await?, "nothing is active")
        }
        Command::Pause(which) => {
            let criteria = known(&app, which.criteria()).await?;
            told(global, "pause", &engine.pause(&criteria, &reason("paused")).await?, "nothing to pause")
        }
        Command::Reactivate(which) => {
            let criteria = known(&app, which.criteria()).await?;
            let report = engine.reactivate(&criteria, &reason("reactivated")).await?;
            told(global, "reactivate", &report, "nothing to reactivate")
        }
        Command::Skip { id, position } => {
            let why = reason_given(global, "skipped")?;
            known(&app, Criteria::id(&id)).await?;
            let outcome = engine.skip(&id, Position(position), why).await?;
            told(global, "skip", &vec![(id, outcome)], "nothing to skip")
        }
        Command::Teardown(which) => {
            let criteria = known(&app, which.criteria()).await?;
            only_detached(&app, &criteria).await?;
            remove::confirm_removal(&app, global, &criteria, false).await?;
            let report = engine.tear_down_detached(&criteria, &reason("torn down")).await?;
            told(global, "teardown", &report, "nothing is detached")
        }
        Command::Remove(arguments) => remove::run(&app, global, &arguments, &reason("removed")).await,
    };
    app.store.close().await;
    result
}

async fn discover(app: &App, global: &Global) -> Result<(), Exit> {
    let added = app.engine.discover().await?;
    if global.output.is_json() {
        return json("herald.sub.discover/1", &serde_json::json!({ "added": added }));
    }
    line(&format!("{added} added"));
    if added > 0 {
        note("Set them up with `herald sub setup`; a worker does it by itself.");
    }
    Ok(())
}

/// What nobody handles any more is given up for a reason; `what` is done then.
pub(crate) fn reason_given<'g>(global: &'g Global, what: &str) -> Result<&'g str, Exit> {
    let reason = global.reason.as_deref().filter(|reason| !reason.trim().is_empty());
    reason.ok_or_else(|| {
        Exit::new(Code::Usage, format!("nothing is {what} without a reason"))
            .with_hint("add --reason TEXT; it is kept in the history")
    })
}

/// An id that nobody knows is a mistake, not an empty selection.
pub(crate) async fn known(app: &App, criteria: Criteria) -> Result<Criteria, Exit> {
    if criteria == Criteria::all() {
        return Ok(criteria);
    }
    let all = app.engine.status(&Criteria::all()).await?;
    for group in criteria.groups.iter().flatten() {
        if all.iter().all(|overview| overview.subscription.group != *group) {
            let mut groups: Vec<&str> =
                all.iter().map(|overview| overview.subscription.group.as_str()).collect();
            groups.dedup();
            return Err(Exit::new(Code::NotFound, format!("there is no subscription in a group {group:?}"))
                .with_hint(format!("there are: {}", groups.join(", "))));
        }
    }
    for id in criteria.ids.iter().flatten() {
        if all.iter().all(|overview| overview.subscription.id != *id) {
            let ids: Vec<&str> = all.iter().map(|overview| overview.subscription.id.as_str()).collect();
            return Err(Exit::new(Code::NotFound, format!("there is no subscription {id:?}"))
                .with_hint(format!("there are: {}", ids.join(", "))));
        }
    }
    Ok(criteria)
}

#[derive(Serialize)]
struct Row {
    id: String,
    group: String,
    status: Status,
    progress: &'static str,
    stalled_because: Option<String>,
    run_mode: &'static str,
    position: Option<String>,
    lag: String,
    lag_seconds: Option<u64>,
    /// Positions a second, of what moves.
    rate: Option<f64>,
    /// Until nothing waits any more, at this rate.
    seconds_left: Option<u64>,
    dead_letters: String,
    attempt: u32,
    next_retry: Option<Timestamp>,
    effects_pending: String,
    effects_held: String,
    timers_pending: String,
    timers_overdue: String,
    timers_held: String,
    definition_changes: Vec<String>,
    note: String,
}

impl Row {
    fn new(overview: &Overview, rate: Option<f64>, now: Timestamp) -> Self {
        let subscription = &overview.subscription;
        let next_retry = match subscription.state {
            State::Error { next_retry, .. } => next_retry,
            _ => None,
        };
        Self {
            id: subscription.id.clone(),
            group: subscription.group.clone(),
            status: subscription.state.status(),
            progress: overview.standing.word(),
            stalled_because: stalled_because(overview, now),
            run_mode: subscription.run_mode.word(),
            position: subscription.position.map(|position| position.to_string()),
            lag: overview.lag.to_string(),
            lag_seconds: overview.waiting_since.map(|since| now.since(since).as_secs()),
            rate,
            seconds_left: time_left(overview, rate).map(|left| left.as_secs()),
            dead_letters: subscription.letters.open.to_string(),
            attempt: subscription.attempt,
            next_retry,
            effects_pending: overview.effects.pending.to_string(),
            effects_held: overview.effects.held.to_string(),
            timers_pending: overview.timers.pending.to_string(),
            timers_overdue: overview.timers.overdue.to_string(),
            timers_held: overview.timers.held.to_string(),
            definition_changes: overview.changes.clone(),
            note: what_to_know(overview, now),
        }
    }

    fn lag_text(&self) -> String {
        match self.lag_seconds {
            Some(seconds) => format!("{} ({})", self.lag, duration(std::time::Duration::from_secs(seconds))),
            None => self.lag.clone(),
        }
    }
}

/// How fast it moves, and how long that takes.
fn rate_text(row: &Row) -> String {
    match (row.rate, row.seconds_left) {
        (None, _) => "-".to_owned(),
        (Some(rate), None) => format!("{rate}/s"),
        (Some(rate), Some(left)) => {
            format!("{rate}/s ({} left)", duration(std::time::Duration::from_secs(left)))
        }
    }
}

/// What an operator must know of it, in a few words.
fn what_to_know(overview: &Overview, now: Timestamp) -> String {
    let held = |count: i64, what: &str| (count > 0).then(|| format!("{count} {what}(s) held"));
    let state = Some(what_its_state_says(overview, now)).filter(|word| !word.is_empty());
    let changed = (!overview.changes.is_empty()).then(|| "its definition has changed".to_owned());
    let held = [held(overview.effects.held, "effect"), held(overview.timers.held, "timer")];
    let words = [state, changed].into_iter().chain(held);
    words.flatten().collect::<Vec<_>>().join("; ")
}

/// How many attempts there are at most, if anybody would count so far.
fn of_attempts(overview: &Overview) -> String {
    let max = overview.max_attempts.filter(|max| *max < u32::MAX);
    max.map_or_else(String::new, |max| format!(" of {max}"))
}

fn what_its_state_says(overview: &Overview, now: Timestamp) -> String {
    let attempts = of_attempts(overview);
    match &overview.subscription.state {
        State::Error { failure, next_retry: Some(at), .. } => format!(
            "attempt {}{attempts} in {}: {}",
            overview.subscription.attempt + 1,
            duration(at.since(now)),
            failure.message()
        ),
        State::Error { failure, next_retry: None, .. } if overview.subscription.attempt == 0 => {
            format!("stopped: {}", failure.message())
        }
        State::Error { failure, next_retry: None, .. } => {
            format!("gave up after {} attempts: {}", overview.subscription.attempt, failure.message())
        }
        State::New => "not set up yet".to_owned(),
        _ => match &overview.standing {
            Standing::Idle | Standing::Lagging => String::new(),
            standing => standing_text(standing, now),
        },
    }
}

/// Why it does not move though it should.
pub(super) fn stalled_because(overview: &Overview, now: Timestamp) -> Option<String> {
    match &overview.standing {
        Standing::Stalled(stall) => Some(stall_text(stall, now)),
        _ => None,
    }
}

async fn list_all(app: &App, global: &Global, criteria: &Criteria) -> Result<(), Exit> {
    let mut overviews = app.engine.status(criteria).await?;
    let mut before = None;
    if overviews.iter().any(pace::moves) {
        // Only a second look tells how fast.
        before = Some(Stood::new(app.store.head().await?.position, &overviews));
        tokio::time::sleep(pace::BETWEEN).await;
        overviews = app.engine.status(criteria).await?;
    }
    let stand = Stood::new(app.store.head().await?.position, &overviews);
    let rate = |overview: &Overview| before.as_ref().and_then(|before| before.rate(overview, &stand));
    let now = app.store.clock().now().await?;
    let mut rows: Vec<Row> = overviews.iter().map(|one| Row::new(one, rate(one), now)).collect();
    for (row, overview) in rows.iter_mut().zip(&overviews) {
        // Why it is paused is told too where nothing waits for it.
        if let (State::Paused { .. }, Standing::Idle) = (&overview.subscription.state, &overview.standing)
            && let Some(past) = app.engine.history(&row.id, 1).await?.pop()
        {
            let paused = Stall::Paused { why: past.why, who: past.who }.to_string();
            row.note = if row.note.is_empty() { paused } else { format!("{paused}; {}", row.note) };
        }
    }
    let header = ["ID", "GROUP", "STATUS", "PROGRESS", "POSITION", "LAG", "RATE", "DEAD", "NOTE"];
    list(global.output, global.no_header, "herald.sub.list/1", &header, &rows, None, |row| {
        vec![
            row.id.clone(),
            row.group.clone(),
            row.status.to_string(),
            row.progress.to_owned(),
            row.position.clone().unwrap_or_else(|| "-".to_owned()),
            row.lag_text(),
            rate_text(row),
            row.dead_letters.clone(),
            row.note.clone(),
        ]
    })?;
    let in_error: Vec<&Row> = rows.iter().filter(|row| row.status == Status::Error).collect();
    if let Some(first) = in_error.first() {
        note(&format!("{} in error. See why: herald sub show {}", in_error.len(), first.id));
    }
    if let Some(changed) = rows.iter().find(|row| !row.definition_changes.is_empty()) {
        note(&format!("A definition has changed without a new id. See what: herald sub show {}", changed.id));
    }
    if rows.iter().any(|row| row.dead_letters != "0") {
        note("There are dead letters. See them: herald dlq list");
    }
    Ok(())
}

/// Says what became of each, and ends with the code of the worst.
fn told(global: &Global, verb: &str, report: &Report, if_none: &str) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Told<'a> {
        id: &'a str,
        outcome: String,
        done: bool,
    }
    let told: Vec<Told<'_>> = report
        .iter()
        .map(|(id, outcome)| Told { id, outcome: outcome_text(outcome), done: code_of(outcome).is_none() })
        .collect();
    if global.output.is_json() {
        json(&format!("herald.sub.{verb}/1"), &told)?;
    } else {
        for told in &told {
            line(&format!("{}: {}", told.id, told.outcome));
        }
        if told.is_empty() {
            note(if_none);
        }
    }
    match report.iter().find_map(|(_, outcome)| code_of(outcome)) {
        None => Ok(()),
        Some(code) => {
            let undone = told.into_iter().filter(|told| !told.done);
            Err(Exit::not_done(code, undone.map(|told| (told.id.to_owned(), told.outcome))))
        }
    }
}

/// An outcome in words.
pub(crate) fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Became { from, to } => format!("was {from}, is {to}"),
        Outcome::Removed { failure: None } => "removed".to_owned(),
        Outcome::Removed { failure: Some(failure) } => {
            format!("removed, but its teardown failed: {}", failure.chain.join(": "))
        }
        Outcome::CaughtUp { events } => format!("caught up, {events} event(s) handled"),
        Outcome::LimitReached { events } => format!("limit reached, {events} event(s) handled"),
        Outcome::Parked { events, parked, at_head } => {
            let done = if *at_head { "caught up" } else { "limit reached" };
            let first = &parked.first;
            format!(
                "{done}, {events} event(s) handled, {} set aside as dead letter(s), first position {} ({}): {}",
                parked.letters, first.position, first.event_type, parked.why
            )
        }
        Outcome::Placed { from, to, status, letters } => {
            let forgotten =
                if *letters > 0 { format!("; {letters} dead letter(s) forgotten") } else { String::new() };
            format!("stood at position {from}, stands at {to}, is {status}{forgotten}")
        }
        Outcome::Refreshed { changes } if changes.is_empty() => "nothing to refresh".to_owned(),
        Outcome::Refreshed { changes } => format!("refreshed: {}", changes.join("; ")),
        Outcome::Skipped { position, to } => format!("skipped position {position}, is {to}"),
        Outcome::Busy => "another worker has it".to_owned(),
        Outcome::Waiting { why } => format!("waiting: {why}"),
        Outcome::Refused { why } => why.clone(),
        Outcome::Failed { failure } => {
            let at = failure.event.as_ref().map_or_else(String::new, |event| {
                format!(" at position {} ({})", event.position, event.event_type)
            });
            format!("failed{at}: {}", failure.chain.join(": "))
        }
    }
}

/// Only what is detached is torn down: of anything else that was named, nobody needs to be asked.
async fn only_detached(app: &App, criteria: &Criteria) -> Result<(), Exit> {
    let Some(ids) = &criteria.ids else { return Ok(()) };
    let overviews = app.engine.status(criteria).await?;
    let subscriptions = overviews.iter().map(|overview| &overview.subscription);
    let others = subscriptions.filter(|subscription| subscription.state.status() != Status::Detached);
    let refused: Vec<(String, String)> = others
        .filter(|subscription| ids.contains(&subscription.id))
        .map(|subscription| {
            let why = format!("its status is {}, not detached", subscription.state.status());
            (subscription.id.clone(), why)
        })
        .collect();
    match refused.first() {
        None => Ok(()),
        Some((first, _)) => {
            let hint = format!("`herald sub remove {first}` removes one in any state");
            Err(Exit::not_done(Code::Conflict, refused.clone()).with_hint(hint))
        }
    }
}
