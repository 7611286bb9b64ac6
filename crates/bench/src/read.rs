//! Reading pages of 1,000 events: Herald's `read` beside the same pages by hand, and finding a thousand events among
//! many.
//!
//! By hand means: one statement for each page, on the very same tables and indexes, with every column decoded into
//! values of its own; nobody looks whether an append is under way, so such a reader skips events. On SQLite that is
//! rusqlite on the thread that asks. On PostgreSQL it is one connection; or two, of which one fetches the next page
//! while this one is decoded; or, as the most that the server can do, one open statement without pages.

pub(crate) mod by_hand;

use async_trait::async_trait;
use store::{Filter, Matcher, Operator, Position, Store};

use self::by_hand::Question;
use crate::BoxError;
use crate::databases::{Bench, LOG};
use crate::filled_log::{CATEGORY, CORRELATION, RARE, Size, TENANT, TYPE, fill};
use crate::rounds::{Caller, Contender, Done, Line, Plan, print_table, thousands};

/// Events of a page.
pub(crate) const PAGE: usize = 1_000;
/// Pages of one call.
const PAGES: usize = 10;

/// What is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    plan: Plan,
    /// Events in the log.
    #[arg(long, default_value_t = 200_000)]
    events: u32,
    /// Events among them that are like no other: they are looked for.
    #[arg(long, default_value_t = 1_000)]
    rare: u32,
}

/// Measures on both databases and prints the tables.
pub(crate) async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    let size = Size { events: arguments.events, rare: arguments.rare.max(1) };
    let (mut pages, mut finds) = (Vec::new(), Vec::new());
    for bench in Bench::both().await? {
        let store = fill(&bench, size).await?;
        for case in cases([TYPE, CATEGORY, CORRELATION, TENANT])? {
            pages.extend(case.pages(&arguments.plan, &bench, &store).await?);
        }
        for case in cases([RARE; 4])?.into_iter().skip(1) {
            finds.extend(case.find(&arguments.plan, &bench, &store, size).await?);
        }
        store.close().await;
        bench.clean_up().await?;
    }
    let (events, rare) = (thousands(f64::from(size.events)), thousands(f64::from(size.rare)));
    println!("Pages of {PAGE} out of {events} events; one call is {PAGES} pages.\n");
    print_table("Herald ÷ this", &pages);
    println!("\nFinding {rare} among {events} events; one call finds them all.\n");
    print_table("Herald ÷ this", &finds);
    Ok(())
}

struct Case {
    what: &'static str,
    filter: Filter,
    by_hand: Question,
}

fn cases([kind, category, correlation, tenant]: [&'static str; 4]) -> Result<[Case; 5], BoxError> {
    let all = Filter::all;
    let matcher = Matcher::new().metadata("tenant", Operator::Equals, tenant)?;
    Ok([
        Case { what: "everything", filter: all(), by_hand: Question::All },
        Case { what: "one type", filter: all().types([kind]), by_hand: Question::Type(kind) },
        Case {
            what: "one category",
            filter: all().category(category),
            by_hand: Question::Category(category),
        },
        Case {
            what: "one correlation",
            filter: all().correlation_id(correlation),
            by_hand: Question::Correlation(correlation),
        },
        Case { what: "by metadata", filter: all().matching(matcher), by_hand: Question::Tenant(tenant) },
    ])
}

impl Case {
    async fn pages(&self, plan: &Plan, bench: &Bench, store: &Store) -> Result<Vec<Line>, BoxError> {
        let mut contenders = by_hand::contenders(&bench.url(LOG), self.by_hand, PAGES).await?;
        let herald = Herald::new(store, &self.filter, PAGES);
        contenders.push(Contender::new("Herald", [herald]));
        plan.compare(bench.name(), self.what, contenders).await
    }

    async fn find(
        &self,
        plan: &Plan,
        bench: &Bench,
        store: &Store,
        size: Size,
    ) -> Result<Vec<Line>, BoxError> {
        let contenders = vec![
            by_hand::finder(&bench.url(LOG), self.by_hand, size.rare).await?,
            Contender::new(
                "Herald",
                [HeraldFinds { store: store.clone(), filter: self.filter.clone(), size }],
            ),
        ];
        plan.of_whole_runs().compare(bench.name(), self.what, contenders).await
    }
}

/// Reads on and on, and from the beginning when it comes to the end.
pub(crate) struct Herald {
    store: Store,
    filter: Filter,
    pages: usize,
    after: Position,
}

impl Herald {
    pub(crate) fn new(store: &Store, filter: &Filter, pages: usize) -> Self {
        Self { store: store.clone(), filter: filter.clone(), pages, after: Position::START }
    }
}

#[async_trait]
impl Caller for Herald {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let mut events = 0;
        for _ in 0..self.pages {
            let page = self.store.read(&self.filter, self.after, PAGE).await?;
            events += page.events.len();
            self.after = page.scanned_to;
            if page.is_end {
                self.after = Position::START;
            }
        }
        Ok(Done::events(events))
    }
}

/// Finds all events of a filter.
struct HeraldFinds {
    store: Store,
    filter: Filter,
    size: Size,
}

#[async_trait]
impl Caller for HeraldFinds {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let (mut after, mut found) = (Position::START, 0);
        loop {
            let page = self.store.read(&self.filter, after, PAGE).await?;
            found += page.events.len();
            after = page.scanned_to;
            if page.is_end {
                assert_eq!(u32::try_from(found), Ok(self.size.rare), "every event is found");
                return Ok(Done::events(found));
            }
        }
    }
}
