//! Appending: whole or not at all, under an expected version, and safe to repeat.
//!
//! One call is one transaction. Event ids are unique in the whole log, so a call that is repeated because
//! its answer got lost is recognised and answered with what it did the first time. Appends to several
//! streams take all stream rows in the order of their names first, then the append lock, then positions.

mod batch;
mod committer;
mod known;
mod postgres;
mod sqlite;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use uuid::Uuid;

pub(crate) use self::committer::Committer;
use self::known::{known_append, leave_out_stored_derived};
use self::postgres::{Together, append_on_postgres};
use self::sqlite::append_on_sqlite;
use crate::closed::is_closed;
use crate::connection::Connection;
use crate::database::DatabaseKind;
use crate::event::{InvalidEvent, MAX_APPEND_EVENTS, NewEvent, Position, Version};
use crate::guard::BoxError;
use crate::hooks::Untold;
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::tx::Tx;

/// What must hold of the stream for an append to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Nothing.
    Any,
    /// It has no events.
    NoStream,
    /// It has events.
    StreamExists,
    /// Its last event has this version.
    Exactly(Version),
}

/// Events for one stream.
#[derive(Clone, Debug)]
pub struct Append {
    /// The stream.
    pub stream: StreamName,
    /// What must hold of it.
    pub expected: ExpectedVersion,
    /// The events, in order. None is allowed and does nothing.
    pub events: Vec<NewEvent>,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The position of the last event; none when there was nothing to append.
    pub position: Option<Position>,
    /// The version of the last event; none when there was nothing to append.
    pub version: Option<Version>,
    /// The same events had been appended before; this is what that append answered.
    pub replayed: bool,
}

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The stream is not as expected: somebody else appended. Reload and decide again.
    #[error("stream {stream} is at {} but {} was expected", show_actual(*.actual), show_expected(*.expected))]
    WrongVersion {
        /// The stream.
        stream: StreamName,
        /// What was expected of it.
        expected: ExpectedVersion,
        /// The version of its last event; none if it has no events.
        actual: Option<Version>,
    },
    /// An event id is in the log already, and this is not a repetition of that append.
    #[error("event id {id} is already used by position {position} in stream {stream}")]
    IdReused {
        /// The id.
        id: Uuid,
        /// Where it was used.
        stream: StreamName,
        /// Where it was used.
        position: Position,
    },
    /// An event breaks a limit.
    #[error("the append to {stream} is not valid")]
    Invalid {
        /// The stream.
        stream: StreamName,
        /// Which limit.
        #[source]
        source: InvalidEvent,
    },
    /// A transaction appends once, as its last statement: positions are drawn there.
    #[error("this transaction has already appended; put all appends into one call")]
    SecondAppend,
    /// Two appends of one call go to one stream.
    #[error("stream {0} stands twice in one call; put its events into one append")]
    StreamTwice(StreamName),
    /// The append waited behind others for too long and was not begun; nothing was written.
    #[error(
        "the append to {stream} waited {waited:?} for its turn and was not begun; repeat it when there is less to do"
    )]
    NotBegun {
        /// The stream.
        stream: StreamName,
        /// How long it waited.
        waited: Duration,
    },
    /// The store was closed before; nothing was written.
    #[error("the store is closed; nothing can be appended to {0} through this handle")]
    Closed(StreamName),
    /// The stream is closed for good: nothing was written, and nothing will be. Take a stream of another name.
    #[error("stream {0} is closed, and nothing can be appended to it any more; use another stream")]
    StreamClosed(StreamName),
    /// A hook does not allow it; nothing was written, and the ids can be used again.
    #[error("hook {hook:?} refuses the append to {stream}")]
    RefusedByHook {
        /// The stream.
        stream: StreamName,
        /// The hook's name.
        hook: String,
        /// What it said.
        #[source]
        reason: BoxError,
    },
    /// Appending past the transaction that is running here would not commit together with it.
    #[error("an append is refused here: {0}")]
    RefusedHere(&'static str),
    /// The connection broke while the append was under way: it may or may not be in the log. Repeating it
    /// with the same event ids is safe.
    #[error(
        "the connection broke during the append, so its outcome is unknown; repeat it with the same event ids"
    )]
    OutcomeUnknown(#[source] sqlx::Error),
    /// The database refused; nothing was written.
    #[error("could not append")]
    Database(#[from] sqlx::Error),
}

/// What the database did with an append.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Appended(Appended),
    Conflict(Option<Version>),
    /// The stream is closed.
    StreamClosed,
    /// Some of its ids are in the log: see [`known_append`].
    Known,
}

fn show_actual(actual: Option<Version>) -> String {
    actual.map_or_else(|| "no version (it has no events)".to_owned(), |version| format!("version {version}"))
}

