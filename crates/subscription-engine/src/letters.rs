//! What an operator does with dead letters: look at them, have them tried again, give them up.
//!
//! A letter is tried in a unit of its own, under the same claim as the subscription's own units: on PostgreSQL never at
//! the same time as one of them, on SQLite never at the same time from its first use of the transaction on. Of one key the oldest goes first. When a key has no letters left its events flow again.

use store::{Event, Filter, Position, Timestamp, Tx};

use crate::context::Context;
use crate::dead_letters::{self, DeadLetter, LetterFilter, Reason};
use crate::engine::{Engine, EngineError, Outcome, refuse_inside_unit};
use crate::lifecycle::no_code;
use crate::records;
use crate::subscriber::{BoxError, Registered};
use crate::subscription::{Failure, Resume, State, Subscription};
use crate::unit::{self, Part};

/// Letters that are discarded in one transaction: workers get in between.
const DISCARDED_AT_ONCE: i64 = 1_000;

/// What became of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterReport {
    /// So many were handled, or discarded.
    pub done: u64,
    /// So many were tried and failed again; each keeps the later ones of its key from being tried.
    pub failed: u64,
    /// How the first of them failed.
    pub failure: Option<Failure>,
    /// What kept the operation from beginning, or from going on.
    pub stopped: Option<Outcome>,
}

/// What became of one letter that was tried.
enum Tried {
    Handled,
    Failed(Failure),
    /// Somebody else has handled or discarded it meanwhile.
    Gone,
    Stopped(Outcome),
}

impl LetterReport {
    fn stopped(self, outcome: Outcome) -> Self {
        Self { stopped: Some(outcome), ..self }
    }

    fn note(&mut self, failure: Failure) {
        self.failed += 1;
        self.failure.get_or_insert(failure);
    }
}

fn refused(why: impl Into<String>) -> Outcome {
    Outcome::Refused { why: why.into() }
}

