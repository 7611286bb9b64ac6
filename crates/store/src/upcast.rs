//! Upcasters: what was written long ago is read as if it had been written today.
//!
//! An upcaster takes events of a type and a schema version and gives what they are now: nothing, one event or
//! several. It works while reading; the log is never changed by it. What one gives another one may take, until
//! nobody takes it any more, so the order in which they are named does not matter. Each declares what it takes and
//! gives: so a question for types is translated back to the types that are stored, before the database is asked.
//!
//! Where one stored event becomes several, all of them stand at its position and version, are delivered together
//! whatever the limit of a page, and are handled in one unit. The first keeps the stored id, each further one gets
//! an id that is derived from it, the same at every reading: see [`Event::part_of`]. Stream, times, correlation and
//! causation are those of the stored event.

mod chain;

use std::fmt;
use std::sync::Arc;

pub use self::chain::{InvalidUpcasters, Upcasters};
use crate::event::Event;
use crate::guard::BoxError;
use crate::json::Json;
use crate::store::Store;

/// One stored event becomes at most so many: more is a mistake, and would fill the memory.
pub const MAX_PARTS: usize = 1_000;

type Work = dyn Fn(&Event) -> Result<Vec<Part>, BoxError> + Send + Sync;

/// Makes events of an old form into what they are today.
///
/// ```
/// use store::{Json, Part, Upcaster, Upcasters};
///
/// let currency = Upcaster::new("prices have a currency", |event| {
///     let mut price: serde_json::Value = event.payload.to()?;
///     price["currency"] = "EUR".into();
///     Ok(vec![Part::new("Shop:PriceWasSet", 2, Json::of(&price)?)])
/// })
/// .takes("Shop:PriceWasSet", 1)
/// .gives("Shop:PriceWasSet", 2);
/// let upcasters = Upcasters::new([currency])?;
/// # Ok::<(), store::InvalidUpcasters>(())
/// ```
#[derive(Clone)]
pub struct Upcaster {
    name: String,
    takes: Vec<Shape>,
    gives: Vec<Shape>,
    work: Arc<Work>,
}

/// One of the events that a stored event is today.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its type.
    pub event_type: String,
    /// In which form its payload is.
    pub schema_version: u32,
    /// Its payload.
    pub payload: Json,
    /// Its metadata, if they are not those of the event that was taken. The schema version need not stand in it.
    pub metadata: Option<Json>,
}

/// A type in one of its forms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Shape {
    event_type: String,
    schema_version: u32,
}

/// An upcaster could not do its work; the event cannot be read until it can.
#[derive(Debug, thiserror::Error)]
#[error("upcaster {upcaster:?} failed on type {event_type}, schema version {schema_version}")]
pub struct UpcastError {
    /// The upcaster's name.
    pub upcaster: String,
    /// The type that it was given; where upcasters follow each other, not the stored one.
    pub event_type: String,
    /// The schema version that it was given.
    pub schema_version: u32,
    /// What went wrong.
    #[source]
    pub source: BoxError,
}

impl Upcaster {
    /// An upcaster that does this. The name is for people: it stands in errors.
    ///
    /// It must give the same for the same event, at every time and in every process: events are read again.
    pub fn new(
        name: impl Into<String>,
        work: impl Fn(&Event) -> Result<Vec<Part>, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), takes: Vec::new(), gives: Vec::new(), work: Arc::new(work) }
    }

    /// It takes this type in this schema version; an event that states none has version 1.
    #[must_use]
    pub fn takes(mut self, event_type: impl Into<String>, schema_version: u32) -> Self {
        self.takes.push(Shape { event_type: event_type.into(), schema_version });
        self
    }

    /// It may give this type in this schema version. Without any, what it takes is not shown to anybody any more.
    #[must_use]
    pub fn gives(mut self, event_type: impl Into<String>, schema_version: u32) -> Self {
        self.gives.push(Shape { event_type: event_type.into(), schema_version });
        self
    }
}

impl Part {
    /// With the metadata of the event that was taken.
    pub fn new(event_type: impl Into<String>, schema_version: u32, payload: Json) -> Self {
        Self { event_type: event_type.into(), schema_version, payload, metadata: None }
    }

    /// With other metadata.
    #[must_use]
    pub fn with_metadata(self, metadata: Json) -> Self {
        Self { metadata: Some(metadata), ..self }
    }
}

impl Store {
    /// A handle to the same log that reads through these upcasters, in place of earlier ones. Other handles do not:
    /// give this one to the engine and to the repositories.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.plugins_mut().upcasters = (!upcasters.is_empty()).then(|| Arc::new(upcasters));
        self
    }

    /// A handle to the same log that reads events as they are stored.
    #[must_use]
    pub fn without_upcasters(&self) -> Self {
        self.clone().with_upcasters(Upcasters::default())
    }

    pub(crate) fn upcasters(&self) -> Option<&Upcasters> {
        self.plugins().upcasters.as_deref()
    }
}

impl fmt::Debug for Upcaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, takes, gives, work: _ } = self;
        f.debug_struct("Upcaster")
            .field("name", name)
            .field("takes", takes)
            .field("gives", gives)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (schema version {})", self.event_type, self.schema_version)
    }
}
