//! Delivery: the only code that talks to the outside. Mails by SMTP, messages by Slack, calls of webhooks.
//!
//! A processor for each kind plans an operation as an effect; the ledger keeps when and how often it was tried, and a
//! [`Delivery`] makes one attempt. What is not configured is not lost: it waits, and its subscription says what to set.

mod channel;
mod email;
mod http;
mod schedule;
mod slack;
mod webhook;

use std::sync::Arc;

use store::Store;
use subscription_engine::{Delivery, Subscriber};

pub use email::{
    EmailSettings, InvalidEmailSettings, Login, NoSuppressions, Suppressions, Tls, parse_address,
};
pub use http::{HttpTrust, InvalidTrust};
pub use schedule::{Attempts, InvalidSchedule};
pub use slack::SlackSettings;
pub use webhook::{WebhookSettings, WebhookTarget};

use crate::delivery::channel::{Planning, Sending};
use crate::delivery::email::Email;
use crate::delivery::slack::Slack;
use crate::delivery::webhook::Webhook;

/// What a program is told about the outside.
#[derive(Clone, Debug, Default)]
pub struct DeliverySettings {
    /// The mail server; none: mails wait.
    pub email: Option<EmailSettings>,
    /// Slack.
    pub slack: SlackSettings,
    /// Other people's servers.
    pub webhook: WebhookSettings,
    /// Whose certificates are believed.
    pub trust: HttpTrust,
}

/// The processors that take operations to the ledger.
pub fn delivery_subscribers() -> Vec<Arc<dyn Subscriber>> {
    vec![
        Arc::new(Planning::<Email>::new()),
        Arc::new(Planning::<Slack>::new()),
        Arc::new(Planning::<Webhook>::new()),
    ]
}

/// What sends the effects that those have planned, from this log.
pub fn deliveries(
    settings: &DeliverySettings,
    store: &Store,
    suppressions: Arc<dyn Suppressions>,
) -> Result<Vec<Arc<dyn Delivery>>, InvalidTrust> {
    let client = settings.trust.client()?;
    Ok(vec![
        Arc::new(Sending(Email::new(settings.email.clone(), store.clone(), suppressions))),
        Arc::new(Sending(Slack::new(settings.slack.clone(), client.clone()))),
        Arc::new(Sending(Webhook::new(settings.webhook.clone(), store.clone(), client))),
    ])
}
