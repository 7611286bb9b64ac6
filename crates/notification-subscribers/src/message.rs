//! The text of a notification, to a user or to a channel: the same limits for both.

/// A message has at most this many bytes.
const MAX_MESSAGE_BYTES: usize = 4_096;

/// Why a text is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A message that says nothing.
    #[error("a message must not be empty")]
    Empty,
    /// A message that says too much.
    #[error("a message has at most {MAX_MESSAGE_BYTES} bytes, this one has {0}")]
    TooLong(usize),
}

/// Checks a text.
pub(crate) fn check_message(message: &str) -> Result<(), InvalidMessage> {
    if message.trim().is_empty() {
        return Err(InvalidMessage::Empty);
    }
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(InvalidMessage::TooLong(message.len()));
    }
    Ok(())
}
