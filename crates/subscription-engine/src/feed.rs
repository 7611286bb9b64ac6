//! The feed: pages of the log for all subscriptions of an engine, read once and kept in memory for a while.
//!
//! Whoever asks for what follows a position is given what was read lately, waits with others for a read that is under
//! way, or reads for all. While a full page is handled the next one is fetched. A page holds what [`Store::read`] said
//! of a part of the log and nothing else, so no event is missed whatever is in memory; whoever is slow falls out of it
//! and reads again. Near the head everybody shares pages of all events; a subscription that is far behind and wants
//! few of them has its own, found by index.
//!
//! Upcasters have seen the events of a page. Read hooks are asked and told once for each page that is read, with the
//! filter of that read, which may want more than a subscription does. Where a shared page cannot be read, everybody
//! reads for itself, so that a broken event, or a hook that refuses, meets only those who want it.

mod reader;
mod ring;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use store::{Filter, MAX_PAGE_BYTES, Page, Position, ReadError, Run, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) use self::reader::Reader;
use self::reader::between;
pub(crate) use self::ring::{Given, Moment, whole_positions};
use self::ring::{Kept, LaneIndex, Ring, size_of_event};

/// Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    /// Events of one page.
    page_events: usize,
    state: Mutex<State>,
    /// Pages that are fetched before anybody asks.
    ahead: tokio::sync::Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    /// Reads that are under way, by lane and the position after which they read.
    under_way: HashMap<(usize, Position), Flight>,
    /// Where nothing followed, and when looking there began.
    ends: HashMap<usize, (Position, Moment)>,
    now: Moment,
    /// Nothing that was begun before is believed: the log may have been cut since.
    believes_after: Moment,
    /// The run of the server in which all of this was read.
    run: Run,
}

/// A read that is under way.
#[derive(Clone, Debug)]
struct Flight {
    began: Moment,
    landed: watch::Receiver<Option<Landed>>,
}

/// What came of a read.
#[derive(Clone, Debug)]
enum Landed {
    Page(Arc<Kept>),
    /// Nothing follows.
    End,
    Failed,
}

/// Tells those who wait what came of a read; if it is dropped before, that nothing came of it.
struct Landing {
    feed: Feed,
    lane: LaneIndex,
    after: Position,
    began: Moment,
    tell: watch::Sender<Option<Landed>>,
}

/// What to do for someone who asks.
enum Next {
    /// It is in memory.
    Pages(LaneIndex, Vec<Arc<Kept>>),
    /// Nothing follows.
    End,
    Wait(LaneIndex, Flight),
    Read(Landing),
}

