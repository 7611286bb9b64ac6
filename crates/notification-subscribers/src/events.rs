//! What can happen, as the log names and writes it.

use serde::{Deserialize, Serialize};
use store::{DomainEvent, Timestamp};

/// A user was sent a notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserWasNotified {
    /// The user.
    pub user_id: String,
    /// The notification; the same for every user of a channel.
    pub notification_id: String,
    /// The text.
    pub message: String,
    /// When it happened. (When it was recorded is the log's business.)
    pub timestamp: Timestamp,
}

/// A user has acknowledged a notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserHasAcknowledgedNotification {
    /// The user.
    pub user_id: String,
    /// The notification.
    pub notification_id: String,
}

impl DomainEvent for UserWasNotified {
    const TYPE: &'static str = "Acme.Notifications:UserWasNotified";
}

impl DomainEvent for UserHasAcknowledgedNotification {
    const TYPE: &'static str = "Acme.Notifications:UserHasAcknowledgedNotification";
}
