//! What this process knows of how far the log is settled (PostgreSQL), and of which run of the server that is true.
//!
//! A crash can lose commits that were not synced, and a standby that takes over can lack some: then positions are
//! drawn again which this process has seen settled, and whoever trusted that would skip them. So every new connection
//! asks which run of the server it leads to. With a new run all that was known is forgotten but what is published
//! there, no connection from before is used any more, and what is being read is read again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::event::Position;

/// A run of the server, as this process counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run(u64);

/// Up to where everything was settled at a moment, in a certain run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    pub(crate) run: Run,
    pub(crate) settled: Position,
}

/// What all tasks of a process that use one database know together.
#[derive(Debug, Default)]
pub struct Known(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    run: Run,
    /// What the server calls this run; none before the log is set up.
    name: Option<String>,
    /// When this run was found to be another one than before.
    since: Option<Instant>,
    /// Everything at or below is visible or dead. In one run only ever raised.
    settled: Position,
    /// The highest position that anybody here has seen. In one run only ever raised.
    seen: Position,
    /// The highest position that is known to be published.
    published: Position,
}

impl Known {
    pub(crate) fn floor(&self) -> Floor {
        let state = self.lock();
        Floor { run: state.run, settled: state.settled }
    }

    /// Notes that everything up to here is settled, if the run in which that was found still goes on.
    pub(crate) fn raise(&self, run: Run, to: Position) {
        let mut state = self.lock();
        if state.run == run {
            state.settled = state.settled.max(to);
        }
    }

    pub(crate) fn note_published(&self, run: Run, position: Position) {
        let mut state = self.lock();
        if state.run == run {
            state.published = state.published.max(position);
            state.settled = state.settled.max(position);
        }
    }

    pub(crate) fn note_seen(&self, run: Run, position: Position) {
        let mut state = self.lock();
        if state.run == run {
            state.seen = state.seen.max(position);
        }
    }

    /// The highest position that was seen in this run; none if it has ended.
    pub(crate) fn seen(&self, run: Run) -> Option<Position> {
        let state = self.lock();
        (state.run == run).then_some(state.seen)
    }

    /// What is settled and not yet published, and of which run that is true, as the server calls it.
    pub(super) fn to_publish(&self) -> Option<(Floor, Option<String>)> {
        let state = self.lock();
        let floor = Floor { run: state.run, settled: state.settled };
        (state.settled > state.published).then(|| (floor, state.name.clone()))
    }

    /// Whether a connection of this age was made before the run was found: it may lead to a server of the past.
    pub(crate) fn is_from_before(&self, age: Duration) -> bool {
        self.lock().since.is_some_and(|since| age > since.elapsed())
    }

    /// A connection leads to the run with this name, which has published that much.
    fn found(&self, name: Option<String>, published: Position) {
        let mut state = self.lock();
        if state.name == name {
            state.published = state.published.max(published);
            state.settled = state.settled.max(published);
            return;
        }
        // Before the log was set up no run had a name, and nothing was known.
        let is_another = state.name.is_some();
        if is_another {
            tracing::info!(
                position = published.0,
                "the server was restarted or replaced; what it has published is settled up to {published}"
            );
        }
        let since = if is_another { Some(Instant::now()) } else { state.since };
        let run = Run(state.run.0 + 1);
        *state = State { run, name, since, settled: published, seen: published, published };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything in it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a connection which run of the server it leads to, and what is published there.
pub(crate) async fn identify(connection: &mut PgConnection, known: &Known) -> sqlx::Result<()> {
    let (is_set_up,): (bool,) =
        sqlx::query_as("SELECT to_regprocedure('herald_identify_server()') IS NOT NULL")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
    if !is_set_up {
        known.found(None, Position::START);
        return Ok(());
    }
    let identified: sqlx::Result<(Option<String>, Position)> =
        sqlx::query_as("SELECT run, published FROM herald_identify_server()")
            .persistent(false)
            .fetch_one(connection)
            .await;
    match identified {
        Ok((run, published)) => known.found(run, published),
        Err(error) if is_lost(&error) => known.found(None, Position::START),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The schema got another name, and its functions look for their tables under the old one: nobody can append or
/// publish until it is set up again.
fn is_lost(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42P01" | "3F000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(known: &Known, run: &str, published: i64) -> Run {
        known.found(Some(run.to_owned()), Position(published));
        known.floor().run
    }

    #[test]
    fn s09_a_new_run_begins_with_what_is_published() {
        let known = Known::default();
        let first = found(&known, "a", 3);
        known.raise(first, Position(10));
        known.note_seen(first, Position(12));
        assert_eq!(found(&known, "a", 4), first);
        assert_eq!(known.floor().settled, Position(10));

        let second = found(&known, "b", 4);

        assert_ne!(second, first);
        assert_eq!((known.floor().settled, known.seen(second)), (Position(4), Some(Position(4))));
        // What was under way proves nothing of the new run.
        known.raise(first, Position(12));
        known.note_seen(first, Position(12));
        known.note_published(first, Position(12));
        assert_eq!((known.floor().settled, known.seen(first)), (Position(4), None));
        assert!(known.to_publish().is_none());
    }

    #[test]
    fn s09_connections_from_before_a_new_run_are_not_used() {
        let known = Known::default();
        found(&known, "a", 0);
        assert!(!known.is_from_before(Duration::from_secs(60)));

        found(&known, "b", 0);

        assert!(known.is_from_before(Duration::from_secs(60)));
        assert!(!known.is_from_before(Duration::ZERO));
    }
}
