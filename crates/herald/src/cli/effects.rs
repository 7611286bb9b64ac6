//! `herald effects`: what is to be done outside the database, what became of it, and what an operator decides.

mod show;
mod steer;

use clap::{Args, Subcommand};
use serde::Serialize;
use store::Timestamp;
use subscription_engine::{Criteria, EffectFilter, EffectRecord, EffectState, EffectStatus};
use uuid::Uuid;

use crate::app::App;
use crate::cli::{Global, known};
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{list, moment, note};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List effects, the newest first
    #[command(
        after_help = "Examples:\n  herald effects list --state held\n  herald effects list --subscription email_delivery --destination test@example.com -o json"
    )]
    List(List),
    /// Show one effect: each attempt, why it waits or is in doubt, and what to do next
    #[command(after_help = "Example:\n  herald effects show 8f3b…")]
    Show {
        /// Its id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Have effects tried at once that failed, or wait to be tried again
    #[command(
        after_help = "Examples:\n  herald effects retry 8f3b… --reason \"the mailbox is back\"\n  herald effects retry --destination test@example.com"
    )]
    Retry(steer::Which),
    /// Keep effects from being sent until they are released
    #[command(after_help = "Example:\n  herald effects hold --kind email --reason \"wrong template\"")]
    Hold(steer::Which),
    /// Let held effects be sent
    #[command(
        after_help = "Examples:\n  herald effects release 8f3b… --reason \"it did not arrive\"\n  herald effects release --subscription email_delivery"
    )]
    Release(steer::Which),
    /// Give effects up: they are never sent
    #[command(after_help = "Example:\n  herald effects discard 8f3b… --reason \"it did arrive\" --yes")]
    Discard(steer::Which),
}

/// Which effects; nothing given means all.
#[derive(Clone, Debug, Args)]
pub(crate) struct Filter {
    /// Only in this state: pending, sending, held, done, failed, unwanted or discarded
    #[arg(long, value_name = "STATE")]
    state: Option<EffectStatus>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only for this destination
    #[arg(long)]
    destination: Option<String>,
    /// Only planned by this subscription
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
}

impl From<Filter> for EffectFilter {
    fn from(filter: Filter) -> Self {
        let Filter { state: status, kind, destination, subscription } = filter;
        Self { status, kind, destination, subscription }
    }
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Only those before this number, which the JSON of the last page names as `next`
    #[arg(long, value_name = "NUMBER")]
    before: Option<i64>,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Serialize)]
struct Row {
    number: String,
    id: Uuid,
    subscription: String,
    kind: String,
    destination: String,
    state: &'static str,
    hold: Option<String>,
    attempt: u32,
    failures: u32,
    due_at: Option<Timestamp>,
    caused_at: Timestamp,
    changed_at: Timestamp,
    why: String,
}

impl From<&EffectRecord> for Row {
    fn from(record: &EffectRecord) -> Self {
        let hold = match record.state {
            EffectState::Held { hold } | EffectState::Sending { hold: Some(hold), .. } => {
                Some(hold.to_string())
            }
            _ => None,
        };
        Self {
            number: record.number.to_string(),
            id: record.effect.id,
            subscription: record.effect.subscription_id.clone(),
            kind: record.effect.kind.clone(),
            destination: record.effect.destination.clone(),
            state: record.state.status().word(),
            hold,
            attempt: record.effect.attempt,
            failures: record.failures,
            due_at: (record.state == EffectState::Pending).then_some(record.due_at),
            caused_at: record.effect.caused_at,
            changed_at: record.changed_at,
            why: record.why.clone(),
        }
    }
}

fn parse_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| "an effect id is a UUID; see `herald effects list`".to_owned())
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    let only_looks = matches!(command, Command::List(_) | Command::Show { .. });
    let app = if only_looks { App::open_to_look(config).await? } else { App::open(config).await? };
    let result = match command {
        Command::List(arguments) => list_some(&app, global, arguments).await,
        Command::Show { id } => show::run(&app, global, id).await,
        Command::Retry(which) => steer::run(&app, global, steer::Verb::Retry, which, &config.who).await,
        Command::Hold(which) => steer::run(&app, global, steer::Verb::Hold, which, &config.who).await,
        Command::Release(which) => steer::run(&app, global, steer::Verb::Release, which, &config.who).await,
        Command::Discard(which) => steer::run(&app, global, steer::Verb::Discard, which, &config.who).await,
    };
    app.store.close().await;
    result
}

async fn list_some(app: &App, global: &Global, arguments: List) -> Result<(), Exit> {
    let List { filter, before, limit } = arguments;
    let filter = EffectFilter::from(filter);
    let records = app.engine.effects(&filter, before, limit).await?;
    // One that was removed may have left effects behind; where there are none, its name may be a slip.
    if let (true, Some(id)) = (records.is_empty(), &filter.subscription) {
        known(app, Criteria::id(id)).await?;
    }
    let rows: Vec<Row> = records.iter().map(Row::from).collect();
    let is_full = rows.len() == usize::try_from(limit).unwrap_or(usize::MAX);
    let next = rows.last().filter(|_| is_full).map(|row| row.number.clone());
    let header = ["ID", "KIND", "DESTINATION", "STATE", "ATTEMPTS", "CAUSED", "SUBSCRIPTION", "NOTE"];
    let schema = "herald.effects.list/1";
    list(global.output, global.no_header, schema, &header, &rows, next.as_deref(), |row| {
        vec![
            row.id.to_string(),
            row.kind.clone(),
            row.destination.clone(),
            row.state.to_owned(),
            row.attempt.to_string(),
            moment(row.caused_at),
            row.subscription.clone(),
            what_to_know(row),
        ]
    })?;
    if let (Some(next), false) = (next, global.output.is_json()) {
        note(&format!("There may be more: add --before {next}"));
    }
    Ok(())
}

/// What an operator must know of it, in a few words.
fn what_to_know(row: &Row) -> String {
    let due = row.due_at.map(|due| format!("due {}", moment(due)));
    let words = [due, row.hold.clone(), Some(row.why.clone()).filter(|why| !why.is_empty())];
    words.into_iter().flatten().collect::<Vec<_>>().join(": ")
}
