//! The notification system: what can happen, which rules hold, and what people read.
//!
//! Aggregates decide and never touch a database; projectors build tables that people read and never decide.

mod events;
mod inbox;
pub mod operations;
mod user;

pub use events::{UserHasAcknowledgedNotification, UserWasNotified};
pub use inbox::{Inbox, InboxItem, InboxProjector};
pub use user::{
    InvalidUserId, User, UserCommand, UserContext, UserEvent, UserId, UserRefusal, UserState, users,
};

use std::sync::Arc;

use subscription_engine::Subscriber;

/// Every subscriber of the notification system.
pub fn subscribers() -> Vec<Arc<dyn Subscriber>> {
    vec![Arc::new(InboxProjector)]
}
