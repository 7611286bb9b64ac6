//! Subscribers: code that wants events. Who writes one says what it wants and what it does, nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use store::{Event, Filter, InvalidTableName, TableName};

use crate::context::Context;
use crate::emit::Emission;
use crate::fold::Fold;
use crate::poison::Poison;
use crate::retry::{DEFAULT, RetryStrategies, RetryStrategy};
use crate::timers::Timer;

/// Whatever went wrong in a subscriber; the engine knows what to do with any of it.
pub use store::BoxError;

/// Code that handles events.
///
/// Everything a call writes through its [`Context`] commits together with the position that says how far
/// this subscriber has read, or not at all. So each event is handled exactly once as far as the database is
/// concerned. Anything outside the database is not undone: do not talk to the network here.
#[async_trait]
pub trait Subscriber: Send + Sync {
    /// Who it is and what it wants. Asked for once, when it is registered.
    fn definition(&self) -> Definition;

    /// Makes what it needs, such as its tables. Runs once, before the first event.
    async fn setup(&self, _: &mut Context<'_>) -> Result<(), BoxError> {
        Ok(())
    }

    /// Handles events, oldest first: fold them, then write once. Fails as a whole.
    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError>;

    /// Is called when timers fire that it has set, in the order in which they were due: at an instant that has come,
    /// and after all events that could be read by then. As `handle`, exactly once and as a whole; what a timer brings
    /// about goes through [`Context::because_of_timer`]. A subscriber that sets timers must have this.
    async fn on_timer(&self, timers: &[Timer], _: &mut Context<'_>) -> Result<(), BoxError> {
        let keys: Vec<&str> = timers.iter().take(3).map(|timer| timer.key.as_str()).collect();
        Err(format!("the subscriber sets timers and does not handle them: {}", keys.join(", ")).into())
    }

    /// Clears away what is not a table of its definition; those are dropped by the engine afterwards.
    async fn teardown(&self, _: &mut Context<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Where a subscription begins, and whether it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMode {
    /// From the first event of the log on, for ever.
    FromBeginning,
    /// From the end of the log as it is at set-up, for ever.
    FromNow,
    /// From the first event to the end of the log, once.
    Once,
}

/// What kind of subscriber it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Builds a read model; may be replayed.
    Projector,
    /// Takes actions; never replayed.
    Processor,
    /// Anything else, such as a report or a migration.
    Plain,
}

/// Who a subscriber is and what it wants.
#[derive(Clone, Debug)]
pub struct Definition {
    pub(crate) id: String,
    pub(crate) group: String,
    pub(crate) kind: Kind,
    pub(crate) run_mode: RunMode,
    pub(crate) filter: Filter,
    pub(crate) retry: RetryStrategy,
    /// The name under which the program knows its strategy, until it is registered.
    retry_name: Option<String>,
    pub(crate) emission: Emission,
    pub(crate) poison: Poison,
    pub(crate) tables: BTreeMap<&'static str, String>,
    pub(crate) projection: Option<&'static str>,
    pub(crate) version: u32,
}

impl Kind {
    /// The word for it, in rows.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::Processor => "processor",
            Self::Plain => "plain",
        }
    }
}

impl Definition {
    /// A read model: group `projector`, from the beginning.
    pub fn projector(id: impl Into<String>) -> Self {
        Self::new(id.into(), "projector", Kind::Projector, RunMode::FromBeginning)
    }

    /// An actor: group `processor`, from now.
    pub fn processor(id: impl Into<String>) -> Self {
        Self::new(id.into(), "processor", Kind::Processor, RunMode::FromNow)
    }

    /// Anything else: group `default`.
    pub fn plain(id: impl Into<String>, run_mode: RunMode) -> Self {
        Self::new(id.into(), "default", Kind::Plain, run_mode)
    }

    fn new(id: String, group: &str, kind: Kind, run_mode: RunMode) -> Self {
        Self {
            id,
            group: group.to_owned(),
            kind,
            run_mode,
            filter: Filter::all(),
            retry: RetryStrategy::default(),
            retry_name: Some(DEFAULT.to_owned()),
            emission: Emission::default(),
            poison: Poison::default(),
            tables: BTreeMap::new(),
            projection: None,
            version: 1,
        }
    }

    /// Only events of these types. Without this: all events.
    #[must_use]
    pub fn on(self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let filter = self.filter.types(types);
        Self { filter, ..self }
    }

    /// Only what this filter wants, such as a category or a stream, in place of anything said before.
    #[must_use]
    pub fn within(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Of what it wants, only what a fold has a use for.
    pub(crate) fn wanted_by<S: 'static>(self, fold: &Fold<S>) -> Self {
        let filter = fold.wanted(self.filter);
        Self { filter, ..self }
    }

    /// Another group than the preset's.
    #[must_use]
    pub fn in_group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Another run mode than the preset's.
    #[must_use]
    pub fn with_run_mode(mut self, run_mode: RunMode) -> Self {
        self.run_mode = run_mode;
        self
    }

