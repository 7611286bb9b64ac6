//! `herald events`: looking into the log, and writing to it by hand.

mod append;
mod stats;

use ::store::{Event, Filter, Json, Position, StreamName};
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, list};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List events, oldest first
    #[command(
        after_help = "Examples:\n  herald events list --stream user-user1\n  herald events list --reverse --limit 10"
    )]
    List(List),
    /// Show one event
    #[command(after_help = "Examples:\n  herald events show 7\n  herald events show 0190d6f2-…")]
    Show {
        /// Its position or its id
        event: String,
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

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this stream
    #[arg(long)]
    stream: Option<StreamName>,
    /// Only this type; may be given more than once
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only after this position
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    after: i64,
    /// Only before this position (with --reverse)
    #[arg(long, value_name = "POSITION", requires = "reverse")]
    before: Option<i64>,
    /// Newest first
    #[arg(long, conflicts_with = "after")]
    reverse: bool,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
}

#[derive(Serialize)]
struct Row {
    position: String,
    stream: String,
    version: String,
    #[serde(rename = "type")]
    event_type: String,
    payload: Json,
    metadata: Json,
    id: Uuid,
    correlation_id: Option<String>,
    causation_id: Option<Uuid>,
    recorded_at: ::store::Timestamp,
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

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        // Opens a store by itself: it makes one where there is none.
        Command::Append(arguments) => append::run(config, global, arguments).await,
        Command::Stats(arguments) => stats::run(&App::open_to_look(config).await?, global, &arguments).await,
        Command::List(arguments) => {
            let limit = usize::from(arguments.limit);
            let rows = select(&App::open_to_look(config).await?, arguments).await?;
            let next = rows.last().filter(|_| rows.len() == limit).map(|row| row.position.clone());
            let header = ["POSITION", "RECORDED", "TYPE", "STREAM", "VERSION", "ID"];
            list(
                global.output,
                global.no_header,
                "herald.events.list/1",
                &header,
                &rows,
                next.as_deref(),
                |row| {
                    let recorded = row.recorded_at.to_string();
                    let id = row.id.to_string();
                    vec![
                        row.position.clone(),
                        recorded,
                        row.event_type.clone(),
                        row.stream.clone(),
                        row.version.clone(),
                        id,
                    ]
                },
            )
        }
        Command::Show { event } => {
            let row = Row::from(find(&App::open_to_look(config).await?, &event).await?);
            if global.output.is_json() {
                return json("herald.events.show/1", &row);
            }
            show(&row);
            Ok(())
        }
    }
}

async fn select(app: &App, arguments: List) -> Result<Vec<Row>, Exit> {
    let mut filter = Filter::all();
    if let Some(stream) = arguments.stream {
        filter = filter.stream(stream);
    }
    if !arguments.types.is_empty() {
        filter = filter.types(arguments.types);
    }
    let limit = usize::from(arguments.limit);
    let events = if arguments.reverse {
        app.store.read_backwards(&filter, arguments.before.map(Position), limit).await?.events
    } else {
        app.store.read(&filter, Position(arguments.after), limit).await?.events
    };
    Ok(events.into_iter().map(Row::from).collect())
}

async fn find(app: &App, event: &str) -> Result<Event, Exit> {
    let position = match (event.parse::<i64>(), event.parse::<Uuid>()) {
        (Ok(position), _) => Some(Position(position)),
        (_, Ok(id)) => app.store.find(id).await?,
        _ => return Err(Exit::new(Code::Usage, format!("{event:?} is neither a position nor an event id"))),
    };
    let missing = || Exit::new(Code::NotFound, format!("there is no event {event}"));
    let position = position.filter(|position| position.0 > 0).ok_or_else(missing)?;
    let events =
        app.store.read_backwards(&Filter::all(), Some(Position(position.0.saturating_add(1))), 1).await?;
    events.events.into_iter().find(|event| event.position == position).ok_or_else(missing)
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
        line(&format!("{name:<12}{}", value.replace('\n', "\n            ")));
    }
}

/// For people; what is stored stays as it is.
fn pretty(payload: &Json) -> String {
    let value = payload.to::<serde_json::Value>();
    value.and_then(|value| serde_json::to_string_pretty(&value)).unwrap_or_else(|_| payload.to_string())
}
