//! `herald effects show`: one effect, and everything that was tried.

use serde::Serialize;
use store::Timestamp;
use subscription_engine::{EffectHistoryLine, EffectRecord, EffectState, EffectStatus, Hold};
use uuid::Uuid;

use super::Row;
use crate::app::App;
use crate::cli::Global;
use crate::commands::with_flags;
use crate::exit::{Code, Exit};
use crate::output::{json, line, moment};

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    row: Row,
    key: &'a str,
    body: &'a str,
    cause_id: Uuid,
    cause_position: String,
    correlation_id: Option<&'a str>,
    explanation: Option<String>,
    history: Vec<Past<'a>>,
    next: Vec<String>,
}

#[derive(Serialize)]
struct Past<'a> {
    at: Timestamp,
    attempt: i32,
    what: &'a str,
    why: &'a str,
    who: &'a str,
}

pub(super) async fn run(app: &App, global: &Global, id: Uuid) -> Result<(), Exit> {
    let Some((record, history)) = app.engine.effect(id).await? else {
        return Err(Exit::new(Code::NotFound, format!("there is no effect {id}"))
            .with_hint("see `herald effects list`"));
    };
    let explanation = explanation(app, &record, app.store.clock().now().await?);
    if global.output.is_json() {
        return json("herald.effects.show/1", &shown(&record, &history, explanation));
    }
    let effect = &record.effect;
    line(&format!("{id}    {} · {}", effect.kind, effect.destination));
    field("state", &state(&record));
    if let Some(text) = &explanation {
        field("", text);
    }
    field("planned by", &format!("{} at position {}", effect.subscription_id, effect.cause_position));
    field("cause", &format!("{}   recorded {}", effect.cause_id, moment(effect.caused_at)));
    if let Some(correlation_id) = &effect.correlation_id {
        field("correlation", correlation_id);
    }
    field("key", &effect.key);
    field("attempts", &format!("{}, of which {} count against its retries", effect.attempt, record.failures));
    for (index, past) in history.iter().enumerate() {
        let why = if past.why.is_empty() { String::new() } else { format!(": {}", past.why) };
        let text =
            format!("{}  attempt {}  {}{why} ({})", moment(past.at), past.attempt, past.what, past.who);
        field(if index == 0 { "history" } else { "" }, &text);
    }
    for (index, command) in next(&record).iter().enumerate() {
        field(if index == 0 { "next" } else { "" }, command);
    }
    field("body", &effect.body);
    Ok(())
}

fn shown<'a>(
    record: &'a EffectRecord,
    history: &'a [EffectHistoryLine],
    explanation: Option<String>,
) -> Shown<'a> {
    let effect = &record.effect;
    let past = |line: &'a EffectHistoryLine| Past {
        at: line.at,
        attempt: line.attempt,
        what: &line.what,
        why: &line.why,
        who: &line.who,
    };
    Shown {
        row: record.into(),
        key: &effect.key,
        body: &effect.body,
        cause_id: effect.cause_id,
        cause_position: effect.cause_position.to_string(),
        correlation_id: effect.correlation_id.as_deref(),
        explanation,
        history: history.iter().map(past).collect(),
        next: next(record),
    }
}

fn field(name: &str, text: &str) {
    line(&format!("{name:<11} {text}"));
}

/// The state with what was last said of it.
fn state(record: &EffectRecord) -> String {
    let status = record.state.status();
    let why = if record.why.is_empty() { String::new() } else { format!(": {}", record.why) };
    match record.state {
        EffectState::Pending => format!("{status}, due {}{why}", moment(record.due_at)),
        EffectState::Sending { sending, hold } => {
            let hold =
                hold.map_or_else(String::new, |hold| format!(", and held if that does not end it ({hold})"));
            format!("{status}: attempt {} since {}{hold}", record.effect.attempt, moment(sending.since))
        }
        EffectState::Held { hold } => format!("{status} ({hold}){why}"),
        _ => format!("{status} since {}{why}", moment(record.changed_at)),
    }
}

/// What the state does not say by itself.
fn explanation(app: &App, record: &EffectRecord, now: Timestamp) -> Option<String> {
    let kind = &record.effect.kind;
    match record.state {
        EffectState::Sending { sending, .. } if now >= sending.until => Some(format!(
            "In doubt: no answer was written down by {}, so it may have arrived or not. The next worker that delivers \
             {kind} resends or holds it, as its kind wants; hold or discard it to decide yourself.",
            moment(sending.until)
        )),
        EffectState::Sending { sending, .. } => Some(format!(
            "Its worker has until {} to write the answer down. If it died, the effect is in doubt from then on: it may \
             have arrived, and it is resent or held as its kind wants.",
            moment(sending.until)
        )),
        EffectState::Held { hold: Hold::InDoubt } => Some(
            "Nobody knows whether it arrived. Ask the receiver, by its key: then release it to send it again, or \
             discard it."
                .to_owned(),
        ),
        EffectState::Pending if !app.engine.delivers(kind) => {
            Some(format!("This program delivers nothing of kind {kind}: another one has to."))
        }
        _ => None,
    }
}

/// What to type next.
fn next(record: &EffectRecord) -> Vec<String> {
    next_for_state(record).iter().map(|command| with_flags(command).into_owned()).collect()
}

fn next_for_state(record: &EffectRecord) -> Vec<String> {
    let (id, subscription) = (record.effect.id, &record.effect.subscription_id);
    match record.state.status() {
        EffectStatus::Pending => vec![
            format!("herald sub show {subscription}        (it is sent while that is active)"),
            format!("herald effects retry {id}        (to send it at once)"),
            format!("herald effects hold {id}        (to keep it back)"),
        ],
        EffectStatus::Held => vec![
            format!("herald effects release {id}          # to send it"),
            format!("herald effects discard {id}        (to give it up)"),
        ],
        EffectStatus::Failed => vec![
            format!("herald effects retry {id}   # after a fix"),
            format!("herald effects discard {id}        (to give it up)"),
        ],
        EffectStatus::Sending | EffectStatus::Done | EffectStatus::Unwanted | EffectStatus::Discarded => {
            Vec::new()
        }
    }
}
