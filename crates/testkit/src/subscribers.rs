//! Small honest subscribers for tests, and switches that cut an engine off.

use std::collections::VecDeque;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use store::{Event, Position};
use subscription_engine::{BoxError, Context, Definition, FaultPoint, Faults, Subscriber, Timer};
use tokio::sync::{Semaphore, watch};

/// Writes the position of each event that it gets into its own table, once: a second time is an error.
#[derive(Debug)]
pub struct Collector {
    definition: Definition,
}

impl Collector {
    /// A collector with this definition. It keeps positions in the table `collected_<id>`.
    pub fn new(definition: Definition) -> Arc<Self> {
        let table = format!("collected_{}", definition.id());
        // Definitions name tables by literals; a test's are few.
        let definition = definition.with_table("collected", String::leak(table));
        Arc::new(Self { definition })
    }

    /// The positions it has collected, in order.
    pub async fn positions(&self, store: &store::Store) -> Vec<i64> {
        let table =
            store::TableName::new(format!("collected_{}", self.definition.id())).expect("a table name");
        let sql = store::Sql::named("SELECT position FROM {t} ORDER BY position", &table);
        let rows: Vec<(i64,)> = store.database().fetch_all(sql, ()).await.expect("the collector is set up");
        rows.into_iter().map(|row| row.0).collect()
    }
}

#[async_trait]
impl Subscriber for Collector {
    fn definition(&self) -> Definition {
        self.definition.clone()
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        let table = context.table("collected")?;
        let sql = store::Sql::named("CREATE TABLE {t} (position BIGINT PRIMARY KEY)", &table);
        context.tx().await?.execute(sql, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let table = context.table("collected")?;
        let rows = events.iter().map(|event| (event.position,)).collect();
        let sql = store::Sql::named("INSERT INTO {t} (position) VALUES {rows}", &table);
        context.tx().await?.execute_many(sql, rows).await?;
        Ok(())
    }
}

/// A collector that fails whenever a position on its list is in the page, until it is mended. It writes
/// first and fails then, so that what it leaves behind would be seen.
#[derive(Debug)]
pub struct Failing {
    inner: Arc<Collector>,
    at: watch::Sender<Vec<i64>>,
    handled: watch::Sender<u64>,
}

impl Failing {
    /// Fails at these positions.
    pub fn new(definition: Definition, at: impl IntoIterator<Item = i64>) -> Arc<Self> {
        Arc::new(Self {
            inner: Collector::new(definition),
            at: watch::Sender::new(at.into_iter().collect()),
            handled: watch::Sender::new(0),
        })
    }

    /// Fails at these positions from now on.
    pub fn fail_at(&self, at: impl IntoIterator<Item = i64>) {
        self.at.send_replace(at.into_iter().collect());
    }

    /// Fails no more.
    pub fn mend(&self) {
        self.fail_at([]);
    }

    /// How often it was called.
    pub fn calls(&self) -> u64 {
        *self.handled.borrow()
    }

    /// The positions it has collected.
    pub async fn positions(&self, store: &store::Store) -> Vec<i64> {
        self.inner.positions(store).await
    }
}

#[async_trait]
impl Subscriber for Failing {
    fn definition(&self) -> Definition {
        self.inner.definition()
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        self.inner.setup(context).await
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        self.handled.send_modify(|calls| *calls += 1);
        self.inner.handle(events, context).await?;
        let at = self.at.borrow().clone();
        match events.iter().find(|event| at.contains(&event.position.0)) {
            None => Ok(()),
            Some(event) => Err(format!("cannot digest position {}", event.position).into()),
        }
    }
}

/// A collector that stops in each call until the test lets it go on.
#[derive(Debug)]
pub struct Held {
    inner: Arc<Collector>,
    writes_first: bool,
    entered: watch::Sender<u64>,
    let_go: Semaphore,
}

impl Held {
    /// Stops before it writes; on SQLite it holds no lock then.
    pub fn before_writing(definition: Definition) -> Arc<Self> {
        Arc::new(Self::new(definition, false))
    }

    /// Stops after it has written, with its transaction open.
    pub fn while_writing(definition: Definition) -> Arc<Self> {
        Arc::new(Self::new(definition, true))
    }

    fn new(definition: Definition, writes_first: bool) -> Self {
        let (inner, let_go) = (Collector::new(definition), Semaphore::new(0));
        Self { inner, writes_first, entered: watch::Sender::new(0), let_go }
    }

    /// Waits until it stands in its `nth` call.
    pub async fn entered(&self, nth: u64) {
        let mut entered = self.entered.subscribe();
        entered.wait_for(|calls| *calls >= nth).await.expect("the sender is ours");
    }

    /// How often it was called.
    pub fn calls(&self) -> u64 {
        *self.entered.borrow()
    }

    /// Lets so many calls go on.
    pub fn let_go(&self, calls: usize) {
        self.let_go.add_permits(calls);
    }