fn show_expected(expected: ExpectedVersion) -> String {
    match expected {
        ExpectedVersion::Any => "any version".to_owned(),
        ExpectedVersion::NoStream => "no stream".to_owned(),
        ExpectedVersion::StreamExists => "an existing stream".to_owned(),
        ExpectedVersion::Exactly(version) => format!("version {version}"),
    }
}

tokio::task_local! {
    static REFUSED: &'static str;
}

/// Runs a future in which every append is refused, giving this reason: also one in a lent transaction, which
/// has to be its last statement.
pub async fn refuse_appends<F: Future>(reason: &'static str, future: F) -> F::Output {
    REFUSED.scope(reason, future).await
}

fn refused_here() -> Result<(), AppendError> {
    REFUSED.try_with(|reason| AppendError::RefusedHere(reason)).map_or(Ok(()), Err)
}

impl Store {
    /// Appends events to one stream, in a transaction of their own.
    ///
    /// Returns when the events are durable. Repeating a call with the same event ids is safe and answers
    /// what the first one did. Calls of one process that wait at the same time share a commit, and no other fate.
    /// Who stops waiting for the answer does not know whether the append still happens.
    pub async fn append(
        &self,
        stream: &StreamName,
        expected: ExpectedVersion,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        refuse_types_of_the_log(&events)
            .map_err(|source| AppendError::Invalid { stream: stream.clone(), source })?;
        self.append_own(Append { stream: stream.clone(), expected, events }).await
    }

    /// As [`Store::append`], also of events of the log's own types.
    pub(crate) async fn append_own(&self, mut append: Append) -> Result<Appended, AppendError> {
        refused_here()?;
        self.prepare(std::slice::from_mut(&mut append))?;
        if append.events.is_empty() {
            return Ok(Appended { position: None, version: None, replayed: false });
        }
        let appended = match self.hooks() {
            None => self.committer().append(append).await?,
            Some(hooks) => {
                let appended = self.committer().append(append.clone()).await?;
                hooks.after_append(&append, &appended);
                appended
            }
        };
        self.follow_up(appended).await;
        Ok(appended)
    }

    /// Appends to several streams inside a transaction, as its last statement: once, and then commit.
    ///
    /// Answers in the order of the appends; one that is a repetition answers what it did the first time and
    /// keeps no other from being written. On an error nothing can be committed: roll the transaction back.
    /// Events with a derived id that the log already has are left out: the first stored one wins.
    pub async fn append_all(&self, tx: &mut Tx, appends: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        for Append { stream, events, .. } in &appends {
            refuse_types_of_the_log(events)
                .map_err(|source| AppendError::Invalid { stream: stream.clone(), source })?;
        }
        self.append_all_own(tx, appends).await
    }

    /// As [`Store::append_all`], also of events of the log's own types.
    pub(crate) async fn append_all_own(
        &self,
        tx: &mut Tx,
        mut appends: Vec<Append>,
    ) -> Result<Vec<Appended>, AppendError> {
        refused_here()?;
        self.prepare(&mut appends)?;
        tx.usable()?;
        if appends.iter().all(|append| append.events.is_empty()) {
            return Ok(vec![Appended { position: None, version: None, replayed: false }; appends.len()]);
        }
        if !tx.note_append() {
            return Err(AppendError::SecondAppend);
        }
        let hooks = self.hooks().map(|hooks| (Arc::clone(hooks), appends.clone()));
        // Some of the appends may have been written when another one is refused.
        let result = self.append_sorted(tx, appends).await;
        let appended = tx.remember(result)?;
        if let Some((hooks, appends)) = hooks {
            tx.tell_when_committed(Untold { hooks, appends, appended: appended.clone() });
        }
        Ok(appended)
    }

    /// Checks appends, and has the hooks look at them and fill in what they know. They see only what is valid, and
    /// what they make of it must be so as well.
    fn prepare(&self, appends: &mut [Append]) -> Result<(), AppendError> {
        check(appends)?;
        let Some(hooks) = self.hooks() else { return Ok(()) };
        appends.iter_mut().try_for_each(|append| hooks.before_append(append))?;
        check(appends)
    }

