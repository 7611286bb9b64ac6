//! The program put together: a log, an engine, and the subscribers that ship with it.

use std::sync::Arc;

use notification_subscribers::delivery::deliveries;
use notification_subscribers::{SuppressedAddresses, subscribers, workflow};
use store::{Migration, Schema, Setup, Store, StoreError, TableName, Timestamp};
use subscription_engine::{Criteria, Engine, Outcome, Registry};

use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::note;

/// The event store's name, as people configure and ask for it.
pub(crate) const STORE_ID: &str = "Acme.Notifications:EventStore";
/// The name under which the log shows itself as a table.
pub(crate) const EVENT_TABLE: &str = "acme_notifications_events";
/// The program's name on its subscriptions.
const PROGRAM: &str = "herald";

/// What a command works with.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) engine: Engine,
}

/// What `store setup` did.
#[derive(Debug)]
pub(crate) struct SetupReport {
    /// Migrations that ran.
    pub(crate) migrations: Vec<Migration>,
    /// Subscriptions that were set up.
    pub(crate) subscriptions: Vec<String>,
}

/// Everything that makes the schema.
pub(crate) const MIGRATIONS: [&[Migration]; 2] = [store::MIGRATIONS, subscription_engine::MIGRATIONS];

/// Connects, to work: a log that is a copy, or that could skip events, is refused.
pub(crate) async fn connect(config: &Config, create: bool) -> Result<Store, Exit> {
    let options = store::Options { create, ..config.options.clone() };
    let store = Store::open(&config.url, &options, &MIGRATIONS).await?;
    // A daemon has it in its log.
    if let Some(place) = store.place()
        && let (Some(from), Some(epoch)) = (&place.moved_from, place.epoch)
        && !tracing::enabled!(tracing::Level::WARN)
    {
        note(&format!("The event store has moved from {from} to {}; it is in epoch {epoch} now", place.here));
    }
    Ok(store)
}

/// Connects, only to look, whatever state the log is in.
pub(crate) async fn connect_to_look(config: &Config) -> Result<Store, Exit> {
    let options = store::Options { create: false, ..config.options.clone() };
    Ok(Store::open_to_look(&config.url, &options, &MIGRATIONS).await?)
}

/// Warns that a log should not be worked on.
pub(crate) fn warn_of(store: &Store) {
    for refusal in store.refusals() {
        note(&format!("warning: {refusal}"));
    }
}

impl App {
    /// Opens a log that must be there.
    pub(crate) async fn open(config: &Config) -> Result<Self, Exit> {
        Self::of(config, connect(config, false).await).await
    }

    /// Opens a log that must be there only to look: nothing is written, and one that should not be worked on is
    /// shown with a warning.
    pub(crate) async fn open_to_look(config: &Config) -> Result<Self, Exit> {
        let app = Self::of(config, connect_to_look(config).await).await?;
        warn_of(&app.store);
        Ok(app)
    }

    /// Opens a log that must be there to stop somebody: that is allowed also while events could be skipped, which is
    /// when it is wanted most.
    pub(crate) async fn open_to_stop(config: &Config) -> Result<Self, Exit> {
        let opened = Self::open(config).await;
        let Err(exit) = opened else { return opened };
        if exit.code != Code::Configuration {
            return Err(exit);
        }
        let store = connect_to_look(config).await?;
        let is_safe = |refusal: &StoreError| matches!(refusal, StoreError::BadSequence(_));
        if store.refusals().is_empty() || !store.refusals().iter().all(is_safe) {
            return Err(exit);
        }
        warn_of(&store);
        Self::of(config, Ok(store)).await
    }

    /// The program around a log that was opened, if it is there and fits.
    pub(crate) async fn of(config: &Config, connected: Result<Store, Exit>) -> Result<Self, Exit> {
        let not_set_up = |why: &str| {
            Exit::new(Code::NotFound, format!("the event store is not set up yet: {why}")).with_hint(
                "run `herald store setup` first, or name another database by --database or HERALD_DATABASE",
            )
        };
        let store = match connected {
            // A file that is not there is a log that is not set up.
            Err(exit) if exit.code == Code::NotFound && config.url.starts_with("sqlite:") => {
                return Err(not_set_up(&exit.to_string()));
            }
            result => result?,
        };
        match store.schema().await? {
            Schema::Missing => {
                let target = store.database().target();
                let host = target.host.map_or_else(String::new, |host| format!(" on {host}"));
                Err(not_set_up(&format!("there are no tables of it in {}{host}", target.database)))
            }
            Schema::Behind(count) => Err(Exit::new(
                Code::Configuration,
                format!("the event store is {count} migration(s) behind this program"),
            )
            .with_hint("run `herald store setup`; it keeps everything that is there")),
            Schema::Newer(_) => Err(newer()),
            Schema::Current => Self::assemble(config, store, None).await,
        }
    }

