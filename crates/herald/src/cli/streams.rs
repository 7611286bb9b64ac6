//! `herald streams`: which streams and categories there are, what a stream holds, and what is noted about it.

use std::collections::VecDeque;

use ::store::{
    Filter, Json, ListedStream, Position, ReadError, StreamList, StreamMetadata, StreamMetadataError,
    StreamName, StreamSummary, SummaryError, Timestamp, messages,
};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::app::App;
use crate::cli::Global;
use crate::cli::events::{Row, parse, text_or_file};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, list, note, on_one_line};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List streams by name
    #[command(
        after_help = "Examples:\n  herald streams list --category user\n  herald streams list --prefix order-2026 --limit 1000"
    )]
    List {
        /// Only this category, the text before the first dash
        #[arg(long, value_name = "NAME")]
        category: Option<String>,
        #[command(flatten)]
        page: Page,
    },
    /// List categories by name
    #[command(after_help = "Examples:\n  herald streams categories\n  herald streams categories --prefix o")]
    Categories(Page),
    /// Show what a stream holds
    #[command(
        after_help = "Examples:\n  herald streams show user-user1\n  herald streams show '$category-user' -n 3\n  herald streams show '$all'"
    )]
    Show {
        /// Its name; also $all, $category-NAME, $correlation-ID
        stream: StreamName,
        /// So many of its last events
        #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1_000))]
        last: u16,
    },
    /// Show or change what is noted about a stream
    #[command(
        after_help = "Examples:\n  herald streams metadata user-user1\n  herald streams metadata user-user1 --set '{\"owner\":\"billing\"}'\n  \
                      herald streams metadata user-user1 --clear"
    )]
    Metadata {
        /// The stream
        stream: StreamName,
        /// Note this instead: a JSON object of at most 16 KiB, or @FILE, or @- for stdin
        #[arg(long, value_name = "JSON", conflicts_with = "clear")]
        set: Option<String>,
        /// Note nothing any more
        #[arg(long)]
        clear: bool,
    },
}

/// Which page of a list of names.
#[derive(Debug, Args)]
pub(crate) struct Page {
    /// Only names that begin with this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prefix: String,
    /// Only names behind this one, in the order of bytes
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
    /// So many at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
}

#[derive(Serialize)]
struct Listed {
    stream: String,
    version: String,
    events: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    stream: &'a StreamName,
    events: String,
    version: Option<String>,
    first: Row,
    /// Newest first.
    last: Vec<Row>,
    metadata: Option<Json>,
    metadata_changed_at: Option<Timestamp>,
}

impl From<ListedStream> for Listed {
    fn from(listed: ListedStream) -> Self {
        let version = listed.version.0;
        Self {
            stream: listed.name.into(),
            version: version.to_string(),
            events: version.saturating_add(1).to_string(),
        }
    }
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    let writes = matches!(&command, Command::Metadata { set, clear, .. } if *clear || set.is_some());
    let app = if writes { App::open(config).await? } else { App::open_to_look(config).await? };
    match command {
        Command::List { category, page } => streams(&app, global, category, page).await,
        Command::Categories(page) => categories(&app, global, page).await,
        Command::Show { stream, last } => show(&app, global, &stream, usize::from(last)).await,
        Command::Metadata { stream, set: None, clear: false } => metadata(&app, global, &stream).await,
        Command::Metadata { stream, set, .. } => set_metadata(&app, global, &stream, set).await,
    }
}

async fn streams(app: &App, global: &Global, category: Option<String>, page: Page) -> Result<(), Exit> {
    let Page { prefix, after, limit } = page;
    let limit = usize::from(limit);
    let listed = app.store.streams(&StreamList { prefix, category, after }, limit).await?;
    let rows: Vec<Listed> = listed.into_iter().map(Listed::from).collect();
    let next = rows.last().filter(|_| rows.len() == limit).map(|row| row.stream.clone());
    let columns = |row: &Listed| vec![row.stream.clone(), row.events.clone(), row.version.clone()];
    let header = ["STREAM", "EVENTS", "VERSION"];
    let schema = "herald.streams.list/1";
    list(global.output, global.no_header, schema, &header, &rows, next.as_deref(), columns)?;
    hint_at_more(global, next);
    Ok(())
}

async fn categories(app: &App, global: &Global, page: Page) -> Result<(), Exit> {
    let limit = usize::from(page.limit);
    let rows = app.store.categories(&page.prefix, page.after.as_deref(), limit).await?;
    let next = rows.last().filter(|_| rows.len() == limit).cloned();
    let columns = |category: &String| vec![category.clone()];
    let schema = "herald.streams.categories/1";
    list(global.output, global.no_header, schema, &["CATEGORY"], &rows, next.as_deref(), columns)?;
    hint_at_more(global, next);
    Ok(())
}

fn hint_at_more(global: &Global, next: Option<String>) {
    if let (Some(next), false) = (next, global.output.is_json()) {
        note(&format!("There may be more: add --after '{next}'."));
    }
}

fn no_such_stream(stream: &StreamName) -> Exit {
    Exit::new(Code::NotFound, format!("there is no stream {stream}"))
        .with_hint("see `herald streams list --prefix TEXT`")
}

