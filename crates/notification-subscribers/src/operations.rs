//! What is to be sent, and what came of it: one operation for each mail, each Slack message and each webhook call.
//!
//! An operation says everything that is needed to send it (NAOS-20), so what is queued does not change with its
//! recipient. It stands alone in a stream `email_op-<id>`, `slack_op-<id>` or `webhook_op-<id>`; what happens to it is
//! told in `email-<id>`, `slack-<id>` or `webhook-<id>`.

use serde::{Deserialize, Serialize};
use store::{DomainEvent, Event, StreamName, Timestamp, UndecodableEvent};
use uuid::Uuid;

use crate::events::events;

/// The categories of operations, and of what happened to them.
pub const EMAIL_OPERATIONS: &str = "email_op";
/// See [`EMAIL_OPERATIONS`].
pub const EMAIL_EVENTS: &str = "email";
/// See [`EMAIL_OPERATIONS`].
pub const SLACK_OPERATIONS: &str = "slack_op";
/// See [`EMAIL_OPERATIONS`].
pub const SLACK_EVENTS: &str = "slack";
/// See [`EMAIL_OPERATIONS`].
pub const WEBHOOK_OPERATIONS: &str = "webhook_op";
/// See [`EMAIL_OPERATIONS`].
pub const WEBHOOK_EVENTS: &str = "webhook";

/// The stream of an operation in one of these categories.
pub fn stream_of(category: &str, operation_id: Uuid) -> StreamName {
    StreamName::new(format!("{category}-{operation_id}")).expect("a category and an id make a name")
}

/// How the sending of a mail or a Slack message ended, if that is what an event tells: of which operation, and why it
/// failed if it did.
pub(crate) fn end_told_by(event: &Event) -> Result<Option<(Uuid, Option<String>)>, UndecodableEvent> {
    Ok(if let Some(sent) = event.decode::<SucceededInSendingEmailEvent>() {
        Some((sent?.operation_id, None))
    } else if let Some(sent) = event.decode::<SucceededInSendingSlackMessageEvent>() {
        Some((sent?.operation_id, None))
    } else if let Some(failed) = event.decode::<FailedToSendEmailEvent>() {
        let failed = failed?;
        Some((failed.operation_id, Some(failed.reason)))
    } else if let Some(failed) = event.decode::<FailedToSendSlackMessageEvent>() {
        let failed = failed?;
        Some((failed.operation_id, Some(failed.reason)))
    } else {
        None
    })
}

