//! What a subscriber works with: the transaction, its tables, and the door to everything it brings about.
//!
//! The transaction opens when it is first asked for, so that on SQLite reading and folding happen before the
//! one write lock is taken. What a handler appends is kept until the end and written as the last thing
//! before the commit; its ids are derived from the cause, so doing the work again changes nothing.

use std::collections::HashMap;

use store::{
    Append, DomainEvent, Event, ExpectedVersion, InvalidJson, InvalidStreamName, Json, NewEvent, Position,
    ReadError, Snapshot, SnapshotError, Sql, Store, StreamName, StreamPage, TableName, Timestamp, Tx,
    UndecodableEvent, Values, Version,
};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::effects::{InvalidEffect, PlannedEffects};
use crate::engine::Engine;
use crate::gate::Passage;
use crate::records::{self, Claim, RecordError, Session};
use crate::subscriber::{BoxError, Definition};
use crate::subscription::Subscription;
use crate::timers::{InvalidTimer, PlannedTimers, Timer};

/// The namespace of ids that are derived from a cause.
pub(crate) const DERIVED_IDS: Uuid = Uuid::from_u128(0x6f2c_1d0e_8a54_5b7f_9c33_4e1a_77d2_90b6);

/// Lent to a subscriber for one call.
#[derive(Debug)]
pub struct Context<'a> {
    engine: &'a Engine,
    pub(crate) definition: &'a Definition,
    /// The row as it was when this unit was planned; claimed again when the transaction opens.
    pub(crate) seen: &'a Subscription,
    /// Whether the row is still as this unit needs it.
    still_fits: fn(&Subscription, &Subscription) -> bool,
    pub(crate) tx: Option<Tx>,
    /// Whose connection that is on the server.
    session: Option<Session>,
    /// Held as long as the transaction, where writers exclude each other.
    passage: Option<Passage>,
    /// For whoever bounds it.
    writing: watch::Sender<Writing>,
    appends: Vec<Append>,
    /// What is to be done outside once this has committed.
    pub(crate) effects: PlannedEffects,
    /// What is to be called for later, and what is not any more.
    pub(crate) timers: PlannedTimers,
    ordinals: HashMap<(Uuid, StreamName, String), u32>,
}

/// What a subscriber has planned: written as the last thing before the commit.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) appends: Vec<Append>,
    pub(crate) effects: PlannedEffects,
    pub(crate) timers: PlannedTimers,
}

impl Planned {
    pub(crate) fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.effects.is_empty() && self.timers.is_empty()
    }
}

/// How far a subscriber's transaction is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Writing {
    /// It has not asked for it.
    NotYet,
    /// It waits until others are done: not its fault, and not its time.
    Queued,
    /// It has it.
    Since(Instant),
}

/// Says that a subscriber waits, until it has what it waits for or gives up.
struct Queued<'a>(&'a watch::Sender<Writing>);

impl<'a> Queued<'a> {
    fn behind(writing: &'a watch::Sender<Writing>) -> Self {
        writing.send_replace(Writing::Queued);
        Self(writing)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.send_replace(Writing::NotYet);
    }
}

