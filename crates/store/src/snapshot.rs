//! Snapshots: the state of a stream as somebody made it of the events up to a version.
//!
//! They save reading, and nothing depends on them: never part of the log, never trusted. One is given out only while
//! the event after which it was taken still stands at its version, so that after a restore no lost event lives on in
//! a state; whoever cannot use one reads the events. Of each stream the last few are kept.
//!
//! For people, the stream reads ([`Store::read_stream`] and its kin) show the snapshots of a stream as a stream
//! `$snapshot-NAME`: an event of type `$snapshot` for each, at its version and at the position of the event after
//! which it was taken, which is its cause. It cannot be subscribed to and is not found by a filter.

use uuid::Uuid;

use crate::connection::Connection;
use crate::event::Version;
use crate::json::Json;
use crate::read::{Bound, Direction, Query};
use crate::store::Store;
use crate::stream_name::StreamName;
use crate::timestamp::Timestamp;
use crate::tx::Tx;

/// A state has at most this many bytes (S-18).
pub const MAX_SNAPSHOT_BYTES: usize = 16 * 1024 * 1024;
/// So many are kept of each stream: who asks for a version that has passed finds one, and one that cannot be read
/// does not leave everybody without.
pub const KEPT_SNAPSHOTS: i64 = 3;
/// What a stream's snapshots are called as a stream.
const PREFIX: &str = "$snapshot-";

/// The state of a stream at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The version of the last event in it.
    pub version: Version,
    /// In which form it is, and of which rules: of another number it means nothing to its reader.
    pub schema_number: u32,
    /// The state, as JSON; whoever made it knows how to read it.
    pub state: Json,
    /// When it was taken, by the log's clock.
    pub taken_at: Timestamp,
}

