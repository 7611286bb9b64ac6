//! The client protocol: a client's request becomes an operation in the log, under an id by which it is tracked.
//!
//! When [`accept`] has answered, the work is queued and will be done; nothing of it is done yet. A client that names
//! the same key again gets the same id, whatever happened in between, and nothing is queued twice.

use store::{AppendError, ExpectedVersion, InvalidJson, NewEvent, Store};
use uuid::Uuid;

use crate::ids::{InvalidUserId, UserId};
use crate::notification::SendNotificationToEntityOp;
use crate::operations::stream_of;
use crate::streams::{CLIENT_OPERATIONS, Producer, Refused, Writer, id_of_key};

/// A subject is a line: it has at most this many bytes.
const MAX_SUBJECT_BYTES: usize = 255;
/// A body has at most this many bytes.
const MAX_BODY_BYTES: usize = 4_096;
/// A key has at most this many characters.
const MAX_KEY_CHARACTERS: usize = 255;
/// How often an append is repeated whose answer got lost, or that somebody else's with the same key came before.
const MAX_REPEATS: usize = 3;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationRequest {
    /// To whom.
    pub entity_id: String,
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub body: String,
}

/// A request that is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// By which it is tracked, and which everything about it has as its correlation.
    pub tracking_id: Uuid,
    /// It was queued before under the same key.
    pub replayed: bool,
}

/// Why a request is not queued.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// There can be no such user.
    #[error(transparent)]
    Entity(#[from] InvalidUserId),
    /// The subject is empty, too long or more than a line.
    #[error("a subject is one line of 1 to {MAX_SUBJECT_BYTES} bytes")]
    Subject,
    /// The body is empty.
    #[error("a body must not be empty")]
    EmptyBody,
    /// The body is too long.
    #[error("a body has at most {MAX_BODY_BYTES} bytes, this one has {0}")]
    BodyTooLong(usize),
    /// The key is empty or too long.
    #[error("an idempotency key has 1 to {MAX_KEY_CHARACTERS} characters")]
    Key,
    /// The key stands for another request.
    #[error("the idempotency key {0:?} was used for another request; use a new one")]
    KeyReused(String),
    /// It cannot be written as JSON.
    #[error("the request cannot be written as JSON")]
    Unwritable(#[from] InvalidJson),
    /// Not this way.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The log refused.
    #[error("could not queue the request")]
    Append(#[from] AppendError),
}

impl NotificationRequest {
    /// Whether there can be such a request.
    pub fn check(&self) -> Result<(), AcceptError> {
        UserId::new(&self.entity_id)?;
        let subject = &self.subject;
        if subject.trim().is_empty()
            || subject.len() > MAX_SUBJECT_BYTES
            || subject.chars().any(char::is_control)
        {
            return Err(AcceptError::Subject);
        }
        match self.body.len() {
            _ if self.body.trim().is_empty() => Err(AcceptError::EmptyBody),
            length if length > MAX_BODY_BYTES => Err(AcceptError::BodyTooLong(length)),
            _ => Ok(()),
        }
    }
}

/// Whether a text can be a key.
pub fn check_key(key: &str) -> Result<(), AcceptError> {
    let fits = (1..=MAX_KEY_CHARACTERS).contains(&key.chars().count());
    if fits { Ok(()) } else { Err(AcceptError::Key) }
}

/// Queues a request.
pub async fn accept(
    store: &Store,
    request: &NotificationRequest,
    idempotency_key: Option<&str>,
) -> Result<Accepted, AcceptError> {
    request.check()?;
    let tracking_id = match idempotency_key {
        Some(key) => {
            check_key(key)?;
            id_of_key(key)
        }
        None => Uuid::new_v4(),
    };
    let NotificationRequest { entity_id, subject, body } = request.clone();
    let operation = SendNotificationToEntityOp { tracking_id, entity_id, subject, body };
    let stream = stream_of(CLIENT_OPERATIONS, tracking_id);
    let event = NewEvent {
        // The same key makes the same event, which the log takes once.
        id: tracking_id,
        correlation_id: Some(tracking_id.to_string()),
        ..NewEvent::of(&operation)?
    };
    Writer::of(Producer::Client).check(&stream, &event.event_type)?;
    let mut repeats = 0;
    loop {
        match store.append(&stream, ExpectedVersion::NoStream, vec![event.clone()]).await {
            Ok(appended) => return Ok(Accepted { tracking_id, replayed: appended.replayed }),
            Err(AppendError::IdReused { .. }) => {
                let key = idempotency_key.unwrap_or_default().to_owned();
                return Err(AcceptError::KeyReused(key));
            }
            Err(AppendError::OutcomeUnknown(_) | AppendError::WrongVersion { .. })
                if repeats < MAX_REPEATS =>
            {
                repeats += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_or_too_much_is_refused() {
        let request = |entity: &str, subject: &str, body: &str| NotificationRequest {
            entity_id: entity.into(),
            subject: subject.into(),
            body: body.into(),
        };
        let check = |entity: &str, subject: &str, body: &str| request(entity, subject, body).check();
        assert!(check("alice", "News", "They are good.").is_ok());
        assert!(matches!(check("", "News", "x"), Err(AcceptError::Entity(_))));
        for subject in ["", " ", "a\r\nBcc: x@evil.test", &"x".repeat(256)] {
            assert!(matches!(check("alice", subject, "x"), Err(AcceptError::Subject)), "{subject:?}");
        }
        assert!(matches!(check("alice", "News", "\n"), Err(AcceptError::EmptyBody)));
        assert!(matches!(check("alice", "News", &"x".repeat(4_097)), Err(AcceptError::BodyTooLong(4_097))));
        assert!(matches!(check_key(""), Err(AcceptError::Key)));
        assert!(matches!(check_key(&"ü".repeat(256)), Err(AcceptError::Key)));
        assert!(check_key(&"ü".repeat(255)).is_ok());
    }
}
