//! What must hold: of what is committed at any moment, and of everything once all is mended and quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use store::{Event, Filter, Position, Sql, Store, TableName};
use subscription_engine::{Criteria, Engine};
use uuid::Uuid;

use super::outside;
use super::subscribers::{ALL, INDIGESTIBLE, Ours, REMOVED};
use crate::BoxError;

/// More lines than any run writes.
const HISTORY: i64 = 100_000;
/// How the history begins to say that an event is never handled, before its position.
const GIVEN_UP: [&str; 2] = ["skipped position ", "discarded the dead letter at position "];

/// Events up to the checkpoint that were neither handled nor set aside; as negative numbers those that were handled
/// beyond it; and zero where it stands beyond the end of the log. One statement, so one moment.
const STRAYS: &str = "
    SELECT e.position
      FROM herald_events AS e, herald_subscriptions AS s
     WHERE s.id = $1 AND e.position <= s.position AND e.type IN ($2, $3)
       AND NOT EXISTS (SELECT 1 FROM {t} AS a WHERE a.position = e.position)
       AND NOT EXISTS (SELECT 1 FROM herald_dead_letters AS d
                        WHERE d.subscription_id = s.id AND d.position = e.position)
     UNION ALL
    SELECT -a.position
      FROM {t} AS a, herald_subscriptions AS s
     WHERE s.id = $1 AND a.position > COALESCE(s.position, 0)
     UNION ALL
    SELECT 0
      FROM herald_subscriptions AS s
     WHERE s.id = $1 AND s.position > (SELECT COALESCE(MAX(position), 0) FROM herald_events)";

/// Looks at the checkpoints as they are now; answers with what must not be.
pub(super) async fn look(store: &Store, engine: &Engine) -> Result<Vec<String>, BoxError> {
    let mut violations = Vec::new();
    // The table of the one that is removed comes and goes.
    for ours in ALL.iter().filter(|ours| ours.id != REMOVED) {
        let sql = Sql::named(STRAYS, &TableName::new(ours.table)?);
        let values = (ours.id.to_owned(), ours.wants[0].to_owned(), ours.wants[1].to_owned());
        let strays: Vec<(i64,)> = store.database().fetch_all(sql, values).await?;
        let given_up = History::of(engine, ours.id).await?.given_up;
        let strays: Vec<i64> =
            strays.into_iter().map(|row| row.0).filter(|at| !given_up.contains(at)).collect();
        if !strays.is_empty() {
            violations
                .push(format!("the checkpoint of {} does not fit what it handled: {strays:?}", ours.id));
        }
    }
    violations.extend(outside::look(store).await?);
    Ok(violations)
}

/// Judges everything; answers with the number of events and what must not be.
pub(super) async fn judge(
    store: &Store,
    engine: &Engine,
    acknowledged: &[Uuid],
    outbox: &Path,
) -> Result<(usize, Vec<String>), BoxError> {
    let events = everything(store).await?;
    let ids: BTreeSet<Uuid> = events.iter().map(|event| event.id).collect();
    let mut violations: Vec<String> = Vec::new();
    let lost: Vec<&Uuid> = acknowledged.iter().filter(|id| !ids.contains(id)).collect();
    if !lost.is_empty() {
        violations.push(format!("events that were acknowledged are lost: {lost:?}"));
    }
    for ours in &ALL {
        violations.extend(judge_one(store, engine, ours, &events).await?);
    }
    violations.extend(outside::judge(store, &events, outbox).await?);
    violations.extend(look(store, engine).await?);
    let head = store.head().await?.position;
    for overview in engine.status(&Criteria::all()).await? {
        let at = overview.subscription.position.unwrap_or(Position::START);
        if at != head {
            violations.push(format!("{} stands at {at} of {head}", overview.subscription.id));
        }
    }
    Ok((events.len(), violations))
}

