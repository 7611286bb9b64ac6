//! A notification of a channel with 100,000 users: how long it takes until everybody has it, how much memory that needs,
//! and how long somebody who is notified directly waits meanwhile.
//!
//! By hand means: the same events, as rows of a table with the same columns and the same two unique keys, 500 in a
//! statement and a transaction. Herald besides asks who was subscribed, keeps what is left to do, draws positions
//! without holes, keeps the version of each stream, and lets others append in between.

use std::sync::Arc;
use std::time::Duration;

use aggregate::Provenance;
use notification_subscribers::{
    ChannelCommand, ChannelFanOut, ChannelId, Now, UserCommand, UserId, UserWasNotified,
    UserWasSubscribedToChannel, channels, users,
};
use store::{DomainEvent, ExpectedVersion, NewEvent, Store, Timestamp};
use subscription_engine::{Criteria, Engine, Registry, Subscriber, Worker};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::BoxError;
use crate::databases::Bench;
use crate::memory::{peak_mebibytes, reset_peak};
use crate::rounds::thousands;

/// What is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Users of the channel.
    #[arg(long, default_value_t = 100_000)]
    users: u32,
    /// How often; each time on a new log.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// Rows of one transaction by hand; as many as the fan-out takes.
const ROW: u32 = 500;
/// Direct notifications that are sent while nothing else happens.
const ALONE: usize = 50;
const CHANNEL: &str = "everybody";
const MESSAGE: &str = "The quick brown fox jumps over the lazy dog";

/// Measures both databases and prints the table.
pub(crate) async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    println!(
        "| database | users | by hand, s | Herald, s | Herald ÷ by hand | direct, alone, median ms | direct, \
         meanwhile, median ms | at most ms | memory, MiB more |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for bench in Bench::both().await? {
        for _ in 0..arguments.rounds {
            let round = bench.another().await?;
            on(arguments.users, &round).await?;
            round.clean_up().await?;
        }
        bench.clean_up().await?;
    }
    Ok(())
}

async fn on(count: u32, bench: &Bench) -> Result<(), BoxError> {
    let store = bench.store().await?;
    let registry = Registry::new([Arc::new(ChannelFanOut) as Arc<dyn Subscriber>])?;
    let engine = Engine::new(store.clone(), registry, "bench");
    engine.catch_up(&Criteria::all()).await?;
    let by_hand = by_hand(&store, count).await?;
    subscribe(&store, count).await?;
    engine.catch_up(&Criteria::all()).await?;
    let alone = direct(&store, |sent| sent < ALONE).await?;
    let before = reset_peak()?;
    let (herald, meanwhile) = fan_out(&engine, count).await?;
    let memory = peak_mebibytes()? - before;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!(
        "| {} | {} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} | {memory:.0} |",
        bench.name(),
        thousands(f64::from(count)),
        by_hand.as_secs_f64(),
        herald.as_secs_f64(),
        herald.as_secs_f64() / by_hand.as_secs_f64(),
        ms(median(&alone)),
        ms(median(&meanwhile)),
        ms(meanwhile.last().copied().unwrap_or_default()),
    );
    store.close().await;
    Ok(())
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// A channel with so many users.
async fn subscribe(store: &Store, count: u32) -> Result<(), BoxError> {
    let id = ChannelId::new(CHANNEL)?;
    let (stream, now) = (id.stream(), Now::new(id, store.clock().clone()));
    let channels = channels(store.clone());
    let add = ChannelCommand::Add { label: "Everybody".to_owned() };
    channels.execute_with(&stream, &add, &now, &Provenance::default()).await?;
    for first in (0..count).step_by(1_000) {
        let event = |number: u32| {
            let (user_id, channel_id) = (format!("user-{number}"), CHANNEL.to_owned());
            NewEvent::of(&UserWasSubscribedToChannel { user_id, channel_id })
        };
        let events = (first..count.min(first + 1_000)).map(event).collect::<Result<_, _>>()?;
        store.append(&stream, ExpectedVersion::StreamExists, events).await?;
    }
    Ok(())
}

/// The same events as rows.
async fn by_hand(store: &Store, count: u32) -> Result<Duration, BoxError> {
    for sql in [
        "CREATE TABLE by_hand (
            position BIGINT NOT NULL PRIMARY KEY, stream TEXT NOT NULL, version BIGINT NOT NULL, type TEXT NOT NULL,
            payload TEXT NOT NULL, metadata TEXT NOT NULL, id UUID NOT NULL, correlation_id TEXT, causation_id UUID,
            recorded_at TIMESTAMPTZ NOT NULL)",
        "CREATE UNIQUE INDEX by_hand_stream ON by_hand (stream, version)",
        "CREATE UNIQUE INDEX by_hand_id ON by_hand (id)",
    ] {
        store.database().execute(sql, ()).await?;
    }
    let (now, notification, cause) = (store.clock().now().await?, Uuid::new_v4(), Uuid::now_v7());
    let row = |number: u32| row(number, now, notification, cause);
    let start = Instant::now();
    for first in (0..count).step_by(ROW as usize) {
        let rows = (first..count.min(first + ROW)).map(row).collect::<Result<Vec<_>, BoxError>>()?;
        let mut tx = store.begin().await?;
        let sql =
            "INSERT INTO by_hand (position, stream, version, type, payload, metadata, id, correlation_id,
                                        causation_id, recorded_at) VALUES {rows}";
        tx.execute_many(sql, rows).await?;
        tx.commit().await?;
    }
    Ok(start.elapsed())
}

