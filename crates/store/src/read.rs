//! Reading the log: pages, forwards and backwards, of everything or of what a filter wants.
//!
//! The unfiltered feed proves each hole. Every other read first takes the safe head and then reads no
//! further than that; without the bound a filtered read could pass an event that is still being committed.
//! Pages are bounded by events, by bytes, and by how much is looked at to fill them.

mod between;
mod explain;
mod inspect;
mod pages;
mod query;
mod raw;
mod row;
mod shown;

use std::ops::Deref;

use uuid::Uuid;

pub(crate) use self::inspect::{Inspected, inspect};
pub use self::pages::{Events, Pages};
pub(crate) use self::query::{Bound, Query, category_expression};
use self::query::{Plan, Range, stream_before, stream_from};
pub use self::raw::{RawColumn, RawEvent};
pub(crate) use self::row::fetch_numbers;
use self::row::{Reader, Rows, fetch, fetch_in};
use self::shown::View;
use crate::closed::{CLOSED, Closed, is_closed};
use crate::connection::Connection;
use crate::event::{Event, Position, Version};
use crate::filter::Filter;
use crate::guard::BoxError;
use crate::hooks::Reading;
use crate::store::Store;
use crate::stream_name::{InvalidStreamName, StreamName};
use crate::tx::Tx;

/// The largest page.
pub const MAX_PAGE_EVENTS: usize = 10_000;
/// A page is full when its payloads and metadata have this many bytes; it has at least one event.
pub const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;
/// One read looks at no more events than this to fill its page, where the database cannot find the wanted ones
/// without looking at others.
pub const MAX_LOOKED_AT: i64 = 100_000;
/// Events looked at by one statement in such a read.
const LOOK: i64 = 10_000;
/// A reader that is so many positions behind what is known to be settled reads up to there, and does not ask for more.
const FAR_BEHIND: i64 = 10_000;
/// Usual size of a page.
const PAGE_EVENTS: usize = 1_000;
/// Several types are looked for in so many positions at first for each event of the page, and then in eight times
/// as many, and so on: where they are frequent, little is found in vain, and where they are rare, the end is near.
const FIRST_WINDOW: i64 = 4;
const WINDOW_GROWTH: i64 = 8;
/// The same for events of which nothing that is wanted is shown.
const UPCAST_GROWTH: usize = 8;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first, from after a position.
    Forwards,
    /// Newest first, from before a position.
    Backwards,
}

/// A page of events.
#[derive(Clone, Debug)]
pub struct Page {
    /// The events, in the order asked for.
    pub events: Vec<Event>,
    /// Everything up to here (backwards: from here on) has been looked at, so a reader goes on from here even if
    /// the last event that it wanted stands elsewhere.
    pub scanned_to: Position,
    /// Nothing more could be read when this page was read. If not, go on, even if the page is empty.
    pub is_end: bool,
}

/// A page of one stream.
#[derive(Clone, Debug)]
pub struct StreamPage {
    /// The events, by version.
    pub events: Vec<Event>,
    /// The version to go on from; none at the end of the stream.
    pub next: Option<Version>,
    /// The version of the last event that was looked at; none if there was none. This, and not a count of the events,
    /// is what to expect of a stream that was read to its end: upcasters may show one as several or as none.
    pub scanned_to: Option<Version>,
}

