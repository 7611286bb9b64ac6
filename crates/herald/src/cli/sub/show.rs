//! `herald sub show`: what an operator who was woken at night reads first.

use serde::Serialize;
use store::{RawEvent, Timestamp};
use subscription_engine::{Criteria, Failure, HistoryLine, Overview, RunMode, State, Status};

use crate::app::App;
use crate::cli::Global;
use crate::cli::findings::standing_text;
use crate::cli::next::Next;
use crate::cli::sub::next::commands;
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
    definition_changes: &'a [String],
    history: Vec<Past<'a>>,
    next: Vec<Next>,
}

#[derive(Serialize)]
struct Failed<'a> {
    chain: &'a [String],
    at: Timestamp,
    position: Option<String>,
    event_id: Option<uuid::Uuid>,
    event_type: Option<String>,
    stream: Option<String>,
}

impl Failed<'_> {
    /// Says of an event that cannot be read as a whole what its row tells.
    fn fill(&mut self, row: &RawEvent) {
        let of = |column| row.valid(column).map(str::to_owned);
        self.event_id = row.valid("id").and_then(|id| id.parse().ok());
        self.event_type = of("type");
        self.stream = of("stream");
    }
}

/// The row at which it failed, where that is no event that could be read.
async fn unreadable(app: &App, overview: &Overview) -> Result<Option<RawEvent>, Exit> {
    match (&overview.subscription.state, overview.subscription.failing_position) {
        (State::Error { failure, .. }, Some(position)) if failure.event.is_none() => {
            Ok(app.store.raw_event(position).await?)
        }
        _ => Ok(None),
    }
}

impl<'a> From<&'a Failure> for Failed<'a> {
    fn from(failure: &'a Failure) -> Self {
        let event = failure.event.as_ref();
        Self {
            chain: &failure.chain,
            at: failure.at,
            position: event.map(|event| event.position.to_string()),
            event_id: event.map(|event| event.id),
            event_type: event.map(|event| event.event_type.clone()),
            stream: event.map(|event| event.stream.clone()),
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
    let next = commands(&overview, app.store.refusals());
    let unreadable = unreadable(app, &overview).await?;
    if global.output.is_json() {
        let mut shown = shown(&overview, &history, head.to_string(), now);
        shown.next = next;
        if let (Some(failure), Some(row)) = (&mut shown.failure, &unreadable) {
            failure.fill(row);
        }
        return json("herald.sub.show/1", &shown);
    }
    let subscription = &overview.subscription;
    let mode = match subscription.run_mode {
        RunMode::FromBeginning => "from beginning",
        RunMode::FromNow => "from now",
        RunMode::Once => "once",
    };
    line(&format!("{id}    {} · {mode}", subscription.group));
    field("status", &status(&overview, now));
    field("progress", &standing_text(&overview.standing, now));
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
    for (index, change) in overview.changes.iter().enumerate() {
        field(if index == 0 { "changed" } else { "" }, change);
    }
    if let State::Error { failure, .. } = &subscription.state {
        show_failure(failure, unreadable.as_ref(), now);
    }
    for (index, past) in history.iter().enumerate() {
        let from = past.from_status.as_deref().map_or_else(String::new, |from| format!("{from} → "));
        let text = format!("{}  {from}{}  {} ({})", moment(past.at), past.to_status, past.why, past.who);
        field(if index == 0 { "history" } else { "" }, &text);
    }
    for (index, command) in next.iter().enumerate() {
        field(if index == 0 { "next" } else { "" }, &command.to_string());
    }
    Ok(())
}

fn shown<'a>(overview: &'a Overview, history: &'a [HistoryLine], head: String, now: Timestamp) -> Shown<'a> {
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
        stalled_because: stalled_because(overview, now),
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
        definition_changes: &overview.changes,
        history: history.iter().map(past).collect(),
        next: Vec::new(),
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

fn show_failure(failure: &Failure, unreadable: Option<&RawEvent>, now: Timestamp) {
    let ago = duration(now.since(failure.at));
    if let Some(event) = &failure.event {
        let text = format!("{}   {}   stream {}   {ago} ago", event.position, event.event_type, event.stream);
        field("failed on", &text);
    } else if let Some(row) = unreadable {
        let of = |column| row.valid(column).unwrap_or("?");
        let text = format!("{}   {}   stream {}   {ago} ago", row.position, of("type"), of("stream"));
        field("failed on", &text);
    }
    for (depth, message) in failure.chain.iter().enumerate() {
        let arrow = if depth == 0 { String::new() } else { format!("{}└─ ", "   ".repeat(depth - 1)) };
        field(if depth == 0 { "error" } else { "" }, &format!("{arrow}{message}"));
    }
}
