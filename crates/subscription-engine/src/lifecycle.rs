//! The operations that change what a subscription is: set up, pause, reactivate, detach, remove, tear down.
//!
//! Each is one transaction under the row's claim, through the one function that knows the states.

use store::{Sql, Tx};

use crate::context::Context;
use crate::definition_record::DefinitionRecord;
use crate::effects;
use crate::emit::emitted_stream;
use crate::engine::{Criteria, Engine, EngineError, Outcome, Report};
use crate::markers;
use crate::records::{self, Claim, Session};
use crate::retry::RetryStrategy;
use crate::stalls;
use crate::subscriber::{BoxError, Definition, Registered, RunMode};
use crate::subscription::{Failure, Resume, State, Subscription, Transition, next};
use crate::timers;
use crate::unit::{self, FailsAt, Unit, bounded};
use crate::worker_row::WorkerRow;

impl Engine {
    /// Sets up what is New: runs `setup` and the change of status in one transaction. From-now subscriptions
    /// become Active at the head as it was before; the others boot, unless booting is skipped.
    pub async fn set_up(&self, criteria: &Criteria, skip_booting: bool) -> Result<Report, EngineError> {
        let mut report = Report::new();
        for subscription in self.select(criteria).await? {
            let subscription = self.retried_if_due(subscription, Resume::New).await?;
            if subscription.state == State::New {
                let outcome = self.set_up_one(&subscription, skip_booting).await?;
                report.push((subscription.id, outcome));
            }
        }
        Ok(report)
    }

    /// Sets up the subscribers that begin now and were never set up, such as processors of a new release: whoever is about
    /// to append does this first, so that they miss nothing of it.
    pub async fn set_up_what_begins_now(&self) -> Result<Report, EngineError> {
        let begins_now = |definition: &&Definition| definition.run_mode == RunMode::FromNow;
        let ids: Vec<String> = self
            .registry()
            .definitions()
            .filter(begins_now)
            .map(|definition| definition.id.clone())
            .collect();
        if ids.is_empty() {
            return Ok(Report::new());
        }
        self.set_up(&Criteria { ids: Some(ids), groups: None }, false).await
    }

    pub(crate) async fn set_up_one(
        &self,
        seen: &Subscription,
        skip_booting: bool,
    ) -> Result<Outcome, EngineError> {
        let Some(registered) = self.registered(&seen.id) else { return self.set_up_without_code(seen).await };
        let mut position = None;
        if registered.definition.run_mode == RunMode::FromNow {
            // Before `setup` runs, so that nothing appended meanwhile is lost.
            let head = self.store().head().await?;
            if !head.is_end {
                return Ok(Outcome::Waiting {
                    why: "an append under way hides the end of the log".to_owned(),
                });
            }
            position = Some(head.position);
        }
        let now = self.clock().now().await?;
        let _passage = self.gate().pass().await;
        let mut tx = self.store().begin().await?;
        let (mut subscription, session) = match records::claim(&mut tx, &seen.id).await? {
            Claim::Held(subscription, session) if subscription.state == State::New => {
                (*subscription, session)
            }
            _ => {
                tx.rollback().await;
                return Ok(Outcome::Busy);
            }
        };
        self.forget_what_was_left(&mut tx, &seen.id).await?;
        let mut tx = match self.run_hook(registered, seen, (tx, session), Hook::Setup).await {
            Ok(tx) => tx,
            Err(broken) => {
                let error = broken.roll_back().await;
                return Ok(
                    match unit::fail(self, &registered.definition.retry, seen, FailsAt::Nowhere, &*error)
                        .await?
                    {
                        Unit::Failed(failure) => Outcome::Failed { failure },
                        _ => Outcome::Busy,
                    },
                );
            }
        };
        let from = subscription.state.status();
        let skip_booting = skip_booting || position.is_some();
        subscription.state = next(&subscription.state, Transition::SetUp { skip_booting })?;
        subscription.position = position;
        subscription.clean_up = registered.definition.table_names().unwrap_or_default();
        subscription.definition = Some(DefinitionRecord::of(&registered.definition));
        subscription = Subscription { changed_at: now, ..subscription.without_attempts() };
        records::save(&mut tx, &subscription, from, "set up", self.who()).await?;
        records::save_definition(&mut tx, &subscription).await?;
        tx.commit().await?;
        self.store().announce();
        tracing::info!(subscription = seen.id, "{} is set up and {}", seen.id, subscription.state.status());
        Ok(Outcome::Became { from, to: subscription.state.status() })
    }

