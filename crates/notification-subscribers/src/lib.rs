//! The notification system: what can happen, which rules hold, and what people read.
//!
//! Aggregates decide and never touch a database; projectors build tables that people read and never decide.

pub mod delivery;
mod delivery_log;
mod events;
mod inbox;
pub mod operations;
mod unsubscribe;
mod user;

pub use delivery_log::{DeliveryFilter, DeliveryLog, DeliveryRow, DeliveryStatus};
pub use events::{UserHasAcknowledgedNotification, UserWasNotified};
pub use inbox::{Inbox, InboxItem, InboxProjector};
pub use unsubscribe::{ForgedToken, InvalidLinks, UnsubscribeLinks};
pub use user::{
    InvalidUserId, User, UserCommand, UserContext, UserEvent, UserId, UserRefusal, UserState, users,
};

use std::sync::Arc;

use subscription_engine::Subscriber;

/// Every subscriber of the notification system.
pub fn subscribers() -> Vec<Arc<dyn Subscriber>> {
    let mut subscribers: Vec<Arc<dyn Subscriber>> =
        vec![Arc::new(InboxProjector), Arc::new(delivery_log::DeliveryLogProjector)];
    subscribers.extend(delivery::delivery_subscribers());
    subscribers
}
