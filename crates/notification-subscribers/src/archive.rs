//! The archive: every notification of every user, and when it was acknowledged. Nothing is ever taken out of it.
//!
//! It answers whether somebody had seen a notification before something else happened (NEOS-02): the events' places in
//! the log and the instants at which they were recorded stand in it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use store::{DomainEvent, Event, Position, Store, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber};

use crate::events::{UserHasAcknowledgedNotification, UserWasNotified};

/// Keeps the archive.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveProjector;

#[async_trait]
impl Subscriber for ArchiveProjector {
    fn definition(&self) -> Definition {
        Definition::projector("archive_1")
            .known_as("acme.notifications:archive")
            .on([UserWasNotified::TYPE, UserHasAcknowledgedNotification::TYPE])
            // As for the inbox: one user's broken event is nobody else's matter.
            .with_poison(Poison::park())
            .with_table("archive", "acme_notifications_archive")
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("archive", CREATE, ()).await?;
        context.execute("archive", INDEX, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let (mut sent, mut acknowledged) = (BTreeMap::new(), BTreeMap::new());
        for event in events {
            if let Some(notified) = event.decode::<UserWasNotified>() {
                let UserWasNotified { user_id, notification_id, message, timestamp } = notified?;
                let cause = event.causation_id.map(|cause| cause.to_string());
                let values = (message, timestamp, event.position, event.recorded_at, cause);
                sent.entry((user_id, notification_id)).or_insert(values);
            } else if let Some(done) = event.decode::<UserHasAcknowledgedNotification>() {
                let done = done?;
                let key = (done.user_id, done.notification_id);
                acknowledged.entry(key).or_insert((event.position, event.recorded_at));
            }
        }
        let row = |((user, id), (message, timestamp, position, at, cause))| {
            (user, id, message, timestamp, position, at, cause)
        };
        context.execute_many("archive", INSERT, sent.into_iter().map(row).collect()).await?;
        let row = |((user, id), (position, at))| (user, id, position, at);
        context.execute_many("archive", ACKNOWLEDGE, acknowledged.into_iter().map(row).collect()).await?;
        Ok(())
    }
}

const CREATE: &str = "CREATE TABLE {t} (
    user_id TEXT NOT NULL, notification_id TEXT NOT NULL, message TEXT NOT NULL, timestamp TIMESTAMPTZ NOT NULL,
    notified_position BIGINT NOT NULL, notified_at TIMESTAMPTZ NOT NULL, causation_id TEXT,
    acknowledged_position BIGINT, acknowledged_at TIMESTAMPTZ,
    PRIMARY KEY (user_id, notification_id),
    CHECK ((acknowledged_position IS NULL) = (acknowledged_at IS NULL)))";
const INDEX: &str = "CREATE INDEX {t}_of ON {t} (user_id, notified_position)";
const INSERT: &str =
    "INSERT INTO {t} (user_id, notification_id, message, timestamp, notified_position, notified_at,
                                       causation_id) VALUES {rows}
    ON CONFLICT (user_id, notification_id) DO NOTHING";
/// `columnN` is what both databases call the columns of a list of values.
const ACKNOWLEDGE: &str = "UPDATE {t}
    SET acknowledged_position = done.column3, acknowledged_at = done.column4
    FROM (VALUES {rows}) AS done
    WHERE user_id = done.column1 AND notification_id = done.column2 AND acknowledged_position IS NULL";

/// What people look up.
#[derive(Clone, Debug)]
pub struct Archive {
    store: Store,
}

/// A notification of a user, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ArchivedNotification {
    /// Its id.
    pub notification_id: String,
    /// Its text.
    pub message: String,
    /// When it was sent.
    pub timestamp: Timestamp,
    /// The event by which the user was notified.
    pub notified_position: Position,
    /// When that was recorded.
    pub notified_at: Timestamp,
    /// The event of the channel through which it came; none if it was for this user alone.
    pub causation_id: Option<String>,
    /// The event by which the user has acknowledged it.
    pub acknowledged_position: Option<Position>,
    /// When that was recorded.
    pub acknowledged_at: Option<Timestamp>,
}

impl ArchivedNotification {
    /// As it was just before an instant; none if the user had not been notified by then.
    pub fn before(self, instant: Timestamp) -> Option<Self> {
        let is_acknowledged = self.acknowledged_at.is_some_and(|at| at < instant);
        let (acknowledged_position, acknowledged_at) = match is_acknowledged {
            true => (self.acknowledged_position, self.acknowledged_at),
            false => (None, None),
        };
        (self.notified_at < instant).then_some(Self { acknowledged_position, acknowledged_at, ..self })
    }
}

/// The columns of an [`ArchivedNotification`].
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT notification_id, message, timestamp, notified_position, notified_at, causation_id,
                    acknowledged_position, acknowledged_at
               FROM acme_notifications_archive ",
            $rest
        )
    };
}

impl Archive {
    /// The archive that is kept beside this log.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The notifications of a user in the order of the log, at most `limit`, after a position.
    pub async fn of_user(
        &self,
        user_id: &str,
        after: Position,
        limit: i64,
    ) -> sqlx::Result<Vec<ArchivedNotification>> {
        let sql = select!(
            "WHERE user_id = $1 AND notified_position > $2
             ORDER BY notified_position
             LIMIT $3"
        );
        self.store.database().fetch_all(sql, (user_id, after, limit)).await
    }

    /// One notification of a user.
    pub async fn find(
        &self,
        user_id: &str,
        notification_id: &str,
    ) -> sqlx::Result<Option<ArchivedNotification>> {
        let sql = select!("WHERE user_id = $1 AND notification_id = $2");
        self.store.database().fetch_optional(sql, (user_id, notification_id)).await
    }
}
