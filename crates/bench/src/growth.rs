//! What grows with the log: appending, reading and opening, in logs of ten thousand to a million events.
//!
//! Here the contenders are Herald with logs of different length, and the same pages by hand.

use async_trait::async_trait;
use store::{Filter, Position, Store};

use crate::BoxError;
use crate::append;
use crate::databases::{Bench, LOG, open};
use crate::filled_log::{RARE, Size, TYPE, fill};
use crate::read::{Herald, by_hand};
use crate::rounds::{Caller, Contender, Done, Line, Plan, print_table, thousands};

const SMALLEST: u32 = 10_000;
/// Events among them that are like no other, in each of the logs.
const RARE_EVENTS: u32 = 100;

/// What is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    plan: Plan,
    /// Events in the longest log; the others have a tenth, a hundredth and so on.
    #[arg(long, default_value_t = 1_000_000)]
    events: u32,
}

/// Measures on both databases and prints the table.
pub(crate) async fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    let mut lines = Vec::new();
    for server in Bench::both().await? {
        let mut logs = Vec::new();
        let mut events = arguments.events;
        while events >= SMALLEST {
            let bench = server.another().await?;
            let store = fill(&bench, Size { events, rare: RARE_EVENTS }).await?;
            logs.insert(0, Log { name: format!("{} events", thousands(f64::from(events))), bench, store });
            events /= 10;
        }
        lines.extend(compare(&arguments.plan, server.name(), &logs).await?);
        for log in logs {
            log.store.close().await;
            log.bench.clean_up().await?;
        }
        server.clean_up().await?;
    }
    print_table("longest ÷ this", &lines);
    Ok(())
}

struct Log {
    name: String,
    bench: Bench,
    store: Store,
}

async fn compare(plan: &Plan, database: &'static str, logs: &[Log]) -> Result<Vec<Line>, BoxError> {
    let mut lines = Vec::new();
    for (case, events) in [("append 1 event", 1), ("append 100 events", 100)] {
        let appends = logs.iter().map(|log| {
            let herald = append::Herald::new(&log.store, &format!("new-{events}"), events)?;
            Ok::<_, BoxError>(Contender::new(&log.name, [herald]))
        });
        lines.extend(plan.compare(database, case, appends.collect::<Result<_, _>>()?).await?);
    }
    let everything = Filter::all();
    let (frequent, rare) = (Filter::all().types([TYPE]), Filter::all().types([RARE]));
    for (case, filter) in
        [("a page of everything", everything), ("a page of one type", frequent), ("100 rare events", rare)]
    {
        let reads = logs.iter().map(|log| Contender::new(&log.name, [Herald::new(&log.store, &filter, 1)]));
        lines.extend(plan.compare(database, case, reads.collect()).await?);
    }
    let mut reads = Vec::new();
    for log in logs {
        reads.push(Contender::boxed(&log.name, by_hand::page_by_page(&log.bench.url(LOG)).await?));
    }
    lines.extend(plan.compare(database, "a page of everything, by hand", reads).await?);
    let opens = logs.iter().map(|log| Contender::new(&log.name, [Open { url: log.bench.url(LOG) }]));
    lines.extend(plan.compare(database, "open, head, a page, close", opens.collect()).await?);
    Ok(lines)
}

/// A program that starts and asks how long the log is.
struct Open {
    url: String,
}

#[async_trait]
impl Caller for Open {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let store = open(&self.url).await?;
        let head = store.head().await?.position;
        let page = store.read(&Filter::all(), Position(head.0 - 1), 1).await?;
        assert_eq!(page.events.len(), 1, "the last event is read");
        store.close().await;
        Ok(Done::events(1))
    }
}
