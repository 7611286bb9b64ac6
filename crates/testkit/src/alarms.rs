//! A subscriber for tests of timers: events set and cancel them, and what fires is written down and appended.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{Event, ExpectedVersion, Json, NewEvent, Sql, Store, StreamName, TableName, Timestamp};
use subscription_engine::{BoxError, Context, Definition, Subscriber, Timer};
use tokio::sync::watch;

/// What an alarm is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Under which it is set.
    pub key: String,
    /// When; none: it is cancelled.
    pub due: Option<Timestamp>,
    /// When it fires it sets itself again at these instants, one after the other.
    #[serde(default)]
    pub again: Vec<Timestamp>,
}

impl Alarm {
    /// Type of the events that set and cancel.
    pub const ASKED: &str = "Acme.Test:AlarmAsked";
    /// Type of the events that say what has fired.
    pub const RANG: &str = "Acme.Test:AlarmRang";

    /// Rings once.
    pub fn at(key: &str, due: Timestamp) -> Self {
        Self { key: key.to_owned(), due: Some(due), again: Vec::new() }
    }

    /// Does not ring.
    pub fn cancelled(key: &str) -> Self {
        Self { key: key.to_owned(), due: None, again: Vec::new() }
    }

    /// The event that asks for it.
    pub fn asked(&self) -> NewEvent {
        NewEvent::new(Self::ASKED, Json::of(self).expect("it is small"))
    }
}

/// Sets alarms as events ask. What rings goes into its own table, where a second time is an error, and into the stream
/// `rang-1`, with the position of the last event that was handled before.
#[derive(Debug)]
pub struct Alarms {
    definition: Definition,
    failing: watch::Sender<Vec<String>>,
    calls: watch::Sender<Vec<Vec<String>>>,
}

impl Alarms {
    /// With this definition; it takes only the events that ask.
    pub fn new(definition: Definition) -> Arc<Self> {
        let (handled, rang) = (format!("handled_{}", definition.id()), format!("rang_{}", definition.id()));
        // Definitions name tables by literals; a test's are few.
        let definition = definition
            .on([Alarm::ASKED])
            .with_table("handled", String::leak(handled))
            .with_table("rang", String::leak(rang));
        Arc::new(Self {
            definition,
            failing: watch::Sender::new(Vec::new()),
            calls: watch::Sender::new(Vec::new()),
        })
    }

    /// Fails from now on whenever one of these rings, after it has written.
    pub fn fail_at(&self, keys: &[&str]) {
        self.failing.send_replace(keys.iter().map(|key| (*key).to_owned()).collect());
    }

    /// The keys of each call, also of those that came to nothing.
    pub fn calls(&self) -> Vec<Vec<String>> {
        self.calls.borrow().clone()
    }

    /// How many have rung.
    pub async fn count(&self, store: &Store) -> i64 {
        let table = TableName::new(format!("rang_{}", self.definition.id())).expect("a table name");
        let sql = Sql::named("SELECT COUNT(*) FROM {t}", &table);
        let row: Option<(i64,)> = store.database().fetch_optional(sql, ()).await.expect("it is set up");
        row.map_or(0, |row| row.0)
    }
}

#[async_trait]
impl Subscriber for Alarms {
    fn definition(&self) -> Definition {
        self.definition.clone()
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("handled", "CREATE TABLE {t} (position BIGINT PRIMARY KEY)", ()).await?;
        context.execute("rang", "CREATE TABLE {t} (id TEXT PRIMARY KEY)", ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let alarm: Alarm = event.payload.to()?;
            let mut cause = context.because_of(event);
            match alarm.due {
                Some(due) => cause.set_timer(&alarm.key, due, event.payload.clone())?,
                None => cause.cancel_timer(&alarm.key)?,
            }
        }
        let rows = events.iter().map(|event| (event.position,)).collect();
        context.execute_many("handled", "INSERT INTO {t} (position) VALUES {rows}", rows).await?;
        Ok(())
    }

    async fn on_timer(&self, timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
        let keys: Vec<String> = timers.iter().map(|timer| timer.key.clone()).collect();
        self.calls.send_modify(|calls| calls.push(keys.clone()));
        let rows = timers.iter().map(|timer| (timer.id.to_string(),)).collect();
        context.execute_many("rang", "INSERT INTO {t} (id) VALUES {rows}", rows).await?;
        let sql = Sql::named("SELECT COALESCE(MAX(position), 0) FROM {t}", &context.table("handled")?);
        let handled: Option<(i64,)> = context.tx().await?.fetch_optional(sql, ()).await?;
        let stream = StreamName::new("rang-1")?;
        for timer in timers {
            let mut alarm: Alarm = timer.payload.to()?;
            let mut cause = context.because_of_timer(timer);
            let said = serde_json::json!({ "key": timer.key, "due": timer.due, "handled": handled.map(|row| row.0) });
            cause.append(&stream, ExpectedVersion::Any, Alarm::RANG, Json::of(&said)?)?;
            if !alarm.again.is_empty() {
                let due = alarm.again.remove(0);
                alarm.due = Some(due);
                cause.set_timer(&timer.key, due, Json::of(&alarm)?)?;
            }
        }
        let failing = self.failing.borrow().clone();
        match keys.iter().find(|key| failing.contains(key)) {
            None => Ok(()),
            Some(key) => Err(format!("cannot ring {key}").into()),
        }
    }
}
