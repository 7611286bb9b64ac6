//! `herald events stats`: what is in the log, counted.

use ::store::{Statistics, TypeStatistics};
use clap::Args;

use crate::app::App;
use crate::cli::Global;
use crate::exit::Exit;
use crate::output::{json, line, list, moment, note};

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// So many types at most, the most frequent first
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    types: u32,
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Stats) -> Result<(), Exit> {
    let statistics = app.store.statistics(arguments.types).await?;
    if global.output.is_json() {
        return json("herald.events.stats/1", &document(&statistics));
    }
    let recorded = statistics
        .recorded
        .map_or_else(|| "-".to_owned(), |(first, last)| format!("{} to {}", moment(first), moment(last)));
    let fields = [
        ("head", statistics.head.to_string()),
        ("events", statistics.events.to_string()),
        ("holes", statistics.holes.to_string()),
        ("streams", statistics.streams.to_string()),
        ("recorded", recorded),
    ];
    for (name, value) in fields {
        line(&format!("{name:<12}{value}"));
    }
    line("");
    let header = ["TYPE", "EVENTS", "FIRST", "LAST"];
    let columns = |of_type: &Row| {
        vec![of_type.event_type.clone(), of_type.events.clone(), of_type.first.clone(), of_type.last.clone()]
    };
    let rows: Vec<Row> = statistics.types.iter().map(Row::from).collect();
    list(global.output, global.no_header, "herald.events.stats/1", &header, &rows, None, columns)?;
    if rows.len() == arguments.types as usize {
        note("There may be more types: add --types NUMBER.");
    }
    Ok(())
}

#[derive(serde::Serialize)]
struct Row {
    #[serde(rename = "type")]
    event_type: String,
    events: String,
    first: String,
    last: String,
}

impl From<&TypeStatistics> for Row {
    fn from(of_type: &TypeStatistics) -> Self {
        Self {
            event_type: of_type.event_type.clone(),
            events: of_type.events.to_string(),
            first: of_type.first.to_string(),
            last: of_type.last.to_string(),
        }
    }
}

fn document(statistics: &Statistics) -> serde_json::Value {
    serde_json::json!({
        "head": statistics.head.to_string(),
        "events": statistics.events.to_string(),
        "holes": statistics.holes.to_string(),
        "streams": statistics.streams.to_string(),
        "first_recorded_at": statistics.recorded.map(|recorded| recorded.0),
        "last_recorded_at": statistics.recorded.map(|recorded| recorded.1),
        "types": statistics.types.iter().map(Row::from).collect::<Vec<_>>(),
    })
}
