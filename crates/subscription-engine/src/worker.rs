//! The worker: keeps every subscription of its groups moving, by itself, until it is told to stop.
//!
//! One task for each subscription: arm the wake-up, do one step after the other until there is nothing to
//! do, wait. A wake-up is a hint; the poll makes it right. Stopping happens between steps, never inside one.

use std::collections::HashMap;
use std::time::Duration;

use store::{Timestamp, messages};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::engine::{Criteria, Engine, EngineError};
use crate::progress::{Cursor, Step};
use crate::records;

/// How often a worker says that it is there.
const BEAT: Duration = Duration::from_secs(5);
/// How long a subscription that another worker has is left alone.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// The wait after a passing fault, at first and at most.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

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
        let Self { engine, criteria, .. } = &self;
        self.beat().await?;
        engine.discover().await?;
        engine.detach(criteria).await?;
        ready();

        let stopping = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        let (listener, stopped) = (engine.clone(), stopping.subscribe());
        tasks.spawn(async move { listener.store().listen(until(stopped)).await });
        tasks.spawn(self.clone().keep_beating(stopping.subscribe()));
        tasks.spawn(self.clone().follow_all(stopping.subscribe()));

        stop.await;
        stopping.send_replace(true);
        engine.store().announce();
        while let Some(ended) = tasks.join_next().await {
            resume_panic(ended);
        }
        records::forget_worker(engine.store().database(), self.id).await?;
        Ok(())
    }

    async fn beat(&self) -> Result<(), EngineError> {
        let ids: Vec<String> =
            self.engine.registry().definitions().map(|definition| definition.id().to_owned()).collect();
        let database = self.engine.store().database();
        Ok(records::beat(database, self.id, self.engine.program(), &self.build, &ids).await?)
    }

    async fn keep_beating(self, stopping: watch::Receiver<bool>) {
        while !stopped_within(BEAT, stopping.clone()).await {
            if let Err(error) = self.beat().await {
                tracing::warn!(%error, "could not note that this worker is alive; trying again");
            }
        }
    }

    /// Starts a task for each subscription, also for those that appear later, and waits for all of them.
    async fn follow_all(self, stopping: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        let mut followed = HashMap::new();
        let mut wake = self.engine.store().wake();
        while !*stopping.borrow() {
            wake.arm();
            match self.engine.select(&self.criteria).await {
                Err(error) => tracing::warn!(%error, "could not look for subscriptions; trying again"),
                Ok(subscriptions) => {
                    for subscription in subscriptions {
                        if self.engine.registered(&subscription.id).is_some()
                            && !followed.contains_key(&subscription.id)
                        {
                            let id = subscription.id;
                            followed.insert(
                                id.clone(),
                                tasks.spawn(follow(self.engine.clone(), id, stopping.clone())),
                            );
                        }
                    }
                }
            }
            stopped_within(self.engine.settings().poll, stopping.clone()).await;
        }
        while let Some(ended) = tasks.join_next().await {
            resume_panic(ended);
        }
    }
}

/// Keeps one subscription moving until told to stop.
async fn follow(engine: Engine, id: String, stopping: watch::Receiver<bool>) {
    let poll = engine.settings().poll;
    let mut wake = engine.store().wake();
    let mut cursor = Cursor::new();
    let mut back_off = FIRST_BACK_OFF;
    let mut was_quiet = false;
    loop {
        wake.arm();
        let stop = *stopping.borrow();
        // What was only looked at is written down when it is quiet, and before the end.
        let step = engine.step(&id, &mut cursor, was_quiet || stop).await;
        if stop {
            return;
        }
        was_quiet = false;
        match step {
            Ok(Step::Moved(_) | Step::Changed) => back_off = FIRST_BACK_OFF,
            Ok(Step::Idle(due)) => {
                back_off = FIRST_BACK_OFF;
                let wait = until_due(&engine, due).await.min(poll);
                let start = tokio::time::Instant::now();
                wake.wait(wait).await;
                was_quiet = start.elapsed() >= wait;
            }
            Ok(Step::Busy) => wake.wait(BUSY_PAUSE).await,
            Ok(Step::Stalled(why)) => {
                tracing::warn!(subscription = id, "{id} is stalled: {why}; trying again in {back_off:?}");
                stopped_within(back_off, stopping.clone()).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            }
            Err(error) => {
                let why = messages(&error).join(": ");
                tracing::warn!(
                    subscription = id,
                    "{id} could not go on: {why}; trying again in {back_off:?}"
                );
                stopped_within(back_off, stopping.clone()).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            }
        }
    }
}

/// How long it is until then, by the log's clock.
async fn until_due(engine: &Engine, due: Option<Timestamp>) -> Duration {
    let Some(due) = due else { return Duration::MAX };
    engine.clock().now().await.map_or(Duration::MAX, |now| due.since(now))
}

/// Waits until the word to stop comes.
async fn until(mut stopping: watch::Receiver<bool>) {
    // No sender any more means that everything has ended.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Waits for the word to stop, but not longer than this; says whether it came.
async fn stopped_within(at_most: Duration, stopping: watch::Receiver<bool>) -> bool {
    tokio::time::timeout(at_most, until(stopping)).await.is_ok()
}

/// A panic in a task is a defect of ours and must not pass for a clean end.
fn resume_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