/// Why a subscriber could not have what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Somebody else moved or stopped this subscription meanwhile; the unit ends without a trace.
    #[error("the subscription is claimed or was changed by somebody else")]
    Busy,
    /// The definition names no such table.
    #[error("subscriber {subscriber} has no table {table:?}: name it in its definition")]
    UnknownTable {
        /// Whose definition.
        subscriber: String,
        /// The table asked for.
        table: String,
    },
    /// The stream is not where the append expects it, counting what this unit has appended already.
    #[error("stream {stream} cannot be as expected: this unit has appended to it before")]
    OwnConflict {
        /// The stream.
        stream: StreamName,
    },
    /// An event cannot be written as JSON.
    #[error("the event cannot be written as JSON")]
    Unwritable(#[from] InvalidJson),
    /// An effect breaks a limit.
    #[error(transparent)]
    InvalidEffect(#[from] InvalidEffect),
    /// More stands before an event than the handler is ready for.
    #[error("more than {at_most} events stand before position {position}; look for fewer, or allow more")]
    TooManyBefore {
        /// Before which event.
        position: Position,
        /// How many were allowed.
        at_most: usize,
    },
    /// The subscription's own stream cannot have its name.
    #[error("the subscription's id makes no stream name")]
    InvalidStream(#[from] InvalidStreamName),
    /// A timer breaks a limit.
    #[error(transparent)]
    InvalidTimer(#[from] InvalidTimer),
    /// The row of the subscription could not be claimed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database refused.
    #[error("could not open the transaction")]
    Database(#[from] sqlx::Error),
}

impl<'a> Context<'a> {
    pub(crate) fn new(engine: &'a Engine, definition: &'a Definition, seen: &'a Subscription) -> Self {
        Self {
            engine,
            definition,
            seen,
            still_fits: unchanged,
            tx: None,
            session: None,
            passage: None,
            writing: watch::Sender::new(Writing::NotYet),
            appends: Vec::new(),
            effects: PlannedEffects::default(),
            timers: PlannedTimers::default(),
            ordinals: HashMap::new(),
        }
    }

    /// A context for work that does not move the position: it may move meanwhile, the state may not change.
    pub(crate) fn in_any_place(self) -> Self {
        Self { still_fits: |seen, now| seen.state == now.state, ..self }
    }

    /// A context around a transaction that already holds the claim.
    pub(crate) fn claimed(
        engine: &'a Engine,
        definition: &'a Definition,
        seen: &'a Subscription,
        tx: Tx,
        session: Session,
    ) -> Self {
        let context = Self { tx: Some(tx), session: Some(session), ..Self::new(engine, definition, seen) };
        context.writing.send_replace(Writing::Since(Instant::now()));
        context
    }

    /// The transaction. It is committed by the engine together with the position, or not at all.
    pub async fn tx(&mut self) -> Result<&mut Tx, ContextError> {
        if self.tx.is_none() {
            let queued = Queued::behind(&self.writing);
            let passage = self.engine.gate().pass().await;
            let mut tx = self.engine.store().begin().await?;
            drop(queued);
            self.writing.send_replace(Writing::Since(Instant::now()));
            match records::claim(&mut tx, &self.seen.id).await {
                Ok(Claim::Held(now, session)) if (self.still_fits)(self.seen, &now) => {
                    self.session = Some(session);
                }
                Ok(_) => {
                    tx.rollback().await;
                    return Err(ContextError::Busy);
                }
                Err(error) => {
                    tx.rollback().await;
                    return Err(error.into());
                }
            }
            self.passage = Some(passage);
            return Ok(self.tx.insert(tx));
        }
        self.tx.as_mut().ok_or(ContextError::Busy)
    }

    /// Runs a statement on a table of this subscriber, which the statement calls `{t}`.
    pub async fn execute(
        &mut self,
        table: &str,
        sql: &'static str,
        values: impl Values,
    ) -> Result<u64, BoxError> {
        let sql = Sql::named(sql, &self.table(table)?);
        Ok(self.tx().await?.execute(sql, values).await?)
    }

    /// Runs a statement with `{rows}` on a table of this subscriber, over all rows at once.
    pub async fn execute_many<V: Values>(
        &mut self,
        table: &str,
        sql: &'static str,
        rows: Vec<V>,
    ) -> Result<u64, BoxError> {
        let sql = Sql::named(sql, &self.table(table)?);
        Ok(self.tx().await?.execute_many(sql, rows).await?)
    }

    /// The name in the database of a table of this subscriber.
    pub fn table(&self, name: &str) -> Result<TableName, ContextError> {
        let unknown =
            || ContextError::UnknownTable { subscriber: self.definition.id.clone(), table: name.to_owned() };
        let table = self.definition.tables.get(name).ok_or_else(unknown)?;
        TableName::new(table).map_err(|_| unknown())
    }

    /// The door to everything that this event brings about.
    pub fn because_of<'c>(&'c mut self, event: &'c Event) -> Cause<'c, 'a> {
        let origin = Origin {
            event: Some(event),
            seed: event.id,
            event_id: event.id,
            stored_id: event.stored_id(),
            position: event.position,
            correlation_id: event.correlation_id.as_ref(),
            recorded_at: event.recorded_at,
        };
        Cause { context: self, origin }
    }

    /// The door to everything that this timer brings about: its cause is the event because of which it was set.
    pub fn because_of_timer<'c>(&'c mut self, timer: &'c Timer) -> Cause<'c, 'a> {
        let origin = Origin {
            event: None,
            seed: timer.id,
            event_id: timer.cause_id,
            stored_id: timer.cause_id,
            position: timer.cause_position,
            correlation_id: timer.correlation_id.as_ref(),
            recorded_at: timer.caused_at,
        };
        Cause { context: self, origin }
    }

    /// The log, such as for its clock. Whoever reads it through this handle does so beside the transaction; appends
    /// past this context are refused.
    pub fn store(&self) -> &'a Store {
        self.engine.store()
    }

    /// The events of a stream from a version on, as [`Store::read_stream`]: what is committed, without what this unit
    /// appends.
    pub async fn read_stream(
        &mut self,
        stream: &StreamName,
        from_version: i64,
        limit: usize,
    ) -> Result<StreamPage, ContextError> {
        let store = self.engine.store();
        // Reading does not take SQLite's write lock: the transaction is used only if it is open. But then it is, so
        // that a unit never waits for a second connection.
        Ok(match &mut self.tx {
            Some(tx) => store.read_stream_in(tx, stream, from_version, limit).await?,
            None => store.read_stream(stream, from_version, limit).await?,
        })
    }

    /// The newest snapshot of a stream at or below a version, as [`Store::snapshot`].
    pub async fn snapshot(
        &mut self,
        stream: &StreamName,
        schema_number: u32,
        up_to: Version,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        let store = self.engine.store();
        match &mut self.tx {
            Some(tx) => store.snapshot_in(tx, stream, schema_number, Some(up_to)).await,
            None => store.snapshot(stream, schema_number, Some(up_to)).await,
        }
    }

    pub(crate) fn writing(&self) -> watch::Receiver<Writing> {
        self.writing.subscribe()
    }

    /// The transaction and what is planned for it; the gate stays passed as long as the context lives.
    pub(crate) fn take(&mut self) -> (Option<Tx>, Planned) {
        let planned = Planned {
            appends: std::mem::take(&mut self.appends),
            effects: std::mem::take(&mut self.effects),
            timers: std::mem::take(&mut self.timers),
        };
        (self.tx.take(), planned)
    }

    /// Undoes what was written.
    pub(crate) async fn roll_back(mut self) {
        if let Some(tx) = self.tx.take() {
            tx.rollback().await;
        }
    }

    /// Undoes what was written by work that was cut short: its connection may be in the middle of a statement,
    /// so it is closed, and the server does not finish the statement either.
    pub(crate) async fn abandon(&mut self) {
        if let (Some(tx), Some(session)) = (self.tx.take(), self.session) {
            records::end_session(self.engine.store().database(), session).await;
            drop(tx);
        }
    }
}

/// The row still says what this unit was planned on.
pub(crate) fn unchanged(seen: &Subscription, now: &Subscription) -> bool {
    let tries = |of: &Subscription| (of.attempt, of.failing_position, of.letters);
    let stands = |of: &Subscription| (of.position, of.history_to);
    seen.state == now.state && stands(seen) == stands(now) && tries(seen) == tries(now)
}

/// What a handler does because of one event, at once or when a timer fires that was set because of it.
#[derive(Debug)]
pub struct Cause<'c, 'a> {
    pub(crate) context: &'c mut Context<'a>,
    pub(crate) origin: Origin<'c>,
}

/// What is known of a cause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'c> {
    /// The event itself; none where a timer is the cause.
    pub(crate) event: Option<&'c Event>,
    /// Of what ids are derived: the event, or the timer, so that what a timer brings about is never taken for what
    /// its event has brought about already.
    pub(crate) seed: Uuid,
    /// The event as a handler sees it, which may be a part of one.
    pub(crate) event_id: Uuid,
    /// The event that the log has.
    pub(crate) stored_id: Uuid,
    pub(crate) position: Position,
    pub(crate) correlation_id: Option<&'c String>,
    pub(crate) recorded_at: Timestamp,
}

