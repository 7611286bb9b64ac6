//! The log of deliveries: what was sent to whom, and what came of it (NAOS-13).
//!
//! One row for each operation, kept by a projector from what the deliveries tell; nothing is ever deleted from it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use serde::Deserialize;
use store::{DomainEvent, Event, Position, Store, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber};
use uuid::Uuid;

use crate::operations as told;

/// How far a delivery has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeliveryStatus {
    /// It was asked for.
    Requested,
    /// An attempt is under way, or was when its process died.
    Sending,
    /// It is tried again later.
    Deferred,
    /// Nobody knows whether it arrived; an operator decides.
    InDoubt,
    /// The other side has taken it.
    Sent,
    /// It is not sent any more.
    Failed,
}

impl DeliveryStatus {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Requested, Self::Sending, Self::Deferred, Self::InDoubt, Self::Sent, Self::Failed];

    /// The word for it, in rows and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Sending => "sending",
            Self::Deferred => "deferred",
            Self::InDoubt => "in-doubt",
            Self::Sent => "sent",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for DeliveryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for DeliveryStatus {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::word).join(", ");
        Self::ALL
            .into_iter()
            .find(|status| status.word() == word)
            .ok_or_else(|| format!("{word:?} is no status of a delivery; there are {}", known()))
    }
}

/// What is told of the deliveries of each kind, and what it makes of one.
const TOLD: [(&str, &str, DeliveryStatus); 18] = [
    (told::SendEmailRequestedEvent::TYPE, "email", DeliveryStatus::Requested),
    (told::EmailAttemptStartedEvent::TYPE, "email", DeliveryStatus::Sending),
    (told::EmailAttemptDeferredEvent::TYPE, "email", DeliveryStatus::Deferred),
    (told::EmailIsInDoubtEvent::TYPE, "email", DeliveryStatus::InDoubt),
    (told::SucceededInSendingEmailEvent::TYPE, "email", DeliveryStatus::Sent),
    (told::FailedToSendEmailEvent::TYPE, "email", DeliveryStatus::Failed),
    (told::SendSlackMessageRequestedEvent::TYPE, "slack", DeliveryStatus::Requested),
    (told::SlackMessageAttemptStartedEvent::TYPE, "slack", DeliveryStatus::Sending),
    (told::SlackMessageAttemptDeferredEvent::TYPE, "slack", DeliveryStatus::Deferred),
    (told::SlackMessageIsInDoubtEvent::TYPE, "slack", DeliveryStatus::InDoubt),
    (told::SucceededInSendingSlackMessageEvent::TYPE, "slack", DeliveryStatus::Sent),
    (told::FailedToSendSlackMessageEvent::TYPE, "slack", DeliveryStatus::Failed),
    (told::SendWebhookRequestedEvent::TYPE, "webhook", DeliveryStatus::Requested),
    (told::WebhookAttemptStartedEvent::TYPE, "webhook", DeliveryStatus::Sending),
    (told::WebhookAttemptDeferredEvent::TYPE, "webhook", DeliveryStatus::Deferred),
    (told::WebhookIsInDoubtEvent::TYPE, "webhook", DeliveryStatus::InDoubt),
    (told::SucceededInSendingWebhookEvent::TYPE, "webhook", DeliveryStatus::Sent),
    (told::FailedToSendWebhookEvent::TYPE, "webhook", DeliveryStatus::Failed),
];

/// What any of those events may say.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    operation_id: Uuid,
    #[serde(default)]
    to: String,
    #[serde(default, alias = "eventType")]
    subject: String,
    #[serde(default)]
    attempt: i64,
    #[serde(default, alias = "response")]
    reason: String,
}

/// A row as far as a page of events tells it.
struct Row {
    kind: &'static str,
    recipient: String,
    subject: String,
    status: DeliveryStatus,
    attempts: i64,
    tracking_id: Option<String>,
    detail: String,
    /// Of the first event.
    position: Position,
    requested_at: Timestamp,
    changed_at: Timestamp,
}

/// Keeps the log of deliveries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeliveryLogProjector;

#[async_trait]
impl Subscriber for DeliveryLogProjector {
    fn definition(&self) -> Definition {
        Definition::projector("delivery_log_1")
            .known_as("acme.notifications:deliveries")
            .on(TOLD.map(|(event_type, ..)| event_type))
            .with_poison(Poison::park())
            .with_table("log", "acme_notifications_deliveries")
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        for sql in [CREATE, BY_POSITION, BY_RECIPIENT, BY_TRACKING_ID] {
            context.execute("log", sql, ()).await?;
        }
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let mut rows = BTreeMap::<Uuid, Row>::new();
        for event in events {
            let Some((_, kind, status)) = TOLD.iter().find(|told| told.0 == event.event_type) else {
                continue;
            };
            let said: Said = event.payload.to()?;
            let row = rows.entry(said.operation_id).or_insert_with(|| Row {
                kind,
                recipient: String::new(),
                subject: String::new(),
                status: *status,
                attempts: 0,
                tracking_id: None,
                detail: String::new(),
                position: event.position,
                requested_at: event.recorded_at,
                changed_at: event.recorded_at,
            });
            row.status = *status;
            row.attempts = row.attempts.max(said.attempt);
            row.changed_at = event.recorded_at;
            row.detail = said.reason;
            if !said.to.is_empty() {
                row.recipient = said.to;
            }
            if !said.subject.is_empty() {
                row.subject = said.subject;
            }
            if row.tracking_id.is_none() {
                row.tracking_id.clone_from(&event.correlation_id);
            }
        }
        let row = |(id, row): (Uuid, Row)| {
            let key = key_of(&row.recipient);
            let status = row.status.word();
            let said = (row.recipient, key, row.subject, status, row.attempts, row.tracking_id, row.detail);
            (
                id,
                row.kind,
                said.0,
                said.1,
                said.2,
                said.3,
                said.4,
                said.5,
                said.6,
                row.requested_at,
                row.changed_at,
                row.position,
            )
        };
        context.execute_many("log", UPSERT, rows.into_iter().map(row).collect()).await?;
        Ok(())
    }
}

