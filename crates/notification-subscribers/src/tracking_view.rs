//! `tracking_view_1`: for each notification that a client asked for, ready JSON that says how far it is.
//!
//! The JSON is served as it stands; the position beside it changes whenever it does.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Event, Json, Position, Sql, Store, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber};
use uuid::Uuid;

use crate::notification::{
    AudienceOptedOutOfAllChannelsEvent, ChannelOutcome, FailedNotificationSentToInternalTeamEvent,
    FailedToSendNotificationEvent, FailureOutcome, PreparedToSendEvent, RequestedNotificationToBeSentEvent,
    SkippedChannel, SucceededInSendingNotificationEvent,
};
use crate::operations::{
    FailedToSendEmailEvent, FailedToSendSlackMessageEvent, SucceededInSendingEmailEvent,
    SucceededInSendingSlackMessageEvent, end_told_by,
};
use crate::recipient::DeliveryChannel;

/// The table as the database calls it.
const TABLE: &str = "acme_notifications_tracking";
const CREATE: &str = "CREATE TABLE {t} (
    tracking_id  TEXT PRIMARY KEY,
    view         TEXT NOT NULL,
    position     BIGINT NOT NULL CHECK (position > 0))";
const READ: &str = "SELECT view FROM {t} WHERE tracking_id = $1";
const WRITE: &str = "INSERT INTO {t} (tracking_id, view, position) VALUES {rows}
    ON CONFLICT (tracking_id) DO UPDATE SET view = excluded.view, position = excluded.position";

/// How far a notification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackingStatus {
    /// It is being prepared.
    Requested,
    /// Messages are in their queues.
    Sending,
    /// All were sent.
    Sent,
    /// Nothing was sent: its audience wants none of it.
    OptedOut,
    /// Not all was sent.
    Failed,
}

/// How far a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageStatus {
    /// In its queue.
    Queued,
    /// Sent.
    Sent,
    /// Not sent, and not tried any more.
    Failed,
}

/// A message of a notification, or to the team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackedMessage {
    /// By which channel.
    pub channel: DeliveryChannel,
    /// The operation; none if it never came to that.
    pub operation_id: Option<Uuid>,
    /// Where it goes.
    pub to: Option<String>,
    /// How far it is.
    pub status: MessageStatus,
    /// Why it was not sent.
    pub reason: Option<String>,
}

/// What is known of a notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackingView {
    /// By which it is tracked.
    pub tracking_id: Uuid,
    /// To whom it goes.
    pub entity_id: String,
    /// What it is about.
    pub subject: String,
    /// How far it is.
    pub status: TrackingStatus,
    /// When it was taken up.
    pub requested_at: Timestamp,
    /// When something happened last.
    pub updated_at: Timestamp,
    /// Its messages.
    pub channels: Vec<TrackedMessage>,
    /// The channels that are not used.
    pub skipped: Vec<SkippedChannel>,
    /// How it failed.
    pub outcome: Option<FailureOutcome>,
    /// The mail to the team that looks after failures.
    pub team: Option<TrackedMessage>,
}

impl TrackingView {
    fn begun(requested: RequestedNotificationToBeSentEvent, at: Timestamp) -> Self {
        Self {
            tracking_id: requested.tracking_id,
            entity_id: requested.entity_id,
            subject: requested.subject,
            status: TrackingStatus::Requested,
            requested_at: at,
            updated_at: at,
            channels: Vec::new(),
            skipped: Vec::new(),
            outcome: None,
            team: None,
        }
    }

    /// Takes a message to its end; says whether it is one of these.
    fn message_ended(&mut self, operation_id: Uuid, failure: Option<String>) -> bool {
        let mut messages = self.channels.iter_mut().chain(&mut self.team);
        let Some(message) = messages.find(|message| message.operation_id == Some(operation_id)) else {
            return false;
        };
        message.status = if failure.is_none() { MessageStatus::Sent } else { MessageStatus::Failed };
        message.reason = failure;
        true
    }

