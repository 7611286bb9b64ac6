//! Mails: one operation is one mail to one address, handed to a mail server that takes it from there.
//!
//! Each attempt sends the same bytes under the same Message-ID. A mail that reminds of something is looked at once
//! more right before it is sent: what was acknowledged meanwhile is not reminded of.

mod message;
mod pending;
mod settings;
mod smtp;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use store::{InvalidJson, NewEvent, Store, Tx};
use subscription_engine::{Answer, BoxError, Happened, Terms, Wanted};
use uuid::Uuid;

pub use settings::{EmailSettings, InvalidEmailSettings, Login, Tls, parse_address};

use crate::delivery::channel::{Channel, reason_of};
use crate::delivery::schedule::Attempts;
use crate::operations::{
    EMAIL_EVENTS, EMAIL_OPERATIONS, EmailAttemptDeferredEvent, EmailAttemptStartedEvent, EmailIsInDoubtEvent,
    FailedToSendEmailEvent, SendEmailOp, SendEmailRequestedEvent, SucceededInSendingEmailEvent,
};

/// What is said while there is no mail server.
const NOT_CONFIGURED: &str = "no mail server is configured: set HERALD_NOTIFY__EMAIL__HOST";
/// What an attempt may take beside its own limits.
const MARGIN: Duration = Duration::from_secs(5);

/// Says which addresses must not be used any more, such as those that bounced.
#[async_trait]
pub trait Suppressions: Send + Sync {
    /// Why nothing may be sent to this address; none if it may. Asked in the transaction that begins an attempt.
    async fn why_suppressed(&self, address: &str, tx: &mut Tx) -> Result<Option<String>, BoxError>;
}

/// Every address may be used.
#[derive(Clone, Copy, Debug)]
pub struct NoSuppressions;

#[async_trait]
impl Suppressions for NoSuppressions {
    async fn why_suppressed(&self, _: &str, _: &mut Tx) -> Result<Option<String>, BoxError> {
        Ok(None)
    }
}

/// The channel of mails.
pub(super) struct Email {
    /// None: there is no mail server.
    settings: Option<EmailSettings>,
    store: Store,
    suppressions: Arc<dyn Suppressions>,
}

impl Email {
    pub(super) fn new(
        settings: Option<EmailSettings>,
        store: Store,
        suppressions: Arc<dyn Suppressions>,
    ) -> Self {
        Self { settings, store, suppressions }
    }
}

#[async_trait]
impl Channel for Email {
    type Operation = SendEmailOp;
    const KIND: &'static str = "email";
    const SUBSCRIBER: &'static str = "email_delivery";
    const OPERATIONS: &'static str = EMAIL_OPERATIONS;
    const EVENTS: &'static str = EMAIL_EVENTS;

    fn id(operation: &SendEmailOp) -> Uuid {
        operation.operation_id
    }

    fn to(operation: &SendEmailOp) -> &str {
        &operation.to
    }

    fn refuse(operation: &SendEmailOp) -> Option<String> {
        parse_address(&operation.to).err().map(|error| error.to_string())
    }

    fn requested(operation: &SendEmailOp) -> Result<NewEvent, InvalidJson> {
        NewEvent::of(&SendEmailRequestedEvent {
            operation_id: operation.operation_id,
            to: operation.to.clone(),
            subject: operation.subject.clone(),
        })
    }

    fn failed(operation_id: Uuid, to: &str, reason: &str) -> Result<NewEvent, InvalidJson> {
        let (to, reason) = (to.to_owned(), reason.to_owned());
        NewEvent::of(&FailedToSendEmailEvent { operation_id, to, reason })
    }

    fn happened(
        &self,
        operation: &SendEmailOp,
        attempt: u32,
        happened: &Happened,
    ) -> Result<NewEvent, InvalidJson> {
        let operation_id = operation.operation_id;
        match happened {
            Happened::Started => NewEvent::of(&EmailAttemptStartedEvent { operation_id, attempt }),
            Happened::Deferred { until, why } => NewEvent::of(&EmailAttemptDeferredEvent {
                operation_id,
                attempt,
                reason: why.clone(),
                retry_at: *until,
            }),
            Happened::InDoubt { why } => {
                NewEvent::of(&EmailIsInDoubtEvent { operation_id, attempt, reason: why.clone() })
            }
            Happened::Done { detail } => NewEvent::of(&SucceededInSendingEmailEvent {
                operation_id,
                to: operation.to.clone(),
                // Only who has settings can have sent it.
                message_id: self.settings.as_ref().map_or(String::new(), |it| it.message_id(operation_id)),
                response: detail.clone(),
            }),
            Happened::Failed { .. } | Happened::Unwanted { .. } | Happened::Discarded { .. } => {
                Self::failed(operation_id, &operation.to, &reason_of(happened))
            }
        }
    }

    async fn send(&self, operation: &SendEmailOp) -> Answer {
        let Some(settings) = &self.settings else {
            return Answer::Blocked { why: NOT_CONFIGURED.to_owned() };
        };
        match message::letter(operation, settings) {
            Ok(letter) => smtp::send(settings, &letter).await,
            Err(why) => Answer::Failed { why },
        }
    }

    async fn still_wanted(&self, operation: &SendEmailOp, tx: &mut Tx) -> Result<Wanted, BoxError> {
        if let Some(why) = self.suppressions.why_suppressed(&operation.to, tx).await? {
            return Ok(Wanted::No { why: format!("suppressed: {why}") });
        }
        if let Some(reminds_of) = &operation.reminds_of
            && !pending::is_any_pending(&self.store, tx, reminds_of).await?
        {
            return Ok(Wanted::No { why: "acknowledged".to_owned() });
        }
        Ok(Wanted::Yes)
    }

    fn terms(&self) -> Terms {
        let Some(settings) = &self.settings else {
            return Terms { retry: Attempts::default().strategy(), ..Terms::default() };
        };
        Terms {
            deadline: settings.timeout + settings.reply_timeout + MARGIN,
            in_doubt: settings.attempts.in_doubt,
            retry: settings.attempts.strategy(),
            pacing: None,
        }
    }
}
