//! The subscriber that reaches beyond the log: for each event it plans an effect and sets a timer. The receiver of its
//! effects is a file, which survives whoever writes into it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use store::{Event, ExpectedVersion, Json, NewEvent, Store, StreamName};
use subscription_engine::{
    Answer, BoxError, Context, Definition, Delivery, Effect, Happened, InDoubt, NewEffect, RetryStrategy,
    Subscriber, Terms, Timer,
};
use uuid::Uuid;

use super::subscribers::{HAPPENED, Ours};

pub(super) const OUTSIDE: &str = "outside";
const KIND: &str = "fire";
const RANG: &str = "Fire.Rang";
const RANG_STREAM: &str = "rang-outside";
const SENT: &str = "Fire.Sent";
const SENT_STREAM: &str = "sent-outside";
/// One attempt may take so long; a run has no time for more.
const DEADLINE: Duration = Duration::from_secs(2);
/// Timers are due so many seconds after their event, or one less, or at once.
const SPREAD: i64 = 3;
/// The answer to the first attempt at one effect in so many is lost.
const LOST_ONCE_IN: i64 = 3;

/// Handles as the others do, and sets a timer and plans an effect besides.
pub(super) struct Outside(pub(super) Ours);

#[async_trait]
impl Subscriber for Outside {
    fn definition(&self) -> Definition {
        self.0.definition()
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        self.0.setup(context).await
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        self.0.handle(events, context).await?;
        for event in events {
            let (position, stream) = (event.position, event.stream.as_str());
            let delay = u64::try_from(position.0.rem_euclid(SPREAD)).unwrap_or(0);
            let due = event.recorded_at.plus(Duration::from_secs(delay));
            let mut cause = context.because_of(event);
            cause.set_timer(position.to_string(), due, Json::empty_object())?;
            cause.plan_effect(NewEffect::new(KIND, stream, position.to_string()))?;
        }
        Ok(())
    }

    async fn on_timer(&self, timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
        for timer in timers {
            let said = Json::of(&serde_json::json!({ "due": timer.due.as_micros() }))?;
            let stream = StreamName::new(RANG_STREAM)?;
            context.because_of_timer(timer).append(&stream, ExpectedVersion::Any, RANG, said)?;
        }
        Ok(())
    }
}

/// Writes the id of each effect into a file.
pub(super) struct Outbox(pub(super) PathBuf);

#[async_trait]
impl Delivery for Outbox {
    fn kind(&self) -> &str {
        KIND
    }

    async fn send(&self, effect: &Effect) -> Answer {
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.0)
            .and_then(|mut file| writeln!(file, "{}", effect.id));
        match written {
            Ok(()) if effect.attempt == 1 && effect.cause_position.0 % LOST_ONCE_IN == 0 => {
                Answer::Unknown { why: "the answer is lost".to_owned() }
            }
            Ok(()) => Answer::Done { detail: "written".to_owned() },
            Err(error) => Answer::Retry { why: error.to_string(), after: None },
        }
    }

    fn event(&self, _: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
        let Happened::Done { .. } = happened else { return None };
        Some((StreamName::new(SENT_STREAM).ok()?, NewEvent::new(SENT, Json::empty_object())))
    }

    fn terms(&self) -> Terms {
        let retry = RetryStrategy::ClockBased {
            base_delay: Duration::from_secs(1),
            delay_factor: 1.0,
            max_attempts: 1_000,
            max_delay: None,
        };
        Terms { deadline: DEADLINE, in_doubt: InDoubt::Resend, retry, pacing: None }
    }
}

/// What is still to be sent, and what is still to ring.
pub(super) async fn left(store: &Store) -> sqlx::Result<Option<String>> {
    let database = store.database();
    let effects = "SELECT COUNT(*) FROM herald_effects WHERE state <> 'done'";
    let timers = "SELECT COUNT(*) FROM herald_timers";
    let effects: Option<(i64,)> = database.fetch_optional(effects, ()).await?;
    let timers: Option<(i64,)> = database.fetch_optional(timers, ()).await?;
    let (effects, timers) = (effects.map_or(0, |row| row.0), timers.map_or(0, |row| row.0));
    Ok((effects + timers > 0).then(|| format!("{effects} effects and {timers} timers are left")))
}