/// An event of a stream as a handler sees it: stored, or appended by this very unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastEvent {
    /// Its type.
    pub event_type: String,
    /// Its payload.
    pub payload: Json,
    /// Its metadata.
    pub metadata: Json,
    /// Where it stands; none if this unit appends it.
    pub position: Option<Position>,
}

impl PastEvent {
    /// As [`Event::decode`].
    pub fn decode<E: DomainEvent>(&self) -> Option<Result<E, UndecodableEvent>> {
        let position = self.position.unwrap_or(Position::START);
        store::decode(position, &self.event_type, &self.payload, &self.metadata)
    }
}

/// A stream as a handler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedStream {
    /// Its events, oldest first.
    pub events: Vec<PastEvent>,
    /// What to expect of it when appending a decision made on these events.
    pub expected: ExpectedVersion,
}

/// A stream is read in pages of this size.
const STREAM_PAGE: usize = 1_000;

impl Cause<'_, '_> {
    /// The event that is the causation of everything that this brings about.
    pub fn causation_id(&self) -> Uuid {
        self.origin.stored_id
    }

    /// The same cause for what begins a work of its own: what it brings about does not belong to the cause's correlation.
    #[must_use]
    pub fn without_correlation(mut self) -> Self {
        self.origin.correlation_id = None;
        self
    }