    async fn append_sorted(
        &self,
        tx: &mut Tx,
        mut appends: Vec<Append>,
    ) -> Result<Vec<Appended>, AppendError> {
        let already = leave_out_stored_derived(tx, &mut appends).await?;
        let mut order: Vec<usize> = (0..appends.len()).filter(|i| !appends[*i].events.is_empty()).collect();
        order.sort_by(|a, b| {
            appends[*a].stream.as_str().as_bytes().cmp(appends[*b].stream.as_str().as_bytes())
        });
        let sorted: Vec<&Append> = order.iter().map(|i| &appends[*i]).collect();
        let outcomes = match tx.kind() {
            _ if sorted.is_empty() => Vec::new(),
            DatabaseKind::Postgres => {
                let appended = tx.asked(async |connection| {
                    append_on_postgres(connection, &sorted, Together::AllOrNone).await
                });
                appended.await.map_err(|error| of_closed_stream(error, &sorted))?
            }
            DatabaseKind::Sqlite => append_on_sqlite(tx, self, &sorted).await?,
        };
        let mut results = already;
        for (index, outcome) in order.into_iter().zip(outcomes) {
            results[index] = match outcome {
                Outcome::Appended(appended) => appended,
                Outcome::Conflict(actual) => {
                    return Err(conflict(tx.connection(), &appends[index], actual).await?);
                }
                Outcome::StreamClosed => {
                    return Err(AppendError::StreamClosed(appends[index].stream.clone()));
                }
                Outcome::Known => known_append(tx.connection(), &appends[index]).await?,
            };
        }
        Ok(results)
    }
}

fn check(appends: &[Append]) -> Result<(), AppendError> {
    let (mut streams, mut ids) = (HashSet::new(), HashSet::new());
    for append in appends {
        let invalid = |source| AppendError::Invalid { stream: append.stream.clone(), source };
        if append.stream.is_reserved() {
            return Err(invalid(InvalidEvent::ReservedStream(append.stream.clone())));
        }
        if append.events.len() > MAX_APPEND_EVENTS {
            return Err(invalid(InvalidEvent::TooManyEvents(append.events.len())));
        }
        append.events.iter().try_for_each(NewEvent::check).map_err(invalid)?;
        if let Some(twice) = append.events.iter().find(|event| !ids.insert(event.id)) {
            return Err(invalid(InvalidEvent::IdTwice(twice.id)));
        }
        if !streams.insert(&append.stream) {
            return Err(AppendError::StreamTwice(append.stream.clone()));
        }
    }
    Ok(())
}

/// Types that begin with a dollar sign are the log's own, as such streams are.
fn refuse_types_of_the_log(events: &[NewEvent]) -> Result<(), InvalidEvent> {
    match events.iter().find(|event| event.event_type.starts_with('$')) {
        Some(event) => Err(InvalidEvent::ReservedType(event.event_type.clone())),
        None => Ok(()),
    }
}

/// Why a stream is not as expected: it moved on, or it is closed.
async fn conflict(
    connection: &mut Connection,
    append: &Append,
    actual: Option<Version>,
) -> sqlx::Result<AppendError> {
    if actual.is_some() && is_closed(connection, &append.stream).await? {
        return Ok(AppendError::StreamClosed(append.stream.clone()));
    }
    Ok(wrong_version(append, actual))
}

/// A closed stream's row cannot move on.
pub(crate) fn is_closed_stream(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.constraint().unwrap_or(error.message()).ends_with("herald_streams_closed_for_good")
    })
}

/// Which of several appends met a closed stream: the database tells with the row that it refuses.
fn of_closed_stream(error: sqlx::Error, appends: &[&Append]) -> AppendError {
    if !is_closed_stream(&error) {
        return error.into();
    }
    let row = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .and_then(PgDatabaseError::detail)
        .unwrap_or_default();
    // It tells no more than so many bytes of each value.
    let told = |name: &str| match name.len() {
        ..=64 => format!("({name}, "),
        _ => format!("({}..., ", &name[..name.floor_char_boundary(64)]),
    };
    let closed = appends.iter().find(|append| row.contains(&told(append.stream.as_str())));
    match closed.or(appends.first()) {
        Some(append) => AppendError::StreamClosed(append.stream.clone()),
        None => error.into(),
    }
}

fn wrong_version(append: &Append, actual: Option<Version>) -> AppendError {
    AppendError::WrongVersion { stream: append.stream.clone(), expected: append.expected, actual }
}

/// Tells a broken connection, after which nobody knows, from a refusal.
fn is_broken_connection(error: &sqlx::Error) -> bool {
    // With such an error the server ends the session, be it before or after the commit.
    let ends_the_session = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic));
    ends_the_session
        || matches!(
            error,
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed | sqlx::Error::Tls(_)
        )
}

/// An event id is in the log already. Only the unique index sees that when two calls bring one id at the same
/// time, and it is the cheapest way to see it for an append that is alone in its transaction.
pub(crate) fn is_duplicate_id(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        let index = error.constraint().unwrap_or(error.message());
        error.is_unique_violation()
            && (index == "herald_events_id_key" || index.ends_with("herald_events.id"))
    })
}
