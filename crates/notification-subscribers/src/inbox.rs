//! The inbox: a row for each notification that a user has not acknowledged yet.

use std::collections::BTreeMap;

use async_trait::async_trait;
use store::{DomainEvent, Event, Store, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber};

use crate::events::{UserHasAcknowledgedNotification, UserWasNotified};

/// Keeps the inbox up to date.
#[derive(Clone, Copy, Debug)]
pub struct InboxProjector;

#[async_trait]
impl Subscriber for InboxProjector {
    fn definition(&self) -> Definition {
        Definition::projector("inbox_1")
            .known_as("acme.notifications:inbox")
            .on([UserWasNotified::TYPE, UserHasAcknowledgedNotification::TYPE])
            // An event that cannot be read holds up the inbox of its user, and nobody else's.
            .with_poison(Poison::park())
            .with_table("inbox", "acme_notifications_inbox")
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("inbox", CREATE, ()).await?;
        context.execute("inbox", INDEX, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let (mut pending, mut acknowledged) = (BTreeMap::new(), Vec::new());
        for event in events {
            if let Some(notified) = event.decode::<UserWasNotified>() {
                let UserWasNotified { user_id, notification_id, message, timestamp } = notified?;
                pending.insert((notification_id, user_id), (message, timestamp, event.position));
            } else if let Some(done) = event.decode::<UserHasAcknowledgedNotification>() {
                let done = done?;
                let key = (done.notification_id, done.user_id);
                pending.remove(&key);
                acknowledged.push(key);
            }
        }
        let row = |((id, user), (message, at, position))| (id, user, message, at, position);
        context.execute_many("inbox", INSERT, pending.into_iter().map(row).collect()).await?;
        context.execute_many("inbox", DELETE, acknowledged).await?;
        Ok(())
    }
}

const CREATE: &str = "CREATE TABLE {t} (
    notification_id TEXT NOT NULL, user_id TEXT NOT NULL, message TEXT NOT NULL, timestamp TIMESTAMPTZ NOT NULL,
    position BIGINT NOT NULL, PRIMARY KEY (notification_id, user_id))";
const INDEX: &str = "CREATE INDEX {t}_of ON {t} (user_id, timestamp, position)";
const INSERT: &str = "INSERT INTO {t} (notification_id, user_id, message, timestamp, position) VALUES {rows}
    ON CONFLICT (notification_id, user_id) DO NOTHING";
const DELETE: &str = "DELETE FROM {t} WHERE (notification_id, user_id) IN (VALUES {rows})";

/// What people read.
#[derive(Clone, Debug)]
pub struct Inbox {
    store: Store,
}

/// A notification that is pending.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct InboxItem {
    /// Its id.
    pub notification_id: String,
    /// Its text.
    pub message: String,
    /// When it was sent.
    pub timestamp: Timestamp,
}

impl Inbox {
    /// The inbox that is kept beside this log.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// How many notifications are pending for a user.
    pub async fn count(&self, user_id: &str) -> sqlx::Result<i64> {
        let sql = "SELECT COUNT(*) FROM acme_notifications_inbox WHERE user_id = $1";
        let row: Option<(i64,)> = self.store.database().fetch_optional(sql, (user_id,)).await?;
        Ok(row.map_or(0, |row| row.0))
    }

    /// The notifications that are pending for a user, oldest first, at most `limit`, without the first `skip`.
    pub async fn for_user(&self, user_id: &str, limit: i64, skip: i64) -> sqlx::Result<Vec<InboxItem>> {
        let sql = "SELECT notification_id, message, timestamp FROM acme_notifications_inbox
                    WHERE user_id = $1
                    ORDER BY timestamp, position
                    LIMIT $2 OFFSET $3";
        self.store.database().fetch_all(sql, (user_id, limit, skip)).await
    }

    /// Whether a notification is pending for a user, as far as the inbox has got (NEOS-45). Decisions are
    /// made on the user's stream instead: see [`crate::User`].
    pub async fn contains(&self, user_id: &str, notification_id: &str) -> sqlx::Result<bool> {
        let sql = "SELECT CAST(1 AS BIGINT) FROM acme_notifications_inbox
                    WHERE notification_id = $1 AND user_id = $2";
        let row: Option<(i64,)> =
            self.store.database().fetch_optional(sql, (notification_id, user_id)).await?;
        Ok(row.is_some())
    }
}
