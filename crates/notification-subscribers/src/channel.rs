//! The channel aggregate: who is subscribed, and how often everybody may be notified.
//!
//! Flood protection is decided on the channel's own stream, under its version: of two who notify at the same time one
//! is first, and the other one decides again and is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use aggregate::{Aggregate, CommandRules, Repository, event_set};
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Store, Timestamp};

use crate::events::{
    ChannelWasAdded, ChannelWasArchived, ChannelWasNotified, UserWasSubscribedToChannel,
    UserWasUnsubscribedFromChannel,
};
use crate::ids::{ChannelId, UserId};
use crate::message::{InvalidMessage, check_message};

/// Two notifications of one channel are at least so far apart (NEOS-77).
pub const MINIMUM_DELAY: Duration = Duration::from_secs(10);
/// A label has at most this many bytes.
const MAX_LABEL_BYTES: usize = 255;

event_set! {
    /// What can happen to a channel.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ChannelEvent {
        ChannelWasAdded,
        UserWasSubscribedToChannel,
        UserWasUnsubscribedFromChannel,
        ChannelWasNotified,
        ChannelWasArchived,
    }
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelCommand {
    /// Add it.
    Add {
        /// What people call it.
        label: String,
    },
    /// Subscribe a user.
    Subscribe {
        /// Who.
        user_id: UserId,
    },
    /// Unsubscribe a user.
    Unsubscribe {
        /// Who.
        user_id: UserId,
    },
    /// Send a notification to everybody who is subscribed.
    Notify {
        /// Its id.
        notification_id: String,
        /// Its text.
        message: String,
    },
    /// Let nobody use it any more.
    Archive,
}

/// What a decision needs to know besides the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelContext {
    /// Which channel it is.
    pub channel_id: ChannelId,
    /// The time it is.
    pub now: Timestamp,
}

/// Why something may not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelRefusal {
    /// The channel was never added.
    #[error("This channel hasn't been setup yet")]
    NotSetUp,
    /// The channel was added before.
    #[error("A channel with id \"{0}\" already exists")]
    AlreadyAdded(ChannelId),
    /// The channel was archived.
    #[error("The channel with id \"{0}\" is archived")]
    Archived(ChannelId),
    /// The last notification was sent just now.
    #[error(
        "You must wait {} seconds before a new notification can be sent to this channel",
        MINIMUM_DELAY.as_secs()
    )]
    TooSoon {
        /// After which time it can be.
        wait: Duration,
    },
    /// The label is empty, too long or has a control character.
    #[error("a label has 1 to {MAX_LABEL_BYTES} bytes and no control characters")]
    InvalidLabel,
    /// The text is no message.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
}

impl ChannelRefusal {
    /// Whether no past can allow it.
    pub fn is_of_the_command(&self) -> bool {
        matches!(self, Self::InvalidLabel | Self::Message(_))
    }
}

/// What the rules need to know of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    label: Option<String>,
    is_archived: bool,
    last_notification_at: Option<Timestamp>,
    subscribers: BTreeSet<String>,
}

impl ChannelState {
    /// What people call it; none before it was added.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Whether nobody can use it any more.
    pub fn is_archived(&self) -> bool {
        self.is_archived
    }

    /// When everybody was notified last.
    pub fn last_notification_at(&self) -> Option<Timestamp> {
        self.last_notification_at
    }

    /// Who is subscribed, in the order of their ids.
    pub fn subscribers(&self) -> &BTreeSet<String> {
        &self.subscribers
    }

    /// How long it takes until everybody can be notified again; nothing if they can be now. Where the clock was set
    /// back, no time has passed.
    fn wait(&self, now: Timestamp) -> Option<Duration> {
        let passed = now.since(self.last_notification_at?);
        MINIMUM_DELAY.checked_sub(passed).filter(|wait| !wait.is_zero())
    }
}

/// The aggregate.
#[derive(Clone, Copy, Debug)]
pub struct Channel;

