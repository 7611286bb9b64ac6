//! The pages that were read lately, kept in memory for whoever wants to read there next.
//!
//! A page is a fact about a part of the log: all that it has between two positions, as far as a filter wants it. Pages
//! of one filter make a lane. All lanes together have a limit of bytes; the page that was read first goes first, and
//! whoever wanted it reads it again.

use std::collections::{BTreeMap, VecDeque};
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;

use store::{Event, Filter, MAX_PAGE_BYTES, Page, Position, Run};

/// A moment, as this process counts them: two of them are never the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(super) u64);

/// Which lane; that of all events is the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneIndex(pub(super) usize);

/// Everything that a lane's filter wants after a position and up to another one.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) after: Position,
    pub(super) scanned_to: Position,
    pub(super) events: Vec<Event>,
    /// When reading it began.
    pub(super) began: Moment,
    /// It was full: probably more follows at once.
    pub(super) is_full: bool,
    bytes: usize,
}

impl Kept {
    /// `is_full` says whether reading stopped because of the page's size.
    pub(super) fn new(
        after: Position,
        began: Moment,
        page: Page,
        is_full: impl FnOnce(&Page) -> bool,
    ) -> Self {
        let is_full = is_full(&page);
        let Page { events, scanned_to, .. } = page;
        let bytes = size_of::<Self>() + events.iter().map(size_of_event).sum::<usize>();
        Self { after, scanned_to, events, began, is_full, bytes }
    }

    fn covers(&self, position: Position) -> bool {
        self.after <= position && position < self.scanned_to
    }
}

/// About what it takes in memory.
pub(super) fn size_of_event(event: &Event) -> usize {
    let texts = [event.stream.as_str(), &event.event_type, event.payload.as_str(), event.metadata.as_str()];
    let correlation = event.correlation_id.as_ref().map_or(0, String::len);
    size_of::<Event>() + correlation + texts.iter().map(|text| text.len()).sum::<usize>()
}

/// What a subscription is given: events that it wants, and up to where there are no others.
#[derive(Debug)]
pub(crate) struct Given {
    events: Events,
    /// Nothing else that it wants stands at or before this.
    pub(crate) scanned_to: Position,
    /// Nothing follows, as of when it was asked.
    pub(crate) is_end: bool,
    /// More probably follows at once.
    pub(super) is_full: bool,
    /// The run of the server in which it was read.
    run: Run,
}

#[derive(Debug)]
enum Events {
    /// A part of a page that others may be given as well.
    Shared(Arc<Kept>, Range<usize>),
    Own(Vec<Event>),
}

impl Given {
    pub(super) fn own(page: Page) -> Self {
        let Page { events, scanned_to, is_end } = page;
        Self { events: Events::Own(events), scanned_to, is_end, is_full: !is_end, run: Run::default() }
    }

    pub(super) fn end(at: Position) -> Self {
        Self {
            events: Events::Own(Vec::new()),
            scanned_to: at,
            is_end: true,
            is_full: false,
            run: Run::default(),
        }
    }

    /// At most so many events after a position that this filter wants, but all parts of one stored event. Without a
    /// filter all of them are wanted. The pages follow each other, and the first one says what follows the position.
    pub(super) fn of(
        pages: &[Arc<Kept>],
        after: Position,
        filter: Option<&Filter>,
        limit: usize,
    ) -> Option<Self> {
        let (first, more) = pages.split_first()?;
        let mut given = Self::part(first, after, filter, limit);
        for next in more {
            // Half a page is worth a unit of its own; less is joined with what follows.
            if given.scanned_to != next.after || given.events().len() >= limit.div_ceil(2) {
                break;
            }
            let room = limit - given.events().len();
            given = given.and(Self::part(next, next.after, filter, room));
        }
        Some(given)
    }

    fn part(kept: &Arc<Kept>, after: Position, filter: Option<&Filter>, limit: usize) -> Self {
        let begin = kept.events.partition_point(|event| event.position <= after);
        let rest = &kept.events[begin..];
        let is_wanted = |event: &Event| filter.is_none_or(|filter| filter.matches(event));
        // Mostly all are wanted or few: what all want is not copied.
        let (events, is_cut) = if rest.iter().all(is_wanted) {
            let length = whole_positions(rest, limit).len();
            (Events::Shared(Arc::clone(kept), begin..begin + length), length < rest.len())
        } else {
            let mut own: Vec<Event> = Vec::new();
            let mut is_cut = false;
            for event in rest.iter().filter(|event| is_wanted(event)) {
                is_cut = own.len() >= limit && own.last().is_some_and(|last| last.position != event.position);
                if is_cut {
                    break;
                }
                own.push(event.clone());
            }
            (Events::Own(own), is_cut)
        };
        let mut given = Self {
            events,
            scanned_to: kept.scanned_to,
            is_end: false,
            is_full: kept.is_full,
            run: Run::default(),
        };
        if is_cut {
            given.is_full = true;
            given.scanned_to = given.events().last().map_or(after, |last| last.position);
        }
        given
    }

