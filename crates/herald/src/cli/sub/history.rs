//! `herald sub history`: every change of one subscription, also of one that was removed.

use clap::Args;
use serde::Serialize;
use store::Timestamp;

use crate::app::App;
use crate::cli::{Global, known};
use crate::exit::Exit;
use crate::output::{list, moment};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Its id
    id: String,
    /// The last so many lines
    #[arg(long, value_name = "LINES", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
}

#[derive(Serialize)]
struct Row {
    at: Timestamp,
    from: Option<String>,
    to: String,
    position: Option<String>,
    why: String,
    who: String,
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Arguments) -> Result<(), Exit> {
    let lines = app.engine.history(&arguments.id, arguments.limit).await?;
    if lines.is_empty() {
        known(app, subscription_engine::Criteria::id(&arguments.id)).await?;
    }
    let rows: Vec<Row> = lines
        .into_iter()
        .map(|line| Row {
            at: line.at,
            from: line.from_status,
            to: line.to_status,
            position: line.position.map(|position| position.to_string()),
            why: line.why,
            who: line.who,
        })
        .collect();
    let header = ["AT", "FROM", "TO", "POSITION", "WHY", "WHO"];
    list(global.output, global.no_header, "herald.sub.history/1", &header, &rows, None, |row| {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let (from, position) = (or_none(&row.from), or_none(&row.position));
        vec![moment(row.at), from, row.to.clone(), position, row.why.clone(), row.who.clone()]
    })
}