    /// A subscription of this program that nobody knows any more is in error before it ever began; it is set up
    /// when its code comes back. One of another program is none of our business.
    async fn set_up_without_code(&self, seen: &Subscription) -> Result<Outcome, EngineError> {
        if !self.is_orphan(seen, &self.live_workers().await?) {
            return Ok(no_code(seen));
        }
        let error = BoxError::from(format!("this program has no subscriber {:?}", seen.id));
        Ok(match unit::fail(self, &RetryStrategy::default(), seen, FailsAt::Nowhere, &*error).await? {
            Unit::Failed(failure) => Outcome::Failed { failure },
            _ => Outcome::Busy,
        })
    }

    /// A subscription of this program that neither it nor any live worker knows.
    fn is_orphan(&self, subscription: &Subscription, workers: &[WorkerRow]) -> bool {
        subscription.program == self.program()
            && !self.registry().contains(&subscription.id)
            && !workers.iter().any(|worker| worker.subscriber_ids.contains(&subscription.id))
    }

    /// Stops what is Booting, Active or in Error, until it is reactivated.
    pub async fn pause(&self, criteria: &Criteria, reason: &str) -> Result<Report, EngineError> {
        self.change_each(criteria, &Transition::Pause, reason).await
    }

    /// Sets going again what is Paused, in Error, Finished or Detached, as what it was; its error and
    /// attempts are forgotten, its position is kept.
    pub async fn reactivate(&self, criteria: &Criteria, reason: &str) -> Result<Report, EngineError> {
        self.change_each(criteria, &Transition::Reactivate, reason).await
    }

    /// Detaches the subscriptions of this program that neither it nor any live worker knows.
    pub async fn detach(&self, criteria: &Criteria) -> Result<Report, EngineError> {
        let workers = self.live_workers().await?;
        let mut report = Report::new();
        for subscription in self.select(criteria).await? {
            let is_detached = matches!(subscription.state, State::Detached { .. });
            if is_detached || !self.is_orphan(&subscription, &workers) {
                continue;
            }
            let why = "no running program knows its subscriber";
            let outcome = self.change(&subscription.id, Transition::Detach, why).await?;
            tracing::warn!(subscription = subscription.id, "{} is detached: {why}", subscription.id);
            report.push((subscription.id, outcome));
        }
        Ok(report)
    }

    async fn change_each(
        &self,
        criteria: &Criteria,
        transition: &Transition,
        why: &str,
    ) -> Result<Report, EngineError> {
        let mut report = Report::new();
        for subscription in self.select(criteria).await? {
            let needs_code = *transition == Transition::Reactivate;
            let outcome = if needs_code && self.registered(&subscription.id).is_none() {
                no_code(&subscription)
            } else if needs_code && let Some(bad) = self.bad_checkpoint_of(&subscription.id).await? {
                Outcome::Refused { why: bad.to_string() }
            } else {
                self.change(&subscription.id, transition.clone(), why).await?
            };
            report.push((subscription.id, outcome));
        }
        Ok(report)
    }

    /// Begins a transaction that holds a subscription's claim, and waits for a worker to finish its unit; or says
    /// why it could not be had.
    pub(crate) async fn begin_claimed(
        &self,
        id: &str,
    ) -> Result<Result<(Tx, Subscription, Session), Outcome>, EngineError> {
        let mut tx = self.store().begin().await?;
        let outcome = match records::claim_patiently(&mut tx, id).await? {
            Claim::Held(subscription, session) => return Ok(Ok((tx, *subscription, session))),
            Claim::Busy => Outcome::Busy,
            Claim::Gone => Outcome::Refused { why: "there is no such subscription".to_owned() },
        };
        tx.rollback().await;
        Ok(Err(outcome))
    }

