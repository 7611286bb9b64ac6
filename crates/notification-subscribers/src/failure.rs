//! What follows when a notification has failed: the system asks itself to tell a team, and does so by mail.
//!
//! Only notifications that clients asked for are reacted to. The mail to the team is none: when it fails as well that
//! is recorded and shown, and nothing follows from it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Event, ExpectedVersion, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber};
use uuid::Uuid;

use crate::events::events;
use crate::in_unit::InUnit;
use crate::notification::{
    ChannelOutcome, FailedToSendNotificationEvent, FailureOutcome, Notification, NotificationCommand,
    notification_stream,
};
use crate::operations::{EMAIL_OPERATIONS, SendEmailOp, stream_of};
use crate::recipient::DeliveryChannel;
use crate::streams::{INTERNAL_OPERATIONS, Producer, Writer, derived_id};

/// A subject names the one that failed, and so much of it.
const MAX_QUOTED_CHARACTERS: usize = 100;

events! {
    /// A team is to be told that a notification failed.
    TellInternalTeamOp {
        /// The operation.
        operation_id: Uuid,
        /// The notification.
        tracking_id: Uuid,
        /// To whom it was to go.
        entity_id: String,
        /// What it was about.
        subject: String,
        /// How far it came.
        outcome: FailureOutcome,
        /// What came of each channel.
        per_channel: Vec<ChannelOutcome>,
        /// When it failed.
        failed_at: Timestamp,
    }
}

/// `failure_reactor`: queues an operation for each notification that failed.
#[derive(Clone, Copy, Debug)]
pub struct FailureReactor;

#[async_trait]
impl Subscriber for FailureReactor {
    fn definition(&self) -> Definition {
        Definition::processor("failure_reactor")
            .on([FailedToSendNotificationEvent::TYPE])
            .with_poison(Poison::park())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let writer = Writer::of(Producer::FailureReactor);
        for event in events {
            let Some(failed) = event.decode::<FailedToSendNotificationEvent>() else { continue };
            let failed = failed?;
            let operation_id = derived_id(event.id, "tell the team");
            let operation = TellInternalTeamOp {
                operation_id,
                tracking_id: failed.tracking_id,
                entity_id: failed.entity_id,
                subject: failed.subject,
                outcome: failed.outcome,
                per_channel: failed.per_channel,
                failed_at: event.recorded_at,
            };
            let stream = stream_of(INTERNAL_OPERATIONS, operation_id);
            let mut cause = context.because_of(event);
            writer.append(&mut cause, &stream, ExpectedVersion::NoStream, &operation)?;
        }
        Ok(())
    }
}

/// `internal_operations`: does what the system has asked of itself.
#[derive(Clone, Debug)]
pub struct InternalOperations {
    team_address: Option<String>,
}

impl InternalOperations {
    /// Mails go to this address; without one nobody is told.
    pub fn new(team_address: Option<String>) -> Self {
        Self { team_address }
    }
}

#[async_trait]
impl Subscriber for InternalOperations {
    fn definition(&self) -> Definition {
        Definition::processor("internal_operations")
            .on([TellInternalTeamOp::TYPE])
            .with_poison(Poison::park())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let writer = Writer::of(Producer::InternalOperationHandler);
        for event in events {
            let Some(operation) = event.decode::<TellInternalTeamOp>() else { continue };
            let operation = operation?;
            let tracking_id = operation.tracking_id;
            let Some(to) = self.team_address.clone() else {
                tracing::error!(
                    tracking = %tracking_id,
                    "notification {tracking_id} failed and no team address is configured; nobody is told"
                );
                continue;
            };
            let mut cause = context.because_of(event);
            let stream = notification_stream(tracking_id);
            let mut notification = InUnit::<Notification>::load(&mut cause, stream).await?;
            let mail_id = derived_id(event.id, "email");
            let tell = NotificationCommand::TellTeam { operation_id: mail_id, to: to.clone() };
            if notification.execute(&mut cause, writer, &tell, &tracking_id)?.is_empty() {
                continue;
            }
            let mail = SendEmailOp {
                operation_id: mail_id,
                to,
                subject: subject(&operation),
                text: text(&operation),
                decided_at: event.recorded_at,
                unsubscribe: None,
                reminds_of: None,
            };
            let stream = stream_of(EMAIL_OPERATIONS, mail_id);
            writer.append(&mut cause, &stream, ExpectedVersion::NoStream, &mail)?;
        }
        Ok(())
    }
}

fn subject(operation: &TellInternalTeamOp) -> String {
    let quoted: String = operation.subject.chars().take(MAX_QUOTED_CHARACTERS).collect();
    format!("Notification failed: {quoted}")
}

fn text(operation: &TellInternalTeamOp) -> String {
    let TellInternalTeamOp { tracking_id, entity_id, outcome, per_channel, failed_at, .. } = operation;
    let mut text = format!(
        "The notification \"{}\" to {entity_id} failed at {failed_at}: {}.\n\n",
        operation.subject,
        outcome.name()
    );
    for one in per_channel {
        let channel = match one.channel {
            DeliveryChannel::Email => "E-mail",
            DeliveryChannel::Slack => "Slack",
        };
        let how = match (&one.reason, one.succeeded) {
            (_, true) => "sent",
            (Some(reason), false) => reason,
            (None, false) => "not sent",
        };
        text.push_str(&format!("{channel}: {how}\n"));
    }
    text.push_str(&format!("\nEverything about it: herald notification status {tracking_id}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naos_28_the_team_reads_what_failed_and_why() {
        let outcome = |channel, succeeded, reason: Option<&str>| ChannelOutcome {
            channel,
            operation_id: None,
            succeeded,
            reason: reason.map(Into::into),
        };
        let operation = TellInternalTeamOp {
            operation_id: Uuid::nil(),
            tracking_id: Uuid::nil(),
            entity_id: "alice".into(),
            subject: "News".into(),
            outcome: FailureOutcome::SentOnSomePreparedChannels,
            per_channel: vec![
                outcome(DeliveryChannel::Email, true, None),
                outcome(DeliveryChannel::Slack, false, Some("channel_not_found")),
            ],
            failed_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        assert_eq!(subject(&operation), "Notification failed: News");
        assert_eq!(
            text(&operation),
            "The notification \"News\" to alice failed at 2026-01-01T00:00:00Z: SentOnSomePreparedChannels.\n\n\
             E-mail: sent\nSlack: channel_not_found\n\n\
             Everything about it: herald notification status 00000000-0000-0000-0000-000000000000\n"
        );
    }
}
