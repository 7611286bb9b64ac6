//! `send_saga`: hears of the end of each message, and writes what all of them came to.
//!
//! Nothing is polled. A message that nobody hears of any more is ended by a durable timer.

use std::time::Duration;

use async_trait::async_trait;
use store::{DomainEvent, Event};
use subscription_engine::{BoxError, Cause, Context, Definition, Poison, Subscriber, Timer};
use uuid::Uuid;

use aggregate::EventSet;

use crate::in_unit::InUnit;
use crate::notification::{Notification, NotificationCommand, notification_stream};
use crate::operations::{
    self, FailedToSendEmailEvent, FailedToSendSlackMessageEvent, SucceededInSendingEmailEvent,
    SucceededInSendingSlackMessageEvent,
};
use crate::saga::{Saga, SagaCommand, SagaStartedEvent, saga_stream};
use crate::streams::{Producer, Writer};

const WRITER: Writer = Writer::of(Producer::SagaHandler);

/// The subscriber.
#[derive(Clone, Copy, Debug)]
pub struct SendSaga {
    deadline: Duration,
}

impl SendSaga {
    /// Sagas that have not ended after this time have failed.
    pub fn new(deadline: Duration) -> Self {
        Self { deadline }
    }
}

#[async_trait]
impl Subscriber for SendSaga {
    fn definition(&self) -> Definition {
        Definition::processor("send_saga")
            .on([
                SagaStartedEvent::TYPE,
                SucceededInSendingEmailEvent::TYPE,
                FailedToSendEmailEvent::TYPE,
                SucceededInSendingSlackMessageEvent::TYPE,
                FailedToSendSlackMessageEvent::TYPE,
            ])
            .with_poison(Poison::park())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let mut cause = context.because_of(event);
            if let Some(started) = event.decode::<SagaStartedEvent>() {
                let tracking_id = started?.tracking_id;
                let payload = store::Json::empty_object();
                cause.set_timer(tracking_id.to_string(), event.recorded_at.plus(self.deadline), payload)?;
            } else if let Some(command) = finished_by(event)? {
                // Other mails than those of notifications end as well: those have no saga, or are not waited for.
                let tracking_id = event.correlation_id.as_deref().and_then(|id| id.parse::<Uuid>().ok());
                let Some(tracking_id) = tracking_id else { continue };
                if advance(&mut cause, tracking_id, &command).await? {
                    cause.cancel_timer(tracking_id.to_string())?;
                }
            }
        }
        Ok(())
    }

    async fn on_timer(&self, timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
        for timer in timers {
            let tracking_id = timer.key.parse::<Uuid>()?;
            advance(&mut context.because_of_timer(timer), tracking_id, &SagaCommand::TimedOut).await?;
        }
        Ok(())
    }
}

/// What the end of a message is to its saga, if that is what an event tells.
fn finished_by(event: &Event) -> Result<Option<SagaCommand>, BoxError> {
    let Some((operation_id, reason)) = operations::end_told_by(event)? else { return Ok(None) };
    let event_type = event.event_type.clone();
    Ok(Some(SagaCommand::OperationFinished { operation_id, event_type, reason }))
}

/// Takes a saga further; when it is complete by that the notification is told. Says whether it was.
async fn advance(
    cause: &mut Cause<'_, '_>,
    tracking_id: Uuid,
    command: &SagaCommand,
) -> Result<bool, BoxError> {
    let mut saga = InUnit::<Saga>::load(cause, saga_stream(tracking_id)).await?;
    let happened = saga.execute(cause, WRITER, command, &tracking_id)?;
    if happened.is_empty() || !saga.state.is_completed() {
        return Ok(false);
    }
    let mut notification = InUnit::<Notification>::load(cause, notification_stream(tracking_id)).await?;
    let outcome = NotificationCommand::RecordOutcome { per_channel: saga.state.outcomes() };
    for event in notification.execute(cause, WRITER, &outcome, &tracking_id)? {
        let (written, wanted) = (event.encode()?.event_type, saga.state.to_be_written());
        if written != wanted {
            return Err(format!("the saga says that {wanted} is to be written, and it is {written}").into());
        }
    }
    Ok(true)
}
