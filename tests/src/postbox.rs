//! A postbox: stands for what sends mails and Slack messages, and keeps what was sent.
//!
//! As the real thing it plans an effect for each operation, sends it through the ledger, and has the result appended
//! where the workflow looks for it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use notification_subscribers::operations::{
    EMAIL_EVENTS, FailedToSendEmailEvent, FailedToSendSlackMessageEvent, SLACK_EVENTS, SendEmailOp,
    SendSlackMessageOp, SucceededInSendingEmailEvent, SucceededInSendingSlackMessageEvent, stream_of,
};
use notification_subscribers::policy::Policy;
use notification_subscribers::workflow;
use store::{DomainEvent, Event, NewEvent, StreamName};
use subscription_engine::{
    Answer, BoxError, Context, Definition, Delivery, Effect, Happened, NewEffect, Subscriber,
};
use testkit::{Stage, TestDatabase};

type Answering = dyn FnMut(&str) -> Answer + Send;

/// The kinds of effects.
const EMAIL: &str = "test-email";
const SLACK: &str = "test-slack";

/// What it took; it answers as it is told, by the address.
pub(crate) struct Postbox {
    mails: Mutex<Vec<SendEmailOp>>,
    messages: Mutex<Vec<SendSlackMessageOp>>,
    answer: Mutex<Box<Answering>>,
}

impl Postbox {
    /// The workflow on an empty log at T0, with a postbox that takes everything.
    pub(crate) async fn stage(database: TestDatabase, policy: &Policy) -> (Stage, Arc<Self>) {
        let postbox = Arc::new(Self {
            mails: Mutex::default(),
            messages: Mutex::default(),
            answer: Mutex::new(Box::new(|_| sent())),
        });
        let mut subscribers = workflow(policy);
        subscribers.push(Arc::new(Postman));
        let counters: Vec<Arc<dyn Delivery>> =
            vec![Arc::new(Counter(EMAIL, postbox.clone())), Arc::new(Counter(SLACK, postbox.clone()))];
        (Stage::new(database, subscribers).await.with_deliveries(counters), postbox)
    }

    /// From now on it answers like this to what goes to an address.
    pub(crate) fn answer(&self, answer: impl FnMut(&str) -> Answer + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    /// The mails it took or refused, in order.
    pub(crate) fn mails(&self) -> Vec<SendEmailOp> {
        self.mails.lock().unwrap().clone()
    }

    /// The Slack messages.
    pub(crate) fn messages(&self) -> Vec<SendSlackMessageOp> {
        self.messages.lock().unwrap().clone()
    }
}

/// It was taken.
pub(crate) fn sent() -> Answer {
    Answer::Done { detail: "250 ok".to_owned() }
}

/// Plans the sending of each operation.
struct Postman;

#[async_trait]
impl Subscriber for Postman {
    fn definition(&self) -> Definition {
        Definition::processor("test_postman").on([SendEmailOp::TYPE, SendSlackMessageOp::TYPE])
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let (kind, to) = match event.decode::<SendEmailOp>() {
                Some(mail) => (EMAIL, mail?.to),
                None => (SLACK, event.payload.to::<SendSlackMessageOp>()?.to),
            };
            let effect = NewEffect::new(kind, to, event.payload.as_str());
            context.because_of(event).plan_effect(effect)?;
        }
        Ok(())
    }
}

/// Where one kind is handed in.
struct Counter(&'static str, Arc<Postbox>);

#[async_trait]
impl Delivery for Counter {
    fn kind(&self) -> &str {
        self.0
    }

    async fn send(&self, effect: &Effect) -> Answer {
        if self.0 == EMAIL {
            self.1.mails.lock().unwrap().push(serde_json::from_str(&effect.body).unwrap());
        } else {
            self.1.messages.lock().unwrap().push(serde_json::from_str(&effect.body).unwrap());
        }
        (self.1.answer.lock().unwrap())(&effect.destination)
    }

    fn event(&self, effect: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
        let failure = match happened {
            Happened::Done { .. } => None,
            Happened::Failed { why } | Happened::Unwanted { why } | Happened::Discarded { why } => Some(why),
            _ => return None,
        };
        let to = effect.destination.clone();
        let operation: serde_json::Value = serde_json::from_str(&effect.body).unwrap();
        let operation_id = operation["operationId"].as_str().unwrap().parse().unwrap();
        let (response, reason) = ("250 ok".to_owned(), failure.cloned().unwrap_or_default());
        let event = match (self.0, failure) {
            (EMAIL, None) => {
                let message_id = format!("<{operation_id}@test>");
                NewEvent::of(&SucceededInSendingEmailEvent { operation_id, to, message_id, response })
            }
            (EMAIL, Some(_)) => NewEvent::of(&FailedToSendEmailEvent { operation_id, to, reason }),
            (_, None) => NewEvent::of(&SucceededInSendingSlackMessageEvent { operation_id, to, response }),
            (_, Some(_)) => NewEvent::of(&FailedToSendSlackMessageEvent { operation_id, to, reason }),
        };
        let category = if self.0 == EMAIL { EMAIL_EVENTS } else { SLACK_EVENTS };
        Some((stream_of(category, operation_id), event.unwrap()))
    }
}
