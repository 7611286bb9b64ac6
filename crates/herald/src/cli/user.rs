//! `herald user`: what people do with notifications.

mod fresh;

use ::store::{Fault, ReadError, Timestamp};
use aggregate::{Aggregate, ExecuteError, Provenance};
use clap::Subcommand;
use notification_subscribers::{
    Inbox, User, UserCommand, UserContext, UserId, UserRefusal, UserState, users,
};
use uuid::Uuid;

use crate::app::App;
use crate::cli::{Global, parse_time};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{Format, json, line, list, note};

/// Notifications shown at once.
const SHOWN: i64 = 1_000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send a notification to a user
    #[command(after_help = "Example:\n  herald user notify user1 \"The first message\"")]
    Notify {
        /// Who
        user: String,
        /// What
        message: String,
        /// The time it is, in test mode
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        at: Option<Timestamp>,
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
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        Command::Notify { user, message, at } => {
            let notification = Uuid::new_v4().to_string();
            let notify = UserCommand::Notify { notification_id: notification.clone(), message };
            execute(config, &user, notify, at).await?;
            if global.output.is_json() {
                let data = serde_json::json!({ "user": user, "notification": notification });
                return json("herald.user.notify/1", &data);
            }
            line(&format!("Sent notification {notification} to user {user}."));
        }
        Command::Inbox { user, skip } => return inbox(config, global, &user, i64::from(skip)).await,
        Command::Acknowledge { user, notification } => {
            let acknowledge = UserCommand::Acknowledge { notification_id: notification.clone() };
            execute(config, &user, acknowledge, None).await?;
            if global.output.is_json() {
                let data = serde_json::json!({ "user": user, "notification": notification });
                return json("herald.user.acknowledge/1", &data);
            }
            line(&format!("Notification {notification} was acknowledged."));
        }
    }
    Ok(())
}

async fn execute(
    config: &Config,
    user: &str,
    command: UserCommand,
    at: Option<Timestamp>,
) -> Result<(), Exit> {
    let user_id = checked(user)?;
    refuse_at_once(&user_id, &command)?;
    let app = App::open_or_set_up(config).await?;
    let clock = app.store.clock();
    if at.is_some() && !clock.is_manual() {
        return Err(Exit::new(Code::Usage, "--at is for stores in test mode only"));
    }
    let now = match at {
        Some(at) => at,
        None => clock.now().await?,
    };
    let stream = user_id.stream();
    let context = UserContext { user_id, now };
    let users = users(app.store.clone());
    let result = users.execute(&stream, &command, &context, &Provenance::default()).await;
    users.close().await;
    app.store.close().await;
    match result {
        Ok(_) => Ok(()),
        Err(ExecuteError::Refused(refusal @ UserRefusal::NotPending { .. })) => {
            Err(Exit::refusal(refusal.to_string()))
        }
        Err(ExecuteError::Refused(refusal)) => Err(Exit::new(Code::Usage, refusal.to_string())),
        Err(error @ ExecuteError::Contended { .. }) => Err(Exit::new(Code::Busy, error.to_string())),
        Err(error @ ExecuteError::Misrecorded { .. }) => {
            Err(Exit::new(Code::Configuration, error.to_string()).with_hint(
                "`herald store verify --fix` puts the table of streams right; no event is touched",
            ))
        }
        Err(ExecuteError::Read(error @ ReadError::BadRow { .. })) => {
            let exit = Exit::from(error);
            let hint = exit.hint().unwrap_or_default().to_owned();
            Err(exit
                .with_hint(format!("until {user} can be read again, nothing can be decided for it: {hint}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// What no past can allow is refused before anything is opened or made.
fn refuse_at_once(user_id: &UserId, command: &UserCommand) -> Result<(), Exit> {
    let context = UserContext { user_id: user_id.clone(), now: Timestamp::from_micros(0) };
    match User::decide(&UserState::default(), command, &context) {
        Err(refusal @ (UserRefusal::EmptyMessage | UserRefusal::MessageTooLong(_))) => {
            Err(Exit::new(Code::Usage, refusal.to_string()))
        }
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
