//! The one oracle of readers and appenders (S-09): after quiet, an independent read of the whole table says what
//! a reader lost, got twice or got in the wrong order, and what the log acknowledged and does not have.
//!
//! It knows nothing of how a reader finds its way: real readers and deliberately broken ones are judged alike.

use std::collections::{HashMap, HashSet};
use std::ops::AddAssign;

use store::{Event, Position, Store};
use uuid::Uuid;

/// The type of half of the events.
pub const WANTED: &str = "Acme.Test:Wanted";

/// What a reader hands on of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its place in the log.
    pub position: Position,
    /// Its id.
    pub id: Uuid,
    /// Its stream.
    pub stream: String,
    /// Its number there.
    pub version: i64,
}

impl From<Event> for Delivered {
    fn from(event: Event) -> Self {
        let Event { position, id, stream, version, .. } = event;
        Self { position, id, stream: stream.into(), version: version.0 }
    }
}

/// An event that the log said it has: position and id of the last one of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Acknowledged {
    /// Its place in the log.
    pub position: Position,
    /// Its id.
    pub id: Uuid,
}

/// What was wrong, counted in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// In the table, wanted, and never delivered.
    pub lost: usize,
    /// Delivered more than once.
    pub twice: usize,
    /// Delivered after a later event of its stream.
    pub out_of_order: usize,
    /// Delivered after an event at a higher position.
    pub not_ascending: usize,
    /// Acknowledged by the log, but not in it.
    pub unfounded: usize,
}

/// Which events a reader is to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Every event.
    All,
    /// Those of the type [`WANTED`].
    OfType,
}

impl Findings {
    /// Whether nothing was wrong.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Findings {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.twice += other.twice;
        self.out_of_order += other.out_of_order;
        self.not_ascending += other.not_ascending;
        self.unfounded += other.unfounded;
    }
}

/// What the log really has, read past everything that is to be judged.
#[derive(Debug)]
pub struct Table(Vec<(Delivered, String)>);

impl Table {
    /// Reads it. Nobody may be appending any more.
    pub async fn read(store: &Store) -> sqlx::Result<Self> {
        Self::read_after(store, Position::START).await
    }

    /// Reads what follows a position.
    pub async fn read_after(store: &Store, after: Position) -> sqlx::Result<Self> {
        let sql = "SELECT position, id, stream, version, type
                     FROM herald_events
                    WHERE position > $1
                    ORDER BY position";
        let rows: Vec<(Position, Uuid, String, i64, String)> =
            store.database().fetch_all(sql, (after,)).await?;
        let rows = rows.into_iter().map(|(position, id, stream, version, event_type)| {
            (Delivered { position, id, stream, version }, event_type)
        });
        Ok(Self(rows.collect()))
    }

    /// How many events it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The position of the last event.
    pub fn head(&self) -> Position {
        self.0.last().map_or(Position::START, |(event, _)| event.position)
    }

    /// Whether the other one has the same events and perhaps more after them.
    pub fn is_beginning_of(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// How many of these events it has.
    pub fn count_of(&self, ids: &[Uuid]) -> usize {
        let ids: HashSet<&Uuid> = ids.iter().collect();
        self.0.iter().filter(|(event, _)| ids.contains(&event.id)).count()
    }

    /// What was wrong with what one reader delivered.
    pub fn judge(&self, wanted: Wanted, delivered: &[Delivered]) -> Findings {
        let times = delivered.iter().fold(HashMap::new(), |mut times, event| {
            *times.entry(event.id).or_insert(0) += 1;
            times
        });
        let due = self.0.iter().filter(|(_, event_type)| match wanted {
            Wanted::All => true,
            Wanted::OfType => event_type == WANTED,
        });
        let mut last_of: HashMap<&str, i64> = HashMap::new();
        let out_of_order = delivered.iter().filter(|event| {
            let last = last_of.insert(&event.stream, event.version);
            last.is_some_and(|last| last >= event.version)
        });
        Findings {
            lost: due.filter(|(event, _)| !times.contains_key(&event.id)).count(),
            twice: times.values().filter(|times| **times > 1).count(),
            out_of_order: out_of_order.count(),
            not_ascending: delivered.windows(2).filter(|two| two[0].position >= two[1].position).count(),
            unfounded: 0,
        }
    }

    /// What was acknowledged and is not there, or not the same at that position.
    pub fn judge_acknowledged<'a>(
        &self,
        acknowledged: impl IntoIterator<Item = &'a Acknowledged>,
    ) -> Findings {
        let there: HashSet<Acknowledged> =
            self.0.iter().map(|(event, _)| Acknowledged { position: event.position, id: event.id }).collect();
        let missing = acknowledged.into_iter().filter(|event| !there.contains(event));
        Findings { unfounded: missing.count(), ..Findings::default() }
    }
}
