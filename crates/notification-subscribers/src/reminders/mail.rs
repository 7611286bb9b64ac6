//! What a reminder mail says: each message with its id and its time, oldest first.

use std::collections::HashMap;

use store::DomainEvent;
use subscription_engine::{BoxError, Cause};

use crate::events::UserWasNotified;
use crate::operations::{RemindsOf, SendEmailOp, Unsubscribe};
use crate::recipient::{REMINDER_LIST, RecipientState};
use crate::reminder::ReminderMailWasRequested;
use crate::streams::stream_of_user;

/// The messages of a mail have so many bytes together; of further ones only the ids are listed.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;
/// The category of users.
const USERS: &str = "user";

/// The operation that sends the mail.
pub(super) async fn compose(
    cause: &mut Cause<'_, '_>,
    requested: &ReminderMailWasRequested,
    to: &str,
    recipient: &RecipientState,
) -> Result<SendEmailOp, BoxError> {
    let ReminderMailWasRequested { user_id, mail_id, notification_ids, decided_at } = requested.clone();
    let mut messages = HashMap::new();
    for past in cause.load(&stream_of_user(USERS, &user_id)).await?.events {
        if past.event_type == UserWasNotified::TYPE {
            let notified: UserWasNotified = past.payload.to()?;
            if notification_ids.contains(&notified.notification_id) {
                messages.entry(notified.notification_id.clone()).or_insert(notified);
            }
        }
    }
    let listed: Vec<&UserWasNotified> = notification_ids.iter().filter_map(|id| messages.get(id)).collect();
    let subject = match notification_ids.len() {
        1 => "Reminder: 1 notification is waiting for you".to_owned(),
        count => format!("Reminder: {count} notifications are waiting for you"),
    };
    Ok(SendEmailOp {
        operation_id: mail_id,
        to: to.to_owned(),
        subject,
        text: text(&listed, recipient),
        decided_at,
        unsubscribe: Some(Unsubscribe { user_id: user_id.clone(), list: REMINDER_LIST.to_owned() }),
        reminds_of: Some(RemindsOf { user_id, notification_ids }),
    })
}

fn text(listed: &[&UserWasNotified], recipient: &RecipientState) -> String {
    let mut text = String::from("You have not acknowledged:\n");
    let mut bytes = 0;
    for notified in listed {
        bytes += notified.message.len();
        let message = if bytes <= MAX_MESSAGE_BYTES { notified.message.as_str() } else { "(see your inbox)" };
        let at = recipient.local(notified.timestamp);
        text.push_str(&format!("\n* {message}\n  {at}, id: {}\n", notified.notification_id));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neos_82_a_mail_lists_messages_ids_and_times_in_order() {
        let notified = |id: &str, message: String, at: &str| UserWasNotified {
            user_id: "user1".into(),
            notification_id: id.into(),
            message,
            timestamp: at.parse().unwrap(),
        };
        let first = notified("n1", "Hello".into(), "2026-01-01T00:00:00Z");
        let second = notified("n2", "x".repeat(40_000), "2026-01-01T00:01:00Z");
        assert_eq!(
            text(&[&first, &second], &RecipientState::default()),
            "You have not acknowledged:\n\n* Hello\n  2026-01-01 00:00 (UTC), id: n1\n\n\
             * (see your inbox)\n  2026-01-01 00:01 (UTC), id: n2\n"
        );
    }
}
