//! The log as a stream: page after page, or event after event, to the end or for ever.
//!
//! While one page is handled the next one is fetched, and no more than that: memory does not grow with the log,
//! and who reads slowly is not run over. A stream that is dropped stops what it had begun. A live stream catches
//! up, waits for hints of new events, and outlives a restart of the database without losing or repeating any.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::vec;

use futures_util::Stream;
use tokio::task::JoinSet;

use super::query::Range;
use super::{Direction, PAGE_EVENTS, Page, ReadError};
use crate::event::{Event, Position};
use crate::fault::{Fault, messages};
use crate::filter::Filter;
use crate::hooks::Reading;
use crate::safe_head::Run;
use crate::store::Store;
use crate::wake::{Listening, Wake};

/// A live stream looks this often even if nobody hints at anything: a lost hint costs no more.
const POLL: Duration = Duration::from_secs(2);
/// How long a live stream waits before it asks a database again that has failed, at first and at most.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// Pages, one after the other. See [`Store::pages`] and [`Store::follow_pages`].
#[must_use = "a stream reads nothing until it is polled"]
pub struct Pages {
    is_live: bool,
    /// Where to begin; taken when the first page is asked for.
    begin: Option<Cursor>,
    /// The page that is under way, if any. Dropping this stops it.
    under_way: JoinSet<Fetched>,
}

/// Events, one after the other. See [`Store::events`] and [`Store::follow`].
#[derive(Debug)]
#[must_use = "a stream reads nothing until it is polled"]
pub struct Events {
    pages: Pages,
    page: vec::IntoIter<Event>,
}

/// A page, or that there is none, and where to go on.
struct Fetched {
    page: Option<Result<Page, ReadError>>,
    rest: Option<Cursor>,
}

/// Where a stream stands.
struct Cursor {
    store: Store,
    filter: Filter,
    way: Way,
}

/// Which part of the log is left to be read.
enum Way {
    /// From after here to where the log ends when the first page is fetched.
    ToTheEnd(Position),
    /// From before here, or from the end, to the beginning.
    ToTheBeginning(Option<Position>),
    /// What is left of a part that was safe to read in this run of the server.
    Range(Range, Run),
    /// For ever.
    Live(Box<Live>),
}

/// What a live stream keeps between two pages.
struct Live {
    after: Position,
    wake: Wake,
    /// Hints of other processes arrive as long as this is held; from the first page on.
    listening: Option<Arc<Listening>>,
    /// The last page that was handed out said that it was the end.
    told_end: bool,
    /// The wait before the next try, while the database fails.
    back_off: Option<Duration>,
}

impl Store {
    /// The events after a position, oldest first, up to where the log ends when this is first polled.
    ///
    /// It ends there however much is appended meanwhile; what stands behind an append that is still under way then
    /// is not part of it ([`Store::head`]). An event that cannot be read is an error at its place, after all events
    /// before it; after any error the stream ends.
    pub fn events(&self, filter: Filter, after: Position) -> Events {
        Events::of(self.pages(filter, after))
    }

    /// The events before a position, or from the end, newest first. As [`Store::events`] in all else.
    pub fn events_backwards(&self, filter: Filter, before: Option<Position>) -> Events {
        Events::of(self.pages_backwards(filter, before))
    }

    /// As [`Store::events`], in pages as they are read; there is at least one, and the last one says that it is.
    pub fn pages(&self, filter: Filter, after: Position) -> Pages {
        Pages::of(self, filter, Way::ToTheEnd(after))
    }

    /// As [`Store::events_backwards`], in pages.
    pub fn pages_backwards(&self, filter: Filter, before: Option<Position>) -> Pages {
        Pages::of(self, filter, Way::ToTheBeginning(before))
    }

    /// The events after a position, and then those that come, for ever: no event is lost or repeated.
    ///
    /// While the database cannot be reached this waits and goes on where it was. It ends with the error if an event
    /// cannot be read or the database fails for good, and without one when the store is closed.
    pub fn follow(&self, filter: Filter, after: Position) -> Events {
        Events::of(self.follow_pages(filter, after))
    }

    /// As [`Store::follow`], in pages as they are read, for those who want to know more of what is going on.
    ///
    /// A page comes whenever there are events or the stream has got ahead, and each time when the end is reached:
    /// then `is_end` holds, and the page may be empty. A failure that may heal ([`ReadError::may_heal`]) is handed
    /// out once, and the stream goes on: the next page means that it has healed.
    pub fn follow_pages(&self, filter: Filter, after: Position) -> Pages {
        let wake = self.wake();
        let live = Live { after, wake, listening: None, told_end: false, back_off: None };
        Pages::of(self, filter, Way::Live(Box::new(live)))
    }
}

impl Pages {
    fn of(store: &Store, filter: Filter, way: Way) -> Self {
        let is_live = matches!(way, Way::Live(_));
        let begin = Some(Cursor { store: store.clone(), filter, way });
        Self { is_live, begin, under_way: JoinSet::new() }
    }
}