/// By which a recipient is found: nobody remembers how an address was capitalised.
fn key_of(recipient: &str) -> String {
    recipient.to_lowercase()
}

const CREATE: &str = "CREATE TABLE {t} (
    operation_id UUID NOT NULL PRIMARY KEY, kind TEXT NOT NULL, recipient TEXT NOT NULL, recipient_key TEXT NOT NULL,
    subject TEXT NOT NULL, status TEXT NOT NULL, attempts BIGINT NOT NULL, tracking_id TEXT, detail TEXT NOT NULL,
    requested_at TIMESTAMPTZ NOT NULL, changed_at TIMESTAMPTZ NOT NULL, position BIGINT NOT NULL)";
const BY_POSITION: &str = "CREATE INDEX {t}_in_order ON {t} (position)";
const BY_RECIPIENT: &str = "CREATE INDEX {t}_to ON {t} (recipient_key, position)";
const BY_TRACKING_ID: &str = "CREATE INDEX {t}_tracked ON {t} (tracking_id, position)";
/// What was told before and is not told again stays.
const UPSERT: &str = "INSERT INTO {t} (operation_id, kind, recipient, recipient_key, subject, status, attempts,
                                       tracking_id, detail, requested_at, changed_at, position)
    VALUES {rows}
    ON CONFLICT (operation_id) DO UPDATE
       SET recipient = CASE WHEN excluded.recipient = '' THEN {t}.recipient ELSE excluded.recipient END,
           recipient_key = CASE WHEN excluded.recipient = '' THEN {t}.recipient_key ELSE excluded.recipient_key END,
           subject = CASE WHEN excluded.subject = '' THEN {t}.subject ELSE excluded.subject END,
           status = excluded.status,
           attempts = CASE WHEN excluded.attempts > {t}.attempts THEN excluded.attempts ELSE {t}.attempts END,
           tracking_id = COALESCE({t}.tracking_id, excluded.tracking_id),
           detail = excluded.detail,
           changed_at = excluded.changed_at";

/// Which deliveries; nothing given means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// To this address, conversation or webhook.
    pub to: Option<String>,
    /// Of the work that is tracked by this id.
    pub tracking_id: Option<String>,
    /// That have got so far.
    pub status: Option<DeliveryStatus>,
    /// Asked for at this instant or later.
    pub since: Option<Timestamp>,
    /// Asked for earlier than this.
    pub before: Option<Timestamp>,
}

/// A delivery, as far as the log of deliveries has got.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct DeliveryRow {
    /// The operation.
    pub operation_id: Uuid,
    /// How: `email`, `slack` or `webhook`.
    pub kind: String,
    /// To whom.
    pub recipient: String,
    /// What a mail is about, or what a webhook is told of.
    pub subject: String,
    /// How far it has got; see [`DeliveryStatus`].
    pub status: String,
    /// How many attempts were begun.
    pub attempts: i64,
    /// By which the work is tracked that it belongs to.
    pub tracking_id: Option<String>,
    /// What was last said of it.
    pub detail: String,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// When it last changed.
    pub changed_at: Timestamp,
    /// Where in the log it was asked for.
    pub position: Position,
}

/// A query for rows that meet these conditions and the others.
macro_rules! select {
    ($conditions:literal) => {
        concat!(
            "SELECT operation_id, kind, recipient, subject, status, attempts, tracking_id, detail, requested_at,
                    changed_at, position
               FROM acme_notifications_deliveries
              WHERE position < $1 AND ($2 IS NULL OR status = $2) AND ($3 IS NULL OR requested_at >= $3)
                AND ($4 IS NULL OR requested_at < $4) ",
            $conditions,
            " ORDER BY position DESC LIMIT $5"
        )
    };
}

/// What operators read.
#[derive(Clone, Debug)]
pub struct DeliveryLog {
    store: Store,
}

impl DeliveryLog {
    /// The log of deliveries that is kept beside this log.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Deliveries, the newest first, at most `limit`; to go on, name the position of the last one.
    pub async fn find(
        &self,
        filter: &DeliveryFilter,
        after: Option<Position>,
        limit: u32,
    ) -> sqlx::Result<Vec<DeliveryRow>> {
        let database = self.store.database();
        let DeliveryFilter { to, tracking_id, status, since, before } = filter;
        let (to, tracking_id) = (to.as_deref().map(key_of), tracking_id.clone());
        let place = after.map_or(i64::MAX, |position| position.0);
        let (status, limit) = (status.map(DeliveryStatus::word), i64::from(limit));
        let (since, before) = (*since, *before);
        match (to, tracking_id) {
            (None, None) => database.fetch_all(select!(""), (place, status, since, before, limit)).await,
            (Some(to), None) => {
                let sql = select!("AND recipient_key = $6");
                database.fetch_all(sql, (place, status, since, before, limit, to)).await
            }
            (None, Some(id)) => {
                let sql = select!("AND tracking_id = $6");
                database.fetch_all(sql, (place, status, since, before, limit, id)).await
            }
            (Some(to), Some(id)) => {
                let sql = select!("AND recipient_key = $6 AND tracking_id = $7");
                database.fetch_all(sql, (place, status, since, before, limit, to, id)).await
            }
        }
    }
}