async fn judge_one(
    store: &Store,
    engine: &Engine,
    ours: &Ours,
    events: &[Event],
) -> Result<Vec<String>, BoxError> {
    let id = ours.id;
    let history = History::of(engine, id).await?;
    let mut violations = history.unmeant_failures;
    let wanted: BTreeMap<i64, &Event> = events
        .iter()
        .filter(|event| ours.wants.contains(&event.event_type.as_str()))
        .map(|event| (event.position.0, event))
        .collect();
    let table = TableName::new(ours.table)?;
    let sql = Sql::named("SELECT position FROM {t} ORDER BY number", &table);
    let rows: Vec<(i64,)> = store.database().fetch_all(sql, ()).await?;
    let handled: Vec<i64> = rows.into_iter().map(|row| row.0).collect();
    let once: BTreeSet<i64> = handled.iter().copied().collect();
    if once.len() != handled.len() {
        violations.push(format!("{id} handled events twice: {handled:?}"));
    }
    let expected: BTreeSet<i64> =
        wanted.keys().copied().filter(|position| !history.given_up.contains(position)).collect();
    let (missing, strange) = (expected.difference(&once), once.difference(&expected));
    let (missing, strange): (Vec<&i64>, Vec<&i64>) = (missing.collect(), strange.collect());
    if !missing.is_empty() || !strange.is_empty() {
        violations.push(format!("{id} did not handle {missing:?}, and did handle {strange:?}"));
    }
    let mut last = BTreeMap::<&str, i64>::new();
    for position in handled.iter().filter(|position| wanted.contains_key(position)) {
        let stream = wanted[position].stream.as_str();
        if last.insert(stream, *position).is_some_and(|before| before > *position) {
            violations.push(format!("{id} handled {position} of {stream} too late: {handled:?}"));
        }
    }
    if let Some(answers) = ours.answers {
        let answered = events.iter().filter(|event| event.stream.as_str() == answers);
        let mut causes: Vec<Option<Uuid>> = answered.map(|event| event.causation_id).collect();
        let mut asked: Vec<Option<Uuid>> =
            once.iter().filter_map(|position| wanted.get(position)).map(|event| Some(event.id)).collect();
        causes.sort_unstable();
        asked.sort_unstable();
        if causes != asked {
            violations.push(format!("{id} handled {} events and answered {}", asked.len(), causes.len()));
        }
    }
    Ok(violations)
}

/// What is recorded of an event at which a worker died: it counts as an attempt.
const CUT: &str = "the process ended while this event was handled";

/// What the history of a subscription says.
struct History {
    /// Positions that an operator gave up.
    given_up: BTreeSet<i64>,
    /// Failures that have nothing to do with poison: a second time is an error of the table, for example.
    unmeant_failures: Vec<String>,
}

impl History {
    async fn of(engine: &Engine, id: &str) -> Result<Self, BoxError> {
        let mut history = Self { given_up: BTreeSet::new(), unmeant_failures: Vec::new() };
        for line in engine.history(id, HISTORY).await? {
            if let Some(rest) = GIVEN_UP.iter().find_map(|begin| line.why.strip_prefix(begin)) {
                let digits = rest.split(' ').next().unwrap_or_default();
                history.given_up.insert(digits.parse()?);
            }
            let is_meant = line.why.contains(INDIGESTIBLE) || line.why.contains(CUT);
            // A note of what an operator did meanwhile is no failure of its own.
            let fails = line.to_status == "error" && line.from_status.as_deref() != Some("error");
            if fails && !is_meant {
                history.unmeant_failures.push(format!("{id} failed: {}", line.why));
            }
        }
        Ok(history)
    }
}

async fn everything(store: &Store) -> Result<Vec<Event>, BoxError> {
    let (mut events, mut after) = (Vec::new(), Position::START);
    loop {
        let page = store.read(&Filter::all(), after, 1_000).await?;
        after = page.scanned_to;
        events.extend(page.events);
        if page.is_end {
            return Ok(events);
        }
    }
}

/// One of the other sessions on the server, which is ours alone.
const SOME_SESSION: &str = "
    SELECT pid FROM pg_stat_activity
     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
     ORDER BY md5(pid::text || $1) LIMIT 1";

/// An administrator ends a session.
pub(super) async fn end_backend(store: &Store, which: usize) -> Result<String, BoxError> {
    let session: Option<(i32,)> = store.database().fetch_optional(SOME_SESSION, (which.to_string(),)).await?;
    let Some(session) = session else { return Ok("there is none".to_owned()) };
    store.database().fetch_optional::<(bool,)>("SELECT pg_terminate_backend($1)", session).await?;
    Ok(format!("session {}", session.0))
}

/// kill -9 of a session's process; the server recovers, and all others lose theirs.
pub(super) async fn kill_backend(store: &Store, which: usize) -> Result<String, BoxError> {
    let session: Option<(i32,)> = store.database().fetch_optional(SOME_SESSION, (which.to_string(),)).await?;
    let Some((pid,)) = session else { return Ok("there is none".to_owned()) };
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    Ok(format!("session {pid}: {status}"))
}