    /// What came of the channels, as it was decided.
    fn channels_ended(&mut self, per_channel: Vec<ChannelOutcome>) {
        for outcome in per_channel {
            let failure = (!outcome.succeeded).then(|| outcome.reason.unwrap_or_default());
            if let Some(operation_id) = outcome.operation_id {
                self.message_ended(operation_id, failure);
            } else {
                self.channels.push(TrackedMessage {
                    channel: outcome.channel,
                    operation_id: None,
                    to: None,
                    status: MessageStatus::Failed,
                    reason: failure,
                });
            }
        }
    }
}

/// What happens to a view.
enum Change {
    Begun(RequestedNotificationToBeSentEvent),
    Prepared(PreparedToSendEvent),
    OptedOut(AudienceOptedOutOfAllChannelsEvent),
    Succeeded(SucceededInSendingNotificationEvent),
    Failed(FailedToSendNotificationEvent),
    TeamTold(FailedNotificationSentToInternalTeamEvent),
    MessageEnded { operation_id: Uuid, failure: Option<String> },
}

impl Change {
    /// What an event changes, and in which view; none if it belongs to no notification.
    fn told_by(event: &Event) -> Result<Option<(Uuid, Self)>, BoxError> {
        macro_rules! notification_events {
            ($($type:ident => $change:ident),+) => {
                $(if let Some(decoded) = event.decode::<$type>() {
                    let decoded = decoded?;
                    return Ok(Some((decoded.tracking_id, Self::$change(decoded))));
                })+
            };
        }
        notification_events!(
            RequestedNotificationToBeSentEvent => Begun,
            PreparedToSendEvent => Prepared,
            AudienceOptedOutOfAllChannelsEvent => OptedOut,
            SucceededInSendingNotificationEvent => Succeeded,
            FailedToSendNotificationEvent => Failed,
            FailedNotificationSentToInternalTeamEvent => TeamTold
        );
        // Reminders are mails as well, and belong to no notification that is tracked.
        let tracking_id = event.correlation_id.as_deref().and_then(|id| id.parse::<Uuid>().ok());
        let Some(tracking_id) = tracking_id else { return Ok(None) };
        let Some((operation_id, failure)) = end_told_by(event)? else { return Ok(None) };
        Ok(Some((tracking_id, Self::MessageEnded { operation_id, failure })))
    }

    /// The view afterwards; none if it is as it was.
    fn apply(self, view: Option<TrackingView>, at: Timestamp) -> Option<TrackingView> {
        let mut view = match (view, self) {
            (None, Self::Begun(requested)) => return Some(TrackingView::begun(requested, at)),
            (Some(view), change) => change.applied_to(view)?,
            // From before this projection knew of it, or nobody's.
            (None, _) => return None,
        };
        view.updated_at = at;
        Some(view)
    }

    fn applied_to(self, mut view: TrackingView) -> Option<TrackingView> {
        match self {
            Self::Begun(_) => return None,
            Self::Prepared(event) => {
                view.status = TrackingStatus::Sending;
                view.skipped = event.skipped;
                view.channels = event
                    .channels
                    .into_iter()
                    .map(|prepared| TrackedMessage {
                        channel: prepared.channel,
                        operation_id: Some(prepared.operation_id),
                        to: Some(prepared.to),
                        status: MessageStatus::Queued,
                        reason: None,
                    })
                    .collect();
            }
            Self::OptedOut(event) => {
                view.status = TrackingStatus::OptedOut;
                view.skipped = event.skipped;
            }
            Self::Succeeded(event) => {
                view.status = TrackingStatus::Sent;
                view.channels_ended(event.per_channel);
            }
            Self::Failed(event) => {
                view.status = TrackingStatus::Failed;
                view.outcome = Some(event.outcome);
                view.channels_ended(event.per_channel);
            }
            Self::TeamTold(event) => {
                view.team = Some(TrackedMessage {
                    channel: DeliveryChannel::Email,
                    operation_id: Some(event.operation_id),
                    to: Some(event.to),
                    status: MessageStatus::Queued,
                    reason: None,
                });
            }
            Self::MessageEnded { operation_id, failure } => {
                if !view.message_ended(operation_id, failure) {
                    return None;
                }
            }
        }
        Some(view)
    }
}

