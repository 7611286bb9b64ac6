//! `herald user`: what people do with notifications.

mod fresh;
mod history;

use ::store::{Fault, Timestamp};
use aggregate::{Aggregate, Provenance};
use clap::Subcommand;
use notification_subscribers::{
    Inbox, Now, User, UserCommand, UserContext, UserId, UserRefusal, UserState, users,
};

use crate::app::App;
use crate::cli::Global;
use crate::cli::deciding::{Refused, Sending, check_at, exit_of, exit_of_notify, note_repetition};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{Format, json, line, list, note};

/// Notifications shown at once.
const SHOWN: i64 = 1_000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send a notification to a user
    #[command(after_help = "Examples:\n  herald user notify user1 \"The first message\"\n  \
                      herald user notify user1 \"Your order is ready\" --idempotency-key order-4711-ready")]
    Notify {
        /// Who
        user: String,
        /// What
        message: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Show what is pending for a user
    #[command(after_help = "Example:\n  herald user inbox user1")]
    Inbox {
        /// Whose
        user: String,
        /// Leave out the first ones
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        skip: u32,
    },
    /// Acknowledge a notification
    #[command(after_help = "Example:\n  herald user acknowledge user1 fdf70c75-daa5-46d5-8cae-a2290e290d79")]
    Acknowledge {
        /// Who
        user: String,
        /// Which
        notification: String,
    },
    /// Show every notification of a user, and whether it was seen before an instant
    #[command(after_help = history::HELP)]
    History(history::Arguments),
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        Command::Notify { user, message, sending } => {
            return notify(config, global, &user, message, &sending).await;
        }
        Command::Inbox { user, skip } => return inbox(config, global, &user, i64::from(skip)).await,
        Command::Acknowledge { user, notification } => {
            let acknowledge = UserCommand::Acknowledge { notification_id: notification.clone() };
            execute(config, &user, &acknowledge).await?;
            if global.output.is_json() {
                let data = serde_json::json!({ "user": user, "notification": notification });
                return json("herald.user.acknowledge/1", &data);
            }
            line(&format!("Notification {notification} was acknowledged."));
        }
        Command::History(arguments) => return history::run(config, global, arguments).await,
    }
    Ok(())
}

async fn notify(
    config: &Config,
    global: &Global,
    user: &str,
    message: String,
    sending: &Sending,
) -> Result<(), Exit> {
    let request = sending.request(None);
    let notification = request.notification_id.to_string();
    let user_id = checked(user)?;
    let command = UserCommand::Notify { notification_id: notification.clone(), message: message.clone() };
    refuse_at_once(&user_id, &command)?;
    let app = App::open_or_set_up(config).await?;
    check_at(&app, sending.at)?;
    let (stream, users) = (user_id.stream(), users(app.store.clone()));
    let now = Now::new(user_id, app.store.clock().clone()).at(sending.at);
    let result = request.send(&app.store, &users, &stream, (&command, &message), &now).await;
    users.close().await;
    app.store.close().await;
    let sent = result.map_err(|error| exit_of_notify(error, refused))?;
    note_repetition(sent);
    if global.output.is_json() {
        let data = serde_json::json!({ "user": user, "notification": notification });
        return json("herald.user.notify/1", &data);
    }
    line(&format!("Sent notification {notification} to user {user}."));
    Ok(())
}

async fn execute(config: &Config, user: &str, command: &UserCommand) -> Result<(), Exit> {
    let user_id = checked(user)?;
    let app = App::open_or_set_up(config).await?;
    let (stream, users) = (user_id.stream(), users(app.store.clone()));
    let now = Now::new(user_id, app.store.clock().clone());
    let result = users.execute_with(&stream, command, &now, &Provenance::default()).await;
    users.close().await;
    app.store.close().await;
    result.map(|_| ()).map_err(|error| exit_of(error, refused))
}

fn refused(refused: Refused<UserRefusal>) -> Exit {
    match refused {
        Refused::By(refusal) if refusal.is_of_the_command() => Exit::new(Code::Usage, refusal.to_string()),
        Refused::By(refusal) => Exit::refusal(refusal.to_string()),
        // Users are not set up: whatever is asked of one can be decided.
        Refused::AlreadyExists | Refused::NotFound => Exit::new(Code::Failed, "there is no such user"),
    }
}

/// What no past can allow is refused before anything is opened or made.
fn refuse_at_once(user_id: &UserId, command: &UserCommand) -> Result<(), Exit> {
    let context = UserContext { user_id: user_id.clone(), now: Timestamp::from_micros(0) };
    match User::decide(&UserState::default(), command, &context) {
        Err(refusal) if refusal.is_of_the_command() => Err(Exit::new(Code::Usage, refusal.to_string())),
        _ => Ok(()),
    }
}

fn checked(user: &str) -> Result<UserId, Exit> {
    UserId::new(user).map_err(|error| Exit::new(Code::Usage, error.to_string()))
}

async fn inbox(config: &Config, global: &Global, user: &str, skip: i64) -> Result<(), Exit> {
    let user_id = checked(user)?;
    let app = App::open_to_look(config).await?;
    let inbox = Inbox::new(app.store.clone());
    let count = match inbox.count(user_id.as_str()).await {
        Err(error) if Fault::of(&error) == Fault::Other => {
            return Err(Exit::new(
                Code::Failed,
                format!("the inbox is not there: {}", ::store::messages(&error).join(": ")),
            )
            .with_hint("run `herald projection replay inbox` to build it anew"));
        }
        result => result?,
    };
    let items = inbox.for_user(user_id.as_str(), SHOWN, skip).await?;
    let next = (skip + SHOWN < count).then(|| (skip + SHOWN).to_string());
    if global.output == Format::Table {
        line(&format!("{count} pending message(s) for user {user_id}:"));
        for item in &items {
            line(&format!("* {} (id: {})", item.message, item.notification_id));
        }
    } else {
        #[derive(serde::Serialize)]
        struct Item<'a> {
            notification: &'a str,
            message: &'a str,
            timestamp: Timestamp,
        }
        let items: Vec<Item<'_>> = items
            .iter()
            .map(|item| Item {
                notification: &item.notification_id,
                message: &item.message,
                timestamp: item.timestamp,
            })
            .collect();
        let header = ["NOTIFICATION", "TIMESTAMP", "MESSAGE"];
        list(
            global.output,
            global.no_header,
            "herald.user.inbox/1",
            &header,
            &items,
            next.as_deref(),
            |item| vec![item.notification.to_owned(), item.timestamp.to_string(), item.message.to_owned()],
        )?;
    }
    if let (Some(next), false) = (next, global.output.is_json()) {
        note(&format!("There are more: add --skip {next}."));
    }
    fresh::warn(&app, &user_id).await
}
