//! Going on with an export that broke off: what of its part is whole, and whether it is of this log as it is now.

use std::io::{self, BufRead, BufReader, Seek, SeekFrom};

use crate::event::Position;
use crate::export::ExportError;
use crate::export_format::{Check, Checksum, FORMAT, FirstLine, Header, Line, StoredEvent};
use crate::part_file::PartFile;
use crate::store::Store;

/// What of a part can be kept.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) header: Header,
    /// Up to here, in bytes: the end of the last chunk of events that is whole.
    pub(super) length: u64,
    pub(super) checksum: Checksum,
    pub(super) events: u64,
    /// The last of these events.
    pub(super) last: Option<StoredEvent>,
}

/// Reads the part from its beginning; none if it does not even have a whole first line.
pub(super) async fn look_at(part: PartFile) -> Result<(PartFile, Option<Found>), ExportError> {
    let job = move || {
        let found = if part.was_there { scan(&part)? } else { None };
        if found.is_none() {
            (&part.file).seek(SeekFrom::Start(0))?;
            part.file.set_len(0)?;
        }
        Ok((part, found))
    };
    tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?
}

fn scan(part: &PartFile) -> Result<Option<Found>, ExportError> {
    let mut reader = BufReader::new(&part.file);
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 || !line.ends_with(b"\n") {
        return Ok(None);
    }
    let header = header(&line, part)?;
    let mut length = line.len() as u64;
    let mut found = Found { header, length, checksum: Checksum::default(), events: 0, last: None };
    let (mut checksum, mut events, mut last_line) = (Checksum::default(), 0, Vec::new());
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        length += line.len() as u64;
        if !line.ends_with(b"\n") {
            return Ok(Some(found));
        }
        if line.starts_with(b"{\"event\":") {
            events += 1;
            last_line.clone_from(&line);
        } else {
            // Documents change: what was written of them is written anew.
            let Ok(Line::Check(check)) = serde_json::from_slice(&line) else { return Ok(Some(found)) };
            let Some(last) = closed_chunk(&checksum, &check, &last_line) else { return Ok(Some(found)) };
            checksum.add(&line);
            found = Found { length, checksum: checksum.clone(), events, last: Some(last), ..found };
            continue;
        }
        checksum.add(&line);
    }
}

/// The last event of a chunk that is as it was written.
fn closed_chunk(checksum: &Checksum, check: &Check, last_line: &[u8]) -> Option<StoredEvent> {
    if checksum.check() != *check {
        return None;
    }
    match serde_json::from_slice(last_line) {
        Ok(Line::Event(event)) => Some(event),
        _ => None,
    }
}

fn header(line: &[u8], part: &PartFile) -> Result<Header, ExportError> {
    let refused = |why: &str| ExportError::CannotResume(format!("{} {why}", part.part.display()));
    let first: FirstLine = serde_json::from_slice(line)
        .map_err(|_| refused("does not begin like an export of an event store"))?;
    if first.log.format != FORMAT {
        return Err(refused(&format!("is in the format {}, this program writes {FORMAT}", first.log.format)));
    }
    match serde_json::from_slice(line) {
        Ok(Line::Log(header)) => Ok(header),
        _ => Err(refused("has a damaged first line")),
    }
}

impl Store {
    /// Refuses to go on with what another log, or this one before it was restored, began.
    pub(super) async fn check_resumable(
        &self,
        found: &Found,
        after: Option<Position>,
    ) -> Result<(), ExportError> {
        let refused = |why: String| Err(ExportError::CannotResume(why));
        let header = &found.header;
        let log = self.identity().await?.ok_or(ExportError::NotSetUp)?;
        if header.log != log.id {
            return refused(format!("it was begun on the log {}, this one is {}", header.log, log.id));
        }
        if let Some(after) = after.filter(|after| after.0 != header.after) {
            return refused(format!("it begins after position {}, not after {after}", header.after));
        }
        let head = self.head().await?.position;
        if head.0 < header.head {
            return refused(format!("it goes up to position {}, the log now ends at {head}", header.head));
        }
        let (position, id) = match &found.last {
            Some(last) => (last.position, Some(last.id)),
            None => (header.after, header.after_event),
        };
        let here = self.last_event_up_to(Position(position)).await?.map(|last| last.1);
        if here != id {
            return refused(format!(
                "the log has another event at position {position} now: it was restored in between"
            ));
        }
        Ok(())
    }
}
