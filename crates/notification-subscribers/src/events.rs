//! What can happen, as the log names and writes it.

use serde::{Deserialize, Serialize};
use store::{DomainEvent, Timestamp};

/// Defines events with public fields: `pub struct Name { field: Type }`, known to the log by their name.
macro_rules! events {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        impl DomainEvent for $name {
            const TYPE: &'static str = concat!("Acme.Notifications:", stringify!($name));
        }
    )+};
}
pub(crate) use events;

events! {
    /// A user was sent a notification.
    UserWasNotified {
        /// The user.
        user_id: String,
        /// The notification; the same for every user of a channel.
        notification_id: String,
        /// The text.
        message: String,
        /// When it happened. (When it was recorded is the log's business.)
        timestamp: Timestamp,
    }

    /// A user has acknowledged a notification.
    UserHasAcknowledgedNotification {
        /// The user.
        user_id: String,
        /// The notification.
        notification_id: String,
    }

    /// A channel was added.
    ChannelWasAdded {
        /// The channel.
        channel_id: String,
        /// What people call it.
        label: String,
    }

    /// A user has subscribed to a channel.
    UserWasSubscribedToChannel {
        /// The user.
        user_id: String,
        /// The channel.
        channel_id: String,
    }

    /// A user has left a channel.
    UserWasUnsubscribedFromChannel {
        /// The user.
        user_id: String,
        /// The channel.
        channel_id: String,
    }

    /// A notification was sent to everybody who was subscribed to a channel.
    ChannelWasNotified {
        /// The channel.
        channel_id: String,
        /// The notification.
        notification_id: String,
        /// The text.
        message: String,
        /// When it happened.
        timestamp: Timestamp,
    }

    /// A channel was archived: nobody can use it any more.
    ChannelWasArchived {
        /// The channel.
        channel_id: String,
    }
}
