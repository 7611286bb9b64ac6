//! Five subscribers that each write down what they handle, in the order in which they do; two of them answer, and one
//! reaches beyond the log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use store::{Event, ExpectedVersion, Json, Store, StreamName};
use subscription_engine::{
    BoxError, Context, Definition, Delivery, Engine, ParkKey, Poison, RegisterError, Registry, RetryStrategy,
    Settings, Subscriber,
};

use super::outside::{OUTSIDE, Outbox, Outside};

pub(super) const HAPPENED: &str = "Fire.Happened";
/// Cannot be handled before all is mended.
pub(super) const POISON: &str = "Fire.Poison";
/// Nobody wants it.
pub(super) const OTHER: &str = "Fire.Other";
pub(super) const ANSWERED: &str = "Fire.Answered";

/// Sets poison aside, and all later events of its stream.
pub(super) const PARKING: &str = "parking";
/// Stops at poison.
pub(super) const STOPPING: &str = "stopping";
/// Wants no poison.
pub(super) const FILTERED: &str = "filtered";
/// Wants none either; operators remove it, and it begins again.
pub(super) const REMOVED: &str = "removed";
pub(super) const IDS: [&str; 5] = [PARKING, STOPPING, FILTERED, REMOVED, OUTSIDE];

/// What a failure at poison says; whatever else a handler fails with was not meant to be.
pub(super) const INDIGESTIBLE: &str = "it is poison";

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours {
    pub(super) id: &'static str,
    pub(super) table: &'static str,
    pub(super) wants: [&'static str; 2],
    pub(super) answers: Option<&'static str>,
}

/// All of them.
pub(super) const ALL: [Ours; 5] = [
    Ours { id: PARKING, table: "fire_parking", wants: [HAPPENED, POISON], answers: Some("answers-parking") },
    Ours {
        id: STOPPING,
        table: "fire_stopping",
        wants: [HAPPENED, POISON],
        answers: Some("answers-stopping"),
    },
    Ours { id: FILTERED, table: "fire_filtered", wants: [HAPPENED, HAPPENED], answers: None },
    Ours { id: REMOVED, table: "fire_removed", wants: [HAPPENED, HAPPENED], answers: None },
    Ours { id: OUTSIDE, table: "fire_outside", wants: [HAPPENED, HAPPENED], answers: None },
];

/// An engine that knows all of them, in small units, and sends into this file.
pub(super) fn engine_on(store: &Store, outbox: &Path) -> Result<Engine, RegisterError> {
    let registry = Registry::new(ALL.map(|ours| -> Arc<dyn Subscriber> {
        if ours.id == OUTSIDE { Arc::new(Outside(ours)) } else { Arc::new(ours) }
    }))?;
    let outbox: Arc<dyn Delivery> = Arc::new(Outbox(outbox.to_owned()));
    let settings = Settings { unit_events: 4, poll: Duration::from_millis(100), ..Settings::default() };
    Engine::new(store.clone(), registry, "fire").with_settings(settings).with_deliveries([outbox])
}

/// Makes the table that says whether poison can be handled.
pub(super) async fn prepare(store: &Store) -> sqlx::Result<()> {
    store.database().execute("CREATE TABLE fire_mended (id BIGINT PRIMARY KEY)", ()).await.map(drop)
}

/// From now on nothing is poison any more.
pub(super) async fn mend(store: &Store) -> sqlx::Result<()> {
    let sql = "INSERT INTO fire_mended (id) VALUES (1) ON CONFLICT DO NOTHING";
    store.database().execute(sql, ()).await.map(drop)
}

#[async_trait]
impl Subscriber for Ours {
    fn definition(&self) -> Definition {
        let retry = RetryStrategy::ClockBased {
            base_delay: Duration::from_secs(1),
            delay_factor: 1.0,
            max_attempts: 1,
            max_delay: None,
        };
        let park = Poison::Park { key: ParkKey::Stream, cap_count: u64::MAX, cap_share: 1.0 };
        let definition = match self.id {
            PARKING => Definition::projector(self.id).with_poison(park),
            STOPPING | OUTSIDE => Definition::processor(self.id),
            _ => Definition::projector(self.id),
        };
        definition.with_retry(retry).on(self.wants).with_table("applied", self.table)
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        let sql = "CREATE TABLE {t} (number BIGINT PRIMARY KEY, position BIGINT NOT NULL UNIQUE)";
        context.execute("applied", sql, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let sql = "INSERT INTO {t} (number, position) SELECT COALESCE(MAX(number), 0) + 1, $1 FROM {t}";
            context.execute("applied", sql, (event.position,)).await?;
            if let Some(answers) = self.answers {
                let answers = StreamName::new(answers)?;
                let mut cause = context.because_of(event);
                cause.append(&answers, ExpectedVersion::Any, ANSWERED, Json::empty_object())?;
            }
        }
        if events.iter().any(|event| event.event_type == POISON) {
            let sql = "SELECT id FROM fire_mended";
            if context.tx().await?.fetch_optional::<(i64,)>(sql, ()).await?.is_none() {
                return Err(INDIGESTIBLE.into());
            }
        }
        Ok(())
    }
}
