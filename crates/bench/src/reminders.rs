//! 10,000 users who fall due in the same minute: one mail to each, and what that costs.
//!
//! The log's clock is set by hand. First all of them are notified and their reminders scheduled, then the hour is over.
//! By hand means: the events that the mails come to, appended a thousand at a time, with nothing read or decided.
//! The run fails if anybody gets no mail, or two.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use notification_subscribers::operations::{
    EMAIL_EVENTS, SendEmailOp, SucceededInSendingEmailEvent, stream_of,
};
use notification_subscribers::policy::{Policy, REMINDER_DUE_AFTER};
use notification_subscribers::streams::{RECIPIENTS, stream_of_user};
use notification_subscribers::{RecipientEmailWasSet, ReminderManager, UserId, UserWasNotified};
use store::{
    Append, DomainEvent, Event, ExpectedVersion, Filter, NewEvent, Position, Setup, Store, StreamName,
    TableName, Timestamp,
};
use subscription_engine::{
    Answer, BoxError as HandlerError, Context, Criteria, Definition, Delivery, Effect, Engine, Happened,
    NewEffect, Registry, Subscriber,
};
use tokio::time::Instant;

use crate::BoxError;
use crate::databases::{Bench, LOG, open};
use crate::rounds::thousands;

/// Appends of one transaction, by hand.
const PAGE: usize = 1_000;
/// When the log begins.
const BEGIN: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// How many.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Users who are due together
    #[arg(long, default_value_t = 10_000)]
    users: u32,
}

/// Measures both databases and prints the table; says whether everybody got one mail.
pub(crate) async fn measure(arguments: &Arguments) -> Result<bool, BoxError> {
    println!(
        "| database | users | scheduled, s | asked for, sent, written down, s | mails/s | the same events by hand, s |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let mut all_is_well = true;
    for bench in Bench::both().await? {
        all_is_well &= on(arguments.users, bench).await?;
    }
    Ok(all_is_well)
}

async fn on(users: u32, bench: Bench) -> Result<bool, BoxError> {
    let setup = Setup { view: TableName::new("events")?, test_clock: Some(BEGIN) };
    let (store, _) = open(&bench.url(LOG)).await?.set_up(&setup).await?;
    let sender = Arc::new(Sender::default());
    let subscribers: [Arc<dyn Subscriber>; 2] =
        [Arc::new(ReminderManager::new(Policy::default())), Arc::new(Postman)];
    let engine = Engine::new(store.clone(), Registry::new(subscribers)?, "bench")
        .with_deliveries([Arc::clone(&sender) as Arc<dyn Delivery>])?;
    engine.set_up(&Criteria::all(), false).await?;
    notify(&store, users).await?;

    let start = Instant::now();
    engine.catch_up(&Criteria::all()).await?;
    let scheduled = start.elapsed();
    let before = store.head().await?.position;
    store.clock().set(BEGIN.plus(REMINDER_DUE_AFTER + Duration::from_secs(60))).await?;
    let start = Instant::now();
    engine.catch_up(&Criteria::all()).await?;
    let sent = start.elapsed();
    let is_well = sender.judge(users);

    let by_hand = by_hand(&store, before).await?;
    println!(
        "| {} | {} | {:.2} | {:.2} | {} | {:.2} |",
        bench.name(),
        thousands(f64::from(users)),
        scheduled.as_secs_f64(),
        sent.as_secs_f64(),
        thousands(f64::from(users) / sent.as_secs_f64()),
        by_hand.as_secs_f64()
    );
    store.close().await;
    bench.clean_up().await?;
    Ok(is_well)
}

/// Everybody has an address and is sent a message, all within one minute.
async fn notify(store: &Store, users: u32) -> Result<(), BoxError> {
    let mut appends = Vec::new();
    for number in 0..users {
        let user_id = format!("user{number}");
        let address =
            RecipientEmailWasSet { user_id: user_id.clone(), address: format!("{user_id}@example.org") };
        let notified = UserWasNotified {
            user_id: user_id.clone(),
            notification_id: format!("n{number}"),
            message: "The backup is done.".to_owned(),
            timestamp: BEGIN.plus(Duration::from_millis(u64::from(number) % 60_000)),
        };
        for (stream, event) in [
            (stream_of_user(RECIPIENTS, &user_id), NewEvent::of(&address)?),
            (UserId::new(user_id.as_str())?.stream(), NewEvent::of(&notified)?),
        ] {
            appends.push(Append { stream, expected: ExpectedVersion::NoStream, events: vec![event] });
        }
    }
    append_in_pages(store, appends).await
}

async fn append_in_pages(store: &Store, mut appends: Vec<Append>) -> Result<(), BoxError> {
    while !appends.is_empty() {
        let page = appends.drain(..appends.len().min(PAGE)).collect();
        let mut tx = store.begin().await?;
        store.append_all(&mut tx, page).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Appends once more what came after this position, to streams of other names.
async fn by_hand(store: &Store, mut after: Position) -> Result<Duration, BoxError> {
    let mut appends: HashMap<StreamName, Append> = HashMap::new();
    loop {
        let page = store.read(&Filter::all(), after, PAGE).await?;
        for event in page.events {
            let stream = StreamName::new(format!("again-{}", event.stream))?;
            let events = vec![NewEvent {
                correlation_id: event.correlation_id,
                ..NewEvent::new(event.event_type, event.payload)
            }];
            let new =
                || Append { stream: stream.clone(), expected: ExpectedVersion::NoStream, events: Vec::new() };
            appends.entry(stream.clone()).or_insert_with(new).events.extend(events);
        }
        after = page.scanned_to;
        if page.is_end {
            break;
        }
    }
    let appends = appends.into_values().collect();
    let start = Instant::now();
    append_in_pages(store, appends).await?;
    Ok(start.elapsed())
}

/// Plans the sending of each mail.
struct Postman;

#[async_trait]
impl Subscriber for Postman {
    fn definition(&self) -> Definition {
        Definition::processor("postman").on([SendEmailOp::TYPE])
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), HandlerError> {
        for event in events {
            let to = event.payload.to::<SendEmailOp>()?.to;
            context.because_of(event).plan_effect(NewEffect::new("email", to, event.payload.as_str()))?;
        }
        Ok(())
    }
}

/// Takes every mail at once, and counts them by address.
#[derive(Default)]
struct Sender(Mutex<HashMap<String, usize>>);

impl Sender {
    /// Whether everybody got one mail.
    fn judge(&self, users: u32) -> bool {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = sent.values().filter(|count| **count != 1).count();
        let none = users as usize - sent.len().min(users as usize);
        if wrong + none > 0 {
            eprintln!("{none} users got no mail, {wrong} got more than one");
        }
        wrong + none == 0
    }
}

#[async_trait]
impl Delivery for Sender {
    fn kind(&self) -> &'static str {
        "email"
    }

    async fn send(&self, effect: &Effect) -> Answer {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sent.entry(effect.destination.clone()).or_default() += 1;
        Answer::Done { detail: "250 ok".to_owned() }
    }

    fn event(&self, effect: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
        let Happened::Done { detail } = happened else { return None };
        let operation: SendEmailOp = serde_json::from_str(&effect.body).ok()?;
        let operation_id = operation.operation_id;
        let sent = SucceededInSendingEmailEvent {
            operation_id,
            to: operation.to,
            message_id: format!("<{operation_id}@bench>"),
            response: detail.clone(),
        };
        Some((stream_of(EMAIL_EVENTS, operation_id), NewEvent::of(&sent).ok()?))
    }
}