events! {
    /// A mail is to be sent.
    SendEmailOp {
        /// The operation; the mail's Message-ID is derived from it.
        operation_id: Uuid,
        /// The address.
        to: String,
        /// What it is about.
        subject: String,
        /// What it says.
        text: String,
        /// When it was decided on: the mail's Date, the same for each attempt.
        decided_at: Timestamp,
        /// Whose mails of this kind can be unsubscribed from; none for mails that must be sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unsubscribe: Option<Unsubscribe>,
        /// Of what it reminds: nothing is sent once none of that is pending any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reminds_of: Option<RemindsOf>,
    }

    /// A Slack message is to be sent.
    SendSlackMessageOp {
        /// The operation.
        operation_id: Uuid,
        /// The id of a conversation or a user, or `webhook:<name>` for a configured webhook: its address is a secret.
        to: String,
        /// What it says.
        text: String,
        /// When it was decided on.
        decided_at: Timestamp,
    }

    /// A mail was asked for.
    SendEmailRequestedEvent {
        /// The operation.
        operation_id: Uuid,
        /// The address.
        to: String,
        /// What it is about.
        #[serde(default)]
        subject: String,
    }

    /// The mail server is about to be asked.
    EmailAttemptStartedEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt this is, from 1.
        attempt: u32,
    }

    /// The mail server did not take it now.
    EmailAttemptDeferredEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt it was.
        attempt: u32,
        /// What the server said, or what kept it from saying anything.
        reason: String,
        /// When it is tried again.
        retry_at: Timestamp,
    }

    /// Nobody knows whether the mail server has taken it; an operator decides what becomes of it.
    EmailIsInDoubtEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt it was.
        attempt: u32,
        /// Why it is not known.
        reason: String,
    }

    /// The mail server has taken it.
    SucceededInSendingEmailEvent {
        /// The operation.
        operation_id: Uuid,
        /// The address.
        to: String,
        /// Under which it was sent.
        message_id: String,
        /// What the server said.
        response: String,
    }

    /// It is not sent any more.
    FailedToSendEmailEvent {
        /// The operation.
        operation_id: Uuid,
        /// The address.
        to: String,
        /// What the server or somebody before it said.
        reason: String,
    }

    /// A Slack message was asked for.
    SendSlackMessageRequestedEvent {
        /// The operation.
        operation_id: Uuid,
        /// To whom.
        to: String,
    }

    /// Slack is about to be asked.
    SlackMessageAttemptStartedEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt this is, from 1.
        attempt: u32,
    }

    /// Slack did not take it now.
    SlackMessageAttemptDeferredEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt it was.
        attempt: u32,
        /// What Slack said, or what kept it from saying anything.
        reason: String,
        /// When it is tried again.
        retry_at: Timestamp,
    }

    /// Nobody knows whether Slack has taken it; an operator decides what becomes of it.
    SlackMessageIsInDoubtEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt it was.
        attempt: u32,
        /// Why it is not known.
        reason: String,
    }

    /// Slack has taken it.
    SucceededInSendingSlackMessageEvent {
        /// The operation.
        operation_id: Uuid,
        /// To whom.
        to: String,
        /// What Slack said: the message's `ts`, or `ok`.
        response: String,
    }

    /// It is not sent any more.
    FailedToSendSlackMessageEvent {
        /// The operation.
        operation_id: Uuid,
        /// To whom.
        to: String,
        /// What Slack or somebody before it said.
        reason: String,
    }

    /// Somebody's server is to be told.
    SendWebhookOp {
        /// The operation; the call's `webhook-id`.
        operation_id: Uuid,
        /// The name of a configured webhook: its address and its key are secrets.
        to: String,
        /// Of what it tells.
        event_type: String,
        /// What it tells of it.
        data: serde_json::Value,
        /// When it was decided on: the same for each attempt.
        decided_at: Timestamp,
    }

    /// A call of a webhook was asked for.
    SendWebhookRequestedEvent {
        /// The operation.
        operation_id: Uuid,
        /// The webhook.
        to: String,
        /// Of what it tells.
        event_type: String,
    }

    /// The webhook is about to be called.
    WebhookAttemptStartedEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt this is, from 1.
        attempt: u32,
    }

    /// The webhook did not take it now.
    WebhookAttemptDeferredEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt it was.
        attempt: u32,
        /// What it said, or what kept it from saying anything.
        reason: String,
        /// When it is tried again.
        retry_at: Timestamp,
    }

    /// Nobody knows whether the webhook has taken it; an operator decides what becomes of it.
    WebhookIsInDoubtEvent {
        /// The operation.
        operation_id: Uuid,
        /// Which attempt it was.
        attempt: u32,
        /// Why it is not known.
        reason: String,
    }

    /// The webhook has taken it.
    SucceededInSendingWebhookEvent {
        /// The operation.
        operation_id: Uuid,
        /// The webhook.
        to: String,
        /// What it said.
        response: String,
    }

    /// It is not sent any more.
    FailedToSendWebhookEvent {
        /// The operation.
        operation_id: Uuid,
        /// The webhook.
        to: String,
        /// What it or somebody before it said.
        reason: String,
    }
}

/// Who can unsubscribe from what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unsubscribe {
    /// The user.
    pub user_id: String,
    /// The list, such as `reminders`.
    pub list: String,
}

/// Notifications that somebody is reminded of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemindsOf {
    /// The user.
    pub user_id: String,
    /// The notifications.
    pub notification_ids: Vec<String>,
}