impl Engine {
    /// Dead letters that pass a filter, of one subscription or of all: by subscription and position, after one of
    /// them, at most `limit`.
    pub async fn dead_letters(
        &self,
        subscription: Option<&str>,
        filter: &LetterFilter,
        after: Option<(&str, Position)>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, EngineError> {
        let (database, limit) = (self.store().database(), i64::from(limit));
        let after = after.unwrap_or(("", Position::START));
        Ok(match subscription {
            None => dead_letters::list(database, filter, after, limit).await?,
            Some(id) => dead_letters::list_of(database, id, filter, after.1, limit).await?,
        })
    }

    /// The event of a dead letter, as it is handed to its subscriber: whatever stands at that position now.
    pub async fn event_of(&self, letter: &DeadLetter) -> Result<Vec<Event>, EngineError> {
        let position = letter.event.position;
        let before = Position(position.0 - 1);
        let mut events = self.store().read(&Filter::all(), before, 1).await?.events;
        events.retain(|event| event.position == position);
        Ok(events)
    }

    /// Has dead letters tried again: the one at the position that the filter names, or every key whose oldest letter
    /// passes it, oldest first, each until it has none left or one fails. A letter that fails stays, with its new
    /// error.
    pub async fn retry_dead_letters(
        &self,
        id: &str,
        filter: &LetterFilter,
        reason: &str,
    ) -> Result<LetterReport, EngineError> {
        refuse_inside_unit()?;
        let report = LetterReport::default();
        let database = self.store().database();
        let Some(seen) = records::load(database, id).await? else {
            return Ok(report.stopped(refused("there is no such subscription")));
        };
        let Some(registered) = self.registered(id) else { return Ok(report.stopped(no_code(&seen))) };
        if let Some(why) = why_not_now(&seen) {
            return Ok(report.stopped(refused(why)));
        }
        match filter.position {
            Some(position) => self.retry_at(registered, filter, position, reason).await,
            None => self.retry_keys(registered, &seen, filter, reason).await,
        }
    }

    async fn retry_at(
        &self,
        registered: &Registered,
        filter: &LetterFilter,
        position: Position,
        reason: &str,
    ) -> Result<LetterReport, EngineError> {
        let (database, id) = (self.store().database(), registered.definition.id());
        let mut report = LetterReport::default();
        let mut letters = dead_letters::list_of(database, id, filter, Position::START, 1).await?;
        let Some(letter) = letters.pop() else {
            return Ok(report.stopped(refused(format!("it has no such dead letter at position {position}"))));
        };
        let oldest = dead_letters::oldest_of(database, id, &[&letter.key]).await?;
        if let Some(oldest) = oldest.get(&letter.key).filter(|oldest| **oldest < position) {
            let key = &letter.key;
            let why =
                format!("an older dead letter of the key {key:?} comes first: the one at position {oldest}");
            return Ok(report.stopped(refused(why)));
        }
        match self.try_again(registered, &letter, reason).await? {
            Tried::Handled => report.done += 1,
            Tried::Failed(failure) => report.note(failure),
            Tried::Gone => return Ok(report.stopped(refused("somebody else has just dealt with it"))),
            Tried::Stopped(outcome) => return Ok(report.stopped(outcome)),
        }
        Ok(report)
    }

    async fn retry_keys(
        &self,
        registered: &Registered,
        seen: &Subscription,
        filter: &LetterFilter,
        reason: &str,
    ) -> Result<LetterReport, EngineError> {
        let (database, id) = (self.store().database(), registered.definition.id());
        let mut report = LetterReport::default();
        // A subscriber that feeds the very key it is tried on would never be done.
        let rounds = u64::try_from(self.settings().catch_up_rounds).unwrap_or(u64::MAX);
        let mut left = seen.letters.open.saturating_add(rounds);
        let mut after = Position::START;
        // What becomes a letter from now on is not what was asked for, unless it is of a key that was.
        while let Some(first) = dead_letters::next_head(database, id, filter, after).await?
            && first.event.position <= seen.read_from()
        {
            after = first.event.position;
            let key = LetterFilter::of_key(&first.key);
            let mut next = Some(first);
            while let Some(letter) = next {
                if left == 0 {
                    let why =
                        format!("the key {:?} still gets letters: does its subscriber feed it?", letter.key);
                    return Ok(report.stopped(Outcome::Waiting { why }));
                }
                left -= 1;
                match self.try_again(registered, &letter, reason).await? {
                    Tried::Handled => report.done += 1,
                    Tried::Gone => {}
                    Tried::Failed(failure) => {
                        report.note(failure);
                        break;
                    }
                    Tried::Stopped(outcome) => return Ok(report.stopped(outcome)),
                }
                next = dead_letters::next_head(database, id, &key, letter.event.position).await?;
            }
        }
        Ok(report)
    }

    /// One unit of one letter.
    async fn try_again(
        &self,
        registered: &Registered,
        letter: &DeadLetter,
        reason: &str,
    ) -> Result<Tried, EngineError> {
        let id = registered.definition.id();
        let mut events = self.event_of(letter).await?;
        events.retain(|event| registered.definition.filter.matches(event));
        let position = letter.event.position;
        let line = match letter.reason {
            _ if events.is_empty() => Some(format!(
                "let go of the dead letter at position {position}, which its subscriber does not want any more: \
                 {reason}"
            )),
            Reason::Failed { .. } => {
                Some(format!("handled the dead letter at position {position}: {reason}"))
            }
            Reason::Behind { .. } => None,
        };
        let now = self.clock().now().await?;
        let seen;
        let context = if self.has_row_locks() {
            let (tx, subscription, session) = match self.begin_claimed(id).await? {
                Ok(claimed) => claimed,
                Err(outcome) => return Ok(Tried::Stopped(outcome)),
            };
            seen = subscription;
            Context::claimed(self, &registered.definition, &seen, tx, session)
        } else {
            let Some(subscription) = records::load(self.store().database(), id).await? else {
                return Ok(Tried::Stopped(refused("there is no such subscription")));
            };
            seen = subscription;
            Context::new(self, &registered.definition, &seen).in_any_place()
        };
        if let Some(why) = why_not_now(&seen) {
            context.roll_back().await;
            return Ok(Tried::Stopped(refused(why)));
        }
        let part = match unit::work(self, registered, &events, context).await {
            Ok(context) => self.close(&seen, letter, context, (now, line)).await?,
            Err(part) => Some(part),
        };
        Ok(match part {
            None => self.gone_or_busy(letter).await?,
            Some(Part::Committed { .. }) => {
                self.store().announce();
                Tried::Handled
            }
            Some(Part::Busy) => Tried::Stopped(Outcome::Busy),
            Some(Part::Stalled(why)) => Tried::Stopped(Outcome::Waiting { why }),
            Some(Part::Failed(error)) => self.note_failure(letter, events.first(), error, reason).await?,
        })
    }

    /// Takes the letter away in the transaction that handled it, with a line of history; none if it is not as it was
    /// any more.
    async fn close(
        &self,
        seen: &Subscription,
        letter: &DeadLetter,
        mut context: Context<'_>,
        line: (Timestamp, Option<String>),
    ) -> Result<Option<Part>, EngineError> {
        // A handler that wrote nothing has not opened the transaction yet.
        if let Err(error) = context.tx().await {
            return unit::not_begun(error).map(Some);
        }
        let (Some(mut tx), planned) = context.take() else { return Ok(Some(Part::Busy)) };
        let taken = match self.take(&mut tx, seen, letter, line).await {
            Ok(taken) => taken,
            // The handler swallowed a failed statement, or the connection is gone.
            Err(error) => {
                tx.rollback().await;
                return Ok(Some(unit::classify(error.into())));
            }
        };
        if !taken {
            tx.rollback().await;
            return Ok(None);
        }
        unit::finish(self, seen, tx, planned).await.map(Some)
    }

    async fn take(
        &self,
        tx: &mut Tx,
        seen: &Subscription,
        letter: &DeadLetter,
        (now, line): (Timestamp, Option<String>),
    ) -> Result<bool, records::RecordError> {
        if !dead_letters::take(tx, letter).await? {
            return Ok(false);
        }
        records::count_letters_out(tx, &seen.id, 1).await?;
        if let Some(line) = line {
            records::note(tx, seen, now, &[line], self.who()).await?;
        }
        Ok(true)
    }

    /// The letter was not as it was seen: gone, or somebody else tries it as well.
    async fn gone_or_busy(&self, letter: &DeadLetter) -> Result<Tried, EngineError> {
        let filter = LetterFilter::at(letter.event.position);
        let database = self.store().database();
        let there =
            dead_letters::list_of(database, &letter.subscription, &filter, Position::START, 1).await?;
        Ok(if there.is_empty() { Tried::Gone } else { Tried::Stopped(Outcome::Busy) })
    }

    async fn note_failure(
        &self,
        letter: &DeadLetter,
        event: Option<&Event>,
        error: BoxError,
        reason: &str,
    ) -> Result<Tried, EngineError> {
        let now = self.clock().now().await?;
        let failure = Failure::new(&*error, event, now);
        let (mut tx, ..) = match self.begin_claimed(&letter.subscription).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(Tried::Stopped(outcome)),
        };
        if !dead_letters::note_failure(&mut tx, letter, &failure.chain, now).await? {
            tx.rollback().await;
            return self.gone_or_busy(letter).await;
        }
        unit::commit_tx(self, &letter.subscription, tx).await??;
        tracing::warn!(
            subscription = letter.subscription,
            position = letter.event.position.0,
            "the dead letter of {} at position {} was tried ({reason}) and failed again: {}",
            letter.subscription,
            letter.event.position,
            failure.chain.join(": ")
        );
        Ok(Tried::Failed(failure))
    }