/// Keeps the views up to date.
#[derive(Clone, Copy, Debug)]
pub struct TrackingProjector;

#[async_trait]
impl Subscriber for TrackingProjector {
    fn definition(&self) -> Definition {
        Definition::projector("tracking_view_1")
            .on([
                RequestedNotificationToBeSentEvent::TYPE,
                PreparedToSendEvent::TYPE,
                AudienceOptedOutOfAllChannelsEvent::TYPE,
                SucceededInSendingNotificationEvent::TYPE,
                FailedToSendNotificationEvent::TYPE,
                FailedNotificationSentToInternalTeamEvent::TYPE,
                SucceededInSendingEmailEvent::TYPE,
                FailedToSendEmailEvent::TYPE,
                SucceededInSendingSlackMessageEvent::TYPE,
                FailedToSendSlackMessageEvent::TYPE,
            ])
            .with_poison(Poison::park())
            .with_table("tracking", TABLE)
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("tracking", CREATE, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let read = Sql::named(READ, &context.table("tracking")?);
        let mut views: BTreeMap<Uuid, (Option<TrackingView>, Option<Position>)> = BTreeMap::new();
        for event in events {
            let Some((tracking_id, change)) = Change::told_by(event)? else { continue };
            let kept = match views.entry(tracking_id) {
                Entry::Occupied(kept) => kept.into_mut(),
                Entry::Vacant(place) => {
                    // One by one: a page has few notifications, and a key is found at once.
                    let key = (tracking_id.to_string(),);
                    let tx = context.tx().await?;
                    let row: Option<(String,)> = tx.fetch_optional(read.clone(), key).await?;
                    let view = row.map(|row| serde_json::from_str(&row.0)).transpose()?;
                    place.insert((view, None))
                }
            };
            if let Some(view) = change.apply(kept.0.clone(), event.recorded_at) {
                *kept = (Some(view), Some(event.position));
            }
        }
        let mut rows = Vec::new();
        for (tracking_id, changed) in views {
            if let (Some(view), Some(position)) = changed {
                rows.push((tracking_id.to_string(), serde_json::to_string(&view)?, position));
            }
        }
        context.execute_many("tracking", WRITE, rows).await?;
        Ok(())
    }
}

/// What clients read.
#[derive(Clone, Debug)]
pub struct Tracking {
    store: Store,
}

/// A view as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedJson {
    /// A [`TrackingView`] as JSON, byte for byte as it was written.
    pub json: Json,
    /// The event that changed it last.
    pub position: Position,
}

/// Why a view cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TrackingError {
    /// What is kept is no JSON.
    #[error("the view of {0} is no JSON; replay tracking_view_1")]
    BadRow(Uuid, #[source] store::InvalidJson),
    /// The database refused.
    #[error("could not read how far notifications are")]
    Database(#[from] sqlx::Error),
}

impl Tracking {
    /// The views that are kept beside this log.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// What is known of a notification; none as long as it is not taken up, or if there is none.
    pub async fn of(&self, tracking_id: Uuid) -> Result<Option<TrackedJson>, TrackingError> {
        let sql = "SELECT view, position FROM acme_notifications_tracking WHERE tracking_id = $1";
        let key = (tracking_id.to_string(),);
        let row: Option<(String, Position)> = self.store.database().fetch_optional(sql, key).await?;
        let Some((view, position)) = row else { return Ok(None) };
        let json = Json::parse(view).map_err(|error| TrackingError::BadRow(tracking_id, error))?;
        Ok(Some(TrackedJson { json, position }))
    }
}
