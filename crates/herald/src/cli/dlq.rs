//! `herald dlq`: the events that subscriptions could not handle and set aside.

mod export;

use clap::{Args, Subcommand};
use serde::Serialize;
use store::{Position, Timestamp};
use subscription_engine::{Criteria, DeadLetter, LetterFilter, LetterReport, Reason};
use uuid::Uuid;

use crate::app::App;
use crate::cli::confirm::confirm;
use crate::cli::{Global, code_of, known, outcome_text, reason_given};
use crate::commands::with_flags;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, list, moment, note};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, oldest first: which event, of which key, and why
    #[command(after_help = "Examples:\n  herald dlq list\n  herald dlq list inbox_1 --key user-user1\n  \
                            herald dlq list inbox_1 --after 42 --limit 100 -o json")]
    List(List),
    /// Show one dead letter: its errors, its event, and what to do next
    #[command(after_help = "Example:\n  herald dlq show inbox_1 42")]
    Show {
        /// The id of the subscription
        id: String,
        /// The position of the event
        position: i64,
    },
    /// Try dead letters again, after a fix: one, or whole keys, oldest first
    #[command(
        after_help = "Examples:\n  herald dlq retry inbox_1 42\n  herald dlq retry inbox_1 --key user-user1\n  \
                            herald dlq retry inbox_1 --type Acme.Notifications:UserWasNotified\n  \
                            herald dlq retry inbox_1 --error \"missing field\"\n  herald dlq retry inbox_1 --all"
    )]
    Retry(Which),
    /// Give dead letters up; their events are never handled
    #[command(after_help = "Examples:\n  herald dlq discard inbox_1 42 --reason \"a test event\"\n  \
                            herald dlq discard inbox_1 --key user-user1 --reason \"the user is gone\" --yes")]
    Discard(Which),
    /// Write dead letters with their events, one JSON object a line
    #[command(after_help = "Example:\n  herald dlq export inbox_1 > letters.jsonl")]
    Export(Selection),
}

/// Which letters; nothing given means all.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only of this subscription
    id: Option<String>,
    #[command(flatten)]
    kind: Kind,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    selection: Selection,
    /// Only after this one: a position, or ID/POSITION where all subscriptions are listed
    #[arg(long, value_name = "LETTER")]
    after: Option<String>,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// What letters have in common.
#[derive(Debug, Args)]
pub(crate) struct Kind {
    /// Only of this key (usually the stream)
    #[arg(long)]
    key: Option<String>,
    /// Only of this event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only those that failed with this text in a message
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    error: Option<String>,
}

/// Which letters of one subscription; they must be named.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["position", "key", "event_type", "error", "all"])))]
pub(crate) struct Which {
    /// The id of the subscription
    id: String,
    /// The position of one event
    position: Option<i64>,
    #[command(flatten)]
    kind: Kind,
    /// Every letter of the subscription
    #[arg(long, conflicts_with_all = ["position", "key", "event_type", "error"])]
    all: bool,
}

impl Kind {
    fn filter(&self, position: Option<i64>) -> LetterFilter {
        LetterFilter {
            position: position.map(Position),
            key: self.key.clone(),
            event_type: self.event_type.clone(),
            error: self.error.clone(),
        }
    }
}

/// A letter as it is put out.
#[derive(Serialize)]
struct Row {
    subscription: String,
    position: String,
    event_id: Uuid,
    #[serde(rename = "type")]
    event_type: String,
    stream: String,
    key: String,
    parked_at: Timestamp,
    reason: &'static str,
    parked_behind: Option<String>,
    error: Option<Vec<String>>,
    attempts: u32,
    first_failed_at: Option<Timestamp>,
    last_failed_at: Option<Timestamp>,
}

impl From<DeadLetter> for Row {
    fn from(letter: DeadLetter) -> Self {
        let DeadLetter { subscription, event, key, parked_at, reason } = letter;
        let row = Self {
            subscription,
            position: event.position.to_string(),
            event_id: event.id,
            event_type: event.event_type,
            stream: event.stream,
            key,
            parked_at,
            reason: "behind",
            parked_behind: None,
            error: None,
            attempts: 0,
            first_failed_at: None,
            last_failed_at: None,
        };
        match reason {
            Reason::Behind { position } => Self { parked_behind: Some(position.to_string()), ..row },
            Reason::Failed { error, attempts, first_failed_at, last_failed_at } => Self {
                reason: "failed",
                error: Some(error),
                attempts,
                first_failed_at: Some(first_failed_at),
                last_failed_at: Some(last_failed_at),
                ..row
            },
        }
    }
}