    /// One transition of one subscription, whatever worker is at it right now.
    async fn change(&self, id: &str, transition: Transition, why: &str) -> Result<Outcome, EngineError> {
        let now = self.clock().now().await?;
        let (mut tx, mut subscription, _) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(outcome),
        };
        let from = subscription.state.status();
        match next(&subscription.state, transition.clone()) {
            Err(impossible) => {
                tx.rollback().await;
                return Ok(Outcome::Refused { why: impossible.to_string() });
            }
            Ok(state) => subscription.state = state,
        }
        if transition == Transition::Reactivate {
            effects::forget_blocked_times(&mut tx, id).await?;
            timers::forget_attempts(&mut tx, id).await?;
            subscription = subscription.without_attempts();
        }
        subscription.changed_at = now;
        records::save(&mut tx, &subscription, from, why, self.who()).await?;
        tx.commit().await?;
        self.store().announce();
        Ok(Outcome::Became { from, to: subscription.state.status() })
    }

    /// A subscription in error whose time to try again has come goes on as what it was, if that is `wanted`.
    pub(crate) async fn retried_if_due(
        &self,
        seen: Subscription,
        wanted: Resume,
    ) -> Result<Subscription, EngineError> {
        let State::Error { next_retry: Some(at), resume, .. } = seen.state else { return Ok(seen) };
        if resume != wanted || self.registered(&seen.id).is_none() {
            return Ok(seen);
        }
        let now = self.clock().now().await?;
        if at > now {
            return Ok(seen);
        }
        let mut tx = self.store().begin().await?;
        let mut subscription = match records::claim(&mut tx, &seen.id).await? {
            Claim::Held(subscription, _) if subscription.state == seen.state => *subscription,
            _ => {
                tx.rollback().await;
                return Ok(seen);
            }
        };
        let from = subscription.state.status();
        subscription.state = next(&subscription.state, Transition::Retry)?;
        subscription.attempt += 1;
        subscription.changed_at = now;
        let why = format!("retry {}", subscription.attempt);
        records::save(&mut tx, &subscription, from, &why, self.who()).await?;
        tx.commit().await?;
        tracing::info!(
            subscription = subscription.id,
            attempt = subscription.attempt,
            "{} is tried again",
            subscription.id
        );
        Ok(subscription)
    }

    /// Removes subscriptions, whatever their status. Teardown is tried; if it fails the row goes all the
    /// same and the failure is reported.
    pub async fn remove(&self, criteria: &Criteria, reason: &str) -> Result<Report, EngineError> {
        self.remove_each(criteria, EmittedStream::Kept, reason).await
    }

    /// As [`Engine::remove`], and closes the stream to which each of them has emitted: nobody reads it any more, the log
    /// keeps it. It stays closed, also for a subscriber that comes back under the same id: what that has emitted before
    /// is not emitted again, and the first event that is new fails it. Give it another id, which has a stream of its own.
    pub async fn remove_and_close(&self, criteria: &Criteria, reason: &str) -> Result<Report, EngineError> {
        self.remove_each(criteria, EmittedStream::Closed, reason).await
    }

    async fn remove_each(
        &self,
        criteria: &Criteria,
        emitted: EmittedStream,
        reason: &str,
    ) -> Result<Report, EngineError> {
        let mut report = Report::new();
        for subscription in self.select(criteria).await? {
            let outcome = self.remove_one(&subscription.id, emitted, reason).await?;
            report.push((subscription.id, outcome));
        }
        Ok(report)
    }

    async fn remove_one(
        &self,
        id: &str,
        emitted: EmittedStream,
        reason: &str,
    ) -> Result<Outcome, EngineError> {
        let now = self.clock().now().await?;
        let (mut tx, mut subscription, session) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(outcome),
        };
        let mut failure = None;
        if subscription.state != State::New {
            let savepoint = tx.savepoint().await?;
            tx = match self.tear_down(&subscription, (tx, session)).await {
                Ok(mut tx) => {
                    tx.release(savepoint).await?;
                    tx
                }
                Err(Broken { tx: Some(mut tx), error }) => {
                    failure = Some(Failure::new(&*error, None, now));
                    tx.roll_back_to(savepoint).await?;
                    tx
                }
                Err(Broken { tx: None, error }) => {
                    // The transaction was lost with the teardown; the row goes in one of its own.
                    failure = Some(Failure::new(&*error, None, now));
                    let Ok((tx, ..)) = self.begin_claimed(id).await? else { return Ok(Outcome::Busy) };
                    tx
                }
            };
        }
        subscription.changed_at = now;
        self.delete(tx, &subscription, emitted, reason).await?;
        Ok(Outcome::Removed { failure })
    }

    /// Tears down what is Detached and removes it. If teardown fails the subscription stays.
    pub async fn tear_down_detached(&self, criteria: &Criteria, reason: &str) -> Result<Report, EngineError> {
        let mut report = Report::new();
        for subscription in self.select(criteria).await? {
            if matches!(subscription.state, State::Detached { .. }) {
                let outcome = self.tear_down_one(&subscription.id, reason).await?;
                report.push((subscription.id, outcome));
            }
        }
        Ok(report)
    }

    async fn tear_down_one(&self, id: &str, reason: &str) -> Result<Outcome, EngineError> {
        let now = self.clock().now().await?;
        let (tx, mut subscription, session) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(outcome),
        };
        if !matches!(subscription.state, State::Detached { .. }) {
            tx.rollback().await;
            return Ok(Outcome::Refused { why: format!("it is {}", subscription.state.status()) });
        }
        if self.registered(id).is_none() && subscription.clean_up.is_empty() {
            tx.rollback().await;
            return Ok(no_code(&subscription));
        }
        match self.tear_down(&subscription, (tx, session)).await {
            Ok(tx) => {
                subscription.changed_at = now;
                self.delete(tx, &subscription, EmittedStream::Kept, reason).await?;
                Ok(Outcome::Removed { failure: None })
            }
            Err(broken) => {
                let error = broken.roll_back().await;
                Ok(Outcome::Failed { failure: Failure::new(&*error, None, now) })
            }
        }
    }

    async fn delete(
        &self,
        mut tx: Tx,
        subscription: &Subscription,
        emitted: EmittedStream,
        why: &str,
    ) -> Result<(), EngineError> {
        let reason = why;
        let why = self.forget_letters(&mut tx, subscription, why).await?;
        let why = self.forget_timers(&mut tx, &subscription.id, why).await?;
        markers::forget_all(&mut tx, &subscription.id).await?;
        stalls::forget_removed(&mut tx, &subscription.id).await?;
        records::delete(&mut tx, subscription, &why, self.who()).await?;
        if emitted == EmittedStream::Closed
            && let Ok(stream) = emitted_stream(&subscription.id)
        {
            let reason = format!("{} was removed: {reason}", subscription.id);
            // The last statement before the commit, as every append.
            if let Err(error) = self.store().close_stream_in(&mut tx, &stream, &reason).await {
                tx.rollback().await;
                return Err(error.into());
            }
        }
        tx.commit().await?;
        self.store().announce();
        tracing::info!(subscription = subscription.id, "{} is removed", subscription.id);
        Ok(())
    }

    /// What begins has no timers, and nothing is in its way: what is there under its id was left behind by an older
    /// program, which removed another one without it.
    async fn forget_what_was_left(&self, tx: &mut Tx, id: &str) -> Result<(), EngineError> {
        self.forget_timers(tx, id, String::new()).await?;
        markers::forget_all(tx, id).await?;
        stalls::forget_removed(tx, id).await?;
        Ok(())
    }

    /// Runs the subscriber's teardown, if its code is here, and drops its tables.
    pub(crate) async fn tear_down(
        &self,
        subscription: &Subscription,
        (tx, session): (Tx, Session),
    ) -> Result<Tx, Broken> {
        let mut tx = match self.registered(&subscription.id) {
            None => tx,
            Some(registered) => {
                self.run_hook(registered, subscription, (tx, session), Hook::Teardown).await?
            }
        };
        for table in &subscription.clean_up {
            if let Err(error) = tx.execute(Sql::named("DROP TABLE IF EXISTS {t}", table), ()).await {
                return Err(Broken { tx: Some(tx), error: error.into() });
            }
        }
        Ok(tx)
    }

    /// Runs one of a subscriber's hooks in a transaction that holds the claim, and gives it back.
    pub(crate) async fn run_hook(
        &self,
        registered: &Registered,
        subscription: &Subscription,
        (tx, session): (Tx, Session),
        hook: Hook,
    ) -> Result<Tx, Broken> {
        let mut context = Context::claimed(self, &registered.definition, subscription, tx, session);
        let writing = context.writing();
        let subscriber = &registered.subscriber;
        let result = match hook {
            Hook::Setup => bounded(self, &subscription.id, writing, subscriber.setup(&mut context)).await,
            Hook::Teardown => {
                bounded(self, &subscription.id, writing, subscriber.teardown(&mut context)).await
            }
        };
        if result.as_ref().is_err_and(|error| unit::find::<unit::Cut>(&**error).is_some()) {
            context.abandon().await;
        }
        let (tx, planned) = context.take();
        let error: BoxError = match (tx, result) {
            (Some(tx), Ok(())) if planned.is_empty() => return Ok(tx),
            (Some(tx), Ok(())) => {
                let why = "a subscriber appends, plans effects and sets timers while it handles events, not while it is set up or torn down";
                return Err(Broken { tx: Some(tx), error: why.into() });
            }
            (tx, Err(error)) => return Err(Broken { tx, error }),
            (None, Ok(())) => "the transaction is gone".into(),
        };
        Err(Broken { tx: None, error })
    }
}

/// What becomes of the stream to which a subscription has emitted, when it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EmittedStream {
    Kept,
    Closed,
}

/// Which of a subscriber's hooks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    Setup,
    Teardown,
}

/// A hook failed. Its transaction is still there, unless it was cut short: then its connection is closed.
#[derive(Debug)]
pub(crate) struct Broken {
    tx: Option<Tx>,
    error: BoxError,
}

impl Broken {
    pub(crate) async fn roll_back(self) -> BoxError {
        if let Some(tx) = self.tx {
            tx.rollback().await;
        }
        self.error
    }
}

pub(crate) fn no_code(subscription: &Subscription) -> Outcome {
    Outcome::Refused { why: format!("this program has no subscriber {:?}", subscription.id) }
}
