//! The worker: keeps every subscription of its groups moving, by itself, until it is told to stop.
//!
//! One task for each subscription: arm the wake-up, do one step after the other until there is nothing to
//! do, wait. A wake-up is a hint; the poll makes it right. Stopping happens between steps, never inside one.

use std::collections::HashSet;
use std::time::Duration;

use store::{Timestamp, messages};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use crate::blocked;
use crate::cursor::Cursor;
use crate::effects::keep_delivering;
use crate::engine::{Criteria, Engine, EngineError, refuse_inside_unit};
use crate::progress::Step;
use crate::stalls::Obstacle;
use crate::worker_row;

/// How often a worker says that it is there.
const BEAT: Duration = Duration::from_secs(5);
/// A worker that missed a beat is looked for.
pub(crate) const SUSPICIOUS_SILENCE: Duration = Duration::from_secs(7);
/// How long the end of a worker waits for its row to go.
const FORGET_LIMIT: Duration = Duration::from_secs(2);
/// The row of a worker that was silent for this long is deleted.
const DEAD_FOR_GOOD: Duration = Duration::from_secs(24 * 3600);
/// How long a subscription or an effect that another worker has is left alone.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// The wait after a passing fault, at first and at most.
pub(crate) const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
pub(crate) const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// Keeps subscriptions moving.
#[derive(Clone, Debug)]
pub struct Worker {
    engine: Engine,
    criteria: Criteria,
    build: String,
    id: Uuid,
}

impl Worker {
    /// A worker for the subscriptions that meet the criteria; `build` tells people which program this is.
    pub fn new(engine: Engine, criteria: Criteria, build: impl Into<String>) -> Self {
        Self { engine, criteria, build: build.into(), id: Uuid::now_v7() }
    }

    /// Works until `stop` resolves; then finishes the units under way and returns. Nothing runs afterwards.
    ///
    /// `ready` is called once everything is known and about to move.
    pub async fn run(self, stop: impl Future<Output = ()>, ready: impl FnOnce()) -> Result<(), EngineError> {
        refuse_inside_unit()?;
        let Self { engine, criteria, .. } = &self;
        self.beat().await?;
        let is_careful = engine.a_worker_may_have_died(Some(self.id)).await?;
        self.forget_the_dead().await?;
        engine.discover().await?;
        engine.detach(criteria).await?;
        engine.compare_definitions(criteria).await?;
        ready();

        let stopping = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        let (listener, stopped) = (engine.clone(), stopping.subscribe());
        tasks.spawn(async move { listener.store().listen(until(stopped)).await });
        tasks.spawn(self.clone().keep_beating(stopping.subscribe()));
        tasks.spawn(blocked::keep_noting(engine.clone(), stopping.subscribe()));
        tasks.spawn(self.clone().follow_all(stopping.subscribe(), is_careful));
        if !engine.deliveries().is_empty() {
            let (engine, criteria) = (engine.clone(), criteria.clone());
            tasks.spawn(keep_delivering(engine, criteria, self.id, stopping.subscribe()));
        }

        let ended_early = tokio::select! {
            () = stop => None,
            // Nothing ends by itself: this one panicked, and the worker would only look alive.
            ended = tasks.join_next() => ended,
        };
        stopping.send_replace(true);
        engine.store().announce();
        let ended: Vec<_> = ended_early.into_iter().chain(join_all(tasks).await).collect();
        engine.feed().rest().await;
        // Without its row it would only be taken as alive for a while; that must not hold up the end.
        let forget = worker_row::forget_worker(engine.store().database(), self.id);
        if !matches!(tokio::time::timeout(FORGET_LIMIT, forget).await, Ok(Ok(()))) {
            tracing::warn!("could not note that this worker has ended; others will see by its silence");
        }
        // Whatever is left here is another worker's.
        engine.store().announce();
        ended.into_iter().for_each(resume_panic);
        Ok(())
    }

    async fn beat(&self) -> Result<(), EngineError> {
        let ids: Vec<String> =
            self.engine.registry().definitions().map(|definition| definition.id().to_owned()).collect();
        let database = self.engine.store().database();
        let program = self.engine.program();
        Ok(worker_row::beat(database, self.id, program, &self.build, &ids, &self.criteria).await?)
    }

    /// Workers that were killed leave their rows behind; some day those only confuse.
    async fn forget_the_dead(&self) -> Result<(), EngineError> {
        let database = self.engine.store().database();
        for worker in worker_row::workers(database).await? {
            if worker.last_progress_ago >= DEAD_FOR_GOOD {
                worker_row::forget_worker(database, worker.id).await?;
            }
        }
        Ok(())
    }

    async fn keep_beating(self, stopping: watch::Receiver<bool>) {
        while !stopped_within(BEAT, stopping.clone()).await {
            if let Err(error) = self.beat().await {
                let why = messages(&error).join(": ");
                tracing::warn!("could not note that this worker is alive: {why}; trying again");
            }
        }
    }

