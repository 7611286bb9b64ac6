//! Webhooks: other people's servers are told, signed as Standard Webhooks says.
//!
//! Where they are is configured by name, so no event can have this program call an address of its choice. A receiver
//! knows a repetition by `webhook-id`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, StatusCode};
use serde_json::json;
use sha2::Sha256;
use store::{InvalidJson, NewEvent, Secret, Store};
use subscription_engine::{Answer, Happened, Terms};
use uuid::Uuid;

use crate::delivery::channel::{Channel, reason_of};
use crate::delivery::http::{Reply, ask};
use crate::delivery::schedule::Attempts;
use crate::operations::{
    FailedToSendWebhookEvent, SendWebhookOp, SendWebhookRequestedEvent, SucceededInSendingWebhookEvent,
    WEBHOOK_EVENTS, WEBHOOK_OPERATIONS, WebhookAttemptDeferredEvent, WebhookAttemptStartedEvent,
    WebhookIsInDoubtEvent,
};

/// Before the base64 of a key, as Standard Webhooks writes it.
const KEY_PREFIX: &str = "whsec_";
/// What is said while there is none.
const NOT_CONFIGURED: &str =
    "no webhook is configured: set HERALD_NOTIFY__WEBHOOK__TARGETS__<NAME>__URL and …__KEY_FILE";
/// What an attempt may take beside its own limit.
const MARGIN: Duration = Duration::from_secs(5);

/// The webhooks that there are.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// By name.
    pub targets: BTreeMap<String, WebhookTarget>,
    /// An attempt may take so long.
    pub timeout: Duration,
    /// How it is attempted.
    pub attempts: Attempts,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self { targets: BTreeMap::new(), timeout: Duration::from_secs(20), attempts: Attempts::default() }
    }
}

/// Where one is, and the key that signs what it is told.
#[derive(Clone)]
pub struct WebhookTarget {
    url: Secret,
    key: Vec<u8>,
}

impl WebhookTarget {
    /// A key that begins with `whsec_` is base64, any other one is taken as it is. None if it cannot be read.
    pub fn new(url: Secret, key: &Secret) -> Option<Self> {
        let key = match key.reveal().strip_prefix(KEY_PREFIX) {
            Some(encoded) => STANDARD.decode(encoded).ok()?,
            None => key.reveal().as_bytes().to_vec(),
        };
        (!key.is_empty()).then_some(Self { url, key })
    }
}

impl fmt::Debug for WebhookTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// The channel of webhooks.
pub(super) struct Webhook {
    settings: WebhookSettings,
    store: Store,
    client: Client,
}

impl Webhook {
    pub(super) fn new(settings: WebhookSettings, store: Store, client: Client) -> Self {
        Self { settings, store, client }
    }
}

