//! `herald sub show`: what an operator who was woken at night reads first.

use serde::Serialize;
use store::Timestamp;
use subscription_engine::{Criteria, Failure, HistoryLine, Overview, RunMode, State, Status};

use crate::app::App;
use crate::cli::Global;
use crate::cli::sub::{of_attempts, stalled_because};
use crate::exit::{Code, Exit};
use crate::output::{duration, json, line, moment};

/// Lines of history shown.
const HISTORY: i64 = 10;

#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    group: &'a str,
    program: &'a str,
    run_mode: &'static str,
    status: Status,
    progress: &'static str,
    stalled_because: Option<String>,
    position: Option<String>,
    head: String,
    lag: String,
    dead_letters: String,
    attempt: u32,
    next_retry: Option<Timestamp>,
    failure: Option<Failed<'a>>,
    has_worker: bool,
    effects_pending: String,
    effects_held: String,
    oldest_effect: Option<Timestamp>,
    timers_pending: String,
    timers_overdue: String,
    timers_held: String,
    next_timer: Option<Timestamp>,
    history: Vec<Past<'a>>,
    next: Vec<String>,
}

#[derive(Serialize)]
struct Failed<'a> {
    chain: &'a [String],
    at: Timestamp,
    position: Option<String>,
    event_id: Option<uuid::Uuid>,
    event_type: Option<&'a str>,
    stream: Option<&'a str>,
}

impl<'a> From<&'a Failure> for Failed<'a> {
    fn from(failure: &'a Failure) -> Self {
        let event = failure.event.as_ref();
        Self {
            chain: &failure.chain,
            at: failure.at,
            position: event.map(|event| event.position.to_string()),
            event_id: event.map(|event| event.id),
            event_type: event.map(|event| event.event_type.as_str()),
            stream: event.map(|event| event.stream.as_str()),
        }
    }
}

#[derive(Serialize)]
struct Past<'a> {
    at: Timestamp,
    from: Option<&'a str>,
    to: &'a str,
    position: Option<String>,
    why: &'a str,
    who: &'a str,
}

pub(super) async fn run(app: &App, global: &Global, id: &str) -> Result<(), Exit> {
    let mut overviews = app.engine.status(&Criteria::id(id)).await?;
    if overviews.is_empty() {
        return Err(Exit::new(Code::NotFound, format!("there is no subscription {id:?}"))
            .with_hint("see `herald sub list`"));
    }
    let overview = overviews.remove(0);
    let history = app.engine.history(id, HISTORY).await?;
    let now = app.store.clock().now().await?;
    let head = app.store.head().await?.position;
    if global.output.is_json() {
        return json("herald.sub.show/1", &shown(&overview, &history, head.to_string()));
    }
    let subscription = &overview.subscription;
    let mode = match subscription.run_mode {
        RunMode::FromBeginning => "from beginning",
        RunMode::FromNow => "from now",
        RunMode::Once => "once",
    };
    line(&format!("{id}    {} · {mode}", subscription.group));
    field("status", &status(&overview, now));
    field("progress", &overview.standing.to_string());
    let position = subscription.position.map_or_else(|| "-".to_owned(), |position| position.to_string());
    let lag = match overview.waiting_since {
        Some(since) => format!("{} positions, {}", overview.lag, duration(now.since(since))),
        None => format!("{} positions", overview.lag),
    };
    field("position", &format!("{position}   head {head}   lag {lag}"));
    if subscription.letters.open > 0 {
        field("dead", &format!("{} dead letter(s), not handled", subscription.letters.open));
    }
    if let Some(oldest) = overview.effects.oldest {
        let (pending, held) = (overview.effects.pending, overview.effects.held);
        let age = duration(now.since(oldest));
        field("effects", &format!("{pending} pending, {held} held, the oldest for {age}"));
    }
    if overview.timers.pending > 0 {
        field("timers", &timers(&overview, now));
    }
    if let State::Error { failure, .. } = &subscription.state {
        show_failure(failure, now);
    }
    for (index, past) in history.iter().enumerate() {
        let from = past.from_status.as_deref().map_or_else(String::new, |from| format!("{from} → "));
        let text = format!("{}  {from}{}  {} ({})", moment(past.at), past.to_status, past.why, past.who);
        field(if index == 0 { "history" } else { "" }, &text);
    }
    for (index, command) in next(&overview).iter().enumerate() {
        field(if index == 0 { "next" } else { "" }, command);
    }
    Ok(())
}

