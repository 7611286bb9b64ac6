//! `herald doctor`: everything that an operator would look at, at once, each with what to do next.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use store::{Database, Schema, Store, StoreError, Verify};
use subscription_engine::{Criteria, Overview, State, WORKER_SILENCE};

use crate::app::{App, connect_to_look};
use crate::cli::Global;
use crate::cli::findings::{self, Severity};
use crate::cli::store::verify;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{Format, duration, line, list};

pub(crate) const HELP: &str = "Writes nothing. Exit code 7 if there is a problem; a warning alone is none.\n\n\
    Examples:\n  herald doctor\n  herald doctor -o json";

/// A database that takes longer than this to answer is worth a word.
const SLOW_ANSWER: Duration = Duration::from_millis(250);
/// Clocks that differ by more than this make times in histories hard to compare …
const SKEW: Duration = Duration::from_secs(1);
/// Less space than this on the disk of an SQLite file is soon used up …
const LITTLE_SPACE: u64 = 1024 * 1024 * 1024;
/// … and with less than this an append may fail at any time.
const NO_SPACE: u64 = 64 * 1024 * 1024;
/// Whoever writes to an SQLite file is done within a moment; longer than this it is worth a word.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// So many findings of one kind are shown.
const SHOWN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Problem,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Checked {
    check: &'static str,
    verdict: Verdict,
    what: String,
    next: Option<String>,
}

fn fine(check: &'static str, what: impl Into<String>) -> Checked {
    Checked { check, verdict: Verdict::Ok, what: what.into(), next: None }
}

fn warning(check: &'static str, what: impl Into<String>, next: &str) -> Checked {
    Checked { check, verdict: Verdict::Warning, what: what.into(), next: Some(next.to_owned()) }
}

fn problem(check: &'static str, what: impl Into<String>, next: impl Into<String>) -> Checked {
    Checked { check, verdict: Verdict::Problem, what: what.into(), next: Some(next.into()) }
}

pub(super) async fn run(config: &Config, global: &Global) -> Result<(), Exit> {
    let mut checked = Vec::new();
    if let Err(exit) = look(config, &mut checked).await {
        // What comes after it cannot be looked at.
        let next = exit.hint().unwrap_or("see `herald store status`");
        checked.push(problem("database", exit.to_string(), next));
    }
    if global.output == Format::Table {
        checked.iter().for_each(show);
    } else {
        let header = ["CHECK", "VERDICT", "WHAT", "NEXT"];
        list(global.output, global.no_header, "herald.doctor/1", &header, &checked, None, |row| {
            let next = row.next.clone().unwrap_or_default();
            vec![row.check.to_owned(), row.verdict.word().to_owned(), row.what.clone(), next]
        })?;
    }
    match checked.iter().filter(|row| row.verdict == Verdict::Problem).count() {
        0 => Ok(()),
        1 => Err(Exit::new(Code::CheckFailed, "there is a problem")),
        many => Err(Exit::new(Code::CheckFailed, format!("there are {many} problems"))),
    }
}

/// A sentence can be long: what to do stands below it.
fn show(checked: &Checked) {
    line(&format!("{:<8} {:<14} {}", checked.verdict.word(), checked.check, checked.what));
    if let Some(next) = &checked.next {
        line(&format!("{:<23} → {next}", ""));
    }
}

/// Looks at one thing after the other, as far as it gets.
async fn look(config: &Config, checked: &mut Vec<Checked>) -> Result<(), Exit> {
    let store = connect_to_look(config).await?;
    let start = Instant::now();
    let schema = store.schema().await?;
    checked.push(connection(&store, start.elapsed()));
    checked.push(match schema {
        Schema::Current => fine("schema", "up to date"),
        Schema::Missing => problem("schema", "the event store is not set up", "herald store setup"),
        Schema::Behind(count) => {
            problem("schema", format!("{count} migration(s) behind this program"), "herald store setup")
        }
        Schema::Newer(number) => problem(
            "schema",
            format!("newer than this program: it has migration {number}"),
            "use the newer program",
        ),
    });
    if schema == Schema::Current {
        checked.extend(places(&store));
        checked.extend(disk(&store).await);
        checked.extend(lock(&store).await);
        checked.push(clock(&store).await?);
        let app = App::of(config, Ok(store.clone())).await?;
        checked.push(head(&app).await?);
        checked.extend(import(&app).await?);
        checked.extend(subscriptions(&app).await?);
        checked.extend(log(&app).await?);
    }
    store.close().await;
    Ok(())
}

