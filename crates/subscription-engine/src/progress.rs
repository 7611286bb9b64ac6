//! The operations that move subscriptions on: boot, run, catch up, replay; and the one step they are made of.

use std::collections::BTreeMap;
use std::time::Duration;

use store::{Position, Timestamp};

use crate::context::unchanged;
use crate::cursor::Cursor;
use crate::definition_record::DefinitionRecord;
use crate::engine::{Criteria, Engine, EngineError, Outcome, Report};
use crate::feed::Moment;
use crate::lifecycle::{Hook, no_code};
use crate::markers;
use crate::poison::{Letters, Parked};
use crate::records::{self, Claim};
use crate::retry::RetryStrategy;
use crate::stalls;
use crate::subscriber::{Kind, RunMode};
use crate::subscription::{Failure, Resume, State, Status, Subscription, Transition, next};
use crate::unit::{self, FailsAt, Unit};

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// It handled so many events; look again at once.
    Moved(usize),
    /// It handled so many events and set others aside; look again at once.
    Parked(usize, Parked),
    /// Its state changed; look again at once.
    Changed,
    /// It has nothing to do, until then or until something happens.
    Idle(Option<Timestamp>),
    /// Another worker has it.
    Busy,
    /// Something passing is in the way.
    Stalled(String),
}

/// What a subscription came to that handled so many events and set some aside.
fn done(events: u64, parked: Option<Parked>, at_head: bool) -> Outcome {
    match parked {
        Some(parked) => Outcome::Parked { events, parked, at_head },
        None if at_head => Outcome::CaughtUp { events },
        None => Outcome::LimitReached { events },
    }
}

impl Engine {
    /// Moves what is Booting towards the head as it is now and makes it Active (or Finished) there. `limit`
    /// bounds the events that each of them handles.
    pub async fn boot(&self, criteria: &Criteria, limit: Option<u64>) -> Result<Report, EngineError> {
        self.move_each(criteria, Resume::Booting, limit).await
    }

    /// Moves what is Active to the head as it is now, and fires the timers of it that are due there. Subscriptions of
    /// this program whose subscriber is gone are detached.
    pub async fn run(&self, criteria: &Criteria, limit: Option<u64>) -> Result<Report, EngineError> {
        let report = self.run_events(criteria, limit).await?;
        for _ in 0..self.settings().catch_up_rounds {
            if self.fire_timers(criteria).await?.is_nothing() {
                break;
            }
        }
        self.as_they_ended(report).await
    }

    async fn run_events(&self, criteria: &Criteria, limit: Option<u64>) -> Result<Report, EngineError> {
        let mut report = self.detach(criteria).await?;
        report.extend(self.move_each(criteria, Resume::Active, limit).await?);
        Ok(report)
    }

    /// A subscription that was moved, and stopped after that at a timer, has failed.
    async fn as_they_ended(&self, mut report: Report) -> Result<Report, EngineError> {
        for subscription in records::load_all(self.store().database()).await? {
            let State::Error { failure, .. } = subscription.state else { continue };
            for (id, outcome) in &mut report {
                if *id == subscription.id
                    && let Outcome::CaughtUp { .. } | Outcome::LimitReached { .. } | Outcome::Parked { .. } =
                        outcome
                {
                    *outcome = Outcome::Failed { failure: failure.clone() };
                }
            }
        }
        Ok(report)
    }

