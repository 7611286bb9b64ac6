//! Exactly once under fire (E-20, E-32, E-60): worker processes come, go and die, and backends and the server with them;
//! operators pause, reactivate, remove, skip, retry and discard; events are poison, and the clock moves.
//!
//! What happens in a run, and after which pause, follows from its number alone. An oracle looks after each action at
//! the checkpoints as they are committed, and once all is mended and quiet at everything: each event handled once or
//! given up by name, in the order of its stream, and answered once; each timer fired once and not early; each effect
//! sent at least once, with one result in the log.

mod action;
mod matrix;
mod oracle;
mod outside;
mod subscribers;
mod worker;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use store::{ExpectedVersion, Fault, Json, NewEvent, Position, Store, StreamName, messages};
use subscription_engine::{Criteria, Engine, LetterFilter, Outcome, Report, Status};
use tokio::time::Instant;
use uuid::Uuid;

pub use self::matrix::{Arguments, Sum, measure, run_many};
pub use self::worker::{WorkerArguments, be_worker};

use self::action::{Action, schedule};
use self::subscribers::{PARKING, REMOVED, STOPPING, engine_on};
use self::worker::WorkerProcess;
use crate::BoxError;
use crate::disturb::Place;

/// How long it may take until all is handled once nothing disturbs any more.
const HEAL_LIMIT: Duration = Duration::from_secs(60);
/// By so much the clock moves on before each look at what is left, in seconds.
const LATER: u64 = 60;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// More of them would only wait for each other.
const MOST_WORKERS: usize = 3;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its number, from which all else follows.
    pub seed: u64,
    /// How much happens.
    pub actions: usize,
    /// A test of the test: what goes wrong in the end, as a statement.
    pub sabotage: Option<&'static str>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Its plan.
    pub plan: Plan,
    /// What was done, and what came of it.
    pub log: Vec<String>,
    /// Events in the log.
    pub events: usize,
    /// Workers that were killed or died.
    pub deaths: usize,
    /// What must not be.
    pub violations: Vec<String>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run {} of {} actions:", self.plan.seed, self.plan.actions)?;
        self.log.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        self.violations.iter().try_for_each(|line| writeln!(f, "VIOLATION: {line}"))
    }
}

/// Runs a plan on an empty database and judges what came of it.
pub async fn run(plan: &Plan, place: &Place<'_>) -> Result<Ended, BoxError> {
    let store = place.database.store_with_manual_clock().await;
    let folder = tempfile::tempdir()?;
    let outbox = folder.path().join("outbox");
    let engine = engine_on(&store, &outbox)?;
    subscribers::prepare(&store).await?;
    engine.set_up(&Criteria::all(), false).await?;
    let mut fire = Fire {
        place,
        store,
        engine,
        outbox,
        workers: Vec::new(),
        acknowledged: Vec::new(),
        ended: Ended::of(plan),
    };
    for (pause, action) in schedule(plan, place.database.is_postgres() && place.cluster.is_some()) {
        tokio::time::sleep(pause).await;
        fire.act(&action).await?;
        match oracle::look(&fire.store, &fire.engine).await {
            Ok(violations) => {
                let after = |violation| format!("after {action:?}: {violation}");
                fire.ended.violations.extend(violations.into_iter().map(after));
            }
            Err(error) => fire.failed(&action, &*error),
        }
    }
    fire.cease_fire().await?;
    if fire.heal().await? {
        if let Some(sql) = plan.sabotage {
            fire.store.database().execute(sql, ()).await?;
        }
        let (events, violations) =
            oracle::judge(&fire.store, &fire.engine, &fire.acknowledged, &fire.outbox).await?;
        fire.ended.events = events;
        fire.ended.violations.extend(violations);
    }
    fire.store.close().await;
    Ok(fire.ended)
}

impl Ended {
    fn of(plan: &Plan) -> Self {
        Self { plan: *plan, log: Vec::new(), events: 0, deaths: 0, violations: Vec::new() }
    }
}