fn connection(store: &Store, answered_in: Duration) -> Checked {
    let target = store.database().target();
    let host = target.host.map_or_else(String::new, |host| format!(" on {host}"));
    let what = format!("{}{host} answers in {} ms", target.database, answered_in.as_millis());
    if answered_in > SLOW_ANSWER {
        return warning("connection", what, "is the server or the disk busy?");
    }
    fine("connection", what)
}

/// Where the log lives, and whether positions are drawn in order.
fn places(store: &Store) -> Vec<Checked> {
    let mut checked: Vec<Checked> = store
        .refusals()
        .iter()
        .map(|refusal| {
            let check = if matches!(refusal, StoreError::Place(_)) { "place" } else { "sequence" };
            problem(check, refusal.to_string(), findings::way_out(refusal).to_string())
        })
        .collect();
    if !store.refusals().iter().any(|refusal| matches!(refusal, StoreError::Place(_))) {
        checked.push(match store.place() {
            Some(place) => match place.epoch {
                Some(epoch) => fine("place", format!("at home in {}, epoch {epoch}", place.here)),
                None => {
                    fine("place", format!("in {}; written down by the next program that writes", place.here))
                }
            },
            None => fine("place", "not known"),
        });
    }
    checked
}

/// The space that is left for an SQLite file.
async fn disk(store: &Store) -> Option<Checked> {
    let Database::Sqlite { file, .. } = store.database() else { return None };
    let file = file.clone();
    let asked = tokio::task::spawn_blocking(move || -> std::io::Result<(u64, u64)> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let space = rustix::fs::statvfs(folder)?;
        Ok((space.f_bavail.saturating_mul(space.f_frsize), file.metadata()?.len()))
    })
    .await;
    Some(match asked {
        Ok(Ok((free, size))) => {
            let what = format!("{} free; the file has {}", bytes(free), bytes(size));
            match free {
                _ if free < NO_SPACE => problem("disk", what, "make room: an append may fail at any time"),
                _ if free < LITTLE_SPACE || free < size => {
                    warning("disk", what, "make room; a backup beside the file needs as much as the file")
                }
                _ => fine("disk", what),
            }
        }
        Ok(Err(error)) => warning("disk", format!("could not be looked at: {error}"), "df"),
        Err(error) => warning("disk", format!("could not be looked at: {error}"), "df"),
    })
}

/// Whether somebody holds on to the write lock of an SQLite file: it is asked for, and let go at once.
async fn lock(store: &Store) -> Option<Checked> {
    let Database::Sqlite { file, .. } = store.database() else { return None };
    match tokio::time::timeout(LOCK_LIMIT, store.begin()).await {
        Ok(Ok(tx)) => {
            tx.rollback().await;
            Some(fine("lock", "the file can be written to"))
        }
        // No right to write, say: who writes is told.
        Ok(Err(error)) => {
            let why = store::messages(&error).join(": ");
            Some(warning("lock", format!("the file cannot be written to: {why}"), "who may write to it?"))
        }
        Err(_) => {
            let what = format!("another program has kept the file locked for {} ms", LOCK_LIMIT.as_millis());
            let file = file.display();
            Some(warning("lock", what, &format!("fuser -v {file}; or lsof {file}")))
        }
    }
}

fn bytes(count: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    match count {
        _ if count >= 10 * 1024 * MIB => format!("{} GiB", count / (1024 * MIB)),
        _ if count >= 10 * MIB => format!("{} MiB", count / MIB),
        _ => format!("{} KiB", count / 1024),
    }
}

