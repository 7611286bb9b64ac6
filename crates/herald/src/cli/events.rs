//! `herald events`: looking into the log, and writing to it by hand.

mod append;
mod condition;
mod list;
mod raw;
mod selection;
mod stats;
mod tail;

use ::store::{Event, Filter, Json, Position};
use clap::Subcommand;
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line};

pub(in crate::cli) use append::{parse, text_or_file};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List events, oldest first
    #[command(
        after_help = "Examples:\n  herald events list --stream user-user1\n  herald events list --reverse --limit 10\n  \
                      herald events list --category order --where 'meta.tenant = acme' --where 'version >= 1'"
    )]
    List(list::List),
    /// Show events as they come, until told to stop
    #[command(
        after_help = "Examples:\n  herald events tail\n  herald events tail -n 0 --type Acme.Notifications:UserWasNotified\n  \
                      herald events tail --from-start --category user -o jsonl"
    )]
    Tail(tail::Tail),
    /// Show one event
    #[command(after_help = "Examples:\n  herald events show 7\n  herald events show 0190d6f2-…")]
    Show {
        /// Its position or its id
        event: String,
        /// Its row as it is stored, also where that cannot be read as an event, and what is wrong with it
        #[arg(long)]
        raw: bool,
    },
    /// Append events by hand
    #[command(
        after_help = "Examples:\n  herald events append account-7 --type Bank:MoneyWasDeposited --payload '{\"cents\":500}' --expected none\n  \
                      herald events append account-7 --lines events.jsonl --expected 0"
    )]
    Append(append::Append),
    /// Count what is in the log: events, streams, types
    #[command(after_help = "Example:\n  herald events stats --types 10")]
    Stats(stats::Stats),
}

#[derive(Serialize)]
pub(in crate::cli) struct Row {
    pub(in crate::cli) position: String,
    stream: String,
    version: String,
    #[serde(rename = "type")]
    event_type: String,
    payload: Json,
    metadata: Json,
    id: Uuid,
    correlation_id: Option<String>,
    causation_id: Option<Uuid>,
    pub(in crate::cli) recorded_at: ::store::Timestamp,
}

impl From<Event> for Row {
    fn from(event: Event) -> Self {
        Self {
            position: event.position.to_string(),
            stream: event.stream.to_string(),
            version: event.version.to_string(),
            event_type: event.event_type,
            payload: event.payload,
            metadata: event.metadata,
            id: event.id,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            recorded_at: event.recorded_at,
        }
    }
}

impl Row {
    pub(in crate::cli) const COLUMNS: [&str; 6] = ["POSITION", "RECORDED", "TYPE", "STREAM", "VERSION", "ID"];

    pub(in crate::cli) fn columns(&self) -> Vec<String> {
        vec![
            self.position.clone(),
            self.recorded_at.to_string(),
            self.event_type.clone(),
            self.stream.clone(),
            self.version.clone(),
            self.id.to_string(),
        ]
    }
}

/// Answers with the exit code.
pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<u8, Exit> {
    match command {
        // Opens a store by itself: it makes one where there is none.
        Command::Append(arguments) => append::run(config, global, arguments).await?,
        Command::Stats(arguments) => {
            stats::run(&App::open_to_look(config).await?, global, &arguments).await?;
        }
        Command::List(arguments) => list::run(config, global, arguments).await?,
        Command::Tail(arguments) => return tail::run(config, global, arguments).await,
        Command::Show { event, raw: true } => {
            let app = App::open_to_look(config).await?;
            raw::show(&app, global, position_of(&app, &event).await?, &event).await?;
        }
        Command::Show { event, raw: false } => {
            let row = Row::from(find(&App::open_to_look(config).await?, &event).await?);
            if global.output.is_json() {
                json("herald.events.show/1", &row)?;
            } else {
                show(&row);
            }
        }
    }
    Ok(0)
}

fn missing(event: &str) -> Exit {
    Exit::new(Code::NotFound, format!("there is no event {event}"))
}

async fn position_of(app: &App, event: &str) -> Result<Position, Exit> {
    let position = match (event.parse::<i64>(), event.parse::<Uuid>()) {
        (Ok(position), _) => Some(Position(position)),
        (_, Ok(id)) => app.store.find(id).await?,
        _ => return Err(Exit::new(Code::Usage, format!("{event:?} is neither a position nor an event id"))),
    };
    position.filter(|position| position.0 > 0).ok_or_else(|| missing(event))
}

async fn find(app: &App, event: &str) -> Result<Event, Exit> {
    let position = position_of(app, event).await?;
    // What the log keeps is shown, whoever else does not read it any more.
    let store = app.store.clone().with_closed_streams();
    let events =
        store.read_backwards(&Filter::all(), Some(Position(position.0.saturating_add(1))), 1).await?;
    events.events.into_iter().find(|event| event.position == position).ok_or_else(|| missing(event))
}

fn show(row: &Row) {
    let none = || "-".to_owned();
    let fields = [
        ("position", row.position.clone()),
        ("type", row.event_type.clone()),
        ("stream", row.stream.clone()),
        ("version", row.version.clone()),
        ("id", row.id.to_string()),
        ("correlation", row.correlation_id.clone().unwrap_or_else(none)),
        ("causation", row.causation_id.map_or_else(none, |id| id.to_string())),
        ("recorded", row.recorded_at.to_string()),
        ("metadata", row.metadata.to_string()),
        ("payload", pretty(&row.payload)),
    ];
    for (name, value) in fields {
        // Each line by itself: what a line holds is made visible, its end too.
        for (number, part) in value.lines().enumerate() {
            line(&format!("{:<12}{part}", if number == 0 { name } else { "" }));
        }
    }
}

/// For people; what is stored stays as it is.
fn pretty(payload: &Json) -> String {
    let value = payload.to::<serde_json::Value>();
    value.and_then(|value| serde_json::to_string_pretty(&value)).unwrap_or_else(|_| payload.to_string())
}
