//! The unit: one page of events for one subscription, in one transaction.
//!
//! Read the page, claim the row, handle, append, move the position, commit. All of that commits together or
//! not at all. A page that fails is rolled back and tried again in halves until a single event is left: what
//! stands before it is kept, and the failure is recorded at exactly that event.

use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use store::{Event, Fault, Position, ReadError, Run, Timestamp, Tx, messages, panic_message, refuse_appends};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::context::{Context, ContextError, Planned, Writing, unchanged};
use crate::cursor::Cursor;
use crate::dead_letters::{self, NewLetter};
use crate::engine::{Engine, EngineError, FaultPoint};
use crate::feed::whole_positions;
use crate::markers::{self, Marked};
use crate::park::{self, Behind, stop_at};
use crate::poison::Parked;
use crate::records::{self, Claim};
use crate::retry::RetryStrategy;
use crate::subscriber::{BoxError, Registered};
use crate::subscription::{Failure, Subscription, Transition, next};

tokio::task_local! {
    /// Set while a subscriber runs: it must not run the engine that runs it.
    pub(crate) static IN_UNIT: ();
}

/// What came of a unit.
#[derive(Debug)]
pub(crate) enum Unit {
    /// It handled this many events; everything up to here is behind it. The row as it is now, where nothing is said
    /// elsewhere that belongs to it.
    Moved { events: usize, to: Position, row: Option<Box<Subscription>> },
    /// It handled this many events and set others aside; everything up to here is behind it.
    Parked { events: usize, parked: Parked, to: Position },
    /// Nobody wants anything up to here, where the head is; nothing was written.
    Nothing { scanned_to: Position },
    /// Nobody wants anything up to here, and more follows; nothing was written.
    Looked { scanned_to: Position },
    /// Another worker has it, or somebody changed it meanwhile.
    Busy,
    /// Something passing is in the way; nothing changed.
    Stalled { why: String },
    /// It failed at one event and is in error now.
    Failed(Failure),
}

/// What came of a part of a page.
pub(crate) enum Part {
    /// Also whether timers were set or cancelled.
    Committed {
        timers: bool,
    },
    Busy,
    Stalled(String),
    Failed(BoxError),
}

/// Runs one unit of at most `limit` events after where the cursor stands. Marked, it leaves something behind if it ends
/// the process.
pub(crate) async fn run(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    cursor: &mut Cursor,
    limit: usize,
    is_marked: bool,
) -> Result<Unit, EngineError> {
    // What failed before is tried alone: everything else in the page would be done in vain.
    let limit = if seen.failing_position.is_some() { 1 } else { limit };
    let page = match cursor.next_page(engine, registered, seen, limit).await {
        Ok(page) => page,
        // The next event that it wants: it fails there, and nobody else does.
        Err(error @ ReadError::BadRow { position, .. }) => {
            let at = FailsAt::Row(position);
            return fail(engine, &registered.definition.retry, seen, at, &error).await;
        }
        Err(error) => return Err(error.into()),
    };
    let page_events = page.events();
    let events = page_events;
    if events.is_empty() {
        let scanned_to = page.scanned_to;
        return Ok(if page.is_end { Unit::Nothing { scanned_to } } else { Unit::Looked { scanned_to } });
    }
    let poison = &registered.definition.poison;
    let behind = Behind::look(engine, poison, seen, events).await?;
    let events = match behind.first_too_many(poison, seen, events) {
        None => events,
        Some((0, why)) => return stop_at(engine, seen, &events[0], &why).await,
        Some((end, _)) => &events[..end],
    };
    let marked = Marked::Events(events[0].position);
    if is_marked && !markers::mark(engine.store().database(), seen, marked, events.len()).await? {
        return Ok(Unit::Busy);
    }
    let mut seen = seen.clone();
    let (mut done, mut size) = (0, events.len());
    let (mut handled, mut parked) = (0, None);
    let mut timers = seen.next_timer.is_some();
    while done < events.len() {
        let part = whole_positions(&events[done..], size);
        let is_last = done + part.len() == page_events.len();
        let to = if is_last { page.scanned_to } else { part[part.len() - 1].position };
        let (wanted, letters) = behind.part(done, part);
        let mut after = seen.moved_to(to);
        after.letters = seen.letters.after(count(&wanted), count(&letters));
        let newly_parked = park::parked(&letters);
        match handle(engine, registered, &seen, page.run(), &wanted, letters, &after).await? {
            Part::Committed { timers: more } => {
                timers |= more;
                done += part.len();
                handled += wanted.len();
                parked = Parked::and(parked, newly_parked);
                seen = after;
            }
            Part::Failed(_) if part[0].position != part[part.len() - 1].position => size = part.len() / 2,
            Part::Failed(error) => {
                return Ok(match park::fail_or_park(engine, registered, &seen, &part[0], error).await? {
                    Unit::Parked { parked: last, to, .. } => {
                        let parked = Parked::and(parked, Some(last.clone())).unwrap_or(last);
                        Unit::Parked { events: handled, parked, to }
                    }
                    unit => unit,
                });
            }
            Part::Busy if done == 0 => return Ok(Unit::Busy),
            Part::Stalled(why) if done == 0 => return Ok(Unit::Stalled { why }),
            Part::Busy | Part::Stalled(_) => break,
        }
    }
    let to = seen.read_from();
    Ok(match parked {
        None => {
            let is_whole = done == page_events.len() && !timers;
            Unit::Moved { events: handled, to, row: is_whole.then(|| Box::new(seen)) }
        }
        Some(parked) => Unit::Parked { events: handled, parked, to },
    })
}

