//! What the kinds have in common: the processor that plans an operation as an effect, and the delivery that attempts
//! it and tells the log what happened.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use async_trait::async_trait;
use store::{DomainEvent, Event, ExpectedVersion, Filter, InvalidJson, NewEvent, StreamName, Tx, messages};
use subscription_engine::{
    Answer, BoxError, Context, ContextError, Definition, Delivery, Effect, Happened, NewEffect,
    RetryStrategy, Subscriber, Terms, Wanted,
};
use uuid::Uuid;

use crate::operations::stream_of;

/// A way to reach somebody.
#[async_trait]
pub(super) trait Channel: Send + Sync + 'static {
    /// What is asked of it.
    type Operation: DomainEvent + Send + Sync;
    /// The kind of its effects.
    const KIND: &'static str;
    /// The id of its processor.
    const SUBSCRIBER: &'static str;
    /// Where its operations stand.
    const OPERATIONS: &'static str;
    /// Where it is told what happened to them.
    const EVENTS: &'static str;

    fn id(operation: &Self::Operation) -> Uuid;

    /// To whom: what is sent to one is sent in order.
    fn to(operation: &Self::Operation) -> &str;

    /// Why this operation can never be carried out, whoever tries.
    fn refuse(operation: &Self::Operation) -> Option<String>;

    /// The event that says it was asked for.
    fn requested(operation: &Self::Operation) -> Result<NewEvent, InvalidJson>;

    /// The event that says it is not sent any more.
    fn failed(operation_id: Uuid, to: &str, reason: &str) -> Result<NewEvent, InvalidJson>;

    /// The event that says what happened to it, in this attempt.
    fn happened(
        &self,
        operation: &Self::Operation,
        attempt: u32,
        happened: &Happened,
    ) -> Result<NewEvent, InvalidJson>;

    /// Makes one attempt.
    async fn send(&self, operation: &Self::Operation) -> Answer;

    /// The last look before it.
    async fn still_wanted(&self, _: &Self::Operation, _: &mut Tx) -> Result<Wanted, BoxError> {
        Ok(Wanted::Yes)
    }

    fn terms(&self) -> Terms;
}

/// Takes the operations of a channel to the ledger.
pub(super) struct Planning<C>(PhantomData<C>);

impl<C> Planning<C> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

#[async_trait]
impl<C: Channel> Subscriber for Planning<C> {
    fn definition(&self) -> Definition {
        let operations = Filter::all().category(C::OPERATIONS).types([C::Operation::TYPE]);
        Definition::processor(C::SUBSCRIBER).within(operations).with_retry(keep_trying())
    }

    /// An operation that cannot be carried out has failed, and does not hold up the others.
    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let Some(operation) = event.decode::<C::Operation>() else { continue };
            if event.version.0 > 0 {
                // Two that share an id would be told apart by nobody.
                tracing::error!(
                    "position {} is left out: an operation stands alone in its stream, and {} had one before",
                    event.position,
                    event.stream
                );
                continue;
            }
            let operation = match operation {
                Ok(operation) => operation,
                Err(error) => {
                    let id = id_in(&event.stream).unwrap_or(event.id);
                    let reason = format!("the operation cannot be read: {}", messages(&error).join(": "));
                    let failed = C::failed(id, "", &reason)?;
                    append(context, event, &stream_of(C::EVENTS, id), failed)?;
                    continue;
                }
            };
            let (id, to) = (C::id(&operation), C::to(&operation));
            let stream = stream_of(C::EVENTS, id);
            append(context, event, &stream, C::requested(&operation)?)?;
            let effect = NewEffect {
                key: Some(id.to_string()),
                ..NewEffect::new(C::KIND, to, event.payload.as_str())
            };
            let refusal = match C::refuse(&operation) {
                Some(why) => Some(why),
                None => match context.because_of(event).plan_effect(effect) {
                    Ok(_) => None,
                    Err(ContextError::InvalidEffect(error)) => Some(error.to_string()),
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some(why) = refusal {
                append(context, event, &stream, C::failed(id, to, &why)?)?;
            }
        }
        Ok(())
    }
}

fn append(
    context: &mut Context<'_>,
    cause: &Event,
    stream: &StreamName,
    event: NewEvent,
) -> Result<(), BoxError> {
    let NewEvent { event_type, payload, .. } = event;
    context.because_of(cause).append(stream, ExpectedVersion::Any, &event_type, payload)?;
    Ok(())
}

/// What blocks a whole kind, such as a password, is mended by a person some day: 5, 10, 20, 40 and 80 s, then every
/// 15 minutes one effect is tried.
fn keep_trying() -> RetryStrategy {
    RetryStrategy::own(u32::MAX, |attempt| match attempt {
        0..=4 => Duration::from_secs(5 << attempt),
        _ => Duration::from_secs(900),
    })
}

/// The operation whose stream this is.
fn id_in(stream: &StreamName) -> Option<Uuid> {
    stream.as_str().split_once('-')?.1.parse().ok()
}

/// Why it is not sent any more.
pub(super) fn reason_of(happened: &Happened) -> String {
    match happened {
        Happened::Discarded { why } if why.is_empty() => "discarded by an operator".to_owned(),
        Happened::Discarded { why } => format!("discarded by an operator: {why}"),
        Happened::Deferred { why, .. }
        | Happened::InDoubt { why }
        | Happened::Failed { why }
        | Happened::Unwanted { why } => why.clone(),
        Happened::Started | Happened::Done { .. } => String::new(),
    }
}

/// Sends what was planned for a channel.
pub(super) struct Sending<C>(pub(super) C);

impl<C: Channel> Sending<C> {
    fn operation(effect: &Effect) -> serde_json::Result<C::Operation> {
        serde_json::from_str(&effect.body)
    }
}

#[async_trait]
impl<C: Channel> Delivery for Sending<C> {
    fn kind(&self) -> &str {
        C::KIND
    }

    async fn send(&self, effect: &Effect) -> Answer {
        match Self::operation(effect) {
            Ok(operation) => self.0.send(&operation).await,
            Err(error) => Answer::Failed { why: format!("the operation cannot be read: {error}") },
        }
    }

    async fn still_wanted(&self, effect: &Effect, tx: &mut Tx) -> Result<Wanted, BoxError> {
        match Self::operation(effect) {
            Ok(operation) => self.0.still_wanted(&operation, tx).await,
            // The attempt says what is wrong with it.
            Err(_) => Ok(Wanted::Yes),
        }
    }

    fn event(&self, effect: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
        let id = effect.key.parse().ok()?;
        let event = match (Self::operation(effect), happened) {
            (Ok(operation), _) => self.0.happened(&operation, effect.attempt, happened),
            (Err(_), Happened::Failed { .. } | Happened::Unwanted { .. } | Happened::Discarded { .. }) => {
                C::failed(id, &effect.destination, &reason_of(happened))
            }
            // Of what cannot be read only the end matters.
            (Err(_), _) => return None,
        };
        Some((stream_of(C::EVENTS, id), event.ok()?))
    }

    fn terms(&self) -> Terms {
        self.0.terms()
    }
}

impl<C: Channel> fmt::Debug for Planning<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(C::SUBSCRIBER)
    }
}
