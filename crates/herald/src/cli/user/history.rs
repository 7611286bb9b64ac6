//! `herald user history`: every notification of a user, and whether it was seen before an instant.

use ::store::{Fault, Position, Timestamp};
use clap::Args;
use notification_subscribers::{Archive, ArchivedNotification};
use serde::Serialize;

use super::checked;
use crate::app::App;
use crate::cli::{Global, parse_time};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{Format, json, line, list, moment, note};

pub(crate) const HELP: &str = "Examples:\n  herald user history user1\n  \
    herald user history user1 --at 2026-01-01T12:00:00Z\n  \
    herald user history user1 --notification fdf70c75-daa5-46d5-8cae-a2290e290d79 --at 2026-01-01T12:00:00Z\n\n\
    An acknowledgement is the proof that a notification was seen. With --at only what the log had recorded before that\n\
    instant counts.";

/// Looks at the archive's subscription.
const ARCHIVE: &str = "archive_1";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Whose
    user: String,
    /// As it was before this instant
    #[arg(long, visible_alias = "before", value_name = "INSTANT", value_parser = parse_time)]
    at: Option<Timestamp>,
    /// Only this notification
    #[arg(long, value_name = "ID")]
    notification: Option<String>,
    /// Only what comes after this position
    #[arg(long, value_name = "POSITION", default_value_t = 0, conflicts_with = "notification")]
    after: i64,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
}

#[derive(Serialize)]
struct Item {
    notification: String,
    message: String,
    timestamp: Timestamp,
    notified_position: String,
    notified_at: Timestamp,
    /// The event of the channel through which it came.
    causation_id: Option<String>,
    acknowledged_position: Option<String>,
    acknowledged_at: Option<Timestamp>,
    seen: bool,
}

impl From<ArchivedNotification> for Item {
    fn from(archived: ArchivedNotification) -> Self {
        Self {
            notification: archived.notification_id,
            message: archived.message,
            timestamp: archived.timestamp,
            notified_position: archived.notified_position.to_string(),
            notified_at: archived.notified_at,
            causation_id: archived.causation_id,
            acknowledged_position: archived.acknowledged_position.map(|position| position.to_string()),
            acknowledged_at: archived.acknowledged_at,
            seen: archived.acknowledged_at.is_some(),
        }
    }
}

pub(crate) async fn run(config: &Config, global: &Global, arguments: Arguments) -> Result<(), Exit> {
    let user = checked(&arguments.user)?;
    let app = App::open_to_look(config).await?;
    let archive = Archive::new(app.store.clone());
    warn_if_behind(&app).await?;
    match &arguments.notification {
        Some(id) => one(&archive, global, user.as_str(), id, arguments.at).await,
        None => all(&archive, global, user.as_str(), &arguments).await,
    }
}

/// The archive follows the log; an answer that may be out of date says so.
async fn warn_if_behind(app: &App) -> Result<(), Exit> {
    let overviews = app.engine.status(&subscription_engine::Criteria::id(ARCHIVE)).await?;
    if let Some(overview) = overviews.iter().find(|overview| overview.lag > 0) {
        note(&format!(
            "warning: the archive is up to {} position(s) behind; see `herald sub show {ARCHIVE}`",
            overview.lag
        ));
    }
    Ok(())
}

fn not_there(error: sqlx::Error) -> Exit {
    if Fault::of(&error) == Fault::Other {
        let message = format!("the archive is not there: {}", ::store::messages(&error).join(": "));
        return Exit::new(Code::Failed, message)
            .with_hint("run `herald store setup`, or `herald projection replay archive` to build it anew");
    }
    error.into()
}

/// Did the user see it?
async fn one(
    archive: &Archive,
    global: &Global,
    user: &str,
    id: &str,
    at: Option<Timestamp>,
) -> Result<(), Exit> {
    let found = archive.find(user, id).await.map_err(not_there)?;
    let Some(archived) = found else {
        return Err(Exit::new(Code::NotFound, format!("user {user} has no notification {id}")));
    };
    let before = at.map_or(String::new(), |at| format!(" before {at}"));
    let was_notified =
        format!("was notified at {} (event {})", archived.notified_at, archived.notified_position);
    let archived = match at {
        Some(at) => archived.before(at),
        None => Some(archived),
    };
    if global.output.is_json() {
        return json("herald.user.history.notification/1", &archived.map(Item::from));
    }
    line(&match archived {
        None => format!("No: user {user} had not been notified{before}; the user {was_notified}."),
        Some(ArchivedNotification {
            acknowledged_at: Some(at),
            acknowledged_position: Some(position),
            ..
        }) => format!(
            "Yes: user {user} {was_notified} and acknowledged it at {at} (event {position}){}.",
            if before.is_empty() { String::new() } else { format!(",{before}") }
        ),
        Some(_) => format!("No: user {user} {was_notified} and had not acknowledged it{before}."),
    });
    Ok(())
}

async fn all(archive: &Archive, global: &Global, user: &str, arguments: &Arguments) -> Result<(), Exit> {
    let limit = i64::from(arguments.limit);
    let found = archive.of_user(user, Position(arguments.after), limit).await.map_err(not_there)?;
    let last = found.last().map(|last| last.notified_position.to_string());
    let next = last.filter(|_| i64::try_from(found.len()) == Ok(limit));
    let as_it_was = |archived: ArchivedNotification| match arguments.at {
        Some(at) => archived.before(at),
        None => Some(archived),
    };
    let items: Vec<Item> = found.into_iter().filter_map(as_it_was).map(Item::from).collect();
    let header = ["POSITION", "NOTIFIED", "SEEN", "BY", "NOTIFICATION", "MESSAGE"];
    list(
        global.output,
        global.no_header,
        "herald.user.history/1",
        &header,
        &items,
        next.as_deref(),
        |item| {
            let shown = |at: Timestamp| match global.output {
                Format::Table => moment(at),
                _ => at.to_string(),
            };
            vec![
                item.notified_position.clone(),
                shown(item.notified_at),
                item.acknowledged_at.map_or_else(|| "-".to_owned(), shown),
                if item.causation_id.is_some() { "channel" } else { "direct" }.to_owned(),
                item.notification.clone(),
                item.message.clone(),
            ]
        },
    )?;
    if let (Some(next), false) = (next, global.output.is_json()) {
        note(&format!("There are more: add --after {next}."));
    }
    Ok(())
}
