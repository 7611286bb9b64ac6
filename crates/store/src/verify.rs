//! Verifying a log: everything that the program takes for granted about its rows is looked at, and said aloud where it
//! does not hold.
//!
//! It reads in pages, beside programs that run, up to the safe head as it was at the beginning: what comes later is
//! consistent by the same rules and must not look like a fault while it comes. Mending moves forward what lags and
//! computes anew what is derived; an event is never touched.

mod events;
mod mend;
mod schema;
mod settled;

use std::fmt;

use crate::event::{Position, Version};
use crate::fault::{Fault, messages};
use crate::read::ReadError;
use crate::store::{BadSequence, Store};

/// What to verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Only events from this position on.
    pub from: Position,
    /// Only what is quickly seen: the newest events instead of all, and not the whole file.
    pub quick: bool,
    /// Mend what can safely be mended.
    pub mend: bool,
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The file itself is damaged (SQLite).
    Damaged {
        /// What the database says of it.
        what: String,
    },
    /// An index is missing or unusable.
    MissingIndex {
        /// Its name.
        index: String,
    },
    /// Positions would not be drawn in order (PostgreSQL).
    Sequence(BadSequence),
    /// An event cannot be read.
    Unreadable {
        /// Its position.
        position: Position,
        /// What is wrong with it.
        why: String,
    },
    /// An event can be read, but no program would have written it.
    Invalid {
        /// Its position.
        position: Position,
        /// What is wrong with it.
        why: String,
    },
    /// A version is missing in a stream.
    Gap {
        /// The stream.
        stream: String,
        /// The version before which one is missing.
        version: Version,
        /// Its position.
        position: Position,
    },
    /// A later version stands at an earlier position.
    OutOfOrder {
        /// The stream.
        stream: String,
        /// The version.
        version: Version,
        /// Its position.
        position: Position,
        /// The position of the version before it.
        previous: Position,
    },
    /// An append is not whole.
    TornAppend {
        /// The stream.
        stream: String,
        /// The version beside which an event of the same append is missing.
        version: Version,
        /// Its position.
        position: Position,
    },
    /// The table of streams does not say what the events say.
    Stream {
        /// The stream.
        stream: String,
        /// Its version in the table of streams; none: it has no row.
        recorded: Option<Version>,
        /// The version of its last event; none: it has no event.
        actual: Option<Version>,
    },
    /// There is an event among positions that were recorded as dead: readers may have passed it.
    DeadRange {
        /// The first of those positions.
        from: Position,
        /// The last of them.
        to: Position,
        /// The event's.
        position: Position,
    },
    /// More is recorded as settled than there are events: what is appended there would be passed.
    SettledBeyondEnd {
        /// Where that ends.
        position: Position,
        /// Where the log ends.
        end: Position,
    },
}

/// A finding, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What does not hold.
    pub finding: Finding,
    /// Whether it was mended.
    pub mended: Mended,
}

/// What was done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mended {
    /// Nothing.
    NotTried,
    /// It holds now.
    Yes,
    /// It could not be mended.
    No {
        /// Why not.
        why: String,
    },
}

/// What is told while a log is verified.
#[derive(Clone, Debug)]
pub enum Told {
    /// How far it is.
    Progress {
        /// Up to here.
        position: Position,
        /// Of this.
        head: Position,
    },
    /// Something was found.
    Found(Found),
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Events up to here were looked at.
    pub head: Position,
    /// How many events that were.
    pub events: u64,
    /// How many streams.
    pub streams: u64,
    /// How many findings there were.
    pub found: u64,
    /// How many of them were mended.
    pub mended: u64,
}

