//! Where a subscription reads on, and how far was looked beyond its stored position: most events are not wanted, and a
//! write for each would cost more than looking again after a crash.

use std::time::Duration;

use store::{Position, ReadError, Run};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::feed::{Given, Moment, Reader};
use crate::subscriber::Registered;
use crate::subscription::Subscription;

/// Positions that were only looked at are saved after this time at the latest …
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// … or after this many.
const SAVE_EVENTS: i64 = 10_000;
/// For so long a row is taken to be as this worker left it, while there is work to do: who has changed it is met at the
/// claim, but not what was changed beside it, such as a timer.
const ROW_IS_KNOWN_FOR: Duration = Duration::from_secs(1);

/// How far a subscription has looked beyond its stored position: events that it does not want move it only
/// now and then. A fact about the log, not about the row: whoever starts the subscription over reads anew.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// It wants nothing after this position …
    from: Position,
    /// … and up to this one.
    to: Position,
    /// Since when there is something to write down.
    since: Option<Instant>,
    /// Where it stands was compared with the log, in this run of the server.
    checked_in: Option<Run>,
    /// What it is given of the log.
    reader: Reader,
    /// The row as the last unit left it, and when it was last read.
    row: Option<Subscription>,
    row_read: Option<Instant>,
    /// The units are marked, and the next one has at most so many events: one before it may have ended its process.
    pub(crate) care: Option<usize>,
    /// The last unit was one of timers: now it is the events' turn.
    pub(crate) timers_went: bool,
}

impl Cursor {
    pub(crate) fn new(engine: &Engine) -> Self {
        Self::since(engine, engine.feed().now())
    }

    /// A cursor of an operation that began at this moment: what was read since then is true for it.
    pub(crate) fn since(engine: &Engine, began: Moment) -> Self {
        let start = Position::START;
        Self {
            from: start,
            to: start,
            since: None,
            checked_in: None,
            reader: engine.feed().reader(began),
            row: None,
            row_read: None,
            care: None,
            timers_went: false,
        }
    }

    /// A cursor that begins with one event and goes on with twice as many each time, all of it marked.
    pub(crate) fn with_care(self) -> Self {
        Self { care: Some(1), ..self }
    }

    /// Whether it is known to stand where it stood.
    pub(crate) fn is_checked(&self, engine: &Engine) -> bool {
        self.checked_in == Some(engine.feed().run())
    }

    /// It was compared with the log in this run of the server. What was looked at beyond that before may never have
    /// happened there, and is looked at again.
    pub(crate) fn was_checked(&mut self, run: Run) {
        self.checked_in = Some(run);
        self.stored(Position::START);
    }

    /// It is to be compared with the log again.
    pub(crate) fn is_to_be_checked(&mut self) {
        self.checked_in = None;
    }

    /// The database was out of reach, and may have been restored meanwhile: nothing is known any more.
    pub(crate) fn doubt(&mut self, engine: &Engine) {
        self.is_to_be_checked();
        self.row = None;
        engine.feed().forget();
    }

    /// From here on only a look that begins later can say that nothing follows.
    pub(crate) fn look_anew(&mut self) {
        self.reader.look_anew();
    }

    /// What follows where it reads on, at most so many events.
    pub(crate) async fn next_page(
        &mut self,
        engine: &Engine,
        registered: &Registered,
        seen: &Subscription,
        limit: usize,
    ) -> Result<Given, ReadError> {
        let from = self.read_from(seen);
        engine.feed().page(&mut self.reader, &registered.definition.filter, from, limit).await
    }

    /// The row as it was left, if that is still known.
    pub(crate) fn take_row(&mut self) -> Option<Subscription> {
        let is_known = self.row_read.is_some_and(|read| read.elapsed() < ROW_IS_KNOWN_FOR);
        self.row.take().filter(|_| is_known)
    }

    /// The row is read now.
    pub(crate) fn row_is_read(&mut self) {
        self.row_read = Some(Instant::now());
    }

    /// This is the row now.
    pub(crate) fn left_as(&mut self, row: Subscription) {
        self.row = Some(row);
    }

    /// A marked unit has come to something; none is marked any more once one of full size has.
    pub(crate) fn takes_more(&mut self, full: usize) {
        self.care = self.care.map(|size| size.saturating_mul(2)).filter(|size| *size < full);
    }

    /// Where to read on.
    pub(crate) fn read_from(&self, seen: &Subscription) -> Position {
        let stands = seen.read_from();
        if (self.from..=self.to).contains(&stands) { self.to } else { stands }
    }

    /// Notes how far was looked; says whether it is time to write that down.
    pub(crate) fn note(&mut self, seen: &Subscription, scanned: Position, now: bool) -> bool {
        let stands = seen.read_from();
        if !(self.from..=self.to).contains(&stands) {
            self.from = stands;
        }
        self.to = scanned;
        if scanned <= stands {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        now || since.elapsed() >= SAVE_AFTER || scanned.0 - stands.0 >= SAVE_EVENTS
    }

    /// Everything up to here is stored.
    pub(crate) fn stored(&mut self, to: Position) {
        (self.from, self.to, self.since) = (to, to, None);
    }
}