/// Why a snapshot could not be kept, or not be looked for. Nothing is lost by that but time.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// More than [`MAX_SNAPSHOT_BYTES`].
    #[error("the state of stream {stream} has {bytes} bytes, a snapshot has at most {MAX_SNAPSHOT_BYTES}")]
    TooLarge {
        /// The stream.
        stream: StreamName,
        /// The size of the state.
        bytes: usize,
    },
    /// There is nothing of which it could be the state.
    #[error("stream {stream} has no event of version {version} of which a snapshot could be taken")]
    NoSuchVersion {
        /// The stream.
        stream: StreamName,
        /// The version that it has not.
        version: Version,
    },
    /// The database refused.
    #[error("could not keep or find a snapshot")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// Keeps a state of a stream, in place of one of the same version, and lets go of all but the last few.
    pub async fn save_snapshot(
        &self,
        stream: &StreamName,
        version: Version,
        schema_number: u32,
        state: &Json,
    ) -> Result<(), SnapshotError> {
        let bytes = state.as_str().len();
        if bytes > MAX_SNAPSHOT_BYTES {
            return Err(SnapshotError::TooLarge { stream: stream.clone(), bytes });
        }
        let now = self.clock().now().await?;
        let name = stream.as_str();
        let mut tx = self.begin().await?;
        let saved = async {
            if let Connection::Postgres(_) = tx.connection() {
                // One at a time for each stream: two that let go of the same rows could wait for each other. (On
                // SQLite there is one writer.)
                let sql = "SELECT pg_advisory_xact_lock(hashtextextended('herald_snapshots ' || $1, 0)) IS NULL";
                tx.fetch_optional::<(bool,)>(sql, (name.to_owned(),)).await?;
            }
            let saved = tx
                .execute(
                    "INSERT INTO herald_snapshots (stream, version, event_id, id, schema_number, state, taken_at)
                     SELECT stream, version, id, $3, $4, $5, $6
                       FROM herald_events
                      WHERE stream = $1 AND version = $2
                     ON CONFLICT (stream, version)
                     DO UPDATE SET event_id = excluded.event_id, id = excluded.id,
                                   schema_number = excluded.schema_number, state = excluded.state,
                                   taken_at = excluded.taken_at",
                    (
                        name.to_owned(),
                        version,
                        Uuid::now_v7(),
                        i64::from(schema_number),
                        state.as_str().to_owned(),
                        now,
                    ),
                )
                .await?;
            // Those of lost events go as well: they may be ahead of the stream, and would never grow old.
            tx.execute(
                "DELETE FROM herald_snapshots
                  WHERE stream = $1
                    AND id NOT IN (SELECT s.id
                                     FROM herald_snapshots AS s
                                     JOIN herald_events AS e
                                       ON e.stream = s.stream AND e.version = s.version AND e.id = s.event_id
                                    WHERE s.stream = $1
                                    ORDER BY s.version DESC
                                    LIMIT $2)",
                (name.to_owned(), KEPT_SNAPSHOTS),
            )
            .await?;
            Ok::<_, sqlx::Error>(saved > 0)
        }
        .await;
        match saved {
            Ok(true) => Ok(tx.commit().await?),
            Ok(false) => {
                tx.rollback().await;
                Err(SnapshotError::NoSuchVersion { stream: stream.clone(), version })
            }
            Err(error) => {
                tx.rollback().await;
                Err(error.into())
            }
        }
    }

    /// The newest snapshot of a stream with this schema number, at or below a version if one is given; none if there
    /// is none that can be used.
    pub async fn snapshot(
        &self,
        stream: &StreamName,
        schema_number: u32,
        up_to: Option<Version>,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        self.find_snapshot(None, stream, schema_number, up_to).await
    }

    /// As [`Store::snapshot`], inside a transaction.
    pub async fn snapshot_in(
        &self,
        tx: &mut Tx,
        stream: &StreamName,
        schema_number: u32,
        up_to: Option<Version>,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        self.find_snapshot(Some(tx), stream, schema_number, up_to).await
    }

    async fn find_snapshot(
        &self,
        mut tx: Option<&mut Tx>,
        stream: &StreamName,
        schema_number: u32,
        up_to: Option<Version>,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        let sql = "SELECT s.version, s.state, s.taken_at
                     FROM herald_snapshots AS s
                     JOIN herald_events AS e
                       ON e.stream = s.stream AND e.version = s.version AND e.id = s.event_id
                    WHERE s.stream = $1 AND s.version <= $2 AND s.schema_number = $3
                    ORDER BY s.version DESC
                    LIMIT 1";
        let mut up_to = up_to.unwrap_or(Version(i64::MAX));
        // As often as snapshots are kept, and none of them can be read.
        loop {
            let values = (stream.as_str().to_owned(), up_to, i64::from(schema_number));
            let found: Option<(Version, String, Timestamp)> = match &mut tx {
                Some(tx) => tx.fetch_optional(sql, values).await?,
                None => self.database().fetch_optional(sql, values).await?,
            };
            let Some((version, state, taken_at)) = found else { return Ok(None) };
            match Json::from_row(&state) {
                Ok(state) => return Ok(Some(Snapshot { version, schema_number, state, taken_at })),
                Err(error) => {
                    tracing::warn!("the snapshot of {stream} at version {version} is ignored: {error}");
                    up_to = Version(version.0 - 1);
                }
            }
        }
    }
}

/// The stream whose snapshots this name stands for, if it does.
pub(crate) fn snapshots_of(name: &StreamName) -> Option<&str> {
    name.as_str().strip_prefix(PREFIX)
}

/// The snapshots of a stream as events, from a version on or before one, with the columns of an event in their order.
pub(crate) fn as_events(name: &StreamName, of: &str, direction: Direction, from: i64, limit: i64) -> Query {
    let end = match direction {
        Direction::Forwards => "s.version >= $3 ORDER BY s.version",
        Direction::Backwards => "s.version < $3 ORDER BY s.version DESC",
    };
    let text = format!(
        "SELECT e.position, CAST($1 AS TEXT), s.version, '$snapshot', s.state,
                '{{\"schema_number\":' || s.schema_number || '}}', s.id, e.correlation_id, s.event_id, s.taken_at
           FROM herald_snapshots AS s
           JOIN herald_events AS e ON e.stream = s.stream AND e.version = s.version AND e.id = s.event_id
          WHERE s.stream = $2 AND {end}
          LIMIT $4"
    );
    let values = vec![
        Bound::Text(name.as_str().to_owned()),
        Bound::Text(of.to_owned()),
        Bound::Integer(from),
        Bound::Integer(limit),
    ];
    Query { text, values, limit }
}
