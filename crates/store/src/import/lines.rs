//! Reading an exported file: whole chunks, each found to be as it was written before anybody sees it.

use std::collections::{HashMap, HashSet};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use super::ImportError;
use super::check::{check_document, check_event};
use crate::event::MAX_PAYLOAD_BYTES;
use crate::export_format::{
    CHUNK_BYTES, CHUNK_EVENTS, CHUNK_STREAMS, Checksum, End, FORMAT, FirstLine, Header, Line, StoredEvent,
    StreamDocument,
};

/// No line is longer: of the texts in it, none of which can more than double, the payload has at most 256 KiB.
const MAX_LINE_BYTES: u64 = 4 * MAX_PAYLOAD_BYTES as u64;

/// Something and the number of its line.
#[derive(Clone, Debug)]
pub(super) struct Numbered<T> {
    pub(super) line: u64,
    pub(super) item: T,
}

/// A part of the file that is as it was written.
#[derive(Debug)]
pub(super) enum Chunk {
    Events(Vec<Numbered<StoredEvent>>),
    Streams(Vec<Numbered<StreamDocument>>),
    /// The file is whole.
    End,
}

/// A file under way.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: Reader<R>,
    header: Header,
    checksum: Checksum,
    events: u64,
    streams: u64,
    /// The position of the last event.
    position: i64,
    /// The stream of the last document.
    stream: String,
}

/// The line that is being looked at.
#[derive(Debug)]
struct Reader<R> {
    from: R,
    line: Vec<u8>,
    /// Its number, from 1.
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(super) async fn open(from: R) -> Result<(Self, Header), ImportError> {
        let mut reader = Reader { from, line: Vec::new(), number: 0 };
        let format = |why: &str| ImportError::Format(why.to_owned());
        reader.next().await.map_err(|error| match error {
            ImportError::Truncated { .. } | ImportError::Damaged { .. } => format("it has no first line"),
            error => error,
        })?;
        let Ok(first) = serde_json::from_slice::<FirstLine>(&reader.line) else {
            return Err(format("it does not begin like one"));
        };
        if first.log.format != FORMAT {
            return Err(ImportError::Format(format!(
                "it is in the format {}, this program reads {FORMAT}",
                first.log.format
            )));
        }
        let header = match reader.parse()? {
            Line::Log(header) if 0 <= header.after && header.after <= header.head => header,
            _ => return Err(reader.damaged("the positions in it cannot be")),
        };
        let lines = Self {
            reader,
            header: header.clone(),
            checksum: Checksum::default(),
            events: 0,
            streams: 0,
            position: header.after,
            stream: String::new(),
        };
        Ok((lines, header))
    }

    /// How many events were read.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// The next chunk; the end, once.
    pub(super) async fn next_chunk(&mut self) -> Result<Chunk, ImportError> {
        let (mut events, mut documents, mut bytes) = (Vec::new(), Vec::new(), 0);
        // What each stream of this chunk has come to.
        let mut reached = HashMap::new();
        let mut ids = HashSet::new();
        loop {
            self.reader.next().await?;
            let line = self.reader.number;
            match self.reader.parse()? {
                Line::Event(event) if documents.is_empty() && self.streams == 0 => {
                    if !may_follow(events.len(), CHUNK_EVENTS) || bytes >= CHUNK_BYTES {
                        return Err(self.reader.damaged("a check is missing before it"));
                    }
                    bytes += i64::try_from(event.payload.len() + event.metadata.len()).unwrap_or(i64::MAX);
                    if event.position <= self.position || event.position > self.header.head {
                        return Err(self.reader.damaged("its position is out of order"));
                    }
                    if !ids.insert(event.id) {
                        return Err(self.reader.damaged("its event id stands in a line before it"));
                    }
                    check_event(line, &event, &mut reached)?;
                    self.position = event.position;
                    self.events += 1;
                    events.push(Numbered { line, item: event });
                }
                Line::Stream(document) if events.is_empty() => {
                    if !may_follow(documents.len(), CHUNK_STREAMS) {
                        return Err(self.reader.damaged("a check is missing before it"));
                    }
                    if document.stream <= self.stream {
                        return Err(self.reader.damaged("its stream is out of order"));
                    }
                    check_document(line, &document)?;
                    self.stream.clone_from(&document.stream);
                    documents.push(Numbered { line, item: document });
                }
                Line::Check(check) if !events.is_empty() || !documents.is_empty() => {
                    if check != self.checksum.check() {
                        return Err(self.reader.damaged("the lines before it are not as they were written"));
                    }
                    self.checksum.add(&self.reader.line);
                    self.streams += documents.len() as u64;
                    return Ok(if events.is_empty() {
                        Chunk::Streams(documents)
                    } else {
                        Chunk::Events(events)
                    });
                }
                Line::End(end) if events.is_empty() && documents.is_empty() => {
                    self.check_end(&end).await?;
                    return Ok(Chunk::End);
                }
                _ => return Err(self.reader.damaged("it does not belong here")),
            }
            self.checksum.add(&self.reader.line);
        }
    }

    async fn check_end(&mut self, end: &End) -> Result<(), ImportError> {
        let check = self.checksum.check();
        let expected = End {
            after: self.header.after,
            head: self.header.head,
            events: self.events,
            streams: self.streams,
            lines: check.lines,
            sha256: check.sha256,
        };
        if *end != expected {
            return Err(self.reader.damaged("the counts or the checksum are not those of this file"));
        }
        if !self.reader.from.fill_buf().await?.is_empty() {
            self.reader.number += 1;
            return Err(self.reader.damaged("it stands behind the end"));
        }
        Ok(())
    }
}

impl<R: AsyncBufRead + Unpin> Reader<R> {
    /// Goes on to the next line; its line break belongs to it.
    async fn next(&mut self) -> Result<(), ImportError> {
        self.line.clear();
        (&mut self.from).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line).await?;
        if self.line.last() == Some(&b'\n') {
            self.number += 1;
            Ok(())
        } else if self.line.len() as u64 == MAX_LINE_BYTES {
            self.number += 1;
            Err(self.damaged("it is longer than any line of an export"))
        } else {
            Err(ImportError::Truncated { line: self.number })
        }
    }

    fn parse(&self) -> Result<Line, ImportError> {
        serde_json::from_slice(&self.line)
            .map_err(|error| self.damaged(&format!("not a line of an export ({error})")))
    }

    fn damaged(&self, why: &str) -> ImportError {
        ImportError::Damaged { line: self.number, why: why.to_owned() }
    }
}

fn may_follow(items: usize, most: i64) -> bool {
    i64::try_from(items).is_ok_and(|items| items < most)
}