    /// Appends an event when this unit commits.
    ///
    /// Its id is derived from the cause, so it is appended once however often this is repeated. It gets the
    /// cause's id as causation and the cause's correlation.
    pub fn append(
        &mut self,
        stream: &StreamName,
        expected: ExpectedVersion,
        event_type: &str,
        payload: Json,
    ) -> Result<Uuid, ContextError> {
        self.plan(stream, expected, NewEvent::new(event_type, payload))
    }

    /// As [`Cause::append`], of an event with metadata. Its id, correlation and causation are set here.
    pub fn append_new(
        &mut self,
        stream: &StreamName,
        expected: ExpectedVersion,
        event: NewEvent,
    ) -> Result<Uuid, ContextError> {
        self.plan(stream, expected, event)
    }

    /// As [`Cause::append`], of a typed event, in the form in which that is written today.
    pub fn append_event<E: DomainEvent>(
        &mut self,
        stream: &StreamName,
        expected: ExpectedVersion,
        event: &E,
    ) -> Result<Uuid, ContextError> {
        self.plan(stream, expected, NewEvent::of(event)?)
    }

    pub(crate) fn plan(
        &mut self,
        stream: &StreamName,
        expected: ExpectedVersion,
        event: NewEvent,
    ) -> Result<Uuid, ContextError> {
        let event_type = &event.event_type;
        let seed = self.origin.seed;
        let key = (seed, stream.clone(), event_type.clone());
        let ordinal = self.context.ordinals.entry(key).or_insert(0);
        let name = format!("{seed}\n{}\n{stream}\n{event_type}\n{ordinal}", self.context.definition.id);
        *ordinal += 1;
        let id = Uuid::new_v5(&DERIVED_IDS, name.as_bytes());
        let event = NewEvent {
            id,
            id_is_derived: true,
            correlation_id: self.origin.correlation_id.cloned(),
            // Of a part, the event that the log has.
            causation_id: Some(self.origin.stored_id),
            ..event
        };
        match self.context.appends.iter_mut().find(|append| append.stream == *stream) {
            None => {
                self.context.appends.push(Append { stream: stream.clone(), expected, events: vec![event] });
            }
            Some(append) => {
                append.expected = joined(append, expected)
                    .ok_or_else(|| ContextError::OwnConflict { stream: stream.clone() })?;
                append.events.push(event);
            }
        }
        Ok(id)
    }

