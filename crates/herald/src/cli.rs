//! The command line: its shape, and the way from words to what is done.
//!
//! Every command is written with spaces; the colon form of the tutorial works as well.

mod channel;
mod check;
mod clock;
mod confirm;
mod deciding;
mod deliveries;
mod dlq;
mod doctor;
mod effects;
mod events;
mod findings;
mod next;
mod notification;
mod notify;
mod pace;
mod projection;
mod recipient;
mod status;
mod store;
mod streams;
mod sub;
mod user;

use std::ffi::OsString;
use std::time::Duration;

use ::store::Timestamp;
use clap::{Args, Parser, Subcommand};
use subscription_engine::Outcome;

use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::Format;
use crate::{demo, worker};

pub(crate) use check::{unknown, wants_plugin};
pub(crate) use sub::{known, outcome_text, reason_given};

/// An event log, subscriptions that never skip an event, and the notifications they deliver.
#[derive(Debug, Parser)]
#[command(name = "herald", version, max_term_width = 100)]
#[command(after_help = "Examples:\n  herald demo\n  herald user notify user1 \"Hello\"\n  herald worker\n  \
                        herald user inbox user1\n  herald sub list")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The database: sqlite:FILE or postgres://USER@HOST/DATABASE [env: HERALD_DATABASE; default: a file in the state folder]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// The form of the data on stdout
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Leave the header line out
    #[arg(long, global = true)]
    pub(crate) no_header: bool,
    /// Say more of what is done (-vv: each step)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Work on a store in test mode, whose clock is set by hand
    #[arg(long, global = true, env = "HERALD_TEST_MODE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) test_mode: bool,
    /// Do not ask before what cannot be undone
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// Why, for the history
    #[arg(long, global = true, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep every subscription moving: the long-running process
    Worker(worker::Arguments),
    /// A guided run on a scratch database: ends by itself and leaves nothing behind
    Demo(demo::Arguments),
    /// Notify users, show what is pending, acknowledge
    #[command(subcommand)]
    User(user::Command),
    /// Channels, who is subscribed to them, and notifying everybody who is
    #[command(subcommand)]
    Channel(channel::Command),
    /// How users are reached: addresses, preferences, what is not used any more
    #[command(subcommand)]
    Recipient(recipient::Command),
    /// Have a notification sent by mail and Slack, and see how far it is
    #[command(subcommand)]
    Notification(notification::Command),
    /// See and steer subscriptions
    #[command(subcommand, alias = "subscription")]
    Sub(sub::Command),
    /// Dead letters: events that a subscription could not handle and set aside
    #[command(subcommand, visible_alias = "dead-letters")]
    Dlq(dlq::Command),
    /// The projections, by the names people know
    #[command(subcommand)]
    Projection(projection::Command),
    /// The event store itself
    #[command(subcommand, visible_alias = "eventstore", alias = "db")]
    Store(store::Command),
    /// Look into the log
    #[command(subcommand)]
    Events(events::Command),
    /// Streams by name, what they hold, and what is noted about them
    #[command(subcommand, alias = "stream")]
    Streams(streams::Command),
    /// What is to be done outside the database: mails, calls of other servers
    #[command(subcommand)]
    Effects(effects::Command),
    /// What was sent to whom, and what came of it
    #[command(after_help = deliveries::HELP)]
    Deliveries(deliveries::Arguments),
    /// Try out how mails, Slack messages and webhook calls get out
    #[command(subcommand)]
    Notify(notify::Command),
    /// The clock of a store in test mode
    #[command(subcommand)]
    Clock(clock::Command),
    /// Fail if a subscription is stalled, in error or too far behind: for monitoring
    #[command(after_help = check::HELP)]
    Check(check::Arguments),
    /// How everything gets on, on one page
    #[command(after_help = status::HELP)]
    Status(status::Arguments),
    /// Look at everything at once: what is wrong, and what to do about it
    #[command(after_help = doctor::HELP)]
    Doctor,
}

/// The nouns whose verbs may follow a colon.
const NOUNS: [&str; 18] = [
    "user",
    "recipient",
    "notification",
    "sub",
    "subscription",
    "dlq",
    "dead-letters",
    "projection",
    "store",
    "eventstore",
    "db",
    "events",
    "streams",
    "stream",
    "effects",
    "notify",
    "clock",
    "channel",
];

/// Whether this is the name of a command that works on the database that was named.
pub(crate) fn is_command(word: &str) -> bool {
    NOUNS.contains(&word) || ["worker", "check", "status", "doctor"].contains(&word)
}

