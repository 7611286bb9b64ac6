//! Setting events aside: the part of a unit that is only there where dead letters are.
//!
//! While a subscription has letters, each of its pages is looked through once for events whose key has one; those
//! become letters as well, in the transaction that moves the position past them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use store::{Event, Position, Timestamp};

use crate::dead_letters::{self, NewLetter, Reason};
use crate::engine::{Engine, EngineError};
use crate::poison::{NotParked, Parked, Poison};
use crate::records::{self, Claim};
use crate::retry::RetryStrategy;
use crate::subscriber::{BoxError, Registered};
use crate::subscription::{FailedEvent, Failure, Subscription};
use crate::unit::{self, Unit};

/// Which events of a page stand behind a dead letter, of which key and which letter. Empty, and free, where the
/// subscription has no letters.
#[derive(Debug)]
pub(crate) struct Behind {
    of: Vec<Option<(String, Position)>>,
    now: Timestamp,
}

impl Behind {
    /// Looks through a page that was read for this subscription. What it finds holds as long as the row is as it
    /// was seen: letters come and go under its claim, and it counts them.
    pub(crate) async fn look(
        engine: &Engine,
        poison: &Poison,
        seen: &Subscription,
        events: &[Event],
    ) -> Result<Self, EngineError> {
        if seen.letters.open == 0 {
            return Ok(Self { of: Vec::new(), now: seen.changed_at });
        }
        let now = engine.clock().now().await?;
        let mut keys: Vec<String> = Vec::with_capacity(events.len());
        for (index, event) in events.iter().enumerate() {
            // What one stored event was made into stays together.
            let is_same = index > 0 && events[index - 1].position == event.position;
            keys.push(if is_same { keys[index - 1].clone() } else { poison.key_of(event) });
        }
        let asked: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        let asked: Vec<&str> = asked.into_iter().collect();
        let oldest = dead_letters::oldest_of(engine.store().database(), &seen.id, &asked).await?;
        let behind = |key: String| oldest.get(&key).map(|position| (key, *position));
        Ok(Self { of: keys.into_iter().map(behind).collect(), now })
    }

    fn of(&self, index: usize) -> Option<&(String, Position)> {
        self.of.get(index)?.as_ref()
    }

    /// The first event that would be one letter too many, and why.
    pub(crate) fn first_too_many(
        &self,
        poison: &Poison,
        seen: &Subscription,
        events: &[Event],
    ) -> Option<(usize, NotParked)> {
        let mut letters = seen.letters;
        for index in 0..self.of.len() {
            if index > 0 && events[index].position == events[index - 1].position {
                continue;
            }
            letters = letters.after(u64::from(self.of(index).is_none()), u64::from(self.of(index).is_some()));
            if let Some((key, behind)) = self.of(index)
                && let Some(too_many) = poison.refuses(letters)
            {
                return Some((index, NotParked::Behind { too_many, behind: *behind, key: key.clone() }));
            }
        }
        None
    }

    /// Parts some events of the page, of which the first has this index, into those to be handled and letters.
    pub(crate) fn part<'e>(
        &self,
        first: usize,
        events: &'e [Event],
    ) -> (Cow<'e, [Event]>, Vec<NewLetter<'e>>) {
        let is_behind = |index: usize| self.of(first + index).is_some();
        if !(0..events.len()).any(is_behind) {
            return (Cow::Borrowed(events), Vec::new());
        }
        let (mut wanted, mut letters) = (Vec::new(), Vec::<NewLetter<'_>>::new());
        for (index, event) in events.iter().enumerate() {
            match self.of(first + index) {
                None => wanted.push(event.clone()),
                Some(_) if letters.last().is_some_and(|last| last.event.position == event.position) => {}
                Some((key, position)) => {
                    let (key, reason) = (key.clone(), Reason::Behind { position: *position });
                    letters.push(NewLetter { event, key, parked_at: self.now, reason });
                }
            }
        }
        (Cow::Owned(wanted), letters)
    }
}

/// What these letters, which stand behind others, are to whoever asked for the unit.
pub(crate) fn parked(letters: &[NewLetter<'_>]) -> Option<Parked> {
    let NewLetter { event, key, .. } = letters.first()?;
    let why = format!("there are older dead letters of {key:?}");
    let count = u64::try_from(letters.len()).unwrap_or(u64::MAX);
    Some(Parked { letters: count, first: FailedEvent::from(*event), why })
}

/// What follows when a single event has failed: it is tried again, or it becomes a dead letter, or the
/// subscription stops.
pub(crate) async fn fail_or_park(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    event: &Event,
    error: BoxError,
) -> Result<Unit, EngineError> {
    let (retry, poison) = (&registered.definition.retry, &registered.definition.poison);
    let now = engine.clock().now().await?;
    let failed_before = seen.failing_position == Some(event.position);
    let attempt = if failed_before { seen.attempt } else { 0 };
    if *poison == Poison::Stop || retry.next_retry(attempt, now).is_some() {
        return unit::fail(engine, retry, seen, unit::FailsAt::Event(event), &*error).await;
    }
    let letters = seen.letters.after(0, 1);
    if let Some(too_many) = poison.refuses(letters) {
        let error = NotParked::Failed { too_many, error };
        return unit::fail(engine, retry, seen, unit::FailsAt::Event(event), &error).await;
    }
    let failure = Failure::new(&*error, Some(event), now);
    let first_failed_at = seen.failing_since.filter(|_| failed_before).unwrap_or(now);
    let reason = Reason::Failed {
        error: failure.chain.clone(),
        attempts: attempt + 1,
        first_failed_at,
        last_failed_at: now,
    };
    let letter = NewLetter { event, key: poison.key_of(event), parked_at: now, reason };
    let mut tx = engine.store().begin().await?;
    // Patiently: the connection of a handler that was cut short may not be closed yet.
    let mut subscription = match records::claim_patiently(&mut tx, &seen.id).await? {
        Claim::Held(now, _) if crate::context::unchanged(seen, &now) => *now,
        _ => {
            tx.rollback().await;
            return Ok(Unit::Busy);
        }
    };
    let key = letter.key.clone();
    dead_letters::insert(&mut tx, &seen.id, vec![letter]).await?;
    subscription = subscription.moved_to(event.position);
    subscription.letters = letters;
    subscription.changed_at = now;
    let from = subscription.state.status();
    let why = format!("position {} is a dead letter: {}", event.position, failure.message());
    records::save(&mut tx, &subscription, from, &why, engine.who()).await?;
    unit::commit_tx(engine, &seen.id, tx).await??;
    engine.store().announce();
    tracing::error!(
        subscription = seen.id,
        position = event.position.0,
        attempt,
        "{} gave up on position {} and set it aside as a dead letter; later events of {key:?} follow it: {}",
        seen.id,
        event.position,
        failure.chain.join(": ")
    );
    let parked = Parked { letters: 1, first: FailedEvent::from(event), why: failure.chain.join(": ") };
    Ok(Unit::Parked { events: 0, parked, to: event.position })
}

/// Stops right before an event that would be one letter too many.
pub(crate) async fn stop_at(
    engine: &Engine,
    seen: &Subscription,
    event: &Event,
    why: &NotParked,
) -> Result<Unit, EngineError> {
    unit::fail(engine, &RetryStrategy::None, seen, unit::FailsAt::Event(event), why).await
}