    /// The events, in their order.
    pub(crate) fn events(&self) -> &[Event] {
        match &self.events {
            Events::Shared(kept, range) => &kept.events[range.clone()],
            Events::Own(events) => events,
        }
    }

    /// It was read in this run of the server, or in a later one.
    pub(super) fn read_in(self, run: Run) -> Self {
        Self { run, ..self }
    }

    /// The run of the server in which it was read.
    pub(crate) fn run(&self) -> Run {
        self.run
    }

    /// With what follows.
    fn and(mut self, next: Self) -> Self {
        self.events = match (self.events, next.events) {
            (first, events) if count(&first) == 0 => events,
            (events, last) if count(&last) == 0 => events,
            (first, last) => {
                let mut events = into_own(first);
                events.append(&mut into_own(last));
                Events::Own(events)
            }
        };
        Self { scanned_to: next.scanned_to, is_full: next.is_full, ..self }
    }
}

fn count(events: &Events) -> usize {
    match events {
        Events::Shared(_, range) => range.len(),
        Events::Own(events) => events.len(),
    }
}

fn into_own(events: Events) -> Vec<Event> {
    match events {
        Events::Shared(kept, range) => kept.events[range].to_vec(),
        Events::Own(events) => events,
    }
}

/// At most `size` of the events, but all of one position: what one stored event was made into is never parted.
pub(crate) fn whole_positions(events: &[Event], size: usize) -> &[Event] {
    let is_cut_at = |end: usize| end < events.len() && events[end].position == events[end - 1].position;
    let mut end = events.len().min(size.max(1));
    while end > 1 && is_cut_at(end) {
        end -= 1;
    }
    while is_cut_at(end) {
        end += 1;
    }
    &events[..end]
}

#[derive(Debug)]
struct Lane {
    filter: Filter,
    pages: BTreeMap<Position, Arc<Kept>>,
}

/// Pages by lane and position, within a limit of bytes.
#[derive(Debug)]
pub(super) struct Ring {
    lanes: Vec<Lane>,
    /// The oldest first. What stands here and was replaced since has another moment.
    order: VecDeque<(LaneIndex, Position, Moment)>,
    bytes: usize,
    limit: usize,
}

impl Ring {
    pub(super) const ALL: LaneIndex = LaneIndex(0);

    pub(super) fn new(limit: usize) -> Self {
        let all = Lane { filter: Filter::all(), pages: BTreeMap::new() };
        Self { lanes: vec![all], order: VecDeque::new(), bytes: 0, limit }
    }

    /// The lane of a filter. There are as many as subscribers want different things.
    pub(super) fn lane(&mut self, filter: &Filter) -> LaneIndex {
        let known = self.lanes.iter().position(|lane| lane.filter == *filter);
        LaneIndex(known.unwrap_or_else(|| {
            self.lanes.push(Lane { filter: filter.clone(), pages: BTreeMap::new() });
            self.lanes.len() - 1
        }))
    }