impl Feed {
    /// With pages of so many events, and about so many bytes of them in memory.
    pub(crate) fn new(store: Store, page_events: usize, bytes: usize) -> Self {
        let state = State {
            ring: Ring::new(bytes),
            under_way: HashMap::new(),
            ends: HashMap::new(),
            now: Moment::default(),
            believes_after: Moment::default(),
            run: store.run(),
        };
        let (state, ahead) = (Mutex::new(state), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { store, page_events, state, ahead }))
    }

    /// The present moment: what is read from here on begins later.
    pub(crate) fn now(&self) -> Moment {
        self.lock().tick()
    }

    /// For a subscription that believes what is read after this moment.
    pub(crate) fn reader(&self, believes_after: Moment) -> Reader {
        Reader::new(believes_after)
    }

    /// Believes nothing any more that was read until now: the database was out of reach, and may be another one.
    pub(crate) fn forget(&self) {
        self.lock().forget();
    }

    /// The run of the server in which pages are read.
    pub(crate) fn run(&self) -> Run {
        self.0.store.run()
    }

    /// What follows a position, at most so many events of those that a filter wants.
    pub(crate) async fn page(
        &self,
        reader: &mut Reader,
        filter: &Filter,
        after: Position,
        limit: usize,
    ) -> Result<Given, ReadError> {
        let asked = *reader.asked.get_or_insert_with(|| self.now());
        let run = self.run();
        let given = loop {
            let next = self.lock().next(self, reader, asked, filter, after, limit);
            let (lane, began, landed) = match next {
                Next::End => break Given::end(after),
                Next::Pages(lane, pages) => {
                    if let Some(given) = Given::of(&pages, after, wanted_of(lane, filter), limit) {
                        break given;
                    }
                    continue;
                }
                // Too small a part of a page for others to share the read.
                Next::Read(_) if limit < self.0.page_events => {
                    break self.read_for_one(filter, after, limit).await?;
                }
                Next::Read(landing) => {
                    let (lane, began) = (landing.lane, landing.began);
                    match self.read(landing, filter).await {
                        Ok(landed) => (lane, began, Some(landed)),
                        // Perhaps not of an event that this one wants.
                        Err(ReadError::BadRow { .. } | ReadError::RefusedByHook { .. })
                            if lane == Ring::ALL =>
                        {
                            (lane, began, Some(Landed::Failed))
                        }
                        Err(error) => return Err(error),
                    }
                }
                Next::Wait(lane, mut flight) => (lane, flight.began, flight.landed().await),
            };
            match landed {
                Some(Landed::Page(kept)) => {
                    if let Some(given) = Given::of(&[kept], after, wanted_of(lane, filter), limit) {
                        break given;
                    }
                }
                Some(Landed::End) if began > asked => break Given::end(after),
                Some(Landed::Failed) => break self.read_for_one(filter, after, limit).await?,
                // What it found was no news, or it was given up.
                Some(Landed::End) | None => {}
            }
        };
        reader.was_given(given.is_full);
        reader.wanted(given.events().len(), between(after, given.scanned_to));
        if given.is_full && limit >= self.0.page_events {
            self.fetch_ahead(reader, filter, given.scanned_to).await;
        }
        Ok(given.read_in(run))
    }

    async fn read_for_one(&self, filter: &Filter, after: Position, limit: usize) -> Result<Given, ReadError> {
        Ok(Given::own(self.0.store.read(filter, after, limit).await?))
    }

    /// Begins to read what will be asked for next, unless that is in memory or under way.
    async fn fetch_ahead(&self, reader: &Reader, filter: &Filter, after: Position) {
        let mut ahead = self.0.ahead.lock().await;
        while ahead.try_join_next().is_some() {}
        let next = self.lock().next(self, reader, Moment::default(), filter, after, 1);
        if let Next::Read(landing) = next {
            let (feed, filter) = (self.clone(), filter.clone());
            ahead.spawn(async move {
                // Whoever asks will read it again, and hear of the error.
                if let Err(error) = feed.read(landing, &filter).await {
                    tracing::debug!(%error, "could not read ahead of position {after}");
                }
            });
        }
    }

    /// Stops reading ahead; returns when nothing of that is under way any more.
    pub(crate) async fn rest(&self) {
        self.0.ahead.lock().await.shutdown().await;
    }

    async fn read(&self, landing: Landing, filter: &Filter) -> Result<Landed, ReadError> {
        let is_all = landing.lane == Ring::ALL;
        let all = Filter::all();
        let wanted = if is_all { &all } else { filter };
        let limit = self.0.page_events;
        let page = match self.0.store.read(wanted, landing.after, limit).await {
            Ok(page) => page,
            Err(error) => {
                landing.land(Landed::Failed);
                return Err(error);
            }
        };
        let landed = if page.scanned_to <= landing.after {
            Landed::End
        } else {
            let is_full = |page: &Page| !page.is_end && (!is_all || is_large(page, limit));
            Landed::Page(Arc::new(Kept::new(landing.after, landing.began, page, is_full)))
        };
        landing.land(landed.clone());
        Ok(landed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything in it can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a lane's pages a filter has to choose: what was read for itself is what it wants.
fn wanted_of(lane: LaneIndex, filter: &Filter) -> Option<&Filter> {
    (lane == Ring::ALL).then_some(filter)
}

/// Whether a page of all events ends because it is full: half a page is enough to say that more follows at once.
fn is_large(page: &Page, limit: usize) -> bool {
    page.events.len() >= limit.div_ceil(2)
        || page.events.iter().map(size_of_event).sum::<usize>() >= MAX_PAGE_BYTES / 2
}

impl State {
    fn tick(&mut self) -> Moment {
        self.now.0 += 1;
        self.now
    }

    fn forget(&mut self) {
        self.ring.clear();
        self.ends.clear();
        self.believes_after = self.tick();
    }

    fn next(
        &mut self,
        feed: &Feed,
        reader: &Reader,
        asked: Moment,
        filter: &Filter,
        after: Position,
        limit: usize,
    ) -> Next {
        let run = feed.run();
        if self.run != run {
            self.run = run;
            self.forget();
        }
        let read_after = self.believes_after.max(reader.believes_after);
        let own = self.ring.lane(filter);
        let lanes = if own == Ring::ALL { vec![own] } else { vec![Ring::ALL, own] };
        for lane in &lanes {
            let pages = self.ring.following(*lane, after, limit, read_after);
            if !pages.is_empty() {
                return Next::Pages(*lane, pages);
            }
            let end = self.ends.get(&lane.0).filter(|end| end.0 == after);
            if end.is_some_and(|end| end.1 > asked.max(read_after)) {
                return Next::End;
            }
        }
        let news = |flight: &&Flight| flight.began > read_after;
        for lane in &lanes {
            if let Some(flight) = self.under_way.get(&(lane.0, after)).filter(news) {
                return Next::Wait(*lane, flight.clone());
            }
        }
        let lane = if reader.reads_for_itself() { own } else { Ring::ALL };
        let began = self.tick();
        let (tell, landed) = watch::channel(None);
        self.under_way.insert((lane.0, after), Flight { began, landed });
        Next::Read(Landing { feed: feed.clone(), lane, after, began, tell })
    }
}

impl Flight {
    /// Waits until it has landed; none if it never will.
    async fn landed(&mut self) -> Option<Landed> {
        self.landed.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }
}

impl Landing {
    fn land(self, landed: Landed) {
        let mut state = self.feed.lock();
        if self.began > state.believes_after {
            match &landed {
                Landed::Page(kept) => state.ring.keep(self.lane, Arc::clone(kept)),
                Landed::End => {
                    state.ends.insert(self.lane.0, (self.after, self.began));
                }
                Landed::Failed => {}
            }
        }
        drop(state);
        self.tell.send_replace(Some(landed));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut state = self.feed.lock();
        let key = (self.lane.0, self.after);
        // Another one may have taken its place meanwhile.
        if state.under_way.get(&key).is_some_and(|flight| flight.began == self.began) {
            state.under_way.remove(&key);
        }
    }
}