    /// Sets up, boots, runs, fires due timers and sends due effects until nothing moves any more, so that events
    /// appended by subscribers are handled as well.
    pub async fn catch_up(&self, criteria: &Criteria) -> Result<Report, EngineError> {
        let rounds = self.settings().catch_up_rounds;
        let mut handled = BTreeMap::<String, (u64, Option<Parked>)>::new();
        // What became of each, in whatever round that was: one that gave up has no part in the rounds after that.
        let mut outcomes = BTreeMap::<String, Outcome>::new();
        for _ in 0..rounds {
            let before = self.store().head().await?.position;
            let mut report = self.set_up(criteria, false).await?;
            let set_up =
                report.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Became { .. })).count();
            report.retain(|(_, outcome)| !matches!(outcome, Outcome::Became { .. }));
            report.extend(self.boot(criteria, None).await?);
            report.extend(self.run_events(criteria, None).await?);
            let fired = self.fire_timers(criteria).await?;
            let delivered = self.deliver(criteria).await?;
            let moved = |outcome: &Outcome| match outcome {
                Outcome::CaughtUp { events } => *events > 0,
                Outcome::Parked { .. } => true,
                _ => false,
            };
            let idle = set_up == 0
                && fired.is_nothing()
                && delivered.attempts == 0
                && !report.iter().any(|(_, outcome)| moved(outcome));
            for (id, outcome) in &mut report {
                let (events, parked) = match outcome {
                    Outcome::CaughtUp { events } => (*events, None),
                    Outcome::Parked { events, parked, .. } => (*events, Some(parked.clone())),
                    _ => continue,
                };
                let total = handled.entry(id.clone()).or_default();
                *total = (total.0 + events, Parked::and(total.1.take(), parked));
                *outcome = done(total.0, total.1.clone(), true);
            }
            outcomes.extend(report);
            if idle && self.store().head().await?.position == before {
                return self.as_they_ended(outcomes.into_iter().collect()).await;
            }
        }
        Ok(vec![(
            "*".to_owned(),
            Outcome::Waiting {
                why: format!("still moving after {rounds} rounds: do subscribers feed each other?"),
            },
        )])
    }

    async fn move_each(
        &self,
        criteria: &Criteria,
        status: Resume,
        limit: Option<u64>,
    ) -> Result<Report, EngineError> {
        let mut report = Report::new();
        let began = self.feed().now();
        for subscription in self.select(criteria).await? {
            let in_work = match &subscription.state {
                State::Booting => status == Resume::Booting,
                State::Active => status == Resume::Active,
                State::Error { resume, next_retry: Some(_), .. } => *resume == status,
                _ => false,
            };
            if !in_work {
                continue;
            }
            let outcome = self.move_one(&subscription.id, status, limit, began).await;
            self.feed().rest().await;
            report.extend(outcome?.map(|outcome| (subscription.id, outcome)));
        }
        Ok(report)
    }

    /// Moves one subscription until it has nothing more to do in this status; none if it never was in it. What was read
    /// since the operation began is not read again.
    async fn move_one(
        &self,
        id: &str,
        status: Resume,
        limit: Option<u64>,
        began: Moment,
    ) -> Result<Option<Outcome>, EngineError> {
        // Subscribers that feed themselves would never be done with a head that moves on.
        let goal = self.store().head().await?.position;
        let mut cursor = self.cursor_by_hand(began).await?;
        let (mut events, mut parked) = (0, None);
        let mut worked = false;
        loop {
            cursor.look_anew();
            let Some((seen, is_remembered)) = self.row_of(id, &mut cursor).await? else { return Ok(None) };
            let seen = self.retried_if_due(seen, status).await?;
            let in_status = matches!(
                (&seen.state, status),
                (State::Booting, Resume::Booting) | (State::Active, Resume::Active)
            );
            if !in_status {
                return Ok(match seen.state {
                    State::Error { failure, .. } if worked => Some(Outcome::Failed { failure }),
                    State::Error { next_retry: Some(at), .. } => {
                        Some(Outcome::Waiting { why: format!("it failed and is tried again at {at}") })
                    }
                    State::Active | State::Finished if worked => Some(done(events, parked, true)),
                    state if worked => {
                        Some(Outcome::Refused { why: format!("it became {}", state.status()) })
                    }
                    _ => None,
                });
            }
            if self.registered(id).is_none() {
                return Ok(Some(no_code(&seen)));
            }
            let set_aside = parked.as_ref().map_or(0, |parked: &Parked| parked.letters);
            let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(events + set_aside));
            if room == 0 {
                return Ok(Some(done(events, parked, false)));
            }
            let is_at_goal = worked && seen.read_from() >= goal;
            worked = true;
            let step = if is_at_goal {
                self.at_head(&seen, seen.read_from(), &mut cursor, true).await?
            } else {
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                self.step_of(&seen, &mut cursor, true, room).await?
            };
            match step {
                Step::Moved(count) => events += u64::try_from(count).unwrap_or(0),
                Step::Parked(count, aside) => {
                    events += u64::try_from(count).unwrap_or(0);
                    parked = Parked::and(parked, Some(aside));
                }
                Step::Changed => {}
                Step::Idle(_) => return Ok(Some(done(events, parked, true))),
                Step::Busy if is_remembered => {}
                Step::Busy => return Ok(Some(Outcome::Busy)),
                Step::Stalled(why) => return Ok(Some(Outcome::Waiting { why })),
            }
        }
    }

    /// The row of a subscription, and whether it is only remembered: then whoever finds it changed looks at it.
    async fn row_of(
        &self,
        id: &str,
        cursor: &mut Cursor,
    ) -> Result<Option<(Subscription, bool)>, EngineError> {
        if let Some(row) = cursor.take_row() {
            return Ok(Some((row, true)));
        }
        cursor.row_is_read();
        Ok(self.rows().load(self.store().database(), id).await?.map(|row| (row, false)))
    }

    /// The next thing to do for a subscription, whatever its state: set up, catch up, follow, try again.
    pub(crate) async fn step(
        &self,
        id: &str,
        cursor: &mut Cursor,
        save_now: bool,
    ) -> Result<Step, EngineError> {
        let Some((seen, is_remembered)) = self.row_of(id, cursor).await? else {
            return Ok(Step::Idle(None));
        };
        let step = self.step_from(&seen, cursor, save_now).await?;
        Ok(if is_remembered && matches!(step, Step::Busy) { Step::Moved(0) } else { step })
    }

    async fn step_from(
        &self,
        seen: &Subscription,
        cursor: &mut Cursor,
        save_now: bool,
    ) -> Result<Step, EngineError> {
        match &seen.state {
            State::New => Ok(match self.set_up_one(seen, false).await? {
                Outcome::Became { .. } | Outcome::Failed { .. } => Step::Changed,
                Outcome::Waiting { why } => Step::Stalled(why),
                Outcome::Busy => Step::Busy,
                _ => Step::Idle(None),
            }),
            State::Error { next_retry: Some(at), resume, .. } => {
                if *at > self.clock().now().await? {
                    return Ok(Step::Idle(Some(*at)));
                }
                let retried = self.retried_if_due(seen.clone(), *resume).await?;
                // Due, but somebody else has it: no reason to ask again at once.
                Ok(if retried.state == seen.state { Step::Busy } else { Step::Changed })
            }
            State::Booting => self.step_of(seen, cursor, save_now, usize::MAX).await,
            State::Active => self.step_in_turns(seen, cursor, save_now).await,
            _ => Ok(Step::Idle(None)),
        }
    }

    /// One unit of a subscription that is Booting or Active, and what follows when it is at the head.
    pub(crate) async fn step_of(
        &self,
        seen: &Subscription,
        cursor: &mut Cursor,
        save_now: bool,
        limit: usize,
    ) -> Result<Step, EngineError> {
        let Some(registered) = self.registered(&seen.id) else { return Ok(Step::Idle(None)) };
        if !cursor.is_checked(self) {
            let run = self.feed().run();
            if let Some(bad) = self.bad_checkpoint_of(&seen.id).await? {
                // Trying again mends nothing: a person has to decide.
                let stopped = unit::fail(self, &RetryStrategy::None, seen, FailsAt::Nowhere, &bad).await?;
                return Ok(if matches!(stopped, Unit::Busy) { Step::Busy } else { Step::Changed });
            }
            match self.after_a_cut(registered, seen, cursor).await? {
                None => cursor.was_checked(run),
                Some(Unit::Busy) => return Ok(Step::Busy),
                Some(_) => return Ok(Step::Changed),
            }
        }
        let full = self.settings().unit_events;
        let limit = limit.min(cursor.care.unwrap_or(full)).min(full);
        let is_marked = cursor.care.is_some() || seen.failing_position.is_some();
        let unit = unit::run(self, registered, seen, cursor, limit, is_marked).await?;
        if is_marked && !matches!(unit, Unit::Nothing { .. } | Unit::Looked { .. }) {
            markers::unmark(self.store().database(), &seen.id).await?;
            if matches!(unit, Unit::Busy) {
                // Somebody else's marker may be in the way.
                cursor.is_to_be_checked();
            }
        }
        if let Unit::Moved { .. } | Unit::Parked { .. } = unit {
            cursor.takes_more(full);
        }
        match unit {
            Unit::Moved { events, to, row } => {
                cursor.stored(to);
                if let Some(row) = row.filter(|_| !is_marked) {
                    cursor.left_as(*row);
                }
                Ok(Step::Moved(events))
            }
            Unit::Parked { events, parked, to } => {
                cursor.stored(to);
                Ok(Step::Parked(events, parked))
            }
            Unit::Busy => Ok(Step::Busy),
            Unit::Stalled { why } => Ok(Step::Stalled(why)),
            Unit::Failed(_) => Ok(Step::Changed),
            Unit::Looked { scanned_to } => Ok(if self.note(seen, scanned_to, cursor, false).await? {
                Step::Moved(0)
            } else {
                Step::Busy
            }),
            Unit::Nothing { scanned_to } => self.at_head(seen, scanned_to, cursor, save_now).await,
        }
    }

    /// What follows when a subscription wants nothing more up to the head.
    async fn at_head(
        &self,
        seen: &Subscription,
        head: Position,
        cursor: &mut Cursor,
        save_now: bool,
    ) -> Result<Step, EngineError> {
        let once = seen.run_mode == RunMode::Once;
        if once || seen.state == State::Booting {
            return self.reach_head(seen, head, once).await;
        }
        Ok(if self.note(seen, head, cursor, save_now).await? { Step::Idle(None) } else { Step::Busy })
    }

    /// Notes how far was looked, and writes it down where it is time to; says whether the subscription was as it was seen.
    async fn note(
        &self,
        seen: &Subscription,
        scanned: Position,
        cursor: &mut Cursor,
        save_now: bool,
    ) -> Result<bool, EngineError> {
        if cursor.note(seen, scanned, save_now) {
            if !self.save_position(seen, scanned).await? {
                return Ok(false);
            }
            cursor.stored(scanned);
        }
        Ok(true)
    }

    /// Writes down how far was looked, before nobody looks any more.
    pub(crate) async fn save_cursor(&self, id: &str, cursor: &Cursor) -> Result<(), EngineError> {
        if let Some(seen) = records::load(self.store().database(), id).await?
            && seen.state == State::Active
            && cursor.read_from(&seen) > seen.read_from()
        {
            self.save_position(&seen, cursor.read_from(&seen)).await?;
        }
        Ok(())
    }

    /// Writes down how far was looked; says whether the subscription was still as it was seen.
    async fn save_position(&self, seen: &Subscription, to: Position) -> Result<bool, EngineError> {
        let _passage = self.gate().pass().await;
        let mut tx = self.store().begin().await?;
        let saved = match records::claim(&mut tx, &seen.id).await? {
            Claim::Held(now, _) if unchanged(seen, &now) => {
                records::advance(&mut tx, seen, &Subscription { position: Some(to), ..seen.clone() }).await?
            }
            _ => false,
        };
        if saved {
            tx.commit().await?;
        } else {
            tx.rollback().await;
        }
        Ok(saved)
    }

    /// A subscription that has nothing more before the head is Active from here on, or Finished.
    async fn reach_head(&self, seen: &Subscription, head: Position, once: bool) -> Result<Step, EngineError> {
        let now = self.clock().now().await?;
        let _passage = self.gate().pass().await;
        let mut tx = self.store().begin().await?;
        let mut subscription = match records::claim(&mut tx, &seen.id).await? {
            Claim::Held(now, _) if unchanged(seen, &now) => *now,
            _ => {
                tx.rollback().await;
                return Ok(Step::Busy);
            }
        };
        let from = subscription.state.status();
        subscription.state = next(&subscription.state, Transition::ReachHead { once })?;
        // Nothing was ever there: it has not begun.
        subscription.position = subscription.position.max((head > Position::START).then_some(head));
        subscription.changed_at = now;
        records::save(&mut tx, &subscription, from, "reached the head", self.who()).await?;
        tx.commit().await?;
        self.store().announce();
        let status = subscription.state.status();
        tracing::info!(
            subscription = seen.id,
            position = head.0,
            "{} reached the head and is {status}",
            seen.id
        );
        Ok(Step::Changed)
    }

    /// Builds a read model anew, with downtime: tears it down, sets it up and boots it to the head in the
    /// foreground. `progress` is told the position and the head now and then. Answers with the number of its
    /// events up to where it stands. Refused for anything but a projector.
    pub async fn replay(
        &self,
        id: &str,
        reason: &str,
        mut progress: impl FnMut(Position, Position),
    ) -> Result<Outcome, EngineError> {
        self.select(&Criteria::id(id)).await?;
        if let Some(refused) = self.start_over(id, reason).await? {
            return Ok(refused);
        }
        let Some(registered) = self.registered(id) else { return Ok(Outcome::Busy) };
        let mut cursor = self.cursor_by_hand(self.feed().now()).await?;
        let mut wake = self.store().wake();
        let mut parked = None;
        loop {
            wake.arm();
            cursor.look_anew();
            let Some(seen) = records::load(self.store().database(), id).await? else {
                return Ok(Outcome::Busy);
            };
            progress(seen.read_from(), self.store().head().await?.position);
            match &seen.state {
                State::Booting => {}
                State::Error { failure, .. } => return Ok(Outcome::Failed { failure: failure.clone() }),
                State::Active | State::Finished => {
                    let filter = &registered.definition.filter;
                    let events = self.store().count(filter, seen.read_from()).await?;
                    return Ok(done(events, parked, true));
                }
                state => return Ok(Outcome::Refused { why: format!("it became {}", state.status()) }),
            }
            match self.step_of(&seen, &mut cursor, true, usize::MAX).await? {
                // A worker helps; what counts is where the subscription stands.
                Step::Busy => wake.wait(Duration::from_millis(50)).await,
                Step::Stalled(why) => return Ok(Outcome::Waiting { why }),
                Step::Parked(_, aside) => parked = Parked::and(parked, Some(aside)),
                Step::Moved(_) | Step::Changed | Step::Idle(_) => {}
            }
        }
    }

    /// Tears a projector down and sets it up again, before its first event; an outcome if that was refused.
    async fn start_over(&self, id: &str, reason: &str) -> Result<Option<Outcome>, EngineError> {
        let now = self.clock().now().await?;
        let (tx, mut subscription, session) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(Some(outcome)),
        };
        let registered = match self.registered(id) {
            Some(registered) if registered.definition.kind == Kind::Projector => registered,
            Some(_) => {
                tx.rollback().await;
                let why = format!(
                    "{id} is no projector: only projectors can be replayed, actions would be repeated"
                );
                return Ok(Some(Outcome::Refused { why }));
            }
            None => {
                tx.rollback().await;
                return Ok(Some(no_code(&subscription)));
            }
        };
        let from = subscription.state.status();
        let torn_down = match from {
            Status::New => Ok(tx),
            _ => self.tear_down(&subscription, (tx, session)).await,
        };
        let set_up = match torn_down {
            Ok(tx) => self.run_hook(registered, &subscription, (tx, session), Hook::Setup).await,
            broken => broken,
        };
        let mut tx = match set_up {
            Ok(tx) => tx,
            Err(broken) => {
                let error = broken.roll_back().await;
                let failure = Failure::new(&*error, None, now);
                return Ok(Some(Outcome::Failed { failure }));
            }
        };
        // Before its state is that of one that has never done anything.
        subscription = subscription.with_history();
        subscription.state = next(&State::New, Transition::SetUp { skip_booting: false })?;
        // Their events come again; what is still poison then becomes a letter again.
        let reason = self.forget_letters(&mut tx, &subscription, reason).await?;
        let reason = self.forget_timers(&mut tx, id, reason).await?;
        markers::forget_all(&mut tx, id).await?;
        stalls::forget_removed(&mut tx, id).await?;
        subscription = subscription.without_attempts();
        (subscription.position, subscription.letters) = (None, Letters::default());
        subscription.clean_up = registered.definition.table_names().unwrap_or_default();
        subscription.definition = Some(DefinitionRecord::of(&registered.definition));
        subscription.changed_at = now;
        records::save(&mut tx, &subscription, from, &reason, self.who()).await?;
        records::save_definition(&mut tx, &subscription).await?;
        tx.commit().await?;
        self.store().announce();
        Ok(None)
    }
}
