//! `herald store migrate` and `assert`: bringing the schema up to date, and asking whether it is.

use ::store::{Migration, Schema, Timestamp};
use serde_json::json as value;

use super::asks_for_test_clock;
use crate::app::{App, MIGRATIONS, connect, connect_to_look, newer};
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

/// Runs what is missing, or only says what that is.
pub(super) async fn migrate(
    config: &Config,
    global: &Global,
    dry_run: bool,
    test_clock: Option<Timestamp>,
) -> Result<(), Exit> {
    let migrations = if dry_run {
        let (schema, missing) = look(config).await?;
        if let Schema::Newer(_) = schema {
            return Err(newer());
        }
        missing
    } else {
        asks_for_test_clock(config, test_clock).await?;
        let (store, ran) = App::migrate(connect(config, true).await?, test_clock).await?;
        store.close().await;
        ran
    };
    let names = names(&migrations);
    if global.output.is_json() {
        return json("herald.store.migrate/1", &value!({ "migrations": names, "dry_run": dry_run }));
    }
    for name in &names {
        line(&format!("++ {name}"));
    }
    line(&match (names.len(), dry_run) {
        (0, _) => "The schema is up to date, no migration required.".to_owned(),
        (count, true) => format!("{count} migration(s) would run."),
        (count, false) => format!("{count} migration(s) run."),
    });
    if !dry_run {
        note("next:  herald store setup   (sets the subscribers up), or herald store import FILE");
    }
    Ok(())
}

/// Ends well only if the schema is what this program needs.
pub(super) async fn assert(config: &Config, global: &Global) -> Result<(), Exit> {
    let (schema, missing) = look(config).await?;
    let names = names(&missing);
    match schema {
        Schema::Current if global.output.is_json() => {
            json("herald.store.assert/1", &value!({ "schema": "current" }))
        }
        Schema::Current => {
            line("The schema is up to date, no migration required.");
            Ok(())
        }
        Schema::Newer(_) => Err(newer()),
        Schema::Missing => Err(Exit::new(
            Code::NotFound,
            format!("the event store is not set up; migrations missing: {}", names.join(", ")),
        )
        .with_hint("run `herald store setup`, or `herald store migrate` for the schema alone")),
        Schema::Behind(_) => Err(Exit::new(
            Code::Conflict,
            format!("the schema is behind this program; migrations missing: {}", names.join(", ")),
        )
        .with_hint("run `herald store migrate`; it keeps everything that is there")),
    }
}

/// How the schema stands and what it lacks, without making anything.
async fn look(config: &Config) -> Result<(Schema, Vec<Migration>), Exit> {
    match connect_to_look(config).await {
        Ok(store) => {
            let result = (store.schema().await?, store.missing_migrations().await?);
            store.close().await;
            Ok(result)
        }
        // A file that is not there lacks everything.
        Err(exit) if exit.code == Code::NotFound && config.url.starts_with("sqlite:") => {
            let mut all = MIGRATIONS.concat();
            all.sort_by_key(|migration| migration.number);
            Ok((Schema::Missing, all))
        }
        Err(exit) => Err(exit),
    }
}

fn names(migrations: &[Migration]) -> Vec<String> {
    migrations.iter().map(Migration::to_string).collect()
}
