//! `herald projection`: the tutorial's words for projectors.

use clap::Subcommand;
use serde::Serialize;
use store::Position;
use subscription_engine::{Definition, Kind, Outcome};

use crate::app::App;
use crate::cli::store::rule;
use crate::cli::{Global, outcome_text};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the projections
    #[command(after_help = "Example:\n  herald projection list")]
    List,
    /// Build a projection anew from the first event on; its table is empty meanwhile
    #[command(after_help = "Example:\n  herald projection replay inbox")]
    Replay {
        /// Its name, with or without the package
        projection: String,
    },
    /// Build every projection anew, one after the other; what takes actions is left alone
    #[command(after_help = "Example:\n  herald projection replayall")]
    Replayall,
}

/// The progress bar is this wide.
const BAR: usize = 28;

#[derive(Serialize)]
struct Projection {
    id: String,
    identifier: &'static str,
    package: &'static str,
    name: &'static str,
    class: String,
}

pub(crate) async fn run(config: &Config, global: &Global, command: Command) -> Result<(), Exit> {
    match command {
        // The projections are code: no database is needed to list them.
        Command::List => list(global),
        Command::Replay { projection } => {
            let projection = resolve(&projection)?;
            let app = App::open(config).await?;
            let replayed = replay(&app, global, &projection).await;
            app.store.close().await;
            let events = replayed?.to_string();
            if global.output.is_json() {
                let data = serde_json::json!({ "projection": projection.identifier, "events": events });
                return json("herald.projection.replay/1", &data);
            }
            Ok(())
        }
        Command::Replayall => replay_all(config, global).await,
    }
}

fn projections() -> Vec<Projection> {
    let definitions = notification_subscribers::subscribers();
    let mut projections: Vec<Projection> =
        definitions.iter().filter_map(|subscriber| describe(&subscriber.definition())).collect();
    projections.sort_by_key(|projection| projection.identifier);
    projections
}

fn describe(definition: &Definition) -> Option<Projection> {
    let identifier = definition.projection()?;
    let (package, name) = identifier.split_once(':')?;
    let namespace: Vec<String> = package.split('.').map(capitalised).collect();
    let class: String = name.split('-').map(capitalised).collect();
    let class = format!("{}\\{class}Projector", namespace.join("\\"));
    Some(Projection { id: definition.id().to_owned(), identifier, package, name, class })
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn list(global: &Global) -> Result<(), Exit> {
    let projections = projections();
    if global.output.is_json() {
        return json("herald.projection.list/1", &projections);
    }
    line(&match projections.len() {
        1 => "There is one projection configured:".to_owned(),
        count => format!("There are {count} projections configured:"),
    });
    let mut package = "";
    for projection in &projections {
        if projection.package != package {
            package = projection.package;
            line("");
            line(&format!("PACKAGE \"{}\":", package.to_uppercase()));
            line(&rule());
        }
        line(&format!("  {:<40}{}", projection.name, projection.class));
    }
    Ok(())
}

/// Says on stderr how far a replay has come, now and then.
pub(crate) fn progress_of(name: &str) -> impl FnMut(Position, Position) {
    let mut shown = 0;
    move |position, head| {
        let percent = if head.0 > 0 { position.0 * 100 / head.0 } else { 100 };
        if percent >= shown + 5 && percent < 100 {
            shown = percent;
            note(&format!("{name} {percent} % {position}/{head}"));
        }
    }
}

/// All of them, even where one fails; the first failure is told at the end.
async fn replay_all(config: &Config, global: &Global) -> Result<(), Exit> {
    let app = App::open(config).await?;
    let (mut events, mut failed) = (0, None);
    let mut replayed = Vec::new();
    for projection in projections() {
        match replay(&app, global, &projection).await {
            Ok(count) => {
                events += count;
                let count = count.to_string();
                replayed.push(serde_json::json!({ "projection": projection.identifier, "events": count }));
            }
            Err(exit) => {
                note(&format!("{}: {exit}", projection.name));
                failed.get_or_insert(exit);
            }
        }
    }
    app.store.close().await;
    if let Some(exit) = failed {
        return Err(exit);
    }
    if global.output.is_json() {
        return json("herald.projection.replayall/1", &replayed);
    }
    line(&format!("Replayed {events} event(s) for {} projection(s).", replayed.len()));
    Ok(())
}

/// Replays one, and says how many events that were.
async fn replay(app: &App, global: &Global, projection: &Projection) -> Result<u64, Exit> {
    let quiet = global.output.is_json();
    if !quiet {
        line(&format!("Replaying events for projection \"{}\" ...", projection.identifier));
    }
    warn_of_replay(app, &projection.id).await?;
    let reason = global.reason.as_deref().unwrap_or("replayed");
    let outcome = app.engine.replay(&projection.id, reason, progress_of(projection.name)).await?;
    match outcome {
        Outcome::CaughtUp { events } | Outcome::Parked { events, .. } if quiet => Ok(events),
        Outcome::Parked { events, parked, .. } => {
            line(&format!("Replayed {events} event(s), {} of them dead letters.", parked.letters));
            note(&format!("See them: herald dlq list {}", projection.id));
            Ok(events)
        }
        Outcome::CaughtUp { events } => {
            line(&format!("{events:>5} [{}]", "=".repeat(BAR)));
            line(&format!("Replayed {events} event(s)."));
            Ok(events)
        }
        Outcome::Busy => {
            Err(Exit::new(Code::Busy, "another worker has the projection").with_hint("try again"))
        }
        outcome => Err(Exit::new(Code::Failed, outcome_text(&outcome))
            .with_hint(format!("see `herald sub show {}`", projection.id))),
    }
}

/// Lines of history that are looked through for decisions of operators.
const HISTORY: i64 = 10_000;

/// Says what readers see meanwhile, and which events somebody had decided not to handle.
async fn warn_of_replay(app: &App, id: &str) -> Result<(), Exit> {
    note("Until it is done, readers see a table that is empty or not complete.");
    let history = app.engine.history(id, HISTORY).await?;
    let decided: Vec<&str> = history
        .iter()
        .filter(|past| {
            past.why.starts_with("skipped position ") || past.why.starts_with("discarded the dead letter")
        })
        .map(|past| past.why.as_str())
        .collect();
    if let Some(last) = decided.last() {
        note(&format!(
            "warning: it meets {} event(s) again that were skipped or discarded, the last: {last}",
            decided.len()
        ));
    }
    Ok(())
}

/// By short name, full name or subscription id. What takes actions cannot be replayed.
fn resolve(name: &str) -> Result<Projection, Exit> {
    let is_named = |projection: &Projection| {
        name == projection.name || name == projection.id || name.eq_ignore_ascii_case(projection.identifier)
    };
    if let Some(projection) = projections().into_iter().find(is_named) {
        return Ok(projection);
    }
    let is_processor = notification_subscribers::subscribers()
        .iter()
        .map(|subscriber| subscriber.definition())
        .any(|definition| definition.id() == name && definition.kind() != Kind::Projector);
    if is_processor {
        return Err(Exit::refusal(format!(
            "{name} takes actions and cannot be replayed: they would be repeated"
        )));
    }
    Err(Exit::refusal(format!("There is no projection \"{name}\"")).with_hint("see `herald projection list`"))
}
