//! `herald channel`: channels, who is subscribed to them, and notifying everybody who is.

mod lists;

use ::store::Timestamp;
use aggregate::{Aggregate, Provenance};
use clap::Subcommand;
use notification_subscribers::{
    Channel, ChannelCommand, ChannelContext, ChannelId, ChannelRefusal, ChannelState, Now, UserId, channels,
};
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::cli::deciding::{Refused, Sending, check_at, exit_of, exit_of_notify, note_repetition};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a channel
    #[command(after_help = "Example:\n  herald channel add channel1 \"First channel\"")]
    Add {
        /// Its id
        channel: String,
        /// What people call it
        label: String,
    },
    /// Subscribe a user to a channel
    #[command(after_help = "Example:\n  herald channel subscribe channel1 user1")]
    Subscribe {
        /// To which
        channel: String,
        /// Who
        user: String,
    },
    /// Unsubscribe a user from a channel
    #[command(after_help = "Example:\n  herald channel unsubscribe channel1 user1")]
    Unsubscribe {
        /// From which
        channel: String,
        /// Who
        user: String,
    },
    /// Send a notification to everybody who is subscribed to a channel now
    #[command(after_help = "Examples:\n  herald channel notify channel1 \"First message to channel1\"\n  \
                      herald channel notify channel1 \"Doors open\" --correlation-id show-12 --idempotency-key show-12-open\n\n\
                      Exit 1: refused, such as less than 10 seconds after the last one; nothing was sent.")]
    Notify {
        /// Which
        channel: String,
        /// What
        message: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Archive a channel: nobody can notify it or subscribe to it any more
    #[command(after_help = "Example:\n  herald channel archive channel1")]
    Archive {
        /// Which
        channel: String,
    },
    /// List channels
    #[command(after_help = lists::LIST_HELP)]
    List(lists::ListArguments),
    /// Show a channel as it is right now
    #[command(after_help = "Example:\n  herald channel show channel1")]
    Show {
        /// Which
        channel: String,
    },
    /// List who is subscribed to a channel
    #[command(after_help = lists::MEMBERS_HELP)]
    Members(lists::MembersArguments),
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        Command::Add { channel, label } => {
            let add = ChannelCommand::Add { label: label.clone() };
            execute(config, &channel, &add).await?;
            let said = format!("Channel \"{label}\" was created with id \"{channel}\"");
            say(
                global,
                "herald.channel.add/1",
                &said,
                &serde_json::json!({ "channel": channel, "label": label }),
            )
        }
        Command::Subscribe { channel, user } => {
            execute(config, &channel, &ChannelCommand::Subscribe { user_id: checked_user(&user)? }).await?;
            let said = format!("Subscribed user with id \"{user}\" to channel {channel}");
            let data = serde_json::json!({ "channel": channel, "user": user });
            say(global, "herald.channel.subscribe/1", &said, &data)
        }
        Command::Unsubscribe { channel, user } => {
            execute(config, &channel, &ChannelCommand::Unsubscribe { user_id: checked_user(&user)? }).await?;
            let said = format!("Unsubscribed user with id \"{user}\" from channel {channel}");
            let data = serde_json::json!({ "channel": channel, "user": user });
            say(global, "herald.channel.unsubscribe/1", &said, &data)
        }
        Command::Notify { channel, message, sending } => {
            notify(config, global, &channel, message, &sending).await
        }
        Command::Archive { channel } => {
            execute(config, &channel, &ChannelCommand::Archive).await?;
            let said = format!("Archived channel {channel}");
            say(global, "herald.channel.archive/1", &said, &serde_json::json!({ "channel": channel }))
        }
        Command::List(arguments) => lists::list_channels(config, global, &arguments).await,
        Command::Show { channel } => show(config, global, &channel).await,
        Command::Members(arguments) => lists::list_members(config, global, &arguments).await,
    }
}

/// Says what was done, in the form asked for.
fn say(global: &Global, schema: &str, said: &str, data: &serde_json::Value) -> Result<(), Exit> {
    if global.output.is_json() {
        return json(schema, data);
    }
    line(said);
    Ok(())
}

