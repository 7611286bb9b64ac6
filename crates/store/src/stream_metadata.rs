//! A document of metadata per stream (S-14a): what people note about it, such as who owns it or how long it is kept.
//!
//! It is beside the log and not part of it: it can be replaced and taken away, nobody is woken by it, and no read of
//! events depends on it. Only a stream that has events can have one, so that a misspelt name is an error at once.

use crate::event::{InvalidEvent, check_metadata};
use crate::json::{InvalidJson, Json};
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::timestamp::Timestamp;

/// What is noted about a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamMetadata {
    /// A JSON object, byte for byte as given.
    pub document: Json,
    /// When it was given, by the log's clock.
    pub changed_at: Timestamp,
}

/// Why the metadata of a stream cannot be told or changed.
#[derive(Debug, thiserror::Error)]
pub enum StreamMetadataError {
    /// The stream has no events.
    #[error("there is no stream {0}")]
    NoSuchStream(StreamName),
    /// The name is one of the log's own: what it stands for is no stream.
    #[error("{0} stands for many streams and has no metadata of its own")]
    ReservedStream(StreamName),
    /// The document breaks a limit: that of an event's metadata.
    #[error("the metadata of {stream} is not valid")]
    Invalid {
        /// The stream.
        stream: StreamName,
        /// Which limit.
        #[source]
        source: InvalidEvent,
    },
    /// The row cannot be what the program wrote.
    #[error("the metadata of {stream} cannot be read")]
    BadRow {
        /// The stream.
        stream: StreamName,
        /// What is wrong with it.
        #[source]
        source: InvalidJson,
    },
    /// The database refused.
    #[error("could not read or write the metadata of a stream")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// What is noted about a stream that has events; none if nothing is.
    pub async fn stream_metadata(
        &self,
        stream: &StreamName,
    ) -> Result<Option<StreamMetadata>, StreamMetadataError> {
        refuse_reserved(stream)?;
        let row: Option<(Option<String>, Option<Timestamp>)> = self
            .database()
            .fetch_optional(
                "SELECT m.metadata, m.changed_at
                   FROM herald_streams AS s
                   LEFT JOIN herald_stream_metadata AS m ON m.stream = s.stream
                  WHERE s.stream = $1 AND s.closed_version IS NULL",
                (stream.as_str(),),
            )
            .await?;
        let Some((document, changed_at)) = row else {
            return Err(StreamMetadataError::NoSuchStream(stream.clone()));
        };
        let Some((document, changed_at)) = document.zip(changed_at) else { return Ok(None) };
        let bad = |source| StreamMetadataError::BadRow { stream: stream.clone(), source };
        Ok(Some(StreamMetadata { document: Json::parse(document).map_err(bad)?, changed_at }))
    }

    /// Notes this about a stream that has events, in place of what was noted before; with none, clears it. The last
    /// one who sets it wins.
    pub async fn set_stream_metadata(
        &self,
        stream: &StreamName,
        document: Option<&Json>,
    ) -> Result<(), StreamMetadataError> {
        refuse_reserved(stream)?;
        let Some(document) = document else {
            // Says whether there is such a stream.
            self.stream_metadata(stream).await?;
            let sql = "DELETE FROM herald_stream_metadata WHERE stream = $1";
            self.database().execute(sql, (stream.as_str(),)).await?;
            return Ok(());
        };
        let invalid = |source| StreamMetadataError::Invalid { stream: stream.clone(), source };
        check_metadata(document).map_err(invalid)?;
        let sql = "INSERT INTO herald_stream_metadata (stream, metadata, changed_at)
             SELECT stream, $2, coalesce((SELECT test_time FROM herald_log), {now})
               FROM herald_streams
              WHERE stream = $1 AND closed_version IS NULL
             ON CONFLICT (stream) DO UPDATE SET metadata = excluded.metadata, changed_at = excluded.changed_at";
        match self.database().execute(sql, (stream.as_str(), document.as_str())).await? {
            0 => Err(StreamMetadataError::NoSuchStream(stream.clone())),
            _ => Ok(()),
        }
    }
}

fn refuse_reserved(stream: &StreamName) -> Result<(), StreamMetadataError> {
    if stream.is_reserved() {
        return Err(StreamMetadataError::ReservedStream(stream.clone()));
    }
    Ok(())
}
