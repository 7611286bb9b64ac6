//! How far was looked beyond a stored position: most events are not wanted, and a write for each would cost
//! more than looking again after a crash.

use std::time::Duration;

use store::Position;
use tokio::time::Instant;

use crate::subscription::Subscription;

/// Positions that were only looked at are saved after this time at the latest …
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// … or after this many.
const SAVE_EVENTS: i64 = 10_000;

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
    /// Where it stands was compared with the log.
    pub(crate) is_checked: bool,
    /// The units are marked, and the next one has at most so many events: one before it may have ended its process.
    pub(crate) care: Option<usize>,
    /// The last unit was one of timers: now it is the events' turn.
    pub(crate) timers_went: bool,
}

impl Cursor {
    pub(crate) fn new() -> Self {
        let start = Position::START;
        Self { from: start, to: start, since: None, is_checked: false, care: None, timers_went: false }
    }

    /// A cursor that begins with one event and goes on with twice as many each time, all of it marked.
    pub(crate) fn with_care() -> Self {
        Self { care: Some(1), ..Self::new() }
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
