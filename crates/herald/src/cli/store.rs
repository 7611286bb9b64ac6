//! `herald store` (`eventstore`): the event store itself.

mod adopt;
mod backup;
mod exchange;
mod head;
mod schema;
mod verify;

use ::store::{Schema, Timestamp};
use clap::Subcommand;
use serde::Serialize;

use crate::app::{App, EVENT_TABLE, STORE_ID, connect, connect_to_look, warn_of};
use crate::cli::{Global, parse_time};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

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
    /// Show how far the log may be read, what waits behind that, and for whom
    #[command(
        after_help = "Examples:\n  herald store head\n  herald store head -o json\n\nWhere events wait, the statement in \
                      the last column gives up the append that they wait for."
    )]
    Head,
    /// Set every configured event store up
    #[command(name = "setupall", after_help = "Example:\n  herald store setupall")]
    SetupAll,
    /// Run the migrations that are missing, and leave the subscribers alone
    #[command(after_help = "Examples:\n  herald store migrate --dry-run\n  herald store migrate")]
    Migrate {
        /// Only list them
        #[arg(long)]
        dry_run: bool,
        /// Make a store in test mode, whose clock stands at this time
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        test_clock: Option<Timestamp>,
    },
    /// End with 0 only if the schema is what this program needs (3: missing, 5: behind, 78: newer)
    #[command(after_help = "Example:\n  herald store assert && systemctl restart herald")]
    Assert,
    /// Write every event to a file of JSON lines, byte for byte, while everything runs
    #[command(
        after_help = "Examples:\n  herald store export log.jsonl\n  herald store export log.jsonl --resume\n  \
                      herald store export - | zstd > log.jsonl.zst\n  herald store export --after 120000 since.jsonl"
    )]
    Export(exchange::Export),
    /// Read an exported file into a new event store, of either database; doing it again goes on where it broke off
    #[command(
        after_help = "Examples:\n  herald store import log.jsonl --dry-run\n  herald store import log.jsonl\n  \
                      zstd -dc log.jsonl.zst | herald --database postgres://herald@db/herald store import -"
    )]
    Import(exchange::Import),
    /// Copy the whole database to a file while everything runs (PostgreSQL: by pg_dump)
    #[command(after_help = "Example:\n  herald store backup /var/backups/herald-2026-01-31.db")]
    Backup {
        /// The file, which must not be there yet
        file: String,
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
        Command::Head => head::run(config, global).await,
        Command::Setup { store, .. } if store != STORE_ID => {
            Err(Exit::refusal(format!("There is no Event Store \"{store}\" configured"))
                .with_hint(format!("the configured one is {STORE_ID}")))
        }
        Command::Setup { test_clock, .. } => setup(config, global, test_clock).await,
        Command::SetupAll => {
            if !global.output.is_json() {
                line("Setting up 1 Event Store backend(s):");
                line("");
            }
            setup(config, global, None).await
        }
        Command::Migrate { dry_run, test_clock } => {
            schema::migrate(config, global, dry_run, test_clock).await
        }
        Command::Assert => schema::assert(config, global).await,
        Command::Export(arguments) => exchange::export(config, global, arguments).await,
        Command::Import(arguments) => exchange::import(config, global, arguments).await,
        Command::Backup { file } => backup::backup(config, global, &file).await,
        Command::Verify(arguments) => verify::run(config, global, arguments).await,
        Command::Adopt => adopt::run(config, global).await,
    }
}

async fn status(config: &Config, global: &Global) -> Result<(), Exit> {
    let file = config.url.strip_prefix("sqlite:").map(|file| file.trim_start_matches("//"));
    let mut places = Vec::new();
    let (target, schema, missing, epoch) = match connect_to_look(config).await {
        Ok(store) => {
            warn_of(&store);
            let epoch = store.place().and_then(|place| place.epoch);
            if epoch.is_some() && global.output.is_json() {
                places = store.places().await?;
            }
            (store.database().target(), store.schema().await?, store.missing_migrations().await?, epoch)
        }
        // A file that is not there yet is no failure: it is what this command is asked about.
        Err(exit) if exit.code == Code::NotFound && file.is_some() => {
            let database = file.unwrap_or_default().to_owned();
            (::store::Target { database, ..Default::default() }, Schema::Missing, Vec::new(), None)
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
            line(&format!(
                "The schema of table {EVENT_TABLE} is not up-to-date: {count} migration(s) required !!!"
            ));
            for migration in &missing {
                line(&format!("++ {migration}"));
            }
            note("next:  herald store migrate");
        }
        Schema::Newer(_) => {
            line(&format!("Table: {EVENT_TABLE} (exists)"));
            line("Schema: newer than this program, use the newer program !!!");
        }
    }
    Ok(())
}

/// In test mode, which time a new store would begin at must be said.
async fn asks_for_test_clock(config: &Config, test_clock: Option<Timestamp>) -> Result<(), Exit> {
    if config.test_mode && test_clock.is_none() {
        // One that is there needs no more than this.
        let app = App::open(config).await;
        let app = app.map_err(|exit| exit.with_hint("add --test-clock TIME to make a store in test mode"))?;
        app.store.close().await;
    }
    Ok(())
}

async fn setup(config: &Config, global: &Global, test_clock: Option<Timestamp>) -> Result<(), Exit> {
    asks_for_test_clock(config, test_clock).await?;
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
            "store": STORE_ID, "migrations": report.migrations.len(), "subscriptions": report.subscriptions
        });
        json("herald.store.setup/1", &data)?;
    } else {
        if report.migrations.is_empty() {
            line(": Table schema is up to date, no migration required");
        }
        for migration in &report.migrations {
            line(&format!("++ {migration}"));
        }
        for id in &report.subscriptions {
            line(&format!(": Subscription \"{id}\" set up"));
        }
        line("SUCCESS");
    }
    app.store.close().await;
    Ok(())
}
