//! Export: the log as a file, every event byte for byte, up to a head that was safe when the export began.
//!
//! The file is written chunk by chunk, so memory does not grow with the log. An export that broke off is gone on
//! with after its last whole chunk. Events are read as they are stored, never as a reader might see them.

mod resume;

use std::io::SeekFrom;
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::database::DatabaseKind;
use crate::event::Position;
use crate::export_format::{
    CHUNK_BYTES, CHUNK_EVENTS, CHUNK_STREAMS, Checksum, End, FORMAT, Header, Line, StoredEvent,
    StreamDocument,
};
use crate::json::Json;
use crate::part_file::{FileError, Leftover, PartFile};
use crate::read::ReadError;
use crate::store::Store;

/// How often the head is asked for while appends are under way, before the export ends below them.
const HEAD_TRIES: usize = 20;

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The events stand after this position …
    pub after: Position,
    /// … and go up to this one.
    pub head: Position,
    /// How many they are.
    pub events: u64,
    /// Documents of streams.
    pub streams: u64,
    /// So many of those written now hold something that is not JSON: no import takes them.
    pub not_json: u64,
    /// An export that had broken off was gone on with behind this position.
    pub resumed_after: Option<Position>,
}

/// How far an export or an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeProgress {
    /// It began after this position …
    pub after: Position,
    /// … is here …
    pub position: Position,
    /// … and goes as far as this.
    pub head: Position,
    /// How many events it has been through.
    pub events: u64,
}