/// What is signed is the id, the time of the attempt, by which a receiver knows an old recording, and the body.
fn signature(key: &[u8], id: Uuid, seconds: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("this takes keys of any length");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// A receiver has taken it if it says so by 2xx; all else is tried again, unless it is gone for good.
fn meaning(reply: &Reply) -> Answer {
    match reply.status {
        status if status.is_success() => Answer::Done { detail: reply.status.as_u16().to_string() },
        StatusCode::GONE => Answer::Failed { why: reply.said() },
        StatusCode::TOO_MANY_REQUESTS => reply.left_alone(),
        _ => Answer::Retry { why: reply.said(), after: reply.retry_after },
    }
}

#[async_trait]
impl Channel for Webhook {
    type Operation = SendWebhookOp;
    const KIND: &'static str = "webhook";
    const SUBSCRIBER: &'static str = "webhook_delivery";
    const OPERATIONS: &'static str = WEBHOOK_OPERATIONS;
    const EVENTS: &'static str = WEBHOOK_EVENTS;

    fn id(operation: &SendWebhookOp) -> Uuid {
        operation.operation_id
    }

    fn to(operation: &SendWebhookOp) -> &str {
        &operation.to
    }

    fn refuse(_: &SendWebhookOp) -> Option<String> {
        None
    }

    fn requested(operation: &SendWebhookOp) -> Result<NewEvent, InvalidJson> {
        let SendWebhookOp { operation_id, to, event_type, .. } = operation;
        let (to, event_type) = (to.clone(), event_type.clone());
        NewEvent::of(&SendWebhookRequestedEvent { operation_id: *operation_id, to, event_type })
    }

    fn failed(operation_id: Uuid, to: &str, reason: &str) -> Result<NewEvent, InvalidJson> {
        let (to, reason) = (to.to_owned(), reason.to_owned());
        NewEvent::of(&FailedToSendWebhookEvent { operation_id, to, reason })
    }

    fn happened(
        &self,
        operation: &SendWebhookOp,
        attempt: u32,
        happened: &Happened,
    ) -> Result<NewEvent, InvalidJson> {
        let operation_id = operation.operation_id;
        match happened {
            Happened::Started => NewEvent::of(&WebhookAttemptStartedEvent { operation_id, attempt }),
            Happened::Deferred { until, why } => NewEvent::of(&WebhookAttemptDeferredEvent {
                operation_id,
                attempt,
                reason: why.clone(),
                retry_at: *until,
            }),
            Happened::InDoubt { why } => {
                NewEvent::of(&WebhookIsInDoubtEvent { operation_id, attempt, reason: why.clone() })
            }
            Happened::Done { detail } => NewEvent::of(&SucceededInSendingWebhookEvent {
                operation_id,
                to: operation.to.clone(),
                response: detail.clone(),
            }),
            Happened::Failed { .. } | Happened::Unwanted { .. } | Happened::Discarded { .. } => {
                Self::failed(operation_id, &operation.to, &reason_of(happened))
            }
        }
    }

    async fn send(&self, operation: &SendWebhookOp) -> Answer {
        if self.settings.targets.is_empty() {
            return Answer::Blocked { why: NOT_CONFIGURED.to_owned() };
        }
        let Some(target) = self.settings.targets.get(&operation.to) else {
            let known = self.settings.targets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            // One wrong name must not block the others.
            return Answer::Failed {
                why: format!("no webhook is called {:?}; there are: {known}", operation.to),
            };
        };
        let now = match self.store.clock().now().await {
            Ok(now) => now,
            Err(error) => {
                return Answer::Retry { why: format!("the clock could not be read: {error}"), after: None };
            }
        };
        let SendWebhookOp { operation_id: id, event_type, data, decided_at, .. } = operation;
        let body = json!({ "type": event_type, "timestamp": decided_at, "data": data }).to_string();
        let seconds = now.as_micros().div_euclid(1_000_000);
        let request = self
            .client
            .post(target.url.reveal())
            .header("content-type", "application/json")
            .header("webhook-id", id.to_string())
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", signature(&target.key, *id, seconds, &body))
            .body(body);
        match ask(request, self.settings.timeout).await {
            Ok(reply) => meaning(&reply),
            Err(answer) => answer,
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            deadline: self.settings.timeout + MARGIN,
            in_doubt: self.settings.attempts.in_doubt,
            retry: self.settings.attempts.strategy(),
            pacing: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the body of the specification's example; the signature was computed by another program.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let url = Secret::new("https://h.test/hook");
        let target =
            WebhookTarget::new(url.clone(), &Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let (id, body) = (Uuid::nil(), r#"{"test": 2432232314}"#);
        let expected = "v1,Y5/uRWupLQOPxe4D5mBYrd9dRGhY+xtWrnxDwy59WDE=";
        assert_eq!(signature(&target.key, id, 1_614_265_330, body), expected);
        assert!(!format!("{target:?}").contains("hook"));
        assert!(WebhookTarget::new(url, &Secret::new("whsec_!")).is_none());
    }

    #[test]
    fn what_a_receiver_answers() {
        let kind = |status| {
            let status = StatusCode::from_u16(status).unwrap();
            match meaning(&Reply { status, retry_after: None, body: String::new() }) {
                Answer::Done { .. } => "done",
                Answer::Failed { .. } => "failed",
                Answer::Retry { after: None, .. } => "retry",
                Answer::Retry { .. } => "later",
                other => panic!("{other:?}"),
            }
        };
        let said = [200, 204, 302, 400, 404, 410, 429, 500, 503].map(kind);
        assert_eq!(said, ["done", "done", "retry", "retry", "retry", "failed", "later", "retry", "retry"]);
    }
}