impl Row {
    /// Why it is here, in a few words.
    fn why(&self) -> String {
        match (&self.error, &self.parked_behind) {
            (Some(error), _) => error.join(": "),
            (None, Some(behind)) => format!("behind {behind}"),
            (None, None) => String::new(),
        }
    }
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    let only_looks = matches!(command, Command::List(_) | Command::Show { .. } | Command::Export(_));
    let app = if only_looks { App::open_to_look(config).await? } else { App::open(config).await? };
    let result = match command {
        Command::List(arguments) => list_page(&app, global, &arguments).await,
        Command::Show { id, position } => show(&app, global, &id, position).await,
        Command::Retry(which) => retry(&app, global, config, &which).await,
        Command::Discard(which) => discard(&app, global, &which).await,
        Command::Export(selection) => {
            known_id(&app, selection.id.as_deref()).await?;
            export::run(&app, selection.id.as_deref(), &selection.kind.filter(None)).await
        }
    };
    app.store.close().await;
    result
}

async fn known_id(app: &App, id: Option<&str>) -> Result<(), Exit> {
    match id {
        None => Ok(()),
        Some(id) => known(app, Criteria::id(id)).await.map(drop),
    }
}

async fn list_page(app: &App, global: &Global, arguments: &List) -> Result<(), Exit> {
    let id = arguments.selection.id.as_deref();
    known_id(app, id).await?;
    let after = arguments.after.as_deref().map(|after| place(id, after)).transpose()?;
    let filter = arguments.selection.kind.filter(None);
    let after = after.as_ref().map(|(id, position)| (id.as_str(), *position));
    let letters = app.engine.dead_letters(id, &filter, after, arguments.limit).await?;
    let rows: Vec<Row> = letters.into_iter().map(Row::from).collect();
    let is_full = u32::try_from(rows.len()) == Ok(arguments.limit);
    let next = rows.last().filter(|_| is_full).map(|row| match id {
        Some(_) => row.position.clone(),
        None => format!("{}/{}", row.subscription, row.position),
    });
    let header = ["SUBSCRIPTION", "POSITION", "TYPE", "KEY", "ATTEMPTS", "PARKED", "WHY"];
    let (format, no_header) = (global.output, global.no_header);
    list(format, no_header, "herald.dlq.list/1", &header, &rows, next.as_deref(), |row| {
        vec![
            row.subscription.clone(),
            row.position.clone(),
            row.event_type.clone(),
            row.key.clone(),
            row.attempts.to_string(),
            moment(row.parked_at),
            row.why(),
        ]
    })?;
    match (rows.first(), next) {
        _ if global.output.is_json() => {}
        (None, _) => note("No dead letters."),
        (_, Some(next)) => note(&format!("There may be more: add --after {next}")),
        (Some(first), None) => {
            note(&format!("See one: herald dlq show {} {}", first.subscription, first.position));
        }
    }
    Ok(())
}

/// Where a page begins.
fn place(id: Option<&str>, after: &str) -> Result<(String, Position), Exit> {
    let (id, position) = match (id, after.rsplit_once('/')) {
        (Some(id), None) => (id, after),
        (None, Some((id, position))) => (id, position),
        (Some(_), Some(_)) => return Err(Exit::new(Code::Usage, format!("{after:?} is no position"))),
        (None, None) => {
            return Err(Exit::new(Code::Usage, format!("{after:?} names no subscription"))
                .with_hint("write ID/POSITION, or name the subscription to list"));
        }
    };
    let position =
        position.parse().map_err(|_| Exit::new(Code::Usage, format!("{after:?} is no position")))?;
    Ok((id.to_owned(), Position(position)))
}

async fn find(app: &App, id: &str, position: i64) -> Result<DeadLetter, Exit> {
    let filter = LetterFilter::at(Position(position));
    app.engine.dead_letters(Some(id), &filter, None, 1).await?.pop().ok_or_else(|| {
        Exit::new(Code::NotFound, format!("{id} has no dead letter at position {position}"))
            .with_hint(format!("see `herald dlq list {id}`"))
    })
}

