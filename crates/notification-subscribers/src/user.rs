//! The user aggregate: which notifications are pending, and what may be acknowledged.
//!
//! The guard decides on the user's own stream, never on the inbox table, which lags.

use std::collections::BTreeSet;

use aggregate::{Aggregate, CommandRules, Repository, event_set};
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Store, Timestamp};

use crate::events::{UserHasAcknowledgedNotification, UserWasNotified};
use crate::ids::UserId;
use crate::message::{InvalidMessage, check_message};

event_set! {
    /// What can happen to a user.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum UserEvent { UserWasNotified, UserHasAcknowledgedNotification }
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserCommand {
    /// Send a notification.
    Notify {
        /// Its id.
        notification_id: String,
        /// Its text.
        message: String,
    },
    /// Acknowledge one.
    Acknowledge {
        /// Its id.
        notification_id: String,
    },
}

/// What a decision needs to know besides the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserContext {
    /// Whose stream it is.
    pub user_id: UserId,
    /// The time it is.
    pub now: Timestamp,
}

/// Why something may not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserRefusal {
    /// There is no such notification, or it was acknowledged already.
    #[error("No notification with id {notification_id} pending for user {user_id}")]
    NotPending {
        /// The notification.
        notification_id: String,
        /// The user.
        user_id: UserId,
    },
    /// The text is no message.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
}

impl UserRefusal {
    /// Whether no past can allow it.
    pub fn is_of_the_command(&self) -> bool {
        matches!(self, Self::Message(_))
    }
}

/// What the rules need to know of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserState {
    pending: BTreeSet<String>,
    /// Grows for ever, so that a notification reaches a user once, whenever it is sent again. At a hundred a day that
    /// is some 1.4 MB of a snapshot a year, and twelve years until a state is too large for one; even then the events
    /// are read, only for longer.
    acknowledged: BTreeSet<String>,
}

/// The aggregate.
#[derive(Clone, Copy, Debug)]
pub struct User;

/// Raised whenever [`UserState`] gets another form, or the same events make another state.
const STATE_SCHEMA_NUMBER: u32 = 1;
/// A user with a long past is read from a snapshot that is at most about so many events old.
const SNAPSHOT_EVERY: u32 = 200;

/// The users on this log. Close it before the log.
pub fn users(store: Store) -> Repository<User> {
    Repository::new(store).with_snapshots(STATE_SCHEMA_NUMBER, SNAPSHOT_EVERY)
}

impl Aggregate for User {
    type State = UserState;
    type Event = UserEvent;
    type Command = UserCommand;
    type Context = UserContext;
    type Refusal = UserRefusal;

    const CATEGORY: Option<&'static str> = Some("user");

    fn rules(command: &UserCommand) -> CommandRules {
        match command {
            // Whether there is such a user is somebody else's business (NEOS-26).
            UserCommand::Notify { .. } => CommandRules::anytime("NotifyUser", &[UserWasNotified::TYPE]),
            UserCommand::Acknowledge { .. } => {
                CommandRules::anytime("AcknowledgeNotification", &[UserHasAcknowledgedNotification::TYPE])
            }
        }
    }

    fn decide(
        state: &UserState,
        command: &UserCommand,
        context: &UserContext,
    ) -> Result<Vec<UserEvent>, UserRefusal> {
        let user_id = context.user_id.to_string();
        if let UserCommand::Notify { message, .. } = command {
            check_message(message)?;
        }
        match command {
            // A notification reaches a user at most once.
            UserCommand::Notify { notification_id, .. }
                if state.pending.contains(notification_id)
                    || state.acknowledged.contains(notification_id) =>
            {
                Ok(Vec::new())
            }
            UserCommand::Notify { notification_id, message } => {
                Ok(vec![UserEvent::UserWasNotified(UserWasNotified {
                    user_id,
                    notification_id: notification_id.clone(),
                    message: message.clone(),
                    timestamp: context.now,
                })])
            }
            UserCommand::Acknowledge { notification_id } if state.pending.contains(notification_id) => {
                let notification_id = notification_id.clone();
                Ok(vec![UserEvent::UserHasAcknowledgedNotification(UserHasAcknowledgedNotification {
                    user_id,
                    notification_id,
                })])
            }
            UserCommand::Acknowledge { notification_id } => Err(UserRefusal::NotPending {
                notification_id: notification_id.clone(),
                user_id: context.user_id.clone(),
            }),
        }
    }

    fn evolve(mut state: UserState, event: &UserEvent) -> UserState {
        match event {
            UserEvent::UserWasNotified(event) => {
                state.pending.insert(event.notification_id.clone());
            }
            UserEvent::UserHasAcknowledgedNotification(event) => {
                state.pending.remove(&event.notification_id);
                state.acknowledged.insert(event.notification_id.clone());
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

    fn context() -> UserContext {
        UserContext { user_id: UserId::new("user1").unwrap(), now: NOW }
    }

    fn notify(id: &str) -> UserCommand {
        UserCommand::Notify { notification_id: id.into(), message: "hello".into() }
    }

    fn acknowledge(id: &str) -> UserCommand {
        UserCommand::Acknowledge { notification_id: id.into() }
    }

    /// The state after these commands, each of which must succeed.
    fn given(commands: &[UserCommand]) -> UserState {
        commands.iter().fold(UserState::default(), |state, command| {
            let events = User::decide(&state, command, &context()).unwrap();
            events.iter().fold(state, User::evolve)
        })
    }

    #[test]
    fn neos_23_a_notification_carries_its_own_time() {
        let events = User::decide(&given(&[]), &notify("n1"), &context()).unwrap();
        let [UserEvent::UserWasNotified(event)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((event.user_id.as_str(), event.notification_id.as_str()), ("user1", "n1"));
        assert_eq!((event.message.as_str(), event.timestamp), ("hello", NOW));
    }

    #[test]
    fn neos_44_only_what_is_pending_can_be_acknowledged() {
        let refused = |commands: &[UserCommand], id: &str| {
            User::decide(&given(commands), &acknowledge(id), &context()).unwrap_err().to_string()
        };
        let text = "No notification with id n1 pending for user user1";
        assert_eq!(refused(&[], "n1"), text);
        assert_eq!(refused(&[notify("n2")], "n1"), text);
        assert_eq!(refused(&[notify("n1"), acknowledge("n1")], "n1"), text);
        assert_eq!(User::decide(&given(&[notify("n1")]), &acknowledge("n1"), &context()).unwrap().len(), 1);
    }

    #[test]
    fn the_same_notification_reaches_a_user_once() {
        for past in [vec![notify("n1")], vec![notify("n1"), acknowledge("n1")]] {
            assert_eq!(User::decide(&given(&past), &notify("n1"), &context()).unwrap(), []);
        }
    }

    #[test]
    fn messages_have_limits() {
        let message = |text: String| UserCommand::Notify { notification_id: "n".into(), message: text };
        let decide = |command| User::decide(&given(&[]), &command, &context());
        let refused = |why| Err(UserRefusal::Message(why));
        assert_eq!(decide(message(" \n".into())), refused(InvalidMessage::Empty));
        assert_eq!(decide(message("x".repeat(4_097))), refused(InvalidMessage::TooLong(4_097)));
        assert!(decide(message("x".repeat(4_096))).is_ok());
    }
}
