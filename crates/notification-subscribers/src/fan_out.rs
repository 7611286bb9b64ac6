//! The fan-out: a notification of a channel becomes one of each user who was subscribed to it at that moment.
//!
//! The handler asks the channel's own stream who was subscribed as of the event, notes them in rows of 500, and sets a
//! timer that is due at once. Each firing turns some rows into events and sets the timer again until none is left, so
//! that no transaction is large, and whatever is cut off goes on where it was. Channels take turns, row by row.

use std::collections::HashMap;

use aggregate::AsOf;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Event, ExpectedVersion, Json, Sql, StreamName, Version};
use subscription_engine::{BoxError, Context, Definition, Poison, Subscriber, Timer};
use uuid::Uuid;

use crate::channel::{ChannelState, channels};
use crate::events::{ChannelWasNotified, UserWasNotified};
use crate::ids::UserId;

/// So many users stand in a row, and fewer than twice as many are notified in one transaction: a direct notification
/// waits for one transaction at most.
const ROW: usize = 500;
/// So many users are found at most before they are noted: it bounds the memory that a page of events needs.
const FOUND: usize = 200_000;

/// Turns notifications of channels into notifications of users.
#[derive(Clone, Copy, Debug)]
pub struct ChannelFanOut;

/// What a timer has to go on with: the next row of an event.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Next {
    /// Where the event stands in its channel's stream.
    version: Version,
    /// The channel's stream.
    stream: StreamName,
    /// Whose turn it is: lower numbers come first.
    round: i64,
    /// The row.
    number: i64,
    /// How many users are left, the row's included.
    left: usize,
}

#[async_trait]
impl Subscriber for ChannelFanOut {
    fn definition(&self) -> Definition {
        Definition::processor("channel_fanout")
            .on([ChannelWasNotified::TYPE])
            // An event that cannot be read holds up its channel, and no other one.
            .with_poison(Poison::park())
            .with_table("pending", "fan_out_pending")
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("pending", CREATE, ()).await?;
        context.execute("pending", INDEX, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let repository = channels(context.store().clone());
        // Events of one channel come one after the other: its past is read once.
        let mut known: HashMap<&StreamName, AsOf<ChannelState>> = HashMap::new();
        let (mut found, mut users) = (Vec::new(), 0);
        for event in events {
            let Some(notified) = event.decode::<ChannelWasNotified>() else { continue };
            notified?;
            let earlier = known.remove(&event.stream);
            let channel = repository.as_of(context, &event.stream, event.version, earlier).await?;
            let recipients = Recipients::of(&channel.state, event)?;
            known.insert(&event.stream, channel);
            users += recipients.count;
            found.push(recipients);
            // Reading first and writing then keeps SQLite's write lock short.
            if users >= FOUND {
                note(std::mem::take(&mut found), context).await?;
                users = 0;
            }
        }
        note(found, context).await
    }

    async fn on_timer(&self, timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
        let mut due = Vec::with_capacity(timers.len());
        for timer in timers {
            due.push((timer.payload.to::<Next>()?, timer));
        }
        due.sort_by_key(|(next, timer)| (next.round, timer.cause_position));
        let mut notified = 0;
        for (mut next, timer) in due {
            let row = next.left.min(ROW);
            // Small rows share a transaction; what is left has its turn in the next one.
            if notified < ROW {
                notified += row;
                notify(timer.cause_id, &next, context).await?;
                next = Next { round: next.round + 1, number: next.number + 1, left: next.left - row, ..next };
            }
            if next.left > 0 {
                let mut cause = context.because_of_timer(timer);
                cause.set_timer(timer.key.clone(), timer.due, Json::of(&next)?)?;
            }
        }
        Ok(())
    }
}

/// Who is to be notified because of an event.
struct Recipients<'e> {
    event: &'e Event,
    count: usize,
    /// Their ids, as the table has them.
    rows: Vec<String>,
}

