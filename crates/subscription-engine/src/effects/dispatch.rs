//! The delivery part of a worker: takes what is due, has a few sent at the same time, and gives up on attempts of
//! workers that died.
//!
//! It looks at each owner and kind in turn, so that a long queue of one does not hold up the others. Whoever stops
//! it waits until what is under way has been written down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use store::{Timestamp, messages};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use crate::effects::claim::{Look, claim};
use crate::effects::{Delivery, deliver, lanes, ledger};
use crate::engine::{Criteria, Engine, EngineError, refuse_inside_unit};
use crate::records;
use crate::worker::{BUSY_PAUSE, FIRST_BACK_OFF, LONGEST_BACK_OFF, stopped_within, until, until_due};

/// How often it is looked for attempts whose claim has expired.
const LOOK_FOR_EXPIRED: Duration = Duration::from_secs(1);
/// So many of them are given up on at a time.
const EXPIRED_AT_ONCE: i64 = 100;
/// The pace of a destination is forgotten when it is past for this long; it is looked for as often.
const PACE_IS_PAST: Duration = Duration::from_secs(3_600);

/// What [`Engine::deliver`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Attempts that were made.
    pub attempts: u64,
    /// Something could not be taken because others have it.
    pub is_busy: bool,
}

/// Looks for what is due and has it sent.
struct Dispatcher {
    engine: Engine,
    criteria: Criteria,
    by: Uuid,
    sending: JoinSet<Result<(), EngineError>>,
    /// How many of each kind may still begin.
    slots: BTreeMap<String, Arc<Semaphore>>,
    stopping: watch::Receiver<bool>,
    attempts: u64,
    /// The kind and the owner that were served last.
    served: (String, String),
    expired_looked: Option<Instant>,
    paces_looked: Option<Instant>,
}

/// What a round came to.
enum Round {
    /// Something was taken or written; go round again.
    Moved,
    /// Nothing is due before then, but what has to wait until others of its kind are done.
    Idle(Option<Timestamp>),
    /// Others have what is due.
    Busy,
    /// Something passing is in the way.
    Stalled(String),
}

impl Dispatcher {
    fn new(engine: Engine, criteria: Criteria, by: Uuid, stopping: watch::Receiver<bool>) -> Self {
        let sending = JoinSet::new();
        Self {
            engine,
            criteria,
            by,
            sending,
            slots: BTreeMap::new(),
            stopping,
            attempts: 0,
            served: (String::new(), String::new()),
            expired_looked: None,
            paces_looked: None,
        }
    }

    /// Takes one effect of each owner and kind that has something due.
    async fn round(&mut self) -> Result<Round, EngineError> {
        self.reap()?;
        self.give_up_on_expired().await?;
        let now = self.engine.clock().now().await?;
        self.forget_paces(now).await?;
        let (mut due, mut next) = (Vec::new(), None::<Timestamp>);
        for delivery in self.engine.deliveries().iter() {
            for waiting in mine(&self.engine, &self.criteria, delivery.kind()).await? {
                match waiting.next_at {
                    Some(at) if at <= now => due.push((waiting.subscription_id, Arc::clone(delivery))),
                    Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                    None => {}
                }
            }
        }
        // Who comes after the one that was served last.
        let is_before = |one: &(String, Arc<dyn Delivery>)| {
            (one.1.kind(), one.0.as_str()) <= (self.served.0.as_str(), self.served.1.as_str())
        };
        let before = due.iter().take_while(|one| is_before(one)).count();
        due.rotate_left(before);
        let (mut moved, mut busy) = (false, false);
        for (owner, delivery) in due {
            // A server that takes its time holds up what is sent through it, and no other kind.
            let Some(slot) = self.slot(delivery.kind()) else { continue };
            self.served = (delivery.kind().to_owned(), owner.clone());
            match claim(&self.engine, &owner, &delivery, self.by).await? {
                Look::Claimed(claimed) => {
                    self.attempts += 1;
                    let send = deliver::send(self.engine.clone(), *claimed, self.stopping.clone());
                    self.sending.spawn(async move {
                        let _slot = slot;
                        send.await
                    });
                    moved = true;
                }
                Look::Changed => moved = true,
                Look::Nothing => busy = true,
                Look::Stalled(why) => return Ok(Round::Stalled(why)),
            }
        }
        Ok(match (moved, busy) {
            (true, _) => Round::Moved,
            (false, true) => Round::Busy,
            (false, false) => Round::Idle(next),
        })
    }