fn count<T>(events: &[T]) -> u64 {
    u64::try_from(events.len()).unwrap_or(u64::MAX)
}

/// Handles a part of a page in one transaction, and sets aside what stands behind dead letters.
async fn handle(
    engine: &Engine,
    registered: &Registered,
    seen: &Subscription,
    read_in: Run,
    events: &[Event],
    letters: Vec<NewLetter<'_>>,
    after: &Subscription,
) -> Result<Part, EngineError> {
    let mut context = Context::new(engine, &registered.definition, seen);
    if engine.has_row_locks() {
        if let Err(error) = context.tx().await {
            return not_begun(error);
        }
        if engine.feed().run() != read_in {
            // The server was restarted or replaced since, and may not have these events any more.
            context.roll_back().await;
            return Ok(Part::Busy);
        }
    }
    match work(engine, registered, events, context).await {
        Ok(context) => commit(engine, seen, context, letters, after).await,
        Err(part) => Ok(part),
    }
}

/// Has a subscriber handle events. Where that fails, what it wrote is undone.
pub(crate) async fn work<'a>(
    engine: &Engine,
    registered: &Registered,
    events: &[Event],
    mut context: Context<'a>,
) -> Result<Context<'a>, Part> {
    if events.is_empty() {
        return Ok(context);
    }
    let writing = context.writing();
    let work = registered.subscriber.handle(events, &mut context);
    let worked = bounded(engine, registered.definition.id(), writing, work).await;
    undone_if_failed(worked, context).await
}

/// The context of a subscriber that has worked; where it failed, what it wrote is undone.
pub(crate) async fn undone_if_failed(
    worked: Result<(), BoxError>,
    mut context: Context<'_>,
) -> Result<Context<'_>, Part> {
    let Err(error) = worked else { return Ok(context) };
    match find::<Cut>(&*error) {
        Some(_) => context.abandon().await,
        None => context.roll_back().await,
    }
    Err(classify(error))
}

/// Writes what the handler planned, moves the position, and commits all of it.
async fn commit(
    engine: &Engine,
    seen: &Subscription,
    mut context: Context<'_>,
    letters: Vec<NewLetter<'_>>,
    after: &Subscription,
) -> Result<Part, EngineError> {
    // A handler that wrote nothing has not opened the transaction yet.
    if let Err(error) = context.tx().await {
        return not_begun(error);
    }
    let (Some(mut tx), planned) = context.take() else { return Ok(Part::Busy) };
    let mut advanced = records::advance(&mut tx, seen, after).await;
    if let (Ok(true), false) = (&advanced, letters.is_empty()) {
        advanced = dead_letters::insert(&mut tx, &seen.id, letters).await.map(|()| true);
    }
    match advanced {
        Ok(true) => finish(engine, seen, tx, planned).await,
        Ok(false) => {
            tx.rollback().await;
            Ok(Part::Busy)
        }
        // The handler swallowed a failed statement, or the connection is gone.
        Err(error) => {
            tx.rollback().await;
            Ok(classify(error.into()))
        }
    }
}