/// Why a log could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no log here.
    #[error("the event store is not set up: there is nothing to export")]
    NotSetUp,
    /// The export was to begin beyond the end.
    #[error("position {after} is beyond the end of the log, which is {head}")]
    BeyondTheEnd {
        /// Where it was to begin.
        after: Position,
        /// Where the log ends.
        head: Position,
    },
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// What broke off is not an export of this log that can be gone on with.
    #[error("the export cannot be resumed: {0}; delete the file that ends with .part to begin anew")]
    CannotResume(String),
    /// The stream did not take it.
    #[error("could not write the export")]
    Write(#[from] std::io::Error),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database refused.
    #[error("could not read the log")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// Writes every event after a position, up to the head as it is now, and the documents of all streams.
    pub async fn export(
        &self,
        to: impl AsyncWrite + Unpin + Send,
        after: Position,
        mut progress: impl FnMut(ExchangeProgress) + Send,
    ) -> Result<Exported, ExportError> {
        let header = self.export_header(after).await?;
        self.export_all(to, &header, &mut progress).await
    }

    /// Exports to a file: first to `FILE.part`, which becomes FILE when it is whole and synced. With `resume`, a part
    /// that is there is gone on with, up to the head it began with; one that is not there is begun.
    pub async fn export_file(
        &self,
        file: &Path,
        after: Option<Position>,
        resume: bool,
        mut progress: impl FnMut(ExchangeProgress) + Send,
    ) -> Result<Exported, ExportError> {
        let part = PartFile::open(file, if resume { Leftover::Keep } else { Leftover::Refuse })?;
        let (part, found) = resume::look_at(part).await?;
        let mut output = File::from_std(part.file.try_clone()?);
        let exported = match found {
            Some(found) => {
                self.check_resumable(&found, after).await?;
                output.set_len(found.length).await?;
                output.seek(SeekFrom::Start(found.length)).await?;
                let mut writer =
                    Writer { checksum: found.checksum, events: found.events, ..Writer::new(output) };
                let from = found.last.map_or(found.header.after, |last| last.position);
                self.export_rest(&mut writer, &found.header, from, &mut progress).await?;
                writer.exported(&found.header, Some(Position(from)))
            }
            None => {
                let header = match self.export_header(after.unwrap_or(Position::START)).await {
                    Ok(header) => header,
                    Err(error) => {
                        part.discard();
                        return Err(error);
                    }
                };
                match self.export_all(output, &header, &mut progress).await {
                    Ok(exported) => exported,
                    Err(error) => {
                        // With nothing in it there is nothing to go on with.
                        if part.file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
                            part.discard();
                        }
                        return Err(error);
                    }
                }
            }
        };
        tokio::task::spawn_blocking(move || part.finish()).await.map_err(std::io::Error::other)??;
        Ok(exported)
    }

    async fn export_all(
        &self,
        to: impl AsyncWrite + Unpin + Send,
        header: &Header,
        progress: &mut (impl FnMut(ExchangeProgress) + Send),
    ) -> Result<Exported, ExportError> {
        let mut writer = Writer::new(to);
        writer.line(&Line::Log(header.clone()))?;
        // The first line says where the events come from and is not part of what is checked.
        writer.checksum = Checksum::default();
        self.export_rest(&mut writer, header, header.after, progress).await?;
        Ok(writer.exported(header, None))
    }

    async fn export_header(&self, after: Position) -> Result<Header, ExportError> {
        let log = self.identity().await?.ok_or(ExportError::NotSetUp)?;
        let head = self.whole_appends_up_to(self.patient_head().await?).await?;
        if after > head {
            return Err(ExportError::BeyondTheEnd { after, head });
        }
        Ok(Header {
            format: FORMAT.to_owned(),
            log: log.id,
            kind: match self.database().kind() {
                DatabaseKind::Sqlite => "sqlite".to_owned(),
                DatabaseKind::Postgres => "postgres".to_owned(),
            },
            after: after.0,
            after_event: self.last_event_up_to(after).await?.map(|last| last.1),
            head: head.0,
            test_clock: log.test_time.is_some(),
            exported_at: self.clock().now().await?,
        })
    }

    /// The end of the log if appends under way let it be known soon, or what is safe below them.
    async fn patient_head(&self) -> Result<Position, ExportError> {
        let mut head = self.head().await?;
        for _ in 1..HEAD_TRIES {
            if head.is_end {
                break;
            }
            head = self.head().await?;
        }
        Ok(head.position)
    }

    /// A head below an append under way may lie between the events of another one that is done: that one is left out
    /// whole, as half of it would be no append that the log knows.
    async fn whole_appends_up_to(&self, mut head: Position) -> Result<Position, ExportError> {
        loop {
            let sql = "SELECT MIN(first.position)
                         FROM herald_events AS later
                         JOIN herald_events AS first
                           ON first.stream = later.stream AND first.version = later.version - later.append_index
                        WHERE later.position > $1 AND later.append_index > 0 AND first.position <= $1";
            let row: Option<(Option<Position>,)> = self.database().fetch_optional(sql, (head,)).await?;
            match row.and_then(|row| row.0) {
                Some(cut) => head = Position(cut.0 - 1),
                None => return Ok(head),
            }
        }
    }

    /// The position and the id of the last event at or below a position.
    pub(crate) async fn last_event_up_to(
        &self,
        position: Position,
    ) -> sqlx::Result<Option<(Position, Uuid)>> {
        let sql =
            "SELECT position, id FROM herald_events WHERE position <= $1 ORDER BY position DESC LIMIT 1";
        self.database().fetch_optional(sql, (position,)).await
    }

    /// Everything after the first line, from behind a position that ends a chunk.
    async fn export_rest<W: AsyncWrite + Unpin + Send>(
        &self,
        writer: &mut Writer<W>,
        header: &Header,
        mut position: i64,
        progress: &mut (impl FnMut(ExchangeProgress) + Send),
    ) -> Result<(), ExportError> {
        loop {
            let events = self.stored_events(position, header.head).await?;
            let Some(last) = events.last() else { break };
            position = last.position;
            for event in events {
                writer.events += 1;
                let is_json = |text: &str| Json::from_row(text).is_ok();
                writer.not_json += u64::from(!is_json(&event.payload) || !is_json(&event.metadata));
                writer.line(&Line::Event(event))?;
            }
            writer.check().await?;
            progress(ExchangeProgress {
                after: Position(header.after),
                position: Position(position),
                head: Position(header.head),
                events: writer.events,
            });
        }
        let mut stream = String::new();
        loop {
            let documents = self.stream_documents(&stream).await?;
            let Some(last) = documents.last() else { break };
            stream.clone_from(&last.stream);
            for document in documents {
                writer.streams += 1;
                writer.line(&Line::Stream(document))?;
            }
            writer.check().await?;
        }
        writer.end(header).await?;
        Ok(())
    }

    /// The next chunk of events, as they are stored. Which events it has depends on nothing but them.
    async fn stored_events(&self, after: i64, head: i64) -> Result<Vec<StoredEvent>, ExportError> {
        // What makes a chunk large enough is found by the lengths alone, before anything large is read.
        let sql = "SELECT position, stream, version, type, payload, metadata, id, correlation_id, causation_id,
                          recorded_at, append_index, append_size
                     FROM herald_events
                    WHERE position > $1 AND position <= (
                          SELECT MAX(position) FROM (
                                 SELECT position, SUM(bytes) OVER (
                                            ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                                        ) AS smaller
                                   FROM (SELECT position, OCTET_LENGTH(payload) + OCTET_LENGTH(metadata) AS bytes
                                           FROM herald_events
                                          WHERE position > $1 AND position <= $2
                                          ORDER BY position
                                          LIMIT $3) AS ahead) AS summed
                           WHERE smaller IS NULL OR smaller < $4)
                    ORDER BY position";
        match self.database().fetch_all(sql, (after, head, CHUNK_EVENTS, CHUNK_BYTES)).await {
            Err(error @ (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_))) => {
                Err(self.bad_row(after, head, error).await)
            }
            result => Ok(result?),
        }
    }

    /// Names the first row of a chunk that cannot be read (S-25).
    async fn bad_row(&self, mut after: i64, head: i64, error: sqlx::Error) -> ExportError {
        loop {
            let next: sqlx::Result<Option<(i64,)>> = self
                .database()
                .fetch_optional(
                    "SELECT position FROM herald_events WHERE position > $1 AND position <= $2
                      ORDER BY position LIMIT 1",
                    (after, head),
                )
                .await;
            let Ok(Some((position,))) = next else { return ExportError::Database(error) };
            let sql =
                "SELECT position, stream, version, type, payload, metadata, id, correlation_id, causation_id,
                              recorded_at, append_index, append_size
                         FROM herald_events WHERE position = $1";
            let row: sqlx::Result<Option<StoredEvent>> =
                self.database().fetch_optional(sql, (position,)).await;
            if let Err(source) = row {
                let position = Position(position);
                // The driver tells the first thing that is wrong; a person wants to know all of it.
                let faults = match self.raw_event(position).await {
                    Ok(Some(row)) => row.faults(),
                    _ => String::new(),
                };
                let source = if faults.is_empty() { source.into() } else { faults.into() };
                return ReadError::BadRow { position, source }.into();
            }
            after = position;
        }
    }

    async fn stream_documents(&self, after: &str) -> sqlx::Result<Vec<StreamDocument>> {
        let sql = "SELECT stream, metadata, changed_at FROM herald_stream_metadata
                    WHERE stream > $1
                    ORDER BY stream
                    LIMIT $2";
        self.database().fetch_all(sql, (after, CHUNK_STREAMS)).await
    }
}

