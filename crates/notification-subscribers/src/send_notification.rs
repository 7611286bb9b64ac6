//! `send_notification`: takes a client's operation to messages in their queues and a saga that waits for them.
//!
//! First the notification is created. Then everything that follows from that is appended in one transaction: for which
//! channels it is prepared, the messages, the saga. These are two steps because what a transaction appends to several
//! streams stands in the order of their names, and a notification is requested before anything is done for it. The
//! ids are derived from what caused them, so that doing either step again changes nothing.

use async_trait::async_trait;
use store::{DomainEvent, Event, ExpectedVersion};
use subscription_engine::{BoxError, Cause, Context, Definition, Poison, Subscriber};

use crate::in_unit::InUnit;
use crate::notification::{
    Notification, NotificationCommand, PreparedChannel, RequestedNotificationToBeSentEvent,
    SendNotificationToEntityOp, SkippedChannel, notification_stream,
};
use crate::operations::{
    EMAIL_EVENTS, EMAIL_OPERATIONS, FailedToSendEmailEvent, FailedToSendSlackMessageEvent, SLACK_EVENTS,
    SLACK_OPERATIONS, SendEmailOp, SendSlackMessageOp, SucceededInSendingEmailEvent,
    SucceededInSendingSlackMessageEvent, Unsubscribe, stream_of,
};
use crate::recipient::{DeliveryChannel, NOTIFICATION_LIST, Recipient};
use crate::saga::{AwaitedOperation, Saga, SagaCommand, saga_stream};
use crate::streams::{Producer, RECIPIENTS, Writer, derived_id, stream_of_user};

const WRITER: Writer = Writer::of(Producer::ClientOperationHandler);

/// The subscriber.
#[derive(Clone, Copy, Debug)]
pub struct SendNotification;

#[async_trait]
impl Subscriber for SendNotification {
    fn definition(&self) -> Definition {
        Definition::processor("send_notification")
            .on([SendNotificationToEntityOp::TYPE, RequestedNotificationToBeSentEvent::TYPE])
            // What cannot be read holds up nobody else.
            .with_poison(Poison::park())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let mut cause = context.because_of(event);
            if let Some(operation) = event.decode::<SendNotificationToEntityOp>() {
                request(event, operation?, &mut cause).await?;
            } else if let Some(requested) = event.decode::<RequestedNotificationToBeSentEvent>() {
                prepare(event, &requested?, &mut cause).await?;
            }
        }
        Ok(())
    }
}

/// Creates the notification.
async fn request(
    event: &Event,
    operation: SendNotificationToEntityOp,
    cause: &mut Cause<'_, '_>,
) -> Result<(), BoxError> {
    let SendNotificationToEntityOp { tracking_id, entity_id, subject, body } = operation;
    if event.correlation_id != Some(tracking_id.to_string()) {
        return Err("an operation must have its tracking id as its correlation id".into());
    }
    let mut notification = InUnit::<Notification>::load(cause, notification_stream(tracking_id)).await?;
    let request = NotificationCommand::Request { entity_id, subject, body };
    notification.execute(cause, WRITER, &request, &tracking_id)?;
    Ok(())
}

/// Finds out how its audience is reached, and puts a message in the queue of each channel.
async fn prepare(
    event: &Event,
    requested: &RequestedNotificationToBeSentEvent,
    cause: &mut Cause<'_, '_>,
) -> Result<(), BoxError> {
    let tracking_id = requested.tracking_id;
    let stream = stream_of_user(RECIPIENTS, &requested.entity_id);
    let recipient = InUnit::<Recipient>::load(cause, stream).await?.state;
    let (mut channels, mut skipped) = (Vec::new(), Vec::new());
    for channel in [DeliveryChannel::Email, DeliveryChannel::Slack] {
        match recipient.reach(channel) {
            Ok(to) => {
                let operation_id = derived_id(event.id, purpose(channel));
                channels.push(PreparedChannel { channel, operation_id, to: to.to_owned() });
            }
            Err(reason) => skipped.push(SkippedChannel { channel, reason }),
        }
    }
    let mut notification = InUnit::<Notification>::load(cause, notification_stream(tracking_id)).await?;
    let prepare = NotificationCommand::Prepare { channels: channels.clone(), skipped };
    if notification.execute(cause, WRITER, &prepare, &tracking_id)?.is_empty() {
        return Ok(());
    }
    for prepared in &channels {
        queue(event, requested, prepared, cause)?;
    }
    let operations = channels.iter().map(awaited).collect();
    let mut saga = InUnit::<Saga>::load(cause, saga_stream(tracking_id)).await?;
    saga.execute(cause, WRITER, &SagaCommand::Start { operations }, &tracking_id)?;
    Ok(())
}

fn purpose(channel: DeliveryChannel) -> &'static str {
    match channel {
        DeliveryChannel::Email => "email",
        DeliveryChannel::Slack => "slack",
    }
}

/// Puts a message in the queue of its channel.
fn queue(
    event: &Event,
    requested: &RequestedNotificationToBeSentEvent,
    prepared: &PreparedChannel,
    cause: &mut Cause<'_, '_>,
) -> Result<(), BoxError> {
    let PreparedChannel { operation_id, to, .. } = prepared.clone();
    let decided_at = event.recorded_at;
    match prepared.channel {
        DeliveryChannel::Email => {
            let unsubscribe =
                Unsubscribe { user_id: requested.entity_id.clone(), list: NOTIFICATION_LIST.to_owned() };
            let mail = SendEmailOp {
                operation_id,
                to,
                subject: requested.subject.clone(),
                text: requested.body.clone(),
                decided_at,
                unsubscribe: Some(unsubscribe),
                reminds_of: None,
            };
            WRITER.append(cause, &stream_of(EMAIL_OPERATIONS, operation_id), ExpectedVersion::NoStream, &mail)
        }
        DeliveryChannel::Slack => {
            let text = format!("{}\n{}", requested.subject, requested.body);
            let message = SendSlackMessageOp { operation_id, to, text, decided_at };
            let stream = stream_of(SLACK_OPERATIONS, operation_id);
            WRITER.append(cause, &stream, ExpectedVersion::NoStream, &message)
        }
    }
}

/// How the saga learns of its end.
fn awaited(prepared: &PreparedChannel) -> AwaitedOperation {
    let PreparedChannel { channel, operation_id, .. } = *prepared;
    let (category, succeeded_type, failed_type) = match channel {
        DeliveryChannel::Email => {
            (EMAIL_EVENTS, SucceededInSendingEmailEvent::TYPE, FailedToSendEmailEvent::TYPE)
        }
        DeliveryChannel::Slack => {
            (SLACK_EVENTS, SucceededInSendingSlackMessageEvent::TYPE, FailedToSendSlackMessageEvent::TYPE)
        }
    };
    AwaitedOperation {
        operation_id,
        channel,
        stream: stream_of(category, operation_id).to_string(),
        succeeded_type: succeeded_type.to_owned(),
        failed_type: failed_type.to_owned(),
    }
}
