//! `herald recipient`: how users are reached, and what they want.

use aggregate::{ExecuteError, Provenance, Repository};
use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};
use notification_subscribers::{
    DeliveryChannel, PreferenceChange, QuietHours, Recipient, RecipientCommand, RecipientState, UserId,
    recipient_stream,
};
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say where mails to a user go
    #[command(after_help = "Example:\n  herald recipient set-email alice alice@example.org")]
    SetEmail {
        /// Who
        user: String,
        /// The address
        address: String,
    },
    /// Say where Slack messages to a user go
    #[command(
        after_help = "Examples:\n  herald recipient set-slack alice U0123456789\n  herald recipient set-slack alice C0123456789\n  herald recipient set-slack alice webhook:team"
    )]
    SetSlack {
        /// Who
        user: String,
        /// The id of a conversation or a user of Slack, or webhook:NAME for a configured webhook
        to: String,
    },
    /// Say what a user wants; what is not said stays as it is
    #[command(
        after_help = "Examples:\n  herald recipient set-preferences alice --slack off\n  herald recipient set-preferences alice --time-zone Europe/Vienna --quiet-hours 22:00-07:00"
    )]
    SetPreferences(SetPreferences),
    /// Send nothing to an address any more, whatever the user wants
    #[command(
        after_help = "Example:\n  herald recipient suppress alice alice@example.org --reason \"mail came back: 550 5.1.1\""
    )]
    Suppress {
        /// Whose address
        user: String,
        /// The address
        address: String,
        /// The mail that came back
        #[arg(long, value_name = "UUID")]
        operation: Option<Uuid>,
    },
    /// Show how a user is reached
    #[command(after_help = "Example:\n  herald recipient show alice")]
    Show {
        /// Who
        user: String,
    },
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["email", "slack", "reminders", "time_zone", "quiet_hours", "no_quiet_hours"])))]
pub(crate) struct SetPreferences {
    /// Who
    user: String,
    /// Anything by mail
    #[arg(long, value_name = "on|off", value_parser = BoolishValueParser::new())]
    email: Option<bool>,
    /// Anything by Slack
    #[arg(long, value_name = "on|off", value_parser = BoolishValueParser::new())]
    slack: Option<bool>,
    /// Mails that remind of what was not acknowledged
    #[arg(long, value_name = "on|off", value_parser = BoolishValueParser::new())]
    reminders: Option<bool>,
    /// By which clock they live, such as Europe/Vienna
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// When they are not to be reminded, by that clock
    #[arg(long, value_name = "FROM-TO")]
    quiet_hours: Option<QuietHours>,
    /// They may be reminded at any time
    #[arg(long, conflicts_with = "quiet_hours")]
    no_quiet_hours: bool,
}

/// A recipient as it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    user: &'a str,
    email: Option<&'a str>,
    slack: Option<&'a str>,
    preferences: &'a notification_subscribers::Preferences,
    suppressed: Vec<&'a str>,
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    let (user, command) = match command {
        Command::SetEmail { user, address } => (user, RecipientCommand::SetEmail { address }),
        Command::SetSlack { user, to } => (user, RecipientCommand::SetSlack { to }),
        Command::SetPreferences(arguments) => {
            let (user, change) = change(arguments);
            (user, RecipientCommand::SetPreferences(change))
        }
        Command::Suppress { user, address, operation } => {
            let reason = super::reason_given(global, "suppressed")?.to_owned();
            (user, RecipientCommand::SuppressAddress { address, reason, operation_id: operation })
        }
        Command::Show { user } => return look(config, global, &user).await,
    };
    let user_id = checked(&user)?;
    // What no past can allow is refused before anything is opened or made.
    let first = <Recipient as aggregate::Aggregate>::decide(&RecipientState::default(), &command, &user_id);
    first.map_err(|refusal| Exit::new(Code::Usage, refusal.to_string()))?;
    let app = App::open_or_set_up(config).await?;
    let stream = recipient_stream(&user_id);
    let recipients = Repository::<Recipient>::new(app.store.clone());
    let result = recipients.execute(&stream, &command, &user_id, &Provenance::default()).await;
    let executed = match result {
        Ok(executed) => executed,
        Err(ExecuteError::Refused(refusal)) => return Err(Exit::new(Code::Usage, refusal.to_string())),
        Err(error @ ExecuteError::Contended { .. }) => return Err(Exit::new(Code::Busy, error.to_string())),
        Err(error) => return Err(error.into()),
    };
    if executed.events.is_empty() {
        note("It was so already; nothing was changed.");
    }
    let state = recipients.load(&stream).await?.0;
    app.store.close().await;
    show(global, &user_id, &state)
}

fn change(arguments: SetPreferences) -> (String, PreferenceChange) {
    let SetPreferences { user, email, slack, reminders, time_zone, quiet_hours, no_quiet_hours } = arguments;
    let quiet_hours = if no_quiet_hours { Some(None) } else { quiet_hours.map(Some) };
    (user, PreferenceChange { email, slack, reminders, time_zone, quiet_hours })
}

fn checked(user: &str) -> Result<UserId, Exit> {
    UserId::new(user).map_err(|error| Exit::new(Code::Usage, error.to_string()))
}

async fn look(config: &Config, global: &Global, user: &str) -> Result<(), Exit> {
    let user_id = checked(user)?;
    let app = App::open_to_look(config).await?;
    let recipients = Repository::<Recipient>::new(app.store.clone());
    let (state, _) = recipients.load(&recipient_stream(&user_id)).await?;
    show(global, &user_id, &state)
}

fn show(global: &Global, user_id: &UserId, state: &RecipientState) -> Result<(), Exit> {
    if global.output.is_json() {
        let shown = Shown {
            user: user_id.as_str(),
            email: state.email.as_deref(),
            slack: state.slack.as_deref(),
            preferences: &state.preferences,
            suppressed: state.suppressed.iter().map(String::as_str).collect(),
        };
        return json("herald.recipient/1", &shown);
    }
    let preferences = &state.preferences;
    let reached = |channel, address: &Option<String>| match state.reach(channel) {
        Ok(address) => address.to_owned(),
        Err(reason) => match address {
            Some(address) => format!("{address}, not used: {}", reason.word()),
            None => format!("none: {}", reason.word()),
        },
    };
    let quiet = preferences.quiet_hours.as_ref().map_or("none".to_owned(), ToString::to_string);
    line(&format!("Recipient {user_id}"));
    for (name, text) in [
        ("email", reached(DeliveryChannel::Email, &state.email)),
        ("slack", reached(DeliveryChannel::Slack, &state.slack)),
        ("reminders", if preferences.reminders { "on" } else { "off" }.to_owned()),
        ("time zone", preferences.time_zone.clone().unwrap_or("UTC".to_owned())),
        ("quiet hours", quiet),
    ] {
        line(&format!("  {name:<13}{text}"));
    }
    for address in &state.suppressed {
        line(&format!("  {:<13}{address}", "suppressed"));
    }
    Ok(())
}
