//! Notifying once: a key that comes with a request makes it safe to send the request again.
//!
//! The ids of the event and of the notification are derived from the key, and event ids are unique in the log. So the
//! protection never expires, and whoever uses a key for something else is told so.

use aggregate::{
    Aggregate, ContextProvider, EventSet, ExecuteError, Provenance, Repository, event_id, event_set,
};
use store::{Event, Position, ReadError, Store, StreamName};
use uuid::Uuid;

use crate::events::{ChannelWasNotified, UserWasNotified};

/// The namespace of ids that are derived from a key.
const KEYS: Uuid = Uuid::from_u128(0x1f6b_8a52_90c4_5d3e_8f17_2c6d_04ab_e913);
/// A key has at most this many bytes.
const MAX_KEY_BYTES: usize = 255;
/// A stream is looked through in pages of this size.
const PAGE: usize = 1_000;

event_set! {
    /// What a request to notify brings about.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Notified { UserWasNotified, ChannelWasNotified }
}

impl Notified {
    fn message(&self) -> &str {
        match self {
            Self::UserWasNotified(event) => &event.message,
            Self::ChannelWasNotified(event) => &event.message,
        }
    }
}

/// The key of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// The text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key has 1 to {MAX_KEY_BYTES} bytes and no control characters")]
pub struct InvalidIdempotencyKey;

impl IdempotencyKey {
    /// Checks the text.
    pub fn new(key: impl Into<String>) -> Result<Self, InvalidIdempotencyKey> {
        let key = key.into();
        let fits = !key.is_empty() && key.len() <= MAX_KEY_BYTES && !key.chars().any(char::is_control);
        if fits { Ok(Self(key)) } else { Err(InvalidIdempotencyKey) }
    }
}

/// A request to notify somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The id of the notification.
    pub notification_id: Uuid,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    is_repeatable: bool,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was sent.
    Now,
    /// The same request had been sent before, and that was all.
    Before,
}

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError<R: std::error::Error + 'static> {
    /// The key was used for something else.
    #[error("the idempotency key was used for another request, see event {0}; use another key")]
    KeyReused(Position),
    /// The command did nothing.
    #[error(transparent)]
    Execute(ExecuteError<R>),
    /// What the key was used for could not be read.
    #[error("could not read what the idempotency key was used for")]
    Read(#[from] ReadError),
    /// What the key was used for cannot be read.
    #[error("could not read what the idempotency key was used for")]
    Undecodable(#[from] store::UndecodableEvent),
}

impl Request {
    /// A request, which can be repeated if it has a key.
    pub fn new(key: Option<&IdempotencyKey>, correlation_id: Option<String>) -> Self {
        let notification_id = match key {
            Some(IdempotencyKey(key)) => Uuid::new_v5(&KEYS, key.as_bytes()),
            None => Uuid::new_v4(),
        };
        Self { notification_id, correlation_id, is_repeatable: key.is_some() }
    }

    /// Has this command executed, which notifies with the id of this request and this message.
    pub async fn send<A: Aggregate>(
        &self,
        store: &Store,
        repository: &Repository<A>,
        stream: &StreamName,
        (command, message): (&A::Command, &str),
        provider: &dyn ContextProvider<A>,
    ) -> Result<Sent, NotifyError<A::Refusal>> {
        if self.was_sent(store, stream, message).await? {
            return Ok(Sent::Before);
        }
        let provenance = Provenance {
            correlation_id: self.correlation_id.clone(),
            causation_id: None,
            command_id: self.is_repeatable.then_some(self.notification_id),
        };
        match repository.execute_with(stream, command, provider, &provenance).await {
            Ok(executed) if !executed.events.is_empty() && !executed.appended.replayed => Ok(Sent::Now),
            // Nothing had to happen, or it may not: because the same request was sent at the same time?
            result => match self.was_sent(store, stream, message).await? {
                true => Ok(Sent::Before),
                false => result.map(|_| Sent::Now).map_err(NotifyError::Execute),
            },
        }
    }

    /// Whether this very request was sent before.
    async fn was_sent<R: std::error::Error + 'static>(
        &self,
        store: &Store,
        stream: &StreamName,
        message: &str,
    ) -> Result<bool, NotifyError<R>> {
        if !self.is_repeatable {
            return Ok(false);
        }
        let Some(position) = store.find(event_id(self.notification_id, 0)).await? else { return Ok(false) };
        // In the request's own stream, which shows at once what is committed; the log as a whole may not yet.
        let is_same = match find_in(store, stream, position).await? {
            Some(event) => {
                Notified::decode(&event).transpose()?.is_some_and(|sent| sent.message() == message)
            }
            None => false,
        };
        if is_same { Ok(true) } else { Err(NotifyError::KeyReused(position)) }
    }
}

/// The event of a stream that stands at this position, if it has one.
async fn find_in(store: &Store, stream: &StreamName, position: Position) -> Result<Option<Event>, ReadError> {
    let mut before = None;
    loop {
        let page = store.read_stream_backwards(stream, before, PAGE).await?;
        let is_past = page.events.last().is_none_or(|event| event.position <= position);
        if is_past || page.next.is_none() {
            return Ok(page.events.into_iter().find(|event| event.position == position));
        }
        before = page.next;
    }
}