struct Fire<'a> {
    place: &'a Place<'a>,
    store: Store,
    engine: Engine,
    /// Into which effects are sent.
    outbox: PathBuf,
    workers: Vec<WorkerProcess>,
    /// What the log said that it has.
    acknowledged: Vec<Uuid>,
    ended: Ended,
}

impl Fire<'_> {
    async fn act(&mut self, action: &Action) -> Result<(), BoxError> {
        let did = match action {
            Action::Append { stream, types } => self.append(stream, types).await,
            Action::Start { seed } if self.workers.len() < MOST_WORKERS => {
                let worker =
                    WorkerProcess::start(self.place.child, self.place.database.url(), *seed, &self.outbox)?;
                self.workers.push(worker);
                Ok("started".to_owned())
            }
            Action::Start { .. } => Ok("there are enough".to_owned()),
            Action::Kill { which } => match self.worker(*which) {
                Some(worker) => self.end(worker, true).await,
                None => Ok("nobody".to_owned()),
            },
            Action::Stop { which } => match self.worker(*which) {
                Some(worker) => self.end(worker, false).await,
                None => Ok("nobody".to_owned()),
            },
            Action::Terminate { which } => oracle::end_backend(&self.store, *which).await,
            Action::KillBackend { which } => oracle::kill_backend(&self.store, *which).await,
            Action::Restart => {
                let cluster = self.place.cluster.ok_or("only a server of our own is restarted")?;
                tokio::task::block_in_place(|| cluster.restart_immediate())?;
                Ok("restarted".to_owned())
            }
            Action::Pause { id } => said(self.engine.pause(&Criteria::id(*id), "fire").await),
            Action::Reactivate { id } => said(self.engine.reactivate(&Criteria::id(*id), "fire").await),
            Action::Remove => said(self.engine.remove(&Criteria::id(REMOVED), "fire").await),
            Action::Skip => self.skip().await,
            Action::Retry => {
                let retried = self.engine.retry_dead_letters(PARKING, &LetterFilter::default(), "fire").await;
                retried.map(|report| format!("{report:?}")).map_err(Into::into)
            }
            Action::Discard => self.discard().await,
            Action::Advance { seconds } => self.advance(*seconds).await,
        };
        match did {
            Ok(line) => self.ended.log.push(format!("{action:?}: {line}")),
            Err(error) => self.failed(action, &*error),
        }
        Ok(())
    }

    /// A database that is out of reach is part of the game; every other error is not.
    fn failed(&mut self, action: &Action, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        let line = format!("{action:?} failed: {}", messages(error).join(": "));
        if !matches!(Fault::of(error), Fault::Transient | Fault::Unreachable) {
            self.ended.violations.push(line.clone());
        }
        self.ended.log.push(line);
    }

    fn worker(&mut self, which: usize) -> Option<WorkerProcess> {
        let count = self.workers.len();
        (count > 0).then(|| self.workers.swap_remove(which % count))
    }

    async fn end(&mut self, worker: WorkerProcess, kill: bool) -> Result<String, BoxError> {
        let end = if kill { worker.kill()? } else { worker.stop().await? };
        self.ended.deaths += usize::from(kill || end.died);
        self.ended.violations.extend(end.violation);
        Ok(end.how)
    }

    async fn append(&mut self, stream: &str, types: &[&'static str]) -> Result<String, BoxError> {
        let events: Vec<NewEvent> =
            types.iter().map(|name| NewEvent::new(*name, Json::empty_object())).collect();
        let ids: Vec<Uuid> = events.iter().map(|event| event.id).collect();
        let appended = self.store.append(&StreamName::new(stream)?, ExpectedVersion::Any, events).await?;
        self.acknowledged.extend(ids);
        Ok(format!("up to {:?}", appended.position))
    }

    async fn skip(&self) -> Result<String, BoxError> {
        let overview = self.engine.status(&Criteria::id(STOPPING)).await?.into_iter().next();
        let Some(at) = overview.and_then(|overview| overview.subscription.failing_position) else {
            return Ok("it does not fail".to_owned());
        };
        Ok(format!("{:?}", self.engine.skip(STOPPING, at, "fire").await?))
    }

    async fn discard(&self) -> Result<String, BoxError> {
        let letters = self.engine.dead_letters(Some(PARKING), &LetterFilter::default(), None, 1).await?;
        let Some(letter) = letters.first() else { return Ok("there is none".to_owned()) };
        let filter = LetterFilter::at(letter.event.position);
        Ok(format!("{:?}", self.engine.discard_dead_letters(PARKING, &filter, "fire").await?))
    }

    async fn advance(&self, seconds: u64) -> Result<String, BoxError> {
        let later = self.store.clock().now().await?.plus(Duration::from_secs(seconds));
        self.store.clock().set(later).await?;
        Ok(later.to_string())
    }

    /// The last workers end, the one in good order and the other not.
    async fn cease_fire(&mut self) -> Result<(), BoxError> {
        let mut kill = false;
        while let Some(worker) = self.workers.pop() {
            let how = self.end(worker, kill).await?;
            self.ended.log.push(format!("the end of a worker: {how}"));
            kill = !kill;
        }
        Ok(())
    }

    /// Mends all, and works until nothing is left to do; says whether that came to an end.
    async fn heal(&mut self) -> Result<bool, BoxError> {
        let deadline = Instant::now() + HEAL_LIMIT;
        loop {
            let left = match self.work_off().await {
                Ok(left) if left.is_empty() => return Ok(true),
                Ok(left) => left.join(", "),
                Err(error) => messages(&*error).join(": "),
            };
            if Instant::now() > deadline {
                self.ended.violations.push(format!("it did not come to an end: {left}"));
                return Ok(false);
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// What is still left to do after all that can be done now.
    async fn work_off(&self) -> Result<Vec<String>, BoxError> {
        subscribers::mend(&self.store).await?;
        // Claims of the dead run out, timers fall due, and what was sent in vain is tried again.
        self.advance(LATER).await?;
        let all = Criteria::all();
        for overview in self.engine.status(&all).await? {
            if let Status::Paused | Status::Error = overview.subscription.state.status() {
                self.engine
                    .reactivate(&Criteria::id(overview.subscription.id), "the fire has ceased")
                    .await?;
            }
        }
        let mut left = still_moving(self.engine.catch_up(&all).await?);
        let report = self.engine.retry_dead_letters(PARKING, &LetterFilter::default(), "mended").await?;
        if report.failed > 0 || report.stopped.is_some() {
            left.push(format!("{report:?}"));
        }
        // What was retried is answered, and the answers are to be passed.
        left.extend(still_moving(self.engine.catch_up(&all).await?));
        left.extend(outside::left(&self.store).await?);
        let head = self.store.head().await?;
        for overview in self.engine.status(&all).await? {
            let subscription = overview.subscription;
            let is_done = subscription.state.status() == Status::Active
                && subscription.position.unwrap_or(Position::START) == head.position
                && subscription.letters.open == 0;
            if !is_done || !head.is_end {
                left.push(format!("{subscription:?} of {head:?}"));
            }
        }
        Ok(left)
    }
}

fn said(report: Result<Report, subscription_engine::EngineError>) -> Result<String, BoxError> {
    Ok(report.map(|report| format!("{report:?}"))?)
}

fn still_moving(report: Report) -> Vec<String> {
    let is_done = |outcome: &Outcome| matches!(outcome, Outcome::CaughtUp { .. } | Outcome::Parked { .. });
    let moving = report.into_iter().filter(|(_, outcome)| !is_done(outcome));
    moving.map(|(id, outcome)| format!("{id} {outcome:?}")).collect()
}
