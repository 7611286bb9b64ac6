//! Streams by name: which there are, in which categories, and what one of them holds.
//!
//! Lists come in pages in the order of the bytes of the names, on both databases, and each page walks an index from
//! where it begins: it costs the same in a log of a hundred streams and of a hundred million. What is listed is what
//! is committed; only the special streams, which are filters over the whole log, end at its head.

mod listing;

use self::listing::Listing;
use crate::event::{Event, Position, Version};
use crate::filter::{Filter, UnknownSpecialStream};
use crate::read::ReadError;
use crate::store::Store;
use crate::stream_name::StreamName;

/// The largest page of names.
pub const MAX_PAGE_NAMES: usize = 10_000;

/// A stream in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedStream {
    /// Its name.
    pub name: StreamName,
    /// The version of its last event.
    pub version: Version,
}

/// Which streams to list. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamList {
    /// Only names that begin with this.
    pub prefix: String,
    /// Only this category.
    pub category: Option<String>,
    /// Only names behind this one, in the order of bytes: the last name of the page before.
    pub after: Option<String>,
}

/// What a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSummary {
    /// How many events.
    pub events: u64,
    /// The version of its last event; none for a special stream, which is a choice among all events.
    pub version: Option<Version>,
    /// Its first event.
    pub first: Event,
    /// Its last events, newest first, as many as were asked for.
    pub last: Vec<Event>,
}

/// Why a stream cannot be summed up.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The name is one of the log's own, but none that can be read.
    #[error(transparent)]
    UnknownSpecialStream(#[from] UnknownSpecialStream),
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Store {
    /// The streams that have events, by name, at most `limit` (and [`MAX_PAGE_NAMES`]).
    pub async fn streams(&self, wanted: &StreamList, limit: usize) -> Result<Vec<ListedStream>, ReadError> {
        let Some(listing) = Listing::of_streams(self.database().kind(), wanted, limit) else {
            return Ok(Vec::new());
        };
        let rows: Vec<(String, Version)> = listing.rows(self.database()).await?;
        let listed = |(name, version): (String, Version)| match StreamName::new(name.as_str()) {
            Ok(name) => Ok(ListedStream { name, version }),
            Err(source) => Err(ReadError::BadStream { name, source }),
        };
        rows.into_iter().map(listed).collect()
    }

    /// The categories that have streams, by name: those that begin with `prefix` and come behind `after`, at most
    /// `limit` (and [`MAX_PAGE_NAMES`]).
    pub async fn categories(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, ReadError> {
        let Some(listing) = Listing::of_categories(self.database().kind(), prefix, after, limit) else {
            return Ok(Vec::new());
        };
        let rows: Vec<(String,)> = listing.rows(self.database()).await?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    /// What a stream holds, with its last events; none if it has no events. The special streams `$all`,
    /// `$category-NAME` and `$correlation-ID` are counted, which takes as long as reading an index over their events.
    pub async fn stream_summary(
        &self,
        name: &StreamName,
        last: usize,
    ) -> Result<Option<StreamSummary>, SummaryError> {
        let filter = Filter::of(name)?;
        // What is there is told, not what upcasters make of it: they may make nothing of the first or the last event.
        let stored = self.without_upcasters();
        if name.is_reserved() {
            return Ok(stored.special_summary(&filter, last).await?);
        }
        let newest = stored.read_stream_backwards(name, None, last.max(1)).await?;
        let first = stored.read_stream(name, 0, 1).await?.into_iter().next();
        Ok(first.zip(newest.first().map(|event| event.version)).map(|(first, version)| StreamSummary {
            // Versions begin at 0 and have no holes.
            events: u64::try_from(version.0).unwrap_or(0) + 1,
            version: Some(version),
            first,
            last: newest.into_iter().take(last).collect(),
        }))
    }

    async fn special_summary(
        &self,
        filter: &Filter,
        last: usize,
    ) -> Result<Option<StreamSummary>, ReadError> {
        let head = self.head().await?.position;
        let mut page = self.read(filter, Position::START, 1).await?;
        while page.events.is_empty() && !page.is_end && page.scanned_to < head {
            page = self.read(filter, page.scanned_to, 1).await?;
        }
        let first = page.events.into_iter().next();
        let Some(first) = first.filter(|event| event.position <= head) else { return Ok(None) };
        let events = self.count(filter, head).await?;
        let last = self.read_backwards(filter, Some(Position(head.0 + 1)), last).await?.events;
        Ok(Some(StreamSummary { events, version: None, first, last }))
    }

    /// How the database finds a page of streams, for people.
    pub async fn explain_streams(&self, wanted: &StreamList, limit: usize) -> Result<String, ReadError> {
        match Listing::of_streams(self.database().kind(), wanted, limit) {
            Some(listing) => Ok(listing.explain(self.database()).await?),
            None => Ok(String::new()),
        }
    }

    /// How the database finds a page of categories, for people.
    pub async fn explain_categories(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<String, ReadError> {
        match Listing::of_categories(self.database().kind(), prefix, after, limit) {
            Some(listing) => Ok(listing.explain(self.database()).await?),
            None => Ok(String::new()),
        }
    }
}