/// Positions that were handled without a planned effect, and as negative numbers effects of what was not handled. One
/// statement, so one moment: both are committed together.
const TORN: &str = "
    SELECT a.position
      FROM fire_outside AS a
     WHERE NOT EXISTS (SELECT 1 FROM herald_effects AS e
                        WHERE e.subscription_id = $1 AND e.cause_position = a.position)
     UNION ALL
    SELECT -e.cause_position
      FROM herald_effects AS e
     WHERE e.subscription_id = $1
       AND NOT EXISTS (SELECT 1 FROM fire_outside AS a WHERE a.position = e.cause_position)";

/// Looks at what is committed at this moment.
pub(super) async fn look(store: &Store) -> sqlx::Result<Option<String>> {
    let torn: Vec<(i64,)> = store.database().fetch_all(TORN, (OUTSIDE,)).await?;
    let torn: Vec<i64> = torn.into_iter().map(|row| row.0).collect();
    Ok((!torn.is_empty()).then(|| format!("what outside handled does not fit what it planned: {torn:?}")))
}

/// Judges what was sent and what rang, once all is quiet.
pub(super) async fn judge(
    store: &Store,
    events: &[Event],
    outbox: &Path,
) -> Result<Vec<String>, crate::BoxError> {
    let rows: Vec<(i64,)> = store.database().fetch_all("SELECT position FROM fire_outside", ()).await?;
    let handled: BTreeSet<i64> = rows.into_iter().map(|row| row.0).collect();
    let asked = handled_ids(events, &handled);
    let mut violations = Vec::new();
    for (stream, what) in [(RANG_STREAM, "rang"), (SENT_STREAM, "was recorded as sent")] {
        let mut times: BTreeMap<Uuid, usize> = asked.iter().map(|id| (*id, 0)).collect();
        for event in events.iter().filter(|event| event.stream.as_str() == stream) {
            *times.entry(event.causation_id.unwrap_or_default()).or_default() += 1;
        }
        let wrong: Vec<_> = times.iter().filter(|(id, times)| **times != 1 || !asked.contains(id)).collect();
        if !wrong.is_empty() {
            violations.push(format!("each event {what} once, but these not: {wrong:?}"));
        }
    }
    for event in events.iter().filter(|event| event.event_type == RANG) {
        let payload: serde_json::Value = event.payload.to()?;
        let due = payload["due"].as_i64().unwrap_or(i64::MAX);
        if event.recorded_at.as_micros() < due {
            violations.push(format!("a timer rang at {} and was due at {due} µs", event.recorded_at));
        }
    }
    let planned: Vec<(Uuid, String)> = store
        .database()
        .fetch_all("SELECT id, state FROM herald_effects WHERE subscription_id = $1", (OUTSIDE,))
        .await?;
    let unfinished: Vec<_> = planned.iter().filter(|(_, state)| state != "done").collect();
    if !unfinished.is_empty() {
        violations.push(format!("effects are not done: {unfinished:?}"));
    }
    let planned: BTreeSet<Uuid> = planned.into_iter().map(|(id, _)| id).collect();
    let sent = sent(outbox)?;
    let unsent: Vec<&Uuid> = planned.difference(&sent).collect();
    if !unsent.is_empty() {
        violations.push(format!("effects are done and were never sent: {unsent:?}"));
    }
    let strange: Vec<&Uuid> = sent.difference(&planned).collect();
    if !strange.is_empty() {
        violations.push(format!("effects were sent that nobody planned: {strange:?}"));
    }
    Ok(violations)
}

fn handled_ids(events: &[Event], handled: &BTreeSet<i64>) -> BTreeSet<Uuid> {
    let is_handled = |event: &&Event| event.event_type == HAPPENED && handled.contains(&event.position.0);
    events.iter().filter(is_handled).map(|event| event.id).collect()
}

/// What arrived. Whoever was killed while writing may have left half a line; it was not sent then.
fn sent(outbox: &Path) -> Result<BTreeSet<Uuid>, crate::BoxError> {
    match std::fs::read_to_string(outbox) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error.into()),
    }
}
