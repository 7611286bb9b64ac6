//! `herald sub timers`: what a subscription wants to be called for, and what an operator decides where that failed.

use std::str::FromStr;

use clap::Args;
use serde::Serialize;
use store::Timestamp;
use subscription_engine::{Criteria, TimerOutcome, TimerRecord};

use super::{known, outcome_text, reason_given};
use crate::app::App;
use crate::cli::{Global, code_of, confirm::confirm};
use crate::exit::{Code, Exit};
use crate::output::{json, line, list, moment, note};

/// Which timers, or which one and what is done with it.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("decision").args(["retry", "discard"]).conflicts_with_all(["after", "limit"])))]
pub(crate) struct Timers {
    /// The id of the subscription
    id: String,
    /// Have the timer of this key tried at once that has failed, whether it is held or waits
    #[arg(long, value_name = "KEY")]
    retry: Option<String>,
    /// Give the timer of this key up: it never fires
    #[arg(long, value_name = "KEY")]
    discard: Option<String>,
    /// Only those after this place, which the JSON of the last page names as `next`
    #[arg(long, value_name = "PLACE")]
    after: Option<Place>,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

impl Timers {
    /// Whether nothing is decided.
    pub(super) fn only_looks(&self) -> bool {
        self.retry.is_none() && self.discard.is_none()
    }
}

/// Where a timer stands among those of its subscription: `2026-01-01T00:00:00Z/7`.
#[derive(Clone, Copy, Debug)]
struct Place(Timestamp, i64);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(due, number)| Some((due.parse().ok()?, number.parse().ok()?)));
        let (due, number) = parts
            .ok_or("not a place; take it from `next` of the page before, such as 2026-01-01T00:00:00Z/7")?;
        Ok(Self(due, number))
    }
}

#[derive(Serialize)]
struct Row<'a> {
    number: String,
    key: &'a str,
    due: Timestamp,
    state: &'static str,
    try_at: Option<Timestamp>,
    barrier: Option<String>,
    attempt: u32,
    error: &'a [String],
    payload: &'a store::Json,
    cause_id: uuid::Uuid,
    cause_position: String,
}

impl<'a> Row<'a> {
    fn new(record: &'a TimerRecord, now: Timestamp) -> Self {
        let timer = &record.timer;
        let state = match record.try_at {
            None => "held",
            Some(_) if timer.attempt > 0 => "failing",
            Some(_) if timer.due <= now => "overdue",
            Some(_) => "pending",
        };
        Self {
            number: record.number.to_string(),
            key: &timer.key,
            due: timer.due,
            state,
            try_at: record.try_at,
            barrier: record.barrier.map(|barrier| barrier.to_string()),
            attempt: timer.attempt,
            error: &record.error,
            payload: &timer.payload,
            cause_id: timer.cause_id,
            cause_position: timer.cause_position.to_string(),
        }
    }
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Timers, who: &str) -> Result<(), Exit> {
    let id = &arguments.id;
    known(app, Criteria::id(id)).await?;
    if let Some(key) = &arguments.retry {
        let reason = global.reason.clone().unwrap_or_else(|| format!("retried by {who}"));
        let outcome = app.engine.retry_timer(id, key, &reason).await?;
        return told(global, id, key, &outcome, "is tried again");
    }
    if let Some(key) = &arguments.discard {
        let reason = reason_given(global, "discarded")?;
        confirm(global, &format!("discarding timer {key:?} of {id}"))?;
        let outcome = app.engine.discard_timer(id, key, reason).await?;
        return told(global, id, key, &outcome, "is discarded");
    }
    let after = arguments.after.map(|Place(due, number)| (due, number));
    let records = app.engine.timers(id, after, arguments.limit).await?;
    let now = app.store.clock().now().await?;
    let rows: Vec<Row<'_>> = records.iter().map(|record| Row::new(record, now)).collect();
    let is_full = rows.len() == usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let next = rows.last().filter(|_| is_full).map(|row| format!("{}/{}", row.due, row.number));
    let header = ["KEY", "DUE", "STATE", "ATTEMPTS", "CAUSE", "NOTE"];
    let schema = "herald.sub.timers/1";
    list(global.output, global.no_header, schema, &header, &rows, next.as_deref(), |row| {
        vec![
            row.key.to_owned(),
            moment(row.due),
            row.state.to_owned(),
            row.attempt.to_string(),
            row.cause_position.clone(),
            what_to_know(row),
        ]
    })?;
    if global.output.is_json() {
        return Ok(());
    }
    if let Some(next) = next {
        note(&format!("There may be more: add --after {next}"));
    }
    if rows.iter().any(|row| row.state == "held") {
        note(&format!("Some are held. After a fix: herald sub timers {id} --retry KEY"));
    }
    Ok(())
}

/// What an operator must know of it, in a few words.
fn what_to_know(row: &Row<'_>) -> String {
    let retry = row.try_at.filter(|_| row.attempt > 0).map(|at| format!("tried again at {}", moment(at)));
    let error = (!row.error.is_empty()).then(|| row.error.join(": "));
    let barrier =
        row.barrier.as_ref().filter(|_| row.attempt == 0).map(|barrier| format!("after position {barrier}"));
    [barrier, retry, error].into_iter().flatten().collect::<Vec<_>>().join(": ")
}

/// Says what came of a decision.
fn told(global: &Global, id: &str, key: &str, outcome: &TimerOutcome, done: &str) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Told<'a> {
        id: &'a str,
        key: &'a str,
        outcome: &'a str,
    }
    match outcome {
        TimerOutcome::Done if global.output.is_json() => {
            json("herald.sub.timer/1", &Told { id, key, outcome: done })
        }
        TimerOutcome::Done => {
            line(&format!("{key}: {done}"));
            Ok(())
        }
        TimerOutcome::NotThere => {
            let what = if done == "is discarded" { "no timer" } else { "no failed timer" };
            Err(Exit::new(Code::NotFound, format!("{id} has {what} {key:?}"))
                .with_hint(format!("see `herald sub timers {id}`")))
        }
        TimerOutcome::Not(outcome) => {
            Err(Exit::new(code_of(outcome).unwrap_or(Code::Failed), outcome_text(outcome)))
        }
    }
}