/// Writes and appends what a handler planned, and commits.
pub(crate) async fn finish(
    engine: &Engine,
    seen: &Subscription,
    mut tx: Tx,
    planned: Planned,
) -> Result<Part, EngineError> {
    let timers = !planned.timers.is_empty();
    if let Err(error) = planned.timers.write(&mut tx, &seen.id).await {
        tx.rollback().await;
        return Ok(classify(error.into()));
    }
    if let Err(error) = planned.effects.write(&mut tx, seen).await {
        tx.rollback().await;
        return Ok(classify(error.into()));
    }
    // The last statement before the commit: positions are drawn here, and readers wait for who has drawn.
    if let Err(error) = engine.store().append_all(&mut tx, planned.appends).await {
        tx.rollback().await;
        return Ok(classify(error.into()));
    }
    Ok(match commit_tx(engine, &seen.id, tx).await? {
        Ok(()) => Part::Committed { timers },
        Err(error) => classify(error.into()),
    })
}

/// Commits, where a test does not have the process seem to die.
pub(crate) async fn commit_tx(engine: &Engine, id: &str, tx: Tx) -> Result<sqlx::Result<()>, EngineError> {
    engine.strike(FaultPoint::BeforeCommit, id)?;
    if engine.strikes(FaultPoint::InsideCommit, id) {
        // Sends the COMMIT and does not wait for what comes of it.
        let _ = tx.commit().now_or_never();
        return Err(EngineError::Injected(FaultPoint::InsideCommit));
    }
    let committed = tx.commit().await;
    if committed.is_ok() {
        engine.strike(FaultPoint::AfterCommit, id)?;
    }
    Ok(committed)
}

/// The claim was not to be had: that is nobody's failure, unless the row itself is broken.
pub(crate) fn not_begun(error: ContextError) -> Result<Part, EngineError> {
    match error {
        ContextError::Busy => Ok(Part::Busy),
        ContextError::Record(records::RecordError::BadRow(row)) => {
            Err(EngineError::Record(records::RecordError::BadRow(row)))
        }
        error => Ok(Part::Stalled(messages(&error).join(": "))),
    }
}

/// Tells what passes by itself from what is the handler's.
pub(crate) fn classify(error: BoxError) -> Part {
    if let Some(ContextError::Busy) = find(&*error) {
        return Part::Busy;
    }
    match Fault::of(&*error) {
        Fault::Transient | Fault::Unreachable => Part::Stalled(messages(&*error).join(": ")),
        _ => Part::Failed(error),
    }
}

/// The first error of this type in a chain.
pub(crate) fn find<'e, E: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e E> {
    error.downcast_ref().or_else(|| error.source().and_then(find))
}

/// Why a subscriber was cut short.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the handler panicked: {0}")]
    Panicked(String),
    #[error("the handler took longer than {}", humantime::format_duration(*.0))]
    TooSlow(Duration),
    #[error("the handler held SQLite's write lock longer than {}", humantime::format_duration(*.0))]
    HeldTheLock(Duration),
}

/// Runs a subscriber's code: a panic is an error, time is limited, and it cannot append or run the engine
/// past its context.
pub(crate) async fn bounded(
    engine: &Engine,
    id: &str,
    writing: watch::Receiver<Writing>,
    work: impl Future<Output = Result<(), BoxError>>,
) -> Result<(), BoxError> {
    const REASON: &str = "a subscriber appends through its context, so that it commits with its position";
    let work = IN_UNIT.scope((), refuse_appends(REASON, AssertUnwindSafe(work).catch_unwind()));
    let work = engine.on_threads().run(id, work);
    tokio::select! {
        result = work => {
            result.unwrap_or_else(|panic| Err(Cut::Panicked(panic_message(&*panic)).into()))
        }
        cut = out_of_time(engine, writing) => Err(cut.into()),
    }
}

