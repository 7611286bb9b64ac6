//! Import: an exported log becomes the beginning of this one, with its positions, versions, ids and times.
//!
//! Only a log that is empty, or that holds a beginning of the very file, is imported into; so an import that broke
//! off is simply done again. A chunk is written in one transaction after its checksum was found right. From the first
//! chunk to the last, appends are refused by a guard in the database, also across a crash: a log that somebody else
//! has appended to could not be completed any more. The log keeps its own identity: an import is a copy.

mod check;
mod follow;
mod guard;
mod lines;
mod write;

pub(crate) use self::guard::REFUSAL;
use tokio::io::AsyncBufRead;
use uuid::Uuid;

use self::lines::{Chunk, Lines};
use self::write::Writing;
use crate::event::{InvalidEvent, Position, Version};
use crate::export::ExchangeProgress;
use crate::export_format::Header;
use crate::json::InvalidJson;
use crate::store::Store;
use crate::stream_name::InvalidStreamName;

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Events that were written.
    pub events: u64,
    /// Events that the log had already.
    pub known: u64,
    /// Documents of streams that the file has.
    pub streams: u64,
    /// Positions without an event among those written.
    pub holes: u64,
    /// The position of the log's last event.
    pub head: Position,
}

/// Whether an import is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportMode {
    /// Write, a transaction for each chunk.
    Write,
    /// Do everything in one transaction and roll it back: only what is wrong is found out. Appends wait meanwhile.
    DryRun,
}

/// Why a file was not imported. What was written before stays, and an import of the same file goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is no log here.
    #[error("the event store is not set up; run `herald store migrate` first")]
    NotSetUp,
    /// Not an export, or of another version.
    #[error("this is no export of an event store that this program can read: {0}")]
    Format(String),
    /// A line is not what was written.
    #[error("line {line} is damaged: {why}; export again, or fetch the file again")]
    Damaged {
        /// Its number, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// The file ends before its last line.
    #[error(
        "the file ends after line {line} and is not whole; let the export end (--resume), or fetch it again"
    )]
    Truncated {
        /// The last whole line.
        line: u64,
    },
    /// An event that no log would take.
    #[error("the event in line {line} cannot be stored")]
    Invalid {
        /// Its line.
        line: u64,
        /// Which limit.
        #[source]
        source: InvalidEvent,
    },
    /// A text that no log would take as payload or metadata.
    #[error("the {what} in line {line} cannot be stored")]
    Json {
        /// Its line.
        line: u64,
        /// Which text.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidJson,
    },
    /// A text that is no stream's name.
    #[error("the stream in line {line} cannot be stored")]
    Stream {
        /// Its line.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: InvalidStreamName,
    },
    /// The event does not follow what stands before it.
    #[error(
        "the event in line {line}, version {version} of {stream}, does not follow what the log has: {why}"
    )]
    DoesNotFollow {
        /// Its line.
        line: u64,
        /// Its stream.
        stream: String,
        /// Its version.
        version: Version,
        /// What should be there.
        why: String,
    },
    /// An event id stands twice.
    #[error("the event id {id} in line {line} is in the log already, at position {position}")]
    IdTwice {
        /// The line of the second one.
        line: u64,
        /// The id.
        id: Uuid,
        /// Where the first one is.
        position: Position,
    },
    /// The log is not a beginning of the file.
    #[error(
        "the log is neither empty nor a beginning of this file: {0}; import into a new one. Nothing was written"
    )]
    OtherLog(String),
    /// Times set by hand and real ones must not mix.
    #[error("the {} was in test mode and the {} is not; import into a log of the same mode", .file.0, .file.1)]
    TestClock {
        /// Which of the two was, and which was not.
        file: (&'static str, &'static str),
    },
    /// The log is not as this import left it.
    #[error(
        "the log has changed meanwhile and ends at position {0}: another import is running, or somebody appended \
         before this one had begun to write; see to it that nobody does, and import again"
    )]
    Interfered(Position),
    /// The file cannot be read.
    #[error("could not read the file")]
    Read(#[from] std::io::Error),
    /// The database refused.
    #[error("could not write the log")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// Whether an import has begun and not come to its end: until then nobody can append.
    pub async fn import_is_under_way(&self) -> sqlx::Result<bool> {
        guard::is_up(self).await
    }

    /// Gives an import up that broke off: the log stays as far as it came, and everybody can append again. Says
    /// whether there was one. The file cannot be gone on with once something was appended.
    pub async fn abandon_import(&self) -> sqlx::Result<bool> {
        if !guard::is_up(self).await? {
            return Ok(false);
        }
        let mut tx = self.begin().await?;
        match guard::take_down(&mut tx).await {
            Ok(()) => tx.commit().await.map(|()| true),
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    }

    /// Reads what [`Store::export`] wrote into this log. Doing it again goes on where it broke off.
    pub async fn import(
        &self,
        from: impl AsyncBufRead + Unpin + Send,
        mode: ImportMode,
        mut progress: impl FnMut(ExchangeProgress) + Send,
    ) -> Result<Imported, ImportError> {
        let log = self.identity().await?.ok_or(ImportError::NotSetUp)?;
        let (mut lines, header) = Lines::open(from).await?;
        match (header.test_clock, log.test_time.is_some()) {
            (true, false) => return Err(ImportError::TestClock { file: ("exported log", "log here") }),
            (false, true) => return Err(ImportError::TestClock { file: ("log here", "exported log") }),
            _ => {}
        }
        let tail = self.last_event_up_to(Position(i64::MAX)).await?;
        self.check_beginning(&header, tail).await?;
        let mut writing = Writing::new(self, mode, tail, header.after);
        let result = self.import_chunks(&mut lines, &header, &mut writing, &mut progress).await;
        writing.end(result).await
    }

    async fn import_chunks<R: AsyncBufRead + Unpin + Send>(
        &self,
        lines: &mut Lines<R>,
        header: &Header,
        writing: &mut Writing<'_>,
        progress: &mut (impl FnMut(ExchangeProgress) + Send),
    ) -> Result<(), ImportError> {
        loop {
            match lines.next_chunk().await? {
                Chunk::Events(events) => writing.events(events).await?,
                Chunk::Streams(documents) => writing.streams(documents).await?,
                Chunk::End => return writing.complete().await,
            }
            progress(ExchangeProgress {
                after: Position(header.after),
                position: writing.position(),
                head: Position(header.head),
                events: lines.events(),
            });
        }
    }

    /// Whether this file can continue the log, as far as its first line tells.
    async fn check_beginning(
        &self,
        header: &Header,
        tail: Option<(Position, Uuid)>,
    ) -> Result<(), ImportError> {
        let other = |why: String| Err(ImportError::OtherLog(why));
        if let Some((position, _)) = tail.filter(|tail| tail.0.0 > header.head) {
            return other(format!("it goes on to position {position}, the file ends at {}", header.head));
        }
        let before = self.last_event_up_to(Position(header.after)).await?.map(|last| last.1);
        if before != header.after_event {
            return other(format!(
                "the file begins after position {}, and what should stand there does not",
                header.after
            ));
        }
        Ok(())
    }
}