fn shown<'a>(overview: &'a Overview, history: &'a [HistoryLine], head: String) -> Shown<'a> {
    let subscription = &overview.subscription;
    let (failure, next_retry) = match &subscription.state {
        State::Error { failure, next_retry, .. } => {
            let mut failed = Failed::from(failure);
            // Where the event could not even be read, its position is all that is known.
            failed.position = subscription.failing_position.map(|position| position.to_string());
            (Some(failed), *next_retry)
        }
        _ => (None, None),
    };
    let past = |line: &'a HistoryLine| Past {
        at: line.at,
        from: line.from_status.as_deref(),
        to: &line.to_status,
        position: line.position.map(|position| position.to_string()),
        why: &line.why,
        who: &line.who,
    };
    Shown {
        id: &subscription.id,
        group: &subscription.group,
        program: &subscription.program,
        run_mode: subscription.run_mode.word(),
        status: subscription.state.status(),
        progress: overview.standing.word(),
        stalled_because: stalled_because(overview),
        position: subscription.position.map(|position| position.to_string()),
        head,
        lag: overview.lag.to_string(),
        dead_letters: subscription.letters.open.to_string(),
        attempt: subscription.attempt,
        next_retry,
        failure,
        has_worker: overview.has_worker,
        effects_pending: overview.effects.pending.to_string(),
        effects_held: overview.effects.held.to_string(),
        oldest_effect: overview.effects.oldest,
        timers_pending: overview.timers.pending.to_string(),
        timers_overdue: overview.timers.overdue.to_string(),
        timers_held: overview.timers.held.to_string(),
        next_timer: overview.timers.next,
        history: history.iter().map(past).collect(),
        next: next(overview),
    }
}

/// How many timers there are, and when the next one may fire.
fn timers(overview: &Overview, now: Timestamp) -> String {
    let timers = overview.timers;
    let next = match timers.next {
        Some(next) if next > now => {
            format!("the next in {} (at {})", duration(next.since(now)), moment(next))
        }
        Some(next) => format!("the first since {} ago (at {})", duration(now.since(next)), moment(next)),
        None => "none to be tried".to_owned(),
    };
    format!("{} pending, {} overdue, {} held, {next}", timers.pending, timers.overdue, timers.held)
}

fn field(name: &str, text: &str) {
    line(&format!("{name:<11} {text}"));
}

/// The status with what it means right now.
fn status(overview: &Overview, now: Timestamp) -> String {
    let subscription = &overview.subscription;
    let status = subscription.state.status();
    let since = format!("since {} ago", duration(now.since(subscription.changed_at)));
    let max = overview.max_attempts.unwrap_or(0);
    match &subscription.state {
        State::Error { next_retry: None, .. } if subscription.attempt == 0 => {
            format!("{status} {since}: stopped, not tried again by itself")
        }
        State::Error { next_retry: None, .. } => {
            format!("{status} {since}: gave up, {} of {max} retries used", subscription.attempt)
        }
        State::Error { next_retry: Some(at), .. } => {
            let due = duration(at.since(now));
            format!(
                "{status} {since}: retry {}{} in {due} (at {})",
                subscription.attempt + 1,
                of_attempts(overview),
                moment(*at)
            )
        }
        State::New => "new: not set up yet".to_owned(),
        State::Active | State::Booting if !overview.has_worker => {
            format!("{status} {since}, but no worker runs it")
        }
        _ => format!("{status} {since}"),
    }
}

fn show_failure(failure: &Failure, now: Timestamp) {
    if let Some(event) = &failure.event {
        let ago = duration(now.since(failure.at));
        let text = format!("{}   {}   stream {}   {ago} ago", event.position, event.event_type, event.stream);
        field("failed on", &text);
    }
    for (depth, message) in failure.chain.iter().enumerate() {
        let arrow = if depth == 0 { String::new() } else { format!("{}└─ ", "   ".repeat(depth - 1)) };
        field(if depth == 0 { "error" } else { "" }, &format!("{arrow}{message}"));
    }
}

/// What to type next.
fn next(overview: &Overview) -> Vec<String> {
    let mut commands = next_for_state(overview);
    let id = &overview.subscription.id;
    if overview.subscription.letters.open > 0 {
        commands.push(format!("herald dlq list {id}"));
    }
    if overview.effects.held > 0 {
        commands.push(format!("herald effects list --state held --subscription {id}"));
    }
    if overview.timers.held + overview.timers.overdue > 0 {
        commands.push(format!("herald sub timers {id}"));
    }
    commands
}

fn next_for_state(overview: &Overview) -> Vec<String> {
    let id = &overview.subscription.id;
    match &overview.subscription.state {
        State::Error { failure, .. } => {
            let mut commands = Vec::new();
            match (&failure.event, overview.subscription.failing_position) {
                (Some(event), _) => commands.push(format!("herald events show {}", event.position)),
                (None, Some(position)) => commands.push(format!("herald store verify --from {position}")),
                (None, None) => {}
            }
            commands.push(format!("herald sub reactivate {id}   # after a fix"));
            if let Some(event) = &failure.event {
                let skip = format!("herald sub skip {id} {} --reason …", event.position);
                commands.push(format!("{skip}        (to go on without that event)"));
            }
            commands.push(format!("herald sub pause {id}   # to leave it alone"));
            commands
        }
        State::Paused { .. } | State::Finished => vec![format!("herald sub reactivate {id}")],
        State::Detached { .. } => {
            vec![
                format!("herald sub reactivate {id}        (if its subscriber is back)"),
                format!("herald sub remove {id}        (if it is not needed any more)"),
            ]
        }
        State::New => vec![format!("herald sub setup {id}        (a worker does it by itself)")],
        State::Active | State::Booting if !overview.has_worker => vec!["herald worker".to_owned()],
        State::Active | State::Booting => Vec::new(),
    }
}
