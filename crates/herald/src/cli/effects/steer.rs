//! `herald effects retry|hold|release|discard`: what an operator decides, for effects that are named or selected.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use subscription_engine::{EffectFilter, EffectOutcome, EffectRecord, EffectState, EffectStatus, Hold};
use uuid::Uuid;

use super::Filter;
use crate::app::App;
use crate::cli::Global;
use crate::cli::confirm::confirm;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

/// Effects that are looked up at a time.
const PAGE: u32 = 1_000;
/// How often it is said how far long work is.
const PROGRESS: Duration = Duration::from_secs(10);

/// Which effects; they must be named, or selected by a flag. Unless --state says otherwise, a selection takes the
/// states that the command is for.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["ids", "state", "kind", "destination", "subscription", "all"])))]
pub(crate) struct Which {
    /// These ids
    #[arg(value_parser = super::parse_id, conflicts_with_all = ["state", "kind", "destination", "subscription", "all"])]
    ids: Vec<Uuid>,
    #[command(flatten)]
    filter: Filter,
    /// Every effect that the command is for
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Retry,
    Hold,
    Release,
    Discard,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Discard => "discard",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Hold => "held",
            Self::Release => "released",
            Self::Discard => "discarded",
        }
    }

    /// What may follow.
    fn next(self, id: Uuid) -> String {
        match self {
            Self::Retry | Self::Release => {
                format!("A worker sends it while its subscription is active. See: herald effects show {id}")
            }
            Self::Hold => format!("To let it go: herald effects release {id}"),
            Self::Discard => format!("What was said of it is kept: herald effects show {id}"),
        }
    }

    /// The state that a selection takes.
    fn takes(self) -> EffectStatus {
        match self {
            Self::Retry => EffectStatus::Failed,
            Self::Hold => EffectStatus::Pending,
            Self::Release | Self::Discard => EffectStatus::Held,
        }
    }
}

/// How many of them nobody knows of whether they arrived.
async fn count_in_doubt(app: &App, ids: &[Uuid]) -> Result<usize, Exit> {
    let mut count = 0;
    for id in ids {
        let found = app.engine.effect(*id).await?;
        let is_in_doubt =
            |record: &EffectRecord| matches!(record.state, EffectState::Held { hold: Hold::InDoubt });
        count += usize::from(found.is_some_and(|(record, _)| is_in_doubt(&record)));
    }
    Ok(count)
}

#[derive(Serialize)]
struct Told {
    id: Uuid,
    outcome: String,
    done: bool,
}

pub(super) async fn run(app: &App, global: &Global, verb: Verb, which: Which, who: &str) -> Result<(), Exit> {
    let is_selection = which.ids.is_empty();
    let ids = if is_selection { select(app, verb, which.filter).await? } else { which.ids };
    if verb == Verb::Discard && !ids.is_empty() {
        let what = format!("discarding {} effect(s), which are never sent then", ids.len());
        confirm(global, &what)?;
    }
    if verb == Verb::Release {
        let in_doubt = count_in_doubt(app, &ids).await?;
        if in_doubt > 0 {
            let what = format!("releasing {in_doubt} effect(s) that may have arrived sends them once more");
            confirm(global, &what)?;
        }
    }
    let reason = global.reason.clone().unwrap_or_else(|| format!("{} by {who}", verb.done()));
    let (mut told, mut worst) = (Vec::with_capacity(ids.len()), None);
    let mut said = Instant::now();
    for (index, id) in ids.iter().enumerate() {
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            note(&format!("{index} of {} effects", ids.len()));
        }
        let engine = &app.engine;
        let outcome = match verb {
            Verb::Retry => engine.retry_effect(*id, &reason).await?,
            Verb::Hold => engine.hold_effect(*id, &reason).await?,
            Verb::Release => engine.release_effect(*id, &reason).await?,
            Verb::Discard => engine.discard_effect(*id, &reason).await?,
        };
        if let (Verb::Discard, EffectOutcome::Became(record)) = (verb, &outcome)
            && !engine.delivers(&record.effect.kind)
        {
            let kind = &record.effect.kind;
            note(&format!(
                "{id}: nothing here delivers {kind}, so no event in the log says that it is discarded"
            ));
        }
        let code = code_of(&outcome);
        worst = worst.or(code);
        told.push(Told { id: *id, outcome: text_of(&outcome), done: code.is_none() });
    }
    if global.output.is_json() {
        json(&format!("herald.effects.{}/1", verb.word()), &told)?;
    } else {
        told.iter().for_each(|told| line(&format!("{}: {}", told.id, told.outcome)));
        if told.is_empty() {
            note(&format!("nothing to {}", verb.word()));
        }
    }
    if let Some(first) = told.iter().find(|told| told.done) {
        note(&verb.next(first.id));
    }
    let Some(code) = worst else { return Ok(()) };
    let undone: Vec<Told> = told.into_iter().filter(|told| !told.done).collect();
    let hint = undone.first().map(|first| format!("see `herald effects show {}`", first.id));
    let exit = Exit::not_done(code, undone.into_iter().map(|told| (told.id.to_string(), told.outcome)));
    Err(exit.with_hint(hint.unwrap_or_default()))
}

/// The ids of a selection, the oldest first.
async fn select(app: &App, verb: Verb, filter: Filter) -> Result<Vec<Uuid>, Exit> {
    let filter = EffectFilter::from(filter);
    let filter = EffectFilter { status: Some(filter.status.unwrap_or(verb.takes())), ..filter };
    let (mut ids, mut before) = (Vec::new(), None);
    loop {
        let page = app.engine.effects(&filter, before, PAGE).await?;
        let Some(last) = page.last() else { break };
        before = Some(last.number);
        ids.extend(page.iter().map(|record| record.effect.id));
    }
    ids.reverse();
    Ok(ids)
}

fn text_of(outcome: &EffectOutcome) -> String {
    match outcome {
        EffectOutcome::Became(record) => match record.state.status() {
            EffectStatus::Sending => "is being sent; held if that does not end it".to_owned(),
            status => format!("is {status}"),
        },
        EffectOutcome::Refused { why } => why.clone(),
        EffectOutcome::Busy => "a worker has it; try again".to_owned(),
        EffectOutcome::Gone => "there is no such effect".to_owned(),
    }
}

fn code_of(outcome: &EffectOutcome) -> Option<Code> {
    match outcome {
        EffectOutcome::Became(_) => None,
        EffectOutcome::Refused { .. } => Some(Code::Conflict),
        EffectOutcome::Busy => Some(Code::Busy),
        EffectOutcome::Gone => Some(Code::NotFound),
    }
}