impl<'e> Recipients<'e> {
    fn of(channel: &ChannelState, event: &'e Event) -> Result<Self, BoxError> {
        // What somebody appended by hand may name who can have no stream.
        let is_user = |id: &&String| {
            let is_user = UserId::new(id.as_str()).is_ok();
            if !is_user {
                tracing::warn!("a member of {} is left out: {id:?} is no user id", event.stream);
            }
            is_user
        };
        let users: Vec<&String> = channel.subscribers().iter().filter(is_user).collect();
        let rows = users.chunks(ROW).map(serde_json::to_string).collect::<Result<_, _>>()?;
        Ok(Self { event, count: users.len(), rows })
    }
}

/// Notes who is to be notified. The first row has its turn in the round that has begun, so that whoever comes later waits
/// for one row of each who was first, and for no more.
async fn note(found: Vec<Recipients<'_>>, context: &mut Context<'_>) -> Result<(), BoxError> {
    let found: Vec<Recipients<'_>> = found.into_iter().filter(|recipients| recipients.count > 0).collect();
    if found.is_empty() {
        return Ok(());
    }
    let first = Sql::named("SELECT MIN(round) FROM {t}", &context.table("pending")?);
    let begun: Option<(Option<i64>,)> = context.tx().await?.fetch_optional(first, ()).await?;
    let round = begun.and_then(|begun| begun.0).unwrap_or(0);
    let mut rows = Vec::new();
    for Recipients { event, count: left, rows: users } in found {
        for (number, users) in (0_i64..).zip(users) {
            rows.push((event.stored_id(), number, round + number, users));
        }
        let next = Next { stream: event.stream.clone(), version: event.version, round, number: 0, left };
        // An instant that has passed: at once.
        let key = format!("fan-out:{}", event.stored_id());
        context.because_of(event).set_timer(key, event.recorded_at, Json::of(&next)?)?;
    }
    context.execute_many("pending", INSERT, rows).await?;
    Ok(())
}

/// Notifies the users of one row. Ids are derived from the channel's event, so that whatever is done again is the same.
async fn notify(event_id: Uuid, next: &Next, context: &mut Context<'_>) -> Result<(), BoxError> {
    let table = context.table("pending")?;
    let sql = Sql::named("SELECT user_ids FROM {t} WHERE event_id = $1 AND number = $2", &table);
    let row: Option<(String,)> = context.tx().await?.fetch_optional(sql, (event_id, next.number)).await?;
    let missing = || format!("row {} of event {event_id} is not in {}", next.number, table.as_str());
    let users: Vec<String> = serde_json::from_str(&row.ok_or_else(missing)?.0)?;
    let page = context.read_stream(&next.stream, next.version.0, 1).await?;
    let event = page.events.first().filter(|event| event.stored_id() == event_id);
    let event = event.ok_or_else(|| format!("{} has no event {event_id} any more", next.stream))?;
    let Some(notified) = event.decode::<ChannelWasNotified>() else {
        return Err(format!("event {event_id} is no notification of a channel").into());
    };
    let ChannelWasNotified { notification_id, message, timestamp, .. } = notified?;
    let mut cause = context.because_of(event);
    for user_id in users {
        let stream = UserId::new(&user_id)?.stream();
        let (notification_id, message) = (notification_id.clone(), message.clone());
        let notified = UserWasNotified { user_id, notification_id, message, timestamp };
        cause.append_event(&stream, ExpectedVersion::Any, &notified)?;
    }
    context.execute("pending", DELETE, (event_id, next.number)).await?;
    Ok(())
}

const CREATE: &str = "CREATE TABLE {t} (
    event_id UUID NOT NULL, number BIGINT NOT NULL, round BIGINT NOT NULL, user_ids TEXT NOT NULL,
    PRIMARY KEY (event_id, number))";
const INDEX: &str = "CREATE INDEX {t}_round ON {t} (round)";
/// What is there already is of the same event.
const INSERT: &str = "INSERT INTO {t} (event_id, number, round, user_ids) VALUES {rows}
    ON CONFLICT (event_id, number) DO NOTHING";
const DELETE: &str = "DELETE FROM {t} WHERE event_id = $1 AND number = $2";