/// Why events could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A row of the log cannot be what the program wrote.
    #[error("the event at position {position} cannot be read")]
    BadRow {
        /// Its position.
        position: Position,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// The stream is closed for good, and its events are not read any more.
    #[error("there is no stream {0}: it was closed")]
    StreamClosed(StreamName),
    /// A hook does not allow it.
    #[error("hook {hook:?} refuses to have this read")]
    RefusedByHook {
        /// The hook's name.
        hook: String,
        /// What it said.
        #[source]
        reason: BoxError,
    },
    /// Each time a part was read, the server was another one than before.
    #[error(
        "the address leads to one server after the other, so nothing read there fits together; connect to one of them"
    )]
    ManyServers,
    /// A name in the list of streams cannot be what the program wrote.
    #[error("the stream {name:?} has an impossible name")]
    BadStream {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: InvalidStreamName,
    },
    /// The database refused.
    #[error("could not read the log")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// The next events after a position, oldest first, at most `limit` (and [`MAX_PAGE_EVENTS`], and
    /// [`MAX_PAGE_BYTES`]).
    ///
    /// A page may be shorter than its limit, even empty, although more events follow: `is_end` tells. It is longer
    /// where upcasters show the last event as several, which are never separated. No event is
    /// ever skipped: what a page leaves behind it can never get an event later. Where the next event cannot be read,
    /// what stands before it is delivered first, and then the error.
    pub async fn read(&self, filter: &Filter, after: Position, limit: usize) -> Result<Page, ReadError> {
        let limit = limit.min(MAX_PAGE_EVENTS);
        let reading = Reading::Log { filter, direction: Direction::Forwards, limit };
        let page = self.in_one_run(|| self.read_page(filter, after, limit));
        self.hooked(reading, page, |page| &page.events).await
    }

    async fn read_page(&self, filter: &Filter, after: Position, limit: usize) -> Result<Page, ReadError> {
        if filter.is_all() {
            let stored = self.read_contiguous(after, page_limit(limit)).await?;
            let is_end = stored.is_empty() && limit > 0;
            let closed = self.closed().await?;
            let view = View { upcasters: self.upcasters(), closed: &closed };
            let rows = Rows::stored(stored).shown(view, filter, Direction::Forwards, limit);
            return match (rows.bad, rows.last) {
                (Some(error), None) => Err(error),
                (_, last) => {
                    let scanned_to = last.map_or(after, |(position, _)| position);
                    Ok(Page { events: rows.events, scanned_to, is_end })
                }
            };
        }
        let settled = self.settled();
        if settled.0.saturating_sub(after.0) > FAR_BEHIND {
            // Who appends now is none of its business.
            let range = Range { after, up_to: settled, direction: Direction::Forwards };
            let page = self.scan(filter, range, limit).await?;
            return Ok(Page { is_end: false, ..page });
        }
        let range = self.range_after(after).await?;
        self.scan(filter, range, limit).await
    }

    /// The events before a position (or from the end), newest first, at most `limit`. To go on, ask for what stands
    /// before `scanned_to`.
    pub async fn read_backwards(
        &self,
        filter: &Filter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let limit = limit.min(MAX_PAGE_EVENTS);
        let reading = Reading::Log { filter, direction: Direction::Backwards, limit };
        let page = self.in_one_run(async || {
            let range = self.range_before(before).await?;
            self.scan(filter, range, limit).await
        });
        self.hooked(reading, page, |page| &page.events).await
    }

    /// What follows a position and is safe to read. The head is taken before the snapshot of the read, never in the
    /// same statement. For use inside [`Store::in_one_run`], as all of these.
    async fn range_after(&self, after: Position) -> Result<Range, ReadError> {
        let head = self.find_head().await?.position;
        Ok(Range { after, up_to: head.max(after), direction: Direction::Forwards })
    }

    /// What stands before a position, or all, and is safe to read.
    async fn range_before(&self, before: Option<Position>) -> Result<Range, ReadError> {
        let head = self.find_head().await?.position;
        let up_to = before.map_or(head, |before| head.min(Position(before.0.saturating_sub(1))));
        Ok(Range {
            after: Position::START,
            up_to: up_to.max(Position::START),
            direction: Direction::Backwards,
        })
    }

    /// Where the event with this id stands, if the log has it.
    pub async fn find(&self, id: Uuid) -> Result<Option<Position>, ReadError> {
        let sql = "SELECT position FROM herald_events WHERE id = $1";
        let row: Option<(Position,)> = self.database().fetch_optional(sql, (id,)).await?;
        Ok(row.map(|row| row.0))
    }

    /// How many events there are up to a position, which must not be beyond the head. Where the database cannot
    /// tell without looking at others, they are read.
    pub async fn count(&self, filter: &Filter, up_to: Position) -> Result<u64, ReadError> {
        if filter.is_nothing() {
            return Ok(0);
        }
        let mut range = Range { after: Position::START, up_to, direction: Direction::Forwards };
        let stored = self.stored(filter);
        let plan = self.plan(&stored);
        let is_plain = self.closed().await?.is_empty()
            && !self.upcasters().is_some_and(|upcasters| upcasters.touch(&stored));
        if !plan.looks_at_others() && is_plain {
            let (count, _) = fetch_numbers(self.database(), plan.count(range)).await?;
            return Ok(count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0));
        }
        let mut count = 0;
        loop {
            let page = self.scan(filter, range, MAX_PAGE_EVENTS).await?;
            count += u64::try_from(page.events.len()).unwrap_or(u64::MAX);
            range.after = page.scanned_to;
            if page.is_end {
                return Ok(count);
            }
        }
    }

    /// The events of one stream from a version on, oldest first, at most `limit` (and [`MAX_PAGE_EVENTS`], and
    /// [`MAX_PAGE_BYTES`]).
    ///
    /// A stream has no holes, so this needs no head: it shows what is committed. Use it to rebuild state.
    pub async fn read_stream(
        &self,
        stream: &StreamName,
        from_version: i64,
        limit: usize,
    ) -> Result<StreamPage, ReadError> {
        let reading = Reading::Stream { stream, direction: Direction::Forwards, limit };
        let page = async {
            let query = stream_from(self.database().kind(), stream, from_version, self.rows_at_once(limit));
            let rows = fetch(self.database(), query, MAX_PAGE_BYTES).await?;
            self.refuse_closed(None, stream, &rows, Direction::Forwards, from_version <= 0).await?;
            self.stream_page(rows, Direction::Forwards, limit)
        };
        self.hooked(reading, page, |page| &page.events).await
    }

    /// As [`Store::read_stream`], inside a transaction.
    pub async fn read_stream_in(
        &self,
        tx: &mut Tx,
        stream: &StreamName,
        from_version: i64,
        limit: usize,
    ) -> Result<StreamPage, ReadError> {
        let reading = Reading::Stream { stream, direction: Direction::Forwards, limit };
        let page = async {
            tx.usable()?;
            let query = stream_from(tx.kind(), stream, from_version, self.rows_at_once(limit));
            let rows = fetch_in(tx.connection(), &query, MAX_PAGE_BYTES).await?;
            let connection = Some(tx.connection());
            self.refuse_closed(connection, stream, &rows, Direction::Forwards, from_version <= 0).await?;
            self.stream_page(rows, Direction::Forwards, limit)
        };
        self.hooked(reading, page, |page| &page.events).await
    }

    /// The events of one stream before a version, or from its newest, newest first, at most `limit`.
    pub async fn read_stream_backwards(
        &self,
        stream: &StreamName,
        before: Option<Version>,
        limit: usize,
    ) -> Result<StreamPage, ReadError> {
        let reading = Reading::Stream { stream, direction: Direction::Backwards, limit };
        let page = async {
            let (kind, before) = (self.database().kind(), before.map(|version| version.0));
            let query = stream_before(kind, stream, before, self.rows_at_once(limit));
            let rows = fetch(self.database(), query, MAX_PAGE_BYTES).await?;
            self.refuse_closed(None, stream, &rows, Direction::Backwards, before.is_none()).await?;
            self.stream_page(rows, Direction::Backwards, limit)
        };
        self.hooked(reading, page, |page| &page.events).await
    }

    /// As [`Store::read_stream_backwards`], inside a transaction.
    pub async fn read_stream_backwards_in(
        &self,
        tx: &mut Tx,
        stream: &StreamName,
        before: Option<Version>,
        limit: usize,
    ) -> Result<StreamPage, ReadError> {
        let reading = Reading::Stream { stream, direction: Direction::Backwards, limit };
        let page = async {
            tx.usable()?;
            let before = before.map(|version| version.0);
            let query = stream_before(tx.kind(), stream, before, self.rows_at_once(limit));
            let rows = fetch_in(tx.connection(), &query, MAX_PAGE_BYTES).await?;
            let connection = Some(tx.connection());
            self.refuse_closed(connection, stream, &rows, Direction::Backwards, before.is_none()).await?;
            self.stream_page(rows, Direction::Backwards, limit)
        };
        self.hooked(reading, page, |page| &page.events).await
    }

    /// The events of a closed stream are not shown. Its last event tells, where the rows reach it; elsewhere it is asked
    /// for. `is_first`: nothing of the stream stands before these rows.
    async fn refuse_closed(
        &self,
        connection: Option<&mut Connection>,
        stream: &StreamName,
        rows: &Rows,
        direction: Direction,
        is_first: bool,
    ) -> Result<(), ReadError> {
        if self.plugins().shows_closed {
            return Ok(());
        }
        let last = match direction {
            Direction::Forwards if !rows.is_cut => rows.events.last(),
            Direction::Backwards if is_first => rows.events.first(),
            _ => None,
        };
        let is_closed = match (last, connection) {
            (Some(event), _) => event.event_type == CLOSED,
            (None, _) if is_first && rows.events.is_empty() && rows.bad.is_none() => false,
            (None, Some(connection)) => is_closed(connection, stream).await?,
            (None, None) => is_closed(&mut self.database().reader().await?, stream).await?,
        };
        if is_closed { Err(ReadError::StreamClosed(stream.clone())) } else { Ok(()) }
    }

    fn stream_page(&self, rows: Rows, direction: Direction, limit: usize) -> Result<StreamPage, ReadError> {
        self.note_sizes(&rows);
        let view = View { upcasters: self.upcasters(), closed: &Closed::default() };
        let rows = rows.shown(view, &Filter::all(), direction, limit);
        let scanned_to = rows.last.map(|(_, version)| version);
        let next = match direction {
            Direction::Forwards => scanned_to.map(|last| Version(last.0 + 1)),
            // The next page stands before the last version of this one.
            Direction::Backwards => scanned_to.filter(|last| last.0 > 0),
        };
        match rows.bad {
            Some(error) if scanned_to.is_none() => Err(error),
            _ => Ok(StreamPage { events: rows.events, next: next.filter(|_| rows.is_cut), scanned_to }),
        }
    }

    /// Reads a range of positions, which the caller knows to be safe, until the page is full.
    async fn scan(&self, filter: &Filter, range: Range, limit: usize) -> Result<Page, ReadError> {
        self.scan_by(Reader::Pool(self.database()), filter, range, limit).await
    }

    /// As [`Store::scan`], wherever the reader reads.
    async fn scan_by(
        &self,
        mut reader: Reader<'_>,
        filter: &Filter,
        mut range: Range,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let mut page = Page { events: Vec::new(), scanned_to: range.begin(), is_end: false };
        if limit == 0 {
            return Ok(page);
        }
        // Inside a transaction no second connection is asked for.
        let closed = match &reader {
            Reader::Pool(_) => self.closed().await?,
            Reader::Transaction(_) => self.closed_as_known(),
        };
        let view = View { upcasters: self.upcasters(), closed: &closed };
        let stored = self.stored(filter);
        let plan = self.plan(&stored);
        let mut window = plan.merges().then(|| page_limit(limit).saturating_mul(FIRST_WINDOW));
        let mut may_look_at = MAX_LOOKED_AT;
        // Where much is not shown, more is asked for at once.
        let mut at_least = 1;
        let mut bytes = 0;
        while !range.is_empty() && !filter.is_nothing() {
            let mut part = range;
            if let Some(positions) = &mut window {
                part.shorten(*positions);
                *positions = positions.saturating_mul(WINDOW_GROWTH);
            }
            if plan.looks_at_others() {
                may_look_at -= shorten_to_look(&mut reader, &plan, &mut part).await?;
            }
            let room = limit - page.events.len();
            let wanted = page_limit(room.max(at_least));
            let query = plan.events(part, self.rows_at_once_of(wanted));
            let mut rows = reader.fetch(query, MAX_PAGE_BYTES.saturating_sub(bytes)).await?;
            self.note_sizes(&rows);
            bytes += rows.bytes;
            if view.hides() && !plan.looks_at_others() {
                // What was looked for may be shown as something that is not wanted, or not at all.
                may_look_at -= page_limit(rows.events.len());
            }
            rows = rows.shown(view, filter, range.direction, room);
            if rows.events.is_empty() && view.hides() {
                at_least = (at_least * UPCAST_GROWTH).min(MAX_PAGE_EVENTS);
            }
            match rows.last.filter(|_| rows.is_cut) {
                Some((position, _)) => range.move_past(position),
                None if rows.is_cut => {}
                None => range.skip(part),
            }
            page.events.append(&mut rows.events);
            match rows.bad {
                Some(error) if page.events.is_empty() => return Err(error),
                Some(_) => break,
                None => {}
            }
            if page.events.len() >= limit || bytes >= MAX_PAGE_BYTES || may_look_at <= 0 {
                break;
            }
        }
        page.is_end = range.is_empty() || filter.is_nothing();
        page.scanned_to = if filter.is_nothing() { range.end() } else { range.begin() };
        Ok(page)
    }

    /// The limit of rows for a statement. Where the events of late were large, no more are asked for than will fit
    /// the page about twice: what a server has begun to send must be received.
    fn rows_at_once(&self, limit: usize) -> i64 {
        self.rows_at_once_of(page_limit(limit.min(MAX_PAGE_EVENTS)))
    }

    fn rows_at_once_of(&self, limit: i64) -> i64 {
        let fitting = 2 * MAX_PAGE_BYTES / self.bytes_per_event().max(1);
        limit.min(page_limit(fitting.max(1)))
    }

    fn note_sizes(&self, rows: &Rows) {
        // What is no event of the log says nothing of those.
        let is_log = rows.events.first().is_some_and(|event| !event.stream.is_reserved());
        if let Some(average) = rows.bytes.checked_div(rows.events.len()).filter(|_| is_log) {
            self.note_bytes_per_event(average);
        }
    }
}

