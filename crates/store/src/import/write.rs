//! Writing imported chunks: each in one transaction, in the order of the file, with appenders kept out.
//!
//! The order of steps is that of an append, for the same reason: nobody else can write while a chunk is written,
//! readers that meet a hole see who holds the append lock, and nothing comes after the rows but the commit.

use uuid::Uuid;

use super::follow::move_streams;
use super::guard;
use super::lines::Numbered;
use super::{ImportError, ImportMode, Imported};
use crate::append::is_duplicate_id;
use crate::connection::Connection;
use crate::database::DatabaseKind;
use crate::event::Position;
use crate::export_format::{StoredEvent, StreamDocument};
use crate::safe_head::record_dead_ranges;
use crate::store::Store;
use crate::tx::Tx;

/// An import under way.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    store: &'a Store,
    mode: ImportMode,
    /// Where the log ended when the import began.
    top: Position,
    /// The log's last event, unless somebody else appends.
    tail: Option<(Position, Uuid)>,
    /// Everything of the file up to here is in the log.
    position: i64,
    /// The one transaction of a dry run.
    dry: Option<Tx>,
    imported: Imported,
}

impl<'a> Writing<'a> {
    pub(super) fn new(
        store: &'a Store,
        mode: ImportMode,
        tail: Option<(Position, Uuid)>,
        after: i64,
    ) -> Self {
        let top = tail.map_or(Position::START, |tail| tail.0);
        Self { store, mode, top, tail, position: after, dry: None, imported: Imported::default() }
    }

    pub(super) fn position(&self) -> Position {
        Position(self.position)
    }

    /// Writes the events that the log does not have yet; those that it has must be the same.
    pub(super) async fn events(&mut self, mut events: Vec<Numbered<StoredEvent>>) -> Result<(), ImportError> {
        let Some(last) = events.last().map(|last| last.item.position) else { return Ok(()) };
        let new = events.split_off(events.partition_point(|event| event.item.position <= self.top.0));
        if self.position < self.top.0 {
            self.compare(&events, last.min(self.top.0)).await?;
            self.imported.known += events.len() as u64;
        }
        if !new.is_empty() {
            let mut tx = self.begin().await?;
            let result = self.write(&mut tx, &new).await;
            if let Err(error) = self.settle(tx, result).await {
                return Err(self.name_known_id(error, &new).await);
            }
        }
        self.position = last;
        Ok(())
    }

    /// Writes documents; of two about a stream the later one stays.
    pub(super) async fn streams(
        &mut self,
        documents: Vec<Numbered<StreamDocument>>,
    ) -> Result<(), ImportError> {
        self.nothing_is_left()?;
        self.imported.streams += documents.len() as u64;
        let rows = documents.into_iter().map(|document| {
            let StreamDocument { stream, metadata, changed_at } = document.item;
            (stream, metadata, changed_at)
        });
        let mut tx = self.begin().await?;
        let sql = "INSERT INTO herald_stream_metadata (stream, metadata, changed_at) VALUES {rows}
                   ON CONFLICT (stream) DO UPDATE SET metadata = excluded.metadata, changed_at = excluded.changed_at
                    WHERE excluded.changed_at > herald_stream_metadata.changed_at";
        let result = tx.execute_many(sql, rows.collect()).await;
        self.settle(tx, result.map(drop).map_err(ImportError::from)).await
    }

