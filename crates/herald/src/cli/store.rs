//! `herald store` (`eventstore`): the event store itself.

mod adopt;
mod verify;

use ::store::{Schema, Timestamp};
use clap::Subcommand;
use serde::Serialize;

use crate::app::{App, EVENT_TABLE, STORE_ID, connect, connect_to_look, warn_of};
use crate::cli::{Global, parse_time};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show where the event store is and whether it is set up
    #[command(after_help = "Example:\n  herald store status")]
    Status,
    /// Create or complete the event store and set its subscribers up; doing it again changes nothing
    #[command(after_help = "Example:\n  herald store setup Acme.Notifications:EventStore")]
    Setup {
        /// The event store's name
        #[arg(default_value = STORE_ID)]
        store: String,
        /// Make a store in test mode, whose clock stands at this time
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        test_clock: Option<Timestamp>,
    },
    /// Look whether the log is as it should be: every event, every stream, every checkpoint
    #[command(after_help = verify::HELP)]
    Verify(verify::Arguments),
    /// Take the place where the event store is now for its home: after a restore, or on a copy
    #[command(after_help = adopt::HELP)]
    Adopt,
}

pub(crate) use verify::verify;

/// As wide as the tutorial's terminal.
const RULE: usize = 79;

pub(crate) fn rule() -> String {
    "-".repeat(RULE)
}

#[derive(Serialize)]
struct Status {
    store: &'static str,
    host: Option<String>,
    port: Option<u16>,
    database: String,
    driver: &'static str,
    username: Option<String>,
    table: &'static str,
    exists: bool,
    /// How often it has changed its place.
    epoch: Option<String>,
    /// Where it has lived.
    places: Vec<PastPlace>,
}

#[derive(Serialize)]
struct PastPlace {
    epoch: String,
    place: ::store::Place,
    since: Timestamp,
    why: String,
    who: String,
}

impl From<::store::PastPlace> for PastPlace {
    fn from(past: ::store::PastPlace) -> Self {
        let ::store::PastPlace { epoch, place, since, why, who } = past;
        Self { epoch: epoch.to_string(), place, since, why, who }
    }
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        Command::Status => status(config, global).await,
        Command::Setup { store, .. } if store != STORE_ID => {
            Err(Exit::refusal(format!("There is no Event Store \"{store}\" configured"))
                .with_hint(format!("the configured one is {STORE_ID}")))
        }
        Command::Setup { test_clock, .. } => setup(config, global, test_clock).await,
        Command::Verify(arguments) => verify::run(config, global, arguments).await,
        Command::Adopt => adopt::run(config, global).await,
    }
}

async fn status(config: &Config, global: &Global) -> Result<(), Exit> {
    let file = config.url.strip_prefix("sqlite:").map(|file| file.trim_start_matches("//"));
    let mut places = Vec::new();
    let (target, schema, epoch) = match connect_to_look(config).await {
        Ok(store) => {
            warn_of(&store);
            let epoch = store.place().and_then(|place| place.epoch);
            if epoch.is_some() && global.output.is_json() {
                places = store.places().await?;
            }
            (store.database().target(), store.schema().await?, epoch)
        }
        // A file that is not there yet is no failure: it is what this command is asked about.
        Err(exit) if exit.code == Code::NotFound && file.is_some() => {
            let database = file.unwrap_or_default().to_owned();
            (::store::Target { database, ..Default::default() }, Schema::Missing, None)
        }
        Err(exit) => return Err(exit),
    };
    let status = Status {
        store: STORE_ID,
        driver: if target.host.is_some() { "postgres" } else { "sqlite" },
        host: target.host,
        port: target.port,
        database: target.database,
        username: target.user,
        table: EVENT_TABLE,
        exists: schema != Schema::Missing,
        epoch: epoch.map(|epoch| epoch.to_string()),
        places: places.into_iter().map(PastPlace::from).collect(),
    };
    if global.output.is_json() {
        return json("herald.store.status/1", &[status]);
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    line("Displaying status information for 1 Event Store backend(s):");
    line("");
    line(&format!("Event Store \"{STORE_ID}\""));
    line(&rule());
    line(&format!("Host: {}", or_none(status.host)));
    line(&format!("Port: {}", or_none(status.port.map(|port| port.to_string()))));
    line(&format!("Database: {}", status.database));
    line(&format!("Driver: {}", status.driver));
    line(&format!("Username: {}", or_none(status.username)));
    match schema {
        Schema::Missing => line(&format!("Table: {EVENT_TABLE} (missing) !!!")),
        Schema::Current => {
            line(&format!("Table: {EVENT_TABLE} (exists)"));
            line("SUCCESS");
        }
        Schema::Behind(count) => {
            line(&format!("Table: {EVENT_TABLE} (exists)"));
            line(&format!("Schema: {count} migration(s) behind this program, run `herald store setup` !!!"));
        }
        Schema::Newer(_) => {
            line(&format!("Table: {EVENT_TABLE} (exists)"));
            line("Schema: newer than this program, use the newer program !!!");
        }
    }
    Ok(())
}

async fn setup(config: &Config, global: &Global, test_clock: Option<Timestamp>) -> Result<(), Exit> {
    if config.test_mode && test_clock.is_none() {
        // Which time a new one would begin at was not said; one that is there needs no more than this.
        App::open(config)
            .await
            .map_err(|exit| exit.with_hint("add --test-clock TIME to make a store in test mode"))?;
    }
    let store = connect(config, true).await?;
    let target = store.database().target();
    if !global.output.is_json() {
        line(&format!("Setting up Event Store \"{STORE_ID}\""));
        let host = target.host.as_ref().map_or_else(String::new, |host| format!(" on host {host}"));
        if store.schema().await? == Schema::Missing {
            let database = &target.database;
            line(&format!(
                ": Creating database table \"{EVENT_TABLE}\" in database \"{database}\"{host}...."
            ));
        } else {
            line(&format!(": Table \"{EVENT_TABLE}\" (already exists)"));
        }
    }
    let (app, report) = App::set_up(config, store, test_clock).await?;
    if global.output.is_json() {
        let data = serde_json::json!({
            "store": STORE_ID, "migrations": report.migrations, "subscriptions": report.subscriptions
        });
        json("herald.store.setup/1", &data)?;
    } else {
        if report.migrations > 0 {
            line(&format!(": {} migration(s) run", report.migrations));
        }
        for id in &report.subscriptions {
            line(&format!(": Subscription \"{id}\" set up"));
        }
        line("SUCCESS");
    }
    app.store.close().await;
    Ok(())
}