/// Shortens a range to what one statement may look at; answers how many events that are at most.
async fn shorten_to_look(
    reader: &mut Reader<'_>,
    plan: &Plan<'_>,
    range: &mut Range,
) -> Result<i64, ReadError> {
    if plan.walks_the_log() {
        range.shorten(LOOK);
        return Ok(LOOK);
    }
    let (last, count) = reader.fetch_numbers(plan.end_of_look(*range, LOOK)).await?;
    if let Some(last) = last
        && count >= LOOK
    {
        range.end_at(Position(last));
    }
    // A look costs something even if it finds nothing.
    Ok(count.max(1))
}

fn page_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Reads what is visible after a position and up to another one, as it is stored. No promise about holes: see the
/// callers.
pub(crate) async fn select(
    store: &Store,
    filter: &Filter,
    after: Position,
    up_to: Option<Position>,
    limit: i64,
) -> Result<Vec<Event>, ReadError> {
    let range = Range { after, up_to: up_to.unwrap_or(Position(i64::MAX)), direction: Direction::Forwards };
    let plan = Plan::new(store.database().kind(), filter, &[]);
    let query = plan.events(range, store.rows_at_once_of(limit));
    let rows = fetch(store.database(), query, MAX_PAGE_BYTES).await?;
    store.note_sizes(&rows);
    match rows.bad {
        Some(error) if rows.events.is_empty() => Err(error),
        _ => Ok(rows.events),
    }
}

