//! What is in the log, counted: for people who want to know what they have, not for code that runs often.

use crate::event::Position;
use crate::filter::Filter;
use crate::read::ReadError;
use crate::store::Store;
use crate::timestamp::Timestamp;

/// What the log holds, up to its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Everything here was counted up to this position.
    pub head: Position,
    /// How many events, as they are stored.
    pub events: u64,
    /// How many streams have events.
    pub streams: u64,
    /// How many positions up to the head have no event: appends that were rolled back.
    pub holes: u64,
    /// When the first and the last event were recorded; none if there are no events.
    pub recorded: Option<(Timestamp, Timestamp)>,
    /// The most frequent types first, as many as were asked for.
    pub types: Vec<TypeStatistics>,
}

/// How often one type of event stands in the log, and where.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct TypeStatistics {
    /// The type.
    #[sqlx(rename = "type")]
    pub event_type: String,
    /// How many events, as they are stored.
    pub events: i64,
    /// The position of its first event.
    pub first: Position,
    /// The position of its last event.
    pub last: Position,
}

impl Store {
    /// Counts what is in the log. Reads an index from end to end: seconds for ten million events.
    pub async fn statistics(&self, most_types: u32) -> Result<Statistics, ReadError> {
        let head = self.head().await?.position;
        let types: Vec<TypeStatistics> = self
            .database()
            .fetch_all(
                "SELECT type, COUNT(*) AS events, MIN(position) AS first, MAX(position) AS last
                   FROM herald_events
                  WHERE position <= $1
                  GROUP BY type
                  ORDER BY 2 DESC, 1
                  LIMIT $2",
                (head, i64::from(most_types)),
            )
            .await?;
        let events = self.without_upcasters().count(&Filter::all(), head).await?;
        let streams: Option<(i64,)> =
            self.database().fetch_optional("SELECT COUNT(*) FROM herald_streams", ()).await?;
        Ok(Statistics {
            head,
            events,
            streams: streams.and_then(|row| u64::try_from(row.0).ok()).unwrap_or(0),
            holes: u64::try_from(head.0).unwrap_or(0).saturating_sub(events),
            recorded: self.recorded_up_to(head).await?,
            types,
        })
    }

    async fn recorded_up_to(&self, head: Position) -> sqlx::Result<Option<(Timestamp, Timestamp)>> {
        let first = "SELECT recorded_at FROM herald_events WHERE position <= $1 ORDER BY position LIMIT 1";
        let last =
            "SELECT recorded_at FROM herald_events WHERE position <= $1 ORDER BY position DESC LIMIT 1";
        let first: Option<(Timestamp,)> = self.database().fetch_optional(first, (head,)).await?;
        let last: Option<(Timestamp,)> = self.database().fetch_optional(last, (head,)).await?;
        Ok(first.zip(last).map(|(first, last)| (first.0, last.0)))
    }
}
