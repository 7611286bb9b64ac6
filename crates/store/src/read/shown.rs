//! What a reader is shown of the rows of the log: what upcasters make of them, and of that what is wanted and stands in
//! no closed stream.
//!
//! A reader goes on behind the last row that was looked at, not behind the last event that it was shown: a row may
//! be shown as nothing at all. The parts of one row are never separated.

use std::borrow::Cow;

use super::query::Plan;
use super::row::Rows;
use super::{Direction, ReadError};
use crate::closed::Closed;
use crate::event::Event;
use crate::filter::Filter;
use crate::store::Store;
use crate::upcast::Upcasters;

/// What stands between the rows and a reader.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) upcasters: Option<&'a Upcasters>,
    pub(super) closed: &'a Closed,
}

impl View<'_> {
    /// Whether rows that were looked for may come to nothing.
    pub(super) fn hides(self) -> bool {
        self.upcasters.is_some() || !self.closed.is_empty()
    }
}

impl Store {
    /// The plan for a filter of stored types: see [`Store::stored`].
    pub(super) fn plan<'f>(&'f self, stored: &'f Filter) -> Plan<'f> {
        let taken_types = self.upcasters().map_or(&[][..], Upcasters::taken_types);
        Plan::new(self.database().kind(), stored, taken_types)
    }

    /// What must be looked for in the log, so that all that this filter wants is found.
    pub(super) fn stored<'f>(&self, wanted: &'f Filter) -> Cow<'f, Filter> {
        self.upcasters().map_or(Cow::Borrowed(wanted), |upcasters| upcasters.stored(wanted))
    }
}

impl Rows {
    /// Rows of events as they are stored, as a page with room for so many events.
    pub(super) fn stored(events: Vec<Event>) -> Self {
        Self { events, ..Self::default() }
    }

    /// The same rows as they are shown, up to where the page is full or a row cannot be upcast.
    pub(super) fn shown(
        mut self,
        view: View<'_>,
        wanted: &Filter,
        direction: Direction,
        limit: usize,
    ) -> Self {
        if !view.hides() {
            self.last = self.events.last().map(|event| (event.position, event.version));
            if !wanted.is_all() {
                self.events.retain(|event| wanted.matches(event));
            }
            return self;
        }
        let mut stored = std::mem::take(&mut self.events).into_iter();
        let mut parts = Vec::new();
        while let Some(event) = stored.next() {
            let at = (event.position, event.version);
            match view.upcasters {
                _ if view.closed.has(&event) => {}
                None => parts.push(event),
                Some(upcasters) => {
                    if let Err(source) = upcasters.upcast(event, &mut parts) {
                        self.is_cut = true;
                        self.bad = Some(ReadError::BadRow { position: at.0, source });
                        return self;
                    }
                }
            }
            self.last = Some(at);
            parts.retain(|part| wanted.matches(part));
            if direction == Direction::Backwards {
                parts.reverse();
            }
            self.events.append(&mut parts);
            if self.events.len() >= limit && !stored.as_slice().is_empty() {
                self.is_cut = true;
                // If there is one, it stands further on.
                self.bad = None;
                return self;
            }
        }
        self
    }
}