impl Range {
    fn is_empty(self) -> bool {
        self.after >= self.up_to
    }

    /// Where a reader of this range stands.
    fn begin(self) -> Position {
        match self.direction {
            Direction::Forwards => self.after,
            Direction::Backwards => Position(self.up_to.0.saturating_add(1)),
        }
    }

    /// Where a reader of all of it will stand.
    fn end(self) -> Position {
        match self.direction {
            Direction::Forwards => self.up_to,
            Direction::Backwards => Position(self.after.0.saturating_add(1)),
        }
    }

    /// Keeps so many positions from its beginning.
    fn shorten(&mut self, positions: i64) {
        match self.direction {
            Direction::Forwards => {
                self.up_to = self.up_to.min(Position(self.after.0.saturating_add(positions)));
            }
            Direction::Backwards => {
                self.after = self.after.max(Position(self.up_to.0.saturating_sub(positions)));
            }
        }
    }

    /// Lets it end with this position.
    fn end_at(&mut self, last: Position) {
        match self.direction {
            Direction::Forwards => self.up_to = last,
            Direction::Backwards => self.after = Position(last.0 - 1),
        }
    }

    /// What is left after this position was read.
    fn move_past(&mut self, position: Position) {
        match self.direction {
            Direction::Forwards => self.after = position,
            Direction::Backwards => self.up_to = Position(position.0 - 1),
        }
    }

    /// What is left after a part from its beginning was read.
    fn skip(&mut self, part: Self) {
        match self.direction {
            Direction::Forwards => self.after = part.up_to,
            Direction::Backwards => self.up_to = part.after,
        }
    }
}

/// A page of a stream is mostly its events.
impl Deref for StreamPage {
    type Target = [Event];

    fn deref(&self) -> &Self::Target {
        &self.events
    }
}

impl IntoIterator for StreamPage {
    type Item = Event;
    type IntoIter = std::vec::IntoIter<Event>;

    fn into_iter(self) -> Self::IntoIter {
        self.events.into_iter()
    }
}