/// Returns when a subscriber has taken too long, or has kept other writers out for too long where they exclude
/// each other. The time in which it waits for the write lock is not counted.
async fn out_of_time(engine: &Engine, mut writing: watch::Receiver<Writing>) -> Cut {
    let limits = engine.settings();
    let mut deadline = Instant::now() + limits.time_limit;
    loop {
        let now = *writing.borrow_and_update();
        let (until, cut) = match now {
            Writing::Queued => {
                let queued = Instant::now();
                if writing.changed().await.is_err() {
                    return pending().await;
                }
                deadline += queued.elapsed();
                continue;
            }
            Writing::Since(since) if !engine.has_row_locks() && since + limits.write_limit < deadline => {
                (since + limits.write_limit, Cut::HeldTheLock(limits.write_limit))
            }
            Writing::NotYet | Writing::Since(_) => (deadline, Cut::TooSlow(limits.time_limit)),
        };
        if tokio::time::timeout_at(until, writing.wait_for(|later| *later != now)).await.is_err() {
            return cut;
        }
    }
}

/// Where a subscription fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FailsAt<'a> {
    /// At no event.
    Nowhere,
    /// At an event that was read.
    Event(&'a Event),
    /// At one that cannot be read.
    Row(Position),
}

impl<'a> FailsAt<'a> {
    fn event(self) -> Option<&'a Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::Nowhere | Self::Row(_) => None,
        }
    }

    fn position(self) -> Option<Position> {
        match self {
            Self::Nowhere => None,
            Self::Event(event) => Some(event.position),
            Self::Row(position) => Some(position),
        }
    }
}

/// Records a failure, unless somebody changed the subscription meanwhile.
pub(crate) async fn fail(
    engine: &Engine,
    retry: &RetryStrategy,
    seen: &Subscription,
    at: FailsAt<'_>,
    error: &(dyn std::error::Error + Send + Sync + 'static),
) -> Result<Unit, EngineError> {
    let now = engine.store().clock().now().await?;
    let mut tx = engine.store().begin().await?;
    // Patiently: the connection of a handler that was cut short may not be closed yet.
    let subscription = match records::claim_patiently(&mut tx, &seen.id).await? {
        Claim::Held(subscription, _) if unchanged(seen, &subscription) => *subscription,
        _ => {
            tx.rollback().await;
            return Ok(Unit::Busy);
        }
    };
    fail_claimed(engine, retry, tx, subscription, at, error, now).await
}

/// Records a failure under a claim, and commits.
pub(crate) async fn fail_claimed(
    engine: &Engine,
    retry: &RetryStrategy,
    mut tx: Tx,
    mut subscription: Subscription,
    at: FailsAt<'_>,
    error: &(dyn std::error::Error + Send + Sync + 'static),
    now: Timestamp,
) -> Result<Unit, EngineError> {
    let failure = Failure::new(error, at.event(), now);
    let position = at.position();
    // Everything before the failing event is handled or not wanted.
    let before = position.map_or(Position::START, |position| Position(position.0 - 1));
    if before > subscription.read_from() {
        subscription.position = Some(before);
    }
    // Attempts count for one failing position: another one begins at none.
    if subscription.failing_position != position {
        subscription.attempt = 0;
        subscription.failing_since = position.map(|_| now);
    }
    subscription.failing_position = position;
    let next_retry = retry.next_retry(subscription.attempt, now);
    let from = subscription.state.status();
    let why = format!("failed: {}", failure.message());
    subscription.state =
        next(&subscription.state, Transition::Fail { failure: failure.clone(), next_retry })?;
    subscription.changed_at = now;
    records::save(&mut tx, &subscription, from, &why, engine.who()).await?;
    tx.commit().await?;
    engine.store().announce();
    let fields = (position.map(|position| position.0), subscription.attempt);
    match next_retry {
        Some(at) => tracing::warn!(
            subscription = subscription.id,
            position = fields.0,
            attempt = fields.1,
            "{} failed and is tried again at {at}: {}",
            subscription.id,
            failure.chain.join(": ")
        ),
        None => tracing::error!(
            subscription = subscription.id,
            position = fields.0,
            attempt = fields.1,
            "{} failed and gave up: {}",
            subscription.id,
            failure.chain.join(": ")
        ),
    }
    Ok(Unit::Failed(failure))
}
