//! Closed streams: their events stay in the log, and nobody reads them or appends to them any more.
//!
//! A stream is closed by an event of its own, its last one. Reads of the stream say that there is none; every other read
//! skips its events. What inspects the log as it is still shows them: an event by its position, exports, backups and
//! verification. A closed stream stays closed: whoever needs one again takes another name.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::append::{Append, AppendError, Appended, ExpectedVersion};
use crate::connection::Connection;
use crate::database::Database;
use crate::event::{Event, NewEvent};
use crate::json::{InvalidJson, Json};
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::tx::Tx;

/// The type of the event that closes its stream.
pub const CLOSED: &str = "$closed";

/// Another process may have closed a stream; so often that is looked for, while somebody reads.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Names are fetched in pages of this size.
const PAGE: i64 = 10_000;

/// The streams that are known to be closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closed(Arc<HashSet<String>>);

impl Closed {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, event: &Event) -> bool {
        !self.0.is_empty() && self.0.contains(event.stream.as_str())
    }
}

/// What a process knows of closed streams, and since when.
#[derive(Debug, Default)]
pub(crate) struct KnownClosed(Mutex<(Closed, Option<Instant>)>);

impl KnownClosed {
    /// What was known at the last look.
    pub(crate) fn known(&self) -> Closed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Has the next read look.
    pub(crate) fn look_again(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
    }

    /// What is known, after a look if the last one is too long ago. Streams are closed and never opened: as long as there
    /// are as many as before, they are the same.
    pub(crate) async fn look(&self, database: &Database) -> sqlx::Result<Closed> {
        let known = {
            let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if now.1.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
                return Ok(now.0.clone());
            }
            // Others need not look as well.
            now.1 = Some(Instant::now());
            now.0.clone()
        };
        let fetched = match fetch(database, known).await {
            Err(error) if is_older_schema(&error) => Ok(Closed::default()),
            fetched => fetched,
        };
        match fetched {
            Ok(closed) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = closed.clone();
                Ok(closed)
            }
            Err(error) => {
                self.look_again();
                Err(error)
            }
        }
    }
}

async fn fetch(database: &Database, known: Closed) -> sqlx::Result<Closed> {
    let count = "SELECT COUNT(*) FROM herald_streams WHERE closed_version IS NOT NULL";
    let row: Option<(i64,)> = database.fetch_optional(count, ()).await?;
    if row.is_some_and(|row| usize::try_from(row.0) == Ok(known.0.len())) {
        return Ok(known);
    }
    let (mut names, mut after) = (HashSet::new(), String::new());
    loop {
        let sql = "SELECT stream FROM herald_streams
                    WHERE closed_version IS NOT NULL AND stream > $1
                    ORDER BY stream
                    LIMIT $2";
        let page: Vec<(String,)> = database.fetch_all(sql, (after.clone(), PAGE)).await?;
        let Some((last,)) = page.last() else { return Ok(Closed(Arc::new(names))) };
        after.clone_from(last);
        names.extend(page.into_iter().map(|row| row.0));
    }
}

/// Whether a stream is closed, whatever is known.
pub(crate) async fn is_closed(connection: &mut Connection, stream: &StreamName) -> sqlx::Result<bool> {
    let sql = "SELECT closed_version FROM herald_streams WHERE stream = $1 AND closed_version IS NOT NULL";
    match connection.fetch_optional::<(i64,)>(sql.into(), (stream.as_str(),)).await {
        Err(error) if is_older_schema(&error) => Ok(false),
        row => Ok(row?.is_some()),
    }
}

/// A log that was not migrated yet is looked at as well; it has no closed streams.
fn is_older_schema(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.code().as_deref() == Some("42703") || error.message().contains("no such column: closed_version")
    })
}

/// Why a stream was closed, in its last event.
#[derive(serde::Serialize)]
struct Closing<'a> {
    reason: &'a str,
}

fn closing(stream: &StreamName, reason: &str) -> Result<Append, InvalidJson> {
    let event = NewEvent::new(CLOSED, Json::of(&Closing { reason })?);
    Ok(Append { stream: stream.clone(), expected: ExpectedVersion::StreamExists, events: vec![event] })
}

/// Why a stream was not closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The reason cannot be written as JSON.
    #[error("the reason for closing a stream cannot be written")]
    Unwritable(#[from] InvalidJson),
    /// The event that closes it could not be appended: there is no such stream, or it is closed already.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl Store {
    /// A handle to the same log that reads closed streams as well: to inspect what the log keeps.
    #[must_use]
    pub fn with_closed_streams(mut self) -> Self {
        self.plugins_mut().shows_closed = true;
        self
    }

    /// The streams whose events are not shown.
    pub(crate) async fn closed(&self) -> sqlx::Result<Closed> {
        match self.plugins().shows_closed {
            true => Ok(Closed::default()),
            false => self.known_closed().look(self.database()).await,
        }
    }

    /// As far as it is known, without asking the database.
    pub(crate) fn closed_as_known(&self) -> Closed {
        if self.plugins().shows_closed { Closed::default() } else { self.known_closed().known() }
    }

    /// Closes a stream that has events, for good.
    pub async fn close_stream(&self, stream: &StreamName, reason: &str) -> Result<Appended, CloseError> {
        let appended = self.append_own(closing(stream, reason)?).await?;
        self.known_closed().look_again();
        Ok(appended)
    }

    /// As [`Store::close_stream`], as the last statement of a transaction; says whether there is a stream to close.
    pub async fn close_stream_in(
        &self,
        tx: &mut Tx,
        stream: &StreamName,
        reason: &str,
    ) -> Result<bool, CloseError> {
        let sql = "SELECT closed_version FROM herald_streams WHERE stream = $1";
        let row: Result<Option<(Option<i64>,)>, _> = tx.fetch_optional(sql, (stream.as_str(),)).await;
        match row.map_err(AppendError::from)? {
            None | Some((Some(_),)) => Ok(false),
            Some((None,)) => {
                self.append_all_own(tx, vec![closing(stream, reason)?]).await?;
                tx.look_again_when_committed(self);
                Ok(true)
            }
        }
    }
}