async fn notify(
    config: &Config,
    global: &Global,
    channel: &str,
    message: String,
    sending: &Sending,
) -> Result<(), Exit> {
    // Whatever follows from it can be found by one id.
    let request = sending.request(Some(Uuid::new_v4().to_string()));
    let notification = request.notification_id.to_string();
    let channel_id = checked(channel)?;
    let command = ChannelCommand::Notify { notification_id: notification.clone(), message: message.clone() };
    refuse_at_once(&channel_id, &command)?;
    let app = App::open_or_set_up(config).await?;
    check_at(&app, sending.at)?;
    let (stream, channels) = (channel_id.stream(), channels(app.store.clone()));
    let now = Now::new(channel_id.clone(), app.store.clock().clone()).at(sending.at);
    let result = request.send(&app.store, &channels, &stream, (&command, &message), &now).await;
    channels.close().await;
    app.store.close().await;
    let sent = result.map_err(|error| exit_of_notify(error, |why| refused(&channel_id, why)))?;
    note_repetition(sent);
    let said = format!("Sent notification {notification} to channel {channel}");
    let data = serde_json::json!({ "channel": channel, "notification": notification });
    say(global, "herald.channel.notify/1", &said, &data)
}

async fn execute(config: &Config, channel: &str, command: &ChannelCommand) -> Result<(), Exit> {
    let channel_id = checked(channel)?;
    refuse_at_once(&channel_id, command)?;
    let app = App::open_or_set_up(config).await?;
    let (stream, channels) = (channel_id.stream(), channels(app.store.clone()));
    let now = Now::new(channel_id.clone(), app.store.clock().clone());
    let result = channels.execute_with(&stream, command, &now, &Provenance::default()).await;
    channels.close().await;
    app.store.close().await;
    result.map(|_| ()).map_err(|error| exit_of(error, |why| refused(&channel_id, why)))
}

/// What no past can allow is refused before anything is opened or made.
fn refuse_at_once(channel_id: &ChannelId, command: &ChannelCommand) -> Result<(), Exit> {
    let context = ChannelContext { channel_id: channel_id.clone(), now: Timestamp::from_micros(0) };
    match Channel::decide(&ChannelState::default(), command, &context) {
        Err(refusal) if refusal.is_of_the_command() => Err(Exit::new(Code::Usage, refusal.to_string())),
        _ => Ok(()),
    }
}

fn refused(channel_id: &ChannelId, refused: Refused<ChannelRefusal>) -> Exit {
    match refused {
        Refused::By(refusal) if refusal.is_of_the_command() => Exit::new(Code::Usage, refusal.to_string()),
        Refused::By(ChannelRefusal::TooSoon { wait }) => {
            // What is left, to the next whole second: never too early.
            let seconds = wait.as_micros().div_ceil(1_000_000);
            Exit::refusal(ChannelRefusal::TooSoon { wait }.to_string())
                .with_hint(format!("try again in {seconds} s"))
        }
        Refused::By(refusal) => Exit::refusal(refusal.to_string()),
        Refused::AlreadyExists => Exit::refusal(ChannelRefusal::AlreadyAdded(channel_id.clone()).to_string()),
        Refused::NotFound => not_found(channel_id),
    }
}

fn not_found(channel_id: &ChannelId) -> Exit {
    Exit::refusal(format!("A channel with id \"{channel_id}\" does not exist"))
}

fn checked(channel: &str) -> Result<ChannelId, Exit> {
    ChannelId::new(channel).map_err(|error| Exit::new(Code::Usage, error.to_string()))
}

fn checked_user(user: &str) -> Result<UserId, Exit> {
    UserId::new(user).map_err(|error| Exit::new(Code::Usage, error.to_string()))
}

async fn show(config: &Config, global: &Global, channel: &str) -> Result<(), Exit> {
    let channel_id = checked(channel)?;
    let app = App::open_to_look(config).await?;
    let loaded = channels(app.store.clone()).load(&channel_id.stream()).await;
    let (state, _) = loaded.map_err(|error| exit_of(error, |why| refused(&channel_id, why)))?;
    let Some(label) = state.label() else { return Err(not_found(&channel_id)) };
    let (members, last) = (state.subscribers().len(), state.last_notification_at());
    if global.output.is_json() {
        let data = serde_json::json!({
            "channel": channel, "label": label, "members": members, "archived": state.is_archived(),
            "last_notification_at": last,
        });
        return json("herald.channel.show/1", &data);
    }
    line(&format!("{channel}    \"{label}\""));
    line(&format!("status      {}", if state.is_archived() { "archived" } else { "open" }));
    line(&format!("members     {members}"));
    line(&format!("notified    {}", last.map_or_else(|| "never".to_owned(), |at| at.to_string())));
    Ok(())
}