/// Writes lines, a chunk at a time.
#[derive(Debug)]
struct Writer<W> {
    to: W,
    buffer: Vec<u8>,
    checksum: Checksum,
    events: u64,
    streams: u64,
    not_json: u64,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    fn new(to: W) -> Self {
        Self { to, buffer: Vec::new(), checksum: Checksum::default(), events: 0, streams: 0, not_json: 0 }
    }

    fn line(&mut self, line: &Line) -> std::io::Result<()> {
        let start = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, line)?;
        self.buffer.push(b'\n');
        self.checksum.add(&self.buffer[start..]);
        Ok(())
    }

    async fn check(&mut self) -> std::io::Result<()> {
        let check = Line::Check(self.checksum.check());
        self.line(&check)?;
        self.to.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }

    async fn end(&mut self, header: &Header) -> std::io::Result<()> {
        let check = self.checksum.check();
        self.line(&Line::End(End {
            after: header.after,
            head: header.head,
            events: self.events,
            streams: self.streams,
            lines: check.lines,
            sha256: check.sha256,
        }))?;
        self.to.write_all(&self.buffer).await?;
        self.to.flush().await
    }

    fn exported(&self, header: &Header, resumed_after: Option<Position>) -> Exported {
        Exported {
            after: Position(header.after),
            head: Position(header.head),
            events: self.events,
            streams: self.streams,
            not_json: self.not_json,
            resumed_after,
        }
    }
}