    /// Keeps a page; the oldest ones go, but never this one, however large it is.
    pub(super) fn keep(&mut self, lane: LaneIndex, kept: Arc<Kept>) {
        self.order.push_back((lane, kept.after, kept.began));
        self.bytes += kept.bytes;
        if let Some(replaced) = self.lanes[lane.0].pages.insert(kept.after, kept) {
            self.bytes -= replaced.bytes;
        }
        while self.bytes > self.limit && self.order.len() > 1 {
            let Some((lane, after, began)) = self.order.pop_front() else { break };
            let pages = &mut self.lanes[lane.0].pages;
            if pages.get(&after).is_some_and(|kept| kept.began == began)
                && let Some(gone) = pages.remove(&after)
            {
                self.bytes -= gone.bytes;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.pages.clear());
        self.order.clear();
        self.bytes = 0;
    }

    /// The page that says what follows a position, if it was read after that moment.
    fn covering(&self, lane: LaneIndex, position: Position, read_after: Moment) -> Option<&Arc<Kept>> {
        let pages = self.lanes[lane.0].pages.range(..=position);
        pages
            .map(|(_, kept)| kept)
            .next_back()
            .filter(|kept| kept.covers(position) && kept.began > read_after)
    }

    /// The pages that follow a position without a gap, read after that moment; enough for so many events, if most are
    /// wanted.
    pub(super) fn following(
        &self,
        lane: LaneIndex,
        after: Position,
        limit: usize,
        read_after: Moment,
    ) -> Vec<Arc<Kept>> {
        let mut pages = Vec::new();
        let (mut at, mut events, mut bytes) = (after, 0, 0);
        while events < limit
            && bytes < MAX_PAGE_BYTES
            && let Some(kept) = self.covering(lane, at, read_after)
        {
            at = kept.scanned_to;
            events += kept.events.len();
            bytes += kept.bytes;
            pages.push(Arc::clone(kept));
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use store::{Json, StreamName, Timestamp, Version};
    use uuid::Uuid;

    use super::*;

    fn event(position: i64) -> Event {
        Event {
            position: Position(position),
            stream: StreamName::new("thing-1").unwrap(),
            version: Version(position),
            event_type: if position % 2 == 0 { "Even" } else { "Odd" }.to_owned(),
            payload: Json::empty_object(),
            metadata: Json::empty_object(),
            id: Uuid::now_v7(),
            part_of: None,
            correlation_id: None,
            causation_id: None,
            recorded_at: Timestamp::from_micros(0),
        }
    }

    fn page(after: i64, to: i64, began: u64) -> Arc<Kept> {
        let events = (after + 1..=to).map(event).collect();
        let page = Page { events, scanned_to: Position(to), is_end: false };
        Arc::new(Kept::new(Position(after), Moment(began), page, |_| false))
    }

    fn following(ring: &Ring, after: i64, read_after: u64) -> Vec<(i64, i64)> {
        let pages = ring.following(Ring::ALL, Position(after), 1_000, Moment(read_after));
        pages.iter().map(|kept| (kept.after.0, kept.scanned_to.0)).collect()
    }

    fn given(given: &Given) -> (Vec<i64>, i64) {
        (given.events().iter().map(|event| event.position.0).collect(), given.scanned_to.0)
    }

    #[test]
    fn e25_what_is_kept_in_memory_is_bounded_and_the_oldest_goes_first() {
        let room = page(0, 10, 1).bytes * 3;
        let mut ring = Ring::new(room);
        let rare = ring.lane(&Filter::all().types(["Rare"]));
        for number in 0..100 {
            let lane = if number % 2 == 0 { Ring::ALL } else { rare };
            ring.keep(lane, page(number * 10, number * 10 + 10, number.unsigned_abs() + 1));
            assert!(ring.bytes <= room, "{} of {room}", ring.bytes);
        }
        assert_eq!(following(&ring, 980, 0), [(980, 990)]);
        assert_eq!(following(&ring, 900, 0), []);
        // One page is always kept: somebody waits for it.
        ring.keep(Ring::ALL, page(2_000, 2_100, 200));
        assert_eq!(following(&ring, 2_000, 0), [(2_000, 2_100)]);
        assert_eq!(ring.order.len(), 1);
        ring.clear();
        assert_eq!((ring.bytes, following(&ring, 2_000, 0)), (0, Vec::new()));
    }

    #[test]
    fn e25_a_page_that_is_read_again_takes_the_place_of_the_first() {
        let mut ring = Ring::new(usize::MAX);
        for began in 1..=5 {
            ring.keep(Ring::ALL, page(0, 10, began));
        }
        assert_eq!(ring.bytes, page(0, 10, 1).bytes);
        assert_eq!(following(&ring, 3, 4), [(0, 10)]);
        assert_eq!(following(&ring, 3, 5), []);
    }

    #[test]
    fn e25_pages_follow_without_a_gap_or_not_at_all() {
        let mut ring = Ring::new(usize::MAX);
        for (after, to) in [(0, 3), (3, 5), (6, 9)] {
            ring.keep(Ring::ALL, page(after, to, 1));
        }
        assert_eq!(following(&ring, 1, 0), [(0, 3), (3, 5)]);
        assert_eq!(following(&ring, 5, 0), []);
        assert_eq!(following(&ring, 8, 0), [(6, 9)]);
    }

    #[test]
    fn e25_small_pages_are_joined_and_nothing_is_passed_over() {
        let pages = [page(0, 4, 1), page(4, 8, 1), page(8, 12, 1)];
        let of = |after, filter, limit| given(&Given::of(&pages, Position(after), filter, limit).unwrap());
        let odd = Filter::all().types(["Odd"]);
        let nobody = Filter::all().types(["Nobody"]);
        assert_eq!(of(1, None, 100), ((2..=12).collect(), 12));
        assert_eq!(of(1, None, 2), (vec![2, 3], 3));
        assert_eq!(of(1, None, 8), ((2..=8).collect(), 8));
        assert_eq!(of(1, Some(&odd), 100), (vec![3, 5, 7, 9, 11], 12));
        assert_eq!(of(0, Some(&odd), 2), (vec![1, 3], 4));
        assert_eq!(of(0, Some(&odd), 1), (vec![1], 1));
        assert_eq!(of(0, Some(&nobody), 10), (vec![], 12));
        assert!(Given::of(&[], Position(0), None, 1).is_none());
    }

    #[test]
    fn s16_parts_of_one_event_are_given_together() {
        let mut events: Vec<Event> = [1, 2, 2, 2, 3].map(event).into();
        let page = Page { events: events.clone(), scanned_to: Position(3), is_end: false };
        let kept = [Arc::new(Kept::new(Position(0), Moment(1), page, |_| false))];
        let even = Filter::all().types(["Even"]);
        let of = |filter, limit| given(&Given::of(&kept, Position(0), filter, limit).unwrap());
        assert_eq!(of(None, 2), (vec![1], 1));
        assert_eq!(of(Some(&even), 2), (vec![2, 2, 2], 3));
        assert_eq!(of(Some(&even), 1), (vec![2, 2, 2], 3));
        events.remove(0);
        assert_eq!(whole_positions(&events, 1).len(), 3);
    }
}
