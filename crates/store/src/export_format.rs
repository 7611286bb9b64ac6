//! The file that carries a log from one database to another: JSON Lines, each a single object under the name of its kind.
//!
//! ```text
//! {"log":{"format":"herald.export/1","log":"0190…","kind":"sqlite","after":"0",…,"head":"7",…}}
//! {"event":{"position":"1","stream":"user-user1",…,"payload":"{ \"userId\" : …","metadata":"{}",…}}
//! {"check":{"lines":"7","sha256":"…"}}
//! {"stream":{"stream":"user-user1","metadata":"{}","changed_at":"…"}}
//! {"check":{"lines":"9","sha256":"…"}}
//! {"end":{"after":"0","head":"7","events":"7","streams":"1","lines":"10","sha256":"…"}}
//! ```
//!
//! What differs between two exports of the same events stands in the first line only. A check closes each chunk and
//! covers every line after the first up to itself, so that a chunk is known to be whole before any of it is used.
//! Payloads and metadata are texts, as they may hold white space that counts. Numbers of 64 bits are texts too.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::timestamp::Timestamp;

/// The format and its version.
pub(crate) const FORMAT: &str = "herald.export/1";
/// A chunk has at most this many events: one transaction of an import.
pub(crate) const CHUNK_EVENTS: i64 = 2_000;
/// A chunk of events ends with the one that brings it to this many bytes of payload and metadata.
pub(crate) const CHUNK_BYTES: i64 = 8 * 1024 * 1024;
/// A chunk has at most this many documents of streams, each of which has at most 16 KiB.
pub(crate) const CHUNK_STREAMS: i64 = 500;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Log(Header),
    Event(StoredEvent),
    Stream(StreamDocument),
    Check(Check),
    End(End),
}

/// Where the events come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) format: String,
    /// The identity of the log; one that is imported keeps its own.
    pub(crate) log: Uuid,
    /// The kind of database.
    pub(crate) kind: String,
    /// The events stand after this position …
    #[serde(with = "as_text")]
    pub(crate) after: i64,
    /// … behind this event, if there is one before them.
    pub(crate) after_event: Option<Uuid>,
    /// They end here: every event up to this position is in the file.
    #[serde(with = "as_text")]
    pub(crate) head: i64,
    /// Whether the log is in test mode, its times set by hand.
    pub(crate) test_clock: bool,
    pub(crate) exported_at: Timestamp,
}

/// The beginning of a first line, whatever its version adds to it.
#[derive(Debug, Deserialize)]
pub(crate) struct FirstLine {
    pub(crate) log: FirstLineFormat,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FirstLineFormat {
    pub(crate) format: String,
}

/// An event with everything that its row has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredEvent {
    #[serde(with = "as_text")]
    pub(crate) position: i64,
    pub(crate) stream: String,
    #[serde(with = "as_text")]
    pub(crate) version: i64,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub(crate) event_type: String,
    pub(crate) payload: String,
    pub(crate) metadata: String,
    pub(crate) id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) causation_id: Option<Uuid>,
    pub(crate) recorded_at: Timestamp,
    pub(crate) append_index: i32,
    pub(crate) append_size: i32,
}

/// What people noted about a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamDocument {
    pub(crate) stream: String,
    pub(crate) metadata: String,
    pub(crate) changed_at: Timestamp,
}

/// Closes a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    #[serde(with = "as_text")]
    pub(crate) lines: u64,
    pub(crate) sha256: String,
}

/// The last line: without it the file is not whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct End {
    #[serde(with = "as_text")]
    pub(crate) after: i64,
    #[serde(with = "as_text")]
    pub(crate) head: i64,
    #[serde(with = "as_text")]
    pub(crate) events: u64,
    #[serde(with = "as_text")]
    pub(crate) streams: u64,
    #[serde(with = "as_text")]
    pub(crate) lines: u64,
    pub(crate) sha256: String,
}

/// The checksum over the lines so far, the first one left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checksum {
    pub(crate) lines: u64,
    hash: Sha256,
}

impl Checksum {
    /// Takes in a line with its line break.
    pub(crate) fn add(&mut self, line: &[u8]) {
        self.lines += 1;
        self.hash.update(line);
    }

    pub(crate) fn check(&self) -> Check {
        let hash = self.hash.clone().finalize();
        let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Check { lines: self.lines, sha256 }
    }
}

/// Numbers as texts: a reader whose numbers are floating would round them.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error>
    where
        T::Err: Display,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let event = StoredEvent {
            position: i64::MAX,
            stream: "a-1 \u{202e}\"".to_owned(),
            version: 7,
            event_type: "T".to_owned(),
            payload: "{ \"a\" :\n\t1e400,\"a\":2 }".to_owned(),
            metadata: "{}".to_owned(),
            id: Uuid::nil(),
            correlation_id: None,
            causation_id: Some(Uuid::max()),
            recorded_at: Timestamp::from_micros(-1),
            append_index: 0,
            append_size: 1,
        };
        let line = serde_json::to_string(&Line::Event(event.clone())).unwrap();
        assert!(!line.contains('\n') && line.contains("\"position\":\"9223372036854775807\""), "{line}");
        let Line::Event(read) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        assert_eq!(read, event);
    }
}