async fn show(app: &App, global: &Global, stream: &StreamName, last: usize) -> Result<(), Exit> {
    let summary = match app.store.stream_summary(stream, last).await {
        Err(SummaryError::UnknownSpecialStream(error)) => {
            return Err(Exit::new(Code::Usage, error.to_string()));
        }
        Err(SummaryError::Read(error @ ReadError::BadRow { .. })) => {
            return show_readable(app, global, stream, last, error).await;
        }
        Err(SummaryError::Read(error)) => return Err(error.into()),
        Ok(summary) => summary,
    };
    let Some(summary) = summary else { return Err(no_such_stream(stream)) };
    let metadata = match stream.is_reserved() {
        true => None,
        false => app.store.stream_metadata(stream).await?,
    };
    let broken = broken_before(app, stream, &summary, last).await?;
    let version = summary.version.map(|version| version.to_string());
    let events = summary.events.to_string();
    let first = Row::from(summary.first);
    let last: Vec<Row> = summary.last.into_iter().map(Row::from).collect();
    let (metadata, metadata_changed_at) =
        metadata.map(|metadata| (metadata.document, metadata.changed_at)).unzip();
    let schema = "herald.streams.show/1";
    if global.output.is_json() {
        json(schema, &Shown { stream, events, version, first, last, metadata, metadata_changed_at })?;
        return broken.map_or(Ok(()), Err);
    }
    let none = || "-".to_owned();
    let of = |row: &Row| format!("{}  at position {}", row.recorded_at, row.position);
    let fields = [
        ("stream", stream.to_string()),
        ("events", events),
        ("version", version.unwrap_or_else(none)),
        ("first", of(&first)),
        ("last", last.first().map_or_else(none, of)),
        ("metadata", metadata.map_or_else(none, |metadata| on_one_line(metadata.as_str()))),
    ];
    for (name, value) in fields {
        line(&format!("{name:<12}{value}"));
    }
    if !last.is_empty() {
        line("");
        list(global.output, global.no_header, schema, &Row::COLUMNS, &last, None, Row::columns)?;
    }
    broken.map_or(Ok(()), Err)
}

/// Why fewer of the last events can be shown than were asked for, if that is because one cannot be read.
async fn broken_before(
    app: &App,
    stream: &StreamName,
    summary: &StreamSummary,
    wanted: usize,
) -> Result<Option<Exit>, Exit> {
    let shown = summary.last.len();
    let is_short = shown < wanted && u64::try_from(shown).is_ok_and(|shown| shown < summary.events);
    let Some(oldest) = summary.last.last().filter(|_| is_short) else { return Ok(None) };
    let filter = Filter::of(stream).map_err(|error| Exit::new(Code::Usage, error.to_string()))?;
    match app.store.without_upcasters().read_backwards(&filter, Some(oldest.position), 1).await {
        Err(error @ ReadError::BadRow { .. }) => Ok(Some(error.into())),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(None),
    }
}

/// Where an event of it cannot be read: the last ones before the first such event, and then why there are no more.
async fn show_readable(
    app: &App,
    global: &Global,
    stream: &StreamName,
    last: usize,
    broken: ReadError,
) -> Result<(), Exit> {
    let filter = Filter::of(stream).map_err(|error| Exit::new(Code::Usage, error.to_string()))?;
    let (mut after, mut rows, mut broken) = (Position::START, VecDeque::new(), broken);
    loop {
        let page = match app.store.read(&filter, after, 1_000).await {
            Ok(page) => page,
            Err(error) => {
                broken = error;
                break;
            }
        };
        after = page.scanned_to;
        rows.extend(page.events.into_iter().map(Row::from));
        rows.drain(..rows.len().saturating_sub(last));
        if page.is_end {
            break;
        }
    }
    let mut rows = Vec::from(rows);
    rows.reverse();
    let schema = "herald.streams.show_readable/1";
    list(global.output, global.no_header, schema, &Row::COLUMNS, &rows, None, Row::columns)?;
    Err(broken.into())
}

async fn metadata(app: &App, global: &Global, stream: &StreamName) -> Result<(), Exit> {
    let metadata = app.store.stream_metadata(stream).await.map_err(refused)?;
    if global.output.is_json() {
        return json_metadata(stream, metadata);
    }
    match metadata {
        Some(StreamMetadata { document, changed_at }) => {
            line(&on_one_line(document.as_str()));
            note(&format!("noted at {changed_at}"));
        }
        None => note(&format!("Nothing is noted about {stream}.")),
    }
    Ok(())
}

async fn set_metadata(
    app: &App,
    global: &Global,
    stream: &StreamName,
    set: Option<String>,
) -> Result<(), Exit> {
    let document = match set {
        Some(text) => Some(parse("metadata", text_or_file(text)?)?),
        None => None,
    };
    app.store.set_stream_metadata(stream, document.as_ref()).await.map_err(refused)?;
    if global.output.is_json() {
        return json_metadata(stream, app.store.stream_metadata(stream).await.map_err(refused)?);
    }
    match document {
        Some(_) => line(&format!("Noted about {stream}.")),
        None => line(&format!("Nothing is noted about {stream} any more.")),
    }
    note(&format!("next:  herald streams metadata {stream}"));
    Ok(())
}

fn json_metadata(stream: &StreamName, metadata: Option<StreamMetadata>) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Document<'a> {
        stream: &'a StreamName,
        metadata: Option<Json>,
        changed_at: Option<Timestamp>,
    }
    let (metadata, changed_at) = metadata.map(|metadata| (metadata.document, metadata.changed_at)).unzip();
    json("herald.streams.metadata/1", &Document { stream, metadata, changed_at })
}

fn refused(error: StreamMetadataError) -> Exit {
    match error {
        StreamMetadataError::NoSuchStream(stream) => no_such_stream(&stream),
        StreamMetadataError::ReservedStream(_) | StreamMetadataError::Invalid { .. } => {
            Exit::new(Code::Usage, messages(&error).join(": "))
        }
        error => error.into(),
    }
}
