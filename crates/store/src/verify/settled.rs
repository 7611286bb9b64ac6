//! What is recorded as settled: dead positions hold no event, and nothing is settled beyond the end of the log.
//!
//! Both come from a log whose end was lost while these records stayed. Readers believe them, and would pass events.

use super::{Finding, Report, Told};
use crate::database::{Database, DatabaseKind};
use crate::event::Position;
use crate::read::ReadError;

/// Ranges looked at by one statement.
const PAGE: i64 = 1_000;

impl<T: FnMut(Told) + Send> Report<'_, T> {
    pub(super) async fn settled(&mut self) -> Result<(), ReadError> {
        let database = self.store.database().clone();
        if let Some((position, end)) = settled_beyond_end(&database).await? {
            self.found(Finding::SettledBeyondEnd { position, end }).await;
        }
        if !has_table(&database, Table::DeadRanges).await? {
            return Ok(());
        }
        let sql = "SELECT d.lo, d.hi, (SELECT MIN(e.position) FROM herald_events e
                                        WHERE e.position >= d.lo AND e.position <= d.hi)
                     FROM herald_dead_ranges d
                    WHERE d.lo > $1
                    ORDER BY d.lo
                    LIMIT $2";
        let mut after = Position::START;
        loop {
            let rows: Vec<(Position, Position, Option<Position>)> =
                database.fetch_all(sql, (after, PAGE)).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.0;
            for (from, to, event) in rows {
                if let Some(position) = event {
                    self.found(Finding::DeadRange { from, to, position }).await;
                }
            }
        }
    }
}

/// Up to where the log is recorded as settled, and where it ends, if that is before it.
async fn settled_beyond_end(database: &Database) -> sqlx::Result<Option<(Position, Position)>> {
    let mut beyond = None;
    for (table, sql) in [
        (
            Table::SafeHead,
            "SELECT MAX(position), (SELECT COALESCE(MAX(position), 0) FROM herald_events) FROM herald_safe_head",
        ),
        (
            Table::DeadRanges,
            "SELECT MAX(hi), (SELECT COALESCE(MAX(position), 0) FROM herald_events) FROM herald_dead_ranges",
        ),
    ] {
        if has_table(database, table).await?
            && let Some((Some(settled), end)) =
                database.fetch_optional::<(Option<Position>, Position)>(sql, ()).await?
            && settled > end
        {
            beyond = beyond.max(Some((settled, end)));
        }
    }
    Ok(beyond)
}

/// A table that not every log has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    /// Positions that no event will ever have.
    DeadRanges,
    /// The head that is published for all processes.
    SafeHead,
}

/// Whether this log has the table.
pub(super) async fn has_table(database: &Database, table: Table) -> sqlx::Result<bool> {
    let name = match table {
        Table::DeadRanges => "herald_dead_ranges",
        Table::SafeHead => "herald_safe_head",
    };
    let sql = match database.kind() {
        DatabaseKind::Sqlite => {
            "SELECT CAST(1 AS BIGINT) FROM sqlite_master WHERE type = 'table' AND name = $1"
        }
        DatabaseKind::Postgres => "SELECT CAST(1 AS BIGINT) WHERE to_regclass($1) IS NOT NULL",
    };
    Ok(database.fetch_optional::<(i64,)>(sql, (name,)).await?.is_some())
}