    /// Reads a stream to decide on, with what this unit has appended to it so far. It may grow before this unit
    /// commits; then the expected version tells, and the unit is repeated.
    pub async fn load(&mut self, stream: &StreamName) -> Result<LoadedStream, ContextError> {
        let mut events = Vec::new();
        let mut count = 0;
        loop {
            let page = self.context.read_stream(stream, count, STREAM_PAGE).await?;
            events.extend(page.events.into_iter().map(|event| PastEvent {
                event_type: event.event_type,
                payload: event.payload,
                metadata: event.metadata,
                position: Some(event.position),
            }));
            // Not the number of events: upcasters may show one as several or as none.
            count = page.scanned_to.map_or(count, |last| last.0 + 1);
            if page.next.is_none() {
                break;
            }
        }
        let own = self.context.appends.iter().filter(|append| append.stream == *stream);
        for new in own.flat_map(|append| append.events.clone()) {
            let NewEvent { event_type, payload, metadata, .. } = new;
            events.push(PastEvent { event_type, payload, metadata, position: None });
            count += 1;
        }
        let expected = match count {
            0 => ExpectedVersion::NoStream,
            count => ExpectedVersion::Exactly(Version(count - 1)),
        };
        Ok(LoadedStream { events, expected })
    }
}

/// What to expect of a stream at the commit, if the events planned for it so far are followed by some that
/// expect this; none if both cannot be true.
fn joined(planned: &Append, expected: ExpectedVersion) -> Option<ExpectedVersion> {
    use ExpectedVersion::{Any, Exactly, NoStream, StreamExists};
    let count = i64::try_from(planned.events.len()).ok()?;
    match (planned.expected, expected) {
        (first, Any | StreamExists) => Some(first),
        (_, NoStream) => None,
        (Exactly(before), Exactly(version)) => (before.0 + count == version.0).then_some(planned.expected),
        (NoStream, Exactly(version)) => (count - 1 == version.0).then_some(NoStream),
        (Any | StreamExists, Exactly(version)) if version.0 >= count => {
            Some(Exactly(Version(version.0 - count)))
        }
        (Any, Exactly(version)) => (version.0 == count - 1).then_some(NoStream),
        (StreamExists, Exactly(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e22_expectations_of_one_unit_on_one_stream_are_joined() {
        use ExpectedVersion::{Any, Exactly, NoStream};
        let planned = |expected| Append {
            stream: StreamName::new("s").unwrap(),
            expected,
            events: vec![NewEvent::new("T", Json::empty_object()); 2],
        };
        let exactly = |version| Exactly(Version(version));
        assert_eq!(joined(&planned(exactly(4)), exactly(6)), Some(exactly(4)));
        assert_eq!(joined(&planned(exactly(4)), exactly(5)), None);
        assert_eq!(joined(&planned(NoStream), exactly(1)), Some(NoStream));
        assert_eq!(joined(&planned(Any), exactly(6)), Some(exactly(4)));
        assert_eq!(joined(&planned(Any), exactly(1)), Some(NoStream));
        assert_eq!(joined(&planned(Any), NoStream), None);
        assert_eq!(joined(&planned(exactly(0)), Any), Some(exactly(0)));
    }
}
