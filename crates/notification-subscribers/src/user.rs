//! The user aggregate: which notifications are pending, and what may be acknowledged.
//!
//! The guard decides on the user's own stream, never on the inbox table, which lags.

use std::collections::BTreeSet;

use aggregate::{Aggregate, Repository, event_set};
use serde::{Deserialize, Serialize};
use store::{Store, StreamName, Timestamp};

use crate::events::{UserHasAcknowledgedNotification, UserWasNotified};

/// A message has at most this many bytes.
const MAX_MESSAGE_BYTES: usize = 4_096;
/// A user id has at most this many bytes: `user-` and the id make a stream name.
const MAX_USER_ID_BYTES: usize = 250;

/// The id of a user: 1 to 250 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// The text is no user id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no user id: use 1 to {MAX_USER_ID_BYTES} bytes without control characters, no $ first")]
pub struct InvalidUserId(String);

impl UserId {
    /// Checks the text.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidUserId> {
        let id = id.into();
        let fits = !id.is_empty() && id.len() <= MAX_USER_ID_BYTES;
        if fits && !id.chars().any(char::is_control) && !id.starts_with('$') {
            Ok(Self(id))
        } else {
            Err(InvalidUserId(id.chars().take(80).collect()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The stream in which everything about this user happens.
    pub fn stream(&self) -> StreamName {
        StreamName::new(format!("user-{}", self.0)).expect("a user id leaves room for the category")
    }
}

impl std::fmt::Display for UserId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

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
    /// A message that says nothing.
    #[error("a message must not be empty")]
    EmptyMessage,
    /// A message that says too much.
    #[error("a message has at most {MAX_MESSAGE_BYTES} bytes, this one has {0}")]
    MessageTooLong(usize),
}

/// What the rules need to know of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserState {
    pending: BTreeSet<String>,
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

    fn decide(
        state: &UserState,
        command: &UserCommand,
        context: &UserContext,
    ) -> Result<Vec<UserEvent>, UserRefusal> {
        let user_id = context.user_id.to_string();
        match command {
            UserCommand::Notify { message, .. } if message.trim().is_empty() => {
                Err(UserRefusal::EmptyMessage)
            }
            UserCommand::Notify { message, .. } if message.len() > MAX_MESSAGE_BYTES => {
                Err(UserRefusal::MessageTooLong(message.len()))
            }
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
    fn messages_and_user_ids_have_limits() {
        let message = |text: String| UserCommand::Notify { notification_id: "n".into(), message: text };
        let decide = |command| User::decide(&given(&[]), &command, &context());
        assert_eq!(decide(message(" \n".into())), Err(UserRefusal::EmptyMessage));
        assert_eq!(decide(message("x".repeat(4_097))), Err(UserRefusal::MessageTooLong(4_097)));
        assert!(decide(message("x".repeat(4_096))).is_ok());
        for id in ["", "a\nb", "$x", &"x".repeat(251)] {
            assert!(UserId::new(id).is_err(), "{id:?}");
        }
        for id in ["a,b-c%d", "ü", &"x".repeat(250)] {
            assert!(UserId::new(id).unwrap().stream().as_str().starts_with("user-"));
        }
    }
}
