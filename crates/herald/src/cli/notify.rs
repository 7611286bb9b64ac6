//! `herald notify`: whether what is sent gets out, before anybody relies on it.
//!
//! A test goes the way of every other message, but past the log and the ledger: it is tried once, now.

use std::sync::Arc;

use ::store::{DomainEvent, Json, Position, Timestamp};
use clap::Subcommand;
use notification_subscribers::delivery::{NoSuppressions, deliveries};
use notification_subscribers::operations::{SendEmailOp, SendSlackMessageOp, SendWebhookOp};
use serde::Serialize;
use subscription_engine::{Answer, Effect};
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::config::{Config, NOTIFY_HELP};
use crate::exit::{Code, Exit};
use crate::output::{json, line, list};

/// What a test says of itself.
const SUBJECT: &str = "A test of Herald";
const TEXT: &str = "This is a test: Herald can reach you here.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send a test message now, and say what came of it
    #[command(
        after_help = "Examples:\n  herald notify test email test@example.com\n  herald notify test slack C024BE91L\n  herald notify test slack webhook:ops\n  herald notify test webhook crm"
    )]
    #[command(subcommand)]
    Test(Test),
    /// List the settings by which messages get out
    #[command(after_help = "Example:\n  herald notify settings")]
    Settings,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Test {
    /// A mail
    #[command(after_help = "Example:\n  herald notify test email test@example.com")]
    Email {
        /// To this address
        address: String,
    },
    /// A Slack message
    #[command(
        after_help = "Examples:\n  herald notify test slack C024BE91L\n  herald notify test slack webhook:ops"
    )]
    Slack {
        /// To this conversation or user, or webhook:NAME
        target: String,
    },
    /// A call of a webhook
    #[command(after_help = "Example:\n  herald notify test webhook crm")]
    Webhook {
        /// The name under which it is configured
        name: String,
    },
}

pub(crate) async fn run(config: Result<Config, Exit>, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        // Also for those who cannot get the settings right.
        Command::Settings => settings(global),
        Command::Test(test) => try_out(&config?, global, test).await,
    }
}

fn settings(global: &Global) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Setting {
        name: String,
        meaning: &'static str,
    }
    let setting =
        |(name, meaning): &(&str, &'static str)| Setting { name: format!("HERALD_NOTIFY__{name}"), meaning };
    let rows: Vec<Setting> = NOTIFY_HELP.iter().map(setting).collect();
    let header = ["SETTING", "MEANING [DEFAULT]"];
    list(global.output, global.no_header, "herald.notify.settings/1", &header, &rows, None, |row| {
        vec![row.name.clone(), row.meaning.to_owned()]
    })
}

async fn try_out(config: &Config, global: &Global, test: Test) -> Result<(), Exit> {
    let app = App::open_to_look(config).await?;
    let answer = send(config, &app, &test).await;
    app.store.close().await;
    let (kind, to, operation, answer) = answer?;
    let detail = match answer {
        Answer::Done { detail } => detail,
        Answer::Failed { why } => return Err(Exit::new(Code::Failed, format!("{to} was refused: {why}"))),
        Answer::Retry { why, .. } => return Err(Exit::new(Code::Unreachable, format!("not now: {why}"))),
        Answer::Blocked { why } => {
            return Err(Exit::new(Code::Configuration, why).with_hint("see `herald notify settings`"));
        }
        Answer::Unknown { why } => {
            return Err(Exit::new(Code::Failed, format!("it may have arrived or not: {why}")));
        }
    };
    if global.output.is_json() {
        let data = serde_json::json!({ "kind": kind, "to": to, "operation": operation, "answer": detail });
        return json("herald.notify.test/1", &data);
    }
    line(&format!("Sent a test to {to}: {detail}"));
    Ok(())
}

/// Makes the one attempt.
async fn send(config: &Config, app: &App, test: &Test) -> Result<(&'static str, String, Uuid, Answer), Exit> {
    let (operation_id, decided_at) = (Uuid::new_v4(), app.store.clock().now().await?);
    let (kind, to, body) = match test {
        Test::Email { address: to } => {
            let (subject, text) = (SUBJECT.to_owned(), TEXT.to_owned());
            let (unsubscribe, reminds_of) = (None, None);
            let operation = SendEmailOp {
                operation_id,
                to: to.clone(),
                subject,
                text,
                decided_at,
                unsubscribe,
                reminds_of,
            };
            ("email", to, written(&operation)?)
        }
        Test::Slack { target: to } => {
            let operation =
                SendSlackMessageOp { operation_id, to: to.clone(), text: TEXT.to_owned(), decided_at };
            ("slack", to, written(&operation)?)
        }
        Test::Webhook { name: to } => {
            let (event_type, data) = ("herald.test".to_owned(), serde_json::json!({ "text": TEXT }));
            let operation = SendWebhookOp { operation_id, to: to.clone(), event_type, data, decided_at };
            ("webhook", to, written(&operation)?)
        }
    };
    let deliveries = deliveries(&config.notify, &app.store, Arc::new(NoSuppressions))?;
    let Some(delivery) = deliveries.into_iter().find(|delivery| delivery.kind() == kind) else {
        return Err(Exit::new(Code::Failed, format!("this program sends nothing of kind {kind}")));
    };
    let effect = of_nobody(kind, to, operation_id, body, decided_at);
    let deadline = delivery.terms().deadline;
    let answer = tokio::time::timeout(deadline, delivery.send(&effect)).await;
    let answer = answer.unwrap_or_else(|_| Answer::Unknown { why: "there was no answer in time".to_owned() });
    Ok((kind, to.clone(), operation_id, answer))
}

fn written(operation: &impl DomainEvent) -> Result<String, Exit> {
    Ok(Json::of(operation)?.as_str().to_owned())
}

/// An effect that no subscription has planned and no ledger knows.
fn of_nobody(kind: &str, to: &str, operation_id: Uuid, body: String, at: Timestamp) -> Effect {
    Effect {
        id: operation_id,
        subscription_id: String::new(),
        kind: kind.to_owned(),
        destination: to.to_owned(),
        key: operation_id.to_string(),
        body,
        cause_id: operation_id,
        cause_position: Position::START,
        correlation_id: None,
        caused_at: at,
        attempt: 1,
    }
}