impl Finding {
    /// A word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Damaged { .. } => "damaged",
            Self::MissingIndex { .. } => "missing_index",
            Self::Sequence(_) => "sequence",
            Self::Unreadable { .. } => "unreadable",
            Self::Invalid { .. } => "invalid",
            Self::Gap { .. } => "gap",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::TornAppend { .. } => "torn_append",
            Self::Stream { .. } => "stream",
            Self::DeadRange { .. } => "dead_range",
            Self::SettledBeyondEnd { .. } => "settled_beyond_end",
        }
    }

    /// The position that it is about, if it is about one.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Unreadable { position, .. }
            | Self::Invalid { position, .. }
            | Self::Gap { position, .. }
            | Self::OutOfOrder { position, .. }
            | Self::TornAppend { position, .. }
            | Self::DeadRange { position, .. } => Some(*position),
            _ => None,
        }
    }

    /// Whether it can be mended without touching an event.
    pub fn can_be_mended(&self) -> bool {
        matches!(
            self,
            Self::MissingIndex { .. }
                | Self::Sequence(BadSequence::Behind { .. })
                | Self::Stream { .. }
                | Self::SettledBeyondEnd { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |version: &Option<Version>| match version {
            Some(version) => format!("version {version}"),
            None => "none".to_owned(),
        };
        match self {
            Self::Damaged { what } => write!(f, "the database file is damaged: {what}"),
            Self::MissingIndex { index } => write!(f, "the index {index} is missing or cannot be used"),
            Self::Sequence(bad) => write!(f, "the sequence herald_positions {bad}"),
            Self::Unreadable { position, why } => {
                write!(f, "the event at position {position} cannot be read: {why}")
            }
            Self::Invalid { position, why } => {
                write!(f, "the event at position {position} is not as an append would have left it: {why}")
            }
            Self::Gap { stream, version, .. } => {
                write!(f, "stream {stream} has version {version}, and not the one before it")
            }
            Self::OutOfOrder { stream, version, position, previous } => write!(
                f,
                "version {version} of stream {stream} stands at position {position}, and the one before it at {previous}"
            ),
            Self::TornAppend { stream, version, .. } => {
                write!(f, "the append of version {version} to stream {stream} is not whole")
            }
            Self::Stream { stream, recorded, actual } => write!(
                f,
                "the table of streams has {} for stream {stream}, and its events have {}",
                version(recorded),
                version(actual)
            ),
            Self::DeadRange { from, to, position } => write!(
                f,
                "the positions {from} to {to} are recorded as dead, and there is an event at {position}, which \
                 readers may have passed"
            ),
            Self::SettledBeyondEnd { position, end } => write!(
                f,
                "the log is recorded as settled up to position {position}, and it ends at {end}: what is appended \
                 in between would be passed"
            ),
        }
    }
}

impl Store {
    /// Looks whether the log is as it should be, and tells what is not.
    pub async fn verify(&self, what: &Verify, tell: impl FnMut(Told) + Send) -> Result<Verified, ReadError> {
        let mut report = Report { store: self, what, tell, sum: Verified::default() };
        match report.run().await {
            // The rest cannot be looked at.
            Err(error) if Fault::of(&error) == Fault::Damaged => {
                report.found(Finding::Damaged { what: messages(&error).join(": ") }).await;
            }
            result => result?,
        }
        Ok(report.sum)
    }
}

/// A verification under way.
struct Report<'a, T> {
    store: &'a Store,
    what: &'a Verify,
    tell: T,
    sum: Verified,
}

impl<T: FnMut(Told) + Send> Report<'_, T> {
    async fn run(&mut self) -> Result<(), ReadError> {
        // What the reads below rely on comes first.
        self.file().await?;
        self.indexes().await?;
        self.sequence().await?;
        self.settled().await?;
        self.sum.head = self.store.head().await?.position;
        self.events().await?;
        if !self.what.quick {
            self.streams().await?;
        }
        Ok(())
    }

    /// Tells a finding; mends it first, if that was asked for and can be done.
    async fn found(&mut self, finding: Finding) {
        let mended = if self.what.mend && finding.can_be_mended() {
            match mend::mend(self.store, &finding).await {
                Ok(()) => Mended::Yes,
                Err(error) => Mended::No { why: messages(&error).join(": ") },
            }
        } else {
            Mended::NotTried
        };
        self.sum.found += 1;
        self.sum.mended += u64::from(mended == Mended::Yes);
        (self.tell)(Told::Found(Found { finding, mended }));
    }
}
