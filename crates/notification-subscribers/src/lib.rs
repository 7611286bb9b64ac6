//! The notification system: what can happen, which rules hold, and what people read.
//!
//! Aggregates decide and never touch a database; projectors build tables that people read and never decide; processors
//! act on what has happened by appending more.

mod archive;
mod channel;
pub mod delivery;
mod delivery_log;
mod events;
mod fan_out;
mod ids;
mod inbox;
mod members;
mod message;
mod now;
mod once;
pub mod operations;
mod unsubscribe;
mod user;

pub use archive::{Archive, ArchiveProjector, ArchivedNotification};
pub use channel::{
    Channel, ChannelCommand, ChannelContext, ChannelEvent, ChannelRefusal, ChannelState, MINIMUM_DELAY,
    channels,
};
pub use delivery_log::{DeliveryFilter, DeliveryLog, DeliveryRow, DeliveryStatus};
pub use events::{
    ChannelWasAdded, ChannelWasArchived, ChannelWasNotified, UserHasAcknowledgedNotification,
    UserWasNotified, UserWasSubscribedToChannel, UserWasUnsubscribedFromChannel,
};
pub use fan_out::ChannelFanOut;
pub use ids::{ChannelId, InvalidChannelId, InvalidUserId, UserId};
pub use inbox::{Inbox, InboxItem, InboxProjector};
pub use members::{ChannelLists, ChannelMember, ChannelMembersProjector, ListedChannel};
pub use message::InvalidMessage;
pub use now::Now;
pub use once::{IdempotencyKey, InvalidIdempotencyKey, NotifyError, Request, Sent};
pub use unsubscribe::{ForgedToken, InvalidLinks, UnsubscribeLinks};
pub use user::{User, UserCommand, UserContext, UserEvent, UserRefusal, UserState, users};

use std::sync::Arc;

use subscription_engine::Subscriber;

/// Every subscriber of the notification system.
pub fn subscribers() -> Vec<Arc<dyn Subscriber>> {
    let mut subscribers: Vec<Arc<dyn Subscriber>> = vec![
        Arc::new(InboxProjector),
        Arc::new(ArchiveProjector),
        Arc::new(ChannelMembersProjector),
        Arc::new(ChannelFanOut),
        Arc::new(delivery_log::DeliveryLogProjector),
    ];
    subscribers.extend(delivery::delivery_subscribers());
    subscribers
}