type Row = (i64, String, i64, &'static str, String, &'static str, Uuid, String, Uuid, Timestamp);

fn row(number: u32, now: Timestamp, notification: Uuid, cause: Uuid) -> Result<Row, BoxError> {
    let notified = UserWasNotified {
        user_id: format!("user-{number}"),
        notification_id: notification.to_string(),
        message: MESSAGE.to_owned(),
        timestamp: now,
    };
    let payload = serde_json::to_string(&notified)?;
    let (stream, id) = (format!("user-user-{number}"), Uuid::now_v7());
    let correlation = notification.to_string();
    Ok((number.into(), stream, 0, UserWasNotified::TYPE, payload, "{}", id, correlation, cause, now))
}

/// Notifies somebody directly, again and again; sorted times from the command to the answer.
async fn direct(store: &Store, goes_on: impl Fn(usize) -> bool) -> Result<Vec<Duration>, BoxError> {
    let users = users(store.clone());
    let mut took = Vec::new();
    while goes_on(took.len()) {
        let id = UserId::new(format!("direct-{}", Uuid::new_v4()))?;
        let (stream, now) = (id.stream(), Now::new(id, store.clock().clone()));
        let notification_id = Uuid::new_v4().to_string();
        let notify = UserCommand::Notify { notification_id, message: MESSAGE.to_owned() };
        let start = Instant::now();
        users.execute_with(&stream, &notify, &now, &Provenance::default()).await?;
        took.push(start.elapsed());
    }
    users.close().await;
    took.sort();
    Ok(took)
}

/// Notifies the channel; how long it took until everybody has it, and what direct notifications took meanwhile.
async fn fan_out(engine: &Engine, count: u32) -> Result<(Duration, Vec<Duration>), BoxError> {
    let store = engine.store();
    let id = ChannelId::new(CHANNEL)?;
    let (stream, now) = (id.stream(), Now::new(id, store.clock().clone()));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let (ready, mut is_ready) = watch::channel(false);
    let worker = Worker::new(engine.clone(), Criteria::all(), "bench");
    let worker = tokio::spawn(worker.run(stopped, move || {
        ready.send_replace(true);
    }));
    is_ready.wait_for(|ready| *ready).await?;
    let start = Instant::now();
    let notify =
        ChannelCommand::Notify { notification_id: Uuid::new_v4().to_string(), message: MESSAGE.to_owned() };
    channels(store.clone()).execute_with(&stream, &notify, &now, &Provenance::default()).await?;
    let (is_done, done) = watch::channel(false);
    let (all, meanwhile) = tokio::join!(
        async {
            let took = until_everybody_has_it(store, count, start).await;
            is_done.send_replace(true);
            took
        },
        direct(store, |_| !*done.borrow())
    );
    let _ = stop.send(());
    worker.await??;
    Ok((all?, meanwhile?))
}

async fn until_everybody_has_it(store: &Store, count: u32, start: Instant) -> Result<Duration, BoxError> {
    // The last one in the order in which they are notified.
    let last = (0..count).map(|number| format!("user-{number}")).max().unwrap_or_default();
    let stream = UserId::new(last)?.stream();
    let mut wake = store.wake();
    loop {
        wake.arm();
        if !store.read_stream(&stream, 0, 1).await?.events.is_empty() {
            return Ok(start.elapsed());
        }
        wake.wait(Duration::from_millis(100)).await;
    }
}
