//! `herald store export` and `import`: the log as a file, and a file as the log.

use std::io::IsTerminal;
use std::path::Path;

use ::store::{
    ExchangeProgress, ExportError, Exported, FileError, ImportError, ImportMode, Imported, Position, messages,
};
use clap::Args;
use serde_json::json as value;
use subscription_engine::{Criteria, RunMode};

use crate::app::App;
use crate::cli::Global;
use crate::cli::confirm::confirm;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};
use crate::progress::Progress;

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The file, which must not be there yet, or - for stdout
    file: String,
    /// Only events after this position, for a log that has the others
    #[arg(long, value_name = "POSITION", value_parser = clap::value_parser!(i64).range(0..))]
    after: Option<i64>,
    /// Go on with an export to this file that broke off, if there is one
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file, or - for stdin
    #[arg(required_unless_present = "abandon")]
    file: Option<String>,
    /// Find out what is wrong with the file, or with importing it here; keep nothing of it
    #[arg(long)]
    dry_run: bool,
    /// Give an import up that broke off, and let everybody append to what is there
    #[arg(long, conflicts_with_all = ["file", "dry_run"])]
    abandon: bool,
}

/// Where data goes, or comes from, for the pipe.
const PIPE: &str = "-";
/// Of a file that is read.
const READ_AHEAD: usize = 256 * 1024;

