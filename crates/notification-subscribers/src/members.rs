//! Channels as people list them, and who has been a member from when to when.
//!
//! Nothing is decided by these tables: the fan-out asks the channel's stream.

use async_trait::async_trait;
use store::{DomainEvent, Event, Position, Store, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber};

use crate::events::{
    ChannelWasAdded, ChannelWasArchived, UserWasSubscribedToChannel, UserWasUnsubscribedFromChannel,
};

/// Keeps the lists of channels and members.
#[derive(Clone, Copy, Debug)]
pub struct ChannelMembersProjector;

#[async_trait]
impl Subscriber for ChannelMembersProjector {
    fn definition(&self) -> Definition {
        Definition::projector("channel_members_1")
            .known_as("acme.notifications:channel-members")
            .on([
                ChannelWasAdded::TYPE,
                UserWasSubscribedToChannel::TYPE,
                UserWasUnsubscribedFromChannel::TYPE,
                ChannelWasArchived::TYPE,
            ])
            .with_poison(Poison::park())
            .with_table("channels", "acme_notifications_channels")
            .with_table("members", "acme_notifications_channel_members")
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("channels", CREATE_CHANNELS, ()).await?;
        context.execute("members", CREATE_MEMBERS, ()).await?;
        context.execute("members", INDEX_MEMBERS, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let changes = Changes::of(events)?;
        context.execute_many("channels", ADD, changes.added).await?;
        context.execute_many("channels", ARCHIVE, changes.archived).await?;
        // Who has joined and left within these events is written as both, in this order.
        context.execute_many("members", JOIN, changes.joined).await?;
        context.execute_many("members", LEAVE, changes.left).await?;
        Ok(())
    }
}

/// What a page of events comes to.
#[derive(Default)]
struct Changes {
    added: Vec<(String, String, Position, Timestamp)>,
    archived: Vec<(String, Timestamp)>,
    joined: Vec<(String, String, Position, Timestamp)>,
    left: Vec<(String, String, Position, Timestamp)>,
}

impl Changes {
    fn of(events: &[Event]) -> Result<Self, BoxError> {
        let mut changes = Self::default();
        for event in events {
            let (position, at) = (event.position, event.recorded_at);
            if let Some(added) = event.decode::<ChannelWasAdded>() {
                let ChannelWasAdded { channel_id, label } = added?;
                changes.added.push((channel_id, label, position, at));
            } else if let Some(joined) = event.decode::<UserWasSubscribedToChannel>() {
                let UserWasSubscribedToChannel { user_id, channel_id } = joined?;
                changes.joined.push((channel_id, user_id, position, at));
            } else if let Some(left) = event.decode::<UserWasUnsubscribedFromChannel>() {
                let UserWasUnsubscribedFromChannel { user_id, channel_id } = left?;
                changes.left.push((channel_id, user_id, position, at));
            } else if let Some(archived) = event.decode::<ChannelWasArchived>() {
                changes.archived.push((archived?.channel_id, at));
            }
        }
        Ok(changes)
    }
}

const CREATE_CHANNELS: &str = "CREATE TABLE {t} (
    channel_id TEXT NOT NULL PRIMARY KEY, label TEXT NOT NULL, position BIGINT NOT NULL,
    added_at TIMESTAMPTZ NOT NULL, archived_at TIMESTAMPTZ)";
const ADD: &str = "INSERT INTO {t} (channel_id, label, position, added_at) VALUES {rows}
    ON CONFLICT (channel_id) DO NOTHING";
const ARCHIVE: &str = "UPDATE {t} SET archived_at = gone.column2
    FROM (VALUES {rows}) AS gone
    WHERE channel_id = gone.column1 AND archived_at IS NULL";
/// A user who comes back has another row, from another position on.
const CREATE_MEMBERS: &str = "CREATE TABLE {t} (
    channel_id TEXT NOT NULL, user_id TEXT NOT NULL, position BIGINT NOT NULL, since TIMESTAMPTZ NOT NULL,
    until_position BIGINT, until TIMESTAMPTZ,
    PRIMARY KEY (channel_id, user_id, position),
    CHECK ((until_position IS NULL) = (until IS NULL)))";
const INDEX_MEMBERS: &str = "CREATE INDEX {t}_by_position ON {t} (channel_id, position)";
const JOIN: &str = "INSERT INTO {t} (channel_id, user_id, position, since) VALUES {rows}
    ON CONFLICT (channel_id, user_id, position) DO NOTHING";
/// Ends the membership that had begun before. Where somebody leaves twice on one page, the earlier end is that of the
/// earlier membership.
const LEAVE: &str = "UPDATE {t} SET until_position = gone.until_position, until = gone.until
    FROM (SELECT column1 AS channel_id, column2 AS user_id, column3 AS until_position, column4 AS until
            FROM (VALUES {rows}) AS given) AS gone
    WHERE {t}.channel_id = gone.channel_id AND {t}.user_id = gone.user_id
      AND {t}.until IS NULL AND {t}.position < gone.until_position
      AND NOT EXISTS (SELECT 1 FROM {t} AS later
                       WHERE later.channel_id = gone.channel_id AND later.user_id = gone.user_id
                         AND later.position > {t}.position AND later.position < gone.until_position)";

/// What people read of channels.
#[derive(Clone, Debug)]
pub struct ChannelLists {
    store: Store,
}

/// A channel in the list.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ListedChannel {
    /// Its id.
    pub channel_id: String,
    /// What people call it.
    pub label: String,
    /// How many users are subscribed.
    pub members: i64,
    /// When it was added.
    pub added_at: Timestamp,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
    /// The event that added it: where the next page begins.
    pub position: Position,
}

/// A member of a channel.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ChannelMember {
    /// The user.
    pub user_id: String,
    /// From when on.
    pub since: Timestamp,
    /// Until when, for who has left.
    pub until: Option<Timestamp>,
    /// The event that made the user a member: where the next page begins.
    pub position: Position,
}

impl ChannelLists {
    /// The lists that are kept beside this log.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The channels in the order in which they were added, at most `limit`, after a position.
    pub async fn channels(&self, after: Position, limit: i64) -> sqlx::Result<Vec<ListedChannel>> {
        let sql = "SELECT channel_id, label, added_at, archived_at, position,
                          (SELECT COUNT(*) FROM acme_notifications_channel_members AS member
                            WHERE member.channel_id = channel.channel_id AND member.until IS NULL) AS members
                     FROM acme_notifications_channels AS channel
                    WHERE position > $1
                    ORDER BY position
                    LIMIT $2";
        self.store.database().fetch_all(sql, (after, limit)).await
    }

    /// The members of a channel in the order in which they have come, with those who have left if they are wanted; at
    /// most `limit`, after a position.
    pub async fn members(
        &self,
        channel_id: &str,
        with_former: bool,
        after: Position,
        limit: i64,
    ) -> sqlx::Result<Vec<ChannelMember>> {
        let sql = "SELECT user_id, since, until, position
                     FROM acme_notifications_channel_members
                    WHERE channel_id = $1 AND position > $2 AND (until IS NULL OR $3)
                    ORDER BY position
                    LIMIT $4";
        self.store.database().fetch_all(sql, (channel_id, after, with_former, limit)).await
    }
}