impl Stream for Pages {
    type Item = Result<Page, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(cursor) = self.begin.take() {
            self.under_way.spawn(cursor.fetch());
        }
        match ready!(self.under_way.poll_join_next(context)) {
            None => Poll::Ready(None),
            Some(Ok(Fetched { page, rest })) => {
                // This is all that is ever fetched ahead.
                if let Some(cursor) = rest {
                    self.under_way.spawn(cursor.fetch());
                }
                Poll::Ready(page)
            }
            Some(Err(ended)) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being shut down: not the end of the log.
                Err(_) => Poll::Ready(Some(Err(sqlx::Error::WorkerCrashed.into()))),
            },
        }
    }
}

impl Events {
    fn of(pages: Pages) -> Self {
        Self { pages, page: Vec::new().into_iter() }
    }
}

impl Stream for Events {
    type Item = Result<Event, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.page.next() {
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(Pin::new(&mut self.pages).poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Ok(page)) => self.page = page.events.into_iter(),
                Some(Err(error)) if self.pages.is_live && error.may_heal() => {
                    let why = messages(&error).join(": ");
                    tracing::warn!("could not follow the log: {why}; going on as soon as that is over");
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl ReadError {
    /// Whether the database only fails for a while: it is busy, restarts, or cannot be reached.
    pub fn may_heal(&self) -> bool {
        matches!(Fault::of(self), Fault::Transient | Fault::Unreachable)
    }
}

impl Cursor {
    /// Fetches the next page; a live one waits until there is something to tell.
    async fn fetch(mut self) -> Fetched {
        if let Way::Live(live) = &mut self.way {
            let page = live.next(&self.store, &self.filter).await;
            let goes_on = match &page {
                None => false,
                Some(Ok(_)) => true,
                Some(Err(error)) => error.may_heal(),
            };
            return Fetched { page, rest: goes_on.then_some(self) };
        }
        let direction = match &self.way {
            Way::ToTheBeginning(_) => Direction::Backwards,
            Way::Range(range, _) => range.direction,
            Way::ToTheEnd(_) | Way::Live(_) => Direction::Forwards,
        };
        let reading = Reading::Log { filter: &self.filter, direction, limit: PAGE_EVENTS };
        let scanned = self.store.in_one_run(|| self.scan_on());
        let page = match self.store.hooked(reading, scanned, |(page, _)| &page.events).await {
            Ok((page, rest)) => {
                self.way = rest;
                Ok(page)
            }
            Err(error) => Err(error),
        };
        let goes_on = page.as_ref().is_ok_and(|page| !page.is_end);
        Fetched { page: Some(page), rest: goes_on.then_some(self) }
    }

    /// Reads the first page of what is left, and says what is left then.
    async fn scan_on(&self) -> Result<(Page, Way), ReadError> {
        let run = self.store.run();
        let mut range = match &self.way {
            Way::ToTheEnd(after) => self.store.range_after(*after).await?,
            Way::ToTheBeginning(before) => self.store.range_before(*before).await?,
            Way::Range(range, of_run) if *of_run == run => *range,
            // A server that lost its last commits draws positions again, which nobody has settled yet.
            Way::Range(range, _) => {
                let head = self.store.find_head().await?.position;
                Range { up_to: range.up_to.min(head.max(range.after)), ..*range }
            }
            // See the caller.
            Way::Live(live) => self.store.range_after(live.after).await?,
        };
        let page = self.store.scan(&self.filter, range, PAGE_EVENTS).await?;
        range.move_past(page.scanned_to);
        Ok((page, Way::Range(range, run)))
    }
}

impl Live {
    /// The next page that says something new, or the first failure of a row; none when the store is closed.
    async fn next(&mut self, store: &Store, filter: &Filter) -> Option<Result<Page, ReadError>> {
        if self.listening.is_none() {
            self.listening = Some(store.listening());
        }
        loop {
            if let Some(back_off) = self.back_off {
                tokio::time::sleep(back_off).await;
            }
            self.wake.arm();
            match store.read(filter, self.after, PAGE_EVENTS).await {
                Ok(page) => {
                    let is_news = self.back_off.take().is_some()
                        || page.scanned_to > self.after
                        || (page.is_end && !self.told_end);
                    self.after = page.scanned_to;
                    self.told_end = page.is_end;
                    if is_news {
                        return Some(Ok(page));
                    }
                    self.wake.wait(POLL).await;
                }
                Err(ReadError::Database(sqlx::Error::PoolClosed)) => return None,
                Err(error) if error.may_heal() => {
                    let is_news = self.back_off.is_none();
                    let doubled = self.back_off.map_or(FIRST_BACK_OFF, |back_off| back_off * 2);
                    self.back_off = Some(doubled.min(LONGEST_BACK_OFF));
                    if is_news {
                        return Some(Err(error));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("is_live", &self.is_live).finish_non_exhaustive()
    }
}