/// Whether words that were not understood as a whole ask for JSON all the same.
pub(crate) fn wants_json(words: &[OsString]) -> bool {
    let is_json = |form: &str| matches!(form, "json" | "jsonl");
    let words: Vec<&str> =
        words.iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--").collect();
    words.iter().enumerate().any(|(at, word)| {
        match word.strip_prefix("--output").or(word.strip_prefix("-o")) {
            Some("") => words.get(at + 1).is_some_and(|form| is_json(form)),
            Some(form) => is_json(form.strip_prefix('=').unwrap_or(form)),
            None => false,
        }
    })
}

/// Turns `noun:verb` into two words, where a command stands.
pub(crate) fn with_spaces(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut is_before_command = true;
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        let split = text.split_once(':').filter(|(noun, _)| is_before_command && NOUNS.contains(noun));
        if let Some((noun, verb)) = split {
            words.extend([noun.into(), verb.into()]);
            is_before_command = false;
        } else {
            is_before_command &= !NOUNS.contains(&text);
            words.push(argument);
        }
    }
    words
}

impl Cli {
    /// Does what was asked; answers with the exit code.
    pub(crate) async fn run(self) -> Result<u8, Exit> {
        worker::log_to_stderr(self.global.verbose, matches!(self.command, Command::Worker(_)));
        let global = &self.global;
        crate::output::write_as(global.output);
        if global.reason.as_ref().is_some_and(|reason| reason.trim().is_empty()) {
            return Err(Exit::new(Code::Usage, "--reason is empty")
                .with_hint("say why in a few words, or leave it out where it is not asked for"));
        }
        let config = || Config::load(global);
        match self.command {
            Command::Worker(arguments) => return worker::run(&config()?, arguments).await,
            // On a database of its own, whatever is configured.
            Command::Demo(arguments) => return demo::run(arguments).await,
            Command::User(command) => user::run(&config()?, global, command).await?,
            Command::Channel(command) => channel::run(&config()?, global, command).await?,
            Command::Recipient(command) => recipient::run(&config()?, global, command).await?,
            Command::Notification(command) => notification::run(&config()?, global, command).await?,
            Command::Sub(command) => sub::run(&config()?, global, command).await?,
            Command::Dlq(command) => dlq::run(&config()?, global, command).await?,
            Command::Projection(command) => projection::run(&config()?, global, command).await?,
            Command::Store(command) => store::run(&config()?, global, command).await?,
            Command::Events(command) => return events::run(&config()?, global, command).await,
            Command::Streams(command) => streams::run(&config()?, global, command).await?,
            Command::Effects(command) => effects::run(&config()?, global, command).await?,
            Command::Deliveries(arguments) => deliveries::run(&config()?, global, arguments).await?,
            Command::Notify(command) => notify::run(config(), global, command).await?,
            Command::Clock(command) => clock::run(&config()?, global, command).await?,
            Command::Check(arguments) => return check::run(config(), global, &arguments).await,
            Command::Status(arguments) => return status::run(&config()?, global, &arguments).await,
            Command::Doctor => doctor::run(&config()?, global).await?,
        }
        Ok(0)
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    // Nobody who writes a bare number means anything but seconds.
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 30s or 5m"))
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|error: ::store::InvalidTimestamp| error.to_string())
}

/// An outcome that is no success ends the command with the code for it.
pub(crate) fn code_of(outcome: &Outcome) -> Option<Code> {
    match outcome {
        Outcome::Busy | Outcome::Waiting { .. } => Some(Code::Busy),
        Outcome::Refused { .. } => Some(Code::Conflict),
        Outcome::Failed { .. } => Some(Code::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        with_spaces(line.split(' ').map(OsString::from))
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn c01_the_colon_form_means_the_same() {
        assert_eq!(words("herald user:notify a b:c"), ["herald", "user", "notify", "a", "b:c"]);
        assert_eq!(
            words("herald --database sqlite:x.db sub:list"),
            ["herald", "--database", "sqlite:x.db", "sub", "list"]
        );
        assert_eq!(words("herald user notify user:x hi"), ["herald", "user", "notify", "user:x", "hi"]);
    }

    #[test]
    fn c06_json_is_wanted_also_by_words_that_are_not_understood() {
        let wants = |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in [
            "herald sub lst -o json",
            "herald -ojsonl x",
            "herald --output=json",
            "herald -o=json sub",
            "herald --output jsonl",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in [
            "herald sub lst",
            "herald -o table json",
            "herald x -- -o json",
            "herald -o",
            "herald --others json",
        ] {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