    /// Room for one more of this kind, as long as it is kept.
    fn slot(&mut self, kind: &str) -> Option<OwnedSemaphorePermit> {
        let at_once = self.engine.settings().effects_at_once.clamp(1, Semaphore::MAX_PERMITS);
        let slots = self.slots.entry(kind.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(at_once)));
        Arc::clone(slots).try_acquire_owned().ok()
    }

    /// Takes note of what has been sent.
    fn reap(&mut self) -> Result<(), EngineError> {
        while let Some(ended) = self.sending.try_join_next() {
            of_task(ended)?;
        }
        Ok(())
    }

    /// Waits until one of those under way is done.
    async fn one_done(&mut self) -> Result<(), EngineError> {
        match self.sending.join_next().await {
            None => Ok(()),
            Some(ended) => of_task(ended),
        }
    }

    async fn give_up_on_expired(&mut self) -> Result<(), EngineError> {
        let is_manual = self.engine.clock().is_manual();
        if !is_manual && self.expired_looked.is_some_and(|looked| looked.elapsed() < LOOK_FOR_EXPIRED) {
            return Ok(());
        }
        self.expired_looked = Some(Instant::now());
        let manual = if is_manual { Some(self.engine.clock().now().await?) } else { None };
        let database = self.engine.store().database();
        for delivery in self.engine.deliveries().iter() {
            for expired in ledger::expired(database, delivery.kind(), manual, EXPIRED_AT_ONCE).await? {
                deliver::give_up_on(&self.engine, delivery, &expired).await?;
            }
        }
        Ok(())
    }

    async fn forget_paces(&mut self, now: Timestamp) -> Result<(), EngineError> {
        if self.paces_looked.is_none_or(|looked| looked.elapsed() >= PACE_IS_PAST) {
            self.paces_looked = Some(Instant::now());
            let past = Timestamp::from_micros(
                now.as_micros() - i64::try_from(PACE_IS_PAST.as_micros()).unwrap_or(i64::MAX),
            );
            lanes::forget_paces(self.engine.store().database(), past).await?;
        }
        Ok(())
    }
}

/// What came of a task. A panic there is a defect of ours and must not pass for a clean end.
fn of_task(ended: Result<Result<(), EngineError>, JoinError>) -> Result<(), EngineError> {
    match ended {
        Ok(result) => result,
        Err(error) => error.try_into_panic().map_or(Ok(()), |panic| std::panic::resume_unwind(panic)),
    }
}

/// The owners that meet the criteria, and when to look next for one of this kind.
async fn mine(engine: &Engine, criteria: &Criteria, kind: &str) -> Result<Vec<lanes::Waiting>, EngineError> {
    let database = engine.store().database();
    let mut waiting = lanes::waiting(database, kind).await?;
    if waiting.is_empty() || *criteria == Criteria::all() {
        return Ok(waiting);
    }
    let subscriptions = records::load_all(database).await?;
    waiting.retain(|waiting| {
        let group = subscriptions.iter().find(|it| it.id == waiting.subscription_id).map(|it| &it.group);
        group.is_some_and(|group| criteria.matches(&waiting.subscription_id, group))
    });
    Ok(waiting)
}

