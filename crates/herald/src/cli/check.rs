//! `herald check`: one answer for monitoring, derived from progress. Writes nothing.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use store::Timestamp;
use subscription_engine::{Criteria, Overview};

use crate::app::App;
use crate::cli::findings::{self, Finding, Severity};
use crate::cli::next::next;
use crate::cli::{Global, parse_duration};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{duration, json, line};

pub(crate) const HELP: &str = "A problem is a subscription that failed, is stalled, has nobody to run it, or is beyond a limit that was \
    given. What a person stopped, a definition that has changed without a new id, \
    and dead letters without a limit are warnings. Exit code 7 if there is a problem. In the \
    format nagios the exit codes are those of a plugin: 0 ok, 1 warning, 2 critical, 3 unknown.\n\n\
    Examples:\n  herald check\n  herald check --max-lag 30s --max-dead-letters 0\n  herald check --format nagios --max-lag-events 10000";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for each finding.
    Text,
    /// One JSON document.
    Json,
    /// One line with figures, as monitoring plugins write it.
    Nagios,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// No event may wait longer than this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_lag: Option<Duration>,
    /// No subscription may be more positions behind than this
    #[arg(long, value_name = "EVENTS")]
    max_lag_events: Option<u64>,
    /// There may be no more dead letters than this, of all subscriptions together
    #[arg(long, value_name = "LETTERS")]
    max_dead_letters: Option<u64>,
    /// The form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// What was found, and the figures that people watch.
#[derive(Debug, Serialize)]
struct Checked {
    verdict: &'static str,
    subscriptions: usize,
    findings: Vec<Finding>,
    worst_lag: String,
    /// None where something waits and nobody can tell since when.
    worst_lag_seconds: Option<u64>,
    dead_letters: String,
    workers: usize,
}

pub(super) async fn run(
    config: Result<Config, Exit>,
    global: &Global,
    arguments: &Arguments,
) -> Result<u8, Exit> {
    let format = if global.output.is_json() { Format::Json } else { arguments.format };
    if global.output.is_json() && arguments.format == Format::Nagios {
        return Ok(unknown(
            "--format nagios and --output json cannot be had together; leave one of them out",
        ));
    }
    let checked = match config {
        Ok(config) => look(&config, arguments).await,
        Err(exit) => Err(exit),
    };
    match (checked, format) {
        (Ok(checked), Format::Nagios) => Ok(nagios(&checked)),
        (Err(exit), Format::Nagios) => Ok(unknown(&exit.to_string())),
        (Err(exit), Format::Json) => Ok(exit.report(true)),
        (Err(exit), Format::Text) => Err(exit),
        (Ok(checked), Format::Json) => {
            json("herald.check/1", &checked)?;
            Ok(if problems(&checked) > 0 { Code::CheckFailed as u8 } else { 0 })
        }
        (Ok(checked), Format::Text) => text(&checked),
    }
}

async fn look(config: &Config, arguments: &Arguments) -> Result<Checked, Exit> {
    let app = App::open_to_look(config).await?;
    let overviews = app.engine.status(&Criteria::all()).await?;
    let now = app.store.clock().now().await?;
    let workers = app.engine.live_workers().await?.len();
    let mut findings = findings::of_store(&app.store);
    app.store.close().await;
    findings.extend(overviews.iter().flat_map(|overview| found(overview, now, arguments)));
    let letters: u64 = overviews.iter().map(|overview| overview.subscription.letters.open).sum();
    let of_letters = match arguments.max_dead_letters {
        Some(max) if letters > max => {
            Some((Severity::Problem, format!("{letters} dead letter(s), more than {max}")))
        }
        None if letters > 0 => {
            Some((Severity::Warning, format!("{letters} dead letter(s): see `herald dlq list`")))
        }
        _ => None,
    };
    findings.extend(of_letters.map(|(severity, what)| Finding {
        severity,
        subscription: None,
        what,
        next: next("herald dlq list"),
    }));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let verdict = match findings.first().map(|finding| finding.severity) {
        None => "ok",
        Some(Severity::Warning) => "warning",
        Some(Severity::Problem) => "problem",
    };
    Ok(Checked {
        verdict,
        subscriptions: overviews.len(),
        findings,
        worst_lag: overviews.iter().map(|overview| overview.lag).max().unwrap_or(0).to_string(),
        worst_lag_seconds: worst_wait(&overviews, now),
        dead_letters: letters.to_string(),
        workers,
    })
}

/// How long the next event has waited.
fn waits(overview: &Overview, now: Timestamp) -> Option<Duration> {
    overview.waiting_since.map(|since| now.since(since))
}