    /// Gives dead letters up, for a reason that is kept in the history with each of them. Letters behind them stay.
    pub async fn discard_dead_letters(
        &self,
        id: &str,
        filter: &LetterFilter,
        reason: &str,
    ) -> Result<LetterReport, EngineError> {
        refuse_inside_unit()?;
        let mut report = LetterReport::default();
        if reason.trim().is_empty() {
            return Ok(report.stopped(refused("nothing is discarded without a reason")));
        }
        // What comes meanwhile nobody has seen, so nobody has decided on it.
        let mut seen_up_to = None;
        loop {
            let now = self.clock().now().await?;
            let (mut tx, subscription, _) = match self.begin_claimed(id).await? {
                Ok(claimed) => claimed,
                Err(outcome) => return Ok(report.stopped(outcome)),
            };
            let up_to = *seen_up_to.get_or_insert(subscription.read_from());
            let mut letters = dead_letters::list_in(&mut tx, id, filter, DISCARDED_AT_ONCE).await?;
            letters.retain(|letter| letter.event.position <= up_to);
            if letters.is_empty() {
                tx.rollback().await;
                return Ok(report);
            }
            let count = dead_letters::delete(&mut tx, id, &letters).await?;
            records::count_letters_out(&mut tx, id, count).await?;
            let why = |letter: &DeadLetter| {
                let event = &letter.event;
                let (position, event_type) = (event.position, &event.event_type);
                format!(
                    "discarded the dead letter at position {position} ({event_type} {}): {reason}",
                    event.id
                )
            };
            let lines: Vec<String> = letters.iter().map(why).collect();
            records::note(&mut tx, &subscription, now, &lines, self.who()).await?;
            unit::commit_tx(self, id, tx).await??;
            self.store().announce();
            report.done += count;
        }
    }

    /// Letters end with what they belong to; the history says so.
    pub(crate) async fn forget_letters(
        &self,
        tx: &mut Tx,
        subscription: &Subscription,
        why: &str,
    ) -> Result<String, EngineError> {
        let count = dead_letters::forget(tx, &subscription.id, Position::START).await?;
        Ok(if count == 0 { why.to_owned() } else { format!("{why} (and forgot {count} dead letters)") })
    }
}

/// Why no letter of a subscription is tried in its state, if none is. In error it is allowed: letters stand before
/// the event at which it failed, and too many of them may be why.
fn why_not_now(subscription: &Subscription) -> Option<String> {
    match (&subscription.state, subscription.state.resume()) {
        (State::Paused { .. } | State::Detached { .. }, _) => {
            Some(format!("it is {}; reactivate it first", subscription.state.status()))
        }
        (_, Resume::New) => Some("it is not set up yet".to_owned()),
        _ => None,
    }
}