async fn clock(store: &Store) -> Result<Checked, Exit> {
    if store.clock().is_manual() {
        return Ok(fine("clock", "set by hand (test mode)"));
    }
    let skew = store.clock().skew_us().await?;
    let by = Duration::from_micros(skew.unsigned_abs());
    if by < SKEW {
        return Ok(fine("clock", "the database and this machine agree"));
    }
    let what = format!(
        "the database's clock is {} {} this machine's",
        duration(by),
        if skew > 0 { "ahead of" } else { "behind" }
    );
    Ok(if by < WORKER_SILENCE {
        warning("clock", what, "is the time synchronised on both (NTP)?")
    } else {
        problem("clock", what, "synchronise the time on both (NTP)")
    })
}

async fn head(app: &App) -> Result<Checked, Exit> {
    let report = app.store.explain_head().await?;
    if !report.readers_wait() {
        return Ok(fine("head", format!("everything up to position {} can be read", report.position)));
    }
    let waiting = format!("{} event(s) behind position {} wait", report.events_waiting, report.position);
    Ok(match report.holders.first() {
        Some(holder) => {
            let next = format!("herald store head; to give that append up: {}", holder.ending());
            warning("head", format!("{waiting} for {holder}"), &next)
        }
        None => warning("head", format!("{waiting} for an append under way"), "herald store head"),
    })
}

/// An import that has not come to its end keeps everybody from appending.
async fn import(app: &App) -> Result<Option<Checked>, Exit> {
    let is_under_way = app.store.import_is_under_way().await?;
    Ok(is_under_way.then(|| {
        problem(
            "import",
            "an import is under way or broke off: until it is complete nobody can append",
            "herald store import FILE with the same file; or herald store import --abandon",
        )
    }))
}

async fn subscriptions(app: &App) -> Result<Vec<Checked>, Exit> {
    let overviews = app.engine.status(&Criteria::all()).await?;
    let workers = app.engine.live_workers().await?;
    let mut checked: Vec<Checked> = Vec::new();
    let now = app.store.clock().now().await?;
    let state = |overview: &Overview| {
        let finding = findings::of_subscription(overview, now)?;
        // What is paused has a line of its own.
        if let State::Paused { .. } = overview.subscription.state {
            return None;
        }
        let what = format!("{}, {} position(s) behind", finding.sentence(), overview.lag);
        Some(match finding.severity {
            Severity::Problem => problem("subscription", what, finding.next.to_string()),
            Severity::Warning => warning("subscription", what, &finding.next.to_string()),
        })
    };
    checked.extend(overviews.iter().filter_map(state));
    checked.extend(overviews.iter().flat_map(set_aside));
    if checked.is_empty() {
        checked.push(fine("subscriptions", format!("{} without an error", overviews.len())));
    }
    checked.push(match workers.len() {
        0 => warning("workers", "none runs", "herald worker"),
        count => fine("workers", format!("{count} at work")),
    });
    Ok(checked)
}

/// What a subscription has not done and will not do by itself.
fn set_aside(overview: &Overview) -> Vec<Checked> {
    let subscription = &overview.subscription;
    let (id, effects) = (&subscription.id, &overview.effects);
    let mut checked = Vec::new();
    if let State::Paused { .. } = subscription.state {
        let what = format!("{id} is paused, {} position(s) behind", overview.lag);
        checked.push(warning("paused", what, &format!("herald sub show {id}; herald sub reactivate {id}")));
    }
    if subscription.letters.open > 0 {
        let what =
            format!("{} event(s) of {id} were set aside and are not handled", subscription.letters.open);
        checked.push(warning("dead letters", what, &format!("herald dlq list {id}")));
    }
    if effects.held > 0 {
        let what = format!("{} effect(s) of {id} are held until somebody decides", effects.held);
        let next = format!("herald effects list --state held --subscription {id}");
        checked.push(warning("effects", what, &next));
    }
    checked
}

/// The newest events, indexes and checkpoints.
async fn log(app: &App) -> Result<Vec<Checked>, Exit> {
    let what = Verify { quick: true, ..Verify::default() };
    let (sum, findings) = verify(&app.store, &app.engine, &what, |_, _| ()).await?;
    if findings.is_empty() {
        let what = format!("{} newest event(s), indexes and checkpoints are as they should be", sum.events);
        return Ok(vec![fine("log", what)]);
    }
    let shown = findings.into_iter().filter(|row| row.kind != "sequence").take(SHOWN);
    Ok(shown.map(|row| problem("log", row.what, "herald store verify")).collect())
}
