//! `herald notification`: what clients ask for, and how far it is.

use ::store::{Fault, StreamName};
use clap::{Args, Subcommand};
use notification_subscribers::streams::CLIENT_OPERATIONS;
use notification_subscribers::{
    AcceptError, DeliveryChannel, MessageStatus, NotificationRequest, TrackedMessage, Tracking,
    TrackingStatus, TrackingView, accept, check_key,
};
use serde::Serialize;
use subscription_engine::Criteria;
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, moment, note};

/// The subscription that takes up what is queued.
const TAKES_IT_UP: &str = "send_notification";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Queue a notification; it is sent by every channel that its audience has and wants
    #[command(
        after_help = "Examples:\n  herald notification send alice --subject \"Backup\" --body \"It is done.\"\n  \
                            herald notification send alice --subject Backup --body \"It is done.\" \
                            --idempotency-key backup-2026-01-01\n\n\
                            Prints the tracking id as soon as it is queued. The same key again prints the same id \
                            and queues nothing;\nthe same key for something else is refused (5)."
    )]
    Send(Send),
    /// How far a notification is
    #[command(after_help = "Example:\n  herald notification status fdf70c75-daa5-46d5-8cae-a2290e290d79")]
    Status {
        /// The tracking id
        tracking_id: Uuid,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// To whom
    entity: String,
    /// What it is about: one line
    #[arg(long)]
    subject: String,
    /// What it says
    #[arg(long)]
    body: String,
    /// Makes the command safe to repeat
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        Command::Send(arguments) => send(config, global, arguments).await,
        Command::Status { tracking_id } => status(config, global, tracking_id).await,
    }
}

async fn send(config: &Config, global: &Global, arguments: Send) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Sent {
        tracking_id: Uuid,
        replayed: bool,
    }
    let Send { entity, subject, body, idempotency_key } = arguments;
    let key = idempotency_key.as_deref();
    let request = NotificationRequest { entity_id: entity, subject, body };
    // What can never be is refused before anything is opened or made.
    request.check().and_then(|()| key.map_or(Ok(()), check_key)).map_err(refused)?;
    let app = App::open_or_set_up(config).await?;
    // Whoever is to take it up must be there, also where the log is older than this program.
    app.engine.set_up(&Criteria::id(TAKES_IT_UP), false).await?;
    let accepted = accept(&app.store, &request, key).await;
    app.store.close().await;
    let accepted = accepted.map_err(refused)?;
    let (tracking_id, replayed) = (accepted.tracking_id, accepted.replayed);
    if global.output.is_json() {
        return json("herald.notification.send/1", &Sent { tracking_id, replayed });
    }
    line(&tracking_id.to_string());
    if replayed {
        note("It was queued before under this key; nothing was queued now.");
    }
    note(&format!("See how far it is: herald notification status {tracking_id}"));
    Ok(())
}

fn refused(error: AcceptError) -> Exit {
    match error {
        AcceptError::KeyReused(_) => Exit::new(Code::Conflict, error.to_string()),
        AcceptError::Append(_) | AcceptError::Unwritable(_) | AcceptError::Refused(_) => error.into(),
        _ => Exit::new(Code::Usage, error.to_string()),
    }
}

async fn status(config: &Config, global: &Global, tracking_id: Uuid) -> Result<(), Exit> {
    let app = App::open_to_look(config).await?;
    let tracked = match Tracking::new(app.store.clone()).of(tracking_id).await {
        Err(error) if Fault::of(&error) == Fault::Other => {
            let why = ::store::messages(&error).join(": ");
            return Err(Exit::new(Code::Failed, why).with_hint(
                "a worker sets tracking_view_1 up; if one runs, see `herald sub show tracking_view_1`",
            ));
        }
        result => result?,
    };
    let Some(tracked) = tracked else {
        return not_taken_up(&app, global, tracking_id).await;
    };
    if global.output.is_json() {
        return json("herald.notification.status/1", &tracked.json);
    }
    let view: TrackingView = tracked.json.to()?;
    line(&format!("Notification {} to {}: {}", view.tracking_id, view.entity_id, word_for(view.status)));
    let rows = [
        ("subject", view.subject.clone()),
        ("requested", moment(view.requested_at)),
        ("updated", moment(view.updated_at)),
    ];
    let messages = view.channels.iter().map(|message| (channel(message.channel), how_far(message)));
    let skipped =
        view.skipped.iter().map(|one| (channel(one.channel), format!("not used: {}", one.reason.word())));
    let outcome = view.outcome.iter().map(|outcome| ("outcome", outcome.name().to_owned()));
    let team = view.team.iter().map(|message| ("team", how_far(message)));
    for (name, text) in rows.into_iter().chain(messages).chain(skipped).chain(outcome).chain(team) {
        line(&format!("  {name:<11}{text}"));
    }
    if view.status == TrackingStatus::Failed && view.team.is_none() {
        note("Nobody was told of the failure (yet): see HERALD_NOTIFY__TEAM_ADDRESS.");
    }
    Ok(())
}

/// There may be an operation that nothing was done about yet.
async fn not_taken_up(app: &App, global: &Global, tracking_id: Uuid) -> Result<(), Exit> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Queued {
        tracking_id: Uuid,
        status: &'static str,
    }
    let stream = StreamName::new(format!("{CLIENT_OPERATIONS}-{tracking_id}"))?;
    if app.store.read_stream(&stream, 0, 1).await?.events.is_empty() {
        return Err(Exit::new(Code::NotFound, format!("there is no notification {tracking_id}")));
    }
    if global.output.is_json() {
        return json("herald.notification.status/1", &Queued { tracking_id, status: "accepted" });
    }
    line(&format!("Notification {tracking_id}: accepted, and waits for a worker"));
    Ok(())
}

fn word_for(status: TrackingStatus) -> &'static str {
    match status {
        TrackingStatus::Requested => "requested",
        TrackingStatus::Sending => "sending",
        TrackingStatus::Sent => "sent",
        TrackingStatus::OptedOut => "opted out",
        TrackingStatus::Failed => "failed",
    }
}

fn channel(channel: DeliveryChannel) -> &'static str {
    match channel {
        DeliveryChannel::Email => "email",
        DeliveryChannel::Slack => "slack",
    }
}

fn how_far(message: &TrackedMessage) -> String {
    let status = match message.status {
        MessageStatus::Queued => "queued",
        MessageStatus::Sent => "sent",
        MessageStatus::Failed => "failed",
    };
    let to = message.to.as_ref().map_or(String::new(), |to| format!(" to {to}"));
    let reason = message.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    format!("{status}{to}{reason}")
}