    /// Starts a task for each subscription, also for those that appear later, and waits for all of them.
    async fn follow_all(self, stopping: watch::Receiver<bool>, is_careful: bool) {
        let mut tasks = JoinSet::new();
        let mut followed = HashSet::new();
        let began = Instant::now();
        while !*stopping.borrow() {
            match self.engine.select(&self.criteria).await {
                Err(error) => {
                    let why = messages(&error).join(": ");
                    tracing::warn!("could not look for subscriptions: {why}; trying again");
                }
                Ok(subscriptions) => {
                    for subscription in subscriptions {
                        let id = subscription.id;
                        if self.engine.registered(&id).is_some() && followed.insert(id.clone()) {
                            let cursor = Cursor::new(&self.engine);
                            let cursor = if is_careful { cursor.with_care() } else { cursor };
                            tasks.spawn(follow(self.engine.clone(), id, cursor, began, stopping.clone()));
                        }
                    }
                }
            }
            if !stopped_within(self.engine.settings().poll, stopping.clone()).await
                && let Some(ended) = tasks.try_join_next()
            {
                resume_panic(ended);
            }
        }
        join_all(tasks).await.into_iter().for_each(resume_panic);
    }
}

/// Keeps one subscription moving until told to stop. All that `began` at the same moment look again at the same moments,
/// so that what they look at is read once for all.
async fn follow(
    engine: Engine,
    id: String,
    mut cursor: Cursor,
    began: Instant,
    stopping: watch::Receiver<bool>,
) {
    let poll = engine.settings().poll;
    let mut wake = engine.store().wake();
    let mut back_off = FIRST_BACK_OFF;
    let mut was_quiet = false;
    let mut has_waited = true;
    let mut obstacle = Obstacle::perhaps_left_behind();
    loop {
        // Without a hint since it was last looked, nothing was committed since that would not be told.
        if wake.arm() || has_waited {
            cursor.look_anew();
        }
        has_waited = false;
        if *stopping.borrow() {
            break;
        }
        // What was only looked at is written down when it is quiet, and before the end.
        let step = engine.step(&id, &mut cursor, was_quiet).await;
        was_quiet = false;
        match step {
            Ok(Step::Moved(_) | Step::Parked(..) | Step::Changed) => {
                back_off = FIRST_BACK_OFF;
                obstacle.is_gone(&engine, &id).await;
            }
            Ok(Step::Idle(due)) => {
                back_off = FIRST_BACK_OFF;
                obstacle.is_gone(&engine, &id).await;
                let wait = until_due(&engine, due).await.min(until_beat(began.elapsed(), poll));
                let start = Instant::now();
                wake.wait(wait).await;
                was_quiet = start.elapsed() >= wait;
                has_waited = true;
            }
            Ok(Step::Busy) => {
                wake.wait(BUSY_PAUSE).await;
                has_waited = true;
            }
            Ok(Step::Stalled(why)) => {
                tracing::warn!(subscription = id, "{id} is stalled: {why}; trying again in {back_off:?}");
                obstacle.is_met(&engine, &id, &why).await;
                cursor.doubt(&engine);
                stopped_within(back_off, stopping.clone()).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            }
            Err(error) => {
                let why = messages(&error).join(": ");
                tracing::warn!(
                    subscription = id,
                    "{id} could not go on: {why}; trying again in {back_off:?}"
                );
                obstacle.is_met(&engine, &id, &why).await;
                cursor.doubt(&engine);
                stopped_within(back_off, stopping.clone()).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            }
        }
    }
    if let Err(error) = engine.save_cursor(&id, &cursor).await {
        tracing::debug!(subscription = id, %error, "{id} is looked at again from its stored position");
    }
}

/// How long it is until the next of the moments that are so far apart.
fn until_beat(elapsed: Duration, apart: Duration) -> Duration {
    let since_last = elapsed.as_nanos().checked_rem(apart.as_nanos()).unwrap_or(0);
    apart.saturating_sub(Duration::from_nanos(u64::try_from(since_last).unwrap_or(u64::MAX)))
}

/// How long it is until then, by the log's clock.
pub(crate) async fn until_due(engine: &Engine, due: Option<Timestamp>) -> Duration {
    let Some(due) = due else { return Duration::MAX };
    engine.clock().now().await.map_or(Duration::MAX, |now| due.since(now))
}

/// Waits until the word to stop comes.
pub(crate) async fn until(mut stopping: watch::Receiver<bool>) {
    // No sender any more means that everything has ended.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Waits for the word to stop, but not longer than this; says whether it came.
pub(crate) async fn stopped_within(at_most: Duration, stopping: watch::Receiver<bool>) -> bool {
    tokio::time::timeout(at_most, until(stopping)).await.is_ok()
}

async fn join_all(mut tasks: JoinSet<()>) -> Vec<Result<(), JoinError>> {
    let mut ended = Vec::new();
    while let Some(task) = tasks.join_next().await {
        ended.push(task);
    }
    ended
}

/// A panic in a task is a defect of ours and must not pass for a clean end.
fn resume_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
