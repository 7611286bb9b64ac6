//! `herald events list`: a page of events, oldest or newest first.

use ::store::{Direction, MAX_PAGE_BYTES, Position};
use clap::Args;

use super::Row;
use super::selection::Selection;
use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{list, note};

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    selection: Selection,
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

pub(super) async fn run(config: &Config, global: &Global, arguments: List) -> Result<(), Exit> {
    let direction = if arguments.reverse { Direction::Backwards } else { Direction::Forwards };
    let (rows, next) = select(config, arguments).await?;
    let next = next.map(|next| next.to_string());
    let schema = "herald.events.list/1";
    list(global.output, global.no_header, schema, &Row::COLUMNS, &rows, next.as_deref(), Row::columns)?;
    if let (Some(next), false) = (next, global.output.is_json()) {
        let flag = match direction {
            Direction::Forwards => "--after",
            Direction::Backwards => "--before",
        };
        note(&format!("There may be more: add {flag} {next}."));
    }
    Ok(())
}

/// The rows, and where the next page begins unless this was the last one.
async fn select(config: &Config, arguments: List) -> Result<(Vec<Row>, Option<Position>), Exit> {
    let stream = arguments.selection.one_stream();
    let filter = arguments.selection.filter()?;
    let app = App::open_to_look(config).await?;
    if let Some(stream) = stream {
        // One that was closed is not there; an empty list would not say so.
        app.store.read_stream_backwards(&stream, None, 1).await?;
    }
    let limit = usize::from(arguments.limit);
    let mut after = Position(arguments.after);
    let mut before = arguments.before.map(Position);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    // A page of the store may be short, even empty, although more follows.
    loop {
        let page = if arguments.reverse {
            app.store.read_backwards(&filter, before, limit - rows.len()).await?
        } else {
            app.store.read(&filter, after, limit - rows.len()).await?
        };
        (after, before) = (page.scanned_to, Some(page.scanned_to));
        bytes += page.events.iter().map(|event| event.payload.as_str().len()).sum::<usize>();
        rows.extend(page.events.into_iter().map(Row::from));
        if page.is_end {
            return Ok((rows, None));
        }
        if rows.len() >= limit || bytes >= MAX_PAGE_BYTES {
            return Ok((rows, Some(page.scanned_to)));
        }
    }
}