/// Raised whenever [`ChannelState`] gets another form, or the same events make another state.
const STATE_SCHEMA_NUMBER: u32 = 1;
/// A channel with a long past is read from a snapshot that is at most about so many events old. The state has every
/// subscriber, so a snapshot of a large channel is large.
const SNAPSHOT_EVERY: u32 = 1_000;

/// The channels on this log. Close it before the log.
pub fn channels(store: Store) -> Repository<Channel> {
    Repository::new(store).with_snapshots(STATE_SCHEMA_NUMBER, SNAPSHOT_EVERY)
}

impl Aggregate for Channel {
    type State = ChannelState;
    type Event = ChannelEvent;
    type Command = ChannelCommand;
    type Context = ChannelContext;
    type Refusal = ChannelRefusal;

    const CATEGORY: Option<&'static str> = Some("channel");

    fn rules(command: &ChannelCommand) -> CommandRules {
        match command {
            ChannelCommand::Add { .. } => CommandRules::new_stream("AddChannel", &[ChannelWasAdded::TYPE]),
            ChannelCommand::Subscribe { .. } => {
                CommandRules::existing("SubscribeUser", &[UserWasSubscribedToChannel::TYPE])
            }
            ChannelCommand::Unsubscribe { .. } => {
                CommandRules::existing("UnsubscribeUser", &[UserWasUnsubscribedFromChannel::TYPE])
            }
            ChannelCommand::Notify { .. } => {
                CommandRules::existing("NotifyChannel", &[ChannelWasNotified::TYPE])
            }
            ChannelCommand::Archive => CommandRules::existing("ArchiveChannel", &[ChannelWasArchived::TYPE]),
        }
    }

    fn decide(
        state: &ChannelState,
        command: &ChannelCommand,
        context: &ChannelContext,
    ) -> Result<Vec<ChannelEvent>, ChannelRefusal> {
        let channel_id = context.channel_id.to_string();
        // What the command says is looked at first: it is wrong in every channel.
        match command {
            ChannelCommand::Notify { message, .. } => check_message(message)?,
            ChannelCommand::Add { label } => check_label(label)?,
            _ => {}
        }
        match command {
            ChannelCommand::Add { .. } if state.label.is_some() => {
                return Err(ChannelRefusal::AlreadyAdded(context.channel_id.clone()));
            }
            ChannelCommand::Add { .. } => {}
            _ if state.label.is_none() => return Err(ChannelRefusal::NotSetUp),
            ChannelCommand::Subscribe { .. } | ChannelCommand::Notify { .. } if state.is_archived => {
                return Err(ChannelRefusal::Archived(context.channel_id.clone()));
            }
            _ => {}
        }
        let happens = match command {
            ChannelCommand::Add { label } => {
                ChannelEvent::ChannelWasAdded(ChannelWasAdded { channel_id, label: label.clone() })
            }
            ChannelCommand::Subscribe { user_id } if !state.subscribers.contains(user_id.as_str()) => {
                let user_id = user_id.to_string();
                ChannelEvent::UserWasSubscribedToChannel(UserWasSubscribedToChannel { user_id, channel_id })
            }
            ChannelCommand::Unsubscribe { user_id } if state.subscribers.contains(user_id.as_str()) => {
                let user_id = user_id.to_string();
                ChannelEvent::UserWasUnsubscribedFromChannel(UserWasUnsubscribedFromChannel {
                    user_id,
                    channel_id,
                })
            }
            ChannelCommand::Notify { notification_id, message } => {
                if let Some(wait) = state.wait(context.now) {
                    return Err(ChannelRefusal::TooSoon { wait });
                }
                ChannelEvent::ChannelWasNotified(ChannelWasNotified {
                    channel_id,
                    notification_id: notification_id.clone(),
                    message: message.clone(),
                    timestamp: context.now,
                })
            }
            ChannelCommand::Archive if !state.is_archived => {
                ChannelEvent::ChannelWasArchived(ChannelWasArchived { channel_id })
            }
            // It is so already.
            ChannelCommand::Subscribe { .. }
            | ChannelCommand::Unsubscribe { .. }
            | ChannelCommand::Archive => return Ok(Vec::new()),
        };
        Ok(vec![happens])
    }