    /// The positions it has collected.
    pub async fn positions(&self, store: &store::Store) -> Vec<i64> {
        self.inner.positions(store).await
    }
}

#[async_trait]
impl Subscriber for Held {
    fn definition(&self) -> Definition {
        self.inner.definition()
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        self.inner.setup(context).await
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        if self.writes_first {
            self.inner.handle(events, context).await?;
        }
        self.entered.send_modify(|calls| *calls += 1);
        self.let_go.acquire().await?.forget();
        if !self.writes_first {
            self.inner.handle(events, context).await?;
        }
        Ok(())
    }
}

/// What a call of a [`Scripted`] subscriber comes to.
pub type Scene<'a> = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;

type Handle = dyn for<'a> Fn(&'a [Event], &'a mut Context<'_>) -> Scene<'a> + Send + Sync;
type OnTimer = dyn for<'a> Fn(&'a [Timer], &'a mut Context<'_>) -> Scene<'a> + Send + Sync;
type Hook = dyn for<'a> Fn(&'a mut Context<'_>) -> Scene<'a> + Send + Sync;

/// A subscriber that does what a test says, in the test's own words.
pub struct Scripted {
    definition: Definition,
    handle: Box<Handle>,
    on_timer: Box<OnTimer>,
    setup: Box<Hook>,
    teardown: Box<Hook>,
}

impl Scripted {
    /// Handles events like this; setup and teardown do nothing.
    pub fn new(
        definition: Definition,
        handle: impl for<'a> Fn(&'a [Event], &'a mut Context<'_>) -> Scene<'a> + Send + Sync + 'static,
    ) -> Self {
        Self {
            definition,
            handle: Box::new(handle),
            on_timer: Box::new(|_, _| Box::pin(ready(Ok(())))),
            setup: Box::new(nothing),
            teardown: Box::new(nothing),
        }
    }

    /// Takes events and does nothing with them.
    pub fn idle(definition: Definition) -> Self {
        Self::new(definition, |_, _| Box::pin(ready(Ok(()))))
    }

    /// Handles timers like this.
    #[must_use]
    pub fn with_timers(
        self,
        on_timer: impl for<'a> Fn(&'a [Timer], &'a mut Context<'_>) -> Scene<'a> + Send + Sync + 'static,
    ) -> Self {
        Self { on_timer: Box::new(on_timer), ..self }
    }

    /// Is set up like this.
    #[must_use]
    pub fn with_setup(
        self,
        setup: impl for<'a> Fn(&'a mut Context<'_>) -> Scene<'a> + Send + Sync + 'static,
    ) -> Self {
        Self { setup: Box::new(setup), ..self }
    }

    /// Is torn down like this.
    #[must_use]
    pub fn with_teardown(
        self,
        teardown: impl for<'a> Fn(&'a mut Context<'_>) -> Scene<'a> + Send + Sync + 'static,
    ) -> Self {
        Self { teardown: Box::new(teardown), ..self }
    }
}

fn nothing<'a>(_: &'a mut Context<'_>) -> Scene<'a> {
    Box::pin(ready(Ok(())))
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").field("definition", &self.definition).finish_non_exhaustive()
    }
}

#[async_trait]
impl Subscriber for Scripted {
    fn definition(&self) -> Definition {
        self.definition.clone()
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        (self.setup)(context).await
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        (self.handle)(events, context).await
    }

    async fn on_timer(&self, timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
        (self.on_timer)(timers, context).await
    }

    async fn teardown(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        (self.teardown)(context).await
    }
}

/// Cuts an engine off at the given points of the units of one subscription, one after the other.
#[derive(Debug)]
pub struct KillSwitch {
    subscription: String,
    points: Mutex<VecDeque<FaultPoint>>,
}

impl KillSwitch {
    /// Strikes once at each of these points, in this order, as units pass them.
    pub fn new(subscription: impl Into<String>, points: impl IntoIterator<Item = FaultPoint>) -> Arc<Self> {
        Arc::new(Self { subscription: subscription.into(), points: Mutex::new(points.into_iter().collect()) })
    }

    /// Whether every strike was made.
    pub fn is_spent(&self) -> bool {
        self.points.lock().expect("nobody panics while holding it").is_empty()
    }
}

impl Faults for KillSwitch {
    fn strikes(&self, point: FaultPoint, subscription: &str) -> bool {
        let mut points = self.points.lock().expect("nobody panics while holding it");
        let strikes = subscription == self.subscription && points.front() == Some(&point);
        if strikes {
            points.pop_front();
        }
        strikes
    }
}

/// The positions from 1 to n.
pub fn positions(n: i64) -> Vec<i64> {
    (1..=n).collect()
}

/// Where a subscription stands.
pub fn position(subscription: &subscription_engine::Subscription) -> i64 {
    subscription.position.unwrap_or(Position::START).0
}
