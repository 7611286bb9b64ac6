//! Appending: Herald's `append` beside the rows written by hand.
//!
//! By hand means: no stream table, no check of ids, no expected version beyond the unique index, no function in
//! the database, and only the indexes that such a table needs: position, id, stream and version. Nobody who keeps such
//! a table can be faster without giving up a sync. Herald's has three more, for reading by type, category and
//! correlation: what they cost is seen beside the same rows in a table that has them too.

mod postgres;
mod sqlite;

use async_trait::async_trait;
use store::{ExpectedVersion, Json, NewEvent, Store, StreamName, Version};

use crate::BoxError;
use crate::databases::Bench;
use crate::rounds::{Caller, Contender, Done, Line, Plan, print_table};

/// Callers, and events of each append.
const CASES: [(usize, usize); 6] = [(1, 1), (16, 1), (64, 1), (1, 10), (16, 10), (1, 100)];
const EVENT_TYPE: &str = "Acme.Notifications:UserWasNotified";

/// Measures all cases on both databases and prints the table.
pub(crate) async fn measure(plan: &Plan) -> Result<(), BoxError> {
    let mut lines = Vec::new();
    for server in Bench::both().await? {
        for (callers, events) in CASES {
            let bench = server.another().await?;
            lines.extend(case(plan, &bench, callers, events).await?);
            bench.clean_up().await?;
        }
        server.clean_up().await?;
    }
    print_table("Herald ÷ this", &lines);
    Ok(())
}

async fn case(plan: &Plan, bench: &Bench, callers: usize, events: usize) -> Result<Vec<Line>, BoxError> {
    let case = format!("{callers} caller{}, {events} event{}", plural(callers), plural(events));
    let store = bench.store().await?;
    let herald = (0..callers).map(|number| Herald::new(&store, &format!("user-{number}"), events));
    let herald = Contender::new("Herald", herald.collect::<Result<Vec<_>, _>>()?);
    let mut contenders = match bench {
        Bench::Sqlite { folder } => sqlite::by_hand(folder.path(), callers, events)?,
        Bench::Postgres { .. } => postgres::by_hand(&bench.url(""), callers, events).await?,
    };
    contenders.push(herald);
    let lines = plan.compare(bench.name(), &case, contenders).await?;
    store.close().await;
    Ok(lines)
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// 200 bytes, as a notification may have.
fn payload(number: i64) -> String {
    let head = format!("{{\"userId\":\"user-{number}\",\"message\":\"");
    let fill = 200_usize.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(fill))
}

/// Appends to a stream of its own, each time under the version that it knows.
pub(crate) struct Herald {
    store: Store,
    stream: StreamName,
    expected: ExpectedVersion,
    events: usize,
    next: i64,
}

impl Herald {
    pub(crate) fn new(store: &Store, stream: &str, events: usize) -> Result<Self, BoxError> {
        let stream = StreamName::new(stream)?;
        Ok(Self { store: store.clone(), stream, expected: ExpectedVersion::NoStream, events, next: 0 })
    }
}

#[async_trait]
impl Caller for Herald {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let mut events = Vec::with_capacity(self.events);
        for _ in 0..self.events {
            events.push(NewEvent::new(EVENT_TYPE, Json::parse(payload(self.next))?));
            self.next += 1;
        }
        let appended = self.store.append(&self.stream, self.expected, events).await?;
        self.expected = appended.version.map_or(ExpectedVersion::NoStream, ExpectedVersion::Exactly);
        assert_eq!(self.expected, ExpectedVersion::Exactly(Version(self.next - 1)), "every append counts");
        Ok(Done::events(self.events))
    }
}

/// What an append writes, by hand.
struct Rows {
    stream: String,
    events: usize,
    next: i64,
}

impl Rows {
    fn new(number: usize, events: usize) -> Self {
        Self { stream: format!("user-{number}"), events, next: 0 }
    }

    /// The versions and payloads of the next append.
    fn next(&mut self) -> Vec<(i64, String)> {
        let first = self.next;
        self.next += i64::try_from(self.events).unwrap_or(i64::MAX);
        (first..self.next).map(|version| (version, payload(version))).collect()
    }
}