    /// Opens a log, and makes it first if it is not there: tables, and every subscriber set up, so that none
    /// misses an event that is appended before a worker starts. One that is there and that a new program has processors
    /// for gets those set up first, for the same reason.
    pub(crate) async fn open_or_set_up(config: &Config) -> Result<Self, Exit> {
        let store = connect(config, true).await?;
        if store.schema().await? == Schema::Current {
            let app = Self::assemble(config, store, None).await?;
            for (id, outcome) in app.engine.set_up_what_begins_now().await? {
                match outcome {
                    Outcome::Became { .. } => note(&format!("Set up {id} first, so that it misses nothing")),
                    outcome => note(&format!("{id}: {}", crate::cli::outcome_text(&outcome))),
                }
            }
            return Ok(app);
        }
        if config.test_mode {
            return Err(Exit::new(Code::NotFound, "the event store is not set up yet")
                .with_hint("run `herald store setup --test-clock TIME` to make one in test mode"));
        }
        let (app, report) = Self::set_up(config, store, None).await?;
        let subscriptions = report.subscriptions.join(", ");
        note(&format!(
            "Set up the event store in {}; subscriptions: {subscriptions}",
            app.store.database().target().database
        ));
        Ok(app)
    }

    /// Makes or completes a log. Doing it again changes nothing.
    pub(crate) async fn set_up(
        config: &Config,
        store: Store,
        test_clock: Option<Timestamp>,
    ) -> Result<(Self, SetupReport), Exit> {
        let (store, migrations) = Self::migrate(store, test_clock).await?;
        let app = Self::assemble(config, store, test_clock).await?;
        let mut subscriptions = Vec::new();
        for (id, outcome) in app.engine.set_up(&Criteria::all(), false).await? {
            match outcome {
                Outcome::Became { .. } => subscriptions.push(id),
                outcome => note(&format!("{id}: {}", crate::cli::outcome_text(&outcome))),
            }
        }
        Ok((app, SetupReport { migrations, subscriptions }))
    }

    /// Makes or completes a log and leaves its subscribers alone; says which migrations ran.
    pub(crate) async fn migrate(
        store: Store,
        test_clock: Option<Timestamp>,
    ) -> Result<(Store, Vec<Migration>), Exit> {
        if let Schema::Newer(_) = store.schema().await? {
            return Err(newer());
        }
        let mut missing = store.missing_migrations().await?;
        let setup = Setup { view: TableName::new(EVENT_TABLE)?, test_clock };
        let (store, ran) = store.set_up(&setup).await?;
        // Another process may have been first.
        let migrations = missing.split_off(missing.len().saturating_sub(ran));
        Ok((store, migrations))
    }

    async fn assemble(config: &Config, store: Store, test_clock: Option<Timestamp>) -> Result<Self, Exit> {
        let test_mode = config.test_mode || test_clock.is_some();
        match (store.clock().is_manual(), test_mode) {
            (true, false) => {
                return Err(Exit::new(
                    Code::Configuration,
                    "this event store is in test mode: its clock is set by hand",
                )
                .with_hint("add --test-mode if that is meant"));
            }
            (false, true) => {
                return Err(Exit::new(
                    Code::Configuration,
                    "this event store is not in test mode: it lives by real time",
                )
                .with_hint(
                    "leave --test-mode out, or set up another store with `store setup --test-clock`",
                ));
            }
            _ => {}
        }
        let deliveries = deliveries(&config.notify, &store, Arc::new(SuppressedAddresses))?;
        let registry = Registry::new(subscribers().into_iter().chain(workflow(&config.policy)))?;
        let engine = Engine::new(store.clone(), registry, PROGRAM)
            .with_deliveries(deliveries)?
            .on_behalf_of(&config.who);
        Ok(Self { store, engine })
    }
}

pub(crate) fn newer() -> Exit {
    Exit::new(Code::Configuration, "the database is newer than this program, which could misread it")
        .with_hint("use the newer program")
}