/// Keeps delivering until told to stop, then waits for what is under way.
pub(crate) async fn keep_delivering(
    engine: Engine,
    criteria: Criteria,
    by: Uuid,
    stopping: watch::Receiver<bool>,
) {
    let mut wake = engine.store().wake();
    let poll = engine.settings().poll;
    let mut back_off = FIRST_BACK_OFF;
    let mut dispatcher = Dispatcher::new(engine.clone(), criteria, by, stopping.clone());
    loop {
        wake.arm();
        if *stopping.borrow() {
            break;
        }
        let wait = match dispatcher.round().await {
            Ok(Round::Moved) => {
                back_off = FIRST_BACK_OFF;
                continue;
            }
            Ok(Round::Busy) => BUSY_PAUSE,
            Ok(Round::Idle(next)) => {
                back_off = FIRST_BACK_OFF;
                until_due(&engine, next).await.min(poll)
            }
            Ok(Round::Stalled(why)) => {
                tracing::warn!("effects are stalled: {why}; trying again in {back_off:?}");
                stopped_within(back_off, stopping.clone()).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
                continue;
            }
            Err(error) => {
                let why = messages(&error).join(": ");
                tracing::warn!("could not deliver effects: {why}; trying again in {back_off:?}");
                stopped_within(back_off, stopping.clone()).await;
                back_off = (back_off * 2).min(LONGEST_BACK_OFF);
                continue;
            }
        };
        let is_sending = !dispatcher.sending.is_empty();
        let ended = tokio::select! {
            ended = dispatcher.one_done(), if is_sending => ended,
            () = async { wake.wait(wait).await } => Ok(()),
            () = until(stopping.clone()) => Ok(()),
        };
        if let Err(error) = ended {
            tracing::warn!("could not deliver effects: {}", messages(&error).join(": "));
        }
    }
    while !dispatcher.sending.is_empty() {
        if let Err(error) = dispatcher.one_done().await {
            tracing::warn!("could not deliver effects: {}", messages(&error).join(": "));
        }
    }
}

impl Engine {
    /// Sends what is due now, and what becomes due by that, until nothing is. Only for the kinds that this program
    /// has deliveries for, and only what is planned by active subscriptions that meet the criteria.
    pub async fn deliver(&self, criteria: &Criteria) -> Result<Delivered, EngineError> {
        refuse_inside_unit()?;
        if self.deliveries().is_empty() {
            return Ok(Delivered::default());
        }
        // Nobody asks this one to stop: it ends when there is nothing to do.
        let never = watch::Sender::new(false);
        let mut dispatcher =
            Dispatcher::new(self.clone(), criteria.clone(), Uuid::now_v7(), never.subscribe());
        loop {
            let round = dispatcher.round().await?;
            let is_busy = matches!(round, Round::Busy | Round::Stalled(_));
            match round {
                Round::Moved => {}
                _ if !dispatcher.sending.is_empty() => dispatcher.one_done().await?,
                _ => return Ok(Delivered { attempts: dispatcher.attempts, is_busy }),
            }
        }
    }

    /// The first instant after now at which an effect of these subscriptions is due, or a claim of a worker that
    /// died runs out.
    pub(crate) async fn next_effect_due(
        &self,
        criteria: &Criteria,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, EngineError> {
        let mut next = None::<Timestamp>;
        for kind in self.deliveries().kinds() {
            let waiting = mine(self, criteria, kind).await?;
            let expiries = ledger::under_way(self.store().database(), EXPIRED_AT_ONCE).await?;
            let due = waiting.into_iter().filter_map(|waiting| waiting.next_at);
            let due = due.chain(expiries.into_iter().filter(|it| it.1 == kind).map(|it| it.3));
            next = due.filter(|at| *at > now).chain(next).min();
        }
        Ok(next)
    }

    /// The subscriptions of which an effect is due, or on its way in a worker that lives.
    pub(crate) async fn with_effects_due(&self, now: Timestamp) -> Result<Vec<String>, EngineError> {
        let mut due = Vec::new();
        let mut under_way = Vec::new();
        for kind in self.deliveries().kinds() {
            let waiting = mine(self, &Criteria::all(), kind).await?;
            let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
            due.extend(waiting.into_iter().filter(|it| is_due(it.next_at)).map(|it| it.subscription_id));
            let all = ledger::under_way(self.store().database(), EXPIRED_AT_ONCE).await?;
            under_way.extend(all.into_iter().filter(|it| it.1 == kind));
        }
        if !under_way.is_empty() {
            let workers = self.live_workers().await?;
            let is_under_way = |(_, _, by, until): &(String, String, Uuid, Timestamp)| {
                *until <= now || workers.iter().any(|worker| worker.id == *by)
            };
            due.extend(under_way.into_iter().filter(is_under_way).map(|it| it.0));
        }
        due.sort();
        due.dedup();
        Ok(due)
    }
}