    fn evolve(mut state: ChannelState, event: &ChannelEvent) -> ChannelState {
        match event {
            ChannelEvent::ChannelWasAdded(event) => state.label = Some(event.label.clone()),
            ChannelEvent::UserWasSubscribedToChannel(event) => {
                state.subscribers.insert(event.user_id.clone());
            }
            ChannelEvent::UserWasUnsubscribedFromChannel(event) => {
                state.subscribers.remove(&event.user_id);
            }
            ChannelEvent::ChannelWasNotified(event) => state.last_notification_at = Some(event.timestamp),
            ChannelEvent::ChannelWasArchived(_) => state.is_archived = true,
        }
        state
    }
}

fn check_label(label: &str) -> Result<(), ChannelRefusal> {
    let fits = !label.trim().is_empty() && label.len() <= MAX_LABEL_BYTES;
    if fits && !label.chars().any(char::is_control) { Ok(()) } else { Err(ChannelRefusal::InvalidLabel) }
}

#[cfg(test)]
mod tests {
    use aggregate::{ExecuteError, given};

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

    /// So many microseconds after [`NOW`].
    fn at(micros: i64) -> ChannelContext {
        let now = Timestamp::from_micros(NOW.as_micros() + micros);
        ChannelContext { channel_id: ChannelId::new("channel1").unwrap(), now }
    }

    fn added() -> ChannelEvent {
        ChannelEvent::ChannelWasAdded(ChannelWasAdded {
            channel_id: "channel1".into(),
            label: "First".into(),
        })
    }

    fn notified(micros: i64) -> ChannelEvent {
        ChannelEvent::ChannelWasNotified(ChannelWasNotified {
            channel_id: "channel1".into(),
            notification_id: "n1".into(),
            message: "hi".into(),
            timestamp: at(micros).now,
        })
    }

    fn subscribed(user_id: &str) -> ChannelEvent {
        let (user_id, channel_id) = (user_id.into(), "channel1".into());
        ChannelEvent::UserWasSubscribedToChannel(UserWasSubscribedToChannel { user_id, channel_id })
    }

    fn archived() -> ChannelEvent {
        ChannelEvent::ChannelWasArchived(ChannelWasArchived { channel_id: "channel1".into() })
    }

    fn notify() -> ChannelCommand {
        ChannelCommand::Notify { notification_id: "n1".into(), message: "hi".into() }
    }

    fn subscribe(user: &str) -> ChannelCommand {
        ChannelCommand::Subscribe { user_id: UserId::new(user).unwrap() }
    }

    fn unsubscribe(user: &str) -> ChannelCommand {
        ChannelCommand::Unsubscribe { user_id: UserId::new(user).unwrap() }
    }

    /// What is said when the command is refused.
    fn refused(past: Vec<ChannelEvent>, command: &ChannelCommand, context: &ChannelContext) -> String {
        given::<Channel>(past).when(command, context).then_refused().to_string()
    }

    #[test]
    fn neos_48_to_50_what_happens_to_a_channel() {
        let add = ChannelCommand::Add { label: "First".into() };
        given::<Channel>([])
            .when(&add, &at(0))
            .then([added()])
            .when(&subscribe("user1"), &at(0))
            .then([subscribed("user1")])
            .when(&notify(), &at(0))
            .then([notified(0)]);
    }