    /// Another retry strategy than the default one.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryStrategy) -> Self {
        (self.retry, self.retry_name) = (retry, None);
        self
    }

    /// The retry strategy that the program knows by this name; see [`RetryStrategies`].
    #[must_use]
    pub fn with_retry_named(mut self, name: impl Into<String>) -> Self {
        self.retry_name = Some(name.into());
        self
    }

    /// When it emits and links. Without this: once it has caught up with history.
    #[must_use]
    pub fn with_emission(mut self, emission: Emission) -> Self {
        self.emission = emission;
        self
    }

    /// What becomes of an event whose attempts are used up. Without this the subscription stops.
    #[must_use]
    pub fn with_poison(mut self, poison: Poison) -> Self {
        self.poison = poison;
        self
    }

    /// A table of its own: handlers name it by `name` through [`Context::table`]; it is called `table` in the
    /// database and dropped when the subscription is removed.
    #[must_use]
    pub fn with_table(mut self, name: &'static str, table: impl Into<String>) -> Self {
        self.tables.insert(name, table.into());
        self
    }

    /// As [`Definition::with_table`], of a table that is called `projection_<id>`: another id never meets the table of the
    /// one before. A name of more than 63 bytes, or with other characters than `a-z`, `0-9` and `_`, is refused when the
    /// subscriber is registered.
    #[must_use]
    pub fn with_projection_table(self, name: &'static str) -> Self {
        let table = format!("projection_{}", self.id);
        self.with_table(name, table)
    }

    /// The author's own version of the code, 1 without this. What the handlers do cannot be told from outside: who changes
    /// that raises it, and a subscription that was set up with another version is reported (E-41) until it is replayed
    /// or the change is accepted.
    #[must_use]
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The name under which people list and replay this projection: `package.key:name`.
    #[must_use]
    pub fn known_as(mut self, projection: &'static str) -> Self {
        self.projection = Some(projection);
        self
    }

    /// The subscriber's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name of its projection, if it has one.
    pub fn projection(&self) -> Option<&'static str> {
        self.projection
    }

    /// Its tables as the database calls them.
    pub(crate) fn table_names(&self) -> Result<Vec<TableName>, InvalidTableName> {
        self.tables.values().map(TableName::new).collect()
    }
}

/// The subscribers of a program. Clones share them.
#[derive(Clone, Default)]
pub struct Registry(Arc<BTreeMap<String, Registered>>);

#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) definition: Definition,
    pub(crate) subscriber: Arc<dyn Subscriber>,
}

/// Why a subscriber was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Two subscribers have one id.
    #[error("two subscribers have the id {0:?}; each needs its own")]
    DuplicateId(String),
    /// Two deliveries are for one kind of effects.
    #[error("two deliveries are for effects of kind {0:?}; each kind has one")]
    DuplicateKind(String),
    /// The id is empty, longer than 100 bytes or has a control character.
    #[error("{0:?} is no subscriber id: use 1 to 100 bytes without control characters")]
    InvalidId(String),
    /// A retry strategy that the program does not know.
    #[error("subscriber {id} names the retry strategy {name:?}; the program knows {known}")]
    UnknownRetryStrategy {
        /// Whose strategy.
        id: String,
        /// Its name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A table's name is not allowed.
    #[error("subscriber {id} names a table that cannot be")]
    InvalidTable {
        /// Whose table.
        id: String,
        /// What is wrong.
        #[source]
        source: InvalidTableName,
    },
}

impl Registry {
    /// Registers subscribers. Their ids must differ.
    pub fn new(subscribers: impl IntoIterator<Item = Arc<dyn Subscriber>>) -> Result<Self, RegisterError> {
        Self::with_retry_strategies(subscribers, &RetryStrategies::default())
    }

    /// As [`Registry::new`], of subscribers that choose among these retry strategies by name.
    pub fn with_retry_strategies(
        subscribers: impl IntoIterator<Item = Arc<dyn Subscriber>>,
        strategies: &RetryStrategies,
    ) -> Result<Self, RegisterError> {
        let mut registered = BTreeMap::new();
        for subscriber in subscribers {
            let mut definition = subscriber.definition();
            let id = definition.id.clone();
            if id.is_empty() || id.len() > 100 || id.chars().any(char::is_control) {
                return Err(RegisterError::InvalidId(id));
            }
            if let Err(source) = definition.table_names() {
                return Err(RegisterError::InvalidTable { id, source });
            }
            if let Some(name) = definition.retry_name.take() {
                definition.retry = strategies.get(&name).cloned().ok_or_else(|| {
                    let (id, known) = (id.clone(), strategies.names());
                    RegisterError::UnknownRetryStrategy { id, name, known }
                })?;
            }
            if registered.insert(id.clone(), Registered { definition, subscriber }).is_some() {
                return Err(RegisterError::DuplicateId(id));
            }
        }
        Ok(Self(Arc::new(registered)))
    }

    /// The definitions, by id.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        self.0.values().map(|registered| &registered.definition)
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Registered> {
        self.0.get(id)
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}