pub(super) async fn export(config: &Config, global: &Global, arguments: Export) -> Result<(), Exit> {
    let after = arguments.after.map(Position);
    if arguments.file != PIPE {
        let app = App::open_to_look(config).await?;
        let file = Path::new(&arguments.file);
        let exported = app.store.export_file(file, after, arguments.resume, shown(global, "exported")).await;
        app.store.close().await;
        return told_exported(global, &exported.map_err(of_export)?, &arguments.file);
    }
    if arguments.resume {
        return Err(Exit::new(Code::Usage, "what went into a pipe cannot be gone on with")
            .with_hint("name a file, or leave --resume out"));
    }
    if std::io::stdout().is_terminal() {
        return Err(Exit::new(Code::Usage, "an export is not for the screen")
            .with_hint("pipe it: herald store export - | zstd > log.jsonl.zst"));
    }
    let app = App::open_to_look(config).await?;
    let after = after.unwrap_or(Position::START);
    let exported = app.store.export(tokio::io::stdout(), after, shown(global, "exported")).await;
    app.store.close().await;
    match exported {
        // Whoever closed the pipe has seen enough.
        Err(ExportError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(of_export(error)),
        Ok(exported) => {
            note(&sentence(&exported));
            warn_of_damage(&exported);
            Ok(())
        }
    }
}

fn sentence(exported: &Exported) -> String {
    let resumed =
        exported.resumed_after.map_or_else(String::new, |at| format!(", resumed after position {at}"));
    format!("Exported {} event(s), up to position {}{resumed}.", exported.events, exported.head)
}

/// An export keeps what is stored, whatever it is; that a part of it can be read nowhere must be known now.
fn warn_of_damage(exported: &Exported) {
    if exported.not_json > 0 {
        note(&format!(
            "warning: {} event(s) hold something that is not JSON and will be refused by an import; see `herald store \
             verify`",
            exported.not_json
        ));
    }
}

fn told_exported(global: &Global, exported: &Exported, file: &str) -> Result<(), Exit> {
    warn_of_damage(exported);
    if global.output.is_json() {
        let data = value!({
            "file": file,
            "events": exported.events.to_string(),
            "streams": exported.streams.to_string(),
            "after": exported.after.to_string(),
            "head": exported.head.to_string(),
            "not_json": exported.not_json.to_string(),
            "resumed_after": exported.resumed_after.map(|position| position.to_string()),
        });
        return json("herald.store.export/1", &data);
    }
    line(&sentence(exported));
    note(&format!("next:  herald --database URL store import {file}   (URL: a new event store)"));
    note(&format!("later: herald store export --after {} NEXT_FILE   (what came since)", exported.head));
    Ok(())
}

pub(super) async fn import(config: &Config, global: &Global, arguments: Import) -> Result<(), Exit> {
    let Some(name) = arguments.file else { return abandon(config, global).await };
    let file = if name == PIPE {
        None
    } else {
        let file = tokio::fs::File::open(&name).await;
        Some(file.map_err(|error| Exit::new(Code::NotFound, format!("could not read {name}: {error}")))?)
    };
    let app = App::open(config).await?;
    if !arguments.dry_run && !global.yes {
        nobody_would_act(&app).await?;
    }
    let mode = if arguments.dry_run { ImportMode::DryRun } else { ImportMode::Write };
    let progress = shown(global, if arguments.dry_run { "checked" } else { "imported" });
    let imported = match file {
        Some(file) => {
            let from = tokio::io::BufReader::with_capacity(READ_AHEAD, file);
            app.store.import(from, mode, progress).await
        }
        None => {
            let from = tokio::io::BufReader::with_capacity(READ_AHEAD, tokio::io::stdin());
            app.store.import(from, mode, progress).await
        }
    };
    app.store.close().await;
    told_imported(global, &imported.map_err(of_import)?, mode)
}

/// What was not imported is not in the log then, whatever is appended after it.
async fn abandon(config: &Config, global: &Global) -> Result<(), Exit> {
    let app = App::open(config).await?;
    if !app.store.import_is_under_way().await? {
        app.store.close().await;
        return Err(Exit::new(Code::Conflict, "no import is under way or broke off"));
    }
    let end = app.store.head().await?.position;
    confirm(global, &format!("giving the import up leaves a log that ends at position {end}"))?;
    let given_up = app.store.abandon_import().await;
    app.store.close().await;
    given_up?;
    if global.output.is_json() {
        return json("herald.store.import/1", &value!({ "abandoned": true, "head": end.to_string() }));
    }
    line(&format!("Gave the import up; the log ends at position {end}."));
    Ok(())
}

/// Who was set up from now on takes imported events for new ones, and may send mail about them.
async fn nobody_would_act(app: &App) -> Result<(), Exit> {
    let all = app.engine.status(&Criteria::all()).await?;
    let from_now = all.iter().map(|overview| &overview.subscription);
    let from_now = from_now
        .filter(|subscription| subscription.run_mode == RunMode::FromNow && subscription.position.is_some());
    let ids: Vec<&str> = from_now.map(|subscription| subscription.id.as_str()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let ids = ids.join(", ");
    Err(Exit::new(
        Code::Usage,
        format!("{ids} would take the imported events for new ones and act on them, and that needs confirmation"),
    )
    .with_hint(
        "import into a store made by `herald store migrate`, and run `herald store setup` afterwards; or add --yes",
    ))
}

fn told_imported(global: &Global, imported: &Imported, mode: ImportMode) -> Result<(), Exit> {
    let dry_run = mode == ImportMode::DryRun;
    if global.output.is_json() {
        let data = value!({
            "events": imported.events.to_string(),
            "known": imported.known.to_string(),
            "streams": imported.streams.to_string(),
            "holes": imported.holes.to_string(),
            "head": imported.head.to_string(),
            "dry_run": dry_run,
        });
        return json("herald.store.import/1", &data);
    }
    let known =
        if imported.known > 0 { format!(" ({} were there already)", imported.known) } else { String::new() };
    let Imported { events, head, .. } = imported;
    if dry_run {
        line(&format!(
            "The file is whole, and {events} event(s) would be imported{known}; nothing was kept."
        ));
        return Ok(());
    }
    line(&format!("Imported {events} event(s){known}; the log ends at position {head}."));
    note("next:  herald store setup   (sets the subscribers up), then herald worker");
    Ok(())
}

/// Shows how far it has come, to people.
fn shown(global: &Global, what: &'static str) -> impl FnMut(ExchangeProgress) + Send + use<> {
    let mut progress = (!global.output.is_json()).then(|| Progress::new(what));
    move |at| {
        let Some(progress) = &mut progress else { return };
        let since = |position: Position| u64::try_from(position.0 - at.after.0).unwrap_or(0);
        progress.show(since(at.position), since(at.head), at.events);
    }
}

fn of_export(error: ExportError) -> Exit {
    let code = match &error {
        ExportError::NotSetUp => Code::NotFound,
        ExportError::BeyondTheEnd { .. } => Code::Usage,
        ExportError::CannotResume(_) => Code::Conflict,
        ExportError::File(error) => code_of_file(error),
        _ => {
            return match error {
                ExportError::Read(error) => Exit::from(error),
                error => Exit::from(error),
            };
        }
    };
    Exit::new(code, messages(&error).join(": "))
}

fn of_import(error: ImportError) -> Exit {
    let code = match &error {
        ImportError::NotSetUp => Code::NotFound,
        ImportError::OtherLog(_) | ImportError::TestClock { .. } | ImportError::Interfered(_) => {
            Code::Conflict
        }
        ImportError::Read(_) => Code::Failed,
        _ => return Exit::from(error),
    };
    Exit::new(code, messages(&error).join(": "))
}

pub(super) fn code_of_file(error: &FileError) -> Code {
    match error {
        FileError::Exists(_) | FileError::PartExists(_) => Code::Conflict,
        FileError::InUse(_) => Code::Busy,
        FileError::Refused(..) => Code::Failed,
    }
}
