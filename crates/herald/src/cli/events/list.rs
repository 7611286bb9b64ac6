//! `herald events list`: a page of events, oldest or newest first.

use ::store::{Direction, MAX_PAGE_BYTES, Position, ReadError};
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
    let Selected { rows, next, broken } = select(config, arguments).await?;
    let next = next.map(|next| next.to_string());
    let schema = "herald.events.list/1";
    list(global.output, global.no_header, schema, &Row::COLUMNS, &rows, next.as_deref(), Row::columns)?;
    if let (Some(next), false) = (next, global.output.is_json()) {
        let flag = match direction {
            Direction::Forwards => "--after",
            Direction::Backwards => "--before",
        };
        if broken.is_none() {
            note(&format!("There may be more: add {flag} {next}."));
        }
    }
    broken.map_or(Ok(()), Err)
}

/// A page, as far as it could be read.
struct Selected {
    rows: Vec<Row>,
    /// Where the next page begins, unless this was the last one.
    next: Option<Position>,
    /// Why it ends before its end: the event behind the last row cannot be read.
    broken: Option<Exit>,
}

impl Selected {
    fn broken_at(position: Position, error: ReadError, rows: Vec<Row>, is_reverse: bool) -> Self {
        let (flag, goes_on) = if is_reverse { ("--before", "before") } else { ("--after", "behind") };
        let next = Position(if is_reverse { position.0 + 1 } else { position.0 - 1 });
        let exit = Exit::from(error);
        let hint = exit.hint().unwrap_or_default().to_owned();
        let broken = exit.with_hint(format!("to go on {goes_on} it: add {flag} {position}; {hint}"));
        Self { rows, next: Some(next), broken: Some(broken) }
    }
}

async fn select(config: &Config, arguments: List) -> Result<Selected, Exit> {
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
            app.store.read_backwards(&filter, before, limit - rows.len()).await
        } else {
            app.store.read(&filter, after, limit - rows.len()).await
        };
        let page = match page {
            Err(error @ ReadError::BadRow { position, .. }) => {
                return Ok(Selected::broken_at(position, error, rows, arguments.reverse));
            }
            page => page?,
        };
        (after, before) = (page.scanned_to, Some(page.scanned_to));
        bytes += page.events.iter().map(|event| event.payload.as_str().len()).sum::<usize>();
        rows.extend(page.events.into_iter().map(Row::from));
        if page.is_end {
            return Ok(Selected { rows, next: None, broken: None });
        }
        if rows.len() >= limit || bytes >= MAX_PAGE_BYTES {
            return Ok(Selected { rows, next: Some(page.scanned_to), broken: None });
        }
    }
}