    /// The file is whole and in the log: from here on it may be appended to.
    pub(super) async fn complete(&mut self) -> Result<(), ImportError> {
        self.nothing_is_left()?;
        if self.mode == ImportMode::Write && guard::is_up(self.store).await? {
            let mut tx = self.store.begin().await?;
            match guard::take_down(&mut tx).await {
                Ok(()) => tx.commit().await?,
                Err(error) => {
                    tx.rollback().await;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Ends a dry run, and says what was done.
    pub(super) async fn end(self, result: Result<(), ImportError>) -> Result<Imported, ImportError> {
        if let Some(tx) = self.dry {
            tx.rollback().await;
        }
        result.map(|()| Imported { head: self.tail.map_or(Position::START, |tail| tail.0), ..self.imported })
    }

    /// The log must not have events that the file has not.
    fn nothing_is_left(&self) -> Result<(), ImportError> {
        if self.top.0 <= self.position {
            return Ok(());
        }
        Err(ImportError::OtherLog(format!(
            "it has an event at position {}, the file has none there",
            self.top
        )))
    }

    /// The events of the file up to a position, and no others, must be in the log.
    async fn compare(&self, events: &[Numbered<StoredEvent>], up_to: i64) -> Result<(), ImportError> {
        let most = i64::try_from(events.len()).unwrap_or(i64::MAX).saturating_add(1);
        let sql = "SELECT position, id FROM herald_events WHERE position > $1 AND position <= $2
                    ORDER BY position LIMIT $3";
        let rows: Vec<(i64, Uuid)> =
            self.store.database().fetch_all(sql, (self.position, up_to, most)).await?;
        let mut rows = rows.into_iter();
        for Numbered { line, item } in events {
            match rows.next() {
                Some(row) if row == (item.position, item.id) => {}
                Some((position, id)) => {
                    return Err(ImportError::OtherLog(format!(
                        "line {line} has the event {} at position {}, the log has {id} at {position}",
                        item.id, item.position
                    )));
                }
                None => {
                    return Err(ImportError::OtherLog(format!(
                        "it lacks the event {} of line {line} at position {}",
                        item.id, item.position
                    )));
                }
            }
        }
        match rows.next() {
            None => Ok(()),
            Some((position, _)) => Err(ImportError::OtherLog(format!(
                "it has an event at position {position}, the file has none there"
            ))),
        }
    }

    /// A transaction in which nobody else appends, on a log that is as this import left it.
    async fn begin(&mut self) -> Result<Tx, ImportError> {
        if let Some(tx) = self.dry.take() {
            return Ok(tx);
        }
        let mut tx = self.store.begin().await?;
        let result = self.prepare(&mut tx).await;
        match result {
            Ok(()) => Ok(tx),
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    }

    async fn prepare(&self, tx: &mut Tx) -> Result<(), ImportError> {
        keep_appenders_out(tx).await?;
        let sql = "SELECT position, id FROM herald_events ORDER BY position DESC LIMIT 1";
        let tail: Option<(Position, Uuid)> = tx.fetch_optional(sql, ()).await?;
        if tail != self.tail {
            return Err(ImportError::Interfered(tail.map_or(Position::START, |tail| tail.0)));
        }
        guard::open(tx).await?;
        Ok(())
    }

    /// Commits, or keeps the transaction of a dry run, or undoes it.
    async fn settle(&mut self, mut tx: Tx, result: Result<(), ImportError>) -> Result<(), ImportError> {
        let result = match result {
            Ok(()) if self.mode == ImportMode::DryRun => {
                self.dry = Some(tx);
                return Ok(());
            }
            Ok(()) => guard::close(&mut tx).await.map_err(ImportError::from),
            error => error,
        };
        match result {
            Ok(()) => Ok(tx.commit().await?),
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    }

    /// Of an id that is in the log already, says where.
    async fn name_known_id(&self, error: ImportError, events: &[Numbered<StoredEvent>]) -> ImportError {
        if !matches!(&error, ImportError::Database(error) if is_duplicate_id(error)) {
            return error;
        }
        for Numbered { line, item } in events {
            if let Ok(Some(position)) = self.store.find(item.id).await {
                return ImportError::IdTwice { line: *line, id: item.id, position };
            }
        }
        error
    }

    async fn write(&mut self, tx: &mut Tx, events: &[Numbered<StoredEvent>]) -> Result<(), ImportError> {
        let Some(last) = events.last() else { return Ok(()) };
        move_streams(tx, events).await?;
        // Readers are told when this is committed.
        tx.note_append();
        if tx.kind() == DatabaseKind::Postgres {
            draw_up_to(tx, last.item.position, self.mode).await?;
        }
        let holes = holes(self.tail.map_or(0, |tail| tail.0.0), events);
        record_dead_ranges(tx, &holes).await?;
        let rows = events.iter().map(|Numbered { item, .. }| {
            (
                item.position,
                item.stream.as_str(),
                item.version,
                item.event_type.as_str(),
                item.payload.as_str(),
                item.metadata.as_str(),
                item.id,
                item.correlation_id.clone(),
                item.causation_id,
                item.recorded_at,
                item.append_index,
                item.append_size,
            )
        });
        let sql = "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                              causation_id, recorded_at, append_index, append_size)
                   VALUES {rows}";
        tx.execute_many(sql, rows.collect()).await?;
        self.imported.holes += holes.iter().map(|(low, high)| high.0.abs_diff(low.0) + 1).sum::<u64>();
        self.imported.events += events.len() as u64;
        self.tail = Some((Position(last.item.position), last.item.id));
        Ok(())
    }
}

/// Waits for appends under way, and keeps others waiting until this transaction ends.
async fn keep_appenders_out(tx: &mut Tx) -> sqlx::Result<()> {
    match tx.connection() {
        // Who begins to write has the only write lock.
        Connection::Sqlite(_) => Ok(()),
        // An append moves its stream first, and waits there. Reads pass. (A plan that was made while the log was small
        // is kept, and would read the log from end to end for each chunk; so it may only be one that uses indexes.)
        connection @ Connection::Postgres(_) => {
            // What is read meanwhile may come through a slow pipe.
            let sql = "SET LOCAL lock_timeout = '10s';
                       SET LOCAL idle_in_transaction_session_timeout = 0;
                       SET LOCAL enable_seqscan = off;
                       SET LOCAL enable_hashjoin = off;
                       SET LOCAL enable_mergejoin = off;
                       LOCK TABLE herald_streams IN EXCLUSIVE MODE";
            connection.run(sql).await
        }
    }
}

/// Takes the lock that readers ask for at a hole, and moves the sequence so that these positions are never drawn. It
/// moves at once and for good, whatever becomes of the transaction.
async fn draw_up_to(tx: &mut Tx, position: i64, mode: ImportMode) -> sqlx::Result<()> {
    let lock =
        "SELECT pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer) IS NULL";
    tx.fetch_optional::<(bool,)>(lock, ()).await?;
    if mode == ImportMode::Write {
        let draw =
            "SELECT setval('herald_positions', $1) WHERE $1 >= (SELECT last_value FROM herald_positions)";
        tx.fetch_optional::<(i64,)>(draw, (position,)).await?;
    }
    Ok(())
}

/// The positions that have no event, as whole holes: from the first to the last of each.
fn holes(mut after: i64, events: &[Numbered<StoredEvent>]) -> Vec<(Position, Position)> {
    let mut holes = Vec::new();
    for Numbered { item, .. } in events {
        if item.position > after + 1 {
            holes.push((Position(after + 1), Position(item.position - 1)));
        }
        after = item.position;
    }
    holes
}