async fn show(app: &App, global: &Global, id: &str, position: i64) -> Result<(), Exit> {
    known_id(app, Some(id)).await?;
    let letter = find(app, id, position).await?;
    let row = Row::from(letter.clone());
    if global.output.is_json() {
        return json("herald.dlq.show/1", &export::with_event(app, row, &letter).await?);
    }
    let field = |name: &str, text: &str| line(&format!("{name:<11} {text}"));
    line(&format!("{id}    dead letter at position {position}"));
    field("event", &format!("{}   {}", row.event_type, row.event_id));
    field("stream", &row.stream);
    field("key", &row.key);
    field("parked", &moment(row.parked_at));
    match &letter.reason {
        Reason::Behind { position } => {
            field("why", &format!("not tried: it stands behind the dead letter at position {position}"));
        }
        Reason::Failed { error, attempts, first_failed_at, last_failed_at } => {
            let (first, last) = (moment(*first_failed_at), moment(*last_failed_at));
            field("failed", &format!("{attempts} time(s), first {first}, last {last}"));
            for (depth, message) in error.iter().enumerate() {
                let arrow =
                    if depth == 0 { String::new() } else { format!("{}└─ ", "   ".repeat(depth - 1)) };
                field(if depth == 0 { "error" } else { "" }, &format!("{arrow}{message}"));
            }
        }
    }
    let next = |name: &str, command: &str| field(name, &with_flags(command));
    next("next", &format!("herald events show {position}"));
    match letter.reason {
        Reason::Failed { .. } => {
            next("", &format!("herald dlq retry {id} {position}   # after a fix"));
        }
        Reason::Behind { .. } => {
            next("", &format!("herald dlq retry {id} --key {:?}        (oldest first)", row.key));
        }
    }
    next("", &format!("herald dlq discard {id} {position} --reason …        (to give it up)"));
    Ok(())
}

async fn retry(app: &App, global: &Global, config: &Config, which: &Which) -> Result<(), Exit> {
    known_id(app, Some(&which.id)).await?;
    let reason = global.reason.clone().unwrap_or_else(|| format!("retried by {}", config.who));
    if let Some(position) = which.position {
        find(app, &which.id, position).await?;
    }
    let filter = which.kind.filter(which.position);
    let report = app.engine.retry_dead_letters(&which.id, &filter, &reason).await?;
    told(app, global, which, "handled", &report).await
}

async fn discard(app: &App, global: &Global, which: &Which) -> Result<(), Exit> {
    let reason = reason_given(global, "discarded")?;
    known_id(app, Some(&which.id)).await?;
    let filter = which.kind.filter(which.position);
    if let Some(position) = which.position {
        find(app, &which.id, position).await?;
    }
    let letters = match which.position {
        Some(position) => format!("the dead letter of {} at position {position}", which.id),
        None => format!("dead letters of {}", which.id),
    };
    confirm(global, &format!("discarding {letters}: what they hold is never handled"))?;
    let report = app.engine.discard_dead_letters(&which.id, &filter, reason).await?;
    told(app, global, which, "discarded", &report).await
}

/// Says what became of letters, and what is left.
async fn told(
    app: &App,
    global: &Global,
    which: &Which,
    word: &str,
    report: &LetterReport,
) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Told<'a> {
        id: &'a str,
        done: String,
        failed: String,
        left: String,
        error: Option<&'a [String]>,
        stopped: Option<String>,
    }
    let id = which.id.as_str();
    let overviews = app.engine.status(&Criteria::id(id)).await?;
    let left = overviews.first().map_or(0, |overview| overview.subscription.letters.open);
    let stopped = report.stopped.as_ref();
    let error = report.failure.as_ref().map(|failure| failure.chain.as_slice());
    if global.output.is_json() {
        let verb = if word == "handled" { "retry" } else { "discard" };
        json(
            &format!("herald.dlq.{verb}/1"),
            &Told {
                id,
                done: report.done.to_string(),
                failed: report.failed.to_string(),
                left: left.to_string(),
                error,
                stopped: stopped.map(outcome_text),
            },
        )?;
    } else {
        line(&format!(
            "{id}: {} dead letter(s) {word}, {} failed again, {left} left",
            report.done, report.failed
        ));
        if report.done == 0 && report.failed == 0 && stopped.is_none() {
            note("no dead letter was like that");
        } else if left > 0 {
            note(&format!("See what is left: herald dlq list {id}"));
        }
    }
    if let Some(outcome) = stopped
        && let Some(code) = code_of(outcome)
    {
        return Err(Exit::new(code, format!("{id}: {}", outcome_text(outcome))));
    }
    match &report.failure {
        None => Ok(()),
        Some(failure) => {
            let at = failure.event.as_ref().map_or_else(String::new, |event| {
                format!(" at position {} ({})", event.position, event.event_type)
            });
            Err(Exit::new(Code::Failed, format!("failed again{at}: {}", failure.chain.join(": ")))
                .with_hint(format!("see `herald dlq list {id}`")))
        }
    }
}
