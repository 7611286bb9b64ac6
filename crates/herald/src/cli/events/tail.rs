//! `herald events tail`: events as they come, as `tail -f` does with lines.
//!
//! It ends when it is told to, or when nobody reads what it prints; a database that restarts does not end it.

use std::time::Duration;

use ::store::{Event, Filter, Position, Store};
use clap::Args;
use futures_util::StreamExt;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::oneshot;

use super::Row;
use super::selection::Selection;
use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{Format, item, note, on_one_line, plain_header, stdout_is_over};
use crate::worker::{CLOSE_LIMIT, Signals};

/// So much of a payload is shown to people.
const SHOWN_CHARACTERS: usize = 160;
/// How long the program waits for the last lines to be written before it ends without them.
const WRITE_LIMIT: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Tail {
    #[command(flatten)]
    selection: Selection,
    /// Begin after this position
    #[arg(long, value_name = "POSITION", conflicts_with_all = ["from_start", "last"], value_parser = clap::value_parser!(i64).range(0..))]
    after: Option<i64>,
    /// Begin with the first event
    #[arg(long, conflicts_with = "last")]
    from_start: bool,
    /// Begin with so many of those that are there (conditions that no index answers: of the last 100,000 events)
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    last: u16,
}

/// Where to begin.
#[derive(Clone, Copy)]
enum Begin {
    After(Position),
    Last(usize),
}

pub(super) async fn run(config: &Config, global: &Global, arguments: Tail) -> Result<u8, Exit> {
    let begin = match arguments {
        Tail { from_start: true, .. } => Begin::After(Position::START),
        Tail { after: Some(after), .. } => Begin::After(Position(after)),
        Tail { last, .. } => Begin::Last(usize::from(last)),
    };
    let filter = arguments.selection.filter()?;
    let mut signals = Signals::new(false)?;
    let app = tokio::select! {
        app = App::open_to_look(config) => app?,
        code = signals.next() => return Ok(code),
    };
    let (output, no_header) = (global.output, global.no_header);
    let store = app.store.clone();
    // A task of its own: while it writes to somebody who does not read, signals must still be heard.
    let mut tail = tokio::spawn(async move { tail(&store, filter, begin, output, no_header).await });
    let result = tokio::select! {
        ended = &mut tail => ended.map_err(Exit::from).flatten().map(|()| 0),
        code = signals.next() => Ok(code),
        () = reader_is_gone() => Ok(0),
    };
    tail.abort();
    if !tail.is_finished() {
        let _ = tokio::time::timeout(WRITE_LIMIT, tail).await;
    }
    // A server that is gone must not hold up the end.
    let _ = tokio::time::timeout(CLOSE_LIMIT, app.store.close()).await;
    result
}

async fn tail(
    store: &Store,
    filter: Filter,
    begin: Begin,
    output: Format,
    no_header: bool,
) -> Result<(), Exit> {
    if output == Format::Plain && !no_header {
        plain_header(&Row::COLUMNS);
    }
    let head = store.head().await?.position;
    let after = match begin {
        Begin::After(after) if after > head => {
            note(&format!("Position {after} is beyond the end of the log, which is at {head}."));
            after
        }
        Begin::After(after) => after,
        Begin::Last(last) => {
            let before = Some(Position(head.0.saturating_add(1)));
            let mut events = store.read_backwards(&filter, before, last).await?.events;
            events.reverse();
            print(events, output)?;
            head
        }
    };
    let mut pages = store.follow_pages(filter, after);
    let mut is_lost = false;
    while let Some(page) = pages.next().await {
        match page {
            Ok(page) => {
                if std::mem::take(&mut is_lost) {
                    note("The database is back; nothing was missed.");
                }
                print(page.events, output)?;
            }
            Err(error) if error.may_heal() => {
                is_lost = true;
                let why = ::store::messages(&error).join(": ");
                note(&format!("Lost the database ({why}); going on as soon as it is back."));
            }
            Err(error) => return Err(error.into()),
        }
        if stdout_is_over() {
            return Ok(());
        }
    }
    Err(Exit::new(Code::Failed, "the store was closed"))
}

/// Writes the events, each at once. Whoever reads them may take their time, and nothing else waits for that.
fn print(events: Vec<Event>, output: Format) -> Result<(), Exit> {
    tokio::task::block_in_place(|| {
        for event in events {
            item(output, "herald.events.tail/1", &Row::from(event), Row::columns, for_people)?;
            if stdout_is_over() {
                break;
            }
        }
        Ok(())
    })
}

/// A line for people: what happened, where, and what it says.
fn for_people(row: &Row) -> String {
    let Row { position, recorded_at, event_type, stream, version, payload, .. } = row;
    let mut shown: String = payload.as_str().chars().take(SHOWN_CHARACTERS).collect();
    if shown.len() < payload.as_str().len() {
        shown.push('…');
    }
    let shown = on_one_line(&shown);
    format!("{position:>6}  {recorded_at}  {event_type}  {stream} {version}  {shown}")
}

/// Resolves when whoever read stdout has closed it, even while there is nothing to write: otherwise
/// `herald events tail | head -1` would stay until the next event.
async fn reader_is_gone() {
    let (gone, is_gone) = oneshot::channel();
    // Nothing can end the wait of this thread but the end of the program, which does not wait for it.
    let watch = move || {
        let stdout = std::io::stdout();
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut watched, None) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) if watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => {
                    let _ = gone.send(());
                    return;
                }
                // What cannot be watched tells by the next write.
                _ => return,
            }
        }
    };
    let started = std::thread::Builder::new().name("herald-stdout".to_owned()).spawn(watch);
    if started.is_err() || is_gone.await.is_err() {
        std::future::pending::<()>().await;
    }
}