    #[test]
    fn neos_71_72_a_channel_begins_once_and_must_be_there() {
        let add = ChannelCommand::Add { label: "First".into() };
        let error = given::<Channel>([added()]).when(&add, &at(0)).then_refused();
        assert!(matches!(error, ExecuteError::AlreadyExists { command: "AddChannel", .. }), "{error}");
        for command in [notify(), subscribe("u"), unsubscribe("u"), ChannelCommand::Archive] {
            let error = given::<Channel>([]).when(&command, &at(0)).then_refused();
            assert!(matches!(error, ExecuteError::NotFound { .. }), "{error}");
        }
    }

    #[test]
    fn neos_80_a_stream_without_its_beginning_is_no_channel() {
        assert_eq!(refused(vec![subscribed("u")], &notify(), &at(0)), "This channel hasn't been setup yet");
        let nothing = ChannelState::default();
        assert_eq!(Channel::decide(&nothing, &notify(), &at(0)), Err(ChannelRefusal::NotSetUp));
    }

    #[test]
    fn neos_79_ten_seconds_to_the_microsecond() {
        let text = "You must wait 10 seconds before a new notification can be sent to this channel";
        for micros in [0, 1, 9_000_001, 9_999_000, 9_999_999] {
            assert_eq!(refused(vec![added(), notified(0)], &notify(), &at(micros)), text, "{micros}");
        }
        for micros in [10_000_000, 10_000_001, 3_600_000_000] {
            given::<Channel>([added(), notified(0)]).when(&notify(), &at(micros)).then([notified(micros)]);
        }
        // Of whole seconds, 0.999 and 10.000 would be ten apart.
        assert_eq!(refused(vec![added(), notified(999_000)], &notify(), &at(10_000_000)), text);
    }

    #[test]
    fn neos_79_a_clock_that_was_set_back_shows_no_time_passed() {
        let decided = given::<Channel>([added(), notified(0)]).when(&notify(), &at(-3_600_000_000));
        let refusal = decided.then_refused();
        let ExecuteError::Refused(ChannelRefusal::TooSoon { wait }) = refusal else { panic!("{refusal}") };
        assert_eq!(wait, MINIMUM_DELAY);
    }

    #[test]
    fn neos_44_what_is_so_already_is_no_event() {
        given::<Channel>([added(), subscribed("u")])
            .when(&subscribe("u"), &at(0))
            .then_nothing()
            .when(&unsubscribe("somebody"), &at(0))
            .then_nothing();
        given::<Channel>([added(), archived()]).when(&ChannelCommand::Archive, &at(0)).then_nothing();
    }

    #[test]
    fn neos_73_an_archived_channel_is_there_and_of_no_use() {
        let text = "The channel with id \"channel1\" is archived";
        for command in [notify(), subscribe("u")] {
            assert_eq!(refused(vec![added(), archived()], &command, &at(0)), text);
        }
        // Whoever wants to leave may.
        let (user_id, channel_id) = ("u".into(), "channel1".into());
        let left = UserWasUnsubscribedFromChannel { user_id, channel_id };
        let after = given::<Channel>([added(), subscribed("u"), archived()])
            .when(&unsubscribe("u"), &at(0))
            .then([ChannelEvent::UserWasUnsubscribedFromChannel(left)]);
        assert!(after.state().subscribers().is_empty());
    }

    #[test]
    fn labels_and_messages_have_limits() {
        for label in ["", " ", "a\nb", &"x".repeat(256)] {
            let add = ChannelCommand::Add { label: label.into() };
            let error = given::<Channel>([]).when(&add, &at(0)).then_refused();
            assert!(matches!(error, ExecuteError::Refused(ChannelRefusal::InvalidLabel)), "{label:?}");
        }
        let message =
            |bytes| ChannelCommand::Notify { notification_id: "n".into(), message: "x".repeat(bytes) };
        assert_eq!(
            Channel::decide(given::<Channel>([added()]).state(), &message(4_096), &at(0)).unwrap().len(),
            1
        );
        let said = refused(vec![added()], &message(5_000), &at(0));
        assert_eq!(said, "a message has at most 4096 bytes, this one has 5000");
    }
}
