//! `herald store verify`: looks at every event, stream and checkpoint, and tells what does not hold.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use ::store::{Mended, Position, Store, StoreError, Told, Verified, Verify};
use clap::Args;
use serde::Serialize;
use subscription_engine::{BadCheckpoint, Criteria, Engine, Overview, State};

use crate::app::App;
use crate::cli::Global;
use crate::cli::next::{Next, next};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{duration, json, line, list, note};

pub(super) const HELP: &str = "Runs beside workers and appends, and reads only, unless --fix is given. --fix mends what can be \
    mended without touching an event: a sequence that lags, rows of the table of streams, missing indexes (on \
    PostgreSQL appends wait while one is made). Exit code 7 if something is found and not mended.\n\n\
    Examples:\n  herald store verify\n  herald store verify --quick\n  herald store verify --from 1000000\n  \
    herald store verify --fix -o json";

/// So many findings are shown; the others are counted.
const SHOWN: usize = 1_000;
/// So many commands are named.
const SHOWN_NEXT: usize = 10;
/// How often progress is shown where nobody watches, and where somebody does.
const EVERY: Duration = Duration::from_secs(10);
const EVERY_ON_A_TERMINAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Mend what can be mended without touching an event
    #[arg(long)]
    fix: bool,
    /// Only the newest events, and not the whole file
    #[arg(long)]
    quick: bool,
    /// Only events from this position on
    #[arg(long, value_name = "POSITION", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    from: i64,
}

/// Something that does not hold, as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    position: Option<String>,
    subscription: Option<String>,
    pub(crate) what: String,
    /// Whether `--fix` can mend it.
    mendable: bool,
    mended: bool,
    /// Why it could not be mended, if that was tried.
    not_mended: Option<String>,
    /// What to type about it.
    next: Vec<Next>,
}

impl Row {
    /// Adds what helps where an event cannot be read: above all to those who stand before it.
    fn help(&mut self, overviews: &[Overview]) {
        let Some(position) = self.position.as_ref().filter(|_| self.kind == "unreadable") else { return };
        let subscriptions = overviews.iter().map(|overview| &overview.subscription);
        let stuck = subscriptions.filter(|subscription| {
            matches!(subscription.state, State::Error { .. })
                && subscription.failing_position.is_some_and(|failing| failing.to_string() == *position)
        });
        self.next.extend(stuck.map(|subscription| {
            next(format!("herald sub skip {} {position} --reason …", subscription.id))
                .when("to go on without that event")
        }));
        self.next.push(next(format!("herald events show {position} --raw")).when("what is stored there"));
    }
}

impl From<BadCheckpoint> for Row {
    fn from(bad: BadCheckpoint) -> Self {
        Self {
            kind: "checkpoint",
            position: None,
            what: format!("subscription {}: {bad}", bad.subscription),
            subscription: Some(bad.subscription),
            mendable: false,
            mended: false,
            not_mended: None,
            next: Vec::new(),
        }
    }
}

