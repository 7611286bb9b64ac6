//! The notification system: what can happen, which rules hold, and what people read.
//!
//! Aggregates decide and never touch a database; projectors build tables that people read and never decide; processors
//! act on what has happened by appending more.

mod accept;
mod archive;
mod channel;
pub mod delivery;
mod delivery_log;
mod events;
mod failure;
mod fan_out;
mod ids;
mod in_unit;
mod inbox;
mod members;
mod message;
mod notification;
mod now;
mod once;
pub mod operations;
pub mod policy;
mod recipient;
mod reminder;
mod reminders;
mod saga;
mod send_notification;
mod send_saga;
pub mod streams;
mod suppressions;
mod tracking_view;
mod unsubscribe;
mod user;

pub use accept::{AcceptError, Accepted, NotificationRequest, accept, check_key};

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
pub use failure::{FailureReactor, InternalOperations, TellInternalTeamOp};
pub use fan_out::ChannelFanOut;
pub use ids::{ChannelId, InvalidChannelId, InvalidUserId, UserId};
pub use inbox::{Inbox, InboxItem, InboxProjector};
pub use members::{ChannelLists, ChannelMember, ChannelMembersProjector, ListedChannel};
pub use message::InvalidMessage;
pub use notification::{
    AudienceOptedOutOfAllChannelsEvent, ChannelOutcome, FailedNotificationSentToInternalTeamEvent,
    FailedToSendNotificationEvent, FailureOutcome, Notification, NotificationCommand, NotificationEvent,
    NotificationState, PreparedChannel, PreparedToSendEvent, RequestedNotificationToBeSentEvent,
    SendNotificationToEntityOp, SkippedChannel, SucceededInSendingNotificationEvent, notification_stream,
};
pub use now::Now;
pub use once::{IdempotencyKey, InvalidIdempotencyKey, NotifyError, Request, Sent};
pub use recipient::{
    DeliveryChannel, EmailAddressWasSuppressed, InvalidAddress, InvalidQuietHours, NOTIFICATION_LIST,
    PreferenceChange, Preferences, QuietHours, REMINDER_LIST, Recipient, RecipientCommand,
    RecipientEmailWasSet, RecipientEvent, RecipientPreferencesWereSet, RecipientRefusal,
    RecipientSlackWasSet, RecipientState, Unreachable, check_email, check_slack, recipient_stream,
};
pub use reminder::{
    ReminderCommand, ReminderContext, ReminderEmailCouldNotBeSent, ReminderEmailWasSent, ReminderEvent,
    ReminderMailWasRequested, ReminderSchedule, ReminderState, ReminderWasCancelled, ReminderWasScheduled,
};
pub use reminders::ReminderManager;
pub use saga::{
    AwaitedOperation, Saga, SagaCommand, SagaCompletedEvent, SagaEvent, SagaOperationFinishedEvent,
    SagaOutcome, SagaStartedEvent, SagaState, TIMED_OUT, saga_stream,
};
pub use send_notification::SendNotification;
pub use send_saga::SendSaga;
pub use suppressions::{Suppressed, SuppressedAddresses, suppression_projector, why_suppressed};
pub use tracking_view::{
    MessageStatus, TrackedJson, TrackedMessage, Tracking, TrackingError, TrackingProjector, TrackingStatus,
    TrackingView,
};
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

/// The subscribers that remind users, and that take what clients ask for to its end.
pub fn workflow(policy: &policy::Policy) -> Vec<Arc<dyn Subscriber>> {
    vec![
        Arc::new(ReminderManager::new(policy.clone())),
        Arc::new(SendNotification),
        Arc::new(SendSaga::new(policy.saga_deadline)),
        Arc::new(FailureReactor),
        Arc::new(InternalOperations::new(policy.team_address.clone())),
        Arc::new(TrackingProjector),
        Arc::new(suppression_projector()),
    ]
}
