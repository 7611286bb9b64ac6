//! Delivery: what the stories on mails, Slack and webhooks have in common.

use std::sync::Arc;
use std::time::Duration;

use notification_subscribers::delivery::{
    DeliverySettings, EmailSettings, NoSuppressions, Suppressions, Tls, deliveries,
};
use notification_subscribers::operations::{SendEmailOp, stream_of};
use notification_subscribers::subscribers;
use store::{DomainEvent, ExpectedVersion, NewEvent, Store, Timestamp};
use subscription_engine::{Criteria, Engine, Registry};
use testkit::{MailServer, T0};
use uuid::Uuid;

use crate::given::all_events;

/// The clock may take so long to get where it is set.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Mails through this server.
pub(crate) fn mailing(server: &MailServer) -> DeliverySettings {
    let email = EmailSettings::new("127.0.0.1", "Herald <herald@example.com>").unwrap();
    let limit = Duration::from_secs(20);
    let email = email.with_tls(Tls::None, Some(server.port())).with_timeouts(limit, limit);
    DeliverySettings { email: Some(email), ..DeliverySettings::default() }
}

/// The whole notification system on a log, with these ways out.
pub(crate) async fn system(store: &Store, settings: &DeliverySettings) -> Engine {
    system_with(store, settings, Arc::new(NoSuppressions)).await
}

pub(crate) async fn system_with(
    store: &Store,
    settings: &DeliverySettings,
    suppressions: Arc<dyn Suppressions>,
) -> Engine {
    let engine = Engine::new(store.clone(), Registry::new(subscribers()).unwrap(), "test");
    let engine = engine.with_deliveries(deliveries(settings, store, suppressions).unwrap()).unwrap();
    engine.set_up(&Criteria::all(), false).await.unwrap();
    engine
}

/// A mail to this address that was decided on at the beginning.
pub(crate) fn mail(to: &str) -> SendEmailOp {
    SendEmailOp {
        operation_id: Uuid::new_v5(&Uuid::NAMESPACE_DNS, to.as_bytes()),
        to: to.to_owned(),
        subject: "You have a message".to_owned(),
        text: "Hello\n.\nworld".to_owned(),
        decided_at: T0,
        unsubscribe: None,
        reminds_of: None,
    }
}

/// Appends an operation to a stream of its own, as work that is tracked by `tracked`.
pub(crate) async fn ask<E: DomainEvent>(store: &Store, category: &str, id: Uuid, operation: &E) {
    let event = NewEvent::of(operation).unwrap();
    let event = NewEvent { correlation_id: Some("tracked".to_owned()), ..event };
    store.append(&stream_of(category, id), ExpectedVersion::NoStream, vec![event]).await.unwrap();
}

pub(crate) async fn ask_mail(store: &Store, operation: &SendEmailOp) {
    ask(store, "email_op", operation.operation_id, operation).await;
}

/// Runs until nothing moves.
pub(crate) async fn run(engine: &Engine) {
    engine.catch_up(&Criteria::all()).await.unwrap();
}

/// Lets this much time have passed since the beginning; what falls due is done.
pub(crate) async fn at(engine: &Engine, since: Duration) {
    engine.set_clock(T0.plus(since), PATIENCE).await.unwrap();
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What the log tells of an operation: the types without the context's name.
pub(crate) async fn told(store: &Store, category: &str, id: Uuid) -> Vec<String> {
    let stream = stream_of(category, id);
    let events = all_events(store).await.into_iter().filter(|event| event.stream == stream);
    events.map(|event| event.event_type.replace("Acme.Notifications:", "")).collect()
}

/// The events of one type, in order.
pub(crate) async fn all_of<E: DomainEvent>(store: &Store) -> Vec<E> {
    all_events(store).await.iter().filter_map(|event| Some(event.decode::<E>()?.unwrap())).collect()
}

/// When an effect that waits is due, after the beginning.
pub(crate) fn after_t0(at: Timestamp) -> Duration {
    at.since(T0)
}