/// How long the event has waited that has waited longest.
fn worst_wait(overviews: &[Overview], now: Timestamp) -> Option<u64> {
    let longest = overviews.iter().filter_map(|one| waits(one, now)).max();
    match longest {
        Some(longest) => Some(longest.as_secs()),
        None if overviews.iter().any(|one| one.lag > 0) => None,
        None => Some(0),
    }
}

/// What is wrong with one subscription: how it gets on, and which limits it is beyond.
fn found(overview: &Overview, now: Timestamp, arguments: &Arguments) -> Vec<Finding> {
    let id = &overview.subscription.id;
    let mut found: Vec<Finding> = findings::of_subscription(overview, now).into_iter().collect();
    let held = [
        (overview.timers.held, "timer", format!("herald sub timers {id}")),
        (overview.effects.held, "effect", format!("herald effects list --state held --subscription {id}")),
    ];
    for (count, what, command) in held.into_iter().filter(|held| held.0 > 0) {
        let (subscription, what) = (Some(id.clone()), format!("{count} {what}(s) are held"));
        found.push(Finding { severity: Severity::Warning, subscription, what, next: next(command) });
    }
    let mut add = |severity, what: String| {
        let next = next(format!("herald sub show {id}"));
        found.push(Finding { severity, subscription: Some(id.clone()), what, next });
    };
    if let (Some(max), Some(waits)) = (arguments.max_lag, waits(overview, now))
        && waits > max
    {
        let what = format!("an event has waited for {}, longer than {}", duration(waits), duration(max));
        add(Severity::Problem, what);
    }
    if !overview.changes.is_empty() {
        add(Severity::Warning, format!("its definition has changed: {}", overview.changes.join("; ")));
    }
    let lag = overview.lag.unsigned_abs();
    if let Some(max) = arguments.max_lag_events
        && lag > max
    {
        add(Severity::Problem, format!("{lag} positions behind, more than {max}"));
    }
    found
}

fn problems(checked: &Checked) -> usize {
    checked.findings.iter().filter(|finding| finding.severity == Severity::Problem).count()
}

fn text(checked: &Checked) -> Result<u8, Exit> {
    for finding in &checked.findings {
        let word = if finding.severity == Severity::Problem { "PROBLEM" } else { "warning" };
        line(&format!("{word:<8} {}", finding.sentence()));
        line(&format!("{:<8} → {}", "", finding.next));
    }
    match problems(checked) {
        0 => {
            let count = checked.subscriptions;
            line(&format!(
                "ok       {count} subscription(s), at most {} position(s) behind",
                checked.worst_lag
            ));
            Ok(0)
        }
        1 => Err(Exit::new(Code::CheckFailed, "there is a problem").with_hint("see `herald status`")),
        many => Err(Exit::new(Code::CheckFailed, format!("there are {many} problems"))
            .with_hint("see `herald status`")),
    }
}

/// One line, as monitoring reads it; answers with the exit code that it reads.
fn nagios(checked: &Checked) -> u8 {
    let (word, code) = match checked.verdict {
        "ok" => ("OK", 0),
        "warning" => ("WARNING", 1),
        _ => ("CRITICAL", 2),
    };
    let what = match checked.findings.as_slice() {
        [] => format!("{} subscription(s)", checked.subscriptions),
        findings => findings.iter().map(Finding::sentence).collect::<Vec<_>>().join("; "),
    };
    // What stands behind the bar is for machines: U is a figure that cannot be told.
    let seconds = checked.worst_lag_seconds.map_or_else(|| "U".to_owned(), |seconds| format!("{seconds}s"));
    let figures = format!(
        "lag={} lag_seconds={} dead_letters={} workers={} problems={}",
        checked.worst_lag,
        seconds,
        checked.dead_letters,
        checked.workers,
        problems(checked)
    );
    line(&format!("HERALD {word} - {} | {figures}", plugin_text(&what)));
    code
}

/// The answer of a plugin that could not look; answers with its exit code.
pub(crate) fn unknown(why: &str) -> u8 {
    line(&format!("HERALD UNKNOWN - {}", plugin_text(why.trim_start_matches("error: "))));
    3
}

/// Whether words that were not understood as a whole ask for the answer of a plugin: its exit codes are others.
pub(crate) fn wants_plugin(words: &[OsString]) -> bool {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let asks = words.windows(2).any(|pair| pair == ["--format", "nagios"]);
    words.contains(&"check") && (asks || words.contains(&"--format=nagios"))
}

/// Text that a monitoring server takes for one line, and for no figures.
fn plugin_text(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/")
}