impl From<::store::Found> for Row {
    fn from(::store::Found { finding, mended }: ::store::Found) -> Self {
        Self {
            kind: finding.kind(),
            position: finding.position().map(|position| position.to_string()),
            subscription: None,
            what: finding.to_string(),
            mendable: finding.can_be_mended(),
            mended: mended == Mended::Yes,
            not_mended: match mended {
                Mended::No { why } => Some(why),
                Mended::Yes | Mended::NotTried => None,
            },
            next: Vec::new(),
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    head: String,
    events: String,
    streams: String,
    found: String,
    mended: String,
    findings: &'a [Row],
}

pub(super) async fn run(config: &Config, global: &Global, arguments: Arguments) -> Result<(), Exit> {
    let app = App::open_to_look(config).await?;
    if arguments.fix
        && let Some(StoreError::Place(_)) =
            app.store.refusals().iter().find(|refusal| matches!(refusal, StoreError::Place(_)))
    {
        return Err(Exit::new(
            Code::Configuration,
            "this event store is not at home here; nothing was mended",
        )
        .with_hint("run `herald store adopt` first, or leave --fix out"));
    }
    let Arguments { fix: mend, quick, from } = arguments;
    let what = Verify { from: Position(from), quick, mend };
    let mut progress = Progress::new();
    let (sum, rows) = verify(&app.store, &app.engine, &what, |position, head| {
        progress.show(position, head);
    })
    .await?;
    progress.end();
    app.store.close().await;
    let found = format!("{} found, {} mended", sum.found, sum.mended);
    if global.output.is_json() {
        let document = Document {
            head: sum.head.to_string(),
            events: sum.events.to_string(),
            streams: sum.streams.to_string(),
            found: sum.found.to_string(),
            mended: sum.mended.to_string(),
            findings: &rows,
        };
        json("herald.store.verify/1", &document)?;
    } else {
        if !rows.is_empty() {
            let header = ["FINDING", "POSITION", "MENDED", "WHAT"];
            list(global.output, global.no_header, "herald.store.verify/1", &header, &rows, None, |row| {
                let mended = match (&row.not_mended, row.mended) {
                    (Some(why), _) => format!("no: {why}"),
                    (None, true) => "yes".to_owned(),
                    (None, false) => "-".to_owned(),
                };
                let position = row.position.clone().unwrap_or_else(|| "-".to_owned());
                vec![row.kind.to_owned(), position, mended, row.what.clone()]
            })?;
        }
        for next in rows.iter().flat_map(|row| &row.next).take(SHOWN_NEXT) {
            note(&format!("next:  {next}"));
        }
        if let Some(more) = sum.found.checked_sub(rows.len() as u64).filter(|more| *more > 0) {
            note(&format!("and {more} more"));
        }
        line(&format!("Verified {} event(s) up to position {}: {found}.", sum.events, sum.head));
    }
    if sum.found == sum.mended {
        return Ok(());
    }
    let can_mend = !mend && rows.iter().any(|row| row.mendable);
    let exit = Exit::new(Code::CheckFailed, found);
    Err(if can_mend { exit.with_hint("`herald store verify --fix` mends a part of it") } else { exit })
}

/// Verifies the log, and the checkpoints with it.
pub(crate) async fn verify(
    store: &Store,
    engine: &Engine,
    what: &Verify,
    mut progress: impl FnMut(Position, Position) + Send,
) -> Result<(Verified, Vec<Row>), Exit> {
    let mut rows: Vec<Row> = Vec::new();
    let keep = |rows: &mut Vec<Row>, row: Row| {
        if rows.len() < SHOWN {
            rows.push(row);
        }
    };
    let mut sum = store
        .verify(what, |told| match told {
            Told::Progress { position, head } => progress(position, head),
            Told::Found(found) => keep(&mut rows, found.into()),
        })
        .await?;
    for bad in engine.bad_checkpoints(&Criteria::all()).await? {
        sum.found += 1;
        keep(&mut rows, bad.into());
    }
    let overviews = engine.status(&Criteria::all()).await?;
    rows.iter_mut().for_each(|row| row.help(&overviews));
    Ok((sum, rows))
}

/// Shows how far it is, on stderr.
struct Progress {
    begun: Instant,
    shown: Instant,
    first: Option<Position>,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, shown: now, first: None, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, position: Position, head: Position) {
        let first = self.first.get_or_insert(position).0;
        let every = if self.is_terminal { EVERY_ON_A_TERMINAL } else { EVERY };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let done = u64::try_from(position.0 - first).unwrap_or(0);
        let left = u64::try_from(head.0 - position.0).unwrap_or(0);
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = done.saturating_mul(1_000) / millis;
        let wait = Duration::from_millis(left.saturating_mul(millis) / done.max(1));
        let percent = position.0.saturating_mul(100) / head.0.max(1);
        let text = format!("{position}/{head} {percent} %, {rate} events/s, {} left", duration(wait));
        if self.is_terminal {
            // Over the last one.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{text}");
        } else {
            note(&text);
        }
    }

    fn end(&self) {
        if self.is_terminal && self.shown > self.begun {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
    }
}
